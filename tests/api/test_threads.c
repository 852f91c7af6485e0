/* Calls that any thread may make, made by several at once: each gets what one thread alone gets.  Sessions' own calls are in
 * test_session.c; ThreadSanitizer watches both.
 *
 * SPDX-License-Identifier: MIT */
#include "api_test.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { N = 4, ROUNDS = 12 };

/* What a thread was given, and a hash of all that it got (no assertion of cmocka may fail in a thread, so wrong statuses go into it, too). */
struct job {
    dsv2_context *ctx;
    dsv2_model *model;
    int index;
    uint64_t hash;
};

static void note(struct job *j, const void *data, size_t n)
{
    const unsigned char *p = data;

    for (size_t i = 0; i < n; i++)
        j->hash = (j->hash ^ p[i]) * 0x100000001B3u;
}

static void note_status(struct job *j, dsv2_status status)
{
    note(j, &status, sizeof status);
}

static void run(void *(*work)(void *), struct job *jobs)
{
    pthread_t t[N];

    for (int i = 0; i < N; i++)
        assert_int_equal(pthread_create(&t[i], NULL, work, &jobs[i]), 0);
    for (int i = 0; i < N; i++)
        pthread_join(t[i], NULL);
}

/* The work of each index alone, then all at once. */
static void compare(void *(*work)(void *), dsv2_context *ctx, dsv2_model *model)
{
    struct job alone[N], together[N];

    for (int i = 0; i < N; i++) {
        alone[i] = together[i] = (struct job){ctx, model, i, 0};
        work(&alone[i]);
    }
    run(work, together);
    for (int i = 0; i < N; i++) {
        assert_true(alone[i].hash != 0 && (!i || alone[i].hash != alone[0].hash)); /* else nothing was noted */
        assert_true(alone[i].hash == together[i].hash);
    }
}

/* ---- Tokens, text, chat: nothing but the model is shared */

static void stream(struct job *j, const int32_t *ids, size_t n_ids)
{
    static const char *const stop[] = {"never", "sat 3"};
    dsv2_text_params p;
    const char *piece;
    int32_t stopped;
    dsv2_text *text;
    size_t n;

    dsv2_text_params_init(&p, sizeof p);
    p.stop = stop;
    p.n_stop = 2;
    note_status(j, dsv2_text_create(j->model, &p, &text));
    for (size_t i = 0; i < n_ids; i++) {
        note_status(j, dsv2_text_push(text, ids[i], &piece, &n, &stopped));
        note(j, piece, n);
        note(j, &stopped, sizeof stopped);
    }
    note_status(j, dsv2_text_finish(text, &piece, &n));
    note(j, piece, n);
    dsv2_text_free(text);
}

static void *words(void *user)
{
    struct job *j = user;
    char text[128], buf[512];
    int32_t ids[256], id;
    const char *bytes;
    size_t n, n_ids;

    for (int round = 0; round < ROUNDS; round++) {
        int n_text = snprintf(text, sizeof text, "the other cat sat %d times </s> on mat %d,\n\n  then the end", round, j->index);
        dsv2_chat_message m[] = {{.role = "system", .content = text, .n_content = (size_t)n_text}, say("user", "the cat </s>")};

        note_status(j, dsv2_tokenize(j->model, text, (size_t)n_text, DSV2_TOKENIZE_BOS, ids, 256, &n_ids));
        note(j, ids, n_ids * sizeof *ids);
        note_status(j, dsv2_detokenize(j->model, ids, n_ids, DSV2_DETOKENIZE_SKIP_SPECIAL, buf, sizeof buf, &n));
        note(j, buf, n);
        stream(j, ids, n_ids);
        note_status(j, dsv2_token_bytes(j->model, ids[n_ids / 2], &bytes, &n));
        note(j, bytes, n);
        note_status(j, dsv2_token_find(j->model, "the", 3, &id));
        note(j, &(int32_t){dsv2_token_is_eos(j->model, id)}, sizeof id);
        note_status(j, dsv2_chat_apply(j->model, m, sizeof *m, 2, DSV2_CHAT_GENERATE, buf, sizeof buf, &n));
        note(j, buf, n);
        note_status(j, dsv2_chat_tokenize(j->model, m, sizeof *m, 2, DSV2_CHAT_NO_MARKERS, ids, 256, &n));
        note(j, ids, n * sizeof *ids);
        /* each thread has its own last error, however long the others go on */
        note_status(j, dsv2_token_bytes(j->model, 1000000 + j->index, &bytes, &n));
        dsv2_tokenize(j->model, text, (size_t)n_text, 0, ids, 256, &n);
        note(j, dsv2_last_error(), strlen(dsv2_last_error()));
    }
    return NULL;
}

static dsv2_context *ctx;

static void linear_pattern(void **state)
{
    dsv2_model *model;

    must(load_tiny(ctx, &model));
    compare(words, ctx, model);
    dsv2_model_free(model);
}

/* A pattern that goes through PCRE2. */
static void other_pattern(void **state)
{
    dsv2_model *model;
    struct files f;

    tiny_files(&f);
    files_replace(&f, "tokenizer.json", "\\\\s?[a-z]+", "\\\\w+(?=t)");
    must(load_files(ctx, &f, &model));
    compare(words, ctx, model);
    dsv2_model_free(model);
    files_free(&f);
}

/* ---- Sessions of one model that choose, score and look at each other's past */

static int32_t edit(void *user, float *logits, size_t n)
{
    const struct job *j = user;

    logits[(size_t)j->index % n] += 1;
    return 0;
}

static void *choosing(void *user)
{
    struct job *j = user;
    const int32_t also = 40 + j->index;
    dsv2_logit_bias bias = {also, 2};
    dsv2_token_score scores[20];
    dsv2_logprob top[6];
    dsv2_sample_params p;
    dsv2_session_params sp;
    dsv2_session *s, *f;
    int32_t ids[20], token;
    float logprob;
    size_t n;

    for (int i = 0; i < 20; i++)
        ids[i] = 1 + (i * i + j->index) % 90;
    dsv2_session_params_init(&sp, sizeof sp);
    sp.n_ctx = 128;
    dsv2_sample_params_init(&p, sizeof p, j->model);
    p.seed = (uint64_t)j->index;
    p.temperature = 1;
    p.repetition_penalty = 1.1f;
    p.top_k = 20;
    p.logit_bias = &bias;
    p.n_logit_bias = 1;
    p.callback = edit;
    p.callback_user = j;
    note_status(j, dsv2_session_create(j->model, &sp, &s));
    note_status(j, dsv2_session_score(s, ids, 20, scores, sizeof *scores));
    note(j, scores + 1, sizeof scores - sizeof *scores);
    for (int i = 0; i < ROUNDS; i++) {
        note_status(j, dsv2_sample(s, &p, &token, &logprob));
        note(j, &token, sizeof token);
        note(j, &logprob, sizeof logprob);
        note_status(j, dsv2_session_logprobs(s, 5, also, top, sizeof *top, 6, &n));
        note(j, top, n * sizeof *top);
        note_status(j, dsv2_session_fork(s, &f));
        note_status(j, dsv2_session_decode(f, token));
        if (i % 2) {
            dsv2_session_free(f);
            note_status(j, dsv2_session_decode(s, token));
        } else {
            dsv2_session_free(s);
            s = f;
        }
    }
    dsv2_session_free(s);
    return NULL;
}

static void one_model(void **state)
{
    dsv2_model *model;

    must(load_tiny(ctx, &model));
    compare(choosing, ctx, model);
    dsv2_model_free(model);
}

/* ---- Loading and asking, in one context; and whole lives side by side */

static void *loading(void *user)
{
    static const char *const names[N] = {"v2", "lite", "v25", "lite-f16"};
    struct job *j = user;
    dsv2_model_info info = {.struct_size = sizeof info};
    dsv2_memory memory = {.struct_size = sizeof memory};
    dsv2_model_params p;
    dsv2_model *m;
    dsv2_session *s;
    const float *logits;
    char folder[1024];
    size_t n;

    snprintf(folder, sizeof folder, "%s/golden/%s", TEST_ROOT, names[j->index]);
    note_status(j, dsv2_model_inspect(j->ctx, folder, NULL, NULL, &info, &memory));
    note(j, &memory.kv_per_token, sizeof memory.kv_per_token);
    dsv2_model_params_init(&p, sizeof p);
    p.load_mode = j->index % 2 ? DSV2_LOAD_READ : DSV2_LOAD_MMAP;
    note_status(j, dsv2_model_load(j->ctx, folder, &p, &m));
    note_status(j, dsv2_session_create(m, NULL, &s));
    dsv2_model_free(m);
    note_status(j, dsv2_session_prefill(s, (int32_t[]){5, 6, 7, 8}, 4));
    note_status(j, dsv2_session_logits(s, &logits, &n));
    note(j, logits, n * sizeof *logits);
    note_status(j, dsv2_model_load(j->ctx, "/nonexistent", NULL, &m));
    note(j, dsv2_last_error(), strlen(dsv2_last_error()));
    dsv2_session_free(s);
    return NULL;
}

static void *whole_life(void *user)
{
    struct job *j = user;
    dsv2_context_params p = context_params(1 + j->index % 3);

    note_status(j, dsv2_context_create(&p, &j->ctx));
    loading(j);
    dsv2_context_free(j->ctx);
    return NULL;
}

static void one_context(void **state)
{
    compare(loading, ctx, NULL);
}

static void many_contexts(void **state)
{
    compare(whole_life, NULL, NULL);
}

static int set_up(void **state)
{
    ctx = open_context(3);
    return 0;
}

static int tear_down(void **state)
{
    dsv2_context_free(ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_pattern), cmocka_unit_test(other_pattern), cmocka_unit_test(one_model), cmocka_unit_test(one_context),
        cmocka_unit_test(many_contexts),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
