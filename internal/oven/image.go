package oven

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// FormatOf asks qemu-img what format a disk image has. It may be any that QEMU reads.
func FormatOf(ctx context.Context, image string) (string, error) {
	out, err := qemuImg(ctx, "info", "--output=json", image)
	if err != nil {
		return "", err
	}
	var info struct {
		Format string `json:"format"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return "", fmt.Errorf("qemu-img info %s: %w", image, err)
	}
	return info.Format, nil
}

// Overlay makes a qcow2 image at path over a base of the given format. What is written to it leaves the base as it
// is.
func Overlay(ctx context.Context, base, format, path string) error {
	base, err := filepath.Abs(base)
	if err != nil {
		return err
	}
	_, err = qemuImg(ctx, "create", "-q", "-f", FormatQcow2, "-F", format, "-b", base, path)
	return err
}

// qemuImg runs a command of qemu-img and returns what it prints; its complaint is in the error.
func qemuImg(ctx context.Context, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, "qemu-img", args...)
	var complaint strings.Builder
	c.Stderr = &complaint
	out, err := c.Output()
	if err != nil {
		text := strings.TrimPrefix(strings.TrimSpace(complaint.String()), "qemu-img: ")
		return nil, fmt.Errorf("qemu-img %s: %w: %s", args[0], cmp.Or(ctx.Err(), err), text)
	}
	return out, nil
}
