package choice

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gpuguest/internal/catalog"
)

// Container engines that NVIDIA's container toolkit can be given to.
const (
	EngineDocker     = "docker"
	EngineContainerd = "containerd"
	EnginePodman     = "podman" // by a specification of the Container Device Interface
)

// Engines returns the words of Want.ContainerToolkit.
func Engines() []string { return []string{EngineDocker, EngineContainerd, EnginePodman} }

// MIGOff is the layout of a GPU that is to be whole.
const MIGOff = "off"

// Partition is what one GPU is divided into.
type Partition struct {
	Address  string   // of the GPU
	Profiles []string // names of GPU instance profiles, in the order of making: "3g.20gb"; none: MIG is off
	Reset    bool     // its MIG mode changes only when it is reset, which in a guest takes a reboot
}

// Token is a licence of NVIDIA's vGPU software as the user names it. The zero value names none.
type Token struct {
	Name   string // its file name
	SHA256 string // lower-case hex
}

// Given tells whether there is one.
func (t Token) Given() bool { return t.SHA256 != "" }

// addServers decides on what servers have beside a driver.
func (r *request) addServers(c *Choice) error {
	for _, add := range []func(*Choice) error{r.addEngine, r.addMIG, r.addGDS, r.addPeermem} {
		if err := add(c); err != nil {
			return err
		}
	}
	return nil
}

func (r *request) addEngine(c *Choice) error {
	e := r.w.ContainerToolkit
	if e == "" {
		return nil
	}
	refuse := func(format string, args ...any) error {
		return &Refusal{What: "--container-toolkit " + e, Reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case !slices.Contains(Engines(), e):
		return refuse("it is one of %s", strings.Join(Engines(), ", "))
	case r.f.Init.Name != "" && r.f.Init.Name != "systemd":
		return refuse("the engine is restarted through systemd, and the guest's init system is %s", r.f.Init.Name)
	case r.f.Tools != nil && !r.hasTool(e):
		return refuse("the guest has no %s: install it first", e)
	}
	if r.f.Packages[toolkitForEngines] == "" {
		if _, err := r.d.ContainerRepo(r.f.Arch); err != nil {
			return refuse("%v", err)
		}
	}
	if e != EnginePodman {
		c.Warnings = append(c.Warnings, e+" is restarted once it was told of the toolkit, and containers that do not outlive that are stopped")
	}
	return nil
}

// toolkitForEngines is the package of NVIDIA's container toolkit, by the same name everywhere.
const toolkitForEngines = "nvidia-container-toolkit"

func (r *request) hasTool(name string) bool {
	_, ok := r.f.Tools[name]
	return ok
}

// profile is the name of a GPU instance profile: its share of the GPU and of its memory, and what else it is given
// or not (NVIDIA's MIG user guide, "MIG Device Names" and the table of profiles: 1g.5gb+me, 1g.24gb+gfx, 1g.24gb-me).
// The numbers that nvidia-smi takes too are another GPU's from one GPU to the next.
var profile = regexp.MustCompile(`^[1-9]g\.[1-9]\d*gb(?:[+-][a-z]+(?:\.[a-z]+)*)*$`)

// parseMIG reads a layout: profiles with commas between them for every GPU, "3g.20gb,1g.5gb*4" or "off", or
// layouts with semicolons between them for the GPUs that are named by their place or their PCI address,
// "0=7g.80gb;1=off".
func (r *request) parseMIG() (map[int][]string, error) {
	what := "--mig " + r.w.MIG
	refuse := func(format string, args ...any) (map[int][]string, error) {
		return nil, &Refusal{What: what, Reason: fmt.Sprintf(format, args...)}
	}
	layout := map[int][]string{}
	for part := range strings.SplitSeq(r.w.MIG, ";") {
		gpu, profiles, named := strings.Cut(strings.TrimSpace(part), "=")
		if !named {
			gpu, profiles = "", gpu
		}
		var all []string
		for word := range strings.SplitSeq(profiles, ",") {
			name, times, counted := strings.Cut(strings.TrimSpace(word), "*")
			n := 1
			if counted {
				var err error
				if n, err = strconv.Atoi(times); err != nil || n < 1 || n > 7 {
					return refuse("%q: a GPU has one to seven instances", word)
				}
			}
			switch {
			case name == MIGOff && profiles == MIGOff:
				continue
			case !profile.MatchString(name):
				return refuse("%q is no profile of a GPU instance, which are named like 1g.5gb and 3g.20gb+me; %s divides nothing", name, MIGOff)
			}
			all = append(all, slices.Repeat([]string{name}, n)...)
		}
		if len(all) > 7 {
			return refuse("%d instances on one GPU: it has seven at most", len(all))
		}
		which := []int{}
		for i, g := range r.gpus {
			if !named || gpu == g.Address || gpu == strconv.Itoa(i) {
				which = append(which, i)
			}
		}
		if len(which) == 0 {
			return refuse("the guest has no GPU %s: they are named by their place, from 0 on, or by their PCI address", cmp.Or(gpu, "yet"))
		}
		for _, i := range which {
			if _, twice := layout[i]; twice {
				return refuse("%s is given two layouts", r.gpus[i].Title())
			}
			layout[i] = all
		}
	}
	return layout, nil
}

func (r *request) addMIG(c *Choice) error {
	if r.w.MIG == "" {
		return nil
	}
	refuse := func(format string, args ...any) error {
		return &Refusal{What: "--mig " + r.w.MIG, Reason: fmt.Sprintf(format, args...)}
	}
	if r.f.Init.Name != "" && r.f.Init.Name != "systemd" {
		return refuse("a unit of systemd brings the layout about at every boot, and the guest's init system is %s", r.f.Init.Name)
	}
	layout, err := r.parseMIG()
	if err != nil {
		return err
	}
	for i, g := range r.gpus {
		profiles, named := layout[i]
		if !named {
			continue
		}
		m, known := catalog.MIGOf(g.Name)
		capability := catalog.Capability(strings.TrimPrefix(g.ID, catalog.NVIDIA+":"))
		switch {
		case g.Address == "":
			return refuse("a layout is for GPUs that are in the guest")
		case !known && !slices.Contains([]string{"8.0", "9.0", "10.0", "10.3"}, capability) && g.Known:
			return refuse("%s cannot be divided: NVIDIA's MIG user guide does not list it", g)
		case !known:
			c.Warnings = append(c.Warnings, fmt.Sprintf("whether %s can be divided is not known: its driver will tell", g))
		case c.Branch < branchOf(m.Driver), c.Version != "" && catalog.CompareVersions(c.Version, m.Driver) < 0:
			return &Refusal{What: "--mig " + r.w.MIG, Reason: fmt.Sprintf("%s is divided from driver %s on, and the guest gets %s", g, m.Driver, c.expected()),
				Nearest: "--driver " + m.Driver}
		}
		c.MIG = append(c.MIG, Partition{Address: g.Address, Profiles: profiles, Reset: capability == "8.0" || !known})
	}
	if slices.ContainsFunc(c.MIG, func(p Partition) bool { return len(p.Profiles) > 0 }) {
		c.Warnings = append(c.Warnings, "CUDA lists instances and not GPUs where MIG is on, so that it is not proved on whole GPUs")
	}
	return nil
}

func branchOf(version string) int {
	n, err := catalog.BranchOf(version)
	if err != nil {
		return 0
	}
	return n
}

// addGDS holds --gds against what nvidia-fs needs (NVIDIA GPUDirect Storage Filesystem Kernel Driver, "Install NVIDIA
// Open Source Driver"; driver installation guide 620, "GPUDirect Storage": packages of the network repository, as
// DKMS alone, and not beside precompiled modules).
func (r *request) addGDS(c *Choice) error {
	refuse := func(reason, nearest string) error {
		return &Refusal{What: "--gds", Reason: reason, Nearest: nearest}
	}
	switch {
	case !r.w.GDS:
		return nil
	case c.Flavor != FlavorOpen && r.flavor == FlavorProprietary:
		return refuse("nvidia-fs goes with the open modules, which do not drive "+r.limiting(func(g GPU) bool { return g.Flavor == FlavorProprietary }).String(), "")
	case c.Flavor != FlavorOpen:
		return refuse("nvidia-fs goes with the open modules", "--flavor "+FlavorOpen)
	case c.Modules == ModulesPrecompiled:
		return refuse("nvidia-fs comes as source for DKMS, and not beside prebuilt modules", "--modules "+ModulesDKMS)
	case c.Source != SourceNVIDIA:
		return refuse("nvidia-fs is in NVIDIA's repository alone, whose versions go with its own driver", "--source "+SourceNVIDIA)
	}
	return nil
}

// addPeermem holds --peermem against the branch: nvidia-peermem is part of the driver from 470 on (GPUDirect RDMA,
// NVIDIA's GPU operator, "Using nvidia-peermem").
func (r *request) addPeermem(c *Choice) error {
	if r.w.Peermem && c.Branch < 470 {
		return &Refusal{What: "--peermem", Reason: fmt.Sprintf("the driver brings nvidia-peermem from branch 470 on, and the guest gets %d", c.Branch)}
	}
	return nil
}

// vgpuObjection says why a virtual GPU gets no driver, "" when it gets one.
//
// Which of NVIDIA's vGPU drivers goes with a host is known to that host alone, and it is under licence: nothing is
// chosen here, nor downloaded.
func (r *request) vgpuObjection() string {
	const needs = "it is a virtual GPU: its guest needs the vGPU driver of the host's own release, a .run file that NVIDIA gives to licensees, " +
		"and a token of the licence server"
	switch {
	case !r.w.Runfile.Given() && !r.w.License.Given():
		return needs + ": give both by --runfile and --vgpu-license-token"
	case !r.w.Runfile.Given():
		return needs + ": give the driver by --runfile"
	case !r.w.License.Given():
		return needs + ": give the token by --vgpu-license-token"
	}
	return ""
}

// vgpuName says in which way an installer's name is not a vGPU guest driver's, "" when it is one's
// (NVIDIA-Linux-x86_64-550.54.14-grid.run).
func vgpuName(name string) string {
	if strings.Contains(name, "-grid") {
		return ""
	}
	return name + " is not named like a vGPU guest's driver, whose names end in -grid.run: another loads in such a guest and finds no GPU"
}
