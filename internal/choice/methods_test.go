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

// A key, and the certificate as the kernel lists it.
var (
	key     = Signing{KeySHA256: "aa", CertSHA256: "bb", Subject: "lab", Signer: "lab", KeyID: "00ff"}
	trusted = "lab: 00ff"
)

func secureBoot(keys ...string) func(*facts.Facts) {
	return func(f *facts.Facts) { f.Secure = facts.SecureBoot{EFI: true, State: "enabled", Keys: keys} }
}

func TestMakeDecidesOnInstallersAndToolkits(t *testing.T) {
	for _, c := range []struct {
		name string
		as   string
		gpus []string
		want Want
		edit func(*facts.Facts)
		get  string // source, version, flavor and flags of the driver
		cuda string // source, version and flags of the toolkit
		warn string
	}{
		{name: "the newest of the long-term branch", as: "debian:12", gpus: []string{t4}, want: Want{Source: "runfile"},
			get: "runfile 580.159.04 open --silent --dkms --kernel-module-type=open --no-rebuild-initramfs"},
		{name: "the flavor by name before 560", as: "debian:12", gpus: []string{t4}, want: Want{Source: "runfile", Driver: "550", Flavor: "open"},
			get: "runfile 550.163.01 open --silent --dkms --kernel-module-build-directory=kernel-open --no-rebuild-initramfs"},
		{name: "proprietary said aloud from 555 on", as: "debian:12", gpus: []string{v100}, want: Want{Source: "runfile", Driver: "580"},
			get: "runfile 580.159.04 proprietary --silent --dkms --kernel-module-type=proprietary --no-rebuild-initramfs"},
		{name: "a legacy branch knows few flags", as: "debian:11", gpus: []string{gtx480}, want: Want{Source: "runfile"},
			get: "runfile 390.157 proprietary --silent --dkms", warn: "branch 390 got its last fixes"},
		{name: "Kepler", as: "debian:12", gpus: []string{k80}, want: Want{Source: "runfile"}, get: "runfile 470.239.06 proprietary --silent --dkms"},
		{name: "the seed's own file", as: "debian:11", gpus: []string{gtx1050}, want: Want{Runfile: Runfile{Name: "NVIDIA-Linux-x86_64-390.42.run", SHA256: "ab", Version: "390.42", Arch: "x86_64"}, CUDA: "9.1", CUDASource: "runfile"},
			get: "runfile 390.42 proprietary --silent --dkms", cuda: "runfile 9.1.85 --silent --toolkit --samples --samplespath=/usr/local/cuda-9.1"},
		{name: "an old branch that no GPU is pinned to", as: "debian:12", gpus: []string{t4}, want: Want{Runfile: Runfile{Name: "NVIDIA-Linux-x86_64-410.129.run", SHA256: "ab", Version: "410.129", Arch: "x86_64"}},
			get: "runfile 410.129 proprietary --silent --dkms"},
		{name: "what an installer put in stays", as: "debian:12", gpus: []string{t4}, want: Want{Source: "runfile"},
			edit: func(f *facts.Facts) {
				f.Runfile, f.State.Runfile = facts.Runfile{Version: "535.104.05", Uninstaller: "/usr/bin/nvidia-uninstall"}, "535.104.05"
				f.Driver.Next = facts.Module{Version: "535.104.05", License: LicenseOpen}
			},
			get: "runfile 535.104.05 open --silent --dkms --kernel-module-build-directory=kernel-open"},
		{name: "what gpuguest's installer put in stays without a word", as: "debian:12", gpus: []string{t4},
			edit: func(f *facts.Facts) {
				f.Runfile, f.State.Runfile = facts.Runfile{Version: "535.99.99", Uninstaller: "/usr/bin/nvidia-uninstall"}, "535.99.99"
				f.Driver.Next = facts.Module{Version: "535.99.99", License: LicenseProprietary}
			},
			get: "runfile 535.99.99 proprietary --silent --dkms"},
		{name: "somebody else's driver is replaced with a warning", as: "debian:12", gpus: []string{t4}, want: Want{Source: "runfile", Driver: "580"},
			edit: func(f *facts.Facts) {
				f.Runfile = facts.Runfile{Version: "525.147.05", Uninstaller: "/usr/bin/nvidia-uninstall"}
			},
			get: "runfile 580.159.04 open --silent --dkms --kernel-module-type=open --no-rebuild-initramfs", warn: "replaces driver 525.147.05"},

		{name: "auto takes what the branch's newest driver allows", as: "debian:12", gpus: []string{t4}, want: Want{CUDA: "auto"}, get: "nvidia  open ", cuda: "nvidia 13.0.3 cuda-toolkit-13-0"},
		{name: "auto stops where the GPU does", as: "debian:12", gpus: []string{v100}, want: Want{CUDA: "auto"}, get: "nvidia  proprietary ", cuda: "nvidia 12.9.2 cuda-toolkit-12-9"},
		{name: "auto for two GPUs", as: "ubuntu:24.04", gpus: []string{v100, t4}, want: Want{CUDA: "auto"}, get: "nvidia  proprietary ", cuda: "nvidia 12.9.2 cuda-toolkit-12-9"},
		{name: "auto on an old driver", as: "debian:12", gpus: []string{t4}, want: Want{Source: "distro", CUDA: "auto"}, get: "distro  proprietary ", cuda: "runfile 12.2.2 --silent --toolkit"},
		{name: "auto where the repository is frozen", as: "ol:7", gpus: []string{v100}, want: Want{CUDA: "auto"}, get: "nvidia  proprietary ", cuda: "nvidia 12.2.2 cuda-toolkit-12-2"},
		{name: "auto beside a driver newer than the repository", as: "ol:7", gpus: []string{v100}, want: Want{Source: "runfile", CUDA: "auto"}, edit: func(f *facts.Facts) { f.Kernel.Next = "3.10.0-1160.el7.x86_64" },
			get: "runfile 580.159.04 proprietary --silent --dkms --kernel-module-type=proprietary --no-rebuild-initramfs", cuda: "runfile 12.6.3 --silent --toolkit"},
		{name: "the installer before the repository's first", as: "rocky:10", gpus: []string{t4}, want: Want{CUDA: "12.9"}, get: "nvidia  open ", cuda: "runfile 12.9.1 --silent --toolkit"},
		{name: "the installer behind the repository's last", as: "kylin:V10", gpus: []string{t4}, want: Want{CUDA: "13.2", Source: "runfile", Driver: "580"}, edit: func(f *facts.Facts) { f.Kernel.Next = "4.19.90-89.11.v2401.ky10.x86_64" },
			get: "runfile 580.159.04 open --silent --dkms --kernel-module-type=open --no-rebuild-initramfs", cuda: "runfile 13.2.1 --silent --toolkit", warn: "PTX is not compiled"},
		{name: "gcc of a distribution that has none yet", as: "rocky:10", gpus: []string{t4}, want: Want{CUDA: "12.6", CUDASource: "runfile"},
			get: "nvidia  open ", cuda: "runfile 12.6.3 --silent --toolkit --override", warn: "gcc 14 is newer than CUDA 12.6 takes, up to 13"},
		{name: "gcc that built the kernel", as: "fedora:44", gpus: []string{t4}, want: Want{CUDA: "12.9", CUDASource: "runfile"},
			edit: func(f *facts.Facts) { f.Kernel.Compiler = "gcc (GCC) 16.0.1 20260127 (Red Hat 16.0.1-1)" },
			get:  "nvidia  open ", cuda: "runfile 12.9.1 --silent --toolkit --override", warn: "gcc 16 is newer"},
		{name: "auto for a GPU that its toolkits learnt of late", as: "debian:12", gpus: []string{b300}, want: Want{CUDA: "auto"}, get: "nvidia  open ", cuda: "nvidia 13.0.3 cuda-toolkit-13-0"},
		{name: "a series", as: "ubuntu:22.04", gpus: []string{t4}, want: Want{CUDA: "12.4"}, get: "nvidia  open ", cuda: "nvidia 12.4.1 cuda-toolkit-12-4"},
		{name: "a release from an installer", as: "ubuntu:22.04", gpus: []string{a100}, want: Want{CUDA: "11.8.0", CUDASource: "runfile"}, get: "nvidia  open ", cuda: "runfile 11.8.0 --silent --toolkit"},
		{name: "newer than the driver within its major release", as: "debian:12", gpus: []string{t4}, want: Want{Source: "distro", CUDA: "12.8"}, get: "distro  proprietary ", cuda: "nvidia 12.8.1 cuda-toolkit-12-8", warn: "PTX is not compiled"},
		{name: "gcc too new", as: "debian:12", gpus: []string{v100}, want: Want{CUDA: "11.8", CUDASource: "runfile"}, edit: func(f *facts.Facts) { f.Tools = map[string]string{"gcc": "12.2.0"} },
			get: "nvidia  proprietary ", cuda: "runfile 11.8.0 --silent --toolkit --override", warn: "gcc 12 is newer than CUDA 11.8 takes, up to 11"},
		{name: "gcc that would be installed", as: "debian:12", gpus: []string{v100}, want: Want{CUDA: "12.4"}, edit: func(f *facts.Facts) {
			f.Offered = map[string]string{"gcc": "4:14.2.0-1", "nvidia-driver-cuda": "580.95.05-1"}
		},
			get: "nvidia  proprietary ", cuda: "nvidia 12.4.1 cuda-toolkit-12-4", warn: "gcc 14 is newer"},
		{name: "the installer where there is no repository", as: "ubuntu:24.04", gpus: []string{gh200}, want: Want{CUDA: "12.8"}, edit: func(f *facts.Facts) { f.Arch = "aarch64" },
			get: "distro  open ", cuda: "runfile 12.8.1 --silent --toolkit"},
		{name: "no GPU yet", as: "debian:12", want: Want{NoGPU: true, CUDA: "12.8"}, get: "nvidia  open ", cuda: "nvidia 12.8.1 cuda-toolkit-12-8", warn: "no GPU is named: whether CUDA"},
		{name: "a GPU whose capability is not known", as: "ubuntu:24.04", gpus: []string{"10de:3fff"}, want: Want{CUDA: "13.0"}, get: "nvidia  open ", cuda: "nvidia 13.0.3 cuda-toolkit-13-0", warn: "capability of a GPU unknown"},
		{name: "none", as: "debian:12", gpus: []string{t4}, want: Want{CUDA: "none"}, get: "nvidia  open "},

		{name: "a key that is trusted", as: "debian:12", gpus: []string{t4}, want: Want{Signing: key}, edit: secureBoot("Debian Secure Boot CA: 6ccece", trusted), get: "nvidia  open "},
		{name: "signed packages before a key", as: "ubuntu:24.04", gpus: []string{t4}, want: Want{Signing: key}, edit: secureBoot(trusted), get: "distro  open "},
		{name: "a key before it is needed", as: "debian:12", gpus: []string{t4}, want: Want{Signing: key}, get: "nvidia  open ", warn: "must be enrolled before Secure Boot"},
		{name: "a key for an installer", as: "debian:12", gpus: []string{t4}, want: Want{Signing: key, Source: "runfile", Driver: "580.95.05"}, edit: secureBoot(trusted),
			get: "runfile 580.95.05 open --silent --dkms --kernel-module-type=open --no-rebuild-initramfs"},
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
			if s := fmt.Sprintf("%s %s %s %s", got.Source, got.Version, got.Flavor, strings.Join(got.Runfile.Flags, " ")); s != c.get {
				t.Errorf("driver %q, want %q", s, c.get)
			}
			k := got.CUDA
			cuda := strings.TrimSpace(fmt.Sprintf("%s %s %s%s", k.Source, k.Version, k.Package, strings.Join(k.Installer.Flags, " ")))
			if cuda != c.cuda {
				t.Errorf("toolkit %q, want %q", cuda, c.cuda)
			}
			if c.warn != "" && !slices.ContainsFunc(got.Warnings, func(w string) bool { return strings.Contains(w, c.warn) }) {
				t.Errorf("no warning says %q: %q", c.warn, got.Warnings)
			}
			if c.warn == "" && c.cuda != "" && slices.ContainsFunc(got.Warnings, func(w string) bool { return strings.Contains(w, "gcc") || strings.Contains(w, "PTX") }) {
				t.Errorf("warned of %q", got.Warnings)
			}
			if got.Source == SourceRunfile && (len(got.Packages) > 0 || got.Persistence.Package != "" || got.Persistence.User == "" || got.License == "" || len(got.Headers) == 0) {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestMakeRefusesWhatNoInstallerOrToolkitCanBe(t *testing.T) {
	for _, c := range []struct {
		name        string
		as          string
		gpus        []string
		want        Want
		edit        func(*facts.Facts)
		says        []string
		nearest     string
		notEnrolled bool
	}{
		{name: "a version without a checksum", as: "debian:12", gpus: []string{gtx1050}, want: Want{Source: "runfile", Driver: "390.42"},
			says: []string{"SHA-256", "driver 390.42", "--runfile", "the tables know 390.157"}, nearest: "--driver 390 --source runfile"},
		{name: "a branch that does not drive it", as: "debian:12", gpus: []string{v100}, want: Want{Source: "runfile", Driver: "595"},
			says: []string{"no branch after 580 drives Tesla V100"}, nearest: "--driver 580 --source runfile"},
		{name: "open modules for what has no GSP", as: "debian:12", gpus: []string{v100}, want: Want{Source: "runfile", Flavor: "open"}, says: []string{"no GSP"}, nearest: "--flavor proprietary --source runfile"},
		{name: "prebuilt modules", as: "debian:12", gpus: []string{t4}, want: Want{Source: "runfile", Modules: "precompiled"}, says: []string{"such a driver"}, nearest: "--source runfile --modules dkms"},
		{name: "a machine NVIDIA has no file for", as: "debian:12", gpus: []string{t4}, want: Want{Source: "runfile", Driver: "580"}, edit: func(f *facts.Facts) { f.Arch = "aarch64" },
			says: []string{"for aarch64"}, nearest: "--driver 550 --source runfile"},
		{name: "a file for another machine", as: "debian:12", gpus: []string{t4}, want: Want{Runfile: Runfile{Name: "x.run", SHA256: "ab", Version: "580.95.05", Arch: "aarch64"}}, says: []string{"--runfile x.run", "for aarch64", "x86_64"}},
		{name: "a file of no version", as: "debian:12", gpus: []string{t4}, want: Want{Runfile: Runfile{Name: "x.run", SHA256: "ab"}}, says: []string{"--driver"}},
		{name: "a file of another version", as: "debian:12", gpus: []string{t4}, want: Want{Driver: "535", Runfile: Runfile{Name: "x.run", SHA256: "ab", Version: "580.95.05"}}, says: []string{"--driver 535", "holds driver 580.95.05"}},
		{name: "a file and packages", as: "debian:12", gpus: []string{t4}, want: Want{Source: "nvidia", Runfile: Runfile{Name: "x.run", SHA256: "ab", Version: "580.95.05"}}, says: []string{"--source nvidia"}},
		{name: "packages of a driver are there", as: "debian:12", gpus: []string{t4}, want: Want{Source: "runfile"}, edit: func(f *facts.Facts) { f.Packages = map[string]string{"libcuda1:i386": "535.261.03-1"} },
			says: []string{"libcuda1:i386", "uninstall them first"}},
		{name: "a kernel too new for the branch", as: "debian:12", gpus: []string{gtx1050}, want: Want{Source: "runfile", Driver: "390"}, edit: func(f *facts.Facts) { f.Kernel.Next = "6.2.0-1-amd64" },
			says: []string{"390 do not build for kernels from 6.2 on"}, nearest: "--driver 580 --source runfile"},
		{name: "a virtual GPU", as: "debian:12", gpus: []string{t4 + ":10de:1309"}, want: Want{Source: "runfile"}, says: []string{"virtual GPU"}},

		{name: "a toolkit that dropped the GPU", as: "debian:12", gpus: []string{v100}, want: Want{CUDA: "13.0"}, says: []string{"7.5 to 12.1, and that of Tesla V100", "7.0"}, nearest: "--cuda 12.9"},
		{name: "a toolkit that does not know the GPU yet", as: "debian:12", gpus: []string{b300}, want: Want{CUDA: "12.8"}, says: []string{"without 10.3"}, nearest: "--cuda 12.9"},
		{name: "a driver too old for the toolkit", as: "debian:12", gpus: []string{t4}, want: Want{Source: "distro", CUDA: "13.0"}, says: []string{"needs driver 580 or newer, and the driver is 535.309.01"}, nearest: "--cuda 12.9"},
		{name: "a toolkit nobody knows", as: "debian:12", gpus: []string{t4}, want: Want{CUDA: "14.0"}, says: []string{"not in the tables", "13.4.2"}, nearest: "--cuda 13.4"},
		{name: "a toolkit that is no version", as: "debian:12", gpus: []string{t4}, want: Want{CUDA: "newest"}, says: []string{"auto, none"}},
		{name: "no installer of it is known", as: "debian:12", gpus: []string{t4}, want: Want{CUDA: "13.4", CUDASource: "runfile", Driver: "616"}, edit: func(f *facts.Facts) { f.Kernel.Next = "6.12.1-1-amd64" },
			says: []string{"SHA-256 of no installer of CUDA 13.4.2"}, nearest: "--cuda 13.3"},
		{name: "the repository does not have it", as: "debian:12", gpus: []string{t4}, want: Want{CUDA: "12.0", CUDASource: "nvidia"},
			edit: func(f *facts.Facts) {
				f.Offered = map[string]string{"cuda-toolkit-12-8": "12.8.1-1", "nvidia-driver-cuda": "580.95.05-1"}
			},
			says: []string{"has no cuda-toolkit-12-0"}, nearest: "--cuda 12.8"},
		{name: "before the repository's first", as: "fedora:44", gpus: []string{t4}, want: Want{CUDA: "11.8", CUDASource: "nvidia"}, says: []string{"NVIDIA's repository for Fedora 44 begins with CUDA 13.3"}, nearest: "--cuda 13.3"},
		{name: "behind the repository's last", as: "kylin:V10", gpus: []string{t4}, want: Want{CUDA: "13.3", CUDASource: "nvidia"}, says: []string{"Kylin V10 ends with CUDA 13.1"}, nearest: "--cuda 13.1"},
		{name: "a mirror of the distribution's own repositories", as: "almalinux:9", gpus: []string{t4}, want: Want{Source: "distro", Mirror: "http://mirror.example/alma"}, edit: func(f *facts.Facts) { f.Kernel.Next = "5.14.0-570.49.1.el9_6.x86_64" },
			says: []string{"--repo-mirror http://mirror.example/alma", "several repositories", "/etc/yum.repos.d"}},
		{name: "a C library too old", as: "centos:7", gpus: []string{v100}, want: Want{CUDA: "12.9", Source: "runfile"}, says: []string{"needs glibc 2.27 or newer", "has 2.17"}, nearest: "--cuda 12.6"},
		{name: "a toolkit's file and none wanted", as: "debian:12", gpus: []string{t4}, want: Want{CUDARunfile: Runfile{Name: "cuda.run", SHA256: "ab"}}, says: []string{"--cuda"}},
		{name: "a toolkit's file of another release", as: "debian:12", gpus: []string{t4}, want: Want{CUDA: "12.8", CUDARunfile: Runfile{Name: "cuda.run", SHA256: "ab", Version: "12.4.1"}}, says: []string{"holds CUDA 12.4.1"}},
		{name: "a source of toolkits nobody knows", as: "debian:12", gpus: []string{t4}, want: Want{CUDA: "12.8", CUDASource: "distro"}, says: []string{"--cuda-source distro", "nvidia, runfile"}},

		{name: "a key that is not trusted", as: "debian:12", gpus: []string{t4}, want: Want{Signing: key}, edit: secureBoot("lab: 00fe", "00ff: lab"),
			says: []string{"certificate \"lab\" (key id 00ff)", "virt-fw-vars", "signature database", "mokutil --import"}, notEnrolled: true},
		{name: "a key that is not trusted, and no keys known", as: "debian:12", gpus: []string{t4}, want: Want{Signing: key, Source: "runfile"}, edit: secureBoot(),
			says: []string{"does not trust"}, notEnrolled: true},
		{name: "a key would not help", as: "debian:12", gpus: []string{v100}, want: Want{Signing: key, Driver: "595"}, edit: secureBoot(), says: []string{"no branch after 580"}},
		{name: "no key at all", as: "debian:12", gpus: []string{t4}, edit: secureBoot("Debian Secure Boot CA"), says: []string{"--secure-boot-key", "On the host"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, d := guest(t, c.as, c.gpus...)
			if c.edit != nil {
				c.edit(&f)
			}
			got, err := Make(f, d, c.want)
			var r *Refusal
			if !errors.As(err, &r) {
				t.Fatalf("got %s %s, %v; want a refusal", brief(got), got.CUDA.Version, err)
			}
			for _, s := range c.says {
				if !strings.Contains(r.What+": "+r.Reason, s) {
					t.Errorf("%q does not say %q", r, s)
				}
			}
			if r.Nearest != c.nearest {
				t.Errorf("nearest %q, want %q", r.Nearest, c.nearest)
			}
			if errors.Is(err, ErrNotEnrolled) != c.notEnrolled {
				t.Errorf("errors.Is(err, ErrNotEnrolled) = %v", !c.notEnrolled)
			}
		})
	}
}

// Every kind of GPU, with every branch and every toolkit: each is planned as asked for or refused with a reason.
func TestEveryGPUBranchAndToolkitIsPlannedOrRefusedWithAReason(t *testing.T) {
	kinds := map[string]string{} // all that a choice looks at → one device of that kind
	for g := range catalog.GPUs() {
		kinds[fmt.Sprint(g.Arch, catalog.Capability(g.Device), g.Open, g.Proprietary, g.First, g.Last)] = g.Device
	}
	planned, refused := 0, 0
	for _, device := range kinds {
		g, _ := catalog.Lookup("10de", device, "", "")
		f, d := guest(t, "ubuntu:22.04", "10de:"+device)
		for _, b := range catalog.Branches() {
			version := b.Latest
			if version == "" {
				version = fmt.Sprintf("%d.00", b.Number)
			}
			w := Want{CUDA: CUDANone, Runfile: Runfile{Name: "x.run", SHA256: "ab", Version: version, Arch: f.Arch}}
			driver, derr := Make(f, d, w)
			for _, k := range catalog.Toolkits() {
				w.CUDA, w.CUDARunfile = k.Version, Runfile{Name: "cuda.run", SHA256: "cd", Version: k.Version}
				at := fmt.Sprintf("%s %s (%s), branch %d, CUDA %s", device, g.Name, g.Arch, b.Number, k.Version)
				var err error
				c := driver
				if derr == nil {
					// The driver is the same for every toolkit, and deciding on it again would take minutes.
					r := request{f: f, d: d, w: w}
					if why := r.toolkitObjection(k, c); why != "" {
						refused++ // and what is nearest, which takes a while, is another test's
						continue
					}
					err = r.addToolkit(&c)
				} else {
					err = derr
				}
				var r *Refusal
				switch {
				case errors.As(err, &r):
					refused++
					if r.Reason == "" {
						t.Fatalf("%s: no reason", at)
					}
					continue
				case err != nil:
					t.Fatalf("%s: %v", at, err)
				}
				planned++
				cc := catalog.Capability(device)
				switch {
				case c.Branch != b.Number || c.CUDA.Version != k.Version:
					t.Fatalf("%s: got %d and %s", at, c.Branch, c.CUDA.Version)
				case slices.Contains([]string{"Kepler", "Maxwell", "Pascal", "Volta"}, g.Arch) && c.Flavor == FlavorOpen:
					t.Fatalf("%s: open modules", at)
				case g.Open == catalog.Required && c.Flavor != FlavorOpen:
					t.Fatalf("%s: proprietary modules", at)
				case cc != "" && !k.Knows(cc) || !k.Runs(version):
					t.Fatalf("%s: the toolkit does not go with it", at)
				}
			}
		}
	}
	if planned < 5000 || refused < 20000 {
		t.Errorf("only %d planned and %d refused: the walk does not walk", planned, refused)
	}
}

// Every distribution and machine, with every toolkit and with the newest that can be: none is planned from a
// repository that does not hold it.
func TestNoToolkitIsTakenFromARepositoryThatLacksIt(t *testing.T) {
	packages, installers, refused := 0, 0, 0
	for _, d := range distros.All() {
		for machine, dir := range d.RepoDir {
			f, _ := guest(t, d.String(), t4)
			f.Arch = machine
			f.Kernel.Next = "6.1.0-50-amd64"
			known := catalog.ToolkitRepoOf(dir)
			if d.Frozen != "" && d.RepoKey.File != "" && known.Last == catalog.Unknown {
				t.Errorf("%s gets nothing new, and with which CUDA it ends is not known", dir)
			}
			r := request{f: f, d: d, w: Want{KeyringSHA256: strings.Repeat("ab", 32)}}
			for _, source := range []string{"", SourceNVIDIA} {
				r.w.CUDASource = source
				for _, k := range catalog.Toolkits() {
					c := Choice{Branch: 616}
					r.w.CUDA = k.Version
					if err := r.addToolkit(&c); err != nil {
						refused++
						continue
					}
					if c.CUDA.Source == SourceRunfile {
						installers++
						continue
					}
					packages++
					if why := known.Lacks(k.Series()); why != "" || d.Glibc != "" && k.Glibc() != "" {
						t.Errorf("%s: CUDA %s is planned, and it %s", dir, k.Version, why)
					}
				}
				for _, b := range catalog.Branches() {
					c := Choice{Branch: b.Number}
					r.w.CUDA = CUDAAuto
					if err := r.addToolkit(&c); err == nil && c.CUDA.Source == SourceNVIDIA && known.Lacks(c.CUDA.Series) != "" {
						t.Errorf("%s: the newest for %d is CUDA %s, and it %s", dir, b.Number, c.CUDA.Series, known.Lacks(c.CUDA.Series))
					}
				}
			}
		}
	}
	if packages < 2000 || installers < 200 || refused < 1000 {
		t.Errorf("%d by packages, %d by installers, %d refused: the walk does not walk", packages, installers, refused)
	}
}

// The nearest that a refused toolkit is told of is possible.
func TestTheNearestToolkitIsPossible(t *testing.T) {
	proposed := 0
	for _, gpu := range []string{k80, gtx1050, v100, t4, a100, l40s, rtx5090, b300} {
		for _, source := range []string{"", SourceRunfile} {
			for _, k := range catalog.Toolkits() {
				f, d := guest(t, "ubuntu:22.04", gpu)
				_, err := Make(f, d, Want{CUDA: k.Version, CUDASource: source})
				var r *Refusal
				if !errors.As(err, &r) || r.Nearest == "" {
					continue
				}
				proposed++
				version, ok := strings.CutPrefix(r.Nearest, "--cuda ")
				if _, err := Make(f, d, Want{CUDA: version, CUDASource: source}); !ok || err != nil {
					t.Errorf("%s, CUDA %s: proposed %q: %v", gpu, k.Version, r.Nearest, err)
				}
			}
		}
	}
	if proposed < 100 {
		t.Errorf("only %d proposals", proposed)
	}
}

func TestADriverThatCameAnotherWayMakesWayOnlyWhenAskedTo(t *testing.T) {
	byUs := func(f *facts.Facts) {
		f.Packages = map[string]string{"nvidia-kernel-open-dkms": "580.95.05-1", "nvidia-driver-cuda": "580.95.05-1", "libnvidia-ml1": "580.95.05-1", "dkms": "3.0.10-8", "gcc": "12"}
		f.State = facts.State{Before: true, Added: []string{"dkms", "nvidia-kernel-open-dkms", "nvidia-driver-cuda", "libnvidia-ml1:amd64"}}
	}
	byRun := func(f *facts.Facts) {
		f.Runfile = facts.Runfile{Version: "525.147.05", Uninstaller: "/usr/bin/nvidia-uninstall"}
	}
	for _, c := range []struct {
		name string
		edit func(*facts.Facts)
		want Want
		get  Replaced
		says string // of the refusal
	}{
		{"packages for a .run", byUs, Want{Source: "runfile", Replace: true}, Replaced{Packages: []string{"libnvidia-ml1:amd64", "nvidia-driver-cuda", "nvidia-kernel-open-dkms"}}, ""},
		{"packages for a .run, not asked", byUs, Want{Source: "runfile"}, Replaced{}, "--replace"},
		{"somebody else's packages for a .run", func(f *facts.Facts) { byUs(f); f.State.Added = f.State.Added[:2] }, Want{Source: "runfile", Replace: true}, Replaced{}, "libnvidia-ml1"},
		{"a .run for packages", byRun, Want{Source: "nvidia", Replace: true}, Replaced{Runfile: "525.147.05"}, ""},
		{"a .run for packages, not asked", byRun, Want{Source: "nvidia"}, Replaced{}, ".run installer"},
		{"nothing to replace", func(*facts.Facts) {}, Want{Source: "runfile", Replace: true}, Replaced{}, ""},
	} {
		f, d := guest(t, "debian:12", t4)
		c.edit(&f)
		got, err := Make(f, d, c.want)
		if c.says != "" {
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err != nil || fmt.Sprint(got.Replaces) != fmt.Sprint(c.get) {
			t.Errorf("%s: %+v, %v", c.name, got.Replaces, err)
		}
	}
}
