/* Pages are counted references.  The prefix cache is a tree of full pages: each stands for the 64 tokens in it behind those of its parent, so
 * a chain of equal tokens is a chain of pages.  A table that holds a page of the tree holds all before it, too; hence the pages
 * that nothing else holds are whole subtrees, and as tables are dropped from their ends, the one that fell idle first has no children.
 * What is in a page depends on its tokens, those before, and the form of attention of each: pages that agree in these have the same bits.
 * SPDX-License-Identifier: MIT */
#include "pool.h"

#include <string.h>
#include <unistd.h>

#include "hash.h"
#include "kv.h"
#include "params.h"

static const char name[] = "dsv2_pool_params";

static dsv2_status take_params(const dsv2_pool_params *params, dsv2_pool_params *p)
{
    dsv2_pool_params_init(p, sizeof *p);
    DSV2I_TRY(dsv2i_params_take(p, sizeof *p, params, name));
    if (p->kv_type < 0 || p->kv_type >= DSV2I_KV_TYPES)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: kv_type: %d is none of DSV2_KV_*", name, p->kv_type);
    if (p->tokens && p->bytes)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: tokens and bytes: both are given", name);
    return DSV2_OK;
}

/* capacity pages in one block, all free. */
static dsv2_status make_pages(dsv2_pool *p)
{
    size_t bytes;

    if (__builtin_mul_overflow(p->page_bytes, p->capacity, &bytes))
        return dsv2i_fail(DSV2_ERR_NOMEM, "pool: no memory for %llu pages of %zu bytes", (unsigned long long)p->capacity,
                          p->page_bytes);
    p->all = dsv2i_alloc(p->mem, p->capacity, sizeof *p->all);
    p->block = p->all ? p->be->op->mem_alloc(p->be, bytes) : NULL;
    if (!p->block)
        return dsv2i_fail(DSV2_ERR_NOMEM, "pool: no memory for %llu pages of %zu bytes", (unsigned long long)p->capacity,
                          p->page_bytes);
    for (uint64_t i = p->capacity; i-- > 0;) {
        p->all[i] = (struct dsv2i_page){.data = p->block + i * p->page_bytes, .next = p->free};
        p->free = &p->all[i];
    }
    return DSV2_OK;
}

dsv2_status dsv2i_pool_create(dsv2_model *m, const dsv2_pool_params *params, int32_t kv_type, dsv2_pool **out)
{
    const struct dsv2i_hooks *mem = &m->ctx->mem;
    dsv2_pool_params given;
    dsv2_pool *p;
    dsv2_status status = DSV2_OK;

    DSV2I_TRY(take_params(params, &given));
    p = dsv2i_calloc(mem, 1, sizeof *p);
    if (!p)
        return dsv2i_fail(DSV2_ERR_NOMEM, "pool: no memory");
    atomic_init(&p->refs, 1);
    p->model = m;
    dsv2i_model_retain(m);
    p->be = m->ctx->backend;
    p->mem = mem;
    p->kv_type = params ? given.kv_type : kv_type;
    p->page_bytes = dsv2i_kv_page_bytes(p->be, &m->config.shape, p->kv_type);
    pthread_mutex_init(&p->lock, NULL);
    if (given.tokens || given.bytes) {
        p->capacity = given.bytes ? given.bytes / p->page_bytes : given.tokens / DSV2I_PAGE_TOKENS + (given.tokens % DSV2I_PAGE_TOKENS != 0);
        status = p->capacity ? make_pages(p)
                             : dsv2i_fail(DSV2_ERR_INVALID, "%s: bytes: %llu is less than a page of %zu bytes", name,
                                          (unsigned long long)given.bytes, p->page_bytes);
    }
    p->cache_capacity = given.prefix_cache_bytes / p->page_bytes;
    if (p->capacity && p->cache_capacity > p->capacity)
        p->cache_capacity = p->capacity;
    if (status == DSV2_OK && p->cache_capacity) {
        p->n_buckets = 16;
        while (p->n_buckets < p->cache_capacity && p->n_buckets < 1u << 20)
            p->n_buckets *= 2;
        p->bucket = dsv2i_calloc(mem, p->n_buckets, sizeof *p->bucket);
        if (!p->bucket)
            status = dsv2i_fail(DSV2_ERR_NOMEM, "pool: no memory for a prefix cache of %llu pages",
                                (unsigned long long)p->cache_capacity);
    }
    if (status != DSV2_OK) {
        dsv2i_pool_release(p);
        return status;
    }
    *out = p;
    return DSV2_OK;
}

void dsv2i_pool_retain(dsv2_pool *p)
{
    atomic_fetch_add(&p->refs, 1);
}

static int evict(dsv2_pool *p);

void dsv2i_pool_release(dsv2_pool *p)
{
    dsv2_model *m;

    if (!p || atomic_fetch_sub(&p->refs, 1) != 1)
        return;
    m = p->model;
    if (m->ctx->pid == getpid()) { /* a child of fork has no device, and another thread may have held the lock */
        while (evict(p))
            ;
        if (p->block)
            p->be->op->mem_free(p->be, p->block, p->capacity * p->page_bytes);
        pthread_mutex_destroy(&p->lock);
    }
    dsv2i_free(p->mem, p->all);
    dsv2i_free(p->mem, p->bucket);
    dsv2i_free(p->mem, p);
    dsv2i_model_release(m);
}

void dsv2i_pool_info(dsv2_pool *p, dsv2_pool_info *info)
{
    pthread_mutex_lock(&p->lock);
    *info = (dsv2_pool_info){
        .struct_size = sizeof *info,
        .kv_type = p->kv_type,
        .page_tokens = DSV2I_PAGE_TOKENS,
        .page_bytes = p->page_bytes,
        .pages = p->capacity,
        .pages_used = p->taken - p->idle,
        .pages_cached = p->cached,
        .pages_idle = p->idle,
        .prompt_tokens = p->prompt_tokens,
        .reused_tokens = p->reused_tokens,
        .entered = p->entered,
        .evicted = p->evicted,
    };
    pthread_mutex_unlock(&p->lock);
}

/* ---- Idle pages: those that only the cache holds, by when that began */

static void idle_add(dsv2_pool *p, struct dsv2i_page *page)
{
    page->older = p->newest;
    page->newer = NULL;
    *(p->newest ? &p->newest->newer : &p->oldest) = page;
    p->newest = page;
    p->idle++;
}

static void idle_remove(dsv2_pool *p, struct dsv2i_page *page)
{
    *(page->newer ? &page->newer->older : &p->newest) = page->older;
    *(page->older ? &page->older->newer : &p->oldest) = page->newer;
    p->idle--;
}

/* ---- Pages */

static struct dsv2i_page *new_page(dsv2_pool *p)
{
    struct dsv2i_page *page = p->free;

    if (page) {
        p->free = page->next;
    } else {
        if (p->capacity)
            return NULL;
        page = dsv2i_calloc(p->mem, 1, sizeof *page);
        if (!page)
            return NULL;
        page->data = p->be->op->mem_alloc(p->be, p->page_bytes);
        if (!page->data) {
            dsv2i_free(p->mem, page);
            return NULL;
        }
    }
    page->refs = 1;
    page->cached = 0;
    page->expanded = 0;
    p->taken++;
    return page;
}

static void free_page(dsv2_pool *p, struct dsv2i_page *page)
{
    p->taken--;
    if (p->capacity) {
        page->next = p->free;
        p->free = page;
        return;
    }
    p->be->op->mem_free(p->be, page->data, p->page_bytes);
    dsv2i_free(p->mem, page);
}

static void uncache(dsv2_pool *p, struct dsv2i_page *page)
{
    struct dsv2i_page **at;

    for (at = &p->bucket[page->hash & (p->n_buckets - 1)]; *at != page; at = &(*at)->next)
        ;
    *at = page->next;
    page->cached = 0;
    p->cached--;
    p->evicted++;
}

/* Give up the page that fell idle first; 0: there is none. */
static int evict(dsv2_pool *p)
{
    struct dsv2i_page *page = p->oldest;

    if (!page)
        return 0;
    idle_remove(p, page);
    uncache(p, page);
    free_page(p, page);
    return 1;
}

int dsv2i_pool_has(const dsv2_pool *p, uint64_t n)
{
    return !p->capacity || n <= p->capacity - p->taken + p->idle;
}

struct dsv2i_page *dsv2i_pool_take(dsv2_pool *p)
{
    struct dsv2i_page *page;

    do
        page = new_page(p);
    while (!page && evict(p));
    return page;
}

void dsv2i_pool_hold(dsv2_pool *p, struct dsv2i_page *page)
{
    if (page->refs++ == 1 && page->cached)
        idle_remove(p, page);
}

void dsv2i_pool_drop(dsv2_pool *p, struct dsv2i_page *page)
{
    if (--page->refs == 0)
        free_page(p, page);
    else if (page->refs == 1 && page->cached)
        idle_add(p, page);
}

/* ---- The prefix cache */

static uint64_t hash_of(uint64_t space, const struct dsv2i_page *parent, const int32_t *tokens)
{
    return dsv2i_hash(parent ? parent->hash : space, tokens, DSV2I_PAGE_TOKENS * sizeof *tokens);
}

/* The parent stands for all tokens before. */
static struct dsv2i_page *find(const dsv2_pool *p, uint64_t hash, uint64_t space, uint64_t expanded, const struct dsv2i_page *parent,
                               const int32_t *tokens)
{
    for (struct dsv2i_page *c = p->bucket[hash & (p->n_buckets - 1)]; c; c = c->next)
        if (c->hash == hash && c->parent == parent && c->space == space && c->expanded == expanded &&
            !memcmp(c->token, tokens, sizeof c->token))
            return c;
    return NULL;
}

struct dsv2i_page *dsv2i_pool_find(const dsv2_pool *p, uint64_t space, int expanded, const struct dsv2i_page *parent,
                                   const int32_t *tokens)
{
    return find(p, hash_of(space, parent, tokens), space, expanded ? UINT64_MAX : 0, parent, tokens);
}

struct dsv2i_page *dsv2i_pool_enter(dsv2_pool *p, struct dsv2i_page *page, uint64_t space, struct dsv2i_page *parent,
                                    const int32_t *tokens)
{
    uint64_t hash = hash_of(space, parent, tokens);
    struct dsv2i_page *found = find(p, hash, space, page->expanded, parent, tokens), **bucket;

    if (found)
        return found;
    if (page->expanded != 0 && page->expanded != UINT64_MAX) /* nobody would look for it */
        return NULL;
    if (page->refs > 1) /* another table holds it, but perhaps another page than parent before it */
        return NULL;
    if (p->cached == p->cache_capacity && !evict(p))
        return NULL;
    bucket = &p->bucket[hash & (p->n_buckets - 1)];
    page->cached = 1;
    page->refs++;
    page->space = space;
    page->hash = hash;
    page->parent = parent;
    page->next = *bucket;
    *bucket = page;
    memcpy(page->token, tokens, sizeof page->token);
    p->cached++;
    p->entered++;
    return page;
}

void dsv2i_pool_withdraw(dsv2_pool *p, struct dsv2i_page *page)
{
    uncache(p, page);
    page->refs--;
}

void dsv2i_pool_count(dsv2_pool *p, size_t prompt, size_t reused)
{
    pthread_mutex_lock(&p->lock);
    p->prompt_tokens += prompt;
    p->reused_tokens += reused;
    pthread_mutex_unlock(&p->lock);
}
