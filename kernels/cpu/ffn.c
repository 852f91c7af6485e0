/* y += down(silu(gate x) * up x).  The hidden activation h is shared scratch; gate and up run together.
 * SPDX-License-Identifier: MIT */
#include "cpu.h"

void dsv2i_gate_up(const struct dsv2i_cpu *be, int32_t thread, float *h, const struct dsv2i_rows *rows, int32_t n,
                   const struct dsv2i_ffn *w, int32_t j0, int32_t j1)
{
    float *gate = dsv2i_thread_out(be, thread, 0), *up = dsv2i_thread_out(be, thread, 1);

    for (int32_t i0 = 0; i0 < n; i0 += BLOCK_ROWS)
        for (int32_t j = j0; j < j1; j += BLOCK_COLS) {
            int32_t m = dsv2i_min(BLOCK_ROWS, n - i0), columns = dsv2i_min(BLOCK_COLS, j1 - j);

            dsv2i_block(be, thread, gate, rows, i0, m, &w->gate, j, columns);
            dsv2i_block(be, thread, up, rows, i0, m, &w->up, j, columns);
            for (int32_t i = 0; i < m; i++)
                be->inner.silu_mul(h + (size_t)(i0 + i) * (size_t)w->gate.rows + j, gate + i * BLOCK_COLS,
                                   up + i * BLOCK_COLS, columns);
        }
}

struct ffn {
    float *h;
    struct dsv2i_rows x;
    const struct dsv2i_ffn *w;
    int32_t n, columns;
};

static void gate_up_task(struct dsv2i_cpu *be, const void *arg, int32_t task, int32_t thread)
{
    const struct ffn *a = arg;
    int32_t begin = task * a->columns;

    dsv2i_gate_up(be, thread, a->h, &a->x, a->n, a->w, begin, dsv2i_min(a->w->gate.rows, begin + a->columns));
}

void dsv2i_op_ffn(struct dsv2i_backend *base, float *y, const float *x, const struct dsv2i_ffn *w, int32_t n)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);
    struct ffn a = { (float *)(be->scratch + be->plan.shared), { x, (size_t)w->gate.cols, NULL }, w, n,
                     dsv2i_task_columns(be, w->gate.rows, 1) };

    dsv2i_pool_run(be, gate_up_task, &a, dsv2i_ceil_div(w->gate.rows, a.columns), 2.0 * n * w->gate.rows * w->gate.cols);
    dsv2i_op_linear(base, y, a.h, &w->down, n, 1);
}

size_t dsv2i_ffn_floats(const struct dsv2i_shape *shape, int32_t n_rows)
{
    size_t shared = dsv2i_size_mul((size_t)shape->n_shared_experts, (size_t)shape->moe_intermediate_size);
    size_t dense = (size_t)shape->intermediate_size;

    return dsv2i_size_mul(shared > dense ? shared : dense, (size_t)n_rows);
}
