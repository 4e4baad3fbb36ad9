// Package plan turns steps into a value that can be printed, compared and run.
//
// It reaches no guest and reads no clock: the same facts and the same wish make the same plan.
package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/internal/remedy"
	"gpuguest/steps"
)

// Plan is what will be done to one guest, in order.
type Plan struct {
	Distro   distros.Distro
	Choice   choice.Choice
	Segments []Segment
	Bundle   string           // file name of the bundle that all comes from, "" none
	Env      string           // sh text that every item's script begins with; see steps.Environment
	Remedies []remedy.Promise // what would be tried when a proof fails; only to be told
}

// Segment is what happens within one boot.
type Segment struct{ Items []Item }

// Item is one step, worked out for one guest.
type Item struct {
	ID      steps.ID
	Title   string
	Check   string          // POSIX sh; exit 0: met
	Actions []action.Action // nil: the step only verifies
	AtBoot  bool            // its change takes effect at the next boot
	Replan  bool            // once it was brought about, the plan is made anew
	Fresh   bool            // it proves the guest as it runs, so it waits for an owed boot
	Late    bool            // with Fresh: it changes the guest, and waits only because what it needs takes a boot
	Refuses bool            // not met, what is wanted cannot be had; nothing is changed before it
	Hint    string
	Module  string // the words for modinfo of the module that the check asks about, as others do: "-k RELEASE NAME"; "" none

	// Read turns what the check printed behind steps.DataMark into what reports carry; see steps.Step.Read.
	Read func(data string) (report json.RawMessage, why string)
}

// Refusal says why a plan cannot be carried out in this guest. Nothing was changed when it is returned.
type Refusal struct {
	Step   steps.ID
	Reason string
	Hint   string
}

func (r *Refusal) Error() string { return fmt.Sprintf("%s: %s", r.Step, r.Reason) }

// Input makes what steps look at: it finds the distribution and decides on the driver. What the guest's
// journal says is being tried as a remedy is wanted too. The errors are those of distros.For and choice.Make.
func Input(f facts.Facts, w choice.Want) (steps.Input, error) {
	w = remedy.Want(w, f.State.Journal)
	d, err := distros.For(f.OS, w.As)
	if err != nil {
		return steps.Input{}, err
	}
	if err := steps.FitsGuest(w.Bundle, f, d); err != nil {
		return steps.Input{}, err
	}
	c, err := choice.Make(f, d, w)
	if err != nil {
		return steps.Input{}, err
	}
	in := steps.Input{Facts: f, Distro: d, Want: w, Choice: c}
	return in, steps.Fits(in)
}

// Build works out every wanted step. It fails with a *Refusal when a step says that it cannot be carried
// out in this guest.
func Build(in steps.Input, all []steps.Step) (Plan, error) {
	var now, fresh Segment
	for _, s := range all {
		if s.Wanted != nil && !s.Wanted(in) {
			continue
		}
		if s.Refuse != nil {
			if reason := s.Refuse(in); reason != "" {
				return Plan{}, &Refusal{Step: s.ID, Reason: reason, Hint: s.Hint}
			}
		}
		if s.Check == nil {
			continue
		}
		item := Item{ID: s.ID, Title: s.Title, Check: s.Check(in), Replan: s.Replan, Fresh: s.Fresh, Refuses: s.Refuses, Hint: s.Hint}
		if s.Apply != nil {
			item.Actions = s.Apply(in)
		}
		if s.AtBoot != nil {
			item.AtBoot = s.AtBoot(in)
		}
		if s.Module != nil {
			item.Module = s.Module(in)
		}
		if s.Read != nil {
			item.Read = func(data string) (json.RawMessage, string) { return s.Read(in, data) }
		}
		if !s.Fresh && s.Late != nil && s.Late(in) {
			item.Fresh, item.Late = true, true
		}
		if item.Fresh {
			fresh.Items = append(fresh.Items, item)
		} else {
			now.Items = append(now.Items, item)
		}
	}
	p := Plan{Distro: in.Distro, Choice: in.Choice, Env: steps.Environment(in), Bundle: in.Want.Bundle.Name}
	for _, s := range []Segment{now, fresh} {
		if len(s.Items) > 0 {
			p.Segments = append(p.Segments, s)
		}
	}
	return p, nil
}

// Items returns every item of every segment, in order.
func (p Plan) Items() []Item {
	var all []Item
	for _, s := range p.Segments {
		all = append(all, s.Items...)
	}
	return all
}

// JobName names an item's work in the guest. The same work has the same name, so that a second run finds
// and follows what a first one started; other work has another name.
func JobName(id steps.ID, script string) string {
	sum := sha256.Sum256([]byte(script))
	return string(id) + "-" + hex.EncodeToString(sum[:6])
}

// Proofs works out only the steps that prove: what the next boot will find and what runs now, without the
// actions that would bring it about and without asking whether those could be carried out.
func Proofs(in steps.Input, all []steps.Step) (Plan, error) {
	in.Proves = true
	var proofs []steps.Step
	for _, s := range all {
		if s.Check != nil && (s.Fresh || s.Apply == nil) {
			s.Apply, s.AtBoot, s.Refuse, s.Late, s.Fresh = nil, nil, nil, nil, true
			proofs = append(proofs, s)
		}
	}
	return Build(in, proofs)
}

// Bare makes the input of a plan that needs no choice of a driver.
func Bare(f facts.Facts, w choice.Want) (steps.Input, error) {
	d, err := distros.For(f.OS, w.As)
	if err != nil {
		return steps.Input{}, err
	}
	return steps.Input{Facts: f, Distro: d, Want: w}, nil
}

// GatherScript is the script that gathers the packages of a plan in a guest that reaches them; ref is a plan for that
// guest. It fails with a *choice.Refusal where no bundle can be made.
func GatherScript(in, ref steps.Input) (string, error) {
	if err := steps.Gatherable(in, ref); err != nil {
		return "", err
	}
	there := in
	there.Facts, there.Want.KeyringSent = ref.Facts, false
	p, err := Build(there, steps.ReadingSteps())
	if err != nil {
		return "", err
	}
	prepare := Library(p.Distro)
	for _, it := range p.Items() {
		prepare += "( " + p.frame(it) + ") || exit\n"
	}
	return steps.GatherScript(in, ref, prepare)
}

// Installed makes the input of a plan that holds a guest against the driver that is there, whoever put
// it there; w may say what it must be.
func Installed(f facts.Facts, w choice.Want) (steps.Input, error) {
	in, err := Bare(f, w)
	if err != nil {
		return in, err
	}
	in.Choice, err = choice.Installed(f, w)
	return in, err
}
