package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gpuguest/assets"
	"gpuguest/internal/engine"
	"gpuguest/internal/guest"
	"gpuguest/internal/hypervisor"
	"gpuguest/internal/sh"
)

// hostFlags say which machine is looked at.
type hostFlags struct {
	*app
	sysPath string
}

func newHypervisor(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "hypervisor",
		Short: "Look at the machine that VMs run on: can it pass its GPUs through?",
		Long: `Look at the machine that VMs run on, which is another one than the guests: can it pass its GPUs through, what is
to be written there, and with which arguments does a VM get them. It looks at this machine, or at another
over SSH with --host. Only apply changes anything.`,
		Example: `  sudo gpuguest hypervisor check
  gpuguest hypervisor plan --host root@rack1 41:00.0
  gpuguest hypervisor qemu-args --host root@rack1`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	for _, sub := range []*cobra.Command{newHostCheck(a), newHostPlan(a), newHostApply(a), newQEMUArgs(a), newLibvirtXML(a)} {
		c.AddCommand(sub)
	}
	return c
}

func addHostFlags(a *app, c *cobra.Command) *hostFlags {
	h := &hostFlags{app: a}
	h.addMachine(c)
	c.Flags().StringVar(&h.sysPath, "sys-path", "", "recorded `FOLDER` to read in place of /sys; /proc, /etc and /lib are read beside it")
	return h
}

// addMachine adds the flags that name the machine.
func (h *hostFlags) addMachine(c *cobra.Command) {
	h.addReach(c)
	c.Flags().Lookup("host").Usage = "`MACHINE` to work on over SSH: [user@]name[:port] (default: this one)"
}

func newHostCheck(a *app) *cobra.Command {
	var h *hostFlags
	c := &cobra.Command{
		Use:   "check",
		Short: "Say what stands in the way of passing GPUs through, and what to do",
		Long: `Say what stands in the way of passing GPUs through: IOMMU, kernel arguments, vfio modules, and for each GPU its
driver, IOMMU group, ids, PCI windows and SR-IOV. It exits 5 when something makes it impossible as it is.`,
		Example: `  sudo gpuguest hypervisor check
  gpuguest hypervisor check --host root@rack1 --json
  gpuguest hypervisor check --sys-path recorded/sys`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			host, err := h.look(c.Context())
			if err != nil {
				return err
			}
			found := hypervisor.Check(host)
			var bad error
			for _, f := range found {
				if f.Status == hypervisor.Bad {
					bad = errNotReady
				}
			}
			if a.json {
				return errors.Join(a.writeJSON(map[string]any{"host": host, "findings": found}), bad)
			}
			return errors.Join(hypervisor.PrintFindings(a.out, found), bad)
		},
	}
	h = addHostFlags(a, c)
	return c
}

// errNotReady counts as a failed verification.
var errNotReady = fmt.Errorf("the machine is not ready to pass a GPU through: %w", errFatalVerdict)

func newHostPlan(a *app) *cobra.Command {
	var h *hostFlags
	c := &cobra.Command{
		Use:   "plan [ADDRESS ...]",
		Short: "Print the files that set GPUs aside for VMs",
		Long: `Print the files to write on the machine, and the commands to run then, that set GPUs aside for VMs: all of them,
or those at the PCI addresses given. Nothing is written.`,
		Example: `  sudo gpuguest hypervisor plan
  gpuguest hypervisor plan --host root@rack1 41:00.0 --json`,
		RunE: func(c *cobra.Command, args []string) error {
			host, err := h.look(c.Context())
			if err != nil {
				return err
			}
			p, err := hypervisor.MakePlan(host, args)
			if err != nil {
				return err
			}
			if a.json {
				return a.writeJSON(p)
			}
			return p.Print(a.out)
		},
	}
	h = addHostFlags(a, c)
	return c
}

func newHostApply(a *app) *cobra.Command {
	h := &hostFlags{app: a}
	var undo bool
	c := &cobra.Command{
		Use:   "apply [ADDRESS ...]",
		Short: "Write the plan's files on the machine, or take them back",
		Long: `Write what "gpuguest hypervisor plan" prints for the same addresses, and run its commands but the reboot, which is
yours. A second time changes nothing. With --undo, everything that apply did on the machine is taken back.`,
		Example: `  sudo gpuguest hypervisor apply 41:00.0
  gpuguest hypervisor apply --host root@rack1
  gpuguest hypervisor apply --host root@rack1 --undo`,
		RunE: func(c *cobra.Command, args []string) error {
			if undo && len(args) > 0 {
				return errors.New("--undo takes everything back, and no address")
			}
			script := hypervisor.UndoScript()
			if !undo {
				host, err := h.look(c.Context())
				if err != nil {
					return err
				}
				p, err := hypervisor.MakePlan(host, args)
				if err != nil {
					return err
				}
				script = hypervisor.ApplyScript(p)
			}
			out, err := h.change(c.Context(), script)
			if a.json {
				if err != nil {
					return err
				}
				return a.writeJSON(map[string]any{"done": strings.Split(strings.TrimSpace(string(out)), "\n")})
			}
			_, werr := a.out.Write(out)
			return errors.Join(err, werr)
		},
	}
	h.addMachine(c)
	c.Flags().BoolVar(&undo, "undo", false, "take back what apply did")
	return c
}

// change runs a script as root on the machine that the flags name and returns what it printed, which it does
// with an error too. The script may make an initramfs for every kernel.
func (h *hostFlags) change(ctx context.Context, script string) ([]byte, error) {
	const limit = 30 * time.Minute
	if h.host == "" {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		var out, complaint bytes.Buffer
		c := exec.CommandContext(ctx, "sh", "-c", script)
		c.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		c.Stdout, c.Stderr = &out, &complaint
		if err := c.Run(); err != nil {
			return out.Bytes(), halfDone(err.Error(), complaint.String())
		}
		return out.Bytes(), nil
	}
	conn, err := h.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	res, err := conn.Run(ctx, guest.Command{Script: script, Timeout: limit})
	if err != nil {
		return nil, err
	}
	if res.Exit != 0 {
		return res.Stdout, halfDone(fmt.Sprintf("exit status %d", res.Exit), string(res.Stderr))
	}
	return res.Stdout, nil
}

// halfDone is the error of a script of apply's that stopped on its way.
func halfDone(what, complaint string) error {
	return &engine.StepError{
		Step: "hypervisor-apply", What: what, Tail: strings.TrimSpace(complaint),
		Hint: "put right what it says and run the same again: it goes on from there; --undo takes back what was written",
	}
}

// vmFlags say what the VM is like.
type vmFlags struct {
	driver  string
	hideKVM bool
	ssh     string
}

func (v *vmFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&v.driver, "driver", "", fmt.Sprintf("driver `BRANCH` or version in the guest; GeForce drivers before %d need KVM hidden", hypervisor.HiddenBefore))
	c.Flags().BoolVar(&v.hideKVM, "hide-kvm", false, "hide KVM from the guest, whatever its driver")
}

func (v *vmFlags) vm() (hypervisor.VM, error) {
	vm := hypervisor.VM{HideKVM: v.hideKVM, SSH: v.ssh}
	if vm.SSH == "none" {
		vm.SSH = ""
	}
	if v.driver == "" {
		return vm, nil
	}
	hides, err := hypervisor.HidesFor(v.driver)
	vm.HideKVM = vm.HideKVM || hides
	return vm, err
}

// lookFor looks at the machine and says what the VM is like; the VM's flags are read before anything is reached.
func (v *vmFlags) lookFor(ctx context.Context, h *hostFlags) (hypervisor.Host, hypervisor.VM, error) {
	vm, err := v.vm()
	if err != nil {
		return hypervisor.Host{}, vm, err
	}
	host, err := h.look(ctx)
	return host, vm, err
}

func newQEMUArgs(a *app) *cobra.Command {
	var h *hostFlags
	var v vmFlags
	c := &cobra.Command{
		Use:   "qemu-args [ADDRESS ...]",
		Short: "Print the QEMU arguments that give a VM the GPUs",
		Long: `Print the QEMU arguments that give a VM the GPUs, all of them or those at the PCI addresses given: vfio-pci devices
with all functions, and a 64-bit window that their BARs fit in. Disks, memory and firmware are yours.`,
		Example: `  sudo gpuguest hypervisor qemu-args 41:00.0
  gpuguest hypervisor qemu-args --host root@rack1 --driver 390`,
		RunE: func(c *cobra.Command, args []string) error {
			host, vm, err := v.lookFor(c.Context(), h)
			if err != nil {
				return err
			}
			words, err := hypervisor.QEMUArgs(host, args, vm)
			if err != nil {
				return err
			}
			if a.json {
				return a.writeJSON(map[string]any{"arguments": words})
			}
			for i := 0; i < len(words); i += 2 {
				end := " \\\n"
				if i+2 >= len(words) {
					end = "\n"
				}
				fmt.Fprint(a.out, sh.Join(words[i:i+2]...), end)
			}
			return nil
		},
	}
	h = addHostFlags(a, c)
	v.add(c)
	c.Flags().StringVar(&v.ssh, "ssh", "127.0.0.1:5022", "`ADDRESS:PORT` of the host that leads to the guest's SSH, \"none\" for none")
	return c
}

func newLibvirtXML(a *app) *cobra.Command {
	var h *hostFlags
	var v vmFlags
	c := &cobra.Command{
		Use:   "libvirt-xml [ADDRESS ...]",
		Short: "Print the libvirt XML that gives a VM the GPUs",
		Long: `Print what to merge into a libvirt domain (virsh edit) so that the VM has the GPUs, all of them or those at the PCI
addresses given.`,
		Example: `  sudo gpuguest hypervisor libvirt-xml 41:00.0
  gpuguest hypervisor libvirt-xml --host root@rack1 --driver 390`,
		RunE: func(c *cobra.Command, args []string) error {
			host, vm, err := v.lookFor(c.Context(), h)
			if err != nil {
				return err
			}
			xml, err := hypervisor.LibvirtXML(host, args, vm)
			if err != nil {
				return err
			}
			if a.json {
				return a.writeJSON(map[string]any{"xml": xml})
			}
			_, err = fmt.Fprint(a.out, xml)
			return err
		},
	}
	h = addHostFlags(a, c)
	v.add(c)
	return c
}

// look runs the script on the machine that the flags name.
func (h *hostFlags) look(ctx context.Context) (hypervisor.Host, error) {
	if h.host == "" {
		return h.lookHere(ctx)
	}
	if h.sysPath != "" {
		return hypervisor.Host{}, errors.New("--sys-path and --host: one of them")
	}
	conn, err := h.dial(ctx)
	if err != nil {
		return hypervisor.Host{}, err
	}
	defer conn.Close()
	res, err := conn.Run(ctx, guest.Command{Script: assets.Hypervisor, Timeout: time.Minute})
	if err != nil {
		return hypervisor.Host{}, err
	}
	return hypervisor.Parse(res.Stdout)
}

// lookHere looks at this machine or at a recorded tree.
func (h *hostFlags) lookHere(ctx context.Context) (hypervisor.Host, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "sh", "-c", assets.Hypervisor)
	c.Env = []string{"GPUGUEST_ROOT=", "GPUGUEST_SYS="}
	if h.sysPath != "" {
		sys, err := filepath.Abs(h.sysPath)
		if err != nil {
			return hypervisor.Host{}, err
		}
		if _, err := os.Stat(sys); err != nil {
			return hypervisor.Host{}, err
		}
		c.Env = []string{"GPUGUEST_ROOT=" + filepath.Dir(sys), "GPUGUEST_SYS=" + sys}
	}
	var out, complaint bytes.Buffer
	c.Stdout, c.Stderr = &out, &complaint
	if err := c.Run(); err != nil {
		return hypervisor.Host{}, fmt.Errorf("look at this machine: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	return hypervisor.Parse(out.Bytes())
}
