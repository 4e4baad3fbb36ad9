package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpuguest/internal/choice"
	"gpuguest/internal/cuda"
	"gpuguest/internal/diagnosis"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/plan"
	"gpuguest/steps"
)

// findings is what is wrong with a guest by what it is, whatever its logs say, in lines that the catalogue knows. What
// the guest did not tell is no finding.
func findings(f facts.Facts) string {
	var b strings.Builder
	installed := f.Driver.Loaded != "" || f.Driver.Library != "" || len(f.Driver.Modules) > 0
	if len(f.GPUs) == 0 && !slices.ContainsFunc(f.Unknown, func(why string) bool { return strings.HasPrefix(why, "pci: ") }) {
		fmt.Fprintln(&b, "the guest has no NVIDIA GPU on its PCI bus")
	}
	for _, g := range f.GPUs {
		switch {
		case g.Driver == "nvidia":
		case g.Driver == "vfio-pci", g.Driver != "" && installed:
			fmt.Fprintf(&b, "GPU %s is bound to %s\n", g.Address, g.Driver)
		case installed:
			fmt.Fprintf(&b, "GPU %s has no driver bound, and an NVIDIA driver is installed\n", g.Address)
		default:
			fmt.Fprintf(&b, "GPU %s: no NVIDIA driver is installed in the guest\n", g.Address)
		}
	}
	if l := f.Driver.Loaded; l != "" && f.Driver.Library != "" && f.Driver.Library != l {
		fmt.Fprintf(&b, "the loaded module is %s, libnvidia-ml in the guest is %s\n", l, f.Driver.Library)
	}
	return b.String()
}

// probeTime is how long the CUDA probe may take in all: to be compiled, to run with its own deadline, and to be asked
// about.
const probeTime = 4 * time.Minute

// proveCUDA runs the CUDA probe once, as verify does. It returns what the catalogue makes of
// what it says, and why nothing is known, "" when it is.
func proveCUDA(ctx context.Context, conn *guest.Conn, f facts.Facts) ([]diagnosis.Verdict, string, error) {
	in, err := installed(f, choice.Want{})
	if err != nil {
		return nil, err.Error(), nil
	}
	p, err := plan.Proofs(in, steps.Install())
	if err != nil {
		return nil, err.Error(), nil
	}
	items := slices.DeleteFunc(p.Items(), func(it plan.Item) bool { return it.ID != "verify-cuda" })
	if len(items) == 0 {
		return nil, "", nil
	}
	within, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	outcomes, _, err := engine.Check(within, conn, p.Distro, items)
	switch {
	case ctx.Err() == nil && within.Err() != nil:
		return nil, fmt.Sprintf("given up after %v", probeTime), nil
	case err != nil:
		return nil, "", err
	}
	o := outcomes[items[0].ID]
	if o.Met {
		return nil, "", nil
	}
	var r cuda.Report
	if json.Unmarshal([]byte(o.Data), &r) != nil || len(r.Failures) == 0 {
		why, _, _ := strings.Cut(o.Why, "\n")
		return nil, why, nil
	}
	v, err := diagnosis.Read("CUDA probe", bytes.NewReader([]byte(probeFindings(r))))
	return v, "", err
}

// probeFindings is what the probe found wrong, in lines that the catalogue knows. A slow link alone leaves CUDA working.
func probeFindings(r cuda.Report) string {
	var b strings.Builder
	for _, f := range r.Failures {
		at := f.PCI
		if at == "" {
			at = "CUDA"
		}
		fmt.Fprintf(&b, "%s: %s: %s\n", at, f.Kind, f.What)
	}
	for _, f := range r.Failures {
		if f.Kind != "link-bandwidth" {
			fmt.Fprintf(&b, "CUDA does not work on every GPU of the guest: %s\n", f.What)
			break
		}
	}
	return b.String()
}
