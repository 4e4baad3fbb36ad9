package distros

// fedora fills in what the releases of Fedora share: dnf 5, and no repository besides its own needed.
func fedora(version, key string, offers []Offer) Distro {
	d := el("fedora", version, "Fedora "+version, newDNF("dnf5"))
	d.RepoDir = map[string]string{"x86_64": "fedora" + version + "/x86_64"}
	d.Arches = map[string]string{"x86_64": "x86_64"}
	d.RepoKey = nvidiaKey(key)
	d.Suites = []string{"fedora", "updates"}
	d.kernel = elKernels{matched: true}
	d.Offers = offers
	return d
}
