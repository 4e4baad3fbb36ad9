package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"gpuguest/internal/oven"
)

// HostAddress is the host's loopback as a guest sees it through QEMU's user network.
const HostAddress = "10.0.2.2"

// Modes of the pretend GPU's windows.
const (
	ModeOK              = "ok"                // every BAR fits
	ModeNeedsRealloc    = "needs-realloc"     // BAR 1 fits only with pci=realloc on the kernel's command line
	ModeNeedsReallocOff = "needs-realloc-off" // BAR 1 fits only with pci=realloc=off there
	ModeTooSmall        = "too-small"         // BAR 1 never fits
	ModeNoWindow        = "no-window"         // no memory window at all
)

// DefaultGPU is the GeForce GTX 1050 Ti of the seed documents, with its subsystem.
const DefaultGPU = "10de:1c82:1b4c:11bf"

// BootSpec says how to boot an image.
type BootSpec struct {
	// Dir keeps the guest's disk overlay, console and sockets; "" is a
	// temporary directory that Close removes.
	Dir string
	// Port on 127.0.0.1 that leads to the guest's SSH; 0 takes a free one.
	Port int
	// GPUs are vendor:device[:subvendor:subdevice], at most four, or "none"
	// alone; nil is DefaultGPU. They and Mode hold until VM.Pretend says otherwise.
	GPUs   []string
	Mode   string // "" is ModeOK
	Memory int    // MiB; 0 is 3072
	CPUs   int    // 0 is 1: an emulated guest forks a third slower on two, and mostly has one thing to do
	// SecureBoot has an image for UEFI boot with Secure Boot: its variables hold Microsoft's keys, as those of a stock
	// machine do, and the certificate that the lab's own module is signed by. VM.Enrol adds others.
	SecureBoot bool
}

// VM is a guest: a disk of its own over an image and, while it runs, a QEMU.
type VM struct {
	Image      Image
	Dir        string
	Port       int
	KnownHosts string // path of a known_hosts file that knows the guest
	Accel      string // what QEMU runs on: "kvm" or "tcg,thread=multi"

	spec      BootSpec
	args      []string
	temporary bool
	proc      *process
}

// process is a running QEMU; done is closed when it has ended and been waited for.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Boot makes a disk over the image and starts the guest on it. It returns when
// QEMU runs, long before the guest answers: see WaitSSH. Cancelling ctx
// afterwards does not stop the guest; Close does.
func Boot(ctx context.Context, image Image, spec BootSpec) (*VM, error) {
	vm := &VM{Image: image, Dir: spec.Dir, Port: spec.Port}
	if vm.Dir == "" {
		dir, err := os.MkdirTemp("", "guestlab-")
		if err != nil {
			return nil, err
		}
		vm.Dir, vm.temporary = dir, true
	} else if err := os.MkdirAll(vm.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := vm.prepare(ctx, spec); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	if err := vm.Start(); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	return vm, nil
}

func (vm *VM) prepare(ctx context.Context, spec BootSpec) error {
	if vm.Port == 0 {
		port, err := freePort()
		if err != nil {
			return err
		}
		vm.Port = port
	}
	accel, err := oven.Accelerator(ctx)
	if err != nil {
		return err
	}
	vm.Accel = accel
	vm.KnownHosts = vm.path("known_hosts")
	line := fmt.Sprintf("[127.0.0.1]:%d %s", vm.Port, vm.Image.Keys.HostPublicKey)
	if err := writeFile(vm.KnownHosts, line, 0o600); err != nil {
		return err
	}
	if overlay := vm.path("disk.qcow2"); !exists(overlay) {
		out, err := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", vm.Image.Disk, overlay).CombinedOutput()
		if err != nil {
			return fmt.Errorf("qemu-img: %w: %s", err, out)
		}
	}
	if err := vm.makeVariables(spec.SecureBoot); err != nil {
		return err
	}
	vm.spec, vm.args = spec, qemuArgs(vm, spec)
	return nil
}

// Pretend changes what the guest sees from the next Start on, as if its cards or its host's settings were changed
// while it is off: the GPUs (nil: DefaultGPU) and the mode of their windows.
func (vm *VM) Pretend(gpus []string, mode string) error {
	if vm.Running() {
		return errors.New("the guest runs: its GPUs change only while it is off")
	}
	vm.spec.GPUs, vm.spec.Mode = gpus, mode
	vm.args = qemuArgs(vm, vm.spec)
	return nil
}

// qemuArgs is the machine: q35 with a VGA (GRUB's menu hangs without one),
// virtio disk and network, memory for the pretend GPU's BAR 0, and the OEM
// string that tells the fakegpu module what to be.
func qemuArgs(vm *VM, spec BootSpec) []string {
	gpus, mode := spec.GPUs, spec.Mode
	if len(gpus) == 0 {
		gpus = []string{DefaultGPU}
	}
	if mode == "" {
		mode = ModeOK
	}
	memory, cpus := spec.Memory, spec.CPUs
	if memory == 0 {
		memory = 3072
	}
	if cpus == 0 {
		cpus = 1
	}
	oem := fmt.Sprintf("fakegpu: gpus=%s mode=%s", strings.Join(gpus, ","), mode)
	machine, firmware := "q35", []string(nil)
	if vm.Image.Firmware == oven.FirmwareUEFI {
		machine, firmware = "q35,smm=on", uefiArgs(vm)
	}
	return append([]string{
		"-machine", machine, "-accel", vm.Accel, "-cpu", cpuModel(vm.Accel),
		"-smp", strconv.Itoa(cpus), "-m", strconv.Itoa(memory),
		"-display", "none", "-vga", "std",
		"-drive", "file=" + doubled(vm.path("disk.qcow2")) + ",format=qcow2,if=none,id=disk,cache=unsafe",
		// With an index nothing else is booted: a UEFI firmware spends minutes on the network.
		"-device", "virtio-blk-pci,drive=disk,bootindex=0",
		"-netdev", fmt.Sprintf("user,id=n0,hostfwd=tcp:127.0.0.1:%d-:22", vm.Port),
		"-device", "virtio-net-pci,netdev=n0",
		"-object", "memory-backend-ram,id=bar0,size=128M", "-device", "ivshmem-plain,memdev=bar0",
		"-device", "virtio-rng-pci",
		"-smbios", "type=11,value=" + doubled(oem),
		"-chardev", "file,id=console,append=on,path=" + doubled(vm.path("console.log")), "-serial", "chardev:console",
		"-monitor", "unix:" + doubled(vm.path("monitor.sock")) + ",server,nowait",
		"-pidfile", vm.path("qemu.pid"),
	}, firmware...)
}

// cpuModel is everything the host has under KVM. Under emulation every feature
// costs: Debian boots with 37 s of CPU time on a Nehalem and 45 s on "max";
// Westmere is a Nehalem with AES, which SSH and apt use.
func cpuModel(accel string) string {
	if accel == oven.KVM {
		return "max"
	}
	return "Westmere"
}

// doubled writes a value of a QEMU option: a comma in it is doubled.
func doubled(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func (vm *VM) path(name string) string { return filepath.Join(vm.Dir, name) }

// Start turns the guest on, after Boot or PowerCut, with the disk as it was left.
func (vm *VM) Start() error {
	if vm.Running() {
		return errors.New("the guest already runs")
	}
	log, err := os.OpenFile(vm.path("qemu.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	p := &process{cmd: exec.Command("qemu-system-x86_64", vm.args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// A killed lab takes its guest with it. The signal comes when the starting
	// *thread* ends, so the goroutine keeps its thread for as long as QEMU runs.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		defer log.Close()
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := p.cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.err = p.cmd.Wait()
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("qemu: %w", err)
	}
	vm.proc = p
	return nil
}

// Running says whether QEMU is there; it says nothing of the guest inside.
func (vm *VM) Running() bool {
	if vm.proc == nil {
		return false
	}
	select {
	case <-vm.proc.done:
		return false
	default:
		return true
	}
}

// Done is closed when QEMU has ended, by itself or otherwise. It is nil before Start.
func (vm *VM) Done() <-chan struct{} {
	if vm.proc == nil {
		return nil
	}
	return vm.proc.done
}

// PowerCut stops the guest as pulling the plug does: what it had not yet written
// to its disk is lost. Start turns it on again.
func (vm *VM) PowerCut() error {
	if !vm.Running() {
		return nil
	}
	if err := vm.proc.cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill qemu: %w", err)
	}
	<-vm.proc.done
	return nil
}

// Console is everything the guest has written to its serial console, over all boots.
func (vm *VM) Console() string {
	data, err := os.ReadFile(vm.path("console.log"))
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Close stops the guest and, if its directory was temporary, removes it.
func (vm *VM) Close() error {
	err := vm.PowerCut()
	if vm.temporary {
		err = errors.Join(err, os.RemoveAll(vm.Dir))
	}
	return err
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
