/* Added tokens: found in raw text before anything else looks at it.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_ADDED_H
#define DSV2I_ADDED_H

#include "mem.h"
#include "status.h"

struct dsv2i_added_token {
    const char *content;    /* borrowed */
    uint32_t n;
    int32_t id;
    int single_word, lstrip, rstrip, normalized;
};

/* A set that is searched in one go. */
struct dsv2i_added {
    struct dsv2i_added_token *tokens;   /* sorted by content after dsv2i_added_sort */
    size_t n;
    uint32_t first[257];                /* where the tokens of each first byte begin */
};

/* Bytes of a text in which no token may be found, in order. */
struct dsv2i_guard {
    const struct dsv2i_range_of_text {
        size_t begin, end;
    } *ranges;
    size_t n;
};

/* NULL, or a token whose content is there twice. */
const struct dsv2i_added_token *dsv2i_added_sort(struct dsv2i_added *a);

/* The leftmost token in text[from..end), the longest of those that begin there, and where its own characters are; NULL: none.
 * Nothing that overlaps the guard counts. */
const struct dsv2i_added_token *dsv2i_added_find(const struct dsv2i_added *a, const struct dsv2i_guard *guard, const char *text,
                                                 size_t from, size_t end, size_t *at);

#endif
