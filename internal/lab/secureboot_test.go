package lab

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"
)

type variable struct {
	state       byte
	owner       []byte
	name, value string
}

// variables makes a firmware's variables with a store of so many bytes.
func variables(size int, all ...variable) []byte {
	const start = 72
	b := make([]byte, start, start+size)
	binary.LittleEndian.PutUint16(b[volumeHeaderLength:], start)
	b = append(b, authenticatedStore...)
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	b = append(b, make([]byte, storeHeader-20)...)
	for _, v := range all {
		h := make([]byte, variableHeader)
		binary.LittleEndian.PutUint16(h, variableMark)
		h[2] = v.state
		binary.LittleEndian.PutUint32(h[36:], uint32(len(v.name)))
		binary.LittleEndian.PutUint32(h[40:], uint32(len(v.value)))
		copy(h[44:], v.owner)
		b = append(b, padded(append(h, v.name+v.value...))...)
	}
	return append(b, bytes.Repeat([]byte{0xff}, start+size-len(b))...)
}

func TestEnrolledCertificateIsInDBAndAllElseIsKept(t *testing.T) {
	const db, other = "d\x00b\x00\x00\x00", "d\x00b\x00x\x00\x00\x00"
	vars := variables(1024,
		variable{variableAdded, imageSecurity, other, "odd"},
		variable{0x3d, imageSecurity, db, "removed"},
		variable{variableAdded, imageSecurity, db, "before"},
		variable{variableAdded, certX509, db, "somebody else's"})
	vars = append(vars, "what lies behind the store"...)
	want := variables(1024,
		variable{variableAdded, imageSecurity, other, "odd"},
		variable{variableAdded, imageSecurity, db, "before" + string(signatureList([]byte("a certificate")))},
		variable{variableAdded, certX509, db, "somebody else's"})
	want = append(want, "what lies behind the store"...)
	if err := enrol(vars, []byte("a certificate")); err != nil || !bytes.Equal(vars, want) {
		t.Errorf("%v\n%q\nwant\n%q", err, vars, want)
	}

	for name, vars := range map[string][]byte{
		"empty":                       nil,
		"laid out otherwise":          make([]byte, 4096),
		"without keys":                variables(1024, variable{variableAdded, imageSecurity, other, "odd"}),
		"keys of somebody else alone": variables(1024, variable{variableAdded, certX509, db, "x"}),
		"full":                        variables(200, variable{variableAdded, imageSecurity, db, strings.Repeat("x", 80)}),
		"longer than they are":        variables(1024, variable{variableAdded, imageSecurity, db, "x"})[:800],
	} {
		before := slices.Clone(vars)
		if err := enrol(vars, []byte("a certificate")); err == nil || !bytes.Equal(before, vars) {
			t.Errorf("%s: %v; changed: %v", name, err, !bytes.Equal(before, vars))
		}
	}
}

func FuzzEnrol(f *testing.F) {
	f.Add(variables(256, variable{variableAdded, imageSecurity, "d\x00b\x00\x00\x00", "before"}))
	f.Add(variables(64))
	f.Fuzz(func(t *testing.T, vars []byte) {
		size := len(vars)
		before := slices.Clone(vars)
		if err := enrol(vars, []byte("a certificate")); len(vars) != size || err != nil && !bytes.Equal(before, vars) {
			t.Errorf("%v: %q became %q", err, before, vars)
		}
	})
}

// The variables that Debian's ovmf ships take the lab's own certificate, which the key in the cache belongs to.
func TestVariablesOfOVMFTakeACertificate(t *testing.T) {
	vars, err := os.ReadFile(ovmfVarsSecure)
	if err != nil {
		t.Skip("ovmf is not installed: ", err)
	}
	cache := t.TempDir()
	s, err := ensureSigner(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ensureSigner(t.Context(), cache); err != nil || !bytes.Equal(again.Cert, s.Cert) || again.key != s.key {
		t.Errorf("made twice: %v", err)
	}
	if c, err := x509.ParseCertificate(s.Cert); err != nil || c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) != nil {
		t.Errorf("certificate %v: %v", c, err)
	}
	for _, cert := range [][]byte{s.Cert, []byte("a second one")} {
		if err := enrol(vars, cert); err != nil || bytes.Count(vars, cert) != 1 {
			t.Errorf("%d times there, %v", bytes.Count(vars, cert), err)
		}
	}
	if err := enrol(bytes.Clone(vars[:len(vars)/4]), s.Cert); err == nil {
		t.Error("a quarter of the variables passed")
	}
}
