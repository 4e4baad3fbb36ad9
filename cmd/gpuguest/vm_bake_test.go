package main

import (
	"os"
	"slices"
	"testing"

	"gpuguest/internal/bake"
	"gpuguest/internal/lab"
)

// TestVMBake bakes one base in both ovens, the second time under the first one's lock, and boots what came out. The
// driver is the lab's stand-in, which DKMS builds in minutes also where the machine is emulated.
func TestVMBake(t *testing.T) {
	vmTier(t)
	t.Parallel()
	b := newBakery(t, lab.Spec{})
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

// TestVMBothFlavors boots an image for GPUs of both flavors with the pretend GTX 1050 Ti, which has no GSP: the packages
// in it are those of the open modules, and the proprietary ones drive the GPU.
func TestVMBothFlavors(t *testing.T) {
	vmTier(t)
	t.Parallel()
	b := newBakery(t, lab.Spec{})
	b.standIns()
	b.want += "    first-boot-verify: true\n"
	b.gpus = `[GeForce GTX 1050 Ti, "10de:2901"]`
	m, took := b.bake("both", "baked")
	t.Logf("baked in %.0f s: %s", took.Seconds(), phases(m))
	b.picksByPCIID()
	console := b.path("console")
	run := smokeImage(t, b.path("out/both.qcow2"), append([]string{"--console", console}, fakeGPUArgs...)...)
	t.Logf("smoke: %.0f s, exit %d", run.took.Seconds(), run.exit)
	if run.exit != exitDone || run.Flavor != "proprietary" {
		log, _ := os.ReadFile(console)
		t.Errorf("exit %d, flavor %s: %+v\n%s\n%s", run.exit, run.Flavor, run.Report, run.stderr, log[max(0, len(log)-4000):])
	}
}
