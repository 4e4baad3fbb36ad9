package guest

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// hostKeys checks one hop's host key against known_hosts.
type hostKeys struct {
	hop    hop
	notice func(string)
	record bool // an accepted new key is written down
	shared *KnownHosts
}

// KnownHosts keeps what known_hosts files say for as long as they do not change. Many guests that share one keep
// their names in one file, and a thousand connections that each read its thousand lines cost more than all else
// that they do.
type KnownHosts struct {
	mu   sync.Mutex
	read map[string]*knownKeys // by the files' names
}

// knownKeys is what a set of files said.
type knownKeys struct {
	stamp       string // of the files, when they were read
	check       ssh.HostKeyCallback
	authorities []authority
}

// authority is one line of known_hosts with a certificate authority.
type authority struct {
	hosts []string
	key   string // marshalled
}

// keys reads the files, or remembers what they said.
func (k hostKeys) keys() (*knownKeys, error) {
	if k.shared == nil {
		return k.readKeys("")
	}
	k.shared.mu.Lock()
	defer k.shared.mu.Unlock()
	name, stamp := strings.Join(k.hop.knownHosts, "\x00"), ""
	for _, f := range k.hop.knownHosts {
		if st, err := os.Stat(f); err == nil {
			stamp += fmt.Sprintf("%d %d;", st.Size(), st.ModTime().UnixNano())
		} else {
			stamp += "none;"
		}
	}
	if old := k.shared.read[name]; old != nil && old.stamp == stamp {
		return old, nil
	}
	// The stamp is older than what is read: what is written in between is read again.
	now, err := k.readKeys(stamp)
	if err != nil {
		return nil, err
	}
	if k.shared.read == nil {
		k.shared.read = make(map[string]*knownKeys)
	}
	k.shared.read[name] = now
	return now, nil
}

func (k hostKeys) readKeys(stamp string) (*knownKeys, error) {
	check, err := k.readDatabase()
	if err != nil {
		return nil, err
	}
	return &knownKeys{stamp: stamp, check: check, authorities: k.readAuthorities()}, nil
}

func (k hostKeys) database() (ssh.HostKeyCallback, error) {
	keys, err := k.keys()
	if err != nil {
		return nil, err
	}
	return keys.check, nil
}

// name is what known_hosts knows the hop by.
func (k hostKeys) name() string {
	if k.hop.hostKey != "" {
		return joinHostPort(k.hop.hostKey, 22)
	}
	return k.hop.addr()
}

// readDatabase reads the files that exist. A line that cannot be read (an unknown key type, say) is left out,
// as ssh does: one such line must not make every host unknown.
func (k hostKeys) readDatabase() (ssh.HostKeyCallback, error) {
	var files []string
	for _, f := range k.hop.knownHosts {
		if st, err := os.Stat(f); err == nil && st.Mode().IsRegular() {
			files = append(files, f)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	check, err := knownhosts.New(files...)
	if err == nil {
		return check, nil
	}
	dir, terr := os.MkdirTemp("", "gpuguest-known-hosts-")
	if terr != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	readable := make([]string, len(files))
	original := map[string]string{}
	for i, f := range files {
		data, rerr := os.ReadFile(f)
		if rerr != nil {
			return nil, rerr
		}
		lines := strings.Split(string(data), "\n")
		for j, line := range lines {
			one := filepath.Join(dir, "line")
			if werr := os.WriteFile(one, []byte(line+"\n"), 0o600); werr != nil {
				return nil, werr
			}
			if _, lerr := knownhosts.New(one); lerr != nil {
				k.notice(fmt.Sprintf("%s:%d: line not understood, left out", f, j+1))
				lines[j] = ""
			}
		}
		readable[i] = filepath.Join(dir, fmt.Sprintf("known_hosts%d", i))
		original[readable[i]] = f
		if werr := os.WriteFile(readable[i], []byte(strings.Join(lines, "\n")), 0o600); werr != nil {
			return nil, werr
		}
	}
	check, err = knownhosts.New(readable...)
	if err != nil {
		return nil, err
	}
	return func(host string, remote net.Addr, key ssh.PublicKey) error {
		err := check(host, remote, key)
		var mismatch *knownhosts.KeyError
		if errors.As(err, &mismatch) {
			for i := range mismatch.Want {
				mismatch.Want[i].Filename = original[mismatch.Want[i].Filename]
			}
		}
		var revoked *knownhosts.RevokedError
		if errors.As(err, &revoked) {
			revoked.Revoked.Filename = original[revoked.Revoked.Filename]
		}
		return err
	}, nil
}

// plainAlgorithms lists host key algorithms in the order in which they are asked for when nothing is known.
// RSA and SHA-1 is left out, as in OpenSSH since 8.8.
var plainAlgorithms = []string{
	ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
	ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
}

var certAlgorithms = []string{
	ssh.CertAlgoED25519v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01,
	ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01,
}

// algorithms orders the host key algorithms so that the server shows a key of a type that is known.
// Otherwise a host known by its ed25519 key would show its ECDSA key and look changed. Certificates are
// asked for only where known_hosts names an authority for the host: a certificate without one is refused.
func (k hostKeys) algorithms(check ssh.HostKeyCallback) []string {
	var known []string
	// A key that no file can hold makes the database tell what it does hold.
	blank, err := ssh.NewPublicKey(ed25519.PublicKey(make([]byte, ed25519.PublicKeySize)))
	if err == nil {
		var mismatch *knownhosts.KeyError
		if errors.As(check(k.name(), noAddr{}, blank), &mismatch) {
			authorities := k.authorities()
			for _, w := range mismatch.Want {
				if authorities[string(w.Key.Marshal())] {
					continue
				}
				switch t := w.Key.Type(); t {
				case ssh.KeyAlgoRSA:
					known = append(known, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
				default:
					known = append(known, t)
				}
			}
			if len(authorities) > 0 {
				known = append(append([]string{}, certAlgorithms...), known...)
			}
		}
	}
	out := known[:0:0]
	seen := map[string]bool{}
	for _, a := range append(known, plainAlgorithms...) {
		if !seen[a] {
			seen[a] = true
			out = append(out, a)
		}
	}
	return out
}

// authorities are the certificate authorities that known_hosts trusts for this host, by marshalled key.
func (k hostKeys) authorities() map[string]bool {
	found := map[string]bool{}
	name := knownhosts.Normalize(k.name())
	keys, err := k.keys()
	if err != nil {
		return found
	}
	for _, a := range keys.authorities {
		if matchPatterns(a.hosts, name) {
			found[a.key] = true
		}
	}
	return found
}

// readAuthorities reads the lines with a certificate authority. They are few; the others are not parsed.
func (k hostKeys) readAuthorities() []authority {
	var all []authority
	for _, f := range k.hop.knownHosts {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for line := range bytes.Lines(data) {
			if !bytes.Contains(line, []byte("@cert-authority")) {
				continue
			}
			marker, hosts, key, _, _, err := ssh.ParseKnownHosts(append(bytes.Clone(line), '\n'))
			if err == nil && marker == "cert-authority" {
				all = append(all, authority{hosts, string(key.Marshal())})
			}
		}
	}
	return all
}

// noAddr stands for an address where only the name matters.
type noAddr struct{}

func (noAddr) Network() string { return "tcp" }
func (noAddr) String() string  { return "0.0.0.0:0" }

// check judges the key that the server showed. Its errors are *Error with ErrHostKey.
func (k hostKeys) check(db ssh.HostKeyCallback, remote net.Addr, key ssh.PublicKey) error {
	if _, _, err := net.SplitHostPort(remote.String()); err != nil {
		remote = noAddr{} // through a jump host there is no address, and the name decides anyway
	}
	err := db(k.name(), remote, key)
	if err == nil {
		return nil
	}
	shown := key.Type() + " " + ssh.FingerprintSHA256(key)
	var revoked *knownhosts.RevokedError
	if errors.As(err, &revoked) {
		return &Error{Kind: ErrHostKey, Host: k.hop.name,
			Msg:  fmt.Sprintf("the host key %s is revoked by %s:%d", shown, revoked.Revoked.Filename, revoked.Revoked.Line),
			hint: "do not go on before you know why; then give the guest a new host key"}
	}
	var mismatch *knownhosts.KeyError
	if !errors.As(err, &mismatch) {
		return &Error{Kind: ErrHostKey, Host: k.hop.name, Msg: "host key " + shown, Err: err,
			hint: "the guest shows a host certificate; look at its dates and principals"}
	}
	file := ""
	if len(k.hop.knownHosts) > 0 {
		file = k.hop.knownHosts[0]
	}
	if len(mismatch.Want) > 0 {
		w := mismatch.Want[0]
		for _, candidate := range mismatch.Want {
			if candidate.Key.Type() == key.Type() {
				w = candidate
			}
		}
		return &Error{Kind: ErrHostKey, Host: k.hop.name,
			Msg: fmt.Sprintf("the host key has changed: %s:%d has %s %s, the guest shows %s",
				w.Filename, w.Line, w.Key.Type(), ssh.FingerprintSHA256(w.Key), shown),
			hint: fmt.Sprintf("if the guest was made anew: ssh-keygen -f %s -R '%s'; if not, somebody may stand in between",
				w.Filename, knownhosts.Normalize(k.name()))}
	}
	if k.hop.strict {
		return &Error{Kind: ErrHostKey, Host: k.hop.name,
			Msg:  fmt.Sprintf("the host key %s is not known", shown),
			hint: fmt.Sprintf("compare it with the guest's console, then add it to %s, or leave out --host-key-check=strict", file)}
	}
	if !k.record || file == "" {
		return nil
	}
	added, err := k.add(key)
	switch {
	case err != nil && errors.Is(err, ErrHostKey):
		return err
	case err != nil:
		k.notice(fmt.Sprintf("%s: host key %s accepted, but not written down: %v", k.hop.name, shown, err))
	case added:
		k.notice(fmt.Sprintf("%s: new host key %s added to %s", k.hop.name, shown, file))
	}
	return nil
}

// add appends the key to the first known_hosts file. Another gpuguest may do the same for the same guest
// at the same moment, so the file is judged once more under its lock.
func (k hostKeys) add(key ssh.PublicKey) (added bool, err error) {
	path := k.hop.knownHosts[0]
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return false, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := lockFile(f); err != nil {
		return false, err
	}
	db, err := k.database()
	if err != nil {
		return false, err
	}
	switch err := db(k.name(), noAddr{}, key); {
	case err == nil:
		return false, nil
	default:
		var mismatch *knownhosts.KeyError
		if !errors.As(err, &mismatch) || len(mismatch.Want) > 0 {
			return false, &Error{Kind: ErrHostKey, Host: k.hop.name, Msg: "the host key was made known meanwhile, as another", Err: err}
		}
	}
	old, err := io.ReadAll(f)
	if err != nil {
		return false, err
	}
	host := knownhosts.Normalize(k.name())
	if k.hop.hash || isHashed(old) {
		host = knownhosts.HashHostname(host)
	}
	line := host + " " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + "\n"
	if len(old) > 0 && old[len(old)-1] != '\n' {
		line = "\n" + line
	}
	_, err = f.WriteString(line)
	return err == nil, err
}

// isHashed reports whether the file's last entry hides its host name; a new entry follows suit.
func isHashed(data []byte) bool {
	hashed := false
	for _, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line != "" && line[0] != '#' && line[0] != '@' {
			hashed = strings.HasPrefix(line, "|1|")
		}
	}
	return hashed
}
