/* Sampling: each step against Hugging Face's processors (sampling.json) and against a plain reference in double, the draw against its
 * distribution and against an independent Philox, ranges, and the numbers that must not be there.
 * SPDX-License-Identifier: MIT */
#include "api_test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "sampler.h"

#define V 64

/* A session as sampling sees one, without a model behind it. */
struct bench {
    dsv2_context ctx;
    dsv2_model model;
    dsv2_session s;
    float logits[V];
    int32_t tokens[256];
};

static void bench_init(struct bench *b)
{
    memset(b, 0, sizeof *b);
    b->ctx.mem = dsv2i_heap;
    b->model.ctx = &b->ctx;
    b->model.config.shape.vocab_size = V;
    b->model.generation = (struct dsv2i_generation){.do_sample = 1, .temperature = 1, .top_p = 1, .repetition_penalty = 1};
    b->s.model = &b->model;
    b->s.logits = b->logits;
    b->s.tokens = b->tokens;
    b->s.has_logits = 1;
}

static dsv2_sample_params defaults(void)
{
    dsv2_sample_params p;

    dsv2_sample_params_init(&p, sizeof p, NULL);
    return p;
}

static struct dsv2i_sample_row row_of(const struct bench *b)
{
    return (struct dsv2i_sample_row){.logits = b->logits, .n_vocab = V, .tokens = b->tokens, .n_prompt = b->s.n_prompt,
                                     .pos = b->s.pos, .eos = b->model.generation.eos_token_id, .n_eos = b->model.generation.n_eos};
}

/* What is left before the draw; returns the number. */
static int32_t filter(const struct bench *b, const dsv2_sample_params *p, struct dsv2i_candidate out[V])
{
    struct dsv2i_sample_row row = row_of(b);
    float logits[V];
    uint32_t counts[V];

    must(dsv2i_sample_edit(&row, p, logits, counts));
    return dsv2i_sample_keep(logits, V, p, out);
}

static double probability(const struct dsv2i_candidate *c, int32_t n, int32_t i)
{
    double sum = 0;

    for (int32_t j = 0; j < n; j++)
        sum += exp(c[j].x);
    return exp(c[i].x) / sum;
}

/* ---- Against Hugging Face */

static double number(const cJSON *object, const char *key, double otherwise)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);

    return item ? item->valuedouble : otherwise;
}

static int32_t ids_of(const cJSON *array, int32_t *out)
{
    const cJSON *item;
    int32_t n = 0;

    cJSON_ArrayForEach(item, array)
        out[n++] = item->valueint;
    return n;
}

struct lists {
    dsv2_logit_bias bias[8];
    int32_t stop[8];
};

static dsv2_sample_params params_of(const cJSON *object, struct lists *lists)
{
    dsv2_sample_params p = defaults();
    const cJSON *item;

    p.temperature = (float)number(object, "temperature", 1);
    p.top_p = (float)number(object, "top_p", 1);
    p.min_p = (float)number(object, "min_p", 0);
    p.top_k = (int32_t)number(object, "top_k", 0);
    p.repetition_penalty = (float)number(object, "repetition_penalty", 1);
    p.frequency_penalty = (float)number(object, "frequency_penalty", 0);
    p.presence_penalty = (float)number(object, "presence_penalty", 0);
    p.min_tokens = (int32_t)number(object, "min_tokens", 0);
    p.logit_bias = lists->bias;
    p.stop_tokens = lists->stop;
    p.n_stop_tokens = (size_t)ids_of(cJSON_GetObjectItem(object, "stop_tokens"), lists->stop);
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(object, "logit_bias"))
        lists->bias[p.n_logit_bias++] =
            (dsv2_logit_bias){cJSON_GetArrayItem(item, 0)->valueint, (float)cJSON_GetArrayItem(item, 1)->valuedouble};
    return p;
}

static void check_case(const cJSON *c)
{
    struct bench b;
    struct lists lists;
    struct dsv2i_candidate kept[V];
    dsv2_sample_params p = params_of(cJSON_GetObjectItem(c, "params"), &lists);
    const cJSON *item, *edited = cJSON_GetObjectItem(c, "edited");
    struct dsv2i_sample_row row;
    float logits[V], logprob, max;
    uint32_t counts[V];
    int32_t ids[V], n_kept = ids_of(cJSON_GetObjectItem(c, "kept"), ids), n = 0, token;
    double sum = 0;

    bench_init(&b);
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(c, "logits"))
        b.logits[n++] = (float)item->valuedouble;
    assert_int_equal(n, V);
    b.s.n_prompt = ids_of(cJSON_GetObjectItem(c, "prompt"), b.tokens);
    b.s.pos = b.s.n_prompt + ids_of(cJSON_GetObjectItem(c, "output"), b.tokens + b.s.n_prompt);
    b.model.generation.n_eos = ids_of(cJSON_GetObjectItem(c, "eos"), b.model.generation.eos_token_id);

    row = row_of(&b);
    must(dsv2i_sample_check(&p, V));
    must(dsv2i_sample_edit(&row, &p, logits, counts));
    n = 0;
    cJSON_ArrayForEach(item, edited) {
        if (cJSON_IsNull(item))
            assert_true(logits[n] == -INFINITY);
        else
            assert_float_equal(logits[n], item->valuedouble, 2e-6 * (1 + fabs(item->valuedouble)));
        n++;
    }

    n = filter(&b, &p, kept);
    if (p.temperature >= 1e-5f) {
        assert_int_equal(n, n_kept);
        for (int32_t i = 0; i < n; i++) {
            double wanted = cJSON_GetArrayItem(cJSON_GetObjectItem(c, "p"), i)->valuedouble;

            assert_int_equal(kept[i].id, ids[i]);
            assert_float_equal(probability(kept, n, i), wanted, 1e-5 * wanted + 1e-9);
        }
        cJSON_ArrayForEach(item, cJSON_GetObjectItem(c, "draws"))
            assert_int_equal(dsv2i_sample_draw(kept, n, (uint64_t)cJSON_GetArrayItem(item, 0)->valuedouble,
                                               (uint64_t)cJSON_GetArrayItem(item, 1)->valuedouble),
                             cJSON_GetArrayItem(item, 2)->valueint);
    }

    /* The whole, at the session's position, with the first draw's seed. */
    item = cJSON_GetArrayItem(cJSON_GetObjectItem(c, "draws"), 0);
    p.seed = (uint64_t)cJSON_GetArrayItem(item, 0)->valuedouble;
    must(dsv2_sample(&b.s, &p, &token, &logprob));
    assert_int_equal(token, cJSON_GetArrayItem(item, 2)->valueint);
    max = b.logits[0];
    for (int i = 1; i < V; i++)
        max = fmaxf(max, b.logits[i]);
    for (int i = 0; i < V; i++)
        sum += exp((double)b.logits[i] - max);
    assert_float_equal(logprob, b.logits[token] - max - log(sum), 1e-6);
}

static void huggingface(void **state)
{
    char *text = read_file(TEST_ROOT "/api/sampling.json", NULL);
    cJSON *cases = cJSON_Parse(text), *c;
    int n = 0;

    assert_non_null(cases);
    cJSON_ArrayForEach(c, cases) {
        check_case(c);
        n++;
    }
    assert_true(n >= 37);
    cJSON_Delete(cases);
    free(text);
}

/* ---- Against a plain reference, with ties */

static const double *sorted_by;

static int better_first(const void *a, const void *b)
{
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;

    if (sorted_by[i] != sorted_by[j])
        return sorted_by[i] > sorted_by[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

/* keep[i] = 1 for what temperature, min_p, top_k, top_p leave: by sorting, and by the definitions. */
static void reference_keep(const float *logits, const dsv2_sample_params *p, int *keep)
{
    double l[V], mass = 0, before = 0;
    int32_t order[V], left = 0;

    for (int i = 0; i < V; i++) {
        l[i] = logits[i] / fmax(p->temperature, 0.01);
        order[i] = i;
    }
    sorted_by = l;
    qsort(order, V, sizeof *order, better_first);
    for (int i = 0; i < V; i++)
        keep[i] = logits[i] != -INFINITY && exp(l[i] - l[order[0]]) >= p->min_p;
    for (int i = 0; i < V; i++)
        left += keep[i];
    if (p->top_k > 0 && p->top_k < left)
        for (int i = 0; i < V; i++)
            keep[i] = keep[i] && l[i] >= l[order[p->top_k - 1]];
    if (p->top_p >= 1)
        return;
    for (int i = 0; i < V; i++)
        mass += keep[i] ? exp(l[i] - l[order[0]]) : 0;
    for (int i = 0; i < V; i++) {
        int32_t id = order[i];
        double here = keep[id] ? exp(l[id] - l[order[0]]) / mass : 0;

        if (i && before >= p->top_p)
            keep[id] = 0;
        before += here;
    }
}

static void random_filters(void **state)
{
    uint64_t rng = 7;
    int cut = 0;

    for (int round = 0; round < 4000; round++) {
        struct bench b;
        struct dsv2i_candidate kept[V];
        dsv2_sample_params p = defaults();
        int keep[V], wanted = 0;
        int32_t n, coarse = round % 3; /* coarse logits tie often */

        bench_init(&b);
        for (int i = 0; i < V; i++) {
            b.logits[i] = (float)((random_unit(&rng) - 0.5) * 12);
            if (coarse)
                b.logits[i] = rintf(b.logits[i] * (coarse == 1 ? 1 : 0.25f));
            if (round % 7 == 0 && i % 5 == 0)
                b.logits[i] = -INFINITY;
        }
        p.temperature = round % 4 ? (float)(0.2 + 2 * random_unit(&rng)) : 1;
        /* Odd fractions: no sum of equal probabilities falls on the border but for rounding. */
        if (random_u32(&rng) % 2)
            p.top_p = (float)(0.003 + 0.99 * random_unit(&rng));
        if (random_u32(&rng) % 3 == 0)
            p.min_p = (float)(0.4 * random_unit(&rng));
        if (random_u32(&rng) % 2)
            p.top_k = (int32_t)(1 + random_u32(&rng) % 80);
        reference_keep(b.logits, &p, keep);
        n = filter(&b, &p, kept);
        for (int i = 0; i < V; i++)
            wanted += keep[i];
        assert_int_equal(n, wanted);
        for (int32_t i = 0; i < n; i++)
            assert_true(keep[kept[i].id]);
        cut += n < V;
    }
    assert_true(cut > 2000);
}

static void ties(void **state)
{
    struct bench b;
    struct dsv2i_candidate kept[V];
    dsv2_sample_params p = defaults();
    int32_t token;

    bench_init(&b);
    for (int i = 0; i < V; i++)
        b.logits[i] = i == 3 || i == 8 ? 5 : i >= 10 && i < 20 ? 1 : -1;
    p.top_k = 1;
    assert_int_equal(filter(&b, &p, kept), 2); /* ties at the border all stay */
    p.top_k = 3;
    assert_int_equal(filter(&b, &p, kept), 12);
    p.temperature = 0;
    must(dsv2_sample(&b.s, &p, &token, NULL));
    assert_int_equal(token, 3);

    for (int i = 0; i < V; i++)
        b.logits[i] = i % 2 ? 0.0f : -0.0f; /* equal, whatever their signs */
    p = defaults();
    p.top_k = 1;
    assert_int_equal(filter(&b, &p, kept), V);
    p.top_k = 0;
    p.top_p = 0.5;
    assert_int_equal(filter(&b, &p, kept), V / 2); /* exactly half of the mass: not one more */
    for (int i = 0; i < V / 2; i++)
        assert_int_equal(kept[i].id, i);
    p.top_p = 0.5000001f;
    assert_int_equal(filter(&b, &p, kept), V / 2 + 1);
    p.top_p = 1e-30f;
    assert_int_equal(filter(&b, &p, kept), 1); /* the greatest stays */
}

/* Below 1e-5 the greatest is chosen; from there to 0.01 every temperature is 0.01. */
static void low_temperatures(void **state)
{
    static const float temperatures[] = {0, 9e-6f, 1e-5f, 1e-3f, 9e-3f, 0.01f};
    struct bench b;
    int second[6] = {0};

    bench_init(&b);
    b.logits[10] = 5;
    b.logits[20] = 4.99f; /* at 0.01 it has 1 / (1 + e) of the mass */
    for (int t = 0; t < 6; t++)
        for (uint64_t seed = 0; seed < 400; seed++) {
            dsv2_sample_params p = defaults();
            int32_t token;

            p.temperature = temperatures[t];
            p.seed = seed;
            must(dsv2_sample(&b.s, &p, &token, NULL));
            assert_true(token == 10 || token == 20);
            second[t] += token == 20;
        }
    assert_int_equal(second[0], 0);
    assert_int_equal(second[1], 0);
    assert_true(second[5] > 70 && second[5] < 145); /* 107.6 expected, standard deviation 8.9 */
    for (int t = 2; t < 5; t++)
        assert_int_equal(second[t], second[5]);
}

/* Logits at the ends of what a float holds. */
static void extremes(void **state)
{
    struct bench b;
    struct dsv2i_candidate kept[V];
    dsv2_sample_params p = defaults();
    int32_t token;
    float logprob;

    bench_init(&b);
    for (int i = 0; i < V; i++)
        b.logits[i] = -INFINITY;
    b.logits[40] = -3e38f;
    must(dsv2_sample(&b.s, &p, &token, &logprob));
    assert_int_equal(token, 40);
    assert_float_equal(logprob, 0, 0);
    b.logits[41] = 3e38f;
    p.temperature = 0.001f; /* 6e38 / 0.01 is beyond a float */
    p.top_p = 0.9f;
    assert_int_equal(filter(&b, &p, kept), 1);
    must(dsv2_sample(&b.s, &p, &token, &logprob));
    assert_int_equal(token, 41);
    b.logits[0] = 1e-40f; /* subnormal */
    p.top_p = 1;
    p.temperature = 1;
    must(dsv2_sample(&b.s, &p, &token, NULL));
    assert_int_equal(token, 41);
}

/* ---- The draw */

static void philox_vectors(void **state)
{
    /* From the kat_vectors of Random123, philox4x32 with 10 rounds: counter, key, result. */
    static const uint32_t vectors[][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1},
    };

    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        uint32_t out[4];

        dsv2i_philox(vectors[i], vectors[i] + 4, out);
        assert_memory_equal(out, vectors[i] + 6, sizeof out);
    }
}

/* Chi-square of counts against n * p; df + 5 sqrt(2 df) is passed by chance once in about 10^5 times. */
static void check_distribution(const int *counts, const double *p, int bins, int n)
{
    double chi = 0;
    int df = -1;

    for (int i = 0; i < bins; i++) {
        double e = n * p[i];

        if (p[i] == 0) {
            assert_int_equal(counts[i], 0);
            continue;
        }
        chi += (counts[i] - e) * (counts[i] - e) / e;
        df++;
    }
    if (chi > df + 5 * sqrt(2.0 * df))
        fail_msg("chi-square %.1f with %d degrees of freedom", chi, df);
}

#define DRAWS 100000

static void distribution(void **state)
{
    static const float logits[12] = {0, 1, 2, 3, -1, -2, 0.5, 2.5, -4, 1.5, 3, -INFINITY};
    const uint64_t seeds[] = {0, 1, 42, 0xFFFFFFFF00000000u};

    for (size_t s = 0; s < 4; s++) {
        struct bench b;
        struct dsv2i_candidate kept[V];
        dsv2_sample_params p = defaults();
        double share[V] = {0};
        int by_position[V] = {0}, by_seed[V] = {0}, pairs[V] = {0}, before = 0;
        int32_t n;

        bench_init(&b);
        for (int i = 0; i < V; i++)
            b.logits[i] = i < 12 ? logits[i] : -INFINITY;
        p.temperature = 1.3f;
        n = filter(&b, &p, kept);
        assert_int_equal(n, 11);
        for (int32_t i = 0; i < n; i++)
            share[kept[i].id] = probability(kept, n, i);
        for (int i = 0; i < DRAWS; i++) {
            int now = dsv2i_sample_draw(kept, n, seeds[s], (uint64_t)i);

            by_position[now]++;
            by_seed[dsv2i_sample_draw(kept, n, seeds[s] + (uint64_t)i, 77)]++;
            pairs[(before >= 3) * 2 + (now >= 3)]++; /* neighbours know nothing of each other */
            before = now;
        }
        check_distribution(by_position, share, V, DRAWS);
        check_distribution(by_seed, share, V, DRAWS);
        double low = share[0] + share[1] + share[2];
        check_distribution(pairs, (double[]){low * low, low * (1 - low), low * (1 - low), (1 - low) * (1 - low)}, 4, DRAWS);
    }
}

/* Many equal tokens: the choice must spread over all words of all blocks. */
static void uniform(void **state)
{
    enum { N = 1000 };
    struct dsv2i_candidate c[N];
    double share[N];
    int counts[N] = {0};

    for (int i = 0; i < N; i++) {
        c[i] = (struct dsv2i_candidate){.id = i * 3};
        share[i] = 1.0 / N;
    }
    for (int i = 0; i < DRAWS; i++)
        counts[dsv2i_sample_draw(c, N, 5, (uint64_t)i) / 3]++;
    check_distribution(counts, share, N, DRAWS);
}

/* A token that holds 1e-6 of the mass is not drawn 100 times, nor one that holds all but that anything less than nearly always;
 * candidates that are too far behind to win are skipped, which must change nothing. */
static void rare(void **state)
{
    struct dsv2i_candidate c[2] = {{.id = 0, .x = 0}, {.id = 9, .x = -6.9}}; /* 1e-3 */
    int hits = 0;

    for (int i = 0; i < DRAWS; i++)
        hits += dsv2i_sample_draw(c, 2, 11, (uint64_t)i) == 9;
    assert_true(hits > 60 && hits < 145); /* 101 expected, 10 standard deviation */
    hits = 0;
    c[0] = (struct dsv2i_candidate){.id = 9, .x = 0};
    c[1] = (struct dsv2i_candidate){.id = 12, .x = -15};
    for (int i = 0; i < DRAWS; i++)
        hits += dsv2i_sample_draw(c, 2, 11, (uint64_t)i) == 12;
    assert_true(hits <= 3); /* 0.03 expected */
}

static void same_everywhere(void **state)
{
    struct bench b;
    dsv2_sample_params p = defaults();
    int32_t first[64], token;
    int differ_by_seed = 0, differ_by_position = 0;

    bench_init(&b);
    for (int i = 0; i < V; i++)
        b.logits[i] = (float)(i % 7);
    p.seed = 99;
    for (int i = 0; i < 64; i++) {
        b.s.pos = b.s.n_prompt = i;
        must(dsv2_sample(&b.s, &p, &first[i], NULL));
    }
    for (int i = 63; i >= 0; i--) {
        b.s.pos = b.s.n_prompt = i;
        must(dsv2_sample(&b.s, &p, &token, NULL));
        assert_int_equal(token, first[i]);
        p.seed = 100;
        must(dsv2_sample(&b.s, &p, &token, NULL));
        differ_by_seed += token != first[i];
        differ_by_position += i && first[i] != first[i - 1];
        p.seed = 99;
    }
    assert_true(differ_by_seed > 40 && differ_by_position > 40);
}

/* ---- What may not be */

static void ranges(void **state)
{
    struct bench b;
    dsv2_sample_params p;
    int32_t token = -7, bad_stop[2] = {3, V};
    float logprob = -7;
    dsv2_logit_bias bias[2] = {{3, 1}, {4, 1}};

    bench_init(&b);
#define REFUSED(field, value, text) \
    do { \
        p = defaults(); \
        p.field = value; \
        expect(dsv2_sample(&b.s, &p, &token, &logprob), DSV2_ERR_INVALID, "dsv2_sample_params: " #field ": " text " is not"); \
    } while (0)
#define ACCEPTED(field, value) \
    do { \
        p = defaults(); \
        p.field = value; \
        must(dsv2_sample(&b.s, &p, &token, &logprob)); \
    } while (0)
    REFUSED(temperature, -0.1f, "-0.1");
    REFUSED(temperature, NAN, "nan");
    REFUSED(temperature, INFINITY, "inf");
    REFUSED(top_p, 0, "0");
    REFUSED(top_p, 1.01f, "1.01");
    REFUSED(top_p, NAN, "nan");
    REFUSED(min_p, -0.01f, "-0.01");
    REFUSED(min_p, 1.5f, "1.5");
    REFUSED(min_p, NAN, "nan");
    REFUSED(top_k, -2, "-2");
    REFUSED(repetition_penalty, 0, "0");
    REFUSED(repetition_penalty, -1, "-1");
    REFUSED(repetition_penalty, INFINITY, "inf");
    REFUSED(presence_penalty, 2.5f, "2.5");
    REFUSED(presence_penalty, NAN, "nan");
    REFUSED(frequency_penalty, -2.5f, "-2.5");
    REFUSED(frequency_penalty, -INFINITY, "-inf");
    REFUSED(min_tokens, -1, "-1");
    assert_int_equal(token, -7); /* a refused call stores nothing */
    assert_true(logprob == -7);
    ACCEPTED(temperature, 0);
    ACCEPTED(temperature, 1e30f);
    ACCEPTED(top_p, 1);
    ACCEPTED(top_p, 1e-38f);
    ACCEPTED(min_p, 0);
    ACCEPTED(min_p, 1);
    ACCEPTED(top_k, -1);
    ACCEPTED(top_k, 0);
    ACCEPTED(top_k, INT32_MAX);
    ACCEPTED(presence_penalty, 2);
    ACCEPTED(frequency_penalty, -2);
    ACCEPTED(min_tokens, INT32_MAX);

    p = defaults();
    p.n_logit_bias = 2;
    expect(dsv2_sample(&b.s, &p, &token, NULL), DSV2_ERR_INVALID, "logit_bias is NULL, but n_logit_bias is 2");
    p.logit_bias = bias;
    must(dsv2_sample(&b.s, &p, &token, NULL));
    p.logit_bias_size = 4;
    expect(dsv2_sample(&b.s, &p, &token, NULL), DSV2_ERR_INVALID, "logit_bias_size: 4");
    p.logit_bias_size = sizeof *bias;
    bias[1].token = V;
    expect(dsv2_sample(&b.s, &p, &token, NULL), DSV2_ERR_INVALID, "logit_bias[1].token: 64 is not in 0..63");
    bias[1].token = -1;
    expect(dsv2_sample(&b.s, &p, &token, NULL), DSV2_ERR_INVALID, "logit_bias[1].token: -1 is not in 0..63");
    bias[1] = (dsv2_logit_bias){4, NAN};
    expect(dsv2_sample(&b.s, &p, &token, NULL), DSV2_ERR_INVALID, "logit_bias[1].bias: nan");
    bias[1].bias = -INFINITY; /* clamped like any other */
    must(dsv2_sample(&b.s, &p, &token, NULL));

    p = defaults();
    p.n_stop_tokens = 2;
    expect(dsv2_sample(&b.s, &p, &token, NULL), DSV2_ERR_INVALID, "stop_tokens is NULL, but n_stop_tokens is 2");
    p.stop_tokens = bad_stop;
    expect(dsv2_sample(&b.s, &p, &token, NULL), DSV2_ERR_INVALID, "stop_tokens[1]: 64 is not in 0..63");
}

/* Entries of the bias list may be larger than this header's, as a newer one's would be. */
static void wide_elements(void **state)
{
    struct { dsv2_logit_bias b; char more[11]; } wide[3];
    struct bench b;
    dsv2_sample_params p = defaults();
    int32_t token;

    memset(wide, 0x55, sizeof wide);
    bench_init(&b);
    wide[0].b = (dsv2_logit_bias){5, 1};
    wide[1].b = (dsv2_logit_bias){6, 2};
    wide[2].b = (dsv2_logit_bias){7, 1.5f};
    p.temperature = 0;
    p.logit_bias = &wide[0].b;
    p.n_logit_bias = 3;
    p.logit_bias_size = sizeof *wide;
    must(dsv2_sample(&b.s, &p, &token, NULL));
    assert_int_equal(token, 6);
}

static void not_numbers(void **state)
{
    const float bad[] = {NAN, INFINITY};
    struct bench b;
    dsv2_sample_params p = defaults();
    int32_t token = -7;

    for (int greedy = 0; greedy < 2; greedy++)
        for (int i = 0; i < 2; i++)
            for (int at = 0; at < V; at += 21) {
                bench_init(&b);
                b.logits[at] = bad[i];
                p.temperature = (float)!greedy;
                expect(dsv2_sample(&b.s, &p, &token, NULL), DSV2_ERR_NUMERIC, i ? ": inf" : "nan");
            }
    bench_init(&b);
    for (int i = 0; i < V; i++)
        b.logits[i] = -INFINITY;
    expect(dsv2_sample(&b.s, &p, &token, NULL), DSV2_ERR_NUMERIC, "none is left");

    /* Every token masked: eos alone had a finite logit. */
    b.logits[1] = 2;
    b.model.generation.n_eos = 1;
    b.model.generation.eos_token_id[0] = 1;
    must(dsv2_sample(&b.s, &p, &token, NULL));
    assert_int_equal(token, 1);
    token = -7;
    p.min_tokens = 1;
    expect(dsv2_sample(&b.s, &p, &token, NULL), DSV2_ERR_NUMERIC, "none is left");
    assert_int_equal(token, -7);

    /* A penalty that blows up is said, not drawn from. */
    bench_init(&b);
    b.logits[3] = 1e30f;
    b.tokens[0] = 3;
    b.s.pos = b.s.n_prompt = 1;
    p = defaults();
    p.repetition_penalty = 1e-30f;
    expect(dsv2_sample(&b.s, &p, &token, NULL), DSV2_ERR_NUMERIC, "[3]: inf");
}

static int32_t edit_logits(void *user, float *logits, size_t n)
{
    float *seen = user;

    assert_int_equal(n, V);
    memcpy(seen, logits, V * sizeof *seen);
    for (int i = 0; i < V; i++)
        logits[i] = i == 33 ? 1 : -INFINITY;
    return 0;
}

static int32_t refuse(void *user, float *logits, size_t n)
{
    return 1;
}

static int32_t put_nan(void *user, float *logits, size_t n)
{
    logits[*(int *)user] = NAN;
    return 0;
}

static void callback(void **state)
{
    struct bench b;
    dsv2_sample_params p = defaults();
    dsv2_logit_bias bias = {2, 3};
    float seen[V], before[V], logprob;
    int32_t token;
    int at = 63;

    bench_init(&b);
    for (int i = 0; i < V; i++)
        b.logits[i] = (float)(i % 11);
    memcpy(before, b.logits, sizeof before);
    b.tokens[0] = 4;
    b.s.pos = 1;
    p.logit_bias = &bias;
    p.n_logit_bias = 1;
    p.presence_penalty = 1.5f;
    p.temperature = 0.5f; /* not yet in what the callback sees */
    p.callback = edit_logits;
    p.callback_user = seen;
    must(dsv2_sample(&b.s, &p, &token, &logprob));
    assert_int_equal(token, 33);
    for (int i = 0; i < V; i++)
        assert_true(seen[i] == before[i] + (i == 2 ? 3 : 0) - (i == 4 ? 1.5f : 0));
    assert_memory_equal(b.logits, before, sizeof before); /* a copy was edited */
    p.callback = refuse;
    expect(dsv2_sample(&b.s, &p, &token, NULL), DSV2_ERR_CANCELLED, "callback");
    p.callback = put_nan;
    p.callback_user = &at;
    expect(dsv2_sample(&b.s, &p, &token, NULL), DSV2_ERR_NUMERIC, "nan");
}

/* Ids without a token are never chosen, and their mass counts nowhere. */
static void padding(void **state)
{
    static float logits[160];
    struct dsv2i_tokenizer *t;
    struct bench b;
    dsv2_sample_params p = defaults();
    int32_t token;
    dsv2_logit_bias bias = {120, 100};

    must(dsv2i_tokenizer_parse(&dsv2i_heap, "tokenizer.json", tiny_tokenizer(), strlen(tiny_tokenizer()), "tokenizer_config.json",
                               tiny_tokenizer_config, strlen(tiny_tokenizer_config), 160, 97, &t));
    bench_init(&b);
    b.model.config.shape.vocab_size = 160;
    b.model.tokenizer = t;
    b.s.logits = logits;
    for (int i = 0; i < 160; i++)
        logits[i] = i < 99 ? (float)(i % 3) : 50;
    p.logit_bias = &bias;
    p.n_logit_bias = 1;
    for (int i = 0; i < 200; i++) {
        p.temperature = (float)(i % 2);
        p.top_k = i % 5;
        p.min_p = 0.9f;
        p.seed = (uint64_t)i;
        must(dsv2_sample(&b.s, &p, &token, NULL));
        assert_true(token < 99 && token % 3 == 2);
    }
    dsv2i_tokenizer_free(t);
}

/* Defaults are the model's, and NULL asks for them. */
static void model_defaults(void **state)
{
    struct bench b;
    dsv2_sample_params p;
    int32_t token;

    bench_init(&b);
    b.model.generation = (struct dsv2i_generation){.do_sample = 1, .temperature = 0.3, .top_p = 0.95, .min_p = 0.1, .top_k = 40,
                                                   .repetition_penalty = 1.2, .min_tokens = 3, .n_eos = 1, .eos_token_id = {1}};
    dsv2_sample_params_init(&p, sizeof p, &b.model);
    assert_true(p.temperature == 0.3f && p.top_p == 0.95f && p.min_p == 0.1f && p.repetition_penalty == 1.2f);
    assert_int_equal(p.top_k, 40);
    assert_int_equal(p.min_tokens, 3);
    assert_int_equal(p.seed, 0);
    b.model.generation.do_sample = 0;
    dsv2_sample_params_init(&p, sizeof p, &b.model);
    assert_true(p.temperature == 0);
    for (int i = 0; i < V; i++)
        b.logits[i] = (float)-i;
    b.logits[1] = 7; /* eos, masked by the default min_tokens */
    must(dsv2_sample(&b.s, NULL, &token, NULL));
    assert_int_equal(token, 0);
    b.s.pos = 3;
    must(dsv2_sample(&b.s, NULL, &token, NULL)); /* the three were token 0: repeated, 0 / 1.2 = 0 */
    assert_int_equal(token, 1);

    p = defaults();
    assert_true(p.temperature == 1 && p.top_p == 1 && p.min_p == 0 && p.repetition_penalty == 1 && p.top_k <= 0);
    assert_true(p.presence_penalty == 0 && p.frequency_penalty == 0 && p.min_tokens == 0 && p.n_logit_bias == 0);
    assert_int_equal(p.logit_bias_size, sizeof(dsv2_logit_bias));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(huggingface), cmocka_unit_test(random_filters), cmocka_unit_test(ties), cmocka_unit_test(low_temperatures), cmocka_unit_test(extremes),
        cmocka_unit_test(philox_vectors), cmocka_unit_test(distribution), cmocka_unit_test(uniform), cmocka_unit_test(rare),
        cmocka_unit_test(same_everywhere), cmocka_unit_test(ranges), cmocka_unit_test(wide_elements),
        cmocka_unit_test(not_numbers), cmocka_unit_test(callback), cmocka_unit_test(padding), cmocka_unit_test(model_defaults),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
