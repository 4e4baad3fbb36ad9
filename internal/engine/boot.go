package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"gpuguest/internal/choice"
	"gpuguest/internal/guest"
	"gpuguest/internal/remedy"
	"gpuguest/steps"
)

// boot reboots the guest when that is owed and allowed. It answers again when it did.
func (r *run) boot(ctx context.Context, changed bool) (verdict, error) {
	if changed {
		// What this pass did is in the journal now; the boot decides by that and not by memory.
		if err := r.look(ctx); err != nil {
			return done, err
		}
	}
	owed := Owed(r.journal, r.facts.BootID)
	r.report.Owed = owed
	reason := r.reason(owed)
	if r.Reboot == choice.RebootAlways && r.report.Reboots == 0 && reason == "" {
		reason = "--reboot always"
	}
	if reason == "" {
		return done, nil
	}
	if r.Reboot == choice.RebootNever {
		r.tell(Event{Kind: Notice, Text: "a reboot is owed (" + reason + ") and --reboot never keeps it from happening"})
		return done, nil
	}
	if r.report.Reboots >= r.MaxReboots {
		return done, fmt.Errorf("%w: %d done, and another is owed: %s", ErrBootLoop, r.report.Reboots, reason)
	}
	if r.RebootTurn != nil {
		giveBack, err := r.RebootTurn(ctx)
		if err != nil {
			return done, err
		}
		defer giveBack()
	}
	if err := r.write(ctx, Record{Event: "reboot", Reason: reason}); err != nil {
		return done, err
	}
	r.tell(Event{Kind: Rebooting, Text: reason})
	began := time.Now()
	old := r.conn
	r.lease = nil // the guest's going down ends it
	conn, err := old.Reboot(ctx, guest.RebootSpec{
		OldBoot: r.facts.BootID, Deadline: r.RebootDeadline, Cmd: r.RebootCommand, PowerCycle: r.PowerCycle,
		Notice: func(s string) { r.tell(Event{Kind: Notice, Text: s}) },
	})
	r.inGuest += time.Since(began)
	r.report.Execs += old.Execs()
	old.Close() // also when the reboot was never asked for: the lock must not outlive this run
	if err != nil {
		r.conn = nil
		return done, err
	}
	r.conn = conn
	r.report.Reboots++
	r.report.Connections++
	r.boots = r.facts.Kernel.Next
	r.tell(Event{Kind: Rebooted})
	return again, nil
}

// reason says why a boot is owed, "" when none is.
func (r *run) reason(owed []steps.ID) string {
	if t, open := remedy.Open(remedy.Trials(r.facts.State.Journal)); open && t.Boot == r.facts.BootID {
		// Also where nothing else asks for it: what the kernel said of the failure stands in its log until then.
		if m, ok := remedy.Lookup(t.Fix); ok && m.Boots {
			return t.Fix + " is tried for " + t.Cause
		}
	}
	if len(owed) > 0 {
		names := make([]string, len(owed))
		for i, id := range owed {
			names[i] = string(id)
		}
		return strings.Join(names, ", ") + " take effect at the next boot"
	}
	k := r.facts.Kernel
	if len(r.facts.GPUs) > 0 && k.Next != "" && k.Next != k.Running && r.facts.Driver.Loaded == "" && r.facts.Driver.Running.Version == "" {
		return "the driver is built for kernel " + k.Next + ", running is " + k.Running
	}
	return ""
}

// reconnect dials again until the guest answers or patience ends.
func (r *run) reconnect(ctx context.Context) error {
	if r.conn != nil {
		r.report.Execs += r.conn.Execs()
		r.conn.Close()
		r.conn, r.lease = nil, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.Patience, fmt.Errorf("not back after %s", r.Patience))
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		conn, err := r.Dial(ctx)
		if err == nil {
			r.conn = conn
			r.report.Connections++
			return nil
		}
		if !errors.Is(err, guest.ErrUnreachable) && !errors.Is(err, guest.ErrDisconnected) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}
