package main

// The tier of real virtual machines: a real kernel with nouveau, GRUB, an initramfs, apt, DKMS and reboots
// in QEMU. What stands in for silicon is listed in testdata/lab/README.md: the GPU on the PCI bus, and, but
// for TestVMRealDriver, NVIDIA's packages.

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gpuguest/internal/engine"
	"gpuguest/internal/lab"
)

// vmTier skips a test unless this tier was asked for.
func vmTier(t *testing.T) {
	t.Helper()
	if os.Getenv("GPUGUEST_LAB") == "" {
		t.Skip("GPUGUEST_LAB is not set: make test-vm runs the tier of real virtual machines")
	}
}

// binary builds gpuguest once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "gpuguest-bin-")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "gpuguest")
	cmd := exec.Command("go", "build", "-o", out, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, text)
	}
	return out, nil
})

// vmGuest is a booted guest and how to reach it.
type vmGuest struct {
	t     *testing.T
	vm    *lab.VM
	image lab.Image
	repo  *lab.Repo
	as    string // the repository's name of what the guest is, or passes for
}

func bootVM(t *testing.T, spec lab.Spec, boot lab.BootSpec) *vmGuest {
	t.Helper()
	vmTier(t)
	// Emulated guests mostly keep one processor busy each: two side by side take little longer than one.
	t.Parallel()
	// With an empty cache NVIDIA's modules are built first, while another guest has the second processor.
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Minute)
	defer cancel()
	image, err := lab.Build(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	as := cmp.Or(spec.As, "debian12")
	repo, err := lab.ServeRepo(ctx, lab.RepoSpec{Distros: []string{as}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { repo.Close() })
	boot.Dir = t.TempDir()
	vm, err := lab.Boot(ctx, image, boot)
	if err != nil {
		t.Fatal(err)
	}
	g := &vmGuest{t: t, vm: vm, image: image, repo: repo, as: as}
	t.Cleanup(func() {
		if t.Failed() {
			console := vm.Console()
			t.Logf("the guest's console ends:\n%s", console[max(0, len(console)-4000):])
		}
		vm.Close()
	})
	if err := vm.WaitSSH(ctx); err != nil {
		t.Fatal(err)
	}
	return g
}

// run runs one gpuguest command and returns its report and exit code.
func (g *vmGuest) run(command string, args ...string) (engine.Report, int) {
	g.t.Helper()
	return g.runUntil(g.t.Context(), nil, command, args...)
}

// runUntil runs a command and kills it, with no farewell, when stop says so of a line of its progress.
func (g *vmGuest) runUntil(ctx context.Context, stop func(line string) bool, command string, args ...string) (engine.Report, int) {
	g.t.Helper()
	bin, err := binary()
	if err != nil {
		g.t.Fatal(err)
	}
	all := append([]string{command, "--json", "--host", "root@127.0.0.1", "--port", strconv.Itoa(g.vm.Port),
		"-i", g.image.Keys.ClientKey, "--known-hosts", g.vm.KnownHosts, "--ssh-config", "none"}, args...)
	cmd := exec.CommandContext(ctx, bin, all...)
	var out strings.Builder
	cmd.Stdout = &out
	progress, err := cmd.StderrPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	var log strings.Builder
	buf := make([]byte, 4096)
	var pending string
	for {
		n, err := progress.Read(buf)
		log.Write(buf[:n])
		pending += string(buf[:n])
		for {
			line, rest, ok := strings.Cut(pending, "\n")
			if !ok {
				break
			}
			pending = rest
			if stop != nil && stop(line) {
				_ = cmd.Process.Signal(syscall.SIGKILL)
			}
		}
		if err != nil {
			if err != io.EOF {
				g.t.Logf("progress: %v", err)
			}
			break
		}
	}
	_ = cmd.Wait()
	g.t.Logf("gpuguest %s %s: exit %d\n%s", command, strings.Join(args, " "), cmd.ProcessState.ExitCode(), log.String())
	var report engine.Report
	if text := out.String(); text != "" {
		if err := json.Unmarshal([]byte(text), &report); err != nil {
			g.t.Logf("report: %v: %s", err, text)
		}
	}
	return report, cmd.ProcessState.ExitCode()
}

// mirror are the flags that make the stand-in repository NVIDIA's.
func (g *vmGuest) mirror() []string {
	return []string{"--mirror", g.repo.URL, "--keyring-sha256", g.repo.KeyringSHA256[g.as]}
}

// shell runs a command in the guest for an assertion.
func (g *vmGuest) shell(command string) string {
	g.t.Helper()
	// A package takes an emulated guest minutes.
	ctx, cancel := context.WithTimeout(g.t.Context(), 15*time.Minute)
	defer cancel()
	out, code, err := g.vm.Run(ctx, command)
	if err != nil {
		g.t.Fatalf("%s: %v", command, err)
	}
	if code != 0 {
		g.t.Fatalf("%s: exit %d: %s", command, code, out)
	}
	return out
}

// snapshot is what uninstall must bring back, as the guest's own tools tell it. The account databases are
// left out: Debian's packages leave the system user of a daemon behind when they are purged, on purpose. The units are
// read from their files, as the manager of a guest that is still starting may not answer.
func (g *vmGuest) snapshot() string {
	return g.shell(`dpkg-query -W -f='${binary:Package} ${Version} ${db:Status-Status}\n'
find /etc -type f ! -path '/etc/ld.so.cache' ! -name '*-' ! -path '/etc/ssl/*' ! -path '/etc/passwd' ! -path '/etc/group' ! -path '/etc/shadow' ! -path '/etc/gshadow' -exec sha256sum {} + | sort -k 2
tr ' ' '\n' </proc/cmdline | grep -v BOOT_IMAGE
grep -E '^[[:space:]]*linux[[:space:]]' /boot/grub/grub.cfg
lspci -nnk -d 10de:
systemctl --root=/ list-unit-files --no-legend --state=enabled | sort`)
}

func detail(r engine.Report, id string) string {
	for _, s := range r.Steps {
		if string(s.ID) == id {
			return s.Detail
		}
	}
	return ""
}

// TestVMInstallAndBack is the main job, whole, and the way back.
func TestVMInstallAndBack(t *testing.T) {
	g := bootVM(t, lab.Spec{}, lab.BootSpec{})
	if before := g.shell("lspci -nnk -d 10de:"); !strings.Contains(before, "Kernel driver in use: nouveau") {
		t.Fatalf("nouveau does not own the GPU before, so this test tests nothing:\n%s", before)
	}
	was := g.snapshot()
	g.expect("gpu-without-driver", true)
	g.sound("before the install", "gpu-without-driver")

	r, code := g.run("install", g.mirror()...)
	if code != exitDone || r.Reboots != 1 {
		t.Fatalf("install: exit %d, %d reboots, error %+v", code, r.Reboots, r.Error)
	}
	if after := g.shell("lspci -nnk -d 10de:"); !strings.Contains(after, "Kernel driver in use: nvidia") {
		t.Errorf("nvidia does not own the GPU after:\n%s", after)
	}
	if d := detail(r, "verify-smi"); !strings.Contains(d, "580.") || !strings.Contains(d, "Enabled") {
		t.Errorf("nvidia-smi said %q", d)
	}
	if d := detail(r, "verify-cuda"); !strings.Contains(d, "GPU 0 NVIDIA GeForce GTX 1050 Ti (0001:00:00.0): kernel ok, ") {
		t.Errorf("the CUDA probe said %q", d)
	}
	if made := g.shell("ls /var/lib/gpuguest"); !strings.Contains(made, "cuda-probe-") {
		t.Errorf("install left no probe: %s", made)
	}
	if overhead := r.Seconds - r.GuestTime; overhead > 0.03*r.Seconds {
		t.Logf("%.1f s of %.1f s were neither the guest's work nor its booting", overhead, r.Seconds)
	}

	r, code = g.run("install", g.mirror()...)
	if code != exitDone || r.Reboots != 0 || r.Execs > 3 || r.Connections != 1 {
		t.Errorf("second install: exit %d, %d reboots, %d execs over %d connections", code, r.Reboots, r.Execs, r.Connections)
	}
	for _, s := range r.Steps {
		if s.State != engine.Met {
			t.Errorf("second install: %s is %s: %s", s.ID, s.State, s.Detail)
		}
	}
	if _, code = g.run("verify"); code != exitDone {
		t.Errorf("verify: exit %d", code)
	}
	g.sound("with the driver")

	r, code = g.run("uninstall")
	if code != exitDone {
		t.Fatalf("uninstall: exit %d, error %+v", code, r.Error)
	}
	if left := g.shell("ls /var/lib/gpuguest"); strings.Contains(left, "cuda-probe") {
		t.Errorf("the probe is left: %s", left)
	}
	if is := g.snapshot(); is != was {
		t.Errorf("the guest is not what it was:\n%s", lineDiff(was, is))
	}
}

// TestVMPowerCut cuts the power in the package step and in the initramfs step, and kills the client in
// each; the same command then ends as an undisturbed run does.
func TestVMPowerCut(t *testing.T) {
	g := bootVM(t, lab.Spec{}, lab.BootSpec{})
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	var once sync.Once
	killAt := func(mark string) func(string) bool {
		return func(line string) bool { return strings.Contains(line, mark) }
	}
	g.runUntil(ctx, killAt("install nvidia-kernel-dkms"), "install", g.mirror()...)
	cutAt := func(mark string) {
		once = sync.Once{}
		g.runUntil(ctx, func(line string) bool {
			if !strings.Contains(line, mark) {
				return false
			}
			once.Do(func() {
				// Some way into the work, not at its first instruction.
				timer := time.NewTimer(3 * time.Second)
				defer timer.Stop()
				<-timer.C
				if err := g.vm.PowerCut(); err != nil {
					t.Error(err)
				}
			})
			return true
		}, "install", g.mirror()...)
		if err := g.vm.Start(); err != nil {
			t.Fatal(err)
		}
		if err := g.vm.WaitSSH(ctx); err != nil {
			t.Fatal(err)
		}
	}
	cutAt("install nvidia-kernel-dkms")
	g.runUntil(ctx, killAt("build /boot/initrd"), "install", g.mirror()...)
	cutAt("build /boot/initrd")
	r, code := g.run("install", g.mirror()...)
	if code != exitDone {
		t.Fatalf("install after the cuts: exit %d, error %+v", code, r.Error)
	}
	if after := g.shell("lspci -nnk -d 10de:"); !strings.Contains(after, "Kernel driver in use: nvidia") {
		t.Errorf("nvidia does not own the GPU after:\n%s", after)
	}
	if broken := g.shell("dpkg --audit"); broken != "" {
		t.Errorf("dpkg --audit: %s", broken)
	}
	if r, code = g.run("install", g.mirror()...); code != exitDone || r.Execs > 3 {
		t.Errorf("second install: exit %d, %d execs", code, r.Execs)
	}
}

// withRealDriver is a guest that has Debian's packages of NVIDIA's real driver from the start, which would take it a quarter
// of an hour to install; TestVMDiagnosis has gpuguest install them.
var withRealDriver = lab.Spec{RealDriver: true, Installed: []string{"linux-headers-amd64", "nvidia-kernel-dkms", "nvidia-smi", "libcuda1", "libnvidia-cfg1", "nvidia-persistenced", "libc6-dev"}}

// TestVMRealDriver lets NVIDIA's real nvidia.ko meet the pretend GPU, whose BAR1 gets a window only with
// pci=realloc. There is no silicon behind it, so no verification can pass; what must change is the reason.
func TestVMRealDriver(t *testing.T) {
	g := bootVM(t, withRealDriver, lab.BootSpec{Mode: lab.ModeNeedsRealloc})
	const bar = "BAR1 is 0M @ 0x0"
	// What it would do about that by itself is TestVMDiagnosis's to see.
	r, code := g.run("install", "--source", "distro", "--no-fix")
	if code != exitVerify || r.Error == nil || !strings.Contains(r.Error.Message, bar) {
		t.Errorf("install: exit %d, error %+v", code, r.Error)
	}
	r, code = g.run("verify")
	if code != exitVerify || r.Error == nil || !strings.Contains(r.Error.Message, bar) {
		t.Errorf("verify: exit %d, error %+v", code, r.Error)
	}
	r, code = g.run("install", "--source", "distro", "--no-fix", "--kernel-arg", "pci=realloc")
	if code != exitVerify || r.Error == nil || r.Reboots != 1 {
		t.Errorf("install with pci=realloc: exit %d, %d reboots, error %+v", code, r.Reboots, r.Error)
	}
	if cmdline := g.shell("cat /proc/cmdline"); !strings.Contains(cmdline, " pci=realloc") {
		t.Errorf("started with %s", cmdline)
	}
	if log := g.shell("dmesg"); strings.Contains(log, bar) {
		t.Errorf("the kernel log still has %q", bar)
	}
}

// lineDiff says which lines are only in one of two texts.
func lineDiff(a, b string) string {
	in := func(s string) map[string]bool {
		m := make(map[string]bool)
		for line := range strings.Lines(s) {
			m[line] = true
		}
		return m
	}
	inA, inB := in(a), in(b)
	var out strings.Builder
	for line := range strings.Lines(a) {
		if !inB[line] {
			out.WriteString("- " + line)
		}
	}
	for line := range strings.Lines(b) {
		if !inA[line] {
			out.WriteString("+ " + line)
		}
	}
	return out.String()
}
