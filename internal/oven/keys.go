package oven

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// KeyComment ends the line of authorized_keys that lets us in, so that whoever seals an image finds it.
const KeyComment = "gpuguest-one-time-key"

// Keys are made for one boot: the key that we log in with and the key that the guest shows. No other guest has
// either.
type Keys struct {
	Identity    string // path of the file with the private key
	Authorized  string // its public half as a line of authorized_keys, without a line end
	HostPrivate string // the guest's host key in OpenSSH's format
	HostPublic  string // its public half, "ssh-ed25519 AAAA...", without a line end
}

// NewKeys makes the keys of one boot; the private one is written to the file id_ed25519 in dir, which must not exist.
func NewKeys(dir string) (Keys, error) {
	private, public, err := newKey(KeyComment)
	if err != nil {
		return Keys{}, err
	}
	k := Keys{Identity: filepath.Join(dir, "id_ed25519"), Authorized: public + " " + KeyComment}
	if k.HostPrivate, k.HostPublic, err = newKey("gpuguest-one-time-host-key"); err != nil {
		return Keys{}, err
	}
	f, err := os.OpenFile(k.Identity, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return Keys{}, err
	}
	if _, err := f.WriteString(private); err != nil {
		f.Close()
		return Keys{}, err
	}
	return k, f.Close()
}

func newKey(comment string) (private, public string, err error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", "", err
	}
	block, err := ssh.MarshalPrivateKey(key, comment)
	if err != nil {
		return "", "", err
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return "", "", err
	}
	return string(pem.EncodeToMemory(block)), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))), nil
}

// WriteKnownHosts writes a known_hosts file with the guest's host key and nothing else.
func (k Keys) WriteKnownHosts(file, host string, port int) error {
	line := knownhosts.Normalize(address(host, port)) + " " + k.HostPublic + "\n"
	return os.WriteFile(file, []byte(line), 0o600)
}
