package main

// The user interface's rules:
//   - results go to standard output, all else to standard error;
//   - a bar and colour only where standard error is a terminal; plain lines everywhere else;
//   - a line of the guest's output is shown cut to the terminal's width and with control characters taken
//     out: a guest does not get to move the user's cursor;
//   - the bar stays away while something else has the terminal: a prompt, a command of the user's;
//   - messages are lower case and have no full stop; an error comes with what to do next.

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"gpuguest/internal/engine"
	"gpuguest/internal/report"
)

// ui shows one run's events.
type ui struct {
	w     io.Writer
	host  string
	width int // of the terminal; 0: no terminal

	mu    sync.Mutex
	bar   bar
	step  string // "4/14 headers: install headers …"
	line  string // the last line of its output
	since time.Time
	drawn time.Time
	pulse *pulse // nil where there is no bar
	away  int    // how many others have the terminal
	later []string
}

func newUI(w io.Writer, host string) *ui {
	u := &ui{w: w, host: host}
	if u.bar, u.width = newBar(w, 1, "reaching "+host); u.bar != nil {
		// While a step is silent, its seconds go on.
		u.pulse = beat(time.Second, &u.mu, u.draw)
	}
	return u
}

// pulse calls a function again and again until it is stopped.
type pulse struct {
	stop  chan struct{}
	ended sync.WaitGroup
}

// beat calls each, with mu held, once every so often; end ends it.
func beat(every time.Duration, mu *sync.Mutex, each func()) *pulse {
	p := &pulse{stop: make(chan struct{})}
	p.ended.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-p.stop:
				return
			case <-tick.C:
				mu.Lock()
				each()
				mu.Unlock()
			}
		}
	})
	return p
}

// end returns when no call is under way and none will come. A nil pulse never began.
func (p *pulse) end() {
	if p != nil {
		close(p.stop)
		p.ended.Wait()
	}
}

// bar is what is used of a progress bar.
type bar interface {
	Describe(string)
	RenderBlank() error
	ChangeMax(int)
	Set(int) error
	Clear() error
}

// newBar makes a bar and tells the terminal's width, or nil where there is no terminal.
func newBar(w io.Writer, most int, what string) (bar, int) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, 0
	}
	width := 80
	if got, _, err := term.GetSize(int(f.Fd())); err == nil && got > 20 {
		width = got
	}
	return progressbar.NewOptions(most,
		progressbar.OptionSetWriter(w), progressbar.OptionSetWidth(20), progressbar.OptionSetDescription(what),
		progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(false)), width
}

func (u *ui) close() {
	u.pulse.end()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.bar != nil {
		_ = u.bar.Clear()
	}
}

// aside takes the bar off the terminal for something else that is shown there, until back is called.
func (u *ui) aside() (back func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.away++; u.bar != nil && u.away == 1 {
		_ = u.bar.Clear()
	}
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.away--; u.away > 0 {
			return
		}
		for _, line := range u.later {
			fmt.Fprintln(u.w, line)
		}
		u.later = nil
		u.draw()
	}
}

func (u *ui) draw() {
	if u.bar == nil || u.away > 0 {
		return
	}
	u.drawn = time.Now()
	text := u.step
	if !u.since.IsZero() {
		text += fmt.Sprintf(" %s", report.Seconds(time.Since(u.since).Seconds()))
	}
	if u.line != "" {
		text += "  " + u.line
	}
	// The bar, its percentage and counts take what is left of the line.
	u.bar.Describe(cut(text, u.width-45))
	_ = u.bar.RenderBlank()
}

// say prints a line about the guest that stays.
func (u *ui) say(format string, args ...any) { u.print(u.host + ": " + fmt.Sprintf(format, args...)) }

func (u *ui) print(line string) {
	if u.away > 0 {
		u.later = append(u.later, line)
		return
	}
	if u.bar != nil {
		_ = u.bar.Clear()
	}
	fmt.Fprintln(u.w, line)
	u.draw()
}

func (u *ui) tell(e engine.Event) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch e.Kind {
	case engine.Connected:
		u.step = "looking at " + u.host
		u.draw()
	case engine.Planned:
		if u.bar != nil {
			u.bar.ChangeMax(e.Of)
		}
	case engine.StepBegan:
		u.step, u.line, u.since = fmt.Sprintf("%d/%d %s: %s", e.Index, e.Of, e.Step, e.Title), "", time.Now()
		if u.bar == nil {
			u.say("%s", u.step)
		}
		u.draw()
	case engine.StepOutput:
		u.line = printable(e.Text)
		if warning, ok := strings.CutPrefix(u.line, engine.WarningMark); ok {
			u.say("    warning: %s", warning)
		} else if u.bar == nil {
			if title, ok := strings.CutPrefix(u.line, "gpuguest: "); ok {
				u.say("    %s", title)
			}
		}
		u.draw()
	case engine.Sending:
		if e.Total > 0 {
			u.line = fmt.Sprintf("sending %s, %d of %d MB (%d %%)", e.Text, e.Done>>20, e.Total>>20, e.Done*100/e.Total)
		}
		if time.Since(u.drawn) > 100*time.Millisecond {
			u.draw()
		}
	case engine.StepEnded:
		if e.State == engine.Changed && !u.since.IsZero() {
			u.say("%d/%d %s: %s, %s", e.Index, e.Of, e.Step, e.State, report.Seconds(time.Since(u.since).Seconds()))
		}
		u.line, u.since = "", time.Time{}
		if u.bar != nil && u.away == 0 {
			_ = u.bar.Set(e.Index)
		}
		u.step = ""
		u.draw()
	case engine.Rebooting:
		u.say("reboot: %s", e.Text)
		u.step, u.line, u.since = "waiting for "+u.host+" to boot", "", time.Now()
		u.draw()
	case engine.Rebooted:
		took := time.Since(u.since)
		u.step, u.line, u.since = "looking at "+u.host, "", time.Time{}
		u.say("booted, %s", report.Seconds(took.Seconds()))
	case engine.Reconnecting:
		u.say("%s; dialling again", printable(e.Text))
	case engine.Notice:
		u.say("%s", printable(e.Text))
	}
}

// printable takes out what would steer a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == ' ' {
			return r
		}
		if r == '\t' {
			return ' '
		}
		return -1
	}, s)
}

func cut(s string, width int) string {
	r := []rune(s)
	if width < 10 {
		width = 10
	}
	if len(r) <= width {
		return s
	}
	return string(r[:width-1]) + "…"
}
