package diagnosis

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	bufferSize  = 256 << 10
	overlap     = 512     // of a line longer than the buffer, so that no text is cut in two unseen
	windowSize  = 4 << 10 // the part of a long line that the patterns see, around what was found
	wrapLimit   = 4 << 10 // how long a message of NVIDIA's installer can be over its wrapped lines
	maxEvidence = 300
	maxEach     = 256 // verdicts of one signature that differ in their words
)

// Read finds every known line of a log, in the log's order and each meaning once, at its first line. The log
// is plain text or gzip, of any size and with any bytes; name is what the verdicts call it. It is read once,
// front to back, in bounded memory.
//
// Where a log tells of several boots, what the kernel said before the last one is Past unless it came again.
// Fixes that stand on the kernel command line the log shows count as tried. On an error of r the verdicts
// found so far are returned with it.
func Read(name string, r io.Reader) ([]Verdict, error) {
	c, err := loaded()
	if err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(r, 4<<10)
	var src io.Reader = in
	if magic, _ := in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		unzip, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		src = unzip
	}
	rd := &reader{c: c, source: name, said: map[string]int{},
		count: make([]int, len(c.signatures)), seen: make([]bool, len(c.signatures))}
	err = rd.read(src)
	if err != nil {
		err = fmt.Errorf("read %s: %w", name, err)
	}
	return rd.verdicts(), err
}

type reader struct {
	c       *catalogue
	source  string
	lines   int  // complete lines before the part at hand
	bundle  bool // nvidia-bug-report.log, whose boots do not follow each other
	before  bool // a section of it that is an earlier boot's journal
	cmdline string

	all   []entry
	said  map[string]int // a signature's id and what its groups held → the entry
	key   []byte
	count []int  // entries of each signature
	seen  []bool // signatures that have nothing more to say
	met   []uint16
}

type entry struct {
	Verdict
	kernel bool
}

func (r *reader) read(src io.Reader) error {
	buf := make([]byte, bufferSize)
	held := 0
	for {
		n, err := fill(src, buf[held:])
		held += n
		done := r.part(buf[:held], err != nil)
		held = copy(buf, buf[done:held])
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// fill is io.ReadFull with the reader's own error kept: a cut gzip stream must not look like the end of a file.
func fill(src io.Reader, buf []byte) (int, error) {
	n, empty := 0, 0
	for n < len(buf) {
		got, err := src.Read(buf[n:])
		n += got
		if err != nil {
			return n, err
		}
		if got > 0 {
			empty = 0
		} else if empty++; empty == 100 {
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

// part looks at the complete lines of data, all of it when last, and tells how much of it is done with. It
// is never 0 for a full buffer.
func (r *reader) part(data []byte, last bool) int {
	end := len(data)
	if !last {
		if end = bytes.LastIndexByte(data, '\n') + 1; end == 0 {
			if len(data) < bufferSize {
				return 0
			}
			r.line(data, r.lines+1)
			return len(data) - overlap
		}
	}
	at, counted, number := 0, 0, r.lines
	for at < end {
		place := at + r.c.matcher.skim(data[at:end])
		if place == end {
			break
		}
		from := at + bytes.LastIndexByte(data[at:place], '\n') + 1
		next := lineEnd(data[:end], place)
		if r.c.matcher.holds(data[from:next]) {
			text, after, whole := logical(data[:end], from, next)
			if !whole && !last && from > 0 {
				end = from
				break
			}
			number += bytes.Count(data[counted:from], newline)
			counted = from
			r.line(text, number+1)
			next = after
		}
		at = next
	}
	r.lines = number + bytes.Count(data[counted:end], newline)
	return end
}

var newline = []byte{'\n'}

// logical is the line between from and next, and where the one after it begins. A
// message of NVIDIA's installer on a terminal is wrapped at 80 columns, its further lines set in under the
// first, sometimes with an empty line between; such a message is one line. It is not whole if data ends
// before another further line could have been ruled out.
func logical(data []byte, from, next int) (text []byte, after int, whole bool) {
	text = bytes.TrimRight(data[from:next], "\r\n")
	if !bytes.HasPrefix(text, []byte(markError)) && !bytes.HasPrefix(text, []byte(markWarning)) {
		return text, next, true
	}
	joined := false
	for at := next; len(text) < wrapLimit; {
		if at == len(data) {
			return text, next, false
		}
		end := lineEnd(data, at)
		line := bytes.TrimRight(data[at:end], " \t\r\n")
		switch {
		case len(line) == 0 && at == next:
			at = end // one empty line may stand between
			continue
		case !bytes.HasPrefix(line, []byte("  ")):
			return text, next, true
		}
		if !joined {
			text, joined = bytes.Clone(text), true
		}
		text = append(append(bytes.TrimRight(text, " "), ' '), bytes.TrimLeft(line, " ")...)
		at, next = end, end
	}
	return text, next, true
}

func lineEnd(data []byte, from int) int {
	if n := bytes.IndexByte(data[from:], '\n'); n >= 0 {
		return from + n + 1
	}
	return len(data)
}

// line looks at one line in which some text of the matcher stands.
func (r *reader) line(text []byte, number int) {
	r.met = r.met[:0]
	r.c.matcher.all(text, func(what uint16, end int) {
		if int(what) < len(r.seen) && r.seen[what] || slices.Contains(r.met, what) {
			return
		}
		r.met = append(r.met, what)
		window := text
		if len(text) > windowSize {
			window = text[max(0, end-windowSize/2):min(len(text), end+windowSize/2)]
		}
		if mark := int(what) - len(r.c.signatures); mark >= 0 {
			r.mark(marks[mark], window)
			return
		}
		r.try(int(what), window, number)
	})
}

// journalOf heads what nvidia-bug-report.sh takes from systemd's journal, with the boot: 0 is the present one, and 1 or -1
// the one before.
var journalOf = regexp.MustCompile(`^\s*(?:/\S*/)?journalctl (?:\S+ )*-b -?(\d)\b`)

// bootBanner is the first line of every Linux kernel log (init/version.c).
var bootBanner = regexp.MustCompile(`Linux version \d+\.\d+\S* \(`)

func (r *reader) mark(mark string, text []byte) {
	switch mark {
	case markBundle:
		r.bundle = true
	case markJournal:
		if m := journalOf.FindSubmatch(text); r.bundle && m != nil {
			r.section(string(m[1]) != "0")
		}
	case markSection:
		if bytes.HasPrefix(text, []byte(markSection)) {
			r.section(false)
		}
	case markCmdline:
		if r.before {
			return
		}
		_, cmdline, _ := bytes.Cut(text, []byte(markCmdline))
		if bytes.Contains(cmdline, []byte("root=")) || bytes.Contains(cmdline, []byte("BOOT_IMAGE=")) {
			r.cmdline = string(cmdline)
		}
	case markBoot:
		if r.bundle || !bootBanner.Match(text) {
			return
		}
		r.cmdline = ""
		for i := range r.all {
			if r.all[i].kernel {
				r.all[i].Past = true
			}
		}
		for i, s := range r.c.signatures {
			if s.Log == kernelLog {
				r.seen[i] = false
			}
		}
	}
}

// section begins another part of a bug report: an earlier boot's journal, or what tells of today.
func (r *reader) section(before bool) {
	if r.before && !before {
		// What an earlier boot said may come again.
		for i, s := range r.c.signatures {
			r.seen[i] = len(s.groups) > 0 && r.count[i] >= maxEach
		}
	}
	r.before = before
}

const kernelLog = "kernel"

// try matches one signature against a line and keeps what it says, unless that was said already. A log may
// repeat one line a million times, so what tells two meanings apart, the groups that the texts use, is looked
// at before anything is written.
func (r *reader) try(index int, text []byte, number int) {
	s := r.c.signatures[index]
	at := s.re.FindSubmatchIndex(text)
	if at == nil {
		return
	}
	r.key = append(r.key[:0], s.ID...)
	for _, group := range s.groups {
		r.key = append(r.key, 0)
		if from, to := at[2*group], at[2*group+1]; from >= 0 {
			r.key = append(r.key, text[from:to]...)
		}
	}
	known, again := r.said[string(r.key)]
	if again && (!r.all[known].Past || r.before) {
		return
	}

	v := Verdict{ID: s.ID, Severity: s.Severity, Where: s.Where, Line: number, Source: r.source, Evidence: evidence(text, at[0], at[1])}
	v.Cause = clean(s.re.Expand(nil, []byte(s.Cause), text, at))
	v.Remedy = clean(s.re.Expand(nil, []byte(s.Remedy), text, at))
	if len(s.Fixes) > 0 {
		v.Fix = s.Fixes[0]
	}
	if s.ID == "xid" {
		if x, ok := r.c.xid(xidPrefix + string(text[at[4]:at[5]])); ok {
			v.ID = fmt.Sprintf("%s%d", xidPrefix, x.Number)
			v.Severity, v.Where, v.Remedy = x.Severity, x.Where, x.Action
			v.Cause = fmt.Sprintf("Xid %d of the GPU at %s: %s", x.Number, clean(text[at[2]:at[3]]), x.Meaning)
		}
	}
	v.Past = r.before
	said := entry{Verdict: v, kernel: s.Log == kernelLog}
	if again {
		r.all[known] = said
	} else {
		r.said[string(r.key)] = len(r.all)
		r.all = append(r.all, said)
		r.count[index]++
	}
	r.seen[index] = len(s.groups) == 0 || r.count[index] >= maxEach
}

func (r *reader) verdicts() []Verdict {
	var all []Verdict
	for _, e := range r.all {
		v := e.Verdict.On(r.cmdline)
		if v.Past {
			v = v.Before()
		}
		all = append(all, v)
	}
	slices.SortStableFunc(all, func(a, b Verdict) int { return a.Line - b.Line })
	return all
}

// evidence is the line for a person to read: as much of it as fits, around what matched.
func evidence(text []byte, from, to int) string {
	if len(text) > maxEvidence {
		from = max(0, min(from, to-maxEvidence))
		text = text[from:min(len(text), from+maxEvidence)]
	}
	return strings.TrimSpace(clean(text))
}

// clean makes text from a log safe for a terminal and a report: no control and no direction characters,
// valid UTF-8.
func clean(text []byte) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == '\t':
			return ' '
		case c == utf8.RuneError, unicode.IsControl(c), unicode.Is(unicode.Cf, c), c == '\u2028', c == '\u2029':
			return -1
		}
		return c
	}, string(text))
}
