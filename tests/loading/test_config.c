/* config.json and generation_config.json: the releases' facts, defaults, spellings.  What is refused is in test_broken.c.
 * SPDX-License-Identifier: MIT */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "checkpoint.h"
#include "config.h"

static char *read_config(const char *name, size_t *n)
{
    static char text[8192];
    char path[600];
    FILE *f;

    snprintf(path, sizeof path, "%s/tests/loading/configs/%s.json", TEST_ROOT, name);
    f = fopen(path, "rb");
    assert_non_null(f);
    *n = fread(text, 1, sizeof text - 1, f);
    text[*n] = 0;
    fclose(f);
    return text;
}

static void parse_release(const char *name, struct dsv2i_config *c)
{
    size_t n;
    const char *text = read_config(name, &n);

    if (dsv2i_config_parse("config.json", text, n, c) != DSV2_OK)
        fail_msg("%s: %s", name, dsv2_last_error());
}

static void assert_close(double got, double wanted, double relative)
{
    if (!(fabs(got - wanted) <= relative * fabs(wanted)))
        fail_msg("%.17g, wanted %.17g", got, wanted);
}

/* Figures of the spec: 1.4, 1.5, 3.5. */
static void test_releases(void **state)
{
    static const struct {
        const char *name;
        uint64_t parameters, active, kv;
        double scale;
    } releases[] = {
        {"v2", 235741434880, 20851512320, 34560, 0.1147213867929261},
        {"v2-first-commit", 235741434880, 20851512320, 34560, 0.1147213867929261},
        {"v2.5", 235741434880, 20851512320, 34560, 0.1352337788608801},
        {"v2-lite", 15706484224, 2451435008, 15552, 0.1147213867929261},
        {"coder-v2-lite", 15706484224, 2451435008, 15552, 0.1147213867929261},
        {"v2-lite-transformers-v5", 15706484224, 2451435008, 15552, 0.1147213867929261},
        {"esft-lite", 15706484224, 2451435008, 15552, 0.0721687836487032},
    };

    (void)state;
    for (size_t i = 0; i < sizeof releases / sizeof *releases; i++) {
        struct dsv2i_config c;
        uint64_t total, active;

        parse_release(releases[i].name, &c);
        dsv2i_config_parameters(&c, &total, &active);
        assert_true(total == releases[i].parameters);
        assert_true(active == releases[i].active);
        assert_true((uint64_t)(c.shape.kv_lora_rank + c.shape.qk_rope_head_dim) * (uint64_t)c.shape.num_hidden_layers == releases[i].kv);
        assert_close(c.softmax_scale, releases[i].scale, 4e-16);
        assert_true(c.shape.softmax_scale == (float)releases[i].scale);
        assert_true(c.shape.rope_multiplier == 1.0f); /* exactly */
        assert_int_equal(c.bos_token_id, 100000);
        assert_int_equal(c.n_eos, 1);
        assert_int_equal(c.eos_token_id[0], 100001);
        assert_int_equal(c.dtype, DSV2I_BF16);
    }
}

static void test_shapes(void **state)
{
    struct dsv2i_config c;

    (void)state;
    parse_release("v2", &c);
    assert_int_equal(c.shape.q_lora_rank, 1536);
    assert_int_equal(c.route.n_group, 8);
    assert_int_equal(c.route.topk_group, 3);
    assert_int_equal(c.route.top_k, 6);
    assert_true(c.route.routed_scaling_factor == 16.0f);
    assert_int_equal(c.route.norm_topk_prob, 0);
    assert_false(dsv2i_config_is_moe(&c, 0));
    assert_true(dsv2i_config_is_moe(&c, 1));
    assert_true(dsv2i_config_is_moe(&c, 59));
    parse_release("v2-lite", &c);
    assert_int_equal(c.shape.q_lora_rank, 0); /* null is not the default of 1536 */
    assert_int_equal(c.route.n_group, 1);
    assert_int_equal(c.shape.num_hidden_layers, 27);
    parse_release("v2-lite-transformers-v5", &c);
    assert_int_equal(c.shape.qk_nope_head_dim, 128); /* head_dim 64 is no attention width */
    assert_true(c.rope_theta == 10000);
}

static void test_frequencies(void **state)
{
    static const double f[32] = {
        1, 7.498942093e-1, 5.623413252e-1, 4.216965034e-1, 3.162277660e-1, 2.371373706e-1, 1.778279410e-1, 1.333521432e-1,
        1e-1, 7.498942093e-2, 5.623413252e-2, 3.900692657e-2, 2.687936011e-2, 1.837814622e-2, 1.244795587e-2, 8.334508951e-3,
        5.5e-3, 3.561997494e-3, 2.249365301e-3, 1.370513636e-3, 7.905694150e-4, 4.149903985e-4, 1.778279410e-4, 3.333803580e-5,
        2.5e-5, 1.874735523e-5, 1.405853313e-5, 1.054241259e-5, 7.905694150e-6, 5.928434264e-6, 4.445698525e-6, 3.333803580e-6,
    };
    struct dsv2i_config c, copy;

    (void)state;
    parse_release("v2", &c);
    for (int i = 0; i < 32; i++)
        assert_close(c.inv_freq[i], f[i], 5e-10); /* the table has ten digits */
    assert_ptr_equal(c.shape.inv_freq, c.inv_freq);
    dsv2i_config_copy(&copy, &c);
    assert_ptr_equal(copy.shape.inv_freq, copy.inv_freq);
    assert_memory_equal(copy.inv_freq, c.inv_freq, sizeof c.inv_freq);
    parse_release("esft-lite", &c);
    for (int i = 0; i < 32; i++)
        assert_close(c.inv_freq[i], pow(10000, -2.0 * i / 64), 1e-15);
}

/* Other generations get an error that says what they are. */
static void test_relatives(void **state)
{
    struct dsv2i_config c;
    size_t n;
    const char *text;

    (void)state;
    text = read_config("deepseek-moe-16b", &n);
    assert_int_equal(dsv2i_config_parse("config.json", text, n, &c), DSV2_ERR_UNSUPPORTED);
    assert_non_null(strstr(dsv2_last_error(), "first DeepSeek generation"));
    text = read_config("v3", &n);
    assert_int_equal(dsv2i_config_parse("config.json", text, n, &c), DSV2_ERR_UNSUPPORTED);
    assert_non_null(strstr(dsv2_last_error(), "deepseek_v3"));
}

/* The config of model A with up to three keys changed. */
static void parse_changed(struct dsv2i_config *c, const char *k1, const char *v1, const char *k2, const char *v2, const char *k3,
                          const char *v3)
{
    const char *const pairs[3][2] = {{k1, v1}, {k2, v2}, {k3, v3}};
    struct ck ck;
    struct ck_files f;
    struct ck_file *file;

    ck_init(&ck, 'A');
    for (int i = 0; i < 3; i++) {
        if (pairs[i][0])
            ck_set(&ck, pairs[i][0], pairs[i][1]);
    }
    ck_build(&ck, &f);
    file = ck_file(&f, "config.json");
    if (dsv2i_config_parse("config.json", (const char *)file->data, file->size, c) != DSV2_OK)
        fail_msg("%s = %s: %s", k1, v1 ? v1 : "(absent)", dsv2_last_error());
    ck_files_free(&f);
    ck_free(&ck);
}

static void test_defaults(void **state)
{
    static const char minimal[] = "{\"model_type\": \"deepseek_v2\"}";
    struct dsv2i_config c;

    (void)state;
    assert_int_equal(dsv2i_config_parse("config.json", minimal, sizeof minimal - 1, &c), DSV2_OK);
    assert_int_equal(c.shape.vocab_size, 102400);
    assert_int_equal(c.shape.hidden_size, 4096);
    assert_int_equal(c.shape.num_hidden_layers, 30);
    assert_int_equal(c.shape.intermediate_size, 11008);
    assert_int_equal(c.shape.moe_intermediate_size, 1407);
    assert_int_equal(c.shape.num_attention_heads, 32);
    assert_int_equal(c.shape.n_routed_experts, 0);
    assert_int_equal(c.shape.n_shared_experts, 0);
    assert_int_equal(c.shape.q_lora_rank, 1536);
    assert_int_equal(c.shape.kv_lora_rank, 512);
    assert_int_equal(c.shape.qk_rope_head_dim, 64);
    assert_int_equal(c.shape.qk_nope_head_dim, 128);
    assert_int_equal(c.shape.v_head_dim, 128);
    assert_int_equal(c.moe_layer_freq, 1);
    assert_int_equal(c.first_k_dense_replace, 0);
    assert_int_equal(c.max_position_embeddings, 2048);
    assert_true(c.rms_norm_eps == 1e-6 && c.rope_theta == 10000);
    assert_int_equal(c.bos_token_id, 100000);
    assert_int_equal(c.eos_token_id[0], 100001);
    assert_int_equal(c.tie_word_embeddings, 0);
    assert_false(dsv2i_config_is_moe(&c, 5));
    assert_int_equal(c.dtype, 0);
}

static void test_nulls_and_absent(void **state)
{
    struct dsv2i_config c;

    (void)state;
    parse_changed(&c, "q_lora_rank", NULL, NULL, NULL, NULL, NULL);
    assert_int_equal(c.shape.q_lora_rank, 1536);
    parse_changed(&c, "q_lora_rank", "null", "bos_token_id", "null", "eos_token_id", "null");
    assert_int_equal(c.shape.q_lora_rank, 0);
    assert_int_equal(c.bos_token_id, -1);
    assert_int_equal(c.n_eos, 0);
    parse_changed(&c, "eos_token_id", "[7, 3]", "n_shared_experts", "null", "num_key_value_heads", "null");
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos_token_id[0], 7);
    assert_int_equal(c.eos_token_id[1], 3);
    assert_int_equal(c.shape.n_shared_experts, 0);
    parse_changed(&c, "n_shared_experts", "0", "torch_dtype", "\"float16\"", "num_key_value_heads", NULL);
    assert_int_equal(c.shape.n_shared_experts, 0);
    assert_int_equal(c.dtype, DSV2I_F16);
    parse_changed(&c, "torch_dtype", NULL, "dtype", "\"float32\"", "architectures", NULL);
    assert_int_equal(c.dtype, DSV2I_F32);
    parse_changed(&c, "n_routed_experts", "null", "num_experts_per_tok", "null", "topk_method", "null");
    assert_int_equal(c.shape.n_routed_experts, 0);
    assert_false(dsv2i_config_is_moe(&c, 2));
    parse_changed(&c, "n_routed_experts", "null", "moe_intermediate_size", "null", "topk_method", "null"); /* then nobody asks for it */
    assert_int_equal(c.shape.moe_intermediate_size, 0);
}

static void test_routing(void **state)
{
    struct dsv2i_config c;

    (void)state;
    parse_changed(&c, NULL, NULL, NULL, NULL, NULL, NULL);
    assert_int_equal(c.route.n_group, 4);
    assert_int_equal(c.route.topk_group, 2);
    assert_true(c.route.routed_scaling_factor == 2.5f);
    /* greedy takes no notice of groups */
    parse_changed(&c, "topk_method", "\"greedy\"", "n_group", "3", "topk_group", "null");
    assert_int_equal(c.route.n_group, 1);
    assert_int_equal(c.route.topk_group, 1);
    assert_int_equal(c.n_group, 3);
    /* without a method, no groups mean greedy */
    parse_changed(&c, "topk_method", NULL, "n_group", "1", "topk_group", "1");
    assert_int_equal(c.route.n_group, 1);
    parse_changed(&c, "topk_method", "\"gready\"", "n_group", "null", "topk_group", NULL);
    assert_int_equal(c.route.n_group, 1);
    parse_changed(&c, "norm_topk_prob", "true", "moe_layer_freq", "2", "first_k_dense_replace", "0");
    assert_int_equal(c.route.norm_topk_prob, 1);
    assert_true(dsv2i_config_is_moe(&c, 0));
    assert_false(dsv2i_config_is_moe(&c, 1));
    assert_true(dsv2i_config_is_moe(&c, 2));
    parse_changed(&c, "routed_scaling_factor", "-0.5", "moe_layer_freq", "4", "first_k_dense_replace", "3");
    assert_true(c.route.routed_scaling_factor == -0.5f);
    assert_false(dsv2i_config_is_moe(&c, 2));
}

static void test_rope(void **state)
{
    struct dsv2i_config c;

    (void)state;
    parse_changed(&c, NULL, NULL, NULL, NULL, NULL, NULL);
    assert_close(c.softmax_scale, 0.5026839309980871, 4e-16);
    /* mscale absent is 1, mscale_all_dim absent is 0: all of the gain goes to cos and sin, none to the scale */
    parse_changed(&c, "rope_scaling.mscale", NULL, "rope_scaling.mscale_all_dim", NULL, NULL, NULL);
    assert_close(c.softmax_scale, 0.31622776601683794, 4e-16);
    assert_close(c.shape.rope_multiplier, 1.3688879454, 1e-7);
    parse_changed(&c, "rope_scaling.mscale", "1", NULL, NULL, NULL, NULL);
    assert_close(c.shape.rope_multiplier, 1.3688879454 / 1.2608037774, 1e-7);
    parse_changed(&c, "rope_scaling.factor", "1", NULL, NULL, NULL, NULL);
    assert_close(c.softmax_scale, 0.31622776601683794, 4e-16);
    assert_true(c.inv_freq[0] == 1 && fabs(c.inv_freq[1] - 0.01) < 1e-17);
    /* beta and original length absent are 32, 1 and 4096 */
    parse_changed(&c, "rope_scaling.beta_fast", NULL, "rope_scaling.beta_slow", NULL, "rope_scaling.original_max_position_embeddings",
                  NULL);
    assert_close(c.inv_freq[1], 0.01 * 0.5 / 40 + 0.01 * 0.5, 1e-15); /* low 0, high 2: half way */
    parse_changed(&c, "rope_scaling.type", NULL, "rope_scaling.rope_type", "\"yarn\"", NULL, NULL);
    assert_close(c.softmax_scale, 0.5026839309980871, 4e-16);
    /* low = high = 0: the ramp becomes a step behind index 0 */
    parse_changed(&c, "rope_scaling.original_max_position_embeddings", "1", NULL, NULL, NULL, NULL);
    assert_true(isfinite(c.inv_freq[1]));
    parse_changed(&c, "rope_theta", "1000000.0", "qk_rope_head_dim", "2", NULL, NULL);
    assert_true(c.rope_theta == 1e6 && c.inv_freq[0] > 0);
}

static void test_rope_parameters(void **state)
{
    static const char yarn[] = "{\"rope_theta\": 10000, \"rope_type\": \"yarn\", \"factor\": 40, \"mscale\": 0.707, "
                               "\"mscale_all_dim\": 0.707, \"original_max_position_embeddings\": 4096}";
    struct dsv2i_config old, both, new;

    (void)state;
    parse_changed(&old, NULL, NULL, NULL, NULL, NULL, NULL);
    parse_changed(&both, "rope_parameters", yarn, NULL, NULL, NULL, NULL);
    assert_memory_equal(both.inv_freq, old.inv_freq, sizeof old.inv_freq);
    assert_true(both.softmax_scale == old.softmax_scale);
    parse_release("v2-lite", &old);
    parse_release("v2-lite-transformers-v5", &new);
    assert_memory_equal(new.inv_freq, old.inv_freq, sizeof old.inv_freq);
    assert_true(new.softmax_scale == old.softmax_scale);
    assert_memory_equal(&new.route, &old.route, sizeof old.route);
}

/* ---- generation_config.json */

static void parse_generation(const char *text, struct dsv2i_generation *g)
{
    struct dsv2i_config c;

    parse_release("v2", &c);
    if (dsv2i_generation_parse("generation_config.json", text, strlen(text), &c, g) != DSV2_OK)
        fail_msg("%s: %s", text, dsv2_last_error());
}

static void assert_same_generation(const struct dsv2i_generation *a, const struct dsv2i_generation *b)
{
    assert_int_equal(a->do_sample, b->do_sample);
    assert_true(a->temperature == b->temperature && a->top_p == b->top_p && a->min_p == b->min_p);
    assert_true(a->repetition_penalty == b->repetition_penalty);
    assert_int_equal(a->top_k, b->top_k);
    assert_int_equal(a->min_tokens, b->min_tokens);
    assert_int_equal(a->n_eos, b->n_eos);
    assert_memory_equal(a->eos_token_id, b->eos_token_id, sizeof a->eos_token_id);
}

static void test_generation(void **state)
{
    struct dsv2i_generation g, absent;
    struct dsv2i_config c;

    (void)state;
    parse_generation("{\"_from_model_config\": true, \"bos_token_id\": 100000, \"eos_token_id\": 100001, \"do_sample\": true, "
                     "\"temperature\": 0.3, \"top_p\": 0.95, \"transformers_version\": \"4.39.3\"}", &g);
    assert_int_equal(g.do_sample, 1);
    assert_true(g.temperature == 0.3 && g.top_p == 0.95 && g.min_p == 0 && g.repetition_penalty == 1);
    assert_int_equal(g.top_k, 0); /* not HF's hidden 50 */
    assert_int_equal(g.n_eos, 1);
    assert_int_equal(g.eos_token_id[0], 100001);
    parse_generation("{\"eos_token_id\": [100001, 100008], \"do_sample\": false, \"top_k\": 20, \"min_p\": 0.1, "
                     "\"repetition_penalty\": 1.1, \"min_new_tokens\": 3}", &g);
    assert_int_equal(g.do_sample, 0);
    assert_int_equal(g.n_eos, 2);
    assert_int_equal(g.eos_token_id[1], 100008);
    assert_int_equal(g.top_k, 20);
    assert_int_equal(g.min_tokens, 3);
    assert_true(g.min_p == 0.1 && g.repetition_penalty == 1.1);
    /* nulls and -1 say nothing */
    parse_release("v2", &c);
    dsv2i_generation_default(&c, &absent);
    parse_generation("{\"do_sample\": null, \"temperature\": null, \"top_p\": null, \"top_k\": null, \"eos_token_id\": null, "
                     "\"min_new_tokens\": null, \"min_p\": null, \"repetition_penalty\": null}", &g);
    assert_same_generation(&g, &absent);
    parse_generation("{\"top_k\": -1}", &g);
    assert_same_generation(&g, &absent);
    assert_int_equal(absent.do_sample, 0);
    assert_true(absent.temperature == 1 && absent.top_p == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_releases), cmocka_unit_test(test_shapes), cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_relatives), cmocka_unit_test(test_defaults), cmocka_unit_test(test_nulls_and_absent),
        cmocka_unit_test(test_routing), cmocka_unit_test(test_rope), cmocka_unit_test(test_rope_parameters),
        cmocka_unit_test(test_generation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
