package facts_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gpuguest/assets"
	"gpuguest/internal/facts"
	"gpuguest/internal/sh"
)

// tree is a guest's root as path → content; a path that ends in "/" is a directory, content that begins with
// "->" a symbolic link.
type tree map[string]string

func (tr tree) write(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	paths := make([]string, 0, len(tr))
	for p := range tr {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		at := filepath.Join(root, p)
		dir := filepath.Dir(at)
		if strings.HasSuffix(p, "/") {
			dir = at
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(p, "/") {
			continue
		}
		var err error
		if link, ok := strings.CutPrefix(tr[p], "->"); ok {
			err = os.Symlink(link, at)
		} else {
			err = os.WriteFile(at, []byte(tr[p]), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// look runs facts.sh on a tree and parses what it says.
func look(t *testing.T, root string) facts.Facts {
	t.Helper()
	raw := runScript(t, root)
	f, err := facts.Parse(raw)
	if err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	return f
}

func runScript(t *testing.T, root string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// As in a guest: the script is an argument of the shell, not a file.
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", sh.Lean(assets.Facts))
	cmd.Env = []string{"GPUGUEST_ROOT=" + root, "GPUGUEST_SYS=" + filepath.Join(root, "sys"), "PATH=/usr/bin:/bin"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	raw, err := cmd.Output()
	if err != nil {
		t.Fatalf("facts.sh: %v\n%s", err, stderr.Bytes())
	}
	if stderr.Len() > 0 {
		t.Errorf("facts.sh wrote to stderr: %s", stderr.Bytes())
	}
	return raw
}

// kernels adds what an installed kernel leaves in a root.
func (tr tree) kernels(releases ...string) tree {
	for _, r := range releases {
		tr["boot/vmlinuz-"+r] = "kernel"
		tr["boot/initrd.img-"+r] = "initramfs"
		tr["lib/modules/"+r+"/modules.dep"] = "kernel/drivers/gpu/drm/nouveau/nouveau.ko: kernel/drivers/video/fbdev/core/syscopyarea.ko\n" +
			"kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko\n"
	}
	return tr
}

func (tr tree) with(path, content string) tree {
	tr[path] = content
	return tr
}

// grubConfig is a grub.cfg as grub-mkconfig writes it, with 6.1.0-50 first and 6.1.0-49 in the submenu.
func grubConfig(def string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "if [ -s $prefix/grubenv ]; then\n  set have_grubenv=true\n  load_env\nfi\n"+
		"if [ \"${next_entry}\" ] ; then\n   set default=\"${next_entry}\"\n   set next_entry=\n   save_env next_entry\n   set boot_once=true\n"+
		"else\n   set default=\"%s\"\nfi\nfunction savedefault {\n  if [ -z \"${boot_once}\" ]; then\n    save_env saved_entry\n  fi\n}\n", def)
	entry := func(indent, title, id, release, args string) {
		fmt.Fprintf(&b, "%[1]smenuentry '%[2]s' --class debian $menuentry_id_option '%[3]s' {\n%[1]s\tload_video\n%[1]s\tif [ x$grub_platform = xxen ]; then insmod xzio; fi\n"+
			"%[1]s\techo\t'Loading Linux %[4]s ...'\n%[1]s\tlinux\t/boot/vmlinuz-%[4]s root=UUID=1-2 ro %[5]s\n%[1]s\tinitrd\t/boot/initrd.img-%[4]s\n%[1]s}\n", indent, title, id, release, args)
	}
	entry("", "Debian GNU/Linux", "gnulinux-simple-1-2", "6.1.0-50-amd64", "quiet")
	b.WriteString("submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-1-2' {\n")
	for _, r := range []string{"6.1.0-50-amd64", "6.1.0-49-amd64"} {
		entry("\t", "Debian GNU/Linux, with Linux "+r, "gnulinux-"+r+"-advanced-1-2", r, "quiet")
		entry("\t", "Debian GNU/Linux, with Linux "+r+" (recovery mode)", "gnulinux-"+r+"-recovery-1-2", r, "single")
	}
	b.WriteString("}\nmenuentry 'Someone'\\''s \"own\"' --id own {\n\tlinux /vmlinuz-6.1.0-49-amd64 root=/dev/vda1 dyndbg=\"file a.c +p\"\n}\n")
	b.WriteString("menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {\n\tfwsetup\n}\n")
	return b.String()
}

func TestNextKernelIsTheOneTheBootloaderStarts(t *testing.T) {
	const newer, older = "6.1.0-50-amd64", "6.1.0-49-amd64"
	two := func() tree { return tree{}.kernels(newer, older) }
	grub := func(def string) tree { return two().with("boot/grub/grub.cfg", grubConfig(def)) }
	env := func(lines string) string {
		return "# GRUB Environment Block\n" + lines + strings.Repeat("#", 200)
	}
	bls := func(release, options string) string {
		return "title Rocky Linux (" + release + ")\nversion " + release + "\nlinux /vmlinuz-" + release + "\ninitrd /initramfs-" + release + ".img\noptions " + options + "\n"
	}
	el := func(env string) tree {
		return tree{}.kernels("5.14.0-9.el9.x86_64", "5.14.0-10.el9.x86_64").
			with("boot/grub2/grub.cfg", "   set default=\"${saved_entry}\"\ninsmod blscfg\nblscfg\n").
			with("boot/grub2/grubenv", env).
			with("boot/loader/entries/m-5.14.0-9.el9.x86_64.conf", bls("5.14.0-9.el9.x86_64", "root=/dev/vda1 ro")).
			with("boot/loader/entries/m-5.14.0-10.el9.x86_64.conf", bls("5.14.0-10.el9.x86_64", "$kernelopts $tuned_params rd.driver.blacklist=nouveau"))
	}
	sd := func(conf string) tree {
		return tree{}.kernels(newer, older).
			with("boot/efi/loader/loader.conf", conf).
			with("boot/efi/loader/entries/m-"+newer+".conf", "title Debian\nversion "+newer+"\noptions root=/dev/vda2 ro\nlinux /m/"+newer+"/linux\ninitrd /m/"+newer+"/initrd.img-"+newer+"\n").
			with("boot/efi/loader/entries/m-"+older+".conf", "title Debian\nversion "+older+"\noptions root=/dev/vda2 ro\nlinux /m/"+older+"/linux\n")
	}
	for _, c := range []struct {
		name       string
		in         tree
		next, from string
		cmdline    string
	}{
		{"default 0", grub("0"), newer, "grub default 0", "root=UUID=1-2 ro quiet"},
		{"submenu by numbers", grub("1>2"), older, "grub default 1>2", "root=UUID=1-2 ro quiet"},
		{"recovery by numbers", grub("1>3"), older, "grub default 1>3", "root=UUID=1-2 ro single"},
		{"submenu by ids", grub("gnulinux-advanced-1-2>gnulinux-" + older + "-advanced-1-2"), older, "grub default gnulinux-advanced-1-2>gnulinux-" + older + "-advanced-1-2", "root=UUID=1-2 ro quiet"},
		{"submenu by titles", grub("Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux " + older), older, "grub default Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux " + older, "root=UUID=1-2 ro quiet"},
		{"submenu itself", grub("1"), newer, "grub default 1", "root=UUID=1-2 ro quiet"},
		{"title with quotes", grub(`Someone's \"own\"`), older, `grub default Someone's "own"`, "root=/dev/vda1 dyndbg=file a.c +p"},
		{"id given by --id", grub("own"), older, "grub default own", "root=/dev/vda1 dyndbg=file a.c +p"},
		{"no such entry", grub("7"), newer, "grub default 7 names no entry, so the first", "root=UUID=1-2 ro quiet"},
		{"no Linux", grub("uefi-firmware"), "", "grub default uefi-firmware starts no Linux kernel: UEFI Firmware Settings", ""},
		{"saved", grub("${saved_entry}").with("boot/grub/grubenv", env("saved_entry=1>2\n")), older, "grub saved_entry 1>2", "root=UUID=1-2 ro quiet"},
		{"nothing saved", grub("${saved_entry}").with("boot/grub/grubenv", env("")), newer, "grub default saved, nothing saved, so the first entry", "root=UUID=1-2 ro quiet"},
		{"next once", grub("0").with("boot/grub/grubenv", env("next_entry=1>2\n")), older, "grub next_entry 1>2 (once)", "root=UUID=1-2 ro quiet"},
		{"next once, used up", grub("0").with("boot/grub/grubenv", env("next_entry=\n")), newer, "grub default 0", "root=UUID=1-2 ro quiet"},
		{"computed", grub("${mine}"), "", "grub's default is computed at boot: ${mine}", ""},
		{"empty menu", two().with("boot/grub/grub.cfg", "set default=\"0\"\n"), "", "grub.cfg has no entry that is understood", ""},
		{"kernel without modules", tree{}.kernels(older).with("boot/grub/grub.cfg", grubConfig("0")), newer, "grub default 0; /lib/modules/" + newer + " is missing", "root=UUID=1-2 ro quiet"},
		{"kernel file without release", tree{}.kernels(older).with("boot/grub/grub.cfg", "menuentry 'x' {\nlinux /vmlinuz root=/dev/vda1\n}\n"), older, "grub default 0, whose kernel /vmlinuz is the only one installed", "root=/dev/vda1"},
		{"kernel file without release, two kernels", two().with("boot/grub/grub.cfg", "menuentry 'x' {\nlinux /vmlinuz root=/dev/vda1\n}\n"), "", "grub default 0, whose kernel /vmlinuz names no release", ""},
		{"boot loader specification, saved", el(env("saved_entry=m-5.14.0-9.el9.x86_64\n")), "5.14.0-9.el9.x86_64", "grub saved_entry m-5.14.0-9.el9.x86_64", "root=/dev/vda1 ro"},
		{"boot loader specification, newest", el(env("kernelopts=root=/dev/vda1 ro crashkernel=auto\n")), "5.14.0-10.el9.x86_64", "grub default saved, nothing saved, so the first entry", "root=/dev/vda1 ro crashkernel=auto rd.driver.blacklist=nouveau"},
		{"systemd-boot, newest", sd("timeout 3\n"), newer, "systemd-boot newest entry", "root=/dev/vda2 ro"},
		{"systemd-boot, pattern", sd("default m-*-49-*\n"), older, "systemd-boot default m-*-49-*", "root=/dev/vda2 ro"},
		{"systemd-boot, kept in the firmware", sd("default @saved\n"), "", "systemd-boot's default is kept in the firmware: @saved", ""},
		{"one kernel, no bootloader", tree{}.kernels(older), older, "only kernel installed", ""},
		{"two kernels, no bootloader", two(), "", "no bootloader configuration, and 2 kernels are installed", ""},
		{"no kernel", tree{}, "", "no kernel is installed in the guest", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := look(t, c.in.write(t))
			k := f.Kernel
			if k.Next != c.next || k.NextFrom != c.from {
				t.Errorf("next %q by %q, want %q by %q", k.Next, k.NextFrom, c.next, c.from)
			}
			if got := strings.Join(k.NextCmdline, " "); got != c.cmdline {
				t.Errorf("command line %q, want %q", got, c.cmdline)
			}
			if k.Next == "" {
				return
			}
			if want := !strings.Contains(c.from, "is missing"); k.NextModules != want {
				t.Errorf("modules directory %v, want %v", k.NextModules, want)
			}
			if k.NextModules && !f.Loadable["nouveau"] {
				t.Errorf("nouveau is not loadable: %v", f.Loadable)
			}
		})
	}
}

// The kernel takes Secure Boot for off as well where shim was told to check nothing, which the firmware does not know.
func TestSecureBootIsOnWhereTheKernelTakesItForOn(t *testing.T) {
	const (
		firmware = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
		shim     = "sys/firmware/efi/efivars/MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
		no, yes  = "\x06\x00\x00\x00\x00", "\x06\x00\x00\x00\x01"
	)
	for name, c := range map[string]struct {
		vars tree
		want string
	}{
		"on":                    {tree{firmware: yes}, "enabled"},
		"off":                   {tree{firmware: no}, "disabled"},
		"on, and shim checks":   {tree{firmware: yes, shim: no}, "enabled"},
		"on, and shim does not": {tree{firmware: yes, shim: yes}, "disabled"},
		"off, and shim too":     {tree{firmware: no, shim: yes}, "disabled"},
		"shim alone":            {tree{shim: yes}, ""},
		"a BIOS":                {tree{"sys/firmware/acpi/": ""}, "unsupported"},
		"nothing":               {tree{}, ""},
	} {
		if f := look(t, c.vars.kernels("6.1.0-50-amd64").write(t)); f.Secure.State != c.want {
			t.Errorf("%s: %q, want %q", name, f.Secure.State, c.want)
		}
	}
}

const nvidiaList = "deb https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/ /\n"

func TestScriptReadsATreeAsItReadsAGuest(t *testing.T) {
	lock := "var/lib/dpkg/lock-frontend"
	tr := tree{
		"etc/os-release":                 "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian \\\"12\\\"\"\n",
		"usr/lib/os-release":             "ID=other\n",
		"proc/sys/kernel/osrelease":      "6.1.0-50-amd64\n",
		"proc/sys/kernel/arch":           "x86_64\n",
		"proc/sys/kernel/hostname":       "trick\n",
		"proc/sys/kernel/random/boot_id": "5f1c1d5e-6c1b-4c0b-9a53-1df6f3c4b2a1\n",
		"proc/1/comm":                    "systemd\n",
		"proc/cmdline":                   "root=/dev/vda1 == end |x !y",
		"proc/mounts":                    "/dev/vda1 / ext4 rw 0 0\nproc /proc proc rw 0 0\n",
		"proc/keys":                      "2b1a7c32 I------     1 perm 1f030000     0     0 asymmetri Debian Secure Boot CA: X509.rsa bb419ea1 []\n2b1a7c33 I------ 1 perm 1f030000 0 0 keyring   .builtin: 1\n",
		lock:                             "",
		"proc/4242/cmdline":              "apt-get\x00install\x00-y\x00",
		"proc/4242/comm":                 "apt-get\n",
		"proc/driver/nvidia/version":     "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (x)  Tue\n",

		"sys/bus/pci/devices/0000:00:01.0/vendor":           "0x8086\n",
		"sys/bus/pci/devices/0000:01:00.0/vendor":           "0x10de\n",
		"sys/bus/pci/devices/0000:01:00.0/device":           "0x1c82\n",
		"sys/bus/pci/devices/0000:01:00.0/subsystem_vendor": "0x1b4c\n",
		"sys/bus/pci/devices/0000:01:00.0/subsystem_device": "0x11bf\n",
		"sys/bus/pci/devices/0000:01:00.0/class":            "0x030000\n",
		"sys/bus/pci/devices/0000:01:00.0/numa_node":        "1\n",
		"sys/bus/pci/devices/0000:01:00.0/driver_override":  "vfio-pci\n",
		"sys/bus/pci/devices/0000:01:00.0/driver":           "->../../drivers/vfio-pci",
		"sys/bus/pci/drivers/vfio-pci/":                     "",
		"sys/bus/pci/devices/0000:01:00.0/resource": "0x00000000fa000000 0x00000000faffffff 0x0000000000040200\n" +
			"0x0000000000000000 0x0000000000000000 0x0000000000000000\n0x0000000000000000 0x000000000fffffff 0x000000000014220c\n",
		"sys/bus/pci/devices/0000:01:00.1/vendor":                                  "0x10de\n",
		"sys/bus/pci/devices/0000:01:00.1/class":                                   "0x040300\n",
		"sys/module/nvidiafb/":                                                     "",
		"sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c": "\x06\x00\x00\x00\x01",
		"sys/firmware/efi/efivars/SetupMode-8be4df61-93ca-11d2-aa0d-00e098032b8c":  "\x06\x00\x00\x00\x00",
		"sys/kernel/security/lockdown":                                             "none [integrity] confidentiality\n",
		"sys/module/module/parameters/sig_enforce":                                 "Y\n",
		"sys/class/dmi/id/sys_vendor":                                              "QEMU\n",
		"lib/modules/6.1.0-50-amd64/build/Makefile":                                "",
		"lib/modules/6.1.0-50-amd64/modules.builtin":                               "kernel/drivers/vfio/pci/vfio-pci.ko\n",
		"boot/config-6.1.0-50-amd64":                                               "#\n# Automatically generated file; DO NOT EDIT.\n#\nCONFIG_CC_VERSION_TEXT=\"gcc-12 (Debian 12.2.0-14) 12.2.0\"\n",
		"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05":                       "",
		"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1":                               "->libnvidia-ml.so.580.95.05",
		"usr/bin/nvidia-uninstall":                                                 "",
		"var/lib/nvidia/log":                                                       "580.95.05 (NVIDIA Accelerated Graphics Driver)\nmore 123.45\n",
		"usr/local/cuda-13.0/version.json":                                         "{}",
		"usr/local/cuda":                                                           "->cuda-13.0",
		"var/lib/dkms/nvidia/580.95.05/6.1.0-49-amd64/x86_64/module/nvidia.ko":     "",
		"var/lib/dkms/nvidia/580.95.05/source":                                     "->/usr/src/nvidia-580.95.05",
		"var/lib/dkms/nvidia/kernel-6.1.0-49-amd64-x86_64":                         "->580.95.05/6.1.0-49-amd64/x86_64",
		"var/lib/dkms/zfs/2.1/source":                                              "->/usr/src/zfs",
		"etc/apt/sources.list":                                                     "deb [signed-by=/k.gpg arch=amd64] http://mirror.example/debian bookworm main contrib # end\n#deb http://mirror.example/debian no main\ndeb-src http://mirror.example/debian no main\n",
		"etc/apt/sources.list.d/a.sources":                                         "Types: deb deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm-updates\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBFit\n\nEnabled: no\nTypes: deb\nURIs: http://mirror.example/off\nSuites: x\nComponents: main\n",
		"etc/apt/sources.list.d/cuda.list":                                         nvidiaList,
		"etc/apt/sources.list.d/cuda-debian12-x86_64.list":                         nvidiaList,
		"etc/apt/sources.list.d/commented.list":                                    "# " + nvidiaList,
		"etc/apt/sources.list.d/old.list.bak":                                      nvidiaList,
		"var/lib/dpkg/info/cuda-keyring.list":                                      "/.\n/etc/apt/sources.list.d/cuda-debian12-x86_64.list\n",
		"etc/apt/trusted.gpg.d/cuda.gpg":                                           "\x99\x01\xf6\x0f\x4b\x3d\x7f\xa2\xaf\x80\x00",
		"etc/apt/trusted.gpg.d/debian.gpg":                                         "\x99\x01\x00",
		"run/cloud-init/result.json":                                               "{\"v1\": {\"errors\": [\"boom\"]}}",
		"run/cloud-init/enabled":                                                   "",
		"usr/bin/cloud-init":                                                       "",
		"var/lib/gpuguest/journal":                                                 "{\"a\":1}\n{\"b\":\"== end\"}\n",
		"var/lib/gpuguest/jobs/driver-1/9/exit":                                    "0\n",
		"var/lib/gpuguest/jobs/driver-1/10/log":                                    "",
		"var/lib/gpuguest/jobs/initramfs-2/1/exit":                                 "0\n",
		"var/lib/gpuguest/jobs/repo-3/1/exit":                                      "",
	}.kernels("6.1.0-50-amd64")
	root := tr.write(t)
	info, err := os.Stat(filepath.Join(root, lock))
	if err != nil {
		t.Fatal(err)
	}
	inode := info.Sys().(*syscall.Stat_t).Ino
	more := tree{"proc/locks": fmt.Sprintf("1: POSIX  ADVISORY  WRITE 4243 08:01:%[1]d 0 EOF\n2: POSIX  ADVISORY  WRITE 4242 08:01:%[1]d 0 EOF\n2: -> POSIX  ADVISORY  WRITE 4244 08:01:%[1]d 0 EOF\n", inode)}
	if err := os.WriteFile(filepath.Join(root, "proc/locks"), []byte(more["proc/locks"]), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "proc/4242/fd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(root, lock), filepath.Join(root, "proc/4242/fd/5")); err != nil {
		t.Fatal(err)
	}

	before := listing(t, root)
	f := look(t, root)
	if after := listing(t, root); after != before {
		t.Errorf("the script changed the tree:\n%s\n%s", before, after)
	}

	check := func(what string, got, want any) {
		t.Helper()
		if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
			t.Errorf("%s:\n got %s\nwant %s", what, g, w)
		}
	}
	check("os", f.OS, facts.OS{ID: "debian", VersionID: "12", Name: `Debian "12"`})
	check("id", []string{f.Arch, f.Host, f.BootID, f.Kernel.Running}, []string{"x86_64", "trick", "5f1c1d5e-6c1b-4c0b-9a53-1df6f3c4b2a1", "6.1.0-50-amd64"})
	check("cmdline", strings.Join(f.Kernel.Cmdline, " "), "root=/dev/vda1 == end |x !y")
	check("gpus", f.GPUs, []facts.PCI{{
		Address: "0000:01:00.0", Vendor: "10de", Device: "1c82", Subvendor: "1b4c", Subdevice: "11bf", Class: "030000",
		Driver: "vfio-pci", Override: "vfio-pci", NUMA: 1,
		BARs: []facts.BAR{{Index: 0, Start: 0xfa000000, Size: 16 << 20, Flags: 0x40200}, {Index: 2, Size: 256 << 20, Flags: 0x14220c}},
	}})
	check("other functions", f.Other, []facts.PCI{{Address: "0000:01:00.1", Vendor: "10de", Class: "040300", NUMA: -1}})
	check("loaded", []bool{f.Loaded["nvidiafb"], f.Loaded["nouveau"]}, []bool{true, false})
	check("loadable", []bool{f.Loadable["nouveau"], f.Loadable["vfio_pci"], f.Loadable["nvidia"]}, []bool{true, true, false})
	check("headers", f.Kernel.Headers, []string{"6.1.0-50-amd64"})
	check("compiler", f.Kernel.Compiler, "gcc-12 (Debian 12.2.0-14) 12.2.0")
	check("image", f.Boot.Image, "/boot/initrd.img-6.1.0-50-amd64")
	check("secure boot", f.Secure, facts.SecureBoot{EFI: true, State: "enabled", Keys: []string{"Debian Secure Boot CA"}})
	check("lockdown", []any{f.Kernel.Lockdown, f.Kernel.SigEnforce}, []any{"integrity", true})
	check("virt", f.Virt, "qemu")
	check("driver", []string{f.Driver.Loaded, f.Driver.LoadedFlavor, f.Driver.Library}, []string{"580.95.05", "open", "580.95.05"})
	check("dkms", strings.Join(f.Driver.DKMS, "; "), "nvidia/580.95.05, 6.1.0-49-amd64, x86_64: built; zfs/2.1: added")
	check("runfile", f.Runfile, facts.Runfile{Version: "580.95.05", Uninstaller: "/usr/bin/nvidia-uninstall"})
	check("cuda", f.CUDA, []string{"13.0"})
	check("lock", *f.Lock, facts.Holder{PID: 4242, Command: "apt-get install -y", File: "/var/lib/dpkg/lock-frontend"})
	check("old", f.OldNVIDIA, []string{"/etc/apt/sources.list.d/cuda.list", "/etc/apt/trusted.gpg.d/cuda.gpg"})
	check("sources", f.Sources, []facts.Source{
		{URI: "http://mirror.example/debian", Suite: "bookworm", Component: "main", SignedBy: "/k.gpg", File: "/etc/apt/sources.list"},
		{URI: "http://mirror.example/debian", Suite: "bookworm", Component: "contrib", SignedBy: "/k.gpg", File: "/etc/apt/sources.list"},
		{URI: "http://mirror.example/debian", Suite: "bookworm-updates", Component: "main", SignedBy: "embedded", File: "/etc/apt/sources.list.d/a.sources"},
		{URI: "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/", Suite: "/", File: "/etc/apt/sources.list.d/cuda-debian12-x86_64.list"},
		{URI: "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/", Suite: "/", File: "/etc/apt/sources.list.d/cuda.list"},
	})
	check("cloud-init", []string{f.Cloud, f.CloudNote}, []string{"error", "boom"})
	check("journal", f.State.Journal, tr["var/lib/gpuguest/journal"])
	check("jobs", f.State.Jobs, []string{"driver-1", "repo-3"})
}

// listing is every path of a tree with its kind, size and time of change.
func TestAdaptersThatManageSwitchesOfNVLink5AreTold(t *testing.T) {
	root := tree{
		"sys/bus/pci/devices/0000:c1:00.0/vendor": "0x15b3\n", "sys/bus/pci/devices/0000:c1:00.0/device": "0x1021\n", "sys/bus/pci/devices/0000:c1:00.0/class": "0x020700\n",
		"sys/bus/pci/devices/0000:c1:00.0/vpd": "\x82\x2dNvidia ConnectX-7\x00\x90VA\x10SMDL=SW_MNG\x00",
		// The same adapter for a network.
		"sys/bus/pci/devices/0000:c2:00.0/vendor": "0x15b3\n", "sys/bus/pci/devices/0000:c2:00.0/device": "0x1021\n", "sys/bus/pci/devices/0000:c2:00.0/class": "0x020700\n",
		"sys/bus/pci/devices/0000:c2:00.0/vpd":    "\x82\x2dNvidia ConnectX-7\x00",
		"sys/bus/pci/devices/0000:c3:00.0/vendor": "0x15b3\n",
	}.write(t)
	f := look(t, root)
	if len(f.Other) != 1 || f.Other[0].Address != "0000:c1:00.0" || f.Other[0].Vendor != facts.Mellanox || len(f.GPUs) != 0 {
		t.Errorf("%+v", f.Other)
	}
}

func listing(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(&b, p, info.Mode(), info.Size(), info.ModTime())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestCloudInitStateIsReadFromItsFiles(t *testing.T) {
	for _, c := range []struct {
		name string
		in   tree
		want string
	}{
		{"not installed", tree{"etc/": ""}, ""},
		{"installed, not started", tree{"usr/bin/cloud-init": ""}, "not run"},
		{"started", tree{"usr/bin/cloud-init": "", "run/cloud-init/enabled": ""}, "running"},
		{"at work", tree{"usr/bin/cloud-init": "", "run/cloud-init/status.json": "{}"}, "running"},
		{"of the boot before", tree{"usr/bin/cloud-init": "", "run/cloud-init/enabled": "", "var/lib/cloud/instance/boot-finished": ""}, "running"},
		{"done", tree{"usr/bin/cloud-init": "", "run/cloud-init/result.json": `{"v1": {"errors": []}}`}, "done"},
		{"cut off while written", tree{"usr/bin/cloud-init": "", "run/cloud-init/result.json": `{"v1": {"err`}, ""},
		{"disabled by file", tree{"usr/bin/cloud-init": "", "etc/cloud/cloud-init.disabled": ""}, "disabled"},
		{"disabled on the command line", tree{"usr/bin/cloud-init": "", "proc/cmdline": "ro cloud-init=disabled"}, "disabled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := look(t, c.in.write(t)).Cloud; got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestScriptFitsAnExecRequest(t *testing.T) {
	if n := len(sh.Lean(assets.Facts)); n > 24<<10 {
		t.Errorf("facts.sh has %d bytes", n)
	}
}

func TestPackagesAreReadFromTheDatabaseOfDpkg(t *testing.T) {
	if _, err := exec.LookPath("dpkg-query"); err != nil {
		t.Skip("no dpkg-query on this machine: ", err)
	}
	stanza := func(name, arch, version, status string, more ...string) string {
		return "Package: " + name + "\nStatus: " + status + "\nArchitecture: " + arch + "\nVersion: " + version + "\n" +
			strings.Join(more, "") + "Maintainer: x <x@example.org>\nDescription: x\n\n"
	}
	const same = "Multi-Arch: same\n"
	f := look(t, tree{"var/lib/dpkg/status": stanza("dpkg", "amd64", "1.21.23", "install ok installed") +
		stanza("linux-image-amd64", "amd64", "6.1.176-1", "hold ok installed") +
		stanza("libnvidia-ml1", "amd64", "535.309.01-1", "install ok installed", same) +
		stanza("libnvidia-ml1", "i386", "535.309.01-1", "install ok installed", same) +
		stanza("dkms", "all", "3.0.10-8", "install ok triggers-pending", "Triggers-Pending: /usr/lib/x\n") +
		stanza("nvidia-driver", "amd64", "470.1-1", "deinstall ok config-files", "Config-Version: 470.1-1\n") +
		stanza("bash", "amd64", "5.2-2", "install ok installed") +
		stanza("vim", "amd64", "9.0-1", "hold ok installed") +
		stanza("postfix", "amd64", "3.8-1", "install ok half-configured", "Config-Version: 3.8-1\n") +
		stanza("broken", "amd64", "1-1", "install reinstreq half-installed"),
		"var/lib/dpkg/info/":     "",
		"var/lib/dpkg/triggers/": "",
		"usr/bin/dkms":           "#!/bin/sh\n",
	}.write(t))
	want := map[string]string{"dpkg": "1.21.23", "linux-image-amd64": "6.1.176-1", "libnvidia-ml1": "535.309.01-1", "libnvidia-ml1:i386": "535.309.01-1", "vim": "9.0-1"}
	if fmt.Sprint(f.Packages) != fmt.Sprint(want) {
		t.Errorf("packages: %v", f.Packages)
	}
	if want := []string{"broken (half-installed)", "dkms (triggers-pending)", "postfix (half-configured)"}; !slices.Equal(f.Broken, want) {
		t.Errorf("broken: %q", f.Broken)
	}
	if want := []string{"linux-image-amd64", "vim"}; !slices.Equal(f.Held, want) {
		t.Errorf("held: %q", f.Held)
	}
	if want := []string{"linux-image-amd64"}; !slices.Equal(f.Kernel.Meta, want) {
		t.Errorf("meta packages: %q", f.Kernel.Meta)
	}
}

// TestCertificatesOfTheGuestAreRead tells a machine owner key by what the kernel would list it by.
func TestCertificatesOfTheGuestAreRead(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(0x81), Subject: pkix.Name{CommonName: "DKMS module signing key"}, SubjectKeyId: []byte{0x9a, 0x1c}}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	template.SubjectKeyId = nil
	bare, err := x509.CreateCertificate(rand.Reader, &template, &template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	f := look(t, tree{
		"var/lib/dkms/mok.pub": string(der), "var/lib/dkms/mok.key": "secret\n", "var/lib/shim-signed/mok/MOK.der": string(bare),
		"proc/keys": "3ad2ee5f I------     1 perm 1f030000     0     0 asymmetri DKMS module signing key: 9a1c: X509.rsa 01234567 []\n",
	}.write(t))
	const name = "DKMS module signing key"
	want := []facts.Certificate{{File: "/var/lib/shim-signed/mok/MOK.der", Subject: name, Issuer: name, KeyID: "0081"}, {File: "/var/lib/dkms/mok.pub", Subject: name, Issuer: name, KeyID: "9a1c"}}
	if !slices.Equal(f.Secure.Certificates, want) {
		t.Errorf("certificates are %+v", f.Secure.Certificates)
	}
	if !f.Secure.Trusts("9a1c") || f.Secure.Trusts("1c") || f.Secure.Trusts("0081") || f.Secure.Trusts("") || !f.Secure.Names(name) || f.Secure.Names("DKMS") {
		t.Errorf("trusted are %q", f.Secure.Keys)
	}
	if f := look(t, tree{"var/lib/dkms/mok.pub": "no certificate\n"}.write(t)); len(f.Secure.Certificates) != 0 || len(f.Secure.SigningKeys) != 1 {
		t.Errorf("of what is none: %+v", f.Secure)
	}
}

// TestLedgerTellsWhatWasDonePastThePackageManager reads the records that the steps of installers write.
func TestLedgerTellsWhatWasDonePastThePackageManager(t *testing.T) {
	const l = "var/lib/gpuguest/"
	f := look(t, tree{
		l + "before/packages": "bash 5\n", l + "before/runfile": "390.42\n580.95.05\n", l + "before/toolkit": "9.1\n12.8\n9.1\n", l + "before/cuda-link": "alternatives=/usr/local/cuda-11.8\n",
		l + "before/account": "nvidia-persistenced\n", l + "before/service": "systemd\n", l + "before/absent/etc/profile.d/gpuguest-cuda.sh": "",
		l + "before/toolkit-9.1.was": "/etc/a\n", l + "secure-boot/key.pem": "secret\n",
	}.write(t))
	want := facts.State{Before: true, Absent: []string{"/etc/profile.d/gpuguest-cuda.sh"}, Runfile: "580.95.05", Toolkits: []string{"9.1", "12.8"},
		CUDALink: "alternatives=/usr/local/cuda-11.8", SigningKey: true, Accounts: []string{"nvidia-persistenced"}, Services: []string{"systemd"}}
	if fmt.Sprintf("%+v", f.State) != fmt.Sprintf("%+v", want) {
		t.Errorf("\n got %+v\nwant %+v", f.State, want)
	}
	if f := look(t, tree{l + "before/packages": "bash 5\n"}.write(t)); fmt.Sprintf("%+v", f.State) != fmt.Sprintf("%+v", facts.State{Before: true}) {
		t.Errorf("of a guest in which there was no installer: %+v", f.State)
	}
}

// Guests get the script without its comments and indentation; what it prints there is what the whole one prints.
func TestLeanScriptPrintsTheSameFacts(t *testing.T) {
	root := tree{}.kernels("6.1.0-50-amd64").with("boot/grub/grub.cfg", grubConfig("0")).with("etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n").
		with("var/lib/gpuguest/journal", "{\"event\":\"begin\"}\n").with("var/lib/gpuguest/before/cmdline", "ro\n").write(t)
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", assets.Facts)
	cmd.Env = []string{"GPUGUEST_ROOT=" + root, "GPUGUEST_SYS=" + filepath.Join(root, "sys"), "PATH=/usr/bin:/bin"}
	whole, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if lean := runScript(t, root); !bytes.Equal(lean, whole) {
		t.Errorf("the lean script prints\n%s\nand the whole one\n%s", lean, whole)
	}
}

// TestWhatElseIsAskedFollowsTheFacts puts functions before the script as the engine does.
func TestWhatElseIsAskedFollowsTheFacts(t *testing.T) {
	if _, err := exec.LookPath("dpkg-query"); err != nil {
		t.Skip("no dpkg-query on this machine: ", err)
	}
	root := tree{}.kernels("6.1.0-50-amd64").with("etc/os-release", "ID=debian\n").
		with("lib/modules/6.1.0-50-amd64/modules.dep", "updates/dkms/nvidia.ko:\n").
		with("var/lib/dpkg/status", "Package: make\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\nMaintainer: x <x@example.org>\nDescription: x\n\n").write(t)
	module := filepath.Join(root, "lib/modules/6.1.0-50-amd64/updates/dkms/nvidia.ko")
	for _, c := range []struct {
		name, before     string
		packages, module string
	}{
		{"told", "gpuguest_packages='installed dkms 3.0\t|ii \tdkms\t3.0\tall\ninstalled bash 5\t|ii \tbash\t5\tamd64'\ngpuguest_packages_code=0\ngpuguest_said_1='filename:       " + module + "\nversion:        580.95.05\nlicense:        NVIDIA'\n", "map[dkms:3.0]", "580.95.05"},
		{"told half", "gpuguest_packages='installed dkms 3\t|ii \tdkms\t3\tall'\ngpuguest_packages_code=2\n", "map[]", ""},
		{"told nothing", ":\n", "map[make:1]", ""},
		{"told of another module", "gpuguest_said_1='filename:       /elsewhere/nvidia.ko\nversion:        580.95.05\n'", "map[make:1]", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			script := "gpuguest_before() {\n" + c.before + "\n}\ngpuguest_beside() {\ncat\necho 'beside 1'\necho quiet >&2\nprintf 'beside 2'\n}\n" + sh.Lean(assets.Facts)
			cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", script)
			cmd.Env = []string{"GPUGUEST_ROOT=" + root, "GPUGUEST_SYS=" + filepath.Join(root, "sys"), "PATH=/usr/bin:/bin"}
			var said bytes.Buffer
			cmd.Stderr = &said
			out, err := cmd.Output()
			if err != nil || said.Len() > 0 {
				t.Fatalf("%v, %q", err, said.Bytes())
			}
			raw, ok := bytes.CutSuffix(out, []byte("beside 1\nbeside 2\n"))
			if !ok || !bytes.HasSuffix(raw, []byte("\n== end\n")) {
				t.Fatalf("the answers do not follow the facts: %q", out[max(0, len(out)-200):])
			}
			f, err := facts.Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(f.Packages); got != c.packages {
				t.Errorf("packages %s, want %s", got, c.packages)
			}
			version := ""
			for _, m := range f.Driver.Modules {
				version = m.Version
			}
			if version != c.module {
				t.Errorf("module of version %q, want %q", version, c.module)
			}
		})
	}
}
