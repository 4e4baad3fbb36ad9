#!/bin/sh
# Written by gpuguest into an image that is for GPUs which no one flavor of NVIDIA's kernel modules drives: it puts the
# flavor in place that this machine's GPUs need. POSIX sh; gpuguest-flavor.service runs it early at every boot until it
# has seen an NVIDIA GPU.
#
#   flavor.sh PACKAGES
#
# PACKAGES is the flavor that the image's packages are of, and the one that is taken where either will do. The modules of
# each flavor, as they were built, are below modules/KERNEL/FLAVOR beside this file, by their paths below
# /lib/modules/KERNEL; the file "flavors" says which GPU needs which. Until one is in place, /etc/modprobe.d keeps udev
# from loading any. What is done again after a power cut ends as if it were done once.
#
# Exit 0: a flavor is in place, or there is no GPU yet. 1: the image has nothing for this machine; the last line says
# what to do.
#
# GPUGUEST_ROOT: work on a tree in place of /, load nothing, and leave it to the caller to have it on the disk.
set -eu
export LC_ALL=C
R=${GPUGUEST_ROOT:-}
packages=$1
home=$R/usr/local/lib/gpuguest
state=$R/var/lib/gpuguest
kernel=$(cat "$R/proc/sys/kernel/osrelease")
modules=$R/lib/modules/$kernel

say() { echo "gpuguest: $*"; }

gpus=
for d in "$R"/sys/bus/pci/devices/*; do
	case $(cat "$d/vendor" 2>/dev/null) in 0x10de) ;; *) continue ;; esac
	# Display controllers; the others of the vendor are their audio and USB.
	case $(cat "$d/class") in 0x03*) gpus="$gpus ${d##*/}" ;; esac
done
if [ -z "$gpus" ]; then
	say "no NVIDIA GPU in this machine; the next boot is looked at again"
	exit 0
fi

# The ids are compared as text: four hexadecimal digits in lower case.
flavor_of() {
	awk -v id="$1" '!/^#/ && ($1 "") <= (id "") && (id "") <= ($2 "") { print $3; exit }' "$home/flavors"
}

want=
for a in $gpus; do
	id=$(cat "$R/sys/bus/pci/devices/$a/device")
	flavor=$(flavor_of "${id#0x}")
	say "$a (10de:${id#0x}): ${flavor:-unknown}"
	case $flavor in
	'' | either | "$want") ;;
	*)
		if [ -n "$want" ]; then
			say "no one flavor of the modules drives all GPUs of this machine: pass only some of them through"
			exit 1
		fi
		want=$flavor
		;;
	esac
done
want=${want:-$packages}

# paths are the files of a flavor, by their names below /lib/modules/KERNEL.
paths() (
	cd "$home/modules/$kernel/$1"
	find . -type f | sed 's,^\./,,'
)

changed=
if [ -d "$home/modules/$kernel/$want" ]; then
	for other in "$home/modules/$kernel"/*; do
		for f in $(paths "${other##*/}"); do
			if ! [ -e "$home/modules/$kernel/$want/$f" ]; then rm -f "$modules/$f"; fi
		done
	done
	for f in $(paths "$want"); do
		if cmp -s "$home/modules/$kernel/$want/$f" "$modules/$f"; then continue; fi
		mkdir -p "$modules/${f%/*}"
		cp "$home/modules/$kernel/$want/$f" "$modules/$f.gpuguest-tmp"
		mv -f "$modules/$f.gpuguest-tmp" "$modules/$f"
		changed=1
	done
	if [ -n "$changed" ]; then depmod ${R:+-b "$R"} "$kernel"; fi
elif [ "$want" != "$packages" ]; then
	built=
	for d in "$home/modules"/*; do built="$built ${d##*/}"; done
	say "the $want modules were built for${built} and this machine runs $kernel: gpuguest install --flavor $want brings them"
	exit 1
fi
rm -f "$R/etc/modprobe.d/gpuguest-flavor.conf"
printf '%s\n' "$want" >"$state/flavor.tmp"
mv -f "$state/flavor.tmp" "$state/flavor"
# So that what was planned for this machine is not what was planned for the image.
printf '{"time":"%s","boot":"%s","event":"picked","step":"both-flavors","flavor":"%s"}\n' \
	"$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(cat "$R/proc/sys/kernel/random/boot_id")" "$want" >>"$state/journal"
if [ -z "$R" ]; then sync; fi
# The last: without it nothing is done any more.
rm -f "$state/flavor.due"
say "the $want modules are in place"

if [ -n "$R" ]; then exit 0; fi
if [ -n "$changed" ] && [ -d /sys/module/nvidia ]; then
	say "the other flavor was loaded before, from the initramfs as it seems: this one is from the next boot on"
	exit 0
fi
for a in $gpus; do
	# What udev did not do when it saw the device.
	modprobe -b -- "$(cat "/sys/bus/pci/devices/$a/modalias")" || true
done
