// Package offline writes and reads the archive that brings all packages and installers of one plan to a guest that has
// no network.
//
// The archive is a tar file in a gzip envelope. It is not compressed: packages are already. The manifest comes first,
// then a list that sha256sum -c reads, then the files in the order of their names, without times and owners, so that
// the same files make the same archive. It knows nothing of packages: what the files are is their reader's business.
package offline

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Format is the number of the archive's form. A reader takes no other.
const Format = 1

// The names within an archive. Everything is below Folder.
const (
	Folder       = "gpuguest-bundle"
	ManifestName = "manifest.json"
	SumsName     = "SHA256SUMS" // as sha256sum -c reads it, of all files but these two
	RepoFolder   = "repo"       // packages and their index, as the guest's package manager reads them
	FilesFolder  = "files"      // installers
)

// Manifest says what an archive was made for and what is in it. Its names are part of the interface.
type Manifest struct {
	Format  int    `json:"format"`
	Distro  string `json:"distro"` // "debian:12"
	Arch    string `json:"arch"`   // "x86_64"
	Kernel  string `json:"kernel"` // release of the kernel that the guest starts next
	Driver  string `json:"driver"` // branch or version
	Flavor  string `json:"flavor"`
	Source  string `json:"source"`
	Modules string `json:"modules"`

	CUDA       string `json:"cuda,omitempty"` // toolkit: series or release
	CUDASource string `json:"cuda_source,omitempty"`

	Packages    []string   `json:"packages"`               // that the plan asks for by name, sorted
	Runfile     *Installer `json:"runfile,omitempty"`      // the driver's installer
	CUDARunfile *Installer `json:"cuda_runfile,omitempty"` // the toolkit's

	Files []File `json:"files"` // sorted by name
}

// Installer is one of NVIDIA's installers in FilesFolder.
type Installer struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
}

// File is one file of an archive.
type File struct {
	Name   string `json:"name"` // below Folder: "repo/dkms_3.0.10-8_all.deb"
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`         // lower-case hex
	From   string `json:"from,omitempty"` // URL that it was fetched from, or the id of its repository; "" none
}

// ErrNone says that a file is no archive of this package's, or one of a form that it does not know.
var ErrNone = errors.New("it is no bundle of gpuguest's")

// Write writes an archive. Files of the manifest are sorted; open gives what is in each, and a file that is not what
// the manifest says of it is an error.
func Write(w io.Writer, m *Manifest, open func(File) (io.ReadCloser, error)) error {
	m.Format = Format
	slices.SortFunc(m.Files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	z, err := gzip.NewWriterLevel(w, gzip.NoCompression)
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	text = append(text, '\n')
	if err := add(t, ManifestName, int64(len(text)), bytes.NewReader(text)); err != nil {
		return err
	}
	list := sums(m.Files)
	if err := add(t, SumsName, int64(len(list)), bytes.NewReader(list)); err != nil {
		return err
	}
	for _, f := range m.Files {
		if err := addFile(t, f, open); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return errors.Join(t.Close(), z.Close())
}

func sums(files []File) []byte {
	var b bytes.Buffer
	for _, f := range files {
		fmt.Fprintf(&b, "%s  %s\n", f.SHA256, f.Name)
	}
	return b.Bytes()
}

func addFile(t *tar.Writer, f File, open func(File) (io.ReadCloser, error)) error {
	r, err := open(f)
	if err != nil {
		return err
	}
	defer r.Close()
	h := sha256.New()
	if err := add(t, f.Name, f.Size, io.TeeReader(r, h)); err != nil {
		return err
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum != f.SHA256 {
		return fmt.Errorf("its SHA-256 is %s, and %s was said", sum, f.SHA256)
	}
	return nil
}

func add(t *tar.Writer, name string, size int64, r io.Reader) error {
	err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(Folder, name), Size: size, Mode: 0o644, Format: tar.FormatPAX})
	if err != nil {
		return err
	}
	n, err := io.Copy(t, r)
	if err == nil && n != size {
		err = fmt.Errorf("it has %d bytes, and %d were said", n, size)
	}
	return err
}

// Archive is an archive that was read whole.
type Archive struct {
	Manifest Manifest
	SHA256   string // of the archive itself
	Size     int64
}

// maxManifest bounds what is taken into memory.
const maxManifest = 16 << 20

// Read reads an archive to its end and proves every file in it. The errors are ErrNone, and what is damaged.
func Read(r io.Reader) (Archive, error) {
	whole := &counter{hash: sha256.New()}
	in := io.TeeReader(r, whole)
	z, err := gzip.NewReader(in)
	if err != nil {
		return Archive{}, fmt.Errorf("%w: %w", ErrNone, err)
	}
	t := tar.NewReader(z)
	var a Archive
	if a.Manifest, err = readManifest(t); err != nil {
		return Archive{}, err
	}
	want := make(map[string]File)
	for _, f := range a.Manifest.Files {
		want[f.Name] = f
	}
	if err := readFiles(t, want, sums(a.Manifest.Files)); err != nil {
		return Archive{}, err
	}
	// Behind the last file come the tar's end, the envelope's checksum and nothing else.
	if _, err := io.Copy(io.Discard, z); err != nil {
		return Archive{}, damaged(err)
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return Archive{}, err
	}
	a.SHA256, a.Size = hex.EncodeToString(whole.hash.Sum(nil)), whole.n
	return a, nil
}

func readManifest(t *tar.Reader) (Manifest, error) {
	var m Manifest
	h, err := t.Next()
	if err != nil || h.Name != path.Join(Folder, ManifestName) || h.Size > maxManifest {
		return m, ErrNone
	}
	text, err := io.ReadAll(t)
	if err != nil {
		return m, damaged(err)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("%w: its manifest: %w", ErrNone, err)
	}
	if m.Format != Format {
		return m, fmt.Errorf("%w: it is of form %d, and this gpuguest reads form %d", ErrNone, m.Format, Format)
	}
	for _, f := range m.Files {
		if !fs.ValidPath(f.Name) || strings.ContainsAny(f.Name, "\\\n") {
			return m, fmt.Errorf("%w: it names a file %q", ErrNone, f.Name)
		}
	}
	return m, nil
}

// readFiles proves what is behind the manifest.
func readFiles(t *tar.Reader, want map[string]File, list []byte) error {
	for {
		head, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return damaged(err)
		}
		name, below := strings.CutPrefix(head.Name, Folder+"/")
		f, known := want[name]
		switch {
		case !below || head.Typeflag != tar.TypeReg || !known && name != SumsName:
			return fmt.Errorf("%q in it is not in its manifest", head.Name)
		case name == SumsName:
			text, err := io.ReadAll(io.LimitReader(t, int64(len(list))+1))
			if err != nil {
				return damaged(err)
			}
			if !bytes.Equal(text, list) {
				return fmt.Errorf("%s in it is not what its manifest says", name)
			}
			continue
		}
		delete(want, name)
		h := sha256.New()
		if _, err := io.Copy(h, t); err != nil {
			return damaged(err)
		}
		if sum := hex.EncodeToString(h.Sum(nil)); sum != f.SHA256 {
			return fmt.Errorf("%s in it is damaged: its SHA-256 is %s, and the manifest says %s", name, sum, f.SHA256)
		}
	}
	for name := range want {
		return fmt.Errorf("%s of its manifest is missing", name)
	}
	return nil
}

func damaged(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("it is cut short")
	}
	return fmt.Errorf("it is damaged: %w", err)
}

// counter counts and hashes.
type counter struct {
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.hash.Write(p)
}
