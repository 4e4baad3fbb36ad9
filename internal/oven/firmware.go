package oven

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/diskfs/go-diskfs/partition/mbr"
)

// headSize is how much of a disk is looked at for its partition table, in bytes: a GPT takes 17 KiB.
const headSize = 1 << 20

// firmwareOfDisk says what firmware the disk's partition table is for. head is a file to be made.
func firmwareOfDisk(ctx context.Context, disk, format, head string) (string, error) {
	if _, err := qemuImg(ctx, "dd", "-f", format, "-O", "raw", fmt.Sprintf("bs=%d", headSize), "count=1", "if="+disk, "of="+head); err != nil {
		return "", err
	}
	f, err := file.OpenFromPath(head, true)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return firmwareOf(f), nil
}

// firmwareOf says what firmware a disk's first part is for. An EFI system partition and nothing for a BIOS to start
// from is UEFI; an image for both starts faster with a BIOS. A disk without a partition table is left to the BIOS,
// which may find a boot record, or says that there is nothing.
func firmwareOf(head backend.File) string {
	const sector = 512
	table, err := partition.Read(head, sector, sector)
	if err != nil {
		return FirmwareBIOS
	}
	esp, bios := false, false
	switch t := table.(type) {
	case *gpt.Table:
		for _, p := range t.Partitions {
			esp = esp || p != nil && p.Type == gpt.EFISystemPartition
			bios = bios || p != nil && p.Type == gpt.BIOSBoot
		}
	case *mbr.Table:
		for _, p := range t.Partitions {
			esp = esp || p != nil && p.Type == mbr.EFISystem
			bios = bios || p != nil && p.Bootable && p.Type != mbr.EFISystem
		}
	}
	if esp && !bios {
		return FirmwareUEFI
	}
	return FirmwareBIOS
}

// ovmf is a UEFI firmware: its code and the variables that a machine starts with.
type ovmf struct{ code, vars string }

// descriptor is a firmware as QEMU's docs/interop/firmware.json describes it; the part that counts here.
type descriptor struct {
	InterfaceTypes []string `json:"interface-types"`
	Mapping        struct {
		Device     string `json:"device"`
		Mode       string `json:"mode"` // since QEMU 7; "" before, which is split
		Executable struct {
			Filename, Format string
		} `json:"executable"`
		NVRAM struct {
			Filename, Format string
		} `json:"nvram-template"`
	} `json:"mapping"`
	Targets []struct {
		Architecture string   `json:"architecture"`
		Machines     []string `json:"machines"`
	} `json:"targets"`
	Features []string `json:"features"`
}

// findOVMF reads the descriptions of firmwares that QEMU's packages leave in a file system, the whole of which root
// is. The administrator's hide the distribution's of the same name, and names give the order (docs/interop/firmware.json
// of QEMU). One that enforces Secure Boot, or needs SMM for it, is left out: a device under test may be anything.
func findOVMF(root fs.FS) (ovmf, error) {
	named := make(map[string]string)
	for _, dir := range []string{"usr/share/qemu/firmware", "etc/qemu/firmware"} {
		entries, err := fs.ReadDir(root, dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return ovmf{}, err
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".json") {
				named[e.Name()] = path.Join(dir, e.Name())
			}
		}
	}
	names := make([]string, 0, len(named))
	for name := range named {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		raw, err := fs.ReadFile(root, named[name])
		if err != nil {
			return ovmf{}, err
		}
		var d descriptor
		// An empty file hides one of the same name; what cannot be read is somebody else's to put right.
		if json.Unmarshal(raw, &d) == nil && d.fits() {
			return ovmf{code: d.Mapping.Executable.Filename, vars: d.Mapping.NVRAM.Filename}, nil
		}
	}
	return ovmf{}, errors.New("no UEFI firmware for x86_64 in /usr/share/qemu/firmware (Debian's package ovmf)")
}

func (d descriptor) fits() bool {
	target := false
	for _, t := range d.Targets {
		for _, m := range t.Machines {
			ok, err := path.Match(m, "pc-q35-0")
			target = target || t.Architecture == "x86_64" && err == nil && ok
		}
	}
	m := d.Mapping
	return target && slices.Contains(d.InterfaceTypes, "uefi") &&
		!slices.Contains(d.Features, "requires-smm") && !slices.Contains(d.Features, "enrolled-keys") &&
		!slices.Contains(d.Features, "secure-boot") &&
		m.Device == "flash" && (m.Mode == "" || m.Mode == "split") &&
		filepath.IsAbs(m.Executable.Filename) && m.Executable.Format == FormatRaw &&
		filepath.IsAbs(m.NVRAM.Filename) && m.NVRAM.Format == FormatRaw
}
