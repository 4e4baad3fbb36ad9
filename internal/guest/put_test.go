package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gpuguest/internal/guest/guesttest"
)

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// localFile is a File of pseudo-random bytes, owned by whoever runs the tests: only root may give files away.
func localFile(t testing.TB, size int, path string) (File, []byte) {
	t.Helper()
	data := make([]byte, size)
	var seed [32]byte
	_, _ = rand.NewChaCha8(seed).Read(data)
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	g, err := user.LookupGroupId(u.Gid)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return File{Path: path, Mode: 0o640, Owner: u.Username + ":" + g.Name, Size: int64(size), SHA256: hex.EncodeToString(sum[:]),
		Open: func() (io.ReadSeekCloser, error) { return nopCloser{bytes.NewReader(data)}, nil }}, data
}

func mustHold(t testing.TB, path string, data []byte, mode os.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Errorf("%s: %d bytes that differ from the %d sent", path, len(got), len(data))
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != mode {
		t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*gpuguest*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestPutThenPutAgain(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 300 << 10, 9 << 20} {
		shell, _, cfg := shellGuest(t)
		c := mustDial(t, cfg)
		f, data := localFile(t, size, filepath.Join(shell.Dir, "new", "dir", "file name's"))
		var done atomic.Int64
		f.Progress = func(n, total int64) {
			for {
				old := done.Load()
				if n <= old || done.CompareAndSwap(old, n) {
					break
				}
			}
			if total != int64(size) {
				t.Errorf("total %d", total)
			}
		}
		res, err := c.Put(t.Context(), f)
		if err != nil || res.Skipped || res.Sent != int64(size) || done.Load() != int64(size) {
			t.Fatalf("%d bytes: %+v, %v, progress %d", size, res, err, done.Load())
		}
		mustHold(t, f.Path, data, 0o640)
		before := c.Execs()
		res, err = c.Put(t.Context(), f)
		if err != nil || !res.Skipped || res.Sent != 0 || c.Execs() != before+1 {
			t.Errorf("again: %+v, %v, %d execs", res, err, c.Execs()-before)
		}
		f.Mode = 0o600
		if res, err := c.Put(t.Context(), f); err != nil || !res.Skipped {
			t.Errorf("another mode: %+v, %v", res, err)
		}
		mustHold(t, f.Path, data, 0o600)
	}
}

func TestPutNoticesAChangedFileInTheGuest(t *testing.T) {
	shell, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	f, data := localFile(t, 100<<10, filepath.Join(shell.Dir, "file"))
	if _, err := c.Put(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	// The same size and, as far as touch can, the same time: only the content differs.
	info, err := os.Stat(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(data)
	other[5] ^= 1
	if err := os.WriteFile(f.Path, other, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(f.Path, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	res, err := c.Put(t.Context(), f)
	if err != nil || res.Skipped {
		t.Errorf("got %+v, %v", res, err)
	}
	mustHold(t, f.Path, data, 0o640)
}

func TestPutWithoutAHashWorksItOut(t *testing.T) {
	shell, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	f, data := localFile(t, 1000, filepath.Join(shell.Dir, "file"))
	want := f.SHA256
	f.SHA256 = ""
	if res, err := c.Put(t.Context(), f); err != nil || res.Sent != 1000 {
		t.Fatalf("got %+v, %v", res, err)
	}
	mustHold(t, f.Path, data, 0o640)
	f.SHA256 = want
	if res, err := c.Put(t.Context(), f); err != nil || !res.Skipped {
		t.Errorf("got %+v, %v", res, err)
	}
	f.SHA256, f.Size = "", 999
	if _, err := c.Put(t.Context(), f); err == nil {
		t.Error("a wrong size was taken")
	}
}

func TestPutGoesOnWhereItWasCut(t *testing.T) {
	t.Parallel()
	shell, s, cfg := shellGuest(t)
	f, data := localFile(t, 40<<20, filepath.Join(shell.Dir, "file"))
	c := mustDial(t, cfg)
	var once atomic.Bool
	f.Progress = func(done, _ int64) {
		if done > 32<<20 && once.CompareAndSwap(false, true) {
			s.Cut()
		}
	}
	within(t, 30*time.Second, func() {
		if _, err := c.Put(t.Context(), f); !errors.Is(err, ErrDisconnected) {
			t.Fatalf("got %v", err)
		}
	})
	if pathThere(f.Path) {
		t.Fatal("the file is there although it is not complete")
	}
	part, _ := filepath.Glob(filepath.Join(shell.Dir, ".file.gpuguest-*"))
	if len(part) != 1 {
		t.Fatalf("parts: %v", part)
	}
	if info, err := os.Stat(part[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("part: %v, %v", info.Mode(), err)
	}
	// A block that went bad on the guest's disk is sent again.
	w, err := os.OpenFile(part[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("spoilt"), 100); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	res, err := mustDial(t, cfg).Put(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	// At most four blocks of 4 MiB are under way at once, and one was spoilt.
	if res.Resumed < 3*minChunk || res.Resumed+res.Sent != f.Size || res.Sent < minChunk {
		t.Errorf("got %+v", res)
	}
	mustHold(t, f.Path, data, 0o640)
}

// changing is a local file that another content replaces once it has been opened so many times.
func changing(f File, old, now []byte, opens int32) File {
	var n atomic.Int32
	f.Open = func() (io.ReadSeekCloser, error) {
		if n.Add(1) <= opens {
			return nopCloser{bytes.NewReader(old)}, nil
		}
		return nopCloser{bytes.NewReader(now)}, nil
	}
	return f
}

// TestPutSendsNothingElseThanWhatWasHashed: whenever the local file is rewritten, one writer or the other having it open
// already, what gets the name has the SHA-256, or nothing does and nothing is left.
func TestPutSendsNothingElseThanWhatWasHashed(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1000, 9 << 20, 20 << 20} {
		for _, opens := range []int32{0, 1, 2} {
			shell, _, cfg := shellGuest(t)
			c := mustDial(t, cfg)
			f, data := localFile(t, size, filepath.Join(shell.Dir, "file"))
			other := bytes.Clone(data)
			for i := 0; i < size; i += 1000 {
				other[i] ^= 1
			}
			_, err := c.Put(t.Context(), changing(f, data, other, opens))
			if err == nil && opens > 1 {
				mustHold(t, f.Path, data, 0o640) // all had it open
				continue
			}
			if !errors.Is(err, ErrChanged) || hintOf(err) == "" || pathThere(f.Path) {
				t.Errorf("%d bytes, other after %d: %v, there: %v", size, opens, err, pathThere(f.Path))
			}
			if left, _ := filepath.Glob(filepath.Join(shell.Dir, ".*gpuguest*")); len(left) != 0 {
				t.Errorf("%d bytes, other after %d: left behind: %v", size, opens, left)
			}
			if res, err := c.Put(t.Context(), f); err != nil || res.Sent != f.Size {
				t.Errorf("the right one: %+v, %v", res, err)
			}
			mustHold(t, f.Path, data, 0o640)
		}
	}
}

func TestPutOfWhatIsEmptyOrShorterNow(t *testing.T) {
	t.Parallel()
	shell, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	f, data := localFile(t, 100<<10, filepath.Join(shell.Dir, "file"))
	for _, now := range [][]byte{nil, data[:50<<10]} {
		g := changing(f, nil, now, 0)
		for _, size := range []int{len(now), len(data)} {
			g.Size = int64(size)
			if _, err := c.Put(t.Context(), g); !errors.Is(err, ErrChanged) || pathThere(f.Path) {
				t.Errorf("%d bytes said to be %d: %v", len(now), size, err)
			}
		}
	}
}

// TestPutProvesWhatArrivedInPieces: the second call sends the end of another content than the first sent the beginning
// of.
func TestPutProvesWhatArrivedInPieces(t *testing.T) {
	t.Parallel()
	shell, _, cfg := shellGuest(t)
	f, data := localFile(t, 9<<20, filepath.Join(shell.Dir, "file"))
	part := filepath.Join(shell.Dir, ".file.gpuguest-"+f.SHA256[:tempNameHashLen])
	if err := os.WriteFile(part, data[:5<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	other := bytes.Clone(data)
	other[len(other)-1] ^= 1
	c := mustDial(t, cfg)
	if res, err := c.Put(t.Context(), changing(f, nil, other, 0)); err == nil || !strings.Contains(err.Error(), "not the content with SHA-256 "+f.SHA256) || res.Resumed != minChunk || pathThere(f.Path) || pathThere(part) {
		t.Errorf("got %+v, %v", res, err)
	}
	if res, err := c.Put(t.Context(), f); err != nil || res.Sent != f.Size {
		t.Errorf("the right one: %+v, %v", res, err)
	}
	mustHold(t, f.Path, data, 0o640)
}

func pathThere(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

// TestPutWaitsForATurnOnlyToSend: the look at what is there takes none.
func TestPutWaitsForATurnOnlyToSend(t *testing.T) {
	t.Parallel()
	shell, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	f, data := localFile(t, 20<<20, filepath.Join(shell.Dir, "file"))
	var taken, given atomic.Int32
	f.Turn = func(context.Context) (func(), error) {
		taken.Add(1)
		return func() { given.Add(1) }, nil
	}
	if res, err := c.Put(t.Context(), f); err != nil || res.Sent != f.Size || taken.Load() == 0 || taken.Load() != given.Load() {
		t.Errorf("%+v, %v, %d turns taken, %d given back", res, err, taken.Load(), given.Load())
	}
	mustHold(t, f.Path, data, 0o640)
	before := taken.Load()
	if res, err := c.Put(t.Context(), f); err != nil || !res.Skipped || taken.Load() != before {
		t.Errorf("again: %+v, %v, %d turns more", res, err, taken.Load()-before)
	}
	refused := errors.New("refused")
	f.Path += "2"
	f.Turn = func(context.Context) (func(), error) { return nil, refused }
	if res, err := c.Put(t.Context(), f); !errors.Is(err, refused) || res.Sent != 0 || pathThere(f.Path) {
		t.Errorf("no turn: %+v, %v", res, err)
	}
}

func TestGuestThatStopsTakingBytesLosesItsTurn(t *testing.T) {
	t.Parallel()
	shell, s, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	f, _ := localFile(t, 20<<20, filepath.Join(shell.Dir, "file"))
	given := make(chan struct{}, 1)
	f.Turn = func(context.Context) (func(), error) {
		s.Freeze()
		return func() { given <- struct{}{} }, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := c.Put(ctx, f)
		ended <- err
	}()
	select {
	case <-given:
	case err := <-ended:
		t.Fatalf("ended with %v", err)
	case <-time.After(20 * time.Second):
		t.Error("it keeps its turn")
	}
	cancel()
	within(t, 20*time.Second, func() {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestPutOverADistanceUsesMoreConnections(t *testing.T) {
	shell, s, cfg := shellGuest(t)
	s.Change(func(o *guesttest.Options) { o.RTT = 30 * time.Millisecond })
	c := mustDial(t, cfg)
	f, data := localFile(t, 20<<20, filepath.Join(shell.Dir, "file"))
	if _, err := c.Put(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	mustHold(t, f.Path, data, 0o640)
	if n := s.Connections(); n < 2 || n > maxStreams/streamsEach { // 4 of a machine that is not busy
		t.Errorf("%d connections", n)
	}
}

func TestStreams(t *testing.T) {
	for _, tt := range []struct {
		size int64
		rtt  time.Duration
		want int
	}{
		{256 << 20, time.Millisecond, 2},
		{1 << 20, 100 * time.Millisecond, 1},
		{256 << 20, 10 * time.Millisecond, 3},
		{256 << 20, 50 * time.Millisecond, 11},
		{256 << 20, 100 * time.Millisecond, 12},
		{256 << 20, time.Second, 12},
	} {
		if got := streams(tt.size, tt.rtt); got != tt.want {
			t.Errorf("streams(%d, %v) = %d, want %d", tt.size, tt.rtt, got, tt.want)
		}
	}
}

func TestPutAsAnotherUserStagesInTheirHome(t *testing.T) {
	shell, _, cfg := sudoGuest(t, freeSudo)
	c := mustDial(t, cfg)
	f, data := localFile(t, 200<<10, filepath.Join(shell.Dir, "file"))
	res, err := c.Put(t.Context(), f)
	if err != nil || res.Sent != f.Size {
		t.Fatalf("got %+v, %v", res, err)
	}
	mustHold(t, f.Path, data, 0o640)
	if pathThere(filepath.Join(shell.Dir, "home", stagingDir)) {
		t.Error("the staging directory is left")
	}
}

func TestPutRefusals(t *testing.T) {
	shell, _, cfg := shellGuest(t)
	c := mustDial(t, cfg)
	if err := os.Mkdir(filepath.Join(shell.Dir, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"relative":                       "not an absolute",
		"/a/../b":                        "not an absolute",
		"/":                              "not an absolute",
		filepath.Join(shell.Dir, "dir"):  "is a directory",
		"/proc/self/nothing":             "put /proc/self/nothing",
		"/dev/null/x":                    "put /dev/null/x",
		filepath.Join(shell.Dir, "a\nb"): "not an absolute",
		shell.Dir + "/dir/..":            "not an absolute",
	} {
		f, _ := localFile(t, 10, path)
		if _, err := c.Put(t.Context(), f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", path, err, want)
		}
	}
}

func TestPutThatDoesNotFitIsRefusedBeforeAByteIsSent(t *testing.T) {
	shell, _, cfg := shellGuest(t)
	shell.Tool("df", `echo "Filesystem 1024-blocks Used Available Capacity Mounted on"; echo "x 100 100 20 99% /"`)
	c := mustDial(t, cfg)
	f, _ := localFile(t, 100<<10, filepath.Join(shell.Dir, "file"))
	res, err := c.Put(t.Context(), f)
	if !errors.Is(err, ErrNoSpace) || res.Sent != 0 || hintOf(err) == "" {
		t.Errorf("got %+v, %v", res, err)
	}
}
