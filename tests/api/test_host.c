/* What a host program may do to the library: odd floating-point settings, calls from callbacks, its own memory as input.
 * SPDX-License-Identifier: MIT */
#include "api_test.h"

#include <fenv.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __x86_64__
#include <xmmintrin.h>
#endif

static dsv2_context *ctx;
static dsv2_model *model;

static void fill(int32_t *ids, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        ids[i] = (i * 37 + 11) % 95;
}

/* ---- Floating-point settings */

static void be_odd(int odd)
{
    fesetround(odd ? FE_UPWARD : FE_TONEAREST);
#ifdef __x86_64__
    _mm_setcsr((_mm_getcsr() & ~0x8040u) | (odd ? 0x8040u : 0)); /* denormals are zero, and flushed */
#endif
}

static int is_odd(void)
{
    int flushed = 1;

#ifdef __x86_64__
    flushed = (_mm_getcsr() & 0x8040) == 0x8040;
#endif
    return fegetround() == FE_UPWARD && flushed;
}

struct results {
    dsv2_memory memory;
    dsv2_token_score scores[40];
    dsv2_logprob top[5];
    int32_t token[2];
    float logprob[2], logits[128];
};

/* Everything that computes, from opening a context on. */
static void compute(struct results *r, int odd)
{
    dsv2_context *own;
    dsv2_model *m;
    dsv2_session *s;
    dsv2_sample_params sp;
    const float *logits;
    int32_t ids[80];
    size_t n;

    memset(r, 0, sizeof *r);
    r->memory.struct_size = sizeof r->memory;
    fill(ids, 80);
    be_odd(odd);
    own = open_context(3);
    must(load_tiny(own, &m));
    must(dsv2_model_inspect(own, golden("v2"), NULL, NULL, NULL, &r->memory));
    s = open_session(m, 128, DSV2_KV_INT8, DSV2_ATTENTION_AUTO, 16);
    must(dsv2_session_score(s, ids, 40, r->scores, sizeof *r->scores));
    must(dsv2_session_prefill(s, ids + 40, 39));
    must(dsv2_session_decode(s, ids[79]));
    must(dsv2_session_logprobs(s, 5, -1, r->top, sizeof *r->top, 5, &n));
    dsv2_sample_params_init(&sp, sizeof sp, NULL);
    sp.top_p = 0.9f;
    for (int i = 0; i < 2; i++) {
        dsv2_step_member member = {.session = s, .tokens = ids + i, .n_tokens = 1, .sample = &sp};

        must(dsv2_sample(s, &sp, &r->token[i], &r->logprob[i]));
        must(dsv2_step(&member, sizeof member, 1));
        assert_true(member.token >= 0);
    }
    must(dsv2_session_logits(s, &logits, &n));
    memcpy(r->logits, logits, (n < 128 ? n : 128) * sizeof *logits);
    assert_int_equal(is_odd(), odd);
    dsv2_session_free(s);
    dsv2_model_free(m);
    dsv2_context_free(own);
    be_odd(0);
}

static void floating_point(void **state)
{
    static struct results plain, odd;

    compute(&plain, 0);
    compute(&odd, 1);
    assert_memory_equal(&odd, &plain, sizeof odd);
}

/* ---- Calls from a callback */

struct caller {
    dsv2_session *s, *other;
    int calls;
};

static int32_t calls_everything(void *user, uint64_t done, uint64_t total)
{
    struct caller *c = user;
    dsv2_session *s = c->s, *out = NULL;
    dsv2_step_member member = {.session = s, .tokens = (int32_t[]){1}, .n_tokens = 1};
    dsv2_token_score score;
    dsv2_logprob lp;
    const float *logits;
    int32_t one = 1;
    char buf[64];
    size_t n;

#define REFUSED(call) expect(call, DSV2_ERR_STATE, "callback")
    REFUSED(dsv2_session_prefill(s, &one, 1));
    REFUSED(dsv2_session_decode(s, 1));
    REFUSED(dsv2_session_score(s, &one, 1, &score, sizeof score));
    REFUSED(dsv2_session_truncate(s, 0));
    REFUSED(dsv2_session_fork(s, &out));
    REFUSED(dsv2_session_logits(s, &logits, &n));
    REFUSED(dsv2_session_logprobs(s, 1, -1, &lp, sizeof lp, 1, &n));
    REFUSED(dsv2_session_save(s, "/nowhere/at/all"));
    REFUSED(dsv2_session_restore(s, "/nowhere/at/all"));
    REFUSED(dsv2_session_export(s, buf, sizeof buf, &n));
    REFUSED(dsv2_session_import(s, buf, sizeof buf));
    REFUSED(dsv2_sample(s, NULL, &one, NULL));
#undef REFUSED
    expect(dsv2_step(&member, sizeof member, 1), DSV2_ERR_INVALID, "members[0]: session: it is in the step twice, or in another");
    assert_null(out);
    assert_int_equal(dsv2_session_position(s), 5);
    must(dsv2_session_decode(c->other, 1)); /* any other is free */
    c->calls++;
    return 0;
}

static void callbacks(void **state)
{
    dsv2_session *s, *plain = open_session(model, 128, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 8);
    struct caller c = {.other = open_session(model, 128, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 8)};
    dsv2_session_params p;
    int32_t ids[45];

    fill(ids, 45);
    dsv2_session_params_init(&p, sizeof p);
    p.kv_type = DSV2_KV_F32;
    p.n_batch = 8;
    p.progress = calls_everything;
    p.progress_user = &c;
    must(dsv2_session_create(model, &p, &s));
    c.s = s;
    must(dsv2_session_prefill(s, ids, 5));
    must(dsv2_session_prefill(s, ids + 5, 40));
    assert_int_equal(c.calls, 4);
    must(dsv2_session_prefill(plain, ids, 5));
    must(dsv2_session_prefill(plain, ids + 5, 40));
    assert_memory_equal(logits_of(s), logits_of(plain), 100 * sizeof(float));
    assert_memory_equal(dsv2_session_tokens(s), ids, sizeof ids);
    must(dsv2_session_truncate(s, 3)); /* and when the step is over, so is the session */
    dsv2_session_free(s);
    dsv2_session_free(plain);
    dsv2_session_free(c.other);
}

/* ---- A session's history as input: it moves when it grows */

static void own_history(void **state)
{
    dsv2_session *s[2];
    int32_t ids[60];

    fill(ids, 60);
    for (int i = 0; i < 2; i++) {
        s[i] = open_session(model, 300, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 256);
        must(dsv2_session_prefill(s[i], ids, 60));
    }
    must(dsv2_session_prefill(s[0], dsv2_session_tokens(s[0]), 60));
    dsv2_step_member both[2] = {
        {.session = s[1], .tokens = dsv2_session_tokens(s[1]), .n_tokens = 60},
        {.session = s[0], .tokens = dsv2_session_tokens(s[1]), .n_tokens = 60},
    };
    must(dsv2_step(both, sizeof *both, 2));
    for (int i = 0; i < 180; i++) {
        assert_int_equal(dsv2_session_tokens(s[0])[i], ids[i % 60]);
        if (i < 120)
            assert_int_equal(dsv2_session_tokens(s[1])[i], ids[i % 60]);
    }
    dsv2_session_free(s[0]);
    dsv2_session_free(s[1]);
}

/* ---- No memory for a step: every member hears of it */

static int refuse_memory;

static void *alloc_or_not(void *user, size_t size, size_t alignment)
{
    void *p = NULL;

    return !refuse_memory && posix_memalign(&p, alignment < 16 ? 16 : alignment, size) == 0 ? p : NULL;
}

static void give_back(void *user, void *p, size_t size)
{
    free(p);
}

static void no_memory(void **state)
{
    dsv2_context_params cp = context_params(1);
    dsv2_context *own;
    dsv2_model *m;
    dsv2_step_member members[2] = {{.n_tokens = 1}, {.n_tokens = 1}};
    int32_t token = 5;

    cp.alloc = alloc_or_not;
    cp.free = give_back;
    must(dsv2_context_create(&cp, &own));
    must(load_tiny(own, &m));
    for (int i = 0; i < 2; i++) {
        members[i].session = open_session(m, 64, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 8);
        members[i].tokens = &token;
    }
    must(dsv2_step(members, sizeof *members, 2));
    refuse_memory = 1;
    expect(dsv2_step(members, sizeof *members, 2), DSV2_ERR_NOMEM, NULL);
    refuse_memory = 0;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(members[i].status, DSV2_ERR_NOMEM);
        assert_int_equal(dsv2_session_position(members[i].session), 1);
        dsv2_session_free(members[i].session);
    }
    dsv2_model_free(m);
    dsv2_context_free(own);
}

/* ---- A checkpoint with a NaN: scores say so, in every place of a call */

static void nan_scores(void **state)
{
    struct files f;
    dsv2_model *m;
    dsv2_session *s;
    dsv2_token_score scores[5];
    const char *at;
    char *end;

    tiny_files(&f);
    at = strstr(f.file[1].data + 8, "\"lm_head.weight\"");
    assert_non_null(at);
    at = strstr(at, "data_offsets\":[") + 15;
    uint64_t header = 0, offset = strtoull(at, &end, 10);
    static const float nan_value = NAN;

    memcpy(&header, f.file[1].data, 8);
    memcpy(f.file[1].data + 8 + header + offset, &nan_value, 4); /* fp32 */
    must(load_files(ctx, &f, &m));
    s = open_session(m, 64, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 64);
    must(dsv2_session_prefill(s, (int32_t[]){1}, 1));
    must(dsv2_session_score(s, (int32_t[]){2, 3, 4, 5, 6}, 5, scores, sizeof *scores));
    for (int i = 0; i < 5; i++) {
        assert_true(isnan(scores[i].logprob) && isnan(scores[i].top_logprob));
        assert_int_equal(scores[i].rank, 0);
        assert_int_equal(scores[i].top_token, -1);
    }
    dsv2_session_free(s);
    dsv2_model_free(m);
    files_free(&f);
}

/* ---- Output structs: a failed call leaves both alone */

static void outputs(void **state)
{
    dsv2_model_info info = {.struct_size = sizeof info, .vocab_size = -7};
    dsv2_memory memory = {.struct_size = 0};

    expect(dsv2_model_inspect(ctx, golden("v2"), NULL, NULL, &info, &memory), DSV2_ERR_INVALID,
           "dsv2_memory: struct_size: is 0, but must be sizeof(dsv2_memory)");
    assert_int_equal(info.vocab_size, -7);
}

/* ---- The CUDA module is looked for beside the program that the library is part of, whatever its name is said to be */

static int print_reason(void)
{
    dsv2_backend_info infos[2];
    size_t n;

    if (dsv2_backend_list(NULL, infos, sizeof *infos, 2, &n) != DSV2_OK)
        return 1;
    return fputs(infos[1].reason, stdout) < 0;
}

static void module_folder(void **state)
{
    static const char *const names[] = {"/nowhere/at/all", "nothing", ""};
    char self[1024], reason[1200];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 32);

    assert_true(n > 0);
    self[n] = 0;
    strcpy(strrchr(self, '/') + 1, "libdsv2-cuda.so: ");
    for (int i = 0; i < 3; i++) {
        int out[2], status;
        pid_t pid;

        assert_int_equal(pipe(out), 0);
        pid = fork();
        if (!pid) {
            dup2(out[1], 1);
            execl("/proc/self/exe", names[i], "--reason", (char *)NULL);
            _exit(127);
        }
        close(out[1]);
        n = read(out[0], reason, sizeof reason - 1);
        close(out[0]);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        assert_true(n > 0);
        reason[n] = 0;
        if (strncmp(reason, self, strlen(self)))
            fail_msg("%s, not %s", reason, self);
    }
}

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

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(floating_point), cmocka_unit_test(callbacks), cmocka_unit_test(own_history),
        cmocka_unit_test(no_memory), cmocka_unit_test(nan_scores), cmocka_unit_test(outputs), cmocka_unit_test(module_folder),
    };

    if (argc > 1)
        return print_reason();
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
