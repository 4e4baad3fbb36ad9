package nspawn

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gpuguest/internal/cgroup"
	"gpuguest/internal/oven"
)

var (
	//go:embed boot.sh
	bootScript string
	//go:embed setup.sh
	setupScript string
	//go:embed teardown.sh
	teardownScript string
)

// Ports in the guest's own network name space.
const (
	sshPort   = 2222
	proxyPort = 3128
)

// bootLimit is how long a guest may take to answer: seconds, where the machine has nothing else to do.
const bootLimit = 5 * time.Minute

// offLimit is how long a guest may take to go off in an orderly way.
const offLimit = 3 * time.Minute

// goneLimit is how long it may take until all of a guest that was ended is gone: what it wrote has to reach the disk
// image first, which took more than a minute on a machine with twenty others at work.
const goneLimit = 10 * time.Minute

// Oven is the oven.
type Oven struct{ cpus *cpus }

// New makes one.
func New() Oven { return Oven{&cpus{}} }

// Name implements oven.Oven.
func (Oven) Name() string { return "nspawn" }

// HostKernel tells that guests run on this machine's kernel: they are not rebooted, and take raw disks.
func (Oven) HostKernel() bool { return true }

// needs are the programs of this machine that the oven starts, and Debian's packages of them.
var needs = []struct{ program, pkg string }{
	{"systemd-nspawn", "systemd-container"}, {"unshare", "util-linux"}, {"losetup", "mount"}, {"mount", "mount"}, {"partx", "util-linux"}, {"taskset", "util-linux"}, {"blkid", "util-linux"},
}

// Usable implements oven.Oven.
func (Oven) Usable(context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("it needs root, to mount the image")
	}
	for _, n := range needs {
		if _, err := exec.LookPath(n.program); err != nil {
			return fmt.Errorf("%s is not installed here (Debian: %s)", n.program, n.pkg)
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return errors.New("this machine has no loop devices")
	}
	return nil
}

// Guest is a container. It implements oven.Guest.
type Guest struct {
	disk, dir, name, user string
	ns                    *netns
	web                   *http.Server
	proxy                 *proxy
	ssh                   net.Listener
	pipes                 pipes
	tasks                 sync.WaitGroup
	console               oven.Console
	groups                []string
	identity              string
	grow                  bool
	memory                int   // MiB, 0 no limit
	processors            []int // that it runs on, nil all
	cpus                  *cpus // that they are given back to

	cmd  *exec.Cmd
	done chan struct{} // closed when the container is gone
	err  error         // how it ended, once done is closed

	leaving atomic.Bool // it is to go off

	closing sync.Once
	release func() error // of all that was made for the guest, once it is gone
	closed  error
}

// Start implements oven.Oven.
func (o Oven) Start(ctx context.Context, spec oven.Spec) (oven.Guest, error) {
	switch {
	case len(spec.Args) > 0:
		return nil, errors.New("it has no machine that arguments for QEMU could be given to")
	case spec.Format != oven.FormatRaw:
		return nil, fmt.Errorf("a disk of format %s: it mounts raw ones", spec.Format)
	}
	g := &Guest{disk: spec.Disk, dir: spec.Scratch, user: spec.User, grow: spec.Grow, memory: spec.Memory, cpus: o.cpus, done: make(chan struct{})}
	g.console.Log = spec.Log
	if g.user == "" {
		g.user = "root"
	}
	var err error
	if g.processors, err = g.cpus.take(spec.CPUs); err != nil {
		return nil, err
	}
	err = g.start(ctx)
	if err == nil {
		err = g.wait(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

func (g *Guest) path(name string) string { return filepath.Join(g.dir, name) }

// Address implements oven.Guest.
func (g *Guest) Address() (string, int) {
	a, ok := g.ssh.Addr().(*net.TCPAddr)
	if !ok {
		return "", 0
	}
	return a.IP.String(), a.Port
}

// User implements oven.Guest.
func (g *Guest) User() string { return g.user }

// Identity implements oven.Guest.
func (g *Guest) Identity() string { return g.identity }

// KnownHosts implements oven.Guest.
func (g *Guest) KnownHosts() string { return g.path("known_hosts") }

// Console implements oven.Guest.
func (g *Guest) Console() string { return g.console.String() }

// Ungrown implements oven.Guest.
func (g *Guest) Ungrown() string {
	why, err := os.ReadFile(g.path("ungrown"))
	if err != nil {
		return "" // there is none
	}
	return oven.LastLine(string(why))
}

func (g *Guest) start(ctx context.Context) error {
	// What is let go of at the end is let go of also when the user does not want to go on.
	base := context.WithoutCancel(ctx)
	g.release = func() error {
		ctx, cancel := context.WithTimeout(base, goneLimit)
		defer cancel()
		return g.letGo(ctx)
	}
	var err error
	if g.ns, err = newNetns(); err != nil {
		close(g.done)
		return err
	}
	err = g.network(base)
	if err == nil {
		err = g.files()
	}
	if err == nil {
		err = g.joinGroups()
	}
	if err != nil {
		close(g.done)
		return err
	}
	return g.boot()
}

// network opens the guest's way out, in its name space, and the way to its sshd, out of it.
func (g *Guest) network(ctx context.Context) error {
	way, err := g.ns.listen(proxyPort)
	if err != nil {
		return err
	}
	g.proxy = newProxy()
	g.web = &http.Server{Handler: g.proxy, ReadHeaderTimeout: time.Minute}
	g.tasks.Go(func() { _ = g.web.Serve(way) })
	if g.ssh, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		return err
	}
	g.tasks.Go(func() {
		for {
			in, err := g.ssh.Accept()
			if err != nil {
				return
			}
			out, err := g.ns.dial(ctx, sshPort)
			if err != nil {
				in.Close()
				continue
			}
			g.pipes.join(in, out)
		}
	})
	return nil
}

// files writes what the guest sees below /run.
func (g *Guest) files() error {
	keys, err := oven.NewKeys(g.dir)
	if err != nil {
		return err
	}
	host, port := g.Address()
	if err := keys.WriteKnownHosts(g.KnownHosts(), host, port); err != nil {
		return err
	}
	g.identity = keys.Identity
	sshd := fmt.Sprintf(`ListenAddress 127.0.0.1:%d
HostKey /run/gpuguest-oven/host_key
AuthorizedKeysFile /run/gpuguest-oven/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM yes
UseDNS no
PidFile none
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
`, sshPort)
	unit := fmt.Sprintf(`[Unit]
Description=The way in that gpuguest has to an image that it bakes

[Service]
ExecStartPre=/bin/sh /run/gpuguest-oven/setup.sh http://127.0.0.1:%d
ExecStart=/usr/sbin/sshd -D -e -f /run/gpuguest-oven/sshd_config
ExecStopPost=/bin/sh /run/gpuguest-oven/teardown.sh
`, proxyPort)
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{{"run", 0o755}, {"system", 0o755}} {
		if err := os.Mkdir(g.path(d.name), d.mode); err != nil {
			return err
		}
	}
	type file struct {
		name, text string
		mode       os.FileMode
	}
	all := []file{
		{"boot.sh", bootScript, 0o600},
		{"run/setup.sh", setupScript, 0o644},
		{"run/teardown.sh", teardownScript, 0o644},
		{"run/sshd_config", sshd, 0o644},
		{"run/host_key", keys.HostPrivate, 0o600},
		{"run/authorized_keys", keys.Authorized + "\n", 0o644},
		{"system/gpuguest-oven.service", unit, 0o644},
	}
	if g.grow {
		all = append(all, file{"grow.sh", oven.GrowScript, 0o600})
	}
	for _, f := range all {
		if err := os.WriteFile(g.path(f.name), []byte(f.text), f.mode); err != nil {
			return err
		}
	}
	return nil
}

// hasSystemd tells whether this machine's init is systemd, which then gives the container a scope of its own.
func hasSystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// joinGroups gives the guest its name, and control groups of its own on a machine without systemd.
func (g *Guest) joinGroups() error {
	id := make([]byte, 5)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	g.name = fmt.Sprintf("gpuguest-oven-%x", id)
	if hasSystemd() {
		return nil
	}
	var err error
	g.groups, err = cgroup.Make(g.name)
	if err = errors.Join(err, os.WriteFile(g.path("groups"), []byte(strings.Join(g.groups, "\n")), 0o600)); err != nil || g.memory == 0 {
		return err
	}
	_, err = cgroup.LimitMemory(g.groups, int64(g.memory)<<20)
	return err
}

// nspawn is the beginning of systemd-nspawn's command line. A machine with systemd gives the container a scope of its own,
// which has its limit; without, it is in the groups that were made for it.
func (g *Guest) nspawn(systemd bool) []string {
	var args []string
	if len(g.processors) > 0 {
		args = append(args, "taskset", "--cpu-list", cpuList(g.processors))
	}
	args = append(args, "systemd-nspawn", "--quiet", "--boot", "--register=no", "--settings=no", "--machine="+g.name,
		"--network-namespace-path="+g.path("netns"), "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe")
	switch {
	case !systemd:
		args = append(args, "--keep-unit")
	default:
		args = append(args, "--property=DeviceAllow=block-loop rwm", "--property=DeviceAllow=block-blkext rwm")
		if g.memory > 0 {
			args = append(args, fmt.Sprintf("--property=MemoryMax=%dM", g.memory))
		}
	}
	return args
}

// boot starts the container. All of it is in a process name space whose first process dies when this one does, and
// takes the guest along: systemd-nspawn alone, when it is killed, leaves its guest running.
func (g *Guest) boot() error {
	netns := g.path("netns")
	if err := os.WriteFile(netns, nil, 0o600); err != nil {
		return err
	}
	args := append([]string{g.ns.path(), netns, g.path("boot.sh"), g.disk, g.dir}, g.nspawn(hasSystemd())...)
	// The network name space is found by a name of its own, as /proc is another in the process name space.
	join := `mount --bind "$1" "$2" && shift 2 && exec unshare --pid --fork --kill-child --mount-proc sh "$@"`
	if len(g.groups) > 0 {
		join = `for group in ` + strings.Join(g.groups, " ") + `; do echo $$ >"$group/cgroup.procs" || exit; done; ` + join
	}
	g.cmd = exec.Command("unshare", append([]string{"--mount", "--propagation", "private", "sh", "-c", join, "sh"}, args...)...)
	// A guest of Debian 13 does not start on control groups of the first kind.
	g.cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", "LC_ALL=C")
	g.cmd.Stdout, g.cmd.Stderr = &g.console, &g.console
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	g.cmd.WaitDelay = 10 * time.Second
	if err := g.cmd.Start(); err != nil {
		close(g.done)
		return err
	}
	g.tasks.Go(func() {
		g.err = g.cmd.Wait()
		close(g.done)
	})
	return nil
}

// UnfitError says why an image cannot be baked in this oven, though another may.
type UnfitError struct{ Why string }

func (e *UnfitError) Error() string { return "the image does not suit it: " + e.Why }

// wait waits until the guest's sshd lets the one-time key in.
func (g *Guest) wait(ctx context.Context) error {
	limit, cancel := context.WithTimeoutCause(ctx, bootLimit, fmt.Errorf("no answer over SSH within %s", bootLimit))
	defer cancel()
	over := make(chan error, 1)
	g.tasks.Go(func() {
		host, port := g.Address()
		over <- oven.Login{Host: host, Port: port, User: g.user, Identity: g.Identity(), KnownHosts: g.KnownHosts()}.Await(limit)
	})
	select {
	case err := <-over:
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		return &oven.BootError{Disk: g.disk, What: "its system started and lets nobody in", Tail: g.tail(), Cause: err}
	case <-g.done:
		cancel()
		<-over
		if why, err := os.ReadFile(g.path("unfit")); err == nil {
			return &UnfitError{strings.TrimSpace(string(why))}
		}
		return &oven.BootError{Disk: g.disk, What: "does not boot: it went off", Tail: g.tail(), Cause: g.err}
	}
}

func (g *Guest) tail() string { return oven.Tail(g.Console(), 15) }

// Watch implements oven.Guest. The kernel is this machine's, whose end is everybody's; what is watched is that the
// guest is there.
func (g *Guest) Watch(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-g.done:
	}
	if g.leaving.Load() {
		return nil
	}
	return &oven.BootError{Disk: g.disk, What: "went off by itself", Tail: g.tail(), Cause: g.err}
}

// PowerOff implements oven.Guest.
func (g *Guest) PowerOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, offLimit, fmt.Errorf("the guest did not go off within %s", offLimit))
	defer cancel()
	g.leaving.Store(true)
	// systemd-nspawn asks the guest's init to halt when it is asked to end.
	pid := g.cmd.Process.Pid
	for range 2 { // unshare, boot.sh, systemd-nspawn
		if pid = onlyChild(pid); pid == 0 {
			return errors.New("the guest is off already")
		}
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-g.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if g.err != nil {
		return fmt.Errorf("the guest did not go off in order: %w", g.err)
	}
	return detach(ctx, g.disk)
}

// onlyChild is the one process below another, 0 where there is none or more.
func onlyChild(pid int) int {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(raw))
	if len(f) != 1 {
		return 0
	}
	child, err := strconv.Atoi(f[0])
	if err != nil {
		return 0
	}
	return child
}

// Close implements oven.Guest.
func (g *Guest) Close() error {
	g.closing.Do(func() { g.closed = g.close() })
	return g.closed
}

func (g *Guest) close() error {
	g.leaving.Store(true)
	if g.cmd != nil && g.cmd.Process != nil {
		_ = g.cmd.Process.Kill() // an error says that it is gone
	}
	<-g.done
	return g.release()
}

func (g *Guest) letGo(ctx context.Context) error {
	errs := []error{detach(ctx, g.disk)}
	if g.ssh != nil {
		errs = append(errs, g.ssh.Close())
	}
	if g.web != nil {
		errs = append(errs, g.web.Close())
		g.proxy.close()
	}
	g.pipes.close()
	g.tasks.Wait()
	if g.ns != nil {
		errs = append(errs, g.ns.close())
	}
	for _, group := range g.groups {
		errs = append(errs, cgroup.Remove(ctx, group))
	}
	g.cpus.give(g.processors)
	return errors.Join(errs...)
}

// detach waits until nobody has the disk any more, so that all that was written is in its file.
func detach(ctx context.Context, disk string) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		out, err := exec.CommandContext(ctx, "losetup", "--noheadings", "--output", "NAME", "--associated", disk).Output()
		if err != nil {
			return fmt.Errorf("losetup: %w", err)
		}
		loops := strings.Fields(string(out))
		if len(loops) == 0 {
			return nil
		}
		for _, loop := range loops {
			// Either may be done already. What is still mounted is let go of when it is not any more.
			_ = exec.CommandContext(ctx, "partx", "--delete", loop).Run()
			_ = exec.CommandContext(ctx, "losetup", "--detach", loop).Run()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is still attached to %s", disk, strings.Join(loops, " "))
		case <-tick.C:
		}
	}
}

// attached are the files in a folder that a list of losetup's says loop devices read.
func attached(list []byte, dir string) ([]string, error) {
	if len(bytes.TrimSpace(list)) == 0 {
		return nil, nil // of no devices it says nothing
	}
	var all struct {
		Loopdevices []struct {
			File string `json:"back-file"`
		}
	}
	if err := json.Unmarshal(list, &all); err != nil {
		return nil, fmt.Errorf("losetup: %w", err)
	}
	var files []string
	for _, l := range all.Loopdevices {
		file := strings.TrimSuffix(l.File, " (deleted)")
		if filepath.Dir(file) == dir && !slices.Contains(files, file) {
			files = append(files, file)
		}
	}
	return files, nil
}

// Clean removes what a killed gpuguest left of a guest with this scratch folder. The guest itself died with it.
func (Oven) Clean(ctx context.Context, scratch string) error {
	ctx, cancel := context.WithTimeout(ctx, goneLimit)
	defer cancel()
	if _, err := os.Stat(filepath.Join(scratch, "boot.sh")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	// By the kernel's own list and not by a note of ours: who was killed may not have come to write one.
	out, err := exec.CommandContext(ctx, "losetup", "--list", "--json", "--output", "NAME,BACK-FILE").Output()
	if err != nil {
		return fmt.Errorf("losetup: %w", err)
	}
	// The kernel names files as they are, by no symbolic link.
	abs, err := filepath.Abs(scratch)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return err
	}
	disks, err := attached(out, filepath.Dir(abs))
	errs := []error{err}
	for _, disk := range disks {
		errs = append(errs, detach(ctx, disk))
	}
	if raw, err := os.ReadFile(filepath.Join(scratch, "groups")); err == nil {
		for _, group := range strings.Fields(string(raw)) {
			if strings.HasPrefix(group, "/sys/fs/cgroup/") && strings.HasPrefix(filepath.Base(group), "gpuguest-oven-") {
				errs = append(errs, cgroup.Remove(ctx, group))
			}
		}
	}
	return errors.Join(errs...)
}
