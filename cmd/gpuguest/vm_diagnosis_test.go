package main

// Verdicts and remedies in real virtual machines. A reboot costs minutes under emulation, so that each test goes
// through its failures one after the other in one machine.

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/diagnosis"
	"gpuguest/internal/engine"
	"gpuguest/internal/lab"
	"gpuguest/internal/report"
)

// verdicts is what diagnose says of the guest, ranked.
func (g *vmGuest) verdicts() []diagnosis.Verdict {
	g.t.Helper()
	bin, err := binary()
	if err != nil {
		g.t.Fatal(err)
	}
	cmd := exec.CommandContext(g.t.Context(), bin, "diagnose", "--json", "--host", "root@127.0.0.1", "--port", strconv.Itoa(g.vm.Port),
		"-i", g.image.Keys.ClientKey, "--known-hosts", g.vm.KnownHosts, "--ssh-config", "none")
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	_ = cmd.Run() // the exit code is 5 where something fatal is found
	var said struct{ Verdicts []diagnosis.Verdict }
	if err := json.Unmarshal(out.Bytes(), &said); err != nil {
		g.t.Fatalf("diagnose: %v: %s%s", err, out.String(), progress.String())
	}
	return said.Verdicts
}

// expect asserts that a verdict is among those of the guest, and first when it must be.
func (g *vmGuest) expect(id string, first bool) {
	g.t.Helper()
	all := g.verdicts()
	at := slices.IndexFunc(all, func(v diagnosis.Verdict) bool { return v.ID == id })
	if at < 0 || first && at > 0 {
		g.t.Errorf("verdict %s is not there, or not the first:", id)
		for _, v := range all {
			g.t.Log(v)
		}
	}
}

// sound asserts that nothing but what is true is found wrong with a guest that is well: a false alarm costs trust in
// every true one.
func (g *vmGuest) sound(when string, but ...string) {
	g.t.Helper()
	for _, v := range g.verdicts() {
		if v.Severity != diagnosis.Info && !slices.Contains(but, v.ID) {
			g.t.Errorf("%s: a false alarm: %v", when, v)
		}
	}
}

// replaced turns the guest off, changes what it is given, and turns it on again.
func (g *vmGuest) replaced(gpus []string, mode string) {
	g.t.Helper()
	g.offFor(func() error { return g.vm.Pretend(gpus, mode) })
}

// offFor turns the guest off, has something done to it, and turns it on again.
func (g *vmGuest) offFor(change func() error) {
	g.t.Helper()
	g.shell("sync")
	if err := g.vm.PowerCut(); err != nil {
		g.t.Fatal(err)
	}
	if err := change(); err != nil {
		g.t.Fatal(err)
	}
	if err := g.vm.Start(); err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(g.t.Context(), 15*time.Minute)
	defer cancel()
	if err := g.vm.WaitSSH(ctx); err != nil {
		g.t.Fatal(err)
	}
}

// byUnit waits for what the guest's own unit finds at this boot, and reads it as status and report merge do.
func (g *vmGuest) byUnit() report.Guest {
	g.t.Helper()
	// The unit is ordered among those of the boot and takes an emulated guest its time.
	left := g.shell(`for try in $(seq 300); do
	if [ -s /var/lib/gpuguest/verify.json ] && [ ! -e /var/lib/gpuguest/verify.due ]; then cat /var/lib/gpuguest/verify.json; exit 0; fi
	sleep 2
done
systemctl --no-pager status gpuguest-verify
exit 1`)
	found, err := report.Read("verify.json", strings.NewReader(left))
	if err != nil || len(found) != 1 {
		g.t.Fatalf("verify.json: %v: %s", err, left)
	}
	if ran := g.shell("journalctl -b -u gpuguest-verify -o cat --no-pager"); !strings.Contains(ran, "verify-versions") && !strings.Contains(ran, "FAILED") {
		g.t.Errorf("the unit did not run at this boot: %s", ran)
	}
	return found[0]
}

// state is what became of a step in a run, "" when it was not in the plan.
func state(r engine.Report, id string) string {
	for _, s := range r.Steps {
		if string(s.ID) == id {
			return s.State
		}
	}
	return ""
}

// TestVMDiagnosis lets NVIDIA's real module meet what goes wrong with it. There is no silicon behind the pretend GPU:
// once its windows are in place the driver does not know the chip, and that is as far as it gets.
func TestVMDiagnosis(t *testing.T) {
	g := bootVM(t, lab.Spec{RealDriver: true}, lab.BootSpec{})

	// nouveau holds the GPU: the driver is installed beside it and the guest is not booted.
	r, code := g.run("install", "--source", "distro", "--reboot", "never")
	if code != exitVerify || len(r.Owed) == 0 || len(r.Remedies) != 0 {
		t.Errorf("install beside nouveau: exit %d, owed %v, tried %+v, error %+v", code, r.Owed, r.Remedies, r.Error)
	}
	g.expect("nouveau-holds", true)
	g.expect("nouveau-bound", false)
	g.expect("probe-not-called", false)

	// The window needs pci=realloc: install finds that out by itself and keeps it.
	g.replaced(nil, lab.ModeNeedsRealloc)
	g.expect("bar-zero", true)
	r, code = g.run("install", "--source", "distro")
	if code != exitVerify || r.Reboots != 1 {
		t.Fatalf("install: exit %d, %d reboots, error %+v", code, r.Reboots, r.Error)
	}
	helped := []engine.RemedyReport{{Remedy: "kernel-arg pci=realloc", Cause: "bar-zero", Result: engine.Helped}}
	if !slices.Equal(r.Remedies, helped) || !strings.Contains(g.shell("cat /proc/cmdline"), " pci=realloc") {
		t.Errorf("tried %+v", r.Remedies)
	}
	// With its windows in place the driver reads what chip it is: an old one, which it does not support.
	if r.Error == nil || r.Error.Verdict == nil || r.Error.Verdict.ID != "unknown-legacy" || r.Error.Verdict.Where != diagnosis.User {
		t.Errorf("with its window in place: %+v", r.Error)
	}
	g.expect("unknown-legacy", true)

	// A module that was built for another kernel: one word of its version magic is another.
	g.shell(`f=$(modinfo -n nvidia-current)
sed 's/preempt mod_unload/preempX mod_unload/' "$f" >/root/other.ko
! insmod /root/other.ko
rm /root/other.ko`)
	g.expect("vermagic", false)

	// The headers are gone when the package builds its module anew.
	g.shell(`export DEBIAN_FRONTEND=noninteractive
apt-get -y -q remove "linux-headers-$(uname -r)" linux-headers-amd64
apt-get -y -q install --reinstall nvidia-kernel-dkms || true`)
	all := g.verdicts()
	if !slices.ContainsFunc(all, func(v diagnosis.Verdict) bool {
		return (v.ID == "dkms-no-headers" || v.ID == "dkms-headers-skip") && v.Fix == "step headers"
	}) {
		t.Errorf("no verdict on the headers: %v", all)
	}
	// The remedy is to run install again. The argument that helped goes at a person's word.
	r, code = g.run("install", "--source", "distro", "--no-fix", "--drop-kernel-arg", "pci=realloc", "--reboot", "never")
	if code != exitVerify || state(r, "headers") != engine.Changed || state(r, "kernel-args") != engine.Changed {
		t.Errorf("install without the headers: exit %d, headers %s, kernel-args %s, error %+v", code, state(r, "headers"), state(r, "kernel-args"), r.Error)
	}
}

// TestVMWindowTooSmall is the story of a window that no argument of the guest's kernel makes room for, with NVIDIA's
// real module.
func TestVMWindowTooSmall(t *testing.T) {
	g := bootVM(t, withRealDriver, lab.BootSpec{Mode: lab.ModeTooSmall})
	// Debian's packages kept nouveau from the GPU from the first boot on, so there is nothing to reboot for.
	r, code := g.run("install", "--source", "distro", "--no-fix")
	if code != exitVerify || r.Reboots != 0 {
		t.Fatalf("install without remedies: exit %d, %d reboots, error %+v", code, r.Reboots, r.Error)
	}
	g.expect("bar-zero", true)

	// One argument, the other, both taken back, and the host is told what to change.
	const pciArgs = `grep -ow 'pci=[^ ]*' /proc/cmdline || echo none`
	if before := g.shell(pciArgs); strings.TrimSpace(before) != "none" {
		t.Fatalf("started with %s", before)
	}
	r, code = g.run("install", "--source", "distro")
	if code != exitVerify || r.Reboots != 3 {
		t.Errorf("install: exit %d, %d reboots", code, r.Reboots)
	}
	vain := []engine.RemedyReport{
		{Remedy: "kernel-arg pci=realloc", Cause: "bar-zero", Result: engine.NoHelp},
		{Remedy: "kernel-arg pci=realloc=off", Cause: "bar-zero", Result: engine.NoHelp},
	}
	if !slices.Equal(r.Remedies, vain) {
		t.Errorf("tried %+v", r.Remedies)
	}
	if after := g.shell(pciArgs); strings.TrimSpace(after) != "none" {
		t.Errorf("started with %s, which was to be taken back", after)
	}
	if e := r.Error; e == nil || e.Verdict == nil || e.Verdict.ID != "bar-zero" || e.Verdict.Where != diagnosis.Host ||
		!strings.Contains(strings.Join(e.Advice, "\n"), "X-PciMmio64Mb") || len(e.Tried) != 2 {
		t.Errorf("the verdict after it: %+v", r.Error)
	}
	if all := g.verdicts(); len(all) == 0 || all[0].ID != "bar-zero" || all[0].Where != diagnosis.Host {
		t.Errorf("diagnose after it: %v", all)
	}
	// What was tried in vain is not tried again.
	if r, code = g.run("install", "--source", "distro"); code != exitVerify || r.Reboots != 0 || len(r.Remedies) != 0 {
		t.Errorf("install once more: exit %d, %d reboots, tried %+v", code, r.Reboots, r.Remedies)
	}
}

// TestVMUpgradeAndOtherCard does with the stand-in module, which loads and works, what the real one cannot show
// without silicon: an upgrade without a reboot, and a card that needs the other flavor. Both of its boots are verified
// by the guest's own unit too: one finds all well, the other does not.
func TestVMUpgradeAndOtherCard(t *testing.T) {
	g := bootVM(t, lab.Spec{}, lab.BootSpec{})
	r, code := g.run("install", append(g.mirror(), "--driver", "580.95.05")...)
	if code != exitDone || r.Driver != "580.95.05" {
		t.Fatalf("install: exit %d, driver %s, error %+v", code, r.Driver, r.Error)
	}
	// The next boot is verified, whatever driver of its branch it has.
	if r, code := g.run("verify", "--install-unit", "--driver", "580"); code != exitDone || state(r, "verify-unit") != engine.Changed {
		t.Fatalf("verify --install-unit: exit %d, verify-unit %s, error %+v", code, state(r, "verify-unit"), r.Error)
	}
	if due := g.shell("ls /var/lib/gpuguest; systemctl is-enabled gpuguest-verify"); !strings.Contains(due, "verify.due") || strings.Contains(due, "verify.json") || !strings.Contains(due, "enabled") {
		t.Errorf("before the boot: %s", due)
	}
	// The guest's owner lets go of the version and upgrades. The module that is loaded stays the old one.
	g.shell(`export DEBIAN_FRONTEND=noninteractive
apt-get -y -q update
apt-get -y -q install nvidia-driver-pinning-580
apt-get -y -q --no-install-recommends install nvidia-kernel-dkms nvidia-driver-cuda nvidia-persistenced`)
	g.expect("smi-mismatch", false)
	r, code = g.run("install", append(g.mirror(), "--driver", "580")...)
	// Which of its symptoms a mismatch shows first is the packages' affair.
	if code != exitDone || r.Reboots != 1 || len(r.Remedies) != 1 || r.Remedies[0].Remedy != "reboot" || r.Remedies[0].Result != engine.Helped || r.Driver == "580.95.05" {
		t.Errorf("install after the upgrade: exit %d, %d reboots, driver %s, tried %+v, error %+v", code, r.Reboots, r.Driver, r.Remedies, r.Error)
	}
	if u := g.byUnit(); !u.OK() || u.Exit != exitDone || u.Driver != r.Driver || u.Flavor != r.Flavor || len(u.GPUs) != 1 || u.CUDA() != "works" ||
		state(u.Report, "verify-smi") != engine.Met || state(u.Report, "next-boot") != engine.Met {
		t.Errorf("the unit at the boot after the upgrade: result %s, exit %d, driver %s %s, GPUs %v, CUDA %s, error %+v, steps %+v",
			u.Result, u.Exit, u.Driver, u.Flavor, u.GPUs, u.CUDA(), u.Error, u.Steps)
	}

	// Another card, which the proprietary modules refuse.
	g.shell("rm /var/lib/gpuguest/verify.json; touch /var/lib/gpuguest/verify.due")
	g.replaced([]string{"10de:2b85"}, lab.ModeOK)
	if u := g.byUnit(); u.OK() || u.Exit != exitVerify || u.Driver != "" || u.Error == nil || u.Error.Step == "" || u.CUDA() == "works" ||
		!slices.ContainsFunc(u.Verdicts, func(v diagnosis.Verdict) bool { return v.ID == "requires-open" }) {
		t.Errorf("the unit at the other card's boot: result %s, exit %d, driver %q, CUDA %s, error %+v, verdicts %v", u.Result, u.Exit, u.Driver, u.CUDA(), u.Error, u.Verdicts)
	}
	g.expect("requires-open", true)
	r, code = g.run("diagnose", append(g.mirror(), "--fix", "--driver", "580")...)
	if code != exitDone || r.Flavor != "open" || r.Reboots != 1 {
		t.Errorf("diagnose --fix: exit %d, flavor %s, tried %+v, error %+v", code, r.Flavor, r.Remedies, r.Error)
	}
	if after := g.shell("lspci -nnk -d 10de:"); !strings.Contains(after, "Kernel driver in use: nvidia") {
		t.Errorf("nvidia does not own the GPU after:\n%s", after)
	}
}
