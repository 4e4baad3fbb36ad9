package plan

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gpuguest/internal/choice"
	"gpuguest/internal/offline"
)

// testRPMBundle gathers in a guest that reaches the repositories, which is the same afterwards, and installs in one that
// reaches nothing, with the real dnf 4 and zypper; and takes all of it back.
func testRPMBundle(t *testing.T, w *rpmWorld) {
	for _, c := range []struct {
		name, recording, setup string
		base                   func(*testing.T) string
		want                   choice.Want
		installed              string // of packages, by name and version, behind that
		extra                  string // what is asked of the guest besides
	}{
		{"module stream", "rocky9-l4", w.elSetup("9.6"), elBase, choice.Want{GDS: true},
			"dkms 3.2.2\nkernel-devel 5.14.0\nkmod-nvidia-open-dkms 580.95.05\nnvidia-driver-cuda 580.95.05\nnvidia-fs 2.27.3\n", `grep -c '^stream=580-open$' /etc/dnf/modules.d/nvidia-driver.module`},
		{"version lock", "rocky10-b200", strings.ReplaceAll(w.elSetup("10.0"), "el9", "el10"), elBase, choice.Want{},
			"dkms 3.2.2\nkernel-devel 5.14.0\nkmod-nvidia-open-dkms 580.95.05\nnvidia-driver-cuda 580.95.05\n", `grep -c '^nvidia-driver-cuda-3:580' /etc/dnf/plugins/versionlock.list`},
		{"zypper", "sles15-t4", w.suseSetup(), suseBase, choice.Want{}, "kernel-default-devel 6.4.0\nnvidia-compute-utils-G06 580.95.05\nnvidia-open-580 580.95.05\n", "echo 1"},
		{"signed by SUSE", "sles15-t4-secureboot", w.suseSetup(), suseBase, choice.Want{},
			"nvidia-compute-utils-G06 580.82.07\nnvidia-open-driver-G06-signed-cuda-kmp-default 580.82.07_k6.4.0_150600.23.47\n", "echo 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := w.want()
			want.GDS = c.want.GDS
			ref := newRPMGuest(t, c.recording, c.setup+c.base(t))
			zypper := strings.HasPrefix(c.recording, "sles")
			atHome := func(g *rpmGuest) {
				if c.recording == "rocky10-b200" {
					g.facts.Kernel.Next, g.facts.Kernel.Running = rockyKernel+".x86_64", rockyKernel+".x86_64"
					g.must("mkdir -p /usr/lib/modules/" + rockyKernel + ".x86_64")
				}
				g.look()
			}
			if zypper {
				ref.must("SUSEConnect --product PackageHub/15.6/x86_64")
			} else {
				// Not every guest has what makes an index, and some have what is asked for.
				ref.must("rm -f /usr/bin/createrepo_c && dnf -y install make")
			}
			atHome(ref)
			before := ref.state() + ref.must("ls -d /var/lib/gpuguest /run/gpuguest-gather /usr/sbin/createrepo_c /usr/sbin/dkms 2>/dev/null || true")
			in, err := Input(ref.facts, want)
			if err != nil {
				t.Fatal(err)
			}
			archive := gatherBundle(t, ref, in.Facts.Kernel.Next, func() (string, error) {
				r, err := Bare(ref.facts, want)
				if err != nil {
					return "", err
				}
				return GatherScript(in, r)
			})
			if after := ref.state() + ref.must("ls -d /var/lib/gpuguest /run/gpuguest-gather /usr/sbin/createrepo_c /usr/sbin/dkms 2>/dev/null || true"); after != before {
				t.Errorf("gathering changed the guest:\n%s", changed(before, after))
			}

			g := newRPMGuest(t, c.recording, c.setup+c.base(t))
			atHome(g)
			before = g.state()
			g.alone = true
			if out, code := g.run("curl -sS --max-time 5 " + w.url + "/RPM-GPG-KEY-test"); code == 0 {
				t.Fatalf("the guest is not alone: %s", out)
			}
			want = choice.Want{GDS: want.GDS, Bundle: bundleFor(t, ref.facts, want)}
			sum := sha256.Sum256(archive)
			want.Bundle.SHA256, want.Bundle.Size = hex.EncodeToString(sum[:]), int64(len(archive))
			p, err := build(g.facts, want)
			if err != nil {
				t.Fatal(err)
			}
			for _, it := range items(p, append(slices.Clone(packageSteps), "bundle", "gds")...) {
				if it.ID == "bundle" {
					g.put(t, "/var/lib/gpuguest/bundle.tar.gz", archive)
				}
				if out, code := g.run(p.Script(it)); code != 0 {
					t.Fatalf("%s: exit %d: %s", it.ID, code, out)
				}
			}
			g.converged(p)
			var names []string
			for line := range strings.Lines(c.installed) {
				name, _, _ := strings.Cut(line, " ")
				names = append(names, name)
			}
			if got := g.must("rpm -q --qf '%{NAME} %{VERSION}\n' " + strings.Join(names, " ") + " | sort"); got != c.installed {
				t.Errorf("installed are\n%s", got)
			}
			if got := g.must(c.extra); got != "1\n" {
				t.Errorf("%s: %q", c.extra, got)
			}
			if got := g.must("ls /etc/yum.repos.d /etc/zypp/repos.d"); strings.Contains(got, "bundle") || strings.Contains(got, "cuda") {
				t.Errorf("the guest's own repositories are %s", got)
			}
			g.uninstall()
			if after := g.state(); after != before {
				t.Errorf("uninstall leaves\n%s", changed(before, after))
			}
			if left := g.must("ls -d /var/lib/gpuguest/bundle* 2>/dev/null || true"); left != "" {
				t.Errorf("uninstall leaves %s", left)
			}
		})
	}
}

// put writes a file into the guest.
func (g *rpmGuest) put(t *testing.T, path string, data []byte) {
	t.Helper()
	g.must("mkdir -p " + filepath.Dir(path))
	if err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(g.pid), "root", g.mount, "root", path), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// gatherBundle runs the script and makes the archive of what it sends.
func gatherBundle(t *testing.T, g *rpmGuest, kernel string, script func() (string, error)) []byte {
	t.Helper()
	text, err := script()
	if err != nil {
		t.Fatal(err)
	}
	var sent, said bytes.Buffer
	if code := g.runTo(text, &sent, &said); code != 0 {
		t.Fatalf("exit %d: %s", code, said.String())
	}
	files := map[string][]byte{}
	origins := ""
	m := offline.Manifest{Distro: "it", Arch: "x86_64", Kernel: kernel}
	for r := tar.NewReader(&sent); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "origins" {
			origins = string(data)
			continue
		}
		sum := sha256.Sum256(data)
		f := offline.File{Name: h.Name, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
		m.Files = append(m.Files, f)
		files[h.Name] = data
	}
	if strings.Contains(origins, " createrepo_c-") {
		t.Errorf("what makes the index is in the bundle:\n%s", origins)
	}
	for line := range strings.Lines(origins) {
		w := strings.Fields(line)
		if i := slices.IndexFunc(m.Files, func(f offline.File) bool { return len(w) == 3 && f.Name == "repo/"+w[1] && f.SHA256 == w[0] }); i < 0 || strings.ContainsAny(w[2], "/ ") {
			t.Errorf("an origin of nothing: %q", line)
		}
	}
	t.Logf("gathered:\n%s", origins)
	var archive bytes.Buffer
	err = offline.Write(&archive, &m, func(f offline.File) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files[f.Name])), nil })
	if err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}
