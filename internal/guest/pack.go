package guest

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"time"

	"gpuguest/internal/sh"
)

const (
	// packSize is what TCP sends before the first answer comes, ten segments (RFC 6928), less room for ssh's own
	// bytes and for tunnels with smaller segments. A longer command line waits for a round trip more.
	packSize = 8 << 10
	// packFrom is the round trip from which that is more than the three processes that unpack cost the guest.
	packFrom = 5 * time.Millisecond
)

// cannotUnpack is the exit code of unpack where the guest has no base64 or gzip.
const cannotUnpack = 98

const packMark = "gpuguest-pack: "

// unpack runs the command line that $1 holds, gzipped and in base64. gzip's checksum tells whether it is whole. It
// reads no input, which may begin with a password. It is one line without a "!", which every login shell can read.
const unpack = `s=$(printf %s "$1" | base64 -d 2>/dev/null | gzip -dc 2>/dev/null) && eval "exec $s"; echo "` + packMark + `no base64 or gzip" >&2; exit 98`

// pack makes a command line that runs line and is a third of its size.
func pack(line string) string {
	var b bytes.Buffer
	// Writing to a buffer does not fail, and the level is a valid one.
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	_, _ = z.Write([]byte(line))
	_ = z.Close()
	return sh.Join("sh", "-c", unpack, "gpuguest", base64.StdEncoding.EncodeToString(b.Bytes()))
}

// packs tells whether a command line is worth packing on the way to this guest.
func (c *Conn) packs(line string) bool {
	return len(line) > packSize && c.connected >= packFrom && !c.plain.Load()
}

// refusedPack tells whether a packed line ended because the guest cannot unpack, and remembers that it cannot.
func (c *Conn) refusedPack(res Result, stderr []byte) bool {
	if res.Exit != cannotUnpack || !bytes.Contains(stderr, []byte(packMark)) {
		return false
	}
	c.plain.Store(true)
	return true
}

// unzip returns what a guest sent gzipped, up to maxStdout bytes.
func unzip(packed []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(z, maxStdout+1))
	if err == nil && len(out) > maxStdout {
		err = fmt.Errorf("%w: over %d bytes", ErrTooMuch, maxStdout)
	}
	return out, err
}
