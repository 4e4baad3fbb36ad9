package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"gpuguest/internal/catalog"
	labfiles "gpuguest/testdata/lab"
)

// DriverRunfile makes a stand-in for NVIDIA's .run installer of one release: the header says of itself what the
// real one's says, checks itself as that does, and runs an installer that takes the real one's options and no
// others. What it installs is the lab's module, and programs that say that they are stand-ins.
//
// spoil, when not empty, goes in front of the module's source: something that does not compile.
func DriverRunfile(version, machine, spoil string) ([]byte, error) {
	var install, uninstall []string
	for _, o := range catalog.InstallerOptions() {
		if catalog.CompareVersions(version, o.First) < 0 || o.Last != "" && catalog.CompareVersions(version, o.Last) > 0 {
			continue
		}
		names := []string{o.Name}
		if plain, both := strings.CutPrefix(o.Name, "--[no-]"); both {
			names = []string{"--" + plain, "--no-" + plain}
		}
		if o.Short != "" {
			names = append(names, o.Short)
		}
		for _, n := range names {
			if o.Kind == "string" || o.Kind == "int" {
				n += "="
			}
			install = append(install, n)
			if o.Uninstall {
				uninstall = append(uninstall, n)
			}
		}
	}
	files := map[string]string{
		"version": version + "\n", "options": strings.Join(install, "\n") + "\n", "options.uninstall": strings.Join(uninstall, "\n") + "\n",
	}
	for from, to := range map[string]string{
		"runfile/nvidia-installer.sh": "nvidia-installer", "runfile/nvidia-uninstall.sh": "nvidia-uninstall.sh", "runfile/dkms.conf": "src/dkms.conf",
		"packages/kernel/nvidia.c": "src/nvidia.c", "packages/kernel/chips.h": "src/chips.h", "packages/kernel/Kbuild": "src/Kbuild",
	} {
		text, err := fs.ReadFile(labfiles.FS, from)
		if err != nil {
			return nil, err
		}
		files[to] = strings.ReplaceAll(string(text), "@VERSION@", version)
	}
	files["src/nvidia.c"] = spoil + files["src/nvidia.c"]
	payload, err := pack(files)
	if err != nil {
		return nil, err
	}
	name := "NVIDIA-Linux-" + machine + "-" + version
	head := func(skip int) string {
		return fmt.Sprintf(`skip=%d
label="NVIDIA Accelerated Graphics Driver for Linux-%s %s"
version_string=%[3]s
script=./nvidia-installer
targetdir=%s
TMPROOT=${TMPDIR:=/tmp}
TARGET_OS="Linux"
TARGET_ARCH="%[2]s"
# A stand-in made by gpuguest's lab. It is not NVIDIA's.
scriptargs=
while [ "$1" ]; do
	case $1 in
	--tmpdir)
		scriptargs="$scriptargs $1 $2"
		TMPROOT=$2
		shift
		;;
	*) scriptargs="$scriptargs $1" ;;
	esac
	shift
done
if [ "$(uname -m)" != "$TARGET_ARCH" ]; then
	echo "ERROR: this .run file is intended for the $TARGET_OS-$TARGET_ARCH platform."
	exit 1
fi
[ "$(tail -n +4 "$0" | md5sum | cut -c1-32)" = "$MD5" ] || { echo "Error in md5 sums"; exit 2; }
dir=$TMPROOT/selfgz$$
mkdir -p "$dir"
tail -n "+$skip" "$0" | tar -C "$dir" -xz || exit 1
(cd "$dir" && $script $scriptargs)
res=$?
rm -rf "$dir"
exit $res
`, skip, machine, version, name)
	}
	// Three lines stand before it, and the archive begins on the line behind.
	rest := head(strings.Count(head(0), "\n")+4) + string(payload)
	sum := md5.Sum([]byte(rest))
	return []byte("#! /bin/sh\nCRCsum=0\nMD5=" + hex.EncodeToString(sum[:]) + "\n" + rest), nil
}

// ToolkitRunfile makes a stand-in for the installer of one release of the CUDA toolkit.
func ToolkitRunfile(version string) ([]byte, error) {
	t, known := catalog.ToolkitByVersion(version)
	if !known {
		return nil, fmt.Errorf("toolkit %s is not in the tables", version)
	}
	text, err := fs.ReadFile(labfiles.FS, "runfile/cuda-installer.sh")
	if err != nil {
		return nil, err
	}
	payload, err := pack(map[string]string{"version": t.Version + "\n", "gcc_max": fmt.Sprintln(t.GCCMax), "cuda-installer": string(text)})
	if err != nil {
		return nil, err
	}
	head := func(lines int) string {
		return fmt.Sprintf(`#!/bin/sh
# A stand-in made by gpuguest's lab. It is not NVIDIA's.
TMPROOT=${TMPDIR:=/tmp}
label="CUDA Installer"
script="./cuda-installer"
targetdir="pkg"
filesizes="%d"
dir=$TMPROOT/selfgz$$
mkdir -p "$dir"
tail -n +%d "$0" | tar -C "$dir" -xz || exit 1
(cd "$dir" && $script "$@")
res=$?
rm -rf "$dir"
exit $res
`, len(payload), lines)
	}
	return append([]byte(head(strings.Count(head(0), "\n")+1)), payload...), nil
}

// pack makes an archive; what begins with "#!" may be executed.
func pack(files map[string]string) ([]byte, error) {
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	archive := tar.NewWriter(zipped)
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		text, mode := files[name], int64(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if err := archive.WriteHeader(&tar.Header{Name: path.Clean(name), Mode: mode, Size: int64(len(text))}); err != nil {
			return nil, err
		}
		if _, err := archive.Write([]byte(text)); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	if err := zipped.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
