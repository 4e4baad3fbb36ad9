#!/bin/sh
# The lab's stand-in for nvidia-uninstall. The installer puts version and options in front of it.
log=/var/log/nvidia-uninstall.log
: "${version:=}" "${options:=}"
echo "nvidia-installer log file '$log'" >"$log"
silent=
for word in "$@"; do
	case "
$options
" in
	*"
$word
"*) ;;
	*)
		echo "ERROR: nvidia-uninstall: unrecognized option '$word'" | tee -a "$log"
		exit 1
		;;
	esac
	case $word in --silent | -s) silent=1 ;; esac
done
if [ -z "$silent" ]; then
	echo "ERROR: nobody is there to be asked" | tee -a "$log"
	exit 1
fi
if [ -d /sys/module/nvidia ]; then rmmod nvidia 2>>"$log" || :; fi
if command -v dkms >/dev/null 2>&1; then dkms remove -m nvidia -v "$version" --all >>"$log" 2>&1 || :; fi
rm -rf "/usr/src/nvidia-$version"
while IFS= read -r f; do rm -f "$f"; done </var/lib/nvidia/files
rm -f /var/lib/nvidia/files /var/lib/nvidia/log
ldconfig
echo "Uninstallation of existing driver: NVIDIA Accelerated Graphics Driver for Linux-$(uname -m) ($version) is complete." | tee -a "$log"
