package main

import (
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/lab"
)

// fill is a program of the guest that takes the last block of its disk, as somebody's log or download may at any
// moment. It goes on until a file of one byte has no room, and leaves what is in /root/fill.
const fill = `cat >/usr/local/lib/lab/fill <<'END'
#!/bin/sh
[ -e /root/armed ] || exit 0
rm /root/armed
mkdir -p /root/fill
kb=$(df -kP / | awk 'NR == 2 { print $4 }')
while [ "$kb" -gt 0 ]; do
	fallocate -l "${kb}K" "/root/fill/$kb" 2>/dev/null || rm -f "/root/fill/$kb"
	kb=$((kb / 2))
done
i=0
while echo x >"/root/fill/small-$i"; do i=$((i + 1)); done 2>/dev/null
df -kP / | awk 'NR == 2 { print $4 }' >/run/left
END
chmod 755 /usr/local/lib/lab/fill
`

// testDiskFills: the guest had room when the installation began, and has none while packages are unpacked, or while
// DKMS builds. The step fails and what is said is that the disk is full; when there is room, the same command ends
// as if nothing had been.
func testDiskFills(t *testing.T, w *world) {
	t.Parallel()
	for _, c := range []struct{ name, arm string }{
		// dpkg is about to unpack the driver's packages.
		{"while packages are unpacked", `cat >/etc/apt/apt.conf.d/95fill <<'END'
DPkg::Pre-Install-Pkgs { "if grep -q nvidia-driver-cuda; then /usr/local/lib/lab/fill; fi"; };
END`},
		// DKMS has copied the sources and calls make.
		{"during the build", `dpkg-divert --quiet --local --rename --divert /usr/bin/make.real --add /usr/bin/make
cat >/usr/bin/make <<'END'
#!/bin/sh
case "$PWD $*" in */var/lib/dkms/*) /usr/local/lib/lab/fill ;; esac
exec /usr/bin/make.real "$@"
END
chmod 755 /usr/bin/make`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := w.start(t, w.root(t, "bookworm", lists, headers), lab.ContainerSpec{DiskMB: 4000})
			g.in(t, fill+c.arm)
			before := g.snapshot(t)
			g.in(t, `touch /root/armed`)
			r := w.must(t, exitStep, g.install()...)
			if left := g.in(t, `cat /run/left`); left != "0" {
				t.Fatalf("%s KB were left on the disk", left)
			}
			t.Log(strings.TrimSpace(r.stderr))
			for _, words := range []string{": driver: ", "No space left on device", "hint: cause: ", "Free space"} {
				if !strings.Contains(r.stderr, words) {
					t.Errorf("the message does not say %q: %s", words, r.stderr)
				}
			}
			g.in(t, `rm -r /root/fill`)
			w.must(t, exitDone, g.install()...)
			if audit := g.in(t, `dpkg --audit`); audit != "" {
				t.Errorf("dpkg --audit: %s", audit)
			}
			w.must(t, exitDone, slices.Concat([]string{"uninstall"}, g.reach("root"))...)
			if d := differences(before, g.snapshot(t)); d != "" {
				t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
			}
		})
	}
}
