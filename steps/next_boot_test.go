package steps

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
)

// TestNextBootWantsASignerThatTheKernelTrusts runs the check over a list of the kernel's keys and a modinfo of its own.
func TestNextBootWantsASignerThatTheKernelTrusts(t *testing.T) {
	const dkms, company = "DKMS module signing key", "Example Company CA"
	enabled := func(certs ...facts.Certificate) facts.Facts {
		return facts.Facts{Secure: facts.SecureBoot{EFI: true, State: "enabled", Keys: []string{"modules of ours: 0a0b"}, Certificates: certs}}
	}
	ours := facts.Certificate{Subject: "modules of ours", Issuer: company, KeyID: "0a0b"}
	for _, c := range []struct {
		name, signer, keys string
		facts              facts.Facts
		choice             choice.Choice
		signing            choice.Signing
		says               string // "": the check is met
	}{
		{"a key that is enrolled", dkms, dkms + ": 77", enabled(), choice.Choice{}, choice.Signing{}, ""},
		{"a key that is not", dkms, "Debian Secure Boot CA: 6ccece", enabled(), choice.Choice{}, choice.Signing{}, "is signed by " + dkms + ", and the kernel trusts no key of that name"},
		{"a name that only begins so", "DKMS", dkms + ": 77", enabled(), choice.Choice{}, choice.Signing{}, "the kernel trusts no key"},
		{"nobody", "", dkms + ": 77", enabled(), choice.Choice{}, choice.Signing{}, "must be signed"},
		{"nobody, where lockdown asks for it", "", dkms + ": 77", facts.Facts{Kernel: facts.Kernel{Lockdown: "integrity"}}, choice.Choice{}, choice.Signing{}, "must be signed"},
		{"nobody, where nothing asks for it", "", dkms + ": 77", facts.Facts{}, choice.Choice{}, choice.Signing{}, ""},
		{"who issued a certificate that is enrolled", company, "modules of ours: 0a0b", enabled(ours), choice.Choice{}, choice.Signing{}, ""},
		{"who issued one that is not", company, "modules of ours: 0a0b", enabled(facts.Certificate{Issuer: company, KeyID: "ff"}), choice.Choice{}, choice.Signing{}, "trusts no key"},
		{"the distribution", "its own chain", "its root: 01", enabled(), choice.Choice{Signed: true}, choice.Signing{}, ""},
		{"a key that was given, and seen to be enrolled", company, "modules of ours: 0a0b", enabled(), choice.Choice{}, choice.Signing{KeySHA256: "aa", KeyID: "0a0b"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			keys := filepath.Join(dir, "keys")
			modinfo := "#!/bin/sh\ncat <<'END'\nversion:        580.95.05\nlicense:        Dual MIT/GPL\nvermagic:       6.1.0-50-amd64 SMP\nsigner:         " + c.signer + "\nEND\n"
			for name, text := range map[string]string{keys: "0f6c1be1 I------     1 perm 1f030000     0     0 asymmetri " + c.keys + ": X509.rsa bb419ea1 []\n", filepath.Join(dir, "modinfo"): modinfo} {
				if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			in := Input{Facts: c.facts, Choice: c.choice, Want: choice.Want{Signing: c.signing}}
			in.Facts.Kernel.Next = "6.1.0-50-amd64"
			in.Choice.Branch, in.Choice.Module, in.Choice.License, in.Choice.Flavor = 580, "nvidia", choice.LicenseOpen, choice.FlavorOpen
			i := slices.IndexFunc(Install(), func(s Step) bool { return s.ID == "next-boot" })
			script := strings.NewReplacer("/proc/keys", keys, "/boot", dir).Replace(Install()[i].Check(in))
			cmd := exec.Command("sh", "-c", "set -eu\n"+script)
			cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if met := err == nil; met != (c.says == "") || !strings.Contains(string(out), c.says) {
				t.Errorf("met %v, said %q, wanted %q", met, out, c.says)
			}
		})
	}
}

// TestNextBootWantsTheModuleOfThatKernel: a guest is not rebooted into a kernel that has no module, or one that was
// built for another kernel, of another version or flavor.
func TestNextBootWantsTheModuleOfThatKernel(t *testing.T) {
	const next = "6.1.0-50-amd64"
	words := func(version, license, vermagic string) string {
		return "version:        " + version + "\nlicense:        " + license + "\nvermagic:       " + vermagic + " SMP preempt mod_unload modversions \nsigner:         \n"
	}
	for _, c := range []struct {
		name, says string
		modinfo    string // "": modinfo finds no module
		image      string // the kernel that is in /boot
		next       string
	}{
		{"as planned", "", words("580.95.05", "Dual MIT/GPL", next), next, next},
		{"no module", "kernel " + next + " has no nvidia module", "", next, next},
		{"a module of another kernel", "was built for kernel 6.1.0-49-amd64, the next boot starts 6.1.0-50-amd64", words("580.95.05", "Dual MIT/GPL", "6.1.0-49-amd64"), next, next},
		{"one of a kernel whose name begins so", "was built for kernel 6.1.0-50-amd64-dbg,", words("580.95.05", "Dual MIT/GPL", next+"-dbg"), next, next},
		{"another flavor", "license is NVIDIA, so it is not the open flavor", words("580.95.05", "NVIDIA", next), next, next},
		{"another branch", "570.86.15", words("570.86.15", "Dual MIT/GPL", next), next, next},
		{"no such kernel", "vmlinuz-" + next + " is missing", words("580.95.05", "Dual MIT/GPL", next), "6.1.0-49-amd64", next},
		{"nobody knows which kernel", "unknown which kernel", words("580.95.05", "Dual MIT/GPL", next), next, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			modinfo := "#!/bin/sh\necho 'modinfo: ERROR: Module nvidia not found.' >&2\nexit 1\n"
			if c.modinfo != "" {
				modinfo = "#!/bin/sh\ncat <<'END'\n" + c.modinfo + "END\n"
			}
			for name, text := range map[string]string{"modinfo": modinfo, "vmlinuz-" + c.image: "kernel"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			in := Input{Facts: facts.Facts{Kernel: facts.Kernel{Next: c.next}}}
			in.Choice = choice.Choice{Branch: 580, Module: "nvidia", License: choice.LicenseOpen, Flavor: choice.FlavorOpen}
			code, text, _ := ask(t, strings.ReplaceAll(find(t, "next-boot").Check(in), "/boot", dir), "PATH="+dir+":"+os.Getenv("PATH"))
			if (code == 0) != (c.says == "") || !strings.Contains(text, c.says) {
				t.Errorf("exit %d: %s", code, text)
			}
		})
	}
}
