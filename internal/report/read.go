package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"gpuguest/internal/diagnosis"
	"gpuguest/internal/engine"
	"gpuguest/steps"
)

// Read reads results: values one behind the other, each a Guest as a command's --json prints it, a list of such, or
// a Document. name is the file's, for errors. A failed guest without verdicts, as one's own gpuguest-verify.service
// leaves it, is diagnosed. A *RunError is of a run that came to no guest, and leaves the other values good.
func Read(name string, r io.Reader) ([]Guest, error) {
	dec := json.NewDecoder(r)
	var all []Guest
	var without *RunError
	for n := 1; ; n++ {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		if errors.Is(err, io.EOF) && without != nil {
			return all, without
		}
		if errors.Is(err, io.EOF) && n > 1 {
			return all, nil
		}
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s: empty", name)
		}
		var found []Guest
		if err == nil {
			found, err = decode(raw)
		}
		if e, ok := errors.AsType[*RunError](err); ok {
			e.Name, without = name, e
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: value %d: %w", name, n, err)
		}
		all = append(all, found...)
	}
}

// RunError is what --json printed of a run that came to no guest: a flag was wrong, or the inventory.
type RunError struct {
	Name string // the file's
	Text string // what went wrong
}

func (e *RunError) Error() string {
	return fmt.Sprintf("%s: no result of a guest, but of a run that came to none: %s", e.Name, e.Text)
}

func decode(raw json.RawMessage) ([]Guest, error) {
	var found []Guest
	switch {
	case bytes.HasPrefix(raw, []byte("[")):
		if err := json.Unmarshal(raw, &found); err != nil {
			return nil, err
		}
	default:
		var one struct {
			Version int
			Guests  *[]Guest
		}
		if err := json.Unmarshal(raw, &one); err != nil {
			return nil, err
		}
		if one.Version > Version {
			return nil, fmt.Errorf("a report of version %d; this gpuguest reads %d and older", one.Version, Version)
		}
		if one.Guests != nil {
			found = *one.Guests
			break
		}
		var g Guest
		if err := json.Unmarshal(raw, &g); err != nil {
			return nil, err
		}
		if g.Host == "" && g.Result == "failed" && g.Error != nil {
			return nil, &RunError{Text: g.Error.Message}
		}
		found = []Guest{g}
	}
	for i := range found {
		g := &found[i]
		if g.Host == "" || g.Result != "done" && g.Result != "failed" {
			return nil, errors.New(`no result of a guest: it needs "host", and "result" that is done or failed`)
		}
		if g.Raw {
			digest(g)
		}
		if g.Verdicts == nil {
			g.Verdicts = verdicts(g.Report)
		}
	}
	return found, nil
}

// digest reads what the checks of a guest's own unit printed for programs, as verify reads it, and diagnoses its
// failure. What the unit's shell did not see fails the result after all.
func digest(g *Guest) {
	g.Raw = false
	for i := range g.Steps {
		s := &g.Steps[i]
		if len(s.Data) == 0 {
			continue
		}
		text := string(s.Data)
		if s.Data[0] == '"' && json.Unmarshal(s.Data, &text) != nil {
			text = ""
		}
		data, why, known := steps.Digest(s.ID, len(g.GPUs), text)
		switch {
		case known:
			s.Data = data
		case s.Data[0] == '"':
			s.Data = nil
		}
		if why != "" && !strings.Contains(s.Detail, why) {
			s.Detail = strings.TrimSpace(s.Detail + "\n" + why)
		}
		if why != "" {
			s.State = engine.Failed
		}
	}
	at := slices.IndexFunc(g.Steps, func(s engine.StepReport) bool { return s.State == engine.Failed })
	if at < 0 {
		return
	}
	s := g.Steps[at]
	if g.Error == nil {
		g.Error = &engine.Problem{}
	}
	g.Result, g.Exit = "failed", 5
	g.Error.Step, g.Error.Message = s.ID, string(s.ID)+": "+s.Detail
	// What the catalogue knows of it is more than the step's own hint, as in every run.
	if v, known := diagnosis.Cause(s.Detail); known {
		g.Error.Hint, g.Error.Verdict = v.Hint(), &v
	}
}

// Merge joins results into one a guest, in the order of the guests' first. Of the same guest's it keeps the one that
// ended last, or the last given where one has no time, and names each guest of which one was left out. That a batch did
// not start a guest is kept only where there is nothing else, and left out without a word.
func Merge(all []Guest) (guests []Guest, twice []string) {
	at := make(map[string]int)
	for _, g := range all {
		i, again := at[g.Host]
		if !again {
			at[g.Host] = len(guests)
			guests = append(guests, g)
			continue
		}
		old := guests[i]
		if old.NotStarted != g.NotStarted {
			if old.NotStarted {
				guests[i] = g
			}
			continue
		}
		if !slices.Contains(twice, g.Host) {
			twice = append(twice, g.Host)
		}
		if old.Time.IsZero() || g.Time.IsZero() || !g.Time.Before(old.Time) {
			guests[i] = g
		}
	}
	return guests, twice
}
