// Package cuda reads what programs say that put CUDA to the proof: gpuguest's own probe (assets/cuda/probe.c) and
// NVIDIA's deviceQuery, bandwidthTest, nvbandwidth and DCGM. All end in one Report.
//
// It runs nothing and reaches no guest. Nothing that it reads is taken at its word where its own figures speak
// against it: a program that passes without having seen a GPU has failed.
package cuda

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// What a Report says of the whole.
const (
	Pass  = "pass"
	Fail  = "fail"
	Error = "error" // the program could not run, so nothing is known
)

// The programs whose output is read, as Report.Tool names them.
const (
	ToolProbe         = "probe"
	ToolDeviceQuery   = "deviceQuery"
	ToolBandwidthTest = "bandwidthTest"
	ToolNVBandwidth   = "nvbandwidth"
	ToolDCGM          = "dcgm"
)

// format is the version of the probe's JSON that this package reads.
const format = 1

// Report is what one program found. Its names are part of the interface.
type Report struct {
	Tool      string    `json:"tool"`
	Format    int       `json:"format,omitempty"` // of the probe's JSON
	Result    string    `json:"result"`           // Pass, Fail or Error
	Count     int       `json:"count"`            // GPUs that CUDA sees
	Expected  int       `json:"expected,omitempty"`
	CUDA      string    `json:"cuda,omitempty"`      // newest CUDA that the driver serves, "13.0"
	Runtime   string    `json:"runtime,omitempty"`   // CUDA that the program was built with
	Threshold float64   `json:"threshold,omitempty"` // part of the link's bandwidth that pinned copies must reach
	Seconds   float64   `json:"seconds,omitempty"`
	Devices   []Device  `json:"devices,omitempty"`
	Peers     []Peer    `json:"peers,omitempty"`
	Tests     []Test    `json:"tests,omitempty"` // of programs that run several
	Failures  []Failure `json:"failures,omitempty"`
}

// Device is one GPU as CUDA sees it. Fields that a program does not tell are zero.
type Device struct {
	Index             int       `json:"index"`
	Name              string    `json:"name"`
	PCI               string    `json:"pci,omitempty"` // "0000:01:00.0"
	UUID              string    `json:"uuid,omitempty"`
	ComputeCapability string    `json:"compute_capability,omitempty"`
	Memory            uint64    `json:"memory,omitempty"` // bytes
	Multiprocessors   int       `json:"multiprocessors,omitempty"`
	ComputeMode       int       `json:"compute_mode,omitempty"` // CUcomputemode: 0 default, 2 prohibited, 3 exclusive process
	ECC               bool      `json:"ecc,omitempty"`
	UVA               bool      `json:"uva,omitempty"`
	Managed           bool      `json:"managed,omitempty"`
	ConcurrentManaged bool      `json:"concurrent_managed,omitempty"`
	PageableAccess    bool      `json:"pageable_access,omitempty"`
	Integrated        bool      `json:"integrated,omitempty"`
	PTX               string    `json:"ptx,omitempty"` // version and target of the kernels that the driver took
	Checks            Checks    `json:"checks,omitzero"`
	MemoryTested      uint64    `json:"memory_tested,omitempty"` // bytes that the pattern test covered
	Bandwidth         Bandwidth `json:"bandwidth,omitzero"`
	Link              Link      `json:"link,omitzero"`
	Seconds           float64   `json:"seconds,omitempty"`
}

// Checks holds, for each of the probe's checks, "ok", "failed", "not run" or "not supported".
type Checks struct {
	Attributes string `json:"attributes"`
	Kernel     string `json:"kernel"`
	Memory     string `json:"memory"`
	Copies     string `json:"copies"`
	UVM        string `json:"uvm"`
}

// Bandwidth is in GB/s (10^9 bytes); 0: not measured. D2D counts every byte twice, as it is read and written.
type Bandwidth struct {
	PinnedH2D   float64 `json:"pinned_h2d,omitempty"`
	PinnedD2H   float64 `json:"pinned_d2h,omitempty"`
	PageableH2D float64 `json:"pageable_h2d,omitempty"`
	PageableD2H float64 `json:"pageable_d2h,omitempty"`
	D2D         float64 `json:"d2d,omitempty"`
}

// Link is the PCIe link that was negotiated, as it was under load. An unknown one is all zero.
type Link struct {
	Known    bool    `json:"known"`
	GTs      float64 `json:"gts,omitempty"` // transfers a second and lane, in 10^9
	Width    int     `json:"width,omitempty"`
	GBs      float64 `json:"gbs,omitempty"` // what it carries in one direction, in GB/s
	MaxGTs   float64 `json:"max_gts,omitempty"`
	MaxWidth int     `json:"max_width,omitempty"`
}

// Peer is one GPU's way to another's memory.
type Peer struct {
	From   int     `json:"from"`
	To     int     `json:"to"`
	Access bool    `json:"access"`
	State  string  `json:"state"` // "ok", "failed", "not supported"
	GBs    float64 `json:"gbs,omitempty"`
}

// Test is one test of a program that runs several.
type Test struct {
	Name    string      `json:"name"`
	Result  string      `json:"result"`            // Pass, Fail, or "waived": it cannot be run here
	Matrix  [][]float64 `json:"matrix,omitempty"`  // GB/s, or ns for latencies; -1 where there is no value
	Detail  string      `json:"detail,omitempty"`  // what the matrix holds
	Message string      `json:"message,omitempty"` // what was said of a failure
}

// Failure is one thing that failed.
type Failure struct {
	// Kind is stable: library, init, count, device, context, jit, kernel, kernel-result, memory,
	// memory-pattern, copy, link-bandwidth, uvm, peer, hang, crash, test, usage.
	Kind   string `json:"kind"`
	Device *int   `json:"device,omitempty"` // index of the GPU; nil: not of one GPU
	PCI    string `json:"pci,omitempty"`
	Call   string `json:"call,omitempty"` // the function that failed
	Code   int    `json:"code,omitempty"` // its CUDA error
	Name   string `json:"name,omitempty"` // of that error
	What   string `json:"what"`
	Advice string `json:"advice,omitempty"`
}

// ErrNotOurs is matched by the error of Parse for JSON that the probe did not write.
var ErrNotOurs = errors.New("not the probe's JSON")

// Parse reads the probe's JSON. A report that contradicts itself is not believed: one that passes with a
// failure in it, or without a GPU, is turned into one that failed.
func Parse(raw []byte) (Report, error) {
	var r Report
	if err := json.Unmarshal(raw, &r); err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrNotOurs, err)
	}
	if r.Tool != ToolProbe || r.Format != format {
		return Report{}, fmt.Errorf("%w: tool %q, format %d", ErrNotOurs, r.Tool, r.Format)
	}
	switch r.Result {
	case Pass, Fail, Error:
	default:
		return Report{}, fmt.Errorf("%w: result %q", ErrNotOurs, r.Result)
	}
	return r.settle(), nil
}

// settle holds a report's result against its own figures and fills in what to do about each failure.
func (r Report) settle() Report {
	if r.Result == Pass && r.Count <= 0 && r.Tool != ToolDCGM {
		r.Failures = append(r.Failures, Failure{Kind: "count", What: r.Tool + " passed without a GPU"})
	}
	if r.Expected > 0 && r.Count != r.Expected && !r.has("count") && len(r.Failures) == 0 {
		r.Failures = append(r.Failures, Failure{Kind: "count", What: fmt.Sprintf("CUDA sees %d GPUs, the guest has %d", r.Count, r.Expected)})
	}
	if r.Result == Pass && len(r.Failures) > 0 {
		r.Result = Fail
	}
	for i, f := range r.Failures {
		if f.Advice == "" {
			r.Failures[i].Advice = f.advice()
		}
	}
	return r
}

func (r Report) has(kind string) bool {
	for _, f := range r.Failures {
		if f.Kind == kind {
			return true
		}
	}
	return false
}

// Why says, a line each, what failed and what to do about it; "" for a report that passed.
func (r Report) Why() string {
	if r.Result == Pass {
		return ""
	}
	var lines []string
	for _, f := range r.Failures {
		line := f.Kind + ": " + f.What
		if f.PCI != "" {
			line = f.PCI + ": " + line
		}
		lines = append(lines, line)
		if f.Advice != "" {
			lines = append(lines, "  "+f.Advice)
		}
	}
	if len(lines) == 0 {
		lines = []string{r.Tool + " says " + r.Result}
	}
	return strings.Join(lines, "\n")
}

// Advice says what to do about what failed, once each and a line each, where no CUDA error stands in the text that a
// person is shown: those are looked up where the whole text is. It is empty for a report that passed.
func (r Report) Advice() string {
	if r.Result == Pass {
		return ""
	}
	var all []string
	for _, f := range r.Failures {
		if f.Advice != "" && f.Code == 0 && !slices.Contains(all, f.Advice) {
			all = append(all, f.Advice)
		}
	}
	if len(all) == 0 {
		return "CUDA is not proved"
	}
	return strings.Join(all, "\n")
}
