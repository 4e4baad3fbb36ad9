# Has the root's partition and file system fill a disk that was made larger: POSIX sh that is sourced, or put in front
# of one call. Nothing is made smaller, moved or renumbered, and a root that fills its disk already is left as it is.
#
#   grow NAME DIR TYPE    NAME is the kernel's name of the device that is mounted at DIR with a file system of TYPE
#   grow_root             the same for /
#
# Both exit with 1 when that cannot be, and say why in the last line of their output. They need root, sfdisk 2.26 or
# growpart, and the file system's own program.
#
# GPUGUEST_SYS, GPUGUEST_PROC: trees in place of /sys and /proc.

# What may be left behind a partition, in sectors of 512 bytes: the second copy of a GPT, and what alignment takes.
GROW_SLACK=65536
GROW_BLOCK=${GPUGUEST_SYS:-/sys}/class/block

grow() (
	LC_ALL=C
	PATH=$PATH:/usr/sbin:/sbin
	export LC_ALL PATH
	case $3 in
	ext2 | ext3 | ext4) tool=resize2fs ;;
	xfs) tool=xfs_growfs ;;
	btrfs) tool=btrfs ;;
	*) echo "its file system is of type $3, and only ext4, XFS and btrfs are grown"; exit 1 ;;
	esac
	if ! command -v "$tool" >/dev/null 2>&1; then
		echo "there is no $tool, which a file system of type $3 is grown with"
		exit 1
	fi
	case $1 in
	dm-* | md*) echo "it is on $1 (LVM, LUKS or RAID) and not on a partition"; exit 1 ;;
	esac
	if [ -e "$GROW_BLOCK/$1/partition" ]; then
		grow_partition "$1" || exit 1
	fi
	case $tool in
	# The kernel lets whoever has CAP_SYS_RESOURCE resize what is mounted, which root in a container may not have.
	resize2fs) said=$(resize2fs "/dev/$1" 2>&1) || { [ "$2" != / ] && said=$(grow_unmounted "$@" 2>&1); } ;;
	xfs_growfs) said=$(xfs_growfs "$2" 2>&1) ;;
	btrfs) said=$(btrfs filesystem resize max "$2" 2>&1) ;;
	esac || { echo "$tool: $said" | tr '\n' ' '; exit 1; }
)

# behind tells how many sectors there are between the end of partition $1 of disk $2 and the disk's.
behind() { echo $(($(cat "$GROW_BLOCK/$2/size") - $(cat "$GROW_BLOCK/$1/start") - $(cat "$GROW_BLOCK/$1/size"))); }

grow_partition() {
	number=$(cat "$GROW_BLOCK/$1/partition")
	whole=$(readlink -f "$GROW_BLOCK/$1/..")
	whole=${whole##*/}
	if [ "$(behind "$1" "$whole")" -le "$GROW_SLACK" ]; then return 0; fi
	# A GPT's second copy is where the disk ended before, and moves to where it ends now with either program.
	if command -v sfdisk >/dev/null 2>&1 && sfdisk --help 2>/dev/null | grep -q -e '--no-tell-kernel'; then
		said=$(echo ', +' | sfdisk --quiet --no-reread --no-tell-kernel --force -N "$number" "/dev/$whole" 2>&1) || { echo "sfdisk: $said" | tr '\n' ' '; return 1; }
	elif command -v growpart >/dev/null 2>&1; then
		# 1 is that there is nothing to do.
		said=$(growpart --update=off "/dev/$whole" "$number" 2>&1) || [ $? -eq 1 ] || { echo "growpart: $said" | tr '\n' ' '; return 1; }
	else
		echo "there is neither sfdisk nor growpart, which its partition is grown with"
		return 1
	fi
	said=$(partx --update --nr "$number" "/dev/$whole" 2>&1) || { echo "partx: $said" | tr '\n' ' '; return 1; }
	if [ "$(behind "$1" "$whole")" -gt "$GROW_SLACK" ]; then
		echo "partition $number is not the last on its disk, so there is nowhere to grow to"
		return 1
	fi
}

grow_unmounted() {
	umount "$2" || return 1
	e2fsck -f -p "/dev/$1" && resized=0 || resized=$?
	# 1 is that it has put something right.
	if [ "$resized" -le 1 ]; then resize2fs "/dev/$1" && resized=0 || resized=$?; fi
	mount -t "$3" "/dev/$1" "$2" && return "$resized"
}

grow_root() {
	# Of several file systems on /, the last counts (proc_pid_mountinfo(5): type and source follow a dash).
	mounted=$(awk '$5 == "/" { for (i = 7; i < NF && $i != "-"; i++); found = $3 " " $(i + 1) " " $(i + 2) } END { print found }' "${GPUGUEST_PROC:-/proc}/self/mountinfo")
	number=${mounted%% *}
	type=${mounted#* }
	source=${type#* }
	type=${type%% *}
	# What is called /dev/root has a name of its own there; btrfs has no number that is a device's.
	device=${GPUGUEST_SYS:-/sys}/dev/block/$number
	if [ -e "$device" ]; then source=$(readlink -f "$device"); fi
	grow "${source##*/}" / "$type"
}
