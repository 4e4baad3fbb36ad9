// Package report says what became of guests, of one or of hundreds: as text, JSON, JUnit XML, Prometheus
// metrics and one HTML page.
//
// It judges nothing and reaches no guest: what it writes is what engine.Report and the verdicts of diagnosis
// say. What was not measured or is not known is said to be so and never filled in.
package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"gpuguest/internal/diagnosis"
	"gpuguest/internal/engine"
)

// Guest is the result of one run on one guest, as install, verify and uninstall print it with --json and as the
// guest's own gpuguest-verify.service leaves it in /var/lib/gpuguest/verify.json. Its names are part of the
// interface.
type Guest struct {
	engine.Report
	Time     time.Time           `json:"time,omitzero"` // when the run ended, UTC; zero: unknown
	Exit     int                 `json:"exit_code"`     // what gpuguest exited with
	Verdicts []diagnosis.Verdict `json:"verdicts,omitempty"`

	// NotStarted is true of a guest that its batch left out, after a canary's failure or Ctrl-C: nothing was done to it
	// or learned of it, so any result that it has from elsewhere says more.
	NotStarted bool `json:"not_started,omitempty"`

	// Raw is true in what the guest's own unit left: what its checks printed for programs stands in the steps' data as
	// it was printed. Read makes of it what verify makes of it, and then it is false.
	Raw bool `json:"raw,omitempty"`
}

// New makes the result of a run that ended at when and made gpuguest exit with exit. What the run's failure gives
// away is diagnosed.
func New(r engine.Report, exit int, when time.Time) Guest {
	g := Guest{Report: r, Exit: exit, Time: when.UTC().Truncate(time.Second)}
	g.Verdicts = verdicts(r)
	return g
}

// verdicts are what the error and the failed steps of a run give away: first what stopped it, as the error's own hint
// has it, then the rest, causes first. It is nil when nothing failed or nothing of it is known.
func verdicts(r engine.Report) []diagnosis.Verdict {
	if r.Error == nil {
		return nil
	}
	// What the run itself settled on knows what was tried; the text alone does not.
	var all []diagnosis.Verdict
	if r.Error.Verdict != nil {
		all = append(all, *r.Error.Verdict)
	}
	text := r.Error.Message + "\n" + r.Error.Tail
	for _, s := range r.Steps {
		if s.State == engine.Failed && !strings.Contains(text, s.Detail) {
			text = s.Detail + "\n" + text
		}
	}
	if first, known := diagnosis.Cause(text); known && len(all) == 0 {
		all = append(all, first)
	}
	// A reader over a string fails only on broken gzip, and what was read before that still counts.
	rest, _ := diagnosis.Read("", strings.NewReader(text))
	for _, v := range diagnosis.Rank(rest) {
		if v.Severity != diagnosis.Info && (len(all) == 0 || v.ID != all[0].ID) {
			v.Source, v.Line = cmp.Or(string(r.Error.Step), "error"), 0
			all = append(all, v)
		}
	}
	return all
}

// OK tells whether the run did what was asked for.
func (g Guest) OK() bool { return g.Result == "done" }

// CUDA says in a few words whether CUDA was seen to work, "" where the run was not to prove anything.
func (g Guest) CUDA() string {
	proves := false
	for _, s := range g.Steps {
		if s.ID == probeStep {
			if s.State == engine.Failed {
				return "fails"
			}
			return "works"
		}
		proves = proves || strings.HasPrefix(string(s.ID), "verify-") && s.ID != "verify-unit"
	}
	switch {
	case proves && len(g.GPUs) == 0:
		return "not run on a GPU yet"
	case !proves && g.Exit != 5:
		return ""
	case !g.OK():
		return "not reached"
	}
	return "not run"
}

// driver is the loaded driver's version and flavor, "" where none is loaded.
func (g Guest) driver() string {
	if g.Driver == "" {
		return ""
	}
	return strings.TrimSpace(g.Driver + " " + g.Flavor)
}

// proves tells whether any of the guests' runs was to prove that CUDA works.
func proves(guests []Guest) bool {
	return slices.ContainsFunc(guests, func(g Guest) bool { return g.CUDA() != "" })
}

// Outcome is the run's end in a few words: "done", "verification failed", "unreachable". It goes by the exit code,
// and by the error where a file of an earlier gpuguest has none.
func (g Guest) Outcome() string {
	if g.OK() {
		return "done"
	}
	switch g.Exit {
	case 2:
		return "step failed"
	case 3:
		return "unreachable"
	case 4:
		return "unsupported"
	case 5:
		return "verification failed"
	case 6:
		return "held by another"
	case 130:
		return "interrupted"
	}
	if g.Error != nil && g.Error.Step != "" {
		return "step failed"
	}
	return "failed"
}

// Failure is why a guest's run failed.
type Failure struct {
	ID       string // of the verdict; "" when the cause is none that the catalogue knows
	Step     string // that failed; "" when none did
	Cause    string
	Where    string // a place of diagnosis; "" unknown
	Remedy   string // what to do next; "" unknown
	Advice   string // lines that say what to change where gpuguest cannot, "" none
	Tried    string // remedies that did not help and were taken back, "" none
	Evidence string // what the guest said, lines
}

// Failure tells why the run failed: by the first verdict where there is one, else in the error's own words. It is
// false for a run that did what was asked for.
func (g Guest) Failure() (Failure, bool) {
	if g.OK() {
		return Failure{}, false
	}
	f := Failure{Cause: "the run ended without saying why"}
	if e := g.Error; e != nil {
		f.Step, f.Remedy, f.Advice, f.Tried = string(e.Step), e.Hint, strings.Join(e.Advice, "\n"), strings.Join(e.Tried, ", ")
		f.Cause, _, _ = strings.Cut(strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(e.Message, name(g.Host)+": "), f.Step+": ")), "\n")
		f.Evidence = evidence(g)
	}
	if len(g.Verdicts) > 0 {
		v := g.Verdicts[0]
		f.ID, f.Cause, f.Where, f.Remedy = v.ID, v.Cause, v.Where, v.Remedy
	}
	return f, true
}

// evidence is what the guest said of its failure: the error, the failed steps' details and the end of the output,
// each once.
func evidence(g Guest) string {
	said := []string{strings.TrimSpace(g.Error.Message)}
	add := func(text string) {
		text = strings.TrimSpace(text)
		if text != "" && !strings.Contains(strings.Join(said, "\n"), text) {
			said = append(said, text)
		}
	}
	for _, s := range g.Steps {
		if s.State == engine.Failed {
			add(s.Detail)
		}
	}
	add(g.Error.Tail)
	for _, v := range g.Verdicts {
		add(v.Evidence)
	}
	return strings.Join(said, "\n")
}

// Place words where a cause is put right; "unknown" for one that nobody knows the place of.
func Place(where string) string {
	switch where {
	case diagnosis.Guest:
		return "in the guest"
	case diagnosis.Host:
		return "on the host"
	case diagnosis.Hardware:
		return "in the hardware"
	case diagnosis.User:
		return "in what was asked for"
	}
	return "place unknown"
}

// A Group is the guests that fail for one cause.
type Group struct {
	Failure         // of the first of them
	Guests  []Guest // in the order given
}

// Groups puts the guests that failed together by cause, the cause with the most guests first. A cause that the
// catalogue knows is one whatever its words name; another is one when its words differ in nothing but numbers, PCI
// addresses and the guest's own name.
func Groups(guests []Guest) []Group {
	type key struct{ id, where, step, cause string }
	at := make(map[key]int)
	var all []Group
	for _, g := range guests {
		f, failed := g.Failure()
		if !failed {
			continue
		}
		k := key{id: f.ID, where: f.Where}
		if f.ID == "" {
			k.step, k.cause = f.Step, particulars.ReplaceAllString(strings.ReplaceAll(f.Cause, name(g.Host), ""), "#")
		}
		i, ok := at[k]
		if !ok {
			i = len(all)
			at[k] = i
			all = append(all, Group{Failure: f})
		}
		all[i].Guests = append(all[i].Guests, g)
	}
	slices.SortStableFunc(all, func(a, b Group) int { return cmp.Compare(len(b.Guests), len(a.Guests)) })
	return all
}

// particulars are the parts of a message that differ from guest to guest: PCI addresses and numbers.
var particulars = regexp.MustCompile(`[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]|[0-9]+`)

// name is a guest's name without user and port.
func name(host string) string {
	if _, rest, ok := strings.Cut(host, "@"); ok {
		host = rest
	}
	if i := strings.LastIndex(host, ":"); i > 0 && !strings.Contains(host[:i], ":") {
		host = host[:i]
	}
	return host
}

// Summary counts guests by outcome.
type Summary struct {
	Guests   int            `json:"guests"`
	Done     int            `json:"done"`
	Outcomes map[string]int `json:"outcomes"` // by the words of Guest.Outcome
	GPUs     int            `json:"gpus"`
}

// Summarise counts guests.
func Summarise(guests []Guest) Summary {
	s := Summary{Guests: len(guests), Outcomes: make(map[string]int)}
	for _, g := range guests {
		s.Outcomes[g.Outcome()]++
		s.GPUs += len(g.GPUs)
	}
	s.Done = s.Outcomes["done"]
	return s
}

// failed are the words of the outcomes but done, the most frequent first.
func (s Summary) failed() []string {
	words := make([]string, 0, len(s.Outcomes))
	for w := range s.Outcomes {
		if w != "done" {
			words = append(words, w)
		}
	}
	slices.SortFunc(words, func(a, b string) int {
		return cmp.Or(cmp.Compare(s.Outcomes[b], s.Outcomes[a]), cmp.Compare(a, b))
	})
	return words
}

// Line is the summary in one line: "200 guests: 187 done, 9 verification failed, 4 unreachable".
func (s Summary) Line() string {
	parts := []string{fmt.Sprintf("%d done", s.Done)}
	for _, w := range s.failed() {
		parts = append(parts, fmt.Sprintf("%d %s", s.Outcomes[w], w))
	}
	return Count(s.Guests, "guest") + ": " + strings.Join(parts, ", ")
}

// Version is the version of Document's form. It grows when a name changes its meaning or goes away; a new name
// leaves it as it is.
const Version = 1

// Document is the results of many guests as JSON. Its names are part of the interface.
type Document struct {
	Version int       `json:"version"`
	Made    time.Time `json:"made"`
	Summary Summary   `json:"summary"`
	Guests  []Guest   `json:"guests"`
}

// NewDocument makes the document of guests.
func NewDocument(guests []Guest, made time.Time) Document {
	if guests == nil {
		guests = []Guest{}
	}
	return Document{Version: Version, Made: made.UTC().Truncate(time.Second), Summary: Summarise(guests), Guests: guests}
}

// GPU is what the CUDA probe measured of one GPU. Speeds are in GB/s (10^9 bytes a second) one way; 0 is one that
// was not measured.
type GPU struct {
	PCI         string
	Name        string
	PinnedH2D   float64 // host to device, from pinned memory
	PinnedD2H   float64
	PageableH2D float64
	PageableD2H float64
	D2D         float64  // within the device's memory
	Link        float64  // what the negotiated PCIe link carries one way; 0 unknown
	Failures    []string // what the probe found wrong
}

// probeStep is the step whose data tells of CUDA.
const probeStep = "verify-cuda"

// Measured returns what the CUDA probe found, nil when it did not run. Data that cannot be read is as good as none:
// the step's own state and detail still tell how it went.
func (g Guest) Measured() []GPU {
	for _, s := range g.Steps {
		if s.ID == probeStep && len(s.Data) > 0 {
			gpus, err := readProbe(s.Data)
			if err != nil {
				return nil
			}
			return gpus
		}
	}
	return nil
}

// readProbe is the one place that knows how the probe writes its data.
func readProbe(raw json.RawMessage) ([]GPU, error) {
	var d struct {
		Devices []struct {
			Index     int    `json:"index"`
			PCI       string `json:"pci"`
			Name      string `json:"name"`
			Bandwidth struct {
				PinnedH2D   float64 `json:"pinned_h2d"`
				PinnedD2H   float64 `json:"pinned_d2h"`
				PageableH2D float64 `json:"pageable_h2d"`
				PageableD2H float64 `json:"pageable_d2h"`
				D2D         float64 `json:"d2d"`
			} `json:"bandwidth"`
			Link struct {
				Known bool    `json:"known"`
				GBs   float64 `json:"gbs"`
			} `json:"link"`
		} `json:"devices"`
		Failures []struct {
			Device *int   `json:"device"` // nil: not of one GPU
			Kind   string `json:"kind"`
			What   string `json:"what"`
		} `json:"failures"`
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		return nil, err
	}
	gpus := make([]GPU, len(d.Devices))
	for i, v := range d.Devices {
		b := v.Bandwidth
		gpus[i] = GPU{
			PCI: v.PCI, Name: v.Name,
			PinnedH2D: possible(b.PinnedH2D), PinnedD2H: possible(b.PinnedD2H), PageableH2D: possible(b.PageableH2D), PageableD2H: possible(b.PageableD2H), D2D: possible(b.D2D),
		}
		if v.Link.Known {
			gpus[i].Link = possible(v.Link.GBs)
		}
		for _, f := range d.Failures {
			if f.Device != nil && *f.Device == v.Index {
				gpus[i].Failures = append(gpus[i].Failures, f.Kind+": "+f.What)
			}
		}
	}
	return gpus, nil
}

// possible is a speed in GB/s, or 0, not measured, for a figure that is none: no memory moves a petabyte a second.
func possible(gbs float64) float64 {
	if gbs < 0.001 || gbs > 1e6 {
		return 0
	}
	return gbs
}

// Count words a number of things: "1 guest", "3 guests".
func Count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Seconds words a duration for a person: "0.4 s", "75 s", "12 min 03 s".
func Seconds(s float64) string {
	switch {
	case s < 10:
		return fmt.Sprintf("%.1f s", s)
	case s < 120:
		return fmt.Sprintf("%.0f s", s)
	}
	return fmt.Sprintf("%d min %02d s", int(s)/60, int(s)%60)
}
