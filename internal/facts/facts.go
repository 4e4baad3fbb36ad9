// Package facts says what a guest is: the answers of one script (assets/facts.sh), parsed.
//
// It never decides anything and never reaches a guest. A recording is the script's raw output, so that
// a plan can be made, and tested, with no guest at all. What the guest did not tell is the zero value,
// and the field says so: unknown is a value.
package facts

// Facts is one look at one guest.
type Facts struct {
	OS        OS
	Arch      string // uname -m: "x86_64", "aarch64"
	Host      string // the guest's own host name
	BootID    string // /proc/sys/kernel/random/boot_id
	Kernel    Kernel
	GPUs      []PCI           // NVIDIA display functions (class 03xx), by address
	Other     []PCI           // other NVIDIA functions: audio, USB, UCSI, NVSwitch (class 0680)
	Loaded    map[string]bool // of nouveau, nova_core, nova_drm, nvidiafb, nvidia, nvidia_uvm, vfio_pci: loaded now
	Loadable  map[string]bool // of the same: a file for the next kernel exists
	Driver    Driver
	Packages  map[string]string // installed packages of interest → version; see facts.sh for the patterns
	Held      []string          // packages on hold
	Offered   map[string]string // package of interest → version the package manager would install now; only what it knows now
	Sources   []Source          // what the package manager is configured to read
	OldNVIDIA []string          // source lists and keys of NVIDIA's that conflict with today's keyring package
	Broken    []string          // packages half installed, one each
	Lock      *Holder           // who holds the package manager's lock now; nil: nobody
	Runfile   Runfile
	CUDA      []string          // versions of toolkits found in /usr/local/cuda-*
	Tools     map[string]string // gcc, make, dkms, curl, … → version ("" when present but silent)
	Secure    SecureBoot
	Init      Init
	Virt      string // systemd-detect-virt's word, "none", or "" for unknown
	Cloud     string // cloud-init status: "", "running", "done", "error", "disabled", "not run"
	Disks     []Disk
	Boot      Boot
	State     State
	Unknown   []string // sections that the guest did not answer, with the reason
}

// OS is /etc/os-release.
type OS struct {
	ID, VersionID, Codename, Name string
	Like                          []string
}

// Kernel tells the running kernel and the one the bootloader will start next.
type Kernel struct {
	Running     string   // uname -r
	Next        string   // release of the kernel that starts at the next boot; "" unknown
	NextFrom    string   // how Next is known: "grub default 0", "only kernel installed", …
	Cmdline     []string // the running kernel's words
	NextCmdline []string // the words in the entry that starts next; nil unknown
	Installed   []string // releases with an image in /boot
	Headers     []string // releases with a usable build tree (/lib/modules/R/build/Makefile)
	Compiler    string   // CONFIG_CC_VERSION_TEXT of Next
	Meta        []string // installed kernel meta packages: "linux-image-amd64"
	Lockdown    string   // /sys/kernel/security/lockdown's chosen word, "" unknown
}

// PCI is one NVIDIA PCI function, as sysfs tells it. Ids are four lower-case hex digits.
type PCI struct {
	Address, Vendor, Device, Subvendor, Subdevice string
	Class                                         string // six hex digits: "030000"
	Driver                                        string // bound kernel driver, "" none
	Override                                      string // driver_override, "" none
	NUMA                                          int    // -1 unknown or none
	BARs                                          []BAR
}

// BAR is one line of sysfs's resource file with a size; Start 0 means the window got no address.
type BAR struct {
	Index       int
	Start, Size uint64 // bytes
}

// Driver tells the NVIDIA kernel modules and libraries in the guest.
type Driver struct {
	Loaded          string   // version in /proc/driver/nvidia/version, "" not loaded
	LoadedFlavor    string   // "open", "proprietary", "" unknown (from the same file's first line)
	Next            Module   // nvidia.ko as modinfo finds it for the next kernel; zero when none
	Running         Module   // the same for the running kernel
	DKMS            []string // lines of dkms status
	Library         string   // version of libnvidia-ml.so.1 / libcuda.so.1 by file name, "" none
	PersistenceUnit string   // "", "disabled", "enabled", "active"
}

// Module is modinfo's answer for one module file.
type Module struct{ Path, Version, License, Vermagic, Signer string }

// Source is one package source in force.
type Source struct {
	URI, Suite, Component, SignedBy, File string
}

// Holder is a process that holds a lock.
type Holder struct {
	PID     int
	Command string
	File    string
}

// Runfile tells a driver installed by NVIDIA's .run installer.
type Runfile struct {
	Version     string
	Uninstaller string // path of nvidia-uninstall when no package owns it
}

// SecureBoot is the firmware's state.
type SecureBoot struct {
	EFI   bool     // booted by UEFI
	State string   // "enabled", "disabled", "unsupported" (BIOS), "" unknown
	Setup bool     // in setup mode
	Keys  []string // subjects of certificates the kernel trusts for modules, when readable
}

// Init is the init system.
type Init struct {
	Name  string // "systemd", "upstart", "sysv", "" unknown
	State string // systemctl is-system-running
}

// Disk is the free space below one path, in bytes.
type Disk struct {
	Path     string // "/", "/boot", "/var", "/usr", "/tmp"
	Free     uint64
	ReadOnly bool
}

// Boot is the boot layer: what starts the kernel and what makes its initramfs.
type Boot struct {
	Loader    string // "grub", "systemd-boot", "" unknown
	Config    string // "/boot/grub/grub.cfg"
	Initramfs string // "initramfs-tools", "dracut", "mkinitrd", "" unknown
	Image     string // initramfs of the next kernel, "" unknown
}

// State is what gpuguest itself left in the guest, below /var/lib/gpuguest.
type State struct {
	Journal string    // raw JSON lines, newest last; "" when gpuguest never ran here
	Jobs    []string  // names of jobs that have not ended
	Before  bool      // what the guest was before gpuguest's first change is recorded
	Added   []string  // packages that gpuguest's work added, still installed or not
	Changed []Changed // packages that gpuguest's work moved to another version
	Kept    []string  // files whose earlier content is kept
	Absent  []string  // files that were not there before
	Held    []string  // packages that gpuguest put on hold
}

// Changed is a package that was at version Was before gpuguest's work.
type Changed struct{ Name, Was string }
