/* The routed experts.  (row, slot) pairs are sorted by expert, so that each expert's weights are read once; their
 * results go to a place per slot and are added in slot order: what a row gets does not depend on its company.
 *
 * SPDX-License-Identifier: MIT */
#include "cpu.h"

/* Pairs of rows and slots that go through together, and their rows. */
static int32_t rows_together(int32_t top_k, int32_t n)
{
    return dsv2i_min(n, dsv2i_max(1, MOE_SLOTS / top_k));
}

size_t dsv2i_moe_experts_floats(const struct dsv2i_shape *shape, int32_t n_rows)
{
    size_t slots, per_slot;

    if (shape->n_routed_experts == 0)
        return 0;
    slots = (size_t)rows_together(shape->num_experts_per_tok, n_rows) * (size_t)shape->num_experts_per_tok;
    per_slot = dsv2i_size_add((size_t)shape->hidden_size, (size_t)shape->moe_intermediate_size + 2);
    return dsv2i_size_add(dsv2i_size_mul(slots, per_slot), 2 * (size_t)shape->n_routed_experts + 32);
}

struct experts {
    float *y, *h, *slot;     /* (n, hidden), (pairs in expert order, inter), (pairs in slot order, hidden) */
    const float *x, *weight;
    const struct dsv2i_ffn *ffn;
    int32_t *pair, *row;     /* (pairs): row * top_k + slot, and row, in expert order */
    int32_t *first, *active; /* (experts + 1): first pair of each; experts that have any */
    int32_t top_k, columns, n_pieces;
};

static void up_task(struct dsv2i_cpu *be, const void *arg, int32_t task, int32_t thread)
{
    const struct experts *a = arg;
    int32_t e = a->active[task / a->n_pieces], j0 = task % a->n_pieces * a->columns, first = a->first[e];
    const struct dsv2i_ffn *w = &a->ffn[e];
    struct dsv2i_rows rows = { a->x, (size_t)w->gate.cols, a->row + first };

    dsv2i_gate_up(be, thread, a->h + (size_t)first * (size_t)w->gate.rows, &rows, a->first[e + 1] - first, w, j0,
                  dsv2i_min(w->gate.rows, j0 + a->columns));
}

static void down_task(struct dsv2i_cpu *be, const void *arg, int32_t task, int32_t thread)
{
    const struct experts *a = arg;
    int32_t e = a->active[task / a->n_pieces], j0 = task % a->n_pieces * a->columns, first = a->first[e];
    const struct dsv2i_weight *w = &a->ffn[e].down;
    struct dsv2i_rows rows = { a->h + (size_t)first * (size_t)w->cols, (size_t)w->cols, NULL };
    int32_t n = a->first[e + 1] - first, j1 = dsv2i_min(w->rows, j0 + a->columns);
    float *out = dsv2i_thread_out(be, thread, 0);

    for (int32_t i0 = 0; i0 < n; i0 += BLOCK_ROWS)
        for (int32_t j = j0; j < j1; j += BLOCK_COLS) {
            int32_t m = dsv2i_min(BLOCK_ROWS, n - i0), columns = dsv2i_min(BLOCK_COLS, j1 - j);

            dsv2i_block(be, thread, out, &rows, i0, m, w, j, columns);
            for (int32_t i = 0; i < m; i++)
                memcpy(a->slot + (size_t)a->pair[first + i0 + i] * (size_t)w->rows + j, out + i * BLOCK_COLS,
                       (size_t)columns * sizeof *out);
        }
}

static void sum_task(struct dsv2i_cpu *be, const void *arg, int32_t row, int32_t thread)
{
    const struct experts *a = arg;
    const float one = 1;
    size_t dim = (size_t)a->ffn->down.rows, pair = (size_t)row * (size_t)a->top_k;
    struct dsv2i_weight slots = dsv2i_floats(a->slot + pair * dim, a->top_k, a->ffn->down.rows);

    be->inner.axpy(a->y + (size_t)row * dim, dim, &one, a->weight + pair, 0, &slots, 0, 1, a->top_k, a->ffn->down.rows);
}

/* Counting sort of the pairs by expert; returns how many experts have any. */
static int32_t sort_pairs(struct experts *a, const int32_t *idx, int32_t n_pairs, int32_t n_experts)
{
    int32_t n_active = 0;

    memset(a->first, 0, ((size_t)n_experts + 1) * sizeof *a->first);
    for (int32_t i = 0; i < n_pairs; i++)
        a->first[idx[i] + 1]++;
    for (int32_t e = 0; e < n_experts; e++) {
        if (a->first[e + 1])
            a->active[n_active++] = e;
        a->first[e + 1] += a->first[e];
    }
    for (int32_t i = 0; i < n_pairs; i++) {
        int32_t to = a->first[idx[i]]++;

        a->pair[to] = i;
        a->row[to] = i / a->top_k;
    }
    /* Each entry has moved on to where the next expert begins. */
    memmove(a->first + 1, a->first, (size_t)n_experts * sizeof *a->first);
    a->first[0] = 0;
    return n_active;
}

static void run_rows(struct dsv2i_cpu *be, struct experts *a, const int32_t *idx, int32_t n)
{
    int32_t n_active = sort_pairs(a, idx, n * a->top_k, be->shape->n_routed_experts);
    int32_t inter = a->ffn->gate.rows, hidden = a->ffn->down.rows;
    double work = (double)n * a->top_k * inter * hidden;

    a->columns = dsv2i_task_columns(be, inter, n_active);
    a->n_pieces = dsv2i_ceil_div(inter, a->columns);
    dsv2i_pool_run(be, up_task, a, n_active * a->n_pieces, 2 * work);
    a->columns = dsv2i_task_columns(be, hidden, n_active);
    a->n_pieces = dsv2i_ceil_div(hidden, a->columns);
    dsv2i_pool_run(be, down_task, a, n_active * a->n_pieces, work);
    dsv2i_pool_run(be, sum_task, a, n, (double)n * a->top_k * hidden);
}

void dsv2i_op_moe_experts(struct dsv2i_backend *base, float *y, const float *x, const struct dsv2i_ffn *experts,
                          const int32_t *idx, const float *weight, int32_t n, int32_t top_k)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);
    int32_t together = rows_together(top_k, n);
    size_t slots = (size_t)together * (size_t)top_k, hidden = (size_t)experts->gate.cols;
    float *scratch = (float *)(be->scratch + be->plan.shared);
    struct experts a = { .ffn = experts, .top_k = top_k };

    a.h = scratch;
    a.slot = a.h + slots * (size_t)experts->gate.rows;
    a.pair = (int32_t *)(a.slot + slots * hidden);
    a.row = a.pair + slots;
    a.first = a.row + slots;
    a.active = a.first + be->shape->n_routed_experts + 1;
    for (int32_t i = 0; i < n; i += together) {
        a.y = y + (size_t)i * hidden;
        a.x = x + (size_t)i * hidden;
        a.weight = weight + (size_t)i * (size_t)top_k;
        run_rows(be, &a, idx + (size_t)i * (size_t)top_k, dsv2i_min(together, n - i));
    }
}
