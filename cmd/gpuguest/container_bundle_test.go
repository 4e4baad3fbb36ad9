package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/engine"
	"gpuguest/internal/lab"
)

// TestContainerBundle makes bundles in guests that reach their packages and installs from them in guests that reach
// nothing but the SSH client. The real apt and dpkg gather and install; NVIDIA's repository is the lab's stand-in.
func TestContainerBundle(t *testing.T) {
	if os.Getenv("GPUGUEST_CONTAINER") == "" {
		t.Skip("GPUGUEST_CONTAINER is not set")
	}
	w := newWorld(t)
	t.Run("packages", func(t *testing.T) { testBundle(t, w) })
	t.Run("installer", func(t *testing.T) { testBundledInstaller(t, w) })
	t.Run("gathered in another guest", func(t *testing.T) { testBundleOfAnother(t, w) })
}

// alone fails the test unless the guest reaches nothing.
func (g *testGuest) alone(t *testing.T) {
	t.Helper()
	out := g.in(t, `{ timeout 60 apt-get -q update 2>&1; timeout 5 bash -c 'exec 3<>/dev/tcp/`+lab.ContainerGateway+`/3128'; echo "connected: $?"
timeout 5 bash -c 'exec 3<>/dev/tcp/`+lab.ContainerGateway+fmt.Sprintf("/%d", g.w.port)+`'; echo "connected: $?"; ip route | sed 's/^/route: /'; } 2>&1`)
	if strings.Contains(out, "connected: 0") || strings.Contains(out, "route: default") || !strings.Contains(out, "connected: 1") || strings.Contains(out, "Get:") {
		t.Fatalf("the guest is not alone:\n%s", out)
	}
}

func testBundle(t *testing.T, w *world) {
	t.Parallel()
	ref := w.start(t, w.root(t, "bookworm"), lab.ContainerSpec{})
	untouched := ref.tree(t)
	file := filepath.Join(t.TempDir(), "vm.bundle")
	made := w.must(t, exitDone, slices.Concat([]string{"bundle", "-o", file}, ref.reach("root"), ref.want())...)
	t.Log(strings.TrimSpace(made.out))
	for line := range strings.Lines(differences(untouched, ref.tree(t))) {
		// gpuguest's own folder came and went in there.
		if !strings.HasPrefix(line[2:], "/var/lib d ") {
			t.Errorf("gathering changed the guest: %s", line)
		}
	}

	g := w.start(t, w.root(t, "bookworm"), lab.ContainerSpec{Alone: true})
	g.alone(t)
	before := g.snapshot(t)
	flags := slices.Concat(g.reach("root"), []string{"--no-gpu", "--device", "10de:1c82", "--bundle", file})
	install := slices.Concat([]string{"install", "--json"}, flags)

	// What does not fit is refused, and the guest stays as it was.
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	short, _ := write(t, "short.bundle", raw[:len(raw)/2])
	then := g.tree(t)
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{slices.Concat([]string{"install"}, g.reach("root"), []string{"--no-gpu", "--device", "10de:1c82", "--bundle", short}), exitUsage, "it is cut short"},
		{slices.Concat([]string{"install", "--bundle-sha256", strings.Repeat("0", 64)}, flags), exitUsage, "its SHA-256 is"},
		{slices.Concat([]string{"install", "--as", "debian:13"}, flags), exitUnsupported, "it was made for debian:12 on x86_64, and the guest is debian:13"},
		{slices.Concat([]string{"install", "--driver", "595"}, flags[:len(flags)-4], []string{"--device", "10de:2684", "--bundle", file}), exitUnsupported, "it lacks nvidia-"},
	} {
		if r := w.must(t, c.code, c.args...); !strings.Contains(r.stderr, c.says) {
			t.Errorf("the message does not say %q: %s", c.says, r.stderr)
		}
	}
	if d := differences(then, g.tree(t)); d != "" {
		t.Errorf("what was refused changed the guest:\n%s", d)
	}
	plan := w.must(t, exitDone, slices.Concat([]string{"plan"}, flags)...)
	if !strings.Contains(plan.out, "from the bundle vm.bundle (NVIDIA's repository)") {
		t.Errorf("the plan does not name the bundle:\n%s", plan.out)
	}

	first := w.must(t, exitDone, install...).report(t)
	t.Logf("installed in %.0f s", first.Seconds)
	module := g.in(t, `modinfo -k "$(ls /lib/modules)" -F license nvidia; modinfo -k "$(ls /lib/modules)" -F vermagic nvidia | cut -d' ' -f1; ls /lib/modules`)
	if l := strings.Split(module, "\n"); len(l) != 3 || l[0] != "NVIDIA" || l[1] != l[2] {
		t.Errorf("license, vermagic and next kernel: %q", l)
	}
	if left := g.in(t, `ls /etc/apt/sources.list.d /etc/apt/apt.conf.d; ls /var/lib/gpuguest/bundle.tar.gz 2>/dev/null || true`); strings.Contains(left, "gpuguest") || strings.Contains(left, "cuda") || strings.Contains(left, "bundle") {
		t.Errorf("the guest's own apt is told of the bundle, or the archive is kept: %s", left)
	}
	if modes := g.in(t, `stat -c '%a %U' /var/lib/gpuguest/bundle`); modes != "700 root" {
		t.Errorf("the bundle's folder is %s", modes)
	}
	g.testAgainAndBack(t, install, before)
}

// testAgainAndBack: the same command again changes nothing, and uninstall brings back what was before.
func (g *testGuest) testAgainAndBack(t *testing.T, install, before []string) {
	t.Helper()
	installed := g.snapshot(t)
	again := g.w.must(t, exitDone, install...).report(t)
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
	g.w.must(t, exitDone, slices.Concat([]string{"uninstall"}, g.reach("root"))...)
	if d := differences(before, g.snapshot(t)); d != "" {
		t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
	}
	if left := g.in(t, `ls -d /var/lib/gpuguest/bundle* 2>/dev/null || true`); left != "" {
		t.Errorf("uninstall leaves %s", left)
	}
}

// testBundledInstaller: NVIDIA's .run comes in the bundle too, with what its modules are built with.
func testBundledInstaller(t *testing.T, w *world) {
	t.Parallel()
	ref := w.start(t, w.root(t, "bookworm"), lab.ContainerSpec{})
	file := filepath.Join(t.TempDir(), "run.bundle")
	driver, sum := write(t, "NVIDIA-Linux-x86_64-580.95.05.run", driverRunfile(t, "580.95.05", "x86_64", ""))
	w.must(t, exitDone, slices.Concat([]string{"bundle", "-o", file}, ref.reach("root"), []string{"--no-gpu", "--device", "10de:1eb8", "--runfile", driver, "--runfile-sha256", sum})...)

	g := w.start(t, w.root(t, "bookworm"), lab.ContainerSpec{Alone: true})
	g.alone(t)
	before := g.snapshot(t)
	install := slices.Concat([]string{"install", "--json"}, g.reach("root"), []string{"--no-gpu", "--device", "10de:1eb8", "--bundle", file})
	w.must(t, exitDone, install...)
	if v := g.in(t, `modinfo -k "$(ls /lib/modules)" -F version nvidia`); v != "580.95.05" {
		t.Errorf("the module is of version %s", v)
	}
	g.testAgainAndBack(t, install, before)
}

// testBundleOfAnother: a bundle that was gathered in a guest with more packages than this one has cannot do, and says
// so before any package is touched.
func testBundleOfAnother(t *testing.T, w *world) {
	t.Parallel()
	ref := w.start(t, w.root(t, "bookworm", lists, headers), lab.ContainerSpec{})
	file := filepath.Join(t.TempDir(), "other.bundle")
	w.must(t, exitDone, slices.Concat([]string{"bundle", "-o", file}, ref.reach("root"), ref.want())...)
	g := w.start(t, w.root(t, "bookworm"), lab.ContainerSpec{Alone: true})
	before := g.snapshot(t)
	r := w.must(t, exitStep, slices.Concat([]string{"install"}, g.reach("root"), []string{"--no-gpu", "--device", "10de:1c82", "--bundle", file})...)
	for _, word := range []string{"bundle: exit", "has packages which this one lacks", "unmet dependencies"} {
		if !strings.Contains(r.stderr, word) {
			t.Errorf("the message does not say %q: %s", word, r.stderr)
		}
	}
	t.Log(strings.TrimSpace(r.stderr))
	if d := differences(before, g.snapshot(t)); d != "" {
		t.Errorf("the guest was changed:\n%s", d)
	}
}
