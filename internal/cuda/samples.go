package cuda

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// pattern compiles an expression when it is first used: most runs of gpuguest read none of these outputs.
func pattern(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

// Patterns of deviceQuery's and bandwidthTest's output (NVIDIA/cuda-samples, v9.2 to v13.0).
var (
	detectedLine  = pattern(`^Detected (\d+) CUDA Capable device`)
	deviceLine    = pattern(`^ ?Device (\d+): (.*)$`)
	versionsLine  = pattern(`CUDA Driver Version / Runtime Version\s+(\S+) / (\S+)`)
	ccLine        = pattern(`CUDA Capability Major/Minor version number:\s+(\S+)`)
	memoryLine    = pattern(`Total amount of global memory:.*\((\d+) bytes\)`)
	smLine        = pattern(`^\s*\(\s*(\d+)\) Multiprocessors`)
	pciLine       = pattern(`Device PCI (?:Domain ID / )?Bus ID / (?:PCI )?location ID:\s+(?:(\d+) / )?(\d+) / (\d+)`)
	eccLine       = pattern(`Device has ECC support:\s+(Enabled|Yes)`)
	peerLine      = pattern(`> Peer access from .*\(GPU(\d+)\) -> .*\(GPU(\d+)\) : (Yes|No)`)
	numDevsLine   = pattern(`NumDevs = (\d+)`)
	resultLine    = pattern(`^Result = (PASS|FAIL)`)
	returnedLine  = pattern(`\b(cu[A-Za-z]\w*) returned (?:error code )?(\d+)`)
	directionLine = pattern(`^ ?(Host to Device|Device to Host|Device to Device) Bandwidth`)
	kindLine      = pattern(`^ ?(PINNED|PAGEABLE) Memory Transfers`)
	unitLine      = pattern(`Transfer Size \(Bytes\)\s+Bandwidth\((MB|GB)/s\)`)
	rateLine      = pattern(`^\s+(\d+)\s+(\d+(?:\.\d+)?)\s*$`)
)

// DeviceQuery reads the output of NVIDIA's deviceQuery. The program says "Result = PASS" of a guest without
// a GPU too; that is a failure here. Output that ends without its result is one.
func DeviceQuery(text string) Report {
	r := Report{Tool: ToolDeviceQuery, Result: Error}
	detected, counted := -1, -1
	for line := range lines(text) {
		if m := detectedLine().FindStringSubmatch(line); m != nil {
			detected = number(m[1])
		}
		if m := deviceLine().FindStringSubmatch(line); m != nil {
			r.Devices = append(r.Devices, Device{Index: number(m[1]), Name: strings.Trim(m[2], `"`)})
		}
		if m := numDevsLine().FindStringSubmatch(line); m != nil {
			counted = number(m[1])
		}
		if m := peerLine().FindStringSubmatch(line); m != nil {
			p := Peer{From: number(m[1]), To: number(m[2]), Access: m[3] == "Yes", State: "not supported"}
			if p.Access {
				p.State = "not run"
			}
			r.Peers = append(r.Peers, p)
		}
		r.common(line)
		if len(r.Devices) == 0 {
			continue
		}
		d := &r.Devices[len(r.Devices)-1]
		if m := versionsLine().FindStringSubmatch(line); m != nil {
			r.CUDA, r.Runtime = m[1], m[2]
		}
		if m := ccLine().FindStringSubmatch(line); m != nil {
			d.ComputeCapability = m[1]
		}
		if m := memoryLine().FindStringSubmatch(line); m != nil {
			d.Memory, _ = strconv.ParseUint(m[1], 10, 64)
		}
		if m := smLine().FindStringSubmatch(line); m != nil {
			d.Multiprocessors = number(m[1])
		}
		if m := pciLine().FindStringSubmatch(line); m != nil {
			// Decimal in deviceQuery, hexadecimal everywhere else.
			d.PCI = fmt.Sprintf("%04x:%02x:%02x.0", number(m[1]), number(m[2]), number(m[3]))
		}
		if eccLine().MatchString(line) {
			d.ECC = true
		}
	}
	r.Count = len(r.Devices)
	for _, n := range []int{detected, counted} {
		if n >= 0 && n != r.Count && r.Result == Pass {
			r.Failures = append(r.Failures, Failure{Kind: "count", What: fmt.Sprintf("deviceQuery speaks of %d GPUs and describes %d", n, r.Count)})
		}
	}
	return r.ended()
}

// BandwidthTest reads the output of NVIDIA's bandwidthTest, which CUDA had up to 12.8; of several runs the outputs one
// after the other.
func BandwidthTest(text string) Report {
	r := Report{Tool: ToolBandwidthTest, Result: Error}
	direction, pageable, unit := "", false, 0.0
	first, listing, failed := 0, false, false // the run's first GPU, whether its GPUs are being listed, whether one run failed
	for line := range lines(text) {
		if m := deviceLine().FindStringSubmatch(line); m != nil {
			if !listing {
				first, listing = len(r.Devices), true
			}
			r.Devices = append(r.Devices, Device{Index: number(m[1]), Name: m[2]})
		}
		if m := directionLine().FindStringSubmatch(line); m != nil {
			direction = m[1]
		}
		if m := kindLine().FindStringSubmatch(line); m != nil {
			pageable = m[1] == "PAGEABLE"
		}
		if m := unitLine().FindStringSubmatch(line); m != nil {
			unit = map[string]float64{"MB": 1000, "GB": 1}[m[1]]
		}
		if m := rateLine().FindStringSubmatch(line); m != nil && unit > 0 && len(r.Devices) > 0 {
			rate, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				continue
			}
			// With several GPUs in a run it times them together; their figure stands at the first.
			b := &r.Devices[first].Bandwidth
			listing = false
			switch to := math.Round(rate/unit*1e4) / 1e4; {
			case direction == "Device to Device":
				b.D2D = to
			case direction == "Host to Device" && pageable:
				b.PageableH2D = to
			case direction == "Host to Device":
				b.PinnedH2D = to
			case direction == "Device to Host" && pageable:
				b.PageableD2H = to
			case direction == "Device to Host":
				b.PinnedD2H = to
			}
		}
		if strings.Contains(line, "!!!!!No devices found!!!!!") {
			r.Failures = append(r.Failures, Failure{Kind: "count", What: "bandwidthTest finds no GPU"})
			r.Result = Fail
		}
		r.common(line)
		failed = failed || r.Result == Fail
	}
	if failed {
		r.Result = Fail
	}
	r.Count = len(r.Devices)
	if r.Result == Pass && r.Count > 0 && r.Devices[0].Bandwidth == (Bandwidth{}) {
		r.Failures = append(r.Failures, Failure{Kind: "test", What: "bandwidthTest passed without having measured anything"})
	}
	return r.ended()
}

// common reads what both samples say alike.
func (r *Report) common(line string) {
	if m := returnedLine().FindStringSubmatch(line); m != nil {
		r.Failures = append(r.Failures, Failure{Kind: "init", Call: m[1], Code: number(m[2]), What: m[1] + " returned " + m[2]})
	}
	if m := resultLine().FindStringSubmatch(line); m != nil {
		r.Result = map[string]string{"PASS": Pass, "FAIL": Fail}[m[1]]
	}
}

// ended closes a report of a program that says its result in its last lines.
func (r Report) ended() Report {
	if r.Result != Pass && len(r.Failures) == 0 {
		what := r.Tool + " failed without saying why"
		if r.Result == Error {
			what = "the output of " + r.Tool + " ends without a result"
		}
		r.Failures = []Failure{{Kind: "test", What: what}}
	}
	return r.settle()
}

// NVBandwidth reads the output of NVIDIA's nvbandwidth, its JSON (-j) or its text (v0.4 to v0.10).
func NVBandwidth(text string) Report {
	if i := strings.IndexByte(text, '{'); i >= 0 {
		if r, ok := nvbandwidthJSON(text[i:]); ok {
			return r.ended()
		}
	}
	return nvbandwidthText(text).ended()
}

func nvbandwidthJSON(text string) (Report, bool) {
	// Values are strings, and where there is none, "N/A"; json_output.cpp of NVIDIA/nvbandwidth.
	var doc struct {
		Top *struct {
			Runtime json.Number `json:"CUDA Runtime Version"`
			Error   string      `json:"error"`
			Tests   []struct {
				Name   string     `json:"name"`
				Status string     `json:"status"`
				Error  string     `json:"error"`
				Detail string     `json:"bandwidth_description"`
				Matrix [][]string `json:"bandwidth_matrix"`
			} `json:"testcases"`
		} `json:"nvbandwidth"`
	}
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&doc); err != nil || doc.Top == nil {
		return Report{}, false
	}
	r := Report{Tool: ToolNVBandwidth, Result: Error}
	if n, err := doc.Top.Runtime.Int64(); err == nil && n > 0 {
		r.Runtime = fmt.Sprintf("%d.%d", n/1000, n%1000/10)
	}
	for _, t := range doc.Top.Tests {
		test := Test{Name: t.Name, Result: nvbandwidthStatus(t.Status), Detail: t.Detail, Message: t.Error}
		for _, row := range t.Matrix {
			test.Matrix = append(test.Matrix, cells(row))
		}
		r.Tests = append(r.Tests, test)
	}
	if doc.Top.Error != "" {
		r.Failures = append(r.Failures, failureIn(doc.Top.Error))
	}
	return r.fromTests(), true
}

// nvbandwidthStatus reads the words of json_output.cpp: Passed, Running, Waived, "Not Found", Error.
func nvbandwidthStatus(s string) string {
	switch s {
	case "Passed":
		return Pass
	case "Waived":
		return "waived"
	}
	return Fail
}

var (
	nvRunning = pattern(`^\s*Running (\w+)\.\s*$`)
	nvDetail  = pattern(`^\s*(.*(?:bandwidth|latency).*\((?:GB/s|ns)\))\s*$`)
	nvStatus  = pattern(`^\s*(Waived|ERROR|Error|Not Found):\s*(.*)$`)
	nvRuntime = pattern(`^\s*CUDA Runtime Version: (?:(\d+\.\d+) |(\d+)\s*$)`)
	nvDevice  = pattern(`^\s*Device (\d+): (.+?)(?: \(([0-9a-f:]+)\))?\s*$`)
)

func nvbandwidthText(text string) Report {
	r := Report{Tool: ToolNVBandwidth, Result: Error}
	var test *Test
	for line := range lines(text) {
		if m := nvRuntime().FindStringSubmatch(line); m != nil {
			r.Runtime = m[1]
			if n := number(m[2]); n > 0 {
				r.Runtime = fmt.Sprintf("%d.%d", n/1000, n%1000/10)
			}
		}
		if m := nvDevice().FindStringSubmatch(line); m != nil {
			r.Devices = append(r.Devices, Device{Index: number(m[1]), Name: m[2]})
		}
		if m := nvRunning().FindStringSubmatch(line); m != nil {
			r.Tests = append(r.Tests, Test{Name: m[1], Result: Fail, Message: "it printed no figures"})
			test = &r.Tests[len(r.Tests)-1]
			continue
		}
		if m := nvStatus().FindStringSubmatch(line); m != nil {
			if m[1] == "Waived" && test != nil {
				test.Result, test.Message = "waived", ""
			} else if m[1] != "Waived" {
				r.Failures = append(r.Failures, failureIn(m[1]+": "+m[2]))
			}
		}
		if m := returnedLine().FindStringSubmatch(line); m != nil {
			r.Failures = append(r.Failures, failureIn(line))
		}
		if test == nil {
			continue
		}
		if m := nvDetail().FindStringSubmatch(line); m != nil {
			test.Detail = strings.TrimSpace(m[1])
			continue
		}
		// A row is its number and then as many figures as there are columns; the row of column numbers above
		// holds whole numbers only.
		if f := strings.Fields(line); test.Detail != "" && len(f) > 1 && strings.ContainsAny(strings.Join(f[1:], ""), ".N") {
			if _, err := strconv.Atoi(f[0]); err == nil {
				test.Matrix = append(test.Matrix, cells(f[1:]))
				test.Result, test.Message = Pass, ""
			}
		}
	}
	return r.fromTests()
}

// fromTests makes a whole of a program's tests: it passes when one passed and none failed. The number of GPUs is
// that of the widest matrix, as not every version lists them.
func (r Report) fromTests() Report {
	passed := false
	r.Count = len(r.Devices)
	for _, t := range r.Tests {
		switch t.Result {
		case Pass:
			passed = true
			for _, row := range t.Matrix {
				r.Count = max(r.Count, len(row))
			}
		case Fail:
			what := t.Name + " did not pass"
			if t.Message != "" {
				what += ": " + t.Message
			}
			r.Failures = append(r.Failures, Failure{Kind: "test", What: what})
		}
	}
	switch {
	case len(r.Failures) > 0:
		r.Result = Fail
	case passed:
		r.Result = Pass
	}
	return r
}

// failureIn makes a failure of a line that may hold a CUDA error.
func failureIn(line string) Failure {
	f := Failure{Kind: "test", What: strings.TrimSpace(line)}
	if m := returnedLine().FindStringSubmatch(line); m != nil {
		f.Kind, f.Call, f.Code = "init", m[1], number(m[2])
	}
	return f
}

// dcgmRow is a row of the table of dcgmi diag: "| Software | Pass |".
var dcgmRow = pattern(`^\|\s*([A-Za-z][^|]*?)\s*\|\s*(Pass|Fail|Skip|Warn)\b([^|]*)\|`)

// DCGM reads the table of "dcgmi diag".
func DCGM(text string) Report {
	r := Report{Tool: ToolDCGM, Result: Error}
	for line := range lines(text) {
		m := dcgmRow().FindStringSubmatch(line)
		if m == nil {
			continue
		}
		t := Test{Name: m[1], Result: Pass, Message: strings.TrimSpace(m[3])}
		switch m[2] {
		case "Skip":
			t.Result = "waived"
		case "Fail":
			t.Result = Fail
		}
		r.Tests = append(r.Tests, t)
	}
	return r.fromTests().ended()
}

// cells reads figures; what is none, "N/A" for one, is -1.
func cells(words []string) []float64 {
	row := make([]float64, 0, len(words))
	for _, w := range words {
		v, err := strconv.ParseFloat(w, 64)
		if err != nil || v < 0 || v > 1e9 || v != v {
			v = -1
		}
		row = append(row, v)
	}
	return row
}

// number is a decimal number of a pattern's group, 0 when it is none or out of range.
func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 1<<30 {
		return 0
	}
	return n
}

// lines are a text's lines without what ends them.
func lines(text string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for line := range strings.Lines(text) {
			if !yield(strings.TrimRight(line, "\r\n")) {
				return
			}
		}
	}
}
