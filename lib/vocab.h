/* The tokens of a tokenizer: bytes by id, id by bytes.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_VOCAB_H
#define DSV2I_VOCAB_H

#include "mem.h"
#include "status.h"

enum { DSV2I_TOKEN_HERE = 1, DSV2I_TOKEN_SPECIAL = 2, DSV2I_TOKEN_ADDED = 4, DSV2I_TOKEN_RAW = 8 };

struct dsv2i_token {
    uint32_t offset, n; /* in text */
    uint32_t flags;
};

struct dsv2i_vocab {
    const struct dsv2i_hooks *mem;
    struct dsv2i_token *tokens; /* (n) by id; no flag HERE: a hole */
    int32_t n;
    char *text;                 /* all bytes, one token behind the other */
    size_t n_text, capacity;
    uint32_t *table;            /* open addressing over id + 1; 0: empty */
    size_t mask;
    uint64_t seed;              /* of its hashes */
};

/* Room for ids below n and text_bytes bytes of tokens. */
dsv2_status dsv2i_vocab_init(struct dsv2i_vocab *v, const struct dsv2i_hooks *mem, int32_t n, size_t text_bytes);
void dsv2i_vocab_free(struct dsv2i_vocab *v);
size_t dsv2i_vocab_memory(const struct dsv2i_vocab *v);

/* Write the bytes that a vocabulary string of n bytes stands for to out, and return their count: each character is one byte in the
 * alphabet of byte-level BPE.  *raw is set when some character is outside of it; then the string stands for itself. */
size_t dsv2i_vocab_decode(const char *string, size_t n, char *out, int *raw);

/* Give id (a hole) its token.  flags: RAW for a string outside the alphabet, ADDED and SPECIAL for an added token. */
void dsv2i_vocab_put(struct dsv2i_vocab *v, int32_t id, const char *bytes, size_t n, uint32_t flags);
/* The id whose bytes and flag RAW are these; -1: none. */
int32_t dsv2i_vocab_find(const struct dsv2i_vocab *v, const char *bytes, size_t n, int raw);

#endif
