/* Which model is it?  Hashes of what its results come from.
 *
 * SPDX-License-Identifier: MIT
 *
 *   config      quantities that the computation uses, derived ones at fp32, so that neither keys without effect nor a last bit of
 *               pow() make a difference
 *   tokenizer   the text of tokenizer.json
 *   weights     per tensor its type, shape and first 4 KiB.  Tensors come in the order of the model, not of the files, so a
 *               checkpoint stays itself when it is cut into other shards. */
#include "fingerprint.h"

#include <string.h>

#include "hash.h"

#define MOST_OF_A_TENSOR 4096

static void add_int(struct dsv2i_hasher *h, uint64_t v)
{
    unsigned char le[8];

    for (int i = 0; i < 8; i++)
        le[i] = (unsigned char)(v >> 8 * i);
    dsv2i_hash_add(h, le, sizeof le);
}

static void add_float(struct dsv2i_hasher *h, double v)
{
    float f = (float)v;
    uint32_t bits;

    memcpy(&bits, &f, sizeof bits);
    add_int(h, bits);
}

static uint64_t hash_config(const struct dsv2i_config *c)
{
    const struct dsv2i_shape *p = &c->shape;
    const struct dsv2i_route *r = &c->route;
    const int32_t ints[] = {
        p->hidden_size, p->vocab_size, p->num_hidden_layers, p->num_attention_heads, p->q_lora_rank, p->kv_lora_rank,
        p->qk_nope_head_dim, p->qk_rope_head_dim, p->v_head_dim, p->intermediate_size, p->moe_intermediate_size,
        p->n_routed_experts, p->n_shared_experts, p->num_experts_per_tok, r->n_group, r->topk_group, r->top_k, r->norm_topk_prob,
        c->first_k_dense_replace, c->moe_layer_freq, c->tie_word_embeddings,
    };
    struct dsv2i_hasher h;

    dsv2i_hash_begin(&h, 0);
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++)
        add_int(&h, (uint64_t)(int64_t)ints[i]);
    add_float(&h, r->routed_scaling_factor);
    add_float(&h, c->rms_norm_eps);
    add_float(&h, c->softmax_scale);
    add_float(&h, p->rope_multiplier);
    for (int32_t i = 0; i < p->qk_rope_head_dim / 2; i++)
        add_float(&h, c->inv_freq[i]);
    return dsv2i_hash_end(&h);
}

static void add_tensor(struct dsv2i_hasher *h, const void *data, int32_t dtype, int32_t rows, int32_t cols)
{
    size_t bytes = (size_t)rows * (size_t)cols * dsv2i_dtype_size(dtype);

    add_int(h, (uint64_t)dtype);
    add_int(h, (uint64_t)rows);
    add_int(h, (uint64_t)cols);
    if (bytes)
        dsv2i_hash_add(h, data, bytes < MOST_OF_A_TENSOR ? bytes : MOST_OF_A_TENSOR);
}

/* Scales are a tensor that follows its weight. */
static void add_matrix(struct dsv2i_hasher *h, const struct dsv2i_weight *w)
{
    add_tensor(h, w->data, w->dtype, w->rows, w->cols);
    if (w->dtype == DSV2I_F8_E4M3)
        add_tensor(h, w->scale, DSV2I_F32, (w->rows - 1) / w->scale_rows + 1, (w->cols - 1) / w->scale_cols + 1);
}

static void add_vector(struct dsv2i_hasher *h, const float *v, int32_t n)
{
    add_tensor(h, v, DSV2I_F32, 1, n);
}

static void add_ffn(struct dsv2i_hasher *h, const struct dsv2i_ffn *f)
{
    add_matrix(h, &f->gate);
    add_matrix(h, &f->up);
    add_matrix(h, &f->down);
}

/* What a layer does not have is a tensor without rows. */
static void add_layer(struct dsv2i_hasher *h, const struct dsv2i_shape *p, const struct dsv2i_layer *y)
{
    add_vector(h, y->input_layernorm, p->hidden_size);
    add_matrix(h, &y->q_proj);
    add_matrix(h, &y->q_a_proj);
    add_vector(h, y->q_a_layernorm, p->q_lora_rank);
    add_matrix(h, &y->q_b_proj);
    add_matrix(h, &y->kv_a_proj_with_mqa);
    add_vector(h, y->mla.kv_a_norm, p->kv_lora_rank);
    add_matrix(h, &y->mla.kv_b);
    add_matrix(h, &y->o_proj);
    add_vector(h, y->post_attention_layernorm, p->hidden_size);
    add_ffn(h, &y->mlp);
    add_matrix(h, &y->router);
    for (int32_t e = 0; e < y->router.rows; e++)
        add_ffn(h, &y->experts[e]);
}

static uint64_t hash_weights(const dsv2_model *m)
{
    const struct dsv2i_shape *p = &m->config.shape;
    struct dsv2i_hasher h;

    dsv2i_hash_begin(&h, 0);
    add_matrix(&h, &m->embed_tokens);
    for (int32_t i = 0; i < p->num_hidden_layers; i++)
        add_layer(&h, p, &m->layers[i]);
    add_vector(&h, m->norm, p->hidden_size);
    add_matrix(&h, &m->lm_head);
    return dsv2i_hash_end(&h);
}

struct dsv2i_fingerprint dsv2i_fingerprint(dsv2_model *m)
{
    uint64_t weights = atomic_load(&m->weights_hash);

    if (!weights) { /* several threads may find the same */
        weights = hash_weights(m);
        atomic_store(&m->weights_hash, weights);
    }
    return (struct dsv2i_fingerprint){hash_config(&m->config), m->tokenizer_hash, weights};
}
