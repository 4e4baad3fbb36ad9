package steps

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/assets"
	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
)

// fakeSignFile stands in for the kernel's scripts/sign-file: it takes the same arguments and appends the same thing,
// a detached CMS message and what says so (scripts/sign-file.c, include/linux/module_signature.h). A guest's own one
// is a program of its headers.
const fakeSignFile = `#!/bin/sh
set -eu
[ $# = 4 ] || exit 2
openssl x509 -inform DER -in "$3" -out "$4.crt"
openssl cms -sign -binary -noattr -nocerts -md "$1" -inkey "$2" -signer "$4.crt" -outform DER -in "$4" -out "$4.p7s"
n=$(stat -c %s "$4.p7s")
cat "$4.p7s" >>"$4"
printf '\000\000\002\000\000\000\000\000' >>"$4"
printf "$(printf '\\%03o\\%03o\\%03o\\%03o' 0 0 $((n / 256)) $((n % 256)))" >>"$4"
printf '~Module signature appended~\n' >>"$4"
rm -f "$4.crt" "$4.p7s"
`

// kernelModule is a file that modinfo reads: a relocatable ELF of one section that says something.
func kernelModule(t *testing.T, name string) []byte {
	t.Helper()
	info := "license=NVIDIA\x00name=" + name + "\x00vermagic=6.1.0-test SMP\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	const head, section = 64, 64
	h := elf.Header64{Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: head, Shentsize: section, Shnum: 3, Shstrndx: 2}
	copy(h.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	at := uint64(head)
	sections := []elf.Section64{{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC), Off: at, Size: uint64(len(info)), Addralign: 1},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: at + uint64(len(info)), Size: uint64(len(names)), Addralign: 1},
	}
	h.Shoff = at + uint64(len(info)+len(names))
	var b bytes.Buffer
	for _, part := range []any{h, []byte(info), []byte(names), sections} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// What DKMS left unsigned is signed, whatever it is packed with, by real openssl, xz, zstd and gzip, and read by
// modinfo; what carries the signature already, and what is not NVIDIA's own, stays as it is to the byte.
func TestModulesThatDKMSLeftUnsignedAreSigned(t *testing.T) {
	for _, tool := range []string{"openssl", "xz", "zstd", "gzip", "modinfo"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("no " + tool + " on this machine")
		}
	}
	const next, signer = "6.1.0-test", "gpuguest test key"
	root := t.TempDir()
	modules := filepath.Join(root, "lib/modules", next)
	shell := func(text string) (string, error) {
		text = strings.NewReplacer(root+"/lib/modules/", root+"/lib/modules/", "/lib/modules/", root+"/lib/modules/", "/usr/src/", root+"/usr/src/", "/usr/lib/linux-kbuild-", root+"/kbuild-",
			"/var/lib/gpuguest/secure-boot", root+"/secure-boot").Replace(text)
		cmd := exec.Command("/bin/sh", "-c", "set -eu\n"+assets.StepLibrary+"\n"+text)
		cmd.Env = append(os.Environ(), "GPUGUEST_STATE="+root+"/state", "PATH="+root+"/bin:"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	write := func(name string, data []byte, mode fs.FileMode) string {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("lib/modules/"+next+"/build/scripts/sign-file", []byte(fakeSignFile), 0o755)
	// Debian's kmod reads no gzip; one of a distribution that packs its modules so does.
	kmod, err := exec.LookPath("modinfo")
	if err != nil {
		t.Fatal(err)
	}
	write("bin/modinfo", []byte("#!/bin/sh\nfor f in \"$@\"; do :; done\ncase $f in *.gz) gzip -dc \"$f\" >"+root+"/unpacked.ko && exec "+kmod+" \"$1\" \"$2\" "+root+"/unpacked.ko ;; esac\nexec "+kmod+" \"$@\"\n"), 0o755)
	write("bin/depmod", []byte("#!/bin/sh\necho \"$@\" >>"+root+"/depmod.log\n"), 0o755)
	must := func(out string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	must(shell(`mkdir -p /var/lib/gpuguest/secure-boot
openssl req -new -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=` + signer + `" -outform DER -keyout /var/lib/gpuguest/secure-boot/key.pem -out /var/lib/gpuguest/secure-boot/cert.der 2>/dev/null`))

	plain := map[string][]byte{} // path below the kernel's folder → the module itself
	for path, pack := range map[string]string{
		"updates/dkms/nvidia.ko":                          "",
		"updates/dkms/nvidia-modeset.ko.gz":               "gzip -n",
		"extra/nvidia-uvm.ko.xz":                          "xz",
		"kernel/drivers/video/nvidia-drm.ko.zst":          "zstd -q --rm",
		"updates/signed/nvidia-peermem.ko":                "",
		"kernel/drivers/video/fbdev/nvidia/nvidiafb.ko":   "",
		"kernel/drivers/net/ethernet/nvidia/forcedeth.ko": "",
	} {
		bare := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(path, ".gz"), ".xz"), ".zst")
		plain[path] = kernelModule(t, strings.TrimSuffix(filepath.Base(bare), ".ko"))
		file := write("lib/modules/"+next+"/"+bare, plain[path], 0o600)
		if pack != "" {
			must(shell(pack + " " + file))
		}
	}
	must(shell(`/lib/modules/` + next + `/build/scripts/sign-file sha256 /var/lib/gpuguest/secure-boot/key.pem /var/lib/gpuguest/secure-boot/cert.der /lib/modules/` + next + `/updates/signed/nvidia-peermem.ko`))
	// What a power cut left.
	write("lib/modules/"+next+"/extra/nvidia-uvm.ko.xz.gpuguest-tmp", []byte("half"), 0o600)
	untouched := map[string][]byte{}
	for _, path := range []string{"updates/signed/nvidia-peermem.ko", "kernel/drivers/video/fbdev/nvidia/nvidiafb.ko", "kernel/drivers/net/ethernet/nvidia/forcedeth.ko"} {
		data, err := os.ReadFile(filepath.Join(modules, path))
		if err != nil {
			t.Fatal(err)
		}
		untouched[path] = data
	}

	var step Step
	for _, s := range Install() {
		if s.ID == "sign-modules" {
			step = s
		}
	}
	in := Input{Facts: facts.Facts{Kernel: facts.Kernel{Next: next}}}
	in.Want.Signing = choice.Signing{KeySHA256: "aa", Signer: signer}
	out, err := shell(step.Check(in))
	for _, name := range []string{"nvidia.ko", "nvidia-modeset.ko.gz", "nvidia-uvm.ko.xz", "nvidia-drm.ko.zst"} {
		if err == nil || !strings.Contains(out, name+" is signed by nobody") {
			t.Errorf("%s: before, the check says %v: %s", name, err, out)
		}
	}
	if strings.Contains(out, "peermem") || strings.Contains(out, "nvidiafb") || strings.Contains(out, "forcedeth") || strings.Contains(out, "gpuguest-tmp") {
		t.Errorf("before, the check says: %s", out)
	}
	for range 2 { // what is done is left alone
		for _, a := range step.Apply(in) {
			must(shell(a.(action.Run).Script))
		}
		if out, err := shell(step.Check(in)); err != nil || !strings.Contains(out, "signed by "+signer) {
			t.Fatalf("after, the check says %v: %s", err, out)
		}
	}
	for path, unpack := range map[string]string{
		"updates/dkms/nvidia.ko": "cat", "updates/dkms/nvidia-modeset.ko.gz": "gzip -dc", "extra/nvidia-uvm.ko.xz": "xz -dc", "kernel/drivers/video/nvidia-drm.ko.zst": "zstd -dcq",
	} {
		file := filepath.Join(modules, path)
		data, err := exec.Command("/bin/sh", "-c", unpack+" "+file).Output()
		if err != nil || !bytes.HasPrefix(data, plain[path]) || !bytes.HasSuffix(data, []byte("~Module signature appended~\n")) || bytes.Count(data, []byte("~Module signature appended~")) != 1 {
			t.Errorf("%s: %d bytes, %v", path, len(data), err)
		}
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o644 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	// The kernel reads xz with this check alone.
	if out, err := exec.Command("xz", "--robot", "--list", filepath.Join(modules, "extra/nvidia-uvm.ko.xz")).CombinedOutput(); err != nil || !strings.Contains(string(out), "CRC32") {
		t.Errorf("xz: %v: %s", err, out)
	}
	for path, was := range untouched {
		if data, err := os.ReadFile(filepath.Join(modules, path)); err != nil || !bytes.Equal(data, was) {
			t.Errorf("%s was written: %v", path, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(modules, "*/*gpuguest-tmp*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if log, err := os.ReadFile(filepath.Join(root, "depmod.log")); err != nil || string(log) != next+"\n"+next+"\n" {
		t.Errorf("depmod was told %q, %v", log, err)
	}
}
