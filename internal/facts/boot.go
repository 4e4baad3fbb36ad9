package facts

import (
	"fmt"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// entry is one thing a bootloader can start, or a submenu of such.
type entry struct {
	title, id string
	linux     string   // path of the kernel as the loader sees it
	words     []string // kernel command line
	initrd    []string
	sub       []entry // of a submenu
	menu      bool
	version   string // of a boot loader specification entry
}

// boot works out the bootloader, the kernel that starts next, its command line and its initramfs.
func (r *reader) boot() {
	f := &r.f
	k := &f.Kernel
	f.Boot.Initramfs = r.initramfs()

	chosen, from := r.nextEntry()
	switch {
	case chosen != nil:
		release := r.releaseOf(*chosen)
		if release == "" && len(k.Installed) == 1 {
			release = k.Installed[0]
			from += ", whose kernel " + chosen.linux + " is the only one installed"
		}
		if release == "" {
			k.NextFrom = from + ", whose kernel " + chosen.linux + " names no release"
			return
		}
		k.Next, k.NextFrom, k.NextCmdline = release, from, chosen.words
	case from != "":
		k.NextFrom = from
		return
	case len(k.Installed) == 1:
		k.Next, k.NextFrom = k.Installed[0], "only kernel installed"
	case len(k.Installed) == 0:
		k.NextFrom = "no kernel is installed in the guest"
		return
	default:
		k.NextFrom = fmt.Sprintf("no bootloader configuration, and %d kernels are installed", len(k.Installed))
		return
	}
	k.NextModules = slices.ContainsFunc(r.kernels, func(d kernelDir) bool { return d.release == k.Next })
	if !k.NextModules {
		k.NextFrom += "; /lib/modules/" + k.Next + " is missing"
	}
	f.Boot.Image = r.initramfsImage(chosen)
}

// nextEntry is the entry that the bootloader starts next, and how that is known. No entry and a text means
// that there is a bootloader, but the text is why its choice is unknown.
func (r *reader) nextEntry() (*entry, string) {
	f := &r.f
	config := r.grubConfig()
	loaderConf := ""
	for _, c := range []string{"/boot/loader/loader.conf", "/boot/efi/loader/loader.conf", "/efi/loader/loader.conf"} {
		if r.hasFile(c) {
			loaderConf = c
			break
		}
	}
	switch started := r.id["loader"]; {
	case strings.HasPrefix(started, "systemd-boot"), config == "" && loaderConf != "":
		f.Boot.Loader, f.Boot.Config = "systemd-boot", loaderConf
		f.Boot.Entries = r.entryFiles()
		return systemdBoot(r.bls(nil), r.files[loaderConf])
	case config != "":
		f.Boot.Loader, f.Boot.Config = "grub", config
		env := assignments(r.files[path.Dir(config)+"/grubenv"])
		if slices.ContainsFunc(r.files[config], func(l string) bool { return strings.TrimSpace(l) == "blscfg" }) {
			f.Boot.Entries = r.entryFiles()
		}
		return grubNext(r.files[config], env, r.bls(env))
	}
	return nil, ""
}

// grubConfig is the file that GRUB takes its menu from. RHEL 7 and 8 have it on the EFI system partition where the
// firmware is UEFI; elsewhere the file there is a stub that names the one in /boot, and has no entries.
func (r *reader) grubConfig() string {
	if r.f.Secure.EFI {
		var found []string
		for name, lines := range r.files {
			if strings.HasPrefix(name, "/boot/efi/EFI/") && strings.HasSuffix(name, "/grub.cfg") && slices.ContainsFunc(lines, func(l string) bool {
				l = strings.TrimSpace(l)
				return strings.HasPrefix(l, "menuentry") || l == "blscfg"
			}) {
				found = append(found, name)
			}
		}
		if len(found) > 0 {
			return slices.Min(found)
		}
	}
	for _, c := range []string{"/boot/grub/grub.cfg", "/boot/grub2/grub.cfg"} {
		if len(r.files[c]) > 0 {
			return c
		}
	}
	return ""
}

// entryFiles are the paths of the boot loader specification entries.
func (r *reader) entryFiles() []string {
	var found []string
	for name := range r.files {
		if strings.Contains(name, "/loader/entries/") {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}

// grubNext chooses as GRUB does: next_entry once, then what `set default` says, and the first entry when that
// names none.
func grubNext(config []string, env map[string]string, bls []entry) (*entry, string) {
	menu, defaults := grubMenu(config, bls)
	spec, from := "0", "grub default 0"
	once := false
	for _, d := range defaults {
		if d == "${next_entry}" {
			once = true
		}
	}
	switch next := env["next_entry"]; {
	case once && next != "":
		spec, from = next, "grub next_entry "+next+" (once)"
	default:
		i := slices.IndexFunc(defaults, func(d string) bool { return d != "${next_entry}" })
		if i < 0 {
			break
		}
		spec, from = defaults[i], "grub default "+defaults[i]
		if spec == "${saved_entry}" || spec == "$saved_entry" {
			spec, from = env["saved_entry"], "grub saved_entry "+env["saved_entry"]
			if spec == "" {
				spec, from = "0", "grub default saved, nothing saved, so the first entry"
			}
		}
	}
	if strings.Contains(spec, "$") {
		return nil, "grub's default is computed at boot: " + spec
	}
	if len(menu) == 0 {
		return nil, "grub.cfg has no entry that is understood"
	}
	e := grubFind(menu, spec)
	if e == nil {
		e, from = &menu[0], from+" names no entry, so the first"
	}
	// A submenu that is chosen by itself starts its own first entry.
	for e.menu {
		if len(e.sub) == 0 {
			return nil, from + " is an empty submenu"
		}
		e = &e.sub[0]
	}
	if e.linux == "" {
		return nil, from + " starts no Linux kernel: " + e.title
	}
	return e, from
}

// grubFind finds an entry by number, id or title; "1>2" goes into submenus.
func grubFind(menu []entry, spec string) *entry {
	if i, err := strconv.Atoi(spec); err == nil {
		if i >= 0 && i < len(menu) {
			return &menu[i]
		}
		return nil
	}
	for i := range menu {
		if menu[i].id != "" && menu[i].id == spec || menu[i].title == strings.ReplaceAll(spec, ">>", ">") {
			return &menu[i]
		}
	}
	for at := 0; ; {
		i := strings.IndexByte(spec[at:], '>')
		if i < 0 {
			return nil
		}
		i += at
		if i+1 < len(spec) && spec[i+1] == '>' {
			at = i + 2
			continue
		}
		e := grubFind(menu, spec[:i])
		if e == nil || !e.menu {
			return nil
		}
		return grubFind(e.sub, spec[i+1:])
	}
}

// grubMenu reads the lines that facts.sh keeps of a grub.cfg. Conditions are not evaluated: entries of
// grub-mkconfig that stand under one come after the kernels'.
func grubMenu(lines []string, bls []entry) (menu []entry, defaults []string) {
	var stack []entry // what is open, the innermost last
	for _, l := range lines {
		w := grubWords(l)
		if len(w) == 0 {
			continue
		}
		switch {
		case w[0] == "set" && len(w) > 1 && strings.HasPrefix(w[1], "default="):
			defaults = append(defaults, strings.TrimPrefix(w[1], "default="))
		case (w[0] == "menuentry" || w[0] == "submenu") && len(w) > 1:
			e := entry{title: w[1], menu: w[0] == "submenu"}
			for i := 2; i+1 < len(w); i++ {
				if w[i] == "--id" || w[i] == "$menuentry_id_option" || w[i] == "${menuentry_id_option}" {
					e.id = w[i+1]
				}
				if id, ok := strings.CutPrefix(w[i], "--id="); ok {
					e.id = id
				}
			}
			if len(stack) < 16 {
				stack = append(stack, e)
			}
		case w[0] == "}" && len(stack) > 0:
			done := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			if len(stack) == 0 {
				menu = append(menu, done)
				continue
			}
			stack[len(stack)-1].sub = append(stack[len(stack)-1].sub, done)
		case w[0] == "blscfg" && len(stack) == 0:
			menu = append(menu, bls...)
		case strings.HasPrefix(w[0], "linux") && len(w) > 1 && len(stack) > 0:
			e := &stack[len(stack)-1]
			if e.linux == "" {
				e.linux, e.words = w[1], w[2:]
			}
		case strings.HasPrefix(w[0], "initrd") && len(w) > 1 && len(stack) > 0:
			e := &stack[len(stack)-1]
			if len(e.initrd) == 0 {
				e.initrd = w[1:]
			}
		}
	}
	return menu, defaults
}

// grubWords splits a line of GRUB's script into words and takes the quotes off; variables stay as written.
func grubWords(l string) []string {
	var words []string
	var b strings.Builder
	in, quote := false, byte(0)
	for i := 0; i < len(l); i++ {
		c := l[i]
		switch {
		case quote == '\'':
			if c == '\'' {
				quote = 0
			} else {
				b.WriteByte(c)
			}
		case c == '\\' && i+1 < len(l) && (quote == 0 || strings.IndexByte(`$"\`, l[i+1]) >= 0):
			i++
			in = true
			b.WriteByte(l[i])
		case quote == '"':
			if c == '"' {
				quote = 0
			} else {
				b.WriteByte(c)
			}
		case c == '\'' || c == '"':
			in, quote = true, c
		case c == ' ' || c == '\t':
			if in {
				words = append(words, b.String())
				b.Reset()
				in = false
			}
		case c == '#' && !in:
			return words
		default:
			in = true
			b.WriteByte(c)
		}
	}
	if in {
		words = append(words, b.String())
	}
	return words
}

// bls reads the entries of the boot loader specification, newest kernel first, as GRUB's blscfg and
// systemd-boot order them. env holds the variables that GRUB expands in options.
func (r *reader) bls(env map[string]string) []entry {
	var all []entry
	for name, lines := range r.files {
		if !strings.Contains(name, "/loader/entries/") {
			continue
		}
		e := entry{id: strings.TrimSuffix(path.Base(name), ".conf")}
		for _, l := range lines {
			key, value, _ := strings.Cut(strings.TrimSpace(l), " ")
			if i := strings.IndexByte(key, '\t'); i >= 0 {
				key, value = key[:i], key[i+1:]+" "+value
			}
			value = strings.TrimSpace(value)
			switch key {
			case "title":
				e.title = value
			case "version":
				e.version = value
			case "linux":
				e.linux = value
			case "initrd":
				e.initrd = append(e.initrd, strings.Fields(value)...)
			case "options":
				for _, w := range strings.Fields(value) {
					if v, ok := strings.CutPrefix(w, "$"); ok && env != nil {
						e.words = append(e.words, strings.Fields(env[v])...)
						continue
					}
					e.words = append(e.words, w)
				}
			}
		}
		if e.linux != "" {
			all = append(all, e)
		}
	}
	sort.Slice(all, func(i, j int) bool {
		if c := compareVersions(all[i].version, all[j].version); c != 0 {
			return c > 0
		}
		return all[i].id > all[j].id
	})
	return all
}

// systemdBoot chooses as systemd-boot does without a choice stored in the firmware: the pattern in
// loader.conf, else the newest entry.
func systemdBoot(entries []entry, conf []string) (*entry, string) {
	if len(entries) == 0 {
		return nil, "systemd-boot has no entry that is understood"
	}
	for _, l := range conf {
		w := strings.Fields(l)
		if len(w) != 2 || w[0] != "default" {
			continue
		}
		if strings.HasPrefix(w[1], "@") {
			return nil, "systemd-boot's default is kept in the firmware: " + w[1]
		}
		for i := range entries {
			for _, name := range []string{entries[i].id, entries[i].id + ".conf"} {
				if ok, err := path.Match(w[1], name); err == nil && ok {
					return &entries[i], "systemd-boot default " + w[1]
				}
			}
		}
	}
	return &entries[0], "systemd-boot newest entry"
}

// compareVersions orders versions by their runs of digits and of letters, digits above letters, as rpm does.
func compareVersions(a, b string) int {
	for {
		x, restA := run(a)
		y, restB := run(b)
		if x == "" || y == "" {
			return strings.Compare(x, y)
		}
		dx, dy := x[0] >= '0' && x[0] <= '9', y[0] >= '0' && y[0] <= '9'
		switch {
		case dx && !dy:
			return 1
		case dy && !dx:
			return -1
		case dx:
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
		a, b = restA, restB
	}
}

// run is the first run of digits or of letters in s, and what follows it.
func run(s string) (string, string) {
	kind := func(c byte) int {
		switch {
		case c >= '0' && c <= '9':
			return 1
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			return 2
		}
		return 0
	}
	i := 0
	for i < len(s) && kind(s[i]) == 0 {
		i++
	}
	j := i
	for j < len(s) && kind(s[j]) == kind(s[i]) {
		j++
	}
	return s[i:j], s[j:]
}

// releaseOf is the kernel release that an entry's kernel file is named by, "" when it names none.
func (r *reader) releaseOf(e entry) string {
	if e.version != "" && slices.ContainsFunc(r.kernels, func(d kernelDir) bool { return d.release == e.version }) {
		return e.version
	}
	base := path.Base(e.linux)
	for _, prefix := range []string{"vmlinuz-", "vmlinux-", "Image-", "kernel-"} {
		if v, ok := strings.CutPrefix(base, prefix); ok {
			return v
		}
	}
	return ""
}

// initramfs tells what makes initramfs images here. The packages decide where several tools are present:
// Debian's dracut brings an update-initramfs of its own.
func (r *reader) initramfs() string {
	has := func(m map[string]string, name string) bool { _, ok := m[name]; return ok }
	switch f := r.f; {
	case has(f.Packages, "initramfs-tools"):
		return "initramfs-tools"
	case has(f.Tools, "dracut"):
		return "dracut"
	case has(f.Tools, "update-initramfs"):
		return "initramfs-tools"
	case has(f.Tools, "mkinitrd"):
		return "mkinitrd"
	}
	return ""
}

// initramfsImage is the image of the next kernel: the file that its boot entry names, else the file in /boot
// with the usual name.
func (r *reader) initramfsImage(e *entry) string {
	release := r.f.Kernel.Next
	var names []string
	if e != nil {
		for _, i := range e.initrd {
			// kernel-install calls each image "initrd", in a folder of its kernel's.
			for _, f := range r.images {
				if strings.HasPrefix(i, "/") && strings.HasSuffix(f, i) && strings.HasPrefix(path.Base(f), "init") {
					return f
				}
			}
			names = append(names, path.Base(i))
		}
	}
	names = append(names, "initrd.img-"+release, "initramfs-"+release+".img", "initrd-"+release)
	for _, n := range names {
		for _, f := range r.images {
			if path.Base(f) == n && strings.HasPrefix(n, "init") {
				return f
			}
		}
	}
	return ""
}
