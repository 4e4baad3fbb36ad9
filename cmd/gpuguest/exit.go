package main

import (
	"context"
	"errors"

	"gpuguest/distros"
	"gpuguest/internal/bake"
	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/guest"
	"gpuguest/internal/oven"
	"gpuguest/internal/plan"
)

// The exit codes are part of the interface.
const (
	exitDone        = 0
	exitUsage       = 1 // wrong usage, or a mistake of gpuguest's own
	exitStep        = 2 // a step or what the guest was asked failed, or something of a bundle could not be had
	exitUnreachable = 3 // the guest could not be reached, or not as root
	exitUnsupported = 4 // no driver can be what was asked for, or the guest is not one that gpuguest knows
	exitVerify      = 5 // the driver is installed and does not work
	exitHeld        = 6 // another gpuguest works on the guest
	exitInterrupted = 130
)

const exitStatusHelp = `
Exit status:
  0    done
  1    wrong usage, or an error of gpuguest's own
  2    a step failed
  3    the guest could not be reached, or not as root
  4    unsupported: no driver can be what was asked for
  5    verification failed
  6    another gpuguest works on the guest
  130  interrupted; the guest goes on with the step it was at
Of many guests it is that of the worst: 130, 1, 2, 5, 4, 3, 6, 0 in this order.`

// exitCode is the one place where an error becomes an exit code.
func exitCode(err error) int {
	var step *engine.StepError
	var refusal *choice.Refusal
	var planned *plan.Refusal
	var many *manyError
	var unproved *unprovedError
	var boot *oven.BootError
	var gathered *gatherError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &many):
		return many.code
	case errors.Is(err, engine.ErrDetached), errors.Is(err, errInterrupted), errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &boot) && boot.Cause == nil:
		return exitVerify // it proved itself that it does not boot
	case errors.As(err, &boot):
		return exitUnreachable
	case errors.Is(err, guest.ErrHeld), errors.Is(err, bake.ErrHeld):
		return exitHeld
	case errors.Is(err, guest.ErrUnreachable), errors.Is(err, guest.ErrAuth), errors.Is(err, guest.ErrHostKey),
		errors.Is(err, guest.ErrSudo), errors.Is(err, guest.ErrDisconnected), errors.Is(err, guest.ErrNoReboot):
		return exitUnreachable
	case errors.Is(err, distros.ErrUnsupported), errors.As(err, &refusal), errors.As(err, &step) && step.Unsupported:
		return exitUnsupported
	case errors.As(err, &step) && step.Verify, errors.As(err, &unproved), errors.Is(err, errFatalVerdict):
		return exitVerify
	case errors.As(err, &step), errors.As(err, &planned), errors.As(err, &gathered), errors.Is(err, engine.ErrBootLoop), errors.Is(err, bake.ErrLock),
		errors.Is(err, guest.ErrNoSpace), errors.Is(err, guest.ErrChanged), errors.Is(err, guest.ErrJobStart), errors.Is(err, guest.ErrTimeout), errors.Is(err, guest.ErrTooMuch), errors.Is(err, guest.ErrLock):
		return exitStep
	}
	return exitUsage
}

// hint returns what the user should do next, "" when the error says it all.
func hint(err error) string {
	var h interface {
		error
		Hint() string
	}
	var step *engine.StepError
	var planned *plan.Refusal
	switch {
	case errors.As(err, &step):
		return step.Hint
	case errors.As(err, &planned):
		return planned.Hint
	case errors.As(err, &h):
		return h.Hint()
	}
	return ""
}
