/* One sequence: advance, truncate, fork, and what it costs.
 * SPDX-License-Identifier: MIT */
#include "session.h"

#include <math.h>
#include <string.h>

#include "forward.h"
#include "logprobs.h"
#include "params.h"

static int32_t min_i32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

_Static_assert((int)DSV2_KV_BF16 == DSV2I_KV_BF16 && (int)DSV2_KV_F32 == DSV2I_KV_F32, "one numbering");

static dsv2_status take_params(const struct dsv2i_config *c, const dsv2_session_params *params, dsv2_session_params *p)
{
    static const char name[] = "dsv2_session_params";

    dsv2_session_params_init(p, sizeof *p);
    DSV2I_TRY(dsv2i_params_take(p, sizeof *p, params, name));
    if (p->n_ctx < 0 || p->n_ctx > c->max_position_embeddings)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: n_ctx: %d is not in 0..%d (max_position_embeddings)", name, p->n_ctx,
                          c->max_position_embeddings);
    if (p->kv_type != DSV2_KV_BF16 && p->kv_type != DSV2_KV_F32)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: kv_type: %d is none of DSV2_KV_*", name, p->kv_type);
    if (p->attention < DSV2_ATTENTION_ABSORBED || p->attention > DSV2_ATTENTION_AUTO)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: attention: %d is none of DSV2_ATTENTION_*", name, p->attention);
    if (p->n_batch < 1 || p->n_batch > 4096)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: n_batch: %d is not in 1..4096", name, p->n_batch);
    return DSV2_OK;
}

dsv2_status dsv2i_session_estimate(const dsv2_context *ctx, const struct dsv2i_config *c, const dsv2_session_params *params,
                                   uint64_t weights, uint64_t other, dsv2_memory *out)
{
    struct dsv2i_backend *be = ctx->backend;
    dsv2_session_params p;
    uint64_t page, pages, fixed;

    DSV2I_TRY(take_params(c, params, &p));
    page = dsv2i_kv_page_bytes(be, &c->shape, p.kv_type);
    fixed = weights + other + dsv2i_forward_bytes(&c->shape, p.n_batch) + be->op->scratch_bytes(be, &c->shape, p.n_batch);
    if (!p.n_ctx) {
        uint64_t room = ctx->memory_bytes > fixed ? (ctx->memory_bytes - fixed) / page * DSV2I_PAGE_TOKENS : 0;

        if (room < DSV2I_PAGE_TOKENS)
            room = DSV2I_PAGE_TOKENS;
        p.n_ctx = room < (uint64_t)c->max_position_embeddings ? (int32_t)room : c->max_position_embeddings;
    }
    pages = ((uint64_t)p.n_ctx + DSV2I_PAGE_TOKENS - 1) / DSV2I_PAGE_TOKENS;
    *out = (dsv2_memory){
        .struct_size = sizeof *out,
        .weights = weights,
        .kv = pages * page,
        .kv_per_token = page / DSV2I_PAGE_TOKENS,
        .scratch = dsv2i_forward_bytes(&c->shape, min_i32(p.n_batch, p.n_ctx)) +
                   be->op->scratch_bytes(be, &c->shape, min_i32(p.n_batch, p.n_ctx)) +
                   (uint64_t)c->shape.vocab_size * sizeof(float) + (uint64_t)p.n_ctx * sizeof(int32_t),
        .other = other,
        .n_ctx = p.n_ctx,
    };
    out->total = out->weights + out->kv + out->scratch + out->other;
    return DSV2_OK;
}

dsv2_status dsv2i_session_memory(const dsv2_session *s, dsv2_memory *out)
{
    dsv2_session_params p;

    dsv2_session_params_init(&p, sizeof p);
    p.n_ctx = s->n_ctx;
    p.kv_type = s->kv_type;
    p.attention = s->attention;
    p.n_batch = s->n_batch;
    return dsv2i_session_estimate(s->model->ctx, &s->model->config, &p, s->model->weight_memory, s->model->other_memory, out);
}

/* An empty session with the parameters of like. */
static dsv2_status session_new(dsv2_model *m, const dsv2_session *like, dsv2_session **out)
{
    const struct dsv2i_hooks *mem = &m->ctx->mem;
    dsv2_session *s = dsv2i_calloc(mem, 1, sizeof *s);

    if (!s)
        return dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory");
    s->n_ctx = like->n_ctx;
    s->kv_type = like->kv_type;
    s->attention = like->attention;
    s->n_batch = like->n_batch;
    s->progress = like->progress;
    s->progress_user = like->progress_user;
    s->logits = dsv2i_alloc(mem, (size_t)m->config.shape.vocab_size, sizeof *s->logits);
    if (!s->logits) {
        dsv2i_free(mem, s);
        return dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory for %d logits", m->config.shape.vocab_size);
    }
    atomic_init(&s->cancelled, 0);
    dsv2i_kv_init(&s->kv, m->ctx->backend, mem, dsv2i_kv_page_bytes(m->ctx->backend, &m->config.shape, s->kv_type));
    s->model = m;
    dsv2i_model_retain(m);
    *out = s;
    return DSV2_OK;
}

dsv2_status dsv2i_session_create(dsv2_model *m, const dsv2_session_params *params, dsv2_session **out)
{
    dsv2_session_params p;
    dsv2_memory memory;
    dsv2_session like;

    DSV2I_TRY(take_params(&m->config, params, &p));
    DSV2I_TRY(dsv2i_session_estimate(m->ctx, &m->config, params, m->weight_memory, m->other_memory, &memory));
    like = (dsv2_session){
        .n_ctx = memory.n_ctx,
        .kv_type = p.kv_type,
        .attention = p.attention,
        .n_batch = min_i32(p.n_batch, memory.n_ctx),
        .progress = p.progress,
        .progress_user = p.progress_user,
    };
    DSV2I_TRY(dsv2i_forward_reserve(m->ctx, &m->config, like.n_batch));
    return session_new(m, &like, out);
}

void dsv2i_session_free(dsv2_session *s)
{
    const struct dsv2i_hooks *mem;
    dsv2_model *m;

    if (!s)
        return;
    m = s->model;
    mem = &m->ctx->mem;
    dsv2i_kv_truncate(&s->kv, 0);
    dsv2i_free(mem, s->tokens);
    dsv2i_free(mem, s->logits);
    dsv2i_free(mem, s);
    dsv2i_model_release(m);
}

/* Multiply-adds per head of n rows that begin at position pos (spec 3.3): absorbed pays per query-key pair and per row, expanded less per
 * pair, but rebuilds every cached key and value. */
static int expanded_is_cheaper(const struct dsv2i_shape *s, int32_t pos, int32_t n)
{
    double latent = s->kv_lora_rank, rope = s->qk_rope_head_dim, head = s->qk_nope_head_dim + s->v_head_dim;
    double rows = n, pairs = rows * (pos + (rows + 1) / 2), keys = (double)pos + rows;

    return pairs * (head + rope) + keys * latent * head < pairs * (2 * latent + rope) + rows * latent * head;
}

/* Compute tokens[0..n) at positions pos.. in one step.  The pages are there. */
static dsv2_status step(dsv2_session *s, const int32_t *tokens, int32_t n, int32_t pos, int32_t *rows,
                        const struct dsv2i_outputs *out)
{
    const struct dsv2i_shape *shape = &s->model->config.shape;
    struct dsv2i_seq seq = {.page = s->kv.page, .form = DSV2I_ABSORBED, .kv_type = s->kv_type};
    struct dsv2i_batch batch = {.n_rows = n, .n_seqs = 1, .token = tokens,
                                .pos = rows, .seq = rows + n, .seqs = &seq};

    if (s->attention == DSV2_ATTENTION_EXPANDED || (s->attention == DSV2_ATTENTION_AUTO && expanded_is_cheaper(shape, pos, n)))
        seq.form = DSV2I_EXPANDED;
    for (int32_t i = 0; i < n; i++) {
        rows[i] = pos + i;
        rows[n + i] = 0;
    }
    return dsv2i_forward(s->model, &batch, out, &s->cancelled);
}

/* Room for the row lists of a step, the scores of a step, and n more tokens in the history. */
static dsv2_status make_room(dsv2_session *s, size_t n, int32_t **rows)
{
    const struct dsv2i_hooks *mem = &s->model->ctx->mem;
    size_t need = (size_t)s->pos + n, capacity = s->tokens_capacity ? s->tokens_capacity : 64;

    if (need > s->tokens_capacity) {
        int32_t *tokens;

        while (capacity < need)
            capacity *= 2;
        if (capacity > (size_t)s->n_ctx)
            capacity = (size_t)s->n_ctx;
        tokens = dsv2i_realloc(mem, s->tokens, capacity, sizeof *tokens);
        if (!tokens)
            return dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory for %zu tokens", capacity);
        s->tokens = tokens;
        s->tokens_capacity = capacity;
    }
    *rows = dsv2i_alloc(mem, (size_t)s->n_batch, 2 * sizeof **rows + sizeof(struct dsv2i_score));
    return *rows ? DSV2_OK : dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory for %d rows", s->n_batch);
}

static void store_score(dsv2_token_score *scores, size_t score_size, size_t i, const struct dsv2i_score *from)
{
    dsv2_token_score one = {from->logprob, from->rank, from->top_token, from->top_logprob};

    memcpy((char *)scores + i * score_size, &one, score_size < sizeof one ? score_size : sizeof one);
}

/* The score of a piece's first token, from the logits that the session has. */
static struct dsv2i_score first_score(const dsv2_session *s, int32_t token)
{
    int32_t n = s->model->config.shape.vocab_size, top = 0;
    double lse = s->has_logits ? dsv2i_log_sum_exp(s->logits, n) : NAN;

    if (isnan(lse))
        return (struct dsv2i_score){NAN, 0, -1, NAN};
    for (int32_t i = 1; i < n; i++)
        if (s->logits[i] > s->logits[top])
            top = i;
    return (struct dsv2i_score){(float)(s->logits[token] - lse), dsv2i_rank(s->logits, n, token), top,
                                (float)(s->logits[top] - lse)};
}

static dsv2_status advance(dsv2_session *s, const int32_t *tokens, int32_t n, int32_t *rows, dsv2_token_score *scores,
                           size_t score_size)
{
    struct dsv2i_score *step_scores = (struct dsv2i_score *)(void *)(rows + 2 * (size_t)s->n_batch);

    if (scores && s->pos && !s->has_logits) { /* truncated: the last token's logits are needed again */
        struct dsv2i_outputs out = {.logits = s->logits};

        DSV2I_TRY(dsv2i_kv_reserve(&s->kv, s->pos - 1, s->pos));
        DSV2I_TRY(step(s, &s->tokens[s->pos - 1], 1, s->pos - 1, rows, &out));
        s->has_logits = 1;
    }
    DSV2I_TRY(dsv2i_kv_reserve(&s->kv, s->pos, s->pos + n));
    if (scores) {
        struct dsv2i_score first = first_score(s, tokens[0]);

        store_score(scores, score_size, 0, &first);
    }
    for (int32_t done = 0; done < n;) {
        int32_t now = min_i32(n - done, s->n_batch);
        struct dsv2i_outputs out = {.logits = done + now == n ? s->logits : NULL};

        if (scores) {
            out.target = tokens + done + 1;
            out.scores = step_scores;
            out.n_scores = min_i32(now, n - done - 1);
        }
        DSV2I_TRY(step(s, tokens + done, now, s->pos + done, rows, &out));
        for (int32_t i = 0; i < out.n_scores; i++)
            store_score(scores, score_size, (size_t)(done + i + 1), &step_scores[i]);
        done += now;
        if (s->progress && done < n && s->progress(s->progress_user, (uint64_t)done, (uint64_t)n))
            return dsv2i_fail(DSV2_ERR_CANCELLED, "session: cancelled by the progress callback at token %d of %d", done, n);
    }
    return DSV2_OK;
}

dsv2_status dsv2i_session_advance(dsv2_session *s, const int32_t *tokens, size_t n, int decoded, dsv2_token_score *scores,
                                  size_t score_size)
{
    int32_t vocab = s->model->config.shape.vocab_size, had_logits = s->has_logits, *rows;
    dsv2_status status;

    if (n > (size_t)(s->n_ctx - s->pos))
        return dsv2i_fail(DSV2_ERR_CONTEXT_FULL, "session: %zu tokens do not fit: %d of n_ctx %d are used", n, s->pos, s->n_ctx);
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= vocab)
            return dsv2i_fail(DSV2_ERR_INVALID, "tokens[%zu]: %d is not in 0..%d (vocab_size - 1)", i, tokens[i], vocab - 1);
    DSV2I_TRY(make_room(s, n, &rows));
    if (atomic_exchange(&s->cancelled, 0))
        status = dsv2i_fail(DSV2_ERR_CANCELLED, "session: cancelled");
    else
        status = advance(s, tokens, (int32_t)n, rows, scores, score_size);
    dsv2i_free(&s->model->ctx->mem, rows);
    if (status != DSV2_OK) {
        dsv2i_kv_truncate(&s->kv, s->pos);
        s->has_logits = had_logits;
        return status;
    }
    memcpy(s->tokens + s->pos, tokens, n * sizeof *tokens);
    s->pos += (int32_t)n;
    if (!decoded)
        s->n_prompt = s->pos;
    s->has_logits = 1;
    return DSV2_OK;
}

dsv2_status dsv2i_session_truncate(dsv2_session *s, size_t n)
{
    if (n > (size_t)s->pos)
        return dsv2i_fail(DSV2_ERR_INVALID, "n: %zu is above the position %d", n, s->pos);
    if (n == (size_t)s->pos)
        return DSV2_OK;
    dsv2i_kv_truncate(&s->kv, (int32_t)n);
    s->pos = (int32_t)n;
    s->n_prompt = min_i32(s->n_prompt, s->pos);
    s->has_logits = 0;
    return DSV2_OK;
}

dsv2_status dsv2i_session_fork(const dsv2_session *s, dsv2_session **out)
{
    dsv2_session *f;
    dsv2_status status;

    DSV2I_TRY(session_new(s->model, s, &f));
    status = dsv2i_kv_share(&f->kv, &s->kv);
    if (status == DSV2_OK && s->pos) {
        f->tokens = dsv2i_alloc(&s->model->ctx->mem, (size_t)s->pos, sizeof *f->tokens);
        if (!f->tokens)
            status = dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory for %d tokens", s->pos);
    }
    if (status != DSV2_OK) {
        dsv2i_session_free(f);
        return status;
    }
    if (s->pos)
        memcpy(f->tokens, s->tokens, (size_t)s->pos * sizeof *f->tokens);
    f->tokens_capacity = (size_t)s->pos;
    f->pos = s->pos;
    f->n_prompt = s->n_prompt;
    f->has_logits = s->has_logits;
    if (s->has_logits)
        memcpy(f->logits, s->logits, (size_t)s->model->config.shape.vocab_size * sizeof *f->logits);
    *out = f;
    return DSV2_OK;
}
