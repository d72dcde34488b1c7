package testenv_test

import (
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
)

func TestNoTwoCallersGetTheSamePort(t *testing.T) {
	if n := os.Getenv("TESTENV_PORTS"); n != "" {
		reserve(t, n)
		return
	}
	t.Parallel()
	const callers, each = 8, 50
	env := testenv.NewT(t)
	// Another process reserves ports at the same time; it prints them and keeps them until it is stopped.
	other := env.Process(testenv.ProcessOptions{
		Name: "other", Path: os.Args[0], Args: []string{"-test.run", "^TestNoTwoCallersGetTheSamePort$"}, Env: []string{"TESTENV_PORTS=400"},
	})
	var mu sync.Mutex
	seen := make(map[int]int)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				port, err := testenv.FreePort()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen[port]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := other.WaitLog(env.Ready(), "reserved"); err != nil {
		t.Fatal(err)
	}
	log, err := other.Log()
	if err != nil {
		t.Fatal(err)
	}
	theirs := 0
	for word := range strings.FieldsSeq(log) {
		if port, err := strconv.Atoi(word); err == nil {
			seen[port]++
			theirs++
		}
	}
	if theirs != 400 {
		t.Fatalf("the other process reserved %d ports, want 400", theirs)
	}
	for port, n := range seen {
		if n != 1 {
			t.Errorf("port %d was given to %d callers", port, n)
		}
	}
	if err := other.Kill(); err != nil {
		t.Error(err)
	}
}

// reserve is the other process of TestNoTwoCallersGetTheSamePort.
func reserve(t *testing.T, count string) {
	t.Helper()
	n, err := strconv.Atoi(count)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for range n {
		port, err := testenv.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		out.WriteString(strconv.Itoa(port) + "\n")
	}
	if _, err := os.Stdout.WriteString(out.String() + "reserved\n"); err != nil {
		t.Fatal(err)
	}
	select {} // keeps the reservations until the parent ends this process
}

func TestPortIsFreeToListenOn(t *testing.T) {
	t.Parallel()
	address, err := testenv.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
