package runfile

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// driver makes a file with the header of NVIDIA's own form of makeself.
func driver(arch, version, payload string) string {
	rest := fmt.Sprintf("label=\"NVIDIA Accelerated Graphics Driver for Linux-%s %s\"\nversion_string=%[2]s\nscript=./nvidia-installer\nscriptargs=\"\"\n"+
		"targetdir=NVIDIA-Linux-%[1]s-%[2]s\nkeep=y\nTMPROOT=${TMPDIR:=/tmp}\nTARGET_OS=\"Linux\"\nTARGET_ARCH=\"%[1]s\"\nexit 0\n%[3]s", arch, version, payload)
	sum := md5.Sum([]byte(rest))
	return "#! /bin/sh\nCRCsum=1234\nMD5=" + hex.EncodeToString(sum[:]) + "\n" + rest
}

func toolkit(payload string) string {
	return fmt.Sprintf("#!/bin/sh\n# This script was generated using Makeself 2.2.0\n\nCRCsum=\"1\"\nMD5=\"%s\"\nTMPROOT=${TMPDIR:=/tmp}\n\nlabel=\"CUDA Installer\"\nscript=\"./cuda-installer\"\ntargetdir=\"builds\"\nfilesizes=\"%d\"\nexit 0\n%s",
		strings.Repeat("ab", 16), len(payload), payload)
}

func TestInspectReadsWhatAnInstallerSays(t *testing.T) {
	payload := strings.Repeat("payload \x00\xff", 50000)
	for _, c := range []struct {
		name, text, version, arch, label string
	}{
		{"a driver", driver("x86_64", "580.95.05", payload), "580.95.05", "x86_64", "NVIDIA Accelerated Graphics Driver for Linux-x86_64 580.95.05"},
		{"another machine's", driver("aarch64", "390.42", payload), "390.42", "aarch64", "NVIDIA Accelerated Graphics Driver for Linux-aarch64 390.42"},
		{"a toolkit", toolkit(payload), "", "", "CUDA Installer"},
		{"a short one", driver("x86_64", "580.95.05", "x"), "580.95.05", "x86_64", "NVIDIA Accelerated Graphics Driver for Linux-x86_64 580.95.05"},
	} {
		got, err := Inspect(strings.NewReader(c.text))
		sum := sha256.Sum256([]byte(c.text))
		want := Info{Label: c.label, Version: c.version, Arch: c.arch, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(c.text))}
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, want)
		}
	}
}

func TestInspectRefusesWhatIsDamagedOrSomethingElse(t *testing.T) {
	payload := strings.Repeat("payload", 50000)
	d, k := driver("x86_64", "580.95.05", payload), toolkit(payload)
	for _, c := range []struct {
		name, text string
		is         error
	}{
		{"empty", "", ErrNotInstaller},
		{"a page", "<!DOCTYPE html>\n<title>404</title>\n", ErrNotInstaller},
		{"a script of somebody's", "#!/bin/sh\nmake install\n", ErrNotInstaller},
		{"a driver cut short by one byte", d[:len(d)-1], ErrDamaged},
		{"a driver cut short in its header", d[:300], ErrDamaged},
		{"a driver with one byte changed", strings.Replace(d, "payloadpayload", "payl0adpayload", 1), ErrDamaged},
		{"a toolkit cut short", k[:len(k)/2], ErrDamaged},
	} {
		if _, err := Inspect(strings.NewReader(c.text)); !errors.Is(err, c.is) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestByNameReadsWhatANameTells(t *testing.T) {
	for name, want := range map[string][2]string{
		"NVIDIA-Linux-x86_64-580.95.05.run":          {"580.95.05", "x86_64"},
		"NVIDIA-Linux-aarch64-580.95.05.run":         {"580.95.05", "aarch64"},
		"NVIDIA-Linux-x86_64-390.42.run":             {"390.42", "x86_64"},
		"NVIDIA-Linux-x86_64-390.42-no-compat32.run": {"390.42", "x86_64"},
		"cuda_9.1.85_387.26_linux":                   {"9.1.85", "x86_64"},
		"cuda_8.0.61_375.26_linux-run":               {"8.0.61", "x86_64"},
		"cuda_12.8.1_570.124.06_linux_sbsa.run":      {"12.8.1", "aarch64"},
		"cuda_13.4.2_linux.run":                      {"13.4.2", "x86_64"},
		"cuda_11.2.0_460.27.04_linux_ppc64le.run":    {"11.2.0", "ppc64le"},
		"driver.run":                                    {"", ""},
		"NVIDIA-Linux-x86_64-580.95.05.run.part":        {"", ""},
		"NVIDIA-Linux-x86_64-580.95.05-grid.run/../etc": {"", ""},
	} {
		if v, a := ByName(name); v != want[0] || a != want[1] {
			t.Errorf("%s: %q %q, want %q", name, v, a, want)
		}
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(driver("x86_64", "580.95.05", "payload"))
	f.Add(toolkit("payload"))
	f.Add("#!\nlabel=\"\nMD5=\nfilesizes=\"-1 9999999999999999999\"\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Inspect(strings.NewReader(text))
		if got.Size != int64(len(text)) || len(got.SHA256) != 64 {
			t.Errorf("%+v, %v", got, err)
		}
		if got.Version != "" && !version.MatchString(got.Version) {
			t.Errorf("version %q", got.Version)
		}
	})
}
