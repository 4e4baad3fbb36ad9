package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/engine"
	"gpuguest/internal/lab"
	"gpuguest/steps"
)

// fault is a way to disturb a run.
type fault struct {
	name   string
	strike func(ctx context.Context, g *testGuest, c *client) error
	ends   bool // it ends the client; without it the client is expected to go on by itself
	only   steps.ID
}

// faults are all the ways. Of a guest that went away a client without traffic hears only by its own watch,
// which takes half a minute, so the pulled cable is tried at one step, the longest.
var faults = []fault{
	{name: "client killed", ends: true, strike: func(_ context.Context, _ *testGuest, c *client) error {
		return c.cmd.Process.Kill()
	}},
	{name: "connection severed", strike: func(ctx context.Context, g *testGuest, _ *client) error {
		_, err := g.Exec(ctx, `pkill -KILL -f '^sshd: [^/]' || true`)
		return err
	}},
	{name: "sshd restarted", strike: func(ctx context.Context, g *testGuest, _ *client) error {
		_, err := g.Exec(ctx, `systemctl stop ssh; pkill -KILL -f '^sshd: [^/]'; sleep 2; systemctl start ssh`)
		return err
	}},
	{name: "power cut", strike: func(ctx context.Context, g *testGuest, _ *client) error {
		return errors.Join(g.PowerCut(ctx), g.PowerOn(ctx))
	}},
	{name: "cable pulled", only: "driver", strike: func(ctx context.Context, g *testGuest, _ *client) error {
		if err := g.Unplug(ctx); err != nil {
			return err
		}
		select {
		case <-time.After(50 * time.Second):
		case <-ctx.Done():
		}
		return g.Plug(ctx)
	}},
}

// testCut strikes at the start and in the middle of every step that changes something. In the end every
// guest must be what an undisturbed one is, and no step that was done may have been done again.
func testCut(t *testing.T, w *world) {
	t.Parallel()
	root := w.root(t, "bookworm", lists)
	quiet := w.start(t, root, lab.ContainerSpec{})
	reference := w.must(t, exitDone, quiet.install("--json")...).report(t)
	want := quiet.endState(t)
	took := map[steps.ID]time.Duration{}
	for _, s := range reference.Steps {
		if s.State == engine.Changed {
			took[s.ID] = time.Duration(s.Seconds * float64(time.Second))
		}
	}
	t.Logf("undisturbed: %v", took)
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			d := &disturbed{g: w.start(t, root, lab.ContainerSpec{}), fault: f, took: took, struck: map[string]bool{}}
			began := time.Now()
			d.bringAbout(t)
			t.Logf("struck %d times, %d runs, %.0f s", len(d.struck), d.runs, time.Since(began).Seconds())
			for id, took := range took {
				// The middle of a step that ends in no time may be missed.
				if f.only == "" && !d.struck["start "+string(id)] || (f.only == "" || f.only == id) && took > 6*time.Second && !d.struck["middle "+string(id)] {
					t.Errorf("%s was struck at %v", id, slices.Sorted(maps.Keys(d.struck)))
				}
			}
			if diff := differences(want, d.g.endState(t)); diff != "" {
				t.Errorf("the end differs from that of an undisturbed run:\n%s", diff)
			}
			checkOnce(t, d.g.journal(t))
			again := w.must(t, exitDone, d.g.install("--json")...).report(t)
			for _, s := range again.Steps {
				if s.State != engine.Met {
					t.Errorf("afterwards, %s is %s: %s", s.ID, s.State, s.Detail)
				}
			}
		})
	}
}

// checkOnce looks in the journal for work that was done and begun again. The step that waits for the
// package manager is no such work: a power cut makes it due again.
func checkOnce(t *testing.T, records []engine.Record) {
	t.Helper()
	ended := map[steps.ID]bool{}
	for _, r := range records {
		switch {
		case r.Step == "ready":
		case r.Event == "end":
			ended[r.Step] = true
		case r.Event == "begin" && ended[r.Step]:
			t.Errorf("%s was done and begun again", r.Step)
		}
	}
	if len(ended) == 0 {
		t.Error("the journal knows of no step that was done")
	}
}

// disturbed is one guest's installation under one kind of fault.
type disturbed struct {
	g      *testGuest
	fault  fault
	took   map[steps.ID]time.Duration
	struck map[string]bool
	runs   int
}

// The lines that tell where a run is.
var (
	beganLine     = regexp.MustCompile(`: \d+/\d+ ([a-z-]+): .*`)
	endedLine     = regexp.MustCompile(`: \d+/\d+ ([a-z-]+): (?:changed|met), `)
	followingLine = regexp.MustCompile(`: following ([a-z-]+)-[0-9a-f]+, `)
)

// bringAbout gives the same command until it ends well.
func (d *disturbed) bringAbout(t *testing.T) {
	t.Helper()
	for d.runs = 1; d.runs <= 2*len(d.took)+5; d.runs++ {
		r, struck := d.once(t)
		switch {
		case r.code == exitDone:
			return
		case r.code == -1 && struck && d.fault.ends:
		case struck && r.code == exitUnreachable:
			t.Logf("after %v the client gave up: %s", slices.Sorted(maps.Keys(d.struck)), r)
		default:
			t.Fatalf("run %d, after %v: %s", d.runs, slices.Sorted(maps.Keys(d.struck)), r)
		}
	}
	t.Fatalf("%d runs were not enough", d.runs)
}

// once runs the command and strikes wherever it was not struck yet.
func (d *disturbed) once(t *testing.T) (result, bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	c, err := d.g.w.client(ctx, nil, d.g.install()...)
	if err != nil {
		t.Fatal(err)
	}
	var middle <-chan time.Time
	var at steps.ID
	struck := false
	strike := func(where string, id steps.ID) {
		key := where + " " + string(id)
		if d.struck[key] || d.fault.only != "" && (d.fault.only != id || where != "middle") {
			return
		}
		d.struck[key], struck = true, true
		if err := d.fault.strike(ctx, d.g, c); err != nil {
			t.Errorf("%s at the %s of %s: %v", d.fault.name, where, id, err)
		}
	}
	for open := true; open; {
		select {
		case line, more := <-c.lines:
			open = more
			if m := endedLine.FindStringSubmatch(line); m != nil {
				middle = nil
				continue
			}
			m := beganLine.FindStringSubmatch(line)
			if m != nil {
				strike("start", steps.ID(m[1]))
			} else if m = followingLine.FindStringSubmatch(line); m == nil {
				continue
			}
			if at = steps.ID(m[1]); !d.struck["middle "+m[1]] {
				// Well before half of what the step took undisturbed: the machine may have been busier then.
				middle = time.After(min(d.took[at]/8, 1500*time.Millisecond))
			}
		case <-middle:
			middle = nil
			strike("middle", at)
		}
	}
	r, err := c.end()
	if err != nil {
		t.Fatal(err)
	}
	if struck && strings.Contains(r.stderr, "panic") {
		t.Error(fmt.Errorf("the client panicked: %s", r))
	}
	return r, struck
}
