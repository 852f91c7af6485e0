/* The data model of a loaded checkpoint on one screen.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_MODEL_H
#define DSV2I_MODEL_H

#include "chat.h"
#include "config.h"
#include "context.h"
#include "tokenizer.h"

struct dsv2i_layer {
    const float *input_layernorm;           /* (hidden) */
    struct dsv2i_weight q_proj;             /* (heads * (nope + rope), hidden); only if q_lora_rank is 0 */
    struct dsv2i_weight q_a_proj, q_b_proj; /* (q_lora, hidden), (heads * (nope + rope), q_lora) */
    const float *q_a_layernorm;             /* (q_lora) */
    struct dsv2i_weight kv_a_proj_with_mqa; /* (kv_lora + rope, hidden) */
    struct dsv2i_mla mla;                   /* kv_a_layernorm, kv_b_proj */
    struct dsv2i_weight o_proj;             /* (hidden, heads * v) */
    const float *post_attention_layernorm;  /* (hidden) */
    struct dsv2i_ffn mlp;                   /* dense layer: mlp; MoE layer: shared_experts (gate.rows 0: none) */
    struct dsv2i_weight router;             /* (n_routed, hidden); rows 0 in a dense layer */
    struct dsv2i_ffn *experts;              /* (n_routed) */
};

struct dsv2_model {
    atomic_int refs;
    dsv2_context *ctx;
    char *folder;                           /* for messages */
    struct dsv2i_config config;
    struct dsv2i_generation generation;
    struct dsv2i_weight embed_tokens, lm_head; /* (vocab, hidden) */
    const float *norm;                      /* (hidden) */
    struct dsv2i_layer *layers;             /* (num_hidden_layers) */
    struct dsv2i_tokenizer *tokenizer;      /* NULL: none in the folder */
    struct dsv2i_chat *chat;                /* never NULL */
    dsv2_model_info info;
    uint64_t weight_memory, other_memory;   /* bytes held, for dsv2_memory */
    uint64_t tokenizer_hash;                /* of tokenizer.json; 0: none */
    atomic_uint_least64_t weights_hash;     /* see fingerprint.h; 0: nobody has asked yet */
    struct dsv2i_blobs *blobs;              /* mappings and blocks that the weights point into; NULL: the backend has copies, in */
    void *block;                            /* backend memory */
    size_t block_bytes;
    const uint32_t *is_token;               /* there, too: bit i is set if id i is a token, not padding; NULL: nothing is known */
    int32_t n_rows;                         /* of the greatest step that memory is reserved for; read and written in a turn */
};

dsv2_status dsv2i_model_load(dsv2_context *ctx, const char *folder, const dsv2_model_params *params, dsv2_model **out);
dsv2_status dsv2i_model_inspect(dsv2_context *ctx, const char *folder, const dsv2_model_params *params,
                                const dsv2_session_params *session, dsv2_model_info *info, dsv2_memory *memory);
void dsv2i_model_retain(dsv2_model *m);
void dsv2i_model_release(dsv2_model *m);

#endif
