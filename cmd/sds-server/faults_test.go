package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
)

// used returns a box whose server has run once and holds two versions of www, and the hash of its store.
func used(t *testing.T) (*box, [sha256.Size]byte) {
	t.Helper()
	b := newBox(t, settings{Manual: true})
	p := b.start()
	b.importPair("www", "a1")
	b.importPair("www", "a2")
	b.must(p.Stop())
	return b, b.hash(b.Store())
}

// unchanged checks that a fault has left the store as it was.
func (b *box) unchanged(before [sha256.Size]byte) {
	b.Helper()
	if b.hash(b.Store()) != before {
		b.Errorf("the store has changed")
	}
}

// holdsBoth starts a server and checks that nothing was lost.
func (b *box) holdsBoth() {
	b.Helper()
	p := b.start()
	var s admin.Secret
	b.json(&s, "secrets", "show", "www")
	if len(s.Versions) != 2 {
		b.Errorf("got %d versions, want 2", len(s.Versions))
	}
	b.must(p.Stop())
}

func TestStoreOfAnotherProcess(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{})
	b.start()
	b.importPair("www", "a1")
	b.status(func(s admin.Status) error { // the server writes until the import's rollout has ended
		if len(s.Rollouts) > 0 {
			return fmt.Errorf("rollouts under way: %v", s.Rollouts)
		}
		return nil
	})
	before := b.hash(b.Store())
	b.serveFails(1, "store.db: store is used by another process")
	b.unchanged(before)
	b.ok("status")
}

func TestDamagedStore(t *testing.T) {
	t.Parallel()
	b, before := used(t)
	good, err := os.ReadFile(b.Store())
	b.must(err)
	flip := func(from, to int) []byte {
		bad := append([]byte{}, good...)
		for i := from; i < to; i++ {
			bad[i] ^= 0xff
		}
		return bad
	}
	cases := []struct {
		name, want string
		data       []byte
	}{
		{"truncated", "store is damaged", good[:len(bytes.TrimRight(good, "\x00"))/2]}, // the file is longer than what is written
		{"cut to a page", "store is damaged", good[:4096]},
		{"first pages flipped", "store is damaged", flip(0, 8192)},
		{"pages behind them flipped", "store is damaged", flip(8192, len(good))}, // a single one may be free
		{"foreign file", "store is damaged", []byte(strings.Repeat("#!/bin/sh\n", 2000))},
		{"empty file", "the file is empty", nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := *b
			b.TB = t
			b.must(os.WriteFile(b.Store(), c.data, 0o600))
			damaged := b.hash(b.Store())
			b.serveFails(1, c.want)
			b.refused(1, c.want, "store", "check")
			b.unchanged(damaged)
		})
	}
	b.must(os.WriteFile(b.Store(), good, 0o600))
	b.unchanged(before)
	b.holdsBoth()
}

func TestSealKey(t *testing.T) {
	t.Parallel()
	b, before := used(t)
	key := filepath.Join(b.Dir, "seal.key")
	good, err := os.ReadFile(key)
	b.must(err)
	other := newEmptyBox(t, t.TempDir())
	other.must(other.init())
	wrong, err := os.ReadFile(filepath.Join(other.Dir, "seal.key"))
	b.must(err)

	b.must(os.WriteFile(key, wrong, 0o600))
	b.serveFails(1, "seal.key")
	b.unchanged(before)

	b.must(os.WriteFile(key, []byte("AGE-SECRET-KEY-1NONSENSE\n"), 0o600))
	b.serveFails(1, "seal.key: seal key is not an age identity")
	b.unchanged(before)

	b.must(os.Remove(key))
	b.serveFails(2, "seal.key_file: ")
	b.unchanged(before)
	if _, err := os.Lstat(key); err == nil {
		t.Error("a seal key was made anew")
	}

	b.must(os.WriteFile(key, good, 0o600))
	b.must(os.Chmod(key, 0o644))
	b.serveFails(2, "seal.key_file: ")
	b.unchanged(before)

	b.must(os.Chmod(key, 0o600))
	b.unchanged(before)
	b.holdsBoth()
}

func TestAddressInUse(t *testing.T) {
	t.Parallel()
	b, before := used(t)
	occupied := []struct{ name, network, address, want string }{
		{"SDS over TCP", "tcp", b.SDS, "xds.listeners[1].address: address " + b.SDS + " is in use"},
		{"HTTP", "tcp", b.HTTP, "http.address: address " + b.HTTP + " is in use"},
		{"HTTP-01", "tcp", b.Challenge, "challenges.http-01.address: address " + b.Challenge + " is in use"},
		{"SDS socket", "unix", b.SDSSocket(), "xds.listeners[0].address: "},
		{"admin socket", "unix", b.AdminSocket(), "admin.address: "},
	}
	for _, c := range occupied {
		t.Run(c.name, func(t *testing.T) {
			b := *b
			b.TB = t
			l, err := new(net.ListenConfig).Listen(t.Context(), c.network, c.address)
			b.must(err)
			defer l.Close()
			b.serveFails(1, c.want)
			b.unchanged(before)
			for _, socket := range []string{b.SDSSocket(), b.AdminSocket()} {
				if _, err := os.Lstat(socket); err == nil && socket != c.address {
					t.Errorf("%s was left behind", socket)
				}
			}
		})
	}
	b.holdsBoth()
}

func TestStaleSocketIsReplaced(t *testing.T) {
	t.Parallel()
	b, _ := used(t)
	for _, path := range []string{b.SDSSocket(), b.AdminSocket()} {
		l, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
		b.must(err)
		l.(*net.UnixListener).SetUnlinkOnClose(false) // as after SIGKILL
		b.must(l.Close())
		if _, err := os.Lstat(path); err != nil {
			t.Fatal(err)
		}
	}
	b.holdsBoth()
	b.must(os.WriteFile(b.AdminSocket(), []byte("somebody's"), 0o600))
	b.serveFails(1, "there is another file of that name")
	if data, err := os.ReadFile(b.AdminSocket()); err != nil || string(data) != "somebody's" {
		t.Errorf("got %q, %v, want the file as it was", data, err)
	}
}

// mount mounts something for the length of a test.
func mount(t *testing.T, target string, args ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mount needs root")
	}
	out, err := exec.CommandContext(t.Context(), "mount", append(args, target)...).CombinedOutput()
	if err != nil {
		t.Fatalf("mount %s: %v: %s", strings.Join(args, " "), err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "umount", target).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", target, err, out)
		}
	})
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	b := newEmptyBox(t, t.TempDir())
	b.must(b.init())
	b.configure(settings{Manual: true})
	data := filepath.Join(b.Dir, "data")
	small := filepath.Join(t.TempDir(), "small")
	b.must(os.Mkdir(small, 0o700))
	mount(t, small, "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs")
	b.must(os.Rename(data, data+".old"))
	b.must(os.Symlink(small, data))

	// There is room for a store, and for some secrets.
	p := b.start()
	b.importPair("www", "a1")
	filler := filepath.Join(small, "filler")
	fill(t, filler)

	// What does not fit is refused with a sentence; what is there is served on.
	var last result
	names := 0
	for i := range 200 {
		name := fmt.Sprintf("s%d", i)
		last = b.run("secrets", "import", name, "--chain", filepath.Join(pairs, "b1.crt"), "--key", filepath.Join(pairs, "b1.key"))
		if last.code != 0 {
			break
		}
		names++
	}
	checkRefusal(t, last, 1, "the disk is full")
	var s admin.Secrets
	b.json(&s, "secrets", "list")
	if len(s.Secrets) != names+1 {
		t.Errorf("got %d secrets, want %d", len(s.Secrets), names+1)
	}
	n := connect(t, b.SDSSocket(), "n1", "canary", "www")
	b.eventually(func() error { return n.has("www", "") })

	// A restart on the full disk serves what is there, or says why not.
	b.must(p.Stop())
	full := b.hash(b.Store())
	p = b.start()
	b.json(&s, "secrets", "list")
	if len(s.Secrets) != names+1 {
		t.Errorf("got %d secrets after a restart, want %d", len(s.Secrets), names+1)
	}
	b.unchanged(full)

	// When there is room again, it goes on without a restart.
	b.must(os.Remove(filler))
	b.importPair("www", "a2")
	b.must(p.Stop())
	b.holdsBoth()
}

// fill takes all space that is left.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	for {
		if _, err := f.Write(block); err != nil {
			return
		}
	}
}

func TestNoRoomForAStore(t *testing.T) {
	t.Parallel()
	b := newEmptyBox(t, t.TempDir())
	b.must(b.init())
	b.configure(settings{})
	small := filepath.Join(b.Dir, "data")
	b.must(os.RemoveAll(small))
	b.must(os.Mkdir(small, 0o700))
	mount(t, small, "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs")
	fill(t, filepath.Join(small, "filler"))
	b.serveFails(1, "the disk is full")
	if entries, err := os.ReadDir(small); err != nil || len(entries) != 1 {
		t.Errorf("got %v, %v, want the filler alone", entries, err)
	}

	// init leaves nothing behind either.
	dir := filepath.Join(small, "new")
	checkRefusal(t, b.runIn(nil, "init", "--dir", dir), 1, "the disk is full")
	if _, err := os.Lstat(dir); err == nil {
		t.Error("a part of init was left behind")
	}
}

func TestReadOnlyFileSystem(t *testing.T) {
	t.Parallel()
	b, before := used(t)
	data := filepath.Join(b.Dir, "data")
	mount(t, data, "--bind", data)
	out, err := exec.CommandContext(t.Context(), "mount", "-o", "remount,bind,ro", data).CombinedOutput()
	if err != nil {
		t.Fatalf("remount: %v: %s", err, out)
	}
	b.serveFails(1, "the file system is read-only")
	b.unchanged(before)
	checkRefusal(t, b.runIn(nil, "init", "--dir", filepath.Join(data, "new")), 1, "read-only")
}

// asNobody makes a command run as a user without rights.
func asNobody(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// asNobodyElse is another one.
func asNobodyElse(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}}
}

func TestNoPermission(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("another user needs root")
	}
	b, before := used(t)
	open(t, b.Dir)
	b.must(os.Chmod(filepath.Join(b.Dir, "data"), 0o700))
	r := b.runIn(asNobody, "serve", "-c", b.Config())
	checkRefusal(t, r, 2, "seal.key_file: ")
	b.unchanged(before)

	// With a key of its own, and TLS files that it may read, it is the store that it may not.
	b.must(os.Chown(filepath.Join(b.Dir, "seal.key"), 65534, 65534))
	b.must(os.Chown(filepath.Join(b.Dir, "xds", "server.key"), 65534, 65534))
	b.must(os.Chmod(filepath.Join(b.Dir, "xds"), 0o755))
	r = b.runIn(asNobody, "serve", "-c", b.Config())
	checkRefusal(t, r, 1, "permission denied")
	b.unchanged(before)
	checkRefusal(t, b.runIn(asNobody, "init", "--dir", filepath.Join(b.Dir, "new")), 1, "permission denied")
}

// open lets every user through the directories above path.
func open(t *testing.T, path string) {
	t.Helper()
	for dir := path; len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOtherUsers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("another user needs root")
	}
	b := newBox(t, settings{Admin: `, users: ["65534"]`})
	open(t, b.Dir)
	b.must(os.Chmod(b.Sockets, 0o711))
	p := b.start()
	if info, err := os.Stat(b.AdminSocket()); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("got %v, %v, want mode 0666", info.Mode(), err)
	}
	if r := b.runIn(asNobody, "status", "-c", b.Config()); r.code != 0 {
		t.Errorf("a listed user: exit %d: %s", r.code, r.errs)
	}
	r := b.runIn(asNobodyElse, "status", "-c", b.Config())
	checkRefusal(t, r, 1, "permission denied for uid=65533")

	crowd(t, b.AdminSocket())
	if r := b.run("status"); r.code != 0 {
		t.Errorf("after a crowd of strangers: exit %d: %s", r.code, r.errs)
	}
	b.must(p.Stop())

	// Without users nobody else gets there, whatever the file system says.
	b.configure(settings{})
	b.start()
	if info, err := os.Stat(b.AdminSocket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v, want mode 0600", info.Mode(), err)
	}
	checkRefusal(t, b.runIn(asNobody, "status", "-c", b.Config()), 3, "permission denied")
	b.must(os.Chmod(b.AdminSocket(), 0o666))
	checkRefusal(t, b.runIn(asNobody, "status", "-c", b.Config()), 1, "permission denied for ")
}

// crowd opens many connections as a user that may not, and checks that most are closed at once.
func crowd(t *testing.T, socket string) {
	t.Helper()
	const many, closedAtLeast = 200, 100
	conns := make(chan []int, 1)
	go func() {
		// The kernel notes the effective user of the thread that connects. The thread ends with the goroutine, for it stays locked.
		runtime.LockOSThread()
		keep := ^uintptr(0)
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, 65533, keep); errno != 0 {
			t.Errorf("setresuid: %v", errno)
			conns <- nil
			return
		}
		var fds []int
		for range many {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			if err == nil {
				err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket})
			}
			if err != nil {
				t.Errorf("connect: %v", err)
				break
			}
			fds = append(fds, fd)
		}
		conns <- fds
	}()
	closed := 0
	for _, fd := range <-conns {
		if closed < closedAtLeast {
			_ = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Usec: 50_000}) // else the read below waits
			if n, err := syscall.Read(fd, make([]byte, 1)); n == 0 && err == nil {
				closed++
			}
		}
		defer syscall.Close(fd)
	}
	if closed < closedAtLeast {
		t.Errorf("%d of %d idle connections of a stranger were closed, want at least %d", closed, many, closedAtLeast)
	}
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{Manual: true})
	p := b.start()
	b.importPair("www", "a1")
	nodes := []*node{connect(t, b.SDSSocket(), "n1", "canary", "www"), connect(t, b.SDSSocket(), "n2", "production", "www")}
	for _, n := range nodes {
		b.eventually(func() error { return n.has("www", "") })
	}
	begin := time.Now()
	b.must(p.Signal(syscall.SIGTERM))
	ctx, cancel := b.within(10 * time.Second)
	defer cancel()
	code, err := p.Wait(ctx)
	if err != nil || code != 0 {
		t.Fatalf("exit code %d, %v, want 0", code, err)
	}
	t.Logf("ended within %s of SIGTERM with two streams", time.Since(begin).Round(time.Millisecond))
	for _, n := range nodes {
		<-n.done
		if !strings.Contains(n.err.Error(), "Unavailable") {
			t.Errorf("the stream of %s ended with %v, want UNAVAILABLE", n.id, n.err)
		}
	}
	for _, socket := range []string{b.AdminSocket(), b.SDSSocket()} {
		if _, err := os.Lstat(socket); err == nil {
			t.Errorf("%s was left behind", socket)
		}
	}
	b.ok("store", "check")
	b.start()
	again := connect(t, b.SDSSocket(), "n1", "canary", "www")
	b.eventually(func() error { return again.has("www", nodes[0].got["www"]) })
}
