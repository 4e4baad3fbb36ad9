package main

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/internal/guest"
	"gpuguest/internal/offline"
	"gpuguest/internal/plan"
	"gpuguest/internal/report"
	"gpuguest/steps"
)

func newBundle(a *app) *cobra.Command {
	var w choice.Want
	var m methods
	var recording, output string
	c := &cobra.Command{
		Use:   "bundle --host GUEST [--facts FILE] -o FILE",
		Short: "Make one file of all that an installation needs, for a guest without a network",
		Long: `Make one archive of every package and installer that a plan needs. "gpuguest install --bundle" carries it
over its SSH connection to a guest that reaches nothing, and installs from it alone.

The packages are gathered by the package manager of the guest at --host, in folders that are gone afterwards:
nothing in that guest is changed. Each package is checked by what the signed index of its source says of it,
and each installer by its SHA-256. The guest at --host needs a way to its packages. The plan is for that
guest, or, with --facts, for the one that was recorded: then --host is a guest of the same kind, the more bare
the better, as what it has already is not gathered.`,
		Example: `  gpuguest bundle --host twin -o vm.bundle
  gpuguest bundle --host twin --facts vm.txt -o vm.bundle
  gpuguest bundle --host twin --no-gpu --device 10de:1eb8 --cuda 12.8 -o t4.bundle
  gpuguest install --host vm --bundle vm.bundle`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			switch {
			case output == "":
				return errors.New("-o is missing: which file is to be written?")
			case a.host == "":
				return errors.New("--host is missing: in which guest are the packages gathered?")
			case m.bundle != "" || m.proxy != "":
				return errors.New("a bundle is made of what a guest reaches by itself: --bundle and --proxy go with install")
			case m.samples != "":
				return errors.New("--cuda-samples goes with install, beside --bundle, and as a file")
			}
			if err := checkWant(w); err != nil {
				return err
			}
			files := make(map[string]string)
			m.noProxy = true
			closeFiles, err := m.settle(nil, &w, files)
			defer func() { err = errors.Join(err, closeFiles()) }()
			if err != nil {
				return err
			}
			if err := report.CanWrite(output); err != nil {
				return err
			}
			made, err := a.makeBundle(c.Context(), bundling{want: settle(w), recording: recording, output: output, files: files})
			if err != nil {
				return err
			}
			return a.tellBundle(output, made)
		},
	}
	a.addReach(c)
	addWant(c, &w)
	m.add(c, &w)
	c.Flags().StringVar(&recording, "facts", "", "recording of the guest that the bundle is for, `FILE`, made by \"gpuguest facts --save\" (default: the guest at --host)")
	c.Flags().StringVarP(&output, "output", "o", "", "bundle to write, `FILE`, a .tar.gz")
	return c
}

// bundling is one bundle that is to be made.
type bundling struct {
	want              choice.Want
	recording, output string
	files             map[string]string // installers that are here, by SHA-256
}

// makeBundle plans, has the guest gather, checks what it sends and writes the archive.
func (a *app) makeBundle(ctx context.Context, b bundling) (made offline.Archive, err error) {
	conn, err := a.dial(ctx)
	if err != nil {
		return made, err
	}
	defer conn.Close()
	_, here, err := ask(ctx, conn)
	if err != nil {
		return made, err
	}
	target := here
	if b.recording != "" {
		raw, err := readRecording(b.recording, a.in)
		if err != nil {
			return made, err
		}
		if target, err = facts.Parse(raw); err != nil {
			return made, fmt.Errorf("%s: %w", b.recording, err)
		}
	}
	in, err := plan.Input(target, b.want)
	if err != nil {
		return made, err
	}
	if _, err := plan.Build(in, steps.Install()); err != nil {
		return made, err
	}
	ref, err := plan.Bare(here, b.want)
	if err != nil {
		return made, err
	}
	script, err := plan.GatherScript(in, ref)
	if err != nil {
		return made, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(b.output), ".gpuguest-bundle-")
	if err != nil {
		return made, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	m := manifest(in)
	fmt.Fprintf(a.err, "gpuguest: gathering the packages in %s\n", a.host)
	if m.Files, err = gather(ctx, conn, script, dir); err != nil {
		return made, err
	}
	for _, i := range []*offline.Installer{m.Runfile, m.CUDARunfile} {
		if i == nil {
			continue
		}
		url := in.Choice.Runfile.URL
		if i == m.CUDARunfile {
			url = in.Choice.CUDA.Installer.URL
		}
		f, err := a.bundleInstaller(ctx, *i, url, b.files, dir)
		if err != nil {
			return made, err
		}
		m.Files = append(m.Files, f)
	}
	err = report.Write(b.output, report.Public, func(w io.Writer) error {
		open := openBelow(dir)
		return offline.Write(w, &m, func(f offline.File) (io.ReadCloser, error) {
			if local := b.files[f.SHA256]; local != "" {
				return os.Open(local)
			}
			return open(f)
		})
	})
	if err != nil {
		return made, err
	}
	return readBundleFile(b.output)
}

// openBelow opens files of an archive that were kept below dir.
func openBelow(dir string) func(offline.File) (io.ReadCloser, error) {
	return func(f offline.File) (io.ReadCloser, error) {
		return os.Open(filepath.Join(dir, filepath.FromSlash(f.Name)))
	}
}

// manifest says what a plan's bundle is made for.
func manifest(in steps.Input) offline.Manifest {
	c := in.Choice
	m := offline.Manifest{
		Distro: in.Distro.String(), Arch: in.Facts.Arch, Kernel: in.Facts.Kernel.Next,
		Driver: c.Version, Flavor: c.Flavor, Source: c.Source, Modules: c.Modules,
	}
	if m.Driver == "" {
		m.Driver = strconv.Itoa(c.Branch)
	}
	if k := c.CUDA; k.Version != "" {
		m.CUDA, m.CUDASource = k.Series, k.Source
		if k.Exact {
			m.CUDA = k.Version
		}
	}
	installer := func(i choice.Installer) *offline.Installer {
		if i.SHA256 == "" {
			return nil
		}
		return &offline.Installer{Name: i.Name, Version: i.Version, SHA256: i.SHA256}
	}
	m.Runfile, m.CUDARunfile = installer(c.Runfile), installer(c.CUDA.Installer)
	m.Packages = steps.Needs(in).All()
	slices.Sort(m.Packages)
	return m
}

// gather runs the script in the guest and keeps what it sends below dir. Every package is held against what the index
// of its source says of it once more: between the guest's look and this one lies a network.
func gather(ctx context.Context, conn *guest.Conn, script, dir string) ([]offline.File, error) {
	pr, pw := io.Pipe()
	var files []offline.File
	unpacked := make(chan error, 1)
	go func() {
		var err error
		files, err = unpack(pr, dir)
		pr.CloseWithError(cmpErr(err, io.ErrClosedPipe))
		unpacked <- err
	}()
	res, err := conn.Run(ctx, guest.Command{Script: script, Stdout: pw})
	pw.CloseWithError(err)
	uerr := <-unpacked
	switch {
	case err != nil && uerr == nil:
		return nil, err
	case err == nil && res.Exit != 0:
		return nil, &gatherError{what: fmt.Sprintf("the packages could not be gathered: exit %d", res.Exit), said: string(res.Stderr)}
	case uerr != nil:
		return nil, fmt.Errorf("what the guest gathered: %w", uerr)
	}
	return files, nil
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// gatherError says that something of a bundle could not be had.
type gatherError struct {
	what string
	said string // by the guest's package manager, "" it was not asked
	err  error  // nil: none
}

func (e *gatherError) Unwrap() error { return e.err }

func (e *gatherError) Error() string {
	if e.said == "" {
		return e.what
	}
	said := strings.Split(strings.TrimSpace(e.said), "\n")
	if len(said) > 15 {
		said = said[len(said)-15:]
	}
	return e.what + "\n  " + strings.Join(said, "\n  ")
}

// Hint is the cause that the package manager's words give away.
func (e *gatherError) Hint() string {
	if h := knownCause(e.said); h != "" {
		return h
	}
	if e.said == "" {
		return ""
	}
	return "the guest at --host needs a way to its packages, and to NVIDIA's repository: --repo-mirror names another one"
}

// unpack reads the tar archive of distros.Bundler's Gather.
func unpack(r io.Reader, dir string) ([]offline.File, error) {
	if err := os.Mkdir(filepath.Join(dir, offline.RepoFolder), 0o700); err != nil {
		return nil, err
	}
	found := make(map[string]offline.File)
	var origins []string
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		name, below := strings.CutPrefix(path.Clean(h.Name), offline.RepoFolder+"/")
		switch {
		case h.Typeflag == tar.TypeDir:
		case h.Typeflag == tar.TypeReg && h.Name == "origins":
			for s := bufio.NewScanner(t); s.Scan(); {
				origins = append(origins, s.Text())
			}
		case h.Typeflag == tar.TypeReg && below && (isIndex(name) || !strings.ContainsAny(name, "/\\")):
			if err := os.MkdirAll(filepath.Join(dir, offline.RepoFolder, path.Dir(name)), 0o700); err != nil {
				return nil, err
			}
			f, err := keepFile(filepath.Join(dir, offline.RepoFolder, name), t)
			if err != nil {
				return nil, err
			}
			f.Name = offline.RepoFolder + "/" + name
			found[name] = f
		default:
			return nil, fmt.Errorf("%q is not expected", h.Name)
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	for _, line := range origins {
		w := strings.Fields(line)
		if len(w) != 3 {
			return nil, fmt.Errorf("%q is no origin", line)
		}
		f, there := found[w[1]]
		if !there || w[0] != f.SHA256 {
			return nil, fmt.Errorf("%s is not what the index of its source says", w[1])
		}
		f.From = w[2]
		found[w[1]] = f
	}
	if len(origins) == 0 {
		return nil, errors.New("there is no package in it")
	}
	var files []offline.File
	for name, f := range found {
		if f.From == "" && !isIndex(name) {
			return nil, fmt.Errorf("%s came from nowhere", name)
		}
		files = append(files, f)
	}
	return files, nil
}

// isIndex tells an index of packages, apt's or rpm's, from a package.
func isIndex(name string) bool {
	file, below := strings.CutPrefix(name, "repodata/")
	return name == "Packages" || below && !strings.ContainsAny(file, "/\\")
}

// keepFile writes a new file and tells its size and SHA-256.
func keepFile(name string, r io.Reader) (offline.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return offline.File{}, err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), r)
	return offline.File{Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, errors.Join(err, f.Close())
}

// bundleInstaller says what of an installer goes into the bundle: one that was named and is here, or one that is
// fetched here.
func (a *app) bundleInstaller(ctx context.Context, i offline.Installer, url string, files map[string]string, dir string) (offline.File, error) {
	f := offline.File{Name: offline.FilesFolder + "/" + path.Base(i.Name), SHA256: i.SHA256, From: url}
	if local := files[i.SHA256]; local != "" {
		info, err := os.Stat(local)
		if err != nil {
			return f, err
		}
		f.Size = info.Size()
		return f, nil
	}
	fmt.Fprintf(a.err, "gpuguest: fetching %s\n", url)
	if err := os.MkdirAll(filepath.Join(dir, offline.FilesFolder), 0o700); err != nil {
		return f, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return f, err
	}
	client := http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: time.Minute}}
	defer client.CloseIdleConnections()
	res, err := client.Do(req)
	if err != nil {
		return f, &gatherError{what: err.Error(), err: err}
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return f, &gatherError{what: url + ": " + res.Status}
	}
	got, err := keepFile(filepath.Join(dir, filepath.FromSlash(f.Name)), res.Body)
	if err != nil {
		return f, &gatherError{what: url + ": " + err.Error(), err: err}
	}
	if got.SHA256 != f.SHA256 {
		return f, &gatherError{what: fmt.Sprintf("%s: its SHA-256 is %s, and not %s: it is cut short, or something in between answered in its place", url, got.SHA256, f.SHA256)}
	}
	f.Size = got.Size
	return f, nil
}

// tellBundle prints what was made.
func (a *app) tellBundle(output string, made offline.Archive) error {
	m := made.Manifest
	if a.json {
		return a.writeJSON(struct {
			File     string           `json:"file"`
			SHA256   string           `json:"sha256"`
			Size     int64            `json:"size"`
			Manifest offline.Manifest `json:"manifest"`
		}{output, made.SHA256, made.Size, m})
	}
	fmt.Fprintf(a.out, "%s: %s on %s, kernel %s, driver %s %s by %s\n", output, m.Distro, m.Arch, m.Kernel, m.Driver, m.Flavor, m.Modules)
	fmt.Fprintf(a.out, "%d files, %d MB, SHA-256 %s\n", len(m.Files), made.Size>>20, made.SHA256)
	return nil
}

// readBundleFile reads a bundle to its end and proves it.
func readBundleFile(name string) (offline.Archive, error) {
	f, err := os.Open(name)
	if err != nil {
		return offline.Archive{}, err
	}
	defer f.Close()
	a, err := offline.Read(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return a, fmt.Errorf("%s: %w", name, err)
	}
	return a, nil
}

// useBundle reads the bundle that install is to take all from, and completes the wish by what it was made for.
func (m *methods) useBundle(of *member, w *choice.Want, files map[string]string) error {
	sum := strings.ToLower(m.bundleSHA256)
	if m.bundle == "" {
		if sum != "" {
			return errors.New("--bundle-sha256 needs --bundle")
		}
		return nil
	}
	if m.proxy != "" || w.Mirror != "" || m.runfile != "" || m.cudaRunfile != "" {
		return errors.New("--bundle brings all that is installed: it goes without --proxy, --repo-mirror, --runfile and --cuda-runfile")
	}
	a, err := once(of, "bundle "+m.bundle, func() (offline.Archive, error) { return readBundleFile(m.bundle) })
	if err != nil {
		return fmt.Errorf("--bundle: %w", err)
	}
	if sum != "" && sum != a.SHA256 {
		return fmt.Errorf("--bundle %s: its SHA-256 is %s, and --bundle-sha256 says %s", m.bundle, a.SHA256, sum)
	}
	files[a.SHA256] = m.bundle
	b := a.Manifest
	w.Bundle = choice.Bundle{Name: filepath.Base(m.bundle), SHA256: a.SHA256, Size: a.Size, Distro: b.Distro, Arch: b.Arch, Kernel: b.Kernel, Packages: b.Packages}
	for _, f := range []struct {
		have *string
		made string
	}{{&w.Driver, b.Driver}, {&w.Flavor, b.Flavor}, {&w.Source, b.Source}, {&w.Modules, b.Modules}, {&w.CUDA, b.CUDA}, {&w.CUDASource, b.CUDASource}} {
		if *f.have == "" {
			*f.have = f.made
		}
	}
	for _, f := range []struct {
		have *choice.Runfile
		made *offline.Installer
	}{{&w.Runfile, b.Runfile}, {&w.CUDARunfile, b.CUDARunfile}} {
		if f.made != nil {
			*f.have = choice.Runfile{Name: f.made.Name, SHA256: f.made.SHA256, Version: f.made.Version, Arch: b.Arch}
			w.Bundle.Installers = append(w.Bundle.Installers, f.made.SHA256)
		}
	}
	return nil
}
