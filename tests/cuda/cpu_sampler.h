/* What the C library's sampler and its scorer say; their headers are C only.
 * SPDX-License-Identifier: MIT */
#ifndef CPU_SAMPLER_H
#define CPU_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

#include "dsv2.h"

/* What a row's token depends on.  is_token may be NULL. */
struct cpu_row {
    const float *logits;
    int32_t n_vocab;
    const int32_t *tokens;
    int32_t n_prompt, pos;
    const int32_t *eos;
    int32_t n_eos;
    const uint32_t *is_token;
};

/* The token, or -1 where there is none. */
int32_t cpu_choose(const struct cpu_row *row, const dsv2_sample_params *params, void *scratch);

size_t cpu_scratch(int32_t n_vocab);
double cpu_log_sum_exp(const float *logits, int32_t n);
int32_t cpu_rank(const float *logits, int32_t n, int32_t token);

#endif
