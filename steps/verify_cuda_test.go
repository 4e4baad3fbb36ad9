package steps

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/choice"
	"gpuguest/internal/cuda"
	"gpuguest/internal/facts"
)

// find returns an install step.
func find(t *testing.T, id ID) Step {
	t.Helper()
	for _, s := range Install() {
		if s.ID == id {
			return s
		}
	}
	t.Fatalf("no step %s", id)
	return Step{}
}

// twoGPUs is a guest with the stand-in library's first two GPUs.
func twoGPUs() Input {
	return Input{Facts: facts.Facts{GPUs: []facts.PCI{{Address: "0000:01:00.0"}, {Address: "0000:02:00.0"}}}}
}

// standIn compiles the stand-in libcuda into a folder of its own.
func standIn(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("cc"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("no C compiler, and in CI that is a failure")
		}
		t.Skip("no C compiler")
	}
	dir := t.TempDir()
	packages := filepath.Join("..", "testdata", "lab", "packages")
	out, err := exec.Command("cc", "-O2", "-I"+filepath.Join(packages, "kernel"), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1",
		"-o", filepath.Join(dir, "libcuda.so.1"), filepath.Join(packages, "user", "cuda.c")).CombinedOutput()
	if err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	return dir
}

// ask runs a check with the machine's own sh, and returns its exit code, what a person is told and what
// programs are. Whatever the check wrote must be gone.
func ask(t *testing.T, script string, env ...string) (code int, text, data string) {
	t.Helper()
	tmp := t.TempDir()
	cmd := exec.Command("/bin/sh", "-c", "set -eu\n"+script)
	cmd.Env = slices.Concat(os.Environ(), []string{"TMPDIR=" + tmp}, env)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("the check left %v behind, %v", left, err)
	}
	var said, marked []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(line, "\n")
		if d, ok := strings.CutPrefix(line, DataMark); ok {
			marked = append(marked, d)
		} else {
			said = append(said, line)
		}
	}
	return cmd.ProcessState.ExitCode(), strings.Join(said, "\n"), strings.Join(marked, "\n")
}

func TestCUDAIsProvedByAProbeOfTheChecksOwn(t *testing.T) {
	s := find(t, "verify-cuda")
	dir := standIn(t)
	code, text, data := ask(t, s.Check(twoGPUs()), "LD_LIBRARY_PATH="+dir, "STUB_GPUS=2")
	report, why := s.Read(twoGPUs(), data)
	if code != 0 || why != "" || !strings.Contains(text, "GPU 1 NVIDIA GeForce GTX 1050 Ti (0000:02:00.0): kernel ok") {
		t.Errorf("exit %d, %q:\n%s", code, why, text)
	}
	r, err := cuda.Parse(report)
	if err != nil || r.Result != cuda.Pass || r.Expected != 2 || len(r.Devices) != 2 {
		t.Errorf("%v, %+v", err, r)
	}
}

func TestPartOfTheLinkIsAskedForAsTheUserSays(t *testing.T) {
	in := twoGPUs()
	s := find(t, "verify-cuda")
	if strings.Contains(s.Check(in), "--threshold") {
		t.Error("a threshold is given although nobody asked for one")
	}
	in.Want.LinkFraction = 0.75
	if !strings.Contains(s.Check(in), " --threshold 0.75 --pci 0000:01:00.0 --pci 0000:02:00.0 ") {
		t.Error("the threshold is not given to the probe")
	}
}

func TestCUDAThatFailsSaysWhichGPUAndWhatToDo(t *testing.T) {
	s := find(t, "verify-cuda")
	dir := standIn(t)
	for _, c := range []struct{ stub, text, why string }{
		{"STUB_INIT=3", "cuInit returned 3 (CUDA_ERROR_NOT_INITIALIZED)", "CUDA is not proved"},
		{"STUB_WRONG=1", "GPU 1 NVIDIA GeForce GTX 1050 Ti (0000:02:00.0): kernel-result", "computes wrong"},
		{"STUB_GPUS=1", "CUDA does not see the GPU at 0000:02:00.0", "does not serve every GPU"},
	} {
		code, text, data := ask(t, s.Check(twoGPUs()), "LD_LIBRARY_PATH="+dir, "STUB_GPUS=2", c.stub)
		report, why := s.Read(twoGPUs(), data)
		if code != 1 || !strings.Contains(text, c.text) || !strings.Contains(why, c.why) || report == nil {
			t.Errorf("%s: exit %d, %q:\n%s", c.stub, code, why, text)
		}
	}
}

func TestCUDAIsNotProvedWithoutACompiler(t *testing.T) {
	tools := t.TempDir()
	for _, name := range []string{"sh", "mktemp", "rm", "base64", "gzip", "tail", "timeout", "sed", "grep", "dmesg"} {
		if p, err := exec.LookPath(name); err == nil {
			if err := os.Symlink(p, filepath.Join(tools, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	code, text, data := ask(t, find(t, "verify-cuda").Check(twoGPUs()), "PATH="+tools)
	if code != 1 || !strings.Contains(text, "no C compiler of the guest makes the probe") || data != "" {
		t.Errorf("exit %d:\n%s", code, text)
	}
}

func TestProbeThatInstallBuiltIsTaken(t *testing.T) {
	in := twoGPUs()
	in.Facts.State.Absent = []string{"/etc/other", probePath()}
	script := find(t, "verify-cuda").Check(in)
	if strings.Contains(script, "base64") || !strings.Contains(script, "probe="+probePath()+"\n") {
		t.Error("the check brings a probe along although the guest has it")
	}
	if _, err := os.Stat(probePath()); err == nil {
		t.Skip("this machine is a guest of gpuguest's")
	}
	if code, text, _ := ask(t, script); code != 1 || !strings.Contains(text, "is gone: run gpuguest install again") {
		t.Errorf("exit %d:\n%s", code, text)
	}
}

func TestGuestMayDoWithoutCUDA(t *testing.T) {
	in := twoGPUs()
	for _, id := range []ID{"probe", "verify-cuda"} {
		s := find(t, id)
		if !s.Wanted(in) {
			t.Errorf("%s is not wanted", id)
		}
		in := in
		in.Want = choice.Want{WithoutCUDA: true}
		if s.Wanted(in) {
			t.Errorf("%s is wanted although CUDA is not", id)
		}
		// A guest that gets its GPU later has the probe by then.
		if later := s.Wanted(Input{Want: choice.Want{NoGPU: true}}); later != (id == "probe") {
			t.Errorf("%s is wanted without a GPU: %t", id, later)
		}
	}
}

// fake is a program of NVIDIA's that prints a fixture and exits as told.
func fake(t *testing.T, fixture, exit string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "testdata", "outputs", "cuda", fixture))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(raw), "\n")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	tool := filepath.Join(dir, "tool")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\ncat "+dir+"/text\nexit "+exit+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return tool
}

func TestNVIDIAsOwnProgramsAreRunWhereTheyAre(t *testing.T) {
	one := Input{Facts: facts.Facts{GPUs: twoGPUs().Facts.GPUs[:1]}}
	for _, c := range []struct {
		id            ID
		in            Input
		fixture, exit string
		code          int
		why           string
	}{
		{"verify-devicequery", one, "devicequery-gtx1050ti.txt", "0", 0, ""},
		{"verify-devicequery", twoGPUs(), "devicequery-two.txt", "0", 0, ""},
		{"verify-devicequery", twoGPUs(), "devicequery-gtx1050ti.txt", "0", 1, "deviceQuery sees 1 GPUs, the guest has 2"},
		{"verify-devicequery", one, "devicequery-none.txt", "0", 1, "passed without a GPU"},
		{"verify-devicequery", one, "devicequery-802.txt", "1", 1, "fabric manager"},
		{"verify-bandwidthtest", one, "bandwidthtest-gtx1050ti.txt", "0", 0, ""},
		{"verify-bandwidthtest", one, "bandwidthtest-none.txt", "0", 0, "finds no GPU"},
		{"verify-nvbandwidth", one, "nvbandwidth-json.txt", "0", 0, ""},
		{"verify-nvbandwidth", twoGPUs(), "nvbandwidth-two.txt", "0", 0, ""},
		{"verify-dcgm", one, "dcgm-fail.txt", "226", 1, "Persistence Mode"},
	} {
		i := slices.IndexFunc(samples, func(s sample) bool { return ID(s.id) == c.id })
		s := samples[i]
		s.places = []string{"/nonexistent/*/tool", fake(t, c.fixture, c.exit)}
		code, text, data := ask(t, s.check(c.in))
		report, why := find(t, c.id).Read(c.in, data)
		if code != c.code || (c.why == "") != (why == "") || !strings.Contains(why, c.why) || report == nil {
			t.Errorf("%s on %s: exit %d, %q, report %s:\n%s", c.id, c.fixture, code, why, report, text)
		}
	}
}

func TestProgramThatIsNotThereSaysWhereItWasLookedFor(t *testing.T) {
	for _, tool := range Samples() {
		i := slices.IndexFunc(samples, func(s sample) bool { return s.tool == tool })
		s := samples[i]
		s.places = slices.Clone(s.places)
		for n, p := range s.places {
			s.places[n] = "/nonexistent" + p
		}
		code, text, data := ask(t, s.check(twoGPUs()))
		if code != 1 || data != "" || !strings.Contains(text, tool+" is not in the guest; looked at: /nonexistent/") {
			t.Errorf("%s: exit %d:\n%s", tool, code, text)
		}
		if step := find(t, ID(s.id)); step.Wanted(twoGPUs()) {
			t.Errorf("%s is run although nobody asked", tool)
		}
		in := twoGPUs()
		in.Want.With = []string{tool}
		if step := find(t, ID(s.id)); !step.Wanted(in) {
			t.Errorf("%s is not run although it was asked for", tool)
		}
	}
}

// TestSMIsDocumentAddsWhatTheFieldsDoNotTell runs verify-smi's check over an nvidia-smi that answers both ways.
func TestSMIsDocumentAddsWhatTheFieldsDoNotTell(t *testing.T) {
	s := find(t, "verify-smi")
	in := twoGPUs()
	in.Facts.GPUs = in.Facts.GPUs[:1]
	in.Choice = choice.Choice{Branch: 535, Version: "535.309.01"}
	smi := func(document string) string {
		dir := t.TempDir()
		script := "#!/bin/sh\ncase $* in\n*-x*) " + document + " ;;\n*) echo '00000000:01:00.0, Tesla T4, 535.309.01, Enabled, 31' ;;\nesac\n"
		if err := os.WriteFile(filepath.Join(dir, "nvidia-smi"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		return "PATH=" + dir + ":" + os.Getenv("PATH")
	}
	file, err := filepath.Abs(filepath.Join("..", "testdata", "outputs", "smi", "v12-t4.xml"))
	if err != nil {
		t.Fatal(err)
	}
	code, text, data := ask(t, s.Check(in), smi("cat "+file))
	report, why := s.Read(in, data)
	if code != 0 || why != "" || !strings.Contains(string(report), `"gsp_firmware":"535.309.01"`) || !strings.Contains(text, "31 C") || strings.Contains(data, "serial") {
		t.Errorf("exit %d, %q, %s:\n%s", code, why, report, text)
	}
	_, _, data = ask(t, s.Check(in), smi("sed 's|<gsp_firmware_version>535.309.01|<gsp_firmware_version>535.261.03|' "+file))
	if _, why := s.Read(in, data); !strings.Contains(why, "the firmware on the GPU is 535.261.03, the driver is 535.309.01") {
		t.Errorf("another firmware: %q", why)
	}
	// The stand-in library under the real nvidia-smi ends so.
	code, text, data = ask(t, s.Check(in), smi("echo 'Internal NVML error'; exit 255"))
	if code != 0 || data != "" {
		t.Errorf("exit %d, %q:\n%s", code, data, text)
	}
}

// bandwidthTest is run for each GPU, and each one's figures are held against its own link.
func TestBandwidthTestIsRunForEveryGPU(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "testdata", "outputs", "cuda", "bandwidthtest-gtx1050ti.txt"))
	if err != nil {
		t.Fatal(err)
	}
	dir, sysfs := t.TempDir(), t.TempDir()
	// GPU 1 is as slow as one behind a throttled port.
	slow := strings.NewReplacer("Device 0:", "Device 1:", "9719.0", "971.9", "9.7", "0.9").Replace(string(raw))
	if slow == string(raw) {
		t.Fatal("the fixture has no figure to make slow")
	}
	for name, text := range map[string]string{"0": string(raw), "1": slow} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tool := filepath.Join(dir, "bandwidthTest")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\ncat "+dir+"/${1#--device=}\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	in := twoGPUs()
	for _, g := range in.Facts.GPUs {
		d := filepath.Join(sysfs, g.Address)
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"current_link_speed": "8.0 GT/s PCIe\n", "current_link_width": "16\n"} {
			if err := os.WriteFile(filepath.Join(d, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := samples[slices.IndexFunc(samples, func(s sample) bool { return s.tool == cuda.ToolBandwidthTest })]
	s.places, s.sources = []string{tool}, nil
	script := strings.ReplaceAll(s.check(in), "/sys/bus/pci/devices", sysfs)
	code, text, data := ask(t, script)
	r := cuda.BandwidthTest(data)
	if code != 1 || len(r.Devices) != 2 || r.Devices[0].Bandwidth.PinnedH2D < 5 || r.Devices[1].Bandwidth.PinnedH2D > 1 {
		t.Fatalf("exit %d: %+v: %s", code, r, text)
	}
	if !strings.Contains(text, in.Facts.GPUs[1].Address+": link-bandwidth: pinned copies to the GPU reach 0.9") || strings.Contains(text, in.Facts.GPUs[0].Address+": link-bandwidth") {
		t.Errorf("%s", text)
	}
	in.Want.LinkFraction = 0.01
	if code, text, _ := ask(t, strings.ReplaceAll(s.check(in), "/sys/bus/pci/devices", sysfs)); code != 0 {
		t.Errorf("a hundredth is asked for: exit %d: %s", code, text)
	}
}
