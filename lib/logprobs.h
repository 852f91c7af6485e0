/* Log-probabilities from a row of raw logits.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_LOGPROBS_H
#define DSV2I_LOGPROBS_H

#include "mem.h"
#include "status.h"

/* log(sum(exp(logits))), in double; NaN if any logit is NaN. */
double dsv2i_log_sum_exp(const float *logits, int32_t n);

/* Where token stands: 1 + the number of logits greater than its own. */
int32_t dsv2i_rank(const float *logits, int32_t n, int32_t token);

/* See dsv2_session_logprobs. */
dsv2_status dsv2i_top_logprobs(const struct dsv2i_hooks *mem, const float *logits, int32_t n_vocab, int32_t n_top, int32_t also,
                               dsv2_logprob *out, size_t out_size, size_t capacity, size_t *n);

#endif
