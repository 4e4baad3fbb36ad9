package distros

import (
	"errors"
	"path"
	"slices"
	"strings"
	"testing"

	"gpuguest/internal/catalog"
	"gpuguest/internal/facts"
)

func TestForMatchesBySpecificity(t *testing.T) {
	for _, c := range []struct {
		osr  facts.OS
		as   string
		want string // "" unsupported
		says []string
	}{
		{osr: facts.OS{ID: "debian", VersionID: "12"}, want: "debian:12"},
		{osr: facts.OS{ID: "debian", VersionID: "12.11"}, want: "debian:12"},
		{osr: facts.OS{ID: "debian", VersionID: "13"}, want: "debian:13"},
		{osr: facts.OS{ID: "ubuntu", VersionID: "24.04", Like: []string{"debian"}}, want: "ubuntu:24.04"},
		{osr: facts.OS{ID: "ubuntu", VersionID: "26.04"}, want: "ubuntu:26.04"},
		{osr: facts.OS{ID: "Ubuntu", VersionID: "20.04"}, want: "ubuntu:20.04"},
		{osr: facts.OS{ID: "debian", VersionID: "1"}, says: []string{"debian:1;", "debian:11, debian:12, debian:13"}},
		{osr: facts.OS{ID: "debian", VersionID: "120"}, says: []string{"debian:120"}},
		{osr: facts.OS{ID: "debian", VersionID: ""}, says: []string{"no VERSION_ID"}},
		{osr: facts.OS{}, says: []string{"names none"}},
		{osr: facts.OS{ID: "ubuntu", VersionID: "18.04", Like: []string{"debian"}}, says: []string{"ubuntu:18.04", "--as ubuntu:20.04"}},
		{osr: facts.OS{ID: "linuxmint", VersionID: "22", Codename: "wilma", Like: []string{"ubuntu", "debian"}}, says: []string{"linuxmint:22", "--as ubuntu:26.04"}},
		{osr: facts.OS{ID: "devuan", VersionID: "5", Codename: "bookworm", Like: []string{"debian"}}, says: []string{"--as debian:12"}},
		{osr: facts.OS{ID: "ubuntu", VersionID: "25.10", Like: []string{"debian"}}, says: []string{"if its packages are those of Ubuntu 24.04 (noble), say --as ubuntu:24.04"}},
		{osr: facts.OS{ID: "debian", VersionID: "14"}, says: []string{"--as debian:13"}},
		{osr: facts.OS{ID: "fedora", VersionID: "44"}, want: "fedora:44"},
		{osr: facts.OS{ID: "fedora", VersionID: "41"}, says: []string{"fedora:41"}},
		{osr: facts.OS{ID: "linuxmint", VersionID: "22"}, as: "ubuntu:24.04", want: "ubuntu:24.04"},
		{osr: facts.OS{ID: "linuxmint", VersionID: "22"}, as: "Debian:12", want: "debian:12"},
		{osr: facts.OS{ID: "debian", VersionID: "12"}, as: "rocky:6", says: []string{"rocky:6; known"}},
		{osr: facts.OS{ID: "rocky", VersionID: "9.6"}, want: "rocky:9"},
		{osr: facts.OS{ID: "rhel", VersionID: "10.1"}, want: "rhel:10"},
		{osr: facts.OS{ID: "centos", VersionID: "7"}, want: "centos:7"},
		{osr: facts.OS{ID: "ol", VersionID: "8.10"}, want: "ol:8"},
		{osr: facts.OS{ID: "kylin", VersionID: "V10"}, want: "kylin:V10"},
		{osr: facts.OS{ID: "debian", VersionID: "12"}, as: "kylin:V10", want: "kylin:V10"},
		{osr: facts.OS{ID: "opensuse-leap", VersionID: "15.6"}, want: "opensuse-leap:15"},
		{osr: facts.OS{ID: "azurelinux", VersionID: "3.0"}, want: "azurelinux:3.0"},
		{osr: facts.OS{ID: "openEuler", VersionID: "22.03"}, says: []string{"openeuler:22.03"}},
		{osr: facts.OS{ID: "scientific", VersionID: "7.9", Like: []string{"rhel", "centos", "fedora"}}, says: []string{"say --as rhel:"}},
		{osr: facts.OS{ID: "debian", VersionID: "12"}, as: "debian", says: []string{"--as debian is not of the form"}},
		{osr: facts.OS{ID: "debian", VersionID: "12"}, as: ":12", says: []string{"not of the form"}},
	} {
		d, err := For(c.osr, c.as)
		if c.want != "" {
			if err != nil || d.String() != c.want {
				t.Errorf("For(%+v, %q) = %s, %v; want %s", c.osr, c.as, d, err, c.want)
			}
			continue
		}
		if !errors.Is(err, ErrUnsupported) {
			t.Errorf("For(%+v, %q): %v, want ErrUnsupported", c.osr, c.as, err)
			continue
		}
		for _, s := range c.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("For(%+v, %q): %q does not say %q", c.osr, c.as, err, s)
			}
		}
	}
}

func TestModulesThatDoNotCompileAreKnownByTheSeriesOfTheKernel(t *testing.T) {
	o := Offer{Breaks: "6.1.0-56"}
	for release, want := range map[string]bool{"6.1.0-55-amd64": true, "6.1.0-56-amd64": false, "6.1.0-57-cloud-amd64": false, "6.12.94+deb12-amd64": true, "5.10.0-99-amd64": true, "": true} {
		if o.Compiles(release) != want {
			t.Errorf("%q: %v", release, !want)
		}
	}
	if !(Offer{}).Compiles("6.1.0-56-amd64") {
		t.Error("where none is known to break it")
	}
}

func TestRegisterPanicsOnADuplicate(t *testing.T) {
	before := slices.Clone(registry)
	defer func() {
		registry = before
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	register(debian("12", "bookworm"))
}

func TestEveryDistributionAndOfferIsSound(t *testing.T) {
	var names []string
	for _, d := range All() {
		names = append(names, d.String())
		if d.Name == "" || d.Packages == nil || d.kernel == nil || len(d.Boot.Loaders) == 0 || len(d.Boot.Makers) == 0 || len(d.Suites) == 0 {
			t.Errorf("%s: incomplete: %+v", d, d)
		}
		if apt := d.Family == "apt"; apt != (d.Codename != "") || apt != (len(d.Components) > 0) || apt == (d.RepoKey.File != "") || apt == (d.RepoFiles != "") {
			t.Errorf("%s: neither all of apt nor all of rpm: %+v", d, d)
		}
		for _, e := range d.Extras {
			if e.Name == "" || (e.IDs == "") == (e.Gone == "") || e.How == "" || e.Enable == "" {
				t.Errorf("%s: incomplete: %+v", d, e)
			}
		}
		for dir, sum := range d.KeyringSHA256 {
			if len(sum) != 64 || !strings.HasPrefix(dir, d.ID+strings.ReplaceAll(d.Version, ".", "")+"/") {
				t.Errorf("%s: %s %s", d, dir, sum)
			}
		}
		type key struct {
			source, flavor, modules, machine string
			branch                           int
		}
		seen := map[key]bool{}
		for _, o := range d.Offers {
			at := d.String() + " " + o.Source + " " + o.Flavor + " " + o.Modules + " " + strings.Join(o.Packages, " ")
			if o.Fact == "" || o.Module == "" || len(o.Packages) == 0 || o.Persistence.Unit == "" || strings.Contains(o.Fact, "memory") {
				t.Errorf("%s: incomplete", at)
			}
			if (o.Modules == ModulesDKMS) != (o.DKMSName != "") || o.Signed && o.Modules != ModulesPrecompiled || !o.Signed && o.Modules == ModulesPrecompiled && o.Source == SourceDistro || o.Lock && o.Stream != "" {
				t.Errorf("%s: DKMS name %q, signed %v", at, o.DKMSName, o.Signed)
			}
			if !slices.Contains([]string{SourceNVIDIA, SourceDistro}, o.Source) || !slices.Contains(bothFlavors, o.Flavor) {
				t.Errorf("%s: strange words", at)
			}
			if (o.Branches == nil) == (o.Min == 0) {
				t.Errorf("%s: it has either branches or a first one", at)
			}
			for _, machine := range o.Arches {
				if d.Arches[machine] == "" {
					t.Errorf("%s: %s is no machine of it", at, machine)
				}
			}
			served := 0
			for _, b := range catalog.Branches() {
				for machine := range d.Arches {
					if !o.Serves(b.Number, machine) {
						continue
					}
					served++
					if o.Flavor == FlavorProprietary && b.Open == catalog.OpenOnly {
						continue
					}
					k := key{o.Source, o.Flavor, o.Modules, machine, b.Number}
					if seen[k] {
						t.Errorf("%s: a second offer of %+v", at, k)
					}
					seen[k] = true
					for _, p := range Expand(o.Packages, Names{Branch: b.Number, Kernel: "6.8.0-45-generic", Flavor: "default", KernelMeta: "generic"}) {
						p = PackageName(p)
						if strings.ContainsAny(p, "{} ") {
							t.Errorf("%s: package %q", at, p)
						}
						for source, patterns := range d.Marks {
							for _, pattern := range patterns {
								if ok, err := path.Match(pattern, p); source != o.Source && (ok || err != nil) {
									t.Errorf("%s: its package %s is a mark of %s (%s), %v", at, p, source, pattern, err)
								}
							}
						}
					}
				}
			}
			if served == 0 {
				t.Errorf("%s: serves no branch of the table", at)
			}
			for _, n := range o.Branches {
				b, ok := catalog.BranchByNumber(n)
				if !ok || o.Flavor == FlavorOpen && b.Open == catalog.OpenNo {
					t.Errorf("%s: branch %d is not in the table, or has no %s modules", at, n, o.Flavor)
				}
			}
		}
	}
	if want := []string{
		"almalinux:10", "almalinux:8", "almalinux:9", "amzn:2023", "azurelinux:3.0", "centos:10", "centos:7", "centos:8", "centos:9",
		"debian:11", "debian:12", "debian:13", "fedora:43", "fedora:44", "kylin:V10", "kylin:V11", "ol:10", "ol:7", "ol:8", "ol:9",
		"opensuse-leap:15", "opensuse-leap:16", "rhel:10", "rhel:7", "rhel:8", "rhel:9", "rocky:10", "rocky:8", "rocky:9", "sles:15", "sles:16",
		"ubuntu:20.04", "ubuntu:22.04", "ubuntu:24.04", "ubuntu:26.04",
	}; !slices.Equal(names, want) {
		t.Errorf("known are %v, want %v", names, want)
	}
}

func TestExpandLeavesOutWhatIsNotKnown(t *testing.T) {
	templates := []string{"cuda-drivers-{branch}", "nvidia-driver-pinning-{pin}", "linux-modules-nvidia-{branch}-{kernel}", "linux-modules-nvidia-{branch}-{kmeta}", "nvidia-open"}
	for _, c := range []struct {
		names Names
		want  string
	}{
		{Names{Branch: 580}, "cuda-drivers-580 nvidia-driver-pinning-580 nvidia-open"},
		{Names{Branch: 580, Version: "580.95.05"}, "cuda-drivers-580 nvidia-driver-pinning-580.95.05 nvidia-open"},
		{Names{Branch: 580, Kernel: "6.8.0-45-generic", KernelMeta: "generic-hwe-24.04"}, "cuda-drivers-580 nvidia-driver-pinning-580 linux-modules-nvidia-580-6.8.0-45-generic linux-modules-nvidia-580-generic-hwe-24.04 nvidia-open"},
	} {
		if got := strings.Join(Expand(templates, c.names), " "); got != c.want {
			t.Errorf("%+v:\n got %s\nwant %s", c.names, got, c.want)
		}
	}
}

func TestHeaderPackagesFollowTheKernel(t *testing.T) {
	for _, c := range []struct {
		as, release string
		meta        []string
		flavor      string
		want        string
	}{
		{"debian:12", "6.1.0-50-amd64", nil, "amd64", "linux-headers-6.1.0-50-amd64 linux-headers-amd64"},
		{"debian:12", "6.1.0-50-cloud-amd64", []string{"linux-image-cloud-amd64"}, "cloud-amd64", "linux-headers-6.1.0-50-cloud-amd64 linux-headers-cloud-amd64"},
		{"debian:13", "6.12.94+deb13-cloud-arm64", nil, "cloud-arm64", "linux-headers-6.12.94+deb13-cloud-arm64 linux-headers-cloud-arm64"},
		{"debian:13", "6.12.107+deb13-arm64-16k", nil, "arm64-16k", "linux-headers-6.12.107+deb13-arm64-16k"},
		{"debian:12", "6.12.12+bpo-amd64", nil, "amd64", "linux-headers-6.12.12+bpo-amd64 linux-headers-amd64"},
		{"debian:11", "5.10.0-32-rt-amd64", nil, "rt-amd64", "linux-headers-5.10.0-32-rt-amd64 linux-headers-rt-amd64"},
		{"debian:12", "6.9.3-custom", nil, "custom", "linux-headers-6.9.3-custom"},
		{"debian:12", "6.9.3", nil, "", "linux-headers-6.9.3"},
		{"debian:12", "", nil, "", ""},
		{"ubuntu:24.04", "6.8.0-45-generic", nil, "generic", "linux-headers-6.8.0-45-generic linux-headers-generic"},
		{"ubuntu:24.04", "6.17.0-19-generic", []string{"linux-generic-hwe-24.04", "linux-image-generic-hwe-24.04"}, "generic", "linux-headers-6.17.0-19-generic linux-headers-generic-hwe-24.04"},
		{"ubuntu:22.04", "5.15.0-106-generic", []string{"linux-virtual"}, "generic", "linux-headers-5.15.0-106-generic linux-headers-generic"},
		{"ubuntu:22.04", "6.8.0-60-generic", []string{"linux-image-virtual-hwe-22.04"}, "generic", "linux-headers-6.8.0-60-generic linux-headers-generic-hwe-22.04"},
		{"ubuntu:22.04", "5.15.0-1054-azure", []string{"linux-azure-lts-22.04"}, "azure", "linux-headers-5.15.0-1054-azure linux-headers-azure-lts-22.04"},
		{"ubuntu:22.04", "6.8.0-1014-aws", []string{"linux-image-aws"}, "aws", "linux-headers-6.8.0-1014-aws linux-headers-aws"},
		{"ubuntu:24.04", "6.8.0-45-generic", []string{"linux-image-aws"}, "generic", "linux-headers-6.8.0-45-generic"},
		{"ubuntu:24.04", "6.8.0-45-generic-64k", []string{"linux-image-generic"}, "generic-64k", "linux-headers-6.8.0-45-generic-64k"},
		{"ubuntu:24.04", "6.8.0-45-generic", []string{"linux-image-generic-64k"}, "generic", "linux-headers-6.8.0-45-generic"},
		{"ubuntu:24.04", "6.9.3-custom", nil, "", "linux-headers-6.9.3-custom"},
		{"centos:7", "3.10.0-1160.119.1.el7.x86_64", nil, "standard", "kernel-devel-3.10.0-1160.119.1.el7.x86_64"},
		{"rocky:8", "4.18.0-553.el8_10.x86_64", nil, "standard", "kernel-devel-4.18.0-553.el8_10.x86_64"},
		{"rocky:9", "5.14.0-570.12.1.el9_6.x86_64", nil, "standard", "kernel-devel-5.14.0-570.12.1.el9_6.x86_64 kernel-devel-matched-5.14.0-570.12.1.el9_6.x86_64"},
		{"almalinux:9", "5.14.0-570.12.1.el9_6.aarch64+64k", nil, "64k", "kernel-64k-devel-5.14.0-570.12.1.el9_6.aarch64 kernel-64k-devel-matched-5.14.0-570.12.1.el9_6.aarch64"},
		{"ol:9", "6.12.0-100.28.2.2.el9uek.x86_64", nil, "uek", "kernel-uek-devel-6.12.0-100.28.2.2.el9uek.x86_64"},
		{"rhel:8", "4.18.0-553.rt7.342.el8_10.x86_64", nil, "rt", "kernel-rt-devel-4.18.0-553.rt7.342.el8_10.x86_64"},
		{"fedora:44", "6.19.8-300.fc44.x86_64", nil, "standard", "kernel-devel-6.19.8-300.fc44.x86_64 kernel-devel-matched-6.19.8-300.fc44.x86_64"},
		{"amzn:2023", "6.1.115-126.197.amzn2023.x86_64", nil, "standard", "kernel-devel-6.1.115-126.197.amzn2023.x86_64 kernel-modules-extra-6.1.115-126.197.amzn2023.x86_64"},
		{"amzn:2023", "6.12.40-63.114.amzn2023.aarch64", nil, "standard", "kernel6.12-devel-6.12.40-63.114.amzn2023.aarch64 kernel6.12-modules-extra-6.12.40-63.114.amzn2023.aarch64"},
		{"kylin:V10", "4.19.90-89.11.v2401.ky10.x86_64", nil, "standard", "kernel-devel-4.19.90-89.11.v2401.ky10.x86_64"},
		{"sles:15", "6.4.0-150600.23.47-default", nil, "default", "kernel-default-devel=6.4.0-150600.23.47"},
		{"sles:15", "6.4.0-150600.8.40-azure", nil, "azure", "kernel-azure-devel=6.4.0-150600.8.40"},
		{"sles:15", "6.9.3", nil, "", ""},
		{"azurelinux:3.0", "6.6.64.2-9.azl3", nil, "standard", "kernel-devel=6.6.64.2-9.azl3"},
	} {
		d, err := For(facts.OS{}, c.as)
		if err != nil {
			t.Fatal(err)
		}
		f := facts.Facts{Kernel: facts.Kernel{Meta: c.meta}}
		got := strings.Join(append(d.HeadersFor(c.release), d.HeadersMeta(c.release, f)...), " ")
		if got != c.want || d.KernelFlavor(c.release) != c.flavor {
			t.Errorf("%s %s %v: %q, flavor %q; want %q, %q", c.as, c.release, c.meta, got, d.KernelFlavor(c.release), c.want, c.flavor)
		}
	}
}

func TestRepoNamesNVIDIAsRepositoryOrItsMirror(t *testing.T) {
	d, err := For(facts.OS{}, "debian:12")
	if err != nil {
		t.Fatal(err)
	}
	own, err := d.Repo("x86_64", "", "")
	if err != nil {
		t.Fatal(err)
	}
	want := Repo{
		Dir:           "debian12/x86_64",
		URL:           "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/",
		KeyPackage:    "cuda-keyring",
		KeyringURL:    "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/cuda-keyring_1.1-1_all.deb",
		KeyringSHA256: "e7f219eab6fe4819cdb5c15b98233dc3420302d9c00883219cd3d896857cf48d",
		Keyring:       "/usr/share/keyrings/cuda-archive-keyring.gpg",
		ListPath:      "/etc/apt/sources.list.d/cuda-debian12-x86_64.list",
		List:          "deb [signed-by=/usr/share/keyrings/cuda-archive-keyring.gpg] https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/ /\n",
	}
	if own != want {
		t.Errorf("got  %+v\nwant %+v", own, want)
	}
	sum := strings.Repeat("AB", 32)
	mirror, err := d.Repo("x86_64", "http://10.0.2.2:8000/repos//", sum)
	if err != nil || !mirror.Mirrored || mirror.URL != "http://10.0.2.2:8000/repos/debian12/x86_64/" || mirror.KeyringSHA256 != strings.ToLower(sum) || !strings.Contains(mirror.List, " "+mirror.URL+" /") {
		t.Errorf("mirror: %+v, %v", mirror, err)
	}
	if _, err := d.Repo("aarch64", "", ""); !errors.Is(err, ErrNoSum) {
		t.Errorf("no sum is known for sbsa: %v", err)
	}
	if r, err := d.Repo("aarch64", "", sum); err != nil || r.ListPath != "/etc/apt/sources.list.d/cuda-debian12-sbsa.list" {
		t.Errorf("sbsa: %+v, %v", r, err)
	}
	if _, err := d.Repo("i686", "", sum); err == nil || errors.Is(err, ErrNoSum) {
		t.Errorf("i686: %v", err)
	}
}

func TestExtraSourcesAddsOnlyWhatIsMissing(t *testing.T) {
	src := func(uri, suite, component, signed string) facts.Source {
		return facts.Source{URI: uri, Suite: suite, Component: component, SignedBy: signed, File: "/etc/apt/sources.list"}
	}
	const key = "/usr/share/keyrings/debian-archive-keyring.gpg"
	for _, c := range []struct {
		name, as, mirror string
		sources          []facts.Source
		want             string
	}{
		{name: "a stock guest", as: "debian:12",
			sources: []facts.Source{
				src("http://mirror.example/debian/", "bookworm", "main", key), src("http://mirror.example/debian", "bookworm-updates", "main", key),
				src("http://security.example/debian-security", "bookworm-security", "main", key), src("http://mirror.example/debian", "bookworm-backports", "main", key),
				src("https://third.example/apt", "stable", "main", ""),
			},
			want: "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: contrib non-free non-free-firmware\nSigned-By: " + key + "\n" +
				"\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-updates\nComponents: contrib non-free non-free-firmware\nSigned-By: " + key + "\n" +
				"\nTypes: deb\nURIs: http://security.example/debian-security\nSuites: bookworm-security\nComponents: contrib non-free non-free-firmware\nSigned-By: " + key + "\n"},
		{name: "some components are there, no Signed-By", as: "debian:12",
			sources: []facts.Source{src("http://m/debian", "bookworm", "main", ""), src("http://m/debian", "bookworm", "contrib", ""), src("http://m/debian", "bookworm", "non-free-firmware", "")},
			want:    "Types: deb\nURIs: http://m/debian\nSuites: bookworm\nComponents: non-free\n"},
		{name: "all are there", as: "debian:11",
			sources: []facts.Source{src("http://m/debian", "bullseye", "main", ""), src("http://m/debian", "bullseye", "contrib", ""), src("http://m/debian", "bullseye", "non-free", "")}},
		{name: "what gpuguest added does not count", as: "ubuntu:24.04",
			sources: []facts.Source{src("http://m/ubuntu", "noble", "main", ""), {URI: "http://m/ubuntu", Suite: "noble", Component: "restricted", File: ExtraSourcesPath}},
			want:    "Types: deb\nURIs: http://m/ubuntu\nSuites: noble\nComponents: restricted multiverse\n"},
		{name: "a key within the file cannot be repeated", as: "debian:12", sources: []facts.Source{src("http://m/debian", "bookworm", "main", "embedded")}},
		{name: "a mirror brings everything", as: "debian:13", mirror: "http://10.0.2.2/debian/", sources: []facts.Source{src("http://m/debian", "trixie", "main", key)},
			want: "Types: deb\nURIs: http://10.0.2.2/debian\nSuites: trixie\nComponents: main contrib non-free non-free-firmware\nSigned-By: " + key + "\n" +
				"\nTypes: deb\nURIs: http://10.0.2.2/debian\nSuites: trixie-updates\nComponents: main contrib non-free non-free-firmware\nSigned-By: " + key + "\n"},
		{name: "a mirror the guest reads already keeps its Signed-By", as: "debian:12", mirror: "http://m/debian",
			sources: []facts.Source{src("http://m/debian", "bookworm", "main", ""), src("http://m/debian", "bookworm-updates", "main", "/k.gpg")},
			want: "Types: deb\nURIs: http://m/debian\nSuites: bookworm\nComponents: contrib non-free non-free-firmware\n" +
				"\nTypes: deb\nURIs: http://m/debian\nSuites: bookworm-updates\nComponents: contrib non-free non-free-firmware\nSigned-By: /k.gpg\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := For(facts.OS{}, c.as)
			if err != nil {
				t.Fatal(err)
			}
			if got := d.ExtraSources(facts.Facts{Sources: c.sources}, c.mirror); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestArchiveNamesTheSourcesThatMustRefresh(t *testing.T) {
	d, err := For(facts.OS{}, "debian:12")
	if err != nil {
		t.Fatal(err)
	}
	f := facts.Facts{Sources: []facts.Source{
		{URI: "http://m/debian/", Suite: "bookworm", Component: "main"}, {URI: "http://m/debian", Suite: "bookworm-updates", Component: "main"},
		{URI: "http://s/debian-security", Suite: "bookworm-security", Component: "main"}, {URI: "https://third.example", Suite: "stable", Component: "main"},
	}}
	if got, want := d.Archive(f, ""), []string{"http://m/debian", "http://s/debian-security"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := d.Archive(f, "http://x/debian/"); !slices.Equal(got, []string{"http://x/debian"}) {
		t.Errorf("mirror: %v", got)
	}
}
