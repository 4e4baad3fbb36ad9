package distros

import (
	"regexp"
	"slices"
	"strings"

	"gpuguest/internal/facts"
)

// debian fills in what all releases of Debian share.
func debian(version, codename string, components ...string) Distro {
	return Distro{
		ID: "debian", Version: version, Codename: codename, Name: "Debian " + version + " (" + codename + ")",
		Family:   "apt",
		Arches:   map[string]string{"x86_64": "amd64", "aarch64": "arm64"},
		Packages: apt{},
		RepoDir: map[string]string{
			"x86_64":  "debian" + version + "/x86_64",
			"aarch64": "debian" + version + "/sbsa",
		},
		BuildTools: []string{"gcc", "make", "dkms"},
		// gcc itself only recommends the headers.
		Compiler:   []string{"gcc", "libc6-dev"},
		CXX:        "g++",
		Components: components,
		Suites:     []string{codename, codename + "-updates"},
		Keyring:    "/usr/share/keyrings/debian-archive-keyring.gpg",
		Marks: map[string][]string{
			SourceNVIDIA: {"cuda-drivers*", "nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-open", "nvidia-open-[0-9]*"},
			SourceDistro: {"nvidia-smi", "nvidia-open-kernel-dkms", "nvidia-tesla-*", "nvidia-legacy-3*"},
		},
		Boot:     debianBoot,
		DKMSKey:  "/var/lib/dkms/mok.key",
		DKMSCert: "/var/lib/dkms/mok.pub",
		kernel:   debKernels{debianKernels{}},
	}
}

// debianBoot is the boot layer of Debian and what is made from it.
var debianBoot = Boot{Loaders: []Loader{grubDropIn{update: "update-grub"}, entries{}}, Makers: makers}

// debianPersistence is how Debian packages the daemon: postinst makes the user nvpd and starts the unit
// (nvidia-persistenced of Debian 11 to 13, looked inside).
var debianPersistence = Persistence{Package: "nvidia-persistenced", Unit: "nvidia-persistenced.service", User: "nvpd"}

// debianNVIDIA are the offers of NVIDIA's repository for Debian: its compute-only set, as a guest that
// computes needs no X. The pinning package of the branch goes first, or apt takes the newest branch.
func debianNVIDIA(branches []int, from int, fact string) []Offer {
	offer := func(o Offer, flavor, module string) Offer {
		o.Source, o.Flavor, o.Modules = SourceNVIDIA, flavor, ModulesDKMS
		o.Packages = []string{module, "nvidia-driver-cuda"}
		o.Pin = []string{"nvidia-driver-pinning-{pin}"}
		o.Module, o.DKMSName = "nvidia", "nvidia"
		o.Persistence = Persistence{Package: "nvidia-persistenced", Unit: "nvidia-persistenced.service"}
		o.Fact = "NVIDIA driver installation guide, Debian, compute-only; " + fact
		return o
	}
	var offers []Offer
	if len(branches) > 0 {
		offers = append(offers, offer(Offer{Branches: branches}, FlavorOpen, "nvidia-kernel-open-dkms"),
			offer(Offer{Branches: branches}, FlavorProprietary, "nvidia-kernel-dkms"))
	}
	return append(offers, offer(Offer{Min: from}, FlavorOpen, "nvidia-kernel-open-dkms"),
		offer(Offer{Min: from}, FlavorProprietary, "nvidia-kernel-dkms"))
}

// debianOwn is the offer of Debian's main driver packages, which Debian renames to nvidia-current.
func debianOwn(branch int, flavor, seen, fact string) Offer {
	o := Offer{
		Source: SourceDistro, Flavor: flavor, Modules: ModulesDKMS, Branches: []int{branch}, Seen: seen,
		Packages:    []string{"nvidia-kernel-dkms", "nvidia-smi", "libcuda1", "libnvidia-cfg1"},
		Module:      "nvidia-current",
		DKMSName:    "nvidia-current",
		Persistence: debianPersistence, Fact: fact,
	}
	if flavor == FlavorOpen {
		o.Packages[0] = "nvidia-open-kernel-dkms"
		o.Module, o.DKMSName = "nvidia-current-open", "nvidia-current-open"
	}
	return o
}

// DebianDriverNames are patterns of apt_preferences(5) for the packages of Debian's driver.
func DebianDriverNames() []string {
	return []string{"*nvidia*", "libcuda1", "libcudadebugger1", "libnvcuvid1", "libnvoptix1"}
}

// debianVariant is the offer of one of Debian's packages of another branch, "tesla-470" or "legacy-390xx".
func debianVariant(branch int, variant, seen, fact string) Offer {
	return Offer{
		Source: SourceDistro, Flavor: FlavorProprietary, Modules: ModulesDKMS, Branches: []int{branch}, Seen: seen, Last: true,
		Packages: []string{"nvidia-" + variant + "-kernel-dkms", "nvidia-" + variant + "-smi", "libnvidia-" + variant + "-cuda1", "libnvidia-" + variant + "-cfg1"},
		Module:   "nvidia-" + variant, DKMSName: "nvidia-" + variant,
		Persistence: debianPersistence, Fact: fact,
	}
}

// debianKernels knows releases like 6.1.0-50-cloud-amd64 and 6.12.94+deb13-arm64.
type debianKernels struct{}

// debianFlavor finds the flavor: what follows the version and, up to Debian 12, the ABI number.
var debianFlavor = regexp.MustCompile(`^\d+\.[0-9A-Za-z.+~]+(?:-\d+)?-([a-z][a-z0-9-]*)$`)

func (debianKernels) flavor(release string) string {
	if m := debianFlavor.FindStringSubmatch(release); m != nil {
		return m[1]
	}
	return ""
}

// meta returns the flavor when Debian has a linux-headers meta package of that name; those are the ones
// of Debian 11, 12 and 13.
func (k debianKernels) meta(release string, _ []string) string {
	f := k.flavor(release)
	if slices.Contains([]string{"amd64", "cloud-amd64", "rt-amd64", "arm64", "cloud-arm64", "rt-arm64"}, strings.TrimSpace(f)) {
		return f
	}
	return ""
}

// debKernels names packages as Debian and Ubuntu do: linux-image and linux-headers, with a release or with the
// tail of a meta package behind.
type debKernels struct {
	names interface {
		flavor(release string) string
		meta(release string, installed []string) string
	}
}

func (k debKernels) flavor(release string) string { return k.names.flavor(release) }
func (k debKernels) meta(release string, installed []string) string {
	return k.names.meta(release, installed)
}

func (debKernels) headers(release string) []string { return []string{"linux-headers-" + release} }

func (k debKernels) later(release string, f facts.Facts) []string {
	return k.tailed("linux-headers-", release, f)
}

func (k debKernels) newest(release string, f facts.Facts) []string {
	return k.tailed("linux-image-", release, f)
}

func (k debKernels) tailed(prefix, release string, f facts.Facts) []string {
	tail := k.meta(release, f.Kernel.Meta)
	if tail == "" {
		return nil
	}
	return []string{prefix + tail}
}

func (k debKernels) carries(name, release string, f facts.Facts) bool {
	if !strings.HasPrefix(name, "linux-image-") && !strings.HasPrefix(name, "linux-headers-") {
		return false
	}
	return strings.Contains(name, release) || slices.Contains(f.Kernel.Meta, name)
}
