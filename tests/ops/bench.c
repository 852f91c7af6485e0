/* Times of the operations on shapes of the real models, beside what this machine can do at best, measured in the same
 * run: multiply-adds in registers, and reading of memory.  Times are the best of several; nothing here is a check.
 *
 * SPDX-License-Identifier: MIT */
#include <math.h>
#include <pthread.h>
#include <time.h>

#include "harness.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define READ_BYTES ((size_t)128 << 20)

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* What the machine does at best. */
static double peak_flops, peak_read;
static char *memory;
static volatile float sink;

struct worker {
    pthread_t thread;
    int level;
    size_t from, to; /* bytes to read; none: multiply and add */
};

#ifdef __x86_64__
/* 12 sums: enough to hide the latency. */
#define FMA_LOOP(vec, set1, fma) \
    vec s[12], a = set1(1.0f + 1e-7f), b = set1(1e-7f); \
    for (int i = 0; i < 12; i++) \
        s[i] = set1((float)i); \
    for (int n = 0; n < 4000000; n++) \
        _Pragma("GCC unroll 12") for (int i = 0; i < 12; i++) \
            s[i] = fma(s[i], a, b); \
    for (int i = 0; i < 12; i++) \
        sink = sink + ((const float *)&s[i])[0]

__attribute__((target("avx512f"))) static void multiply_avx512(void)
{
    FMA_LOOP(__m512, _mm512_set1_ps, _mm512_fmadd_ps);
}

__attribute__((target("avx2,fma"))) static void multiply_avx2(void)
{
    FMA_LOOP(__m256, _mm256_set1_ps, _mm256_fmadd_ps);
}

#define MULTIPLY_ADD(x, a, b) _mm_add_ps(_mm_mul_ps(x, a), b)

static void multiply_c(void)
{
    FMA_LOOP(__m128, _mm_set1_ps, MULTIPLY_ADD);
}

static double flops_of_multiply(int level)
{
    static const int lanes[] = { 4, 8, 16 };

    return 2.0 * lanes[level] * 12 * 4000000;
}

static void multiply(int level)
{
    if (level == 2)
        multiply_avx512();
    else if (level == 1)
        multiply_avx2();
    else
        multiply_c();
}
#else
static double flops_of_multiply(int level)
{
    return 0;
}

static void multiply(int level)
{
}
#endif

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    uint64_t sum[4] = { 0 };

    if (w->from == w->to)
        multiply(w->level);
    for (size_t i = w->from; i + 32 <= w->to; i += 32)
        for (size_t k = 0; k < 4; k++) {
            uint64_t u;

            memcpy(&u, memory + i + 8 * k, sizeof u);
            sum[k] ^= u;
        }
    sink = sink + (float)(sum[0] ^ sum[1] ^ sum[2] ^ sum[3]);
    return NULL;
}

/* Best of five runs on as many threads. */
static double time_workers(int threads, int level, size_t bytes)
{
    double best = INFINITY;

    for (int run = 0; run < 5; run++) {
        struct worker w[4];
        double begin = now(), taken;

        for (int i = 0; i < threads; i++) {
            w[i] = (struct worker){ .level = level, .from = bytes / (size_t)threads * (size_t)i,
                                    .to = bytes / (size_t)threads * (size_t)(i + 1) };
            if (pthread_create(&w[i].thread, NULL, worker_main, &w[i]))
                exit(1);
        }
        for (int i = 0; i < threads; i++)
            pthread_join(w[i].thread, NULL);
        taken = now() - begin;
        best = taken < best ? taken : best;
    }
    return best;
}

/* A step of n rows at positions from pos on. */
static int32_t zeros[4096], positions[4096];

static void begin_step(struct dsv2i_backend *be, const struct dsv2i_shape *s, struct dsv2i_batch *batch,
                       const struct dsv2i_seq *seq, int n, int pos)
{
    for (int i = 0; i < n; i++)
        positions[i] = pos + i;
    *batch = (struct dsv2i_batch){ .n_rows = n, .n_seqs = 1, .token = zeros, .pos = positions, .seq = zeros, .seqs = seq };
    if (be->op->reserve(be, s, n))
        exit(1);
    be->op->begin(be, s, batch);
}

/* Bench an expression that is one call of an operation. */
#define TIME(be, what, flops, bytes, call) \
    do { \
        double best_ = INFINITY, start_ = now(); \
        int runs_ = 0; \
        while (runs_ < 3 || now() - start_ < 0.25) { \
            double t_ = now(); \
            call; \
            t_ = now() - t_; \
            best_ = t_ < best_ ? t_ : best_; \
            runs_++; \
        } \
        report(what, best_, flops, bytes); \
    } while (0)

static void report(const char *what, double seconds, double flops, double bytes)
{
    double compute = peak_flops > 0 ? flops / seconds / peak_flops : 0, read = bytes / seconds / peak_read;

    printf("  %-44s %10.1f us %8.2f GB/s %8.1f GFLOP/s   %3.0f%% of %s\n", what, seconds * 1e6, bytes / seconds * 1e-9,
           flops / seconds * 1e-9, 100 * (compute > read ? compute : read), compute > read ? "multiply-adds" : "reading");
}

static void bench_matrices(struct dsv2i_backend *be)
{
    static const struct dsv2i_shape s = {
        .hidden_size = 5120, .vocab_size = 20480, .num_hidden_layers = 1, .num_attention_heads = 1, .kv_lora_rank = 1,
        .qk_nope_head_dim = 1, .v_head_dim = 1, .intermediate_size = 4096, .moe_intermediate_size = 1408,
        .n_routed_experts = 16, .num_experts_per_tok = 6,
    };
    static const struct dsv2i_seq seq;
    static const int rows[] = { 1, 2, 4, 8, 16, 64, 256 };
    struct dsv2i_batch batch;
    const int hidden = 5120, wide = 12288;
    struct dsv2i_weight w = make_weight(DSV2I_BF16, wide, hidden, 0.02f), small = make_weight(DSV2I_BF16, 256, 256, 0.1f);
    static const int fp8_format[] = { DSV2I_F8_E4M3, F8_ROWS, F8_BLOCKS };
    struct dsv2i_weight fp8[3];
    struct dsv2i_ffn experts[16];
    float *x = normals((size_t)256 * (size_t)wide, 1), *y = normals((size_t)256 * (size_t)wide, 1), weight[256 * 6];
    int32_t idx[256 * 6], target[256];
    struct dsv2i_score score[256];
    char what[80];

    for (int f = 0; f < 3; f++)
        fp8[f] = make_weight(fp8_format[f], wide, hidden, 0.02f);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int n = rows[i];

        begin_step(be, &s, &batch, &seq, n, 0);
        snprintf(what, sizeof what, "linear bf16 %d x (%d, %d)", n, wide, hidden);
        TIME(be, what, 2.0 * n * wide * hidden, 2.0 * wide * hidden, be->op->linear(be, y, x, &w, n, 0));
        for (int f = 0; f < 3; f++) {
            snprintf(what, sizeof what, "linear %s %d x (%d, %d)", format_name[fp8_format[f]], n, wide, hidden);
            TIME(be, what, 2.0 * n * wide * hidden, 1.0 * wide * hidden, be->op->linear(be, y, x, &fp8[f], n, 0));
        }
        be->op->finish(be);
    }
    for (int n = 1; n <= 64; n *= 64) {
        begin_step(be, &s, &batch, &seq, n, 0);
        snprintf(what, sizeof what, "linear bf16 %d x (256, 256)", n);
        TIME(be, what, 2.0 * n * 256 * 256, 2.0 * 256 * 256, be->op->linear(be, y, x, &small, n, 0));
        snprintf(what, sizeof what, "rms_norm %d x %d", n, hidden);
        TIME(be, what, 4.0 * n * hidden, 8.0 * n * hidden, be->op->rms_norm(be, y, hidden, x, hidden, x, n, hidden, 1e-6f));
        be->op->finish(be);
    }
    for (int e = 0; e < 16; e++)
        experts[e] = (struct dsv2i_ffn){ .gate = make_weight(DSV2I_BF16, 1408, 2048, 0.02f),
                                         .up = make_weight(DSV2I_BF16, 1408, 2048, 0.02f),
                                         .down = make_weight(DSV2I_BF16, 2048, 1408, 0.02f) };
    for (int i = 0; i < 256 * 6; i++) {
        idx[i] = (i * 7 + i / 6) % 16;
        weight[i] = 0.1f;
    }
    for (int n = 1; n <= 256; n *= 16) {
        double size = 3.0 * 1408 * 2048;
        struct dsv2i_shape lite = s;

        lite.hidden_size = 2048;
        begin_step(be, &lite, &batch, &seq, n, 0);
        snprintf(what, sizeof what, "moe_experts %d rows, 6 of 16, 1408 x 2048", n);
        TIME(be, what, 2.0 * n * 6 * size, 2.0 * size * (n == 1 ? 6 : 16),
             be->op->moe_experts(be, y, x, experts, idx, weight, n, 6));
        be->op->finish(be);
    }
    for (int i = 0; i < 256; i++)
        target[i] = i;
    begin_step(be, &s, &batch, &seq, 64, 0);
    TIME(be, "score 64 x (12288, 5120)", 2.0 * 64 * wide * hidden, 2.0 * wide * hidden,
         be->op->score(be, score, x, &w, target, 64));
    be->op->finish(be);
    for (int e = 0; e < 16; e++) {
        free_weight(&experts[e].gate);
        free_weight(&experts[e].up);
        free_weight(&experts[e].down);
    }
    for (int f = 0; f < 3; f++)
        free_weight(&fp8[f]);
    free_weight(&w);
    free_weight(&small);
    free(x);
    free(y);
}

static void bench_attention(struct dsv2i_backend *be, int heads, int n, int pos, int form, int kv_type)
{
    static const char *const type_name[] = { "bf16", "f32", "e4m3", "e5m2", "int8", "6bit" };
    static double freq[32];
    struct dsv2i_shape s = { .hidden_size = 1, .vocab_size = 1, .num_hidden_layers = 1, .num_attention_heads = heads,
                             .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64, .v_head_dim = 128,
                             .intermediate_size = 1, .softmax_scale = 0.1f, .rope_multiplier = 1, .inv_freq = freq };
    int n_pages = (pos + n + 63) / 64;
    size_t record = be->op->kv_token_bytes(be, &s, kv_type);
    void *pages[256];
    struct dsv2i_seq seq = { pages, form, kv_type };
    struct dsv2i_batch batch;
    float *norm = normals(512, 1), *q = normals((size_t)(n * heads * 192), 1), *o = normals((size_t)(n * heads * 128), 1);
    float *kva = normals(64 * 576, 1);
    struct dsv2i_mla mla = { norm, make_weight(DSV2I_BF16, heads * 256, 512, 0.05f) };
    double keys = 0, flops;
    char what[80];

    for (int i = 0; i < n_pages; i++) {
        float *any = need((size_t)(64 * heads * 192), sizeof *any);

        pages[i] = need(64, record);
        begin_step(be, &s, &batch, &seq, 64, i * 64);
        be->op->mla_prepare(be, any, kva, &mla, 0);
        be->op->finish(be);
        free(any);
    }
    for (int i = 0; i < n; i++)
        keys += pos + i + 1;
    flops = form == DSV2I_ABSORBED ? 2.0 * heads * (keys * 1088 + 131072.0 * n)
                                   : 2.0 * heads * (keys * 320 + 131072.0 * (pos + n));
    begin_step(be, &s, &batch, &seq, n, pos);
    snprintf(what, sizeof what, "attend %s %s %d heads, %d rows at %d", type_name[kv_type], form ? "expanded" : "absorbed", heads, n,
             pos);
    TIME(be, what, flops, 2.0 * heads * 256 * 512 + (double)record * (pos + n), be->op->mla_attend(be, o, q, &mla, 0));
    if (n >= 64 && form == DSV2I_ABSORBED) {
        snprintf(what, sizeof what, "prepare %s %d heads, 64 rows", type_name[kv_type], heads);
        be->op->finish(be);
        begin_step(be, &s, &batch, &seq, 64, 0);
        TIME(be, what, 64.0 * heads * 256, 64.0 * heads * 512, be->op->mla_prepare(be, q, kva, &mla, 0));
    }
    be->op->finish(be);
    for (int i = 0; i < n_pages; i++)
        free(pages[i]);
    free_weight(&mla.kv_b);
    free(norm);
    free(kva);
    free(q);
    free(o);
}

void bench(void)
{
    memory = need(READ_BYTES, 1);
    memset(memory, 1, READ_BYTES);
    for (int i = n_variants - 1; i >= 0; i--) {
        const struct variant *v = &variants[i];

        if (v->threads > 2)
            continue;
        peak_flops = flops_of_multiply(v->level) * v->threads / time_workers(v->threads, v->level, 0);
        peak_read = (double)READ_BYTES / time_workers(v->threads, v->level, READ_BYTES);
        printf("%s: at best %.0f GFLOP/s, %.1f GB/s\n", variant_name(v), peak_flops * 1e-9, peak_read * 1e-9);
        bench_matrices(v->be);
        for (int type = 0; type < DSV2I_KV_TYPES; type++) {
            bench_attention(v->be, 16, 1, 4000, DSV2I_ABSORBED, type);
            bench_attention(v->be, 128, 1, 4000, DSV2I_ABSORBED, type);
            bench_attention(v->be, 16, 128, 400, DSV2I_ABSORBED, type);
            bench_attention(v->be, 16, 512, 0, DSV2I_EXPANDED, type);
        }
    }
    free(memory);
}
