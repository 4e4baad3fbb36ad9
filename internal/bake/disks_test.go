package bake_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/internal/bake"
)

// TestEveryFormatGoesInAndOut: a disk of each format is the base of an overlay, and becomes a disk of each format, with
// the same content; the base is as it was.
func TestEveryFormatGoesInAndOut(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is not installed")
	}
	dir := t.TempDir()
	content := append(bytes.Repeat([]byte("gpuguest"), 1<<14), make([]byte, 4<<20-8<<14)...)
	raw := bake.Disk{Path: filepath.Join(dir, "content"), Format: "raw"}
	if err := os.WriteFile(raw.Path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	var q bake.QEMUImg
	ctx := t.Context()
	for _, in := range bake.Formats {
		base := bake.Disk{Path: filepath.Join(dir, "base."+in), Format: in}
		if err := q.Copy(ctx, raw, base, false); err != nil {
			t.Fatal(err)
		}
		before := read(t, base.Path)
		overlay := bake.Disk{Path: filepath.Join(dir, in+".overlay"), Format: "qcow2"}
		if err := q.Overlay(ctx, base, overlay.Path); err != nil {
			t.Fatal(err)
		}
		info, err := q.Info(ctx, overlay)
		if err != nil || info.Virtual != int64(len(content)) || info.Backing != base.Path {
			t.Errorf("%s: %+v, %v", in, info, err)
		}
		for _, out := range bake.Formats {
			image, back := bake.Disk{Path: filepath.Join(dir, in+"."+out), Format: out}, bake.Disk{Path: filepath.Join(dir, "back"), Format: "raw"}
			if err := errors.Join(q.Copy(ctx, overlay, image, out == "qcow2"), q.Copy(ctx, image, back, false)); err != nil {
				t.Fatal(err)
			}
			if info, err := q.Info(ctx, image); err != nil || info.Backing != "" {
				t.Errorf("%s to %s: %+v, %v", in, out, info, err)
			}
			if read(t, back.Path) != string(content) {
				t.Errorf("%s to %s: another content", in, out)
			}
		}
		if read(t, base.Path) != before {
			t.Errorf("%s: the base was written to", in)
		}
	}
	// Both that an oven takes are made larger, with nothing in what is new.
	for _, d := range []bake.Disk{{Path: filepath.Join(dir, "qcow2.overlay"), Format: "qcow2"}, {Path: filepath.Join(dir, "own"), Format: "raw"}} {
		if d.Format == "raw" {
			if err := q.Copy(ctx, raw, d, false); err != nil {
				t.Fatal(err)
			}
		}
		back := bake.Disk{Path: filepath.Join(dir, "back"), Format: "raw"}
		if err := errors.Join(q.Resize(ctx, d, 6<<20), q.Copy(ctx, d, back, false)); err != nil {
			t.Fatal(err)
		}
		if got := read(t, back.Path); got != string(content)+strings.Repeat("\x00", 2<<20) {
			t.Errorf("%s: %d bytes of another content", d.Format, len(got))
		}
	}
	if _, err := q.Info(ctx, bake.Disk{Path: raw.Path, Format: "qcow2"}); err == nil || !strings.Contains(err.Error(), "qemu-img info: ") {
		t.Errorf("a raw disk is a qcow2: %v", err)
	}
	// What a qcow2 keeps in a file of its own is not in it either.
	outside := filepath.Join(dir, "outside.qcow2")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+outside+".data", outside, "1M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if info, err := q.Info(ctx, bake.Disk{Path: outside, Format: "qcow2"}); err != nil || info.Backing != outside+".data" {
		t.Errorf("%+v, %v", info, err)
	}
	cause := errors.New("interrupted")
	ended, cancel := context.WithCancelCause(ctx)
	cancel(cause)
	if err := q.Copy(ended, raw, bake.Disk{Path: filepath.Join(dir, "late"), Format: "raw"}, false); !errors.Is(err, cause) {
		t.Errorf("after an interrupt: %v", err)
	}
}
