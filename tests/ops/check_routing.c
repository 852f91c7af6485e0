/* moe_route: the model's rule, its ties, and that three wrong rules seen in other engines give something else.
 * SPDX-License-Identifier: MIT */
#include <math.h>

#include "harness.h"

static char name[160];

static struct dsv2i_shape shape = {
    .num_hidden_layers = 1, .num_attention_heads = 1, .kv_lora_rank = 1, .qk_nope_head_dim = 1, .v_head_dim = 1,
    .vocab_size = 1, .intermediate_size = 1,
};

struct route_arg {
    const float *x;
    const struct dsv2i_weight *gate;
    const struct dsv2i_route *route;
    int indices; /* which half of the result */
};

static void run_route(struct dsv2i_backend *be, const void *arg, float *y, int row, int n)
{
    const struct route_arg *a = arg;
    int32_t *idx = need((size_t)(n * a->route->top_k), sizeof *idx);
    float *weight = need((size_t)(n * a->route->top_k), sizeof *weight);

    be->op->moe_route(be, idx, weight, a->x + (size_t)row * (size_t)a->gate->cols, a->gate, a->route, n);
    for (int i = 0; i < n * a->route->top_k; i++)
        y[i] = a->indices ? (float)idx[i] : weight[i];
    free(idx);
    free(weight);
}

static void check_route(int dtype, int n, int hidden, int n_experts, struct dsv2i_route r)
{
    struct dsv2i_weight gate = make_weight(dtype, n_experts, hidden, 2 / sqrtf((float)hidden));
    float *x = normals((size_t)(n * hidden), 1);
    double *xd = doubles(x, (size_t)(n * hidden)), *want = need((size_t)(n * r.top_k), sizeof *want);
    double *want_idx = need((size_t)(n * r.top_k), sizeof *want), *p = need((size_t)n_experts, sizeof *p);
    double *logits = need((size_t)n_experts, sizeof *logits);
    int *idx = need((size_t)r.top_k, sizeof *idx);
    struct route_arg arg = { x, &gate, &r, 0 };
    struct rows_case c = { name, &shape, n, r.top_k, want, 3e-6, NULL, NULL, run_route, &arg };

    shape.hidden_size = hidden;
    shape.n_routed_experts = n_experts;
    shape.num_experts_per_tok = r.top_k;
    for (int i = 0; i < n; i++) {
        ref_linear(logits, xd + i * hidden, &gate);
        ref_softmax(p, logits, n_experts);
        ref_route(idx, want + i * r.top_k, p, n_experts, &r);
        for (int j = 0; j < r.top_k; j++)
            want_idx[i * r.top_k + j] = idx[j];
    }
    snprintf(name, sizeof name, "moe_route %d of %d, %d of %d groups%s", r.top_k, n_experts, r.topk_group, r.n_group,
             r.norm_topk_prob ? ", norm" : "");
    check_rows(&c);
    strcat(name, ", indices");
    arg.indices = 1;
    c.want = want_idx;
    c.tolerance = 0;
    check_rows(&c);
    free_weight(&gate);
    free(x);
    free(xd);
    free(want);
    free(want_idx);
    free(p);
    free(logits);
    free(idx);
}

/* Route one row with given logits: the gate is the identity. */
static void route_logits(struct dsv2i_backend *be, int32_t *idx, float *weight, const float *logits, int n,
                         const struct dsv2i_route *r)
{
    static float eye[32 * 32];
    struct dsv2i_weight gate = { .dtype = DSV2I_F32, .rows = n, .cols = n, .data = eye };
    int32_t zero = 0;
    const struct dsv2i_seq seq = { .page = NULL };
    const struct dsv2i_batch batch = { .n_rows = 1, .n_seqs = 1, .token = &zero, .pos = &zero, .seq = &zero, .seqs = &seq };

    for (int i = 0; i < n * n; i++)
        eye[i] = i % (n + 1) == 0;
    shape.hidden_size = shape.n_routed_experts = n;
    shape.num_experts_per_tok = r->top_k;
    expect(be->op->reserve(be, &shape, 1) == 0, "route", "no scratch");
    poison(be);
    be->op->begin(be, &shape, &batch);
    be->op->moe_route(be, idx, weight, logits, &gate, r, 1);
    be->op->finish(be);
}

/* The greatest untaken entries of v inside group (or everywhere, size = n), n_best of them marked in chosen. */
static void take(int *chosen, const double *v, int from, int size, int n_best)
{
    for (int k = 0; k < n_best; k++) {
        int best = -1;

        for (int e = from; e < from + size; e++)
            if (!chosen[e] && (best < 0 || v[e] > v[best]))
                best = e;
        chosen[best] = 1;
    }
}

static int same_set(const int32_t *idx, int top_k, const int *chosen)
{
    int same = 0;

    for (int j = 0; j < top_k; j++)
        same += chosen[idx[j]];
    return same == top_k;
}

/* 16 experts in 4 groups, the best 2 groups, 4 experts.  Group 0 has the best expert, group 2 the second best, group
 * 1 the best sum of two, and group 3 takes part in a plain top 4. */
static void check_wrong_rules(void)
{
    static const float logits[16] = { 5.0f, 0, 0.1f, 0.2f, 4.0f, 3.9f, 0, 0.3f, 4.5f, 0.4f, 0, 0.1f, 3.95f, 0, 0, 0 };
    const struct dsv2i_route r = { 4, 2, 4, 0, 2.5f };
    int right[16] = { 0 }, plain[16] = { 0 }, two[16] = { 0 }, each[16] = { 0 }, idx[4];
    double l[16], p[16], sums[4], weight[4], inside[16];

    for (int e = 0; e < 16; e++)
        l[e] = (double)logits[e];
    ref_softmax(p, l, 16);
    ref_route(idx, weight, p, 16, &r);
    for (int j = 0; j < 4; j++)
        right[idx[j]] = 1;

    take(plain, p, 0, 16, 4); /* no groups */

    for (int g = 0; g < 4; g++) { /* a group's score is the sum of its best two (V3) */
        int best[16] = { 0 };

        take(best, p, 4 * g, 4, 2);
        sums[g] = 0;
        for (int e = 4 * g; e < 4 * g + 4; e++)
            sums[g] += best[e] ? p[e] : 0;
    }
    {
        int kept[4] = { 0 };

        take(kept, sums, 0, 4, 2);
        for (int e = 0; e < 16; e++)
            inside[e] = kept[e / 4] ? p[e] : -1;
        take(two, inside, 0, 16, 4);
    }
    for (int g = 0; g < 4; g++) { /* the best 2 experts of every group stay */
        int best[16] = { 0 };

        take(best, p, 4 * g, 4, 2);
        for (int e = 4 * g; e < 4 * g + 4; e++)
            inside[e] = best[e] ? p[e] : -1;
    }
    take(each, inside, 0, 16, 4);

    for (int i = 0; i < n_variants; i++) {
        int32_t got[4];
        float w[4];

        route_logits(variants[i].be, got, w, logits, 16, &r);
        expect(same_set(got, 4, right), "wrong rules", "%s: not the model's choice", variant_name(&variants[i]));
        for (int j = 0; j < 4; j++)
            expect(got[j] == idx[j] && fabs((double)w[j] - weight[j]) < 1e-6 * weight[j], "wrong rules", "slot %d", j);
        expect(!same_set(got, 4, plain), "wrong rules", "plain top-k would pass");
        expect(!same_set(got, 4, two), "wrong rules", "sum of the best two would pass");
        expect(!same_set(got, 4, each), "wrong rules", "top of every group would pass");
    }
    printf("%-52s done\n", "moe_route against three wrong rules");
}

static void expect_route(const char *what, const float *logits, int n, struct dsv2i_route r, const int32_t *want)
{
    for (int i = 0; i < n_variants; i++) {
        int32_t got[32];
        float w[32];

        route_logits(variants[i].be, got, w, logits, n, &r);
        for (int j = 0; j < r.top_k; j++)
            expect(got[j] == want[j], what, "%s, slot %d: expert %d for %d", variant_name(&variants[i]), j, got[j], want[j]);
    }
    printf("%-52s done\n", what);
}

void check_routing(void)
{
    static const float equal[16] = { 0 };
    static const float pairs[8] = { 1, 3, 3, 1, 1, 3, 1, 1 };
    static const float underflow[8] = { 0, -400, -300, -500, -200, -200, -200, -200 };
    static const float low[5] = { -300, -301, -299, -302, -300.5f };
    float nan_logits[8] = { 1, NAN, 2, 0, 3, 1, 0, 0 };
    static const double freq[1];

    shape.inv_freq = freq;
    shape.qk_rope_head_dim = 2;
    for (int dtype = DSV2I_F32; dtype <= DSV2I_F16; dtype++) {
        check_route(dtype, 9, 2048, 64, (struct dsv2i_route){ 1, 1, 6, 0, 1 });
        check_route(dtype, 9, 5120, 160, (struct dsv2i_route){ 8, 3, 6, 0, 16 });
        check_route(dtype, 40, 37, 24, (struct dsv2i_route){ 4, 2, 12, 1, 16 });
    }
    check_route(DSV2I_F32, 3, 16, 4096, (struct dsv2i_route){ 8, 8, 40, 0, 1 });
    check_route(DSV2I_F32, 3, 16, 5, (struct dsv2i_route){ 1, 1, 1, 1, 3 }); /* one expert: scaled, not normalized */
    check_wrong_rules();
    expect_route("moe_route, all equal", equal, 16, (struct dsv2i_route){ 4, 2, 4, 0, 1 }, (const int32_t[]){ 0, 1, 2, 3 });
    expect_route("moe_route, ties", pairs, 8, (struct dsv2i_route){ 4, 2, 3, 0, 1 }, (const int32_t[]){ 1, 2, 0 });
    /* Probabilities underflow to 0: those of the kept group still stand before excluded ones. */
    expect_route("moe_route, zeros in a kept group", underflow, 8, (struct dsv2i_route){ 2, 1, 3, 0, 1 },
                 (const int32_t[]){ 0, 1, 2 });
    expect_route("moe_route, all far below 0", low, 5, (struct dsv2i_route){ 1, 1, 3, 0, 1 }, (const int32_t[]){ 2, 0, 4 });
    for (int i = 0; i < n_variants; i++)
        for (int groups = 1; groups <= 4; groups *= 4) {
            const struct dsv2i_route r = { groups, groups > 1 ? 2 : 1, 4, 0, 1 };
            int32_t got[4];
            float w[4];
            int seen = 0;

            route_logits(variants[i].be, got, w, nan_logits, 8, &r);
            for (int j = 0; j < 4; j++) {
                expect(got[j] >= 0 && got[j] < 8 && isnan(w[j]), "moe_route, NaN", "expert %d, weight %g", got[j], (double)w[j]);
                seen |= 1 << (got[j] & 31);
            }
            expect(__builtin_popcount((unsigned)seen) == 4, "moe_route, NaN", "an expert twice");
        }
}
