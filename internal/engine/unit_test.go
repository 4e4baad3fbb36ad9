package engine_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"gpuguest/distros"
	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/plan"
	"gpuguest/internal/report"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// says is a check that prints text, whatever is in it, and exits.
func says(id steps.ID, title, text, exit, hint string) plan.Item {
	return plan.Item{ID: id, Title: title, Fresh: true, Hint: hint, Check: "printf '%s\\n' " + sh.Quote(text) + "\nexit " + exit}
}

// nasty is what a guest may print: quotes, controls, bytes that are no UTF-8, and characters of every length.
const nasty = " \ta \"quoted\" \\ back\\slash\n\n\x01\x1b[31mred\x7f \r\nhalf \xc3 over\xc0\x80 \xed\xa0\x80 \xf4\x90\x80\x80 \xff\xfe é € 𝄞 \xe2\x82"

// shells are the ways to run the script: sh with each awk that this machine has.
func shells(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{"sh": ""}
	for _, awk := range []string{"mawk", "gawk", "original-awk", "busybox"} {
		if path, err := exec.LookPath(awk); err == nil {
			dir := t.TempDir()
			call := "exec " + path + ` "$@"`
			if awk == "busybox" {
				call = "exec " + path + ` awk "$@"`
			}
			if err := os.WriteFile(filepath.Join(dir, "awk"), []byte("#!/bin/sh\n"+call+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			found["sh with "+awk] = dir
		}
	}
	return found
}

// atBoot runs the script of a plan as the unit does, and returns its exit code, what it left and what it said.
func atBoot(t *testing.T, script, awk, state string) (int, []byte, string) {
	t.Helper()
	// The script puts the system's folders first; a test's awk goes before those.
	if awk != "" {
		script = strings.Replace(script, "PATH=/usr/local/sbin", "PATH="+awk+":/usr/local/sbin", 1)
	}
	cmd := exec.Command("/bin/sh")
	cmd.Stdin = strings.NewReader(script)
	cmd.Env = []string{"GPUGUEST_STATE=" + state}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	left, err := os.ReadFile(filepath.Join(state, "verify.json"))
	if err != nil {
		t.Fatalf("%v; it said %s", err, said.String())
	}
	return cmd.ProcessState.ExitCode(), left, said.String()
}

// TestTheUnitWritesWhatVerifyPrints runs the same checks by the engine over SSH and by the script that the unit runs,
// and holds the two results against each other, field by field.
func TestTheUnitWritesWhatVerifyPrints(t *testing.T) {
	t.Parallel()
	for name, items := range map[string][]plan.Item{
		"all met":        {says("one", `the "first"`, "fine", "0", ""), says("two", "it's the second", "", "0", "unused")},
		"nasty output":   {says("one", "first", nasty, "0", "")},
		"a failure":      {says("one", "first", "fine", "0", ""), says("two", "second", "it's broken\na second line", "1", "reboot it, \"now\"\\"), says("three", "third", "told all the same", "0", "")},
		"two failures":   {says("one", "first", "persistence is off", "1", "switch it on"), says("two", "second", "it's 12 GB/s", "0", ""), says("three", "third", "cuInit returned 802\nthat is all", "1", "read the log")},
		"nasty failure":  {says("one", "first", nasty, "3", "")},
		"known failure":  {says("one", "first", "GPU 0: cuInit returned 802 (CUDA_ERROR_SYSTEM_NOT_READY)\nthat is all", "1", "read the log")},
		"silent failure": {says("one", "first", "", "1", "")},
	} {
		l := newLab(t)
		c := choice.Choice{Branch: 580, Flavor: "open", Source: "nvidia", Modules: "dkms", Warnings: []string{"mind \"this\""},
			GPUs: []choice.GPU{{Address: "0000:01:00.0", ID: "10de:1eb8", Name: "Tesla T4"}, {Address: "0000:02:00.0", ID: "10de:ffff"}}}
		p := plan.Plan{Distro: distros.Distro{Name: "Test 1", Packages: filePackages{file: filepath.Join(l.root, "packages")}}, Choice: c, Segments: []plan.Segment{{Items: items}}}
		cfg := l.config()
		cfg.Plan = func(facts.Facts) (plan.Plan, error) { return p, nil }
		r, rerr := engine.Run(t.Context(), cfg)
		want := report.New(r, map[bool]int{true: 0, false: 5}[rerr == nil], time.Unix(1, 0))
		script, err := p.BootScript(steps.Input{Choice: c})
		if err != nil {
			t.Fatal(err)
		}
		for with, awk := range shells(t) {
			exit, left, said := atBoot(t, script, awk, t.TempDir())
			if !json.Valid(left) {
				t.Errorf("%s, %s: no JSON: %s", name, with, left)
				continue
			}
			found, err := report.Read("verify.json", strings.NewReader(string(left)))
			if err != nil || len(found) != 1 {
				t.Errorf("%s, %s: %v in %s", name, with, err, left)
				continue
			}
			got := found[0]
			if exit != want.Exit {
				t.Errorf("%s, %s: exit %d, want %d: %s", name, with, exit, want.Exit, said)
			}
			if got.Seconds < 0 || got.Seconds > 60 || got.GuestTime != got.Seconds || got.Time.IsZero() || got.Host == "" || got.Kernel == "" {
				t.Errorf("%s, %s: %s", name, with, left)
			}
			// What differs because one asks from outside and the other is inside.
			got.Host, got.Kernel, got.Time, got.Seconds, got.GuestTime, got.Driver = want.Host, want.Kernel, want.Time, want.Seconds, want.GuestTime, want.Driver
			got.Connections, got.Execs = want.Connections, want.Execs
			same(t, name+", "+with, got, want)
			for _, s := range want.Steps {
				if !strings.Contains(said, string(s.ID)) {
					t.Errorf("%s, %s: the journal is not told of %s: %s", name, with, s.ID, said)
				}
			}
		}
	}
}

// same compares two results as their JSON, member by member.
func same(t *testing.T, name string, got, want report.Guest) {
	t.Helper()
	members := func(g report.Guest) map[string]any {
		raw, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	g, w := members(got), members(want)
	for k := range g {
		if _, ok := w[k]; !ok {
			t.Errorf("%s: a member %q that verify does not print: %v", name, k, g[k])
		}
	}
	for k, v := range w {
		if !reflect.DeepEqual(g[k], v) {
			t.Errorf("%s: %q is\n%q, verify prints\n%q", name, k, g[k], v)
		}
	}
}

func TestABootScriptThatIsCutOffSaysWhichCheckDidNotEnd(t *testing.T) {
	t.Parallel()
	// A check that takes the shell down with it.
	p := plan.Plan{Segments: []plan.Segment{{Items: []plan.Item{says("one", "first", "fine", "0", ""),
		{ID: "two", Title: "second", Fresh: true, Check: "kill -9 $$"}, says("three", "third", "x", "0", "")}}}}
	script, err := p.BootScript(steps.Input{})
	if err != nil {
		t.Fatal(err)
	}
	// In the script "$$" is the script itself; there the checks have a shell of their own to die in.
	script = strings.Replace(script, "kill -9 $$", `kill -9 "$(cut -d" " -f4 /proc/self/stat)"`, 1)
	state := t.TempDir()
	exit, left, _ := atBoot(t, script, "", state)
	found, err := report.Read("verify.json", strings.NewReader(string(left)))
	if err != nil || exit != 5 || len(found[0].Steps) != 3 || found[0].Error.Step != "two" || found[0].Steps[1].State != engine.Failed || found[0].Steps[2].State != engine.Met {
		t.Errorf("exit %d, %v: %s", exit, err, left)
	}
}

func TestABootScriptTakesItsOwnConditionAway(t *testing.T) {
	t.Parallel()
	p := plan.Plan{Segments: []plan.Segment{{Items: []plan.Item{says("one", "first", "fine", "0", "")}}}}
	script, err := p.BootScript(steps.Input{})
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	if err := os.WriteFile(filepath.Join(state, "verify.due"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if exit, left, said := atBoot(t, script, "", state); exit != 0 {
		t.Errorf("exit %d: %s %s", exit, left, said)
	}
	entries, err := os.ReadDir(state)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v: only the result stays", entries, err)
	}
}

// TestABootScriptCarriesDataThatIsOneWholeObject is about lines that a check prints for programs: of a step that nobody
// knows, only JSON is kept.
func TestABootScriptCarriesDataThatIsOneWholeObject(t *testing.T) {
	t.Parallel()
	const mark = "gpuguest: data: "
	for text, want := range map[string]string{
		"shown\n" + mark + `{"a":[1,{"b":"}]\\"}],"c":"\""}` + "\nmore": `{"a":[1,{"b":"}]\\"}],"c":"\""}`,
		mark + `{"a":[1`:                   "",
		mark + `{"a":1}}`:                  "",
		mark + `{"a":"}`:                   "",
		mark + `<xml>`:                     "",
		mark + "{\n" + mark + `"a":1}`:     "",
		mark:                               "",
		"not for programs: " + mark + "{}": "",
	} {
		p := plan.Plan{Segments: []plan.Segment{{Items: []plan.Item{says("one", "first", text, "0", "")}}}}
		script, err := p.BootScript(steps.Input{})
		if err != nil {
			t.Fatal(err)
		}
		for with, awk := range shells(t) {
			_, left, _ := atBoot(t, script, awk, t.TempDir())
			found, err := report.Read("verify.json", strings.NewReader(string(left)))
			if err != nil {
				t.Errorf("%s: %q: %v", with, text, err)
				continue
			}
			if got := found[0].Steps[0]; string(got.Data) != want || strings.HasPrefix(got.Detail, mark) {
				t.Errorf("%s: %q: data %s, detail %q", with, text, got.Data, got.Detail)
			}
		}
	}
}

// outputs are what NVIDIA's programs print, by the step that runs them, with ways in which each can exit well and not be
// well.
func outputs(t *testing.T) map[steps.ID][]string {
	t.Helper()
	read := func(name string) string {
		raw, err := os.ReadFile(filepath.Join("..", "..", "testdata", "outputs", name))
		if err != nil {
			t.Fatal(err)
		}
		if _, text, ok := strings.Cut(string(raw), "\n"); ok && strings.HasPrefix(string(raw), "#") {
			return text
		}
		return string(raw)
	}
	cut := func(text, at string) string {
		before, _, ok := strings.Cut(text, at)
		if !ok {
			t.Fatalf("%q is not in %s", at, text)
		}
		return before
	}
	swap := func(text, old, with string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not in %s", old, text)
		}
		return strings.ReplaceAll(text, old, with)
	}
	t4, h100 := read("smi/v12-t4.xml"), read("smi/v13-h100.xml")
	bandwidth, query, nv, dcgm := read("cuda/bandwidthtest-gtx1050ti.txt"), read("cuda/devicequery-gtx1050ti.txt"), read("cuda/nvbandwidth-json.txt"), read("cuda/dcgm-fail.txt")
	return map[steps.ID][]string{
		"verify-smi": {t4, h100, swap(h100, "\n", ""), swap(t4, "<gsp_firmware_version>535.309.01", "<gsp_firmware_version>535.261.03"),
			swap(t4, "<gsp_firmware_version>535.309.01", "<gsp_firmware_version>N/A"), swap(h100, "00000000:2A:00.0", "00010000:2A:00.0"),
			swap(h100, "Drain and Reset", "None"), cut(t4, "</gpu>"), "No devices were found"},
		"verify-devicequery":   {query, cut(query, "Result = PASS"), swap(query, "Result = PASS", "Result = FAIL")},
		"verify-bandwidthtest": {bandwidth, read("cuda/bandwidthtest-none.txt"), read("cuda/bandwidthtest-t4-pageable.txt"), cut(bandwidth, "Result = PASS"), "Device 0: x\nResult = PASS\n"},
		"verify-nvbandwidth": {nv, read("cuda/nvbandwidth-two.txt"), swap(nv, "Waived", "Not Found"), swap(nv, "Passed", "Waived"), swap(nv, "Passed", "Error"),
			"nvbandwidth Version: v0.8\nERROR: cuInit returned 802\n", "nvbandwidth Version: v0.8\n"},
		"verify-dcgm": {dcgm, swap(dcgm, "Fail", "Pass"), swap(swap(dcgm, "Pass", "Skip"), "Fail", "Skip"), "Error: unable to connect\n"},
	}
}

// TestTheUnitJudgesAsVerifyDoes runs steps whose output Go reads: the shell of the unit comes to the same result by
// itself, and the result that gpuguest reads of it has the same data.
func TestTheUnitJudgesAsVerifyDoes(t *testing.T) {
	t.Parallel()
	for id, texts := range outputs(t) {
		for n, text := range texts {
			t.Run(fmt.Sprintf("%s %d", id, n), func(t *testing.T) {
				t.Parallel()
				read := func(data string) (json.RawMessage, string) {
					report, why, _ := steps.Digest(id, 1, data)
					return report, why
				}
				it := plan.Item{ID: id, Title: "a program", Fresh: true, Check: "printf '%s\\n' " + sh.Quote(text) + " | sed 's/^/" + steps.DataMark + "/'", Read: read}
				p := plan.Plan{Segments: []plan.Segment{{Items: []plan.Item{it}}}, Choice: choice.Choice{GPUs: []choice.GPU{{Address: "0000:01:00.0", ID: "10de:1eb8"}}}}
				out, err := exec.Command("/bin/sh", "-c", plan.Checks(p.Distro, p.Items(), "--nonce")).Output()
				if err != nil {
					t.Fatal(err)
				}
				want := plan.Judge(p.Items(), plan.ParseChecks(string(out), "--nonce"))[id]
				script, err := p.BootScript(steps.Input{})
				if err != nil {
					t.Fatal(err)
				}
				for with, awk := range shells(t) {
					exit, left, said := atBoot(t, script, awk, t.TempDir())
					if (exit == 0) != want.Met {
						t.Errorf("%s: exit %d, verify says %v, %s:\n%s", with, exit, want.Met, want.Why, said)
					}
					var own engine.Report
					if err := json.Unmarshal(left, &own); err != nil || id == "verify-smi" && own.Steps[0].Detail != want.Why {
						t.Errorf("%s: %v: the shell says\n%s\nverify says\n%s", with, err, own.Steps[0].Detail, want.Why)
					}
					found, err := report.Read("verify.json", strings.NewReader(string(left)))
					if err != nil || len(found) != 1 || len(found[0].Steps) != 1 {
						t.Fatalf("%s: %v in %s", with, err, left)
					}
					g := found[0]
					if s := g.Steps[0]; string(s.Data) != want.Data || g.OK() != want.Met || g.Raw || !strings.Contains(s.Detail, want.Why) {
						t.Errorf("%s: %s %q with %s, verify says\n%q with %s", with, g.Result, s.Detail, s.Data, want.Why, want.Data)
					}
				}
			})
		}
	}
}
