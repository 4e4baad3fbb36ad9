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
	"regexp"
	"slices"
	"strings"
)

// containerMirror is where the machine's own apt fetches a suite from. No mirror is named anywhere else.
type containerMirror struct{ apt *aptRoot }

// sources are the lines of a stock sources.list.
func (m containerMirror) sources() []string {
	var lines []string
	for _, e := range m.apt.entries {
		for _, uri := range e.uris {
			for _, suite := range e.suites {
				// The proxy speaks TLS where the mirror does; a guest's own connection to it does not.
				lines = append(lines, "deb "+strings.Replace(uri, "https://", "http://", 1)+" "+suite+" main")
			}
		}
	}
	return lines
}

// origin finds the machine's own source that a guest's URL stands for, and gives the URL its scheme.
func (m containerMirror) origin(guest string) (string, bool) {
	rest := strings.TrimPrefix(guest, "http://")
	for _, e := range m.apt.entries {
		for _, uri := range e.uris {
			scheme, own, _ := strings.Cut(strings.TrimRight(uri, "/"), "://")
			if strings.HasPrefix(rest, own+"/") {
				return scheme + "://" + rest, true
			}
		}
	}
	return "", false
}

// conf is what a guest's apt must know of the archive: everything of the machine's settings but the way to it.
func (m containerMirror) conf() string {
	var b strings.Builder
	for line := range strings.Lines(m.apt.conf) {
		if !strings.Contains(line, "::Proxy") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// proxySetting finds the machine's own proxy in what apt-config prints.
var proxySetting = regexp.MustCompile(`(?m)^Acquire::(https?)::Proxy "([^"]+)";`)

// transport goes the way that the machine's apt goes.
func (m containerMirror) transport() *http.Transport {
	proxies := map[string]string{}
	for _, f := range proxySetting.FindAllStringSubmatch(m.apt.conf, -1) {
		proxies[f[1]] = f[2]
	}
	return &http.Transport{ForceAttemptHTTP2: true, Proxy: func(r *http.Request) (*url.URL, error) {
		switch p := proxies[r.URL.Scheme]; p {
		case "":
			return http.ProxyFromEnvironment(r)
		case "DIRECT", "false":
			return nil, nil
		default:
			return url.Parse(p)
		}
	}}
}

// mirrorProxy is a guest's way to the machine's own mirror, with packages kept in the cache.
type mirrorProxy struct {
	mirror   containerMirror
	packages string // directory
	client   *http.Client
	rest     *httputil.ReverseProxy
}

func newMirrorProxy(mirror containerMirror, packages string) *mirrorProxy {
	transport := mirror.transport()
	return &mirrorProxy{
		mirror: mirror, packages: packages, client: &http.Client{Transport: transport},
		rest: &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
			own, _ := mirror.origin(r.In.URL.String())
			if u, err := url.Parse(own); err == nil {
				r.Out.URL, r.Out.Host = u, u.Host
			}
		}},
	}
}

func (s *mirrorProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	own, ok := s.mirror.origin(r.URL.String())
	switch {
	case !ok:
		http.Error(w, "not a mirror of this machine", http.StatusForbidden)
	case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, ".deb"):
		s.servePackage(w, r, own)
	default:
		s.rest.ServeHTTP(w, r)
	}
}

// servePackage answers from the cache. A package's file name holds its version and never changes content;
// apt checks it by the signed lists all the same.
func (s *mirrorProxy) servePackage(w http.ResponseWriter, r *http.Request, source string) {
	sum := sha256.Sum256([]byte(source))
	file := filepath.Join(s.packages, hex.EncodeToString(sum[:16])+".deb")
	if !exists(file) {
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
	res, err := s.client.Do(req)
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
	lock        io.Closer
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
		if err := f.Close(); err != nil {
			return nil, err
		}
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
