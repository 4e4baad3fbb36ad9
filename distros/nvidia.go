package distros

import (
	"errors"
	"fmt"
	"strings"
)

// repoRoot is where NVIDIA's network repositories for all distributions are.
const repoRoot = "https://developer.download.nvidia.com/compute/cuda/repos"

// Repo is NVIDIA's network repository for one distribution and machine.
type Repo struct {
	Dir           string // "debian12/x86_64"
	URL           string // of the repository, with a final slash
	KeyringURL    string // of the keyring package, or of the key itself
	KeyringSHA256 string // of that file; "" where Key tells it
	Keyring       string // path of the key in the guest
	KeyPackage    string // name of the keyring package, "" where the key itself is fetched
	Key           RepoKey
	ListPath      string // path of the source list or repository file
	List          string // what it must hold
	Mirrored      bool   // URL is not NVIDIA's own, so List differs from what the package installs
}

// RepoKey is the OpenPGP key that a repository's packages are signed with.
type RepoKey struct {
	File        string // its name beside the packages: "D42D0685.pub"
	ID          string // its 32-bit id, lower case: "d42d0685"
	Fingerprint string // forty hex digits, lower case; "" not known
}

// NVIDIA's keys, as NVIDIA/cuda-repo-management lists them by their 32-bit id. Of the first the fingerprint is
// known: SIGNATURES.md there.
func nvidiaKey(id string) RepoKey {
	k := RepoKey{File: id + ".pub", ID: strings.ToLower(id)}
	if id == "D42D0685" {
		k.Fingerprint = "610c7b14e068a878070da4e99cd0a493d42d0685"
	}
	return k
}

// ErrNoSum says that the SHA-256 of a keyring package is neither known nor given.
var ErrNoSum = errors.New("the SHA-256 of the keyring package is not known")

// Repo returns NVIDIA's repository for a machine. mirror, when given, stands for the root of NVIDIA's
// repositories (…/compute/cuda/repos); sum, when given, replaces the known SHA-256 of the keyring package, or
// what is known of the key. It fails when NVIDIA has no repository for the machine, and with ErrNoSum.
//
// The keyring package's file name, the path of its key and of its list are those of cuda-keyring 1.1-1. The
// repository file for rpm is written here and names the key in the guest, so that nothing is imported later
// that was not checked.
func (d Distro) Repo(machine, mirror, sum string) (Repo, error) {
	dir := d.RepoDir[machine]
	if dir == "" {
		return Repo{}, fmt.Errorf("NVIDIA has no repository for %s on %s", d.Name, machine)
	}
	root := strings.TrimRight(mirror, "/")
	if root == "" {
		root = repoRoot
	}
	r := Repo{Dir: dir, URL: root + "/" + dir + "/", KeyringSHA256: strings.ToLower(sum), Mirrored: root != repoRoot}
	if d.RepoKey.File != "" {
		name, _, _ := strings.Cut(dir, "/")
		id := repoID(dir)
		r.Key = d.RepoKey
		r.KeyringURL = r.URL + d.RepoKey.File
		r.Keyring = "/etc/pki/rpm-gpg/RPM-GPG-KEY-" + strings.TrimSuffix(d.RepoKey.File, ".pub")
		r.ListPath = d.RepoFiles + "/cuda-" + name + ".repo"
		r.List = "[" + id + "]\nname=" + id + "\nbaseurl=" + r.URL + "\nenabled=1\ngpgcheck=1\ngpgkey=file://" + r.Keyring + "\n"
		return r, nil
	}
	if r.KeyringSHA256 == "" {
		r.KeyringSHA256 = strings.ToLower(d.KeyringSHA256[dir])
	}
	if r.KeyringSHA256 == "" {
		return Repo{}, fmt.Errorf("%w: %s: give it by --keyring-sha256", ErrNoSum, dir)
	}
	r.KeyPackage = "cuda-keyring"
	r.KeyringURL = r.URL + "cuda-keyring_1.1-1_all.deb"
	r.Keyring = "/usr/share/keyrings/cuda-archive-keyring.gpg"
	r.ListPath = "/etc/apt/sources.list.d/cuda-" + strings.ReplaceAll(dir, "/", "-") + ".list"
	r.List = "deb [signed-by=" + r.Keyring + "] " + r.URL + " /\n"
	return r, nil
}
