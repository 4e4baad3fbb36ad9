#!/bin/sh
# Builds Debian's own nvidia modules for the kernel of a root file system made by
# mmdebstrap: minutes here, over an hour in an emulated guest. Run as root in a
# mount name space of its own.
#
#   build-driver.sh WORK
#
# WORK holds root.tar, build.sources and build.conf and takes dkms.tar: the
# modules, and a setting that makes dkms in the guest take them where it would
# compile. All else that dkms and the package do there, they do.
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
cd "$1"
mkdir -p root
tar -xpf root.tar -C root
kernel=$(basename "$(ls -d root/lib/modules/*)")
rm -f root/etc/apt/sources.list root/etc/apt/sources.list.d/* root/etc/apt/apt.conf.d/99mmdebstrap root/etc/resolv.conf
cp build.sources root/etc/apt/sources.list.d/build.sources
cp build.conf root/etc/apt/apt.conf.d/90build
cp /etc/resolv.conf root/etc/resolv.conf
printf '#!/bin/sh\nexit 101\n' >root/usr/sbin/policy-rc.d
chmod 755 root/usr/sbin/policy-rc.d
for d in dev proc sys; do mount --rbind "/$d" "root/$d"; done
chroot root apt-get -q -y update
# The headers come first: dkms builds for every kernel that has them.
chroot root apt-get -q -y --no-install-recommends install "linux-headers-$kernel"
# An initramfs is of no use here, and making it takes longer than all else but the build.
INITRD=No chroot root apt-get -q -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io install nvidia-kernel-dkms
chroot root dkms autoinstall -k "$kernel"
keep=var/lib/guestlab/nvidia/$kernel
mkdir -p "root/$keep" root/etc/dkms
for built in root/lib/modules/"$kernel"/updates/dkms/nvidia-current*.ko; do
	# dkms has renamed them: nvidia-current-uvm.ko is what the build calls nvidia-uvm.ko.
	name=$(basename "$built")
	cp "$built" "root/$keep/nvidia${name#nvidia-current}"
done
# shellcheck disable=SC2016 # for dkms to expand
echo 'MAKE[0]="cp -r /var/lib/guestlab/nvidia/$kernelver/. ."' >root/etc/dkms/nvidia-current.conf
tar -C root -cf dkms.tar "$keep" etc/dkms/nvidia-current.conf
for d in dev proc sys; do umount -R -l "root/$d"; done
rm -rf root root.tar
