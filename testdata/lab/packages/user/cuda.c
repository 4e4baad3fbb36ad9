// SPDX-License-Identifier: MIT
/* A stand-in for libcuda.so.1: enough for a program that asks whether CUDA is there. */
#include <dirent.h>
#include "load.h"

enum { SUCCESS = 0, NOT_INITIALIZED = 3, NO_DEVICE = 100 };

static int devices = -1;

int cuInit(unsigned int flags)
{
	struct dirent *e;
	DIR *dir;

	(void)flags;
	load_module();
	dir = opendir("/proc/driver/nvidia/gpus");
	devices = 0;
	while (dir && (e = readdir(dir)))
		devices += e->d_name[0] != '.';
	if (dir)
		closedir(dir);
	return devices ? SUCCESS : NO_DEVICE;
}

int cuDriverGetVersion(int *v)
{
	*v = CUDA_VERSION;
	return SUCCESS;
}

int cuDeviceGetCount(int *n)
{
	if (devices < 0)
		return NOT_INITIALIZED;
	*n = devices;
	return SUCCESS;
}
