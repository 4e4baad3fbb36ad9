package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"gpuguest/internal/engine"
)

// element is what the schemas in use allow of one element: Jenkins' junit-10.xsd and windyroad's JUnit.xsd for
// Apache Ant. What one of them requires is required here, and what one of them lacks is forbidden.
type element struct {
	attrs    map[string]string // name → pattern; a name that begins with "?" may be missing
	children []string          // in this order; "*" behind one: any number, "?" none or one
	oneOf    bool              // at most one child, whichever
	text     bool
}

var junitSchema = map[string]element{
	"testsuites": {children: []string{"testsuite*"}},
	"testsuite": {
		attrs: map[string]string{
			"name": `\S(.*\S)?`, "package": `\S+`, "id": `\d+`, "hostname": `\S(.*\S)?`, "tests": `\d+`, "failures": `\d+`, "errors": `\d+`,
			"?skipped": `\d+`, "time": `\d{0,3}(\d{3})*\.\d+`, "timestamp": `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d`,
		},
		children: []string{"properties", "testcase*", "system-out", "system-err"},
	},
	"properties": {children: []string{"property*"}},
	"property":   {attrs: map[string]string{"name": `\S(.*\S)?`, "value": `(?s).*`}},
	"testcase": {
		attrs:    map[string]string{"name": `\S(.*\S)?`, "classname": `\S(.*\S)?`, "time": `\d+\.\d+`},
		children: []string{"skipped", "error", "failure"}, oneOf: true,
	},
	"failure":    {attrs: map[string]string{"?message": `(?s).*`, "type": `(?s).+`}, text: true},
	"error":      {attrs: map[string]string{"?message": `(?s).*`, "type": `(?s).+`}, text: true},
	"skipped":    {attrs: map[string]string{"?message": `(?s).*`}},
	"system-out": {text: true},
	"system-err": {text: true},
}

// node is one element of a document that was read.
type node struct {
	name     string
	attrs    map[string]string
	children []*node
	text     string
}

func readXML(r io.Reader) (*node, error) {
	dec := xml.NewDecoder(r)
	open := []*node{{}}
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return open[0].children[0], nil
		}
		if err != nil {
			return nil, err
		}
		top := open[len(open)-1]
		switch tok := tok.(type) {
		case xml.StartElement:
			n := &node{name: tok.Name.Local, attrs: make(map[string]string)}
			for _, a := range tok.Attr {
				n.attrs[a.Name.Local] = a.Value
			}
			top.children = append(top.children, n)
			open = append(open, n)
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			top.text += string(tok)
		}
	}
}

// valid tells what of a document the schema forbids.
func valid(n *node) error {
	e, known := junitSchema[n.name]
	if !known {
		return fmt.Errorf("an element %q", n.name)
	}
	for name, pattern := range e.attrs {
		name, optional := strings.CutPrefix(name, "?")
		value, there := n.attrs[name]
		if !there && !optional {
			return fmt.Errorf("%s has no %q", n.name, name)
		}
		if there && !regexp.MustCompile(`^(?:`+pattern+`)$`).MatchString(value) {
			return fmt.Errorf("%s: %s=%q", n.name, name, value)
		}
	}
	for name := range n.attrs {
		if _, ok := e.attrs[name]; !ok && e.attrs["?"+name] == "" {
			return fmt.Errorf("%s has an attribute %q", n.name, name)
		}
	}
	if !e.text && strings.TrimSpace(n.text) != "" {
		return fmt.Errorf("%s holds text: %q", n.name, n.text)
	}
	at := 0
	if e.oneOf && len(n.children) > 1 {
		return fmt.Errorf("%s holds %d elements", n.name, len(n.children))
	}
	for _, c := range n.children {
		if e.oneOf && !slices.Contains(e.children, c.name) {
			return fmt.Errorf("%s holds a %s", n.name, c.name)
		}
		for !e.oneOf && (at == len(e.children) || strings.TrimSuffix(e.children[at], "*") != c.name) {
			if at == len(e.children) || !strings.HasSuffix(e.children[at], "*") {
				return fmt.Errorf("%s: a %s where it cannot be", n.name, c.name)
			}
			at++
		}
		if !e.oneOf && !strings.HasSuffix(e.children[at], "*") {
			at++
		}
		if err := valid(c); err != nil {
			return err
		}
	}
	for ; !e.oneOf && at < len(e.children); at++ {
		if !strings.HasSuffix(e.children[at], "*") {
			return fmt.Errorf("%s lacks its %s", n.name, e.children[at])
		}
	}
	return nil
}

func junitOf(t testing.TB, guests []Guest) *node {
	t.Helper()
	var b bytes.Buffer
	if err := JUnit(&b, guests); err != nil {
		t.Fatal(err)
	}
	n, err := readXML(&b)
	if err != nil {
		t.Fatal(err)
	}
	if err := valid(n); err != nil {
		t.Fatalf("against the schemas: %v", err)
	}
	return n
}

func TestJUnitIsWhatTheSchemasTake(t *testing.T) {
	junitOf(t, constructed(t))
	junitOf(t, fleet(t, 200))
	junitOf(t, nil)
	junitOf(t, []Guest{{Report: engine.Report{Host: "a", Result: "failed"}}})
}

// TestTheSchemaCheckFindsFaults holds the check of the test above against documents that the schemas refuse.
func TestTheSchemaCheckFindsFaults(t *testing.T) {
	var b bytes.Buffer
	if err := JUnit(&b, constructed(t)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new string }{
		{` timestamp="2026`, ` timestamp="late`},
		{` hostname="gpu-good"`, ``},
		{`<testsuites>`, `<testsuites tests="5">`},
		{` time="`, ` seconds="`},
		{`<properties>`, `<system-out/><properties>`},
		{`<error `, `<oops `},
	} {
		bad := strings.Replace(b.String(), c.old, c.new, 1)
		if bad == b.String() {
			t.Errorf("%q is not in the document", c.old)
		}
		if n, err := readXML(strings.NewReader(bad)); err == nil && valid(n) == nil {
			t.Errorf("with %q in place of %q it passes", c.new, c.old)
		}
	}
}

func TestJUnitCountsFailuresErrorsAndSkips(t *testing.T) {
	skipped := constructed(t, "good")[0]
	skipped.Host, skipped.Steps = "skips", []engine.StepReport{{ID: "a", State: engine.Met}, {ID: "b", State: "skipped"}}
	doc := junitOf(t, append(constructed(t), skipped))
	want := map[string]string{
		"gpu-good": "6 0 0 ", "gpu-bar": "2 1 0 ", "ubuntu@gpu-apt": "3 1 0 ", "gpu-gone:5022": "1 0 1 ",
		"gpu-eight.rack-2.example": "4 1 0 ", "skips": "2 0 0 1",
	}
	for _, suite := range doc.children {
		a := suite.attrs
		if got := fmt.Sprintf("%s %s %s %s", a["tests"], a["failures"], a["errors"], a["skipped"]); got != want[a["name"]] {
			t.Errorf("%s: tests, failures, errors, skipped are %q, want %q", a["name"], got, want[a["name"]])
		}
		cases := 0
		for _, c := range suite.children {
			if c.name == "testcase" {
				cases++
			}
		}
		if strconv.Itoa(cases) != a["tests"] {
			t.Errorf("%s says %s tests and has %d", a["name"], a["tests"], cases)
		}
	}
}

func TestJUnitFailureHasCauseEvidenceAndRemedy(t *testing.T) {
	doc := junitOf(t, constructed(t, "bar1-0m"))
	suite := doc.children[0]
	for _, c := range suite.children {
		if c.name != "testcase" || c.attrs["name"] != "module" {
			continue
		}
		f := c.children[0]
		if f.name != "failure" || f.attrs["type"] != "bar-zero" || !strings.Contains(f.attrs["message"], "in the guest: BAR1") {
			t.Errorf("failure %+v", f)
		}
		for _, part := range []string{"BAR1 is 0M @ 0x0", "\nwhere: in the guest\n", "\ndo: "} {
			if !strings.Contains(f.text, part) {
				t.Errorf("no %q in %q", part, f.text)
			}
		}
		return
	}
	t.Error("no test of the module")
}

// FuzzJUnitOfAnyOutput holds that whatever a guest prints leaves a document that can be read back.
func FuzzJUnitOfAnyOutput(f *testing.F) {
	f.Add("gpu", "a ]]> b", "\x00\x1b[31m\r\n\xff\xfe")
	f.Add("<host>&\"'", "\ufffe\uffff", "]]]]>>")
	f.Add("", " ", "")
	f.Fuzz(func(t *testing.T, host, detail, tail string) {
		g := New(engine.Report{
			Host: host, Result: "failed", Steps: []engine.StepReport{{ID: "a", State: engine.Failed, Detail: detail}},
			Error: &engine.Problem{Message: detail, Step: "a", Tail: tail},
		}, 2, made)
		var b bytes.Buffer
		if err := JUnit(&b, []Guest{g}); err != nil {
			t.Fatal(err)
		}
		if !utf8.Valid(b.Bytes()) {
			t.Error("not UTF-8")
		}
		if _, err := readXML(&b); err != nil {
			t.Error(err)
		}
	})
}
