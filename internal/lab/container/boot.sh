#!/bin/sh
# Gives the root of a container guest, which has the package grub-pc, the stand-ins of the boot layer.
#   boot.sh (as root, in a chroot)
set -eu
export LC_ALL=C

dpkg-divert --quiet --local --rename --divert /usr/sbin/grub-probe.real --add /usr/sbin/grub-probe
install -m 755 /lab/grub-probe.sh /usr/sbin/grub-probe
install -D -m 755 /lab/loader.sh /usr/local/lib/lab/loader
cat >/etc/systemd/system/lab-loader.service <<'UNIT'
[Unit]
Description=Stand-in for the boot loader
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/lib/lab/loader

[Install]
WantedBy=sysinit.target
UNIT
systemctl -q enable lab-loader.service
mkdir -p /boot/grub /etc/default/grub.d
# The device for the words root=… is what grub-probe says, not a UUID of this machine's disk.
echo GRUB_DISABLE_LINUX_UUID=true >/etc/default/grub.d/10-lab.cfg
update-grub
