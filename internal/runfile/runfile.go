// Package runfile reads what NVIDIA's self-extracting installers say of themselves: a shell script in front of an
// archive, made by makeself or by NVIDIA's own form of it.
//
// It runs nothing and unpacks nothing.
package runfile

import (
	"bufio"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// Info is what one installer says.
type Info struct {
	Label   string // "NVIDIA Accelerated Graphics Driver for Linux-x86_64 580.95.05", "" none
	Version string // of the driver, "" it does not say: a toolkit's installer does not
	Arch    string // machine that it is for, as uname -m says it, "" it does not say
	SHA256  string // of the whole file, lower-case hex
	Size    int64  // bytes
}

// ErrNotInstaller is matched by Inspect's error for a file that is something else.
var ErrNotInstaller = errors.New("it is none of NVIDIA's .run installers")

// ErrDamaged is matched by Inspect's error for an installer that is cut short or otherwise not what its own
// header says.
var ErrDamaged = errors.New("it is damaged, or was not fetched whole")

// headBytes is how much of a file is read as its header. That of a driver of 2025 is 40 KB; its variables
// stand in the first few lines.
const headBytes = 128 << 10

// Inspect reads a whole installer. An error of the reader is returned as it is.
func Inspect(r io.Reader) (Info, error) {
	sum, digest := sha256.New(), md5.New()
	in := bufio.NewReaderSize(io.TeeReader(r, sum), headBytes)
	peeked, err := in.Peek(headBytes)
	if err != nil && !errors.Is(err, io.EOF) {
		return Info{}, err
	}
	head := string(peeked) // what was peeked at is gone with the next read
	info, v := parse(head)
	// NVIDIA's own header sums up all that follows its first three lines (--check in it).
	var size int64
	for range 3 {
		line, err := in.ReadSlice('\n')
		size += int64(len(line))
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return Info{}, err
		}
	}
	n, err := io.Copy(digest, in)
	if err != nil {
		return Info{}, err
	}
	info.Size = size + n
	info.SHA256 = hex.EncodeToString(sum.Sum(nil))
	if !strings.HasPrefix(head, "#!") || v["label"] == "" && v["targetdir"] == "" {
		return info, fmt.Errorf("%w: %s", ErrNotInstaller, beginning(head))
	}
	if want := v["MD5"]; labelled.MatchString(info.Label) && len(want) == 32 && strings.Trim(want, "0") != "" && want != hex.EncodeToString(digest.Sum(nil)) {
		return info, fmt.Errorf("%w: the MD5 in its header is another", ErrDamaged)
	}
	if payload := total(v["filesizes"]); payload >= info.Size {
		return info, fmt.Errorf("%w: its header tells of %d bytes, and all of it has %d", ErrDamaged, payload, info.Size)
	}
	return info, nil
}

func beginning(head string) string {
	line, _, _ := strings.Cut(head, "\n")
	if line == "" {
		return "it is empty"
	}
	return fmt.Sprintf("it begins with %.40q", line)
}

// variable is an assignment in a header: label="…", version_string=580.95.05.
var variable = regexp.MustCompile(`^\s*([A-Za-z_][A-Za-z0-9_]*)=(?:"([^"$` + "`" + `]*)"|'([^']*)'|([^\s"'$` + "`" + `;]*))\s*$`)

// parse reads the variables that stand before the first command.
func parse(head string) (Info, map[string]string) {
	v := map[string]string{}
	n := 0
	for line := range strings.Lines(head) {
		if n++; n > 400 {
			break
		}
		m := variable.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			continue
		}
		if _, set := v[m[1]]; !set {
			v[m[1]] = m[2] + m[3] + m[4]
		}
	}
	info := Info{Label: v["label"], Version: v["version_string"], Arch: v["TARGET_ARCH"]}
	if m := labelled.FindStringSubmatch(info.Label); m != nil {
		if info.Arch == "" {
			info.Arch = m[1]
		}
		if info.Version == "" {
			info.Version = m[2]
		}
	}
	if !version.MatchString(info.Version) {
		info.Version = ""
	}
	return info, v
}

var (
	labelled = regexp.MustCompile(`for Linux-(\S+) (\d+\.\d+(?:\.\d+)?)$`)
	version  = regexp.MustCompile(`^\d+\.\d+(\.\d+)?$`)
)

// total adds up the sizes of a header's archives.
func total(sizes string) int64 {
	var sum int64
	for _, s := range strings.Fields(sizes) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 {
			return 0
		}
		sum += n
	}
	return sum
}

var (
	driverName  = regexp.MustCompile(`^NVIDIA-Linux-([a-z0-9_]+?)-(\d+\.\d+(?:\.\d+)?)(?:-[a-z0-9-]+)?\.run$`)
	toolkitName = regexp.MustCompile(`^cuda_(\d+\.\d+\.\d+)(?:_[\d.]+)?_linux(_sbsa|_ppc64le)?(?:[-.]run)?$`)
)

// ByName returns what a file's name tells: of a driver ("NVIDIA-Linux-x86_64-580.95.05.run") or of a toolkit
// ("cuda_12.8.1_570.124.06_linux.run"); "" what it does not tell.
func ByName(name string) (release, arch string) {
	if m := driverName.FindStringSubmatch(name); m != nil {
		return m[2], m[1]
	}
	if m := toolkitName.FindStringSubmatch(name); m != nil {
		return m[1], map[string]string{"": "x86_64", "_sbsa": "aarch64", "_ppc64le": "ppc64le"}[m[2]]
	}
	return "", ""
}
