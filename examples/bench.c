/* dsv2-bench: speed and memory of a model with many sessions: prefill, decode, cache types, prefix cache.
 * SPDX-License-Identifier: MIT */
#define PROGRAM "dsv2-bench"
#include "common.h"

#include <stdatomic.h>

static const char help[] =
    "Usage: dsv2-bench [FOLDER] [options]\n"
    "Time the checkpoint in FOLDER (default examples/model) with many sessions in a step, and compare its memory with what was foretold.\n"
    "\n"
    "  --sessions LIST        decoding together (default 1,2,4,8,16,32,64)\n"
    "  --context LIST         tokens that each session has behind it (default 128,512,2000)\n"
    "  --kv LIST              how the cache is stored, measured in turn: bf16,f32,f8_e4m3,f8_e5m2,int8,6bit (default bf16)\n"
    "  --steps N              decode steps in a row, each timed (default 16)\n"
    "  --repeats N            times that everything is measured, in turn (default 5)\n"
    "  --json                 one JSON object instead of text\n"
    "  -h, --help\n"
    "\n"
    "Figures are medians; --json has the fastest, too, for a machine that does other work.  Tokens are random, so that experts are used evenly; choosing a token from the logits is not part of a step.\n"
    "\n" MODEL_OPTIONS_HELP;

enum { MAX_LIST = 16, MAX_SAMPLES = 1 << 12, TAIL = 16 /* tokens of a prompt behind the prefix that it shares */ };

struct list {
    int32_t at[MAX_LIST];
    int n;
};

struct settings {
    struct options o;
    struct list sessions, contexts, kv;
    int32_t steps, repeats;
    int json;
    int32_t n_tokens; /* ids that random tokens come from */
};

/* Samples of one figure. */
struct samples {
    double at[MAX_SAMPLES];
    int n;
};

/* The sessions of one KV type at one context length. */
struct group {
    int32_t kv;
    dsv2_pool *pool;
    dsv2_session **s;
    struct samples prefill, decode[MAX_LIST]; /* seconds */
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void add(struct samples *s, double x)
{
    if (s->n < MAX_SAMPLES)
        s->at[s->n++] = x;
}

static double median(struct samples *s)
{
    qsort(s->at, (size_t)s->n, sizeof *s->at, by_value);
    return (s->at[(s->n - 1) / 2] + s->at[s->n / 2]) / 2;
}

static double fastest(struct samples *s)
{
    qsort(s->at, (size_t)s->n, sizeof *s->at, by_value);
    return s->at[0];
}

static int32_t largest(const struct list *l)
{
    int32_t most = 0;

    for (int i = 0; i < l->n; i++)
        if (l->at[i] > most)
            most = l->at[i];
    return most;
}

/* "a,b,c" of numbers, or of names where there are some. */
static void take_list(const char *option, const char *text, const char *const *names, struct list *l)
{
    for (l->n = 0;; l->n++) {
        char one[32];
        size_t n = strcspn(text, ",");

        if (n >= sizeof one || l->n == MAX_LIST)
            die("%s: '%s' is too long", option, text);
        memcpy(one, text, n);
        one[n] = 0;
        l->at[l->n] = names ? choice(option, one, names) : (int32_t)integer(option, one, 1, 1 << 24);
        if (!text[n])
            break;
        text += n + 1;
    }
    l->n++;
}

/* ---- Memory: hooks that count ---------------------------------------------------------------------------------------- */

struct heap {
    atomic_size_t now, peak;
};

static void *counted_alloc(void *user, size_t size, size_t alignment)
{
    struct heap *h = user;
    void *p = NULL;
    size_t now, peak;

    if (posix_memalign(&p, alignment < sizeof p ? sizeof p : alignment, size))
        return NULL;
    now = atomic_fetch_add(&h->now, size) + size;
    peak = atomic_load(&h->peak);
    while (now > peak && !atomic_compare_exchange_weak(&h->peak, &peak, now))
        ;
    return p;
}

static void counted_free(void *user, void *p, size_t size)
{
    struct heap *h = user;

    if (p)
        atomic_fetch_sub(&h->now, size);
    free(p);
}

/* The most physical memory that this process has had, in bytes; 0 where the system does not say. */
static uint64_t resident_peak(void)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[128];
    unsigned long kib = 0;

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %lu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return 1024 * (uint64_t)kib;
}

/* ---- Sessions -------------------------------------------------------------------------------------------------------- */

static uint64_t random_state;

static int32_t random_token(const struct settings *b)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((random_state >> 33) % (uint64_t)b->n_tokens);
}

static void random_tokens(const struct settings *b, int32_t *ids, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        ids[i] = random_token(b);
}

static dsv2_pool *new_pool(dsv2_model *model, int32_t kv, int32_t sessions, int32_t tokens, int cache)
{
    dsv2_pool_params p;
    dsv2_pool *pool;

    dsv2_pool_params_init(&p, sizeof p);
    p.kv_type = kv;
    p.tokens = (uint64_t)sessions * (((uint64_t)tokens + 63) / 64 * 64); /* whole pages for each */
    p.prefix_cache_bytes = cache ? UINT64_MAX : 0;
    check(dsv2_pool_create(model, &p, &pool));
    return pool;
}

static dsv2_session *new_session(const struct settings *b, dsv2_model *model, dsv2_pool *pool, int32_t n_ctx, uint64_t space)
{
    dsv2_session_params p = b->o.session;
    dsv2_session *s;

    p.pool = pool;
    p.n_ctx = n_ctx;
    p.cache_namespace = space;
    check(dsv2_session_create(model, &p, &s));
    return s;
}

/* ---- Prefill and decode ---------------------------------------------------------------------------------------------- */

static double time_prefill(const struct settings *b, dsv2_session *s, int32_t n)
{
    int32_t *ids = allocate((size_t)n, sizeof *ids);
    double start;

    random_tokens(b, ids, n);
    start = seconds();
    check(dsv2_session_prefill(s, ids, (size_t)n));
    free(ids);
    return seconds() - start;
}

/* Steps with one token for each of n sessions, which are put back afterwards. */
static void time_decode(const struct settings *b, dsv2_session **s, int32_t n, struct samples *samples)
{
    dsv2_step_member *members = allocate((size_t)n, sizeof *members);
    int32_t *tokens = allocate((size_t)n, sizeof *tokens);
    size_t before = dsv2_session_position(s[0]);

    for (int32_t i = 0; i < n; i++)
        members[i] = (dsv2_step_member){.session = s[i], .tokens = &tokens[i], .n_tokens = 1, .flags = DSV2_STEP_DECODED};
    for (int32_t k = 0; k < b->steps; k++) {
        double start;

        random_tokens(b, tokens, n);
        start = seconds();
        check(dsv2_step(members, sizeof *members, (size_t)n));
        add(samples, seconds() - start);
    }
    for (int32_t i = 0; i < n; i++)
        check(dsv2_session_truncate(s[i], before));
    free(members);
    free(tokens);
}

/* All KV types at one context length, in turn. */
static void measure(const struct settings *b, dsv2_model *model, int32_t context, struct group *groups)
{
    int32_t most = largest(&b->sessions);

    for (int g = 0; g < b->kv.n; g++) {
        groups[g] = (struct group){.kv = b->kv.at[g], .s = allocate((size_t)most, sizeof *groups[g].s)};
        groups[g].pool = new_pool(model, groups[g].kv, most, context + b->steps, 0);
    }
    for (int32_t i = 0; i < most; i++)
        for (int g = 0; g < b->kv.n; g++) {
            groups[g].s[i] = new_session(b, model, groups[g].pool, context + b->steps, 0);
            add(&groups[g].prefill, time_prefill(b, groups[g].s[i], context));
        }
    for (int32_t r = 0; r < b->repeats; r++)
        for (int k = 0; k < b->sessions.n; k++)
            for (int g = 0; g < b->kv.n; g++)
                time_decode(b, groups[g].s, b->sessions.at[k], &groups[g].decode[k]);
    for (int g = 0; g < b->kv.n; g++) {
        for (int32_t i = 0; i < most; i++)
            dsv2_session_free(groups[g].s[i]);
        dsv2_pool_free(groups[g].pool);
        free(groups[g].s);
    }
}

/* "name": {"sessions": rate, ...} */
static void print_rates(const struct settings *b, const char *name, struct samples *decode, double (*of)(struct samples *))
{
    printf(", \"%s\": {", name);
    for (int k = 0; k < b->sessions.n; k++)
        printf("%s\"%d\": %.1f", k ? ", " : "", b->sessions.at[k], b->sessions.at[k] / of(&decode[k]));
    putchar('}');
}

static void report_speed(const struct settings *b, int32_t context, struct group *groups, const char *comma)
{
    for (int g = 0; g < b->kv.n; g++) {
        struct group *one = &groups[g];
        const char *kv = kv_names[one->kv];

        if (b->json) {
            printf("%s\n  {\"kv\": \"%s\", \"context\": %d, \"prefill\": %.1f, \"prefill_fastest\": %.1f", g ? "," : comma, kv, context,
                   context / median(&one->prefill), context / fastest(&one->prefill));
            print_rates(b, "decode", one->decode, median);
            print_rates(b, "decode_fastest", one->decode, fastest);
            putchar('}');
            continue;
        }
        printf("  %-8s %7d %9.0f ", kv, context, context / median(&one->prefill));
        for (int k = 0; k < b->sessions.n; k++)
            printf(" %7.0f", b->sessions.at[k] / median(&one->decode[k]));
        putchar('\n');
    }
    fflush(stdout);
}

/* ---- Prefix cache ---------------------------------------------------------------------------------------------------- */

static double first_token(const struct settings *b, dsv2_session *s, int32_t *ids, int32_t n)
{
    dsv2_sample_params sp;
    int32_t token;
    double start;

    random_tokens(b, ids + n - TAIL, TAIL);
    dsv2_sample_params_init(&sp, sizeof sp, NULL);
    sp.temperature = 0;
    start = seconds();
    check(dsv2_session_prefill(s, ids, (size_t)n));
    check(dsv2_sample(s, &sp, &token, NULL));
    return seconds() - start;
}

/* A prompt whose beginning nobody had, then one with the same beginning. */
static void report_prefix(const struct settings *b, dsv2_model *model, int32_t kv, int32_t context, const char *comma)
{
    int32_t n = context + TAIL, *ids = allocate((size_t)n, sizeof *ids);
    dsv2_pool *pool = new_pool(model, kv, 2, n, 1);
    dsv2_pool_info info = {.struct_size = sizeof info};
    struct samples fresh = {.n = 0}, stored = {.n = 0};
    uint64_t reused;

    for (int32_t r = 0; r < b->repeats; r++) {
        random_tokens(b, ids, n);
        for (int again = 0; again < 2; again++) {
            dsv2_session *s = new_session(b, model, pool, n, (uint64_t)r);

            add(again ? &stored : &fresh, first_token(b, s, ids, n));
            dsv2_session_free(s);
        }
    }
    check(dsv2_pool_get_info(pool, &info));
    reused = info.reused_tokens / (uint64_t)b->repeats;
    if (b->json)
        printf("%s\n  {\"kv\": \"%s\", \"prompt\": %d, \"reused\": %" PRIu64 ", \"fresh_s\": %.6f, \"stored_s\": %.6f, "
               "\"fresh_fastest_s\": %.6f, \"stored_fastest_s\": %.6f}",
               comma, kv_names[kv], n, reused, median(&fresh), median(&stored), fastest(&fresh), fastest(&stored));
    else
        printf("  %-8s %7d %9" PRIu64 " %9.1f %9.1f %9.1f\n", kv_names[kv], n, reused, 1e3 * median(&fresh),
               1e3 * median(&stored), median(&fresh) / median(&stored));
    dsv2_pool_free(pool);
    free(ids);
}

/* ---- Memory ---------------------------------------------------------------------------------------------------------- */

/* What one session takes with its context full, and what many do in a pool, against what the library says before.  Without what the model
 * takes by itself, model_bytes. */
static void report_memory(const struct settings *b, dsv2_model *model, const struct heap *heap, size_t model_bytes, int32_t kv,
                          int32_t context, const char *comma)
{
    struct settings own = *b; /* pages of its own, as kv */
    int32_t n = largest(&b->sessions);
    dsv2_memory m = {.struct_size = sizeof m};
    dsv2_pool_info info = {.struct_size = sizeof info};
    dsv2_session **s = allocate((size_t)n, sizeof *s);
    dsv2_pool *pool;
    uint64_t one, many, foretold;

    own.o.session.kv_type = kv;
    s[0] = new_session(&own, model, NULL, context, 0);
    check(dsv2_session_memory(s[0], &m));
    time_prefill(b, s[0], context);
    one = atomic_load(&heap->now) - model_bytes;
    dsv2_session_free(s[0]);

    pool = new_pool(model, kv, n, context, 0);
    check(dsv2_pool_get_info(pool, &info));
    foretold = info.pages * info.page_bytes + m.scratch;
    for (int32_t i = 0; i < n; i++) {
        s[i] = new_session(b, model, pool, context, 0);
        time_prefill(b, s[i], TAIL);
    }
    many = atomic_load(&heap->now) - model_bytes;
    if (b->json)
        printf("%s\n  {\"kv\": \"%s\", \"context\": %d, \"one_foretold\": %" PRIu64 ", \"one_taken\": %" PRIu64
               ", \"sessions\": %d, \"many_foretold\": %" PRIu64 ", \"many_taken\": %" PRIu64 "}",
               comma, kv_names[kv], context, m.kv + m.scratch, one, n, foretold, many);
    else
        printf("  %-8s %7d %11.2f %9.2f %9d %11.2f %9.2f\n", kv_names[kv], context, 0x1p-20 * (double)(m.kv + m.scratch),
               0x1p-20 * (double)one, n, 0x1p-20 * (double)foretold, 0x1p-20 * (double)many);
    for (int32_t i = 0; i < n; i++)
        dsv2_session_free(s[i]);
    dsv2_pool_free(pool);
    free(s);
}

/* ---- The program ----------------------------------------------------------------------------------------------------- */

static void run(const struct settings *b, dsv2_model *model, const dsv2_model_info *info, const struct heap *heap)
{
    struct group *groups = allocate((size_t)b->kv.n, sizeof *groups);
    size_t model_bytes = atomic_load(&heap->now);

    if (b->json)
        printf("{\"parameters\": %" PRIu64 ", \"layers\": %d, \"threads\": %d, \"steps\": %d, \"repeats\": %d,\n \"memory\": [",
               info->parameters, info->num_hidden_layers, b->o.context.n_threads, b->steps, b->repeats);
    else
        printf("%s: %.1f million parameters, %d layers\n\nMemory, MiB: cache and scratch, foretold and taken\n"
               "  kv       context    one: foretold    taken  sessions   foretold     taken\n",
               b->o.folder, 1e-6 * (double)info->parameters, info->num_hidden_layers);
    for (int g = 0; g < b->kv.n; g++)
        report_memory(b, model, heap, model_bytes, b->kv.at[g], largest(&b->contexts), g ? "," : "");

    if (b->json) {
        printf("],\n \"speed\": [");
    } else {
        printf("\nTokens per second: prompts one by one, decoding with so many sessions in a step\n"
               "  kv       context   prefill ");
        for (int k = 0; k < b->sessions.n; k++)
            printf(" %7d", b->sessions.at[k]);
        putchar('\n');
    }
    for (int c = 0; c < b->contexts.n; c++) {
        measure(b, model, b->contexts.at[c], groups);
        report_speed(b, b->contexts.at[c], groups, c ? "," : "");
    }

    fputs(b->json ? "],\n \"prefix\": ["
                  : "\nPrefix cache: milliseconds to the first token, with the beginning of the prompt stored and not\n"
                    "  kv        prompt    reused       not    stored     times\n", stdout);
    for (int g = 0; g < b->kv.n; g++)
        for (int c = 0; c < b->contexts.n; c++)
            report_prefix(b, model, b->kv.at[g], b->contexts.at[c], g + c ? "," : "");

    if (b->json)
        printf("],\n \"heap_peak\": %zu, \"resident_peak\": %" PRIu64 "}\n", atomic_load(&heap->peak), resident_peak());
    else
        printf("\nThe most memory: %.1f MiB asked for, %.1f MiB resident with the mapped weights\n",
               0x1p-20 * (double)atomic_load(&heap->peak), 0x1p-20 * (double)resident_peak());
    free(groups);
}

int main(int argc, char **argv)
{
    static struct heap heap;
    struct settings b = {.contexts = {{128, 512, 2000}, 3}, .kv = {{DSV2_KV_BF16}, 1}, .steps = 16, .repeats = 5};
    const char *v;

    b.sessions = (struct list){{1, 2, 4, 8, 16, 32, 64}, 7};
    options_init(&b.o);
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "--help"))
            return print_help(help);
        else if ((v = value_of(argc, argv, &i, "--sessions")))
            take_list("--sessions", v, NULL, &b.sessions);
        else if ((v = value_of(argc, argv, &i, "--context")))
            take_list("--context", v, NULL, &b.contexts);
        else if ((v = value_of(argc, argv, &i, "--kv")))
            take_list("--kv", v, kv_names, &b.kv);
        else if ((v = value_of(argc, argv, &i, "--steps")))
            b.steps = (int32_t)integer("--steps", v, 1, 1 << 20);
        else if ((v = value_of(argc, argv, &i, "--repeats")))
            b.repeats = (int32_t)integer("--repeats", v, 1, MAX_SAMPLES);
        else if (!strcmp(argv[i], "--json"))
            b.json = 1;
        else if (!model_option(&b.o, argc, argv, &i))
            other_argument(&b.o, argv[i]);
    }
    if (b.o.session.n_ctx)
        die("--ctx: sessions are as long as --context and --steps need");
    if (!b.o.folder)
        b.o.folder = "examples/model";

    dsv2_context *ctx;
    dsv2_model *model;
    dsv2_model_info info = {.struct_size = sizeof info};

    b.o.context.alloc = counted_alloc;
    b.o.context.free = counted_free;
    b.o.context.alloc_user = &heap;
    check(dsv2_context_create(&b.o.context, &ctx));
    check(dsv2_model_load(ctx, b.o.folder, &b.o.model, &model));
    check(dsv2_model_get_info(model, &info));
    for (int i = 0; i < b.contexts.n; i++) {
        int64_t need = (int64_t)b.contexts.at[i] + (b.steps > TAIL ? b.steps : TAIL);

        if (b.contexts.at[i] < TAIL || need > info.max_position_embeddings)
            die("--context %d, --steps %d: at least %d and with the steps at most %d tokens (max_position_embeddings) are possible",
                b.contexts.at[i], b.steps, TAIL, info.max_position_embeddings);
    }
    b.n_tokens = info.n_tokens ? info.n_tokens : info.vocab_size;
    run(&b, model, &info, &heap);
    dsv2_model_free(model);
    dsv2_context_free(ctx);
    close_output();
    return 0;
}
