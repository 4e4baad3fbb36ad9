package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/fleet"
	"gpuguest/internal/guest"
	"gpuguest/internal/guest/guesttest"
	"gpuguest/internal/plan"
	"gpuguest/internal/report"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// fakeGuest is a pretend guest: a real SSH server and sh, with folders in place of the guest's. Booting it is a new
// boot_id.
type fakeGuest struct {
	name  string
	srv   *guesttest.Server
	shell *guesttest.Shell
	root  string // stands for / where facts look
	fault string // "", "unreachable", "held", "boots for ever", "disk full", "no proof"
}

// fakeFleet is many of them, an inventory, and a command that installs two files and a reboot.
type fakeFleet struct {
	t      *testing.T
	dir    string
	guests []*fakeGuest
	sent   string             // SHA-256 of a file that step one sends; "": none
	local  string             // where it is
	wait   func(g *fakeGuest) // before a guest's plan is made; nil: nothing is waited for

	mu       sync.Mutex
	down     int // guests that reboot now
	mostDown int
	runs     map[string]int // how often each guest's plan was made
}

// noPackages stands in for a package manager that has nothing.
type noPackages struct{ distros.Manager }

func (noPackages) Snapshot() string { return "" }
func (noPackages) List() string     { return ":" }
func (noPackages) Manual() string   { return ":" }

// newFakeFleet makes a guest for each fault, "" being none.
func newFakeFleet(t *testing.T, faults ...string) *fakeFleet {
	t.Helper()
	f := &fakeFleet{t: t, dir: t.TempDir(), runs: make(map[string]int)}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	f.write(filepath.Join(f.dir, "id"), string(pem.EncodeToMemory(block)))
	var inv strings.Builder
	fmt.Fprintf(&inv, "defaults:\n  address: 127.0.0.1\n  user: root\n  identity: %s\n  known-hosts: %s\n  ssh-config: none\nhosts:\n", filepath.Join(f.dir, "id"), filepath.Join(f.dir, "known_hosts"))
	for i, fault := range faults {
		g := &fakeGuest{name: fmt.Sprintf("g%02d", i), root: t.TempDir(), shell: guesttest.NewShell(t), fault: fault}
		f.guests = append(f.guests, g)
		g.shell.Env = append(g.shell.Env, "GPUGUEST_ROOT="+g.root)
		for name, text := range map[string]string{
			"etc/os-release": "ID=debian\nVERSION_ID=\"12\"\n", "proc/sys/kernel/osrelease": "6.1.0-1-amd64\n",
			"proc/sys/kernel/arch": "x86_64\n", "proc/sys/kernel/hostname": g.name + "\n", "proc/cmdline": "quiet\n",
		} {
			f.write(filepath.Join(g.root, name), text)
		}
		for to, name := range map[string]string{"boot_id": "proc/sys/kernel/random/boot_id", "state": "var/lib/gpuguest"} {
			p := filepath.Join(g.root, name)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(filepath.Join(g.shell.Dir, to), p); err != nil {
				t.Fatal(err)
			}
		}
		id := sh.Quote(g.shell.Dir + "/boot_id")
		g.shell.Tool("systemctl", `case $1 in
reboot) n=$(sed 's/boot-//' `+id+`); sleep 0.2; echo "boot-$((n + 1))" >`+id+` ;;
is-system-running) echo running ;;
*) exit 1 ;;
esac
`)
		g.srv = guesttest.New(t, guesttest.Options{Exec: f.watched(g), Keys: []ssh.PublicKey{key}})
		if fault == "unreachable" {
			g.srv.Refuse()
		}
		fmt.Fprintf(&inv, "  %s: {port: %d}\n", g.name, g.srv.Port())
	}
	f.write(filepath.Join(f.dir, "fleet.yaml"), inv.String())
	return f
}

func (f *fakeFleet) write(name, text string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// watched counts the guests that are about to reboot, from the request to the end of it.
func (f *fakeFleet) watched(g *fakeGuest) guesttest.Exec {
	return func(ctx context.Context, cmd string, in io.Reader, out, errs io.Writer) int {
		if strings.Contains(cmd, "systemctl reboot") {
			f.mu.Lock()
			f.down++
			f.mostDown = max(f.mostDown, f.down)
			f.mu.Unlock()
			defer func() {
				f.mu.Lock()
				f.down--
				f.mu.Unlock()
			}()
		}
		return g.shell.Exec(ctx, cmd, in, out, errs)
	}
}

// plan is what is brought about in a guest, its fault included.
func (f *fakeFleet) plan(name string) plan.Plan {
	i := slices.IndexFunc(f.guests, func(g *fakeGuest) bool { return g.name == name })
	g := f.guests[i]
	f.mu.Lock()
	f.runs[name]++
	f.mu.Unlock()
	if f.wait != nil {
		f.wait(g)
	}
	item := func(id string, atBoot bool) plan.Item {
		file, work := sh.Quote(filepath.Join(g.root, "done-"+id)), sh.Quote(filepath.Join(g.root, "work-"+id))
		script := "echo x >>" + work + "\nsleep 0.2\ntouch " + file
		if id == "one" && g.fault == "disk full" {
			script = "echo 'cp: error writing: No space left on device' >&2\nexit 1"
		}
		return plan.Item{ID: steps.ID("step-" + id), Title: "make " + id, AtBoot: atBoot,
			Check:   `[ -e ` + file + ` ] || { echo "` + id + ` is missing"; exit 1; }`,
			Actions: []action.Action{action.Run{Title: "make " + id, Script: script}}}
	}
	items := []plan.Item{item("one", false), item("two", true)}
	if f.sent != "" {
		items[0].Actions = append([]action.Action{action.Send{Path: filepath.Join(g.root, "sent"), SHA256: f.sent}}, items[0].Actions...)
	}
	if g.fault == "boots for ever" {
		flag, id := sh.Quote(filepath.Join(g.root, "flag")), sh.Quote(g.shell.Dir+"/boot_id")
		items = append(items, plan.Item{ID: "loop", Title: "never settle", AtBoot: true, Check: "cmp -s " + flag + " " + id,
			Actions: []action.Action{action.Run{Title: "copy", Script: "cp " + id + " " + flag}}})
	}
	proof := plan.Item{ID: "booted", Title: "prove the boot", Fresh: true,
		Check: `[ "$(cat ` + sh.Quote(g.shell.Dir+"/boot_id") + `)" != boot-1 ] || { echo "still the first boot"; exit 1; }`}
	p := plan.Plan{Distro: distros.Distro{Name: "test", Packages: noPackages{}}, Segments: []plan.Segment{{Items: items}, {Items: []plan.Item{proof}}}}
	if g.fault == "no proof" {
		p.Segments = p.Segments[:1]
	}
	return p
}

// run is the batch, by all of the command but the plan.
func (f *fakeFleet) run(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	a := &app{console: console{in: strings.NewReader(""), out: &out, err: &errs}}
	root := &cobra.Command{Use: "gpuguest", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().BoolVar(&a.json, "json", false, "")
	root.AddCommand(a.forMany(func(a *app) *cobra.Command {
		var b bootFlags
		c := &cobra.Command{Use: "install", RunE: func(c *cobra.Command, _ []string) error {
			return a.converge(c.Context(), b, map[string]string{f.sent: f.local}, func(facts.Facts) (plan.Plan, error) { return f.plan(a.host), nil })
		}}
		a.addReach(c)
		b.add(c)
		a.files.add(c)
		return c
	}))
	root.SetArgs(append([]string{"install", "--inventory", filepath.Join(f.dir, "fleet.yaml"), "--max-reboots", "2", "--busy-wait", "5s"}, args...))
	err := root.ExecuteContext(ctx)
	if err != nil {
		a.complain(err)
	}
	return exitCode(err), out.String(), errs.String()
}

// state is what a guest has in the end, and how often each step's work was done.
func (g *fakeGuest) state(t *testing.T) string {
	t.Helper()
	var s []string
	for _, id := range []string{"one", "two"} {
		_, err := os.Stat(filepath.Join(g.root, "done-"+id))
		work, _ := os.ReadFile(filepath.Join(g.root, "work-"+id))
		s = append(s, fmt.Sprintf("%s %v after %d", id, err == nil, bytes.Count(work, []byte("\n"))))
	}
	return strings.Join(s, ", ")
}

const converged = "one true after 1, two true after 1"

// hold takes a guest as another gpuguest does, until the test's end.
func (f *fakeFleet) hold(g *fakeGuest) {
	f.t.Helper()
	conn, err := guest.Dial(f.t.Context(), guest.Config{Host: "127.0.0.1", Port: g.srv.Port(), User: "root", Identities: []string{filepath.Join(f.dir, "id")},
		SSHConfig: "none", KnownHosts: filepath.Join(f.dir, "known_hosts"), Home: f.dir})
	if err != nil {
		f.t.Fatal(err)
	}
	_, lease, err := conn.Hold(f.t.Context(), guest.HoldSpec{Owner: "alice@desk", Script: "true"})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		_ = lease.Release()
		conn.Close()
	})
}

func twenty() []string {
	faults := make([]string, 20)
	faults[3], faults[7], faults[11], faults[16] = "unreachable", "held", "boots for ever", "disk full"
	return faults
}

// TestTwentyGuestsWithFaultsAmongThem: the good ones converge, the others are named with what is wrong, and the
// second run finds the good ones done.
func TestTwentyGuestsWithFaultsAmongThem(t *testing.T) {
	t.Parallel()
	f := newFakeFleet(t, twenty()...)
	f.hold(f.guests[7])
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	logs := t.TempDir()
	files := t.TempDir()
	page, suites, metrics := filepath.Join(files, "all.html"), filepath.Join(files, "all.xml"), filepath.Join(files, "all.prom")
	code, out, errs := f.run(ctx, "--serial-reboots", "3", "--log-dir", logs, "--html", page, "--junit", suites, "--prometheus", metrics)
	if code != exitStep {
		t.Errorf("exit %d, a step failed is the worst", code)
	}
	for _, g := range f.guests {
		if got := g.state(t); g.fault == "" && got != converged {
			t.Errorf("%s: %s", g.name, got)
		}
		if _, err := os.Stat(filepath.Join(logs, g.name, "001-facts.log")); (err == nil) != (g.fault != "unreachable" && g.fault != "held") {
			t.Errorf("%s: its logs: %v", g.name, err)
		}
	}
	for _, want := range []string{
		"g03: FAILED, 127.0.0.1: connection to 127.0.0.1:", "g07: FAILED, 127.0.0.1: held by another: alice@desk",
		"g11: FAILED, 2 reboots, too many reboots: 2 done", "g16: FAILED, step-one: exit 1", "g00: done, 1 reboot, ",
		"gpuguest: error: 20 guests: 16 done, 4 failed",
	} {
		if !strings.Contains(errs, want) {
			t.Errorf("standard error lacks %q", want)
		}
	}
	for _, want := range []string{"20 guests: 16 done, 4 failed", "slowest: ", "\ng16 ", "g16: in the guest: the disk filled up", "do: Free space"} {
		if !strings.Contains(out, want) {
			t.Errorf("the summary lacks %q", want)
		}
	}
	for name, want := range map[string]map[string]int{
		page:    {"<title>20 guests: 16 done": 1, "step-one: exit 1": 1},
		suites:  {"<testsuite ": 20, `<testsuite name="g16"`: 1, `<testsuite name="g00"`: 1},
		metrics: {"\ngpuguest_success{guest=": 20, `gpuguest_success{guest="g00"} 1`: 1, `gpuguest_success{guest="g03"} 0`: 1, `gpuguest_success{guest="g16"} 0`: 1},
	} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
		}
		for part, n := range want {
			if got := strings.Count(string(text), part); got < n || n > 1 && got != n {
				t.Errorf("%s: %q %d times, want %d", filepath.Base(name), part, got, n)
			}
		}
	}
	if f.mostDown > 3 || f.mostDown == 0 {
		t.Errorf("%d guests rebooted at once", f.mostDown)
	}
	if t.Failed() {
		t.Logf("%s\n%s", out, errs)
	}

	code, out, errs = f.run(ctx, "--json", "--limit", "all,!g03,!g07,!g11,!g16")
	var doc struct {
		Version int
		Guests  []struct {
			Host, Result string
			Exit         int       `json:"exit_code"`
			Time         time.Time `json:"time"`
			Execs        int
			Steps        []struct{ State string }
		}
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || code != exitDone || doc.Version != 1 || len(doc.Guests) != 16 {
		t.Fatalf("exit %d, %v: %s\n%s", code, err, out, errs)
	}
	for _, g := range doc.Guests {
		if g.Result != "done" || g.Exit != 0 || g.Execs > 3 || g.Time.IsZero() || len(g.Steps) != 3 {
			t.Errorf("%+v", g)
		}
	}
}

// TestBatchKilledHalfWayIsTakenUpAgain: the end state is that of an undisturbed run, and no work was done twice.
func TestBatchKilledHalfWayIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	f := newFakeFleet(t, make([]string, 12)...)
	ctx, kill := context.WithCancelCause(t.Context())
	defer kill(nil)
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			n := 0
			for _, g := range f.guests {
				if _, err := os.Stat(filepath.Join(g.root, "work-one")); err == nil {
					n++
				}
			}
			if n >= 3 {
				kill(errInterrupted)
				return
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	})
	code, out, errs := f.run(ctx, "--parallel", "6")
	close(stop)
	watch.Wait()
	if code != exitInterrupted || !strings.Contains(out, "interrupted") || !strings.Contains(out, "not started") {
		t.Fatalf("exit %d\n%s\n%s", code, out, errs)
	}
	again, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if code, out, errs := f.run(again); code != exitDone {
		t.Fatalf("again: exit %d\n%s\n%s", code, out, errs)
	}
	for _, g := range f.guests {
		if got := g.state(t); got != converged {
			t.Errorf("%s: %s", g.name, got)
		}
	}
}

func TestBadCanaryKeepsTheRestUntouched(t *testing.T) {
	t.Parallel()
	f := newFakeFleet(t, "disk full", "", "", "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	code, out, errs := f.run(ctx, "--canary", "2")
	if code != exitStep || !strings.Contains(errs, "4 guests: 1 done, 1 failed, 2 not started") || strings.Count(out, "not started: a canary failed") != 2 {
		t.Errorf("exit %d\n%s\n%s", code, out, errs)
	}
	if n := f.guests[2].srv.Connections() + f.guests[3].srv.Connections(); n > 0 {
		t.Errorf("%d connections to guests that were not to start", n)
	}
	// Joined with what another batch did to them, that they were left out does not count.
	_, out, _ = f.run(ctx, "--canary", "2", "--json")
	var later report.Document
	if err := json.Unmarshal([]byte(out), &later); err != nil || len(later.Guests) != 4 {
		t.Fatalf("%v in %s", err, out)
	}
	before := report.New(engine.Report{Host: f.guests[2].name, Result: "done"}, exitDone, time.Now().Add(-time.Hour))
	merged, _ := report.Merge(append([]report.Guest{before}, later.Guests...))
	if len(merged) != 4 || merged[0].Result != "done" || later.Guests[0].NotStarted || !later.Guests[3].NotStarted {
		t.Errorf("merged %+v", merged)
	}
}

// TestCanaryThatOwesARebootHasProvedNothing: a plan without a proof that fails in the old boot, as an image's is.
func TestCanaryThatOwesARebootHasProvedNothing(t *testing.T) {
	t.Parallel()
	f := newFakeFleet(t, "no proof", "no proof", "no proof")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	code, out, errs := f.run(ctx, "--canary", "1", "--reboot", "never", "--json")
	var doc report.Document
	if err := json.Unmarshal([]byte(out), &doc); err != nil || len(doc.Guests) != 3 {
		t.Fatalf("%v in %s", err, out)
	}
	if g := doc.Guests[0]; code != exitVerify || g.Result != "failed" || g.Exit != exitVerify || g.Error == nil || g.Error.Hint == "" || !strings.Contains(g.Error.Message, "by step-two") {
		t.Errorf("exit %d, %+v, %+v\n%s", code, g.Report, g.Error, errs)
	}
	if n := f.guests[1].srv.Connections() + f.guests[2].srv.Connections(); n > 0 {
		t.Errorf("%d connections to guests that were not to start", n)
	}
	// Who asks for no canary gets what was asked for, and so does one that somebody booted.
	if code, _, errs := f.run(ctx, "--reboot", "never"); code != exitDone {
		t.Errorf("without a canary: exit %d\n%s", code, errs)
	}
	f.guests[0].shell.Boot("boot-9")
	if code, _, errs := f.run(ctx, "--canary", "1", "--reboot", "never"); code != exitDone {
		t.Errorf("after a boot: exit %d\n%s", code, errs)
	}
}

func TestMaxFailuresAndTheWorstCode(t *testing.T) {
	t.Parallel()
	f := newFakeFleet(t, "unreachable", "", "unreachable", "", "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	code, _, errs := f.run(ctx, "--max-failures", "2", "--parallel", "1")
	if code != exitUnreachable || !strings.Contains(errs, "5 guests: 1 done, 2 failed, 2 not started") {
		t.Errorf("exit %d\n%s", code, errs)
	}
	var codes []outcome
	for _, err := range []error{fmt.Errorf("x: %w", guest.ErrHeld), fmt.Errorf("x: %w", guest.ErrUnreachable), nil} {
		codes = append(codes, outcome{report.Guest{Exit: exitCode(err)}, err})
	}
	if got := exitCode(newFleetError(codes)); got != exitUnreachable {
		t.Errorf("worst of held and unreachable: %d", got)
	}
	if newFleetError(codes[2:]) != nil {
		t.Error("all done is an error")
	}
}

// TestGuestsThatRebootTogetherLogInOneAfterTheOther: they come back at one moment, and the probes of all of them pass
// the gate that the first logins did. It is not opened wider by logins that take much longer than the quickest.
func TestGuestsThatRebootTogetherLogInOneAfterTheOther(t *testing.T) {
	t.Parallel()
	const n, may = 56, 48 // 32 to begin with, and a server notes late that a probe was called off
	f := newFakeFleet(t, make([]string, n)...)
	var mu sync.Mutex
	logins, at, most, asked := 0, 0, 0, 0
	together := make(chan struct{})
	for _, g := range f.guests {
		g.srv.Change(func(o *guesttest.Options) {
			inner := o.Exec
			o.Exec = func(ctx context.Context, cmd string, in io.Reader, out, errs io.Writer) int {
				if strings.Contains(cmd, "systemctl reboot") {
					mu.Lock()
					if asked++; asked == n {
						most = 0 // until now only those that came to their first login are in it
						close(together)
					}
					mu.Unlock()
					select {
					case <-together:
					case <-ctx.Done():
					}
				}
				return inner(ctx, cmd, in, out, errs)
			}
			o.Login = func() {
				mu.Lock()
				logins++
				quickest := logins == 1
				at++
				most = max(most, at)
				mu.Unlock()
				if !quickest {
					time.Sleep(time.Second)
				}
				mu.Lock()
				at--
				mu.Unlock()
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if code, out, errs := f.run(ctx); code != exitDone {
		t.Fatalf("exit %d\n%s\n%s", code, out, errs)
	}
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d logins, %d at once", logins, most)
	if most > may || most < 4 {
		t.Errorf("%d guests of %d logged in at once", most, n)
	}
}

// TestSlowGuestsHoldNobodyUp: as many as may send at once are slow and have begun; one that comes then is through
// before any of them.
func TestSlowGuestsHoldNobodyUp(t *testing.T) {
	t.Parallel()
	f := newFakeFleet(t, make([]string, fleet.SendsAtOnce+1)...)
	data := bytes.Repeat([]byte("0123456789abcdef"), 16<<20/16)
	f.local, f.sent = filepath.Join(f.dir, "file"), fmt.Sprintf("%x", sha256.Sum256(data))
	f.write(f.local, string(data))
	slow, fast := f.guests[:fleet.SendsAtOnce], f.guests[fleet.SendsAtOnce]
	ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Minute, errInterrupted)
	defer cancel()
	f.wait = func(g *fakeGuest) {
		for g == fast && ctx.Err() == nil {
			began := 0
			for _, s := range slow {
				if part, _ := filepath.Glob(filepath.Join(s.root, ".sent.gpuguest-*")); len(part) > 0 {
					began++
				}
			}
			if began == len(slow) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	for _, g := range f.guests {
		g.srv.Change(func(o *guesttest.Options) {
			o.SFTPDir = g.root
			if g != fast {
				o.Rate = 500_000
			}
		})
	}
	there := func(g *fakeGuest) bool {
		_, err := os.Stat(filepath.Join(g.root, "sent"))
		return err == nil
	}
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		defer cancel()
		for !there(fast) {
			select {
			case <-ended:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
		if i := slices.IndexFunc(slow, there); i >= 0 {
			t.Errorf("%s was before", slow[i].name)
		}
	})
	code, out, errs := f.run(ctx)
	close(ended)
	watch.Wait()
	if !there(fast) {
		t.Errorf("exit %d\n%s\n%s", code, out, errs)
	}
}

// TestConvergedGuestsByInstallAndVerify has the real commands, plans and checks in guests that answer as converged ones.
func TestConvergedGuestsByInstallAndVerify(t *testing.T) {
	t.Parallel()
	f := newFakeFleet(t, "", "", "")
	recording, err := os.ReadFile(filepath.Join("..", "..", "testdata", "guests", "ubuntu2404-l4-driver580.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range f.guests {
		g.srv.Change(func(o *guesttest.Options) { o.Exec = convergedGuest(recording) })
	}
	// A guest that looks far on a busy machine is sent its line packed first, which the pretend one refuses.
	refused := func() (n int) {
		for _, g := range f.guests {
			for _, line := range g.srv.Commands() {
				if strings.Contains(line, "gpuguest-pack") {
					n++
				}
			}
		}
		return n
	}
	cache := t.TempDir()
	for i, command := range []string{"install", "install", "verify"} {
		execs, again := 0, refused()
		var out, errs bytes.Buffer
		code := run(t.Context(), []string{command, "--inventory", filepath.Join(f.dir, "fleet.yaml"), "--json"}, console{in: strings.NewReader(""), out: &out, err: &errs, cache: cache})
		var doc report.Document
		if err := json.Unmarshal(out.Bytes(), &doc); err != nil || code != exitDone || len(doc.Guests) != 3 {
			t.Fatalf("%s: exit %d, %v\n%s\n%s", command, code, err, &out, &errs)
		}
		for _, g := range doc.Guests {
			if g.Result != "done" || g.Driver == "" || len(g.Steps) == 0 {
				t.Errorf("%s: %+v", command, g)
			}
			execs += g.Execs
		}
		if want := 3*[]int{2, 1, 1}[i] + refused() - again; execs != want {
			t.Errorf("%s: %d commands in three guests, want %d", command, execs, want)
		}
	}
	if n := f.guests[0].srv.Connections(); n != 3 {
		t.Errorf("%d connections by three commands", n)
	}
}

// convergedGuest answers the facts script with a recording and every check with "met", and runs nothing.
func convergedGuest(recording []byte) guesttest.Exec {
	token := regexp.MustCompile(`gpuguest-hold-[A-Z0-9]+`)
	check := regexp.MustCompile(`"\$out" (--[0-9a-f]{24}) ([a-z0-9-]+) "\$code"`)
	return guesttest.Plain(func(_ context.Context, cmd string, in io.Reader, out, errs io.Writer) int {
		word := token.FindString(cmd)
		if word != "" {
			_, _ = out.Write(recording)
		}
		// Of a guest that was seen before, the checks come along with the facts.
		for _, m := range check.FindAllStringSubmatch(cmd, -1) {
			fmt.Fprintf(out, "\n%s %s 0\n", m[1], m[2])
		}
		if word != "" {
			for _, w := range []io.Writer{out, errs} {
				fmt.Fprintf(w, "\n%s exit 0\n", word)
			}
			_, _ = io.Copy(io.Discard, in)
		}
		return 0
	})
}

func TestWhatIsTheSameForAllGuestsIsWorkedOutOnce(t *testing.T) {
	t.Parallel()
	shared := &sharedWork{}
	a, b := &member{shared: shared}, &member{shared: shared}
	n := 0
	sum := func() (int, error) {
		if n++; n == 1 {
			return 0, errLeftOut
		}
		return n, nil
	}
	if _, err := once(a, "sum", sum); err == nil {
		t.Error("the error is lost")
	}
	for _, m := range []*member{a, b, a} {
		if got, err := once(m, "sum", sum); err != nil || got != 2 {
			t.Errorf("%d, %v", got, err)
		}
	}
	if got, err := once(nil, "sum", sum); err != nil || got != 3 {
		t.Errorf("of no batch: %d, %v", got, err)
	}
}
