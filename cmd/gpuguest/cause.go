package main

import (
	"slices"
	"strings"

	"gpuguest/internal/choice"
	"gpuguest/internal/diagnosis"
	"gpuguest/internal/engine"
	"gpuguest/internal/facts"
	"gpuguest/internal/hypervisor"
	"gpuguest/internal/remedy"
)

// knownCause returns the cause and the remedy that a step's output gives away, "" when none is known.
func knownCause(text string) string {
	v, ok := diagnosis.Cause(text)
	if !ok {
		return ""
	}
	return v.Hint()
}

// mending lets a run try remedies: which, and what the user's own words say against them.
func mending(policy engine.Remedies, w *choice.Want) func(*engine.Config) {
	return func(c *engine.Config) {
		c.Remedies = policy
		c.Against = func(m remedy.Remedy, f facts.Facts) string { return m.Against(*w, f) }
	}
}

// advice returns the exact lines to change where gpuguest does not reach: the window of the VM for a GPU whose
// BARs have no room, once what can be done about that in the guest was done.
func advice(v diagnosis.Verdict, f facts.Facts) []string {
	if v.Where != diagnosis.Host {
		return nil
	}
	all, err := diagnosis.Signatures()
	if err != nil {
		return nil
	}
	window := slices.ContainsFunc(all, func(s diagnosis.Signature) bool {
		return s.ID == v.ID && slices.ContainsFunc(s.Fixes, func(fix string) bool { return strings.HasPrefix(fix, "kernel-arg pci=") })
	})
	if !window {
		return nil
	}
	return hypervisor.WindowAdvice(f.GPUs)
}
