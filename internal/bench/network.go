//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// network is two network namespaces with nothing but two links between them: a veth pair for no latency, and
// two TUN devices with a delay line between them. Both ends run the kernel's TCP, so handshakes, slow start
// and windows are real. Neither namespace leads anywhere else.
type network struct {
	client, guest string // names of the namespaces
	line          delayLine
	tuns          []*os.File
	stop          context.CancelFunc
	ended         sync.WaitGroup
	lineErr       error
}

// Addresses that RFC 2544 sets aside for benchmarks of network devices.
const (
	nearAddress = "198.19.0.2"
	farAddress  = "198.19.1.2"
)

func newNetwork(ctx context.Context) (*network, error) {
	n := &network{client: "gpuguest-bench-client", guest: "gpuguest-bench-guest"}
	if err := n.up(ctx); err != nil {
		return nil, errors.Join(err, n.close(context.WithoutCancel(ctx)))
	}
	return n, nil
}

func (n *network) up(ctx context.Context) error {
	ip := func(args string) error { return command(ctx, "ip", strings.Fields(args)...) }
	for _, args := range []string{
		"netns add " + n.client, "netns add " + n.guest,
		"-n " + n.client + " link set lo up", "-n " + n.guest + " link set lo up",
		"-n " + n.client + " link add near type veth peer name near netns " + n.guest,
		"-n " + n.client + " addr add 198.19.0.1/30 dev near",
		"-n " + n.guest + " addr add " + nearAddress + "/30 dev near",
		"-n " + n.client + " link set near up", "-n " + n.guest + " link set near up",
	} {
		if err := ip(args); err != nil {
			return err
		}
	}
	for i, end := range []struct{ ns, address string }{{n.client, "198.19.1.1/30"}, {n.guest, farAddress + "/30"}} {
		name := fmt.Sprintf("gpugbench%d", i)
		tun, err := openTUN(name)
		if err != nil {
			return err
		}
		n.tuns = append(n.tuns, tun)
		for _, args := range []string{
			"link set " + name + " netns " + end.ns,
			"-n " + end.ns + " link set " + name + " txqueuelen 10000",
			"-n " + end.ns + " addr add " + end.address + " dev " + name,
			"-n " + end.ns + " link set " + name + " up",
		} {
			if err := ip(args); err != nil {
				return err
			}
		}
	}
	lctx, cancel := context.WithCancel(ctx)
	n.stop = cancel
	n.ended.Go(func() { n.lineErr = n.line.run(lctx, n.tuns[0], n.tuns[1]) })
	return nil
}

// setRTT makes a round trip on the far link take so long.
func (n *network) setRTT(rtt time.Duration) { n.line.delay.Store(int64(rtt / 2)) }

func (n *network) close(ctx context.Context) error {
	if n.stop != nil {
		n.stop()
	}
	for _, t := range n.tuns {
		_ = t.Close()
	}
	n.ended.Wait()
	errs := []error{n.lineErr}
	for _, ns := range []string{n.client, n.guest} {
		if _, err := os.Stat("/run/netns/" + ns); err == nil {
			errs = append(errs, command(ctx, "ip", "netns", "del", ns))
		}
	}
	return errors.Join(errs...)
}

// openTUN makes a TUN device that hands over TCP unsegmented, as a real network card is given it: without
// that, the line's own system calls would be what a fast upload waits for.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, errors.Join(fmt.Errorf("make TUN device %s: %w", name, err), unix.Close(fd))
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
		return nil, errors.Join(fmt.Errorf("TUN offload of %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// inNamespace calls f on a thread in the network namespace, "" for this process's own. What f opens or starts
// is in that namespace and stays there; the thread ends with the call.
func inNamespace(ns string, f func() error) error {
	if ns == "" {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime then ends the thread
		done <- func() error {
			file, err := os.Open("/run/netns/" + ns)
			if err != nil {
				return err
			}
			defer file.Close()
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", ns, err)
			}
			return f()
		}()
	}()
	return <-done
}

// command runs a program of this machine; its error holds what the program said.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lastLines(string(out), 15))
	}
	return nil
}

func lastLines(s string, n int) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(l[max(0, len(l)-n):], "\n")
}
