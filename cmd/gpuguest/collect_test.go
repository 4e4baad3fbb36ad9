package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuguest/internal/bundle"
	"gpuguest/internal/diagnosis"
	"gpuguest/internal/guest/guesttest"
)

// inProcess is a pretend guest: a real SSH server whose commands run here, with a folder in place of the guest's
// files and scripts in place of its tools.
type inProcess struct {
	root  string
	shell *guesttest.Shell
	srv   *guesttest.Server
	flags []string
}

func newInProcess(t *testing.T) *inProcess {
	t.Helper()
	g := &inProcess{root: t.TempDir(), shell: guesttest.NewShell(t)}
	g.shell.Env = append(g.shell.Env, "GPUGUEST_ROOT="+g.root)
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "id"), pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	g.srv = guesttest.New(t, guesttest.Options{Exec: g.shell.Exec, Keys: []ssh.PublicKey{key}})
	g.flags = []string{"--host", "root@" + g.srv.Host(), "--port", strconv.Itoa(g.srv.Port()), "-i", filepath.Join(dir, "id"), "--known-hosts", filepath.Join(dir, "known"), "--ssh-config", "none"}
	return g
}

func (g *inProcess) write(t *testing.T, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(g.root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// command runs gpuguest with these arguments.
func command(t *testing.T, args ...string) (code int, out, progress string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, console{in: strings.NewReader(""), out: &o, err: &e})
	return code, o.String(), e.String()
}

// unpacked is what a bundle holds, by name.
func unpacked(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for archive := tar.NewReader(zip); ; {
		head, err := archive.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(head.Name, bundle.Folder+"/")] = string(data)
	}
}

// What a guest's logs and tools may tell and nobody else should know.
var secrets = []string{
	"build-farm-07", "hunter2", "alice", "0zQsubscription", "PlantedPrivateKeyBytes", "PlantedEntitlement", "plantedLicenceClaims",
	"0324018001234", "5741e91d-0000-4000-8000-1c8200010000", "8a4bd1c21a1c1e0f", "1821325191344", "52:54:00:12:34:56", "PlantedHostKeyPlantedHostKey",
	"plantedbearer01", "dave", "carol", "7c9e6679-7425-40de-944b-e07fc1f90ae7", "correcthorse", "4b7ac9d2-boot-4c11-8d0e-000000000001", "00-15-17-ff-ff-a8-b2-c1",
}

func TestBundleHoldsAllThatHelpsAndNoSecret(t *testing.T) {
	t.Parallel()
	g := newInProcess(t)
	g.write(t, map[string]string{
		"etc/os-release":                 "ID=debian\nVERSION_ID=\"12\"\n",
		"proc/sys/kernel/osrelease":      "6.1.0-37-amd64\n",
		"proc/sys/kernel/arch":           "x86_64\n",
		"proc/sys/kernel/hostname":       "build-farm-07\n",
		"proc/sys/kernel/random/boot_id": "7c9e6679-7425-40de-944b-e07fc1f90ae7\n",
		"proc/cmdline":                   "BOOT_IMAGE=/boot/vmlinuz root=UUID=7c9e6679-7425-40de-944b-e07fc1f90ae7 ro pci=realloc\n",
		"etc/default/grub":               "GRUB_CMDLINE_LINUX=\"quiet password=correcthorse\"\n",
		"etc/apt/sources.list":           "deb http://alice:hunter2@proxy.example/debian bookworm main\n",
		"etc/apt/sources.list.d/x.sources": "Types: deb\nURIs: https://bearer:0zQsubscription@esm.example/apps\nSuites: x\nSigned-By:\n" +
			" -----BEGIN PGP PUBLIC KEY BLOCK-----\n PlantedPrivateKeyBytes\n -----END PGP PUBLIC KEY BLOCK-----\n",
		"var/log/apt/term.log":                             "Log started: 2026-11-21  10:00:00\nE: Unable to locate package linux-headers-6.1.0-1-amd64\nLog ended: 2026-11-21  10:00:01\nLog started: 2026-11-22  10:00:00\nErr:1 http://alice:hunter2@proxy.example/debian\nAuthorization: Bearer plantedbearer01\nE: Unable to locate package nvidia-open-580\n",
		"var/log/apt/history.log":                          "Commandline: apt-get install nvidia-driver\nRequested-By: carol (1000)\n",
		"var/log/nvidia-installer.log":                     "/home/dave/NVIDIA.run\n-----BEGIN OPENSSH PRIVATE KEY-----\nPlantedPrivateKeyBytes\n-----END OPENSSH PRIVATE KEY-----\n",
		"var/log/dnf.log":                                  "entitlement:\n-----BEGIN ENTITLEMENT DATA-----\nPlantedEntitlement\n-----END ENTITLEMENT DATA-----\n",
		"var/lib/dkms/nvidia/580.95.05/build/make.log":     "build-farm-07: make: *** No rule to make target\n",
		"var/lib/gpuguest/journal":                         `{"time":"2026-11-22T10:00:00Z","boot":"7c9e6679-7425-40de-944b-e07fc1f90ae7","event":"end","step":"driver","driver":"580","flavor":"open"}` + "\n",
		"var/lib/gpuguest/jobs/driver-0123456789ab/1/log":  "token eyJhbGciOiJSUzI1NiJ9.plantedLicenceClaims.sig\nssh-ed25519 AAAAC3NzaC1lZDI1NTE5PlantedHostKeyPlantedHostKey root@vm\n",
		"var/lib/gpuguest/jobs/driver-0123456789ab/1/exit": "100\n",
		"proc/driver/nvidia/gpus/0000:0a:00.0/information": "Model: \t\t Tesla T4\nGPU UUID: \t GPU-5741e91d-0000-4000-8000-1c8200010000\n",
		"etc/modprobe.d/gpuguest-blocklist.conf":           "blacklist nouveau\n",
		"boot/vmlinuz-6.1.0-37-amd64":                      "kernel", "lib/modules/6.1.0-37-amd64/modules.dep": "\n",
		"sys/class/dmi/id/sys_vendor":                                   "QEMU\n",
		"etc/initramfs-tools/initramfs.conf":                            "MODULES=most\n",
		"var/lib/gpuguest/jobs/driver-0123456789ab/1/something-private": "never asked for\n",
	})
	g.shell.Tool("dmesg", `cat <<'E'
[    0.000000] Linux version 6.1.0-37-amd64 (debian-kernel@lists.debian.org) (gcc-12) #1 SMP
[    1.000000] e1000 0000:00:03.0 eth0: (PCI:33MHz:32-bit) 52:54:00:12:34:56
[    2.000000] systemd[1]: Hostname set to <build-farm-07>.
[   12.000000] NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:
[   12.000000] NVRM: BAR1 is 0M @ 0x0 (PCI:0000:0a:00.0)
E`)
	g.shell.Tool("nvidia-smi", `[ "${1:-}" = -q ] || { echo "No devices were found"; exit 6; }
cat <<'E'
    Serial Number                         : 0324018001234
    GPU UUID                              : GPU-5741e91d-0000-4000-8000-1c8200010000
    GPU PDI                               : 0x8a4bd1c21a1c1e0f
        Chassis Serial Number             : 1821325191344
    Product Name                          : Tesla T4
E`)
	g.shell.Tool("lspci", `echo '0a:00.0 3D controller [0302]: NVIDIA Corporation TU104GL [Tesla T4] [10de:1eb8]'; echo '	Capabilities: [148 v1] Device Serial Number 00-15-17-ff-ff-a8-b2-c1'`)
	for _, quiet := range []string{"journalctl", "systemctl", "lsmod", "modinfo", "dkms", "df", "free"} {
		g.shell.Tool(quiet, "exit 0")
	}
	file := filepath.Join(t.TempDir(), "vm.tar.gz")
	code, out, progress := command(t, append([]string{"collect", "-o", file}, g.flags...)...)
	if code != exitDone {
		t.Fatalf("exit %d: %s%s", code, out, progress)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if n := len(g.srv.Commands()); n > 4 || g.srv.Connections() != 1 {
		t.Errorf("%d commands over %d connections", n, g.srv.Connections())
	}
	all := unpacked(t, file)
	for name, text := range all {
		for _, s := range secrets {
			if strings.Contains(strings.ToLower(text), strings.ToLower(s)) {
				t.Errorf("%s tells %q:\n%s", name, s, text)
			}
		}
	}
	for name, want := range map[string]string{
		"facts.txt":                            "gpuguest-facts 1",
		"facts.json":                           `"host": "[host-1]"`,
		"plan.txt":                             "install the driver",
		"gpuguest/journal.jsonl":               `"step":"driver"`,
		"logs/kernel.log":                      "BAR1 is 0M @ 0x0 (PCI:0000:0a:00.0)",
		"logs/apt-term.log":                    "Unable to locate package nvidia-open-580",
		"logs/apt-term-before.txt":             "linux-headers-6.1.0-1-amd64",
		"logs/apt-history.txt":                 "Requested-By: [user-",
		"logs/dkms-make-1.log":                 "No rule to make target",
		"logs/nvidia-installer.log":            "a key or certificate was left out",
		"logs/last-job.log":                    "[secret-",
		"logs/jobs/driver-0123456789ab-1.txt":  "[secret-",
		"logs/jobs/driver-0123456789ab-1.exit": "100",
		"guest/nvidia-smi-q.txt":               "Product Name                          : Tesla T4",
		"guest/nvidia-smi.txt":                 "(exit 6)",
		"guest/lspci.txt":                      "[10de:1eb8]",
		"guest/modprobe.conf":                  "blacklist nouveau",
		"guest/proc-nvidia.txt":                "Model: \t\t Tesla T4",
		"guest/boot.conf":                      "pci=realloc",
		"verdicts.txt":                         "bar-zero",
		"verdicts.json":                        `"id": "bar-zero"`,
		bundle.ManifestName:                    `"masked"`,
	} {
		if text, ok := all[name]; !ok || !strings.Contains(text, want) {
			t.Errorf("%s: %q is not in it: %q", name, want, text)
		}
	}
	if !strings.Contains(out, "logs/kernel.log (") || !strings.Contains(out, "masked: ") {
		t.Errorf("it says %s", out)
	}
	// The masked recording is still one, and the bundle is read as the logs that it holds.
	facts := filepath.Join(t.TempDir(), "facts.txt")
	if err := os.WriteFile(facts, []byte(all["facts.txt"]), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, progress := command(t, "plan", "--facts", facts, "--no-gpu"); code != exitDone {
		t.Errorf("plan: exit %d: %s%s", code, out, progress)
	}
	code, out, _ = command(t, "diagnose", "--json", "--log", file)
	type verdict struct{ ID, Source string }
	var said struct{ Verdicts []verdict }
	if err := json.Unmarshal([]byte(out), &said); err != nil || code != exitVerify {
		t.Fatalf("exit %d, %v: %s", code, err, out)
	}
	if strings.Contains(out, "linux-headers-6.1.0-1-amd64") {
		t.Errorf("what an earlier run of apt failed at is taken for today's: %s", out)
	}
	for id, source := range map[string]string{"bar-zero": "logs/kernel.log", "apt-not-found": "logs/apt-term.log", "smi-no-devices": "guest/nvidia-smi.txt"} {
		if !slices.Contains(said.Verdicts, verdict{id, file + ":" + source}) {
			t.Errorf("no %s from %s: %s", id, source, out)
		}
	}
}

func TestBundleThatCannotBeWrittenLeavesNothing(t *testing.T) {
	t.Parallel()
	g := newInProcess(t)
	dir := filepath.Join(t.TempDir(), "nowhere")
	if code, _, progress := command(t, append([]string{"collect", "-o", filepath.Join(dir, "x.tar.gz")}, g.flags...)...); code == exitDone || progress == "" {
		t.Errorf("exit %d: %s", code, progress)
	}
	if code, _, progress := command(t, append([]string{"collect"}, g.flags...)...); code != exitUsage || !strings.Contains(progress, "-o is missing") {
		t.Errorf("exit %d: %s", code, progress)
	}
	if n := g.srv.Connections(); n != 1 {
		t.Errorf("%d connections: the flags are looked at before anybody is dialled", n)
	}
}

// With both arguments tried in vain, the same line of the log is the host's, and the lines to change come with it.
func TestVerdictOnTheHostComesWithTheLinesToChange(t *testing.T) {
	t.Parallel()
	g := newInProcess(t)
	trial := func(event, fix string) string {
		return `{"time":"2026-11-22T10:00:00Z","boot":"b","event":"` + event + `","remedy":"` + fix + `","cause":"bar-zero","with":"driver , kernel "}` + "\n"
	}
	g.shell.Tool("dmesg", "echo 'NVRM: BAR1 is 0M @ 0x0 (PCI:0000:0a:00.0)'")
	for _, quiet := range []string{"journalctl", "nvidia-smi"} {
		g.shell.Tool(quiet, "exit 0")
	}
	g.write(t, map[string]string{"var/lib/gpuguest/journal": "\n"})
	if code, out, _ := command(t, append([]string{"diagnose"}, g.flags...)...); code != exitVerify || !strings.Contains(out, "1. fatal, in the guest: ") || strings.Contains(out, "fw_cfg") {
		t.Errorf("before: exit %d: %s", code, out)
	}
	g.write(t, map[string]string{"var/lib/gpuguest/journal": trial("try", "kernel-arg pci=realloc") + trial("undone", "kernel-arg pci=realloc") + trial("back", "kernel-arg pci=realloc") +
		trial("try", "kernel-arg pci=realloc=off") + trial("undone", "kernel-arg pci=realloc=off")})
	// That no driver is bound follows from it, and is nothing to be mended either.
	g.write(t, map[string]string{"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.54.14": ""})
	g.gpu(t, "")
	code, out, _ := command(t, append([]string{"diagnose", "--fix"}, g.flags...)...)
	if code != exitVerify || !strings.Contains(out, "gpu-unbound") && !strings.Contains(out, "has no driver bound") || !strings.Contains(out, "1. fatal, on the host: ") || !strings.Contains(out, "name=opt/ovmf/X-PciMmio64Mb,string=") || !strings.Contains(out, "pci-hole64-size=") {
		t.Errorf("after: exit %d: %s", code, out)
	}
}

// What lies in the hardware or at the host is told, and nothing in the guest is touched for it.
func TestFixChangesNothingForWhatIsNotInTheGuest(t *testing.T) {
	t.Parallel()
	g := newInProcess(t)
	g.shell.Tool("dmesg", "echo 'NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.'")
	for _, quiet := range []string{"journalctl", "nvidia-smi"} {
		g.shell.Tool(quiet, "exit 0")
	}
	code, out, progress := command(t, append([]string{"diagnose", "--fix"}, g.flags...)...)
	if code != exitVerify || !strings.Contains(out, "in the hardware") || g.srv.Connections() != 1 {
		t.Errorf("exit %d over %d connections: %s%s", code, g.srv.Connections(), out, progress)
	}
	if left, err := os.ReadDir(filepath.Join(g.shell.Dir, "state")); err != nil || len(left) != 0 {
		t.Errorf("it left %v, %v", left, err)
	}
}

// A guest that failed once and is well now: what stands in the logs of earlier boots, runs and jobs is for a person to
// read, and is no verdict of today. The guest itself and its bundle are judged alike.
func TestBundleOfAGuestThatIsWellAgainHasNoVerdict(t *testing.T) {
	t.Parallel()
	g := wellGuest(t)
	g.shell.Tool("journalctl", `case "$*" in *" -b -1"*) echo "NVRM: BAR1 is 0M @ 0x0 (PCI:0000:0a:00.0)" ;; esac`)
	const job = "var/lib/gpuguest/jobs/"
	failed := "E: Sub-process /usr/bin/dpkg returned an error code (1)\n"
	g.write(t, map[string]string{
		"var/log/dnf.log":                                   recordedLog(t, "dnf-no-dkms.dnf.log") + recordedLog(t, "clean-dnf.log"),
		"var/log/zypper.log":                                recordedLog(t, "zypper-needs.zypper.log.gz") + recordedLog(t, "clean-zypper.log.gz"),
		"var/log/zypp/history":                              recordedLog(t, "zypper-disk-full.history.txt") + recordedLog(t, "clean-zypp-history.txt"),
		"var/log/apt/history.log":                           "Error: Sub-process /usr/bin/dpkg returned an error code (1)\n",
		"var/lib/dkms/nvidia/580/6.1.0/x86_64/log/make.log": "(bad exit status: 2)\n",
		job + "driver-0123456789ab/1/log":                   failed,
		job + "driver-0123456789ab/2/log":                   "gpuguest: already so\n",
	})
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(g.root, job+"driver-0123456789ab/1/log"), past, past); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "g.tar.gz")
	if code, out, progress := command(t, append([]string{"collect", "-o", file}, g.flags...)...); code != exitDone {
		t.Fatalf("exit %d: %s%s", code, out, progress)
	}
	all := unpacked(t, file)
	for name, want := range map[string]string{
		"logs/dnf.txt": "nothing provides dkms", "logs/kernel-of-the-boot-before.log": "BAR1 is 0M", "logs/jobs/driver-0123456789ab-1.txt": failed, "logs/dkms-built-1.txt": "bad exit",
	} {
		if !strings.Contains(all[name], want) {
			t.Errorf("%s: %q is not in it: %q", name, want, all[name])
		}
	}
	if got := all["verdicts.txt"]; strings.Contains(got, "(fatal") || strings.Contains(got, "(warn") || !strings.Contains(got, "in an earlier boot") {
		t.Errorf("the bundle's own verdicts: %s", got)
	}
	for _, of := range [][]string{{"--log", file}, g.flags} {
		if code, out, progress := command(t, append([]string{"diagnose"}, of...)...); code != exitDone || out != "nothing known is wrong\n" {
			t.Errorf("%q: exit %d: %s%s", of[0], code, out, progress)
		}
	}
}

// A program that hangs in the driver answers no signal. It is given up and named, and what the others said is judged.
func TestAHungProgramIsLeftBehind(t *testing.T) {
	t.Parallel()
	g := quietGuest(t)
	g.shell.Env = append(g.shell.Env, "GPUGUEST_LIMIT=1")
	g.shell.Tool("dmesg", "echo 'NVRM: Xid (PCI:0000:0a:00): 79, pid=1, GPU has fallen off the bus.'")
	g.shell.Tool("nvidia-smi", "trap '' TERM; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 0.5; done")
	code, out, progress := command(t, append([]string{"diagnose", "--json"}, g.flags...)...)
	var said struct {
		Verdicts []diagnosis.Verdict
		Unread   []string
	}
	if err := json.Unmarshal([]byte(out), &said); err != nil || code != exitVerify {
		t.Fatalf("exit %d, %v: %s%s", code, err, out, progress)
	}
	if len(said.Verdicts) == 0 || said.Verdicts[0].Where != diagnosis.Hardware || len(said.Unread) != 1 || !strings.HasPrefix(said.Unread[0], "nvidia-smi: given up after ") {
		t.Errorf("%s", out)
	}
	if !slices.ContainsFunc(said.Verdicts, func(v diagnosis.Verdict) bool { return v.ID == "smi-hung" }) {
		t.Errorf("that nvidia-smi hangs is no finding: %s", out)
	}
	file := filepath.Join(t.TempDir(), "g.tar.gz")
	if code, out, progress := command(t, append([]string{"collect", "-o", file}, g.flags...)...); code != exitDone {
		t.Fatalf("exit %d: %s%s", code, out, progress)
	}
	if all := unpacked(t, file); !strings.Contains(all["verdicts.txt"], "xid-79") || !strings.Contains(all["verdicts.txt"], "smi-hung") || !strings.Contains(all["guest/nvidia-smi.txt"], "did not answer within") {
		t.Errorf("%s%s", all["verdicts.txt"], all["guest/nvidia-smi.txt"])
	}
}
