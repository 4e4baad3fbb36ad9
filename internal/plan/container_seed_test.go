package plan

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"path/filepath"
	"strings"
	"testing"

	"gpuguest/internal/action"
	"gpuguest/internal/choice"
	"gpuguest/internal/lab"
	"gpuguest/steps"
)

const centosKernel = "3.10.0-1160.119.1.el7"

// centosRepositories are CentOS 7's own packages, and EPEL's, as its vault has them.
func centosRepositories(w *rpmWorld) []repository {
	plain := func(name, version, release string, requires ...string) standIn {
		return standIn{name: name, version: version, release: release, arch: "noarch", requires: requires}
	}
	version, release, _ := strings.Cut(centosKernel, "-")
	devel := standIn{name: "kernel-devel", version: version, release: release, arch: "x86_64",
		files: map[string]string{"/usr/src/kernels/" + centosKernel + ".x86_64/Makefile": "all:\n"},
		links: map[string]string{"/usr/lib/modules/" + centosKernel + ".x86_64/build": "/usr/src/kernels/" + centosKernel + ".x86_64"}}
	epel := plain("epel-release", "7", "11")
	epel.files = map[string]string{"/etc/yum.repos.d/epel.repo": "[epel]\nname=epel\nbaseurl=" + w.url + "/epel7/\nenabled=1\ngpgcheck=1\ngpgkey=" + w.url + "/RPM-GPG-KEY-test\n"}
	dkms := plain("dkms", "2.8.4", "1.el7")
	dkms.files = map[string]string{"/usr/sbin/dkms": `#!/bin/sh
# Stands in for dkms 2: it compiles a file that modinfo takes for the module, with the guest's own compiler.
set -eu
verb=$1
shift
module='' version='' kernel=''
while [ $# -gt 0 ]; do
	case $1 in
	-m) module=$2 && shift ;;
	-v) version=$2 && shift ;;
	-k) kernel=$2 && shift ;;
	--all) ;;
	*) echo "unplanned: $1" >&2 && exit 3 ;;
	esac
	shift
done
tree=/var/lib/dkms/$module/$version
case $verb in
add)
	[ -e "/usr/src/$module-$version/dkms.conf" ] || exit 2
	mkdir -p "$tree"
	;;
build)
	[ -e "/lib/modules/$kernel/build/Makefile" ] || { echo "Your kernel headers for kernel $kernel cannot be found." >&2; exit 1; }
	mkdir -p "$tree/$kernel/x86_64/module"
	printf 'const char m[] __attribute__((section(".modinfo"))) = "version=%s\\0license=NVIDIA\\0vermagic=%s SMP mod_unload \\0name=nvidia";' "$version" "$kernel" >"$tree/module.c"
	cc -c -o "$tree/$kernel/x86_64/module/nvidia.ko" "$tree/module.c"
	;;
install)
	mkdir -p "/lib/modules/$kernel/extra"
	cp "$tree/$kernel/x86_64/module/nvidia.ko" "/lib/modules/$kernel/extra/nvidia.ko"
	;;
autoinstall) ;;
remove)
	rm -f /lib/modules/*/extra/nvidia.ko
	rm -rf "/var/lib/dkms/$module"
	;;
*) exit 3 ;;
esac
`}
	return []repository{
		{path: "centos7", packages: []standIn{plain("gcc", "4.8.5", "44.el7"), plain("make", "3.82", "24.el7"), devel, epel, plain("gcc-c++", "4.8.5", "44.el7")}},
		{path: "epel7", packages: []standIn{dkms}},
	}
}

// centosSetup makes a guest of CentOS 7 out of the machine's root. yum is dnf 4, which takes its words; the vault is a
// folder of the test's; cc says that it is gcc 4.8.5; systemctl keeps links; grub2-mkconfig and dracut write what a
// check reads of what the real ones write.
func centosSetup(w *rpmWorld) string {
	kernel := centosKernel + ".x86_64"
	tool := func(name, text string) string {
		return "cat >/usr/local/bin/" + name + " <<'TOOL'\n#!/bin/sh\n" + text + "TOOL\nchmod 0755 /usr/local/bin/" + name + "\n"
	}
	return `printf 'NAME="CentOS Linux"\nID="centos"\nVERSION_ID="7"\nPLATFORM_ID="platform:el7"\n' >/etc/os-release
cat >/etc/yum.repos.d/CentOS-Base.repo <<'REPO'
[base]
name=CentOS-$releasever - Base
mirrorlist=http://mirrorlist.centos.org/?release=$releasever&arch=$basearch&repo=os&infra=$infra
#baseurl=http://mirror.centos.org/centos/$releasever/os/$basearch/
gpgcheck=1
gpgkey=` + w.url + `/RPM-GPG-KEY-test
REPO
rm -rf /boot
mkdir -p /boot/grub2 /etc/dracut.conf.d /etc/modprobe.d /usr/lib/modules/` + kernel + `
echo kernel >/boot/vmlinuz-` + kernel + `
echo usr/lib/modules/` + kernel + `/kernel/drivers/gpu/drm/nouveau/nouveau.ko.xz >/boot/initramfs-` + kernel + `.img
printf 'GRUB_CMDLINE_LINUX="crashkernel=auto quiet"\n' >/etc/default/grub
` + tool("yum", `# Stands in for yum 3.
info=
for a; do
	shift
	case $a in
	--setopt=skip_missing_names_on_install=0 | fast) ;;
	info) info=1 && set -- "$@" info ;;
	*) set -- "$@" "$a" ;;
	esac
done
if grep -q '^baseurl=https://vault.centos.org/' /etc/yum.repos.d/*.repo 2>/dev/null; then set -- --setopt=base.baseurl=`+w.url+`/centos7/ "$@"; fi
if [ -n "$info" ]; then dnf --releasever=7 "$@" | sed 's/^Architecture /Arch /'; else exec dnf --releasever=7 "$@"; fi
`) + tool("cc", `# Stands in for gcc 4.8.5.
case "$*" in -dumpversion) echo 4.8.5 ;; *) exec gcc "$@" ;; esac
`) + tool("systemctl", `# Stands in for systemd's: it makes and reads links.
wants=/etc/systemd/system/multi-user.target.wants
case $1 in
enable) mkdir -p "$wants" && ln -sf "/etc/systemd/system/$2" "$wants/$2" ;;
disable) shift; for u; do rm -f "$wants/$u"; done ;;
is-enabled) [ -L "$wants/$2" ] && echo enabled ;;
is-active) exit 3 ;;
*) exit 0 ;;
esac
`) + tool("grub2-mkconfig", `# Stands in for GRUB's: one entry, with the arguments of /etc/default/grub.
[ "$1" = -o ] || exit 2
. /etc/default/grub
printf "menuentry 'CentOS Linux 7' {\n\tlinux16 /vmlinuz-`+kernel+` root=/dev/vda1 ro %s\n\tinitrd16 /initramfs-`+kernel+`.img\n}\n" "$GRUB_CMDLINE_LINUX" >"$2"
`) + tool("dracut", `# Stands in for dracut: the image is a list of what would be in it.
[ "$1" = --force ] && [ "$3" = `+kernel+` ] || exit 2
omit_drivers='' install_items=''
for f in /etc/dracut.conf.d/*.conf; do
	[ ! -e "$f" ] || while read -r line; do case $line in install_items+=*) install_items="$install_items ${line#*=}" ;; omit_drivers+=*) omit_drivers="$omit_drivers ${line#*=}" ;; esac; done <"$f"
done
{
	case $omit_drivers in *" nouveau "*) ;; *) echo "usr/lib/modules/$3/kernel/drivers/gpu/drm/nouveau/nouveau.ko.xz" ;; esac
	for i in $(echo "$install_items" | tr -d '"'); do echo "${i#/}"; done
} >"$2.new"
mv -f "$2.new" "$2"
`) + tool("lsinitrd", `cat "$1"
`) + "grub2-mkconfig -o /boot/grub2/grub.cfg\n"
}

// TestContainerSeedCentOS7 is the way of 2018 as somebody wrote it down: CentOS 7 with a GTX 1050 Ti, kernel-devel, EPEL's dkms,
// nouveau out of GRUB and the initramfs, a reboot, driver 390.42 by its .run, CUDA 9.1.85 by its runfile without the
// driver, the samples made, deviceQuery and bandwidthTest run; and all of it taken back.
//
// Real are rpm, dnf 4 in yum's place, gcc, depmod and modinfo, the shell and every file; what stands in, centosSetup and
// centosRepositories tell. The installers are the lab's, which take the real ones' options. No kernel is started.
func TestContainerSeedCentOS7(t *testing.T) {
	needRPM(t)
	w := newRPMWorld(t, func(w *rpmWorld, _ *builder) []repository { return centosRepositories(w) })
	g := newRPMGuest(t, "centos7-k80", centosSetup(w)+base(t, &builder{t: t, top: t.TempDir()}, standIn{name: "rpm", version: "4.11.3", release: "48.el7", arch: "noarch"}))
	// The GPU of the write-up. The kernel that runs is told to be the release's first, also behind the boot, as it is this
	// machine's in truth: so the installer is told which one to build for, and asks nobody.
	g.facts.GPUs[0].Device, g.facts.GPUs[0].Subvendor, g.facts.GPUs[0].Subdevice = "1c82", "1b4c", "11bf"
	g.facts.Kernel.Running = "3.10.0-514.el7.x86_64"
	g.look()
	files := map[string][]byte{}
	file := func(name string, data []byte, err error) choice.Runfile {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		r := choice.Runfile{Name: name, SHA256: hex.EncodeToString(sum[:]), Arch: "x86_64"}
		files[r.SHA256] = data
		return r
	}
	data, err := lab.DriverRunfile("390.42", "x86_64", "")
	want := choice.Want{Runfile: file("NVIDIA-Linux-x86_64-390.42.run", data, err), CUDA: "9.1", With: []string{"deviceQuery", "bandwidthTest"}}
	data, err = lab.ToolkitRunfile("9.1.85")
	want.CUDARunfile = file("cuda_9.1.85_387.26_linux", data, err)
	want.Runfile.Version, want.CUDARunfile.Version = "390.42", "9.1.85"

	everything := `rpm -qa | sort
find /etc /boot /usr/local -xdev -type f ! -name ld.so.cache ! -path '/etc/*-' ! -name .pwd.lock ! -path '/etc/rpm/*' ! -path '/usr/local/go*' ! -path '/usr/local/lib/python*' -print0 | sort -z | xargs -0 cksum
find /etc /usr/local /usr/bin /usr/lib/modules /usr/src /var/lib/nvidia /var/lib/dkms -xdev ! -type d ! -path '/etc/*-' ! -name .pwd.lock ! -name ld.so.cache ! -name 'modules.*' ! -path '*/__pycache__*' ! -path '/usr/local/go/*' 2>/dev/null | sort`
	before := g.must(everything)

	// do brings about what a plan changes within one boot, and proves nothing of a GPU.
	do := func() Plan {
		t.Helper()
		p, err := build(g.facts, want)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range p.Items() {
			if it.Fresh || it.Actions == nil {
				continue
			}
			for _, a := range it.Actions {
				if s, ok := a.(action.Send); ok {
					g.must("mkdir -p " + filepath.Dir(s.Path) + " && base64 -d >" + s.Path + " <<'FILE'\n" + base64.StdEncoding.EncodeToString(files[s.SHA256]) + "\nFILE")
				}
			}
			if out, code := g.run(p.Script(it)); code != 0 {
				t.Fatalf("%s: exit %d: %s", it.ID, code, out)
			}
		}
		return p
	}
	do()
	for script, want := range map[string]string{
		`cat /boot/initramfs-` + centosKernel + `.x86_64.img`:                                                 "etc/modprobe.d/gpuguest-blocklist.conf\n",
		`cat /var/lib/gpuguest/before/files/boot/initramfs-*`:                                                 "usr/lib/modules/" + centosKernel + ".x86_64/kernel/drivers/gpu/drm/nouveau/nouveau.ko.xz\n",
		`grep -c ' crashkernel=auto quiet modprobe.blacklist=.*nouveau.modeset=0' /boot/grub2/grub.cfg`:       "1\n",
		`grep -c '^baseurl=https://vault.centos.org/' /etc/yum.repos.d/CentOS-Base.repo`:                      "1\n",
		`rpm -q --qf '%{NAME} %{VERSION}\n' dkms epel-release; [ ! -e /usr/bin/nvidia-uninstall ] && echo no`: "dkms 2.8.4\nepel-release 7\nno\n",
	} {
		if got := g.must(script); got != want {
			t.Errorf("before the boot, %s: %q, want %q", script, got, want)
		}
	}

	// The boot: nouveau holds the GPU no more.
	g.look()
	g.facts.GPUs[0].Driver = ""
	g.facts.Loaded["nouveau"] = false
	p := do()
	g.look()
	for script, want := range map[string]string{
		`modinfo -k ` + centosKernel + `.x86_64 -F version nvidia`:                                              "390.42\n",
		`readlink -f /usr/local/cuda`:                                                                           "/usr/local/cuda-9.1\n",
		`sh -c '. /etc/profile.d/gpuguest-cuda.sh; nvcc --version' | tail -n 1`:                                 "Cuda compilation tools, release 9.1, V9.1.85\n",
		`sed -n 's/^ExecStart=//p' /etc/systemd/system/nvidia-persistenced.service; id -un nvidia-persistenced`: "/usr/bin/nvidia-persistenced --verbose --user nvidia-persistenced\nnvidia-persistenced\n",
	} {
		if got := g.must(script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	// What is met is met the second time, and NVIDIA's own programs are run and read.
	var proofs []Item
	for _, it := range p.Items() {
		if !it.Fresh || it.ID == "verify-nvcc" || it.ID == "verify-devicequery" || it.ID == "verify-bandwidthtest" {
			proofs = append(proofs, it)
		}
	}
	out, _ := g.run(Checks(p.Distro, proofs, "--nonce"))
	for id, o := range Judge(proofs, ParseChecks(out, "--nonce")) {
		if !o.Met {
			t.Errorf("%s is not met: %s", id, o.Why)
		}
		if id == "verify-bandwidthtest" && !strings.Contains(o.Data, "9.719") && !strings.Contains(o.Data, "9719") {
			t.Errorf("bandwidthTest was read as %s", o.Data)
		}
	}

	// And back.
	in, err := Bare(g.facts, choice.Want{})
	if err != nil {
		t.Fatal(err)
	}
	away, err := Build(in, steps.Uninstall())
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range away.Items() {
		if it.Fresh {
			continue
		}
		if out, code := g.run(away.Script(it)); code != 0 {
			t.Fatalf("%s: exit %d: %s", it.ID, code, out)
		}
	}
	if after := g.must(everything); after != before {
		t.Errorf("uninstall leaves\n%s", changed(before, after))
	}
}

// changed are the lines that one text has and the other has not.
func changed(before, after string) string {
	was, is := map[string]bool{}, map[string]bool{}
	for l := range strings.Lines(before) {
		was[l] = true
	}
	for l := range strings.Lines(after) {
		is[l] = true
	}
	var b strings.Builder
	for l := range strings.Lines(before) {
		if !is[l] {
			b.WriteString("- " + l)
		}
	}
	for l := range strings.Lines(after) {
		if !was[l] {
			b.WriteString("+ " + l)
		}
	}
	return b.String()
}
