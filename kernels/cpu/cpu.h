/* Inside the CPU backend: its state, the worker pool, and the table of inner loops that each instruction set fills.
 *
 * Every operation is written once, in plain C, over that table; only the table has versions.  An inner loop computes
 * each of its results in an order that depends on nothing but the lengths, so cutting the work anyhow (threads, tiles
 * of rows, tiles of weight rows, calls) leaves the same bits.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CPU_H
#define DSV2I_CPU_H

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "ops.h"

enum {
    TILE_ROWS = 4,     /* rows, and weight rows, that an inner loop holds in registers */
    BLOCK_ROWS = 64,   /* rows and weight rows of a piece of a product, */
    BLOCK_COLS = 32,   /* which stays in the second-level cache */
    ATTEND_TILE = 64,  /* rows x heads that share a pass over the keys */
    SCORE_COLUMNS = 4096, SCORE_ROWS = 256,
    MOE_SLOTS = 8192   /* rows x top_k taken through the experts together */
};

/* Inner loops. */
struct dsv2i_inner {
    /* dst (n, cols) = rows j0 .. j0+n-1 of w as fp32 */
    void (*widen)(float *dst, const struct dsv2i_weight *w, int32_t j0, int32_t n);
    /* y[i * ldy + j] = x[i] . row j0+j of w; m <= TILE_ROWS, any n.  Partial sums, one per lane of a vector, take every
     * lanes-th product in ascending order and are joined by one fixed tree */
    void (*dot)(float *y, size_t ldy, const float *const *x, int32_t m, const struct dsv2i_weight *w, int32_t j0, int32_t n);
    /* y[i] = scale[i] y[i] + sum over s, ascending, of p[i * ldp + s] times row s0+s of c; the first cols elements of
     * rows.  scale NULL: y starts from 0 */
    void (*axpy)(float *y, size_t ldy, const float *scale, const float *p, size_t ldp, const struct dsv2i_weight *c, int32_t s0,
                 int32_t m, int32_t n, int32_t cols);
    /* One block of an online softmax: v = scale s; s = exp(v - new max); sum = old sum * corr + sum of s */
    void (*softmax)(float *s, int32_t n, float scale, float *max, float *sum, float *corr);
    /* h = g / (1 + exp(-g)) * u */
    void (*silu_mul)(float *h, const float *g, const float *u, int32_t n);
    void (*rms_norm)(float *y, const float *x, const float *w, int32_t n, float eps);
    /* dst (n, rank + rope) = n records of a page of a quantized type; 6BIT: y instead of c (kv_page.h).  The same bits on every
     * instruction set */
    void (*kv_read)(float *dst, const void *records, int32_t kv_type, int32_t rank, int32_t rope, int32_t n);
    /* x = H D x and y = D H y (rank): where 6BIT keeps latents, and back.  The same bits on every instruction set */
    void (*rotate)(float *x, int32_t rank);
    void (*rotate_back)(float *y, int32_t rank);
};

extern const struct dsv2i_inner dsv2i_inner_ref;
#ifdef DSV2I_X86
extern const struct dsv2i_inner dsv2i_inner_avx2, dsv2i_inner_avx512;
#endif

struct dsv2i_cpu;
typedef void (*dsv2i_task)(struct dsv2i_cpu *be, const void *arg, int32_t task, int32_t thread);

/* n_threads - 1 workers; the caller of run is thread 0. */
struct dsv2i_pool {
    int32_t n_threads, n_started;
    double min_work;                /* multiply-adds below which run stays on its caller */
    pthread_t *threads;             /* (n_threads - 1) */
    struct dsv2i_worker *workers;   /* (n_threads - 1) */
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    atomic_int left;                /* tasks not yet taken; taken from the end */
    atomic_int unfinished, sleeping, waiting, stop;
    dsv2i_task fn;
    const void *arg;
};

struct dsv2i_worker {
    struct dsv2i_cpu *be;
    int32_t thread;
};

/* Where things lie in the scratch block, in bytes from its beginning. */
struct dsv2i_plan {
    size_t rope, seqs, shared, threads, thread_bytes, total;
};

struct dsv2i_cpu {
    struct dsv2i_backend base;
    struct dsv2i_hooks hooks;
    struct dsv2i_inner inner;
    int32_t level;
    struct dsv2i_pool pool;
    char *scratch;
    size_t scratch_bytes;
    /* the step */
    const struct dsv2i_shape *shape;
    const struct dsv2i_batch *batch;
    struct dsv2i_plan plan;
};

/* x rows of a product: row i is x + index[i] * ld, or x + i * ld when index is NULL. */
struct dsv2i_rows {
    const float *x;
    size_t ld;
    const int32_t *index;
};

static inline struct dsv2i_cpu *dsv2i_cpu_of(struct dsv2i_backend *be)
{
    return (struct dsv2i_cpu *)be;
}

static inline float dsv2i_bits_f32(uint32_t u)
{
    float f;

    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint32_t dsv2i_f32_bits(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    return u;
}

static inline int32_t dsv2i_min(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline int32_t dsv2i_max(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

static inline int32_t dsv2i_ceil_div(int32_t a, int32_t b)
{
    return a / b + (a % b != 0);
}

/* A row of a weight, and its scales: one for every scale_cols elements. */
static inline const void *dsv2i_weight_row(const struct dsv2i_weight *w, int32_t row)
{
    return (const char *)w->data + (size_t)row * (size_t)w->cols * dsv2i_dtype_size(w->dtype);
}

static inline const float *dsv2i_weight_scales(const struct dsv2i_weight *w, int32_t row)
{
    return w->scale + (size_t)(row / w->scale_rows) * (size_t)dsv2i_ceil_div(w->cols, w->scale_cols);
}

/* fp32 rows as an operand of inner loops. */
static inline struct dsv2i_weight dsv2i_floats(const float *x, int32_t rows, int32_t cols)
{
    return (struct dsv2i_weight){ .dtype = DSV2I_F32, .rows = rows, .cols = cols, .data = x };
}

int dsv2i_pool_open(struct dsv2i_cpu *be, int32_t n_threads);
void dsv2i_pool_close(struct dsv2i_cpu *be);
/* fn for tasks 0..n_tasks-1, on all threads unless the work (multiply-adds in all) is too little to share. */
void dsv2i_pool_run(struct dsv2i_cpu *be, dsv2i_task fn, const void *arg, int32_t n_tasks, double work);

/* Scratch of a thread: first what block below uses, then free for the operation from dsv2i_thread_free on. */
float *dsv2i_thread_scratch(const struct dsv2i_cpu *be, int32_t thread);
float *dsv2i_thread_free(const struct dsv2i_cpu *be, int32_t thread);
size_t dsv2i_block_floats(const struct dsv2i_shape *shape);

/* What each operation needs, in floats: of its own for one thread, and shared.  Sums saturate at SIZE_MAX. */
size_t dsv2i_attend_thread_floats(const struct dsv2i_shape *shape, int32_t n_rows);
size_t dsv2i_ffn_floats(const struct dsv2i_shape *shape, int32_t n_rows);
size_t dsv2i_moe_route_floats(const struct dsv2i_shape *shape, int32_t n_rows);
size_t dsv2i_moe_experts_floats(const struct dsv2i_shape *shape, int32_t n_rows);
size_t dsv2i_score_floats(const struct dsv2i_shape *shape, int32_t n_rows);
size_t dsv2i_size_mul(size_t a, size_t b);
size_t dsv2i_size_add(size_t a, size_t b);

/* out (m, BLOCK_COLS) = rows i0 .. i0+m-1 times weight rows j0 .. j0+n-1; m <= BLOCK_ROWS, n <= BLOCK_COLS. */
void dsv2i_block(const struct dsv2i_cpu *be, int32_t thread, float *out, const struct dsv2i_rows *rows, int32_t i0, int32_t m,
                 const struct dsv2i_weight *w, int32_t j0, int32_t n);
/* The two output blocks that a thread may use for it. */
float *dsv2i_thread_out(const struct dsv2i_cpu *be, int32_t thread, int32_t which);
/* Weight rows per task, a multiple of BLOCK_COLS: a few tasks for each thread when `copies` such matrices are run at
 * once. */
int32_t dsv2i_task_columns(const struct dsv2i_cpu *be, int32_t columns, int32_t copies);

/* h (n, ld = columns of w->gate) for weight rows j0..j1-1 of gate and up. */
void dsv2i_gate_up(const struct dsv2i_cpu *be, int32_t thread, float *h, const struct dsv2i_rows *rows, int32_t n,
                   const struct dsv2i_ffn *w, int32_t j0, int32_t j1);

void dsv2i_op_embed(struct dsv2i_backend *be, float *x, const struct dsv2i_weight *table);
void dsv2i_op_rms_norm(struct dsv2i_backend *be, float *y, int32_t ldy, const float *x, int32_t ldx, const float *w,
                       int32_t n, int32_t dim, float eps);
void dsv2i_op_linear(struct dsv2i_backend *be, float *y, const float *x, const struct dsv2i_weight *w, int32_t n,
                     int accumulate);
/* The same for weight rows j0 .. j0+columns-1 alone: y (n, columns). */
void dsv2i_linear_part(struct dsv2i_cpu *be, float *y, const float *x, const struct dsv2i_weight *w, int32_t j0, int32_t columns,
                       int32_t n, int accumulate);
void dsv2i_op_mla_prepare(struct dsv2i_backend *be, float *q, const float *kva, const struct dsv2i_mla *mla, int32_t layer);
void dsv2i_op_mla_attend(struct dsv2i_backend *be, float *o, const float *q, const struct dsv2i_mla *mla, int32_t layer);
void dsv2i_op_ffn(struct dsv2i_backend *be, float *y, const float *x, const struct dsv2i_ffn *w, int32_t n);
void dsv2i_op_moe_route(struct dsv2i_backend *be, int32_t *idx, float *weight, const float *x,
                        const struct dsv2i_weight *gate, const struct dsv2i_route *route, int32_t n);
void dsv2i_op_moe_experts(struct dsv2i_backend *be, float *y, const float *x, const struct dsv2i_ffn *experts,
                          const int32_t *idx, const float *weight, int32_t n, int32_t top_k);
void dsv2i_op_score(struct dsv2i_backend *be, struct dsv2i_score *out, const float *x, const struct dsv2i_weight *head,
                    const int32_t *target, int32_t n);

#endif
