package hypervisor_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/internal/hypervisor"
)

// stage is a machine's root that apply works on, with commands that only note that they were run.
type stage struct {
	t          *testing.T
	root, bin  string
	ran        string // file that the commands note themselves in
	host       hypervisor.Host
	failingCmd string
}

func newStage(t *testing.T, tree string) *stage {
	t.Helper()
	s := &stage{t: t, root: t.TempDir(), bin: t.TempDir(), host: look(t, plant(t, tree))}
	s.ran = filepath.Join(s.bin, "ran")
	for _, c := range []string{"update-initramfs", "update-grub", "dracut", "grubby", "systemctl", "grub2-mkconfig", "proxmox-boot-tool"} {
		write(t, filepath.Join(s.bin, c), "#!/bin/sh\necho \"${0##*/} $*\" >>"+s.ran+"\n[ \"${0##*/}\" != \"${FAIL:-}\" ]\n")
	}
	// Debian's tools or Fedora's, not both.
	for _, c := range []string{"update-initramfs", "update-grub", "dracut", "grubby", "grub2-mkconfig", "proxmox-boot-tool"} {
		if s.host.Tools[c] == "" {
			if err := os.Remove(filepath.Join(s.bin, c)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

func (s *stage) sh(script string) (string, error) {
	s.t.Helper()
	c := exec.Command("sh", "-c", script)
	c.Env = []string{"GPUGUEST_ROOT=" + s.root, "PATH=" + s.bin + ":/usr/bin:/bin", "FAIL=" + s.failingCmd}
	out, err := c.CombinedOutput()
	return string(out), err
}

func (s *stage) apply(addresses ...string) (string, error) {
	s.t.Helper()
	p, err := hypervisor.MakePlan(s.host, addresses)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.sh(hypervisor.ApplyScript(p))
}

// commands returns what was run since the last call.
func (s *stage) commands() string {
	s.t.Helper()
	text, err := os.ReadFile(s.ran)
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	_ = os.Remove(s.ran)
	return strings.ReplaceAll(string(text), " \n", "\n")
}

// files returns every file of the root with its mode and content.
func (s *stage) files() map[string]string {
	s.t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(s.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		all[strings.TrimPrefix(path, s.root)] = info.Mode().String() + " " + string(text)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

func same(a, b map[string]string) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) == len(b)
}

func TestApplyWritesThePlanOnceAndUndoTakesItBack(t *testing.T) {
	for _, c := range []struct {
		tree      string
		addresses []string
		has       []string // commands that apply runs
		undone    []string // commands that undo runs
	}{
		{"intel-no-iommu", nil, []string{"update-initramfs -u -k all", "update-grub"}, []string{"update-initramfs -u -k all", "update-grub"}},
		{"intel-twins", []string{"41:00.0"}, []string{"systemctl enable gpuguest-vfio-bind.service"}, []string{"systemctl disable gpuguest-vfio-bind.service"}},
		{"intel-l4-clean", nil, []string{"dracut --force --regenerate-all"}, []string{"dracut --force --regenerate-all"}},
	} {
		t.Run(c.tree, func(t *testing.T) {
			s := newStage(t, c.tree)
			write(t, filepath.Join(s.root, "etc/modprobe.d/gpuguest-vfio.conf"), "# mine\n")
			before := s.files()
			out, err := s.apply(c.addresses...)
			if err != nil || !strings.Contains(out, "reboot the machine") {
				t.Fatalf("%v: %s", err, out)
			}
			ran := s.commands()
			for _, want := range c.has {
				if !strings.Contains(ran, want+"\n") {
					t.Errorf("%q was not run:\n%s", want, ran)
				}
			}
			p, err := hypervisor.MakePlan(s.host, c.addresses)
			if err != nil {
				t.Fatal(err)
			}
			after := s.files()
			for _, f := range p.Files {
				mode := "-rw-r--r-- "
				if f.Mode == "0755" {
					mode = "-rwxr-xr-x "
				}
				if after[f.Path] != mode+f.Content {
					t.Errorf("%s: %q", f.Path, after[f.Path])
				}
			}
			if out, err = s.apply(c.addresses...); err != nil || out != "nothing to do\n" || s.commands() != "" || !same(after, s.files()) {
				t.Errorf("a second run: %v: %s", err, out)
			}
			if out, err = s.sh(hypervisor.UndoScript()); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if !same(before, s.files()) {
				t.Errorf("undo left %v, and before there was %v", s.files(), before)
			}
			ran = s.commands()
			for _, want := range c.undone {
				if !strings.Contains(ran, want+"\n") {
					t.Errorf("%q was not run:\n%s", want, ran)
				}
			}
			if out, err = s.sh(hypervisor.UndoScript()); err != nil || out != "nothing to undo\n" {
				t.Errorf("a second undo: %v: %s", err, out)
			}
		})
	}
}

func TestACommandThatFailedIsRunAgain(t *testing.T) {
	s := newStage(t, "intel-no-iommu")
	s.failingCmd = "update-initramfs"
	if out, err := s.apply(); err == nil {
		t.Fatalf("no error: %s", out)
	}
	s.commands()
	s.failingCmd = ""
	out, err := s.apply()
	if ran := s.commands(); err != nil || !strings.Contains(ran, "update-initramfs") || !strings.Contains(ran, "update-grub") {
		t.Errorf("%v: %s\n%s", err, out, ran)
	}
	if strings.Contains(out, "wrote ") {
		t.Errorf("written twice: %s", out)
	}
}

func TestAnotherPlanTakesThePlaceOfTheFirst(t *testing.T) {
	s := newStage(t, "intel-twins")
	if out, err := s.apply("41:00"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// Both cards: now ids will do, and the script by address goes.
	out, err := s.apply()
	if err != nil || !strings.Contains(out, "put back /usr/local/sbin/gpuguest-vfio-bind") {
		t.Fatalf("%v: %s", err, out)
	}
	p, err := hypervisor.MakePlan(s.host, nil)
	if err != nil {
		t.Fatal(err)
	}
	have := s.files()
	for path := range have {
		wanted := strings.HasPrefix(path, "/var/lib/gpuguest/")
		for _, f := range p.Files {
			wanted = wanted || f.Path == path
		}
		if !wanted {
			t.Errorf("%s is left", path)
		}
	}
	if out, err = s.sh(hypervisor.UndoScript()); err != nil || len(s.files()) != 0 {
		t.Errorf("%v: %s: %v", err, out, s.files())
	}
}

func TestTheBootFileOutlivesTheReboot(t *testing.T) {
	s := newStage(t, "intel-no-iommu")
	if out, err := s.apply(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// The kernel has the arguments now, from the very file.
	s.host.Cmdline = []string{"ro", "intel_iommu=on", "iommu=pt"}
	s.host.Tools["grub.d.ours"] = "/etc/default/grub.d/90-gpuguest-vfio.cfg"
	if out, err := s.apply(); err != nil || out != "nothing to do\n" {
		t.Errorf("%v: %s", err, out)
	}
}

func TestGrubbysArgumentsAreTakenBack(t *testing.T) {
	s := newStage(t, "intel-l4-clean")
	s.host.Cmdline = []string{"ro"}
	if out, err := s.apply(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if ran := s.commands(); !strings.Contains(ran, "grubby --update-kernel=ALL --args=intel_iommu=on iommu=pt\n") {
		t.Errorf("%s", ran)
	}
	if out, err := s.apply(); err != nil || out != "nothing to do\n" {
		t.Errorf("before the reboot: %v: %s", err, out)
	}
	// After the reboot the kernel has them, and they are still ours to take back.
	s.host.Cmdline = []string{"ro", "intel_iommu=on", "iommu=pt"}
	if out, err := s.apply(); err != nil || out != "nothing to do\n" {
		t.Errorf("after the reboot: %v: %s", err, out)
	}
	s.commands()
	if out, err := s.sh(hypervisor.UndoScript()); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if ran := s.commands(); !strings.Contains(ran, "grubby --update-kernel=ALL --remove-args=intel_iommu=on iommu=pt\n") {
		t.Errorf("%s", ran)
	}
}

// Where there is no folder for a file of our own and no grubby, the file that is there gets the arguments, and is kept
// for the way back: SUSE's GRUB, an old Debian's, and Proxmox with systemd-boot.
func TestTheBootLoadersOwnFileGetsTheArguments(t *testing.T) {
	const defaults = "GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX=\"quiet\"\n"
	for _, c := range []struct {
		name    string
		tools   map[string]string
		file    string
		before  string
		says    string // of the file after it
		command string
	}{
		{"SUSE", map[string]string{"grub2-mkconfig": "/usr/sbin/grub2-mkconfig"}, "/etc/default/grub", defaults, "'intel_iommu=on iommu=pt'", "grub2-mkconfig -o /boot/grub2/grub.cfg"},
		{"update-grub without a folder", map[string]string{"update-grub": "/usr/sbin/update-grub"}, "/etc/default/grub", defaults, "'intel_iommu=on iommu=pt'", "update-grub"},
		{"Proxmox with systemd-boot", map[string]string{"update-grub": "/usr/sbin/update-grub", "grub.d": "/etc/default/grub.d", "proxmox-boot-tool": "/usr/sbin/proxmox-boot-tool", "proxmox-boot-uuids": "/etc/kernel/proxmox-boot-uuids"},
			"/etc/kernel/cmdline", "root=ZFS=rpool/ROOT/pve-1 boot=zfs\n", "root=ZFS=rpool/ROOT/pve-1 boot=zfs intel_iommu=on iommu=pt\n", "proxmox-boot-tool refresh"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t, "intel-l4-clean")
			s.host.Cmdline, s.host.Tools = []string{"ro"}, c.tools
			for name := range c.tools {
				write(t, filepath.Join(s.bin, name), "#!/bin/sh\necho \"${0##*/} $*\" >>"+s.ran+"\n")
			}
			_ = os.Remove(filepath.Join(s.bin, "grubby"))
			write(t, filepath.Join(s.root, c.file), c.before)
			if err := os.Chmod(filepath.Join(s.root, c.file), 0o644); err != nil {
				t.Fatal(err)
			}
			s.host.BootFiles = []hypervisor.BootFile{{Path: c.file, Text: c.before}}
			before := s.files()
			if out, err := s.apply(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			after := s.files()
			if ran := s.commands(); !strings.Contains(ran, c.command+"\n") || !strings.Contains(after[c.file], c.says) || strings.Contains(c.file, "grub") && !strings.Contains(after[c.file], c.before) {
				t.Errorf("ran %s, %s is %s", ran, c.file, after[c.file])
			}
			// Looked at again, before and after the reboot, there is nothing to do and nothing to put back.
			_, text, _ := strings.Cut(after[c.file], " ")
			s.host.BootFiles[0].Text = text
			s.host.Tools["ours:"+c.file] = c.file
			for _, cmdline := range [][]string{{"ro"}, {"ro", "intel_iommu=on", "iommu=pt"}} {
				s.host.Cmdline = cmdline
				if out, err := s.apply(); err != nil || out != "nothing to do\n" {
					t.Errorf("with %v: %v: %s", cmdline, err, out)
				}
			}
			if out, err := s.sh(hypervisor.UndoScript()); err != nil || !same(before, s.files()) || !strings.Contains(s.commands(), c.command+"\n") {
				t.Errorf("undo: %v: %s", err, out)
			}
		})
	}
}

// The script tells of those files, and of what an apply left.
func TestTheBootLoadersFilesAreTold(t *testing.T) {
	root := plant(t, "intel-l4-clean")
	write(t, filepath.Join(root, "etc/default/grub"), "A=1\n\tB=\"x y\"\n")
	write(t, filepath.Join(root, "var/lib/gpuguest/hypervisor-undo/files/etc/default/grub"), "A=1\n")
	h := look(t, root)
	if len(h.BootFiles) != 1 || h.BootFiles[0] != (hypervisor.BootFile{Path: "/etc/default/grub", Text: "A=1\n\tB=\"x y\"\n"}) || h.Tools["ours:/etc/default/grub"] == "" {
		t.Errorf("%+v %v", h.BootFiles, h.Tools)
	}
}

func TestApplysScriptsPassShellcheck(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("shellcheck is not here")
	}
	p, err := hypervisor.MakePlan(look(t, plant(t, "intel-twins")), []string{"41:00"})
	if err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{"apply": hypervisor.ApplyScript(p), "undo": hypervisor.UndoScript()} {
		c := exec.Command("shellcheck", "-s", "sh", "-e", "SC2016", "-")
		c.Stdin = strings.NewReader(script)
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
