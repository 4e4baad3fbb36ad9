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

sh /lab/boot.sh
mkdir -p /var/log/journal

# Nothing of these is wanted in a guest that lives for minutes.
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer man-db.timer; do
	systemctl -q disable "$unit" 2>/dev/null || true
done
rm -f /etc/ssh/ssh_host_* /etc/machine-id /etc/resolv.conf
: >/etc/machine-id
echo lab >/etc/hostname
rm -rf /lab
