package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpuguest/internal/choice"
	"gpuguest/internal/diagnosis"
	"gpuguest/internal/guest"
	"gpuguest/internal/plan"
	"gpuguest/internal/remedy"
	"gpuguest/steps"
)

// Which remedies a run may try when a step fails.
type Remedies int

// The three policies.
const (
	NoRemedies   Remedies = iota // none
	SafeRemedies                 // those that the table calls safe
	AllRemedies                  // every one that is at work in the guest
)

// RemedyReport is what became of one remedy in a run. Its names are part of the interface.
type RemedyReport struct {
	Remedy string `json:"remedy"` // "kernel-arg pci=realloc"
	Cause  string `json:"cause"`  // id of the verdict it was tried for
	Result string `json:"result"` // Helped, NoHelp or Open
}

// What became of a remedy.
const (
	Helped = "helped"       // the failure it was tried for is gone, and it stays
	NoHelp = "did not help" // it is taken back
	Open   = "open"         // it could not be judged yet
)

// kernelLog prints what the kernel said in this boot.
const kernelLog = `dmesg 2>/dev/null || journalctl -k -b -q --no-pager -o short-monotonic 2>/dev/null || true`

// rebootsFor is how many boots a remedy may cost: the one it takes effect at, and the one that takes it back.
func rebootsFor(m remedy.Remedy) int {
	switch {
	case !m.Boots:
		return 0
	case m.Kind() == remedy.Reboot:
		return 1
	}
	return 2
}

// cure looks at why a step failed and moves the trial of a remedy on: what was tried and did not help is to be
// taken back, and the next that may help is to be tried. It answers again when the next pass has something new to
// bring about; else the failure is final, and says what was tried.
func (r *run) cure(ctx context.Context, failed *StepError) (verdict, error) {
	if ctx.Err() != nil {
		return done, failed
	}
	if r.Remedies == NoRemedies {
		v, known := diagnosis.Cause(failed.text)
		return done, r.given(failed, remedy.After(v, r.facts), known)
	}
	t, open := remedy.Open(remedy.Trials(r.facts.State.Journal))
	if !failed.Verify {
		if open && slices.Contains(remedy.Steps(t.Fix), string(failed.Step)) {
			// The remedy itself cannot be brought about. Without it the failure of before shows again.
			return again, r.end(ctx, t, remedy.Undone)
		}
		// A guest is booted only once all work for that boot is done, which this step's is not: no remedy that
		// takes a boot could show what it does, and the others are what running again does.
		v, known := diagnosis.Cause(failed.text)
		if known {
			if back, err := r.redo(ctx, failed, v); back || err != nil {
				return again, err
			}
		}
		return done, r.given(failed, v, known)
	}
	if open && !r.inForce(t) {
		// It did not come far enough to be judged; the next run goes on with it.
		return done, failed
	}
	res, err := r.conn.Run(ctx, guest.Command{Script: kernelLog, Timeout: 2 * time.Minute})
	if err != nil {
		return done, err
	}
	text := string(res.Stdout) + "\n" + failed.text
	moved := false
	if open {
		// A reader over a string fails only on broken gzip.
		found, _ := diagnosis.Read("", strings.NewReader(text))
		state := remedy.Kept
		if shows(found, t) {
			state, moved = remedy.Undone, t.Fix != remedy.Reboot
		}
		if err := r.end(ctx, t, state); err != nil {
			return done, err
		}
	}
	// What the step itself said is to the point; the rest of the kernel's log counts where that tells nothing.
	v, known := diagnosis.Cause(failed.text)
	if !known {
		v, known = diagnosis.Cause(text)
		known = known && v.Severity == diagnosis.Fatal
	}
	if known {
		next, after := r.next(remedy.After(v, r.facts))
		if next.Fix != "" {
			return again, r.try(ctx, next, after, failed.Step)
		}
		v = after
	}
	if moved {
		return again, nil
	}
	return done, r.given(failed, v, known)
}

// redo tells whether the run goes back to a step, once for a cause: the one that sees to the cause of this failure
// was met when the run passed it and is not any more.
func (r *run) redo(ctx context.Context, failed *StepError, v diagnosis.Verdict) (bool, error) {
	m, ok := remedy.Lookup(v.Fix)
	if !ok || m.Kind() != remedy.Step || r.redone[v.ID] {
		return false, nil
	}
	items := r.plan.Items()
	at := slices.IndexFunc(items, func(it plan.Item) bool { return string(it.ID) == remedy.Steps(m.Fix)[0] })
	if at < 0 || items[at].ID == failed.Step {
		return false, nil
	}
	now, err := r.check(ctx, items[at:at+1])
	if err != nil || now[items[at].ID].Met {
		return false, err
	}
	r.redone[v.ID] = true
	r.tell(Event{Kind: Notice, Text: fmt.Sprintf("%s: going back to step %s: %s", v.ID, items[at].ID, now[items[at].ID].Why)})
	r.report.Remedies = append(r.report.Remedies, RemedyReport{Remedy: m.Fix, Cause: v.ID, Result: Open})
	return true, nil
}

// conclude says in the report what became of the steps that the run went back to.
func (r *run) conclude(err error) {
	for i, m := range r.report.Remedies {
		if m.Result != Open || !strings.HasPrefix(m.Remedy, remedy.Step+" ") {
			continue
		}
		r.report.Remedies[i].Result = Helped
		if failed, ok := errors.AsType[*StepError](err); ok && failed.Verdict != nil && failed.Verdict.ID == m.Cause {
			r.report.Remedies[i].Result = NoHelp
		}
	}
}

// given makes the failure that ends the run: with what was tried in vain for this cause, and where it lies now.
func (r *run) given(failed *StepError, v diagnosis.Verdict, known bool) *StepError {
	if !known {
		return failed
	}
	for _, t := range remedy.Trials(r.facts.State.Journal) {
		if remedy.InVain([]remedy.Trial{t}, t.Fix, r.facts) && fixes(v.ID, t.Fix) && !slices.Contains(failed.Tried, t.Fix) {
			failed.Tried = append(failed.Tried, t.Fix)
		}
	}
	failed.Verdict, failed.Hint = &v, v.Hint()
	if len(failed.Tried) > 0 {
		failed.Hint += " (tried in vain: " + strings.Join(failed.Tried, ", ") + ")"
	}
	if r.Advice != nil {
		failed.Advice = r.Advice(v, r.facts)
	}
	return failed
}

// next chooses what to try for a verdict: the first of its remedies that has not been tried, that may be and that
// the plan can bring about. Without one it returns a zero Remedy, and the verdict as what was tried leaves it.
func (r *run) next(v diagnosis.Verdict) (remedy.Remedy, diagnosis.Verdict) {
	trials := remedy.Trials(r.facts.State.Journal)
	vain := false
	for v.Fix != "" {
		m, ok := remedy.Lookup(v.Fix)
		switch {
		case !ok:
			return remedy.Remedy{}, v
		case m.Kind() == remedy.Step && !r.brought(remedy.Steps(m.Fix)[0]):
			return remedy.Remedy{}, v
		case m.Kind() == remedy.Step:
			// The run has seen to it, and still it failed.
			after := v.Tried(v.Fix)
			if after.Fix == "" && !vain {
				return remedy.Remedy{}, v
			}
			v = after
			continue
		case remedy.InVain(trials, m.Fix, r.facts):
			vain = true
			v = v.Tried(v.Fix)
			continue
		}
		if reason := r.forbids(m, v); reason != "" {
			r.tell(Event{Kind: Notice, Text: fmt.Sprintf("%s: %s is not tried: %s", v.ID, m.Fix, reason)})
			return remedy.Remedy{}, v
		}
		return m, v
	}
	return remedy.Remedy{}, v
}

// forbids says why a remedy is not tried here and now, "" when it may be.
func (r *run) forbids(m remedy.Remedy, v diagnosis.Verdict) string {
	switch {
	case r.Remedies == SafeRemedies && !m.Safe:
		return "it is not done unasked; gpuguest diagnose --fix does it"
	case m.Boots && r.Reboot == choice.RebootNever:
		return "it takes a reboot, and --reboot never keeps that from happening"
	case r.report.Reboots+rebootsFor(m) > r.MaxReboots:
		return fmt.Sprintf("it takes up to %d more reboots, and --max-reboots allows %d in all", rebootsFor(m), r.MaxReboots)
	}
	if r.Against != nil {
		if reason := r.Against(m, r.facts); reason != "" {
			return reason
		}
	}
	// What the plan would say to it is asked before anything is recorded.
	f := r.facts
	f.State.Journal = joined(f.State.Journal, r.record(remedy.Trying, m.Fix, v.ID, ""))
	if _, err := r.Plan(f); err != nil {
		return err.Error()
	}
	return ""
}

// brought tells whether a step of the plan was found or made so in this run.
func (r *run) brought(id string) bool {
	if !slices.ContainsFunc(r.report.Steps, func(s StepReport) bool { return string(s.ID) == id }) {
		// It is not in the plan, so there is nothing to bring about.
		return true
	}
	return slices.ContainsFunc(r.report.Steps, func(s StepReport) bool { return string(s.ID) == id && s.State != Failed })
}

// inForce tells whether what is being tried is at work, so that a failure says something about it.
func (r *run) inForce(t remedy.Trial) bool {
	if m, ok := remedy.Lookup(t.Fix); ok && m.Boots && t.Boot == r.facts.BootID {
		return false
	}
	kind, arg, _ := strings.Cut(t.Fix, " ")
	return kind != remedy.KernelArg || slices.Contains(r.facts.Kernel.Cmdline, arg)
}

// shows tells whether the failure that a remedy was tried for is still among what was found: the same verdict,
// or one that has the same remedy. The two lines that tell of an empty window are one failure.
func shows(found []diagnosis.Verdict, t remedy.Trial) bool {
	return slices.ContainsFunc(found, func(v diagnosis.Verdict) bool {
		return !v.Past && v.Severity != diagnosis.Info && (v.ID == t.Cause || fixes(v.ID, t.Fix))
	})
}

// fixes tells whether the catalogue names a fix for a verdict.
func fixes(id, fix string) bool {
	all, err := diagnosis.Signatures()
	return err == nil && slices.ContainsFunc(all, func(s diagnosis.Signature) bool { return s.ID == id && slices.Contains(s.Fixes, fix) })
}

// try records that a remedy is tried from now on. The next pass's plan wants it.
func (r *run) try(ctx context.Context, m remedy.Remedy, v diagnosis.Verdict, failed steps.ID) error {
	r.tell(Event{Kind: Notice, Text: fmt.Sprintf("%s: trying %s: %s", v.ID, m.Fix, m.Does)})
	r.report.Remedies = append(r.report.Remedies, RemedyReport{Remedy: m.Fix, Cause: v.ID, Result: Open})
	return r.move(ctx, r.record(remedy.Trying, m.Fix, v.ID, failed))
}

// end records how a trial ended.
func (r *run) end(ctx context.Context, t remedy.Trial, state string) error {
	result, words := Helped, "it helped and stays"
	if state == remedy.Undone {
		result, words = NoHelp, "it did not help and is taken back"
	}
	r.tell(Event{Kind: Notice, Text: fmt.Sprintf("%s: %s: %s", t.Cause, t.Fix, words)})
	known := false
	for i, o := range r.report.Remedies {
		if o.Remedy == t.Fix && o.Result == Open {
			r.report.Remedies[i].Result, known = result, true
		}
	}
	if !known {
		r.report.Remedies = append(r.report.Remedies, RemedyReport{Remedy: t.Fix, Cause: t.Cause, Result: result})
	}
	return r.move(ctx, r.record(state, t.Fix, t.Cause, ""))
}

// move writes a record and lets what is worked out from the journal see it at once. Steps may have to be brought
// about again, which is no sign of a guest that does not keep what it is given.
func (r *run) move(ctx context.Context, rec Record) error {
	clear(r.changes)
	if err := r.write(ctx, rec); err != nil {
		return err
	}
	r.facts.State.Journal = joined(r.facts.State.Journal, rec)
	return nil
}

func (r *run) record(event, fix, cause string, failed steps.ID) Record {
	return Record{Boot: r.facts.BootID, Event: event, Step: failed, Remedy: fix, Cause: cause, With: remedy.With(r.facts)}
}

func joined(journal string, rec Record) string {
	text, err := json.Marshal(rec)
	if err != nil {
		panic(err) // strings, a bool and a time always marshal
	}
	return strings.TrimRight(journal, "\n") + "\n" + string(text) + "\n"
}

// takenBack records, once nothing of it is left, that remedies which did not help are gone. From then on the same
// argument is whoever's sets it.
func (r *run) takenBack(ctx context.Context) error {
	if r.Remedies == NoRemedies {
		return nil
	}
	for _, t := range remedy.Trials(r.facts.State.Journal) {
		if t.State != remedy.Undone {
			continue
		}
		if err := r.move(ctx, r.record(remedy.Back, t.Fix, t.Cause, "")); err != nil {
			return err
		}
	}
	return nil
}

// begin starts with what a diagnosis found before the run: what no step of install would see to.
func (r *run) begin(ctx context.Context) error {
	first := r.First
	r.First = nil
	trials := remedy.Trials(r.facts.State.Journal)
	if _, open := remedy.Open(trials); open {
		return nil
	}
	for _, v := range first {
		if v.Severity == diagnosis.Fatal && !v.Past && (v.Where == diagnosis.Host || v.Where == diagnosis.Hardware) {
			// What ranks behind it may follow from it, and cannot be helped before it is.
			return nil
		}
		v = remedy.After(v, r.facts)
		if m, ok := remedy.Lookup(v.Fix); !ok || m.Kind() == remedy.Step || v.Severity == diagnosis.Info || v.Past {
			continue
		}
		m, after := r.next(v)
		if m.Fix != "" {
			return r.try(ctx, m, after, "")
		}
	}
	return nil
}

// settle ends a run that brought all about. A remedy that is still on trial helped, unless the symptom that a
// diagnosis began with shows again.
func (r *run) settle(ctx context.Context) (verdict, error) {
	t, open := remedy.Open(remedy.Trials(r.facts.State.Journal))
	if !open || r.Remedies == NoRemedies {
		return done, nil
	}
	var found []diagnosis.Verdict
	if r.Look != nil {
		var err error
		if found, err = r.Look(ctx, r.conn); err != nil {
			return done, err
		}
	}
	if !shows(found, t) {
		return done, r.end(ctx, t, remedy.Kept)
	}
	if err := r.end(ctx, t, remedy.Undone); err != nil {
		return done, err
	}
	for _, v := range diagnosis.Rank(found) {
		if v.ID != t.Cause && !fixes(v.ID, t.Fix) {
			continue
		}
		next, after := r.next(remedy.After(v, r.facts))
		if next.Fix != "" {
			return again, r.try(ctx, next, after, "")
		}
		r.left = &after
	}
	return again, nil
}

// symptom is the failure of a run that brought all about while what the diagnosis began with still shows.
func (r *run) symptom() error {
	if r.left == nil {
		return nil
	}
	return r.given(&StepError{Step: "diagnose", What: r.left.Cause, Hint: r.left.Hint(), Verify: true}, *r.left, true)
}
