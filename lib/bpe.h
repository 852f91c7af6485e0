/* Byte-pair merging by rank.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_BPE_H
#define DSV2I_BPE_H

#include "mem.h"
#include "status.h"

struct dsv2i_ids {
    const struct dsv2i_hooks *mem;
    int32_t *at;
    size_t n, capacity;
};

dsv2_status dsv2i_ids_put(struct dsv2i_ids *ids, int32_t id);

struct dsv2i_merge {
    uint64_t pair;      /* left id << 32 | right id; UINT64_MAX: an empty slot */
    uint32_t rank;
    int32_t result;
};

struct dsv2i_bpe {
    const struct dsv2i_hooks *mem;
    struct dsv2i_merge *table;  /* open addressing, a power of two */
    size_t mask;
    int shift;
    uint64_t multiplier;        /* odd: of the table's hash */
    int32_t byte_id[256];       /* token of a single byte; -1: none, such bytes vanish as in HF tokenizers without unk */
};

/* Room for n_merges.  byte_id is all -1. */
dsv2_status dsv2i_bpe_init(struct dsv2i_bpe *bpe, const struct dsv2i_hooks *mem, size_t n_merges);
void dsv2i_bpe_free(struct dsv2i_bpe *bpe);
size_t dsv2i_bpe_memory(const struct dsv2i_bpe *bpe);
/* 0: this pair has a rank already. */
int dsv2i_bpe_add(struct dsv2i_bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t result);

/* Scratch of one encoding; zeroed before first use, then reused. */
struct dsv2i_bpe_work {
    const struct dsv2i_hooks *mem;
    struct dsv2i_symbol *symbols;
    uint64_t *heap;
    size_t capacity;
};

/* Append the ids of one piece.  Errors: LIMIT (2^31 bytes or more), NOMEM. */
dsv2_status dsv2i_bpe_encode(const struct dsv2i_bpe *bpe, struct dsv2i_bpe_work *work, const char *piece, size_t n,
                             struct dsv2i_ids *out);
void dsv2i_bpe_work_free(struct dsv2i_bpe_work *work);

#endif
