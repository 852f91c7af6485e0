/* The operations of ops.h as kernels: which, for how many rows.
 *
 * Few rows are a matter of bandwidth: kernels that read each weight once and keep activations in fp32.  Many go to the matrix units with
 * activations in bf16: dense products by cuBLASLt, experts by kernels of our own.  Invariant steps take the same kernels for any number of
 * rows, and none of cuBLASLt's.
 *
 * SPDX-License-Identifier: MIT */
#include "backend.h"

#define FEW_ROWS 2         /* of more the matrix units have as little to wait for, and experts are chosen by several */
#define ROUTE_ROWS 256     /* of the router's product by a kernel for few */
#define SCORE_ROWS 256     /* rows and */
#define SCORE_COLUMNS 8192 /* vocabulary columns whose logits a score has at a time */

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

static int32_t min_i32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static int32_t max_i32(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* The heads of all releases, for which there are kernels of their own. */
static int of_release(const struct dsv2i_shape *s)
{
    return s->qk_nope_head_dim == 128 && s->v_head_dim == 128 && s->kv_lora_rank == 512 && s->qk_rope_head_dim == 64
           && s->num_attention_heads <= 128;
}

/* ---- Scratch ------------------------------------------------------------------------------------------------------------- */

int32_t dsv2i_cuda_memory_rows(struct dsv2i_backend *base, int32_t n)
{
    int32_t rows = max_i32(n <= base->logit_rows ? dsv2i_cuda_bucket(n) : n, FEW_ROWS + 1);

    return dsv2i_cuda_blas_rows(rows);
}

struct dsv2i_cuda_launch dsv2i_cuda_make_launch(const struct dsv2i_cuda *be, int32_t max_rows)
{
    return (struct dsv2i_cuda_launch){
        .stream = be->stream,
        .max_rows = max_rows,
        .early = be->sm >= 90,
        .sm = be->sm,
        .n_sms = be->n_sms,
        .invariant = be->invariant,
        .pages = be->kinds & DSV2I_CUDA_LATENT,
        .several = be->kinds & DSV2I_CUDA_SEVERAL,
    };
}

static size_t experts_bytes(int32_t n_rows, int32_t slots, int32_t n, int32_t hidden, int32_t inter)
{
    const struct dsv2i_cuda_experts e = {.n = n, .dtype = DSV2I_BF16, .hidden = hidden, .inter = inter};
    size_t few = (size_t)n_rows * (size_t)slots * (size_t)inter * sizeof(float);

    return inter ? max_size(few, dsv2i_cuda_experts_many_scratch(n_rows, slots, &e)) : 0;
}

static size_t attention_bytes(const struct dsv2i_shape *s, int32_t n_rows)
{
    size_t rows = (size_t)n_rows * (size_t)s->num_attention_heads, used = 0;

    place(&used, rows * 576 * sizeof(uint16_t));
    place(&used, rows * 512 * sizeof(float));
    return max_size(used, dsv2i_cuda_mla_prefill_scratch(n_rows, s->num_attention_heads, DSV2I_CUDA_WINDOW));
}

static size_t score_bytes(const struct dsv2i_shape *s, int32_t n_rows)
{
    size_t rows = (size_t)min_i32(n_rows, SCORE_ROWS), used = 0;

    place(&used, rows * sizeof(int32_t));
    place(&used, rows * sizeof(struct dsv2i_cuda_stand));
    place(&used, rows * rows * sizeof(float));
    place(&used, rows * (size_t)s->hidden_size * sizeof(float));
    place(&used, rows * SCORE_COLUMNS * sizeof(float));
    return used;
}

struct dsv2i_cuda_plan dsv2i_cuda_make_plan(const struct dsv2i_cuda *be, const struct dsv2i_shape *s, int32_t max_rows)
{
    struct dsv2i_cuda_launch to = dsv2i_cuda_make_launch(be, max_rows);
    const int32_t hidden = s->hidden_size, heads = s->num_attention_heads;
    struct dsv2i_cuda_plan p = {0};
    size_t rows = (size_t)dsv2i_cuda_memory_rows((struct dsv2i_backend *)(uintptr_t)&be->base, max_rows), shared;
    size_t widest = (size_t)max_i32(max_i32(hidden, s->q_lora_rank), heads * s->v_head_dim);

    to.several = 1; /* which takes more */
    p.rope = place(&p.total, rows * (size_t)s->qk_rope_head_dim * sizeof(float));
    p.narrow = place(&p.total, rows * widest * sizeof(uint16_t));
    p.scales = place(&p.total, rows * (widest / 128 + 1) * sizeof(float));
    p.greatest = place(&p.total, dsv2i_cuda_quantize_scratch());
    if (of_release(s))
        p.mla = place(&p.total, dsv2i_cuda_mla_scratch(&to, heads));
    shared = experts_bytes(max_rows, s->num_experts_per_tok, s->n_routed_experts, hidden, s->n_routed_experts ? s->moe_intermediate_size : 0);
    shared = max_size(shared, experts_bytes(max_rows, 1, 1, hidden, s->intermediate_size));
    shared = max_size(shared, experts_bytes(max_rows, 1, 1, hidden, s->n_shared_experts * s->moe_intermediate_size));
    shared = max_size(shared, rows * (size_t)s->n_routed_experts * sizeof(float));
    shared = max_size(shared, score_bytes(s, max_rows));
    if (of_release(s))
        shared = max_size(shared, attention_bytes(s, max_rows));
    p.shared = place(&p.total, shared);
    return p;
}

static void *scratch(const struct dsv2i_cuda *be, size_t at)
{
    return be->scratch.at + at;
}

/* A launch for the n rows of an operation: those of the step, or a number of others. */
static struct dsv2i_cuda_launch launch(const struct dsv2i_cuda *be, int32_t n, const struct dsv2i_cuda_step **step)
{
    int whole = n == be->batch->n_rows;

    *step = whole ? be->step : be->step + 1 + n;
    return dsv2i_cuda_make_launch(be, whole ? be->max_rows : n);
}

/* ---- Activations for the matrix units --------------------------------------------------------------------------------------- */

/* x (n, dim) in bf16: as the norm has left it, or made now. */
static const uint16_t *narrow(struct dsv2i_cuda *be, const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, const float *x,
                              int32_t dim)
{
    uint16_t *bf16 = scratch(be, be->plan.narrow);

    if (be->narrowed != x || be->narrowed_as) {
        dsv2i_cuda_check(be, dsv2i_cuda_narrow(to, step, bf16, x, DSV2I_BF16, dim));
        be->narrowed = x;
        be->narrowed_as = 0;
    }
    return bf16;
}

/* x (n, dim) in e4m3, its scales for a product of m rows. */
static const void *quantize(struct dsv2i_cuda *be, const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, const float *x,
                            int32_t dim, int32_t m, int32_t scaling)
{
    void *codes = scratch(be, be->plan.narrow);
    struct dsv2i_cuda_launch of_product = *to;

    of_product.max_rows = m;
    if (be->narrowed != x || be->narrowed_as != scaling) {
        dsv2i_cuda_check(be, dsv2i_cuda_quantize(&of_product, step, codes, scratch(be, be->plan.scales), x, dim, scaling,
                                                 scratch(be, be->plan.greatest)));
        be->narrowed = x;
        be->narrowed_as = scaling;
    }
    return codes;
}

/* y is about to change. */
static void touch(struct dsv2i_cuda *be, const float *y)
{
    if (be->narrowed == y)
        be->narrowed = NULL;
}

static int fits_matrix_units(const struct dsv2i_weight *w)
{
    return (w->dtype == DSV2I_BF16 && w->cols % 8 == 0) || (w->dtype == DSV2I_F8_E4M3 && w->cols % 16 == 0);
}

/* ---- Operations --------------------------------------------------------------------------------------------------------------- */

void dsv2i_cuda_start(struct dsv2i_cuda *be)
{
    const struct dsv2i_shape *s = be->shape;
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, be->batch->n_rows, &step);

    be->narrowed = NULL;
    be->narrowed_as = 0;
    dsv2i_cuda_check(be, dsv2i_cuda_rope(&to, step, s->qk_rope_head_dim, (double)s->rope_multiplier));
    if (of_release(s) && be->kinds & DSV2I_CUDA_LATENT)
        dsv2i_cuda_check(be, dsv2i_cuda_mla_plan(&to, step, scratch(be, be->plan.mla), s->num_attention_heads));
}

void dsv2i_cuda_op_embed(struct dsv2i_backend *base, float *x, const struct dsv2i_weight *table)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, be->batch->n_rows, &step);

    if (be->error)
        return;
    touch(be, x);
    dsv2i_cuda_check(be, dsv2i_cuda_embed(&to, step, x, table->data, table->dtype, table->cols));
}

void dsv2i_cuda_op_rms_norm(struct dsv2i_backend *base, float *y, int32_t ldy, const float *x, int32_t ldx, const float *w, int32_t n,
                            int32_t dim, float eps)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, n, &step);
    int whole = n == be->batch->n_rows && ldy == dim && (be->invariant || to.max_rows > FEW_ROWS);

    if (be->error)
        return;
    touch(be, y);
    if (whole) {
        be->narrowed = y;
        be->narrowed_as = 0;
    }
    dsv2i_cuda_check(be, dsv2i_cuda_rms_norm(&to, step, y, ldy, whole ? scratch(be, be->plan.narrow) : NULL, x, ldx, w, dim, eps));
}

static void by_blas(struct dsv2i_cuda *be, const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step,
                    const struct dsv2i_cuda_product *product, float *y, const float *x, const struct dsv2i_weight *w, int accumulate)
{
    const void *operand = w->dtype == DSV2I_F32 ? x
                        : product->scaling      ? quantize(be, to, step, x, w->cols, product->m, product->scaling)
                                                : narrow(be, to, step, x, w->cols);
    struct dsv2i_cuda_result r;

    if (be->error)
        return;
    r = dsv2i_cuda_blas_run(be->blas, product, to->stream, y, operand, w->data, product->scaling ? scratch(be, be->plan.scales) : NULL,
                            product->scaling ? dsv2i_cuda_blas_scales(w) : NULL, accumulate);
    dsv2i_cuda_check_call(be, r.call, r.code);
}

/* fp8 weights: with activations in e4m3, too, where cuBLASLt takes their scales; else as bf16.  What cuBLASLt refuses goes to kernels of
 * our own. */
static void linear(struct dsv2i_cuda *be, const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *y, const float *x,
                   const struct dsv2i_weight *w, int accumulate, int own)
{
    const struct dsv2i_cuda_product product = {.dtype = w->dtype, .y_dtype = DSV2I_F32, .scaling = dsv2i_cuda_scaling_of(w),
                                               .m = dsv2i_cuda_blas_rows(to->max_rows), .n = w->rows, .k = w->cols};
    int few = to->max_rows <= FEW_ROWS, units = fits_matrix_units(w);

    touch(be, y);
    if (!be->invariant && !few && !own && (w->dtype == DSV2I_F32 || (units && (w->dtype != DSV2I_F8_E4M3 || product.scaling)))
        && dsv2i_cuda_blas_has(be->blas, &product))
        by_blas(be, to, step, &product, y, x, w, accumulate);
    else if (units && (be->invariant || !few))
        dsv2i_cuda_check(be, dsv2i_cuda_linear_many(to, step, y, DSV2I_F32, narrow(be, to, step, x, w->cols), w, accumulate));
    else
        dsv2i_cuda_check(be, dsv2i_cuda_linear_few(to, step, y, x, w, accumulate));
}

void dsv2i_cuda_op_linear(struct dsv2i_backend *base, float *y, const float *x, const struct dsv2i_weight *w, int32_t n, int accumulate)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, n, &step);

    if (!be->error)
        linear(be, &to, step, y, x, w, accumulate, 0);
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

/* Each kind of sequence has kernels of its own, which pass over the others' rows. */
void dsv2i_cuda_op_mla_attend(struct dsv2i_backend *base, float *o, const float *q, const struct dsv2i_mla *mla, int32_t layer)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    const struct dsv2i_shape *s = be->shape;
    const struct dsv2i_weight *kv_b = &mla->kv_b;
    const int32_t heads = s->num_attention_heads, plain = !of_release(s) || kv_b->dtype != DSV2I_BF16;
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, be->batch->n_rows, &step);
    size_t used = be->plan.shared, q_at = place(&used, (size_t)to.max_rows * (size_t)heads * 576 * sizeof(uint16_t));
    uint16_t *q_latent = scratch(be, q_at);
    float *o_latent = scratch(be, used);

    if (be->error)
        return;
    touch(be, o);
    if (plain || be->kinds & DSV2I_CUDA_F32_PAGES)
        dsv2i_cuda_check(be, dsv2i_cuda_mla_attend_any(&to, step, o, q, kv_b, layer, heads, s->qk_nope_head_dim, s->v_head_dim,
                                                       s->qk_rope_head_dim, s->softmax_scale, !plain));
    if (!plain && be->kinds & DSV2I_CUDA_LATENT) {
        dsv2i_cuda_check(be, dsv2i_cuda_mla_absorb(&to, step, q_latent, q, kv_b, heads, s->softmax_scale));
        dsv2i_cuda_check(be, dsv2i_cuda_mla_decode(&to, step, o_latent, q_latent, layer, heads, scratch(be, be->plan.mla)));
        dsv2i_cuda_check(be, dsv2i_cuda_mla_value(&to, step, o, o_latent, kv_b, heads));
    }
    if (!plain && be->kinds & DSV2I_CUDA_EXPANDED)
        dsv2i_cuda_check(be, dsv2i_cuda_mla_prefill(&to, step, o, NULL, q, kv_b, layer, s, &be->prefill, scratch(be, be->plan.shared)));
}

static struct dsv2i_cuda_scales scales(const struct dsv2i_weight *w)
{
    return (struct dsv2i_cuda_scales){w->scale_rows, w->scale_cols};
}

/* n experts of a layer, or a dense one (idx NULL). */
static void experts(struct dsv2i_cuda *be, float *y, const float *x, const struct dsv2i_ffn *ffn, int32_t n_experts, const int32_t *idx,
                    const float *weight, int32_t n, int32_t top_k)
{
    const struct dsv2i_weight *up = &ffn->gate, *down = &ffn->down;
    const struct dsv2i_cuda_experts all = {ffn->table, n_experts, up->dtype, up->cols, up->rows, scales(up), scales(down)};
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, n, &step);
    int few = to.max_rows <= FEW_ROWS;

    if (be->error)
        return;
    touch(be, y);
    if ((be->invariant || !few) && fits_matrix_units(up) && fits_matrix_units(down))
        dsv2i_cuda_check(be, dsv2i_cuda_experts_many(&to, step, y, narrow(be, &to, step, x, up->cols), &all, idx, weight, top_k,
                                                     scratch(be, be->plan.shared)));
    else
        dsv2i_cuda_check(be, dsv2i_cuda_experts_few(&to, step, y, x, scratch(be, be->plan.shared), ffn->table, idx, weight, top_k,
                                                    up->dtype, up->cols, up->rows, scales(up), scales(down)));
}

void dsv2i_cuda_op_ffn(struct dsv2i_backend *base, float *y, const float *x, const struct dsv2i_ffn *w, int32_t n)
{
    experts(dsv2i_cuda_of(base), y, x, w, 1, NULL, NULL, n, 1);
}

void dsv2i_cuda_op_moe_experts(struct dsv2i_backend *base, float *y, const float *x, const struct dsv2i_ffn *ffn, const int32_t *idx,
                               const float *weight, int32_t n, int32_t top_k)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);

    experts(be, y, x, ffn, be->shape->n_routed_experts, idx, weight, n, top_k);
}

/* The router's logits, always from fp32: with activations in bf16 other experts are chosen now and then.  Of many rows the matrix units
 * multiply the three parts of x, the greatest last: it is x in bf16, which the experts want. */
static void route_logits(struct dsv2i_cuda *be, const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *logits,
                         const float *x, const struct dsv2i_weight *gate)
{
    const struct dsv2i_cuda_product product = {.dtype = DSV2I_BF16, .y_dtype = DSV2I_F32, .m = dsv2i_cuda_blas_rows(to->max_rows),
                                               .n = gate->rows, .k = gate->cols};
    uint16_t *part = scratch(be, be->plan.narrow);

    if (be->invariant || to->max_rows <= ROUTE_ROWS || gate->dtype != DSV2I_BF16 || gate->cols % 8 || !dsv2i_cuda_blas_has(be->blas, &product)) {
        dsv2i_cuda_check(be, dsv2i_cuda_linear_few(to, step, logits, x, gate, 0));
        return;
    }
    for (int32_t i = 2; i >= 0 && !be->error; i--) {
        struct dsv2i_cuda_result r;

        dsv2i_cuda_check(be, dsv2i_cuda_narrow_part(to, step, part, x, i, gate->cols));
        r = dsv2i_cuda_blas_run(be->blas, &product, to->stream, logits, part, gate->data, NULL, NULL, i < 2);
        dsv2i_cuda_check_call(be, r.call, r.code);
    }
    be->narrowed = x;
    be->narrowed_as = 0;
}

void dsv2i_cuda_op_moe_route(struct dsv2i_backend *base, int32_t *idx, float *weight, const float *x, const struct dsv2i_weight *gate,
                             const struct dsv2i_route *route, int32_t n)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    float *logits = scratch(be, be->plan.shared);
    const struct dsv2i_cuda_step *step;
    struct dsv2i_cuda_launch to = launch(be, n, &step);

    if (be->error)
        return;
    route_logits(be, &to, step, logits, x, gate);
    if (!be->error)
        dsv2i_cuda_check(be, dsv2i_cuda_moe_route(&to, step, idx, weight, logits, gate->rows, route));
}

/* At most SCORE_ROWS rows.  The target's logit must have the bits that it has among the others, else a tie is missed: so it is computed by
 * the same kernels, which sum a column's products in one order wherever it stands. */
static void score(struct dsv2i_cuda *be, struct dsv2i_score *out, const float *x, const struct dsv2i_weight *head, const int32_t *target,
                  int32_t n)
{
    const struct dsv2i_cuda_step *step = be->step + 1 + n;
    const struct dsv2i_cuda_launch to = dsv2i_cuda_make_launch(be, n);
    size_t used = be->plan.shared, rows = (size_t)n;
    int32_t *targets = scratch(be, place(&used, rows * sizeof *targets));
    struct dsv2i_cuda_stand *stand = scratch(be, place(&used, rows * sizeof *stand));
    float *of_target = scratch(be, place(&used, rows * rows * sizeof *of_target));
    void *chosen = scratch(be, place(&used, rows * (size_t)head->cols * sizeof(float)));
    float *logits = scratch(be, used);
    struct dsv2i_cuda_launch late = to; /* products read weights before they wait: not those that a launch has just written */
    struct dsv2i_weight part = *head;

    late.early = 0;
    part.rows = n;
    part.data = chosen;
    dsv2i_cuda_check(be, cudaMemcpyAsync(targets, target, rows * sizeof *targets, cudaMemcpyHostToDevice, be->stream));
    dsv2i_cuda_check(be, dsv2i_cuda_gather_rows(&to, &step->n_rows, chosen, head, targets));
    linear(be, &late, step, of_target, x, &part, 0, 1);
    for (int32_t begin = 0; begin < head->rows && !be->error; begin += SCORE_COLUMNS) {
        int32_t end = min_i32(begin + SCORE_COLUMNS, head->rows);

        part.rows = end - begin;
        part.data = (const char *)head->data + (size_t)begin * (size_t)head->cols * dsv2i_dtype_size(head->dtype);
        linear(be, &to, step, logits, x, &part, 0, 1);
        dsv2i_cuda_check(be, dsv2i_cuda_score(&to, &step->n_rows, out, stand, logits, end - begin, begin, end, head->rows, targets, of_target,
                                              n + 1));
    }
}

void dsv2i_cuda_op_score(struct dsv2i_backend *base, struct dsv2i_score *out, const float *x, const struct dsv2i_weight *head,
                         const int32_t *target, int32_t n)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);

    for (int32_t i = 0; i < n && !be->error; i += SCORE_ROWS) {
        be->narrowed = NULL;
        score(be, out + i, x + (size_t)i * (size_t)head->cols, head, target + i, min_i32(n - i, SCORE_ROWS));
    }
    be->narrowed = NULL;
}
