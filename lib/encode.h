/* Inside of a tokenizer, for the two files that make and use it; and encoding with a guard.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_ENCODE_H
#define DSV2I_ENCODE_H

#include "added.h"
#include "bpe.h"
#include "pretokenizer.h"
#include "tokenizer.h"
#include "vocab.h"

struct dsv2i_tokenizer {
    const struct dsv2i_hooks *mem;
    int32_t vocab_size, bos;        /* bos -1: none is added */
    int ignore_merges;              /* a piece that is a token as it stands needs no merges */
    struct dsv2i_vocab vocab;
    struct dsv2i_bpe bpe;
    struct dsv2i_pretokenizer *pretokenizer;
    struct dsv2i_added added[2];    /* [normalized] */
    size_t n_added;
};

/* As dsv2i_tokenizer_encode; no added token is recognised where it overlaps the guard, whose ranges refer to text, which must be valid. */
dsv2_status dsv2i_encode_guarded(const struct dsv2i_tokenizer *t, const char *text, size_t n_text, const struct dsv2i_guard *guard,
                                 int32_t *ids, size_t capacity, size_t *n);

#endif
