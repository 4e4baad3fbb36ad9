package facts_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/internal/facts"
)

const frame = "gpuguest-facts 1\n"

func TestParseTellsTruncationFromForeignOutput(t *testing.T) {
	for _, c := range []struct {
		name, in  string
		truncated bool
		want      string
	}{
		{"nothing", "", true, "no output"},
		{"only a comment", "# recorded\n", true, "no output"},
		{"cut after a section", frame + "== id\n|arch\tx86_64\n", true, "3 lines"},
		{"cut in a line", frame + "== id\n|arch\tx86", true, "line 3"},
		{"cut in the end mark", frame + "== en", true, "line 2"},
		{"another program", "Welcome to Ubuntu\n== end\n", false, "line 1"},
		{"bare line", frame + "== id\nhello\n== end\n", false, "line 3"},
		{"line before any section", frame + "|x\n== end\n", false, "line 2"},
		{"section twice", frame + "== id\n== id\n== end\n", false, "twice"},
		{"more after the end", frame + "== end\nx\n", false, "after the end"},
		{"line of a section", frame + "== disks\n|/\tmany\t4096\t1\t1\n== end\n", false, "section disks: line 3"},
		{"later head", "gpuguest-facts 2\n== end\n", false, "line 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := facts.Parse([]byte(c.in))
			if err == nil {
				t.Fatal("no error")
			}
			if got := errors.Is(err, facts.ErrTruncated); got != c.truncated {
				t.Errorf("truncated = %v, want %v: %v", got, c.truncated, err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
		})
	}
}

func TestParseNamesWhatTheGuestDidNotAnswer(t *testing.T) {
	f, err := facts.Parse([]byte(frame + "== pci\n!/sys/bus/pci/devices: no such directory\n== end\n"))
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(f.Unknown, "\n")
	for _, want := range []string{"pci: /sys/bus/pci/devices: no such directory", "packages: not in the guest's answer"} {
		if !strings.Contains(all, want) {
			t.Errorf("Unknown lacks %q:\n%s", want, all)
		}
	}
	if f.Loaded != nil || f.Packages != nil || f.Offered != nil {
		t.Errorf("unknown is not nil: %v %v %v", f.Loaded, f.Packages, f.Offered)
	}
}

func TestContentCannotForgeASection(t *testing.T) {
	in := frame + "== files\n|@/proc/cmdline\n|:== pci\n|@/etc/os-release\n|:ID=debian\n|:== end\n|:!why\n== end\n"
	f, err := facts.Parse([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	if f.OS.ID != "debian" || strings.Join(f.Kernel.Cmdline, " ") != "== pci" {
		t.Errorf("got %+v, %q", f.OS, f.Kernel.Cmdline)
	}
}

func FuzzParse(f *testing.F) {
	names, err := filepath.Glob("../../testdata/guests/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(frame + "== end\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := facts.Parse(raw)
		if err != nil {
			return
		}
		var b strings.Builder
		if err := facts.Print(&b, got, nil); err != nil {
			t.Fatal(err)
		}
		if strings.ContainsRune(b.String(), '\x1b') {
			t.Errorf("an escape character reached the terminal: %q", b.String())
		}
	})
}
