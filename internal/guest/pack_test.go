package guest

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// farAway makes a connection one over a distance, where command lines are packed.
func farAway(t testing.TB, cfg Config) *Conn {
	t.Helper()
	c := mustDial(t, cfg)
	c.connected = packFrom
	return c
}

// longScript is one that does not fit into TCP's first window and cannot be told from another by a part of it.
func longScript(body string) string {
	var b strings.Builder
	for i := 0; b.Len() <= packSize; i++ {
		b.WriteString(": it\\'s line " + strconv.Itoa(i) + " '\"$x' of many\n")
	}
	return b.String() + body
}

func TestFarGuestGetsLongLinesPacked(t *testing.T) {
	t.Parallel()
	_, s, cfg := shellGuest(t)
	c := farAway(t, cfg)
	script := longScript("echo \"out $LC_ALL\"; echo err >&2; cat; exit 7")
	res, err := c.Run(t.Context(), Command{Script: script})
	if err != nil || res.Exit != 7 || string(res.Stdout) != "out C\n" || string(res.Stderr) != "err\n" {
		t.Fatalf("got %+v, %v", res, err)
	}
	if c.Execs() != 1 {
		t.Errorf("took %d execs", c.Execs())
	}
	if line := s.Commands()[0]; len(line) > len(script)/3 || !strings.Contains(line, packMark) {
		t.Errorf("%d bytes were sent for a script of %d", len(line), len(script))
	}
}

func TestNearGuestAndShortLinesAndInputAreSentAsTheyAre(t *testing.T) {
	t.Parallel()
	_, s, cfg := shellGuest(t)
	for name, run := range map[string]func(*Conn) (Result, error){
		"near": func(c *Conn) (Result, error) {
			c.connected = 0
			return c.Run(t.Context(), Command{Script: longScript("echo in")})
		},
		"short": func(c *Conn) (Result, error) { return c.Run(t.Context(), Command{Script: "echo in"}) },
		"input": func(c *Conn) (Result, error) {
			return c.Run(t.Context(), Command{Script: longScript("cat"), Stdin: strings.NewReader("in\n")})
		},
	} {
		if res, err := run(farAway(t, cfg)); err != nil || string(res.Stdout) != "in\n" {
			t.Errorf("%s: got %+v, %v", name, res, err)
		}
	}
	for _, line := range s.Commands() {
		if strings.Contains(line, packMark) {
			t.Error("a line was packed")
		}
	}
}

func TestFarGuestIsHeldPackedAndItsAnswerToo(t *testing.T) {
	t.Parallel()
	_, s, cfg := shellGuest(t)
	c := farAway(t, cfg)
	script := longScript("i=0; while [ $i -lt 3000 ]; do echo a line of the answer; i=$((i+1)); done; echo warn >&2; cat; exit 3")
	res, lease, err := c.Hold(t.Context(), HoldSpec{Owner: "ann", Script: script})
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit != 3 || string(res.Stdout) != strings.Repeat("a line of the answer\n", 3000) || string(res.Stderr) != "warn\n" {
		t.Errorf("got exit %d, %d bytes, %q", res.Exit, len(res.Stdout), res.Stderr)
	}
	if line := s.Commands()[0]; len(line) > len(script)/3 {
		t.Errorf("%d bytes were sent for a script of %d", len(line), len(script))
	}
	if _, _, err := mustDial(t, cfg).Hold(t.Context(), HoldSpec{Owner: "bob", Script: "true"}); err == nil {
		t.Error("the guest is not held")
	}
	_ = lease.Release()
	within(t, 5*time.Second, func() { <-lease.Lost() })
}

func TestPackedLineLeavesThePasswordToSudo(t *testing.T) {
	t.Parallel()
	_, s, cfg := sudoGuest(t, askingSudo)
	cfg.SudoPassword = sudoPassword(`se cret\`)
	c := farAway(t, cfg)
	res, lease, err := c.Hold(t.Context(), HoldSpec{Owner: "ann", Script: longScript("echo held; cat")})
	if err != nil || string(res.Stdout) != "held\n" {
		t.Fatalf("got %+v, %v", res, err)
	}
	defer lease.Release()
	if res, err = c.Run(t.Context(), Command{Script: longScript("echo root; cat")}); err != nil || string(res.Stdout) != "root\n" {
		t.Errorf("got %+v, %v", res, err)
	}
	last := s.Commands()[len(s.Commands())-1]
	if !strings.Contains(last, packMark) || strings.Contains(last, "cret") {
		t.Errorf("the last line is not packed: %q", last)
	}
}

func TestGuestThatCannotUnpackIsAskedInPlainWords(t *testing.T) {
	for _, tool := range []string{"base64", "gzip"} {
		t.Run(tool, func(t *testing.T) {
			t.Parallel()
			shell, s, cfg := shellGuest(t)
			shell.Tool(tool, "echo not found >&2; exit 127")
			c := farAway(t, cfg)
			res, lease, err := c.Hold(t.Context(), HoldSpec{Owner: "ann", Script: longScript("echo held; exit 2")})
			if err != nil || res.Exit != 2 || string(res.Stdout) != "held\n" || len(res.Stderr) > 0 {
				t.Fatalf("got %+v, %v", res, err)
			}
			defer lease.Release()
			if n := c.Execs(); n != 2 {
				t.Errorf("took %d execs", n)
			}
			// It is known now.
			if res, err := c.Run(t.Context(), Command{Script: longScript("echo plain")}); err != nil || string(res.Stdout) != "plain\n" {
				t.Errorf("got %+v, %v", res, err)
			}
			if n := len(s.Commands()); n != 3 {
				t.Errorf("%d commands in all", n)
			}
			again := farAway(t, cfg)
			if res, err := again.Run(t.Context(), Command{Script: longScript("echo run; echo err >&2")}); err != nil || string(res.Stdout) != "run\n" || string(res.Stderr) != "err\n" {
				t.Errorf("got %+v, %v", res, err)
			}
		})
	}
}

func TestScriptThatExitsAsUnpackDoesIsRunOnce(t *testing.T) {
	t.Parallel()
	_, _, cfg := shellGuest(t)
	c := farAway(t, cfg)
	if res, err := c.Run(t.Context(), Command{Script: longScript("exit 98")}); err != nil || res.Exit != 98 || c.Execs() != 1 {
		t.Errorf("got %+v, %v after %d execs", res, err, c.Execs())
	}
}

func TestBrokenPackedAnswerIsAnErrorAndFreesTheGuest(t *testing.T) {
	t.Parallel()
	shell, _, cfg := shellGuest(t)
	shell.Tool("gzip", `case $1 in -dc) exec /bin/gzip -dc ;; *) /bin/gzip -c | head -c 20 ;; esac`)
	c := farAway(t, cfg)
	if _, _, err := c.Hold(t.Context(), HoldSpec{Owner: "ann", Script: longScript("echo facts")}); err == nil {
		t.Fatal("half an answer was taken for a whole one")
	}
	within(t, 10*time.Second, func() {
		_, l, err := mustDial(t, cfg).Hold(t.Context(), HoldSpec{Owner: "bob", Wait: 5 * time.Second, Script: "true"})
		if err != nil {
			t.Errorf("got %v", err)
			return
		}
		_ = l.Release()
	})
}

// Every shell that a guest's user or system may have runs a packed line as the plain one.
func FuzzPack(f *testing.F) {
	for _, s := range []string{"", "plain", "it's", `a "b" $c`, "`x` $(y) \\", "line\nbreak\n\n", "-n", "\xff\xfe", "!x", "\\c%s"} {
		f.Add(s)
	}
	var shells [][]string
	for _, words := range [][]string{{"dash"}, {"bash"}, {"busybox", "sh"}, {"ksh"}, {"zsh"}} {
		if path, err := exec.LookPath(words[0]); err == nil {
			shells = append(shells, append([]string{path}, words[1:]...))
		}
	}
	if len(shells) == 0 {
		f.Skip("no shell on this machine")
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsRune(s, 0) || len(s) > 1000 {
			t.Skip()
		}
		line, _ := compose(call{script: `printf '%s|%s|' "$#" "$1"; cat`, args: []string{s}}, privilege{mode: privRoot})
		for _, words := range shells {
			cmd := exec.Command(words[0], append(words[1:], "-c", pack(line))...)
			cmd.Stdin = strings.NewReader("input")
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != "1|"+s+"|input" {
				t.Errorf("%v: %q came out as %q, %v", words, s, out, err)
			}
		}
	})
}
