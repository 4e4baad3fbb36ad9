package bake

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// tryLock takes an exclusive lock on a file, which ends with the process. It is ErrHeld when somebody has it.
func tryLock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrHeld
	}
	return err
}

// dieWithUs has the kernel end a program when gpuguest is killed.
func dieWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// FreeSpace is how many bytes a user without privileges may still write in a folder, and in which file system.
func FreeSpace(dir string) (Space, error) {
	var st syscall.Stat_t
	var sfs syscall.Statfs_t
	if err := errors.Join(syscall.Stat(dir, &st), syscall.Statfs(dir, &sfs)); err != nil {
		return Space{}, err
	}
	return Space{FS: st.Dev, Free: int64(sfs.Bavail) * sfs.Bsize}, nil
}

// taking is how many bytes the files in a folder take on their disk. What goes away meanwhile takes none.
func taking(dir string) int64 {
	total := int64(0)
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err == nil && syscall.Lstat(path, &st) == nil {
			total += st.Blocks * 512
		}
		return nil
	})
	return total
}
