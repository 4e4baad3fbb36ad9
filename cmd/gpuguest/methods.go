package main

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"gpuguest/internal/catalog"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/internal/report"
	"gpuguest/internal/runfile"
)

// methods are the flags of how a driver and a toolkit come, beside packages, and of the files they need.
type methods struct {
	runfile, runfileSHA256         string
	cudaRunfile, cudaRunfileSHA256 string
	samples, samplesSHA256         string
	key, cert                      string
	proxy                          string
	noProxy                        bool // the environment names none either
	bundle, bundleSHA256           string
	token                          string

	certDER []byte // the certificate, once it was read
}

func (m *methods) add(c *cobra.Command, w *choice.Want) {
	f := c.Flags()
	f.StringVar(&m.runfile, "runfile", "", "NVIDIA's .run installer of the driver: a `FILE` here, which is sent, or a URL, which the guest fetches")
	f.StringVar(&m.runfileSHA256, "runfile-sha256", "", "SHA-256, `HEX`, of that installer")
	f.BoolVar(&w.Replace, "replace", false, "remove a driver first that came another way: a .run for packages, packages that gpuguest installed for a .run")
	f.StringVar(&w.CUDA, "cuda", "", "CUDA toolkit to install, `VERSION`: 12.8, 12.8.1, auto (the newest that driver and GPUs allow) or none (default none)")
	f.StringVar(&w.CUDASource, "cuda-source", "", "where the toolkit comes from, `SOURCE`: nvidia (its repository) or runfile (default: nvidia where it has one)")
	f.StringVar(&m.cudaRunfile, "cuda-runfile", "", "NVIDIA's installer of the toolkit: a `FILE` here, which is sent, or a URL, which the guest fetches")
	f.StringVar(&m.cudaRunfileSHA256, "cuda-runfile-sha256", "", "SHA-256, `HEX`, of that installer")
	addWith(c, w)
	f.StringVar(&m.samples, "cuda-samples", "", "NVIDIA's cuda-samples, which those that --with names are built from: an archive's `FILE` here, which is sent, a URL, which the guest fetches, or a known tag, as in 12.5 (default: what the guest has, else what goes with --cuda)")
	f.StringVar(&m.samplesSHA256, "cuda-samples-sha256", "", "SHA-256, `HEX`, of that archive")
	f.StringVar(&m.key, "secure-boot-key", "", "private key, PEM `FILE`, that modules are signed with; it is sent to the guest and kept there for root alone")
	f.StringVar(&m.cert, "secure-boot-cert", "", "its certificate, PEM or DER `FILE`, which the guest must trust already where Secure Boot is on")
	f.StringVar(&m.bundle, "bundle", "", "take all packages and installers from this `FILE` of \"gpuguest bundle\", which is sent: for a guest without a network")
	f.StringVar(&m.bundleSHA256, "bundle-sha256", "", "SHA-256, `HEX`, that the bundle must have")
	f.StringVar(&m.proxy, "proxy", "", "have the guest's downloads and package manager go by this proxy, `URL`, while gpuguest works (default: $"+proxyVariable+", else the guest's own way)")
	f.StringVar(&w.ContainerToolkit, "container-toolkit", "", "give NVIDIA's container toolkit to this `ENGINE` of the guest: docker, containerd or podman")
	f.StringVar(&w.MIG, "mig", "", "divide the GPUs at every boot, `LAYOUT`: profiles for all (3g.20gb,1g.5gb*4), or by GPU (0=7g.80gb;1=off)")
	f.BoolVar(&w.GDS, "gds", false, "install and load nvidia-fs, the kernel's part of GPUDirect Storage")
	f.BoolVar(&w.Peermem, "peermem", false, "load nvidia-peermem, by which InfiniBand adapters reach the GPU's memory")
	f.StringVar(&m.token, "vgpu-license-token", "", "client configuration token of the licence server, `FILE`: for a virtual GPU, whose driver --runfile names")
	_ = c.RegisterFlagCompletionFunc("container-toolkit", cobra.FixedCompletions(choice.Engines(), cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("cuda-source", cobra.FixedCompletions([]string{choice.SourceNVIDIA, choice.SourceRunfile}, cobra.ShellCompDirectiveNoFileComp))
}

// settle reads the files that are named and puts into the wish what they say. files gets those that are to be
// sent, by SHA-256; of many guests each installer is read once. close removes what was made for that.
func (m *methods) settle(of *member, w *choice.Want, files map[string]string) (closeFiles func() error, err error) {
	made := folder("")
	closeFiles = func() error { return made.remove() }
	if m.proxy == "" && m.bundle == "" && !m.noProxy {
		m.proxy = os.Getenv(proxyVariable)
	}
	if m.proxy != "" {
		var text []byte
		if w.Proxy, text, err = readProxy(m.proxy); err != nil {
			return closeFiles, err
		}
		if files[w.Proxy.SHA256], err = made.keep("proxy", text); err != nil {
			return closeFiles, err
		}
	}
	if w.Runfile, err = of.installer("--runfile", m.runfile, m.runfileSHA256, catalog.DriverRunfiles(), files); err != nil {
		return closeFiles, err
	}
	if w.Runfile.Given() && w.Source == "" {
		w.Source = choice.SourceRunfile
	}
	if w.CUDARunfile, err = of.installer("--cuda-runfile", m.cudaRunfile, m.cudaRunfileSHA256, catalog.ToolkitRunfiles(), files); err != nil {
		return closeFiles, err
	}
	if w.Samples, err = of.samples(m.samples, m.samplesSHA256, files); err != nil {
		return closeFiles, err
	}
	if w.Samples.Given() && len(w.With) == 0 {
		return closeFiles, errors.New("--cuda-samples needs --with: which of them are to be built?")
	}
	if m.token != "" {
		sum, err := once(of, "SHA-256 of "+m.token, func() (string, error) { return sha256File(m.token) })
		if err != nil {
			return closeFiles, fmt.Errorf("--vgpu-license-token: %w", err)
		}
		if !strings.HasSuffix(m.token, ".tok") {
			return closeFiles, fmt.Errorf("--vgpu-license-token %s: the licence client reads files whose names end in .tok alone", m.token)
		}
		w.License = choice.Token{Name: filepath.Base(m.token), SHA256: sum}
		files[sum] = m.token
	}
	if err := m.useBundle(of, w, files); err != nil {
		return closeFiles, err
	}
	switch {
	case m.key == "" && m.cert == "":
		return closeFiles, nil
	case m.key == "" || m.cert == "":
		return closeFiles, errors.New("--secure-boot-key and --secure-boot-cert go together")
	}
	if w.Signing, err = m.readSigning(files); err != nil {
		return closeFiles, err
	}
	files[w.Signing.CertSHA256], err = made.keep("cert.der", m.certDER)
	return closeFiles, err
}

// folder is a temporary folder that is made when the first file is kept in it; "": not yet.
type folder string

func (f *folder) keep(name string, data []byte) (path string, err error) {
	if *f == "" {
		dir, err := os.MkdirTemp("", "gpuguest-")
		if err != nil {
			return "", err
		}
		*f = folder(dir)
	}
	path = filepath.Join(string(*f), name)
	return path, os.WriteFile(path, data, 0o600)
}

func (f *folder) remove() error {
	if *f == "" {
		return nil
	}
	return os.RemoveAll(string(*f))
}

// installer says what an installer that was named is: by its own header where it is here, else by its name. The member
// may be none.
func (m *member) installer(flag, name, sum string, known []catalog.Runfile, files map[string]string) (choice.Runfile, error) {
	sum = strings.ToLower(sum)
	switch {
	case name == "" && sum == "":
		return choice.Runfile{}, nil
	case name == "":
		return choice.Runfile{}, fmt.Errorf("%s-sha256 needs %[1]s", flag)
	case sum != "" && !isSHA256(sum):
		return choice.Runfile{}, fmt.Errorf("%s-sha256 %q: it is 64 hexadecimal digits", flag, sum)
	}
	if strings.HasPrefix(name, "https://") || strings.HasPrefix(name, "http://") {
		out := choice.Runfile{Name: path.Base(name), URL: name, SHA256: sum}
		out.Version, out.Arch = runfile.ByName(out.Name)
		for _, k := range known {
			if out.SHA256 == "" && k.URL == name {
				out.SHA256 = k.SHA256
			}
		}
		if out.SHA256 == "" {
			return out, fmt.Errorf("%s %s: its SHA-256 is not known: give it by %[1]s-sha256", flag, name)
		}
		return out, nil
	}
	info, err := once(m, "installer "+name, func() (runfile.Info, error) { return inspect(name) })
	if err != nil {
		return choice.Runfile{}, fmt.Errorf("%s %s: %w", flag, name, err)
	}
	if sum != "" && sum != info.SHA256 {
		return choice.Runfile{}, fmt.Errorf("%s %s: its SHA-256 is %s, and %[1]s-sha256 says %[4]s", flag, name, info.SHA256, sum)
	}
	out := choice.Runfile{Name: filepath.Base(name), SHA256: info.SHA256, Version: info.Version, Arch: info.Arch}
	if v, arch := runfile.ByName(out.Name); out.Version == "" {
		out.Version, out.Arch = v, arch
	}
	for _, k := range known {
		if sum == "" && k.Version == out.Version && k.Arch == out.Arch && k.Name() == out.Name && k.SHA256 != out.SHA256 {
			return out, fmt.Errorf("%s %s: its SHA-256 is %s, and that of NVIDIA's file of this name is %s: it is damaged, or another; %[1]s-sha256 says that it is meant", flag, name, out.SHA256, k.SHA256)
		}
	}
	files[info.SHA256] = name
	return out, nil
}

// samples says which archive of cuda-samples was named. The member may be none.
func (m *member) samples(name, sum string, files map[string]string) (choice.Archive, error) {
	sum = strings.ToLower(sum)
	switch {
	case name == "" && sum == "":
		return choice.Archive{}, nil
	case name == "":
		return choice.Archive{}, errors.New("--cuda-samples-sha256 needs --cuda-samples")
	case sum != "" && !isSHA256(sum):
		return choice.Archive{}, fmt.Errorf("--cuda-samples-sha256 %q: it is 64 hexadecimal digits", sum)
	}
	for _, k := range catalog.SampleArchives() {
		if name == k.Version || name == k.URL && sum == "" {
			return choice.Archive{Name: "cuda-samples-" + k.Version + ".tar.gz", URL: k.URL, SHA256: cmp.Or(sum, k.SHA256)}, nil
		}
	}
	if strings.HasPrefix(name, "https://") || strings.HasPrefix(name, "http://") {
		if sum == "" {
			return choice.Archive{}, fmt.Errorf("--cuda-samples %s: its SHA-256 is not known: give it by --cuda-samples-sha256", name)
		}
		return choice.Archive{Name: path.Base(name), URL: name, SHA256: sum}, nil
	}
	have, err := once(m, "SHA-256 of "+name, func() (string, error) { return sha256File(name) })
	if err != nil {
		return choice.Archive{}, fmt.Errorf("--cuda-samples %s: %w", name, pathless(err))
	}
	if sum != "" && sum != have {
		return choice.Archive{}, fmt.Errorf("--cuda-samples %s: its SHA-256 is %s, and --cuda-samples-sha256 says %s", name, have, sum)
	}
	files[have] = name
	return choice.Archive{Name: filepath.Base(name), SHA256: have}, nil
}

// inspect reads an installer that is here. An error names what is wrong, and not the file.
func inspect(name string) (runfile.Info, error) {
	f, err := os.Open(name)
	if err != nil {
		return runfile.Info{}, pathless(err)
	}
	defer f.Close()
	return runfile.Inspect(f)
}

// pathless is what went wrong with a file that is named already.
func pathless(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func isSHA256(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == sha256.Size
}

// readSigning reads key and certificate, and sees that they belong together. The key is sent as it is: sign-file
// of the kernel reads PEM.
func (m *methods) readSigning(files map[string]string) (choice.Signing, error) {
	key, err := os.ReadFile(m.key)
	if err != nil {
		return choice.Signing{}, fmt.Errorf("--secure-boot-key: %w", err)
	}
	private, err := parseKey(key)
	if err != nil {
		return choice.Signing{}, fmt.Errorf("--secure-boot-key %s: %w", m.key, err)
	}
	raw, err := os.ReadFile(m.cert)
	if err != nil {
		return choice.Signing{}, fmt.Errorf("--secure-boot-cert: %w", err)
	}
	if block, _ := pem.Decode(raw); block != nil && block.Type == "CERTIFICATE" {
		raw = block.Bytes
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		return choice.Signing{}, fmt.Errorf("--secure-boot-cert %s: it is no certificate, PEM or DER: %w", m.cert, err)
	}
	public, ok := private.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(cert.PublicKey) {
		return choice.Signing{}, fmt.Errorf("--secure-boot-cert %s: it is not the certificate of the key in %s", m.cert, m.key)
	}
	m.certDER = raw
	keySum, certSum := sha256.Sum256(key), sha256.Sum256(raw)
	s := choice.Signing{
		KeySHA256: hex.EncodeToString(keySum[:]), CertSHA256: hex.EncodeToString(certSum[:]),
		Subject: cert.Subject.CommonName, Signer: cert.Issuer.CommonName, KeyID: facts.KeyID(cert),
	}
	files[s.KeySHA256] = m.key
	return s, nil
}

// parseKey reads an unencrypted private key. Its errors hold nothing of the key.
func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	switch {
	case block == nil:
		return nil, errors.New("it is no PEM file")
	case strings.Contains(block.Type, "ENCRYPTED") || block.Headers["DEK-Info"] != "":
		return nil, errors.New("it is encrypted, and nobody is there to give the guest's DKMS its password")
	}
	if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		if s, ok := k.(crypto.Signer); ok {
			return s, nil
		}
	}
	if k, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	if k, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	return nil, fmt.Errorf("a PEM block %q is no private key that modules are signed with", block.Type)
}

// writeCert writes the certificate out for whoever enrols it on the host, when that is all that was missing.
func (a *app) writeCert(m *methods, err error) error {
	if !errors.Is(err, choice.ErrNotEnrolled) || m.certDER == nil {
		return err
	}
	name := strings.TrimSuffix(filepath.Base(m.cert), filepath.Ext(m.cert)) + ".enrol.der"
	if a.logDir != "" {
		if merr := os.MkdirAll(a.logDir, 0o700); merr != nil {
			return errors.Join(err, merr)
		}
		name = filepath.Join(a.logDir, name)
	}
	if old, rerr := os.ReadFile(name); rerr == nil && !bytes.Equal(old, m.certDER) {
		return errors.Join(err, fmt.Errorf("%s is there already and holds something else: the certificate was not written out", name))
	}
	werr := report.Write(name, report.Public, func(w io.Writer) error {
		_, err := w.Write(m.certDER)
		return err
	})
	if werr != nil {
		return errors.Join(err, werr)
	}
	fmt.Fprintf(a.err, "gpuguest: the certificate, ready to be enrolled: %s\n", name)
	return err
}
