/* The model, written once over the op table.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_FORWARD_H
#define DSV2I_FORWARD_H

#include "model.h"

/* What a step leaves behind besides the KV pages; pointers may be NULL. */
struct dsv2i_outputs {
    float *logits;              /* (vocab) after the last row */
    const int32_t *target;      /* (n_scores) token after each of the first n_scores rows */
    struct dsv2i_score *scores; /* (n_scores) */
    int32_t n_scores;
};

/* Bytes of activations for steps of up to n_rows rows. */
size_t dsv2i_forward_bytes(const struct dsv2i_shape *shape, int32_t n_rows);

/* Have activations and backend scratch for such steps in the context.  NOMEM leaves everything as it was. */
dsv2_status dsv2i_forward_reserve(dsv2_context *ctx, const struct dsv2i_config *config, int32_t n_rows);

/* Compute the batch (reserved for).  Outputs are written on success only.  cancel is read between layers: CANCELLED. */
dsv2_status dsv2i_forward(const dsv2_model *m, const struct dsv2i_batch *batch, const struct dsv2i_outputs *out,
                          atomic_int *cancel);

#endif
