package choice

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"gpuguest/distros"
	"gpuguest/internal/catalog"
	"gpuguest/internal/facts"
)

// kernels are kernels that a stock guest of each distribution runs.
var kernels = map[string]string{
	"debian:11": "5.10.0-32-amd64", "debian:12": "6.1.0-50-amd64", "debian:13": "6.12.94+deb13-amd64",
	"ubuntu:20.04": "5.4.0-90-generic", "ubuntu:22.04": "5.15.0-106-generic", "ubuntu:24.04": "6.8.0-45-generic", "ubuntu:26.04": "7.0.0-30-generic",
	"centos:7": "3.10.0-1160.119.1.el7.x86_64", "rocky:8": "4.18.0-553.51.1.el8_10.x86_64", "rocky:9": "5.14.0-570.49.1.el9_6.x86_64", "rhel:10": "6.12.0-55.30.1.el10_0.x86_64",
	"fedora:44": "6.19.8-300.fc44.x86_64", "amzn:2023": "6.1.115-126.197.amzn2023.x86_64", "sles:15": "6.4.0-150600.23.47-default", "azurelinux:3.0": "6.6.64.2-9.azl3",
}

// alike are distributions whose offers another one has as well, for walks that take long.
var alike = []string{"rocky:8", "fedora:44", "amzn:2023"}

// GPUs that tests name.
const (
	k80     = "10de:102d"
	gtx1050 = "10de:1c82"
	v100    = "10de:1db4"
	t4      = "10de:1eb8"
	a100    = "10de:20b0"
	l40s    = "10de:26b9"
	gh200   = "10de:2342"
	rtx5090 = "10de:2b85"
	b300    = "10de:3182"
	gtx480  = "10de:06c0" // Fermi
	fx5200  = "10de:0322" // pre-Tesla
)

// guest returns the facts of a stock guest with GPUs, and its distribution.
func guest(t testing.TB, as string, gpus ...string) (facts.Facts, distros.Distro) {
	t.Helper()
	d, err := distros.For(facts.OS{}, as)
	if err != nil {
		t.Fatal(err)
	}
	f := facts.Facts{Arch: "x86_64", Kernel: facts.Kernel{Running: kernels[as], Next: kernels[as]}}
	for i, id := range gpus {
		p, err := parseDevice(id)
		if err != nil {
			t.Fatal(err)
		}
		p.Address = fmt.Sprintf("0000:%02x:00.0", i+1)
		f.GPUs = append(f.GPUs, p)
	}
	return f, d
}

// brief is what a choice comes down to.
func brief(c Choice) string {
	s := fmt.Sprintf("%s %d %s %s: %s", c.Source, c.Branch, c.Flavor, c.Modules, strings.Join(c.Packages, " "))
	if len(c.Pin) > 0 {
		s += " (" + strings.Join(c.Pin, " ") + ")"
	}
	return s
}

func TestMakeDecides(t *testing.T) {
	for _, c := range []struct {
		name string
		as   string
		gpus []string
		want Want
		edit func(*facts.Facts)
		get  string
		warn string // one of the warnings
	}{
		{name: "the lab's Pascal", as: "debian:12", gpus: []string{gtx1050},
			get: "nvidia 580 proprietary dkms: nvidia-kernel-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-580)"},
		{name: "long-term support first", as: "debian:12", gpus: []string{t4},
			get: "nvidia 580 open dkms: nvidia-kernel-open-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-580)"},
		{name: "the distribution's when asked", as: "debian:12", gpus: []string{t4}, want: Want{Source: "distro"},
			get: "distro 535 proprietary dkms: nvidia-kernel-dkms nvidia-smi libcuda1 libnvidia-cfg1 nvidia-persistenced", warn: "branch 535 got its last fixes in 2026-06"},
		{name: "the distribution's open modules when asked", as: "debian:12", gpus: []string{t4}, want: Want{Source: "distro", Flavor: "open"},
			get: "distro 535 open dkms: nvidia-open-kernel-dkms nvidia-smi libcuda1 libnvidia-cfg1 nvidia-persistenced", warn: "535.309.01"},
		{name: "Kepler", as: "debian:12", gpus: []string{k80},
			get: "distro 470 proprietary dkms: nvidia-tesla-470-kernel-dkms nvidia-tesla-470-smi libnvidia-tesla-470-cuda1 libnvidia-tesla-470-cfg1 nvidia-persistenced", warn: "2024-07"},
		{name: "Kepler where the main packages are for newer GPUs", as: "debian:11", gpus: []string{k80},
			get: "distro 470 proprietary dkms: nvidia-tesla-470-kernel-dkms nvidia-tesla-470-smi libnvidia-tesla-470-cuda1 libnvidia-tesla-470-cfg1 nvidia-persistenced"},
		{name: "Ada there", as: "debian:11", gpus: []string{l40s},
			get: "distro 535 proprietary dkms: nvidia-kernel-dkms nvidia-smi libcuda1 libnvidia-cfg1 nvidia-persistenced"},
		{name: "main packages that stayed behind", as: "debian:11", gpus: []string{t4}, edit: func(f *facts.Facts) { f.Offered = map[string]string{"nvidia-kernel-dkms": "470.256.02-2"} },
			get: "distro 470 proprietary dkms: nvidia-tesla-470-kernel-dkms nvidia-tesla-470-smi libnvidia-tesla-470-cuda1 libnvidia-tesla-470-cfg1 nvidia-persistenced"},
		{name: "Fermi", as: "debian:11", gpus: []string{gtx480},
			get: "distro 390 proprietary dkms: nvidia-legacy-390xx-kernel-dkms nvidia-legacy-390xx-smi libnvidia-legacy-390xx-cuda1 libnvidia-legacy-390xx-cfg1 nvidia-persistenced"},
		{name: "Volta where NVIDIA's repository starts at 590", as: "debian:13", gpus: []string{v100},
			get: "distro 550 proprietary dkms: nvidia-kernel-dkms nvidia-smi libcuda1 libnvidia-cfg1 nvidia-persistenced"},
		{name: "Blackwell", as: "debian:13", gpus: []string{rtx5090},
			get: "nvidia 595 open dkms: nvidia-kernel-open-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-595)"},
		{name: "Blackwell on 580", as: "debian:12", gpus: []string{b300}, want: Want{Driver: "580"},
			get: "nvidia 580 open dkms: nvidia-kernel-open-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-580)"},
		{name: "a full version is pinned as such", as: "debian:12", gpus: []string{t4}, want: Want{Driver: "580.95.05"},
			get: "nvidia 580 open dkms: nvidia-kernel-open-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-580.95.05)"},
		{name: "proprietary when asked", as: "ubuntu:24.04", gpus: []string{t4}, want: Want{Flavor: "proprietary"},
			get: "nvidia 580 proprietary dkms: cuda-drivers-580 nvidia-persistenced (nvidia-driver-pinning-580)"},
		{name: "names without the branch from 590 on", as: "ubuntu:24.04", gpus: []string{t4}, want: Want{Driver: "595"},
			get: "nvidia 595 open dkms: nvidia-open nvidia-persistenced (nvidia-driver-pinning-595)"},
		{name: "Ubuntu's own, built", as: "ubuntu:22.04", gpus: []string{a100}, want: Want{Source: "distro"},
			get: "distro 580 open dkms: nvidia-headless-580-server-open nvidia-utils-580-server libnvidia-compute-580-server nvidia-compute-utils-580-server"},
		{name: "Ubuntu's own, prebuilt", as: "ubuntu:22.04", gpus: []string{v100}, want: Want{Modules: "precompiled"},
			get: "distro 580 proprietary precompiled: linux-modules-nvidia-580-server-5.15.0-106-generic linux-modules-nvidia-580-server-generic nvidia-headless-no-dkms-580-server nvidia-utils-580-server libnvidia-compute-580-server nvidia-compute-utils-580-server"},
		{name: "prebuilt for the kernel alone when it is held", as: "ubuntu:24.04", gpus: []string{t4}, want: Want{Modules: "precompiled", HoldKernel: true},
			get: "distro 580 open precompiled: linux-modules-nvidia-580-server-open-6.8.0-45-generic nvidia-headless-no-dkms-580-server-open nvidia-utils-580-server libnvidia-compute-580-server nvidia-compute-utils-580-server"},
		{name: "prebuilt for the hardware enablement kernel", as: "ubuntu:24.04", gpus: []string{t4}, want: Want{Modules: "precompiled"},
			edit: func(f *facts.Facts) {
				f.Kernel.Next, f.Kernel.Meta = "6.17.0-19-generic", []string{"linux-image-generic-hwe-24.04"}
			},
			get: "distro 580 open precompiled: linux-modules-nvidia-580-server-open-6.17.0-19-generic linux-modules-nvidia-580-server-open-generic-hwe-24.04 nvidia-headless-no-dkms-580-server-open nvidia-utils-580-server libnvidia-compute-580-server nvidia-compute-utils-580-server"},
		{name: "Secure Boot takes what is signed", as: "ubuntu:24.04", gpus: []string{t4}, edit: func(f *facts.Facts) { f.Secure = facts.SecureBoot{EFI: true, State: "enabled"} },
			get: "distro 580 open precompiled: linux-modules-nvidia-580-server-open-6.8.0-45-generic linux-modules-nvidia-580-server-open-generic nvidia-headless-no-dkms-580-server-open nvidia-utils-580-server libnvidia-compute-580-server nvidia-compute-utils-580-server"},
		{name: "Secure Boot with DKMS's key enrolled", as: "debian:12", gpus: []string{t4},
			edit: func(f *facts.Facts) {
				f.Secure = facts.SecureBoot{EFI: true, State: "enabled", Keys: []string{"Debian Secure Boot CA", "DKMS module signing key: 0011"}, SigningKeys: []string{"/var/lib/dkms/mok.key"}}
			},
			get:  "nvidia 580 open dkms: nvidia-kernel-open-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-580)",
			warn: "modules load only when DKMS signs them"},
		{name: "Secure Boot with the very key of DKMS enrolled", as: "debian:12", gpus: []string{t4},
			edit: func(f *facts.Facts) {
				f.Secure = facts.SecureBoot{EFI: true, State: "enabled", Keys: []string{"somebody's own: 0011"}, SigningKeys: []string{"/var/lib/dkms/mok.pub"},
					Certificates: []facts.Certificate{{File: "/var/lib/dkms/mok.pub", Subject: "somebody's own", Issuer: "somebody's own", KeyID: "0011"}}}
			},
			get: "nvidia 580 open dkms: nvidia-kernel-open-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-580)"},
		{name: "Secure Boot with a driver that is there, signed by a key that is trusted", as: "debian:12", gpus: []string{t4},
			edit: func(f *facts.Facts) {
				f.Secure = facts.SecureBoot{EFI: true, State: "enabled", Keys: []string{"the site's modules: 77"}}
				f.Packages = map[string]string{"nvidia-kernel-open-dkms": "580.95.05-1", "nvidia-driver-cuda": "580.95.05-1", "nvidia-persistenced": "580.95.05-1"}
				f.Driver.Next = facts.Module{Version: "580.95.05", License: LicenseOpen, Signer: "the site's modules"}
			},
			get: "nvidia 580 open dkms: nvidia-kernel-open-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-580)"},
		{name: "two GPUs of one mind", as: "ubuntu:24.04", gpus: []string{t4, v100},
			get: "nvidia 580 proprietary dkms: cuda-drivers-580 nvidia-persistenced (nvidia-driver-pinning-580)"},
		{name: "two GPUs with one flavor in common", as: "debian:13", gpus: []string{t4, rtx5090},
			get: "nvidia 595 open dkms: nvidia-kernel-open-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-595)"},
		{name: "an id newer than the tables", as: "ubuntu:24.04", gpus: []string{"10de:3fff"},
			get: "nvidia 595 open dkms: nvidia-open nvidia-persistenced (nvidia-driver-pinning-595)", warn: "10de:3fff is not in the tables"},
		{name: "an id newer than the tables, overruled", as: "ubuntu:24.04", gpus: []string{"10de:3fff"}, want: Want{Flavor: "proprietary", Driver: "580"},
			get: "nvidia 580 proprietary dkms: cuda-drivers-580 nvidia-persistenced (nvidia-driver-pinning-580)"},
		{name: "an id of a range without GSP", as: "ubuntu:24.04", gpus: []string{"10de:1388"},
			get: "nvidia 580 proprietary dkms: cuda-drivers-580 nvidia-persistenced (nvidia-driver-pinning-580)", warn: "have no GSP"},
		{name: "no GPU yet", as: "debian:12", want: Want{NoGPU: true},
			get: "nvidia 580 open dkms: nvidia-kernel-open-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-580)", warn: "no GPU is named"},
		{name: "no GPU yet, but named", as: "debian:12", want: Want{NoGPU: true, Devices: []string{"10DE:1DB4:10de:1306"}},
			get: "nvidia 580 proprietary dkms: nvidia-kernel-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-580)"},
		{name: "arm64, where no keyring sum is known", as: "ubuntu:24.04", gpus: []string{gh200}, edit: func(f *facts.Facts) { f.Arch = "aarch64" },
			get: "distro 580 open dkms: nvidia-headless-580-server-open nvidia-utils-580-server libnvidia-compute-580-server nvidia-compute-utils-580-server"},
		{name: "arm64 with the sum given", as: "debian:12", gpus: []string{gh200}, want: Want{KeyringSHA256: strings.Repeat("ab", 32)}, edit: func(f *facts.Facts) { f.Arch = "aarch64" },
			get: "nvidia 580 open dkms: nvidia-kernel-open-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-580)"},
		{name: "a developer branch when asked", as: "debian:13", gpus: []string{rtx5090}, want: Want{Driver: "616"},
			get: "nvidia 616 open dkms: nvidia-kernel-open-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-616)", warn: "until when branch 616"},
		{name: "what is installed stays", as: "debian:12", gpus: []string{t4},
			edit: func(f *facts.Facts) {
				f.Packages = map[string]string{"nvidia-kernel-dkms": "535.261.03-1", "nvidia-smi": "535.261.03-1", "libcuda1": "535.261.03-1", "libnvidia-cfg1": "535.261.03-1"}
			},
			get: "distro 535 proprietary dkms: nvidia-kernel-dkms nvidia-smi libcuda1 libnvidia-cfg1 nvidia-persistenced"},
		{name: "what somebody else put in stays", as: "debian:12", gpus: []string{t4},
			edit: func(f *facts.Facts) {
				f.Packages = map[string]string{"nvidia-driver": "535.261.03-1", "nvidia-kernel-dkms": "535.261.03-1", "nvidia-smi": "535.261.03-1"}
			},
			get: "distro 535 proprietary dkms: nvidia-kernel-dkms nvidia-smi libcuda1 libnvidia-cfg1 nvidia-persistenced"},
		{name: "the flavor that is installed stays", as: "ubuntu:24.04", gpus: []string{t4}, edit: func(f *facts.Facts) { f.Packages = map[string]string{"cuda-drivers-580": "580.95.05-1"} },
			get: "nvidia 580 proprietary dkms: cuda-drivers-580 nvidia-persistenced (nvidia-driver-pinning-580)"},
		{name: "what is installed stays, prebuilt, under a new kernel", as: "ubuntu:24.04", gpus: []string{t4},
			edit: func(f *facts.Facts) {
				f.Packages = map[string]string{"nvidia-headless-no-dkms-580-server-open": "580.95.05-0ubuntu0.24.04.1", "nvidia-utils-580-server": "580.95.05-0ubuntu0.24.04.1", "linux-modules-nvidia-580-server-open-6.8.0-44-generic": "6.8.0-44.44"}
			},
			get: "distro 580 open precompiled: linux-modules-nvidia-580-server-open-6.8.0-45-generic linux-modules-nvidia-580-server-open-generic nvidia-headless-no-dkms-580-server-open nvidia-utils-580-server libnvidia-compute-580-server nvidia-compute-utils-580-server"},
		{name: "a newer branch that is installed stays", as: "debian:12", gpus: []string{t4},
			edit: func(f *facts.Facts) {
				f.Packages = map[string]string{"nvidia-kernel-open-dkms": "595.71.05-1", "nvidia-driver-cuda": "595.71.05-1"}
			},
			get: "nvidia 595 open dkms: nvidia-kernel-open-dkms nvidia-driver-cuda nvidia-persistenced (nvidia-driver-pinning-595)"},
		{name: "an archive that has moved on is not taken", as: "ubuntu:22.04", gpus: []string{t4}, want: Want{Source: "distro"},
			edit: func(f *facts.Facts) {
				f.Offered = map[string]string{"nvidia-utils-580-server": "595.71.05-0ubuntu0.22.04.1"}
			},
			get: "distro 595 open dkms: nvidia-headless-595-server-open nvidia-utils-595-server libnvidia-compute-595-server nvidia-compute-utils-595-server"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, d := guest(t, c.as, c.gpus...)
			if c.edit != nil {
				c.edit(&f)
			}
			got, err := Make(f, d, c.want)
			if err != nil {
				t.Fatal(err)
			}
			if brief(got) != c.get {
				t.Errorf("got  %s\nwant %s", brief(got), c.get)
			}
			if c.warn != "" && !slices.ContainsFunc(got.Warnings, func(w string) bool { return strings.Contains(w, c.warn) }) {
				t.Errorf("warnings %q do not say %q", got.Warnings, c.warn)
			}
			if want := map[string]string{FlavorOpen: "Dual MIT/GPL", FlavorProprietary: "NVIDIA"}[got.Flavor]; got.License != want {
				t.Errorf("license %q, want %q", got.License, want)
			}
			if len(got.GPUs) != len(c.gpus)+len(c.want.Devices) || len(got.Why) < 4 {
				t.Errorf("%d GPUs, %d reasons: %q", len(got.GPUs), len(got.Why), got.Why)
			}
		})
	}
}

func TestMakeRefuses(t *testing.T) {
	for _, c := range []struct {
		name    string
		as      string
		gpus    []string
		want    Want
		edit    func(*facts.Facts)
		says    []string // in what and why
		nearest string
		noGPU   bool
	}{
		{name: "no GPU", as: "debian:12", says: []string{"no NVIDIA GPU", "--no-gpu"}, noGPU: true},
		{name: "a branch that dropped the GPU", as: "debian:12", gpus: []string{v100}, want: Want{Driver: "595", Flavor: "open"},
			says: []string{"--driver 595 --flavor open for Tesla V100", "no branch after 580 drives Tesla V100"}, nearest: "--driver 580 --flavor proprietary"},
		{name: "a branch before the GPU", as: "ubuntu:22.04", gpus: []string{rtx5090}, want: Want{Driver: "535"},
			says: []string{"RTX 5090 (10de:2b85, Blackwell) needs branch 570 or newer"}, nearest: "--driver 580"},
		{name: "a branch that dropped the GPU, nowhere newer", as: "ubuntu:22.04", gpus: []string{k80}, want: Want{Driver: "580"},
			says: []string{"no branch after 470 drives Tesla K80"}, nearest: "--driver 470"},
		{name: "open on a GPU without GSP", as: "debian:12", gpus: []string{gtx1050}, want: Want{Flavor: "open"},
			says: []string{"the open modules do not drive", "GTX 1050 Ti"}, nearest: "--flavor proprietary"},
		{name: "proprietary on Blackwell", as: "debian:12", gpus: []string{rtx5090}, want: Want{Flavor: "proprietary"},
			says: []string{"only the open modules drive"}, nearest: "--flavor open"},
		{name: "open in a branch without", as: "ubuntu:22.04", gpus: []string{t4}, want: Want{Flavor: "open", Driver: "470"},
			says: []string{"branch 470 has no open modules"}, nearest: "--driver 470 --flavor proprietary"},
		{name: "proprietary in a branch without", as: "debian:13", gpus: []string{t4}, want: Want{Flavor: "proprietary", Driver: "620"},
			says: []string{"branch 620 has no proprietary modules"}, nearest: "--driver 620 --flavor open"},
		{name: "a branch nobody knows", as: "debian:12", gpus: []string{t4}, want: Want{Driver: "700"}, says: []string{"branch 700 is not in the tables, which end at 620"}, nearest: "--driver 595"},
		{name: "no branch at all", as: "debian:12", gpus: []string{t4}, want: Want{Driver: "latest"}, says: []string{"--driver latest", "580.95.05"}},
		{name: "a source that does not have it", as: "debian:13", gpus: []string{t4}, want: Want{Source: "nvidia", Driver: "580"},
			says: []string{"NVIDIA's repository for Debian 13", "it has 590, 595, 610"}, nearest: "--driver 595 --source nvidia"},
		{name: "a GPU the source dropped", as: "debian:13", gpus: []string{v100}, want: Want{Source: "nvidia"},
			says: []string{"no branch after 580 drives Tesla V100"}, nearest: "--source distro"},
		{name: "prebuilt where there are none", as: "debian:12", gpus: []string{t4}, want: Want{Modules: "precompiled"},
			says: []string{"it has nothing with --modules precompiled"}, nearest: "--modules dkms"},
		{name: "prebuilt from NVIDIA", as: "ubuntu:24.04", gpus: []string{t4}, want: Want{Modules: "precompiled", Source: "nvidia"},
			says: []string{"NVIDIA's repository for Ubuntu 24.04 (noble): it has nothing with --modules precompiled"}, nearest: "--source distro --modules precompiled"},
		{name: "prebuilt for a kernel that has none", as: "ubuntu:24.04", gpus: []string{t4}, want: Want{Modules: "precompiled", Driver: "580"},
			edit: func(f *facts.Facts) {
				f.Offered = map[string]string{"linux-modules-nvidia-580-server-open-6.8.0-44-generic": "6.8.0-44.44", "linux-modules-nvidia-580-server-open-generic": "6.8.0-44.44"}
			},
			says: []string{"there are no prebuilt modules of branch 580 for kernel 6.8.0-45-generic"}, nearest: "--driver 580 --modules dkms"},
		{name: "prebuilt for a kernel of one's own", as: "ubuntu:24.04", gpus: []string{t4}, want: Want{Modules: "precompiled"}, edit: func(f *facts.Facts) { f.Kernel.Next = "6.9.3-mine" },
			says: []string{"6.9.3-mine is none of Ubuntu 24.04"}, nearest: "--modules dkms"},
		{name: "Secure Boot with nothing signed", as: "debian:12", gpus: []string{t4}, edit: func(f *facts.Facts) { f.Secure.State = "enabled" },
			says: []string{"Secure Boot", "On the host", "/var/lib/dkms/mok.pub"}},
		{name: "Secure Boot and a key that is elsewhere", as: "debian:12", gpus: []string{t4},
			edit: func(f *facts.Facts) {
				f.Secure = facts.SecureBoot{State: "enabled", Keys: []string{"DKMS module signing key"}}
			}, says: []string{"Secure Boot"}},
		{name: "the distribution's open modules for a kernel that they do not compile for", as: "debian:12", gpus: []string{t4}, want: Want{Source: "distro", Flavor: "open"},
			edit: func(f *facts.Facts) { f.Kernel.Next = "6.1.0-56-amd64" },
			says: []string{"Debian 12 (bookworm)'s open modules of branch 535 do not compile for kernels of its series from 6.1.0-56 on"}, nearest: "--flavor open --source nvidia"},
		{name: "Secure Boot and another DKMS's key", as: "debian:12", gpus: []string{t4},
			edit: func(f *facts.Facts) {
				f.Secure = facts.SecureBoot{State: "enabled", Keys: []string{"DKMS module signing key: 2222"}, SigningKeys: []string{"/var/lib/dkms/mok.pub"},
					Certificates: []facts.Certificate{{File: "/var/lib/dkms/mok.pub", Subject: "DKMS module signing key", Issuer: "DKMS module signing key", KeyID: "1111"}}}
			}, says: []string{"Secure Boot", "/var/lib/dkms/mok.pub"}},
		{name: "Secure Boot and a driver that is there, signed by nobody who is trusted", as: "debian:12", gpus: []string{t4},
			edit: func(f *facts.Facts) {
				f.Secure = facts.SecureBoot{State: "enabled", Keys: []string{"the site's modules: 77"}}
				f.Packages = map[string]string{"nvidia-kernel-open-dkms": "580.95.05-1", "nvidia-driver-cuda": "580.95.05-1", "nvidia-persistenced": "580.95.05-1"}
				f.Driver.Next = facts.Module{Version: "580.95.05", License: LicenseOpen, Signer: "DKMS module signing key"}
			}, says: []string{"Secure Boot"}},
		{name: "lockdown without Secure Boot", as: "debian:12", gpus: []string{t4}, edit: func(f *facts.Facts) { f.Kernel.Lockdown = "integrity" }, says: []string{"Secure Boot"}},
		{name: "Secure Boot and modules built here", as: "ubuntu:24.04", gpus: []string{t4}, want: Want{Modules: "dkms"}, edit: func(f *facts.Facts) { f.Secure.State = "enabled" },
			says: []string{"On the host"}, nearest: "--modules precompiled"},
		{name: "GPUs ages apart", as: "debian:12", gpus: []string{k80, rtx5090},
			says: []string{"RTX 5090 (10de:2b85, Blackwell) needs branch 570 or newer, and no branch after 470 drives Tesla K80 (10de:102d, Kepler)"}},
		{name: "GPUs of two minds", as: "debian:12", gpus: []string{v100, rtx5090},
			says: []string{"RTX 5090 (10de:2b85, Blackwell) needs the open modules, which do not drive Tesla V100"}},
		{name: "a virtual GPU", as: "debian:12", gpus: []string{t4 + ":10de:1309"}, says: []string{"virtual GPU", "--vgpu-license-token"}},
		{name: "a GPU no source drives any more", as: "debian:12", gpus: []string{fx5200}, says: []string{"no branch after 173 drives"}},
		{name: "a GPU too new for the distribution", as: "debian:11", gpus: []string{rtx5090}, says: []string{"NVIDIA's repository for Debian 11 (bullseye): it gets no new drivers", "5090 (10de:2b85, Blackwell) needs branch 570"}},
		{name: "NVIDIA's repository gone from a release", as: "debian:11", gpus: []string{t4}, want: Want{Source: "nvidia"}, says: []string{"it gets no new drivers"}, nearest: "--source distro"},
		{name: "no sum of the keyring", as: "debian:12", gpus: []string{gh200}, want: Want{Source: "nvidia"}, edit: func(f *facts.Facts) { f.Arch = "aarch64" },
			says: []string{"--keyring-sha256"}, nearest: "--source distro"},
		{name: "a machine without drivers", as: "debian:12", gpus: []string{t4}, edit: func(f *facts.Facts) { f.Arch = "i686" }, says: []string{"i686", "aarch64 and x86_64"}},
		{name: "a driver from a .run file", as: "debian:12", gpus: []string{t4}, edit: func(f *facts.Facts) {
			f.Runfile = facts.Runfile{Version: "580.95.05", Uninstaller: "/usr/bin/nvidia-uninstall"}
		},
			says: []string{"580.95.05 was installed by NVIDIA's .run installer", "/usr/bin/nvidia-uninstall"}, nearest: "--driver 580.95.05 --source runfile"},
		{name: "the other source's packages are there", as: "debian:12", gpus: []string{t4}, want: Want{Source: "nvidia"},
			edit: func(f *facts.Facts) {
				f.Packages = map[string]string{"nvidia-kernel-dkms": "535.261.03-1", "nvidia-smi": "535.261.03-1"}
			},
			says: []string{"the guest has driver packages of the archive of Debian 12 (bookworm) (nvidia-smi)"}, nearest: "--source distro"},
		{name: "a downgrade", as: "debian:12", gpus: []string{t4}, want: Want{Driver: "580"},
			edit: func(f *facts.Facts) { f.Packages = map[string]string{"nvidia-driver-cuda": "595.71.05-1"} },
			says: []string{"nvidia-driver-cuda 595.71.05", "not downgraded"}, nearest: "--driver 595"},
		{name: "a downgrade within the branch", as: "debian:12", gpus: []string{t4}, want: Want{Driver: "580.95.05"},
			edit: func(f *facts.Facts) { f.Packages = map[string]string{"nvidia-driver-cuda": "580.105.08-1"} },
			says: []string{"580.105.08", "not downgraded"}, nearest: "--driver 595"},
		{name: "a downgrade where the branch is in one name only", as: "sles:15", gpus: []string{t4}, want: Want{Driver: "580"},
			edit: func(f *facts.Facts) {
				f.Packages = map[string]string{"nvidia-open-595": "595.71.05-1", "nvidia-compute-utils-G06": "595.71.05-1"}
			},
			says: []string{"nvidia-compute-utils-G06 595.71.05", "not downgraded"}, nearest: "--driver 595"},
		{name: "a version the archive does not have", as: "debian:12", gpus: []string{t4}, want: Want{Driver: "535.104.05", Source: "distro"},
			edit: func(f *facts.Facts) { f.Offered = map[string]string{"nvidia-kernel-dkms": "535.261.03-1"} },
			says: []string{"not known to have version 535.104.05"}, nearest: "--driver 535 --source distro"},
		{name: "a version the repository does not have", as: "debian:12", gpus: []string{t4}, want: Want{Driver: "580.1.1"},
			edit: func(f *facts.Facts) {
				f.Offers = []facts.Offer{{Package: "nvidia-driver-cuda", Version: "580.95.05-1", URI: "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64"}}
			},
			says: []string{"not known to have version 580.1.1"}, nearest: "--driver 580"},
		{name: "a kernel too new for a legacy branch", as: "debian:11", gpus: []string{gtx480}, edit: func(f *facts.Facts) { f.Kernel.Next = "6.2.0-1-amd64" },
			says: []string{"390 do not build for kernels from 6.2 on"}},
		{name: "a kernel too old for open modules", as: "debian:12", gpus: []string{rtx5090}, edit: func(f *facts.Facts) { f.Kernel.Next = "4.14.0-1-amd64" }, says: []string{"need kernel 4.15 or newer"}},
		{name: "a real-time kernel", as: "debian:12", gpus: []string{t4}, edit: func(f *facts.Facts) { f.Kernel.Next = "6.1.0-50-rt-amd64" }, says: []string{"PREEMPT_RT"}},
		{name: "a source nobody knows", as: "debian:12", gpus: []string{t4}, want: Want{Source: "ppa"}, says: []string{"--source ppa", "nvidia, distro"}},
		{name: "a flavor nobody knows", as: "debian:12", gpus: []string{t4}, want: Want{Flavor: "closed"}, says: []string{"open, proprietary"}},
		{name: "modules nobody knows", as: "debian:12", gpus: []string{t4}, want: Want{Modules: "kmod"}, says: []string{"dkms, precompiled"}},
		{name: "a device that is none", as: "debian:12", want: Want{NoGPU: true, Devices: []string{"T4"}}, says: []string{"device T4", "10de:1eb8"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, d := guest(t, c.as, c.gpus...)
			if c.edit != nil {
				c.edit(&f)
			}
			got, err := Make(f, d, c.want)
			var r *Refusal
			if !errors.As(err, &r) {
				t.Fatalf("got %s, %v; want a refusal", brief(got), err)
			}
			for _, s := range c.says {
				if !strings.Contains(r.What+": "+r.Reason, s) {
					t.Errorf("%q does not say %q", r, s)
				}
			}
			if r.Nearest != c.nearest {
				t.Errorf("nearest %q, want %q (%s)", r.Nearest, c.nearest, r.Reason)
			}
			if errors.Is(err, ErrNoGPU) != c.noGPU {
				t.Errorf("errors.Is(err, ErrNoGPU) = %v", !c.noGPU)
			}
		})
	}
}

// Every GPU of the tables on every distribution: the flavor and branch rules hold for all of them.
func TestEveryGPUGetsADriverThatDrivesItOrARefusal(t *testing.T) {
	served := map[string]int{}
	for as := range kernels {
		i := 0
		for g := range catalog.GPUs() {
			if i++; i%9 != 0 && as != "debian:12" && as != "ubuntu:22.04" {
				continue // these two have offers for every kind of GPU; the others are sampled
			}
			f, d := guest(t, as, "10de:"+g.Device)
			c, err := Make(f, d, Want{})
			var r *Refusal
			if errors.As(err, &r) {
				if r.Nearest != "" {
					t.Fatalf("%s %s: nothing was asked for, so nothing is nearest: %v", as, g.Device, err)
				}
				continue
			}
			if err != nil {
				t.Fatalf("%s %s: %v", as, g.Device, err)
			}
			served[g.Arch]++
			at := fmt.Sprintf("%s %s %s (%s): %s", as, g.Device, g.Name, g.Arch, brief(c))
			switch {
			case g.Last != 0 && c.Branch > g.Last, c.Branch < g.First:
				t.Errorf("%s: it is driven by %d to %d", at, g.First, g.Last)
			case g.Open == catalog.No && c.Flavor != FlavorProprietary, g.Last != 0 && c.Flavor != FlavorProprietary:
				t.Errorf("%s: it has no GSP", at)
			case slices.Contains([]string{"Maxwell", "Pascal", "Volta"}, g.Arch) && c.Flavor == FlavorOpen:
				t.Errorf("%s: open modules never drive it", at)
			case g.Open == catalog.Required && c.Flavor != FlavorOpen:
				t.Errorf("%s: it needs the open modules", at)
			case c.Signed || c.Modules == ModulesPrecompiled:
				t.Errorf("%s: nothing asks for prebuilt modules", at)
			case c.Branch >= 600:
				t.Errorf("%s: a branch nobody asked for", at)
			}
		}
	}
	for _, arch := range []string{"Fermi", "Kepler", "Maxwell", "Pascal", "Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell"} {
		if served[arch] == 0 {
			t.Errorf("no distribution serves %s", arch)
		}
	}
}

// wants are many wishes, sensible and not.
func wants() []Want {
	var all []Want
	for _, driver := range []string{"", "470", "535", "580", "580.95.05", "595", "620", "999"} {
		for _, flavor := range []string{"", FlavorOpen, FlavorProprietary} {
			for _, source := range []string{"", SourceNVIDIA, SourceDistro} {
				for _, modules := range []string{"", ModulesDKMS, ModulesPrecompiled} {
					all = append(all, Want{Driver: driver, Flavor: flavor, Source: source, Modules: modules})
				}
			}
		}
	}
	return all
}

// parseFlags reads back what a refusal proposes.
func parseFlags(t *testing.T, flags string) Want {
	t.Helper()
	var w Want
	words := strings.Fields(flags)
	for i := 0; i+1 < len(words); i += 2 {
		switch words[i] {
		case "--driver":
			w.Driver = words[i+1]
		case "--flavor":
			w.Flavor = words[i+1]
		case "--source":
			w.Source = words[i+1]
		case "--modules":
			w.Modules = words[i+1]
		default:
			t.Fatalf("flag %s", words[i])
		}
	}
	return w
}

func TestTheNearestIsPossibleAndAChoiceIsWhatWasAskedFor(t *testing.T) {
	refused, proposed := 0, 0
	for as := range kernels {
		if slices.Contains(alike, as) {
			continue
		}
		for _, gpu := range []string{k80, v100, t4, rtx5090, "10de:3fff", "10de:1388"} {
			for _, secure := range []string{"", "enabled"} {
				if secure != "" && as != "debian:12" && as != "ubuntu:24.04" && as != "sles:15" {
					continue // two that have signed modules and one that has none tell it all
				}
				f, d := guest(t, as, gpu)
				f.Secure.State = secure
				for _, w := range wants() {
					at := fmt.Sprintf("%s %s secure boot %q %+v", as, gpu, secure, w)
					c, err := Make(f, d, w)
					if err == nil {
						if w.Flavor != "" && w.Flavor != c.Flavor || w.Source != "" && w.Source != c.Source || w.Modules != "" && w.Modules != c.Modules ||
							w.Driver != "" && w.Driver != fmt.Sprint(c.Branch) && w.Driver != c.Version {
							t.Fatalf("%s: got %s", at, brief(c))
						}
						if secure == "enabled" && !c.Signed {
							t.Fatalf("%s: unsigned: %s", at, brief(c))
						}
						continue
					}
					refused++
					var r *Refusal
					if !errors.As(err, &r) || r.What == "" || r.Reason == "" {
						t.Fatalf("%s: %v", at, err)
					}
					if r.Nearest == "" {
						// Then nothing at all must be possible.
						if c, err := Make(f, d, Want{}); err == nil {
							t.Fatalf("%s: nothing is near, yet %s is possible", at, brief(c))
						}
						continue
					}
					proposed++
					if _, err := Make(f, d, parseFlags(t, r.Nearest)); err != nil {
						t.Fatalf("%s: proposed %s, which is refused: %v", at, r.Nearest, err)
					}
				}
			}
		}
	}
	if refused < 1000 || proposed < 1000 {
		t.Errorf("only %d refusals, %d proposals: the walk does not walk", refused, proposed)
	}
}

func TestASecondRunChoosesWhatTheFirstInstalled(t *testing.T) {
	for as := range kernels {
		if slices.Contains(alike, as) {
			continue
		}
		for _, gpu := range []string{k80, v100, t4, rtx5090} {
			for i, w := range append(wants(), Want{Driver: "616"}) {
				if i%3 == 1 {
					continue // --modules dkms says what is so anyway
				}
				f, d := guest(t, as, gpu)
				first, err := Make(f, d, w)
				if err != nil {
					continue
				}
				f.Packages = map[string]string{}
				for _, p := range slices.Concat(first.Packages, first.Pin) {
					p = distros.PackageName(p)
					f.Packages[p] = fmt.Sprintf("%d.999.99-1", first.Branch)
					if strings.HasPrefix(p, "linux-modules-") {
						f.Packages[p] = "6.8.0-45.45"
					}
				}
				if first.Version != "" {
					continue // the stand-in version above is another
				}
				for name, again := range map[string]Want{"the same": w, "no": {}} {
					second, err := Make(f, d, again)
					if err != nil || brief(second) != brief(first) || second.Version != fmt.Sprintf("%d.999.99", first.Branch) {
						t.Fatalf("%s %s %+v, then %s wish:\nfirst  %s\nsecond %s, %v", as, gpu, w, name, brief(first), brief(second), err)
					}
				}
			}
		}
	}
}

func TestHeadersAreForTheNextKernelAndLaterOnes(t *testing.T) {
	f, d := guest(t, "debian:12", t4)
	f.Kernel.Running = "6.1.0-40-amd64"
	c, err := Make(f, d, Want{})
	if err != nil || !slices.Equal(c.Headers, []string{"linux-headers-6.1.0-50-amd64", "linux-headers-amd64"}) {
		t.Errorf("%v, %v", c.Headers, err)
	}
	c, err = Make(f, d, Want{HoldKernel: true})
	if err != nil || !slices.Equal(c.Headers, []string{"linux-headers-6.1.0-50-amd64"}) {
		t.Errorf("held kernel: %v, %v", c.Headers, err)
	}
	f.Kernel = facts.Kernel{}
	c, err = Make(f, d, Want{})
	if err != nil || c.Headers != nil || !slices.ContainsFunc(c.Warnings, func(w string) bool { return strings.Contains(w, "which kernel starts next is not known") }) {
		t.Errorf("unknown kernel: %v, %q, %v", c.Headers, c.Warnings, err)
	}
}

func TestARefusalIsOneSentence(t *testing.T) {
	r := &Refusal{What: "--driver 595 for Tesla V100", Reason: "no branch after 580 drives it", Nearest: "--driver 580"}
	if got, want := r.Error(), "--driver 595 for Tesla V100: no branch after 580 drives it; nearest possible: --driver 580"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if errors.Is(r, ErrNoGPU) {
		t.Error("it is not about a missing GPU")
	}
}

func BenchmarkMake(b *testing.B) {
	f, d := guest(b, "ubuntu:24.04", t4, a100)
	for b.Loop() {
		if _, err := Make(f, d, Want{}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestBranchesOfRPMAreKeptByStreamOrLock holds what keeps a branch where no package does.
func TestBranchesOfRPMAreKeptByStreamOrLock(t *testing.T) {
	for _, c := range []struct {
		as, gpu, driver string
		stream, within  string
	}{
		{"rocky:9", t4, "", "nvidia-driver:580-open", ""},
		{"rocky:9", v100, "", "nvidia-driver:580-dkms", ""},
		{"rocky:8", k80, "", "nvidia-driver:470-dkms", ""},
		{"rocky:9", t4, "580.95.05", "nvidia-driver:580-open", "580.95.05"},
		{"rhel:10", t4, "", "", "580"},
		{"rhel:10", t4, "595.71.05", "", "595.71.05"},
		{"fedora:44", rtx5090, "595", "", "595"},
		{"centos:7", k80, "", "", ""},
		{"sles:15", t4, "", "", ""},
		{"debian:12", t4, "", "", ""},
	} {
		f, d := guest(t, c.as, c.gpu)
		got, err := Make(f, d, Want{Driver: c.driver})
		if err != nil || got.Within.Stream != c.stream || got.Within.Within != c.within || (c.within != "") != (len(got.Within.Names) > 0) {
			t.Errorf("%s %s %q: %+v, %v", c.as, c.gpu, c.driver, got.Within, err)
		}
	}
}

func TestDriversOfSomebodyElseAreInTheWay(t *testing.T) {
	f, d := guest(t, "fedora:44", t4)
	f.Packages = map[string]string{"akmod-nvidia": "3:580.95.05-1.fc44"}
	if _, err := Make(f, d, Want{}); err == nil || !strings.Contains(err.Error(), "somebody else's repository (akmod-nvidia)") {
		t.Error(err)
	}
}

func TestVersionsOfRPMAreRead(t *testing.T) {
	for v, want := range map[string]string{
		"3:580.95.05-1.el9": "580.95.05", "580.82.07_k6.4.0_150600.23.65-150600.3.63.1": "580.82.07", "580.95.05-0ubuntu1": "580.95.05",
		"5.14.0-570.el9": "", "1:570": "570", "": "",
	} {
		if got := upstream(v); got != want {
			t.Errorf("%q: %q, want %q", v, got, want)
		}
	}
}
