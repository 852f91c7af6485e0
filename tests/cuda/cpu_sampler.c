/* SPDX-License-Identifier: MIT */
#include "cpu_sampler.h"

#include <math.h>

#include "logprobs.h"
#include "sampler.h"

/* Ids that are no tokens are at -infinity, which is what the sampler does about those that its tokenizer does not have, but for numbers
 * that are none, which it sees before. */
static int32_t hide(void *user, float *logits, size_t n)
{
    const uint32_t *is_token = user;

    for (size_t i = 0; is_token && i < n; i++)
        if (!(is_token[i / 32] >> i % 32 & 1) && logits[i] < INFINITY)
            logits[i] = -INFINITY;
    return 0;
}

int32_t cpu_choose(const struct cpu_row *row, const dsv2_sample_params *params, void *scratch)
{
    const struct dsv2i_sample_row r = {.logits = row->logits, .n_vocab = row->n_vocab, .tokens = row->tokens, .n_prompt = row->n_prompt,
                                       .pos = row->pos, .eos = row->eos, .n_eos = row->n_eos};
    dsv2_sample_params p = *params;
    int32_t token;

    p.callback = hide;
    p.callback_user = (void *)row->is_token;
    if (dsv2i_sample_check(&p, row->n_vocab))
        return -2;
    return dsv2i_sample_choose(&r, &p, scratch, &token) ? -1 : token;
}

size_t cpu_scratch(int32_t n_vocab) { return dsv2i_sample_scratch(n_vocab); }
double cpu_log_sum_exp(const float *logits, int32_t n) { return dsv2i_log_sum_exp(logits, n); }
int32_t cpu_rank(const float *logits, int32_t n, int32_t token) { return dsv2i_rank(logits, n, token); }
