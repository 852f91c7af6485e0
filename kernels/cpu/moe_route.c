/* Which experts a row goes to: softmax over all experts in fp32, the best groups by their best expert
 * (group_limited_greedy, the paper's device-limited routing), the best experts inside.  Weights are the softmax
 * values: not normalized again unless the config asks, and then, as in the published code, not scaled either.
 *
 * Excluded experts are passed over, not given 0: a kept expert may have a probability of 0.
 *
 * SPDX-License-Identifier: MIT */
#include "cpu.h"

/* Scratch of a call: logits (n, experts), then per row the groups' maxima, and marks for experts and groups. */
static size_t row_floats(size_t n_experts)
{
    return dsv2i_size_mul(4, n_experts);
}

size_t dsv2i_moe_route_floats(const struct dsv2i_shape *shape, int32_t n_rows)
{
    return dsv2i_size_mul(row_floats((size_t)shape->n_routed_experts), (size_t)n_rows);
}

/* First index of the greatest untaken value.  A NaN is never greater, so with NaNs it is still an index in range. */
static int32_t pick(const float *value, const int32_t *taken, int32_t n)
{
    int32_t best = -1;

    for (int32_t i = 0; i < n; i++)
        if (!taken[i] && (best < 0 || value[i] > value[best]))
            best = i;
    return best;
}

struct route {
    int32_t *idx;
    float *weight, *scratch;
    const struct dsv2i_route *route;
    int32_t n_rows, n_experts;
};

static void route_row(struct dsv2i_cpu *be, const void *arg, int32_t row, int32_t thread)
{
    const struct route *a = arg;
    const struct dsv2i_route *r = a->route;
    size_t n = (size_t)a->n_experts;
    float *p = a->scratch + (size_t)row * n, *best = a->scratch + ((size_t)a->n_rows + 3 * (size_t)row) * n;
    int32_t *taken = (int32_t *)(best + n), *kept = taken + n;
    int32_t *idx = a->idx + (size_t)row * (size_t)r->top_k, group_size = a->n_experts / r->n_group;
    float *weight = a->weight + (size_t)row * (size_t)r->top_k, max = -__builtin_inff(), sum = 0, corr, factor;

    be->inner.softmax(p, a->n_experts, 1.0f, &max, &sum, &corr);
    memset(kept, 0, n * sizeof *kept);
    for (int32_t g = 0; g < r->n_group; g++) {
        best[g] = p[g * group_size];
        for (int32_t e = 1; e < group_size; e++)
            if (p[g * group_size + e] > best[g])
                best[g] = p[g * group_size + e];
    }
    for (int32_t i = 0; i < r->topk_group; i++)
        kept[pick(best, kept, r->n_group)] = 1;
    for (int32_t e = 0; e < a->n_experts; e++)
        taken[e] = !kept[e / group_size];
    for (int32_t j = 0; j < r->top_k; j++) {
        idx[j] = pick(p, taken, a->n_experts);
        taken[idx[j]] = 1;
        weight[j] = p[idx[j]] / sum;
    }
    factor = r->routed_scaling_factor;
    if (r->norm_topk_prob && r->top_k > 1) {
        float total = 0;

        for (int32_t j = 0; j < r->top_k; j++)
            total += weight[j];
        factor = 1.0f / (total + 1e-20f);
    }
    for (int32_t j = 0; j < r->top_k; j++)
        weight[j] *= factor;
}

void dsv2i_op_moe_route(struct dsv2i_backend *base, int32_t *idx, float *weight, const float *x,
                        const struct dsv2i_weight *gate, const struct dsv2i_route *route, int32_t n)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);
    struct route a = { idx, weight, (float *)(be->scratch + be->plan.shared), route, n, gate->rows };

    dsv2i_op_linear(base, a.scratch, x, gate, n, 0);
    dsv2i_pool_run(be, route_row, &a, n, (double)n * gate->rows * (10 + route->top_k));
}
