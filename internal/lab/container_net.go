package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// containerMirror is where the machine's own apt fetches Debian from. No mirror is named anywhere else.
type containerMirror struct {
	main     string // "http://mirror/debian"
	security string // "" when the machine has no security archive
}

// findContainerMirror asks apt. It needs package lists that were fetched, or else the usual source files.
func findContainerMirror(ctx context.Context) (containerMirror, error) {
	out, err := output(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN)|$(CODENAME)|$(REPO_URI)", "Created-By: Packages")
	if err != nil {
		return containerMirror{}, err
	}
	var m containerMirror
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 3 || f[0] != "Debian" {
			continue
		}
		uri := strings.TrimRight(f[2], "/")
		switch {
		case strings.HasSuffix(f[1], "-security"):
			m.security = uri
		case !strings.Contains(f[1], "-"):
			m.main = uri
		}
	}
	if m.main == "" {
		return m, errors.New("this machine's apt names no Debian mirror: run apt-get update, on a Debian machine")
	}
	return m, nil
}

// sources are the lines of a stock sources.list.
func (m containerMirror) sources(suite string) []string {
	lines := []string{"deb " + m.main + " " + suite + " main", "deb " + m.main + " " + suite + "-updates main"}
	if m.security != "" {
		lines = append(lines, "deb "+m.security+" "+suite+"-security main")
	}
	for i, l := range lines {
		// The proxy speaks TLS where the mirror does; a guest's own connection to it does not.
		lines[i] = strings.Replace(l, "deb https://", "deb http://", 1)
	}
	return lines
}

func (m containerMirror) bootstrapSources(suite string) []string {
	var lines []string
	for _, l := range m.sources(suite) {
		u := strings.Fields(l)[1]
		lines = append(lines, strings.Replace(l, u, m.scheme(u), 1))
	}
	return lines
}

// scheme gives a guest's URL the scheme that the machine uses.
func (m containerMirror) scheme(guest string) string {
	for _, own := range []string{m.main, m.security} {
		if rest, ok := strings.CutPrefix(own, "https://"); ok && strings.HasPrefix(strings.TrimPrefix(guest, "http://"), rest) {
			return "https://" + strings.TrimPrefix(guest, "http://")
		}
	}
	return guest
}

func (m containerMirror) hosts() []string {
	var all []string
	for _, own := range []string{m.main, m.security} {
		if u, err := url.Parse(own); err == nil && u.Host != "" {
			all = append(all, u.Host)
		}
	}
	return all
}

// mirrorProxy is a guest's way to the machine's own mirror, with packages kept in the cache.
type mirrorProxy struct {
	mirror   containerMirror
	packages string // directory
	rest     *httputil.ReverseProxy
}

func newMirrorProxy(mirror containerMirror, packages string) *mirrorProxy {
	rest := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		if u, err := url.Parse(mirror.scheme(r.In.URL.String())); err == nil {
			r.Out.URL, r.Out.Host = u, u.Host
		}
	}}
	return &mirrorProxy{mirror: mirror, packages: packages, rest: rest}
}

func (s *mirrorProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case !slices.Contains(s.mirror.hosts(), r.URL.Host):
		http.Error(w, "not a mirror of this machine", http.StatusForbidden)
	case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, ".deb"):
		s.servePackage(w, r)
	default:
		s.rest.ServeHTTP(w, r)
	}
}

// servePackage answers from the cache. A package's file name holds its version and never changes content;
// apt checks it by the signed lists all the same.
func (s *mirrorProxy) servePackage(w http.ResponseWriter, r *http.Request) {
	source := s.mirror.scheme(r.URL.String())
	sum := sha256.Sum256([]byte(source))
	file := filepath.Join(s.packages, hex.EncodeToString(sum[:16])+".deb")
	if _, err := os.Stat(file); err != nil {
		if err := s.fetch(r.Context(), source, file); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
	}
	http.ServeFile(w, r, file)
}

func (s *mirrorProxy) fetch(ctx context.Context, source, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	f, err := os.CreateTemp(s.packages, "fetching-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = io.Copy(f, res.Body)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// link is one guest's network: a name space whose only way out is a veth pair to this machine.
type link struct {
	index       int
	lock        *os.File
	host, guest net.IP
	netns, veth string
}

// RFC 2544 sets 198.18.0.0/15 aside for benchmarks of network devices, so no machine's route leads there.
func linkAddresses(index int) (host, guest net.IP) {
	return net.IPv4(198, 18, byte(index>>6), byte(index<<2|1)), net.IPv4(198, 18, byte(index>>6), byte(index<<2|2))
}

// reserveLink takes the first index that no other process has. The lock lasts as long as its holder lives,
// so what is found under a free index is left over from a process that was killed.
func reserveLink(cache string) (*link, error) {
	used, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for i := 1; i < 1<<14; i++ {
		host, guest := linkAddresses(i)
		f, err := tryLock(filepath.Join(cache, fmt.Sprintf("guest-%d.lock", i)))
		if err != nil {
			continue
		}
		l := &link{index: i, lock: f, host: host, guest: guest, netns: fmt.Sprintf("gpuguest-%d", i), veth: fmt.Sprintf("gpuguest%d", i)}
		taken := slices.ContainsFunc(used, func(a net.Addr) bool {
			n, ok := a.(*net.IPNet)
			ifi, err := net.InterfaceByName(l.veth)
			mine := err == nil && ifi != nil
			return ok && !mine && !n.IP.IsUnspecified() && n.Contains(host)
		})
		if !taken {
			return l, nil
		}
		f.Close()
	}
	return nil, errors.New("no free address for a guest in 198.18.0.0/16")
}

func (l *link) up(ctx context.Context) error {
	for _, args := range [][]string{
		{"netns", "add", l.netns},
		{"link", "add", l.veth, "type", "veth", "peer", "name", "eth0", "netns", l.netns},
		{"addr", "add", l.host.String() + "/30", "dev", l.veth},
		{"link", "set", l.veth, "up"},
		{"-n", l.netns, "addr", "add", l.guest.String() + "/30", "dev", "eth0"},
		{"-n", l.netns, "link", "set", "lo", "up"},
		{"-n", l.netns, "link", "set", "eth0", "up"},
	} {
		if err := command(ctx, "ip", args...); err != nil {
			return err
		}
	}
	return nil
}

// down removes the name space and the pair, also when only one of them is there.
func (l *link) down(ctx context.Context) error {
	var errs []error
	if _, err := os.Stat("/run/netns/" + l.netns); err == nil {
		errs = append(errs, command(ctx, "ip", "netns", "del", l.netns))
	}
	if _, err := net.InterfaceByName(l.veth); err == nil {
		// The pair may be going already, with its name space.
		_ = command(ctx, "ip", "link", "del", l.veth)
	}
	return errors.Join(errs...)
}
