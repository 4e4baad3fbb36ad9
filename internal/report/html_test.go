package report

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

func pageOf(t testing.TB, guests []Guest) string {
	t.Helper()
	var b bytes.Buffer
	if err := HTML(&b, guests, made); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPageOfTwoHundredGuestsIsSmall(t *testing.T) {
	const limit = 2 << 20
	size := len(pageOf(t, fleet(t, 200)))
	t.Logf("%d bytes", size)
	if size > limit {
		t.Errorf("200 guests with eight GPUs make %d bytes, more than %d", size, limit)
	}
}

// TestPageStaysSmallWhateverGuestsSay makes every guest say a megabyte.
func TestPageStaysSmallWhateverGuestsSay(t *testing.T) {
	g := constructed(t, "bar1-0m")[0]
	g.Error.Message = "module: " + strings.Repeat("a long line of evidence\n", 50000)
	g.Steps[1].Detail, g.Error.Tail = g.Error.Message, g.Error.Message
	if size := len(pageOf(t, []Guest{g})); size > 64<<10 {
		t.Errorf("one guest makes %d bytes", size)
	}
}

func TestPageNeedsNothingButItself(t *testing.T) {
	page := pageOf(t, constructed(t))
	// What a browser would fetch; links within the page and an empty icon are what is allowed.
	for _, m := range regexp.MustCompile(`(?i)(?:src|href|action|poster|data)\s*=\s*"([^"]*)"|url\(([^)]*)\)|@import`).FindAllStringSubmatch(page, -1) {
		if !strings.HasPrefix(m[1], "#") && m[1] != "data:," {
			t.Errorf("the page refers to %q", m[0])
		}
	}
}

// TestPolicyLetsTheStyleAndTheScriptThrough holds the hashes against the text as it stands in the page: one blank
// more and the browser would drop it.
func TestPolicyLetsTheStyleAndTheScriptThrough(t *testing.T) {
	page := pageOf(t, constructed(t))
	for tag, directive := range map[string]string{"style": "style-src", "script": "script-src"} {
		text := between(page, "<"+tag+">", "</"+tag+">")
		if text == "" || !strings.Contains(strings.ReplaceAll(page, "&#43;", "+"), directive+" "+strings.ReplaceAll(hash(text), "'", "&#39;")) {
			t.Errorf("the policy does not name the page's %s", tag)
		}
	}
}

func TestPageHoldsEveryFailureWithItsCauseAndRemedy(t *testing.T) {
	guests := constructed(t)
	page := pageOf(t, guests)
	for _, g := range guests {
		f, failed := g.Failure()
		if !failed {
			continue
		}
		row := between(page, ">"+g.Host+"</button>", "</tr></tbody>")
		for _, part := range []string{f.Cause, Place(f.Where), firstLine(f.Evidence)} {
			if !strings.Contains(row, part) {
				t.Errorf("%s: no %q in %s", g.Host, part, row)
			}
		}
		if f.Remedy != "" && !strings.Contains(row, string(withCode(f.Remedy))) {
			t.Errorf("%s: nothing to do in %s", g.Host, row)
		}
	}
}

func TestRemediesAreEscapedAroundTheirCode(t *testing.T) {
	for in, want := range map[string]string{
		"run `gpuguest install`": "run <code>gpuguest install</code>",
		"<b>`<i>`":               "&lt;b&gt;<code>&lt;i&gt;</code>",
		"one ` alone":            "one ` alone",
		"`a` and `b`":            "<code>a</code> and <code>b</code>",
		"":                       "",
	} {
		if got := string(withCode(in)); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestPageOfNoGuestIsAPage(t *testing.T) {
	if page := pageOf(t, nil); !strings.Contains(page, "0 guests: 0 done") || !strings.HasSuffix(page, "</html>\n") {
		t.Errorf("%s", page)
	}
}

func TestModelsOfAGuestAreCounted(t *testing.T) {
	for _, c := range []struct {
		gpus []string
		want string
	}{
		{nil, ""},
		{[]string{"0000:01:00.0 Tesla T4 (10de:1eb8)"}, "Tesla T4"},
		{[]string{"0000:01:00.0 NVIDIA L4 (10de:27b8)", "0000:02:00.0 NVIDIA L4 (10de:27b8)", "0000:03:00.0 unknown GPU (10de:ffff)"}, "2 × L4, unknown GPU"},
		{[]string{"odd"}, "odd"},
	} {
		g := Guest{}
		g.GPUs = c.gpus
		if got := models(g); got != c.want {
			t.Errorf("%q: %q, want %q", c.gpus, got, c.want)
		}
	}
}

func TestBarsEndAtTheirFigures(t *testing.T) {
	c := newChart(constructed(t, "slow-link"))
	if len(c.Bars) != 4 || c.Strip != nil {
		t.Fatalf("%d bars, strip %v", len(c.Bars), c.Strip)
	}
	// Slowest first, and the GPU of unknown link last, without a limit. The scale ends at 40 GB/s.
	if b := c.Bars[0]; b.PCI != "0000:b1:00.0" || !b.Bad || b.H2D != "34.1" || b.Limit != "676.5" {
		t.Errorf("the slow one is %+v", b)
	}
	if b := c.Bars[3]; b.PCI != "0000:ca:00.0" || b.Limit != "" || !strings.Contains(b.Value, "link unknown") {
		t.Errorf("the one of unknown link is %+v", b)
	}
	if c := newChart(constructed(t, "bar1-0m")); c != nil {
		t.Errorf("nothing was measured, and there is a chart: %+v", c)
	}
}

func TestStripHasEveryGPUOfKnownLink(t *testing.T) {
	c := newChart(fleet(t, 200))
	if c.Strip == nil || len(c.Bars) != mostBars {
		t.Fatalf("strip %v, %d bars", c.Strip, len(c.Bars))
	}
	const want = 184*8 + 2*3
	if n := strings.Count(c.Strip.H2D, "M"); n != want {
		t.Errorf("%d dots, want %d", n, want)
	}
	if c.Unmeasured != "2 GPUs with a link of unknown speed" {
		t.Errorf("left out are %q", c.Unmeasured)
	}
}

func BenchmarkPageOfTwoHundredGuests(b *testing.B) {
	guests := fleet(b, 200)
	for b.Loop() {
		b.SetBytes(int64(len(pageOf(b, guests))))
	}
}

func between(s, from, to string) string {
	_, s, _ = strings.Cut(s, from)
	s, _, ok := strings.Cut(s, to)
	if !ok {
		return ""
	}
	return s
}
