// Package choice decides which driver a guest gets: source, branch, version, flavor and how its modules come.
//
// It is a pure function of facts, distribution and wish. It reaches no guest and reads no clock.
package choice

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"gpuguest/distros"
)

// The words a user may say for each part of the choice.
const (
	SourceNVIDIA = distros.SourceNVIDIA
	SourceDistro = distros.SourceDistro
	// SourceRunfile is NVIDIA's self-extracting installer, whose files no package manager knows.
	SourceRunfile = distros.SourceRunfile

	FlavorOpen        = distros.FlavorOpen
	FlavorProprietary = distros.FlavorProprietary

	ModulesDKMS        = distros.ModulesDKMS
	ModulesPrecompiled = distros.ModulesPrecompiled
	ModulesKMP         = distros.ModulesKMP

	RebootIfNeeded = "if-needed"
	RebootNever    = "never"
	RebootAlways   = "always"
)

// Want is what the user asked for. The zero value asks for the best that the tables know.
type Want struct {
	Driver  string // "" best, a branch ("580") or a full version ("580.95.05")
	Flavor  string // "" decided by the GPU
	Source  string // "" NVIDIA's repository where the distribution has one that can serve, else the distribution's
	Modules string // "" precompiled and signed where Secure Boot needs it, else dkms

	Mirror        string   // URL that replaces the source's own, without the repository directory: the mirror's counterpart of …/compute/cuda/repos (nvidia) or of the distribution's archive (distro)
	KeyringSHA256 string   // of the mirror's keyring package when it is not NVIDIA's own
	KeyringSent   bool     // the keyring package is sent by the client and not fetched by the guest
	KernelArgs    []string // extra kernel arguments
	DropArgs      []string // extra kernel arguments of an earlier run that are to go
	ModuleOptions []string // options of kernel modules, "nvidia_uvm uvm_disable_hmm=1"
	DropOptions   []string // such options of an earlier run that are to go
	Firmware      bool     // the initramfs carries the GSP firmware
	DropFirmware  bool     // the initramfs is no longer given it
	HoldKernel    bool
	BothFlavors   bool     // the modules of this flavor are kept beside those of the other: each machine of an image has its own at its first boot
	NoGPU         bool     // the guest has no GPU: prove what can be proved
	Devices       []string // with NoGPU: the GPUs to decide for, "10de:1eb8" or "10de:1eb8:10de:12a2"
	As            string   // treat the guest as this distribution, "debian:12"
	Reboot        string   // RebootIfNeeded unless said otherwise
	WithoutCUDA   bool     // leave the proof of CUDA out: a guest that shall only have a driver
	LinkFraction  float64  // part of the PCIe link's bandwidth that pinned copies must reach; 0: the probe's own, a half
	With          []string // of NVIDIA's own programs, those that are to be run as proofs too: "deviceQuery"
	Samples       Archive  // source of NVIDIA's samples, which those that With names are built from; zero: what the guest has, or what goes with CUDA

	Runfile     Runfile // the driver's installer; the zero value: one of the tables, and only with SourceRunfile
	CUDA        string  // toolkit to install: "" or CUDANone, CUDAAuto, a series ("12.8") or a release ("12.8.1")
	CUDASource  string  // SourceNVIDIA or SourceRunfile; "" NVIDIA's repository where there is one, else the runfile
	CUDARunfile Runfile // the toolkit's installer; the zero value: one of the tables
	Replace     bool    // a driver that came another way is removed first: a .run for packages, packages for a .run
	Signing     Signing // what modules that are built in the guest are signed with; zero: whatever DKMS does

	Bundle           Bundle // all packages and installers, sent by the client; zero: none
	Proxy            Proxy  // the guest's way out, for gpuguest's own work; zero: the guest's own
	ContainerToolkit string // engine that is given NVIDIA's container toolkit, of Engines; "" none
	MIG              string // what GPUs are divided into at every boot, "3g.20gb,1g.5gb*4", "0=off;1=7g.80gb"; "" nothing is done
	GDS              bool   // nvidia-fs, the kernel's part of GPUDirect Storage
	Peermem          bool   // nvidia-peermem, which gives InfiniBand adapters the GPU's memory
	License          Token  // of a licence server, for a virtual GPU

	LockWait time.Duration // how long cloud-init and the package manager's lock are waited for; 0: ten minutes
}

// Bundle is an archive with all packages and installers of one plan, for a guest without a network. The zero value is
// none.
type Bundle struct {
	Name       string // its file name
	SHA256     string // lower-case hex
	Size       int64
	Distro     string   // that it was made for: "debian:12"
	Arch       string   // machine, as uname -m says it
	Kernel     string   // release of the kernel that its headers are for
	Packages   []string // that it has by name, as they are asked for
	Installers []string // SHA-256 of those that it has
}

// Given tells whether there is a bundle.
func (b Bundle) Given() bool { return b.SHA256 != "" }

// Archive is a packed source tree. The zero value is none.
type Archive struct {
	Name   string // its file name
	URL    string // where the guest fetches it from; "" the client sends it
	SHA256 string // lower-case hex
}

// Given tells whether there is an archive.
func (a Archive) Given() bool { return a.SHA256 != "" }

// Proxy is a way out of the guest. The file that tells the guest of it, and of the password it may take, is sent.
type Proxy struct {
	Shown  string // its URL without name and password: "http://proxy.example:3128"
	SHA256 string // of the file, lower-case hex
}

// Given tells whether there is a proxy.
func (p Proxy) Given() bool { return p.SHA256 != "" }

// Choice is what was decided, and why.
type Choice struct {
	Source, Flavor, Modules string
	Branch                  int                 // 580
	Runfile                 Installer           // the driver's installer; zero: it comes in packages
	CUDA                    Toolkit             // the CUDA toolkit; zero: none
	Replaces                Replaced            // the driver that is removed first; zero: none
	Expected                string              // the version that will be there, as far as is known; "" not at all
	Version                 string              // the full version asked for, else the one the guest has of this very driver, else "": the newest of the branch
	Packages                []string            // driver packages to install, names only, in order
	Pin                     []string            // packages that pin the branch, installed before
	Within                  distros.Pin         // what else keeps later installs within the branch
	Headers                 []string            // header packages for the next kernel and those after; nil with precompiled modules
	Module                  string              // name of the module file: "nvidia", Debian's "nvidia-current"
	DKMSName                string              // name in dkms status, "" not built by DKMS
	License                 string              // what modinfo -F license says of a module of this flavor
	Signed                  bool                // the modules come signed with a key that the guest's firmware trusts
	Persistence             distros.Persistence // Package is a name, no template
	GPUs                    []GPU               // what was decided for, in the order of the guest's
	MIG                     []Partition         // what GPUs are divided into; nil: nothing is done about it
	Why                     []string            // one sentence a decision, in order
	Warnings                []string            // what the user should know although it goes on
}

// GPU is what the tables say of one GPU of the guest.
type GPU struct {
	Address string // PCI address, "" for one named by Want.Devices
	ID      string // "10de:1eb8"
	Name    string // "Tesla T4", "" unknown
	Arch    string // "Turing", "" unknown
	Known   bool   // the tables hold its id
	Min     int    // oldest branch that drives it, 0 unknown
	Max     int    // newest branch that drives it, 0 no end known
	Flavor  string // the flavor it must have, "" either will do

	Capability string // CUDA compute capability, "7.5"; "" unknown
	Virtual    bool   // it is a part of one that NVIDIA's vGPU software gives the guest
}

// Title is the GPU in one line: "0000:01:00.0 Tesla T4 (10de:1eb8)".
func (g GPU) Title() string {
	return fmt.Sprintf("%s %s (%s)", g.Address, cmp.Or(g.Name, "unknown GPU"), g.ID)
}

// Refusal says that what was asked for cannot be, before anything in the guest changed.
type Refusal struct {
	What    string // what was asked for: "driver 470 for Tesla T4"
	Reason  string // why it cannot be
	Nearest string // the nearest that can, as flags: "--driver 580 --flavor open"; "" nothing can
	kind    error
}

// ErrNoGPU is matched by the refusal for a guest in which no NVIDIA GPU is seen.
var ErrNoGPU = errors.New("no NVIDIA GPU in the guest")

// Error gives what, why and the nearest in one sentence.
func (r *Refusal) Error() string {
	s := r.What + ": " + r.Reason
	if r.Nearest != "" {
		s += "; nearest possible: " + r.Nearest
	}
	return s
}

// Is tells whether target is the kind of refusal that r is.
func (r *Refusal) Is(target error) bool { return r.kind != nil && target == r.kind }
