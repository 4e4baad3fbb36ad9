// SPDX-License-Identifier: GPL-2.0
/*
 * A PCI domain of its own whose root bus carries pretend display devices, so
 * that a guest without any GPU shows what a guest with a passed-through GPU
 * shows: sysfs entries, BARs, a driver that binds by modalias. Tests only.
 *
 * What to pretend comes from the module's parameters or, set anew for every
 * boot without touching the guest's disk, from an SMBIOS OEM string of the form
 *	fakegpu: gpus=10de:1c82:1b4c:11bf,10de:2204 mode=needs-realloc
 * (QEMU: -smbios type=11,value=...).
 *
 * Modes:
 *	ok		every BAR fits its window
 *	needs-realloc	BAR 1 fits only when the kernel was booted with pci=realloc,
 *			as on hosts whose firmware leaves too small a window
 *	needs-realloc-off	BAR 1 fits only when it was booted with pci=realloc=off
 *	too-small	BAR 1 never fits, as in a VM whose host gave it too small a window
 *	no-window	no memory window at all
 *
 * BAR 0 is backed by real memory when the machine has an ivshmem device
 * (1af4:1110): then nouveau reads a chip it knows there and stays bound.
 */
#include <linux/dmi.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <asm/pci.h>

#define MAX_GPUS	4
#define DOMAIN		1
#define BAR0_SIZE	(16u << 20)
#define BAR1_SIZE	(256u << 20)
#define BAR3_SIZE	(32u << 20)
#define OEM_PREFIX	"fakegpu:"

/* Where the windows lie: far above any memory QEMU gives a lab guest. */
#define PREF_BASE	0x4000000000ull
#define MMIO_BASE	0x5000000000ull
/* What the devices see of the non-prefetchable window: BAR 0 has 32 bits. */
#define MMIO_BUS_BASE	0xd0000000ull

static char *gpus = "10de:1c82:1b4c:11bf";
module_param(gpus, charp, 0444);
MODULE_PARM_DESC(gpus, "vendor:device[:subvendor:subdevice], comma separated, at most 4; \"none\" for none");
static char *mode = "ok";
module_param(mode, charp, 0444);
MODULE_PARM_DESC(mode, "ok, needs-realloc, needs-realloc-off, too-small or no-window");

struct gpu {
	u8 cfg[PCI_CFG_SPACE_EXP_SIZE];
};

static struct gpu *gpu;
static int gpu_count;
static char oem_text[256];
static struct pci_bus *bus;
static bool have_windows;

static struct resource bus_res = {
	.name = "fakegpu bus", .start = 0, .end = 0, .flags = IORESOURCE_BUS,
};
static struct resource pref_res = {
	.name = "fakegpu prefetchable window",
	.flags = IORESOURCE_MEM | IORESOURCE_MEM_64 | IORESOURCE_PREFETCH,
};
static struct resource mmio_res = {
	.name = "fakegpu window", .flags = IORESOURCE_MEM,
};
static struct pci_sysdata sysdata = { .domain = DOMAIN, .node = NUMA_NO_NODE };

/* Which address bits of each BAR register can be written, and its fixed bits. */
static const struct { u32 mask, fixed; } bar[6] = {
	{ ~(BAR0_SIZE - 1), PCI_BASE_ADDRESS_SPACE_MEMORY },
	{ ~(BAR1_SIZE - 1), PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH },
	{ ~0u, 0 },
	{ ~(BAR3_SIZE - 1), PCI_BASE_ADDRESS_MEM_TYPE_64 | PCI_BASE_ADDRESS_MEM_PREFETCH },
	{ ~0u, 0 },
	{ 0, 0 },
};

static struct gpu *find(unsigned int devfn)
{
	unsigned int slot = PCI_SLOT(devfn);

	return PCI_FUNC(devfn) || slot >= gpu_count ? NULL : &gpu[slot];
}

static int cfg_read(struct pci_bus *b, unsigned int devfn, int where, int size, u32 *val)
{
	struct gpu *g = find(devfn);

	*val = ~0u;
	if (!g)
		return PCIBIOS_DEVICE_NOT_FOUND;
	if (where < 0 || where + size > sizeof(g->cfg))
		return PCIBIOS_BAD_REGISTER_NUMBER;
	*val = 0;
	memcpy(val, g->cfg + where, size);
	return PCIBIOS_SUCCESSFUL;
}

static int cfg_write(struct pci_bus *b, unsigned int devfn, int where, int size, u32 val)
{
	struct gpu *g = find(devfn);

	if (!g)
		return PCIBIOS_DEVICE_NOT_FOUND;
	if (where < 0 || where + size > sizeof(g->cfg))
		return PCIBIOS_BAD_REGISTER_NUMBER;
	if (where >= PCI_BASE_ADDRESS_0 && where < PCI_CARDBUS_CIS) {
		int i = (where - PCI_BASE_ADDRESS_0) / 4;

		if (size != 4)
			return PCIBIOS_SUCCESSFUL;
		val = (val & bar[i].mask) | bar[i].fixed;
	} else if (where != PCI_COMMAND && where != PCI_CACHE_LINE_SIZE &&
		   where != PCI_LATENCY_TIMER && where != PCI_INTERRUPT_LINE) {
		return PCIBIOS_SUCCESSFUL;	/* read-only, as in hardware */
	}
	memcpy(g->cfg + where, &val, size);
	return PCIBIOS_SUCCESSFUL;
}

static struct pci_ops ops = { .read = cfg_read, .write = cfg_write };

static void put16(struct gpu *g, int where, u16 v)
{
	memcpy(g->cfg + where, &v, sizeof(v));
}

static void put32(struct gpu *g, int where, u32 v)
{
	memcpy(g->cfg + where, &v, sizeof(v));
}

/* Take "gpus=" and "mode=" from the machine's OEM strings, if one is for us. */
static void read_oem_string(void)
{
	const struct dmi_device *d = NULL;
	char *rest, *word;

	while ((d = dmi_find_device(DMI_DEV_TYPE_OEM_STRING, NULL, d))) {
		if (!d->name || strncmp(d->name, OEM_PREFIX, strlen(OEM_PREFIX)))
			continue;
		strscpy(oem_text, d->name + strlen(OEM_PREFIX), sizeof(oem_text));
		rest = oem_text;
		while ((word = strsep(&rest, " ")) != NULL) {
			if (!strncmp(word, "gpus=", 5))
				gpus = word + 5;
			else if (!strncmp(word, "mode=", 5))
				mode = word + 5;
		}
		return;
	}
}

static int parse_gpus(void)
{
	char *copy, *rest, *word;
	int err = 0;

	if (!strcmp(gpus, "none"))
		return 0;
	copy = kstrdup(gpus, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	rest = copy;
	while ((word = strsep(&rest, ",")) != NULL) {
		unsigned int v, d, sv = 0, sd = 0;
		struct gpu *g;
		int n = sscanf(word, "%x:%x:%x:%x", &v, &d, &sv, &sd);

		if ((n != 2 && n != 4) || gpu_count == MAX_GPUS) {
			err = -EINVAL;
			break;
		}
		g = &gpu[gpu_count++];
		put16(g, PCI_VENDOR_ID, v);
		put16(g, PCI_DEVICE_ID, d);
		put32(g, PCI_CLASS_REVISION, PCI_CLASS_DISPLAY_VGA << 16 | 0xa1);
		put16(g, PCI_SUBSYSTEM_VENDOR_ID, sv);
		put16(g, PCI_SUBSYSTEM_ID, sd);
		put32(g, PCI_BASE_ADDRESS_0, bar[0].fixed);
		put32(g, PCI_BASE_ADDRESS_1, bar[1].fixed);
		put32(g, PCI_BASE_ADDRESS_3, bar[3].fixed);
	}
	kfree(copy);
	return err;
}

/* The command line is not exported to modules; /proc is mounted wherever modprobe runs. */
static bool booted_with(const char *arg)
{
	char *text, *rest, *word;
	bool found = false;
	struct file *f;
	loff_t pos = 0;
	ssize_t n;

	f = filp_open("/proc/cmdline", O_RDONLY, 0);
	if (IS_ERR(f)) {
		pr_warn("fakegpu: /proc/cmdline cannot be read\n");
		return false;
	}
	text = kzalloc(PAGE_SIZE, GFP_KERNEL);
	n = text ? kernel_read(f, text, PAGE_SIZE - 1, &pos) : 0;
	if (n > 0) {
		rest = strim(text);
		while (!found && (word = strsep(&rest, " ")) != NULL)
			found = !strcmp(word, arg);
	}
	kfree(text);
	filp_close(f, NULL);
	return found;
}

/* Memory that answers at BAR 0, or 0 when the machine has none to lend. */
static resource_size_t find_backing(resource_size_t need)
{
	struct pci_dev *d = pci_get_device(0x1af4, 0x1110, NULL);
	resource_size_t start = 0;

	if (d && pci_resource_len(d, 2) > need) {
		u16 cmd;

		pci_read_config_word(d, PCI_COMMAND, &cmd);
		pci_write_config_word(d, PCI_COMMAND, cmd | PCI_COMMAND_MEMORY);
		start = pci_resource_start(d, 2);
	}
	pci_dev_put(d);
	return start;
}

#include "nv11.h"

static int add_windows(struct list_head *list)
{
	resource_size_t need = (resource_size_t)gpu_count * BAR0_SIZE;
	resource_size_t pref = (resource_size_t)gpu_count * 2 * BAR1_SIZE;
	resource_size_t base = find_backing(need);
	int err;

	if (!strcmp(mode, "too-small") ||
	    (!strcmp(mode, "needs-realloc") && !booted_with("pci=realloc")) ||
	    (!strcmp(mode, "needs-realloc-off") && !booted_with("pci=realloc=off")))
		pref = BAR1_SIZE / 4;
	mmio_res.start = base ? base : MMIO_BASE;
	mmio_res.end = mmio_res.start + need - 1;
	pref_res.start = PREF_BASE;
	pref_res.end = PREF_BASE + pref - 1;
	err = insert_resource(&iomem_resource, &pref_res);
	if (err)
		return err;
	err = insert_resource(&iomem_resource, &mmio_res);
	if (err) {
		remove_resource(&pref_res);
		return err;
	}
	have_windows = true;
	pci_add_resource(list, &pref_res);
	pci_add_resource_offset(list, &mmio_res, mmio_res.start - MMIO_BUS_BASE);
	return 0;
}

static void drop_windows(void)
{
	if (!have_windows)
		return;
	remove_resource(&mmio_res);
	remove_resource(&pref_res);
	have_windows = false;
}

static int __init fakegpu_init(void)
{
	LIST_HEAD(windows);
	struct pci_dev *d;
	int err;

	gpu = kcalloc(MAX_GPUS, sizeof(*gpu), GFP_KERNEL);
	if (!gpu)
		return -ENOMEM;
	read_oem_string();
	err = parse_gpus();
	if (err || !gpu_count)
		goto fail;
	pr_info("fakegpu: pretending %s, mode %s\n", gpus, mode);
	pci_add_resource(&windows, &bus_res);
	if (strcmp(mode, "no-window")) {
		err = add_windows(&windows);
		if (err)
			goto fail_list;
	}
	pci_lock_rescan_remove();
	bus = pci_scan_root_bus(NULL, 0, &ops, &sysdata, &windows);
	if (!bus) {
		pci_unlock_rescan_remove();
		err = -ENODEV;
		goto fail_list;
	}
	if (have_windows)
		pci_assign_unassigned_bus_resources(bus);
	list_for_each_entry(d, &bus->devices, bus_list) {
		d->irq = 10;	/* the real nvidia.ko refuses a device without one */
		if (have_windows && mmio_res.start != MMIO_BASE)
			nv11_fill(d);
	}
	pci_bus_add_devices(bus);
	pci_unlock_rescan_remove();
	return 0;

fail_list:
	pci_free_resource_list(&windows);
	drop_windows();
fail:
	if (err) {
		kfree(gpu);
		gpu = NULL;
		gpu_count = 0;
	}
	return err;
}

static void __exit fakegpu_exit(void)
{
	if (bus) {
		pci_lock_rescan_remove();
		pci_stop_root_bus(bus);
		pci_remove_root_bus(bus);
		pci_unlock_rescan_remove();
	}
	drop_windows();
	kfree(gpu);
}

module_init(fakegpu_init);
module_exit(fakegpu_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("pretend display devices on a PCI bus of their own, for tests");
