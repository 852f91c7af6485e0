/* Page tables.  Forks share pages, and so do sessions with equal prompts; a page is copied when a session that shares it is about to write
 * to it (only ever its last, partly filled one).
 * SPDX-License-Identifier: MIT */
#include "kv.h"

#include <string.h>
#include <unistd.h>

#include "mem.h"

static int32_t pages_of(int32_t tokens)
{
    return tokens / DSV2I_PAGE_TOKENS + (tokens % DSV2I_PAGE_TOKENS != 0);
}

size_t dsv2i_kv_page_bytes(struct dsv2i_backend *be, const struct dsv2i_shape *shape, int32_t kv_type)
{
    return (size_t)shape->num_hidden_layers * DSV2I_PAGE_TOKENS * be->op->kv_token_bytes(be, shape, kv_type);
}

void dsv2i_kv_init(struct dsv2i_kv *kv, dsv2_pool *pool)
{
    *kv = (struct dsv2i_kv){.pool = pool};
    dsv2i_pool_retain(pool);
}

void dsv2i_kv_free(struct dsv2i_kv *kv)
{
    dsv2i_kv_truncate(kv, 0);
    dsv2i_pool_release(kv->pool);
}

static dsv2_status grow_table(struct dsv2i_kv *kv, int32_t pages)
{
    int32_t capacity = kv->capacity ? kv->capacity : 8;
    void **table;

    if (pages <= kv->capacity)
        return DSV2_OK;
    while (capacity < pages)
        capacity *= 2;
    table = dsv2i_alloc(kv->pool->mem, (size_t)capacity, 2 * sizeof *table);
    if (!table)
        return dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory for a table of %d KV pages", pages);
    if (kv->n_pages) {
        memcpy(table, kv->data, (size_t)kv->n_pages * sizeof *table);
        memcpy(table + capacity, kv->page, (size_t)kv->n_pages * sizeof *table);
    }
    dsv2i_free(kv->pool->mem, kv->data);
    kv->data = table;
    kv->page = (struct dsv2i_page **)(void *)(table + capacity);
    kv->capacity = capacity;
    return DSV2_OK;
}

static void set(struct dsv2i_kv *kv, int32_t i, struct dsv2i_page *page)
{
    kv->page[i] = page;
    kv->data[i] = page->data;
}

static void drop_from(struct dsv2i_kv *kv, int32_t keep)
{
    while (kv->n_pages > keep)
        dsv2i_pool_drop(kv->pool, kv->page[--kv->n_pages]);
    if (kv->n_entered > keep)
        kv->n_entered = keep;
}

/* Pages for need, and a copy of page first if it is shared; 0: the pool has not enough, -1: the device failed. */
static int take_pages(struct dsv2i_kv *kv, int32_t first, int32_t need)
{
    dsv2_pool *pool = kv->pool;
    struct dsv2i_page *last = first < kv->n_pages ? kv->page[first] : NULL, *own = NULL;
    int32_t old = kv->n_pages;
    uint64_t more = (uint64_t)(need - old);
    int shared = last && last->refs > 1, withdrawn = 0;

    if (shared && last->cached && last->refs == 2 && !dsv2i_pool_has(pool, more + 1)) {
        /* Only the cache shares it, and there is no page for a copy.  Below the last idle page is taken, so no cached child is left. */
        shared = 0;
        withdrawn = 1;
    }
    if (!dsv2i_pool_has(pool, more + (uint64_t)shared) || (shared && !(own = dsv2i_pool_take(pool))))
        return 0;
    while (kv->n_pages < need) {
        struct dsv2i_page *page = dsv2i_pool_take(pool);

        if (!page) {
            drop_from(kv, old);
            if (own)
                dsv2i_pool_drop(pool, own);
            return 0;
        }
        set(kv, kv->n_pages++, page);
    }
    if (own && pool->be->op->mem_copy(pool->be, own->data, last->data, pool->page_bytes)) {
        drop_from(kv, old);
        dsv2i_pool_drop(pool, own);
        return -1;
    }
    if (withdrawn)
        dsv2i_pool_withdraw(pool, last);
    if (own) {
        own->expanded = last->expanded;
        set(kv, first, own);
        dsv2i_pool_drop(pool, last);
    }
    if (kv->n_entered > first)
        kv->n_entered = first;
    return 1;
}

dsv2_status dsv2i_kv_reserve(struct dsv2i_kv *kv, int32_t from, int32_t to)
{
    dsv2_pool *pool = kv->pool;
    int taken;

    DSV2I_TRY(grow_table(kv, pages_of(to)));
    pthread_mutex_lock(&pool->lock);
    taken = take_pages(kv, from / DSV2I_PAGE_TOKENS, pages_of(to));
    pthread_mutex_unlock(&pool->lock);
    if (taken < 0)
        return dsv2i_fail(DSV2_ERR_DEVICE, "session: KV pages: %s", pool->be->op->failure(pool->be));
    if (taken)
        return DSV2_OK;
    if (pool->capacity)
        return dsv2i_fail(DSV2_ERR_NO_PAGES, "session: the pool's %llu pages are in use; %d tokens do not fit",
                          (unsigned long long)pool->capacity, to);
    return dsv2i_fail(DSV2_ERR_NOMEM, "session: no memory for KV pages of %zu bytes up to token %d", pool->page_bytes, to);
}

struct dsv2i_page *dsv2i_kv_keep(struct dsv2i_kv *kv, int32_t pos)
{
    struct dsv2i_page *page = kv->page[pos / DSV2I_PAGE_TOKENS];

    pthread_mutex_lock(&kv->pool->lock);
    dsv2i_pool_hold(kv->pool, page); /* now it is shared */
    pthread_mutex_unlock(&kv->pool->lock);
    return page;
}

void dsv2i_kv_put_back(struct dsv2i_kv *kv, int32_t pos, struct dsv2i_page *kept)
{
    int32_t i = pos / DSV2I_PAGE_TOKENS;

    pthread_mutex_lock(&kv->pool->lock);
    dsv2i_pool_drop(kv->pool, kv->page[i]); /* the copy; or the page itself, which the table then holds once again */
    set(kv, i, kept);
    pthread_mutex_unlock(&kv->pool->lock);
}

void dsv2i_kv_let_go(struct dsv2i_kv *kv, struct dsv2i_page *kept)
{
    pthread_mutex_lock(&kv->pool->lock);
    dsv2i_pool_drop(kv->pool, kept);
    pthread_mutex_unlock(&kv->pool->lock);
}

void dsv2i_kv_truncate(struct dsv2i_kv *kv, int32_t n)
{
    if (kv->pool->model->ctx->pid != getpid()) {
        /* A child of fork: a thread that is not here may have held the lock.  Pages are left to the child's end. */
        kv->n_pages = pages_of(n) < kv->n_pages ? pages_of(n) : kv->n_pages;
        return;
    }
    pthread_mutex_lock(&kv->pool->lock);
    drop_from(kv, pages_of(n));
    pthread_mutex_unlock(&kv->pool->lock);
    if (!kv->n_pages) {
        dsv2i_free(kv->pool->mem, kv->data);
        kv->data = NULL;
        kv->capacity = 0;
        kv->foreign = 0;
    }
}

dsv2_status dsv2i_kv_share(struct dsv2i_kv *dst, const struct dsv2i_kv *src)
{
    DSV2I_TRY(grow_table(dst, src->n_pages));
    pthread_mutex_lock(&src->pool->lock);
    for (int32_t i = 0; i < src->n_pages; i++) {
        dsv2i_pool_hold(src->pool, src->page[i]);
        set(dst, i, src->page[i]);
    }
    pthread_mutex_unlock(&src->pool->lock);
    dst->n_pages = src->n_pages;
    dst->n_entered = src->n_entered;
    dst->foreign = src->foreign;
    return DSV2_OK;
}

/* What page i, of which all before are cached, would follow in the cache. */
static struct dsv2i_page *parent_of(const struct dsv2i_kv *kv, int32_t i)
{
    return i ? kv->page[i - 1] : NULL;
}

dsv2_status dsv2i_kv_reuse(struct dsv2i_kv *kv, uint64_t space, int expanded, const int32_t *tokens, int32_t *pos, int32_t end)
{
    dsv2_pool *pool = kv->pool;
    struct dsv2i_page *found;

    if (!pool->n_buckets || *pos % DSV2I_PAGE_TOKENS)
        return DSV2_OK;
    DSV2I_TRY(grow_table(kv, pages_of(end)));
    pthread_mutex_lock(&pool->lock);
    /* The last token is always computed: its logits are not in the page. */
    while (kv->n_entered == kv->n_pages && *pos + DSV2I_PAGE_TOKENS < end) {
        found = dsv2i_pool_find(pool, space, expanded, parent_of(kv, kv->n_pages), tokens + *pos);
        if (!found)
            break;
        dsv2i_pool_hold(pool, found);
        set(kv, kv->n_pages++, found);
        kv->n_entered = kv->n_pages;
        *pos += DSV2I_PAGE_TOKENS;
    }
    pthread_mutex_unlock(&pool->lock);
    return DSV2_OK;
}

void dsv2i_kv_filled(struct dsv2i_kv *kv, int32_t from, int32_t to, int expanded)
{
    for (int32_t i = from; i < to; i++) {
        uint64_t *forms = &kv->page[i / DSV2I_PAGE_TOKENS]->expanded, bit = (uint64_t)1 << i % DSV2I_PAGE_TOKENS;

        *forms = expanded ? *forms | bit : *forms & ~bit;
    }
}

int dsv2i_kv_expanded(const struct dsv2i_kv *kv, int32_t pos)
{
    return (int)(kv->page[pos / DSV2I_PAGE_TOKENS]->expanded >> pos % DSV2I_PAGE_TOKENS & 1);
}

uint64_t dsv2i_kv_forms(const struct dsv2i_kv *kv, int32_t i)
{
    return kv->page[i]->expanded;
}

void dsv2i_kv_set_forms(struct dsv2i_kv *kv, int32_t i, uint64_t forms)
{
    kv->page[i]->expanded = forms;
}

void dsv2i_kv_publish(struct dsv2i_kv *kv, uint64_t space, const int32_t *tokens, int32_t pos)
{
    dsv2_pool *pool = kv->pool;
    struct dsv2i_page *there;

    if (!pool->n_buckets || kv->foreign || kv->n_entered == pos / DSV2I_PAGE_TOKENS)
        return;
    pthread_mutex_lock(&pool->lock);
    for (int32_t i = kv->n_entered; i < pos / DSV2I_PAGE_TOKENS; i++) {
        there = dsv2i_pool_enter(pool, kv->page[i], space, parent_of(kv, i), tokens + i * DSV2I_PAGE_TOKENS);
        if (!there)
            break;
        if (there != kv->page[i]) { /* another session was first */
            dsv2i_pool_hold(pool, there);
            dsv2i_pool_drop(pool, kv->page[i]);
            set(kv, i, there);
        }
        kv->n_entered = i + 1;
    }
    pthread_mutex_unlock(&pool->lock);
}
