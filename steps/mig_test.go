package steps

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/assets"
)

// migSMI is nvidia-smi as far as mig.sh asks it, over files: current and pending mode, and instances, of one GPU
// each. RESET: the mode changes at the next boot alone. It fails on anything unplanned.
const migSMI = `#!/bin/sh
echo "$*" >>"$D/log"
gpu() { [ -e "$D/$1.mode" ] || { echo "No devices were found"; exit 6; }; read -r current pending <"$D/$1.mode"; }
table() {
	echo "+----------------------------------------------------+"
	echo "| GPU   Name          Profile  Instance   Placement  |"
	[ -s "$1" ] || { echo "No GPU instances found: Not Found"; exit 6; }
	while read -r p; do echo "|   0  MIG $p       9        1          4:4     |"; done <"$1"
}
case "$*" in
"-i "*" --query-gpu=mig.mode.current,mig.mode.pending --format=csv,noheader") gpu "$2"; echo "$current, $pending" ;;
"-i "*" -mig "[01])
	gpu "$2"
	[ -z "$BUSY" ] || { echo "Unable to enable MIG Mode for GPU $2: In use by another client"; exit 19; }
	word=Disabled
	[ "$4" = 0 ] || word=Enabled
	if [ -n "$RESET" ]; then echo "$current $word"; else echo "$word $word"; fi >"$D/$2.mode"
	;;
"mig -lgi -i "*) gpu "$4"; table "$D/$4.gi" ;;
"mig -lci -i "*) gpu "$4"; table "$D/$4.ci" ;;
"mig -dci -i "*) gpu "$4"; : >"$D/$4.ci" ;;
"mig -dgi -i "*) gpu "$4"; [ ! -s "$D/$4.ci" ] || { echo "In use by another client"; exit 19; }; : >"$D/$4.gi" ;;
"mig -cgi "*" -C -i "*)
	gpu "$6"
	[ "$current" = Enabled ] || { echo "MIG is off"; exit 3; }
	case $3 in *9g*) echo "Failed to create GPU instance: Invalid Argument"; exit 2 ;; esac
	echo "$3" | tr , '\n' | tee "$D/$6.gi" >"$D/$6.ci"
	;;
*) echo "unplanned: $*"; exit 99 ;;
esac
`

type migGuest struct {
	t   *testing.T
	dir string
	env []string
}

func newMIGGuest(t *testing.T, files map[string]string) *migGuest {
	t.Helper()
	g := &migGuest{t: t, dir: t.TempDir()}
	g.write("nvidia-smi", migSMI, 0o755)
	g.write("mig.sh", assets.MIG, 0o644)
	for name, text := range files {
		g.write(name, text, 0o644)
	}
	return g
}

func (g *migGuest) write(name, text string, mode os.FileMode) {
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(text), mode); err != nil {
		g.t.Fatal(err)
	}
}

func (g *migGuest) read(name string) string {
	raw, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil && !os.IsNotExist(err) {
		g.t.Fatal(err)
	}
	return string(raw)
}

// run runs the script and returns its exit code and what it said.
func (g *migGuest) run(verb ...string) (int, string) {
	g.t.Helper()
	cmd := exec.Command("sh", append([]string{filepath.Join(g.dir, "mig.sh")}, verb...)...)
	cmd.Env = append([]string{"PATH=" + g.dir + ":" + os.Getenv("PATH"), "D=" + g.dir, "GPUGUEST_MIG_LAYOUT=" + filepath.Join(g.dir, "layout"), "RESET=", "BUSY="}, g.env...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		g.t.Fatal(err)
	}
	if strings.Contains(string(out)+g.read("log"), "unplanned") {
		g.t.Fatalf("%s\n%s", out, g.read("log"))
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func TestMIGScriptDividesEachGPUAsItsLayoutSays(t *testing.T) {
	g := newMIGGuest(t, map[string]string{
		"layout": "0000:01:00.0 3g.20gb,1g.5gb+me\n0000:02:00.0 off\n",
		// The first was divided another way, and so was the second, which is to be whole.
		"0000:01:00.0.mode": "Enabled Enabled\n", "0000:01:00.0.gi": "7g.40gb\n", "0000:01:00.0.ci": "7g.40gb\n",
		"0000:02:00.0.mode": "Enabled Enabled\n", "0000:02:00.0.gi": "7g.40gb\n", "0000:02:00.0.ci": "7g.40gb\n",
	})
	if code, out := g.run("check"); code != 1 || !strings.Contains(out, "holds 7g.40gb and not 3g.20gb,1g.5gb+me") || !strings.Contains(out, "0000:02:00.0: MIG mode is Enabled") {
		t.Errorf("before: exit %d, %s", code, out)
	}
	if log := g.read("log"); strings.Contains(log, "-cgi") || strings.Contains(log, "-mig") || strings.Contains(log, "-dgi") {
		t.Errorf("a check changes something:\n%s", log)
	}
	if code, out := g.run(); code != 0 {
		t.Errorf("exit %d, %s", code, out)
	}
	if a, b := g.read("0000:01:00.0.gi"), g.read("0000:02:00.0.mode"); a != "3g.20gb\n1g.5gb+me\n" || b != "Disabled Disabled\n" {
		t.Errorf("instances %q, mode %q", a, b)
	}
	g.write("log", "", 0o644)
	for _, verb := range []string{"check", "planned", "mode", "all"} {
		if code, out := g.run(verb); code != 0 {
			t.Errorf("%s: exit %d, %s", verb, code, out)
		}
	}
	if log := g.read("log"); strings.Contains(log, "-cgi") || strings.Contains(log, "-mig ") || strings.Contains(log, "-dgi") {
		t.Errorf("what is done is done again:\n%s", log)
	}
}

func TestMIGModeThatWaitsForAResetIsToldFromOneThatIsOn(t *testing.T) {
	g := newMIGGuest(t, map[string]string{"layout": "0000:01:00.0 1g.5gb,1g.5gb\n", "0000:01:00.0.mode": "Disabled Disabled\n"})
	g.env = []string{"RESET=1"}
	if code, _ := g.run("planned"); code != 1 {
		t.Errorf("planned before: exit %d", code)
	}
	if code, out := g.run("mode"); code != 3 || !strings.Contains(out, "will be Enabled after a reboot") {
		t.Errorf("mode: exit %d, %s", code, out)
	}
	if code, out := g.run("planned"); code != 0 {
		t.Errorf("planned: exit %d, %s", code, out)
	}
	if code, _ := g.run("check"); code != 1 {
		t.Errorf("a mode that waits passes for one that is on: exit %d", code)
	}
	if code, _ := g.run(); code != 3 || g.read("0000:01:00.0.gi") != "" {
		t.Errorf("instances are made before the reset: exit %d", code)
	}
	g.write("0000:01:00.0.mode", "Enabled Enabled\n", 0o644) // the boot
	if code, out := g.run(); code != 0 || g.read("0000:01:00.0.gi") != "1g.5gb\n1g.5gb\n" {
		t.Errorf("after the boot: exit %d, %s", code, out)
	}
	g.write("0000:01:00.0.ci", "1g.5gb\n", 0o644) // one instance has lost what programs run on
	if code, _ := g.run("check"); code != 1 {
		t.Error("an instance without a compute instance passes")
	}
	if code, out := g.run(); code != 0 || g.read("0000:01:00.0.ci") != "1g.5gb\n1g.5gb\n" {
		t.Errorf("exit %d, %s", code, out)
	}
}

func TestMIGScriptSaysWhatNvidiaSMISaid(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		env   string
		says  string
	}{
		{"in use", map[string]string{"layout": "0000:01:00.0 1g.5gb\n", "0000:01:00.0.mode": "Disabled Disabled\n"}, "BUSY=1", "In use by another client"},
		{"no such GPU", map[string]string{"layout": "0000:09:00.0 1g.5gb\n"}, "", "0000:09:00.0: nvidia-smi: exit 6: No devices were found"},
		{"cannot be divided", map[string]string{"layout": "0000:01:00.0 1g.5gb\n", "0000:01:00.0.mode": "[N/A] [N/A]\n"}, "", "cannot be divided"},
		{"no such profile", map[string]string{"layout": "0000:01:00.0 9g.5gb\n", "0000:01:00.0.mode": "Enabled Enabled\n"}, "", "Failed to create GPU instance: Invalid Argument"},
	} {
		g := newMIGGuest(t, c.files)
		g.env = []string{c.env}
		if code, out := g.run(); code != 1 || !strings.Contains(out, c.says) {
			t.Errorf("%s: exit %d, %s", c.name, code, out)
		}
	}
}

// What fails on one GPU keeps no other from being divided, and is the script's exit though a later one only waits.
func TestMIGScriptGoesOnBehindAGPUThatFails(t *testing.T) {
	g := newMIGGuest(t, map[string]string{
		"layout":            "0000:01:00.0 9g.5gb\n0000:02:00.0 1g.5gb\n0000:03:00.0 1g.5gb\n",
		"0000:01:00.0.mode": "Enabled Enabled\n", "0000:02:00.0.mode": "Enabled Enabled\n", "0000:03:00.0.mode": "Disabled Disabled\n",
	})
	g.env = []string{"RESET=1"}
	if code, out := g.run(); code != 1 || g.read("0000:02:00.0.gi") != "1g.5gb\n" {
		t.Errorf("exit %d, %s", code, out)
	}
}
