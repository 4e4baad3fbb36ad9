package main

import (
	"slices"
	"testing"

	"gpuguest/internal/bake"
)

// TestVMBake bakes one base in both ovens, the second time under the first one's lock, and boots what came out. The
// driver is the lab's stand-in, which DKMS builds in minutes also where the machine is emulated.
func TestVMBake(t *testing.T) {
	vmTier(t)
	t.Parallel()
	b := newBakery(t)
	b.standIns()
	container, took := b.bake("container", "baked")
	t.Logf("oven nspawn: %s, %d bytes: %s", took, container.Bytes, phases(container))
	b.isSealed("container")
	if run := smokeImage(t, b.path("out/container.qcow2"), "--device", "10de:1c82", "--no-gpu"); run.exit != exitDone {
		t.Errorf("what the oven nspawn made: exit %d: %+v\n%s", run.exit, run.Error, run.stderr)
	}

	b.copy("container.lock", "machine.lock")
	b.oven = bake.OvenQEMU
	machine, slow := b.bake("machine", "baked")
	t.Logf("oven qemu: %s, %d bytes: %s", slow, machine.Bytes, phases(machine))
	t.Logf("nspawn is %.1f times faster", slow.Seconds()/took.Seconds())
	b.isSealed("machine")
	if !slices.Equal(container.Packages, machine.Packages) {
		t.Error("the two ovens made other packages of one lock")
	}
	if run := smokeImage(t, b.path("out/machine.qcow2"), "--device", "10de:1c82", "--no-gpu"); run.exit != exitDone {
		t.Errorf("what the oven qemu made: exit %d: %+v\n%s", run.exit, run.Error, run.stderr)
	}
}
