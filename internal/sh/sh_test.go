package sh

import (
	"os/exec"
	"strings"
	"testing"
)

// echo has a real /bin/sh read line as a command line and returns what it took for arguments, one after
// the other with a NUL behind each.
func echo(t *testing.T, line string) string {
	t.Helper()
	shell, err := exec.LookPath("/bin/sh")
	if err != nil {
		t.Skip("no /bin/sh")
	}
	cmd := exec.Command(shell, "-eu")
	cmd.Stdin = strings.NewReader("printf '%s\\0' " + line + "\n")
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/bin:/bin", "HOME=/root"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("sh could not read %q: %v: %s", line, err, out)
	}
	return string(out)
}

func FuzzQuoteIsReadBackBySh(f *testing.F) {
	for _, s := range []string{"", " ", "plain", "it's", `"`, `\`, "$HOME", "`id`", "$(id)", "a\nb", "\n", "\t", "*", "~", "~root", "-n", "#", "é", "\xff\xfe", "!x", "{a,b}", "a;b", "&", "|", "\r", "\x01\x7f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Contains(s, "\x00") {
			t.Skip("no shell word can hold a NUL")
		}
		if got := echo(t, Quote(s)); got != s+"\x00" {
			t.Errorf("sh read %q as %q", Quote(s), got)
		}
	})
}

func FuzzJoinKeepsWordsApart(f *testing.F) {
	f.Add("a b", "", "c'd")
	f.Add("\n", "-", "$x")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if strings.Contains(a+b+c, "\x00") {
			t.Skip("no shell word can hold a NUL")
		}
		if got, want := echo(t, Join(a, b, c)), a+"\x00"+b+"\x00"+c+"\x00"; got != want {
			t.Errorf("sh read %q as %q, want %q", Join(a, b, c), got, want)
		}
	})
}

func TestJoinOfNothingIsNothing(t *testing.T) {
	if got := Join(); got != "" {
		t.Errorf("Join() = %q", got)
	}
}

func TestLeanScriptSaysTheSame(t *testing.T) {
	const script = "#!/bin/sh\n# why\n\nif true; then\n\t# more\n\techo 'a # b' # behind\n\n\tcat <<END\n$1\nEND\nfi\n"
	const want = "if true; then\necho 'a # b' # behind\ncat <<END\n$1\nEND\nfi\n"
	if got := Lean(script); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Lean("echo no line break"); got != "echo no line break" {
		t.Errorf("got %q", got)
	}
}
