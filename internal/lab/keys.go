package lab

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

// Keys are the lab's own: one client key every guest accepts for root, debian
// and worker, and one host key every guest has, so that a client can know it
// before it connects. They are made once per cache and worth nothing outside.
type Keys struct {
	ClientKey     string // path of the private key
	AuthorizedKey string // its public key as a line of authorized_keys
	HostPublicKey string // the guest's, as "ssh-ed25519 AAAA..."
	hostPrivate   string
}

// Users of the guest beside root. Debian's may use sudo without a password,
// worker's sudo asks for WorkerPassword.
const (
	SudoUser       = "debian"
	PasswordUser   = "worker"
	WorkerPassword = "lab password"
)

func ensureKeys(ctx context.Context, cache string) (Keys, error) {
	dir, err := artifact(ctx, cache, "keys", func(dir string) error {
		for _, name := range []string{"id_ed25519", "host_ed25519"} {
			if err := writeKey(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Keys{}, err
	}
	k := Keys{ClientKey: filepath.Join(dir, "id_ed25519")}
	for name, into := range map[string]*string{
		"id_ed25519.pub": &k.AuthorizedKey, "host_ed25519.pub": &k.HostPublicKey, "host_ed25519": &k.hostPrivate,
	} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return Keys{}, err
		}
		*into = string(data)
	}
	return k, nil
}

func writeKey(path string) error {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(private, "gpuguest lab")
	if err != nil {
		return err
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return err
	}
	if err := writeFile(path, string(pem.EncodeToMemory(block)), 0o600); err != nil {
		return err
	}
	return writeFile(path+".pub", string(ssh.MarshalAuthorizedKey(signer.PublicKey())), 0o644)
}
