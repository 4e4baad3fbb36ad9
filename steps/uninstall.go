package steps

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"gpuguest/distros"
	"gpuguest/internal/action"
	"gpuguest/internal/sh"
)

// What uninstall takes back is what the guest's own ledger says gpuguest did: facts.State. Nothing is
// guessed from what looks like NVIDIA's.

const stateDir = `S=${GPUGUEST_STATE:-/var/lib/gpuguest}`

func changedByUs(in Input) bool { return in.Facts.State.Before }

// setArgs are the kernel arguments that gpuguest set.
func setArgs(in Input) []string {
	if len(in.Facts.State.KernelArgs) > 0 {
		return in.Facts.State.KernelArgs
	}
	return blockArgs()
}

// toRemove are the packages that gpuguest's work added and that are still there.
func toRemove(in Input) []string { return in.Facts.State.Added }

// toRestore are the files whose earlier content is put back. The initramfs is built anew instead: an old
// copy would bring back an old world for whatever else changed since. The bootloader's configuration is
// written anew for the same reason.
func toRestore(in Input) []string {
	return slices.DeleteFunc(slices.Clone(in.Facts.State.Kept), func(p string) bool {
		return p == in.Facts.Boot.Image || p == in.Facts.Boot.Config || strings.HasPrefix(p, "/boot/")
	})
}

// emptied are the folders of absent files that are of no use without them: gpuguest's own, and those that add to a
// unit of systemd. Any other was there before, or belongs to a package.
func emptied(absent []string) []string {
	var all []string
	add := func(dir string) {
		if !slices.Contains(all, dir) {
			all = append(all, dir)
		}
	}
	for _, p := range absent {
		dir := path.Dir(p)
		for ; strings.HasPrefix(dir, ownLibrary+"/"); dir = path.Dir(dir) {
			add(dir)
		}
		if path.Base(dir) == "gpuguest" || path.Dir(dir) == "/etc/systemd/system" && strings.HasSuffix(dir, ".service.d") {
			add(dir)
		}
	}
	// One in another goes first.
	slices.SortStableFunc(all, func(a, b string) int { return cmp.Compare(strings.Count(b, "/"), strings.Count(a, "/")) })
	return all
}

// eachImage is sh that does something for the initramfs $i of each kernel $k: the next one's, and any other's that was
// made since gpuguest's first change. Other images are where the next kernel's is, named by its release.
func eachImage(in Input, do ...string) string {
	before, after, named := strings.Cut(in.Facts.Boot.Image, in.Facts.Kernel.Next)
	image, kernels := sh.Quote(in.Facts.Boot.Image), sh.Quote(in.Facts.Kernel.Next)
	if named && in.Facts.Kernel.Next != "" {
		image, kernels = sh.Quote(before)+`"$k"`+sh.Quote(after), kernels+` /lib/modules/*`
	}
	return lines(
		`for k in `+kernels+`; do`,
		`	k=${k##*/}`,
		`	i=`+image,
		`	[ -e "$i" ] || continue`,
		`	[ "$k" = `+sh.Quote(in.Facts.Kernel.Next)+` ] || [ ! "$i" -ot "$S/before/cmdline" ] || continue`,
		lines(do...),
		`done`)
}

// anyImage fills the words of eachImage into one of a maker's texts.
func anyImage(text string) string {
	return strings.NewReplacer("{kernel}", `"$k"`, "{image}", `"$i"`).Replace(text)
}

func init() {
	registerRemoval(Step{
		ID:    "ready",
		Title: "wait for cloud-init and the package manager",
		Check: readyCheck,
		Apply: readyActions,
	})
	registerRemoval(Step{
		ID:     "unhold",
		Title:  "take gpuguest's holds off",
		After:  []ID{"ready"},
		Wanted: func(in Input) bool { return len(in.Facts.State.Held) > 0 },
		Check: func(in Input) string {
			return lines(
				`held=$(`+in.Distro.Packages.Held()+`)`,
				`for p in `+sh.Join(in.Facts.State.Held...)+`; do`,
				`	! printf '%s\n' "$held" | grep -qx -- "$p" || { echo "$p is on hold"; exit 1; }`,
				`done`)
		},
		Apply: func(in Input) []action.Action {
			return []action.Action{action.Run{Title: "unhold " + strings.Join(in.Facts.State.Held, " "), Script: in.Distro.Packages.Unhold(in.Facts.State.Held...)}}
		},
	})
	registerRemoval(Step{
		ID:     "remove-packages",
		Title:  "remove the packages that gpuguest added",
		After:  []ID{"ready", "unhold", "remove-mig", "remove-runfile", "remove-toolkits"},
		Wanted: func(in Input) bool { return len(toRemove(in)) > 0 },
		AtBoot: func(in Input) bool { return in.Facts.Driver.Loaded != "" },
		Check: func(in Input) string {
			return lines(
				`now=$(`+in.Distro.Packages.List()+`)`,
				`for p in `+sh.Join(toRemove(in)...)+`; do`,
				`	! printf '%s\n' "$now" | cut -d' ' -f1 | grep -qxF -- "$p" || { echo "$p is installed"; exit 1; }`,
				`done`)
		},
		Apply: func(in Input) []action.Action {
			m := in.Distro.Packages
			acts := []action.Action{action.Run{
				Title:    fmt.Sprintf("purge %d packages", len(toRemove(in))),
				Packages: true,
				Script:   m.Quiet(m.Purge(toRemove(in)...)),
			}}
			for _, c := range in.Facts.State.Changed {
				acts = append(acts, action.Run{
					Title:    "bring " + c.Name + " back to " + c.Was,
					Packages: true,
					// The old version may have left the archive; then the newer one stays, and the proof says so.
					Script: lines(
						`set +e`,
						`if [ -r `+proxyEnv+` ]; then . `+proxyEnv+`; fi`,
						m.Quiet(m.Downgrade(c.Name, c.Was)),
						`exit 0`),
				})
			}
			if len(in.Facts.State.Changed) > 0 {
				// dnf imports the key of a repository that it takes an old version from, once more.
				acts = append(acts, action.Run{Title: "purge what that brought along again", Packages: true, Script: m.Quiet(m.Purge(toRemove(in)...))})
			}
			return acts
		},
		Hint: "a package that was installed later may need one of these: remove that one first, or keep the driver",
	})
	registerRemoval(Step{
		ID:     "restore-files",
		Title:  "put back files as they were",
		After:  []ID{"ready", "stop-services", "remove-mig", "remove-runfile", "remove-toolkits", "remove-packages"},
		Wanted: func(in Input) bool { return len(toRestore(in))+len(in.Facts.State.Absent) > 0 },
		AtBoot: func(in Input) bool { return slices.Contains(in.Facts.State.Absent, blocklistPath) && hasGPU(in) },
		Check: func(in Input) string {
			script := []string{stateDir}
			if r := toRestore(in); len(r) > 0 {
				script = append(script,
					`for f in `+sh.Join(r...)+`; do`,
					`	cmp -s "$S/before/files$f" "$f" || { echo "$f is not as it was"; exit 1; }`,
					`done`)
			}
			if a := in.Facts.State.Absent; len(a) > 0 {
				script = append(script, `for f in `+sh.Join(a...)+`; do [ ! -e "$f" ] || { echo "$f was not there before"; exit 1; }; done`)
				if dirs := emptied(a); len(dirs) > 0 {
					script = append(script, `for d in `+sh.Join(dirs...)+`; do [ ! -d "$d" ] || [ -n "$(ls -A "$d")" ] || { echo "$d is there and empty"; exit 1; }; done`)
				}
			}
			return lines(script...)
		},
		Apply: func(in Input) []action.Action {
			var script []string
			if r := toRestore(in); len(r) > 0 {
				script = append(script,
					`for f in `+sh.Join(r...)+`; do`,
					`	mkdir -p "${f%/*}"`,
					`	cp -a "$S/before/files$f" "$f.gpuguest-tmp"`,
					`	flush "$f.gpuguest-tmp"`,
					`	mv -f "$f.gpuguest-tmp" "$f"`,
					`done`)
			}
			if a := in.Facts.State.Absent; len(a) > 0 {
				script = append(script, `rm -f -- `+sh.Join(a...))
				if dirs := emptied(a); len(dirs) > 0 {
					// What somebody else put there stays, and its folder with it.
					script = append(script, `for d in `+sh.Join(dirs...)+`; do rmdir "$d" 2>/dev/null || :; done`)
				}
				if slices.ContainsFunc(a, func(p string) bool { return strings.HasPrefix(p, "/etc/systemd/system/") }) {
					script = append(script, `systemctl daemon-reload`)
				}
			}
			acts := []action.Action{action.Run{Title: "restore files", Script: lines(script...)}}
			if args := in.Facts.State.KernelArgs; len(args) > 0 {
				acts = append([]action.Action{distros.RecordArgs(args)}, acts...)
			}
			return acts
		},
	})
	registerRemoval(Step{
		ID:    "boot-config",
		Title: "write boot entries and initramfs anew",
		After: []ID{"ready", "remove-packages", "restore-files"},
		Wanted: func(in Input) bool {
			_, known := in.Distro.Boot.Loader(in.Facts)
			return changedByUs(in) && known
		},
		AtBoot: func(in Input) bool {
			return slices.ContainsFunc(in.Facts.Kernel.Cmdline, func(a string) bool { return strings.HasPrefix(a, "modprobe.blacklist="+blocked[0]) })
		},
		Check: func(in Input) string {
			script := []string{stateDir}
			if l, known := in.Distro.Boot.Loader(in.Facts); known {
				script = append(script, l.Gone(in.Facts, setArgs(in)))
			}
			if m, ok := maker(in); ok && in.Facts.Boot.Image != "" {
				script = append(script, eachImage(in, `! `+anyImage(m.List)+` | grep -F -q -- `+sh.Quote(strings.TrimPrefix(blocklistPath, "/"))+` || { echo "$i holds the blocklist"; exit 1; }`))
			}
			return lines(script...)
		},
		Apply: func(in Input) []action.Action {
			var acts []action.Action
			if l, known := in.Distro.Boot.Loader(in.Facts); known {
				acts = l.Unset(in.Facts, setArgs(in))
			}
			if m, ok := maker(in); ok && in.Facts.Boot.Image != "" {
				acts = append(acts, action.Run{Title: "build " + in.Facts.Boot.Image, Script: fill(in, m, m.Rebuild)})
				// A kernel's package, DKMS or dpkg's triggers made others while the blocklist was there.
				acts = append(acts, action.Run{Title: "build what else holds the blocklist", Script: eachImage(in,
					`if `+anyImage(m.List)+` | grep -F -q -- `+sh.Quote(strings.TrimPrefix(blocklistPath, "/"))+`; then`,
					`	echo "$i"`,
					`	`+anyImage(m.Rebuild),
					`fi`)})
			}
			return acts
		},
	})
	registerRemoval(Step{
		ID:     "removed",
		Title:  "prove that the guest is what it was",
		After:  []ID{"ready", "remove-packages", "restore-files", "boot-config", "products", "remove-accounts", "remove-signing-key", "restore-cuda-link", "remove-ways", "restart-engine"},
		Fresh:  true,
		Wanted: changedByUs,
		Check: func(in Input) string {
			script := []string{
				stateDir,
				// Where gpuguest added no package the driver is somebody else's, and stays.
				`[ ! -s "$S/packages" ] || [ ! -d /sys/module/nvidia ] || { echo "the nvidia module is still loaded"; exit 1; }`,
				`[ ! -s "$S/packages" ] || {`,
				`	now=$(mktemp)`,
				`	trap 'rm -f "$now"' EXIT`,
				`	{ ` + in.Distro.Packages.List() + `; } >"$now"`,
				// Only packages that gpuguest's work touched are its to prove; what a person installed since is theirs.
				`	bad=$(awk -v before="$S/before/packages" -v now="$now" 'BEGIN {`,
				`			while ((getline line < before) > 0) { split(line, w, " "); was[w[1]] = w[2] }`,
				`			while ((getline line < now) > 0) { split(line, w, " "); is[w[1]] = w[2] } }`,
				`		!seen[$2]++ && is[$2] != was[$2] { print $2 ": was " (was[$2] == "" ? "absent" : was[$2]) ", is " (is[$2] == "" ? "absent" : is[$2]) }' "$S/packages")`,
				`	[ -z "$bad" ] || { printf '%s\n' "$bad"; exit 1; }`,
				`}`,
			}
			// A boot loader that is not known was given no argument.
			if l, known := in.Distro.Boot.Loader(in.Facts); known {
				script = append(script,
					l.Ours(in.Facts, setArgs(in)),
					`line=" $(cat /proc/cmdline) "`,
					`for a in $gone; do case $line in *" $a "*) echo "the running kernel was started with $a, which install had added"; exit 1 ;; esac; done`)
			}
			return lines(append(script, `echo "what install added is gone: packages, files and kernel arguments"`)...)
		},
	})
	registerRemoval(Step{
		ID:     "forget",
		Title:  "forget what was recorded",
		After:  []ID{"removed"},
		Fresh:  true,
		Wanted: changedByUs,
		Check: func(Input) string {
			return lines(stateDir, `[ ! -e "$S/before" ] || { echo "the record of before is kept"; exit 1; }`)
		},
		Apply: func(Input) []action.Action {
			return []action.Action{action.Run{Title: "remove the record, keep the journal", Script: lines(
				`for d in "$S"/jobs/*; do case $d in */forget-*) ;; *) rm -rf "$d" ;; esac; done`,
				`rm -rf "$S/samples"`,
				`rm -f "$S/packages" "$S/held" "$S/initramfs.proved" "$S/args" "$S/cuda-keyring.deb" "$S/verify.json" "$S/verify.due" "$S/flavor" "$S/flavor.due"`,
				`mv "$S/before" "$S/before.forgotten"`,
				`rm -rf "$S/before.forgotten"`,
				`journal '"event":"uninstalled"'`)}}
		},
	})
}
