package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"gpuguest/internal/bake"
	"gpuguest/internal/choice"
	"gpuguest/internal/engine"
	"gpuguest/internal/guest"
	"gpuguest/internal/hypervisor"
	"gpuguest/internal/oven"
	"gpuguest/internal/report"
)

// smoke is one image and how it is to be booted.
type smoke struct {
	image, format, firmware, user string
	memory, cpus                  int
	timeout                       time.Duration
	args, vfio                    []string
	console                       string // file
}

func newSmoke(a *app) *cobra.Command {
	var w choice.Want
	var s smoke
	c := &cobra.Command{
		Use:   "smoke IMAGE",
		Short: "Boot a disk image in a throwaway virtual machine and verify it",
		Long: `Boot a disk image in a throwaway virtual machine and verify it, as "gpuguest verify" does a guest. The image is not
written to: the machine has an overlay over it, which is thrown away. The login is a key made for this boot, and so
is the guest's host key; an image from which keys and machine-id were taken is as good as any. It is told of them by
cloud-init's NoCloud datasource, or by systemd 252 and newer.

An image that is over another file is refused, and so is one whose name says another format than its content, until
--format says which it is.

Without a device the machine has no GPU, and what can be proved without one is (as with --no-gpu). With --vfio, or
--qemu-arg for any other device, all of verify is.

KVM is used where it works, else the machine is emulated, which takes minutes. BIOS or UEFI is what the image's
partition table shows. An image that does not boot is named as soon as its serial console says so, with what it said
last. That is exit status 5; no answer, and a login that is refused, are 3.`,
		Example: `  gpuguest smoke debian-12-nvidia.qcow2
  gpuguest smoke debian-12-nvidia.qcow2 --junit smoke.xml --console smoke.log
  sudo gpuguest smoke debian-12-nvidia.qcow2 --vfio 41:00.0 --memory 8192
  gpuguest smoke image.raw --firmware uefi --user cloud-user`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("%s takes one image, got %d", c.CommandPath(), len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			s.image = args[0]
			if err := checkWant(w); err != nil {
				return err
			}
			if err := s.check(); err != nil {
				return err
			}
			if err := a.files.check(); err != nil {
				return err
			}
			if len(s.vfio) == 0 && len(s.args) == 0 {
				w.NoGPU = true
			}
			return a.smoke(c.Context(), s, w)
		},
	}
	f := c.Flags()
	f.StringVar(&s.format, "format", "", "the image's format by qemu-img's `NAME` (default: what its name and its content say)")
	f.StringVar(&s.firmware, "firmware", "", "`FIRMWARE` of the machine: bios or uefi (default: what the partition table shows)")
	f.IntVar(&s.memory, "memory", 0, "the machine's memory in `MIB` (default 2048)")
	f.IntVar(&s.cpus, "cpus", 0, "`N` processors of the machine (default: up to four, one when emulated)")
	f.StringVarP(&s.user, "user", "l", "", "`USER` to log in as (default root); cloud-init makes one that the image has not")
	f.DurationVar(&s.timeout, "boot-timeout", 0, "how long the image may take to answer (default 5m, 20m when emulated)")
	f.StringArrayVar(&s.args, "qemu-arg", nil, "one more `WORD` for QEMU's command line, as in --qemu-arg=-device --qemu-arg=edu; may be given more than once")
	f.StringArrayVar(&s.vfio, "vfio", nil, "give the machine this machine's GPU at the PCI `ADDRESS`, which vfio-pci holds; may be given more than once")
	f.StringVar(&s.console, "console", "", "keep what the serial console says in a `FILE`")
	f.StringVar(&a.logDir, "log-dir", "", "`FOLDER` that every step's whole output is kept in")
	_ = c.RegisterFlagCompletionFunc("firmware", cobra.FixedCompletions([]string{oven.FirmwareBIOS, oven.FirmwareUEFI}, cobra.ShellCompDirectiveNoFileComp))
	addProofs(c, &w)
	a.files.add(c)
	return c
}

// check refuses what cannot be, before anything is made.
func (s smoke) check() error {
	switch s.firmware {
	case "", oven.FirmwareBIOS, oven.FirmwareUEFI:
	default:
		return fmt.Errorf("--firmware %q: it is %s or %s", s.firmware, oven.FirmwareBIOS, oven.FirmwareUEFI)
	}
	if s.memory < 0 || s.cpus < 0 || s.timeout < 0 {
		return errors.New("--memory, --cpus and --boot-timeout are not negative")
	}
	st, err := os.Stat(s.image)
	if err == nil && st.IsDir() {
		err = fmt.Errorf("%s: a folder, not an image", s.image)
	}
	return err
}

// smoke boots the image and proves what it can. What was made for it is gone when it returns.
func (a *app) smoke(ctx context.Context, s smoke, w choice.Want) (err error) {
	a.host, a.cache = filepath.Base(s.image), ""
	q := &oven.QEMU{Patience: s.timeout}
	if err := q.Usable(ctx); err != nil {
		return err
	}
	spec, err := s.spec(ctx, a)
	if err != nil {
		return err
	}
	base, err := s.base(ctx)
	if err != nil {
		return err
	}
	dir, remove, err := oven.Throwaway("gpuguest-smoke-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	spec.Disk, spec.Format, spec.Scratch = filepath.Join(dir, "overlay.qcow2"), oven.FormatQcow2, filepath.Join(dir, "oven")
	if err := os.Mkdir(spec.Scratch, 0o700); err != nil {
		return err
	}
	if err := oven.Overlay(ctx, base.Path, base.Format, spec.Disk); err != nil {
		return err
	}
	if s.console != "" {
		f, err := os.Create(s.console)
		if err != nil {
			return fmt.Errorf("--console: %w", err)
		}
		defer f.Close()
		spec.Log = f
	}
	emulated, err := q.Emulates(ctx)
	if err != nil {
		return err
	}
	how := "on KVM"
	if emulated {
		how = "emulated, for KVM does not work here: this takes minutes"
	}
	fmt.Fprintf(a.err, "gpuguest: %s: booting, %s\n", a.host, how)
	start := time.Now()
	g, err := q.Start(ctx, spec)
	if err != nil {
		return a.notBooted(err, time.Since(start))
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	fmt.Fprintf(a.err, "gpuguest: %s: answers after %.0f s\n", a.host, time.Since(start).Seconds())
	a.booted = g
	// A driver that is loaded may take the kernel down with it.
	watched, unwatch := oven.Watched(ctx, g)
	err = a.prove(watched, w, false)
	if bad := unwatch(); bad != nil {
		return bad
	}
	if errors.Is(err, engine.ErrDetached) {
		// Nothing goes on in a guest that is thrown away.
		return errInterrupted
	}
	return err
}

// base is the image and its format: what is given, or what its name and its content both say. What a guest wrote to a raw
// disk may look like a qcow2 that reads any file of this machine, and so may an image that is over another one.
func (s smoke) base(ctx context.Context) (bake.Disk, error) {
	d := bake.Disk{Path: s.image, Format: s.format}
	if d.Format == "" {
		found, err := oven.FormatOf(ctx, s.image)
		if err != nil {
			return d, err
		}
		switch named := bake.FormatByName(s.image); {
		case named == found, named == "" && found == oven.FormatRaw:
			d.Format = found
		case named == "":
			return d, fmt.Errorf("%s: it looks like %s, and its name does not say so: give --format %s if that is what it is", s.image, found, found)
		default:
			return d, fmt.Errorf("%s: its name says %s, and it looks like %s: give by --format which it is; a guest may write to a raw disk whatever it likes", s.image, named, found)
		}
	}
	info, err := bake.QEMUImg{}.Info(ctx, d)
	if err != nil {
		return d, err
	}
	if info.Backing != "" {
		return d, fmt.Errorf("%s: it reads from another file too, %s: convert it to one that stands alone", s.image, info.Backing)
	}
	return d, nil
}

// spec is the machine but for its disk.
func (s smoke) spec(ctx context.Context, a *app) (oven.Spec, error) {
	spec := oven.Spec{Firmware: s.firmware, Memory: s.memory, CPUs: s.cpus, User: s.user, Args: s.args}
	if len(s.vfio) == 0 {
		return spec, nil
	}
	h := &hostFlags{app: a}
	host, err := h.lookHere(ctx)
	if err != nil {
		return spec, fmt.Errorf("--vfio: %w", err)
	}
	words, err := hypervisor.QEMUArgs(host, s.vfio, hypervisor.VM{})
	if err != nil {
		return spec, fmt.Errorf("--vfio: %w", err)
	}
	spec.Args = append(spec.Args, withoutMachine(words)...)
	return spec, nil
}

// withoutMachine takes the machine from options and their values: the oven has chosen it already, and on what it runs.
func withoutMachine(words []string) []string {
	var kept []string
	for i := 0; i+1 < len(words); i += 2 {
		if words[i] != "-machine" {
			kept = append(kept, words[i], words[i+1])
		}
	}
	return kept
}

// bootStep is the step of a report that says that an image did not boot.
const bootStep = "boot"

// notBooted tells of an image that nobody could log in to.
func (a *app) notBooted(err error, took time.Duration) error {
	var boot *oven.BootError
	if !errors.As(err, &boot) {
		return err
	}
	boot.Disk = a.host
	result := engine.Report{
		Host: a.host, Result: engine.Failed, Seconds: took.Seconds(),
		Steps: []engine.StepReport{{ID: bootStep, Title: "Boot the image and log in", State: engine.Failed, Detail: boot.What, Seconds: took.Seconds()}},
		Error: &engine.Problem{Message: err.Error(), Step: bootStep, Hint: hint(err), Tail: boot.Tail},
	}
	return a.tellResult(report.New(result, exitCode(err), time.Now()), err)
}

// bootedConfig says how to reach the image that was booted.
func (a *app) bootedConfig() guest.Config {
	host, port := a.booted.Address()
	c := oven.Login{Host: host, Port: port, User: a.booted.User(), Identity: a.booted.Identity(), KnownHosts: a.booted.KnownHosts()}.Config()
	c.Notice = func(s string) { _, _ = io.WriteString(a.err, "gpuguest: "+s+"\n") }
	return c
}
