// Package lab makes and runs throwaway guests with a pretend GPU: it builds a
// bootable Debian disk from packages, boots it in QEMU, and serves an apt
// repository laid out like NVIDIA's whose packages stand in for the driver.
// It is used by cmd/guestlab and by tests, needs root, and is not shipped.
// What in it is real and what stands in is listed in testdata/lab/README.md.
//
// It names no package mirror: every package comes from where the host's own apt
// gets its packages.
package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"gpuguest/internal/oven"
	labfiles "gpuguest/testdata/lab"
)

// Spec says which image to build. The zero value is Debian 12 without driver.
type Spec struct {
	Suite string // Debian's code name; "" is bookworm
	// Firmware that the guest is for: oven.FirmwareBIOS, which "" is too, or oven.FirmwareUEFI, with Debian's signed
	// shim, GRUB and kernel, and the pretend GPU's module signed by the lab.
	Firmware string
	// As is the distribution that the guest passes for, by NVIDIA's name for it: its os-release says so, and all else
	// in it is Debian's. "" is none; Guises are the others.
	As string
	// RealDriver adds Debian's own nvidia kernel modules, built for the guest's
	// kernel while the image is made, because that build takes over an hour in
	// an emulated guest.
	RealDriver bool
	// Installed are packages of the guest's own sources that it has from the start, unpacked at the host's speed:
	// Debian's driver takes a quarter of an hour to unpack, configure and put into initramfs twice under emulation.
	Installed  []string
	Components []string // of the guest's sources; nil is main contrib non-free non-free-firmware
	Cache      string   // directory of artifacts; "" is DefaultCache
	Log        io.Writer
	// Progress, when set, is told of each finished phase and how long it took;
	// a phase answered from the cache is not told.
	Progress func(phase string, took time.Duration)
}

// Image is a disk ready to boot. It is shared and must not be written to.
type Image struct {
	Dir    string
	Disk   string // raw, with GRUB in its boot record
	Kernel string // what uname -r says in the guest
	Suite  string
	Keys   Keys
	// Firmware as in Spec. Cert, DER, is what the module of the pretend GPU is signed by where that is UEFI.
	Firmware string
	Cert     []byte
}

// DefaultCache is $XDG_CACHE_HOME/gpuguest-lab or ~/.cache/gpuguest-lab.
func DefaultCache() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "gpuguest-lab"), nil
}

// Clean removes every artifact. It must not run while a guest or a build does.
func Clean(cache string) error {
	if cache == "" {
		var err error
		if cache, err = DefaultCache(); err != nil {
			return err
		}
	}
	return os.RemoveAll(cache)
}

// guestPackages is what the guest has from the start: what a cloud image of
// Debian has and the product relies on, with the full kernel for nouveau, and
// the compiler, whose packages take minutes to unpack under emulation. Headers
// and dkms are left for the product to install; container guests, which unpack
// at native speed, start without a compiler too.
var guestPackages = []string{
	"linux-image-amd64", "grub-pc", "initramfs-tools", "zstd", "systemd-sysv", "libpam-systemd", "dbus",
	"openssh-server", "sudo", "pciutils", "kmod", "iproute2", "ca-certificates", "curl", "wget", "gnupg",
	"locales", "bash-completion", "python3", "gcc", "make", "dpkg-dev", "patch",
}

func (s Spec) normal() (Spec, error) {
	if s.Suite == "" {
		s.Suite = "bookworm"
	}
	switch s.Firmware {
	case "":
		s.Firmware = oven.FirmwareBIOS
	case oven.FirmwareBIOS, oven.FirmwareUEFI:
	default:
		return s, fmt.Errorf("firmware %q: it is %s or %s", s.Firmware, oven.FirmwareBIOS, oven.FirmwareUEFI)
	}
	if s.As != "" && !slices.Contains(Guises(), s.As) {
		return s, fmt.Errorf("a guest passes for one of %s, not for %q", strings.Join(Guises(), ", "), s.As)
	}
	if s.Components == nil {
		s.Components = []string{"main", "contrib", "non-free", "non-free-firmware"}
	}
	if s.Log == nil {
		s.Log = io.Discard
	}
	if s.Progress == nil {
		s.Progress = func(string, time.Duration) {}
	}
	if s.Cache == "" {
		var err error
		if s.Cache, err = DefaultCache(); err != nil {
			return s, err
		}
	}
	return s, nil
}

// Build makes the image, or finds it in the cache. It is safe to call from
// several processes at once: one builds, the others wait for it.
func Build(ctx context.Context, spec Spec) (Image, error) {
	spec, err := spec.normal()
	if err != nil {
		return Image{}, err
	}
	keys, err := ensureKeys(ctx, spec.Cache)
	if err != nil {
		return Image{}, fmt.Errorf("lab keys: %w", err)
	}
	apt, err := openApt(ctx, spec.Cache, spec.Suite, spec.Log)
	if err != nil {
		return Image{}, fmt.Errorf("package sources for %s: %w", spec.Suite, err)
	}
	kernel, err := apt.candidate(ctx, "linux-image-amd64")
	if err != nil {
		return Image{}, err
	}
	base := hashed("base-"+spec.Suite, []byte(apt.sources), []byte(apt.conf), []byte(strings.Join(guestPackages, " ")), []byte(kernel))
	baseDir, err := artifact(ctx, spec.Cache, base, func(dir string) error {
		start := time.Now()
		if err := buildBase(ctx, spec, apt, dir); err != nil {
			return err
		}
		spec.Progress("base system", time.Since(start))
		return nil
	})
	if err != nil {
		return Image{}, fmt.Errorf("base system: %w", err)
	}
	inputs := [][]byte{[]byte(base), []byte(strings.Join(spec.Components, " ")), []byte(keys.AuthorizedKey), []byte(keys.HostPublicKey)}
	for _, dir := range []string{"guest", "fakegpu"} {
		sum, err := hashTree(labfiles.FS, dir)
		if err != nil {
			return Image{}, err
		}
		inputs = append(inputs, sum)
	}
	kind, driverDir := "image-"+spec.Suite, ""
	var signer Signer
	if spec.Firmware == oven.FirmwareUEFI {
		kind += "-uefi"
		if signer, err = ensureSigner(ctx, spec.Cache); err != nil {
			return Image{}, fmt.Errorf("key of the lab's modules: %w", err)
		}
		inputs = append(inputs, signer.Cert)
	}
	if spec.As != "" {
		kind += "-as-" + spec.As
	}
	if spec.RealDriver {
		kind += "-nvidia"
		if driverDir, err = driverModules(ctx, spec, apt, base); err != nil {
			return Image{}, fmt.Errorf("debian's nvidia modules: %w", err)
		}
		inputs = append(inputs, []byte(driverDir))
	}
	if len(spec.Installed) > 0 {
		kind += "-installed"
		inputs = append(inputs, []byte(strings.Join(spec.Installed, " ")))
	}
	dir, err := artifact(ctx, spec.Cache, hashed(kind, inputs...), func(dir string) error {
		start := time.Now()
		if err := buildImage(ctx, spec, apt, imageInput{dir: dir, base: baseDir, driver: driverDir, keys: keys, signer: signer}); err != nil {
			return err
		}
		spec.Progress("guest image", time.Since(start))
		return nil
	})
	if err != nil {
		return Image{}, fmt.Errorf("guest image: %w", err)
	}
	version, err := os.ReadFile(filepath.Join(dir, "kernel"))
	if err != nil {
		return Image{}, err
	}
	return Image{
		Dir: dir, Disk: filepath.Join(dir, "disk.raw"), Kernel: strings.TrimSpace(string(version)),
		Suite: spec.Suite, Keys: keys, Firmware: spec.Firmware, Cert: signer.Cert,
	}, nil
}

func buildBase(ctx context.Context, spec Spec, apt *aptRoot, dir string) error {
	// The kernel's own postinst would make an initramfs that build-image.sh
	// makes again; INITRD=No is how it is told not to.
	return run(ctx, spec.Log, dir, "env", "INITRD=No", "mmdebstrap", "--variant=important",
		"--include="+strings.Join(guestPackages, ","), "--aptopt="+apt.confPath, "--dpkgopt=force-unsafe-io",
		spec.Suite, filepath.Join(dir, "root.tar"), apt.sourcesPath)
}

// driverModules builds Debian's nvidia modules for the base system's kernel.
// They have an artifact of their own because the build takes minutes.
func driverModules(ctx context.Context, spec Spec, apt *aptRoot, base string) (string, error) {
	version, err := apt.candidate(ctx, "nvidia-kernel-dkms")
	if err != nil {
		return "", err
	}
	script, err := fs.ReadFile(labfiles.FS, "guest/build-driver.sh")
	if err != nil {
		return "", err
	}
	return artifact(ctx, spec.Cache, hashed("nvidia-"+spec.Suite, []byte(base), []byte(version), script), func(dir string) error {
		start := time.Now()
		for name, text := range map[string]string{"build-driver.sh": string(script), "build.sources": apt.sources, "build.conf": apt.conf} {
			if err := writeFile(filepath.Join(dir, name), text, 0o644); err != nil {
				return err
			}
		}
		if err := os.Link(filepath.Join(spec.Cache, base, "root.tar"), filepath.Join(dir, "root.tar")); err != nil {
			return err
		}
		if err := runMounting(ctx, spec.Log, dir, "build-driver.sh"); err != nil {
			return err
		}
		spec.Progress("debian's nvidia modules", time.Since(start))
		return nil
	})
}

// runMounting runs a script on its own directory in a mount name space of its
// own, whose mounts vanish with the last process in it.
func runMounting(ctx context.Context, log io.Writer, dir, script string) error {
	return run(ctx, log, dir, "unshare", "--mount", "--propagation", "private", "sh", filepath.Join(dir, script), dir)
}

type imageInput struct {
	dir, base string
	driver    string // directory of build-driver.sh's result, or ""
	keys      Keys
	signer    Signer // zero: a BIOS checks no signatures
}

func buildImage(ctx context.Context, spec Spec, apt *aptRoot, in imageInput) error {
	for _, name := range []string{"guest", "fakegpu"} {
		if err := copyTree(labfiles.FS, name, filepath.Join(in.dir, name)); err != nil {
			return err
		}
	}
	files := map[string]string{
		"sources.list.d/debian.sources": apt.withComponents(spec.Components),
		"build.sources":                 apt.sources,
		"apt.conf":                      guestAptConf(apt.conf),
		"build.conf":                    apt.conf,
		"ssh/authorized_keys":           in.keys.AuthorizedKey,
		"ssh/ssh_host_ed25519_key":      in.keys.hostPrivate,
		"ssh/ssh_host_ed25519_key.pub":  in.keys.HostPublicKey,
	}
	if spec.Firmware == oven.FirmwareUEFI {
		files["signing/key.pem"], files["signing/cert.der"] = in.signer.key, string(in.signer.Cert)
	}
	if spec.As != "" {
		text, err := fs.ReadFile(labfiles.FS, guisePath(spec.As))
		if err != nil {
			return err
		}
		files["os-release"] = string(text)
	}
	for name, text := range files {
		if err := writeFile(filepath.Join(in.dir, name), text, 0o600); err != nil {
			return err
		}
	}
	// What the guest reads must be readable by apt's own user there.
	for _, name := range []string{"sources.list.d/debian.sources", "build.sources", "apt.conf", "build.conf"} {
		if err := os.Chmod(filepath.Join(in.dir, name), 0o644); err != nil {
			return err
		}
	}
	if len(spec.Installed) > 0 {
		if err := writeFile(filepath.Join(in.dir, "installed"), strings.Join(spec.Installed, "\n")+"\n", 0o600); err != nil {
			return err
		}
	}
	if err := os.Link(filepath.Join(in.base, "root.tar"), filepath.Join(in.dir, "root.tar")); err != nil {
		return err
	}
	if in.driver != "" {
		if err := os.Link(filepath.Join(in.driver, "dkms.tar"), filepath.Join(in.dir, "dkms.tar")); err != nil {
			return err
		}
	}
	if err := runMounting(ctx, spec.Log, in.dir, "guest/build-image.sh"); err != nil {
		return err
	}
	for _, name := range []string{"root.tar", "upper", "ovl", "mnt", "build", "modules", "dkms.tar", "ssh", "signing"} {
		if err := os.RemoveAll(filepath.Join(in.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// hashed gives an artifact its name: what it is and a digest of all it is made of.
func hashed(kind string, inputs ...[]byte) string {
	h := sha256.New()
	for _, in := range inputs {
		fmt.Fprintf(h, "%d:", len(in))
		h.Write(in)
	}
	return kind + "-" + hex.EncodeToString(h.Sum(nil))[:12]
}

func hashTree(fsys fs.FS, root string) ([]byte, error) {
	h := sha256.New()
	err := fs.WalkDir(fsys, root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(fsys, path)
		fmt.Fprintf(h, "%s:%d:", path, len(data))
		h.Write(data)
		return err
	})
	return h.Sum(nil), err
}

// artifact returns the directory name in the cache, made by build in a
// temporary one and renamed into place, while a lock keeps other processes out.
func artifact(ctx context.Context, cache, name string, build func(dir string) error) (string, error) {
	final := filepath.Join(cache, name)
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	unlock, err := lock(ctx, filepath.Join(cache, "locks", name))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	tmp := filepath.Join(cache, "tmp-"+name)
	if err := discard(ctx, tmp); err != nil {
		return "", err
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return "", err
	}
	if err := build(tmp); err != nil {
		return "", errors.Join(err, discard(context.WithoutCancel(ctx), tmp))
	}
	return final, os.Rename(tmp, final)
}

// discard removes an unfinished build and the loop device a killed one may have
// left on its disk.
func discard(ctx context.Context, dir string) error {
	if disk := filepath.Join(dir, "disk.raw"); exists(disk) {
		out, err := exec.CommandContext(ctx, "losetup", "--noheadings", "--output", "NAME", "--associated", disk).Output()
		if err != nil {
			return fmt.Errorf("losetup: %w", err)
		}
		for _, loop := range strings.Fields(string(out)) {
			if err := exec.CommandContext(ctx, "losetup", "--detach", loop).Run(); err != nil {
				return fmt.Errorf("losetup --detach %s: %w", loop, err)
			}
		}
	}
	return os.RemoveAll(dir)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// lock takes an exclusive lock on a file and gives up when ctx ends.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for %s: %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}

// run runs a command with its output in the log; the error carries the output's last lines.
func run(ctx context.Context, log io.Writer, dir, name string, args ...string) error {
	var tail tailBuffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	w := io.MultiWriter(log, &tail)
	cmd.Stdout, cmd.Stderr = w, w
	// The end of ctx lets the command's own cleaning up run before it is killed.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, tail.lines(15))
	}
	return nil
}

// tailBuffer keeps the last 16 KiB of what is written to it.
type tailBuffer struct{ b []byte }

func (t *tailBuffer) Write(p []byte) (int, error) {
	const keep = 16 << 10
	t.b = append(t.b, p...)
	if len(t.b) > 2*keep {
		t.b = append(t.b[:0], t.b[len(t.b)-keep:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) lines(n int) string {
	all := strings.Split(strings.TrimRight(string(t.b), "\n"), "\n")
	if len(all) > n {
		all = all[len(all)-n:]
	}
	return strings.Join(all, "\n")
}

func writeFile(path, text string, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), mode)
}

func copyTree(fsys fs.FS, root, dest string) error {
	sub, err := fs.Sub(fsys, root)
	if err != nil {
		return err
	}
	return os.CopyFS(dest, sub)
}
