package cuda_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/cuda"
)

// machine is a probe and a stand-in libcuda, compiled by the machine's own compiler, and a sysfs of its own.
type machine struct {
	t          *testing.T
	dir, sysfs string
}

// built is the folder with both programs, made once for all tests of a run, "" where there is no compiler.
var built string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if _, err := exec.LookPath("cc"); err != nil {
			return m.Run()
		}
		dir, err := os.MkdirTemp("", "gpuguest-probe-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		packages := filepath.Join("..", "..", "testdata", "lab", "packages")
		for _, args := range [][]string{
			// As the guest does it; gnu89 is what gcc 4.8 takes by itself.
			{"-std=gnu89", "-O2", "-Wall", "-Wextra", "-Werror", "-o", filepath.Join(dir, "probe"), filepath.Join("..", "..", "assets", "cuda", "probe.c"), "-ldl", "-lpthread"},
			{"-O2", "-Wall", "-Wextra", "-Werror", "-I" + filepath.Join(packages, "kernel"), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", filepath.Join(dir, "libcuda.so.1"), filepath.Join(packages, "user", "cuda.c")},
		} {
			if out, err := exec.Command("cc", args...).CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "cc: %v\n%s", err, out)
				return 1
			}
		}
		built = dir
		return m.Run()
	}())
}

// build gives a test the two programs.
func build(t *testing.T) machine {
	t.Helper()
	if built == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("no C compiler, and in CI that is a failure")
		}
		t.Skip("no C compiler")
	}
	return machine{t: t, dir: built, sysfs: filepath.Join(t.TempDir(), "sys")}
}

// link gives a GPU a PCIe link in sysfs.
func (m machine) link(gpu int, speed, width string) {
	m.t.Helper()
	dir := filepath.Join(m.sysfs, "bus", "pci", "devices", fmt.Sprintf("0000:%02x:00.0", gpu+1))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		m.t.Fatal(err)
	}
	for name, text := range map[string]string{"current_link_speed": speed, "current_link_width": width, "max_link_speed": speed, "max_link_width": "16"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o644); err != nil {
			m.t.Fatal(err)
		}
	}
}

// run runs the probe with a stand-in that behaves as env says.
func (m machine) run(env []string, args ...string) (cuda.Report, string, int) {
	m.t.Helper()
	cmd := exec.Command(filepath.Join(m.dir, "probe"), slices.Concat([]string{"--sysfs", m.sysfs, "--memory", "1", "--copy", "1"}, args)...)
	cmd.Env = slices.Concat([]string{"LD_LIBRARY_PATH=" + m.dir, "CUDA_VISIBLE_DEVICES=0"}, env)
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		m.t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\n"); n != 1 {
		m.t.Errorf("the JSON is %d lines: %s", n, out.String())
	}
	r, err := cuda.Parse(out.Bytes())
	if err != nil {
		m.t.Fatalf("%v: %s", err, out.String())
	}
	return r, text.String(), cmd.ProcessState.ExitCode()
}

// TestProbeTellsEachFailure has the stand-in fail in one way each, and asserts that the report names it, the
// CUDA error, the GPU, and what helps.
func TestProbeTellsEachFailure(t *testing.T) {
	const none = -1 // the failure is of no one GPU
	for _, c := range []struct {
		name   string
		env    []string
		args   []string
		exit   int
		kind   string
		device int
		code   int
		advice string
	}{
		{"error 3", []string{"STUB_INIT=3"}, nil, 1, "init", none, 3, "uvm_disable_hmm=1"},
		{"error 35", []string{"STUB_INIT=35"}, nil, 1, "init", none, 35, "libcuda is missing, or older"},
		{"error 100", []string{"STUB_INIT=100"}, nil, 1, "init", none, 100, "no usable GPU"},
		{"error 802", []string{"STUB_INIT=802"}, nil, 1, "init", none, 802, "fabric manager"},
		{"error 803", []string{"STUB_INIT=803"}, nil, 1, "init", none, 803, "does not fit the loaded module"},
		{"error 804", []string{"STUB_INIT=804"}, nil, 1, "init", none, 804, "cuda-compat"},
		{"error 999", []string{"STUB_INIT=999"}, nil, 1, "init", none, 999, "nvidia-uvm is broken"},
		{"no libcuda", []string{"LD_LIBRARY_PATH=/nonexistent"}, nil, 2, "library", none, 35, "libcuda is missing"},
		{"no GPU although none is asked for", []string{"STUB_GPUS=0"}, []string{"--expect", "0"}, 1, "count", none, 0, "diagnose"},
		{"one GPU of four missing", []string{"STUB_GPUS=3"}, []string{"--expect", "4"}, 1, "count", none, 0, "diagnose"},
		{"one GPU too many", []string{"STUB_GPUS=2"}, []string{"--expect", "1"}, 1, "count", none, 0, "diagnose"},
		{"another GPU than the guest's", []string{"STUB_GPUS=1"}, []string{"--pci", "0000:09:00.0"}, 1, "count", none, 0, "diagnose"},
		{"one GPU of four dead", []string{"STUB_GPUS=4", "STUB_DEAD=2"}, []string{"--expect", "4"}, 1, "context", 2, 999, "kernel log"},
		{"no PTX compiler", []string{"STUB_GPUS=1", "STUB_NOJIT=221"}, nil, 1, "jit", 0, 221, "libnvidia-ptxjitcompiler"},
		{"launch fails", []string{"STUB_GPUS=1", "STUB_LAUNCH=719"}, nil, 1, "kernel", 0, 719, "Xid"},
		{"wrong result", []string{"STUB_GPUS=2", "STUB_WRONG=1"}, nil, 1, "kernel-result", 1, 0, "computes wrong"},
		{"bad memory", []string{"STUB_GPUS=2", "STUB_MEMORY=1"}, nil, 1, "memory-pattern", 1, 0, "memory does not keep"},
		{"bytes lost on the way", []string{"STUB_GPUS=1", "STUB_COPY=0"}, nil, 1, "copy", 0, 0, "PCIe errors"},
		{"slow link", []string{"STUB_GPUS=1", "STUB_GBPS=0.05"}, nil, 1, "link-bandwidth", 0, 0, "IOMMU"},
		{"managed memory fails", []string{"STUB_GPUS=1", "STUB_UVM=3"}, nil, 1, "uvm", 0, 3, "uvm_disable_hmm=1"},
		{"managed memory fails where the CPU must keep off", []string{"STUB_GPUS=1", "STUB_UVM=3", "STUB_NO_CONCURRENT=1"}, nil, 1, "uvm", 0, 3, "uvm_disable_hmm=1"},
		{"what peers send is wrong", []string{"STUB_GPUS=2", "STUB_PEER=wrong"}, nil, 1, "peer", 1, 0, "ACS"},
		{"hang", []string{"STUB_GPUS=2", "STUB_HANG=1"}, []string{"--timeout", "2"}, 1, "hang", 1, 0, "does not answer"},
		{"crash", []string{"STUB_GPUS=1", "STUB_CRASH=0"}, nil, 1, "crash", 0, 0, "library crashed"},
		{"wrong usage", nil, []string{"--expect", "x"}, 2, "usage", none, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := build(t)
			m.link(0, "2.5 GT/s PCIe", "1")
			r, text, exit := m.run(c.env, c.args...)
			if exit != c.exit || r.Result != map[int]string{1: cuda.Fail, 2: cuda.Error}[c.exit] {
				t.Errorf("exit %d, result %s", exit, r.Result)
			}
			if len(r.Failures) == 0 {
				t.Fatal("no failure is told")
			}
			f, device := r.Failures[0], none
			if f.Device != nil {
				device = *f.Device
			}
			if f.Kind != c.kind || device != c.device || f.Code != c.code || !strings.Contains(f.Advice, c.advice) {
				t.Errorf("%s on GPU %d, error %d (%s): %s; %s", f.Kind, device, f.Code, f.Name, f.What, f.Advice)
			}
			if c.code != 0 && f.Name == "" {
				t.Error("the error has no name")
			}
			if c.kind != "usage" && !strings.Contains(text, f.What) {
				t.Errorf("a person is not told %q:\n%s", f.What, text)
			}
			// A failure of one GPU is not the others'.
			for _, f := range r.Failures {
				if f.Device != nil && *f.Device != c.device {
					t.Errorf("GPU %d is blamed too: %s", *f.Device, f.What)
				}
			}
			for _, d := range r.Devices {
				if c.device != none && d.Index != c.device && (d.Checks.Kernel != "ok" || d.Checks.Memory != "ok") {
					t.Errorf("sound GPU %d: %+v", d.Index, d.Checks)
				}
			}
		})
	}
}

func TestProbePassesOnSoundGPUs(t *testing.T) {
	m := build(t)
	m.link(0, "2.5 GT/s PCIe", "1")
	m.link(1, "Unknown", "0")
	r, text, exit := m.run([]string{"STUB_GPUS=4", "STUB_GBPS=0.2", "STUB_PEER=1"}, "--expect", "4", "--pci", "0000:01:00.0", "--pci", "0000:04:00.0")
	if exit != 0 || r.Result != cuda.Pass || r.Count != 4 || len(r.Devices) != 4 {
		t.Fatalf("exit %d, %+v\n%s", exit, r, text)
	}
	want := cuda.Checks{Attributes: "ok", Kernel: "ok", Memory: "ok", Copies: "ok", UVM: "ok"}
	for _, d := range r.Devices {
		if d.Checks != want || d.MemoryTested != 1<<20 || d.PTX != "6.0 sm_30" || d.ComputeCapability != "6.1" {
			t.Errorf("%+v", d)
		}
	}
	if l := r.Devices[0].Link; !l.Known || l.GBs != 0.25 || l.Width != 1 || l.MaxWidth != 16 {
		t.Errorf("link %+v", l)
	}
	for _, d := range r.Devices[1:] {
		if d.Link.Known {
			t.Errorf("GPU %d: a link that nobody told of: %+v", d.Index, d.Link)
		}
	}
	if len(r.Peers) != 12 {
		t.Errorf("%d ways between 4 GPUs", len(r.Peers))
	}
	for _, p := range r.Peers {
		if !p.Access || p.State != "ok" {
			t.Errorf("%+v", p)
		}
	}
	if n := strings.Count(text, "\n"); n != 4 || !strings.Contains(text, "of 0.2 GB/s (PCIe 2.5 GT/s x1)") || !strings.Contains(text, "link unknown") {
		t.Errorf("a person is told %d lines:\n%s", n, text)
	}
}

// TestKernelsComputeWhatTheProbeExpects runs the kernels from their PTX, and has drivers take it that differ in
// the targets they know.
func TestKernelsComputeWhatTheProbeExpects(t *testing.T) {
	m := build(t)
	for _, c := range []struct{ name, chip, ptx, stub string }{
		{"run from their PTX", "1c82", "6.0 sm_30", "STUB_RUN_PTX=1"},
		{"taken by a driver that knows Turing and later", "20b0", "6.3 sm_75", "STUB_NEW_PTX=1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := m
			m.t = t
			r, text, exit := m.run([]string{"STUB_GPUS=1", "STUB_CHIP=" + c.chip, c.stub})
			if exit != 0 || r.Devices[0].PTX != c.ptx || r.Devices[0].Checks.Memory != "ok" {
				t.Errorf("exit %d, %+v\n%s", exit, r, text)
			}
		})
	}
	if r, _, exit := m.run([]string{"STUB_GPUS=1", "STUB_NEW_PTX=1"}); exit != 1 || r.Failures[0].Kind != "jit" || r.Failures[0].Code != 222 {
		t.Errorf("a Pascal GPU under a driver without sm_30: exit %d, %+v", exit, r.Failures)
	}
}

// TestLinkThatCannotBeTheOneInUseIsUnknown: more goes through than it could carry.
func TestLinkThatCannotBeTheOneInUseIsUnknown(t *testing.T) {
	m := build(t)
	m.link(0, "2.5 GT/s PCIe", "1")
	r, _, exit := m.run([]string{"STUB_GPUS=1"})
	if exit != 0 || r.Devices[0].Link.Known {
		t.Errorf("exit %d, %+v", exit, r.Devices[0].Link)
	}
}

func TestThresholdIsAPartOfTheLink(t *testing.T) {
	m := build(t)
	m.link(0, "2.5 GT/s PCIe", "1")
	env := []string{"STUB_GPUS=1", "STUB_GBPS=0.2"}
	if _, text, exit := m.run(env, "--threshold", "0.95"); exit != 1 {
		t.Errorf("0.8 of the link passes for 0.95:\n%s", text)
	}
	if _, text, exit := m.run([]string{"STUB_GPUS=1", "STUB_GBPS=0.05"}, "--threshold", "0.02"); exit != 0 {
		t.Errorf("a fifth of the link fails for a fiftieth:\n%s", text)
	}
}

func TestProbeEndsWhenAGPUHangs(t *testing.T) {
	m := build(t)
	began := time.Now()
	r, _, exit := m.run([]string{"STUB_GPUS=3", "STUB_HANG=1"}, "--timeout", "2", "--expect", "3")
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	if exit != 1 || len(r.Failures) != 1 || r.Failures[0].Kind != "hang" || !strings.Contains(r.Failures[0].What, "in the vector kernel") {
		t.Errorf("exit %d, %+v", exit, r.Failures)
	}
}

// TestNamesCannotBreakTheJSON gives the GPU names that JSON must escape, and one that is no UTF-8.
func TestNamesCannotBreakTheJSON(t *testing.T) {
	m := build(t)
	for given, want := range map[string]string{
		`a"b\c`: `a"b\c`, "tab\there": "tab\there", "bell\a\x7f": "bell\a\x7f", "Ünï": "Ünï", "\xff\xfe": "\ufffd\ufffd", "\xed\xa0\x80": "\ufffd\ufffd\ufffd",
		"cut \xe2\x82": "cut \ufffd\ufffd", strings.Repeat("x", 300): strings.Repeat("x", 255),
	} {
		r, _, exit := m.run([]string{"STUB_GPUS=1", "STUB_NAME=" + given})
		if exit != 0 || r.Devices[0].Name != want {
			t.Errorf("%q: exit %d, %q", given, exit, r.Devices[0].Name)
		}
	}
}
