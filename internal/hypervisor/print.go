package hypervisor

import (
	"fmt"
	"io"
	"strings"
)

// PrintFindings writes findings for a person: a line each, with what shows it and what to do below those that
// are not well.
func PrintFindings(w io.Writer, all []Finding) error {
	var b strings.Builder
	device := ""
	for _, f := range all {
		if f.Device != device {
			device = f.Device
			fmt.Fprintf(&b, "\n%s\n", device)
		}
		fmt.Fprintf(&b, "%-7s  %-15s  %s\n", f.Status, f.ID, f.Seen)
		if f.Status == OK {
			continue
		}
		for _, e := range f.Evidence {
			fmt.Fprintf(&b, "%26s %s\n", "", e)
		}
		if f.Fix != "" {
			fmt.Fprintf(&b, "%26s do: %s\n", "", f.Fix)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Print writes the plan for a person: each file with its content, what to run then, and what is left to do by
// hand.
func (p Plan) Print(w io.Writer) error {
	var b strings.Builder
	for _, f := range p.Files {
		fmt.Fprintf(&b, "write %s (mode %s): %s\n", f.Path, f.Mode, f.Why)
		for line := range strings.Lines(f.Content) {
			fmt.Fprintf(&b, "    %s", line)
		}
		b.WriteByte('\n')
	}
	b.WriteString("then run:\n")
	for _, c := range p.Commands {
		fmt.Fprintf(&b, "    %s\n", c)
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
