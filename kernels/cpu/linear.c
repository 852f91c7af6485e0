/* y = x W^T, and the block of it that all matrix products are made of.
 *
 * A task is a run of weight rows and goes over all x rows, 64 x 32 at a time: such a piece of W is read from memory
 * once and stays in the second-level cache while the rows pass, four by four.  Weights become fp32 in registers, on
 * their way to a tile of 4 x 4 sums, which was faster than converting them to a buffer first.  From 64 rows on, Zen 5
 * reaches 72% of its multiply-add peak on (12288, 5120), 70% with both cores of the machine.
 *
 * SPDX-License-Identifier: MIT */
#include "cpu.h"

#define OUT_FLOATS (BLOCK_ROWS * BLOCK_COLS)
#define WIDE_ROWS 8   /* weight rows that become fp32 together, */
#define WIDE_FROM 16  /* from so many x rows on */

/* Columns of the widest weight. */
static size_t most_columns(const struct dsv2i_shape *s)
{
    const size_t columns[] = {
        (size_t)s->hidden_size, (size_t)s->q_lora_rank, (size_t)s->kv_lora_rank, (size_t)s->intermediate_size, (size_t)s->moe_intermediate_size,
        dsv2i_size_mul((size_t)s->num_attention_heads, (size_t)s->v_head_dim),
        dsv2i_size_mul((size_t)s->n_shared_experts, (size_t)s->moe_intermediate_size),
    };
    size_t most = 0;

    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        most = columns[i] > most ? columns[i] : most;
    return most;
}

/* Two output blocks, then WIDE_ROWS weight rows. */
size_t dsv2i_block_floats(const struct dsv2i_shape *shape)
{
    return dsv2i_size_add(2 * OUT_FLOATS, dsv2i_size_mul(WIDE_ROWS, most_columns(shape)));
}

float *dsv2i_thread_out(const struct dsv2i_cpu *be, int32_t thread, int32_t which)
{
    return dsv2i_thread_scratch(be, thread) + which * OUT_FLOATS;
}

static void block(const struct dsv2i_cpu *be, float *out, const struct dsv2i_rows *rows, int32_t i0, int32_t m,
                  const struct dsv2i_weight *w, int32_t j0, int32_t n)
{
    const float *x[TILE_ROWS];

    for (int32_t i = 0; i < m; i += TILE_ROWS) {
        int32_t n_rows = dsv2i_min(TILE_ROWS, m - i);

        for (int32_t r = 0; r < n_rows; r++) {
            int32_t row = i0 + i + r;

            x[r] = rows->x + (size_t)(rows->index ? rows->index[row] : row) * rows->ld;
        }
        be->inner.dot(out + i * BLOCK_COLS, BLOCK_COLS, x, n_rows, w, j0, n);
    }
}

void dsv2i_block(const struct dsv2i_cpu *be, int32_t thread, float *out, const struct dsv2i_rows *rows, int32_t i0, int32_t m,
                 const struct dsv2i_weight *w, int32_t j0, int32_t n)
{
    float *wide = dsv2i_thread_scratch(be, thread) + 2 * OUT_FLOATS;

    if (w->dtype != DSV2I_F8_E4M3 || m < WIDE_FROM) {
        block(be, out, rows, i0, m, w, j0, n);
        return;
    }
    /* A code costs several times what a 16-bit number does.  The results are the same bits. */
    for (int32_t j = 0; j < n; j += WIDE_ROWS) {
        int32_t n_wide = dsv2i_min(WIDE_ROWS, n - j);
        struct dsv2i_weight part = dsv2i_floats(wide, n_wide, w->cols);

        be->inner.widen(wide, w, j0 + j, n_wide);
        block(be, out + j, rows, i0, m, &part, 0, n_wide);
    }
}

int32_t dsv2i_task_columns(const struct dsv2i_cpu *be, int32_t columns, int32_t copies)
{
    int32_t blocks = dsv2i_ceil_div(columns, BLOCK_COLS), tasks = dsv2i_ceil_div(8 * be->pool.n_threads, copies);

    return dsv2i_max(1, blocks / tasks) * BLOCK_COLS;
}

struct linear {
    float *y;
    struct dsv2i_rows x;
    const struct dsv2i_weight *w;
    int32_t j0, rows; /* of the weight: the first, and how many */
    int32_t n, columns;
    int accumulate;
};

static void linear_task(struct dsv2i_cpu *be, const void *arg, int32_t task, int32_t thread)
{
    const struct linear *a = arg;
    int32_t begin = task * a->columns, end = dsv2i_min(a->rows, begin + a->columns);
    float *out = dsv2i_thread_out(be, thread, 0);

    for (int32_t i0 = 0; i0 < a->n; i0 += BLOCK_ROWS)
        for (int32_t j0 = begin; j0 < end; j0 += BLOCK_COLS) {
            int32_t m = dsv2i_min(BLOCK_ROWS, a->n - i0), n = dsv2i_min(BLOCK_COLS, end - j0);

            dsv2i_block(be, thread, out, &a->x, i0, m, a->w, a->j0 + j0, n);
            for (int32_t i = 0; i < m; i++) {
                float *y = a->y + (size_t)(i0 + i) * (size_t)a->rows + j0;

                for (int32_t j = 0; j < n; j++)
                    y[j] = a->accumulate ? y[j] + out[i * BLOCK_COLS + j] : out[i * BLOCK_COLS + j];
            }
        }
}

void dsv2i_linear_part(struct dsv2i_cpu *be, float *y, const float *x, const struct dsv2i_weight *w, int32_t j0, int32_t columns,
                       int32_t n, int accumulate)
{
    struct linear a = { y, { x, (size_t)w->cols, NULL }, w, j0, columns, n, dsv2i_task_columns(be, columns, 1), accumulate };

    dsv2i_pool_run(be, linear_task, &a, dsv2i_ceil_div(columns, a.columns), (double)n * columns * w->cols);
}

void dsv2i_op_linear(struct dsv2i_backend *base, float *y, const float *x, const struct dsv2i_weight *w, int32_t n,
                     int accumulate)
{
    dsv2i_linear_part(dsv2i_cpu_of(base), y, x, w, 0, w->rows, n, accumulate);
}
