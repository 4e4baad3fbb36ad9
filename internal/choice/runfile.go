package choice

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"gpuguest/distros"
	"gpuguest/internal/catalog"
)

// Runfile is one of NVIDIA's self-extracting installers as the user names it. The zero value names none.
type Runfile struct {
	Name    string // its file name
	URL     string // where the guest fetches it from; "" the client sends it
	SHA256  string // lower-case hex
	Version string // of what is in it, by its header or its name; "" neither tells
	Arch    string // machine that it is for, as uname -m says it; "" neither tells
}

// Given tells whether there is a file.
func (r Runfile) Given() bool { return r.SHA256 != "" }

// Installer is a self-extracting installer that was decided on, and how it is run.
type Installer struct {
	Name    string
	Version string
	URL     string // where the guest fetches it from; "" the client sends it
	SHA256  string // "" the file is not known: what it installs is there already
	Flags   []string
}

// runfileUser is the account that the daemon of NVIDIA's sample scripts runs as (install.sh of
// nvidia-persistenced-init.tar.bz2).
const runfileUser = "nvidia-persistenced"

// runfileOffers are a .run's two flavors.
var runfileOffers = map[string]*distros.Offer{
	FlavorOpen:        runfileOffer(FlavorOpen),
	FlavorProprietary: runfileOffer(FlavorProprietary),
}

func runfileOffer(flavor string) *distros.Offer {
	return &distros.Offer{
		Source: SourceRunfile, Flavor: flavor, Modules: ModulesDKMS, Module: "nvidia", DKMSName: "nvidia",
		Persistence: distros.Persistence{Unit: "nvidia-persistenced.service", User: runfileUser},
		Fact:        "the driver's README, \"Installing the NVIDIA Driver\"",
	}
}

// parseRunfile settles what naming an installer says of the rest of the wish.
func (r *request) parseRunfile() error {
	file := r.w.Runfile
	if !file.Given() {
		// What gpuguest installed stays where nothing else is asked for.
		if r.w.Source == "" && r.f.State.Runfile != "" && r.f.Runfile.Version != "" {
			r.w.Source = SourceRunfile
		}
		return nil
	}
	what := "--runfile " + file.Name
	switch {
	case r.w.Source != "" && r.w.Source != SourceRunfile:
		return &Refusal{What: what, Reason: "it goes with --source runfile and not with --source " + r.w.Source}
	case file.Arch != "" && file.Arch != r.f.Arch:
		return &Refusal{What: what, Reason: fmt.Sprintf("it is for %s, and the guest is %s", file.Arch, r.f.Arch)}
	case file.Version == "" && !strings.Contains(r.w.Driver, "."):
		return &Refusal{What: what, Reason: "neither its name nor its header tells the driver's version: say it by --driver"}
	case file.Version != "" && r.w.Driver != "" && r.w.Driver != file.Version && !strings.HasPrefix(file.Version, r.w.Driver+"."):
		return &Refusal{What: "--driver " + r.w.Driver, Reason: what + " holds driver " + file.Version}
	}
	r.w.Source, r.w.Driver = SourceRunfile, cmp.Or(file.Version, r.w.Driver)
	return nil
}

// runfile decides among NVIDIA's .run installers.
func (r *request) runfile() (Choice, error) {
	r.lookAround()
	r.all = r.runfileCandidates()
	if reason := r.wishAgainstGPUs(); reason != "" {
		return Choice{}, r.refuse(reason)
	}
	if err := r.packagesAway(); err != nil {
		return Choice{}, err
	}
	far, why := -1, ""
	for _, c := range r.all {
		if m := r.mismatch(c, r.wish); m != "" {
			continue
		}
		n, reason := r.objection(c)
		if reason == "" {
			return r.chooseRunfile(c), nil
		}
		if n > far {
			far, why = n, reason
		}
	}
	if why == "" {
		why = r.unknownRunfile()
	}
	return Choice{}, r.refuse(why)
}

// runfileCandidates lists every installer that is known, or the one that the user named, in each flavor that
// its branch has; best first.
func (r *request) runfileCandidates() []candidate {
	var files []catalog.Runfile
	if f := r.w.Runfile; f.Given() {
		files = []catalog.Runfile{{Version: r.wish.version, Arch: r.f.Arch, SHA256: f.SHA256, URL: f.URL}}
	} else {
		present := r.f.Runfile.Version
		for _, f := range catalog.DriverRunfiles() {
			if f.Arch == r.f.Arch {
				files = append(files, f)
			}
			if f.Version == present {
				present = ""
			}
		}
		if present != "" {
			files = append(files, catalog.Runfile{Version: present, Arch: r.f.Arch})
		}
	}
	var all []candidate
	for _, file := range files {
		n, err := catalog.BranchOf(file.Version)
		if err != nil {
			continue
		}
		b, known := catalog.BranchByNumber(n)
		if !known {
			continue
		}
		for _, flavor := range []string{FlavorOpen, FlavorProprietary} {
			if !has(b, flavor) {
				continue
			}
			license := map[string]string{FlavorOpen: LicenseOpen, FlavorProprietary: LicenseProprietary}[flavor]
			c := candidate{offer: runfileOffers[flavor], branch: &b, file: file}
			c.here = file.Version == r.f.Runfile.Version && (r.f.Driver.Next.License == "" || r.f.Driver.Next.License == license)
			all = append(all, c)
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		return cmp.Or(
			first(a.here, b.here),
			r.compareBranches(*a.branch, *b.branch),
			catalog.CompareVersions(b.file.Version, a.file.Version),
			first(preferred(a), preferred(b)),
		)
	})
	return all
}

// Replaced is a driver that makes way for one that comes another way.
type Replaced struct {
	Runfile  string   // version of a .run driver
	Packages []string // packages of a driver, which gpuguest's own work put in, as its ledger names them
}

// Any tells whether there is one.
func (r Replaced) Any() bool { return r.Runfile != "" || len(r.Packages) > 0 }

// packagesAway sees that no package of a driver is beside a .run one: those that gpuguest put in make way when the
// user says so, and what anybody else did stays theirs to undo.
func (r *request) packagesAway() error {
	var theirs, ours []string
	for _, p := range r.driverPackages() {
		// The ledger has a package's architecture behind its name where the package manager has.
		i := slices.IndexFunc(r.f.State.Added, func(a string) bool { return a == p || strings.HasPrefix(a, p+":") })
		if i < 0 {
			theirs = append(theirs, p)
			continue
		}
		ours = append(ours, r.f.State.Added[i])
	}
	refuse := func(p, how string) error {
		refusal := r.refuse("the guest has driver packages (" + p + "), and a .run driver beside packages breaks both: " + how)
		refusal.Nearest = ""
		return refusal
	}
	switch {
	case len(theirs) > 0:
		return refuse(theirs[0], "uninstall them first")
	case len(ours) > 0 && !r.w.Replace:
		return refuse(ours[0], "gpuguest put them in, and removes them where --replace says so")
	}
	r.replaces = Replaced{Packages: ours}
	clear(r.marks)
	return nil
}

// driverPackages are names of packages that bring a driver, whichever distribution's.
var driverPackages = []string{
	"nvidia-driver*", "nvidia-kernel*", "nvidia-dkms*", "nvidia-open*", "nvidia-headless*", "nvidia-smi", "nvidia-tesla-*", "nvidia-legacy-*",
	"nvidia-installer-cleanup", "nvidia-compute*", "nvidia-utils-*", "nvidia-persistenced", "nvidia-modprobe", "nvidia-alternative", "nvidia-support",
	"nvidia-settings", "nvidia-firmware*", "firmware-nvidia-*", "cuda-drivers*", "libcuda1", "libcudadebugger1", "libnvidia-*", "libnvcuvid1", "libnvoptix1",
	"linux-modules-nvidia-*", "linux-objects-nvidia-*", "linux-signatures-nvidia-*", "kmod-nvidia*", "xorg-x11-drv-nvidia*", "akmod-nvidia*",
}

// driverPackages returns the packages of a driver that the guest has, by name.
func (r *request) driverPackages() []string {
	var found []string
	for _, p := range sortedKeys(r.f.Packages) {
		name, _, _ := strings.Cut(p, ":")
		if slices.ContainsFunc(driverPackages, func(pattern string) bool {
			ok, _ := path.Match(pattern, name)
			return ok && !strings.HasPrefix(name, "libnvidia-container")
		}) {
			found = append(found, p)
		}
	}
	return found
}

// unknownRunfile says why no installer is known for what is wished.
func (r *request) unknownRunfile() string {
	of := "driver " + cmp.Or(r.wish.version, fmt.Sprintf("branch %d", r.wish.branch))
	if r.wish.branch == 0 {
		of = "such a driver"
	}
	s := "the SHA-256 of no installer of " + of + " for " + r.f.Arch + " is known: give the file by --runfile, or its URL with --runfile-sha256"
	for _, c := range r.all {
		if c.branch.Number == r.wish.branch && r.wish.version != "" {
			return s + "; of branch " + fmt.Sprint(r.wish.branch) + " the tables know " + c.file.Version
		}
	}
	return s
}

// stayWithRunfile returns the flags that keep a .run driver that is in the guest, "" when that cannot be.
func (r *request) stayWithRunfile(version string) string {
	stay := *r
	stay.w = Want{Source: SourceRunfile, Driver: version, NoGPU: r.w.NoGPU, Devices: r.w.Devices, Signing: r.w.Signing}
	stay.gpus, stay.warnings = nil, nil
	c, err := stay.driver()
	if err != nil || c.Runfile.SHA256 == "" {
		return ""
	}
	return "--driver " + version + " --source " + SourceRunfile
}

func (r *request) chooseRunfile(c candidate) Choice {
	ch := r.choose(c)
	ch.Version, ch.Expected = c.file.Version, c.file.Version
	ch.Runfile = Installer{Name: c.file.Name(), Version: c.file.Version, URL: c.file.URL, SHA256: c.file.SHA256, Flags: driverFlags(c.file.Version, c.offer.Flavor)}
	if f := r.w.Runfile; f.Given() {
		ch.Runfile.Name = f.Name
		if why := vgpuName(f.Name); why != "" && slices.ContainsFunc(r.gpus, func(g GPU) bool { return g.Virtual }) {
			ch.Warnings = append(ch.Warnings, why)
		}
	}
	if was := r.f.Runfile.Version; was != "" && was != c.file.Version && r.f.State.Runfile == "" {
		ch.Warnings = append(ch.Warnings, "the installer replaces driver "+was+", which somebody else put in; uninstall will not bring that one back")
	}
	return ch
}

// driverFlags are the options that an installer runs unattended with. It fails on one that it does not know,
// so each is asked of the table. The initramfs is a step of its own, and --no-cc-version-check is never given: a
// module that another compiler built than the kernel's may load and crash.
func driverFlags(version, flavor string) []string {
	flags := []string{"--silent"}
	add := func(option, value string) bool {
		if !catalog.InstallerTakes(version, option) {
			return false
		}
		flags = append(flags, option+value)
		return true
	}
	add("--dkms", "")
	switch {
	case add("--kernel-module-type", "="+flavor):
	case flavor == FlavorOpen:
		// Before 555 the flavor was the name of the folder that its sources are in.
		add("--kernel-module-build-directory", "=kernel-open")
	}
	add("--no-rebuild-initramfs", "")
	return flags
}
