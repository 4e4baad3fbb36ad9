package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gpuguest/internal/guest/guesttest"
	"gpuguest/internal/oven"
)

// provisioner is the shell-local of docs/packer/nvidia.pkr.hcl that calls gpuguest.
type provisioner struct {
	block    string // as it stands there
	env, run []string
}

func packerProvisioner(t *testing.T) provisioner {
	t.Helper()
	_, text := doc(t, filepath.Join("packer", "nvidia.pkr.hcl"))
	block := regexp.MustCompile(`(?ms)^  provisioner "shell-local" \{\n.*?^  \}\n`).FindString(text)
	list := func(name string) []string {
		body := regexp.MustCompile(`(?ms)^    ` + name + `\s*= \[\n(.*?)^    \]\n`).FindStringSubmatch(block)
		if body == nil {
			t.Fatalf("no %s in the template's provisioner:\n%s", name, block)
		}
		var all []string
		for line := range strings.Lines(body[1]) {
			// HCL's escapes in these strings are Go's.
			s, err := strconv.Unquote(strings.TrimSuffix(strings.TrimSpace(line), ","))
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			all = append(all, s)
		}
		return all
	}
	return provisioner{block: block, env: list("environment_vars"), run: list("inline")}
}

// packerGuest is a guest that has its driver, and the key that Packer logs in with.
func packerGuest(t *testing.T) (srv *guesttest.Server, identity string) {
	t.Helper()
	recording, err := os.ReadFile(filepath.Join("..", "..", "testdata", "guests", "debian12-t4-driver535.txt"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := oven.NewKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(keys.Authorized))
	if err != nil {
		t.Fatal(err)
	}
	return guesttest.New(t, guesttest.Options{User: "root", Keys: []ssh.PublicKey{public}, Exec: convergedGuest(recording)}), keys.Identity
}

// TestPackersCommandLineReachesTheGuest runs what the template has Packer run, with what Packer would put in for the
// communicator's host, port, user and key.
func TestPackersCommandLineReachesTheGuest(t *testing.T) {
	t.Parallel()
	p := packerProvisioner(t)
	srv, identity := packerGuest(t)
	tmp := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-e", "-c", strings.Join(p.run, "\n"))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TMPDIR=" + tmp}
	fill := strings.NewReplacer("${build.Host}", srv.Host(), "${build.Port}", strconv.Itoa(srv.Port()), "${build.User}", "root",
		"${var.private_key}", identity, "${var.gpus}", "--device 10de:1eb8")
	for _, e := range p.env {
		cmd.Env = append(cmd.Env, fill.Replace(e))
	}
	out, err := cmd.CombinedOutput()
	if err != nil || srv.Connections() == 0 {
		t.Fatalf("%v, %d connections\n%s", err, srv.Connections(), out)
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

// TestPacker has a real Packer (Debian 12's is 1.6.6) judge the template and run its provisioner, with a builder that
// builds nothing in place of QEMU's.
func TestPacker(t *testing.T) {
	if os.Getenv("GPUGUEST_PACKER") == "" {
		t.Skip("GPUGUEST_PACKER is not set: make test-packer runs it")
	}
	program, err := exec.LookPath("packer")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	srv, identity := packerGuest(t)
	dir := t.TempDir()
	packer := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "CHECKPOINT_DISABLE=1", "PACKER_NO_COLOR=1"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("packer %s: %v", args[0], err)
		}
		return string(out)
	}
	template, _ := doc(t, filepath.Join("packer", "nvidia.pkr.hcl"))
	if template, err = filepath.Abs(template); err != nil {
		t.Fatal(err)
	}
	if out := packer("fmt", "-check", template); t.Failed() {
		t.Logf("%s", out)
	}
	if out := packer("validate", "-var", "image="+identity, "-var", "image_checksum=none", "-var", "seed="+dir, "-var", "private_key="+identity, template); t.Failed() {
		t.Logf("%s", out)
	}
	one := filepath.Join(dir, "one.pkr.hcl")
	text := fmt.Sprintf(`variable "gpus" {
  type    = string
  default = "--device 10de:1eb8"
}
variable "private_key" {
  type    = string
  default = %[4]q
}
source "null" "guest" {
  communicator         = "ssh"
  ssh_host             = %[1]q
  ssh_port             = %[2]d
  ssh_username         = "root"
  ssh_private_key_file = var.private_key
}
build {
  sources = ["source.null.guest"]
%[3]s}
`, srv.Host(), srv.Port(), packerProvisioner(t).block, identity)
	if err := os.WriteFile(one, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out := packer("build", one)
	for _, want := range []string{"Connected to SSH", "done, driver 535", "Builds finished"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in what Packer says:\n%s", want, out)
		}
	}
}
