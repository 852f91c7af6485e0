/* One sequence: create, truncate, fork, and what it costs.
 * SPDX-License-Identifier: MIT */
#include "session.h"

#include <string.h>

#include "forward.h"
#include "params.h"

static int32_t min_i32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

_Static_assert((int)DSV2_KV_BF16 == DSV2I_KV_BF16 && (int)DSV2_KV_F32 == DSV2I_KV_F32 &&
                   (int)DSV2_KV_F8_E4M3 == DSV2I_KV_F8_E4M3 && (int)DSV2_KV_F8_E5M2 == DSV2I_KV_F8_E5M2 &&
                   (int)DSV2_KV_INT8 == DSV2I_KV_INT8 && (int)DSV2_KV_6BIT == DSV2I_KV_6BIT && DSV2I_KV_TYPES == 6,
               "one numbering");

static dsv2_status take_params(const struct dsv2i_config *c, const dsv2_session_params *params, dsv2_session_params *p)
{
    static const char name[] = "dsv2_session_params";

    dsv2_session_params_init(p, sizeof *p);
    DSV2I_TRY(dsv2i_params_take(p, sizeof *p, params, name));
    if (p->n_ctx < 0 || p->n_ctx > c->max_position_embeddings)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: n_ctx: %d is not in 0..%d (max_position_embeddings)", name, p->n_ctx,
                          c->max_position_embeddings);
    if (p->kv_type < 0 || p->kv_type >= DSV2I_KV_TYPES)
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
    if (p.pool)
        p.kv_type = p.pool->kv_type;
    page = dsv2i_kv_page_bytes(be, &c->shape, p.kv_type);
    fixed = weights + other + dsv2i_forward_bytes(ctx, &c->shape, p.n_batch) + be->op->scratch_bytes(be, &c->shape, p.n_batch);
    if (!p.n_ctx) {
        uint64_t room = ctx->memory_bytes > fixed ? (ctx->memory_bytes - fixed) / page * DSV2I_PAGE_TOKENS : 0;

        if (p.pool && p.pool->capacity)
            room = p.pool->capacity * DSV2I_PAGE_TOKENS;
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
        .scratch = dsv2i_forward_bytes(ctx, &c->shape, min_i32(p.n_batch, p.n_ctx)) +
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
    p.pool = s->kv.pool;
    p.attention = s->attention;
    p.n_batch = s->n_batch;
    return dsv2i_session_estimate(s->model->ctx, &s->model->config, &p, s->model->weight_memory, s->model->other_memory, out);
}

/* An empty session with the parameters of like, which takes its pages from pool. */
static dsv2_status session_new(dsv2_model *m, const dsv2_session *like, dsv2_pool *pool, dsv2_session **out)
{
    const struct dsv2i_hooks *mem = &m->ctx->mem;
    dsv2_session *s = dsv2i_calloc(mem, 1, sizeof *s);

    if (!s)
        return dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory");
    s->n_ctx = like->n_ctx;
    s->attention = like->attention;
    s->n_batch = like->n_batch;
    s->cache_namespace = like->cache_namespace;
    s->progress = like->progress;
    s->progress_user = like->progress_user;
    s->logits = dsv2i_alloc(mem, (size_t)m->config.shape.vocab_size, sizeof *s->logits);
    if (!s->logits) {
        dsv2i_free(mem, s);
        return dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory for %d logits", m->config.shape.vocab_size);
    }
    atomic_init(&s->cancelled, 0);
    dsv2i_kv_init(&s->kv, pool);
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
    dsv2_pool *pool;
    dsv2_status status;

    DSV2I_TRY(take_params(&m->config, params, &p));
    if (p.pool && p.pool->model != m)
        return dsv2i_fail(DSV2_ERR_INVALID, "dsv2_session_params: pool: it belongs to another model");
    DSV2I_TRY(dsv2i_session_estimate(m->ctx, &m->config, params, m->weight_memory, m->other_memory, &memory));
    if (!p.n_ctx && !p.pool && memory.n_ctx < m->config.max_position_embeddings)
        dsv2i_log(m->ctx, DSV2_LOG_WARNING, "dsv2_session_params: n_ctx: %d of %d: memory_bytes %llu, of which the weights take %llu, has no room "
                  "for more", memory.n_ctx, m->config.max_position_embeddings, (unsigned long long)m->ctx->memory_bytes,
                  (unsigned long long)m->weight_memory);
    like = (dsv2_session){
        .n_ctx = memory.n_ctx,
        .attention = p.attention,
        .n_batch = min_i32(p.n_batch, memory.n_ctx),
        .cache_namespace = p.cache_namespace,
        .progress = p.progress,
        .progress_user = p.progress_user,
    };
    DSV2I_TRY(dsv2i_forward_reserve(m, like.n_batch));
    pool = p.pool;
    if (pool)
        dsv2i_pool_retain(pool);
    else
        DSV2I_TRY(dsv2i_pool_create(m, NULL, p.kv_type, &pool));
    status = session_new(m, &like, pool, out);
    dsv2i_pool_release(pool);
    return status;
}

void dsv2i_session_free(dsv2_session *s)
{
    const struct dsv2i_hooks *mem;
    dsv2_model *m;

    if (!s)
        return;
    m = s->model;
    mem = &m->ctx->mem;
    dsv2i_kv_free(&s->kv);
    dsv2i_free(mem, s->tokens);
    dsv2i_free(mem, s->logits);
    dsv2i_free(mem, s);
    dsv2i_model_release(m);
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
    dsv2_session *f = NULL;
    dsv2_status status;

    DSV2I_TRY(session_new(s->model, s, s->kv.pool, &f));
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
