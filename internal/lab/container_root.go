package lab

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

//go:embed container/*.sh
var containerFiles embed.FS

// ContainerRoot is a file system that container guests start from. It is shared and never written: every
// guest writes into a directory of its own above it.
type ContainerRoot struct {
	Suite  string   // "bookworm"
	layers []string // directories, the uppermost first
}

// containerRootAge is how long a root serves before it is made anew: a mirror drops the headers of a kernel
// some time after it has a newer one, and a guest must find the headers of its own.
const containerRootAge = 72 * time.Hour

// containerPackages make a stock server: what Debian's own cloud images have, less cloud-init. Headers,
// compilers and dkms are not among them, for a stock guest has none.
var containerPackages = []string{
	"systemd", "systemd-sysv", "dbus", "openssh-server", "sudo", "ca-certificates", "iproute2", "procps", "kmod",
	"linux-image-amd64", "initramfs-tools", "zstd", "grub-pc", "curl", "pciutils",
}

// BuildContainerRoot makes the root of a Debian guest from the packages of the machine's own mirror, or
// returns the one made before. It takes about a minute and 800 MB, must run as root, and may be called by
// several processes at once: one builds, the others wait.
func BuildContainerRoot(ctx context.Context, suite string) (ContainerRoot, error) {
	mirror, err := findContainerMirror(ctx)
	if err != nil {
		return ContainerRoot{}, err
	}
	sum := sha256.New()
	fmt.Fprintln(sum, suite, containerPackages, mirror)
	err = fs.WalkDir(containerFiles, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := containerFiles.ReadFile(path)
		sum.Write(data)
		return err
	})
	if err != nil {
		return ContainerRoot{}, err
	}
	dir, err := cachedTree(ctx, "root-"+suite, sum.Sum(nil), containerRootAge, func(dir string) error {
		return bootstrap(ctx, suite, mirror, dir)
	})
	return ContainerRoot{Suite: suite, layers: []string{dir}}, err
}

func bootstrap(ctx context.Context, suite string, mirror containerMirror, dir string) error {
	scripts, err := os.MkdirTemp("", "gpuguest-lab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scripts)
	if err := os.CopyFS(scripts, containerFiles); err != nil {
		return err
	}
	// An initramfs with every driver of the kernel takes twenty seconds, one with none two; no container
	// guest is started by it. The file is the guest's own configuration, as an administrator may write it.
	hook := `mkdir -p "$1/etc/initramfs-tools/conf.d" && echo MODULES=list >"$1/etc/initramfs-tools/conf.d/lab"`
	args := []string{"--quiet", "--variant=minbase", "--include=" + strings.Join(containerPackages, ","),
		"--essential-hook=" + hook,
		`--customize-hook=cp -r ` + scripts + `/container "$1/lab" && chroot "$1" sh /lab/setup.sh`,
		suite, dir}
	args = append(args, mirror.bootstrapSources(suite)...)
	if err := command(ctx, "mmdebstrap", args...); err != nil {
		return err
	}
	list := strings.Join(mirror.sources(suite), "\n") + "\n"
	if err := os.Remove(filepath.Join(dir, "etc/apt/apt.conf.d/99mmdebstrap")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "etc/apt/sources.list"), []byte(list), 0o644)
}

// BuildContainerLayer returns root as it is after a guest that was started from it ran script as root and
// was shut down. It is cached by root and script.
func BuildContainerLayer(ctx context.Context, root ContainerRoot, name, script string) (ContainerRoot, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, root.layers, script)
	dir, err := cachedTree(ctx, "layer-"+root.Suite+"-"+name, sum.Sum(nil), containerRootAge, func(dir string) (err error) {
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
	return ContainerRoot{Suite: root.Suite, layers: append([]string{dir}, root.layers...)}, err
}

// cachedTree returns a directory of the cache that make filled, or that an earlier call filled no longer
// than age ago. A directory is in its place only when it is whole.
func cachedTree(ctx context.Context, name string, sum []byte, age time.Duration, make func(dir string) error) (string, error) {
	cache, err := containerCache()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, name+"-"+hex.EncodeToString(sum[:8]))
	lock, err := lockFile(ctx, dir+".lock")
	if err != nil {
		return "", err
	}
	defer lock.Close()
	stamp := dir + ".made"
	if st, err := os.Stat(stamp); err == nil && time.Since(st.ModTime()) < age {
		return dir, nil
	}
	for _, old := range []string{stamp, dir} {
		if err := os.RemoveAll(old); err != nil {
			return "", err
		}
	}
	if err := make(dir); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, os.WriteFile(stamp, nil, 0o644)
}

// containerCache is the directory that roots, layers, packages and running guests are in.
func containerCache() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, "gpuguest-lab", "containers")
	return dir, os.MkdirAll(dir, 0o700)
}

// errLocked is what tryLock says of a file that somebody holds.
var errLocked = errors.New("locked")

// lockFile waits for an exclusive lock, which ends when the file is closed or its process dies.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		f, err := tryLock(path)
		if !errors.Is(err, errLocked) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

func tryLock(path string) (*os.File, error) {
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

// command runs a program of the machine; its error holds the end of what the program said.
func command(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var all strings.Builder
	cmd.Stdout, cmd.Stderr = &all, io.Writer(&all)
	err := cmd.Run()
	if err != nil {
		text := strings.TrimSpace(all.String())
		if len(text) > 2000 {
			text = "…" + text[len(text)-2000:]
		}
		return all.String(), fmt.Errorf("%s: %w: %s", name, err, text)
	}
	return all.String(), nil
}
