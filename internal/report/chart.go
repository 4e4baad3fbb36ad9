package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// mostBars is how many GPUs get bars of their own; of more, the slowest do, and a strip above shows them all.
const mostBars = 16

// chart is the drawing of copies against links: its numbers are places in an SVG.
type chart struct {
	Unmeasured    string // what is left out and why, "" nothing
	Strip         *strip // nil: few enough for bars alone
	Width, Height int
	Bottom        int
	Label         string
	Grid          []gridLine
	Bars          []bar
}

type gridLine struct {
	At, Text int
	Word     string
}

type bar struct {
	Guest, PCI, Value, Tip string
	Y, Y2                  int
	Left, NameAt, ValueAt  int
	H2D, D2H, Limit        string // places, "" nothing to draw
	Bad                    bool
}

// strip shows every GPU's copies as a share of its link, slowest first.
type strip struct {
	Width, Height, Left, Right int
	Full                       int // where 100 % is
	Label                      string
	Grid                       []gridLine
	H2D, D2H                   string // paths
}

type measured struct {
	guest string
	GPU
}

// newChart draws what was measured, nil when nothing was.
func newChart(guests []Guest) *chart {
	var all []measured
	unknown := 0
	for _, g := range guests {
		for _, m := range g.Measured() {
			if m.PinnedH2D <= 0 && m.PinnedD2H <= 0 {
				continue
			}
			if m.Link <= 0 {
				unknown++
			}
			all = append(all, measured{g.Host, m})
		}
	}
	if len(all) == 0 {
		return nil
	}
	// Slowest first; one whose link is unknown has no place in that order and comes last.
	slices.SortStableFunc(all, func(a, b measured) int {
		x, y := a.share(), b.share()
		return cmp.Or(cmp.Compare(truth(x == 0), truth(y == 0)), cmp.Compare(x, y))
	})
	c := bars(all[:min(mostBars, len(all))])
	if unknown > 0 {
		c.Unmeasured = Count(unknown, "GPU") + " with a link of unknown speed"
	}
	if len(all) > mostBars {
		c.Strip = newStrip(all[:len(all)-unknown])
		c.Label = fmt.Sprintf("The %d slowest of %d GPUs by their link, in GB/s", mostBars, len(all))
	}
	return c
}

const (
	chartWidth = 960
	barLeft    = 330 // left of it are the guest's name and the GPU's address
	barRight   = 770 // right of it are the figures
	barTop     = 26
	barPitch   = 30
)

func bars(all []measured) *chart {
	c := &chart{Width: chartWidth, Height: barTop + barPitch*len(all), Bottom: barTop + barPitch*len(all) - 4, Label: "GB/s of each GPU"}
	top := 0.0
	for _, m := range all {
		top = max(top, m.Link, m.PinnedH2D, m.PinnedD2H)
	}
	step := roundStep(top / 4)
	lines := math.Ceil(top / step)
	top = lines * step
	at := func(gbs float64) float64 { return barLeft + gbs/top*(barRight-barLeft) }
	for i := range int(lines) + 1 {
		v := float64(i) * step
		c.Grid = append(c.Grid, gridLine{At: int(at(v)), Word: strconv.FormatFloat(v, 'g', -1, 64)})
	}
	width := func(gbs float64) string {
		if gbs <= 0 {
			return ""
		}
		return strconv.FormatFloat(at(gbs)-barLeft, 'f', 1, 64)
	}
	for i, m := range all {
		y := barTop + i*barPitch
		b := bar{
			Guest: clip(m.guest, 28), PCI: m.PCI, Y: y, Y2: y + 20, Left: barLeft, NameAt: barLeft - 12, ValueAt: barRight + 12,
			H2D: width(m.PinnedH2D), D2H: width(m.PinnedD2H), Bad: len(m.Failures) > 0,
		}
		b.Value = figure(m.PinnedH2D) + " / " + figure(m.PinnedD2H)
		if m.Link > 0 {
			b.Limit = strconv.FormatFloat(at(m.Link), 'f', 1, 64)
			b.Value += " of " + figure(m.Link)
			if share := m.share(); share > 0 {
				b.Value += ", " + percent(share)
			}
		} else {
			b.Value += ", link unknown"
		}
		if b.Bad {
			b.Value = "✕ " + b.Value
		}
		b.Tip = strings.TrimSpace(m.guest + " " + m.PCI + " " + m.Name + ": " + b.Value + " GB/s. " + strings.Join(m.Failures, "; "))
		c.Bars = append(c.Bars, b)
	}
	return c
}

func newStrip(all []measured) *strip {
	const height, top, bottom, left = 200, 12, 188, 46
	s := &strip{Width: chartWidth, Height: height, Left: left, Right: chartWidth - 8}
	s.Label = fmt.Sprintf("All %d GPUs with a known link, slowest first: each copy as a share of the link", len(all))
	y := func(share float64) int { return bottom - int(math.Round(min(share, 1.1)/1.1*(bottom-top))) }
	for _, v := range []float64{0, 0.25, 0.5, 0.75, 1} {
		s.Grid = append(s.Grid, gridLine{At: y(v), Text: left - 8, Word: percent(v)})
	}
	s.Full = y(1)
	var h2d, d2h strings.Builder
	for i, m := range all {
		x := left + 4 + (s.Right-left-8)*i/max(1, len(all)-1)
		// A line of no length with round ends is a dot, in a third of a circle's bytes.
		if m.PinnedH2D > 0 {
			fmt.Fprintf(&h2d, "M%d %dh0", x, y(m.PinnedH2D/m.Link))
		}
		if m.PinnedD2H > 0 {
			fmt.Fprintf(&d2h, "M%d %dh0", x, y(m.PinnedD2H/m.Link))
		}
	}
	s.H2D, s.D2H = h2d.String(), d2h.String()
	return s
}

// roundStep is the next of 1, 2, 5, 10, 20, 50 … that is not below about.
func roundStep(about float64) float64 {
	if about <= 0 {
		return 1
	}
	size := math.Pow(10, math.Floor(math.Log10(about)))
	for _, m := range []float64{1, 2, 5, 10} {
		if size*m >= about {
			return size * m
		}
	}
	return size * 10
}

// clip shortens a name to so many characters.
func clip(s string, most int) string {
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most-1]) + "…"
}
