// SPDX-License-Identifier: MIT
/*
 * A stand-in for libnvidia-cfg.so.1: the three functions nvidia-persistenced
 * asks for. As with the real one, persistence is nothing but the device's node
 * held open. The types are those of NVIDIA's nvidia-cfg.h.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "load.h"

#define GPUS "/proc/driver/nvidia/gpus"

struct pci_device { int domain, bus, slot, function; };

int nvCfgGetPciDevices(int *n, struct pci_device **out)
{
	struct pci_device *list = calloc(16, sizeof(*list));
	struct dirent *e;
	DIR *dir;

	*n = 0;
	if (!list)
		return 0;
	load_module();
	dir = opendir(GPUS);
	while (dir && *n < 16 && (e = readdir(dir))) {
		struct pci_device *d = &list[*n];

		if (sscanf(e->d_name, "%x:%x:%x.%x", (unsigned *)&d->domain, (unsigned *)&d->bus,
			   (unsigned *)&d->slot, (unsigned *)&d->function) == 4)
			(*n)++;
	}
	if (dir)
		closedir(dir);
	*out = list;
	return *n > 0;
}

int nvCfgOpenPciDevice(int domain, int bus, int slot, int function, void **handle)
{
	char path[96], line[128];
	int minor = -1, fd;
	FILE *f;

	snprintf(path, sizeof(path), GPUS "/%04x:%02x:%02x.%x/information", domain, bus, slot, function);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "Device Minor: %d", &minor) == 1)
			break;
	}
	if (f)
		fclose(f);
	if (minor < 0)
		return 0;
	snprintf(path, sizeof(path), "/dev/nvidia%d", minor);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return 0;
	*handle = (void *)(long)(fd + 1);
	return 1;
}

int nvCfgCloseDevice(void *handle)
{
	return close((int)(long)handle - 1) == 0;
}
