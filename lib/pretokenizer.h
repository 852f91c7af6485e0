/* The pre_tokenizer of tokenizer.json: cuts text into the pieces that BPE works on.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_PRETOKENIZER_H
#define DSV2I_PRETOKENIZER_H

#include "json.h"

struct dsv2i_pretokenizer;

struct dsv2i_piece {
    size_t begin, end;
};

/* Text and its pieces while it goes through the steps; zeroed before first use, then reused for text after text. */
struct dsv2i_pieces {
    const struct dsv2i_hooks *mem;
    const char *text;
    struct dsv2i_piece *at;     /* (n) in order, none empty */
    size_t n, capacity;
    struct dsv2i_piece *next;   /* what a step is writing */
    size_t n_next, next_capacity;
    char *own;                  /* text that a prefix space was put into */
    uint64_t deadline;          /* the caller's: of all texts together, see regex.h */
};

/* node: the value of "pre_tokenizer".  Errors: UNSUPPORTED, FORMAT, NOMEM, naming file and path. */
dsv2_status dsv2i_pretokenizer_parse(const struct dsv2i_hooks *mem, const char *file, const cJSON *node,
                                     struct dsv2i_pretokenizer **out);
void dsv2i_pretokenizer_free(struct dsv2i_pretokenizer *p);
size_t dsv2i_pretokenizer_memory(const struct dsv2i_pretokenizer *p);

/* Cut n bytes of valid UTF-8 into pieces.  Thread safe.  Errors: LIMIT, NOMEM. */
dsv2_status dsv2i_pretokenizer_run(const struct dsv2i_pretokenizer *p, const char *text, size_t n, struct dsv2i_pieces *pieces);
void dsv2i_pieces_free(struct dsv2i_pieces *pieces);

#endif
