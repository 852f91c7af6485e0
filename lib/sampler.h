/* Choosing a token from a row of logits: the steps of spec section 7, vLLM's column.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_SAMPLER_H
#define DSV2I_SAMPLER_H

#include "sampling.h"
#include "session.h"

/* What a choice depends on besides the parameters. */
struct dsv2i_sample_row {
    const float *logits;        /* (n_vocab) raw */
    int32_t n_vocab;
    const int32_t *tokens;      /* (pos) the sequence so far, ids below n_vocab */
    int32_t n_prompt, pos;      /* the first n_prompt tokens are prompt, the rest output */
    const int32_t *eos;         /* (n_eos) */
    int32_t n_eos;
    const struct dsv2i_tokenizer *tokenizer; /* says which ids are tokens, not padding; NULL: all are */
};

/* A token that may be drawn. */
struct dsv2i_candidate {
    int32_t id;
    uint32_t key;   /* dsv2i_order of its logit */
    double x;       /* dsv2i_x of it */
};

/* Bytes of scratch, aligned to 16, for a row. */
size_t dsv2i_sample_scratch(int32_t n_vocab);

/* Ranges: INVALID names field and value. */
dsv2_status dsv2i_sample_check(const dsv2_sample_params *params, int32_t n_vocab);

/* The whole choice, with checked parameters.  Errors: NUMERIC, CANCELLED. */
dsv2_status dsv2i_sample_choose(const struct dsv2i_sample_row *row, const dsv2_sample_params *params, void *scratch,
                                int32_t *token);

/* Its parts.  edit: logits (n_vocab) = the raw ones after min_tokens, logit_bias, penalties, callback, padding at
 * -infinity; counts (n_vocab) is scratch.  keep: what temperature, min_p, top_k and top_p leave, by ascending id; returns
 * their number.  draw: the winner among n >= 1 candidates of the exponential race at position pos. */
dsv2_status dsv2i_sample_edit(const struct dsv2i_sample_row *row, const dsv2_sample_params *params, float *logits,
                              uint32_t *counts);
int32_t dsv2i_sample_keep(const float *logits, int32_t n_vocab, const dsv2_sample_params *params,
                          struct dsv2i_candidate *out);
int32_t dsv2i_sample_draw(const struct dsv2i_candidate *candidates, int32_t n, uint64_t seed, uint64_t pos);

/* Parameters as given over the model's defaults, checked. */
dsv2_status dsv2i_sample_take(const dsv2_model *model, const dsv2_sample_params *given, dsv2_sample_params *params);

/* Choose from the session's logits as those after token pos - 1, with n_prompt tokens of prompt.  logprob may be NULL. */
dsv2_status dsv2i_sample_at(const dsv2_session *s, int32_t pos, int32_t n_prompt, const dsv2_sample_params *params, int32_t *token,
                            float *logprob);

/* The same choice as a backend wants it (no callback).  *lists, to be freed, is what out points into, or NULL. */
dsv2_status dsv2i_sampling_make(const dsv2_session *s, int32_t pos, int32_t n_prompt, const dsv2_sample_params *params,
                                struct dsv2i_sampling *out, void **lists);

/* The public functions, arguments not NULL, logits present. */
void dsv2i_sample_params_init(dsv2_sample_params *params, size_t size, const dsv2_model *model);
dsv2_status dsv2i_sample(const dsv2_session *s, const dsv2_sample_params *params, int32_t *token, float *logprob);

#endif
