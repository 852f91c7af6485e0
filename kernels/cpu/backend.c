/* The CPU backend: opening it, its scratch memory, and the table of operations.
 *
 * Scratch is one block.  For a step it is laid out as: cos and sin of the rows; first rows of the sequences; what an
 * operation shares among threads (operations follow each other, so they use the same place); then one piece per
 * thread.
 *
 * SPDX-License-Identifier: MIT */
#include <math.h>

#include "cpu.h"
#include "dsv2.h"
#include "kv_page.h"

#ifdef DSV2I_X86
#include <cpuid.h>
#endif

#define MAX_THREADS 1024

size_t dsv2i_size_mul(size_t a, size_t b)
{
    size_t c;

    return __builtin_mul_overflow(a, b, &c) ? SIZE_MAX : c;
}

size_t dsv2i_size_add(size_t a, size_t b)
{
    size_t c;

    return __builtin_add_overflow(a, b, &c) ? SIZE_MAX : c;
}

static size_t size_max(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Bytes of n floats, up to a multiple of a cache line. */
static size_t lines(size_t n_floats)
{
    size_t n = dsv2i_size_add(dsv2i_size_mul(n_floats, sizeof(float)), 63);

    return n == SIZE_MAX ? SIZE_MAX : n & ~(size_t)63;
}

static struct dsv2i_plan make_plan(const struct dsv2i_cpu *be, const struct dsv2i_shape *shape, int32_t n_rows)
{
    struct dsv2i_plan p;
    size_t rows = (size_t)n_rows, shared;

    shared = size_max(dsv2i_ffn_floats(shape, n_rows), dsv2i_score_floats(shape, n_rows));
    shared = size_max(shared, dsv2i_moe_route_floats(shape, n_rows));
    shared = size_max(shared, dsv2i_moe_experts_floats(shape, n_rows));
    p.rope = 0;
    p.seqs = lines(dsv2i_size_mul(rows, (size_t)shape->qk_rope_head_dim));
    p.shared = dsv2i_size_add(p.seqs, lines(dsv2i_size_mul(rows + 1, 2))); /* int32 pairs: as large as floats */
    p.threads = dsv2i_size_add(p.shared, lines(shared));
    p.thread_bytes = lines(dsv2i_size_add(dsv2i_block_floats(shape), dsv2i_attend_thread_floats(shape, n_rows)));
    p.total = dsv2i_size_add(p.threads, dsv2i_size_mul(p.thread_bytes, (size_t)be->pool.n_threads));
    return p;
}

static size_t op_scratch_bytes(struct dsv2i_backend *base, const struct dsv2i_shape *shape, int32_t n_rows)
{
    return make_plan(dsv2i_cpu_of(base), shape, n_rows).total;
}

static int op_reserve(struct dsv2i_backend *base, const struct dsv2i_shape *shape, int32_t n_rows)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);
    size_t bytes = op_scratch_bytes(base, shape, n_rows);
    char *scratch;

    if (bytes <= be->scratch_bytes)
        return 0;
    if (bytes == SIZE_MAX)
        return -1;
    scratch = be->hooks.alloc(be->hooks.user, bytes, 64);
    if (!scratch)
        return -1;
    if (be->scratch)
        be->hooks.free(be->hooks.user, be->scratch, be->scratch_bytes);
    be->scratch = scratch;
    be->scratch_bytes = bytes;
    return 0;
}

float *dsv2i_thread_scratch(const struct dsv2i_cpu *be, int32_t thread)
{
    return (float *)(be->scratch + be->plan.threads + (size_t)thread * be->plan.thread_bytes);
}

float *dsv2i_thread_free(const struct dsv2i_cpu *be, int32_t thread)
{
    return dsv2i_thread_scratch(be, thread) + dsv2i_block_floats(be->shape);
}

/* cos and sin of a row's angles, times the multiplier: (rope / 2, 2).  Angles in double: position 163839 in fp32
 * would leave an error of 0.01 radian. */
static void rope_row(struct dsv2i_cpu *be, const void *arg, int32_t row, int32_t thread)
{
    const struct dsv2i_shape *s = be->shape;
    float *cs = (float *)(be->scratch + be->plan.rope) + (size_t)row * (size_t)s->qk_rope_head_dim;

    for (int32_t i = 0; i < s->qk_rope_head_dim / 2; i++) {
        double angle = be->batch->pos[row] * s->inv_freq[i];

        cs[2 * i] = (float)(cos(angle) * (double)s->rope_multiplier);
        cs[2 * i + 1] = (float)(sin(angle) * (double)s->rope_multiplier);
    }
}

static int op_begin(struct dsv2i_backend *base, const struct dsv2i_shape *shape, const struct dsv2i_batch *batch)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);
    int32_t *first;

    be->shape = shape;
    be->batch = batch;
    be->plan = make_plan(be, shape, batch->n_rows);
    first = (int32_t *)(be->scratch + be->plan.seqs);
    for (int32_t row = 0, seq = 0; seq <= batch->n_seqs; seq++) {
        while (row < batch->n_rows && batch->seq[row] < seq)
            row++;
        first[seq] = row;
    }
    dsv2i_pool_run(be, rope_row, NULL, batch->n_rows, 20.0 * batch->n_rows * shape->qk_rope_head_dim);
    return 0;
}

static int op_submit(struct dsv2i_backend *base)
{
    (void)base;
    return 0;
}

static void op_fetch(struct dsv2i_backend *base, void *to, const void *from, size_t bytes)
{
    (void)base;
    memcpy(to, from, bytes);
}

static int op_finish(struct dsv2i_backend *base)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);

    be->shape = NULL;
    be->batch = NULL;
    return 0;
}

static const char *op_failure(struct dsv2i_backend *base)
{
    (void)base;
    return "";
}

static void op_forget(struct dsv2i_backend *base, const void *model)
{
    (void)base;
    (void)model;
}

static void *op_mem_alloc(struct dsv2i_backend *base, size_t bytes)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);

    return be->hooks.alloc(be->hooks.user, bytes ? bytes : 1, 64);
}

static void op_mem_free(struct dsv2i_backend *base, void *ptr, size_t bytes)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);

    if (ptr)
        be->hooks.free(be->hooks.user, ptr, bytes ? bytes : 1);
}

static int op_mem_copy(struct dsv2i_backend *base, void *to, const void *from, size_t bytes)
{
    (void)base;
    memcpy(to, from, bytes);
    return 0;
}

/* Weights are used where they lie. */
static size_t op_weight_bytes(struct dsv2i_backend *base, const struct dsv2i_weight *w, int attention)
{
    (void)base;
    (void)w;
    (void)attention;
    return 0;
}

static int op_weight_put(struct dsv2i_backend *base, void *to, struct dsv2i_weight *w, int attention)
{
    (void)base;
    (void)to;
    (void)w;
    (void)attention;
    return 0;
}

static size_t op_table_bytes(struct dsv2i_backend *base, int32_t n)
{
    (void)base;
    (void)n;
    return 0;
}

static int op_table_put(struct dsv2i_backend *base, void *to, struct dsv2i_ffn *ffn, int32_t n)
{
    (void)base;
    (void)to;
    (void)ffn;
    (void)n;
    return 0;
}

static int32_t op_memory_rows(struct dsv2i_backend *base, int32_t n)
{
    (void)base;
    return n;
}

static size_t op_kv_token_bytes(struct dsv2i_backend *base, const struct dsv2i_shape *shape, int32_t kv_type)
{
    (void)base;
    return dsv2i_kv_record(kv_type, shape->kv_lora_rank, shape->qk_rope_head_dim).bytes;
}

static void op_close(struct dsv2i_backend *base)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);
    struct dsv2i_hooks hooks = be->hooks;

    dsv2i_pool_close(be);
    if (be->scratch)
        hooks.free(hooks.user, be->scratch, be->scratch_bytes);
    hooks.free(hooks.user, be, sizeof *be);
}

static const struct dsv2i_ops ops = {
    .close = op_close,
    .mem_alloc = op_mem_alloc,
    .mem_free = op_mem_free,
    .mem_copy = op_mem_copy,
    .weight_bytes = op_weight_bytes,
    .weight_put = op_weight_put,
    .table_bytes = op_table_bytes,
    .table_put = op_table_put,
    .memory_rows = op_memory_rows,
    .kv_token_bytes = op_kv_token_bytes,
    .scratch_bytes = op_scratch_bytes,
    .reserve = op_reserve,
    .begin = op_begin,
    .submit = op_submit,
    .fetch = op_fetch,
    .finish = op_finish,
    .failure = op_failure,
    .forget = op_forget,
    .embed = dsv2i_op_embed,
    .rms_norm = dsv2i_op_rms_norm,
    .linear = dsv2i_op_linear,
    .mla_prepare = dsv2i_op_mla_prepare,
    .mla_attend = dsv2i_op_mla_attend,
    .ffn = dsv2i_op_ffn,
    .moe_route = dsv2i_op_moe_route,
    .moe_experts = dsv2i_op_moe_experts,
    .score = dsv2i_op_score,
};

/* The best level that processor and operating system (which must save the registers) allow. */
static int32_t machine_level(void)
{
#ifdef DSV2I_X86
    const uint32_t leaf1 = bit_FMA | bit_F16C | bit_AVX | bit_OSXSAVE;
    const uint32_t leaf7 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
    uint32_t a, b, c, d, xcr0, high;

    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & leaf1) != leaf1)
        return DSV2_CPU_REFERENCE;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    if ((xcr0 & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2))
        return DSV2_CPU_REFERENCE;
    if ((xcr0 & 0xE6) != 0xE6 || (b & leaf7) != leaf7)
        return DSV2_CPU_AVX2;
    return DSV2_CPU_AVX512;
#else
    return DSV2_CPU_REFERENCE;
#endif
}

int dsv2i_cpu_open(const struct dsv2i_hooks *hooks, int32_t level, int32_t n_threads, struct dsv2i_backend **out)
{
    int32_t best = machine_level();
    struct dsv2i_cpu *be;

    *out = NULL;
    if (level < DSV2_CPU_BEST || level > best)
        return -2;
    be = hooks->alloc(hooks->user, sizeof *be, 64);
    if (!be)
        return -1;
    memset(be, 0, sizeof *be);
    be->base.op = &ops;
    be->base.logit_rows = 32;
    be->hooks = *hooks;
    be->level = level == DSV2_CPU_BEST ? best : level;
    be->inner = dsv2i_inner_ref;
#ifdef DSV2I_X86
    if (be->level >= DSV2_CPU_AVX2)
        be->inner = dsv2i_inner_avx2;
    if (be->level >= DSV2_CPU_AVX512)
        be->inner = dsv2i_inner_avx512;
#endif
    if (dsv2i_pool_open(be, dsv2i_min(n_threads, MAX_THREADS))) {
        hooks->free(hooks->user, be, sizeof *be);
        return -1;
    }
    *out = &be->base;
    return 0;
}

int32_t dsv2i_cpu_threads(const struct dsv2i_backend *be)
{
    return ((const struct dsv2i_cpu *)be)->pool.n_threads;
}

int32_t dsv2i_cpu_level(const struct dsv2i_backend *be)
{
    return ((const struct dsv2i_cpu *)be)->level;
}
