package sds

import (
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func uid() string { return strconv.Itoa(os.Getuid()) }

func keyPEM(t *testing.T, ca *issuer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(ca.leaf)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func dialUnix(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestSocketIsForItsOwnerAndGroupOnly(t *testing.T) {
	directory := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(directory, "sds.sock")
	l, err := ListenUnix(t.Context(), path, 0o660, os.Getuid(), os.Getgid())
	if err != nil {
		t.Fatal(err)
	}
	if got := mode(t, path); got != 0o660 {
		t.Errorf("socket mode %#o, want 0660", got)
	}
	if got := mode(t, directory); got != 0o700 {
		t.Errorf("directory mode %#o, want 0700", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestDirectoryIsOpenToTheOwnersGroup(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a directory to another group")
	}
	directory := filepath.Join(t.TempDir(), "run")
	l, err := ListenUnix(t.Context(), filepath.Join(directory, "sds.sock"), 0o660, -1, 4242)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if got := mode(t, directory); got != 0o750 {
		t.Errorf("directory mode %#o, want 0750", got)
	}
}

func TestUnsafeSocketsAreRefused(t *testing.T) {
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, path string
		mode       fs.FileMode
		want       string
	}{
		{"mode lets others in", filepath.Join(t.TempDir(), "s"), 0o666, "every user"},
		{"others write to the directory", filepath.Join(open, "s"), 0o600, "others can write"},
		{"path too long", "/" + strings.Repeat("x", 100), 0o600, "at most 100"},
		{"another file", file, 0o600, "another file"},
		{"directory is a file", filepath.Join(file, "s"), 0o600, "no directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := ListenUnix(t.Context(), test.path, test.mode, -1, -1)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q in it", err, test.want)
			}
		})
	}
	if content, err := os.ReadFile(file); err != nil || string(content) != "x" {
		t.Errorf("the other file was touched: %q, %v", content, err)
	}
}

func TestStaleSocketIsReplacedAndALivingOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := ListenUnix(t.Context(), path, 0o600, -1, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(t.Context(), path, 0o600, -1, -1); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("error %v beside a living server, want one", err)
	}
	unixListener, ok := first.(*net.UnixListener)
	if !ok {
		t.Fatalf("listener is a %T", first)
	}
	unixListener.SetUnlinkOnClose(false) // as if the server had been killed
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := ListenUnix(t.Context(), path, 0o600, -1, -1)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}
