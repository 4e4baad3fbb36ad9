package lab

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

//go:embed container/*.sh
var containerFiles embed.FS

// ContainerRoot is a file system that container guests start from. It is shared and never written: every
// guest writes into a directory of its own above it.
type ContainerRoot struct {
	Suite  string   // "bookworm"
	layers []string // directories, the uppermost first
	mirror containerMirror
}

// containerPackages make a stock server: what Debian's own cloud images have, less cloud-init. Headers,
// compilers and dkms are not among them, for a stock guest has none.
var containerPackages = []string{
	"systemd", "systemd-sysv", "dbus", "openssh-server", "sudo", "ca-certificates", "iproute2", "procps", "kmod",
	"linux-image-amd64", "initramfs-tools", "zstd", "grub-pc", "curl", "pciutils",
}

// BuildContainerRoot makes the root of a Debian guest from the packages of the machine's own mirror, or
// returns the one made before. It takes about a minute and 800 MB, must run as root, and may be called by
// several processes at once: one builds, the others wait. A newer kernel in the archive makes a new root,
// for the headers of the old one leave the archive.
func BuildContainerRoot(ctx context.Context, suite string) (ContainerRoot, error) {
	cache, err := DefaultCache()
	if err != nil {
		return ContainerRoot{}, err
	}
	apt, err := openApt(ctx, cache, suite, nil)
	if err != nil {
		return ContainerRoot{}, fmt.Errorf("package sources for %s: %w", suite, err)
	}
	kernel, err := apt.candidate(ctx, "linux-image-amd64")
	if err != nil {
		return ContainerRoot{}, err
	}
	scripts, err := hashTree(containerFiles, "container")
	if err != nil {
		return ContainerRoot{}, err
	}
	name := hashed("container-"+suite, []byte(apt.sources), []byte(apt.conf), []byte(strings.Join(containerPackages, " ")), []byte(kernel), scripts)
	dir, err := artifact(ctx, cache, name, func(dir string) error { return bootstrap(ctx, apt, dir) })
	return ContainerRoot{Suite: suite, layers: []string{dir}, mirror: containerMirror{apt: apt}}, err
}

func bootstrap(ctx context.Context, apt *aptRoot, dir string) error {
	scripts, err := os.MkdirTemp("", "gpuguest-lab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scripts)
	if err := copyTree(containerFiles, "container", scripts); err != nil {
		return err
	}
	// An initramfs with every driver of the kernel takes twenty seconds, one with none two; no container
	// guest is started by it. The file is the guest's own configuration, as an administrator may write it.
	hook := `mkdir -p "$1/etc/initramfs-tools/conf.d" && echo MODULES=list >"$1/etc/initramfs-tools/conf.d/lab"`
	err = run(ctx, apt.log, "/", "mmdebstrap", "--quiet", "--variant=minbase", "--include="+strings.Join(containerPackages, ","),
		"--aptopt="+apt.confPath, "--essential-hook="+hook,
		`--customize-hook=cp -r `+scripts+` "$1/lab" && chroot "$1" sh /lab/setup.sh`,
		apt.suite, dir, apt.sourcesPath)
	if err != nil {
		return err
	}
	for _, made := range []string{"etc/apt/apt.conf.d/99mmdebstrap", "etc/apt/sources.list.d/0000lab.sources"} {
		if err := os.Remove(filepath.Join(dir, made)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	list := strings.Join(containerMirror{apt: apt}.sources(), "\n") + "\n"
	return writeFile(filepath.Join(dir, "etc/apt/sources.list"), list, 0o644)
}

// BuildContainerLayer returns root as it is after a guest that was started from it ran script as root and
// was shut down. It is cached by root and script.
func BuildContainerLayer(ctx context.Context, root ContainerRoot, name, script string) (ContainerRoot, error) {
	cache, err := DefaultCache()
	if err != nil {
		return ContainerRoot{}, err
	}
	name = hashed("container-"+root.Suite+"-"+name, []byte(strings.Join(root.layers, " ")), []byte(script))
	dir, err := artifact(ctx, cache, name, func(dir string) (err error) {
		c, err := StartContainer(ctx, root, ContainerSpec{})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.Close(ctx)) }()
		if out, err := c.Exec(ctx, script); err != nil {
			return fmt.Errorf("layer %s: %w\n%s", name, err, out)
		}
		if err := c.PowerOff(ctx); err != nil {
			return err
		}
		return c.keepUpper(ctx, dir)
	})
	return ContainerRoot{Suite: root.Suite, layers: append([]string{dir}, root.layers...), mirror: root.mirror}, err
}

// errLocked is what tryLock says of a file that somebody holds.
var errLocked = errors.New("locked")

// tryLock takes a lock, which ends when the file is closed or its process dies.
func tryLock(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, errors.Join(errLocked, f.Close())
	case err != nil:
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// command runs a program of the machine.
func command(ctx context.Context, name string, args ...string) error {
	return run(ctx, io.Discard, "/", name, args...)
}
