package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/engine"
	"gpuguest/internal/lab"
)

// smokeRun is what gpuguest smoke did with an image.
type smokeRun struct {
	engine.Report
	exit   int
	stderr string
	took   time.Duration
}

// smokeImage runs gpuguest smoke on an image and proves that the image is as it was.
func smokeImage(t *testing.T, image string, args ...string) smokeRun {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	before, err := sha256File(image)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, append([]string{"smoke", image, "--json"}, args...)...)
	tmp := t.TempDir()
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	start := time.Now()
	err = cmd.Run()
	run := smokeRun{stderr: complaint.String(), took: time.Since(start)}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		run.exit = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out.Bytes(), &run.Report); err != nil {
		t.Fatalf("%v: %s%s", err, out.Bytes(), run.stderr)
	}
	after, err := sha256File(image)
	if err != nil || after != before {
		t.Errorf("the image was written to (%v)", err)
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("%v is left (%v)", left, err)
	}
	return run
}

// TestVMSmoke boots images in a real QEMU: one from which every login and every host key was taken, as from a baked
// one, and which has no driver; and one in which there is nothing. Neither has cloud-init: the keys come by systemd's
// credentials.
func TestVMSmoke(t *testing.T) {
	vmTier(t)
	t.Parallel()
	image, err := lab.Build(t.Context(), lab.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tool := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		return string(out)
	}
	raw, sealed := filepath.Join(dir, "sealed.raw"), filepath.Join(dir, "sealed.qcow2")
	tool("cp", "--sparse=always", image.Disk, raw)
	for _, name := range []string{"/root/.ssh/authorized_keys", "/root/.ssh", "/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_ed25519_key.pub"} {
		how := "rm "
		if name == "/root/.ssh" {
			how = "rmdir "
		}
		// The lab's one partition begins at sector 2048.
		tool("debugfs", "-w", "-R", how+name, raw+"?offset=1048576")
	}
	// debugfs exits 0 whatever becomes of its commands. The lab's machine-id is empty from the start, which is how a
	// sealed one must be: systemd does not boot without the file.
	for dir, is := range map[string]struct{ there, gone string }{"/root": {"/.profile/", "/.ssh/"}, "/etc/ssh": {"/moduli/", "/ssh_host_"}, "/etc": {"/machine-id/0/", "/nothing/"}} {
		if list := tool("debugfs", "-R", "ls -p "+dir, raw+"?offset=1048576"); !strings.Contains(list, is.there) || strings.Contains(list, is.gone) {
			t.Fatalf("the image is not sealed: %s", list)
		}
	}
	// A disk that is mostly holes takes half a minute to be read for its checksum, and again.
	tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, sealed)

	t.Run("an image without a driver", func(t *testing.T) {
		junit, console := filepath.Join(dir, "smoke.xml"), filepath.Join(dir, "smoke.log")
		run := smokeImage(t, sealed, "--boot-timeout", "25m", "--junit", junit, "--console", console)
		t.Logf("%v, of which\n%s", run.took, run.stderr)
		if run.exit != exitUnsupported || run.Error == nil || !strings.Contains(run.Error.Message, "no NVIDIA driver") || run.Host != "sealed.qcow2" {
			log, _ := os.ReadFile(console)
			t.Errorf("exit %d: %+v\n%s\n%s", run.exit, run.Report, run.stderr, log[max(0, len(log)-4000):])
		}
		if xml, err := os.ReadFile(junit); err != nil || !bytes.Contains(xml, []byte("no NVIDIA driver")) {
			t.Errorf("%v: %s", err, xml)
		}
	})

	for firmware, what := range map[string]string{"bios": "does not boot: the BIOS found nothing to boot", "uefi": "does not boot: the UEFI firmware found nothing to boot"} {
		t.Run("nothing, "+firmware, func(t *testing.T) {
			zeroes := filepath.Join(dir, firmware+".raw")
			f, err := os.Create(zeroes)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(f.Truncate(64<<20), f.Close()); err != nil {
				t.Fatal(err)
			}
			run := smokeImage(t, zeroes, "--firmware", firmware)
			t.Logf("named after %v", run.took)
			if run.exit != exitVerify || run.Error == nil || !strings.HasSuffix(run.Error.Message, what) || run.took > 5*time.Minute {
				t.Errorf("exit %d after %v: %+v\n%s", run.exit, run.took, run.Error, run.stderr)
			}
		})
	}
}
