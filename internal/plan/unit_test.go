package plan

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/steps"
)

func withUnit(t *testing.T, f facts.Facts, w choice.Want) (Plan, error) {
	t.Helper()
	in, err := Installed(f, w)
	if err != nil {
		t.Fatal(err)
	}
	return ProofsWithUnit(in, steps.Install())
}

func unitItem(t *testing.T, p Plan) Item {
	t.Helper()
	for _, it := range p.Items() {
		if it.ID == "verify-unit" && !it.Fresh && it.Actions != nil {
			return it
		}
		if it.Fresh {
			break // a proof: what is left in the guest comes before all of them
		}
	}
	t.Fatal("no unit is left before the proofs")
	return Item{}
}

func bootScript(t *testing.T, it Item) string {
	t.Helper()
	for _, a := range it.Actions {
		if w, ok := a.(action.Write); ok && strings.HasSuffix(w.Path, "/verify.sh") {
			return string(w.Data)
		}
	}
	t.Fatal("no script is written")
	return ""
}

// TestTheUnitChecksWhatVerifyChecks holds the script against the plan of verify without the unit.
func TestTheUnitChecksWhatVerifyChecks(t *testing.T) {
	f := guestFacts(t, "debian12-t4-driver535")
	p, err := withUnit(t, f, choice.Want{})
	if err != nil {
		t.Fatal(err)
	}
	script := bootScript(t, unitItem(t, p))
	checkShell(t, []byte(script))
	in, err := Installed(f, choice.Want{})
	if err != nil {
		t.Fatal(err)
	}
	alone, err := Proofs(in, steps.Install())
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Items()) != len(alone.Items())+1 {
		t.Errorf("%d items with the unit, %d without", len(p.Items()), len(alone.Items()))
	}
	for i, it := range alone.Items() {
		if p.Items()[i+1].Check != it.Check {
			t.Errorf("%s is checked otherwise with the unit", it.ID)
		}
		if !strings.Contains(script, "(set -eu\n"+it.Check+"\n)") {
			t.Errorf("the script does not check %s as verify does", it.ID)
		}
	}
}

// TestAnImagesUnitChecksTheGPUsOfItsFirstBoot is about a guest that has a driver and no GPU yet.
func TestAnImagesUnitChecksTheGPUsOfItsFirstBoot(t *testing.T) {
	f := guestFacts(t, "debian12-t4-driver535")
	f.GPUs = nil
	p, err := withUnit(t, f, choice.Want{NoGPU: true})
	if err != nil {
		t.Fatal(err)
	}
	script := bootScript(t, unitItem(t, p))
	checkShell(t, []byte(script))
	for _, part := range []string{"for a in $(gpus); do", `"$count" -eq $(gpus | grep -c .)`, "no NVIDIA GPU in the guest", "verify-smi"} {
		if !strings.Contains(script, part) {
			t.Errorf("no %q in the script", part)
		}
	}
	// An image may have been built with a compiler that its first boot has not.
	if first := p.Items()[0]; first.ID != "probe" || strings.Contains(script, "base64 -d") || !strings.Contains(script, "/var/lib/gpuguest/cuda-probe-") {
		t.Errorf("the first item is %s; the first boot would compile the probe", first.ID)
	}
	if strings.Contains(script, "verify-offline") {
		t.Error("the first boot would be content without a GPU")
	}
	var now []string
	for _, it := range p.Items() {
		now = append(now, string(it.ID))
	}
	if got := strings.Join(now, " "); !strings.Contains(got, "verify-offline") || strings.Contains(got, "verify-smi") {
		t.Errorf("what is proved now: %s", got)
	}
}

func TestAGuestWithoutSystemdIsRefusedTheUnit(t *testing.T) {
	for init, says := range map[string]string{"openrc": "init system is openrc", "": "unknown which init system"} {
		f := guestFacts(t, "debian12-t4-driver535")
		f.Init.Name = init
		_, err := withUnit(t, f, choice.Want{})
		var refusal *Refusal
		if !errors.As(err, &refusal) || !strings.Contains(refusal.Reason, says) || !strings.Contains(refusal.Reason, "--install-unit needs systemd") {
			t.Errorf("%q: %v", init, err)
		}
	}
}

// TestTheUnitIsInstalledOnceAndCanBeTakenBack carries the step out in a folder: what systemctl enables is a link,
// as in a guest.
func TestTheUnitIsInstalledOnceAndCanBeTakenBack(t *testing.T) {
	g := newGuestDir(t)
	tools := t.TempDir()
	const systemctl = `#!/bin/sh
wants=$ROOT/etc/systemd/system/multi-user.target.wants
case $1 in
daemon-reload) ;;
enable) mkdir -p "$wants" && ln -s "../$2" "$wants/$2" ;;
is-enabled) [ -L "$wants/$2" ] && echo enabled ;;
*) echo "unplanned: systemctl $*" >&2; exit 99 ;;
esac
`
	if err := os.WriteFile(filepath.Join(tools, "systemctl"), []byte(systemctl), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", tools+":"+os.Getenv("PATH"))
	t.Setenv("ROOT", g.dir)
	p, err := withUnit(t, guestFacts(t, "debian12-t4-driver535"), choice.Want{})
	if err != nil {
		t.Fatal(err)
	}
	it := unitItem(t, p)
	moved := strings.NewReplacer("/usr/local/lib/gpuguest", g.dir+"/usr/local/lib/gpuguest", "/etc/systemd/system", g.dir+"/etc/systemd/system")
	it.Check = moved.Replace(it.Check)
	for i, a := range it.Actions {
		switch a := a.(type) {
		case action.Write:
			a.Path, a.Data = moved.Replace(a.Path), []byte(moved.Replace(string(a.Data)))
			it.Actions[i] = a
		case action.Run:
			a.Script = moved.Replace(a.Script)
			it.Actions[i] = a
		}
	}
	if code, out := g.run(it); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	if code, out := g.run(it); code != 0 || !strings.Contains(out, "already so") {
		t.Errorf("the second time: exit %d: %s", code, out)
	}
	if _, err := os.Stat(filepath.Join(g.state, "verify.due")); err != nil {
		t.Error(err)
	}
	// What uninstall removes is what the ledger says was absent before.
	var absent []string
	root := filepath.Join(g.state, "before", "absent")
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			absent = append(absent, strings.TrimPrefix(path, root+g.dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	const want = "/etc/systemd/system/gpuguest-verify.service /etc/systemd/system/multi-user.target.wants/gpuguest-verify.service /usr/local/lib/gpuguest/verify.sh"
	if got := strings.Join(absent, " "); got != want {
		t.Errorf("the ledger has %s, want %s", got, want)
	}
	// The boot was verified: the condition is gone, the result is there, and the step has nothing to do.
	if err := os.Rename(filepath.Join(g.state, "verify.due"), filepath.Join(g.state, "verify.json")); err != nil {
		t.Fatal(err)
	}
	if code, out := g.run(it); code != 0 || !strings.Contains(out, "already so") {
		t.Errorf("after the boot: exit %d: %s", code, out)
	}
}

func TestTheUnitIsWhatSystemdTakes(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze")
	}
	p, err := withUnit(t, guestFacts(t, "debian12-t4-driver535"), choice.Want{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, a := range unitItem(t, p).Actions {
		w, ok := a.(action.Write)
		if !ok || !strings.HasSuffix(w.Path, ".service") {
			continue
		}
		path := filepath.Join(dir, filepath.Base(w.Path))
		if err := os.WriteFile(path, w.Data, 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(analyze, "verify", path).CombinedOutput(); err != nil || strings.Contains(string(out), filepath.Base(path)) {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	t.Error("no unit is written")
}
