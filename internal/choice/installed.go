package choice

import (
	"fmt"
	"path"
	"strings"

	"gpuguest/distros"
	"gpuguest/internal/catalog"
	"gpuguest/internal/facts"
)

// What modinfo says of the license of a module of each flavor (NVIDIA/open-gpu-kernel-modules,
// kernel-open/nvidia/nv.c; the proprietary package's nv.c).
const (
	LicenseOpen        = "Dual MIT/GPL"
	LicenseProprietary = "NVIDIA"
)

// Installed returns a choice that describes the driver that is in the guest, so that it can be verified
// without anything being chosen. What w says is what it must be; what w leaves open is taken from the
// module that the next kernel would load. It fails when the guest has no NVIDIA module at all.
func Installed(f facts.Facts, w Want) (Choice, error) {
	m := f.Driver.Next
	if m.Version == "" {
		m = f.Driver.Running
	}
	c := Choice{
		Source: w.Source, Flavor: w.Flavor, Modules: w.Modules,
		Module: moduleName(m.Path), License: m.License,
		Persistence: distros.Persistence{Unit: "nvidia-persistenced.service"},
	}
	version := m.Version
	if version == "" {
		version = f.Driver.Loaded
	}
	if w.Driver != "" {
		version = w.Driver
	}
	if version == "" {
		return Choice{}, &Refusal{What: "verify", Reason: "the guest has no NVIDIA driver", Nearest: "gpuguest install"}
	}
	branch, err := catalog.BranchOf(version)
	if err != nil {
		return Choice{}, fmt.Errorf("driver version %q: %w", version, err)
	}
	c.Branch = branch
	if strings.Contains(version, ".") {
		c.Version = version
	}
	switch w.Flavor {
	case FlavorOpen:
		c.License = LicenseOpen
	case FlavorProprietary:
		c.License = LicenseProprietary
	}
	for _, g := range f.GPUs {
		known, ok := catalog.Lookup(g.Vendor, g.Device, g.Subvendor, g.Subdevice)
		c.GPUs = append(c.GPUs, GPU{Address: g.Address, ID: g.Vendor + ":" + g.Device, Name: known.Name, Arch: known.Arch, Known: ok, Virtual: known.VGPU})
	}
	return c, nil
}

// moduleName is the name that modinfo knows a module file by: "nvidia-current" for
// …/nvidia-current.ko.xz. Without a file it is the name that NVIDIA gives it.
func moduleName(file string) string {
	if file == "" {
		return "nvidia"
	}
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return name
}
