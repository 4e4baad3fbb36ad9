package guest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"gpuguest/internal/guest/guesttest"
)

func noExec(t *testing.T) guesttest.Exec { return guesttest.Script(t) }

func TestUnreachableGuestsAreToldApart(t *testing.T) {
	t.Parallel()
	s, cfg := guestFor(t, guesttest.Options{Exec: noExec(t)})
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	go func() {
		for {
			c, err := web.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("HTTP/1.0 400 Bad Request\r\n\r\n"))
			_ = c.Close()
		}
	}()
	s.Refuse()
	port := func(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"unknown host", func(c *Config) { c.Host = "no-such-host.invalid" }, "unknown host no-such-host.invalid"},
		{"wrong port", func(*Config) {}, "refused"},
		{"accepts and is silent", func(c *Config) { c.Port = port(silent); c.ConnectTimeout = 200 * time.Millisecond }, "no SSH server answered"},
		{"not SSH", func(c *Config) { c.Port = port(web); c.ConnectTimeout = 500 * time.Millisecond }, "handshake"},
		{"no host", func(c *Config) { c.Host = "" }, "no host"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := cfg
			tt.change(&cfg)
			within(t, 15*time.Second, func() {
				_, err := Dial(t.Context(), cfg)
				if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), tt.want) || hintOf(err) == "" {
					t.Errorf("got %v (hint %q)", err, hintOf(err))
				}
			})
		})
	}
	within(t, 5*time.Second, func() {
		cfg := cfg
		cfg.Port = port(silent)
		if _, err := Dial(short(t, 100*time.Millisecond), cfg); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestLogins(t *testing.T) {
	t.Parallel()
	locked, lockedPub := writeKey(t, "locked", "open sesame")
	legacy, legacyPub := writeLegacyKey(t, "open sesame")
	other, _ := writeKey(t, "other", "")
	for _, tt := range []struct {
		name    string
		server  guesttest.Options
		key     string
		answers []string // given in order to each question
		asked   string   // part of the last question
		want    string   // part of the error; "": the login works
	}{
		{name: "password", server: guesttest.Options{Password: "pw"}, answers: []string{"pw"}, asked: "root@127.0.0.1's password"},
		{name: "password at the second try", server: guesttest.Options{Password: "pw"}, answers: []string{"no", "pw"}},
		{name: "wrong password", server: guesttest.Options{Password: "pw"}, answers: []string{"a", "b", "c"}, want: "tried"},
		{name: "keyboard-interactive", server: guesttest.Options{Keyboard: "pw"}, answers: []string{"pw"}, asked: "Password: "},
		{name: "key with passphrase", server: guesttest.Options{Keys: []ssh.PublicKey{lockedPub}}, key: locked, answers: []string{"open sesame"}, asked: "passphrase of"},
		{name: "passphrase at the second try", server: guesttest.Options{Keys: []ssh.PublicKey{legacyPub}}, key: legacy, answers: []string{"x", "open sesame"}},
		{name: "passphrase not asked for a key that is not wanted", server: guesttest.Options{Password: "pw"}, key: locked, answers: []string{"pw"}, asked: "password"},
		{name: "another key", server: guesttest.Options{Keys: []ssh.PublicKey{lockedPub}}, key: other, want: "other"},
		{name: "missing key file", server: guesttest.Options{Keys: []ssh.PublicKey{lockedPub}}, key: "/nonexistent/key", want: "/nonexistent/key (no such file"},
		{name: "another user", server: guesttest.Options{User: "debian", Password: "pw"}, answers: []string{"pw", "pw", "pw"}, want: "login as root refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.server.Exec = noExec(t)
			s := guesttest.New(t, tt.server)
			home := t.TempDir()
			cfg := Config{Host: s.Host(), Port: s.Port(), User: "root", SSHConfig: "none", Home: home}
			if tt.key != "" {
				cfg.Identities = []string{tt.key}
			}
			var last string
			var mu sync.Mutex
			if tt.answers != nil {
				left := tt.answers
				cfg.Password = func(_ context.Context, prompt string) ([]byte, error) {
					mu.Lock()
					defer mu.Unlock()
					last = prompt
					if len(left) == 0 {
						return nil, errors.New("no more answers")
					}
					a := left[0]
					left = left[1:]
					return []byte(a), nil
				}
			}
			within(t, 60*time.Second, func() {
				c, err := Dial(t.Context(), cfg)
				if tt.want != "" {
					if !errors.Is(err, ErrAuth) || !strings.Contains(err.Error(), tt.want) || hintOf(err) == "" {
						t.Errorf("got %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(last, tt.asked) {
					t.Errorf("asked %q", last)
				}
				// A second connection asks nothing.
				asked := last
				n, err := c.Redial(t.Context())
				if err != nil || last != asked {
					t.Fatalf("redial: %v", err)
				}
				_ = n.Close()
				_ = c.Close()
			})
		})
	}
}

// writeLegacyKey makes an encrypted PEM key, which does not tell its public half, and that beside it. Its
// key derivation is quick, unlike that of OpenSSH's format, which costs seconds under the race detector.
func writeLegacyKey(t *testing.T, passphrase string) (string, ssh.PublicKey) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	//lint:ignore SA1019 old keys are encrypted so, and gpuguest must read them
	block, err := x509.EncryptPEMBlock(rand.Reader, "EC PRIVATE KEY", der, []byte(passphrase), x509.PEMCipherAES256) //nolint:staticcheck // such keys are out there
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ssh.NewPublicKey(&priv.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "legacy")
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".pub", ssh.MarshalAuthorizedKey(pub), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, pub
}

func TestLoginWithTheAgent(t *testing.T) {
	ring := agent.NewKeyring()
	_, priv, pub := newKey(t)
	if err := ring.Add(agent.AddedKey{PrivateKey: priv}); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(t.TempDir(), "agent")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(ring, c); _ = c.Close() }()
		}
	}()
	s := guesttest.New(t, guesttest.Options{Exec: noExec(t), Keys: []ssh.PublicKey{pub}})
	cfg := Config{Host: s.Host(), Port: s.Port(), User: "root", SSHConfig: "none", Home: t.TempDir(), Agent: sock}
	mustDial(t, cfg)

	cfg.Agent = filepath.Join(t.TempDir(), "gone")
	if _, err := Dial(t.Context(), cfg); !errors.Is(err, ErrAuth) || !strings.Contains(err.Error(), "agent") {
		t.Errorf("got %v", err)
	}
}

// slowAgent is an agent that tells its keys, or does not, and never signs.
type slowAgent struct {
	agent.ExtendedAgent
	lists bool
	end   chan struct{}
}

func (a slowAgent) List() ([]*agent.Key, error) {
	if !a.lists {
		<-a.end
	}
	return a.ExtendedAgent.List()
}

func (a slowAgent) SignWithFlags(ssh.PublicKey, []byte, agent.SignatureFlags) (*ssh.Signature, error) {
	<-a.end
	return nil, errors.New("it never signs")
}

func TestAgentThatHangsDoesNotHangTheLogin(t *testing.T) {
	path, onDisk := writeKey(t, "id", "")
	for _, tt := range []struct {
		name  string
		lists bool
		files []string
		want  string // part of the error; "": the login works
	}{
		{"it tells no keys, and a file logs in", false, []string{path}, ""},
		{"it tells no keys, and nothing else is there", false, nil, "agent (it does not answer)"},
		{"it does not sign", true, nil, "did not end within"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ring := slowAgent{agent.NewKeyring().(agent.ExtendedAgent), tt.lists, make(chan struct{})}
			_, priv, pub := newKey(t)
			if err := ring.Add(agent.AddedKey{PrivateKey: priv}); err != nil {
				t.Fatal(err)
			}
			sock := filepath.Join(t.TempDir(), "agent")
			ln, err := net.Listen("unix", sock)
			if err != nil {
				t.Fatal(err)
			}
			var serving sync.WaitGroup
			t.Cleanup(func() { close(ring.end); _ = ln.Close(); serving.Wait() })
			serving.Go(func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					serving.Go(func() { _ = agent.ServeAgent(ring, c); _ = c.Close() })
				}
			})
			s := guesttest.New(t, guesttest.Options{Exec: noExec(t), Keys: []ssh.PublicKey{pub, onDisk}})
			cfg := Config{Host: s.Host(), Port: s.Port(), User: "root", SSHConfig: "none", Home: t.TempDir(), Agent: sock, Identities: tt.files, ConnectTimeout: time.Second}
			within(t, 20*time.Second, func() {
				c, err := Dial(t.Context(), cfg)
				if err == nil {
					_ = c.Close()
				}
				if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v", err)
				}
			})
		})
	}
}

func TestHostKeys(t *testing.T) {
	t.Run("a new one is added, once, and then known", func(t *testing.T) {
		s, cfg := guestFor(t, guesttest.Options{Exec: noExec(t)})
		var said notices
		cfg.Notice = said.add
		mustDial(t, cfg)
		mustDial(t, cfg)
		data, err := os.ReadFile(cfg.KnownHosts)
		want := knownhosts.Line([]string{s.Addr}, s.PublicKey()) + "\n"
		if err != nil || string(data) != want {
			t.Errorf("known_hosts %q, %v, want %q", data, err, want)
		}
		if n := strings.Count(said.text(), "new host key"); n != 1 {
			t.Errorf("said %d times: %q", n, said.text())
		}
		cfg.HostKeyCheck = Strict
		mustDial(t, cfg)
	})
	t.Run("many clients at once add one line", func(t *testing.T) {
		_, cfg := guestFor(t, guesttest.Options{Exec: noExec(t)})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				c, err := Dial(t.Context(), cfg)
				if err != nil {
					t.Error(err)
					return
				}
				_ = c.Close()
			})
		}
		wg.Wait()
		data, _ := os.ReadFile(cfg.KnownHosts)
		if n := strings.Count(string(data), "\n"); n != 1 {
			t.Errorf("%d lines: %q", n, data)
		}
	})
	t.Run("an unknown one is refused when strict", func(t *testing.T) {
		_, cfg := guestFor(t, guesttest.Options{Exec: noExec(t)})
		cfg.HostKeyCheck = Strict
		_, err := Dial(t.Context(), cfg)
		if !errors.Is(err, ErrHostKey) || !strings.Contains(err.Error(), "not known") || hintOf(err) == "" {
			t.Errorf("got %v", err)
		}
		if pathThere(cfg.KnownHosts) {
			t.Error("known_hosts was written")
		}
	})
	t.Run("a changed one is always refused, with the line and the remedy", func(t *testing.T) {
		s, cfg := guestFor(t, guesttest.Options{Exec: noExec(t)})
		mustDial(t, cfg)
		before, _ := os.ReadFile(cfg.KnownHosts)
		s.Change(func(o *guesttest.Options) { o.HostKeys = []ssh.Signer{guesttest.HostKey(t)} })
		for _, check := range []HostKeyCheck{AcceptNew, Strict} {
			cfg.HostKeyCheck = check
			_, err := Dial(t.Context(), cfg)
			if !errors.Is(err, ErrHostKey) || !strings.Contains(err.Error(), "changed") || !strings.Contains(err.Error(), cfg.KnownHosts+":1") ||
				!strings.Contains(hintOf(err), "ssh-keygen -f "+cfg.KnownHosts+" -R '["+s.Host()+"]:"+fmt.Sprint(s.Port())+"'") {
				t.Errorf("got %v, hint %q", err, hintOf(err))
			}
		}
		if after, _ := os.ReadFile(cfg.KnownHosts); string(after) != string(before) {
			t.Error("known_hosts was changed")
		}
	})
	t.Run("hashed files stay hashed", func(t *testing.T) {
		s, cfg := guestFor(t, guesttest.Options{Exec: noExec(t)})
		first := knownhosts.HashHostname("[elsewhere]:22") + " " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))
		if err := os.WriteFile(cfg.KnownHosts, []byte(first), 0o600); err != nil { // and no newline at its end
			t.Fatal(err)
		}
		mustDial(t, cfg)
		data, _ := os.ReadFile(cfg.KnownHosts)
		if lines := strings.Split(strings.TrimSpace(string(data)), "\n"); len(lines) != 2 || lines[0] != first || !strings.HasPrefix(lines[1], "|1|") {
			t.Errorf("known_hosts %q", data)
		}
		cfg.HostKeyCheck = Strict
		mustDial(t, cfg)
	})
	t.Run("the known type is asked for", func(t *testing.T) {
		ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		ecdsaKey, err := ssh.NewSignerFromKey(ec)
		if err != nil {
			t.Fatal(err)
		}
		for _, known := range []ssh.Signer{ecdsaKey, guesttest.HostKey(t)} {
			s, cfg := guestFor(t, guesttest.Options{Exec: noExec(t), HostKeys: []ssh.Signer{guesttest.HostKey(t), known}})
			if known != ecdsaKey {
				s.Change(func(o *guesttest.Options) { o.HostKeys = []ssh.Signer{ecdsaKey, known} })
			}
			if err := os.WriteFile(cfg.KnownHosts, []byte(knownhosts.Line([]string{s.Addr}, known.PublicKey())+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			mustDial(t, cfg)
		}
	})
	t.Run("a revoked one is refused", func(t *testing.T) {
		s, cfg := guestFor(t, guesttest.Options{Exec: noExec(t)})
		line := "@revoked * " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey()))) + "\n"
		if err := os.WriteFile(cfg.KnownHosts, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Dial(t.Context(), cfg); !errors.Is(err, ErrHostKey) || !strings.Contains(err.Error(), "revoked") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a certificate of a known authority is taken, of another not", func(t *testing.T) {
		ca, wrong := guesttest.HostKey(t), guesttest.HostKey(t)
		key := guesttest.HostKey(t)
		cert := &ssh.Certificate{Key: key.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"127.0.0.1"}, ValidBefore: ssh.CertTimeInfinity}
		if err := cert.SignCert(rand.Reader, ca); err != nil {
			t.Fatal(err)
		}
		signer, err := ssh.NewCertSigner(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		s, cfg := guestFor(t, guesttest.Options{Exec: noExec(t), HostKeys: []ssh.Signer{signer, guesttest.HostKey(t)}})
		write := func(k ssh.PublicKey) {
			line := fmt.Sprintf("@cert-authority [127.0.0.1]:%d %s", s.Port(), ssh.MarshalAuthorizedKey(k))
			if err := os.WriteFile(cfg.KnownHosts, []byte(line), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(ca.PublicKey())
		mustDial(t, cfg)
		write(wrong.PublicKey())
		if _, err := Dial(t.Context(), cfg); !errors.Is(err, ErrHostKey) {
			t.Errorf("got %v", err)
		}
		// With no authority the plain key is what counts.
		cfg.KnownHosts = filepath.Join(t.TempDir(), "empty")
		mustDial(t, cfg)
	})
	t.Run("a line that is not understood does not hide the others", func(t *testing.T) {
		s, cfg := guestFor(t, guesttest.Options{Exec: noExec(t)})
		good := knownhosts.Line([]string{s.Addr}, s.PublicKey())
		if err := os.WriteFile(cfg.KnownHosts, []byte("vm ssh-new AAAA\n"+good+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.HostKeyCheck = Strict
		var said notices
		cfg.Notice = said.add
		mustDial(t, cfg)
		if !strings.Contains(said.text(), cfg.KnownHosts+":1") {
			t.Errorf("notices: %q", said.text())
		}
		s.Change(func(o *guesttest.Options) { o.HostKeys = []ssh.Signer{guesttest.HostKey(t)} })
		if _, err := Dial(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), cfg.KnownHosts+":2") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a file that cannot be written is told, and no obstacle", func(t *testing.T) {
		_, cfg := guestFor(t, guesttest.Options{Exec: noExec(t)})
		cfg.KnownHosts = "/proc/gpuguest/known_hosts"
		var said notices
		cfg.Notice = said.add
		mustDial(t, cfg)
		if !strings.Contains(said.text(), "not written down") {
			t.Errorf("notices: %q", said.text())
		}
	})
}

func TestJumpHosts(t *testing.T) {
	t.Parallel()
	shell := guesttest.NewShell(t)
	path, pub := writeKey(t, "id", "")
	guest := guesttest.New(t, guesttest.Options{Exec: shell.Exec, User: "debian", Keys: []ssh.PublicKey{pub}})
	outer := guesttest.New(t, guesttest.Options{User: "ann", Keys: []ssh.PublicKey{pub}})
	inner := guesttest.New(t, guesttest.Options{User: "bob", Keys: []ssh.PublicKey{pub}})
	home := t.TempDir()
	conf := filepath.Join(home, "config")
	text := fmt.Sprintf(`
Host vm
  HostName %s
  Port %d
  User debian
  ProxyJump bob@inner
Host inner
  HostName 127.0.0.1
  Port %d
  ProxyJump ann@127.0.0.1:%d
Host *
  IdentityFile %s
  UserKnownHostsFile ~/known
`, guest.Host(), guest.Port(), inner.Port(), outer.Port(), path)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Host: "vm", SSHConfig: conf, Home: home, ConnectTimeout: 5 * time.Second, Keepalive: 100 * time.Millisecond}
	shell.Tool("id", "echo 0")
	c := mustDial(t, cfg)
	res, err := c.Run(t.Context(), Command{Script: "echo through"})
	if err != nil || string(res.Stdout) != "through\n" {
		t.Fatalf("got %+v, %v", res, err)
	}
	if c.User() != "debian" || outer.Connections() != 1 || inner.Connections() != 1 {
		t.Errorf("user %s, %d and %d connections", c.User(), outer.Connections(), inner.Connections())
	}
	data, _ := os.ReadFile(filepath.Join(home, "known"))
	if strings.Count(string(data), "\n") != 3 {
		t.Errorf("known hosts: %q", data)
	}
	within(t, 10*time.Second, func() {
		outer.Freeze()
		if _, err := c.Run(t.Context(), Command{Script: "sleep 5"}); !errors.Is(err, ErrDisconnected) {
			t.Errorf("got %v", err)
		}
		outer.Thaw()
	})
	guest.Refuse()
	if _, err := Dial(t.Context(), cfg); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "jump host") {
		t.Errorf("got %v", err)
	}
	inner.Change(func(o *guesttest.Options) { o.Keys = nil; o.Password = "x" })
	if _, err := Dial(t.Context(), cfg); !errors.Is(err, ErrAuth) || !strings.Contains(err.Error(), "inner") {
		t.Errorf("got %v", err)
	}
}

// TestSharedKnownHostsAreReadAgainWhenTheyChange: what is shared by many guests is no older than the file.
func TestSharedKnownHostsAreReadAgainWhenTheyChange(t *testing.T) {
	t.Parallel()
	_, a := guestFor(t, guesttest.Options{})
	_, b := guestFor(t, guesttest.Options{})
	shared := &KnownHosts{}
	file := filepath.Join(t.TempDir(), "known_hosts")
	a.KnownHosts, b.KnownHosts, a.Known, b.Known = file, file, shared, shared
	for _, cfg := range []Config{a, b} {
		var said notices
		cfg.Notice = said.add
		for range 2 {
			if err := mustDial(t, cfg).Close(); err != nil {
				t.Fatal(err)
			}
		}
		if n := strings.Count(said.text(), "new host key"); n != 1 {
			t.Errorf("%d times new: %s", n, said.text())
		}
	}
	if len(shared.read) != 1 {
		t.Fatalf("%d sets of files are remembered", len(shared.read))
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, _, other := newKey(t)
	first, _, _ := strings.Cut(string(text), " ")
	if err := os.WriteFile(file, []byte(first+" "+string(ssh.MarshalAuthorizedKey(other))+"# longer than before: "+string(text[len(text)/2:])), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(short(t, 10*time.Second), a); !errors.Is(err, ErrHostKey) {
		t.Errorf("a changed key: %v", err)
	}
}
