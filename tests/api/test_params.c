/* Structs that cross the boundary, as an older, this, and a newer header would have them.
 * SPDX-License-Identifier: MIT */
#include "api_test.h"

#include <stdlib.h>
#include <string.h>

#include "params.h"

/* A struct of the caller's, in a block of exactly its size, so that a sanitizer sees every byte beyond it. */
static void *sized(size_t size)
{
    void *p = malloc(size);

    assert_non_null(p);
    memset(p, 0xA5, size);
    memcpy(p, &size, size < sizeof size ? size : sizeof size);
    return p;
}

static void init_context(void *p, size_t size)
{
    dsv2_context_params_init(p, size);
}

static void init_model(void *p, size_t size)
{
    dsv2_model_params_init(p, size);
}

static void init_text(void *p, size_t size)
{
    dsv2_text_params_init(p, size);
}

static void init_session(void *p, size_t size)
{
    dsv2_session_params_init(p, size);
}

static void init_sample(void *p, size_t size)
{
    dsv2_sample_params_init(p, size, NULL);
}

/* What takes each struct in; the struct may be NULL. */
static dsv2_context *ctx;
static dsv2_model *model;
static dsv2_session *session;

static dsv2_status use_context(const void *p)
{
    dsv2_context *c;
    dsv2_status status = dsv2_context_create(p, &c);

    dsv2_context_free(c);
    return status;
}

static dsv2_status use_model(const void *p)
{
    dsv2_model *m;
    dsv2_status status = dsv2_model_load(ctx, golden("spec-a"), p, &m);

    dsv2_model_free(m);
    return status;
}

static dsv2_status use_model_inspect(const void *p)
{
    return dsv2_model_inspect(ctx, golden("spec-a"), p, NULL, NULL, NULL);
}

static dsv2_status use_session_inspect(const void *p)
{
    return dsv2_model_inspect(ctx, golden("spec-a"), NULL, p, NULL, NULL);
}

static dsv2_status use_text(const void *p)
{
    dsv2_text *t;
    dsv2_status status = dsv2_text_create(model, p, &t);

    dsv2_text_free(t);
    return status;
}

static dsv2_status use_session(const void *p)
{
    dsv2_session *s;
    dsv2_status status = dsv2_session_create(model, p, &s);

    dsv2_session_free(s);
    return status;
}

static dsv2_status use_sample(const void *p)
{
    int32_t token;

    return dsv2_sample(session, p, &token, NULL);
}

static const struct input {
    const char *name;
    size_t size;
    void (*init)(void *p, size_t size);
    dsv2_status (*use)(const void *p);
} inputs[] = {
    {"dsv2_context_params", sizeof(dsv2_context_params), init_context, use_context},
    {"dsv2_model_params", sizeof(dsv2_model_params), init_model, use_model},
    {"dsv2_model_params", sizeof(dsv2_model_params), init_model, use_model_inspect},
    {"dsv2_text_params", sizeof(dsv2_text_params), init_text, use_text},
    {"dsv2_session_params", sizeof(dsv2_session_params), init_session, use_session},
    {"dsv2_session_params", sizeof(dsv2_session_params), init_session, use_session_inspect},
    {"dsv2_sample_params", sizeof(dsv2_sample_params), init_sample, use_sample},
};

#define N_INPUTS (sizeof inputs / sizeof *inputs)
#define LONGEST 512

static void inits(void **state)
{
    for (size_t i = 0; i < N_INPUTS; i++) {
        const struct input *in = &inputs[i];
        char full[LONGEST], zero[LONGEST] = {0};

        in->init(full, in->size);
        for (size_t size = sizeof size; size <= LONGEST; size++) {
            char *p = sized(size);
            size_t known = size < in->size ? size : in->size, stored;

            in->init(p, size);
            memcpy(&stored, p, sizeof stored);
            assert_int_equal(stored, size);
            assert_memory_equal(p + sizeof size, full + sizeof size, known - sizeof size);
            assert_memory_equal(p + known, zero, size - known);
            free(p);
        }
        in->init(NULL, in->size);
        for (size_t size = 0; size < sizeof size; size++) { /* no room for struct_size: nothing is written */
            char byte[sizeof size];

            memset(byte, 0xA5, sizeof byte);
            in->init(byte, size);
            for (size_t k = 0; k < sizeof byte; k++)
                assert_int_equal((unsigned char)byte[k], 0xA5);
        }
    }
}

static void shorter(void **state)
{
    for (size_t i = 0; i < N_INPUTS; i++)
        for (size_t size = sizeof size; size <= inputs[i].size; size += 4) {
            char *p = sized(size);

            inputs[i].init(p, size);
            expect_at(inputs[i].use(p), DSV2_OK, NULL, inputs[i].name, __FILE__, __LINE__);
            free(p);
        }
}

static void longer(void **state)
{
    for (size_t i = 0; i < N_INPUTS; i++)
        for (size_t more = 1; more <= 40; more += 13) {
            size_t size = inputs[i].size + more;
            char *p = sized(size);

            inputs[i].init(p, size);
            expect_at(inputs[i].use(p), DSV2_OK, NULL, inputs[i].name, __FILE__, __LINE__);
            p[size - 1] = 1;
            expect_at(inputs[i].use(p), DSV2_ERR_UNSUPPORTED, inputs[i].name, inputs[i].name, __FILE__, __LINE__);
            p[size - 1] = 0;
            p[inputs[i].size] = 1;
            expect_at(inputs[i].use(p), DSV2_ERR_UNSUPPORTED, inputs[i].name, inputs[i].name, __FILE__, __LINE__);
            free(p);
        }
}

static void impossible_sizes(void **state)
{
    const size_t sizes[] = {0, 1, 7, 65537, SIZE_MAX};

    for (size_t i = 0; i < N_INPUTS; i++) {
        expect_at(inputs[i].use(NULL), DSV2_OK, NULL, inputs[i].name, __FILE__, __LINE__);
        for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
            char p[LONGEST];

            inputs[i].init(p, inputs[i].size);
            memcpy(p, &sizes[k], sizeof sizes[k]);
            expect_at(inputs[i].use(p), DSV2_ERR_INVALID, "struct_size", inputs[i].name, __FILE__, __LINE__);
        }
    }
}

/* A field that an older header lacks takes its default, those it has count. */
static void fields(void **state)
{
    size_t size = offsetof(dsv2_session_params, attention); /* knows n_ctx and kv_type */
    dsv2_session_params full;
    dsv2_session *s;
    dsv2_memory bf16 = {.struct_size = sizeof bf16}, f32 = {.struct_size = sizeof f32};
    void *old = sized(size);

    dsv2_session_params_init(&full, sizeof full);
    dsv2_session_params_init(old, size);
    memcpy((char *)old + offsetof(dsv2_session_params, n_ctx), &(int32_t){200}, 4);
    must(dsv2_session_create(model, old, &s));
    assert_int_equal(dsv2_session_capacity(s), 200);
    must(dsv2_session_memory(s, &bf16));
    dsv2_session_free(s);
    memcpy((char *)old + offsetof(dsv2_session_params, kv_type), &(int32_t){DSV2_KV_F32}, 4);
    must(dsv2_session_create(model, old, &s));
    must(dsv2_session_memory(s, &f32));
    assert_int_equal(f32.kv, 2 * bf16.kv);
    assert_int_equal(f32.scratch, bf16.scratch); /* n_batch is the default in both */
    dsv2_session_free(s);
    free(old);

    full.n_batch = 0;
    expect(use_session(&full), DSV2_ERR_INVALID, "n_batch: 0");
    full.n_batch = 4097;
    expect(use_session(&full), DSV2_ERR_INVALID, "n_batch: 4097");
    full.n_batch = 256;
    full.kv_type = 6;
    expect(use_session(&full), DSV2_ERR_INVALID, "kv_type: 6");
    full.kv_type = DSV2_KV_BF16;
    full.attention = -1;
    expect(use_session(&full), DSV2_ERR_INVALID, "attention: -1");
    full.attention = 3;
    expect(use_session(&full), DSV2_ERR_INVALID, "attention: 3");
    full.attention = DSV2_ATTENTION_AUTO;
    full.n_ctx = -1;
    expect(use_session(&full), DSV2_ERR_INVALID, "n_ctx: -1");
    full.n_ctx = 1281;
    expect(use_session(&full), DSV2_ERR_INVALID, "n_ctx: 1281");
    expect(use_session_inspect(&(dsv2_session_params){.struct_size = sizeof full, .n_ctx = -5, .n_batch = 1}), DSV2_ERR_INVALID,
           "n_ctx: -5");
}

static void context_fields(void **state)
{
    dsv2_context_params p;

    dsv2_context_params_init(&p, sizeof p);
    p.n_threads = -1;
    expect(use_context(&p), DSV2_ERR_INVALID, "n_threads: -1");
    p.n_threads = 1 << 30;
    expect(use_context(&p), DSV2_ERR_INVALID, "n_threads: 1073741824");
    p.n_threads = 1;
    p.cpu_level = -2;
    expect(use_context(&p), DSV2_ERR_INVALID, "cpu_level: -2");
    p.cpu_level = 3;
    expect(use_context(&p), DSV2_ERR_INVALID, "cpu_level: 3");
    p.cpu_level = DSV2_CPU_REFERENCE;
    p.alloc = (dsv2_alloc_fn)abort;
    expect(use_context(&p), DSV2_ERR_INVALID, "alloc and free");
    p.alloc = NULL;
    p.free = (dsv2_free_fn)abort;
    expect(use_context(&p), DSV2_ERR_INVALID, "alloc and free");
}

static void model_fields(void **state)
{
    dsv2_model_params p;
    dsv2_reader reader;
    struct files files = {0};

    dsv2_model_params_init(&p, sizeof p);
    p.load_mode = 2;
    expect(use_model(&p), DSV2_ERR_INVALID, "load_mode: 2");
    p.load_mode = -1;
    expect(use_model(&p), DSV2_ERR_INVALID, "load_mode: -1");
    p.load_mode = DSV2_LOAD_READ;
    must(use_model(&p));
    p.reserved = 1;
    expect(use_model(&p), DSV2_ERR_INVALID, "reserved: 1");
    p.reserved = 0;

    files_add_golden(&files, "spec-a", "config.json");
    files_add_golden(&files, "spec-a", "model.safetensors");
    reader = files_reader(&files);
    p.reader = &reader;
    must(use_model(&p));
    must(use_model_inspect(&p));
    reader.struct_size = 0;
    expect(use_model(&p), DSV2_ERR_INVALID, "struct_size");
    reader.struct_size = sizeof(size_t); /* has neither callback */
    expect(use_model(&p), DSV2_ERR_INVALID, NULL);
    reader = files_reader(&files);
    reader.read = NULL;
    expect(use_model(&p), DSV2_ERR_INVALID, "read");
    reader = files_reader(&files);
    reader.size = NULL;
    expect(use_model(&p), DSV2_ERR_INVALID, "size");
    struct { dsv2_reader r; char more[8]; } wide = {files_reader(&files), {0}};
    wide.r.struct_size = sizeof wide;
    p.reader = &wide.r;
    must(use_model(&p));
    wide.more[7] = 1;
    expect(use_model(&p), DSV2_ERR_UNSUPPORTED, "dsv2_reader");
    files_free(&files);
}

/* ---- Output structs */

static dsv2_status fill_info(void *p)
{
    return dsv2_model_get_info(model, p);
}

static dsv2_status fill_inspect_info(void *p)
{
    return dsv2_model_inspect(ctx, golden("spec-a"), NULL, NULL, p, NULL);
}

static dsv2_status fill_inspect_memory(void *p)
{
    return dsv2_model_inspect(ctx, golden("spec-a"), NULL, NULL, NULL, p);
}

static dsv2_status fill_session_memory(void *p)
{
    return dsv2_session_memory(session, p);
}

static void outputs(void **state)
{
    static const struct { size_t size; dsv2_status (*fill)(void *p); } all[] = {
        {sizeof(dsv2_model_info), fill_info}, {sizeof(dsv2_model_info), fill_inspect_info},
        {sizeof(dsv2_memory), fill_inspect_memory}, {sizeof(dsv2_memory), fill_session_memory},
    };

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char *full = sized(all[i].size), zero[LONGEST] = {0};
        const size_t bad[] = {0, 7, 65537, SIZE_MAX};

        must(all[i].fill(full));
        for (size_t size = sizeof size; size < all[i].size + 50; size += 4) {
            char *p = sized(size);
            size_t known = size < all[i].size ? size : all[i].size, stored;

            must(all[i].fill(p));
            memcpy(&stored, p, sizeof stored);
            assert_int_equal(stored, size);
            assert_memory_equal(p + sizeof size, full + sizeof size, known - sizeof size);
            assert_memory_equal(p + known, zero, size - known);
            free(p);
        }
        for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
            char *before = sized(all[i].size);

            memcpy(full, &bad[k], sizeof bad[k]);
            memcpy(before, full, all[i].size);
            expect(all[i].fill(full), DSV2_ERR_INVALID, "struct_size");
            assert_memory_equal(before, full, all[i].size);
            free(before);
        }
        free(full);
    }
}

/* Arrays of structs carry their element size: older, smaller elements get the fields that they have. */
static void elements(void **state)
{
    int32_t tokens[3] = {1, 5, 9}, logprob_tokens[8];
    dsv2_token_score full[3];
    char wide[3][sizeof(dsv2_token_score) + 8];
    float narrow[3];
    dsv2_logprob top[4];
    size_t n;
    dsv2_session *s;

    must(dsv2_session_create(model, NULL, &s));
    must(dsv2_session_score(s, tokens, 3, full, sizeof *full));
    must(dsv2_session_truncate(s, 0));
    must(dsv2_session_score(s, tokens, 3, (dsv2_token_score *)(void *)narrow, sizeof *narrow));
    must(dsv2_session_truncate(s, 0));
    memset(wide, 0x5A, sizeof wide);
    must(dsv2_session_score(s, tokens, 3, (dsv2_token_score *)(void *)wide, sizeof *wide));
    for (int i = 0; i < 3; i++) {
        assert_memory_equal(&narrow[i], &full[i].logprob, 4);
        assert_memory_equal(wide[i], &full[i], sizeof *full);
    }
    must(dsv2_session_truncate(s, 0));
    expect(dsv2_session_score(s, tokens, 3, full, 0), DSV2_ERR_INVALID, "size of an element");
    assert_int_equal(dsv2_session_position(s), 0);
    must(dsv2_session_prefill(s, tokens, 3));
    must(dsv2_session_logprobs(s, 4, -1, top, sizeof *top, 4, &n));
    must(dsv2_session_logprobs(s, 4, -1, (dsv2_logprob *)(void *)logprob_tokens, sizeof *logprob_tokens, 4, &n));
    for (int i = 0; i < 4; i++)
        assert_int_equal(logprob_tokens[i], top[i].token);
    expect(dsv2_session_logprobs(s, 4, -1, top, 3, 4, &n), DSV2_ERR_INVALID, "size of an element");
    dsv2_session_free(s);
}

/* The pieces themselves. */
static void take_and_fill(void **state)
{
    struct { size_t struct_size; int32_t a, b; } known = {sizeof known, 1, 2}, from = {sizeof from, 7, 8};
    struct { size_t struct_size; int32_t a, b, c, d; } newer = {sizeof newer, 5, 6, 0, 0};

    must(dsv2i_params_take(&known, sizeof known, NULL, "x"));
    assert_true(known.a == 1 && known.b == 2);
    from.struct_size = offsetof(__typeof__(from), b);
    must(dsv2i_params_take(&known, sizeof known, &from, "x"));
    assert_true(known.a == 7 && known.b == 2 && known.struct_size == sizeof known);
    must(dsv2i_params_take(&known, sizeof known, &newer, "x"));
    assert_true(known.a == 5 && known.b == 6);
    newer.a = 9;
    newer.d = 1;
    expect(dsv2i_params_take(&known, sizeof known, &newer, "some_struct"), DSV2_ERR_UNSUPPORTED, "some_struct: byte 20 is set");
    assert_true(known.a == 5);
}

static int set_up(void **state)
{
    int32_t token = 33;

    ctx = open_context(1);
    must(load_tiny(ctx, &model));
    must(dsv2_session_create(model, NULL, &session));
    must(dsv2_session_prefill(session, &token, 1));
    return 0;
}

static int tear_down(void **state)
{
    dsv2_session_free(session);
    dsv2_model_free(model);
    dsv2_context_free(ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(inits), cmocka_unit_test(shorter), cmocka_unit_test(longer), cmocka_unit_test(impossible_sizes),
        cmocka_unit_test(fields), cmocka_unit_test(context_fields), cmocka_unit_test(model_fields), cmocka_unit_test(outputs),
        cmocka_unit_test(elements), cmocka_unit_test(take_and_fill),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
