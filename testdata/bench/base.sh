#!/bin/sh
# Make the file system of a stock Debian guest.
#
#   base.sh CODENAME DIR
#
# The packages come from where this machine's own apt gets its packages, and the guest's apt is left with the
# same sources and settings. Only sources of CODENAME itself are taken over, not those of others.
set -eu
codename=$1 dir=$2

set --
for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
	if [ -f "$f" ] && grep -Eq "^[^#]*[[:space:]]$codename([[:space:]]|\$)" "$f"; then set -- "$@" "$f"; fi
done
[ $# -gt 0 ] || { echo "no source of this machine's apt offers $codename" >&2; exit 1; }

settings=$(mktemp)
trap 'rm -f "$settings"' EXIT
apt-config dump | grep -E '^Acquire::(Check-Valid-Until|Check-Date|https?::Proxy) "[^"]' >"$settings" || :

# python3 is there for the peer: ansible needs it, gpuguest does not.
mmdebstrap --quiet --variant=apt --aptopt="$settings" \
	--include=systemd-sysv,dbus,openssh-server,python3,linux-image-amd64,grub-pc,initramfs-tools,kmod,iproute2,ca-certificates,procps,sudo \
	"$codename" "$dir" "$@"
# Nothing in the guest manages its network, so names are looked up as on this machine.
cp --remove-destination -L /etc/resolv.conf "$dir/etc/resolv.conf"
# grub-mkconfig is real, and what would boot from what it writes stands in, as in the lab's containers.
cp -r "$(dirname "$0")/../../internal/lab/container" "$dir/lab"
chroot "$dir" sh /lab/boot.sh
rm -r "$dir/lab"
