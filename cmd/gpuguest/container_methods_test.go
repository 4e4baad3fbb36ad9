package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gpuguest/internal/engine"
	"gpuguest/internal/lab"
)

// testMethods installs by NVIDIA's own installers, with stand-ins that take the real ones' options: in a Debian
// guest over SSH, and back to what the guest was.
func testMethods(t *testing.T, w *world) {
	t.Parallel()
	t.Run("runfile and toolkit", func(t *testing.T) { testRunfileAndToolkit(t, w) })
	t.Run("fetched, signed", func(t *testing.T) { testFetchedAndSigned(t, w) })
	t.Run("bad installers", func(t *testing.T) { testBadInstallers(t, w) })
}

// write keeps a file of the test's and returns its path and SHA-256.
func write(t *testing.T, name string, data []byte) (path, sum string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s := sha256.Sum256(data)
	return path, hex.EncodeToString(s[:])
}

// driverRunfile is a stand-in of a driver's installer.
func driverRunfile(t *testing.T, version, machine, spoil string) []byte {
	t.Helper()
	data, err := lab.DriverRunfile(version, machine, spoil)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// left lists what the installers put where a snapshot does not look.
func (g *testGuest) left(t *testing.T) string {
	t.Helper()
	return g.in(t, `find /usr/bin /usr/lib/x86_64-linux-gnu /usr/local /var/lib/nvidia /var/log /var/lib/dkms /opt \( -name '*nvidia*' -o -name 'cuda*' -o -name 'libcuda*' \) \
	! -path '*/dkms_dbversion' 2>/dev/null | sort; grep nvidia /etc/passwd /etc/group || true`)
}

// testRunfileAndToolkit is the way of 2018 in a guest of today: driver 390.42 and CUDA 9.1.85, both by installers
// that are sent.
func testRunfileAndToolkit(t *testing.T, w *world) {
	t.Parallel()
	g := w.start(t, w.root(t, "bookworm", lists, headers), lab.ContainerSpec{})
	before, clean := g.snapshot(t), g.left(t)
	driver, _ := write(t, "NVIDIA-Linux-x86_64-390.42.run", driverRunfile(t, "390.42", "x86_64", ""))
	data, err := lab.ToolkitRunfile("9.1.85")
	if err != nil {
		t.Fatal(err)
	}
	toolkit, _ := write(t, "cuda_9.1.85_387.26_linux", data)
	install := slices.Concat([]string{"install", "--json"}, g.reach("root"), []string{"--no-gpu", "--device", "10de:1c82",
		"--runfile", driver, "--cuda", "9.1", "--cuda-runfile", toolkit})

	first := w.must(t, exitDone, install...).report(t)
	if first.Source != "runfile" || !slices.ContainsFunc(first.Warnings, func(s string) bool { return strings.Contains(s, "gcc") }) {
		t.Errorf("source %q, warnings %q", first.Source, first.Warnings)
	}
	for script, want := range map[string]string{
		`modinfo -k "$(ls /lib/modules)" -F version nvidia`:                                                                "390.42",
		`modinfo -k "$(ls /lib/modules)" -F license nvidia`:                                                                "NVIDIA",
		`[ "$(modinfo -k "$(ls /lib/modules)" -F vermagic nvidia | cut -d' ' -f1)" = "$(ls /lib/modules)" ] && echo built`: "built",
		`sh -lc 'nvcc --version' | tail -n 1`:                                                                              "Cuda compilation tools, release 9.1, V9.1.85",
		`readlink -f /usr/local/cuda`:                                                                                      "/usr/local/cuda-9.1",
		`ls -d /usr/local/cuda-9.1/NVIDIA_CUDA-9.1_Samples`:                                                                "/usr/local/cuda-9.1/NVIDIA_CUDA-9.1_Samples",
		`systemctl is-enabled nvidia-persistenced`:                                                                         "enabled",
		`sed -n 's/^ExecStart=//p' /etc/systemd/system/nvidia-persistenced.service`:                                        "/usr/bin/nvidia-persistenced --verbose --user nvidia-persistenced",
		`id -un nvidia-persistenced`:                                                                                       "nvidia-persistenced",
		`ls /var/lib/gpuguest/runfile`:                                                                                     "",
		`lsinitramfs /boot/initrd.img-* | grep -c gpuguest-blocklist`:                                                      "1",
	} {
		if got := g.in(t, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}

	installed := g.snapshot(t)
	again := w.must(t, exitDone, install...).report(t)
	for _, s := range again.Steps {
		if s.State != engine.Met {
			t.Errorf("the second time, %s is %s: %s", s.ID, s.State, s.Detail)
		}
	}
	if again.Execs > 3 {
		t.Errorf("the second time took %d execs", again.Execs)
	}
	if d := differences(installed, g.snapshot(t)); d != "" {
		t.Errorf("the second time changed\n%s", d)
	}
	// Packages beside it are refused, and nothing is changed for that.
	if r := w.run(t, nil, g.install()...); r.code != exitUnsupported || !strings.Contains(r.stderr, ".run installer") {
		t.Errorf("packages beside a .run driver: %s", r)
	}
	// Where it is said to, one makes way for the other, there and back.
	w.must(t, exitDone, g.install("--replace")...)
	if got := g.in(t, `[ ! -e /usr/bin/nvidia-uninstall ] && modinfo -k "$(ls /lib/modules)" -F version nvidia; systemctl show -P FragmentPath nvidia-persistenced | sed 's|^/usr||'`); got != "580.178.04\n/lib/systemd/system/nvidia-persistenced.service" {
		t.Errorf("packages in place of the .run: %q", got)
	}
	w.must(t, exitDone, append(install, "--replace")...)
	if got := g.in(t, `modinfo -k "$(ls /lib/modules)" -F version nvidia; dpkg-query -W -f '${db:Status-Status} ${Package}\n' '*nvidia*' | grep -c '^installed' || true`); got != "390.42\n0" {
		t.Errorf("the .run in place of packages: %q", got)
	}

	w.must(t, exitDone, slices.Concat([]string{"uninstall"}, g.reach("root"))...)
	if d := differences(before, g.snapshot(t)); d != "" {
		t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
	}
	if now := g.left(t); now != clean {
		t.Errorf("after uninstall there is\n%s\nand before there was\n%s", now, clean)
	}
}

// testFetchedAndSigned has the guest fetch the installer, with open modules, and sign what it builds.
func testFetchedAndSigned(t *testing.T, w *world) {
	t.Parallel()
	g := w.start(t, w.root(t, "bookworm", lists, headers), lab.ContainerSpec{})
	before, clean := g.snapshot(t), g.left(t)
	data := driverRunfile(t, "580.95.05", "x86_64", "")
	_, sum := write(t, "driver", data)
	if err := os.WriteFile(filepath.Join(w.repo.Root, "NVIDIA-Linux-x86_64-580.95.05.run"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	key, cert, secret := signingPair(t)
	logs := t.TempDir()
	g.in(t, watch)
	r := w.must(t, exitDone, slices.Concat([]string{"install", "--log-dir", logs}, g.reach("root"), []string{"--no-gpu", "--device", "10de:1eb8",
		"--runfile", w.repo.URL + "/NVIDIA-Linux-x86_64-580.95.05.run", "--runfile-sha256", sum,
		"--secure-boot-key", key, "--secure-boot-cert", cert})...)
	g.in(t, `kill "$(cat /root/watch.pid)"`)
	for script, want := range map[string]string{
		`modinfo -k "$(ls /lib/modules)" -F version nvidia`:  "580.95.05",
		`modinfo -k "$(ls /lib/modules)" -F license nvidia`:  "Dual MIT/GPL",
		`modinfo -k "$(ls /lib/modules)" -F signer nvidia`:   "gpuguest lab key",
		`stat -c '%a %U' /var/lib/gpuguest/secure-boot/*`:    "600 root\n600 root",
		`stat -c '%a %U' /var/lib/gpuguest/secure-boot`:      "700 root",
		`ls /etc/dkms/framework.conf.d | grep gpuguest`:      "zz-gpuguest.conf",
		`grep -c mok_ /etc/dkms/framework.conf.d/*gpuguest*`: "2",
	} {
		if got := g.in(t, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if strings.Contains(r.out+r.stderr, secret) || strings.Contains(g.in(t, `cat /root/watched /var/lib/gpuguest/journal; cat /var/lib/gpuguest/jobs/*/*/log`), secret) {
		t.Error("the key is where it can be read")
	}
	w.must(t, exitDone, slices.Concat([]string{"uninstall"}, g.reach("root"))...)
	if d := differences(before, g.snapshot(t)); d != "" {
		t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
	}
	if now := g.left(t); now != clean {
		t.Errorf("after uninstall there is\n%s\nand before there was\n%s", now, clean)
	}
	if now := g.in(t, `grep -rlF '`+secret+`' /var /etc /root /tmp 2>/dev/null || true`); now != "" {
		t.Errorf("after uninstall the key is in %s", now)
	}
}

// signingPair makes a key and its certificate, and returns their files and a line of the key.
func signingPair(t *testing.T) (key, cert, secret string) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gpuguest lab key"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		SubjectKeyId: []byte{1, 2, 3, 4}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	key, _ = write(t, "key.pem", text)
	cert, _ = write(t, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return key, cert, strings.Split(string(text), "\n")[3]
}

// testBadInstallers: what cannot be fetched whole, and what fails. Each says so, and what was changed until then is
// taken back by uninstall.
func testBadInstallers(t *testing.T, w *world) {
	t.Parallel()
	g := w.start(t, w.root(t, "bookworm", lists, headers), lab.ContainerSpec{})
	before, clean := g.snapshot(t), g.left(t)
	data := driverRunfile(t, "580.95.05", "x86_64", "")
	_, sum := write(t, "driver", data)
	if err := os.WriteFile(filepath.Join(w.repo.Root, "short.run"), data[:len(data)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	short, _ := write(t, "short.run", data[:len(data)/2])
	other, _ := write(t, "NVIDIA-Linux-aarch64-580.95.05.run", driverRunfile(t, "580.95.05", "aarch64", ""))
	broken, _ := write(t, "broken.run", driverRunfile(t, "580.95.05", "x86_64", "#error nothing compiles this\n"))
	install := func(flags ...string) []string {
		return slices.Concat([]string{"install"}, g.reach("root"), []string{"--no-gpu", "--device", "10de:1eb8"}, flags)
	}
	for _, c := range []struct {
		name    string
		args    []string
		code    int
		says    []string
		changes bool
	}{
		{"cut short here", install("--runfile", short), exitUsage, []string{"damaged"}, false},
		{"for another machine", install("--runfile", other), exitUnsupported, []string{"it is for aarch64"}, false},
		{"of no known checksum", install("--source", "runfile", "--driver", "390.42"), exitUnsupported, []string{"SHA-256"}, false},
		{"cut short on the way", install("--driver", "580.95.05", "--runfile", w.repo.URL+"/short.run", "--runfile-sha256", sum), exitStep, []string{"driver"}, true},
		{"not there", install("--driver", "580.95.05", "--runfile", w.repo.URL+"/nothing.run", "--runfile-sha256", sum), exitStep, []string{"driver", "404"}, true},
		{"does not compile", install("--runfile", broken), exitStep, []string{"driver: exit 1", "nothing compiles this"}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			then := g.tree(t)
			r := w.must(t, c.code, c.args...)
			for _, word := range c.says {
				if !strings.Contains(r.stderr, word) {
					t.Errorf("the message does not say %q: %s", word, r.stderr)
				}
			}
			t.Log(strings.TrimSpace(r.stderr))
			if d := differences(then, g.tree(t)); !c.changes && d != "" {
				t.Errorf("the guest was changed: %s", d)
			}
		})
	}
	w.must(t, exitDone, slices.Concat([]string{"uninstall"}, g.reach("root"))...)
	if d := differences(before, g.snapshot(t)); d != "" {
		t.Errorf("after uninstall, the guest is not what it was:\n%s", d)
	}
	if now := g.left(t); now != clean {
		t.Errorf("after uninstall there is\n%s\nand before there was\n%s", now, clean)
	}
}
