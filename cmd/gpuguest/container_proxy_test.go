package main

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gpuguest/internal/lab"
)

// proxySecret is the password of the lab's proxy, and nothing else has these letters.
const proxySecret = "cormorant-7301"

// watchArguments records every process's arguments, over and over, until it is killed. The environment is for root's
// eyes alone.
const watchArguments = `cat >/root/watch.sh <<'END'
while :; do cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n'; sleep 0.05; done
END
setsid sh /root/watch.sh >/root/watched 2>/dev/null </dev/null &
echo $! >/root/watch.pid`

// testProxy: a guest whose own way to packages is dead gets the driver by a proxy that asks for a password. The
// password is nowhere to be read but in the file for root, and not there either after uninstall.
func testProxy(t *testing.T, w *world) {
	t.Parallel()
	g := w.start(t, w.root(t, "bookworm"), lab.ContainerSpec{})
	g.in(t, `echo 'Acquire::http::Proxy "http://127.0.0.1:9/";' >/etc/apt/apt.conf.d/90lab.new
grep -v ::Proxy /etc/apt/apt.conf.d/90lab >>/etc/apt/apt.conf.d/90lab.new || true
mv /etc/apt/apt.conf.d/90lab.new /etc/apt/apt.conf.d/90lab`)
	before := g.snapshot(t)
	host := strings.Fields(g.in(t, `getent hosts `+lab.ContainerGateway))[0]
	port, passed := serveProxy(t, host, w.port)
	g.in(t, watchArguments)
	logs := t.TempDir()
	proxy := "GPUGUEST_PROXY=http://alice:" + proxySecret + "@" + net.JoinHostPort(lab.ContainerGateway, port)
	// The captive guest cannot fetch anything without it.
	if r := w.run(t, nil, g.install()...); r.code != exitStep {
		t.Fatalf("the guest has another way to its packages: %s", r)
	}
	r := w.run(t, []string{proxy}, g.install("--log-dir", logs)...)
	if r.code != exitDone {
		t.Fatal(r)
	}
	if passed.Load() == 0 {
		t.Error("nothing went by the proxy")
	}
	again := w.run(t, []string{proxy}, g.install("--json")...)
	if again.code != exitDone {
		t.Fatal(again)
	}
	if a := again.report(t); a.Execs > 3 {
		t.Errorf("the second time took %d execs", a.Execs)
	}
	plan := w.run(t, []string{proxy}, slices.Concat([]string{"plan", "--format", "sh"}, g.reach("root"), g.want())...)
	if plan.code != exitDone || !strings.Contains(plan.out, "http://"+lab.ContainerGateway) {
		t.Errorf("the plan does not name the proxy: %s", plan)
	}
	g.in(t, `kill "$(cat /root/watch.pid)"; journalctl --no-pager >/root/journal`)
	if seen := g.in(t, `grep -c gpuguest /root/watched || true`); seen == "0" {
		t.Error("the watcher of processes saw nothing of gpuguest")
	}
	if found := g.in(t, `grep -rlF '`+proxySecret+`' /root /var /tmp /run/log /etc /home 2>/dev/null | grep -v '^/var/lib/gpuguest/proxy/' || true`); found != "" {
		t.Errorf("the password is in the guest, in %s", found)
	}
	if modes := g.in(t, `stat -c '%a %U' /var/lib/gpuguest/proxy /var/lib/gpuguest/proxy/* | sort -u`); modes != "600 root\n700 root" {
		t.Errorf("the proxy's files are\n%s", modes)
	}
	for _, out := range []string{r.out, r.stderr, again.out, again.stderr, plan.out, plan.stderr} {
		if strings.Contains(out, proxySecret) {
			t.Error("the password is in the output")
		}
	}
	err := filepath.WalkDir(logs, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), proxySecret) {
			t.Errorf("the password is in %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	g.in(t, `rm -f /root/watch* /root/journal`)
	w.must(t, exitDone, slices.Concat([]string{"uninstall"}, g.reach("root"))...)
	if d := differences(before, g.snapshot(t)); d != "" {
		t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
	}
	if found := g.in(t, `grep -rlF '`+proxySecret+`' /root /var /tmp /etc 2>/dev/null || true`); found != "" {
		t.Errorf("after uninstall the password is in %s", found)
	}
}

// serveProxy serves a proxy that asks for alice's password. It takes the lab's repository for its own and asks the
// lab's way to the archive for all else. It returns its port and how many requests it let through.
func serveProxy(t *testing.T, host string, repo int) (port string, passed *atomic.Int64) {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	passed = new(atomic.Int64)
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL = r.In.URL
			if r.In.URL.Hostname() == lab.ContainerGateway {
				here := *r.In.URL
				here.Host = fmt.Sprintf("127.0.0.1:%d", repo)
				r.Out.URL, r.Out.Host = &here, here.Host
			}
		},
		Transport: &http.Transport{Proxy: func(r *http.Request) (*url.URL, error) {
			if r.URL.Hostname() == "127.0.0.1" {
				return nil, nil
			}
			return &url.URL{Scheme: "http", Host: net.JoinHostPort(host, "3128")}, nil
		}},
	}
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("alice:"+proxySecret))
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != want {
			rw.Header().Set("Proxy-Authenticate", `Basic realm="lab"`)
			http.Error(rw, "who is it?", http.StatusProxyAuthRequired)
			return
		}
		passed.Add(1)
		r.Header.Del("Proxy-Authorization")
		forward.ServeHTTP(rw, r)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	_, port, err = net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port, passed
}

// TestContainerProxyPrograms has the programs that fetch things read the file that tells a guest of its proxy: each must
// go by it and say the password as it was meant. They are this machine's own, in folders of the test's.
func TestContainerProxyPrograms(t *testing.T) {
	if os.Getenv("GPUGUEST_CONTAINER") == "" {
		t.Skip("GPUGUEST_CONTAINER is not set")
	}
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("alice:c@ke's"))
	var passed atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Proxy-Authorization") {
		case want:
			if r.URL.Host == "mirror.invalid" {
				passed.Add(1)
			}
			http.NotFound(rw, r)
		case "":
			rw.Header().Set("Proxy-Authenticate", `Basic realm="lab"`)
			http.Error(rw, "who is it?", http.StatusProxyAuthRequired)
		default:
			http.Error(rw, "no", http.StatusForbidden)
		}
	}))
	defer server.Close()
	_, file, err := readProxy(strings.Replace(server.URL, "http://", "http://alice:c%40ke%27s@", 1))
	if err != nil {
		t.Fatal(err)
	}
	env, _ := write(t, "env", file)
	for name, script := range map[string]string{
		"curl": `curl -fsSL -o /dev/null http://mirror.invalid/file`,
		"wget": `wget -q -t 1 -O /dev/null http://mirror.invalid/file`,
		"dnf": `dnf -q --installroot="$PWD" --releasever=9 --setopt=reposdir=/nonexistent --setopt=cachedir="$PWD/cache" --setopt=retries=1 ` +
			`--repofrompath=lab,http://mirror.invalid/lab --repo=lab makecache`,
		"zypper": `zypper -q --non-interactive --root "$PWD" addrepo http://mirror.invalid/lab lab && zypper -q --non-interactive --root "$PWD" refresh`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(name); err != nil {
				t.Skipf("no %s on this machine", name)
			}
			passed.Store(0)
			cmd := exec.CommandContext(t.Context(), "sh", "-c", `. "$1"; `+script, "sh", env)
			cmd.Dir = t.TempDir()
			// It fails: the proxy finds nothing. What it says must not hold the password.
			out, _ := cmd.CombinedOutput()
			if passed.Load() == 0 {
				t.Errorf("it does not go by the proxy: %s", out)
			}
			if strings.Contains(string(out), "c%40ke") || strings.Contains(string(out), "c@ke") {
				t.Errorf("it tells the password: %s", out)
			}
		})
	}
}
