// Command gpuguest installs the NVIDIA driver in Linux guests that have a GPU passed through, over SSH.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
)

// errInterrupted is the cause of a context that the user's first Ctrl-C cancelled.
var errInterrupted = errors.New("interrupted")

func main() {
	// The client's own work is small and its memory mostly buffers on their way to a guest: collecting twice
	// as often costs next to nothing and keeps an upload over a long way below 25 MB (make bench).
	debug.SetGCPercent(50)
	ctx, cancel := context.WithCancelCause(context.Background())
	tty := new(terminal)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel(errInterrupted)
		<-signals
		// The second one is for whoever does not want to wait for the farewell.
		tty.restore()
		os.Exit(exitInterrupted)
	}()
	c := console{in: os.Stdin, out: os.Stdout, err: os.Stderr, terminal: tty}
	if dir, err := os.UserCacheDir(); err == nil {
		c.cache = filepath.Join(dir, "gpuguest")
	}
	os.Exit(run(ctx, os.Args[1:], c))
}
