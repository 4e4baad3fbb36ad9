package plan

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/internal/remedy"
	"gpuguest/internal/sh"
	"gpuguest/steps"
)

// Text writes the plan for a person: what was decided and why, then each step with what it does.
// outcomes, when a guest was asked, tells which steps are met already.
func (p Plan) Text(w io.Writer, f facts.Facts, outcomes map[steps.ID]Outcome) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, kernel %s", p.Distro.Name, f.Arch, f.Kernel.Running)
	if f.Kernel.Next != f.Kernel.Running {
		fmt.Fprintf(&b, ", next boot %s", orUnknown(f.Kernel.Next))
	}
	b.WriteString("\n")
	if c := p.Choice; c.Branch != 0 {
		fmt.Fprintf(&b, "driver %s, %s kernel modules by %s, from %s\n", p.driver(), c.Flavor, c.Modules, p.source(c.Source))
		if k := c.CUDA; k.Version != "" {
			fmt.Fprintf(&b, "CUDA %s, from %s\n", toolkitName(k), map[bool]string{true: p.source("its .run installer"), false: p.source(k.Source)}[k.Source == choice.SourceRunfile])
		}
		for _, why := range c.Why {
			fmt.Fprintf(&b, "  - %s\n", why)
		}
		for _, warning := range c.Warnings {
			fmt.Fprintf(&b, "  ! %s\n", warning)
		}
	}
	b.WriteString("\n")
	wide := 0
	for _, it := range p.Items() {
		wide = max(wide, len(it.ID))
	}
	n := 0
	for i, s := range p.Segments {
		if i > 0 {
			fmt.Fprintf(&b, "     -- %s --\n", p.cut(i))
		}
		for _, it := range s.Items {
			n++
			fmt.Fprintf(&b, "%3d  %-*s  %s (%s)\n", n, wide, it.ID, it.Title, state(it, outcomes))
			if o, asked := outcomes[it.ID]; asked && o.Met {
				continue
			}
			for _, a := range it.Actions {
				fmt.Fprintf(&b, "     %-*s  - %s\n", wide, "", describe(a))
			}
		}
	}
	if len(p.Remedies) > 0 {
		b.WriteString("\nshould a proof fail, install tries by itself, and takes back what does not help:\n")
	}
	for _, r := range p.Remedies {
		fmt.Fprintf(&b, "  if %s is seen\n", strings.Join(r.Causes, ", "))
		for i, fix := range r.Fixes {
			fmt.Fprintf(&b, "    %s %s: %s%s\n", map[bool]string{true: "try", false: "then"}[i == 0], fix.Fix, fix.Does, map[bool]string{true: " (reboots)"}[fix.Boots])
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (p Plan) cut(segment int) string {
	for _, it := range p.Segments[segment-1].Items {
		if it.AtBoot {
			return "reboot, unless all that takes effect at boot was met already"
		}
	}
	return "no reboot needed"
}

func state(it Item, outcomes map[steps.ID]Outcome) string {
	o, asked := outcomes[it.ID]
	switch {
	case asked && o.Met:
		return "met"
	case it.AtBoot:
		return "to do, takes effect at the next boot"
	case it.Replan:
		return "to do, and then the rest is planned anew"
	case it.Actions == nil:
		return "to prove"
	}
	return "to do"
}

func describe(a action.Action) string {
	switch a := a.(type) {
	case action.Write:
		return "write " + a.Path
	case action.Send:
		return "send " + a.Path
	case action.Run:
		return a.Title
	}
	return ""
}

// source is where a driver or a toolkit comes from, and by what.
func (p Plan) source(s string) string {
	if p.Bundle != "" {
		return "the bundle " + p.Bundle + " (" + sourceName(s) + ")"
	}
	return sourceName(s)
}

func sourceName(s string) string {
	switch s {
	case "nvidia":
		return "NVIDIA's repository"
	case "distro":
		return "the distribution's own packages"
	case choice.SourceRunfile:
		return "NVIDIA's .run installer"
	}
	return s
}

// toolkitName is a toolkit as what was promised: a release, or the newest of a series.
func toolkitName(k choice.Toolkit) string {
	switch {
	case k.Version == "":
		return ""
	case k.Exact:
		return k.Version
	}
	return k.Series
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// Document is the plan as JSON. Its names are part of the interface.
type Document struct {
	Distro   string           `json:"distro"`
	Arch     string           `json:"arch"`
	Kernel   string           `json:"kernel"`
	Next     string           `json:"next_kernel"`
	Driver   string           `json:"driver"`
	Branch   int              `json:"branch"`
	Flavor   string           `json:"flavor"`
	Source   string           `json:"source"`
	Bundle   string           `json:"bundle,omitempty"` // file name of the bundle that all comes from
	Modules  string           `json:"modules"`
	Packages []string         `json:"packages"`
	Pin      []string         `json:"pin,omitempty"`
	Runfile  *DocumentFile    `json:"runfile,omitempty"`
	CUDA     *DocumentCUDA    `json:"cuda,omitempty"`
	Why      []string         `json:"why"`
	Warnings []string         `json:"warnings,omitempty"`
	Steps    []DocumentStep   `json:"steps"`
	Remedies []remedy.Promise `json:"remedies,omitempty"` // what install would try by itself when a proof fails
}

// DocumentFile is an installer that the plan runs.
type DocumentFile struct {
	Name   string   `json:"name"`
	URL    string   `json:"url,omitempty"` // absent: the client sends it
	SHA256 string   `json:"sha256"`
	Flags  []string `json:"flags"`
}

// DocumentCUDA is the toolkit that the plan installs.
type DocumentCUDA struct {
	Version string        `json:"version"`
	Source  string        `json:"source"`
	Package string        `json:"package,omitempty"`
	Runfile *DocumentFile `json:"runfile,omitempty"`
}

func documentFile(in choice.Installer) *DocumentFile {
	if in.Version == "" {
		return nil
	}
	return &DocumentFile{Name: in.Name, URL: in.URL, SHA256: in.SHA256, Flags: in.Flags}
}

// DocumentStep is one step of a Document.
type DocumentStep struct {
	ID      steps.ID         `json:"id"`
	Title   string           `json:"title"`
	Met     *bool            `json:"met,omitempty"` // absent: no guest was asked
	Why     string           `json:"why,omitempty"`
	AtBoot  bool             `json:"at_boot,omitempty"`
	Fresh   bool             `json:"fresh,omitempty"`
	Check   string           `json:"check"`
	Actions []DocumentAction `json:"actions,omitempty"`
}

// DocumentAction is a Run, a Write or a Send.
type DocumentAction struct {
	Send   string `json:"send,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
	Run    string `json:"run,omitempty"`
	Script string `json:"script,omitempty"`
	Write  string `json:"write,omitempty"`
	Mode   string `json:"mode,omitempty"`
	Data   string `json:"data,omitempty"`
}

// JSON writes the plan as a Document.
func (p Plan) JSON(w io.Writer, f facts.Facts, outcomes map[steps.ID]Outcome) error {
	d := Document{
		Distro: p.Distro.ID + ":" + p.Distro.Version, Arch: f.Arch, Kernel: f.Kernel.Running, Next: f.Kernel.Next,
		Driver: p.driver(), Branch: p.Choice.Branch, Flavor: p.Choice.Flavor, Source: p.Choice.Source, Bundle: p.Bundle, Modules: p.Choice.Modules,
		Packages: p.Choice.Packages, Pin: p.Choice.Pin, Why: p.Choice.Why, Warnings: p.Choice.Warnings, Remedies: p.Remedies,
	}
	d.Runfile = documentFile(p.Choice.Runfile)
	if k := p.Choice.CUDA; k.Version != "" {
		d.CUDA = &DocumentCUDA{Version: toolkitName(k), Source: k.Source, Package: k.Package, Runfile: documentFile(k.Installer)}
	}
	for _, it := range p.Items() {
		s := DocumentStep{ID: it.ID, Title: it.Title, AtBoot: it.AtBoot, Fresh: it.Fresh, Check: it.Check}
		if o, asked := outcomes[it.ID]; asked {
			s.Met, s.Why = &o.Met, o.Why
		}
		for _, a := range it.Actions {
			switch a := a.(type) {
			case action.Run:
				s.Actions = append(s.Actions, DocumentAction{Run: a.Title, Script: a.Script})
			case action.Send:
				s.Actions = append(s.Actions, DocumentAction{Send: a.Path, SHA256: a.SHA256})
			case action.Write:
				s.Actions = append(s.Actions, DocumentAction{Write: a.Path, Mode: mode(a.Mode), Data: string(a.Data)})
			}
		}
		d.Steps = append(d.Steps, s)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(d)
}

// Shell writes the plan as one runnable sh script: the same text that the engine would run, a function a
// step. It stops before the reboot, says so, and goes on from the top when it is run again.
func (p Plan) Shell(w io.Writer) error {
	var b strings.Builder
	b.WriteString("#!/bin/sh\n# A plan by gpuguest for " + p.Distro.Name + ", driver " + p.driver() + " " + p.Choice.Flavor + ".\n" +
		"# Run as root in the guest; run it again after each reboot until it says that all is done.\n" +
		// Empty assignments, loops over one word and variables that one check leaves for another are how the steps
		// are put together; dash, bash and busybox know -ot and -nt.
		"# shellcheck disable=SC1007,SC2034,SC2043,SC3013\nset -eu\n\n")
	b.WriteString(Library(p.Distro))
	b.WriteString(p.Env)
	b.WriteString(`
# run NAME TITLE: one step in a shell of its own, so that no step can change the next one's.
run() {
	echo "== $1: $2"
	set +e
	( "step_$(echo "$1" | tr - _)" )
	code=$?
	set -e
	[ $code -eq 0 ] || { echo "$1: exit $code" >&2; exit $code; }
}
`)
	for _, it := range p.Items() {
		fmt.Fprintf(&b, "\nstep_%s() {\n%s}\n", strings.ReplaceAll(string(it.ID), "-", "_"), p.frame(it))
	}
	b.WriteString("\n")
	for i, s := range p.Segments {
		if i > 0 {
			b.WriteString(`if grep -s '"at_boot":true' "$S/journal" | grep -q "$(cat /proc/sys/kernel/random/boot_id)"; then
	echo "reboot now, then run this again"
	exit 0
fi
`)
		}
		for _, it := range s.Items {
			fmt.Fprintf(&b, "run %s %s\n", it.ID, sh.Quote(it.Title))
		}
	}
	b.WriteString("echo \"all is done\"\n")
	_, err := io.WriteString(w, b.String())
	return err
}
