// Package diagnosis says what a log means: which of its lines tell of a failure, what caused it, where it
// must be put right (in the guest, on the host, in the hardware, by the user) and what to do next. It knows
// the lines of assets/signatures.tsv and the numbered errors of assets/xids.tsv, and puts a cause before the
// symptoms it explains. It never runs anything and never changes anything; whoever calls it decides whether
// to apply a Fix.
package diagnosis

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// The severities of a verdict, from worst to least. A fatal one keeps the GPU from working, a warning may,
// and an information is worth knowing and no failure at all.
const (
	Fatal = "fatal"
	Warn  = "warn"
	Info  = "info"
)

// The places a cause can be put right in. Guest is the machine the log came from, Host the hypervisor under
// it, Hardware the card, its power and its slot, and User what was asked for.
const (
	Guest    = "guest"
	Host     = "host"
	Hardware = "hardware"
	User     = "user"
)

// A Verdict is one thing a log tells, with its address.
type Verdict struct {
	ID       string `json:"id"`       // stable: a signature's id, or "xid-79" for a numbered error
	Severity string `json:"severity"` // Fatal, Warn or Info
	Where    string `json:"where"`    // Guest, Host, Hardware or User
	Cause    string `json:"cause"`
	Remedy   string `json:"remedy"` // what to do next, one imperative sentence without its full stop

	// Fix is what gpuguest can do by itself, a row of assets/remedies.tsv: "kernel-arg pci=realloc", "step
	// headers", "flavor open", "reboot"; empty where nothing is. Once it was applied and the line is still there,
	// Tried tells what next.
	Fix string `json:"fix,omitempty"`

	Evidence string `json:"evidence"` // the line, without control characters, at most 300 bytes
	Line     int    `json:"line"`     // counted from 1
	Source   string `json:"source"`   // the file's name as it was given to Read

	// Past is true when the file tells of a later boot in which the line did not come again. Such a verdict
	// is never worse than Info and explains nothing of today.
	Past bool `json:"past,omitempty"`
}

// Before is a verdict of today when its log tells of an earlier boot. See Past.
func (v Verdict) Before() Verdict {
	v.Past, v.Severity, v.Fix, v.Cause = true, Info, "", "in an earlier boot, "+v.Cause
	return v
}

// Hint is the verdict in one line for a person: the cause and what to do.
func (v Verdict) Hint() string {
	return "cause: " + v.Cause + " — " + v.Remedy
}

// String is the verdict in one line with its address.
func (v Verdict) String() string {
	at := ""
	if v.Source != "" {
		at = fmt.Sprintf(" %s:%d:", v.Source, v.Line)
	}
	return fmt.Sprintf("%s (%s, %s):%s %s", v.ID, v.Severity, v.Where, at, v.Hint())
}

// Tried is the verdict after fix was applied and the line came again: the next thing that may help takes its
// place, and after the last one Fix is empty and the verdict moves to where the catalogue says (an empty PCI
// window that pci=realloc does not fill is the host's). A fix that is none of the verdict's changes nothing.
func (v Verdict) Tried(fix string) Verdict {
	c, err := loaded()
	if err != nil {
		return v
	}
	s, ok := c.byID[v.ID]
	if !ok {
		return v
	}
	at := slices.Index(s.Fixes, fix)
	if at < 0 || v.Fix == "" || slices.Index(s.Fixes, v.Fix) > at {
		return v
	}
	if at+1 < len(s.Fixes) {
		v.Fix = s.Fixes[at+1]
		if arg, ok := strings.CutPrefix(v.Fix, kernelArg); ok {
			v.Remedy = "The argument before it did not help; install with `--kernel-arg " + arg + "`"
		}
		return v
	}
	v.Fix = ""
	if s.ThenWhere != "" {
		v.Where = s.ThenWhere
	}
	if s.ThenRemedy != "" {
		v.Remedy = s.ThenRemedy
	}
	return v
}

// On is the verdict for a machine that runs with the kernel command line given: fixes that are kernel
// arguments and stand there already count as tried, and so do those before them.
func (v Verdict) On(cmdline string) Verdict {
	c, err := loaded()
	if err != nil || c.byID[v.ID] == nil {
		return v
	}
	for _, fix := range slices.Backward(c.byID[v.ID].Fixes) {
		if arg, ok := strings.CutPrefix(fix, kernelArg); ok && hasArg(cmdline, arg) {
			return v.Tried(fix)
		}
	}
	return v
}

const kernelArg = "kernel-arg "

// hasArg also finds one of the comma-separated values of pci=, which the kernel takes apart the same way.
func hasArg(cmdline, arg string) bool {
	key, value, _ := strings.Cut(arg, "=")
	for _, word := range strings.Fields(cmdline) {
		if word == arg {
			return true
		}
		if k, values, _ := strings.Cut(word, "="); key == "pci" && k == key && slices.Contains(strings.Split(values, ","), value) {
			return true
		}
	}
	return false
}

// Rank puts verdicts in the order a person should read them and leaves each out but once: a cause before the
// symptoms it explains, the worse before the lesser, the specific before the general, then as they came. A
// cause is as severe as the worst it explains. The order does not depend on the order given.
func Rank(verdicts []Verdict) []Verdict {
	c, err := loaded()
	if err != nil {
		return verdicts
	}
	sorted := slices.Clone(verdicts)
	slices.SortStableFunc(sorted, address)
	type key struct {
		id, cause string
		past      bool
	}
	seen := map[key]bool{}
	sorted = slices.DeleteFunc(sorted, func(v Verdict) bool {
		k := key{v.ID, v.Cause, v.Past}
		again := seen[k]
		seen[k] = true
		return again
	})

	// The relation is closed over the whole catalogue and has no cycle (a test holds both), so whatever is
	// explained by b has every cause of b and b itself: the number of causes present orders causes first, and
	// one pass over all pairs carries the worst severity up.
	type item struct {
		Verdict
		worst, causes, rank int
	}
	items := make([]item, len(sorted))
	for i, v := range sorted {
		items[i] = item{Verdict: v, worst: weight(v.Severity), rank: c.rank(v.ID)}
		for _, o := range sorted {
			if v.Past || o.Past {
				continue
			}
			if c.explains(v.ID, o.ID) {
				items[i].worst = min(items[i].worst, weight(o.Severity))
			}
			if c.explains(o.ID, v.ID) {
				items[i].causes++
			}
		}
		items[i].Severity = severities[items[i].worst]
	}
	slices.SortStableFunc(items, func(a, b item) int {
		return cmp.Or(order(a.Past, b.Past), cmp.Compare(a.worst, b.worst), cmp.Compare(a.causes, b.causes), cmp.Compare(a.rank, b.rank), address(a.Verdict, b.Verdict))
	})
	for i := range items {
		sorted[i] = items[i].Verdict
	}
	return sorted
}

// Explains tells whether symptom follows from cause, directly or by way of others. What an earlier boot said explains
// nothing of today.
func (v Verdict) Explains(symptom Verdict) bool {
	c, err := loaded()
	return err == nil && v.Past == symptom.Past && c.explains(v.ID, symptom.ID)
}

// Cause is the verdict on a text such as the output of a command that failed: of what such a command says, the
// last failure is what stopped it, and what explains that one ranks first. An earlier failure that does not
// explain it, say a package source that could not be reached and was not needed, is passed over. It is false
// when the text tells of no failure that the catalogue knows.
func Cause(text string) (Verdict, bool) {
	c, err := loaded()
	if err != nil {
		return Verdict{}, false
	}
	// A reader over a string fails only on broken gzip, and what was read before that still counts.
	found, _ := Read("", strings.NewReader(text))
	ranked := slices.DeleteFunc(Rank(found), func(v Verdict) bool { return v.Severity == Info })
	if len(ranked) == 0 {
		return Verdict{}, false
	}
	stopped := ranked[0]
	for _, v := range ranked {
		if v.Severity == stopped.Severity && v.Line > stopped.Line {
			stopped = v
		}
	}
	for _, v := range ranked {
		if c.explains(v.ID, stopped.ID) {
			return v, true
		}
	}
	return stopped, true
}

var severities = []string{Fatal, Warn, Info}

// weight is the severity's place in severities; what is no severity counts as the least.
func weight(severity string) int {
	if at := slices.Index(severities, severity); at >= 0 {
		return at
	}
	return len(severities) - 1
}

func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// address orders verdicts by where they stand, so that equal input gives equal output.
func address(a, b Verdict) int {
	return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Line, b.Line), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Cause, b.Cause))
}
