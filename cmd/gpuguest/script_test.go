package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"gpuguest": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
			defer stop()
			os.Exit(run(ctx, os.Args[1:], console{in: os.Stdin, out: os.Stdout, err: os.Stderr}))
		},
		"gpuguest-main": main, // with its own signals and folders
	})
}

// TestCommandLine runs the scripts of testdata/cli: what a user types and what is printed.
func TestCommandLine(t *testing.T) {
	guests, err := filepath.Abs(filepath.Join("..", "..", "testdata", "guests"))
	if err != nil {
		t.Fatal(err)
	}
	results, err := filepath.Abs(filepath.Join("..", "..", "internal", "report", "testdata"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("..", "..", "testdata", "cli"),
		Setup: func(e *testscript.Env) error {
			e.Setenv("GUESTS", guests)
			e.Setenv("RESULTS", results)
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("SSH_AUTH_SOCK", "")
			// The first folder is the one that testscript puts gpuguest into.
			e.Setenv("GPUGUESTPATH", filepath.SplitList(e.Getenv("PATH"))[0])
			return nil
		},
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
		},
	})
}

// exits runs a command line and asserts its exit code: exits 4 gpuguest plan …
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND …")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if err != nil {
		code = -1
		if e, ok := err.(interface{ ExitCode() int }); ok {
			code = e.ExitCode()
		}
	}
	if got := args[0]; got != strconv.Itoa(code) {
		ts.Fatalf("exit code %d, want %s", code, got)
	}
}
