package oven

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden holds text against a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs from its golden file (-update writes it anew):\n%s", name, got)
	}
}

func TestMachineIsThis(t *testing.T) {
	t.Parallel()
	bios := machine{
		accel: KVM, cpu: "max", memory: 4096, cpus: 4, disk: "/b/disk.qcow2", format: FormatQcow2, seed: "/s/seed.iso",
		credential: "/s/credential", port: 40022, consoleFD: 3,
	}
	uefi := machine{
		accel: TCG, cpu: "max", memory: 2048, cpus: 1, disk: "/b/with,comma/disk.raw", format: FormatRaw, seed: "/s,2/seed.iso",
		firmware: ovmf{code: "/usr/share/OVMF/OVMF_CODE_4M.fd", vars: "/s,2/vars.fd"}, port: 40023, consoleFD: 3,
		extra: []string{"-device", "vfio-pci,host=0000:41:00.0"},
	}
	for name, m := range map[string]machine{"machine-bios": bios, "machine-uefi": uefi} {
		var text strings.Builder
		for _, arg := range m.arguments() {
			if strings.HasPrefix(arg, "-") && text.Len() > 0 {
				text.WriteByte('\n')
			} else if text.Len() > 0 {
				text.WriteByte(' ')
			}
			text.WriteString(arg)
		}
		golden(t, name, text.String()+"\n")
	}
}
