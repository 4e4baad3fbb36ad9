#!/bin/sh
# Turns a root file system made by mmdebstrap into a bootable disk with GRUB,
# the pretend GPU's module built for the disk's own kernel, and a known SSH host
# key. Run as root in a mount name space of its own (unshare --mount), so that
# no mount outlives it.
#
#   build-image.sh WORK
#
# WORK holds root.tar, the guest's sources.list.d/ and apt.conf, build.sources and
# build.conf for the work done here, fakegpu/ and ssh/ (host key and
# authorized_keys); it takes disk.raw and kernel (the kernel's version).
# A dkms.tar in WORK, from build-driver.sh, is unpacked over the root. Packages that
# are named in WORK's file "installed", one a line, are installed in it. With signing/
# (key.pem and cert.der) the disk is for UEFI and not for a BIOS, and the pretend GPU's
# module is signed with the key. A file "os-release" takes the place of the root's own.
set -eu
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
work=$1
disk_size=12G
cd "$work"

loop=
finish() {
	status=$?
	trap - EXIT INT TERM HUP
	umount -R build 2>/dev/null || true
	umount -R mnt 2>/dev/null || true
	if [ -n "$loop" ]; then
		partx -d "$loop" 2>/dev/null || true
		losetup -d "$loop"
	fi
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

say() { echo "image: $*"; }

bind() {
	for d in dev proc sys; do mount --rbind "/$d" "$1/$d"; done
}
unbind() {
	for d in dev proc sys; do umount -R -l "$1/$d"; done
}

say "disk and file system"
truncate -s "$disk_size" disk.raw
if [ -d signing ]; then
	printf 'label: gpt\nstart=2048, size=128MiB, type=U\ntype=L\n' | sfdisk -q disk.raw
else
	printf 'label: dos\nstart=2048, type=83, bootable\n' | sfdisk -q disk.raw
fi
loop=$(losetup -f --show disk.raw)
# partx works where the host's kernel does not scan partitions itself; the second
# form is for a kernel that has done so in the meantime.
partx -a "$loop" || partx -u "$loop"
part=${loop}p1
esp=
if [ -d signing ]; then
	esp=${loop}p1 part=${loop}p2
	mkfs.vfat -F 32 "$esp" >/dev/null
fi
mkfs.ext4 -q -F "$part"
mkdir -p mnt build upper ovl
mount "$part" mnt
tar -xpf root.tar -C mnt
if [ -n "$esp" ]; then mkdir -p mnt/boot/efi mnt/boot/grub; fi
if [ -f os-release ]; then install -m 0644 os-release mnt/usr/lib/os-release; fi
kernel=$(basename "$(ls -d mnt/lib/modules/*)")
echo "$kernel" >kernel

say "sources of packages"
rm -f mnt/etc/apt/sources.list mnt/etc/apt/sources.list.d/* mnt/etc/apt/apt.conf.d/99mmdebstrap
cp sources.list.d/* mnt/etc/apt/sources.list.d/
cp apt.conf mnt/etc/apt/apt.conf.d/90lab
echo 'Acquire::Languages "none";' >>mnt/etc/apt/apt.conf.d/90lab

# The compiler and the headers are installed over the root, not in it: the guest
# is to fetch its own, as a stock one must.
say "modules for $kernel"
mount -t overlay overlay -o "lowerdir=mnt,upperdir=upper,workdir=ovl" build
bind build
rm -f build/etc/resolv.conf
cp /etc/resolv.conf build/etc/resolv.conf
rm -f build/etc/apt/sources.list.d/* build/etc/apt/apt.conf.d/90lab
cp build.sources build/etc/apt/sources.list.d/build.sources
cp build.conf build/etc/apt/apt.conf.d/90build
printf '#!/bin/sh\nexit 101\n' >build/usr/sbin/policy-rc.d
chmod 755 build/usr/sbin/policy-rc.d
sed -i 's/^MODULES=.*/MODULES=list/' build/etc/initramfs-tools/initramfs.conf
chroot build apt-get -q -y update
chroot build apt-get -q -y --no-install-recommends install "linux-headers-$kernel" gcc make
cp -r fakegpu build/tmp/fakegpu
chroot build make -s -C "/lib/modules/$kernel/build" M=/tmp/fakegpu modules
if [ -d signing ]; then
	cp -r signing build/tmp/signing
	chroot build "/lib/modules/$kernel/build/scripts/sign-file" sha256 /tmp/signing/key.pem /tmp/signing/cert.der /tmp/fakegpu/fakegpu.ko
fi
mkdir -p modules
cp build/tmp/fakegpu/fakegpu.ko modules/
unbind build
umount build

say "settings of the guest"
mkdir -p "mnt/lib/modules/$kernel/updates"
cp modules/fakegpu.ko "mnt/lib/modules/$kernel/updates/"
if [ -f dkms.tar ]; then tar -C mnt -xf dkms.tar; fi
echo fakegpu >mnt/etc/modules-load.d/fakegpu.conf
uuid=$(blkid -s UUID -o value "$part")
echo "UUID=$uuid / ext4 errors=remount-ro 0 1" >mnt/etc/fstab
if [ -n "$esp" ]; then
	echo "UUID=$(blkid -s UUID -o value "$esp") /boot/efi vfat umask=0077,nofail 0 0" >>mnt/etc/fstab
fi
echo lab >mnt/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 lab\n::1 localhost\n' >mnt/etc/hosts
mkdir -p mnt/etc/systemd/network
printf '[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' >mnt/etc/systemd/network/10-lab.network
rm -f mnt/etc/resolv.conf
echo 'nameserver 10.0.2.3' >mnt/etc/resolv.conf # QEMU's user network
mkdir -p mnt/root/.ssh
cp ssh/authorized_keys mnt/root/.ssh/authorized_keys
chmod 700 mnt/root/.ssh
chmod 600 mnt/root/.ssh/authorized_keys
rm -f mnt/etc/ssh/ssh_host_*
cp ssh/ssh_host_ed25519_key ssh/ssh_host_ed25519_key.pub mnt/etc/ssh/
chmod 600 mnt/etc/ssh/ssh_host_ed25519_key
: >mnt/etc/machine-id

bind mnt
chroot mnt systemctl -q enable systemd-networkd
chroot mnt systemctl -q disable systemd-networkd-wait-online || true
for user in debian worker; do
	chroot mnt useradd -m -s /bin/bash -G sudo "$user"
	chroot mnt install -d -m 700 -o "$user" -g "$user" "/home/$user/.ssh"
	chroot mnt install -m 600 -o "$user" -g "$user" /root/.ssh/authorized_keys "/home/$user/.ssh/authorized_keys"
done
echo 'debian ALL=(ALL) NOPASSWD: ALL' >mnt/etc/sudoers.d/90-debian
chmod 440 mnt/etc/sudoers.d/90-debian
echo 'worker:lab password' | chroot mnt chpasswd -c SHA256

if [ -f installed ] || [ -n "$esp" ]; then
	say "packages"
	mv mnt/etc/apt/sources.list.d away.d
	mv mnt/etc/apt/apt.conf.d/90lab mnt/etc/resolv.conf .
	mkdir mnt/etc/apt/sources.list.d
	cp build.sources mnt/etc/apt/sources.list.d/build.sources
	cp build.conf mnt/etc/apt/apt.conf.d/90build
	cp /etc/resolv.conf mnt/etc/resolv.conf
	printf '#!/bin/sh\nexit 101\n' >mnt/usr/sbin/policy-rc.d
	chmod 755 mnt/usr/sbin/policy-rc.d
	# Every kernel's initramfs is made below, once.
	sed -i 's/^update_initramfs=.*/update_initramfs=no/' mnt/etc/initramfs-tools/update-initramfs.conf
	chroot mnt apt-get -q -y update
	if [ -f installed ]; then
		# dkms takes a module for every kernel that has its headers.
		chroot mnt apt-get -q -y --no-install-recommends install "linux-headers-$kernel"
		# shellcheck disable=SC2046 # a word a package
		chroot mnt apt-get -q -y --no-install-recommends install $(cat installed)
	fi
	if [ -n "$esp" ]; then
		# These replace grub-pc, which is purged so that nothing of it is left to be configured; first, for its purge
		# removes /etc/default/grub, whosever that is by then.
		chroot mnt apt-get -q -y purge grub-pc grub-pc-bin
		chroot mnt apt-get -q -y --no-install-recommends install grub-efi-amd64 grub-efi-amd64-signed shim-signed
	fi
	chroot mnt apt-get clean
	sed -i 's/^update_initramfs=.*/update_initramfs=yes/' mnt/etc/initramfs-tools/update-initramfs.conf
	rm -r mnt/etc/apt/sources.list.d mnt/etc/apt/apt.conf.d/90build mnt/etc/resolv.conf mnt/usr/sbin/policy-rc.d
	mv away.d mnt/etc/apt/sources.list.d
	mv 90lab mnt/etc/apt/apt.conf.d/
	mv resolv.conf mnt/etc/
	# What apt knows came by the host's way to the archive.
	rm -rf mnt/var/lib/apt/lists/*
fi

# The running guest keeps MODULES=dep, which takes seconds under emulation where
# "most" takes minutes; a chroot has no root device for "dep" to look at, so this
# first initramfs is made from a list.
say "initramfs"
chroot mnt depmod "$kernel"
sed -i 's/^MODULES=.*/MODULES=list/' mnt/etc/initramfs-tools/initramfs.conf
cp mnt/etc/initramfs-tools/modules modules/initramfs-modules
printf '%s\n' fakegpu >>mnt/etc/initramfs-tools/modules
cp mnt/etc/initramfs-tools/modules modules/kept
printf '%s\n' virtio_pci virtio_blk virtio_net ext4 crc32c_generic crc32c_intel >>mnt/etc/initramfs-tools/modules
chroot mnt update-initramfs -c -k "$kernel"
cp modules/kept mnt/etc/initramfs-tools/modules
sed -i -e 's/^MODULES=.*/MODULES=dep/' -e '/^COMPRESS=/a COMPRESSLEVEL=1' mnt/etc/initramfs-tools/initramfs.conf

say "boot loader"
sed -i -e 's/^GRUB_CMDLINE_LINUX=.*/GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200 net.ifnames=0"/' \
	-e 's/^GRUB_TIMEOUT=.*/GRUB_TIMEOUT=0/' mnt/etc/default/grub
# Without this link grub-mkconfig writes root=/dev/loopNp1 into the guest's menu.
# It goes into a /dev of the chroot's own, not into the host's.
umount -R -l mnt/dev
mount -t tmpfs tmpfs mnt/dev
mkdir -p mnt/dev/disk/by-uuid
for node in null zero random urandom tty "${loop#/dev/}" "${part#/dev/}"; do
	cp -a "/dev/$node" mnt/dev/
done
ln -s "../../${part#/dev/}" "mnt/dev/disk/by-uuid/$uuid"
if [ -n "$esp" ]; then
	# What grub-install puts there, by hand: it wants the partition mounted, and the host's kernel may not know FAT. The
	# signed GRUB looks for its configuration in EFI/debian. The firmware has no entry for it: it starts the fallback path.
	mkdir modules/esp
	printf "search.fs_uuid %s root\nset prefix=(\$root)'/boot/grub'\nconfigfile \$prefix/grub.cfg\n" "$uuid" >modules/esp/grub.cfg
	mmd -i "$esp" ::/EFI ::/EFI/BOOT ::/EFI/debian
	mcopy -i "$esp" mnt/usr/lib/shim/shimx64.efi.signed ::/EFI/BOOT/BOOTX64.EFI
	mcopy -i "$esp" modules/esp/grub.cfg ::/EFI/debian/grub.cfg
	for dir in BOOT debian; do
		mcopy -i "$esp" mnt/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed "::/EFI/$dir/grubx64.efi"
		mcopy -i "$esp" mnt/usr/lib/shim/mmx64.efi.signed "::/EFI/$dir/mmx64.efi"
	done
	mcopy -i "$esp" mnt/usr/lib/shim/shimx64.efi.signed ::/EFI/debian/shimx64.efi
else
	chroot mnt grub-install --target=i386-pc "$loop"
	# grub-pc asks where to install when it is upgraded; answered beforehand.
	echo 'grub-pc grub-pc/install_devices multiselect /dev/vda' | chroot mnt debconf-set-selections
fi
chroot mnt update-grub
grep -q "root=UUID=$uuid" mnt/boot/grub/grub.cfg
unbind mnt
umount mnt
say "done"
