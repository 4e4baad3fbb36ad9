#!/bin/sh
# Starts the system in a raw disk image as a container. Run as root in a mount name space of its own (unshare
# --mount), with which every mount ends.
#
#   boot.sh DISK SCRATCH NSPAWN…
#
# Where SCRATCH/grow.sh is, the root is made to fill the disk; what it says why that cannot be goes to SCRATCH/ungrown.
# SCRATCH/run is seen in the guest as /run/gpuguest-oven; SCRATCH/system, as /run/systemd/system, holds the unit of
# the oven's own sshd. NSPAWN… is the beginning of systemd-nspawn's command line. The loop device's name goes to
# SCRATCH/loop, why this oven cannot do it to SCRATCH/unfit, with exit status 78 (EX_CONFIG).
#
# It is the first process of a process name space (unshare --pid): whoever kills it ends the guest, which
# systemd-nspawn's own end does not do.
set -eu
export LC_ALL=C
disk=$1
scratch=$2
shift 2
root=$scratch/root
mkdir -p "$root"

unfit() {
	echo "$*" >"$scratch/unfit"
	exit 78
}

# A kill right after this loses the name; the next run looks for devices by the disk.
loop=$(losetup --find --show --partscan "$disk")
echo "$loop" >"$scratch/loop"
if ! [ -b "${loop}p1" ]; then
	# For a kernel that does not scan loop devices. It fails where there is no partition table.
	partx -a "$loop" 2>/dev/null || true
fi
parts=
for p in "$loop"p*; do
	if [ -b "$p" ]; then parts="$parts $p"; fi
done
if [ -z "$parts" ]; then parts=$loop; fi

tag() { blkid -p -o value -s "$2" "$1" 2>/dev/null || true; }

# The root is the first file system that says which system it is of.
rootpart=
seen=
for p in $parts; do
	type=$(tag "$p" TYPE)
	seen="$seen ${type:-nothing}"
	case $type in ext2 | ext3 | ext4 | xfs | btrfs) ;; *) continue ;; esac
	mount -t "$type" "$p" "$root" 2>/dev/null || continue
	if [ -e "$root/etc/os-release" ] || [ -L "$root/etc/os-release" ]; then
		rootpart=$p
		break
	fi
	umount "$root"
done
[ -n "$rootpart" ] || unfit "no file system with /etc/os-release at its top is in the image, which holds:$seen; what is in LVM, in LUKS or in a subvolume needs the oven qemu"

if [ -e "$scratch/grow.sh" ]; then
	# shellcheck source=internal/oven/grow.sh
	. "$scratch/grow.sh"
	if grow "${rootpart#/dev/}" "$root" "$type" >"$scratch/growing"; then
		rm "$scratch/growing"
	else
		mv "$scratch/growing" "$scratch/ungrown"
	fi
fi

# partition SPEC: the partition that a line of fstab means.
partition() {
	for p in $parts; do
		case $1 in
		UUID=* | /dev/disk/by-uuid/*) [ "$(tag "$p" UUID)" != "${1##*[=/]}" ] || { echo "$p"; return; } ;;
		PARTUUID=* | /dev/disk/by-partuuid/*) [ "$(tag "$p" PART_ENTRY_UUID)" != "${1##*[=/]}" ] || { echo "$p"; return; } ;;
		LABEL=* | /dev/disk/by-label/*) [ "$(tag "$p" LABEL)" != "${1##*[=/]}" ] || { echo "$p"; return; } ;;
		PARTLABEL=* | /dev/disk/by-partlabel/*) [ "$(tag "$p" PART_ENTRY_NAME)" != "${1##*[=/]}" ] || { echo "$p"; return; } ;;
		/dev/[shv]d[a-z][0-9]*) [ "${p#"$loop"p}" != "${1##/dev/?d[a-z]}" ] || { echo "$p"; return; } ;;
		/dev/nvme*p[0-9]*) [ "${p#"$loop"p}" != "${1##*p}" ] || { echo "$p"; return; } ;;
		esac
	done
	return 1
}

# Short paths first: /boot before /boot/efi.
awk '!/^[ \t]*#/ && NF >= 3 && $2 ~ /^\/(boot|efi|usr|var|home|opt|srv)(\/|$)/ { print length($2), $1, $2, $3, ($4 == "" ? "defaults" : $4) }' "$root/etc/fstab" 2>/dev/null |
	sort -n >"$scratch/mounts"
while read -r _ spec dir type options; do
	if ! p=$(partition "$spec"); then
		case ,$options, in *,nofail,* | *,noauto,*) continue ;; esac
		unfit "its /etc/fstab has $spec on $dir, which is no partition of the image"
	fi
	mkdir -p "$root$dir"
	mount -t "$type" "$p" "$root$dir"
done <"$scratch/mounts"

if ! [ -x "$root/usr/sbin/sshd" ]; then unfit "it has no sshd"; fi
if ! [ -e "$root/usr/lib/systemd/systemd" ] && ! [ -e "$root/lib/systemd/systemd" ]; then unfit "its init is not systemd"; fi

# An initramfs that is made to fit the machine it is made on fits no machine that boots this image: here there is
# neither its disk's controller nor its root device. teardown.sh takes these files away again.
: >"$scratch/run/remove"
override() {
	printf '%s\n' "$2" >"$root$1"
	echo "$1" >>"$scratch/run/remove"
}
if [ -d "$root/etc/initramfs-tools" ] && cat "$root/etc/initramfs-tools/initramfs.conf" "$root"/etc/initramfs-tools/conf.d/* 2>/dev/null | grep '^MODULES=' | tail -n 1 | grep -q dep; then
	mkdir -p "$root/etc/initramfs-tools/conf.d"
	override /etc/initramfs-tools/conf.d/zz-gpuguest-oven MODULES=most
fi
if [ -d "$root/etc/dracut.conf.d" ]; then
	override /etc/dracut.conf.d/zz-gpuguest-oven.conf 'hostonly="no"'
fi

# grub-mkconfig asks for the device of / and writes root=UUID=… only where /dev/disk/by-uuid has it.
: >"$scratch/run/links"
for p in $parts; do
	set -- "$@" "--bind=$p"
	name=${p#/dev/}
	for kind in uuid:UUID partuuid:PART_ENTRY_UUID label:LABEL; do
		value=$(tag "$p" "${kind#*:}")
		case $value in '' | */* | *[[:space:]]*) ;; *) echo "$name by-${kind%:*} $value" >>"$scratch/run/links" ;; esac
	done
done
if [ "$parts" != "$loop" ]; then set -- "$@" "--bind=$loop"; fi

# Nothing of these has a place in a guest that lives for minutes and has no network but a proxy.
masked=
for unit in cloud-init-local.service cloud-init.service cloud-init-main.service cloud-init-network.service cloud-config.service cloud-final.service \
	ssh.service ssh.socket sshd.service systemd-networkd-wait-online.service NetworkManager-wait-online.service ifupdown-wait-online.service \
	networking.service apt-daily.timer apt-daily-upgrade.timer apt-daily.service apt-daily-upgrade.service unattended-upgrades.service \
	dnf-makecache.timer packagekit.service fstrim.timer e2scrub_all.timer e2scrub_reap.service growpart.service \
	systemd-growfs-root.service getty.target console-getty.service; do
	masked="$masked systemd.mask=$unit"
done
# shellcheck disable=SC2086 # a word each
"$@" "--bind=$scratch/system:/run/systemd/system" "--bind=$scratch/run:/run/gpuguest-oven" -D "$root" -- \
	--log-target=journal systemd.wants=gpuguest-oven.service cloud-init=disabled $masked
