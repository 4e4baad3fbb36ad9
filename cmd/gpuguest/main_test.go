package main

import (
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestSecondTermOfOneRequestLetsTheFarewellBeSaid: Slurm's own and that of its script's trap come together.
func TestSecondTermOfOneRequestLetsTheFarewellBeSaid(t *testing.T) {
	t.Parallel()
	type sent struct {
		signal os.Signal
		after  time.Duration // the one before
	}
	const term, ctrlC = syscall.SIGTERM, syscall.SIGINT
	for name, c := range map[string]struct {
		sent  []sent
		exits bool
	}{
		"one":                          {[]sent{{term, 0}}, false},
		"twice at once":                {[]sent{{term, 0}, {term, 0}}, false},
		"and once more":                {[]sent{{term, 0}, {term, time.Second}, {term, time.Second / 2}}, false},
		"TERM that is meant":           {[]sent{{term, 0}, {term, 0}, {term, 3 * time.Second}}, true},
		"Ctrl-C twice, quickly":        {[]sent{{ctrlC, 0}, {ctrlC, 100 * time.Millisecond}}, true},
		"Ctrl-C that a wrapper shares": {[]sent{{ctrlC, 0}, {term, 10 * time.Millisecond}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				signals := make(chan os.Signal, 2)
				interrupted, exited := false, false
				go heed(signals, func() { interrupted = true }, func() { exited = true })
				for _, s := range c.sent {
					time.Sleep(s.after)
					signals <- s.signal
					synctest.Wait()
				}
				if !interrupted || exited != c.exits {
					t.Errorf("interrupted %v, exited %v", interrupted, exited)
				}
				if !exited {
					close(signals)
				}
			})
		})
	}
}
