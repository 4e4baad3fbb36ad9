#!/bin/sh
# Turns a container guest of Debian into one of rpm: rpm, dnf 4 or zypper, dracut, gcc and grub-mkconfig are the real
# ones as Debian packages them; Debian's own kernel, its modules for a GPU among them, takes another release's name.
#   rpm-guest.sh rocky|sles RELEASE-OF-THE-KERNEL (as root, in a guest that is thrown away or kept as a layer)
#
# Stand-ins: os-release, grubby (below), GRUB's reading of boot loader specification entries, and /usr/bin/rpm, which
# adds the word without which Debian's rpm changes nothing.
set -eu
# grub-mkconfig writes what it finds in LANG, and systemd gives its services this one.
export LC_ALL=C LANG=C.UTF-8
family=$1 kernel=$2

debian=$(ls /lib/modules)
mkdir -p "/usr/lib/modules/$kernel"
from=/usr/lib/modules/$debian
cp "$from/modules.order" "$from/modules.builtin" "$from/modules.builtin.modinfo" "/usr/lib/modules/$kernel/"
# A guest's disk, its network, and what would claim a GPU.
for m in nouveau virtio_blk virtio_net virtio_pci ext4 vfio-pci; do
	modprobe -S "$debian" --show-depends "$m" | sed -n 's/^insmod //p' | while read -r f _; do
		f=${f#/usr}
		mkdir -p "/usr/lib/modules/$kernel/$(dirname "${f#"/lib/modules/$debian/"}")"
		cp "$f" "/usr/lib/modules/$kernel/${f#"/lib/modules/$debian/"}"
	done
done
depmod "$kernel"
mv "/boot/vmlinuz-$debian" "/boot/vmlinuz-$kernel"
sed 's/^CONFIG_CC_VERSION_TEXT=.*/CONFIG_CC_VERSION_TEXT="gcc (GCC) 11.5.0 20240719 (Red Hat 11.5.0-5)"/' "/boot/config-$debian" >"/boot/config-$kernel"
rm -rf "$from" "/boot/config-$debian" "/boot/System.map-$debian" "/boot/initrd.img-$debian" /boot/grub /vmlinuz* /initrd.img*

# What is Debian's is nobody's here: no dpkg answers for it, and no apt.
rm -rf /var/lib/dpkg /var/lib/apt /etc/apt /usr/bin/apt* /usr/bin/dpkg-query /etc/kernel/postinst.d /etc/kernel/postrm.d /var/lib/rpm \
	/etc/yum.repos.d /etc/zypp/repos.d /var/cache/dnf /var/cache/zypp /etc/dnf/modules.d /etc/default/grub.d
mkdir -p /etc/apt/apt.conf.d /etc/pki/rpm-gpg
# Its options go by the program's name, so that stays.
mv /usr/bin/rpm /usr/local/lib/lab/rpm
# shellcheck disable=SC2016 # the wrapper's own
printf '#!/bin/sh\nr=/usr/local/lib/lab/rpm\ncase ${1-} in -e | -i | -U) m=$1; shift; exec $r "$m" --force-debian "$@" ;; *) exec $r "$@" ;; esac\n' >/usr/bin/rpm
chmod 755 /usr/bin/rpm
rpm --initdb

# The image is made for any machine, as a cloud image's is, and of few parts, to be made in seconds.
printf 'hostonly="no"\ncompress="cat"\ndracutmodules+=" base kernel-modules drm "\n' >/etc/dracut.conf.d/10-lab.conf
mkdir -p /boot/grub2
case $family in
rocky)
	printf 'NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.6"\nPLATFORM_ID="platform:el9"\nPRETTY_NAME="Rocky Linux 9.6 (Blue Onyx)"\n' >/etc/os-release
	image=/boot/initramfs-$kernel.img
	mkdir -p /etc/yum.repos.d /etc/dnf/modules.d /usr/src/kernels /boot/loader/entries
	# shellcheck disable=SC2016 # GRUB's own
	printf 'set default="${saved_entry}"\nblscfg\n' >/boot/grub2/grub.cfg
	printf 'saved_entry=lab-%s\nboot_success=0\n' "$kernel" >/boot/grub2/grubenv
	printf 'GRUB_DEFAULT=saved\nGRUB_CMDLINE_LINUX="console=ttyS0 crashkernel=1G-4G:192M"\nGRUB_ENABLE_BLSCFG=true\n' >/etc/default/grub
	printf 'title Rocky Linux (%s) 9.6 (Blue Onyx)\nversion %s\nlinux /vmlinuz-%s\ninitrd /initramfs-%s.img\noptions root=/dev/vda1 ro console=ttyS0 crashkernel=1G-4G:192M\ngrub_class rocky\n' \
		"$kernel" "$kernel" "$kernel" "$kernel" >"/boot/loader/entries/lab-$kernel.conf"
	cat >/usr/sbin/grubby <<'GRUBBY'
#!/bin/sh
# Stands in for grubby: --update-kernel=ALL with --args or --remove-args, in every boot entry and /etc/default/grub. As
# the real one does, it puts an argument in place of the one of its name.
set -eu
add='' drop=''
for a; do
	case $a in
	--update-kernel=ALL) ;;
	--args=*) add=${a#*=} ;;
	--remove-args=*) drop=${a#*=} ;;
	*) echo "grubby: unplanned: $a" >&2 && exit 2 ;;
	esac
done
[ -n "$add$drop" ] || exit 2
words() {
	echo "$1" | awk -v add="$add" -v drop="$drop" '
	function name(w) { sub(/=.*/, "", w); return w }
	{
		n = split(add, a, " "); m = split(drop, d, " ")
		for (i = 1; i <= n; i++) taken[name(a[i])] = 1
		for (i = 1; i <= m; i++) gone[d[i]] = 1
		for (i = 1; i <= NF; i++) if (!($i in gone) && !(name($i) in taken)) out = out " " $i
		for (i = 1; i <= n; i++) out = out " " a[i]
		print substr(out, 2)
	}'
}
for e in /boot/loader/entries/*.conf; do
	options=$(words "$(sed -n 's/^options //p' "$e")")
	sed "s|^options .*|options $options|" "$e" >"$e.new"
	mv "$e.new" "$e"
done
line=$(words "$(sed -n 's/^GRUB_CMDLINE_LINUX="\(.*\)"$/\1/p' /etc/default/grub)")
sed "s|^GRUB_CMDLINE_LINUX=.*|GRUB_CMDLINE_LINUX=\"$line\"|" /etc/default/grub >/etc/default/grub.new
mv /etc/default/grub.new /etc/default/grub
GRUBBY
	chmod 755 /usr/sbin/grubby
	rm -f /usr/bin/zypper
	;;
sles)
	printf 'NAME="SLES"\nID="sles"\nID_LIKE="suse"\nVERSION_ID="15.6"\nPRETTY_NAME="SUSE Linux Enterprise Server 15 SP6"\n' >/etc/os-release
	image=/boot/initrd-$kernel
	mkdir -p /etc/zypp/repos.d
	printf 'GRUB_DEFAULT=saved\nGRUB_DISTRIBUTOR=SLES\nGRUB_DISABLE_LINUX_UUID=true\nGRUB_CMDLINE_LINUX=""\nGRUB_CMDLINE_LINUX_DEFAULT="console=ttyS0"\n' >/etc/default/grub
	rm -f /usr/bin/dnf*
	;;
esac
dracut --force "$image" "$kernel"
ln -s /usr/sbin/grub-mkconfig /usr/sbin/grub2-mkconfig
ln -s /usr/bin/grub-editenv /usr/bin/grub2-editenv
# Debian's grub-mkconfig keeps its environment in /boot/grub whatever file it writes.
[ "$family" = rocky ] || { mkdir /boot/grub && grub2-mkconfig -o /boot/grub2/grub.cfg; }

cat >/usr/local/lib/lab/loader <<'LOADER'
#!/bin/sh
# Stands in for the boot loader: has /proc tell the command line and the kernel release of the entry it would start,
# a boot loader specification entry or the first of the menu that grub2-mkconfig wrote.
set -eu
if [ -d /boot/loader/entries ]; then
	set -- /boot/loader/entries/*.conf
	line=$(sed -n 's/^linux //p' "$1")
	line="$line $(sed -n 's/^options //p' "$1")"
else
	line=$(sed -n 's/^[[:space:]]*linux[[:space:]]*//p' /boot/grub2/grub.cfg | head -n 1)
fi
image=${line%% *}
mkdir -p /run/lab
echo "BOOT_IMAGE=$line" >/run/lab/cmdline
echo "${image##*/vmlinuz-}" >/run/lab/osrelease
mount --bind /run/lab/cmdline /proc/cmdline
mount --bind /run/lab/osrelease /proc/sys/kernel/osrelease
LOADER
