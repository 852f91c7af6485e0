/* The bundled model end to end: behaviours that hold for any checkpoint in its place, and the memory it takes against what was foretold.
 * SPDX-License-Identifier: MIT */
#include "api_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char folder[] = TEST_ROOT "/../examples/model";

static dsv2_context *ctx;
static dsv2_model *model;
static dsv2_model_info info;

/* ---- Text */

static void round_trip(void **state)
{
    static const char *const texts[] = {
        "", "Once upon a time there was a small boat.", "  two  spaces\n\n\tand a tab\r\n", "1+1=2; 31415.92653",
        "na\xC3\xAFve caf\xC3\xA9 \xE2\x80\x94 \xE2\x80\x9Cquoted\xE2\x80\x9D", "\xE4\xBD\xA0\xE5\xA5\xBD\xEF\xBC\x8C\xE4\xB8\x96\xE7\x95\x8C",
        "\xF0\x9F\x98\x80\xF0\x9F\x91\x8D\xF0\x9F\x8F\xBD emoji", "def f(x):\n    return x ** 2  # 3.14\n", "\xE0\xA4\x85 \xE3\x80\x80 x",
    };

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        size_t length = strlen(texts[i]), n, n_text, n_streamed = 0, n_piece;
        char back[256], streamed[256];
        const char *piece;
        int32_t ids[256];
        dsv2_text *text;

        must(dsv2_tokenize(model, texts[i], length, 0, ids, 256, &n));
        must(dsv2_detokenize(model, ids, n, 0, back, sizeof back, &n_text));
        assert_int_equal(n_text, length);
        assert_memory_equal(back, texts[i], length);

        must(dsv2_text_create(model, NULL, &text));
        for (size_t k = 0; k <= n; k++) {
            if (k < n)
                must(dsv2_text_push(text, ids[k], &piece, &n_piece, NULL));
            else
                must(dsv2_text_finish(text, &piece, &n_piece));
            memcpy(streamed + n_streamed, piece, n_piece);
            n_streamed += n_piece;
        }
        dsv2_text_free(text);
        assert_int_equal(n_streamed, length);
        assert_memory_equal(streamed, texts[i], length);

        must(dsv2_tokenize(model, texts[i], length, DSV2_TOKENIZE_BOS, ids, 256, &n_text));
        assert_int_equal(n_text, n + 1);
        assert_int_equal(ids[0], info.bos_token_id);
    }
}

static void chat(void **state)
{
    dsv2_chat_message m[] = {say("system", "Answer in capitals."), say("user", "What is the sum of 12 and 30?"),
                             say("assistant", "42"), say("user", "Thanks!")};
    char text[1024];
    int32_t ids[512], again[512];
    size_t n, n_text, n_again;

    assert_true(info.chat_template == DSV2_CHAT_V2 || info.chat_template == DSV2_CHAT_V25);
    for (size_t turns = 1; turns <= 4; turns++)
        for (uint32_t flags = 0; flags <= DSV2_CHAT_GENERATE; flags++) {
            must(dsv2_chat_apply(model, m, sizeof *m, turns, flags, text, sizeof text, &n_text));
            must(dsv2_chat_tokenize(model, m, sizeof *m, turns, flags, ids, 512, &n));
            must(dsv2_tokenize(model, text, n_text, 0, again, 512, &n_again));
            assert_int_equal(n, n_again);
            assert_memory_equal(ids, again, n * sizeof *ids);
            assert_int_equal(ids[0], info.bos_token_id);
            for (size_t i = 1; i < n; i++)
                assert_int_not_equal(ids[i], info.bos_token_id);
            must(dsv2_chat_tokenize(model, m, sizeof *m, turns, flags | DSV2_CHAT_NO_MARKERS, ids, 512, &n));
            assert_int_equal(n, n_again); /* nobody typed a marker */
            assert_memory_equal(ids, again, n * sizeof *ids);
        }
}

/* ---- Generation */

#define N_NEW 40

static size_t prompt(int32_t *ids, size_t capacity)
{
    dsv2_chat_message m = say("user", "Tell me a story about a lighthouse, a storm and a boat that came home at last.");
    size_t n;

    m.n_content = strlen(m.content);
    must(dsv2_chat_tokenize(model, &m, sizeof m, 1, DSV2_CHAT_GENERATE, ids, capacity, &n));
    return n;
}

struct way {
    int32_t n_threads, attention, n_batch;
    size_t piece;
};

static void generate(const struct way *w, int32_t *out, float *logits)
{
    dsv2_context *c = open_context(w->n_threads);
    dsv2_model *m;
    dsv2_session *s;
    dsv2_sample_params p;
    int32_t ids[256];
    size_t n = prompt(ids, 256);

    must(dsv2_model_load(c, folder, NULL, &m));
    s = open_session(m, 0, DSV2_KV_BF16, w->attention, w->n_batch);
    for (size_t done = 0; done < n; done += w->piece)
        must(dsv2_session_prefill(s, ids + done, n - done < w->piece ? n - done : w->piece));
    dsv2_sample_params_init(&p, sizeof p, m);
    p.temperature = 0;
    for (int i = 0; i < N_NEW; i++) {
        must(dsv2_sample(s, &p, &out[i], NULL));
        assert_true(out[i] >= 0 && out[i] < info.n_tokens);
        must(dsv2_session_decode(s, out[i]));
    }
    memcpy(logits, logits_of(s), (size_t)info.vocab_size * sizeof *logits);
    dsv2_session_free(s);
    dsv2_model_free(m);
    dsv2_context_free(c);
}

static void greedy(void **state)
{
    static const struct way ways[] = {{1, DSV2_ATTENTION_ABSORBED, 256, 1000}, {2, DSV2_ATTENTION_ABSORBED, 256, 1000},
                                      {3, DSV2_ATTENTION_ABSORBED, 5, 1000},   {2, DSV2_ATTENTION_ABSORBED, 256, 1},
                                      {2, DSV2_ATTENTION_ABSORBED, 256, 13}};
    int32_t first[N_NEW], other[N_NEW];
    size_t bytes = (size_t)info.vocab_size * sizeof(float);
    float *first_logits = malloc(bytes), *logits = malloc(bytes);

    assert_true(first_logits && logits);
    generate(&ways[0], first, first_logits);
    for (size_t i = 1; i < sizeof ways / sizeof *ways; i++) {
        generate(&ways[i], other, logits);
        assert_memory_equal(other, first, sizeof first);
        assert_memory_equal(logits, first_logits, bytes);
    }
    free(first_logits);
    free(logits);
}

/* The same seed gives the same text, in a fork too, and another seed another. */
static void seeds(void **state)
{
    int32_t ids[256], drawn[3][N_NEW];
    size_t n = prompt(ids, 256);
    dsv2_session *s;
    dsv2_sample_params p;

    must(dsv2_session_create(model, NULL, &s));
    must(dsv2_session_prefill(s, ids, n));
    for (int k = 0; k < 3; k++) {
        dsv2_session *f;

        must(dsv2_session_fork(s, &f));
        dsv2_sample_params_init(&p, sizeof p, NULL);
        p.temperature = 1.5f;
        p.seed = k == 2;
        for (int i = 0; i < N_NEW; i++) {
            must(dsv2_sample(f, &p, &drawn[k][i], NULL));
            must(dsv2_session_decode(f, drawn[k][i]));
        }
        dsv2_session_free(f);
    }
    assert_memory_equal(drawn[0], drawn[1], sizeof *drawn);
    assert_memory_not_equal(drawn[0], drawn[2], sizeof *drawn);
    dsv2_session_free(s);
}

/* ---- Memory */

struct measured {
    dsv2_memory foretold, from_session;
    uint64_t resident, hooks; /* peak bytes beyond the start; hooks: what the hooks gave, and the mapped weights */
};

static struct { size_t now, peak; } hooks;

static void *counting_alloc(void *user, size_t size, size_t alignment)
{
    void *p = NULL;

    if (posix_memalign(&p, alignment < 16 ? 16 : alignment, size))
        return NULL;
    hooks.now += size;
    if (hooks.now > hooks.peak)
        hooks.peak = hooks.now;
    return p;
}

static void counting_free(void *user, void *p, size_t size)
{
    hooks.now -= size;
    free(p);
}

static uint64_t peak_resident(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    unsigned long long kib = 0;

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %llu", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib * 1024;
}

/* In a process of its own: load, fill the context with every id of the vocabulary, so that every page of every weight is read. */
static int measure(int32_t load_mode, int32_t kv_type, int32_t attention, struct measured *out)
{
    uint64_t start = peak_resident();
    dsv2_context_params cp = context_params(1);
    dsv2_model_params mp;
    dsv2_session_params sp;
    dsv2_context *c;
    dsv2_model *m;
    dsv2_session *s;
    int32_t *ids;
    size_t n;

    cp.alloc = counting_alloc;
    cp.free = counting_free;
    dsv2_model_params_init(&mp, sizeof mp);
    mp.load_mode = load_mode;
    dsv2_session_params_init(&sp, sizeof sp);
    sp.kv_type = kv_type;
    sp.attention = attention;
    out->foretold.struct_size = out->from_session.struct_size = sizeof out->foretold;
    if (dsv2_context_create(&cp, &c) || dsv2_model_inspect(c, folder, &mp, &sp, NULL, &out->foretold))
        return 1;
    n = (size_t)out->foretold.n_ctx;
    ids = malloc(n * sizeof *ids);
    if (!ids || dsv2_model_load(c, folder, &mp, &m) || dsv2_session_create(m, &sp, &s) ||
        dsv2_session_memory(s, &out->from_session))
        return 2;
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)(i % (size_t)info.vocab_size);
    if (dsv2_session_prefill(s, ids, n))
        return 3;
    out->resident = peak_resident() - start;
    out->hooks = hooks.peak + (load_mode == DSV2_LOAD_MMAP ? out->foretold.weights : 0);
    return 0;
}

static void memory(void **state)
{
    const char *preload = getenv("LD_PRELOAD"); /* valgrind's, if it is there: its own memory counts as ours then */
    int resident_counts = !(preload && strstr(preload, "vgpreload"));

#ifdef SANITIZED
    resident_counts = 0;
#endif
    for (int32_t mode = DSV2_LOAD_MMAP; mode <= DSV2_LOAD_READ; mode++)
        for (int32_t kv_type = DSV2_KV_BF16; kv_type <= DSV2_KV_F32; kv_type++) {
            struct measured m;
            double by_hooks, by_pages;
            int ends[2], status;
            pid_t pid;

            memset(&m, 0, sizeof m);
            assert_int_equal(pipe(ends), 0);
            pid = fork();
            assert_true(pid >= 0);
            if (pid == 0) {
                status = measure(mode, kv_type, kv_type ? DSV2_ATTENTION_AUTO : DSV2_ATTENTION_ABSORBED, &m);
                _exit(write(ends[1], &m, sizeof m) == sizeof m ? status : 9);
            }
            close(ends[1]);
            assert_int_equal(read(ends[0], &m, sizeof m), sizeof m);
            close(ends[0]);
            assert_int_equal(waitpid(pid, &status, 0), pid);
            assert_true(WIFEXITED(status));
            assert_int_equal(WEXITSTATUS(status), 0);

            by_hooks = (double)m.foretold.total / (double)m.hooks;
            by_pages = (double)m.foretold.total / (double)m.resident;
            print_message("%s, %s KV, %d tokens: foretold %.2f MB = %.1f%% of the hooks' peak, %.1f%% of the resident peak\n",
                          mode == DSV2_LOAD_MMAP ? "mapped" : "read", kv_type ? "fp32" : "bf16", m.foretold.n_ctx,
                          (double)m.foretold.total / 1e6, 100 * by_hooks, 100 * by_pages);
            assert_memory_equal(&m.foretold, &m.from_session, sizeof m.foretold);
            assert_true(by_hooks > 0.95 && by_hooks < 1.05);
            if (resident_counts)
                assert_true(by_pages > 0.95 && by_pages < 1.05);
        }
}

static int set_up(void **state)
{
    /* Threads and memory of this process come after the measured ones' start: memory() runs first, and forks. */
    info.struct_size = sizeof info;
    ctx = open_context(1);
    must(dsv2_model_inspect(ctx, folder, NULL, NULL, &info, NULL));
    return 0;
}

static int load(void **state)
{
    if (!model)
        must(dsv2_model_load(ctx, folder, NULL, &model));
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
        cmocka_unit_test(memory), cmocka_unit_test_setup(round_trip, load), cmocka_unit_test_setup(chat, load),
        cmocka_unit_test_setup(greedy, load), cmocka_unit_test_setup(seeds, load),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
