package plan

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// bundleFor is the bundle that would be made for a recorded guest and a wish.
func bundleFor(t *testing.T, f facts.Facts, w choice.Want) choice.Bundle {
	t.Helper()
	in, err := Input(f, w)
	if err != nil {
		t.Fatal(err)
	}
	return choice.Bundle{
		Name: "vm.bundle", SHA256: strings.Repeat("ab", 32), Size: 200 << 20, Distro: in.Distro.String(), Arch: f.Arch, Kernel: f.Kernel.Next,
		Packages: steps.Needs(in).All(),
	}
}

// asksNetwork are programs and words of scripts that fetch something. apt itself does so too, where it is told to read
// the guest's own sources.
var asksNetwork = regexp.MustCompile(`\b(curl|wget|apt-helper)\b|https?://`)

func TestPlanByBundleAsksNothingOfTheNetwork(t *testing.T) {
	for name, w := range map[string]choice.Want{
		"debian12-gtx1050ti-nouveau": {},
		"rocky9-l4":                  {},
		"rocky10-b200":               {CUDA: choice.CUDAAuto},
		"rocky9-h100-podman":         {ContainerToolkit: choice.EnginePodman, GDS: true},
		"ubuntu2204-a100-docker":     {ContainerToolkit: choice.EngineDocker},
		"sles15-t4":                  {},
		"fedora44-b200":              {},
	} {
		t.Run(name, func(t *testing.T) {
			f := guestFacts(t, name)
			w.Bundle = bundleFor(t, f, w)
			p, err := build(f, w)
			if err != nil {
				t.Fatal(err)
			}
			if p.Env == "" {
				t.Error("nothing tells the steps of the bundle")
			}
			at := map[steps.ID]int{}
			for i, it := range p.Items() {
				at[it.ID] = i
				if slices.Contains([]steps.ID{"repo", "components", "old-sources", "extra-repos", "kernel", "container-repo"}, it.ID) {
					t.Errorf("%s is in the plan", it.ID)
				}
				for _, a := range it.Actions {
					if found := asksNetwork.FindString(actionScript(a)); found != "" && it.ID != "probe" {
						t.Errorf("%s asks the network: %s", it.ID, found)
					}
				}
			}
			bundle, there := at["bundle"]
			for _, id := range []steps.ID{"rescue", "blocklist", "headers", "pin", "driver"} {
				if i, ok := at[id]; ok && (!there || i < bundle) || !ok && id != "pin" {
					t.Errorf("%s does not come after the bundle", id)
				}
			}
		})
	}
}

func TestBundleOfAnotherGuestOrPlanIsRefused(t *testing.T) {
	f := guestFacts(t, "debian12-gtx1050ti-nouveau")
	f.Kernel.Headers = nil
	maps.DeleteFunc(f.Packages, func(p, _ string) bool { return p == "dkms" || strings.HasPrefix(p, "linux-headers") })
	good := bundleFor(t, f, choice.Want{})
	for name, c := range map[string]struct {
		guest  string
		change func(*choice.Bundle, *choice.Want)
		says   string
	}{
		"another distribution": {"debian13-t4", func(*choice.Bundle, *choice.Want) {}, "it was made for debian:12 on x86_64, and the guest is debian:13 on x86_64"},
		"another machine":      {"", func(b *choice.Bundle, _ *choice.Want) { b.Arch = "aarch64" }, "debian:12 on aarch64"},
		"another kernel":       {"", func(b *choice.Bundle, _ *choice.Want) { b.Kernel = "6.1.0-1-amd64" }, "it was made for kernel 6.1.0-1-amd64, and the guest starts " + f.Kernel.Next + " next"},
		"another branch":       {"", func(_ *choice.Bundle, w *choice.Want) { w.Driver = "570" }, "it lacks nvidia-driver-pinning-570"},
		"a package less": {"", func(b *choice.Bundle, _ *choice.Want) {
			b.Packages = slices.DeleteFunc(slices.Clone(b.Packages), func(p string) bool { return p == "dkms" })
		}, "it lacks dkms"},
		"a toolkit more": {"", func(_ *choice.Bundle, w *choice.Want) { w.CUDA = "12.4" }, "it lacks cuda-toolkit-12-4"},
		"the container toolkit": {"ubuntu2204-a100-docker", func(b *choice.Bundle, w *choice.Want) {
			b.Distro, b.Kernel = "ubuntu:22.04", guestFacts(t, "ubuntu2204-a100-docker").Kernel.Next
			w.ContainerToolkit = choice.EngineDocker
			b.Packages = slices.DeleteFunc(slices.Clone(b.Packages), func(p string) bool { return p == "nvidia-container-toolkit" })
		}, "nvidia-container-toolkit"},
		"an installer": {"", func(_ *choice.Bundle, w *choice.Want) { w.Source = choice.SourceRunfile }, "it lacks "},
		"yum":          {"centos7-k80", func(b *choice.Bundle, _ *choice.Want) { b.Distro = "centos:7" }, "--proxy"},
		"tdnf":         {"azurelinux3-a100", func(b *choice.Bundle, _ *choice.Want) { b.Distro = "azurelinux:3.0" }, "--proxy"},
	} {
		t.Run(name, func(t *testing.T) {
			guest := f
			if c.guest != "" {
				guest = guestFacts(t, c.guest)
			}
			b, w := good, choice.Want{}
			c.change(&b, &w)
			w.Bundle = b
			_, err := build(guest, w)
			var refusal *choice.Refusal
			if !errors.As(err, &refusal) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, wanted a refusal that says %q", err, c.says)
			}
		})
	}
	if _, err := build(f, choice.Want{Bundle: good}); err != nil {
		t.Errorf("the one that fits: %v", err)
	}
}

// The scripts that gather packages are read by sh and shellcheck for each kind of source.
func TestGatheringPassesShellcheck(t *testing.T) {
	for name, w := range map[string]choice.Want{
		"debian12-gtx1050ti-nouveau": {},
		"debian11-k80":               {Source: choice.SourceDistro},
		"debian13-t4":                {Source: choice.SourceDistro, CUDA: "12.4"},
		"ubuntu2204-a100-docker":     {ContainerToolkit: choice.EngineDocker},
		"rocky9-l4":                  {CUDA: "12.8"},
		"rocky9-h100-podman":         {ContainerToolkit: choice.EnginePodman, GDS: true},
		"rocky10-b200":               {},
		"almalinux9-h100-secureboot": {},
		"fedora44-b200":              {},
		"leap15-v100":                {},
	} {
		f := guestFacts(t, name)
		in, err := Input(f, w)
		if err != nil && name == "debian13-t4" {
			w.CUDA = ""
			in, err = Input(f, w)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		script, err := GatherScript(in, in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkShell(t, []byte(script))
		if bin, err := exec.LookPath("shellcheck"); err == nil {
			cmd := exec.Command(bin, "-s", "sh", "-S", "warning", "-")
			cmd.Stdin = strings.NewReader(script)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", name, err, out)
			}
		}
	}
	for name, says := range map[string]string{"centos7-k80": "apt, dnf and zypper", "azurelinux3-a100": "apt, dnf and zypper", "sles15-t4": "does not read Package Hub"} {
		in, err := Input(guestFacts(t, name), choice.Want{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := GatherScript(in, in); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("a bundle for %s: %v", name, err)
		}
	}
}

// TestProxyIsOnlyEverAPath: a plan with a proxy tells its place and a checksum.
func TestProxyIsOnlyEverAPath(t *testing.T) {
	f := guestFacts(t, "rocky9-l4")
	p, err := build(f, choice.Want{Proxy: choice.Proxy{Shown: "http://proxy.example:3128", SHA256: strings.Repeat("cd", 32)}})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(p.Items(), func(it Item) bool { return it.ID == "proxy" })
	if i < 0 {
		t.Fatal("the plan has no step for the proxy")
	}
	sends := slices.ContainsFunc(p.Items()[i].Actions, func(a action.Action) bool {
		s, ok := a.(action.Send)
		return ok && s.SHA256 == strings.Repeat("cd", 32)
	})
	if !sends || !strings.Contains(p.Script(p.Items()[i]), "/var/lib/gpuguest/proxy/env") {
		t.Error("the file that tells of the proxy is not sent, or not read")
	}
	without, err := build(f, choice.Want{})
	if err != nil {
		t.Fatal(err)
	}
	if without.Env != "" {
		t.Errorf("a plan without a proxy reads %q", without.Env)
	}
}

// TestFullDiskLosesNoPackageFromTheLedger: what was installed before the disk was full is in the ledger once there is
// room again. A folder in the ledger's way stands for the full disk.
func TestFullDiskLosesNoPackageFromTheLedger(t *testing.T) {
	g := newGuestDir(t)
	way := filepath.Join(g.state, "packages.tmp", "full")
	full := g.item("printf 'bash 5\\ngcc 12\\n' >" + sh.Quote(g.packages) + "\nmkdir -p " + sh.Quote(way) + "\nexit 28")
	full.Actions = []action.Action{action.Run{Title: "install", Script: full.Actions[0].(action.Run).Script, Packages: true}}
	if code, out := g.run(full); code != 28 {
		t.Fatalf("exit %d: %s", code, out)
	}
	if err := os.RemoveAll(filepath.Dir(way)); err != nil {
		t.Fatal(err)
	}
	again := g.item("printf 'bash 5\\ngcc 12\\ndkms 3\\n' >" + sh.Quote(g.packages) + "; touch " + sh.Quote(g.file))
	again.Actions = []action.Action{action.Run{Title: "install", Script: again.Actions[0].(action.Run).Script, Packages: true}}
	if code, out := g.run(again); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	if got := g.read(filepath.Join(g.state, "packages")); got != "added gcc - 12\nadded dkms - 3\n" {
		t.Errorf("the ledger holds %q", got)
	}
}
