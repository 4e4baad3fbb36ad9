package engine_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/plan"
)

// recalling gives a configuration the memory of one guest.
func recalling(cfg engine.Config) engine.Config {
	var kept []byte
	cfg.Recall = func() []byte { return kept }
	cfg.Remember = func(raw []byte) { kept = raw }
	return cfg
}

func TestAConvergedGuestThatIsKnownTakesOneCommand(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := recalling(l.config(l.touch("one", false), l.touch("two", true), l.booted()))
	if _, err := l.run(cfg); err != nil {
		t.Fatal(err)
	}
	r, err := l.run(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := states(r); got != "one=met two=met booted=met" || r.Execs != 1 || r.Connections != 1 {
		t.Errorf("%s in %d execs over %d connections", got, r.Execs, r.Connections)
	}
	// What the guest answers is of now, whatever it was when it was last seen.
	if err := os.Remove(filepath.Join(l.root, "done-one")); err != nil {
		t.Fatal(err)
	}
	if r, err = l.run(cfg); err != nil || states(r) != "one=changed two=met booted=met" || l.work("one") != 2 {
		t.Errorf("%s, %v; work done %d times", states(r), err, l.work("one"))
	}
}

func TestAWrongGuessChangesNothing(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*lab, *engine.Config){
		"another plan": func(l *lab, cfg *engine.Config) {
			other := l.config(l.touch("one", false), l.touch("three", false), l.booted())
			first := true
			cfg.Plan = func(f facts.Facts) (plan.Plan, error) {
				if first {
					first = false
					return l.config(l.touch("one", false), l.touch("two", false)).Plan(f)
				}
				return other.Plan(f)
			}
		},
		"facts that are none": func(_ *lab, cfg *engine.Config) {
			cfg.Recall = func() []byte { return []byte("gpuguest-facts 1\n== id\n") }
		},
		"a plan that is refused for what was": func(l *lab, cfg *engine.Config) {
			make, first := l.config(l.touch("one", false), l.touch("three", false), l.booted()).Plan, true
			cfg.Plan = func(f facts.Facts) (plan.Plan, error) {
				if first {
					first = false
					return plan.Plan{}, os.ErrInvalid
				}
				return make(f)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			cfg := recalling(l.config(l.touch("one", false), l.touch("two", true), l.booted()))
			if _, err := l.run(cfg); err != nil {
				t.Fatal(err)
			}
			spoil(l, &cfg)
			r, err := l.run(cfg)
			if err != nil || r.Result != "done" || r.Execs < 2 || l.work("one") != 1 || l.work("two") != 1 {
				t.Errorf("%s, %v, %d execs; work done %d and %d times", states(r), err, r.Execs, l.work("one"), l.work("two"))
			}
		})
	}
}

// TestAGuessDuringAnothersJobSaysNothing has a job of an earlier client still at work when the next one asks.
func TestAGuessDuringAnothersJobSaysNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := recalling(l.config(l.touch("one", false), l.booted()))
	cfg.Reboot = "always"
	if _, err := l.run(cfg); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(l.root, "done-one")); err != nil {
		t.Fatal(err)
	}
	cut := cfg
	cut.Reboot = "never"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cut.Tell = func(e engine.Event) {
		if e.Kind == engine.StepOutput && e.Text == "half" {
			cancel()
		}
	}
	if _, err := engine.Run(ctx, cut); err == nil {
		t.Fatal("the run was not cut off, so this test tests nothing")
	}
	cfg.Reboot = "never"
	r, err := l.run(cfg)
	if err != nil || states(r) != "one=met booted=met" || l.work("one") != 2 {
		t.Errorf("%s, %v; work done %d times", states(r), err, l.work("one"))
	}
}
