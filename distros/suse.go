package distros

import (
	"regexp"

	"gpuguest/internal/facts"
)

// suse fills in what SLES and openSUSE Leap of one release share.
func suse(id, version, name, dir string, sbsa bool) Distro {
	d := Distro{
		ID: id, Version: version, Name: name,
		Family:     "zypper",
		Arches:     map[string]string{"x86_64": "x86_64"},
		Packages:   newZypper(),
		RepoDir:    map[string]string{"x86_64": dir + "/x86_64"},
		RepoKey:    nvidiaKey("D42D0685"),
		RepoFiles:  "/etc/zypp/repos.d",
		BuildTools: []string{"gcc", "make"},
		Compiler:   []string{"gcc", "glibc-devel"},
		CXX:        "gcc-c++",
		Suites:     []string{"repo-oss", "repo-update*", "openSUSE:repo-oss", "openSUSE:update*", "SLE*", "SUSE_Linux_Enterprise_Server*", "Basesystem_Module*", "Server_Applications*"},
		Marks: map[string][]string{
			SourceNVIDIA: {"cuda-drivers*", "nvidia-open", "nvidia-open-[0-9]*", "nvidia-driver-G0*-kmp-*", "nvidia-open-driver-G0*-kmp-*", "nvidia-open-driver-G0*-signed-cuda-kmp-*", "nvidia-compute*-G0*"},
		},
		Boot:   Boot{Loaders: []Loader{entries{}, grubDefaults{}}, Makers: makers},
		kernel: suseKernels{},
	}
	if sbsa {
		d.Arches["aarch64"] = "aarch64"
		d.RepoDir["aarch64"] = dir + "/sbsa"
	}
	return d
}

// packageHub is the extension of SLES with packages that the driver's need.
func packageHub(m Manager, name string) Extra {
	return Extra{Name: "Package Hub", IDs: "SUSE-PackageHub* | *PackageHub*", How: "register it by SUSEConnect", Registers: true,
		Enable: lines(
			`. /etc/os-release`,
			`product=PackageHub/$VERSION_ID/$(uname -m)`,
			`command -v SUSEConnect >/dev/null 2>&1 || { echo "there is no SUSEConnect to register Package Hub of `+name+` with" >&2; exit 1; }`,
			`SUSEConnect --product "$product"`,
			`echo "$product" >>"$S/products"`,
			`flush "$S/products"`)}
}

// suseOffers are the ways to get a driver on SUSE. Modules that SUSE built and signed for its own kernels come
// first where Secure Boot asks for a signature; else NVIDIA's metapackage of the branch, whose modules are built
// in the guest by the package's own scripts.
func suseOffers(from int, signed []int, fact string) []Offer {
	// Nothing that is known ties the daemon to the driver but its version, and the repository has that of every branch.
	persistence := Persistence{Package: "nvidia-persistenced={pin}", Unit: "nvidia-persistenced.service"}
	open := Offer{
		Source: SourceNVIDIA, Flavor: FlavorOpen, Modules: ModulesKMP, Min: from, Packages: []string{"nvidia-open-{branch}"},
		Module: "nvidia", Persistence: persistence, Caveat: notLooked,
		Fact: "nvidia-driver-assistant 0.23.48: nvidia-open-<branch> and cuda-drivers-<branch> on SUSE; " + fact,
	}
	proprietary := open
	proprietary.Flavor, proprietary.Packages = FlavorProprietary, []string{"cuda-drivers-{branch}"}
	offers := []Offer{open, proprietary}
	if len(signed) > 0 {
		offers = append(offers, Offer{
			Source: SourceNVIDIA, Flavor: FlavorOpen, Modules: ModulesPrecompiled, Branches: signed,
			Packages: []string{"nvidia-open-driver-G06-signed-cuda-kmp-{kflavor}", "nvidia-compute-utils-G06=@nvidia-open-driver-G06-signed-cuda-kmp-{kflavor}"},
			Module:   "nvidia", Signed: true, Persistence: Persistence{Unit: "nvidia-persistenced.service"},
			Caveat: "SUSE's signed modules have one version at a time, and it has moved from branch to branch: the install will tell",
			Fact:   "SUSE updates with nvidia-open-driver-G06-signed-cuda 580.82.07 (Leap 15.6) and 580.126.09 (SLES 15 SP5); nvidia-compute-utils-G06 must have the version of the modules",
		})
	}
	return offers
}

// suseKernels knows releases like 6.4.0-150600.23.47-default.
type suseKernels struct{}

var suseRelease = regexp.MustCompile(`^(\d+\.\d+\.\d+-[0-9.]+)-([a-z0-9]+)$`)

func (suseKernels) flavor(release string) string {
	if m := suseRelease.FindStringSubmatch(release); m != nil {
		return m[2]
	}
	return ""
}

func (suseKernels) meta(string, []string) string { return "" }

// A package's release has a number more than the kernel's, so the version is asked for that the package provides.
func (suseKernels) headers(release string) []string {
	m := suseRelease.FindStringSubmatch(release)
	if m == nil {
		return nil
	}
	return []string{"kernel-" + m[2] + "-devel=" + m[1]}
}

// Of kernel-default-devel several versions stand side by side, and an upgrade brings that of each new kernel.
func (suseKernels) later(string, facts.Facts) []string { return nil }

func (k suseKernels) newest(release string, _ facts.Facts) []string {
	if k.flavor(release) == "" {
		return nil
	}
	return []string{"kernel-" + k.flavor(release)}
}

func (suseKernels) carries(name, _ string, _ facts.Facts) bool { return rpmKernel(name) }
