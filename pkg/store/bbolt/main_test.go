package bbolt_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

// childVariable turns the test binary into one of the processes that the tests start; its last argument is the store.
const childVariable = "BBOLT_TEST_CHILD"

func TestMain(m *testing.M) {
	path := os.Args[len(os.Args)-1]
	switch os.Getenv(childVariable) {
	case "":
		os.Exit(m.Run())
	case "check":
		os.Exit(bbolt.ReportCheck(context.Background(), path, os.Stdout))
	case "commit":
		err := commitForever(path)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	case "silent": // a child that ends well, but says nothing
		os.Exit(0)
	case "panic":
		panic("a panic of the child")
	}
}

// childCommand is the command that runs this binary as the given child. The race detector would make each wait a second
// before it ends.
func childCommand(t *testing.T, child string) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{"env", "GORACE=atexit_sleep_ms=0", childVariable + "=" + child, exe}
}

// commitForever commits one number to many keys, again and again, and prints each number once its commit has returned.
func commitForever(path string) error {
	db, err := bbolt.Open(bbolt.Options{Path: path})
	if err != nil {
		return err
	}
	n := 0
	if e, err := db.Get(context.Background(), "n/00"); err == nil {
		if n, err = strconv.Atoi(string(e.Value[:10])); err != nil {
			return err
		}
	}
	for {
		n++
		revision, err := db.Commit(context.Background(), nil, numbered(n))
		if err != nil {
			return err
		}
		fmt.Printf("%d %d\n", n, revision)
	}
}

// numbered is the commit of number n: 20 keys that all hold n, in values of changing size, and one key of its own.
func numbered(n int) []store.Operation {
	var operations []store.Operation
	for i := range 20 {
		value := fmt.Appendf(nil, "%010d", n)
		value = append(value, make([]byte, (n*97+i*331)%9000)...)
		operations = append(operations, store.Put(fmt.Sprintf("n/%02d", i), value))
	}
	return append(operations, store.Put(fmt.Sprintf("own/%010d", n), nil))
}
