/* SPDX-License-Identifier: MIT */
#include "harness.h"

#include <math.h>
#include <stdarg.h>

#include "cpu/cpu.h"
#include "dsv2.h"

struct variant variants[MAX_VARIANTS];
int n_variants, n_checks, n_failed;

static uint64_t state = 1;

static void *heap_alloc(void *user, size_t size, size_t alignment)
{
    return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

static void heap_free(void *user, void *ptr, size_t size)
{
    free(ptr);
}

/* The variants of a level, with fewest to 3 threads. */
static void open_level(int32_t level, int32_t fewest)
{
    const struct dsv2i_hooks hooks = { heap_alloc, heap_free, NULL };

    for (int32_t threads = fewest; threads <= 3; threads++) {
        struct variant *v = &variants[n_variants];
        int rc = dsv2i_cpu_open(&hooks, level, threads, &v->be);

        if (rc == -2) {
            printf("level %d: not on this machine, skipped\n", level);
            return;
        }
        expect(rc == 0, "open", "level %d, %d threads: %d", level, threads, rc);
        expect(dsv2i_cpu_level(v->be) == level && dsv2i_cpu_threads(v->be) == threads, "open", "not what was asked");
        v->level = level;
        v->threads = threads;
        v->first = threads == fewest;
        if (threads == 3)
            ((struct dsv2i_cpu *)v->be)->pool.min_work = 0; /* share the smallest work, too */
        n_variants++;
    }
}

void open_variants(void)
{
#ifdef __SANITIZE_THREAD__ /* work is shared in the same way at every level, and this is slow */
    for (int32_t level = 2; level >= 0 && !n_variants; level--)
        open_level(level, 3);
#else
    for (int32_t level = 0; level <= 2; level++)
        open_level(level, 1);
#endif
}

void close_variants(void)
{
    for (int i = 0; i < n_variants; i++)
        variants[i].be->op->close(variants[i].be);
}

const char *variant_name(const struct variant *v)
{
    static const char *const names[] = { "C", "AVX2", "AVX-512" };
    static char text[32];

    snprintf(text, sizeof text, "%s x%d", names[v->level], v->threads);
    return text;
}

void poison(struct dsv2i_backend *be)
{
    struct dsv2i_cpu *cpu = (struct dsv2i_cpu *)be;

    if (cpu->scratch)
        memset(cpu->scratch, 0xFF, cpu->scratch_bytes);
}

static uint32_t next(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

float uniform(float from, float to)
{
    return from + (to - from) * (float)(next() >> 8) * 0x1p-24f;
}

int below(int n)
{
    return (int)((uint64_t)next() * (uint64_t)n >> 32);
}

float normal(void)
{
    float sum = 0;

    for (int i = 0; i < 6; i++)
        sum += uniform(-1, 1);
    return sum * 0.7071f;
}

void *need(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);

    if (!p) {
        printf("check_ops: no memory\n");
        exit(1);
    }
    return p;
}

float *normals(size_t n, float scale)
{
    float *x = need(n, sizeof *x);

    for (size_t i = 0; i < n; i++)
        x[i] = normal() * scale;
    return x;
}

double *doubles(const float *x, size_t n)
{
    double *d = need(n, sizeof *d);

    for (size_t i = 0; i < n; i++)
        d[i] = (double)x[i];
    return d;
}

const char *const format_name[FORMATS] = { "", "f32", "bf16", "f16", "e4m3", "e4m3 rows", "e4m3 blocks", "e4m3 small blocks" };

/* Random codes of numbers; scales, which come first in the block, so that elements are about as great as those of other types. */
static struct dsv2i_weight make_fp8(int format, int rows, int cols, float scale)
{
    struct dsv2i_weight w = { .dtype = DSV2I_F8_E4M3, .rows = rows, .cols = cols };
    size_t n_scales, n = (size_t)rows * (size_t)cols;
    uint8_t *data;
    float *scales;

    w.scale_rows = format == F8_ROWS ? 1 : format == F8_BLOCKS ? 128 : format == F8_SMALL_BLOCKS ? 3 : rows;
    w.scale_cols = format == F8_BLOCKS ? 128 : format == F8_SMALL_BLOCKS ? 96 : cols;
    n_scales = (size_t)((rows + w.scale_rows - 1) / w.scale_rows) * (size_t)((cols + w.scale_cols - 1) / w.scale_cols);
    w.scale = scales = need(n_scales * sizeof *scales + 1 + n, 1);
    w.data = data = (uint8_t *)(scales + n_scales) + 1;
    for (size_t i = 0; i < n_scales; i++)
        scales[i] = scale * uniform(0.25f, 1.75f) / 188;
    for (size_t i = 0; i < n; i++)
        data[i] = (uint8_t)(below(127) | below(2) << 7);
    return w;
}

void free_weight(const struct dsv2i_weight *w)
{
    free(w->dtype == DSV2I_F8_E4M3 ? (void *)(uintptr_t)w->scale : (char *)(uintptr_t)w->data - dsv2i_dtype_size(w->dtype));
}

struct dsv2i_weight make_weight(int dtype, int rows, int cols, float scale)
{
    size_t n = (size_t)rows * (size_t)cols;
    struct dsv2i_weight w = { .dtype = dtype, .rows = rows, .cols = cols };
    char *block, *data;

    if (dtype >= DSV2I_F8_E4M3)
        return make_fp8(dtype, rows, cols, scale);
    /* Checkpoints align an element to its own size and to no more; nothing may be read behind the last. */
    block = need(n + 1, dsv2i_dtype_size(dtype));
    data = block + dsv2i_dtype_size(dtype);

    for (size_t i = 0; i < n; i++) {
        float f = uniform(-scale, scale);
        uint32_t bits;
        uint16_t half;

        memcpy(&bits, &f, sizeof bits);
        if (dtype == DSV2I_F32)
            memcpy(data + 4 * i, &f, sizeof f);
        else if (dtype == DSV2I_BF16)
            memcpy(data + 2 * i, (half = (uint16_t)(bits >> 16), &half), sizeof half);
        else { /* exponent and mantissa cut; below the normal range a made-up subnormal */
            int e = (int)(bits >> 23 & 0xFF) - 112;

            half = (uint16_t)(bits >> 16 & 0x8000) | (uint16_t)(e > 0 ? (e << 10 | (bits >> 13 & 0x3FF)) : (bits & 0x3FF));
            memcpy(data + 2 * i, &half, sizeof half);
        }
    }
    w.data = data;
    return w;
}

void expect(int ok, const char *name, const char *format, ...)
{
    va_list args;

    n_checks++;
    if (ok)
        return;
    n_failed++;
    printf("FAILED %s: ", name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

void close_to(const char *name, const float *got, const double *want, size_t n, double tolerance)
{
    double square = 0, dot = 0, got_square = 0, worst = -1, rms;
    size_t at = 0;

    for (size_t i = 0; i < n; i++) {
        square += want[i] * want[i];
        got_square += (double)got[i] * (double)got[i];
        dot += want[i] * (double)got[i];
    }
    rms = sqrt(square / (double)n);
    for (size_t i = 0; i < n; i++) {
        double error = fabs((double)got[i] - want[i]) / (fmax(fabs(want[i]), rms) + 1e-30);

        if (!(error <= worst)) { /* a NaN is the worst and stays */
            worst = error;
            at = i;
        }
        if (isnan(error))
            break;
    }
    expect(worst <= tolerance, name, "error %.3g at %zu: %.9g for %.9g", worst, at, (double)got[at], want[at]);
    expect(square == 0 || 1 - dot / sqrt(square * got_square) <= tolerance * tolerance * 100 + 1e-14, name, "1 - cosine %.3g",
           1 - dot / sqrt(square * got_square));
}

void same_bits(const char *name, const float *got, const float *want, size_t n)
{
    size_t i = 0;

    while (i < n && memcmp(got + i, want + i, sizeof *got) == 0)
        i++;
    expect(i == n, name, "bits differ at %zu: %.9g for %.9g", i, (double)got[i == n ? 0 : i], (double)want[i == n ? 0 : i]);
}

#define GUARD 16

void check_rows(const struct rows_case *c)
{
    size_t total = (size_t)c->n * (size_t)c->dim;
    float *y = need(total + GUARD, sizeof *y), *first = need(total, sizeof *y);
    int32_t *zero = need((size_t)c->n, sizeof *zero);
    const struct dsv2i_seq seq = { .page = NULL };
    char name[128];
    int before = n_failed;

    for (int i = 0; i < n_variants; i++)
        for (int cut = 0; cut < 2; cut++) {
            const struct variant *v = &variants[i];
            struct dsv2i_backend *be = v->be;

            snprintf(name, sizeof name, "%s, %s%s", c->name, variant_name(v), cut ? ", rows cut" : "");
            memset(y, 0xFF, (total + GUARD) * sizeof *y);
            if (c->start)
                memcpy(y, c->start, total * sizeof *y);
            for (int row = 0, n; row < c->n; row += n) {
                struct dsv2i_batch batch = { .n_seqs = 1, .pos = zero, .seq = zero, .seqs = &seq };

                /* Every tile height occurs among the pieces. */
                n = cut ? 1 + (row * 5 + v->threads) % 7 : c->n;
                n = n < c->n - row ? n : c->n - row;
                batch.n_rows = n;
                batch.token = c->token ? c->token + row : zero;
                expect(be->op->reserve(be, c->shape, n) == 0, name, "no scratch");
                poison(be);
                be->op->begin(be, c->shape, &batch);
                c->run(be, c->arg, y + (size_t)row * (size_t)c->dim, row, n);
                expect(be->op->finish(be) == 0, name, "finish");
            }
            for (int g = 0; g < GUARD; g++)
                expect(y[total + (size_t)g] != y[total + (size_t)g], name, "wrote beyond the end");
            if (v->first && !cut) {
                close_to(name, y, c->want, total, c->tolerance);
                memcpy(first, y, total * sizeof *y);
            }
            same_bits(name, y, first, total);
        }
    printf("%-52s %s\n", c->name, n_failed == before ? "ok" : "FAILED");
    free(y);
    free(first);
    free(zero);
}
