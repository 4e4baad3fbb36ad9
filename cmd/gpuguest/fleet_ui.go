package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"gpuguest/internal/engine"
	"gpuguest/internal/fleet"
	"gpuguest/internal/guest"
	"gpuguest/internal/report"
)

// fleetUI shows a batch: one bar with the counts where there is a terminal, and a line for each guest as it ends.
type fleetUI struct {
	w io.Writer

	mu     sync.Mutex
	bar    bar // nil: no terminal
	width  int
	counts counts
	work   map[string]*progress
	since  time.Time
	spoke  time.Time
	drawn  time.Time
	shown  bool // the bar is on the screen
	pulse  *pulse
}

// progress is what one guest is at.
type progress struct {
	name  string
	step  string
	since time.Time
}

// quietLine is how long a batch without a terminal says nothing while its guests are at work.
const quietLine = time.Minute

// redraw is how often the bar is drawn at most: a thousand guests that end together are not a thousand bars.
const redraw = 100 * time.Millisecond

func newFleetUI(w io.Writer, guests int) *fleetUI {
	return &fleetUI{w: w, counts: counts{all: guests}, work: make(map[string]*progress)}
}

// start begins to show; close ends it.
func (u *fleetUI) start() {
	u.mu.Lock()
	u.bar, u.width = newBar(u.w, u.counts.all, "reaching "+report.Count(u.counts.all, "guest"))
	u.since = time.Now()
	u.spoke = u.since
	u.mu.Unlock()
	u.pulse = beat(2*redraw, &u.mu, func() {
		if u.bar == nil && time.Since(u.spoke) > quietLine {
			u.say(fmt.Sprintf("%v%s", u.counts, u.longest()))
		}
		u.draw()
	})
}

func (u *fleetUI) close() {
	u.pulse.end()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.shown {
		_ = u.bar.Clear()
	}
}

// longest names how many are at work, and the one that has been at its step the longest.
func (u *fleetUI) longest() string {
	var oldest *progress
	for _, p := range u.work {
		if oldest == nil || p.since.Before(oldest.since) || p.since.Equal(oldest.since) && p.name < oldest.name {
			oldest = p
		}
	}
	if oldest == nil {
		return ""
	}
	return fmt.Sprintf(", %d at work; %s: %s for %s", len(u.work), oldest.name, oldest.step, report.Seconds(time.Since(oldest.since).Seconds()))
}

func (u *fleetUI) draw() {
	if u.bar == nil || time.Since(u.drawn) < redraw {
		return
	}
	u.drawn, u.shown = time.Now(), true
	_, short, _ := strings.Cut(u.counts.String(), ": ")
	_ = u.bar.Set(u.counts.done + u.counts.failed + u.counts.detached + u.counts.left)
	u.bar.Describe(cut(short+u.longest(), u.width-45))
	_ = u.bar.RenderBlank()
}

// say prints a line that stays.
func (u *fleetUI) say(line string) {
	if u.shown {
		_ = u.bar.Clear()
		u.shown = false
	}
	u.spoke = time.Now()
	fmt.Fprintln(u.w, printable(line))
	u.draw()
}

// writer takes what is said about one guest.
func (u *fleetUI) writer(name string) io.Writer {
	return &lineWriter{line: func(line string) {
		line = strings.TrimPrefix(line, "gpuguest: ")
		if !strings.HasPrefix(line, name+":") {
			line = name + ": " + line
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		u.say(line)
	}}
}

// begin notes that a guest is at work and returns what is told of its events.
func (u *fleetUI) begin(name string) func(engine.Event) {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := &progress{name: name, step: "reaching", since: time.Now()}
	u.work[name] = p
	return func(e engine.Event) {
		u.mu.Lock()
		defer u.mu.Unlock()
		at := func(step string) { p.step, p.since = step, time.Now() }
		switch e.Kind {
		case engine.Connected, engine.Rebooted:
			at("looking")
		case engine.StepBegan:
			at(string(e.Step))
		case engine.StepEnded:
			at("after " + string(e.Step))
		case engine.Rebooting:
			at("rebooting")
		case engine.Reconnecting:
			at("dialling again")
		case engine.StepOutput:
			if warning, ok := strings.CutPrefix(e.Text, engine.WarningMark); ok {
				u.say(name + ": warning: " + warning)
			}
		case engine.Notice:
			u.say(name + ": " + e.Text)
		}
	}
}

// end prints a guest's line. Those that never started are told of together, in the summary.
func (u *fleetUI) end(o outcome) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.work, o.Host)
	u.counts.add(o)
	var left *fleet.NotStartedError
	if !errors.As(o.err, &left) {
		r := o.Report
		u.say(strings.Join(slices.DeleteFunc([]string{r.Host + ": " + word(o), driver(r), reboots(r), why(o), report.Seconds(r.Seconds)}, func(s string) bool { return s == "" }), ", "))
	}
	u.draw()
}

// word is a guest's outcome in one.
func word(o outcome) string {
	var c counts
	switch c.add(o); {
	case c.done > 0:
		return "done"
	case c.left > 0:
		return "not started"
	case c.detached > 0:
		return "interrupted"
	}
	return "FAILED"
}

func driver(r engine.Report) string {
	if r.Driver == "" {
		return ""
	}
	return strings.TrimSpace("driver " + r.Driver + " " + r.Flavor)
}

func reboots(r engine.Report) string {
	if r.Reboots == 0 {
		return ""
	}
	return report.Count(r.Reboots, "reboot")
}

// why is the first line of a guest's error, without the guest's name.
func why(o outcome) string {
	if o.err == nil {
		return ""
	}
	text := strings.TrimPrefix(o.err.Error(), o.Host+": ")
	if t, err := guest.ParseTarget(o.Host); err == nil {
		text = strings.TrimPrefix(text, t.Host+": ")
	}
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// How much of a batch is shown: a line for each guest up to so many, beyond that for those that failed; and as many
// of the slowest.
const (
	linesEach   = 100
	slowestEach = 3
)

// printFleet writes the summary: a table, the causes of failures with what to do, the slowest, the counts.
func printFleet(w io.Writer, outcomes []outcome) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	shown := 0
	for _, o := range outcomes {
		if len(outcomes) > linesEach && o.err == nil {
			continue
		}
		if shown++; shown == 1 {
			fmt.Fprintln(tab, "guest\tresult\tdriver\treboots\ttime\twhy")
		}
		r := o.Report
		fmt.Fprintf(tab, "%s\t%s\t%s\t%d\t%s\t%s\n", r.Host, word(o), strings.TrimSpace(r.Driver+" "+r.Flavor), r.Reboots, report.Seconds(r.Seconds), printable(cut(why(o), 120)))
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	var failed []report.Guest
	for _, o := range outcomes {
		var left *fleet.NotStartedError
		if o.err != nil && !errors.As(o.err, &left) {
			failed = append(failed, o.Guest)
		}
	}
	for i, group := range report.Groups(failed) {
		names := group.Guests[0].Host
		if more := len(group.Guests) - 1; more > 0 {
			names += fmt.Sprintf(" and %d more", more)
		}
		fmt.Fprintf(w, "%d. %s: %s\n", i+1, names, printable(group.Title()))
		if group.Remedy != "" {
			fmt.Fprintf(w, "   do: %s\n", printable(group.Remedy))
		}
	}
	bySpeed := slices.DeleteFunc(slices.Clone(outcomes), func(o outcome) bool { return o.Seconds == 0 })
	slices.SortStableFunc(bySpeed, func(a, b outcome) int { return cmp.Compare(b.Seconds, a.Seconds) })
	if len(bySpeed) > slowestEach {
		var names []string
		for _, o := range bySpeed[:slowestEach] {
			names = append(names, fmt.Sprintf("%s %s", o.Host, report.Seconds(o.Seconds)))
		}
		fmt.Fprintf(w, "slowest: %s\n", strings.Join(names, ", "))
	}
	_, err := fmt.Fprintln(w, count(outcomes))
	return err
}
