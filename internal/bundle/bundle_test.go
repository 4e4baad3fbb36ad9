package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestManifestTellsEveryFile(t *testing.T) {
	var out bytes.Buffer
	m := Manifest{Version: "1", Made: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC), Masked: map[string]int{"uuid": 2}}
	files := []File{{Name: "logs/kernel.log", Data: []byte("NVRM: hello\n"), Notes: []string{"the last 12 bytes"}}, {Name: "facts.txt", Data: nil}}
	if err := Write(&out, &m, files); err != nil {
		t.Fatal(err)
	}
	zip, err := gzip.NewReader(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewReader(zip)
	sums, last := map[string]string{}, ""
	var said Manifest
	for {
		head, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if head.Mode != 0o600 || head.Uid != 0 || head.Uname != "" {
			t.Errorf("%s: mode %o, owner %d %q", head.Name, head.Mode, head.Uid, head.Uname)
		}
		sum := sha256.Sum256(data)
		last = strings.TrimPrefix(head.Name, Folder+"/")
		sums[last] = hex.EncodeToString(sum[:])
		if last == ManifestName {
			if err := json.Unmarshal(data, &said); err != nil {
				t.Fatal(err)
			}
		}
	}
	if last != ManifestName || len(said.Files) != 2 || said.Masked["uuid"] != 2 || said.Files[0].Name != "facts.txt" || said.Files[1].Notes[0] != "the last 12 bytes" {
		t.Errorf("last %s, %+v", last, said)
	}
	for _, e := range said.Files {
		if sums[e.Name] != e.SHA256 {
			t.Errorf("%s: %s, the manifest says %s", e.Name, sums[e.Name], e.SHA256)
		}
	}
}

func TestLogsOfABundleAreReadAndNothingElseIs(t *testing.T) {
	var out bytes.Buffer
	var files []File
	for _, name := range []string{"logs/kernel.log", "logs/last-job.log", "logs/dnf.txt", "logs/jobs/driver-0123-1.txt", "logs/jobs/driver-0123-1.log", "logs/jobs/driver-0123-1.exit", "guest/nvidia-smi.txt", "verdicts.txt", "plan.txt", "facts.txt"} {
		files = append(files, File{Name: name, Data: []byte(name)})
	}
	if err := Write(&out, &Manifest{}, files); err != nil {
		t.Fatal(err)
	}
	var read []string
	ok, err := Logs(bytes.NewReader(out.Bytes()), func(name string, r io.Reader) error {
		data, err := io.ReadAll(r)
		if string(data) != name {
			t.Errorf("%s holds %q", name, data)
		}
		read = append(read, name)
		return err
	})
	if !ok || err != nil || !slices.Equal(read, []string{"guest/nvidia-smi.txt", "logs/kernel.log", "logs/last-job.log"}) {
		t.Errorf("%v, %v, %q", ok, err, read)
	}
	if _, err := Logs(bytes.NewReader(out.Bytes()[:out.Len()-40]), func(_ string, r io.Reader) error { _, err := io.ReadAll(r); return err }); err == nil {
		t.Error("a bundle that was cut off is read without a word")
	}
	var plain bytes.Buffer
	zip := gzip.NewWriter(&plain)
	if _, err := zip.Write([]byte(strings.Repeat("NVRM: a line\n", 100))); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string][]byte{"a gzipped log": plain.Bytes(), "a log": []byte("NVRM"), "nothing": nil} {
		if ok, err := Logs(bytes.NewReader(in), nil); ok || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

func FuzzLogs(f *testing.F) {
	var out bytes.Buffer
	if err := Write(&out, &Manifest{}, []File{{Name: "logs/kernel.log", Data: []byte("NVRM\n")}}); err != nil {
		f.Fatal(err)
	}
	f.Add(out.Bytes())
	f.Add(out.Bytes()[:60])
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = Logs(bytes.NewReader(data), func(name string, r io.Reader) error {
			if !IsLog(name) {
				t.Errorf("%q is handed over", name)
			}
			_, err := io.Copy(io.Discard, r)
			return err
		})
	})
}
