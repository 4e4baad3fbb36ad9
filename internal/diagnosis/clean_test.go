package diagnosis

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A false alarm costs trust in every true one: the kernel logs of guests in which nothing is wrong, as they were
// recorded, and those that testdata/logs calls clean, must give no verdict above Info.
func TestCleanLogsGiveNoVerdict(t *testing.T) {
	recorded, err := filepath.Glob("../../testdata/diagnosis/clean/*.log")
	if err != nil || len(recorded) == 0 {
		t.Fatalf("%d recorded logs, %v", len(recorded), err)
	}
	files := recorded
	for _, row := range expected(t) {
		if row[1] == "-" {
			files = append(files, filepath.Join(logs, row[0]))
		}
	}
	for i, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if i < len(recorded) && (!strings.HasPrefix(string(text), "# recorded ") || strings.Count(string(text), "\n") < 100) {
			t.Errorf("%s: a recording says how it was made on its first line, and a boot is longer", name)
		}
		found, err := Read(filepath.Base(name), strings.NewReader(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range Rank(found) {
			if v.Severity != Info {
				t.Errorf("false alarm: %v", v)
			}
		}
		if v, ok := Cause(string(text)); ok {
			t.Errorf("%s: taken for a failure: %v", name, v)
		}
		// The same logs with one true line in them are no longer clean, so that the test can fail.
		if i < len(recorded) {
			if _, ok := Cause(string(text) + bar1); !ok {
				t.Errorf("%s hides a failure", name)
			}
		}
	}
}
