package bake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrHeld is matched by the error of an image that another gpuguest is baking.
var ErrHeld = errors.New("another gpuguest is baking it")

// work is the hidden folder beside an output in which everything happens until the image is whole. Whoever has
// its lock may clean it: what is in it then was left by a process that is gone.
type work struct {
	dir    string
	output string
	lock   *os.File
}

// The names in a work folder. The manifest is the last that is written: with it there, the image is whole.
const (
	workDisk     = "disk"
	workOven     = "oven"
	workImage    = "image"
	workManifest = "manifest.json"
)

// openWork takes the work folder of an output, and makes it where there is none.
func openWork(output string) (*work, error) {
	w := &work{output: output, dir: filepath.Join(filepath.Dir(output), "."+filepath.Base(output)+".bake")}
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(w.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := tryLock(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", output, err)
	}
	// Whoever had the lock before may have removed the folder between our opening the file and locking it.
	mine, err := f.Stat()
	if err == nil {
		var there fs.FileInfo
		if there, err = os.Stat(f.Name()); err == nil && !os.SameFile(mine, there) {
			err = fmt.Errorf("%s: %w", output, ErrHeld)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	w.lock = f
	return w, nil
}

func (w *work) path(name string) string { return filepath.Join(w.dir, name) }

// Cleaner is an oven that may leave something behind when gpuguest is killed: Clean removes what is connected to a
// scratch folder, and nothing else.
type Cleaner interface {
	Clean(ctx context.Context, scratch string) error
}

// clean removes what a killed run left, but for the lock.
func (w *work) clean(ctx context.Context, cleaners []Cleaner) error {
	var errs []error
	for _, c := range cleaners {
		errs = append(errs, c.Clean(ctx, w.path(workOven)))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "lock" {
			errs = append(errs, os.RemoveAll(w.path(e.Name())))
		}
	}
	return errors.Join(errs...)
}

// close removes the work folder, unless it holds what the next run can go on with, and gives the lock back.
func (w *work) close(ctx context.Context, cleaners []Cleaner) error {
	var errs []error
	if _, err := os.Stat(w.path(workManifest)); errors.Is(err, fs.ErrNotExist) {
		if err := w.clean(ctx, cleaners); err != nil {
			errs = append(errs, err)
		} else {
			errs = append(errs, os.RemoveAll(w.dir))
		}
	}
	return errors.Join(append(errs, w.lock.Close())...)
}

// finished returns the manifest of an image that was whole when its baker was killed.
func (w *work) finished() (Manifest, bool) {
	m, err := ReadManifest(w.path(workManifest))
	return m, err == nil
}

// publish puts a whole image and its manifest in their places. An old manifest goes first, so that at no moment one
// stands beside an image that is not its own; a run that is killed in between is taken up by the next.
func (w *work) publish() error {
	if _, err := os.Stat(w.path(workImage)); err == nil {
		if err := os.Remove(manifestOf(w.output)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Rename(w.path(workImage), w.output); err != nil {
			return err
		}
	}
	if err := os.Rename(w.path(workManifest), manifestOf(w.output)); err != nil {
		return err
	}
	return syncPath(filepath.Dir(w.output))
}

// syncPath has a file's or a folder's content on the disk.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
