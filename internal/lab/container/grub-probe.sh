#!/bin/sh
# Stands in for grub-probe in a container guest, whose root is an overlay that no boot loader could read:
# it answers for one disk with one ext4 partition, so that grub-mkconfig itself runs and writes real entries.
target=fs
want=
for word in "$@"; do
	case $word in
	--target=*) target=${word#--target=} ;;
	-t) want=1 ;;
	*)
		if [ -n "$want" ]; then target=$word; fi
		want=
		;;
	esac
done
case $target in
device) echo /dev/vda1 ;;
disk) echo /dev/vda ;;
fs) echo ext2 ;;
fs_uuid) echo 3c1c5a52-66d0-4d0c-9df9-5b6c8f3ddb10 ;;
partmap) echo msdos ;;
abstraction | compatibility_hint | hints_string | drive) ;;
*) exit 1 ;;
esac
