package report

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	"gpuguest/internal/engine"
)

// Text writes what a person reads in ten seconds: of one guest its steps, of several the counts, a line each while
// they are few, and the causes of failures with the guests that have them.
func Text(w io.Writer, guests []Guest) error {
	var b strings.Builder
	if len(guests) == 1 {
		one(&b, guests[0])
	} else {
		many(&b, guests)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// one is the text of one guest. Why it failed is told where errors are, on standard error.
func one(w io.Writer, g Guest) {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if g.Distro != "" {
		fmt.Fprintf(tab, "%s: %s, kernel %s\n", g.Host, g.Distro, g.Kernel)
	}
	for _, gpu := range g.GPUs {
		fmt.Fprintf(tab, "  GPU %s\n", gpu)
	}
	tab.Flush()
	for _, warning := range g.Warnings {
		fmt.Fprintf(w, "  ! %s\n", warning)
	}
	for _, s := range g.Steps {
		detail, _, _ := strings.Cut(s.Detail, "\n")
		if s.State == engine.Failed && (g.Error == nil || s.ID == g.Error.Step) {
			detail = "" // it is told with the error
		}
		fmt.Fprintf(tab, "  %s\t%s\t%s\n", mark(s.State), s.ID, detail)
	}
	tab.Flush()
	for _, s := range g.Steps {
		if s.State != engine.Failed || g.Error != nil && s.ID == g.Error.Step || !strings.Contains(s.Detail, "\n") {
			continue
		}
		fmt.Fprintf(w, "  %s:\n", s.ID)
		for line := range strings.Lines(s.Detail) {
			fmt.Fprintf(w, "    %s\n", plain(strings.TrimSuffix(line, "\n")))
		}
	}
	for _, m := range g.Remedies {
		fmt.Fprintf(tab, "  %s\t%s\tfor %s\n", m.Result, m.Remedy, m.Cause)
	}
	tab.Flush()
	if len(g.Steps) > 0 {
		fmt.Fprintf(w, "%s: %s", g.Host, g.Result)
		if g.Driver != "" {
			fmt.Fprintf(w, ", driver %s", g.driver())
		}
		if c := g.CUDA(); c != "" {
			fmt.Fprintf(w, ", CUDA %s", c)
		}
		fmt.Fprintf(w, ", %s, %s over %s in %s\n", Count(g.Reboots, "reboot"), Count(g.Execs, "command"), Count(g.Connections, "connection"), Seconds(g.Seconds))
	}
}

func mark(state string) string {
	switch state {
	case engine.Met:
		return "ok"
	case engine.Changed:
		return "changed"
	case engine.Failed:
		return "FAILED"
	}
	return state
}

// lineEach is how many guests are few enough for a line each.
const lineEach = 20

func many(w io.Writer, guests []Guest) {
	fmt.Fprintln(w, Summarise(guests).Line())
	if len(guests) <= lineEach {
		tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		cuda := func(Guest) string { return "" }
		if proves(guests) {
			cuda = func(g Guest) string { return "\tCUDA " + cmp.Or(g.CUDA(), "not asked") }
		}
		for _, g := range guests {
			fmt.Fprintf(tab, "  %s\t%s\t%s\t%s%s\t%s\n", plain(g.Host), g.Outcome(), plain(g.driver()), Count(len(g.GPUs), "GPU"), cuda(g), Seconds(g.Seconds))
		}
		tab.Flush()
	}
	Causes(w, guests)
}

// Causes writes why guests failed, each cause once, with the guests that have it and what to do.
func Causes(w io.Writer, guests []Guest) {
	for i, group := range Groups(guests) {
		fmt.Fprintf(w, "%d. %s\n", i+1, plain(group.Title()))
		fmt.Fprintf(w, "   %s: %s\n", Count(len(group.Guests), "guest"), names(group.Guests, 8))
		if line := group.Telling(); line != "" {
			fmt.Fprintf(w, "   %s: %s\n", plain(group.Guests[0].Host), plain(line))
		}
		if group.Remedy != "" {
			fmt.Fprintf(w, "   do: %s\n", plain(group.Remedy))
		}
	}
}

// Title is the failure in one line: its place where that is known, the cause, and the id to look it up by.
func (f Failure) Title() string {
	title := f.Cause
	if f.Where != "" {
		title = Place(f.Where) + ": " + title
	} else if f.Step != "" {
		title = f.Step + ": " + title
	}
	if f.ID != "" {
		title += " (" + f.ID + ")"
	}
	return title
}

// Telling is the one line of a group that shows its cause: what the first guest's verdict quotes, "" where the
// title says it already.
func (g Group) Telling() string {
	if len(g.Guests) == 0 || len(g.Guests[0].Verdicts) == 0 {
		return ""
	}
	return g.Guests[0].Verdicts[0].Evidence
}

// names lists guests by name, at most so many.
func names(guests []Guest, most int) string {
	var all []string
	for _, g := range guests[:min(most, len(guests))] {
		all = append(all, plain(g.Host))
	}
	text := strings.Join(all, ", ")
	if more := len(guests) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// plain takes out of a guest's words what would steer a terminal or begin a new line.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, s)
}
