/* Before attention: rotate the rope part of each head's query in place; normalize the latent, rotate the shared key,
 * and write both to the row's page.  Pairs are interleaved, (x[2i], x[2i+1]), as the checkpoint stores them.
 *
 * SPDX-License-Identifier: MIT */
#include "kv_codec.h"

#define LATENT_EPS 1e-6f /* the published code's constructor default, whatever the config says */

struct prepare {
    float *q;
    const float *kva;
    const struct dsv2i_mla *mla;
    int32_t layer;
};

static void rotate(float *to, const float *x, const float *cs, int32_t n)
{
    for (int32_t i = 0; i < n; i += 2) {
        float a = x[i], b = x[i + 1];

        to[i] = a * cs[i] - b * cs[i + 1];
        to[i + 1] = b * cs[i] + a * cs[i + 1];
    }
}

static void prepare_row(struct dsv2i_cpu *be, const void *arg, int32_t row, int32_t thread)
{
    const struct prepare *a = arg;
    const struct dsv2i_shape *s = be->shape;
    const struct dsv2i_batch *b = be->batch;
    int32_t rope = s->qk_rope_head_dim, width = s->kv_lora_rank + rope, pos = b->pos[row];
    size_t head = (size_t)s->qk_nope_head_dim + (size_t)rope;
    const float *cs = (const float *)(be->scratch + be->plan.rope) + (size_t)row * (size_t)rope;
    const float *kva = a->kva + (size_t)row * (size_t)width;
    float *q = a->q + (size_t)row * (size_t)s->num_attention_heads * head + s->qk_nope_head_dim;
    float *kv = dsv2i_thread_free(be, thread);
    const struct dsv2i_seq *seq = &b->seqs[b->seq[row]];
    size_t slot = (size_t)a->layer * DSV2I_PAGE_TOKENS + (size_t)(pos % DSV2I_PAGE_TOKENS);
    size_t bytes = dsv2i_kv_record(seq->kv_type, s->kv_lora_rank, rope).bytes;

    for (int32_t h = 0; h < s->num_attention_heads; h++, q += head)
        rotate(q, q, cs, rope);
    be->inner.rms_norm(kv, kva, a->mla->kv_a_norm, s->kv_lora_rank, LATENT_EPS);
    rotate(kv + s->kv_lora_rank, kva + s->kv_lora_rank, cs, rope);
    dsv2i_kv_write(&be->inner, (char *)seq->page[pos / DSV2I_PAGE_TOKENS] + slot * bytes, kv, seq->kv_type, s->kv_lora_rank, rope);
}

void dsv2i_op_mla_prepare(struct dsv2i_backend *base, float *q, const float *kva, const struct dsv2i_mla *mla,
                          int32_t layer)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);
    const struct dsv2i_shape *s = be->shape;
    struct prepare a = { q, kva, mla, layer };
    double per_row = 4.0 * s->num_attention_heads * s->qk_rope_head_dim + 8.0 * s->kv_lora_rank;

    dsv2i_pool_run(be, prepare_row, &a, be->batch->n_rows, per_row * be->batch->n_rows);
}
