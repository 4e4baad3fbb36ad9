package bundle

import (
	"bytes"
	"strings"
	"testing"
)

// planted are lines as they stand in logs, and what of each must be gone.
var planted = []struct{ line, secret string }{
	{"Err:1 http://alice:hunter2@proxy.example:3128/debian bookworm InRelease", "hunter2"},
	{"Err:1 http://alice:hunter2@proxy.example:3128/debian bookworm InRelease", "alice"},
	{"deb https://bearer:0zQhTokenOfMine@esm.ubuntu.com/apps/ubuntu jammy main", "0zQhTokenOfMine"},
	{"http_proxy=http://user:p@ss:w0rd@10.1.1.1:8080/", "w0rd"},
	{`Acquire::http::Proxy "http://u5er:s3cr3t@proxy:80";`, "s3cr3t"},
	{"curl --proxy-user bob:letmein123 https://x.example", "letmein123"},
	{"Authorization: Bearer abcdef0123456789", "abcdef0123456789"},
	{"> Proxy-Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"},
	{`"Authorization": "Negotiate YIIabc def"`, "YIIabc"},
	{"x-api-key: 8f14e45fceea167a", "8f14e45fceea167a"},
	{"Cookie: session=verysecretvalue", "verysecretvalue"},
	{"password=correcthorse", "correcthorse"},
	{`DB_PASSWORD: "battery staple"`, "staple"},
	{"registration token = AbCd-1234", "AbCd-1234"},
	{"GET /x?sig=Zm9vYmFy&se=2026 HTTP/1.1", "Zm9vYmFy"},
	{"https://bucket.example/f?X-Amz-Signature=0123abcd&X-Amz-Credential=AKIAX", "0123abcd"},
	{"machine esm.ubuntu.com/apps/ubuntu/ login bearer password 0zQabcdefg", "0zQabcdefg"},
	{"client_configuration_token_07-11-2026.tok eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJOTFMifQ.c2lnbmF0dXJl", "eyJhdWQiOiJOTFMifQ"},
	{"pro attach C14cZK3yXoVwe5XPTBbPqBgDrpq3Hm", "C14cZK3yXoVwe5XPTBbPqBgDrpq3Hm"},
	{"using nvapi-AbCdEfGhIjKlMnOpQrStUvWx", "AbCdEfGhIjKlMnOpQrStUvWx"},
	{"clone with ghp_0123456789abcdefghijABCDEFGHIJ", "ghp_0123456789abcdefghijABCDEFGHIJ"},
	{"aws AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"},
	{"subscription-manager register --activationkey=prod-gpu --org=1234567", "prod-gpu"},
	{"subscription-manager register --activationkey=prod-gpu --org=1234567", "1234567"},
	{"system identity: 5f1ad2b6-0d2f-4a5a-9a62-0123456789ab", "5f1ad2b6-0d2f-4a5a-9a62-0123456789ab"},
	{"    Serial Number                         : 0324018001234", "0324018001234"},
	{"    GPU UUID                              : GPU-5741e91d-0000-4000-8000-1c8200010000", "5741e91d-0000-4000-8000-1c8200010000"},
	{"    GPU PDI                               : 0x8a4bd1c21a1c1e0f", "0x8a4bd1c21a1c1e0f"},
	{"        Chassis Serial Number             : 1821325191344", "1821325191344"},
	{"    <serial>0324018001234</serial>", "0324018001234"},
	{"NVRM: GPU at PCI:0000:9b:00: GPU-a0b1c2d3-e4f5-a6b7-c8d9-e0f1a2b3c4d5", "a0b1c2d3-e4f5-a6b7-c8d9-e0f1a2b3c4d5"},
	{"	Capabilities: [148 v1] Device Serial Number 00-15-17-ff-ff-a8-b2-c1", "00-15-17-ff-ff-a8-b2-c1"},
	{"usb 1-1: SerialNumber: 4C530001230112", "4C530001230112"},
	{"E: ID_SERIAL_SHORT=S3EWNX0K123456", "S3EWNX0K123456"},
	{"e1000 0000:00:03.0 eth0: (PCI:33MHz:32-bit) 52:54:00:12:34:56", "52:54:00:12:34:56"},
	{"mlx5_0: port GUID 0002:c903:00ff:eedd", "0002:c903:00ff:eedd"},
	{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJtPlantedKeyOfTheHost0123456789abcdef root@vm", "PlantedKeyOfTheHost"},
	{"ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTY=", "AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTY="},
	{"256 SHA256:uNiVztksCsDhcc0u9e8BrrJXVGgIrEUjnCPDHJRbN9E root@vm (ED25519)", "uNiVztksCsDhcc0u9e8BrrJXVGgIrEUjnCPDHJRbN9E"},
	{"machine-id 0a1b2c3d4e5f60718293a4b5c6d7e8f9", "0a1b2c3d4e5f60718293a4b5c6d7e8f9"},
	{"Requested-By: carol (1000)", "carol"},
	{"/home/dave/NVIDIA-Linux-x86_64-580.95.05.run", "dave"},
	{"sudo: pam_unix(sudo:session): session opened for user root(uid=0) by erin(uid=1000)", "erin"},
	{"PWD=/root ; SUDO_USER=frank ; COMMAND=/bin/sh", "frank"},
	{"Maintainer frank@corp.example", "frank@corp.example"},
	{"[    2.0] systemd[1]: Hostname set to <build-farm-07>.", "build-farm-07"},
	{"build-farm-07.corp.example kernel: nvidia", "corp.example"},
}

var names = []string{"build-farm-07.corp.example", "build-farm-07"}

func TestEverySecretIsMaskedWhereverItStands(t *testing.T) {
	for _, p := range planted {
		for _, line := range []string{p.line, p.line + "\n", "|" + p.line, "before\n[ 12.0] " + p.line + "\nafter", strings.ToUpper(p.line[:1]) + p.line[1:] + "\r"} {
			got := string(NewMasker(names...).File([]byte(line)))
			if strings.Contains(strings.ToLower(got), strings.ToLower(p.secret)) {
				t.Errorf("%q is left in %q", p.secret, got)
			}
		}
	}
}

func TestKeyBlocksAreLeftOutWhereverTheyEnd(t *testing.T) {
	const key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\nplantedplanted\n"
	for name, c := range map[string]struct{ in, out string }{
		"whole":       {"a\n" + key + "-----END OPENSSH PRIVATE KEY-----\nb\n", "a\n[a key or certificate was left out]\nb\n"},
		"cut off":     {"a\n" + key, "a\n[a key or certificate was left out]\n"},
		"in a line":   {"key: -----BEGIN RSA PRIVATE KEY-----planted-----END RSA PRIVATE KEY----- b\nc", "key: [a key or certificate was left out]\nc"},
		"entitlement": {"-----BEGIN ENTITLEMENT DATA-----\nplanted\n-----END ENTITLEMENT DATA-----\n-----BEGIN RSA SIGNATURE-----\nplanted\n-----END RSA SIGNATURE-----\nb", "[a key or certificate was left out]\n[a key or certificate was left out]\nb"},
		"set in":      {"|: -----BEGIN PGP PUBLIC KEY BLOCK-----\n|: planted\n|: -----END PGP PUBLIC KEY BLOCK-----\n== next\n", "|: [a key or certificate was left out]\n== next\n"},
	} {
		if got := string(NewMasker().File([]byte(c.in))); got != c.out {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestWhatIsNoSecretStays(t *testing.T) {
	for _, line := range []string{
		"NVRM: BAR1 is 0M @ 0x0 (PCI:0000:0a:00.0)",
		"NVRM: Xid (PCI:0000:9b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
		"0001:00:00.0 VGA compatible controller [0300]: NVIDIA Corporation GP107 [GeForce GTX 1050 Ti] [10de:1c82] (rev a1)",
		"Setting up nvidia-kernel-dkms (535.183.01-1~deb12u1) ...",
		"|ii \tlibsecret-1-0:amd64\t0.20.5",
		"2026-11-22 10:11:12 status installed libpam-passwdqc:amd64 2.0.3",
		"[    0.000000] Linux version 6.1.0-37-amd64 (debian-kernel@lists.debian.org) (gcc-12 (Debian 12.2.0-14) 12.2.0) #1 SMP",
		"[    0.000000] Command line: BOOT_IMAGE=/boot/vmlinuz-6.1.0-37-amd64 root=/dev/vda1 ro quiet pci=realloc",
		"Serial: 8250/16550 driver, 4 ports, IRQ sharing enabled",
		"    Serial Number                         : N/A",
		"Get:1 http://mirror.example/debian bookworm/main amd64 dkms all 3.0.10-8 [49.0 kB]",
		"systemd[1]: Started session-1.scope - Session 1 of User root.",
		"driver 580.95.05 and address 10.0.2.15",
		"systemd[1]: Starting modprobe@drm.service - Load Kernel Module drm...",
		"fakegpu: pretending 10de:1c82:1b4c:11bf, mode ok",
	} {
		if got := string(NewMasker("debian", "root", "10.0.2.15").File([]byte(line))); got != line {
			t.Errorf("%q became %q", line, got)
		}
	}
}

func TestTheSameValueIsTheSameWordInEveryFile(t *testing.T) {
	m := NewMasker()
	a := string(m.File([]byte("GPU-5741e91d-0000-4000-8000-1c8200010000 and 6741e91d-0000-4000-8000-1c8200010000")))
	b := string(m.File([]byte("again GPU-5741E91D-0000-4000-8000-1C8200010000")))
	if a != "GPU-[uuid-1] and [uuid-2]" || b != "again GPU-[uuid-1]" {
		t.Errorf("%q, %q", a, b)
	}
	if m.Counts()["uuid"] != 3 {
		t.Errorf("%v", m.Counts())
	}
	// A file that was masked already is left as it is.
	if c := string(m.File([]byte(a + "\npassword=[secret-1]"))); c != a+"\npassword=[secret-1]" {
		t.Errorf("%q", c)
	}
}

func FuzzMask(f *testing.F) {
	for _, p := range planted {
		f.Add(p.line, p.line)
	}
	f.Add("-----BEGIN X-----", "\xff\x00")
	f.Fuzz(func(t *testing.T, before, after string) {
		m := NewMasker(names...)
		in := []byte(before + "\nAuthorization: Bearer plantedplanted0\n" + after)
		out := m.File(in)
		if bytes.Contains(out, []byte("plantedplanted0")) {
			t.Errorf("%q", out)
		}
		if bytes.Count(out, []byte("\n")) > bytes.Count(in, []byte("\n")) {
			t.Errorf("lines were added: %q", out)
		}
	})
}
