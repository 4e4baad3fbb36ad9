// Package remedy knows what gpuguest can do by itself about a failure: a change to what is wanted, which the
// same engine then brings about, and takes back when it did not help.
//
// It is data and pure functions. What was tried in a guest is told by the guest's own journal, so that a
// client that dies in the middle of a trial costs nothing and nothing is tried twice in vain. It never reaches
// a guest, and it holds no remedy at the host or in the hardware.
package remedy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"gpuguest/assets"
	"gpuguest/internal/choice"
	"gpuguest/internal/diagnosis"
	"gpuguest/internal/facts"
)

// The kinds of remedies: the first word of a fix.
const (
	KernelArg    = "kernel-arg"    // an argument of the guest's kernel
	ModuleOption = "module-option" // an option of a kernel module
	Initramfs    = "initramfs"     // something more in the initramfs
	Flavor       = "flavor"        // the other kernel modules
	Reboot       = "reboot"        // a boot and nothing else
	Step         = "step"          // what every install brings about by itself: the remedy is to run it
)

// A Remedy is one row of assets/remedies.tsv.
type Remedy struct {
	Fix   string `json:"fix"`   // its name, as the catalogue of signatures says it: "kernel-arg pci=realloc"
	Safe  bool   `json:"safe"`  // install may try it unasked
	Boots bool   `json:"boots"` // it takes effect at a boot
	Does  string `json:"does"`  // "start the guest's kernel with pci=realloc, …"
}

// Kind is the first word of the fix.
func (r Remedy) Kind() string { return kind(r.Fix) }

func kind(fix string) string {
	k, _, _ := strings.Cut(fix, " ")
	return k
}

func argument(fix string) string {
	_, a, _ := strings.Cut(fix, " ")
	return a
}

// Steps are the ids of the steps that carry out a remedy of this fix. When one of them fails, the remedy did.
func Steps(fix string) []string {
	switch kind(fix) {
	case KernelArg:
		return []string{"kernel-args"}
	case ModuleOption:
		return []string{"module-options"}
	case Initramfs:
		return []string{"initramfs-firmware"}
	case Flavor:
		return []string{"repo", "components", "pin", "driver"}
	case Step:
		return []string{argument(fix)}
	}
	return nil
}

var loaded = sync.OnceValues(load)

func load() ([]Remedy, error) {
	lines := strings.Split(strings.TrimSuffix(assets.Remedies, "\n"), "\n")
	var all []Remedy
	for n, line := range lines[1:] {
		c := strings.Split(line, "\t")
		if len(c) != 5 {
			return nil, fmt.Errorf("remedies.tsv:%d: %d columns, not 5", n+2, len(c))
		}
		all = append(all, Remedy{Fix: c[0], Safe: c[1] == "yes", Boots: c[2] == "yes", Does: c[3]})
	}
	return all, nil
}

// All returns every remedy, in the table's order.
func All() ([]Remedy, error) {
	all, err := loaded()
	return slices.Clone(all), err
}

// Lookup finds the remedy that a signature calls by this name.
func Lookup(fix string) (Remedy, bool) {
	all, err := loaded()
	if err != nil {
		return Remedy{}, false
	}
	i := slices.IndexFunc(all, func(r Remedy) bool { return r.Fix == fix })
	if i < 0 {
		return Remedy{}, false
	}
	return all[i], true
}

// The states of a trial, which are the events of the journal that tell of it.
const (
	Trying = "try"    // decided; the engine is bringing it about, or has
	Kept   = "kept"   // it helped, and stays
	Undone = "undone" // it did not help; the engine is taking it back
	Back   = "back"   // it was taken back
)

// A Trial is one remedy that was tried in a guest.
type Trial struct {
	Fix   string
	Cause string // id of the verdict that it was tried for
	Step  string // the step that had failed
	With  string // the situation, see With
	Boot  string // boot_id when it was decided
	State string
}

// Trials reads the trials out of a guest's journal, oldest first. What went before an uninstall is forgotten.
func Trials(journal string) []Trial {
	var all []Trial
	for line := range strings.Lines(journal) {
		// Of a long journal few lines tell of trials.
		if !strings.Contains(line, `"remedy"`) && !strings.Contains(line, `"uninstalled"`) {
			continue
		}
		var r struct {
			Event, Remedy, Cause, Step, With, Boot string
		}
		if json.Unmarshal([]byte(line), &r) != nil {
			continue
		}
		switch r.Event {
		case "uninstalled":
			all = nil
		case Trying:
			all = append(all, Trial{Fix: r.Remedy, Cause: r.Cause, Step: r.Step, With: r.With, Boot: r.Boot, State: Trying})
		case Kept, Undone, Back:
			for i, t := range slices.Backward(all) {
				if t.Fix == r.Remedy {
					all[i].State = r.Event
					break
				}
			}
		}
	}
	return all
}

// Open returns the trial whose end is not known yet. There is at most one.
func Open(trials []Trial) (Trial, bool) {
	if i := slices.IndexFunc(trials, func(t Trial) bool { return t.State == Trying }); i >= 0 {
		return trials[i], true
	}
	return Trial{}, false
}

// With names the situation a remedy is tried in. In another one, with another driver or another kernel, what
// was tried in vain may be tried again.
func With(f facts.Facts) string {
	return fmt.Sprintf("driver %s, kernel %s", f.Driver.Next.Version, f.Kernel.Next)
}

// InVain tells whether a remedy was tried in this situation and did not help.
func InVain(trials []Trial, fix string, f facts.Facts) bool {
	return slices.ContainsFunc(trials, func(t Trial) bool {
		return t.Fix == fix && t.With == With(f) && (t.State == Undone || t.State == Back)
	})
}

// After is a verdict on a guest with what was tried there counted: what stands on its kernel's command line, and
// what its journal says was in vain. An empty window that no argument fills is then the host's.
func After(v diagnosis.Verdict, f facts.Facts) diagnosis.Verdict {
	trials := Trials(f.State.Journal)
	v = v.On(strings.Join(f.Kernel.Cmdline, " "))
	for v.Fix != "" && InVain(trials, v.Fix, f) {
		v = v.Tried(v.Fix)
	}
	return v
}

// Want is what the user wants with the trials of the guest's journal in it: what is being tried is wanted too,
// what did not help is to go. What was kept needs nothing: the steps leave it where it is. A kernel argument
// that the user names himself is his.
func Want(w choice.Want, journal string) choice.Want {
	trials := Trials(journal)
	for _, t := range trials {
		arg := argument(t.Fix)
		on := t.State == Trying
		if !on && t.State != Undone {
			continue
		}
		switch kind(t.Fix) {
		case KernelArg:
			// One that an earlier trial left, and that says otherwise, gives way and comes back.
			earlier := standing(trials, t)
			if on {
				w.KernelArgs = with(w.KernelArgs, arg)
				if earlier != "" {
					w.DropArgs = with(w.DropArgs, earlier)
				}
			} else {
				w.DropArgs = with(w.DropArgs, arg)
				if earlier != "" {
					w.KernelArgs = with(w.KernelArgs, earlier)
				}
			}
		case ModuleOption:
			if on {
				w.ModuleOptions = with(w.ModuleOptions, arg)
			} else {
				w.DropOptions = with(w.DropOptions, arg)
			}
		case Initramfs:
			w.Firmware, w.DropFirmware = on, !on
		case Flavor:
			if on && w.Flavor == "" {
				w.Flavor = arg
			}
		}
	}
	return w
}

// standing is the kernel argument that an earlier trial left behind and that this one contradicts, "" none. What
// was tried again since is told by the later trial.
func standing(trials []Trial, t Trial) string {
	for i, o := range slices.Backward(trials) {
		if o.State != Kept || o.Fix == t.Fix || kind(o.Fix) != KernelArg || key(argument(o.Fix)) != key(argument(t.Fix)) {
			continue
		}
		if !slices.ContainsFunc(trials[i+1:], func(l Trial) bool { return l.Fix == o.Fix }) {
			return argument(o.Fix)
		}
	}
	return ""
}

// with appends to a copy: what the user said is not written over.
func with(all []string, more string) []string {
	if slices.Contains(all, more) {
		return all
	}
	return append(slices.Clone(all), more)
}

func key(arg string) string {
	k, _, _ := strings.Cut(arg, "=")
	return k
}

// Against says why the user's own words, or somebody else's settings in the guest, forbid a remedy: "" when
// nothing does. Nobody's argument is contradicted.
func (r Remedy) Against(w choice.Want, f facts.Facts) string {
	arg := argument(r.Fix)
	switch r.Kind() {
	case KernelArg:
		if slices.Contains(w.DropArgs, arg) {
			return "--drop-kernel-arg says to do without it"
		}
		trials := Trials(f.State.Journal)
		ours := func(word string) bool {
			return slices.ContainsFunc(trials, func(t Trial) bool { return t.Fix == KernelArg+" "+word && t.State != Back }) &&
				!slices.Contains(w.KernelArgs, word)
		}
		for _, word := range slices.Concat(w.KernelArgs, f.State.KernelArgs, f.Kernel.Cmdline, f.Kernel.NextCmdline) {
			if key(word) == key(arg) && !ours(word) {
				return "the guest's kernel is given " + word + " by somebody else, which is not contradicted"
			}
		}
	case Flavor:
		if w.Flavor != "" && w.Flavor != arg {
			return "--flavor " + w.Flavor + " was asked for"
		}
	}
	return ""
}

// A Promise says what install will try by itself when one of these causes shows.
type Promise struct {
	Causes []string `json:"if"`  // ids of verdicts
	Fixes  []Remedy `json:"try"` // in this order, each taken back when it does not help
}

// Promises returns what install would try by itself in a guest: for each sequence of safe remedies the causes
// that it is for. What every install does anyway is left out.
func Promises(w choice.Want, f facts.Facts) ([]Promise, error) {
	signatures, err := diagnosis.Signatures()
	if err != nil {
		return nil, err
	}
	var all []Promise
	place := make(map[string]int)
	for _, s := range signatures {
		if s.Where != diagnosis.Guest || s.Severity == diagnosis.Info {
			continue
		}
		var fixes []Remedy
		var names []string
		for _, fix := range s.Fixes {
			r, ok := Lookup(fix)
			if !ok || r.Kind() == Step {
				continue
			}
			if !r.Safe || r.Against(w, f) != "" || InVain(Trials(f.State.Journal), fix, f) {
				break
			}
			fixes, names = append(fixes, r), append(names, fix)
		}
		if len(fixes) == 0 {
			continue
		}
		name := strings.Join(names, "\n")
		if _, ok := place[name]; !ok {
			place[name] = len(all)
			all = append(all, Promise{Fixes: fixes})
		}
		all[place[name]].Causes = append(all[place[name]].Causes, s.ID)
	}
	return all, nil
}
