// Command compose runs docker-compose.yaml on a real Docker engine, by the commands of the README: `make test-compose`.
//
// It looks after itself: the engine, its network and its containers live in namespaces of their own, from which no registry can be reached,
// and end with this command, whatever happens. So it touches no other engine, no port and no firewall rule of the machine. Images that the
// files name and that would be pulled are stand-ins, made of local files and tagged with the very names (see standin.go for what they
// offer); our own images are built from Dockerfile by `docker compose up --build`. It has to be run by root, as an engine has to be.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sds-server/sds-server/internal/testenv"
)

const (
	// limit bounds everything.
	limit = 20 * time.Minute
	// dirVariable is the environment variable by which the process in the namespaces is told its directory.
	dirVariable = "SDS_TEST_COMPOSE_DIR"
)

// errInside is what the process in the namespaces ended with.
var errInside = errors.New("in the namespaces")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir := os.Getenv(dirVariable)
	run := outside
	if dir != "" {
		run = func(ctx context.Context) error { return inside(ctx, dir) }
	}
	if err := run(ctx); errors.Is(err, errInside) {
		os.Exit(1) // it has said why
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// outside checks what is needed, and runs this program again in namespaces of its own.
func outside(ctx context.Context) error {
	if os.Getuid() != 0 {
		return errors.New("a Docker engine has to be run by root\nhint: sudo make test-compose")
	}
	for _, program := range []string{"docker", "dockerd", "containerd", "runc", "iptables", "git", "ldd", "openssl", "bash"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w\nhint: apt-get update && apt-get install -y --no-install-recommends docker.io iptables", err)
		}
	}
	if err := fetch(ctx); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sdsc")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // what was mounted in it went with the namespaces
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), self)
	cmd.Env = append(os.Environ(), dirVariable+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL, // its end is that of every process in the namespace
	}
	runtime.LockOSThread() // the death signal comes when the thread ends that started the child
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start in namespaces: %w", err)
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-ctx.Done():
			_ = cmd.Process.Signal(syscall.SIGTERM) // it has ended, or ends now
		case <-ended:
		}
	}()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %w", errInside, err)
	}
	return nil
}

// fetch brings here what cannot be had in the namespaces: tools, and modules.
func fetch(ctx context.Context) error {
	if _, err := ensureCompose(ctx); err != nil {
		return err
	}
	if _, err := testenv.EnsureTools(ctx, nil); err != nil {
		return err
	}
	for _, args := range [][]string{{}, {pebbleModule}} {
		if _, err := goCommand(ctx, "", nil, append([]string{"mod", "download"}, args...)...); err != nil {
			return err
		}
	}
	return nil
}

// inside runs the test as the first process of its namespaces.
func inside(ctx context.Context, dir string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := settle(); err != nil {
		return err
	}
	unix.Umask(0o022) // the containers' users read the copy of the working tree
	begin := time.Now()
	t := &test{dir: dir, out: os.Stdout}
	defer func() {
		if err != nil {
			t.logs(context.WithoutCancel(ctx))
		}
		err = errors.Join(err, t.stop())
		if err == nil {
			err = t.sum(time.Since(begin))
		}
	}()
	return t.run(ctx)
}

// settle makes the new namespaces usable: mounts that stay in here, our own processes in /proc, and a loopback interface that is up.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer func() { _ = unix.Close(s) }() // nothing was written
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

// cloneTree copies what git would hand out, and what is not committed yet: a fresh clone.
func cloneTree(ctx context.Context, to string) error {
	root, err := testenv.ModuleRoot()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root
	list, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w", cmd, err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
		info, err := os.Lstat(filepath.Join(root, name))
		if err != nil || !info.Mode().IsRegular() { // removed and not committed, or a link to the tools
			continue
		}
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		path := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, info.Mode().Perm()|0o044); err != nil {
			return err
		}
	}
	return nil
}
