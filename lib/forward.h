/* The model, written once over the op table.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_FORWARD_H
#define DSV2I_FORWARD_H

#include "model.h"

/* What a step leaves behind of a sequence besides its KV pages. */
struct dsv2i_output {
    int32_t row, n_rows;        /* its rows in the batch */
    int32_t n_scores;           /* 0: none */
    float *logits;              /* (vocab) after its last row; NULL: not wanted */
    const struct dsv2i_sampling *sampling; /* by which the backend chooses a token after its last row; NULL: it need not */
    int32_t drawn;              /* where the choice is, set by forward */
    const int32_t *target;      /* (n_scores) token after each of its first n_scores rows */
    struct dsv2i_score *scores; /* (n_scores) */
};

/* Asked between layers, and once more before outputs are computed.  It may withdraw what is wanted of a sequence (logits and sampling
 * NULL, n_scores 0).  Returns nonzero when nothing is wanted any more. */
typedef int32_t (*dsv2i_poll_fn)(void *user);

/* Bytes of activations for steps of up to n_rows rows. */
size_t dsv2i_forward_bytes(const dsv2_context *ctx, const struct dsv2i_shape *shape, int32_t n_rows);

/* Have activations and backend scratch for such steps of the model in its context.  NOMEM leaves everything as it was. */
dsv2_status dsv2i_forward_reserve(dsv2_model *m, int32_t n_rows);

/* Compute the batch (reserved for); out (n_seqs).  token, logprob (n_seqs): what the backend has chosen.  CANCELLED when poll has ended it;
 * outputs are then untouched. */
dsv2_status dsv2i_forward(const dsv2_model *m, const struct dsv2i_batch *batch, struct dsv2i_output *out, int32_t *token, float *logprob,
                          dsv2i_poll_fn poll, void *user);

#endif
