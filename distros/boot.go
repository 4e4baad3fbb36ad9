package distros

import (
	"path"
	"slices"
	"strings"

	"gpuguest/internal/action"
	"gpuguest/internal/facts"
	"gpuguest/internal/sh"
)

// Boot says how a distribution's boot layer is changed and asked: the boot loader's kernel arguments, and
// the initramfs.
type Boot struct {
	Loaders []Loader         // the first that fits a guest is its
	Makers  map[string]Maker // by the name that facts give what makes the initramfs
}

// Loader is one way in which kernel arguments are given to every kernel of a guest. What its methods return
// runs as an action or a check does: under set -eu, with the step library where it acts.
type Loader interface {
	// Fits tells whether this is how a guest boots.
	Fits(f facts.Facts) bool
	// Set gives every kernel the arguments and takes drop away; what is there already stays as it is.
	Set(f facts.Facts, args, drop []string) []action.Action
	// Proof exits zero when every entry that starts the next kernel has the arguments, and those of later
	// kernels will. It reads what the boot loader will read, not what that is made from.
	Proof(f facts.Facts, args []string) string
	// Unset takes the arguments back, once files that were kept have been put back.
	Unset(f facts.Facts, args []string) []action.Action
	// Ours sets $gone to those of the arguments that are gpuguest's alone: that nobody had set before its first
	// change, nor, where that can be told, has set since. $S is gpuguest's folder.
	Ours(f facts.Facts, args []string) string
	// Gone exits zero when no entry has an argument of Ours. Whatever else the entries have is not looked at: who
	// changed it since had a reason.
	Gone(f facts.Facts, args []string) string
}

// Loader returns how a guest's kernel arguments are set; false when no way is known.
func (b Boot) Loader(f facts.Facts) (Loader, bool) {
	for _, l := range b.Loaders {
		if l.Fits(f) {
			return l, true
		}
	}
	return nil, false
}

// Maker is how one program makes and lists an initramfs. {kernel} and {image} in its texts are quoted words.
type Maker struct {
	Rebuild, List string
	// Conf is a file that has to say what goes into every image, "" none; ConfText is what it holds, with
	// {modules} for the drivers to leave out and {blocklist} for the file to put in.
	Conf, ConfText string
	// Omits: with Conf written, the image holds none of those drivers.
	Omits bool
}

// Fill puts quoted words for the kernel's release and the image's path into one of a maker's texts.
func (m Maker) Fill(text, kernel, image string) string {
	return strings.NewReplacer("{kernel}", sh.Quote(kernel), "{image}", sh.Quote(image)).Replace(text)
}

// Makers known. Sources: update-initramfs(8), lsinitramfs(8), dracut(8), dracut.conf(5), lsinitrd(1).
//
// dracut takes /etc/modprobe.d along only for images made for one host, and the images of cloud guests are
// generic (dracut-config-generic), so the file is named to it; without the drivers there is nothing left in
// the image that could claim the GPU.
var makers = map[string]Maker{
	"initramfs-tools": {
		Rebuild: `if [ -e {image} ]; then update-initramfs -u -k {kernel}; else update-initramfs -c -k {kernel}; fi`,
		List:    `lsinitramfs {image}`,
	},
	"dracut": {
		Rebuild: `dracut --force {image} {kernel}`,
		List:    `lsinitrd {image}`,
		Conf:    "/etc/dracut.conf.d/90-gpuguest.conf",
		ConfText: "# Written by gpuguest. The drivers that would claim the GPU stay out of the initramfs.\n" +
			"omit_drivers+=\" {modules} \"\ninstall_items+=\" {blocklist} \"\n",
		Omits: true,
	},
}

// argumentsMark stands before the arguments in each file that gpuguest keeps them in; facts.sh reads it.
const argumentsMark = "# arguments: "

// grubEntries makes the lines of a check that hold the arguments against every entry of grub.cfg for the
// next kernel; file is how that kernel's file is named there.
func grubEntries(f facts.Facts, file string, args []string) []string {
	return []string{
		`lacks=$(FILE=` + sh.Quote(file) + ` ARGS=` + sh.Quote(strings.Join(args, "\n")) + ` awk '`,
		`BEGIN { n = split(ENVIRON["ARGS"], word, "\n") }`,
		`$1 ~ /^linux(16|efi)?$/ && index($0, ENVIRON["FILE"]) {`,
		`	found = 1`,
		`	for (i = 1; i <= n && lacks == ""; i++) if (!index($0 " ", " " word[i] " ")) lacks = word[i]`,
		`}`,
		`END { print lacks; exit !found }' ` + sh.Quote(f.Boot.Config) + `) || { echo "no boot entry starts kernel" ` + sh.Quote(f.Kernel.Next) + `; exit 1; }`,
		`[ -z "$lacks" ] || { echo "a boot entry lacks $lacks"; exit 1; }`,
	}
}

// grubWords prints the words of every entry of the grub.cfg that is named, on one line.
func grubWords(config string) string {
	return `grep -E '^[[:space:]]*linux(16|efi)?[[:space:]]' ` + config + ` 2>/dev/null | tr -s '[:space:]' ' '`
}

// ours sets $gone to those of the arguments that the guest was not started with before gpuguest's first change, that
// no entry of its grub.cfg had then, and that are not among the words that theirs prints: what somebody else has set
// is not ours to take away.
func ours(f facts.Facts, args []string, theirs string) string {
	before := `$(cat "$S/before/cmdline" 2>/dev/null) `
	if f.Boot.Config != "" {
		before += `$(` + grubWords(`"$S/before/files"`+sh.Quote(f.Boot.Config)) + `) `
	}
	if theirs != "" {
		before += `$(` + theirs + `) `
	}
	return lines(
		`gone= before=" `+before+`"`,
		`for a in `+sh.Join(args...)+`; do case $before in *" $a "*) ;; *) gone="$gone $a" ;; esac; done`)
}

// grubTheirs prints the words of what grub-mkconfig reads, without what gpuguest keeps there.
const grubTheirs = `for f in ` + grubDefaultsPath + ` ` + grubDefaultsPath + `.d/*.cfg; do
	[ "$f" = ` + GRUBArgsPath + ` ] || [ ! -r "$f" ] || sed -e '/^` + blockBegin + `$/,/^` + blockEnd + `$/d' -e '/^[[:space:]]*#/d' -e 's/^[[:space:]]*[A-Za-z_]*=/ /' -e "s/[\"']/ /g" "$f"
done | tr -s '[:space:]' ' '`

// grubOurs is Ours of a boot loader whose arguments stand in gpuguest's own file, or block of one.
func grubOurs(f facts.Facts, args []string) string { return ours(f, args, grubTheirs) }

// grubGone exits zero when no entry of grub.cfg has an argument of grubOurs.
func grubGone(f facts.Facts, args []string) string {
	return lines(
		grubOurs(f, args),
		`words=" $(`+grubWords(sh.Quote(f.Boot.Config))+`) "`,
		`for a in $gone; do case $words in *" $a "*) echo "a boot entry has $a"; exit 1 ;; esac; done`)
}

// keepConfig has the boot loader's configuration kept, so that uninstall can prove the command line of before.
func keepConfig(f facts.Facts) action.Action {
	return action.Run{Title: "keep the bootloader's configuration", Script: "keep " + sh.Quote(f.Boot.Config)}
}

// GRUBArgsPath is read by Debian's grub-mkconfig after /etc/default/grub and after what cloud images put beside
// it, so that nobody's file is edited and undoing is removing one file.
const GRUBArgsPath = "/etc/default/grub.d/90-gpuguest.cfg"

// grubDropIn is GRUB where grub-mkconfig reads /etc/default/grub.d: Debian and Ubuntu.
type grubDropIn struct{ update string }

func (grubDropIn) Fits(f facts.Facts) bool { return f.Boot.Loader == "grub" }

func (grubDropIn) file(args []string) string {
	line := strings.Join(args, " ")
	return "# Written by gpuguest: arguments for every kernel that GRUB starts.\n" + argumentsMark + line + "\n" +
		"GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX \"" + sh.Quote(line) + "\n"
}

func (g grubDropIn) Set(f facts.Facts, args, _ []string) []action.Action {
	return []action.Action{
		keepConfig(f),
		action.Write{Path: GRUBArgsPath, Data: []byte(g.file(args))},
		action.Run{Title: "write the bootloader's configuration", Script: g.update},
	}
}

func (g grubDropIn) Proof(f facts.Facts, args []string) string {
	return lines(append([]string{
		`[ -e ` + GRUBArgsPath + ` ] && printf %s ` + sh.Quote(g.file(args)) + ` | cmp -s - ` + GRUBArgsPath + ` || { echo "` + GRUBArgsPath + ` does not hold them"; exit 1; }`,
	}, grubEntries(f, "vmlinuz-"+f.Kernel.Next, args)...)...)
}

func (g grubDropIn) Unset(facts.Facts, []string) []action.Action {
	return []action.Action{action.Run{Title: "write the bootloader's configuration", Script: g.update}}
}

func (grubDropIn) Ours(f facts.Facts, args []string) string { return grubOurs(f, args) }

func (grubDropIn) Gone(f facts.Facts, args []string) string { return grubGone(f, args) }

// grubDefaults is GRUB where grub2-mkconfig reads /etc/default/grub alone: RHEL 7, SUSE, Azure Linux, Kylin. The
// arguments stand in a block of their own at its end. The configuration that is written is the one that this
// guest boots by: /boot/grub2/grub.cfg, or the one on the EFI system partition.
type grubDefaults struct{}

const (
	grubDefaultsPath = "/etc/default/grub"
	blockBegin       = "# gpuguest: begin"
	blockEnd         = "# gpuguest: end"
)

func (grubDefaults) Fits(f facts.Facts) bool {
	return f.Boot.Loader == "grub" && len(f.Boot.Entries) == 0
}

func (grubDefaults) block(args []string) string {
	line := strings.Join(args, " ")
	return blockBegin + "\n" + argumentsMark + line + "\n" + "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX \"" + sh.Quote(line) + "\n" + blockEnd + "\n"
}

func mkconfig(f facts.Facts) action.Action {
	return action.Run{Title: "write " + f.Boot.Config, Script: "grub2-mkconfig -o " + sh.Quote(f.Boot.Config)}
}

func (g grubDefaults) Set(f facts.Facts, args, _ []string) []action.Action {
	return []action.Action{
		keepConfig(f),
		action.Run{Title: "put them into " + grubDefaultsPath, Script: lines(
			`new=$(mktemp)`,
			`[ ! -e `+grubDefaultsPath+` ] || sed '/^`+blockBegin+`$/,/^`+blockEnd+`$/d' `+grubDefaultsPath+` >"$new"`,
			`printf %s `+sh.Quote(g.block(args))+` >>"$new"`,
			`put `+grubDefaultsPath+` 0644 <"$new"`,
			`rm -f "$new"`)},
		mkconfig(f),
	}
}

func (g grubDefaults) Proof(f facts.Facts, args []string) string {
	return lines(append([]string{
		`[ "$(sed -n '/^` + blockBegin + `$/,/^` + blockEnd + `$/p' ` + grubDefaultsPath + ` 2>/dev/null)" = ` + sh.Quote(strings.TrimSuffix(g.block(args), "\n")) + ` ] || { echo "` + grubDefaultsPath + ` does not hold them"; exit 1; }`,
	}, grubEntries(f, "-"+f.Kernel.Next, args)...)...)
}

func (g grubDefaults) Unset(f facts.Facts, _ []string) []action.Action {
	return []action.Action{mkconfig(f)}
}

func (grubDefaults) Ours(f facts.Facts, args []string) string { return grubOurs(f, args) }

func (grubDefaults) Gone(f facts.Facts, args []string) string { return grubGone(f, args) }

// argsFile is where the arguments are recorded that stand in no file of gpuguest's own; facts.sh reads it, and
// believes such a file more.
const argsFile = `"$S/args"`

// RecordArgs records arguments on disk: before they are set, or before the file of gpuguest's own that holds them
// goes, so that it can be proved after the next boot that they are gone.
func RecordArgs(args []string) action.Action {
	return action.Run{Title: "record the arguments", Script: lines(
		`printf '%s\n' `+sh.Quote(argumentsMark+strings.Join(args, " "))+` >"$S/args.tmp"`,
		`flush "$S/args.tmp"`,
		`mv -f "$S/args.tmp" `+argsFile)}
}

// entriesProof holds the arguments against every boot loader specification entry for the next kernel, without a
// fork. In entries of RHEL 8 the word $kernelopts stands for what grubenv says.
func entriesProof(f facts.Facts, args []string) string {
	return lines(
		`grep -qxF -- `+sh.Quote(argumentsMark+strings.Join(args, " "))+` "${GPUGUEST_STATE:-/var/lib/gpuguest}/args" 2>/dev/null || { echo "they were not set yet"; exit 1; }`,
		`next=`+sh.Quote(f.Kernel.Next)+` found= common=`,
		`if [ -r /boot/grub2/grubenv ]; then`,
		`	while IFS= read -r line; do case $line in kernelopts=*) common=${line#kernelopts=} ;; esac; done </boot/grub2/grubenv`,
		`fi`,
		`for e in `+sh.Quote(entriesDir(f))+`/*.conf; do`,
		`	linux= options=`,
		`	while read -r key value; do`,
		`		case $key in linux) linux=$value ;; options) options="$options $value" ;; esac`,
		`	done <"$e"`,
		`	case $linux in *-"$next" | */"$next"/*) ;; *) continue ;; esac`,
		`	found=1`,
		`	case "$options " in *' $kernelopts '*) options="$options $common" ;; esac`,
		`	for a in `+sh.Join(args...)+`; do`,
		`		case "$options " in *" $a "*) ;; *) echo "boot entry ${e##*/} lacks $a"; exit 1 ;; esac`,
		`	done`,
		`done`,
		`[ -n "$found" ] || { echo "no boot entry starts kernel $next"; exit 1; }`)
}

func entriesDir(f facts.Facts) string {
	if len(f.Boot.Entries) == 0 {
		return "/boot/loader/entries"
	}
	return path.Dir(f.Boot.Entries[0])
}

// entriesGone exits zero when no entry holds an argument of gpuguest's.
func entriesGone(f facts.Facts, args []string) string {
	return lines(
		ours(f, args, ""),
		`for e in `+sh.Quote(entriesDir(f))+`/*.conf; do`,
		`	while read -r key value; do`,
		`		[ "$key" = options ] || continue`,
		`		for a in $gone; do case " $value " in *" $a "*) echo "boot entry ${e##*/} has $a"; exit 1 ;; esac; done`,
		`	done <"$e"`,
		`done`)
}

// grubby is GRUB that reads boot loader specification entries: RHEL 8 and later, Fedora, Amazon Linux. With
// --update-kernel=ALL grubby changes every entry and what the entries of later kernels are made from
// (/etc/default/grub, /etc/kernel/cmdline; grubby(8), Red Hat's guides "configuring kernel command-line parameters").
type grubby struct{}

// Fits passes over a guest that blocks modules on its command line by itself: grubby puts a new value in place of
// the one there, and a second word of that name beside it is what the kernel reads as well.
func (grubby) Fits(f facts.Facts) bool {
	_, there := f.Tools["grubby"]
	foreign := slices.ContainsFunc(f.Kernel.NextCmdline, func(a string) bool {
		return strings.HasPrefix(a, "modprobe.blacklist=") && !strings.HasPrefix(a, "modprobe.blacklist=nouveau,nova_core")
	})
	return there && !foreign && f.Boot.Loader == "grub" && len(f.Boot.Entries) > 0
}

func (grubby) Set(_ facts.Facts, args, drop []string) []action.Action {
	script := []string{
		`for f in /etc/default/grub /etc/kernel/cmdline; do [ ! -e "$f" ] || keep "$f"; done`,
		`grubby --update-kernel=ALL --args=` + sh.Quote(strings.Join(args, " ")),
	}
	if len(drop) > 0 {
		script = append(script, `grubby --update-kernel=ALL --remove-args=`+sh.Quote(strings.Join(drop, " ")))
	}
	return []action.Action{RecordArgs(args), action.Run{Title: "give them to every kernel by grubby", Script: lines(script...)}}
}

func (grubby) Proof(f facts.Facts, args []string) string { return entriesProof(f, args) }

func (grubby) Unset(f facts.Facts, args []string) []action.Action {
	return []action.Action{action.Run{Title: "take the arguments from every kernel by grubby", Script: lines(
		ours(f, args, ""),
		`[ -z "$gone" ] || grubby --update-kernel=ALL --remove-args="${gone# }"`)}}
}

func (grubby) Ours(f facts.Facts, args []string) string { return ours(f, args, "") }

func (grubby) Gone(f facts.Facts, args []string) string { return entriesGone(f, args) }

// entries is a boot loader that reads boot loader specification entries and has no tool for their arguments:
// systemd-boot with kernel-install, or GRUB without grubby. Each entry is edited; kernel-install makes those
// of later kernels from /etc/kernel/cmdline, or else from the running kernel's own line (kernel-install(8)).
type entries struct{}

func (entries) Fits(f facts.Facts) bool { return len(f.Boot.Entries) > 0 }

// edit is a function of sh that writes file $1 to standard output with the words of $add added to and those of
// $drop taken from its line of options, or with $2 from its only line.
const editEntry = `edit() {
	awk -v add="$add" -v drop="$drop" -v bare="${2:-}" '
		BEGIN { n = split(add, plus, " "); m = split(drop, minus, " "); for (i = 1; i <= m; i++) gone[minus[i]] = 1 }
		bare == "" && $1 != "options" { print; next }
		{
			out = bare == "" ? "options" : ""
			delete have
			for (i = bare == "" ? 2 : 1; i <= NF; i++) if (!($i in gone)) { out = out (out == "" ? "" : " ") $i; have[$i] = 1 }
			if (!done++) for (i = 1; i <= n; i++) if (!(plus[i] in have)) out = out (out == "" ? "" : " ") plus[i]
			print out
		}' "$1"
}`

func (e entries) change(f facts.Facts) string {
	return lines(
		editEntry,
		`for e in `+sh.Quote(entriesDir(f))+`/*.conf; do`,
		`	edit "$e" >"$e.gpuguest-tmp"`,
		`	if cmp -s "$e" "$e.gpuguest-tmp"; then rm -f "$e.gpuguest-tmp"; continue; fi`,
		`	flush "$e.gpuguest-tmp"`,
		`	mv -f "$e.gpuguest-tmp" "$e"`,
		`done`,
		`if [ -s /etc/kernel/cmdline ]; then`,
		`	new=$(mktemp)`,
		`	edit /etc/kernel/cmdline bare >"$new"`,
		`	cmp -s /etc/kernel/cmdline "$new" || put /etc/kernel/cmdline 0644 <"$new"`,
		`	rm -f "$new"`,
		`fi`)
}

func (e entries) Set(f facts.Facts, args, drop []string) []action.Action {
	return []action.Action{RecordArgs(args), action.Run{Title: "give them to every boot entry", Script: lines(
		`add=`+sh.Quote(strings.Join(args, " "))+` drop=`+sh.Quote(strings.Join(drop, " ")),
		e.change(f))}}
}

func (entries) Proof(f facts.Facts, args []string) string { return entriesProof(f, args) }

func (e entries) Unset(f facts.Facts, args []string) []action.Action {
	return []action.Action{action.Run{Title: "take the arguments from every boot entry", Script: lines(
		ours(f, args, ""),
		`add= drop=$gone`,
		e.change(f))}}
}

func (entries) Ours(f facts.Facts, args []string) string { return ours(f, args, "") }

func (entries) Gone(f facts.Facts, args []string) string { return entriesGone(f, args) }

// lines joins script lines.
func lines(l ...string) string { return strings.Join(l, "\n") }
