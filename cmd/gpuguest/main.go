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
	"time"
)

// errInterrupted is the cause of a context that the user's first Ctrl-C cancelled.
var errInterrupted = errors.New("interrupted")

// sameTerm is how long after the first signal a SIGTERM is taken for the same request: a batch system may send one to
// everything that a job runs, and the job's script passes its own on.
const sameTerm = 2 * time.Second

// heed interrupts at the first signal and exits at the second, which is for whoever does not want to wait for the
// farewell.
func heed(signals <-chan os.Signal, interrupt, exit func()) {
	<-signals
	first := time.Now()
	interrupt()
	for s := range signals {
		if s != syscall.SIGTERM || time.Since(first) > sameTerm {
			exit()
			return
		}
	}
}

func main() {
	// The client's own work is small and its memory mostly buffers on their way to a guest: collecting twice
	// as often costs next to nothing and keeps an upload over a long way below 25 MB (make bench).
	debug.SetGCPercent(50)
	ctx, cancel := context.WithCancelCause(context.Background())
	tty := new(terminal)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go heed(signals, func() { cancel(errInterrupted) }, func() {
		tty.restore()
		os.Exit(exitInterrupted)
	})
	c := console{in: os.Stdin, out: os.Stdout, err: os.Stderr, terminal: tty}
	if dir, err := os.UserCacheDir(); err == nil {
		c.cache = filepath.Join(dir, "gpuguest")
	}
	os.Exit(run(ctx, os.Args[1:], c))
}
