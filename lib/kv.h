/* A session's page table.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_KV_H
#define DSV2I_KV_H

#include "pool.h"

struct dsv2i_kv {
    dsv2_pool *pool;
    void **data;                /* (n_pages) as struct dsv2i_seq wants them */
    struct dsv2i_page **page;   /* (n_pages) in the same block of memory */
    int32_t n_pages, capacity;
    int32_t n_entered;          /* so many from the beginning are pages of the prefix cache */
    int32_t foreign;            /* it begins with pages from a saved session: none of it enters the cache */
};

size_t dsv2i_kv_page_bytes(struct dsv2i_backend *be, const struct dsv2i_shape *shape, int32_t kv_type);
/* An empty table that holds the pool. */
void dsv2i_kv_init(struct dsv2i_kv *kv, dsv2_pool *pool);
void dsv2i_kv_free(struct dsv2i_kv *kv);
/* Make positions from..to-1 writable: pages taken, a shared one copied.  NO_PAGES and NOMEM change nothing, but that cached pages which
 * nobody uses may be gone when memory ran out. */
dsv2_status dsv2i_kv_reserve(struct dsv2i_kv *kv, int32_t from, int32_t to);
/* What is computed again at position pos shall not change its page before the step is done: reserve will copy it.  The page, held. */
struct dsv2i_page *dsv2i_kv_keep(struct dsv2i_kv *kv, int32_t pos);
/* End that: the table has the page again, as it was; or it has the copy. */
void dsv2i_kv_put_back(struct dsv2i_kv *kv, int32_t pos, struct dsv2i_page *kept);
void dsv2i_kv_let_go(struct dsv2i_kv *kv, struct dsv2i_page *kept);
/* Give back the pages beyond the first n tokens. */
void dsv2i_kv_truncate(struct dsv2i_kv *kv, int32_t n);
/* dst (initialised, empty, of the same pool) shares all pages of src. */
dsv2_status dsv2i_kv_share(struct dsv2i_kv *dst, const struct dsv2i_kv *src);
/* The table holds *pos tokens, and tokens[0..end) are to be there, those from *pos on in one form of attention.  Add the pages of
 * tokens[*pos..end-1) that the prefix cache has; *pos is how many tokens the table holds then.  NOMEM. */
dsv2_status dsv2i_kv_reuse(struct dsv2i_kv *kv, uint64_t space, int expanded, const int32_t *tokens, int32_t *pos, int32_t end);
/* Positions from..to-1, reserved before, were computed in this form. */
void dsv2i_kv_filled(struct dsv2i_kv *kv, int32_t from, int32_t to, int expanded);
/* The form of a position; and of the tokens of page i, as bits. */
int dsv2i_kv_expanded(const struct dsv2i_kv *kv, int32_t pos);
uint64_t dsv2i_kv_forms(const struct dsv2i_kv *kv, int32_t i);
void dsv2i_kv_set_forms(struct dsv2i_kv *kv, int32_t i, uint64_t forms);
/* Put the full pages of tokens[0..pos) into the prefix cache. */
void dsv2i_kv_publish(struct dsv2i_kv *kv, uint64_t space, const int32_t *tokens, int32_t pos);

#endif
