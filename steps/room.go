package steps

import (
	"fmt"
	"path"
)

// needed is what must be free before an installation begins, in bytes. The figures for /usr, /var and /tmp
// are estimates with room to spare for compiler, headers, a DKMS build tree and downloaded packages; nobody
// has measured them. /boot must take a second initramfs with the GPU's firmware in it (pop-os/pop#3593
// reports 132 MiB more).
var needed = map[string]uint64{
	"/usr":  2 << 30,
	"/var":  1 << 30,
	"/boot": 160 << 20,
	"/tmp":  64 << 20,
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
			if driverMet(in) {
				return ""
			}
			for _, d := range in.Facts.Disks {
				if need := needed[path.Clean(d.Path)]; d.Free < need {
					return fmt.Sprintf("%s has %d MB free, the installation needs %d MB", d.Path, d.Free>>20, need>>20)
				}
			}
			return ""
		},
	})
}
