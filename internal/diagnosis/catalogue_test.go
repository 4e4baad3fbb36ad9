package diagnosis

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func mustLoad(t testing.TB) *catalogue {
	t.Helper()
	c, err := loaded()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEverySignatureMatchesItsOwnLineAndNoOther(t *testing.T) {
	c := mustLoad(t)
	if len(c.signatures) < 120 {
		t.Fatalf("%d signatures", len(c.signatures))
	}
	for _, s := range c.signatures {
		found, err := Read("example", strings.NewReader("an ordinary line\n"+s.Example+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		own := false
		for _, v := range found {
			switch {
			case v.ID == s.ID:
				own = true
				if v.Line != 2 || v.Source != "example" {
					t.Errorf("%s: found at %s:%d", s.ID, v.Source, v.Line)
				}
			case c.explains(s.ID, v.ID), c.explains(v.ID, s.ID):
			default:
				t.Errorf("%s: its example is also taken for %s: %s", s.ID, v.ID, s.Example)
			}
		}
		if !own {
			t.Errorf("%s: %s does not match %s", s.ID, s.Pattern, s.Example)
		}
	}
}

var (
	idForm   = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)
	fixForm  = regexp.MustCompile(`^(kernel-arg \S+|module-option \S+ \S+|initramfs firmware|step [a-z-]+|flavor (open|proprietary)|reboot)$`)
	argument = regexp.MustCompile(`\$\{(\d)\}`)
)

func TestEverySignatureRowIsSound(t *testing.T) {
	c := mustLoad(t)
	for _, s := range c.signatures {
		if !idForm.MatchString(s.ID) {
			t.Errorf("%s: not lower-case words with dashes", s.ID)
		}
		if !slices.Contains(severities, s.Severity) || !slices.Contains([]string{Guest, Host, Hardware, User}, s.Where) {
			t.Errorf("%s: severity %q, where %q", s.ID, s.Severity, s.Where)
		}
		for _, text := range []string{s.Cause, s.Remedy, s.Example, s.Source, s.Log} {
			if text == "" || strings.TrimSpace(text) != text || strings.HasSuffix(s.Cause, ".") || strings.HasSuffix(s.Remedy, ".") {
				t.Errorf("%s: an empty text, or one that ends in a full stop or space: %q", s.ID, text)
			}
		}
		if s.Remedy[0] < 'A' || s.Remedy[0] > 'Z' {
			t.Errorf("%s: the remedy is no sentence: %s", s.ID, s.Remedy)
		}
		for _, fix := range s.Fixes {
			if !fixForm.MatchString(fix) {
				t.Errorf("%s: fix %q", s.ID, fix)
			}
		}
		if (s.ThenWhere != "" || s.ThenRemedy != "") && len(s.Fixes) == 0 {
			t.Errorf("%s: says what follows a fix and has none", s.ID)
		}
		for _, m := range argument.FindAllStringSubmatch(s.Cause+s.Remedy, -1) {
			if n, _ := strconv.Atoi(m[1]); n > s.re.NumSubexp() {
				t.Errorf("%s: %s in its texts and %d groups in its pattern", s.ID, m[0], s.re.NumSubexp())
			}
		}
		for _, text := range s.literals {
			if len(text) < 4 || strings.Contains(text, "\n") {
				t.Errorf("%s: %q is met too often to search for", s.ID, text)
			}
		}
	}
}

func TestEveryXidIsThereOnceAndSound(t *testing.T) {
	c := mustLoad(t)
	for n := range 177 {
		x, ok := c.xids[n]
		if !ok {
			t.Errorf("xid %d is missing", n)
			continue
		}
		if x.Name == "" || x.Meaning == "" || x.Action == "" || x.Source == "" ||
			!slices.Contains(severities, x.Severity) || !slices.Contains([]string{Guest, Host, Hardware, User}, x.Where) {
			t.Errorf("xid %d: %+v", n, x)
		}
		line := "NVRM: Xid (PCI:0000:2b:00): " + strconv.Itoa(n) + ", pid='<unknown>', name=<unknown>, text\n"
		found, err := Read("", strings.NewReader(line))
		if err != nil || len(found) != 1 || found[0].ID != "xid-"+strconv.Itoa(n) || found[0].Severity != x.Severity {
			t.Errorf("%s gives %v, %v", line, found, err)
		}
	}
	if len(c.xids) != 177 {
		t.Errorf("%d numbers", len(c.xids))
	}
}
