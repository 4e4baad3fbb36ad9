package hypervisor

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"gpuguest/internal/sh"
)

// File is one file to write on the host.
type File struct {
	Path    string `json:"path"`
	Mode    string `json:"mode"` // "0644"
	Content string `json:"content"`
	Why     string `json:"why"`
}

// Plan is what to do on the host, once, so that GPUs are free for VMs from the next boot on.
type Plan struct {
	GPUs     []GPU    `json:"-"`
	Files    []File   `json:"files"`
	Args     []string `json:"kernel_arguments"` // all that the kernel needs, those it has already too
	Commands []string `json:"commands"`         // to run after the files are written, in this order; the last is the reboot
	Notes    []string `json:"notes"`            // what a file cannot do

	// grubby holds the arguments that grubby is to set: they are in no file of ours.
	grubby string
}

const (
	modprobePath = "/etc/modprobe.d/gpuguest-vfio.conf"
	bindPath     = "/usr/local/sbin/gpuguest-vfio-bind"
	hookPath     = "/etc/initramfs-tools/hooks/gpuguest-vfio"
	dracutPath   = "/etc/dracut.conf.d/90-gpuguest-vfio.conf"
	unitPath     = "/etc/systemd/system/gpuguest-vfio-bind.service"
	grubPath     = "/etc/default/grub.d/90-gpuguest-vfio.cfg"
	grubFile     = "/etc/default/grub"
	cmdlineFile  = "/etc/kernel/cmdline"
)

// reboot is the last of a plan's commands, and the one that is left to a person.
const reboot = "reboot"

const written = "# Written for gpuguest's passthrough.\n"

// MakePlan returns what to write for the GPUs at the given addresses, all of them when none is given.
//
// Where nothing else on the host has their vendor:device ids, vfio-pci is told the ids. Where something has,
// ids would take that too, and the same file and a small script set driver_override for each address instead
// (Linux, Documentation/ABI/testing/sysfs-bus-pci, driver_override). The kernel arguments come last: without
// an IOMMU the rest does no harm.
func MakePlan(h Host, addresses []string) (Plan, error) {
	gpus, err := h.GPUs(addresses)
	if err != nil {
		return Plan{}, err
	}
	if len(gpus) == 0 {
		return Plan{}, errors.New("no NVIDIA GPU to pass through")
	}
	p := Plan{GPUs: gpus, Args: wantedArgs(h)}
	if h.Loadable["vfio_pci"] == "" && !h.loaded("vfio_pci") {
		p.Notes = append(p.Notes, "whether this kernel has vfio-pci is not known, or it has none: see `gpuguest hypervisor check`")
	}
	builtin := h.Loadable["vfio_pci"] == "builtin"
	var ids, rivals, targets []string
	for _, g := range gpus {
		if f := checkGroup(h, g); f.Status == Bad || f.Status == Warn {
			p.Notes = append(p.Notes, g.Slot+": "+f.Seen+": "+f.Fix)
		}
		for _, fn := range g.Functions {
			if fn.bridge() {
				continue
			}
			targets = append(targets, fn.Address)
			ids = appendNew(ids, fn.ID())
			for _, r := range rivalsOf(fn) {
				rivals = appendNew(rivals, r)
			}
			if fn.BootVGA {
				p.Notes = append(p.Notes, fn.Address+" shows the host's console: it goes dark at the next boot, or when the VM starts")
			}
		}
	}
	twins := h.twins(gpus)
	if len(twins) > 0 {
		p.byAddress(h, targets, rivals, builtin)
	} else {
		p.byID(h, ids, rivals, builtin)
	}
	p.boot(h)
	for _, fn := range twins {
		p.Notes = append(p.Notes, fmt.Sprintf("%s [%s] has the same ids and stays with the host (%s)", fn.Address, fn.ID(), orNone(fn.Driver)))
	}
	p.Commands = append(p.Commands, reboot)
	return p, nil
}

func appendNew(to []string, s string) []string {
	if slices.Contains(to, s) {
		return to
	}
	return append(to, s)
}

// rivalsOf are the modules that would take a function before vfio-pci.
func rivalsOf(fn Function) []string {
	switch classWord(fn.Class) {
	case "VGA", "3D", "display":
		return []string{"nouveau", "nova_core", "nvidiafb", "nvidia"}
	case "audio":
		return []string{"snd_hda_intel"}
	case "USB":
		return []string{"xhci_pci"}
	case "USB-C":
		return []string{"i2c_nvidia_gpu"}
	}
	return nil
}

// byID tells vfio-pci the ids.
func (p *Plan) byID(h Host, ids, rivals []string, builtin bool) {
	if builtin {
		// A built-in driver reads its parameters from the kernel's arguments, and is asked before any module.
		p.Args = append(p.Args, "vfio-pci.ids="+strings.Join(ids, ","))
		return
	}
	var b strings.Builder
	b.WriteString(written)
	b.WriteString("options vfio-pci ids=" + strings.Join(ids, ",") + "\n")
	b.WriteString(softdeps(rivals))
	p.Files = append(p.Files, File{
		Path: modprobePath, Mode: "0644", Content: b.String(),
		Why: "vfio-pci takes these ids, and no other device of this host has them",
	})
	p.early(h, false)
}

// softdeps have vfio-pci loaded before its rivals: loaded first, it is asked first.
func softdeps(rivals []string) string {
	var b strings.Builder
	for _, r := range rivals {
		b.WriteString("softdep " + r + " pre: vfio-pci\n")
	}
	return b.String()
}

// byAddress sets driver_override for each address before a rival takes the device: when vfio-pci is loaded,
// which the initramfs does first of all; and by a unit at boot. A vfio-pci that is built in is never loaded, so
// it is done when a rival is.
func (p *Plan) byAddress(h Host, targets, rivals []string, builtin bool) {
	p.Files = append(p.Files, File{
		Path: bindPath, Mode: "0755", Content: bindScript(targets),
		Why: "another device of this host has the same ids, so vfio-pci is bound by address",
	})
	var b strings.Builder
	b.WriteString(written)
	b.WriteString("# The driver_override is set before any driver is asked; modprobe.d(5), install.\n")
	if builtin {
		for _, r := range rivals {
			b.WriteString("install " + r + " " + bindPath + " override; /sbin/modprobe --ignore-install " + r + " $CMDLINE_OPTS\n")
		}
	} else {
		b.WriteString("install vfio-pci " + bindPath + " override; /sbin/modprobe --ignore-install vfio-pci $CMDLINE_OPTS\n")
		b.WriteString(softdeps(rivals))
	}
	p.Files = append(p.Files, File{Path: modprobePath, Mode: "0644", Content: b.String(), Why: "no driver is loaded before the addresses are set aside"})
	p.early(h, true)
	if h.Tools["systemctl"] != "" {
		p.Files = append(p.Files, File{Path: unitPath, Mode: "0644", Why: "binds the addresses at boot, even when no other driver is ever loaded", Content: written + `[Unit]
Description=Bind GPUs for virtual machines to vfio-pci
DefaultDependencies=no
After=systemd-modules-load.service
Before=sysinit.target display-manager.service libvirtd.service virtqemud.service

[Service]
Type=oneshot
ExecStart=` + bindPath + ` bind

[Install]
WantedBy=sysinit.target
`})
		p.Commands = append(p.Commands, "systemctl daemon-reload", "systemctl enable gpuguest-vfio-bind.service")
	} else {
		p.Notes = append(p.Notes, "no systemd: have `"+bindPath+" bind` run at boot")
	}
}

// bindScript is the script that sets addresses aside. It forks nothing but modprobe, for an initramfs has
// little; a function that NVIDIA's driver or nouveau already drives is left alone, for taking it away can
// hang for ever.
func bindScript(targets []string) string {
	return `#!/bin/sh
` + written + `# override: these PCI functions are for vfio-pci, whichever driver asks. bind: give them to vfio-pci now.
for a in ` + sh.Join(targets...) + `; do
	d=/sys/bus/pci/devices/$a
	[ -e "$d/driver_override" ] || continue
	echo vfio-pci >"$d/driver_override"
done
[ "${1:-}" = bind ] || exit 0
/sbin/modprobe vfio-pci || exit 1
code=0
for a in ` + sh.Join(targets...) + `; do
	d=/sys/bus/pci/devices/$a
	[ -e "$d" ] || continue
	[ -e "/sys/bus/pci/drivers/vfio-pci/$a" ] && continue
	for n in nvidia nouveau nova_core; do
		if [ -e "/sys/bus/pci/drivers/$n/$a" ]; then
			echo "$a: $n has it already; it is vfio-pci's after the next boot" >&2
			code=1
			continue 2
		fi
	done
	if [ -e "$d/driver" ]; then echo "$a" >"$d/driver/unbind"; fi
	echo "$a" >/sys/bus/pci/drivers_probe
	[ -e "/sys/bus/pci/drivers/vfio-pci/$a" ] || code=1
done
exit $code
`
}

// early puts the files into the initramfs, where the first drivers are loaded.
func (p *Plan) early(h Host, script bool) {
	switch {
	case h.Tools["update-initramfs"] != "":
		// initramfs-tools copies modprobe.d by itself; a hook copies programs and names modules to load before
		// udev starts (initramfs-tools(7)).
		hook := "#!/bin/sh\n" + written + "case ${1:-} in prereqs) exit 0 ;; esac\n. /usr/share/initramfs-tools/hook-functions\n"
		if script {
			hook += "copy_exec " + bindPath + "\n"
		}
		p.Files = append(p.Files, File{
			Path: hookPath, Mode: "0755", Content: hook + "force_load vfio-pci\n",
			Why: "the initramfs loads vfio-pci before any other driver",
		})
		p.Commands = append(p.Commands, "update-initramfs -u -k all")
	case h.Tools["dracut"] != "":
		content := written + "force_drivers+=\" vfio-pci \"\n"
		if script {
			content += "install_items+=\" " + bindPath + " \"\n"
		}
		p.Files = append(p.Files, File{Path: dracutPath, Mode: "0644", Content: content, Why: "the initramfs loads vfio-pci before any other driver"})
		p.Commands = append(p.Commands, "dracut --force --regenerate-all")
	default:
		p.Notes = append(p.Notes, "neither update-initramfs nor dracut was found: have "+modprobePath+" in the initramfs")
	}
}

// boot gives the kernel its arguments.
func (p *Plan) boot(h Host) {
	var missing []string
	for _, a := range p.Args {
		if !slices.Contains(h.Cmdline, a) {
			missing = append(missing, a)
		}
	}
	// The file stays in the plan once it is there, for the kernel has its arguments from it.
	ours := h.Tools["grub.d.ours"] != "" || h.Tools["ours:"+grubFile] != "" || h.Tools["ours:"+cmdlineFile] != ""
	if h.Cmdline != nil && len(missing) == 0 && !ours {
		p.Notes = append(p.Notes, "the kernel has its arguments already: "+strings.Join(p.Args, " "))
		return
	}
	const why = "the kernel drives the IOMMU"
	set := "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX \"" + sh.Quote(strings.Join(p.Args, " ")) + "\n"
	grub, hasGrub := h.bootFile(grubFile)
	cmdline, hasCmdline := h.bootFile(cmdlineFile)
	// What is there is kept; grub-mkconfig reads the file as a script of the shell, so a line at its end will do.
	before, _, _ := strings.Cut(grub, written)
	inGrub := File{Path: grubFile, Mode: "0644", Why: why, Content: before + written + set}
	switch {
	case h.Tools["proxmox-boot-tool"] != "" && h.Tools["proxmox-boot-uuids"] != "" && hasCmdline:
		words := strings.Fields(cmdline)
		for _, a := range p.Args {
			words = appendNew(words, a)
		}
		p.Files = append(p.Files, File{Path: cmdlineFile, Mode: "0644", Why: why, Content: strings.Join(words, " ") + "\n"})
		p.Commands = append(p.Commands, "proxmox-boot-tool refresh")
	case h.Tools["update-grub"] != "" && h.Tools["grub.d"] != "":
		p.Files = append(p.Files, File{Path: grubPath, Mode: "0644", Why: why, Content: written + set})
		p.Commands = append(p.Commands, "update-grub")
	case h.Tools["update-grub"] != "" && hasGrub:
		p.Files = append(p.Files, inGrub)
		p.Commands = append(p.Commands, "update-grub")
	case h.Tools["grubby"] != "":
		p.grubby = strings.Join(missing, " ")
		p.Commands = append(p.Commands, "grubby --update-kernel=ALL --args="+sh.Quote(strings.Join(missing, " ")))
	case h.Tools["grub2-mkconfig"] != "" && hasGrub:
		p.Files = append(p.Files, inGrub)
		p.Commands = append(p.Commands, "grub2-mkconfig -o /boot/grub2/grub.cfg")
	case h.Tools["grub2-mkconfig"] != "":
		p.Notes = append(p.Notes, "add to GRUB_CMDLINE_LINUX in /etc/default/grub: "+strings.Join(missing, " "))
		p.Commands = append(p.Commands, "grub2-mkconfig -o /boot/grub2/grub.cfg")
	case hasCmdline:
		p.Notes = append(p.Notes, "add these kernel arguments to "+cmdlineFile+" and have the boot entries made anew (kernel-install, bootctl): "+strings.Join(missing, " "))
	default:
		p.Notes = append(p.Notes, "no bootloader tool was found: add these kernel arguments by hand: "+strings.Join(missing, " "))
	}
}
