package bundle

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// Folder is the one that everything in an archive lies in.
const Folder = "gpuguest-collect"

// ManifestName is the file that says what the archive holds. It comes last.
const ManifestName = "manifest.json"

// File is one file of a bundle, masked already.
type File struct {
	Name  string // "logs/kernel.log"
	Data  []byte
	Notes []string // why it is not whole
}

// Manifest says what a bundle holds. Its names are part of the interface.
type Manifest struct {
	Version string         `json:"version"` // of the gpuguest that made it
	Made    time.Time      `json:"made"`
	Files   []Entry        `json:"files"`
	Masked  map[string]int `json:"masked"` // kind → occurrences
}

// Entry is one file in a Manifest.
type Entry struct {
	Name   string   `json:"name"`
	Size   int      `json:"size"`
	SHA256 string   `json:"sha256"`
	Notes  []string `json:"notes,omitempty"`
}

// Write writes the files, by name, and then the manifest. It fills m.Files in.
func Write(w io.Writer, m *Manifest, files []File) error {
	files = slices.SortedFunc(slices.Values(files), func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	zip := gzip.NewWriter(w)
	archive := tar.NewWriter(zip)
	put := func(name string, data []byte) error {
		head := &tar.Header{Typeflag: tar.TypeReg, Name: path.Join(Folder, name), Mode: 0o600, Size: int64(len(data)), ModTime: m.Made, Format: tar.FormatPAX}
		if err := archive.WriteHeader(head); err != nil {
			return err
		}
		_, err := archive.Write(data)
		return err
	}
	m.Files = nil
	for _, f := range files {
		sum := sha256.Sum256(f.Data)
		m.Files = append(m.Files, Entry{Name: f.Name, Size: len(f.Data), SHA256: hex.EncodeToString(sum[:]), Notes: f.Notes})
		if err := put(f.Name, f.Data); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := put(ManifestName, append(text, '\n')); err != nil {
		return err
	}
	return errors.Join(archive.Close(), zip.Close())
}

// maxEntry is how much of one file of an archive is read; maxEntries how many files. Nothing that Write makes
// comes near either.
const (
	maxEntry   = 64 << 20
	maxEntries = 1000
)

// Logs calls each for every log of a bundle, in the archive's order. It answers false, and has read nothing that
// matters to others, when r holds no gzipped tar archive; then the caller reads r from its beginning.
func Logs(r io.Reader, each func(name string, text io.Reader) error) (bool, error) {
	in := bufio.NewReader(r)
	if magic, _ := in.Peek(2); !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return false, nil
	}
	zip, err := gzip.NewReader(in)
	if err != nil {
		return false, nil
	}
	plain := bufio.NewReaderSize(zip, 512)
	// "ustar" stands at byte 257 of a tar archive's first header (pax(1), ustar interchange format).
	if head, _ := plain.Peek(262); len(head) < 262 || string(head[257:]) != "ustar" {
		return false, nil
	}
	archive := tar.NewReader(plain)
	for n := 0; ; n++ {
		head, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return true, err
		}
		name := strings.TrimPrefix(path.Clean(head.Name), Folder+"/")
		if n == maxEntries {
			return true, fmt.Errorf("more than %d files", maxEntries)
		}
		if head.Typeflag != tar.TypeReg || !IsLog(name) {
			continue
		}
		if err := each(name, io.LimitReader(archive, maxEntry)); err != nil {
			return true, err
		}
	}
}

// IsLog tells which files of a bundle say what went wrong. The others are for a person to read: what earlier runs and
// boots said, and gpuguest's own words.
func IsLog(name string) bool {
	return path.Dir(name) == "logs" && strings.HasSuffix(name, ".log") || name == "guest/nvidia-smi.txt"
}

// IsPast tells which of them tell of an earlier boot, which explains nothing of today.
func IsPast(name string) bool { return strings.HasSuffix(name, "-of-the-boot-before.log") }
