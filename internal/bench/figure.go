package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// figure is one row of the table: gpuguest's samples beside its peer's, taken in turn in the same run. Its
// JSON names are for whoever compares two runs.
type figure struct {
	Row    string    `json:"row"`    // what ROW selects: "upload"
	What   string    `json:"figure"` // "256 MiB upload, 100 ms"
	Unit   string    `json:"unit"`   // of the samples: "s", "MB", ""
	Ours   []float64 `json:"ours"`
	Peer   []float64 `json:"peer,omitempty"`
	Beside string    `json:"peer_is,omitempty"` // "scp"; "" when there is no peer
	Target target    `json:"target"`
	Note   string    `json:"note,omitempty"` // how the figure came about, where its row does not say
}

// target is what a figure is to reach.
type target struct {
	Kind  targetKind `json:"kind,omitempty"`
	Limit float64    `json:"limit,omitempty"`
}

type targetKind string

const (
	noTarget    targetKind = ""        // shown for comparison
	timesAtMost targetKind = "times"   // ours is at most Limit times the peer's
	timesFaster targetKind = "faster"  // the peer's is at least Limit times ours
	atMost      targetKind = "at most" // ours is at most Limit, in the figure's unit
)

// median returns the middle sample, or the mean of the two in the middle; 0 of none.
func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	switch n := len(s); {
	case n == 0:
		return 0
	case n%2 == 1:
		return s[n/2]
	default:
		return (s[n/2-1] + s[n/2]) / 2
	}
}

// ratio is what the target is about: ours over the peer's, or the peer's over ours where faster is asked
// for, or nothing. It is 0 without a peer.
func (f figure) ratio() float64 {
	ours, peer := median(f.Ours), median(f.Peer)
	switch {
	case ours == 0 || peer == 0:
		return 0
	case f.Target.Kind == timesFaster || f.Target.Kind == noTarget:
		return peer / ours
	default:
		return ours / peer
	}
}

// met tells whether the target is reached; known is false when there is none, or no sample.
func (f figure) met() (met, known bool) {
	if len(f.Ours) == 0 {
		return false, false
	}
	switch f.Target.Kind {
	case timesAtMost:
		return f.ratio() <= f.Target.Limit, len(f.Peer) > 0
	case timesFaster:
		return f.ratio() >= f.Target.Limit, len(f.Peer) > 0
	case atMost:
		return median(f.Ours) <= f.Target.Limit, true
	default:
		return false, false
	}
}

func (t target) String() string {
	limit := strconv.FormatFloat(t.Limit, 'g', -1, 64)
	switch t.Kind {
	case timesAtMost:
		return "<= " + limit + "x"
	case timesFaster:
		return ">= " + limit + "x faster"
	case atMost:
		return "<= " + limit
	default:
		return "-"
	}
}

func withUnit(samples []float64, unit string) string {
	if len(samples) == 0 {
		return "-"
	}
	return strings.TrimSpace(strconv.FormatFloat(median(samples), 'g', 3, 64) + " " + unit)
}

// printTable writes the figures, one a line, and below them the notes.
func printTable(w io.Writer, figures []figure) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, "row\tfigure\truns\tgpuguest\tpeer\tbeside\tratio\tto reach\tmet")
	for _, f := range figures {
		ratio, word := "-", "-"
		if r := f.ratio(); r > 0 {
			ratio = fmt.Sprintf("%.2fx", r)
		}
		if met, known := f.met(); known {
			word = map[bool]string{true: "yes", false: "NO"}[met]
		}
		beside := f.Beside
		if beside == "" {
			beside = "-"
		}
		fmt.Fprintf(tab, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Row, f.What, len(f.Ours),
			withUnit(f.Ours, f.Unit), withUnit(f.Peer, f.Unit), beside, ratio, f.Target, word)
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	for _, f := range figures {
		if f.Note != "" {
			if _, err := fmt.Fprintf(w, "%s: %s: %s\n", f.Row, f.What, f.Note); err != nil {
				return err
			}
		}
	}
	return nil
}
