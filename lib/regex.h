/* Regular expressions of a pre-tokenizer, as HF tokenizers (Oniguruma, Ruby syntax) understands them.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_REGEX_H
#define DSV2I_REGEX_H

#include "mem.h"
#include "status.h"

struct dsv2i_regex;

#define DSV2I_REGEX_LITERAL 1u /* the pattern is plain text */
#define DSV2I_REGEX_GENERAL 2u /* always through PCRE2, also where there is linear code: what tests compare with */
#define DSV2I_REGEX_BEGIN 4u   /* matches at from only; for a few short texts, which are not worth machine code */

/* file and path are for messages.  Errors: UNSUPPORTED names what in the pattern would not mean the same in PCRE2; FORMAT, NOMEM. */
dsv2_status dsv2i_regex_compile(const struct dsv2i_hooks *mem, const char *file, const char *path, const char *pattern,
                                size_t n, uint32_t flags, struct dsv2i_regex **out);
void dsv2i_regex_free(struct dsv2i_regex *re);
size_t dsv2i_regex_memory(const struct dsv2i_regex *re);

/* One walk over the matches of one regex in many texts; belongs to one thread. */
struct dsv2i_matcher {
    const struct dsv2i_regex *re;
    void *match_data, *context;
    uint64_t deadline, looked;
};

/* This thread's processor time in ns; and what it may be when texts of so many bytes in all have been looked at. */
uint64_t dsv2i_regex_now(void);
uint64_t dsv2i_regex_deadline(size_t bytes);
dsv2_status dsv2i_matcher_begin(struct dsv2i_matcher *m, const struct dsv2i_regex *re, uint64_t deadline);
void dsv2i_matcher_end(struct dsv2i_matcher *m);
/* The first match in text (valid UTF-8) that begins at from or later; *begin n + 1 when there is none.  It may be empty.
 * Errors: LIMIT, NOMEM. */
dsv2_status dsv2i_matcher_next(struct dsv2i_matcher *m, const char *text, size_t n, size_t from, size_t *begin, size_t *end);

#endif
