// Package steps holds what gpuguest can do to a guest, one step a file.
//
// A step is a pure function from what the guest is, what it runs and what the user wants, to a check and
// a list of actions. Steps never name a distribution: what differs is a field of distros.Distro. They
// never reach a guest: the engine runs what they return.
package steps

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/internal/sh"
)

// ID names a step. Ids are part of the interface: the journal and the reports carry them.
type ID string

// Input is all that a step may look at.
type Input struct {
	Facts  facts.Facts
	Distro distros.Distro
	Want   choice.Want
	Choice choice.Choice
	// BootScript is the script that verify-unit leaves in the guest; "": none is wanted.
	BootScript string
	// Unseen: the checks are for a boot to come, and the GPUs are those that the guest has then. There is one at
	// least, or a check fails.
	Unseen bool
	// Proves: the plan changes nothing and proves what is there.
	Proves bool
}

// Step is one thing to bring about in a guest.
type Step struct {
	ID    ID
	Title string // "block the drivers that would claim the GPU"
	After []ID   // steps that come before it when they are in the plan

	// Wanted tells whether the step belongs in the plan; nil: always.
	Wanted func(Input) bool
	// Refuse says why the plan cannot be carried out in this guest, "" when it can; nil: nothing speaks
	// against it. It is asked before anything changes.
	Refuse func(Input) string
	// Check returns POSIX sh that reads and never writes: exit 0, the step's aim is met; any other exit,
	// it is not, and what was printed says why. What a met check prints is the step's detail in reports.
	Check func(Input) string
	// Apply returns what brings the aim about; nil: the step only verifies.
	Apply func(Input) []action.Action
	// AtBoot tells whether the change takes effect only at the next boot; nil: never. It is asked with
	// the facts from before the change.
	AtBoot func(Input) bool
	// Late tells whether the step must wait until what comes before it had its boot; nil: never.
	Late func(Input) bool
	// Replan steps change what later steps are worked out from: after one was brought about, the plan is
	// made anew.
	Replan bool
	// Fresh steps run only when no change waits for a boot. A Fresh step that is not met is a failed
	// verification.
	Fresh bool
	// Refuses: what only the guest can tell, and what cannot be asked for when it is not met. Nothing is changed
	// before such a step, which has no Apply.
	Refuses bool
	// Read takes what the check printed behind DataMark, a line each, and returns what reports carry of it, as
	// JSON, nil nothing. why, when it is not empty, is what the check itself did not see: then it is not met,
	// whatever its exit was. nil: the check prints nothing of the kind.
	Read func(in Input, data string) (report json.RawMessage, why string)
	// Module returns the words for modinfo of the module whose version, license, vermagic and signer the check reads, as
	// other steps' checks do: where several are made at once, the guest looks it up once. nil, or "": none.
	Module func(in Input) string
	Hint   string // what a person does when the step fails and no better cause is known
}

// DataMark begins a line of a check's output that is for programs: it goes to Read and not into the detail that
// a person is shown.
const DataMark = "gpuguest: data: "

var (
	install []Step
	remove  []Step
)

// register adds a step to those that install; registerRemoval to those that uninstall. Both panic on an id
// used twice, at start-up, where no user can miss it.
func register(s Step)        { install = add(install, s) }
func registerRemoval(s Step) { remove = add(remove, s) }

func add(all []Step, s Step) []Step {
	if slices.ContainsFunc(all, func(o Step) bool { return o.ID == s.ID }) {
		panic(fmt.Sprintf("steps: %q is registered twice", s.ID))
	}
	return append(all, s)
}

// Install returns the steps that install a driver, in an order that honours After.
func Install() []Step { return slices.Clone(installOrder()) }

// Uninstall returns the steps that take back what the install steps did.
func Uninstall() []Step { return slices.Clone(removeOrder()) }

// The order is worked out once: a plan for each of a thousand guests asks for it.
var (
	installOrder = sync.OnceValue(func() []Step { return order(install) })
	removeOrder  = sync.OnceValue(func() []Step { return order(remove) })
)

// order sorts by After, and by id among steps that After leaves free, so that the order never depends on
// how files are named. A cycle panics: it is a mistake in a step.
func order(all []Step) []Step {
	rest := slices.SortedFunc(slices.Values(all), func(a, b Step) int { return cmp.Compare(a.ID, b.ID) })
	var done []Step
	for len(rest) > 0 {
		i := slices.IndexFunc(rest, func(s Step) bool {
			return !slices.ContainsFunc(s.After, func(id ID) bool {
				return slices.ContainsFunc(rest, func(o Step) bool { return o.ID == id })
			})
		})
		if i < 0 {
			panic(fmt.Sprintf("steps: the order of %q has a cycle", rest[0].ID))
		}
		done = append(done, rest[i])
		rest = slices.Delete(rest, i, i+1)
	}
	return done
}

// lines joins script lines.
func lines(l ...string) string { return strings.Join(l, "\n") }

// foreign returns the drivers bound to the guest's GPUs that are not NVIDIA's own: nouveau, nova_core.
func foreign(in Input) []string {
	var found []string
	for _, g := range in.Facts.GPUs {
		if g.Driver != "" && g.Driver != "nvidia" && !slices.Contains(found, g.Driver) {
			found = append(found, g.Driver)
		}
	}
	return found
}

// claimed tells whether a driver that is to be blocked holds a GPU or is loaded now, so that only a boot
// frees it for certain: unloading nouveau was seen to take 15 s and to complain ("failed to idle channel") even
// on the lab's pretend GPU.
func claimed(in Input) bool {
	if len(foreign(in)) > 0 {
		return true
	}
	return slices.ContainsFunc(blocked, func(m string) bool { return in.Facts.Loaded[m] })
}

// WarningMark begins a line of a check or an action that the user should read although the step went on.
const WarningMark = "gpuguest: warning: "

// evidence prints the kernel's lines about the GPU, for a check that failed: each once and without its time, as
// every attempt to load the module repeats them, and the first, which names the cause, must not fall off the end.
const evidence = `{ dmesg 2>/dev/null || journalctl -k -b -q --no-pager -o cat 2>/dev/null; } | grep -E 'NVRM|nvidia|nouveau|[Nn]ova|BAR ' | sed 's/^\[ *[0-9.]*\] //' | awk '!seen[$0]++' | tail -n 40 || true`

// must makes a check line of a script that asks the package manager: when it fails, the check fails and
// says why.
func must(script, why string) string {
	return "( " + strings.TrimRight(script, "\n") + "\n) >/dev/null 2>&1 || { echo " + sh.Quote(why) + "; exit 1; }"
}

// freshLists fetches the package lists of the sources that the work needs; another's failure is told and
// not fatal.
func freshLists(in Input) string {
	if byBundle(in) {
		return in.Distro.Packages.Refresh(distros.Refresh{})
	}
	need := in.Distro.Archive(in.Facts, in.Want.Mirror)
	if in.Choice.Source != choice.SourceDistro {
		// The mirror then stands for NVIDIA's repository and not for the distribution's archive.
		need = in.Distro.Archive(in.Facts, "")
	}
	return in.Distro.Packages.Refresh(distros.Refresh{Need: need})
}

// installPackages installs packages. Lists that are not there, or so old that a file they name has left
// the archive, are fetched first or fetched again; an install that fails twice fails.
func installPackages(in Input, packages ...string) string {
	m := in.Distro.Packages
	return lines(
		`if ! ( `+m.Offered(packages...)+``,
		`) >/dev/null 2>&1; then`,
		freshLists(in),
		`elif ( `+m.Install(packages...)+``,
		`); then`,
		`	exit 0`,
		`else`,
		`	echo "gpuguest: fetch the package lists anew and try again"`,
		freshLists(in),
		`fi`,
		m.Install(packages...))
}
