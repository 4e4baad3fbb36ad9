#!/bin/sh
# A stand-in for nvidia-installer, for the lab only: it takes the options that the real one of its release
# takes, refuses all others, builds the lab's module by DKMS and ends as the real one does, with 0 or 1.
# The folder that it lies in holds version, options and options.uninstall (one a line, with "=" behind those that
# take a value), and the sources.
here=$(cd "$(dirname "$0")" && pwd)
version=$(cat "$here/version")
log=/var/log/nvidia-installer.log
say() { echo "$*" | tee -a "$log"; }
fail() {
	say "ERROR: $*"
	say "ERROR: Installation has failed.  Please see the file '$log' for details."
	exit 1
}
{
	echo "nvidia-installer log file '$log'"
	echo "installer command line:"
	echo "    ./nvidia-installer $*"
} >"$log"

known() { grep -qxF -e "$1" "$here/options"; }
silent='' dkms='' flavor='' kernel=$(uname -r) running=''
while [ $# -gt 0 ]; do
	word=$1
	shift
	name=${word%%=*}
	if known "$name="; then
		case $word in
		*=*) value=${word#*=} ;;
		*)
			[ $# -gt 0 ] || fail "option '$name' needs a value"
			value=$1
			shift
			;;
		esac
	elif known "$word"; then
		value=
	else
		fail "nvidia-installer: unrecognized option '$word'"
	fi
	case $name in
	--silent | -s) silent=1 ;;
	--dkms) dkms=1 ;;
	--no-dkms) dkms= ;;
	--kernel-name | -k) kernel=$value ;;
	--kernel-module-type | -M) flavor=$value ;;
	--kernel-module-build-directory) if [ "$value" = kernel-open ]; then flavor=open; fi ;;
	--allow-installation-with-running-driver) running=1 ;;
	--module-signing-secret-key | --module-signing-public-key) [ -s "$value" ] || fail "there is no key at '$value'" ;;
	esac
done
[ -n "$silent" ] || fail "nobody is there to be asked: the lab's installer runs with --silent alone"
case $flavor in
open | proprietary) ;;
'') if [ "${version%%.*}" -ge 560 ]; then flavor=open; else flavor=proprietary; fi ;;
*) fail "Invalid kernel module type '$flavor'" ;;
esac
if [ -e /usr/lib/nvidia/alternate-install-present ]; then fail "An alternate method of installing the NVIDIA driver was detected."; fi
if ls -d /sys/bus/pci/drivers/nouveau/0* >/dev/null 2>&1 && [ -z "$running" ]; then
	fail "The Nouveau kernel driver is currently in use by your system.  This driver is incompatible with the NVIDIA driver, and must be disabled before proceeding."
fi
command -v cc >/dev/null 2>&1 || fail "Unable to find the development tool 'cc' in your path"
[ -e "/lib/modules/$kernel/build/Makefile" ] || fail "Unable to find the kernel source tree for the currently running kernel.  Please make sure you have installed the kernel source files for your kernel."

# One driver takes the place of another.
if [ -x /usr/bin/nvidia-uninstall ]; then /usr/bin/nvidia-uninstall --silent >>"$log" 2>&1; fi
mkdir -p /var/lib/nvidia
: >/var/lib/nvidia/files
place() { # FILE PATH MODE
	mkdir -p "${2%/*}"
	echo "$2" >>/var/lib/nvidia/files
	cp "$1" "$2"
	chmod "$3" "$2"
}
lib=/usr/lib64
if [ -d /usr/lib/x86_64-linux-gnu ]; then lib=/usr/lib/x86_64-linux-gnu; fi
for l in libnvidia-ml libcuda libnvidia-cfg; do
	echo "stand-in for $l $version" >"$here/$l"
	place "$here/$l" "$lib/$l.so.$version" 0755
done
for p in nvidia-smi nvidia-persistenced nvidia-modprobe; do
	printf '#!/bin/sh\necho "%s is a stand-in of %s, and there is no GPU" >&2\nexit 9\n' "$p" "$version" >"$here/$p"
	place "$here/$p" "/usr/bin/$p" 0755
done
{
	echo "#!/bin/sh"
	echo "version=$version"
	# No line of the list has a quote in it.
	echo "options='$(cat "$here/options.uninstall")'"
	sed 1d "$here/nvidia-uninstall.sh"
} >"$here/uninstall"
place "$here/uninstall" /usr/bin/nvidia-uninstall 0755
printf '%s (NVIDIA Accelerated Graphics Driver)\n' "$version" >/var/lib/nvidia/log

src=/usr/src/nvidia-$version
mkdir -p "$src"
cp "$here/src/"* "$src/"
open=0
if [ "$flavor" = open ]; then open=1; fi
cat >"$src/standin.h" <<END
#define VERSION "$version"
#define BRANCH ${version%%.*}
#define OPEN $open
#define BUILT "Tue Oct  6 12:00:00 UTC 2026"
#define CC_TEXT "gcc version " __VERSION__
END
if [ -n "$dkms" ]; then
	command -v dkms >/dev/null 2>&1 || fail "The dkms program is not there, and --dkms asks for it"
	for step in add build install; do
		if ! dkms $step -m nvidia -v "$version" -k "$kernel" >>"$log" 2>&1; then
			cat "/var/lib/dkms/nvidia/$version/build/make.log" >>"$log" 2>/dev/null
			fail "Failed to $step the DKMS kernel modules."
		fi
	done
else
	make -C "/lib/modules/$kernel/build" M="$src" modules >>"$log" 2>&1 || fail "An error occurred while performing the step: \"Building kernel modules\"."
	place "$src/nvidia.ko" "/lib/modules/$kernel/kernel/drivers/video/nvidia.ko" 0644
	depmod "$kernel"
fi
say "Installation of the NVIDIA Accelerated Graphics Driver for Linux-$(uname -m) (version: $version) is now complete."
