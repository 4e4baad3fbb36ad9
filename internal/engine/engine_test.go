package engine_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/cuda"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/guest/guesttest"
	"gpuguest/internal/plan"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// lab is a pretend guest: a real SSH client, server and sh, with folders in place of the guest's. The
// package manager is a file; booting is a new boot_id.
type lab struct {
	t     *testing.T
	srv   *guesttest.Server
	shell *guesttest.Shell
	root  string // stands for / where facts look
	cfg   guest.Config
}

type filePackages struct {
	distros.Manager
	file string
}

func (filePackages) Snapshot() string { return "" }
func (f filePackages) List() string   { return "sort " + sh.Quote(f.file) }
func (f filePackages) Manual() string { return ":" }

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, root: t.TempDir()}
	l.shell = guesttest.NewShell(t)
	l.shell.Env = append(l.shell.Env, "GPUGUEST_ROOT="+l.root)
	for name, text := range map[string]string{
		"etc/os-release":            "ID=debian\nVERSION_ID=\"12\"\n",
		"proc/sys/kernel/osrelease": "6.1.0-1-amd64\n",
		"proc/sys/kernel/arch":      "x86_64\n",
		"proc/sys/kernel/hostname":  "guest\n",
		"packages":                  "bash 5\n",
		"proc/cmdline":              "quiet\n",
	} {
		l.write(name, text)
	}
	l.link(filepath.Join(l.shell.Dir, "boot_id"), "proc/sys/kernel/random/boot_id")
	l.link(filepath.Join(l.shell.Dir, "state"), "var/lib/gpuguest")
	// A boot: a new boot_id. The server stays, as a forwarded port does.
	l.shell.Tool("systemctl", `case $1 in
reboot) n=$(sed 's/boot-//' `+sh.Quote(l.shell.Dir+"/boot_id")+`); echo "boot-$((n + 1))" >`+sh.Quote(l.shell.Dir+"/boot_id")+` ;;
is-system-running) echo running ;;
*) exit 1 ;;
esac
`)
	signer := guesttest.HostKey(t)
	keyDir := t.TempDir()
	key := writeKey(t, keyDir)
	l.srv = guesttest.New(t, guesttest.Options{Exec: l.shell.Exec, Keys: []ssh.PublicKey{key}, HostKeys: []ssh.Signer{signer}})
	l.cfg = guest.Config{
		Host: l.srv.Host(), Port: l.srv.Port(), User: "root", Identities: []string{filepath.Join(keyDir, "id")},
		SSHConfig: "none", KnownHosts: filepath.Join(keyDir, "known_hosts"), Home: keyDir,
	}
	return l
}

func (l *lab) write(name, text string) {
	l.t.Helper()
	p := filepath.Join(l.root, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) link(to, name string) {
	l.t.Helper()
	p := filepath.Join(l.root, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Symlink(to, p); err != nil {
		l.t.Fatal(err)
	}
}

// touch is an item that makes one file, slowly enough to be cut off in its middle, and counts its work.
func (l *lab) touch(id string, atBoot bool) plan.Item {
	file := sh.Quote(filepath.Join(l.root, "done-"+id))
	count := sh.Quote(filepath.Join(l.root, "count-"+id))
	return plan.Item{
		ID: steps.ID(id), Title: "make " + id, AtBoot: atBoot,
		Check:   `[ -e ` + file + ` ] || { echo "` + id + ` is missing"; exit 1; }`,
		Actions: []action.Action{action.Run{Title: "begin " + id, Script: "echo half\nsleep 0.15\necho x >>" + count + "\ntouch " + file + "\necho whole", Packages: true}},
	}
}

// booted is met once the guest runs its second boot.
func (l *lab) booted() plan.Item {
	return plan.Item{ID: "booted", Title: "prove the boot", Fresh: true,
		Check: `[ "$(cat ` + sh.Quote(l.shell.Dir+"/boot_id") + `)" != boot-1 ] || { echo "still the first boot"; exit 1; }`}
}

func (l *lab) config(items ...plan.Item) engine.Config {
	var now, fresh plan.Segment
	for _, it := range items {
		if it.Fresh {
			fresh.Items = append(fresh.Items, it)
		} else {
			now.Items = append(now.Items, it)
		}
	}
	return engine.Config{
		Host: "guest",
		Dial: func(ctx context.Context) (*guest.Conn, error) { return guest.Dial(ctx, l.cfg) },
		Plan: func(facts.Facts) (plan.Plan, error) {
			return plan.Plan{
				Distro:   distros.Distro{Name: "test", Packages: filePackages{file: filepath.Join(l.root, "packages")}},
				Segments: []plan.Segment{now, fresh},
			}, nil
		},
		Owner: "test", LockWait: 10 * time.Second,
		Reboot: choice.RebootIfNeeded, MaxReboots: 3, RebootDeadline: 20 * time.Second, Patience: 20 * time.Second,
	}
}

func (l *lab) run(cfg engine.Config) (engine.Report, error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	return engine.Run(ctx, cfg)
}

// work counts how often an item's actions ran to their end.
func (l *lab) work(id string) int {
	b, err := os.ReadFile(filepath.Join(l.root, "count-"+id))
	if err != nil {
		return 0
	}
	return strings.Count(string(b), "\n")
}

func (l *lab) journal() []engine.Record {
	b, err := os.ReadFile(filepath.Join(l.shell.Dir, "state", "journal"))
	if err != nil {
		return nil
	}
	records, _ := engine.ParseJournal(string(b))
	return records
}

func states(r engine.Report) string {
	var s []string
	for _, st := range r.Steps {
		s = append(s, string(st.ID)+"="+st.State)
	}
	return strings.Join(s, " ")
}

func TestInstallRebootsOnceAndTheSecondRunChangesNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := l.config(l.touch("one", false), l.touch("two", true), l.touch("three", true), l.booted())
	r, err := l.run(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := states(r); got != "one=changed two=changed three=changed booted=met" || r.Reboots != 1 {
		t.Errorf("first run: %s, %d reboots", got, r.Reboots)
	}
	before := len(l.journal())
	r, err = l.run(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := states(r); got != "one=met two=met three=met booted=met" || r.Reboots != 0 {
		t.Errorf("second run: %s, %d reboots", got, r.Reboots)
	}
	if r.Execs > 3 || r.Connections != 1 {
		t.Errorf("second run took %d execs over %d connections, at most 3 over 1 are allowed", r.Execs, r.Connections)
	}
	if after := len(l.journal()); after != before {
		t.Errorf("second run wrote %d records", after-before)
	}
}

func TestNoRebootWhenNothingNeedsOne(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	fresh := l.touch("two", false)
	fresh.Fresh = true
	r, err := l.run(l.config(l.touch("one", false), fresh))
	if err != nil {
		t.Fatal(err)
	}
	if r.Reboots != 0 || states(r) != "one=changed two=changed" {
		t.Errorf("%s, %d reboots", states(r), r.Reboots)
	}
}

// TestClientKilledAnywhereCostsNothing ends the client's run at each of its events in turn and runs it
// again: the end is that of an undisturbed run, and no step's work was done twice.
func TestClientKilledAnywhereCostsNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	total := 0
	cfg := l.config(l.touch("one", false), l.touch("two", true), l.booted())
	cfg.Tell = func(engine.Event) { total++ }
	if _, err := l.run(cfg); err != nil {
		t.Fatal(err)
	}
	for n := range total {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			cfg := l.config(l.touch("one", false), l.touch("two", true), l.booted())
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			seen := 0
			killed := cfg
			killed.Tell = func(engine.Event) {
				if seen++; seen > n {
					cancel()
				}
			}
			_, err := engine.Run(ctx, killed)
			if err == nil && n < total/2 {
				t.Fatal("the run was not cut off, so this test tests nothing")
			}
			r, err := l.run(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if r.Result != "done" || l.work("one") != 1 || l.work("two") != 1 {
				t.Errorf("%s; work done %d and %d times", states(r), l.work("one"), l.work("two"))
			}
		})
	}
}

// TestLostConnectionIsDialledAgain cuts the connection after so many bytes, from the first login on. How many a run
// takes depends on how often a job is asked after, so that the later cuts may come too late.
func TestLostConnectionIsDialledAgain(t *testing.T) {
	t.Parallel()
	for _, n := range []int64{4000, 4250, 4500, 4750, 5000, 6000, 9000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			cfg := l.config(l.touch("one", false), l.touch("two", true), l.booted())
			var mu sync.Mutex
			lost := 0
			cfg.Tell = func(e engine.Event) {
				mu.Lock()
				defer mu.Unlock()
				t.Logf("%+v", e)
				if e.Kind == engine.Reconnecting {
					lost++
				}
			}
			l.srv.CutAfter(n)
			r, err := l.run(cfg)
			if err != nil {
				t.Fatal(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if lost == 0 && n <= 5000 {
				t.Error("no connection was lost, so this test tests nothing")
			}
			if l.work("one") != 1 || l.work("two") != 1 || r.Result != "done" {
				t.Errorf("%s; work done %d and %d times, %d connections lost", states(r), l.work("one"), l.work("two"), lost)
			}
		})
	}
}

func TestWarningsOfChecksAreInTheReportAndNotInTheStep(t *testing.T) {
	l := newLab(t)
	it := l.touch("one", false)
	it.Check = "echo 'gpuguest: warning: infoROM is corrupted'\necho fine"
	report, err := engine.Run(t.Context(), l.config(it))
	if err != nil || !slices.Equal(report.Warnings, []string{"infoROM is corrupted"}) || len(report.Steps) != 1 || report.Steps[0].Detail != "fine" {
		t.Errorf("%q, %+v, %v", report.Warnings, report.Steps, err)
	}
}

func TestWarningsOfStepsAreInTheReport(t *testing.T) {
	l := newLab(t)
	it := l.touch("one", false)
	it.Actions = append(it.Actions, action.Run{Title: "warn", Script: "echo 'gpuguest: warning: a source is gone' >&2"})
	report, err := engine.Run(t.Context(), l.config(it))
	if err != nil || !slices.Equal(report.Warnings, []string{"a source is gone"}) {
		t.Errorf("%q, %v", report.Warnings, err)
	}
}

func TestJobsThatAPowerCutLeftAreNotFollowedForEver(t *testing.T) {
	l := newLab(t)
	// One whose folder was just made, and one of this boot that vanished with its keeper.
	for name, text := range map[string]string{
		"jobs/first-0123456789ab/1/cmd":   "true\n",
		"jobs/second-0123456789ab/1/boot": "boot-1\n",
		"jobs/second-0123456789ab/1/pid":  "1\n",
		"jobs/second-0123456789ab/1/log":  "half\n",
	} {
		l.write(filepath.Join("var/lib/gpuguest", name), text)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	report, err := engine.Run(ctx, l.config(l.touch("first", false)))
	if err != nil || report.Result != "done" {
		t.Fatalf("%+v, %v", report, err)
	}
	if _, err := os.Stat(filepath.Join(l.root, "done-first")); err != nil {
		t.Error(err)
	}
}

func TestFailedStepSaysWhatItPrintedAndWhatToDo(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	bad := l.touch("bad", false)
	bad.Actions = []action.Action{action.Run{Title: "fail", Script: "echo E: no such package\nexit 100"}}
	bad.Hint = "look elsewhere"
	cfg := l.config(bad, l.touch("after", false))
	cfg.Hint = func(text string) string {
		if strings.Contains(text, "no such package") {
			return "cause: the package is gone"
		}
		return ""
	}
	r, err := l.run(cfg)
	var step *engine.StepError
	if !errors.As(err, &step) {
		t.Fatalf("error %v", err)
	}
	if step.Step != "bad" || step.What != "exit 100" || step.Verify || !strings.Contains(step.Tail, "E: no such package") || step.Hint != "cause: the package is gone" {
		t.Errorf("%+v", step)
	}
	if states(r) != "bad=failed" || l.work("after") != 0 {
		t.Errorf("%s; the step after it ran %d times", states(r), l.work("after"))
	}
}

func TestWaitInVainNamesWhatWasWaitedFor(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	it := l.touch("wait", false)
	it.Actions = []action.Action{action.Run{Title: "wait", Script: "echo waiting\necho 'still held after 3 s: process 381 (apt-get)' >&2\nexit 75"}}
	_, err := l.run(l.config(it))
	var step *engine.StepError
	if !errors.As(err, &step) || step.What != "still held after 3 s: process 381 (apt-get)" {
		t.Errorf("error %v", err)
	}
}

func TestWhatCannotBeHadIsToldBeforeAnythingChanges(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	no := plan.Item{ID: "available", Title: "look", Refuses: true, Check: "echo there is no such version; exit 1"}
	_, err := l.run(l.config(no, l.touch("one", false)))
	var step *engine.StepError
	if !errors.As(err, &step) || !step.Unsupported || step.Verify || step.What != "there is no such version" || l.work("one") != 0 {
		t.Errorf("error %v, work done %d times", err, l.work("one"))
	}
}

func TestFailedProofIsAVerificationError(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	proof := plan.Item{ID: "proof", Title: "prove", Fresh: true, Check: "echo NVRM: BAR1 is 0M; exit 1"}
	_, err := l.run(l.config(l.touch("one", false), proof))
	var step *engine.StepError
	if !errors.As(err, &step) || !step.Verify || !strings.Contains(step.What, "BAR1 is 0M") {
		t.Fatalf("error %v", err)
	}
}

// All proofs are asked at once, so what those behind the first that failed found is told too, with its evidence.
func TestEveryProofThatFailedIsInTheReport(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	proof := func(id, check string) plan.Item {
		return plan.Item{ID: steps.ID(id), Title: "prove", Fresh: true, Check: check}
	}
	r, err := l.run(l.config(l.touch("one", false), proof("persistence", "echo persistence is off; exit 1"), proof("speed", "echo 12 GB/s"), proof("cuda", "echo cuInit returned 802; exit 1")))
	var step *engine.StepError
	if !errors.As(err, &step) || step.Step != "persistence" {
		t.Fatalf("error %v", err)
	}
	var got []string
	for _, s := range r.Steps[1:] {
		got = append(got, string(s.ID)+" "+s.State+" "+s.Detail)
	}
	if want := []string{"persistence failed persistence is off", "speed met 12 GB/s", "cuda failed cuInit returned 802"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// TestWhatAProofFoundIsInTheReport: data goes into the report as JSON and not into what a person is shown, and
// a proof that finds a failure in its data has failed.
func TestWhatAProofFoundIsInTheReport(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	proof := func(id, why string) plan.Item {
		return plan.Item{ID: steps.ID(id), Title: "prove", Fresh: true, Check: "echo shown\necho '" + steps.DataMark + id + "'",
			Read: func(data string) (json.RawMessage, string) { return json.RawMessage(`{"is":"` + data + `"}`), why }}
	}
	r, err := l.run(l.config(l.touch("one", false), proof("good", ""), proof("bad", "but no")))
	var step *engine.StepError
	if !errors.As(err, &step) || step.Step != "bad" || step.What != "shown\nbut no" {
		t.Fatalf("error %v", err)
	}
	raw, err := json.Marshal(r.Steps[1:])
	if want := `[{"id":"good","title":"prove","state":"met","detail":"shown","data":{"is":"good"}},{"id":"bad","title":"prove","state":"failed","detail":"shown\nbut no","data":{"is":"bad"}}]`; err != nil || string(raw) != want {
		t.Errorf("%v\ngot  %s\nwant %s", err, raw, want)
	}
}

// TestCUDAProofOverSSH has the real step prove CUDA over SSH: the probe is sent, compiled by the machine's own
// compiler, run over a stand-in libcuda, and what it found is in the report.
func TestCUDAProofOverSSH(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("cc"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("no C compiler, and in CI that is a failure")
		}
		t.Skip("no C compiler")
	}
	l := newLab(t)
	packages := filepath.Join("..", "..", "testdata", "lab", "packages")
	if out, err := exec.Command("cc", "-O2", "-I"+filepath.Join(packages, "kernel"), "-shared", "-fPIC", "-o", filepath.Join(l.root, "libcuda.so.1"), filepath.Join(packages, "user", "cuda.c")).CombinedOutput(); err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	all := steps.Install()
	step := all[slices.IndexFunc(all, func(s steps.Step) bool { return s.ID == "verify-cuda" })]
	in := steps.Input{Facts: facts.Facts{GPUs: []facts.PCI{{Address: "0000:01:00.0"}, {Address: "0000:02:00.0"}}}}
	proof := func(stub string) plan.Item {
		return plan.Item{ID: step.ID, Title: step.Title, Fresh: true, Hint: step.Hint,
			Check: "export LD_LIBRARY_PATH=" + sh.Quote(l.root) + " STUB_GPUS=2 " + stub + "\n" + step.Check(in),
			Read:  func(data string) (json.RawMessage, string) { return step.Read(in, data) }}
	}
	r, err := l.run(l.config(proof("")))
	if err != nil || len(r.Steps) != 1 || strings.Contains(r.Steps[0].Detail, steps.DataMark) || strings.Count(r.Steps[0].Detail, "\n") != 1 {
		t.Fatalf("%v, %+v", err, r.Steps)
	}
	if found, err := cuda.Parse(r.Steps[0].Data); err != nil || found.Result != cuda.Pass || len(found.Devices) != 2 {
		t.Errorf("%v, %+v", err, found)
	}
	r, err = l.run(l.config(proof("STUB_DEAD=1")))
	var failed *engine.StepError
	if !errors.As(err, &failed) || !failed.Verify || !strings.Contains(failed.What, "(0000:02:00.0): context: cuDevicePrimaryCtxRetain returned 999") {
		t.Errorf("error %v", err)
	}
	if found, err := cuda.Parse(r.Steps[0].Data); err != nil || found.Result != cuda.Fail || len(found.Failures) != 1 || *found.Failures[0].Device != 1 {
		t.Errorf("%v, %+v", err, found)
	}
}

func TestGuestThatAlwaysOwesABootIsGivenUp(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	flag := sh.Quote(filepath.Join(l.root, "flag"))
	id := sh.Quote(filepath.Join(l.shell.Dir, "boot_id"))
	it := plan.Item{ID: "loop", Title: "never settles", AtBoot: true, Check: "cmp -s " + flag + " " + id,
		Actions: []action.Action{action.Run{Title: "copy", Script: "cp " + id + " " + flag}}}
	cfg := l.config(it)
	cfg.MaxReboots = 2
	r, err := l.run(cfg)
	if !errors.Is(err, engine.ErrBootLoop) || r.Reboots != 2 {
		t.Fatalf("%d reboots, error %v", r.Reboots, err)
	}
}

// TestGuestThatBootsByItselfIsNamedWithThat: what a step did is gone each time it is looked at.
func TestGuestThatBootsByItselfIsNamedWithThat(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	flag, id := sh.Quote(filepath.Join(l.root, "flag")), sh.Quote(filepath.Join(l.shell.Dir, "boot_id"))
	it := plan.Item{ID: "once", Title: "lasts one boot", Check: "cmp -s " + flag + " " + id,
		Actions: []action.Action{action.Run{Title: "copy", Script: "cp " + id + " " + flag}}}
	cfg := l.config(it)
	planned, boots := cfg.Plan, 10
	cfg.Plan = func(f facts.Facts) (plan.Plan, error) {
		boots++
		l.shell.Boot(fmt.Sprintf("boot-%d", boots))
		return planned(f)
	}
	var step *engine.StepError
	if _, err := l.run(cfg); !errors.As(err, &step) || !strings.Contains(step.What, "does not stay as it was put; the guest booted meanwhile without being asked to, boots: 3") {
		t.Errorf("error %v", err)
	}
}

func TestRebootNeverLeavesTheBootOwedAndSaysSo(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := l.config(l.touch("one", true), l.booted())
	cfg.Reboot = choice.RebootNever
	r, err := l.run(cfg)
	var step *engine.StepError
	if !errors.As(err, &step) || !step.Verify {
		t.Fatalf("error %v", err)
	}
	if !slices.Equal(r.Owed, []steps.ID{"one"}) || r.Reboots != 0 {
		t.Errorf("owed %v, %d reboots", r.Owed, r.Reboots)
	}
	// Somebody else boots the guest: nothing is owed any more.
	l.shell.Boot("boot-9")
	if r, err = l.run(cfg); err != nil || len(r.Owed) != 0 {
		t.Errorf("after the boot: owed %v, error %v", r.Owed, err)
	}
}

func TestAnotherGpuguestHoldsTheGuest(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	slow := l.touch("slow", false)
	slow.Actions = []action.Action{action.Run{Title: "be slow", Script: "sleep 2\n" + slow.Actions[0].(action.Run).Script}}
	began := make(chan struct{})
	first := l.config(slow)
	first.Owner = "alice@desk"
	var once sync.Once
	first.Tell = func(e engine.Event) {
		if e.Kind == engine.StepOutput {
			once.Do(func() { close(began) })
		}
	}
	ended := make(chan error, 1)
	go func() {
		_, err := l.run(first)
		ended <- err
	}()
	<-began
	second := l.config(slow)
	second.LockWait = 0
	_, err := l.run(second)
	if !errors.Is(err, guest.ErrHeld) || !strings.Contains(err.Error(), "alice@desk") {
		t.Errorf("error %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the first run: %v", err)
	}
	if l.work("slow") != 1 {
		t.Errorf("work done %d times", l.work("slow"))
	}
}

// TestWorkThatNeedsABootWaitsForIt: what is late is done after the boot that work before it owes, and when it fails
// it is a step that failed and not a proof.
func TestWorkThatNeedsABootWaitsForIt(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	late := l.touch("late", false)
	late.Fresh, late.Late = true, true
	booted := `[ "$(cat ` + sh.Quote(l.shell.Dir+"/boot_id") + `)" != boot-1 ] || { echo "it was done before the boot"; exit 1; }` + "\n"
	run := late.Actions[0].(action.Run)
	run.Script = booted + run.Script
	late.Actions = []action.Action{run}
	r, err := l.run(l.config(l.touch("one", true), late, l.booted()))
	if err != nil {
		t.Fatal(err)
	}
	if got := states(r); got != "one=changed late=changed booted=met" || r.Reboots != 1 {
		t.Errorf("%s, %d reboots", got, r.Reboots)
	}
	bad := late
	bad.ID, bad.Check, bad.Actions = "bad", "false", []action.Action{action.Run{Title: "fail", Script: "exit 7"}}
	_, err = l.run(l.config(bad))
	var step *engine.StepError
	if !errors.As(err, &step) || step.Verify || step.What != "exit 7" {
		t.Errorf("error %v", err)
	}
}

// TestTurnsAreWaitedForAndGivenBack: a reboot and a big file each wait for their turn, a small file does not, and no
// turn is kept.
// A step that runs only in the booted guest may take a boot itself: what comes behind it is about the guest as it is
// then.
func TestWhatComesBehindAFreshStepThatTakesABootWaitsForIt(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	mode, layout := l.touch("mode", true), l.touch("layout", false)
	mode.Fresh, layout.Fresh = true, true
	layout.Check = `[ "$(cat ` + sh.Quote(l.shell.Dir+"/boot_id") + `)" = boot-2 ] || { echo "still the first boot"; exit 1; }` + "\n" + layout.Check
	r, err := l.run(l.config(l.touch("one", false), mode, layout))
	if err != nil {
		t.Fatal(err)
	}
	if got := states(r); got != "one=changed mode=changed layout=changed" || r.Reboots != 1 || l.work("mode") != 1 {
		t.Errorf("%s, %d reboots, mode %d times", got, r.Reboots, l.work("mode"))
	}
}

func TestTurnsAreWaitedForAndGivenBack(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.srv.Change(func(o *guesttest.Options) { o.SFTPDir = l.root })
	files := make(map[string]string)
	send := func(name string, size int) action.Action {
		local, data := filepath.Join(t.TempDir(), name), make([]byte, size)
		if err := os.WriteFile(local, data, 0o600); err != nil {
			t.Fatal(err)
		}
		sum := fmt.Sprintf("%x", sha256.Sum256(data))
		files[sum] = local
		return action.Send{Path: filepath.Join(l.root, name), SHA256: sum}
	}
	it := l.touch("one", true)
	it.Actions = append([]action.Action{send("big", engine.BigFile), send("small", 10)}, it.Actions...)
	cfg := l.config(it, l.booted())
	cfg.Files = files
	var mu sync.Mutex
	taken := make(map[string]int)
	turn := func(what string) func(context.Context) (func(), error) {
		return func(context.Context) (func(), error) {
			mu.Lock()
			defer mu.Unlock()
			taken[what]++
			return func() {
				mu.Lock()
				defer mu.Unlock()
				taken[what+" given back"]++
			}, nil
		}
	}
	cfg.SendTurn, cfg.RebootTurn = turn("send"), turn("reboot")
	if _, err := l.run(cfg); err != nil {
		t.Fatal(err)
	}
	if taken["reboot"] != 1 || taken["send"] < 1 || taken["send given back"] != taken["send"] || taken["reboot given back"] != 1 {
		t.Errorf("turns %v", taken)
	}
	refused := errors.New("interrupted")
	l2 := newLab(t)
	cfg = l2.config(l2.touch("one", true))
	cfg.RebootTurn = func(context.Context) (func(), error) { return nil, refused }
	if r, err := l2.run(cfg); !errors.Is(err, refused) || r.Reboots != 0 {
		t.Errorf("a turn that never comes: %v, %d reboots", err, r.Reboots)
	}
}
