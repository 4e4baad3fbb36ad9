package guest

import (
	"net"
	"sync/atomic"
	"time"
)

// wireConn is the TCP connection below everything. It remembers when the guest was last heard, and asks
// for immediate acknowledgements after each read: sshd leaves Nagle's algorithm on until a channel is
// open, and would hold the first channel's confirmation until the client's delayed acknowledgement, 40 ms.
type wireConn struct {
	net.Conn
	ack  func()
	last atomic.Int64 // unix nanoseconds
}

func newWireConn(c net.Conn) *wireConn {
	w := &wireConn{Conn: c, ack: quickAck(c)}
	w.last.Store(time.Now().UnixNano())
	return w
}

func (w *wireConn) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.last.Store(time.Now().UnixNano())
		w.ack()
	}
	return n, err
}

func (w *wireConn) lastRead() time.Time { return time.Unix(0, w.last.Load()) }
