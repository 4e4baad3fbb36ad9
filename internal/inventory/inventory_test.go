package inventory

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// check stands in for the flags of gpuguest.
func check(name string, values []string) error {
	switch name {
	case "user", "driver", "flavor", "identity", "reboot":
	case "port":
		if n, err := strconv.Atoi(values[0]); err != nil || n < 1 || n > 65535 {
			return fmt.Errorf("port %q: it is a number from 1 to 65535", values[0])
		}
	case "kernel-arg":
		return nil
	default:
		return fmt.Errorf("unknown option %q", name)
	}
	if len(values) > 1 && name != "identity" {
		return fmt.Errorf("%s: one value", name)
	}
	return nil
}

// show writes guests one a line: name (address) groups: options.
func show(guests []Guest) string {
	var b strings.Builder
	for _, g := range guests {
		b.WriteString(g.Name)
		if g.Address != "" {
			b.WriteString("@" + g.Address)
		}
		if len(g.Groups) > 0 {
			b.WriteString(" [" + strings.Join(g.Groups, ",") + "]")
		}
		for _, o := range g.Options {
			b.WriteString(" " + o.Name + "=" + strings.Join(o.Values, "+"))
		}
		if g.Password+g.SudoPassword != "" {
			b.WriteString(" secrets:" + g.Password + "/" + g.SudoPassword)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestFormsOfInventories(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, file, text, want string }{
		{"plain names", "-", "# two\nvm1\nroot@vm2:5022\n\n[2001:db8::1]:22\nvm1\n", "vm1\nroot@vm2:5022\n[2001:db8::1]:22\n"},
		{"ranges", "-", "node[08:10]\nrack[a:b]-[1:5:2]\nh[:1]\n",
			"node08\nnode09\nnode10\nracka-1\nracka-3\nracka-5\nrackb-1\nrackb-3\nrackb-5\nh0\nh1\n"},
		{"ansible INI", "hosts", `
lone ansible_connection=ssh
[web]
w1 ansible_host=10.0.0.1 ansible_port=2222 ansible_user='de bian' # a comment
w2 gpuguest_driver=580 unrelated="x y"
[gpu:children]
web
[gpu]
g[1:2]
[gpu:vars]
ansible_user = root
ansible_ssh_private_key_file="~/.ssh/lab key"
gpuguest_kernel_arg=pci=realloc
[all:vars]
ansible_user=nobody
ansible_port=22
ansible_become=yes
[web:vars]
gpuguest_flavor=open
`, "lone port=22 user=nobody\n" +
			"w1@10.0.0.1 [gpu,web] flavor=open identity=~/.ssh/lab key kernel-arg=pci=realloc port=2222 user=de bian\n" +
			"w2 [gpu,web] driver=580 flavor=open identity=~/.ssh/lab key kernel-arg=pci=realloc port=22 user=root\n" +
			"g1 [gpu] identity=~/.ssh/lab key kernel-arg=pci=realloc port=22 user=root\n" +
			"g2 [gpu] identity=~/.ssh/lab key kernel-arg=pci=realloc port=22 user=root\n"},
		{"ansible YAML", "hosts.yml", `
all:
  vars: {ansible_user: root, ntp: [a, b]}
  hosts:
    lone:
  children:
    gpu:
      hosts:
        g[1:2]: {ansible_port: 2200}
        g3: {ansible_host: "{{ inventory_hostname }}.lan", ansible_password: pw, ansible_become_pass: sp}
      vars:
        gpuguest_kernel_arg: [pci=realloc, iommu=pt]
    b: {children: {gpu: }, vars: {ansible_user: b}}
`, "lone user=root\n" +
			"g1 [b,gpu] kernel-arg=pci=realloc+iommu=pt port=2200 user=b\n" +
			"g2 [b,gpu] kernel-arg=pci=realloc+iommu=pt port=2200 user=b\n" +
			"g3@g3.lan [b,gpu] kernel-arg=pci=realloc+iommu=pt user=b secrets:pw/sp\n"},
		{"our YAML", "fleet.yaml", `
defaults:
  user: root
  driver: 580.10
groups:
  a100:
    flavor: open
    hosts: [n[1:2], x]
  new: {driver: "595", groups: [a100], hosts: {y: {}}}
hosts:
  x: {address: 10.0.0.9, port: 5022, identity: [~/a, ~/b]}
  z:
`, "n1 [a100,new] driver=595 flavor=open user=root\n" +
			"n2 [a100,new] driver=595 flavor=open user=root\n" +
			"x@10.0.0.9 [a100,new] driver=595 flavor=open identity=~/a+~/b port=5022 user=root\n" +
			"y [new] driver=595 user=root\nz driver=580.10 user=root\n"},
		{"our YAML with anchors", "-", "defaults: &d {user: root, driver: '580'}\nhosts:\n  a: {<<: *d, user: b}\n", "a driver=580 user=b\n"},
		{"a YAML list", "-", "- a\n- b[1:2]\n", "a\nb1\nb2\n"},
		{"JSON", "x.json", `{"hosts": ["a", "b"]}`, "a\nb\n"},
		{"nothing", "-", "# nobody\n", ""},
		{"a byte order mark", "-", "\ufeffvm1\r\nvm2\r\n", "vm1\nvm2\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Flow sequences cannot hold brackets unquoted, so that case is written with a block.
			text := strings.Replace(c.text, "[n[1:2], x]", "['n[1:2]', x]", 1)
			got, err := Parse(Source{Name: c.file, Text: []byte(text), Check: check})
			if err != nil {
				t.Fatal(err)
			}
			if s := show(got.Guests); s != c.want {
				t.Errorf("got\n%swant\n%s", s, c.want)
			}
		})
	}
}

func TestEveryMistakeIsToldAtOnceWithItsPlace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, file, text, want string }{
		{"our YAML", "f.yaml", "defualts: {}\ndefaults:\n  usr: root\n  port: many\ngroups:\n  g:\n    flavour: open\n    groups: [nosuch]\nhosts:\n  a b:\n  c: {port: 0, driver: }\n  c: {}\n  d: [x]\n",
			`f.yaml:1:1: unknown key "defualts": there are defaults, groups and hosts
f.yaml:3:3: unknown option "usr"
f.yaml:4:3: port "many": it is a number from 1 to 65535
f.yaml:7:5: unknown option "flavour"
f.yaml:8:14: group nosuch is not defined
f.yaml:10:3: host "a b": blanks and control characters are not allowed
f.yaml:11:7: port "0": it is a number from 1 to 65535
f.yaml:11:24: driver has no value
f.yaml:12:3: "c" is there twice
f.yaml:13:6: host d: it is options, each NAME: VALUE`},
		{"INI", "hosts", "[bad group]\n[g:sons]\n[g]\nvm[3:1]\nvm[x]\nvm1 port\nvm2 gpuguest_drvr=1\nvm3 ansible_connection=docker\nvm4 'open\nvm5:0\n[h:children]\nnosuch\n[k:vars]\nnothing\nansible_port=\n",
			`hosts:1:1: [bad group] is no section: [GROUP], [GROUP:children] or [GROUP:vars], without blanks
hosts:2:1: section [g:sons]: it is [g], [g:children] or [g:vars]
hosts:4:1: host "vm[3:1]": [3:1] runs backwards
hosts:5:1: host "vm[x]": [x] is no range: it is [FIRST:LAST] or [FIRST:LAST:STEP], of numbers or of letters
hosts:6:5: "port" is no NAME=VALUE; one guest a line
hosts:7:5: unknown option "drvr"
hosts:8:5: ansible_connection=docker: gpuguest reaches guests over SSH and becomes root by sudo
hosts:9:1: a ' is not closed
hosts:10:1: host "vm5:0": the port must be a number from 1 to 65535
hosts:12:1: group nosuch is not defined: there is no [nosuch]
hosts:13:1: group k is not defined: there is no [k]
hosts:14:1: "nothing" is no NAME=VALUE
hosts:15:1: ansible_port is empty`},
		{"ansible YAML", "h.yml", "all:\n  hosts: [a]\n  vars:\n    ansible_user: \"{{ whoever }}\"\n    ansible_password: !vault |\n      $ANSIBLE_VAULT;1.1\n      00\n  children:\n    g: {hosts: {x: , y: {ansible_port: 70000}}}\n",
			`h.yml:2:10: hosts: it is names of guests, each with a colon behind it
h.yml:4:5: user is the template "{{ whoever }}", and of templates only {{ inventory_hostname }} is understood
h.yml:5:23: ansible_password is encrypted by ansible-vault; give it in another way
h.yml:9:26: port "70000": it is a number from 1 to 65535`},
		{"a group below itself", "h", "[a:children]\nb\n[b:children]\na\n", "h:1:1: group a is below itself"},
		{"one by alias", "h.yml", "a: &a\n  children:\n    b: *a\n", ""},
		{"too many", "h", "n[1:99999999]\n", `h:1:1: host "n[1:99999999]": more than 100000 guests`},
		{"far too many", "h", "n[1:99999999999999999999]\n", `h:1:1: host "n[1:99999999999999999999]": [1:99999999999999999999]: more than 100000 guests`},
		{"no YAML", "h.yaml", "hosts:\n  a: [\n", "h.yaml:2: not YAML: did not find expected node content"},
		{"a vault", "h", "$ANSIBLE_VAULT;1.1;AES256\n6162\n", "h:1: it is encrypted by ansible-vault; decrypt it first"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Parse(Source{Name: c.file, Text: []byte(c.text), Check: check})
			var all Problems
			if !errors.As(err, &all) || len(got.Guests) > 0 {
				t.Fatalf("%d guests, error %v", len(got.Guests), err)
			}
			var lines []string
			for _, p := range all {
				lines = append(lines, p.String())
			}
			if s := strings.Join(lines, "\n"); c.want != "" && s != c.want {
				t.Errorf("got\n%s\nwant\n%s", s, c.want)
			}
		})
	}
}

func TestVariableFilesBesideAnAnsibleInventory(t *testing.T) {
	t.Parallel()
	vars := fstest.MapFS{
		"group_vars/all.yml":       {Data: []byte("ansible_user: root\nansible_port: 2200\n")},
		"group_vars/gpu/main.yaml": {Data: []byte("gpuguest_driver: '580'\n")},
		"group_vars/gpu/vault":     {Data: []byte("$ANSIBLE_VAULT;1.1;AES256\n00\n")},
		"group_vars/other.yml":     {Data: []byte("ansible_port: wrong but of nobody here\n")},
		"host_vars/b":              {Data: []byte("ansible_host: 10.0.0.2\nansible_port: 22\n")},
		"host_vars/b.orig~":        {Data: []byte("ansible_host: 10.0.0.3\n")},
	}
	// By ansible-inventory 2.14, group_vars/all counts more than the vars of any group in the inventory itself.
	text := "a\n[gpu]\nb\nc\n[gpu:vars]\nansible_port=3\n[all:vars]\nansible_port=1\nansible_ssh_common_args='-o ProxyJump=j'\n"
	got, err := Parse(Source{Name: "inv/hosts", Text: []byte(text), Vars: vars, Check: check})
	if err != nil {
		t.Fatal(err)
	}
	if s, want := show(got.Guests), "a port=2200 user=root\nb@10.0.0.2 [gpu] driver=580 port=22 user=root\nc [gpu] driver=580 port=2200 user=root\n"; s != want {
		t.Errorf("got\n%swant\n%s", s, want)
	}
	if len(got.Notices) != 2 || !strings.Contains(got.Notices[0], "ssh_config") || !strings.Contains(got.Notices[1], "group_vars/gpu/vault") {
		t.Errorf("notices %q", got.Notices)
	}
	vars["host_vars/b"].Data = []byte("ansible_host: 10.0.0.2\nansible_port: x\n")
	_, err = Parse(Source{Name: "inv/hosts", Text: []byte(text), Vars: vars, Check: check})
	if err == nil || !strings.HasPrefix(err.Error(), "inv/host_vars/b:2:1: port") {
		t.Errorf("error %v", err)
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	guests := []Guest{{Name: "gpu1", Groups: []string{"a", "gpu"}}, {Name: "gpu2", Groups: []string{"gpu"}}, {Name: "root@web1:2222", Groups: []string{"web"}}}
	for pattern, want := range map[string]string{
		"gpu1":       "gpu1",
		"gpu*,!gpu2": "gpu1",
		"gpu,&a":     "gpu1",
		"!gpu":       "root@web1:2222",
		"web1":       "root@web1:2222",
		"all,!web?":  "gpu1 gpu2",
		"all":        "gpu1 gpu2 root@web1:2222",
	} {
		left, err := Limit(guests, pattern)
		var names []string
		for _, g := range left {
			names = append(names, g.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", pattern, got, err, want)
		}
	}
	for _, pattern := range []string{"", "nosuch", "gpu1,nosuch", "gpu,!gpu", "[", "!", "!!gpu", "gpu1,"} {
		if left, err := Limit(guests, pattern); err == nil {
			t.Errorf("%q leaves %v and is no error", pattern, left)
		}
	}
}

// TestTenThousandLines holds the time and that no mistake is lost, in each form.
func TestTenThousandLines(t *testing.T) {
	const lines, every = 10_000, 10
	for _, form := range []struct {
		name, file, head, good, bad string
	}{
		{"INI", "hosts", "[gpu]\n", "node%05d ansible_host=10.0.0.1 ansible_port=2222 ansible_user=root\n", "node%05d ansible_port=none\n"},
		{"ansible YAML", "h.yml", "gpu:\n  hosts:\n", "    node%05d: {ansible_host: 10.0.0.1, ansible_user: root}\n", "    node%05d: {ansible_port: none}\n"},
		{"our YAML", "f.yaml", "hosts:\n", "  node%05d: {address: 10.0.0.1, user: root}\n", "  node%05d: {usr: root}\n"},
		{"names", "-", "", "node%05d\n", "node%05d[\n"},
	} {
		t.Run(form.name, func(t *testing.T) {
			var good, bad strings.Builder
			good.WriteString(form.head)
			bad.WriteString(form.head)
			for i := range lines {
				fmt.Fprintf(&good, form.good, i)
				if i%every == 0 {
					fmt.Fprintf(&bad, form.bad, i)
				} else {
					fmt.Fprintf(&bad, form.good, i)
				}
			}
			began := time.Now()
			got, err := Parse(Source{Name: form.file, Text: []byte(good.String()), Check: check})
			took := time.Since(began)
			if err != nil || len(got.Guests) != lines {
				t.Fatalf("%d guests, %v", len(got.Guests), err)
			}
			// The benchmark tells the time; here only what no load of the machine explains is a failure.
			if took > 10*time.Second {
				t.Errorf("took %v", took)
			}
			_, err = Parse(Source{Name: form.file, Text: []byte(bad.String()), Check: check})
			var all Problems
			if !errors.As(err, &all) || len(all) != lines/every {
				t.Fatalf("%d mistakes told, %d made", len(all), lines/every)
			}
			first := strings.Count(form.head, "\n") + 1
			for i, p := range all {
				if p.Where.Line != first+i*every {
					t.Fatalf("mistake %d is told of line %d", i, p.Where.Line)
				}
			}
		})
	}
}

func BenchmarkTenThousandLines(b *testing.B) {
	var text strings.Builder
	text.WriteString("hosts:\n")
	for i := range 10_000 {
		fmt.Fprintf(&text, "  node%05d: {address: 10.0.0.1, user: root, port: none}\n", i)
	}
	for b.Loop() {
		_, err := Parse(Source{Name: "f.yaml", Text: []byte(text.String()), Check: check})
		var all Problems
		if !errors.As(err, &all) || len(all) != 10_000 {
			b.Fatal(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"vm1\nroot@vm2:22\n", "[a]\nh[01:03] ansible_port=1\n[a:vars]\nansible_user=x\n[b:children]\na\n",
		"all:\n  children:\n    g: {hosts: {x: {ansible_host: '{{ inventory_hostname }}'}}}\n",
		"defaults: {user: r}\ngroups: {g: {hosts: [a], groups: [h]}, h: {}}\nhosts: {b: {port: 1}}\n",
		"a: &a\n  children:\n    b: *a\n", "hosts: &h\n  <<: [*h]\n", "[a:children]\na\n", "- a\n- [b]\n", "{\"hosts\": [1, null]}", "x[:]\n'\\",
	} {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, text string, yaml bool) {
		name := "hosts"
		if yaml {
			name = "hosts.yaml"
		}
		got, err := Parse(Source{Name: name, Text: []byte(text), Check: check})
		var all Problems
		if err != nil && (!errors.As(err, &all) || len(all) == 0 || len(got.Guests) > 0) {
			t.Fatalf("%d guests with error %v", len(got.Guests), err)
		}
		seen := make(map[string]bool)
		for _, g := range got.Guests {
			if seen[g.Name] || checkName(g.Name) != nil || len(got.Guests) > maxGuests {
				t.Fatalf("guest %q", g.Name)
			}
			seen[g.Name] = true
			for _, o := range g.Options {
				if cerr := check(o.Name, o.Values); cerr != nil || slices.ContainsFunc(o.Values, isTemplate) && o.Name == "" {
					t.Fatalf("%s: %v", g.Name, cerr)
				}
			}
		}
	})
}
