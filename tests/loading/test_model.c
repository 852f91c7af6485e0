/* Loading as a whole: every tensor in its place through every way, facts, memory, progress, and what happens when something fails.
 * SPDX-License-Identifier: MIT */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "checkpoint.h"
#include "fingerprint.h"
#include "model.h"

static struct ck_heap heap;
static dsv2_context *ctx;

static dsv2_model *load(struct ck_files *f, int way)
{
    dsv2_model *m;

    if (ck_load(ctx, f, (enum ck_way)way, &m) != DSV2_OK)
        fail_msg("way %d: %s", way, dsv2_last_error());
    return m;
}

/* ---- Weights */

/* The scales of an fp8 weight, which the tensor has as F32 or BF16. */
static void assert_scales(const struct dsv2i_weight *w, struct ck *c, const char *name)
{
    int64_t n = (int64_t)((w->rows - 1) / w->scale_rows + 1) * ((w->cols - 1) / w->scale_cols + 1);
    const struct ck_tensor *t;
    char scale[160];
    size_t size;

    snprintf(scale, sizeof scale, "%s_scale", name);
    t = ck_find(c, scale);
    assert_int_equal(w->scale_cols, t ? w->cols : 128);
    assert_int_equal(w->scale_rows, !t ? 128 : strcmp(t->dtype, "F32") == 0 ? w->rows : 1);
    if (!t) {
        strcat(scale, "_inv");
        t = ck_find(c, scale);
    }
    assert_non_null(t);
    size = strcmp(t->dtype, "F32") == 0 ? 4 : 2;
    assert_int_equal(t->bytes, (size_t)n * size);
    assert_true((uintptr_t)w->scale % sizeof *w->scale == 0);
    for (int64_t i = 0; i < n; i++) {
        unsigned char wanted[4] = {0};

        memcpy(wanted + 4 - size, t->data + (size_t)i * size, size);
        assert_memory_equal(&w->scale[i], wanted, 4);
    }
}

static void assert_matrix(const struct dsv2i_weight *w, struct ck *c, const char *format, ...)
{
    const struct ck_tensor *t;
    char name[128];
    va_list args;

    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    t = ck_find(c, name);
    assert_non_null(t);
    assert_int_equal(w->rows, t->shape[0]);
    assert_int_equal(w->cols, t->shape[1]);
    assert_int_equal(w->dtype, strcmp(t->dtype, "BF16") == 0 ? DSV2I_BF16 : strcmp(t->dtype, "F16") == 0 ? DSV2I_F16
                                  : strcmp(t->dtype, "F32") == 0 ? DSV2I_F32 : DSV2I_F8_E4M3);
    if (w->dtype == DSV2I_F8_E4M3)
        assert_scales(w, c, name);
    assert_true((uintptr_t)w->data % dsv2i_dtype_size(w->dtype) == 0);
    if (memcmp(w->data, t->data, t->bytes) != 0)
        fail_msg("%s: other bytes", name);
}

static void assert_bf16_vector(const float *v, struct ck *c, const char *format, ...)
{
    const struct ck_tensor *t;
    char name[128];
    va_list args;

    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    t = ck_find(c, name);
    assert_non_null(t);
    for (int64_t i = 0; i < t->shape[0]; i++) {
        unsigned char wanted[4] = {0, 0, t->data[2 * i], t->data[2 * i + 1]};

        assert_memory_equal(&v[i], wanted, 4);
    }
}

static void assert_ffn(const struct dsv2i_ffn *f, struct ck *c, const char *prefix)
{
    assert_matrix(&f->gate, c, "%s.gate_proj.weight", prefix);
    assert_matrix(&f->up, c, "%s.up_proj.weight", prefix);
    assert_matrix(&f->down, c, "%s.down_proj.weight", prefix);
}

/* bf16_norms: compare them too. */
static void assert_weights(const dsv2_model *m, struct ck *c, int bf16_norms)
{
    char prefix[64];

    assert_matrix(&m->embed_tokens, c, "model.embed_tokens.weight");
    if (!m->config.tie_word_embeddings)
        assert_matrix(&m->lm_head, c, "lm_head.weight");
    for (int l = 0; l < m->config.shape.num_hidden_layers; l++) {
        const struct dsv2i_layer *y = &m->layers[l];

        if (m->config.shape.q_lora_rank) {
            assert_matrix(&y->q_a_proj, c, "model.layers.%d.self_attn.q_a_proj.weight", l);
            assert_matrix(&y->q_b_proj, c, "model.layers.%d.self_attn.q_b_proj.weight", l);
        } else {
            assert_matrix(&y->q_proj, c, "model.layers.%d.self_attn.q_proj.weight", l);
            assert_null(y->q_a_layernorm);
        }
        assert_matrix(&y->kv_a_proj_with_mqa, c, "model.layers.%d.self_attn.kv_a_proj_with_mqa.weight", l);
        assert_matrix(&y->mla.kv_b, c, "model.layers.%d.self_attn.kv_b_proj.weight", l);
        assert_matrix(&y->o_proj, c, "model.layers.%d.self_attn.o_proj.weight", l);
        if (bf16_norms) {
            assert_bf16_vector(y->input_layernorm, c, "model.layers.%d.input_layernorm.weight", l);
            assert_bf16_vector(y->post_attention_layernorm, c, "model.layers.%d.post_attention_layernorm.weight", l);
            assert_bf16_vector(y->mla.kv_a_norm, c, "model.layers.%d.self_attn.kv_a_layernorm.weight", l);
            if (m->config.shape.q_lora_rank)
                assert_bf16_vector(y->q_a_layernorm, c, "model.layers.%d.self_attn.q_a_layernorm.weight", l);
        }
        if (!dsv2i_config_is_moe(&m->config, l)) {
            snprintf(prefix, sizeof prefix, "model.layers.%d.mlp", l);
            assert_ffn(&y->mlp, c, prefix);
            assert_int_equal(y->router.rows, 0);
            assert_null(y->experts);
            continue;
        }
        assert_matrix(&y->router, c, "model.layers.%d.mlp.gate.weight", l);
        for (int e = 0; e < m->config.shape.n_routed_experts; e++) {
            snprintf(prefix, sizeof prefix, "model.layers.%d.mlp.experts.%d", l, e);
            assert_ffn(&y->experts[e], c, prefix);
        }
        snprintf(prefix, sizeof prefix, "model.layers.%d.mlp.shared_experts", l);
        if (m->config.shape.n_shared_experts)
            assert_ffn(&y->mlp, c, prefix);
        else
            assert_int_equal(y->mlp.gate.rows, 0);
    }
    if (bf16_norms)
        assert_bf16_vector(m->norm, c, "model.norm.weight");
}

static void load_and_compare(struct ck *c, int bf16_norms)
{
    struct ck_files f;
    long alive = heap.alive;

    ck_build(c, &f);
    for (int way = 0; way < CK_WAYS; way++) {
        dsv2_model *m = load(&f, way);

        assert_weights(m, c, bf16_norms);
        assert_int_equal(ck_held(), way == CK_MMAP ? (c->n_shards ? c->n_shards : 1) : 0);
        dsv2_model_free(m);
        assert_int_equal(heap.alive, alive);
        assert_int_equal(ck_held(), 0);
    }
    ck_files_free(&f);
}

static void test_plain(void **state)
{
    struct ck c;

    (void)state;
    for (int model = 'A'; model <= 'B'; model++) {
        ck_init(&c, (char)model);
        load_and_compare(&c, 1);
        ck_free(&c);
    }
}

static void test_sharded(void **state)
{
    struct ck c;

    (void)state;
    ck_init(&c, 'A');
    c.n_shards = 4;
    for (int i = 0; i < c.n_tensors; i++)
        c.tensor[i].shard = 1 + i * 4 / c.n_tensors;
    load_and_compare(&c, 1);
    ck_free(&c);
}

static void test_types(void **state)
{
    static const char *const types[] = {"F16", "F32", "BF16"};
    struct ck c;

    (void)state;
    for (int all = 0; all < 3; all++) {
        ck_init(&c, 'A');
        for (int i = 0; i < c.n_tensors; i++)
            ck_retype(&c.tensor[i], types[all == 2 ? i % 3 : all], c.tensor[i].rank, c.tensor[i].shape);
        load_and_compare(&c, 0);
        ck_free(&c);
    }
}

/* Every kind of fp16 number, and fp32 ones, in a norm. */
static void test_norm_values(void **state)
{
    static const uint16_t half[8] = {0x3C00, 0xC000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0x7C00, 0xFE00};
    static const float wanted[8] = {1, -2, 0x1p-24f, -1023 * 0x1p-24f, 0x1p-14f, 65504, INFINITY, NAN};
    struct ck c;
    struct ck_files f;
    dsv2_model *m;
    struct ck_tensor *t;

    (void)state;
    ck_init(&c, 'A');
    t = ck_find(&c, "model.norm.weight");
    ck_retype(t, "F16", 1, t->shape);
    memcpy(t->data, half, sizeof half);
    t = ck_find(&c, "model.layers.0.input_layernorm.weight");
    ck_retype(t, "F32", 1, t->shape);
    memcpy(t->data, wanted, sizeof wanted);
    ck_build(&c, &f);
    m = load(&f, CK_MMAP);
    assert_memory_equal(m->norm, wanted, 7 * sizeof *wanted);
    assert_true(isnan(m->norm[7]));
    assert_memory_equal(m->layers[0].input_layernorm, wanted, sizeof wanted);
    dsv2_model_free(m);
    ck_files_free(&f);
    ck_free(&c);
}

/* A data section at any address, and 0 to 3 bytes in front of all matrices: what cannot stay is copied. */
static void test_misaligned(void **state)
{
    (void)state;
    for (int64_t odd = 0; odd < 4; odd++) {
        struct ck c;
        struct ck_tensor last;

        ck_init(&c, 'A');
        for (int i = 0; i < 40; i++)
            ck_retype(&c.tensor[i], "F32", c.tensor[i].rank, c.tensor[i].shape);
        ck_add(&c, "x.rotary_emb.inv_freq", "U8", 1, &odd);
        last = c.tensor[c.n_tensors - 1];
        c.tensor[c.n_tensors - 1] = c.tensor[0];
        c.tensor[0] = last;
        for (c.header_rest = 0; c.header_rest < 8; c.header_rest++)
            load_and_compare(&c, 0);
        ck_free(&c);
    }
}

static void test_fused_experts(void **state)
{
    static const char *const parts[] = {"gate", "up", "down"};
    struct ck c, fused;
    struct ck_files f;
    char name[100];

    (void)state;
    ck_init(&c, 'A');
    ck_init(&fused, 'A');
    for (int l = 1; l < 3; l++) {
        struct ck_tensor *gate_up, *down;

        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.gate_up_proj", l);
        gate_up = ck_add(&fused, name, "BF16", 3, (int64_t[]){8, 12, 8});
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.down_proj", l);
        down = ck_add(&fused, name, "BF16", 3, (int64_t[]){8, 8, 6});
        for (int e = 0; e < 8; e++) {
            for (int k = 0; k < 3; k++) {
                struct ck_tensor *t;

                snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.%s_proj.weight", l, e, parts[k]);
                t = ck_find(&c, name);
                memcpy(k == 2 ? down->data + (size_t)e * 96 : gate_up->data + (size_t)e * 192 + (size_t)k * 96, t->data, 96);
            }
        }
        for (int e = 0; e < 8; e++) {
            for (int k = 0; k < 3; k++) {
                snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.%s_proj.weight", l, e, parts[k]);
                ck_remove(&fused, name);
            }
        }
    }
    /* the other tensors of fused have the same random data, both being made from the same seed */
    ck_build(&fused, &f);
    for (int way = 0; way < CK_WAYS; way++) {
        dsv2_model *m = load(&f, way);

        assert_weights(m, &c, 1);
        dsv2_model_free(m);
    }
    ck_files_free(&f);
    ck_free(&fused);
    ck_free(&c);
}

static void test_variants(void **state)
{
    struct ck c;
    char name[100];

    (void)state;
    /* one matrix for both ends */
    ck_init(&c, 'A');
    ck_set(&c, "tie_word_embeddings", "true");
    ck_remove(&c, "lm_head.weight");
    {
        struct ck_files f;
        dsv2_model *m;

        ck_build(&c, &f);
        m = load(&f, CK_MMAP);
        assert_ptr_equal(m->lm_head.data, m->embed_tokens.data);
        assert_int_equal(m->lm_head.rows, 11);
        assert_weights(m, &c, 1);
        assert_int_equal(m->info.weight_bytes, 2 * m->info.parameters);
        dsv2_model_free(m);
        ck_files_free(&f);
    }
    ck_free(&c);

    /* no shared experts; buffers of old HF versions */
    ck_init(&c, 'A');
    ck_set(&c, "n_shared_experts", "null");
    for (int l = 1; l < 3; l++) {
        static const char *const parts[] = {"gate", "up", "down"};

        for (int k = 0; k < 3; k++) {
            snprintf(name, sizeof name, "model.layers.%d.mlp.shared_experts.%s_proj.weight", l, parts[k]);
            ck_remove(&c, name);
        }
        snprintf(name, sizeof name, "model.layers.%d.self_attn.rotary_emb.inv_freq", l);
        ck_add(&c, name, "F32", 1, (int64_t[]){2});
    }
    load_and_compare(&c, 1);
    ck_free(&c);
}

/* The three formats of fp8, also with the header's length odd, so that nothing is aligned. */
static void test_fp8(void **state)
{
    struct ck c;

    (void)state;
    for (int format = 0; format < CK_FORMATS; format++)
        for (int rest = 0; rest < 8; rest++) {
            ck_init(&c, rest % 2 ? 'B' : 'A');
            ck_quantize(&c, (enum ck_format)format);
            c.header_rest = rest;
            load_and_compare(&c, 1);
            ck_free(&c);
        }
}

/* A saved session belongs to a model with these scales. */
static void test_fp8_fingerprint(void **state)
{
    struct ck c;

    (void)state;
    for (int format = 0; format < CK_FORMATS; format++) {
        uint64_t weights[2];

        ck_init(&c, 'A');
        ck_quantize(&c, (enum ck_format)format);
        for (int i = 0; i < 2; i++) {
            struct ck_files f;
            dsv2_model *m;

            if (i == 1) {
                struct ck_tensor *t = ck_find(&c, format == CK_BLOCK ? "model.layers.2.mlp.experts.7.down_proj.weight_scale_inv"
                                                                     : "model.layers.2.mlp.experts.7.down_proj.weight_scale");

                t->data[t->bytes - 1] ^= 1;
            }
            ck_build(&c, &f);
            m = load(&f, CK_READ);
            weights[i] = dsv2i_fingerprint(m).weights;
            dsv2_model_free(m);
            ck_files_free(&f);
        }
        assert_true(weights[0] != weights[1]);
        ck_free(&c);
    }
}

/* What is quantized is seen from the tensors: a head with scales, an expert without, a list of names that says no more than that. */
static void test_fp8_mixtures(void **state)
{
    static const char *const configs[][2] = {
        {"strategy\": \"channel", "strategy\": \"channel"}, {"\"ignore\": [", "\"ignore\": null, \"Ignore\": ["},
        {"\"lm_head\"", "\"model.layers.1.mlp.experts.2.up_proj\", \"head\", \"re:lm\", \"re:mlp\""},
        {"\"quantization_status\": \"compressed\"", "\"sparsity_config\": {}, \"transform_config\": null"},
        {"\"compressed\"", "\"frozen\", \"sparsity_config\": {\"format\": \"dense\", \"ignore\": []}"},
        {"{\"targets\"", "{\"format\": \"float-quantized\", \"targets\""}, {"\"strategy\": \"channel\", ", "\"strategy\": \"channel\", \"group_size\": null, "},
        {"\"symmetric\": true, ", ""}, {", \"dynamic\": false", ""},
    };
    struct ck c;

    (void)state;
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
        struct ck_tensor *expert;
        struct ck_files f;
        dsv2_model *m;

        ck_init(&c, 'A');
        ck_quantize(&c, CK_ROW);
        expert = ck_find(&c, "model.layers.1.mlp.experts.2.up_proj.weight");
        ck_retype(expert, "F16", 2, expert->shape);
        ck_remove(&c, "model.layers.1.mlp.experts.2.up_proj.weight_scale");
        ck_build(&c, &f);
        ck_replace(&f, "config.json", configs[i][0], configs[i][1]);
        m = load(&f, CK_MMAP);
        assert_weights(m, &c, 1);
        dsv2_model_free(m);
        ck_files_free(&f);
        ck_free(&c);
    }
    /* a config.json that was left as it was when the weights became bf16 again */
    ck_init(&c, 'A');
    ck_set(&c, "quantization_config", ck_quantization[CK_BLOCK]);
    load_and_compare(&c, 1);
    ck_set(&c, "quantization_config", "null");
    load_and_compare(&c, 1);
    ck_free(&c);
    ck_init(&c, 'A');
    ck_quantize(&c, CK_BLOCK);
    ck_set(&c, "quantization_config", "{\"quant_method\": \"fp8\", \"weight_block_size\": [128, 128], \"modules_to_not_convert\": [\"gate\"]}");
    ck_retype(ck_find(&c, "lm_head.weight"), "F8_E4M3", 2, ck_find(&c, "lm_head.weight")->shape);
    ck_set_floats(ck_add(&c, "lm_head.weight_scale_inv", "F32", 2, (const int64_t[]){1, 1}), 0.5f);
    load_and_compare(&c, 1);
    ck_free(&c);
}

/* ---- Facts and memory */

static void copy_config(const char *name, struct ck_files *out)
{
    char path[600], text[8192];
    FILE *f;

    snprintf(path, sizeof path, "%s/tests/loading/configs/%s.json", TEST_ROOT, name);
    f = fopen(path, "rb");
    assert_non_null(f);
    memset(out, 0, sizeof *out);
    ck_put(out, "config.json", text, fread(text, 1, sizeof text, f));
    fclose(f);
}

static void test_inspect_releases(void **state)
{
    static const struct {
        const char *name;
        uint64_t parameters, active, kv;
        double scale;
    } releases[] = {
        {"v2", 235741434880, 20851512320, 34560, 0.1147213867929261},
        {"v2.5", 235741434880, 20851512320, 34560, 0.1352337788608801},
        {"v2-lite", 15706484224, 2451435008, 15552, 0.1147213867929261},
        {"esft-lite", 15706484224, 2451435008, 15552, 0.0721687836487032},
    };

    (void)state;
    for (size_t i = 0; i < sizeof releases / sizeof *releases; i++) {
        dsv2_model_info info = {.struct_size = sizeof info};
        dsv2_memory memory = {.struct_size = sizeof memory};
        dsv2_session_params session;
        dsv2_model *m;
        struct ck_files f;

        copy_config(releases[i].name, &f);
        dsv2_session_params_init(&session, sizeof session);
        session.n_ctx = 4096;
        if (dsv2_model_inspect(ctx, ck_folder(&f), NULL, &session, &info, &memory) != DSV2_OK)
            fail_msg("%s: %s", releases[i].name, dsv2_last_error());
        assert_true(info.parameters == releases[i].parameters);
        assert_true(info.active_parameters == releases[i].active);
        assert_true(info.kv_elements_per_token == releases[i].kv);
        assert_true(info.weight_bytes == 2 * releases[i].parameters);
        assert_true(fabs(info.softmax_scale - releases[i].scale) < 1e-16);
        assert_string_equal(info.weight_dtype, "BF16");
        assert_int_equal(info.bos_token_id, 100000);
        assert_int_equal(info.eos_token_id, 100001);
        assert_int_equal(info.has_tokenizer, 0);
        assert_int_equal(info.n_tokens, 0);
        assert_true(memory.weights == info.weight_bytes);
        assert_true(memory.other > (uint64_t)(info.num_hidden_layers - 1) * (uint64_t)info.n_routed_experts * sizeof(struct dsv2i_ffn));
        assert_true(memory.kv_per_token == 2 * releases[i].kv);
        assert_true(memory.kv == 4096 * 2 * releases[i].kv);
        assert_int_equal(memory.n_ctx, 4096);
        assert_true(memory.total == memory.weights + memory.kv + memory.scratch + memory.other);
        /* but nothing to load */
        assert_int_equal(dsv2_model_load(ctx, ck_folder(&f), NULL, &m), DSV2_ERR_IO);
        ck_files_free(&f);
    }
}

/* Of config.json alone: fp8 layers take a byte per weight, ends, norms and routers two. */
static void test_inspect_fp8(void **state)
{
    static const char *const folders[] = {"fp8-tensor", "fp8-channel", "fp8-block"};

    (void)state;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        dsv2_model_info alone = {.struct_size = sizeof alone}, with = {.struct_size = sizeof with};
        dsv2_memory memory = {.struct_size = sizeof memory};
        struct ck_files f;
        char path[600], text[8192];
        FILE *file;

        snprintf(path, sizeof path, "%s/tests/golden/%s", TEST_ROOT, folders[i]);
        assert_int_equal(dsv2_model_inspect(ctx, path, NULL, NULL, &with, &memory), DSV2_OK);
        strcat(path, "/config.json");
        file = fopen(path, "rb");
        assert_non_null(file);
        memset(&f, 0, sizeof f);
        ck_put(&f, "config.json", text, fread(text, 1, sizeof text, file));
        fclose(file);
        assert_int_equal(dsv2_model_inspect(ctx, ck_folder(&f), NULL, NULL, &alone, &memory), DSV2_OK);
        assert_string_equal(with.weight_dtype, "F8_E4M3");
        assert_string_equal(alone.weight_dtype, "F8_E4M3");
        assert_int_equal(alone.parameters, with.parameters);
        assert_true(alone.weight_bytes < with.weight_bytes && alone.weight_bytes > with.weight_bytes * 0.95);
        ck_files_free(&f);
    }
}

/* What inspect says without weights is what loading takes. */
static void test_memory(void **state)
{
    static const char *const folders[] = {"tests/golden/production-heads", "tests/golden/lite-bf16", "tests/golden/v2",
                                           "tests/golden/v5-fused-bf16", "tests/golden/fp8-tensor", "tests/golden/fp8-channel",
                                           "tests/golden/fp8-block", "examples/model"};

    (void)state;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        dsv2_model_info inspected = {.struct_size = sizeof inspected}, loaded = {.struct_size = sizeof loaded};
        dsv2_memory memory = {.struct_size = sizeof memory};
        dsv2_model_params params;
        dsv2_model *m;
        long before = heap.alive;
        double taken, said;
        char folder[600];

        snprintf(folder, sizeof folder, "%s/%s", TEST_ROOT, folders[i]);
        dsv2_model_params_init(&params, sizeof params);
        params.load_mode = DSV2_LOAD_READ;
        if (dsv2_model_inspect(ctx, folder, &params, NULL, &inspected, &memory) != DSV2_OK)
            fail_msg("%s", dsv2_last_error());
        assert_int_equal(heap.alive, before);
        if (dsv2_model_load(ctx, folder, &params, &m) != DSV2_OK)
            fail_msg("%s", dsv2_last_error());
        assert_int_equal(dsv2_model_get_info(m, &loaded), DSV2_OK);
        assert_memory_equal(&loaded, &inspected, sizeof loaded);
        assert_true(m->weight_memory == memory.weights && m->other_memory == memory.other);
        taken = (double)(heap.alive - before);
        said = (double)(memory.weights + memory.other);
        if (fabs(taken - said) > 0.05 * taken)
            fail_msg("%s: %.0f bytes taken, %.0f said", folders[i], taken, said);
        dsv2_model_free(m);
        assert_int_equal(heap.alive, before);
    }
}

static void test_info(void **state)
{
    static const char generation[] = "{\"do_sample\": true, \"temperature\": 0.3, \"eos_token_id\": [9]}";
    struct ck c;
    struct ck_files f;
    dsv2_model *m;
    dsv2_model_info info;

    (void)state;
    ck_init(&c, 'A');
    ck_set(&c, "eos_token_id", "[4, 2]");
    for (int i = 0; i < 3; i++)
        ck_retype(&c.tensor[i], "F32", c.tensor[i].rank, c.tensor[i].shape);
    ck_build(&c, &f);
    ck_put(&f, "generation_config.json", generation, sizeof generation - 1);
    m = load(&f, CK_READER);
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    assert_int_equal(dsv2_model_get_info(m, &info), DSV2_OK);
    assert_int_equal(info.vocab_size, 11);
    assert_int_equal(info.q_lora_rank, 7);
    assert_int_equal(info.n_group, 4);
    assert_int_equal(info.topk_group, 2);
    assert_int_equal(info.first_k_dense_replace, 1);
    assert_int_equal(info.eos_token_id, 4);
    assert_int_equal(info.chat_template, DSV2_CHAT_NONE);
    assert_int_equal(info.kv_elements_per_token, 27);
    assert_int_equal(info.parameters, 4734);
    assert_true(info.routed_scaling_factor == 2.5 && info.rope_theta == 10000);
    assert_string_equal(info.weight_dtype, "BF16"); /* of most bytes */
    assert_true(m->generation.temperature == 0.3 && m->generation.do_sample == 1);
    assert_int_equal(m->generation.eos_token_id[0], 9);
    assert_int_equal(dsv2_token_is_eos(m, 4), 1);
    assert_int_equal(dsv2_token_is_eos(m, 2), 1);
    assert_int_equal(dsv2_token_is_eos(m, 9), 1);
    assert_int_equal(dsv2_token_is_eos(m, 3), 0);
    dsv2_model_retain(m);
    dsv2_model_free(m);
    assert_int_equal(dsv2_model_get_info(m, &info), DSV2_OK); /* alive by the second reference */
    dsv2_model_free(m);
    ck_files_free(&f);
    ck_free(&c);
}

/* ---- Progress and changes under way */

struct progress {
    int calls, cancel_at;   /* cancel at this call, counted from 0; -1: never */
    uint64_t last, total;
    const char *truncate;   /* a file to cut at the first call */
};

static int32_t on_progress(void *user, uint64_t done, uint64_t total)
{
    struct progress *p = user;

    assert_true(done >= p->last && done <= total);
    assert_true(p->calls == 0 ? done == 0 : total == p->total);
    if (p->truncate && p->calls == 0)
        assert_int_equal(truncate(p->truncate, 12000), 0);
    p->last = done;
    p->total = total;
    return p->calls++ == p->cancel_at;
}

static dsv2_status load_with_progress(struct ck_files *f, int way, struct progress *p, dsv2_model **m)
{
    dsv2_reader reader = {sizeof reader, ck_reader_size, ck_reader_read, f};
    dsv2_model_params params;
    char path[600];

    dsv2_model_params_init(&params, sizeof params);
    params.load_mode = way == CK_READ ? DSV2_LOAD_READ : DSV2_LOAD_MMAP;
    params.progress = on_progress;
    params.progress_user = p;
    if (way == CK_READER)
        params.reader = &reader;
    if (p->truncate) {
        snprintf(path, sizeof path, "%s/model.safetensors", ck_folder(f));
        p->truncate = path;
    }
    return dsv2_model_load(ctx, ck_folder(f), &params, m);
}

static void test_progress(void **state)
{
    struct ck c;
    struct ck_files f;

    (void)state;
    ck_init(&c, 'A');
    c.n_shards = 3;
    for (int i = 0; i < c.n_tensors; i++)
        c.tensor[i].shard = 1 + i % 3;
    ck_add(&c, "model.layers.0.self_attn.rotary_emb.inv_freq", "F32", 1, (int64_t[]){2});
    ck_build(&c, &f);
    for (int way = 0; way < CK_WAYS; way++) {
        struct progress whole = {.cancel_at = -1};
        long alive = heap.alive;
        dsv2_model *m;

        assert_int_equal(load_with_progress(&f, way, &whole, &m), DSV2_OK);
        assert_int_equal(whole.last, whole.total);
        assert_int_equal(whole.total, 2 * 4734 + 8);
        assert_true(whole.calls >= 4);
        dsv2_model_free(m);
        for (int at = 0; at < whole.calls; at++) {
            struct progress p = {.cancel_at = at};

            assert_int_equal(load_with_progress(&f, way, &p, &m), DSV2_ERR_CANCELLED);
            assert_null(m);
            assert_int_equal(p.calls, at + 1); /* not asked again */
            assert_int_equal(heap.alive, alive);
            assert_int_equal(ck_held(), 0);
        }
    }
    ck_files_free(&f);
    ck_free(&c);
}

/* A file that is cut between its header's reading and its data's. */
static void test_shrinking(void **state)
{
    struct ck c;
    struct ck_files f;

    (void)state;
    ck_init(&c, 'A');
    ck_build(&c, &f);
    for (int way = CK_MMAP; way <= CK_READ; way++) {
        struct progress p = {.cancel_at = -1, .truncate = ""};
        dsv2_model *m;

        assert_int_equal(load_with_progress(&f, way, &p, &m), DSV2_ERR_IO);
        assert_non_null(strstr(dsv2_last_error(), "model.safetensors"));
        assert_non_null(strstr(dsv2_last_error(), "12000"));
    }
    ck_files_free(&f);
    ck_free(&c);
}

/* After reading, the file may go: no page of it is touched again. */
static void test_read_is_a_copy(void **state)
{
    struct ck c;
    struct ck_files f;
    dsv2_model *m;
    char path[600];

    (void)state;
    ck_init(&c, 'A');
    ck_build(&c, &f);
    m = load(&f, CK_READ);
    snprintf(path, sizeof path, "%s/model.safetensors", ck_folder(&f));
    assert_int_equal(truncate(path, 0), 0);
    assert_weights(m, &c, 1);
    dsv2_model_free(m);
    ck_files_free(&f);
    ck_free(&c);
}

/* ---- chat_template.jinja: what Transformers renders from such folders (tests/golden/template/files.jsonl) */

static void assert_renderings(dsv2_model *m, const cJSON *of)
{
    const char *name = cJSON_GetObjectItem(of, "case")->valuestring;
    const cJSON *rendering, *item;

    cJSON_ArrayForEach(rendering, cJSON_GetObjectItem(of, "renderings")) {
        uint32_t flags = cJSON_IsTrue(cJSON_GetObjectItem(rendering, "add_generation_prompt")) ? DSV2_CHAT_GENERATE : 0;
        dsv2_chat_message messages[8];
        char text[1024];
        size_t n = 0, n_text;

        cJSON_ArrayForEach(item, cJSON_GetObjectItem(rendering, "messages")) {
            const char *content = cJSON_GetObjectItem(item, "content")->valuestring;

            assert_true(n < 8);
            messages[n++] = (dsv2_chat_message){
                .role = cJSON_GetObjectItem(item, "role")->valuestring, .content = content, .n_content = strlen(content),
            };
        }
        if (dsv2_chat_apply(m, messages, sizeof *messages, n, flags, text, sizeof text - 1, &n_text) != DSV2_OK)
            fail_msg("%s: %s", name, dsv2_last_error());
        text[n_text] = 0;
        if (strcmp(text, cJSON_GetObjectItem(rendering, "expected")->valuestring))
            fail_msg("%s: %s", name, text);
    }
}

static void test_template_file(void **state)
{
    FILE *file = fopen(TEST_ROOT "/tests/golden/template/files.jsonl", "r");
    char *line = NULL;
    size_t room = 0, cases = 0;
    struct ck c;
    struct ck_files f;

    (void)state;
    assert_non_null(file);
    ck_init(&c, 'A');
    for (; getline(&line, &room, file) > 0; cases++) {
        cJSON *of = cJSON_Parse(line);
        const char *config = cJSON_GetObjectItem(of, "tokenizer_config")->valuestring;
        const char *template = cJSON_GetObjectItem(of, "chat_template")->valuestring;

        ck_build(&c, &f);
        ck_put(&f, "tokenizer_config.json", config, strlen(config));
        ck_put(&f, "chat_template.jinja", template, strlen(template));
        for (int way = 0; way < CK_WAYS; way++) {
            dsv2_model *m = load(&f, way);

            assert_renderings(m, of);
            dsv2_model_free(m);
        }
        ck_files_free(&f);
        cJSON_Delete(of);
    }
    assert_true(cases >= 10);
    free(line);
    fclose(file);
    ck_free(&c);
}

/* A file that is none of the known templates hides the one in tokenizer_config.json, and is named. */
static void test_unknown_template_file(void **state)
{
    dsv2_model_info info = {.struct_size = sizeof info};
    dsv2_chat_message message = {.role = "user", .content = "hi", .n_content = 2};
    struct ck c;
    struct ck_files f;
    dsv2_model *m;
    size_t n;

    (void)state;
    ck_init(&c, 'A');
    ck_build(&c, &f);
    ck_put(&f, "chat_template.jinja", "{{ messages }}", 14);
    m = load(&f, CK_READER);
    assert_int_equal(dsv2_chat_apply(m, &message, sizeof message, 1, 0, NULL, 0, &n), DSV2_ERR_UNSUPPORTED);
    assert_non_null(strstr(dsv2_last_error(), "chat_template.jinja: "));
    dsv2_model_free(m);
    assert_int_equal(dsv2_model_inspect(ctx, ck_folder(&f), NULL, NULL, &info, NULL), DSV2_OK);
    assert_int_equal(info.chat_template, DSV2_CHAT_UNKNOWN);
    ck_files_free(&f);
    ck_free(&c);
}

/* ---- Failures of the caller's functions */

struct failing {
    struct ck_files *files;
    int calls, fail_at;
    dsv2_status with;
    int in_size; /* fail in size calls, else in read calls */
};

static dsv2_status failing_size(void *user, const char *name, uint64_t *bytes)
{
    struct failing *x = user;

    assert_null(strchr(name, '/'));
    if (x->in_size && x->calls++ == x->fail_at)
        return x->with;
    return ck_reader_size(x->files, name, bytes);
}

static dsv2_status failing_read(void *user, const char *name, uint64_t offset, void *buf, size_t n)
{
    struct failing *x = user;

    if (!x->in_size && x->calls++ == x->fail_at)
        return x->with;
    return ck_reader_read(x->files, name, offset, buf, n);
}

static void test_reader_errors(void **state)
{
    static const struct {
        dsv2_status with, wanted;
    } kinds[] = {{DSV2_ERR_CANCELLED, DSV2_ERR_CANCELLED}, {DSV2_ERR_NOMEM, DSV2_ERR_NOMEM}, {5, DSV2_ERR_IO}, {-12345, -12345}};
    struct ck c;
    struct ck_files f;

    (void)state;
    ck_init(&c, 'A');
    c.n_shards = 2;
    ck_build(&c, &f);
    ck_put(&f, "generation_config.json", "{}", 2);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        for (int in_size = 0; in_size < 2; in_size++) {
            for (int at = 0;; at++) {
                struct failing x = {&f, 0, at, kinds[k].with, in_size};
                dsv2_reader reader = {sizeof reader, failing_size, failing_read, &x};
                dsv2_model_params params;
                long alive = heap.alive;
                dsv2_model *m;
                dsv2_status status;

                dsv2_model_params_init(&params, sizeof params);
                params.reader = &reader;
                status = dsv2_model_load(ctx, "memory", &params, &m);
                if (x.calls <= at) {
                    assert_int_equal(status, DSV2_OK);
                    assert_true(at >= 5);
                    dsv2_model_free(m);
                    break;
                }
                assert_int_equal(status, kinds[k].wanted);
                assert_null(m);
                assert_non_null(strstr(dsv2_last_error(), in_size ? "size callback" : "read callback"));
                assert_int_equal(heap.alive, alive);
            }
        }
    }
    ck_files_free(&f);
    ck_free(&c);
}

static void test_params(void **state)
{
    struct ck c;
    struct ck_files f;
    dsv2_reader reader = {sizeof reader, ck_reader_size, NULL, &f};
    dsv2_model_params params;
    dsv2_model *m;

    (void)state;
    ck_init(&c, 'A');
    ck_build(&c, &f);
    dsv2_model_params_init(&params, sizeof params);
    params.load_mode = 2;
    assert_int_equal(dsv2_model_load(ctx, ck_folder(&f), &params, &m), DSV2_ERR_INVALID);
    assert_non_null(strstr(dsv2_last_error(), "load_mode: 2"));
    params.load_mode = DSV2_LOAD_READ;
    params.reserved = 3;
    assert_int_equal(dsv2_model_load(ctx, ck_folder(&f), &params, &m), DSV2_ERR_INVALID);
    assert_non_null(strstr(dsv2_last_error(), "reserved: 3"));
    params.reserved = 0;
    params.reader = &reader;
    assert_int_equal(dsv2_model_load(ctx, "memory", &params, &m), DSV2_ERR_INVALID);
    assert_non_null(strstr(dsv2_last_error(), "dsv2_reader: read"));
    /* a program that knows load_mode only */
    params.struct_size = offsetof(dsv2_model_params, reserved);
    assert_int_equal(dsv2_model_load(ctx, ck_folder(&f), &params, &m), DSV2_OK);
    dsv2_model_free(m);
    assert_int_equal(dsv2_model_load(ctx, "/no/such/folder", NULL, &m), DSV2_ERR_IO);
    assert_non_null(strstr(dsv2_last_error(), "/no/such/folder/config.json"));
    ck_files_free(&f);
    ck_free(&c);
}

/* The n-th allocation fails, for every n: an error or a model, and no leak.  One file or two, matrices copied or not. */
static void test_allocation_failures(void **state)
{
    (void)state;
    for (int shards = 0; shards <= 2; shards += 2) {
        struct ck c;
        struct ck_files f;

        ck_init(&c, 'A');
        c.n_shards = shards;
        c.header_rest = shards ? 0 : 1;
        ck_build(&c, &f);
        ck_put(&f, "generation_config.json", "{}", 2);
        ck_put(&f, "tokenizer_config.json", "{\"bos_token\": \"a\"}", 18);
        ck_put(&f, "chat_template.jinja", "{{ messages }}", 14);
        for (int way = 0; way < CK_WAYS; way++) {
            for (long at = 1;; at++) {
                long alive = heap.alive;
                dsv2_model *m;
                dsv2_status status;

                heap.fail_at = at;
                status = ck_load(ctx, &f, (enum ck_way)way, &m);
                if (heap.fail_at > 0) {
                    heap.fail_at = 0;
                    assert_int_equal(status, DSV2_OK);
                    assert_true(at > 50);
                    dsv2_model_free(m);
                    break;
                }
                assert_int_equal(status, DSV2_ERR_NOMEM);
                assert_null(m);
                assert_int_equal(heap.alive, alive);
                assert_int_equal(ck_held(), 0);
            }
        }
        ck_files_free(&f);
        ck_free(&c);
    }
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
    return heap.alive == 0 ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain), cmocka_unit_test(test_sharded), cmocka_unit_test(test_types),
        cmocka_unit_test(test_norm_values), cmocka_unit_test(test_misaligned), cmocka_unit_test(test_fused_experts),
        cmocka_unit_test(test_variants), cmocka_unit_test(test_fp8), cmocka_unit_test(test_fp8_mixtures), cmocka_unit_test(test_fp8_fingerprint),
        cmocka_unit_test(test_inspect_releases), cmocka_unit_test(test_memory), cmocka_unit_test(test_inspect_fp8),
        cmocka_unit_test(test_info), cmocka_unit_test(test_progress), cmocka_unit_test(test_shrinking),
        cmocka_unit_test(test_read_is_a_copy), cmocka_unit_test(test_template_file),
        cmocka_unit_test(test_unknown_template_file), cmocka_unit_test(test_reader_errors), cmocka_unit_test(test_params),
        cmocka_unit_test(test_allocation_failures),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
