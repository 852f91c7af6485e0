/* tokenizer.json as it is: added tokens, pre-tokenizer steps, byte-level BPE.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_TOKENIZER_H
#define DSV2I_TOKENIZER_H

#include "json.h"

struct dsv2i_tokenizer;

/* Build from tokenizer.json (and tokenizer_config.json for add_bos_token; NULL: absent).  vocab_size bounds the ids.
 * bos -1: none. */
dsv2_status dsv2i_tokenizer_parse(const struct dsv2i_hooks *mem, const char *file, const char *text, size_t n,
                                  const char *config_file, const char *config_text, size_t n_config, int32_t vocab_size,
                                  int32_t bos, struct dsv2i_tokenizer **out);
void dsv2i_tokenizer_free(struct dsv2i_tokenizer *t);

/* flags: DSV2_TOKENIZE_*.  Thread safe.  Same buffer contract as dsv2_tokenize. */
dsv2_status dsv2i_tokenizer_encode(const struct dsv2i_tokenizer *t, const char *text, size_t n_text, uint32_t flags,
                                   int32_t *ids, size_t capacity, size_t *n);

/* Bytes of a token, n 0 for ids without one; *special its flag.  id must be in 0..vocab_size-1. */
const char *dsv2i_tokenizer_bytes(const struct dsv2i_tokenizer *t, int32_t id, size_t *n, int *special);
int32_t dsv2i_tokenizer_find(const struct dsv2i_tokenizer *t, const char *text, size_t n); /* -1: none */
int32_t dsv2i_tokenizer_count(const struct dsv2i_tokenizer *t); /* highest id with a token, plus 1 */
int dsv2i_tokenizer_has(const struct dsv2i_tokenizer *t, int32_t id); /* is there a token of this id? */
size_t dsv2i_tokenizer_memory(const struct dsv2i_tokenizer *t);

#endif
