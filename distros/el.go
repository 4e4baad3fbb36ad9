package distros

import (
	"slices"
	"strconv"
	"strings"

	"gpuguest/internal/facts"
)

// driverNames are the packages of the driver in NVIDIA's repositories for rpm, which a pin keeps together: those
// of NVIDIA/yum-packaging-nvidia-driver's 570 spec and what belongs to them. A pattern would catch NVIDIA's
// container toolkit too, which has versions of its own.
var driverNames = []string{
	"cuda-drivers", "kmod-nvidia-latest-dkms", "kmod-nvidia-open-dkms", "libnvidia-cfg", "libnvidia-fbc", "libnvidia-gpucomp",
	"libnvidia-ml", "nvidia-driver", "nvidia-driver-cuda", "nvidia-driver-cuda-libs", "nvidia-driver-libs", "nvidia-kmod-common",
	"nvidia-libXNVCtrl", "nvidia-modprobe", "nvidia-open", "nvidia-persistenced", "nvidia-settings", "nvidia-xconfig", "xorg-x11-nvidia",
}

// DriverNames returns the names of the driver's packages in NVIDIA's repositories for rpm.
func DriverNames() []string { return slices.Clone(driverNames) }

// rpmMarks tell NVIDIA's packages from those of RPM Fusion and ELRepo, which conflict with them. Modules for one
// kernel are named by driver and kernel there (kmod-nvidia-580.95.05-5.14.0-570.12.1), and by kernel here.
var rpmMarks = map[string][]string{
	SourceNVIDIA: {"cuda-drivers*", "kmod-nvidia-latest-dkms", "kmod-nvidia-open-dkms", "kmod-nvidia-[0-9][0-9][0-9].*", "nvidia-driver", "nvidia-driver-*", "nvidia-open", "nvidia-open-[0-9]*"},
	SourceOther:  {"akmod-nvidia*", "xorg-x11-drv-nvidia*", "kmod-nvidia", "kmod-nvidia-[0-9].*", "nvidia-x11-drv*"},
}

// rhelBoot is the boot layer since RHEL 8, and before where there are no entries.
var rhelBoot = Boot{Loaders: []Loader{grubby{}, entries{}, grubDefaults{}}, Makers: makers}

// driverPersistence is the daemon in NVIDIA's repositories for rpm: nvidia-driver-cuda needs its package, whose
// preset turns the unit on (70-nvidia-driver-cuda.preset).
var driverPersistence = Persistence{Package: "nvidia-persistenced", Unit: "nvidia-persistenced.service"}

// el fills in what RHEL of one release and its rebuilds share. name is for people.
func el(id, version, name string, m Manager) Distro {
	return Distro{
		ID: id, Version: version, Name: name,
		Family:   "dnf",
		Arches:   map[string]string{"x86_64": "x86_64", "aarch64": "aarch64"},
		Packages: m,
		RepoDir: map[string]string{
			"x86_64":  "rhel" + version + "/x86_64",
			"aarch64": "rhel" + version + "/sbsa",
		},
		RepoKey:    nvidiaKey("D42D0685"),
		RepoFiles:  "/etc/yum.repos.d",
		BuildTools: []string{"gcc", "make", "dkms"},
		Compiler:   []string{"gcc", "glibc-devel"},
		CXX:        "gcc-c++",
		Suites: []string{"baseos*", "appstream*", "rhel-*-baseos-*", "rhel-*-appstream-*", "rhui-rhel-*-baseos-*", "rhui-rhel-*-appstream-*",
			"rhel-[0-9]-server-rpms", "rhel-[0-9]-server-rhui-rpms", "rhui-rhel-[0-9]-server-rhui-rpms", "ol*_baseos_latest", "ol*_appstream", "ol7_latest", "base", "updates", "extras*"},
		Marks:    rpmMarks,
		Boot:     rhelBoot,
		DKMSKey:  "/var/lib/dkms/mok.key",
		DKMSCert: "/var/lib/dkms/mok.pub",
		kernel:   elKernels{},
	}
}

// rebuilds are the distributions that are RHEL of a release by another name, and what each calls the repository
// of development packages and EPEL's package.
func rebuilds(version string, m Manager, crbRebuild string) []Distro {
	var all []Distro
	for _, r := range []struct{ id, name, crbName, crbIDs string }{
		{"rhel", "Red Hat Enterprise Linux", "", ""},
		{"rocky", "Rocky Linux", crbRebuild, crbRebuild},
		{"almalinux", "AlmaLinux", crbRebuild, crbRebuild},
		{"centos", "CentOS Stream", crbRebuild, crbRebuild},
		{"ol", "Oracle Linux", "CodeReady Builder", "ol" + version + "_codeready_builder"},
	} {
		d := el(r.id, version, r.name+" "+version, m)
		builder, epel := crb(r.crbName, r.crbIDs), releasePackage(m, "EPEL", "epel", "epel-release")
		switch r.id {
		case "rhel":
			builder, epel = codeReady(version), epelFromFedora(m, version)
		case "ol":
			// Oracle Linux 10 has one for each update, which its package leaves off.
			epel = releasePackage(m, "EPEL", "ol"+version+"_developer_EPEL | ol"+version+"_u[0-9]*_developer_EPEL", "oracle-epel-release-el"+version)
		}
		d.Extras = []Extra{builder, epel}
		d.Toolsets = true
		switch r.id {
		case "rocky":
			d.Vault = Vault{URL: "https://dl.rockylinux.org/vault/rocky/{minor}/{repo}/{machine}/os/", Keys: "/etc/pki/rpm-gpg/RPM-GPG-KEY-[Rr]ocky*"}
		case "almalinux":
			d.Vault = Vault{URL: "https://vault.almalinux.org/{minor}/{repo}/{machine}/os/", Keys: "/etc/pki/rpm-gpg/RPM-GPG-KEY-AlmaLinux*"}
		}
		all = append(all, d)
	}
	return all
}

// dkmsOffer is an offer of NVIDIA's repository for rpm: its compute-only set, as a guest that computes needs no
// X, with modules that DKMS builds.
func dkmsOffer(flavor string, o Offer, fact string) Offer {
	o.Source, o.Flavor, o.Modules = SourceNVIDIA, flavor, ModulesDKMS
	o.Packages = []string{"kmod-nvidia-open-dkms", "nvidia-driver-cuda"}
	if flavor == FlavorProprietary {
		o.Packages[0] = "kmod-nvidia-latest-dkms"
	}
	o.Module, o.DKMSName = "nvidia", "nvidia"
	o.Persistence = driverPersistence
	o.Fact = "NVIDIA driver installation guide, compute-only; " + fact
	return o
}

// streamed are the offers of a repository whose branches are streams of the module nvidia-driver: 580-open and
// 580-dkms. What is not in an enabled stream cannot be seen ("All matches were filtered out by modular
// filtering"), so the stream comes before everything.
func streamed(o Offer, fact string) []Offer {
	open, proprietary := o, o
	open.Stream, proprietary.Stream = "nvidia-driver:{branch}-open", "nvidia-driver:{branch}-dkms"
	return []Offer{dkmsOffer(FlavorOpen, open, fact), dkmsOffer(FlavorProprietary, proprietary, fact)}
}

// precompiled is the offer of streams whose modules NVIDIA built for kernels of RHEL, and signed with a key of its own
// that no guest trusts by itself. They are the proprietary ones, a package for each version and kernel, and a plugin
// of dnf holds kernels back that have none yet.
func precompiled() Offer {
	o := dkmsOffer(FlavorProprietary, Offer{Min: 515, Arches: []string{"x86_64"}, Stream: "nvidia-driver:{branch}", Last: true, Caveat: "for which kernels NVIDIA has built this driver has not been looked at: the install will tell"},
		"NVIDIA/yum-packaging-precompiled-kmod, README and kmod-nvidia.spec: kmod-nvidia-<driver>-<kernel>, and DKMS instead for what is not there")
	o.Modules, o.DKMSName = ModulesPrecompiled, ""
	o.Packages = []string{"nvidia-driver-cuda", "kmod-nvidia-{version}-{kbare}", "dnf-plugin-nvidia"}
	return o
}

// almaSigned adds what AlmaLinux builds itself: the open modules for its own kernels, signed with the key of these,
// one version at a time, beside NVIDIA's packages of everything else.
func almaSigned(d *Distro) {
	release := releasePackage(d.Packages, "AlmaLinux's NVIDIA repository", "almalinux-nvidia", "almalinux-release-nvidia-driver")
	release.For = SourceDistro
	d.Extras = append(d.Extras, release)
	d.Marks = map[string][]string{
		SourceNVIDIA: {"kmod-nvidia-latest-dkms", "kmod-nvidia-open-dkms", "kmod-nvidia-[0-9][0-9][0-9].*"},
		SourceDistro: {"nvidia-open-kmod", "kmod-nvidia-open"},
		SourceOther:  rpmMarks[SourceOther],
	}
	d.Offers = append(d.Offers, Offer{
		Source: SourceDistro, Flavor: FlavorOpen, Modules: ModulesPrecompiled, Branches: []int{580, 595, 615},
		Packages: []string{"nvidia-open-kmod={branch}", "nvidia-driver-cuda={branch}"},
		Module:   "nvidia", Signed: true, Persistence: driverPersistence,
		Caveat: "AlmaLinux's modules have moved from branch to branch: the install will tell",
		Fact: "wiki.almalinux.org, NVIDIA: almalinux-release-nvidia-driver, nvidia-open-kmod, nvidia-driver-cuda; AlmaLinux's functional tests hold the signer; " +
			"580.105.08 (yum-packaging-precompiled-kmod, DISTROS.md), 595.58.03 and 615.71.09 seen",
	})
}

// locked are the offers of a repository that holds all branches side by side, so that one is kept by locking
// versions.
func locked(o Offer, fact string) []Offer {
	o.Lock = true
	return []Offer{dkmsOffer(FlavorOpen, o, fact), dkmsOffer(FlavorProprietary, o, fact)}
}

// notLooked is the caveat of offers whose repository nobody has looked into.
const notLooked = "which branches NVIDIA's repository for this distribution holds has not been looked at: the install will tell"

// elKernels knows releases like 5.14.0-570.12.1.el9_6.x86_64, with +64k behind for 64 KiB pages, and Oracle's
// 5.15.0-200.131.27.el9uek.x86_64.
type elKernels struct {
	// matched: kernel-devel-matched keeps the headers of later kernels at hand. Without it kernel-devel, of which
	// several versions stand side by side, comes with every kernel that an upgrade brings.
	matched bool
}

func (elKernels) flavor(release string) string {
	switch _, variant, _ := strings.Cut(release, "+"); {
	case variant != "":
		return variant
	case strings.Contains(release, "uek"):
		return "uek"
	case strings.Contains(release, ".rt"):
		return "rt"
	case strings.Contains(release, ".el") || strings.Contains(release, ".fc") || strings.Contains(release, ".ky"):
		return "standard"
	}
	return ""
}

func (elKernels) meta(string, []string) string { return "" }

// prefix is the kernel package of a flavor.
func (k elKernels) prefix(release string) string {
	switch f := k.flavor(release); f {
	case "", "standard":
		return "kernel"
	default:
		return "kernel-" + f
	}
}

func (k elKernels) headers(release string) []string {
	bare, _, _ := strings.Cut(release, "+")
	return []string{k.prefix(release) + "-devel-" + bare}
}

// The package is asked for at the version of the next kernel: its newest one would bring the newest kernel along,
// which then would be the one that starts next.
func (k elKernels) later(release string, f facts.Facts) []string {
	if !k.matched || k.flavor(release) == "uek" || k.flavor(release) == "rt" {
		return nil
	}
	name := k.prefix(release) + "-devel-matched"
	if f.Packages[name] != "" {
		return []string{name}
	}
	bare, _, _ := strings.Cut(release, "+")
	return []string{name + "-" + bare}
}

func (k elKernels) newest(release string, _ facts.Facts) []string {
	if k.flavor(release) == "" {
		return nil
	}
	return []string{k.prefix(release)}
}

func (elKernels) carries(name, _ string, _ facts.Facts) bool { return rpmKernel(name) }

// rpmKernel tells whether a package is part of a kernel.
func rpmKernel(name string) bool {
	if !strings.HasPrefix(name, "kernel") {
		return false
	}
	for _, other := range []string{"-headers", "-tools", "-tools-libs", "-macros", "-srpm-macros", "-rpm-macros", "-doc", "-docs"} {
		if strings.HasSuffix(name, other) {
			return false
		}
	}
	return !strings.HasPrefix(name, "kernel-firmware")
}

// Toolset returns the package with the compiler that a kernel was built with, and the file to read for it to be
// used, where that compiler is newer than the distribution's own: Oracle's UEK (NVIDIA driver installation
// guide, Oracle Linux). Both are "" where the distribution's own will do.
func (d Distro) Toolset(f facts.Facts) (pkg, enable string) {
	if !d.Toolsets {
		return "", ""
	}
	major := compilerMajor(f.Kernel.Compiler)
	if major <= d.GCC {
		return "", ""
	}
	pkg = "gcc-toolset-" + strconv.Itoa(major)
	return pkg, "/opt/rh/" + pkg + "/enable"
}

// OwnGCC returns the major version of the compiler that the distribution's package manager installs: the one that is
// known of the distribution, else the one that the guest's kernel was built with; 0 unknown.
func (d Distro) OwnGCC(f facts.Facts) int {
	if d.GCC != 0 {
		return d.GCC
	}
	return compilerMajor(f.Kernel.Compiler)
}

// compilerMajor reads "gcc (GCC) 14.2.1 20250110 (Red Hat 14.2.1-7)"; 0 when it is something else.
func compilerMajor(text string) int {
	if !strings.HasPrefix(text, "gcc ") {
		return 0
	}
	for _, w := range strings.Fields(text) {
		head, _, dotted := strings.Cut(w, ".")
		if n, err := strconv.Atoi(head); dotted && err == nil {
			return n
		}
	}
	return 0
}

// KernelBare returns a kernel release without distribution and machine, as NVIDIA names what it built for it:
// "5.14.0-570.12.1" of 5.14.0-570.12.1.el9_6.x86_64; "" where it has another form.
func (d Distro) KernelBare(release string) string {
	bare, _, ok := strings.Cut(release, ".el")
	if !ok || strings.Contains(release, "+") || strings.Contains(release, "uek") || strings.Contains(release, ".rt") {
		return ""
	}
	return bare
}
