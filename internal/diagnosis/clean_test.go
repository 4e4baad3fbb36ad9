package diagnosis

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A false alarm costs trust in every true one: the kernel logs of guests in which nothing is wrong, as they were
// recorded, and those that testdata/logs calls clean, must give no verdict above Info.
func TestCleanLogsGiveNoVerdict(t *testing.T) {
	recorded, err := filepath.Glob("../../testdata/diagnosis/clean/*.log")
	if err != nil || len(recorded) == 0 {
		t.Fatalf("%d recorded logs, %v", len(recorded), err)
	}
	files := recorded
	for _, row := range expected(t) {
		if row[1] == "-" {
			files = append(files, filepath.Join(logs, row[0]))
		}
	}
	for i, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if i < len(recorded) && (!strings.HasPrefix(string(text), "# recorded ") || strings.Count(string(text), "\n") < 100) {
			t.Errorf("%s: a recording says how it was made on its first line, and a boot is longer", name)
		}
		found, err := Read(filepath.Base(name), strings.NewReader(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range Rank(found) {
			if v.Severity != Info {
				t.Errorf("false alarm: %v", v)
			}
		}
		if v, ok := Cause(string(text)); ok {
			t.Errorf("%s: taken for a failure: %v", name, v)
		}
		// The same logs with one true line in them are no longer clean, so that the test can fail.
		if i < len(recorded) {
			if _, ok := Cause(string(text) + bar1); !ok {
				t.Errorf("%s hides a failure", name)
			}
		}
	}
}

// Lines of guests in which nothing of the driver is wrong, or that are no failure of the guest's disk or of its work.
func TestBenignLinesAreNoFailures(t *testing.T) {
	for _, line := range []string{
		"blk_update_request: I/O error, dev fd0, sector 0 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 0",
		"I/O error, dev sr0, sector 0 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2",
		"I/O error, dev loop3, sector 188408 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 0",
		"EXT4-fs (loop0): Remounting filesystem read-only",
	} {
		if found := read(t, line+"\n"); len(found) > 0 {
			t.Errorf("%s: %v", line, found)
		}
	}
	for line, id := range map[string]string{
		"I/O error, dev vda, sector 188408 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 0":     "disk-error",
		"blk_update_request: I/O error, dev nvme0n1, sector 8":                                      "disk-error",
		"EXT4-fs error (device dm-0): ext4_find_entry:1455: inode #2: comm bash: reading directory": "disk-error",
		"XFS (vda3): Log I/O Error Detected.  Shutting down filesystem":                             "disk-error",
		"Out of memory: Killed process 1843 (cc1) total-vm:402144kB":                                "out-of-memory",
		"Out of memory: Killed process 1843 (dpkg-deb) total-vm:402144kB":                           "out-of-memory",
	} {
		if top := Rank(read(t, line+"\n")); len(top) == 0 || top[0].ID != id || top[0].Severity != Fatal {
			t.Errorf("%s: %v", line, top)
		}
	}
	// Somebody's program may be killed in a guest whose driver is well.
	if top := Rank(read(t, "Out of memory: Killed process 2411 (python3) total-vm:30402144kB\n")); len(top) != 1 || top[0].ID != "oom-program" || top[0].Severity != Warn {
		t.Errorf("%v", top)
	}
}

// The first drivers with GSP firmware had one file of it, gsp.bin, for all GPUs.
func TestFirmwareOfAnyNameMayBeMissing(t *testing.T) {
	for _, name := range []string{"gsp.bin", "gsp_ga10x.bin", "gsp_tu10x.bin"} {
		if found := read(t, "nvidia 0000:01:00.0: Direct firmware load for nvidia/515.65.01/"+name+" failed with error -2\n"); len(found) != 1 || found[0].ID != "no-firmware" {
			t.Errorf("%s: %v", name, found)
		}
	}
}
