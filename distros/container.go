package distros

import (
	"fmt"
	"strings"

	"gpuguest/internal/sh"
)

// ContainerRepo is NVIDIA's repository of its container toolkit, the same for all distributions of a package
// manager.
type ContainerRepo struct {
	URL      string // of the repository, with a final slash
	KeyURL   string
	Key      string // path of the key in the guest
	ListPath string // path of the source list or repository file
	List     string // what it must hold
	Import   bool   // rpm itself must know the key, as the package manager looks for it there
}

const (
	containerRoot = "https://nvidia.github.io/libnvidia-container"
	// containerKey is the SHA-256 of the key that the repository's lists are signed with, C95B321B61E88C1809C4F759DDCAE044F796ECB0
	// in armour, as projects that pin it agree on.
	containerKey = "c880576d6cf75a48e5027a871bac70fd0421ab07d2b55f30877b21f1c87959c9"
)

// ContainerRepo returns the repository for a machine. It fails where the package manager cannot tell that what it
// gets from there is NVIDIA's.
//
// Paths and options are those of NVIDIA's own nvidia-container-toolkit.list and .repo. The packages for rpm are not
// signed, and the lists, which hold their checksums, are.
func (d Distro) ContainerRepo(machine string) (ContainerRepo, error) {
	arch := d.Arches[machine]
	if arch == "" {
		return ContainerRepo{}, fmt.Errorf("NVIDIA's container toolkit is not known to come for %s on %s", d.Name, machine)
	}
	r := ContainerRepo{KeyURL: containerRoot + "/gpgkey"}
	switch d.Family {
	case "apt":
		r.URL = containerRoot + "/stable/deb/" + arch + "/"
		// apt reads a key in armour where its name says so (sources.list(5), Signed-By).
		r.Key = "/etc/apt/keyrings/nvidia-container-toolkit.asc"
		r.ListPath = "/etc/apt/sources.list.d/nvidia-container-toolkit.list"
		r.List = "deb [signed-by=" + r.Key + "] " + r.URL + " /\n"
	case "dnf", "zypper":
		r.URL = containerRoot + "/stable/rpm/" + machine + "/"
		r.Key = "/etc/pki/rpm-gpg/RPM-GPG-KEY-nvidia-container-toolkit"
		r.ListPath = d.RepoFiles + "/nvidia-container-toolkit.repo"
		r.List = "[nvidia-container-toolkit]\nname=nvidia-container-toolkit\nbaseurl=" + r.URL + "\nrepo_gpgcheck=1\ngpgcheck=0\nenabled=1\ngpgkey=file://" + r.Key + "\n"
		r.Import = d.Family == "zypper"
	default:
		// tdnf reads repo_gpgcheck by a plugin that a guest need not have, and without it nothing is checked.
		return ContainerRepo{}, fmt.Errorf("%s does not check the signature of that repository's lists, and its packages have none: install %s from the distribution's own packages first", d.Family, "nvidia-container-toolkit")
	}
	return r, nil
}

// FetchContainerKey is a script that fetches the repository's key, holds it against its SHA-256 and leaves it at its
// place through the step library's put.
func FetchContainerKey(r ContainerRepo) string {
	return FetchKey(RepoKey{}, r.KeyURL, r.Key, containerKey)
}

// ContainerKeyThere exits zero when the key is at its place.
func ContainerKeyThere(r ContainerRepo) string {
	return `echo ` + sh.Quote(containerKey+"  "+r.Key) + ` | sha256sum -c --status 2>/dev/null`
}

// Elsewhere tells whether a URI is this repository, or one of those that it took the place of: apt refuses two lists
// that name one with different keys ("Conflicting values set for option Signed-By"), and dnf warns of them.
func (r ContainerRepo) Elsewhere(uri string) bool {
	_, rest, ok := strings.Cut(uri, "://nvidia.github.io/")
	first, _, _ := strings.Cut(rest, "/")
	return ok && (first == "libnvidia-container" || first == "nvidia-docker" || first == "nvidia-container-runtime")
}
