package choice

import (
	"errors"
	"slices"
	"strings"

	"gpuguest/internal/catalog"
	"gpuguest/internal/facts"
)

// Signing is a key, and its certificate, that modules built in the guest are signed with. The files themselves
// stay with the client, which sends them; a choice needs only what they say.
type Signing struct {
	KeySHA256  string // of the private key's file, PEM
	CertSHA256 string // of the certificate in the form that the kernel takes, DER
	Subject    string // the certificate's common name
	Signer     string // the common name of who issued it, which modinfo shows of a module that is signed with it
	KeyID      string // what the kernel lists the certificate by: its subject key id, else its serial number; lower-case hex
}

// Given tells whether there is a key.
func (s Signing) Given() bool { return s.KeySHA256 != "" }

// ErrNotEnrolled is matched by the refusal for a guest that would take what is asked for if it trusted the
// certificate of Want.Signing.
var ErrNotEnrolled = errors.New("the certificate is not enrolled in the guest")

// trusts tells whether the guest's kernel has a certificate among its keys.
func (r *request) trusts(s Signing) bool { return r.f.Secure.Trusts(s.KeyID) }

// enrolled tells whether what the guest's modules will be signed with is among the keys that its kernel trusts:
// the key given, else the one that its DKMS signs with. Where that one's certificate could not be read, a key of the
// name that dkms and Ubuntu's shim-signed give it stands for it.
func (r *request) enrolled() bool {
	if r.w.Signing.Given() {
		return r.trusts(r.w.Signing)
	}
	if certs := r.f.Secure.Certificates; len(certs) > 0 {
		return slices.ContainsFunc(certs, func(c facts.Certificate) bool { return r.f.Secure.Trusts(c.KeyID) })
	}
	return len(r.f.Secure.SigningKeys) > 0 && slices.ContainsFunc(r.f.Secure.Keys, func(subject string) bool {
		s := strings.ToLower(subject)
		return strings.Contains(s, "dkms module signing key") || strings.Contains(s, "secure boot module signature key")
	})
}

// signedHere tells whether a candidate is in the guest, with modules for the next kernel that somebody signed by a key
// of a name that the kernel trusts: there is nothing to sign any more.
func (r *request) signedHere(c candidate) bool {
	m := r.f.Driver.Next
	b, err := catalog.BranchOf(m.Version)
	return c.here && err == nil && b == c.branch.Number && (r.wish.version == "" || r.wish.version == m.Version) &&
		(m.License == LicenseOpen) == (c.offer.Flavor == FlavorOpen) && r.f.Secure.Names(m.Signer)
}

func (r *request) secureBootObjection(c candidate) string {
	if r.enforced() && !c.offer.Signed && c.offer.Modules == ModulesPrecompiled {
		return "Secure Boot is enforced, and these modules are signed with a key of NVIDIA's own, which stands beside the packages (NVIDIA2019-public_key.der) and which no guest trusts by itself; " +
			"whether this guest does is not known here"
	}
	if !r.enforced() || c.offer.Signed || r.enrolled() || r.signedHere(c) {
		return ""
	}
	const enrol = "A key is enrolled from the host: libvirt and QEMU, virt-fw-vars --add-db with the certificate on the guest's copy of the OVMF variables, " +
		"while the guest is off; a cloud, the certificate in the signature database (db) of the image that the guest is made from. " +
		"In the guest, mokutil --import asks for it at the next boot on the console alone, which a guest without one cannot answer"
	if r.w.Signing.Given() {
		return "Secure Boot is enforced, and the guest does not trust the certificate \"" + r.w.Signing.Subject + "\" (key id " + r.w.Signing.KeyID + "). " + enrol
	}
	if r.d.DKMSCert == "" {
		return "Secure Boot is enforced, and nothing signs modules that are built in this guest. " +
			"On the host, start the guest without Secure Boot (OVMF with variables in which no keys are enrolled; libvirt: <loader secure='no'>), " +
			"or give a key whose certificate is enrolled by --secure-boot-key and --secure-boot-cert. " + enrol
	}
	return "Secure Boot is enforced, and modules built in the guest are signed by a key that is not trusted. " +
		"On the host, either start the guest without Secure Boot (OVMF with variables in which no keys are enrolled; libvirt: <loader secure='no'>), " +
		"or enrol the certificate the guest's DKMS signs with (" + r.d.DKMSCert + ") in the guest's variables; or give a key whose certificate is enrolled by --secure-boot-key and --secure-boot-cert. " + enrol
}

// forWantOfEnrolment marks a refusal that the certificate's enrolment alone would lift.
func (r *request) forWantOfEnrolment(err error) error {
	var refusal *Refusal
	if !errors.As(err, &refusal) || !r.w.Signing.Given() || !r.enforced() || r.enrolled() {
		return err
	}
	enrolled := *r
	enrolled.gpus, enrolled.warnings = nil, nil
	enrolled.f.Secure.Keys = append(slices.Clone(r.f.Secure.Keys), r.w.Signing.Subject+": "+r.w.Signing.KeyID)
	if _, again := enrolled.driver(); again == nil {
		refusal.kind = ErrNotEnrolled
	}
	return err
}
