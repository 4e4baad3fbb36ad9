package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/diagnosis"
	"gpuguest/internal/engine"
	"gpuguest/steps"
)

// made is when the tests' reports are made.
var made = time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)

// constructed reads the results in testdata. No guest printed them: they are made in the form that guests' do.
func constructed(t testing.TB, names ...string) []Guest {
	t.Helper()
	if len(names) == 0 {
		names = []string{"good", "bar1-0m", "apt-failed", "unreachable", "slow-link"}
	}
	var all []Guest
	for _, name := range names {
		path := filepath.Join("testdata", "constructed-"+name+".json")
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		found, err := Read(path, f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}

// fleet makes n guests with eight GPUs each: of every hundred, four have no window, two a mirror in the middle of an update, one is out of
// reach and one has a slow link.
func fleet(t testing.TB, n int) []Guest {
	t.Helper()
	kinds := make(map[string]Guest)
	for _, name := range []string{"good", "bar1-0m", "apt-failed", "unreachable", "slow-link"} {
		kinds[name] = constructed(t, name)[0]
	}
	all := make([]Guest, n)
	for i := range all {
		kind := "good"
		switch i % 100 {
		case 3, 31, 59, 87:
			kind = "bar1-0m"
		case 12, 77:
			kind = "apt-failed"
		case 45:
			kind = "unreachable"
		case 66:
			kind = "slow-link"
		}
		g := kinds[kind]
		g.Host = fmt.Sprintf("gpu-%03d.rack-%d.example", i+1, i/40+1)
		g.Seconds += float64(i%17) / 3
		if kind == "good" {
			var cards []string
			data := map[string]any{"tool": "probe", "format": 1, "result": "pass", "count": 8}
			var devices []map[string]any
			for n := range 8 {
				pci := fmt.Sprintf("0000:%02x:00.0", 0x11+n*0x1a)
				cards = append(cards, pci+" NVIDIA H100 80GB HBM3 (10de:2330)")
				devices = append(devices, map[string]any{
					"index": n, "pci": pci, "name": "NVIDIA H100 80GB HBM3", "link": map[string]any{"known": true, "gbs": 63.0},
					"bandwidth": map[string]any{
						"pinned_h2d": 53.5 + float64((i*7+n*3)%23)/10, "pinned_d2h": 54.1 + float64((i*5+n*11)%19)/10,
						"pageable_h2d": 12.5, "pageable_d2h": 11.75, "d2d": 2400.5,
					},
				})
			}
			data["devices"] = devices
			raw, err := json.Marshal(data)
			if err != nil {
				t.Fatal(err)
			}
			g.GPUs = cards
			g.Steps = append([]engine.StepReport(nil), g.Steps...)
			g.Steps[len(g.Steps)-1].Data = raw
		}
		all[i] = g
	}
	return all
}

func TestAFailureIsDiagnosedByItsCause(t *testing.T) {
	for _, c := range []struct{ name, outcome, id, where, step string }{
		{"bar1-0m", "verification failed", "bar-zero", "guest", "module"},
		{"apt-failed", "step failed", "apt-hash-mismatch", "guest", "driver"},
		{"unreachable", "unreachable", "", "", ""},
		{"slow-link", "verification failed", "", "", "verify-cuda"},
	} {
		g := constructed(t, c.name)[0]
		f, failed := g.Failure()
		if !failed || g.Outcome() != c.outcome || f.ID != c.id || f.Where != c.where || f.Step != c.step {
			t.Errorf("%s: %q, failed %v: %+v", c.name, g.Outcome(), failed, f)
		}
		if f.Cause == "" || f.Evidence == "" {
			t.Errorf("%s: a failure without cause or evidence: %+v", c.name, f)
		}
	}
	if f, failed := constructed(t, "good")[0].Failure(); failed {
		t.Errorf("a good guest fails: %+v", f)
	}
}

func TestEvidenceIsSaidOnce(t *testing.T) {
	f, _ := constructed(t, "bar1-0m")[0].Failure()
	if n := strings.Count(f.Evidence, "BAR1 is 0M"); n != 1 {
		t.Errorf("the line is quoted %d times:\n%s", n, f.Evidence)
	}
}

// TestJSONIsTheEnginesReportAndMore holds the names that a script reads: those of engine.Report stay where they
// were, one level deep.
func TestJSONIsTheEnginesReportAndMore(t *testing.T) {
	g := constructed(t, "bar1-0m")[0]
	whole, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := json.Marshal(g.Report)
	if err != nil {
		t.Fatal(err)
	}
	var outer, inner map[string]any
	if err := json.Unmarshal(whole, &outer); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(plain, &inner); err != nil {
		t.Fatal(err)
	}
	for name, want := range inner {
		if !reflect.DeepEqual(outer[name], want) {
			t.Errorf("%q is %v, in the engine's report %v", name, outer[name], want)
		}
	}
	for _, name := range []string{"time", "exit_code", "verdicts"} {
		if outer[name] == nil {
			t.Errorf("no %q", name)
		}
	}
}

func TestADocumentIsReadBackAsItWas(t *testing.T) {
	guests := constructed(t)
	raw, err := json.Marshal(NewDocument(guests, made))
	if err != nil {
		t.Fatal(err)
	}
	back, err := Read("all.json", bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if len(back) != len(guests) {
		t.Fatalf("%d guests of %d came back", len(back), len(guests))
	}
	for i := range back {
		a, _ := json.Marshal(guests[i])
		b, _ := json.Marshal(back[i])
		if !bytes.Equal(a, b) {
			t.Errorf("%s became\n%s", a, b)
		}
	}
}

func TestReadTakesOneListsAndDocuments(t *testing.T) {
	const a, b = `{"host":"a","result":"done"}`, `{"host":"b","result":"failed","error":{"message":"x"}}`
	for text, want := range map[string]string{
		a:                                       "a",
		a + "\n" + b:                            "a b",
		"[" + a + "," + b + "]":                 "a b",
		`{"version":1,"guests":[` + b + `]}`:    "b",
		`{"version":1,"guests":[]}`:             "",
		"[]":                                    "",
		a + `{"guests":[` + b + `]}[` + a + `]`: "a b a",
	} {
		guests, err := Read("in", strings.NewReader(text))
		var names []string
		for _, g := range guests {
			names = append(names, g.Host)
		}
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", text, got, err, want)
		}
	}
	const none = `{"result":"failed","host":"","error":{"message":"unknown flag: --paralel"}}`
	for text, want := range map[string]int{none: 0, a + none + b: 2, none + "\n" + none: 0} {
		guests, err := Read("in", strings.NewReader(text))
		var e *RunError
		if !errors.As(err, &e) || len(guests) != want || !strings.Contains(err.Error(), "in: ") || !strings.Contains(err.Error(), "--paralel") {
			t.Errorf("%s: %d guests, %v", text, len(guests), err)
		}
	}
	for text, says := range map[string]string{
		"":                                "in: empty",
		"{":                               "in: value 1: unexpected EOF",
		a + "junk":                        "in: value 2: invalid character",
		`{"version":2,"guests":[]}`:       "version 2",
		`{"verdicts":[]}`:                 `needs "host"`,
		`{"host":"a"}`:                    `needs "host"`,
		`[{"host":"a","result":"maybe"}]`: `needs "host"`,
		`"text"`:                          "in: value 1:",
		"null":                            `needs "host"`,
	} {
		if guests, err := Read("in", strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, %v; want %q", text, guests, err, says)
		}
	}
}

func TestOfTheSameGuestTheLaterResultWins(t *testing.T) {
	at := func(host string, hour int, driver string) Guest {
		g := Guest{Report: engine.Report{Host: host, Result: "done", Driver: driver}}
		if hour > 0 {
			g.Time = time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC)
		}
		return g
	}
	left := func(host string, hour int) Guest {
		g := at(host, hour, "left")
		g.Result, g.NotStarted = "failed", true
		return g
	}
	for _, c := range []struct {
		name  string
		in    []Guest
		want  string
		twice string
	}{
		{"left out later", []Guest{at("a", 1, "1"), left("a", 2)}, "a=1", ""},
		{"left out before, by a clock that is ahead", []Guest{left("a", 5), at("a", 1, "1")}, "a=1", ""},
		{"left out between", []Guest{at("a", 1, "1"), left("a", 5), at("a", 2, "2")}, "a=2", "a"},
		{"left out, and a result without a time", []Guest{at("a", 0, "1"), left("a", 5)}, "a=1", ""},
		{"only left out", []Guest{left("a", 1), left("a", 2)}, "a=left", "a"},
		{"no two of one", []Guest{at("a", 1, "1"), at("b", 1, "2")}, "a=1 b=2", ""},
		{"later given", []Guest{at("a", 1, "1"), at("b", 1, "2"), at("a", 2, "3")}, "a=3 b=2", "a"},
		{"later in time, given first", []Guest{at("a", 5, "1"), at("a", 2, "2")}, "a=1", "a"},
		{"same time", []Guest{at("a", 2, "1"), at("a", 2, "2")}, "a=2", "a"},
		{"no times", []Guest{at("a", 0, "1"), at("a", 0, "2"), at("a", 0, "3")}, "a=3", "a"},
		{"one without a time", []Guest{at("a", 3, "1"), at("a", 0, "2")}, "a=2", "a"},
		{"nothing", nil, "", ""},
	} {
		guests, twice := Merge(c.in)
		var got []string
		for _, g := range guests {
			got = append(got, g.Host+"="+g.Driver)
		}
		if strings.Join(got, " ") != c.want || strings.Join(twice, " ") != c.twice {
			t.Errorf("%s: %v, twice %v; want %s, twice %s", c.name, got, twice, c.want, c.twice)
		}
	}
}

func TestGuestsAreGroupedByCause(t *testing.T) {
	groups := Groups(fleet(t, 200))
	var got []string
	for _, g := range groups {
		got = append(got, fmt.Sprintf("%d %s%s", len(g.Guests), g.ID, g.Step))
	}
	const want = "8 bar-zeromodule; 4 apt-hash-mismatchdriver; 2 ; 2 verify-cuda"
	if strings.Join(got, "; ") != want {
		t.Errorf("groups %q, want %q", strings.Join(got, "; "), want)
	}
}

func TestTextOfOneGuestNamesEachStep(t *testing.T) {
	var b bytes.Buffer
	if err := Text(&b, constructed(t, "bar1-0m")); err != nil {
		t.Fatal(err)
	}
	const want = `gpu-bar: Debian GNU/Linux 12, kernel 6.1.0-50-amd64
  GPU 0000:0a:00.0 NVIDIA H100 PCIe (10de:2331)
  ok      next-boot  nvidia 580.95.05 for kernel 6.1.0-50-amd64
  FAILED  module     
gpu-bar: failed, driver 580.95.05 open, CUDA not reached, 1 reboot, 9 commands over 2 connections in 6 min 52 s
`
	if b.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", b.String(), want)
	}
}

// Where no GPU was there, or no proof came to CUDA, that is told in a column of its own, as text and on the page.
func TestWhetherCUDAWorksIsAColumn(t *testing.T) {
	step := func(id steps.ID, state string) engine.StepReport { return engine.StepReport{ID: id, State: state} }
	gpus := []string{"0000:0a:00.0 NVIDIA L4 (10de:27b8)"}
	guests := []Guest{
		{Report: engine.Report{Host: "works", Result: "done", GPUs: gpus, Steps: []engine.StepReport{step("verify-smi", engine.Met), step("verify-cuda", engine.Met)}}},
		{Report: engine.Report{Host: "fails", Result: "failed", GPUs: gpus, Steps: []engine.StepReport{step("verify-smi", engine.Met), step("verify-cuda", engine.Failed)}}, Exit: 5},
		{Report: engine.Report{Host: "not-reached", Result: "failed", GPUs: gpus, Steps: []engine.StepReport{step("module", engine.Failed)}}, Exit: 5},
		{Report: engine.Report{Host: "not-asked", Result: "done", GPUs: gpus, Steps: []engine.StepReport{step("verify-smi", engine.Met)}}},
		{Report: engine.Report{Host: "image", Result: "done", Flavor: "open", Steps: []engine.StepReport{step("verify-offline", engine.Met)}}},
		{Report: engine.Report{Host: "removed", Result: "done", GPUs: gpus, Steps: []engine.StepReport{step("removed", engine.Met)}}},
	}
	var text, page bytes.Buffer
	if err := errors.Join(Text(&text, guests), HTML(&page, guests, time.Unix(1790000000, 0))); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"works", "fails", "not reached", "not run", "not run on a GPU yet", ""} {
		if got := guests[i].CUDA(); got != want {
			t.Errorf("%s: CUDA %q, want %q", guests[i].Host, got, want)
		}
	}
	if !strings.Contains(text.String(), "0 GPUs  CUDA not run on a GPU yet") || !strings.Contains(text.String(), "CUDA not asked") {
		t.Errorf("printed\n%s", text.String())
	}
	for _, part := range []string{"<button type=\"button\">CUDA</button>", `<td>not run on a GPU yet</td>`, `<td class="bad">fails</td>`} {
		if !strings.Contains(page.String(), part) {
			t.Errorf("the page has no %s", part)
		}
	}
	// Of runs that were to prove nothing there is no such column.
	page.Reset()
	if err := HTML(&page, guests[5:], time.Unix(1790000000, 0)); err != nil || strings.Contains(page.String(), ">CUDA<") {
		t.Errorf("%v: a column about nothing", err)
	}
}

func TestTextOfManyIsShort(t *testing.T) {
	var b bytes.Buffer
	if err := Text(&b, fleet(t, 200)); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	t.Logf("\n%s", text)
	if lines := strings.Count(text, "\n"); lines > 20 {
		t.Errorf("%d lines are not read in ten seconds:\n%s", lines, text)
	}
	for _, part := range []string{
		"200 guests: 184 done, 10 verification failed, 4 step failed, 2 unreachable\n",
		"(bar-zero)\n   8 guests: gpu-004.rack-1.example, ",
		"BAR1 is 0M @ 0x0",
		"do: ",
		"cannot be reached",
	} {
		if !strings.Contains(text, part) {
			t.Errorf("no %q in\n%s", part, text)
		}
	}
}

func TestTextOfAFewHasALineEach(t *testing.T) {
	var b bytes.Buffer
	if err := Text(&b, constructed(t)); err != nil {
		t.Fatal(err)
	}
	for _, g := range constructed(t) {
		if !strings.Contains(b.String(), "\n  "+g.Host+" ") {
			t.Errorf("no line for %s in\n%s", g.Host, b.String())
		}
	}
}

func TestTextKeepsAGuestsControlCharactersOut(t *testing.T) {
	g := Guest{Report: engine.Report{Host: "a\x1b[2J", Result: "failed", Error: &engine.Problem{Message: "x\x1b[31m\rred", Hint: "do\x07"}}}
	var b bytes.Buffer
	if err := Text(&b, []Guest{g, {Report: engine.Report{Host: "b", Result: "done"}}}); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(b.String(), "\x1b\r\x07") {
		t.Errorf("printed %q", b.String())
	}
}

func TestTheProbesDataIsRead(t *testing.T) {
	gpus := constructed(t, "slow-link")[0].Measured()
	if len(gpus) != 4 {
		t.Fatalf("%d GPUs", len(gpus))
	}
	want := GPU{PCI: "0000:b1:00.0", Name: "NVIDIA L40S", PinnedH2D: 3.1, PinnedD2H: 3.2, PageableH2D: 2.9, PageableD2H: 2.8, D2D: 712, Link: 31.5,
		Failures: []string{"link-bandwidth: host to device 3.1 GB/s, less than half of what its link carries (31.5 GB/s)"}}
	if !reflect.DeepEqual(gpus[2], want) {
		t.Errorf("%+v, want %+v", gpus[2], want)
	}
	if gpus[3].Link != 0 || gpus[0].Failures != nil {
		t.Errorf("%+v", gpus)
	}
	for _, data := range []string{"", "null", "{}", `"text"`, `{"devices":7}`, `{"devices":[`} {
		g := Guest{Report: engine.Report{Steps: []engine.StepReport{{ID: "verify-cuda", Data: json.RawMessage(data)}}}}
		if got := g.Measured(); len(got) != 0 {
			t.Errorf("%q: %+v", data, got)
		}
	}
}

// FuzzRead holds that whatever a file of results holds, it is read or refused, and what is read can be written in
// every form.
func FuzzRead(f *testing.F) {
	for _, name := range []string{"good", "bar1-0m", "apt-failed", "unreachable", "slow-link"} {
		raw, err := os.ReadFile(filepath.Join("testdata", "constructed-"+name+".json"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`[{"host":"a","result":"done","steps":[{"id":"verify-cuda","data":{"devices":[{"link":{"known":true,"gbs":1e300},"bandwidth":{"pinned_h2d":1e-300,"pinned_d2h":-1}}]}}]}]`))
	f.Add([]byte(`{"version":1,"guests":[{"host":"","result":"failed","gpus":["","x ("],"seconds":-1}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		guests, err := Read("in", bytes.NewReader(raw))
		if err != nil {
			return
		}
		guests, _ = Merge(guests)
		var text, metrics, xml, page bytes.Buffer
		for _, err := range []error{Text(&text, guests), Prometheus(&metrics, guests), JUnit(&xml, guests), HTML(&page, guests, made)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := readXML(&xml); err != nil {
			t.Errorf("JUnit: %v", err)
		}
		if p := page.String(); strings.Contains(p, "NaN") && !strings.Contains(string(raw), "NaN") || strings.Contains(p, "ZgotmplZ") {
			t.Errorf("the page has what no browser draws:\n%s", p)
		}
		if _, err := json.Marshal(NewDocument(guests, made)); err != nil {
			t.Error(err)
		}
	})
}

// TestWhatARunTriedIsToldWithItsFailure is about a run whose remedies did not help: the verdict has moved to where
// it must be put right, and the report goes by that and not by the text.
func TestWhatARunTriedIsToldWithItsFailure(t *testing.T) {
	r := constructed(t, "bar1-0m")[0].Report
	r.Remedies = []engine.RemedyReport{{Remedy: "kernel-arg pci=realloc", Cause: "bar-zero", Result: engine.NoHelp}}
	p := *r.Error
	p.Verdict = &diagnosis.Verdict{ID: "bar-zero", Severity: diagnosis.Fatal, Where: diagnosis.Host, Cause: "no window", Remedy: "give the VM a larger one"}
	p.Tried, p.Advice = []string{"kernel-arg pci=realloc"}, []string{"-global q35-pcihost.pci-hole64-size=64G"}
	r.Error = &p
	g := New(r, 5, made)
	f, _ := g.Failure()
	if f.Where != diagnosis.Host || f.Remedy != "give the VM a larger one" || f.Tried != "kernel-arg pci=realloc" {
		t.Errorf("%+v", f)
	}
	var text bytes.Buffer
	if err := Text(&text, []Guest{g}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "did not help  kernel-arg pci=realloc  for bar-zero") {
		t.Errorf("printed\n%s", text.String())
	}
	page := pageOf(t, []Guest{g})
	for _, part := range []string{"on the host", "pci-hole64-size=64G", "Tried, and taken back: kernel-arg pci=realloc"} {
		if !strings.Contains(page, part) {
			t.Errorf("no %q on the page", part)
		}
	}
	c := junitOf(t, []Guest{g}).children[0].children[2].children[0]
	if !strings.Contains(c.text, "pci-hole64-size=64G") || !strings.Contains(c.attrs["message"], "on the host") {
		t.Errorf("JUnit %+v", c)
	}
}

// The failure that ended a run is told as its error; the others stand with their evidence among the steps.
func TestEachFailureIsToldWithItsEvidence(t *testing.T) {
	g := Guest{Report: engine.Report{Host: "g", Distro: "Debian", Result: "failed", Error: &engine.Problem{Step: "verify-smi", Message: "verify-smi: persistence mode is Disabled"}, Steps: []engine.StepReport{
		{ID: "verify-smi", State: engine.Failed, Detail: "persistence mode is Disabled"},
		{ID: "verify-cuda", State: engine.Failed, Detail: "GPU 0: init: cuInit returned 802\n/dev/nvidia-uvm is missing"},
	}}, Exit: 5}
	var b strings.Builder
	if err := Text(&b, []Guest{g}); err != nil {
		t.Fatal(err)
	}
	if text := b.String(); !strings.Contains(text, "FAILED  verify-cuda  GPU 0: init: cuInit returned 802\n") || !strings.Contains(text, "    /dev/nvidia-uvm is missing\n") || strings.Contains(text, "Disabled") {
		t.Errorf("%s", text)
	}
}
