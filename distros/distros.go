// Package distros says what differs from one Linux distribution to the next: as data, and as pure
// functions that return shell text.
//
// Steps never name a distribution; they read fields of a Distro, and a field's zero value means that
// there is nothing special. Nothing here reaches a guest.
package distros

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"gpuguest/internal/catalog"
	"gpuguest/internal/facts"
)

// Words that offers and choices are made of.
const (
	SourceNVIDIA = "nvidia" // NVIDIA's network repository
	SourceDistro = "distro" // the distribution's own packages
	// SourceRunfile is NVIDIA's self-extracting installer, whose files no package manager knows. No offer has it: it is
	// the same everywhere.
	SourceRunfile = "runfile"
	SourceOther   = "other" // somebody else's: nothing is taken from there, and what came from there is in the way

	FlavorOpen        = "open"
	FlavorProprietary = "proprietary"

	ModulesDKMS        = "dkms"
	ModulesPrecompiled = "precompiled"
	ModulesKMP         = "kmp" // SUSE: built in the guest by the package's own scripts
)

// Distro is one release of one distribution.
type Distro struct {
	ID       string            // os-release ID: "debian"
	Version  string            // os-release VERSION_ID: "12"; a point release of it matches too
	Codename string            // os-release VERSION_CODENAME: "bookworm"
	Name     string            // for people: "Debian 12 (bookworm)"
	Family   string            // "apt", "dnf", "zypper", "tdnf"
	Arches   map[string]string // machine (uname -m) → the package manager's word: "x86_64" → "amd64"; others are not served

	Packages Manager // the package manager

	RepoDir       map[string]string // machine → directory below NVIDIA's repository root: "debian12/x86_64"
	KeyringSHA256 map[string]string // that directory → SHA-256 of its keyring package; a missing one must be given by the user
	RepoKey       RepoKey           // the key of NVIDIA's repository, where no keyring package brings it
	RepoFiles     string            // folder of the package manager's repository files, for those
	Frozen        string            // what is wrong with NVIDIA's repository for this release ("it gets no new drivers"), "" nothing

	BuildTools []string // packages a DKMS build needs besides headers
	Compiler   []string // packages that make a C program for this system: a compiler and the C library's headers
	CXX        string   // the package of a C++ compiler
	GCC        int      // major version of the distribution's compiler, 0 unknown
	Toolsets   bool     // newer compilers come as gcc-toolset-N: see Toolset
	Glibc      string   // version of the C library where toolkits of CUDA are newer than it, "" new enough for all
	Vault      Vault    // where packages go that leave the archive
	Extras     []Extra  // repositories that BuildTools or the driver need besides the distribution's usual ones
	Components []string // archive components the distribution's own driver packages live in, besides main
	Suites     []string // archive suites to read: the release and its updates; for rpm, patterns of the ids of the distribution's repositories
	Keyring    string   // path of the distribution's archive keyring, for Signed-By

	Offers []Offer           // which drivers can be had here
	Tested map[string]string // how, by source; one that is missing was tested by plans only
	// Marks are patterns (path.Match) of package names that only one source of drivers has, by source.
	// Packages of both in one guest break each other.
	Marks map[string][]string

	Boot     Boot   // how the boot loader and the initramfs are changed and asked
	DKMSKey  string // private key that DKMS signs modules with
	DKMSCert string // its certificate, DER, as mokutil takes it

	kernel kernelNames
}

// kernelNames knows how a distribution names its kernels and their meta packages.
type kernelNames interface {
	// flavor is what a release ends in: "generic", "cloud-amd64", "" unknown.
	flavor(release string) string
	// meta is the tail that the meta packages for a release share ("generic-hwe-24.04"), given those
	// installed; "" unknown.
	meta(release string, installed []string) string
	// headers are the packages with the exact headers of a release.
	headers(release string) []string
	// later are the packages that bring the headers of later kernels of the same flavor.
	later(release string, f facts.Facts) []string
	// newest are the packages that bring the newest kernel of the same flavor.
	newest(release string, f facts.Facts) []string
	// carries tells whether a package is part of the kernel of a release, or brings later ones.
	carries(name, release string, f facts.Facts) bool
}

// Offer is one way to get a driver: a source, a flavor, a way for its modules to come, and the branches
// that can be had so.
//
// Packages, Pin and Persistence.Package are templates for Expand.
type Offer struct {
	Source, Flavor, Modules string
	Arches                  []string // machines (uname -m); nil: all the distribution's
	Branches                []int    // exactly these branches; nil: those from Min on
	Min                     int
	Seen                    string   // the version found when a source that carries only one was looked at, "" when it carries many
	Packages                []string // driver packages, in order
	Pin                     []string // packages that pin the branch, installed before
	Stream                  string   // template of the module stream that holds the branch, "" none
	Lock                    bool     // the branch is kept by locking versions: the repository holds others too
	Suite                   string   // the one suite that all of the driver must come from, "" whatever the guest's sources lead to
	Last                    bool     // taken by itself only when no other offer serves
	Caveat                  string   // what is not known of it and the user should hear, "" nothing
	Breaks                  string   // the kernel, "6.1.0-56", from which on in its series (6.1) these modules were seen not to compile; "" none

	Module      string      // name of the module file in the guest: "nvidia", Debian's "nvidia-current"
	DKMSName    string      // name that dkms status shows, "" not built by DKMS
	Signed      bool        // the modules are signed by a key that this distribution's Secure Boot chain trusts
	Persistence Persistence // what keeps the GPU initialised
	Fact        string      // where this is known from
}

// Compiles tells whether an offer's modules may compile for a kernel: whether none is known in its series, at it or
// before it, for which they did not.
func (o Offer) Compiles(release string) bool {
	var at, from [4]int
	read := func(s string, n *[4]int) bool {
		got, _ := fmt.Sscanf(s, "%d.%d.%d-%d", &n[0], &n[1], &n[2], &n[3])
		return got == len(n)
	}
	return o.Breaks == "" || !read(release, &at) || !read(o.Breaks, &from) || !slices.Equal(at[:2], from[:2]) || slices.Compare(at[:], from[:]) < 0
}

// Serves tells whether an offer can deliver a branch to a machine (uname -m).
func (o Offer) Serves(branch int, machine string) bool {
	if o.Arches != nil && !slices.Contains(o.Arches, machine) {
		return false
	}
	if o.Branches != nil {
		return slices.Contains(o.Branches, branch)
	}
	return branch >= o.Min
}

// Persistence says how nvidia-persistenced comes with an offer.
type Persistence struct {
	Package string // installed with the driver packages
	Unit    string // "nvidia-persistenced.service"
	User    string // the unprivileged account it runs as, "" unknown: ask the unit
	// DropIn is what /etc/systemd/system/<Unit>.d/ must hold for the unit to start at boot with persistence
	// mode on; "" when the unit does so by itself, as far as is known.
	DropIn string
}

// Names are the values that templates are filled with.
type Names struct {
	Branch     int
	Version    string // full version when one was asked for, "" the newest of the branch
	Kernel     string // release of the next kernel, "" unknown
	KernelBare string // that release without distribution and machine: "5.14.0-570.12.1"; "" unknown
	Flavor     string // that kernel's flavor, "" unknown
	KernelMeta string // tail of the kernel's meta packages: "generic-hwe-24.04"; "" unknown or not wanted
}

// Expand fills package templates: {branch}, {version}, {pin} (the version, or else the branch), {kernel}, {kbare},
// {kflavor} and {kmeta}.
// A package whose value is not known is left out.
func Expand(templates []string, n Names) []string {
	pin := n.Version
	if pin == "" {
		pin = fmt.Sprint(n.Branch)
	}
	values := [...][2]string{{"{branch}", fmt.Sprint(n.Branch)}, {"{version}", n.Version}, {"{pin}", pin}, {"{kernel}", n.Kernel}, {"{kbare}", n.KernelBare}, {"{kflavor}", n.Flavor}, {"{kmeta}", n.KernelMeta}}
	out := make([]string, 0, len(templates))
	for _, t := range templates {
		ok := true
		for _, v := range values {
			if strings.Contains(t, v[0]) {
				ok = ok && v[1] != ""
				t = strings.ReplaceAll(t, v[0], v[1])
			}
		}
		if ok {
			out = append(out, t)
		}
	}
	return out
}

// Manager builds the package manager's command lines. Every method returns POSIX sh text that is meant to
// run as root under set -eu with no standard input, and that is the same for the same arguments.
type Manager interface {
	// Refresh fetches package lists. See Refresh for what must succeed.
	Refresh(r Refresh) string
	// Install installs packages, each a name or name=version, and changes no package on hold.
	Install(packages ...string) string
	// Exchange installs packages in the place of others that conflict with them, and lets go of what cannot stay beside
	// them.
	Exchange(packages ...string) string
	// InstallFile installs one package file that is in the guest, again if it was installed before.
	InstallFile(path string) string
	// Purge removes packages and their configuration; one that is not installed is passed over.
	// It removes nothing and fails where a package that is not named would go with them.
	Purge(packages ...string) string
	// Downgrade installs one package at an older version.
	Downgrade(name, version string) string
	// Hold and Unhold put packages on hold and take them off.
	Hold(packages ...string) string
	Unhold(packages ...string) string
	// Repair finishes what an interrupted run left half done. It changes nothing in a sound guest.
	Repair() string
	// Snapshot asks once for what Installed and Sound look at, in a script that changes no package between
	// them. Without it they ask for themselves. "" where it would save nothing.
	Snapshot() string
	// Installed exits zero when every package is fully installed, and names those that are not otherwise.
	Installed(packages ...string) string
	// Offered prints "name version" for each that could be installed now and exits non-zero unless all could.
	Offered(packages ...string) string
	// Download fetches url to dest by way of a temporary name, and exits non-zero, leaving dest as it was,
	// unless its SHA-256 is sum.
	Download(url, dest, sum string) string
	// WaitLock waits until nobody holds the package manager's locks, naming each holder on standard error,
	// and exits 75 when seconds have passed.
	WaitLock(seconds int) string
	// Fetched exits zero when the package list of the source at this URI is in the guest.
	Fetched(uri string) string
	// Sound exits zero when no package is half installed, and names them otherwise.
	Sound() string
	// List prints "name version" of every installed package, one a line, sorted; names carry their
	// architecture where that is what tells two packages apart.
	List() string
	// Manual prints the names of the packages that a person asked for; nothing where that is not recorded.
	Manual() string
	// Held prints the names of the packages on hold.
	Held() string
	// Pin keeps what is installed later within a branch, beyond what packages do. It needs the step library:
	// files it changes are kept. Pinned exits zero when the pin is in force; it reads files only.
	Pin(p Pin) string
	Pinned(p Pin) string
	// Quiet runs script in a subshell with the distribution's own timed package runs held off, and lets
	// them go on afterwards, however script ends. A power cut in between leaves nothing behind: the timers
	// are stopped, not disabled.
	Quiet(script string) string
}

// Refresh says what Manager.Refresh must get right.
type Refresh struct {
	// Need holds the URIs of the sources that must refresh. An error in any other source is said on
	// standard error and passed over. With none, every source must refresh.
	Need []string
	// Only is the path of the one source file to read; the lists of all others are left as they are. "" all.
	Only string
}

// KernelFlavor returns the flavor at the end of a kernel release: "generic", "cloud-amd64", "" unknown.
func (d Distro) KernelFlavor(release string) string { return d.kernel.flavor(release) }

// KernelMeta returns the tail that the meta packages of a kernel's flavor share ("generic-hwe-24.04"), "" unknown.
func (d Distro) KernelMeta(release string, f facts.Facts) string {
	return d.kernel.meta(release, f.Kernel.Meta)
}

// HeadersFor returns the packages with the exact headers of a kernel release.
func (d Distro) HeadersFor(release string) []string {
	if release == "" {
		return nil
	}
	return d.kernel.headers(release)
}

// HeadersMeta returns the packages that pull in the headers of every later kernel of the same flavor, so
// that a kernel upgrade brings what DKMS needs. It is empty when the flavor is not known.
func (d Distro) HeadersMeta(release string, f facts.Facts) []string {
	if release == "" {
		return nil
	}
	return d.kernel.later(release, f)
}

// NewestKernel returns the packages that bring the newest kernel of a kernel's flavor; none when not known.
func (d Distro) NewestKernel(release string, f facts.Facts) []string {
	return d.kernel.newest(release, f)
}

// KernelPackages returns the packages that carry a kernel, its headers, or bring later ones, by name: those that are
// installed, and those of headers that are about to be.
func (d Distro) KernelPackages(release string, f facts.Facts, headers []string) []string {
	all := slices.Collect(maps.Keys(f.Packages))
	for _, h := range headers {
		h = PackageName(h)
		if d.RepoFiles != "" {
			// For rpm the kernel's release is no part of the name.
			bare, _, _ := strings.Cut(release, "+")
			h = strings.TrimSuffix(h, "-"+bare)
		}
		all = append(all, h)
	}
	slices.Sort(all)
	return slices.DeleteFunc(slices.Compact(all), func(p string) bool { return !d.kernel.carries(p, release, f) })
}

// String returns the distribution as --as takes it: "debian:12".
func (d Distro) String() string { return d.ID + ":" + d.Version }

var registry []Distro

// register adds a distribution; one file for each calls it from init. It panics on a duplicate.
func register(d Distro) {
	for _, other := range registry {
		if other.String() == d.String() {
			panic("distros: " + d.String() + " registered twice")
		}
	}
	registry = append(registry, d)
}

// All returns every distribution known, by name.
func All() []Distro {
	all := slices.Clone(registry)
	slices.SortFunc(all, func(a, b Distro) int { return strings.Compare(a.String(), b.String()) })
	return all
}

// ErrUnsupported is matched by For's error.
var ErrUnsupported = errors.New("distribution not supported")

// For returns the distribution of a guest. as, when given ("debian:12"), says what to treat it as.
//
// The most specific match wins: a VERSION_ID equal to a distribution's, then one that is a point release
// of it. ID_LIKE is never followed by itself: a derivative may have replaced the very packages we install.
// The error names it, so that the user can.
func For(osr facts.OS, as string) (Distro, error) {
	id, version, told := strings.ToLower(osr.ID), osr.VersionID, false
	if as != "" {
		id, version, told = cutAs(as)
		if !told {
			return Distro{}, fmt.Errorf("%w: --as %s is not of the form debian:12", ErrUnsupported, as)
		}
	}
	var best Distro
	for _, d := range registry {
		if d.ID == id && (strings.EqualFold(d.Version, version) || strings.HasPrefix(version, d.Version+".")) && len(d.Version) > len(best.Version) {
			best = d
		}
	}
	if best.ID != "" {
		return best, nil
	}
	return Distro{}, fmt.Errorf("%w: %s", ErrUnsupported, unsupported(osr, id, version, told))
}

func cutAs(as string) (id, version string, ok bool) {
	id, version, ok = strings.Cut(strings.ToLower(as), ":")
	return id, version, ok && id != "" && version != ""
}

// unsupported says which distribution it is, which are known, and, for a derivative, how to say what it is like.
func unsupported(osr facts.OS, id, version string, told bool) string {
	var names []string
	for _, d := range All() {
		names = append(names, d.String())
	}
	name := id + ":" + version
	switch {
	case id == "":
		name = "the guest's os-release names none"
	case version == "":
		name = id + " (its os-release has no VERSION_ID)"
	}
	msg := name + "; known are " + strings.Join(names, ", ")
	if told {
		return msg
	}
	for _, like := range append([]string{id}, osr.Like...) {
		if d, ok := closest(strings.ToLower(like), osr); ok {
			return fmt.Sprintf("%s; if its packages are those of %s, say --as %s", msg, d.Name, d)
		}
	}
	return msg
}

// closest guesses which release of a distribution a guest is nearest to, for the hint only: the one with
// its codename, else, for an unknown release of a known distribution, the one before it, else the newest.
func closest(id string, osr facts.OS) (Distro, bool) {
	var best Distro
	for _, d := range All() {
		if d.ID != id {
			continue
		}
		if osr.Codename != "" && d.Codename == osr.Codename {
			return d, true
		}
		if best.ID == "" || strings.ToLower(osr.ID) != id || catalog.CompareVersions(d.Version, osr.VersionID) <= 0 {
			best = d
		}
	}
	return best, best.ID != ""
}
