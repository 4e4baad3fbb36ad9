#!/bin/sh
# Runs in the fresh root of a container guest, before its first boot.
#   setup.sh (as root, in a chroot)
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

# Users: root, one who may sudo, one who may after his password.
for user in debian worker; do
	useradd -m -s /bin/bash -G sudo "$user"
done
echo 'debian ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/90-debian
chmod 440 /etc/sudoers.d/90-debian
echo 'worker:lab password' | chpasswd
printf 'PermitRootLogin prohibit-password\nUseDNS no\n' >/etc/ssh/sshd_config.d/10-lab.conf

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
mkdir -p /boot/grub /etc/default/grub.d /var/log/journal
# The device for the words root=… is what grub-probe says, not a UUID of this machine's disk.
echo GRUB_DISABLE_LINUX_UUID=true >/etc/default/grub.d/10-lab.cfg
update-grub

# Nothing of these is wanted in a guest that lives for minutes.
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer man-db.timer; do
	systemctl -q disable "$unit" 2>/dev/null || true
done
rm -f /etc/ssh/ssh_host_* /etc/machine-id /etc/resolv.conf
: >/etc/machine-id
echo lab >/etc/hostname
rm -rf /lab
