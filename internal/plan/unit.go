package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"gpuguest/assets"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// ProofsWithUnit works out the steps that prove, and one before them that leaves a unit in the guest which runs the
// same checks at its next boot. In an image that has no GPU now (Want.NoGPU) the unit's checks are about whatever
// GPUs the guest has at that boot.
func ProofsWithUnit(in steps.Input, all []steps.Step) (Plan, error) {
	now, err := Proofs(in, all)
	if err != nil {
		return Plan{}, err
	}
	later := in
	later.Unseen = in.Want.NoGPU && len(in.Facts.GPUs) == 0
	first := Plan{}
	if later.Unseen {
		if first, err = Build(later, only(all, "probe")); err != nil {
			return Plan{}, err
		}
		later = steps.WithProbe(later)
	}
	atBoot, err := Proofs(later, all)
	if err != nil {
		return Plan{}, err
	}
	if in.BootScript, err = atBoot.BootScript(later); err != nil {
		return Plan{}, err
	}
	p, err := Build(in, only(all, "verify-unit"))
	if err != nil {
		return Plan{}, err
	}
	p.Segments = slices.Concat(first.Segments, p.Segments, now.Segments)
	return p, nil
}

// only is the step with that id.
func only(all []steps.Step, id steps.ID) []steps.Step {
	i := slices.IndexFunc(all, func(s steps.Step) bool { return s.ID == id })
	return all[i : i+1]
}

// BootScript returns a script that runs the checks of every item in the guest, without gpuguest, and leaves the result
// in /var/lib/gpuguest/verify.json, in the form that verify prints with --json. Like Checks it only reads; like the
// engine it ends its report with the first check that is not met.
func (p Plan) BootScript(in steps.Input) (string, error) {
	items := p.Items()
	// No check can print its own script's sum by chance, and the same plan makes the same script.
	sum := sha256.Sum256([]byte(Checks(p.Distro, items, "")))
	nonce := "--" + hex.EncodeToString(sum[:12])
	flavor := p.Choice.Flavor
	if in.Want.BothFlavors && in.Unseen {
		flavor = "" // the machine's own is known when it boots
	}
	fixed, err := json.Marshal(struct {
		Distro   string   `json:"distro,omitempty"`
		Flavor   string   `json:"flavor,omitempty"`
		Source   string   `json:"source,omitempty"`
		Modules  string   `json:"modules,omitempty"`
		Warnings []string `json:"warnings,omitempty"`
	}{p.Distro.Name, flavor, p.Choice.Source, p.Choice.Modules, p.Choice.Warnings})
	if err != nil {
		return "", err
	}
	members := strings.TrimSuffix(strings.TrimPrefix(string(fixed), "{"), "}")
	if members != "" {
		members = "," + members
	}
	var b strings.Builder
	b.WriteString("#!/bin/sh\n# Written by gpuguest: the checks of \"gpuguest verify\", for " + p.Distro.Name + ", driver " + p.driver() + " " + p.Choice.Flavor + ".\n")
	fmt.Fprintf(&b, "NONCE=%s\nFIXED=%s\n\n", sh.Quote(nonce), sh.Quote(members))
	table, err := checkTable(items)
	if err != nil {
		return "", err
	}
	fmt.Fprintf(&b, "table() {\n\tprintf '%%s\\n' %s\n}\n\n", sh.Join(table...))
	if in.Unseen {
		b.WriteString(steps.SeeGPUs + "\n\n" + `gpu_names() {
	for a in $(gpus); do
		printf '%s NVIDIA GPU (10de:%s)\n' "$a" "$(sed s/^0x// "/sys/bus/pci/devices/$a/device")"
	done
}
`)
	} else {
		var names []string
		for _, g := range p.Choice.GPUs {
			names = append(names, g.Title())
		}
		if len(names) == 0 {
			b.WriteString("gpu_names() { :; }\n")
		} else {
			fmt.Fprintf(&b, "gpu_names() {\n\tprintf '%%s\\n' %s\n}\n", sh.Join(names...))
		}
	}
	// In a shell of its own: what the checks set is nobody else's.
	fmt.Fprintf(&b, "\nchecks() (\n%s)\n\n", Checks(p.Distro, items, nonce))
	b.WriteString(assets.Verify)
	return b.String(), nil
}

// checkTable is a line a check: its id, its constant members of a result's step as JSON, its hint as JSON. JSON holds
// no raw tab and no line's end, so tabs divide.
func checkTable(items []Item) ([]string, error) {
	var table []string
	for _, it := range items {
		step, err := json.Marshal(struct {
			ID    steps.ID `json:"id"`
			Title string   `json:"title"`
		}{it.ID, it.Title})
		if err != nil {
			return nil, err
		}
		hint, err := json.Marshal(it.Hint)
		if err != nil {
			return nil, err
		}
		table = append(table, fmt.Sprintf("%s\t%s\t%s", it.ID, strings.Trim(string(step), "{}"), hint))
	}
	return table, nil
}
