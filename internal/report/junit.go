package report

import (
	"cmp"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/jstemmer/go-junit-report/v2/junit"

	"gpuguest/internal/engine"
)

// JUnit writes the results as JUnit XML, which is what CI systems read: a guest is a test suite and a step a test.
// A step that failed is a failure, and a run that ended outside of a step, as at a guest that is out of reach, is
// an error in a test called "run". The form is the one that both schemas in use take, Jenkins' (junit-10.xsd of
// its xunit plugin) and Apache Ant's (windyroad's JUnit.xsd); the second knows no totals of all suites, so there
// are none.
func JUnit(w io.Writer, guests []Guest) error {
	var all junit.Testsuites
	for i, g := range guests {
		all.Suites = append(all.Suites, suite(i, g))
	}
	if _, err := io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"); err != nil {
		return err
	}
	return all.WriteXML(w)
}

func suite(i int, g Guest) junit.Testsuite {
	host := cmp.Or(xmlText(g.Host), "unknown")
	s := junit.Testsuite{
		Name: host, Package: "gpuguest", ID: i, Hostname: host,
		Time: decimal(g.Seconds), Timestamp: g.Time.Format("2006-01-02T15:04:05"),
		SystemOut: &junit.Output{Data: xmlText(strings.Join(g.Warnings, "\n"))}, SystemErr: &junit.Output{},
	}
	if g.Time.IsZero() {
		s.Timestamp = time.Unix(0, 0).UTC().Format("2006-01-02T15:04:05")
	}
	for _, p := range []struct{ name, value string }{
		{"outcome", g.Outcome()}, {"distro", g.Distro}, {"kernel", g.Kernel}, {"driver", g.Driver}, {"flavor", g.Flavor},
		{"gpus", strings.Join(g.GPUs, "; ")},
	} {
		if p.value != "" {
			s.AddProperty(p.name, xmlText(p.value))
		}
	}
	failure, failed := g.Failure()
	result := &junit.Result{Message: xmlText(failure.Title()), Type: xmlText(cmp.Or(failure.ID, "failed")), Data: xmlText(told(failure))}
	for _, step := range g.Steps {
		c := junit.Testcase{Name: xmlText(string(step.ID)), Classname: host, Time: decimal(step.Seconds)}
		switch step.State {
		case engine.Met, engine.Changed:
		case engine.Failed:
			c.Failure = result
			if string(step.ID) != failure.Step {
				c.Failure = &junit.Result{Message: xmlText(firstLine(step.Detail)), Type: "failed", Data: xmlText(step.Detail)}
			} else {
				failed = false
			}
		default:
			c.Skipped = &junit.Result{Message: xmlText(step.State)}
		}
		s.AddTestcase(c)
	}
	if failed {
		s.AddTestcase(junit.Testcase{Name: cmp.Or(xmlText(failure.Step), "run"), Classname: host, Time: decimal(0), Error: result})
	}
	return s
}

// told is a failure's evidence and what to do about it.
func told(f Failure) string {
	text := f.Evidence
	if f.Where != "" {
		text += "\nwhere: " + Place(f.Where)
	}
	if f.Remedy != "" {
		text += "\ndo: " + f.Remedy
	}
	if f.Tried != "" {
		text += "\ntried, and taken back: " + f.Tried
	}
	if f.Advice != "" {
		text += "\n" + f.Advice
	}
	return strings.TrimSpace(text)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// decimal is a number of seconds to the millisecond, without an exponent.
func decimal(seconds float64) string { return strconv.FormatFloat(seconds, 'f', 3, 64) }

// xmlText puts a replacement character in the place of each that XML 1.0 cannot hold (its production Char): a
// guest's output may be anything.
func xmlText(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t', r == '\n', r >= 0x20 && r <= 0xd7ff, r >= 0xe000 && r <= 0xfffd, r >= 0x10000:
			return r
		case r == '\r':
			return -1
		}
		return '\ufffd'
	}, s)
}
