package steps

import (
	"path"

	"gpuguest/internal/action"
	"gpuguest/internal/catalog"
	"gpuguest/internal/choice"
	"gpuguest/internal/sh"
)

// runfileDir holds installers while they are needed, and what they unpack: /tmp is often too small, or may not
// be executed from.
const runfileDir = "/var/lib/gpuguest/runfile"

// byRunfile tells whether the driver comes by NVIDIA's .run installer.
func byRunfile(in Input) bool { return in.Choice.Source == choice.SourceRunfile }

// needsFreeGPU tells whether the driver can be installed only after a boot that leaves the GPU alone: a .run
// installer that finds nouveau at work writes a blocklist of its own and gives up with exit 1 (nvidia-installer,
// misc.c).
func needsFreeGPU(in Input) bool { return byRunfile(in) && claimed(in) }

// fetchInstaller brings an installer into the guest: sent by the client, or fetched by the guest, which then has
// only to prove the checksum of what an earlier run brought.
func fetchInstaller(in Input, f choice.Installer) (file string, act action.Action) {
	file = runfileDir + "/" + path.Base(f.Name)
	switch {
	case f.SHA256 == "":
		return file, action.Run{Title: "find the installer of driver " + f.Version, Script: lines(
			`echo "the installer of driver" `+sh.Quote(f.Version)+` "is not known: give the file by --runfile, or its URL with --runfile-sha256"`,
			`exit 1`)}
	case byBundle(in):
		return file, fromBundle(f, file)
	case f.URL == "":
		return file, action.Send{Path: file, SHA256: f.SHA256}
	}
	return file, action.Run{Title: "fetch " + f.Name + " and check its SHA-256", Script: lines(
		`mkdir -p `+runfileDir,
		`if ! echo `+sh.Quote(f.SHA256+"  "+file)+` | sha256sum -c --status 2>/dev/null; then`,
		in.Distro.Packages.Download(f.URL, file, f.SHA256),
		`fi`)}
}

// runfileCheck exits zero when a .run driver is in the guest; which, the module tells.
const runfileCheck = `[ -x /usr/bin/nvidia-uninstall ] || { echo "no driver of a .run installer is there"; exit 1; }`

// record writes one line to a file of gpuguest's ledger, to disk, before what it tells of is done.
func record(name, line string) string {
	file := `"$S/before/` + name + `"`
	return lines(
		`mkdir -p "$S/before"`,
		`if ! grep -qxF -- `+sh.Quote(line)+` `+file+` 2>/dev/null; then`,
		`	printf '%s\n' `+sh.Quote(line)+` >>`+file,
		`	flush `+file,
		`fi`)
}

// leftByRunfile are files that the driver's installers write and that its uninstaller leaves.
var leftByRunfile = []string{
	"/var/log/nvidia-installer.log", "/var/log/nvidia-uninstall.log",
	"/etc/modprobe.d/nvidia-installer-disable-nouveau.conf", "/usr/lib/modprobe.d/nvidia-installer-disable-nouveau.conf",
}

// unloadDriver takes the loaded modules out, as far as nobody uses them; an installer refuses beside them.
const unloadDriver = `if [ -d /sys/module/nvidia ]; then
	if [ -d /run/systemd/system ]; then systemctl stop nvidia-persistenced.service 2>/dev/null || :; fi
	for m in nvidia_peermem nvidia_uvm nvidia_drm nvidia_modeset nvidia; do
		if [ -d "/sys/module/$m" ]; then rmmod "$m" || :; fi
	done
fi`

// runDriverInstaller runs NVIDIA's .run, and when it fails shows what its log tells.
func runDriverInstaller(in Input) []action.Action {
	f := in.Choice.Runfile
	file, fetch := fetchInstaller(in, f)
	flags := append([]string{}, f.Flags...)
	if k := in.Facts.Kernel; k.Next != k.Running && k.Next != "" {
		flags = append(flags, "--kernel-name="+k.Next)
	}
	if in.Want.Signing.Given() && catalog.InstallerTakes(f.Version, "--module-signing-secret-key") {
		flags = append(flags, "--module-signing-secret-key="+signingKey, "--module-signing-public-key="+signingCert)
	}
	if in.Facts.Driver.Loaded != "" && catalog.InstallerTakes(f.Version, "--allow-installation-with-running-driver") {
		flags = append(flags, "--allow-installation-with-running-driver")
	}
	held := `for m in ` + sh.Join(blocked...) + `; do`
	return []action.Action{
		fetch,
		action.Run{Title: "run " + f.Name, Script: lines(
			held,
			`	if [ -d "/sys/module/$m" ] && ls -d /sys/bus/pci/drivers/"$m"/0* >/dev/null 2>&1; then`,
			`		echo "$m holds the GPU, and NVIDIA's installer gives up beside it: the guest must be rebooted first"`,
			`		exit 75`,
			`	fi`,
			`done`,
			record("runfile", f.Version),
			`for f in `+sh.Join(leftByRunfile...)+`; do keep "$f"; done`,
			unloadDriver,
			`tmp=`+runfileDir+`/tmp`,
			`rm -rf "$tmp"`,
			`mkdir -p "$tmp"`,
			`rm -f /var/log/nvidia-installer.log`,
			`code=0`,
			// Its header takes the folder as a word of its own.
			`sh `+sh.Quote(file)+` --tmpdir "$tmp" `+sh.Join(flags...)+` || code=$?`,
			`rm -rf "$tmp"`,
			`if [ "$code" -ne 0 ]; then`,
			`	if [ -e /var/log/nvidia-installer.log ]; then`,
			`		echo "/var/log/nvidia-installer.log:"`,
			`		tail -n 60 /var/log/nvidia-installer.log`,
			`	fi`,
			`	exit "$code"`,
			`fi`,
			`rm -f `+sh.Quote(file))},
	}
}

const runfileGone = `[ ! -e /usr/bin/nvidia-uninstall ] || { echo "the .run driver is there"; exit 1; }`

// uninstallRunfile has the driver's own uninstaller run.
func uninstallRunfile(in Input) string {
	index := `:`
	if k := in.Facts.Kernel.Next; k != "" {
		index = `depmod ` + sh.Quote(k)
	}
	return lines(
		unloadDriver,
		`code=0`,
		`nvidia-uninstall --silent || code=$?`,
		`if [ "$code" -ne 0 ]; then`,
		`	if [ -e /var/log/nvidia-uninstall.log ]; then tail -n 40 /var/log/nvidia-uninstall.log; fi`,
		`	exit "$code"`,
		`fi`,
		`rmdir /var/lib/nvidia 2>/dev/null || :`,
		index)
}

func init() {
	registerRemoval(Step{
		ID:     "remove-runfile",
		Title:  "have the .run driver uninstall itself",
		After:  []ID{"ready", "stop-services", "remove-mig"},
		Wanted: func(in Input) bool { return in.Facts.State.Runfile != "" },
		AtBoot: func(in Input) bool { return in.Facts.Driver.Loaded != "" },
		Check:  func(Input) string { return runfileGone },
		Apply: func(in Input) []action.Action {
			return []action.Action{action.Run{Title: "run nvidia-uninstall", Script: uninstallRunfile(in)}}
		},
		Hint: "/var/log/nvidia-uninstall.log in the guest says what stopped it",
	})
	registerRemoval(Step{
		ID:     "remove-installers",
		Title:  "remove installers that were kept",
		After:  []ID{"ready", "remove-runfile", "remove-toolkits"},
		Wanted: func(in Input) bool { return in.Facts.State.Runfile != "" || len(in.Facts.State.Toolkits) > 0 },
		Check: func(Input) string {
			return `[ ! -e ` + runfileDir + ` ] || { echo "` + runfileDir + ` is there"; exit 1; }`
		},
		Apply: func(Input) []action.Action {
			return []action.Action{action.Run{Title: "remove " + runfileDir, Script: `rm -rf ` + runfileDir}}
		},
	})
}
