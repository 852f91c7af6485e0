/* What the API tests share.
 * SPDX-License-Identifier: MIT */
#include "api_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

void expect_at(dsv2_status got, dsv2_status wanted, const char *text, const char *call, const char *file, int line)
{
    if (got != wanted) {
        print_error("%s\n  gave %s, wanted %s; last error: %s\n", call, dsv2_status_name(got), dsv2_status_name(wanted),
                    dsv2_last_error());
        _fail(file, line);
    }
    if (text && !strstr(dsv2_last_error(), text)) {
        print_error("%s\n  \"%s\" is not in the error text: %s\n", call, text, dsv2_last_error());
        _fail(file, line);
    }
}

dsv2_chat_message say(const char *role, const char *content)
{
    return (dsv2_chat_message){.role = role, .content = content, .n_content = strlen(content)};
}

uint32_t random_u32(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u; /* splitmix64 */

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ z >> 31) >> 32);
}

double random_unit(uint64_t *state)
{
    return random_u32(state) * 0x1p-32;
}

const char *golden(const char *name)
{
    static char path[1024];

    snprintf(path, sizeof path, "%s/golden/%s", TEST_ROOT, name);
    return path;
}

dsv2_context_params context_params(int32_t n_threads)
{
    const char *level = getenv("DSV2_TEST_CPU");
    dsv2_context_params p;

    dsv2_context_params_init(&p, sizeof p);
    p.n_threads = n_threads;
    if (level)
        p.cpu_level = atoi(level);
    return p;
}

dsv2_context *open_context(int32_t n_threads)
{
    dsv2_context_params p = context_params(n_threads);
    dsv2_context *ctx;

    must(dsv2_context_create(&p, &ctx));
    return ctx;
}

dsv2_model *open_model(dsv2_context *ctx, const char *golden_name)
{
    dsv2_model *model;

    must(dsv2_model_load(ctx, golden(golden_name), NULL, &model));
    return model;
}

dsv2_session *open_session(dsv2_model *model, int32_t n_ctx, int32_t kv_type, int32_t attention, int32_t n_batch)
{
    dsv2_session_params p;
    dsv2_session *s;

    dsv2_session_params_init(&p, sizeof p);
    p.n_ctx = n_ctx;
    p.kv_type = kv_type;
    p.attention = attention;
    p.n_batch = n_batch;
    must(dsv2_session_create(model, &p, &s));
    return s;
}

const float *logits_of(const dsv2_session *s)
{
    const float *logits;
    size_t n;

    must(dsv2_session_logits(s, &logits, &n));
    return logits;
}

/* ---- Fixtures */

char *read_file(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    char *data;
    long size;

    if (!f)
        fail_msg("%s cannot be opened", path);
    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);
    data = malloc((size_t)size + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)size, f), size);
    fclose(f);
    data[size] = 0;
    if (n)
        *n = (size_t)size;
    return data;
}

static const cJSON *member(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);

    if (!item)
        fail_msg("fixture: no %s", key);
    return item;
}

static int32_t *integers(const cJSON *array, size_t *n)
{
    int32_t *out;
    const cJSON *item;
    size_t i = 0;

    *n = (size_t)cJSON_GetArraySize(array);
    out = calloc(*n, sizeof *out);
    assert_non_null(out);
    cJSON_ArrayForEach(item, array)
        out[i++] = item->valueint;
    return out;
}

void fixture_open(struct fixture *f, const char *golden_name)
{
    char path[1100];
    char *text;

    snprintf(path, sizeof path, "%s/expected.json", golden(golden_name));
    text = read_file(path, NULL);
    f->root = cJSON_Parse(text);
    free(text);
    assert_non_null(f->root);
    snprintf(path, sizeof path, "%s/expected.bin", golden(golden_name));
    f->data = read_file(path, &f->n_data);
    f->ids = integers(member(f->root, "ids"), &f->n_ids);
    f->positions = integers(member(f->root, "positions"), &f->n_positions);
    f->n_vocab = (size_t)fixture_number(f, "vocab_size");
    f->logits = fixture_array(f, "logits", "f64", f->n_positions * f->n_vocab);
}

void fixture_close(struct fixture *f)
{
    cJSON_Delete(f->root);
    free(f->data);
    free(f->ids);
    free(f->positions);
}

int fixture_has(const struct fixture *f, const char *array)
{
    return cJSON_HasObjectItem(member(f->root, "arrays"), array);
}

const void *fixture_array(const struct fixture *f, const char *array, const char *dtype, size_t count)
{
    const cJSON *a = member(member(f->root, "arrays"), array), *dim;
    size_t offset = (size_t)member(a, "offset")->valuedouble, n = 1;

    assert_string_equal(member(a, "dtype")->valuestring, dtype);
    cJSON_ArrayForEach(dim, member(a, "shape"))
        n *= (size_t)dim->valuedouble;
    assert_int_equal(n, count);
    assert_true(offset + n * (dtype[1] == '6' ? 8 : 4) <= f->n_data);
    return f->data + offset;
}

double fixture_number(const struct fixture *f, const char *key)
{
    return member(f->root, key)->valuedouble;
}

/* ---- A reader, and a tokenizer */

void files_add(struct files *f, const char *name, char *data, size_t size)
{
    assert_true((size_t)f->n < sizeof f->file / sizeof *f->file);
    f->file[f->n].name = name;
    f->file[f->n].data = data;
    f->file[f->n].size = size;
    f->n++;
}

void files_add_golden(struct files *f, const char *golden_name, const char *name)
{
    char path[1100];
    size_t n;
    char *data;

    snprintf(path, sizeof path, "%s/%s", golden(golden_name), name);
    data = read_file(path, &n);
    files_add(f, name, data, n);
}

void files_free(struct files *f)
{
    while (f->n)
        free(f->file[--f->n].data);
}

static int find_file(struct files *f, const char *name)
{
    if (++f->calls == f->fail_at)
        return -1;
    for (int i = 0; i < f->n; i++)
        if (!strcmp(f->file[i].name, name))
            return i;
    return -1;
}

static dsv2_status file_size(void *user, const char *name, uint64_t *bytes)
{
    struct files *f = user;
    int i = find_file(f, name);

    if (i < 0)
        return DSV2_ERR_IO;
    *bytes = f->file[i].size;
    return DSV2_OK;
}

static dsv2_status file_read(void *user, const char *name, uint64_t offset, void *buf, size_t n)
{
    struct files *f = user;
    int i = find_file(f, name);

    if (i < 0 || offset > f->file[i].size || n > f->file[i].size - offset)
        return DSV2_ERR_IO;
    memcpy(buf, f->file[i].data + offset, n);
    return DSV2_OK;
}

dsv2_reader files_reader(struct files *f)
{
    return (dsv2_reader){.struct_size = sizeof(dsv2_reader), .size = file_size, .read = file_read, .user = f};
}

const char *tiny_tokenizer(void)
{
    static char text[8192];
    char *p = text;

    if (text[0])
        return text;
    p += sprintf(p, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":["
                    "{\"id\":97,\"content\":\"<s>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":true,"
                    "\"special\":true},"
                    "{\"id\":98,\"content\":\"</s>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":true,"
                    "\"special\":true}],"
                    "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
                    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\s?[a-z]+\"},\"behavior\":\"Isolated\",\"invert\":false},"
                    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":false}]},"
                    "\"post_processor\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":false,\"use_regex\":true},"
                    "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
                    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
                    "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"vocab\":{\"\\u0120\":0");
    for (int c = 0x21; c < 0x7F; c++)
        p += sprintf(p, c == '"' || c == '\\' ? ",\"\\%c\":%d" : ",\"%c\":%d", c, c - 0x20);
    sprintf(p, ",\"th\":95,\"the\":96},\"merges\":[\"t h\",\"th e\"]}}");
    return text;
}

const char tiny_tokenizer_config[] =
    "{\"add_bos_token\":true,\"add_eos_token\":false,\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"chat_template\":"
    "\"{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}\"}";

/* The first from in text (malloc; freed) replaced. */
static char *replace(char *text, const char *from, const char *to)
{
    char *at = strstr(text, from), *out = malloc(strlen(text) + strlen(to) + 1);

    assert_non_null(at);
    assert_non_null(out);
    sprintf(out, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    free(text);
    return out;
}

void files_replace(struct files *f, const char *name, const char *from, const char *to)
{
    int i = find_file(f, name);

    assert_true(i >= 0);
    f->file[i].data = replace(f->file[i].data, from, to);
    f->file[i].size = strlen(f->file[i].data);
}

void tiny_files(struct files *f)
{
    static const char generation[] =
        "{\"bos_token_id\":97,\"eos_token_id\":[98,96],\"do_sample\":true,\"temperature\":0.3,\"top_p\":0.95}";
    char path[1100], *config;

    snprintf(path, sizeof path, "%s/config.json", golden("v2"));
    config = replace(read_file(path, NULL), "\"bos_token_id\": 0", "\"bos_token_id\": 97");
    config = replace(config, "\"eos_token_id\": 1", "\"eos_token_id\": 98");
    *f = (struct files){0};
    files_add(f, "config.json", config, strlen(config));
    files_add_golden(f, "v2", "model.safetensors");
    files_add(f, "tokenizer.json", strdup(tiny_tokenizer()), strlen(tiny_tokenizer()));
    files_add(f, "tokenizer_config.json", strdup(tiny_tokenizer_config), strlen(tiny_tokenizer_config));
    files_add(f, "generation_config.json", strdup(generation), strlen(generation));
}

dsv2_status load_files(dsv2_context *ctx, struct files *f, dsv2_model **model)
{
    dsv2_reader reader = files_reader(f);
    dsv2_model_params p;

    dsv2_model_params_init(&p, sizeof p);
    p.reader = &reader;
    return dsv2_model_load(ctx, "files", &p, model);
}

dsv2_status load_tiny(dsv2_context *ctx, dsv2_model **model)
{
    struct files f;
    dsv2_status status;

    tiny_files(&f);
    status = load_files(ctx, &f, model);
    files_free(&f);
    return status;
}
