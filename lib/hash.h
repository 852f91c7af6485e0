/* A 64-bit hash: XXH64 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md), as its specification gives it.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_HASH_H
#define DSV2I_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t dsv2i_hash(uint64_t seed, const void *data, size_t n);

/* A seed for tables of what a file holds, which its writer cannot know; place: some address. */
uint64_t dsv2i_hash_seed(const void *place);

/* The same over pieces. */
struct dsv2i_hasher {
    uint64_t lane[4], seed, total;
    unsigned char held[32]; /* total % 32 bytes that do not make a stripe yet */
};

void dsv2i_hash_begin(struct dsv2i_hasher *h, uint64_t seed);
void dsv2i_hash_add(struct dsv2i_hasher *h, const void *data, size_t n);
uint64_t dsv2i_hash_end(const struct dsv2i_hasher *h);

#endif
