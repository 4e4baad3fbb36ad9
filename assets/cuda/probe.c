/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpuguest's CUDA probe: does CUDA work in this machine, on every GPU, and how fast is the way there?
 *
 *     cc -O2 -o probe probe.c -ldl -lpthread
 *
 * It needs no CUDA toolkit: libcuda.so.1 of the driver is loaded by dlopen, and the kernels are PTX that the
 * driver compiles. It writes nothing but its two outputs: one JSON object on standard output, and on standard
 * error what a person reads, a line a GPU. It exits 0 when every check passed, 1 when one failed and 2 when it
 * could not run.
 *
 * A GPU that hangs keeps its caller in the kernel for ever, and not even SIGKILL frees it. So the work is done
 * by a child, its results lie in memory shared with the parent, and the parent is the one that talks: at the
 * deadline it names what hangs and ends, whatever becomes of the child.
 *
 * The dialect is what gcc 4.8 (CentOS 7) takes without a -std: no declarations in for.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_GPUS = 32, MAX_FAILURES = 8, MAX_EXPECTED = MAX_GPUS, MAX_PEERS = MAX_GPUS * MAX_GPUS };
enum { PASSED = 0, FAILED = 1, COULD_NOT_RUN = 2 };

/* Types and numbers of cuda.h, which is not needed: the driver's ABI is what it was in CUDA 7. */
typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct context *CUcontext;
typedef struct module *CUmodule;
typedef struct function *CUfunction;

enum {
	CUDA_OK = 0, CUDA_INSUFFICIENT_DRIVER = 35, CUDA_NO_BINARY = 209, CUDA_INVALID_PTX = 218, CUDA_UNSUPPORTED_PTX = 222,
	CUDA_PEER_ALREADY = 704
};
enum {
	ATTR_MULTIPROCESSORS = 16, ATTR_INTEGRATED = 18, ATTR_COMPUTE_MODE = 20, ATTR_ECC = 32, ATTR_UVA = 41,
	ATTR_CC_MAJOR = 75, ATTR_CC_MINOR = 76, ATTR_MANAGED = 83, ATTR_PAGEABLE_ACCESS = 88, ATTR_CONCURRENT_MANAGED = 89
};
enum { JIT_ERROR_LOG = 5, JIT_ERROR_LOG_SIZE = 6, ATTACH_GLOBAL = 1 };

/*
 * The driver's functions. The names are those of the library and not of the header, which renames some of them
 * to _v2; each is in libcuda since 390 and in every one after it. Those below OPTIONAL may be missing.
 */
#define NEEDED(F) \
	F(cuInit, (unsigned int)) \
	F(cuDriverGetVersion, (int *)) \
	F(cuDeviceGetCount, (int *)) \
	F(cuDeviceGet, (CUdevice *, int)) \
	F(cuDeviceGetName, (char *, int, CUdevice)) \
	F(cuDeviceTotalMem_v2, (size_t *, CUdevice)) \
	F(cuDeviceGetAttribute, (int *, int, CUdevice)) \
	F(cuDeviceGetPCIBusId, (char *, int, CUdevice)) \
	F(cuDevicePrimaryCtxRetain, (CUcontext *, CUdevice)) \
	F(cuCtxSetCurrent, (CUcontext)) \
	F(cuCtxSynchronize, (void)) \
	F(cuModuleLoadDataEx, (CUmodule *, const void *, unsigned int, int *, void **)) \
	F(cuModuleGetFunction, (CUfunction *, CUmodule, const char *)) \
	F(cuLaunchKernel, (CUfunction, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int, void *, void **, void **)) \
	F(cuMemGetInfo_v2, (size_t *, size_t *)) \
	F(cuMemAlloc_v2, (CUdeviceptr *, size_t)) \
	F(cuMemFree_v2, (CUdeviceptr)) \
	F(cuMemHostAlloc, (void **, size_t, unsigned int)) \
	F(cuMemFreeHost, (void *)) \
	F(cuMemcpyHtoD_v2, (CUdeviceptr, const void *, size_t)) \
	F(cuMemcpyDtoH_v2, (void *, CUdeviceptr, size_t)) \
	F(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void *, size_t, void *)) \
	F(cuMemcpyDtoHAsync_v2, (void *, CUdeviceptr, size_t, void *)) \
	F(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, void *)) \
	F(cuMemAllocManaged, (CUdeviceptr *, size_t, unsigned int)) \
	F(cuDeviceCanAccessPeer, (int *, CUdevice, CUdevice)) \
	F(cuCtxEnablePeerAccess, (CUcontext, unsigned int)) \
	F(cuMemcpyPeer, (CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t))
#define OPTIONAL(F) \
	F(cuGetErrorName, (CUresult, const char **)) \
	F(cuDeviceGetUuid, (unsigned char *, CUdevice))

#define POINTER(name, args) CUresult (*name) args;
static struct { NEEDED(POINTER) OPTIONAL(POINTER) } cu;

static const struct symbol { const char *name; size_t at; int needed; } symbols[] = {
#define ROW1(name, args) { #name, offsetof(__typeof__(cu), name), 1 },
#define ROW0(name, args) { #name, offsetof(__typeof__(cu), name), 0 },
	NEEDED(ROW1) OPTIONAL(ROW0)
};

/* A driver older than 6.0 has no cuGetErrorName; libcuda that is not there has none at all. */
static const struct { int code; const char *name; } errors[] = {
	{ 1, "CUDA_ERROR_INVALID_VALUE" }, { 2, "CUDA_ERROR_OUT_OF_MEMORY" }, { 3, "CUDA_ERROR_NOT_INITIALIZED" },
	{ 34, "CUDA_ERROR_STUB_LIBRARY" }, { 35, "cudaErrorInsufficientDriver" }, { 46, "CUDA_ERROR_DEVICE_UNAVAILABLE" },
	{ 100, "CUDA_ERROR_NO_DEVICE" }, { 101, "CUDA_ERROR_INVALID_DEVICE" }, { 209, "CUDA_ERROR_NO_BINARY_FOR_GPU" },
	{ 214, "CUDA_ERROR_ECC_UNCORRECTABLE" }, { 218, "CUDA_ERROR_INVALID_PTX" }, { 220, "CUDA_ERROR_NVLINK_UNCORRECTABLE" },
	{ 221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND" }, { 222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" },
	{ 304, "CUDA_ERROR_OPERATING_SYSTEM" }, { 700, "CUDA_ERROR_ILLEGAL_ADDRESS" }, { 719, "CUDA_ERROR_LAUNCH_FAILED" },
	{ 801, "CUDA_ERROR_NOT_SUPPORTED" }, { 802, "CUDA_ERROR_SYSTEM_NOT_READY" }, { 803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" },
	{ 804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE" }, { 999, "CUDA_ERROR_UNKNOWN" }
};

enum state { NOT_RUN, OK, BAD, SKIPPED };
static const char *const states[] = { "not run", "ok", "failed", "not supported" };

/* What is going on, so that a hang has a place. */
enum phase {
	LOADING, INITIALIZING, LISTING, WAITING, CONTEXT, JIT, KERNEL, MEMORY, BANDWIDTH, UVM, PEERS, DONE
};
static const char *const phases[] = {
	"loading libcuda", "cuInit", "listing the devices", "waiting to begin", "making a context", "compiling the kernels",
	"the vector kernel", "the memory patterns", "the copies", "managed memory", "the peer copies", "done"
};

struct failure {
	char kind[24]; /* stable: library init count device context jit kernel kernel-result memory memory-pattern copy link-bandwidth uvm peer hang crash */
	char call[40]; /* the function that failed, "" none did */
	int code;      /* its CUDA error, 0 none */
	char name[64]; /* of that error */
	char what[320];
};

struct failures { int n; struct failure f[MAX_FAILURES]; };

struct link { int known; double gts; int width; double gbs; double max_gts; int max_width; };

struct gpu {
	int phase;
	CUdevice device;
	CUcontext context;
	CUmodule module;
	CUfunction vec, fill, check;
	char name[256], pci[32], uuid[48], ptx[32];
	int cc_major, cc_minor, multiprocessors, ecc, uva, managed, concurrent, pageable, integrated, compute_mode;
	unsigned long long memory, tested;
	int attributes, kernel, pattern, copies, uvm; /* enum state */
	struct link link;
	double pinned_up, pinned_down, pageable_up, pageable_down, within; /* GB/s, 0 not measured */
	double seconds;
	struct failures failures;
};

struct peer { int from, to, access, state; double gbs; };

static struct shared {
	int phase;
	int version, count, listed, could_run, npeers;
	struct gpu gpu[MAX_GPUS];
	struct peer peer[MAX_PEERS];
	struct failures failures;
} *shared;

static struct {
	int expect;         /* GPUs that must be there, -1 any number but none */
	int nexpected;
	char expected[MAX_EXPECTED][32];
	const char *sysfs;
	/*
	 * A pinned copy must reach this part of what the negotiated link can carry. A sound passed-through GPU
	 * was seen at 0.62 and 0.59 of its Gen3 x16 link (GeForce GTX 1050 Ti in a QEMU guest, bandwidthTest), good
	 * servers reach 0.8; a copy that goes by bounce buffers or a throttled root port falls far below half.
	 */
	double threshold;
	double timeout;     /* s, for everything */
	size_t memory;      /* bytes that the pattern test covers at most */
	size_t copy;        /* bytes of one copy that is timed */
} want = { -1, 0, { { 0 } }, "/sys", 0.5, 60, 128u << 20, 32u << 20 };

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static const char *error_name(int code)
{
	const char *name = NULL;
	size_t i;

	if (cu.cuGetErrorName && cu.cuGetErrorName(code, &name) == CUDA_OK && name)
		return name;
	for (i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		if (errors[i].code == code)
			return errors[i].name;
	return "";
}

static struct failure *add_failure(struct failures *all, const char *kind)
{
	struct failure *f;

	if (all->n >= MAX_FAILURES)
		return NULL;
	f = &all->f[all->n];
	memset(f, 0, sizeof(*f));
	snprintf(f->kind, sizeof(f->kind), "%s", kind);
	return f;
}

/* failed_call records that a function of the driver returned an error. */
static void failed_call(struct failures *all, const char *kind, const char *call, int code)
{
	struct failure *f = add_failure(all, kind);
	const char *name = error_name(code);

	if (!f)
		return;
	snprintf(f->call, sizeof(f->call), "%s", call);
	snprintf(f->name, sizeof(f->name), "%s", name);
	f->code = code;
	snprintf(f->what, sizeof(f->what), "%s returned %d%s%s%s", call, code, *name ? " (" : "", name, *name ? ")" : "");
	__sync_synchronize();
	all->n++;
}

static void failed(struct failures *all, const char *kind, const char *format, ...)
{
	struct failure *f = add_failure(all, kind);
	va_list args;

	if (!f)
		return;
	va_start(args, format);
	vsnprintf(f->what, sizeof(f->what), format, args);
	va_end(args);
	__sync_synchronize();
	all->n++;
}

/* TRY calls the driver and leaves the function when that fails. What it leaves behind ends with the process. */
#define TRY(g, kind, name, args) \
	do { \
		CUresult r_ = cu.name args; \
		if (r_ != CUDA_OK) { \
			failed_call(&(g)->failures, kind, #name, r_); \
			return 0; \
		} \
	} while (0)

/*
 * The kernels, as PTX without its first lines. They use nothing younger than Fermi, and sums are unsigned so
 * that every result is exact.
 *
 * vec: c[i] = a[i] * b[i] + a[i], floats.
 * fill: p[i] = pattern(i, seed) ^ flip.
 * check: counts in out[0] the words that are not as fill wrote them, and puts the lowest index of one in out[1].
 */
#define PATTERN(value, scratch) \
	"	mul.lo.u32 " value ", %r1, 2654435761;\n" \
	"	add.u32 " value ", " value ", %r2;\n" \
	"	shr.u32 " scratch ", " value ", 15;\n" \
	"	xor.b32 " value ", " value ", " scratch ";\n" \
	"	xor.b32 " value ", " value ", %r3;\n"
#define THREAD_ID \
	"	mov.u32 %r8, %ctaid.x;\n" \
	"	mov.u32 %r9, %ntid.x;\n" \
	"	mov.u32 %r10, %tid.x;\n" \
	"	mad.lo.u32 %r1, %r8, %r9, %r10;\n"
static const char kernels[] =
	".visible .entry vec(.param .u64 vec_a, .param .u64 vec_b, .param .u64 vec_c, .param .u32 vec_n)\n"
	"{\n"
	"	.reg .pred %p<2>;\n	.reg .u32 %r<16>;\n	.reg .u64 %rd<8>;\n	.reg .f32 %f<4>;\n"
	THREAD_ID
	"	ld.param.u32 %r2, [vec_n];\n"
	"	setp.ge.u32 %p1, %r1, %r2;\n"
	"	@%p1 bra VEC_END;\n"
	"	ld.param.u64 %rd1, [vec_a];\n"
	"	ld.param.u64 %rd2, [vec_b];\n"
	"	ld.param.u64 %rd3, [vec_c];\n"
	"	mul.wide.u32 %rd4, %r1, 4;\n"
	"	add.u64 %rd1, %rd1, %rd4;\n"
	"	add.u64 %rd2, %rd2, %rd4;\n"
	"	add.u64 %rd3, %rd3, %rd4;\n"
	"	ld.global.f32 %f1, [%rd1];\n"
	"	ld.global.f32 %f2, [%rd2];\n"
	"	fma.rn.f32 %f3, %f1, %f2, %f1;\n"
	"	st.global.f32 [%rd3], %f3;\n"
	"VEC_END:\n"
	"	ret;\n"
	"}\n"
	".visible .entry fill(.param .u64 fill_p, .param .u32 fill_n, .param .u32 fill_seed, .param .u32 fill_flip)\n"
	"{\n"
	"	.reg .pred %p<2>;\n	.reg .u32 %r<16>;\n	.reg .u64 %rd<4>;\n"
	THREAD_ID
	"	ld.param.u64 %rd1, [fill_p];\n"
	"	ld.param.u32 %r4, [fill_n];\n"
	"	ld.param.u32 %r2, [fill_seed];\n"
	"	ld.param.u32 %r3, [fill_flip];\n"
	"	mov.u32 %r11, %nctaid.x;\n"
	"	mul.lo.u32 %r11, %r11, %r9;\n"
	"FILL_NEXT:\n"
	"	setp.ge.u32 %p1, %r1, %r4;\n"
	"	@%p1 bra FILL_END;\n"
	PATTERN("%r5", "%r6")
	"	mul.wide.u32 %rd2, %r1, 4;\n"
	"	add.u64 %rd2, %rd1, %rd2;\n"
	"	st.global.u32 [%rd2], %r5;\n"
	"	add.u32 %r1, %r1, %r11;\n"
	"	bra FILL_NEXT;\n"
	"FILL_END:\n"
	"	ret;\n"
	"}\n"
	".visible .entry check(.param .u64 check_p, .param .u32 check_n, .param .u32 check_seed, .param .u32 check_flip, .param .u64 check_out)\n"
	"{\n"
	"	.reg .pred %p<3>;\n	.reg .u32 %r<16>;\n	.reg .u64 %rd<4>;\n"
	THREAD_ID
	"	ld.param.u64 %rd1, [check_p];\n"
	"	ld.param.u32 %r4, [check_n];\n"
	"	ld.param.u32 %r2, [check_seed];\n"
	"	ld.param.u32 %r3, [check_flip];\n"
	"	ld.param.u64 %rd3, [check_out];\n"
	"	mov.u32 %r11, %nctaid.x;\n"
	"	mul.lo.u32 %r11, %r11, %r9;\n"
	"CHECK_NEXT:\n"
	"	setp.ge.u32 %p1, %r1, %r4;\n"
	"	@%p1 bra CHECK_END;\n"
	PATTERN("%r5", "%r6")
	"	mul.wide.u32 %rd2, %r1, 4;\n"
	"	add.u64 %rd2, %rd1, %rd2;\n"
	"	ld.global.u32 %r7, [%rd2];\n"
	"	setp.eq.u32 %p2, %r5, %r7;\n"
	"	@%p2 bra CHECK_SAME;\n"
	"	atom.global.add.u32 %r12, [%rd3], 1;\n"
	"	atom.global.min.u32 %r12, [%rd3+4], %r1;\n"
	"CHECK_SAME:\n"
	"	add.u32 %r1, %r1, %r11;\n"
	"	bra CHECK_NEXT;\n"
	"CHECK_END:\n"
	"	ret;\n"
	"}\n";

/*
 * PTX 6.0 is that of CUDA 9.0, so every driver from 390 on compiles it, and code for sm_30 runs on every GPU
 * after Kepler's first: ptxas of CUDA 12.4, which makes no code for Kepler any more, still takes it for all that it
 * makes code for. Fermi needs the older target. The last row is for a driver that may one day refuse sm_30 as a
 * target: sm_75, the oldest that the drivers after 580 serve, came with PTX 6.3.
 */
static const struct dialect { const char *version, *target; int least; } dialects[] = {
	{ "6.0", "sm_30", 30 },
	{ "3.2", "sm_20", 20 },
	{ "6.3", "sm_75", 75 },
};

/* pattern is what the kernels fill and check compute. */
static uint32_t pattern(uint32_t i, uint32_t seed, uint32_t flip)
{
	uint32_t v = i * 2654435761u + seed;

	return (v ^ v >> 15) ^ flip;
}

static int launch(struct gpu *g, const char *kind, CUfunction f, unsigned int blocks, void **args)
{
	TRY(g, kind, cuLaunchKernel, (f, blocks, 1, 1, 256, 1, 1, 0, NULL, args, NULL));
	TRY(g, kind, cuCtxSynchronize, ());
	return 1;
}

static unsigned int blocks_for(uint32_t words)
{
	uint32_t n = (words + 255) / 256;

	return n > 4096 ? 4096 : n;
}

static int fill(struct gpu *g, const char *kind, CUdeviceptr p, uint32_t words, uint32_t seed, uint32_t flip)
{
	void *args[4];

	args[0] = &p; args[1] = &words; args[2] = &seed; args[3] = &flip;
	return launch(g, kind, g->fill, blocks_for(words), args);
}

/* same counts, on the GPU, the words that differ from the pattern. out is 8 bytes of its memory. */
static int same(struct gpu *g, const char *kind, const char *where, CUdeviceptr p, uint32_t words, uint32_t seed, uint32_t flip, CUdeviceptr out)
{
	uint32_t result[2] = { 0, 0xffffffffu };
	void *args[5];

	TRY(g, kind, cuMemcpyHtoD_v2, (out, result, sizeof(result)));
	args[0] = &p; args[1] = &words; args[2] = &seed; args[3] = &flip; args[4] = &out;
	if (!launch(g, kind, g->check, blocks_for(words), args))
		return 0;
	TRY(g, kind, cuMemcpyDtoH_v2, (result, out, sizeof(result)));
	if (result[0] == 0)
		return 1;
	failed(&g->failures, kind, "%s: %u of %u words are wrong, the first at byte %llu", where, result[0], words, 4ull * result[1]);
	return 0;
}

static int compile(struct gpu *g)
{
	char *source = malloc(sizeof(kernels) + 128), log[512];
	int options[2] = { JIT_ERROR_LOG, JIT_ERROR_LOG_SIZE };
	CUresult r = CUDA_NO_BINARY;
	size_t i;

	if (!source) {
		failed(&g->failures, "jit", "out of memory in the guest");
		return 0;
	}
	log[0] = 0;
	for (i = 0; i < sizeof(dialects) / sizeof(dialects[0]); i++) {
		const struct dialect *d = &dialects[i];
		void *values[2];

		if (g->cc_major * 10 + g->cc_minor < d->least)
			continue;
		snprintf(source, sizeof(kernels) + 128, ".version %s\n.target %s\n.address_size 64\n%s", d->version, d->target, kernels);
		log[0] = 0;
		values[0] = log;
		values[1] = (void *)(uintptr_t)(sizeof(log) - 1);
		r = cu.cuModuleLoadDataEx(&g->module, source, 2, options, values);
		log[sizeof(log) - 1] = 0;
		if (r == CUDA_OK) {
			snprintf(g->ptx, sizeof(g->ptx), "%s %s", d->version, d->target);
			break;
		}
		/* Only "this PTX is not for me" is worth another dialect. */
		if (r != CUDA_INVALID_PTX && r != CUDA_UNSUPPORTED_PTX && r != CUDA_NO_BINARY)
			break;
	}
	free(source);
	if (r != CUDA_OK) {
		failed_call(&g->failures, "jit", "cuModuleLoadDataEx", r);
		if (log[0])
			failed(&g->failures, "jit", "the driver's compiler says: %s", log);
		return 0;
	}
	TRY(g, "jit", cuModuleGetFunction, (&g->vec, g->module, "vec"));
	TRY(g, "jit", cuModuleGetFunction, (&g->fill, g->module, "fill"));
	TRY(g, "jit", cuModuleGetFunction, (&g->check, g->module, "check"));
	return 1;
}

/* vector runs a kernel whose every result is checked by the CPU. */
static int vector(struct gpu *g)
{
	uint32_t n = 1u << 18, i;
	size_t size = n * sizeof(float);
	CUdeviceptr a, b, c;
	float *x = malloc(3 * size), *y = x + n, *z = y + n;
	void *args[4];
	int ok = 0;

	if (!x) {
		failed(&g->failures, "memory", "out of memory in the guest");
		return 0;
	}
	for (i = 0; i < n; i++) {
		/* Below 2^24 whole numbers are exact in a float, and so is the result. */
		x[i] = (float)(i % 1021);
		y[i] = (float)((i * 7u) % 1019);
		z[i] = -1;
	}
	args[0] = &a; args[1] = &b; args[2] = &c; args[3] = &n;
#define STEP(kind, name, list) \
	do { \
		CUresult r_ = cu.name list; \
		if (r_ != CUDA_OK) { \
			failed_call(&g->failures, kind, #name, r_); \
			goto out; \
		} \
	} while (0)
	STEP("memory", cuMemAlloc_v2, (&a, 3 * size));
	b = a + size;
	c = b + size;
	STEP("kernel", cuMemcpyHtoD_v2, (a, x, 3 * size));
	if (!launch(g, "kernel", g->vec, (n + 255) / 256, args))
		goto out;
	STEP("kernel", cuMemcpyDtoH_v2, (z, c, size));
	STEP("kernel", cuMemFree_v2, (a));
	for (i = 0; i < n; i++) {
		float want_ = (float)(i % 1021) * (float)((i * 7u) % 1019) + (float)(i % 1021);

		if (z[i] != want_) {
			failed(&g->failures, "kernel-result", "element %u of the vector kernel's result is %.9g and must be %.9g", i, z[i], want_);
			goto out;
		}
	}
	ok = 1;
out:
	free(x);
	return ok;
}

/* patterns fills a bounded part of the GPU's memory with words that tell their own address, and their inverse. */
static int patterns(struct gpu *g)
{
	size_t free_, total, size = want.memory;
	uint32_t words, flip;
	CUdeviceptr p, out;

	TRY(g, "memory", cuMemGetInfo_v2, (&free_, &total));
	if (size > free_ / 2)
		size = free_ / 2;
	size &= ~(size_t)0xfff;
	if (size == 0) {
		failed(&g->failures, "memory", "the GPU has no free memory: %llu of %llu bytes", (unsigned long long)free_, (unsigned long long)total);
		return 0;
	}
	words = (uint32_t)(size / 4);
	TRY(g, "memory", cuMemAlloc_v2, (&p, size));
	TRY(g, "memory", cuMemAlloc_v2, (&out, 8));
	for (flip = 0;; flip = ~flip) {
		if (!fill(g, "memory-pattern", p, words, 0x9e3779b9u, flip) ||
		    !same(g, "memory-pattern", "pattern in the GPU's memory", p, words, 0x9e3779b9u, flip, out))
			return 0;
		if (flip)
			break;
	}
	g->tested = size;
	TRY(g, "memory", cuMemFree_v2, (out));
	TRY(g, "memory", cuMemFree_v2, (p));
	return 1;
}

/* attribute reads one line of a file of the device in sysfs; 0 where there is none. */
static int attribute(const struct gpu *g, const char *name, char *line, size_t n)
{
	char path[512];
	ssize_t got;
	int fd;

	snprintf(path, sizeof(path), "%s/bus/pci/devices/%s/%s", want.sysfs, g->pci, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	got = read(fd, line, n - 1);
	close(fd);
	if (got <= 0)
		return 0;
	line[got] = 0;
	return 1;
}

/* speed_of reads "8.0 GT/s PCIe"; 0 for "Unknown" and all else. */
static double speed_of(const struct gpu *g, const char *name)
{
	char line[64], *end;
	double v;

	if (!attribute(g, name, line, sizeof(line)))
		return 0;
	v = strtod(line, &end);
	return end != line && strncmp(end, " GT/s", 5) == 0 && v > 0 && v < 1000 ? v : 0;
}

static int width_of(const struct gpu *g, const char *name)
{
	char line[64], *end;
	long v;

	if (!attribute(g, name, line, sizeof(line)))
		return 0;
	v = strtol(line, &end, 10);
	/* 255 is what the kernel shows for a register it could not read, 0 for a link that is down. */
	return end != line && v > 0 && v <= 32 ? (int)v : 0;
}

/*
 * read_link reads the link as it is while copies are at work: at rest a GPU lets its link fall back to
 * 2.5 GT/s. What the link can carry is its rate less its coding: 8 of 10 bits up to 5 GT/s, 128 of 130 up to
 * 32 GT/s, 242 of 256 bytes at 64 GT/s (PCI Express base specification, 3.0 and 6.0).
 */
static void read_link(struct gpu *g)
{
	struct link l;
	double code;

	memset(&l, 0, sizeof(l));
	l.gts = speed_of(g, "current_link_speed");
	l.width = width_of(g, "current_link_width");
	l.max_gts = speed_of(g, "max_link_speed");
	l.max_width = width_of(g, "max_link_width");
	if (l.gts > 0 && l.width > 0) {
		code = l.gts <= 5 ? 8.0 / 10 : l.gts <= 32 ? 128.0 / 130 : 242.0 / 256;
		l.gbs = l.gts * l.width * code / 8;
		l.known = 1;
	}
	g->link = l;
}

enum way { UP, DOWN, WITHIN };

/*
 * best returns the best rate of several copies in GB/s: the best is what the way can carry, and a neighbour's
 * noise is no fault of the GPU's. 0: a copy failed.
 */
static double best(struct gpu *g, enum way way, void *host, CUdeviceptr dev, CUdeviceptr other)
{
	double began = now(), top = 0, took, start;
	int i;

	for (i = 0; i < 3 || (i < 20 && now() - began < 0.1); i++) {
		CUresult r;
		const char *call;

		start = now();
		switch (way) {
		case UP:
			call = "cuMemcpyHtoDAsync_v2";
			r = cu.cuMemcpyHtoDAsync_v2(dev, host, want.copy, NULL);
			break;
		case DOWN:
			call = "cuMemcpyDtoHAsync_v2";
			r = cu.cuMemcpyDtoHAsync_v2(host, dev, want.copy, NULL);
			break;
		default:
			call = "cuMemcpyDtoDAsync_v2";
			r = cu.cuMemcpyDtoDAsync_v2(other, dev, want.copy, NULL);
		}
		if (r == CUDA_OK && host && way == UP && i == 1)
			read_link(g);
		if (r == CUDA_OK) {
			call = "cuCtxSynchronize";
			r = cu.cuCtxSynchronize();
		}
		if (r != CUDA_OK) {
			failed_call(&g->failures, "copy", call, r);
			return 0;
		}
		took = now() - start;
		/* The first copy warms up: page tables, clocks, the link's own speed. */
		if (i > 0 && took > 0 && want.copy / took / 1e9 > top)
			top = want.copy / took / 1e9;
	}
	return top;
}

static int judge(struct gpu *g, const char *way, double rate)
{
	if (rate >= want.threshold * g->link.gbs)
		return 1;
	failed(&g->failures, "link-bandwidth", "pinned copies %s the GPU reach %.2f GB/s, which is %.0f %% of the %.2f GB/s that its PCIe link carries (%.1f GT/s x%d); at least %.0f %% is asked for",
		way, rate, 100 * rate / g->link.gbs, g->link.gbs, g->link.gts, g->link.width, 100 * want.threshold);
	return 0;
}

/* GPUs share root ports and the host's memory, so they are timed one after another. */
static pthread_mutex_t alone = PTHREAD_MUTEX_INITIALIZER;

/* take waits for its turn, but not behind a GPU that hangs: then it goes on without. */
static int take(double seconds)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	t.tv_sec += (time_t)seconds + 1;
	return pthread_mutex_timedlock(&alone, &t) == 0;
}

static int copies(struct gpu *g)
{
	unsigned char *pinned = NULL, *pageable = NULL;
	CUdeviceptr a = 0, b = 0;
	int ok = 0, held;
	size_t i;

	held = take(want.timeout / 4);
	pageable = malloc(want.copy);
	if (!pageable) {
		failed(&g->failures, "memory", "out of memory in the guest");
		goto out;
	}
	STEP("memory", cuMemHostAlloc, ((void **)&pinned, want.copy, 0));
	STEP("memory", cuMemAlloc_v2, (&a, want.copy));
	STEP("memory", cuMemAlloc_v2, (&b, want.copy));
	for (i = 0; i + 4 <= want.copy; i += 4)
		*(uint32_t *)(pinned + i) = pattern((uint32_t)(i / 4), 7, 0);
	memcpy(pageable, pinned, want.copy);
	g->pinned_up = best(g, UP, pinned, a, 0);
	if (g->pinned_up == 0)
		goto out;
	memset(pinned, 0, want.copy);
	g->pinned_down = best(g, DOWN, pinned, a, 0);
	if (g->pinned_down == 0)
		goto out;
	if (memcmp(pinned, pageable, want.copy) != 0) {
		failed(&g->failures, "copy", "what came back from the GPU by pinned copies is not what was sent");
		goto out;
	}
	g->pageable_up = best(g, UP, pageable, b, 0);
	if (g->pageable_up == 0)
		goto out;
	memset(pageable, 0, want.copy);
	g->pageable_down = best(g, DOWN, pageable, b, 0);
	if (g->pageable_down == 0)
		goto out;
	if (memcmp(pinned, pageable, want.copy) != 0) {
		failed(&g->failures, "copy", "what came back from the GPU by pageable copies is not what was sent");
		goto out;
	}
	/* Each byte is read and written, and NVIDIA's bandwidthTest counts both. */
	g->within = 2 * best(g, WITHIN, NULL, a, b);
	if (g->within == 0)
		goto out;
	/*
	 * More than the link can carry went through: then sysfs tells of another link than the one in use (an
	 * emulated port, NVLink to the CPU), and nothing can be said of that one.
	 */
	if (g->link.known && (g->pinned_up > 1.05 * g->link.gbs || g->pinned_down > 1.05 * g->link.gbs))
		g->link.known = 0;
	ok = 1;
	if (g->link.known) {
		ok = judge(g, "to", g->pinned_up);
		ok = judge(g, "from", g->pinned_down) && ok;
	}
out:
	if (b)
		cu.cuMemFree_v2(b);
	if (a)
		cu.cuMemFree_v2(a);
	if (pinned)
		cu.cuMemFreeHost(pinned);
	free(pageable);
	if (held)
		pthread_mutex_unlock(&alone);
	return ok;
}

/* managed has CPU and GPU write and read the same memory in turn. */
static int managed(struct gpu *g)
{
	uint32_t words = 1u << 20, i, *host;
	CUdeviceptr p, out;

	TRY(g, "uvm", cuMemAllocManaged, (&p, words * 4, ATTACH_GLOBAL));
	TRY(g, "uvm", cuMemAlloc_v2, (&out, 8));
	host = (uint32_t *)(uintptr_t)p;
	for (i = 0; i < words; i++)
		host[i] = pattern(i, 11, 0);
	if (!same(g, "uvm", "managed memory that the CPU wrote, seen from the GPU", p, words, 11, 0, out) || !fill(g, "uvm", p, words, 11, 0xffffffffu))
		return 0;
	for (i = 0; i < words; i++)
		if (host[i] != pattern(i, 11, 0xffffffffu)) {
			failed(&g->failures, "uvm", "managed memory that the GPU wrote, seen from the CPU: word %u is %08x and must be %08x", i, host[i], pattern(i, 11, 0xffffffffu));
			return 0;
		}
	TRY(g, "uvm", cuMemFree_v2, (out));
	TRY(g, "uvm", cuMemFree_v2, (p));
	return 1;
}

static int get(struct gpu *g, int attr, int *value)
{
	TRY(g, "device", cuDeviceGetAttribute, (value, attr, g->device));
	return 1;
}

static int describe(struct gpu *g, int index)
{
	unsigned char uuid[16];
	size_t memory = 0;
	char *c;

	TRY(g, "device", cuDeviceGet, (&g->device, index));
	TRY(g, "device", cuDeviceGetName, (g->name, sizeof(g->name), g->device));
	g->name[sizeof(g->name) - 1] = 0;
	TRY(g, "device", cuDeviceGetPCIBusId, (g->pci, sizeof(g->pci), g->device));
	g->pci[sizeof(g->pci) - 1] = 0;
	for (c = g->pci; *c; c++)
		*c = (char)tolower((unsigned char)*c);
	if (cu.cuDeviceGetUuid && cu.cuDeviceGetUuid(uuid, g->device) == CUDA_OK)
		snprintf(g->uuid, sizeof(g->uuid), "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", uuid[0], uuid[1], uuid[2], uuid[3],
			uuid[4], uuid[5], uuid[6], uuid[7], uuid[8], uuid[9], uuid[10], uuid[11], uuid[12], uuid[13], uuid[14], uuid[15]);
	TRY(g, "device", cuDeviceTotalMem_v2, (&memory, g->device));
	g->memory = memory;
	if (!get(g, ATTR_CC_MAJOR, &g->cc_major) || !get(g, ATTR_CC_MINOR, &g->cc_minor) || !get(g, ATTR_MULTIPROCESSORS, &g->multiprocessors) ||
	    !get(g, ATTR_ECC, &g->ecc) || !get(g, ATTR_UVA, &g->uva) || !get(g, ATTR_MANAGED, &g->managed) ||
	    !get(g, ATTR_INTEGRATED, &g->integrated) || !get(g, ATTR_COMPUTE_MODE, &g->compute_mode))
		return 0;
	/* Younger than 390's CUDA 9.1 they are not, but a driver that does not know them answers as if there were none. */
	if (cu.cuDeviceGetAttribute(&g->concurrent, ATTR_CONCURRENT_MANAGED, g->device) != CUDA_OK)
		g->concurrent = 0;
	if (cu.cuDeviceGetAttribute(&g->pageable, ATTR_PAGEABLE_ACCESS, g->device) != CUDA_OK)
		g->pageable = 0;
	return 1;
}

static int context(struct gpu *g)
{
	TRY(g, "context", cuDevicePrimaryCtxRetain, (&g->context, g->device));
	TRY(g, "context", cuCtxSetCurrent, (g->context));
	return 1;
}

/* Each check begins only where the one before it passed: after the first error a context answers nothing else. */
static void examine(struct gpu *g)
{
	g->phase = CONTEXT;
	if (!context(g))
		return;
	g->phase = JIT;
	g->kernel = BAD;
	if (!compile(g))
		return;
	g->phase = KERNEL;
	if (!vector(g))
		return;
	g->kernel = OK;
	g->phase = MEMORY;
	g->pattern = BAD;
	if (!patterns(g))
		return;
	g->pattern = OK;
	g->phase = BANDWIDTH;
	g->copies = BAD;
	if (copies(g))
		g->copies = OK;
	else if (g->failures.f[g->failures.n - 1].code)
		return;
	g->phase = UVM;
	if (!g->managed) {
		g->uvm = SKIPPED;
	} else if (g->concurrent) {
		g->uvm = BAD;
		if (managed(g))
			g->uvm = OK;
	}
}

static void *one_gpu(void *arg)
{
	struct gpu *g = arg;
	double began = now();

	examine(g);
	g->seconds = now() - began;
	__sync_synchronize();
	g->phase = DONE;
	return NULL;
}

/* peer_copy copies a pattern from one GPU's memory to another's and has the receiver look at it. */
static int peer_copy(struct gpu *from, struct gpu *to, double *gbs)
{
	uint32_t words = (8u << 20) / 4;
	CUdeviceptr p, q, out;
	CUresult r;
	double began;

	TRY(from, "peer", cuCtxSetCurrent, (from->context));
	TRY(from, "peer", cuMemAlloc_v2, (&p, words * 4));
	if (!fill(from, "peer", p, words, 13, 0))
		return 0;
	TRY(to, "peer", cuCtxSetCurrent, (to->context));
	r = cu.cuCtxEnablePeerAccess(from->context, 0);
	if (r != CUDA_OK && r != CUDA_PEER_ALREADY) {
		failed_call(&to->failures, "peer", "cuCtxEnablePeerAccess", r);
		return 0;
	}
	TRY(to, "peer", cuMemAlloc_v2, (&q, words * 4));
	TRY(to, "peer", cuMemAlloc_v2, (&out, 8));
	TRY(to, "peer", cuMemcpyPeer, (q, to->context, p, from->context, words * 4));
	TRY(to, "peer", cuCtxSynchronize, ());
	began = now();
	TRY(to, "peer", cuMemcpyPeer, (q, to->context, p, from->context, words * 4));
	TRY(to, "peer", cuCtxSynchronize, ());
	began = now() - began;
	*gbs = began > 0 ? words * 4 / began / 1e9 : 0;
	if (!same(to, "peer", "a pattern copied from another GPU", q, words, 13, 0, out))
		return 0;
	TRY(to, "peer", cuMemFree_v2, (out));
	TRY(to, "peer", cuMemFree_v2, (q));
	TRY(from, "peer", cuCtxSetCurrent, (from->context));
	TRY(from, "peer", cuMemFree_v2, (p));
	return 1;
}

static void peers(void)
{
	int i, j;

	for (i = 0; i < shared->listed; i++)
		for (j = 0; j < shared->listed; j++) {
			struct gpu *from = &shared->gpu[i], *to = &shared->gpu[j];
			struct peer *p = &shared->peer[shared->npeers];

			if (i == j || from->kernel != OK || to->kernel != OK || from->failures.n > 0 || to->failures.n > 0)
				continue;
			p->from = i;
			p->to = j;
			if (cu.cuDeviceCanAccessPeer(&p->access, to->device, from->device) != CUDA_OK)
				continue;
			p->state = SKIPPED;
			if (p->access) {
				from->phase = to->phase = PEERS;
				p->state = BAD;
				if (peer_copy(from, to, &p->gbs))
					p->state = OK;
				from->phase = to->phase = DONE;
			}
			shared->npeers++;
		}
}

static int load(void)
{
	void *lib = dlopen("libcuda.so.1", RTLD_NOW);
	size_t i;

	if (!lib) {
		const char *why = dlerror();
		struct failure *f;

		failed(&shared->failures, "library", "libcuda.so.1 cannot be loaded: %s", why ? why : "unknown");
		f = &shared->failures.f[0];
		/* What every CUDA program says of it, deviceQuery for one. */
		f->code = CUDA_INSUFFICIENT_DRIVER;
		snprintf(f->name, sizeof(f->name), "%s", error_name(f->code));
		return 0;
	}
	for (i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
		void *s = dlsym(lib, symbols[i].name);

		if (!s && symbols[i].needed) {
			failed(&shared->failures, "library", "libcuda.so.1 has no %s: the driver is older than 390, or the library is not NVIDIA's", symbols[i].name);
			return 0;
		}
		memcpy((char *)&cu + symbols[i].at, &s, sizeof(s));
	}
	return 1;
}

/* work is the child: everything that touches the driver. */
static void work(void)
{
	pthread_t thread[MAX_GPUS];
	int started[MAX_GPUS] = { 0 };
	CUresult r;
	int i, n;

	shared->phase = LOADING;
	if (!load())
		return;
	shared->could_run = 1;
	shared->phase = INITIALIZING;
	r = cu.cuInit(0);
	if (cu.cuDriverGetVersion(&n) == CUDA_OK)
		shared->version = n;
	if (r != CUDA_OK) {
		failed_call(&shared->failures, "init", "cuInit", r);
		return;
	}
	shared->phase = LISTING;
	r = cu.cuDeviceGetCount(&shared->count);
	if (r != CUDA_OK) {
		failed_call(&shared->failures, "init", "cuDeviceGetCount", r);
		return;
	}
	for (i = 0; i < shared->count && i < MAX_GPUS; i++) {
		struct gpu *g = &shared->gpu[i];

		g->phase = WAITING;
		g->attributes = describe(g, i) ? OK : BAD;
		shared->listed = i + 1;
	}
	shared->phase = WAITING;
	for (i = 0; i < shared->listed; i++) {
		struct gpu *g = &shared->gpu[i];

		if (g->attributes != OK) {
			g->phase = DONE;
			continue;
		}
		started[i] = pthread_create(&thread[i], NULL, one_gpu, g) == 0;
		if (!started[i]) {
			failed(&g->failures, "memory", "the guest starts no thread for it");
			g->phase = DONE;
		}
	}
	for (i = 0; i < shared->listed; i++)
		if (started[i])
			pthread_join(thread[i], NULL);
	shared->phase = UVM;
	/* Where CPU and GPU cannot share a page at the same time, the CPU may touch none while any GPU works. */
	for (i = 0; i < shared->listed; i++) {
		struct gpu *g = &shared->gpu[i];

		if (g->uvm != NOT_RUN || g->copies == NOT_RUN || !g->managed || g->failures.n > 0)
			continue;
		g->phase = UVM;
		g->uvm = BAD;
		if (cu.cuCtxSetCurrent(g->context) == CUDA_OK && managed(g))
			g->uvm = OK;
		g->phase = DONE;
	}
	shared->phase = PEERS;
	peers();
	__sync_synchronize();
	shared->phase = DONE;
}

/* unfinished names what did not come to its end, as the kind of failure that it is. */
static void unfinished(const char *kind, const char *how)
{
	int i, n = 0;

	for (i = 0; i < shared->listed; i++) {
		struct gpu *g = &shared->gpu[i];

		if (g->phase == DONE || g->phase == WAITING)
			continue;
		n++;
		failed(&g->failures, kind, "%s in %s", how, phases[g->phase]);
		switch (g->phase) {
		case JIT: case KERNEL: g->kernel = BAD; break;
		case MEMORY: g->pattern = BAD; break;
		case BANDWIDTH: g->copies = BAD; break;
		case UVM: g->uvm = BAD; break;
		}
	}
	if (n == 0)
		failed(&shared->failures, kind, "%s in %s", how, phases[shared->phase]);
}

/* count holds the devices against those that must be there. No device at all is never a pass. */
static void count(void)
{
	int i, j;

	if (shared->failures.n > 0)
		return;
	if (shared->count > MAX_GPUS)
		failed(&shared->failures, "count", "CUDA sees %d GPUs, this probe looks at %d", shared->count, MAX_GPUS);
	if (want.expect >= 0 && shared->count != want.expect)
		failed(&shared->failures, "count", "CUDA sees %d GPUs, the guest has %d", shared->count, want.expect);
	else if (shared->count == 0)
		failed(&shared->failures, "count", "CUDA sees no GPU");
	for (i = 0; i < want.nexpected; i++) {
		for (j = 0; j < shared->listed && strcmp(shared->gpu[j].pci, want.expected[i]) != 0; j++)
			;
		if (j == shared->listed)
			failed(&shared->failures, "count", "CUDA does not see the GPU at %s", want.expected[i]);
	}
}

/* quote writes a JSON string. What is no UTF-8 is written as U+FFFD, byte by byte. */
static void quote(const char *s)
{
	const unsigned char *p = (const unsigned char *)s;

	putchar('"');
	while (*p) {
		int n = *p < 0x80 ? 1 : *p >= 0xc2 && *p < 0xe0 ? 2 : *p >= 0xe0 && *p < 0xf0 ? 3 : *p >= 0xf0 && *p < 0xf5 ? 4 : 0, i;

		for (i = 1; i < n; i++)
			if ((p[i] & 0xc0) != 0x80)
				n = 0;
		if (n == 3 && ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f)))
			n = 0;
		if (n == 4 && ((*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f)))
			n = 0;
		if (n == 0) {
			fputs("\\ufffd", stdout);
			p++;
			continue;
		}
		if (n == 1 && (*p < 0x20 || *p == 0x7f))
			printf("\\u%04x", *p);
		else if (n == 1 && (*p == '"' || *p == '\\'))
			printf("\\%c", *p);
		else
			fwrite(p, 1, n, stdout);
		p += n;
	}
	putchar('"');
}

static void member(const char *name, const char *value)
{
	printf(",\"%s\":", name);
	quote(value);
}

static void print_failures(const struct failures *all, int device, int *first)
{
	int i;

	for (i = 0; i < all->n; i++) {
		const struct failure *f = &all->f[i];

		printf("%s{\"kind\":", *first ? "" : ",");
		*first = 0;
		quote(f->kind);
		if (device >= 0) {
			printf(",\"device\":%d", device);
			member("pci", shared->gpu[device].pci);
		}
		if (f->call[0])
			member("call", f->call);
		if (f->code)
			printf(",\"code\":%d", f->code);
		if (f->name[0])
			member("name", f->name);
		member("what", f->what);
		putchar('}');
	}
}

static void print_gpu(const struct gpu *g, int index)
{
	printf("%s{\"index\":%d", index ? "," : "", index);
	member("name", g->name);
	member("pci", g->pci);
	if (g->uuid[0])
		member("uuid", g->uuid);
	printf(",\"compute_capability\":\"%d.%d\",\"memory\":%llu,\"multiprocessors\":%d,\"compute_mode\":%d", g->cc_major, g->cc_minor, g->memory, g->multiprocessors, g->compute_mode);
	printf(",\"ecc\":%s,\"uva\":%s,\"managed\":%s,\"concurrent_managed\":%s,\"pageable_access\":%s,\"integrated\":%s",
		g->ecc ? "true" : "false", g->uva ? "true" : "false", g->managed ? "true" : "false", g->concurrent ? "true" : "false",
		g->pageable ? "true" : "false", g->integrated ? "true" : "false");
	if (g->ptx[0])
		member("ptx", g->ptx);
	printf(",\"checks\":{\"attributes\":\"%s\",\"kernel\":\"%s\",\"memory\":\"%s\",\"copies\":\"%s\",\"uvm\":\"%s\"}",
		states[g->attributes], states[g->kernel], states[g->pattern], states[g->copies], states[g->uvm]);
	printf(",\"memory_tested\":%llu", g->tested);
	printf(",\"bandwidth\":{\"pinned_h2d\":%.3f,\"pinned_d2h\":%.3f,\"pageable_h2d\":%.3f,\"pageable_d2h\":%.3f,\"d2d\":%.3f}",
		g->pinned_up, g->pinned_down, g->pageable_up, g->pageable_down, g->within);
	if (g->link.known)
		printf(",\"link\":{\"known\":true,\"gts\":%.1f,\"width\":%d,\"gbs\":%.3f,\"max_gts\":%.1f,\"max_width\":%d}", g->link.gts, g->link.width, g->link.gbs, g->link.max_gts, g->link.max_width);
	else
		printf(",\"link\":{\"known\":false}");
	printf(",\"seconds\":%.3f}", g->seconds);
}

static void print_json(const char *result, double seconds)
{
	int i, first = 1;

	printf("{\"tool\":\"probe\",\"format\":1,\"result\":\"%s\",\"count\":%d", result, shared->count);
	if (shared->version > 0)
		printf(",\"cuda\":\"%d.%d\"", shared->version / 1000, shared->version % 1000 / 10);
	if (want.expect >= 0)
		printf(",\"expected\":%d", want.expect);
	printf(",\"threshold\":%.3f,\"seconds\":%.3f,\"devices\":[", want.threshold, seconds);
	for (i = 0; i < shared->listed; i++)
		print_gpu(&shared->gpu[i], i);
	printf("],\"peers\":[");
	for (i = 0; i < shared->npeers; i++) {
		const struct peer *p = &shared->peer[i];

		printf("%s{\"from\":%d,\"to\":%d,\"access\":%s,\"state\":\"%s\",\"gbs\":%.3f}", i ? "," : "", p->from, p->to, p->access ? "true" : "false", states[p->state], p->gbs);
	}
	printf("],\"failures\":[");
	print_failures(&shared->failures, -1, &first);
	for (i = 0; i < shared->listed; i++)
		print_failures(&shared->gpu[i].failures, i, &first);
	printf("]}\n");
}

static void say_failures(const char *who, const struct failures *all)
{
	int i;

	for (i = 0; i < all->n; i++)
		fprintf(stderr, "%s: %s: %s\n", who, all->f[i].kind, all->f[i].what);
}

/* say writes what a person reads, what failed first. */
static void say(void)
{
	int i;

	say_failures("CUDA", &shared->failures);
	for (i = 0; i < shared->listed; i++) {
		struct gpu *g = &shared->gpu[i];
		char who[384];

		snprintf(who, sizeof(who), "GPU %d %s (%s)", i, g->name[0] ? g->name : "unknown", g->pci[0] ? g->pci : "unknown address");
		if (g->failures.n > 0)
			say_failures(who, &g->failures);
	}
	for (i = 0; i < shared->listed; i++) {
		struct gpu *g = &shared->gpu[i];

		if (g->failures.n > 0)
			continue;
		fprintf(stderr, "GPU %d %s (%s): kernel %s, %llu MiB of memory %s", i, g->name, g->pci, states[g->kernel], g->tested >> 20, states[g->pattern]);
		if (g->pinned_up > 0)
			fprintf(stderr, ", pinned copies %.1f GB/s to it and %.1f GB/s back", g->pinned_up, g->pinned_down);
		if (g->link.known)
			fprintf(stderr, " of %.1f GB/s (PCIe %.1f GT/s x%d)", g->link.gbs, g->link.gts, g->link.width);
		else
			fprintf(stderr, " (link unknown)");
		if (g->link.known && (g->link.max_width > g->link.width || g->link.max_gts > g->link.gts))
			fprintf(stderr, ", a link that could be %.1f GT/s x%d", g->link.max_gts, g->link.max_width);
		fprintf(stderr, ", managed memory %s\n", states[g->uvm]);
	}
}

/* supervise waits for the child until the deadline and says how it ended. */
static void supervise(pid_t child, double deadline)
{
	struct timespec pause = { 0, 2000000 };
	int status;
	char how[64];

	for (;;) {
		pid_t got = waitpid(child, &status, WNOHANG);

		if (got == child)
			break;
		if (now() > deadline) {
			snprintf(how, sizeof(how), "no answer within %.0f s", want.timeout);
			unfinished("hang", how);
			/* It may never die: nobody waits for it. */
			kill(child, SIGKILL);
			return;
		}
		nanosleep(&pause, NULL);
	}
	if (WIFSIGNALED(status)) {
		snprintf(how, sizeof(how), "the probe died of signal %d", WTERMSIG(status));
		unfinished("crash", how);
	}
}

static int usage(const char *why, const char *what)
{
	fprintf(stderr, "probe: %s: %s\n", why, what);
	fprintf(stderr, "usage: probe [--expect N] [--pci ADDRESS]... [--sysfs DIR] [--threshold FRACTION] [--timeout SECONDS] [--memory MIB] [--copy MIB]\n");
	printf("{\"tool\":\"probe\",\"format\":1,\"result\":\"error\",\"failures\":[{\"kind\":\"usage\"");
	member("what", why);
	printf("}]}\n");
	return COULD_NOT_RUN;
}

static int number(const char *text, double low, double high, double *value)
{
	char *end;

	*value = strtod(text, &end);
	return end != text && *end == 0 && *value >= low && *value <= high;
}

static int options(int argc, char **argv)
{
	double v;
	int i;

	for (i = 1; i < argc; i += 2) {
		const char *name = argv[i], *value = argv[i + 1];

		if (!value)
			return usage("no value", name);
		if (strcmp(name, "--expect") == 0 && number(value, 0, 1024, &v))
			want.expect = (int)v;
		else if (strcmp(name, "--pci") == 0 && want.nexpected < MAX_EXPECTED)
			snprintf(want.expected[want.nexpected++], sizeof(want.expected[0]), "%s", value);
		else if (strcmp(name, "--sysfs") == 0)
			want.sysfs = value;
		else if (strcmp(name, "--threshold") == 0 && number(value, 0, 1, &v))
			want.threshold = v;
		else if (strcmp(name, "--timeout") == 0 && number(value, 0.1, 3600, &v))
			want.timeout = v;
		else if (strcmp(name, "--memory") == 0 && number(value, 1, 4096, &v))
			want.memory = (size_t)v << 20;
		else if (strcmp(name, "--copy") == 0 && number(value, 1, 1024, &v))
			want.copy = (size_t)v << 20;
		else
			return usage("unknown option or value out of range", name);
	}
	return PASSED;
}

int main(int argc, char **argv)
{
	double began = now();
	int i, bad, code = options(argc, argv);
	const char *result;
	pid_t child;

	if (code != PASSED)
		return code;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return usage("mmap", strerror(errno));
	/* All GPUs, in the order of their addresses, whatever the caller's shell says; and no kernel is kept on disk. */
	unsetenv("CUDA_VISIBLE_DEVICES");
	unsetenv("CUDA_MPS_PIPE_DIRECTORY");
	setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 1);
	setenv("CUDA_CACHE_DISABLE", "1", 1);
	fflush(NULL);
	child = fork();
	if (child < 0)
		return usage("fork", strerror(errno));
	if (child == 0) {
		/* Whoever reads the outputs must not wait for a child that hangs. */
		int null = open("/dev/null", O_RDWR);

		for (i = 0; i < 3; i++)
			dup2(null, i);
		work();
		_exit(0);
	}
	supervise(child, began + want.timeout);
	count();
	bad = shared->failures.n;
	for (i = 0; i < shared->listed; i++)
		bad += shared->gpu[i].failures.n;
	code = !shared->could_run ? COULD_NOT_RUN : bad ? FAILED : PASSED;
	result = code == PASSED ? "pass" : code == FAILED ? "fail" : "error";
	print_json(result, now() - began);
	say();
	fflush(NULL);
	_exit(code);
}
