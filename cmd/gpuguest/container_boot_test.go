package main

import (
	"encoding/json"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/lab"
	"gpuguest/internal/report"
)

// pretendGPU makes a container guest look as if the installed driver drove a GPU, from before the first unit on: no
// module can be loaded there, so sysfs's list of PCI devices, its list of modules and /proc/driver are the guest's own
// files. systemd and nvidia-smi over them are real, the libraries the lab's; the persistence daemon, which wants an
// answer of a real device, is a process that sleeps.
const pretendGPU = `set -e
cat >/usr/local/lib/lab/gpu <<'END'
#!/bin/sh
set -eu
d=/run/lab/pci/0000:01:00.0
mkdir -p "$d" /run/lab/drivers/nvidia /run/lab/module/nvidia /run/lab/module/nvidia_uvm /run/lab/driver/nvidia/gpus/0000:01:00.0
echo 0x10de >"$d/vendor"; echo 0x1c82 >"$d/device"; echo 0x030000 >"$d/class"
echo 0x1b4c >"$d/subsystem_vendor"; echo 0x11bf >"$d/subsystem_device"; echo 0xa1 >"$d/revision"
echo '2.5 GT/s PCIe' >"$d/current_link_speed"; echo 1 >"$d/current_link_width"
ln -sfn /run/lab/drivers/nvidia "$d/driver"
v=$(modinfo -k "$(ls /lib/modules)" -F version nvidia)
echo "$v" >/run/lab/module/nvidia/version
echo "NVRM version: NVIDIA UNIX x86_64 Kernel Module  $v  Sun Nov 22 10:00:00 UTC 2026" >/run/lab/driver/nvidia/version
printf 'Model: \t\t GeForce GTX 1050 Ti\nBus Location: \t 0000:01:00.0\nDevice Minor: 0\n' >/run/lab/driver/nvidia/gpus/0000:01:00.0/information
printf 'users 1\npersistent 1\n' >/run/lab/driver/nvidia/gpus/0000:01:00.0/stand-in
for f in nvidiactl nvidia0 nvidia-uvm; do : >"/dev/$f"; chmod 666 "/dev/$f"; done
mount --bind /run/lab/pci /sys/bus/pci/devices
mount --bind /run/lab/module /sys/module
mount --bind /run/lab/driver /proc/driver
END
chmod 755 /usr/local/lib/lab/gpu
cat >/etc/systemd/system/lab-gpu.service <<'END'
[Unit]
Description=Stand-in for a GPU and its loaded driver
DefaultDependencies=no
After=lab-loader.service
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/lib/lab/gpu

[Install]
WantedBy=sysinit.target
END
printf '[Service]\nType=exec\nUser=nvpd\nExecStart=\nExecStart=/bin/sleep infinity\nExecStopPost=\n' |
	install -D -m 644 /dev/stdin /etc/systemd/system/nvidia-persistenced.service.d/lab.conf
systemctl -q enable lab-gpu.service`

// testVerifyAtBoot: gpuguest-verify.service runs once at the boot after it was left in the guest, and what it writes
// is what verify prints of the same guest; when CUDA fails too.
func testVerifyAtBoot(t *testing.T, w *world) {
	t.Parallel()
	g := w.start(t, w.root(t, "bookworm", lists, headers), lab.ContainerSpec{})
	w.must(t, exitDone, g.install()...)
	verify := slices.Concat([]string{"verify", "--json"}, g.reach("root"))

	// An image: the GPU is there at its first boot and not before, and then there is no compiler.
	w.must(t, exitDone, slices.Concat(verify, []string{"--no-gpu", "--install-unit"})...)
	if state := g.in(t, `ls /var/lib/gpuguest; systemctl is-active gpuguest-verify || :`); !strings.Contains(state, "verify.due") || strings.Contains(state, "verify.json") || !strings.HasSuffix(state, "inactive") {
		t.Errorf("before the boot: %s", state)
	}
	g.in(t, pretendGPU+"\nfor f in /usr/bin/cc /usr/bin/gcc*; do [ ! -e $f ] || mv $f /root/${f##*/}.away; done")
	g.verifiedAtBoot(t)
	// Which models there will be an image's unit cannot know.
	g.sameByUnit(t, w.must(t, exitDone, verify...).out, "gpus")

	// A guest that has its GPU.
	w.must(t, exitDone, slices.Concat(verify, []string{"--install-unit"})...)
	if again := w.must(t, exitDone, slices.Concat(verify, []string{"--install-unit"})...).report(t); again.Steps[0].ID != "verify-unit" || again.Steps[0].State != "met" {
		t.Errorf("the second time: %+v", again.Steps[0])
	}
	g.verifiedAtBoot(t)
	g.sameByUnit(t, w.must(t, exitDone, verify...).out)
	if d := w.must(t, exitDone, slices.Concat([]string{"diagnose"}, g.reach("root"))...); d.out != "nothing known is wrong\n" {
		t.Errorf("a false alarm: %s", d)
	}
	made := g.in(t, `stat -c %Y /var/lib/gpuguest/verify.json`)
	g.again(t)
	if unit := g.in(t, `systemctl is-active gpuguest-verify || :
systemctl show -p ConditionResult gpuguest-verify
stat -c %Y /var/lib/gpuguest/verify.json`); unit != "inactive\nConditionResult=no\n"+made {
		t.Errorf("at the boot after: %s", unit)
	}

	// A driver whose CUDA does not start: one error, both ways.
	g.in(t, `printf '[Service]\nEnvironment=STUB_INIT=802\n' | install -D /dev/stdin /etc/systemd/system/gpuguest-verify.service.d/lab.conf
systemctl daemon-reload
touch /var/lib/gpuguest/verify.due
systemctl start gpuguest-verify && exit 1
echo 'STUB_INIT=802' >>/etc/environment`)
	if unit := g.in(t, `systemctl show -p Result -p ExecMainStatus gpuguest-verify`); unit != "Result=exit-code\nExecMainStatus=5" {
		t.Errorf("the unit whose checks fail: %s", unit)
	}
	r := w.must(t, exitVerify, verify...)
	g.sameByUnit(t, r.out)
	if !strings.Contains(r.out, `"code": 802`) {
		t.Errorf("not the error that was made: %s", r)
	}
	if s := w.must(t, exitDone, slices.Concat([]string{"status"}, g.reach("root"))...); !strings.Contains(s.out, "verified") {
		t.Errorf("status says nothing of it: %s", s)
	}
	g.in(t, `for f in /root/*.away; do b=${f##*/}; mv "$f" "/usr/bin/${b%.away}"; done
rm -r /etc/systemd/system/gpuguest-verify.service.d; sed -i /STUB_INIT/d /etc/environment; systemctl disable lab-gpu; rm /etc/systemd/system/lab-gpu.service`)
	g.again(t)
	w.must(t, exitDone, slices.Concat([]string{"uninstall"}, g.reach("root"))...)
	if left := g.in(t, `ls -d /usr/local/lib/gpuguest /etc/systemd/system/gpuguest* /etc/systemd/system/*.wants/gpuguest* /var/lib/gpuguest/verify* 2>/dev/null || :`); left != "" {
		t.Errorf("uninstall left %s", left)
	}
}

// verifiedAtBoot boots the guest, whose unit is due, and sees that it ran to a good end.
func (g *testGuest) verifiedAtBoot(t *testing.T) {
	t.Helper()
	g.in(t, `rm -f /var/lib/gpuguest/verify.json`)
	g.again(t)
	g.in(t, `for i in $(seq 120); do if [ -s /var/lib/gpuguest/verify.json ]; then exit 0; fi; sleep 1; done; systemctl status gpuguest-verify; exit 1`)
	unit := g.in(t, `systemctl show -p Result -p ExecMainStatus gpuguest-verify; journalctl -b -u gpuguest-verify -o cat --no-pager`)
	if !strings.Contains(unit, "Result=success") || !strings.Contains(unit, "ExecMainStatus=0") || !strings.Contains(unit, "ok verify-cuda") {
		t.Errorf("the unit: %s", unit)
	}
	if state := g.in(t, `ls /var/lib/gpuguest`); strings.Contains(state, "verify.due") {
		t.Errorf("it is due for another boot: %s", state)
	}
}

// again boots the guest anew.
func (g *testGuest) again(t *testing.T) {
	t.Helper()
	if err := g.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.in(t, `systemctl is-system-running --wait >/dev/null || :`)
}

// measured are what no two runs have in common: members that are times or speeds of copies, and such in words.
var measured = regexp.MustCompile(`("(?:seconds|guest_seconds|time|ms|began|ended)":)(?:-?[0-9.e+-]+|"[^"]*")|("[a-z0-9_]*(?:h2d|d2h|d2d|gbs)":)-?[0-9.e+-]+|[0-9.]+( GB/s)`)

// sameByUnit holds what the guest's own unit left against what verify printed of the same guest, but for these members.
func (g *testGuest) sameByUnit(t *testing.T, printed string, but ...string) {
	t.Helper()
	members := func(name, text string) map[string]any {
		found, err := report.Read(name, strings.NewReader(text))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v in %s", name, err, text)
		}
		one := found[0]
		// One is asked from outside, the other is inside.
		one.Host, one.Connections, one.Execs = "guest", 0, 0
		raw, err := json.Marshal(one)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(measured.ReplaceAll(raw, []byte(`${1}${2}0${3}`)), &m); err != nil {
			t.Fatalf("%s: %v in %s", name, err, raw)
		}
		return m
	}
	left := g.in(t, `cat /var/lib/gpuguest/verify.json`)
	unit, over := members("verify.json", left), members("verify", printed)
	for name, want := range over {
		if slices.Contains(but, name) {
			continue
		}
		if got := unit[name]; !reflect.DeepEqual(got, want) {
			a, _ := json.Marshal(got)
			b, _ := json.Marshal(want)
			t.Errorf("%s: the unit has\n%s\nverify prints\n%s", name, a, b)
		}
	}
	for name := range unit {
		if _, there := over[name]; !there {
			t.Errorf("%s: only the unit has it", name)
		}
	}
}
