package guest

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/guest/guesttest"
)

func shellGuest(t testing.TB) (*guesttest.Shell, *guesttest.Server, Config) {
	t.Helper()
	shell := guesttest.NewShell(t)
	s, cfg := guestFor(t, guesttest.Options{Exec: shell.Exec, SFTPDir: filepath.Join(shell.Dir, "home")})
	return shell, s, cfg
}

func TestRunReturnsWhatTheScriptDid(t *testing.T) {
	_, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	big := strings.Repeat("x", 300<<10)
	for _, tt := range []struct {
		name   string
		cmd    Command
		exit   int
		stdout string
		stderr string
	}{
		{"exit code and both streams", Command{Script: "echo out; echo err >&2; exit 7"}, 7, "out\n", "err\n"},
		{"language", Command{Script: `printf %s "$LC_ALL"`}, 0, "C", ""},
		{"quoting", Command{Script: `printf '%s' "it's \"quoted\" \$HOME \\ and"' more'`}, 0, `it's "quoted" $HOME \ and more`, ""},
		{"no input", Command{Script: "cat"}, 0, "", ""},
		{"input", Command{Script: "cat", Stdin: strings.NewReader("hello\n")}, 0, "hello\n", ""},
		{"input that nobody reads", Command{Script: "exit 3", Stdin: strings.NewReader(big)}, 3, "", ""},
		{"a script longer than an argument", Command{Script: "x='" + big + "'\necho ${#x}; cat; exit 5"}, 5, "307200\n", ""},
		{"a long script with input", Command{Script: "x='" + big + "'\necho ${#x}; cat", Stdin: strings.NewReader("in")}, 0, "307200\nin", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, err := c.Run(t.Context(), tt.cmd)
			if err != nil {
				t.Fatal(err)
			}
			if res.Exit != tt.exit || string(res.Stdout) != tt.stdout || string(res.Stderr) != tt.stderr {
				t.Errorf("got exit %d, stdout %q, stderr %q", res.Exit, res.Stdout, res.Stderr)
			}
		})
	}
	if got := c.Execs(); got != 8 {
		t.Errorf("8 scripts took %d execs", got)
	}
}

func TestRunFailsOnTooMuchOutputAndDoesNotHang(t *testing.T) {
	_, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	within(t, 20*time.Second, func() {
		_, err := c.Run(t.Context(), Command{Script: "yes"})
		if !errors.Is(err, ErrTooMuch) {
			t.Errorf("got %v", err)
		}
		if _, err := c.Run(t.Context(), Command{Script: "true"}); err != nil {
			t.Errorf("the connection does not work any more: %v", err)
		}
	})
}

func TestRunEndsAtItsTimeLimit(t *testing.T) {
	t.Parallel()
	_, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	within(t, 10*time.Second, func() {
		_, err := c.Run(t.Context(), Command{Script: "sleep 60", Timeout: 50 * time.Millisecond})
		if !errors.Is(err, ErrTimeout) {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := c.Run(ctx, Command{Script: "sleep 60"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if _, err := c.Run(t.Context(), Command{Script: "true"}); err != nil {
			t.Errorf("the connection does not work any more: %v", err)
		}
	})
}

// A guest that does not confirm a channel's end, as sshd does not while the command runs, must hold up neither
// the caller nor the others on the connection.
func TestCancelledRunReturnsAtOnceAndLeavesTheConnection(t *testing.T) {
	t.Parallel()
	_, s, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	s.Freeze()
	within(t, 2*time.Second, func() {
		if _, err := c.Run(short(t, 50*time.Millisecond), Command{Script: "true"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if _, _, err := c.Hold(short(t, 50*time.Millisecond), HoldSpec{Script: "true"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
	s.Thaw()
	res, err := c.Run(t.Context(), Command{Script: "echo alive"})
	if err != nil || string(res.Stdout) != "alive\n" {
		t.Errorf("afterwards: %+v, %v", res, err)
	}
}

func TestKeepaliveClosesAFrozenGuest(t *testing.T) {
	t.Parallel()
	_, s, cfg := shellGuest(t)
	cfg.Keepalive = 100 * time.Millisecond
	c := mustDial(t, cfg)
	started := make(chan struct{})
	s.Change(func(o *guesttest.Options) {
		o.Exec = func(ctx context.Context, _ string, _ io.Reader, _, _ io.Writer) int {
			<-ctx.Done()
			return 0
		}
	})
	c2 := mustDial(t, cfg)
	close(started)
	within(t, 10*time.Second, func() {
		<-started
		time.AfterFunc(200*time.Millisecond, s.Freeze)
		_, err := c2.Run(t.Context(), Command{Script: "sleep 60"})
		if !errors.Is(err, ErrDisconnected) || hintOf(err) == "" {
			t.Errorf("got %v", err)
		}
		<-c.Dead()
	})
	s.Thaw()
}

func TestLostConnectionIsDisconnected(t *testing.T) {
	_, s, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	within(t, 10*time.Second, func() {
		time.AfterFunc(100*time.Millisecond, s.Cut)
		if _, err := c.Run(t.Context(), Command{Script: "sleep 60"}); !errors.Is(err, ErrDisconnected) {
			t.Errorf("got %v", err)
		}
		if _, err := c.Run(t.Context(), Command{Script: "true"}); !errors.Is(err, ErrDisconnected) {
			t.Errorf("a later call: got %v", err)
		}
	})
}

// sudoGuest is a guest whose login user is not root and whose sudo is a script.
func sudoGuest(t *testing.T, sudo string) (*guesttest.Shell, *guesttest.Server, Config) {
	t.Helper()
	shell, s, cfg := shellGuest(t)
	shell.Tool("id", `echo 1000`)
	if sudo != "" {
		shell.Tool("sudo", sudo)
	}
	cfg.User = "debian"
	return shell, s, cfg
}

// askingSudo behaves as sudo does: -n refuses when a password is needed, -S reads lines until one is right.
const askingSudo = `echo "$*" >>"$HOME/sudo.log"
n=; s=
while :; do case $1 in -n) n=1 ;; -S) s=1 ;; -k) ;; -p) shift ;; *) break ;; esac; shift; done
if [ -n "$n" ]; then echo "sudo: a password is required" >&2; exit 1; fi
[ -n "$s" ] || exit 1
for try in 1 2 3; do
	IFS= read -r p || { echo "sudo: no password was provided" >&2; exit 1; }
	[ "$p" = "se cret\\" ] && exec "$@"
	echo "Sorry, try again." >&2
done
echo "sudo: 3 incorrect password attempts" >&2
exit 1
`

const freeSudo = `while :; do case $1 in -n | -k) ;; *) break ;; esac; shift; done
exec "$@"
`

func TestSudoWithoutPasswordTakesNoFurtherExec(t *testing.T) {
	_, _, cfg := sudoGuest(t, freeSudo)
	c := mustDial(t, cfg)
	res, err := c.Run(t.Context(), Command{Script: "echo as root; exit 4"})
	if err != nil || res.Exit != 4 || string(res.Stdout) != "as root\n" {
		t.Fatalf("got %+v, %v", res, err)
	}
	if c.Execs() != 1 {
		t.Errorf("took %d execs", c.Execs())
	}
}

func TestSudoPasswordGoesToStdinAndNowhereElse(t *testing.T) {
	shell, s, cfg := sudoGuest(t, askingSudo)
	asked := 0
	cfg.SudoPassword = func(context.Context) ([]byte, error) { asked++; return []byte(`se cret\`), nil }
	c := mustDial(t, cfg)
	for range 2 {
		res, err := c.Run(t.Context(), Command{Script: "cat", Stdin: strings.NewReader("input\n")})
		if err != nil || string(res.Stdout) != "input\n" || len(res.Stderr) > 0 {
			t.Fatalf("got %+v, %v", res, err)
		}
	}
	res, err := c.Run(t.Context(), Command{Script: "cat"})
	if err != nil || len(res.Stdout) != 0 {
		t.Fatalf("the password reached the script: %+v, %v", res, err)
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	log, err := os.ReadFile(filepath.Join(shell.Dir, "home", "sudo.log"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.Join(s.Commands(), "\n")+string(log), "cret") {
		t.Error("the password is on a command line")
	}
}

func TestSudoRefusalsAreToldAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name, sudo, password, want string
	}{
		{"wrong password", askingSudo, "wrong", "sudo refused debian's password"},
		{"no password to give", askingSudo, "", "a password is required"},
		{"no sudo there", "", "x", "sudo is not installed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			shell, _, cfg := sudoGuest(t, tt.sudo)
			if tt.sudo == "" {
				// The machine that runs the tests may have one.
				shell.Env = append(shell.Env, "PATH="+filepath.Join(shell.Dir, "bin"))
				for _, tool := range []string{"sh"} {
					shell.Tool(tool, `exec /bin/sh "$@"`)
				}
			}
			if tt.password != "" {
				cfg.SudoPassword = func(context.Context) ([]byte, error) { return []byte(tt.password), nil }
			}
			c := mustDial(t, cfg)
			within(t, 10*time.Second, func() {
				_, err := c.Run(t.Context(), Command{Script: "echo never"})
				if !errors.Is(err, ErrSudo) || !strings.Contains(err.Error(), tt.want) || hintOf(err) == "" {
					t.Errorf("got %v", err)
				}
				if strings.Contains(err.Error(), "wrong ") {
					t.Errorf("the password is in the error: %v", err)
				}
			})
		})
	}
}
