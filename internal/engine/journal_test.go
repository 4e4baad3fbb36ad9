package engine

import (
	"slices"
	"strings"
	"testing"

	"gpuguest/steps"
)

func TestOwedExpiresWithTheBoot(t *testing.T) {
	records, torn := ParseJournal(strings.Join([]string{
		`{"time":"2026-11-22T15:00:00Z","boot":"a","event":"begin","step":"blocklist","at_boot":true}`,
		`{"time":"2026-11-22T15:00:01Z","boot":"a","event":"end","step":"blocklist","at_boot":true}`,
		`{"time":"2026-11-22T15:00:02Z","boot":"a","event":"begin","step":"headers"}`,
		`{"time":"2026-11-22T15:0`,
		`{"time":"2026-11-22T15:00:03Z","boot":"a","event":"begin","step":"kernel-args","at_boot":true}`,
		`{"time":"2026-11-22T15:00:04Z","boot":"a","event":"begin","step":"blocklist","at_boot":true}`,
	}, "\n") + "\n")
	if torn != 1 {
		t.Errorf("%d torn records, want 1", torn)
	}
	if got := Owed(records, "a"); !slices.Equal(got, []steps.ID{"blocklist", "kernel-args"}) {
		t.Errorf("owed under the same boot: %q", got)
	}
	if got := Owed(records, "b"); len(got) != 0 {
		t.Errorf("owed after a boot: %q", got)
	}
}

func FuzzParseJournal(f *testing.F) {
	f.Add(`{"boot":"a","event":"begin","step":"x","at_boot":true}` + "\n")
	f.Add("{\n\x00\n")
	f.Fuzz(func(t *testing.T, raw string) {
		records, torn := ParseJournal(raw)
		if lines := strings.Count(raw, "\n") + 1; len(records)+torn > lines {
			t.Errorf("%d records and %d torn ones from %d lines", len(records), torn, lines)
		}
		Owed(records, "a")
	})
}
