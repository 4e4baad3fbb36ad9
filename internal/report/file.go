package report

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Public and Private are the modes of a file that Write puts somewhere: a report is for everybody to read.
const (
	Public  fs.FileMode = 0o644
	Private fs.FileMode = 0o600
)

// CanWrite tells whether Write can put a file at path, and leaves nothing behind. The error says why not.
func CanWrite(path string) error {
	path, err := target(path)
	if err != nil {
		return err
	}
	f, err := beside(path, Private)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// Write puts what fill writes at path, whole or not at all: by a temporary name in the same folder and a rename, as
// Prometheus' textfile collector asks for. A symbolic link is followed, so that it stays one.
func Write(path string, mode fs.FileMode, fill func(io.Writer) error) error {
	path, err := target(path)
	if err != nil {
		return err
	}
	f, err := beside(path, mode)
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", path, err), os.Remove(f.Name()))
	}
	return nil
}

// target is the file that path leads to. What is there and is no plain file is refused: a rename over a device or a
// pipe would take its place.
func target(path string) (string, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return path, nil
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s: not a plain file", path)
	}
	return filepath.EvalSymlinks(path)
}

// beside makes the temporary file. Its name ends in no ".prom", which a collector would read half written.
func beside(path string, mode fs.FileMode) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(mode); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	return f, nil
}
