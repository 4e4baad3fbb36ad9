#!/bin/sh
# Stands in for the boot loader in a container guest, which runs on the machine's kernel: takes the first
# entry of the menu that grub-mkconfig wrote, and has /proc tell that entry's command line and kernel release.
set -eu
line=$(sed -n 's/^[[:space:]]*linux[[:space:]]*//p' /boot/grub/grub.cfg | head -n 1)
image=${line%% *}
mkdir -p /run/lab
echo "BOOT_IMAGE=$line" >/run/lab/cmdline
echo "${image##*/vmlinuz-}" >/run/lab/osrelease
mount --bind /run/lab/cmdline /proc/cmdline
mount --bind /run/lab/osrelease /proc/sys/kernel/osrelease
