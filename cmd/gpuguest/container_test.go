package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gpuguest/internal/engine"
	"gpuguest/internal/lab"
)

// TestContainer runs the real program against real guests: Debian systems with init, sshd, apt, dpkg, DKMS,
// grub-mkconfig and update-initramfs, in containers. NVIDIA's repository is the lab's stand-in. What stands
// in besides is said at lab.Container.
func TestContainer(t *testing.T) {
	if os.Getenv("GPUGUEST_CONTAINER") == "" {
		t.Skip("GPUGUEST_CONTAINER is not set")
	}
	w := newWorld(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"install, again, uninstall", testInstallAgainUninstall},
		{"reboot for a kernel argument", testRebootForKernelArg},
		{"users", testUsers},
		{"cut", testCut},
		{"refuse", testRefuse},
		{"suites", testSuites},
		{"versions", testVersions},
		{"disk fills", testDiskFills},
		{"methods", testMethods},
		{"bad input", testBadInput},
		{"proxy", testProxy},
		{"fleet", testFleet},
		{"verify at boot", testVerifyAtBoot},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, w) })
	}
}

// world is what all guests of this tier share.
type world struct {
	bin  string // the program as users run it
	home string
	repo *lab.Repo
	port int // of the repository's server

	patience time.Duration // how long one invocation may take; 0: ten minutes
}

// The suites whose stand-in repository is made, by NVIDIA's names for them.
var nvidiaNames = map[string]string{"bookworm": "debian12", "trixie": "debian13"}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{bin: filepath.Join(t.TempDir(), "gpuguest"), home: t.TempDir()}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", w.bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	var err error
	w.repo, err = lab.ServeRepo(t.Context(), lab.RepoSpec{Distros: []string{"debian12", "debian13"}, Host: lab.ContainerGateway})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.repo.Close(); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(w.repo.LocalURL)
	if err != nil {
		t.Fatal(err)
	}
	if w.port, err = strconv.Atoi(u.Port()); err != nil {
		t.Fatal(err)
	}
	return w
}

// layer is something done to a root once, for all guests that start from it.
type layer struct{ name, script string }

// lists makes a guest one that was ever updated. headers gives it what modules are built with, and an
// initramfs that was made after; tests that are about neither save half a minute by it.
var (
	lists   = layer{"lists", `apt-get -q update`}
	headers = layer{"headers", `set -e
export DEBIAN_FRONTEND=noninteractive
apt-get -q -y --no-install-recommends install "linux-headers-$(ls /lib/modules)" linux-headers-amd64 gcc make dkms
apt-get clean
update-initramfs -u`}
)

// testGuest is one guest and the machine that gpuguest is run on.
type testGuest struct {
	*lab.Container
	w      *world
	known  string // known_hosts file
	suite  string
	device string // the GPU to install for
}

func (w *world) root(t *testing.T, suite string, layers ...layer) lab.ContainerRoot {
	t.Helper()
	root, err := lab.BuildContainerRoot(t.Context(), suite)
	for _, l := range layers {
		if err == nil {
			root, err = lab.BuildContainerLayer(t.Context(), root, l.name, l.script)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// start boots a guest that ends with the test.
func (w *world) start(t *testing.T, root lab.ContainerRoot, spec lab.ContainerSpec) *testGuest {
	t.Helper()
	spec.Forward = w.port
	c, err := lab.StartContainer(t.Context(), root, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	g := &testGuest{Container: c, w: w, suite: root.Suite, device: "10de:1c82", known: filepath.Join(t.TempDir(), "known_hosts")}
	if err := os.WriteFile(g.known, []byte(c.KnownHosts()), 0o600); err != nil {
		t.Fatal(err)
	}
	return g
}

// in runs a script as root in the guest, past sshd.
func (g *testGuest) in(t *testing.T, script string) string {
	t.Helper()
	out, err := g.Exec(t.Context(), script)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimRight(out, "\n")
}

// reach are the flags that lead to the guest.
func (g *testGuest) reach(user string) []string {
	return []string{"--host", user + "@" + g.Host, "-i", g.KeyFile, "--known-hosts", g.known, "-F", "none"}
}

// want are the flags of the driver that all tests install: there is no GPU in a container, so one is named,
// where nothing else is said a Pascal, which needs branch 580 at most and the proprietary flavor.
func (g *testGuest) want() []string {
	return []string{"--no-gpu", "--device", g.device, "--source", "nvidia",
		"--mirror", g.w.repo.URL, "--keyring-sha256", g.w.repo.KeyringSHA256[nvidiaNames[g.suite]]}
}

func (g *testGuest) install(more ...string) []string {
	return slices.Concat([]string{"install"}, g.reach("root"), g.want(), more)
}

// result is how one invocation ended.
type result struct {
	code        int
	out, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\n--- stdout\n%s--- stderr\n%s", r.code, r.out, r.stderr)
}

// report reads the JSON that a command with --json printed.
func (r result) report(t *testing.T) engine.Report {
	t.Helper()
	var report engine.Report
	if err := json.Unmarshal([]byte(r.out), &report); err != nil {
		t.Fatalf("%v in\n%s", err, r)
	}
	return report
}

// client is one running invocation.
type client struct {
	cmd    *exec.Cmd
	out    bytes.Buffer
	lines  chan string // of standard error, closed at its end
	read   sync.WaitGroup
	stderr bytes.Buffer
}

func (w *world) client(ctx context.Context, env []string, args ...string) (*client, error) {
	c := &client{cmd: exec.CommandContext(ctx, w.bin, args...), lines: make(chan string, 10000)}
	c.cmd.Env = append([]string{"HOME=" + w.home, "PATH=" + os.Getenv("PATH")}, env...)
	c.cmd.Stdout = &c.out
	pipe, err := c.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	c.read.Go(func() {
		defer close(c.lines)
		for s := bufio.NewScanner(io.TeeReader(pipe, &c.stderr)); s.Scan(); {
			c.lines <- s.Text()
		}
	})
	return c, nil
}

// end waits for the program's end. A killed program's code is -1.
func (c *client) end() (result, error) {
	c.read.Wait()
	err := c.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return result{}, err
	}
	return result{code: c.cmd.ProcessState.ExitCode(), out: c.out.String(), stderr: c.stderr.String()}, nil
}

// run runs the program to its end.
func (w *world) run(t *testing.T, env []string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cmp.Or(w.patience, 10*time.Minute))
	defer cancel()
	c, err := w.client(ctx, env, args...)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.end()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// must runs the program and fails the test unless it ends with code.
func (w *world) must(t *testing.T, code int, args ...string) result {
	t.Helper()
	began := time.Now()
	r := w.run(t, nil, args...)
	if r.code != code {
		t.Fatalf("gpuguest %s: wanted exit %d, got %s", strings.Join(args, " "), code, r)
	}
	t.Logf("gpuguest %s: exit %d after %.1f s", args[0], r.code, time.Since(began).Seconds())
	return r
}

// snapshot lists what an installation may touch, asked of the guest by other means than gpuguest's own.
// The caches that ldconfig and initramfs-tools write are listed by name, for they hold times.
func (g *testGuest) snapshot(t *testing.T) []string {
	t.Helper()
	out := g.in(t, `set -eu
dpkg-query -W -f 'package ${Package} ${Version} ${db:Status-Abbrev}\n' | grep -v ' un $'
apt-mark showhold | sed 's/^/held /'
apt-mark showmanual | sed 's/^/manual /'
cd /
find etc boot lib/modules usr/src usr/lib/modprobe.d usr/local -xdev -type f \
	! -path 'etc/ld.so.cache' ! -path 'boot/initrd.img-*' ! -path 'etc/.pwd.lock' ! -name '*-' \
	! -path etc/passwd ! -path etc/shadow ! -path etc/group ! -path etc/gshadow -print0 |
	xargs -0 sha256sum | awk '{ print "file", $2, $1 }'
# Debian's packages leave their system users behind when they are purged, by its policy.
for f in passwd shadow group gshadow; do grep -v '^nvpd:' "etc/$f" | sed "s/^/$f /"; done
find etc boot lib/modules usr/src -xdev -type l -printf 'link %p %l\n'
find etc boot lib/modules usr/src -xdev -type d -printf 'directory %p %m\n'
ls boot | sed 's/^/boot /'
for f in boot/initrd.img-*; do lsinitramfs "$f" | sort | sha256sum | sed "s|-\$|$f|; s/^/initramfs /"; done
sed 's/^/cmdline /' proc/cmdline`)
	lines := strings.Split(out, "\n")
	slices.Sort(lines)
	return lines
}

// differences says what is in one snapshot and not in the other.
func differences(before, after []string) string {
	var b strings.Builder
	for _, l := range before {
		if _, found := slices.BinarySearch(after, l); !found {
			fmt.Fprintf(&b, "- %s\n", l)
		}
	}
	for _, l := range after {
		if _, found := slices.BinarySearch(before, l); !found {
			fmt.Fprintf(&b, "+ %s\n", l)
		}
	}
	return b.String()
}

// journal is what gpuguest recorded in the guest.
func (g *testGuest) journal(t *testing.T) []engine.Record {
	t.Helper()
	records, torn := engine.ParseJournal(g.in(t, `cat /var/lib/gpuguest/journal 2>/dev/null || true`))
	if torn > 0 {
		t.Logf("the journal has %d torn records", torn)
	}
	return records
}
