package distros

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/assets"
	"gpuguest/internal/action"
	"gpuguest/internal/facts"
	"gpuguest/internal/sh"
)

const testKernel = "5.14.0-570.49.1.el9_6.x86_64"

// bootMachine is a machine with boot files, and with tools that do to them what the real ones do.
func bootMachine(t *testing.T) machine {
	m := rpmMachine(t)
	m.file("boot/loader/entries/a-"+testKernel+".conf", "title Linux\nversion "+testKernel+"\nlinux /vmlinuz-"+testKernel+"\noptions root=/dev/vda1 ro quiet $tuned_params\ngrub_arg --unrestricted\n")
	m.file("boot/loader/entries/a-5.14.0-1.el9.x86_64.conf", "title Old\nversion 5.14.0-1.el9.x86_64\nlinux /vmlinuz-5.14.0-1.el9.x86_64\noptions root=/dev/vda1 ro\n")
	m.file("boot/grub2/grubenv", "# GRUB Environment Block\nkernelopts=root=/dev/vda1 ro\n######")
	m.file("etc/default/grub", "GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX=\"console=ttyS0\"\n")
	m.file("etc/kernel/cmdline", "root=/dev/vda1 ro\n")
	m.file("state/before/cmdline", "root=/dev/vda1 ro quiet\n")
	m.fake("grub2-mkconfig", `. `+m.root+`/etc/default/grub
printf "menuentry 'Linux' {\n\tlinux /vmlinuz-`+testKernel+` root=/dev/vda1 %s\n}\n" "$GRUB_CMDLINE_LINUX" >"$2"`)
	m.fake("grubby", `for a in "$@"; do
	case $a in
	--args=*) for w in ${a#*=}; do for e in `+m.root+`/boot/loader/entries/*.conf; do grep -q "^options.* $w\( \|$\)" "$e" || sed -i "s|^options.*|& $w|" "$e"; done; done ;;
	--remove-args=*) for w in ${a#*=}; do sed -i "/^options/s# $w\( \|\$\)#\1#" `+m.root+`/boot/loader/entries/*.conf; done ;;
	esac
done`)
	if out, _, code := m.run("GRUB_CMDLINE_LINUX=; grub2-mkconfig -o " + m.root + "/boot/grub2/grub.cfg"); code != 0 {
		t.Fatal(out)
	}
	return m
}

// at runs a text of a loader on the machine's files, with the step library before it.
func (m machine) at(text string) (out string, code int) {
	m.t.Helper()
	for _, dir := range []string{"/etc/", "/boot/"} {
		text = strings.NewReplacer(m.root+dir, m.root+dir, dir, m.root+dir).Replace(text)
	}
	stdout, errs, code := m.run("export GPUGUEST_STATE=" + m.root + "/state\n" + assets.StepLibrary + "\n" + text)
	return stdout + errs, code
}

func (m machine) act(all []action.Action) {
	m.t.Helper()
	for _, a := range all {
		text := ""
		switch a := a.(type) {
		case action.Run:
			text = a.Script
		case action.Write:
			text = fmt.Sprintf("printf %%s %s | put %s 0644", sh.Quote(string(a.Data)), sh.Quote(a.Path))
		}
		if out, code := m.at("( set -eu\n" + text + "\n)"); code != 0 {
			m.t.Fatalf("exit %d: %s\n%s", code, out, text)
		}
	}
}

func (m machine) tree(dirs ...string) map[string]string {
	m.t.Helper()
	found := map[string]string{}
	for _, d := range dirs {
		err := filepath.Walk(filepath.Join(m.root, d), func(path string, info os.FileInfo, err error) error {
			if err != nil || info.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			found[strings.TrimPrefix(path, m.root)] = string(b)
			return err
		})
		if err != nil {
			m.t.Fatal(err)
		}
	}
	return found
}

// restore does what uninstall's step restore-files does.
func (m machine) restore() {
	m.t.Helper()
	kept := filepath.Join(m.root, "state/before/files")
	script := `cd ` + kept + ` 2>/dev/null || exit 0; find . -type f | while read -r f; do case $f in */boot/*) ;; *) cp -a "$f" "/${f#./}" ;; esac; done`
	if out, errs, code := m.run(script); code != 0 {
		m.t.Fatalf("exit %d: %s%s", code, out, errs)
	}
}

func TestArgumentsComeAndGoWithEveryLoader(t *testing.T) {
	bls := []string{"/boot/loader/entries/a-" + testKernel + ".conf"}
	args := []string{"modprobe.blacklist=nouveau,nova_core", "nouveau.modeset=0"}
	for _, c := range []struct {
		name   string
		loader Loader
		boot   facts.Boot
		tools  map[string]string
		kernel string
	}{
		{"GRUB with its defaults", grubDefaults{}, facts.Boot{Loader: "grub", Config: "/boot/grub2/grub.cfg"}, nil, testKernel},
		{"GRUB with entries and grubby", grubby{}, facts.Boot{Loader: "grub", Config: "/boot/grub2/grub.cfg", Entries: bls}, map[string]string{"grubby": ""}, testKernel},
		{"systemd-boot", entries{}, facts.Boot{Loader: "systemd-boot", Config: "/boot/loader/loader.conf", Entries: bls}, nil, testKernel},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := bootMachine(t)
			f := facts.Facts{Boot: c.boot, Tools: c.tools, Kernel: facts.Kernel{Next: c.kernel}}
			if l, ok := rhelBoot.Loader(f); !ok || l != c.loader {
				t.Fatalf("the loader is %T", l)
			}
			before := m.tree("etc", "boot")
			proof := func(args []string, want bool) {
				t.Helper()
				if out, code := m.at("( set -eu\n" + c.loader.Proof(f, args) + "\n)"); (code == 0) != want {
					t.Fatalf("the proof of %v exits %d: %s", args, code, out)
				}
			}
			proof(args, false)
			m.act(c.loader.Set(f, args, nil))
			proof(args, true)
			once := m.tree("etc", "boot")
			m.act(c.loader.Set(f, args, nil))
			if twice := m.tree("etc", "boot"); fmt.Sprint(once) != fmt.Sprint(twice) {
				t.Errorf("a second time changes something:\n%v\n%v", once, twice)
			}
			more := append([]string{"pci=realloc"}, args...)
			proof(more, false)
			m.act(c.loader.Set(f, more, nil))
			proof(more, true)
			m.act(c.loader.Set(f, args, []string{"pci=realloc"}))
			proof(args, true)
			for name, text := range m.tree("boot") {
				if strings.Contains(text, "pci=realloc") {
					t.Errorf("%s keeps the argument that was dropped: %s", name, text)
				}
			}
			gone := "set -eu\nS=" + m.root + "/state\n" + c.loader.Gone(f, args)
			if out, code := m.at("( " + gone + "\n)"); code == 0 {
				t.Errorf("they are said to be gone: %s", out)
			}
			m.restore()
			m.act(c.loader.Unset(f, args))
			if out, code := m.at("( " + gone + "\n)"); code != 0 {
				t.Errorf("exit %d: %s", code, out)
			}
			after := m.tree("etc", "boot")
			for name, text := range before {
				if after[name] != text {
					t.Errorf("%s is %q, was %q", name, after[name], text)
				}
			}
			if len(after) != len(before) {
				t.Errorf("files are %v, were %v", after, before)
			}
		})
	}
}

// TestProofReadsWhatGRUBExpands: entries of RHEL 8 say $kernelopts, and grubenv what that is.
func TestProofReadsWhatGRUBExpands(t *testing.T) {
	m := bootMachine(t)
	m.file("boot/loader/entries/a-"+testKernel+".conf", "title Linux\nlinux /vmlinuz-"+testKernel+"\noptions $kernelopts $tuned_params\n")
	m.file("boot/grub2/grubenv", "# GRUB Environment Block\nsaved_entry=x\nkernelopts=root=/dev/vda1 ro nouveau.modeset=0 \n####")
	m.file("state/args", "# arguments: nouveau.modeset=0\n")
	f := facts.Facts{Boot: facts.Boot{Loader: "grub", Entries: []string{"/boot/loader/entries/x.conf"}}, Kernel: facts.Kernel{Next: testKernel}}
	if out, code := m.at("( set -eu\n" + grubby{}.Proof(f, []string{"nouveau.modeset=0"}) + "\n)"); code != 0 {
		t.Errorf("exit %d: %s", code, out)
	}
	f.Kernel.Next = "6.99.0"
	if out, code := m.at("( set -eu\n" + grubby{}.Proof(f, []string{"nouveau.modeset=0"}) + "\n)"); code == 0 || !strings.Contains(out, "no boot entry starts kernel 6.99.0") {
		t.Errorf("exit %d: %s", code, out)
	}
}

// TestArgumentsOfOthersDoNotKeepOursFromBeingGone: after an install somebody changed what the kernels are started with.
func TestArgumentsOfOthersDoNotKeepOursFromBeingGone(t *testing.T) {
	bls := "/boot/loader/entries/a-" + testKernel + ".conf"
	args := []string{"nouveau.modeset=0", "pci=realloc", "quiet", "iommu=pt"}
	debian := func(m machine) facts.Boot {
		m.fake("update-grub", `GRUB_CMDLINE_LINUX=; . `+m.root+`/etc/default/grub
for f in `+m.root+`/etc/default/grub.d/*.cfg; do [ ! -e "$f" ] || . "$f"; done
printf "menuentry 'Linux' {\n\tlinux /vmlinuz-`+testKernel+` root=/dev/vda1 %s\n}\n" "$GRUB_CMDLINE_LINUX" >`+m.root+`/boot/grub/grub.cfg`)
		m.file("boot/grub/grub.cfg", "menuentry 'Linux' {\n\tlinux /vmlinuz-"+testKernel+" root=/dev/vda1 console=ttyS0 iommu=pt\n}\n")
		m.file("etc/default/grub", "GRUB_CMDLINE_LINUX=\"console=ttyS0 iommu=pt\"\n")
		return facts.Boot{Loader: "grub", Config: "/boot/grub/grub.cfg"}
	}
	for _, c := range []struct {
		name   string
		loader Loader
		boot   func(machine) facts.Boot
		other  func(machine) // what somebody else does after the install
		undo   bool          // uninstall's own work was done
		gone   string        // what is gpuguest's alone
		says   string        // "": the proof holds
	}{
		{"GRUB, an argument that somebody added", grubDropIn{"update-grub"}, debian, func(m machine) {
			m.file("etc/default/grub", "GRUB_CMDLINE_LINUX=\"console=ttyS0 iommu=pt mitigations=off\"\n")
		}, true, " nouveau.modeset=0 pci=realloc", ""},
		{"GRUB, one that somebody took away", grubDropIn{"update-grub"}, debian, func(m machine) {
			m.file("etc/default/grub", "GRUB_CMDLINE_LINUX=iommu=pt\n")
		}, true, " nouveau.modeset=0 pci=realloc", ""},
		{"GRUB, one of gpuguest's that somebody wants as well", grubDropIn{"update-grub"}, debian, func(m machine) {
			m.file("etc/default/grub.d/50-site.cfg", "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX pci=realloc\"\n")
		}, true, " nouveau.modeset=0", ""},
		{"GRUB, nothing was undone", grubDropIn{"update-grub"}, debian, func(machine) {}, false, " nouveau.modeset=0 pci=realloc", "a boot entry has nouveau.modeset=0"},
		{"GRUB with its defaults, nothing was undone", grubDefaults{}, func(machine) facts.Boot {
			return facts.Boot{Loader: "grub", Config: "/boot/grub2/grub.cfg"}
		}, func(machine) {}, false, " nouveau.modeset=0 pci=realloc iommu=pt", "a boot entry has nouveau.modeset=0"},
		{"GRUB with its defaults, an argument that somebody added", grubDefaults{}, func(machine) facts.Boot {
			return facts.Boot{Loader: "grub", Config: "/boot/grub2/grub.cfg"}
		}, func(m machine) {
			m.file("boot/grub2/grub.cfg", "\tlinux /vmlinuz-"+testKernel+" root=/dev/vda1 mitigations=off\n")
			m.fake("grub2-mkconfig", "exit 0")
		}, true, " nouveau.modeset=0 pci=realloc iommu=pt", ""},
		{"systemd-boot", entries{}, func(machine) facts.Boot {
			return facts.Boot{Loader: "systemd-boot", Config: "/boot/loader/loader.conf", Entries: []string{bls}}
		}, func(m machine) {
			m.file(bls[1:], "linux /vmlinuz-"+testKernel+"\noptions root=/dev/vda1 ro quiet mitigations=off\n")
		}, true, " nouveau.modeset=0 pci=realloc iommu=pt", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := bootMachine(t)
			f := facts.Facts{Boot: c.boot(m), Kernel: facts.Kernel{Next: testKernel}}
			m.act(c.loader.Set(f, args, nil))
			c.other(m)
			if c.undo {
				if c.name[:5] == "GRUB," {
					if err := os.Remove(m.root + GRUBArgsPath); err != nil {
						t.Fatal(err)
					}
				} else {
					m.restore()
				}
				m.act(c.loader.Unset(f, args))
			}
			state := "set -eu\nS=" + m.root + "/state\n"
			if out, code := m.at("( " + state + c.loader.Ours(f, args) + "\nprintf %s \"$gone\"\n)"); code != 0 || out != c.gone {
				t.Errorf("exit %d: %q is said to be gpuguest's alone", code, out)
			}
			out, code := m.at("( " + state + c.loader.Gone(f, args) + "\n)")
			if (code == 0) != (c.says == "") || !strings.Contains(out, c.says) {
				t.Errorf("exit %d: %s", code, out)
			}
		})
	}
}

func TestWhatSomebodyElseSetStays(t *testing.T) {
	m := bootMachine(t)
	m.file("state/before/cmdline", "root=/dev/vda1 ro quiet nouveau.modeset=0\n")
	f := facts.Facts{Boot: facts.Boot{Loader: "systemd-boot", Entries: []string{"/boot/loader/entries/x.conf"}}, Kernel: facts.Kernel{Next: testKernel}}
	m.act(entries{}.Set(f, []string{"nouveau.modeset=0", "modprobe.blacklist=nouveau"}, nil))
	m.act(entries{}.Unset(f, []string{"nouveau.modeset=0", "modprobe.blacklist=nouveau"}))
	for name, text := range m.tree("boot/loader") {
		if !strings.Contains(text, " nouveau.modeset=0") || strings.Contains(text, "modprobe.blacklist") {
			t.Errorf("%s: %s", name, text)
		}
	}
}
