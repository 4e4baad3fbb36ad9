//go:build linux

package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
)

// fleetRecorded is what the pretend guests answer: one with its driver, which needs nothing.
const fleetRecorded = "ubuntu2404-l4-driver580.txt"

// pretendGuests are SSH servers in one process. They speak the whole protocol, answer the facts script with a
// recording and every check with "met", and run nothing: what is left is what a guest costs the client.
type pretendGuests struct {
	facts  []byte
	config *ssh.ServerConfig
	tasks  sync.WaitGroup
}

// workPretend serves n pretend guests until its input ends, on ports from first on, and writes what a client needs
// into dir: a key, and known_hosts and an inventory for each address.
func workPretend(ctx context.Context, dir, recording, addresses string, first, n int) error {
	p := &pretendGuests{}
	var err error
	if p.facts, err = os.ReadFile(recording); err != nil {
		return err
	}
	_, hostKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	_, userKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	host, err := ssh.NewSignerFromKey(hostKey)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(userKey, "bench")
	if err != nil {
		return err
	}
	p.config = &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }}
	p.config.AddHostKey(host)
	errs := []error{os.WriteFile(filepath.Join(dir, "fleet-key"), pem.EncodeToMemory(block), 0o600)}
	for address := range strings.SplitSeq(addresses, ",") {
		var known, inventory strings.Builder
		fmt.Fprintf(&inventory, "defaults: {address: %s, user: root, ssh-config: none, identity: %s, known-hosts: %s}\nhosts:\n",
			address, filepath.Join(dir, "fleet-key"), filepath.Join(dir, "fleet-known-"+address))
		for i := range n {
			fmt.Fprintf(&known, "[%s]:%d %s", address, first+i, ssh.MarshalAuthorizedKey(host.PublicKey()))
			fmt.Fprintf(&inventory, "  guest%04d: {port: %d}\n", i, first+i)
		}
		errs = append(errs, os.WriteFile(filepath.Join(dir, "fleet-known-"+address), []byte(known.String()), 0o600),
			os.WriteFile(filepath.Join(dir, "fleet-"+address+".yaml"), []byte(inventory.String()), 0o600))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer p.tasks.Wait()
	defer cancel()
	for i := range n {
		ln, err := net.Listen("tcp", ":"+strconv.Itoa(first+i))
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { _ = ln.Close() })
		p.tasks.Go(func() { p.listen(ctx, ln) })
	}
	if _, err := fmt.Println("ready"); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func (p *pretendGuests) listen(ctx context.Context, ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		p.tasks.Go(func() {
			defer stop()
			defer c.Close()
			p.serve(c)
		})
	}
}

func (p *pretendGuests) serve(c net.Conn) {
	conn, channels, requests, err := ssh.NewServerConn(c, p.config)
	if err != nil {
		return
	}
	defer conn.Close()
	var own sync.WaitGroup
	defer own.Wait()
	own.Go(func() { ssh.DiscardRequests(requests) })
	for nc := range channels {
		ch, requests, err := nc.Accept()
		if err != nil {
			return
		}
		own.Go(func() {
			for r := range requests {
				ok := r.Type == "exec" && len(r.Payload) > 4
				_ = r.Reply(ok, nil)
				if ok {
					own.Go(func() { p.exec(ch, string(r.Payload[4:])) })
				}
			}
		})
	}
}

// What the two scripts of a converged run are told by: the word that ends the facts under the lock, and the lines
// that print an outcome.
var (
	holdToken = regexp.MustCompile(`gpuguest-hold-[A-Z0-9]+`)
	checkLine = regexp.MustCompile(`"\$out" (--[0-9a-f]{24}) ([a-z0-9-]+) "\$code"`)
)

func (p *pretendGuests) exec(ch ssh.Channel, command string) {
	defer ch.Close()
	code := uint32(0)
	var out strings.Builder
	token, checks := holdToken.FindString(command), checkLine.FindAllStringSubmatch(command, -1)
	if token != "" {
		out.Write(p.facts)
	}
	// Of a guest that was seen before, the checks come along with the facts.
	for _, m := range checks {
		fmt.Fprintf(&out, "\n%s %s 0\n", m[1], m[2])
	}
	switch {
	case token != "":
		end := "\n" + token + " exit 0\n"
		_, _ = io.WriteString(ch, out.String()+end)
		_, _ = io.WriteString(ch.Stderr(), end)
		_, _ = io.Copy(io.Discard, ch) // the lock is held until the client lets go
	case len(checks) > 0:
		_, _ = io.WriteString(ch, out.String())
	default:
		_, _ = io.WriteString(ch, "a pretend guest runs nothing\n")
		code = 127
	}
	_, _ = ch.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, code))
}
