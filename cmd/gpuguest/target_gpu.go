package main

import (
	"strings"

	"gpuguest/internal/catalog"
	"gpuguest/internal/choice"
)

// targetGPUs is --target-gpu: GPUs to decide for in place of those that a guest has, by name or id. It is a list, so
// that a file may give it one.
type targetGPUs struct{ want *choice.Want }

// Set adds one.
func (t targetGPUs) Set(s string) error { return t.Append(s) }

// Append adds one.
func (t targetGPUs) Append(s string) error {
	if strings.Contains(s, ":") {
		t.want.Devices, t.want.NoGPU = append(t.want.Devices, s), true
		return nil
	}
	found, err := catalog.Named(s)
	if err != nil {
		return err
	}
	for _, g := range found {
		t.want.Devices = append(t.want.Devices, catalog.NVIDIA+":"+g.Device)
	}
	t.want.NoGPU = true
	return nil
}

// Replace takes these in place of others.
func (t targetGPUs) Replace(all []string) error {
	t.want.Devices = nil
	for _, s := range all {
		if err := t.Append(s); err != nil {
			return err
		}
	}
	return nil
}

// GetSlice returns the ids.
func (t targetGPUs) GetSlice() []string { return t.want.Devices }

func (t targetGPUs) String() string { return "" }

// Type is the value's kind in messages.
func (t targetGPUs) Type() string { return "stringArray" }
