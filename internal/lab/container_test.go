package lab

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// needContainers skips a test of container guests unless GPUGUEST_CONTAINER is set. Where it is set, a
// machine that cannot run them fails the test.
func needContainers(t *testing.T) {
	t.Helper()
	if os.Getenv("GPUGUEST_CONTAINER") == "" {
		t.Skip("GPUGUEST_CONTAINER is not set")
	}
}

func startContainer(t *testing.T, root ContainerRoot, spec ContainerSpec) *Container {
	t.Helper()
	began := time.Now()
	c, err := StartContainer(t.Context(), root, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("up in %s", time.Since(began).Round(time.Millisecond))
	t.Cleanup(func() {
		if err := c.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return c
}

func in(t *testing.T, c *Container, script string) string {
	t.Helper()
	out, err := c.Exec(t.Context(), script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func TestContainerBootsReboots(t *testing.T) {
	needContainers(t)
	root, err := BuildContainerRoot(t.Context(), "bookworm")
	if err != nil {
		t.Fatal(err)
	}
	c := startContainer(t, root, ContainerSpec{})
	if got := in(t, c, "systemctl is-system-running --wait || systemctl --failed"); got != "running" {
		t.Errorf("the guest is %s", got)
	}
	bootID := func() string { return in(t, c, "cat /proc/sys/kernel/random/boot_id") }
	first := bootID()
	in(t, c, "echo 'GRUB_CMDLINE_LINUX=seen=1' >>/etc/default/grub && update-grub")
	in(t, c, "systemctl --no-block reboot")
	deadline := time.Now().Add(20 * time.Second)
	for c.Boots() < 2 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	if err := c.waitSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := bootID()
	if second == first {
		t.Error("the guest has the boot_id of before its reboot")
	}
	if line := in(t, c, "cat /proc/cmdline"); !strings.Contains(line, "seen=1") || !strings.Contains(line, "root=/dev/vda1") {
		t.Errorf("started with %q, not as grub.cfg says", line)
	}
	if running, built := in(t, c, "cat /proc/sys/kernel/osrelease"), in(t, c, "ls /lib/modules"); running != built {
		t.Errorf("the guest says it runs %s, the boot loader's entry starts %s", running, built)
	}

	in(t, c, "echo kept >/var/tmp/kept")
	if err := c.PowerCut(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Dial(t.Context(), "root"); err == nil {
		t.Error("a guest without power answers")
	}
	if err := c.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if third := bootID(); third == second || in(t, c, "cat /var/tmp/kept") != "kept" {
		t.Error("after the power cut the guest is not the same one started anew")
	}

	if err := c.Unplug(t.Context()); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := c.Dial(t.Context(), "root"); !errors.As(err, &timeout) {
		t.Errorf("an unplugged guest answers: %v", err)
	}
	if err := c.Plug(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.waitSSH(t.Context()); err != nil {
		t.Fatal(err)
	}
	in(t, c, "apt-get -q update && apt-get install -y -q --no-install-recommends hello && hello")
}

func TestContainersAreApart(t *testing.T) {
	needContainers(t)
	root, err := BuildContainerRoot(t.Context(), "bookworm")
	if err != nil {
		t.Fatal(err)
	}
	a, b := startContainer(t, root, ContainerSpec{}), startContainer(t, root, ContainerSpec{DiskMB: 512})
	in(t, a, "echo a >/etc/only-a")
	if _, err := b.Exec(t.Context(), "test -e /etc/only-a"); err == nil {
		t.Error("one guest sees what the other wrote")
	}
	if err := a.PowerCut(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := in(t, b, "systemctl is-system-running --wait; systemctl is-active ssh"); got != "running\nactive" {
		t.Errorf("after the other guest's power cut this one is %q", got)
	}
	if _, err := b.Exec(t.Context(), "dd if=/dev/zero of=/fill bs=1M count=600"); err == nil {
		t.Error("600 MB fit on a disk of 512 MB")
	}
}
