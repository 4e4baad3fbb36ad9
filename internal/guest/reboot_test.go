package guest

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"gpuguest/internal/guest/guesttest"
)

// rebooter makes a guest whose reboot command is a tool that calls down, then up after a while.
func rebooter(t *testing.T, down func(*guesttest.Shell, *guesttest.Server), up func(*guesttest.Shell, *guesttest.Server)) (*guesttest.Shell, *guesttest.Server, Config) {
	t.Helper()
	shell, s, cfg := shellGuest(t)
	shell.Tool("systemctl", `[ "$1" != reboot ] || : >"$HOME/reboot-asked"; [ "$1" != is-system-running ] || echo running`)
	inner := shell.Exec
	var once sync.Once
	s.Change(func(o *guesttest.Options) {
		o.Exec = func(ctx context.Context, cmd string, stdin io.Reader, stdout, stderr io.Writer) int {
			code := inner(ctx, cmd, stdin, stdout, stderr)
			if strings.Contains(cmd, "systemctl reboot") {
				once.Do(func() {
					go func() {
						down(shell, s)
						time.Sleep(700 * time.Millisecond)
						up(shell, s)
					}()
				})
			}
			return code
		}
	})
	return shell, s, cfg
}

func TestRebootComesBackWithANewBoot(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		down, up func(*guesttest.Shell, *guesttest.Server)
	}{
		{"port refused", func(_ *guesttest.Shell, s *guesttest.Server) { s.Refuse() },
			func(sh *guesttest.Shell, s *guesttest.Server) { sh.Boot("boot-2"); s.Listen() }},
		{"port accepted but silent", func(_ *guesttest.Shell, s *guesttest.Server) { s.Cut(); s.Freeze() },
			func(sh *guesttest.Shell, s *guesttest.Server) { sh.Boot("boot-2"); s.Cut(); s.Thaw() }},
		{"old boot answers for a while", func(*guesttest.Shell, *guesttest.Server) {},
			func(sh *guesttest.Shell, s *guesttest.Server) { s.Cut(); sh.Boot("boot-2") }},
		{"connection cut in the middle of the answer", func(_ *guesttest.Shell, s *guesttest.Server) { s.Cut() },
			func(sh *guesttest.Shell, _ *guesttest.Server) { sh.Boot("boot-2") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, cfg := rebooter(t, tt.down, tt.up)
			c := mustDial(t, cfg)
			var n *Conn
			within(t, 20*time.Second, func() {
				var err error
				if n, err = c.Reboot(t.Context(), RebootSpec{OldBoot: "boot-1", Deadline: 15 * time.Second}); err != nil {
					t.Fatal(err)
				}
			})
			defer n.Close()
			res, err := n.Run(t.Context(), Command{Script: `cat "$GPUGUEST_BOOT_ID"`})
			if err != nil || string(res.Stdout) != "boot-2\n" {
				t.Errorf("got %+v, %v", res, err)
			}
			if _, err := c.Run(t.Context(), Command{Script: "true"}); !errors.Is(err, ErrDisconnected) {
				t.Errorf("the old connection: %v", err)
			}
		})
	}
}

// turnstile is a gate that counts.
type turnstile struct {
	mu         sync.Mutex
	shut       chan struct{} // not nil: nobody is let in until it is closed
	in, passed int
	errs       int // logins that ended in an error
	rtt        bool
}

func (g *turnstile) enter(ctx context.Context) (func(time.Duration, error), error) {
	g.mu.Lock()
	shut := g.shut
	g.mu.Unlock()
	if shut != nil {
		select {
		case <-shut:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.in++
	g.passed++
	return func(rtt time.Duration, err error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.in--
		if err != nil {
			g.errs++
		} else {
			g.rtt = rtt > 0
		}
	}, nil
}

func (g *turnstile) look() (in, passed int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.in, g.passed
}

// TestEveryLoginPassesTheGate: the first, a further connection's, and those of the probes after a reboot, which are not
// inside while nobody answers them.
func TestEveryLoginPassesTheGate(t *testing.T) {
	t.Parallel()
	gate := &turnstile{}
	opened := make(chan time.Time, 1)
	_, _, cfg := rebooter(t, func(_ *guesttest.Shell, s *guesttest.Server) {
		s.Cut()
		s.Freeze()
		gate.mu.Lock()
		gate.shut = make(chan struct{})
		gate.mu.Unlock()
	}, func(sh *guesttest.Shell, s *guesttest.Server) {
		if in, passed := gate.look(); in != 0 || passed != 2 {
			t.Errorf("nobody answered: %d inside, %d let in", in, passed)
		}
		sh.Boot("boot-2")
		s.Cut()
		s.Thaw()
		time.Sleep(500 * time.Millisecond)
		opened <- time.Now()
		close(gate.shut)
	})
	cfg.Gate = gate.enter
	c := mustDial(t, cfg)
	n, err := c.Redial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = n.Close()
	if in, passed := gate.look(); in != 0 || passed != 2 || !gate.rtt {
		t.Errorf("after two logins %d inside, %d let in, a round trip %v", in, passed, gate.rtt)
	}
	within(t, 20*time.Second, func() {
		if n, err = c.Reboot(t.Context(), RebootSpec{OldBoot: "boot-1", Deadline: 15 * time.Second}); err != nil {
			t.Fatal(err)
		}
	})
	defer n.Close()
	select {
	case at := <-opened:
		if n.greeted > time.Since(at) {
			t.Errorf("a login of %v that began %v ago: the wait at the gate was counted", n.greeted, time.Since(at))
		}
	default:
		t.Error("a probe logged in while the gate was shut")
	}
	if in, passed := gate.look(); in != 0 || passed < 3 {
		t.Errorf("in the end %d inside, %d let in", in, passed)
	}
}

func TestDialThatGivesUpAtTheGate(t *testing.T) {
	t.Parallel()
	_, s, cfg := shellGuest(t)
	cfg.Gate = (&turnstile{shut: make(chan struct{})}).enter
	if _, err := Dial(short(t, 100*time.Millisecond), cfg); !errors.Is(err, ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if n := s.Connections(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

func TestGuestThatNeverComesBackIsToldWithItsOldBoot(t *testing.T) {
	t.Parallel()
	_, s, cfg := rebooter(t, func(_ *guesttest.Shell, s *guesttest.Server) { s.Refuse() }, func(*guesttest.Shell, *guesttest.Server) {})
	c := mustDial(t, cfg)
	within(t, 15*time.Second, func() {
		_, err := c.Reboot(t.Context(), RebootSpec{OldBoot: "boot-1", Deadline: 1500 * time.Millisecond})
		if !errors.Is(err, ErrNoReboot) || !strings.Contains(err.Error(), "boot-1") || !strings.Contains(err.Error(), "refused") ||
			!strings.Contains(hintOf(err), "console") {
			t.Errorf("got %v", err)
		}
	})
	_ = s
}

func TestPowerCycleIsTheSecondTry(t *testing.T) {
	t.Parallel()
	shell, s, cfg := rebooter(t, func(_ *guesttest.Shell, s *guesttest.Server) { s.Refuse() }, func(*guesttest.Shell, *guesttest.Server) {})
	c := mustDial(t, cfg)
	cycles := 0
	n, err := c.Reboot(t.Context(), RebootSpec{Deadline: 1500 * time.Millisecond, PowerCycle: func(context.Context) error {
		cycles++
		shell.Boot("boot-2")
		s.Listen()
		return nil
	}})
	if err != nil || cycles != 1 {
		t.Fatalf("got %v after %d cycles", err, cycles)
	}
	_ = n.Close()
}

func TestGuestThatRefusesToRebootSaysSo(t *testing.T) {
	shell, _, cfg := shellGuest(t)
	for _, tool := range []string{"systemctl", "shutdown", "reboot"} {
		shell.Tool(tool, "echo no way >&2; exit 1")
	}
	c := mustDial(t, cfg)
	_, err := c.Reboot(t.Context(), RebootSpec{OldBoot: "boot-1", Deadline: time.Second})
	if !errors.Is(err, ErrNoReboot) || !strings.Contains(err.Error(), "no way") {
		t.Errorf("got %v", err)
	}
}

func TestCancelledRebootReturnsAtOnce(t *testing.T) {
	t.Parallel()
	_, _, cfg := rebooter(t, func(_ *guesttest.Shell, s *guesttest.Server) { s.Cut(); s.Freeze() }, func(*guesttest.Shell, *guesttest.Server) {})
	c := mustDial(t, cfg)
	within(t, 10*time.Second, func() {
		if _, err := c.Reboot(short(t, time.Second), RebootSpec{OldBoot: "boot-1"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestRebootWaitsUntilTheGuestHasStarted(t *testing.T) {
	t.Parallel()
	shell, s, cfg := rebooter(t, func(_ *guesttest.Shell, s *guesttest.Server) { s.Refuse() },
		func(sh *guesttest.Shell, s *guesttest.Server) {
			sh.Boot("boot-2")
			sh.Tool("systemctl", `echo x >>"$HOME/asked"
if [ "$(wc -l <"$HOME/asked")" -lt 4 ]; then echo starting; else echo degraded; fi`)
			s.Listen()
		})
	shell.Env = append(shell.Env, "GPUGUEST_SYSTEMD="+shell.Dir)
	_ = s
	var said notices
	cfg.Notice = said.add
	c := mustDial(t, cfg)
	n, err := c.Reboot(t.Context(), RebootSpec{OldBoot: "boot-1", Deadline: 15 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if !strings.Contains(said.text(), "units did not start") {
		t.Errorf("notices: %q", said.text())
	}
}

func TestGuestThatRebootsOnceMoreWhileItStartsIsWaitedFor(t *testing.T) {
	t.Parallel()
	shell, s, cfg := rebooter(t, func(_ *guesttest.Shell, s *guesttest.Server) { s.Refuse() },
		func(sh *guesttest.Shell, s *guesttest.Server) {
			sh.Boot("boot-2")
			sh.Tool("systemctl", "echo starting")
			s.Listen()
			time.Sleep(time.Second)
			s.Refuse()
			sh.Boot("boot-3")
			sh.Tool("systemctl", "echo running")
			s.Listen()
		})

	shell.Env = append(shell.Env, "GPUGUEST_SYSTEMD="+shell.Dir)
	c := mustDial(t, cfg)
	n, err := c.Reboot(t.Context(), RebootSpec{OldBoot: "boot-1", Deadline: 15 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	res, err := n.Run(t.Context(), Command{Script: `cat "$GPUGUEST_BOOT_ID"`})
	if err != nil || string(res.Stdout) != "boot-3\n" {
		t.Errorf("got %+v, %v after %d connections", res, err, s.Connections())
	}
}

func TestLostRebootRequestIsMadeAgain(t *testing.T) {
	t.Parallel()
	shell, _, cfg := shellGuest(t)
	// The first request changes nothing, as if it never arrived.
	shell.Tool("systemctl", `case $1 in
is-system-running) echo running ;;
reboot) if [ -e "$HOME/asked" ]; then echo boot-2 >"$GPUGUEST_BOOT_ID"; else : >"$HOME/asked"; fi ;;
esac`)
	c := mustDial(t, cfg)
	within(t, 20*time.Second, func() {
		n, err := c.Reboot(t.Context(), RebootSpec{OldBoot: "boot-1", Deadline: 15 * time.Second, AskAgain: 500 * time.Millisecond})
		if err != nil {
			t.Error(err)
			return
		}
		n.Close()
	})
}

func TestProbesAreFittedToTheGuest(t *testing.T) {
	fast, slow := Conn{greeted: 40 * time.Millisecond}, Conn{greeted: 3 * time.Second}
	for _, tt := range []struct {
		name   string
		c      *Conn
		waited time.Duration
		want   pace
	}{
		{"a fast guest", &fast, 0, pace{probeEvery, probeShort}},
		{"a fast guest that takes a minute", &fast, time.Minute, pace{500 * time.Millisecond, 4 * time.Second}},
		{"a fast guest that does not come", &fast, 5 * time.Minute, pace{2 * time.Second, 10 * time.Second}},
		{"an emulated guest", &slow, 0, pace{3 * time.Second, 12 * time.Second}},
		{"an emulated guest that does not come", &slow, 5 * time.Minute, pace{3 * time.Second, 12 * time.Second}},
	} {
		if got := tt.c.pace(tt.waited); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}
