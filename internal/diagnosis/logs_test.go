package diagnosis

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const logs = "../../testdata/logs"

// testdata/logs/expected.tsv names for each whole log the verdict that must come first, or "-" for none above
// Info. The logs are constructed around lines that were really seen, whose sources are in signatures.tsv; the
// column kind says so of each, because a comment inside a log would make it another log.
func expected(t testing.TB) [][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(logs, "expected.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := table(string(text), "file", "top", "kind", "note")
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestTopVerdictIsRightOnWholeLogs(t *testing.T) {
	rows := expected(t)
	files, err := os.ReadDir(logs)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) < 40 || len(files) != len(rows)+1 {
		t.Fatalf("%d files, %d rows", len(files), len(rows))
	}
	for _, row := range rows {
		t.Run(row[0], func(t *testing.T) {
			file, err := os.Open(filepath.Join(logs, row[0]))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			found, err := Read(row[0], file)
			if err != nil {
				t.Fatal(err)
			}
			top := "-"
			ranked := Rank(found)
			if len(ranked) > 0 && ranked[0].Severity != Info {
				top = ranked[0].ID
			}
			if top != row[1] {
				t.Errorf("%s comes first, not %s", top, row[1])
				for _, v := range ranked {
					t.Log(v)
				}
			}
		})
	}
}

// What the engine has of a failed step is text and no file; the verdict must be the same.
func TestCauseOfATextIsTheTopVerdictOfTheLog(t *testing.T) {
	for _, row := range expected(t) {
		text, err := os.ReadFile(filepath.Join(logs, row[0]))
		if err != nil {
			t.Fatal(err)
		}
		top := "-"
		if v, ok := Cause(string(text)); ok {
			top = v.ID
			if v.Hint() == "" || strings.ContainsAny(v.Hint(), "\n\r\t") {
				t.Errorf("%s: %q is not one line", row[0], v.Hint())
			}
		}
		if top != row[1] {
			t.Errorf("%s: %s, not %s", row[0], top, row[1])
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, row := range expected(f) {
		text, err := os.ReadFile(filepath.Join(logs, row[0]))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text[:min(len(text), 4096)])
		f.Add(text[max(0, len(text)-2048):])
	}
	f.Add([]byte("ERROR: \n  \n\n  NVRM: Xid (PCI:::): 00079, \xff\x00"))
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		whole, err := Read("log", bytes.NewReader(data))
		if err != nil && !bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
			t.Fatal(err)
		}
		count := bytes.Count(data, []byte("\n")) + 1
		for _, v := range whole {
			if v.ID == "" || v.Cause == "" || v.Remedy == "" || weight(v.Severity) > 2 || v.Evidence != clean([]byte(v.Evidence)) || len(v.Evidence) > maxEvidence {
				t.Errorf("%+v", v)
			}
			if err == nil && !bytes.HasPrefix(data, []byte{0x1f, 0x8b}) && (v.Line < 1 || v.Line > count) {
				t.Errorf("line %d of %d: %+v", v.Line, count, v)
			}
			if v.Tried(v.Fix).Fix == v.Fix && v.Fix != "" {
				t.Errorf("%s: a fix that was tried comes again: %s", v.ID, v.Fix)
			}
		}
		ranked := Rank(whole)
		if len(ranked) > len(whole) {
			t.Errorf("%d verdicts out of %d", len(ranked), len(whole))
		}
		c := mustLoad(t)
		for i, v := range ranked {
			for _, later := range ranked[i+1:] {
				if !v.Past && !later.Past && c.explains(later.ID, v.ID) {
					t.Errorf("%s stands before its cause %s", v.ID, later.ID)
				}
			}
		}
	})
}

func FuzzCause(f *testing.F) {
	c := mustLoad(f)
	for _, s := range c.signatures {
		f.Add(s.Example)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, ok := Cause(text)
		if ok == (v == Verdict{}) {
			t.Errorf("%v %+v", ok, v)
		}
		if ok && (v.Severity == Info || strings.ContainsAny(v.Hint(), "\n\r\x1b")) {
			t.Errorf("%+v", v)
		}
		// Text that says nothing of its own in front moves the line and nothing else.
		if moved, again := Cause("\n" + text); !strings.HasPrefix(text, "\x1f\x8b") && again == ok && ok && moved.Line != v.Line+1 {
			t.Errorf("line %d became %d", v.Line, moved.Line)
		}
	})
}
