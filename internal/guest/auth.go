package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/user"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// secrets keeps what the user typed for as long as the process lives, so that a reconnect after a reboot
// asks nothing twice. It is shared by all connections to one guest and never printed.
type secrets struct {
	mu     sync.Mutex
	asking sync.Mutex // one question at a time, even from overlapping connection attempts
	text   map[string][]byte
	keys   map[string]ssh.Signer
}

func newSecrets() *secrets {
	return &secrets{text: map[string][]byte{}, keys: map[string]ssh.Signer{}}
}

func (s *secrets) get(key string) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.text[key]
	return v, ok
}

func (s *secrets) put(key string, v []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v == nil {
		delete(s.text, key)
		return
	}
	s.text[key] = bytes.Clone(v)
}

func localUser() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return os.Getenv("USER")
}

// login gathers what one hop can be offered, and remembers what was, for the error.
type login struct {
	ctx      context.Context // ends with the handshake's clock too
	hop      hop
	cfg      Config
	secrets  *secrets
	pause    func() (resume func()) // stops the handshake's clock while the user types
	patience time.Duration          // how long the agent may take to tell its keys

	mu    sync.Mutex
	tried []string
}

func (l *login) note(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.tried, what) {
		l.tried = append(l.tried, what)
	}
}

func (l *login) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.tried) == 0 {
		return "nothing could be offered: no key file, no agent, no password"
	}
	return "tried " + strings.Join(l.tried, ", ")
}

var errNobodyToAsk = errors.New("no password can be asked for here")

// ask asks once for everybody who waits for the same answer. fresh means that the remembered one was wrong.
func (l *login) ask(key, prompt string, fresh bool) ([]byte, error) {
	before, _ := l.secrets.get(key)
	l.secrets.asking.Lock()
	defer l.secrets.asking.Unlock()
	if v, ok := l.secrets.get(key); ok && (!fresh || !bytes.Equal(v, before)) {
		return v, nil
	}
	if l.cfg.Password == nil {
		return nil, errNobodyToAsk
	}
	if err := l.ctx.Err(); err != nil {
		return nil, err
	}
	defer l.pause()()
	v, err := l.cfg.Password(l.ctx, prompt)
	if err != nil {
		return nil, err
	}
	if fresh && bytes.Equal(v, before) {
		return nil, errors.New("the same password again")
	}
	l.secrets.put(key, v)
	return v, nil
}

const maxPasswordTries = 3

// methods is what the server is offered, in order. agentConn is closed by the caller after the handshake.
func (l *login) methods() (auth []ssh.AuthMethod, agentConn io.Closer) {
	var signers []ssh.Signer
	files := l.fileSigners()
	fromAgent, agentConn := l.agentSigners(files)
	if l.hop.explicit {
		signers = append(files, fromAgent...)
	} else {
		signers = append(fromAgent, files...)
	}
	signers = distinct(signers)
	if len(signers) > 0 {
		auth = append(auth, ssh.PublicKeys(signers...))
	}
	if l.cfg.Password != nil {
		key := "password " + l.hop.user + "@" + l.hop.addr()
		tries := 0
		password := func(prompt string) (string, error) {
			tries++
			v, err := l.ask(key, prompt, tries > 1)
			return string(v), err
		}
		prompt := fmt.Sprintf("%s@%s's password: ", l.hop.user, l.hop.name)
		auth = append(auth,
			ssh.RetryableAuthMethod(ssh.KeyboardInteractive(func(_, instruction string, questions []string, echos []bool) ([]string, error) {
				answers := make([]string, len(questions))
				for i, q := range questions {
					l.note("keyboard-interactive")
					if len(questions) == 1 && !echos[i] {
						a, err := password(fmt.Sprintf("%s@%s: %s", l.hop.user, l.hop.name, q))
						if err != nil {
							return nil, err
						}
						answers[i] = a
						continue
					}
					resume := l.pause()
					a, err := l.cfg.Password(l.ctx, strings.TrimSpace(instruction+" "+q)+" ")
					resume()
					if err != nil {
						return nil, err
					}
					answers[i] = string(a)
				}
				return answers, nil
			}), maxPasswordTries),
			ssh.RetryableAuthMethod(ssh.PasswordCallback(func() (string, error) {
				l.note("password")
				return password(prompt)
			}), maxPasswordTries))
	}
	return auth, agentConn
}

// distinct drops keys offered twice: each offer counts against the server's MaxAuthTries.
func distinct(in []ssh.Signer) []ssh.Signer {
	seen := map[string]bool{}
	var out []ssh.Signer
	for _, s := range in {
		k := string(s.PublicKey().Marshal())
		if !seen[k] {
			seen[k] = true
			out = append(out, s)
		}
	}
	return out
}

func (l *login) agentSigners(files []ssh.Signer) ([]ssh.Signer, io.Closer) {
	if l.hop.agent == "" {
		return nil, nil
	}
	var d net.Dialer
	conn, err := d.DialContext(l.ctx, "unix", l.hop.agent)
	if err != nil {
		l.note("agent (" + err.Error() + ")")
		return nil, nil
	}
	stop := context.AfterFunc(l.ctx, func() { _ = conn.Close() })
	closer := closerFunc(func() error { stop(); return conn.Close() })
	// One that hangs is done without: a key file may log in. While it signs it may wait for the user, who
	// touches a token or confirms, so that then only the handshake's clock ends it.
	slow := time.AfterFunc(l.patience, func() { _ = conn.Close() })
	signers, err := agent.NewClient(conn).Signers()
	if !slow.Stop() && err != nil {
		err = errors.New("it does not answer")
	}
	if err != nil {
		l.note("agent (" + err.Error() + ")")
		return nil, closer
	}
	if l.hop.only {
		wanted := map[string]bool{}
		for _, f := range files {
			wanted[string(f.PublicKey().Marshal())] = true
		}
		for _, path := range l.hop.identities {
			if pub := readPublic(path); pub != nil {
				wanted[string(pub.Marshal())] = true
			}
		}
		signers = slices.DeleteFunc(signers, func(s ssh.Signer) bool { return !wanted[string(s.PublicKey().Marshal())] })
	}
	for _, s := range signers {
		l.note("agent key " + ssh.FingerprintSHA256(s.PublicKey()))
	}
	return signers, closer
}

type closerFunc func() error

func (f closerFunc) Close() error { return f() }

func (l *login) fileSigners() []ssh.Signer {
	var out []ssh.Signer
	for _, path := range l.hop.identities {
		s, err := l.keyFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !l.hop.explicit:
		case err != nil:
			l.note(path + " (" + reason(err) + ")")
		default:
			l.note(path)
			if cert := readCertificate(path, s); cert != nil {
				out = append(out, cert)
			}
			out = append(out, s)
		}
	}
	return out
}

// reason is an error without the path that it repeats.
func reason(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

func (l *login) keyFile(path string) (ssh.Signer, error) {
	l.secrets.mu.Lock()
	s, ok := l.secrets.keys[path]
	l.secrets.mu.Unlock()
	if ok {
		return s, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s, err = ssh.ParsePrivateKey(data)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		if l.cfg.Password == nil {
			return nil, errors.New("has a passphrase, and none can be asked for here")
		}
		pub := locked.PublicKey
		if pub == nil {
			pub = readPublic(path)
		}
		k := &lockedKey{login: l, path: path, data: data, pub: pub}
		if pub != nil {
			return k, nil
		}
		return k.unlock()
	}
	if err != nil {
		return nil, err
	}
	l.keep(path, s)
	return s, nil
}

func (l *login) keep(path string, s ssh.Signer) {
	l.secrets.mu.Lock()
	defer l.secrets.mu.Unlock()
	l.secrets.keys[path] = s
}

func readPublic(path string) ssh.PublicKey {
	data, err := os.ReadFile(path + ".pub")
	if err != nil {
		return nil
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		return nil
	}
	return pub
}

// readCertificate is the signer with the certificate beside its key file, as ssh offers it; nil: none.
func readCertificate(path string, s ssh.Signer) ssh.Signer {
	data, err := os.ReadFile(path + "-cert.pub")
	if err != nil {
		return nil
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		return nil
	}
	cert, ok := pub.(*ssh.Certificate)
	if !ok {
		return nil
	}
	cs, err := ssh.NewCertSigner(cert, s)
	if err != nil {
		return nil
	}
	return cs
}

// lockedKey is a key file with a passphrase. It asks only when the server has said that it would accept
// the key, so that nobody types a passphrase for nothing.
type lockedKey struct {
	login *login
	path  string
	data  []byte
	pub   ssh.PublicKey
}

func (k *lockedKey) PublicKey() ssh.PublicKey { return k.pub }

func (k *lockedKey) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	s, err := k.unlock()
	if err != nil {
		return nil, err
	}
	return s.Sign(rand, data)
}

// SignWithAlgorithm makes RSA keys sign with SHA-2, as servers of today demand.
func (k *lockedKey) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	s, err := k.unlock()
	if err != nil {
		return nil, err
	}
	if as, ok := s.(ssh.AlgorithmSigner); ok {
		return as.SignWithAlgorithm(rand, data, algorithm)
	}
	return s.Sign(rand, data)
}

func (k *lockedKey) unlock() (ssh.Signer, error) {
	k.login.secrets.mu.Lock()
	s, ok := k.login.secrets.keys[k.path]
	k.login.secrets.mu.Unlock()
	if ok {
		return s, nil
	}
	for try := range maxPasswordTries {
		pass, err := k.login.ask("key "+k.path, fmt.Sprintf("passphrase of %s: ", k.path), try > 0)
		if err != nil {
			return nil, fmt.Errorf("passphrase of %s: %w", k.path, err)
		}
		s, err = ssh.ParsePrivateKeyWithPassphrase(k.data, pass)
		if err == nil {
			k.login.keep(k.path, s)
			return s, nil
		}
	}
	k.login.secrets.put("key "+k.path, nil)
	k.login.note(k.path + " (wrong passphrase)")
	return nil, fmt.Errorf("%s: wrong passphrase", k.path)
}
