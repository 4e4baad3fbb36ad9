package nspawn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// netns is a network name space with a loopback device and nothing else. It lives as long as the thread that made it,
// which does what is to be done in it, or somebody else is in it.
type netns struct {
	work chan func()
	done chan struct{}
	file *os.File // the name space itself
}

func newNetns() (*netns, error) {
	n := &netns{work: make(chan func()), done: make(chan struct{})}
	made := make(chan error)
	go func() {
		defer close(n.done)
		// Never unlocked: the thread ends with the goroutine and is not used for anything else.
		runtime.LockOSThread()
		err := n.enter()
		made <- err
		if err != nil {
			return
		}
		for f := range n.work {
			f()
		}
	}()
	if err := <-made; err != nil {
		<-n.done
		return nil, fmt.Errorf("network name space: %w", err)
	}
	return n, nil
}

func (n *netns) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return err
	}
	n.file, err = os.Open("/proc/thread-self/ns/net")
	return err
}

// path is by what another program of this machine finds the name space, while this process lives.
func (n *netns) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// do runs f in the name space. Sockets that f makes stay in it.
func (n *netns) do(f func()) {
	done := make(chan struct{})
	n.work <- func() { defer close(done); f() }
	<-done
}

func (n *netns) listen(port int) (l net.Listener, err error) {
	n.do(func() {
		l, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	})
	return l, err
}

// dial connects within the name space, which a loopback answers or refuses at once.
func (n *netns) dial(ctx context.Context, port int) (c net.Conn, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n.do(func() {
		c, err = net.DialTCP("tcp4", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	})
	return c, err
}

func (n *netns) close() error {
	close(n.work)
	<-n.done
	err := n.file.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
