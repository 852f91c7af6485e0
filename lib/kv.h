/* KV pages of a session: 64 tokens in all layers each, shared between forks until written.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_KV_H
#define DSV2I_KV_H

#include "status.h"
#include "ops.h"

struct dsv2i_kv {
    struct dsv2i_backend *be;
    const struct dsv2i_hooks *mem;
    size_t page_bytes;
    void **page;        /* (n_pages) payloads, as struct dsv2i_seq wants them; each has a reference count in front */
    int32_t n_pages, capacity;
};

size_t dsv2i_kv_page_bytes(struct dsv2i_backend *be, const struct dsv2i_shape *shape, int32_t kv_type);
void dsv2i_kv_init(struct dsv2i_kv *kv, struct dsv2i_backend *be, const struct dsv2i_hooks *mem, size_t page_bytes);
/* Make positions from..to-1 writable: pages taken, a shared one copied.  NOMEM changes nothing that a reader can see. */
dsv2_status dsv2i_kv_reserve(struct dsv2i_kv *kv, int32_t from, int32_t to);
/* Give back the pages beyond the first n tokens. */
void dsv2i_kv_truncate(struct dsv2i_kv *kv, int32_t n);
/* dst (initialised, empty) shares all pages of src. */
dsv2_status dsv2i_kv_share(struct dsv2i_kv *dst, const struct dsv2i_kv *src);

#endif
