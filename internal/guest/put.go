package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// File is a local file that is to be in the guest.
type File struct {
	Path   string      // absolute path in the guest
	Mode   fs.FileMode // permission bits; 0: 0644
	Owner  string      // "user" or "user:group"; "": root:root
	Size   int64       // bytes
	SHA256 string      // lower-case hex; "": worked out by reading the file once more
	Open   func() (io.ReadSeekCloser, error)

	Progress func(done, total int64) // called from several goroutines, done only grows; may be nil

	// Turn waits until this file may be sent for a while: others may be sending to other guests over the same way. It is
	// asked only when there is something to send, and again and again: a turn ends after a second, whatever was sent in
	// it. What it returns gives the turn back. nil: no waiting.
	Turn func(context.Context) (func(), error)
}

// PutResult says what it took.
type PutResult struct {
	Skipped bool  // the guest had the file already
	Sent    int64 // bytes sent by this call
	Resumed int64 // bytes found in the guest from an interrupted call, and verified
}

const (
	// sftpPacket is the largest payload with which a write request stays below OpenSSH's limit of 256 KiB for
	// a message (SFTP_MAX_MSG_LENGTH in sftp-common.h).
	sftpPacket = 261120
	// sftpPacketFar keeps the buffers of two dozen writers small, where the way and not the work sets the pace.
	sftpPacketFar = sftpPacket / 2
	// sftpAhead requests in flight for each of two writers on a channel cover sshd's 2 MiB channel window.
	sftpAhead = 5
	// sftpAheadNear are enough for one writer that gets its answers at once; more under way only cost the guest's
	// sshd its caches.
	sftpAheadNear = 2

	windowBytes     = 2 << 20 // sshd's channel window: what one stream can have under way
	assumedRate     = 450e6   // bytes a second that the way to a guest may carry
	maxStreams      = 12
	streamsEach     = 2 // channels on one connection; more share one TCP send buffer and gain nothing
	nearby          = 5 * time.Millisecond
	minChunk        = 4 << 20
	maxChunk        = 32 << 20
	parallelFrom    = 16 << 20
	stagingDir      = ".gpuguest-upload"
	chunksAimedFor  = 64
	pieceBytes      = 8 * sftpPacket // what a writer takes at a time
	pieceBytesNear  = 64 * sftpPacket
	lastPieceBytes  = 2 * sftpPacket // the same near the end of the file, so that all writers end together
	lastBytes       = 32 << 20       // that end: what all channels together have under way
	tempNameMark    = ".gpuguest-"
	tempNameHashLen = 12
)

// putFunctions is what both scripts need: a SHA-256 that uses the CPU's instructions where OpenSSL is there
// (four times as fast as coreutils'), and the stamp, which makes the look at a file already there cheap.
const putFunctions = `state=${GPUGUEST_STATE:-/var/lib/gpuguest}
fail() { echo "gpuguest-put: $*" >&2; exit 95; }
sum() {
	if printf x | openssl dgst -sha256 -r >/dev/null 2>&1; then
		openssl dgst -sha256 -r | cut -c1-64
	else
		sha256sum | cut -c1-64
	fi
}
stat_of() { stat -c '%s %y %z %i' "$1"; }
stamp() {
	(umask 077; mkdir -p "$state/stamps" && echo "$(stat_of "$1") $2" >"$state/stamps/$3.new" &&
		mv "$state/stamps/$3.new" "$state/stamps/$3") 2>/dev/null || :
}
dress() { chmod "$2" "$1" && chown "$3" "$1"; }
`

// putLook answers with lines "same", "free BYTES", "part SIZE", "chunk INDEX SHA256".
const putLook = putFunctions + `path=$1 part=$2 size=$3 sha=$4 chunk=$5 mode=$6 owner=$7 key=$8 stage=$9
[ ! -d "$path" ] || fail "$path is a directory"
if [ -f "$path" ] && [ ! -L "$path" ]; then
	if [ "$(cat "$state/stamps/$key" 2>/dev/null)" = "$(stat_of "$path") $sha" ]; then
		found=$sha
	elif [ "$(stat -c %s "$path")" = "$size" ]; then
		found=$(sum <"$path")
	else
		found=
	fi
	if [ "$found" = "$sha" ]; then
		if [ "$(stat -c '%a %U:%G' "$path")" != "$mode $owner" ]; then
			why=$(dress "$path" "$mode" "$owner" 2>&1) || fail "$why"
		fi
		stamp "$path" "$sha" "$key"
		rm -f "$part"
		[ "$stage" = 0 ] || rmdir "${part%/*}" 2>/dev/null || :
		echo same
		exit 0
	fi
fi
dir=${path%/*}
why=$(mkdir -p "${dir:-/}" 2>&1) || fail "$why"
echo "free $(df -Pk "${dir:-/}" | awk 'NR == 2 { print $4 * 1024 }')"
if [ "$stage" = 0 ]; then
	why=$( (umask 077; : >>"$part") 2>&1) || fail "$why"
else
	echo "free $(df -Pk "${part%/*}" | awk 'NR == 2 { print $4 * 1024 }')"
fi
[ -f "$part" ] || exit 0
have=$(stat -c %s "$part")
if [ "$have" -gt "$size" ]; then
	: >"$part"
	have=0
fi
echo "part $have"
i=0
while [ $((i * chunk)) -lt "$have" ]; do
	echo "chunk $i $(dd if="$part" bs="$chunk" skip="$i" count=1 2>/dev/null | sum)"
	i=$((i + 1))
done
`

// putFinish gives the complete file its owner, mode and name, on disk before it has the name. Where the client did
// not prove what it sent, because an earlier call sent some of it, the guest does.
const putFinish = putFunctions + `path=$1 part=$2 size=$3 sha=$4 mode=$5 owner=$6 key=$7 stage=$8 proved=$9
[ "$(stat -c %s "$part")" = "$size" ] || fail "the file has $(stat -c %s "$part") bytes, not $size"
if [ "$proved$stage" = 00 ] && [ "$(sum <"$part")" != "$sha" ]; then
	rm -f "$part"
	fail "what arrived is not the content with SHA-256 $sha; it was thrown away"
fi
new=$part
if [ "$stage" = 1 ]; then
	new=${path%/*}/.${path##*/}.gpuguest-new
	why=$( (umask 077; cat "$part" >"$new") 2>&1) || { rm -f "$new"; fail "$why"; }
	[ "$(sum <"$new")" = "$sha" ] || { rm -f "$new"; fail "the file changed on its way from $part"; }
fi
why=$(dress "$new" "$mode" "$owner" 2>&1) || fail "$why"
sync "$new" 2>/dev/null || sync
why=$(mv -f "$new" "$path" 2>&1) || fail "$why"
rm -f "$part" "${part%-*}"-*
[ "$stage" = 0 ] || rmdir "${part%/*}" 2>/dev/null || :
stamp "$path" "$sha" "$key"
`

// Put makes the guest have the file. It is there completely or not at all, whatever interrupts; an
// interrupted Put goes on with what had arrived, block by block, each checked by its SHA-256. Nothing gets the
// name that is not the content of that SHA-256: a local file that is another by now is ErrChanged. A login user
// who is not root uploads to a directory of its own, and root moves the file from there.
func (c *Conn) Put(ctx context.Context, f File) (PutResult, error) {
	p, err := c.planPut(ctx, f)
	if err != nil {
		return PutResult{}, err
	}
	defer p.close()
	var a *ahead
	var opened error
	var opening sync.WaitGroup
	if f.Turn == nil {
		a = p.reachOut(ctx)
		defer a.end()
		// Where it is likely to be used, the channel is opened while the guest is asked.
		if f.Size >= parallelFrom {
			opening.Go(func() { opened = p.open(ctx) })
		}
	}
	err = p.look(ctx)
	opening.Wait()
	if err == nil && !p.res.Skipped {
		err = opened
	}
	if err != nil || p.res.Skipped {
		return p.res, err
	}
	defer p.turn.end()
	if a == nil {
		// Of many guests that wait none has further connections already.
		if err := p.turn.renew(ctx); err != nil {
			return p.res, err
		}
		a = p.reachOut(ctx)
		defer a.end()
	}
	// So is the one for the command that ends it, while the bytes are on their way.
	finish := c.openEarly(ctx)
	defer finish.drop()
	if err := p.upload(ctx, a); err != nil {
		p.turn.end()
		if errors.Is(err, ErrChanged) {
			// Of no use to anybody. One that stays is overwritten by whoever sends the right content.
			_, _ = p.script(ctx, `rm -f "$1"`, p.part)
		}
		return p.res, p.explain(ctx, err)
	}
	p.turn.end() // others can send while the guest writes it to its disk
	return p.res, p.finish(ctx, finish)
}

// turnTime is how long a turn lasts. It is a time and not so many bytes, so that a slow guest has no more of the way than
// a fast one and keeps nobody waiting; and one that stops taking bytes loses its turn like any other.
const turnTime = time.Second

// turn is an upload's turn to send, had by all its writers together.
type turn struct {
	take func(context.Context) (func(), error) // nil: it is always this upload's turn

	mu       sync.Mutex
	until    time.Time
	over     *time.Timer
	giveBack func()
}

// renew waits for the next turn when the last one is over. What is under way by then arrives meanwhile.
func (t *turn) renew(ctx context.Context) error {
	if t.take == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Now().Before(t.until) {
		return nil
	}
	t.stop()
	giveBack, err := t.take(ctx)
	if err != nil {
		return err
	}
	t.giveBack = sync.OnceFunc(giveBack)
	t.until, t.over = time.Now().Add(turnTime), time.AfterFunc(turnTime, t.giveBack)
	return nil
}

// end gives the turn back.
func (t *turn) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop()
}

func (t *turn) stop() {
	if t.over != nil {
		t.over.Stop()
		t.giveBack()
		t.over, t.until = nil, time.Time{}
	}
}

// put is one Put under way.
type put struct {
	conn  *Conn
	file  File
	part  string // where the bytes go first
	stage bool   // part is in the login user's staging directory
	mode  string
	owner string
	key   string // names the stamp
	chunk int64

	turn    turn
	sftp    *sftp.Client
	missing []int64 // chunks to send
	proved  bool    // all that was sent was seen to have the SHA-256
	done    atomic.Int64
	sent    atomic.Int64
	res     PutResult
}

func (c *Conn) planPut(ctx context.Context, f File) (*put, error) {
	if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" || strings.ContainsAny(f.Path, "\x00\n") {
		return nil, fmt.Errorf("%s: put %q: not an absolute, clean path", c.host, f.Path)
	}
	if f.SHA256 == "" {
		sum, err := hashFile(ctx, f)
		if err != nil {
			return nil, err
		}
		f.SHA256 = sum
	}
	if len(f.SHA256) != 2*sha256.Size || strings.Trim(f.SHA256, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%s: put %s: %q is no SHA-256", c.host, f.Path, f.SHA256)
	}
	if f.Mode == 0 {
		f.Mode = 0o644
	}
	if f.Owner == "" {
		f.Owner = "root:root"
	}
	if !strings.Contains(f.Owner, ":") {
		f.Owner += ":" + f.Owner
	}
	key := sha256.Sum256([]byte(f.Path))
	p := &put{conn: c, file: f, mode: strconv.FormatUint(uint64(f.Mode.Perm()), 8), owner: f.Owner,
		key: hex.EncodeToString(key[:16]), turn: turn{take: f.Turn}}
	p.chunk = min(max(f.Size/chunksAimedFor, minChunk), maxChunk)
	name := "." + path.Base(f.Path) + tempNameMark + f.SHA256[:tempNameHashLen]
	p.part = path.Join(path.Dir(f.Path), name)
	if c.privilege().mode != privRoot {
		p.stage = true
		if err := p.open(ctx); err != nil {
			return nil, err
		}
		err := c.do(ctx, func() error {
			home, err := p.sftp.RealPath(".")
			if err != nil {
				return err
			}
			dir := path.Join(home, stagingDir)
			_ = p.sftp.Mkdir(dir) // it may be there; Chmod tells whether it is ours
			if err := p.sftp.Chmod(dir, 0o700); err != nil {
				return fmt.Errorf("%s: %w", dir, err)
			}
			p.part = path.Join(dir, name)
			return nil
		}, p.close)
		if err != nil {
			p.close()
			return nil, p.explain(ctx, err)
		}
	}
	return p, nil
}

func hashFile(ctx context.Context, f File) (string, error) {
	r, err := f.Open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sha256.New()
	n, err := io.Copy(h, readerFunc(func(b []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, context.Cause(ctx)
		}
		return r.Read(b)
	}))
	if err != nil {
		return "", err
	}
	if n != f.Size {
		return "", fmt.Errorf("put %s: the local file has %d bytes, not %d", f.Path, n, f.Size)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (p *put) close() {
	if p.sftp != nil {
		_ = p.sftp.Close()
	}
}

// sftpOptions are those of a channel whose requests carry so many bytes.
func sftpOptions(packet int) []sftp.ClientOption {
	return []sftp.ClientOption{sftp.MaxPacketUnchecked(packet), sftp.UseConcurrentWrites(true), sftp.MaxConcurrentRequestsPerFile(64)}
}

// openSFTP opens the first channel for files of a guest, or learns that it has none.
func openSFTP(ctx context.Context, c *Conn) (*sftp.Client, error) {
	return callSFTP(ctx, c, func() (*sftp.Client, error) { return sftp.NewClient(c.client, sftpOptions(sftpPacket)...) })
}

// openAnotherSFTP opens a further one, and saves a round trip: it begins to talk before the guest has agreed. A
// guest that does not agree would not say so, but this one has before.
func openAnotherSFTP(ctx context.Context, c *Conn, packet int) (*sftp.Client, error) {
	return callSFTP(ctx, c, func() (*sftp.Client, error) {
		ch, reqs, err := c.client.OpenChannel("session", nil)
		if err != nil {
			return nil, err
		}
		c.tasks.Go(func() { ssh.DiscardRequests(reqs) })
		c.tasks.Go(func() { _, _ = io.Copy(io.Discard, ch.Stderr()) })
		if _, err := ch.SendRequest("subsystem", false, ssh.Marshal(struct{ Name string }{"sftp"})); err != nil {
			_ = ch.Close()
			return nil, err
		}
		return sftp.NewClientPipe(ch, ch, sftpOptions(packet)...)
	})
}

func callSFTP(ctx context.Context, c *Conn, open func() (*sftp.Client, error)) (*sftp.Client, error) {
	var s *sftp.Client
	opened := make(chan struct{})
	err := c.call(ctx, func() (err error) {
		defer close(opened)
		s, err = open()
		return err
	}, func() {
		<-opened
		if s != nil {
			_ = s.Close()
		}
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (p *put) open(ctx context.Context) error {
	if p.sftp != nil {
		return nil
	}
	s, err := openSFTP(ctx, p.conn)
	if err != nil {
		return p.explain(ctx, err)
	}
	p.sftp = s
	return nil
}

func (p *put) stageArg() string {
	if p.stage {
		return "1"
	}
	return "0"
}

func (p *put) script(ctx context.Context, script string, args ...string) (string, error) {
	return p.run(ctx, call{script: script, args: args})
}

// run runs a call, whose output it returns.
func (p *put) run(ctx context.Context, k call) (string, error) {
	var stdout, stderr capture
	stdout.max, stderr.max = maxStdout, maxStderr
	k.stdout, k.stderr = &stdout, &stderr
	res, err := p.conn.exec(ctx, k)
	if err != nil {
		return "", err
	}
	if res.Exit != 0 {
		words := strings.TrimSpace(string(stderr.bytes()))
		if i := strings.LastIndex(words, "gpuguest-put: "); i >= 0 {
			words = words[i+len("gpuguest-put: "):]
		}
		if res.Exit != 95 { // 95 is the scripts' own, and its words say it all
			words = fmt.Sprintf("exit %d: %s", res.Exit, words)
		}
		return "", fmt.Errorf("%s: put %s: %w", p.conn.host, p.file.Path, oneLine(words))
	}
	return string(stdout.bytes()), nil
}

// look asks the guest what it has.
func (p *put) look(ctx context.Context) error {
	f := p.file
	out, err := p.script(ctx, putLook, f.Path, p.part, strconv.FormatInt(f.Size, 10), f.SHA256,
		strconv.FormatInt(p.chunk, 10), p.mode, p.owner, p.key, p.stageArg())
	if err != nil {
		return err
	}
	free := int64(-1)
	have := map[int64]string{}
	for _, line := range strings.Split(out, "\n") {
		w := strings.Fields(line)
		switch {
		case len(w) == 1 && w[0] == "same":
			p.res.Skipped = true
			return nil
		case len(w) == 2 && w[0] == "free":
			n, err := strconv.ParseFloat(w[1], 64) // awk may print a large number as 1.2e+12
			if err == nil && (free < 0 || int64(n) < free) {
				free = int64(n)
			}
		case len(w) == 3 && w[0] == "chunk":
			if i, err := strconv.ParseInt(w[1], 10, 64); err == nil {
				have[i] = w[2]
			}
		}
	}
	if err := p.compare(ctx, have); err != nil {
		return err
	}
	if need := f.Size - p.res.Resumed; free >= 0 && need > free {
		return p.noSpace(free, need)
	}
	return nil
}

func (p *put) noSpace(free, need int64) error {
	return &Error{Kind: ErrNoSpace, Host: p.conn.host,
		Msg:  fmt.Sprintf("put %s: %d MiB free, %d MiB needed", p.file.Path, free>>20, (need+1<<20-1)>>20),
		hint: "make room in the guest and run the same command again; what has arrived is kept"}
}

// compare decides which chunks are to be sent: those whose hash in the guest is not the local one.
func (p *put) compare(ctx context.Context, have map[int64]string) error {
	n := (p.file.Size + p.chunk - 1) / p.chunk
	var local io.ReadSeekCloser
	if len(have) > 0 {
		var err error
		if local, err = p.file.Open(); err != nil {
			return err
		}
		defer local.Close()
	}
	for i := range n {
		if theirs, ok := have[i]; ok {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			h := sha256.New()
			if _, err := local.Seek(i*p.chunk, io.SeekStart); err != nil {
				return err
			}
			if _, err := io.CopyN(h, local, p.length(i)); err != nil {
				return fmt.Errorf("put %s: read the local file: %w", p.file.Path, err)
			}
			if hex.EncodeToString(h.Sum(nil)) == theirs {
				p.res.Resumed += p.length(i)
				continue
			}
		}
		p.missing = append(p.missing, i)
	}
	p.done.Store(p.res.Resumed)
	return nil
}

// length is the size of chunk i; the last one may be shorter.
func (p *put) length(i int64) int64 { return min(p.chunk, p.file.Size-i*p.chunk) }

// streams is how many channels are worth their set-up: as many windows as the way holds bytes.
func streams(size int64, rtt time.Duration) int {
	if size < parallelFrom {
		return 1
	}
	if rtt < nearby {
		return streamsEach // one connection
	}
	n := int(assumedRate*rtt.Seconds()/windowBytes) + 1
	return min(n, maxStreams)
}

// rtt measures one round trip.
func (c *Conn) rtt(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	err := c.call(ctx, func() error {
		_, _, err := c.client.SendRequest("keepalive@openssh.com", true, nil)
		return err
	}, func() {})
	return time.Since(start), err
}

// ahead is what a large upload over a distance gains from and never waits for: further connections, whose
// making takes longer than asking the guest what it has.
type ahead struct {
	cancel  context.CancelFunc
	streams chan int   // one number: how many channels are worth it
	conns   chan *Conn // closed when no more will come
	dials   sync.WaitGroup
	ends    sync.WaitGroup // of channels and connections whose work is done
}

// reachOut measures the way and begins to dial.
func (p *put) reachOut(ctx context.Context) *ahead {
	dialling, cancel := context.WithCancel(ctx)
	a := &ahead{cancel: cancel, streams: make(chan int, 1), conns: make(chan *Conn, maxStreams)}
	if p.file.Size < parallelFrom {
		a.streams <- 1
		close(a.conns)
		return a
	}
	a.dials.Go(func() {
		defer close(a.conns)
		n := streams(p.file.Size, p.conn.connected)
		if n <= streamsEach {
			// What answered near by may have passed it on: a jump host, a forwarded port.
			if d, err := p.conn.rtt(ctx); err == nil {
				n = streams(p.file.Size, d)
			}
		}
		a.streams <- n
		var all sync.WaitGroup
		for made := streamsEach; made < n; made += streamsEach {
			all.Go(func() {
				// One that does not come up only costs speed.
				if c, err := p.conn.Redial(dialling); err == nil {
					a.conns <- c
				}
			})
		}
		all.Wait()
	})
	return a
}

// end calls off what is still on its way and closes what nobody took.
func (a *ahead) end() {
	a.cancel()
	a.dials.Wait()
	for c := range a.conns {
		_ = c.Close()
	}
	a.ends.Wait()
}

// upload sends the missing chunks. Further connections join as they come up.
func (p *put) upload(ctx context.Context, a *ahead) error {
	if len(p.missing) == 0 && p.file.Size > 0 {
		return nil
	}
	if err := p.open(ctx); err != nil {
		return err
	}
	if p.file.Size == 0 {
		if sha256.Sum256(nil) != [sha256.Size]byte(p.sha()) {
			return p.changed()
		}
		p.proved = true
		return p.conn.do(ctx, func() error {
			f, err := p.sftp.OpenFile(p.part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
			if err != nil {
				return err
			}
			return f.Close()
		}, p.close)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	missing := p.file.Size - p.res.Resumed
	queue := &pieces{put: p, chunks: p.missing, rest: missing, left: missing, seed: maphash.MakeSeed(), more: make(chan struct{}, 1)}
	extra, stopExtra := context.WithCancel(ctx)
	lastTaken := func() { stopExtra(); a.cancel() }

	work := func(c *Conn, s *sftp.Client, w way) {
		var g sync.WaitGroup
		for range w.writers {
			g.Go(func() {
				err := c.do(ctx, func() error { return p.write(ctx, s, queue, w, lastTaken) }, func() { _ = s.Close() })
				if err != nil {
					cancel(err)
				}
			})
		}
		g.Wait()
	}
	// Taking leave costs a round trip that nobody needs to wait for: every byte was acknowledged before.
	channel := func(c *Conn, w way) {
		s, err := openAnotherSFTP(extra, c, w.packet)
		if err != nil {
			return
		}
		work(c, s, w)
		a.ends.Go(func() { _ = s.Close() })
	}
	var all sync.WaitGroup
	near := way{writers: 1, packet: sftpPacket, ahead: sftpAheadNear, piece: pieceBytesNear}
	first := way{writers: 2, packet: sftpPacket, ahead: sftpAhead, piece: pieceBytes}
	if p.turn.take != nil {
		near.piece = pieceBytes // more than a turn's worth is not to be under way
	}
	far := way{writers: 2, packet: sftpPacketFar, ahead: 2 * sftpAhead, piece: pieceBytes}
	all.Go(func() {
		switch n := <-a.streams; {
		case n > streamsEach:
			all.Go(func() { channel(p.conn, far) })
			work(p.conn, p.sftp, first)
		case n > 1:
			all.Go(func() { channel(p.conn, near) })
			work(p.conn, p.sftp, near)
		default:
			work(p.conn, p.sftp, near)
		}
	})
	all.Go(func() {
		for c := range a.conns {
			all.Go(func() {
				var g sync.WaitGroup
				for range streamsEach {
					g.Go(func() { channel(c, far) })
				}
				g.Wait()
				a.ends.Go(func() { _ = c.Close() })
			})
		}
	})
	if p.res.Resumed == 0 {
		all.Go(func() {
			if err := p.prove(ctx, queue); err != nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	p.res.Sent = p.sent.Load()
	failed := ctx.Err() != nil
	cause := context.Cause(ctx)
	stopExtra()
	cancel(nil)
	if failed {
		return cause
	}
	if queue.unwritten() > 0 {
		return errors.New("upload incomplete")
	}
	if p.res.Resumed > 0 {
		return nil // for the guest to prove
	}
	if !queue.same() {
		return p.changed()
	}
	p.proved = true
	return nil
}

func (p *put) sha() []byte {
	sum, _ := hex.DecodeString(p.file.SHA256) // planPut saw that it is one
	return sum
}

func (p *put) changed() error {
	return &Error{Kind: ErrChanged, Host: p.conn.host, Msg: "put " + p.file.Path + ": the local file is no longer the one with SHA-256 " + p.file.SHA256,
		hint: "something writes the file here: wait for its end and run the same command again"}
}

// prove sees that the bytes sent are those of the SHA-256. The writers read them out of order, which SHA-256 cannot
// take, and asking the guest would cost up to a second for 256 MiB once they have arrived. So the file is read once
// more here, beside the sending and right behind it: all of it for the SHA-256, and each piece for a keyed sum that
// must be the one of what its writer read. That the file looks untouched (time, size, inode) would not do: a change
// within one tick of the clock, or by memory map, does not show.
func (p *put) prove(ctx context.Context, queue *pieces) error {
	local, err := p.file.Open()
	if err != nil {
		return err
	}
	defer local.Close()
	whole := sha256.New()
	var own maphash.Hash
	own.SetSeed(queue.seed)
	buf := make([]byte, sftpPacketFar)
	for i := 0; ; i++ {
		w, ok, err := queue.handed(ctx, i)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		own.Reset()
		n, err := io.CopyBuffer(io.MultiWriter(whole, &own), io.LimitReader(local, w.length), buf)
		if err != nil {
			return err
		}
		if n != w.length {
			return p.changed()
		}
		queue.expect(i, own.Sum64())
	}
	if !bytes.Equal(whole.Sum(nil), p.sha()) {
		return p.changed()
	}
	return nil
}

// way is how a channel is used.
type way struct {
	writers int   // while one waits for its last answer, another keeps the window full
	packet  int   // bytes of a request
	ahead   int   // requests of each in flight
	piece   int64 // bytes that one takes at a time
}

// piece is a range of the file.
type piece struct {
	off, length int64
	number      int // in the order of the file
}

// sums are a piece's, with the upload's own key: as it was sent, and as it was when the whole had the SHA-256.
type sums struct{ sent, right uint64 }

// pieces hands out what is missing, from the front. Towards the end all take little, so that all end together.
type pieces struct {
	put *put

	mu     sync.Mutex
	chunks []int64 // not wholly taken
	taken  int64   // bytes of the first of them
	rest   int64   // bytes not taken
	left   int64   // bytes that the guest has not acknowledged
	out    []piece // handed out
	sums   []sums  // of those

	seed maphash.Seed
	more chan struct{} // has an element when more was handed out
}

// next returns a piece of at most so many bytes, and false when there is none left. It may have to wait for its turn.
func (q *pieces) next(ctx context.Context, atMost int64) (piece, bool, error) {
	if q.empty() {
		return piece{}, false, nil
	}
	if err := q.put.turn.renew(ctx); err != nil {
		return piece{}, false, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.chunks) == 0 {
		return piece{}, false, nil
	}
	if q.rest < lastBytes {
		atMost = min(atMost, lastPieceBytes)
	}
	i := q.chunks[0]
	w := piece{off: i*q.put.chunk + q.taken, length: min(atMost, q.put.length(i)-q.taken), number: len(q.out)}
	q.out, q.sums = append(q.out, w), append(q.sums, sums{})
	select {
	case q.more <- struct{}{}:
	default:
	}
	q.taken += w.length
	q.rest -= w.length
	if q.taken == q.put.length(i) {
		q.chunks, q.taken = q.chunks[1:], 0
	}
	return w, true, nil
}

func (q *pieces) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.chunks) == 0
}

func (q *pieces) wrote(w piece, sum uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.left -= w.length
	q.sums[w.number].sent = sum
}

func (q *pieces) expect(number int, sum uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sums[number].right = sum
}

// same tells whether every piece was sent as it should have been.
func (q *pieces) same() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !slices.ContainsFunc(q.sums, func(s sums) bool { return s.sent != s.right })
}

// handed waits until a piece has been handed out and returns it, and false when there are not so many.
func (q *pieces) handed(ctx context.Context, number int) (piece, bool, error) {
	for {
		q.mu.Lock()
		last := len(q.chunks) == 0
		if number < len(q.out) {
			w := q.out[number]
			q.mu.Unlock()
			return w, true, nil
		}
		q.mu.Unlock()
		if last {
			return piece{}, false, nil
		}
		select {
		case <-q.more:
		case <-ctx.Done():
			return piece{}, false, context.Cause(ctx)
		}
	}
}

// unwritten is how many bytes the guest has not acknowledged.
func (q *pieces) unwritten() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.left
}

// write sends pieces from the queue until it is empty. When the last one has been taken, connections still
// on their way are called off. The guest's end of the file is closed with the channel.
func (p *put) write(ctx context.Context, s *sftp.Client, queue *pieces, how way, lastTaken func()) error {
	first, ok, err := queue.next(ctx, how.piece)
	if err != nil {
		return err
	}
	if !ok {
		lastTaken()
		return nil
	}
	local, err := p.file.Open()
	if err != nil {
		return err
	}
	defer local.Close()
	remote, err := s.OpenFile(p.part, os.O_WRONLY|os.O_CREATE)
	if err != nil {
		return err
	}
	var sum maphash.Hash
	sum.SetSeed(queue.seed)
	for w := first; ok; w, ok, err = queue.next(ctx, how.piece) {
		sum.Reset()
		if _, err := local.Seek(w.off, io.SeekStart); err != nil {
			return err
		}
		if _, err := remote.Seek(w.off, io.SeekStart); err != nil {
			return err
		}
		n, err := remote.ReadFromWithConcurrency(&counted{r: io.LimitReader(local, w.length), p: p, sum: &sum}, how.ahead)
		if err != nil {
			return err
		}
		if n != w.length {
			return p.changed()
		}
		queue.wrote(w, sum.Sum64())
	}
	if err != nil {
		return err
	}
	lastTaken()
	return nil
}

// counted reports progress as the bytes are taken; that is ahead of the guest by what is under way. It sums them, too.
type counted struct {
	r   io.Reader
	p   *put
	sum *maphash.Hash
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	_, _ = c.sum.Write(b[:n])
	c.p.sent.Add(int64(n))
	done := c.p.done.Add(int64(n))
	if c.p.file.Progress != nil && n > 0 {
		c.p.file.Progress(done, c.p.file.Size)
	}
	return n, err
}

// explain finds the reason of a failed upload. OpenSSH's server has the single word "failure" for a full
// disk, so the guest is asked.
func (p *put) explain(ctx context.Context, err error) error {
	c := p.conn
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	select {
	case <-c.dead:
		return c.lost(nil)
	default:
	}
	if errors.Is(err, sftp.ErrSSHFxConnectionLost) || isBroken(err) {
		return c.lost(err)
	}
	var status *sftp.StatusError
	if errors.As(err, &status) {
		out, derr := p.script(ctx, `df -Pk "$1" | awk 'NR == 2 { print $4 * 1024 }'`, path.Dir(p.part))
		need := p.file.Size - p.done.Load() + windowBytes
		if free, perr := strconv.ParseFloat(strings.TrimSpace(out), 64); derr == nil && perr == nil && int64(free) < need {
			return p.noSpace(int64(free), need)
		}
	}
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	return fmt.Errorf("%s: put %s: %w", c.host, p.file.Path, err)
}

// finish gives the file its name. A connection that is lost here leaves the part, or the finished file.
func (p *put) finish(ctx context.Context, on *early) error {
	f, proved := p.file, "0"
	if p.proved {
		proved = "1"
	}
	_, err := p.run(ctx, call{script: putFinish, on: on,
		args: []string{f.Path, p.part, strconv.FormatInt(f.Size, 10), f.SHA256, p.mode, p.owner, p.key, p.stageArg(), proved}})
	return err
}
