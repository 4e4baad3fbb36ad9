package nspawn

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// Machine is the address by which a guest knows this machine, in both ovens: that of QEMU's user network. Any
// other of the machine's own, its loopback above all, is not for a guest to reach.
const Machine = "10.0.2.2"

// proxy is a guest's way out: an HTTP proxy that knows CONNECT and goes the way that this machine's own proxy
// settings say.
type proxy struct {
	upstream  func(*url.URL) (*url.URL, error) // the machine's own proxy for a URL, nil for none
	transport *http.Transport
	plain     *httputil.ReverseProxy
	tunnels   pipes
}

func newProxy() *proxy {
	p := &proxy{upstream: upstream}
	p.transport = &http.Transport{
		Proxy: func(r *http.Request) (*url.URL, error) { return p.upstream(r.URL) }, DialContext: p.dial, DisableCompression: true,
		ResponseHeaderTimeout: 2 * time.Minute, MaxIdleConnsPerHost: 8, IdleConnTimeout: time.Minute,
	}
	p.plain = &httputil.ReverseProxy{
		Transport: p.transport,
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL = r.In.URL },
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
	}
	return p
}

// upstream is the machine's own proxy for a URL, nil for none.
func upstream(u *url.URL) (*url.URL, error) {
	if u.Hostname() == Machine {
		return nil, nil
	}
	return http.ProxyFromEnvironment(&http.Request{URL: u})
}

var errOwn = errors.New("a guest does not reach this machine's own addresses but by " + Machine)

// dial connects to where a guest wants to go, or to the machine's own proxy, which may be on its loopback.
func (p *proxy) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	out := net.Dialer{Timeout: 30 * time.Second}
	if host == Machine {
		return out.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	}
	c, err := out.DialContext(ctx, network, address)
	if err != nil || p.isUpstream(address) {
		return c, err
	}
	// Looked at once the name is resolved, so that no name leads around it.
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok && (a.IP.IsLoopback() || a.IP.IsLinkLocalUnicast() || a.IP.IsUnspecified()) {
		return nil, errors.Join(errOwn, c.Close())
	}
	return c, nil
}

func (p *proxy) isUpstream(address string) bool {
	for _, scheme := range []string{"http", "https"} {
		if up, err := p.upstream(&url.URL{Scheme: scheme, Host: "example.com"}); err == nil && up != nil && up.Host == address {
			return true
		}
	}
	return false
}

// close ends what goes on.
func (p *proxy) close() {
	p.tunnels.close()
	p.transport.CloseIdleConnections()
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		if r.URL.Host == "" {
			http.Error(w, "this is a proxy", http.StatusBadRequest)
			return
		}
		p.plain.ServeHTTP(w, r)
		return
	}
	out, err := p.tunnel(r.Context(), r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	in, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		out.Close()
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if _, err := io.WriteString(in, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		in.Close()
		out.Close()
		return
	}
	p.tunnels.join(bufferedConn{in, buffered.Reader}, out)
}

// tunnel connects to an address, through the machine's own proxy where it has one.
func (p *proxy) tunnel(ctx context.Context, address string) (net.Conn, error) {
	up, err := p.upstream(&url.URL{Scheme: "https", Host: address})
	if err != nil {
		return nil, err
	}
	if up == nil {
		return p.dial(ctx, "tcp", address)
	}
	c, err := (&net.Dialer{Timeout: 30 * time.Second}).DialContext(ctx, "tcp", up.Host)
	if err != nil {
		return nil, err
	}
	r := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: make(http.Header)}
	if up.User != nil {
		password, _ := up.User.Password()
		r.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(up.User.Username()+":"+password)))
	}
	br := bufio.NewReader(c)
	if err := r.Write(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	res, err := http.ReadResponse(br, r)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("proxy %s: %s", up.Host, res.Status)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return bufferedConn{c, br}, nil
}

// bufferedConn is a connection of which something was read already.
type bufferedConn struct {
	net.Conn
	r io.Reader
}

func (b bufferedConn) Read(p []byte) (int, error) { return b.r.Read(p) }

// CloseWrite tells the other side that nothing more comes.
func (b bufferedConn) CloseWrite() error { return closeWrite(b.Conn) }

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// pipes are pairs of connections that are joined.
type pipes struct {
	mu     sync.Mutex
	open   map[net.Conn]bool
	closed bool
	all    sync.WaitGroup
}

// join lets what comes in at one go out at the other, until both have ended, and closes them.
func (p *pipes) join(a, b net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		a.Close()
		b.Close()
		return
	}
	if p.open == nil {
		p.open = make(map[net.Conn]bool)
	}
	p.open[a], p.open[b] = true, true
	p.all.Go(func() {
		splice(a, b)
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.open, a)
		delete(p.open, b)
	})
}

// close ends every pair and returns when they have ended.
func (p *pipes) close() {
	p.mu.Lock()
	p.closed = true
	for c := range p.open {
		c.Close()
	}
	p.mu.Unlock()
	p.all.Wait()
}

// splice joins two connections until both have ended, and closes them.
func splice(a, b net.Conn) {
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			_, err := io.Copy(way[1], way[0])
			if err != nil {
				a.Close()
				b.Close()
				return
			}
			_ = closeWrite(way[1])
		})
	}
	both.Wait()
	a.Close()
	b.Close()
}
