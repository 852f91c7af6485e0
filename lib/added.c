/* Added tokens: found in raw text before anything else looks at it.
 * SPDX-License-Identifier: MIT
 *
 * The tokens are sorted, so those that share a prefix stand together: at each place of the text the span of candidates is narrowed byte by
 * byte.  Most bytes of a text begin no token at all and cost one look at first[]. */
#include "added.h"

#include <stdlib.h>
#include <string.h>

static int compare(const void *pa, const void *pb)
{
    const struct dsv2i_added_token *a = pa, *b = pb;
    int order = memcmp(a->content, b->content, a->n < b->n ? a->n : b->n);

    return order ? order : (a->n > b->n) - (a->n < b->n);
}

const struct dsv2i_added_token *dsv2i_added_sort(struct dsv2i_added *a)
{
    size_t i = 0;

    if (a->n)
        qsort(a->tokens, a->n, sizeof *a->tokens, compare);
    for (unsigned c = 0; c < 257; c++) {
        while (i < a->n && (unsigned char)a->tokens[i].content[0] < c)
            i++;
        a->first[c] = (uint32_t)i;
    }
    for (i = 1; i < a->n; i++)
        if (!compare(&a->tokens[i - 1], &a->tokens[i]))
            return &a->tokens[i];
    return NULL;
}

static int guarded(const struct dsv2i_guard *guard, size_t begin, size_t end)
{
    size_t low = 0, high = guard->n;

    while (low < high) { /* the first range that ends behind begin */
        size_t middle = (low + high) / 2;

        if (guard->ranges[middle].end <= begin)
            low = middle + 1;
        else
            high = middle;
    }
    return low < guard->n && guard->ranges[low].begin < end;
}

/* The first token of low..high-1, which share k bytes, whose byte k is at least c. */
static size_t lower(const struct dsv2i_added *a, size_t low, size_t high, size_t k, unsigned c)
{
    while (low < high) {
        size_t middle = (low + high) / 2;

        if ((unsigned char)a->tokens[middle].content[k] < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static const struct dsv2i_added_token *longest_at(const struct dsv2i_added *a, const struct dsv2i_guard *guard, const char *text,
                                                  size_t at, size_t end)
{
    const struct dsv2i_added_token *best = NULL;
    size_t low = a->first[(unsigned char)text[at]], high = a->first[(unsigned char)text[at] + 1];

    for (size_t k = 1; low < high; k++) {
        if (a->tokens[low].n == k) {
            if (!guarded(guard, at, at + k))
                best = &a->tokens[low];
            low++;
        }
        if (at + k == end)
            break;
        low = lower(a, low, high, k, (unsigned char)text[at + k]);
        high = lower(a, low, high, k, (unsigned)(unsigned char)text[at + k] + 1);
    }
    return best;
}

const struct dsv2i_added_token *dsv2i_added_find(const struct dsv2i_added *a, const struct dsv2i_guard *guard, const char *text,
                                                 size_t from, size_t end, size_t *at)
{
    for (size_t i = from; a->n && i < end; i++) {
        unsigned c = (unsigned char)text[i];
        const struct dsv2i_added_token *found;

        if (a->first[c] < a->first[c + 1] && (found = longest_at(a, guard, text, i, end))) {
            *at = i;
            return found;
        }
    }
    return NULL;
}
