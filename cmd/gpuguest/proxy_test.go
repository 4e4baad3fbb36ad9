package main

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

func TestProxyKeepsItsPasswordOutOfWhatIsTold(t *testing.T) {
	const secret = "p%40ss%27%22%24%5C"
	p, file, err := readProxy("http://alice:" + secret + "@proxy.example:3128/")
	if err != nil {
		t.Fatal(err)
	}
	if p.Shown != "http://proxy.example:3128" {
		t.Errorf("it is told as %q", p.Shown)
	}
	again, _, err := readProxy("http://alice:" + secret + "@proxy.example:3128")
	if err != nil || again != p {
		t.Errorf("the same proxy twice is %v and %v, %v", p, again, err)
	}
	// What programs see of it is what was given, character by character.
	cmd := exec.Command("sh", "-c", `. /dev/stdin; sh -c 'echo "$http_proxy $https_proxy $HTTPS_PROXY"'`)
	cmd.Stdin = bytes.NewReader(file)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range strings.Fields(string(out)) {
		if !strings.HasPrefix(got, "http://alice:p%40ss%27%22$%5C@proxy.example:3128") {
			t.Errorf("a program sees %q", got)
		}
	}
	if !strings.Contains(string(file), "\n# ") {
		t.Error("the checksum of a file with a password is not made slow to guess by")
	}
}

func TestProxyThatIsNoneIsRefusedWithoutItsPassword(t *testing.T) {
	for _, text := range []string{
		"http://alice:hunter2@proxy.example:port", "http://alice:hunter2%zz@proxy.example", "socks5://alice:hunter2@proxy.example",
		"alice:hunter2@proxy.example:3128", "http://alice:hunter2@", "http://alice:hunter2@proxy.example/path", "http://alice:hunter2@proxy.example\n:1",
		"http://alice:hunter2@proxy.example?x=1", "http://alice:hunter2@pro'xy.example", "",
	} {
		_, _, err := readProxy(text)
		if err == nil {
			t.Errorf("%q is taken", text)
			continue
		}
		if !strings.HasPrefix(err.Error(), "--proxy: ") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
