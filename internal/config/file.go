package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/sds-server/sds-server/pkg/rollout/gate"
)

// checkFile returns what is wrong with a file, or "".
func checkFile(name string, use fileUse) (message, hint string) {
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "does not exist", ""
	case err != nil:
		return "cannot be read: " + reason(err), ""
	case !info.Mode().IsRegular():
		return "is not a regular file", ""
	case info.Size() > maxFileBytes:
		return fmt.Sprintf("has more than %d MiB", maxFileBytes>>20), ""
	}
	if use == useKey {
		if message, hint := checkKeyRights(name, info); message != "" {
			return message, hint
		}
	}
	data, err := os.ReadFile(name)
	switch {
	case err != nil:
		return "cannot be read: " + reason(err), ""
	case len(data) == 0:
		return "is empty", ""
	}
	if use == useCert {
		return checkCertificates(data), ""
	}
	return "", ""
}

// checkKeyRights refuses a private file that strangers can read or change.
func checkKeyRights(name string, info fs.FileInfo) (message, hint string) {
	mode, hint := info.Mode().Perm(), "chmod 600 "+name
	switch {
	case mode&0o004 != 0:
		return fmt.Sprintf("is readable by everyone (mode %04o)", mode), hint
	case mode&0o002 != 0:
		return fmt.Sprintf("is writable by everyone (mode %04o)", mode), hint
	case mode&0o060 != 0 && !isOurGroup(info):
		return fmt.Sprintf("is open to a group that is not ours (mode %04o)", mode), hint
	}
	return "", ""
}

// CheckPrivate refuses a private file that strangers can read or change, as the configuration does.
func CheckPrivate(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	if message, hint := checkKeyRights(name, info); message != "" {
		return fmt.Errorf("%s %s; %s", name, message, hint)
	}
	return nil
}

func isOurGroup(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	// Without the list of further groups the file is judged by our main group alone, which is the stricter answer.
	groups, _ := os.Getgroups()
	return slices.Contains(append(groups, os.Getegid()), int(stat.Gid))
}

// checkCertificates wants PEM with at least one certificate, and every certificate readable.
func checkCertificates(data []byte) string {
	count := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		count++
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Sprintf("has a certificate (number %d) that cannot be read: %v", count, err)
		}
	}
	if count == 0 {
		return "has no PEM certificate"
	}
	return ""
}

// checkDir returns what is wrong with a directory that is made at start if it does not exist.
func checkDir(name string) string {
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ""
	case err != nil:
		return "cannot be read: " + reason(err)
	case !info.IsDir():
		return "is not a directory"
	default:
		return ""
	}
}

// requirePair wants both files of a certificate with its key.
func (v *validator) requirePair(path, certFile, keyFile string) {
	if certFile == "" {
		v.add(path+".cert_file", "empty")
	}
	if keyFile == "" {
		v.add(path+".key_file", "empty")
	}
	v.keyPair(path, certFile, keyFile)
}

// keyPair wants both files or none, and that they belong together.
func (v *validator) keyPair(path, certFile, keyFile string) {
	if certFile == "" && keyFile == "" || v.hasProblem(path+".cert_file") || v.hasProblem(path+".key_file") {
		return
	}
	if certFile == "" || keyFile == "" {
		v.add(path, "cert_file and key_file need each other")
		return
	}
	if _, err := tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		v.add(path+".key_file", "%s does not fit cert_file: %s", keyFile, strings.TrimPrefix(err.Error(), "tls: "))
	}
}

// commandsAllowed refuses to run programs for a configuration that a stranger could have written.
func (v *validator) commandsAllowed(path string) {
	if v.file() == "" {
		return
	}
	if err := gate.Trusted(v.file()); err != nil {
		v.addHint(path, "no program is run for a configuration that "+err.Error(), untrustedHint(err))
	}
}

// command checks a program that is run without a shell.
func (v *validator) command(path string, command []string) {
	if len(command) == 0 {
		return
	}
	path += "[0]"
	if err := gate.CheckCommand(command, ""); err != nil {
		v.addHint(path, err.Error(), untrustedHint(err))
		return
	}
	v.commandsAllowed(path)
}

// untrustedHint says how others are kept from changing a file, if that is what is wrong.
func untrustedHint(err error) string {
	if e, ok := errors.AsType[*gate.UntrustedError](err); ok {
		return e.Hint
	}
	return ""
}

// ParseUser returns the uid for the name of a user of this machine, or for a number. A number needs no entry in the table of
// users: container images often have none.
func ParseUser(name string) (uid int, err error) {
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("no user %q on this machine", name)
	}
	return strconv.Atoi(u.Uid)
}

// ParseOwner returns the ids for USER or USER:GROUP, both names of this machine or numbers. gid is -1 without a group.
func ParseOwner(owner string) (uid, gid int, err error) {
	name, group, hasGroup := strings.Cut(owner, ":")
	if uid, err = ParseUser(name); err != nil || !hasGroup {
		return uid, -1, err
	}
	if n, err := strconv.ParseUint(group, 10, 31); err == nil {
		return uid, int(n), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, -1, fmt.Errorf("no group %q on this machine", group)
	}
	gid, err = strconv.Atoi(g.Gid)
	return uid, gid, err
}
