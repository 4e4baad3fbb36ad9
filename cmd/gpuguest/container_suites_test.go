package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/lab"
)

// testSuites installs in other releases of Debian than the one that all other tests use.
func testSuites(t *testing.T, w *world) {
	t.Parallel()
	for _, suite := range []string{"trixie"} {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			g := w.start(t, w.root(t, suite), lab.ContainerSpec{})
			// NVIDIA's repository for Debian 13 begins after the last branch for a Pascal.
			g.device = "10de:1eb8"
			before := g.snapshot(t)
			w.must(t, exitDone, g.install()...)
			w.must(t, exitDone, slices.Concat([]string{"uninstall"}, g.reach("root"))...)
			if d := differences(before, g.snapshot(t)); d != "" {
				t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
			}
		})
	}
}

// testRealDriver builds Debian's own packages of NVIDIA's real modules, for the kernel that the guest's boot
// loader names. It takes minutes and 3 GB.
func testRealDriver(t *testing.T, w *world) {
	if os.Getenv("GPUGUEST_CONTAINER_REAL") == "" {
		t.Skip("GPUGUEST_CONTAINER_REAL is not set")
	}
	g := w.start(t, w.root(t, "bookworm"), lab.ContainerSpec{})
	w.must(t, exitDone, slices.Concat([]string{"install", "--source", "distro", "--no-gpu", "--device", "10de:1c82"}, g.reach("root"))...)
	license := g.in(t, `modinfo -k "$(ls /lib/modules)" -F license nvidia-current; modinfo -k "$(ls /lib/modules)" -F version nvidia-current`)
	if l := strings.Split(license, "\n"); len(l) != 2 || l[0] != "NVIDIA" || !strings.HasPrefix(l[1], "535.") {
		t.Errorf("license and version of the real module: %q", l)
	}
}
