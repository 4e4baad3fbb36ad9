package plan

import (
	"bytes"
	"cmp"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gpuguest/assets"
	"gpuguest/distros"
	"gpuguest/internal/catalog"
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
	{"debian12-no-gpu-both-flavors", "debian12-no-gpu", choice.Want{NoGPU: true, Devices: []string{"10de:1c82", "10de:2901"}, Flavor: choice.FlavorOpen, BothFlavors: true}},
	{"debian12-no-gpu-both-flavors-distro", "debian12-no-gpu", choice.Want{NoGPU: true, Devices: []string{"10de:1c82", "10de:1eb8"}, Flavor: choice.FlavorOpen, BothFlavors: true, Source: choice.SourceDistro}},
	{"debian12-no-gpu-distro-open", "debian12-no-gpu", choice.Want{NoGPU: true, Devices: []string{"10de:1eb8"}, Source: choice.SourceDistro, Flavor: choice.FlavorOpen}},
	{"ubuntu2004-gtx750", "ubuntu2004-gtx750", choice.Want{}},
	{"ubuntu2204-v100", "ubuntu2204-v100", choice.Want{}},
	{"ubuntu2204-a100-secureboot", "ubuntu2204-a100-secureboot", choice.Want{}},
	{"ubuntu2204-t4-runfile", "ubuntu2204-t4-runfile-oldkey", choice.Want{}},
	{"ubuntu2204-a10-vgpu", "ubuntu2204-a10-vgpu", choice.Want{}},
	{"ubuntu2404-b200", "ubuntu2404-b200", choice.Want{}},
	{"ubuntu2404-gh200-arm64", "ubuntu2404-gh200-arm64", choice.Want{}},
	{"ubuntu2404-gh200-arm64-keyring", "ubuntu2404-gh200-arm64", choice.Want{Source: choice.SourceNVIDIA, KeyringSHA256: strings.Repeat("ab", 32), CUDA: "12.9"}},
	{"ubuntu2404-h100-595", "ubuntu2404-h100", choice.Want{Driver: "595"}},
	{"ubuntu2404-l4-next-kernel", "ubuntu2404-l4-next-kernel", choice.Want{}},
	{"ubuntu2404-t4-locked", "ubuntu2404-t4-locked", choice.Want{}},
	{"ubuntu2604-rtxpro6000-nova", "ubuntu2604-rtxpro6000-nova", choice.Want{}},
	{"debian12-two-generations", "debian12-two-generations", choice.Want{}},
	{"debian12-t4-secureboot", "debian12-t4-secureboot", choice.Want{}},
	{"debian12-readonly", "debian12-readonly", choice.Want{}},
	{"debian12-k80-and-l4", "debian12-k80-and-l4", choice.Want{}},
	{"rocky9-l4", "rocky9-l4", choice.Want{}},
	{"debian12-gtx1050ti-runfile", "debian12-gtx1050ti-nouveau", choice.Want{Source: choice.SourceRunfile}},
	{"ubuntu2004-gtx750-runfile-390-cuda-9.1", "ubuntu2004-gtx750", choice.Want{Source: choice.SourceRunfile, Driver: "390.157", CUDA: "9.1", CUDASource: choice.SourceRunfile}},
	{"ubuntu2004-gtx750-runfile-sent", "ubuntu2004-gtx750", choice.Want{Runfile: sentDriver, CUDA: "9.1.85", CUDARunfile: sentToolkit}},
	{"debian12-gtx1050ti-cuda-too-new", "debian12-gtx1050ti-nouveau", choice.Want{CUDA: "13.0"}},
	{"debian12-bar1-0m-cuda-auto", "debian12-bar1-0m", choice.Want{CUDA: choice.CUDAAuto}},
	{"debian12-k80-and-l4-runfile", "debian12-k80-and-l4", choice.Want{Source: choice.SourceRunfile}},
	{"debian12-t4-secureboot-key", "debian12-t4-secureboot", choice.Want{Signing: trustedKey}},
	{"debian12-t4-secureboot-stranger", "debian12-t4-secureboot", choice.Want{Signing: strangeKey}},
	{"debian12-t4-secureboot-key-runfile", "debian12-t4-secureboot", choice.Want{Signing: trustedKey, Source: choice.SourceRunfile, Driver: "535"}},
	{"debian13-t4-distro-cuda-no-room", "debian13-t4", choice.Want{Source: choice.SourceDistro, CUDA: "12.4"}},
	{"ubuntu2204-v100-distro-cuda", "ubuntu2204-v100", choice.Want{Source: choice.SourceDistro, CUDA: "12.4.1"}},
	{"debian12-t4-installed-cuda-too-new", "debian12-t4-driver535", choice.Want{Source: choice.SourceDistro, CUDA: "13.0"}},
	{"debian12-t4-runfile-beside-packages", "debian12-t4-driver535", choice.Want{Source: choice.SourceRunfile}},
	{"ubuntu2004-gtx750-cuda-auto-runfile", "ubuntu2004-gtx750", choice.Want{CUDA: choice.CUDAAuto, CUDASource: choice.SourceRunfile}},
	{"ubuntu2204-t4-runfile-again", "ubuntu2204-t4-runfile-oldkey", choice.Want{Source: choice.SourceRunfile}},
	{"ubuntu2204-t4-runfile-to-packages", "ubuntu2204-t4-runfile-oldkey", choice.Want{Source: choice.SourceNVIDIA, Replace: true}},
	{"ubuntu2204-t4-runfile-upgrade", "ubuntu2204-t4-runfile-oldkey", choice.Want{Source: choice.SourceRunfile, Driver: "580"}},
	{"ubuntu2404-h100-cuda-12.8", "ubuntu2404-h100", choice.Want{CUDA: "12.8"}},
	{"ubuntu2404-h100-both", "ubuntu2404-h100", choice.Want{Source: choice.SourceRunfile, CUDA: choice.CUDAAuto}},
	{"ubuntu2404-b200-runfile", "ubuntu2404-b200", choice.Want{Source: choice.SourceRunfile}},
	{"ubuntu2404-gh200-arm64-runfile", "ubuntu2404-gh200-arm64", choice.Want{Runfile: sentDriver}},
	{"centos7-k80", "centos7-k80", choice.Want{}},
	{"rhel7-p100-efi-535", "rhel7-p100-efi", choice.Want{Driver: "535"}},
	{"ol7-v100", "ol7-v100", choice.Want{}},
	{"rhel8-a100-proprietary", "rhel8-a100", choice.Want{Flavor: choice.FlavorProprietary}},
	{"rocky8-v100", "rocky8-v100", choice.Want{}},
	{"almalinux8-k80", "almalinux8-k80", choice.Want{}},
	{"centos8-t4-hold", "centos8-t4", choice.Want{HoldKernel: true}},
	{"ol8-t4-exact", "ol8-t4", choice.Want{Driver: "580.95.05"}},
	{"rhel9-t4", "rhel9-t4", choice.Want{}},
	{"rhel9-t4-azure-rhui", "rhel9-t4-azure-rhui", choice.Want{}},
	{"rhel9-t4-google-rhui", "rhel9-t4-google-rhui", choice.Want{}},
	{"rhel9-h100-secureboot", "rhel9-h100-secureboot", choice.Want{}},
	{"rocky9-secureboot-enrolled", "rocky9-secureboot-enrolled", choice.Want{}},
	{"rocky9-k80", "rocky9-k80", choice.Want{}},
	{"rocky9-l4-470", "rocky9-l4", choice.Want{Driver: "470", Flavor: choice.FlavorProprietary}},
	{"rocky9-l4-distro", "rocky9-l4", choice.Want{Source: choice.SourceDistro}},
	{"rocky9-l4-mirror", "rocky9-l4", choice.Want{Mirror: "http://mirror.example/cuda", KeyringSHA256: strings.Repeat("ab", 32)}},
	{"rocky9-l4-driver580", "rocky9-l4-driver580", choice.Want{}},
	{"rocky9-l4-driver580-to-595", "rocky9-l4-driver580", choice.Want{Driver: "595"}},
	{"almalinux9-gh200-64k", "almalinux9-gh200-64k", choice.Want{}},
	{"centos9-l4-realloc", "centos9-l4", choice.Want{KernelArgs: []string{"pci=realloc"}}},
	{"ol9-l4-uek", "ol9-l4-uek", choice.Want{}},
	{"rhel10-h100", "rhel10-h100", choice.Want{}},
	{"rocky10-b200", "rocky10-b200", choice.Want{}},
	{"almalinux10-t4-arm64-595", "almalinux10-t4-arm64", choice.Want{Driver: "595"}},
	{"centos10-l4", "centos10-l4", choice.Want{}},
	{"ol10-l4", "ol10-l4", choice.Want{}},
	{"fedora43-l4", "fedora43-l4", choice.Want{}},
	{"fedora44-b200", "fedora44-b200", choice.Want{}},
	{"fedora44-l4-systemd-boot", "fedora44-l4-systemd-boot", choice.Want{HoldKernel: true}},
	{"fedora44-l4-rpmfusion", "fedora44-l4-rpmfusion", choice.Want{}},
	{"amzn2023-l4", "amzn2023-l4", choice.Want{}},
	{"amzn2023-t4-arm64", "amzn2023-t4-arm64", choice.Want{}},
	{"kylin10-t4", "kylin10-t4", choice.Want{}},
	{"kylin11-a100", "kylin11-a100", choice.Want{}},
	{"sles15-t4", "sles15-t4", choice.Want{}},
	{"sles15-t4-secureboot", "sles15-t4-secureboot", choice.Want{}},
	{"leap15-v100-hold", "leap15-v100", choice.Want{HoldKernel: true}},
	{"sles16-h100-arm64", "sles16-h100-arm64", choice.Want{}},
	{"leap16-l4", "leap16-l4", choice.Want{}},
	{"azurelinux3-a100", "azurelinux3-a100", choice.Want{}},
	{"azurelinux3-v100", "azurelinux3-v100", choice.Want{}},
	{"centos7-k80-runfile-390-cuda-9.1", "centos7-k80", choice.Want{Runfile: sentDriver, CUDA: "9.1.85", CUDARunfile: sentToolkit}},
	{"rocky9-l4-runfile", "rocky9-l4", choice.Want{Source: choice.SourceRunfile}},
	{"rocky9-l4-cuda-auto", "rocky9-l4", choice.Want{CUDA: choice.CUDAAuto}},
	{"rocky9-l4-runfile-cuda", "rocky9-l4", choice.Want{Source: choice.SourceRunfile, CUDA: "12.8"}},
	{"rocky8-v100-cuda-auto", "rocky8-v100", choice.Want{CUDA: choice.CUDAAuto}},
	{"rhel9-h100-secureboot-key", "rhel9-h100-secureboot", choice.Want{Signing: strangeKey}},
	{"fedora44-b200-runfile-cuda", "fedora44-b200", choice.Want{Source: choice.SourceRunfile, CUDA: "12.9.1", CUDASource: choice.SourceRunfile}},
	{"sles15-t4-cuda-12.8", "sles15-t4", choice.Want{CUDA: "12.8"}},
	{"azurelinux3-a100-runfile", "azurelinux3-a100", choice.Want{Source: choice.SourceRunfile}},
	{"debian12-t4-remedies", "debian12-t4-driver535", choice.Want{Source: choice.SourceDistro, Firmware: true, ModuleOptions: []string{"nvidia_uvm uvm_disable_hmm=1"}}},
	{"debian12-t4-remedies-back", "debian12-t4-driver535", choice.Want{Source: choice.SourceDistro, DropFirmware: true, DropOptions: []string{"nvidia_uvm uvm_disable_hmm=1"}}},
	{"ubuntu2510-t4-dracut-firmware", "ubuntu2510-t4-dracut", choice.Want{As: "ubuntu:24.04", Firmware: true}},
	{"debian12-gtx1050ti-bundle", "debian12-gtx1050ti-nouveau", choice.Want{Bundle: airGapped}},
	{"rocky9-l4-bundle", "rocky9-l4", choice.Want{Bundle: airGappedRocky}},
	{"debian12-gtx1050ti-proxy", "debian12-gtx1050ti-nouveau", choice.Want{Proxy: aProxy}},
	{"rocky9-l4-proxy", "rocky9-l4", choice.Want{Proxy: aProxy}},
	{"debian12-t4-unsupported-branch", "debian12-t4-driver535", choice.Want{Driver: "390"}},
	{"ubuntu2404-l4-driver580-other-flavor", "ubuntu2404-l4-driver580", choice.Want{Flavor: choice.FlavorProprietary}},
	{"rocky9-l4-driver580-other-flavor", "rocky9-l4-driver580", choice.Want{Flavor: choice.FlavorProprietary}},
	{"ubuntu2404-l4-driver580-to-595", "ubuntu2404-l4-driver580", choice.Want{Driver: "595"}},
	{"rocky9-l4-precompiled", "rocky9-l4", choice.Want{Driver: "580.95.05", Modules: choice.ModulesPrecompiled}},
	{"rocky9-l4-precompiled-of-what", "rocky9-l4", choice.Want{Modules: choice.ModulesPrecompiled, Driver: "580"}},
	{"rhel9-h100-secureboot-precompiled", "rhel9-h100-secureboot", choice.Want{Driver: "580.95.05", Modules: choice.ModulesPrecompiled}},
	{"almalinux9-h100-secureboot", "almalinux9-h100-secureboot", choice.Want{}},
	{"rocky9-l4-driver580-to-runfile", "rocky9-l4-driver580-ledger", choice.Want{Source: choice.SourceRunfile, Replace: true}},
	{"ubuntu2404-h100-precompiled", "ubuntu2404-h100", choice.Want{Source: choice.SourceDistro, Modules: choice.ModulesPrecompiled}},
	{"ubuntu2204-a100-docker-mig", "ubuntu2204-a100-docker", choice.Want{ContainerToolkit: choice.EngineDocker, MIG: "3g.20gb,1g.5gb*4"}},
	{"ubuntu2204-a100-docker-mig-too-old", "ubuntu2204-a100-docker", choice.Want{Runfile: choice.Runfile{Name: "NVIDIA-Linux-x86_64-450.51.06.run", SHA256: strings.Repeat("ab", 32), Version: "450.51.06", Arch: "x86_64"}, MIG: "3g.20gb"}},
	{"rocky9-h100-podman-mig-gds-peermem", "rocky9-h100-podman", choice.Want{ContainerToolkit: choice.EnginePodman, MIG: "0=1g.10gb+me,2g.20gb", GDS: true, Peermem: true}},
	{"rocky9-h100-gds-distro", "rocky9-h100-podman", choice.Want{GDS: true, Flavor: choice.FlavorProprietary}},
	{"ubuntu2404-b200-nvlink5-containerd", "ubuntu2404-b200-nvlink5", choice.Want{ContainerToolkit: choice.EngineContainerd, MIG: "0=7g.180gb;1=off"}},
	{"sles15-l4-docker", "sles15-l4-docker", choice.Want{ContainerToolkit: choice.EngineDocker}},
	{"azurelinux3-a100-containerd", "azurelinux3-a100-containerd", choice.Want{ContainerToolkit: choice.EngineContainerd}},
	{"ubuntu2404-h100-cuda-12.8-samples", "ubuntu2404-h100", choice.Want{CUDA: "12.8", With: []string{"deviceQuery", "bandwidthTest"}}},
	{"rocky9-l4-samples-sent", "rocky9-l4", choice.Want{With: []string{"deviceQuery"}, Samples: choice.Archive{Name: "cuda-samples-13.0.tar.gz", SHA256: strings.Repeat("67", 32)}}},
	{"ubuntu2204-a10-vgpu-token", "ubuntu2204-a10-vgpu", choice.Want{Runfile: gridDriver, License: token}},
	{"ubuntu2204-a10-vgpu-other-driver", "ubuntu2204-a10-vgpu", choice.Want{Runfile: choice.Runfile{Name: "NVIDIA-Linux-x86_64-550.54.14.run", SHA256: strings.Repeat("ab", 32), Version: "550.54.14", Arch: "x86_64"}, License: token, Flavor: choice.FlavorOpen}},
}

// Files that a user would name, as the command line would describe them.
var (
	sentDriver  = choice.Runfile{Name: "NVIDIA-Linux-x86_64-390.42.run", SHA256: strings.Repeat("cd", 32), Version: "390.42", Arch: "x86_64"}
	sentToolkit = choice.Runfile{Name: "cuda_9.1.85_387.26_linux", SHA256: strings.Repeat("ef", 32), Version: "9.1.85", Arch: "x86_64"}
	aProxy      = choice.Proxy{Shown: "http://proxy.example:3128", SHA256: strings.Repeat("cd", 32)}
	gridDriver  = choice.Runfile{Name: "NVIDIA-Linux-x86_64-550.54.14-grid.run", SHA256: strings.Repeat("ab", 32), Version: "550.54.14", Arch: "x86_64"}
	token       = choice.Token{Name: "client_configuration_token_11-22-2026.tok", SHA256: strings.Repeat("45", 32)}
	trustedKey  = choice.Signing{KeySHA256: strings.Repeat("01", 32), CertSHA256: strings.Repeat("23", 32), Subject: "Debian Secure Boot CA", Signer: "Debian Secure Boot CA", KeyID: "6ccece7e4c6c0d1f6149f3dd27dfcc5cbb419ea1"}
	strangeKey  = choice.Signing{KeySHA256: strings.Repeat("01", 32), CertSHA256: strings.Repeat("23", 32), Subject: "somebody's key", Signer: "somebody's key", KeyID: "0102030405060708090a0b0c0d0e0f1011121314"}
)

// airGapped is the bundle of a plan for a recorded guest.
var airGapped = choice.Bundle{
	Name: "vm.bundle", SHA256: strings.Repeat("ab", 32), Size: 200 << 20, Distro: "debian:12", Arch: "x86_64", Kernel: "6.1.0-50-amd64",
	Packages: []string{"dkms", "gcc", "libc6-dev", "linux-headers-6.1.0-50-amd64", "linux-headers-amd64", "make", "nvidia-driver-cuda", "nvidia-driver-pinning-580", "nvidia-kernel-dkms", "nvidia-persistenced"},
}

// airGappedRocky is one for a guest of dnf.
var airGappedRocky = choice.Bundle{
	Name: "vm.bundle", SHA256: strings.Repeat("cd", 32), Size: 400 << 20, Distro: "rocky:9", Arch: "x86_64", Kernel: "5.14.0-570.49.1.el9_6.x86_64",
	Packages: []string{"dkms", "gcc", "glibc-devel", "kernel-devel-5.14.0-570.49.1.el9_6.x86_64", "kernel-devel-matched-5.14.0-570.49.1.el9_6.x86_64", "kmod-nvidia-open-dkms", "make", "nvidia-driver-cuda", "nvidia-persistenced"},
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

// TestPlansPassShellcheck has one plan of each package manager and boot loader read by shellcheck, and with
// GPUGUEST_LINT=1 every plan; one takes a second and more.
func TestPlansPassShellcheck(t *testing.T) {
	bin, err := exec.LookPath("shellcheck")
	if err != nil {
		t.Skip("no shellcheck on this machine")
	}
	few := []string{"debian12-gtx1050ti", "debian12-t4-secureboot-key-runfile", "centos7-k80-runfile-390-cuda-9.1", "rocky9-l4", "sles15-t4-secureboot", "debian12-gtx1050ti-bundle", "rocky9-l4-bundle", "rocky9-l4-proxy", "ubuntu2404-h100-cuda-12.8-samples"}
	for _, g := range goldens {
		if os.Getenv("GPUGUEST_LINT") == "" && !slices.Contains(few, g.name) {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			p, err := build(guestFacts(t, g.guest), g.want)
			if err != nil {
				return
			}
			var script bytes.Buffer
			if err := p.Shell(&script); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(bin, "-s", "sh", "-S", "warning", "-")
			cmd.Stdin = &script
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestUninstallTakesBackWhatRPMGuestsWereGiven has the ledger of a guest of each family planned for.
func TestUninstallTakesBackWhatRPMGuestsWereGiven(t *testing.T) {
	for _, c := range []struct {
		guest string
		says  []string
	}{
		{"rocky9-l4-driver580", []string{
			"rpm -e --test", "--setopt=clean_requirements_on_remove=0 remove", "grubby --update-kernel=ALL --remove-args=", "dracut --force /boot/initramfs-5.14.0-570.49.1.el9_6.x86_64.img",
			"/etc/dnf/modules.d/nvidia-driver.module", "gpg-pubkey-d42d0685-62e36a2e", "versionlock delete",
		}},
		{"centos7-k80", []string{"yum -y", "grub2-mkconfig -o /boot/grub2/grub.cfg", "/etc/default/grub"}},
		{"sles15-t4", []string{"zypper --non-interactive remove --no-clean-deps", "grub2-mkconfig -o /boot/grub2/grub.cfg", "SUSEConnect --de-register", "removelock"}},
		{"fedora44-l4-systemd-boot", []string{"remove", "/boot/efi/loader/entries", "dracut --force /boot/efi/"}},
		{"azurelinux3-a100", []string{"tdnf -y --noautoremove remove", "grub2-mkconfig"}},
	} {
		f := guestFacts(t, c.guest)
		f.State.Before = true
		f.State.Added = []string{"dkms", "gpg-pubkey-d42d0685-62e36a2e", "nvidia-driver-cuda"}
		f.State.Kept = []string{"/etc/default/grub", "/boot/initramfs.img"}
		f.State.Absent = []string{"/etc/modprobe.d/gpuguest-blocklist.conf", "/etc/dnf/modules.d/nvidia-driver.module"}
		f.State.Held = []string{"kernel-core"}
		f.State.KernelArgs = []string{"nouveau.modeset=0"}
		f.State.Products = []string{"PackageHub/15.6/x86_64"}
		in, err := Bare(f, choice.Want{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := Build(in, steps.Uninstall())
		if err != nil {
			t.Fatal(err)
		}
		var script bytes.Buffer
		if err := p.Shell(&script); err != nil {
			t.Fatal(err)
		}
		checkShell(t, script.Bytes())
		for _, s := range c.says {
			if !strings.Contains(script.String(), s) {
				t.Errorf("%s: the way back has no %q", c.guest, s)
			}
		}
	}
}

// TestEveryDistributionHasAPlan holds the list of goldens against the distributions known.
func TestEveryDistributionHasAPlan(t *testing.T) {
	planned := map[string]bool{}
	for _, g := range goldens {
		if p, err := build(guestFacts(t, g.guest), g.want); err == nil {
			planned[p.Distro.String()] = true
		}
	}
	for _, d := range distros.All() {
		if !planned[d.String()] {
			t.Errorf("no golden plans for %s", d)
		}
	}
}

// TestGoldensCoverEveryMethodTwice counts what the goldens plan for.
func TestGoldensCoverEveryMethodTwice(t *testing.T) {
	guests, seen := map[string]bool{}, map[string]int{}
	for _, g := range goldens {
		f := guestFacts(t, g.guest)
		guests[g.guest] = true
		p, err := build(f, g.want)
		if err != nil {
			seen["refused"]++
			continue
		}
		c := p.Choice
		older := func(version string) bool { b, err := catalog.BranchOf(version); return err == nil && b < c.Branch }
		for what, is := range map[string]bool{
			"plans":                              true,
			"source " + c.Source:                 true,
			"modules " + c.Modules:               true,
			"flavor " + c.Flavor:                 true,
			"package manager " + p.Distro.Family: true,
			"arm64":                              f.Arch == "aarch64",
			"Secure Boot on":                     f.Secure.State == "enabled",
			"Secure Boot off":                    f.Secure.State != "enabled",
			"signed modules":                     c.Signed,
			"signing key":                        g.want.Signing.Given() && !c.Signed,
			"installer sent":                     c.Runfile.SHA256 != "" && c.Runfile.URL == "",
			"installer fetched":                  c.Runfile.URL != "",
			"CUDA by packages":                   c.CUDA.Source == choice.SourceNVIDIA,
			"CUDA by its installer":              c.CUDA.Source == choice.SourceRunfile,
			"mirror":                             g.want.Mirror != "",
			"air-gapped":                         p.Bundle != "",
			"kernel held":                        g.want.HoldKernel,
			"module stream":                      c.Within.Stream != "",
			"versions locked":                    len(c.Within.Names) > 0,
			"pinned by a package":                len(c.Pin) > 0,
			"upgrade from an older branch":       older(f.Driver.Next.Version) || older(f.Runfile.Version),
			"switch of flavor":                   f.Driver.Next.License != "" && f.Driver.Next.License != c.License,
			".run replaced by packages":          c.Replaces.Runfile != "",
			"packages replaced by a .run":        len(c.Replaces.Packages) > 0,
			"container toolkit":                  g.want.ContainerToolkit != "",
			"MIG":                                len(c.MIG) > 0,
		} {
			if is {
				seen[what]++
			}
		}
	}
	least := map[string]int{"plans": 60, "switch of flavor": 1, ".run replaced by packages": 1, "packages replaced by a .run": 1}
	for _, what := range []string{
		"plans", "refused", "source nvidia", "source distro", "source runfile", "modules dkms", "modules precompiled", "modules kmp", "flavor open", "flavor proprietary",
		"package manager apt", "package manager dnf", "package manager zypper", "package manager tdnf", "arm64", "Secure Boot on", "Secure Boot off", "signed modules", "signing key",
		"installer sent", "installer fetched", "CUDA by packages", "CUDA by its installer", "mirror", "air-gapped", "kernel held", "module stream", "versions locked", "pinned by a package",
		"upgrade from an older branch", "switch of flavor", ".run replaced by packages", "packages replaced by a .run", "container toolkit", "MIG",
	} {
		if want := cmp.Or(least[what], 2); seen[what] < want {
			t.Errorf("%s: %d goldens, want %d", what, seen[what], want)
		}
	}
	if len(guests) < 30 {
		t.Errorf("%d guests", len(guests))
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

// TestUninstallPassesShellcheck has it read with every method's traces to take back.
func TestUninstallPassesShellcheck(t *testing.T) {
	bin, err := exec.LookPath("shellcheck")
	if err != nil {
		t.Skip("no shellcheck on this machine")
	}
	p, err := Build(uninstallInput(t), steps.Uninstall())
	if err != nil {
		t.Fatal(err)
	}
	var script bytes.Buffer
	if err := p.Shell(&script); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "-s", "sh", "-S", "warning", "-")
	cmd.Stdin = &script
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// uninstallInput is a guest in which every method left something to take back.
func uninstallInput(t *testing.T) steps.Input {
	t.Helper()
	f := guestFacts(t, "ubuntu2204-t4-runfile-oldkey")
	f.State = facts.State{Before: true, Added: []string{"dkms", "cuda-toolkit-12-8"}, Changed: []facts.Changed{{Name: "gcc", Was: "12"}}, Kept: []string{"/etc/a", "/etc/docker/daemon.json"},
		Absent: []string{"/etc/b", "/usr/local/lib/gpuguest/mig.layout"}, Held: []string{"linux-image-generic"}, Runfile: "525.147.05", Toolkits: []string{"12.8", "9.1"}, CUDALink: "-",
		SigningKey: true, Accounts: []string{"nvidia-persistenced"}, Services: []string{"systemd", "upstart", "sysv"}}
	in, err := Bare(f, choice.Want{})
	if err != nil {
		t.Fatal(err)
	}
	return in
}
