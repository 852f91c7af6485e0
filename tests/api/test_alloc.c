/* Memory that runs out, at every allocation of a whole life: context, load, session, tokens, text, chat, free.
 *
 * Two kinds of allocation fail: those through the context's hooks, and those that libraries below (cJSON, PCRE2, the C
 * library itself) take from the C library's heap, which this program stands in front of.  Under a sanitizer, whose heap it
 * must not replace, only the first kind fails.
 *
 * A call that fails must say NOMEM and have changed nothing: the same call is made again at once, must work, and the life
 * goes on to the same results.  At its end every block is back.
 *
 * SPDX-License-Identifier: MIT */
#include "api_test.h"

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OFF, HOOKS, HEAP };

/* Only one thread at a time allocates while this is watched. */
static struct {
    int kind;           /* which allocations count */
    int from_then_on;   /* not only the n-th fails, but all that follow */
    long countdown;     /* 1: the next one fails */
    long count, failed;
    int watching;       /* count the heap's live blocks */
    long live_heap, live_hooks;
    size_t live_bytes;
} mem;

static int fails(int kind)
{
    if (kind != mem.kind)
        return 0;
    mem.count++;
    if (mem.countdown > 0 ? --mem.countdown : !(mem.from_then_on && mem.failed))
        return 0;
    mem.failed++;
    errno = ENOMEM;
    return 1;
}

static void arm(int kind, long n, int from_then_on)
{
    mem.kind = kind;
    mem.from_then_on = from_then_on;
    mem.countdown = n;
    mem.count = mem.failed = 0;
}

static void disarm(void)
{
    mem.kind = OFF;
}

#ifndef SANITIZED
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *p);

static void *taken(void *p)
{
    if (mem.watching && p)
        mem.live_heap++;
    return p;
}

void *malloc(size_t size)
{
    return fails(HEAP) ? NULL : taken(__libc_malloc(size));
}

void *calloc(size_t n, size_t size)
{
    return fails(HEAP) ? NULL : taken(__libc_calloc(n, size));
}

void *realloc(void *p, size_t size)
{
    if (fails(HEAP))
        return NULL;
    return p ? __libc_realloc(p, size) : taken(__libc_malloc(size));
}

void *memalign(size_t alignment, size_t size)
{
    return fails(HEAP) ? NULL : taken(__libc_memalign(alignment, size));
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return memalign(alignment, size);
}

int posix_memalign(void **p, size_t alignment, size_t size)
{
    void *block = memalign(alignment, size);

    if (!block)
        return ENOMEM;
    *p = block;
    return 0;
}

void free(void *p)
{
    if (mem.watching && p)
        mem.live_heap--;
    __libc_free(p);
}
#endif

static void *hook_alloc(void *user, size_t size, size_t alignment)
{
    void *p = NULL;

    assert_true(alignment && !(alignment & (alignment - 1)));
    if (fails(HOOKS) || posix_memalign(&p, alignment < 16 ? 16 : alignment, size))
        return NULL;
    memset(p, 0xCD, size); /* nobody may count on zeros */
    mem.live_hooks++;
    mem.live_bytes += size;
    return p;
}

static void hook_free(void *user, void *p, size_t size)
{
    assert_non_null(p);
    memset(p, 0xDD, size); /* also checks the size, under a sanitizer */
    mem.live_hooks--;
    mem.live_bytes -= size;
    free(p);
}

/* ---- A life */

struct checkpoint {
    const char *folder; /* NULL: files */
    struct files files;
    int tokens, n_threads;
};

struct result {
    float logits[2][8];
    int32_t drawn;
    float scored;
    char text[256];
    size_t n_text;
};

/* A call that may run out of memory: then it is made again with enough. */
static void attempt(dsv2_status status, const char *call)
{
    if (!mem.failed || mem.kind == OFF) {
        expect_at(status, DSV2_OK, NULL, call, __FILE__, __LINE__);
        return;
    }
    if (status != DSV2_OK && status != DSV2_ERR_NOMEM)
        fail_msg("allocation failed in %s: %s, %s", call, dsv2_status_name(status), dsv2_last_error());
}
#define TRY(call) \
    do { \
        dsv2_status status_ = call; \
        attempt(status_, #call); \
        if (status_ != DSV2_OK) { \
            disarm(); \
            must(call); \
        } \
    } while (0)

static dsv2_status load(dsv2_context *ctx, struct checkpoint *c, dsv2_model **m)
{
    return c->folder ? dsv2_model_load(ctx, c->folder, NULL, m) : load_files(ctx, &c->files, m);
}

static dsv2_status inspect(dsv2_context *ctx, struct checkpoint *c, dsv2_memory *memory)
{
    dsv2_reader reader = files_reader(&c->files);
    dsv2_model_params p;

    dsv2_model_params_init(&p, sizeof p);
    if (!c->folder)
        p.reader = &reader;
    return dsv2_model_inspect(ctx, c->folder ? c->folder : "files", &p, NULL, NULL, memory);
}

static void texts(dsv2_model *m, struct result *r)
{
    static const char *stop[] = {"zzz", "the end"};
    dsv2_chat_message message = say("user", "the cat");
    dsv2_text_params tp;
    dsv2_text *text;
    int32_t ids[64], n_pushed = 0;
    char buf[256];
    const char *piece;
    size_t n, n_ids;

    TRY(dsv2_tokenize(m, "the cat sat <s> there, the end of it", 36, DSV2_TOKENIZE_BOS, ids, 64, &n_ids));
    TRY(dsv2_detokenize(m, ids, n_ids, 0, buf, sizeof buf, &n));
    TRY(dsv2_chat_apply(m, &message, sizeof message, 1, DSV2_CHAT_GENERATE, buf, sizeof buf, &n));
    TRY(dsv2_chat_tokenize(m, &message, sizeof message, 1, DSV2_CHAT_NO_MARKERS, ids + 40, 24, &n));
    dsv2_text_params_init(&tp, sizeof tp);
    tp.stop = stop;
    tp.n_stop = 2;
    TRY(dsv2_text_create(m, &tp, &text));
    r->n_text = 0;
    while ((size_t)n_pushed < n_ids) {
        TRY(dsv2_text_push(text, ids[n_pushed], &piece, &n, NULL));
        memcpy(r->text + r->n_text, piece, n);
        r->n_text += n;
        n_pushed++;
    }
    TRY(dsv2_text_finish(text, &piece, &n));
    memcpy(r->text + r->n_text, piece, n);
    r->n_text += n;
    dsv2_text_free(text);
}

static void live(struct checkpoint *c, struct result *r)
{
    dsv2_context_params cp = context_params(c->n_threads);
    dsv2_context *ctx = NULL;
    dsv2_model *m = NULL;
    dsv2_session_params sp;
    dsv2_session *s = NULL, *f = NULL;
    dsv2_sample_params p;
    dsv2_memory memory = {.struct_size = sizeof memory};
    dsv2_token_score scores[10];
    dsv2_logprob top[3];
    dsv2_logit_bias bias = {3, -1};
    int32_t ids[90];
    size_t n;

    for (int i = 0; i < 90; i++)
        ids[i] = 1 + i * i % 10;
    cp.alloc = hook_alloc;
    cp.free = hook_free;
    TRY(dsv2_context_create(&cp, &ctx));
    TRY(inspect(ctx, c, &memory));
    TRY(load(ctx, c, &m));
    if (c->tokens)
        texts(m, r);
    dsv2_session_params_init(&sp, sizeof sp);
    sp.n_batch = 32;
    sp.n_ctx = 200;
    TRY(dsv2_session_create(m, &sp, &s));
    TRY(dsv2_session_prefill(s, ids, 60));
    TRY(dsv2_session_score(s, ids + 60, 10, scores, sizeof *scores));
    r->scored = scores[9].logprob;
    TRY(dsv2_session_fork(s, &f));
    for (int i = 0; i < 3; i++)
        TRY(dsv2_session_decode(f, ids[70 + i])); /* copies the page that both share */
    TRY(dsv2_session_prefill(s, ids + 70, 20));
    TRY(dsv2_session_truncate(f, 65));
    TRY(dsv2_session_score(f, ids + 80, 3, scores, sizeof *scores));
    TRY(dsv2_session_logprobs(f, 2, 1, top, sizeof *top, 3, &n));
    dsv2_sample_params_init(&p, sizeof p, NULL);
    p.logit_bias = &bias;
    p.n_logit_bias = 1;
    p.presence_penalty = 1;
    TRY(dsv2_sample(s, &p, &r->drawn, NULL));
    memcpy(r->logits[0], logits_of(s), sizeof r->logits[0]);
    memcpy(r->logits[1], logits_of(f), sizeof r->logits[1]);
    dsv2_session_free(s);
    dsv2_model_free(m);
    dsv2_session_free(f);
    dsv2_context_free(ctx);
}

/* The life with its n-th allocation of a kind failing; returns whether there was an n-th. */
static int life_without(struct checkpoint *c, const struct result *wanted, int kind, long n, int from_then_on)
{
    struct result r;
    long live_heap = mem.live_heap;

    memset(&r, 0, sizeof r);
    arm(kind, n, from_then_on);
    live(c, &r);
    disarm();
    if (mem.live_hooks || mem.live_bytes)
        fail_msg("allocation %ld: %ld blocks of the hooks leaked, %zu bytes", n, mem.live_hooks, mem.live_bytes);
    if (mem.live_heap != live_heap)
        fail_msg("allocation %ld: %ld blocks of the heap leaked", n, mem.live_heap - live_heap);
    assert_memory_equal(&r, wanted, sizeof r);
    return mem.failed > 0;
}

/* Two lives to begin with: what the C library keeps once and for all, and the result. */
static long undisturbed(struct checkpoint *c, struct result *r, int kind)
{
    memset(r, 0, sizeof *r);
    live(c, r);
    mem.watching = 1;
    life_without(c, r, kind, LONG_MAX, 0);
    return mem.count;
}

static void every_one(struct checkpoint *c, const char *name, int kind)
{
    struct result r;
    long total = undisturbed(c, &r, kind), n = 1;

    assert_true(total > 10);
    while (life_without(c, &r, kind, n, n % 2 == 0))
        n++;
    print_message("%s: %ld allocations %s, each failed once\n", name, n - 1,
                  kind == HOOKS ? "through hooks" : "from the heap");
    assert_true(n - 1 >= total - 2 && n - 1 <= total);
    mem.watching = 0;
}

static void tiny_hooks(void **state)
{
    struct checkpoint c = {.tokens = 1, .n_threads = 1};

    SKIP_WITHOUT_THREADS();
    tiny_files(&c.files);
    every_one(&c, "tiny, read", HOOKS);
    files_free(&c.files);
}

static void mapped_hooks(void **state)
{
    struct checkpoint c = {.folder = TEST_ROOT "/golden/lite", .n_threads = 1};

    SKIP_WITHOUT_THREADS();
    every_one(&c, "lite, mapped", HOOKS);
}

/* With worker threads, whose stacks are the system's. */
static void threaded_hooks(void **state)
{
    struct checkpoint c = {.folder = TEST_ROOT "/golden/spec-a", .n_threads = 3};
    struct result r;

    memset(&r, 0, sizeof r);
    live(&c, &r);
    for (long n = 1; life_without(&c, &r, HOOKS, n, 0); n++)
        continue;
}

static void tiny_heap(void **state)
{
#ifdef SANITIZED
    skip();
#else
    struct checkpoint c = {.tokens = 1, .n_threads = 1};

    tiny_files(&c.files);
    every_one(&c, "tiny, read", HEAP);
    files_free(&c.files);
#endif
}

static void mapped_heap(void **state)
{
#ifdef SANITIZED
    skip();
#else
    struct checkpoint c = {.folder = TEST_ROOT "/golden/spec-a", .n_threads = 1};

    every_one(&c, "spec-a, mapped", HEAP);
#endif
}

static void bundled(void **state)
{
    struct checkpoint c = {.folder = TEST_ROOT "/../examples/model", .tokens = 1, .n_threads = 1};
    const int kinds[] = {HOOKS, HEAP};
    uint64_t rng = 500;
    struct result r;

    SKIP_WITHOUT_THREADS();
    if (access(TEST_ROOT "/../examples/model/model.safetensors", R_OK)) {
        print_message("no bundled model\n");
        skip();
    }
    for (int k = 0; k < 2; k++) {
        long total = undisturbed(&c, &r, kinds[k]);

        for (int i = 0; total && i < 250; i++)
            life_without(&c, &r, kinds[k], 1 + (long)(random_unit(&rng) * (double)total), i % 2);
        mem.watching = 0;
    }
}

/* Each call of the caller's reader fails once: the load must, too (unless the file may be absent), and give back all. */
static void reader_faults(void **state)
{
    struct files f;
    dsv2_context *ctx = open_context(1);
    dsv2_context_params cp = context_params(1);
    int failures = 0;

    dsv2_context_free(ctx);
    cp.alloc = hook_alloc;
    cp.free = hook_free;
    must(dsv2_context_create(&cp, &ctx));
    tiny_files(&f);
    for (long n = 1;; n++) {
        long before = mem.live_hooks;
        dsv2_model *m;
        dsv2_status status;

        f.calls = 0;
        f.fail_at = n;
        status = load_files(ctx, &f, &m);
        if (status == DSV2_OK)
            dsv2_model_free(m);
        else
            failures++;
        assert_int_equal(mem.live_hooks, before);
        assert_true(status == DSV2_OK || status == DSV2_ERR_IO || status == DSV2_ERR_FORMAT);
        if (f.calls < n)
            break;
    }
    assert_true(failures >= 3);
    files_free(&f);
    dsv2_context_free(ctx);
    assert_int_equal(mem.live_hooks, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tiny_hooks), cmocka_unit_test(mapped_hooks), cmocka_unit_test(threaded_hooks),
        cmocka_unit_test(tiny_heap), cmocka_unit_test(mapped_heap), cmocka_unit_test(bundled), cmocka_unit_test(reader_faults),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
