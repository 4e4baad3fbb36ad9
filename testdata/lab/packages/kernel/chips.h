/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What the stand-ins say of a chip. Ids, names and compute capabilities are
 * those of the PCI id database and of NVIDIA's list of CUDA GPUs; a device that
 * is not listed passes for an unnamed Ampere one.
 */
struct chip {
	unsigned int device;
	const char *name;
	unsigned int mib, major, minor;
};

static const struct chip chips[] = {
	{ 0x1180, "NVIDIA GeForce GTX 680", 2048, 3, 0 },
	{ 0x13c2, "NVIDIA GeForce GTX 970", 4096, 5, 2 },
	{ 0x1b80, "NVIDIA GeForce GTX 1080", 8192, 6, 1 },
	{ 0x1c82, "NVIDIA GeForce GTX 1050 Ti", 4096, 6, 1 },
	{ 0x1db4, "Tesla V100-PCIE-16GB", 16384, 7, 0 },
	{ 0x1eb8, "Tesla T4", 15360, 7, 5 },
	{ 0x20b0, "NVIDIA A100-SXM4-40GB", 40960, 8, 0 },
	{ 0x2204, "NVIDIA GeForce RTX 3090", 24576, 8, 6 },
	{ 0x2684, "NVIDIA GeForce RTX 4090", 24564, 8, 9 },
	{ 0x2330, "NVIDIA H100 80GB HBM3", 81559, 9, 0 },
	{ 0x2b85, "NVIDIA GeForce RTX 5090", 32607, 12, 0 },
	{ 0, "NVIDIA Graphics Device", 8192, 8, 6 },
};

static const struct chip *find_chip(unsigned int device)
{
	const struct chip *c = chips;

	while (c->device && c->device != device)
		c++;
	return c;
}
