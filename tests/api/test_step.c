/* Steps of many sessions: random lives against tables of what lone sessions compute token by token, then failures one by one.
 * SPDX-License-Identifier: MIT */
#include "sequences.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static int has_logits(const dsv2_session *s)
{
    const float *logits;
    size_t n;

    return dsv2_session_logits(s, &logits, &n) == DSV2_OK;
}

/* ---- Random lives
 *
 * A life is a list of operations, each with a seed of its own, on a few sessions in a few pools.  One that fails is shrunk: operations
 * are left out as long as it still fails, and what is left is printed. */

enum { N_SLOTS = 8, N_POOLS = 3, MAX_MEMBERS = 6 };

struct op {
    uint32_t kind; /* 0..99 */
    uint64_t seed;
};

struct slot {
    dsv2_session *s;
    dsv2_session *twin; /* of an AUTO session, whose bits depend on its cuts: it does the same alone, in another context */
    int type, q, pos, has_logits, n_ctx;
};

struct world {
    dsv2_model *model, *other;
    dsv2_pool *pool[N_POOLS];
    int type[N_POOLS]; /* indices into kv_types */
    uint64_t looked_for[N_POOLS];
    struct slot slot[N_SLOTS];
    int print;
    long steps, refused;
    char error[300];
};

#define CHECK(condition, ...) \
    do { \
        if (!(condition)) { \
            snprintf(w->error, sizeof w->error, __VA_ARGS__); \
            return -1; \
        } \
    } while (0)

static int check_slot(struct world *w, int i)
{
    const struct slot *x = &w->slot[i];
    const float *wanted;

    if (!x->s)
        return 0;
    CHECK(dsv2_session_position(x->s) == (size_t)x->pos, "session %d is at %zu, not at %d", i, dsv2_session_position(x->s), x->pos);
    CHECK(!x->pos || !memcmp(dsv2_session_tokens(x->s), seq[x->q], (size_t)x->pos * sizeof(int32_t)), "session %d has other tokens", i);
    CHECK(has_logits(x->s) == x->has_logits, "session %d has %s logits", i, x->has_logits ? "no" : "unexpected");
    if (!x->has_logits)
        return 0;
    wanted = x->twin ? logits_of(x->twin) : ref->logits[x->type][x->s->attention][x->q][x->pos - 1];
    CHECK(!memcmp(logits_of(x->s), wanted, sizeof ref->logits[0][0][0][0]), "session %d has other logits", i);
    return 0;
}

static int check_world(struct world *w)
{
    dsv2_session *all[N_SLOTS];

    for (int i = 0; i < N_SLOTS; i++) {
        all[i] = w->slot[i].s;
        if (check_slot(w, i))
            return -1;
    }
    for (int i = 0; i < N_POOLS; i++) {
        const char *what = broken(w->pool[i], all, N_SLOTS);

        CHECK(!what, "pool %d: %s", i, what);
        CHECK(info_of(w->pool[i]).prompt_tokens == w->looked_for[i], "pool %d: prompt_tokens %llu, not %llu", i,
              (unsigned long long)info_of(w->pool[i]).prompt_tokens, (unsigned long long)w->looked_for[i]);
    }
    return 0;
}

static void free_slot(struct slot *x)
{
    dsv2_session_free(x->s);
    dsv2_session_free(x->twin);
    *x = (struct slot){.s = NULL};
}

static int do_create(struct world *w, uint64_t *rng)
{
    static const int32_t batches[] = {1, 3, 7, 16, 40, 64};
    int i = (int)below(rng, N_SLOTS), k = (int)below(rng, N_POOLS + 1);
    struct slot *x = &w->slot[i];
    dsv2_session_params p;

    free_slot(x);
    dsv2_session_params_init(&p, sizeof p);
    x->type = k < N_POOLS ? w->type[k] : (int)below(rng, N_TYPES);
    x->n_ctx = p.n_ctx = below(rng, 3) ? LENGTH : 90 + (int)below(rng, 100);
    p.kv_type = kv_types[x->type];
    p.attention = (int32_t)below(rng, 3);
    p.n_batch = batches[below(rng, 6)];
    if (p.attention == DSV2_ATTENTION_AUTO)
        must(dsv2_session_create(w->other, &p, &x->twin));
    p.pool = k < N_POOLS ? w->pool[k] : NULL;
    p.cache_namespace = below(rng, 4) / 3;
    must(dsv2_session_create(w->model, &p, &x->s));
    if (w->print)
        print_message("create %d: attention %d, n_batch %d, n_ctx %d, pool %d, namespace %d\n", i, p.attention, p.n_batch, p.n_ctx,
                      k < N_POOLS ? k : -1, (int)p.cache_namespace);
    return 0;
}

static int do_truncate(struct world *w, uint64_t *rng)
{
    int i = (int)below(rng, N_SLOTS), n;
    struct slot *x = &w->slot[i];

    if (!x->s)
        return 0;
    n = (int)below(rng, (uint32_t)x->pos + 1);
    if (below(rng, 3) == 0)
        n = n / PAGE * PAGE;
    if (w->print)
        print_message("truncate %d: %d of %d\n", i, n, x->pos);
    must(dsv2_session_truncate(x->s, (size_t)n));
    if (x->twin)
        must(dsv2_session_truncate(x->twin, (size_t)n));
    x->has_logits &= n == x->pos;
    x->pos = n;
    return 0;
}

static int do_fork(struct world *w, uint64_t *rng)
{
    int i = (int)below(rng, N_SLOTS), k = (int)below(rng, N_SLOTS);
    struct slot *x = &w->slot[i], *y = &w->slot[k];

    if (!x->s || i == k)
        return 0;
    if (w->print)
        print_message("fork %d to %d\n", i, k);
    free_slot(y);
    *y = *x;
    must(dsv2_session_fork(x->s, &y->s));
    if (x->twin)
        must(dsv2_session_fork(x->twin, &y->twin));
    return 0;
}

static int do_free(struct world *w, uint64_t *rng)
{
    int i = (int)below(rng, N_SLOTS);

    if (w->print)
        print_message("free %d\n", i);
    free_slot(&w->slot[i]);
    return 0;
}

/* A member, and what is to become of it. */
struct part {
    int slot, q, n;
    int32_t tokens[LENGTH];
    dsv2_token_score scores[LENGTH], twins[LENGTH];
    dsv2_status wanted; /* OK: or NO_PAGES */
    uint64_t need;      /* pages, if nothing is found in the cache */
};

/* Pages for n more tokens; again: the last token is written once more. */
static uint64_t need_of(const struct slot *x, int n, int again)
{
    int first = (x->pos - again) / PAGE, old = x->s->kv.n_pages, shared = 0;

    if (first < old) /* with other sessions; a copy for the cache's sake alone is not needed when it would be the last page */
        shared = again || x->s->kv.page[first]->refs - x->s->kv.page[first]->cached > 1; /* and always for what is computed again */
    return (uint64_t)((x->pos + n + PAGE - 1) / PAGE - old + shared);
}

static int make_part(struct world *w, struct part *p, dsv2_step_member *m, uint64_t *rng)
{
    const struct slot *x = &w->slot[p->slot];
    uint32_t length = below(rng, 10), fault = below(rng, 100);
    int q = (int)below(rng, N_SEQ);

    p->q = common(q, x->q) >= x->pos ? q : x->q;
    p->n = length < 4 ? 1 : 1 + (int)below(rng, length < 8 ? 20 : 150);
    if (x->pos + p->n > LENGTH)
        p->n = LENGTH - x->pos;
    if (!p->n)
        return 0;
    memcpy(p->tokens, seq[p->q] + x->pos, (size_t)p->n * sizeof *p->tokens);
    *m = (dsv2_step_member){.session = x->s, .tokens = p->tokens, .n_tokens = (size_t)p->n, .status = 12345};
    m->flags = (below(rng, 4) ? 0 : DSV2_STEP_DECODED) | (below(rng, 7) ? 0 : DSV2_STEP_NO_LOGITS);
    if (below(rng, 5) == 0) {
        m->scores = p->scores;
        m->score_size = sizeof *p->scores;
    }
    p->need = need_of(x, p->n, m->scores && x->pos && !x->has_logits);
    p->wanted = DSV2_OK;
    if (x->pos + p->n > x->n_ctx) {
        p->wanted = DSV2_ERR_CONTEXT_FULL;
    } else if (fault < 5) {
        p->tokens[below(rng, (uint32_t)p->n)] = fault % 2 ? -1 : VOCAB;
        p->wanted = DSV2_ERR_INVALID;
    } else if (fault < 9) {
        dsv2_session_cancel(x->s);
        p->wanted = DSV2_ERR_CANCELLED;
    }
    return 1;
}

static int check_scores(struct world *w, const struct part *p, const struct slot *before)
{
    for (int i = 0; i < p->n; i++) {
        const dsv2_token_score *got = &p->scores[i], *wanted = before->twin ? &p->twins[i]
                                                            : &ref->score[before->type][before->s->attention][p->q][before->pos + i];

        CHECK(got->rank == wanted->rank && got->top_token == wanted->top_token, "session %d: score %d: rank %d, not %d", p->slot, i,
              got->rank, wanted->rank);
        /* Where logits are there the first score comes from them, else from the pass: that may be the last bit. */
        CHECK(before->pos + i == 0 ? isnan(got->logprob)
                                   : fabsf(got->logprob - wanted->logprob) <= (i ? 0 : 2e-6f * (1 + fabsf(wanted->logprob))),
              "session %d: score %d is %.9g, not %.9g", p->slot, i, got->logprob, wanted->logprob);
    }
    return 0;
}

/* A member went well: its twin does the same, and the slot moves on. */
static int follow(struct world *w, struct part *p, const dsv2_step_member *m)
{
    struct slot *x = &w->slot[p->slot];

    if (x->twin) {
        dsv2_step_member alone = *m;

        alone.session = x->twin;
        alone.scores = m->scores ? p->twins : NULL;
        must(dsv2_step(&alone, sizeof alone, 1));
    }
    if (m->scores && check_scores(w, p, x))
        return -1;
    for (int k = 0; k < N_POOLS; k++)
        if (x->s->kv.pool == w->pool[k] && w->pool[k]->n_buckets && !m->scores && !(m->flags & DSV2_STEP_DECODED))
            w->looked_for[k] += (uint64_t)p->n;
    x->q = p->q;
    x->pos += p->n;
    x->has_logits = !(m->flags & DSV2_STEP_NO_LOGITS);
    return 0;
}

static void choose(struct world *w, uint64_t *rng, int *order, int *n)
{
    *n = 0;
    for (int i = 0; i < N_SLOTS; i++)
        if (w->slot[i].s)
            order[(*n)++] = i;
    for (int i = *n - 1; i > 0; i--) {
        int k = (int)below(rng, (uint32_t)i + 1), t = order[i];

        order[i] = order[k];
        order[k] = t;
    }
}

static int do_step(struct world *w, uint64_t *rng)
{
    static struct part part[MAX_MEMBERS];
    dsv2_step_member m[MAX_MEMBERS];
    int order[N_SLOTS], n_live, limit = 1 + (int)below(rng, MAX_MEMBERS), n = 0;
    dsv2_status status, last = DSV2_OK;
    uint64_t used[N_POOLS];

    choose(w, rng, order, &n_live);
    for (int i = 0; i < n_live && n < limit; i++) {
        part[n].slot = order[i];
        n += make_part(w, &part[n], &m[n], rng);
    }
    if (!n)
        return 0;
    if (w->print)
        for (int i = 0; i < n; i++)
            print_message("step %d/%d: session %d at %d, %d tokens of %d, flags %u%s, %s\n", i, n, part[i].slot,
                          w->slot[part[i].slot].pos, part[i].n, part[i].q, m[i].flags, m[i].scores ? ", scores" : "",
                          dsv2_status_name(part[i].wanted));
    for (int k = 0; k < N_POOLS; k++)
        used[k] = info_of(w->pool[k]).pages_used;
    status = dsv2_step(m, sizeof *m, (size_t)n);
    w->steps++;
    for (int i = 0; i < n; i++) {
        const dsv2_session *s = m[i].session;
        int k = 0;

        while (k < N_POOLS && s->kv.pool != w->pool[k])
            k++;
        last = m[i].status != DSV2_OK ? m[i].status : last;
        if (m[i].status == DSV2_ERR_NO_PAGES && part[i].wanted == DSV2_OK) {
            /* There really was no room, even if the members before found nothing in the cache. */
            CHECK(k < N_POOLS && w->pool[k]->capacity && used[k] + part[i].need > w->pool[k]->capacity,
                  "member %d: NO_PAGES, but %llu used, %llu needed", i, (unsigned long long)(k < N_POOLS ? used[k] : 0),
                  (unsigned long long)part[i].need);
            w->refused++;
            continue;
        }
        CHECK(m[i].status == part[i].wanted, "member %d: %s, not %s: %s", i, dsv2_status_name(m[i].status),
              dsv2_status_name(part[i].wanted), dsv2_last_error());
        if (m[i].status != DSV2_OK)
            continue;
        if (k < N_POOLS)
            used[k] += part[i].need;
        if (follow(w, &part[i], &m[i]))
            return -1;
    }
    CHECK(status == last, "the step is %s, its last failure %s", dsv2_status_name(status), dsv2_status_name(last));
    return 0;
}

static int do_op(struct world *w, const struct op *op)
{
    uint64_t rng = op->seed;

    if (op->kind < 62)
        return do_step(w, &rng);
    if (op->kind < 72)
        return do_truncate(w, &rng);
    if (op->kind < 82)
        return do_fork(w, &rng);
    return op->kind < 87 ? do_free(w, &rng) : do_create(w, &rng);
}

/* A life from its operations; 0: all is well. */
static int live(uint64_t seed, const struct op *ops, int n, struct world *w)
{
    uint64_t rng = seed;
    int failed = 0, print = w->print;

    *w = (struct world){.print = print, .steps = w->steps, .refused = w->refused};
    w->model = model[seed % N_MODELS];
    w->other = model[(seed + 1) % N_MODELS];
    for (int k = 0; k < N_POOLS; k++) {
        uint64_t pages = below(&rng, 3) ? 4 + below(&rng, 16) : 0;
        uint64_t cache = below(&rng, 4) ? 1 + below(&rng, 12) : 0;

        w->type[k] = k; /* one of each */
        w->pool[k] = open_pool(w->model, kv_types[w->type[k]], pages, cache);
        if (print)
            print_message("pool %d: %d pages, cache of %d\n", k, (int)pages, (int)cache);
    }
    for (int i = 0; i < n && !failed; i++)
        failed = do_op(w, &ops[i]) || check_world(w);
    if (!failed) {
        for (int i = 0; i < N_SLOTS; i++)
            free_slot(&w->slot[i]);
        failed = check_world(w);
    }
    /* A table that is broken may not be given back without harm: what failed is left behind. */
    for (int k = 0; k < N_POOLS && !failed; k++)
        dsv2_pool_free(w->pool[k]);
    return failed;
}

static int shrink(uint64_t seed, struct op *ops, int n, struct world *w)
{
    struct op fewer[512];

    for (int chunk = n / 2; chunk; chunk /= 2)
        for (int at = 0; at + chunk <= n;) {
            memcpy(fewer, ops, (size_t)at * sizeof *ops);
            memcpy(fewer + at, ops + at + chunk, (size_t)(n - at - chunk) * sizeof *ops);
            if (live(seed, fewer, n - chunk, w)) {
                n -= chunk;
                memcpy(ops, fewer, (size_t)n * sizeof *ops);
            } else {
                at += chunk;
            }
        }
    return n;
}

static void random_lives(void **state)
{
    static struct op ops[150];
    static struct world w;
#ifdef SANITIZED
    const int lives = 10;
#else
    const int lives = 45;
#endif

    w = (struct world){.print = 0};
    for (uint64_t seed = 1; seed <= (uint64_t)lives; seed++) {
        uint64_t rng = seed * 1000003;
        int n = sizeof ops / sizeof *ops;

        for (int i = 0; i < n; i++)
            ops[i] = (struct op){i < 8 ? 99 : below(&rng, 100), (uint64_t)random_u32(&rng) << 32 | random_u32(&rng)};
        if (live(seed, ops, n, &w)) {
            n = shrink(seed, ops, n, &w);
            w.print = 1;
            live(seed, ops, n, &w);
            fail_msg("seed %d, shrunk to %d operations: %s", (int)seed, n, w.error);
        }
    }
    print_message("%ld steps in %d lives, %ld members without pages\n", w.steps, lives, w.refused);
    assert_true(w.steps > 40 * lives && w.refused > lives);
}

/* More members than logits are computed for at a time, in one pass and in many. */
static void crowd(void **state)
{
    enum { N = 75 };
    dsv2_session *s[N];
    dsv2_step_member m[N];

    for (int32_t n_batch = 10; n_batch <= 200; n_batch += 190) {
        for (int i = 0; i < N; i++)
            s[i] = open_session(model[n_batch % N_MODELS], LENGTH, kv_types[i % N_TYPES], i / 3 % 2, n_batch);
        for (int round = 0; round < 3; round++) {
            for (int i = 0; i < N; i++)
                m[i] = member_of(s[i], i % N_SEQ, i % 10 ? 1 : 30);
            must(dsv2_step(m, sizeof *m, N));
            for (int i = 0; i < N; i++)
                is_at(s[i], i % N_SEQ, (round + 1) * (i % 10 ? 1 : 30));
        }
        for (int i = 0; i < N; i++)
            dsv2_session_free(s[i]);
    }
}

/* ---- Calls that make no sense as a whole: nothing is done, no status set */

static void whole_call(void **state)
{
    dsv2_pool *pool = open_pool(model[1], DSV2_KV_BF16, 20, 20);
    dsv2_session *a = prompt_in(pool, 0, 70), *b = prompt_in(pool, 4, 10);
    dsv2_session *foreign = open_session(model[0], 0, DSV2_KV_BF16, 0, 16);
    dsv2_token_score scores[5];
    dsv2_pool_info before = info_of(pool), after;

    for (int fault = 0; fault < 9; fault++)
        for (int at = 0; at < 2; at++) {
            static const char *const texts[] = {"session", "tokens", "n_tokens", "twice", "model", "flags", "element", "element", "n: 0"};
            dsv2_step_member m[3] = {member_of(a, 0, 5), member_of(b, 4, 5)};
            size_t size = sizeof *m, n = 2;

            if (fault == 0)
                m[at].session = NULL;
            else if (fault == 1)
                m[at].tokens = NULL;
            else if (fault == 2)
                m[at].n_tokens = 0;
            else if (fault == 3)
                m[at].session = m[!at].session;
            else if (fault == 4)
                m[at].session = foreign;
            else if (fault == 5)
                m[at].flags = 1u << 31 | DSV2_STEP_DECODED;
            else if (fault == 6)
                size = at ? offsetof(dsv2_step_member, sample) - 1 : 0;
            else if (fault == 7)
                m[at] = (dsv2_step_member){.session = m[at].session, .tokens = seq[0], .n_tokens = 5, .scores = scores,
                                           .score_size = at ? 0 : 3, .status = 12345};
            else
                n = 0;
            expect(dsv2_step(m, size, n), DSV2_ERR_INVALID, texts[fault]);
            for (int i = 0; i < 2; i++)
                assert_int_equal(m[i].status, 12345);
            is_at(a, 0, 70);
            is_at(b, 4, 10);
            assert_int_equal(dsv2_session_position(foreign), 0);
            after = info_of(pool);
            assert_memory_equal(&after, &before, sizeof after);
        }
    expect(dsv2_step(NULL, sizeof(dsv2_step_member), 1), DSV2_ERR_INVALID, "members");

    /* And nothing of it stays: the same sessions go on, in larger elements. */
    struct {
        dsv2_step_member m;
        char newer[24];
    } wide[2] = {{member_of(a, 0, 5), ""}, {member_of(b, 4, 5), ""}};
    must(dsv2_step(&wide[0].m, sizeof *wide, 2));
    assert_int_equal(wide[0].m.status | wide[1].m.status, DSV2_OK);
    is_at(a, 0, 75);
    is_at(b, 4, 15);
    dsv2_session_free(a);
    dsv2_session_free(b);
    dsv2_session_free(foreign);
    dsv2_pool_free(pool);
}

/* ---- Choosing in the step */

static int32_t spoil(void *user, float *logits, size_t n)
{
    (void)n;
    logits[0] = NAN;
    ++*(int *)user;
    return 0;
}

/* What dsv2_sample would choose after it; with and without logits, in the middle of others, by an older program's elements not at all. */
static void sampled(void **state)
{
    dsv2_session *a = open_session(model[0], 0, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 16);
    dsv2_session *b = open_session(model[0], 0, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 16);
    dsv2_session *c = open_session(model[0], 0, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 16);
    dsv2_sample_params p;
    const float *logits;
    int calls = 0;
    size_t n;

    dsv2_sample_params_init(&p, sizeof p, model[0]);
    p.temperature = 1.2f;
    p.repetition_penalty = 1.3f;
    p.presence_penalty = 2;
    p.frequency_penalty = 2;
    p.min_tokens = 3;
    p.seed = 5;
    for (int round = 0; round < 6; round++) {
        dsv2_step_member m[3] = {member_of(a, 0, 10), member_of(b, 0, 10), member_of(c, 1, 3)};
        int32_t token;
        float logprob;

        m[0].sample = m[1].sample = &p;
        m[1].flags |= DSV2_STEP_NO_LOGITS;
        must(dsv2_step(m, sizeof *m, 3));
        must(dsv2_sample(a, &p, &token, &logprob));
        assert_int_equal(m[0].token, token);
        assert_int_equal(m[1].token, token);
        assert_true(m[0].logprob == logprob && m[1].logprob == logprob);
        assert_int_equal(m[2].token, 0);
        expect(dsv2_session_logits(b, &logits, &n), DSV2_ERR_STATE, NULL);
    }

    /* Parameters that make no sense: nothing is done.  A choice that fails: its session is as it was. */
    dsv2_step_member m = member_of(a, 0, 5);
    size_t before = dsv2_session_position(a);
    m.sample = &p;
    p.top_p = 0;
    expect(dsv2_step(&m, sizeof m, 1), DSV2_ERR_INVALID, "top_p");
    p.top_p = 1;
    p.callback = spoil;
    p.callback_user = &calls;
    expect(dsv2_step(&m, sizeof m, 1), DSV2_ERR_NUMERIC, "callback");
    assert_int_equal(calls, 1);
    assert_int_equal(dsv2_session_position(a), before);
    assert_int_equal(m.status, DSV2_ERR_NUMERIC);
    expect(dsv2_session_logits(a, &logits, &n), DSV2_ERR_STATE, NULL); /* those that it had are gone */

    /* Elements as they were at first. */
    m.token = 77;
    must(dsv2_step(&m, offsetof(dsv2_step_member, sample), 1));
    assert_int_equal(calls, 1);
    assert_int_equal(m.token, 77);
    dsv2_session_free(a);
    dsv2_session_free(b);
    dsv2_session_free(c);
}

/* ---- One of many fails */

struct canceller {
    dsv2_session *victim; /* cancelled at the call; NULL: the callback's own session, by what it returns */
    int at, calls;
};

static int32_t cancel_there(void *user, uint64_t done, uint64_t total)
{
    struct canceller *c = user;

    assert_true(done <= total);
    if (++c->calls != c->at)
        return 0;
    if (!c->victim)
        return 1;
    dsv2_session_cancel(c->victim);
    return 0;
}

/* A progress callback cancels its own session, or, while the step is under way, another one. */
static void cancelled_within(void **state)
{
    for (int other = 0; other < 2; other++)
        for (int at = 1; at <= 8; at++) {
            struct canceller c = {.at = at};
            dsv2_session *s[4];
            dsv2_step_member m[4];
            int victim = other ? 3 : 1;

            for (int i = 0; i < 4; i++) {
                dsv2_session_params p;

                dsv2_session_params_init(&p, sizeof p);
                p.n_batch = 16;
                p.attention = i % 2;
                if (i == 1) {
                    p.progress = cancel_there;
                    p.progress_user = &c;
                }
                must(dsv2_session_create(model[at % N_MODELS], &p, &s[i]));
                must(dsv2_session_prefill(s[i], seq[i], 3));
                m[i] = member_of(s[i], i, i == 1 ? 150 : i == 3 ? 100 : 1 + 10 * (size_t)i);
            }
            c.victim = other ? s[3] : NULL;
            c.calls = 0;
            expect(dsv2_step(m, sizeof *m, 4), DSV2_ERR_CANCELLED, "cancelled");
            for (int i = 0; i < 4; i++) {
                assert_int_equal(m[i].status, i == victim ? DSV2_ERR_CANCELLED : DSV2_OK);
                is_at(s[i], i, i == victim ? 3 : 3 + (int)m[i].n_tokens);
            }
            c.at = -1;
            must(dsv2_session_prefill(s[victim], seq[victim] + 3, 100));
            is_at(s[victim], victim, 103);
            for (int i = 0; i < 4; i++)
                dsv2_session_free(s[i]);
        }
}

/* A score computes the last token again where its logits are gone: in the form that it was computed in, so that failing then leaves the
 * bits of the page. */
static void cancelled_score(void **state)
{
    dsv2_session *s[2];
    dsv2_token_score scores[40];
    struct canceller c = {.at = -1};

    for (int i = 0; i < 2; i++) {
        dsv2_session_params p;

        dsv2_session_params_init(&p, sizeof p);
        p.attention = DSV2_ATTENTION_AUTO;
        p.kv_type = DSV2_KV_F32; /* shows the last bit */
        p.n_batch = 4;
        if (i == 0) {
            p.progress = cancel_there;
            p.progress_user = &c;
        }
        must(dsv2_session_create(model[0], &p, &s[i]));
        must(dsv2_session_prefill(s[i], seq[0], 200)); /* expanded */
        for (int k = 200; k < 240; k++)
            must(dsv2_session_decode(s[i], seq[0][k])); /* absorbed */
    }
    for (size_t at = 239; at >= 150; at -= 89) {
        for (int i = 0; i < 2; i++)
            must(dsv2_session_truncate(s[i], at));
        c = (struct canceller){.at = 1};
        expect(dsv2_session_score(s[0], seq[0] + at, 40, scores, sizeof *scores), DSV2_ERR_CANCELLED, "progress");
        c.at = -1;
        for (int i = 0; i < 2; i++)
            must(dsv2_session_decode(s[i], seq[0][at]));
        assert_memory_equal(logits_of(s[0]), logits_of(s[1]), VOCAB * sizeof(float));
    }
    for (int i = 0; i < 2; i++)
        dsv2_session_free(s[i]);
}

/* Requests from another thread at any moment: each hits its session, now or in its next step, and no other. */
struct nuisance {
    dsv2_session *s[4];
    atomic_int end, requests;
};

static void *cancel_often(void *user)
{
    struct nuisance *x = user;
    uint64_t rng = 3;

    while (!atomic_load(&x->end)) {
        struct timespec pause = {0, (long)below(&rng, 400000)};

        nanosleep(&pause, NULL);
        dsv2_session_cancel(x->s[1 + below(&rng, 3)]);
        atomic_fetch_add(&x->requests, 1);
    }
    return NULL;
}

static void cancelled_at_any_time(void **state)
{
    dsv2_pool *pool = open_pool(model[2], DSV2_KV_BF16, 30, 10);
    struct nuisance x = {.end = 0};
    int at[4] = {0}, cancelled = 0;
    uint64_t rng = 77;
    pthread_t t;

    for (int i = 0; i < 4; i++)
        x.s[i] = plain_in(pool);
    assert_int_equal(pthread_create(&t, NULL, cancel_often, &x), 0);
    for (int round = 0; round < 300; round++) {
        dsv2_step_member m[4];

        for (int i = 0; i < 4; i++) {
            int n = 1 + (int)below(&rng, 40);

            if (at[i] + n > LENGTH) {
                must(dsv2_session_truncate(x.s[i], 0));
                at[i] = 0;
            }
            m[i] = member_of(x.s[i], i, (size_t)n);
        }
        dsv2_step(m, sizeof *m, 4);
        for (int i = 0; i < 4; i++) {
            assert_true(m[i].status == DSV2_OK || (i && m[i].status == DSV2_ERR_CANCELLED));
            at[i] += m[i].status == DSV2_OK ? (int)m[i].n_tokens : 0;
            cancelled += m[i].status != DSV2_OK;
            if (at[i] && has_logits(x.s[i]))
                is_at(x.s[i], i, at[i]);
        }
        assert_null(broken(pool, x.s, 4));
    }
    atomic_store(&x.end, 1);
    pthread_join(t, NULL);
    assert_true(cancelled <= atomic_load(&x.requests));
    for (int i = 0; i < 4; i++)
        dsv2_session_free(x.s[i]);
    dsv2_pool_free(pool);
}

/* Pages go to the members in order, and what one that got too few gives back is there for the next. */
static void last_page(void **state)
{
    dsv2_pool *pool = open_pool(model[0], DSV2_KV_BF16, 3, 0);

    for (int turn = 0; turn < 2; turn++) {
        dsv2_session *s[3] = {plain_in(pool), plain_in(pool), plain_in(pool)};
        dsv2_step_member m[3];
        dsv2_pool_info before, after;

        must(dsv2_session_prefill(s[0], seq[0], 60));
        must(dsv2_session_prefill(s[1], seq[1], 60));
        m[0] = member_of(s[turn], turn, 10);
        m[1] = member_of(s[!turn], !turn, 10);
        expect(dsv2_step(m, sizeof *m, 2), DSV2_ERR_NO_PAGES, "3 pages");
        assert_int_equal(m[0].status, DSV2_OK);
        assert_int_equal(m[1].status, DSV2_ERR_NO_PAGES);
        is_at(s[turn], turn, 70);
        is_at(s[!turn], !turn, 60);
        before = info_of(pool);
        expect(dsv2_session_prefill(s[!turn], seq[!turn] + 60, 10), DSV2_ERR_NO_PAGES, NULL);
        expect(dsv2_session_decode(s[2], 1), DSV2_ERR_NO_PAGES, NULL);
        after = info_of(pool);
        assert_memory_equal(&before, &after, sizeof after);
        must(dsv2_session_truncate(s[turn], 64)); /* a page comes back */
        must(dsv2_session_prefill(s[!turn], seq[!turn] + 60, 10));
        is_at(s[!turn], !turn, 70);
        must(dsv2_session_truncate(s[!turn], 60));
        m[0] = member_of(s[turn], turn, 100); /* two pages, of which one is there */
        m[1] = member_of(s[2], 2, 64);
        expect(dsv2_step(m, sizeof *m, 2), DSV2_ERR_NO_PAGES, NULL);
        assert_int_equal(m[0].status, DSV2_ERR_NO_PAGES);
        assert_int_equal(m[1].status, DSV2_OK);
        is_at(s[2], 2, 64);
        check_pool(pool, 3, 0, 0);
        for (int i = 0; i < 3; i++)
            dsv2_session_free(s[i]);
        check_pool(pool, 0, 0, 0);
    }
    dsv2_pool_free(pool);
}

/* A member that found its beginning in the cache, but not the rest of its pages, is no burden for the next. */
static void no_pages_after_reuse(void **state)
{
    dsv2_pool *pool = open_pool(model[0], DSV2_KV_BF16, 4, 4);
    dsv2_session *a = prompt_in(pool, 0, 129), *b = plain_in(pool), *c = plain_in(pool);
    dsv2_step_member m[2];
    uint64_t looked_for = info_of(pool).prompt_tokens;

    dsv2_session_free(a);
    check_pool(pool, 0, 2, 2);
    m[0] = (dsv2_step_member){.session = b, .tokens = seq[0], .n_tokens = 5 * PAGE - 25}; /* 5 pages of 4; the first 2 are there */
    m[1] = (dsv2_step_member){.session = c, .tokens = seq[5], .n_tokens = 4 * PAGE};
    expect(dsv2_step(m, sizeof *m, 2), DSV2_ERR_NO_PAGES, NULL);
    assert_int_equal(m[0].status, DSV2_ERR_NO_PAGES);
    assert_int_equal(m[1].status, DSV2_OK);
    is_at(c, 5, 4 * PAGE);
    assert_int_equal(info_of(pool).prompt_tokens, looked_for + 4 * PAGE);
    assert_int_equal(info_of(pool).reused_tokens, 0);
    dsv2_session_free(b);
    dsv2_session_free(c);
    dsv2_pool_free(pool);
}

/* ---- */

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crowd), cmocka_unit_test(sampled), cmocka_unit_test(whole_call), cmocka_unit_test(cancelled_within),
        cmocka_unit_test(cancelled_score), cmocka_unit_test(cancelled_at_any_time), cmocka_unit_test(last_page),
        cmocka_unit_test(no_pages_after_reuse), cmocka_unit_test(random_lives),
    };

    return cmocka_run_group_tests(tests, set_up_sequences, tear_down_sequences);
}
