/* SPDX-License-Identifier: MIT */
/*
 * A machine that runs PTX, thread after thread: as much of the language as gpuguest's probe uses, and an end of
 * the program on anything else. It shows that the probe's kernels compute what the probe expects, which a
 * stand-in that computes the same in C would not.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PTX_MAX_CODE = 128, PTX_MAX_LABELS = 16, PTX_MAX_PARAMS = 8, PTX_REGISTERS = 64 };

union ptx_value { uint32_t u; uint64_t l; float f; };

struct ptx_operand { char kind; int n; uint64_t value; char text[32]; }; /* kind: r register, a address, i immediate, s symbol */
struct ptx_line { char op[32]; int guard; int n; struct ptx_operand arg[5]; }; /* guard: predicate register, -1 none */
struct ptx_kernel {
	int lines, labels, params;
	struct ptx_line line[PTX_MAX_CODE];
	struct { char name[32]; int at; } label[PTX_MAX_LABELS];
	struct { char name[32]; int wide; } param[PTX_MAX_PARAMS];
};

static void ptx_die(const char *why, const char *what)
{
	fprintf(stderr, "stand-in libcuda: ptx: %s: %s\n", why, what);
	abort();
}

/* Registers of all classes are kept in one file: %r, %rd, %f and %p each begin at their own quarter. */
static int ptx_register(const char *s)
{
	int base, n = 0, used = 0;

	if (sscanf(s, "%%rd%d%n", &n, &used) == 1 && !s[used])
		base = 16;
	else if (sscanf(s, "%%r%d%n", &n, &used) == 1 && !s[used])
		base = 0;
	else if (sscanf(s, "%%f%d%n", &n, &used) == 1 && !s[used])
		base = 32;
	else if (sscanf(s, "%%p%d%n", &n, &used) == 1 && !s[used])
		base = 48;
	else
		return -1;
	if (n < 0 || n > 15)
		ptx_die("register out of range", s);
	return base + n;
}

static void ptx_operand(char *s, struct ptx_operand *o)
{
	char *plus, *end;

	memset(o, 0, sizeof(*o));
	snprintf(o->text, sizeof(o->text), "%s", s);
	if (*s == '[') {
		s[strlen(s) - 1] = 0;
		s++;
		plus = strchr(s, '+');
		if (plus) {
			*plus = 0;
			o->value = strtoull(plus + 1, NULL, 10);
		}
		o->kind = 'a';
		o->n = ptx_register(s);
		snprintf(o->text, sizeof(o->text), "%s", s);
		return;
	}
	o->n = ptx_register(s);
	if (o->n >= 0) {
		o->kind = 'r';
		return;
	}
	o->value = strtoull(s, &end, 10);
	o->kind = *s && !*end ? 'i' : 's';
}

/* ptx_parse reads one entry of a module. */
static void ptx_parse(const char *module, const char *name, struct ptx_kernel *k)
{
	char find[64], *text, *s, *line, *save, *body;

	memset(k, 0, sizeof(*k));
	snprintf(find, sizeof(find), ".visible .entry %s(", name);
	module = strstr(module, find);
	if (!module)
		ptx_die("no entry", name);
	text = strdup(module + strlen(find));
	body = strchr(text, '{');
	if (!body)
		ptx_die("no body", name);
	*body++ = 0;
	*strrchr(text, ')') = 0;
	for (s = strtok_r(text, ",", &save); s; s = strtok_r(NULL, ",", &save)) {
		char type[8];

		if (sscanf(s, " .param .%7s %31s", type, k->param[k->params].name) != 2)
			ptx_die("parameter", s);
		k->param[k->params++].wide = strcmp(type, "u64") == 0;
	}
	*strchr(body, '}') = 0;
	for (line = strtok_r(body, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		struct ptx_line *l = &k->line[k->lines];
		char *colon, *arg, *more;

		while (*line == '\t' || *line == ' ')
			line++;
		if (!*line || strncmp(line, ".reg", 4) == 0)
			continue;
		colon = strchr(line, ':');
		if (colon) {
			*colon = 0;
			snprintf(k->label[k->labels].name, 32, "%s", line);
			k->label[k->labels++].at = k->lines;
			continue;
		}
		if (line[strlen(line) - 1] != ';')
			ptx_die("no semicolon", line);
		line[strlen(line) - 1] = 0;
		memset(l, 0, sizeof(*l));
		l->guard = -1;
		if (*line == '@') {
			char guard[16];

			if (sscanf(line, "@%15s", guard) != 1)
				ptx_die("guard", line);
			l->guard = ptx_register(guard);
			line += 1 + strlen(guard) + 1;
		}
		if (sscanf(line, "%31s", l->op) != 1)
			ptx_die("no instruction", line);
		line += strlen(l->op);
		for (arg = strtok_r(line, ", ", &more); arg; arg = strtok_r(NULL, ", ", &more)) {
			if (l->n == 5)
				ptx_die("too many operands", l->op);
			ptx_operand(arg, &l->arg[l->n++]);
		}
		if (++k->lines == PTX_MAX_CODE)
			ptx_die("too long", name);
	}
}

struct ptx_thread { unsigned int ctaid, ntid, tid, nctaid; };

static int ptx_label(const struct ptx_kernel *k, const char *name)
{
	int i;

	for (i = 0; i < k->labels; i++)
		if (strcmp(k->label[i].name, name) == 0)
			return k->label[i].at;
	ptx_die("no label", name);
	return -1;
}

static void ptx_thread(const struct ptx_kernel *k, struct ptx_thread t, void **args)
{
	union ptx_value r[PTX_REGISTERS];
	int pc = 0, i;

	memset(r, 0, sizeof(r));
	while (pc < k->lines) {
		const struct ptx_line *l = &k->line[pc++];
		const struct ptx_operand *a = l->arg;
		union ptx_value v[5];
		char *mem = NULL;

		if (l->guard >= 0 && !r[l->guard].u)
			continue;
		for (i = 0; i < l->n; i++) {
			v[i].l = a[i].kind == 'r' ? r[a[i].n].l : a[i].value;
			if (a[i].kind == 'a' && a[i].n >= 0)
				mem = (char *)(uintptr_t)(r[a[i].n].l + a[i].value);
		}
#define OP(name) else if (strcmp(l->op, name) == 0)
		if (strcmp(l->op, "ret") == 0)
			return;
		OP("bra") pc = ptx_label(k, a[0].text);
		OP("mov.u32") {
			const char *s = a[1].text;

			if (strcmp(s, "%ctaid.x") == 0)
				r[a[0].n].l = t.ctaid;
			else if (strcmp(s, "%ntid.x") == 0)
				r[a[0].n].l = t.ntid;
			else if (strcmp(s, "%tid.x") == 0)
				r[a[0].n].l = t.tid;
			else if (strcmp(s, "%nctaid.x") == 0)
				r[a[0].n].l = t.nctaid;
			else
				ptx_die("special register", s);
		}
		OP("ld.param.u32") {
			for (i = 0; strcmp(k->param[i].name, a[1].text) != 0 || k->param[i].wide; i++)
				if (i == PTX_MAX_PARAMS - 1)
					ptx_die("no parameter", a[1].text);
			r[a[0].n].l = *(uint32_t *)args[i];
		}
		OP("ld.param.u64") {
			for (i = 0; strcmp(k->param[i].name, a[1].text) != 0 || !k->param[i].wide; i++)
				if (i == PTX_MAX_PARAMS - 1)
					ptx_die("no parameter", a[1].text);
			r[a[0].n].l = *(uint64_t *)args[i];
		}
		OP("setp.ge.u32") r[a[0].n].l = v[1].u >= v[2].u;
		OP("setp.eq.u32") r[a[0].n].l = v[1].u == v[2].u;
		OP("add.u32") r[a[0].n].l = v[1].u + v[2].u;
		OP("add.u64") r[a[0].n].l = v[1].l + v[2].l;
		OP("mul.lo.u32") r[a[0].n].l = v[1].u * v[2].u;
		OP("mul.wide.u32") r[a[0].n].l = (uint64_t)v[1].u * v[2].u;
		OP("mad.lo.u32") r[a[0].n].l = v[1].u * v[2].u + v[3].u;
		OP("shr.u32") r[a[0].n].l = v[1].u >> v[2].u;
		OP("xor.b32") r[a[0].n].l = v[1].u ^ v[2].u;
		OP("fma.rn.f32") r[a[0].n].f = v[1].f * v[2].f + v[3].f; /* exact for what the probe gives it */
		OP("ld.global.u32") r[a[0].n].l = *(uint32_t *)mem;
		OP("ld.global.f32") r[a[0].n].l = *(uint32_t *)mem;
		OP("st.global.u32") *(uint32_t *)mem = v[1].u;
		OP("st.global.f32") *(uint32_t *)mem = v[1].u;
		OP("atom.global.add.u32") {
			r[a[0].n].l = *(uint32_t *)mem;
			*(uint32_t *)mem += v[2].u;
		}
		OP("atom.global.min.u32") {
			r[a[0].n].l = *(uint32_t *)mem;
			if (v[2].u < *(uint32_t *)mem)
				*(uint32_t *)mem = v[2].u;
		}
		else
			ptx_die("unknown instruction", l->op);
#undef OP
	}
	ptx_die("ran off its end", "kernel");
}

/* ptx_run runs a whole grid. */
static void ptx_run(const char *module, const char *name, unsigned int grid, unsigned int block, void **args)
{
	struct ptx_kernel *k = malloc(sizeof(*k));
	struct ptx_thread t = { 0, block, 0, grid };

	ptx_parse(module, name, k);
	for (t.ctaid = 0; t.ctaid < grid; t.ctaid++)
		for (t.tid = 0; t.tid < block; t.tid++)
			ptx_thread(k, t, args);
	free(k);
}
