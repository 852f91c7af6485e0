/* The model against float64 and Hugging Face Transformers on the checkpoints of tests/golden.
 * SPDX-License-Identifier: MIT */
#include "api_test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

/* Those of fp8 weights are here, too: the truth has the same weights. */
static const char *const f32_models[] = {"spec-a", "spec-b", "spec-c", "v2", "v25", "lite", "null-rope", "ties", "rare", "v5",
    "fp8-tensor", "fp8-channel", "fp8-block",
#ifndef SANITIZED /* minutes there, for code that the others run, too */
                                         "long"
#endif
};
static const char *const bf16_models[] = {"v2-bf16", "lite-bf16", "production-heads", "v5-fused-bf16"};
static const char *const f16_models[] = {"lite-f16"};

#define COUNT(array) (sizeof array / sizeof *array)

/* Run for every instruction set of this machine up to the one asked for. */
typedef void (*level_fn)(dsv2_context *ctx, const char *level_name);
static void each_level(level_fn run)
{
    static const char *const names[] = {"reference", "AVX2", "AVX-512"};
    int32_t highest = context_params(1).cpu_level;

    for (int32_t level = 0; level <= 2; level++) {
        dsv2_context_params p = context_params(2);
        dsv2_context *ctx;
        dsv2_status status;

        if (highest >= 0 && level > highest)
            break;
        p.cpu_level = level;
        status = dsv2_context_create(&p, &ctx);
        if (status == DSV2_ERR_UNSUPPORTED) {
            print_message("this machine lacks %s\n", names[level]);
            break;
        }
        must(status);
        run(ctx, names[level]);
        dsv2_context_free(ctx);
    }
}

struct error {
    double max_relative, mean_kl;
};

static double log_sum_exp(const double *x, size_t n)
{
    double max = x[0], sum = 0;

    for (size_t i = 1; i < n; i++)
        max = fmax(max, x[i]);
    for (size_t i = 0; i < n; i++)
        sum += exp(x[i] - max);
    return max + log(sum);
}

/* As make_golden.py has them: max |x - truth| / max |truth| over all, and the mean over positions of KL(truth || x). */
static struct error distance(const double *x, const double *truth, size_t positions, size_t n_vocab)
{
    double diff = 0, top = 0, kl = 0;

    for (size_t p = 0; p < positions; p++) {
        const double *a = truth + p * n_vocab, *b = x + p * n_vocab;
        double la = log_sum_exp(a, n_vocab), lb = log_sum_exp(b, n_vocab);

        for (size_t i = 0; i < n_vocab; i++) {
            if (!(fabs(b[i] - a[i]) <= diff))
                diff = fabs(b[i] - a[i]); /* NaN too */
            top = fmax(top, fabs(a[i]));
            kl += exp(a[i] - la) * ((a[i] - la) - (b[i] - lb));
        }
    }
    return (struct error){diff / top, kl / (double)positions};
}

enum { WHOLE, TOKEN_BY_TOKEN };

/* Logits at the fixture's positions; WHOLE: each from one prefill up to there, as the script does. */
static double *run_model(dsv2_model *model, const struct fixture *f, int32_t kv_type, int32_t attention, int how)
{
    dsv2_session *s = open_session(model, 0, kv_type, attention, 256);
    double *out = calloc(f->n_positions * f->n_vocab, sizeof *out);
    size_t at = 0;

    assert_non_null(out);
    for (size_t i = 0; i < f->n_ids && at < f->n_positions; i++) {
        if (how == TOKEN_BY_TOKEN)
            must(dsv2_session_decode(s, f->ids[i]));
        if (f->positions[at] != (int32_t)i)
            continue;
        if (how == WHOLE) {
            must(dsv2_session_truncate(s, 0));
            must(dsv2_session_prefill(s, f->ids, i + 1));
        }
        for (size_t k = 0; k < f->n_vocab; k++)
            out[at * f->n_vocab + k] = logits_of(s)[k];
        at++;
    }
    assert_int_equal(at, f->n_positions);
    dsv2_session_free(s);
    return out;
}

/* ---- fp32 */

static void check_f32(dsv2_context *ctx, const char *level)
{
    for (size_t m = 0; m < COUNT(f32_models); m++) {
        struct fixture f;
        dsv2_model *model = open_model(ctx, f32_models[m]);
        double worst = 0;

        fixture_open(&f, f32_models[m]);
        for (int32_t attention = DSV2_ATTENTION_ABSORBED; attention <= DSV2_ATTENTION_AUTO; attention++)
            for (int how = WHOLE; how <= TOKEN_BY_TOKEN; how++) {
                double *got, error;

                if (f.n_ids > 1000 && how == TOKEN_BY_TOKEN && attention != DSV2_ATTENTION_ABSORBED)
                    continue; /* would expand millions of keys */
                got = run_model(model, &f, DSV2_KV_F32, attention, how);
                error = distance(got, f.logits, f.n_positions, f.n_vocab).max_relative;

                worst = fmax(worst, error);
                if (!(error < 1e-4))
                    fail_msg("%s, %s, attention %d, %s: relative error %g", f32_models[m], level, attention,
                             how == WHOLE ? "whole" : "token by token", error);
                if (fixture_has(&f, "hf_f32_logits") && strcmp(f32_models[m], "ties")) {
                    const float *hf = fixture_array(&f, "hf_f32_logits", "f32", f.n_positions * f.n_vocab);
                    double *wide = calloc(f.n_positions * f.n_vocab, sizeof *wide);

                    assert_non_null(wide);
                    for (size_t i = 0; i < f.n_positions * f.n_vocab; i++)
                        wide[i] = hf[i];
                    error = distance(got, wide, f.n_positions, f.n_vocab).max_relative;
                    if (!(error < 1e-4))
                        fail_msg("%s, %s: %g from Transformers in fp32", f32_models[m], level, error);
                    free(wide);
                }
                free(got);
            }
        print_message("%-10s %-9s fp32: relative error %.1e\n", f32_models[m], level, worst);
        fixture_close(&f);
        dsv2_model_free(model);
    }
}

static void f32(void **state)
{
    each_level(check_f32);
}

/* The published vectors, six decimals. */
static void published(void **state)
{
    dsv2_context *ctx = open_context(1);

    for (size_t m = 0; m < 3; m++) {
        struct fixture f;
        dsv2_model *model = open_model(ctx, f32_models[m]);
        dsv2_session *s = open_session(model, 0, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 256);
        dsv2_model_info info = {.struct_size = sizeof info};
        const double *rows;
        const cJSON *position;
        size_t row = 0, n;

        fixture_open(&f, f32_models[m]);
        n = (size_t)cJSON_GetArraySize(cJSON_GetObjectItem(f.root, "published_positions"));
        assert_true(n >= 1);
        rows = fixture_array(&f, "published_logits", "f64", n * f.n_vocab);
        cJSON_ArrayForEach(position, cJSON_GetObjectItem(f.root, "published_positions")) {
            must(dsv2_session_truncate(s, 0));
            must(dsv2_session_prefill(s, f.ids, (size_t)position->valueint + 1));
            for (size_t i = 0; i < f.n_vocab; i++, rows++)
                assert_float_equal(logits_of(s)[i], *rows, 2e-5);
            row++;
        }
        must(dsv2_model_get_info(model, &info));
        assert_float_equal(info.softmax_scale, m < 2 ? 0.5026839309980871 : 0.31622776601683794, 1e-12);
        fixture_close(&f);
        dsv2_session_free(s);
        dsv2_model_free(model);
    }
    dsv2_context_free(ctx);
}

static void softmax_scales(void **state)
{
    dsv2_context *ctx = open_context(1);

    for (size_t m = 0; m < COUNT(f32_models) + COUNT(bf16_models); m++) {
        const char *name = m < COUNT(f32_models) ? f32_models[m] : bf16_models[m - COUNT(f32_models)];
        struct fixture f;
        dsv2_model *model = open_model(ctx, name);
        dsv2_model_info info = {.struct_size = sizeof info};

        fixture_open(&f, name);
        must(dsv2_model_get_info(model, &info));
        assert_float_equal(info.softmax_scale, fixture_number(&f, "softmax_scale"), 1e-9);
        fixture_close(&f);
        dsv2_model_free(model);
    }
    dsv2_context_free(ctx);
}

/* ---- 16 bits: no worse than Transformers on the same weights */

static void check_16bit(dsv2_context *ctx, const char *level, const char *name, const char *short_name)
{
    struct fixture f;
    dsv2_model *model = open_model(ctx, name);
    char key[64];
    struct error hf;

    fixture_open(&f, name);
    snprintf(key, sizeof key, "hf_%s_max_relative_error", short_name);
    hf.max_relative = fixture_number(&f, key);
    snprintf(key, sizeof key, "hf_%s_mean_kl", short_name);
    hf.mean_kl = fixture_number(&f, key);
    for (int32_t kv_type = DSV2_KV_BF16; kv_type <= DSV2_KV_F32; kv_type++)
        for (int32_t attention = DSV2_ATTENTION_ABSORBED; attention <= DSV2_ATTENTION_EXPANDED; attention++) {
            double *got = run_model(model, &f, kv_type, attention, TOKEN_BY_TOKEN);
            struct error e = distance(got, f.logits, f.n_positions, f.n_vocab);

            print_message("%-16s %-9s %s KV, %s: error %.1e (Transformers %.1e), KL %.1e (%.1e)\n", name, level,
                          kv_type == DSV2_KV_F32 ? "fp32" : "bf16", attention ? "expanded" : "absorbed", e.max_relative,
                          hf.max_relative, e.mean_kl, hf.mean_kl);
            assert_true(e.max_relative <= hf.max_relative);
            assert_true(e.mean_kl <= hf.mean_kl);
            if (kv_type == DSV2_KV_F32) /* then only the weights are rounded, and the truth has the same weights */
                assert_true(e.max_relative < 1e-4);
            free(got);
        }
    fixture_close(&f);
    dsv2_model_free(model);
}

static void check_bf16(dsv2_context *ctx, const char *level)
{
    for (size_t m = 0; m < COUNT(bf16_models); m++)
        check_16bit(ctx, level, bf16_models[m], "bf16");
}

static void bf16(void **state)
{
    each_level(check_bf16);
}

static void check_f16(dsv2_context *ctx, const char *level)
{
    for (size_t m = 0; m < COUNT(f16_models); m++) {
        struct fixture f;
        dsv2_model *model = open_model(ctx, f16_models[m]);
        double *got;

        fixture_open(&f, f16_models[m]);
        got = run_model(model, &f, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, TOKEN_BY_TOKEN);
        assert_true(distance(got, f.logits, f.n_positions, f.n_vocab).max_relative < 1e-4);
        free(got);
        fixture_close(&f);
        dsv2_model_free(model);
    }
}

static void f16(void **state)
{
    each_level(check_f16);
}

/* fp8 weights go with every cache, e5m2 too.  Bounds are about twice what was measured, in nats. */
static void check_fp8_caches(dsv2_context *ctx, const char *level)
{
    static const double most[] = {[DSV2_KV_BF16] = 4e-5, [DSV2_KV_F32] = 1e-11, [DSV2_KV_F8_E4M3] = 8e-3, [DSV2_KV_F8_E5M2] = 7e-2,
                                  [DSV2_KV_INT8] = 5e-4, [DSV2_KV_6BIT] = 4e-2};
    struct fixture f;
    dsv2_model *model = open_model(ctx, "fp8-tensor");

    fixture_open(&f, "fp8-tensor");
    for (int32_t kv_type = 0; kv_type < (int32_t)COUNT(most); kv_type++) {
        double *got = run_model(model, &f, kv_type, DSV2_ATTENTION_ABSORBED, TOKEN_BY_TOKEN);
        struct error e = distance(got, f.logits, f.n_positions, f.n_vocab);

        print_message("fp8-tensor %s, KV type %d: KL %.1e\n", level, kv_type, e.mean_kl);
        assert_true(e.mean_kl <= most[kv_type]);
        free(got);
    }
    fixture_close(&f);
    dsv2_model_free(model);
}

static void fp8_caches(void **state)
{
    each_level(check_fp8_caches);
}

/* ---- How a prompt is cut, how many threads */

/* Logits after each of the fixture's ids, prefilled in pieces; the pieces' lengths repeat. */
static void in_pieces(dsv2_model *model, const struct fixture *f, int32_t kv_type, int32_t attention, int32_t n_batch,
                      const size_t *pieces, size_t n_pieces, float *out)
{
    dsv2_session *s = open_session(model, 0, kv_type, attention, n_batch);

    for (size_t done = 0, i = 0; done < f->n_ids; i++) {
        size_t n = pieces[i % n_pieces];

        if (n > f->n_ids - done)
            n = f->n_ids - done;
        must(dsv2_session_prefill(s, f->ids + done, n));
        done += n;
        memcpy(out + (done - 1) * f->n_vocab, logits_of(s), f->n_vocab * sizeof *out);
    }
    dsv2_session_free(s);
}

/* One at a time on one thread is the measure; every other way must give the same bits. */
static void check_cuts(const char *name, int32_t kv_type)
{
    static const size_t cuts[][3] = {{1, 1, 1}, {1000, 1000, 1000}, {7, 1, 30}, {64, 64, 64}, {63, 2, 65}, {5, 5, 128}, {2, 3, 4}};
    static const int32_t batches[] = {1, 3, 16, 64, 100, 256};
    float *one = NULL, *other = NULL;
    struct fixture f;

    fixture_open(&f, name);
    one = calloc(f.n_ids * f.n_vocab, sizeof *one);
    other = calloc(f.n_ids * f.n_vocab, sizeof *other);
    assert_true(one && other);
    for (int32_t threads = 1; threads <= 3; threads++) {
        dsv2_context *ctx = open_context(threads);
        dsv2_model *model = open_model(ctx, name);

        if (threads == 1)
            in_pieces(model, &f, kv_type, DSV2_ATTENTION_ABSORBED, 1, cuts[0], 3, one);
        for (size_t c = 0; c < COUNT(cuts); c++)
            for (size_t b = 0; b < COUNT(batches); b++) {
                memset(other, 0, f.n_ids * f.n_vocab * sizeof *other);
                in_pieces(model, &f, kv_type, DSV2_ATTENTION_ABSORBED, batches[b], cuts[c], 3, other);
                for (size_t done = 0, i = 0; done < f.n_ids; i++) {
                    done += cuts[c][i % 3];
                    if (done > f.n_ids)
                        done = f.n_ids;
                    if (memcmp(one + (done - 1) * f.n_vocab, other + (done - 1) * f.n_vocab, f.n_vocab * sizeof *one))
                        fail_msg("%s: logits at %zu differ: pieces %zu %zu %zu, n_batch %d, %d threads", name, done - 1,
                                 cuts[c][0], cuts[c][1], cuts[c][2], batches[b], threads);
                }
            }
        dsv2_model_free(model);
        dsv2_context_free(ctx);
    }
    free(one);
    free(other);
    fixture_close(&f);
}

static void cuts_f32(void **state)
{
    check_cuts("v2", DSV2_KV_F32);
    check_cuts("lite", DSV2_KV_BF16);
}

static void cuts_bf16(void **state)
{
    check_cuts("v2-bf16", DSV2_KV_BF16);
    check_cuts("production-heads", DSV2_KV_BF16);
}

static void cuts_fp8(void **state)
{
    check_cuts("fp8-tensor", DSV2_KV_BF16);
    check_cuts("fp8-channel", DSV2_KV_F32);
    check_cuts("fp8-block", DSV2_KV_BF16);
}

/* The other forms: the same bits for any number of threads, and close to the absorbed form however a prompt is cut. */
static void expanded_threads(void **state)
{
    static const size_t whole[1] = {1000}, pieces[2] = {50, 11};
    struct fixture f;

    fixture_open(&f, "v2");
    for (int32_t attention = DSV2_ATTENTION_EXPANDED; attention <= DSV2_ATTENTION_AUTO; attention++) {
        float *got[4];

        for (int k = 0; k < 4; k++) {
            dsv2_context *ctx = open_context(k < 3 ? k + 1 : 2);
            dsv2_model *model = open_model(ctx, "v2");

            got[k] = calloc(f.n_ids * f.n_vocab, sizeof(float));
            assert_non_null(got[k]);
            in_pieces(model, &f, DSV2_KV_F32, attention, 256, k < 3 ? whole : pieces, k < 3 ? 1 : 2, got[k]);
            dsv2_model_free(model);
            dsv2_context_free(ctx);
        }
        size_t last = (f.n_ids - 1) * f.n_vocab;
        assert_memory_equal(got[0] + last, got[1] + last, f.n_vocab * sizeof(float));
        assert_memory_equal(got[0] + last, got[2] + last, f.n_vocab * sizeof(float));
        for (size_t i = 0; i < f.n_vocab; i++)
            assert_float_equal(got[0][last + i], got[3][last + i], 1e-3);
        for (int k = 0; k < 4; k++)
            free(got[k]);
    }
    fixture_close(&f);
}

/* ---- Greedy continuation, wrong rules */

static void greedy(void **state)
{
    static const char *const names[] = {"v2", "v25", "lite", "null-rope", "fp8-tensor", "fp8-channel", "fp8-block"};
    dsv2_context *ctx = open_context(2);

    for (size_t m = 0; m < COUNT(names); m++) {
        struct fixture f;
        dsv2_model *model = open_model(ctx, names[m]);
        dsv2_session *s = open_session(model, 0, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 256);
        dsv2_sample_params p;
        const cJSON *id;
        int32_t token, n = 0;

        fixture_open(&f, names[m]);
        dsv2_sample_params_init(&p, sizeof p, NULL);
        p.temperature = 0;
        must(dsv2_session_prefill(s, f.ids, f.n_ids));
        cJSON_ArrayForEach(id, cJSON_GetObjectItem(f.root, "greedy_ids")) {
            must(dsv2_sample(s, &p, &token, NULL));
            assert_int_equal(token, id->valueint);
            must(dsv2_session_decode(s, token));
            n++;
        }
        assert_int_equal(n, 16);
        fixture_close(&f);
        dsv2_session_free(s);
        dsv2_model_free(model);
    }
    dsv2_context_free(ctx);
}

/* Scores are log_softmax of the right logits, in which they are computed apart from the others. */
static void scores(void **state)
{
    static const char *const names[] = {"v2", "v25", "lite", "null-rope", "fp8-tensor", "fp8-channel", "fp8-block"};
    dsv2_context *ctx = open_context(2);

    for (size_t m = 0; m < COUNT(names); m++) {
        dsv2_model *model = open_model(ctx, names[m]);
        dsv2_session *s = open_session(model, 0, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 50);
        struct fixture f;
        dsv2_token_score *got;
        int seen = 0;

        fixture_open(&f, names[m]);
        got = calloc(f.n_ids, sizeof *got);
        assert_non_null(got);
        must(dsv2_session_score(s, f.ids, f.n_ids, got, sizeof *got));
        for (size_t p = 0; p < f.n_positions; p++) {
            const double *truth = f.logits + p * f.n_vocab;
            size_t next = (size_t)f.positions[p] + 1;

            if (next == f.n_ids)
                continue;
            assert_float_equal(got[next].logprob, truth[f.ids[next]] - log_sum_exp(truth, f.n_vocab), 1e-3);
            seen++;
        }
        assert_true(seen >= 10);
        free(got);
        fixture_close(&f);
        dsv2_session_free(s);
        dsv2_model_free(model);
    }
    dsv2_context_free(ctx);
}

/* Logits as other engines' mistakes would have them are far from these. */
static void wrong_rules(void **state)
{
    static const char *const names[] = {"v2", "v25", "ties", "null-rope"};
    dsv2_context *ctx = open_context(2);
    int rules = 0;

    for (size_t m = 0; m < COUNT(names); m++) {
        struct fixture f;
        dsv2_model *model = open_model(ctx, names[m]);
        double *got;
        const cJSON *wrong;

        fixture_open(&f, names[m]);
        got = run_model(model, &f, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, WHOLE);
        cJSON_ArrayForEach(wrong, cJSON_GetObjectItem(f.root, "wrong")) {
            double known = cJSON_GetObjectItem(wrong, "max_relative_distance")->valuedouble, seen;
            char array[128];

            snprintf(array, sizeof array, "wrong_%s", wrong->string);
            seen = distance(got, fixture_array(&f, array, "f64", f.n_positions * f.n_vocab), f.n_positions, f.n_vocab).max_relative;
            if (!(seen > known / 2))
                fail_msg("%s: only %g from the rule \"%s\", which is %g from the right one", names[m], seen, wrong->string, known);
            rules++;
        }
        free(got);
        fixture_close(&f);
        dsv2_model_free(model);
    }
    assert_true(rules >= 12);
    dsv2_context_free(ctx);
}

/* The same weights in other spellings and files compute the same. */
static void spellings(void **state)
{
    dsv2_context *ctx = open_context(2);
    dsv2_model *a = open_model(ctx, "v2"), *b = open_model(ctx, "v5"), *c;
    dsv2_model_params p;
    struct fixture f;
    double *x, *y, *z;

    fixture_open(&f, "v2");
    dsv2_model_params_init(&p, sizeof p);
    p.load_mode = DSV2_LOAD_READ;
    must(dsv2_model_load(ctx, golden("v2"), &p, &c));
    x = run_model(a, &f, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, WHOLE);
    y = run_model(b, &f, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, WHOLE);
    z = run_model(c, &f, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, WHOLE);
    assert_memory_equal(x, y, f.n_positions * f.n_vocab * sizeof *x);
    assert_memory_equal(x, z, f.n_positions * f.n_vocab * sizeof *x);
    free(x);
    free(y);
    free(z);
    fixture_close(&f);
    dsv2_model_free(a);
    dsv2_model_free(b);
    dsv2_model_free(c);
    dsv2_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32), cmocka_unit_test(published), cmocka_unit_test(softmax_scales), cmocka_unit_test(bf16),
        cmocka_unit_test(f16), cmocka_unit_test(cuts_f32), cmocka_unit_test(cuts_bf16), cmocka_unit_test(cuts_fp8), cmocka_unit_test(fp8_caches),
        cmocka_unit_test(expanded_threads),
        cmocka_unit_test(greedy), cmocka_unit_test(scores), cmocka_unit_test(wrong_rules), cmocka_unit_test(spellings),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
