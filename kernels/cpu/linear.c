/* y = x W^T, and the block of it that all matrix products are made of.
 *
 * A task is a run of weight rows and goes over all x rows.  Few rows (decode): the weights are converted in registers and read
 * once, at memory speed.  More rows: 16 weight rows x 512 columns are converted to an fp32 panel that stays in the first-level cache
 * while 64 rows use it; their partial sums (16 lanes for each result) wait in the second-level cache for the next 512 columns.
 * Both ways add the same products in the same order.
 *
 * SPDX-License-Identifier: MIT */
#include "cpu.h"

#define DIRECT_ROWS 4 /* up to here without a panel */

/* Scratch of a thread: panel, partial sums, two output blocks. */
enum {
    PANEL = PANEL_ROWS * PANEL_COLS,
    SUMS = BLOCK_ROWS * PANEL_ROWS * MAX_LANES,
    OUT = BLOCK_ROWS * PANEL_ROWS
};

size_t dsv2i_block_floats(void)
{
    return PANEL + SUMS + 2 * OUT;
}

float *dsv2i_thread_out(const struct dsv2i_cpu *be, int32_t thread, int32_t which)
{
    return dsv2i_thread_scratch(be, thread) + PANEL + SUMS + which * OUT;
}

static void find_rows(const float *x[TILE_ROWS], const struct dsv2i_rows *rows, int32_t i, int32_t m, int32_t k0)
{
    for (int32_t r = 0; r < m; r++)
        x[r] = rows->x + (size_t)(rows->index ? rows->index[i + r] : i + r) * rows->ld + k0;
}

void dsv2i_block(const struct dsv2i_cpu *be, int32_t thread, float *out, const struct dsv2i_rows *rows, int32_t i0, int32_t m,
                 const struct dsv2i_weight *w, int32_t j0, int32_t n)
{
    const struct dsv2i_inner *in = &be->inner;
    int32_t n_panel = dsv2i_ceil_div(n, TILE_ROWS) * TILE_ROWS, sums_row = PANEL_ROWS * in->lanes;
    const char *weights = dsv2i_weight_row(w, j0);
    float *panel = dsv2i_thread_scratch(be, thread), *sums = panel + PANEL;
    size_t size = dsv2i_dtype_size(w->dtype), cols = (size_t)w->cols;
    const float *x[TILE_ROWS];

    if (m <= DIRECT_ROWS) {
        find_rows(x, rows, i0, m, 0);
        in->dot(out, PANEL_ROWS, x, m, weights, w->dtype, cols, n, w->cols);
        return;
    }
    for (int32_t k0 = 0; k0 < w->cols; k0 += PANEL_COLS) {
        int32_t k = dsv2i_min(PANEL_COLS, w->cols - k0);

        for (int32_t j = 0; j < n; j++)
            in->widen(panel + j * PANEL_COLS, weights + ((size_t)j * cols + (size_t)k0) * size, w->dtype, (size_t)k);
        memset(panel + n * PANEL_COLS, 0, (size_t)(n_panel - n) * PANEL_COLS * sizeof *panel);
        for (int32_t i = 0; i < m; i += TILE_ROWS) {
            find_rows(x, rows, i0 + i, dsv2i_min(TILE_ROWS, m - i), k0);
            in->tile(sums + i * sums_row, x, dsv2i_min(TILE_ROWS, m - i), panel, n_panel, k, k0 == 0);
        }
    }
    for (int32_t i = 0; i < m; i++)
        in->reduce(out + i * PANEL_ROWS, sums + i * sums_row, n_panel);
}

int32_t dsv2i_task_columns(const struct dsv2i_cpu *be, int32_t columns, int32_t copies)
{
    int32_t panels = dsv2i_ceil_div(columns, PANEL_ROWS), tasks = dsv2i_ceil_div(8 * be->pool.n_threads, copies);

    return dsv2i_max(1, panels / tasks) * PANEL_ROWS;
}

struct linear {
    float *y;
    struct dsv2i_rows x;
    const struct dsv2i_weight *w;
    int32_t n, columns;
    int accumulate;
};

static void linear_task(struct dsv2i_cpu *be, const void *arg, int32_t task, int32_t thread)
{
    const struct linear *a = arg;
    int32_t begin = task * a->columns, end = dsv2i_min(a->w->rows, begin + a->columns);
    float *out = dsv2i_thread_out(be, thread, 0);

    for (int32_t i0 = 0; i0 < a->n; i0 += BLOCK_ROWS)
        for (int32_t j0 = begin; j0 < end; j0 += PANEL_ROWS) {
            int32_t m = dsv2i_min(BLOCK_ROWS, a->n - i0), n = dsv2i_min(PANEL_ROWS, end - j0);

            dsv2i_block(be, thread, out, &a->x, i0, m, a->w, j0, n);
            for (int32_t i = 0; i < m; i++) {
                float *y = a->y + (size_t)(i0 + i) * (size_t)a->w->rows + j0;

                for (int32_t j = 0; j < n; j++)
                    y[j] = a->accumulate ? y[j] + out[i * PANEL_ROWS + j] : out[i * PANEL_ROWS + j];
            }
        }
}

void dsv2i_op_linear(struct dsv2i_backend *base, float *y, const float *x, const struct dsv2i_weight *w, int32_t n,
                     int accumulate)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);
    struct linear a = { y, { x, (size_t)w->cols, NULL }, w, n, dsv2i_task_columns(be, w->rows, 1), accumulate };

    dsv2i_pool_run(be, linear_task, &a, dsv2i_ceil_div(w->rows, a.columns), (double)n * w->rows * w->cols);
}
