package guest

import (
	"strings"
	"testing"
)

func TestParseTarget(t *testing.T) {
	for in, want := range map[string]Target{
		"vm":                      {Host: "vm"},
		"root@vm:5022":            {Host: "vm", Port: 5022, User: "root"},
		"127.0.0.1:22":            {Host: "127.0.0.1", Port: 22},
		"[::1]:22":                {Host: "::1", Port: 22},
		"u@[fe80::1%eth0]:2200":   {Host: "fe80::1%eth0", Port: 2200, User: "u"},
		"::1":                     {Host: "::1"},
		"ssh://root@vm:5022/":     {Host: "vm", Port: 5022, User: "root"},
		"ssh://[::1]":             {Host: "::1"},
		"ann@corp@vm":             {Host: "vm", User: "ann@corp"},
		"host_with.dots-and-dash": {Host: "host_with.dots-and-dash"},
	} {
		got, err := ParseTarget(in)
		if err != nil || got != want {
			t.Errorf("ParseTarget(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "@vm", "vm:", "vm:0", "vm:65536", "vm:ssh", "vm:-1", "vm:+2", "-oProxyCommand=x", "-l@vm", "a b", "vm\n", "[::1", "[::1]x",
		"[::1]:", "root@", "http://vm", "vm/x", "ssh://", "a\x00b"} {
		if got, err := ParseTarget(in); err == nil {
			t.Errorf("ParseTarget(%q) = %+v, want an error", in, got)
		} else if !strings.HasPrefix(err.Error(), "host ") {
			t.Errorf("ParseTarget(%q): %v", in, err)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"vm", "root@vm:5022", "[::1]:22", "::1", "ssh://u@h:1", "u@[fe80::1%eth0]", "a@b@c:9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseTarget(s)
		if err != nil {
			return
		}
		if got.Host == "" || strings.HasPrefix(got.Host, "-") || strings.HasPrefix(got.User, "-") || got.Port < 0 || got.Port > 65535 ||
			strings.ContainsAny(got.Host+got.User, " \t\n\x00") {
			t.Fatalf("%q gave %+v", s, got)
		}
		again, err := ParseTarget(got.String())
		if err != nil || again != got {
			t.Fatalf("%q gave %+v, which is written %q and read back as %+v, %v", s, got, got.String(), again, err)
		}
	})
}
