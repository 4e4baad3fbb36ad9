// Package catalog looks up what the tables in assets tell about GPUs and driver branches.
//
// The tables are embedded text and are never unpacked whole: a look-up for a GPU is a binary search in the
// sorted text, so a process that asks for two GPUs pays for two rows. The package decides nothing.
package catalog

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"sync"

	"gpuguest/assets"
)

//go:generate go run ./gen -from $FACTS -to ../../assets

// NVIDIA is the PCI vendor id of NVIDIA.
const NVIDIA = "10de"

// Words for whether a flavor of the kernel modules drives a GPU.
const (
	Yes      = "yes"
	No       = "no"
	Required = "required" // only the open modules drive it
	Unknown  = "unknown"
)

// GPU is what the tables say of one PCI id.
type GPU struct {
	Device      string // four hex digits
	Name        string // "Tesla T4"
	Arch        string // "Turing", "" unknown
	Open        string // do the open modules drive it: Yes, No, Required
	Proprietary string // do the proprietary modules drive it: Yes, No, Unknown
	First       int    // oldest branch that drives it, 0 unknown
	Last        int    // newest branch that drives it, 0 no end known; 71.86 and 96.43 are 71 and 96
	Source      string // where the row comes from
	VGPU        bool   // the subsystem id is one that a vGPU guest sees
	NoGSP       bool   // with VGPU: the guest's GPU has no GSP, so the open modules cannot drive it
}

// Lookup returns what is known of a PCI id. Ids are hex digits of either case. It reports false when the
// tables do not hold the device.
func Lookup(vendor, device, subvendor, subdevice string) (GPU, bool) {
	if !strings.EqualFold(vendor, NVIDIA) {
		return GPU{}, false
	}
	device = strings.ToLower(device)
	var g GPU
	found := false
	for line := range rows(assets.GPUs, device) {
		f := strings.Split(line, "\t")
		switch {
		case f[1] == "":
			g, found = parseGPU(f), true
		case strings.EqualFold(f[1], subvendor+":"+subdevice):
			g.Name = f[2]
		}
	}
	for line := range rows(assets.VGPUs, device) {
		f := strings.Split(line, "\t")
		sub := strings.ToLower(subvendor + ":" + subdevice)
		g.NoGSP = slices.Contains(strings.Fields(f[2]), sub)
		g.VGPU = g.NoGSP || slices.Contains(strings.Fields(f[1]), sub)
	}
	return g, found
}

// GPUs yields every device of the tables, by id.
func GPUs() iter.Seq[GPU] {
	return func(yield func(GPU) bool) {
		for line := range body(assets.GPUs) {
			if f := strings.Split(line, "\t"); f[1] == "" && !yield(parseGPU(f)) {
				return
			}
		}
	}
}

func parseGPU(f []string) GPU {
	g := GPU{Device: f[0], Name: f[2], Arch: f[3], Open: f[4], Proprietary: f[5], Source: f[8]}
	if g.Arch == Unknown {
		g.Arch = ""
	}
	g.First, g.Last = leadingInt(f[6]), leadingInt(f[7])
	return g
}

// Kinds of branches, as NVIDIA calls them.
const (
	LTSB      = "LTSB" // long-term support branch
	PB        = "PB"   // production branch
	NFB       = "NFB"  // new-feature branch
	Developer = "developer"
	Legacy    = "legacy" // kept only for GPUs that later branches dropped
)

// What a branch says of its open modules.
const (
	OpenNo      = "no"      // it has none
	OpenOptIn   = "opt-in"  // it has them, the proprietary ones are the default
	OpenDefault = "default" // it has both, the open ones are the default for GPUs that can take them
	OpenOnly    = "only"    // it has no proprietary modules
)

// Branch is one driver branch.
type Branch struct {
	Number           int
	Kind             string // LTSB, PB, NFB, Developer, Legacy or Unknown
	State            string // "supported", "ended" or Unknown, when the table was made (November 2026)
	EOL              string // "2028-06", or Unknown
	ArchMin, ArchMax string // oldest and newest GPU architecture
	Open             string // OpenNo, OpenOptIn, OpenDefault, OpenOnly
	OpenKernel       string // oldest kernel the open modules build for, "" no limit known; where it is not known, that of the branch before, since no branch has brought an older kernel back
	KernelBelow      string // first kernel known to be too new for its modules, "" none known
	Latest           string // newest version seen, "" unknown
	Source           string // where the row comes from
}

var branches = sync.OnceValue(func() []Branch {
	var all []Branch
	openKernel := ""
	for line := range body(assets.Branches) {
		f := strings.Split(line, "\t")
		for i := range f {
			if f[i] == Unknown && i > 3 {
				f[i] = ""
			}
		}
		openKernel = cmp.Or(f[7], openKernel)
		all = append(all, Branch{
			Number: leadingInt(f[0]), Kind: f[1], State: f[2], EOL: f[3], ArchMin: f[4], ArchMax: f[5],
			Open: f[6], OpenKernel: openKernel, KernelBelow: f[8], Latest: f[9], Source: f[10],
		})
	}
	return all
})

// Branches returns every branch of the table, oldest first. The slice is the caller's.
func Branches() []Branch { return slices.Clone(branches()) }

// BranchByNumber returns a branch of the table.
func BranchByNumber(n int) (Branch, bool) {
	i, ok := slices.BinarySearchFunc(branches(), n, func(b Branch, n int) int { return cmp.Compare(b.Number, n) })
	if !ok {
		return Branch{}, false
	}
	return branches()[i], true
}

// BranchOf returns the branch of a driver version, "580.95.05" or "580" → 580, also with a package's
// revision behind it ("535.309.01-1"). It fails on anything that does not start with a branch number.
func BranchOf(version string) (int, error) {
	head := version
	if i := strings.IndexAny(version, ".-"); i >= 0 {
		head = version[:i]
	}
	n, err := strconv.Atoi(head)
	if err != nil || n <= 0 || len(head) > 4 || strconv.Itoa(n) != head {
		return 0, fmt.Errorf("%q is no driver version", version)
	}
	return n, nil
}

// body yields the lines of a table behind its header.
func body(table string) iter.Seq[string] {
	return func(yield func(string) bool) {
		_, rest, _ := strings.Cut(table, "\n")
		for line := range strings.Lines(rest) {
			if !yield(strings.TrimSuffix(line, "\n")) {
				return
			}
		}
	}
}

// rows yields the lines of a table, sorted by its first column, whose first column is key.
func rows(table, key string) iter.Seq[string] {
	return func(yield func(string) bool) {
		_, rest, _ := strings.Cut(table, "\n")
		lo, hi := 0, len(rest) // lo is always the start of a line, and the first match is in [lo, hi]
		for lo < hi {
			mid := lo + (hi-lo)/2
			start := lo + strings.LastIndexByte(rest[lo:mid], '\n') + 1
			end := start + strings.IndexByte(rest[start:], '\n') + 1
			column, _, _ := strings.Cut(rest[start:end], "\t")
			if column < key {
				lo = end
			} else {
				hi = start
			}
		}
		for line := range strings.Lines(rest[lo:]) {
			if !strings.HasPrefix(line, key+"\t") || !yield(strings.TrimSuffix(line, "\n")) {
				return
			}
		}
	}
}

func leadingInt(s string) int {
	head, _, _ := strings.Cut(s, ".")
	n, _ := strconv.Atoi(head)
	return n
}

// CompareVersions compares two driver versions, number by number: 580.95.05 is older than 580.105.08.
func CompareVersions(a, b string) int {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(as), len(bs)) {
		var x, y int
		if i < len(as) {
			x, _ = strconv.Atoi(as[i])
		}
		if i < len(bs) {
			y, _ = strconv.Atoi(bs[i])
		}
		if x != y {
			return cmp.Compare(x, y)
		}
	}
	return 0
}
