package guest

import (
	"errors"
	"fmt"
)

// What may be wrong between here and a guest. Callers branch on these with errors.Is; the values that
// carry them are *Error and tell the rest.
var (
	ErrUnreachable  = errors.New("unreachable")                  // no SSH server answered in time
	ErrHostKey      = errors.New("host key refused")             // the guest's key is unknown (Strict), changed or revoked
	ErrAuth         = errors.New("login refused")                // no key or password was accepted
	ErrSudo         = errors.New("no root rights")               // logged in, but cannot become root
	ErrHeld         = errors.New("held by another")              // another gpuguest works on the guest
	ErrLock         = errors.New("cannot take the guest's lock") // the lock itself does not work there
	ErrDisconnected = errors.New("connection lost")              // the connection ended under a call
	ErrTooMuch      = errors.New("too much output")              // a script printed more than is kept
	ErrNoReboot     = errors.New("guest not back")               // no new boot answered in time
	ErrTimeout      = errors.New("time limit exceeded")          // a script ran longer than its own limit
	ErrJobStart     = errors.New("job not started")              // the guest could not start the job
	ErrNoSpace      = errors.New("not enough space")             // a file does not fit
	ErrChanged      = errors.New("local file changed")           // a file is not the content that was to be sent
	ErrBadScript    = errors.New("script not supported")         // a script that cannot be sent
)

// Error is an error of this package: what was being done to which guest, the class, the cause and what the
// user can do next. It never holds a password.
type Error struct {
	Kind error  // one of the sentinels above
	Host string // how messages call the guest
	Msg  string // lower case, one line; "" uses Kind's words
	Err  error  // the cause, or nil
	hint string
}

func (e *Error) Error() string {
	s := e.Msg
	if s == "" {
		s = e.Kind.Error()
	}
	if e.Host != "" {
		s = e.Host + ": " + s
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap lets errors.Is find both the class and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Hint is one sentence on what to do next, or "".
func (e *Error) Hint() string { return e.hint }

// HeldError is the ErrHeld that names who holds the guest.
type HeldError struct {
	Host  string
	Owner string // the holder's own words: user, machine, process, since when
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("%s: %v: %s", e.Host, ErrHeld, e.Owner)
}

// Is makes errors.Is(err, ErrHeld) true.
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// Hint is one sentence on what to do next.
func (e *HeldError) Hint() string {
	return "wait for that gpuguest to end, or stop it; its hold on the guest ends by itself within a minute of its end"
}

func (c *Conn) lost(cause error) error {
	return &Error{Kind: ErrDisconnected, Host: c.host, Err: cause,
		hint: "run the same command again: it goes on where it stopped; work that runs in the guest runs on"}
}
