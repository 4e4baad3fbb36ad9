package distros

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"gpuguest/internal/catalog"
)

// TestedPlan is how a source was tested of which nothing better is known: plans were worked out for recorded or
// constructed guests, and nobody has run one.
const TestedPlan = "plan only"

// Row is one way to get a driver on one distribution.
type Row struct {
	Distro   string   `json:"distro"` // as --as takes it: "rocky:9"
	Name     string   `json:"name"`
	Source   string   `json:"source"`
	Modules  string   `json:"modules"`
	Flavor   string   `json:"flavor"`
	Branches string   `json:"branches"` // "470, 515 and later"
	CUDA     []string `json:"cuda"`     // how toolkits come beside it: "packages", "installer"
	Machines []string `json:"machines"`
	Needs    []string `json:"needs"`  // what is added to the guest for it, besides the driver
	Tested   string   `json:"tested"` // "real guest …", "real package manager …", or TestedPlan
	Notes    []string `json:"notes,omitempty"`
}

// Matrix returns every way to get a driver that is known, by distribution.
func Matrix() []Row {
	var rows []Row
	for _, d := range All() {
		first := len(rows)
		for _, o := range d.Offers {
			r := Row{
				Distro: d.String(), Name: d.Name, Source: o.Source, Modules: o.Modules, Flavor: o.Flavor, Branches: o.served(),
				CUDA: d.toolkits(o), Machines: d.machines(o), Needs: d.needs(o), Tested: cmp.Or(d.Tested[o.Source], TestedPlan), Notes: d.notes(o),
			}
			// Two offers that differ in their branches alone are one row.
			same := func(x Row) bool {
				return x.Source == r.Source && x.Modules == r.Modules && x.Flavor == r.Flavor && slices.Equal(x.Machines, r.Machines)
			}
			if i := slices.IndexFunc(rows[first:], same); i >= 0 {
				rows[first+i].Branches = join(append(strings.Split(rows[first+i].Branches, ", "), r.Branches))
				continue
			}
			rows = append(rows, r)
		}
		rows = append(rows, d.runfiles()...)
	}
	return rows
}

// runfiles are the rows of NVIDIA's .run: what the tables know an installer of.
func (d Distro) runfiles() []Row {
	var rows []Row
	for _, flavor := range []string{FlavorOpen, FlavorProprietary} {
		served := map[string]string{} // machine → branches
		for machine := range d.Arches {
			var branches []int
			for _, f := range catalog.DriverRunfiles() {
				n, err := catalog.BranchOf(f.Version)
				b, known := catalog.BranchByNumber(n)
				if err != nil || !known || f.Arch != machine || flavor == FlavorOpen && b.Open == catalog.OpenNo || flavor == FlavorProprietary && b.Open == catalog.OpenOnly {
					continue
				}
				branches = append(branches, n)
			}
			served[machine] = runs(branches)
		}
		for _, machine := range d.machines(Offer{}) {
			r := Row{
				Distro: d.String(), Name: d.Name, Source: SourceRunfile, Modules: ModulesDKMS, Flavor: flavor, Branches: served[machine],
				CUDA: d.toolkits(Offer{}), Machines: []string{machine}, Needs: d.needs(Offer{Source: SourceRunfile}), Tested: cmp.Or(d.Tested[SourceRunfile], TestedPlan),
				Notes: []string{"any other version, where its file or its SHA-256 is given"},
			}
			if r.Branches == "" {
				continue
			}
			rows = append(rows, r)
		}
	}
	return rows
}

// runs writes branches as "390, 510 to 580": three and more that follow each other in the table become one.
func runs(branches []int) string {
	var all []string
	table := catalog.Branches()
	for i := 0; i < len(table); {
		n := i
		for n < len(table) && slices.Contains(branches, table[n].Number) {
			n++
		}
		if n-i > 2 {
			all = append(all, fmt.Sprintf("%d to %d", table[i].Number, table[n-1].Number))
		} else {
			for _, b := range table[i:n] {
				all = append(all, fmt.Sprint(b.Number))
			}
		}
		i = n + 1
	}
	return strings.Join(all, ", ")
}

// toolkits says how CUDA toolkits come beside an offer. NVIDIA's installers are the same everywhere.
func (d Distro) toolkits(o Offer) []string {
	var all []string
	if slices.ContainsFunc(d.machines(o), func(m string) bool { return d.RepoDir[m] != "" }) {
		all = append(all, "packages")
	}
	return append(all, "installer")
}

// served says which branches of the table an offer delivers.
func (o Offer) served() string {
	if o.Branches != nil {
		var all []string
		for _, b := range o.Branches {
			all = append(all, fmt.Sprint(b))
		}
		return strings.Join(all, ", ")
	}
	last := 0
	branches := catalog.Branches()
	for _, b := range branches {
		if b.Number >= o.Min && (o.Flavor == FlavorOpen || b.Open != catalog.OpenOnly) {
			last = b.Number
		}
	}
	if last == branches[len(branches)-1].Number {
		return fmt.Sprintf("%d and later", o.Min)
	}
	return fmt.Sprintf("%d to %d", o.Min, last)
}

func (d Distro) machines(o Offer) []string {
	var all []string
	for m := range d.Arches {
		if (o.Arches == nil || slices.Contains(o.Arches, m)) && (o.Source != SourceNVIDIA || d.RepoDir[m] != "") {
			all = append(all, m)
		}
	}
	slices.Sort(all)
	slices.Reverse(all)
	return all
}

func (d Distro) needs(o Offer) []string {
	var all []string
	if o.Modules != ModulesPrecompiled {
		all = append(all, "kernel headers", strings.Join(d.BuildTools, ", "))
		if o.Source == SourceRunfile && !slices.Contains(d.BuildTools, "dkms") {
			all = append(all, "dkms")
		}
	}
	for _, e := range d.Reading(o.Source).Extras {
		all = append(all, e.Name)
	}
	if o.Source == SourceDistro && len(d.Components) > 0 {
		all = append(all, "components "+strings.Join(d.Components, ", "))
	}
	if o.Stream != "" {
		all = append(all, "module stream")
	}
	if o.Lock {
		all = append(all, "version lock")
	}
	return all
}

func (d Distro) notes(o Offer) []string {
	var all []string
	if o.Source == SourceNVIDIA {
		if d.Frozen != "" {
			all = append(all, d.Frozen)
		}
		if d.RepoKey.File != "" && d.RepoKey.Fingerprint == "" {
			all = append(all, "of its key the fingerprint is not known")
		}
		if d.RepoKey.File == "" {
			for m, dir := range d.RepoDir {
				if d.KeyringSHA256[dir] == "" && (o.Arches == nil || slices.Contains(o.Arches, m)) {
					all = append(all, "on "+m+" the checksum of the keyring must be given")
				}
			}
		}
	}
	if o.Caveat != "" {
		all = append(all, o.Caveat)
	}
	slices.Sort(all)
	return all
}

// Line is what Summary says of one source of drivers on distributions that are alike in it.
type Line struct{ Names, Source, Drivers, CUDA, Machines, Needs, Tested string }

// summaryHead is the heading of Summary's lines.
var summaryHead = Line{"distribution", "source", "drivers", "CUDA", "machines", "needs", "how it was tested"}

// Summary is the matrix for people: one line for each source, and distributions that do not differ in it together.
func Summary() []Line {
	var lines []Line
	rows := Matrix()
	for len(rows) > 0 {
		r := rows[0]
		n := 1
		for n < len(rows) && rows[n].Distro == r.Distro && rows[n].Source == r.Source {
			n++
		}
		lines = append(lines, line(rows[:n]))
		rows = rows[n:]
	}
	var out []Line
	for _, l := range lines {
		bare := l
		i := slices.IndexFunc(out, func(o Line) bool { o.Names, bare.Names = "", ""; return o == bare })
		if i < 0 {
			out = append(out, l)
			continue
		}
		out[i].Names += ", " + l.Names
	}
	return append([]Line{summaryHead}, out...)
}

func line(rows []Row) Line {
	l := Line{Names: rows[0].Name, Source: map[string]string{SourceNVIDIA: "NVIDIA's repository", SourceDistro: "its own packages", SourceRunfile: "NVIDIA's .run"}[rows[0].Source], Tested: rows[0].Tested}
	var drivers, machines, needs, cuda []string
	for _, r := range rows {
		machines, cuda = append(machines, r.Machines...), append(cuda, r.CUDA...)
	}
	for _, r := range rows {
		say := fmt.Sprintf("%s by %s: %s", r.Flavor, r.Modules, r.Branches)
		if m := join(r.Machines); m != join(machines) {
			say += " (" + m + ")"
		}
		needs = append(needs, r.Needs...)
		if !slices.Contains(drivers, say) {
			drivers = append(drivers, say)
		}
	}
	l.Drivers, l.CUDA, l.Machines, l.Needs = strings.Join(drivers, "; "), join(cuda), join(machines), join(needs)
	return l
}

// join puts words together, each once, in the order of their first mention.
func join(words []string) string {
	var once []string
	for _, w := range words {
		if !slices.Contains(once, w) {
			once = append(once, w)
		}
	}
	return strings.Join(once, ", ")
}

// Cells are a line's columns.
func (l Line) Cells() []string {
	return []string{l.Names, l.Source, l.Drivers, l.CUDA, l.Machines, l.Needs, l.Tested}
}

// Markdown is Summary as a table for the README.
func Markdown() string {
	var b strings.Builder
	for i, l := range Summary() {
		b.WriteString("| " + strings.Join(l.Cells(), " | ") + " |\n")
		if i == 0 {
			b.WriteString(strings.Repeat("| --- ", len(l.Cells())) + "|\n")
		}
	}
	return b.String()
}
