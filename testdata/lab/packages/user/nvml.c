// SPDX-License-Identifier: MIT
/*
 * A stand-in for libnvidia-ml.so.1 that answers from what the kernel really
 * shows: /proc/driver/nvidia of the module that is loaded and sysfs. VERSION,
 * its own version, is given when it is compiled. Every other nvml function that
 * nvidia-smi asks for is generated into others.h and answers "not supported".
 * Types, numbers and the order of fields are those of NVIDIA's nvml.h.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "chips.h"
#include "load.h"

#define GPUS "/proc/driver/nvidia/gpus"
#define MAX_GPUS 16

enum {
	SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
	INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, LIB_RM_VERSION_MISMATCH = 18,
};

struct device {
	char bus_id[32];
	unsigned int domain, bus, slot, id, subsystem;
	char uuid[80];
	const struct chip *chip;
};

static struct device devices[MAX_GPUS];
static unsigned int count;

struct pci_info {
	char legacy[16];
	unsigned int domain, bus, device, id, subsystem;
	char bus_id[32];
};
struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned int version; unsigned long long total, reserved, free, used; };

static unsigned int sysfs_hex(const char *bus_id, const char *name)
{
	char path[128];
	unsigned int v = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", bus_id, name);
	f = fopen(path, "r");
	if (f) {
		if (fscanf(f, "%x", &v) != 1)
			v = 0;
		fclose(f);
	}
	return v;
}

/* The version in the first line of /proc/driver/nvidia/version: its first word of digits and dots. */
static int module_version(char *out, size_t n)
{
	char line[256] = "", *word;
	FILE *f = fopen("/proc/driver/nvidia/version", "r");

	if (!f)
		return 0;
	if (!fgets(line, sizeof(line), f))
		line[0] = 0;
	fclose(f);
	for (word = strtok(line, " \t\n"); word; word = strtok(NULL, " \t\n")) {
		if (strchr(word, '.') && strspn(word, "0123456789.") == strlen(word)) {
			snprintf(out, n, "%s", word);
			return 1;
		}
	}
	return 0;
}

static int by_bus_id(const void *a, const void *b)
{
	return strcmp(((const struct device *)a)->bus_id, ((const struct device *)b)->bus_id);
}

static void read_uuid(struct device *d)
{
	char path[128], line[256];
	FILE *f;

	snprintf(path, sizeof(path), GPUS "/%s/information", d->bus_id);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "GPU UUID: %79s", d->uuid) == 1)
			break;
	}
	if (f)
		fclose(f);
}

int nvmlInit_v2(void)
{
	char loaded[64];
	struct dirent *e;
	DIR *dir;

	load_module();
	if (!module_version(loaded, sizeof(loaded)))
		return DRIVER_NOT_LOADED;
	if (strcmp(loaded, VERSION))
		return LIB_RM_VERSION_MISMATCH;
	count = 0;
	dir = opendir(GPUS);
	while (dir && (e = readdir(dir)) && count < MAX_GPUS) {
		struct device *d = &devices[count];
		unsigned int fn;

		if (sscanf(e->d_name, "%x:%x:%x.%x", &d->domain, &d->bus, &d->slot, &fn) != 4)
			continue;
		snprintf(d->bus_id, sizeof(d->bus_id), "%.31s", e->d_name);
		d->id = sysfs_hex(d->bus_id, "device") << 16 | sysfs_hex(d->bus_id, "vendor");
		d->subsystem = sysfs_hex(d->bus_id, "subsystem_device") << 16 | sysfs_hex(d->bus_id, "subsystem_vendor");
		d->chip = find_chip(d->id >> 16);
		read_uuid(d);
		count++;
	}
	if (dir)
		closedir(dir);
	qsort(devices, count, sizeof(devices[0]), by_bus_id);
	return SUCCESS;
}
int nvmlInit(void) { return nvmlInit_v2(); }
int nvmlInitWithFlags(unsigned int flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int r)
{
	switch (r) {
	case SUCCESS: return "Success";
	case INVALID_ARGUMENT: return "Invalid Argument";
	case NOT_SUPPORTED: return "Not Supported";
	case NO_PERMISSION: return "Insufficient Permissions";
	case NOT_FOUND: return "Not Found";
	case DRIVER_NOT_LOADED: return "Driver Not Loaded";
	case LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
	default: return "Unknown Error";
	}
}

static int text(char *out, unsigned int n, const char *s)
{
	if (strlen(s) + 1 > n)
		return INSUFFICIENT_SIZE;
	strcpy(out, s);
	return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *v, unsigned int n) { return text(v, n, VERSION); }
int nvmlSystemGetNVMLVersion(char *v, unsigned int n) { return text(v, n, CUDA_MAJOR "." VERSION); }
int nvmlSystemGetCudaDriverVersion(int *v) { *v = CUDA_VERSION; return SUCCESS; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = CUDA_VERSION; return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned int *n) { *n = count; return SUCCESS; }
int nvmlDeviceGetCount(unsigned int *n) { return nvmlDeviceGetCount_v2(n); }

int nvmlDeviceGetHandleByIndex_v2(unsigned int i, struct device **d)
{
	if (i >= count)
		return INVALID_ARGUMENT;
	*d = &devices[i];
	return SUCCESS;
}
int nvmlDeviceGetHandleByIndex(unsigned int i, struct device **d) { return nvmlDeviceGetHandleByIndex_v2(i, d); }

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, struct device **d)
{
	unsigned int domain, bus, slot, i;

	if (sscanf(id, "%x:%x:%x", &domain, &bus, &slot) != 3)
		return INVALID_ARGUMENT;
	for (i = 0; i < count; i++) {
		if (devices[i].domain == domain && devices[i].bus == bus && devices[i].slot == slot) {
			*d = &devices[i];
			return SUCCESS;
		}
	}
	return NOT_FOUND;
}
int nvmlDeviceGetHandleByPciBusId(const char *id, struct device **d) { return nvmlDeviceGetHandleByPciBusId_v2(id, d); }

int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **d)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		if (!strcmp(devices[i].uuid, uuid)) {
			*d = &devices[i];
			return SUCCESS;
		}
	}
	return NOT_FOUND;
}

int nvmlDeviceGetIndex(struct device *d, unsigned int *i) { *i = d - devices; return SUCCESS; }
int nvmlDeviceGetMinorNumber(struct device *d, unsigned int *i) { *i = d - devices; return SUCCESS; }
int nvmlDeviceGetName(struct device *d, char *out, unsigned int n) { return text(out, n, d->chip->name); }
int nvmlDeviceGetUUID(struct device *d, char *out, unsigned int n) { return text(out, n, d->uuid); }

int nvmlDeviceGetPciInfo_v3(struct device *d, struct pci_info *p)
{
	memset(p, 0, sizeof(*p));
	snprintf(p->legacy, sizeof(p->legacy), "%04X:%02X:%02X.0", d->domain & 0xffff, d->bus & 0xff, d->slot & 0xff);
	snprintf(p->bus_id, sizeof(p->bus_id), "%08X:%02X:%02X.0", d->domain, d->bus & 0xff, d->slot & 0xff);
	p->domain = d->domain;
	p->bus = d->bus;
	p->device = d->slot;
	p->id = d->id;
	p->subsystem = d->subsystem;
	return SUCCESS;
}
int nvmlDeviceGetPciInfo_v2(struct device *d, struct pci_info *p) { return nvmlDeviceGetPciInfo_v3(d, p); }

int nvmlDeviceGetMemoryInfo(struct device *d, struct memory *m)
{
	m->total = m->free = (unsigned long long)d->chip->mib << 20;
	m->used = 0;
	return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(struct device *d, struct memory_v2 *m)
{
	m->total = m->free = (unsigned long long)d->chip->mib << 20;
	m->used = m->reserved = 0;
	return SUCCESS;
}

int nvmlDeviceGetTemperature(struct device *d, int sensor, unsigned int *t)
{
	(void)d; (void)sensor;
	*t = 34;
	return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(struct device *d, int *major, int *minor)
{
	*major = d->chip->major;
	*minor = d->chip->minor;
	return SUCCESS;
}

/* On while someone holds the device open (the daemon) or the kernel was told to (nvidia-smi -pm 1). */
int nvmlDeviceGetPersistenceMode(struct device *d, int *on)
{
	char path[128];
	int users = 0, persistent = 0;
	FILE *f;

	snprintf(path, sizeof(path), GPUS "/%s/stand-in", d->bus_id);
	f = fopen(path, "r");
	if (!f)
		return NOT_FOUND;
	if (fscanf(f, "users %d persistent %d", &users, &persistent) != 2)
		users = persistent = 0;
	fclose(f);
	*on = users > 0 || persistent;
	return SUCCESS;
}

int nvmlDeviceSetPersistenceMode(struct device *d, int on)
{
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), GPUS "/%s/stand-in", d->bus_id);
	f = fopen(path, "w");
	if (!f)
		return NO_PERMISSION;
	fprintf(f, "%d", on);
	return fclose(f) ? NO_PERMISSION : SUCCESS;
}

/*
 * nvidia-smi refuses a library without its table of unpublished functions. This
 * one has the table's shape, its size first, and nothing to offer: what needs it
 * (-q, the plain table of GPUs) ends with an error, -L and --query-gpu do not.
 */
static int unpublished(void) { return NOT_SUPPORTED; }

int nvmlInternalGetExportTable(const void **table, const void *id)
{
	static const void *functions[257];
	unsigned int i;

	(void)id;
	functions[0] = (const void *)sizeof(functions);
	for (i = 1; i < sizeof(functions) / sizeof(functions[0]); i++)
		functions[i] = (const void *)(size_t)unpublished;
	*table = functions;
	return SUCCESS;
}

#include "others.h"
