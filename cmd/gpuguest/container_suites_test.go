package main

import (
	"slices"
	"testing"

	"gpuguest/internal/lab"
)

// testSuites installs in other releases of Debian than the one that all other tests use.
func testSuites(t *testing.T, w *world) {
	t.Parallel()
	for _, c := range []struct {
		suite, device string
		layers        []layer
		want          func(g *testGuest) []string // how it is installed; nil: from NVIDIA's repository
	}{
		// NVIDIA's repository for Debian 13 begins after the last branch for a Pascal.
		{suite: "trixie", device: "10de:1eb8"},
		// Debian 11 gets nothing new there. A Kepler needs branch 470.
		{suite: "bullseye", device: "10de:102d", layers: []layer{lists, headers}, want: func(g *testGuest) []string {
			file, _ := write(t, "NVIDIA-Linux-x86_64-470.256.02.run", driverRunfile(t, "470.256.02", "x86_64", ""))
			return slices.Concat([]string{"install"}, g.reach("root"), []string{"--no-gpu", "--device", g.device, "--runfile", file})
		}},
	} {
		t.Run(c.suite, func(t *testing.T) {
			t.Parallel()
			g := w.start(t, w.root(t, c.suite, c.layers...), lab.ContainerSpec{})
			g.device = c.device
			install := g.install()
			if c.want != nil {
				install = c.want(g)
			}
			before := g.snapshot(t)
			w.must(t, exitDone, install...)
			installed := g.snapshot(t)
			w.must(t, exitDone, install...)
			if d := differences(installed, g.snapshot(t)); d != "" {
				t.Errorf("the second time changed\n%s", d)
			}
			w.must(t, exitDone, slices.Concat([]string{"uninstall"}, g.reach("root"))...)
			if d := differences(before, g.snapshot(t)); d != "" {
				t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
			}
		})
	}
}
