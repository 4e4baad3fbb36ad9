package nspawn

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

// outside is a server of this machine's, which a guest reaches by Machine only.
func outside(t *testing.T) (port string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s %q", r.Method, r.URL.Path, r.Host, r.Header.Get("X-Forwarded-For"))
	}))
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func startProxy(t *testing.T, upstream string) (*proxy, *url.URL) {
	t.Helper()
	p := newProxy()
	p.upstream = func(u *url.URL) (*url.URL, error) {
		if upstream == "" || u.Hostname() == Machine {
			return nil, nil
		}
		return url.Parse(upstream)
	}
	s := httptest.NewServer(p)
	t.Cleanup(func() {
		s.Close()
		p.close()
	})
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return p, u
}

func TestProxyGoesOutAndNotToThisMachine(t *testing.T) {
	t.Parallel()
	port := outside(t)
	_, way := startProxy(t, "")
	c := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(way)}}
	defer c.CloseIdleConnections()
	get := func(address string) (int, string) {
		t.Helper()
		res, err := c.Get(address)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(text)
	}
	if code, text := get("http://" + Machine + ":" + port + "/a/b"); code != 200 || text != "GET /a/b "+Machine+":"+port+` ""` {
		t.Errorf("%d %s", code, text)
	}
	for _, own := range []string{"127.0.0.1", "localhost", "[::1]", "0.0.0.0"} {
		if code, text := get("http://" + own + ":" + port + "/"); code != http.StatusBadGateway {
			t.Errorf("%s is answered: %d %s", own, code, text)
		}
	}
	res, err := http.Get(way.String())
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("asked for itself, it says %s", res.Status)
	}
}

// connect opens a tunnel through a proxy, and asks for a page in it.
func connect(t *testing.T, way *url.URL, address string) (status, text string) {
	t.Helper()
	c, err := net.Dial("tcp", way.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", address)
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != 200 {
		return res.Status, ""
	}
	fmt.Fprintf(c, "GET /in HTTP/1.0\r\nHost: inner\r\n\r\n")
	raw, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ = strings.Cut(string(raw), "\r\n\r\n")
	return res.Status, text
}

func TestProxyMakesTunnels(t *testing.T) {
	t.Parallel()
	port := outside(t)
	p, way := startProxy(t, "")
	if status, text := connect(t, way, Machine+":"+port); text != `GET /in inner ""` {
		t.Errorf("%s %s", status, text)
	}
	if status, _ := connect(t, way, "127.0.0.1:"+port); !strings.HasPrefix(status, "502") {
		t.Errorf("a tunnel to this machine: %s", status)
	}
	p.close() // what is open ends with the guest
}

// TestProxyUsesTheMachinesOwn: a machine that is itself behind a proxy, with a password, on its own loopback.
func TestProxyUsesTheMachinesOwn(t *testing.T) {
	t.Parallel()
	port := outside(t)
	var asked atomic.Value
	next := newProxy()
	next.upstream = func(*url.URL) (*url.URL, error) { return nil, nil }
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method + " " + r.Host + " " + r.Header.Get("Proxy-Authorization"))
		// Where it leads is this test's server, whatever was asked for.
		if r.Method == http.MethodConnect {
			r.Host = Machine + ":" + port
		} else {
			r.URL.Host = Machine + ":" + port
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		s.Close()
		next.close()
	})
	_, way := startProxy(t, "http://user:word@"+s.Listener.Addr().String())
	if status, text := connect(t, way, "archive.example:443"); text != `GET /in inner ""` {
		t.Errorf("%s %s", status, text)
	}
	if got := asked.Load(); got != "CONNECT archive.example:443 Basic dXNlcjp3b3Jk" {
		t.Errorf("the machine's own proxy was asked %v", got)
	}
	c := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(way)}}
	defer c.CloseIdleConnections()
	res, err := c.Get("http://archive.example/x")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got := asked.Load(); res.StatusCode != 200 || got != "GET archive.example Basic dXNlcjp3b3Jk" {
		t.Errorf("%s, the machine's own proxy was asked %v", res.Status, got)
	}
}
