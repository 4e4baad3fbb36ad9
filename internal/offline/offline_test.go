package offline

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

var contents = map[string]string{
	"repo/Packages":         "Package: dkms\n",
	"repo/dkms_3_all.deb":   strings.Repeat("!<arch>\n", 4000),
	"files/NVIDIA-1.2.run":  "#!/bin/sh\n",
	"repo/make_4_amd64.deb": "!<arch>\n",
}

func example() *Manifest {
	m := &Manifest{Distro: "debian:12", Arch: "x86_64", Kernel: "6.1.0-50-amd64", Driver: "580", Flavor: "open", Source: "nvidia", Modules: "dkms",
		Packages: []string{"dkms", "make"}}
	for name, text := range contents {
		sum := sha256.Sum256([]byte(text))
		m.Files = append(m.Files, File{Name: name, Size: int64(len(text)), SHA256: hex.EncodeToString(sum[:])})
	}
	return m
}

func open(f File) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(contents[f.Name])), nil
}

func archive(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, example(), open); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestArchiveIsReadAsItWasWritten(t *testing.T) {
	data := archive(t)
	a, err := Read(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	if a.SHA256 != hex.EncodeToString(sum[:]) || a.Size != int64(len(data)) {
		t.Errorf("SHA-256 %s, %d bytes of %d", a.SHA256, a.Size, len(data))
	}
	if a.Manifest.Kernel != "6.1.0-50-amd64" || len(a.Manifest.Files) != len(contents) || !slices.Equal(a.Manifest.Packages, []string{"dkms", "make"}) {
		t.Errorf("%+v", a.Manifest)
	}
}

// The order that the files are given in is that of a map, another one each time.
func TestSameFilesMakeTheSameArchive(t *testing.T) {
	first := archive(t)
	for range 10 {
		if !bytes.Equal(first, archive(t)) {
			t.Fatal("the same files make another archive")
		}
	}
}

func TestArchiveOfAnotherFileIsNotWritten(t *testing.T) {
	other := func(File) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("something else")), nil }
	if err := Write(io.Discard, example(), other); err == nil {
		t.Error("a file of another size and checksum was taken")
	}
}

// repack writes an archive with each file as change leaves it; nil leaves it out.
func repack(t *testing.T, data []byte, change func(*tar.Header, []byte) []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	from, to := tar.NewReader(z), tar.NewWriter(zw)
	for {
		h, err := from.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(from)
		if err != nil {
			t.Fatal(err)
		}
		if text = change(h, text); text == nil {
			continue
		}
		h.Size = int64(len(text))
		if err := to.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := to.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(to.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDamagedArchiveIsRefused(t *testing.T) {
	good := archive(t)
	onFile := func(name string, change func(*tar.Header, []byte) []byte) []byte {
		return repack(t, good, func(h *tar.Header, b []byte) []byte {
			if strings.HasSuffix(h.Name, name) {
				return change(h, b)
			}
			return b
		})
	}
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"empty":                 {nil, "no bundle"},
		"a page":                {[]byte("<html>log in</html>"), "no bundle"},
		"cut short":             {good[:len(good)/2], "cut short"},
		"cut in the last bytes": {good[:len(good)-3], "cut short"},
		"a changed package":     {onFile("make_4_amd64.deb", func(_ *tar.Header, b []byte) []byte { return append(b, 'x') }), "make_4_amd64.deb in it is damaged"},
		"a package less":        {onFile("make_4_amd64.deb", func(*tar.Header, []byte) []byte { return nil }), "is missing"},
		"a file more":           {onFile("make_4_amd64.deb", func(h *tar.Header, b []byte) []byte { h.Name += "x"; return b }), "not in its manifest"},
		"another list of sums":  {onFile(SumsName, func(_ *tar.Header, b []byte) []byte { return append([]byte("0"), b...) }), "not what its manifest says"},
		"no manifest in front":  {onFile(ManifestName, func(*tar.Header, []byte) []byte { return nil }), "no bundle"},
		"of a form to come": {onFile(ManifestName, func(_ *tar.Header, b []byte) []byte {
			return bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 2`), 1)
		}), "form 2"},
		"a name that leads away": {onFile(ManifestName, func(_ *tar.Header, b []byte) []byte { return bytes.ReplaceAll(b, []byte("repo/"), []byte("../repo/")) }), "it names a file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Read(bytes.NewReader(c.data))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, wanted one that says %q", err, c.says)
			}
		})
	}
}

func FuzzReadNeverPanics(f *testing.F) {
	var b bytes.Buffer
	if err := Write(&b, example(), open); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:200])
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := Read(bytes.NewReader(data))
		if err == nil && a.Size != int64(len(data)) {
			t.Errorf("%d bytes read of %d", a.Size, len(data))
		}
	})
}
