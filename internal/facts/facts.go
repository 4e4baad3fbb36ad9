// Package facts says what a guest is: the answers of one script (assets/facts.sh), parsed.
//
// It never decides anything and never reaches a guest. A recording is the script's raw output, so that
// a plan can be made, and tested, with no guest at all. What the guest did not tell is the zero value,
// and the field says so: unknown is a value.
package facts

import (
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"
)

// Facts is one look at one guest.
type Facts struct {
	OS        OS                `json:"os"`
	Arch      string            `json:"arch"`       // uname -m: "x86_64", "aarch64"
	Host      string            `json:"host"`       // the guest's own host name
	BootID    string            `json:"boot_id"`    // /proc/sys/kernel/random/boot_id
	Kernel    Kernel            `json:"kernel"`     // running and next
	GPUs      []PCI             `json:"gpus"`       // NVIDIA display functions (class 03xx), by address
	Other     []PCI             `json:"other"`      // other NVIDIA functions: audio, USB, UCSI, NVSwitch (class 0680); of Mellanox those that manage switches of NVLink 5
	Loaded    map[string]bool   `json:"loaded"`     // of moduleNames: loaded (or built in) now; nil unknown
	Loadable  map[string]bool   `json:"loadable"`   // of moduleNames: a file for the next kernel exists; nil unknown
	Driver    Driver            `json:"driver"`     // NVIDIA's modules and libraries
	Packages  map[string]string `json:"packages"`   // installed packages of interest → version; "name:arch" for a foreign architecture; see facts.sh for the patterns
	Held      []string          `json:"held"`       // packages on hold, whatever they are
	Offered   map[string]string `json:"offered"`    // package of interest → version the package manager would install now; nil: not asked, Unknown says why
	Offers    []Offer           `json:"offers"`     // every version of the same packages that a source in force holds
	Sources   []Source          `json:"sources"`    // what the package manager is configured to read
	OldNVIDIA []string          `json:"old_nvidia"` // lists that name NVIDIA's repositories without being cuda-keyring's own, and keyrings with the retired key 7fa2af80. sources.list and trusted.gpg, which hold other things too, may be among them: to be edited, not removed
	Broken    []string          `json:"broken"`     // packages not properly installed, one each: "name (half-configured)"
	Lock      *Holder           `json:"lock"`       // who holds the package manager's lock now; nil: nobody
	Runfile   Runfile           `json:"runfile"`    // a driver from NVIDIA's .run installer
	CUDA      []string          `json:"cuda"`       // versions of toolkits found in /usr/local/cuda-*
	Tools     map[string]string `json:"tools"`      // gcc, make, dkms, curl, … → version of the package of that name, "" when present without one
	Secure    SecureBoot        `json:"secure"`     // the firmware's Secure Boot
	Init      Init              `json:"init"`       // the init system
	Units     map[string]string `json:"units"`      // systemd units of interest that exist → "active enabled": ActiveState and UnitFileState
	Virt      string            `json:"virt"`       // systemd-detect-virt's word, else a word from DMI; "none", or "" for unknown
	Cloud     string            `json:"cloud"`      // cloud-init: "" not installed, "running", "done", "error", "disabled", "not run"
	CloudNote string            `json:"cloud_note"` // the first error that cloud-init told, "" none
	Disks     []Disk            `json:"disks"`      // free space
	Boot      Boot              `json:"boot"`       // bootloader and initramfs
	State     State             `json:"state"`      // gpuguest's own traces
	Unknown   []string          `json:"unknown"`    // "section: reason" of what the guest did not answer
}

// moduleNames are the kernel modules that Loaded and Loadable tell of, with underscores as lsmod prints them.
// "nova" is what nova_drm was called in the first kernels that had it (drivers/gpu/drm/nova/Makefile: nova.o
// before nova-drm.o), and counts as nova_drm too.
var moduleNames = []string{
	"nouveau", "nova_core", "nova_drm", "nova", "nvidiafb",
	"nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm", "vfio_pci",
}

// Mellanox is the PCI vendor id of ConnectX adapters.
const Mellanox = "15b3"

// OS is /etc/os-release.
type OS struct {
	ID        string   `json:"id"`
	VersionID string   `json:"version_id"`
	Codename  string   `json:"codename"`
	Name      string   `json:"name"` // PRETTY_NAME
	Like      []string `json:"like"` // the words of ID_LIKE
}

// Kernel tells the running kernel and the one the bootloader will start next.
type Kernel struct {
	Running     string   `json:"running"`      // uname -r
	Next        string   `json:"next"`         // release of the kernel that starts at the next boot; "" unknown
	NextFrom    string   `json:"next_from"`    // how Next is known, or why it is not: "grub default 0", "only kernel installed", …
	NextModules bool     `json:"next_modules"` // /lib/modules/Next is a directory
	Cmdline     []string `json:"cmdline"`      // the running kernel's words
	NextCmdline []string `json:"next_cmdline"` // the words in the entry that starts next; nil unknown
	Installed   []string `json:"installed"`    // releases with an image in /boot (or in /lib/modules/R)
	Headers     []string `json:"headers"`      // releases with a usable build tree (/lib/modules/R/build/Makefile)
	Compiler    string   `json:"compiler"`     // CONFIG_CC_VERSION_TEXT of Next
	Meta        []string `json:"meta"`         // installed kernel meta packages: "linux-image-amd64"
	Lockdown    string   `json:"lockdown"`     // /sys/kernel/security/lockdown's chosen word, "" unknown
	SigEnforce  bool     `json:"sig_enforce"`  // the running kernel takes signed modules only, whatever the firmware says
}

// PCI is one NVIDIA PCI function, as sysfs tells it. Ids are four lower-case hex digits.
type PCI struct {
	Address   string `json:"address"` // "0000:01:00.0"
	Vendor    string `json:"vendor"`
	Device    string `json:"device"`
	Subvendor string `json:"subvendor"`
	Subdevice string `json:"subdevice"`
	Class     string `json:"class"`    // six hex digits: "030000"
	Driver    string `json:"driver"`   // bound kernel driver, "" none
	Override  string `json:"override"` // driver_override, "" none
	NUMA      int    `json:"numa"`     // -1 unknown or none
	BARs      []BAR  `json:"bars"`
}

// BAR is one line of sysfs's resource file that is not all zero: 0 to 5 are the base address registers, 6 the
// expansion ROM, beyond that SR-IOV and bridge windows. Start 0 means that the window got no address; Size is
// end - start + 1 as the kernel counts it, 0 when the kernel gave the window up.
type BAR struct {
	Index int    `json:"index"`
	Start uint64 `json:"start"`
	Size  uint64 `json:"size"`  // bytes
	Flags uint64 `json:"flags"` // IORESOURCE_* of linux/ioport.h: 0x200 memory, 0x2000 prefetchable, 0x100000 64 bits
}

// Driver tells the NVIDIA kernel modules and libraries in the guest.
type Driver struct {
	Loaded          string   `json:"loaded"`           // version in /proc/driver/nvidia/version, "" not loaded
	LoadedFlavor    string   `json:"loaded_flavor"`    // "open", "proprietary", "" unknown (from the same file's first line)
	Next            Module   `json:"next"`             // nvidia.ko as modinfo finds it for the next kernel; zero when none
	Running         Module   `json:"running"`          // the same for the running kernel
	Modules         []Module `json:"modules"`          // the same for every kernel that has one
	DKMS            []string `json:"dkms"`             // from the tree in /var/lib/dkms, as dkms status words it: "nvidia/580.95.05, 6.1.0-50-amd64, x86_64: installed"
	Library         string   `json:"library"`          // version of libnvidia-ml.so.1 / libcuda.so.1 by file name, "" none
	Libraries       []string `json:"libraries"`        // paths of all such files; more than one version is a fault
	PersistenceUnit string   `json:"persistence_unit"` // "", "disabled", "enabled", "active"
}

// Module is modinfo's answer for one module file.
type Module struct {
	Path     string `json:"path"`
	Version  string `json:"version"`
	License  string `json:"license"` // "NVIDIA" is the proprietary flavor, "Dual MIT/GPL" the open one
	Vermagic string `json:"vermagic"`
	Signer   string `json:"signer"`
}

// Offer is one version of a package in one source.
type Offer struct {
	Package  string `json:"package"`
	Version  string `json:"version"`
	Priority int    `json:"priority"` // apt's pin priority of that source
	URI      string `json:"uri"`
	Suite    string `json:"suite"` // "bookworm/main"; for a flat repository what apt prints in its place
}

// Source is one package source in force.
type Source struct {
	URI       string `json:"uri"`
	Suite     string `json:"suite"`
	Component string `json:"component"` // "" for a flat repository
	SignedBy  string `json:"signed_by"` // path or fingerprint; "embedded" for a key within the file
	File      string `json:"file"`
}

// Holder is a process that holds a lock.
type Holder struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	File    string `json:"file"`
}

// Runfile tells a driver installed by NVIDIA's .run installer.
type Runfile struct {
	Version     string `json:"version"`
	Uninstaller string `json:"uninstaller"` // path of nvidia-uninstall when no package owns it
}

// SecureBoot is the firmware's state.
type SecureBoot struct {
	EFI         bool     `json:"efi"`          // booted by UEFI
	State       string   `json:"state"`        // "enabled", "disabled" (shim's checks too), "unsupported" (BIOS), "" unknown
	Setup       bool     `json:"setup"`        // in setup mode
	Keys        []string `json:"keys"`         // descriptions of the asymmetric keys in the kernel's keyrings, as far as /proc/keys shows them
	SigningKeys []string `json:"signing_keys"` // files of a machine owner key that is in the guest

	Certificates []Certificate `json:"certificates,omitempty"` // those among SigningKeys that could be read
}

// Certificate is a certificate that modules may be signed with.
type Certificate struct {
	File    string `json:"file"`
	Subject string `json:"subject"` // common name
	Issuer  string `json:"issuer"`  // common name, which modinfo shows as the signer
	KeyID   string `json:"key_id"`  // see KeyID
}

// KeyID is what the kernel lists a certificate by: its subject key id, else its serial number; lower-case hex.
func KeyID(c *x509.Certificate) string {
	id := c.SubjectKeyId
	if len(id) == 0 {
		// As the certificate has it: a number whose first bit is set has a zero in front (X.690, 8.3).
		if id = c.SerialNumber.Bytes(); len(id) > 0 && id[0] >= 0x80 {
			id = append([]byte{0}, id...)
		}
	}
	return hex.EncodeToString(id)
}

// Trusts tells whether the kernel has a certificate among its keys. It lists them as "common name: key id"
// (crypto/asymmetric_keys/x509_public_key.c).
func (b SecureBoot) Trusts(keyID string) bool {
	return keyID != "" && slices.ContainsFunc(b.Keys, func(key string) bool { return strings.HasSuffix(strings.ToLower(key), ": "+keyID) })
}

// Names tells whether the kernel has a certificate of a common name among its keys.
func (b SecureBoot) Names(subject string) bool {
	return subject != "" && slices.ContainsFunc(b.Keys, func(key string) bool { return key == subject || strings.HasPrefix(key, subject+": ") })
}

// EnforcesSignatures tells whether the kernel loads no module that it does not trust the signature of.
func (f Facts) EnforcesSignatures() bool {
	return f.Secure.State == "enabled" || f.Kernel.SigEnforce || f.Kernel.Lockdown == "integrity" || f.Kernel.Lockdown == "confidentiality"
}

// Init is the init system.
type Init struct {
	Name  string `json:"name"`  // "systemd", "upstart", "sysv", "" unknown
	State string `json:"state"` // systemctl is-system-running
}

// Disk is the free space below one path, in bytes, for users without privileges.
type Disk struct {
	Path     string `json:"path"` // "/", "/boot", "/var", "/usr", "/tmp"
	Free     uint64 `json:"free"`
	Size     uint64 `json:"size"`
	Inodes   uint64 `json:"inodes"` // free; 0 as well on a file system that has none to count
	ReadOnly bool   `json:"read_only"`
}

// Boot is the boot layer: what starts the kernel and what makes its initramfs.
type Boot struct {
	Loader    string `json:"loader"`    // "grub", "systemd-boot", "" unknown
	Config    string `json:"config"`    // "/boot/grub/grub.cfg"
	Initramfs string `json:"initramfs"` // "initramfs-tools", "dracut", "mkinitrd", "" unknown
	Image     string `json:"image"`     // initramfs of the next kernel, "" unknown

	Entries []string `json:"entries"` // paths of the boot loader specification entries that the loader reads, sorted; nil: it reads none
}

// State is what gpuguest itself left in the guest, below /var/lib/gpuguest.
type State struct {
	Journal string    `json:"journal"` // raw JSON lines, newest last; "" when gpuguest never ran here
	Jobs    []string  `json:"jobs"`    // names of jobs of this boot that have not ended
	Before  bool      `json:"before"`  // what the guest was before gpuguest's first change is recorded
	Added   []string  `json:"added"`   // packages that gpuguest's work added, still installed or not
	Changed []Changed `json:"changed"` // packages that gpuguest's work moved to another version
	Kept    []string  `json:"kept"`    // files whose earlier content is kept
	Absent  []string  `json:"absent"`  // files that were not there before
	Held    []string  `json:"held"`    // packages that gpuguest put on hold

	KernelArgs []string `json:"kernel_args"` // arguments that gpuguest set for every kernel
	Products   []string `json:"products"`    // extensions of SLES that gpuguest registered

	Runfile    string   `json:"runfile"`     // version of the .run driver that gpuguest installed, "" none
	Toolkits   []string `json:"toolkits"`    // CUDA toolkits that gpuguest installed by their runfiles: "12.8"
	CUDALink   string   `json:"cuda_link"`   // what /usr/local/cuda led to before gpuguest set it, "-" nothing, "" it was not set
	SigningKey bool     `json:"signing_key"` // a key that gpuguest was given to sign modules with is in the guest
	Accounts   []string `json:"accounts"`    // users that gpuguest made
	Services   []string `json:"services"`    // services that gpuguest gave an own file to: "nvidia-persistenced"
}

// Changed is a package that was at version Was before gpuguest's work.
type Changed struct {
	Name string `json:"name"`
	Was  string `json:"was"`
}
