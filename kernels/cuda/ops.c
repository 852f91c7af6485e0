/* The operations of ops.h as kernels: which, for how many rows.  Few rows are a matter of bandwidth and go to kernels that read each weight
 * once and keep activations in fp32.
 *
 * SPDX-License-Identifier: MIT */
#include "backend.h"

/* Parts of the scratch block, aligned to 256. */
static size_t place(size_t *used, size_t bytes)
{
    size_t at = *used;

    *used += (bytes + 255) & ~(size_t)255;
    return at;
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

struct dsv2i_cuda_plan dsv2i_cuda_make_plan(const struct dsv2i_cuda *be, const struct dsv2i_shape *s, int32_t n_rows)
{
    struct dsv2i_cuda_plan p = {.rows = n_rows};
    size_t rows = (size_t)n_rows, inter;

    (void)be;
    inter = max_size((size_t)s->num_experts_per_tok * (size_t)s->moe_intermediate_size, (size_t)s->intermediate_size);
    inter = max_size(inter, (size_t)s->n_shared_experts * (size_t)s->moe_intermediate_size);
    p.rope = place(&p.total, rows * (size_t)s->qk_rope_head_dim * sizeof(float));
    p.inner = place(&p.total, rows * inter * sizeof(float));
    p.router = place(&p.total, rows * (size_t)s->n_routed_experts * sizeof(float));
    return p;
}

static float *scratch(const struct dsv2i_cuda *be, size_t at)
{
    return (float *)(void *)(be->scratch.at + at);
}

/* A launch for the n rows of an operation: those of the step, or a number of others. */
static struct dsv2i_cuda_launch launch(const struct dsv2i_cuda *be, int32_t n, const struct dsv2i_cuda_step **step)
{
    int whole = n == be->batch->n_rows;

    *step = whole ? be->step : be->step + 1 + n;
    return (struct dsv2i_cuda_launch){
        .stream = be->stream,
        .max_rows = whole ? be->max_rows : n,
        .early = be->sm >= 90,
        .sm = be->sm,
        .n_sms = be->n_sms,
        .invariant = be->invariant,
    };
}

void dsv2i_cuda_start(struct dsv2i_cuda *be)
{
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, be->batch->n_rows, &step);

    dsv2i_cuda_check(be, dsv2i_cuda_rope(&to, step, be->shape->qk_rope_head_dim, (double)be->shape->rope_multiplier));
}

void dsv2i_cuda_op_embed(struct dsv2i_backend *base, float *x, const struct dsv2i_weight *table)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, be->batch->n_rows, &step);

    if (!be->error)
        dsv2i_cuda_check(be, dsv2i_cuda_embed(&to, step, x, table->data, table->dtype, table->cols));
}

void dsv2i_cuda_op_rms_norm(struct dsv2i_backend *base, float *y, int32_t ldy, const float *x, int32_t ldx, const float *w, int32_t n,
                            int32_t dim, float eps)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, n, &step);

    if (!be->error)
        dsv2i_cuda_check(be, dsv2i_cuda_rms_norm(&to, step, y, ldy, NULL, x, ldx, w, dim, eps));
}

void dsv2i_cuda_op_linear(struct dsv2i_backend *base, float *y, const float *x, const struct dsv2i_weight *w, int32_t n, int accumulate)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, n, &step);

    if (!be->error)
        dsv2i_cuda_check(be, dsv2i_cuda_linear_few(&to, step, y, x, w, accumulate));
}

void dsv2i_cuda_op_mla_prepare(struct dsv2i_backend *base, float *q, const float *kva, const struct dsv2i_mla *mla, int32_t layer)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    const struct dsv2i_shape *s = be->shape;
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, be->batch->n_rows, &step);

    if (!be->error)
        dsv2i_cuda_check(be, dsv2i_cuda_mla_prepare(&to, step, q, kva, mla->kv_a_norm, layer, s->num_attention_heads, s->qk_nope_head_dim,
                                                    s->kv_lora_rank, s->qk_rope_head_dim));
}

void dsv2i_cuda_op_mla_attend(struct dsv2i_backend *base, float *o, const float *q, const struct dsv2i_mla *mla, int32_t layer)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    const struct dsv2i_shape *s = be->shape;
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, be->batch->n_rows, &step);

    if (!be->error)
        dsv2i_cuda_check(be, dsv2i_cuda_mla_attend_any(&to, step, o, q, &mla->kv_b, layer, s->num_attention_heads, s->qk_nope_head_dim,
                                                       s->v_head_dim, s->qk_rope_head_dim, s->softmax_scale, 0));
}

void dsv2i_cuda_op_ffn(struct dsv2i_backend *base, float *y, const float *x, const struct dsv2i_ffn *w, int32_t n)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, n, &step);

    if (!be->error)
        dsv2i_cuda_check(be, dsv2i_cuda_experts_few(&to, step, y, x, scratch(be, be->plan.inner), w->table, NULL, NULL, 1, w->gate.dtype,
                                                    w->gate.cols, w->gate.rows));
}

void dsv2i_cuda_op_moe_route(struct dsv2i_backend *base, int32_t *idx, float *weight, const float *x, const struct dsv2i_weight *gate,
                             const struct dsv2i_route *route, int32_t n)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    float *logits = scratch(be, be->plan.router);
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, n, &step);

    /* Always in fp32: bf16 activations choose other experts now and then. */
    if (!be->error && !dsv2i_cuda_check(be, dsv2i_cuda_linear_few(&to, step, logits, x, gate, 0)))
        dsv2i_cuda_check(be, dsv2i_cuda_moe_route(&to, step, idx, weight, logits, gate->rows, route));
}

void dsv2i_cuda_op_moe_experts(struct dsv2i_backend *base, float *y, const float *x, const struct dsv2i_ffn *experts, const int32_t *idx,
                               const float *weight, int32_t n, int32_t top_k)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, n, &step);

    if (!be->error)
        dsv2i_cuda_check(be, dsv2i_cuda_experts_few(&to, step, y, x, scratch(be, be->plan.inner), experts->table, idx, weight, top_k,
                                                    experts->gate.dtype, experts->gate.cols, experts->gate.rows));
}

void dsv2i_cuda_op_score(struct dsv2i_backend *base, struct dsv2i_score *out, const float *x, const struct dsv2i_weight *head,
                         const int32_t *target, int32_t n)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);

    (void)out;
    (void)x;
    (void)head;
    (void)target;
    (void)n;
    dsv2i_cuda_check(be, cudaErrorInvalidValue);
}
