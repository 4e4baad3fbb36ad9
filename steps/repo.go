package steps

import (
	"slices"
	"strings"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/facts"
	"gpuguest/internal/sh"
)

const keyringFile = "/var/lib/gpuguest/cuda-keyring.deb"

func init() {
	register(Step{
		ID:    "old-sources",
		Title: "remove NVIDIA sources and keys that conflict",
		After: []ID{"ready", "rescue"},
		Wanted: func(in Input) bool {
			own, shared := oldSources(in)
			return readsRepo(in) && len(own)+len(shared) > 0
		},
		Check: func(in Input) string {
			own, shared := oldSources(in)
			return lines(
				`for f in `+sh.Join(own...)+`; do [ ! -e "$f" ] || { echo "$f is there"; exit 1; }; done`,
				`for f in `+sh.Join(shared...)+`; do ! grep -q '`+nvidiaLine+`' "$f" || { echo "$f names NVIDIA's repository"; exit 1; }; done`)
		},
		Apply: func(in Input) []action.Action {
			own, shared := oldSources(in)
			return []action.Action{action.Run{
				Title: "remove old source lists and keys",
				Script: lines(
					`for f in `+sh.Join(own...)+`; do drop "$f"; done`,
					`for f in `+sh.Join(shared...)+`; do`,
					`	new=$(mktemp)`,
					`	sed 's|`+nvidiaLine+`|# gpuguest: &|' "$f" >"$new"`,
					`	put "$f" 0644 <"$new"`,
					`	rm -f "$new"`,
					`done`),
			}}
		},
	})
	register(Step{
		ID:     "repo",
		Title:  "add NVIDIA's package repository",
		After:  []ID{"ready", "rescue", "old-sources", "toolkit-pin"},
		Wanted: readsRepo,
		Refuse: func(in Input) string {
			r, err := repoOf(in)
			switch {
			case err != nil:
				return err.Error()
			case in.Want.KeyringSent && r.KeyringSHA256 == "":
				return "of a key that is sent the SHA-256 has to be said: --keyring-sha256"
			}
			return ""
		},
		Check: func(in Input) string {
			r, err := repoOf(in)
			if err != nil {
				return "false"
			}
			var script []string
			if r.KeyPackage != "" {
				script = append(script, must(in.Distro.Packages.Installed(r.KeyPackage), "the keyring package is not installed"))
			}
			return lines(append(script,
				`[ -s `+sh.Quote(r.Keyring)+` ] || { echo `+sh.Quote(r.Keyring+" is missing")+`; exit 1; }`,
				`printf %s `+sh.Quote(r.List)+` | cmp -s - `+sh.Quote(r.ListPath)+` || { echo `+sh.Quote(r.ListPath+" does not name the repository")+`; exit 1; }`,
				must(in.Distro.Packages.Fetched(r.URL), "its package list was not fetched yet"))...)
		},
		Apply: func(in Input) []action.Action {
			r, err := repoOf(in)
			if err != nil {
				return nil
			}
			m := in.Distro.Packages
			refresh := action.Run{Title: "fetch NVIDIA's package list", Script: m.Quiet(m.Refresh(distros.Refresh{Need: []string{r.URL}}))}
			if r.KeyPackage == "" {
				return append(keyActions(in, r), action.Write{Path: r.ListPath, Data: []byte(r.List)}, refresh)
			}
			var get action.Action = action.Run{Title: "fetch the keyring package and check its SHA-256", Script: m.Download(r.KeyringURL, keyringFile, r.KeyringSHA256)}
			if in.Want.KeyringSent {
				get = action.Send{Path: keyringFile, SHA256: r.KeyringSHA256}
			}
			return []action.Action{
				get,
				action.Run{Title: "install the keyring package", Packages: true, Script: lines(
					`keep `+sh.Quote(r.ListPath),
					m.Quiet(m.InstallFile(keyringFile)),
					`rm -f `+keyringFile)},
				action.Write{Path: r.ListPath, Data: []byte(r.List)},
				refresh,
			}
		},
		Hint: "see that the guest reaches the repository; --repo-mirror names another one, --source distro does without",
	})
	register(Step{
		ID:    "components",
		Title: "add the archive components that hold the driver",
		After: []ID{"ready", "rescue"},
		Wanted: func(in Input) bool {
			return in.Choice.Source == choice.SourceDistro && !byBundle(in) && extraSources(in) != ""
		},
		Check: func(in Input) string {
			return lines(
				`printf %s `+sh.Quote(extraSources(in))+` | cmp -s - `+distros.ExtraSourcesPath+` || { echo "`+distros.ExtraSourcesPath+` does not name them"; exit 1; }`,
				must(in.Distro.Packages.Offered(in.Choice.Packages...), "the driver packages are not offered yet"))
		},
		Apply: func(in Input) []action.Action {
			m := in.Distro.Packages
			return []action.Action{
				action.Write{Path: distros.ExtraSourcesPath, Data: []byte(extraSources(in))},
				action.Run{Title: "fetch the package lists", Script: m.Quiet(freshLists(in))},
			}
		},
	})
}

// keyActions bring the repository's key into the guest and into rpm's own keyring. It is imported here and not
// when the first package asks for it, so that it is in the ledger.
func keyActions(in Input, r distros.Repo) []action.Action {
	imported := action.Run{Title: "import the key", Packages: true, Script: `rpm --import ` + sh.Quote(r.Keyring)}
	if in.Want.KeyringSent {
		return []action.Action{
			action.Send{Path: keyringFile, SHA256: r.KeyringSHA256},
			action.Run{Title: "keep the key", Script: lines(distros.KeyInForce(keyringFile, r.KeyringURL), `put `+sh.Quote(r.Keyring)+` 0644 <`+keyringFile, `rm -f `+keyringFile+` `+keyringFile+`.bin`)},
			imported,
		}
	}
	return []action.Action{
		action.Run{Title: "fetch the repository's key and check it by " + r.Key.Checked(r.KeyringSHA256), Script: distros.FetchKey(r.Key, r.KeyringURL, r.Keyring, r.KeyringSHA256)},
		imported,
	}
}

// usesRepo tells whether the driver or the toolkit comes from NVIDIA's repository.
func usesRepo(in Input) bool {
	return in.Choice.Source == choice.SourceNVIDIA || in.Choice.CUDA.Source == choice.SourceNVIDIA
}

// readsRepo tells whether the guest is to read that repository itself.
func readsRepo(in Input) bool { return usesRepo(in) && !byBundle(in) }

// repoOf is NVIDIA's repository. A mirror that was named is the distribution's where the driver comes from there.
func repoOf(in Input) (distros.Repo, error) {
	mirror := in.Want.Mirror
	if in.Choice.Source == choice.SourceDistro {
		mirror = ""
	}
	r, err := in.Distro.Repo(in.Facts.Arch, mirror, in.Want.KeyringSHA256)
	if toolkitOnly(in) {
		r = in.Distro.ForToolkits(r, in.Choice.Source)
	}
	return r, err
}

// toolkitOnly tells whether NVIDIA's repository is read for CUDA, and the driver comes from elsewhere.
func toolkitOnly(in Input) bool {
	return in.Choice.CUDA.Source == choice.SourceNVIDIA && in.Choice.Source != choice.SourceNVIDIA
}

func extraSources(in Input) string { return in.Distro.ExtraSources(in.Facts, in.Want.Mirror) }

// nvidiaLine matches a one-line source of NVIDIA's repository that is in force.
const nvidiaLine = `^deb.*developer\.download\.nvidia\.com.*`

// oldSources tells files that hold nothing but NVIDIA's from the distribution's own list, which is edited
// and not removed. The shared keyring of old is left alone: a key too many conflicts with nothing.
func oldSources(in Input) (own, shared []string) {
	for _, f := range in.Facts.OldNVIDIA {
		if onlyContainers(in, f) {
			continue
		}
		switch f {
		case "/etc/apt/sources.list":
			shared = append(shared, f)
		case "/etc/apt/trusted.gpg":
		default:
			own = append(own, f)
		}
	}
	return append(own, oldRepositories(in)...), shared
}

// onlyContainers tells whether a source list names nothing but NVIDIA's container toolkit, which is in nobody's way.
func onlyContainers(in Input, file string) bool {
	named := false
	for _, s := range in.Facts.Sources {
		if s.File != file {
			continue
		}
		if !strings.Contains(s.URI, "://nvidia.github.io/") {
			return false
		}
		named = true
	}
	return named
}

// oldRepositories are repository files of rpm that hold nothing but NVIDIA's repository for this guest and are not
// the one that gpuguest writes: two files that name one repository are an error to dnf, or a warning.
func oldRepositories(in Input) []string {
	r, err := repoOf(in)
	if err != nil || r.KeyPackage != "" {
		return nil
	}
	mine := func(s facts.Source) bool {
		return strings.Contains(s.URI, "developer.download.nvidia.com/compute/cuda/repos/"+r.Dir)
	}
	var found []string
	for _, s := range in.Facts.Sources {
		if s.File == r.ListPath || !mine(s) || slices.Contains(found, s.File) ||
			slices.ContainsFunc(in.Facts.Sources, func(o facts.Source) bool { return o.File == s.File && !mine(o) }) {
			continue
		}
		found = append(found, s.File)
	}
	return found
}
