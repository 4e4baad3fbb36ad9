package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"gpuguest/internal/oven"
)

// Debian's package ovmf: a firmware that checks signatures once keys are enrolled, variables without any, and
// variables with those that Microsoft has machines shipped with.
const (
	ovmfCode       = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	ovmfVars       = "/usr/share/OVMF/OVMF_VARS_4M.fd"
	ovmfVarsSecure = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"
)

// uefiArgs are what QEMU is told beside, or after, the machine of a BIOS. Secure Boot holds only where nothing but
// system management mode writes the variables (OvmfPkg/README of edk2, SMM_REQUIRE), for which that mode's flash must be
// secure and the machine must not sleep.
func uefiArgs(vm *VM) []string {
	return []string{
		"-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1",
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + ovmfCode,
		"-drive", "if=pflash,unit=1,format=raw,file=" + doubled(vm.path(variablesFile)),
	}
}

// variablesFile holds the variables of a guest's firmware, in its folder.
const variablesFile = "vars.fd"

// makeVariables gives a guest that boots by UEFI the variables of its own, unless it has them from an earlier boot.
func (vm *VM) makeVariables(secure bool) error {
	switch uefi := vm.Image.Firmware == oven.FirmwareUEFI; {
	case !uefi && secure:
		return errors.New("a BIOS has no Secure Boot: the image must be for " + oven.FirmwareUEFI)
	case !uefi || exists(vm.path(variablesFile)):
		return nil
	case !secure:
		return copyFile(vm.path(variablesFile), ovmfVars)
	}
	if err := copyFile(vm.path(variablesFile), ovmfVarsSecure); err != nil {
		return err
	}
	return vm.Enrol(vm.Image.Cert)
}

// Enrol adds a certificate, DER, to the signature database (db) in the variables of a guest that is off: what virt-fw-vars
// --add-db does where there is one.
func (vm *VM) Enrol(cert []byte) error {
	if vm.Running() {
		return errors.New("the guest runs: its variables change only while it is off")
	}
	vars, err := os.ReadFile(vm.path(variablesFile))
	if err != nil {
		return err
	}
	if err := enrol(vars, cert); err != nil {
		return fmt.Errorf("variables of the firmware: %w", err)
	}
	return os.WriteFile(vm.path(variablesFile), vars, 0o600)
}

// The layout of the variables is edk2's: MdePkg/Include/Pi/PiFirmwareVolume.h for the volume, and
// MdeModulePkg/Include/Guid/VariableFormat.h for the store that begins behind its header and for each variable in it.
const (
	volumeHeaderLength = 48 // where the volume's header says, in 16 bits, how long it is
	storeHeader        = 28 // id, then at 16 the store's size in 32 bits
	variableHeader     = 60 // at 2 the state, at 36 and 40 the sizes of name and value, at 44 whose the name is
	variableMark       = 0x55aa
	variableAdded      = 0x3f // a state of any other value is one of being written or being removed
)

// GUIDs as they lie in memory.
var (
	authenticatedStore = []byte("\x78\x2c\xf3\xaa\x7b\x94\x9a\x43\xa1\x80\x2e\x14\x4e\xc3\x77\x92")
	imageSecurity      = []byte("\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f") // whose db is
	certX509           = []byte("\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72")
)

var errVariables = errors.New("not laid out as edk2 lays out authenticated variables")

// enrol adds a certificate to the variable db in a firmware's variables: the store is written anew, without what
// was removed from it.
func enrol(vars, cert []byte) error {
	if len(vars) < volumeHeaderLength+2 {
		return errVariables
	}
	start := int(binary.LittleEndian.Uint16(vars[volumeHeaderLength:]))
	if len(vars) < start+storeHeader || !bytes.Equal(vars[start:start+16], authenticatedStore) {
		return errVariables
	}
	end := start + int(binary.LittleEndian.Uint32(vars[start+16:]))
	if end < start+storeHeader || end > len(vars) {
		return errVariables
	}
	var kept []byte
	found := false
	for store := vars[start+storeHeader : end]; len(store) >= variableHeader && binary.LittleEndian.Uint16(store) == variableMark; {
		name := int(binary.LittleEndian.Uint32(store[36:]))
		size := variableHeader + name + int(binary.LittleEndian.Uint32(store[40:]))
		if name < 0 || size < variableHeader || size > len(store) {
			return errVariables
		}
		if v := bytes.Clone(store[:size]); v[2] == variableAdded {
			if bytes.Equal(v[44:60], imageSecurity) && string(v[variableHeader:variableHeader+name]) == "d\x00b\x00\x00\x00" {
				found = true
				v = append(v, signatureList(cert)...)
				binary.LittleEndian.PutUint32(v[40:], uint32(len(v)-variableHeader-name))
			}
			kept = append(kept, padded(v)...)
		}
		store = store[min(len(padded(store[:size])), len(store)):]
	}
	switch {
	case !found:
		return errors.New("they hold no signature database: no keys are enrolled")
	case len(kept) > end-start-storeHeader:
		return errors.New("they are full")
	}
	rest := vars[start+storeHeader+copy(vars[start+storeHeader:end], kept) : end]
	for i := range rest {
		rest[i] = 0xff
	}
	return nil
}

// padded is a variable up to where the next begins.
func padded(v []byte) []byte {
	return append(v[:len(v):len(v)], bytes.Repeat([]byte{0xff}, -len(v)&3)...)
}

// signatureList is an EFI_SIGNATURE_LIST of one certificate, whose owner is nobody (UEFI specification, 32.4.1).
func signatureList(cert []byte) []byte {
	var b []byte
	b = append(b, certX509...)
	b = binary.LittleEndian.AppendUint32(b, uint32(28+16+len(cert)))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(16+len(cert)))
	b = append(b, make([]byte, 16)...)
	return append(b, cert...)
}

// Signer is the lab's key for its own modules.
type Signer struct {
	Cert []byte // DER
	key  string // PEM
}

// ensureSigner makes the key once per cache.
func ensureSigner(ctx context.Context, cache string) (Signer, error) {
	dir, err := artifact(ctx, cache, "module-key", func(dir string) error {
		private, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return err
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gpuguest lab modules"}, KeyUsage: x509.KeyUsageDigitalSignature,
			NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().AddDate(10, 0, 0), SubjectKeyId: []byte("gpuguest lab"),
		}
		cert, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
		if err != nil {
			return err
		}
		raw, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			return err
		}
		key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
		return errors.Join(writeFile(filepath.Join(dir, "key.pem"), string(key), 0o600), writeFile(filepath.Join(dir, "cert.der"), string(cert), 0o644))
	})
	if err != nil {
		return Signer{}, err
	}
	cert, err := os.ReadFile(filepath.Join(dir, "cert.der"))
	if err != nil {
		return Signer{}, err
	}
	key, err := os.ReadFile(filepath.Join(dir, "key.pem"))
	return Signer{Cert: cert, key: string(key)}, err
}

// Guises are the distributions that a guest can pass for: the files of testdata/lab/guest/os-release.
func Guises() []string { return []string{"ubuntu2204"} }

func guisePath(name string) string { return "guest/os-release/" + name }

func copyFile(to, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o600)
}
