package report

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html"
	"html/template"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"gpuguest/internal/engine"
)

//go:embed page/page.html
var pageHTML string

//go:embed page/page.css
var pageStyle string

//go:embed page/page.js
var pageScript string

// pageTemplate is read when a page is made, which most runs do not.
var pageTemplate = sync.OnceValue(func() *template.Template { return template.Must(template.New("page").Parse(pageHTML)) })

// HTML writes one page that needs nothing but itself: style, script and drawings are in it, and its own policy
// forbids the browser to fetch anything or to run any script but that one. Whatever a guest said is text to it.
func HTML(w io.Writer, guests []Guest, made time.Time) error {
	var b bytes.Buffer
	if err := pageTemplate().Execute(&b, newPage(guests, made)); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// page is what the template shows. Whatever it computes with is computed here.
type page struct {
	Title, Made string
	Policy      string
	Style       template.CSS
	Script      template.JS
	Tiles       []tile
	Causes      []pageCause
	Chart       *chart // nil: nothing was measured
	Failed      bool   // some guest failed
	Proves      bool   // some run was to prove that CUDA works
	Outcomes    []string
	Columns     []column
	Rows        []row
}

type tile struct{ Number, Word, Class string }

type column struct {
	Name   string
	Number bool
}

// pageCause is a Group.
type pageCause struct {
	pageFailure
	Count       string
	First, Rest []link
}

type link struct {
	Host  string
	Index int
}

type pageFailure struct {
	Title, Place, ID, Step, Evidence string
	Tried, Advice                    string
	Remedy                           template.HTML
}

type row struct {
	Index                      int
	Host, Outcome              string
	OK, Open                   bool
	Cause, Where               string
	Driver, CUDA, Distro, GPUs string
	Link, LinkValue            string // the slowest copy as a share of its link
	Seconds, SecondsValue      string
	Failure                    *pageFailure
	Also                       []also
	Warnings                   []string
	Facts                      string
	Remedies                   []engine.RemedyReport
	Steps                      []pageStep
	Measured                   []pageGPU
	GPUList                    []string
}

type also struct {
	Place, Cause, ID string
	Remedy           template.HTML
}

type pageStep struct{ ID, Word, Class, Detail string }

type pageGPU struct {
	Name, PCI, Link, H2D, D2H, Pageable, D2D, Failures string
}

// manyNames is how many guests of one cause are named before the rest is folded away.
const manyNames = 12

func newPage(guests []Guest, made time.Time) page {
	// What failed comes first; among equals the order given stays.
	guests = slices.Clone(guests)
	slices.SortStableFunc(guests, func(a, b Guest) int { return cmp.Compare(truth(a.OK()), truth(b.OK())) })
	s := Summarise(guests)
	p := page{
		Title: s.Line(), Made: made.UTC().Format("2006-01-02 15:04") + " UTC",
		Policy: "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; style-src " + hash(pageStyle) + "; script-src " + hash(pageScript),
		Style:  template.CSS(pageStyle), Script: template.JS(pageScript),
		Failed: s.Done < s.Guests,
	}
	if len(guests) == 1 {
		p.Title = guests[0].Host + ": " + guests[0].Outcome()
	}
	p.Tiles, p.Outcomes = tiles(s)
	p.Chart = newChart(guests)
	index := make(map[string]int, len(guests))
	for i, g := range guests {
		index[g.Host] = i
		p.Rows = append(p.Rows, newRow(i, g, len(guests) == 1))
	}
	if len(guests) > 1 {
		for _, g := range Groups(guests) {
			c := pageCause{pageFailure: shown(g.Failure), Count: Count(len(g.Guests), "guest")}
			for i, of := range g.Guests {
				l := link{of.Host, index[of.Host]}
				if i < manyNames {
					c.First = append(c.First, l)
				} else {
					c.Rest = append(c.Rest, l)
				}
			}
			p.Causes = append(p.Causes, c)
		}
	}
	p.Columns = []column{{Name: "Guest"}, {Name: "Result"}}
	if p.Failed {
		p.Columns = append(p.Columns, column{Name: "Cause"}, column{Name: "Where"})
	}
	p.Columns = append(p.Columns, column{Name: "Driver"}, column{Name: "Distribution"}, column{Name: "GPUs"})
	if p.Proves = proves(guests); p.Proves {
		p.Columns = append(p.Columns, column{Name: "CUDA"})
	}
	if p.Chart != nil {
		p.Columns = append(p.Columns, column{"Link used", true})
	}
	p.Columns = append(p.Columns, column{"Took", true})
	return p
}

// hash is how a content security policy names the one inline text that it lets through.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

func tiles(s Summary) (all []tile, outcomes []string) {
	all = []tile{{strconv.Itoa(s.Guests), plural(s.Guests, "guest"), ""}, {strconv.Itoa(s.Done), "done", "good"}}
	if s.Done == 0 {
		all[1].Class = ""
	}
	for _, w := range s.failed() {
		all = append(all, tile{strconv.Itoa(s.Outcomes[w]), w, "bad"})
	}
	outcomes = sortedKeys(s.Outcomes)
	if s.Done > 0 && len(outcomes) > 2 {
		outcomes = append([]string{"not done"}, outcomes...)
	}
	return append(all, tile{strconv.Itoa(s.GPUs), plural(s.GPUs, "GPU"), ""}), outcomes
}

// enough cuts a guest's words to what a page is for; the JSON has them whole.
func enough(s string) string {
	const lines, size = 40, 4096
	cut := false
	if l := strings.SplitN(s, "\n", lines+1); len(l) > lines {
		s, cut = strings.Join(l[:lines], "\n"), true
	}
	if len(s) > size {
		s, cut = strings.ToValidUTF8(s[:size], ""), true
	}
	if cut {
		s += "\n… cut; the JSON has it whole"
	}
	return s
}

func shown(f Failure) pageFailure {
	return pageFailure{Title: f.Cause, Place: Place(f.Where), ID: f.ID, Step: f.Step, Tried: f.Tried, Advice: f.Advice, Remedy: withCode(f.Remedy), Evidence: enough(f.Evidence)}
}

// withCode sets what a remedy has between backticks as code. The text is escaped first, so that nothing of it is
// markup but that.
func withCode(remedy string) template.HTML {
	parts := strings.Split(html.EscapeString(remedy), "`")
	if len(parts)%2 == 0 {
		return template.HTML(strings.Join(parts, "`"))
	}
	for i := 1; i < len(parts); i += 2 {
		parts[i] = "<code>" + parts[i] + "</code>"
	}
	return template.HTML(strings.Join(parts, ""))
}

func newRow(i int, g Guest, alone bool) row {
	r := row{
		Index: i, Host: g.Host, Outcome: g.Outcome(), OK: g.OK(), Open: alone,
		Driver: g.driver(), CUDA: g.CUDA(), Distro: strings.Replace(g.Distro, " GNU/Linux", "", 1), GPUs: models(g),
		Seconds: Seconds(g.Seconds), SecondsValue: strconv.FormatFloat(g.Seconds, 'f', 1, 64),
		Warnings: g.Warnings, GPUList: g.GPUs, Remedies: g.Remedies,
	}
	if f, failed := g.Failure(); failed {
		s := shown(f)
		r.Failure, r.Cause, r.Where = &s, f.Cause, ""
		if f.Where != "" {
			r.Where = f.Where
		}
		for _, v := range g.Verdicts[min(1, len(g.Verdicts)):] {
			r.Also = append(r.Also, also{Place(v.Where), v.Cause, v.ID, withCode(v.Remedy)})
		}
	}
	r.Facts = facts(g)
	for _, s := range g.Steps {
		r.Steps = append(r.Steps, newStep(s))
	}
	worst := 0.0
	for _, m := range g.Measured() {
		r.Measured = append(r.Measured, newGPU(m))
		if share := m.share(); share > 0 && (worst == 0 || share < worst) {
			worst = share
		}
	}
	if worst > 0 {
		r.Link, r.LinkValue = percent(worst), strconv.FormatFloat(worst, 'f', 4, 64)
	}
	return r
}

// facts is one line of what the columns do not show.
func facts(g Guest) string {
	var parts []string
	add := func(format string, value string) {
		if value != "" {
			parts = append(parts, fmt.Sprintf(format, value))
		}
	}
	add("kernel %s", g.Kernel)
	add("from %s", g.Source)
	add("modules by %s", g.Modules)
	if !g.Time.IsZero() {
		add("ended %s UTC", g.Time.UTC().Format("2006-01-02 15:04:05"))
	}
	parts = append(parts, Count(g.Reboots, "reboot"))
	owed := make([]string, len(g.Owed))
	for i, id := range g.Owed {
		owed[i] = string(id)
	}
	add("reboot owed by %s", strings.Join(owed, ", "))
	return strings.Join(parts, " · ")
}

func newStep(s engine.StepReport) pageStep {
	p := pageStep{ID: string(s.ID), Detail: firstLine(s.Detail)}
	switch s.State {
	case engine.Met:
	case engine.Changed:
		p.Word = "changed in " + Seconds(s.Seconds)
	case engine.Failed:
		// What it said is the failure's evidence, above.
		p.Class, p.Word, p.Detail = "failed", s.Title, ""
	default:
		p.Class, p.Word = "other", s.State
	}
	return p
}

// models words a guest's GPUs: "8 × L4", a line of the report without its address, maker and id.
func models(g Guest) string {
	count := make(map[string]int)
	for _, line := range g.GPUs {
		name := line
		if _, rest, ok := strings.Cut(line, " "); ok {
			name = rest
		}
		if at := strings.LastIndex(name, " ("); at > 0 {
			name = name[:at]
		}
		count[strings.TrimPrefix(name, "NVIDIA ")]++
	}
	var parts []string
	for _, name := range sortedKeys(count) {
		if n := count[name]; n > 1 {
			parts = append(parts, fmt.Sprintf("%d × %s", n, name))
		} else {
			parts = append(parts, name)
		}
	}
	return strings.Join(parts, ", ")
}

func newGPU(m GPU) pageGPU {
	p := pageGPU{Name: m.Name, PCI: m.PCI, Link: speedOr(m.Link, "unknown"), H2D: speedOr(m.PinnedH2D, "–"), D2H: speedOr(m.PinnedD2H, "–"), D2D: speedOr(m.D2D, "–"), Failures: strings.Join(m.Failures, "; ")}
	p.Pageable = "–"
	if m.PageableH2D > 0 || m.PageableD2H > 0 {
		p.Pageable = figure(m.PageableH2D) + " / " + figure(m.PageableD2H) + " GB/s"
	}
	return p
}

func figure(gbs float64) string {
	if gbs >= 100 {
		return strconv.FormatFloat(gbs, 'f', 0, 64)
	}
	return strconv.FormatFloat(gbs, 'f', 1, 64)
}

func speedOr(gbs float64, none string) string {
	if gbs <= 0 {
		return none
	}
	return figure(gbs) + " GB/s"
}

func percent(share float64) string { return strconv.FormatFloat(share*100, 'f', 0, 64) + " %" }

// share is the slower direction from pinned memory as a share of the link; 0 when either is unknown.
func (m GPU) share() float64 {
	if m.Link <= 0 || m.PinnedH2D <= 0 || m.PinnedD2H <= 0 {
		return 0
	}
	return min(m.PinnedH2D, m.PinnedD2H) / m.Link
}

func plural(n int, what string) string {
	if n == 1 {
		return what
	}
	return what + "s"
}

func sortedKeys(m map[string]int) []string {
	all := make([]string, 0, len(m))
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}
