package bake_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/assets"
)

const (
	oneTime = "AAAAC3NzaC1lZDI1NTE5AAAAIonetime"
	owners  = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIowner owner@desk\n"
)

// tree is a guest's file system, of which nothing is to be left but what stays says.
var (
	goes = map[string]string{
		"etc/ssh/ssh_host_ed25519_key":                   "private",
		"etc/ssh/ssh_host_ed25519_key.pub":               "public",
		"root/.bash_history":                             "ls\n",
		"root/.ssh/authorized_keys":                      "ssh-ed25519 " + oneTime + " gpuguest-one-time-key\n",
		"home/debian/.python_history":                    "import os\n",
		"var/lib/cloud/instance/user-data.txt":           "secret",
		"etc/sudoers.d/90-cloud-init-users":              "debian ALL=(ALL) NOPASSWD:ALL\n",
		"etc/netplan/50-cloud-init.yaml":                 "network: {}\n",
		"var/lib/apt/lists/a_Packages":                   "Package: a\n",
		"var/cache/apt/archives/a.deb":                   "deb",
		"var/cache/apt/pkgcache.bin":                     "cache",
		"var/cache/dnf/x/repomd.xml":                     "<x/>",
		"var/lib/dhcp/dhclient.leases":                   "lease",
		"var/lib/NetworkManager/a.lease":                 "lease",
		"var/log/journal/0123/system.journal":            "binary",
		"var/log/wtmp":                                   "logins",
		"var/log/apt/history.log.1.gz":                   "old",
		"var/lib/gpuguest/jobs/driver-1/log":             "a job's log",
		"var/lib/systemd/random-seed":                    "seed",
		"var/lib/dbus/machine-id":                        "0123",
		"etc/apt/preferences.d/00gpuguest-lock":          "Package: *\n",
		"tmp/x":                                          "x",
		"etc/udev/rules.d/70-persistent-net.rules":       "net",
		"var/lib/systemd/coredump/core.x.zst":            "core",
		"root/.lesshst":                                  "search",
		"etc/systemd/network/10-cloud-init-eth0.network": "[Match]\n",
	}
	empties = map[string]string{
		"etc/machine-id":       "0123456789abcdef0123456789abcdef\n",
		"var/log/dpkg.log":     "2026 install\n",
		"var/log/apt/term.log": "Setting up\n",
	}
	stays = map[string]string{
		"var/lib/gpuguest/journal":                   `{"event":"end"}` + "\n",
		"var/lib/gpuguest/before/packages":           "a 1\n",
		"var/lib/gpuguest/verify.due":                "",
		"etc/systemd/system/gpuguest-verify.service": "[Unit]\n",
		"etc/passwd":                     "root:x:0:0:root:/root:/bin/sh\ndebian:x:1000:1000::/home/debian:/bin/sh\n_apt:x:42:42::/nonexistent:/bin/false\n",
		"etc/netplan/01-own.yaml":        "network: {}\n",
		"etc/cloud/cloud.cfg":            "users: []\n",
		"var/lib/dkms/mok.key":           "key",
		"proc/sys/kernel/random/boot_id": "boot-1\n",
	}
)

func guestTree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, files := range []map[string]string{goes, empties, stays} {
		for name, text := range files {
			write(t, filepath.Join(root, name), text)
		}
	}
	write(t, filepath.Join(root, "home/debian/.ssh/authorized_keys"), owners+"command=\"x\" ssh-ed25519 "+oneTime+" gpuguest-one-time-key\n")
	return root
}

// bakeShell runs a call of assets/bake.sh on a tree. It refuses to run without one: on this machine's own / seal
// would seal this machine.
func bakeShell(t *testing.T, root, call, stdin string) (string, error) {
	t.Helper()
	if root == "" {
		t.Fatal("no tree")
	}
	cmd := exec.Command("sh", "-c", "set -eu\n"+assets.Bake+call)
	cmd.Env = append(os.Environ(), "GPUGUEST_ROOT="+root)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestSealTakesAwayWhatMustNotBeInAnImage(t *testing.T) {
	t.Parallel()
	root := guestTree(t)
	before, err := bakeShell(t, root, "sealed "+oneTime, "")
	if err == nil {
		t.Error("a guest that was not sealed is said to be")
	}
	for _, want := range []string{"/etc/ssh/ssh_host_ed25519_key is there", "/etc/machine-id is not empty", "/root/.bash_history is there",
		"/home/debian/.ssh still lets the one-time key in", "/var/log/dpkg.log is not empty", "/var/lib/gpuguest/jobs is there"} {
		if !strings.Contains(before, want+"\n") {
			t.Errorf("not said: %s", want)
		}
	}
	for range 2 { // sealing twice is sealing once
		if out, err := bakeShell(t, root, "seal "+oneTime+" boot-1", ""); err != nil || out != "" {
			t.Fatalf("seal: %v: %s", err, out)
		}
		for name := range goes {
			if _, err := os.Stat(filepath.Join(root, name)); !os.IsNotExist(err) {
				t.Errorf("%s is there: %v", name, err)
			}
		}
		for name := range empties {
			if text := read(t, filepath.Join(root, name)); text != "" {
				t.Errorf("%s holds %q", name, text)
			}
		}
		for name, want := range stays {
			if text := read(t, filepath.Join(root, name)); text != want {
				t.Errorf("%s holds %q", name, text)
			}
		}
		if text := read(t, filepath.Join(root, "home/debian/.ssh/authorized_keys")); text != owners {
			t.Errorf("the owner's keys are %q", text)
		}
	}
	// cloud-init makes host keys, so nothing else needs to.
	if _, err := os.Stat(filepath.Join(root, "etc/systemd/system/gpuguest-hostkeys.service")); err == nil {
		t.Error("a unit makes host keys beside cloud-init")
	}
}

func TestSealLeavesSomethingThatMakesHostKeys(t *testing.T) {
	t.Parallel()
	root := guestTree(t)
	if err := os.RemoveAll(filepath.Join(root, "etc/cloud")); err != nil {
		t.Fatal(err)
	}
	if out, err := bakeShell(t, root, "seal "+oneTime+" boot-1", ""); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	unit := read(t, filepath.Join(root, "etc/systemd/system/multi-user.target.wants/gpuguest-hostkeys.service"))
	if !strings.HasPrefix(unit, "# Written by gpuguest") || !strings.Contains(unit, "\n[Service]\nType=oneshot\nExecStart=/usr/bin/ssh-keygen -A\n") {
		t.Errorf("the unit is\n%s", unit)
	}
}

func TestAnotherMachineIsNeverSealed(t *testing.T) {
	t.Parallel()
	root := guestTree(t)
	for _, call := range []string{"seal " + oneTime + " boot-2", "seal '' boot-1"} {
		if out, err := bakeShell(t, root, call, ""); err == nil || !strings.Contains(out, "not the guest that is to be sealed") {
			t.Errorf("%s: %v: %s", call, err, out)
		}
	}
	if read(t, filepath.Join(root, "root/.bash_history")) == "" {
		t.Error("it was sealed all the same")
	}
}

func TestLockBecomesPins(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	tools := t.TempDir()
	write(t, filepath.Join(tools, "dpkg"), "#!/bin/sh\necho amd64\n")
	write(t, filepath.Join(tools, "apt-get"), "#!/bin/sh\n")
	for _, tool := range []string{"dpkg", "apt-get"} {
		if err := os.Chmod(filepath.Join(tools, tool), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out, err := bakeShell(t, root, "PATH="+tools+":$PATH\nlock_packages", "libc6\t2.36-9\tamd64\nlibc6\t2.36-9\ti386\ntzdata\t2025b-0+deb12u1\tall\n")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := "Package: libc6\nPin: version 2.36-9\nPin-Priority: 1001\n\nPackage: libc6:i386\nPin: version 2.36-9\nPin-Priority: 1001\n\n" +
		"Package: tzdata\nPin: version 2025b-0+deb12u1\nPin-Priority: 1001\n\n"
	if got := read(t, filepath.Join(root, "etc/apt/preferences.d/00gpuguest-lock")); got != want {
		t.Errorf("pins:\n%s", got)
	}
}
