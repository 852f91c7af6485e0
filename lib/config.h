/* config.json, its quantization_config, and generation_config.json: read, validated, derived.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CONFIG_H
#define DSV2I_CONFIG_H

#include "json.h"
#include "ops.h"

#define DSV2I_MAX_EOS 16
#define DSV2I_MAX_ROPE_DIM 1024

struct dsv2i_config {
    struct dsv2i_shape shape; /* inv_freq points to the array below: copy a config only with dsv2i_config_copy */
    struct dsv2i_route route;
    int32_t n_group, topk_group;    /* as in the file, 0 when null; route has what is used */
    int32_t first_k_dense_replace, moe_layer_freq, max_position_embeddings;
    int32_t bos_token_id, eos_token_id[DSV2I_MAX_EOS], n_eos; /* bos -1: none */
    int32_t tie_word_embeddings;
    int32_t dtype;                  /* DSV2I_* that torch_dtype names; 0: it names none */
    double rms_norm_eps, rope_theta, softmax_scale;
    double inv_freq[DSV2I_MAX_ROPE_DIM / 2];
};

/* generation_config.json; an absent file gives HF's meaning of "nothing said", which is greedy. */
struct dsv2i_generation {
    int32_t do_sample; /* 0: greedy, i.e. temperature 0 */
    double temperature, top_p, min_p, repetition_penalty;
    int32_t top_k, min_tokens; /* top_k 0: off */
    int32_t eos_token_id[2 * DSV2I_MAX_EOS], n_eos; /* those of generation_config.json, then others of config.json */
};

/* How the scales of fp8 weights lie: one for a tensor, one per row, one per block of DSV2I_SCALE_BLOCK rows and columns. */
enum dsv2i_scales { DSV2I_SCALES_NONE, DSV2I_SCALES_TENSOR, DSV2I_SCALES_ROW, DSV2I_SCALES_BLOCK };

#define DSV2I_SCALE_BLOCK 128

/* quantization_config (spec 6.1 to 6.3).  Which weights are fp8 is seen from the tensors; it says how to read those. */
struct dsv2i_quantization {
    int32_t scales;         /* enum dsv2i_scales; NONE: there is no quantization_config */
    const char *scale_name; /* X.weight has its scales in X.scale_name */
    const char *ignored_key; /* where the list of modules is that are not quantized */
    struct dsv2i_ignored *ignored;
    int32_t n_ignored;
    uint64_t time_left;     /* for regular expressions among them, in ns of processor time */
    const struct dsv2i_hooks *mem;
};

/* Layer l is MoE iff n_routed_experts > 0, l >= first_k_dense_replace and l % moe_layer_freq == 0 (spec 3.1). */
int dsv2i_config_is_moe(const struct dsv2i_config *c, int32_t layer);

/* Parse and validate; every error names file, key and value. */
dsv2_status dsv2i_config_parse(const char *file, const char *text, size_t n, struct dsv2i_config *out);
/* The quantization_config in the same text; out is to be freed whatever comes back. */
dsv2_status dsv2i_quantization_parse(const struct dsv2i_hooks *mem, const char *file, const char *text, size_t n,
                                     struct dsv2i_quantization *out);
void dsv2i_quantization_free(struct dsv2i_quantization *q);
/* OK, or the error that a module has quantized weights although the list says that it has not. */
dsv2_status dsv2i_quantization_check(struct dsv2i_quantization *q, const char *file, const char *module);
dsv2_status dsv2i_generation_parse(const char *file, const char *text, size_t n, const struct dsv2i_config *config,
                                   struct dsv2i_generation *out);
void dsv2i_generation_default(const struct dsv2i_config *config, struct dsv2i_generation *out);
void dsv2i_config_copy(struct dsv2i_config *dst, const struct dsv2i_config *src);

/* Parameters in all, and those used per token without the input embedding (spec 1.4). */
void dsv2i_config_parameters(const struct dsv2i_config *c, uint64_t *total, uint64_t *active);
/* Those of linear layers that checkpoints quantize: all but the head and the router. */
uint64_t dsv2i_config_quantizable(const struct dsv2i_config *c);

#endif
