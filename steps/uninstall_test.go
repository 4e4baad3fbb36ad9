package steps

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/facts"
)

func TestFoldersThatWereOnlyForOurFilesGoWithThem(t *testing.T) {
	i := slices.IndexFunc(remove, func(s Step) bool { return s.ID == "restore-files" })
	for name, theirs := range map[string]string{"empty": "", "with somebody's file": "notes.txt"} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			dir := filepath.Join(root, "usr/local/lib/gpuguest")
			file := filepath.Join(dir, "verify.sh")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, f := range []string{"verify.sh", theirs} {
				if f == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			in := Input{Facts: facts.Facts{State: facts.State{Absent: []string{file}}}}
			if code, text, _ := ask(t, remove[i].Check(in)); code != 1 {
				t.Errorf("before: exit %d: %s", code, text)
			}
			for _, a := range remove[i].Apply(in) {
				if code, text, _ := ask(t, a.(action.Run).Script); code != 0 {
					t.Fatalf("exit %d: %s", code, text)
				}
			}
			if code, text, _ := ask(t, remove[i].Check(in)); code != 0 {
				t.Errorf("after: exit %d: %s", code, text)
			}
			if _, err := os.Stat(dir); (err == nil) != (theirs != "") {
				t.Errorf("its folder: %v", err)
			}
			// An earlier gpuguest left the folder; that counts as not done.
			if theirs == "" {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if code, text, _ := ask(t, remove[i].Check(in)); code != 1 {
					t.Errorf("with the empty folder: exit %d: %s", code, text)
				}
			}
		})
	}
	absent := []string{"/etc/modprobe.d/gpuguest.conf", "/etc/systemd/system/nvidia-persistenced.service.d/gpuguest.conf", "/usr/local/lib/gpuguest/a", "/usr/local/lib/gpuguest/b",
		"/etc/systemd/system/multi-user.target.wants/gpuguest-verify.service", "/etc/apt/preferences.d/gpuguest"}
	if got, want := emptied(absent), []string{"/etc/systemd/system/nvidia-persistenced.service.d", "/usr/local/lib/gpuguest"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// What somebody else gave the kernel since install is no reason to hold the guest for not taken back.
func TestOnlyOurKernelArgumentsMustBeGone(t *testing.T) {
	i := slices.IndexFunc(remove, func(s Step) bool { return s.ID == "removed" })
	d, err := distros.For(facts.OS{ID: "debian", VersionID: "12"}, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, before, now string
		code              int
		says              string
	}{
		{"as before", "root=/dev/vda1 ro quiet", "root=/dev/vda1 ro quiet", 0, "what install added is gone"},
		{"somebody added and took away", "root=/dev/vda1 ro quiet", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro mitigations=off", 0, "what install added is gone"},
		{"ours is still there", "root=/dev/vda1 ro quiet", "root=/dev/vda1 ro quiet pci=realloc", 1, "started with pci=realloc"},
		{"ours had been there before", "root=/dev/vda1 ro pci=realloc", "root=/dev/vda1 pci=realloc", 0, "what install added is gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.MkdirAll(filepath.Join(root, "before"), 0o755); err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{"before/cmdline": c.before, "cmdline": c.now} {
				if err := os.WriteFile(filepath.Join(root, name), []byte(text+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			in := Input{Distro: d, Facts: facts.Facts{Boot: facts.Boot{Loader: "grub", Config: "/boot/grub/grub.cfg"},
				State: facts.State{Before: true, KernelArgs: []string{"nouveau.modeset=0", "pci=realloc"}}}}
			script := strings.NewReplacer("/proc/cmdline", root+"/cmdline", "/etc/default", root+"/etc/default").Replace(remove[i].Check(in))
			if code, text, _ := ask(t, script, "GPUGUEST_STATE="+root); code != c.code || !strings.Contains(text, c.says) {
				t.Errorf("exit %d: %s", code, text)
			}
		})
	}
}

// While the driver was there, a new kernel came and an old one's initramfs was made anew; an older one was not touched.
func TestEveryInitramfsThatHoldsTheBlocklistIsBuiltAnew(t *testing.T) {
	i := slices.IndexFunc(remove, func(s Step) bool { return s.ID == "boot-config" })
	d, err := distros.For(facts.OS{ID: "debian", VersionID: "12"}, "")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	write := func(name, text string, age time.Duration) {
		t.Helper()
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-age)
		if err := os.Chtimes(p, when, when); err != nil {
			t.Fatal(err)
		}
	}
	const holds, clean = "init\netc/modprobe.d/gpuguest-blocklist.conf\n", "init\n"
	if blocklistPath != "/etc/modprobe.d/gpuguest-blocklist.conf" {
		t.Fatalf("the blocklist is %s", blocklistPath)
	}
	write("before/cmdline", "ro\n", time.Hour)
	write("boot/grub/grub.cfg", "linux /vmlinuz ro\n", 0)
	for kernel, image := range map[string]struct {
		text string
		age  time.Duration
	}{"6.1.0-50-amd64": {holds, 0}, "6.1.0-51-amd64": {holds, 0}, "6.1.0-40-amd64": {holds, 2 * time.Hour}, "6.1.0-49-amd64": {clean, 0}, "6.1.0-48-amd64": {"", -1}} {
		write("modules/"+kernel+"/modules.dep", "", 0)
		if image.age >= 0 {
			write("boot/initrd.img-"+kernel, image.text, image.age)
		}
	}
	write("bin/lsinitramfs", "#!/bin/sh\ncat \"$1\"\n", 0)
	write("bin/update-grub", "#!/bin/sh\n", 0)
	write("bin/update-initramfs", "#!/bin/sh\n[ \"$1 $2\" = '-u -k' ] || exit 99\necho \"$3\" >>"+root+"/built\necho init >"+root+"/boot/initrd.img-\"$3\"\n", 0)
	in := Input{Distro: d, Facts: facts.Facts{
		Boot:   facts.Boot{Loader: "grub", Config: "/boot/grub/grub.cfg", Image: "/boot/initrd.img-6.1.0-50-amd64", Initramfs: "initramfs-tools"},
		Kernel: facts.Kernel{Next: "6.1.0-50-amd64"}, State: facts.State{Before: true},
	}}
	run := func(script string) (int, string) {
		t.Helper()
		script = strings.NewReplacer("/boot/", root+"/boot/", "/lib/modules", root+"/modules", "/etc/default", root+"/etc/default").Replace(script)
		code, text, _ := ask(t, script, "GPUGUEST_STATE="+root, "S="+root, "PATH="+root+"/bin:"+os.Getenv("PATH"))
		return code, text
	}
	check := remove[i].Check(in)
	if code, text := run(check); code != 1 || !strings.Contains(text, "6.1.0-50-amd64 holds the blocklist") {
		t.Errorf("before: exit %d: %s", code, text)
	}
	write("boot/initrd.img-6.1.0-50-amd64", clean, 0)
	if code, text := run(check); code != 1 || !strings.Contains(text, "6.1.0-51-amd64 holds the blocklist") {
		t.Errorf("with one built: exit %d: %s", code, text)
	}
	for _, a := range remove[i].Apply(in) {
		if code, text := run(a.(action.Run).Script); code != 0 {
			t.Fatalf("exit %d: %s", code, text)
		}
	}
	if code, text := run(check); code != 0 {
		t.Errorf("after: exit %d: %s", code, text)
	}
	if built, err := os.ReadFile(filepath.Join(root, "built")); err != nil || string(built) != "6.1.0-50-amd64\n6.1.0-51-amd64\n" {
		t.Errorf("built are %q, %v", built, err)
	}
}
