// Guestlab builds and runs throwaway guests with a pretend GPU, for the demo and
// the tests. It needs root and is not shipped.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && errors.Is(err, errCommand) {
		os.Exit(exit.ExitCode())
	}
	fmt.Fprintf(os.Stderr, "guestlab: error: %v\n", err)
	os.Exit(1)
}
