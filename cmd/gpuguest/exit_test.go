package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"gpuguest/distros"
	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/guest"
	"gpuguest/internal/oven"
	"gpuguest/internal/plan"
)

func TestEveryErrorHasItsExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("some mistake"), 1},
		{&engine.StepError{Step: "driver", What: "exit 100"}, 2},
		{&plan.Refusal{Step: "room", Reason: "/ is mounted read-only"}, 2},
		{fmt.Errorf("%w: 3 done", engine.ErrBootLoop), 2},
		{&guest.Error{Kind: guest.ErrTimeout, Host: "vm", Msg: "the script ran longer than 30m0s"}, 2},
		{fmt.Errorf("%w: over 16777216 bytes", guest.ErrTooMuch), 2},
		{&guest.Error{Kind: guest.ErrLock, Host: "vm"}, 2},
		{guest.ErrJobStart, 2},
		{guest.ErrNoSpace, 2},
		{guest.ErrBadScript, 1},
		{fmt.Errorf("vm: %w", guest.ErrUnreachable), 3},
		{guest.ErrAuth, 3},
		{guest.ErrHostKey, 3},
		{guest.ErrSudo, 3},
		{guest.ErrNoReboot, 3},
		{guest.ErrDisconnected, 3},
		{&choice.Refusal{What: "a driver", Reason: "no GPU"}, 4},
		{fmt.Errorf("%w: rocky:9", distros.ErrUnsupported), 4},
		{&engine.StepError{Step: "available", What: "NVIDIA's repository has no driver 580.1.1", Unsupported: true}, 4},
		{&engine.StepError{Step: "verify-smi", What: "exit 9", Verify: true}, 5},
		{fmt.Errorf("smoke: %w", &oven.BootError{Disk: "a.qcow2", What: "does not boot: kernel panic"}), 5},
		{&oven.BootError{What: "no answer over SSH within 5m0s", Cause: context.DeadlineExceeded}, 3},
		{&oven.BootError{What: "boots, but does not let root in", Cause: guest.ErrAuth}, 3},
		{guest.ErrHeld, 6},
		{fmt.Errorf("%w: driver goes on: %w", engine.ErrDetached, context.Canceled), 130},
		{fmt.Errorf("dial: %w", context.Canceled), 130},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.want)
		}
	}
}
