// Package engine carries a plan out on one guest: in what order, what now, what after a reboot.
//
// It decides nothing about drivers and knows no distribution. Whether a step is done it asks the guest,
// now; the journal answers only what no probe can. Running it again is how it resumes.
package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"gpuguest/assets"
	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/diagnosis"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/plan"
	"gpuguest/internal/remedy"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// Config says what to do to which guest.
type Config struct {
	Host  string                                     // as the user names it, for messages
	Dial  func(context.Context) (*guest.Conn, error) // reaches the guest
	Plan  func(facts.Facts) (plan.Plan, error)       // what to bring about, from what the guest is now
	Logs  func(job string) (io.WriteCloser, error)   // where a job's whole output goes; nil: nowhere
	Tell  func(Event)                                // progress; nil: nobody listens
	Files map[string]string                          // files to send: SHA-256 → path on this machine
	Hint  func(text string) string                   // the cause that a step's output gives away, "" none; nil: none known

	Owner    string        // who holds the guest's lock, for others to read: "alice@desk"
	LockWait time.Duration // how long another gpuguest's lock is waited for

	Reboot         string // choice.RebootIfNeeded, RebootNever, RebootAlways
	MaxReboots     int    // in this run; one more is an error
	RebootDeadline time.Duration
	RebootCommand  string                      // "" the guest's own
	PowerCycle     func(context.Context) error // last resort when the guest does not come back; nil: none
	// RebootTurn is waited for before a reboot; what it returns is called when the guest is back, or is not. nil: no waiting.
	RebootTurn func(context.Context) (func(), error)
	// SendTurn is what a file of BigFile bytes or more waits for, which takes memory and the way's bandwidth: a
	// guest.File's Turn.
	SendTurn func(context.Context) (func(), error)

	Patience time.Duration // how long a lost connection is dialled again

	Recall   func() []byte // the facts that this guest gave when it was last seen, nil unknown; only speed depends on them
	Remember func([]byte)  // keeps the facts of this run for the next; both nil: nothing is kept

	Remedies Remedies                                                        // which may be tried when a step fails
	Against  func(remedy.Remedy, facts.Facts) string                         // what the user's own words say against one, "" nothing; nil: nothing does
	First    []diagnosis.Verdict                                             // what a diagnosis before the run found, ranked: its remedies are tried first
	Look     func(context.Context, *guest.Conn) ([]diagnosis.Verdict, error) // what such a diagnosis finds now; nil: nothing
	Advice   func(diagnosis.Verdict, facts.Facts) []string                   // lines that say exactly what to change where gpuguest cannot; nil: none
}

// Event is one moment of a run, for whoever shows it.
type Event struct {
	Kind        Kind
	Step        steps.ID
	Title       string
	Index       int    // of the step, from 1
	Of          int    // steps in the plan
	State       string // of a step that ended: Met, Changed, Failed
	Done, Total int64  // bytes, of a file that is sent
	Text        string // a line of output, a notice, the reason for a reboot
}

// BigFile is the size from which sending a file waits for Config.SendTurn, 8 MiB: below that it is over in a moment.
const BigFile = 8 << 20

// WarningMark begins a line of a step's output that the user should read although the step went on.
const WarningMark = steps.WarningMark

// Kind is what an Event tells.
type Kind int

// The kinds of events.
const (
	Connected Kind = iota
	Planned        // Of is known
	StepBegan
	StepOutput // Text is one line
	StepEnded
	Sending   // Text is the file; it may come from several goroutines at once
	Rebooting // Text says why
	Rebooted
	Reconnecting // Text says what was lost
	Notice
)

// Run brings the guest to what the plan says. The report is filled as far as the run came, also when it
// fails. Errors are those of guest, of Config.Plan, a *StepError, ErrBootLoop or ErrDetached.
func Run(ctx context.Context, c Config) (Report, error) {
	r := &run{Config: c, began: time.Now(), changes: make(map[steps.ID]int), data: make(map[steps.ID]string), redone: make(map[string]bool)}
	r.report.Host, r.report.Found = c.Host, c.First
	err := r.converge(ctx)
	if r.conn != nil {
		r.report.Execs += r.conn.Execs()
		r.release()
		r.conn.Close()
	}
	r.report.Seconds = time.Since(r.began).Seconds()
	r.report.GuestTime = r.inGuest.Seconds()
	r.report.Result = "done"
	r.conclude(err)
	if err == nil && r.Remember != nil && !r.guessed {
		r.Remember(r.raw)
	}
	if err != nil {
		r.report.Result = "failed"
		r.report.Error = problem(err)
	}
	return r.report, err
}

func problem(err error) *Problem {
	p := &Problem{Message: err.Error()}
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		p.Hint = h.Hint()
	}
	if s, ok := errors.AsType[*StepError](err); ok {
		p.Step, p.Hint, p.Tail = s.Step, s.Hint, s.Tail
		p.Verdict, p.Tried, p.Advice = s.Verdict, s.Tried, s.Advice
	}
	if s, ok := errors.AsType[*plan.Refusal](err); ok {
		p.Step, p.Hint = s.Step, s.Hint
	}
	return p
}

// run is the state of one Run.
type run struct {
	Config
	conn    *guest.Conn
	lease   *guest.Lease
	facts   facts.Facts
	journal []Record
	plan    plan.Plan
	report  Report
	began   time.Time
	inGuest time.Duration
	raw     []byte              // the facts as the guest printed them
	guess   *guess              // what was asked along with them
	guessed bool                // the last guess was right
	boots   string              // the kernel that the last reboot was to start, "" none asked for yet
	booted  int                 // boots that were seen to have come, those asked for among them
	kept    int                 // raw logs written
	warned  []string            // what steps warned of, in this run
	changes map[steps.ID]int    // how often a step had to be brought about since a remedy was last tried
	data    map[steps.ID]string // what the last look at a step found for programs, as JSON
	left    *diagnosis.Verdict  // what the diagnosis began with and no remedy helped
	redone  map[string]bool     // verdicts for which the run went back to the step that sees to them
}

// quietAfter is how long a step may print nothing before the user is told what it is at. Building an
// initramfs or a module prints nothing for minutes on a small guest; a prompt prints nothing for ever.
const quietAfter = 3 * time.Minute

// verdict says why a pass ended without an error and the run is not done.
type verdict int

const (
	done verdict = iota
	again
)

// converge makes passes until one finds nothing to do. A pass that loses its connection is made again
// from the top: what it did is in the guest, and so is the job that it followed.
func (r *run) converge(ctx context.Context) error {
	lost := 0
	for {
		v, err := r.pass(ctx)
		if failed, ok := errors.AsType[*StepError](err); ok {
			v, err = r.cure(ctx, failed)
		} else if err == nil && v == done {
			v, err = r.settle(ctx)
		}
		switch {
		case errors.Is(err, guest.ErrDisconnected) && ctx.Err() == nil && lost < 20:
			lost++
			r.tell(Event{Kind: Reconnecting, Text: err.Error()})
			if err := r.reconnect(ctx); err != nil {
				return err
			}
		case err != nil:
			return err
		case v == done:
			return r.symptom()
		}
	}
}

func (r *run) pass(ctx context.Context) (verdict, error) {
	if err := r.look(ctx); err != nil {
		return done, err
	}
	if r.boots != "" && r.facts.Kernel.Running != r.boots {
		return done, &StepError{Step: "reboot", What: fmt.Sprintf("the guest started kernel %s, planned was %s", r.facts.Kernel.Running, r.boots),
			Hint: "look at the bootloader's default entry; gpuguest built the driver for " + r.boots}
	}
	r.boots = ""
	if r.First != nil {
		if err := r.begin(ctx); err != nil {
			return done, err
		}
	}
	p, err := r.Plan(r.facts)
	if err != nil {
		return done, err
	}
	r.plan = p
	r.describe()
	items := p.Items()
	r.tell(Event{Kind: Planned, Of: len(items)})
	outcomes, err := r.outcomes(ctx, items)
	if err != nil {
		return done, err
	}
	return r.carryOut(ctx, items, outcomes)
}

// look takes the lock and the facts in one command, and follows what an earlier run left working.
func (r *run) look(ctx context.Context) error {
	gone := make(map[string]bool)
	for {
		var asking *question
		if r.conn == nil {
			// Both take their time, and reaching the guest is mostly waiting.
			made := make(chan question, 1)
			go func() { made <- r.question() }()
			conn, err := r.Dial(ctx)
			q := <-made
			if err != nil {
				return err
			}
			asking = &q
			r.conn = conn
			r.report.Connections++
			r.tell(Event{Kind: Connected})
		}
		raw, err := r.ask(ctx, asking)
		if err != nil {
			return err
		}
		f, err := facts.Parse(raw)
		if err != nil {
			return fmt.Errorf("facts: %w", err)
		}
		if old := r.facts.BootID; old != "" && old != f.BootID {
			r.booted++
		}
		r.facts, r.raw = f, raw
		r.journal, _ = ParseJournal(f.State.Journal)
		open := slices.DeleteFunc(slices.Clone(f.State.Jobs), func(name string) bool { return gone[name] })
		if len(open) == 0 {
			return nil
		}
		// What was checked while a job of an earlier run was at work says nothing.
		r.guess = nil
		for _, name := range open {
			r.tell(Event{Kind: Notice, Text: "following " + name + ", which an earlier run started"})
			res, err := r.follow(ctx, name, 0, 0, "")
			if err != nil {
				return err
			}
			// One that was cut off, before it had come up even, never gets an exit code: the guest goes on
			// listing it, and the step's check decides what is left to do.
			gone[name] = res.State != guest.Exited
		}
	}
}

// ask runs the facts script: the first time under the lock, which it keeps, and later without. The question is the one to
// ask the first time, nil where it was not made beforehand.
func (r *run) ask(ctx context.Context, asking *question) ([]byte, error) {
	began := time.Now()
	defer func() { r.inGuest += time.Since(began) }()
	r.guess = nil
	if r.lease == nil {
		if asking == nil {
			q := r.question()
			asking = &q
		}
		res, lease, err := r.conn.Hold(ctx, guest.HoldSpec{Owner: r.Owner, Wait: r.LockWait, Script: asking.script, Timeout: checkTime})
		if err != nil {
			return nil, err
		}
		r.lease = lease
		out := res.Stdout
		if g := asking.guess; g != nil {
			out, r.guess = g.cut(out), g
		}
		return out, r.keep("facts", out)
	}
	res, err := r.conn.Run(ctx, guest.Command{Script: sh.Lean(assets.Facts), Timeout: 5 * time.Minute})
	if err != nil {
		return nil, err
	}
	return res.Stdout, r.keep("facts", res.Stdout)
}

// keep puts what the guest answered among the raw logs, numbered in the order of asking.
func (r *run) keep(what string, raw []byte) error {
	if r.Logs == nil {
		return nil
	}
	r.kept++
	w, err := r.Logs(fmt.Sprintf("%03d-%s", r.kept, what))
	if err != nil {
		return err
	}
	if _, err := w.Write(raw); err != nil {
		w.Close()
		return err
	}
	return w.Close()
}

func (r *run) release() {
	if r.lease != nil {
		// A lease that cannot be given back ends by itself when its client is silent.
		_ = r.lease.Release()
		r.lease = nil
	}
}

// checkTime is how long all checks together may take. Most take milliseconds; NVIDIA's own programs, where they
// are asked for, have deadlines of up to ten minutes each.
const checkTime = 30 * time.Minute

// Check asks every item's check in one command and changes nothing. It returns what each said, by step, and
// the guest's whole answer.
func Check(ctx context.Context, conn *guest.Conn, d distros.Distro, items []plan.Item) (map[steps.ID]plan.Outcome, []byte, error) {
	nonce, err := newNonce()
	if err != nil {
		return nil, nil, err
	}
	res, err := conn.Run(ctx, guest.Command{Script: plan.Checks(d, items, nonce), Timeout: checkTime})
	if err != nil {
		return nil, nil, err
	}
	return plan.Judge(items, plan.ParseChecks(string(res.Stdout), nonce)), res.Stdout, nil
}

// outcomes are the answers of all checks of the plan: those that came with the facts, when they were the right
// ones, else the guest is asked.
func (r *run) outcomes(ctx context.Context, items []plan.Item) (map[steps.ID]plan.Outcome, error) {
	g := r.guess
	r.guess = nil
	if !g.fits(r.plan) {
		r.guessed = false
		return r.check(ctx, items)
	}
	r.guessed = true
	return r.told(plan.Judge(items, plan.ParseChecks(string(g.answer), g.nonce)), g.answer)
}

func (r *run) check(ctx context.Context, items []plan.Item) (map[steps.ID]plan.Outcome, error) {
	began := time.Now()
	outcomes, raw, err := Check(ctx, r.conn, r.plan.Distro, items)
	r.inGuest += time.Since(began)
	if err != nil {
		return nil, err
	}
	return r.told(outcomes, raw)
}

// told keeps what the guest answered to the checks, and takes the warnings out of it.
func (r *run) told(outcomes map[steps.ID]plan.Outcome, raw []byte) (map[steps.ID]plan.Outcome, error) {
	for _, id := range slices.Sorted(maps.Keys(outcomes)) {
		o := outcomes[id]
		r.data[id] = o.Data
		var why []string
		for line := range strings.Lines(o.Why) {
			if w, ok := strings.CutPrefix(line, WarningMark); ok {
				r.warn(strings.TrimSpace(w))
			} else {
				why = append(why, line)
			}
		}
		o.Why = strings.TrimSpace(strings.Join(why, ""))
		outcomes[id] = o
	}
	return outcomes, r.keep("checks", raw)
}

func newNonce() (string, error) {
	b := make([]byte, 12)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("random bytes: %w", err)
	}
	return "--" + hex.EncodeToString(b), nil
}

// carryOut brings about what is not met. Every change ends the pass with "again": facts that were taken
// before a change are not what the next step should be decided by.
func (r *run) carryOut(ctx context.Context, items []plan.Item, outcomes map[steps.ID]plan.Outcome) (verdict, error) {
	changed := false
	for i, it := range items {
		if it.Fresh {
			continue
		}
		o := outcomes[it.ID]
		switch {
		case o.Met:
			r.note(i, len(items), it, Met, o.Why, 0)
			continue
		case it.Actions == nil && changed:
			now, err := r.check(ctx, []plan.Item{it})
			if err != nil {
				return done, err
			}
			if o = now[it.ID]; o.Met {
				r.note(i, len(items), it, Met, o.Why, 0)
				continue
			}
			fallthrough
		case it.Actions == nil:
			return done, r.failed(i, len(items), it, o.Why, "")
		}
		if v, err := r.apply(ctx, i, len(items), it); v == again || err != nil {
			return v, err
		}
		changed = true
		if it.Replan {
			return again, nil
		}
	}
	if v, err := r.boot(ctx, changed); v == again || err != nil {
		return v, err
	}
	if changed {
		return again, nil
	}
	if err := r.takenBack(ctx); err != nil {
		return done, err
	}
	for i, it := range items {
		if !it.Fresh {
			continue
		}
		o := outcomes[it.ID]
		switch {
		case o.Met:
			r.note(i, len(items), it, Met, o.Why, 0)
		case it.Actions != nil:
			if v, err := r.apply(ctx, i, len(items), it); v == again || err != nil {
				return v, err
			}
			if changed = true; it.AtBoot && !it.Late {
				return again, nil // what comes behind it is about the guest as it is after that boot
			}
		case !changed:
			err := r.failed(i, len(items), it, o.Why, "")
			r.rest(i+1, items, outcomes)
			return done, err
		}
	}
	if changed {
		return again, nil
	}
	return done, nil
}

// rest notes what the guest answered to the proofs behind one that failed: all were asked, and each that failed has
// its own evidence.
func (r *run) rest(from int, items []plan.Item, outcomes map[steps.ID]plan.Outcome) {
	for i := from; i < len(items); i++ {
		it := items[i]
		o, asked := outcomes[it.ID]
		switch {
		case !it.Fresh || it.Actions != nil || !asked:
		case o.Met:
			r.note(i, len(items), it, Met, o.Why, 0)
		default:
			r.note(i, len(items), it, Failed, o.Why, 0)
		}
	}
}

// waitedInVain is what a step's own waiting ends with (EX_TEMPFAIL of sysexits.h); the last line that it
// printed names what it waited for.
const waitedInVain = 75

// apply runs one item's script as a job and follows it. It answers again when the job was cut off, so
// that only a new look at the guest can tell how far it came.
func (r *run) apply(ctx context.Context, i, of int, it plan.Item) (verdict, error) {
	if r.changes[it.ID]++; r.changes[it.ID] > 3 {
		what := "it does not stay as it was put"
		if n := r.booted - r.report.Reboots; n > 0 {
			what += fmt.Sprintf("; the guest booted meanwhile without being asked to, boots: %d", n)
		}
		return done, r.failed(i, of, it, what, "")
	}
	r.tell(Event{Kind: StepBegan, Step: it.ID, Title: it.Title, Index: i + 1, Of: of})
	if err := r.send(ctx, i, of, it); err != nil {
		return done, err
	}
	script := r.plan.Script(it)
	began := time.Now()
	res, text, err := r.job(ctx, plan.JobName(it.ID, script), script, i, of, it.ID)
	if err != nil {
		return done, err
	}
	switch {
	case res.State != guest.Exited:
		r.tell(Event{Kind: Notice, Text: fmt.Sprintf("%s was cut off (%s); looking again", it.ID, res.State)})
		return again, nil
	case res.Exit == plan.NotMet:
		return done, r.failed(i, of, it, afterActions(text), text)
	case res.Exit == waitedInVain:
		return done, r.failed(i, of, it, tail(text, 1), text)
	case res.Exit != 0:
		return done, r.failed(i, of, it, fmt.Sprintf("exit %d", res.Exit), text)
	}
	state := Changed
	if bytes.HasSuffix(bytes.TrimSpace([]byte(text)), []byte("gpuguest: already so")) {
		state = Met
	}
	r.note(i, of, it, state, "", time.Since(began))
	return done, nil
}

// send uploads what an item's script will look for.
func (r *run) send(ctx context.Context, i, of int, it plan.Item) error {
	for _, a := range it.Actions {
		s, ok := a.(action.Send)
		if !ok {
			continue
		}
		local, ok := r.Files[s.SHA256]
		if !ok {
			return &StepError{Step: it.ID, What: fmt.Sprintf("%s must have SHA-256 %s, and no file that was given has it", path.Base(s.Path), s.SHA256),
				Hint: "see that the file is the right one and whole"}
		}
		info, err := os.Stat(local)
		if err != nil {
			return err
		}
		var turn func(context.Context) (func(), error)
		if info.Size() >= BigFile {
			turn = r.SendTurn
		}
		_, err = r.conn.Put(ctx, guest.File{
			Turn: turn,
			Path: s.Path, Mode: 0o600, Size: info.Size(), SHA256: s.SHA256,
			Open: func() (io.ReadSeekCloser, error) { return os.Open(local) },
			Progress: func(done, total int64) {
				r.tell(Event{Kind: Sending, Step: it.ID, Index: i + 1, Of: of, Text: path.Base(s.Path), Done: done, Total: total})
			},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// afterActions returns what the script said of a check that still fails: "applied, but …" to its end.
func afterActions(text string) string {
	if i := strings.LastIndex(text, "gpuguest: applied, but "); i >= 0 {
		return strings.TrimSpace(strings.TrimPrefix(text[i:], "gpuguest: "))
	}
	return "applied, but its aim is not met"
}

func (r *run) failed(i, of int, it plan.Item, what, text string) error {
	e := &StepError{Step: it.ID, What: what, Hint: it.Hint, Verify: it.Fresh && !it.Late, Unsupported: it.Refuses, text: what + "\n" + text}
	if text != "" {
		e.Tail = tail(text, 15)
	}
	if r.Hint != nil {
		if h := r.Hint(e.text); h != "" {
			e.Hint = h
		}
	}
	r.note(i, of, it, Failed, what, 0)
	return e
}

// note records what became of a step, replacing what an earlier pass said of it.
func (r *run) note(i, of int, it plan.Item, state, detail string, took time.Duration) {
	s := StepReport{ID: it.ID, Title: it.Title, State: state, Detail: detail, Data: json.RawMessage(r.data[it.ID]), Seconds: took.Seconds()}
	for n, old := range r.report.Steps {
		if old.ID != it.ID {
			continue
		}
		if old.State == Changed && state == Met {
			s.State, s.Seconds = Changed, old.Seconds
		}
		r.report.Steps[n] = s
		r.tell(Event{Kind: StepEnded, Step: it.ID, Title: it.Title, Index: i + 1, Of: of, State: s.State, Text: detail})
		return
	}
	r.report.Steps = append(r.report.Steps, s)
	r.tell(Event{Kind: StepEnded, Step: it.ID, Title: it.Title, Index: i + 1, Of: of, State: state, Text: detail})
}

// job starts a job, or follows the one of the same name that runs already.
func (r *run) job(ctx context.Context, name, script string, i, of int, id steps.ID) (guest.JobResult, string, error) {
	out, text, end, err := r.sink(name, i, of, id)
	if err != nil {
		return guest.JobResult{}, "", err
	}
	began := time.Now()
	res, err := r.conn.RunJob(ctx, guest.JobSpec{Name: name, Script: script, Quiet: quietAfter, OnQuiet: func(q guest.QuietJob) {
		r.tell(Event{Kind: Notice, Step: id, Text: fmt.Sprintf("%s has been silent for %s; at work in the guest: %s", id, q.Since.Round(time.Second), strings.ReplaceAll(strings.TrimSpace(q.Processes), "\n", "; "))})
	}}, out)
	r.inGuest += time.Since(began)
	if cerr := end(); err == nil {
		err = cerr
	}
	return res, text.String(), r.detached(ctx, err, id)
}

func (r *run) follow(ctx context.Context, name string, i, of int, id steps.ID) (guest.JobResult, error) {
	out, _, end, err := r.sink(name, i, of, id)
	if err != nil {
		return guest.JobResult{}, err
	}
	began := time.Now()
	res, err := r.conn.FollowJob(ctx, name, guest.JobPosition{}, out)
	r.inGuest += time.Since(began)
	if cerr := end(); err == nil {
		err = cerr
	}
	return res, r.detached(ctx, err, steps.ID(name))
}

func (r *run) detached(ctx context.Context, err error, id steps.ID) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %s goes on in the guest: %w", ErrDetached, id, context.Cause(ctx))
	}
	return err
}

// warn puts a warning into the report, once.
func (r *run) warn(text string) {
	if !slices.Contains(r.warned, text) {
		r.warned, r.report.Warnings = append(r.warned, text), append(r.report.Warnings, text)
	}
}

// sink is where a job's output goes: whole to its log, line by line to whoever listens, and the end of it
// into what an error quotes.
func (r *run) sink(name string, i, of int, id steps.ID) (io.Writer, *lastBytes, func() error, error) {
	text := &lastBytes{limit: 64 << 10}
	lines := &lineWriter{each: func(s string) {
		if w, ok := strings.CutPrefix(s, WarningMark); ok {
			r.warn(w)
		}
		r.tell(Event{Kind: StepOutput, Step: id, Index: i + 1, Of: of, Text: s})
	}}
	writers := []io.Writer{text, lines}
	end := func() error { return nil }
	if r.Logs != nil {
		w, err := r.Logs(name)
		if err != nil {
			return nil, nil, nil, err
		}
		writers = append(writers, w)
		end = w.Close
	}
	return io.MultiWriter(writers...), text, end, nil
}

// describe puts what the plan says into the report.
func (r *run) describe() {
	c, f := r.plan.Choice, r.facts
	r.report.Distro, r.report.Kernel = r.plan.Distro.Name, f.Kernel.Running
	r.report.Flavor, r.report.Source, r.report.Modules = c.Flavor, c.Source, c.Modules
	r.report.Driver, r.report.Warnings = f.Driver.Loaded, slices.Concat(c.Warnings, r.warned)
	r.report.GPUs = nil
	for _, g := range c.GPUs {
		r.report.GPUs = append(r.report.GPUs, g.Title())
	}
	r.report.Owed = Owed(r.journal, f.BootID)
}

func (r *run) tell(e Event) {
	if r.Tell != nil {
		r.Tell(e)
	}
}

// write appends one record to the guest's journal; the guest fills in time and boot.
func (r *run) write(ctx context.Context, rec Record) error {
	text, err := json.Marshal(struct {
		Event  string   `json:"event"`
		Step   steps.ID `json:"step,omitempty"`
		Reason string   `json:"reason,omitempty"`
		Remedy string   `json:"remedy,omitempty"`
		Cause  string   `json:"cause,omitempty"`
		With   string   `json:"with,omitempty"`
	}{rec.Event, rec.Step, rec.Reason, rec.Remedy, rec.Cause, rec.With})
	if err != nil {
		return err
	}
	body := string(text[1 : len(text)-1])
	res, err := r.conn.Run(ctx, guest.Command{Script: "set -eu\n" + assets.StepLibrary + "journal " + sh.Quote(body), Timeout: time.Minute})
	if err != nil {
		return err
	}
	if res.Exit != 0 {
		return fmt.Errorf("journal: exit %d: %s", res.Exit, tail(string(res.Stderr), 3))
	}
	return nil
}
