package steps

import (
	"fmt"
	"path"
	"slices"

	"gpuguest/internal/catalog"
)

// needed is what must be free before an installation begins, in bytes. Measured in stock container guests whose DKMS
// built Debian's own driver (TestRealDriver), the most that was written at once below each directory, in MiB:
//
//	                        /usr  /var  together  afterwards /usr  /var
//	Debian 11, 470.256.02    407   614      1026              407   336
//	Debian 12, 535.309.01    525   816      1274              524   405
//	Debian 13, 550.163.01    580   952      1495              579   424
//
// /usr is compiler, headers, sources and the driver's libraries, /var is package lists, downloaded packages and the
// tree that DKMS builds in. What is asked for /usr is enough for all of it where a guest has one file system, and
// allows for NVIDIA's packages of later branches, which have more libraries and were not measured. /boot must take a
// second initramfs with the GPU's firmware in it (pop-os/pop#3593 reports 132 MiB more). /tmp is an estimate.
var needed = map[string]uint64{
	"/usr":  2 << 30,
	"/var":  1100 << 20,
	"/boot": 160 << 20,
	"/tmp":  64 << 20,
}

// extra is what installers and toolkits need besides, in bytes. A driver's .run has 400 MB and 1.2 GB unpacked; a
// toolkit of 2024 or 2025 has 5 GB, its installer as much, and as much again while it unpacks; those of before 11
// have less than half. All are estimates.
func extra(in Input, dir string) uint64 {
	bundle := uint64(0)
	if dir == "/var" {
		// The archive, and what is unpacked.
		bundle = 2 * uint64(in.Want.Bundle.Size)
	}
	return bundle + extraInstallers(in, dir)
}

func extraInstallers(in Input, dir string) uint64 {
	k := in.Choice.CUDA
	size := uint64(5 << 30)
	if catalog.CompareVersions(k.Version, "11") < 0 {
		size = 2 << 30
	}
	there := k.Version == "" || slices.Contains(in.Facts.CUDA, k.Series)
	switch {
	case dir == "/usr" && !there:
		return size
	case dir == "/var" && k.Installer.Version != "" && !there:
		return 2 * size
	case dir == "/var" && !there:
		return size
	case dir == "/var" && byRunfile(in):
		return 1200 << 20
	}
	return 0
}

func init() {
	register(Step{
		ID:    "room",
		Title: "see that the guest has room and can be written to",
		Refuse: func(in Input) string {
			for _, d := range in.Facts.Disks {
				if d.ReadOnly && d.Path != "/tmp" {
					return fmt.Sprintf("%s is mounted read-only", d.Path)
				}
			}
			toolkitMet := in.Choice.CUDA.Version == "" || slices.Contains(in.Facts.CUDA, in.Choice.CUDA.Series)
			if driverMet(in) && toolkitMet {
				return ""
			}
			for _, d := range in.Facts.Disks {
				if need := needed[path.Clean(d.Path)] + extra(in, path.Clean(d.Path)); d.Free < need {
					return fmt.Sprintf("%s has %d MB free, the installation needs %d MB", d.Path, d.Free>>20, need>>20)
				}
			}
			return ""
		},
	})
}
