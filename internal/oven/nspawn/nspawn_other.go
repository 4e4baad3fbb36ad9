//go:build !linux

package nspawn

import (
	"context"
	"errors"

	"gpuguest/internal/oven"
)

var errOnlyLinux = errors.New("it needs Linux")

// Oven is the oven.
type Oven struct{}

// New makes one.
func New() Oven { return Oven{} }

// Name implements oven.Oven.
func (Oven) Name() string { return "nspawn" }

// HostKernel tells that guests run on this machine's kernel.
func (Oven) HostKernel() bool { return true }

// Usable implements oven.Oven.
func (Oven) Usable(context.Context) error { return errOnlyLinux }

// Start implements oven.Oven.
func (Oven) Start(context.Context, oven.Spec) (oven.Guest, error) { return nil, errOnlyLinux }

// Clean has nothing to do.
func (Oven) Clean(context.Context, string) error { return nil }
