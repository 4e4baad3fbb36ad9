package oven

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Throwaway makes an empty folder with a name of that prefix where temporary files are kept, for its owner alone, and
// returns it with what removes it. Folders of the prefix whose process was killed are removed first: a key may be in
// them, and a disk. That a process lives is told by its lock on the folder, which ends with it.
func Throwaway(prefix string) (dir string, remove func() error, err error) {
	if err := sweep(prefix); err != nil {
		return "", nil, err
	}
	for {
		if dir, err = os.MkdirTemp("", prefix); err != nil {
			return "", nil, err
		}
		f, err := openLocked(dir)
		if err != nil {
			return "", nil, errors.Join(err, os.RemoveAll(dir))
		}
		if f != nil {
			return dir, func() error { return errors.Join(os.RemoveAll(dir), f.Close()) }, nil
		}
		// Another process took it for a left one, between the folder and its lock.
	}
}

// sweep removes the folders of dead processes of this user.
func sweep(prefix string) error {
	all, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range all {
		st, err := os.Lstat(dir)
		if err != nil || !st.IsDir() {
			continue // it has gone meanwhile, or is nothing of ours
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() || st.Mode().Perm() != 0o700 {
			continue
		}
		f, err := openLocked(dir)
		if err != nil {
			return err
		}
		if f != nil {
			if err := errors.Join(os.RemoveAll(dir), f.Close()); err != nil {
				return err
			}
		}
	}
	return nil
}

// openLocked opens a folder and locks it. It is nil when somebody has the lock, or the folder is gone.
func openLocked(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, err
	}
	// Whoever had the lock before may have removed the folder meanwhile.
	mine, err := f.Stat()
	if err == nil {
		var there fs.FileInfo
		if there, err = os.Lstat(dir); err == nil && os.SameFile(mine, there) {
			return f, nil
		}
	}
	f.Close()
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return nil, err
}
