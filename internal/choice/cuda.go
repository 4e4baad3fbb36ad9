package choice

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"gpuguest/distros"
	"gpuguest/internal/catalog"
)

// Words for Want.CUDA besides versions.
const (
	CUDANone = "none"
	CUDAAuto = "auto" // the newest toolkit that the driver and every GPU allow
)

// Toolkit is a CUDA toolkit that was decided on.
type Toolkit struct {
	Version   string    // "12.8.1"
	Series    string    // "12.8"
	Exact     bool      // it must be that release, and not a later one of its series
	Source    string    // SourceNVIDIA or SourceRunfile
	Package   string    // of NVIDIA's repository: "cuda-toolkit-12-8"
	Installer Installer // with SourceRunfile
	Dir       string    // where it lives: "/usr/local/cuda-12.8"
	Samples   bool      // its installer brings the samples
}

// repo is NVIDIA's repository for the guest. A mirror that was named stands for it, unless the driver comes from
// the distribution: then it is the distribution's.
func (r *request) repo() (distros.Repo, error) {
	mirror := r.w.Mirror
	if r.wish.source == SourceDistro {
		mirror = ""
	}
	return r.d.Repo(r.f.Arch, mirror, r.w.KeyringSHA256)
}

// addToolkit decides on the toolkit, and warns of what the user should know of it.
func (r *request) addToolkit(c *Choice) error {
	want := r.w.CUDA
	if want == "" || want == CUDANone {
		if r.w.CUDARunfile.Given() {
			return &Refusal{What: "--cuda-runfile " + r.w.CUDARunfile.Name, Reason: "no toolkit is asked for: say which by --cuda"}
		}
		return nil
	}
	refuse := func(reason, nearest string) error {
		return &Refusal{What: "--cuda " + want + " on " + r.d.Name, Reason: reason, Nearest: nearest}
	}
	if !slices.Contains([]string{"", SourceNVIDIA, SourceRunfile}, r.w.CUDASource) {
		return &Refusal{What: "--cuda-source " + r.w.CUDASource, Reason: "it is one of " + SourceNVIDIA + ", " + SourceRunfile}
	}
	if f := r.w.CUDARunfile; f.Given() {
		if f.Arch != "" && f.Arch != r.f.Arch {
			return &Refusal{What: "--cuda-runfile " + f.Name, Reason: fmt.Sprintf("it is for %s, and the guest is %s", f.Arch, r.f.Arch)}
		}
		if f.Version != "" && want != CUDAAuto && f.Version != want && !strings.HasPrefix(f.Version, want+".") {
			return refuse("--cuda-runfile "+f.Name+" holds CUDA "+f.Version, "")
		}
		if f.Version != "" {
			want = f.Version
		}
	}
	if want == CUDAAuto {
		t, why := r.newestToolkit(*c)
		if why != "" {
			return refuse(why, "")
		}
		r.takeToolkit(c, t, false)
		c.Why = append(c.Why, fmt.Sprintf("CUDA %s: the newest that driver %s and every GPU allow.", t.Series(), c.expected()))
		return nil
	}
	if err := catalog.ParseToolkit(want); err != nil {
		return &Refusal{What: "--cuda " + want, Reason: "it is auto, none, a series (12.8) or a release (12.8.1)"}
	}
	t, why, known := r.release(want, *c)
	if !known {
		all := catalog.Toolkits()
		return refuse(fmt.Sprintf("it is not in the tables, which go from %s to %s", all[0].Version, all[len(all)-1].Version), r.nearestToolkit(*c, want))
	}
	if why != "" {
		return refuse(why, r.nearestToolkit(*c, want))
	}
	r.takeToolkit(c, t, strings.Count(want, ".") == 2)
	c.Why = append(c.Why, fmt.Sprintf("CUDA %s: asked for.", want))
	return nil
}

// release is the toolkit of a version, or of a series the newest release that the guest can have; where it can have
// none, the newest of all and why not. It reports false for one that is in no table.
func (r *request) release(want string, c Choice) (t catalog.Toolkit, why string, known bool) {
	if t, known = catalog.ToolkitByVersion(want); !known {
		return t, "", false
	}
	why = r.toolkitObjection(t, c)
	if why == "" || t.Version == want {
		return t, why, true
	}
	for _, other := range slices.Backward(catalog.Toolkits()) {
		if other.Series() == want && !other.Preview && r.toolkitObjection(other, c) == "" {
			return other, "", true
		}
	}
	return t, why, true
}

// expected is the driver version that a toolkit is held against: where only the branch is known, its first.
func (c Choice) expected() string { return cmp.Or(c.Expected, fmt.Sprint(c.Branch)) }

// toolkitObjection says why the guest cannot have a toolkit, "" when it can.
func (r *request) toolkitObjection(t catalog.Toolkit, c Choice) string {
	if driver := c.expected(); !t.Runs(driver) {
		return fmt.Sprintf("CUDA %s needs driver %s or newer, and the driver is %s", t.Version, cmp.Or(t.MinDriver, t.Driver), driver)
	}
	for _, g := range c.GPUs {
		if cc := g.Capability; cc != "" && !t.Knows(cc) {
			lacks := ""
			if slices.Contains(t.CCLacks, cc) {
				lacks = " without " + cc
			}
			return fmt.Sprintf("CUDA %s builds for compute capabilities %s to %s%s, and that of %s is %s", t.Version, t.CCMin, t.CCMax, lacks, g, cc)
		}
	}
	_, why := r.toolkitSource(t)
	return why
}

// toolkitSource says where a toolkit comes from, or why from nowhere.
func (r *request) toolkitSource(t catalog.Toolkit) (source, why string) {
	switch {
	case r.w.CUDARunfile.Given(), r.w.CUDASource == SourceRunfile:
		return SourceRunfile, r.noInstaller(t)
	case r.w.CUDASource == SourceNVIDIA:
		return SourceNVIDIA, r.noPackages(t)
	}
	why = r.noPackages(t)
	if why == "" {
		return SourceNVIDIA, ""
	}
	if r.noInstaller(t) == "" {
		return SourceRunfile, ""
	}
	return SourceNVIDIA, why
}

// noPackages says why a toolkit cannot come from NVIDIA's repository; "" when it can, as far as is known. What the
// guest has read of that repository counts more than the table.
func (r *request) noPackages(t catalog.Toolkit) string {
	if why := r.tooOld(t); why != "" {
		return why
	}
	repo, err := r.repo()
	if r.w.Bundle.Given() {
		return ""
	}
	if err != nil {
		return err.Error()
	}
	name := r.sourceName(SourceNVIDIA)
	if r.toolkitsRead() {
		if _, offered := r.f.Offered[toolkitPackage(t)]; !offered {
			return name + " has no " + toolkitPackage(t)
		}
		return ""
	}
	known := catalog.ToolkitRepoOf(repo.Dir)
	if why := known.Lacks(t.Series()); why != "" {
		return name + " " + why
	}
	if known.Last == catalog.Unknown && r.d.Frozen != "" && r.w.CUDASource == "" {
		return "with which CUDA " + name + " ends is not known, and " + r.d.Frozen
	}
	return ""
}

// toolkitsRead tells whether the guest has read the list of a repository with toolkits.
func (r *request) toolkitsRead() bool {
	for p := range r.f.Offered {
		if strings.HasPrefix(p, "cuda-toolkit-") {
			return true
		}
	}
	return false
}

// noInstaller says why a toolkit cannot come by its runfile; "" when it can.
func (r *request) noInstaller(t catalog.Toolkit) string {
	if why := r.tooOld(t); why != "" || r.w.CUDARunfile.Given() {
		return why
	}
	if _, ok := catalog.ToolkitRunfile(t.Version, r.f.Arch); !ok {
		return fmt.Sprintf("the SHA-256 of no installer of CUDA %s for %s is known: give the file by --cuda-runfile, or its URL with --cuda-runfile-sha256", t.Version, r.f.Arch)
	}
	return ""
}

// tooOld says why a distribution is too old for a toolkit, however that comes; "" when it is not, as far as is known.
func (r *request) tooOld(t catalog.Toolkit) string {
	if need := t.Glibc(); r.d.Glibc != "" && catalog.CompareVersions(r.d.Glibc, need) < 0 {
		return fmt.Sprintf("CUDA %s needs glibc %s or newer, and %s has %s", t.Version, need, r.d.Name, r.d.Glibc)
	}
	return ""
}

func toolkitPackage(t catalog.Toolkit) string {
	return "cuda-toolkit-" + strings.ReplaceAll(t.Series(), ".", "-")
}

// newestToolkit returns the newest toolkit that the guest can have, of those that ask nothing of the driver
// that it lacks; when there is none, of those that it runs at all.
func (r *request) newestToolkit(c Choice) (catalog.Toolkit, string) {
	all := catalog.Toolkits()
	why := ""
	for _, whole := range []bool{true, false} {
		for _, t := range slices.Backward(all) {
			if t.Preview || whole && !t.Whole(c.expected()) {
				continue
			}
			objection := r.toolkitObjection(t, c)
			if objection == "" {
				return t, ""
			}
			why = cmp.Or(why, objection)
		}
	}
	return catalog.Toolkit{}, cmp.Or(why, "no toolkit goes with driver "+c.expected())
}

// nearestToolkit returns the flag of the toolkit that the guest can have and that is closest to what was asked
// for, counted in releases; "" none.
func (r *request) nearestToolkit(c Choice, want string) string {
	all := catalog.Toolkits()
	at, _ := slices.BinarySearchFunc(all, want, func(t catalog.Toolkit, v string) int { return catalog.CompareVersions(t.Version, v) })
	best, gap := "", len(all)+1
	for i, t := range all {
		if d := max(at-i, i-at); !t.Preview && d < gap && r.toolkitObjection(t, c) == "" {
			best, gap = "--cuda "+t.Series(), d
		}
	}
	return best
}

// takeToolkit puts a toolkit into a choice.
func (r *request) takeToolkit(c *Choice, t catalog.Toolkit, exact bool) {
	source, _ := r.toolkitSource(t)
	k := Toolkit{Version: t.Version, Series: t.Series(), Exact: exact, Source: source, Dir: "/usr/local/cuda-" + t.Series(), Samples: t.Samples}
	warn := func(format string, args ...any) { c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...)) }
	if why := r.noPackages(t); source == SourceRunfile && r.w.CUDASource == "" && !r.w.CUDARunfile.Given() {
		c.Why = append(c.Why, fmt.Sprintf("CUDA %s by its installer: %s.", t.Series(), why))
	}
	if repo, err := r.repo(); source == SourceNVIDIA && err == nil && !r.w.Bundle.Given() && !r.toolkitsRead() && catalog.ToolkitRepoOf(repo.Dir).First == catalog.Unknown {
		warn("whether %s holds CUDA %s has not been looked at: the install will tell", r.sourceName(SourceNVIDIA), t.Series())
	}
	gcc := r.gcc()
	if gcc > t.GCCMax {
		warn("gcc %d is newer than CUDA %s takes, up to %d: have nvcc use an older one (nvcc -ccbin g++-%[3]d), or say -allow-unsupported-compiler to it", gcc, t.Series(), t.GCCMax)
	}
	if gcc != 0 && gcc < t.GCCMin {
		warn("gcc %d is older than CUDA %s takes, from %d on", gcc, t.Series(), t.GCCMin)
	}
	if source == SourceNVIDIA {
		k.Package = toolkitPackage(t)
	} else {
		k.Exact = true
		k.Installer = r.toolkitInstaller(t, gcc)
	}
	if driver := c.expected(); !t.Whole(driver) {
		warn("driver %s is older than the one that belongs to CUDA %s, %s: programs run, but PTX is not compiled for the GPU and newer features fail", driver, t.Version, t.Driver)
	}
	for _, g := range c.GPUs {
		if g.Capability == "" {
			warn("the compute capability of %s is not known: whether CUDA %s builds for it is not, either", g, t.Series())
		}
	}
	if len(c.GPUs) == 0 {
		warn("no GPU is named: whether CUDA %s builds for the one to come is not known", t.Series())
	}
	c.CUDA = k
}

// gcc returns the major release of the guest's gcc, or of the one that its package manager would install, which is
// the distribution's, or else the one that its kernel was built with; 0 unknown.
func (r *request) gcc() int {
	version := r.f.Tools["gcc"]
	if version == "" {
		version = r.f.Offered["gcc"]
		if _, rest, epoch := strings.Cut(version, ":"); epoch {
			version = rest
		}
	}
	head, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(head)
	if err != nil {
		return r.d.OwnGCC(r.f)
	}
	return n
}

// toolkitInstaller says how a toolkit's runfile is run: the toolkit alone, and the samples where it brings them.
// From 13.4 on there is no driver in it; before, one is there and stays out.
//
// Flags: CUDA installation guide, "Runfile Installation, Advanced Options". Up to 10.0 the samples go into a
// folder of their own below the path that is named.
func (r *request) toolkitInstaller(t catalog.Toolkit, gcc int) Installer {
	in := Installer{Version: t.Version, Flags: []string{"--silent", "--toolkit"}}
	if f := r.w.CUDARunfile; f.Given() {
		in.Name, in.URL, in.SHA256 = f.Name, f.URL, f.SHA256
	} else if f, ok := catalog.ToolkitRunfile(t.Version, r.f.Arch); ok {
		in.Name, in.URL, in.SHA256 = f.Name(), f.URL, f.SHA256
	}
	if t.Samples {
		in.Flags = append(in.Flags, "--samples", "--samplespath=/usr/local/cuda-"+t.Series())
	}
	if gcc > t.GCCMax {
		// Without it the installer refuses a compiler that is too new for it; the user has been warned.
		in.Flags = append(in.Flags, "--override")
	}
	return in
}
