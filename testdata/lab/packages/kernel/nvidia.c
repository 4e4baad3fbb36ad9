// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * A stand-in for NVIDIA's nvidia.ko, for the lab only. It binds display devices
 * of vendor 10de, says in /proc/driver/nvidia what the real one says there,
 * answers at major 195 (nvidia-modprobe makes the nodes: the functions that make
 * them from the kernel are for GPL modules only), and refuses what the real one
 * of its branch and flavor refuses. It computes nothing. standin.h, written when the
 * package is made, holds VERSION, BRANCH, OPEN and BUILT.
 */
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/version.h>
#include "chips.h"
#include "standin.h"

#define NV_MAJOR	195
#define NV_CTL_MINOR	255
#define NV_ESC_NUMA_INFO	215
#define MAX_GPUS	16
#define GSP_SINCE	75	/* compute capability 7.5, Turing */
#define OPEN_ONLY_SINCE	100	/* compute capability 10.0, Blackwell */
#define LAST_LEGACY	580	/* the last branch for Maxwell, Pascal and Volta */

struct gpu {
	struct pci_dev *dev;
	const struct chip *chip;
	struct proc_dir_entry *dir;
	atomic_t users;
	bool persistent;
};

static struct gpu gpu[MAX_GPUS];
static int gpu_count;
static struct proc_dir_entry *root, *gpus_dir;

static unsigned int capability(const struct chip *c)
{
	return c->major * 10 + c->minor;
}

static int version_show(struct seq_file *m, void *v)
{
	if (OPEN)
		seq_printf(m, "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  %s  Release Build  (lab@stand-in)  %s\n", VERSION, BUILT);
	else
		seq_printf(m, "NVRM version: NVIDIA UNIX x86_64 Kernel Module  %s  %s\n", VERSION, BUILT);
	seq_printf(m, "GCC version:  %s\n", CC_TEXT);
	return 0;
}

static int information_show(struct seq_file *m, void *v)
{
	struct gpu *g = m->private;
	struct pci_dev *d = g->dev;

	seq_printf(m, "Model: \t\t %s\n", g->chip->name);
	seq_printf(m, "IRQ:   \t\t %u\n", d->irq);
	seq_printf(m, "GPU UUID: \t GPU-5741e91d-0000-4000-8000-%04x%08x\n", d->device, pci_domain_nr(d->bus) << 16 | d->bus->number << 8 | d->devfn);
	seq_puts(m, "Video BIOS: \t ??.??.??.??.??\nBus Type: \t PCIe\nDMA Size: \t 47 bits\nDMA Mask: \t 0x7fffffffffff\n");
	seq_printf(m, "Bus Location: \t %s\n", pci_name(d));
	seq_printf(m, "Device Minor: \t %d\n", (int)(g - gpu));
	seq_puts(m, "GPU Excluded:\t No\n");
	return 0;
}

/* Not in the real driver: what the stand-in libraries ask instead of by ioctl. */
static int standin_show(struct seq_file *m, void *v)
{
	struct gpu *g = m->private;

	seq_printf(m, "users %d\npersistent %d\n", atomic_read(&g->users), g->persistent);
	return 0;
}

static int standin_open(struct inode *i, struct file *f)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 17, 0)
	return single_open(f, standin_show, pde_data(i));
#else
	return single_open(f, standin_show, PDE_DATA(i));
#endif
}

static ssize_t standin_write(struct file *f, const char __user *buf, size_t n, loff_t *pos)
{
	struct gpu *g = ((struct seq_file *)f->private_data)->private;
	char c;

	if (!n || get_user(c, buf))
		return -EFAULT;
	if (c != '0' && c != '1')
		return -EINVAL;
	if (c == '1' && !g->persistent)
		pr_warn("NVRM: Persistence mode is deprecated and will be removed in a future release. Please use nvidia-persistenced instead.\n");
	g->persistent = c == '1';
	return n;
}

static const struct proc_ops standin_ops = {
	.proc_open = standin_open, .proc_read = seq_read, .proc_lseek = seq_lseek,
	.proc_release = single_release, .proc_write = standin_write,
};

static int nv_open(struct inode *i, struct file *f)
{
	unsigned int minor = iminor(i);

	if (minor == NV_CTL_MINOR)
		return 0;
	if (minor >= gpu_count)
		return -ENODEV;
	atomic_inc(&gpu[minor].users);
	return 0;
}

static int nv_release(struct inode *i, struct file *f)
{
	if (iminor(i) != NV_CTL_MINOR)
		atomic_dec(&gpu[iminor(i)].users);
	return 0;
}

/* nvidia-persistenced asks how the GPU's memory is shown to NUMA: all zeroes, as it hands them in, say not at all. */
static long nv_ioctl(struct file *f, unsigned int cmd, unsigned long arg)
{
	return _IOC_TYPE(cmd) == 'F' && _IOC_NR(cmd) == NV_ESC_NUMA_INFO ? 0 : -ENOTTY;
}

static const struct file_operations nv_fops = {
	.owner = THIS_MODULE, .open = nv_open, .release = nv_release, .unlocked_ioctl = nv_ioctl,
};

/* Windows too small for a BAR: the words of NVIDIA's nv-pci.c. */
static bool bars_valid(struct pci_dev *d)
{
	static const int at[] = { 0, 1 };
	int i;

	for (i = 0; i < ARRAY_SIZE(at); i++) {
		if (pci_resource_start(d, at[i]) && pci_resource_len(d, at[i]))
			continue;
		pr_err("NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:\n"
		       "NVRM: BAR%d is %lluM @ 0x%llx (PCI:%s)\n", i,
		       (unsigned long long)pci_resource_len(d, at[i]) >> 20,
		       (unsigned long long)pci_resource_start(d, at[i]), pci_name(d));
		return false;
	}
	return true;
}

static bool supported(struct pci_dev *d, const struct chip *c)
{
	if (BRANCH > LAST_LEGACY && capability(c) < GSP_SINCE) {
		pr_err("NVRM: The NVIDIA GPU %s (PCI ID: 10de:%04x)\n"
		       "NVRM: installed in this system is\n"
		       "NVRM:  supported through the NVIDIA %d.xx Legacy drivers. Please\n"
		       "NVRM:  visit http://www.nvidia.com/object/unix.html for more\n"
		       "NVRM:  information.  The %s NVIDIA driver will ignore\n"
		       "NVRM:  this GPU.  Continuing probe...\n", pci_name(d), d->device, LAST_LEGACY, VERSION);
		return false;
	}
	if (OPEN && capability(c) < GSP_SINCE) {
		pr_err("NVRM: The NVIDIA GPU %s (PCI ID: 10de:%04x)\n"
		       "NVRM: installed in this system is not supported by open\n"
		       "NVRM: nvidia.ko because it does not include the required GPU\n"
		       "NVRM: System Processor (GSP).\n", pci_name(d), d->device);
		return false;
	}
	if (!OPEN && capability(c) >= OPEN_ONLY_SINCE) {
		pr_err("NVRM: The NVIDIA GPU %s (PCI ID: 10de:%04x)\n"
		       "NVRM: installed in this system requires use of the NVIDIA open kernel modules.\n", pci_name(d), d->device);
		return false;
	}
	return true;
}

static int nv_probe(struct pci_dev *d, const struct pci_device_id *id)
{
	const struct chip *c = find_chip(d->device);
	struct gpu *g = &gpu[gpu_count];

	if (gpu_count == MAX_GPUS || !bars_valid(d) || !supported(d, c))
		return -1;
	if (pci_enable_device(d)) {
		pr_err("NVRM: pci_enable_device failed, aborting\n");
		return -1;
	}
	g->dev = d;
	g->chip = c;
	atomic_set(&g->users, 0);
	g->persistent = false;
	g->dir = proc_mkdir(pci_name(d), gpus_dir);
	proc_create_single_data("information", 0444, g->dir, information_show, g);
	proc_create_data("stand-in", 0644, g->dir, &standin_ops, g);
	gpu_count++;
	return 0;
}

static void nv_remove(struct pci_dev *d)
{
	int i;

	for (i = 0; i < gpu_count; i++) {
		if (gpu[i].dev != d)
			continue;
		proc_remove(gpu[i].dir);
		gpu[i].dir = NULL;
	}
	pci_disable_device(d);
}

static const struct pci_device_id ids[] = {
	{ .vendor = PCI_VENDOR_ID_NVIDIA, .device = PCI_ANY_ID, .subvendor = PCI_ANY_ID, .subdevice = PCI_ANY_ID,
	  .class = PCI_CLASS_DISPLAY_VGA << 8, .class_mask = ~0 },
	{ .vendor = PCI_VENDOR_ID_NVIDIA, .device = PCI_ANY_ID, .subvendor = PCI_ANY_ID, .subdevice = PCI_ANY_ID,
	  .class = PCI_CLASS_DISPLAY_3D << 8, .class_mask = ~0 },
	{ }
};
MODULE_DEVICE_TABLE(pci, ids);

static struct pci_driver driver = { .name = "nvidia", .id_table = ids, .probe = nv_probe, .remove = nv_remove };

/* Why no device came: taken by another driver, or refused by this one. */
static void explain_none(void)
{
	struct pci_dev *d = NULL;
	int missed = 0;

	while ((d = pci_get_device(PCI_VENDOR_ID_NVIDIA, PCI_ANY_ID, d))) {
		if (d->class >> 16 != PCI_BASE_CLASS_DISPLAY || !d->dev.driver)
			continue;
		pr_err("NVRM: GPU %s is already bound to %s.\n", pci_name(d), d->dev.driver->name);
		missed++;
	}
	if (missed)
		pr_err("NVRM: The NVIDIA probe routine was not called for %d device(s).\n", missed);
	pr_err("NVRM: No NVIDIA GPU found.\n");
}

static void teardown(void)
{
	proc_remove(root);
	unregister_chrdev(NV_MAJOR, "nvidia");
}

static int __init nv_init(void)
{
	int err = register_chrdev(NV_MAJOR, "nvidia", &nv_fops);

	if (err)
		return err;
	root = proc_mkdir("driver/nvidia", NULL);
	gpus_dir = proc_mkdir("gpus", root);
	proc_create_single("version", 0444, root, version_show);
	err = pci_register_driver(&driver);
	if (!err && !gpu_count) {
		explain_none();
		pci_unregister_driver(&driver);
		err = -ENODEV;
	}
	if (err) {
		teardown();
		return err;
	}
	pr_info("NVRM: loading NVIDIA UNIX %s  %s  %s\n",
		OPEN ? "Open Kernel Module for x86_64" : "x86_64 Kernel Module", VERSION, BUILT);
	return 0;
}

static void __exit nv_exit(void)
{
	pci_unregister_driver(&driver);
	teardown();
}

module_init(nv_init);
module_exit(nv_exit);
#if OPEN
MODULE_LICENSE("Dual MIT/GPL");
#else
MODULE_LICENSE("NVIDIA");
#endif
MODULE_VERSION(VERSION);
MODULE_INFO(supported, "external");
MODULE_DESCRIPTION("stand-in for NVIDIA's kernel module, lab only");
