package plan

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gpuguest/assets"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

var update = flag.Bool("update", false, "write the goldens anew; read the difference in review")

// goldens name a recording in testdata/guests, a wish, and by that a golden in testdata/plans.
var goldens = []struct {
	name, guest string
	want        choice.Want
}{
	{"debian11-k80-distro", "debian11-k80", choice.Want{Source: choice.SourceDistro}},
	{"debian12-gtx1050ti", "debian12-gtx1050ti-nouveau", choice.Want{}},
	{"debian12-gtx1050ti-realloc-hold", "debian12-gtx1050ti-nouveau", choice.Want{KernelArgs: []string{"pci=realloc"}, HoldKernel: true}},
	{"debian12-gtx1050ti-mirror", "debian12-gtx1050ti-nouveau", choice.Want{Mirror: "http://mirror.example/cuda", KeyringSHA256: strings.Repeat("ab", 32)}},
	{"debian12-t4-installed", "debian12-t4-driver535", choice.Want{Source: choice.SourceDistro}},
	{"debian12-no-gpu", "debian12-no-gpu", choice.Want{NoGPU: true, Devices: []string{"10de:1eb8"}}},
	{"debian12-bar1-0m", "debian12-bar1-0m", choice.Want{KernelArgs: []string{"pci=realloc"}}},
	{"debian13-t4", "debian13-t4", choice.Want{}},
	{"debian13-t4-distro-proprietary", "debian13-t4", choice.Want{Source: choice.SourceDistro, Flavor: choice.FlavorProprietary}},
	{"ubuntu2004-gtx750", "ubuntu2004-gtx750", choice.Want{}},
	{"ubuntu2204-v100", "ubuntu2204-v100", choice.Want{}},
	{"ubuntu2204-a100-secureboot", "ubuntu2204-a100-secureboot", choice.Want{}},
	{"ubuntu2204-t4-runfile", "ubuntu2204-t4-runfile-oldkey", choice.Want{}},
	{"ubuntu2204-a10-vgpu", "ubuntu2204-a10-vgpu", choice.Want{}},
	{"ubuntu2404-b200", "ubuntu2404-b200", choice.Want{}},
	{"ubuntu2404-gh200-arm64", "ubuntu2404-gh200-arm64", choice.Want{}},
	{"ubuntu2404-h100-595", "ubuntu2404-h100", choice.Want{Driver: "595"}},
	{"ubuntu2404-l4-next-kernel", "ubuntu2404-l4-next-kernel", choice.Want{}},
	{"ubuntu2404-t4-locked", "ubuntu2404-t4-locked", choice.Want{}},
	{"ubuntu2604-rtxpro6000-nova", "ubuntu2604-rtxpro6000-nova", choice.Want{}},
	{"debian12-two-generations", "debian12-two-generations", choice.Want{}},
	{"debian12-t4-secureboot", "debian12-t4-secureboot", choice.Want{}},
	{"debian12-readonly", "debian12-readonly", choice.Want{}},
	{"debian12-k80-and-l4", "debian12-k80-and-l4", choice.Want{}},
	{"rocky9-l4", "rocky9-l4", choice.Want{}},
	{"debian12-t4-remedies", "debian12-t4-driver535", choice.Want{Source: choice.SourceDistro, Firmware: true, ModuleOptions: []string{"nvidia_uvm uvm_disable_hmm=1"}}},
	{"debian12-t4-remedies-back", "debian12-t4-driver535", choice.Want{Source: choice.SourceDistro, DropFirmware: true, DropOptions: []string{"nvidia_uvm uvm_disable_hmm=1"}}},
	{"ubuntu2510-t4-dracut-firmware", "ubuntu2510-t4-dracut", choice.Want{As: "ubuntu:24.04", Firmware: true}},
	{"debian12-t4-unsupported-branch", "debian12-t4-driver535", choice.Want{Driver: "390"}},
}

func guestFacts(t testing.TB, name string) facts.Facts {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "testdata", "guests", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := facts.Parse(raw)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return f
}

func build(f facts.Facts, w choice.Want) (Plan, error) {
	in, err := Input(f, w)
	if err != nil {
		return Plan{}, err
	}
	return Build(in, steps.Install())
}

// TestPlansOfRecordedGuests holds the plan of every recording, or its refusal, against a golden.
func TestPlansOfRecordedGuests(t *testing.T) {
	for _, g := range goldens {
		t.Run(g.name, func(t *testing.T) {
			f := guestFacts(t, g.guest)
			p, err := build(f, g.want)
			var text, shell bytes.Buffer
			if err != nil {
				text.WriteString("refused: " + err.Error() + "\n")
			} else {
				if err := p.Text(&text, f, nil); err != nil {
					t.Fatal(err)
				}
				if err := p.Shell(&shell); err != nil {
					t.Fatal(err)
				}
				text.WriteString("\n")
				for _, it := range p.Items() {
					text.WriteString("== " + string(it.ID) + "\n" + it.Check + "\n")
					for _, a := range it.Actions {
						text.WriteString("-- " + describe(a) + "\n" + actionScript(a) + "\n")
					}
				}
			}
			text = *bytes.NewBufferString(withoutProbe(text.String()))
			golden := filepath.Join("..", "..", "testdata", "plans", g.name+".golden")
			if *update {
				if err := os.WriteFile(golden, text.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(text.Bytes(), want) {
				t.Errorf("plan differs from %s (go test ./internal/plan -update rewrites it):\n%s", golden, text.String())
			}
			checkShell(t, shell.Bytes())
		})
	}
}

var (
	// packed is the probe's source as a check brings it along, probeName its path, which holds a sum of it.
	packed    = regexp.MustCompile(`(?s)<<'PROBE'(.*?)\n.*?\nPROBE\n`)
	probeName = regexp.MustCompile(`cuda-probe-[0-9a-f]{12}`)
)

// withoutProbe leaves the probe's source out of a plan's text: it is a file of its own, and a thousand lines.
func withoutProbe(text string) string {
	text = strings.ReplaceAll(text, sh.Quote(assets.Probe), "'(the source of the probe)'")
	text = probeName.ReplaceAllString(text, "cuda-probe-(sum)")
	return packed.ReplaceAllString(text, "<<'PROBE'$1\n(the source of the probe)\nPROBE\n")
}

// checkShell has the machine's own sh read a plan.
func checkShell(t *testing.T, script []byte) {
	t.Helper()
	if len(script) == 0 {
		return
	}
	cmd := exec.Command("/bin/sh", "-n")
	cmd.Stdin = bytes.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("sh -n: %v\n%s", err, out)
	}
}

func TestTheSamePlanForTheSameGuest(t *testing.T) {
	f := guestFacts(t, "debian12-gtx1050ti-nouveau")
	var first []byte
	for range 20 {
		p, err := build(f, choice.Want{})
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := p.JSON(&b, f, nil); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b.Bytes()
		}
		if !bytes.Equal(first, b.Bytes()) {
			t.Fatal("two plans of one guest differ")
		}
	}
}

func BenchmarkPlanForOneGuest(b *testing.B) {
	f := guestFacts(b, "debian12-gtx1050ti-nouveau")
	for b.Loop() {
		if _, err := build(f, choice.Want{}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestGuestWhoseHeadersLeftTheArchiveMovesToTheNewestKernel(t *testing.T) {
	f := guestFacts(t, "debian12-gtx1050ti-nouveau")
	exact := "linux-headers-" + f.Kernel.Next
	if _, ok := f.Offered[exact]; !ok {
		t.Fatalf("the recording does not offer %s, so this test tests nothing", exact)
	}
	find := func() *Item {
		p, err := build(f, choice.Want{})
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range p.Items() {
			if it.ID == "kernel" {
				return &it
			}
		}
		return nil
	}
	if find() != nil {
		t.Error("a guest whose headers can be had is given another kernel")
	}
	delete(f.Offered, exact)
	f.Kernel.Headers = nil
	it := find()
	if it == nil || !it.Replan || !strings.Contains(actionScript(it.Actions[0]), "linux-image-amd64") {
		t.Errorf("step %+v", it)
	}
}

func TestKernelArgumentsOfAnEarlierRunStayUntilTheyAreDropped(t *testing.T) {
	f := guestFacts(t, "debian12-gtx1050ti-nouveau")
	f.State.KernelArgs = []string{"modprobe.blacklist=nouveau", "nouveau.modeset=0", "pci=realloc"}
	f.Kernel.Cmdline = append(f.Kernel.Cmdline, "pci=realloc")
	for _, c := range []struct {
		want choice.Want
		args string
	}{
		{choice.Want{}, "pci=realloc"},
		{choice.Want{KernelArgs: []string{"iommu=pt"}}, "pci=realloc iommu=pt"},
		{choice.Want{KernelArgs: []string{"pci=realloc=off"}, DropArgs: []string{"pci=realloc"}}, "pci=realloc=off"},
		{choice.Want{DropArgs: []string{"pci=realloc"}}, ""},
	} {
		p, err := build(f, c.want)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range p.Items() {
			if it.ID != "kernel-args" {
				continue
			}
			want := strings.TrimSuffix("# arguments: modprobe.blacklist=nouveau,nova_core,nova_drm,nova,nvidiafb nouveau.modeset=0 "+c.args, " ")
			if script := actionScript(it.Actions[1]); !strings.Contains(script, want+"\n") {
				t.Errorf("%+v: no line %q in\n%s", c.want, want, script)
			}
			if !it.AtBoot {
				t.Errorf("%+v: the change is said to need no boot", c.want)
			}
		}
	}
}
