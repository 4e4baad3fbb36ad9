package steps

import (
	"io/fs"
	"strings"

	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

// service is how one init system starts nvidia-persistenced. The forms are those that NVIDIA describes beside its
// sample scripts (driver persistence documentation, "Installation Caveats"; nvidia-persistenced-init.tar.bz2):
// started by root, which makes the runtime folder, running as its own user, who may not remove that folder,
// so that what started it does. {user} is that user.
type service struct {
	path string
	mode fs.FileMode
	text string
	// enable has it start at boot, start starts it now, off undoes both; enabled exits zero when it is enabled.
	enable, start, off, enabled string
}

const persistenceName = "nvidia-persistenced"

var services = map[string]service{
	"systemd": {
		path: "/etc/systemd/system/nvidia-persistenced.service",
		text: `# Written by gpuguest: a .run driver brings the daemon and no service.
[Unit]
Description=NVIDIA Persistence Daemon

[Service]
Type=forking
PIDFile=/run/nvidia-persistenced/nvidia-persistenced.pid
Restart=on-failure
ExecStart=/usr/bin/nvidia-persistenced --verbose --user {user}
ExecStopPost=/bin/rm -rf /run/nvidia-persistenced

[Install]
WantedBy=multi-user.target
`,
		enable:  `systemctl daemon-reload`,
		off:     `systemctl disable --now nvidia-persistenced.service 2>/dev/null || :`,
		enabled: `[ "$(systemctl is-enabled nvidia-persistenced.service 2>/dev/null)" = enabled ]`,
	},
	"upstart": {
		path: "/etc/init/nvidia-persistenced.conf",
		text: `# Written by gpuguest: a .run driver brings the daemon and no service.
description "NVIDIA Persistence Daemon"
start on runlevel [2345]
stop on runlevel [!2345]
expect fork
respawn
exec /usr/bin/nvidia-persistenced --verbose --user {user}
post-stop exec /bin/rm -rf /var/run/nvidia-persistenced
`,
		enable:  `initctl reload-configuration || :`,
		start:   `start nvidia-persistenced`,
		off:     `stop nvidia-persistenced 2>/dev/null || :`,
		enabled: `[ -e /etc/init/nvidia-persistenced.conf ]`,
	},
	"sysv": {
		path: "/etc/init.d/nvidia-persistenced",
		mode: 0o755,
		text: `#!/bin/sh
# Written by gpuguest: a .run driver brings the daemon and no service.
#
# chkconfig: 2345 99 01
# description: keeps NVIDIA GPUs initialised
### BEGIN INIT INFO
# Provides:          nvidia-persistenced
# Required-Start:    $local_fs
# Required-Stop:     $local_fs
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: NVIDIA Persistence Daemon
### END INIT INFO
daemon=/usr/bin/nvidia-persistenced
run=/var/run/nvidia-persistenced
pid() { [ -r "$run/nvidia-persistenced.pid" ] && cat "$run/nvidia-persistenced.pid"; }
alive() { p=$(pid) && kill -0 "$p" 2>/dev/null; }
start() {
	alive && return 0
	"$daemon" --verbose --user {user}
}
stop() {
	if alive; then
		kill "$p"
		n=0
		while kill -0 "$p" 2>/dev/null && [ "$n" -lt 10 ]; do
			sleep 1
			n=$((n + 1))
		done
	fi
	rm -rf "$run"
}
case $1 in
start) start ;;
stop) stop ;;
restart | force-reload) stop && start ;;
status) if alive; then echo "nvidia-persistenced runs ($p)"; else echo "nvidia-persistenced does not run"; exit 3; fi ;;
*) echo "usage: $0 {start|stop|restart|status}" >&2; exit 2 ;;
esac
`,
		enable: `if command -v chkconfig >/dev/null 2>&1; then
	chkconfig --add nvidia-persistenced
	chkconfig nvidia-persistenced on
else
	update-rc.d nvidia-persistenced defaults
fi`,
		start: `/etc/init.d/nvidia-persistenced start`,
		off: `if [ -x /etc/init.d/nvidia-persistenced ]; then /etc/init.d/nvidia-persistenced stop || :; fi
if command -v chkconfig >/dev/null 2>&1; then
	chkconfig --del nvidia-persistenced || :
else
	update-rc.d -f nvidia-persistenced remove || :
fi`,
		enabled: `ls /etc/rc2.d/S??nvidia-persistenced >/dev/null 2>&1 || ls /etc/rc.d/rc3.d/S??nvidia-persistenced >/dev/null 2>&1`,
	},
}

// ownService is the service that gpuguest writes; false where a package brings one, or where the init system is
// none that is known.
func ownService(in Input) (service, bool) {
	s, known := services[in.Facts.Init.Name]
	s.text = strings.ReplaceAll(s.text, "{user}", in.Choice.Persistence.User)
	return s, known && byRunfile(in) && in.Choice.Persistence.User != ""
}

// stopServices stops, disables and removes the services that gpuguest made.
func stopServices(in Input) string {
	var script []string
	for _, name := range in.Facts.State.Services {
		if s, known := services[name]; known {
			script = append(script, `if [ -e `+s.path+` ]; then`, s.off, `rm -f `+s.path, `fi`)
		}
	}
	return lines(append(script,
		`if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi`,
		`rm -rf /run/nvidia-persistenced`)...)
}

func init() {
	register(Step{
		ID:    "persistence-service",
		Title: "give nvidia-persistenced a user and a service",
		After: []ID{"ready", "rescue", "driver"},
		Wanted: func(in Input) bool {
			_, own := ownService(in)
			return own
		},
		Check: func(in Input) string {
			s, _ := ownService(in)
			return lines(
				`id -u `+sh.Quote(in.Choice.Persistence.User)+` >/dev/null 2>&1 || { echo "there is no user" `+sh.Quote(in.Choice.Persistence.User)+`; exit 1; }`,
				`printf %s `+sh.Quote(s.text)+` | cmp -s - `+s.path+` || { echo "`+s.path+` is not as planned"; exit 1; }`)
		},
		Apply: func(in Input) []action.Action {
			s, _ := ownService(in)
			user := in.Choice.Persistence.User
			return []action.Action{
				action.Run{Title: "make the user " + user, Script: lines(
					`if ! id -u `+sh.Quote(user)+` >/dev/null 2>&1; then`,
					record("account", user),
					`	shell=$(command -v nologin) || shell=/bin/false`,
					`	useradd --system --user-group --no-create-home --home-dir / --shell "$shell" `+sh.Quote(user),
					`fi`,
					record("service", in.Facts.Init.Name))},
				action.Write{Path: s.path, Mode: s.mode, Data: []byte(s.text)},
				action.Run{Title: "tell " + in.Facts.Init.Name + " of it", Script: s.enable},
			}
		},
	})
	register(Step{
		ID:    "persistence-start",
		Title: "keep the GPU initialised by nvidia-persistenced",
		After: []ID{"module", "persistence-service"},
		Fresh: true,
		Wanted: func(in Input) bool {
			_, own := ownService(in)
			return own && in.Facts.Init.Name != "systemd" // there, the persistence step starts it
		},
		Check: func(in Input) string {
			s, _ := ownService(in)
			script := []string{`{ ` + s.enabled + `; } || { echo "nvidia-persistenced is not enabled at boot"; exit 1; }`}
			if hasGPU(in) {
				script = append(script,
					`pid=$(cat /var/run/nvidia-persistenced/nvidia-persistenced.pid 2>/dev/null) && kill -0 "$pid" 2>/dev/null || { echo "nvidia-persistenced does not run"; exit 1; }`,
					`user=$(stat -c %U "/proc/$pid" 2>/dev/null) || user=unknown`,
					`[ "$user" != root ] || { echo "nvidia-persistenced runs as root"; exit 1; }`,
					`echo "nvidia-persistenced runs as $user"`)
			}
			return lines(script...)
		},
		Apply: func(in Input) []action.Action {
			s, _ := ownService(in)
			script := s.enable
			if hasGPU(in) {
				script = lines(script, s.start)
			}
			return []action.Action{action.Run{Title: "enable and start " + persistenceName, Script: script}}
		},
	})
	registerRemoval(Step{
		ID:     "stop-services",
		Title:  "stop the services that gpuguest made",
		After:  []ID{"ready"},
		Wanted: func(in Input) bool { return len(in.Facts.State.Services) > 0 },
		Check: func(in Input) string {
			var script []string
			for _, name := range in.Facts.State.Services {
				s, known := services[name]
				if !known {
					continue
				}
				script = append(script,
					`if [ -e `+s.path+` ]; then`,
					`	! { `+s.enabled+`; } || { echo "`+s.path+` is enabled"; exit 1; }`,
					`	[ ! -e /run/nvidia-persistenced/nvidia-persistenced.pid ] || { echo "nvidia-persistenced runs"; exit 1; }`,
					`fi`)
			}
			return lines(append(script, `:`)...)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{action.Run{Title: "stop and disable them", Script: stopServices(in)}}
		},
	})
	registerRemoval(Step{
		ID:     "remove-accounts",
		Title:  "remove the users that gpuguest made",
		After:  []ID{"ready", "stop-services", "restore-files"},
		Wanted: func(in Input) bool { return len(in.Facts.State.Accounts) > 0 },
		Check: func(in Input) string {
			return lines(
				`for u in `+sh.Join(in.Facts.State.Accounts...)+`; do`,
				`	! grep -q "^$u:" /etc/passwd /etc/group || { echo "$u is there"; exit 1; }`,
				`done`)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{action.Run{Title: "remove them", Script: lines(
				`for u in `+sh.Join(in.Facts.State.Accounts...)+`; do`,
				`	! grep -q "^$u:" /etc/passwd || userdel "$u"`,
				`	! grep -q "^$u:" /etc/group || groupdel "$u"`,
				`done`)}}
		},
	})
}
