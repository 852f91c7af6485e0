/* Broken checkpoints: each must be refused with the right status and a message that names file, field and value, through every way
 * of loading, with nothing left in memory.
 * SPDX-License-Identifier: MIT */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "checkpoint.h"

static struct ck_heap heap;
static dsv2_context *ctx;
static int n_cases;

/* The needles (strings up to a NULL) must all be in the message. */
static void refuse(struct ck_files *f, const char *what, dsv2_status status, ...)
{
    long alive = heap.alive;

    n_cases++;
    for (int way = 0; way < CK_WAYS; way++) {
        dsv2_model *model = (dsv2_model *)(void *)f;
        dsv2_status got = ck_load(ctx, f, (enum ck_way)way, &model);
        const char *needle;
        va_list needles;

        if (got != status)
            fail_msg("%s, way %d: %s (%s), wanted %s", what, way, dsv2_status_name(got), got ? dsv2_last_error() : "",
                     dsv2_status_name(status));
        assert_null(model);
        va_start(needles, status);
        while ((needle = va_arg(needles, const char *))) {
            if (!strstr(dsv2_last_error(), needle))
                fail_msg("%s, way %d: \"%s\" has no \"%s\"", what, way, dsv2_last_error(), needle);
        }
        va_end(needles);
        if (heap.alive != alive || ck_held() != 0)
            fail_msg("%s, way %d: %ld bytes and %d files not released", what, way, heap.alive - alive, ck_held());
    }
}

/* ---- config.json: every key */

static void refuse_key(const char *key, const char *value, const char *shown, dsv2_status status)
{
    struct ck c;
    struct ck_files f;
    char what[700];

    ck_init(&c, 'A');
    if (strncmp(key, "rope_parameters.", 16) == 0) {
        ck_set(&c, "rope_scaling", NULL);
        ck_set(&c, "rope_theta", NULL);
        ck_set(&c, "rope_parameters.rope_theta", "10000");
        ck_set(&c, "rope_parameters.rope_type", "\"yarn\"");
        ck_set(&c, "rope_parameters.factor", "40");
    }
    ck_set(&c, key, value);
    ck_build(&c, &f);
    snprintf(what, sizeof what, "%s = %s", key, value ? value : "(absent)");
    refuse(&f, what, status, "config.json: ", key, shown, NULL);
    ck_files_free(&f);
    ck_free(&c);
}

static void test_integers(void **state)
{
    static const struct {
        const char *key;
        int null_is_legal;
        long lo, hi;
    } keys[] = {
        {"vocab_size", 0, 1, 1 << 24}, {"hidden_size", 0, 1, 1 << 20}, {"num_hidden_layers", 0, 1, 4096},
        {"num_attention_heads", 0, 1, 8192}, {"num_key_value_heads", 1, 1, 8192}, {"q_lora_rank", 1, 1, 1 << 20},
        {"kv_lora_rank", 0, 1, 1 << 20}, {"qk_nope_head_dim", 0, 1, 1024}, {"qk_rope_head_dim", 0, 1, 1024},
        {"v_head_dim", 0, 1, 1024}, {"intermediate_size", 0, 1, 1 << 20}, {"moe_intermediate_size", 0, 1, 1 << 20},
        {"n_routed_experts", 1, 1, 4096}, {"n_shared_experts", 1, 0, 256}, {"num_experts_per_tok", 1, 1, 4096},
        {"first_k_dense_replace", 0, 0, 3}, {"moe_layer_freq", 0, 1, 4096}, {"n_group", 1, 1, 4096},
        {"topk_group", 1, 1, 4096}, {"max_position_embeddings", 0, 1, 1 << 30}, {"bos_token_id", 1, 0, 10},
        {"eos_token_id", 1, 0, 10},
    };
    static const char *const wrong[][2] = {
        {"\"7\"", "\"7\""}, {"true", "true"}, {"1.5", "1.5"}, {"{\"a\": 1}", "{...}"}, {"1e300", "1e+300"}, {"-1", "-1"},
    };
    char number[32];

    (void)state;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        for (size_t j = 0; j < sizeof wrong / sizeof *wrong; j++)
            refuse_key(keys[i].key, wrong[j][0], wrong[j][1], DSV2_ERR_FORMAT);
        if (!keys[i].null_is_legal)
            refuse_key(keys[i].key, "null", "null", DSV2_ERR_FORMAT);
        if (keys[i].lo == 1)
            refuse_key(keys[i].key, "0", "0", DSV2_ERR_FORMAT);
        snprintf(number, sizeof number, "%ld", keys[i].hi + 1);
        refuse_key(keys[i].key, number, number, DSV2_ERR_FORMAT);
    }
    refuse_key("kv_lora_rank", "[5]", "[...]", DSV2_ERR_FORMAT);
    refuse_key("eos_token_id", "[1, 11]", "11", DSV2_ERR_FORMAT);
    refuse_key("eos_token_id", "[1, \"2\"]", "\"2\"", DSV2_ERR_FORMAT);
    refuse_key("eos_token_id", "[0,1,2,3,4,5,6,7,8,9,10,0,1,2,3,4,5]", "[...]", DSV2_ERR_UNSUPPORTED);
}

static void test_other_keys(void **state)
{
    static const char *const bools[] = {"norm_topk_prob", "attention_bias", "mlp_bias", "tie_word_embeddings"};
    static const char *const numbers[] = {
        "routed_scaling_factor", "rms_norm_eps", "rope_theta", "rope_scaling.factor",
        "rope_scaling.original_max_position_embeddings", "rope_scaling.beta_fast", "rope_scaling.beta_slow",
        "rope_scaling.mscale", "rope_scaling.mscale_all_dim", "rope_parameters.factor", "rope_parameters.rope_theta",
        "rope_parameters.partial_rotary_factor",
    };
    static const char *const names[] = {
        "model_type", "topk_method", "scoring_func", "hidden_act", "torch_dtype", "dtype", "rope_scaling.type", "rope_scaling.rope_type",
        "rope_parameters.rope_type",
    };
    static const struct {
        const char *key, *value, *shown;
        dsv2_status status;
    } values[] = {
        {"model_type", "null", "null", DSV2_ERR_FORMAT},
        {"model_type", NULL, "absent", DSV2_ERR_FORMAT},
        {"model_type", "\"deepseek_v3\"", "\"deepseek_v3\"", DSV2_ERR_UNSUPPORTED},
        {"model_type", "\"llama\"", "\"llama\"", DSV2_ERR_UNSUPPORTED},
        {"architectures", "\"DeepseekV2ForCausalLM\"", "\"DeepseekV2ForCausalLM\"", DSV2_ERR_FORMAT},
        {"architectures", "[1]", "1", DSV2_ERR_FORMAT},
        {"architectures", "[]", "[]", DSV2_ERR_UNSUPPORTED},
        {"architectures", "[\"DeepseekV3ForCausalLM\"]", "\"DeepseekV3ForCausalLM\"", DSV2_ERR_UNSUPPORTED},
        {"architectures", "[\"DeepseekForCausalLM\"]", "\"DeepseekForCausalLM\"", DSV2_ERR_UNSUPPORTED},
        {"hidden_act", "\"gelu\"", "\"gelu\"", DSV2_ERR_UNSUPPORTED},
        {"hidden_act", "null", "null", DSV2_ERR_FORMAT},
        {"topk_method", "\"noaux_tc\"", "DeepSeek-V3", DSV2_ERR_UNSUPPORTED},
        {"topk_method", "\"random\"", "\"random\"", DSV2_ERR_UNSUPPORTED},
        {"topk_method", NULL, "n_group is 4", DSV2_ERR_FORMAT},
        {"topk_method", "\"gready\"", "n_group is 4", DSV2_ERR_FORMAT},
        {"scoring_func", "\"sigmoid\"", "\"sigmoid\"", DSV2_ERR_UNSUPPORTED},
        {"attention_bias", "true", "true", DSV2_ERR_UNSUPPORTED},
        {"mlp_bias", "true", "true", DSV2_ERR_UNSUPPORTED},
        {"dtype", "\"float32\"", "bfloat16", DSV2_ERR_FORMAT},
        {"quantization_config", "{}", "absent", DSV2_ERR_UNSUPPORTED},
        {"quantization_config", "{\"quant_method\": 3}", "3", DSV2_ERR_FORMAT},
        {"quantization_config", "7", "7", DSV2_ERR_FORMAT},
        {"rms_norm_eps", "0", "0", DSV2_ERR_FORMAT},
        {"rms_norm_eps", "-1e-6", "-1e-06", DSV2_ERR_FORMAT},
        {"rms_norm_eps", "1e-60", "1e-60", DSV2_ERR_FORMAT},
        {"rms_norm_eps", "2", "2", DSV2_ERR_FORMAT},
        {"routed_scaling_factor", "1e39", "1e+39", DSV2_ERR_FORMAT},
        {"rope_theta", "0", "0", DSV2_ERR_FORMAT},
        {"rope_theta", "-10000", "-10000", DSV2_ERR_FORMAT},
        {"rope_theta", "1", "1", DSV2_ERR_FORMAT},
        {"bos_token_id", NULL, "100000", DSV2_ERR_FORMAT},
        {"eos_token_id", NULL, "100001", DSV2_ERR_FORMAT},
        {"qk_rope_head_dim", "5", "5", DSV2_ERR_FORMAT},
        {"num_key_value_heads", "1", "1", DSV2_ERR_FORMAT},
        {"num_experts_per_tok", "null", "n_routed_experts is 8", DSV2_ERR_FORMAT},
        {"num_experts_per_tok", NULL, "n_routed_experts is 8", DSV2_ERR_FORMAT},
        {"num_experts_per_tok", "9", "n_routed_experts 8", DSV2_ERR_FORMAT},
        {"n_group", "3", "3", DSV2_ERR_FORMAT},
        {"n_group", "null", "null", DSV2_ERR_FORMAT},
        {"n_group", "16", "16", DSV2_ERR_FORMAT},
        {"topk_group", "5", "n_group 4", DSV2_ERR_FORMAT},
        {"topk_group", "1", "num_experts_per_tok 3", DSV2_ERR_FORMAT},
        {"topk_group", NULL, "absent", DSV2_ERR_FORMAT},
        {"rope_scaling.type", NULL, "absent", DSV2_ERR_FORMAT},
        {"rope_scaling.type", "\"linear\"", "\"linear\"", DSV2_ERR_UNSUPPORTED},
        {"rope_scaling.type", "\"dynamic\"", "\"dynamic\"", DSV2_ERR_UNSUPPORTED},
        {"rope_scaling.rope_type", "\"linear\"", "\"linear\"", DSV2_ERR_FORMAT},
        {"rope_scaling.factor", NULL, "absent", DSV2_ERR_FORMAT},
        {"rope_scaling.factor", "0.5", "0.5", DSV2_ERR_FORMAT},
        {"rope_scaling.factor", "-40", "-40", DSV2_ERR_FORMAT},
        {"rope_scaling.original_max_position_embeddings", "0", "0", DSV2_ERR_FORMAT},
        {"rope_scaling.beta_fast", "0", "0", DSV2_ERR_FORMAT},
        {"rope_scaling.beta_fast", "0.5", "beta_slow 1", DSV2_ERR_FORMAT},
        {"rope_scaling.beta_slow", "0", "0", DSV2_ERR_FORMAT},
        {"rope_scaling.mscale", "-1", "-1", DSV2_ERR_FORMAT},
        {"rope_scaling.mscale_all_dim", "-0.707", "-0.707", DSV2_ERR_FORMAT},
        {"rope_scaling.attention_factor", "1.5", "1.5", DSV2_ERR_UNSUPPORTED},
        {"rope_scaling.truncate", "false", "false", DSV2_ERR_UNSUPPORTED},
        {"rope_scaling.truncate", "0", "0", DSV2_ERR_FORMAT},
        {"rope_parameters.factor", NULL, "absent", DSV2_ERR_FORMAT},
        {"rope_parameters.rope_type", "\"llama3\"", "\"llama3\"", DSV2_ERR_UNSUPPORTED},
        {"rope_parameters.rope_theta", "0.5", "0.5", DSV2_ERR_FORMAT},
        {"rope_parameters.partial_rotary_factor", "0.5", "0.5", DSV2_ERR_UNSUPPORTED},
    };

    (void)state;
    for (size_t i = 0; i < sizeof bools / sizeof *bools; i++) {
        refuse_key(bools[i], "1", "1", DSV2_ERR_FORMAT);
        refuse_key(bools[i], "\"false\"", "\"false\"", DSV2_ERR_FORMAT);
        refuse_key(bools[i], "null", "null", DSV2_ERR_FORMAT);
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        refuse_key(numbers[i], "\"1\"", "\"1\"", DSV2_ERR_FORMAT);
        refuse_key(numbers[i], "true", "true", DSV2_ERR_FORMAT);
        refuse_key(numbers[i], "null", "null", DSV2_ERR_FORMAT);
        refuse_key(numbers[i], "[1]", "[...]", DSV2_ERR_FORMAT);
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        refuse_key(names[i], "1", "1", DSV2_ERR_FORMAT);
        refuse_key(names[i], "false", "false", DSV2_ERR_FORMAT);
        refuse_key(names[i], "[\"yarn\"]", "[...]", DSV2_ERR_FORMAT);
    }
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        refuse_key(values[i].key, values[i].value, values[i].shown, values[i].status);
}

/* Several keys that are legal alone. */
static void test_combinations(void **state)
{
    static const struct {
        const char *set[8]; /* key, value, ... */
        dsv2_status status;
        const char *needle[3];
    } cases[] = {
        {{"model_type", "\"deepseek\"", "architectures", "[\"DeepseekForCausalLM\"]", "kv_lora_rank", NULL},
         DSV2_ERR_UNSUPPORTED, {"model_type", "\"deepseek\"", "kv_lora_rank"}},
        {{"model_type", "\"deepseek\""}, DSV2_ERR_UNSUPPORTED, {"architectures", "DeepseekV2ForCausalLM", "DeepseekForCausalLM"}},
        {{"rope_scaling", "7"}, DSV2_ERR_FORMAT, {"rope_scaling", "7", "neither an object nor null"}},
        {{"rope_scaling", "[]"}, DSV2_ERR_FORMAT, {"rope_scaling", "[...]", "neither an object nor null"}},
        {{"rope_parameters", "\"yarn\""}, DSV2_ERR_FORMAT, {"rope_parameters", "\"yarn\"", "neither an object nor null"}},
        {{"rope_scaling", "null", "rope_theta", "1e-320", "qk_rope_head_dim", "1024"}, DSV2_ERR_FORMAT,
         {"rope_theta", "e-321", "no finite frequencies"}},
        {{"num_hidden_layers", "4096", "n_routed_experts", "4096", "hidden_size", "1048576", "intermediate_size", "1048576"}, DSV2_ERR_FORMAT,
         {"4096", "1048576", "2^58"}},
        {{"rope_scaling.mscale_all_dim", "1e300"}, DSV2_ERR_FORMAT, {"mscale_all_dim", "1e+300", "too large"}},
        {{"rope_scaling.mscale", "1e300"}, DSV2_ERR_FORMAT, {"mscale", "1e+300", "too large"}},
        {{"vocab_size", "1"}, DSV2_ERR_FORMAT, {"eos_token_id", "1", "0"}},
        {{"first_k_dense_replace", "2", "num_hidden_layers", "1"}, DSV2_ERR_FORMAT, {"first_k_dense_replace", "2", "1"}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *const *needle = cases[i].needle;
        struct ck c;
        struct ck_files f;

        ck_init(&c, 'A');
        for (int j = 0; j < 8 && cases[i].set[j]; j += 2)
            ck_set(&c, cases[i].set[j], cases[i].set[j + 1]);
        ck_build(&c, &f);
        refuse(&f, needle[0], cases[i].status, "config.json: ", needle[0], needle[1], needle[2], NULL);
        ck_files_free(&f);
        ck_free(&c);
    }
}

/* Both spellings at once, saying different things. */
static void test_contradicting_rope(void **state)
{
    static const struct {
        const char *key, *value, *needle;
    } cases[] = {
        {"factor", "41", "rope_scaling.factor"}, {"beta_fast", "31", "rope_scaling.beta_fast"},
        {"mscale", "1.0", "rope_scaling.mscale"}, {"rope_type", "\"default\"", "only one of them is \"yarn\""},
        {"rope_theta", "20000", "rope_theta"}, {"original_max_position_embeddings", "2048", "original_max_position_embeddings"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static const char *const keys[][2] = {
            {"rope_type", "\"yarn\""}, {"rope_theta", "10000"}, {"factor", "40"}, {"original_max_position_embeddings", "4096"},
            {"beta_fast", "32"}, {"beta_slow", "1"}, {"mscale", "0.707"}, {"mscale_all_dim", "0.707"},
        };
        struct ck c;
        struct ck_files f;
        char key[80];

        ck_init(&c, 'A');
        for (size_t j = 0; j < sizeof keys / sizeof *keys; j++) {
            snprintf(key, sizeof key, "rope_parameters.%s", keys[j][0]);
            ck_set(&c, key, strcmp(keys[j][0], cases[i].key) == 0 ? cases[i].value : keys[j][1]);
        }
        ck_build(&c, &f);
        refuse(&f, cases[i].key, DSV2_ERR_FORMAT, "config.json: ", cases[i].needle, "contradicts rope_parameters", NULL);
        ck_files_free(&f);
        ck_free(&c);
    }
}

/* ---- JSON itself, in each file that is JSON */

static void test_json(void **state)
{
    static const struct {
        const char *old, *new, *needle; /* in config.json */
    } cases[] = {
        {"{\n", "", "expected"}, {"}\n", "", "ends"}, {"}\n", "}}", "end of the text"}, {"}\n", "} x", "end of the text"},
        {"11,", "011,", "leading zero"}, {"11,", "+11,", "expected"}, {"11,", ".5,", "expected"}, {"11,", "5.,", "point"},
        {"11,", "0x11,", "expected"}, {"11,", "NaN,", "expected"}, {"11,", "Infinity,", "expected"}, {"11,", "-,", "digit"},
        {"11,", "1e,", "exponent"}, {"11,", "1e400,", "1e400"}, {"11,", "-1e400,", "-1e400"},
        {"11,", "9007199254740993,", "9007199254740993"}, {"11,", "-18446744073709551615,", "-18446744073709551615"},
        {"11,", "11,,", "expected"}, {"11,", "11", "expected"}, {"11,", "'a',", "expected"}, {"11,", "True,", "expected"},
        {"11,", "nul,", "expected"}, {"11,", "// comment\n11,", "expected"}, {"\"vocab_size\": 11", "vocab_size: 11", "quotes"},
        {"\"vocab_size\": 11", "\"vocab_size\" 11", "':'"}, {"\"vocab_size\": 11", "\"hidden_size\": 8, \"vocab_size\": 11", "twice"},
        {"\"vocab_size\": 11", "\"hidden\\u005fsize\": 8, \"vocab_size\": 11", "twice"},
        {"\"silu\"", "\"si\\u0000lu\"", "\\u0000"}, {"\"silu\"", "\"silu\\ud800\"", "surrogate"},
        {"\"silu\"", "\"\\udc00silu\"", "surrogate"}, {"\"silu\"", "\"\\ud800\\u0041\"", "surrogate"},
        {"\"silu\"", "\"si\\lu\"", "escape"}, {"\"silu\"", "\"si\\u12g4\"", "hexadecimal"}, {"\"silu\"", "\"si\nlu\"", "control"},
        {"\"silu\"", "\"si\tlu\"", "control"}, {"\"silu\"", "\"si\xFFlu\"", "UTF-8"}, {"\"silu\"", "\"\xC0\x80\"", "UTF-8"},
        {"\"silu\"", "\"\xED\xA0\x80\"", "UTF-8"}, {"\"silu\"", "\"\xF4\x90\x80\x80\"", "UTF-8"}, {"\"silu\"", "\"\xC3\"", "UTF-8"},
        {"{\n", "\xEF\xBB\xBF{\n", "expected"}, {"{\n", "[{\n", "ends"}, {"11,", "11,}", "quotes"}, {"11,", "[1 2],", "',' or ']'"},
        {"11,", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]"
                "]]]]]]]]]]]]]],", "nested"},
        {"11,", "11111111111111111111111111111111111111111111111111111111111111111.5,", "62 characters"},
    };
    static const char *const whole[] = {"", "[]", "7", "null", "\"x\"", "{}"};
    struct ck c;
    struct ck_files f;

    (void)state;
    ck_init(&c, 'A');
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ck_build(&c, &f);
        ck_replace(&f, "config.json", cases[i].old, cases[i].new);
        refuse(&f, cases[i].new, DSV2_ERR_FORMAT, "config.json: byte ", cases[i].needle, NULL);
        ck_files_free(&f);
    }
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
        static const char *const files[] = {"config.json", "generation_config.json", "model.safetensors.index.json"};

        for (int j = 0; j < 3; j++) {
            if (j == 1 && strcmp(whole[i], "{}") == 0)
                continue; /* says nothing, which is legal */
            ck_build(&c, &f);
            if (j == 2)
                ck_delete(&f, "model.safetensors");
            ck_put(&f, files[j], whole[i], strlen(whole[i]));
            refuse(&f, whole[i], DSV2_ERR_FORMAT, files[j], NULL);
            ck_files_free(&f);
        }
    }
    /* A NUL in the text, which a C string would hide. */
    ck_build(&c, &f);
    ck_file(&f, "config.json")->data[20] = 0;
    refuse(&f, "NUL", DSV2_ERR_FORMAT, "config.json: byte 20", NULL);
    ck_files_free(&f);
    ck_free(&c);
}

/* ---- generation_config.json */

static void test_generation(void **state)
{
    static const char *const cases[][3] = {
        {"do_sample", "1", "1"}, {"do_sample", "\"true\"", "\"true\""}, {"temperature", "-0.1", "-0.1"},
        {"temperature", "\"1\"", "\"1\""}, {"temperature", "1e7", "10000000"}, {"temperature", "true", "true"},
        {"top_p", "0", "0"}, {"top_p", "1.01", "1.01"}, {"top_p", "-1", "-1"}, {"top_p", "[]", "[...]"},
        {"min_p", "-0.1", "-0.1"}, {"min_p", "1.5", "1.5"}, {"min_p", "\"0\"", "\"0\""}, {"repetition_penalty", "0", "0"},
        {"repetition_penalty", "-1", "-1"}, {"repetition_penalty", "{}", "{...}"}, {"top_k", "-2", "-2"}, {"top_k", "0.5", "0.5"},
        {"top_k", "\"50\"", "\"50\""}, {"top_k", "1e300", "1e+300"}, {"min_new_tokens", "-1", "-1"},
        {"min_new_tokens", "1.5", "1.5"}, {"eos_token_id", "11", "11"}, {"eos_token_id", "-1", "-1"},
        {"eos_token_id", "\"1\"", "\"1\""}, {"eos_token_id", "[1, 11]", "11"}, {"eos_token_id", "[[1]]", "[...]"},
        {"eos_token_id", "true", "true"},
    };
    struct ck c;
    struct ck_files f;

    (void)state;
    ck_init(&c, 'A');
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[200];

        ck_build(&c, &f);
        snprintf(text, sizeof text, "{\"_from_model_config\": true, \"%s\": %s}", cases[i][0], cases[i][1]);
        ck_put(&f, "generation_config.json", text, strlen(text));
        refuse(&f, text, DSV2_ERR_FORMAT, "generation_config.json: ", cases[i][0], cases[i][2], NULL);
        ck_files_free(&f);
    }
    ck_free(&c);
}

/* ---- Tensors: every kind of the spec's table */

static const char *const kinds[] = {
    "model.embed_tokens.weight", "model.layers.1.input_layernorm.weight", "model.layers.1.self_attn.q_a_proj.weight",
    "model.layers.1.self_attn.q_a_layernorm.weight", "model.layers.1.self_attn.q_b_proj.weight",
    "model.layers.1.self_attn.kv_a_proj_with_mqa.weight", "model.layers.1.self_attn.kv_a_layernorm.weight",
    "model.layers.1.self_attn.kv_b_proj.weight", "model.layers.1.self_attn.o_proj.weight",
    "model.layers.1.post_attention_layernorm.weight", "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.down_proj.weight", "model.layers.2.mlp.gate.weight", "model.layers.2.mlp.experts.7.gate_proj.weight",
    "model.layers.2.mlp.experts.7.up_proj.weight", "model.layers.2.mlp.experts.7.down_proj.weight",
    "model.layers.2.mlp.shared_experts.gate_proj.weight", "model.layers.2.mlp.shared_experts.up_proj.weight",
    "model.layers.2.mlp.shared_experts.down_proj.weight", "model.norm.weight", "lm_head.weight",
    "model.layers.2.self_attn.q_proj.weight", /* the last one is of model B */
};
#define N_KINDS (int)(sizeof kinds / sizeof *kinds)

enum change { MISSING, ROW_MORE, ROW_LESS, TRANSPOSED, RANK_LESS, RANK_MORE, RANK_ZERO, INTEGER, FP8, DOUBLE, RENAMED, N_CHANGES };

/* Applies a change; 0: it makes no sense for this tensor. */
static int change_tensor(struct ck *c, const char *name, enum change change)
{
    struct ck_tensor *t = ck_find(c, name);
    int64_t shape[3] = {t->shape[0], t->shape[1], 1};
    int64_t other[2] = {t->shape[1], t->shape[0]};

    switch (change) {
    case MISSING:
        ck_remove(c, name);
        return 1;
    case ROW_MORE:
    case ROW_LESS:
        shape[0] += change == ROW_MORE ? 1 : -1;
        ck_retype(t, t->dtype, t->rank, shape);
        return 1;
    case TRANSPOSED:
        if (t->rank != 2 || shape[0] == shape[1])
            return 0;
        ck_retype(t, t->dtype, 2, other);
        return 1;
    case RANK_LESS:
        if (t->rank != 2)
            return 0;
        shape[0] *= shape[1];
        ck_retype(t, t->dtype, 1, shape);
        return 1;
    case RANK_MORE:
        shape[t->rank] = 1;
        ck_retype(t, t->dtype, t->rank + 1, shape);
        return 1;
    case RANK_ZERO:
        ck_retype(t, t->dtype, 0, shape);
        return 1;
    case INTEGER:
        ck_retype(t, "I32", t->rank, t->shape);
        return 1;
    case FP8:
        ck_retype(t, "F8_E4M3", t->rank, t->shape);
        return 1;
    case DOUBLE:
        ck_retype(t, "F64", t->rank, t->shape);
        return 1;
    case RENAMED:
        t->name[strlen(t->name) - 1] = 'T';
        return 1;
    default:
        return 0;
    }
}

static void test_tensors(void **state)
{
    static const char *const types[] = {[INTEGER] = "I32", [FP8] = "F8_E4M3", [DOUBLE] = "F64"};

    (void)state;
    for (int i = 0; i < N_KINDS; i++) {
        for (int change = 0; change < N_CHANGES; change++) {
            int wrong_type = change == INTEGER || change == FP8 || change == DOUBLE;
            struct ck c;
            struct ck_files f;
            char what[200], shape[64] = "";

            ck_init(&c, i == N_KINDS - 1 ? 'B' : 'A');
            if (change_tensor(&c, kinds[i], (enum change)change)) {
                const struct ck_tensor *t = ck_find(&c, kinds[i]);

                for (int d = 0; t && d < t->rank; d++)
                    snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%lld", d ? ", " : "", (long long)t->shape[d]);
                snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "]");
                ck_build(&c, &f);
                snprintf(what, sizeof what, "%s, change %d", kinds[i], change);
                refuse(&f, what, wrong_type ? DSV2_ERR_UNSUPPORTED : DSV2_ERR_FORMAT, "model.safetensors: ", kinds[i],
                       change == MISSING || change == RENAMED ? "missing" : wrong_type ? types[change] : shape, NULL);
                ck_files_free(&f);
            }
            ck_free(&c);
        }
    }
}

/* Tensors that the configuration has no place for. */
static void test_unknown_tensors(void **state)
{
    static const struct {
        const char *name;
        int rank;
        int64_t shape[3];
    } extra[] = {
        {"model.layers.1.self_attn.q_a_proj.bias", 1, {7}}, {"model.layers.1.self_attn.q_proj.weight", 2, {20, 8}},
        {"model.layers.3.input_layernorm.weight", 1, {8}}, {"model.layers.1.mlp.experts.8.up_proj.weight", 2, {6, 8}},
        {"model.layers.1.mlp.gate_proj.weight", 2, {10, 8}}, {"model.layers.0.mlp.gate.weight", 2, {8, 8}},
        {"model.layers.1.mlp.gate.e_score_correction_bias", 1, {8}}, {"model.layers.2.eh_proj.weight", 2, {8, 16}},
        {"lm_head.bias", 1, {11}}, {"", 0, {0}}, {"model.layers.01.input_layernorm.weight", 1, {8}},
        {"model.layers.1.mlp.experts.down_proj", 3, {8, 8, 6}}, {"model.layers.1.self_attn.kv_b_proj.input_scale", 0, {0}},
    };
    struct ck c;
    struct ck_files f;

    (void)state;
    for (size_t i = 0; i < sizeof extra / sizeof *extra; i++) {
        ck_init(&c, 'A');
        ck_add(&c, extra[i].name, "F32", extra[i].rank, extra[i].shape);
        ck_build(&c, &f);
        refuse(&f, extra[i].name, DSV2_ERR_FORMAT, "model.safetensors: ", extra[i].name, "F32", "no tensor of this name", NULL);
        ck_files_free(&f);
        ck_free(&c);
    }
    ck_init(&c, 'A');
    ck_set(&c, "tie_word_embeddings", "true");
    ck_build(&c, &f);
    refuse(&f, "tied and stored", DSV2_ERR_FORMAT, "model.safetensors: ", "lm_head.weight", "tie_word_embeddings", NULL);
    ck_files_free(&f);
    ck_free(&c);
}

/* Experts fused as Transformers v5 holds them, with mistakes. */
static void test_fused_experts(void **state)
{
    static const struct {
        int64_t gate_up[3], down[3];
        const char *type, *name, *shown;
    } cases[] = {
        {{8, 6, 8}, {8, 8, 6}, "BF16", "gate_up_proj", "8, 6, 8"}, {{8, 8, 12}, {8, 8, 6}, "BF16", "gate_up_proj", "8, 8, 12"},
        {{7, 12, 8}, {8, 8, 6}, "BF16", "gate_up_proj", "7, 12, 8"}, {{8, 12, 8}, {8, 6, 8}, "BF16", "down_proj", "8, 6, 8"},
        {{8, 12, 8}, {9, 8, 6}, "BF16", "down_proj", "9, 8, 6"}, {{8, 12, 8}, {8, 8, 6}, "U8", "gate_up_proj", "U8"},
        {{8, 12, 8}, {0}, "BF16", "down_proj", "missing"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ck c;
        struct ck_files f;
        char name[100];

        ck_init(&c, 'A');
        for (int e = 0; e < 8; e++) {
            static const char *const parts[] = {"gate", "up", "down"};

            for (int k = 0; k < 3; k++) {
                snprintf(name, sizeof name, "model.layers.1.mlp.experts.%d.%s_proj.weight", e, parts[k]);
                ck_remove(&c, name);
            }
        }
        ck_add(&c, "model.layers.1.mlp.experts.gate_up_proj", cases[i].type, 3, cases[i].gate_up);
        if (cases[i].down[0])
            ck_add(&c, "model.layers.1.mlp.experts.down_proj", "BF16", 3, cases[i].down);
        ck_build(&c, &f);
        snprintf(name, sizeof name, "model.layers.1.mlp.experts.%s", cases[i].name);
        refuse(&f, name, cases[i].type[0] == 'U' ? DSV2_ERR_UNSUPPORTED : DSV2_ERR_FORMAT, "model.safetensors: ", name,
               cases[i].shown, NULL);
        ck_files_free(&f);
        ck_free(&c);
    }
}

/* ---- fp8 weights */

/* Each quantization_config with a piece of its text replaced. */
static void test_quantization_config(void **state)
{
    static const struct {
        enum ck_format format;
        const char *old, *new, *needles[2];
        dsv2_status status;
    } cases[] = {
#define NO DSV2_ERR_UNSUPPORTED
        {CK_TENSOR, "\"fp8\"", "\"awq\"", {"quant_method", "\"awq\""}, NO},
        {CK_TENSOR, "\"fp8\"", "\"gptq\"", {"quant_method", "\"gptq\""}, NO},
        {CK_TENSOR, "\"fp8\"", "\"bitsandbytes\"", {"quant_method", "\"bitsandbytes\""}, NO},
        {CK_TENSOR, "\"fp8\"", "null", {"quant_method", "null"}, NO},
        {CK_TENSOR, "\"static\"", "\"token\"", {"activation_scheme", "\"token\""}, NO},
        {CK_TENSOR, "\"static\"", "7", {"activation_scheme", "7"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, "[\"lm_head\"]", "\"lm_head\"", {"ignored_layers", "\"lm_head\""}, DSV2_ERR_FORMAT},
        {CK_TENSOR, "[\"lm_head\"]", "[\"lm_head\", 3]", {"ignored_layers[1]", "3"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, "[\"lm_head\"]", "[], \"modules_to_not_convert\": []", {"modules_to_not_convert", "ignored_layers"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, "\"lm_head\"", "\"model.layers.1.self_attn.o_proj\"",
         {"ignored_layers: \"model.layers.1.self_attn.o_proj\"", "names model.layers.1.self_attn.o_proj"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, "\"lm_head\"", "\"re:.*experts\\\\.[3-5]\\\\.up\"", {"re:.*experts", "names model.layers.1.mlp.experts.3.up_proj"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, "\"lm_head\"", "\"re:(\"", {"ignored_layers[0]", "regular expression"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, "\"lm_head\"", "\"re:(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)[!?]$\"", {"ignored_layers: \"re:", "takes too long on model"},
         DSV2_ERR_LIMIT},
        {CK_BLOCK, "\"e4m3\"", "\"e5m2\"", {"fmt", "\"e5m2\""}, NO},
        {CK_BLOCK, "[128, 128]", "[64, 128]", {"weight_block_size", "[64, 128]"}, NO},
        {CK_BLOCK, "[128, 128]", "[128, 64]", {"weight_block_size", "[128, 64]"}, NO},
        {CK_BLOCK, "[128, 128]", "[128]", {"weight_block_size", "[...]"}, DSV2_ERR_FORMAT},
        {CK_BLOCK, "[128, 128]", "[128, 128, 128]", {"weight_block_size", "[...]"}, DSV2_ERR_FORMAT},
        {CK_BLOCK, "[128, 128]", "[128, \"128\"]", {"weight_block_size", "[...]"}, DSV2_ERR_FORMAT},
        {CK_BLOCK, "[128, 128]", "128", {"weight_block_size", "128"}, DSV2_ERR_FORMAT},
        {CK_ROW, "\"float-quantized\"", "\"pack-quantized\"", {"format", "\"pack-quantized\""}, NO},
        {CK_ROW, "\"format\": \"float-quantized\", ", "", {"format", "absent"}, NO},
        {CK_ROW, "\"compressed\"", "\"calibration\"", {"quantization_status", "\"calibration\""}, NO},
        {CK_ROW, "\"kv_cache", "\"sparsity_config\": {\"format\": \"sparse-24\"}, \"kv_cache", {"sparsity_config", "{...}"}, NO},
        {CK_ROW, "\"kv_cache", "\"transform_config\": {\"format\": \"dense\"}, \"kv_cache", {"transform_config", "{...}"}, NO},
        {CK_ROW, "\"kv_cache", "\"transform_config\": [], \"kv_cache", {"transform_config", "[...]"}, NO},
        {CK_ROW, "\"config_groups\"", "\"groups\"", {"config_groups", "absent"}, DSV2_ERR_FORMAT},
        {CK_ROW, "\"group_0\": {", "\"group_0\": 5, \"group_1\": {", {"config_groups.group_0", "not an object"}, DSV2_ERR_FORMAT},
        {CK_ROW, "\"targets\": [\"Linear\"]", "\"targets\": \"Linear\"", {"config_groups.group_0.targets", "\"Linear\""}, DSV2_ERR_FORMAT},
        {CK_ROW, "\"targets\"", "\"format\": \"int-quantized\", \"targets\"", {"config_groups.group_0.format", "\"int-quantized\""}, NO},
        {CK_ROW, "\"weights\"", "\"weight\"", {"config_groups.group_0.weights", "absent"}, DSV2_ERR_FORMAT},
        {CK_ROW, "\"num_bits\": 8", "\"num_bits\": 4", {"config_groups.group_0.weights.num_bits", "4"}, NO},
        {CK_ROW, "\"type\": \"float\"", "\"type\": \"int\"", {"config_groups.group_0.weights.type", "\"int\""}, NO},
        {CK_ROW, "\"symmetric\": true", "\"symmetric\": false", {"weights.symmetric", "false"}, NO},
        {CK_ROW, "\"dynamic\": false", "\"dynamic\": true", {"weights.dynamic", "true"}, NO},
        {CK_ROW, "\"channel\"", "\"group\"", {"weights.strategy", "\"group\""}, NO},
        {CK_ROW, "\"config_groups\": {", "\"config_groups\": {\"a\": {\"targets\": [], \"weights\": {\"type\": \"float\", \"strategy\": \"tensor\"}}, ",
         {"config_groups.group_0.weights.strategy", "\"channel\""}, NO},
        {CK_ROW, "\"lm_head\"", "\"re:model\"", {"ignore: \"re:model\"", "names model.layers.0"}, DSV2_ERR_FORMAT},
#undef NO
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ck c;
        struct ck_files f;

        ck_init(&c, 'A');
        ck_quantize(&c, cases[i].format);
        ck_build(&c, &f);
        ck_replace(&f, "config.json", cases[i].old, cases[i].new);
        refuse(&f, cases[i].new, cases[i].status, "config.json: quantization_config.", cases[i].needles[0], cases[i].needles[1], NULL);
        ck_files_free(&f);
        ck_free(&c);
    }
}

/* Scales that are missing, of another shape or type, or no scales; and such that belong to nothing. */
static void test_scales(void **state)
{
#define KV_B "model.layers.1.self_attn.kv_b_proj."
#define UP "model.layers.2.mlp.experts.7.up_proj."
    static const struct {
        enum ck_format format;
        const char *tensor, *dtype; /* dtype NULL: remove it */
        int rank;
        int64_t shape[3];
        float value; /* 0: keep random ones */
        const char *needles[2];
        dsv2_status status;
    } cases[] = {
        {CK_TENSOR, KV_B "weight_scale", NULL, 0, {0}, 0, {"missing", KV_B "weight is F8_E4M3"}, DSV2_ERR_FORMAT},
        {CK_ROW, UP "weight_scale", NULL, 0, {0}, 0, {"missing", UP "weight is F8_E4M3"}, DSV2_ERR_FORMAT},
        {CK_BLOCK, UP "weight_scale_inv", NULL, 0, {0}, 0, {"missing", UP "weight is F8_E4M3"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, KV_B "weight_scale", "F32", 1, {2}, 1, {"shape", "is [2]"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, KV_B "weight_scale", "F32", 2, {18, 1}, 1, {"shape", "is [18, 1]"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, KV_B "weight_scale", "F16", 1, {1}, 1, {"dtype", "F16"}, DSV2_ERR_UNSUPPORTED},
        {CK_TENSOR, KV_B "weight_scale", "F8_E4M3", 1, {1}, 0, {"dtype", "F8_E4M3"}, DSV2_ERR_UNSUPPORTED},
        {CK_TENSOR, KV_B "weight_scale", "F64", 1, {1}, 0, {"dtype", "F64"}, DSV2_ERR_UNSUPPORTED},
        {CK_TENSOR, KV_B "weight_scale", "F32", 1, {1}, -0.5f, {"element 0", "is -0.5"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, KV_B "weight_scale", "F32", 1, {1}, -0.0f, {"element 0", "is "}, DSV2_ERR_FORMAT},
        {CK_TENSOR, KV_B "weight_scale", "F32", 1, {1}, INFINITY, {"element 0", "is inf"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, KV_B "weight_scale", "F32", 0, {0}, NAN, {"element 0", "nan"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, KV_B "weight_scale", "F32", 0, {0}, 1e36f, {"element 0", "is 1e+36"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, UP "input_scale", "F32", 1, {3}, 1, {"shape", "is [3]"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, UP "input_scale", "I32", 1, {1}, 0, {"dtype", "I32"}, DSV2_ERR_UNSUPPORTED},
        {CK_TENSOR, "model.layers.0.self_attn.k_scale", "F32", 1, {9}, 1, {"shape", "is [9]"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, "model.layers.0.self_attn.q_scale", "F32", 0, {0}, 1, {"F32", "no tensor of this name"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, "lm_head.input_scale", "F32", 0, {0}, 1, {"F32", "no tensor of this name"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, "lm_head.weight_scale", "F32", 0, {0}, 1, {"F32", "lm_head.weight is BF16"}, DSV2_ERR_FORMAT},
        {CK_TENSOR, KV_B "weight_scale_inv", "F32", 0, {0}, 1, {"F32", "no tensor of this name"}, DSV2_ERR_FORMAT},
        {CK_BLOCK, "model.layers.1.mlp.gate.weight_scale_inv", "F32", 0, {0}, 1, {"F32", "mlp.gate.weight is BF16"}, DSV2_ERR_FORMAT},
        {CK_BLOCK, UP "weight_scale_inv", "F32", 2, {2, 1}, 1, {"must be [1, 1]", "is [2, 1]"}, DSV2_ERR_FORMAT},
        {CK_BLOCK, UP "weight_scale_inv", "F32", 2, {1, 2}, 1, {"must be [1, 1]", "is [1, 2]"}, DSV2_ERR_FORMAT},
        {CK_BLOCK, UP "weight_scale_inv", "F32", 1, {1}, 1, {"must be [1, 1]", "is [1]"}, DSV2_ERR_FORMAT},
        {CK_BLOCK, UP "weight_scale_inv", "F8_E8M0", 2, {1, 1}, 0, {"dtype", "F8_E8M0"}, DSV2_ERR_UNSUPPORTED},
        {CK_ROW, KV_B "weight_scale", "BF16", 2, {17, 1}, 1, {"must be [18, 1]", "is [17, 1]"}, DSV2_ERR_FORMAT},
        {CK_ROW, KV_B "weight_scale", "BF16", 2, {1, 18}, 1, {"must be [18, 1]", "is [1, 18]"}, DSV2_ERR_FORMAT},
        {CK_ROW, KV_B "weight_scale", "BF16", 1, {18}, 1, {"must be [18, 1]", "is [18]"}, DSV2_ERR_FORMAT},
        {CK_ROW, KV_B "weight_scale", "BF16", 2, {18, 1}, INFINITY, {"element 0", "is inf"}, DSV2_ERR_FORMAT},
        {CK_ROW, KV_B "weight", "F8_E5M2", 2, {18, 5}, 0, {"dtype", "F8_E5M2"}, DSV2_ERR_UNSUPPORTED},
        {CK_ROW, KV_B "weight", "BF16", 2, {18, 5}, 0, {"weight_scale", "weight is BF16"}, DSV2_ERR_FORMAT},
        {CK_ROW, "model.norm.weight", "F8_E4M3", 1, {8}, 0, {"dtype", "F8_E4M3"}, DSV2_ERR_UNSUPPORTED},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ck_tensor *t;
        struct ck c;
        struct ck_files f;
        char what[200];

        ck_init(&c, 'A');
        ck_quantize(&c, cases[i].format);
        t = ck_find(&c, cases[i].tensor);
        if (!cases[i].dtype)
            ck_remove(&c, cases[i].tensor);
        else if (t)
            ck_retype(t, cases[i].dtype, cases[i].rank, cases[i].shape);
        else
            t = ck_add(&c, cases[i].tensor, cases[i].dtype, cases[i].rank, cases[i].shape);
        if (cases[i].dtype && (cases[i].value != 0 || signbit(cases[i].value)))
            ck_set_floats(t, cases[i].value);
        ck_build(&c, &f);
        snprintf(what, sizeof what, "%d: %s", (int)i, cases[i].tensor);
        refuse(&f, what, cases[i].status, "model.safetensors: ", cases[i].tensor, cases[i].needles[0], cases[i].needles[1], NULL);
        ck_files_free(&f);
        ck_free(&c);
    }
    /* fp8 without a word about it, and in a tensor of all experts */
    for (int fused = 0; fused < 2; fused++) {
        struct ck c;
        struct ck_files f;

        ck_init(&c, 'A');
        ck_quantize(&c, CK_TENSOR);
        if (fused)
            ck_add(&c, "model.layers.1.mlp.experts.gate_up_proj", "F8_E4M3", 3, (const int64_t[]){8, 12, 8});
        else
            ck_set(&c, "quantization_config", NULL);
        ck_build(&c, &f);
        refuse(&f, fused ? "fused" : "no quantization_config", DSV2_ERR_UNSUPPORTED, "model.safetensors: ",
               fused ? "experts.gate_up_proj" : "model.layers.0.self_attn.q_a_proj.weight", "F8_E4M3", fused ? NULL : "quantization_config", NULL);
        ck_files_free(&f);
        ck_free(&c);
    }
}

/* ---- The format of safetensors files */

#define T(name, dtype, shape, offsets) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void test_safetensors(void **state)
{
    static const struct {
        const char *header;
        long length; /* -1: as it is */
        size_t n_data;
        dsv2_status status;
        const char *needle[2];
    } cases[] = {
        /* the length */
        {"{}", 0, 0, DSV2_ERR_FORMAT, {"header length", "0"}},
        {"{}", 1, 0, DSV2_ERR_FORMAT, {"header length", "1"}},
        {"{}", 3, 0, DSV2_ERR_FORMAT, {"header length", "3"}},
        {"{}", 100000001, 0, DSV2_ERR_FORMAT, {"header length: 100000001", "more than 100000000"}},
        {"{}", 0x7FFFFFFFFFFFFFFF, 0, DSV2_ERR_FORMAT, {"header length", "9223372036854775807"}},
        {"{}", -2, 0, DSV2_ERR_FORMAT, {"header length", "18446744073709551614"}},
        {"{}", -8, 0, DSV2_ERR_FORMAT, {"header length", "18446744073709551608"}},
        /* the JSON */
        {" {}", -1, 0, DSV2_ERR_FORMAT, {"header: begins", "0x20"}},
        {"[]", -1, 0, DSV2_ERR_FORMAT, {"header: begins", "0x5B"}},
        {"{]", -1, 0, DSV2_ERR_FORMAT, {"byte 1", "]"}},
        {"{}x", -1, 0, DSV2_ERR_FORMAT, {"byte 2", "x"}},
        {"{} {}", -1, 0, DSV2_ERR_FORMAT, {"byte 3", "{"}},
        {"{\"\xFF\":1}", -1, 0, DSV2_ERR_FORMAT, {"byte 2", "UTF-8"}},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("a", "F32", "[2]", "[8,16]") "}", -1, 16, DSV2_ERR_FORMAT, {"\"a\"", "twice"}},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("\\u0061", "F32", "[2]", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"u0061", "twice"}},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,8]}}", -1, 8, DSV2_ERR_FORMAT,
         {"\"dtype\"", "twice"}},
        {"{\"__metadata__\":{\"a\":\"b\",\"a\":\"c\"}}", -1, 0, DSV2_ERR_FORMAT, {"\"a\"", "twice"}},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", -1, 0, DSV2_ERR_FORMAT, {"__metadata__", "twice"}},
        {"{\"__metadata__\":[]}", -1, 0, DSV2_ERR_FORMAT, {"__metadata__", "[...]"}},
        {"{\"__metadata__\":null}", -1, 0, DSV2_ERR_FORMAT, {"__metadata__", "null"}},
        {"{\"__metadata__\":{\"step\":7}}", -1, 0, DSV2_ERR_FORMAT, {"__metadata__: step", "7"}},
        {"{\"__metadata__\":{\"format\":{}}}", -1, 0, DSV2_ERR_FORMAT, {"__metadata__: format", "{...}"}},
        /* an entry */
        {"{\"a\":7}", -1, 0, DSV2_ERR_FORMAT, {"a: entry", "7"}},
        {"{\"a\":null}", -1, 0, DSV2_ERR_FORMAT, {"a: entry", "null"}},
        {"{\"a\":[]}", -1, 0, DSV2_ERR_FORMAT, {"a: entry", "[...]"}},
        {"{\"a\":{}}", -1, 0, DSV2_ERR_FORMAT, {"a: dtype", "absent"}},
        {"{\"a\":{\"dtype\":1,\"shape\":[],\"data_offsets\":[0,0]}}", -1, 0, DSV2_ERR_FORMAT, {"a: dtype", "1"}},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", -1, 4, DSV2_ERR_FORMAT, {"a: shape", "absent"}},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", -1, 4, DSV2_ERR_FORMAT, {"a: data_offsets", "absent"}},
        {"{" T("a", "F32", "[1]", "{\"x\":0,\"y\":4}") "}", -1, 4, DSV2_ERR_FORMAT, {"a: data_offsets", "two offsets"}},
        {"{" T("a", "F33", "[2]", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: dtype", "\"F33\""}},
        {"{" T("a", "f32", "[2]", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: dtype", "\"f32\""}},
        {"{" T("a", "", "[2]", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: dtype", "\"\""}},
        {"{" T("a", "F32", "2", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: shape", "2"}},
        {"{" T("a", "F32", "null", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: shape", "null"}},
        {"{" T("a", "F32", "[\"2\"]", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: shape", "\"2\""}},
        {"{" T("a", "F32", "[2.5]", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: shape", "2.5"}},
        {"{" T("a", "F32", "[-2]", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: shape", "-2"}},
        {"{" T("a", "F32", "[[2]]", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: shape", "[...]"}},
        {"{" T("a", "F32", "[1e30]", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: shape", "1e+30"}},
        {"{" T("a", "F32", "[9007199254740993]", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"9007199254740993", "byte"}},
        {"{" T("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", -1, 4, DSV2_ERR_UNSUPPORTED, {"a: shape", "9 dimensions"}},
        /* products */
        {"{" T("a", "F32", "[4294967296,4294967296]", "[0,0]") "}", -1, 0, DSV2_ERR_FORMAT, {"a: shape", "4294967296"}},
        {"{" T("a", "F32", "[4294967296,4294967296,0]", "[0,0]") "}", -1, 0, DSV2_ERR_FORMAT, {"a: shape", "4294967296"}},
        {"{" T("a", "F32", "[4294967296,2147483648]", "[0,0]") "}", -1, 0, DSV2_ERR_FORMAT, {"a: shape", "9223372036854775808"}},
        {"{" T("a", "F32", "[4294967296,134217728]", "[0,0]") "}", -1, 0, DSV2_ERR_FORMAT, {"a: shape", "576460752303423488"}},
        {"{" T("a", "F32", "[2]", "[0,4]") "}", -1, 4, DSV2_ERR_FORMAT, {"a: data_offsets", "4 bytes"}},
        {"{" T("a", "F32", "[2]", "[0,12]") "}", -1, 12, DSV2_ERR_FORMAT, {"a: data_offsets", "12 bytes"}},
        {"{" T("a", "BF16", "[2]", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: data_offsets", "8 bytes"}},
        {"{" T("a", "F32", "[]", "[0,0]") "}", -1, 0, DSV2_ERR_FORMAT, {"a: data_offsets", "0 bytes"}},
        {"{" T("a", "F32", "[0]", "[0,4]") "}", -1, 4, DSV2_ERR_FORMAT, {"a: data_offsets", "4 bytes"}},
        {"{" T("a", "F4", "[3]", "[0,1]") "}", -1, 1, DSV2_ERR_FORMAT, {"a: data_offsets", "3 F4"}},
        {"{" T("a", "F6_E2M3", "[2]", "[0,2]") "}", -1, 2, DSV2_ERR_FORMAT, {"a: data_offsets", "2 F6_E2M3"}},
        /* offsets */
        {"{" T("a", "F32", "[2]", "8") "}", -1, 8, DSV2_ERR_FORMAT, {"a: data_offsets", "8"}},
        {"{" T("a", "F32", "[2]", "[]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: data_offsets", "[...]"}},
        {"{" T("a", "F32", "[2]", "[0]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: data_offsets", "[...]"}},
        {"{" T("a", "F32", "[2]", "[0,8,16]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: data_offsets", "[...]"}},
        {"{" T("a", "F32", "[2]", "[\"0\",8]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: data_offsets", "[...]"}},
        {"{" T("a", "F32", "[2]", "[0,null]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: data_offsets", "[...]"}},
        {"{" T("a", "F32", "[2]", "[-8,0]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: data_offsets", "[...]"}},
        {"{" T("a", "F32", "[2]", "[0.5,8.5]") "}", -1, 9, DSV2_ERR_FORMAT, {"a: data_offsets", "[...]"}},
        {"{" T("a", "F32", "[2]", "[8,0]") "}", -1, 8, DSV2_ERR_FORMAT, {"a: data_offsets", "[8, 0]"}},
        {"{" T("a", "F32", "[2]", "[0,8]") "}", -1, 7, DSV2_ERR_FORMAT, {"a: data_offsets", "[0, 8]"}},
        {"{" T("a", "F32", "[2]", "[9007199254740984,9007199254740992]") "}", -1, 8, DSV2_ERR_FORMAT,
         {"a: data_offsets", "9007199254740984"}},
        /* tiling */
        {"{" T("a", "F32", "[2]", "[0,8]") "}", -1, 9, DSV2_ERR_FORMAT, {"size", "9 bytes"}},
        {"{}", -1, 1, DSV2_ERR_FORMAT, {"size", "1 bytes"}},
        {"{" T("a", "F32", "[2]", "[4,12]") "}", -1, 12, DSV2_ERR_FORMAT, {"a: data_offsets", "hole"}},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[2]", "[12,20]") "}", -1, 20, DSV2_ERR_FORMAT, {"b: data_offsets", "hole"}},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[2]", "[4,12]") "}", -1, 12, DSV2_ERR_FORMAT,
         {"b: data_offsets", "overlap"}},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[2]", "[0,8]") "}", -1, 8, DSV2_ERR_FORMAT, {"data_offsets", "overlap"}},
        {"{" T("b", "F32", "[2]", "[8,16]") "," T("a", "F32", "[4]", "[0,16]") "}", -1, 16, DSV2_ERR_FORMAT,
         {"b: data_offsets", "overlap"}},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("z", "F32", "[0]", "[4,4]") "}", -1, 8, DSV2_ERR_FORMAT, {"z: data_offsets", "overlap"}},
        {"{" T("a\\\"\\u202e", "F32", "[2]", "[1,9]") "}", -1, 9, DSV2_ERR_FORMAT, {"data_offsets", "hole"}},
    };
    static const char *const stubs[] = {"", "\2\0\0", "\2\0\0\0\0\0\0"};
    struct ck c;
    struct ck_files f;

    (void)state;
    ck_init(&c, 'A');
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ck_build(&c, &f);
        if (cases[i].length == -1)
            ck_put_safetensors(&f, "model.safetensors", cases[i].header, -1, cases[i].n_data);
        else
            ck_put_safetensors(&f, "model.safetensors", cases[i].header, 2, cases[i].n_data);
        if (cases[i].length != -1) {
            for (int b = 0; b < 8; b++)
                ck_file(&f, "model.safetensors")->data[b] = (unsigned char)((uint64_t)cases[i].length >> 8 * b);
        }
        refuse(&f, cases[i].header, cases[i].status, "model.safetensors: ", cases[i].needle[0], cases[i].needle[1], NULL);
        ck_files_free(&f);
    }
    for (size_t i = 0; i < 3; i++) {
        ck_build(&c, &f);
        ck_put(&f, "model.safetensors", stubs[i], i == 0 ? 0 : i == 1 ? 3 : 7);
        refuse(&f, "shorter than a length", DSV2_ERR_FORMAT, "model.safetensors: size", i == 0 ? "0 bytes" : i == 1 ? "3" : "7", NULL);
        ck_files_free(&f);
    }
    /* A good file cut at any place, or with a byte behind it. */
    ck_build(&c, &f);
    for (size_t whole = ck_file(&f, "model.safetensors")->size, n = whole - 1; n > 47; n -= n > 400 ? 391 : 39) {
        ck_file(&f, "model.safetensors")->size = n;
        refuse(&f, "cut", DSV2_ERR_FORMAT, "model.safetensors: ", NULL);
    }
    ck_files_free(&f);
    ck_free(&c);
}

/* ---- Sharded sets */

static void test_index(void **state)
{
    static const char one[] = "model-00001-of-000002.safetensors", two[] = "model-00002-of-000002.safetensors";
    static const char index[] = "model.safetensors.index.json";
    static const struct {
        const char *old, *new;
        dsv2_status status;
        const char *needle[2];
    } cases[] = {
        {"\"weight_map\"", "\"weightmap\"", DSV2_ERR_FORMAT, {"weight_map", "absent"}},
        {"\"weight_map\": {", "\"weight_map\": [], \"x\": {", DSV2_ERR_FORMAT, {"weight_map", "[...]"}},
        {"\"weight_map\": {", "\"weight_map\": {}, \"x\": {", DSV2_ERR_FORMAT, {"weight_map", "{...}"}},
        {"\"weight_map\": {", "\"weight_map\": null, \"x\": {", DSV2_ERR_FORMAT, {"weight_map", "null"}},
        {"\"model-00001-of-000002.safetensors\"", "7", DSV2_ERR_FORMAT, {"model.embed_tokens.weight", "7"}},
        {"\"model-00001-of-000002.safetensors\"", "null", DSV2_ERR_FORMAT, {"model.embed_tokens.weight", "null"}},
        {"\"model-00001-of-000002.safetensors\"", "[]", DSV2_ERR_FORMAT, {"model.embed_tokens.weight", "[...]"}},
        {"model-00001-of-000002.safetensors", "", DSV2_ERR_FORMAT, {"model.embed_tokens.weight", "\"\""}},
        {"model-00001-of-000002.safetensors", "/etc/passwd", DSV2_ERR_FORMAT, {"model.embed_tokens.weight", "\"/etc/passwd\""}},
        {"model-00001-of-000002.safetensors", "../x.safetensors", DSV2_ERR_FORMAT, {"model.embed_tokens.weight", "../x"}},
        {"model-00001-of-000002.safetensors", "sub/x.safetensors", DSV2_ERR_FORMAT, {"model.embed_tokens.weight", "sub/x"}},
        {"model-00001-of-000002.safetensors", "..", DSV2_ERR_FORMAT, {"model.embed_tokens.weight", "\"..\""}},
        {"model-00001-of-000002.safetensors", ".", DSV2_ERR_FORMAT, {"model.embed_tokens.weight", "\".\""}},
        {"model-00001-of-000002.safetensors", "a\\\\b", DSV2_ERR_FORMAT, {"model.embed_tokens.weight", "a"}},
        {"model-00001-of-000002.safetensors", "a\\nb", DSV2_ERR_FORMAT, {"model.embed_tokens.weight", "a"}},
        {"model-00001-of-000002.safetensors", "no-such.safetensors", DSV2_ERR_IO, {"no-such.safetensors", ""}},
        {"model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors", DSV2_ERR_FORMAT,
         {"model.embed_tokens.weight", "is said to be in model-00002"}},
        {"\"model.norm.weight\": \"model-00002-of-000002.safetensors\",", "", DSV2_ERR_FORMAT,
         {"model.norm.weight", "not in the index"}},
        {"\"model.norm.weight\":", "\"model.norm.bias\": \"model-00002-of-000002.safetensors\", \"model.norm.weight\":",
         DSV2_ERR_FORMAT, {"model.norm.bias", "missing from model-00002"}},
        {"\"model.norm.weight\":", "\"zzz\": \"model-00001-of-000002.safetensors\", \"model.norm.weight\":", DSV2_ERR_FORMAT,
         {"zzz", "missing from model-00001"}},
        {"\"model.norm.weight\":", "\"lm_head.weight\":", DSV2_ERR_FORMAT, {"lm_head.weight", "twice"}},
    };
    char long_name[257] = "";
    struct ck c;
    struct ck_files f;

    (void)state;
    ck_init(&c, 'A');
    c.n_shards = 2;
    for (int i = 40; i < c.n_tensors; i++)
        c.tensor[i].shard = 2;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ck_build(&c, &f);
        ck_replace(&f, index, cases[i].old, cases[i].new);
        refuse(&f, cases[i].new, cases[i].status, cases[i].status == DSV2_ERR_IO ? "" : "model.safetensors.index.json: ",
               cases[i].needle[0], cases[i].needle[1], NULL);
        ck_files_free(&f);
    }
    ck_build(&c, &f);
    memset(long_name, 'x', 256);
    ck_replace(&f, index, one, long_name);
    refuse(&f, "256 bytes of name", DSV2_ERR_FORMAT, index, "model.embed_tokens.weight", "xxxx", NULL);
    ck_files_free(&f);

    ck_build(&c, &f);
    ck_delete(&f, two);
    refuse(&f, "shard missing", DSV2_ERR_IO, two, NULL);
    ck_files_free(&f);

    ck_build(&c, &f);
    ck_file(&f, two)->size -= 2;
    refuse(&f, "shard cut", DSV2_ERR_FORMAT, two, NULL);
    ck_files_free(&f);

    /* The shards swapped: each has tensors that the index puts in the other. */
    ck_build(&c, &f);
    strcpy(ck_file(&f, one)->name, "x");
    strcpy(ck_file(&f, two)->name, one);
    strcpy(ck_file(&f, "x")->name, two);
    refuse(&f, "shards swapped", DSV2_ERR_FORMAT, index, "is said to be in", two, NULL);
    ck_files_free(&f);

    /* One tensor in both shards. */
    ck_add(&c, "model.norm.weight", "BF16", 1, (int64_t[]){8})->shard = 1;
    ck_build(&c, &f);
    ck_replace(&f, index, "\"model.norm.weight\": \"model-00001-of-000002.safetensors\"", "\"x\": \"model-00001-of-000002.safetensors\"");
    refuse(&f, "in two shards", DSV2_ERR_FORMAT, index, "model.norm.weight: is in model-0000", ".safetensors and in model-0000", NULL);
    ck_files_free(&f);
    ck_free(&c);
}

/* ---- Files */

static void test_missing_files(void **state)
{
    struct ck c;
    struct ck_files f;
    char *big = calloc(1, (1 << 20) + 1);

    (void)state;
    ck_init(&c, 'A');
    ck_build(&c, &f);
    ck_delete(&f, "config.json");
    refuse(&f, "no config.json", DSV2_ERR_IO, "config.json", NULL);
    ck_files_free(&f);

    ck_build(&c, &f);
    ck_delete(&f, "model.safetensors");
    refuse(&f, "no weights", DSV2_ERR_IO, "neither model.safetensors nor", "model.safetensors.index.json", NULL);
    ck_files_free(&f);

    ck_build(&c, &f);
    ck_put(&f, "config.json", big, (1 << 20) + 1);
    refuse(&f, "large config.json", DSV2_ERR_LIMIT, "config.json", "1048577", NULL);
    ck_put(&f, "config.json", big, 0);
    refuse(&f, "empty config.json", DSV2_ERR_FORMAT, "config.json: byte 0", NULL);
    ck_files_free(&f);

    ck_build(&c, &f);
    ck_put(&f, "chat_template.jinja", big, (1 << 20) + 1);
    refuse(&f, "large chat_template.jinja", DSV2_ERR_LIMIT, "chat_template.jinja", "1048577", NULL);
    ck_files_free(&f);
    ck_free(&c);
    free(big);
}

/* The tokenizer's files have tests of their own; here, that loading hears of their faults. */
static void test_tokenizer_files(void **state)
{
    static const struct {
        const char *file, *text, *needle[2];
    } cases[] = {
        {"tokenizer.json", "", {"byte 0", ""}},
        {"tokenizer.json", "{\"model\": ", {"byte 10", ""}},
        {"tokenizer.json", "[]", {"", ""}},
        {"tokenizer.json", "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": false}, \"decoder\": {\"type\": \"ByteLevel\"}, "
         "\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 11}, \"merges\": []}}", {"\"b\"", "11"}},
        {"tokenizer.json", "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"a\": 1}, \"merges\": []}}", {"\"a\"", "twice"}},
        {"tokenizer_config.json", "", {"byte 0", ""}},
        {"tokenizer_config.json", "{\"chat_template\": 1e999}", {"byte 18", "1e999"}},
        {"tokenizer_config.json", "[1]", {"", ""}},
        {"chat_template.jinja", "{{ bos_token }}\xFFUser", {"byte 15", "0xFF"}},
        {"chat_template.jinja", "\xE4\xBD", {"byte 0", "0xE4"}},
    };
    struct ck c;
    struct ck_files f;

    (void)state;
    ck_init(&c, 'A');
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ck_build(&c, &f);
        ck_put(&f, cases[i].file, cases[i].text, strlen(cases[i].text));
        refuse(&f, cases[i].text, DSV2_ERR_FORMAT, cases[i].file, cases[i].needle[0], cases[i].needle[1], NULL);
        ck_files_free(&f);
    }
    ck_free(&c);
}

static int setup(void **state)
{
    (void)state;
    ctx = ck_context(&heap);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    dsv2_context_free(ctx);
    ck_forget();
    print_message("%d broken checkpoints refused, each in %d ways\n", n_cases, (int)CK_WAYS);
    return heap.alive == 0 && n_cases >= 300 ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_integers), cmocka_unit_test(test_other_keys), cmocka_unit_test(test_combinations),
        cmocka_unit_test(test_contradicting_rope), cmocka_unit_test(test_json), cmocka_unit_test(test_generation),
        cmocka_unit_test(test_tensors), cmocka_unit_test(test_unknown_tensors), cmocka_unit_test(test_fused_experts),
        cmocka_unit_test(test_quantization_config), cmocka_unit_test(test_scales),
        cmocka_unit_test(test_safetensors), cmocka_unit_test(test_index), cmocka_unit_test(test_missing_files), cmocka_unit_test(test_tokenizer_files),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
