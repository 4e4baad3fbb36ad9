package steps

import (
	"fmt"
	"slices"
	"strings"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/internal/sh"
)

const (
	bundleDir     = "/var/lib/gpuguest/bundle"
	bundleArchive = "/var/lib/gpuguest/bundle.tar.gz"
	bundleFolder  = "gpuguest-bundle" // what an archive has everything below; see internal/offline
)

// byBundle tells whether all that is installed comes with the client and nothing by the guest's network.
func byBundle(in Input) bool { return in.Want.Bundle.Given() }

// Needed are the packages that a plan's steps ask for: its bundle must have them. What a step installs and is not named
// here, no bundle brings.
type Needed struct {
	Packages []string   // by name, sorted
	Pins     []string   // those that pin the others' versions
	OneOf    [][]string // one of each group, the first that can be had
}

// All are all names, those of groups too.
func (n Needed) All() []string {
	return slices.Concat(append([][]string{n.Packages, n.Pins}, n.OneOf...)...)
}

// Needs are the packages that the plan's steps ask for.
func Needs(in Input) Needed {
	var n Needed
	add := func(packages ...string) { n.Packages = append(n.Packages, packages...) }
	if in.Choice.Modules != choice.ModulesPrecompiled {
		add(headerPackages(in)...)
	}
	add(in.Choice.Packages...)
	if m, ok := in.Distro.Bundler(); ok {
		add(m.PinNeeds(in.Choice.Within)...)
	}
	if k := in.Choice.CUDA; k.Package != "" {
		p := k.Package
		if k.Exact {
			p += "=" + k.Version + "-1"
		}
		add(p)
	}
	if !in.Want.WithoutCUDA {
		add(in.Distro.Compiler...)
	}
	if len(sampled(in)) > 0 && in.Distro.CXX != "" {
		add(in.Distro.CXX)
	}
	if len(unbundledSamples(in)) > 0 {
		add("cmake", "make")
	}
	if wantsEngine(in) {
		add(containerPackage)
	}
	if in.Want.GDS {
		n.OneOf = append(n.OneOf, gdsNames)
	}
	if needsFabric(in) {
		var names []string
		for _, name := range fabricNames(in) {
			names = append(names, name+"="+fabricDriver(in)+"*")
		}
		n.OneOf = append(n.OneOf, names)
		if nvlink5(in) {
			add("nvlsm")
		}
	}
	slices.Sort(n.Packages)
	n.Packages, n.Pins = slices.Compact(n.Packages), in.Choice.Pin
	return n
}

// errNoBundle says why there is no bundle for a distribution.
func errNoBundle(d distros.Distro) string {
	return "bundles are made by apt, dnf and zypper, and " + d.Name + " has none of them: --proxy or --repo-mirror lead to a source that the guest reaches"
}

// Gatherable tells whether the plan's packages can be gathered in the guest that ref is a plan for, by a
// *choice.Refusal.
func Gatherable(in, ref Input) error {
	_, can := in.Distro.Bundler()
	switch {
	case !can:
		return &choice.Refusal{What: "bundle", Reason: errNoBundle(in.Distro)}
	case ref.Distro.String() != in.Distro.String() || ref.Facts.Arch != in.Facts.Arch:
		return &choice.Refusal{What: "bundle for " + in.Distro.Name + " on " + in.Facts.Arch,
			Reason: "the packages are gathered in a guest of the same kind, and this one is " + ref.Distro.Name + " on " + ref.Facts.Arch}
	case in.Choice.Replaces.Any():
		return &choice.Refusal{What: "bundle", Reason: "the guest has a driver that came another way: uninstall it first"}
	}
	for _, e := range in.Distro.Reading(in.Choice.Source).ExtrasMissing(ref.Facts) {
		if e.Registers {
			return &choice.Refusal{What: "bundle", Reason: "the guest that gathers does not read " + e.Name + ", and to register it is more than to look: do that there first"}
		}
	}
	return nil
}

// ReadingSteps are the steps that have a guest read what a plan's packages come from, and keep to its branch.
func ReadingSteps() []Step {
	return slices.DeleteFunc(Install(), func(s Step) bool {
		return !slices.Contains([]ID{"old-sources", "extra-repos", "repo", "container-repo", "pin"}, s.ID)
	})
}

// GatherScript is the script that gathers the plan's packages in a guest that reaches them. ref is a plan for that
// guest: its own sources count. prepare does in it what ReadingSteps would. It fails with a *choice.Refusal where no
// bundle can be made.
func GatherScript(in, ref Input, prepare string) (string, error) {
	if err := Gatherable(in, ref); err != nil {
		return "", err
	}
	n := Needs(in)
	g := distros.Gather{Packages: n.Packages, Pins: n.Pins, OneOf: n.OneOf, Need: in.Distro.Archive(ref.Facts, ""), Prepare: prepare}
	if in.Choice.Source == choice.SourceDistro {
		g.Sources = in.Distro.ExtraSources(ref.Facts, in.Want.Mirror)
		g.Need = in.Distro.Archive(ref.Facts, in.Want.Mirror)
	}
	if usesRepo(in) {
		r, err := repoOf(in)
		if err != nil {
			return "", &choice.Refusal{What: "bundle", Reason: err.Error()}
		}
		g.Repo = &r
		g.Drop, _ = oldSources(ref)
		if file, text := in.Distro.ToolkitOnly(); file != "" && in.Choice.Source != choice.SourceNVIDIA {
			g.Prefer = text
		}
	}
	if wantsEngine(in) {
		r, err := in.Distro.ContainerRepo(in.Facts.Arch)
		if err != nil {
			return "", &choice.Refusal{What: "bundle", Reason: err.Error()}
		}
		g.Container = &r
		g.Drop = append(g.Drop, append(otherContainerLists(ref, r), r.ListPath)...)
	}
	if in.Choice.Modules != choice.ModulesPrecompiled {
		g.Vault = in.Distro.FromVault(in.Facts.Kernel.Next, in.Facts.Arch, in.Distro.Packages.Refresh(distros.Refresh{Need: g.Need}), in.Choice.Headers)
	}
	m, _ := in.Distro.Bundler()
	return m.Gather(g), nil
}

// misfit is the refusal of a bundle.
func misfit(b choice.Bundle, format string, args ...any) error {
	return &choice.Refusal{What: "bundle " + b.Name, Reason: fmt.Sprintf(format, args...)}
}

// FitsGuest tells whether a bundle was made for a guest like this one, by a *choice.Refusal. It is asked before a driver is
// chosen: what the bundle has may be nothing that this guest could have.
func FitsGuest(b choice.Bundle, f facts.Facts, d distros.Distro) error {
	next := f.Kernel.Next
	_, can := d.Bundler()
	switch {
	case !b.Given():
		return nil
	case !can:
		return misfit(b, "%s", errNoBundle(d))
	case b.Distro != d.String() || b.Arch != f.Arch:
		return misfit(b, "it was made for %s on %s, and the guest is %s on %s", b.Distro, b.Arch, d, f.Arch)
	case b.Kernel != next && !slices.Contains(f.Kernel.Headers, next):
		return misfit(b, "it was made for kernel %s, and the guest starts %s next: make it for this guest, or have the guest start that kernel", b.Kernel, next)
	}
	return nil
}

// Fits tells whether the bundle that is wanted has what the plan installs, by a *choice.Refusal. Nothing is asked of the
// guest but what its facts say.
func Fits(in Input) error {
	b := in.Want.Bundle
	if !b.Given() {
		return nil
	}
	if in.Choice.Replaces.Any() {
		return misfit(b, "the guest has a driver that came another way: uninstall it first")
	}
	there := func(p string) bool {
		_, installed := in.Facts.Packages[distros.PackageName(p)]
		return installed || slices.Contains(b.Packages, p)
	}
	named := func(p string) bool {
		return there(p) || slices.ContainsFunc(b.Packages, func(have string) bool { return distros.PackageName(have) == distros.PackageName(p) })
	}
	n := Needs(in)
	var missing []string
	for _, p := range slices.Concat(n.Packages, n.Pins) {
		if !there(p) {
			missing = append(missing, p)
		}
	}
	for _, names := range n.OneOf {
		if !slices.ContainsFunc(names, named) {
			missing = append(missing, strings.Join(names, " or "))
		}
	}
	if len(missing) > 0 {
		return misfit(b, "it lacks %s: make it with the flags that it is installed with", strings.Join(missing, ", "))
	}
	for _, f := range []choice.Installer{in.Choice.Runfile, in.Choice.CUDA.Installer} {
		if f.SHA256 != "" && !slices.Contains(b.Installers, f.SHA256) {
			return misfit(b, "it lacks the installer %s: make it with the flags that it is installed with", f.Name)
		}
	}
	return nil
}

// fromBundle is how an installer comes out of the bundle.
func fromBundle(f choice.Installer, file string) action.Action {
	from := bundleDir + "/files/" + f.Name
	return action.Run{Title: "take " + f.Name + " out of the bundle and check its SHA-256", Script: lines(
		`mkdir -p `+runfileDir,
		`cp `+sh.Join(from, file+".part"),
		`echo `+sh.Quote(f.SHA256+"  "+file+".part")+` | sha256sum -c --status || { echo `+sh.Quote(from+" is damaged")+` >&2; exit 1; }`,
		`mv -f `+sh.Join(file+".part", file))}
}

func init() {
	register(Step{
		ID:     "bundle",
		Title:  "bring the bundle, and have packages come from it alone",
		After:  []ID{"ready"},
		Wanted: byBundle,
		Check: func(in Input) string {
			return `[ "$(cat ` + bundleDir + `/id 2>/dev/null)" = ` + sh.Quote(in.Want.Bundle.SHA256) + ` ] || { echo "the bundle is not in the guest"; exit 1; }`
		},
		Apply: func(in Input) []action.Action {
			acts := []action.Action{
				action.Send{Path: bundleArchive, SHA256: in.Want.Bundle.SHA256},
				action.Run{Title: "unpack it and check every file's SHA-256", Script: lines(
					`new=`+bundleDir+`.new`,
					`rm -rf "$new"`,
					`mkdir -m 700 "$new"`,
					`tar -C "$new" --no-same-owner -xzf `+bundleArchive,
					`( cd "$new/`+bundleFolder+`" && sha256sum -c --quiet SHA256SUMS )`,
					`rm -rf `+bundleDir,
					`mv "$new/`+bundleFolder+`" `+bundleDir,
					`chmod 700 `+bundleDir,
					`rmdir "$new"`)},
			}
			m, ok := in.Distro.Bundler()
			if !ok {
				return acts
			}
			n := Needs(in)
			there := func(p string) bool {
				_, ok := in.Facts.Packages[distros.PackageName(p)]
				return ok && !slices.Contains(in.Want.Bundle.Packages, p)
			}
			wanted := slices.DeleteFunc(slices.Concat(n.Pins, n.Packages), there)
			return append(acts, action.Run{Title: "see that with it nothing is missing", Script: lines(
				m.Local(bundleDir),
				`( `+m.Complete(wanted...)+` ) || {`,
				`	echo "the bundle was gathered in a guest that has packages which this one lacks: make it in a guest like this one"`,
				`	exit 1`,
				`}`,
				`echo `+sh.Quote(in.Want.Bundle.SHA256)+` >`+bundleDir+`/id.tmp`,
				`flush `+bundleDir+`/id.tmp`,
				`mv -f `+bundleDir+`/id.tmp `+bundleDir+`/id`,
				`rm -f `+bundleArchive)})
		},
		Hint: "make the bundle anew for this guest, in one like it: gpuguest bundle",
	})
}
