/* Choosing tokens on the device: what rows are chosen by goes there, tokens and log-probabilities come back, logits stay.
 *
 * SPDX-License-Identifier: MIT */
#include <string.h>

#include "backend.h"

static size_t aligned(size_t bytes)
{
    return (bytes + 15) & ~(size_t)15;
}

/* Put a list behind *used; returns where it will be on the device. */
static const void *put_list(struct dsv2i_cuda *be, size_t *used, const void *list, size_t bytes)
{
    size_t at = *used;

    if (bytes)
        memcpy(be->pinned_choices.at + at, list, bytes);
    *used = at + aligned(bytes);
    return be->choices.at + at;
}

static size_t lists_bytes(const struct dsv2i_sampling *how)
{
    return aligned((size_t)how->n_banned * sizeof *how->banned) + aligned((size_t)how->n_bias * sizeof *how->bias)
           + aligned((size_t)how->n_seen * sizeof *how->seen);
}

/* Parameters and lists of n rows to the device.  Rows that want nothing are greedy. */
static cudaError_t send(struct dsv2i_cuda *be, const struct dsv2i_sampling *const *how, int32_t n)
{
    struct dsv2i_sampling *to = (struct dsv2i_sampling *)(void *)be->pinned_choices.at;
    size_t used = aligned((size_t)n * sizeof *to);

    for (int32_t i = 0; i < n; i++) {
        if (!how[i]) {
            to[i] = (struct dsv2i_sampling){.greedy = 1, .top_p = 1, .per_temperature = 1, .repetition_penalty = 1};
            continue;
        }
        to[i] = *how[i];
        to[i].banned = put_list(be, &used, how[i]->banned, (size_t)how[i]->n_banned * sizeof *how[i]->banned);
        to[i].bias = put_list(be, &used, how[i]->bias, (size_t)how[i]->n_bias * sizeof *how[i]->bias);
        to[i].seen = put_list(be, &used, how[i]->seen, (size_t)how[i]->n_seen * sizeof *how[i]->seen);
    }
    return cudaMemcpyAsync(be->choices.at, be->pinned_choices.at, used, cudaMemcpyHostToDevice, be->stream);
}

/* Scratch for n rows, zeroed where it is not what an earlier call has left for the same shape. */
static int make_scratch(struct dsv2i_cuda *be, int32_t n, int32_t vocab)
{
    size_t bytes = dsv2i_cuda_sample_scratch(n, vocab);

    if (n == be->chosen_rows && vocab == be->chosen_vocab)
        return 0;
    if (dsv2i_cuda_grow(be, &be->choice_scratch, bytes, 0))
        return -1;
    be->chosen_rows = n;
    be->chosen_vocab = vocab;
    return dsv2i_cuda_check(be, cudaMemsetAsync(be->choice_scratch.at, 0, bytes, be->stream)) ? -1 : 0;
}

void dsv2i_cuda_op_sample(struct dsv2i_backend *base, int32_t *token, float *logprob, const float *logits, int32_t vocab,
                          const uint32_t *is_token, const struct dsv2i_sampling *const *how, int32_t n)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    const struct dsv2i_cuda_launch to = dsv2i_cuda_make_launch(be, n);
    const int32_t *n_rows = &(be->step + 1 + n)->n_rows;
    size_t bytes = aligned((size_t)n * sizeof(struct dsv2i_sampling)), results = aligned((size_t)n * sizeof *token);
    int greedy = 1;

    if (be->error)
        return;
    for (int32_t i = 0; i < n; i++) {
        bytes += how[i] ? lists_bytes(how[i]) : 0;
        greedy &= !how[i] || how[i]->greedy;
    }
    if (be->choosing) /* more rows than share a pass: the lists are on their way */
        dsv2i_cuda_deliver(be);
    be->choosing = 1;
    if ((bytes + 2 * results > be->choices.bytes && (dsv2i_cuda_grow(be, &be->pinned_choices, 2 * (bytes + 2 * results), 1)
                                                     || dsv2i_cuda_grow(be, &be->choices, 2 * (bytes + 2 * results), 0)))
        || make_scratch(be, n, vocab)) {
        dsv2i_cuda_check(be, cudaErrorMemoryAllocation);
        return;
    }
    int32_t *chosen = (int32_t *)(void *)(be->choices.at + bytes);
    float *probability = (float *)(void *)(be->choices.at + bytes + results);
    const struct dsv2i_sampling *by = (const struct dsv2i_sampling *)(void *)be->choices.at;

    dsv2i_cuda_check(be, send(be, how, n));
    dsv2i_cuda_check(be, (greedy ? dsv2i_cuda_argmax : dsv2i_cuda_sample)(&to, n_rows, chosen, probability, logits, vocab, vocab, by, is_token,
                                                                          be->choice_scratch.at));
    dsv2i_cuda_fetch(base, token, chosen, (size_t)n * sizeof *token);
    dsv2i_cuda_fetch(base, logprob, probability, (size_t)n * sizeof *logprob);
}
