package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestSSHConfig(t *testing.T) {
	home := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		p := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	write(".ssh/conf.d/one", "Host inc\n  Port 2201\n  User fromfile\n")
	write(".ssh/conf.d/two", "Port 2202\n")
	write(".ssh/config", strings.Join([]string{
		"# a comment",
		"Include conf.d/o*",
		`Host vm "web *.example.com" !bad.example.com`,
		"  hostname=%h.internal",
		"  Port = 2222 # the forwarded one",
		"  User root",
		`  IdentityFile "~/.ssh/my key"`,
		"  IdentityFile %d/keys/%r-%n",
		"Host quoted",
		"  HostName 10.0.0.1",
		"  Include conf.d/two",
		"Match host a,b user ann",
		"  Port 3001",
		"Match originalhost c !user root",
		"  Port 3002",
		"Match exec \"true\"",
		"  Port 3003",
		"Match all",
		"  UserKnownHostsFile ~/kh1 ~/kh2",
		"  HashKnownHosts yes",
		"Host *",
		"  Port 4000",
	}, "\n"))
	for _, tt := range []struct {
		host, user string
		want       string // host:port user
	}{
		{"vm", "", "vm.internal:2222 root"},
		{"vm", "ann", "vm.internal:2222 ann"},
		{"VM", "", "VM.internal:2222 root"},
		{"inc", "", "inc:2201 fromfile"},
		{"quoted", "me", "10.0.0.1:2202 me"},
		{"a", "ann", "a:3001 ann"},
		{"b", "ann", "b:3001 ann"},
		{"a", "bob", "a:4000 bob"},
		{"c", "bob", "c:3002 bob"},
		{"c", "root", "c:4000 root"},
		{"bad.example.com", "x", "bad.example.com:4000 x"},
	} {
		hops, err := resolve(Config{Host: tt.host, User: tt.user, Home: home})
		if err != nil {
			t.Errorf("%s: %v", tt.host, err)
			continue
		}
		h := hops[len(hops)-1]
		if got := fmt.Sprintf("%s %s", h.addr(), h.user); got != tt.want {
			t.Errorf("%s@%s: got %s, want %s", tt.user, tt.host, got, tt.want)
		}
		if !h.hash || !reflect.DeepEqual(h.knownHosts[:2], []string{home + "/kh1", home + "/kh2"}) {
			t.Errorf("%s: known hosts %v, hash %v", tt.host, h.knownHosts, h.hash)
		}
	}
	hops, err := resolve(Config{Host: "vm", Home: home})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{home + "/.ssh/my key", home + "/keys/root-vm"}; !reflect.DeepEqual(hops[0].identities, want) {
		t.Errorf("identities %v, want %v", hops[0].identities, want)
	}
	var said notices
	if _, err := resolve(Config{Host: "vm", Port: 9, Home: home, Notice: said.add}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(said.text(), "config:16") || !strings.Contains(said.text(), "exec") {
		t.Errorf("notices: %q", said.text())
	}
	if hops, err := resolve(Config{Host: "vm", User: "u", Home: home, SSHConfig: "none"}); err != nil || hops[0].addr() != "vm:22" {
		t.Errorf("none: %v, %v", hops, err)
	}
}

func TestSSHConfigErrorsNameTheLine(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		"Host vm\n  Port x\n":                  "not a port",
		"Host vm\n  Port\n":                    "config:2: Port has no value",
		"Host \"vm\n":                          "config:1: a quotation mark",
		"Include " + dir + "/config\n":         "nested Include",
		"Host *\n  ProxyJump vm\n":             "ProxyJump",
		"Host *\n  ProxyJump a b\n":            "ProxyJump",
		"Host *\n  ProxyJump a,,b\nHost a\n\n": "ProxyJump",
	} {
		path := filepath.Join(dir, "config")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := resolve(Config{Host: "vm", SSHConfig: path, Home: dir}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	if _, err := resolve(Config{Host: "vm", SSHConfig: filepath.Join(dir, "missing"), Home: dir}); err == nil {
		t.Error("a named file that is missing was taken")
	}
}

func FuzzSSHConfig(f *testing.F) {
	f.Add("Host vm\n Port 22\nMatch host a user b\nProxyJump x@y:1,z\n", "vm")
	f.Add("Match !host \"a b\" all\nIdentityFile=\"x\"\n", "a")
	f.Fuzz(func(t *testing.T, text, host string) {
		if strings.Contains(strings.ToLower(text), "include") {
			t.Skip("reads other files")
		}
		path := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		hops, err := resolve(Config{Host: host, SSHConfig: path, Home: "/home/x"})
		if err != nil {
			return
		}
		for _, h := range hops {
			if h.port < 1 || h.port > 65535 {
				t.Errorf("port %d", h.port)
			}
		}
	})
}
