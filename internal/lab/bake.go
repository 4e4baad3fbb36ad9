package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// BakeBase writes the image to a qcow2 file that gpuguest bake can start from. Its initramfs is made for the lab's
// machines: one with every driver of the kernel takes a minute each time that it is made, one with these drivers seconds.
func BakeBase(ctx context.Context, image Image, path string) error {
	raw := path + ".raw"
	defer os.Remove(raw)
	for _, words := range [][]string{
		{"cp", "--sparse=always", image.Disk, raw},
		// The lab's one partition begins at sector 2048. The mount ends with its name space.
		{"unshare", "--mount", "--propagation", "private", "sh", "-ec", `mount -o loop,offset=1048576 "$1" /mnt
sed -i 's/^MODULES=.*/MODULES=list/' /mnt/etc/initramfs-tools/initramfs.conf
printf '%s\n' virtio_pci virtio_blk virtio_net ext4 crc32c_generic crc32c_intel >>/mnt/etc/initramfs-tools/modules`, "sh", raw},
		{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path},
	} {
		if out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", words[0], err, out)
		}
	}
	return nil
}
