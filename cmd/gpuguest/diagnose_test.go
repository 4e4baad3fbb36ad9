package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/diagnosis"
)

// recordedLog is a log of testdata/logs as text.
func recordedLog(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../testdata/logs", name))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(name, ".gz") {
		zip, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if data, err = io.ReadAll(zip); err != nil {
			t.Fatal(err)
		}
	}
	return string(data)
}

// diagnosed are the ids that diagnose finds in the pretend guest, over SSH.
func (g *inProcess) diagnosed(t *testing.T) []string {
	t.Helper()
	code, out, progress := command(t, append([]string{"diagnose", "--json"}, g.flags...)...)
	var said struct{ Verdicts []diagnosis.Verdict }
	if err := json.Unmarshal([]byte(out), &said); err != nil {
		t.Fatalf("%v: exit %d: %s%s", err, code, out, progress)
	}
	ids := []string{}
	for _, v := range said.Verdicts {
		if v.Severity != diagnosis.Info {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// quietGuest is a pretend guest whose kernel and tools have nothing to tell.
func quietGuest(t *testing.T) *inProcess {
	t.Helper()
	g := newInProcess(t)
	for _, quiet := range []string{"dmesg", "journalctl", "nvidia-smi"} {
		g.shell.Tool(quiet, "exit 0")
	}
	return g
}

// A package manager's log keeps every run. What counts is the last that was to change something: an earlier failure
// may be put right, and a question or a timer's run that came after says nothing of it.
func TestThePackageManagersLastRunIsReadOverSSH(t *testing.T) {
	t.Parallel()
	dnf, good := recordedLog(t, "dnf-no-dkms.dnf.log"), recordedLog(t, "clean-dnf.log")
	asked := strings.ReplaceAll(strings.ReplaceAll(recordedLog(t, "clean-dnf.log"), " install ", " repoquery "), "Base command: install", "Base command: repoquery")
	const dnf5 = `2026-11-22T21:14:02+0000 [2210] INFO --- DNF5 launched with arguments: "dnf -y install kmod-nvidia-open-dkms" ---
2026-11-22T21:14:03+0000 [2210] ERROR Problem: nothing provides dkms needed by kmod-nvidia-open-dkms-3:595.71.05-1.fc43.noarch from cuda-fedora43-x86_64
`
	const dnf5Good = `2026-11-22T21:15:02+0000 [2311] INFO --- DNF5 launched with arguments: "dnf -y install kmod-nvidia-open-dkms" ---
2026-11-22T21:15:03+0000 [2311] INFO DNF5 finished
`
	history, historyGood := recordedLog(t, "zypper-disk-full.history.txt"), recordedLog(t, "clean-zypp-history.txt")
	zypper, zypperGood := recordedLog(t, "zypper-needs.zypper.log.gz"), recordedLog(t, "clean-zypper.log.gz")
	noEPEL := []string{"dnf-dkms", "rpm-nothing-provides", "rpm-unresolved"}
	for _, c := range []struct {
		name, file, log string
		want            []string
	}{
		{"dnf failed", "dnf.log", dnf, noEPEL},
		{"dnf failed after it had been well", "dnf.log", good + dnf, noEPEL},
		{"dnf failed and was asked something since", "dnf.log", dnf + asked, noEPEL},
		{"dnf failed and was well since", "dnf.log", dnf + good, nil},
		{"dnf was only asked", "dnf.log", asked, nil},
		{"a script failed", "dnf.rpm.log", recordedLog(t, "dnf-post-script.rpm.log"), []string{"dkms-bad-return", "rpm-scriptlet-warned"}},
		{"dnf 5 failed", "dnf5.log", dnf5, []string{"dnf-dkms", "rpm-nothing-provides"}},
		{"dnf 5 failed and was well since", "dnf5.log", dnf5 + dnf5Good, nil},
		{"zypper failed", "zypper.log", zypperGood + zypper, []string{"rpm-nothing-provides"}},
		{"zypper failed and was well since", "zypper.log", zypper + zypperGood, nil},
		{"zypper installed on a full disk", "zypp/history", historyGood + history, []string{"rpm-no-space"}},
		{"and was well since", "zypp/history", history + historyGood, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := quietGuest(t)
			g.write(t, map[string]string{"var/log/" + c.file: c.log})
			if got := g.diagnosed(t); !slices.Equal(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

// TestEachStoryIsDiagnosedOverSSH: what a guest's kernel and nvidia-smi say of each way in which a driver is not there,
// what comes first of it, where it is put right, and what gpuguest can do.
func TestEachStoryIsDiagnosedOverSSH(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, kernel, smi, file string // logs of testdata/logs; file: as /var/log/nvidia-installer.log
		id, where, fix          string
	}{
		{"nouveau holds the GPU", "nouveau-holds-gpu.dmesg.txt", "", "", "nouveau-holds", diagnosis.Guest, "step blocklist"},
		{"nova holds the GPU", "nova-holds-gpu.dmesg.txt", "", "", "nouveau-holds", diagnosis.Guest, "step blocklist"},
		{"open modules on a GPU without GSP", "open-on-volta.dmesg.txt", "", "", "not-supported-open", diagnosis.User, "flavor proprietary"},
		{"proprietary modules on Blackwell", "proprietary-on-blackwell.dmesg.txt", "", "", "requires-open", diagnosis.User, "flavor open"},
		{"a GPU that is too old for the driver", "legacy-gpu.dmesg.txt", "", "", "legacy-gpu", diagnosis.User, ""},
		{"a GPU that is too new for the driver", "too-new-gpu.dmesg.txt", "", "", "not-supported-release", diagnosis.User, ""},
		{"headers gone", "", "", "installer-no-headers.log", "ni-ksrc", diagnosis.Guest, "step headers"},
		{"a module for another kernel", "module-other-kernel.txt", "", "", "vermagic", diagnosis.Guest, "step module"},
		{"the kernel moved and the module did not", "", "smi-no-driver.txt", "", "module-not-found", diagnosis.Guest, "step module"},
		{"upgraded and not booted since", "api-mismatch.dmesg.txt", "smi-mismatch.txt", "", "api-mismatch", diagnosis.Guest, "reboot"},
		{"HMM", "hmm-error-3.txt", "", "", "uvm-hmm", diagnosis.Guest, "module-option nvidia_uvm uvm_disable_hmm=1"},
		{"no GSP firmware in the initramfs", "gsp-firmware-missing.dmesg.txt", "", "", "no-firmware", diagnosis.Guest, "step driver"},
		{"the fabric manager of another driver", "fabric-manager.txt", "", "", "fm-version", diagnosis.Guest, "step fabric-manager"},
		{"an empty PCI window", "bar1-empty.dmesg.txt", "", "", "bar-zero", diagnosis.Guest, "kernel-arg pci=realloc"},
		{"an empty PCI window with pci=realloc", "bar1-empty-realloc.dmesg.txt", "", "", "bar-zero", diagnosis.Guest, "kernel-arg pci=realloc=off"},
		{"an empty PCI window whatever is tried", "bar1-empty-realloc-off.dmesg.txt", "", "", "bar-zero", diagnosis.Host, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := quietGuest(t)
			says := func(tool, log string) {
				if log != "" {
					file := filepath.Join(t.TempDir(), "log")
					if err := os.WriteFile(file, []byte(recordedLog(t, log)), 0o644); err != nil {
						t.Fatal(err)
					}
					g.shell.Tool(tool, "cat "+file)
				}
			}
			says("dmesg", c.kernel)
			says("nvidia-smi", c.smi)
			if c.file != "" {
				g.write(t, map[string]string{"var/log/nvidia-installer.log": recordedLog(t, c.file)})
			}
			code, out, progress := command(t, append([]string{"diagnose", "--json"}, g.flags...)...)
			var said struct{ Verdicts []diagnosis.Verdict }
			if err := json.Unmarshal([]byte(out), &said); err != nil || len(said.Verdicts) == 0 {
				t.Fatalf("%v: exit %d: %s%s", err, code, out, progress)
			}
			if v := said.Verdicts[0]; code != exitVerify || v.ID != c.id || v.Where != c.where || v.Fix != c.fix {
				t.Errorf("exit %d, %s in %s, fix %q: %v", code, v.ID, v.Where, v.Fix, v)
			}
		})
	}
}

// What the kernel said to a step in an earlier boot stays in that step's log for ever: once the guest has booted, it
// is past.
func TestTheLastJobOfAnEarlierBootIsPast(t *testing.T) {
	t.Parallel()
	const job = "var/lib/gpuguest/jobs/module-0123456789ab/1/"
	other := "nvidia: version magic '6.1.0-50-amd64 SMP preempt mod_unload modversions ' should be '6.1.0-56-amd64 SMP preempt mod_unload modversions '\n"
	for boot, want := range map[string][]string{"": {"vermagic"}, "11111111-2222-3333-4444-555555555555\n": {}} {
		g := quietGuest(t)
		files := map[string]string{job + "log": other}
		if boot != "" {
			files[job+"boot"] = boot
		}
		g.write(t, files)
		if got := g.diagnosed(t); !slices.Equal(got, want) {
			t.Errorf("boot %q: %v, want %v", boot, got, want)
		}
	}
}

// The fabric manager appends to its own log for ever. What counts is what it said since the guest was started.
func TestTheFabricManagersLogIsReadFromThisBootOn(t *testing.T) {
	t.Parallel()
	const mismatch = "[ERROR] [tid 7] fabric manager NVIDIA GPU driver interface version 535.161.08 don't match with driver version 535.183.01.\n"
	stat := "cpu 1 2 3\nbtime " + strconv.FormatInt(time.Date(2026, 11, 22, 12, 0, 0, 0, time.Local).Unix(), 10) + "\n"
	for _, c := range []struct {
		name, log, stat string
		want            []string
	}{
		{"of an earlier boot", "[Nov 22 2026 11:59:59] " + mismatch + "a line without a time\n", stat, nil},
		{"of last year", "[Dec 31 2025 23:59:59] " + mismatch, stat, nil},
		{"of this boot", "[Nov 22 2026 11:59:59] [INFO] started\n[Nov 22 2026 12:00:09] " + mismatch, stat, []string{"fm-version"}},
		{"nobody knows when the guest was started", "[Nov 22 2026 11:59:59] " + mismatch, "", []string{"fm-version"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := quietGuest(t)
			g.write(t, map[string]string{"var/log/fabricmanager.log": c.log, "proc/stat": c.stat})
			if got := g.diagnosed(t); !slices.Equal(got, c.want) && len(got)+len(c.want) > 0 {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

// wellGuest is a quiet guest with a GPU that NVIDIA's driver drives, and a CUDA probe that passes.
func wellGuest(t *testing.T) *inProcess {
	t.Helper()
	g := quietGuest(t)
	g.write(t, map[string]string{
		"etc/os-release":             "ID=debian\nVERSION_ID=\"12\"\n",
		"proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n",
		"proc/sys/kernel/arch":       "x86_64\n",
	})
	g.gpu(t, "nvidia")
	g.probe(t, `{"tool":"probe","format":1,"result":"pass","count":1,"expected":1}`, 0)
	return g
}

// gpu gives the guest a GPU that a driver is bound to, "" none.
func (g *inProcess) gpu(t *testing.T, driver string) {
	t.Helper()
	const dir = "sys/bus/pci/devices/0000:0a:00.0/"
	g.write(t, map[string]string{
		dir + "vendor": "0x10de\n", dir + "device": "0x1eb8\n", dir + "subsystem_vendor": "0x10de\n", dir + "subsystem_device": "0x12a2\n", dir + "class": "0x030200\n",
	})
	link := filepath.Join(g.root, dir, "driver")
	_ = os.Remove(link)
	if driver == "" {
		return
	}
	if err := os.MkdirAll(filepath.Join(g.root, "sys/bus/pci/drivers", driver), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../drivers/"+driver, link); err != nil {
		t.Fatal(err)
	}
}

// probe has the guest's compiler make a CUDA probe that says this.
func (g *inProcess) probe(t *testing.T, said string, code int) {
	t.Helper()
	g.shell.Tool("cc", "cat >\"$3\" <<'E'\n#!/bin/sh\necho '"+said+"'\nexit "+strconv.Itoa(code)+"\nE\nchmod +x \"$3\"\n")
}

// A guest's logs may tell of nothing while there is no GPU in it, or no driver, or CUDA is dead.
func TestWhatAGuestIsHasVerdictsToo(t *testing.T) {
	t.Parallel()
	const version = "proc/driver/nvidia/version"
	failed := func(failures string) string {
		return `{"tool":"probe","format":1,"result":"fail","count":1,"expected":1,"failures":[` + failures + `]}`
	}
	for _, c := range []struct {
		name           string
		make           func(*testing.T, *inProcess)
		exit           int
		id, where, fix string // of the first; "" none
	}{
		{"it is well", func(*testing.T, *inProcess) {}, exitDone, "", "", ""},
		{"no GPU", func(t *testing.T, g *inProcess) {
			if err := os.RemoveAll(filepath.Join(g.root, "sys/bus/pci/devices/0000:0a:00.0")); err != nil {
				t.Fatal(err)
			}
		}, exitVerify, "no-gpu", diagnosis.Host, ""},
		{"no driver", func(t *testing.T, g *inProcess) {
			g.gpu(t, "nouveau")
			if err := os.Remove(filepath.Join(g.root, version)); err != nil {
				t.Fatal(err)
			}
		}, exitVerify, "gpu-without-driver", diagnosis.Guest, "step driver"},
		{"nouveau holds the GPU", func(t *testing.T, g *inProcess) { g.gpu(t, "nouveau") }, exitVerify, "nouveau-holds", diagnosis.Guest, "step blocklist"},
		{"vfio-pci holds the GPU", func(t *testing.T, g *inProcess) { g.gpu(t, "vfio-pci") }, exitVerify, "already-bound", diagnosis.Guest, ""},
		{"nobody drives the GPU", func(t *testing.T, g *inProcess) { g.gpu(t, "") }, exitVerify, "gpu-unbound", diagnosis.Guest, "step module"},
		{"the libraries are of another version", func(t *testing.T, g *inProcess) {
			g.write(t, map[string]string{"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.550.54.14": ""})
		}, exitVerify, "loaded-mismatch", diagnosis.Guest, "reboot"},
		{"CUDA does not start", func(t *testing.T, g *inProcess) {
			g.probe(t, failed(`{"kind":"init","code":3,"what":"cuInit returned 3 (CUDA_ERROR_NOT_INITIALIZED)"}`), 1)
		}, exitVerify, "cuda-3", diagnosis.Guest, "module-option nvidia_uvm uvm_disable_hmm=1"},
		{"CUDA misses a GPU", func(t *testing.T, g *inProcess) {
			g.probe(t, failed(`{"kind":"count","what":"CUDA sees 0 GPUs, the guest has 1"}`), 1)
		}, exitVerify, "cuda-dead", diagnosis.Guest, ""},
		{"a GPU computes wrong", func(t *testing.T, g *inProcess) {
			g.probe(t, failed(`{"kind":"kernel-result","pci":"0000:0a:00.0","what":"element 7 is 3 and must be 4"}`), 1)
		}, exitVerify, "cuda-wrong", diagnosis.Hardware, ""},
		{"a slow link", func(t *testing.T, g *inProcess) {
			g.probe(t, failed(`{"kind":"link-bandwidth","pci":"0000:0a:00.0","what":"pinned copies to the GPU reach 1.20 GB/s"}`), 1)
		}, exitDone, "cuda-slow-link", diagnosis.Host, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := wellGuest(t)
			c.make(t, g)
			code, out, progress := command(t, append([]string{"diagnose", "--json"}, g.flags...)...)
			var said struct {
				Verdicts []diagnosis.Verdict
				Unread   []string
			}
			if err := json.Unmarshal([]byte(out), &said); err != nil {
				t.Fatalf("%v: exit %d: %s%s", err, code, out, progress)
			}
			var first diagnosis.Verdict
			if len(said.Verdicts) > 0 {
				first = said.Verdicts[0]
			}
			if code != c.exit || first.ID != c.id || first.Where != c.where || first.Fix != c.fix || len(said.Unread) > 0 {
				t.Errorf("exit %d: %s", code, out)
			}
		})
	}
}
