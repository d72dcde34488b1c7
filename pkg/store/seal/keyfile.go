package seal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"filippo.io/age"

	"github.com/sds-server/sds-server/pkg/store"
)

// keyFileBytes is more than an identity with its comments takes.
const keyFileBytes = 64 << 10

// GenerateKeyFile makes a new age identity (X25519) and writes it to path, mode 0600, in the form that age-keygen has. The
// file and its name are durable when it returns; it appears whole or not at all. An existing file is never overwritten: that
// is a *store.Fault with os.ErrExist.
func GenerateKeyFile(path string) error {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return fmt.Errorf("seal key: %w", err)
	}
	text := fmt.Sprintf("# sds-server seal key: without it the store cannot be read. Keep a copy in another place.\n"+
		"# created: %s\n# public key: %s\n%s\n", time.Now().UTC().Format(time.RFC3339), identity.Recipient(), identity)
	if err := writeNew(path, text); err != nil {
		fault := store.MediumFault(path, "seal key cannot be written", err)
		switch {
		case errors.Is(err, os.ErrExist):
			fault.Message = "seal key exists already"
			fault.Hint = "it was not changed; remove it only if no store was made with it"
		case errors.Is(err, os.ErrNotExist):
			fault.Hint = fmt.Sprintf("make the directory %s first", filepath.Dir(path))
		}
		return fault
	}
	return nil
}

// writeNew writes text to a new file at path.
func writeNew(path, text string) error {
	if _, err := os.Lstat(path); err == nil {
		return os.ErrExist
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*") // its mode is 0600
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		// The first error is the one to tell.
		_ = os.Remove(f.Name())
		return err
	}
	return store.Publish(f.Name(), path)
}

// LoadKeyFile reads the age identity in the file at path. A file that is missing, that is readable by the world, or by a
// group that is not one of ours, that others can write to, or that holds anything but one X25519 identity is a *store.Fault.
// Links are followed. No error holds any of the file's content.
func LoadKeyFile(path string) (*age.X25519Identity, error) {
	f, err := openKeyFile(path)
	if err != nil {
		return nil, err
	}
	identities, parseErr := age.ParseIdentities(io.LimitReader(f, keyFileBytes))
	// Only read from: closing can lose nothing.
	_ = f.Close()
	if e, ok := errors.AsType[*os.PathError](parseErr); ok {
		return nil, store.MediumFault(path, "seal key cannot be read", e)
	}
	const hint = "it must hold one line that begins with AGE-SECRET-KEY-1, as `sds-server init` or age-keygen writes it"
	if parseErr != nil {
		return nil, &store.Fault{Path: path, Message: "seal key is not an age identity", Hint: hint}
	}
	if len(identities) != 1 {
		return nil, &store.Fault{Path: path, Message: fmt.Sprintf("seal key holds %d identities, want 1", len(identities)), Hint: hint}
	}
	identity, ok := identities[0].(*age.X25519Identity)
	if !ok {
		return nil, &store.Fault{Path: path, Message: "seal key is an age identity of another kind than X25519", Hint: hint}
	}
	return identity, nil
}

// openKeyFile opens path and checks who else can read or write it.
func openKeyFile(path string) (*os.File, error) {
	// O_NONBLOCK: a FIFO must not hold up the start.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		fault := store.MediumFault(path, "seal key cannot be read", err)
		if errors.Is(err, os.ErrNotExist) {
			fault.Message, fault.Err = "seal key is missing", os.ErrNotExist
			fault.Hint = "restore it from its copy: a store cannot be read without it, and is never made anew; " +
				"for a first start, `sds-server init` makes one"
		}
		return nil, fault
	}
	if fault := checkKeyFile(path, f); fault != nil {
		// Only opened: closing can lose nothing.
		_ = f.Close()
		return nil, fault
	}
	return f, nil
}

func checkKeyFile(path string, f *os.File) *store.Fault {
	info, err := f.Stat()
	if err != nil {
		return store.MediumFault(path, "seal key cannot be read", err)
	}
	if !info.Mode().IsRegular() {
		return &store.Fault{Path: path, Message: "seal key is not a regular file", Hint: "check seal.key_file in the configuration"}
	}
	message := ""
	switch mode := info.Mode().Perm(); {
	case mode&0o004 != 0:
		message = "can be read by everyone"
	case mode&0o022 != 0:
		message = "can be written by others"
	case mode&0o040 != 0 && !groupIsOurs(info):
		message = "can be read by a group that is not ours"
	default:
		return nil
	}
	return &store.Fault{
		Path: path, Message: fmt.Sprintf("seal key %s (mode %04o)", message, info.Mode().Perm()),
		Hint: "chmod 0600 " + path + ", and make a new key (`sds-server rekey`) if someone may have read it",
	}
}

// groupIsOurs tells whether the file's group is one that this process is in.
func groupIsOurs(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	if int(stat.Gid) == os.Getegid() {
		return true
	}
	groups, err := os.Getgroups()
	// Without the list the answer is the safe one.
	return err == nil && slices.Contains(groups, int(stat.Gid))
}

// syncKeyFile makes the key file durable, before a store is made that depends on it. A file system that cannot flush, or
// that is mounted read-only, has nothing to flush.
func syncKeyFile(path string) error {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return store.MediumFault(path, "seal key cannot be read", err)
	}
	f, err := os.Open(target)
	if err != nil {
		return store.MediumFault(path, "seal key cannot be read", err)
	}
	err = f.Sync()
	// Only read from: closing can lose nothing.
	_ = f.Close()
	if err == nil {
		err = store.SyncDirectory(filepath.Dir(target))
	}
	if err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.EROFS) {
		return store.MediumFault(path, "seal key cannot be flushed to the disk", err)
	}
	return nil
}
