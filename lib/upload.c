/* Every weight of a model in one order: counted first, then put into one block.
 * SPDX-License-Identifier: MIT */
#include "upload.h"

#include "config.h"

#define ALIGNMENT 256 /* of every weight: as memory of a device comes */

struct upload {
    dsv2_model *m;
    struct dsv2i_backend *be;
    char *block;    /* NULL: count only */
    size_t used;
    dsv2i_report_fn report;
    void *user;
};

static dsv2_status device_failed(const struct upload *u)
{
    return dsv2i_fail(DSV2_ERR_DEVICE, "%s: weights: %s", u->m->folder, u->be->op->failure(u->be));
}

/* The place of the next bytes. */
static void *place(struct upload *u, size_t bytes)
{
    void *at = u->block ? u->block + u->used : NULL;

    u->used += (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    return at;
}

static dsv2_status put(struct upload *u, struct dsv2i_weight *w, int attention)
{
    size_t bytes = w->rows ? u->be->op->weight_bytes(u->be, w, attention) : 0;
    void *to = place(u, bytes);

    if (!to || !bytes)
        return DSV2_OK;
    if (u->be->op->weight_put(u->be, to, w, attention))
        return device_failed(u);
    return u->report(u->user, bytes);
}

/* A vector is a weight of one row. */
static dsv2_status put_vector(struct upload *u, const float **v, int32_t n)
{
    struct dsv2i_weight w = {.dtype = DSV2I_F32, .rows = 1, .cols = n, .data = *v};

    DSV2I_TRY(put(u, &w, 0));
    *v = w.data;
    return DSV2_OK;
}

static dsv2_status put_ffn(struct upload *u, struct dsv2i_ffn *f, int32_t n)
{
    void *table;

    for (int32_t i = 0; i < n; i++) {
        DSV2I_TRY(put(u, &f[i].gate, 0));
        DSV2I_TRY(put(u, &f[i].up, 0));
        DSV2I_TRY(put(u, &f[i].down, 0));
    }
    table = place(u, u->be->op->table_bytes(u->be, n));
    return table && u->be->op->table_put(u->be, table, f, n) ? device_failed(u) : DSV2_OK;
}

static dsv2_status put_layer(struct upload *u, struct dsv2i_layer *y)
{
    const struct dsv2i_shape *s = &u->m->config.shape;

    DSV2I_TRY(put_vector(u, &y->input_layernorm, s->hidden_size));
    DSV2I_TRY(put(u, &y->q_proj, 0));
    DSV2I_TRY(put(u, &y->q_a_proj, 0));
    if (s->q_lora_rank)
        DSV2I_TRY(put_vector(u, &y->q_a_layernorm, s->q_lora_rank));
    DSV2I_TRY(put(u, &y->q_b_proj, 0));
    DSV2I_TRY(put(u, &y->kv_a_proj_with_mqa, 0));
    DSV2I_TRY(put_vector(u, &y->mla.kv_a_norm, s->kv_lora_rank));
    DSV2I_TRY(put(u, &y->mla.kv_b, 1));
    DSV2I_TRY(put(u, &y->o_proj, 0));
    DSV2I_TRY(put_vector(u, &y->post_attention_layernorm, s->hidden_size));
    if (y->mlp.gate.rows)
        DSV2I_TRY(put_ffn(u, &y->mlp, 1));
    DSV2I_TRY(put(u, &y->router, 0));
    return y->router.rows ? put_ffn(u, y->experts, s->n_routed_experts) : DSV2_OK;
}

/* Which ids are tokens, for a backend that samples. */
static dsv2_status put_tokens(struct upload *u)
{
    const struct dsv2i_hooks *mem = &u->m->ctx->mem;
    int32_t n = u->m->config.shape.vocab_size;
    size_t words = (size_t)n / 32 + 1;
    uint32_t *bits, *to = u->used && u->m->tokenizer && u->be->op->sample ? place(u, words * sizeof *bits) : NULL;
    int failed;

    if (!to)
        return DSV2_OK;
    bits = dsv2i_calloc(mem, words, sizeof *bits);
    if (!bits)
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s: no memory for %zu bytes", u->m->folder, words * sizeof *bits);
    for (int32_t i = 0; i < n; i++)
        if (dsv2i_tokenizer_has(u->m->tokenizer, i))
            bits[i / 32] |= 1u << i % 32;
    failed = u->be->op->mem_copy(u->be, to, bits, words * sizeof *bits);
    dsv2i_free(mem, bits);
    u->m->is_token = to;
    return failed ? device_failed(u) : DSV2_OK;
}

static dsv2_status put_all(struct upload *u)
{
    dsv2_model *m = u->m;
    const struct dsv2i_shape *s = &m->config.shape;

    DSV2I_TRY(put(u, &m->embed_tokens, 0));
    for (int32_t i = 0; i < s->num_hidden_layers; i++)
        DSV2I_TRY(put_layer(u, &m->layers[i]));
    DSV2I_TRY(put_vector(u, &m->norm, s->hidden_size));
    if (m->config.tie_word_embeddings)
        m->lm_head = m->embed_tokens;
    else
        DSV2I_TRY(put(u, &m->lm_head, 0));
    return put_tokens(u);
}

size_t dsv2i_upload_bytes(const dsv2_model *m)
{
    struct upload u = {.m = (dsv2_model *)(uintptr_t)m, .be = m->ctx->backend}; /* counting changes nothing */

    put_all(&u);
    return u.used;
}

dsv2_status dsv2i_upload(dsv2_model *m, dsv2i_report_fn report, void *user)
{
    struct upload u = {.m = m, .be = m->ctx->backend, .report = report, .user = user};
    size_t bytes = dsv2i_upload_bytes(m);

    m->block = u.be->op->mem_alloc(u.be, bytes);
    if (!m->block)
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s: no memory for weights: %zu bytes", m->folder, bytes);
    m->block_bytes = bytes;
    u.block = m->block;
    return put_all(&u);
}
