// SPDX-License-Identifier: MIT
/*
 * A stand-in for libcuda.so.1: the functions that gpuguest's probe calls, over the guest's own memory. There are
 * as many GPUs as the loaded module tells of in /proc; tests say otherwise, and what shall go wrong:
 *
 *   STUB_GPUS=4           as many GPUs, at 0000:01:00.0, 0000:02:00.0, …
 *   STUB_INIT=802         cuInit returns it
 *   STUB_DEAD=2           making a context on GPU 2 returns 999
 *   STUB_NOJIT=221        compiling PTX returns it
 *   STUB_NEW_PTX=1        PTX for targets below sm_75 is refused with 222
 *   STUB_RUN_PTX=1        the kernels are run from their PTX and not by functions of this file
 *   STUB_LAUNCH=719       launching a kernel returns it
 *   STUB_WRONG=0          GPU 0's vector kernel computes one element wrong
 *   STUB_MEMORY=0         GPU 0's memory forgets a bit
 *   STUB_COPY=0           GPU 0's fast copies change a byte
 *   STUB_GBPS=0.2         copies between CPU and GPU take as long as at this rate
 *   STUB_UVM=3            managed memory returns it
 *   STUB_NO_CONCURRENT=1  CPU and GPU cannot share managed memory at the same time, as before Pascal
 *   STUB_PEER=1           GPUs reach one another; "wrong": and what arrives is wrong
 *   STUB_HANG=1           GPU 1's kernels never end
 *   STUB_CRASH=1          GPU 1's kernels kill the process
 *   STUB_CHIP=1eb8        device id of every GPU, 1c82 when it is not set
 *   STUB_NAME=text        name of every GPU
 *
 * Numbers and types are those of NVIDIA's cuda.h.
 */
#include <dirent.h>
#include <stddef.h>
#include <time.h>
#include "chips.h"
#include "load.h"
#include "ptx.h"

#ifndef CUDA_VERSION
#define CUDA_VERSION 13000
#endif
#define GPUS "/proc/driver/nvidia/gpus"

enum { MAX_GPUS = 16 };
enum {
	SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
	INVALID_CONTEXT = 201, UNSUPPORTED_PTX = 222, PEER_ENABLED = 704, UNKNOWN = 999,
};

struct context { int device; };
struct module { char *text; };
struct function { struct module *module; char name[32]; };

static int devices = -1;
static char address[MAX_GPUS][32];
static const struct chip *chip[MAX_GPUS];
static struct context contexts[MAX_GPUS];
static __thread struct context *current;

static int is(const char *name, int device)
{
	const char *v = getenv(name);

	return v && *v && atoi(v) == device;
}

static int code(const char *name)
{
	const char *v = getenv(name);

	return v && *v ? atoi(v) : SUCCESS;
}

static int by_address(const void *a, const void *b)
{
	return strcmp(a, b);
}

/* chip_of asks the kernel what a GPU is. */
static const struct chip *chip_of(const char *bus_id)
{
	const char *told = getenv("STUB_CHIP");
	unsigned int id = 0;
	char path[128];
	FILE *f;

	if (getenv("STUB_GPUS"))
		return find_chip(told ? (unsigned int)strtoul(told, NULL, 16) : 0x1c82);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/device", bus_id);
	f = fopen(path, "r");
	if (f) {
		if (fscanf(f, "%x", &id) != 1)
			id = 0;
		fclose(f);
	}
	return find_chip(id);
}

int cuInit(unsigned int flags)
{
	struct dirent *e;
	DIR *dir;
	int i;

	(void)flags;
	if (code("STUB_INIT"))
		return code("STUB_INIT");
	devices = 0;
	if (getenv("STUB_GPUS")) {
		for (devices = 0; devices < code("STUB_GPUS") && devices < MAX_GPUS; devices++)
			snprintf(address[devices], sizeof(address[0]), "0000:%02X:00.0", devices + 1);
	} else {
		load_module();
		dir = opendir(GPUS);
		while (dir && (e = readdir(dir)))
			if (e->d_name[0] != '.' && devices < MAX_GPUS)
				snprintf(address[devices++], sizeof(address[0]), "%.31s", e->d_name);
		if (dir)
			closedir(dir);
	}
	qsort(address, devices, sizeof(address[0]), by_address);
	for (i = 0; i < devices; i++) {
		contexts[i].device = i;
		chip[i] = chip_of(address[i]);
	}
	return devices || getenv("STUB_GPUS") ? SUCCESS : NO_DEVICE;
}

int cuDriverGetVersion(int *v)
{
	*v = CUDA_VERSION;
	return SUCCESS;
}

int cuGetErrorName(int error, const char **name)
{
	static const struct { int code; const char *name; } names[] = {
		{ 3, "CUDA_ERROR_NOT_INITIALIZED" }, { 100, "CUDA_ERROR_NO_DEVICE" }, { 221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND" },
		{ 222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" }, { 719, "CUDA_ERROR_LAUNCH_FAILED" },
		{ 802, "CUDA_ERROR_SYSTEM_NOT_READY" }, { 803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" },
		{ 804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE" }, { 999, "CUDA_ERROR_UNKNOWN" },
	};
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].code == error) {
			*name = names[i].name;
			return SUCCESS;
		}
	return INVALID_VALUE;
}

int cuDeviceGetCount(int *n)
{
	if (devices < 0)
		return NOT_INITIALIZED;
	*n = devices;
	return SUCCESS;
}

int cuDeviceGet(int *device, int n)
{
	if (n < 0 || n >= devices)
		return INVALID_DEVICE;
	*device = n;
	return SUCCESS;
}

int cuDeviceGetName(char *name, int size, int device)
{
	const char *told = getenv("STUB_NAME");

	snprintf(name, size, "%s", told ? told : chip[device]->name);
	return SUCCESS;
}

int cuDeviceGetUuid(unsigned char *uuid, int device)
{
	memset(uuid, 0x10 + device, 16);
	return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *size, int device)
{
	*size = (size_t)chip[device]->mib << 20;
	return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device)
{
	switch (attribute) {
	case 16: *value = 6; break;
	case 75: *value = chip[device]->major; break;
	case 76: *value = chip[device]->minor; break;
	case 41: case 83: *value = 1; break;
	case 89: *value = !getenv("STUB_NO_CONCURRENT"); break;
	default: *value = 0;
	}
	return SUCCESS;
}

int cuDeviceGetPCIBusId(char *id, int size, int device)
{
	snprintf(id, size, "%s", address[device]);
	return SUCCESS;
}

int cuDevicePrimaryCtxRetain(struct context **c, int device)
{
	if (is("STUB_DEAD", device))
		return UNKNOWN;
	*c = &contexts[device];
	return SUCCESS;
}

int cuCtxSetCurrent(struct context *c)
{
	current = c;
	return SUCCESS;
}

int cuCtxSynchronize(void)
{
	return current ? SUCCESS : INVALID_CONTEXT;
}

int cuModuleLoadDataEx(struct module **m, const void *image, unsigned int n, int *options, void **values)
{
	const char *text = image;
	int target = 0;

	(void)n, (void)options, (void)values;
	if (!current)
		return INVALID_CONTEXT;
	if (code("STUB_NOJIT"))
		return code("STUB_NOJIT");
	if (sscanf(text, ".version %*d.%*d\n.target sm_%d\n.address_size 64\n", &target) != 1)
		return UNSUPPORTED_PTX;
	if (getenv("STUB_NEW_PTX") && target < 75)
		return UNSUPPORTED_PTX;
	*m = malloc(sizeof(**m));
	(*m)->text = strdup(text);
	return SUCCESS;
}

int cuModuleGetFunction(struct function **f, struct module *m, const char *name)
{
	*f = malloc(sizeof(**f));
	(*f)->module = m;
	snprintf((*f)->name, sizeof((*f)->name), "%s", name);
	return SUCCESS;
}

static uint32_t pattern(uint32_t i, uint32_t seed, uint32_t flip)
{
	uint32_t v = i * 2654435761u + seed;

	return (v ^ v >> 15) ^ flip;
}

static void native(const char *name, void **args)
{
	uint32_t i, n;

	if (strcmp(name, "vec") == 0) {
		float *a = *(float **)args[0], *b = *(float **)args[1], *c = *(float **)args[2];

		n = *(uint32_t *)args[3];
		for (i = 0; i < n; i++)
			c[i] = a[i] * b[i] + a[i];
	} else {
		uint32_t *p = *(uint32_t **)args[0], seed = *(uint32_t *)args[2], flip = *(uint32_t *)args[3];

		n = *(uint32_t *)args[1];
		if (strcmp(name, "fill") == 0) {
			for (i = 0; i < n; i++)
				p[i] = pattern(i, seed, flip);
		} else {
			uint32_t *out = *(uint32_t **)args[4];

			for (i = 0; i < n; i++)
				if (p[i] != pattern(i, seed, flip)) {
					out[0]++;
					if (i < out[1])
						out[1] = i;
				}
		}
	}
}

int cuLaunchKernel(struct function *f, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx, unsigned int by, unsigned int bz,
	unsigned int shared, void *stream, void **args, void **extra)
{
	(void)gy, (void)gz, (void)by, (void)bz, (void)shared, (void)stream, (void)extra;
	if (!current)
		return INVALID_CONTEXT;
	if (code("STUB_LAUNCH"))
		return code("STUB_LAUNCH");
	if (is("STUB_CRASH", current->device))
		abort();
	while (is("STUB_HANG", current->device))
		pause();
	if (getenv("STUB_RUN_PTX"))
		ptx_run(f->module->text, f->name, gx, bx, args);
	else
		native(f->name, args);
	if (strcmp(f->name, "vec") == 0 && is("STUB_WRONG", current->device))
		(*(float **)args[2])[17] += 1;
	if (strcmp(f->name, "fill") == 0 && is("STUB_MEMORY", current->device))
		(*(uint32_t **)args[0])[1000] ^= 1u << 5;
	return SUCCESS;
}

int cuMemGetInfo_v2(size_t *free_, size_t *total)
{
	/* Little, so that a guest under emulation is not kept busy for long. */
	*free_ = (size_t)16 << 20;
	*total = (size_t)chip[current ? current->device : 0]->mib << 20;
	return SUCCESS;
}

int cuMemAlloc_v2(unsigned long long *p, size_t n)
{
	void *m = current ? malloc(n) : NULL;

	*p = (uintptr_t)m;
	return m ? SUCCESS : current ? OUT_OF_MEMORY : INVALID_CONTEXT;
}

int cuMemFree_v2(unsigned long long p)
{
	free((void *)(uintptr_t)p);
	return SUCCESS;
}

int cuMemHostAlloc(void **p, size_t n, unsigned int flags)
{
	(void)flags;
	*p = malloc(n);
	return *p ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemFreeHost(void *p)
{
	free(p);
	return SUCCESS;
}

/* carry copies as fast as STUB_GBPS says. */
static int carry(void *to, const void *from, size_t n, int slow)
{
	const char *rate = getenv("STUB_GBPS");

	if (!current)
		return INVALID_CONTEXT;
	memcpy(to, from, n);
	if (slow && is("STUB_COPY", current->device))
		((char *)to)[n / 2] += 1; /* there and back must not undo it */
	if (slow && rate) {
		double s = n / (atof(rate) * 1e9);
		struct timespec t = { (time_t)s, (long)((s - (time_t)s) * 1e9) };

		nanosleep(&t, NULL);
	}
	return SUCCESS;
}

int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t n) { return carry((void *)(uintptr_t)to, from, n, 0); }
int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t n) { return carry(to, (void *)(uintptr_t)from, n, 0); }

int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t n, void *stream)
{
	(void)stream;
	return carry((void *)(uintptr_t)to, from, n, 1);
}

int cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t n, void *stream)
{
	(void)stream;
	return carry(to, (void *)(uintptr_t)from, n, 1);
}

int cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t n, void *stream)
{
	(void)stream;
	return carry((void *)(uintptr_t)to, (void *)(uintptr_t)from, n, 0);
}

int cuMemAllocManaged(unsigned long long *p, size_t n, unsigned int flags)
{
	(void)flags;
	if (code("STUB_UVM"))
		return code("STUB_UVM");
	return cuMemAlloc_v2(p, n);
}

int cuDeviceCanAccessPeer(int *can, int device, int peer)
{
	(void)device, (void)peer;
	*can = getenv("STUB_PEER") != NULL;
	return SUCCESS;
}

int cuCtxEnablePeerAccess(struct context *peer, unsigned int flags)
{
	(void)flags;
	return peer == current ? PEER_ENABLED : SUCCESS;
}

int cuMemcpyPeer(unsigned long long to, struct context *there, unsigned long long from, struct context *here, size_t n)
{
	const char *v = getenv("STUB_PEER");
	int r = carry((void *)(uintptr_t)to, (void *)(uintptr_t)from, n, 0);

	(void)there, (void)here;
	if (v && strcmp(v, "wrong") == 0)
		*(uint32_t *)(uintptr_t)to ^= 1;
	return r;
}
