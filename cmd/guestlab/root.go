package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"gpuguest/internal/lab"
	"gpuguest/internal/oven"
)

// errCommand marks the failure of the command given to "run", whose exit status is passed on.
var errCommand = errors.New("the command failed")

// options are the flags several commands share.
type options struct {
	suite      string
	firmware   string
	as         string
	realDriver bool
	installed  []string
	components []string
	output     string
	logPath    string

	port    int
	gpus    []string
	mode    string
	memory  int
	secure  bool
	dir     string
	distros []string
	address string
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "guestlab",
		Short:         "Throwaway Debian guests with a pretend GPU",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newBuild(), newBoot(), newRepo(), newRun(), newDeps(), newClean())
	return root
}

func (o *options) addBuild(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.suite, "suite", "bookworm", "Debian's code name: bullseye, bookworm or trixie")
	f.StringVar(&o.firmware, "firmware", oven.FirmwareBIOS, "what the guest boots by: bios, or uefi with Debian's signed shim, GRUB and kernel")
	f.StringVar(&o.as, "as", "", "distribution that the guest's os-release names, nothing else in it being that distribution's: "+strings.Join(lab.Guises(), ", "))
	f.StringSliceVar(&o.installed, "installed", nil, "packages of the guest's own sources that it has from the start")
	f.BoolVar(&o.realDriver, "real-driver", false, "put Debian's own nvidia modules into the image, built beforehand")
	f.StringSliceVar(&o.components, "components", nil, "components of the guest's sources (default all four)")
	f.StringVar(&o.logPath, "log", "", "file for the tools' raw output")
}

func (o *options) addBoot(cmd *cobra.Command) {
	f := cmd.Flags()
	f.IntVar(&o.port, "port", 5022, "port on 127.0.0.1 that leads to the guest's SSH; 0 takes a free one")
	f.StringSliceVar(&o.gpus, "device", []string{lab.DefaultGPU}, `pretend GPUs, vendor:device[:subvendor:subdevice], or "none"`)
	f.StringVar(&o.mode, "mode", lab.ModeOK, "windows of the pretend GPU: ok, needs-realloc, needs-realloc-off, too-small or no-window")
	f.IntVar(&o.memory, "memory", 0, "the guest's memory in MiB (default 3072)")
	f.BoolVar(&o.secure, "secure-boot", false, "with Microsoft's keys in the firmware, and the lab's own: for --firmware uefi")
	f.StringVar(&o.dir, "dir", "", "directory that keeps the guest's disk and console (default a temporary one)")
}

func (o *options) addRepo(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&o.distros, "distro", nil, "distributions the stand-in repository has, as NVIDIA names them (default that of --suite)")
	f.StringVar(&o.address, "listen", "127.0.0.1:0", "address the stand-in repository is served on")
}

// log opens the file for raw output; the empty path throws it away.
func (o *options) log() (io.WriteCloser, error) {
	if o.logPath == "" {
		o.logPath = os.DevNull
	}
	return os.OpenFile(o.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

// progress writes one line for each phase that is over.
func progress(phase string, took time.Duration) {
	fmt.Fprintf(os.Stderr, "guestlab: %-28s %6.1f s\n", phase, took.Seconds())
}

func (o *options) build(ctx context.Context, log io.Writer) (lab.Image, error) {
	start := time.Now()
	image, err := lab.Build(ctx, lab.Spec{
		Suite: o.suite, Firmware: o.firmware, As: o.as, RealDriver: o.realDriver, Installed: o.installed, Components: o.components, Log: log, Progress: progress,
	})
	if err == nil {
		progress("image ready", time.Since(start))
	}
	return image, err
}

func (o *options) boot(ctx context.Context, image lab.Image) (*lab.VM, error) {
	start := time.Now()
	vm, err := lab.Boot(ctx, image, lab.BootSpec{Dir: o.dir, Port: o.port, GPUs: o.gpus, Mode: o.mode, Memory: o.memory, SecureBoot: o.secure})
	if err != nil {
		return nil, err
	}
	if err := vm.WaitSSH(ctx); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	progress("guest answers on SSH ("+strings.TrimSuffix(vm.Accel, ",thread=multi")+")", time.Since(start))
	return vm, nil
}

func (o *options) repo(ctx context.Context, log io.Writer) (*lab.Repo, error) {
	if len(o.distros) == 0 {
		o.distros = []string{cmp.Or(o.as, distroOf(o.suite))}
	}
	start := time.Now()
	r, err := lab.ServeRepo(ctx, lab.RepoSpec{Distros: o.distros, Address: o.address, Log: log})
	if err == nil {
		progress("stand-in repository", time.Since(start))
	}
	return r, err
}

func distroOf(suite string) string {
	switch suite {
	case "bullseye":
		return "debian11"
	case "trixie":
		return "debian13"
	default:
		return "debian12"
	}
}

func newBuild() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build a guest's disk, or find it in the cache, and print where it is",
		Args:  cobra.NoArgs,
		Example: `  guestlab build
  guestlab build --suite trixie --log build.log
  guestlab build --real-driver -o /srv/images`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := o.log()
			if err != nil {
				return err
			}
			defer log.Close()
			image, err := o.build(cmd.Context(), log)
			if err != nil {
				return err
			}
			if o.output == "" {
				fmt.Fprintln(cmd.OutOrStdout(), image.Disk)
				return nil
			}
			copied := filepath.Join(o.output, filepath.Base(image.Dir)+".raw")
			if err := exec.CommandContext(cmd.Context(), "cp", "--sparse=always", image.Disk, copied).Run(); err != nil {
				return fmt.Errorf("copy the disk: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), copied)
			return nil
		},
	}
	o.addBuild(cmd)
	cmd.Flags().StringVarP(&o.output, "output", "o", "", "directory to put a copy of the disk into")
	return cmd
}

func newBoot() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "boot",
		Short: "Boot a guest and keep it until interrupted",
		Args:  cobra.NoArgs,
		Example: `  guestlab boot
  guestlab boot --device 10de:2204 --port 5023
  guestlab boot --firmware uefi --secure-boot
  guestlab boot --real-driver --mode needs-realloc --dir /tmp/guest`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.withGuest(cmd, func(ctx context.Context, vm *lab.VM, r *lab.Repo) error {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				if err := enc.Encode(environment(vm, r, o.distros[0])); err != nil {
					return err
				}
				select {
				case <-ctx.Done():
					return nil
				case <-vm.Done():
					return fmt.Errorf("qemu has ended, see %s", filepath.Join(vm.Dir, "qemu.log"))
				}
			})
		},
	}
	o.addBuild(cmd)
	o.addBoot(cmd)
	o.addRepo(cmd)
	return cmd
}

func newRun() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND ARGS...",
		Short: "Build and boot a guest, run a command against it, clean up",
		Args:  cobra.MinimumNArgs(1),
		Long: `Builds the image and the stand-in repository, boots the guest, and runs the
command with these in its environment:

  GUESTLAB_HOST, GUESTLAB_PORT  where the guest's SSH answers
  GUESTLAB_KEY                  private key that root, debian and worker accept
  GUESTLAB_KNOWN_HOSTS          known_hosts file with the guest's key
  GUESTLAB_MIRROR               what stands for NVIDIA's .../compute/cuda/repos in the guest
  GUESTLAB_MIRROR_LOCAL         the same from the host
  GUESTLAB_DISTRO               the repository's directory, as debian12
  GUESTLAB_KEYRING_SHA256       digest of its cuda-keyring package
  GUESTLAB_KERNEL               the guest's kernel
  GUESTLAB_DIR                  the guest's directory, with console.log

EXIT STATUS
  that of the command, or 1 when the lab itself failed`,
		Example: `  guestlab run -- sh -c 'ssh -i $GUESTLAB_KEY -p $GUESTLAB_PORT -o UserKnownHostsFile=$GUESTLAB_KNOWN_HOSTS root@$GUESTLAB_HOST lspci -nnk'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.withGuest(cmd, func(ctx context.Context, vm *lab.VM, r *lab.Repo) error {
				start := time.Now()
				c := exec.CommandContext(ctx, args[0], args[1:]...)
				c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
				c.Env = os.Environ()
				for name, value := range environment(vm, r, o.distros[0]) {
					c.Env = append(c.Env, name+"="+value)
				}
				c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
				c.WaitDelay = 30 * time.Second
				err := c.Run()
				progress("command", time.Since(start))
				if err != nil {
					return errors.Join(errCommand, err)
				}
				return nil
			})
		},
	}
	o.addBuild(cmd)
	o.addBoot(cmd)
	o.addRepo(cmd)
	return cmd
}

// withGuest builds, serves and boots what the flags say, and takes it down after.
func (o *options) withGuest(cmd *cobra.Command, do func(context.Context, *lab.VM, *lab.Repo) error) error {
	ctx := cmd.Context()
	log, err := o.log()
	if err != nil {
		return err
	}
	defer log.Close()
	image, err := o.build(ctx, log)
	if err != nil {
		return err
	}
	r, err := o.repo(ctx, log)
	if err != nil {
		return err
	}
	vm, err := o.boot(ctx, image)
	if err != nil {
		return errors.Join(err, r.Close())
	}
	err = do(ctx, vm, r)
	return errors.Join(err, vm.Close(), r.Close())
}

// environment is what a command needs to reach the guest.
func environment(vm *lab.VM, r *lab.Repo, distro string) map[string]string {
	return map[string]string{
		"GUESTLAB_HOST":           "127.0.0.1",
		"GUESTLAB_PORT":           strconv.Itoa(vm.Port),
		"GUESTLAB_KEY":            vm.Image.Keys.ClientKey,
		"GUESTLAB_KNOWN_HOSTS":    vm.KnownHosts,
		"GUESTLAB_MIRROR":         r.URL,
		"GUESTLAB_MIRROR_LOCAL":   r.LocalURL,
		"GUESTLAB_DISTRO":         distro,
		"GUESTLAB_KEYRING_SHA256": r.KeyringSHA256[distro],
		"GUESTLAB_KERNEL":         vm.Image.Kernel,
		"GUESTLAB_DIR":            vm.Dir,
	}
}

func newRepo() *cobra.Command {
	var o options
	var host string
	cmd := &cobra.Command{
		Use:     "repo",
		Short:   "Serve the stand-in repository until interrupted",
		Args:    cobra.NoArgs,
		Example: `  guestlab repo --distro debian11,debian12,debian13 --listen 198.51.100.1:8580 --host 198.51.100.1`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := o.log()
			if err != nil {
				return err
			}
			defer log.Close()
			if len(o.distros) == 0 {
				o.distros = []string{"debian12"}
			}
			r, err := lab.ServeRepo(cmd.Context(), lab.RepoSpec{Distros: o.distros, Address: o.address, Host: host, Log: log})
			if err != nil {
				return err
			}
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			err = enc.Encode(map[string]any{"url": r.URL, "local_url": r.LocalURL, "keyring_sha256": r.KeyringSHA256})
			if err == nil {
				<-cmd.Context().Done()
			}
			return errors.Join(err, r.Close())
		},
	}
	o.addRepo(cmd)
	cmd.Flags().StringVar(&host, "host", lab.HostAddress, "name or address guests reach the server by")
	cmd.Flags().StringVar(&o.logPath, "log", "", "file for the tools' raw output")
	return cmd
}

func newDeps() *cobra.Command {
	var install bool
	cmd := &cobra.Command{
		Use:   "deps",
		Short: "List the Debian packages the lab needs and the host lacks, or install them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if install {
				return lab.InstallDeps(cmd.Context(), os.Stderr)
			}
			for _, name := range lab.MissingDeps(cmd.Context()) {
				fmt.Fprintln(cmd.OutOrStdout(), name)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&install, "install", false, "install them with apt-get")
	return cmd
}

func newClean() *cobra.Command {
	return &cobra.Command{
		Use:   "clean",
		Short: "Remove every artifact from the cache",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return lab.Clean("") },
	}
}
