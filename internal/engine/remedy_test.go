package engine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/diagnosis"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/plan"
	"gpuguest/internal/remedy"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// patient is a pretend guest with a failure. What it shows depends on the kernel arguments and on the settings
// that it runs with: a boot makes what is written what runs.
type patient struct {
	*lab
	want choice.Want
	// wants says what the plan was last made for.
	wants choice.Want
}

const (
	barLines = "NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:\nNVRM: BAR1 is 0M @ 0x0 (PCI:0001:00:00.0)"
	argsFile = "etc/default/grub.d/90-gpuguest.cfg"
)

// newPatient makes a guest whose kernel log is what the script symptom prints. The script finds the kernel's
// command line in $CMDLINE, the options its modules were loaded with in $OPTIONS and the number of the boot in
// $BOOT.
func newPatient(t *testing.T, symptom string) *patient {
	p := &patient{lab: newLab(t)}
	root, id := sh.Quote(p.root), sh.Quote(p.shell.Dir+"/boot_id")
	p.shell.Tool("systemctl", `case $1 in
reboot)
	n=$(sed 's/boot-//' `+id+`); n=$((n + 1))
	{ printf quiet; sed -n 's/^# arguments:/ /p' `+root+`/`+argsFile+` 2>/dev/null | tr -s ' \n' ' ' | sed 's/ $//'; echo; } >`+root+`/proc/cmdline
	cat `+root+`/options >`+root+`/options.loaded 2>/dev/null || : >`+root+`/options.loaded
	echo "boot-$n" >`+id+` ;;
is-system-running) echo running ;;
*) exit 1 ;;
esac
`)
	p.shell.Tool("dmesg", "CMDLINE=$(cat "+root+"/proc/cmdline) OPTIONS=$(cat "+root+"/options.loaded 2>/dev/null || true) BOOT=$(cat "+id+")\necho 'Linux version 6.1.0-1-amd64 (test)'\n"+symptom)
	return p
}

// with makes a file of the guest hold these lines, or removes it when there is none.
func with(id steps.ID, file, text string, packages bool) plan.Item {
	q := sh.Quote(file)
	it := plan.Item{ID: id, Title: "set " + string(id), AtBoot: true,
		Check:   "[ ! -e " + q + " ] || { echo still there; exit 1; }",
		Actions: []action.Action{action.Run{Title: "remove", Script: "rm -f " + q, Packages: packages}}}
	if text != "" {
		it.Check = "printf %s " + sh.Quote(text) + " | cmp -s - " + q + " || { echo not so; exit 1; }"
		it.Actions = []action.Action{action.Run{Title: "write", Script: "mkdir -p " + sh.Quote(filepath.Dir(file)) + "\nprintf %s " + sh.Quote(text) + " >" + q, Packages: packages}}
	}
	return it
}

func (p *patient) plan(f facts.Facts) (plan.Plan, error) {
	w := remedy.Want(p.want, f.State.Journal)
	p.wants = w
	if w.Flavor == "never" {
		return plan.Plan{}, errors.New("no such driver")
	}
	var args []string
	for _, a := range slices.Concat(f.State.KernelArgs, w.KernelArgs) {
		if !slices.Contains(args, a) && (!slices.Contains(w.DropArgs, a) || slices.Contains(w.KernelArgs, a)) {
			args = append(args, a)
		}
	}
	text := ""
	if len(args) > 0 {
		text = "# arguments: " + strings.Join(args, " ") + "\n"
	}
	items := []plan.Item{with("kernel-args", filepath.Join(p.root, argsFile), text, false)}
	if len(w.ModuleOptions)+len(w.DropOptions) > 0 {
		items = append(items, with("module-options", filepath.Join(p.root, "options"), strings.Join(w.ModuleOptions, "\n"), false))
	}
	if w.Flavor != "" {
		items = append(items, with("driver", filepath.Join(p.root, "flavor"), w.Flavor, true))
	}
	proof := plan.Item{ID: "module", Title: "prove", Fresh: true, Check: `log=$(dmesg | grep -v '^Linux version') || true; [ -z "$log" ] || { printf '%s\n' "not bound" "$log"; exit 1; }`}
	return plan.Plan{
		Distro:   distros.Distro{Name: "test", Packages: filePackages{file: filepath.Join(p.root, "packages")}},
		Segments: []plan.Segment{{Items: items}, {Items: []plan.Item{proof}}},
	}, nil
}

func (p *patient) config() engine.Config {
	c := p.lab.config()
	c.Plan = p.plan
	c.MaxReboots = 5
	c.Remedies = engine.SafeRemedies
	c.Against = func(m remedy.Remedy, f facts.Facts) string { return m.Against(p.want, f) }
	c.Hint = func(text string) string {
		v, ok := diagnosis.Cause(text)
		if !ok {
			return ""
		}
		return v.Hint()
	}
	return c
}

func (p *patient) cmdline() string {
	b, err := os.ReadFile(filepath.Join(p.root, "proc/cmdline"))
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// trials tells what was tried and what became of it.
func (p *patient) trials() string {
	b, err := os.ReadFile(filepath.Join(p.shell.Dir, "state", "journal"))
	if err != nil {
		return ""
	}
	var all []string
	for _, t := range remedy.Trials(string(b)) {
		all = append(all, t.Fix+": "+t.State)
	}
	return strings.Join(all, ", ")
}

// On real hosts the window is too small whatever the guest's kernel does; elsewhere one of the two helps.
const (
	always    = "cat <<'E'\n" + barLines + "\nE\n"
	unlessOn  = "case \" $CMDLINE \" in *' pci=realloc '*) exit 0 ;; esac\n" + always
	unlessOff = "case \" $CMDLINE \" in *' pci=realloc=off '*) exit 0 ;; esac\n" + always
)

func TestEmptyWindowIsTriedBothWaysTakenBackAndGivenToTheHost(t *testing.T) {
	t.Parallel()
	p := newPatient(t, always)
	cfg := p.config()
	cfg.Advice = func(v diagnosis.Verdict, f facts.Facts) []string { return []string{"to the " + v.Where} }
	r, err := p.run(cfg)
	var step *engine.StepError
	if !errors.As(err, &step) || !step.Verify || step.Step != "module" {
		t.Fatalf("error %v", err)
	}
	if r.Reboots != 3 || p.cmdline() != "quiet" {
		t.Errorf("%d reboots, started with %q", r.Reboots, p.cmdline())
	}
	if got := p.trials(); got != "kernel-arg pci=realloc: back, kernel-arg pci=realloc=off: back" {
		t.Errorf("tried %s", got)
	}
	e := r.Error
	if e.Verdict == nil || e.Verdict.ID != "bar-zero" || e.Verdict.Where != diagnosis.Host || len(e.Tried) != 2 ||
		!strings.Contains(e.Hint, "X-PciMmio64Mb") || !strings.Contains(e.Hint, "tried") || !slices.Equal(e.Advice, []string{"to the host"}) {
		t.Errorf("%+v", e)
	}
	want := []engine.RemedyReport{
		{Remedy: "kernel-arg pci=realloc", Cause: "bar-zero", Result: engine.NoHelp},
		{Remedy: "kernel-arg pci=realloc=off", Cause: "bar-zero", Result: engine.NoHelp},
	}
	if !slices.Equal(r.Remedies, want) {
		t.Errorf("%+v", r.Remedies)
	}
	// What was tried in vain is not tried again, and the verdict is the same.
	r, err = p.run(cfg)
	if !errors.As(err, &step) || r.Reboots != 0 || len(r.Remedies) != 0 || r.Error.Verdict == nil || r.Error.Verdict.Where != diagnosis.Host || len(r.Error.Tried) != 2 {
		t.Errorf("second run: %d reboots, %+v, %+v", r.Reboots, r.Remedies, r.Error)
	}
}

func TestWhatHelpedIsKept(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		symptom, cmdline, trials string
		reboots                  int
	}{
		"the first": {unlessOn, "quiet pci=realloc", "kernel-arg pci=realloc: kept", 1},
		"the other": {unlessOff, "quiet pci=realloc=off", "kernel-arg pci=realloc: back, kernel-arg pci=realloc=off: kept", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t, c.symptom)
			r, err := p.run(p.config())
			if err != nil || r.Reboots != c.reboots || p.cmdline() != c.cmdline || p.trials() != c.trials {
				t.Fatalf("%v, %d reboots, started with %q, tried %s", err, r.Reboots, p.cmdline(), p.trials())
			}
			before := len(p.journal())
			r, err = p.run(p.config())
			if err != nil || r.Reboots != 0 || r.Execs > 3 || len(p.journal()) != before {
				t.Errorf("second run: %v, %d reboots, %d execs, %d records", err, r.Reboots, r.Execs, len(p.journal())-before)
			}
		})
	}
}

// The host's window shrinks after an argument had helped: that argument is where it was when the other did not.
func TestWhatHelpedOnceComesBackWhenTheNextIsInVain(t *testing.T) {
	t.Parallel()
	p := newPatient(t, unlessOn)
	if r, err := p.run(p.config()); err != nil || p.cmdline() != "quiet pci=realloc" {
		t.Fatalf("%v, %d reboots, started with %q", err, r.Reboots, p.cmdline())
	}
	p.shell.Tool("dmesg", "echo 'Linux version 6.1.0-1-amd64 (test)'\n"+always)
	r, err := p.run(p.config())
	var step *engine.StepError
	if !errors.As(err, &step) || step.Verdict == nil || step.Verdict.Where != diagnosis.Host || r.Reboots != 2 || p.cmdline() != "quiet pci=realloc" {
		t.Errorf("%v, %d reboots, started with %q, tried %s", err, r.Reboots, p.cmdline(), p.trials())
	}
}

// NVIDIA's real module on the lab's GPU is such a case: with its window in place it fails at the next thing.
func TestRemedyThatChangesTheFailureIsKept(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "case \" $CMDLINE \" in *' pci=realloc '*) echo 'NVRM: GPU 0001:00:00.0: RmInitAdapter failed! (0x22:0x56:884)'; exit 0 ;; esac\n"+always)
	r, err := p.run(p.config())
	var step *engine.StepError
	if !errors.As(err, &step) || !step.Verify || r.Error.Verdict == nil || r.Error.Verdict.ID != "rminit-failed" || len(r.Error.Tried) != 0 {
		t.Fatalf("%v: %+v", err, r.Error)
	}
	if r.Reboots != 1 || p.cmdline() != "quiet pci=realloc" || p.trials() != "kernel-arg pci=realloc: kept" {
		t.Errorf("%d reboots, started with %q, tried %s", r.Reboots, p.cmdline(), p.trials())
	}
}

func TestUsersOwnArgumentIsNeitherTakenBackNorContradicted(t *testing.T) {
	t.Parallel()
	for _, own := range []string{"pci=realloc", "pci=nocrs"} {
		t.Run(own, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t, always)
			p.want.KernelArgs = []string{own}
			for range 2 {
				r, err := p.run(p.config())
				if err == nil || p.trials() != "" || p.cmdline() != "quiet "+own || len(r.Remedies) != 0 {
					t.Fatalf("%v, started with %q, tried %s", err, p.cmdline(), p.trials())
				}
				p.want.KernelArgs = nil // the second run does not name it, and it is his all the same
			}
		})
	}
	t.Run("given after it was tried", func(t *testing.T) {
		t.Parallel()
		p := newPatient(t, always)
		if _, err := p.run(p.config()); err == nil {
			t.Fatal("a guest beyond help was helped")
		}
		p.want.KernelArgs = []string{"pci=realloc"}
		for range 2 {
			if _, err := p.run(p.config()); err == nil || p.cmdline() != "quiet pci=realloc" {
				t.Fatalf("%v, started with %q", err, p.cmdline())
			}
			p.want.KernelArgs = nil
		}
	})
}

func TestRemediesKeepToThePolicy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change  func(*engine.Config)
		reboots int
		trials  string
		notice  string
	}{
		"none":          {func(c *engine.Config) { c.Remedies = engine.NoRemedies }, 0, "", ""},
		"no reboots":    {func(c *engine.Config) { c.Reboot = choice.RebootNever }, 0, "", "--reboot never"},
		"one reboot":    {func(c *engine.Config) { c.MaxReboots = 1 }, 0, "", "--max-reboots"},
		"two reboots":   {func(c *engine.Config) { c.MaxReboots = 2 }, 2, "kernel-arg pci=realloc: back", "--max-reboots"},
		"three of them": {func(c *engine.Config) { c.MaxReboots = 3 }, 3, "kernel-arg pci=realloc: back, kernel-arg pci=realloc=off: back", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t, always)
			cfg := p.config()
			c.change(&cfg)
			var notices string
			cfg.Tell = func(e engine.Event) {
				if e.Kind == engine.Notice {
					notices += e.Text + "\n"
				}
			}
			r, err := p.run(cfg)
			var step *engine.StepError
			if !errors.As(err, &step) || r.Reboots != c.reboots || p.trials() != c.trials || p.cmdline() != "quiet" || !strings.Contains(notices, c.notice) {
				t.Errorf("%v, %d reboots, started with %q, tried %s; told %s", err, r.Reboots, p.cmdline(), p.trials(), notices)
			}
		})
	}
}

// TestClientKilledAnywhereInATrialGoesOnWithIt ends the client at each of its events; the same command then ends
// as an undisturbed one does, and nothing was tried twice.
func TestClientKilledAnywhereInATrialGoesOnWithIt(t *testing.T) {
	t.Parallel()
	total := 0
	p := newPatient(t, always)
	cfg := p.config()
	cfg.Tell = func(engine.Event) { total++ }
	if _, err := p.run(cfg); err == nil {
		t.Fatal("a guest beyond help was helped")
	}
	for n := 0; n < total; n += 7 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			p := newPatient(t, always)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			killed, seen := p.config(), 0
			killed.Tell = func(engine.Event) {
				if seen++; seen > n {
					cancel()
				}
			}
			_, first := engine.Run(ctx, killed)
			r, err := p.run(p.config())
			var step *engine.StepError
			if !errors.As(err, &step) || r.Error.Verdict == nil || r.Error.Verdict.Where != diagnosis.Host {
				t.Fatalf("after %v: %v, %+v", first, err, r.Error)
			}
			if got := p.trials(); got != "kernel-arg pci=realloc: back, kernel-arg pci=realloc=off: back" || p.cmdline() != "quiet" {
				t.Errorf("tried %s, started with %q", got, p.cmdline())
			}
		})
	}
}

func TestModuleThatIsNotTheLibrarysIsLoadedAnewByABoot(t *testing.T) {
	t.Parallel()
	p := newPatient(t, `[ "$BOOT" != boot-1 ] || echo 'NVRM: API mismatch: the client has the version 580.95.05, but'`)
	r, err := p.run(p.config())
	if err != nil || r.Reboots != 1 || p.trials() != "reboot: kept" {
		t.Fatalf("%v, %d reboots, tried %s", err, r.Reboots, p.trials())
	}
	// The next upgrade brings the same failure, and what helped before is tried again.
	p.shell.Boot("boot-1")
	if r, err = p.run(p.config()); err != nil || r.Reboots != 1 {
		t.Errorf("the second time: %v, %d reboots", err, r.Reboots)
	}
}

func TestDriverThatHoldsTheGPUAlthoughItIsBlockedGoesWithABoot(t *testing.T) {
	t.Parallel()
	for _, holder := range []string{"nouveau", "NovaCore"} {
		t.Run(holder, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t, `[ "$BOOT" != boot-1 ] || echo 'NVRM: GPU 0000:01:00.0 is already bound to `+holder+`.'`)
			r, err := p.run(p.config())
			if err != nil || r.Reboots != 1 || p.trials() != "reboot: kept" || r.Remedies[0].Cause != "nouveau-holds" {
				t.Errorf("%v, %d reboots, tried %s, %+v", err, r.Reboots, p.trials(), r.Remedies)
			}
		})
	}
}

func TestWrongFlavorIsExchangedOnlyWhenAsked(t *testing.T) {
	t.Parallel()
	const wrong = "NVRM: installed in this system requires use of the NVIDIA open kernel modules."
	symptom := func(p string) string { return "[ -e " + p + " ] || echo '" + wrong + "'" }
	p := newPatient(t, "")
	p.shell.Tool("dmesg", symptom(sh.Quote(filepath.Join(p.root, "flavor"))))
	if _, err := p.run(p.config()); err == nil || p.trials() != "" {
		t.Errorf("unasked: %v, tried %s", err, p.trials())
	}
	p.want.Flavor = "proprietary"
	cfg := p.config()
	cfg.Remedies = engine.AllRemedies
	p.shell.Tool("dmesg", "echo '"+wrong+"'")
	if _, err := p.run(cfg); err == nil || p.trials() != "" {
		t.Errorf("against the user's word: %v, tried %s", err, p.trials())
	}
	p.want.Flavor = ""
	p.shell.Tool("dmesg", symptom(sh.Quote(filepath.Join(p.root, "flavor"))))
	if err := os.Remove(filepath.Join(p.root, "flavor")); err != nil {
		t.Fatal(err)
	}
	if r, err := p.run(cfg); err != nil || p.trials() != "flavor open: kept" || p.wants.Flavor != "open" || r.Reboots != 1 {
		t.Errorf("asked: %v, %d reboots, tried %s, %+v", err, r.Reboots, p.trials(), r.Remedies)
	}
}

// What a diagnosis found and no proof of install shows is tried first; whether it helped the same look tells.
func TestDiagnosisIsFollowedWhereInstallHasNothingToDo(t *testing.T) {
	t.Parallel()
	const hmm = "nvidia-uvm: uvm_pmm_gpu.c: devmem_alloc_pagemap: request_free_mem_region() err -34"
	for name, helps := range map[string]bool{"it helps": true, "it does not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t, "")
			look := func(ctx context.Context, conn *guest.Conn) ([]diagnosis.Verdict, error) {
				res, err := conn.Run(ctx, guest.Command{Script: "cat " + sh.Quote(p.root+"/options.loaded") + " 2>/dev/null || true"})
				if err != nil || helps && strings.Contains(string(res.Stdout), "uvm_disable_hmm=1") {
					return nil, err
				}
				return diagnosis.Read("kernel log", strings.NewReader(hmm))
			}
			cfg := p.config()
			cfg.Look = look
			first, err := diagnosis.Read("kernel log", strings.NewReader(hmm))
			if err != nil {
				t.Fatal(err)
			}
			cfg.First = first
			r, err := p.run(cfg)
			_, kept := os.Stat(filepath.Join(p.root, "options"))
			if helps && (err != nil || r.Reboots != 1 || kept != nil || p.trials() != "module-option nvidia_uvm uvm_disable_hmm=1: kept") {
				t.Errorf("%v, %d reboots, tried %s, options %v", err, r.Reboots, p.trials(), kept)
			}
			var step *engine.StepError
			if !helps && (!errors.As(err, &step) || !step.Verify || len(step.Tried) != 1 || r.Reboots != 2 || kept == nil || p.trials() != "module-option nvidia_uvm uvm_disable_hmm=1: back") {
				t.Errorf("%v, %d reboots, tried %s, options %v", err, r.Reboots, p.trials(), kept)
			}
		})
	}
}

func TestRemedyThatCannotBeBroughtAboutIsGivenUp(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "echo 'nvidia 0000:01:00.0: Direct firmware load for nvidia/595.71.05/gsp_ga10x.bin failed with error -2'")
	cfg := p.config()
	cfg.Plan = func(f facts.Facts) (plan.Plan, error) {
		pl, err := p.plan(f)
		if p.wants.Firmware {
			bad := with("initramfs-firmware", filepath.Join(p.root, "hook"), "x", false)
			bad.Actions = []action.Action{action.Run{Title: "look for the firmware", Script: "echo 'the guest has no GSP firmware' >&2; exit 1"}}
			pl.Segments[0].Items = append(pl.Segments[0].Items, bad)
		}
		return pl, err
	}
	for range 2 {
		r, err := p.run(cfg)
		var step *engine.StepError
		if !errors.As(err, &step) || step.Step != "module" || !slices.Equal(step.Tried, []string{"initramfs firmware"}) {
			t.Fatalf("%v, %+v", err, r.Error)
		}
		if p.trials() != "initramfs firmware: back" {
			t.Errorf("tried %s", p.trials())
		}
	}
}

// The fabric manager refuses every driver but its own version's. Running install again is the remedy: the step
// itself, as it is, brings the exact version about.
func TestFabricManagerIsBroughtToExactlyTheDriversVersion(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	have, asked, active := filepath.Join(l.root, "fm-version"), filepath.Join(l.root, "asked"), filepath.Join(l.root, "active")
	l.write("fm-version", "535.161.08-1\n")
	l.shell.Tool("dpkg-query", `echo "installed bash 5.2.15-2"; echo "installed nvidia-fabricmanager-535 $(cat `+sh.Quote(have)+`)"`)
	l.shell.Tool("apt-cache", `case "$*" in *nvidia-fabricmanager-535*) printf 'nvidia-fabricmanager-535:\n  Candidate: 535.183.01-1\n' ;; esac`)
	l.shell.Tool("apt-get", `case $1 in
update) ;;
install) for last in "$@"; do :; done; echo "$last" >>`+sh.Quote(asked)+`; echo 535.183.01-1 >`+sh.Quote(have)+` ;;
*) echo "unplanned: apt-get $*" >&2; exit 1 ;;
esac`)
	l.shell.Tool("systemctl", `case "$1 ${2:-}" in
"is-enabled nvidia-fabricmanager.service") echo enabled ;;
"is-active nvidia-fabricmanager.service") if [ -e `+sh.Quote(active)+` ]; then echo active; else echo failed; fi ;;
"is-active --quiet") exit 3 ;;
"enable nvidia-fabricmanager.service") ;;
"restart nvidia-fabricmanager.service") touch `+sh.Quote(active)+` ;;
*) echo "unplanned: systemctl $*" >&2; exit 1 ;;
esac`)
	l.shell.Tool("journalctl", `echo "fabric manager NVIDIA GPU driver interface version 535.161.08 don't match with driver version 535.183.01."`)
	distro, err := distros.For(facts.OS{ID: "debian", VersionID: "12"}, "")
	if err != nil {
		t.Fatal(err)
	}
	cfg := l.config()
	cfg.Remedies = engine.SafeRemedies
	cfg.Plan = func(facts.Facts) (plan.Plan, error) {
		in := steps.Input{Distro: distro, Choice: choice.Choice{Branch: 535, Version: "535.183.01"}, Facts: facts.Facts{
			Arch: "x86_64", Init: facts.Init{Name: "systemd"}, GPUs: []facts.PCI{{Address: "0000:0a:00.0", Class: "030200"}}, Other: []facts.PCI{{Address: "0000:05:00.0", Class: "068000"}},
		}}
		only := slices.DeleteFunc(steps.Install(), func(s steps.Step) bool { return s.ID != "fabric-manager" })
		p, err := plan.Build(in, only)
		p.Distro.Packages = filePackages{file: filepath.Join(l.root, "packages")}
		return p, err
	}
	r, err := l.run(cfg)
	got, _ := os.ReadFile(asked)
	if err != nil || states(r) != "fabric-manager=changed" || strings.TrimSpace(string(got)) != "nvidia-fabricmanager-535=535.183.01*" {
		t.Fatalf("%v, %s, asked for %q", err, states(r), got)
	}
	if r, err = l.run(cfg); err != nil || states(r) != "fabric-manager=met" {
		t.Errorf("the second time: %v, %s", err, states(r))
	}
}

// Headers that vanish between their step and the one that needs them: the run goes back to their step, once.
func TestStepThatSeesToTheCauseIsGoneBackTo(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		vanish int // how often they do
		result string
	}{"once": {1, engine.Helped}, "again and again": {9, engine.NoHelp}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t, "")
			headers := filepath.Join(p.root, "headers")
			cfg := p.config()
			cfg.Plan = func(facts.Facts) (plan.Plan, error) {
				driver := plan.Item{ID: "driver", Title: "build", Check: "[ -e " + sh.Quote(headers+".used") + " ] || { echo not built; exit 1; }",
					Actions: []action.Action{action.Run{Title: "build", Script: "[ -e " + sh.Quote(headers) + " ] && touch " + sh.Quote(headers+".used") + " || { echo 'Error! Your kernel headers for kernel 6.1.0-1-amd64 cannot be found at /lib/modules/6.1.0-1-amd64/build or /lib/modules/6.1.0-1-amd64/source.'; exit 1; }"}}}
				return plan.Plan{Distro: distros.Distro{Packages: filePackages{file: filepath.Join(p.root, "packages")}},
					Segments: []plan.Segment{{Items: []plan.Item{with("headers", headers, "x", false), driver}}}}, nil
			}
			left := c.vanish
			cfg.Tell = func(e engine.Event) {
				if e.Kind == engine.StepBegan && e.Step == "driver" && left > 0 {
					left--
					if err := os.Remove(headers); err != nil {
						t.Error(err)
					}
				}
			}
			r, err := p.run(cfg)
			if want := []engine.RemedyReport{{Remedy: "step headers", Cause: "dkms-no-headers", Result: c.result}}; !slices.Equal(r.Remedies, want) || p.trials() != "" {
				t.Errorf("%+v, tried %s", r.Remedies, p.trials())
			}
			var step *engine.StepError
			if c.vanish == 1 && err != nil || c.vanish > 1 && (!errors.As(err, &step) || step.Verify || step.Verdict == nil || step.Verdict.ID != "dkms-no-headers") {
				t.Errorf("%v, %+v", err, r.Error)
			}
		})
	}
}

func TestFirmwareInTheInitramfsIsKeptWhenItHelps(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "")
	hook := filepath.Join(p.root, "hook")
	p.shell.Tool("dmesg", "[ -e "+sh.Quote(hook)+" ] || echo 'NVRM: RmFetchGspRmImages: No firmware image found'")
	cfg := p.config()
	cfg.Plan = func(f facts.Facts) (plan.Plan, error) {
		pl, err := p.plan(f)
		if p.wants.Firmware || p.wants.DropFirmware {
			text := map[bool]string{true: "x"}[p.wants.Firmware]
			pl.Segments[0].Items = append(pl.Segments[0].Items, with("initramfs-firmware", hook, text, false))
		}
		return pl, err
	}
	r, err := p.run(cfg)
	if err != nil || r.Reboots != 1 || p.trials() != "initramfs firmware: kept" {
		t.Fatalf("%v, %d reboots, tried %s", err, r.Reboots, p.trials())
	}
	if r, err = p.run(cfg); err != nil || r.Reboots != 0 {
		t.Errorf("again: %v, %d reboots", err, r.Reboots)
	}
}

// CUDA's own error is enough: a proof that ends with it is helped by the module's option.
func TestProofThatEndsWithCUDAsErrorIsHelpedByTheModulesOption(t *testing.T) {
	t.Parallel()
	p := newPatient(t, `case $OPTIONS in *uvm_disable_hmm=1*) ;; *) echo 'cuInit returned 3' ;; esac`)
	r, err := p.run(p.config())
	if err != nil || r.Reboots != 1 || p.trials() != "module-option nvidia_uvm uvm_disable_hmm=1: kept" || r.Remedies[0].Cause != "cuda-3" {
		t.Errorf("%v, %d reboots, tried %s, %+v", err, r.Reboots, p.trials(), r.Remedies)
	}
}

func TestRunThatMayTryNothingWritesNothingOfTrials(t *testing.T) {
	t.Parallel()
	p := newPatient(t, always)
	cfg := p.config()
	cfg.MaxReboots = 2 // one argument, and its way back
	if _, err := p.run(cfg); err == nil {
		t.Fatal("a guest beyond help was helped")
	}
	before := len(p.journal())
	cfg.Remedies = engine.NoRemedies
	cfg.Reboot = choice.RebootNever
	if r, err := p.run(cfg); err == nil || len(p.journal()) != before || !slices.Equal(r.Error.Tried, []string{"kernel-arg pci=realloc"}) {
		t.Errorf("%v, %d records more", err, len(p.journal())-before)
	}
}

// The proof that the next boot has its driver comes after the work: as long as that fails nobody boots the guest.
func TestGuestWhoseWorkFailsIsNotBootedAsARemedy(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "")
	cfg := p.config()
	cfg.Plan = func(facts.Facts) (plan.Plan, error) {
		busy := plan.Item{ID: "driver", Title: "load", Check: "exit 1", Actions: []action.Action{action.Run{Title: "load", Script: "echo 'modprobe: FATAL: Module nvidia is in use.'; exit 1"}}}
		return plan.Plan{Distro: distros.Distro{Packages: filePackages{file: filepath.Join(p.root, "packages")}}, Segments: []plan.Segment{{Items: []plan.Item{busy}}}}, nil
	}
	r, err := p.run(cfg)
	var step *engine.StepError
	if !errors.As(err, &step) || r.Reboots != 0 || p.trials() != "" || step.Verdict == nil || step.Verdict.ID != "module-busy" {
		t.Fatalf("%v, %d reboots, tried %s, %+v", err, r.Reboots, p.trials(), step)
	}
}
