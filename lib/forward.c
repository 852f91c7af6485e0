/* The model as calls on the op table; it reads like section 2 of the paper (arXiv 2405.04434).
 * SPDX-License-Identifier: MIT */
#include "forward.h"

#define MOST_LOGIT_ROWS 256 /* of any backend */

/* One step's activations, all in one block. */
struct activations {
    float *x;       /* (n, hidden) residual stream */
    float *xn;      /* (n, hidden) its norm */
    float *qa;      /* (n, q_lora_rank) */
    float *q;       /* (n, heads, nope + rope) */
    float *kva;     /* (n, kv_lora_rank + rope) */
    float *o;       /* (n, heads, v) */
    int32_t *idx;   /* (n, top_k) */
    float *weight;  /* (n, top_k) */
    float *last;    /* (logit_rows, hidden) norm of the rows whose logits are wanted */
    float *logits;  /* (logit_rows, vocab) */
    struct dsv2i_score *scores; /* (n) */
};

/* Lay out activations for n_rows rows in block (NULL: measure only); returns the bytes. */
static size_t lay_out(struct activations *a, char *block, const dsv2_context *ctx, const struct dsv2i_shape *s, int32_t n_rows)
{
    struct dsv2i_backend *be = ctx->backend;
    size_t used = 0, heads = (size_t)s->num_attention_heads, hidden = (size_t)s->hidden_size;
    size_t n = (size_t)be->op->memory_rows(be, n_rows);
    size_t last = (size_t)be->op->memory_rows(be, n_rows < be->logit_rows ? n_rows : be->logit_rows);


#define PLACE(field, count) \
    do { \
        if (block) \
            a->field = (void *)(block + used); \
        used += ((size_t)(count) * sizeof *a->field + 63) & ~(size_t)63; \
    } while (0)
    PLACE(x, n * hidden);
    PLACE(xn, n * hidden);
    PLACE(qa, n * (size_t)s->q_lora_rank);
    PLACE(q, n * heads * (size_t)(s->qk_nope_head_dim + s->qk_rope_head_dim));
    PLACE(kva, n * (size_t)(s->kv_lora_rank + s->qk_rope_head_dim));
    PLACE(o, n * heads * (size_t)s->v_head_dim);
    PLACE(idx, n * (size_t)s->num_experts_per_tok);
    PLACE(weight, n * (size_t)s->num_experts_per_tok);
    PLACE(last, last * hidden);
    PLACE(logits, last * (size_t)s->vocab_size);
    PLACE(scores, n);
#undef PLACE
    return used;
}

size_t dsv2i_forward_bytes(const dsv2_context *ctx, const struct dsv2i_shape *shape, int32_t n_rows)
{
    struct activations a;

    return lay_out(&a, NULL, ctx, shape, n_rows);
}

dsv2_status dsv2i_forward_reserve(dsv2_model *m, int32_t n_rows)
{
    dsv2_context *ctx = m->ctx;
    struct dsv2i_backend *be = ctx->backend;
    const struct dsv2i_shape *shape = &m->config.shape;
    size_t bytes = dsv2i_forward_bytes(ctx, shape, n_rows);
    int failed;

    dsv2i_context_begin_turn(ctx);
    failed = be->op->reserve(be, shape, n_rows);
    if (!failed && bytes > ctx->activations_bytes) {
        void *block = be->op->mem_alloc(be, bytes);

        if (block) {
            be->op->forget(be, NULL); /* what is recorded uses the old block */
            if (ctx->activations)
                be->op->mem_free(be, ctx->activations, ctx->activations_bytes);
            ctx->activations = block;
            ctx->activations_bytes = bytes;
        }
        failed = !block;
    }
    if (!failed && n_rows > m->n_rows) {
        be->op->forget(be, m);
        m->n_rows = n_rows;
    }
    dsv2i_context_end_turn(ctx);
    return failed ? dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory for %zu bytes of activations (n_batch %d)", bytes, n_rows)
                  : DSV2_OK;
}

/* x += Attn(RMSNorm(x)), paper 2.1 */
static void attention(const dsv2_model *m, int32_t l, struct activations *a, int32_t n)
{
    struct dsv2i_backend *be = m->ctx->backend;
    const struct dsv2i_ops *op = be->op;
    const struct dsv2i_layer *L = &m->layers[l];
    const struct dsv2i_shape *s = &m->config.shape;
    int32_t hidden = s->hidden_size, q_rank = s->q_lora_rank;
    float eps = (float)m->config.rms_norm_eps;

    op->rms_norm(be, a->xn, hidden, a->x, hidden, L->input_layernorm, n, hidden, eps);
    if (q_rank) {
        op->linear(be, a->qa, a->xn, &L->q_a_proj, n, 0);
        op->linear(be, a->kva, a->xn, &L->kv_a_proj_with_mqa, n, 0);
        /* 1e-6 whatever rms_norm_eps says: the remote code builds this norm with its default (spec 3.2) */
        op->rms_norm(be, a->qa, q_rank, a->qa, q_rank, L->q_a_layernorm, n, q_rank, 1e-6f);
        op->linear(be, a->q, a->qa, &L->q_b_proj, n, 0);
    } else {
        op->linear(be, a->q, a->xn, &L->q_proj, n, 0);
        op->linear(be, a->kva, a->xn, &L->kv_a_proj_with_mqa, n, 0);
    }
    op->mla_prepare(be, a->q, a->kva, &L->mla, l);
    op->mla_attend(be, a->o, a->q, &L->mla, l);
    op->linear(be, a->x, a->o, &L->o_proj, n, 1);
}

/* x += FFN(RMSNorm(x)), paper 2.2 */
static void feed_forward(const dsv2_model *m, int32_t l, struct activations *a, int32_t n)
{
    struct dsv2i_backend *be = m->ctx->backend;
    const struct dsv2i_ops *op = be->op;
    const struct dsv2i_layer *L = &m->layers[l];
    int32_t hidden = m->config.shape.hidden_size, top_k = m->config.route.top_k;

    op->rms_norm(be, a->xn, hidden, a->x, hidden, L->post_attention_layernorm, n, hidden, (float)m->config.rms_norm_eps);
    if (L->mlp.gate.rows)
        op->ffn(be, a->x, a->xn, &L->mlp, n);
    if (L->router.rows) {
        op->moe_route(be, a->idx, a->weight, a->xn, &L->router, &m->config.route, n);
        op->moe_experts(be, a->x, a->xn, L->experts, a->idx, a->weight, n, top_k);
    }
}

/* Logits of n rows of x to a->logits. */
static void logits(const dsv2_model *m, struct activations *a, const int32_t *row, int32_t n)
{
    struct dsv2i_backend *be = m->ctx->backend;
    int32_t hidden = m->config.shape.hidden_size;
    size_t ld = (size_t)hidden;

    for (int32_t i = 0, end; i < n; i = end) { /* rows that are neighbours together */
        for (end = i + 1; end < n && row[end] == row[end - 1] + 1;)
            end++;
        be->op->rms_norm(be, a->last + (size_t)i * ld, hidden, a->x + (size_t)row[i] * ld, hidden, m->norm, end - i, hidden,
                         (float)m->config.rms_norm_eps);
    }
    be->op->linear(be, a->logits, a->last, &m->lm_head, n, 0);
}

/* Choices go from here on. */
struct drawn {
    int32_t *token;
    float *logprob;
    int32_t n;
};

/* Hand out what is wanted of the n rows in a->logits; of[i] is whose row i is. */
static void hand_out(const dsv2_model *m, const struct activations *a, struct dsv2i_output *const *of, int32_t n, struct drawn *drawn)
{
    struct dsv2i_backend *be = m->ctx->backend;
    const struct dsv2i_sampling *how[MOST_LOGIT_ROWS];
    size_t vocab = (size_t)m->config.shape.vocab_size;
    int32_t sampled = 0;

    for (int32_t i = 0; i < n; i++) {
        how[i] = of[i]->sampling;
        of[i]->drawn = drawn->n + i;
        sampled |= how[i] != NULL;
        if (of[i]->logits)
            be->op->fetch(be, of[i]->logits, a->logits + (size_t)i * vocab, vocab * sizeof *a->logits);
    }
    if (sampled)
        be->op->sample(be, drawn->token + drawn->n, drawn->logprob + drawn->n, a->logits, m->config.shape.vocab_size, m->is_token, how, n);
    drawn->n += n;
}

/* How the n_scores targets of a sequence were foretold. */
static void scores(const dsv2_model *m, struct activations *a, const struct dsv2i_output *o)
{
    struct dsv2i_backend *be = m->ctx->backend;
    int32_t hidden = m->config.shape.hidden_size;

    be->op->rms_norm(be, a->xn, hidden, a->x + (size_t)o->row * (size_t)hidden, hidden, m->norm, o->n_scores, hidden,
                     (float)m->config.rms_norm_eps);
    be->op->score(be, a->scores, a->xn, &m->lm_head, o->target, o->n_scores);
    be->op->fetch(be, o->scores, a->scores, (size_t)o->n_scores * sizeof *o->scores);
}

static void outputs(const dsv2_model *m, struct activations *a, struct dsv2i_output *out, int32_t n_out, struct drawn *drawn)
{
    int32_t held = 0, row[MOST_LOGIT_ROWS];
    struct dsv2i_output *of[MOST_LOGIT_ROWS];

    for (struct dsv2i_output *o = out; o < out + n_out; o++) {
        if (o->n_scores)
            scores(m, a, o);
        if (o->logits || o->sampling) {
            row[held] = o->row + o->n_rows - 1;
            of[held++] = o;
        }
        if (held == m->ctx->backend->logit_rows || (held && o + 1 == out + n_out)) {
            logits(m, a, row, held);
            hand_out(m, a, of, held, drawn);
            held = 0;
        }
    }
}

/* A decode step of sessions: one row each, and their logits. */
static int32_t is_plain(const struct dsv2i_backend *be, const struct dsv2i_batch *batch, const struct dsv2i_output *out)
{
    if (batch->n_rows != batch->n_seqs || batch->n_rows > be->logit_rows)
        return 0;
    for (int32_t i = 0; i < batch->n_seqs; i++)
        if (!(out[i].logits || out[i].sampling) || out[i].n_scores)
            return 0;
    return 1;
}

/* The logits of a plain step: of all rows, also of those that nobody wants any more, so that the operations are always the same.  1: the
 * step is to be made again. */
static int plain_outputs(const dsv2_model *m, struct activations *a, struct dsv2i_output *out, int32_t n, int recorded,
                          struct drawn *drawn)
{
    struct dsv2i_backend *be = m->ctx->backend;
    struct dsv2i_output *of[MOST_LOGIT_ROWS];
    int32_t row[MOST_LOGIT_ROWS];

    for (int32_t i = 0; i < n; i++) {
        row[i] = i;
        of[i] = &out[i];
    }
    if (!recorded)
        logits(m, a, row, n);
    if (be->op->submit(be))
        return 1;
    hand_out(m, a, of, n, drawn);
    return 0;
}

dsv2_status dsv2i_forward(const dsv2_model *m, const struct dsv2i_batch *batch, struct dsv2i_output *out, int32_t *token, float *logprob,
                          dsv2i_poll_fn poll, void *user)
{
    struct drawn drawn = {token, logprob, 0};
    struct dsv2i_backend *be = m->ctx->backend;
    const struct dsv2i_ops *op = be->op;
    const struct dsv2i_shape *s = &m->config.shape;
    int32_t n = batch->n_rows, cancelled = 0, again = 0, recorded, failed;
    struct dsv2i_batch b = *batch;
    struct activations a = {0};
    dsv2_status status;

    b.model = m;
    b.plain = is_plain(be, batch, out);
    dsv2i_context_begin_turn(m->ctx);
    lay_out(&a, m->ctx->activations, m->ctx, s, m->n_rows);
    do {
        recorded = op->begin(be, s, &b);
        if (recorded) {
            cancelled = poll(user);
        } else {
            op->embed(be, a.x, &m->embed_tokens);
            for (int32_t l = 0; l < s->num_hidden_layers && !cancelled; l++) {
                attention(m, l, &a, n);
                feed_forward(m, l, &a, n);
                cancelled = poll(user);
            }
        }
        if (!cancelled && b.plain) {
            again = plain_outputs(m, &a, out, n, recorded, &drawn);
        } else if (!cancelled) {
            op->submit(be); /* nothing of it is recorded: it goes on being called */
            outputs(m, &a, out, b.n_seqs, &drawn);
        }
        failed = op->finish(be);
    } while (again && !failed && !cancelled);
    status = cancelled ? dsv2i_fail(DSV2_ERR_CANCELLED, "session: cancelled")
           : failed    ? dsv2i_fail(DSV2_ERR_DEVICE, "session: %s", op->failure(be))
                       : DSV2_OK;
    dsv2i_context_end_turn(m->ctx);
    return status;
}
