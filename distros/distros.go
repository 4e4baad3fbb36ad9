// Package distros says what differs from one Linux distribution to the next: as data, and as pure
// functions that return shell text.
//
// Steps never name a distribution; they read fields of a Distro, and a field's zero value means that
// there is nothing special. Nothing here reaches a guest.
package distros

import (
	"errors"

	"gpuguest/internal/facts"
)

// Words that offers and choices are made of.
const (
	SourceNVIDIA = "nvidia" // NVIDIA's network repository
	SourceDistro = "distro" // the distribution's own packages

	FlavorOpen        = "open"
	FlavorProprietary = "proprietary"

	ModulesDKMS        = "dkms"
	ModulesPrecompiled = "precompiled"
)

// Distro is one release of one distribution.
type Distro struct {
	ID       string            // os-release ID: "debian"
	Version  string            // os-release VERSION_ID: "12"; a point release of it matches too
	Codename string            // os-release VERSION_CODENAME: "bookworm"
	Name     string            // for people: "Debian 12 (bookworm)"
	Family   string            // "apt"
	Arches   map[string]string // machine (uname -m) → the package manager's word: "x86_64" → "amd64"; others are not served

	Packages Manager // the package manager

	RepoDir       map[string]string // machine → directory below NVIDIA's repository root: "debian12/x86_64"
	KeyringSHA256 map[string]string // that directory → SHA-256 of its keyring package; a missing one must be given by the user
	Frozen        string            // why NVIDIA's repository for this release gets no new drivers, "" it does

	BuildTools []string // packages a DKMS build needs besides headers
	Components []string // archive components the distribution's own driver packages live in, besides main
	Keyring    string   // path of the distribution's archive keyring, for Signed-By

	Offers []Offer // which drivers can be had here

	GRUBUpdate   string // command that writes the bootloader's configuration anew from its defaults file
	Initramfs    string // what makes the initramfs on a stock guest: "initramfs-tools"
	DKMSKey      string // private key that DKMS signs modules with
	DKMSCert     string // its certificate, DER, as mokutil takes it
	headersMeta  func(kernel string, f facts.Facts) []string
	kernelFlavor func(kernel string) string
}

// Offer is one way to get a driver: a source, a flavor, a way for its modules to come, and the range of
// branches that can be had so.
//
// Packages and Pin are templates. {branch} is the branch, {pin} the version when a full one was asked
// for and else the branch, {kernel} the next kernel's release, {kflavor} its flavor ("generic").
type Offer struct {
	Source, Flavor, Modules string
	Arches                  []string // machines (uname -m); nil: all the distribution's
	Min, Max                int      // branches, both included; Max 0: no end known
	Seen                    string   // the one version that a release's own archive carried when looked at, "" when it carries many
	Packages                []string // driver packages, in order
	Pin                     []string // packages that pin the branch, installed before
	Purpose                 string   // why it exists beside another offer of the same kind: "legacy" is taken only when nothing else serves

	Module      string      // name the module file has in the guest's tree: "nvidia", Debian's "nvidia-current"
	DKMSName    string      // name that dkms status shows, "" not built by DKMS
	Signed      bool        // modules are signed by a key that a Secure Boot guest of this distribution trusts
	Persistence Persistence // what keeps the GPU initialised
	Fact        string      // where this is known from
}

// Persistence says how nvidia-persistenced comes with an offer.
type Persistence struct {
	Package string // template like Offer.Packages
	Unit    string // "nvidia-persistenced.service"
	User    string // the unprivileged account it runs as, "" unknown: ask the unit
}

// Manager builds the package manager's command lines. Every method returns POSIX sh text that is meant to
// run as root under set -eu with no standard input, and that is the same for the same arguments.
type Manager interface {
	// Refresh fetches package lists. It exits zero when the wanted source refreshed, and then says on
	// standard error which others did not; it exits non-zero when the wanted one did not.
	Refresh(r Refresh) string
	// Install installs packages, each a name or name=version, and changes no package on hold.
	Install(packages ...string) string
	// InstallFile installs one package file that is in the guest.
	InstallFile(path string) string
	// Purge removes packages and their configuration; one that is not installed is passed over.
	Purge(packages ...string) string
	// Downgrade installs one package at an older version.
	Downgrade(name, version string) string
	// Hold and Unhold put packages on hold and take them off.
	Hold(packages ...string) string
	Unhold(packages ...string) string
	// Repair finishes what an interrupted run left half done. It changes nothing in a sound guest.
	Repair() string
	// Installed prints "name version" for each that is fully installed and exits non-zero unless all are.
	Installed(packages ...string) string
	// Offered prints "name version" for each that could be installed now and exits non-zero unless all could.
	Offered(packages ...string) string
	// Download fetches url to dest and exits non-zero, leaving no dest, unless its SHA-256 is sum.
	Download(url, dest, sum string) string
	// WaitLock waits until nobody holds the package manager's locks, naming the holder on standard error
	// when it changes, and exits 75 when seconds have passed.
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
	// Quiet runs script with the distribution's own timed package runs held off, and lets them go on
	// afterwards, however script ends.
	Quiet(script string) string
}

// Refresh says what Manager.Refresh must get right.
type Refresh struct {
	Need []string // URIs of the sources that must refresh: "https://developer.download.nvidia.com/…/x86_64"; none: all must
	Only string   // path of the one source list to read, others are left as they are; "" all
}

// Repo is NVIDIA's network repository for one distribution and machine.
type Repo struct {
	Dir           string // "debian12/x86_64"
	URL           string // of the repository, with a final slash
	KeyringURL    string // of the keyring package
	KeyringSHA256 string
	Keyring       string // path of the key that the keyring package installs
	ListPath      string // path of the source list that the keyring package installs
	List          string // what it must hold
	Mirrored      bool   // URL is not NVIDIA's own, so List differs from what the package installs
}

// HeadersFor returns the packages with the exact headers of a kernel release.
func (d Distro) HeadersFor(kernel string) []string { return []string{"linux-headers-" + kernel} }

// HeadersMeta returns the packages that pull in the headers of every later kernel of the same flavor as
// kernel, so that a kernel upgrade brings what DKMS needs. It is empty when the flavor is not known.
func (d Distro) HeadersMeta(kernel string, f facts.Facts) []string {
	if d.headersMeta == nil {
		return nil
	}
	return d.headersMeta(kernel, f)
}

// KernelFlavor returns the flavor at the end of a kernel release: "generic", "cloud-amd64", "" unknown.
func (d Distro) KernelFlavor(kernel string) string {
	if d.kernelFlavor == nil {
		return ""
	}
	return d.kernelFlavor(kernel)
}

// Repo returns NVIDIA's repository for a machine. mirror, when given, stands for
// https://developer.download.nvidia.com/compute/cuda/repos; sum, when given, replaces the known SHA-256
// of the keyring package. It fails when NVIDIA has no repository for the machine, or when no sum is known.
func (d Distro) Repo(machine, mirror, sum string) (Repo, error) { return Repo{}, nil }

// ExtraSources returns the source list that adds what the distribution's own driver packages need and
// the guest does not have, at ExtraSourcesPath; "" when nothing is missing. With mirror, all components
// come from there.
func (d Distro) ExtraSources(f facts.Facts, mirror string) string { return "" }

// ExtraSourcesPath is where ExtraSources belongs.
const ExtraSourcesPath = "/etc/apt/sources.list.d/gpuguest.list"

// For returns the distribution of a guest. as, when given ("debian:12"), says what to treat it as.
func For(osr facts.OS, as string) (Distro, error) { return Distro{}, nil }

// ErrUnsupported is matched by For's error.
var ErrUnsupported = errors.New("distribution not supported")
