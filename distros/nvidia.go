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
	KeyringURL    string // of the keyring package
	KeyringSHA256 string
	Keyring       string // path of the key that the keyring package installs
	ListPath      string // path of the source list that the keyring package installs
	List          string // what it must hold
	Mirrored      bool   // URL is not NVIDIA's own, so List differs from what the package installs
}

// ErrNoSum says that the SHA-256 of a keyring package is neither known nor given.
var ErrNoSum = errors.New("the SHA-256 of the keyring package is not known")

// Repo returns NVIDIA's repository for a machine. mirror, when given, stands for the root of NVIDIA's
// repositories (…/compute/cuda/repos); sum, when given, replaces the known SHA-256 of the keyring package.
// It fails when NVIDIA has no repository for the machine, and with ErrNoSum.
//
// The package's file name, the path of its key and of its list are those of cuda-keyring 1.1-1.
func (d Distro) Repo(machine, mirror, sum string) (Repo, error) {
	dir := d.RepoDir[machine]
	if dir == "" {
		return Repo{}, fmt.Errorf("NVIDIA has no repository for %s on %s", d.Name, machine)
	}
	if sum == "" {
		sum = d.KeyringSHA256[dir]
	}
	if sum == "" {
		return Repo{}, fmt.Errorf("%w: %s: give it by --keyring-sha256", ErrNoSum, dir)
	}
	root := strings.TrimRight(mirror, "/")
	if root == "" {
		root = repoRoot
	}
	url := root + "/" + dir + "/"
	const keyring = "/usr/share/keyrings/cuda-archive-keyring.gpg"
	return Repo{
		Dir: dir, URL: url, KeyringURL: url + "cuda-keyring_1.1-1_all.deb", KeyringSHA256: strings.ToLower(sum), Keyring: keyring,
		ListPath: "/etc/apt/sources.list.d/cuda-" + strings.ReplaceAll(dir, "/", "-") + ".list",
		List:     "deb [signed-by=" + keyring + "] " + url + " /\n",
		Mirrored: root != repoRoot,
	}, nil
}
