// Package choice decides which driver a guest gets: source, branch, version, flavor and how its modules come.
//
// It is a pure function of facts, distribution and wish. It reaches no guest and reads no clock.
package choice

// The words a user may say for each part of the choice.
const (
	SourceNVIDIA = "nvidia" // NVIDIA's network repository
	SourceDistro = "distro" // the distribution's own packages

	FlavorOpen        = "open"
	FlavorProprietary = "proprietary"

	ModulesDKMS        = "dkms"
	ModulesPrecompiled = "precompiled"

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
	KernelArgs    []string // extra kernel arguments
	HoldKernel    bool
	NoGPU         bool     // the guest has no GPU: prove what can be proved
	Devices       []string // with NoGPU: the GPUs to decide for, "10de:1eb8" or "10de:1eb8:10de:12a2"
	As            string   // treat the guest as this distribution, "debian:12"
	Reboot        string   // RebootIfNeeded unless said otherwise
}

// Choice is what was decided, and why.
type Choice struct {
	Source, Flavor, Modules string
	Branch                  int      // 580
	Version                 string   // full version when one was asked for or the source has only one; "" newest of the branch
	Packages                []string // driver packages to install, names only, in order
	Pin                     []string // packages that pin the branch, installed before
	Why                     []string // one sentence a decision, in order
	Warnings                []string // what the user should know although it goes on
}
