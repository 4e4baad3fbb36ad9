package distros

// kylin fills in what the releases of Kylin share. Its kernels are named as RHEL's are, with .ky10 in their release.
func kylin(version, dir string) Distro {
	d := el("kylin", version, "Kylin "+version, newDNF("dnf4"))
	d.RepoDir = map[string]string{"x86_64": dir + "/x86_64", "aarch64": dir + "/sbsa"}
	d.Suites = []string{"ks*-adv-os*", "ks*-adv-updates*"}
	return d
}
