package main

import (
	"context"
	"maps"
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

// TestRealDriver installs Debian's own packages of NVIDIA's real driver in stock guests, whose DKMS builds the real
// modules for the kernel that the guest's boot loader names, and takes them back. No GPU meets them. A build takes
// minutes, so all of this has a switch of its own.
func TestRealDriver(t *testing.T) {
	if os.Getenv("GPUGUEST_CONTAINER_REAL") == "" {
		t.Skip("GPUGUEST_CONTAINER_REAL is not set")
	}
	w := newWorld(t)
	w.patience = 2 * time.Hour
	for _, c := range []realDriver{
		// A Kepler. What the security archive of this release lists of the driver was not there to be had.
		{"bullseye", "proprietary", "10de:102d", "nvidia-tesla-470", "NVIDIA", "470.", `printf '%s\n' 'Package: *nvidia* libcuda*' 'Pin: release n=bullseye-security' 'Pin-Priority: -1' >/etc/apt/preferences.d/missing`},
		// A Pascal, which open modules cannot drive, and a Turing, which either can. The open 535 of Debian 12 does not compile
		// for the kernel that it has today, and gpuguest refuses it there (distros.Offer.Breaks).
		{"bookworm", "proprietary", "10de:1c82", "nvidia-current", "NVIDIA", "535.", ""},
		{"trixie", "proprietary", "10de:1c82", "nvidia-current", "NVIDIA", "550.", ""},
		{"trixie", "open", "10de:1eb8", "nvidia-current-open", "Dual MIT/GPL", "550.", ""},
	} {
		t.Run(c.suite+" "+c.flavor, func(t *testing.T) { testRealDriver(t, w, c) })
	}
}

// realDriver is a driver as Debian packages it, and what its module is to say of itself. prepare is done to the guest
// before.
type realDriver struct{ suite, flavor, device, module, license, version, prepare string }

func testRealDriver(t *testing.T, w *world, c realDriver) {
	g := w.start(t, w.root(t, c.suite), lab.ContainerSpec{})
	g.in(t, c.prepare)
	before := g.snapshot(t)
	kernel := g.in(t, `ls /lib/modules`)
	if raw, err := os.ReadFile("/proc/sys/kernel/osrelease"); err != nil || strings.TrimSpace(string(raw)) == kernel {
		t.Fatalf("this machine runs the guest's kernel %s, so that nothing would tell for which one a module was built: %v", kernel, err)
	}
	logs := t.TempDir()
	if dir := os.Getenv("GPUGUEST_LOGS"); dir != "" {
		logs = filepath.Join(dir, c.suite+"-"+c.flavor)
	}
	install := slices.Concat([]string{"install", "--json", "--log-dir", logs}, g.reach("root"),
		[]string{"--no-gpu", "--device", c.device, "--source", "distro", "--flavor", c.flavor})

	peak := g.watchRoom(t)
	w.must(t, exitDone, install...)
	t.Logf("MB written at most: %v; in the end: %v", peak(), g.room(t))
	module := g.in(t, `for field in license version vermagic; do modinfo -k "$(ls /lib/modules)" -F $field `+c.module+`; done`)
	if l := strings.Split(module, "\n"); len(l) != 3 || l[0] != c.license || !strings.HasPrefix(l[1], c.version) || !strings.HasPrefix(l[2], kernel+" ") {
		t.Errorf("license, version and vermagic of the real module: %q", l)
	} else {
		t.Logf("%s %s for %s", l[0], l[1], l[2])
	}
	if audit := g.in(t, `dpkg --audit`); audit != "" {
		t.Errorf("dpkg --audit: %s", audit)
	}

	installed := g.snapshot(t)
	again := w.must(t, exitDone, install...).report(t)
	for _, s := range again.Steps {
		if s.State != engine.Met {
			t.Errorf("the second time, %s is %s: %s", s.ID, s.State, s.Detail)
		}
	}
	if again.Execs > 3 {
		t.Errorf("the second time took %d execs", again.Execs)
	}
	if d := differences(installed, g.snapshot(t)); d != "" {
		t.Errorf("the second time changed\n%s", d)
	}

	w.must(t, exitDone, slices.Concat([]string{"uninstall", "--log-dir", logs}, g.reach("root"))...)
	if d := differences(before, g.snapshot(t)); d != "" {
		t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
	}
}

// room is what the guest wrote so far below the directories that the step of that name asks room in, in MB.
func (g *testGuest) room(t *testing.T) map[string]int {
	t.Helper()
	mb, err := written(t.Context(), g.Written())
	if err != nil {
		t.Fatal(err)
	}
	return mb
}

func written(ctx context.Context, root string) (map[string]int, error) {
	mb := map[string]int{}
	for _, dir := range []string{"usr", "var", "boot"} {
		// du complains of files that are removed under its eyes, and counts the others.
		out, err := exec.CommandContext(ctx, "du", "-sm", filepath.Join(root, dir)).Output()
		size, _, found := strings.Cut(string(out), "\t")
		if !found {
			if _, stat := os.Stat(filepath.Join(root, dir)); os.IsNotExist(stat) {
				continue
			}
			return nil, err
		}
		if mb["/"+dir], err = strconv.Atoi(size); err != nil {
			return nil, err
		}
	}
	return mb, nil
}

// watchRoom looks at what the guest writes every few seconds until the function it returns is called, which tells the most
// that there was at once below each directory, and below all of them.
func (g *testGuest) watchRoom(t *testing.T) func() map[string]int {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	peak := map[string]int{}
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(3 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now, err := written(ctx, g.Written())
			if err != nil {
				continue
			}
			sum := 0
			for dir, mb := range maps.All(now) {
				peak[dir] = max(peak[dir], mb)
				sum += mb
			}
			peak["all"] = max(peak["all"], sum)
		}
	})
	t.Cleanup(watching.Wait)
	t.Cleanup(cancel)
	return func() map[string]int {
		cancel()
		watching.Wait()
		return peak
	}
}
