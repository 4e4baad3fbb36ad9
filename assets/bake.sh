# What is done to a guest that becomes an image, beside installing: POSIX sh that internal/bake puts in front of
# one call. It is sourced text, not a program.
#
#   packages          list every package: name, version, architecture, divided by tabs
#   modules KERNEL    list NVIDIA's modules for KERNEL: path, version, vermagic, license, signer, divided by tabs
#   flavors KERNEL    list the modules that are kept for KERNEL: flavor, and the same columns; nothing where one set is all
#   lock_packages     read such a list and hold the package manager to it, as far as it can be
#   seal KEY BOOT     take away what must not be in an image; KEY is the one-time public key's second word, BOOT the
#                     boot_id of the guest that is meant: no other machine is ever sealed by mistake
#   sealed KEY        look for what seal should have taken away; one line each, exit 1 when there is any
#
# seal is for the last moment before the guest is turned off: it stops what would write logs again, and the guest's
# packages have no cache any more. What gpuguest keeps in /var/lib/gpuguest stays, but for the jobs' logs: the journal
# is the image's provenance.
#
# GPUGUEST_ROOT: work on a tree in place of /, and leave the services alone that run.
export LC_ALL=C
R=${GPUGUEST_ROOT:-}
LOCK=$R/etc/apt/preferences.d/00gpuguest-lock
TAB='	'

packages() {
	if command -v dpkg-query >/dev/null 2>&1; then
		# shellcheck disable=SC2016 # dpkg-query's own variables
		dpkg-query --admindir="$R/var/lib/dpkg" -W -f='${db:Status-Status}\t${Package}\t${Version}\t${Architecture}\n' | sed -n "s/^installed$TAB//p"
	else
		rpm -qa --qf '%{NAME}\t%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\t%{ARCH}\n' | grep -v '^gpg-pubkey'
	fi | sort
}

modules() { described "$R/lib/modules/$1"; }

flavors() {
	for dir in "$R/usr/local/lib/gpuguest/modules/$1"/*; do
		if [ -d "$dir" ]; then described "$dir" | sed "s/^/${dir##*/}$TAB/"; fi
	done
}

# described lists the modules below a folder.
described() {
	find "$1" -name 'nvidia*.ko*' 2>/dev/null | sort | while IFS= read -r file; do
		modinfo "$file" 2>/dev/null | awk -v path="${file#"$R"}" '
			/^(version|vermagic|license|signer):/ { name = $1; sub(/:$/, "", name); sub(/^[a-z]*:[ \t]*/, ""); v[name] = $0 }
			# Modules of the kernel itself, such as nvidiafb, have no version.
			END { if (v["version"] != "") printf "%s\t%s\t%s\t%s\t%s\n", path, v["version"], v["vermagic"], v["license"], v["signer"] }'
	done
}

# A pin above 1000 holds also where that is a downgrade. Other package managers than apt know nothing of the kind;
# there the list of what was installed is compared afterwards.
lock_packages() {
	command -v apt-get >/dev/null 2>&1 || { cat >/dev/null; return 0; }
	native=$(dpkg --print-architecture)
	mkdir -p "${LOCK%/*}"
	awk -F "$TAB" -v native="$native" '{
		name = $1
		if ($3 != native && $3 != "all") name = name ":" $3
		printf "Package: %s\nPin: version %s\nPin-Priority: 1001\n\n", name, $2
	}' >"$LOCK.tmp"
	mv -f "$LOCK.tmp" "$LOCK"
}

# homes are the directories that somebody may log in to.
homes() {
	{
		echo /root
		cut -d: -f6 "$R/etc/passwd"
		for h in "$R"/home/*; do
			[ ! -d "$h" ] || echo "${h#"$R"}"
		done
	} | grep -E '^/(root|home/|var/lib/|srv/|opt/|Users/)' | sort -u | while IFS= read -r h; do
		if [ -d "$R$h" ]; then echo "$R$h"; fi
	done
}

# quiet keeps services from writing what is taken away. The journal goes nowhere until the next boot.
quiet() {
	if [ -n "$R" ] || ! [ -d /run/systemd/system ]; then return 0; fi
	mkdir -p /run/systemd/journald.conf.d
	printf '[Journal]\nStorage=none\nForwardToSyslog=no\n' >/run/systemd/journald.conf.d/zz-gpuguest-seal.conf
	systemctl restart systemd-journald.service
	for unit in apt-daily.timer apt-daily-upgrade.timer dnf-makecache.timer packagekit.service unattended-upgrades.service \
		syslog.socket rsyslog.service syslog-ng.service cron.service crond.service atd.service sysstat.service \
		logrotate.timer man-db.timer systemd-random-seed.service systemd-update-utmp.service; do
		systemctl stop "$unit" 2>/dev/null || true
	done
	# auditd refuses systemctl stop.
	service auditd stop >/dev/null 2>&1 || true
}

seal() {
	if [ -z "$1" ] || [ "$(cat "$R/proc/sys/kernel/random/boot_id")" != "$2" ]; then
		echo "this is not the guest that is to be sealed"
		return 1
	fi
	quiet
	# Packages: caches and lists. Another run fetches them anew.
	if command -v apt-get >/dev/null 2>&1 && [ -z "$R" ]; then apt-get clean; fi
	rm -rf "$R"/var/cache/apt/*.bin "$R"/var/cache/apt/archives/*.deb "$R"/var/cache/apt/archives/partial/* "$R"/var/lib/apt/lists/* \
		"$R"/var/cache/dnf/* "$R"/var/cache/libdnf5/* "$R"/var/cache/yum/* "$R"/var/cache/zypp/* "$R"/var/cache/tdnf/* \
		"$R"/var/cache/PackageKit/*
	rm -f "$LOCK" "$LOCK.tmp"

	# Logins: keys of the host, the one-time key, histories.
	rm -f "$R"/etc/ssh/ssh_host_*
	homes | while IFS= read -r h; do
		for f in "$h/.ssh/authorized_keys" "$h/.ssh/authorized_keys2"; do
			if [ -f "$f" ] && grep -qF -e "$1" "$f"; then
				# Through the file, so that owner and mode stay.
				left=$(grep -vF -e "$1" "$f") || true
				if [ -n "$left" ]; then
					printf '%s\n' "$left" >"$f"
				else
					rm -f "$f"
					rmdir "$h/.ssh" 2>/dev/null || true
				fi
			fi
		done
		rm -f "$h"/.*_history "$h"/.lesshst "$h"/.viminfo "$h"/.wget-hsts "$h"/.sudo_as_admin_successful "$h"/.ssh/known_hosts.gpuguest
	done

	# Who the machine is. An empty machine-id is filled in at boot and, unlike a missing one, does not make systemd
	# apply its presets anew.
	if [ -e "$R/etc/machine-id" ]; then : >"$R/etc/machine-id"; fi
	if ! [ -L "$R/var/lib/dbus/machine-id" ]; then rm -f "$R/var/lib/dbus/machine-id"; fi
	rm -f "$R"/var/lib/systemd/random-seed "$R"/var/lib/systemd/credential.secret "$R"/boot/loader/random-seed \
		"$R"/boot/efi/loader/random-seed "$R"/efi/loader/random-seed "$R"/var/lib/NetworkManager/secret_key \
		"$R"/etc/udev/rules.d/70-persistent-net.rules
	rm -rf "$R"/var/lib/dhcp/* "$R"/var/lib/dhclient/* "$R"/var/lib/dhcpcd/*.lease "$R"/var/lib/NetworkManager/*.lease \
		"$R"/var/lib/NetworkManager/timestamps "$R"/var/lib/systemd/network/leases
	hostkeys

	# cloud-init: all it knows of this instance, and what it wrote for it and writes again for the next.
	if [ -d "$R/var/lib/cloud" ]; then
		rm -rf "$R"/var/lib/cloud/* "$R"/run/cloud-init
		rm -f "$R"/etc/netplan/50-cloud-init.yaml "$R"/etc/network/interfaces.d/50-cloud-init* "$R"/etc/systemd/network/*-cloud-init-*.network \
			"$R"/etc/NetworkManager/system-connections/cloud-init-*.nmconnection "$R"/etc/ssh/sshd_config.d/50-cloud-init.conf \
			"$R"/etc/sudoers.d/90-cloud-init-users
	fi

	# Logs. wtmp and its like must not be there: the end of this very login would be written to them.
	rm -rf "$R"/var/lib/gpuguest/jobs "$R"/var/log/journal/* "$R"/var/crash/* "$R"/var/lib/systemd/coredump/*
	rm -f "$R"/var/log/wtmp "$R"/var/log/btmp "$R"/var/log/lastlog "$R"/var/lib/wtmpdb/wtmp.db "$R"/var/lib/lastlog/lastlog2.db
	find "$R/var/log" -xdev -type f \( -name '*.gz' -o -name '*.xz' -o -name '*.zst' -o -name '*.old' -o -name '*.[0-9]' -o -name '*-20[0-9][0-9]*' \) -exec rm -f {} +
	find "$R/var/log" -xdev -type f -size +0 | while IFS= read -r f; do : >"$f"; done
	rm -rf "$R"/tmp/* "$R"/var/tmp/*

	sealed "$1"
	if [ -z "$R" ]; then
		sync
		# Blocks that were given back need not be in the image. Not every disk can be told, and on some it takes longer
		# than what is spared is worth.
		timeout -s KILL 120 fstrim -a 2>/dev/null || true
	fi
}

# hostkeys sees that sshd finds keys at the first boot, where neither cloud-init nor the distribution does.
hostkeys() {
	for f in "$R"/usr/lib/systemd/system/sshd-keygen* "$R"/lib/systemd/system/sshd-keygen*; do
		if [ -e "$f" ]; then return 0; fi
	done
	if [ -d "$R/etc/cloud" ] && ! [ -e "$R/etc/cloud/cloud-init.disabled" ]; then return 0; fi
	if ! [ -d "$R/etc/systemd/system" ] || ! [ -d "$R/etc/ssh" ]; then return 0; fi
	mkdir -p "$R/etc/systemd/system/multi-user.target.wants"
	cat >"$R/etc/systemd/system/gpuguest-hostkeys.service" <<-'UNIT'
		# Written by gpuguest: the image has no host keys, and nothing else makes them.
		[Unit]
		Description=Make SSH host keys
		Before=ssh.service sshd.service
		ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key

		[Service]
		Type=oneshot
		ExecStart=/usr/bin/ssh-keygen -A

		[Install]
		WantedBy=multi-user.target
	UNIT
	ln -sf ../gpuguest-hostkeys.service "$R/etc/systemd/system/multi-user.target.wants/gpuguest-hostkeys.service"
}

sealed() {
	left=$(
		for f in "$R"/etc/ssh/ssh_host_* "$R"/var/lib/cloud/* "$R"/var/lib/apt/lists/* "$R"/var/cache/apt/archives/*.deb "$R"/var/cache/dnf/* \
			"$R"/var/cache/libdnf5/* "$R"/var/cache/zypp/* "$R"/var/lib/dhcp/* "$R"/var/lib/NetworkManager/*.lease "$R"/var/log/journal/* \
			"$R"/var/log/wtmp "$R"/var/lib/gpuguest/jobs "$LOCK"; do
			if [ -e "$f" ]; then echo "${f#"$R"} is there"; fi
		done
		if [ -s "$R/etc/machine-id" ]; then echo "/etc/machine-id is not empty"; fi
		homes | while IFS= read -r h; do
			for f in "$h"/.*_history; do
				if [ -e "$f" ]; then echo "${f#"$R"} is there"; fi
			done
			if grep -qsF -e "$1" "$h/.ssh/authorized_keys" "$h/.ssh/authorized_keys2"; then echo "${h#"$R"}/.ssh still lets the one-time key in"; fi
		done
		find "$R/var/log" -xdev -type f -size +0 | while IFS= read -r f; do echo "${f#"$R"} is not empty"; done
	)
	if [ -z "$left" ]; then return 0; fi
	printf '%s\n' "$left"
	return 1
}
