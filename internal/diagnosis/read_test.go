package diagnosis

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"
)

func ids(verdicts []Verdict) []string {
	var all []string
	for _, v := range verdicts {
		all = append(all, v.ID)
	}
	return all
}

func read(t *testing.T, text string) []Verdict {
	t.Helper()
	found, err := Read("log", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

const (
	bar1      = "[83260.063553] NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:\n               NVRM: BAR1 is 0M @ 0x0 (PCI:0000:14:00.0)\n"
	banner    = "[    0.000000] Linux version 6.1.0-37-amd64 (debian-kernel@lists.debian.org) (gcc-12) #1 SMP\n"
	nodevices = "No devices were found\n"
)

func cmdline(args string) string {
	return "[    0.000000] Command line: BOOT_IMAGE=/boot/vmlinuz-6.1.0-37-amd64 root=/dev/vda1 ro" + args + "\n"
}

func TestCauseComesBeforeItsSymptoms(t *testing.T) {
	top, ok := Cause(nodevices + bar1)
	if !ok || top.ID != "bar-zero" || top.Line != 3 || !strings.Contains(top.Evidence, "BAR1 is 0M") || !strings.HasPrefix(top.Hint(), "cause: BAR1 of the GPU at 0000:14:00.0 has no memory") {
		t.Errorf("%v %v", ok, top)
	}
	if got := ids(Rank(read(t, nodevices+bar1))); !slices.Equal(got, []string{"bar-zero", "bar-invalid", "smi-no-devices"}) {
		t.Errorf("%v", got)
	}
}

// The story of an empty window: one argument, the other, and then it is the host's.
func TestEmptyWindowMovesToTheHostOnceEveryArgumentWasTried(t *testing.T) {
	for args, want := range map[string][2]string{
		"":                               {Guest, "kernel-arg pci=realloc"},
		" quiet":                         {Guest, "kernel-arg pci=realloc"},
		" pci=realloc":                   {Guest, "kernel-arg pci=realloc=off"},
		" pci=nocrs,realloc":             {Guest, "kernel-arg pci=realloc=off"},
		" pci=realloc=off":               {Host, ""},
		" pci=realloc pci=realloc=off q": {Host, ""},
	} {
		top := Rank(read(t, banner+cmdline(args)+bar1))[0]
		if got := [2]string{top.Where, top.Fix}; got != want {
			t.Errorf("with %q: %q, want %q", args, got, want)
		}
		if top.Where == Host && !strings.Contains(top.Remedy, "MMIO") {
			t.Errorf("with %q: the host is told %q", args, top.Remedy)
		}
	}
	v := Rank(read(t, bar1))[0]
	if again := v.Tried("step headers"); again != v {
		t.Errorf("a fix that is none of the verdict's changed it: %v", again)
	}
	v = v.Tried("kernel-arg pci=realloc")
	if v.Fix != "kernel-arg pci=realloc=off" || !strings.Contains(v.Remedy, "pci=realloc=off") {
		t.Errorf("after the first: %v", v)
	}
	if again := v.Tried("kernel-arg pci=realloc"); again != v {
		t.Errorf("the first fix told twice changed it: %v", again)
	}
	v = v.Tried("kernel-arg pci=realloc=off")
	if v.Fix != "" || v.Where != Host {
		t.Errorf("after the last: %v", v)
	}
}

func TestRankDoesNotDependOnTheOrderGivenAndKeepsCausesFirst(t *testing.T) {
	c := mustLoad(t)
	var all []Verdict
	for n, s := range c.signatures {
		all = append(all, Verdict{ID: s.ID, Severity: s.Severity, Cause: s.Cause, Line: n})
	}
	want := Rank(all)
	if len(want) != len(all) {
		t.Fatalf("%d of %d left", len(want), len(all))
	}
	slices.Reverse(all)
	if got := Rank(all); !slices.Equal(ids(got), ids(want)) {
		t.Errorf("another order from the reverse")
	}
	if got := Rank(append(want, want...)); !slices.Equal(ids(got), ids(want)) {
		t.Errorf("another order from the ranked, given twice")
	}
	for i, symptom := range want {
		for _, cause := range want[i+1:] {
			if c.explains(cause.ID, symptom.ID) {
				t.Errorf("%s stands before its cause %s", symptom.ID, cause.ID)
			}
		}
	}
}

func TestCauseIsAsSevereAsWhatItExplains(t *testing.T) {
	text := "nouveau 0000:00:05.0: NVIDIA GP107 (137000a1)\n"
	if v, ok := Cause(text); ok {
		t.Errorf("nouveau alone is taken for a failure: %v", v)
	}
	v, ok := Cause(text + "NVRM: The NVIDIA probe routine was not called for 1 device(s).\n")
	if !ok || v.ID != "nouveau-bound" || v.Severity != Fatal || v.Fix != "step blocklist" {
		t.Errorf("%v %v", ok, v)
	}
}

func TestWhatAnEarlierBootSaidIsPastUnlessItCameAgain(t *testing.T) {
	found := read(t, banner+bar1+banner+"[   12.0] clean\n")
	for _, v := range found {
		if !v.Past || v.Severity != Info || v.Fix != "" || !strings.HasPrefix(v.Cause, "in an earlier boot, ") {
			t.Errorf("%+v", v)
		}
	}
	if len(found) != 2 {
		t.Errorf("%v", ids(found))
	}
	found = read(t, banner+bar1+banner+bar1)
	for _, v := range found {
		if v.Past || v.Line < 5 {
			t.Errorf("%+v", v)
		}
	}
	// A package run is no part of a boot.
	if found = read(t, "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem.\n"+banner); len(found) != 1 || found[0].Past {
		t.Errorf("%v", found)
	}
	// The sections of a bug report are not in the order of time.
	for _, v := range read(t, "Start of NVIDIA bug report log file.  Please include this file\n"+bar1+banner) {
		if v.Past {
			t.Errorf("%+v", v)
		}
	}
	// But those that are an earlier boot's journal say so.
	const report = "Start of NVIDIA bug report log file.  Please include this file\n"
	for _, head := range []string{"journalctl -b -1 _COMM=Xorg", "  journalctl -b -1:", "/usr/bin/journalctl -k -b -1 --no-hostname", "journalctl -b -2"} {
		for _, v := range read(t, report+"____________________________________________\n\n"+head+"\n\n"+banner+bar1+"____________________________________________\n\nnothing\n") {
			if !v.Past || v.Severity != Info {
				t.Errorf("%s: %+v", head, v)
			}
		}
		for _, after := range []string{"____________________________________________\n\n*** /proc/driver/nvidia/./warnings/README\n", "  journalctl -b -0:\n"} {
			if found := read(t, report+head+"\n"+bar1+after+bar1); len(found) != 2 || found[0].Past || found[0].Line < 4 {
				t.Errorf("%s: what came again: %+v", head, found)
			}
			if found := read(t, report+bar1+head+"\n"+bar1); len(found) != 2 || found[0].Past || found[0].Line > 2 {
				t.Errorf("%s: what was said before it: %+v", head, found)
			}
		}
	}
	// In another log such a line is somebody's command.
	if found := read(t, "journalctl -b -1\n"+bar1); len(found) != 2 || found[0].Past {
		t.Errorf("%+v", found)
	}
	// The past explains nothing of today.
	if top := Rank(read(t, banner+bar1+banner+nodevices))[0]; top.ID != "smi-no-devices" {
		t.Errorf("%v", top)
	}
}

func TestInstallerMessageIsOneLineHoweverItIsWrapped(t *testing.T) {
	for _, text := range []string{
		"ERROR: Unable to find the kernel source tree for the currently running kernel.  Please\n",
		"ERROR: Unable to find the kernel source tree for the currently running\n       kernel.  Please make sure you have installed the kernel source files\n",
		"ERROR: Unable to find the kernel source\n\n       tree for the\n\n       currently running kernel.\n",
		"ERROR: Unable to find the kernel source\r\n       tree for the currently running kernel.",
	} {
		if got := ids(read(t, text)); !slices.Equal(got, []string{"ni-ksrc"}) {
			t.Errorf("%q: %v", text, got)
		}
	}
	// Lines that are set in after a whole message belong to nothing, and the one after them is its own.
	found := read(t, "ERROR: nvidia-installer must be run as root\nfine\n\nE: Unable to locate package nvidia-open\n")
	if !slices.Equal(ids(found), []string{"ni-root", "apt-not-found"}) || found[1].Line != 4 {
		t.Errorf("%v", found)
	}
}

// Every cut of the stream must give the same: a message must not be lost between two reads.
func TestWhereTheStreamIsCutMakesNoDifference(t *testing.T) {
	filler := strings.Repeat(strings.Repeat("x", 99)+"\n", bufferSize/50)
	text := "ERROR: Unable to find the kernel source tree for the currently running\n       kernel.\nend\n" + bar1
	for cut := -160; cut <= 10; cut += 7 {
		pad := filler[:bufferSize+cut]
		pad = pad[:len(pad)-1] + "\n"
		want := strings.Count(pad, "\n")
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(pad + text), "halves": iotest.HalfReader(strings.NewReader(pad + text))} {
			found, err := Read("log", r)
			if err != nil || !slices.Equal(ids(found), []string{"ni-ksrc", "bar-invalid", "bar-zero"}) {
				t.Fatalf("cut %d, %s: %v %v", cut, name, ids(found), err)
			}
			if found[0].Line != want+1 || found[2].Line != want+5 {
				t.Fatalf("cut %d, %s: lines %d and %d after %d", cut, name, found[0].Line, found[2].Line, want)
			}
		}
	}
}

func TestLineLongerThanTheBufferIsSearchedToItsEnd(t *testing.T) {
	for _, at := range []int{0, 5000, bufferSize - 10, bufferSize + 5, 3*bufferSize - 7} {
		text := "first\n" + strings.Repeat("y", at) + " NVRM: No NVIDIA GPU found. " + strings.Repeat("z", 2*bufferSize) + "\n" + bar1
		found := read(t, text)
		if !slices.Equal(ids(found), []string{"no-gpu-found", "bar-invalid", "bar-zero"}) {
			t.Fatalf("at %d: %v", at, ids(found))
		}
		if found[0].Line != 2 || found[2].Line != 4 || len(found[0].Evidence) > maxEvidence || !strings.Contains(found[0].Evidence, "No NVIDIA GPU found") {
			t.Errorf("at %d: %+v", at, found)
		}
	}
}

func TestGzipIsKnownByItsFirstBytes(t *testing.T) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := io.WriteString(w, bar1); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	found, err := Read("nvidia-bug-report.log.gz", bytes.NewReader(packed.Bytes()))
	if err != nil || len(found) != 2 {
		t.Errorf("%v %v", found, err)
	}
	found, err = Read("cut.gz", bytes.NewReader(packed.Bytes()[:packed.Len()-6]))
	if !errors.Is(err, io.ErrUnexpectedEOF) || len(found) != 2 {
		t.Errorf("a cut file gives %v, %v", found, err)
	}
	if _, err = Read("broken.gz", strings.NewReader("\x1f\x8bnot gzip")); err == nil {
		t.Error("broken gzip is read without an error")
	}
}

func TestErrorOfTheReaderComesWithWhatWasFound(t *testing.T) {
	broken := errors.New("disk on fire")
	found, err := Read("log", io.MultiReader(strings.NewReader(bar1), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) || len(found) != 2 {
		t.Errorf("%v %v", found, err)
	}
	if _, err := Read("log", stuck{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a reader that gives nothing for ever: %v", err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestEvidenceIsSafeForATerminal(t *testing.T) {
	for _, v := range read(t, "\x1b[31m\xff\xfe\u202eNVRM: GPU 0000:01:00.0 is already bound to nouveau.\a\ttail\u2028\r\n") {
		if want := "[31mNVRM: GPU 0000:01:00.0 is already bound to nouveau. tail"; v.Evidence != want {
			t.Errorf("%q", v.Evidence)
		}
	}
}

func TestNumberedErrorOutsideTheTableIsStillTold(t *testing.T) {
	found := read(t, "NVRM: Xid (PCI:0000:01:00): 4711, pid=1\nNVRM: Xid (0000:03:00): 99999999999999999999, x\nNVRM: Xid (0000:03:00): 14, 0001\n")
	if !slices.Equal(ids(found), []string{"xid", "xid", "xid-14"}) || !strings.Contains(found[0].Cause, "4711") {
		t.Errorf("%v", found)
	}
}

func TestNothingAtAllIsNoFailure(t *testing.T) {
	for _, text := range []string{"", "\n", "\n\n\n", "x", "everything is well\n"} {
		if found := read(t, text); len(found) != 0 {
			t.Errorf("%q: %v", text, found)
		}
		if v, ok := Cause(text); ok {
			t.Errorf("%q: %v", text, v)
		}
	}
}

func TestVerdictsStayFewHoweverLongTheLog(t *testing.T) {
	var text strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&text, "E: Unable to locate package nvidia-%d\nNVRM: Xid (PCI:%04x:01:00): 79, gone\n", i, i)
	}
	if found := read(t, text.String()); len(found) != 2*maxEach {
		t.Errorf("%d verdicts", len(found))
	}
}

// stream is a kernel log of any size, made as it is read: plain lines, and every so often one that a text of
// the catalogue stands in.
type stream struct {
	block []byte
	left  int
	at    int
}

func newStream(size, every int) *stream {
	lines := []string{
		"[   %d.123456] systemd[1]: Started session-%d.scope - Session %d of User debian.\n",
		"[   %d.200001] audit: type=1400 audit(1763800000.%d:%d): apparmor=\"STATUS\" operation=\"profile_load\" name=\"/usr/sbin/ntpd\"\n",
		"[   %d.300002] e1000 0000:00:%d.0 ens%d: NIC Link is Up 1000 Mbps Full Duplex, Flow Control: RX\n",
		"[   %d.400003] nvidia-uvm: Loaded the UVM driver, major device number %d. (%d)\n",
		"[   %d.500004] pci 0000:00:1c.%d: BAR 13: assigned [io  0x1000-0x1fff] %d\n",
	}
	known := []string{bar1, "NVRM: Xid (PCI:0000:9b:00): 79, pid=%d, GPU has fallen off the bus. %d %d\n", "E: Unable to fetch some archives, maybe run apt-get update %d %d %d\n"}
	var block bytes.Buffer
	for i := 0; block.Len() < 4<<20; i++ {
		if every > 0 && i%every == 0 {
			line := known[i/every%len(known)]
			fmt.Fprintf(&block, line, slices.Repeat([]any{i}, strings.Count(line, "%d"))...)
			continue
		}
		fmt.Fprintf(&block, lines[i%len(lines)], i, i%32, i)
	}
	return &stream{block: block.Bytes(), left: size}
}

func (s *stream) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), s.left)], s.block[s.at:])
	s.at = (s.at + n) % len(s.block)
	s.left -= n
	return n, nil
}

// used is the processor time this process has taken. The tests run beside others, so the clock on the wall
// says more of those than of the reader.
func used(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// 200 MB in under 2 seconds and 64 MB are the figures.
func TestTwoHundredMegabytesAreReadInTwoSecondsAndLittleMemory(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures time")
	}
	mustLoad(t)
	src := newStream(200<<20, 500)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start, began := used(t), time.Now()
	found, err := Read("big", src)
	took := used(t) - start
	runtime.ReadMemStats(&after)
	if err != nil || len(found) == 0 {
		t.Fatalf("%v %v", found, err)
	}
	t.Logf("%v of processor time, %v on the clock, %d KB allocated in all", took, time.Since(began), (after.TotalAlloc-before.TotalAlloc)>>10)
	if after.TotalAlloc-before.TotalAlloc > 64<<20 {
		t.Errorf("%d MB allocated", (after.TotalAlloc-before.TotalAlloc)>>20)
	}
	if took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

func BenchmarkRead(b *testing.B) {
	for name, every := range map[string]int{"plain": 0, "usual": 500, "everyLineKnown": 1} {
		b.Run(name, func(b *testing.B) {
			src := newStream(0, every)
			b.SetBytes(200 << 20)
			b.ReportAllocs()
			for b.Loop() {
				src.left = 200 << 20
				if _, err := Read("big", src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCause(b *testing.B) {
	text := strings.Repeat("Unpacking nvidia-kernel-dkms (535.183.01-1~deb12u1) ...\n", 200) + bar1
	for b.Loop() {
		if _, ok := Cause(text); !ok {
			b.Fatal("no cause")
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		if _, err := load(); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCauseIsOfWhatStoppedTheCommandAndNotOfWhatItGotOver(t *testing.T) {
	locked := "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1307 (unattended-upgr)\n"
	headers := "Error! Your kernel headers for kernel 6.1.0-18-amd64 cannot be found at /lib/modules/6.1.0-18-amd64/build or /lib/modules/6.1.0-18-amd64/source.\n"
	summary := "E: Sub-process /usr/bin/dpkg returned an error code (1)\n"
	script := "installed nvidia-kernel-dkms package post-installation script subprocess returned error exit status 1\n"
	if v, _ := Cause(locked + "Setting up nvidia-kernel-dkms ...\n" + headers + script + summary); v.ID != "dkms-no-headers" {
		t.Errorf("%v", v)
	}
	if v, _ := Cause(headers + locked); v.ID != "apt-lock" {
		t.Errorf("%v", v)
	}
	if v, ok := Cause("Waiting for cache lock: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1307 (unattended-upgr)...\n"); ok {
		t.Errorf("waiting is taken for a failure: %v", v)
	}
}
