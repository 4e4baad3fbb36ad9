package lab

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	labfiles "gpuguest/testdata/lab"
)

// DriverVersions are the releases the stand-in repository offers, two of one
// branch so that a pin has something to choose.
func DriverVersions() []string { return []string{"580.95.05", "580.178.04", "595.91.07"} }

// reposPath is where NVIDIA keeps its repositories under its host.
const reposPath = "/compute/cuda/repos/"

// suites are the distributions the repository can be made for, and the Debian whose programs go into it. For Ubuntu
// there are the metapackages and the pinning packages by NVIDIA's names; what they depend on is named as for Debian.
var suites = map[string]string{"debian11": "bullseye", "debian12": "bookworm", "debian13": "trixie", "ubuntu2204": "bookworm"}

// RepoSpec says which repository to make and where it is to be reached.
type RepoSpec struct {
	Distros []string // NVIDIA's directory names; nil is debian12
	// Address to listen on, 127.0.0.1 and a free port when empty. A guest
	// reaches the host's loopback at HostAddress.
	Address string
	// Host is the name or address under which guests reach the server, without
	// port; "" is HostAddress. It is written into the keyring package.
	Host  string
	Cache string
	Log   io.Writer
}

// Repo is a repository being served.
type Repo struct {
	// URL is what stands for https://developer.download.nvidia.com/compute/cuda/repos
	// inside a guest; LocalURL is the same from the host.
	URL, LocalURL string
	Root          string // the files served
	// KeyringSHA256 is the keyring package's digest, by distribution. It differs
	// from run to run because the package holds the server's port.
	KeyringSHA256 map[string]string

	server *http.Server
	served chan error
}

// ServeRepo makes the repository, its packages from the cache where they are
// there, and serves it until Close.
func ServeRepo(ctx context.Context, spec RepoSpec) (*Repo, error) {
	s, err := Spec{Cache: spec.Cache, Log: spec.Log}.normal()
	if err != nil {
		return nil, err
	}
	if len(spec.Distros) == 0 {
		spec.Distros = []string{"debian12"}
	}
	if spec.Address == "" {
		spec.Address = "127.0.0.1:0"
	}
	if spec.Host == "" {
		spec.Host = HostAddress
	}
	gnupg, err := ensureSigningKey(ctx, s.Cache, s.Log)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", spec.Address)
	if err != nil {
		return nil, err
	}
	root, err := os.MkdirTemp("", "guestlab-repo-")
	if err != nil {
		l.Close()
		return nil, err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	r := &Repo{
		URL:           "http://" + net.JoinHostPort(spec.Host, port) + strings.TrimRight(reposPath, "/"),
		LocalURL:      "http://" + l.Addr().String() + strings.TrimRight(reposPath, "/"),
		Root:          root,
		KeyringSHA256: map[string]string{},
		served:        make(chan error, 1),
	}
	for _, distro := range spec.Distros {
		if err := r.assemble(ctx, s, gnupg, distro); err != nil {
			l.Close()
			return nil, errors.Join(fmt.Errorf("repository for %s: %w", distro, err), os.RemoveAll(root))
		}
	}
	r.server = &http.Server{
		Handler:           http.StripPrefix(strings.TrimRight(reposPath, "/"), http.FileServer(http.Dir(root))),
		ReadHeaderTimeout: 30 * time.Second,
	}
	go func() { r.served <- r.server.Serve(l) }()
	return r, nil
}

// Close stops the server and removes its files.
func (r *Repo) Close() error {
	err := r.server.Close()
	if served := <-r.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return errors.Join(err, os.RemoveAll(r.Root))
}

// KeyringURL is the keyring package's address inside a guest.
func (r *Repo) KeyringURL(distro string) string {
	return r.URL + "/" + distro + "/x86_64/" + keyringFile
}

const keyringFile = "cuda-keyring_1.1-1_all.deb"

// assemble lays out one distribution's directory: links to the cached packages,
// the keyring package for this server, and signed indexes.
func (r *Repo) assemble(ctx context.Context, s Spec, gnupg, distro string) error {
	packages, err := driverPackages(ctx, s, distro)
	if err != nil {
		return err
	}
	dir := filepath.Join(r.Root, distro, "x86_64")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(packages, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if err := os.Symlink(deb, filepath.Join(dir, filepath.Base(deb))); err != nil {
			return err
		}
	}
	if err := os.Chmod(r.Root, 0o755); err != nil {
		return err
	}
	key, err := os.ReadFile(filepath.Join(gnupg, "public.gpg"))
	if err != nil {
		return err
	}
	keyring := deb{
		name: "cuda-keyring", version: "1.1-1", arch: "all", description: "GPG keyring for the CUDA repository",
		files: []file{
			{"usr/share/keyrings/cuda-archive-keyring.gpg", key, 0o644},
			{"etc/apt/sources.list.d/cuda-" + distro + "-x86_64.list", fmt.Appendf(nil,
				"deb [signed-by=/usr/share/keyrings/cuda-archive-keyring.gpg] %s/%s/x86_64/ /\n", r.URL, distro), 0o644},
			{"etc/apt/preferences.d/cuda-repository-pin-600", []byte("Package: *\nPin: release l=NVIDIA CUDA\nPin-Priority: 600\n"), 0o644},
		},
	}
	if err := keyring.build(ctx, s.Log, dir); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(dir, keyringFile))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	r.KeyringSHA256[distro] = hex.EncodeToString(sum[:])
	return index(ctx, s.Log, dir, gnupg)
}

// index writes Packages, Packages.gz and the signed Release of a flat repository.
func index(ctx context.Context, log io.Writer, dir, gnupg string) error {
	cmd := exec.CommandContext(ctx, "apt-ftparchive", "packages", ".")
	cmd.Dir, cmd.Stderr = dir, log
	packages, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("apt-ftparchive: %w", err)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(packages); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	release := bytes.NewBufferString("Origin: NVIDIA\nLabel: NVIDIA CUDA\nArchitecture: x86_64\n")
	fmt.Fprintf(release, "Date: %s\n", time.Now().UTC().Format(time.RFC1123))
	files := []file{{"Packages", packages, 0o644}, {"Packages.gz", zipped.Bytes(), 0o644}}
	for _, h := range []struct {
		name string
		sum  func([]byte) string
	}{
		{"MD5Sum", func(b []byte) string { s := md5.Sum(b); return hex.EncodeToString(s[:]) }},
		{"SHA1", func(b []byte) string { s := sha1.Sum(b); return hex.EncodeToString(s[:]) }},
		{"SHA256", func(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }},
	} {
		fmt.Fprintf(release, "%s:\n", h.name)
		for _, f := range files {
			fmt.Fprintf(release, " %s %d %s\n", h.sum(f.data), len(f.data), f.path)
		}
	}
	for _, f := range append(files, file{"Release", release.Bytes(), 0o644}) {
		if err := os.WriteFile(filepath.Join(dir, f.path), f.data, f.mode); err != nil {
			return err
		}
	}
	// Another process's kill of the agent would come between this one and its signatures.
	unlock, err := lock(ctx, filepath.Join(filepath.Dir(gnupg), "locks", "signing"))
	if err != nil {
		return err
	}
	defer unlock()
	for _, args := range [][]string{
		{"--clearsign", "--output", "InRelease"},
		{"--armor", "--detach-sign", "--output", "Release.gpg"},
	} {
		args = append([]string{"--homedir", gnupg, "--batch", "--yes", "--quiet", "--digest-algo", "SHA256"}, append(args, "Release")...)
		if err := run(ctx, log, dir, "gpg", args...); err != nil {
			return err
		}
	}
	return run(ctx, log, dir, "gpgconf", "--homedir", gnupg, "--kill", "gpg-agent")
}

// ensureSigningKey makes a GnuPG home with one key, its public half in public.gpg.
func ensureSigningKey(ctx context.Context, cache string, log io.Writer) (string, error) {
	return artifact(ctx, cache, "gnupg", func(dir string) error {
		if err := os.Chmod(dir, 0o700); err != nil {
			return err
		}
		base := []string{"--homedir", dir, "--batch", "--quiet"}
		err := run(ctx, log, dir, "gpg", append(base, "--passphrase", "", "--pinentry-mode", "loopback",
			"--quick-generate-key", "gpuguest lab, not NVIDIA <lab@invalid>", "rsa3072", "sign", "never")...)
		if err != nil {
			return err
		}
		if err := run(ctx, log, dir, "gpg", append(base, "--output", "public.gpg", "--export")...); err != nil {
			return err
		}
		return run(ctx, log, dir, "gpgconf", "--homedir", dir, "--kill", "gpg-agent")
	})
}

type file struct {
	path string
	data []byte
	mode os.FileMode
}

// deb is a binary package to be made.
type deb struct {
	name, version, arch, description                   string
	depends, conflicts, provides, replaces, recommends string
	files                                              []file
	links                                              map[string]string // path to target
	scripts                                            map[string]string // postinst and the like
}

func (d deb) build(ctx context.Context, log io.Writer, into string) error {
	dir, err := os.MkdirTemp("", "guestlab-deb-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	var control, conffiles strings.Builder
	fmt.Fprintf(&control, "Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: gpuguest lab <lab@invalid>\n", d.name, d.version, d.arch)
	for _, field := range [][2]string{
		{"Depends", d.depends}, {"Recommends", d.recommends}, {"Conflicts", d.conflicts},
		{"Provides", d.provides}, {"Replaces", d.replaces},
	} {
		if field[1] != "" {
			fmt.Fprintf(&control, "%s: %s\n", field[0], field[1])
		}
	}
	fmt.Fprintf(&control, "Section: non-free/kernel\nPriority: optional\nDescription: %s\n A stand-in made by gpuguest's lab. It is not NVIDIA's.\n", d.description)
	files := slices.Clone(d.files)
	for _, f := range d.files {
		if strings.HasPrefix(f.path, "etc/") {
			fmt.Fprintf(&conffiles, "/%s\n", f.path)
		}
		if strings.Contains(f.path, "/lib/") && strings.Contains(f.path, ".so.") {
			d.scripts = map[string]string{"triggers": "activate-noawait ldconfig\n"}
		}
	}
	files = append(files, file{"DEBIAN/control", []byte(control.String()), 0o644})
	if conffiles.Len() > 0 {
		files = append(files, file{"DEBIAN/conffiles", []byte(conffiles.String()), 0o644})
	}
	for name, text := range d.scripts {
		mode := os.FileMode(0o755)
		if name == "triggers" {
			mode = 0o644
		}
		files = append(files, file{"DEBIAN/" + name, []byte(text), mode})
	}
	for _, f := range files {
		path := filepath.Join(dir, f.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.data, f.mode.Perm()); err != nil {
			return err
		}
		if err := os.Chmod(path, f.mode); err != nil {
			return err
		}
	}
	for path, target := range d.links {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(target, filepath.Join(dir, path)); err != nil {
			return err
		}
	}
	return run(ctx, log, dir, "dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", dir, into)
}

// driverPackages builds every stand-in package for one distribution into a
// directory of the cache.
func driverPackages(ctx context.Context, s Spec, distro string) (string, error) {
	suite, ok := suites[distro]
	if !ok {
		return "", fmt.Errorf("no stand-in packages for %q", distro)
	}
	apt, err := openApt(ctx, s.Cache, suite, s.Log)
	if err != nil {
		return "", err
	}
	sources, err := hashTree(labfiles.FS, "packages")
	if err != nil {
		return "", err
	}
	inputs := [][]byte{sources, []byte(packagesRevision + strings.Join(DriverVersions(), " "))}
	for _, pkg := range realPackages() {
		v, err := apt.candidate(ctx, pkg)
		if err != nil {
			return "", err
		}
		inputs = append(inputs, []byte(v))
	}
	return artifact(ctx, s.Cache, hashed("packages-"+distro, inputs...), func(dir string) error {
		b := packager{ctx: ctx, log: s.Log, work: filepath.Join(dir, "work"), out: dir}
		if err := b.prepare(apt); err != nil {
			return err
		}
		for _, v := range DriverVersions() {
			if err := b.release(v); err != nil {
				return fmt.Errorf("packages of %s: %w", v, err)
			}
		}
		return os.RemoveAll(b.work)
	})
}

// packagesRevision is raised when what this file builds changes but no source does.
const packagesRevision = "3 "

// realPackages are Debian's own whose programs go unchanged into the stand-ins.
func realPackages() []string { return []string{"nvidia-smi", "nvidia-persistenced"} }

// packager builds one distribution's packages. It lives for one build, which is
// why it keeps the build's context.
type packager struct {
	ctx              context.Context
	log              io.Writer
	work, out        string
	smi, persistence []byte // Debian's own programs
	tirpc            string // the package the daemon's RPC library is in
}

// tirpcPattern finds that package among nvidia-persistenced's dependencies.
var tirpcPattern = regexp.MustCompile(`libtirpc[0-9a-z]+`)

func (p *packager) prepare(apt *aptRoot) error {
	if err := copyTree(labfiles.FS, "packages", filepath.Join(p.work, "src")); err != nil {
		return err
	}
	if _, err := apt.unpack(p.ctx, "nvidia-smi", filepath.Join(p.work, "smi")); err != nil {
		return err
	}
	depends, err := apt.unpack(p.ctx, "nvidia-persistenced", filepath.Join(p.work, "persistenced"))
	if err != nil {
		return err
	}
	if p.tirpc = tirpcPattern.FindString(depends); p.tirpc == "" {
		return fmt.Errorf("nvidia-persistenced depends on no libtirpc: %s", depends)
	}
	found, err := filepath.Glob(filepath.Join(p.work, "smi/usr/lib/nvidia/*/nvidia-smi"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("nvidia-smi is not where Debian puts it: %w", errors.Join(err, os.ErrNotExist))
	}
	if p.smi, err = os.ReadFile(found[0]); err != nil {
		return err
	}
	if p.persistence, err = os.ReadFile(filepath.Join(p.work, "persistenced/usr/bin/nvidia-persistenced")); err != nil {
		return err
	}
	return p.writeOthers()
}

// nvmlName is a function of NVML as its name stands in a program's strings;
// definitionPattern, one that the stand-in's source defines.
var (
	nvmlName          = regexp.MustCompile(`\bnvml[A-Z][A-Za-z0-9_]*\b`)
	definitionPattern = regexp.MustCompile(`(?m)^(?:int|const char \*) ?(nvml[A-Za-z0-9_]+)\(`)
)

// writeOthers defines every NVML function nvidia-smi looks up and nvml.c lacks.
func (p *packager) writeOthers() error {
	source, err := os.ReadFile(filepath.Join(p.work, "src/user/nvml.c"))
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, m := range definitionPattern.FindAllSubmatch(source, -1) {
		have[string(m[1])] = true
	}
	var b strings.Builder
	for _, name := range nvmlName.FindAll(p.smi, -1) {
		if !have[string(name)] {
			have[string(name)] = true
			fmt.Fprintf(&b, "int %s(void) { return NOT_SUPPORTED; }\n", name)
		}
	}
	return writeFile(filepath.Join(p.work, "src/user/others.h"), b.String(), 0o644)
}

// cudaVersions is the CUDA version a branch's libcuda reports.
var cudaVersions = map[string]string{"580": "13000", "595": "13020"}

// compile builds a program or library of one release with the host's compiler.
func (p *packager) compile(out, source, version string, flags ...string) ([]byte, error) {
	branch, _, _ := strings.Cut(version, ".")
	src := filepath.Join(p.work, "src")
	bin := filepath.Join(p.work, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	args := append([]string{
		"-O2", "-Wall", "-Wextra", "-s", "-I" + filepath.Join(src, "kernel"),
		"-DVERSION=\"" + version + "\"", "-DCUDA_MAJOR=\"13\"", "-DCUDA_VERSION=" + cudaVersions[branch],
	}, flags...)
	args = append(args, "-o", filepath.Join(bin, out), filepath.Join(src, "user", source))
	if err := run(p.ctx, p.log, p.work, "gcc", args...); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(bin, out))
}

const libDir = "usr/lib/x86_64-linux-gnu/"

// library is a package of one shared library.
func (p *packager) library(pkg, soname, source, version string) (deb, error) {
	data, err := p.compile(soname, source, version, "-shared", "-fPIC", "-Wl,-soname,"+soname)
	if err != nil {
		return deb{}, err
	}
	full := strings.TrimSuffix(soname, "1") + version
	return deb{
		name: pkg, arch: "amd64", description: soname + " that answers from /proc", depends: "libc6",
		files: []file{{libDir + full, data, 0o644}},
		links: map[string]string{libDir + soname: full},
	}, nil
}

// source reads one of the packages' source files with @VERSION@ filled in.
func (p *packager) source(name, version string) (string, error) {
	data, err := os.ReadFile(filepath.Join(p.work, "src", name))
	return strings.ReplaceAll(string(data), "@VERSION@", version), err
}

// kernelModule is the DKMS package of one flavor.
func (p *packager) kernelModule(pkg, other, version string, open bool) (deb, error) {
	branch, _, _ := strings.Cut(version, ".")
	flavor := 0
	if open {
		flavor = 1
	}
	header := fmt.Sprintf("#define VERSION %q\n#define BRANCH %s\n#define OPEN %d\n"+
		"#define BUILT \"Tue Oct  6 12:00:00 UTC 2026\"\n#define CC_TEXT \"gcc version \" __VERSION__\n", version, branch, flavor)
	dir := "usr/src/nvidia-" + version + "/"
	d := deb{
		name: pkg, arch: "amd64", description: "stand-in kernel module, by DKMS",
		depends:   "dkms (>= 2.1.0.0), nvidia-kernel-support (= " + version + "-1)",
		conflicts: other, replaces: other, provides: "nvidia-kernel-" + version,
		files:   []file{{dir + "standin.h", []byte(header), 0o644}},
		scripts: map[string]string{},
	}
	for from, to := range map[string]string{
		"kernel/nvidia.c": "nvidia.c", "kernel/chips.h": "chips.h", "kernel/Kbuild": "Kbuild", "debian/dkms.conf": "dkms.conf",
	} {
		text, err := p.source(from, version)
		if err != nil {
			return deb{}, err
		}
		d.files = append(d.files, file{dir + to, []byte(text), 0o644})
	}
	for _, script := range []string{"postinst", "prerm"} {
		text, err := p.source("debian/dkms."+script, version)
		if err != nil {
			return deb{}, err
		}
		d.scripts[script] = text
	}
	return d, nil
}

// release builds the packages of one driver version, with the names and the
// dependencies NVIDIA's have on Debian.
func (p *packager) release(version string) error {
	branch, _, _ := strings.Cut(version, ".")
	full := version + "-1"
	same := func(names ...string) string {
		for i, n := range names {
			names[i] = n + " (= " + full + ")"
		}
		return strings.Join(names, ", ")
	}
	eitherModule := same("nvidia-kernel-dkms") + " | " + same("nvidia-kernel-open-dkms")
	closed, err := p.kernelModule("nvidia-kernel-dkms", "nvidia-kernel-open-dkms", version, false)
	if err != nil {
		return err
	}
	open, err := p.kernelModule("nvidia-kernel-open-dkms", "nvidia-kernel-dkms", version, true)
	if err != nil {
		return err
	}
	debs := []deb{closed, open}
	for _, l := range [][3]string{
		{"libnvidia-ml1", "libnvidia-ml.so.1", "nvml.c"},
		{"libcuda1", "libcuda.so.1", "cuda.c"},
		{"libnvidia-cfg1", "libnvidia-cfg.so.1", "cfg.c"},
	} {
		d, err := p.library(l[0], l[1], l[2], version)
		if err != nil {
			return err
		}
		debs = append(debs, d)
	}
	modprobe, err := p.compile("nvidia-modprobe", "modprobe.c", version, "-static")
	if err != nil {
		return err
	}
	unit, err := p.source("user/nvidia-persistenced.service", version)
	if err != nil {
		return err
	}
	persistenced := deb{
		name: "nvidia-persistenced", arch: "amd64", description: "Debian's own daemon",
		depends: same("libnvidia-cfg1", "nvidia-modprobe") + ", adduser, init-system-helpers, libc6, " + p.tirpc,
		files: []file{
			{"usr/bin/nvidia-persistenced", p.persistence, 0o755},
			{"lib/systemd/system/nvidia-persistenced.service", []byte(unit), 0o644},
		},
		scripts: map[string]string{},
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		if persistenced.scripts[script], err = p.source("debian/persistenced."+script, version); err != nil {
			return err
		}
	}
	debs = append(debs, persistenced,
		deb{
			name: "nvidia-modprobe", arch: "amd64", description: "loads the module and makes its nodes",
			files: []file{{"usr/bin/nvidia-modprobe", modprobe, 0o755 | os.ModeSetuid}},
		},
		deb{
			name: "nvidia-kernel-support", arch: "amd64", description: "what both kernel module flavors share",
			files: []file{
				{"lib/firmware/nvidia/" + version + "/gsp_tu10x.bin", []byte("A stand-in: it runs nowhere.\n"), 0o644},
				{"lib/firmware/nvidia/" + version + "/gsp_ga10x.bin", []byte("A stand-in: it runs nowhere.\n"), 0o644},
			},
		},
		deb{name: "nvidia-settings", arch: "amd64", description: "nothing, for the dependencies' sake"},
		deb{
			name: "nvidia-driver-cuda", arch: "amd64", description: "Debian's own nvidia-smi over stand-in libraries",
			depends: same("libcuda1", "libnvidia-ml1", "nvidia-persistenced", "nvidia-modprobe", "nvidia-kernel-support") + ", " + eitherModule + ", libc6",
			// As NVIDIA's: it has the program Debian keeps in a package of its own.
			conflicts: "nvidia-smi", replaces: "nvidia-smi",
			files: []file{{"usr/bin/nvidia-smi", p.smi, 0o755}},
		},
		deb{
			name: "nvidia-driver", arch: "amd64", description: "the driver without CUDA",
			depends:    same("nvidia-kernel-support", "nvidia-modprobe", "libnvidia-cfg1") + ", " + eitherModule,
			recommends: same("nvidia-settings", "nvidia-persistenced"),
		},
	)
	for _, meta := range [][2]string{{"cuda-drivers", "nvidia-kernel-dkms"}, {"nvidia-open", "nvidia-kernel-open-dkms"}} {
		debs = append(debs,
			deb{name: meta[0], arch: "amd64", description: "everything", depends: same("nvidia-driver", "nvidia-driver-cuda", meta[1])},
			deb{name: meta[0] + "-" + branch, arch: "amd64", description: "everything, of branch " + branch, depends: same(meta[0])})
	}
	for i := range debs {
		debs[i].version = full
	}
	debs = append(debs, pinning(version, version))
	if newestOfBranch(version) {
		debs = append(debs, pinning(branch, branch))
	}
	for _, d := range debs {
		if err := d.build(p.ctx, p.log, p.out); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

func newestOfBranch(version string) bool {
	branch, _, _ := strings.Cut(version, ".")
	newest := ""
	for _, v := range DriverVersions() {
		if strings.HasPrefix(v, branch+".") {
			newest = v
		}
	}
	return newest == version
}

// pinning is the package that ties apt to a branch or a version, named by it.
// Only one of its kind can be installed.
func pinning(name, version string) deb {
	pattern := version + ".*"
	if strings.Contains(version, ".") {
		pattern = version + "-*"
	}
	names := []string{
		"cuda-drivers*", "nvidia-open*", "nvidia-driver", "nvidia-driver-cuda", "nvidia-kernel-*", "nvidia-persistenced",
		"nvidia-modprobe", "nvidia-settings", "libnvidia-*", "libcuda1",
	}
	return deb{
		name: "nvidia-driver-pinning-" + name, version: version + "-1", arch: "all", description: "keeps the driver at " + version,
		provides: "nvidia-driver-pinning", conflicts: "nvidia-driver-pinning", replaces: "nvidia-driver-pinning",
		// apt passes over a file whose name ends in ".05".
		files: []file{{"etc/apt/preferences.d/nvidia-driver-pinning-" + name + ".pref", fmt.Appendf(nil,
			"Package: %s\nPin: version %s\nPin-Priority: 1000\n", strings.Join(names, " "), pattern), 0o644}},
	}
}
