package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"gpuguest/internal/choice"
	"gpuguest/internal/guest/guesttest"
	"gpuguest/internal/oven"
	"gpuguest/internal/report"
)

// bootedGuest is an image that an oven booted, as far as its login goes.
type bootedGuest struct {
	oven.Guest
	srv        *guesttest.Server
	keys       oven.Keys
	knownHosts string
}

func (g bootedGuest) Address() (string, int) { return g.srv.Host(), g.srv.Port() }
func (g bootedGuest) User() string           { return "root" }
func (g bootedGuest) Identity() string       { return g.keys.Identity }
func (g bootedGuest) KnownHosts() string     { return g.knownHosts }

func newBootedGuest(t *testing.T, recording string) bootedGuest {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "testdata", "guests", recording+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	keys, err := oven.NewKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	login, _, _, _, err := ssh.ParseAuthorizedKey([]byte(keys.Authorized))
	if err != nil {
		t.Fatal(err)
	}
	host, err := ssh.ParsePrivateKey([]byte(keys.HostPrivate))
	if err != nil {
		t.Fatal(err)
	}
	g := bootedGuest{keys: keys, knownHosts: filepath.Join(dir, "known_hosts"), srv: guesttest.New(t, guesttest.Options{
		User: "root", Keys: []ssh.PublicKey{login}, HostKeys: []ssh.Signer{host}, Exec: convergedGuest(raw),
	})}
	if err := keys.WriteKnownHosts(g.knownHosts, g.srv.Host(), g.srv.Port()); err != nil {
		t.Fatal(err)
	}
	return g
}

// TestABootedImageIsVerifiedAsAGuestIs: the report is the image's, the login the oven's, and nothing of the user's own
// ssh configuration counts.
func TestABootedImageIsVerifiedAsAGuestIs(t *testing.T) {
	t.Parallel()
	for recording, want := range map[string]struct {
		exit  int
		error string
	}{
		"debian12-t4-driver535": {exitDone, ""},
		"debian12-no-gpu":       {exitUnsupported, "no NVIDIA driver"},
	} {
		var out, progress bytes.Buffer
		junit := filepath.Join(t.TempDir(), "smoke.xml")
		a := &app{console: console{in: strings.NewReader(""), out: &out, err: &progress}, json: true, booted: newBootedGuest(t, recording)}
		a.host, a.files.junit = "image.qcow2", junit
		err := a.prove(t.Context(), choice.Want{NoGPU: true}, false)
		if got := exitCode(err); got != want.exit {
			t.Errorf("%s: exit code %d, want %d: %v", recording, got, want.exit, err)
		}
		var got report.Guest
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatalf("%s: %v: %s", recording, err, out.String())
		}
		if got.Host != "image.qcow2" || got.Exit != want.exit || want.error == "" && got.Driver != "535.309.01" {
			t.Errorf("%s: %+v", recording, got)
		}
		if want.error != "" && (got.Error == nil || !strings.Contains(got.Error.Message, want.error)) {
			t.Errorf("%s: %+v", recording, got.Error)
		}
		if xml, err := os.ReadFile(junit); err != nil || !bytes.Contains(xml, []byte("image.qcow2")) {
			t.Errorf("%s: %v: %s", recording, err, xml)
		}
	}
}

// TestAnotherHostKeyOfABootedImageIsRefused: whoever took the port over meanwhile does not get the login.
func TestAnotherHostKeyOfABootedImageIsRefused(t *testing.T) {
	t.Parallel()
	g := newBootedGuest(t, "debian12-t4-driver535")
	g.srv.Change(func(o *guesttest.Options) { o.HostKeys = []ssh.Signer{guesttest.HostKey(t)} })
	a := &app{console: console{in: strings.NewReader(""), out: &bytes.Buffer{}, err: &bytes.Buffer{}}, booted: g}
	a.host = "image.qcow2"
	err := a.prove(t.Context(), choice.Want{NoGPU: true}, false)
	if exitCode(err) != exitUnreachable || !strings.Contains(err.Error(), "host key has changed") {
		t.Error(err)
	}
	if n := len(g.srv.Commands()); n > 0 {
		t.Errorf("%d commands reached it", n)
	}
}

// TestVFIOLeavesTheMachineToTheOven: QEMU refuses an accelerator that is given twice.
func TestVFIOLeavesTheMachineToTheOven(t *testing.T) {
	t.Parallel()
	args := withoutMachine([]string{"-machine", "q35,accel=kvm", "-cpu", "host", "-device", "vfio-pci,host=0000:41:00.0"})
	if got := strings.Join(args, " "); got != "-cpu host -device vfio-pci,host=0000:41:00.0" {
		t.Error(got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (smoke{vfio: []string{"41:00.0"}}).spec(ctx, &app{}); err == nil || !strings.HasPrefix(err.Error(), "--vfio: ") {
		t.Error(err)
	}
}
