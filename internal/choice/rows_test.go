package choice

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"gpuguest/assets"
	"gpuguest/internal/catalog"
)

// Every row of the table of GPUs, subsystems too: a GPU that a branch was the last to drive gets that branch and the
// proprietary modules, one that needs the open ones gets these, and so does one that both drive, as that is its
// branch's default. Maxwell, Pascal and Volta are never given the open ones, whoever asks.
func TestEveryRowOfTheGPUTableGetsItsBranchAndFlavor(t *testing.T) {
	f, d := guest(t, "ubuntu:22.04", t4)
	rows, got, refused := 0, map[string]int{}, map[string]error{}
	for line := range strings.Lines(assets.GPUs[strings.Index(assets.GPUs, "\n")+1:]) {
		w := strings.Split(line, "\t")
		rows++
		p := &f.GPUs[0]
		p.Device, p.Subvendor, p.Subdevice = w[0], "", ""
		if sub := strings.SplitN(w[1], ":", 2); len(sub) == 2 {
			p.Subvendor, p.Subdevice = sub[0], sub[1]
		}
		g, known := catalog.Lookup(p.Vendor, p.Device, p.Subvendor, p.Subdevice)
		at := fmt.Sprintf("%s %s (%s)", strings.Join(w[:2], " "), g.Name, g.Arch)
		if !known || g.VGPU || strings.TrimSpace(w[2]) != g.Name {
			t.Fatalf("%s: found as %+v, %v", at, g, known)
		}
		number := g.Last
		if number == 0 {
			number = max(580, g.First)
		}
		branch, inTable := catalog.BranchByNumber(number)
		version := branch.Latest
		if version == "" {
			version = fmt.Sprintf("%d.00", number)
		}
		file := Runfile{Name: "x.run", SHA256: "ab", Version: version, Arch: f.Arch}
		old := slices.Contains([]string{"Maxwell", "Pascal", "Volta"}, g.Arch)
		if old || g.Open == catalog.No || g.Last != 0 {
			// What refuses is the same for all that are alike, and what would be nearest takes a while to find.
			kind := fmt.Sprint(g.Arch, g.Open, g.First, g.Last)
			if _, asked := refused[kind]; !asked {
				_, refused[kind] = Make(f, d, Want{Runfile: file, Flavor: FlavorOpen})
			}
			var r *Refusal
			if err := refused[kind]; !errors.As(err, &r) || r.Reason == "" {
				t.Fatalf("%s with the open modules: %v, want a refusal with its reason", at, err)
			}
		}
		c, err := Make(f, d, Want{Runfile: file})
		var r *Refusal
		if errors.As(err, &r) {
			// Branches before 340 are in no table, and no kernel of today builds them.
			if inTable && compareKernels(f.Kernel.Next, branch.KernelBelow) < 0 || r.Reason == "" {
				t.Fatalf("%s: %v", at, err)
			}
			got["refused"]++
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		want, kind := FlavorOpen, "both"
		switch {
		case g.Open == catalog.Required:
			kind = "open alone"
		case g.Last != 0 || g.Open == catalog.No:
			want, kind = FlavorProprietary, "legacy"
		}
		if c.Branch != number || c.Flavor != want || old && c.Flavor != FlavorProprietary {
			t.Fatalf("%s (open: %s, last branch %d): got %d and %s, want %d and %s", at, g.Open, g.Last, c.Branch, c.Flavor, number, want)
		}
		got[kind]++
	}
	t.Logf("%d rows: %v", rows, got)
	if rows < 2680 || got["legacy"] < 1000 || got["both"] < 500 || got["open alone"] < 100 {
		t.Errorf("%d rows, %v: the walk does not walk", rows, got)
	}
}
