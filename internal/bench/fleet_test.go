//go:build linux

package main

import (
	"strings"
	"testing"
	"time"
)

// TestRowThatIsNotMeasuredSaysWhy: it has no verdict, and is a row all the same.
func TestRowThatIsNotMeasuredSaysWhy(t *testing.T) {
	for _, c := range []struct {
		before time.Duration
		quick  bool
		says   string
	}{{0, false, ""}, {time.Minute, false, ""}, {61 * time.Second, false, "61 s for a quarter"}, {0, true, "QUICK"}} {
		why := notMeasured(c.before, c.quick)
		if (why == "") != (c.says == "") || !strings.Contains(why, c.says) {
			t.Errorf("%v, %v: %q", c.before, c.quick, why)
		}
		if why == "" {
			continue
		}
		var table strings.Builder
		f := figure{Row: "fleet", What: "three commands in 200 guests", Unit: "s", Ours: []float64{1}, Beside: "ansible -f 200, not measured", Target: target{timesFaster, 20}, Note: why}
		if err := printTable(&table, []figure{f}); err != nil || strings.Contains(table.String(), "NO") || !strings.Contains(table.String(), why) {
			t.Errorf("%v in\n%s", err, &table)
		}
	}
}
