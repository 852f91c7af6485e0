/* Log-probabilities from a row of raw logits.
 * SPDX-License-Identifier: MIT */
#include "logprobs.h"

#include <math.h>
#include <string.h>

double dsv2i_log_sum_exp(const float *logits, int32_t n)
{
    float max = -INFINITY;
    double sum = 0;

    for (int32_t i = 0; i < n; i++) {
        if (isnan(logits[i]))
            return NAN;
        if (logits[i] > max)
            max = logits[i];
    }
    if (isinf(max))
        return max;
    for (int32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - max);
    return max + log(sum);
}

int32_t dsv2i_rank(const float *logits, int32_t n, int32_t token)
{
    int32_t rank = 1;

    for (int32_t i = 0; i < n; i++)
        rank += logits[i] > logits[token];
    return rank;
}

/* Is token a a worse choice than b?  Equal logits: the higher id is. */
static int worse(const float *logits, int32_t a, int32_t b)
{
    return logits[a] < logits[b] || (logits[a] == logits[b] && a > b);
}

/* Heap with the worst token on top. */
static void sift_down(int32_t *heap, int32_t n, int32_t i, const float *logits)
{
    for (;;) {
        int32_t least = i, left = 2 * i + 1, right = left + 1, t;

        if (left < n && worse(logits, heap[left], heap[least]))
            least = left;
        if (right < n && worse(logits, heap[right], heap[least]))
            least = right;
        if (least == i)
            return;
        t = heap[i];
        heap[i] = heap[least];
        heap[least] = t;
        i = least;
    }
}

/* The k best tokens, best first. */
static void select_best(int32_t *best, int32_t k, const float *logits, int32_t n)
{
    for (int32_t i = 0; i < k; i++)
        best[i] = i;
    for (int32_t i = k / 2 - 1; i >= 0; i--)
        sift_down(best, k, i, logits);
    for (int32_t i = k; i < n && k; i++)
        if (worse(logits, best[0], i)) {
            best[0] = i;
            sift_down(best, k, 0, logits);
        }
    for (int32_t end = k - 1; end > 0; end--) {
        int32_t t = best[0];

        best[0] = best[end];
        best[end] = t;
        sift_down(best, end, 0, logits);
    }
}

dsv2_status dsv2i_top_logprobs(const struct dsv2i_hooks *mem, const float *logits, int32_t n_vocab, int32_t n_top, int32_t also,
                               dsv2_logprob *out, size_t out_size, size_t capacity, size_t *n)
{
    double lse = dsv2i_log_sum_exp(logits, n_vocab);
    int32_t *best, found = also < 0, rank = 1;
    size_t count;

    if (n_top < 0 || n_top > n_vocab)
        return dsv2i_fail(DSV2_ERR_INVALID, "n_top: %d is not in 0..%d (vocab_size)", n_top, n_vocab);
    if (also < -1 || also >= n_vocab)
        return dsv2i_fail(DSV2_ERR_INVALID, "also: %d is neither -1 nor a token id below %d", also, n_vocab);
    if (isnan(lse) || isinf(lse))
        return dsv2i_fail(DSV2_ERR_NUMERIC, "logits: %s among them", isnan(lse) ? "NaN" : "infinity");
    best = dsv2i_alloc(mem, (size_t)n_top + 1, sizeof *best);
    if (!best)
        return dsv2i_fail(DSV2_ERR_NOMEM, "logprobs: no memory for %d entries", n_top);
    select_best(best, n_top, logits, n_vocab);
    for (int32_t i = 0; i < n_top; i++)
        found |= best[i] == also;
    if (!found)
        best[n_top] = also;
    count = (size_t)n_top + !found;
    *n = count;
    if (count > capacity) {
        dsv2i_free(mem, best);
        return dsv2i_fail(DSV2_ERR_BUFFER, "logprobs: %zu entries need more than the capacity of %zu", count, capacity);
    }
    for (size_t i = 0; i < count; i++) {
        dsv2_logprob entry = {.token = best[i], .logprob = (float)(logits[best[i]] - lse)};

        if (i == (size_t)n_top)
            rank = dsv2i_rank(logits, n_vocab, best[i]);
        else if (i && logits[best[i]] < logits[best[i - 1]])
            rank = (int32_t)i + 1;
        entry.rank = rank;
        memcpy((char *)out + i * out_size, &entry, out_size < sizeof entry ? out_size : sizeof entry);
    }
    dsv2i_free(mem, best);
    return DSV2_OK;
}
