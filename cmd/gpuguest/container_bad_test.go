package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/lab"
)

// testBadInput: sources, keys and compilers that are not what they should be. Each ends with its exit code and a
// message that names the cause, and what was changed until then is taken back by uninstall.
func testBadInput(t *testing.T, w *world) {
	t.Parallel()
	t.Run("sources", func(t *testing.T) { testBadSources(t, w) })
	t.Run("builds", func(t *testing.T) { testBadBuilds(t, w) })
}

// page is what a captive portal answers, whatever it is asked for.
const page = "<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body>Please log in to use this network.</body></html>\n"

func testBadSources(t *testing.T, w *world) {
	t.Parallel()
	g := w.start(t, w.root(t, "bookworm", lists, headers), lab.ContainerSpec{})
	before := g.snapshot(t)
	known := w.repo.KeyringSHA256["debian12"]

	w.mirror(t, "portal", func(dir string) {
		for _, f := range []string{"InRelease", "Release", "Packages", keyringPackage} {
			replaceFile(t, filepath.Join(dir, f), []byte(page))
		}
	})
	w.mirror(t, "portal-later", func(dir string) {
		for _, f := range []string{"InRelease", "Release", "Release.gpg", "Packages", "Packages.gz"} {
			replaceFile(t, filepath.Join(dir, f), []byte(page))
		}
	})
	w.mirror(t, "short", func(dir string) {
		file := filepath.Join(dir, keyringPackage)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		replaceFile(t, file, data[:len(data)/2])
	})
	w.mirror(t, "short-package", func(dir string) {
		debs, err := filepath.Glob(filepath.Join(dir, "nvidia-driver-pinning-580_*.deb"))
		if err != nil || len(debs) == 0 {
			t.Fatalf("the lab's repository has no pinning package: %v", err)
		}
		for _, f := range debs {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			replaceFile(t, f, data[:len(data)/2])
		}
	})
	w.mirror(t, "stranger", func(dir string) { signAs(t, dir, "", "never") })
	var expired string
	w.mirror(t, "expired", func(dir string) {
		key := signAs(t, dir, "20200101T000000", "30d")
		expired = keyringWith(t, dir, key)
	})

	install := func(mirror, sum string, flags ...string) []string {
		return slices.Concat([]string{"install"}, g.reach("root"), []string{"--no-gpu", "--device", "10de:1c82", "--source", "nvidia",
			"--mirror", w.repo.URL + mirror, "--keyring-sha256", sum}, flags)
	}
	t.Run("version that the repository does not have", func(t *testing.T) {
		r := w.must(t, exitUnsupported, install("", known, "--driver", "580.1.1")...)
		if word := "has no driver 580.1.1; the nearest that it has: 580.95.05"; !strings.Contains(r.stderr, word) {
			t.Errorf("the message does not say %q: %s", word, r.stderr)
		}
		if d := differences(before, g.snapshot(t)); d != "" {
			t.Errorf("the refusal changed the guest:\n%s", d)
		}
	})
	for _, c := range []struct {
		name string
		args []string
		says []string
	}{
		{"keyring of another checksum", install("", strings.Repeat("0", 64)), []string{"repo: exit", "Hash Sum mismatch", "not what its index says"}},
		{"mirror that has nothing", install("/nothing", known), []string{"repo: exit", "404", "does not have the file or the repository"}},
		{"keyring cut short", install("/short", known), []string{"repo: exit", "Hash Sum mismatch"}},
		{"captive portal", install("/portal", known), []string{"repo: exit", "Hash Sum mismatch"}},
		{"captive portal after the keyring", install("/portal-later", known), []string{"repo: exit", "isn't valid", "a login page or a proxy"}},
		{"repository signed by a key that is missing", install("/stranger", known), []string{"repo: exit", "NO_PUBKEY", "lacks the key"}},
		{"repository signed by an expired key", install("/expired", expired), []string{"repo: exit", "EXPKEYSIG", "expired key"}},
		{"package cut short", install("/short-package", known, "--driver", "580"), []string{"pin: exit", "unexpected size"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := w.must(t, exitStep, c.args...)
			for _, word := range c.says {
				if !strings.Contains(r.stderr, word) {
					t.Errorf("the message does not say %q: %s", word, r.stderr)
				}
			}
			t.Log(strings.TrimSpace(r.stderr))
		})
	}
	w.must(t, exitDone, slices.Concat([]string{"uninstall"}, g.reach("root"))...)
	if d := differences(before, g.snapshot(t)); d != "" {
		t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
	}
}

// testBadBuilds: DKMS is kept from building, by a compiler that is killed and by a disk that fills meanwhile. Once
// that is put right the same command goes on to its end.
func testBadBuilds(t *testing.T, w *world) {
	t.Parallel()
	g := w.start(t, w.root(t, "bookworm", lists, headers), lab.ContainerSpec{DiskMB: 3000})
	before := g.snapshot(t)
	// The kernel's own questions about its compiler are answered; only the module's files are not compiled.
	g.in(t, `set -e
gcc=$(readlink -f /usr/bin/gcc)
mv "$gcc" "$gcc.real"
cat >"$gcc" <<END
#!/bin/sh
case "\$*" in *nvidia*) echo "gcc: fatal error: Killed signal terminated program cc1" >&2; exit 1 ;; esac
exec $gcc.real "\$@"
END
chmod 755 "$gcc"`)
	r := w.must(t, exitStep, g.install()...)
	for _, word := range []string{"driver: exit", "make.log", "Killed signal terminated program cc1", "want of memory"} {
		if !strings.Contains(r.stderr, word) {
			t.Errorf("the message does not say %q: %s", word, r.stderr)
		}
	}
	t.Log(strings.TrimSpace(r.stderr))
	g.in(t, `gcc=$(readlink -f /usr/bin/gcc); mv "$gcc.real" "$gcc"`)
	w.must(t, exitDone, slices.Concat([]string{"uninstall"}, g.reach("root"))...)
	if d := differences(before, g.snapshot(t)); d != "" {
		t.Errorf("after uninstall of what did not compile, the guest is not what it was:\n%s", d)
	}

	// DKMS reads this file before it builds: it is bash.
	g.in(t, `mkdir -p /etc/dkms
echo '[ -e /filler ] || fallocate -l "$(df --output=avail -B1 / | tail -n 1)" /filler' >/etc/dkms/nvidia.conf`)
	r = w.must(t, exitStep, g.install()...)
	// Where not even the job's exit code found room, the guest is looked at again, and what is missing is told by that.
	said := strings.Contains(r.stderr, "driver: ") && strings.Contains(r.stderr, "No space left on device") && strings.Contains(r.stderr, "hint: cause: a file system of the guest is full")
	if room := strings.Contains(r.stderr, "room: ") && strings.Contains(r.stderr, " has 0 MB free"); !said && !room {
		t.Errorf("the message does not say that the disk is full: %s", r.stderr)
	}
	t.Log(strings.TrimSpace(r.stderr))
	g.in(t, `[ -e /filler ] && rm /filler /etc/dkms/nvidia.conf`)

	w.must(t, exitDone, g.install()...)
	w.must(t, exitDone, slices.Concat([]string{"uninstall"}, g.reach("root"))...)
	if d := differences(before, g.snapshot(t)); d != "" {
		t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
	}
}

const keyringPackage = "cuda-keyring_1.1-1_all.deb"

// mirror makes a copy of the lab's repository below its root, by links, and has it spoiled.
func (w *world) mirror(t *testing.T, name string, spoil func(dir string)) {
	t.Helper()
	from, dir := filepath.Join(w.repo.Root, "debian12/x86_64"), filepath.Join(w.repo.Root, name, "debian12/x86_64")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.Symlink(filepath.Join(from, f.Name()), filepath.Join(dir, f.Name())); err != nil {
			t.Fatal(err)
		}
	}
	spoil(dir)
}

// replaceFile puts data in the place of a link, and not where it leads.
func replaceFile(t *testing.T, file string, data []byte) {
	t.Helper()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// signAs signs a repository anew, by a key of its own, and returns its public half. at, when given, is when that is
// pretended to happen, as gpg takes it.
func signAs(t *testing.T, dir, at, expires string) []byte {
	t.Helper()
	// The path of the agent's socket must be short.
	home, err := os.MkdirTemp("", "gnupg-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	gpg := func(args ...string) []byte {
		all := []string{"--homedir", home, "--batch", "--yes", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback"}
		if at != "" {
			all = append(all, "--faked-system-time", at)
		}
		return output(t, dir, "gpg", append(all, args...)...)
	}
	gpg("--quick-generate-key", "somebody <somebody@invalid>", "rsa3072", "sign", expires)
	defer output(t, dir, "gpgconf", "--homedir", home, "--kill", "gpg-agent")
	for name, args := range map[string][]string{"InRelease": {"--clearsign"}, "Release.gpg": {"--armor", "--detach-sign"}} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		gpg(append(args, "--output", name, "Release")...)
	}
	return gpg("--export")
}

// keyringWith builds the keyring package anew with another key, and returns its SHA-256.
func keyringWith(t *testing.T, dir string, key []byte) string {
	t.Helper()
	root := t.TempDir()
	file := filepath.Join(dir, keyringPackage)
	output(t, dir, "dpkg-deb", "-R", file, filepath.Join(root, "deb"))
	if err := os.WriteFile(filepath.Join(root, "deb/usr/share/keyrings/cuda-archive-keyring.gpg"), key, 0o644); err != nil {
		t.Fatal(err)
	}
	output(t, root, "dpkg-deb", "--root-owner-group", "-b", "deb", "keyring.deb")
	data, err := os.ReadFile(filepath.Join(root, "keyring.deb"))
	if err != nil {
		t.Fatal(err)
	}
	replaceFile(t, file, data)
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// output runs a program of this machine.
func output(t *testing.T, dir, name string, args ...string) []byte {
	t.Helper()
	var errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir, cmd.Stderr, cmd.WaitDelay = dir, &errs, 5*time.Second
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, errs.String()))
	}
	return out
}
