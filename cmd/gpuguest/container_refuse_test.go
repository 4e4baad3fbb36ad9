package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"gpuguest/internal/lab"
)

// tree lists every file of the guest with its size and the time it was written: what must be the same after
// a run that was refused. Logs, and what systemd writes by itself, come and go.
func (g *testGuest) tree(t *testing.T) []string {
	t.Helper()
	out := g.in(t, `find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /dev -o -path /var/log -o -path /var/tmp \
	-o -path /var/lib/systemd -o -path /root/.cache \) -prune -o -printf '%p %y %s %m %T@ %l\n'`)
	lines := strings.Split(out, "\n")
	slices.Sort(lines)
	return lines
}

// refusal is bad input, or a guest in a bad state, and how it is to be met.
type refusal struct {
	name  string
	spoil string // makes the guest bad, as root
	mend  string
	env   []string
	args  func(g *testGuest) []string
	code  int
	says  []string // words of the message, all of them
	wrote string   // the only place where something may have changed, "" none
}

// testRefuse: each has its exit code and a message that names what is wrong, and the guest is as before.
func testRefuse(t *testing.T, w *world) {
	t.Parallel()
	t.Run("nothing changes", func(t *testing.T) { testNothingChanges(t, w) })
	t.Run("full disk", func(t *testing.T) { testFullDisk(t, w) })
	t.Run("broken source, guest that stays away", func(t *testing.T) { testBrokenSource(t, w) })
}

func testNothingChanges(t *testing.T, w *world) {
	t.Parallel()
	g := w.start(t, w.root(t, "bookworm", lists, headers), lab.ContainerSpec{})
	other := filepath.Join(t.TempDir(), "known_hosts")
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, []byte(g.Host+" "+string(ssh.MarshalAuthorizedKey(key))), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "known_hosts")
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	install := func(flags ...string) func(*testGuest) []string {
		return func(g *testGuest) []string { return g.install(flags...) }
	}
	// For another GPU than the one that all other tests install for.
	device := func(id string, flags ...string) func(*testGuest) []string {
		return func(g *testGuest) []string {
			return slices.Concat([]string{"install"}, g.reach("root"), []string{"--no-gpu", "--device", id,
				"--mirror", w.repo.URL, "--keyring-sha256", w.repo.KeyringSHA256["debian12"]}, flags)
		}
	}
	at := func(host string) func(*testGuest) []string {
		return func(g *testGuest) []string {
			return slices.Concat([]string{"install", "--host", host, "--connect-timeout", "3s", "--known-hosts", g.known, "-F", "none", "-i", g.KeyFile}, g.want())
		}
	}
	worker := func(g *testGuest) []string { return slices.Concat([]string{"install"}, g.reach("worker"), g.want()) }
	for _, c := range []refusal{
		{name: "unknown host", args: at("root@no-such-guest.invalid"), code: exitUnreachable, says: []string{"no-such-guest.invalid"}},
		{name: "wrong port", args: at("root@" + g.Host + ":2222"), code: exitUnreachable, says: []string{"2222", "refused"}},
		{name: "port that accepts and is silent", args: at("root@" + silent.Addr().String()), code: exitUnreachable, says: []string{silent.Addr().String()}},
		{name: "unknown host key, strict", args: install("--known-hosts", empty, "--host-key-check", "strict"), code: exitUnreachable, says: []string{"host key"}},
		{name: "changed host key", args: install("--known-hosts", other), code: exitUnreachable, says: []string{"host key", other}},
		{name: "changed host key, strict", args: install("--known-hosts", other, "--host-key-check", "strict"), code: exitUnreachable, says: []string{"host key", other}},
		{name: "refused key", args: install("-l", "nobody"), code: exitUnreachable, says: []string{"nobody"}},
		{name: "wrong sudo password", args: worker, env: []string{"GPUGUEST_SUDO_PASSWORD=guessed"}, code: exitUnreachable, says: []string{"sudo", "password"}},
		{name: "no sudo password", args: worker, code: exitUnreachable, says: []string{"sudo", "GPUGUEST_SUDO_PASSWORD"}},
		{name: "no GPU", args: func(g *testGuest) []string {
			return slices.Concat([]string{"install"}, g.reach("root"))
		}, code: exitUnsupported, says: []string{"no NVIDIA GPU", "--no-gpu"}},
		{name: "GPU too old for the driver", args: device("10de:1c82", "--driver", "595"), code: exitUnsupported, says: []string{"595", "GTX 1050 Ti", "580"}},
		{name: "GPU too new for the driver", args: device("10de:2b85", "--driver", "535"), code: exitUnsupported, says: []string{"535", "5090"}},
		{name: "GPU that needs open modules", args: device("10de:2b85", "--flavor", "proprietary"), code: exitUnsupported, says: []string{"5090", "open"}},
		{name: "unsupported distribution", spoil: `cp -a /usr/lib/os-release /run/os-release; printf 'ID=plan9\nID_LIKE=debian\nVERSION_ID=4\nPRETTY_NAME="Plan 9"\n' >/run/plan9; mount --bind /run/plan9 /usr/lib/os-release`,
			mend: `umount /usr/lib/os-release`, args: install(), code: exitUnsupported, says: []string{"plan9", "--as"}},
		{name: "read-only root", spoil: `journalctl --relinquish-var && sleep 1 && mount -o remount,bind,ro /`, mend: `mount -o remount,bind,rw / && journalctl --flush`, args: install(), code: exitStep, says: []string{"read-only"}},
		{name: "package lock that is never released",
			spoil: `setsid apt-get -q -y -o DPkg::Pre-Invoke::='sleep 1000' install --no-install-recommends hello >/run/holder.log 2>&1 </dev/null & sleep 2; pgrep -x apt-get >/run/holder`,
			mend:  `kill -KILL $(cat /run/holder); pkill -KILL -f '[s]leep 1000'; rm -f /var/cache/apt/archives/hello*.deb; true`,
			args:  install("--lock-wait", "3s"), code: exitStep, says: []string{"error: root@" + g.Host + ": ready: still held after 3 s: process ", "apt-get"}, wrote: "/var/"},
		{name: "held package",
			spoil: `set -e; mkdir -p /run/held/DEBIAN; printf 'Package: nvidia-kernel-dkms\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@invalid>\nDescription: held\n' >/run/held/DEBIAN/control
dpkg-deb -b /run/held /run/held.deb >/dev/null; dpkg -i /run/held.deb >/dev/null; apt-mark hold nvidia-kernel-dkms >/dev/null`,
			mend: `apt-mark unhold nvidia-kernel-dkms >/dev/null; dpkg --purge nvidia-kernel-dkms >/dev/null`,
			args: install(), code: exitStep, says: []string{"nvidia-kernel-dkms", "hold"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.spoil != "" {
				g.in(t, c.spoil)
				defer func() { g.in(t, c.mend) }()
			}
			before := g.tree(t)
			r := w.run(t, c.env, c.args(g)...)
			after := g.tree(t)
			if r.code != c.code {
				t.Errorf("wanted exit %d, got %s", c.code, r)
			}
			for _, word := range c.says {
				if !strings.Contains(r.stderr, word) {
					t.Errorf("the message does not say %q: %s", word, r.stderr)
				}
			}
			if !strings.Contains(r.stderr, "gpuguest: error: ") {
				t.Errorf("no error message in %s", r.stderr)
			}
			t.Log(strings.TrimSpace(r.stderr))
			for line := range strings.Lines(differences(before, after)) {
				if c.wrote == "" || !strings.HasPrefix(line[2:], c.wrote) {
					t.Errorf("the guest was changed: %s", line)
				}
			}
		})
	}
}

// testFullDisk: a guest without room is told so before anything is installed.
func testFullDisk(t *testing.T, w *world) {
	t.Parallel()
	g := w.start(t, w.root(t, "bookworm", lists, headers), lab.ContainerSpec{DiskMB: 900})
	before := g.tree(t)
	r := w.must(t, exitStep, g.install()...)
	if !strings.Contains(r.stderr, "MB free") {
		t.Errorf("the message does not say how much is free: %s", r.stderr)
	}
	if d := differences(before, g.tree(t)); d != "" {
		t.Errorf("the guest was changed: %s", d)
	}
}

// testBrokenSource: a third party's source that is gone does not keep the driver from being installed, and
// is named. Then the same guest is told to reboot and does not come back.
func testBrokenSource(t *testing.T, w *world) {
	t.Parallel()
	// Without package lists, so that they have to be fetched, the broken source's too.
	g := w.start(t, w.root(t, "bookworm"), lab.ContainerSpec{})
	g.in(t, `echo 'deb [trusted=yes] http://`+lab.ContainerGateway+`:3128/gone stable main' >/etc/apt/sources.list.d/third-party.list`)
	logs := t.TempDir()
	r := w.must(t, exitDone, g.install("--log-dir", logs)...)
	if !strings.Contains(r.out+r.stderr, "gone") && !strings.Contains(r.out+r.stderr, "third-party") {
		t.Errorf("the broken source is not named: %s", r)
	}

	boot := g.in(t, `cat /proc/sys/kernel/random/boot_id`)
	g.StayDown.Store(true)
	r = w.must(t, exitUnreachable, g.install("--reboot", "always", "--reboot-timeout", "15s")...)
	if !strings.Contains(r.stderr, boot) {
		t.Errorf("the message does not name the boot_id of before, %s: %s", boot, r.stderr)
	}
	t.Log(strings.TrimSpace(r.stderr))
	if err := g.WaitOff(t.Context()); err != nil {
		t.Error(err)
	}
}
