package bake

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"gpuguest/internal/oven"
)

// Disk is a disk image in a format of Formats.
type Disk struct{ Path, Format string }

// DiskInfo is what a disk image says of itself.
type DiskInfo struct {
	Virtual   int64  // bytes that a guest sees
	Allocated int64  // bytes that it takes here
	Backing   string // another file that it reads from, its base or a qcow2's data file; "" none
}

// Disks makes disk images out of disk images. It never writes to the one that it reads.
type Disks interface {
	Info(ctx context.Context, d Disk) (DiskInfo, error)
	// Overlay makes a qcow2 at path that reads what it does not have from base.
	Overlay(ctx context.Context, base Disk, path string) error
	// Resize makes a disk of its own larger; bytes are a multiple of 512.
	Resize(ctx context.Context, d Disk, bytes int64) error
	// Copy writes to what from holds, without the blocks that hold nothing.
	Copy(ctx context.Context, from, to Disk, compress bool) error
}

// QEMUImg are Disks by qemu-img.
type QEMUImg struct{}

// qemuImg runs qemu-img and returns what it printed. No format is left to it to guess.
func qemuImg(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	// What outlives gpuguest would go on writing into a folder that the next run cleans.
	cmd.SysProcAttr = dieWithUs()
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, exec.ErrNotFound):
		return nil, errors.New("qemu-img is not installed here (Debian: qemu-utils)")
	case err != nil:
		said := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(errs.String()), "qemu-img: "))
		return nil, fmt.Errorf("qemu-img %s: %w: %s", args[0], err, said)
	}
	return out.Bytes(), nil
}

// Info implements Disks.
func (QEMUImg) Info(ctx context.Context, d Disk) (DiskInfo, error) {
	out, err := qemuImg(ctx, "info", "-f", d.Format, "--output=json", "--", d.Path)
	if err != nil {
		return DiskInfo{}, err
	}
	var info struct {
		Virtual   int64  `json:"virtual-size"`
		Allocated int64  `json:"actual-size"`
		Backing   string `json:"backing-filename"`
		Specific  struct {
			Data struct {
				File string `json:"data-file"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return DiskInfo{}, fmt.Errorf("qemu-img info: %w", err)
	}
	return DiskInfo{info.Virtual, info.Allocated, cmp.Or(info.Backing, info.Specific.Data.File)}, nil
}

// Overlay implements Disks.
func (QEMUImg) Overlay(ctx context.Context, base Disk, path string) error {
	_, err := qemuImg(ctx, "create", "-q", "-f", oven.FormatQcow2, "-F", base.Format, "-b", base.Path, "--", path)
	return err
}

// Resize implements Disks.
func (QEMUImg) Resize(ctx context.Context, d Disk, bytes int64) error {
	_, err := qemuImg(ctx, "resize", "-q", "-f", d.Format, "--", d.Path, fmt.Sprint(bytes))
	return err
}

// Copy implements Disks.
func (QEMUImg) Copy(ctx context.Context, from, to Disk, compress bool) error {
	args := []string{"convert", "-q", "-f", from.Format, "-O", to.Format}
	if compress {
		args = append(args, "-c")
	}
	_, err := qemuImg(ctx, append(args, "--", from.Path, to.Path)...)
	return err
}
