/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the memory behind BAR 0 holds, so that nouveau finds a chip it knows: an
 * NV11 whose BIOS lists no output. It is among the chips that ask least of their
 * registers, and without outputs nothing is probed for screens. Offsets and
 * meanings are those nouveau itself reads (nvkm/engine/device/base.c,
 * nouveau_bios.c, nvkm/subdev/fb/ramnv10.c); what is not set here reads as zero
 * and keeps what is written to it.
 */
#define NV_PMC_BOOT_0		0x000000
#define NV11_BOOT_0		0x01100000
#define NV10_PFB_CSTATUS	0x10020c
#define VRAM_SIZE		0x02000000	/* 32 MiB: the unit is 16 MiB */
#define NV_PROM			0x300000
#define VBIOS_SIZE		0x400
#define PCIR_OFFSET		0x40
#define BMP_OFFSET		0x80
#define DCB_OFFSET		0x100

static void nv11_vbios(u8 *rom)
{
	u8 sum = 0;
	int i;

	rom[0] = 0x55;
	rom[1] = 0xaa;
	rom[2] = VBIOS_SIZE / 512;
	rom[0x18] = PCIR_OFFSET;
	rom[0x36] = DCB_OFFSET & 0xff;
	rom[0x37] = DCB_OFFSET >> 8;

	memcpy(rom + PCIR_OFFSET, "PCIR\xde\x10\x10\x01", 8);
	rom[PCIR_OFFSET + 0x0a] = 0x18;		/* its length */
	rom[PCIR_OFFSET + 0x0f] = 0x03;		/* class: display */
	rom[PCIR_OFFSET + 0x10] = VBIOS_SIZE / 512;
	rom[PCIR_OFFSET + 0x15] = 0x80;		/* the last image */

	/* The BIOS's own table, version 5.1, and its eight bytes' checksum. */
	memcpy(rom + BMP_OFFSET, "\xff\x7fNV\0\5\1", 7);
	for (i = 0; i < 7; i++)
		rom[BMP_OFFSET + 7] -= rom[BMP_OFFSET + i];

	/* The table of outputs, version 3.0: a header and no entry. */
	memcpy(rom + DCB_OFFSET, "\x30\x1b\x00\x08\x00\x00\xcb\xbd\xdc\x4e", 10);

	for (i = 0; i < VBIOS_SIZE; i++)
		sum += rom[i];
	rom[VBIOS_SIZE - 1] = -sum;
}

static void nv11_fill(struct pci_dev *d)
{
	void __iomem *regs;
	u8 *rom;

	if (pci_resource_len(d, 0) != BAR0_SIZE)
		return;
	regs = ioremap(pci_resource_start(d, 0), BAR0_SIZE);
	rom = kzalloc(VBIOS_SIZE, GFP_KERNEL);
	if (regs && rom) {
		memset_io(regs, 0, BAR0_SIZE);
		iowrite32(NV11_BOOT_0, regs + NV_PMC_BOOT_0);
		iowrite32(VRAM_SIZE, regs + NV10_PFB_CSTATUS);
		nv11_vbios(rom);
		memcpy_toio(regs + NV_PROM, rom, VBIOS_SIZE);
	}
	kfree(rom);
	if (regs)
		iounmap(regs);
}
