#!/bin/sh
# One look at the machine that VMs run on, in one round trip, changing nothing: what a GPU's passthrough needs.
#
# Run it as root with nothing on standard input; with fewer rights it says what it could not see. The framing
# is facts.sh's: `== name` starts a section, `|text` is a line of it, `!reason` says why the section is not
# (fully) known, `== end` proves that nothing was cut off. What it means is worked out in internal/hypervisor.
#
# GPUGUEST_ROOT, GPUGUEST_SYS: read a recorded tree in place of / and /sys; nothing live is asked then, and the
# kernel log is GPUGUEST_ROOT/var/log/dmesg.
LC_ALL=C
export LC_ALL
unset CDPATH
R=${GPUGUEST_ROOT:-}
S=${GPUGUEST_SYS:-$R/sys}
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
TAB='	'

sec() { printf '== %s\n' "$1"; }
why() { printf '!%s\n' "$*"; }
out() { printf '|%s\n' "$*"; }
# get FILE: first line of FILE in $v, without a fork; empty when there is none.
get() {
	v=
	if [ -r "$1" ]; then IFS= read -r v 2>/dev/null <"$1"; fi
}
# base LINK: the last part of where a symbolic link leads to in $v, empty when it leads nowhere.
base() {
	v=
	if cd -P "$1" 2>/dev/null; then
		v=${PWD##*/}
		cd / || exit 1
	fi
}

printf 'gpuguest-hypervisor 1\n'

sec id
get "$R/proc/sys/kernel/osrelease"
k=$v
out "kernel$TAB$v"
get "$R/proc/sys/kernel/arch"
if [ -z "$v" ] && [ -z "$R" ]; then v=$(uname -m); fi
out "arch$TAB$v"
get "$R/proc/sys/kernel/hostname"
out "name$TAB$v"
# shellcheck disable=SC3067 # dash, bash and busybox know -O: / is the effective user's own
if [ -z "$R" ] && ! [ -O / ]; then why "not run as root: some files are not readable"; fi

# The first processor tells for all of them.
sec cpu
if [ -r "$R/proc/cpuinfo" ]; then
	while IFS= read -r l; do
		case $l in
		vendor_id* | 'address sizes'*) out "$l" ;;
		flags*)
			case "$l " in
			*' vmx '*) out 'virt : vmx' ;;
			*' svm '*) out 'virt : svm' ;;
			*) out 'virt : none' ;;
			esac
			;;
		'') break ;;
		esac
	done <"$R/proc/cpuinfo"
else
	why "/proc/cpuinfo is not readable"
fi

sec cmdline
if [ -r "$R/proc/cmdline" ]; then
	get "$R/proc/cmdline"
	out "$v"
else
	why "/proc/cmdline is not readable"
fi

sec acpi
if [ -d "$S/firmware/acpi/tables" ]; then
	for f in "$S"/firmware/acpi/tables/*; do
		case ${f##*/} in DMAR | IVRS | IORT) out "${f##*/}" ;; esac
	done
else
	why "$S/firmware/acpi/tables: no such directory"
fi

sec iommu
if [ -d "$S/class/iommu" ]; then
	for f in "$S"/class/iommu/*; do
		if [ -e "$f" ]; then out "${f##*/}"; fi
	done
elif ! [ -d "$S/class" ]; then
	why "$S/class: no such directory"
fi

# Of the kernel log only what is about the IOMMU, PCI windows that found no room, and registers that KVM
# did not know.
sec log
log=
if [ -n "$R" ]; then
	if [ -r "$R/var/log/dmesg" ]; then log=$(cat "$R/var/log/dmesg"); else why "no kernel log was recorded"; fi
elif ! log=$(dmesg 2>/dev/null) || [ -z "$log" ]; then
	log=$(journalctl -k -b -q --no-pager -o cat 2>/dev/null)
	if [ -z "$log" ]; then why "the kernel log is not readable"; fi
fi
if [ -n "$log" ]; then
	printf '%s\n' "$log" | grep -E "DMAR|AMD-Vi|IOMMU|iommu|can't assign|no space for|failed to assign|BAR [0-5].*: assigned|(unhandled|ignored) (rd|wr)msr|vfio" | head -n 1000 | sed 's/^/|/'
	# A ring buffer that has wrapped no longer tells what was said at boot.
	case $log in *'Linux version '*) ;; *) why "the kernel log's beginning is gone" ;; esac
fi

sec modules
if [ -d "$S/module" ]; then
	for m in vfio vfio_pci vfio_iommu_type1 kvm kvm_intel kvm_amd nouveau nova_core nvidia nvidia_vgpu_vfio nvidiafb snd_hda_intel; do
		if [ -d "$S/module/$m" ]; then out "loaded$TAB$m"; fi
	done
else
	why "$S/module: no such directory"
fi
if [ -r "$R/lib/modules/$k/modules.builtin" ] || [ -r "$R/lib/modules/$k/modules.dep" ]; then
	for f in builtin dep; do
		if [ -r "$R/lib/modules/$k/modules.$f" ]; then
			sed -n "s!^\\([^:]*/\\)\\{0,1\\}\\(vfio[-_]pci\\|vfio_iommu_type1\\)\\.ko[^:]*\\(:.*\\)\\{0,1\\}\$!|$f$TAB\\2!p" "$R/lib/modules/$k/modules.$f"
		fi
	done
else
	why "/lib/modules/$k: no list of modules"
fi

sec parameters
for p in kvm/ignore_msrs vfio_pci/ids vfio_iommu_type1/allow_unsafe_interrupts; do
	f=$S/module/${p%/*}/parameters/${p#*/}
	if [ -e "$f" ]; then
		get "$f"
		out "${p%/*}.${p#*/}$TAB$v"
	fi
done

sec pci
if [ -d "$S/bus/pci/devices" ]; then
	for d in "$S"/bus/pci/devices/*; do
		[ -e "$d/vendor" ] || continue
		l="p$TAB${d##*/}"
		for f in vendor device subsystem_vendor subsystem_device class; do
			get "$d/$f"
			l=$l$TAB${v:--}
			if [ "$f" = vendor ]; then n=$v; fi
		done
		out "$l"
		base "$d/driver"
		if [ -n "$v" ]; then out "d$TAB$v"; fi
		base "$d/iommu_group"
		if [ -n "$v" ]; then out "g$TAB$v"; fi
		[ "$n" = 0x10de ] || continue
		get "$d/driver_override"
		if [ -n "$v" ] && [ "$v" != '(null)' ]; then out "o$TAB$v"; fi
		for f in boot_vga sriov_totalvfs sriov_numvfs; do
			get "$d/$f"
			if [ -n "$v" ]; then out "a$TAB$f$TAB$v"; fi
		done
		if [ -d "$d/mdev_supported_types" ]; then out "a${TAB}mdev${TAB}1"; fi
		if [ -e "$d/physfn" ]; then out "a${TAB}virtfn${TAB}1"; fi
		if [ -r "$d/resource" ]; then
			n=0
			while read -r a b f; do
				case $a$b$f in *[1-9a-fA-F]*) out "r$TAB$n$TAB$a$TAB$b$TAB$f" ;; esac
				n=$((n + 1))
			done <"$d/resource"
			# The kernel forgets a BAR that it found no room for: all of its line is zero (reset_resource of
			# drivers/pci/setup-bus.c). The six registers at 10h of the configuration space still tell that it is there.
			if [ -r "$d/config" ]; then
				v=$(od -An -tx4 -v -j16 -N24 "$d/config" 2>/dev/null | tr -s ' \n' '  ')
				v=${v# }
				if [ -n "$v" ]; then out "c$TAB${v% }"; fi
			fi
		fi
	done
else
	why "$S/bus/pci/devices: no such directory"
fi

# The windows of the root buses, which every BAR of the machine has to fit in.
sec windows
if [ -r "$R/proc/iomem" ]; then
	seen=
	while IFS= read -r l; do
		case $l in
		' '*) ;;
		00000000-00000000*) ;;
		*': PCI Bus '*)
			out "$l"
			seen=1
			;;
		esac
	done <"$R/proc/iomem"
	if [ -z "$seen" ]; then why "/proc/iomem shows no addresses (root sees them)"; fi
else
	why "/proc/iomem is not readable"
fi

sec tools
for f in update-initramfs dracut update-grub grub2-mkconfig grubby proxmox-boot-tool systemctl modprobe; do
	for d in /usr/sbin /usr/bin /sbin /bin /usr/local/sbin /usr/local/bin; do
		if [ -x "$R$d/$f" ]; then
			out "$f$TAB$d/$f"
			break
		fi
	done
done
if [ -d "$R/etc/default/grub.d" ]; then out "grub.d$TAB/etc/default/grub.d"; fi
# The arguments may be there because gpuguest's own file sets them.
f=/etc/default/grub.d/90-gpuguest-vfio.cfg
if [ -e "$R$f" ]; then out "grub.d.ours$TAB$f"; fi
for f in /etc/default/grub /etc/kernel/cmdline; do
	if [ -e "$R/var/lib/gpuguest/hypervisor-undo/files$f" ]; then out "ours:$f$TAB$f"; fi
done
# Proxmox starts by systemd-boot where it was installed for UEFI on ZFS, and then reads /etc/kernel/cmdline.
if [ -e "$R/etc/kernel/proxmox-boot-uuids" ] && [ -d "$S/firmware/efi" ]; then out "proxmox-boot-uuids$TAB/etc/kernel/proxmox-boot-uuids"; fi

# The files that a boot loader has its arguments from, where there is no folder to put one of our own in.
sec bootfiles
for f in /etc/default/grub /etc/kernel/cmdline; do
	if [ -r "$R$f" ]; then
		out "f$TAB$f"
		sed 's/^/|l/' "$R$f"
	fi
done

printf '== end\n'
