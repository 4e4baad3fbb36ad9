package guest

import (
	"os/exec"
	"strings"
	"testing"
)

// Whatever a script and its argument hold, the guest's shell gets exactly that.
func FuzzCompose(f *testing.F) {
	for _, s := range []string{"", "plain", "it's", `a "b" $c`, "`x` $(y) \\", "line\nbreak\n", "-n", "\xff\xfe", strings.Repeat("'", 100)} {
		f.Add(s, false)
	}
	f.Add("too long for an argument", true)
	f.Fuzz(func(t *testing.T, s string, long bool) {
		if strings.ContainsRune(s, 0) || len(s) > 1000 {
			t.Skip()
		}
		script := `printf '%s|%s' "$#" "$1"`
		if long {
			script = "# " + strings.Repeat("x", maxArgument) + "\n" + script
		}
		line, first := compose(call{script: script, args: []string{s}}, privilege{mode: privRoot})
		if len(line) > maxArgument || long != (len(first) > 0) {
			t.Fatalf("a line of %d bytes and %d bytes before it", len(line), len(first))
		}
		cmd := exec.Command("/bin/sh", "-c", line)
		cmd.Stdin = strings.NewReader(string(first))
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != "1|"+s {
			t.Errorf("%q came out as %q, %v", s, out, err)
		}
	})
}

func FuzzJobTalk(f *testing.F) {
	f.Add("gpuguest-job attempt 3 17\nnoise\ngpuguest-job alive\ngpuguest-job state exited 5\n", 9)
	f.Add("gpuguest-job error mkdir: Read-only file system\n", 3)
	f.Add("gpuguest-job attempt x y\ngpuguest-job attempt 1\n", 0)
	f.Fuzz(func(t *testing.T, text string, cut int) {
		if cut < 0 || cut > len(text) {
			t.Skip()
		}
		var whole, halves jobTalk
		_, _ = whole.Write([]byte(text))
		_, _ = halves.Write([]byte(text[:cut]))
		_, _ = halves.Write([]byte(text[cut:]))
		a1, s1, st1, w1 := whole.heard()
		a2, s2, st2, w2 := halves.heard()
		if a1 != a2 || s1 != s2 || st1 != st2 || w1 != w2 {
			t.Errorf("%q cut at %d: %d %d %q %q and %d %d %q %q", text, cut, a1, s1, st1, w1, a2, s2, st2, w2)
		}
	})
}

func FuzzHoldOutput(f *testing.F) {
	f.Add("facts\n\nTOKEN exit 3\n", 9, 12)
	f.Add("\nTOKEN exit 0\n", 1, 13)
	f.Add("TOKEN busy ann\nTOKEN held ann\n", 3, 4)
	f.Fuzz(func(t *testing.T, text string, a, b int) {
		if a < 0 || b < a || b > len(text) {
			t.Skip()
		}
		read := func(parts ...string) (out string, code int, ok, done bool, lines string) {
			var said []string
			o := &holdOutput{end: []byte("\nTOKEN exit "), capture: capture{max: 1 << 20}, done: func() { done = true },
				line: func(s string) { said = append(said, s) }}
			for _, p := range parts {
				if _, err := o.Write([]byte(p)); err != nil {
					t.Fatal(err)
				}
			}
			raw, code, ok := o.result()
			return string(raw), code, ok, done, strings.Join(said, "\n")
		}
		o1, c1, ok1, d1, l1 := read(text)
		o2, c2, ok2, d2, l2 := read(text[:a], text[a:b], text[b:])
		if o1 != o2 || c1 != c2 || ok1 != ok2 || d1 != d2 || l1 != l2 {
			t.Errorf("%q cut at %d and %d differs", text, a, b)
		}
	})
}
