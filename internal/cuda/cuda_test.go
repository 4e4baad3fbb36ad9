package cuda

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const passed = `{"tool":"probe","format":1,"result":"pass","count":1,"cuda":"13.0","expected":1,"threshold":0.5,"seconds":0.4,"devices":[
{"index":0,"name":"Tesla T4","pci":"0000:00:1e.0","compute_capability":"7.5","memory":15655829504,"managed":true,
"checks":{"attributes":"ok","kernel":"ok","memory":"ok","copies":"ok","uvm":"ok"},
"bandwidth":{"pinned_h2d":12.3,"pinned_d2h":13.1,"pageable_h2d":6.1,"pageable_d2h":5.5,"d2d":240},
"link":{"known":true,"gts":8.0,"width":16,"gbs":15.754,"max_gts":8.0,"max_width":16}}],"peers":[],"failures":[]}`

func TestProbeReportIsRead(t *testing.T) {
	r, err := Parse([]byte(passed))
	if err != nil {
		t.Fatal(err)
	}
	if r.Result != Pass || r.Why() != "" || len(r.Devices) != 1 {
		t.Fatalf("%+v", r)
	}
	d := r.Devices[0]
	if d.Name != "Tesla T4" || d.PCI != "0000:00:1e.0" || d.Bandwidth.PinnedH2D != 12.3 || !d.Link.Known || d.Link.Width != 16 || d.Checks.UVM != "ok" {
		t.Errorf("%+v", d)
	}
}

func TestProbeReportThatContradictsItselfIsNotBelieved(t *testing.T) {
	for name, c := range map[string]struct{ from, to, kind string }{
		"a pass without a GPU":      {`"count":1,"cuda":"13.0","expected":1`, `"count":0`, "count"},
		"a pass with one too few":   {`"expected":1`, `"expected":2`, "count"},
		"a pass with a failure":     {`"failures":[]`, `"failures":[{"kind":"uvm","what":"no"}]`, "uvm"},
		"a pass with a count of -1": {`"count":1,"cuda":"13.0","expected":1`, `"count":-1`, "count"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(passed, c.from, c.to, 1)
			if text == passed {
				t.Fatal("nothing was replaced, so this test tests nothing")
			}
			r, err := Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if r.Result != Fail || len(r.Failures) != 1 || r.Failures[0].Kind != c.kind || r.Failures[0].Advice == "" {
				t.Errorf("%s, %+v", r.Result, r.Failures)
			}
		})
	}
}

func TestOtherJSONIsRefused(t *testing.T) {
	for _, text := range []string{"", "{", "null", "[]", `{"tool":"probe"}`, `{"tool":"probe","format":2,"result":"pass"}`, `{"tool":"probe","format":1,"result":"fine"}`} {
		if _, err := Parse([]byte(text)); !errors.Is(err, ErrNotOurs) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestAdviceNamesWhatHelps holds what a person is told of each CUDA error against what helps with it.
func TestAdviceNamesWhatHelps(t *testing.T) {
	for code, want := range map[int]string{
		3: "uvm_disable_hmm=1", 35: "libcuda is missing", 100: "sees no usable GPU", 802: "fabric manager",
		803: "does not fit the loaded module", 804: "Remove cuda-compat", 999: "kernel log",
	} {
		if got := Advice(code); !strings.Contains(got, want) {
			t.Errorf("error %d: %q does not name %q", code, got, want)
		}
	}
	if got := Advice(0) + Advice(123456); got != "" {
		t.Errorf("advice on no error: %q", got)
	}
	for _, kind := range []string{"library", "count", "context", "jit", "kernel", "kernel-result", "memory-pattern", "copy", "link-bandwidth", "uvm", "peer", "hang", "crash"} {
		if got := (Failure{Kind: kind}).advice(); got == "" {
			t.Errorf("no advice on %s", kind)
		}
	}
}

// output reads a fixture without its first line, which says where it is from.
func output(t testing.TB, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "testdata", "outputs", "cuda", name))
	if err != nil {
		t.Fatal(err)
	}
	source, text, _ := strings.Cut(string(raw), "\n")
	if !strings.HasPrefix(source, "# ") {
		t.Fatalf("%s does not say where it is from", name)
	}
	return text
}

func TestDeviceQueryIsRead(t *testing.T) {
	got := DeviceQuery(output(t, "devicequery-gtx1050ti.txt"))
	want := Report{Tool: ToolDeviceQuery, Result: Pass, Count: 1, CUDA: "9.1", Runtime: "9.1",
		Devices: []Device{{Name: "GeForce GTX 1050 Ti", ComputeCapability: "6.1", Memory: 4236312576, Multiprocessors: 6}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	got = DeviceQuery(output(t, "devicequery-two.txt"))
	if got.Result != Pass || got.Count != 2 || got.Devices[1].PCI != "0000:1f:00.0" || !got.Devices[0].ECC ||
		!reflect.DeepEqual(got.Peers, []Peer{{From: 0, To: 1, Access: true, State: "not run"}, {From: 1, To: 0, State: "not supported"}}) {
		t.Errorf("%+v", got)
	}
}

func TestDeviceQueryThatPassesWithoutAGPUHasFailed(t *testing.T) {
	text := output(t, "devicequery-none.txt")
	if !strings.Contains(text, "Result = PASS") {
		t.Fatal("the fixture does not pass, so this test tests nothing")
	}
	got := DeviceQuery(text)
	if got.Result != Fail || len(got.Failures) != 1 || got.Failures[0].Kind != "count" {
		t.Errorf("%+v", got)
	}
	if got := DeviceQuery(strings.Replace(output(t, "devicequery-two.txt"), "NumDevs = 2", "NumDevs = 3", 1)); got.Result != Fail {
		t.Errorf("three GPUs of which two are described: %s", got.Result)
	}
}

func TestDeviceQuerysErrorIsNamed(t *testing.T) {
	got := DeviceQuery(output(t, "devicequery-802.txt"))
	if got.Result != Fail || len(got.Failures) != 1 || got.Failures[0].Code != 802 || !strings.Contains(got.Failures[0].Advice, "fabric manager") {
		t.Errorf("%+v", got)
	}
	cut, _, _ := strings.Cut(output(t, "devicequery-gtx1050ti.txt"), "Result")
	if got := DeviceQuery(cut); got.Result != Error || len(got.Failures) != 1 {
		t.Errorf("output without its end: %+v", got)
	}
}

func TestBandwidthTestIsRead(t *testing.T) {
	got := BandwidthTest(output(t, "bandwidthtest-gtx1050ti.txt"))
	want := Report{Tool: ToolBandwidthTest, Result: Pass, Count: 1, Devices: []Device{{Name: "GeForce GTX 1050 Ti",
		Bandwidth: Bandwidth{PinnedH2D: 9.719, PinnedD2H: 9.2158, D2D: 95.5251}}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	got = BandwidthTest(output(t, "bandwidthtest-t4-pageable.txt"))
	if b := got.Devices[0].Bandwidth; got.Result != Pass || b != (Bandwidth{PageableH2D: 6.1, PageableD2H: 5.9}) {
		t.Errorf("%s %+v", got.Result, b)
	}
	if got := BandwidthTest(output(t, "bandwidthtest-none.txt")); got.Result != Fail || got.Failures[0].Kind != "count" {
		t.Errorf("%+v", got)
	}
	if got := BandwidthTest(" Device 0: X\nResult = PASS\n"); got.Result != Fail {
		t.Errorf("a pass without a figure: %+v", got)
	}
}

func TestNVBandwidthIsRead(t *testing.T) {
	got := NVBandwidth(output(t, "nvbandwidth-two.txt"))
	want := Report{Tool: ToolNVBandwidth, Result: Pass, Count: 2, Runtime: "13.2", Tests: []Test{
		{Name: "host_to_device_memcpy_ce", Result: Pass, Detail: "memcpy CE CPU(row) -> GPU(column) bandwidth (GB/s)", Matrix: [][]float64{{26.03, 25.94}}},
		{Name: "device_to_device_memcpy_read_ce", Result: Pass, Detail: "memcpy CE GPU(row) <- GPU(column) bandwidth (GB/s)", Matrix: [][]float64{{-1, 276.07}, {276.19, -1}}},
		{Name: "host_to_device_memcpy_sm", Result: "waived"},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("text: got  %+v\nwant %+v", got, want)
	}
	got = NVBandwidth(output(t, "nvbandwidth-json.txt"))
	want = Report{Tool: ToolNVBandwidth, Result: Pass, Count: 1, Runtime: "12.8", Tests: []Test{
		{Name: "host_to_device_memcpy_ce", Result: Pass, Detail: "memcpy CE CPU(row) -> GPU(column) bandwidth (GB/s)", Matrix: [][]float64{{12.41}}},
		{Name: "device_to_device_memcpy_read_ce", Result: "waived"},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("JSON: got  %+v\nwant %+v", got, want)
	}
	for _, text := range []string{
		"", "Running host_to_device_memcpy_ce.\n", "Running host_to_device_memcpy_ce.\nWaived: \n",
		strings.Replace(output(t, "nvbandwidth-json.txt"), `"Passed"`, `"Error"`, 1),
		`{"nvbandwidth":{"error":"cuInit(0) returned 802","testcases":[]}}`,
	} {
		if got := NVBandwidth(text); got.Result == Pass || len(got.Failures) == 0 {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestDCGMIsRead(t *testing.T) {
	text := output(t, "dcgm-fail.txt")
	got := DCGM(text)
	if got.Result != Fail || len(got.Tests) != 7 || len(got.Failures) != 1 || !strings.Contains(got.Failures[0].What, "Persistence Mode") {
		t.Errorf("%+v", got)
	}
	if got := DCGM(strings.Replace(text, "Fail", "Pass", 1)); got.Result != Pass || got.Tests[6].Result != "waived" {
		t.Errorf("%+v", got)
	}
	if got := DCGM("Error: unable to establish a connection to the specified host: localhost\n"); got.Result != Error || len(got.Failures) != 1 {
		t.Errorf("%+v", got)
	}
}

// sound holds what must be true of every report, whatever was read.
func sound(t *testing.T, r Report) {
	t.Helper()
	switch r.Result {
	case Pass:
		if len(r.Failures) > 0 || r.Why() != "" {
			t.Errorf("a pass with failures: %+v", r.Failures)
		}
		if r.Count <= 0 && r.Tool != ToolDCGM {
			t.Error("a pass without a GPU")
		}
	case Fail, Error:
		if r.Why() == "" {
			t.Error("a failure without a reason")
		}
	default:
		t.Errorf("result %q", r.Result)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Errorf("a report that is no JSON: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(passed))
	f.Add([]byte(`{"tool":"probe","format":1,"result":"error","failures":[{"kind":"usage","what":"x"}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if r, err := Parse(raw); err == nil {
			sound(t, r)
		}
	})
}

func FuzzSamples(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("..", "..", "testdata", "outputs", "cuda", "*.txt"))
	if err != nil || len(files) == 0 {
		f.Fatalf("%v, %d fixtures", err, len(files))
	}
	for _, name := range files {
		f.Add(output(f, filepath.Base(name)))
	}
	f.Fuzz(func(t *testing.T, text string) {
		sound(t, DeviceQuery(text))
		sound(t, BandwidthTest(text))
		sound(t, NVBandwidth(text))
		sound(t, DCGM(text))
	})
}
