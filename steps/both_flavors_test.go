package steps

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/assets"
	"gpuguest/internal/catalog"
	"gpuguest/internal/choice"
)

// flavorTree is a guest's root with both sets of modules for its kernel, of which the open one is in place, and with
// devices: lines of "ADDRESS VENDOR DEVICE CLASS" as sysfs has them.
func flavorTree(t *testing.T, devices ...string) string {
	t.Helper()
	root := t.TempDir()
	files := map[string]string{
		"proc/sys/kernel/random/boot_id":                   "boot-1\n",
		"proc/sys/kernel/osrelease":                        "6.1.0-50-amd64\n",
		"etc/modprobe.d/gpuguest-flavor.conf":              flavorBlocklist,
		"usr/local/lib/gpuguest/flavors":                   flavorTableText(),
		"var/lib/gpuguest/flavor.due":                      "",
		"lib/modules/6.1.0-50-amd64/updates/dkms/other.ko": "another's",
		"sys/bus/pci/devices/empty/vendor":                 "0x8086\n",
	}
	for path, text := range map[string]string{"nvidia.ko": "core", "nvidia-uvm.ko": "uvm"} {
		files["lib/modules/6.1.0-50-amd64/updates/dkms/"+path] = "open " + text
		files["usr/local/lib/gpuguest/modules/6.1.0-50-amd64/open/updates/dkms/"+path] = "open " + text
		files["usr/local/lib/gpuguest/modules/6.1.0-50-amd64/proprietary/updates/dkms/"+path] = "proprietary " + text
	}
	// A module that the open flavor alone has.
	files["lib/modules/6.1.0-50-amd64/updates/dkms/nvidia-fs.ko"] = "open fs"
	files["usr/local/lib/gpuguest/modules/6.1.0-50-amd64/open/updates/dkms/nvidia-fs.ko"] = "open fs"
	for _, d := range devices {
		f := strings.Fields(d)
		for i, name := range []string{"vendor", "device", "class"} {
			files["sys/bus/pci/devices/"+f[0]+"/"+name] = "0x" + f[i+1] + "\n"
		}
	}
	for path, text := range files {
		at := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// pick runs assets/flavor.sh on a tree with a shell, with a depmod that leaves its words in the tree. It returns the exit
// status and what was said.
func pick(t *testing.T, shell []string, root string) (int, string) {
	t.Helper()
	bin := filepath.Join(root, "bin")
	script := filepath.Join(root, "flavor.sh")
	for path, text := range map[string]string{filepath.Join(bin, "depmod"): "#!/bin/sh\necho \"$@\" >>" + root + "/depmod\n", script: assets.Flavor} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(shell[0], append(shell[1:], script, choice.FlavorOpen)...)
	cmd.Env = append(os.Environ(), "GPUGUEST_ROOT="+root, "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState.ExitCode() < 0 {
		t.Fatalf("%v: %s", err, out)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func content(t *testing.T, root, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, path))
	if os.IsNotExist(err) {
		return "absent"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestFirstBootPicksTheFlavorByPCIID(t *testing.T) {
	t.Parallel()
	const modules = "lib/modules/6.1.0-50-amd64/updates/dkms/"
	for _, shell := range [][]string{{"dash"}, {"busybox", "sh"}, {"bash", "--posix"}} {
		if _, err := exec.LookPath(shell[0]); err != nil {
			t.Logf("%s is not here", shell[0])
			continue
		}
		for name, test := range map[string]struct {
			devices []string
			picked  string // "" none
			says    string
			exit    int
		}{
			"no GPU":            {nil, "", "no NVIDIA GPU in this machine", 0},
			"audio of a GPU":    {[]string{"0000:01:00.1 10de 0fb9 040300"}, "", "no NVIDIA GPU in this machine", 0},
			"Pascal":            {[]string{"0000:01:00.0 10de 1c82 030000", "0000:01:00.1 10de 0fb9 040300"}, "proprietary", "0000:01:00.0 (10de:1c82): proprietary", 0},
			"Blackwell":         {[]string{"0000:01:00.0 10de 2901 030200"}, "open", "(10de:2901): open", 0},
			"either":            {[]string{"0000:01:00.0 10de 1eb8 030200"}, "open", "(10de:1eb8): either", 0},
			"either and Pascal": {[]string{"0000:01:00.0 10de 1eb8 030200", "0000:02:00.0 10de 1c82 030000"}, "proprietary", "the proprietary modules are in place", 0},
			"two of one kind":   {[]string{"0000:01:00.0 10de 1c82 030000", "0000:02:00.0 10de 1c82 030000"}, "proprietary", "the proprietary modules are in place", 0},
			"unknown, older":    {[]string{"0000:01:00.0 10de 1dff 030000"}, "proprietary", "(10de:1dff): proprietary", 0},
			"unknown, newer":    {[]string{"0000:01:00.0 10de ff01 030000"}, "open", "(10de:ff01): open", 0},
			"an id like 1e10":   {[]string{"0000:01:00.0 10de 1e10 030000"}, "open", "(10de:1e10): either", 0},
			"Pascal, Blackwell": {[]string{"0000:01:00.0 10de 1c82 030000", "0000:02:00.0 10de 2901 030200"}, "", "no one flavor of the modules drives all GPUs", 1},
			"Blackwell, Pascal": {[]string{"0000:01:00.0 10de 2901 030200", "0000:02:00.0 10de 1c82 030000"}, "", "no one flavor of the modules drives all GPUs", 1},
			"somebody else's":   {[]string{"0000:01:00.0 1002 1c82 030000"}, "", "no NVIDIA GPU in this machine", 0},
		} {
			t.Run(shell[0]+" "+name, func(t *testing.T) {
				t.Parallel()
				root := flavorTree(t, test.devices...)
				for range 2 { // once more is the same
					exit, says := pick(t, shell, root)
					if exit != test.exit || !strings.Contains(says, test.says) {
						t.Fatalf("exit %d: %s", exit, says)
					}
					in := "open"
					if test.picked != "" {
						in = test.picked
					}
					fs := map[string]string{"open": "open fs", "proprietary": "absent"}[in]
					for path, want := range map[string]string{modules + "nvidia.ko": in + " core", modules + "nvidia-uvm.ko": in + " uvm", modules + "nvidia-fs.ko": fs, modules + "other.ko": "another's"} {
						if got := content(t, root, path); got != want {
							t.Errorf("%s is %q, want %q", path, got, want)
						}
					}
					due, blocked, told := "", flavorBlocklist, "absent"
					if test.picked != "" {
						due, blocked, told = "absent", "absent", test.picked+"\n"
					}
					for path, want := range map[string]string{"var/lib/gpuguest/flavor.due": due, "etc/modprobe.d/gpuguest-flavor.conf": blocked, "var/lib/gpuguest/flavor": told} {
						if got := content(t, root, path); got != want {
							t.Errorf("%s is %q, want %q", path, got, want)
						}
					}
					journal := "absent"
					if test.picked != "" {
						// The second run's record is cut off.
						journal, _, _ = strings.Cut(content(t, root, "var/lib/gpuguest/journal"), "\n")
						if !strings.HasSuffix(journal, `"boot":"boot-1","event":"picked","step":"both-flavors","flavor":"`+test.picked+`"}`) {
							t.Errorf("journal: %s", journal)
						}
					} else if got := content(t, root, "var/lib/gpuguest/journal"); got != journal {
						t.Errorf("journal: %s", got)
					}
					depmod := map[bool]string{true: "-b " + root + " 6.1.0-50-amd64\n", false: "absent"}[in == "proprietary"]
					// busybox takes its own depmod before the one of PATH.
					if got := content(t, root, "depmod"); got != depmod && shell[0] != "busybox" {
						t.Errorf("depmod was called with %q, want %q", got, depmod)
					}
				}
			})
		}
	}
}

// TestFirstBootOfAnotherKernelIsToldWhatItLacks: DKMS builds the packages' flavor for a later kernel, and the other one is
// not there.
func TestFirstBootOfAnotherKernelIsToldWhatItLacks(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		device, says string
		exit         int
	}{
		{"1c82", "the proprietary modules were built for 6.1.0-50-amd64 and this machine runs 6.1.0-51-amd64: gpuguest install --flavor proprietary", 1},
		{"2901", "the open modules are in place", 0},
	} {
		root := flavorTree(t, "0000:01:00.0 10de "+test.device+" 030000")
		if err := os.WriteFile(filepath.Join(root, "proc/sys/kernel/osrelease"), []byte("6.1.0-51-amd64\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		exit, says := pick(t, []string{"sh"}, root)
		if exit != test.exit || !strings.Contains(says, test.says) {
			t.Errorf("%s: exit %d: %s", test.device, exit, says)
		}
		if due := content(t, root, "var/lib/gpuguest/flavor.due"); (due == "absent") != (test.exit == 0) {
			t.Errorf("%s: the mark is %s", test.device, due)
		}
	}
}

// TestFlavorTableSaysWhatTheCatalogSays holds the ranges against every GPU of the tables.
func TestFlavorTableSaysWhatTheCatalogSays(t *testing.T) {
	t.Parallel()
	table := flavorTableText()
	find := func(id string) string {
		for line := range strings.Lines(table) {
			f := strings.Fields(line)
			if f[0] != "#" && f[0] <= id && id <= f[1] {
				return f[2]
			}
		}
		return ""
	}
	n := 0
	for g := range catalog.GPUs() {
		n++
		got := find(g.Device)
		if want := map[string]string{catalog.No: "proprietary", catalog.Required: "open", catalog.Yes: "either"}[g.Open]; got != want && !(g.Open == catalog.Yes && g.Proprietary == catalog.No && got == "open") {
			t.Errorf("%s %s: %s, want %s", g.Device, g.Name, got, want)
		}
	}
	if lines := strings.Count(table, "\n"); n < 1000 || lines > 40 {
		t.Errorf("%d GPUs in %d lines", n, lines)
	}
}
