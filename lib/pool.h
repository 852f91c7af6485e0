/* KV pages: where they come from, who holds them, and the prefix cache.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_POOL_H
#define DSV2I_POOL_H

#include "model.h"

/* 64 tokens in all layers.  All but data is guarded by the pool's lock. */
struct dsv2i_page {
    void *data;                         /* backend memory, as struct dsv2i_seq wants it */
    int32_t refs;                       /* page tables that hold it, and 1 for the prefix cache */
    int32_t cached;                     /* it is in the prefix cache: full, and never written while it is there */
    uint64_t expanded;                  /* bit i: token i was computed in the expanded form of attention, on which its bits depend */
    uint64_t space;                     /* cached: the namespace whose prompts may share it */
    uint64_t hash;
    struct dsv2i_page *parent;          /* cached page of the 64 tokens before; NULL: these are the first */
    struct dsv2i_page *next;            /* in its bucket, or in the list of free pages */
    struct dsv2i_page *newer, *older;   /* among those that only the cache holds */
    int32_t token[DSV2I_PAGE_TOKENS];
};

struct dsv2_pool {
    atomic_int refs;
    dsv2_model *model;
    struct dsv2i_backend *be;
    const struct dsv2i_hooks *mem;
    int32_t kv_type;
    size_t page_bytes;
    pthread_mutex_t lock;
    uint64_t capacity;                  /* pages; 0: as many as memory allows, each with a block of its own */
    struct dsv2i_page *all, *free;      /* (capacity), and those of them that are not taken */
    char *block;                        /* their data */
    uint64_t taken, cached, idle;       /* pages that are not free; of these in the cache; of these held by nothing else */
    uint64_t cache_capacity, n_buckets; /* n_buckets: a power of two */
    struct dsv2i_page **bucket;
    struct dsv2i_page *newest, *oldest; /* the idle ones */
    uint64_t prompt_tokens, reused_tokens, entered, evicted;
};

/* params NULL: unbounded pages of kv_type without a prefix cache. */
dsv2_status dsv2i_pool_create(dsv2_model *m, const dsv2_pool_params *params, int32_t kv_type, dsv2_pool **out);
void dsv2i_pool_retain(dsv2_pool *p);
void dsv2i_pool_release(dsv2_pool *p);
void dsv2i_pool_info(dsv2_pool *p, dsv2_pool_info *info);

/* The rest is called with the lock held. */

/* Can so many pages be taken?  Of an unbounded pool nobody knows. */
int dsv2i_pool_has(const dsv2_pool *p, uint64_t n);
/* A page with one reference, if need be at the cost of the cached one that was used least recently; NULL: none left. */
struct dsv2i_page *dsv2i_pool_take(dsv2_pool *p);
void dsv2i_pool_hold(dsv2_pool *p, struct dsv2i_page *page);
/* Pages of a table are to be dropped from its end, so that the cache gives up the later pages of a prefix first. */
void dsv2i_pool_drop(dsv2_pool *p, struct dsv2i_page *page);
/* The cached page of these 64 tokens, all computed in one form, behind parent (in the cache, or NULL); NULL: there is none. */
struct dsv2i_page *dsv2i_pool_find(const dsv2_pool *p, uint64_t space, int expanded, const struct dsv2i_page *parent,
                                   const int32_t *tokens);
/* Put a full page, which the caller holds, into the cache.  Returns the page there, which may be an older one with the same bits;
 * NULL: no room, or it cannot be there. */
struct dsv2i_page *dsv2i_pool_enter(dsv2_pool *p, struct dsv2i_page *page, uint64_t space, struct dsv2i_page *parent,
                                    const int32_t *tokens);
/* Take a page without cached children out of the cache, for the only table that holds it. */
void dsv2i_pool_withdraw(dsv2_pool *p, struct dsv2i_page *page);
/* A prompt of so many tokens, some of which were found in the cache, is part of a session; takes the lock itself. */
void dsv2i_pool_count(dsv2_pool *p, size_t prompt, size_t reused);

#endif
