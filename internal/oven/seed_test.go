package oven

import (
	"encoding/base64"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh"
)

func someKeys(t *testing.T) Keys {
	t.Helper()
	k, err := NewKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestUserDataTellsTheGuestOfItsKeys(t *testing.T) {
	t.Parallel()
	keys := someKeys(t)
	for _, user := range []string{"", "root", "cloud-user"} {
		text, err := Seed{Keys: keys, User: user}.UserData()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(text, "#cloud-config\n") {
			t.Errorf("cloud-init knows user-data by its first line, this is %.20q", text)
		}
		var got struct {
			Users []struct {
				Name   string
				Keys   []string `yaml:"ssh_authorized_keys"`
				Lock   *bool    `yaml:"lock_passwd"`
				Sudo   string
				Shell  string
				Groups []string
			}
			HostKeys     map[string]string `yaml:"ssh_keys"`
			DisableRoot  *bool             `yaml:"disable_root"`
			KeepHostname bool              `yaml:"preserve_hostname"`
		}
		dec := yaml.NewDecoder(strings.NewReader(text))
		dec.KnownFields(true)
		if err := dec.Decode(&got); err != nil {
			t.Fatal(err)
		}
		// "default" among the users would make the distribution's own, which is the business of the image's first real boot.
		if len(got.Users) != 1 || len(got.Users[0].Keys) != 1 || got.Users[0].Keys[0] != keys.Authorized {
			t.Fatalf("%q: users %+v", user, got.Users)
		}
		u := got.Users[0]
		if user == "cloud-user" {
			if u.Name != user || u.Lock != nil || u.Sudo == "" {
				t.Errorf("%q: %+v", user, u)
			}
		} else if u.Name != "root" || u.Lock == nil || *u.Lock || u.Sudo != "" {
			t.Errorf("%q: %+v", user, u)
		}
		if got.DisableRoot == nil || *got.DisableRoot || !got.KeepHostname {
			t.Errorf("%q: %s", user, text)
		}
		private, err := ssh.ParsePrivateKey([]byte(got.HostKeys["ed25519_private"]))
		if err != nil {
			t.Fatal(err)
		}
		if public := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(private.PublicKey()))); public != keys.HostPublic || got.HostKeys["ed25519_public"] != public {
			t.Errorf("the host key's halves are not of one key: %s", public)
		}
	}
}

func TestSeedIsAnISOThatCloudInitKnows(t *testing.T) {
	t.Parallel()
	seed := Seed{Keys: someKeys(t), Instance: "i-1"}
	path := filepath.Join(t.TempDir(), "seed.iso")
	if err := seed.WriteISO(path); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the host key is in it: %v %v", st, err)
	}
	if _, err := os.Stat(path + ".d"); err == nil {
		t.Error("the folder it was made from is left")
	}
	f, err := file.OpenFromPath(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// ECMA-119, 8.4: the primary volume descriptor is sector 16, its volume identifier 32 bytes from byte 40 on.
	label := make([]byte, 32)
	if _, err := f.ReadAt(label, 16*2048+40); err != nil || strings.TrimRight(string(label), " ") != "CIDATA" {
		t.Errorf("label %q, %v", label, err)
	}
	image, err := iso9660.Read(f, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	want, err := seed.files()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range want {
		in, err := image.OpenFile("/"+name, os.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(in)
		if err != nil || string(got) != text {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	// libblkid is what the guest itself looks with.
	if out, err := exec.Command("blkid", "-p", "-o", "value", "-s", "LABEL", path).Output(); err == nil && strings.TrimSpace(string(out)) != "CIDATA" {
		t.Errorf("blkid sees the label %q", out)
	}
	if err := seed.WriteISO(path); err == nil {
		t.Error("an existing seed was written over")
	}
}

// TestTmpfilesWriteTheKeys has the real systemd-tmpfiles write into a root like the two that an image may have: one
// with a login and a host key of its own, and one from which all was taken.
func TestTmpfilesWriteTheKeys(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("systemd-tmpfiles")
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs systemd-tmpfiles, and root for its files' owner")
	}
	keys := someKeys(t)
	lines := filepath.Join(t.TempDir(), "oven.conf")
	if err := os.WriteFile(lines, []byte(Seed{Keys: keys}.Tmpfiles()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, earlier := range []string{"", "ssh-ed25519 AAAA somebody"} { // the second without a line end
		root := t.TempDir()
		for _, dir := range []string{"root", "etc/ssh"} {
			if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if earlier != "" {
			if err := os.MkdirAll(filepath.Join(root, "root/.ssh"), 0o700); err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{"root/.ssh/authorized_keys": earlier, "etc/ssh/ssh_host_ed25519_key": strings.Repeat("old ", 200)} {
				if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		if out, err := exec.Command(program, "--root="+root, "--create", lines).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		read := func(name string) string {
			raw, err := os.ReadFile(filepath.Join(root, name))
			if err != nil {
				t.Fatal(err)
			}
			return string(raw)
		}
		got := strings.Fields(strings.ReplaceAll(read("root/.ssh/authorized_keys"), "\n", " | "))
		if want := strings.Fields(strings.TrimSpace(earlier + " | " + keys.Authorized + " |")); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("authorized_keys: %q, want %q", got, want)
		}
		if read("etc/ssh/ssh_host_ed25519_key") != keys.HostPrivate {
			t.Error("another host key than ours")
		}
		if st, err := os.Stat(filepath.Join(root, "etc/ssh/ssh_host_ed25519_key")); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("sshd refuses a host key that others may read: %v %v", st, err)
		}
	}
}

func TestCredentialIsForRootAlone(t *testing.T) {
	t.Parallel()
	keys := someKeys(t)
	if got := (Seed{Keys: keys, User: "debian"}).credential(); got != "" {
		t.Errorf("%q", got)
	}
	got, ok := strings.CutPrefix(Seed{Keys: keys}.credential(), "io.systemd.credential.binary:tmpfiles.extra=")
	if !ok {
		t.Fatal(got)
	}
	lines, err := base64.StdEncoding.DecodeString(got)
	if err != nil || string(lines) != (Seed{Keys: keys}).Tmpfiles() {
		t.Errorf("%q, %v", lines, err)
	}
}

func TestNoTwoBootsShareAKey(t *testing.T) {
	t.Parallel()
	a, b := someKeys(t), someKeys(t)
	if a.Authorized == b.Authorized || a.HostPublic == b.HostPublic || a.HostPrivate == b.HostPrivate {
		t.Error("the keys of two boots are the same")
	}
	if st, err := os.Stat(a.Identity); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	if _, err := NewKeys(filepath.Dir(a.Identity)); err == nil {
		t.Error("a key was written over")
	}
}
