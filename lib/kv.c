/* KV pages, reference counted.  A page holds 64 tokens of all layers; forks share pages, and a page is copied when a session that
 * shares it is about to write to it (only ever its last, partly filled one).
 * SPDX-License-Identifier: MIT */
#include "kv.h"

#include <stdatomic.h>
#include <string.h>

#include "mem.h"

#define HEADER 64 /* in front of the payload, which stays aligned to a cache line */

static atomic_int *refs(void *page)
{
    return (atomic_int *)(void *)((char *)page - HEADER);
}

size_t dsv2i_kv_page_bytes(struct dsv2i_backend *be, const struct dsv2i_shape *shape, int32_t kv_type)
{
    return (size_t)shape->num_hidden_layers * DSV2I_PAGE_TOKENS * be->op->kv_token_bytes(be, shape, kv_type);
}

void dsv2i_kv_init(struct dsv2i_kv *kv, struct dsv2i_backend *be, const struct dsv2i_hooks *mem, size_t page_bytes)
{
    *kv = (struct dsv2i_kv){.be = be, .mem = mem, .page_bytes = page_bytes};
}

static void *page_new(struct dsv2i_kv *kv)
{
    char *block = kv->be->op->mem_alloc(kv->be, kv->page_bytes + HEADER);

    if (!block)
        return NULL;
    atomic_init((atomic_int *)(void *)block, 1);
    return block + HEADER;
}

static void page_drop(struct dsv2i_kv *kv, void *page)
{
    if (atomic_fetch_sub_explicit(refs(page), 1, memory_order_acq_rel) == 1)
        kv->be->op->mem_free(kv->be, (char *)page - HEADER, kv->page_bytes + HEADER);
}

static int grow_table(struct dsv2i_kv *kv, int32_t pages)
{
    int32_t capacity = kv->capacity ? kv->capacity : 8;
    void **table;

    if (pages <= kv->capacity)
        return 1;
    while (capacity < pages)
        capacity *= 2;
    table = dsv2i_realloc(kv->mem, kv->page, (size_t)capacity, sizeof *table);
    if (!table)
        return 0;
    kv->page = table;
    kv->capacity = capacity;
    return 1;
}

dsv2_status dsv2i_kv_reserve(struct dsv2i_kv *kv, int32_t from, int32_t to)
{
    int32_t first = from / DSV2I_PAGE_TOKENS, need = (to + DSV2I_PAGE_TOKENS - 1) / DSV2I_PAGE_TOKENS, old = kv->n_pages;

    if (!grow_table(kv, need))
        goto no_memory;
    for (int32_t i = first; i < old && i < need; i++) {
        void *shared = kv->page[i], *own;

        if (atomic_load_explicit(refs(shared), memory_order_acquire) == 1)
            continue;
        own = page_new(kv);
        if (!own)
            goto no_memory;
        kv->be->op->mem_copy(kv->be, own, shared, kv->page_bytes);
        kv->page[i] = own;
        page_drop(kv, shared);
    }
    while (kv->n_pages < need) {
        void *page = page_new(kv);

        if (!page) {
            dsv2i_kv_truncate(kv, old * DSV2I_PAGE_TOKENS);
            goto no_memory;
        }
        kv->page[kv->n_pages++] = page;
    }
    return DSV2_OK;

no_memory:
    return dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory for KV pages of %zu bytes up to token %d", kv->page_bytes, to);
}

void dsv2i_kv_truncate(struct dsv2i_kv *kv, int32_t n)
{
    int32_t keep = (n + DSV2I_PAGE_TOKENS - 1) / DSV2I_PAGE_TOKENS;

    while (kv->n_pages > keep)
        page_drop(kv, kv->page[--kv->n_pages]);
    if (keep == 0) {
        dsv2i_free(kv->mem, kv->page);
        kv->page = NULL;
        kv->capacity = 0;
    }
}

dsv2_status dsv2i_kv_share(struct dsv2i_kv *dst, const struct dsv2i_kv *src)
{
    if (!grow_table(dst, src->n_pages))
        return dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory for a table of %d KV pages", src->n_pages);
    for (int32_t i = 0; i < src->n_pages; i++) {
        atomic_fetch_add_explicit(refs(src->page[i]), 1, memory_order_relaxed);
        dst->page[i] = src->page[i];
    }
    dst->n_pages = src->n_pages;
    return DSV2_OK;
}
