/* Sequences and what lone sessions make of them; a look at pools from inside.
 * SPDX-License-Identifier: MIT */
#include "sequences.h"

#include <stdlib.h>
#include <string.h>

#include "../../kernels/cpu/cpu.h"

const int32_t kv_types[N_TYPES] = {DSV2_KV_BF16, DSV2_KV_F32, DSV2_KV_6BIT};
static const int32_t forms[] = {DSV2_ATTENTION_ABSORBED, DSV2_ATTENTION_EXPANDED};

int32_t seq[N_SEQ][LENGTH];
struct reference *ref;
dsv2_model *model[N_MODELS];

int common(int a, int b)
{
    int n = 0;

    while (n < LENGTH && seq[a][n] == seq[b][n])
        n++;
    return n;
}

static void make_sequences(void)
{
    static const int from_before[N_SEQ] = {0, 64, 100, 128, 190, 0}; /* tokens that a sequence shares with the one before */
    uint64_t rng = 11;

    for (int q = 0; q < N_SEQ; q++)
        for (int i = 0; i < LENGTH; i++)
            seq[q][i] = i < from_before[q] ? seq[q - 1][i] : (int32_t)below(&rng, VOCAB);
}

static void make_reference(void)
{
    for (int t = 0; t < N_TYPES; t++)
        for (int f = 0; f < 2; f++)
            for (int q = 0; q < N_SEQ; q++) {
                dsv2_session *s = open_session(model[0], LENGTH, kv_types[t], forms[f], 16);

                for (int i = 0; i < LENGTH; i++) {
                    must(dsv2_session_prefill(s, &seq[q][i], 1));
                    memcpy(ref->logits[t][f][q][i], logits_of(s), sizeof ref->logits[t][f][q][i]);
                }
                must(dsv2_session_truncate(s, 0));
                must(dsv2_session_score(s, seq[q], LENGTH, ref->score[t][f][q], sizeof(dsv2_token_score)));
                dsv2_session_free(s);
            }
}

int type_of(const dsv2_session *s)
{
    int t = 0;

    while (kv_types[t] != s->kv.pool->kv_type)
        t++;
    return t;
}

/* Its logits are those of the lone session after n tokens of sequence q. */
void is_at(const dsv2_session *s, int q, int n)
{
    assert_int_equal(dsv2_session_position(s), n);
    assert_memory_equal(dsv2_session_tokens(s), seq[q], (size_t)n * sizeof(int32_t));
    assert_memory_equal(logits_of(s), ref->logits[type_of(s)][s->attention][q][n - 1], sizeof ref->logits[0][0][0][0]);
}

/* ---- Pools from inside */

dsv2_pool_info info_of(dsv2_pool *p)
{
    dsv2_pool_info info = {.struct_size = sizeof info};

    must(dsv2_pool_get_info(p, &info));
    return info;
}

size_t page_bytes(int32_t kv_type)
{
    return dsv2i_kv_page_bytes(model[0]->ctx->backend, &model[0]->config.shape, kv_type);
}

/* pages 0: unbounded */
dsv2_pool *open_pool(dsv2_model *m, int32_t kv_type, uint64_t pages, uint64_t cache)
{
    dsv2_pool_params p;
    dsv2_pool *pool;

    dsv2_pool_params_init(&p, sizeof p);
    p.kv_type = kv_type;
    p.bytes = pages * page_bytes(kv_type);
    p.prefix_cache_bytes = cache * page_bytes(kv_type);
    must(dsv2_pool_create(m, &p, &pool));
    return pool;
}

dsv2_session *open_in(dsv2_pool *pool, int32_t attention, uint64_t space, int32_t n_batch)
{
    dsv2_session_params p;
    dsv2_session *s;

    dsv2_session_params_init(&p, sizeof p);
    p.n_ctx = LENGTH;
    p.pool = pool;
    p.attention = attention;
    p.cache_namespace = space;
    p.n_batch = n_batch;
    must(dsv2_session_create(pool->model, &p, &s));
    return s;
}

dsv2_session *plain_in(dsv2_pool *pool)
{
    return open_in(pool, DSV2_ATTENTION_ABSORBED, 0, 16);
}

/* In the pool, after n tokens of sequence q. */
dsv2_session *prompt_in(dsv2_pool *pool, int q, size_t n)
{
    dsv2_session *s = plain_in(pool);

    must(dsv2_session_prefill(s, seq[q], n));
    is_at(s, q, (int)n);
    return s;
}

#define MAX_HELD 512

struct held {
    const struct dsv2i_page *page[MAX_HELD];
    int tables[MAX_HELD], n;
};

static int tables_of(const struct held *h, const struct dsv2i_page *page)
{
    for (int i = 0; i < h->n; i++)
        if (h->page[i] == page)
            return h->tables[i];
    return 0;
}

static const char *broken_table(const dsv2_session *s, struct held *h)
{
    const struct dsv2i_kv *kv = &s->kv;

    if (kv->n_pages != (s->pos + PAGE - 1) / PAGE)
        return "a table has not the pages of its position";
    for (int i = 0, k; i < kv->n_pages; i++) {
        const struct dsv2i_page *page = kv->page[i];

        if (kv->data[i] != page->data)
            return "a table is of two minds";
        if (page->cached != (i < kv->n_entered))
            return "n_entered is wrong";
        if (page->cached && page->parent != (i ? kv->page[i - 1] : NULL))
            return "a cached page stands behind another than its parent";
        if (page->cached && (i + 1) * PAGE <= s->pos && memcmp(page->token, s->tokens + i * PAGE, sizeof page->token))
            return "a cached page has other tokens than its session";
        for (k = 0; k < h->n && h->page[k] != page; k++)
            ;
        if (k == h->n) {
            h->page[k] = page;
            h->tables[k] = 0;
            h->n++;
        }
        h->tables[k]++;
    }
    return NULL;
}

/* What is not as pool.c says it is, with these sessions as all that the pool has; NULL: nothing. */
const char *broken(dsv2_pool *p, dsv2_session *const *s, int n)
{
    static struct held h;
    dsv2_pool_info info = info_of(p);
    uint64_t cached = 0, idle = 0, listed = 0, free_pages = 0;

    h.n = 0;
    for (int i = 0; i < n; i++)
        if (s[i] && s[i]->kv.pool == p) {
            const char *what = broken_table(s[i], &h);

            if (what)
                return what;
        }
    for (int i = 0; i < h.n; i++)
        if (h.page[i]->refs != h.tables[i] + h.page[i]->cached)
            return "a page is not held by as many as it says";
    for (uint64_t b = 0; b < p->n_buckets; b++)
        for (const struct dsv2i_page *c = p->bucket[b]; c; c = c->next) {
            if (++cached > p->cache_capacity)
                return "more pages in the cache than it may hold, or a circle";
            if (!c->cached || (c->hash & (p->n_buckets - 1)) != b)
                return "a page in the wrong bucket";
            if (c->refs != 1 + tables_of(&h, c))
                return "a cached page is not held by as many as it says";
            if (c->parent && (!c->parent->cached || (c->refs > 1 && c->parent->refs == 1)))
                return "a page without its parent";
            idle += c->refs == 1;
        }
    for (const struct dsv2i_page *c = p->oldest; c; c = c->newer) {
        if (++listed > idle || c->refs != 1 || !c->cached)
            return "a page in the list of idle ones that is not idle";
        for (const struct dsv2i_page *later = c->newer; later; later = later->newer)
            if (later->parent == c)
                return "a parent would go before its child";
    }
    for (const struct dsv2i_page *c = p->free; c; c = c->next)
        if (++free_pages > p->capacity)
            return "the free pages are a circle";
    if (p->capacity && free_pages != p->capacity - info.pages_used - info.pages_idle)
        return "used, idle and free pages are not all";
    if (info.pages_used != (uint64_t)h.n || info.pages_cached != cached || info.pages_idle != idle || listed != idle ||
        info.entered - info.evicted != cached || info.reused_tokens > info.prompt_tokens || info.reused_tokens % PAGE)
        return "a counter is wrong";
    return NULL;
}

void check_pool(dsv2_pool *p, uint64_t used, uint64_t cached, uint64_t idle)
{
    dsv2_pool_info info = info_of(p);

    assert_int_equal(info.pages_used, used);
    assert_int_equal(info.pages_cached, cached);
    assert_int_equal(info.pages_idle, idle);
}

/* ---- */

dsv2_step_member member_of(dsv2_session *s, int q, size_t n)
{
    return (dsv2_step_member){.session = s, .tokens = seq[q] + dsv2_session_position(s), .n_tokens = n, .status = 12345};
}

int set_up_sequences(void **state)
{
    ref = malloc(sizeof *ref);
    assert_non_null(ref);
    for (int i = 0; i < N_MODELS; i++) {
        dsv2_context *ctx = open_context(i + 1);

        ((struct dsv2i_cpu *)ctx->backend)->pool.min_work = 0; /* share the smallest work, too */
        model[i] = open_model(ctx, "v2");
        dsv2_context_free(ctx);
    }
    make_sequences();
    make_reference();
    return 0;
}

int tear_down_sequences(void **state)
{
    for (int i = 0; i < N_MODELS; i++)
        dsv2_model_free(model[i]);
    free(ref);
    return 0;
}
