package guest

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// quickAck returns a function that makes the kernel acknowledge at once what it has received. Linux turns
// the option off again by itself (tcp(7)), so it is called after every read.
func quickAck(c net.Conn) func() {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return func() {}
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return func() {}
	}
	set := func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) }
	return func() { _ = raw.Control(set) }
}
