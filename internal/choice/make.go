package choice

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"gpuguest/distros"
	"gpuguest/internal/catalog"
	"gpuguest/internal/facts"
)

// Make decides. It fails with a *Refusal when no driver can be what is asked for.
//
// It lists every driver the distribution's sources offer, strikes out those that the guest's GPUs, kernel,
// firmware or present packages rule out, and takes the best of those left that are what was wished for.
func Make(f facts.Facts, d distros.Distro, w Want) (Choice, error) {
	r := request{f: f, d: d, w: w, kernel: cmp.Or(f.Kernel.Next, f.Kernel.Running)}
	c, err := r.driver()
	if err == nil && w.Mirror != "" && c.Source == SourceDistro && d.RepoFiles != "" {
		err = &Refusal{What: "--repo-mirror " + w.Mirror + " for " + d.Name + "'s own packages", Reason: "they come from several repositories with addresses and keys of their own: name the mirror in the guest's files in " + d.RepoFiles + ", and leave --repo-mirror out"}
	}
	if err == nil {
		err = r.addToolkit(&c)
	}
	if err == nil {
		err = r.addServers(&c)
	}
	if err != nil {
		return Choice{}, r.forWantOfEnrolment(err)
	}
	return c, nil
}

// driver decides on the driver.
func (r *request) driver() (Choice, error) {
	if err := r.parseWish(); err != nil {
		return Choice{}, err
	}
	if err := r.readGPUs(); err != nil {
		return Choice{}, err
	}
	if err := r.fitGPUs(); err != nil {
		return Choice{}, err
	}
	if r.wish.source == SourceRunfile {
		return r.runfile()
	}
	if err := r.fitGuest(); err != nil {
		return Choice{}, err
	}
	r.lookAround()
	if reason := r.wishAgainstGPUs(); reason != "" {
		return Choice{}, r.refuse(reason)
	}
	for _, c := range r.all {
		if r.mismatch(c, r.wish) == "" {
			if _, reason := r.objection(c); reason == "" {
				return r.choose(c), nil
			}
		}
	}
	return Choice{}, r.refuse(r.whyNone())
}

// wish is what the user insists on; a zero field leaves it open.
type wish struct {
	source, flavor, modules string
	branch                  int
	version                 string
}

// flags says a wish as the flags of the command line.
func (w wish) flags() string {
	var out []string
	driver := w.version
	if driver == "" && w.branch != 0 {
		driver = fmt.Sprint(w.branch)
	}
	for _, f := range [][2]string{{"--driver", driver}, {"--flavor", w.flavor}, {"--source", w.source}, {"--modules", w.modules}} {
		if f[1] != "" {
			out = append(out, f[0]+" "+f[1])
		}
	}
	return strings.Join(out, " ")
}

// candidate is one driver that a source offers.
type candidate struct {
	offer  *distros.Offer
	branch *catalog.Branch
	here   bool            // it is what the guest has
	file   catalog.Runfile // with SourceRunfile: its installer
}

// request is one call of Make.
type request struct {
	f        facts.Facts
	d        distros.Distro
	w        Want
	wish     wish
	kernel   string // release of the kernel the modules are for, "" unknown
	gpus     []GPU
	min, max int    // branches that drive all GPUs; 0 no limit known
	flavor   string // the flavor all GPUs need, "" either
	unknown  bool   // a GPU is not in the tables and may be newer than them
	warnings []string
	all      []candidate       // every driver the sources offer for this machine, best first
	replaces Replaced          // what is removed first
	marks    map[string]string // source → one of the packages only it has that the guest has
}

func (r *request) parseWish() error {
	if err := r.parseRunfile(); err != nil {
		return err
	}
	r.wish = wish{source: r.w.Source, flavor: r.w.Flavor, modules: r.w.Modules}
	for _, word := range []struct {
		flag, value string
		known       []string
	}{
		{"--source", r.w.Source, []string{SourceNVIDIA, SourceDistro, SourceRunfile}},
		{"--flavor", r.w.Flavor, []string{FlavorOpen, FlavorProprietary}},
		{"--modules", r.w.Modules, []string{ModulesDKMS, ModulesPrecompiled, ModulesKMP}},
	} {
		if word.value != "" && !slices.Contains(word.known, word.value) {
			return &Refusal{What: word.flag + " " + word.value, Reason: "it is one of " + strings.Join(word.known, ", ")}
		}
	}
	if r.w.Driver == "" {
		return nil
	}
	n, err := catalog.BranchOf(r.w.Driver)
	if err != nil {
		return &Refusal{What: "--driver " + r.w.Driver, Reason: "it is a branch (580) or a full version (580.95.05)"}
	}
	r.wish.branch = n
	if strings.Contains(r.w.Driver, ".") {
		r.wish.version = r.w.Driver
	}
	return nil
}

// readGPUs looks up every NVIDIA GPU of the guest, or those the user names for a guest that has none.
func (r *request) readGPUs() error {
	pcis := r.f.GPUs
	if len(pcis) == 0 {
		if !r.w.NoGPU {
			return &Refusal{What: "a driver", Reason: "the guest has no NVIDIA GPU: pass one through to it, or say --no-gpu to prepare it for one", kind: ErrNoGPU}
		}
		for _, s := range r.w.Devices {
			p, err := parseDevice(s)
			if err != nil {
				return err
			}
			pcis = append(pcis, p)
		}
	}
	for _, p := range pcis {
		g, known := catalog.Lookup(p.Vendor, p.Device, p.Subvendor, p.Subdevice)
		if why := r.vgpuObjection(); g.VGPU && why != "" {
			return &Refusal{What: fmt.Sprintf("a driver for %s (%s:%s, subsystem %s:%s)", cmp.Or(g.Name, "a GPU"), p.Vendor, p.Device, p.Subvendor, p.Subdevice), Reason: why}
		}
		out := GPU{Address: p.Address, ID: p.Vendor + ":" + p.Device, Name: g.Name, Arch: g.Arch, Known: known, Min: g.First, Max: g.Last, Virtual: g.VGPU}
		if r.w.CUDA != "" {
			out.Capability = catalog.Capability(p.Device)
		}
		assumed := false
		switch {
		case !known && p.Device >= "1340" && p.Device <= "1dff":
			// The range nvidia-installer takes for GPUs without a GSP (misc.c); every id the tables hold in it
			// is of Maxwell, Pascal or Volta.
			out.Flavor, out.Max, assumed = FlavorProprietary, 580, true
			r.warnings = append(r.warnings, fmt.Sprintf("%s is not in the tables; ids of its range have no GSP, so it gets the proprietary modules of a branch up to 580", out.ID))
		case !known:
			r.unknown = true
			r.warnings = append(r.warnings, fmt.Sprintf("%s is not in the tables: it is taken for a GPU newer than they are, which needs the open modules", out.ID))
			out.Flavor, assumed = FlavorOpen, true
		case g.Open == catalog.Required:
			out.Flavor = FlavorOpen
		case g.Open == catalog.No, g.NoGSP:
			out.Flavor = FlavorProprietary
		}
		if assumed && r.wish.flavor != "" {
			out.Flavor = ""
		}
		if assumed && r.wish.branch != 0 {
			out.Max = 0
		}
		r.gpus = append(r.gpus, out)
	}
	return nil
}

func parseDevice(s string) (facts.PCI, error) {
	parts := strings.Split(strings.ToLower(s), ":")
	ok := len(parts) == 2 || len(parts) == 4
	for _, p := range parts {
		ok = ok && len(p) == 4 && strings.Trim(p, "0123456789abcdef") == ""
	}
	if !ok {
		return facts.PCI{}, &Refusal{What: "device " + s, Reason: "it is vendor:device, 10de:1eb8, or with the subsystem behind, 10de:1eb8:10de:12a2"}
	}
	p := facts.PCI{Vendor: parts[0], Device: parts[1]}
	if len(parts) == 4 {
		p.Subvendor, p.Subdevice = parts[2], parts[3]
	}
	return p, nil
}

// fitGPUs works out what all GPUs have in common; one driver serves the whole guest.
func (r *request) fitGPUs() error {
	var oldest, newest, open, proprietary *GPU // those that set the limits
	for i := range r.gpus {
		g := &r.gpus[i]
		if g.Min != 0 && (newest == nil || g.Min > newest.Min) {
			newest = g
		}
		if g.Max != 0 && (oldest == nil || g.Max < oldest.Max) {
			oldest = g
		}
		switch g.Flavor {
		case FlavorOpen:
			open = cmp.Or(open, g)
		case FlavorProprietary:
			proprietary = cmp.Or(proprietary, g)
		}
	}
	if oldest != nil {
		r.max = oldest.Max
	}
	if newest != nil {
		r.min = newest.Min
	}
	both := "one driver for both GPUs"
	if r.min != 0 && r.max != 0 && r.min > r.max {
		return &Refusal{What: both, Reason: fmt.Sprintf("%s needs branch %d or newer, and no branch after %d drives %s; pass only one of the two through", newest, r.min, r.max, oldest)}
	}
	if r.w.BothFlavors {
		return nil
	}
	if open != nil && proprietary != nil {
		return &Refusal{What: both, Reason: fmt.Sprintf("%s needs the open modules, which do not drive %s; pass only one of the two through", open, proprietary)}
	}
	switch {
	case open != nil:
		r.flavor = FlavorOpen
	case proprietary != nil:
		r.flavor = FlavorProprietary
	}
	return nil
}

// String names a GPU: "Tesla T4 (10de:1eb8, Turing)".
func (g GPU) String() string {
	s := cmp.Or(g.Name, "a GPU unknown to the tables") + " (" + g.ID
	if g.Arch != "" {
		s += ", " + g.Arch
	}
	return s + ")"
}

// fitGuest refuses guests that no choice can help.
func (r *request) fitGuest() error {
	if _, ok := r.d.Arches[r.f.Arch]; !ok {
		return &Refusal{What: "a driver on " + cmp.Or(r.f.Arch, "an unknown machine"), Reason: "there are driver packages of " + r.d.Name + " for " + strings.Join(sortedKeys(r.d.Arches), " and ")}
	}
	if v := r.f.Runfile.Version; v != "" && r.w.Replace {
		r.replaces = Replaced{Runfile: v}
		if r.f.State.Runfile == "" {
			r.warnings = append(r.warnings, "driver "+v+" was put in by somebody else's .run; it is removed, and uninstall will not bring it back")
		}
	} else if v != "" {
		how := "remove it first"
		if u := r.f.Runfile.Uninstaller; u != "" {
			how = "run " + u + " --silent in the guest first"
		}
		return &Refusal{What: "driver packages", Reason: "driver " + v + " was installed by NVIDIA's .run installer, and packages beside it break both; " + how, Nearest: r.stayWithRunfile(v)}
	}
	return nil
}

// wishAgainstGPUs says why what is wished for cannot be, whatever the sources offer; "" when it can.
func (r *request) wishAgainstGPUs() string {
	n := r.wish.branch
	b, known := catalog.BranchByNumber(n)
	switch {
	case n != 0 && !known:
		all := catalog.Branches()
		return fmt.Sprintf("branch %d is not in the tables, which end at %d", n, all[len(all)-1].Number)
	case n != 0 && r.max != 0 && n > r.max:
		return fmt.Sprintf("no branch after %d drives %s", r.max, r.limiting(func(g GPU) bool { return g.Max == r.max }))
	case n != 0 && n < r.min:
		return fmt.Sprintf("%s needs branch %d or newer", r.limiting(func(g GPU) bool { return g.Min == r.min }), r.min)
	}
	if flavor := cmp.Or(r.wish.flavor, r.flavor); n != 0 && !has(b, flavor) {
		return fmt.Sprintf("branch %d has no %s modules%s", n, flavor, r.needing(flavor))
	}
	if r.wish.flavor != "" && r.flavor != "" && r.wish.flavor != r.flavor {
		g := r.limiting(func(g GPU) bool { return g.Flavor == r.flavor })
		if r.flavor == FlavorOpen {
			return "only the open modules drive " + g.String()
		}
		return "the open modules do not drive " + g.String() + ", which has no GSP"
	}
	return ""
}

// needing adds whose need a flavor is, when it is not the user's.
func (r *request) needing(flavor string) string {
	if r.wish.flavor == flavor || r.flavor != flavor {
		return ""
	}
	return ", and " + r.limiting(func(g GPU) bool { return g.Flavor == flavor }).String() + " needs them"
}

func (r *request) limiting(is func(GPU) bool) GPU {
	return r.gpus[slices.IndexFunc(r.gpus, is)]
}

func has(b catalog.Branch, flavor string) bool {
	switch flavor {
	case FlavorOpen:
		return b.Open != catalog.OpenNo
	case FlavorProprietary:
		return b.Open != catalog.OpenOnly
	}
	return true
}

// lookAround lists what there is: in the sources and in the guest.
func (r *request) lookAround() {
	r.marks = map[string]string{}
	for source, patterns := range r.d.Marks {
		for _, pattern := range patterns {
			// A guest has hundreds of packages, nearly all of which begin otherwise.
			prefix := pattern
			if i := strings.IndexAny(pattern, `*?[\`); i >= 0 {
				prefix = pattern[:i]
			}
			for p := range r.f.Packages {
				if first := r.marks[source]; !strings.HasPrefix(p, prefix) || first != "" && first < p {
					continue // the same one every time
				}
				if ok, _ := path.Match(pattern, p); ok {
					r.marks[source] = p
				}
			}
		}
	}
	branches := catalog.Branches()
	for i := range r.d.Offers {
		for j := range branches {
			c := candidate{offer: &r.d.Offers[i], branch: &branches[j]}
			if c.offer.Serves(c.branch.Number, r.f.Arch) && has(*c.branch, c.offer.Flavor) {
				c.here = r.installed(c)
				r.all = append(r.all, c)
			}
		}
	}
	slices.SortStableFunc(r.all, r.compare)
}

// compare puts the better candidate first. What the guest already has comes before everything: a second
// run must not change the first one's mind.
func (r *request) compare(a, b candidate) int {
	return cmp.Or(
		first(a.here, b.here),
		first(r.enforced() && a.offer.Signed, r.enforced() && b.offer.Signed),
		first(a.offer.Source == SourceNVIDIA, b.offer.Source == SourceNVIDIA),
		first(!a.offer.Last, !b.offer.Last),
		r.compareBranches(*a.branch, *b.branch),
		first(preferred(a), preferred(b)),
		first(a.offer.Modules == ModulesDKMS, b.offer.Modules == ModulesDKMS),
	)
}

func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// compareBranches puts long-term support before production before new-feature branches, and all that are
// supported before those that are not: a GPU guest is to run for long. For a GPU newer than the tables the
// newest supported branch comes first, as it is the likeliest to know it.
func (r *request) compareBranches(a, b catalog.Branch) int {
	if r.unknown && class(a) < ended && class(b) < ended {
		return cmp.Compare(b.Number, a.Number)
	}
	eol := func(b catalog.Branch) string {
		if b.EOL == catalog.Unknown {
			return ""
		}
		return b.EOL
	}
	return cmp.Or(cmp.Compare(class(a), class(b)), cmp.Compare(eol(b), eol(a)), cmp.Compare(b.Number, a.Number))
}

const ended = 3 // class of the first branch that is not known to be supported

func class(b catalog.Branch) int {
	kinds := []string{catalog.LTSB, catalog.PB, catalog.NFB}
	switch i := slices.Index(kinds, b.Kind); {
	case b.State == "supported" && i >= 0:
		return i
	case b.State == catalog.Unknown:
		return ended
	}
	return ended + 1
}

// preferred tells whether a candidate's flavor is the one its own branch defaults to for GPUs that both
// flavors drive: NVIDIA tests that one, and below 560 the open modules were still an option to ask for.
func preferred(c candidate) bool {
	open := c.branch.Open == catalog.OpenDefault || c.branch.Open == catalog.OpenOnly
	return open == (c.offer.Flavor == FlavorOpen)
}

// mismatch says in which way a candidate is not what is wished for; "" when it is.
func (r *request) mismatch(c candidate, w wish) string {
	switch {
	case w.branch != 0 && w.branch != c.branch.Number:
		return "driver"
	case w.version != "" && !r.canBe(c, w.version):
		return "driver"
	case w.flavor != "" && w.flavor != c.offer.Flavor:
		return "flavor"
	case w.modules != "" && w.modules != c.offer.Modules:
		return "modules"
	case w.source != "" && w.source != c.offer.Source:
		return "source"
	}
	return ""
}

// canBe tells whether a source can deliver one version. NVIDIA's repository keeps many and the install
// finds out; a distribution's archive has one, which must be known to be that.
func (r *request) canBe(c candidate, version string) bool {
	if c.offer.Source == SourceRunfile {
		return c.file.Version == version
	}
	if c.offer.Source == SourceNVIDIA {
		there := r.inRepo(c)
		return (len(c.offer.Pin) > 0 || c.offer.Lock || c.offer.Stream != "") && (len(there) == 0 || slices.Contains(there, version))
	}
	return cmp.Or(r.archived(c), c.offer.Seen) == version
}

// inRepo returns the versions of a candidate that the guest knows NVIDIA's repository to have; none when
// it has not read it.
func (r *request) inRepo(c candidate) []string {
	repo, err := r.repo()
	if err != nil {
		return nil
	}
	var there []string
	for _, o := range r.f.Offers {
		if strings.TrimRight(o.URI, "/") == strings.TrimRight(repo.URL, "/") && slices.Contains(r.names(c), o.Package) {
			there = append(there, upstream(o.Version))
		}
	}
	return there
}

// archived returns the version that the distribution's archive has of a candidate, or that the guest has
// installed from there; "" when neither is known.
func (r *request) archived(c candidate) string {
	if c.offer.Source != SourceDistro {
		return ""
	}
	for _, p := range r.names(c) {
		if v := cmp.Or(upstream(r.f.Offered[p]), upstream(r.f.Packages[p])); v != "" {
			return v
		}
	}
	return ""
}

// present returns the version of a candidate that the guest has, "" when it has it not. What an archive
// offers is no promise: its lists may be refreshed before anything is installed from it.
func (r *request) present(c candidate) string {
	if !c.here {
		return ""
	}
	for _, p := range r.names(c) {
		if v := upstream(r.f.Packages[p]); v != "" {
			return v
		}
	}
	return ""
}

// upstream cuts a package version to the driver version in it; "" when it holds none (a kernel's package).
func upstream(v string) string {
	if epoch, rest, ok := strings.Cut(v, ":"); ok && strings.Trim(epoch, "0123456789") == "" {
		v = rest
	}
	if n, err := catalog.BranchOf(v); err != nil || n < 300 {
		return ""
	}
	v, _, _ = strings.Cut(v, "-")
	v, _, _ = strings.Cut(v, "_") // SUSE's modules: 580.82.07_k6.4.0_150600.23.65
	return v
}

// objection says why the guest cannot have a candidate, and how far it got; "" when it can.
func (r *request) objection(c candidate) (far int, reason string) {
	n := c.branch.Number
	checks := []func() string{
		func() string {
			if n == r.wish.branch || c.here || c.branch.Kind == catalog.LTSB || c.branch.Kind == catalog.PB || c.branch.Kind == catalog.NFB || c.branch.Kind == catalog.Legacy {
				return ""
			}
			return fmt.Sprintf("branch %d is taken only when asked for by --driver %d", n, n)
		},
		func() string {
			switch {
			case r.max != 0 && n > r.max:
				return fmt.Sprintf("no branch after %d drives %s", r.max, r.limiting(func(g GPU) bool { return g.Max == r.max }))
			case n < r.min:
				return fmt.Sprintf("%s needs branch %d or newer", r.limiting(func(g GPU) bool { return g.Min == r.min }), r.min)
			}
			return ""
		},
		func() string {
			if r.flavor != "" && r.flavor != c.offer.Flavor {
				return fmt.Sprintf("%s needs the %s modules", r.limiting(func(g GPU) bool { return g.Flavor == r.flavor }), r.flavor)
			}
			return ""
		},
		func() string { return r.kernelObjection(c) },
		func() string { return r.repoObjection(c) },
		func() string { return r.packagesObjection(c) },
		func() string { return r.secureBootObjection(c) },
	}
	for i, check := range checks {
		if reason := check(); reason != "" {
			return i, reason
		}
	}
	return len(checks), ""
}

func (r *request) kernelObjection(c candidate) string {
	if c.offer.Modules == ModulesPrecompiled {
		switch {
		case r.kernel == "":
			return "the kernel that starts next is not known, so prebuilt modules cannot be named"
		case r.d.KernelFlavor(r.kernel) == "":
			return "kernel " + r.kernel + " is none of " + r.d.Name + ", and prebuilt modules are made only for those"
		case r.d.KernelBare(r.kernel) == "" && slices.ContainsFunc(c.offer.Packages, func(p string) bool { return strings.Contains(p, "{kbare}") }):
			return "kernel " + r.kernel + " is none of RHEL's, and NVIDIA builds modules only for those"
		}
		return ""
	}
	if r.kernel == "" {
		return ""
	}
	if !c.offer.Compiles(r.kernel) {
		return fmt.Sprintf("%s's %s modules of branch %d do not compile for kernels of its series from %s on, and %s starts next", r.d.Name, c.offer.Flavor, c.branch.Number, c.offer.Breaks, r.kernel)
	}
	if limit := c.branch.KernelBelow; limit != "" && compareKernels(r.kernel, limit) >= 0 {
		return fmt.Sprintf("the modules of branch %d do not build for kernels from %s on, and %s starts next", c.branch.Number, limit, r.kernel)
	}
	if limit := c.branch.OpenKernel; c.offer.Flavor == FlavorOpen && limit != "" && compareKernels(r.kernel, limit) < 0 {
		return fmt.Sprintf("the open modules of branch %d need kernel %s or newer, and %s starts next", c.branch.Number, limit, r.kernel)
	}
	if strings.Contains(r.kernel, "-rt-") || strings.HasSuffix(r.kernel, "+rt") || strings.Contains(r.kernel, ".rt") || strings.HasSuffix(r.kernel, "-rt") || strings.HasSuffix(r.kernel, "-realtime") {
		return "NVIDIA's modules do not build for a PREEMPT_RT kernel, and " + r.kernel + " starts next"
	}
	return ""
}

func (r *request) repoObjection(c candidate) string {
	if c.offer.Source != SourceNVIDIA || r.w.Bundle.Given() {
		return ""
	}
	if _, err := r.repo(); err != nil {
		return err.Error()
	}
	return ""
}

// packagesObjection rules out what the guest's present packages do not let in.
func (r *request) packagesObjection(c candidate) string {
	for _, source := range []string{SourceNVIDIA, SourceDistro} {
		if p := r.marks[source]; p != "" && source != c.offer.Source {
			return fmt.Sprintf("the guest has driver packages of %s (%s), and those of two sources break each other: stay with --source %s, or uninstall them first", r.sourceName(source), p, source)
		}
	}
	if p := r.marks[distros.SourceOther]; p != "" {
		return fmt.Sprintf("the guest has driver packages of somebody else's repository (%s), which break NVIDIA's: uninstall them first", p)
	}
	if !c.here && r.wish.version == "" && slices.ContainsFunc(c.offer.Packages, func(p string) bool { return strings.Contains(p, "{version}") }) {
		return fmt.Sprintf("NVIDIA's prebuilt modules come in packages that are named by version and kernel: name one by --driver, as in --driver %s", cmp.Or(c.branch.Latest, fmt.Sprint(c.branch.Number)+".…"))
	}
	if len(r.f.Packages)+len(r.f.Offered) == 0 {
		return ""
	}
	for _, p := range r.names(c) {
		have := upstream(r.f.Packages[p])
		if b, err := catalog.BranchOf(have); err == nil && (b > c.branch.Number || r.wish.version != "" && catalog.CompareVersions(have, r.wish.version) > 0) {
			return fmt.Sprintf("the guest has %s %s, and packages are not downgraded unattended: uninstall it first", p, have)
		}
		if v := upstream(r.f.Offered[p]); v != "" && c.offer.Source == SourceDistro {
			if b, _ := catalog.BranchOf(v); b != c.branch.Number {
				return fmt.Sprintf("%s has moved on to %s in the archive", p, v)
			}
		}
	}
	if p := r.ahead(c); p != "" {
		return fmt.Sprintf("the guest has %s %s, and packages are not downgraded unattended: uninstall it first", p, upstream(r.f.Packages[p]))
	}
	if c.offer.Modules != ModulesPrecompiled {
		return ""
	}
	known := false
	for p := range r.f.Offered {
		known = known || strings.HasPrefix(p, "linux-modules-nvidia-")
	}
	for _, p := range r.expand(c, c.offer.Packages) {
		if _, offered := r.f.Offered[p]; known && !offered && r.f.Packages[p] == "" && strings.HasSuffix(p, r.kernel) {
			return fmt.Sprintf("there are no prebuilt modules of branch %d for kernel %s (%s)", c.branch.Number, r.kernel, p)
		}
	}
	return ""
}

// ahead is a package of the driver that the guest has from the candidate's source, that has one name in all branches and
// is of a later one; "" when there is none. Where only the metapackage is named for the branch, as SUSE's is, the names
// of the candidate do not tell. With apt each branch that has names of its own has them for all its packages.
func (r *request) ahead(c candidate) string {
	if r.d.RepoFiles == "" {
		return ""
	}
	for _, p := range slices.Sorted(maps.Keys(r.f.Packages)) {
		b, err := catalog.BranchOf(upstream(r.f.Packages[p]))
		if err != nil || b <= c.branch.Number || strings.Contains(p, "-"+fmt.Sprint(b)) {
			continue
		}
		for _, mark := range r.d.Marks[c.offer.Source] {
			if ok, _ := path.Match(mark, p); ok {
				return p
			}
		}
	}
	return ""
}

// enforced tells whether the guest's kernel loads only signed modules.
func (r *request) enforced() bool {
	return r.f.EnforcesSignatures()
}

// installed tells whether a candidate is what the guest has: all its packages, or, where somebody put in
// more or less than we would, the first, which carries the modules, along with others of the same source
// alone. Packages for one kernel do not count: a new kernel that has none yet is no other choice.
func (r *request) installed(c candidate) bool {
	if len(r.f.Packages) == 0 {
		return false
	}
	names := distros.Expand(c.offer.Packages, distros.Names{Branch: c.branch.Number, Flavor: r.d.KernelFlavor(r.kernel)})
	have := func(p string) bool {
		v := r.f.Packages[p]
		b, err := catalog.BranchOf(upstream(v))
		return v != "" && (err != nil || b == c.branch.Number)
	}
	for i, p := range names {
		names[i] = distros.PackageName(p)
	}
	// What is named by version and kernel is known by its form.
	for _, p := range c.offer.Packages {
		if !strings.Contains(p, "{version}") {
			continue
		}
		pattern := strings.NewReplacer("{version}", fmt.Sprint(c.branch.Number)+".*", "{kbare}", "[0-9]*").Replace(p)
		if !slices.ContainsFunc(sortedKeys(r.f.Packages), func(name string) bool { ok, _ := path.Match(pattern, name); return ok }) {
			return false
		}
	}
	if len(names) > 0 && have(names[0]) && r.marks[c.offer.Source] != "" && len(r.marks) == 1 {
		return true
	}
	return len(names) > 0 && !slices.ContainsFunc(names, func(p string) bool { return !have(p) })
}

// names are a candidate's packages, without what is said of their versions.
func (r *request) names(c candidate) []string {
	all := r.expand(c, c.offer.Packages)
	for i, p := range all {
		all[i] = distros.PackageName(p)
	}
	return all
}

// within is what keeps a candidate's branch, or the version that was asked for, besides packages.
func (r *request) within(c candidate) distros.Pin {
	var p distros.Pin
	if s := r.expand(c, []string{c.offer.Stream}); c.offer.Stream != "" && len(s) == 1 {
		p.Stream = s[0]
	}
	if c.offer.Lock || p.Stream != "" && r.wish.version != "" {
		p.Within = cmp.Or(r.wish.version, fmt.Sprint(c.branch.Number))
		p.Names = distros.DriverNames()
	}
	if c.offer.Suite != "" {
		p.Suite, p.Names = c.offer.Suite, distros.DebianDriverNames()
	}
	return p
}

func (r *request) expand(c candidate, templates []string) []string {
	n := distros.Names{Branch: c.branch.Number, Version: r.wish.version, Kernel: r.kernel, KernelBare: r.d.KernelBare(r.kernel), Flavor: r.d.KernelFlavor(r.kernel)}
	if !r.w.HoldKernel {
		n.KernelMeta = r.d.KernelMeta(r.kernel, r.f)
	}
	return distros.Expand(templates, n)
}

// choose makes the choice of a candidate that fits.
func (r *request) choose(c candidate) Choice {
	o := *c.offer
	ch := Choice{
		Source: o.Source, Flavor: o.Flavor, Modules: o.Modules, Branch: c.branch.Number,
		Version: cmp.Or(r.wish.version, r.present(c)), Packages: r.expand(c, o.Packages), Pin: r.expand(c, o.Pin), Within: r.within(c),
		Module: o.Module, DKMSName: o.DKMSName, Signed: o.Signed, Persistence: o.Persistence,
		License: LicenseProprietary, Replaces: r.replaces, GPUs: r.gpus, Why: r.why(c), Warnings: slices.Clone(r.warnings),
	}
	if o.Flavor == FlavorOpen {
		ch.License = LicenseOpen
	}
	if p := r.expand(c, []string{o.Persistence.Package}); o.Persistence.Package != "" && len(p) == 1 {
		ch.Persistence.Package = distros.PackageName(p[0])
		ch.Packages = append(ch.Packages, p[0])
	}
	if o.Modules != ModulesPrecompiled {
		ch.Headers = r.d.HeadersFor(r.kernel)
		if !r.w.HoldKernel {
			ch.Headers = append(ch.Headers, r.d.HeadersMeta(r.kernel, r.f)...)
		}
	}
	ch.Expected = cmp.Or(ch.Version, r.archived(c), o.Seen, newest(r.inRepo(c)), c.branch.Latest)
	ch.Warnings = append(ch.Warnings, r.caveats(c)...)
	return ch
}

func newest(versions []string) string {
	if len(versions) == 0 {
		return ""
	}
	return slices.MaxFunc(versions, catalog.CompareVersions)
}

// caveats are what the user should know of a candidate although it is taken.
func (r *request) caveats(c candidate) []string {
	var out []string
	warn := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch {
	case c.branch.State == "ended" && c.branch.EOL != catalog.Unknown:
		warn("branch %d got its last fixes in %s", c.branch.Number, c.branch.EOL)
	case c.branch.State == "ended":
		warn("branch %d gets no more fixes", c.branch.Number)
	case c.branch.State == catalog.Unknown:
		warn("until when branch %d gets fixes is not known", c.branch.Number)
	}
	if c.offer.Caveat != "" && !c.here {
		warn("%s", c.offer.Caveat)
	}
	if k := r.d.RepoKey; c.offer.Source == SourceNVIDIA && !c.here && k.File != "" && k.Fingerprint == "" && r.w.KeyringSHA256 == "" {
		warn("the key of NVIDIA's repository is checked by %s and the server's TLS certificate alone, as its fingerprint is not known; --keyring-sha256 says what it must be", k.Checked(""))
	}
	if pkg, _ := r.d.Toolset(r.f); pkg != "" && c.offer.Modules == ModulesDKMS {
		warn("kernel %s was built with a newer compiler than the distribution's, so the modules are built with %s; DKMS does not know this when it builds for a later kernel by itself", r.kernel, pkg)
	}
	if c.offer.Source == SourceNVIDIA && r.d.Frozen != "" {
		warn("%s: %s", r.sourceName(SourceNVIDIA), r.d.Frozen)
	}
	if len(r.gpus) == 0 {
		warn("no GPU is named: a GPU older than Turing will need --flavor proprietary and a branch up to 580, one of Blackwell or newer the open modules; name it by --device")
	}
	if r.kernel == "" {
		warn("which kernel starts next is not known: headers for it cannot be named")
	}
	if r.enforced() && !c.offer.Signed {
		warn("modules load only when DKMS signs them with the key that is enrolled; this is checked before a reboot")
	}
	if !r.enforced() && r.w.Signing.Given() && !r.trusts(r.w.Signing) {
		warn("the certificate %q is not among the keys that the guest trusts: it must be enrolled before Secure Boot is turned on", r.w.Signing.Subject)
	}
	if r.f.Secure.EFI && r.f.Secure.State == "" {
		warn("whether the firmware enforces Secure Boot is not known")
	}
	return out
}

// why gives one sentence for each decision.
func (r *request) why(c candidate) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, g := range r.gpus {
		limits := "both flavors of the modules drive it"
		switch {
		case g.Flavor != "" && g.Known:
			limits = "it needs the " + g.Flavor + " modules"
		case g.Flavor != "":
			limits = "it is taken to need the " + g.Flavor + " modules"
		case !g.Known:
			limits = "what drives it is not known"
		}
		if g.Min != 0 {
			limits += fmt.Sprintf(", from branch %d", g.Min)
		}
		if g.Max != 0 {
			limits += fmt.Sprintf(", up to branch %d", g.Max)
		}
		say("%s: %s.", g, limits)
	}
	name := r.sourceName(c.offer.Source)
	switch {
	case r.wish.source != "":
		say("Source %s: asked for.", c.offer.Source)
	case c.here:
		say("Source %s: the guest has its packages already.", c.offer.Source)
	case r.enforced() && c.offer.Signed:
		say("Source %s: Secure Boot is enforced, and %s has modules signed for it.", c.offer.Source, name)
	case c.offer.Source == SourceNVIDIA:
		say("Source nvidia: %s serves these GPUs.", name)
	default:
		say("Source distro: %s cannot serve (%s).", r.sourceName(SourceNVIDIA), r.whyNot(SourceNVIDIA))
	}
	kind := map[string]string{catalog.LTSB: "long-term support", catalog.PB: "production", catalog.NFB: "new-feature"}[c.branch.Kind]
	switch {
	case r.wish.branch != 0:
		say("Driver %s: asked for.", r.w.Driver)
	case c.here:
		say("Branch %d: the guest has it already.", c.branch.Number)
	case r.max == c.branch.Number:
		say("Branch %d: the last one that drives %s.", c.branch.Number, r.limiting(func(g GPU) bool { return g.Max == r.max }))
	case class(*c.branch) < ended && r.unknown:
		say("Branch %d: the newest supported branch there, for a GPU unknown to the tables.", c.branch.Number)
	case class(*c.branch) < ended:
		say("Branch %d: the %s branch, with fixes until %s.", c.branch.Number, kind, c.branch.EOL)
	default:
		say("Branch %d: the best that can be had there for these GPUs.", c.branch.Number)
	}
	switch {
	case r.w.BothFlavors:
		say("Flavor %s: one of both, whose modules are kept beside each other until a machine's GPU is known.", c.offer.Flavor)
	case r.flavor != "":
		say("Flavor %s: %s needs it.", c.offer.Flavor, r.limiting(func(g GPU) bool { return g.Flavor == r.flavor }))
	case r.wish.flavor != "":
		say("Flavor %s: asked for.", c.offer.Flavor)
	case c.here:
		say("Flavor %s: the guest has it already.", c.offer.Flavor)
	case preferred(c):
		say("Flavor %s: the default of branch %d for GPUs that both drive.", c.offer.Flavor, c.branch.Number)
	default:
		say("Flavor %s: the one that can be had there.", c.offer.Flavor)
	}
	switch {
	case r.wish.modules != "":
		say("Modules %s: asked for.", c.offer.Modules)
	case c.here:
		say("Modules %s: the guest has them so already.", c.offer.Modules)
	case c.offer.Modules == ModulesKMP:
		say("Modules kmp: built in the guest by the package's own scripts.")
	case c.offer.Modules == ModulesPrecompiled && r.enforced():
		say("Modules precompiled: Secure Boot is enforced, and these are signed.")
	case c.offer.Modules == ModulesPrecompiled:
		say("Modules precompiled: there are prebuilt ones for this kernel.")
	default:
		say("Modules dkms: built in the guest for each of its kernels.")
	}
	return out
}

func (r *request) sourceName(source string) string {
	switch source {
	case SourceNVIDIA:
		return "NVIDIA's repository for " + r.d.Name
	case SourceRunfile:
		return "NVIDIA's .run installer"
	}
	return "the archive of " + r.d.Name
}

// whyNot says why no candidate of a source will do: the reason of the one that came furthest.
func (r *request) whyNot(source string) string {
	far, why := -1, ""
	served := map[int]bool{}
	for _, c := range r.all {
		if c.offer.Source != source {
			continue
		}
		served[c.branch.Number] = true
		w := r.wish
		w.source = ""
		if r.mismatch(c, w) != "" {
			continue
		}
		if n, reason := r.objection(c); n > far && reason != "" {
			far, why = n, reason
		}
	}
	switch {
	case why != "":
		return why
	case len(served) == 0 && source == SourceNVIDIA && r.d.Frozen != "":
		return r.d.Frozen
	case len(served) == 0:
		return "it has no driver for " + r.f.Arch
	}
	return r.notServed(source, sortedKeys(served))
}

// notServed says what part of the wish a source does not have.
func (r *request) notServed(source string, served []int) string {
	names := make([]string, len(served))
	for i, n := range served {
		names[i] = fmt.Sprint(n)
	}
	if r.wish.branch != 0 && !slices.Contains(served, r.wish.branch) {
		return fmt.Sprintf("of the branches known it has %s", strings.Join(names, ", "))
	}
	if r.wish.version != "" {
		return "it is not known to have version " + r.wish.version
	}
	w := r.wish
	w.source, w.branch, w.version = "", 0, ""
	return "it has nothing with " + w.flags() + map[bool]string{true: fmt.Sprintf(" in branch %d", r.wish.branch)}[r.wish.branch != 0]
}

// whyNone says why none of the candidates that were wished for will do, source by source.
func (r *request) whyNone() string {
	if r.wish.source != "" {
		return r.sourceName(r.wish.source) + ": " + r.whyNot(r.wish.source)
	}
	nvidia, own := r.whyNot(SourceNVIDIA), r.whyNot(SourceDistro)
	if nvidia == own {
		return nvidia
	}
	return r.sourceName(SourceNVIDIA) + ": " + nvidia + "; " + r.sourceName(SourceDistro) + ": " + own
}

// refuse makes a refusal of the whole wish, with the nearest candidate that the guest can have.
func (r *request) refuse(reason string) *Refusal {
	what := "a driver"
	if flags := r.wish.flags(); flags != "" {
		what = flags
	}
	var names []string
	for _, g := range r.gpus {
		if s := g.String(); !slices.Contains(names, s) {
			names = append(names, s)
		}
	}
	if len(names) > 0 {
		what += " for " + strings.Join(names, ", ")
	}
	return &Refusal{What: what + " on " + r.d.Name, Reason: reason, Nearest: r.nearest()}
}

// nearest returns the flags of the candidate that keeps most of the wish: of the driver first, then of
// flavor, modules and source. When the driver must change, a supported branch close by is nearest.
func (r *request) nearest() string {
	if r.wish == (wish{}) {
		return ""
	}
	near := *r
	var best *candidate
	var bestWish wish
	for _, c := range r.all {
		w := r.keep(c)
		near.wish = w
		if _, reason := near.objection(c); reason != "" {
			continue
		}
		if best == nil || r.closer(c, w, *best, bestWish) {
			best, bestWish = &c, w
		}
	}
	if best == nil {
		return ""
	}
	return bestWish.flags()
}

// keep is the wish with what a candidate is not changed to what it is.
func (r *request) keep(c candidate) wish {
	w := r.wish
	if w.branch != 0 && w.branch != c.branch.Number || w.version != "" && !r.canBe(c, w.version) {
		w.branch, w.version = c.branch.Number, ""
	}
	if w.flavor != "" {
		w.flavor = c.offer.Flavor
	}
	if w.modules != "" {
		w.modules = c.offer.Modules
	}
	if w.source != "" {
		w.source = c.offer.Source
	}
	return w
}

func (r *request) closer(a candidate, wa wish, b candidate, wb wish) bool {
	cost := func(w wish) int {
		n := 0
		if w.branch != r.wish.branch {
			n += 16
		}
		if w.version != r.wish.version {
			n += 8
		}
		if w.flavor != r.wish.flavor {
			n += 4
		}
		if w.modules != r.wish.modules {
			n += 2
		}
		if w.source != r.wish.source {
			n++
		}
		return n
	}
	gap := func(c candidate) int { return max(c.branch.Number-r.wish.branch, r.wish.branch-c.branch.Number) }
	order := cmp.Or(cmp.Compare(cost(wa), cost(wb)), first(class(*a.branch) < ended, class(*b.branch) < ended))
	if r.wish.branch != 0 {
		order = cmp.Or(order, cmp.Compare(gap(a), gap(b)))
	}
	return order < 0
}

// compareKernels compares the first two numbers of two kernel releases.
func compareKernels(a, b string) int {
	var x, y [2]int
	// What cannot be read stays 0: such a release is older than every limit.
	_, _ = fmt.Sscanf(a, "%d.%d", &x[0], &x[1])
	_, _ = fmt.Sscanf(b, "%d.%d", &y[0], &y[1])
	return slices.Compare(x[:], y[:])
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
