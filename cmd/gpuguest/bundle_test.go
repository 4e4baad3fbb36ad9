package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/internal/choice"
	"gpuguest/internal/offline"
)

func sumOf(text string) string {
	s := sha256.Sum256([]byte(text))
	return hex.EncodeToString(s[:])
}

// tarOf packs files, a name and a text in turn.
func tarOf(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: files[i], Size: int64(len(files[i+1])), Mode: 0o644}
		if err := errors.Join(w.WriteHeader(h), second(w.Write([]byte(files[i+1])))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func second(_ int, err error) error { return err }

func TestGatheredPackagesAreHeldAgainstTheirIndex(t *testing.T) {
	const name, text, url = "dkms_3_all.deb", "!<arch>\n", "http://mirror.example/dkms_3_all.deb"
	origin := sumOf(text) + " " + name + " " + url + "\n"
	for what, c := range map[string]struct {
		files []string
		says  string
	}{
		"as it should be":          {[]string{"repo/" + name, text, "repo/Packages", "Package: dkms\n", "origins", origin}, ""},
		"changed on its way":       {[]string{"repo/" + name, text + "x", "repo/Packages", "Package: dkms\n", "origins", origin}, name + " is not what the index"},
		"one that is missing":      {[]string{"repo/other_1_all.deb", text, "repo/Packages", "", "origins", origin}, name + " is not what the index"},
		"one that nobody asked":    {[]string{"repo/" + name, text, "repo/other_1_all.deb", text, "repo/Packages", "", "origins", origin}, "other_1_all.deb came from nowhere"},
		"a name that leads away":   {[]string{"repo/../../etc/passwd", text, "origins", origin}, "is not expected"},
		"a name in a folder below": {[]string{"repo/x/" + name, text, "origins", origin}, "is not expected"},
		"nothing":                  {[]string{"origins", ""}, "no package"},
		"origins that are none":    {[]string{"repo/" + name, text, "origins", "what\n"}, "is no origin"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			files, err := unpack(bytes.NewReader(tarOf(t, c.files...)), dir)
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, wanted one that says %q", err, c.says)
				}
				return
			}
			if err != nil || len(files) != 2 {
				t.Fatalf("%v, %v", files, err)
			}
			for _, f := range files {
				raw, err := os.ReadFile(filepath.Join(dir, f.Name))
				if err != nil || sumOf(string(raw)) != f.SHA256 {
					t.Errorf("%s: %v", f.Name, err)
				}
			}
		})
	}
	if _, err := unpack(bytes.NewReader(tarOf(t, "repo/"+name, text)[:700]), t.TempDir()); err == nil {
		t.Error("what was cut short is taken")
	}
}

// A fetched installer is held against its SHA-256, and what a portal answers in its place is none.
func TestInstallerOfABundleIsFetchedWholeOrNotAtAll(t *testing.T) {
	const run = "#!/bin/sh\n"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/driver.run":
			_, _ = io.WriteString(w, run)
		case "/portal.run":
			_, _ = io.WriteString(w, "<html>log in</html>")
		case "/short.run":
			w.Header().Set("Content-Length", "4096")
			_, _ = io.WriteString(w, run)
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	a := &app{console: console{err: io.Discard}}
	for name, says := range map[string]string{"driver.run": "", "portal.run": "its SHA-256 is", "short.run": "unexpected EOF", "none.run": "404"} {
		f, err := a.bundleInstaller(t.Context(), offline.Installer{Name: name, SHA256: sumOf(run)}, server.URL+"/"+name, nil, t.TempDir())
		switch {
		case says == "" && (err != nil || f.Size != int64(len(run)) || f.Name != "files/driver.run"):
			t.Errorf("%s: %+v, %v", name, f, err)
		case says != "" && (err == nil || !strings.Contains(err.Error(), says) || exitCode(err) != exitStep):
			t.Errorf("%s: got %v, exit %d, wanted one that says %q", name, err, exitCode(err), says)
		}
	}
}

func TestBundleCompletesTheWishAndGoesWithNoOtherSource(t *testing.T) {
	const run = "#!/bin/sh\n"
	file := filepath.Join(t.TempDir(), "vm.bundle")
	var b bytes.Buffer
	made := offline.Manifest{Distro: "debian:12", Arch: "x86_64", Kernel: "6.1.0-50-amd64", Driver: "580", Flavor: "open", Source: "runfile", Modules: "dkms",
		CUDA: "12.8", CUDASource: "nvidia", Packages: []string{"dkms"},
		Runfile: &offline.Installer{Name: "driver.run", Version: "580.95.05", SHA256: sumOf(run)},
		Files:   []offline.File{{Name: "files/driver.run", Size: int64(len(run)), SHA256: sumOf(run)}}}
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "files"), 0o700), os.WriteFile(filepath.Join(dir, "files/driver.run"), []byte(run), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := offline.Write(&b, &made, openBelow(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	w := choice.Want{Flavor: "proprietary"}
	m := methods{bundle: file, bundleSHA256: strings.ToUpper(sumOf(b.String()))}
	closeFiles, err := m.settle(nil, &w, files)
	if err := errors.Join(err, closeFiles()); err != nil {
		t.Fatal(err)
	}
	if w.Driver != "580" || w.Flavor != "proprietary" || w.Source != "runfile" || w.CUDA != "12.8" || w.Runfile.Version != "580.95.05" ||
		w.Bundle.Kernel != "6.1.0-50-amd64" || len(w.Bundle.Installers) != 1 || files[sumOf(b.String())] != file {
		t.Errorf("%+v, %v", w, files)
	}
	for says, m := range map[string]methods{
		"goes without":                     {bundle: file, runfile: "x.run"},
		"--bundle-sha256 needs --bundle":   {bundleSHA256: sumOf("")},
		"and --bundle-sha256 says":         {bundle: file, bundleSHA256: sumOf("")},
		"no such file":                     {bundle: file + "x"},
		"it is no bundle of gpuguest's":    {bundle: filepath.Join(dir, "files/driver.run")},
		"goes without --proxy, --repo-mir": {bundle: file, proxy: "http://proxy.example"},
	} {
		if err := m.useBundle(nil, &choice.Want{}, map[string]string{}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, wanted one that says %q", err, says)
		}
	}
	mirrored := methods{bundle: file}
	if err := mirrored.useBundle(nil, &choice.Want{Mirror: "http://mirror.example"}, map[string]string{}); err == nil {
		t.Error("a mirror beside a bundle is taken")
	}
}
