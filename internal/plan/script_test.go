package plan

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/facts"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// filePackages is a package manager whose installed packages are the lines of a file.
type filePackages struct {
	distros.Manager
	file string
}

func (f filePackages) List() string   { return "sort " + sh.Quote(f.file) }
func (f filePackages) Manual() string { return ":" }

// guestDir is a folder that stands for a guest: gpuguest's state, a package list and files.
type guestDir struct {
	t              *testing.T
	dir, state     string
	packages, file string
}

func newGuestDir(t *testing.T) guestDir {
	t.Helper()
	if _, err := os.Stat("/proc/sys/kernel/random/boot_id"); err != nil {
		t.Skip("the step library reads Linux's boot_id")
	}
	d := t.TempDir()
	g := guestDir{t: t, dir: d, state: filepath.Join(d, "state"), packages: filepath.Join(d, "packages"), file: filepath.Join(d, "etc", "it's.conf")}
	if err := os.MkdirAll(filepath.Dir(g.file), 0o755); err != nil {
		t.Fatal(err)
	}
	g.write(g.packages, "bash 5\n")
	return g
}

func (g guestDir) write(path, text string) {
	g.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		g.t.Fatal(err)
	}
}

func (g guestDir) read(path string) string {
	g.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		g.t.Fatal(err)
	}
	return string(b)
}

// run carries out one item's script with the machine's own sh.
func (g guestDir) run(it Item) (code int, out string) {
	g.t.Helper()
	p := Plan{Distro: distros.Distro{Packages: filePackages{file: g.packages}}}
	cmd := exec.Command("/bin/sh")
	cmd.Stdin = strings.NewReader(p.Script(it))
	cmd.Env = append(os.Environ(), "GPUGUEST_STATE="+g.state)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil {
			g.t.Fatal(err)
		}
	}
	return cmd.ProcessState.ExitCode(), b.String()
}

func (g guestDir) events() []string {
	g.t.Helper()
	var found []string
	for line := range strings.Lines(g.read(filepath.Join(g.state, "journal"))) {
		var r struct{ Event, Step string }
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			found = append(found, "torn")
			continue
		}
		found = append(found, r.Event+" "+r.Step)
	}
	return found
}

func (g guestDir) item(script string) Item {
	return Item{
		ID: "demo", Title: "demo", AtBoot: true,
		Check:   `[ -e ` + sh.Quote(g.file) + ` ] || { echo "it's missing"; exit 1; }`,
		Actions: []action.Action{action.Run{Title: "do it's work", Script: script}},
	}
}

func wantEvents(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "; ") != strings.Join(want, "; ") {
		t.Errorf("journal holds %q, want %q", got, want)
	}
}

func TestScriptActsOnceAndThenFindsItMet(t *testing.T) {
	g := newGuestDir(t)
	it := g.item("echo content | put " + sh.Quote(g.file) + " 0600")
	if code, out := g.run(it); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	code, out := g.run(it)
	if code != 0 || !strings.Contains(out, "gpuguest: already so") {
		t.Fatalf("second run: exit %d: %s", code, out)
	}
	wantEvents(t, g.events(), "begin demo", "end demo")
	if !strings.Contains(g.read(filepath.Join(g.state, "journal")), `"at_boot":true`) {
		t.Error("the journal does not say that the change waits for a boot")
	}
}

func TestScriptExitsAsTheActionThatFailed(t *testing.T) {
	g := newGuestDir(t)
	code, out := g.run(g.item("false\necho this must not run"))
	if code != 1 || strings.Contains(out, "must not run") {
		t.Fatalf("exit %d: %s", code, out)
	}
	code, _ = g.run(g.item("exit 100"))
	if code != 100 {
		t.Fatalf("exit %d, want 100", code)
	}
	wantEvents(t, g.events(), "begin demo", "failed demo", "begin demo", "failed demo")
}

func TestScriptTellsWorkThatMissedItsAim(t *testing.T) {
	g := newGuestDir(t)
	code, out := g.run(g.item("true"))
	if code != NotMet || !strings.Contains(out, "gpuguest: applied, but it's missing") {
		t.Fatalf("exit %d: %s", code, out)
	}
}

func TestPutKeepsWhatWasThereBeforeTheFirstWrite(t *testing.T) {
	g := newGuestDir(t)
	other := filepath.Join(g.dir, "etc", "other")
	g.write(g.file, "the owner's\n")
	it := g.item("echo first | put " + sh.Quote(g.file) + " 0644\necho second | put " + sh.Quote(g.file) + " 0644\necho new | put " + sh.Quote(other) + " 0640")
	it.Check = "[ -e " + sh.Quote(other) + " ]"
	if code, out := g.run(it); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	if got := g.read(g.file); got != "second\n" {
		t.Errorf("the file holds %q", got)
	}
	if got := g.read(filepath.Join(g.state, "before", "files") + g.file); got != "the owner's\n" {
		t.Errorf("kept is %q", got)
	}
	if _, err := os.Stat(filepath.Join(g.state, "before", "absent") + other); err != nil {
		t.Error("it is not recorded that the other file was not there")
	}
	info, err := os.Stat(other)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	left, _ := filepath.Glob(filepath.Join(g.dir, "etc", "*gpuguest*"))
	if len(left) > 0 {
		t.Errorf("temporary files are left: %q", left)
	}
}

// TestPutLeavesNothingWhenItIsDoneAgainAfterACut kills a write before its rename, as a power cut does.
func TestPutLeavesNothingWhenItIsDoneAgainAfterACut(t *testing.T) {
	g := newGuestDir(t)
	if code, out := g.run(g.item("mv() { case $* in *" + sh.Quote(g.file) + ") kill -9 $$ ;; *) command mv \"$@\" ;; esac; }\necho half | put " + sh.Quote(g.file) + " 0644")); code == 0 {
		t.Fatalf("the cut did not happen: %s", out)
	}
	left := func() []string {
		l, err := filepath.Glob(g.file + ".gpuguest*")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if len(left()) == 0 {
		t.Fatal("the cut left no temporary file, so this test tests nothing")
	}
	if code, out := g.run(g.item("echo whole | put " + sh.Quote(g.file) + " 0644")); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	if l := left(); len(l) > 0 {
		t.Errorf("left beside the file: %q", l)
	}
}

func TestPackagesThatAStepAddsAreInTheLedger(t *testing.T) {
	g := newGuestDir(t)
	it := g.item("printf 'bash 6\\ndkms 3\\n' >" + sh.Quote(g.packages) + "\ntouch " + sh.Quote(g.file))
	it.Actions = []action.Action{action.Run{Title: "install", Script: it.Actions[0].(action.Run).Script, Packages: true}}
	if code, out := g.run(it); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	if got := g.read(filepath.Join(g.state, "packages")); got != "added dkms - 3\nchanged bash 5 6\n" {
		t.Errorf("the ledger holds %q", got)
	}
}

// TestPowerCutInThePackageManagerLosesNoPackageFromTheLedger leaves the bracket open, as a power cut does,
// and lets the next step close it.
func TestPowerCutInThePackageManagerLosesNoPackageFromTheLedger(t *testing.T) {
	g := newGuestDir(t)
	cut := g.item("printf 'bash 5\\ngcc 12\\n' >" + sh.Quote(g.packages) + "\nkill -9 $PPID 2>/dev/null; kill -9 $$")
	cut.Actions = []action.Action{action.Run{Title: "install", Script: strings.Replace(cut.Actions[0].(action.Run).Script, "kill -9 $PPID 2>/dev/null; ", "", 1), Packages: true}}
	g.run(cut)
	if _, err := os.Stat(filepath.Join(g.state, "bracket")); err != nil {
		t.Fatal("the cut left no open bracket, so this test tests nothing")
	}
	again := g.item("printf 'bash 5\\ngcc 12\\ndkms 3\\n' >" + sh.Quote(g.packages) + "; touch " + sh.Quote(g.file))
	again.Actions = []action.Action{action.Run{Title: "install", Script: again.Actions[0].(action.Run).Script, Packages: true}}
	if code, out := g.run(again); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	if got := g.read(filepath.Join(g.state, "packages")); got != "added gcc - 12\nadded dkms - 3\n" {
		t.Errorf("the ledger holds %q", got)
	}
}

func TestTornJournalLineCostsItselfOnly(t *testing.T) {
	g := newGuestDir(t)
	if err := os.MkdirAll(g.state, 0o700); err != nil {
		t.Fatal(err)
	}
	g.write(filepath.Join(g.state, "journal"), `{"time":"2026-`)
	if code, out := g.run(g.item("touch " + sh.Quote(g.file))); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	wantEvents(t, g.events(), "torn", "begin demo", "end demo")
}

func TestChecksTellEachOutcomeAndPassOverFreshOnes(t *testing.T) {
	items := []Item{
		{ID: "one", Check: "echo fine"},
		{ID: "two", Check: "echo no luck\necho twice >&2\nexit 3"},
		{ID: "three", Check: "echo --n three 0\nfalse"},
		{ID: "four", Check: "true", Fresh: true},
	}
	out, err := exec.Command("/bin/sh", "-c", Checks(distros.Distro{}, items, "--nonce")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := ParseChecks(string(out), "--nonce")
	for id, want := range map[steps.ID]Outcome{
		"one":   {ID: "one", Met: true, Why: "fine"},
		"two":   {ID: "two", Why: "no luck\ntwice"},
		"three": {ID: "three", Why: "--n three 0"},
	} {
		if got[id] != want {
			t.Errorf("%s: %+v, want %+v", id, got[id], want)
		}
	}
	if _, asked := got["four"]; asked {
		t.Error("a step that needs a fresh boot was asked although work before it is open")
	}
}

// TestChecksCompareAFewLinesWithoutAProgram puts a cmp in the way that says what it was asked.
func TestChecksCompareAFewLinesWithoutAProgram(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cmp"), []byte("#!/bin/sh\necho \"asked $*\"\nexit 2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	const text = "# it's \\n a %s\n\n  indented \\ \nlast\n"
	files := map[string]string{
		"same": text, "torn": strings.TrimSuffix(text, "\n"), "more": text + "\n", "less": "# it's\n", "empty": "", "other": strings.Replace(text, "last", "Last", 1),
	}
	var items []Item
	for name, holds := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(holds), 0o644); err != nil {
			t.Fatal(err)
		}
		items = append(items, Item{ID: steps.ID(name), Check: "printf %s " + sh.Quote(text) + " | cmp -s - " + sh.Quote(path) + " || { echo differs; exit 1; }"})
	}
	items = append(items, Item{ID: "gone", Check: "printf x | cmp -s - " + sh.Quote(filepath.Join(dir, "nothing")) + " || exit 1"}, Item{ID: "else", Check: "cmp a b"})
	cmd := exec.Command("/bin/sh", "-c", Checks(distros.Distro{}, items, "--nonce"))
	cmd.Env = []string{"PATH=" + dir + ":/usr/bin:/bin"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	got := ParseChecks(string(out), "--nonce")
	for name := range files {
		if o := got[steps.ID(name)]; o.Met != (name == "same") || o.Why != map[bool]string{true: "", false: "differs"}[o.Met] {
			t.Errorf("%s: %+v", name, o)
		}
	}
	if o := got["gone"]; o.Met || o.Why != "asked -s - "+filepath.Join(dir, "nothing") {
		t.Errorf("of a file that is not there: %+v", o)
	}
	if o := got["else"]; o.Met || o.Why != "asked a b" {
		t.Errorf("of another question: %+v", o)
	}
}

// A module that several checks ask about is looked up once, in front of them, and each gets its fields and the exit code.
func TestChecksLookAModuleUpOnce(t *testing.T) {
	dir := t.TempDir()
	tool := "#!/bin/sh\necho \"$*\" >>" + sh.Quote(filepath.Join(dir, "asked")) + "\ncase $2 in 6.1) printf 'filename: /x\\nversion:   5 *\\nalias: a*\\nlicense: x\\n\\tAB\\n' ;; 6.2) echo never >&2; exit 4 ;; *) echo 'alias: b' ;; esac\n"
	if err := os.WriteFile(filepath.Join(dir, "modinfo"), []byte(tool), 0o755); err != nil {
		t.Fatal(err)
	}
	ask := func(release string) string {
		return "info=$(modinfo -k " + release + " nvidia) || { echo \"exit $?\"; exit 1; }\necho \"$info\""
	}
	items := []Item{
		{ID: "one", Module: "-k 6.1 nvidia", Check: ask("6.1")},
		{ID: "two", Module: "-k 6.1 nvidia", Check: ask("6.1")},
		{ID: "three", Module: "-k 6.2 nvidia", Check: ask("6.2")},
		{ID: "four", Module: "-k 6.2 nvidia", Check: ask("6.2")},
		{ID: "five", Module: "-k 6.3 nvidia", Check: ask("6.3")},
	}
	cmd := exec.Command("/bin/sh", "-c", Checks(distros.Distro{}, items, "--nonce"))
	cmd.Env = []string{"PATH=" + dir + ":/usr/bin:/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := ParseChecks(string(out), "--nonce")
	const said = "version:   5 *\nlicense: x"
	for id, want := range map[steps.ID]Outcome{
		"one": {ID: "one", Met: true, Why: said}, "two": {ID: "two", Met: true, Why: said},
		"three": {ID: "three", Why: "exit 4"}, "four": {ID: "four", Why: "exit 4"},
		"five": {ID: "five", Met: true, Why: "alias: b"},
	} {
		if got[id] != want {
			t.Errorf("%s: %+v, want %+v", id, got[id], want)
		}
	}
	asked, err := os.ReadFile(filepath.Join(dir, "asked"))
	if want := "-k 6.1 nvidia\n-k 6.2 nvidia\n-k 6.3 nvidia\n"; err != nil || string(asked) != want {
		t.Errorf("the guest was asked %q, %v", asked, err)
	}
}

// An enabled unit is told by its link; what is not sure is left to systemctl.
func TestWhetherAUnitIsEnabledIsAskedOnlyWhereItsLinkDoesNotTell(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte("#!/bin/sh\necho \"asked $*\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	etc := filepath.Join(dir, "etc")
	wants := filepath.Join(etc, "multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(dir, "unit")
	if err := os.WriteFile(unit, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	link := func(to, name string) {
		t.Helper()
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
	}
	link(unit, filepath.Join(wants, "on.service"))
	link(unit, filepath.Join(wants, "masked.service"))
	link("/dev/null", filepath.Join(etc, "masked.service"))
	link(filepath.Join(dir, "gone"), filepath.Join(wants, "gone.service"))
	for args, want := range map[string]string{
		"is-enabled on.service":     "enabled\n",
		"is-enabled masked.service": "asked is-enabled masked.service\n",
		"is-enabled gone.service":   "asked is-enabled gone.service\n",
		"is-enabled none.service":   "asked is-enabled none.service\n",
		"is-active on.service":      "asked is-active on.service\n",
	} {
		cmd := exec.Command("/bin/sh", "-c", strings.ReplaceAll(isEnabled, "/etc/systemd/system", etc)+"systemctl "+args)
		cmd.Env = []string{"PATH=" + dir + ":/usr/bin:/bin"}
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != want {
			t.Errorf("%s: %q, %v, want %q", args, out, err, want)
		}
	}
}

// TestDataOfACheckIsReadAndNotShown: what a check prints for programs goes to Read, which may find that the
// check is not met after all, and what is no JSON goes nowhere.
func TestDataOfACheckIsReadAndNotShown(t *testing.T) {
	read := func(report, why string) func(string) (json.RawMessage, string) {
		return func(data string) (json.RawMessage, string) {
			if data != "{\n  }" {
				t.Errorf("read %q", data)
			}
			return json.RawMessage(report), why
		}
	}
	const mark = steps.DataMark
	items := []Item{
		{ID: "met", Check: "echo fine\necho '" + mark + "{'\necho '" + mark + "  }'\necho more", Read: read(`{"a":1}`, "")},
		{ID: "found", Check: "echo fine\nprintf '%s\\n' '" + mark + "{' '" + mark + "  }'", Read: read(`{"a":2}`, "but no")},
		{ID: "broken", Check: "printf '%s\\n' '" + mark + "{' '" + mark + "  }'", Read: read(`{"a":`, "")},
		{ID: "nobody", Check: "echo '" + mark + "{}'"},
		{ID: "none", Check: "echo fine", Read: func(string) (json.RawMessage, string) { t.Error("read what is not there"); return nil, "" }},
	}
	out, err := exec.Command("/bin/sh", "-c", Checks(distros.Distro{}, items, "--nonce")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := Judge(items, ParseChecks(string(out), "--nonce"))
	for id, want := range map[steps.ID]Outcome{
		"met":    {ID: "met", Met: true, Why: "fine\nmore", Data: `{"a":1}`},
		"found":  {ID: "found", Why: "fine\nbut no", Data: `{"a":2}`},
		"broken": {ID: "broken", Met: true},
		"nobody": {ID: "nobody", Met: true},
		"none":   {ID: "none", Met: true, Why: "fine"},
	} {
		if got[id] != want {
			t.Errorf("%s: %+v, want %+v", id, got[id], want)
		}
	}
}

// compilerPackages is a package manager that has one package, a compiler: a file that becomes "cc".
type compilerPackages struct {
	filePackages
	tools string // folder that programs are looked for in
}

func (c compilerPackages) Offered(...string) string       { return "true" }
func (c compilerPackages) Refresh(distros.Refresh) string { return "false" }
func (c compilerPackages) Quiet(script string) string     { return "(\n" + script + "\n)" }
func (c compilerPackages) Install(names ...string) string {
	return "ln -sf /usr/bin/gcc " + sh.Quote(c.tools) + "/cc && printf '%s 1\\n' " + sh.Join(names...) + " >>" + sh.Quote(c.file)
}

// TestProbeIsBuiltOnceAndTakenBack builds the probe in a folder that stands for a guest without a compiler, builds
// it again to no effect, and takes it back with what restore-files does.
func TestProbeIsBuiltOnceAndTakenBack(t *testing.T) {
	if _, err := os.Stat("/usr/bin/gcc"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("no C compiler, and in CI that is a failure")
		}
		t.Skip("no C compiler")
	}
	g := newGuestDir(t)
	tools := filepath.Join(g.dir, "tools")
	if err := os.Mkdir(tools, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "mkdir", "mv", "cp", "rm", "chmod", "ln", "sync", "tail", "date", "sort", "awk", "cmp", "as", "ld"} {
		p, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(p, filepath.Join(tools, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", tools)
	if err := os.MkdirAll(g.state, 0o700); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(g.state, "cuda-probe-000000000000")
	g.write(old, "an earlier gpuguest's")

	manager := compilerPackages{filePackages{file: g.packages}, tools}
	d := distros.Distro{Packages: manager, Compiler: []string{"gcc", "libc6-dev"}}
	in := steps.Input{Distro: d, Facts: facts.Facts{GPUs: []facts.PCI{{Address: "0000:01:00.0"}}}}
	// The state folder of the step is the guest's; here it is the test's.
	run := func(all []steps.Step, id steps.ID) (int, string) {
		t.Helper()
		p, err := Build(in, all)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range p.Items() {
			if it.ID != id {
				continue
			}
			cmd := exec.Command("/bin/sh", "-c", strings.ReplaceAll(p.Script(it), "/var/lib/gpuguest/cuda", g.state+"/cuda"))
			cmd.Env = append(os.Environ(), "GPUGUEST_STATE="+g.state)
			out, err := cmd.CombinedOutput()
			if err != nil && cmd.ProcessState == nil {
				t.Fatal(err)
			}
			return cmd.ProcessState.ExitCode(), string(out)
		}
		t.Fatalf("%s is not in the plan", id)
		return 0, ""
	}
	one := func(id steps.ID, all []steps.Step) []steps.Step {
		return all[slices.IndexFunc(all, func(s steps.Step) bool { return s.ID == id }):][:1]
	}
	if code, out := run(one("probe", steps.Install()), "probe"); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	made, err := filepath.Glob(filepath.Join(g.state, "cuda-probe-*"))
	if err != nil || len(made) != 2 || !strings.HasSuffix(made[1], ".c") {
		t.Fatalf("%v, %v", made, err)
	}
	if out, err := exec.Command(made[0], "--expect", "x").Output(); err == nil || !strings.Contains(string(out), `"tool":"probe"`) {
		t.Errorf("what was built says %s, %v", out, err)
	}
	if got := g.read(filepath.Join(g.state, "packages")); got != "added gcc - 1\nadded libc6-dev - 1\n" {
		t.Errorf("the ledger holds %q", got)
	}
	if code, out := run(one("probe", steps.Install()), "probe"); code != 0 || !strings.Contains(out, "already so") {
		t.Errorf("second time: exit %d: %s", code, out)
	}
	for _, p := range made {
		if _, err := os.Stat(filepath.Join(g.state, "before", "absent") + p); err != nil {
			t.Errorf("the ledger does not know %s", p)
		}
	}
	in.Facts.State.Absent = made
	if code, out := run(one("restore-files", steps.Uninstall()), "restore-files"); code != 0 {
		t.Errorf("restore-files: exit %d: %s", code, out)
	}
	if left, _ := filepath.Glob(filepath.Join(g.state, "cuda-probe*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func FuzzParseChecks(f *testing.F) {
	f.Add("fine\n--nonce one 0\n", "--nonce")
	f.Add("--nonce", "--nonce")
	f.Add("", "")
	f.Fuzz(func(t *testing.T, out, nonce string) {
		for id, o := range ParseChecks(out, nonce) {
			if o.ID != id {
				t.Errorf("%q is filed under %q", o.ID, id)
			}
		}
	})
}
