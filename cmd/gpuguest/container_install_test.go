package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/engine"
	"gpuguest/internal/lab"
)

// testInstallAgainUninstall: a stock guest, with no package lists even, gets the driver; the same command
// again changes nothing; uninstall brings back what was before, by a snapshot that gpuguest had no part in.
func testInstallAgainUninstall(t *testing.T, w *world) {
	t.Parallel()
	g := w.start(t, w.root(t, "bookworm"), lab.ContainerSpec{})
	before := g.snapshot(t)

	first := w.must(t, exitDone, g.install("--json")...).report(t)
	if first.Reboots != 0 {
		t.Errorf("the guest was rebooted %d times although nothing held a GPU", first.Reboots)
	}
	module := g.in(t, `modinfo -k "$(ls /lib/modules)" -F license nvidia; modinfo -k "$(ls /lib/modules)" -F vermagic nvidia | cut -d' ' -f1; ls /lib/modules`)
	if l := strings.Split(module, "\n"); len(l) != 3 || l[0] != "NVIDIA" || l[1] != l[2] {
		t.Errorf("license, vermagic and next kernel: %q", l)
	}
	if list := g.in(t, `lsinitramfs /boot/initrd.img-* | grep gpuguest`); list == "" {
		t.Error("the initramfs holds no blocklist")
	}
	if audit := g.in(t, `dpkg --audit`); audit != "" {
		t.Errorf("dpkg --audit: %s", audit)
	}

	installed := g.snapshot(t)
	journal := g.journal(t)
	again := w.must(t, exitDone, g.install("--json")...).report(t)
	for _, s := range again.Steps {
		if s.State != engine.Met {
			t.Errorf("the second time, %s is %s: %s", s.ID, s.State, s.Detail)
		}
	}
	if again.Execs > 3 || again.Connections != 1 {
		t.Errorf("the second time took %d execs over %d connections", again.Execs, again.Connections)
	}
	if d := differences(installed, g.snapshot(t)); d != "" {
		t.Errorf("the second time changed\n%s", d)
	}
	if now := g.journal(t); !slices.Equal(now, journal) {
		t.Errorf("the second time wrote into the journal: %v", now[len(journal):])
	}

	removed := w.must(t, exitDone, slices.Concat([]string{"uninstall", "--json"}, g.reach("root"))...).report(t)
	t.Logf("uninstall: %d reboots", removed.Reboots)
	if d := differences(before, g.snapshot(t)); d != "" {
		t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
	}
}

// testRebootForKernelArg: an argument takes effect by one reboot, on whose boot_id gpuguest insists, and
// uninstall takes it away by another.
func testRebootForKernelArg(t *testing.T, w *world) {
	t.Parallel()
	g := w.start(t, w.root(t, "bookworm", lists, headers), lab.ContainerSpec{})
	before := g.snapshot(t)
	boot := g.in(t, `cat /proc/sys/kernel/random/boot_id`)
	r := w.must(t, exitDone, g.install("--json", "--kernel-arg", "pci=realloc")...).report(t)
	if r.Reboots != 1 || g.Boots() != 2 {
		t.Errorf("gpuguest reports %d reboots, the guest was started %d times", r.Reboots, g.Boots())
	}
	if now := g.in(t, `cat /proc/sys/kernel/random/boot_id`); now == boot {
		t.Error("the guest has the boot_id of before")
	}
	if line := g.in(t, `cat /proc/cmdline`); !slices.Contains(strings.Fields(line), "pci=realloc") {
		t.Errorf("the guest was started with %q", line)
	}
	again := w.must(t, exitDone, g.install("--json", "--kernel-arg", "pci=realloc")...).report(t)
	if again.Reboots != 0 || again.Execs > 3 {
		t.Errorf("the second time took %d reboots and %d execs", again.Reboots, again.Execs)
	}
	removed := w.must(t, exitDone, slices.Concat([]string{"uninstall", "--json"}, g.reach("root"))...).report(t)
	if removed.Reboots != 1 {
		t.Errorf("uninstall took %d reboots", removed.Reboots)
	}
	if d := differences(before, g.snapshot(t)); d != "" {
		t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
	}
}

// testUsers: root, a user who may sudo and one who may after a password all end in the same state, and the
// password is nowhere to be read.
func testUsers(t *testing.T, w *world) {
	t.Parallel()
	root := w.root(t, "bookworm", lists, headers)
	var want []string
	for _, user := range []string{"root", "debian", "worker"} {
		t.Run(user, func(t *testing.T) {
			g := w.start(t, root, lab.ContainerSpec{})
			logs := t.TempDir()
			args := slices.Concat([]string{"install", "--log-dir", logs}, g.reach(user), g.want())
			var env []string
			if user == "worker" {
				env = []string{"GPUGUEST_SUDO_PASSWORD=" + lab.ContainerPassword}
				// Who watches the process list for all of the run sees every argument there was.
				g.in(t, watch)
			}
			r := w.run(t, env, args...)
			if r.code != exitDone {
				t.Fatal(r)
			}
			if user == "worker" {
				g.in(t, `kill "$(cat /root/watch.pid)"`)
				lookForSecret(t, g, r, logs)
			}
			got := g.endState(t)
			if want == nil {
				want = got
			}
			if d := differences(want, got); d != "" {
				t.Errorf("the end state differs from root's:\n%s", d)
			}
		})
	}
}

// watch records every process's arguments and environment, over and over, until it is killed.
const watch = `cat >/root/watch.sh <<'END'
while :; do cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n'; sleep 0.05; done
END
setsid sh /root/watch.sh >/root/watched 2>/dev/null </dev/null &
echo $! >/root/watch.pid`

// lookForSecret looks for the sudo password wherever a run leaves words.
func lookForSecret(t *testing.T, g *testGuest, r result, logs string) {
	t.Helper()
	if seen := g.in(t, `grep -c gpuguest /root/watched || true`); seen == "0" {
		t.Error("the watcher of processes saw nothing of gpuguest")
	}
	found := g.in(t, `journalctl --no-pager >/root/journal
grep -rlF '`+lab.ContainerPassword+`' /root /var/log /var/lib/gpuguest /tmp /run/log /etc /home 2>/dev/null || true`)
	if found != "" {
		t.Errorf("the password is in the guest, in %s", found)
	}
	if strings.Contains(r.out+r.stderr, lab.ContainerPassword) {
		t.Error("the password is in the output")
	}
	files := 0
	err := filepath.WalkDir(logs, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), lab.ContainerPassword) {
			t.Errorf("the password is in %s", path)
		}
		return err
	})
	if err != nil || files == 0 {
		t.Errorf("%d logs: %v", files, err)
	}
}

// endState is what two installations of the same driver have in common: versions, files and what modules
// say of themselves, and not when something was written or what a build left in a log.
func (g *testGuest) endState(t *testing.T) []string {
	t.Helper()
	out := g.in(t, `set -eu
dpkg-query -W -f 'package ${Package} ${Version} ${db:Status-Abbrev}\n' | grep -v ' un $'
apt-mark showhold | sed 's/^/held /'
apt-mark showmanual | sed 's/^/manual /'
cd /
find etc boot usr/lib/modprobe.d -xdev -type f ! -path 'etc/ld.so.cache' ! -path 'boot/initrd.img-*' ! -name '*-' ! -path 'etc/.pwd.lock' \
	! -path 'etc/ssh/*' ! -path 'etc/machine-id' ! -path 'etc/hosts' ! -path 'etc/apt/apt.conf.d/90lab' -print0 |
	xargs -0 sha256sum | awk '{ print "file", $2, $1 }'
k=$(ls lib/modules)
find lib/modules -name '*nvidia*' | sed 's/^/module /'
for field in version license vermagic; do modinfo -k "$k" -F $field nvidia | sed "s/^/$field /"; done
dkms status 2>/dev/null | sed 's/^/dkms /'
lsinitramfs boot/initrd.img-* | grep -E 'modprobe.d|nouveau|nvidia' | sed 's/^/initramfs /' || true
systemctl is-enabled nvidia-persistenced | sed 's/^/persistenced /' || true
dpkg --audit | sed 's/^/audit /'
find var/lib/gpuguest -name '*.tmp' -o -name 'bracket*' | sed 's/^/left /'`)
	lines := strings.Split(out, "\n")
	slices.Sort(lines)
	return lines
}
