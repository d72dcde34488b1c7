package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sds-server/sds-server/internal/testenv"
)

// TestScripts runs testdata/script/*.txtar. Each script has a box in $WORK/s with the configuration $CONFIG (promotion: manual), and the
// commands "code", "ready" and "until" besides those of testscript.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			b := newEmptyBox(t, env.WorkDir)
			if err := b.init(); err != nil {
				return err
			}
			if err := b.write(settings{Manual: true}); err != nil {
				return err
			}
			env.Vars = append(env.Vars,
				"CONFIG="+b.Config(), "PAIRS="+pairs, "HTTP="+b.HTTP, "SDS="+b.SDS, "ADMIN="+b.AdminSocket(), "SDSSOCK="+b.SDSSocket(),
				"GORACE="+os.Getenv("GORACE"), "PATH="+filepath.Dir(serverBinary)+":"+os.Getenv("PATH"),
			)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code": exitsWith, "ready": waitReady, "until": repeatUntil,
		},
	})
}

// exitsWith is "code N command [args]": the command has to end with exit code N.
func exitsWith(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command [args]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("%s: exit code %d, want %d", args[1], got, want)
	}
}

// waitReady polls /readyz of the script's server.
func waitReady(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: ready")
	}
	b := &box{HTTP: ts.Getenv("HTTP")}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ts.Check(testenv.Eventually(ctx, b.serves))
}

// repeatUntil is "until REGEXP command [args]": the command is repeated until its output matches.
func repeatUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until REGEXP command [args]")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	poll(ts, func() error {
		if err := ts.Exec(args[1], args[2:]...); err != nil {
			return err
		}
		if out := ts.ReadFile("stdout"); !want.MatchString(out) {
			return fmt.Errorf("no match of %q in %s", args[0], out)
		}
		return nil
	})
}

func poll(ts *testscript.TestScript, check func() error) {
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v", err)
		}
		<-tick.C
	}
}
