package guest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/guest/guesttest"
)

func TestJobRunsOnceInOneExecAndTellsItsEnd(t *testing.T) {
	_, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	var log bytes.Buffer
	res, err := c.RunJob(t.Context(), JobSpec{Name: "driver-1", Script: "cat; echo \"$DEBIAN_FRONTEND $LC_ALL $HOME $(pwd) $(umask)\"; echo err >&2; exit 5\n"}, &log)
	if err != nil {
		t.Fatal(err)
	}
	const want = "noninteractive C /root / 0022\nerr\n"
	if res.State != Exited || res.Exit != 5 || res.Attempt != 1 || log.String() != want || string(res.Tail) != want {
		t.Errorf("got %+v, log %q", res, log.String())
	}
	if c.Execs() != 1 {
		t.Errorf("took %d execs", c.Execs())
	}
	res, err = c.RunJob(t.Context(), JobSpec{Name: "driver-1", Script: "echo again"}, &log)
	if err != nil || res.Attempt != 2 || res.Exit != 0 || string(res.Tail) != "again\n" {
		t.Errorf("second attempt: %+v, %v", res, err)
	}
	jobs, err := c.Jobs(t.Context())
	if err != nil || len(jobs) != 1 || jobs[0] != (JobInfo{Name: "driver-1", Attempt: 2, State: Exited}) {
		t.Errorf("got %+v, %v", jobs, err)
	}
}

func TestJobFilesAreForRootOnly(t *testing.T) {
	shell, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	var log bytes.Buffer
	if _, err := c.RunJob(t.Context(), JobSpec{Name: "a", Script: "true"}, &log); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(filepath.Join(shell.Dir, "state", "jobs"), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestJobOutlivesItsConnectionAndIsNotStartedTwice(t *testing.T) {
	t.Parallel()
	shell, s, cfg := shellGuest(t)
	count := filepath.Join(shell.Dir, "count")
	script := fmt.Sprintf("echo x >>%s\necho begin\nsleep 1\necho end\nexit 3\n", count)
	c := mustDial(t, cfg)
	var log bytes.Buffer
	cutOnBegin := writerFunc(func(p []byte) (int, error) {
		log.Write(p)
		s.Cut()
		return len(p), nil
	})
	_, err := c.RunJob(t.Context(), JobSpec{Name: "a", Script: script}, cutOnBegin)
	var cut *JobError
	if !errors.As(err, &cut) || !errors.Is(err, ErrDisconnected) {
		t.Fatalf("got %v", err)
	}
	c2 := mustDial(t, cfg)
	jobs, err := c2.Jobs(t.Context())
	if err != nil || len(jobs) != 1 || jobs[0].State != Running {
		t.Fatalf("got %+v, %v", jobs, err)
	}
	// Even after its end, the position says that the work was done.
	time.Sleep(1500 * time.Millisecond)
	res, err := c2.RunJob(t.Context(), JobSpec{Name: "a", Script: script, At: cut.At}, &log)
	if err != nil || res.State != Exited || res.Exit != 3 || log.String() != "begin\nend\n" {
		t.Errorf("got %+v, %v, log %q", res, err, log.String())
	}
	if data, _ := os.ReadFile(count); string(data) != "x\n" {
		t.Errorf("the work ran %d times", len(data)/2)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestRunningJobIsJoinedByAnotherClient(t *testing.T) {
	t.Parallel()
	_, _, cfg := shellGuest(t)
	a, b := mustDial(t, cfg), mustDial(t, cfg)
	first := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		_, err := a.RunJob(t.Context(), JobSpec{Name: "a", Script: "echo one; sleep 1; echo two"}, writerFunc(func(p []byte) (int, error) {
			select {
			case <-started:
			default:
				close(started)
			}
			return len(p), nil
		}))
		first <- err
	}()
	<-started
	var log bytes.Buffer
	res, err := b.RunJob(t.Context(), JobSpec{Name: "a", Script: "echo another"}, &log)
	if err != nil || res.Attempt != 1 || log.String() != "one\ntwo\n" {
		t.Errorf("got %+v, %v, log %q", res, err, log.String())
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// The connection breaks after every so many bytes, again and again, until the job's end has been told: the
// log must come out whole, once.
func TestJobLogIsWholeHoweverOftenItIsCut(t *testing.T) {
	_, s, cfg := shellGuest(t)
	var want bytes.Buffer
	for i := range 400 {
		fmt.Fprintf(&want, "line %d of the log\n", i)
	}
	script := "i=0; while [ $i -lt 400 ]; do echo \"line $i of the log\"; i=$((i+1)); [ $((i%100)) != 0 ] || sleep 0.05; done; exit 9"
	// The bytes of the handshake are part of the count; the steps reach into the exec, the log and the end.
	for _, first := range []int64{2200, 2300, 2400, 2500, 2700, 3000, 4000, 6000, 9000, 10400} {
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			t.Parallel()
			spec := JobSpec{Name: fmt.Sprintf("cut-%d", first), Script: script}
			var log bytes.Buffer
			limit := first
			for try := range 60 {
				s.CutAfter(limit)
				limit += 350
				c, err := Dial(t.Context(), cfg)
				if err != nil {
					if !errors.Is(err, ErrUnreachable) {
						t.Fatal(err)
					}
					continue
				}
				res, err := c.RunJob(t.Context(), spec, &log)
				_ = c.Close()
				if err == nil {
					if res.State != Exited || res.Exit != 9 {
						t.Errorf("got %+v", res)
					}
					if !bytes.Equal(log.Bytes(), want.Bytes()) {
						t.Errorf("the log differs after %d cuts: %d bytes, want %d", try, log.Len(), want.Len())
					}
					if res.Attempt != 1 {
						t.Errorf("attempt %d", res.Attempt)
					}
					return
				}
				var cut *JobError
				if !errors.As(err, &cut) || !errors.Is(err, ErrDisconnected) {
					t.Fatalf("got %v", err)
				}
				spec.At = cut.At
			}
			t.Error("never reached the end")
		})
	}
}

func TestJobEndsThatLeaveNoExitCode(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, shell *guesttest.Shell, dir string)
		want  JobState
	}{
		{"exit file empty after a power cut", func(t *testing.T, _ *guesttest.Shell, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "exit"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, Lost},
		{"keeper killed", func(t *testing.T, _ *guesttest.Shell, dir string) {
			if err := os.Remove(filepath.Join(dir, "exit")); err != nil {
				t.Fatal(err)
			}
		}, Lost},
		{"guest started anew", func(t *testing.T, shell *guesttest.Shell, dir string) {
			if err := os.Remove(filepath.Join(dir, "exit")); err != nil {
				t.Fatal(err)
			}
			shell.Boot("boot-2")
		}, Rebooted},
		{"started anew after its end", func(_ *testing.T, shell *guesttest.Shell, _ string) { shell.Boot("boot-2") }, Exited},
		{"directory gone", func(t *testing.T, _ *guesttest.Shell, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}, Absent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			shell, _, cfg := shellGuest(t)
			c := mustDial(t, cfg)
			var log bytes.Buffer
			if _, err := c.RunJob(t.Context(), JobSpec{Name: "a", Script: "echo hi"}, &log); err != nil {
				t.Fatal(err)
			}
			tt.spoil(t, shell, filepath.Join(shell.Dir, "state", "jobs", "a", "1"))
			res, err := c.FollowJob(t.Context(), "a", JobPosition{Attempt: 1}, &log)
			if err != nil || res.State != tt.want {
				t.Errorf("got %+v, %v, want %s", res, err, tt.want)
			}
		})
	}
}

func TestDaemonOfAJobDoesNotKeepItRunning(t *testing.T) {
	t.Parallel()
	_, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	var log bytes.Buffer
	within(t, 5*time.Second, func() {
		res, err := c.RunJob(t.Context(), JobSpec{Name: "a", Script: "setsid sleep 8 >/dev/null 2>&1 & echo done"}, &log)
		if err != nil || res.State != Exited {
			t.Errorf("got %+v, %v", res, err)
		}
	})
}

func TestObserversDoNotKeepAJobFromStarting(t *testing.T) {
	t.Parallel()
	shell, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	// An observer's lock is there before the keeper's, for longer than any real one.
	shell.Tool("setsid", `d=$4; : >"$d/lock"; flock -s "$d/lock" sleep 0.7 & exec /usr/bin/setsid "$@"`)
	var log bytes.Buffer
	res, err := c.RunJob(t.Context(), JobSpec{Name: "a", Script: "echo started"}, &log)
	if err != nil || res.State != Exited || log.String() != "started\n" {
		t.Errorf("got %+v, %v, log %q", res, err, log.String())
	}
}

func TestJobThatCannotBeStartedSaysWhyAndLeavesNothing(t *testing.T) {
	shell, _, cfg := shellGuest(t)
	state := filepath.Join(shell.Dir, "state")
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(state, []byte("in the way"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := mustDial(t, cfg)
	var log bytes.Buffer
	_, err := c.RunJob(t.Context(), JobSpec{Name: "a", Script: "true"}, &log)
	if !errors.Is(err, ErrJobStart) || !strings.Contains(err.Error(), "mkdir") || hintOf(err) == "" {
		t.Errorf("got %v", err)
	}
	for _, name := range []string{"", "../x", "a b", "-x", strings.Repeat("x", 81)} {
		if _, err := c.RunJob(t.Context(), JobSpec{Name: name}, &log); !errors.Is(err, ErrJobStart) {
			t.Errorf("name %q: got %v", name, err)
		}
	}
}

func TestTruncatedScriptIsNotStarted(t *testing.T) {
	shell, _, cfg := shellGuest(t)
	// What a connection lost during the upload leaves: the input ends early.
	shell.Tool("cat", `if [ $# = 0 ] && [ -n "$(readlink /proc/$$/fd/1 | grep '/cmd$')" ]; then head -c 5; else exec /bin/cat "$@"; fi`)
	c := mustDial(t, cfg)
	var log bytes.Buffer
	_, err := c.RunJob(t.Context(), JobSpec{Name: "a", Script: "rm -rf /nothing/at/all"}, &log)
	if !errors.Is(err, ErrJobStart) || !strings.Contains(err.Error(), "incomplete") {
		t.Fatalf("got %v", err)
	}
	if m, _ := filepath.Glob(filepath.Join(shell.Dir, "state", "jobs", "a", "*")); len(m) != 0 {
		t.Errorf("left %v", m)
	}
}

func TestDetachedJobRunsOn(t *testing.T) {
	t.Parallel()
	_, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	var log bytes.Buffer
	_, err := c.RunJob(short(t, 500*time.Millisecond), JobSpec{Name: "a", Script: "echo one; sleep 1; echo two"}, &log)
	var cut *JobError
	if !errors.As(err, &cut) || errors.Is(err, ErrDisconnected) || cut.At.Attempt != 1 {
		t.Fatalf("got %v, %+v", err, cut)
	}
	res, err := c.FollowJob(t.Context(), "a", cut.At, &log)
	if err != nil || res.State != Exited || log.String() != "one\ntwo\n" {
		t.Errorf("got %+v, %v, log %q", res, err, log.String())
	}
}

func TestJobIsAUnitWhereSystemdRuns(t *testing.T) {
	shell, _, cfg := shellGuest(t)
	shell.Env = append(shell.Env, "GPUGUEST_SYSTEMD="+shell.Dir)
	shell.Tool("systemd-run", `echo "$*" >>"$HOME/units"
while [ "$1" != /bin/sh ]; do shift; done
setsid "$@" &`)
	c := mustDial(t, cfg)
	var log bytes.Buffer
	res, err := c.RunJob(t.Context(), JobSpec{Name: "driver-1", Script: "echo in a unit"}, &log)
	if err != nil || res.State != Exited || log.String() != "in a unit\n" {
		t.Fatalf("got %+v, %v, %q", res, err, log.String())
	}
	dir := filepath.Join(shell.Dir, "state", "jobs", "driver-1", "1")
	want := fmt.Sprintf("--quiet --collect --unit=gpuguest-driver-1-1 -p KillMode=process /bin/sh %s/run %s\n", dir, dir)
	if data, _ := os.ReadFile(filepath.Join(shell.Dir, "home", "units")); string(data) != want {
		t.Errorf("got %q, want %q", data, want)
	}

	// A systemd that cannot be spoken to, as while it starts anew, is no reason not to work.
	shell.Tool("systemd-run", "echo 'no bus' >&2; exit 1")
	res, err = c.RunJob(t.Context(), JobSpec{Name: "driver-1", Script: "echo without"}, &log)
	if err != nil || res.State != Exited || res.Attempt != 2 {
		t.Errorf("got %+v, %v", res, err)
	}
}

func TestQuietJobIsToldWithItsProcesses(t *testing.T) {
	t.Parallel()
	_, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	var log bytes.Buffer
	var told []QuietJob
	res, err := c.RunJob(t.Context(), JobSpec{Name: "a", Script: "echo begin; sleep 2.5; echo end", Quiet: time.Second,
		OnQuiet: func(q QuietJob) { told = append(told, q) }}, &log)
	if err != nil || res.State != Exited || log.String() != "begin\nend\n" {
		t.Fatalf("got %+v, %v, %q", res, err, log.String())
	}
	if len(told) == 0 || told[0].Since < time.Second || !strings.Contains(told[0].Processes, "sleep 2.5") || strings.Contains(told[0].Processes, "/run ") {
		t.Errorf("told %+v", told)
	}
}
