package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"gpuguest/distros"
)

var update = flag.Bool("update", false, "write the README's table anew")

// TestREADMEHoldsTheMatrix holds the table in the README against what gpuguest knows.
func TestREADMEHoldsTheMatrix(t *testing.T) {
	const readme, begin, end = "../../README.md", "<!-- gpuguest distros: begin -->\n", "<!-- gpuguest distros: end -->\n"
	raw, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(raw), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("the README has no %q and %q", begin, end)
	}
	want := before + begin + distros.Markdown() + end + after
	if want == string(raw) {
		return
	}
	if !*update {
		t.Fatal("the README's table is not that of gpuguest distros: go test ./cmd/gpuguest -run README -update writes it")
	}
	if err := os.WriteFile(readme, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestDistrosPrintsEveryOne(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"distros"}, console{out: &out, err: &errs}); code != exitDone {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	var raw bytes.Buffer
	if code := run(t.Context(), []string{"distros", "--json"}, console{out: &raw, err: &errs}); code != exitDone {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	var rows []distros.Row
	if err := json.Unmarshal(raw.Bytes(), &rows); err != nil {
		t.Fatal(err)
	}
	for _, d := range distros.All() {
		named := false
		for _, r := range rows {
			named = named || r.Distro == d.String() && len(r.Machines) > 0 && r.Branches != "" && r.Tested != ""
		}
		if !named || !strings.Contains(out.String(), d.Name) {
			t.Errorf("%s is missing", d)
		}
	}
}
