package guest

import (
	"errors"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/guest/guesttest"
)

func TestHoldRunsTheScriptAndKeepsOthersOut(t *testing.T) {
	_, _, cfg := shellGuest(t)
	a, b := mustDial(t, cfg), mustDial(t, cfg)
	res, lease, err := a.Hold(t.Context(), HoldSpec{Owner: "ann@pc, pid 7", Script: "echo facts; echo warn >&2; cat; exit 3"})
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit != 3 || string(res.Stdout) != "facts\n" || string(res.Stderr) != "warn\n" {
		t.Errorf("got exit %d, %q, %q", res.Exit, res.Stdout, res.Stderr)
	}
	if a.Execs() != 1 {
		t.Errorf("took %d execs", a.Execs())
	}
	_, _, err = b.Hold(t.Context(), HoldSpec{Owner: "bob", Script: "echo never"})
	var held *HeldError
	if !errors.As(err, &held) || !errors.Is(err, ErrHeld) || held.Owner != "ann@pc, pid 7" || held.Hint() == "" {
		t.Fatalf("got %v", err)
	}
	select {
	case <-lease.Lost():
		t.Fatal("the lease was lost")
	default:
	}
	if err := lease.Release(); err != nil {
		t.Fatal(err)
	}
	if _, l, err := b.Hold(t.Context(), HoldSpec{Owner: "bob", Wait: 5 * time.Second, Script: "true"}); err != nil {
		t.Errorf("after the release: %v", err)
	} else {
		_ = l.Release()
	}
	within(t, 5*time.Second, func() { <-lease.Lost() })
}

func TestHoldWaitsForABusyGuestAndSaysForWhom(t *testing.T) {
	t.Parallel()
	_, _, cfg := shellGuest(t)
	var said notices
	cfg.Notice = said.add
	a, b := mustDial(t, cfg), mustDial(t, cfg)
	_, lease, err := a.Hold(t.Context(), HoldSpec{Owner: "ann", Script: "true"})
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { _ = lease.Release() })
	res, l, err := b.Hold(t.Context(), HoldSpec{Owner: "bob", Wait: 10 * time.Second, Script: "echo mine"})
	if err != nil || string(res.Stdout) != "mine\n" || len(res.Stderr) != 0 {
		t.Fatalf("got %+v, %v", res, err)
	}
	_ = l.Release()
	if !strings.Contains(said.text(), "held by ann") {
		t.Errorf("notices: %q", said.text())
	}
}

func TestGuestIsFreeWhenItsHolderVanishes(t *testing.T) {
	t.Parallel()
	shell, s, cfg := shellGuest(t)
	a := mustDial(t, cfg)
	_, lease, err := a.Hold(t.Context(), HoldSpec{Owner: "ann", Script: "true"})
	if err != nil {
		t.Fatal(err)
	}
	s.Cut()
	within(t, 5*time.Second, func() { <-lease.Lost() })
	b := mustDial(t, cfg)
	_, l, err := b.Hold(t.Context(), HoldSpec{Owner: "bob", Wait: 5 * time.Second, Script: "true"})
	if err != nil {
		t.Fatalf("after a cut: %v", err)
	}
	_ = l.Release()

	// A client that is gone without a word: no end of input, only silence.
	shell.Env = append(shell.Env, "GPUGUEST_SILENCE=1")
	d := mustDial(t, cfg)
	_, lease, err = d.Hold(t.Context(), HoldSpec{Owner: "dan", Wait: 5 * time.Second, Script: "true"})
	if err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, func() { <-lease.Lost() })
}

func TestDaemonOfTheHeldScriptDoesNotKeepTheLock(t *testing.T) {
	_, _, cfg := shellGuest(t)
	a := mustDial(t, cfg)
	_, lease, err := a.Hold(t.Context(), HoldSpec{Owner: "ann", Script: "setsid sleep 5 >/dev/null 2>&1 &"})
	if err != nil {
		t.Fatal(err)
	}
	_ = lease.Release()
	within(t, 4*time.Second, func() {
		_, l, err := a.Hold(t.Context(), HoldSpec{Owner: "ann again", Wait: 3 * time.Second, Script: "true"})
		if err != nil {
			t.Errorf("got %v", err)
			return
		}
		_ = l.Release()
	})
}

func TestHoldWithSudo(t *testing.T) {
	for name, sudo := range map[string]string{"free": freeSudo, "password": askingSudo} {
		t.Run(name, func(t *testing.T) {
			_, _, cfg := sudoGuest(t, sudo)
			cfg.SudoPassword = sudoPassword(`se cret\`)
			c := mustDial(t, cfg)
			res, lease, err := c.Hold(t.Context(), HoldSpec{Owner: "ann", Script: "echo root; cat"})
			if err != nil || string(res.Stdout) != "root\n" {
				t.Fatalf("got %+v, %v", res, err)
			}
			defer lease.Release()
			if sudo == freeSudo && c.Execs() != 1 {
				t.Errorf("took %d execs", c.Execs())
			}
		})
	}
	_, _, cfg := sudoGuest(t, askingSudo)
	cfg.SudoPassword = sudoPassword("wrong")
	c := mustDial(t, cfg)
	within(t, 10*time.Second, func() {
		if _, _, err := c.Hold(t.Context(), HoldSpec{Owner: "ann", Script: "true"}); !errors.Is(err, ErrSudo) {
			t.Errorf("got %v", err)
		}
	})
}

func TestHoldGivesUpAScriptThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	_, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	// What is held in time stays held when that time is over.
	_, lease, err := c.Hold(t.Context(), HoldSpec{Owner: "ann", Script: "true", Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-lease.Lost():
		t.Error("the hold ended with its script's time")
	case <-time.After(1200 * time.Millisecond):
	}
	_ = lease.Release()
	within(t, 15*time.Second, func() {
		_, lease, err := mustDial(t, cfg).Hold(t.Context(), HoldSpec{Owner: "bob", Wait: time.Second, Script: "sleep 20", Timeout: 300 * time.Millisecond})
		if !errors.Is(err, ErrTimeout) || lease != nil || hintOf(err) == "" {
			t.Errorf("got %v", err)
		}
	})
}

func TestHoldSaysWhyThereIsNoLock(t *testing.T) {
	shell := guesttest.NewShell(t)
	shell.Env = append(shell.Env, "GPUGUEST_RUN=/proc/self")
	_, cfg := guestFor(t, guesttest.Options{Exec: shell.Exec})
	c := mustDial(t, cfg)
	within(t, 10*time.Second, func() {
		_, _, err := c.Hold(t.Context(), HoldSpec{Owner: "ann", Script: "true"})
		if !errors.Is(err, ErrLock) || errors.Is(err, ErrHeld) {
			t.Errorf("got %v", err)
		}
	})
}

func TestHoldCutAnywhereReturnsAnError(t *testing.T) {
	t.Parallel()
	_, s, cfg := shellGuest(t)
	for limit := int64(2000); limit < 3400; limit += 100 {
		s.CutAfter(limit)
		c, err := Dial(t.Context(), cfg)
		if err != nil {
			if !errors.Is(err, ErrUnreachable) {
				t.Fatalf("%d bytes: %v", limit, err)
			}
			continue
		}
		within(t, 15*time.Second, func() {
			_, lease, err := c.Hold(t.Context(), HoldSpec{Owner: "ann", Wait: 10 * time.Second, Script: "head -c 500 /dev/zero | tr '\\0' x"})
			if err == nil {
				_ = lease.Release()
			} else if !errors.Is(err, ErrDisconnected) {
				t.Errorf("%d bytes: %v", limit, err)
			}
		})
		_ = c.Close()
	}
}

func TestOutputAfterTheHeldScriptDoesNoHarm(t *testing.T) {
	t.Parallel()
	_, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	within(t, 10*time.Second, func() {
		res, lease, err := c.Hold(t.Context(), HoldSpec{Owner: "ann", Script: "echo facts; { sleep 0.2; echo late; } & { sleep 0.2; echo late >&2; } & exit 4"})
		if err != nil || res.Exit != 4 || string(res.Stdout) != "facts\n" || len(res.Stderr) != 0 {
			t.Errorf("got %+v, %v", res, err)
			return
		}
		time.Sleep(400 * time.Millisecond)
		select {
		case <-lease.Lost():
			t.Error("the lease was lost")
		default:
		}
		_ = lease.Release()
	})
}
