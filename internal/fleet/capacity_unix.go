//go:build unix

package fleet

import "golang.org/x/sys/unix"

// openFiles is how many files this process may have open; 0 unknown. Go raises the soft limit to the hard one.
func openFiles() uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0
	}
	return uint64(l.Cur)
}
