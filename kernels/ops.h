/* What lib/ and kernels/ share: what a backend is, and the operations of the model it offers.  (Beside it: sampling.h, the arithmetic of
 * choosing a token, and cuda/module.h, how the CUDA backend is opened.)
 *
 * SPDX-License-Identifier: MIT
 *
 * Operations are cut where a fused kernel would be cut, so a backend is free inside.  They work on rows: a row is one token of
 * one sequence.  Prompt pieces, decode steps and mixtures are only different row lists.  Every result of a row depends on that
 * row and its sequence alone: the same bits whatever other rows stand beside it, however they were cut into calls, and for
 * any thread count.  (n, d) in comments is a row-major matrix.  Activations are fp32.
 *
 * Operations return nothing: memory is there before they start (reserve), and device errors are sticky until finish.  Pointers to
 * activations, weights and pages are the backend's memory, which the host may not be able to read. */
#ifndef DSV2I_OPS_H
#define DSV2I_OPS_H

#include <stddef.h>
#include <stdint.h>

#define DSV2I_MOST_ROWS 4096 /* of a step */
#define DSV2I_PAGE_TOKENS 64 /* tokens in a KV page; also the block in which attention reduces */

/* F8_E4M3 is the type without infinities ("fn"), and goes with scales. */
enum dsv2i_dtype {
    DSV2I_F32 = 1, DSV2I_BF16 = 2, DSV2I_F16 = 3, DSV2I_F8_E4M3 = 4,
    DSV2I_DTYPES /* the number behind the last */
};

static inline size_t dsv2i_dtype_size(int32_t dtype)
{
    return dtype == DSV2I_F32 ? 4 : dtype == DSV2I_F8_E4M3 ? 1 : 2;
}

#define DSV2I_KV_FORMAT 1 /* what the bytes of a token mean; a change makes saved sessions unreadable, and this number another */

/* How a KV page stores a token of a layer: DSV2_KV_* of dsv2.h. */
enum dsv2i_kv_type {
    DSV2I_KV_BF16 = 0, DSV2I_KV_F32 = 1, DSV2I_KV_F8_E4M3 = 2, DSV2I_KV_F8_E5M2 = 3, DSV2I_KV_INT8 = 4, DSV2I_KV_6BIT = 5,
    DSV2I_KV_TYPES /* how many */
};

/* Where a backend gets host memory.  alloc returns NULL when there is none. */
struct dsv2i_hooks {
    void *(*alloc)(void *user, size_t size, size_t alignment);
    void (*free)(void *user, void *ptr, size_t size);
    void *user;
};

/* Sizes that every operation may need; names are those of config.json. */
struct dsv2i_shape {
    int32_t hidden_size, vocab_size, num_hidden_layers, num_attention_heads;
    int32_t q_lora_rank; /* 0: none */
    int32_t kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
    int32_t intermediate_size, moe_intermediate_size;
    int32_t n_routed_experts, n_shared_experts, num_experts_per_tok; /* 0 routed: all layers dense */
    float softmax_scale;
    float rope_multiplier;   /* on cos and sin; 1 for every release */
    const double *inv_freq;  /* (qk_rope_head_dim / 2) */
};

/* A weight as the backend holds it: (rows, cols) = [out_features, in_features], row-major.
 *
 * Of a quantized type (F8_E4M3) element (r, c) is its code times scale[r / scale_rows][c / scale_cols], rounded to fp32 once, before
 * anything is multiplied by it.  Blocks of scale_rows x scale_cols cover the weight from its first element on, those at the edges
 * partly: (rows, cols) is a scale for all, (1, cols) one per row, (128, 128) one per such block.  scale_cols is a multiple of
 * DSV2I_SCALE_COLS unless it is cols.  Scales are positive, and finite times the greatest code. */
struct dsv2i_weight {
    int32_t dtype, rows, cols;
    const void *data;  /* of the checkpoint, aligned to an element, until weight_put makes it the backend's */
    const float *scale; /* (ceil(rows / scale_rows), ceil(cols / scale_cols)); not used for other types */
    int32_t scale_rows, scale_cols;
};

#define DSV2I_SCALE_COLS 32 /* elements of a row that share a scale: at least */

struct dsv2i_route {
    int32_t n_group, topk_group; /* 1, 1 for greedy */
    int32_t top_k;
    int32_t norm_topk_prob;      /* w /= sum(w) + 1e-20 when top_k > 1, and then no scaling (remote code) */
    float routed_scaling_factor;
};

struct dsv2i_mla {
    const float *kv_a_norm;     /* (kv_lora_rank) */
    struct dsv2i_weight kv_b;   /* (heads * (nope + v), kv_lora_rank); per head nope rows UK, then v rows UV */
};

struct dsv2i_ffn {
    struct dsv2i_weight gate, up, down; /* (inter, hidden), (inter, hidden), (hidden, inter) */
    const void *table; /* the backend's, of this one and those behind it in an array: see table_put */
};

enum dsv2i_attention { DSV2I_ABSORBED = 0, DSV2I_EXPANDED = 1 };

/* One sequence in a batch.  page[i] holds positions i*64 .. i*64+63 of all layers: (layers, 64, kv_token_bytes), a token being its
 * normalized latent, then the roped key in interleaved order. */
struct dsv2i_seq {
    void *const *page;
    int32_t form;    /* enum dsv2i_attention */
    int32_t kv_type; /* enum dsv2i_kv_type */
};

/* The rows of a step.  Rows of one sequence are adjacent, with ascending consecutive positions. */
struct dsv2i_batch {
    int32_t n_rows, n_seqs;
    const int32_t *token;    /* (n_rows) */
    const int32_t *pos;      /* (n_rows) position in the sequence, from 0 */
    const int32_t *seq;      /* (n_rows) index into seqs, ascending */
    const struct dsv2i_seq *seqs;
    const void *model;       /* whose weights: steps of the same model that are plain are the same operations on the same memory */
    int32_t plain;           /* each sequence has one row, whose logits are wanted, and nothing else is */
};

struct dsv2i_score {
    float logprob;
    int32_t rank, top_token;
    float top_logprob;
};

/* What a row's token is chosen by: dsv2_sample_params of dsv2.h and what dsv2i_sample_row of sampler.h adds, without callback. */
struct dsv2i_bias {
    int32_t token;
    float bias;
};
struct dsv2i_seen {
    int32_t token;  /* of prompt or output */
    uint32_t count; /* in the output */
};
struct dsv2i_sampling {
    uint64_t seed, pos;
    double per_temperature, lowest; /* dsv2i_per_temperature and dsv2i_lowest (sampling.h) of temperature and min_p */
    int32_t greedy;                 /* temperature is below DSV2I_GREEDY_BELOW */
    int32_t top_k;                  /* below 1: off */
    float top_p;                    /* 1: off */
    float repetition_penalty, presence_penalty, frequency_penalty;
    int32_t n_banned, n_bias, n_seen;
    const int32_t *banned;          /* at -infinity: eos and stop tokens before min_tokens */
    const struct dsv2i_bias *bias;  /* by ascending token; of the same token, in the caller's order */
    const struct dsv2i_seen *seen;  /* each token once; none if no penalty is on */
};

struct dsv2i_backend;

struct dsv2i_ops {
    /* Release the backend. */
    void (*close)(struct dsv2i_backend *be);

    /* Backend memory, 64-byte aligned, uninitialised; NULL when there is none. */
    void *(*mem_alloc)(struct dsv2i_backend *be, size_t bytes);
    void (*mem_free)(struct dsv2i_backend *be, void *ptr, size_t bytes);

    /* Copy between two places, each in backend memory or the host's: 0, or -1 if the device failed.  Not in a step. */
    int (*mem_copy)(struct dsv2i_backend *be, void *to, const void *from, size_t bytes);

    /* Bytes of backend memory that a weight needs; 0 if the backend uses the checkpoint's own bytes, which then outlive that use.
     * attention: it is kv_b. */
    size_t (*weight_bytes)(struct dsv2i_backend *be, const struct dsv2i_weight *w, int attention);

    /* Make a weight the backend's, in so many bytes at to: data, scale and dtype change.  0, or -1 if the device failed. */
    int (*weight_put)(struct dsv2i_backend *be, void *to, struct dsv2i_weight *w, int attention);

    /* The same for what the backend wants to know of n layers in an array, made of weights that are its own: -1 also if it cannot run them
     * together (types or scales differ). */
    size_t (*table_bytes)(struct dsv2i_backend *be, int32_t n);
    int (*table_put)(struct dsv2i_backend *be, void *to, struct dsv2i_ffn *ffn, int32_t n);

    /* Bytes of one token of one layer in a page. */
    size_t (*kv_token_bytes)(struct dsv2i_backend *be, const struct dsv2i_shape *shape, int32_t kv_type);

    /* Rows of memory that activations of n rows need: operations may write so many. */
    int32_t (*memory_rows)(struct dsv2i_backend *be, int32_t n);

    /* Scratch that the operations need inside for steps of up to n_rows rows of a model of this shape.  reserve makes sure of it
     * (it only grows): 0, or -1 when there is no memory and everything is as before. */
    size_t (*scratch_bytes)(struct dsv2i_backend *be, const struct dsv2i_shape *shape, int32_t n_rows);
    int (*reserve)(struct dsv2i_backend *be, const struct dsv2i_shape *shape, int32_t n_rows);

    /* A step: begin; the operations; submit; fetch; finish.  One at a time per backend (the caller serializes); batch and shape stay
     * valid until finish.
     *
     * begin: 1 if the backend has recorded the operations of such a step (see plain) and none is to be called; else 0.
     * submit: all operations have been called; what they compute is on its way: 0.  Or 1: nothing of it is done, through no fault of theirs
     * (they were being recorded, which the host's own use of the device can spoil): finish, then make the step again.
     * fetch: copy from backend memory to the host; there when finish returns.
     * finish: 0, or -1 if anything failed since begin; failure then has a text, valid until the next step. */
    int (*begin)(struct dsv2i_backend *be, const struct dsv2i_shape *shape, const struct dsv2i_batch *batch);
    int (*submit)(struct dsv2i_backend *be);
    void (*fetch)(struct dsv2i_backend *be, void *to, const void *from, size_t bytes);
    int (*finish)(struct dsv2i_backend *be);
    const char *(*failure)(struct dsv2i_backend *be);

    /* Drop what is recorded of a model; of all when it is NULL. */
    void (*forget)(struct dsv2i_backend *be, const void *model);

    /* x (n_rows, hidden) = rows token[i] of the table */
    void (*embed)(struct dsv2i_backend *be, float *x, const struct dsv2i_weight *table);

    /* y[i] = x[i] / sqrt(mean(x[i]^2) + eps) * w, rows of dim elements, ldx and ldy floats apart; y may be x */
    void (*rms_norm)(struct dsv2i_backend *be, float *y, int32_t ldy, const float *x, int32_t ldx, const float *w,
                     int32_t n, int32_t dim, float eps);

    /* y (n, w.rows) = x (n, w.cols) W^T, or += with accumulate */
    void (*linear)(struct dsv2i_backend *be, float *y, const float *x, const struct dsv2i_weight *w, int32_t n,
                   int accumulate);

    /* From q (n_rows, heads, nope + rope) and kva (n_rows, kv_lora_rank + rope): rotate q's rope part in place, normalize the latent
     * (eps 1e-6), rotate the shared key, and write both to the rows' pages of this layer. */
    void (*mla_prepare)(struct dsv2i_backend *be, float *q, const float *kva, const struct dsv2i_mla *mla, int32_t layer);

    /* o (n_rows, heads, v) = causal attention of prepared q over each row's pages, positions 0..pos.  The form is the sequence's.
     * Reduces in blocks of DSV2I_PAGE_TOKENS keys counted from position 0. */
    void (*mla_attend)(struct dsv2i_backend *be, float *o, const float *q, const struct dsv2i_mla *mla, int32_t layer);

    /* y (n, hidden) += down(silu(gate x) * up x) */
    void (*ffn)(struct dsv2i_backend *be, float *y, const float *x, const struct dsv2i_ffn *w, int32_t n);

    /* Choose experts: p = softmax(gate x) over all; group_limited_greedy by the groups' maxima; w = p * routed_scaling_factor.
     * idx, weight (n, top_k) by descending p, lowest index first on ties (groups too). */
    void (*moe_route)(struct dsv2i_backend *be, int32_t *idx, float *weight, const float *x,
                      const struct dsv2i_weight *gate, const struct dsv2i_route *route, int32_t n);

    /* y (n, hidden) += sum over slots j, in slot order, of weight[j] * expert_idx[j](x) */
    void (*moe_experts)(struct dsv2i_backend *be, float *y, const float *x, const struct dsv2i_ffn *experts,
                        const int32_t *idx, const float *weight, int32_t n, int32_t top_k);

    /* out[i] = where target[i] stands in log_softmax(head x[i]); memory for a few thousand vocabulary columns at a time only.
     * x (n, hidden) is already normalized; target is in the host's memory.  A NaN among the logits gives logprob NaN. */
    void (*score)(struct dsv2i_backend *be, struct dsv2i_score *out, const float *x, const struct dsv2i_weight *head,
                  const int32_t *target, int32_t n);

    /* token[i] = what lib/sampler.c chooses from row i of logits (n, vocab) by how[i], or -1 where it finds a number that is none or no token
     * left, and its log-probability; nothing where how[i] is NULL.  Bit i % 32 of word i / 32 of is_token (backend memory; NULL: all are)
     * says whether id i is a token.  how, its lists, token and logprob are in the host's memory; results are there when finish returns.  n is
     * at most logit_rows, vocab a multiple of 4.  After submit.  A backend without it leaves this to the host. */
    void (*sample)(struct dsv2i_backend *be, int32_t *token, float *logprob, const float *logits, int32_t vocab, const uint32_t *is_token,
                   const struct dsv2i_sampling *const *how, int32_t n);
};

/* Every backend begins with this. */
struct dsv2i_backend {
    const struct dsv2i_ops *op;
    uint64_t memory;    /* bytes of the device; 0: it uses the host's */
    int32_t logit_rows; /* rows that share a pass over lm_head: enough to make it a matter of arithmetic, few enough for little memory */
};

/* The CPU backend.  level: DSV2_CPU_* of dsv2.h (-1 = best); n_threads 0 = one per allowed core.
 * 0; -1 no memory or threads; -2 the machine lacks the level. */
int dsv2i_cpu_open(const struct dsv2i_hooks *hooks, int32_t level, int32_t n_threads, struct dsv2i_backend **out);

/* Threads and level it really uses. */
int32_t dsv2i_cpu_threads(const struct dsv2i_backend *be);
int32_t dsv2i_cpu_level(const struct dsv2i_backend *be);

#endif
