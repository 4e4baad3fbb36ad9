package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"gpuguest/internal/runfile"
)

func TestStandInsSayOfThemselvesWhatTheRealOnesSay(t *testing.T) {
	driver, err := DriverRunfile("390.42", "x86_64", "")
	if err != nil {
		t.Fatal(err)
	}
	info, err := runfile.Inspect(strings.NewReader(string(driver)))
	if err != nil || info.Version != "390.42" || info.Arch != "x86_64" {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := runfile.Inspect(strings.NewReader(string(driver[:len(driver)-10]))); err == nil {
		t.Error("one that is cut short is taken")
	}
	toolkit, err := ToolkitRunfile("9.1.85")
	if err != nil {
		t.Fatal(err)
	}
	if info, err = runfile.Inspect(strings.NewReader(string(toolkit))); err != nil || info.Label != "CUDA Installer" {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestStandInInstallersRefuseUnknownOptions runs their option parsers, which come before anything is changed.
func TestStandInInstallersRefuseUnknownOptions(t *testing.T) {
	if runtime.GOARCH != "amd64" || os.Getuid() != 0 {
		t.Skip("they run as root, on x86_64")
	}
	dir := t.TempDir()
	for _, c := range []struct {
		version, option string
		known           bool
	}{
		{"390.42", "--kernel-module-type=open", false},
		{"390.42", "--no-such-option", false},
		{"580.95.05", "--kernel-module-type=neither", true},
		{"580.95.05", "--force-update", false},
		{"580.95.05", "--module-signing-secret-key=/nonexistent", true},
	} {
		text, err := DriverRunfile(c.version, "x86_64", "")
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, c.version+".run")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		// In a name space of its own, in which /var/log is a folder of the test's.
		cmd := exec.Command("unshare", "-m", "sh", "-c", `mount --bind "$1" /var/log && sh "$2" --tmpdir "$1" --silent --dkms "$3"`, "sh", dir, file, c.option)
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), "unshare") || strings.Contains(string(out), "mount:") {
			t.Skipf("no name space of its own: %s", out)
		}
		if err == nil || strings.Contains(string(out), "unrecognized option") == c.known {
			t.Errorf("%s of %s: %v\n%s", c.option, c.version, err, out)
		}
	}
}

func TestStandInScriptsPassShellcheck(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("shellcheck is not here")
	}
	for _, name := range []string{"nvidia-installer.sh", "nvidia-uninstall.sh", "cuda-installer.sh"} {
		if out, err := exec.Command("shellcheck", "-s", "sh", filepath.Join("..", "..", "testdata", "lab", "runfile", name)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
