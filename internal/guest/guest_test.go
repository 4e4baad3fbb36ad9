package guest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuguest/internal/guest/guesttest"
)

// notices collects what the user would be told.
type notices struct {
	mu  sync.Mutex
	all []string
}

func (n *notices) add(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, s)
}

func (n *notices) text() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.all, "\n")
}

// writeKey makes a key file, with a passphrase when one is given, and returns its path and public half.
func writeKey(t testing.TB, name, passphrase string) (string, ssh.PublicKey) {
	t.Helper()
	_, priv, key := newKey(t)
	var block *pem.Block
	var err error
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(priv, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(priv, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, key
}

func newKey(t testing.TB) (ed25519.PublicKey, ed25519.PrivateKey, ssh.PublicKey) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return pub, priv, key
}

// guestFor starts a server with a key that logs in, and the configuration that reaches it.
func guestFor(t testing.TB, opt guesttest.Options) (*guesttest.Server, Config) {
	t.Helper()
	path, pub := writeKey(t, "id", "")
	opt.Keys = append(opt.Keys, pub)
	s := guesttest.New(t, opt)
	home := t.TempDir()
	return s, Config{
		Host: s.Host(), Port: s.Port(), User: "root", Identities: []string{path}, SSHConfig: "none", Home: home,
		KnownHosts: filepath.Join(home, "known_hosts"), ConnectTimeout: 5 * time.Second,
	}
}

func mustDial(t testing.TB, cfg Config) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// within fails the test when f takes longer than d: the calls here must not block for ever.
func within(t *testing.T, d time.Duration, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("still waiting after %v", d)
	}
}

func hintOf(err error) string {
	h, ok := err.(interface{ Hint() string })
	if !ok {
		return ""
	}
	return h.Hint()
}

func short(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func sudoPassword(p string) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) { return []byte(p), nil }
}

// The parallel tests here wait for most of their time, so more of them run at once than there are processors.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f != nil && f.Value.String() == f.DefValue {
		_ = flag.Set("test.parallel", "8")
	}
	os.Exit(m.Run())
}
