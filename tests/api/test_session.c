/* Sessions: what a failed call leaves, truncating, forking, cancelling, scores, threads, processes, lifetimes.
 * SPDX-License-Identifier: MIT */
#include "api_test.h"

#include <math.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "logprobs.h"
#include "session.h"

#define VOCAB 160
#define MAX_POSITION 1280 /* of the model */

static dsv2_context *ctx;
static dsv2_model *model;

/* A sequence of ids that are tokens, the same for every test. */
static int32_t id_at(size_t i)
{
    uint64_t state = i * 7919 + 5;

    return (int32_t)(random_u32(&state) % 95);
}

static void fill_ids(int32_t *ids, size_t from, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = id_at(from + i);
}

static dsv2_session *plain_session(int32_t n_ctx)
{
    return open_session(model, n_ctx, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 16);
}

static dsv2_session *with_prompt(int32_t n_ctx, size_t n)
{
    static int32_t ids[MAX_POSITION];
    dsv2_session *s = plain_session(n_ctx);

    fill_ids(ids, 0, n);
    must(dsv2_session_prefill(s, ids, n));
    return s;
}

/* Logits after the first n ids of the sequence, from a session of their own. */
static void fresh_logits(size_t n, float *out)
{
    dsv2_session *s = with_prompt(0, n);

    memcpy(out, logits_of(s), VOCAB * sizeof *out);
    dsv2_session_free(s);
}

/* All of a session that its user can see. */
struct view {
    size_t position;
    int32_t *tokens, has_logits;
    float logits[VOCAB];
};

static void look(const dsv2_session *s, struct view *v)
{
    const float *logits;
    size_t n;

    v->position = dsv2_session_position(s);
    v->tokens = malloc((v->position + 1) * sizeof *v->tokens);
    assert_non_null(v->tokens);
    if (v->position)
        memcpy(v->tokens, dsv2_session_tokens(s), v->position * sizeof *v->tokens);
    v->has_logits = dsv2_session_logits(s, &logits, &n) == DSV2_OK;
    if (v->has_logits)
        memcpy(v->logits, logits, sizeof v->logits);
}

static void same(const dsv2_session *s, struct view *before)
{
    struct view now;

    look(s, &now);
    assert_int_equal(now.position, before->position);
    assert_memory_equal(now.tokens, before->tokens, now.position * sizeof *now.tokens);
    assert_int_equal(now.has_logits, before->has_logits);
    if (now.has_logits)
        assert_memory_equal(now.logits, before->logits, sizeof now.logits);
    free(now.tokens);
    free(before->tokens);
}

/* The session goes on like one that has only ever done what it should. */
static void goes_on(dsv2_session *s)
{
    size_t n = dsv2_session_position(s);
    float wanted[VOCAB];

    must(dsv2_session_decode(s, id_at(n)));
    fresh_logits(n + 1, wanted);
    assert_memory_equal(logits_of(s), wanted, sizeof wanted);
}

/* ---- The end of the context */

static void context_full(void **state)
{
    int32_t ids[64], token;
    dsv2_token_score scores[64];
    struct view before;

    fill_ids(ids, 0, 64);
    for (int32_t n_ctx = 1; n_ctx <= 40; n_ctx += 13) {
        dsv2_session *s = plain_session(n_ctx);

        assert_int_equal(dsv2_session_capacity(s), n_ctx);
        look(s, &before);
        expect(dsv2_session_prefill(s, ids, (size_t)n_ctx + 1), DSV2_ERR_CONTEXT_FULL, "n_ctx");
        expect(dsv2_session_score(s, ids, (size_t)n_ctx + 1, scores, sizeof *scores), DSV2_ERR_CONTEXT_FULL, "n_ctx");
        same(s, &before);
        must(dsv2_session_prefill(s, ids, (size_t)n_ctx)); /* exactly full */
        assert_int_equal(dsv2_session_position(s), n_ctx);
        look(s, &before);
        for (int k = 0; k < 3; k++) {
            expect(dsv2_session_prefill(s, ids, 1), DSV2_ERR_CONTEXT_FULL, "n_ctx");
            expect(dsv2_session_prefill(s, ids, SIZE_MAX), DSV2_ERR_CONTEXT_FULL, "n_ctx");
            expect(dsv2_session_decode(s, 1), DSV2_ERR_CONTEXT_FULL, "n_ctx");
            expect(dsv2_session_score(s, ids, 1, scores, sizeof *scores), DSV2_ERR_CONTEXT_FULL, "n_ctx");
        }
        same(s, &before);
        must(dsv2_sample(s, NULL, &token, NULL)); /* a last token can still be drawn */
        must(dsv2_session_truncate(s, (size_t)n_ctx - 1));
        goes_on(s);
        dsv2_session_free(s);
    }
}

/* ---- Truncate */

static void truncation(void **state)
{
    static const size_t lengths[] = {0, 1, 62, 63, 64, 65, 127, 128, 129, 140, 149};
    const float *logits;
    dsv2_logprob top;
    int32_t ids[150], token;
    size_t n;

    fill_ids(ids, 0, 150);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        dsv2_session *s = with_prompt(0, 150);
        struct view before;

        look(s, &before);
        expect(dsv2_session_truncate(s, 151), DSV2_ERR_INVALID, "151");
        expect(dsv2_session_truncate(s, SIZE_MAX), DSV2_ERR_INVALID, NULL);
        must(dsv2_session_truncate(s, 150)); /* the position: logits stay */
        same(s, &before);
        must(dsv2_session_truncate(s, lengths[i]));
        assert_int_equal(dsv2_session_position(s), lengths[i]);
        if (lengths[i])
            assert_memory_equal(dsv2_session_tokens(s), ids, lengths[i] * sizeof *ids);
        expect(dsv2_session_logits(s, &logits, &n), DSV2_ERR_STATE, NULL);
        expect(dsv2_session_logprobs(s, 1, -1, &top, sizeof top, 1, &n), DSV2_ERR_STATE, NULL);
        expect(dsv2_sample(s, NULL, &token, NULL), DSV2_ERR_STATE, NULL);
        must(dsv2_session_truncate(s, lengths[i])); /* again: still none */
        expect(dsv2_session_logits(s, &logits, &n), DSV2_ERR_STATE, NULL);
        goes_on(s);
        /* Another continuation than before, then back to the first. */
        must(dsv2_session_truncate(s, lengths[i]));
        must(dsv2_session_prefill(s, ids, 20));
        must(dsv2_session_truncate(s, lengths[i]));
        goes_on(s);
        dsv2_session_free(s);
    }
}

/* ---- Fork */

static void fork_session(void **state)
{
    static const size_t lengths[] = {0, 1, 10, 63, 64, 65, 127, 128, 129};

    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        size_t n = lengths[i];
        dsv2_session *a = n ? with_prompt(400, n) : plain_session(400), *b, *c;
        int32_t other[80];
        float wanted[VOCAB];
        struct view va, vb;

        must(dsv2_session_fork(a, &b));
        assert_int_equal(dsv2_session_capacity(b), 400);
        look(a, &va);
        same(b, &va);
        /* Each its own future, in turns: neither writes where the other reads. */
        fill_ids(other, 5000, 80);
        for (size_t k = 0; k < 70; k++) {
            must(dsv2_session_decode(a, id_at(n + k)));
            must(dsv2_session_decode(b, other[k]));
            if (k == 30)
                must(dsv2_session_fork(b, &c));
        }
        fresh_logits(n + 70, wanted);
        assert_memory_equal(logits_of(a), wanted, sizeof wanted);
        look(a, &va);
        look(b, &vb);

        /* The fork of the fork goes on as the fork did, after both others are gone or changed. */
        dsv2_session_free(b);
        must(dsv2_session_truncate(a, n / 2));
        for (size_t k = 31; k < 70; k++)
            must(dsv2_session_decode(c, other[k]));
        same(c, &vb);
        goes_on(a);
        free(va.tokens);

        /* And as one that never was forked. */
        b = n ? with_prompt(400, n) : plain_session(400);
        must(dsv2_session_prefill(b, other, 70));
        assert_memory_equal(logits_of(b), logits_of(c), sizeof wanted);
        dsv2_session_free(a);
        dsv2_session_free(b);
        dsv2_session_free(c);
    }
}

/* Truncating a fork back into shared pages and writing them anew leaves the other alone. */
static void fork_and_truncate(void **state)
{
    dsv2_session *a = with_prompt(0, 150), *b;
    int32_t other[100];

    must(dsv2_session_fork(a, &b));
    fill_ids(other, 9000, 100);
    must(dsv2_session_truncate(b, 30));
    must(dsv2_session_prefill(b, other, 100));
    goes_on(a);
    must(dsv2_session_truncate(b, 30));
    dsv2_session_free(a);
    goes_on(b);
    dsv2_session_free(b);
}

/* A fork computes as the session that it comes from does. */
static void fork_keeps_parameters(void **state)
{
    dsv2_session *a = open_session(model, 300, DSV2_KV_F32, DSV2_ATTENTION_EXPANDED, 16), *b, *absorbed;
    dsv2_memory of_a = {.struct_size = sizeof of_a}, of_b = {.struct_size = sizeof of_b};
    int32_t ids[200];

    fill_ids(ids, 0, 200);
    must(dsv2_session_prefill(a, ids, 100));
    must(dsv2_session_fork(a, &b));
    must(dsv2_session_prefill(a, ids + 100, 100));
    must(dsv2_session_prefill(b, ids + 100, 100));
    assert_memory_equal(logits_of(a), logits_of(b), VOCAB * sizeof(float));
    must(dsv2_session_memory(a, &of_a));
    must(dsv2_session_memory(b, &of_b));
    assert_memory_equal(&of_a, &of_b, sizeof of_a);
    absorbed = open_session(model, 300, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 16); /* else the form could not be told */
    must(dsv2_session_prefill(absorbed, ids, 200));
    assert_memory_not_equal(logits_of(a), logits_of(absorbed), VOCAB * sizeof(float));
    dsv2_session_free(a);
    dsv2_session_free(b);
    dsv2_session_free(absorbed);
}

static void fork_without_logits(void **state)
{
    dsv2_session *a = with_prompt(0, 20), *b;
    const float *logits;
    size_t n;

    must(dsv2_session_truncate(a, 10));
    must(dsv2_session_fork(a, &b));
    expect(dsv2_session_logits(b, &logits, &n), DSV2_ERR_STATE, NULL);
    goes_on(b);
    goes_on(a);
    dsv2_session_free(a);
    dsv2_session_free(b);
}

/* ---- Cancel */

static void pending_cancel(void **state)
{
    int32_t ids[40];
    dsv2_token_score scores[40];

    fill_ids(ids, 30, 40);
    for (int call = 0; call < 3; call++) {
        dsv2_session *s = with_prompt(0, 30);
        struct view before;

        look(s, &before);
        dsv2_session_cancel(s);
        dsv2_session_cancel(s); /* one request, however often it was made */
        same(s, &before);
        look(s, &before);
        if (call == 0)
            expect(dsv2_session_prefill(s, ids, 40), DSV2_ERR_CANCELLED, NULL);
        else if (call == 1)
            expect(dsv2_session_decode(s, ids[0]), DSV2_ERR_CANCELLED, NULL);
        else
            expect(dsv2_session_score(s, ids, 40, scores, sizeof *scores), DSV2_ERR_CANCELLED, NULL);
        same(s, &before);
        goes_on(s);
        dsv2_session_free(s);
    }
}

struct progress {
    dsv2_session *s;
    uint64_t last;
    int calls, stop_at; /* stop_at: which call cancels; 0: none */
    int by_thread;      /* cancel through another thread instead of the return value */
};

static void *cancel_thread(void *s)
{
    dsv2_session_cancel(s);
    return NULL;
}

static int32_t on_progress(void *user, uint64_t done, uint64_t total)
{
    struct progress *p = user;

    assert_true(done > p->last && done < total); /* between pieces: never at the end */
    p->last = done;
    if (++p->calls != p->stop_at)
        return 0;
    if (p->by_thread) {
        pthread_t t;

        assert_int_equal(pthread_create(&t, NULL, cancel_thread, p->s), 0);
        pthread_join(t, NULL);
        return 0;
    }
    return 1;
}

static void progress(void **state)
{
    int32_t ids[100];

    fill_ids(ids, 0, 100);
    for (int by_thread = 0; by_thread < 2; by_thread++)
        for (int stop_at = 0; stop_at <= 6; stop_at += 2) {
            struct progress p = {.by_thread = by_thread};
            dsv2_session_params params;
            dsv2_session *s;
            struct view before;

            dsv2_session_params_init(&params, sizeof params);
            params.n_batch = 10;
            params.progress = on_progress;
            params.progress_user = &p;
            must(dsv2_session_create(model, &params, &s));
            p.s = s;
            must(dsv2_session_prefill(s, ids, 30));
            assert_true(p.calls >= 2);
            p.calls = 0;
            p.last = 0;
            p.stop_at = stop_at;
            look(s, &before);
            if (stop_at) {
                expect(dsv2_session_prefill(s, ids + 30, 70), DSV2_ERR_CANCELLED, NULL);
                assert_int_equal(p.calls, stop_at);
                same(s, &before);
                p.last = 0;
                p.calls = 0;
                p.stop_at = 0;
            } else {
                free(before.tokens);
            }
            must(dsv2_session_prefill(s, ids + 30, 70));
            p.last = 0;
            goes_on(s);
            dsv2_session_free(s);
        }
}

/* A request that comes at any moment either hits a call or waits for the next; nothing is ever half done. */
static void *cancel_often(void *user)
{
    dsv2_session *s = user;

    for (int i = 0; i < 40; i++) {
        usleep(500);
        dsv2_session_cancel(s);
    }
    return NULL;
}

static void cancel_at_any_time(void **state)
{
    dsv2_session *s = plain_session(0);
    pthread_t t;
    int cancelled = 0, calls = 0;
    int32_t ids[50];
    size_t n = 0;

    assert_int_equal(pthread_create(&t, NULL, cancel_often, s), 0);
    while (n < 400) {
        dsv2_status status;

        fill_ids(ids, n, 50);
        status = calls++ % 3 ? dsv2_session_decode(s, ids[0]) : dsv2_session_prefill(s, ids, 50);
        if (status == DSV2_OK) {
            n += (calls - 1) % 3 ? 1 : 50;
        } else {
            expect(status, DSV2_ERR_CANCELLED, NULL);
            cancelled++;
        }
        assert_int_equal(dsv2_session_position(s), n);
    }
    pthread_join(t, NULL);
    if (dsv2_session_decode(s, id_at(n)) == DSV2_OK)
        must(dsv2_session_truncate(s, n));
    assert_true(cancelled <= 41);
    goes_on(s);
    dsv2_session_free(s);
}

/* ---- Scores and log-probabilities */

static double log_sum_exp(const float *x)
{
    double max = x[0], sum = 0;

    for (int i = 1; i < VOCAB; i++)
        max = fmax(max, x[i]);
    for (int i = 0; i < VOCAB; i++)
        sum += exp(x[i] - max);
    return max + log(sum);
}

static void check_score(const dsv2_token_score *got, const float *logits, int32_t token)
{
    double lse = log_sum_exp(logits);
    int32_t top = 0, rank = 1;

    for (int i = 0; i < VOCAB; i++) {
        top = logits[i] > logits[top] ? i : top;
        rank += logits[i] > logits[token];
    }
    assert_float_equal(got->logprob, logits[token] - lse, 2e-6 * (1 + fabs(logits[token] - lse)));
    assert_float_equal(got->top_logprob, logits[top] - lse, 2e-6 * (1 + fabs(logits[top] - lse)));
    assert_int_equal(got->rank, rank);
    assert_int_equal(got->top_token, top);
}

#define N_SCORED 150

static void scores(void **state)
{
    static const size_t pieces[] = {N_SCORED, 1, 15, 16, 17, 64, 100};
    static float logits[N_SCORED][VOCAB];
    dsv2_token_score one[N_SCORED], got[N_SCORED];
    int32_t ids[N_SCORED];
    dsv2_session *s = plain_session(0);

    fill_ids(ids, 0, N_SCORED);
    for (size_t i = 0; i < N_SCORED; i++) {
        must(dsv2_session_decode(s, ids[i]));
        memcpy(logits[i], logits_of(s), sizeof logits[i]);
    }
    for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
        must(dsv2_session_truncate(s, 0));
        memset(got, 0x77, sizeof got);
        for (size_t done = 0; done < N_SCORED; done += pieces[k]) {
            size_t n = N_SCORED - done < pieces[k] ? N_SCORED - done : pieces[k];

            must(dsv2_session_score(s, ids + done, n, got + done, sizeof *got));
        }
        assert_true(isnan(got[0].logprob) && isnan(got[0].top_logprob));
        assert_int_equal(got[0].rank, 0);
        assert_int_equal(got[0].top_token, -1);
        for (size_t i = 1; i < N_SCORED; i++)
            check_score(&got[i], logits[i - 1], ids[i]);
        assert_memory_equal(logits_of(s), logits[N_SCORED - 1], sizeof logits[0]);
        if (k == 0)
            memcpy(one, got, sizeof one);
        /* The first of a piece comes from the logits that stand there, so its last bits may differ. */
        for (size_t i = 1; i < N_SCORED; i++)
            assert_float_equal(got[i].logprob, one[i].logprob, 2e-6 * (1 + fabsf(one[i].logprob)));
    }

    /* After truncating, the logits before the first token are needed again. */
    must(dsv2_session_truncate(s, 64));
    must(dsv2_session_score(s, ids + 64, 10, got, sizeof *got));
    for (size_t i = 0; i < 10; i++)
        check_score(&got[i], logits[63 + i], ids[64 + i]);
    assert_int_equal(dsv2_session_position(s), 74);
    must(dsv2_session_truncate(s, 30));
    dsv2_session_cancel(s);
    struct view before;
    look(s, &before);
    expect(dsv2_session_score(s, ids + 30, 10, got, sizeof *got), DSV2_ERR_CANCELLED, NULL);
    same(s, &before);
    dsv2_session_free(s);
}

/* A failed score after truncating must not leave logits behind that were not there. */
static int32_t stop_second(void *user, uint64_t done, uint64_t total)
{
    return *(int *)user;
}

static void failed_score(void **state)
{
    dsv2_session_params params;
    dsv2_session *s;
    dsv2_token_score got[40];
    int32_t ids[100];
    int stop = 0;
    struct view before;

    fill_ids(ids, 0, 100);
    dsv2_session_params_init(&params, sizeof params);
    params.n_batch = 10;
    params.progress = stop_second;
    params.progress_user = &stop;
    must(dsv2_session_create(model, &params, &s));
    must(dsv2_session_prefill(s, ids, 60));
    must(dsv2_session_truncate(s, 50));
    stop = 1;
    look(s, &before);
    expect(dsv2_session_score(s, ids + 50, 40, got, sizeof *got), DSV2_ERR_CANCELLED, NULL);
    same(s, &before);
    stop = 0;
    goes_on(s);
    dsv2_session_free(s);
}

static void logprobs(void **state)
{
    dsv2_session *s = with_prompt(0, 40);
    const float *logits = logits_of(s);
    double lse = log_sum_exp(logits);
    dsv2_logprob all[VOCAB + 1], some[6], untouched;
    size_t n = 77;
    int32_t last;

    must(dsv2_session_logprobs(s, VOCAB, -1, all, sizeof *all, VOCAB, &n));
    assert_int_equal(n, VOCAB);
    for (int i = 0; i < VOCAB; i++) {
        int32_t rank = 1;

        for (int j = 0; j < VOCAB; j++)
            rank += logits[j] > logits[all[i].token];
        assert_int_equal(all[i].rank, rank);
        assert_float_equal(all[i].logprob, logits[all[i].token] - lse, 1e-5);
        if (i) {
            float a = logits[all[i - 1].token], b = logits[all[i].token];

            assert_true(a > b || (a == b && all[i - 1].token < all[i].token));
        }
    }
    must(dsv2_session_logprobs(s, 5, -1, some, sizeof *some, 6, &n));
    assert_int_equal(n, 5);
    assert_memory_equal(some, all, 5 * sizeof *some);
    must(dsv2_session_logprobs(s, 5, all[2].token, some, sizeof *some, 6, &n)); /* already there */
    assert_int_equal(n, 5);
    last = all[VOCAB - 1].token;
    must(dsv2_session_logprobs(s, 5, last, some, sizeof *some, 6, &n));
    assert_int_equal(n, 6);
    assert_memory_equal(some, all, 5 * sizeof *some);
    assert_memory_equal(&some[5], &all[VOCAB - 1], sizeof *some);
    must(dsv2_session_logprobs(s, 0, last, some, sizeof *some, 1, &n));
    assert_int_equal(n, 1);
    assert_memory_equal(&some[0], &all[VOCAB - 1], sizeof *some);
    must(dsv2_session_logprobs(s, VOCAB, 3, all, sizeof *all, VOCAB, &n));
    assert_int_equal(n, VOCAB);
    must(dsv2_session_logprobs(s, 0, -1, NULL, sizeof *some, 0, &n));
    assert_int_equal(n, 0);

    memset(some, 0x66, sizeof some);
    memset(&untouched, 0x66, sizeof untouched);
    expect(dsv2_session_logprobs(s, 5, last, some, sizeof *some, 5, &n), DSV2_ERR_BUFFER, NULL);
    assert_int_equal(n, 6);
    assert_memory_equal(&some[0], &untouched, sizeof untouched);
    expect(dsv2_session_logprobs(s, 5, -1, NULL, sizeof *some, 0, &n), DSV2_ERR_BUFFER, NULL);
    assert_int_equal(n, 5);
    expect(dsv2_session_logprobs(s, -1, -1, some, sizeof *some, 6, &n), DSV2_ERR_INVALID, "n_top: -1");
    expect(dsv2_session_logprobs(s, VOCAB + 1, -1, some, sizeof *some, 6, &n), DSV2_ERR_INVALID, "n_top: 161");
    expect(dsv2_session_logprobs(s, 1, VOCAB, some, sizeof *some, 6, &n), DSV2_ERR_INVALID, "also: 160");
    expect(dsv2_session_logprobs(s, 1, -2, some, sizeof *some, 6, &n), DSV2_ERR_INVALID, "also: -2");
    dsv2_session_free(s);
}

/* Elements of programs whose header had less in them: what they have room for is filled, and nothing beyond. */
static void short_elements(void **state)
{
    dsv2_session *s = with_prompt(0, 20), *f;
    dsv2_logprob whole[4];
    dsv2_token_score scores[4];
    int32_t ids[4];
    size_t n;

    must(dsv2_session_fork(s, &f));
    fill_ids(ids, 20, 4);
    must(dsv2_session_logprobs(s, 4, -1, whole, sizeof *whole, 4, &n));
    must(dsv2_session_score(s, ids, 4, scores, sizeof *scores));
    for (size_t size = sizeof(int32_t); size < sizeof *scores; size += sizeof(int32_t)) {
        unsigned char got[4 * sizeof *scores], untouched[4 * sizeof *scores];
        dsv2_session *g;

        memset(got, 0x5A, sizeof got);
        memset(untouched, 0x5A, sizeof untouched);
        must(dsv2_session_fork(f, &g));
        must(dsv2_session_score(g, ids, 4, (void *)got, size));
        for (size_t i = 0; i < 4; i++)
            assert_memory_equal(got + i * size, &scores[i], size);
        assert_memory_equal(got + 4 * size, untouched, sizeof got - 4 * size);
        dsv2_session_free(g);
        if (size >= sizeof *whole)
            continue;
        memset(got, 0x5A, sizeof got);
        must(dsv2_session_logprobs(f, 4, -1, (void *)got, size, 4, &n));
        for (size_t i = 0; i < 4; i++)
            assert_memory_equal(got + i * size, &whole[i], size);
        assert_memory_equal(got + 4 * size, untouched, sizeof got - 4 * size);
    }
    dsv2_session_free(s);
    dsv2_session_free(f);
}

static void logprob_ties(void **state)
{
    static const float logits[8] = {1, 2, 2, 0, 2, 1, -INFINITY, 0};
    static const int32_t order[8] = {1, 2, 4, 0, 5, 3, 7, 6}, ranks[8] = {1, 1, 1, 4, 4, 6, 6, 8};
    static const float bad[2][2] = {{0, NAN}, {INFINITY, 0}};
    dsv2_logprob out[9];
    size_t n;

    for (int32_t top = 0; top <= 8; top++) {
        must(dsv2i_top_logprobs(&dsv2i_heap, logits, 8, top, 5, out, sizeof *out, 9, &n));
        for (int32_t i = 0; i < top; i++) {
            assert_int_equal(out[i].token, order[i]);
            assert_int_equal(out[i].rank, ranks[i]);
        }
        assert_int_equal(n, top < 5 ? top + 1 : top);
        if (top < 5) {
            assert_int_equal(out[top].token, 5);
            assert_int_equal(out[top].rank, 4);
        }
    }
    for (int i = 0; i < 2; i++)
        expect(dsv2i_top_logprobs(&dsv2i_heap, bad[i], 2, 1, -1, out, sizeof *out, 9, &n), DSV2_ERR_NUMERIC, NULL);
}

/* ---- Arguments */

static void invalid_ids(void **state)
{
    static const int32_t bad[] = {-1, VOCAB, INT32_MAX, INT32_MIN};
    dsv2_session *s = with_prompt(0, 70);
    int32_t ids[30];
    dsv2_token_score scored[30];
    struct view before;

    for (size_t i = 0; i < 4; i++)
        for (size_t at = 0; at < 30; at += 29) {
            fill_ids(ids, 70, 30);
            ids[at] = bad[i];
            look(s, &before);
            expect(dsv2_session_prefill(s, ids, 30), DSV2_ERR_INVALID, at ? "tokens[29]" : "tokens[0]");
            expect(dsv2_session_score(s, ids, 30, scored, sizeof *scored), DSV2_ERR_INVALID, at ? "tokens[29]" : "tokens[0]");
            expect(dsv2_session_decode(s, bad[i]), DSV2_ERR_INVALID, NULL);
            same(s, &before);
        }
    look(s, &before);
    expect(dsv2_session_prefill(s, ids, 0), DSV2_ERR_INVALID, NULL);
    expect(dsv2_session_score(s, ids, 0, scored, sizeof *scored), DSV2_ERR_INVALID, NULL);
    same(s, &before);
    goes_on(s);
    must(dsv2_session_decode(s, VOCAB - 1)); /* a padding id is an id */
    dsv2_session_free(s);
}

static void nulls(void **state)
{
    dsv2_session *s = with_prompt(0, 10), *out_s = (void *)&s;
    dsv2_context *out_c = (void *)&s;
    dsv2_model *out_m = (void *)&s;
    dsv2_text *text, *out_t = (void *)&s;
    dsv2_model_info info = {.struct_size = sizeof info};
    dsv2_memory memory = {.struct_size = sizeof memory};
    dsv2_token_score score;
    dsv2_logprob lp;
    dsv2_chat_message message = say("user", "hi"), no_role = say(NULL, "hi"), no_content = {.role = "user", .n_content = 2};
    dsv2_tool_call call = {"function", NULL, "{}"};
    dsv2_chat_message no_calls = {.role = "assistant", .n_tool_calls = 1, .tool_call_size = sizeof call};
    dsv2_text_params tp;
    const float *logits;
    const char *bytes;
    char buf[256];
    int32_t ids[64] = {1, 2, 3}, id, stopped;
    size_t n;
    struct view before;

    look(s, &before);
    must(dsv2_text_create(model, NULL, &text));
#define INVALID(call) expect(call, DSV2_ERR_INVALID, NULL)
    INVALID(dsv2_context_create(NULL, NULL));
    INVALID(dsv2_model_load(NULL, "x", NULL, &out_m));
    assert_null(out_m);
    INVALID(dsv2_model_load(ctx, NULL, NULL, &out_m));
    INVALID(dsv2_model_load(ctx, "x", NULL, NULL));
    INVALID(dsv2_model_get_info(NULL, &info));
    INVALID(dsv2_model_get_info(model, NULL));
    INVALID(dsv2_model_inspect(NULL, "x", NULL, NULL, &info, &memory));
    INVALID(dsv2_model_inspect(ctx, NULL, NULL, NULL, &info, &memory));
    must(dsv2_model_inspect(ctx, golden("v2"), NULL, NULL, NULL, NULL));

    INVALID(dsv2_tokenize(NULL, "a", 1, 0, ids, 64, &n));
    INVALID(dsv2_tokenize(model, NULL, 1, 0, ids, 64, &n));
    INVALID(dsv2_tokenize(model, "a", 1, 0, NULL, 64, &n));
    INVALID(dsv2_tokenize(model, "a", 1, 0, ids, 64, NULL));
    INVALID(dsv2_tokenize(model, "a", 1, 8, ids, 64, &n));
    must(dsv2_tokenize(model, NULL, 0, 0, ids, 64, &n));
    assert_int_equal(n, 0);
    INVALID(dsv2_detokenize(NULL, ids, 1, 0, buf, sizeof buf, &n));
    INVALID(dsv2_detokenize(model, NULL, 1, 0, buf, sizeof buf, &n));
    INVALID(dsv2_detokenize(model, ids, 1, 0, NULL, sizeof buf, &n));
    INVALID(dsv2_detokenize(model, ids, 1, 0, buf, sizeof buf, NULL));
    INVALID(dsv2_detokenize(model, ids, 1, 2, buf, sizeof buf, &n));
    INVALID(dsv2_detokenize(model, (int32_t[]){-1}, 1, 0, buf, sizeof buf, &n));
    INVALID(dsv2_detokenize(model, (int32_t[]){VOCAB}, 1, 0, buf, sizeof buf, &n));
    must(dsv2_detokenize(model, NULL, 0, 0, buf, sizeof buf, &n));
    assert_int_equal(n, 0);
    INVALID(dsv2_token_bytes(NULL, 1, &bytes, &n));
    INVALID(dsv2_token_bytes(model, 1, NULL, &n));
    INVALID(dsv2_token_bytes(model, 1, &bytes, NULL));
    INVALID(dsv2_token_bytes(model, -1, &bytes, &n));
    INVALID(dsv2_token_bytes(model, VOCAB, &bytes, &n));
    INVALID(dsv2_token_find(NULL, "a", 1, &id));
    INVALID(dsv2_token_find(model, NULL, 1, &id));
    INVALID(dsv2_token_find(model, "a", 1, NULL));
    INVALID(dsv2_token_find(model, "no such token", 13, &id));
    assert_int_equal(dsv2_token_is_eos(NULL, 1), 0);
    assert_int_equal(dsv2_token_is_eos(model, -1), 0);
    assert_int_equal(dsv2_token_is_eos(model, 98), 1);
    assert_int_equal(dsv2_token_is_eos(model, 96), 1);
    assert_int_equal(dsv2_token_is_eos(model, 1), 0);
    INVALID(dsv2_text_create(NULL, NULL, &out_t));
    assert_null(out_t);
    INVALID(dsv2_text_create(model, NULL, NULL));
    dsv2_text_params_init(&tp, sizeof tp);
    tp.n_stop = 1;
    INVALID(dsv2_text_create(model, &tp, &out_t));
    tp.stop = (const char *const[]){NULL};
    INVALID(dsv2_text_create(model, &tp, &out_t));
    tp.stop = (const char *const[]){""};
    INVALID(dsv2_text_create(model, &tp, &out_t));
    INVALID(dsv2_text_push(NULL, 1, &bytes, &n, &stopped));
    INVALID(dsv2_text_push(text, 1, NULL, &n, &stopped));
    INVALID(dsv2_text_push(text, 1, &bytes, NULL, &stopped));
    INVALID(dsv2_text_push(text, -1, &bytes, &n, &stopped));
    INVALID(dsv2_text_push(text, VOCAB, &bytes, &n, &stopped));
    must(dsv2_text_push(text, 1, &bytes, &n, NULL));
    INVALID(dsv2_text_finish(NULL, &bytes, &n));
    INVALID(dsv2_text_finish(text, NULL, &n));
    INVALID(dsv2_text_finish(text, &bytes, NULL));

    INVALID(dsv2_chat_apply(NULL, &message, sizeof message, 1, 0, buf, sizeof buf, &n));
    INVALID(dsv2_chat_apply(model, NULL, sizeof message, 1, 0, buf, sizeof buf, &n));
    INVALID(dsv2_chat_apply(model, &message, 8, 1, 0, buf, sizeof buf, &n));
    INVALID(dsv2_chat_apply(model, &message, sizeof message, 1, 0, NULL, sizeof buf, &n));
    INVALID(dsv2_chat_apply(model, &message, sizeof message, 1, 0, buf, sizeof buf, NULL));
    INVALID(dsv2_chat_apply(model, &message, sizeof message, 1, 2, buf, sizeof buf, &n));
    INVALID(dsv2_chat_apply(model, &no_role, sizeof message, 1, 0, buf, sizeof buf, &n));
    INVALID(dsv2_chat_apply(model, &no_content, sizeof message, 1, 0, buf, sizeof buf, &n));
    expect(dsv2_chat_apply(model, &no_calls, sizeof message, 1, 0, buf, sizeof buf, &n), DSV2_ERR_INVALID, "messages[0].tool_calls is NULL");
    no_calls.tool_calls = &call;
    expect(dsv2_chat_apply(model, &no_calls, sizeof message, 1, 0, buf, sizeof buf, &n), DSV2_ERR_INVALID,
           "messages[0].tool_calls[0].name is NULL");
    no_calls.tool_call_size = 8;
    expect(dsv2_chat_apply(model, &no_calls, sizeof message, 1, 0, buf, sizeof buf, &n), DSV2_ERR_INVALID, "size of an element");
    INVALID(dsv2_chat_tokenize(NULL, &message, sizeof message, 1, 0, ids, 64, &n));
    INVALID(dsv2_chat_tokenize(model, NULL, sizeof message, 1, 0, ids, 64, &n));
    INVALID(dsv2_chat_tokenize(model, &message, 8, 1, 0, ids, 64, &n));
    INVALID(dsv2_chat_tokenize(model, &message, sizeof message, 1, 0, NULL, 64, &n));
    INVALID(dsv2_chat_tokenize(model, &message, sizeof message, 1, 0, ids, 64, NULL));
    INVALID(dsv2_chat_tokenize(model, &message, sizeof message, 1, 4, ids, 64, &n));
    INVALID(dsv2_chat_tokenize(model, &no_role, sizeof message, 1, 0, ids, 64, &n));

    INVALID(dsv2_session_create(NULL, NULL, &out_s));
    assert_null(out_s);
    INVALID(dsv2_session_create(model, NULL, NULL));
    INVALID(dsv2_session_memory(NULL, &memory));
    INVALID(dsv2_session_memory(s, NULL));
    INVALID(dsv2_session_prefill(NULL, ids, 1));
    INVALID(dsv2_session_prefill(s, NULL, 1));
    INVALID(dsv2_session_decode(NULL, 1));
    INVALID(dsv2_session_score(NULL, ids, 1, &score, sizeof score));
    INVALID(dsv2_session_score(s, NULL, 1, &score, sizeof score));
    INVALID(dsv2_session_score(s, ids, 1, NULL, sizeof score));
    INVALID(dsv2_session_logits(NULL, &logits, &n));
    INVALID(dsv2_session_logits(s, NULL, &n));
    INVALID(dsv2_session_logits(s, &logits, NULL));
    INVALID(dsv2_session_logprobs(NULL, 1, -1, &lp, sizeof lp, 1, &n));
    INVALID(dsv2_session_logprobs(s, 1, -1, NULL, sizeof lp, 1, &n));
    INVALID(dsv2_session_logprobs(s, 1, -1, &lp, sizeof lp, 1, NULL));
    assert_int_equal(dsv2_session_position(NULL), 0);
    assert_int_equal(dsv2_session_capacity(NULL), 0);
    assert_null(dsv2_session_tokens(NULL));
    INVALID(dsv2_session_truncate(NULL, 0));
    out_s = (void *)&s;
    INVALID(dsv2_session_fork(NULL, &out_s));
    assert_null(out_s);
    INVALID(dsv2_session_fork(s, NULL));
    INVALID(dsv2_sample(NULL, NULL, &id, NULL));
    INVALID(dsv2_sample(s, NULL, NULL, NULL));

    dsv2_session_cancel(NULL);
    dsv2_model_retain(NULL);
    dsv2_context_free(NULL);
    dsv2_model_free(NULL);
    dsv2_session_free(NULL);
    dsv2_text_free(NULL);
    out_c = (void *)&s;
    expect(dsv2_context_create(&(dsv2_context_params){.struct_size = sizeof(dsv2_context_params), .n_threads = -1}, &out_c),
           DSV2_ERR_INVALID, "n_threads");
    assert_null(out_c); /* failed: set to NULL */
    same(s, &before);
    dsv2_text_free(text);
    dsv2_session_free(s);
}

/* Calls before the first token, and on a model without tokenizer and template. */
static void wrong_state(void **state)
{
    dsv2_session *s = plain_session(0);
    dsv2_model *bare = open_model(ctx, "spec-a");
    dsv2_chat_message message = say("user", "hi");
    dsv2_text *text = (void *)&s;
    dsv2_logprob lp;
    const float *logits;
    const char *bytes;
    char buf[64];
    int32_t id;
    size_t n;

    expect(dsv2_session_logits(s, &logits, &n), DSV2_ERR_STATE, NULL);
    expect(dsv2_session_logprobs(s, 1, -1, &lp, sizeof lp, 1, &n), DSV2_ERR_STATE, NULL);
    expect(dsv2_sample(s, NULL, &id, NULL), DSV2_ERR_STATE, NULL);
    must(dsv2_session_truncate(s, 0));
    expect(dsv2_session_truncate(s, 1), DSV2_ERR_INVALID, NULL);
    dsv2_session_free(s);

    expect(dsv2_tokenize(bare, "a", 1, 0, &id, 1, &n), DSV2_ERR_STATE, "tokenizer");
    expect(dsv2_detokenize(bare, NULL, 0, 0, buf, 64, &n), DSV2_ERR_STATE, "tokenizer");
    expect(dsv2_token_bytes(bare, 1, &bytes, &n), DSV2_ERR_STATE, "tokenizer");
    expect(dsv2_token_find(bare, "a", 1, &id), DSV2_ERR_STATE, "tokenizer");
    expect(dsv2_text_create(bare, NULL, &text), DSV2_ERR_STATE, "tokenizer");
    assert_null(text);
    expect(dsv2_chat_apply(bare, &message, sizeof message, 1, 0, buf, 64, &n), DSV2_ERR_UNSUPPORTED, NULL);
    expect(dsv2_chat_tokenize(bare, &message, sizeof message, 1, 0, &id, 1, &n), DSV2_ERR_STATE, "tokenizer");
    dsv2_model_free(bare);
}

/* Each function that fills an array: exact room, one too few, none. */
static void buffers(void **state)
{
    static const char text[] = "the cat <s> sat";
    dsv2_chat_message messages[2] = {say("system", "be brief"), say("user", "hi")};
    size_t n, again;

#define CONTRACT(type, call) \
    do { \
        type *array; \
        type untouched; \
        size_t capacity = 0; \
        memset(&untouched, 0x3C, sizeof untouched); \
        array = NULL; \
        expect(call(array, capacity, &n), DSV2_ERR_BUFFER, NULL); \
        assert_true(n > 1); \
        capacity = n - 1; \
        array = malloc(capacity * sizeof *array); \
        memset(array, 0x3C, capacity * sizeof *array); \
        again = 0; \
        expect(call(array, capacity, &again), DSV2_ERR_BUFFER, NULL); \
        assert_int_equal(again, n); \
        for (size_t i = 0; i < capacity; i++) \
            assert_memory_equal(&array[i], &untouched, sizeof untouched); \
        free(array); \
        capacity = n; \
        array = malloc(capacity * sizeof *array); \
        again = 0; \
        must(call(array, capacity, &again)); \
        assert_int_equal(again, n); \
        free(array); \
    } while (0)
#define TOKENIZE(a, c, n) dsv2_tokenize(model, text, sizeof text - 1, DSV2_TOKENIZE_BOS, a, c, n)
#define DETOKENIZE(a, c, n) dsv2_detokenize(model, (const int32_t[]){97, 96, 95, 98, 40}, 5, 0, a, c, n)
#define APPLY(a, c, n) dsv2_chat_apply(model, messages, sizeof *messages, 2, DSV2_CHAT_GENERATE, a, c, n)
#define CHAT(a, c, n) dsv2_chat_tokenize(model, messages, sizeof *messages, 2, DSV2_CHAT_NO_MARKERS, a, c, n)
    CONTRACT(int32_t, TOKENIZE);
    CONTRACT(char, DETOKENIZE);
    CONTRACT(char, APPLY);
    CONTRACT(int32_t, CHAT);
}

/* ---- Prompt and output */

static int32_t keep_logits(void *user, float *logits, size_t n)
{
    memcpy(user, logits, n * sizeof *logits);
    return 0;
}

/* Penalties count what was decoded since the last prefill; repetition counts all. */
static void output_is_what_was_decoded(void **state)
{
    dsv2_session *s = plain_session(0), *f;
    dsv2_sample_params p;
    float seen[VOCAB];
    int32_t token;

    dsv2_sample_params_init(&p, sizeof p, NULL);
    p.callback = keep_logits;
    p.callback_user = seen;
    p.frequency_penalty = 0.5f;
    must(dsv2_session_prefill(s, (int32_t[]){10, 20, 30}, 3));
    must(dsv2_session_decode(s, 40));
    must(dsv2_session_decode(s, 40));
    must(dsv2_session_decode(s, 20));
    must(dsv2_session_fork(s, &f));
    for (int k = 0; k < 2; k++) {
        dsv2_session *x = k ? f : s;

        must(dsv2_sample(x, &p, &token, NULL));
        for (int i = 0; i < VOCAB; i++)
            assert_true(seen[i] == logits_of(x)[i] - (i == 40 ? 1.0f : i == 20 ? 0.5f : 0));
    }
    must(dsv2_session_truncate(f, 4));
    must(dsv2_session_decode(f, 50));
    must(dsv2_sample(f, &p, &token, NULL));
    for (int i = 0; i < VOCAB; i++)
        assert_true(seen[i] == logits_of(f)[i] - (i == 40 || i == 50 ? 0.5f : 0));
    must(dsv2_session_truncate(f, 2)); /* into the prompt: what follows is output */
    must(dsv2_session_decode(f, 10));
    must(dsv2_sample(f, &p, &token, NULL));
    for (int i = 0; i < VOCAB; i++)
        assert_true(seen[i] == logits_of(f)[i] - (i == 10 ? 0.5f : 0));

    must(dsv2_session_prefill(s, (int32_t[]){60}, 1)); /* all prompt from here on */
    must(dsv2_sample(s, &p, &token, NULL));
    assert_memory_equal(seen, logits_of(s), sizeof seen);
    p.frequency_penalty = 0;
    p.repetition_penalty = 2;
    must(dsv2_sample(s, &p, &token, NULL));
    for (int i = 0; i < VOCAB; i++) {
        float l = logits_of(s)[i];
        int there = i == 10 || i == 20 || i == 30 || i == 40 || i == 60;

        assert_true(seen[i] == (!there ? l : l > 0 ? l / 2 : l * 2));
    }
    dsv2_session_free(s);
    dsv2_session_free(f);
}

/* ---- Context length and memory */

static void count_warning(void *user, int32_t level, const char *text)
{
    *(int *)user += level == DSV2_LOG_WARNING && strstr(text, "n_ctx") && strstr(text, "memory_bytes");
}

static void default_context(void **state)
{
    int warnings = 0;
    dsv2_context_params cp = context_params(1);
    dsv2_memory at_load = {.struct_size = sizeof at_load}, at_run = {.struct_size = sizeof at_run};
    dsv2_session *s;
    dsv2_context *small;
    dsv2_model *m;
    size_t full;

    must(dsv2_session_create(model, NULL, &s));
    assert_int_equal(dsv2_session_capacity(s), MAX_POSITION);
    dsv2_session_free(s);

    must(dsv2_model_inspect(ctx, golden("v2"), NULL, NULL, NULL, &at_load));
    assert_int_equal(at_load.n_ctx, MAX_POSITION);
    assert_int_equal(at_load.total, at_load.weights + at_load.kv + at_load.scratch + at_load.other);
    assert_int_equal(at_load.kv, at_load.kv_per_token * MAX_POSITION);
    assert_int_equal(at_load.kv_per_token, 3 * (64 + 16) * 2);

    cp.log = count_warning;
    cp.log_user = &warnings;
    cp.memory_bytes = at_load.total - at_load.kv / 2;
    must(dsv2_context_create(&cp, &small));
    must(dsv2_model_load(small, golden("v2"), NULL, &m));
    must(dsv2_session_create(m, NULL, &s));
    full = dsv2_session_capacity(s);
    assert_true(full > MAX_POSITION / 4 && full < MAX_POSITION * 3 / 4);
    must(dsv2_session_memory(s, &at_run));
    assert_int_equal(at_run.n_ctx, full);
    assert_true(at_run.total <= cp.memory_bytes);
    must(dsv2_model_inspect(small, golden("v2"), NULL, NULL, NULL, &at_load));
    assert_int_equal(at_load.n_ctx, full);
    assert_memory_equal(&at_load, &at_run, sizeof at_run);
    dsv2_session_free(s);
    dsv2_model_free(m);
    dsv2_context_free(small);

    cp.memory_bytes = 1; /* too little for anything: a page remains */
    must(dsv2_context_create(&cp, &small));
    must(dsv2_model_load(small, golden("v2"), NULL, &m));
    must(dsv2_session_create(m, NULL, &s));
    assert_int_equal(dsv2_session_capacity(s), 64);
    assert_int_equal(warnings, 2);
    dsv2_session_free(s);
    dsv2_model_free(m);
    dsv2_context_free(small);
}

/* Whole pages, and scratch for no more rows than the context has. */
static void memory_of_a_small_context(void **state)
{
    dsv2_memory memory[2] = {{.struct_size = sizeof *memory}, {.struct_size = sizeof *memory}};
    dsv2_session_params p;

    dsv2_session_params_init(&p, sizeof p);
    p.n_ctx = 100;
    for (int i = 0; i < 2; i++) {
        p.n_batch = i ? 256 : 100;
        must(dsv2_model_inspect(ctx, golden("v2"), NULL, &p, NULL, &memory[i]));
    }
    assert_memory_equal(&memory[0], &memory[1], sizeof *memory);
    assert_int_equal(memory[0].kv, 128 * memory[0].kv_per_token);
}

/* ---- Lifetimes */

static void lifetimes(void **state)
{
    dsv2_context *c = open_context(2);
    dsv2_model *m;
    dsv2_session *s, *f;
    dsv2_text *text;
    const char *piece;
    int32_t token;
    size_t n;

    must(load_tiny(c, &m));
    must(dsv2_text_create(m, NULL, &text));
    must(dsv2_session_create(m, NULL, &s));
    dsv2_model_retain(m);
    dsv2_context_free(c);
    dsv2_model_free(m);
    dsv2_model_free(m);
    must(dsv2_session_prefill(s, (int32_t[]){33, 34, 35}, 3)); /* the session keeps model and context */
    must(dsv2_session_fork(s, &f));
    dsv2_session_free(s);
    must(dsv2_session_decode(f, 36));
    must(dsv2_sample(f, NULL, &token, NULL));
    dsv2_session_free(f);
    must(dsv2_text_push(text, 40, &piece, &n, NULL)); /* so does the text */
    assert_int_equal(n, 1);
    dsv2_text_free(text);
}

/* ---- Threads */

struct worker {
    int index;
    int32_t tokens[40];
    float logits[VOCAB];
};

/* A short life of a session; what comes out depends on the index alone. */
static void *work(void *user)
{
    struct worker *w = user;
    dsv2_sample_params p;
    dsv2_session *s, *f;
    dsv2_session_params sp;
    int32_t ids[100];
    size_t n;

    dsv2_session_params_init(&sp, sizeof sp);
    sp.n_batch = 8 + w->index * 8;
    sp.attention = w->index % 2;
    if (dsv2_session_create(model, &sp, &s) != DSV2_OK)
        return NULL;
    dsv2_sample_params_init(&p, sizeof p, model);
    p.seed = (uint64_t)w->index;
    p.temperature = 1;
    fill_ids(ids, (size_t)w->index * 100, 100);
    dsv2_session_prefill(s, ids, 60 + (size_t)w->index);
    for (int i = 0; i < 40; i++) {
        dsv2_sample(s, &p, &w->tokens[i], NULL);
        dsv2_session_decode(s, w->tokens[i]);
        if (i == 20) {
            dsv2_session_fork(s, &f);
            dsv2_session_free(s);
            s = f;
        }
    }
    memcpy(w->logits, dsv2_session_logits(s, &(const float *){NULL}, &n) == DSV2_OK ? logits_of(s) : w->logits, sizeof w->logits);
    dsv2_tokenize(model, "the other cat", 13, 0, ids, 100, &n);
    dsv2_session_free(s);
    expect(dsv2_session_decode(NULL, w->index), DSV2_ERR_INVALID, "dsv2_session_decode"); /* the text is this thread's own */
    return NULL;
}

static void threads(void **state)
{
    enum { N = 4 };
    static struct worker serial[N], parallel[N];
    pthread_t t[N];

    for (int i = 0; i < N; i++) {
        serial[i].index = parallel[i].index = i;
        work(&serial[i]);
    }
    for (int i = 0; i < N; i++)
        assert_int_equal(pthread_create(&t[i], NULL, work, &parallel[i]), 0);
    for (int i = 0; i < N; i++)
        pthread_join(t[i], NULL);
    for (int i = 0; i < N; i++) {
        assert_memory_equal(serial[i].tokens, parallel[i].tokens, sizeof serial[i].tokens);
        assert_memory_equal(serial[i].logits, parallel[i].logits, sizeof serial[i].logits);
    }
}

/* References come and go from several threads; the last one out frees. */
static void *retain_release(void *user)
{
    dsv2_model *m = user;

    for (int i = 0; i < 200; i++) {
        dsv2_session *s;

        dsv2_model_retain(m);
        if (i % 20 == 0 && dsv2_session_create(m, NULL, &s) == DSV2_OK)
            dsv2_session_free(s);
        dsv2_model_free(m);
    }
    dsv2_model_free(m);
    return NULL;
}

static void references(void **state)
{
    dsv2_context *c = open_context(1);
    dsv2_model *m = open_model(c, "spec-a");
    pthread_t t[3];

    dsv2_context_free(c);
    for (int i = 0; i < 3; i++) {
        dsv2_model_retain(m);
        assert_int_equal(pthread_create(&t[i], NULL, retain_release, m), 0);
    }
    dsv2_model_free(m);
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], NULL);
}

/* ---- Processes */

static int in_child(dsv2_session *s)
{
    dsv2_session *out;
    dsv2_model *m;
    dsv2_token_score score;
    int32_t id = 5;
    int bad = 0;

    bad |= (dsv2_session_prefill(s, &id, 1) != DSV2_ERR_FORKED) << 0;
    bad |= (dsv2_session_decode(s, id) != DSV2_ERR_FORKED) << 1;
    bad |= (dsv2_session_score(s, &id, 1, &score, sizeof score) != DSV2_ERR_FORKED) << 2;
    bad |= (dsv2_session_fork(s, &out) != DSV2_ERR_FORKED) << 3;
    bad |= (dsv2_session_create(model, NULL, &out) != DSV2_ERR_FORKED) << 4;
    bad |= (dsv2_model_load(ctx, golden("v2"), NULL, &m) != DSV2_ERR_FORKED) << 5;
    bad |= !strstr(dsv2_last_error(), "child") << 6;
    dsv2_session_free(s);
    dsv2_model_free(model);
    dsv2_context_free(ctx);
    return bad;
}

static void forked_process(void **state)
{
    dsv2_session *s = with_prompt(0, 20);
    pid_t pid;
    int status;

    pthread_mutex_lock(&s->kv.pool->lock); /* as if another thread were taking a page just now */
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(60); /* rather than hang */
        _exit(in_child(s));
    }
    pthread_mutex_unlock(&s->kv.pool->lock);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    goes_on(s); /* the parent does not notice */
    dsv2_session_free(s);
}

/* ---- */

static int set_up(void **state)
{
    ctx = open_context(2);
    must(load_tiny(ctx, &model));
    return 0;
}

static int tear_down(void **state)
{
    dsv2_model_free(model);
    dsv2_context_free(ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(context_full), cmocka_unit_test(truncation), cmocka_unit_test(fork_session),
        cmocka_unit_test(fork_and_truncate), cmocka_unit_test(fork_keeps_parameters), cmocka_unit_test(fork_without_logits), cmocka_unit_test(pending_cancel),
        cmocka_unit_test(progress), cmocka_unit_test(cancel_at_any_time), cmocka_unit_test(scores),
        cmocka_unit_test(failed_score), cmocka_unit_test(logprobs), cmocka_unit_test(short_elements), cmocka_unit_test(logprob_ties),
        cmocka_unit_test(invalid_ids), cmocka_unit_test(nulls), cmocka_unit_test(wrong_state), cmocka_unit_test(buffers),
        cmocka_unit_test(output_is_what_was_decoded), cmocka_unit_test(default_context), cmocka_unit_test(memory_of_a_small_context), cmocka_unit_test(lifetimes),
        cmocka_unit_test(threads), cmocka_unit_test(references), cmocka_unit_test(forked_process),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
