package facts_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/facts"
)

var update = flag.Bool("update", false, "rewrite the goldens")

const guests = "../../testdata/guests"

func recording(t *testing.T, name string) facts.Facts {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(guests, name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := facts.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// brief is the handful of facts that decisions hang on, as one line a fact.
func brief(f facts.Facts) []string {
	var gpus []string
	for _, g := range f.GPUs {
		gpus = append(gpus, g.Address+" "+g.Device+" "+g.Subvendor+":"+g.Subdevice+" "+g.Driver)
	}
	lines := []string{
		f.OS.ID + " " + f.OS.VersionID + " " + f.Arch,
		strings.Join(gpus, ", "),
		f.Kernel.Next + " by " + f.Kernel.NextFrom,
		fmt.Sprintf("headers %v, %s, %s", slices.Contains(f.Kernel.Headers, f.Kernel.Next), f.Boot.Loader, f.Boot.Initramfs),
		"secure boot " + f.Secure.State,
	}
	return lines
}

func TestRecordingsTellWhatDecisionsHangOn(t *testing.T) {
	const debian12, noble = "6.1.0-50-amd64", "6.8.0-88-generic"
	const uuid = "b1f0a5c2-7d0e-4a53-9c3e-2f6f0a1d9e77"
	ready := "headers true, grub, initramfs-tools"
	bare := "headers false, grub, initramfs-tools"
	bios, off, on := "secure boot unsupported", "secure boot disabled", "secure boot enabled"
	first := func(release string) string { return release + " by grub default 0" }
	for name, want := range map[string][]string{
		"debian11-k80":                 {"debian 11 x86_64", "0000:00:05.0 102d 10de:106c nouveau", first("5.10.0-32-amd64"), bare, bios},
		"debian12-bar1-0m":             {"debian 12 x86_64", "0000:00:16.0 1c82 1b4c:11bf ", first(debian12), ready, bios},
		"debian12-container":           {"debian 12 x86_64", "", " by no kernel is installed in the guest", "headers false, , ", bios},
		"debian12-gtx1050ti-nouveau":   {"debian 12 x86_64", "0000:00:16.0 1c82 1b4c:11bf nouveau", first(debian12), ready, bios},
		"debian12-k80-and-l4":          {"debian 12 x86_64", "0000:01:00.0 102d 10de:106c , 0000:02:00.0 27b8 10de:16ca ", first(debian12), ready, bios},
		"debian12-next-entry-once":     {"debian 12 x86_64", "0000:01:00.0 1eb8 10de:12a2 nouveau", "6.1.0-49-amd64 by grub next_entry gnulinux-advanced-" + uuid + ">gnulinux-6.1.0-49-amd64-advanced-" + uuid + " (once)", bare, bios},
		"debian12-no-gpu":              {"debian 12 x86_64", "", first(debian12), ready, bios},
		"debian12-readonly":            {"debian 12 x86_64", "0000:00:16.0 1c82 1b4c:11bf nouveau", first(debian12), ready, bios},
		"debian12-t4-driver535":        {"debian 12 x86_64", "0000:00:06.0 1eb8 10de:12a2 nvidia", first(debian12), ready, bios},
		"debian12-t4-secureboot":       {"debian 12 x86_64", "0000:01:00.0 1eb8 10de:12a2 nouveau", first(debian12), ready, on},
		"debian12-two-generations":     {"debian 12 x86_64", "0000:01:00.0 1b06 1043:85e4 nouveau, 0000:02:00.0 27b8 10de:16ca ", first(debian12), ready, bios},
		"debian13-t4":                  {"debian 13 x86_64", "0000:01:00.0 1eb8 10de:12a2 nouveau", first("6.12.107+deb13-amd64"), bare, bios},
		"rocky9-l4":                    {"rocky 9.6 x86_64", "0000:01:00.0 27b8 10de:16ca ", "5.14.0-570.49.1.el9_6.x86_64 by grub saved_entry 5d0b8c3fdd6d4a3b9b0a-5.14.0-570.49.1.el9_6.x86_64", "headers false, grub, dracut", off},
		"ubuntu2004-gtx750":            {"ubuntu 20.04 x86_64", "0000:01:00.0 1381 1458:362e nouveau", first("5.4.0-216-generic"), ready, bios},
		"ubuntu2204-a10-vgpu":          {"ubuntu 22.04 x86_64", "0000:02:01.0 2236 10de:14b6 ", first("5.15.0-161-generic"), ready, bios},
		"ubuntu2204-a100-secureboot":   {"ubuntu 22.04 x86_64", "0000:06:00.0 20b0 10de:134f ", first("5.15.0-161-generic"), ready, on},
		"ubuntu2204-t4-runfile-oldkey": {"ubuntu 22.04 x86_64", "0000:01:00.0 1eb8 10de:12a2 nvidia", first("5.15.0-161-generic"), ready, bios},
		"ubuntu2204-v100":              {"ubuntu 22.04 x86_64", "0000:00:05.0 1db4 10de:1214 ", first("5.15.0-161-generic"), ready, bios},
		"ubuntu2404-b200":              {"ubuntu 24.04 x86_64", "0000:17:00.0 2901 10de:1999 , 0000:3d:00.0 2901 10de:1999 ", first("6.14.0-37-generic"), ready, off},
		"ubuntu2404-gh200-arm64":       {"ubuntu 24.04 aarch64", "0009:01:00.0 2342 10de:16eb ", first("6.8.0-1044-nvidia-64k"), ready, off},
		"ubuntu2404-h100":              {"ubuntu 24.04 x86_64", "0000:0a:00.0 2330 10de:16c1 ", first(noble), ready, off},
		"ubuntu2404-l4-driver580":      {"ubuntu 24.04 x86_64", "0000:01:00.0 27b8 10de:16ca nvidia", first(noble), ready, off},
		"ubuntu2404-l4-next-kernel":    {"ubuntu 24.04 x86_64", "0000:01:00.0 27b8 10de:16ca ", first("6.14.0-37-generic"), bare, off},
		"ubuntu2404-t4-locked":         {"ubuntu 24.04 x86_64", "0000:01:00.0 1eb8 10de:12a2 ", first(noble), ready, off},
		"ubuntu2510-t4-dracut":         {"ubuntu 25.10 x86_64", "0000:01:00.0 1eb8 10de:12a2 nouveau", first("6.17.0-8-generic"), "headers true, grub, dracut", off},
		"ubuntu2604-rtxpro6000-nova":   {"ubuntu 26.04 x86_64", "0000:01:00.0 2bb1 10de:204b nova_core", first("7.0.0-15-generic"), ready, off},
	} {
		t.Run(name, func(t *testing.T) {
			if got := brief(recording(t, name)); !slices.Equal(got, want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
			}
		})
	}
}

// TestRecordingsPrintAsAccepted covers every recording: one without a golden fails.
func TestRecordingsPrintAsAccepted(t *testing.T) {
	names, err := filepath.Glob(filepath.Join(guests, "*.txt"))
	if err != nil || len(names) < 18 {
		t.Fatalf("%d recordings, %v", len(names), err)
	}
	var b strings.Builder
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(raw), "# constructed, not recorded: ") && !strings.HasPrefix(string(raw), "# recorded ") {
			t.Errorf("%s does not say on its first line where it comes from", name)
		}
		f, err := facts.Parse(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		fmt.Fprintf(&b, "## %s\n", filepath.Base(name))
		naming := func(p facts.PCI) string { return "GPU " + p.Device }
		if err := facts.Print(&b, f, naming); err != nil {
			t.Fatal(err)
		}
	}
	golden := filepath.Join("testdata", "print.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	got, accepted := strings.Split(b.String(), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(got), len(accepted)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(accepted) {
			w = accepted[i]
		}
		if g != w {
			t.Fatalf("line %d of %s:\n got %q\nwant %q", i+1, golden, g, w)
		}
	}
}

func TestInstalledDriverIsToldWithItsFlavor(t *testing.T) {
	for _, c := range []struct {
		name, version, flavor, license, dkms string
		libraries                            int
	}{
		{"debian12-t4-driver535", "535.309.01", "proprietary", "NVIDIA", "nvidia-current/535.309.01, 6.1.0-50-amd64, x86_64: installed", 2},
		{"ubuntu2404-l4-driver580", "580.95.05", "open", "Dual MIT/GPL", "nvidia/580.95.05, 6.8.0-88-generic, x86_64: installed", 2},
	} {
		d := recording(t, c.name).Driver
		if d.Loaded != c.version || d.LoadedFlavor != c.flavor || d.Next.License != c.license || d.Next.Version != c.version ||
			d.Library != c.version || len(d.Libraries) != c.libraries || d.PersistenceUnit != "active" || !slices.Equal(d.DKMS, []string{c.dkms}) {
			t.Errorf("%s: %+v", c.name, d)
		}
		if d.Running != d.Next {
			t.Errorf("%s: running %+v, next %+v", c.name, d.Running, d.Next)
		}
	}
}

func TestModulesOfTheNextKernelAreTold(t *testing.T) {
	f := recording(t, "ubuntu2604-rtxpro6000-nova")
	if !f.Loaded["nova_core"] || !f.Loaded["nova_drm"] || f.Loaded["nouveau"] || f.Loaded["nvidia"] {
		t.Errorf("loaded: %v", f.Loaded)
	}
	if !f.Loadable["nova_core"] || !f.Loadable["nova_drm"] || !f.Loadable["nouveau"] || !f.Loadable["nvidiafb"] || f.Loadable["nvidia"] {
		t.Errorf("loadable: %v", f.Loadable)
	}
	f = recording(t, "debian12-t4-driver535")
	for _, m := range []string{"nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm"} {
		if !f.Loadable[m] {
			t.Errorf("%s is not loadable: %v", m, f.Loadable)
		}
	}
}

func TestBusyGuestNamesWhoHoldsWhat(t *testing.T) {
	f := recording(t, "ubuntu2404-t4-locked")
	if f.Lock == nil || f.Lock.PID != 1423 || f.Lock.Command != "/usr/bin/python3 /usr/bin/unattended-upgrade --download-only" || f.Lock.File != "/var/lib/dpkg/lock-frontend" {
		t.Errorf("lock: %+v", f.Lock)
	}
	if f.Cloud != "running" || f.Init.State != "starting" {
		t.Errorf("cloud %q, init %q", f.Cloud, f.Init.State)
	}
	if want := []string{"linux-image-6.8.0-88-generic", "linux-image-generic"}; !slices.Equal(f.Held, want) {
		t.Errorf("held: %q", f.Held)
	}
	if want := []string{"linux-firmware (half-installed)", "postfix (half-configured)"}; !slices.Equal(f.Broken, want) {
		t.Errorf("broken: %q", f.Broken)
	}
	if _, ok := f.Packages["postfix"]; ok {
		t.Error("a package that is not configured counts as installed")
	}
}

func TestOffersKeepEveryVersionAndItsSource(t *testing.T) {
	f := recording(t, "debian12-gtx1050ti-nouveau")
	if got := f.Offered["nvidia-driver"]; !strings.HasPrefix(got, "535.") {
		t.Errorf("nvidia-driver: %q", got)
	}
	i := slices.IndexFunc(f.Offers, func(o facts.Offer) bool { return o.Package == "nvidia-driver" })
	if i < 0 || f.Offers[i].Suite != "bookworm/non-free" || f.Offers[i].Priority != 500 {
		t.Errorf("offer %d of %d", i, len(f.Offers))
	}
	if _, ok := f.Offered["linux-headers-6.1.0-50-amd64"]; !ok {
		t.Error("the headers of the installed kernel are not among the offers")
	}
	if f := recording(t, "ubuntu2404-l4-driver580"); f.Offered != nil || !slices.Contains(f.Unknown, "offered: not asked: a driver is installed") {
		t.Errorf("offers that were not asked for: %v, %q", f.Offered, f.Unknown)
	}
}

func TestReadOnlyRootIsToldApartFromBoot(t *testing.T) {
	f := recording(t, "debian12-readonly")
	for _, d := range f.Disks {
		if want := d.Path != "/boot"; d.ReadOnly != want {
			t.Errorf("%s: read-only %v", d.Path, d.ReadOnly)
		}
		if d.Path == "/boot" && d.Free != 3000*4096 {
			t.Errorf("/boot: %d bytes free", d.Free)
		}
	}
	if len(f.Disks) != 5 {
		t.Errorf("%d disks", len(f.Disks))
	}
}

func TestWindowsWithoutAddressAreTold(t *testing.T) {
	got := recording(t, "debian12-bar1-0m").GPUs[0].BARs
	want := []facts.BAR{
		{Index: 0, Start: 0xfa000000, Size: 16 << 20, Flags: 0x40200},
		{Index: 1, Flags: 0x14220c},
		{Index: 3, Size: 32 << 20, Flags: 0x14220c},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestFactsSurviveJSON(t *testing.T) {
	f := recording(t, "ubuntu2204-t4-runfile-oldkey")
	raw, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	var back facts.Facts
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(back)
	if err != nil {
		t.Fatal(err)
	}
	if string(raw) != string(again) {
		t.Error("facts differ after a round through JSON")
	}
	for _, key := range []string{`"os":{"id":"ubuntu"`, `"runfile":{"version":"525.147.05","uninstaller":"/usr/bin/nvidia-uninstall"}`, `"next_cmdline":[`, `"old_nvidia":["/etc/apt/sources.list.d/cuda.list"`} {
		if !strings.Contains(string(raw), key) {
			t.Errorf("JSON lacks %s", key)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	raw, err := os.ReadFile(filepath.Join(guests, "ubuntu2404-l4-next-kernel.txt"))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := facts.Parse(raw); err != nil {
			b.Fatal(err)
		}
	}
}
