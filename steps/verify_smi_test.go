package steps

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
)

// smiGuest is a folder of programs that stand in for the guest's: nvidia-smi, which answers each question with the
// text and the exit code of a file and fails on any other question, and dmesg.
type smiGuest struct {
	t   *testing.T
	dir string
}

func newSMIGuest(t *testing.T) smiGuest {
	t.Helper()
	g := smiGuest{t, t.TempDir()}
	g.program("nvidia-smi", `case "$*" in
--query-gpu=pci.bus_id,*) q=rows ;;
"-q -x") q=xml ;;
--query-gpu=persistence_mode*) q=modes ;;
"-pm 1") q=pm ;;
-L) q=list ;;
*) echo "unplanned: nvidia-smi $*"; exit 99 ;;
esac
[ -e "$D/$q" ] || { echo "unplanned: nvidia-smi $*"; exit 99; }
cat "$D/$q"
exit "$(cat "$D/$q.exit")"`)
	g.program("dmesg", `echo "[    5.000000] NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."`)
	g.answers("xml", 255, "Internal NVML error\n")
	return g
}

func (g smiGuest) program(name, text string) {
	g.t.Helper()
	g.file(name, "#!/bin/sh\n"+text+"\n")
}

func (g smiGuest) file(name, text string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(text), 0o755); err != nil {
		g.t.Fatal(err)
	}
}

func (g smiGuest) answers(question string, code int, text string) {
	g.t.Helper()
	g.file(question, text)
	g.file(question+".exit", strconv.Itoa(code))
}

func (g smiGuest) env() []string {
	return []string{"D=" + g.dir, "PATH=" + g.dir + ":" + os.Getenv("PATH")}
}

// The words are those of facts that were seen with NVIDIA's real nvidia-smi 535.309.01 and 555.58.02 over a stand-in
// libnvidia-ml; all of it comes on standard output.
func TestEveryWayInWhichNvidiaSMIFailsIsTold(t *testing.T) {
	const rows = "00000000:01:00.0, Tesla T4, 580.95.05, Enabled, 31\n00000000:02:00.0, Tesla T4, 580.95.05, Enabled, 40\n"
	for _, c := range []struct {
		name string
		exit int
		out  string
		code int
		says []string
		not  string // what it must not say
	}{
		{"both GPUs work", 0, rows, 0, []string{"00000000:01:00.0, Tesla T4, 580.95.05, Enabled, 31 C", "00000000:02:00.0"}, WarningMark},
		{"no devices", 6, "No devices were found\n", 1, []string{"exit 6: No devices were found", "Xid (PCI:0000:01:00): 79"}, ""},
		{"no driver", 9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running.\n\n", 1, []string{"exit 9: NVIDIA-SMI has failed because"}, ""},
		{"no library", 12, "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the NVIDIA Display Driver is properly installed and present in your system.\nPlease also try adding directory that contains libnvidia-ml.so to your system PATH.\n", 1, []string{"exit 12: NVIDIA-SMI couldn't find libnvidia-ml.so"}, ""},
		{"GPU lost", 15, "Unable to determine the device handle for GPU0: GPU is lost.  Reboot the system to recover this GPU\n", 1, []string{"exit 15: ", "GPU is lost", "fallen off the bus"}, ""},
		{"library of another version", 18, "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.309\n", 1, []string{"exit 18: Failed to initialize NVML: Driver/library version mismatch"}, ""},
		{"unknown error", 255, "Failed to initialize NVML: Unknown Error\n", 1, []string{"exit 255: Failed to initialize NVML: Unknown Error"}, ""},
		// nvidia-smi -L ends so with no GPU at all, exit code 0 included.
		{"no GPU, and exit code 0", 0, "No devices found.\n", 1, []string{"nvidia-smi lists 0 of 2 GPUs"}, ""},
		{"a GPU is missing", 0, "00000000:01:00.0, Tesla T4, 580.95.05, Enabled, 31\n", 1, []string{"nvidia-smi lists 1 of 2 GPUs"}, ""},
		{"persistence off", 0, strings.Replace(rows, "Enabled, 40", "Disabled, 40", 1), 1, []string{"persistence mode is Disabled: 00000000:02:00.0"}, ""},
		{"no temperature", 0, strings.Replace(rows, ", 40", ", [N/A]", 1), 1, []string{"no temperature could be read: 00000000:02:00.0"}, ""},
		{"another driver", 0, strings.Replace(rows, "580.95.05, Enabled, 40", "570.86.15, Enabled, 40", 1), 1, []string{"nvidia-smi reports driver 570.86.15, planned is branch 580"}, ""},
		{"a name with a comma", 0, strings.ReplaceAll(rows, "Tesla T4", "Board, model 4"), 0, []string{"Board, model 4, 580.95.05, Enabled, 31 C"}, ""},
		{"a warning behind the rows", 0, rows + "WARNING: infoROM is corrupted at gpu 0000:01:00.0\n", 0, []string{"31 C", "40 C", WarningMark + "nvidia-smi: WARNING: infoROM is corrupted at gpu 0000:01:00.0"}, ""},
		{"a warning before the rows", 0, "WARNING: infoROM is corrupted at gpu 0000:01:00.0\n" + rows, 0, []string{"31 C", "40 C", WarningMark + "nvidia-smi: WARNING"}, ""},
		{"a warning with commas in place of a GPU", 0, "WARNING: one, two, 580.95.05, Enabled, 3\n00000000:01:00.0, Tesla T4, 580.95.05, Enabled, 31\n", 1, []string{"nvidia-smi lists 1 of 2 GPUs"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := newSMIGuest(t)
			g.answers("rows", c.exit, c.out)
			in := twoGPUs()
			in.Choice = choice.Choice{Branch: 580}
			code, text, _ := ask(t, find(t, "verify-smi").Check(in), g.env()...)
			if code != c.code {
				t.Errorf("exit %d, want %d", code, c.code)
			}
			for _, s := range c.says {
				if !strings.Contains(text, s) {
					t.Errorf("%q is not said:\n%s", s, text)
				}
			}
			if c.not != "" && strings.Contains(text, c.not) || strings.Contains(text, "unplanned") {
				t.Errorf("said:\n%s", text)
			}
		})
	}
}

// TestHungNvidiaSMIIsGivenUp: a process in the kernel that no signal ends is stood in for by a timeout that never
// comes back, which is what the real one does then.
func TestHungNvidiaSMIIsGivenUp(t *testing.T) {
	t.Parallel()
	g := newSMIGuest(t)
	timeout, err := exec.LookPath("timeout")
	if err != nil {
		t.Fatal(err)
	}
	g.program("timeout", `case $1 in -k) echo $$ >"$D/pid"; exec sleep 60 ;; esac
exec `+timeout+` "$@"`)
	in := twoGPUs()
	in.Choice = choice.Choice{Branch: 580}
	began := time.Now()
	code, text, _ := ask(t, strings.ReplaceAll(find(t, "verify-smi").Check(in), "limited 120 ", "limited 1 "), g.env()...)
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
	if code != 1 || !strings.Contains(text, "nvidia-smi did not end within") || !strings.Contains(text, "fallen off the bus") {
		t.Errorf("exit %d: %s", code, text)
	}
	raw, err := os.ReadFile(filepath.Join(g.dir, "pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid <= 0 {
		t.Fatalf("nothing was started: %q, %v", raw, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("it was waited for: %v", err)
	}
}

func TestPersistenceByNvidiaSMIIsAccepted(t *testing.T) {
	for _, c := range []struct {
		name, active, modes string
		code                int
		says                string
	}{
		{"the daemon runs", "active", "", 0, "nvidia-persistenced runs as"},
		{"it does not, and nothing keeps the mode on", "failed", "Disabled\nEnabled\n", 1, `nvidia-persistenced.service does not run`},
		{"it does not, and nvidia-smi turned the mode on", "failed", "Enabled\nEnabled\n", 0, WarningMark + "nvidia-persistenced.service does not run; persistence mode was turned on by nvidia-smi -pm"},
		{"nor does nvidia-smi work", "failed", "No devices were found\n", 1, "does not run"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := newSMIGuest(t)
			g.answers("modes", 0, c.modes)
			g.program("systemctl", `case $1 in
is-enabled) echo enabled ;;
is-active) echo `+c.active+` ;;
show) echo MainPID=0 ;;
status) echo "nvidia-persistenced: Failed to open libnvidia-cfg.so.1" ;;
*) echo "unplanned: systemctl $*"; exit 99 ;;
esac`)
			in := twoGPUs()
			in.Facts.Init = facts.Init{Name: "systemd"}
			in.Choice.Persistence.Unit = "nvidia-persistenced.service"
			code, text, _ := ask(t, find(t, "persistence").Check(in), g.env()...)
			if code != c.code || !strings.Contains(text, c.says) || strings.Contains(text, "unplanned") {
				t.Errorf("exit %d: %s", code, text)
			}
		})
	}
}
