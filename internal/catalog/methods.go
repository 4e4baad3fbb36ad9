package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"gpuguest/assets"
)

// Toolkit is one release of the CUDA toolkit.
type Toolkit struct {
	Version      string   // "12.8.1", "9.1.85"; the oldest rows have two numbers only
	Driver       string   // the driver that belongs to it: with this one or a newer one all of it works
	MinDriver    string   // oldest driver that runs it, within its major release; "" Driver
	GCCMin       int      // oldest major release of gcc that nvcc takes, 0 no limit known
	GCCMax       int      // newest one
	CCMin, CCMax string   // oldest and newest compute capability it builds for: "5.0", "12.0"
	CCLacks      []string // capabilities between the two that it does not know
	Samples      bool     // its runfile brings the samples
	Preview      bool     // a preview for developers, taken only when it is asked for by its full version
	Source       string   // where the row comes from
}

// Series is the first two numbers of a release, which its packages and folders are named by: "12.8".
func (t Toolkit) Series() string { return series(t.Version) }

func series(version string) string {
	parts := strings.SplitN(version, ".", 3)
	return strings.Join(parts[:min(len(parts), 2)], ".")
}

// Knows tells whether the toolkit builds for a compute capability.
func (t Toolkit) Knows(capability string) bool {
	return CompareVersions(t.CCMin, capability) <= 0 && CompareVersions(capability, t.CCMax) <= 0 && !slices.Contains(t.CCLacks, capability)
}

// Runs tells whether a driver of this version runs what the toolkit builds. Within a major release a driver
// older than the toolkit's own runs it too, but for what needs newer parts of the driver: PTX is not compiled.
func (t Toolkit) Runs(driver string) bool {
	return CompareVersions(driver, cmp.Or(t.MinDriver, t.Driver)) >= 0
}

// Glibc is the oldest C library that its compiler runs with, "2.27"; "" none known (spack, cuda/package.py).
func (t Toolkit) Glibc() string {
	if CompareVersions(t.Version, "12.8") >= 0 {
		return "2.27"
	}
	return ""
}

// Whole tells whether a driver of this version gives the toolkit all that it may ask for.
func (t Toolkit) Whole(driver string) bool { return CompareVersions(driver, t.Driver) >= 0 }

var toolkits = sync.OnceValue(func() []Toolkit {
	var all []Toolkit
	for line := range body(assets.Toolkits) {
		f := strings.Split(line, "\t")
		all = append(all, Toolkit{
			Version: f[0], Driver: f[1], MinDriver: f[2], GCCMin: leadingInt(f[3]), GCCMax: leadingInt(f[4]),
			CCMin: f[5], CCMax: f[6], CCLacks: strings.Fields(f[7]), Samples: f[8] == Yes, Preview: f[9] == "preview", Source: f[10],
		})
	}
	return all
})

// Toolkits returns every release of the table, oldest first. The slice is the caller's.
func Toolkits() []Toolkit { return slices.Clone(toolkits()) }

// ToolkitByVersion returns the release of a full version ("12.8.1"), or the newest of a series ("12.8").
func ToolkitByVersion(version string) (Toolkit, bool) {
	var found Toolkit
	for _, t := range toolkits() {
		if t.Version == version {
			return t, true
		}
		if t.Series() == version && !t.Preview {
			found = t
		}
	}
	return found, found.Version != ""
}

// ToolkitRepo is what one of NVIDIA's repositories holds of toolkits.
type ToolkitRepo struct {
	Dir         string // "rhel9/x86_64"
	First, Last string // oldest and newest series; First may be Unknown, Last too, and "" where it still gets new ones
	Source      string // where the row comes from
}

// Lacks says why a series of toolkits, "12.8", is not in the repository; "" when it is or may be.
func (r ToolkitRepo) Lacks(series string) string {
	switch {
	case r.First != Unknown && CompareVersions(series, r.First) < 0:
		return "begins with CUDA " + r.First
	case r.Last != Unknown && r.Last != "" && CompareVersions(series, r.Last) > 0:
		return "ends with CUDA " + r.Last
	}
	return ""
}

// ToolkitRepoOf returns what is known of a repository's toolkits, by its directory. Of one that nobody has looked at
// nothing is known.
func ToolkitRepoOf(dir string) ToolkitRepo {
	for line := range rows(assets.ToolkitRepos, dir) {
		f := strings.Split(line, "\t")
		return ToolkitRepo{Dir: f[0], First: f[1], Last: f[2], Source: f[3]}
	}
	return ToolkitRepo{Dir: dir, First: Unknown, Last: Unknown}
}

// Runfile is one of NVIDIA's self-extracting installers.
type Runfile struct {
	Version string // of the driver or the toolkit in it
	Arch    string // machine, as uname -m says it
	Driver  string // of a toolkit's: the driver that it brings, "" none or unknown
	SHA256  string // lower-case hex
	URL     string // where NVIDIA keeps it
	Source  string // where the row comes from
}

// Name is the file's name.
func (r Runfile) Name() string { return r.URL[strings.LastIndexByte(r.URL, '/')+1:] }

var driverRunfiles = sync.OnceValue(func() []Runfile {
	var all []Runfile
	for line := range body(assets.DriverRunfiles) {
		f := strings.Split(line, "\t")
		all = append(all, Runfile{Version: f[0], Arch: f[1], SHA256: f[2], URL: f[3], Source: f[4]})
	}
	return all
})

var toolkitRunfiles = sync.OnceValue(func() []Runfile {
	var all []Runfile
	for line := range body(assets.ToolkitRunfiles) {
		f := strings.Split(line, "\t")
		all = append(all, Runfile{Version: f[0], Arch: f[1], Driver: f[2], SHA256: f[3], URL: f[4], Source: f[5]})
	}
	return all
})

// DriverRunfiles returns the driver's installers whose checksums are known, oldest first. The slice is the
// caller's.
func DriverRunfiles() []Runfile { return slices.Clone(driverRunfiles()) }

// ToolkitRunfiles returns the installers of CUDA toolkits whose checksums are known, oldest first. The slice is
// the caller's.
func ToolkitRunfiles() []Runfile { return slices.Clone(toolkitRunfiles()) }

// ToolkitRunfile returns the installer of a toolkit for a machine. Toolkits that are known by two numbers only
// are those of the one installer of their series.
func ToolkitRunfile(version, arch string) (Runfile, bool) {
	i := slices.IndexFunc(toolkitRunfiles(), func(r Runfile) bool {
		return r.Arch == arch && (r.Version == version || series(r.Version) == version)
	})
	if i < 0 {
		return Runfile{}, false
	}
	return toolkitRunfiles()[i], true
}

var sampleArchives = sync.OnceValue(func() []Runfile {
	var all []Runfile
	for line := range body(assets.CUDASamples) {
		f := strings.Split(line, "\t")
		all = append(all, Runfile{Version: f[0], SHA256: f[1], URL: f[2], Source: f[3]})
	}
	return all
})

// SampleArchives returns the archives of NVIDIA's cuda-samples whose checksums are known, oldest first. They are
// sources, for any machine; Version is the series of toolkits that a tag was made for. The slice is the caller's.
func SampleArchives() []Runfile { return slices.Clone(sampleArchives()) }

// SamplesFor returns the archive that goes with a series of toolkits, "12.6": its own, else the newest before it of
// the same major release. Not every series has a tag, and not of every tag is a checksum known.
func SamplesFor(series string) (Runfile, bool) {
	major, _, _ := strings.Cut(series, ".")
	var found Runfile
	for _, a := range sampleArchives() {
		if strings.HasPrefix(a.Version, major+".") && CompareVersions(a.Version, series) <= 0 {
			found = a
		}
	}
	return found, found.Version != ""
}

// InstallerOption is one option of nvidia-installer.
type InstallerOption struct {
	Name        string // "--silent"; "--[no-]dkms" stands for --dkms and --no-dkms
	Short       string // "-s", "" none
	Kind        string // "flag", "bool", "string" or "int"
	First, Last string // oldest and newest driver release whose installer knows it; Last "" none dropped it
	Uninstall   bool   // nvidia-uninstall knows it too
	Source      string // where the row comes from
}

var installerOptions = sync.OnceValue(func() []InstallerOption {
	var all []InstallerOption
	for line := range body(assets.InstallerOptions) {
		f := strings.Split(line, "\t")
		all = append(all, InstallerOption{Name: f[0], Short: f[1], Kind: f[2], First: f[3], Last: f[4], Uninstall: f[5] == Yes, Source: f[6]})
	}
	return all
})

// InstallerOptions returns the table of options, by name. The slice is the caller's.
func InstallerOptions() []InstallerOption { return slices.Clone(installerOptions()) }

// InstallerTakes tells whether the installer of a driver release knows an option, "--dkms" or "--no-dkms". One
// that it does not know makes it fail.
func InstallerTakes(version, option string) bool {
	either := "--[no-]" + strings.TrimPrefix(strings.TrimPrefix(option, "--"), "no-")
	return slices.ContainsFunc(installerOptions(), func(o InstallerOption) bool {
		return (o.Name == option || o.Name == either) && CompareVersions(version, o.First) >= 0 &&
			(o.Last == "" || CompareVersions(version, o.Last) <= 0)
	})
}

// Capability returns the compute capability of a GPU, "7.5", by its device id in hex digits of either case; ""
// when the tables do not tell it.
func Capability(device string) string {
	device = strings.ToLower(device)
	if _, known := Lookup(NVIDIA, device, "", ""); !known {
		return ""
	}
	for line := range body(assets.Capabilities) {
		f := strings.Split(line, "\t")
		if f[0] <= device && device <= f[1] {
			return f[2]
		}
	}
	return ""
}

// ParseToolkit reads a toolkit's version as a user writes it, "12.8" or "12.8.1".
func ParseToolkit(s string) error {
	parts := strings.Split(s, ".")
	ok := len(parts) == 2 || len(parts) == 3
	for _, p := range parts {
		n, err := strconv.Atoi(p)
		ok = ok && err == nil && n >= 0 && strconv.Itoa(n) == p
	}
	if !ok {
		return fmt.Errorf("%q is no toolkit version: 12.8, or 12.8.1", s)
	}
	return nil
}
