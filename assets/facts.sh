#!/bin/sh
# One look at one guest, in one round trip, changing nothing.
#
# Run it as root with nothing on standard input; commands that could hang have a time limit each.
#
# Output: a head line, then sections. `== name` starts a section, `|text` is a line of it, `!reason` says why
# the section is not (fully) known, `== end` proves that nothing was cut off. No other line starts with those
# marks, so whatever a file or a command holds, it cannot forge a section.
#
# What the output means is worked out in internal/facts: the script only fetches. It forks as little as it
# can (a fork costs milliseconds in an emulated guest): sh reads small files itself, one awk reads all others, and
# what others must answer is asked for meanwhile. So the order of the sections means nothing.
#
# Who has more to ask puts two functions before this script. gpuguest_before runs first of all and may leave in
# gpuguest_packages, gpuguest_packages_code and gpuguest_said_1 what dpkg-query and modinfo answered to others;
# gpuguest_beside runs at the same time as this script, and what it prints follows the facts.
#
# GPUGUEST_ROOT, GPUGUEST_SYS: read a recorded tree in place of / and /sys; nothing live is asked then.
# GPUGUEST_FULL=1: ask what the package manager offers even when an NVIDIA driver is installed.
LC_ALL=C
export LC_ALL
unset CDPATH
R=${GPUGUEST_ROOT:-}
S=${GPUGUEST_SYS:-$R/sys}
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
NL='
'
TAB='	'
# Package managers read megabytes, which an emulated guest takes its time for.
T=
TP=
if command -v timeout >/dev/null 2>&1; then
	T='timeout 20'
	TP='timeout 90'
fi

sec() { printf '== %s\n' "$1"; }
why() { printf '!%s\n' "$*"; }
out() { printf '|%s\n' "$*"; }
# get FILE: first line of FILE in $v, without a fork; empty when there is none.
get() {
	v=
	if [ -r "$1" ]; then IFS= read -r v 2>/dev/null <"$1"; fi
}
have() { command -v "$1" >/dev/null 2>&1; }

# asked prints the sections for which systemd or a file system must answer, and either may hang: one limit for all.
asked() {
	if [ -n "$R" ]; then
		if [ -d "$R/run/systemd/system" ]; then
			sec units
			out "systemd${TAB}1"
			why "not asked: a recorded tree"
		else
			sec units
		fi
		sec virt
		why "not asked: a recorded tree"
		sec disks
		why "not asked: a recorded tree"
		return
	fi
	# shellcheck disable=SC2016 # the inner shell's own
	$T sh -c '
	sec() { printf "== %s\n" "$1"; }
	why() { printf "!%s\n" "$*"; }
	have() { command -v "$1" >/dev/null 2>&1; }
	virt=
	sec units
	if [ -d /run/systemd/system ]; then
		printf "|systemd\t1\n"
		if have systemctl; then
			state=
			# The manager keeps both words since systemd 215: is-system-running and systemd-detect-virt print them.
			for l in $(systemctl show -p SystemState -p Virtualization 2>/dev/null); do
				case $l in
				SystemState=?*) state=${l#*=} ;;
				Virtualization=) virt=none ;;
				Virtualization=*) virt=${l#*=} ;;
				esac
			done
			if [ -z "$state" ]; then
				state=$(systemctl is-system-running 2>/dev/null)
			fi
			if [ -n "$state" ]; then printf "|state\t%s\n" "$state"; else why "systemctl gave no answer"; fi
			systemctl show -p Id -p LoadState -p ActiveState -p UnitFileState nvidia-persistenced.service \
				nvidia-fabricmanager.service apt-daily.timer apt-daily-upgrade.timer apt-daily.service \
				apt-daily-upgrade.service unattended-upgrades.service packagekit.service display-manager.service \
				2>/dev/null | while IFS= read -r l; do printf "|u\t%s\n" "$l"; done
		else
			why "systemctl not found"
		fi
	fi
	sec virt
	if [ -n "$virt" ]; then
		printf "|%s\n" "$virt"
	elif have systemd-detect-virt; then
		virt=$(systemd-detect-virt 2>/dev/null)
		if [ -n "$virt" ]; then printf "|%s\n" "$virt"; else why "systemd-detect-virt gave no answer"; fi
	fi
	sec disks
	for d in / /boot /var /usr /tmp; do
		if [ -d "$d" ]; then set -- "$@" "$d"; fi
	done
	if have stat; then
		stat -f -c "|%n	%a	%S	%b	%d" "$@" 2>/dev/null || why "stat -f ended with $?"
	else
		why "stat not found"
	fi' gpuguest </dev/null || why "asking ended with $?"
}

# Locks, without fuser: whether a process that /proc/locks names has a lock file open, and then whether it is that
# file's lock, by the inode. flock(2)'s locks hold nobody up that asks by fcntl(2), as package managers do.
# The first who reads /proc/locks waits some milliseconds (the kernel stops all changes to locks for it), and all
# others wait for nothing meanwhile.
locked() {
	sec lock
	set --
	for f in /var/lib/dpkg/lock-frontend /var/lib/dpkg/lock /var/lib/apt/lists/lock /var/cache/apt/archives/lock /var/lib/rpm/.rpm.lock /usr/lib/sysimage/rpm/.rpm.lock; do
		if [ -f "$R$f" ]; then set -- "$@" "$R$f"; fi
	done
	if [ $# -gt 0 ]; then
		if [ -r "$R/proc/locks" ]; then
			ino=
			while read -r _ a _ _ pid dev _; do
				case $a in POSIX | OFDLCK) ;; *) continue ;; esac
				case $pid in '' | *[!0-9]* | 0) continue ;; esac
				for f in "$@"; do
					for d in "$R/proc/$pid/fd"/*; do
						# shellcheck disable=SC3013 # dash, bash and busybox know -ef
						if [ "$d" -ef "$f" ]; then
							if [ -z "$ino" ]; then ino=$NL$(stat -L -c %i "$@" 2>/dev/null)$NL; fi
							case $ino in *"$NL${dev##*:}$NL"*) ;; *) continue 3 ;; esac
							c=
							if [ -r "$R/proc/$pid/cmdline" ]; then c=$(tr '\000\n' '  ' <"$R/proc/$pid/cmdline"); fi
							if [ -z "$c" ]; then
								get "$R/proc/$pid/comm"
								c=$v
							fi
							out "$pid$TAB${f#"$R"}$TAB$c"
							break
						fi
					done
				done
			done <"$R/proc/locks"
		else
			why "/proc/locks is not readable"
		fi
	fi
	for f in /run/yum.pid /run/zypp.pid /var/cache/dnf/metadata_lock.pid /var/cache/dnf/download_lock.pid /var/lib/dnf/rpmdb_lock.pid; do
		get "$R$f"
		case $v in '' | *[!0-9]*) continue ;; esac
		if [ -d "$R/proc/$v" ]; then
			pid=$v
			get "$R/proc/$pid/comm"
			out "$pid$TAB$f$TAB$v"
		fi
	done
}

sections() {
sec id
get "$R/proc/sys/kernel/osrelease"
if [ -z "$v" ] && [ -z "$R" ]; then v=$(uname -r); fi
out "running$TAB$v"
get "$R/proc/sys/kernel/arch"
if [ -z "$v" ] && [ -z "$R" ]; then v=$(uname -m); fi
out "arch$TAB$v"
get "$R/proc/sys/kernel/hostname"
out "host$TAB$v"
get "$R/proc/sys/kernel/random/boot_id"
out "boot_id$TAB$v"
boot=$v
get "$R/proc/1/comm"
out "init$TAB$v"
# User 0 without root's rights would read fewer files and call it the truth.
# shellcheck disable=SC3067 # dash, bash and busybox know -O: / is the effective user's own
if [ -z "$R" ] && ! [ -O / ]; then why "not run as root: some files are not readable"; fi

# Many small files, read by one awk: `|@path` starts a file, `|:line` is a line of it. Those that are large
# are cut down to the lines that are understood.
sec files
set --
for f in /etc/os-release /usr/lib/os-release /proc/cmdline /proc/keys /proc/mounts /proc/driver/nvidia/version \
	/boot/grub/grub.cfg /boot/grub/grubenv /boot/grub2/grub.cfg /boot/grub2/grubenv /boot/loader/loader.conf \
	/boot/efi/loader/loader.conf /efi/loader/loader.conf /etc/default/grub /etc/kernel/cmdline \
	/run/cloud-init/result.json /run/cloud-init/status.json /var/lib/nvidia/log \
	/etc/apt/sources.list "$R"/etc/apt/sources.list.d/*.list \
	"$R"/etc/apt/sources.list.d/*.sources "$R"/boot/loader/entries/*.conf \
	"$R"/boot/efi/loader/entries/*.conf "$R"/efi/loader/entries/*.conf "$R"/etc/default/grub.d/*.cfg \
	"$R"/etc/yum.repos.d/*.repo "$R"/etc/zypp/repos.d/*.repo "$R"/boot/efi/EFI/*/grub.cfg "$R"/boot/efi/EFI/*/grubenv \
	/etc/yum/pluginconf.d/versionlock.list /etc/dnf/plugins/versionlock.list /etc/dnf/versionlock.toml /etc/zypp/locks \
	"$R"/etc/tdnf/locks.d/*.conf; do
	case $f in "$R"/*) ;; *) f=$R$f ;; esac
	if [ "$f" = "$R/usr/lib/os-release" ] && [ -f "$R/etc/os-release" ]; then continue; fi
	if [ -f "$f" ] && [ -r "$f" ]; then set -- "$@" "$f"; fi
done
for f in "$S/kernel/security/lockdown" "$S/module/module/parameters/sig_enforce" \
	"$S/class/dmi/id/sys_vendor" "$S/class/dmi/id/product_name" "$S/hypervisor/type"; do
	if [ -f "$f" ] && [ -r "$f" ]; then set -- "$@" "$f"; fi
done
# The journal of gpuguest, its end if it is long, and what uninstall would take back follow as sections of their own: the
# ledger of packages and holds, what was done past the package manager (internal/steps writes each of these before it does
# it), and the files whose earlier state is kept.
L=$R/var/lib/gpuguest
set -- "$@" m=journal
if [ -r "$L/journal" ]; then set -- "$@" "$L/journal"; fi
set -- "$@" m=ledger
if [ -d "$L/before" ]; then
	for f in package=packages held=held product=products; do
		if [ -r "$L/${f#*=}" ]; then set -- "$@" "k=${f%=*}" "$L/${f#*=}"; fi
	done
	set -- "$@" k=args
	for f in "$L/args" "$R/etc/default/grub.d/90-gpuguest.cfg" "$R/etc/default/grub"; do
		if [ -r "$f" ]; then set -- "$@" "$f"; fi
	done
	for f in runfile toolkit cuda-link account service; do
		if [ -r "$L/before/$f" ]; then set -- "$@" "k=$f" "$L/before/$f"; fi
	done
fi
# shellcheck disable=SC2016 # the dollars are awk's
awk -v r="${#R}" -v s="${#S}" -v sys="$S" '
function journal(  i, size) {
	print "== journal"
	for (i = n; i > 0 && size <= 262144; i--) size += length(line[i]) + 1
	if (size > 262144) i++
	while (++i <= n) print "|" line[i]
	print "== ledger"
	told = 1
}
m == "journal" { line[++n] = $0; next }
m == "ledger" {
	if (!told) journal()
	if (k == "args") { if (sub(/^# arguments: /, "|args\t")) print }
	else if (k == "package") print "|package\t" $1 "\t" $2 "\t" $3
	else if (NF) print "|" k "\t" $1
	next
}
FNR == 1 {
	f = FILENAME
	if (index(f, sys "/") == 1) f = "/sys" substr(f, s + 1); else f = substr(f, r + 1)
	print "|@" f
	grub = f ~ /\/grub\.cfg$/
	keys = f == "/proc/keys"
	mounts = f == "/proc/mounts"
	conf = f ~ /^\/etc\/|\/grubenv$/
	log_ = f == "/var/lib/nvidia/log"
}
grub && !/^[ \t]*(set +default=|menuentry[ \t]|submenu[ \t]|linux|initrd|blscfg|[}])/ { next }
keys && !/asymmetri/ { next }
mounts && $2 !~ /^\/(boot|boot\/efi|efi|var|var\/lib|var\/lib\/dpkg|usr|tmp|etc)?$/ { next }
conf && /^[ \t]*#/ { next }
!NF && f !~ /\.sources$/ { next }
log_ && FNR > 2 { next }
{ print "|:" $0 }
END { if (!told) journal() }' "$@" </dev/null 2>/dev/null || why "awk ended with $?: not every file was read"
if [ -e "$L/journal" ] && ! [ -r "$L/journal" ]; then why "$L/journal is not readable"; fi
# walk WORD FOLDER: the files below it, without a fork.
walk() {
	for f in "$2"/* "$2"/.[!.]*; do
		if [ -d "$f" ] && ! [ -L "$f" ]; then
			walk "$1" "$f"
		elif [ -e "$f" ] || [ -L "$f" ]; then
			f=${f#"$L"/before/}
			out "$1$TAB/${f#*/}"
		fi
	done
}
if [ -d "$L/before" ]; then
	out before
	if [ -d "$L/secure-boot" ]; then out signing-key; fi
	walk kept "$L/before/files"
	walk absent "$L/before/absent"
fi

sec kernels
set --
deps=
for d in "$R"/lib/modules/*/; do
	[ -d "$d" ] || continue
	k=${d%/}
	k=${k##*/}
	b=0
	if [ -f "${d}build/Makefile" ]; then b=1; fi
	i=
	for f in "$R/boot/vmlinuz-$k" "$R/boot/vmlinux-$k" "$R/boot/Image-$k" "$R/boot/kernel-$k" "${d}vmlinuz"; do
		if [ -f "$f" ]; then
			i=${f#"$R"}
			break
		fi
	done
	out "k$TAB$k$TAB$b$TAB$i"
	for f in "${d}modules.dep" "${d}modules.builtin"; do
		if [ -f "$f" ]; then set -- "$@" "$f"; fi
	done
done
for f in "$R"/boot/vmlinu[xz]* "$R"/boot/Image* "$R"/boot/kernel-* "$R"/boot/initr* "$R"/boot/init-* \
	"$R"/boot/efi/*/*/initrd "$R"/boot/*/*/initrd "$R"/efi/*/*/initrd; do
	if [ -f "$f" ]; then out "f$TAB${f#"$R"}"; fi
done
# Module files of interest of every kernel: which of them starts next is worked out later.
if [ $# -gt 0 ]; then
	deps=$(grep -HoE '^[^:]*/(nouveau|nova[-_]core|nova([-_]drm)?|nvidiafb|vfio-pci|nvidia[^/:]*)\.ko[.a-z0-9]*(:|$)' "$@" /dev/null 2>/dev/null </dev/null)
	set --
	while IFS= read -r l; do
		[ -n "$l" ] || continue
		k=${l%%/modules.[db]*}
		k=${k##*/}
		p=${l#*/modules.*:}
		p=${p%:}
		out "m$TAB$k$TAB$p"
		case ${p##*/} in
		nvidia-drm* | nvidia-modeset* | nvidia-uvm* | nvidia-peermem* | nvidia*-drm.ko* | nvidia*-modeset.ko* | nvidia*-uvm.ko* | nvidia*-peermem.ko*) ;;
		nvidia.ko* | nvidia-current*.ko* | nvidia-tesla*.ko* | nvidia-legacy*.ko*)
			case $p in
			/*) set -- "$@" "$R$p" ;;
			*) set -- "$@" "$R/lib/modules/$k/$p" ;;
			esac
			;;
		esac
	done <<DEPS
$deps
DEPS
fi
for f in "$R"/boot/config-* "$R"/lib/modules/*/config; do
	if [ -f "$f" ]; then
		# The compiler's line is near the top: sh stops reading there and needs no fork.
		n=0
		while [ $n -lt 12 ] && IFS= read -r l; do
			n=$((n + 1))
			case $l in
			CONFIG_CC_VERSION_TEXT=* | '# Compiler: '*)
				k=${f#"$R"}
				out "c$TAB$k$TAB$l"
				break
				;;
			esac
		done <"$f"
	fi
done

sec modinfo
if [ $# -gt 0 ]; then
	if have modinfo; then
		# What another asked of this very file is not asked again.
		deps=${gpuguest_said_1:-}
		l=${deps%%"$NL"*}
		case "$# $l" in
		"1 filename:"*" $1") ;;
		*) deps=$(modinfo "$@" 2>/dev/null </dev/null) ;;
		esac
		set -f
		IFS=$NL
		for l in $deps; do
			case $l in
			filename:*)
				l=${l#filename:}
				l=${l#"${l%%[! ]*}"}
				out "filename:${l#"$R"}"
				;;
			version:* | license:* | signer:* | vermagic:* | sig_key:*) out "$l" ;;
			esac
		done
		unset IFS
		set +f
	else
		why "modinfo not found"
	fi
fi

sec pci
if [ -d "$S/bus/pci/devices" ]; then
	for d in "$S"/bus/pci/devices/*; do
		get "$d/vendor"
		case $v in
		0x10de) ;;
		# Switches of NVLink 5 show as ConnectX adapters whose vital product data says what they are for
		# (NVIDIA Fabric Manager user guide: SMDL=SW_MNG).
		0x15b3) grep -q SW_MNG "$d/vpd" 2>/dev/null || continue ;;
		*) continue ;;
		esac
		l="p$TAB${d##*/}"
		for f in vendor device subsystem_vendor subsystem_device class numa_node; do
			get "$d/$f"
			l=$l$TAB${v:--}
		done
		out "$l"
		if cd -P "$d/driver" 2>/dev/null; then
			out "d$TAB${PWD##*/}"
			cd / || exit 1
		fi
		get "$d/driver_override"
		if [ -n "$v" ] && [ "$v" != '(null)' ]; then out "o$TAB$v"; fi
		if [ -r "$d/resource" ]; then
			n=0
			while read -r a b f; do
				case $a$b$f in *[1-9a-fA-F]*) out "r$TAB$n$TAB$a$TAB$b$TAB$f" ;; esac
				n=$((n + 1))
			done <"$d/resource"
		fi
	done
else
	why "$S/bus/pci/devices: no such directory"
fi

sec loaded
if [ -d "$S/module" ]; then
	for m in nouveau nova_core nova_drm nova nvidiafb nvidia nvidia_uvm nvidia_modeset nvidia_drm vfio_pci; do
		if [ -d "$S/module/$m" ]; then out "$m"; fi
	done
else
	why "$S/module: no such directory"
fi

sec packages
pk=
apt=
# all NAME: print the list in $pk, which ends in NAME's exit code; half a list would pass for "not installed".
all() {
	case $pk in
	rc0) ;;
	*"${NL}rc0") printf '%s\n' "${pk%"${NL}rc0"}" ;;
	*)
		why "$1 ended with ${pk##*rc}"
		pk=
		;;
	esac
}
if have dpkg-query && [ -f "$R/var/lib/dpkg/status" ]; then
	apt=1
	# Every package that is of interest, and every one that is not simply installed or gone.
	# shellcheck disable=SC2016 # dpkg-query's own variables
	pk=$({
		if [ -n "${gpuguest_packages:-}" ]; then
			printf '%s\nrc%s\n' "$gpuguest_packages" "${gpuguest_packages_code:-0}"
		else
			dpkg-query --admindir="$R/var/lib/dpkg" -W -f='|${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\n' 2>/dev/null </dev/null
			echo "rc$?"
		fi
	} | grep -oE "^rc.*|\\|(.[HUFWt]|h.|..R).*|\\|.i.?$TAB([^$TAB]*(nvidia|cuda|nouveau|nvpd)|linux-(image|headers|modules|generic|virtual|lowlatency|aws|azure|gcp|oracle|kvm|nvidia|kbuild|compiler|source)|(dkms|gcc|g\\+\\+|make|build-essential|libc6-dev|dpkg|apt|mokutil|shim|grub|systemd|systemd-boot|initramfs-tools|dracut|kmod|cloud-init|curl|wget|gnupg|gpg|ca-certificates|pciutils|needrestart|unattended-upgrades|ubuntu-drivers-common|datacenter-gpu-manager|firmware-misc-nonfree)(-[^$TAB]*)?$TAB).*")
	all dpkg-query
elif have rpm && [ -z "$R" ]; then
	# shellcheck disable=SC2016
	pk=$({
		$TP rpm -qa --qf '|rpm\t%{NAME}\t%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\t%{ARCH}\n' 2>/dev/null </dev/null
		echo "rc$?"
	} | grep -E "^rc|^\\|rpm$TAB([^$TAB]*(nvidia|cuda|nouveau)|kernel|(dkms|gcc|make|mokutil|shim|grub2|systemd|dracut|kmod|cloud-init|curl|wget|pciutils|dnf|yum|zypper|akmods?|epel-release|elrepo-release)(-[^$TAB]*)?$TAB)")
	all rpm
else
	why "neither dpkg-query nor rpm found"
fi

# What would be installed now. apt-cache costs half a second natively (seconds in an emulated guest) when it
# has to build its cache, and `apt-get indextargets` as much, without telling Signed-By: so sources are read
# from their files, and offers are asked for only while no driver package is installed (nothing is then
# converged, and an installation costs minutes anyway), or with GPUGUEST_FULL=1.
sec offered
full=${GPUGUEST_FULL:-}
case $pk in
*"${TAB}nvidia-driver"* | *"${TAB}nvidia-open"* | *"${TAB}nvidia-kernel"* | *"${TAB}nvidia-dkms"* | *"${TAB}nvidia-headless"* | *"${TAB}cuda-drivers"* | *"${TAB}kmod-nvidia"* | *"${TAB}linux-modules-nvidia"*) ;;
*) full=1 ;;
esac
if [ -z "$apt" ] || [ -n "$R" ]; then
	why "not asked: no live apt"
elif [ "$full" != 1 ]; then
	why "not asked: a driver is installed"
elif ! have apt-cache; then
	why "apt-cache not found"
else
	# A stale cache would be rewritten: have apt build it in memory then, for nothing here may write.
	c=/var/cache/apt/pkgcache.bin
	set --
	# shellcheck disable=SC3013 # dash, bash and busybox know -nt
	if ! [ -s $c ] || [ /var/lib/dpkg/status -nt $c ] || [ /var/lib/apt/lists -nt $c ] || [ /etc/apt/sources.list -nt $c ] || [ /etc/apt/sources.list.d -nt $c ]; then
		set -- -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
	fi
	ks=' '
	for d in /lib/modules/*/; do
		d=${d%/}
		ks="$ks${d##*/} "
	done
	# shellcheck disable=SC2016
	names=$($TP apt-cache "$@" pkgnames 2>/dev/null </dev/null | awk -v ks="$ks" '
	/^(nvidia-(driver|open|kernel|dkms|headless|utils|compute|persistenced|smi|tesla|legacy|modprobe|firmware|fabric|imex|cuda-toolkit|graphics-drivers)|cuda-(drivers|keyring|compat|toolkit-[0-9])|cuda-toolkit$|libnvidia-(compute|ml1)|libcuda1$|firmware-nvidia|linux-modules-nvidia-|linux-headers-|linux-image-|dkms$|gcc$|make$|build-essential$|mokutil$|initramfs-tools$)/ {
		if (/-dbg|-unsigned|-dev$|-template$/) next
		# Of thousands of names that carry a kernel release, only those for a kernel that is here.
		if (/^linux-/ && match($0, /-[0-9]+\.[0-9]+/) && !/-[0-9][0-9]\.[0-9][0-9](-edge)?$/ && !index(ks, " " substr($0, RSTART + 1) " ")) next
		print
	}')
	if [ -z "$names" ]; then
		why "apt-cache pkgnames gave no name of interest"
	else
		{
			# shellcheck disable=SC2086 # package names, one word each
			$TP apt-cache "$@" policy $names 2>/dev/null </dev/null
			echo "rc $?"
		} | awk '
		$1 == "rc" { if ($2 != 0) print "!apt-cache policy ended with " $2; next }
		/^[^ ]/ { name = $1; sub(/:$/, "", name); next }
		/^  Installed:/ { next }
		/^  Candidate:/ { if ($2 != "(none)") print "|c\t" name "\t" $2; next }
		/^  (Version table|Package pin)/ { next }
		/^ (\*\*\*|   ) [^ ]/ { v = ($1 == "***") ? $2 : $1; print "|v\t" name "\t" v; next }
		/^        ? *-?[0-9]+ / { if ($2 !~ /^\//) print "|s\t" $1 "\t" $2 "\t" $3 }'
	fi
fi

sec oldnvidia
set --
for f in "$R"/etc/apt/sources.list "$R"/etc/apt/sources.list.d/*.list "$R"/etc/apt/sources.list.d/*.sources; do
	if [ -f "$f" ]; then set -- "$@" "$f"; fi
done
# The retired key AE09FE4BBD223A84B2CCFCE3F60F4B3D7FA2AF80: a binary keyring names its id in its signatures.
for f in "$R"/etc/apt/trusted.gpg "$R"/etc/apt/trusted.gpg.d/* "$R"/etc/apt/keyrings/* "$R"/usr/share/keyrings/*nvidia* "$R"/usr/share/keyrings/cuda*; do
	if [ -f "$f" ]; then set -- "$@" "$f"; fi
done
if [ $# -gt 0 ]; then
	key=$(printf '\366\017\113\075\177\242\257\200')
	deps=$(grep -lE -e '^[^#]*(developer\.download\.nvidia\.com|nvidia\.github\.io|7[fF][aA]2[aA][fF]80)' -e "$key" "$@" /dev/null 2>/dev/null </dev/null)
	set -f
	IFS=$NL
	for f in $deps; do
		f=${f#"$R"}
		case $f in
		/etc/apt/sources.list*)
			if [ -f "$R/var/lib/dpkg/info/cuda-keyring.list" ]; then
				while IFS= read -r l; do if [ "$l" = "$f" ]; then continue 2; fi; done <"$R/var/lib/dpkg/info/cuda-keyring.list"
			fi
			;;
		esac
		out "$f"
	done
	unset IFS
	set +f
fi

sec driver
for f in "$R"/usr/lib/*/libnvidia-ml.so.*.* "$R"/usr/lib64/libnvidia-ml.so.*.* "$R"/usr/lib/libnvidia-ml.so.*.* \
	"$R"/usr/lib/*/nvidia/*/libnvidia-ml.so.*.* "$R"/usr/lib/*/libcuda.so.*.* "$R"/usr/lib64/libcuda.so.*.* \
	"$R"/usr/lib/libcuda.so.*.* "$R"/usr/lib/*/nvidia/*/libcuda.so.*.*; do
	if [ -f "$f" ]; then out "lib$TAB${f#"$R"}"; fi
done
for f in /usr/bin/nvidia-uninstall /usr/sbin/nvidia-uninstall /usr/local/bin/nvidia-uninstall; do
	if [ -f "$R$f" ]; then
		o=0
		if [ -n "$apt" ]; then
			if $T dpkg-query --admindir="$R/var/lib/dpkg" -S "$f" >/dev/null 2>&1 </dev/null; then o=1; fi
		elif [ -z "$R" ] && have rpm; then
			if $T rpm -qf "$f" >/dev/null 2>&1 </dev/null; then o=1; fi
		fi
		out "uninstall$TAB$f$TAB$o"
	fi
done
for d in "$R"/usr/local/cuda-*/; do
	d=${d%/}
	if [ -d "$d" ] && ! [ -L "$d" ]; then out "cuda$TAB${d##*/cuda-}"; fi
done
# The tree of DKMS in place of `dkms status`, which forks hundreds of times.
for d in "$R"/var/lib/dkms/*/*/; do
	d=${d%/}
	v=${d##*/}
	case $v in kernel-* | original_module | '*') continue ;; esac
	m=${d%/*}
	m=${m##*/}
	b=
	for f in "$d"/*/*/module/; do
		if [ -d "$f" ]; then
			f=${f%/module/}
			a=${f##*/}
			k=${f%/*}
			out "dkms$TAB$m$TAB$v$TAB${k##*/}$TAB$a"
			b=1
		fi
	done
	if [ -z "$b" ]; then out "dkms$TAB$m$TAB$v$TAB$TAB"; fi
done

sec tools
for f in gcc cc make dkms curl wget gpg gpgv python3 mokutil lspci modinfo nvidia-smi nvidia-persistenced \
	update-initramfs lsinitramfs dracut lsinitrd mkinitrd update-grub grub-mkconfig grub2-mkconfig grub-editenv \
	grub2-editenv grubby kernel-install bootctl systemctl systemd-run setsid timeout flock cloud-init apt-get dnf yum \
	zypper unattended-upgrade needrestart debconf-communicate initctl docker containerd podman; do
	for d in /usr/bin /usr/sbin /bin /sbin /usr/local/bin /usr/local/sbin; do
		if [ -x "$R$d/$f" ]; then
			out "$f$TAB$d/$f"
			break
		fi
	done
done

sec secure
if [ -d "$S/firmware/efi" ]; then
	out "efi${TAB}1"
	d=$S/firmware/efi/efivars
	g=8be4df61-93ca-11d2-aa0d-00e098032b8c
	s=
	for f in SecureBoot SetupMode; do
		if [ -r "$d/$f-$g" ]; then
			# Four bytes of attributes, then the value.
			v=$(od -An -tu1 "$d/$f-$g" 2>/dev/null)
			v=${v##* }
			out "$f$TAB$v"
			if [ "$f" = SecureBoot ]; then s=1; fi
		fi
	done
	# Shim was told to check nothing (mokutil --disable-validation): the kernel then takes Secure Boot for off
	# (drivers/firmware/efi/libstub/secureboot.c).
	f=$d/MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23
	if [ -r "$f" ]; then
		v=$(od -An -tu1 "$f" 2>/dev/null)
		out "MokSBState${TAB}${v##* }"
	fi
	if [ -z "$s" ]; then
		if [ -z "$R" ] && have mokutil; then
			v=$($T mokutil --sb-state 2>&1 </dev/null)
			case $v in
			*'validation is disabled in shim'*) out "SecureBoot${TAB}0" ;;
			*'SecureBoot enabled'*) out "SecureBoot${TAB}1" ;;
			*'SecureBoot disabled'*) out "SecureBoot${TAB}0" ;;
			*) why "no SecureBoot variable, and mokutil said: ${v%%"$NL"*}" ;;
			esac
		else
			why "no SecureBoot variable in $d"
		fi
	fi
	f=$d/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f
	if [ -r "$f" ]; then out "loader$TAB$(tr -cd 'A-Za-z0-9. ()-' <"$f")"; fi
elif [ -d "$S/firmware" ]; then
	out "efi${TAB}0"
else
	why "$S/firmware: no such directory"
fi
for f in /var/lib/shim-signed/mok/MOK.der /var/lib/shim-signed/mok/MOK.priv /var/lib/dkms/mok.pub /var/lib/dkms/mok.key; do
	if [ -f "$R$f" ]; then
		out "key$TAB$f"
		# Whether the kernel trusts it shows by its key id.
		case $f in *.der | *.pub) out "cert$TAB$f$TAB$(base64 <"$R$f" 2>/dev/null | tr -d '\n')" ;; esac
	fi
done

sec cloud
for f in /run/cloud-init/enabled /run/cloud-init/disabled /etc/cloud/cloud-init.disabled /var/lib/cloud/instance/boot-finished /usr/bin/cloud-init; do
	if [ -e "$R$f" ]; then out "$f"; fi
done

sec jobs
for d in "$R"/var/lib/gpuguest/jobs/*/*/; do
	[ -d "$d" ] || continue
	d=${d%/}
	a=${d##*/}
	j=${d%/*}
	e=0
	if [ -s "$d/exit" ]; then e=1; fi
	# A job of an earlier boot cannot be at work, whatever it left.
	get "$d/boot"
	if [ -n "$boot" ] && [ -n "$v" ] && [ "$boot" != "$v" ]; then e=1; fi
	out "${j##*/}$TAB$a$TAB$e"
done

printf '== end\n'
}

# Each side of a pipe keeps what it finds and prints it in one piece: a network would carry many small ones one by one.
# Nothing goes through the pipes: their end tells that the other side has printed, to where 4 leads.
look() {
	answers=$(sections 4>&- </dev/null)
	read -r _
	printf '%s\n' "$answers"
}
printf 'gpuguest-facts 1\n'
exec 4>&1
{
	answers=$(locked 4>&-)
	printf '%s\n' "$answers" >&4
} | {
	answers=$(asked 4>&-)
	read -r _
	printf '%s\n' "$answers" >&4
} | {
	if have gpuguest_before; then gpuguest_before 4>&-; fi
	if have gpuguest_beside; then
		look >&4 | {
			answers=$(gpuguest_beside 4>&- </dev/null 2>/dev/null)
			read -r _
			printf '%s\n' "$answers"
		}
	else
		look
	fi
}
