package lab

import (
	"context"
	"io"
	"os/exec"
	"strings"
)

// Deps are the Debian packages the lab itself needs on the host.
func Deps() []string {
	return []string{
		"qemu-system-x86", "qemu-utils", "ovmf", "mmdebstrap", "fdisk", "util-linux", "e2fsprogs", "dosfstools", "mtools", "zstd",
		"dpkg-dev", "apt-utils", "gnupg", "gcc", "libc6-dev", "binutils", "openssh-client",
		"systemd-container", "iproute2",
		"rpm", "dnf", "zypper", "createrepo-c", "kmod",
	}
}

// MissingDeps lists those of Deps that are not installed.
func MissingDeps(ctx context.Context) []string {
	var missing []string
	for _, name := range Deps() {
		out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${db:Status-Status}", name).Output()
		if err != nil || strings.TrimSpace(string(out)) != "installed" {
			missing = append(missing, name)
		}
	}
	return missing
}

// InstallDeps installs what is missing with the host's apt.
func InstallDeps(ctx context.Context, log io.Writer) error {
	missing := MissingDeps(ctx)
	if len(missing) == 0 {
		return nil
	}
	if err := run(ctx, log, "/", "apt-get", "-q", "update"); err != nil {
		return err
	}
	return run(ctx, log, "/", "apt-get", append([]string{"-q", "-y", "--no-install-recommends", "install"}, missing...)...)
}
