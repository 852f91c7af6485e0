/* Pools of pages and the prefix cache: sizes, counters, what is found and what is given up, lifetimes, threads, memory that runs out; and the
 * hash below.
 * SPDX-License-Identifier: MIT */
#include "sequences.h"

#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "hash.h"

/* ---- Pools */

static void pool_sizes(void **state)
{
    size_t bytes = page_bytes(DSV2_KV_BF16);
    static const struct {
        uint64_t tokens, pages;
    } sizes[] = {{1, 1}, {63, 1}, {64, 1}, {65, 2}, {128, 2}, {640, 10}, {641, 11}};
    dsv2_pool_params p;
    dsv2_pool *pool;
    dsv2_session *s;

    assert_int_equal(bytes, 64 * 3 * (64 + 16) * 2);
    dsv2_pool_params_init(&p, sizeof p);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int in_bytes = 0; in_bytes < 2; in_bytes++) {
            p.tokens = in_bytes ? 0 : sizes[i].tokens;
            p.bytes = in_bytes ? sizes[i].pages * bytes + (i % 2 ? bytes - 1 : 0) : 0;
            must(dsv2_pool_create(model[0], &p, &pool));
            assert_int_equal(info_of(pool).pages, sizes[i].pages);
            assert_int_equal(info_of(pool).page_bytes, bytes);
            assert_int_equal(info_of(pool).page_tokens, 64);
            assert_int_equal(info_of(pool).kv_type, DSV2_KV_BF16);
            must(dsv2_session_create(model[0], &(dsv2_session_params){.struct_size = sizeof(dsv2_session_params), .n_batch = 1,
                                                                      .pool = pool}, &s));
            assert_int_equal(dsv2_session_capacity(s), sizes[i].pages * 64); /* by default what the pool has */
            dsv2_session_free(s);
            dsv2_pool_free(pool);
        }
    p.tokens = 1;
    p.bytes = bytes;
    expect(dsv2_pool_create(model[0], &p, &pool), DSV2_ERR_INVALID, "both");
    assert_null(pool);
    p.tokens = 0;
    p.bytes = bytes - 1;
    expect(dsv2_pool_create(model[0], &p, &pool), DSV2_ERR_INVALID, "less than a page");
    p.bytes = UINT64_MAX;
    expect(dsv2_pool_create(model[0], &p, &pool), DSV2_ERR_NOMEM, "no memory");
    p.bytes = 0;
    p.tokens = UINT64_MAX;
    expect(dsv2_pool_create(model[0], &p, &pool), DSV2_ERR_NOMEM, "no memory");
    p.tokens = 0;
    p.kv_type = 99;
    expect(dsv2_pool_create(model[0], &p, &pool), DSV2_ERR_INVALID, "kv_type: 99");
    expect(dsv2_pool_create(NULL, &p, &pool), DSV2_ERR_INVALID, "model");
    expect(dsv2_pool_create(model[0], NULL, NULL), DSV2_ERR_INVALID, "out");
    expect(dsv2_pool_get_info(NULL, &(dsv2_pool_info){.struct_size = sizeof(dsv2_pool_info)}), DSV2_ERR_INVALID, "pool");
    dsv2_pool_free(NULL);

    must(dsv2_pool_create(model[0], NULL, &pool)); /* unbounded: the model's context, and as many pages as it takes */
    assert_int_equal(info_of(pool).pages, 0);
    must(dsv2_session_create(model[0], &(dsv2_session_params){.struct_size = sizeof(dsv2_session_params), .n_batch = 16, .pool = pool}, &s));
    assert_int_equal(dsv2_session_capacity(s), 1280);
    must(dsv2_session_prefill(s, seq[0], LENGTH));
    is_at(s, 0, LENGTH);
    check_pool(pool, 5, 0, 0);
    dsv2_session_free(s);
    check_pool(pool, 0, 0, 0);
    expect(dsv2_session_create(model[1], &(dsv2_session_params){.struct_size = sizeof(dsv2_session_params), .n_batch = 16, .pool = pool}, &s),
           DSV2_ERR_INVALID, "another model");
    dsv2_pool_free(pool);
}

/* Pages are taken when they are needed and given back at once. */
static void pages_come_and_go(void **state)
{
    for (int pages = 0; pages <= 20; pages += 20) {
        dsv2_pool *pool = open_pool(model[0], DSV2_KV_BF16, (uint64_t)pages, 0);
        dsv2_session *a = plain_in(pool), *b, *c;

        check_pool(pool, 0, 0, 0);
        must(dsv2_session_prefill(a, seq[0], 64));
        check_pool(pool, 1, 0, 0);
        must(dsv2_session_prefill(a, seq[0] + 64, 1));
        check_pool(pool, 2, 0, 0);
        must(dsv2_session_fork(a, &b));
        check_pool(pool, 2, 0, 0);
        must(dsv2_session_prefill(b, seq[0] + 65, 1)); /* copies the page that both have */
        check_pool(pool, 3, 0, 0);
        must(dsv2_session_prefill(a, seq[0] + 65, 1)); /* now it is a's own */
        check_pool(pool, 3, 0, 0);
        must(dsv2_session_fork(a, &c));
        must(dsv2_session_truncate(c, 64));
        check_pool(pool, 3, 0, 0);
        must(dsv2_session_prefill(c, seq[0] + 64, 130));
        check_pool(pool, 6, 0, 0);
        is_at(a, 0, 66);
        is_at(b, 0, 66);
        is_at(c, 0, 194);
        must(dsv2_session_truncate(c, 1)); /* the first page is still a's and b's, too */
        check_pool(pool, 3, 0, 0);
        dsv2_session_free(a);
        check_pool(pool, 2, 0, 0);
        dsv2_session_free(b);
        check_pool(pool, 1, 0, 0);
        must(dsv2_session_truncate(c, 0));
        check_pool(pool, 0, 0, 0);
        dsv2_session_free(c);
        dsv2_pool_free(pool);
    }
}

/* Whichever goes first, what is still needed stays. */
static void lifetimes(void **state)
{
    for (int order = 0; order < 3; order++) {
        dsv2_context *c = open_context(1);
        dsv2_model *m = open_model(c, "v2");
        dsv2_pool *pool = open_pool(m, DSV2_KV_BF16, 8, 4);
        dsv2_session *s = prompt_in(pool, 0, 70), *f;

        must(dsv2_session_fork(s, &f));
        dsv2_context_free(c);
        if (order == 0) {
            dsv2_pool_free(pool);
            dsv2_model_free(m);
        } else if (order == 1) {
            dsv2_model_free(m);
            dsv2_session_free(s);
        }
        must(dsv2_session_prefill(f, seq[0] + 70, 30));
        is_at(f, 0, 100);
        dsv2_session_free(f);
        if (order != 1)
            dsv2_session_free(s);
        if (order != 0) {
            assert_int_equal(info_of(pool).pages_used, 0);
            dsv2_pool_free(pool);
        }
        if (order == 2)
            dsv2_model_free(m);
    }
}

/* ---- The prefix cache */

static void check_reuse(dsv2_pool *pool, uint64_t prompt, uint64_t reused)
{
    dsv2_pool_info info = info_of(pool);

    assert_int_equal(info.prompt_tokens, prompt);
    assert_int_equal(info.reused_tokens, reused);
}

static void prefixes(void **state)
{
    dsv2_pool *pool = open_pool(model[1], DSV2_KV_BF16, 0, 100);
    dsv2_session *a = prompt_in(pool, 0, 200), *s;
    dsv2_token_score scores[130];

    check_reuse(pool, 200, 0);
    check_pool(pool, 4, 3, 0); /* the fourth is not full */
    s = prompt_in(pool, 0, 200);
    check_reuse(pool, 400, 192);
    check_pool(pool, 5, 3, 0);
    dsv2_session_free(s);
    s = prompt_in(pool, 0, 192); /* one token is always computed */
    check_reuse(pool, 592, 192 + 128);
    check_pool(pool, 4, 3, 0);  /* and its page is the one in the cache */
    dsv2_session_free(s);
    s = prompt_in(pool, 0, 193);
    check_reuse(pool, 785, 192 + 128 + 192);
    dsv2_session_free(s);
    s = prompt_in(pool, 1, 200); /* shares 64 tokens */
    check_reuse(pool, 985, 576);
    dsv2_session_free(s);
    s = prompt_in(pool, 5, 200); /* shares none */
    check_reuse(pool, 1185, 576);
    dsv2_session_free(s);
    dsv2_session_free(a);

    /* In pieces: a later piece goes on with what is there, if it begins a page. */
    s = plain_in(pool);
    must(dsv2_session_prefill(s, seq[0], 65));
    must(dsv2_session_prefill(s, seq[0] + 65, 100)); /* the page after was begun already */
    is_at(s, 0, 165);
    check_reuse(pool, 1185 + 165, 640);
    must(dsv2_session_truncate(s, 64));
    must(dsv2_session_prefill(s, seq[0] + 64, 66));
    is_at(s, 0, 130);
    check_reuse(pool, 1350 + 66, 704);
    dsv2_session_free(s);

    /* Not where scores are wanted, nor for output; but what both leave can be used. */
    s = plain_in(pool);
    must(dsv2_session_score(s, seq[0], 130, scores, sizeof *scores));
    for (int i = 1; i < 130; i++)
        assert_memory_equal(&scores[i], &ref->score[0][0][0][i], sizeof *scores);
    is_at(s, 0, 130);
    dsv2_session_free(s);
    s = plain_in(pool);
    for (int i = 0; i < 130; i++)
        must(dsv2_session_decode(s, seq[4][i]));
    dsv2_step_member m = {.session = s, .tokens = seq[4] + 130, .n_tokens = 70, .flags = DSV2_STEP_DECODED};
    must(dsv2_step(&m, sizeof m, 1));
    is_at(s, 4, 200);
    check_reuse(pool, 1416, 704);
    dsv2_session_free(s);
    s = prompt_in(pool, 4, 200);
    check_reuse(pool, 1616, 704 + 192);
    dsv2_session_free(s);
    check_pool(pool, 0, info_of(pool).entered, info_of(pool).entered);
    dsv2_pool_free(pool);
}

/* Tenants do not meet, and neither do forms of attention. */
static void spaces(void **state)
{
    dsv2_pool *pool = open_pool(model[0], DSV2_KV_F32, 0, 100);
    uint64_t reused = 0;

    for (int turn = 0; turn < 2; turn++)
        for (uint64_t space = 0; space < 3; space++)
            for (int32_t form = 0; form < 2; form++) {
                dsv2_session *s = open_in(pool, form, space == 2 ? UINT64_MAX : space, 16);

                must(dsv2_session_prefill(s, seq[2], 100));
                is_at(s, 2, 100);
                reused += turn ? 64 : 0;
                assert_int_equal(info_of(pool).reused_tokens, reused);
                dsv2_session_free(s);
            }
    check_pool(pool, 0, 6, 6);
    dsv2_pool_free(pool);
}

/* What AUTO finds was computed as it would itself: logits do not tell what was in the cache. */
static void auto_and_cache(void **state)
{
    dsv2_pool *pool = open_pool(model[0], DSV2_KV_F32, 0, 100); /* a type that shows the last bit */
    float wanted[VOCAB];

    for (int with = 0; with < 5; with++) {
        dsv2_session *s = with ? open_in(pool, DSV2_ATTENTION_AUTO, 0, 16) : open_session(model[2], LENGTH, DSV2_KV_F32, DSV2_ATTENTION_AUTO, 16);

        if (with == 1 || with == 3) { /* the same tokens, of other cuts */
            for (int i = 0; i < 200; i += 20)
                must(dsv2_session_prefill(s, seq[3] + i, 20));
            dsv2_session_free(s);
            continue;
        }
        must(dsv2_session_prefill(s, seq[3], 200));
        must(dsv2_session_prefill(s, seq[3] + 200, 3));
        must(dsv2_session_decode(s, seq[3][203]));
        if (!with)
            memcpy(wanted, logits_of(s), sizeof wanted);
        assert_memory_equal(logits_of(s), wanted, sizeof wanted);
        dsv2_session_free(s);
    }
    assert_int_equal(info_of(pool).reused_tokens, 192); /* of the last one, from the third */
    check_pool(pool, 0, 3, 3); /* the pieces begin expanded and go on absorbed: such a page does not enter, nor what follows */
    dsv2_pool_free(pool);
}

/* Whether the cache has the first n tokens of a sequence; asking counts as use. */
static int found(dsv2_pool *pool, int q, int n)
{
    struct dsv2i_page *page = NULL;

    for (int i = 0; i < n; i += PAGE)
        if (!(page = dsv2i_pool_find(pool, 0, 0, page, seq[q] + i)))
            return 0;
    return 1;
}

static void least_recently_used(void **state)
{
    dsv2_pool *pool = open_pool(model[0], DSV2_KV_BF16, 8, 8);
    dsv2_session *s;

    dsv2_session_free(prompt_in(pool, 0, 128)); /* both 2 pages */
    dsv2_session_free(prompt_in(pool, 5, 128));
    check_pool(pool, 0, 4, 4);
    s = plain_in(pool);
    must(dsv2_session_prefill(s, seq[1] + 64, 4 * PAGE - 20)); /* the 4 free pages */
    check_pool(pool, 4, 7, 4);
    assert_true(found(pool, 0, 128) && found(pool, 5, 128));
    must(dsv2_session_decode(s, 1));
    assert_int_equal(info_of(pool).evicted, 0);
    must(dsv2_session_truncate(s, 0));
    dsv2_session_free(prompt_in(pool, 0, 129)); /* used again: now 5 is the older one */
    check_pool(pool, 0, 7, 7);
    must(dsv2_session_prefill(s, seq[2] + 100, 65)); /* one free, one evicted: the end of 5 */
    assert_int_equal(info_of(pool).evicted, 1);
    assert_true(found(pool, 0, 128) && found(pool, 5, 64) && !found(pool, 5, 128));
    must(dsv2_session_prefill(s, seq[2] + 165, 64));
    assert_int_equal(info_of(pool).evicted, 2);
    assert_true(found(pool, 0, 128) && !found(pool, 5, 64));
    dsv2_session_free(s);
    assert_null(broken(pool, NULL, 0));
    dsv2_pool_free(pool);
}

/* Cached pages go before there are no pages; those in use stay. */
static void eviction(void **state)
{
    dsv2_pool *pool = open_pool(model[0], DSV2_KV_BF16, 6, 6);
    dsv2_session *a = prompt_in(pool, 0, 130), *b;
    dsv2_pool_info before, after;

    dsv2_session_free(prompt_in(pool, 5, 192));
    check_pool(pool, 3, 5, 3);
    b = plain_in(pool);
    before = info_of(pool);
    expect(dsv2_session_prefill(b, seq[4] + 40, 193), DSV2_ERR_NO_PAGES, "6 pages"); /* 4 of 3: nothing is given up in vain */
    after = info_of(pool);
    assert_memory_equal(&before, &after, sizeof after);
    must(dsv2_session_prefill(b, seq[4] + 40, 192)); /* exactly the idle ones */
    assert_int_equal(info_of(pool).evicted, 3);
    expect(dsv2_session_decode(b, 1), DSV2_ERR_NO_PAGES, NULL);
    assert_true(found(pool, 0, 128));
    must(dsv2_session_prefill(a, seq[0] + 130, 62));
    is_at(a, 0, 192);
    check_pool(pool, 6, 6, 0);

    /* Writing to a page that only the cache shares with it: there is no room for a copy, so the cache goes without. */
    must(dsv2_session_truncate(a, 170));
    must(dsv2_session_prefill(a, seq[0] + 170, 5));
    is_at(a, 0, 175);
    check_pool(pool, 6, 5, 0);
    dsv2_session *both[] = {a, b};
    assert_null(broken(pool, both, 2));
    must(dsv2_session_truncate(a, 100));
    check_pool(pool, 5, 5, 0); /* a page is free: now it is copied, and the cache keeps its own, which then is idle */
    must(dsv2_session_prefill(a, seq[0] + 100, 1));
    check_pool(pool, 5, 5, 1);
    is_at(a, 0, 101);
    assert_null(broken(pool, both, 2));
    dsv2_session_free(a);
    dsv2_session_free(b);
    dsv2_pool_free(pool);
}

static void cache_bound(void **state)
{
    dsv2_pool *pool = open_pool(model[0], DSV2_KV_BF16, 0, 3);
    dsv2_session *a = prompt_in(pool, 0, 200), *b = prompt_in(pool, 5, 200), *s;

    check_pool(pool, 8, 3, 0); /* full of pages in use: nothing enters */
    dsv2_session_free(a);
    check_pool(pool, 4, 3, 3);
    must(dsv2_session_decode(b, seq[5][200])); /* enters now */
    check_pool(pool, 4, 3, 0);
    is_at(b, 5, 201);
    assert_true(found(pool, 5, 192) && !found(pool, 0, 64));
    s = prompt_in(pool, 5, 100);
    assert_int_equal(info_of(pool).reused_tokens, 64);
    dsv2_session_free(s);
    dsv2_session_free(b);
    check_pool(pool, 0, 3, 3);
    dsv2_pool_free(pool);
    pool = open_pool(model[0], DSV2_KV_BF16, 0, 0); /* no cache */
    dsv2_session_free(prompt_in(pool, 0, 200));
    dsv2_session_free(prompt_in(pool, 0, 200));
    check_reuse(pool, 0, 0);
    check_pool(pool, 0, 0, 0);
    dsv2_pool_free(pool);
}

/* Equal prompts in one step are computed by each, but the pages become one; and a copy when one of them goes elsewhere. */
static void equal_prompts(void **state)
{
    dsv2_pool *pool = open_pool(model[2], DSV2_KV_BF16, 20, 20);
    dsv2_session *s[3] = {plain_in(pool), plain_in(pool), plain_in(pool)}, *third;
    dsv2_step_member m[3];
    float wanted[VOCAB];

    for (int i = 0; i < 3; i++)
        m[i] = member_of(s[i], 0, 140);
    must(dsv2_step(m, sizeof *m, 3));
    check_reuse(pool, 420, 0);
    check_pool(pool, 2 + 3, 2, 0); /* the last, unfilled page is everyone's own */
    for (int i = 0; i < 3; i++)
        is_at(s[i], 0, 140);

    /* Back into a cached page, and on with other tokens. */
    must(dsv2_session_truncate(s[0], 100));
    check_pool(pool, 4, 2, 0);
    must(dsv2_session_prefill(s[0], seq[5], 90));
    memcpy(wanted, logits_of(s[0]), sizeof wanted);
    check_pool(pool, 6, 3, 0);
    must(dsv2_session_prefill(s[1], seq[0] + 140, 20));
    is_at(s[1], 0, 160);
    third = prompt_in(pool, 0, 170);
    assert_int_equal(info_of(pool).reused_tokens, 128);
    dsv2_session_free(third);
    third = plain_in(pool); /* the other way is in the cache, too */
    must(dsv2_session_prefill(third, seq[0], 100));
    must(dsv2_session_prefill(third, seq[5], 90));
    assert_memory_equal(logits_of(third), wanted, sizeof wanted);
    assert_ptr_equal(third->kv.page[1], s[0]->kv.page[1]);
    dsv2_session_free(third);
    for (int i = 0; i < 3; i++)
        dsv2_session_free(s[i]);
    assert_null(broken(pool, NULL, 0));
    dsv2_pool_free(pool);
}

/* Sessions that share pages outside of the cache, one of which then meets the cache's. */
static void forks_and_a_full_cache(void **state)
{
    for (uint64_t cache = 2; cache < 5; cache++) {
        dsv2_pool *pool = open_pool(model[0], DSV2_KV_BF16, 0, cache);
        dsv2_session *fill = prompt_in(pool, 5, cache * PAGE), *a = prompt_in(pool, 0, 130), *b, *c;

        check_pool(pool, cache + 3, cache, 0);
        must(dsv2_session_fork(a, &b));
        dsv2_session_free(fill);
        c = prompt_in(pool, 0, 70);
        must(dsv2_session_decode(a, seq[0][130]));
        dsv2_session *all[] = {a, b, c};
        assert_null(broken(pool, all, 3));
        dsv2_session_free(c);
        dsv2_session_free(a);
        dsv2_session_free(prompt_in(pool, 4, cache * PAGE));
        must(dsv2_session_decode(b, seq[0][130]));
        is_at(b, 0, 131);
        assert_null(broken(pool, &b, 1));
        dsv2_session_free(prompt_in(pool, 0, 200));
        assert_null(broken(pool, &b, 1));
        dsv2_session_free(b);
        dsv2_pool_free(pool);
    }
}

static void rehash(dsv2_pool *pool, struct dsv2i_page *page, uint64_t hash)
{
    struct dsv2i_page **at = &pool->bucket[page->hash & (pool->n_buckets - 1)];

    while (*at != page)
        at = &(*at)->next;
    *at = page->next;
    at = &pool->bucket[hash & (pool->n_buckets - 1)];
    page->hash = hash;
    page->next = *at;
    *at = page;
}

/* Pages with the same hash, let alone in the same bucket, are told apart by their tokens, by what they follow, and by whose they are. */
static void collisions(void **state)
{
    dsv2_pool *pool = open_pool(model[0], DSV2_KV_BF16, 0, 40); /* more pages than buckets at last */
    struct dsv2i_page *page;
    dsv2_session *s;

    dsv2_session_free(prompt_in(pool, 0, 70));
    page = dsv2i_pool_find(pool, 0, 0, NULL, seq[0]);
    assert_non_null(page);
    rehash(pool, page, dsv2i_hash(0, seq[5], PAGE * sizeof(int32_t)));
    s = prompt_in(pool, 5, 100);
    assert_int_equal(info_of(pool).reused_tokens, 0);
    check_pool(pool, 2, 2, 1);
    dsv2_session_free(s);
    s = prompt_in(pool, 5, 100);
    assert_int_equal(info_of(pool).reused_tokens, 64);
    dsv2_session_free(s);
    page = dsv2i_pool_find(pool, 0, 0, NULL, seq[5]);
    rehash(pool, page, dsv2i_hash(7, seq[5], PAGE * sizeof(int32_t)));
    assert_null(dsv2i_pool_find(pool, 7, 0, NULL, seq[5]));
    rehash(pool, page, dsv2i_hash(1, seq[5], PAGE * sizeof(int32_t))); /* 1: the hash of a page that might stand before */
    assert_null(dsv2i_pool_find(pool, 0, 0, &(struct dsv2i_page){.hash = 1}, seq[5]));
    for (int q = 0; q < N_SEQ; q++)
        for (int at = 0; at < 70; at += 7) {
            s = plain_in(pool);
            must(dsv2_session_prefill(s, seq[q] + at, 65 + 2 * (size_t)at));
            if (!at)
                is_at(s, q, 65);
            dsv2_session_free(s);
            assert_null(broken(pool, NULL, 0));
        }
    dsv2_pool_free(pool);
}

/* ---- XXH64: the vectors of xxHash's own check (github.com/Cyan4973/xxHash, cli/xsum_sanity_check.c of 0.8.0), whose buffer this is; and
 * every length to 100 in a chain, each hash the next one's seed, whose end is that of the Python package xxhash 4.1.0. */

static void hashes(void **state)
{
    static const struct {
        size_t n;
        uint64_t seed, hash;
    } vectors[] = {{0, 0, 0xEF46DB3751D8E999u}, {0, 2654435761u, 0xAC75FDA2929B17EFu}, {1, 0, 0xE934A84ADB052768u},
                   {1, 2654435761u, 0x5014607643A9B4C3u}, {4, 0, 0x9136A0DCA57457EEu}, {14, 0, 0x8282DCC4994E35C8u},
                   {14, 2654435761u, 0xC3BD6BF63DEB6DF0u}, {222, 0, 0xB641AE8CB691C174u}, {222, 2654435761u, 0x20CB8AB7AE10C14Au}};
    unsigned char buf[222];
    uint64_t x = 2654435761u, chain = 0, rng = 4;

    for (size_t i = 0; i < sizeof buf; i++, x *= 11400714785074694797u)
        buf[i] = (unsigned char)(x >> 56);
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        assert_true(dsv2i_hash(vectors[i].seed, buf, vectors[i].n) == vectors[i].hash);
    for (size_t n = 0; n <= 100; n++)
        chain = dsv2i_hash(chain, buf, n);
    assert_true(chain == 0xF20DE7512DEF6B82u);

    for (size_t n = 0; n <= sizeof buf; n++) /* in pieces of any size */
        for (int turn = 0; turn < 20; turn++) {
            struct dsv2i_hasher h;

            dsv2i_hash_begin(&h, n);
            for (size_t at = 0; at < n;) {
                size_t piece = below(&rng, turn < 10 ? 9 : 70);

                piece = piece < n - at ? piece : n - at;
                dsv2i_hash_add(&h, piece ? buf + at : NULL, piece);
                at += piece;
            }
            assert_true(dsv2i_hash_end(&h) == dsv2i_hash(n, buf, n));
        }
}

/* ---- Threads */

struct worker {
    dsv2_pool *pool;
    int index;
    long done, refused;
    const char *error;
};

static int same_bits(const dsv2_session *s, int q, int n)
{
    const float *logits;
    size_t n_logits;

    return dsv2_session_logits(s, &logits, &n_logits) == DSV2_OK &&
           !memcmp(logits, ref->logits[type_of(s)][s->attention][q][n - 1], sizeof ref->logits[0][0][0][0]);
}

/* Sessions of one thread in a pool of all, which is too small for them: each call gives the right bits or NO_PAGES. */
static void *work(void *user)
{
    struct worker *w = user;
    uint64_t rng = 100 + (uint64_t)w->index;

    for (int round = 0; round < 60 && !w->error; round++) {
        dsv2_session_params p;
        dsv2_session *s[2] = {NULL, NULL};
        int q = (int)below(&rng, N_SEQ), n = 1 + (int)below(&rng, 200), more = 1 + (int)below(&rng, 60);

        dsv2_session_params_init(&p, sizeof p);
        p.n_ctx = LENGTH;
        p.n_batch = 8 + w->index * 8;
        p.pool = w->pool;
        if (dsv2_session_create(w->pool->model, &p, &s[0]) != DSV2_OK) {
            w->error = "create";
        } else if (dsv2_session_prefill(s[0], seq[q], (size_t)n) != DSV2_OK) {
            w->refused++;
        } else if (!same_bits(s[0], q, n) || dsv2_session_fork(s[0], &s[1]) != DSV2_OK) {
            w->error = "prefill or fork";
        } else {
            dsv2_step_member m[2] = {{.session = s[0], .tokens = seq[q] + n, .n_tokens = (size_t)more},
                                     {.session = s[1], .tokens = seq[q] + n, .n_tokens = 1, .flags = DSV2_STEP_DECODED}};

            dsv2_step(m, sizeof *m, 2);
            for (int i = 0; i < 2; i++) {
                w->refused += m[i].status == DSV2_ERR_NO_PAGES;
                if (m[i].status == DSV2_OK ? !same_bits(s[i], q, n + (int)m[i].n_tokens) : m[i].status != DSV2_ERR_NO_PAGES)
                    w->error = "step";
                w->done += m[i].status == DSV2_OK;
            }
            dsv2_session_truncate(s[1], (size_t)n / 2);
        }
        info_of(w->pool);
        dsv2_session_free(s[round % 2]);
        dsv2_session_free(s[!(round % 2)]);
    }
    return NULL;
}

static void threads(void **state)
{
    dsv2_pool *pool = open_pool(model[1], DSV2_KV_BF16, 11, 6);
    struct worker w[4];
    pthread_t t[4];
    long done = 0, refused = 0;

    for (int i = 0; i < 4; i++) {
        w[i] = (struct worker){.pool = pool, .index = i};
        assert_int_equal(pthread_create(&t[i], NULL, work, &w[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
        if (w[i].error)
            fail_msg("thread %d: %s", i, w[i].error);
        done += w[i].done;
        refused += w[i].refused;
    }
    print_message("%ld members went well, %ld had no pages\n", done, refused);
    assert_true(done > 100);
    assert_int_equal(info_of(pool).pages_used, 0);
    assert_null(broken(pool, NULL, 0));
    dsv2_pool_free(pool);
}

/* ---- Memory that runs out */

static struct {
    long countdown, count, live;
} mem;

static void *hook_alloc(void *user, size_t size, size_t alignment)
{
    void *p = NULL;

    if (mem.countdown && (mem.count++, --mem.countdown == 0))
        return NULL;
    if (posix_memalign(&p, alignment < 16 ? 16 : alignment, size))
        return NULL;
    memset(p, 0xCD, size);
    mem.live++;
    return p;
}

static void hook_free(void *user, void *p, size_t size)
{
    memset(p, 0xDD, size);
    mem.live--;
    free(p);
}

/* A call that may find no memory has then changed nothing; it is made again with enough. */
#define ATTEMPT(call) \
    do { \
        if ((call) != DSV2_OK) { \
            assert_int_equal(mem.countdown, 0); \
            assert_non_null(strstr(dsv2_last_error(), "no memory")); \
            must(call); \
        } \
    } while (0)

static void attempt_prefill(dsv2_session *s, dsv2_pool *pool, int q, size_t n)
{
    size_t at = dsv2_session_position(s);
    dsv2_pool_info before = info_of(pool), after;

    if (dsv2_session_prefill(s, seq[q] + at, n) != DSV2_OK) {
        assert_non_null(strstr(dsv2_last_error(), "no memory"));
        assert_int_equal(dsv2_session_position(s), at);
        after = info_of(pool);
        after.evicted = before.evicted;
        after.pages_cached = before.pages_cached;
        after.pages_idle = before.pages_idle;
        assert_memory_equal(&before, &after, sizeof after);
        must(dsv2_session_prefill(s, seq[q] + at, n));
    }
    is_at(s, q, (int)(at + n));
}

static void life_in(dsv2_model *m, uint64_t pages)
{
    dsv2_pool_params p;
    dsv2_session_params sp;
    dsv2_pool *pool = NULL;
    dsv2_session *s[4] = {NULL};
    dsv2_step_member part[3];
    dsv2_status status;

    dsv2_pool_params_init(&p, sizeof p);
    p.bytes = pages * page_bytes(DSV2_KV_BF16);
    p.prefix_cache_bytes = 8 * page_bytes(DSV2_KV_BF16);
    ATTEMPT(dsv2_pool_create(m, &p, &pool));
    dsv2_session_params_init(&sp, sizeof sp);
    sp.pool = pool;
    sp.n_ctx = LENGTH;
    sp.n_batch = 24;
    for (int i = 0; i < 3; i++)
        ATTEMPT(dsv2_session_create(m, &sp, &s[i]));
    attempt_prefill(s[0], pool, 0, 130);
    attempt_prefill(s[1], pool, 1, 80); /* the first page is there */
    attempt_prefill(s[2], pool, 5, 60);
    for (int i = 0; i < 3; i++)
        part[i] = member_of(s[i], i == 2 ? 5 : i, 20 + 60 * (size_t)i);
    status = dsv2_step(part, sizeof *part, 3);
    for (int i = 0; i < 3; i++) {
        int q = i == 2 ? 5 : i, at = i == 0 ? 130 : i == 1 ? 80 : 60, n = (int)part[i].n_tokens;

        if (part[i].status == 12345)
            assert_int_equal(status, DSV2_ERR_NOMEM);
        if (part[i].status != DSV2_OK) {
            assert_true(part[i].status == DSV2_ERR_NOMEM || part[i].status == 12345);
            assert_int_equal(dsv2_session_position(s[i]), at);
            must(dsv2_step(&part[i], sizeof *part, 1));
        }
        is_at(s[i], q, at + n);
    }
    ATTEMPT(dsv2_session_fork(s[0], &s[3]));
    attempt_prefill(s[3], pool, 0, 50); /* copies a page */
    must(dsv2_session_truncate(s[3], 70));
    attempt_prefill(s[3], pool, 0, 30); /* copies one of the cache */
    assert_null(broken(pool, s, 4));
    for (int i = 0; i < 4; i++)
        dsv2_session_free(s[i]);
    assert_int_equal(info_of(pool).pages_used, 0);
    dsv2_pool_free(pool);
}

static void no_memory(void **state)
{
    dsv2_context_params cp = context_params(1);

    cp.alloc = hook_alloc;
    cp.free = hook_free;
    for (uint64_t pages = 0; pages <= 24; pages += 24) {
        long most = 1;

        for (long n = 1; n <= most; n++) {
            dsv2_context *c;
            dsv2_model *m;
            long live;

            must(dsv2_context_create(&cp, &c));
            must(dsv2_model_load(c, golden("v2"), NULL, &m));
            dsv2_session_free(open_session(m, LENGTH, DSV2_KV_BF16, 0, 24)); /* what the context keeps for its sessions */
            live = mem.live;
            if (n == 1) {
                mem.countdown = LONG_MAX;
                mem.count = 0;
                life_in(m, pages);
                most = mem.count;
            }
            mem.countdown = n;
            life_in(m, pages);
            assert_int_equal(mem.countdown, 0);
            assert_int_equal(mem.live, live);
            dsv2_model_free(m);
            dsv2_context_free(c);
            assert_int_equal(mem.live, 0);
        }
        print_message("%ld allocations, each failed once\n", most);
        assert_true(most > 20);
    }
}

/* ---- */

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hashes), cmocka_unit_test(pool_sizes), cmocka_unit_test(pages_come_and_go),
        cmocka_unit_test(lifetimes), cmocka_unit_test(prefixes), cmocka_unit_test(spaces),
        cmocka_unit_test(auto_and_cache), cmocka_unit_test(least_recently_used), cmocka_unit_test(eviction),
        cmocka_unit_test(cache_bound), cmocka_unit_test(equal_prompts), cmocka_unit_test(forks_and_a_full_cache),
        cmocka_unit_test(collisions), cmocka_unit_test(threads), cmocka_unit_test(no_memory),
    };

    return cmocka_run_group_tests(tests, set_up_sequences, tear_down_sequences);
}
