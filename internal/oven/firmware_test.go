package oven

import (
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/diskfs/go-diskfs/partition/mbr"
)

func TestFirmwareIsGuessedFromThePartitionTable(t *testing.T) {
	t.Parallel()
	part := func(n uint64, kind gpt.Type) *gpt.Partition {
		return &gpt.Partition{Index: int(n), Start: 2048 * n, End: 2048*n + 2047, Type: kind, Name: "p"}
	}
	old := func(n uint32, kind mbr.Type, bootable bool) *mbr.Partition {
		return &mbr.Partition{Index: int(n), Start: 2048 * n, Size: 2048, Type: kind, Bootable: bootable}
	}
	for name, c := range map[string]struct {
		table partition.Table
		want  string
	}{
		"nothing":                    {nil, FirmwareBIOS},
		"GPT for UEFI":               {&gpt.Table{ProtectiveMBR: true, Partitions: []*gpt.Partition{part(1, gpt.LinuxFilesystem), part(2, gpt.EFISystemPartition)}}, FirmwareUEFI},
		"GPT for both, as Debian's":  {&gpt.Table{ProtectiveMBR: true, Partitions: []*gpt.Partition{part(1, gpt.LinuxFilesystem), part(2, gpt.BIOSBoot), part(3, gpt.EFISystemPartition)}}, FirmwareBIOS},
		"GPT for a BIOS":             {&gpt.Table{ProtectiveMBR: true, Partitions: []*gpt.Partition{part(1, gpt.BIOSBoot), part(2, gpt.LinuxFilesystem)}}, FirmwareBIOS},
		"MBR for a BIOS":             {&mbr.Table{Partitions: []*mbr.Partition{old(1, mbr.Linux, true)}}, FirmwareBIOS},
		"MBR for UEFI":               {&mbr.Table{Partitions: []*mbr.Partition{old(1, mbr.EFISystem, false), old(2, mbr.Linux, false)}}, FirmwareUEFI},
		"MBR for both":               {&mbr.Table{Partitions: []*mbr.Partition{old(1, mbr.EFISystem, false), old(2, mbr.Linux, true)}}, FirmwareBIOS},
		"MBR that boots an ESP only": {&mbr.Table{Partitions: []*mbr.Partition{old(1, mbr.EFISystem, true), old(2, mbr.Linux, false)}}, FirmwareUEFI},
	} {
		path := filepath.Join(t.TempDir(), "disk.raw")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		const size = 16 << 20
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if c.table != nil {
			if err := c.table.Write(f, size); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		// Only the head of a disk is looked at, where the second GPT is not.
		if err := f.Truncate(headSize); err != nil {
			t.Fatal(err)
		}
		if got := firmwareOf(file.New(f, true)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// debianOVMF is Debian 12's ovmf, /usr/share/qemu/firmware/60-edk2-x86_64.json, without its description and tags.
const debianOVMF = `{
    "interface-types": ["uefi"],
    "mapping": {
        "device": "flash",
        "executable": {"filename": "/usr/share/OVMF/OVMF_CODE_4M.fd", "format": "raw"},
        "nvram-template": {"filename": "/usr/share/OVMF/OVMF_VARS_4M.fd", "format": "raw"}
    },
    "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
    "features": ["acpi-s3", "amd-sev", "verbose-dynamic"]
}`

const secureOVMF = `{
    "interface-types": ["uefi"],
    "mapping": {
        "device": "flash",
        "executable": {"filename": "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "format": "raw"},
        "nvram-template": {"filename": "/usr/share/OVMF/OVMF_VARS_4M.ms.fd", "format": "raw"}
    },
    "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
    "features": ["acpi-s3", "enrolled-keys", "requires-smm", "secure-boot", "verbose-dynamic"]
}`

func TestUEFIFirmwareIsTheFirstThatFits(t *testing.T) {
	t.Parallel()
	const dir = "usr/share/qemu/firmware/"
	files := fstest.MapFS{
		dir + "40-secure.json":  {Data: []byte(secureOVMF)},
		dir + "45-broken.json":  {Data: []byte("{")},
		dir + "50-bios.json":    {Data: []byte(`{"interface-types": ["bios"], "mapping": {"device": "memory"}}`)},
		dir + "60-edk2.json":    {Data: []byte(debianOVMF)},
		dir + "README":          {Data: []byte("not json")},
		"etc/qemu/firmware/x.d": {Data: nil},
	}
	got, err := findOVMF(files)
	if want := (ovmf{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	// The administrator hides it.
	files["etc/qemu/firmware/60-edk2.json"] = &fstest.MapFile{}
	if got, err := findOVMF(files); err == nil {
		t.Errorf("%+v", got)
	}
	if _, err := findOVMF(fstest.MapFS{}); err == nil {
		t.Error("found in nothing")
	}
}
