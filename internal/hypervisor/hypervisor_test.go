package hypervisor_test

import (
	"bytes"
	"context"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"gpuguest/assets"
	"gpuguest/internal/facts"
	"gpuguest/internal/hypervisor"
)

var update = flag.Bool("update", false, "write the goldens anew; read the difference in review")

const hosts = "../../testdata/hosts"

// plant writes a tree of testdata/hosts into a folder: its files, and the symbolic links that its file
// "links" lists.
func plant(t testing.TB, name string) string {
	t.Helper()
	root := t.TempDir()
	tree, err := txtar.ParseFile(filepath.Join(hosts, name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tree.Files {
		if f.Name != "links" {
			write(t, filepath.Join(root, f.Name), string(f.Data))
			continue
		}
		for line := range strings.Lines(string(f.Data)) {
			from, to, ok := strings.Cut(strings.TrimSpace(line), " -> ")
			if !ok {
				t.Fatalf("links: %q", line)
			}
			if err := os.Symlink(to, filepath.Join(root, from)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	// Executable, as the tools are that the script looks for.
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

// raw is what the script prints of a tree.
func raw(t testing.TB, root string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, "sh", "-c", assets.Hypervisor)
	c.Env = []string{"GPUGUEST_ROOT=" + root, "GPUGUEST_SYS=" + root + "/sys"}
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func look(t testing.TB, root string) hypervisor.Host {
	t.Helper()
	h, err := hypervisor.Parse(raw(t, root))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestWhatIsSaidOfEveryHost(t *testing.T) {
	trees, err := filepath.Glob(hosts + "/*.txtar")
	if err != nil || len(trees) < 8 {
		t.Fatalf("%d trees: %v", len(trees), err)
	}
	for _, path := range trees {
		name := strings.TrimSuffix(filepath.Base(path), ".txtar")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := look(t, plant(t, name))
			var text bytes.Buffer
			if err := hypervisor.PrintFindings(&text, hypervisor.Check(h)); err != nil {
				t.Fatal(err)
			}
			var addresses []string
			if name == "intel-twins" {
				addresses = []string{"41:00.0"}
			}
			text.WriteString("\n== plan\n")
			p, err := hypervisor.MakePlan(h, addresses)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Print(&text); err != nil {
				t.Fatal(err)
			}
			text.WriteString("\n== qemu-args\n")
			args, err := hypervisor.QEMUArgs(h, addresses, hypervisor.VM{SSH: "127.0.0.1:5022"})
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&text, strings.Join(args, "\n"))
			text.WriteString("\n== libvirt-xml\n")
			domain, err := hypervisor.LibvirtXML(h, addresses, hypervisor.VM{HideKVM: true})
			if err != nil {
				t.Fatal(err)
			}
			text.WriteString(domain)

			golden := filepath.Join(hosts, name+".golden")
			if *update {
				if err := os.WriteFile(golden, text.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(want, text.Bytes()) {
				t.Errorf("differs from %s (go test ./internal/hypervisor -update rewrites it):\n%s", golden, text.String())
			}
		})
	}
}

// status returns one finding's status.
func status(t *testing.T, all []hypervisor.Finding, id, device string) hypervisor.Status {
	t.Helper()
	for _, f := range all {
		if f.ID == id && f.Device == device {
			return f.Status
		}
	}
	t.Fatalf("no finding %s of %q", id, device)
	return ""
}

func TestEachFaultIsFoundWhereItIs(t *testing.T) {
	found := map[string][]hypervisor.Finding{}
	const gtx, twin, l4, a100 = "0000:41:00", "0000:03:00", "0000:65:00", "0000:c1:00"
	for _, c := range []struct {
		host, id, device string
		want             hypervisor.Status
	}{
		{"intel-gtx1050ti", "iommu-kernel", "", hypervisor.OK},
		{"intel-gtx1050ti", "driver", gtx, hypervisor.Bad}, // the audio function is snd_hda_intel's
		{"intel-gtx1050ti", "group", gtx, hypervisor.OK},
		{"intel-gtx1050ti", "ids", gtx, hypervisor.OK}, // 1b4c:11bf, which both functions show, is the card's and not the chip's
		{"intel-gtx1050ti", "ignore-msrs", "", hypervisor.OK},
		{"intel-twins", "ids", gtx, hypervisor.Warn},
		{"intel-twins", "ids", twin, hypervisor.Warn},
		{"intel-twins", "console", twin, hypervisor.Warn},
		{"intel-twins", "console", gtx, hypervisor.OK},
		{"intel-twins", "vfio", "", hypervisor.Warn},
		{"intel-twins", "ignore-msrs", "", hypervisor.Warn},
		{"amd-a100", "iommu-firmware", "", hypervisor.OK},
		{"amd-a100", "iommu-arguments", "", hypervisor.OK},
		{"amd-a100", "bars", a100, hypervisor.OK},
		{"amd-a100", "ids", a100, hypervisor.OK},
		{"intel-no-iommu", "iommu-firmware", "", hypervisor.Bad},
		{"intel-no-iommu", "iommu-kernel", "", hypervisor.Bad},
		{"intel-no-iommu", "iommu-arguments", "", hypervisor.Bad},
		{"intel-no-iommu", "group", gtx, hypervisor.Bad},
		{"intel-shared-group", "group", l4, hypervisor.Bad},
		{"intel-bar-lost", "bars", l4, hypervisor.Bad},
		{"intel-vgpu", "ids", l4, hypervisor.OK}, // its own virtual function is no twin
		{"intel-vgpu", "sriov", l4, hypervisor.Warn},
		{"intel-vgpu", "driver", l4, hypervisor.Bad},
	} {
		t.Run(c.host+" "+c.id+" "+c.device, func(t *testing.T) {
			if found[c.host] == nil {
				found[c.host] = hypervisor.Check(look(t, plant(t, c.host)))
			}
			if got := status(t, found[c.host], c.id, c.device); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// The kernel forgets a BAR that it found no room for: its line is zero, as one's that never was. Its register, or the
// kernel's log, still tells of it.
func TestABARThatTheKernelForgotIsLost(t *testing.T) {
	const (
		slot, dir = "0000:65:00", "sys/bus/pci/devices/0000:65:00.0/"
		line      = "0x000038a000000000 0x000038a7ffffffff 0x000000000014220c"
		zero      = "0x0000000000000000 0x0000000000000000 0x0000000000000000"
		forgotten = "[    1.0] pci 0000:65:00.0: BAR 1 [mem size 0x800000000 64bit pref]: can't assign; no space\n[    1.0] pci 0000:65:00.0: BAR 1 [mem size 0x800000000 64bit pref]: failed to assign\n"
		older     = "[    1.0] pci 0000:65:00.0: BAR 1: no space for [mem size 0x800000000 64bit pref]\n"
		found     = "[    2.0] pci 0000:65:00.0: BAR 1 [mem 0x38a000000000-0x38a7ffffffff 64bit pref]: assigned\n"
		other     = "[    1.0] pci 0000:66:00.0: BAR 1 [mem size 0x800000000 64bit pref]: failed to assign\n"
	)
	// Vendor to header type, then the registers: 16 MB below 4 GB, two 64-bit ones, none.
	config := func(bar1 string) string {
		return strings.Repeat("\x00", 16) + "\x00\x00\x00\xc8" + bar1 + "\x0c\x00\x00\x00\xa8\x38\x00\x00" + "\x00\x00\x00\x00"
	}
	const placed, unplaced, none = "\x0c\x00\x00\x00\xa0\x38\x00\x00", "\x0c\x00\x00\x00\x00\x00\x00\x00", "\x00\x00\x00\x00\x00\x00\x00\x00"
	for _, c := range []struct {
		name, config, log string
		zeroed            bool
		want              hypervisor.Status
		seen              string
	}{
		{"in its place", config(placed), "", false, hypervisor.OK, "every BAR has its addresses"},
		{"its line is zero and its register is one", config(unplaced), "", true, hypervisor.Bad, "BAR 1 of 0000:65:00.0 (of unknown size)"},
		{"its line is zero and the log tells", config(unplaced), forgotten, true, hypervisor.Bad, "BAR 1 of 0000:65:00.0 (32 GB)"},
		{"the log of an older kernel tells, and the registers are not readable", "", older, true, hypervisor.Bad, "BAR 1 of 0000:65:00.0 (32 GB)"},
		{"it was given room in the end", config(placed), forgotten + found, false, hypervisor.OK, "every BAR has its addresses"},
		{"the log tells of another device", config(none), other, true, hypervisor.OK, "every BAR has its addresses"},
		{"the function is switched off", strings.Repeat("\xff", 64), "", false, hypervisor.OK, "every BAR has its addresses"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			root := plant(t, "intel-l4-clean")
			if c.zeroed {
				text, err := os.ReadFile(filepath.Join(root, dir+"resource"))
				if err != nil || !strings.Contains(string(text), line) {
					t.Fatalf("%v: %s", err, text)
				}
				write(t, filepath.Join(root, dir+"resource"), strings.Replace(string(text), line, zero, 1))
			}
			if c.config != "" {
				write(t, filepath.Join(root, dir+"config"), c.config)
			}
			log, err := os.ReadFile(filepath.Join(root, "var/log/dmesg"))
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(root, "var/log/dmesg"), string(log)+c.log)
			for _, f := range hypervisor.Check(look(t, root)) {
				if f.ID == "bars" && f.Device == slot && (f.Status != c.want || !strings.Contains(f.Seen, c.seen)) {
					t.Errorf("%s: %s", f.Status, f.Seen)
				}
			}
		})
	}
}

func TestNothingIsAmissOnACleanHost(t *testing.T) {
	for _, name := range []string{"intel-l4-clean", "amd-a100"} {
		for _, f := range hypervisor.Check(look(t, plant(t, name))) {
			if f.Status != hypervisor.OK {
				t.Errorf("%s: %s %s: %s: %s", name, f.ID, f.Device, f.Status, f.Seen)
			}
		}
	}
}

func TestWhatIsNotToldIsUnknown(t *testing.T) {
	for _, c := range []struct{ remove, id, device string }{
		{"sys/firmware", "iommu-firmware", ""},
		{"proc/cmdline", "iommu-arguments", ""},
		{"proc/cpuinfo", "cpu", ""},
		{"proc/cpuinfo", "address-width", "0000:65:00"},
		{"sys/module", "vfio", ""},
		{"sys/module", "ignore-msrs", ""},
		{"var/log/dmesg", "ignore-msrs", ""},
		{"sys/bus/pci", "gpu", ""},
		{"sys/bus/pci/devices/0000:65:00.0/resource", "bars", "0000:65:00"},
	} {
		t.Run(c.remove+" "+c.id, func(t *testing.T) {
			t.Parallel()
			root := plant(t, "intel-l4-clean")
			if err := os.RemoveAll(filepath.Join(root, c.remove)); err != nil {
				t.Fatal(err)
			}
			if c.id == "iommu-firmware" {
				// An IOMMU at work would tell as much.
				if err := os.RemoveAll(filepath.Join(root, "sys/class/iommu")); err != nil {
					t.Fatal(err)
				}
			}
			if c.remove == "sys/module" {
				if err := os.RemoveAll(filepath.Join(root, "lib")); err != nil {
					t.Fatal(err)
				}
			}
			if got := status(t, hypervisor.Check(look(t, root)), c.id, c.device); got != hypervisor.Unknown {
				t.Errorf("%s, want unknown", got)
			}
		})
	}
}

func TestTheWindowHoldsEveryBAR(t *testing.T) {
	const gib = uint64(1) << 30
	gpu := func(sizes ...uint64) hypervisor.GPU {
		f := hypervisor.Function{Address: "0000:41:00.0"}
		for i, s := range sizes {
			f.BARs = append(f.BARs, facts.BAR{Index: i, Start: 1, Size: s, Flags: 0x14220c})
		}
		return hypervisor.GPU{Slot: "0000:41:00", Functions: []hypervisor.Function{f}}
	}
	for _, c := range []struct {
		name string
		gpus []hypervisor.GPU
		want uint64
	}{
		{"a small one keeps the default", []hypervisor.GPU{gpu(256<<20, 32<<20)}, 32 * gib},
		{"32 GB and some do not fit in 32 GB", []hypervisor.GPU{gpu(32*gib, 32<<20)}, 64 * gib},
		{"a power of two leaves room for other devices", []hypervisor.GPU{gpu(32 * gib)}, 64 * gib},
		{"two of 128 GB", []hypervisor.GPU{gpu(128*gib, 32<<20), gpu(128*gib, 32<<20)}, 512 * gib},
		{"eight of 256 GB", slices.Repeat([]hypervisor.GPU{gpu(256*gib, 32<<20)}, 8), 4096 * gib},
	} {
		got, err := hypervisor.GuestWindow(c.gpus)
		if err != nil || got != c.want {
			t.Errorf("%s: %d GB, %v, want %d GB", c.name, got/gib, err, c.want/gib)
		}
	}
	for name, g := range map[string]hypervisor.GPU{"no BAR": gpu(), "size 0": gpu(32*gib, 0), "more than OVMF takes": gpu(16<<40, 1<<20), "past 64 bits": gpu(1<<63, 1<<63)} {
		if w, err := hypervisor.GuestWindow([]hypervisor.GPU{g}); err == nil {
			t.Errorf("%s: %d, want an error", name, w)
		}
	}
}

func TestOldDriversNeedKVMHidden(t *testing.T) {
	for driver, want := range map[string]bool{"390": true, "460.91.03": true, "465": false, "580.95.05": false} {
		if got, err := hypervisor.HidesFor(driver); err != nil || got != want {
			t.Errorf("%s: %v, %v", driver, got, err)
		}
	}
	if _, err := hypervisor.HidesFor("latest"); err == nil {
		t.Error("latest: no error")
	}
	h := look(t, plant(t, "intel-l4-clean"))
	args, err := hypervisor.QEMUArgs(h, nil, hypervisor.VM{HideKVM: true})
	if err != nil || !slices.Contains(args, "host,host-phys-bits=on,kvm=off") {
		t.Errorf("%v %v", args, err)
	}
}

func TestAddressesAreUnderstood(t *testing.T) {
	h := look(t, plant(t, "intel-twins"))
	for _, a := range []string{"41:00.0", "41:00", "0000:41:00.1", "0000:41:00"} {
		gpus, err := h.GPUs([]string{a})
		if err != nil || len(gpus) != 1 || gpus[0].Slot != "0000:41:00" || len(gpus[0].Functions) != 2 {
			t.Errorf("%s: %v, %v", a, gpus, err)
		}
	}
	for _, a := range []string{"42:00.0", "0000:40:03.1", "", "x"} {
		if _, err := h.GPUs([]string{a}); err == nil {
			t.Errorf("%q: no error", a)
		}
	}
	if gpus, err := h.GPUs([]string{"41:00.0", "41:00.1"}); err != nil || len(gpus) != 1 {
		t.Errorf("one GPU twice: %v, %v", gpus, err)
	}
	vgpu := look(t, plant(t, "intel-vgpu"))
	if gpus, err := vgpu.GPUs(nil); err != nil || len(gpus) != 1 || len(gpus[0].Functions) != 1 {
		t.Errorf("a virtual function counts as a GPU: %v, %v", gpus, err)
	}
	if gpus, err := vgpu.GPUs([]string{"65:00.4"}); err != nil || len(gpus) != 1 || !gpus[0].Functions[0].Virtual {
		t.Errorf("a named virtual function: %v, %v", gpus, err)
	}
}

func TestOnlyTheNamedAddressesAreSetAside(t *testing.T) {
	root := plant(t, "intel-twins")
	p, err := hypervisor.MakePlan(look(t, root), []string{"41:00.0"})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(p.Files, func(f hypervisor.File) bool { return strings.HasSuffix(f.Path, "gpuguest-vfio-bind") })
	if i < 0 {
		t.Fatal("no script")
	}
	script := strings.NewReplacer("/sys/", root+"/sys/", "/sbin/modprobe", "true").Replace(p.Files[i].Content)
	if out, err := exec.Command("sh", "-eu", "-c", script, "sh", "override").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for address, want := range map[string]string{
		"0000:41:00.0": "vfio-pci", "0000:41:00.1": "vfio-pci", "0000:03:00.0": "(null)", "0000:03:00.1": "(null)",
	} {
		got, err := os.ReadFile(filepath.Join(root, "sys/bus/pci/devices", address, "driver_override"))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: %q, %v, want %q", address, got, err, want)
		}
	}
	for _, f := range p.Files {
		if strings.Contains(f.Content, "ids=") {
			t.Errorf("%s takes by id:\n%s", f.Path, f.Content)
		}
	}
}

func TestTheBindScriptLeavesADriverAlone(t *testing.T) {
	root := plant(t, "intel-twins")
	p, err := hypervisor.MakePlan(look(t, root), []string{"41:00.0"})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(p.Files, func(f hypervisor.File) bool { return strings.HasSuffix(f.Path, "gpuguest-vfio-bind") })
	write(t, filepath.Join(root, "sys/bus/pci/drivers/nouveau/0000:41:00.0"), "")
	script := strings.NewReplacer("/sys/", root+"/sys/", "/sbin/modprobe", "true").Replace(p.Files[i].Content)
	out, err := exec.Command("sh", "-c", script, "sh", "bind").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "nouveau has it already") {
		t.Errorf("%v: %s", err, out)
	}
	unbound, err := os.ReadFile(filepath.Join(root, "sys/bus/pci/drivers/snd_hda_intel/unbind"))
	if err != nil || strings.TrimSpace(string(unbound)) != "0000:41:00.1" {
		t.Errorf("the audio function: %q, %v", unbound, err)
	}
	if _, err := os.Stat(filepath.Join(root, "sys/bus/pci/drivers/nouveau/unbind")); err == nil {
		t.Error("nouveau was made to let go")
	}
}

func TestABuiltInVFIOIsNeverWaitedFor(t *testing.T) {
	root := plant(t, "intel-twins")
	write(t, filepath.Join(root, "lib/modules/6.1.0-50-amd64/modules.builtin"), "kernel/drivers/vfio/pci/vfio-pci.ko\n")
	h := look(t, root)
	p, err := hypervisor.MakePlan(h, []string{"41:00"})
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprint(p.Files)
	if !strings.Contains(text, "install nouveau ") || strings.Contains(text, "install vfio-pci") || strings.Contains(text, "softdep") {
		t.Errorf("by address:\n%s", text)
	}
	if p, err = hypervisor.MakePlan(h, nil); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(p.Args, "vfio-pci.ids=10de:1c82,10de:0fb9") {
		t.Errorf("both cards, so by id: %v", p.Args)
	}
}

func TestPlansScriptsPassShellcheck(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Skip("shellcheck is not here")
	}
	p, err := hypervisor.MakePlan(look(t, plant(t, "intel-twins")), []string{"41:00.0"})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range p.Files {
		if !strings.HasPrefix(f.Content, "#!/bin/sh") {
			continue
		}
		seen++
		c := exec.Command("shellcheck", "-e", "SC1091", "-")
		c.Stdin = strings.NewReader(f.Content)
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", f.Path, err, out)
		}
	}
	if seen != 2 {
		t.Errorf("%d scripts, want the binder and the hook", seen)
	}
}

func TestTheDomainIsXML(t *testing.T) {
	h := look(t, plant(t, "amd-a100"))
	text, err := hypervisor.LibvirtXML(h, nil, hypervisor.VM{HideKVM: true})
	if err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(strings.NewReader(text))
	devices := 0
	for {
		tok, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := tok.(xml.StartElement); ok && s.Name.Local == "hostdev" {
			devices++
		}
	}
	if devices != 2 {
		t.Errorf("%d devices, want 2", devices)
	}
}

func TestAnSSHPortIsChecked(t *testing.T) {
	h := look(t, plant(t, "intel-l4-clean"))
	for _, bad := range []string{"5022", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:70000", "a,b:22", "x-y:22"} {
		if args, err := hypervisor.QEMUArgs(h, nil, hypervisor.VM{SSH: bad}); err == nil {
			t.Errorf("%q: %v", bad, args)
		}
	}
}

func TestABrokenAnswerIsRefused(t *testing.T) {
	whole := string(raw(t, plant(t, "intel-l4-clean")))
	for name, text := range map[string]string{
		"cut off":         whole[:len(whole)/2],
		"empty":           "",
		"another script":  strings.Replace(whole, "gpuguest-hypervisor 1", "gpuguest-facts 1", 1),
		"a forged device": strings.Replace(whole, "0000:65:00.0", "$(reboot)", 1),
		"a bad window":    strings.Replace(whole, "38a000000000-", "38b000000000-", 1),
	} {
		if _, err := hypervisor.Parse([]byte(text)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"intel-twins", "amd-a100", "intel-vgpu"} {
		f.Add(raw(f, plant(f, name)))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := hypervisor.Parse(text)
		if err != nil {
			return
		}
		for _, finding := range hypervisor.Check(h) {
			if finding.ID == "" || finding.Status == "" || finding.Seen == "" {
				t.Errorf("%+v", finding)
			}
		}
		if _, err := hypervisor.MakePlan(h, nil); err == nil {
			_, _ = hypervisor.QEMUArgs(h, nil, hypervisor.VM{})
			_, _ = hypervisor.LibvirtXML(h, nil, hypervisor.VM{})
		}
	})
}
