package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuguest/internal/cgroup"
)

// ContainerSpec says what a container guest is like. The zero value is a stock guest.
type ContainerSpec struct {
	Forward int  // a TCP port of 127.0.0.1 with an HTTP server that the guest reaches at ContainerGateway; 0: none
	Alone   bool // the guest has no way out: nothing listens for it at ContainerGateway, and it knows no route further
	DiskMB  int  // size of a file system of the guest's own; 0: the guest writes to the machine's
}

// Container is a running guest: a whole system, init and all, in name spaces of its own on this machine's
// kernel. sshd, systemd, apt, dpkg, DKMS, grub-mkconfig and update-initramfs are the real ones. The boot
// loader and grub-probe are stand-ins (container/loader.sh, container/grub-probe.sh), no module can be
// loaded, and a power cut takes the processes but not what they had written to the page cache.
//
// The users are root and debian, who may sudo, both by the key at KeyFile, and worker, who has the same key
// and may sudo after ContainerPassword.
type Container struct {
	Host     string // the address of its sshd, port 22
	KeyFile  string // a private key that lets root, debian and worker in
	HostKey  ssh.PublicKey
	RepoURL  string      // where ContainerSpec.Repo answers, as seen from the guest and from here
	StayDown atomic.Bool // a guest that reboots itself stays off

	root    ContainerRoot
	spec    ContainerSpec
	dir     string
	link    *link
	servers []*http.Server
	served  sync.WaitGroup
	groups  []string // control groups that the guest is in

	mu    sync.Mutex
	pid   int           // of systemd-nspawn, 0 while the guest is off
	off   chan struct{} // closed when the guest is off and stays off
	cause error         // why it went off
	boots int
}

// ContainerGateway is the name by which every guest knows this machine.
const ContainerGateway = "gateway.lab"

// ContainerPassword is worker's.
const ContainerPassword = "lab password"

// containerRebooted is the status that systemd-nspawn ends with when its guest reboots itself. Measured
// with 252; the manual names it as the reason for RestartForceExitStatus=133 in systemd-nspawn@.service.
const containerRebooted = 133

// containerCache is the directory that running guests and packages that guests fetched are in.
func containerCache() (string, error) {
	cache, err := DefaultCache()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "containers")
	return dir, os.MkdirAll(dir, 0o700)
}

// StartContainer boots a guest from root and returns when its sshd answers with its own key. It must run as
// root, where systemd-nspawn, overlay file systems and network name spaces work. ctx bounds the start only;
// Close ends the guest.
func StartContainer(ctx context.Context, root ContainerRoot, spec ContainerSpec) (*Container, error) {
	cache, err := containerCache()
	if err != nil {
		return nil, err
	}
	l, err := reserveLink(cache)
	if err != nil {
		return nil, err
	}
	c := &Container{
		Host: l.guest.String(), root: root, spec: spec, link: l,
		dir: filepath.Join(cache, fmt.Sprintf("guest-%d", l.index)),
	}
	c.KeyFile = filepath.Join(c.dir, "key")
	c.off = make(chan struct{})
	close(c.off)
	err = errors.Join(c.clear(ctx), roomForWatches())
	for _, step := range []func(context.Context) error{l.up, c.mount, c.personalise, c.joinGroups,
		func(ctx context.Context) error { return c.serve(cache) }, c.PowerOn} {
		if err != nil {
			break
		}
		err = step(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close(ctx))
	}
	return c, nil
}

// roomForWatches lets the machine have as many inotify instances as dozens of systemds take, seven each: at the
// kernel's 128 the nineteenth guest's network never came up.
func roomForWatches() error {
	const path, enough = "/proc/sys/fs/inotify/max_user_instances", 1024
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(raw))); err != nil || n >= enough {
		return err
	}
	return os.WriteFile(path, []byte(strconv.Itoa(enough)), 0)
}

// clear removes what a killed process left under this guest's name.
func (c *Container) clear(ctx context.Context) error {
	var errs []error
	if raw, err := os.ReadFile(filepath.Join(c.dir, "pid")); err == nil {
		if pid, err := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil {
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err == nil && strings.Contains(string(line), c.merged()+"\x00") {
				errs = append(errs, killTree(ctx, pid))
			}
		}
	}
	// The guest's init outlives a systemd-nspawn that was killed. Nobody else has this name while the link is ours.
	errs = append(errs, cgroup.Kill(c.link.netns))
	for _, m := range []string{c.merged(), filepath.Join(c.dir, "disk")} {
		if mounted(m) {
			errs = append(errs, command(ctx, "umount", "-l", m))
		}
	}
	errs = append(errs, c.link.down(ctx))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(c.dir)
}

func (c *Container) merged() string { return filepath.Join(c.dir, "root") }
func (c *Container) upper() string  { return filepath.Join(c.dir, "disk", "upper") }

// Written is the directory of this machine with what the guest wrote: files of its root that are new or were
// changed, whole.
func (c *Container) Written() string { return c.upper() }

func (c *Container) mount(ctx context.Context) error {
	disk := filepath.Join(c.dir, "disk")
	if err := errors.Join(os.MkdirAll(disk, 0o700), os.MkdirAll(c.merged(), 0o755)); err != nil {
		return err
	}
	options := "lowerdir=" + strings.Join(c.root.layers, ":") + ",upperdir=" + c.upper() + ",workdir=" + filepath.Join(disk, "work")
	if c.spec.DiskMB > 0 {
		image := filepath.Join(c.dir, "disk.img")
		if err := command(ctx, "truncate", "-s", fmt.Sprintf("%dM", c.spec.DiskMB), image); err != nil {
			return err
		}
		if err := command(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", image); err != nil {
			return err
		}
		if err := command(ctx, "mount", "-o", "loop", image, disk); err != nil {
			return err
		}
	} else {
		// Nothing that a guest writes outlives this machine, so nothing has to reach its disk.
		options += ",volatile"
	}
	if err := errors.Join(os.MkdirAll(c.upper(), 0o755), os.MkdirAll(filepath.Join(disk, "work"), 0o755)); err != nil {
		return err
	}
	return command(ctx, "mount", "-t", "overlay", "overlay", "-o", options, c.merged())
}

// personalise gives the guest its keys and tells its apt the way out.
func (c *Container) personalise(context.Context) error {
	hostKey, hostPEM, err := newKey("lab")
	if err != nil {
		return err
	}
	userKey, userPEM, err := newKey("lab")
	if err != nil {
		return err
	}
	c.HostKey = hostKey
	authorized := ssh.MarshalAuthorizedKey(userKey)
	guest := func(name string) string { return filepath.Join(c.merged(), name) }
	proxy := fmt.Sprintf("Acquire::http::Proxy \"http://%s:%d/\";\nAcquire::http::Proxy::%[1]s \"DIRECT\";\n", ContainerGateway, proxyPort)
	hosts := "127.0.0.1 localhost\n127.0.1.1 lab\n::1 localhost\n" + c.link.host.String() + " " + ContainerGateway + "\n"
	if err := errors.Join(
		os.WriteFile(c.KeyFile, userPEM, 0o600),
		os.WriteFile(guest("etc/ssh/ssh_host_ed25519_key"), hostPEM, 0o600),
		os.WriteFile(guest("etc/ssh/ssh_host_ed25519_key.pub"), ssh.MarshalAuthorizedKey(hostKey), 0o644),
		os.WriteFile(guest("etc/hosts"), []byte(hosts), 0o644),
		os.WriteFile(guest("etc/apt/apt.conf.d/90lab"), []byte(proxy+c.root.mirror.conf()), 0o644),
	); err != nil {
		return err
	}
	for _, home := range []string{"root", "home/debian", "home/worker"} {
		st, err := os.Stat(guest(home))
		if err != nil {
			return err
		}
		owner, ok := st.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("%s: its owner is unknown", home)
		}
		dir := guest(home + "/.ssh")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		file := filepath.Join(dir, "authorized_keys")
		if err := errors.Join(os.WriteFile(file, authorized, 0o600),
			os.Chown(dir, int(owner.Uid), int(owner.Gid)), os.Chown(file, int(owner.Uid), int(owner.Gid))); err != nil {
			return err
		}
	}
	return nil
}

func newKey(comment string) (ssh.PublicKey, []byte, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return nil, nil, err
	}
	key, err := ssh.NewPublicKey(public)
	return key, pem.EncodeToMemory(block), err
}

// joinGroups gives the guest control groups of its own.
func (c *Container) joinGroups(context.Context) error {
	var err error
	c.groups, err = cgroup.Make(c.link.netns)
	return err
}

// proxyPort is where a guest's apt finds the way out.
const proxyPort = 3128

func (c *Container) serve(cache string) error {
	if c.spec.Alone {
		return nil
	}
	packages := filepath.Join(cache, "packages")
	if err := os.MkdirAll(packages, 0o700); err != nil {
		return err
	}
	handlers := map[int]http.Handler{proxyPort: newMirrorProxy(c.root.mirror, packages)}
	if port := c.spec.Forward; port != 0 {
		target := &url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}
		handlers[port] = httputil.NewSingleHostReverseProxy(target)
	}
	for port, handler := range handlers {
		listener, err := net.Listen("tcp", net.JoinHostPort(c.link.host.String(), strconv.Itoa(port)))
		if err != nil {
			return err
		}
		server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
		c.servers = append(c.servers, server)
		c.served.Go(func() { _ = server.Serve(listener) })
	}
	return nil
}

// PowerOn boots the guest and returns when its sshd answers. A guest that reboots itself is booted again
// until PowerCut, PowerOff or Close, unless StayDown is set.
func (c *Container) PowerOn(ctx context.Context) error {
	c.mu.Lock()
	select {
	case <-c.off:
	default:
		c.mu.Unlock()
		return errors.New("the guest is on")
	}
	off := make(chan struct{})
	c.off = off
	c.mu.Unlock()
	go func() {
		defer close(off)
		c.run()
	}()
	return c.waitSSH(ctx)
}

// run is the power supply: it starts the guest for as long as the guest asks to be started again.
func (c *Container) run() {
	for {
		err := c.boot()
		var exit *exec.ExitError
		again := errors.As(err, &exit) && exit.ExitCode() == containerRebooted && !c.StayDown.Load()
		c.mu.Lock()
		c.pid, c.cause = 0, err
		c.mu.Unlock()
		if !again {
			return
		}
	}
}

// boot runs the guest from power on to power off.
func (c *Container) boot() error {
	console, err := os.OpenFile(filepath.Join(c.dir, "console.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	join := `for group in ` + strings.Join(c.groups, " ") + `; do echo $$ >"$group/cgroup.procs" || exit; done; exec "$@"`
	cmd := exec.Command("sh", "-c", join, "sh", "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--settings=no",
		"--machine="+c.link.netns, "--hostname=lab", "--network-namespace-path=/run/netns/"+c.link.netns,
		"--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe", "-D", c.merged(), "--", "--log-target=journal")
	// A guest of Debian 13 does not start on control groups of the first kind.
	cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.mu.Lock()
	c.pid = cmd.Process.Pid
	c.boots++
	c.mu.Unlock()
	pidErr := os.WriteFile(filepath.Join(c.dir, "pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
	return errors.Join(cmd.Wait(), pidErr)
}

// waitSSH waits until a login as root with the lab's key succeeds.
func (c *Container) waitSSH(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("no answer within a minute"))
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	c.mu.Lock()
	off := c.off
	c.mu.Unlock()
	var last error
	for {
		client, err := c.Dial(ctx, "root")
		if err == nil {
			return client.Close()
		}
		last = err
		select {
		case <-off:
			return fmt.Errorf("the guest went off while it booted: %w\n%s", c.cause, c.consoleTail())
		case <-ctx.Done():
			return fmt.Errorf("%w: %w\n%s", context.Cause(ctx), last, c.consoleTail())
		case <-tick.C:
		}
	}
}

// Dial logs in over SSH with the lab's key and accepts the guest's own host key only.
func (c *Container) Dial(ctx context.Context, user string) (*ssh.Client, error) {
	raw, err := os.ReadFile(c.KeyFile)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.ParsePrivateKey(raw)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(c.Host, "22")
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	inner, channels, requests, err := ssh.NewClientConn(conn, address, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.FixedHostKey(c.HostKey),
	})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return ssh.NewClient(inner, channels, requests), conn.SetDeadline(time.Time{})
}

// KnownHosts is the line of a known_hosts file for this guest.
func (c *Container) KnownHosts() string {
	return c.Host + " " + string(ssh.MarshalAuthorizedKey(c.HostKey))
}

// Exec runs a script as root in the guest, past its sshd and its network, and returns what it printed.
func (c *Container) Exec(ctx context.Context, script string) (string, error) {
	pid, err := c.leader()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(pid), "-m", "-u", "-i", "-n", "-p", "-C", "--",
		"env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C", "sh", "-c", script)
	cmd.WaitDelay = 5 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("in the guest: %w: %s", err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// leader is the machine's name for the guest's process 1.
func (c *Container) leader() (int, error) {
	c.mu.Lock()
	pid := c.pid
	c.mu.Unlock()
	if pid == 0 {
		return 0, errors.New("the guest is off")
	}
	for _, p := range descendants(pid) {
		if inner, err := innerPID(p); err == nil && inner == 1 {
			return p, nil
		}
	}
	return 0, errors.New("the guest has no init")
}

// descendants are a process and all below it, parents first.
func descendants(pid int) []int {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))
		if err != nil {
			continue
		}
		for _, list := range lists {
			raw, err := os.ReadFile(list)
			if err != nil {
				continue
			}
			for word := range strings.FieldsSeq(string(raw)) {
				if child, err := strconv.Atoi(word); err == nil {
					all = append(all, child)
				}
			}
		}
	}
	return all
}

// innerPID is what a process is called in its own name space.
func innerPID(pid int) (int, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "NSpid:"); ok {
			if ids := strings.Fields(rest); len(ids) > 1 {
				return strconv.Atoi(ids[len(ids)-1])
			}
		}
	}
	return 0, errors.New("in no name space of its own")
}

// killTree ends a systemd-nspawn and its guest at once, and returns when both are gone: the kernel kills
// everything in a name space whose init dies, and only then lets the init go.
func killTree(ctx context.Context, pid int) error {
	var killed []int
	for _, p := range descendants(pid) {
		if inner, err := innerPID(p); p == pid || err == nil && inner == 1 {
			if err := syscall.Kill(p, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return err
			}
			killed = append(killed, p)
		}
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for _, p := range killed {
		for alive(p) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
	}
	return nil
}

// alive tells whether a process is there and not merely waited for.
func alive(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// PowerCut ends every process of the guest at once and leaves it off.
func (c *Container) PowerCut(ctx context.Context) error {
	c.mu.Lock()
	pid, off := c.pid, c.off
	c.mu.Unlock()
	if pid != 0 {
		if err := killTree(ctx, pid); err != nil {
			return err
		}
	}
	return c.waitOff(ctx, off)
}

// PowerOff shuts the guest down in order and leaves it off.
func (c *Container) PowerOff(ctx context.Context) error {
	c.mu.Lock()
	off := c.off
	c.mu.Unlock()
	if _, err := c.Exec(ctx, "systemctl --no-block poweroff"); err != nil {
		return err
	}
	return c.waitOff(ctx, off)
}

// WaitOff waits until the guest is off and stays off.
func (c *Container) WaitOff(ctx context.Context) error {
	c.mu.Lock()
	off := c.off
	c.mu.Unlock()
	return c.waitOff(ctx, off)
}

func (c *Container) waitOff(ctx context.Context, off <-chan struct{}) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the guest did not go off within a minute"))
	defer cancel()
	select {
	case <-off:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Boots tells how often the guest was started.
func (c *Container) Boots() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boots
}

// Unplug takes the network cable out, Plug puts it back.
func (c *Container) Unplug(ctx context.Context) error {
	return command(ctx, "ip", "link", "set", c.link.veth, "down")
}

// Plug undoes Unplug.
func (c *Container) Plug(ctx context.Context) error {
	return command(ctx, "ip", "link", "set", c.link.veth, "up")
}

// Console is what the guest's console showed since the first boot.
func (c *Container) Console() (string, error) {
	raw, err := os.ReadFile(filepath.Join(c.dir, "console.log"))
	return string(raw), err
}

func (c *Container) consoleTail() string {
	text, err := c.Console()
	if err != nil {
		return err.Error()
	}
	return text[max(0, len(text)-2000):]
}

// keepUpper moves what the guest wrote to dir, but for what made it this guest and no other. The guest is
// off and can only be closed after it.
func (c *Container) keepUpper(ctx context.Context, dir string) error {
	if err := command(ctx, "umount", c.merged()); err != nil {
		return err
	}
	for _, own := range []string{"etc/machine-id", "etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_ed25519_key.pub",
		"etc/apt/apt.conf.d/90lab", "etc/hosts", "root/.ssh", "home/debian/.ssh", "home/worker/.ssh", "var/log/journal", "run", "tmp"} {
		if err := os.RemoveAll(filepath.Join(c.upper(), own)); err != nil {
			return err
		}
	}
	// Go's Rename refuses a directory in the way, also an empty one.
	if err := os.Remove(dir); err != nil {
		return err
	}
	return os.Rename(c.upper(), dir)
}

// Close ends the guest and removes all that was made for it.
func (c *Container) Close(ctx context.Context) error {
	// The caller's context may have ended; what is left to do takes seconds.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	errs := []error{c.PowerCut(ctx)}
	for _, server := range c.servers {
		errs = append(errs, server.Close())
	}
	c.served.Wait()
	errs = append(errs, c.clear(ctx))
	for _, group := range c.groups {
		errs = append(errs, cgroup.Remove(ctx, group))
	}
	return errors.Join(append(errs, c.link.lock.Close())...)
}

func mounted(dir string) bool {
	raw, err := os.ReadFile("/proc/self/mounts")
	return err == nil && strings.Contains(string(raw), " "+dir+" ")
}
