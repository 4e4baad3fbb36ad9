package oven

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
)

// A guest learns of its keys in two ways at once, and takes the one that it knows. cloud-init, where an image has it,
// reads the NoCloud seed. An image without cloud-init has systemd, which from 252 on takes credentials from the
// firmware's SMBIOS strings and has systemd-tmpfiles write what the credential tmpfiles.extra says, before sshd
// starts (systemd.system-credentials(7)). An image with neither, or with a cloud-init that may not use NoCloud and an
// older systemd, cannot be logged in to and is said not to be.

// Seed is what an image is told at its boot, by any oven.
type Seed struct {
	Keys Keys
	User string // "" is root
	// Instance is cloud-init's id of the machine. Another one than at the last boot makes it start from the beginning.
	Instance string
}

func (s Seed) user() string {
	if s.User == "" {
		return rootUser
	}
	return s.User
}

const rootUser = "root"

// seedLabel is the volume label by which cloud-init knows a NoCloud seed ("the volume label must be CIDATA or
// cidata", its reference on the NoCloud datasource).
const seedLabel = "CIDATA"

// UserData is cloud-init's user-data: the guest's host key and the login, and nothing that a baked image should
// not have: the image's own default user is not made, its name is not changed. It holds the private host key.
func (s Seed) UserData() (string, error) {
	login := map[string]any{"name": s.user(), "ssh_authorized_keys": []string{s.Keys.Authorized}}
	if s.user() == rootUser {
		// Else cloud-init locks the password of a root that has one.
		login["lock_passwd"] = false
	} else {
		login["sudo"], login["shell"] = "ALL=(ALL) NOPASSWD:ALL", "/bin/sh"
	}
	config, err := json.MarshalIndent(map[string]any{
		"users":             []any{login},
		"ssh_keys":          map[string]string{"ed25519_private": s.Keys.HostPrivate, "ed25519_public": s.Keys.HostPublic},
		"disable_root":      false,
		"preserve_hostname": true,
	}, "", " ")
	if err != nil {
		return "", err
	}
	// JSON is YAML, and quotes everything.
	return "#cloud-config\n" + string(config) + "\n", nil
}

// MetaData is cloud-init's meta-data.
func (s Seed) MetaData() string { return fmt.Sprintf("{\"instance-id\": %q}\n", s.Instance) }

// Tmpfiles is the same as lines of tmpfiles.d(5), for root alone: the home of somebody else is not known before the
// guest runs. Every boot with the credential adds the key once more to what authorized_keys has. It holds the private host key. "" when the login is not root's.
func (s Seed) Tmpfiles() string {
	if s.user() != rootUser {
		return ""
	}
	coded := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	return strings.Join([]string{
		"d /root/.ssh 0700 root root -",
		"f /root/.ssh/authorized_keys 0600 root root -",
		"w+~ /root/.ssh/authorized_keys - - - - " + coded("\n"+s.Keys.Authorized+"\n"),
		"f+~ /etc/ssh/ssh_host_ed25519_key 0600 root root - " + coded(s.Keys.HostPrivate),
		"f+~ /etc/ssh/ssh_host_ed25519_key.pub 0644 root root - " + coded(s.Keys.HostPublic+"\n"),
		"",
	}, "\n")
}

// credential is Tmpfiles as an SMBIOS string of type 11.
func (s Seed) credential() string {
	lines := s.Tmpfiles()
	if lines == "" {
		return ""
	}
	return "io.systemd.credential.binary:tmpfiles.extra=" + base64.StdEncoding.EncodeToString([]byte(lines))
}

// files are the seed's, by their names on it. An empty vendor-data keeps cloud-init from warning that there is none.
func (s Seed) files() (map[string]string, error) {
	user, err := s.UserData()
	if err != nil {
		return nil, err
	}
	return map[string]string{"user-data": user, "meta-data": s.MetaData(), "vendor-data": ""}, nil
}

// writeDir writes the seed's files into a folder, which is made and is the owner's alone.
func (s Seed) writeDir(dir string) error {
	files, err := s.files()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// WriteISO writes the seed as an ISO 9660 file system with Rock Ridge names, which must not exist yet. A folder beside
// it, of its name with ".d", is used meanwhile.
func (s Seed) WriteISO(path string) (err error) {
	dir := path + ".d"
	if err := s.writeDir(dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	image, err := iso9660.Create(file.New(f, false), 0, 0, 0, dir)
	if err == nil {
		// ECMA-119 fills identifiers up with blanks, to 32 here.
		err = image.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: fmt.Sprintf("%-32s", seedLabel)})
	}
	if err = errors.Join(err, f.Close()); err != nil {
		err = errors.Join(&fs.PathError{Op: "write seed", Path: path, Err: err}, os.Remove(path))
	}
	return err
}
