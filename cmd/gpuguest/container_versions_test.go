package main

import (
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/engine"
	"gpuguest/internal/lab"
)

// testVersions walks a guest through the versions of a driver, as its owner may over years: one that is asked for, a
// newer one of the same branch, the other flavor, another branch; back only by way of uninstall. After each step apt
// itself must be content with what is installed and keep it.
func testVersions(t *testing.T, w *world) {
	t.Parallel()
	g := w.start(t, w.root(t, "bookworm", lists, headers), lab.ContainerSpec{})
	g.device = "10de:1eb8" // which every branch and flavor drives
	before := g.snapshot(t)
	uninstall := slices.Concat([]string{"uninstall"}, g.reach("root"))
	// at is what the guest has: version, license, modules of DKMS, the pin, and what apt would do to the driver by
	// itself.
	at := func(version, license, kernelPackage, pin string) {
		t.Helper()
		got := g.in(t, `k=$(ls /lib/modules)
modinfo -k "$k" -F version nvidia
modinfo -k "$k" -F license nvidia
dkms status 2>/dev/null | sed -n 's/^nvidia[,/] *\([0-9.]*\).*/dkms \1/p'
dpkg-query -W -f '${db:Status-Status} ${Package} ${Version}\n' '*nvidia*' '*cuda*' | sed -n 's/^installed //p' | grep -v cuda-keyring | sed 's/ / is /'
apt-get -s -q dist-upgrade | sed -n 's/^\(Inst\|Remv\)/would &/p'
dpkg --audit`)
		var packages []string
		for _, p := range []string{"libcuda1", "libnvidia-cfg1", "libnvidia-ml1", "nvidia-driver-cuda", kernelPackage, "nvidia-kernel-support", "nvidia-modprobe", "nvidia-persistenced"} {
			packages = append(packages, p+" is "+version+"-1")
		}
		packages = append(packages, "nvidia-driver-pinning-"+pin+" is "+pin+"-1")
		lines := strings.Split(got, "\n")
		want := slices.Concat([]string{version, license, "dkms " + version}, packages)
		slices.Sort(want)
		slices.Sort(lines)
		if d := differences(want, lines); d != "" {
			t.Errorf("of %s %s:\n%s", version, license, d)
		}
	}
	asked := func(flags ...string) engine.Report {
		t.Helper()
		return w.must(t, exitDone, g.install(append(flags, "--json")...)...).report(t)
	}
	const open, closed = "Dual MIT/GPL", "NVIDIA"

	asked("--driver", "580.95.05")
	at("580.95.05", open, "nvidia-kernel-open-dkms", "580.95.05")

	asked("--driver", "580.178.04")
	at("580.178.04", open, "nvidia-kernel-open-dkms", "580.178.04")

	then := g.tree(t)
	r := w.must(t, exitUnsupported, g.install("--driver", "580.95.05")...)
	if !strings.Contains(r.stderr, "580.178.04") || !strings.Contains(r.stderr, "uninstall") {
		t.Errorf("a downgrade is refused with %s", r.stderr)
	}
	if d := differences(then, g.tree(t)); d != "" {
		t.Errorf("the downgrade that was refused changed\n%s", d)
	}

	asked("--driver", "580", "--flavor", "proprietary")
	at("580.178.04", closed, "nvidia-kernel-dkms", "580")

	asked("--driver", "595", "--flavor", "open")
	at("595.91.07", open, "nvidia-kernel-open-dkms", "595")
	for _, s := range asked("--driver", "595", "--flavor", "open").Steps {
		if s.State != engine.Met {
			t.Errorf("the second time, %s is %s: %s", s.ID, s.State, s.Detail)
		}
	}

	w.must(t, exitDone, uninstall...)
	asked("--driver", "580.95.05")
	at("580.95.05", open, "nvidia-kernel-open-dkms", "580.95.05")
	w.must(t, exitDone, uninstall...)
	if d := differences(before, g.snapshot(t)); d != "" {
		t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
	}
}
