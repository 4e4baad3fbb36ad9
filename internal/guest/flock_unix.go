//go:build unix

package guest

import (
	"os"

	"golang.org/x/sys/unix"
)

// lockFile waits for the file's advisory lock; closing the file gives it back.
func lockFile(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX) }
