package facts_test

import (
	"slices"
	"strings"
	"testing"
)

const el9 = "5.14.0-570.49.1.el9_6.x86_64"

// efiTree is a guest that was booted by UEFI.
func efiTree() tree {
	return tree{"sys/firmware/efi/efivars/": "", "proc/sys/kernel/osrelease": el9 + "\n"}
}

func TestGRUBsMenuIsReadWhereTheFirmwareFindsIt(t *testing.T) {
	const kernel = "3.10.0-1160.119.1.el7.x86_64"
	menu := "set default=\"0\"\nmenuentry 'CentOS' {\n\tlinuxefi /vmlinuz-" + kernel + " root=/dev/vda1 ro\n\tinitrdefi /initramfs-" + kernel + ".img\n}\n"
	stub := "search --no-floppy --fs-uuid --set=dev 1-2\nset prefix=($dev)/grub2\nexport $prefix\nconfigfile $prefix/grub.cfg\n"
	for _, c := range []struct {
		name string
		tree tree
		want string
	}{
		{"RHEL 7 with UEFI", efiTree().with("boot/efi/EFI/centos/grub.cfg", menu).with("boot/grub2/grub.cfg", strings.ReplaceAll(menu, "1160.119", "1.1")), "/boot/efi/EFI/centos/grub.cfg"},
		{"a stub names the one in /boot", efiTree().with("boot/efi/EFI/rocky/grub.cfg", stub).with("boot/grub2/grub.cfg", menu), "/boot/grub2/grub.cfg"},
		{"BIOS does not look there", tree{"sys/firmware/acpi/": ""}.with("boot/efi/EFI/centos/grub.cfg", menu).with("boot/grub2/grub.cfg", menu), "/boot/grub2/grub.cfg"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := look(t, c.tree.kernels(kernel).with("boot/initramfs-"+kernel+".img", "x").write(t))
			if f.Boot.Config != c.want || f.Kernel.Next != kernel || f.Boot.Image != "/boot/initramfs-"+kernel+".img" || f.Boot.Entries != nil {
				t.Errorf("%+v, next %s", f.Boot, f.Kernel.Next)
			}
		})
	}
}

func TestEntriesAreToldWhereTheLoaderReadsThem(t *testing.T) {
	entry := "title Linux\nversion " + el9 + "\nlinux /vmlinuz-" + el9 + "\ninitrd /initramfs-" + el9 + ".img $tuned_initrd\noptions root=/dev/vda1 ro $tuned_params\n"
	base := func() tree {
		return efiTree().with("boot/loader/entries/a-"+el9+".conf", entry).kernels(el9).with("boot/initramfs-"+el9+".img", "x")
	}
	want := []string{"/boot/loader/entries/a-" + el9 + ".conf"}
	f := look(t, base().with("boot/grub2/grub.cfg", "set default=\"${saved_entry}\"\nblscfg\n").write(t))
	if !slices.Equal(f.Boot.Entries, want) || f.Boot.Loader != "grub" {
		t.Errorf("with blscfg: %+v", f.Boot)
	}
	// SUSE and Kylin may have entries lie about that their GRUB does not read.
	f = look(t, base().with("boot/grub2/grub.cfg", "set default=\"0\"\nmenuentry 'L' {\n\tlinux /vmlinuz-"+el9+"\n}\n").write(t))
	if f.Boot.Entries != nil {
		t.Errorf("without blscfg: %+v", f.Boot)
	}
	m := "4a1c0f5e7b9d4c20a6f1f0d9c3b2a155"
	f = look(t, efiTree().with("boot/efi/loader/loader.conf", "timeout 3\n").with("lib/modules/"+el9+"/vmlinuz", "k").with("lib/modules/"+el9+"/modules.dep", "").
		with("boot/efi/"+m+"/"+el9+"/initrd", "x").with("boot/efi/"+m+"/6.99/initrd", "x").
		with("boot/efi/loader/entries/"+m+".conf", "version "+el9+"\nlinux /"+m+"/"+el9+"/linux\ninitrd /"+m+"/"+el9+"/initrd\noptions ro\n").write(t))
	if f.Boot.Loader != "systemd-boot" || f.Boot.Image != "/boot/efi/"+m+"/"+el9+"/initrd" || len(f.Boot.Entries) != 1 {
		t.Errorf("systemd-boot: %+v", f.Boot)
	}
}

func TestLockedVersionsAreHolds(t *testing.T) {
	f := look(t, tree{
		"etc/dnf/plugins/versionlock.list":       "# Added\nkernel-core-0:5.14.0-570.12.1.el9_6.*\n!bad-0:1-1.*\nnvidia-driver-3:580.*-*.*\n",
		"etc/yum/pluginconf.d/versionlock.list":  "0:kernel-3.10.0-1160.el7.*\n",
		"etc/dnf/versionlock.toml":               "version = \"1.0\"\n[[packages]]\nname = \"bash\"\n[[packages.conditions]]\nkey = \"evr\"\ncomparator = \"=\"\nvalue = \"5.2\"\n[[packages]]\nname = \"nvidia-open\"\n[[packages.conditions]]\nkey = \"evr\"\ncomparator = \">=\"\nvalue = \"3:580\"\n",
		"etc/zypp/locks":                         "type: package\nsolvable_name: kernel-default\n",
		"etc/tdnf/locks.d/kernel.conf":           "kernel-headers\n",
		"var/lib/gpuguest/before/cmdline":        "ro\n",
		"var/lib/gpuguest/args":                  "# arguments: nouveau.modeset=0 pci=realloc\n",
		"var/lib/gpuguest/products":              "PackageHub/15.6/x86_64\n",
		"var/lib/gpuguest/before/files/etc/keep": "x",
	}.write(t))
	if want := []string{"bash", "kernel", "kernel-core", "kernel-default", "kernel-headers"}; !slices.Equal(f.Held, want) {
		t.Errorf("held are %v, want %v", f.Held, want)
	}
	if !slices.Equal(f.State.KernelArgs, []string{"nouveau.modeset=0", "pci=realloc"}) || !slices.Equal(f.State.Products, []string{"PackageHub/15.6/x86_64"}) {
		t.Errorf("%+v", f.State)
	}
}
