/* SPDX-License-Identifier: MIT */
#include "checkpoint.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x), abort()))

static uint32_t noise = 1;

static size_t dtype_size(const char *dtype)
{
    return strstr(dtype, "64") ? 8 : strstr(dtype, "32") ? 4 : strstr(dtype, "16") ? 2 : 1;
}

/* ---- Tensors and keys */

void ck_retype(struct ck_tensor *t, const char *dtype, int rank, const int64_t *shape)
{
    int64_t shape_copy[10];
    size_t n = dtype_size(dtype);

    for (int i = 0; i < rank; i++)
        shape_copy[i] = shape[i]; /* may be t's own */
    memmove(t->dtype, dtype, strlen(dtype) + 1); /* and so may dtype */
    t->rank = rank;
    for (int i = 0; i < rank; i++) {
        t->shape[i] = shape_copy[i];
        n *= (size_t)shape_copy[i];
    }
    free(t->data);
    t->data = malloc(n + 1);
    t->bytes = n;
    for (size_t i = 0; i < n; i++) {
        noise = noise * 1664525 + 1013904223;
        t->data[i] = (unsigned char)(noise >> 24) & 0xBF; /* no infinities in any type */
    }
}

struct ck_tensor *ck_add(struct ck *c, const char *name, const char *dtype, int rank, const int64_t *shape)
{
    struct ck_tensor *t = &c->tensor[c->n_tensors++];

    CHECK(c->n_tensors <= 300);
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "%s", name);
    t->shard = 1;
    ck_retype(t, dtype, rank, shape);
    return t;
}

__attribute__((format(printf, 4, 5))) static void add(struct ck *c, int64_t rows, int64_t cols, const char *format, ...)
{
    int64_t shape[2] = {rows, cols};
    char name[128];
    va_list args;

    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    ck_add(c, name, "BF16", cols ? 2 : 1, shape);
}

static void add_ffn(struct ck *c, int64_t inter, const char *prefix)
{
    add(c, inter, 8, "%s.gate_proj.weight", prefix);
    add(c, inter, 8, "%s.up_proj.weight", prefix);
    add(c, 8, inter, "%s.down_proj.weight", prefix);
}

static void add_layer(struct ck *c, int l, int q_lora)
{
    char prefix[64];

    add(c, 8, 0, "model.layers.%d.input_layernorm.weight", l);
    if (q_lora) {
        add(c, 7, 8, "model.layers.%d.self_attn.q_a_proj.weight", l);
        add(c, 7, 0, "model.layers.%d.self_attn.q_a_layernorm.weight", l);
        add(c, 20, 7, "model.layers.%d.self_attn.q_b_proj.weight", l);
    } else {
        add(c, 20, 8, "model.layers.%d.self_attn.q_proj.weight", l);
    }
    add(c, 9, 8, "model.layers.%d.self_attn.kv_a_proj_with_mqa.weight", l);
    add(c, 5, 0, "model.layers.%d.self_attn.kv_a_layernorm.weight", l);
    add(c, 18, 5, "model.layers.%d.self_attn.kv_b_proj.weight", l);
    add(c, 8, 6, "model.layers.%d.self_attn.o_proj.weight", l);
    add(c, 8, 0, "model.layers.%d.post_attention_layernorm.weight", l);
    if (l == 0) {
        add_ffn(c, 10, "model.layers.0.mlp");
        return;
    }
    add(c, 8, 8, "model.layers.%d.mlp.gate.weight", l);
    for (int e = 0; e < 8; e++) {
        snprintf(prefix, sizeof prefix, "model.layers.%d.mlp.experts.%d", l, e);
        add_ffn(c, 6, prefix);
    }
    snprintf(prefix, sizeof prefix, "model.layers.%d.mlp.shared_experts", l);
    add_ffn(c, 12, prefix);
}

void ck_init(struct ck *c, char model)
{
    static const char *const keys[][2] = {
        {"architectures", "[\"DeepseekV2ForCausalLM\"]"}, {"model_type", "\"deepseek_v2\""}, {"vocab_size", "11"},
        {"hidden_size", "8"}, {"intermediate_size", "10"}, {"moe_intermediate_size", "6"}, {"num_hidden_layers", "3"},
        {"num_attention_heads", "2"}, {"num_key_value_heads", "2"}, {"q_lora_rank", "7"}, {"kv_lora_rank", "5"},
        {"qk_nope_head_dim", "6"}, {"qk_rope_head_dim", "4"}, {"v_head_dim", "3"}, {"n_shared_experts", "2"},
        {"n_routed_experts", "8"}, {"num_experts_per_tok", "3"}, {"first_k_dense_replace", "1"}, {"moe_layer_freq", "1"},
        {"topk_method", "\"group_limited_greedy\""}, {"n_group", "4"}, {"topk_group", "2"}, {"routed_scaling_factor", "2.5"},
        {"norm_topk_prob", "false"}, {"scoring_func", "\"softmax\""}, {"hidden_act", "\"silu\""}, {"rms_norm_eps", "1e-06"},
        {"rope_theta", "10000"}, {"rope_scaling.type", "\"yarn\""}, {"rope_scaling.factor", "40"},
        {"rope_scaling.original_max_position_embeddings", "4096"}, {"rope_scaling.beta_fast", "32"},
        {"rope_scaling.beta_slow", "1"}, {"rope_scaling.mscale", "0.707"}, {"rope_scaling.mscale_all_dim", "0.707"},
        {"max_position_embeddings", "163840"}, {"attention_bias", "false"}, {"bos_token_id", "0"}, {"eos_token_id", "1"},
        {"tie_word_embeddings", "false"}, {"torch_dtype", "\"bfloat16\""},
    };

    memset(c, 0, sizeof *c);
    noise = 1;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        ck_set(c, keys[i][0], keys[i][1]);
    if (model == 'B') {
        ck_set(c, "q_lora_rank", "null");
        ck_set(c, "topk_method", "\"greedy\"");
        ck_set(c, "n_group", "1");
        ck_set(c, "topk_group", "1");
        ck_set(c, "routed_scaling_factor", "1.0");
    }
    add(c, 11, 8, "model.embed_tokens.weight");
    for (int l = 0; l < 3; l++)
        add_layer(c, l, model == 'A');
    add(c, 8, 0, "model.norm.weight");
    add(c, 11, 8, "lm_head.weight");
}

void ck_free(struct ck *c)
{
    for (int i = 0; i < c->n_tensors; i++)
        free(c->tensor[i].data);
}

void ck_set(struct ck *c, const char *key, const char *value)
{
    size_t n = strlen(key);
    int i = 0;

    /* an object as a whole takes the place of its members */
    while (i < c->n_keys) {
        if (strncmp(c->key[i].key, key, n) == 0 && c->key[i].key[n] == '.')
            memmove(&c->key[i], &c->key[i + 1], (size_t)(--c->n_keys - i) * sizeof c->key[0]);
        else
            i++;
    }
    for (i = 0; i < c->n_keys && strcmp(c->key[i].key, key) != 0;)
        i++;
    if (!value) {
        if (i < c->n_keys)
            memmove(&c->key[i], &c->key[i + 1], (size_t)(--c->n_keys - i) * sizeof c->key[0]);
        return;
    }
    CHECK(c->n_keys < 64 && strlen(value) < sizeof c->key[i].value);
    if (i == c->n_keys) {
        size_t prefix = strchr(key, '.') ? (size_t)(strchr(key, '.') - key) + 1 : 0;

        /* members of one object stay together */
        while (prefix && i > 0 && strncmp(c->key[i - 1].key, key, prefix) != 0)
            i--;
        i = i ? i : c->n_keys;
        memmove(&c->key[i + 1], &c->key[i], (size_t)(c->n_keys++ - i) * sizeof c->key[0]);
    }
    snprintf(c->key[i].key, sizeof c->key[i].key, "%s", key);
    strcpy(c->key[i].value, value);
}

struct ck_tensor *ck_find(struct ck *c, const char *name)
{
    for (int i = 0; i < c->n_tensors; i++) {
        if (strcmp(c->tensor[i].name, name) == 0)
            return &c->tensor[i];
    }
    return NULL;
}

void ck_remove(struct ck *c, const char *name)
{
    struct ck_tensor *t = ck_find(c, name);

    CHECK(t);
    free(t->data);
    memmove(t, t + 1, (size_t)(&c->tensor[--c->n_tensors] - t) * sizeof *t);
}

/* ---- fp8 */

const char *const ck_quantization[CK_FORMATS] = {
    "{\"quant_method\": \"fp8\", \"activation_scheme\": \"static\", \"ignored_layers\": [\"lm_head\"], \"kv_cache_scheme\": \"static\"}",
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"float-quantized\", \"quantization_status\": \"compressed\", "
    "\"ignore\": [\"lm_head\", \"re:.*mlp\\\\.gate$\"], \"kv_cache_scheme\": null, \"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"], "
    "\"weights\": {\"num_bits\": 8, \"type\": \"float\", \"symmetric\": true, \"strategy\": \"channel\", \"dynamic\": false}, "
    "\"input_activations\": {\"num_bits\": 8, \"type\": \"float\", \"dynamic\": true}}}}",
    "{\"quant_method\": \"fp8\", \"fmt\": \"e4m3\", \"activation_scheme\": \"dynamic\", \"weight_block_size\": [128, 128]}",
};

void ck_set_floats(struct ck_tensor *t, float value)
{
    size_t size = dtype_size(t->dtype);

    for (size_t i = 0; i < t->bytes; i += size)
        memcpy(t->data + i, (const char *)&value + sizeof value - size, size); /* BF16 is the upper half */
}

void ck_quantize(struct ck *c, enum ck_format format)
{
    int n = c->n_tensors;

    ck_set(c, "quantization_config", ck_quantization[format]);
    for (int i = 0; i < n; i++) {
        struct ck_tensor *t = &c->tensor[i], *scale;
        int64_t shape[2] = {format == CK_BLOCK ? (t->shape[0] + 127) / 128 : format == CK_ROW ? t->shape[0] : 1,
                            format == CK_BLOCK ? (t->shape[1] + 127) / 128 : 1};
        char name[128];

        if (t->rank != 2 || !strstr(t->name, "_proj"))
            continue;
        ck_retype(t, "F8_E4M3", 2, t->shape);
        snprintf(name, sizeof name, "%s_scale%s", t->name, format == CK_BLOCK ? "_inv" : "");
        scale = ck_add(c, name, format == CK_ROW ? "BF16" : "F32", format == CK_TENSOR ? i % 2 : 2, shape);
        for (size_t k = 0; k < scale->bytes; k += dtype_size(scale->dtype)) {
            uint32_t bits = 0x3C000000 + (noise = noise * 1664525 + 1013904223) % 128 * 0x10000;

            memcpy(scale->data + k, (const char *)&bits + sizeof bits - dtype_size(scale->dtype), dtype_size(scale->dtype));
        }
        if (format == CK_TENSOR && i % 3) { /* experts that saw no token have none */
            snprintf(name, sizeof name, "%.*s.input_scale", (int)(strlen(t->name) - strlen(".weight")), t->name);
            ck_add(c, name, "F32", i % 2, shape);
        }
    }
    if (format == CK_TENSOR) {
        ck_add(c, "model.layers.0.self_attn.k_scale", "F32", 0, NULL);
        ck_add(c, "model.layers.2.self_attn.v_scale", "F32", 1, (const int64_t[]){1});
        ck_add(c, "model.layers.1.self_attn.kv_b_proj.k_scale", "F32", 0, NULL);
    }
}

/* ---- Files */

struct ck_file *ck_file(struct ck_files *f, const char *name)
{
    for (int i = 0; i < f->n; i++) {
        if (strcmp(f->file[i].name, name) == 0)
            return &f->file[i];
    }
    return NULL;
}

void ck_put(struct ck_files *f, const char *name, const void *data, size_t n)
{
    struct ck_file *file = ck_file(f, name);

    if (!file) {
        CHECK(f->n < 16);
        file = &f->file[f->n++];
        memset(file, 0, sizeof *file);
        snprintf(file->name, sizeof file->name, "%s", name);
    }
    free(file->data);
    file->data = malloc(n + 1);
    memcpy(file->data, data, n);
    file->size = n;
}

void ck_delete(struct ck_files *f, const char *name)
{
    struct ck_file *file = ck_file(f, name);

    CHECK(file);
    free(file->data);
    *file = f->file[--f->n];
}

void ck_files_free(struct ck_files *f)
{
    for (int i = 0; i < f->n; i++)
        free(f->file[i].data);
    f->n = 0;
}

void ck_replace(struct ck_files *f, const char *name, const char *old, const char *new)
{
    struct ck_file *file = ck_file(f, name);
    unsigned char *at, *data;
    size_t head, n;

    CHECK(file);
    at = memmem(file->data, file->size, old, strlen(old));
    CHECK(at);
    head = (size_t)(at - file->data);
    n = file->size - strlen(old) + strlen(new);
    data = malloc(n + 1);
    memcpy(data, file->data, head);
    memcpy(data + head, new, strlen(new));
    memcpy(data + head + strlen(new), at + strlen(old), file->size - head - strlen(old));
    free(file->data);
    file->data = data;
    file->size = n;
}

void ck_put_safetensors(struct ck_files *f, const char *name, const char *header, int64_t length, size_t n_data)
{
    size_t n_header = strlen(header);
    uint64_t n = length < 0 ? n_header : (uint64_t)length;
    unsigned char *p = calloc(1, 8 + n_header + n_data);

    for (int i = 0; i < 8; i++)
        p[i] = (unsigned char)(n >> 8 * i);
    memcpy(p + 8, header, n_header);
    ck_put(f, name, p, 8 + n_header + n_data);
    free(p);
}

struct text {
    char *p;
    size_t n;
};

__attribute__((format(printf, 2, 3))) static void append(struct text *t, const char *format, ...)
{
    char piece[1024];
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(piece, sizeof piece, format, args);
    va_end(args);
    CHECK(n >= 0 && n < (int)sizeof piece);
    t->p = realloc(t->p, t->n + (size_t)n + 1);
    memcpy(t->p + t->n, piece, (size_t)n + 1);
    t->n += (size_t)n;
}

static void build_config(const struct ck *c, struct ck_files *out)
{
    struct text t = {0};
    char open[64] = "";

    append(&t, "{\n");
    for (int i = 0; i < c->n_keys; i++) {
        const char *key = c->key[i].key, *dot = strchr(key, '.'), *next = i + 1 < c->n_keys ? c->key[i + 1].key : "";

        if (dot && !*open) {
            snprintf(open, sizeof open, "%.*s", (int)(dot - key + 1), key);
            append(&t, "  \"%.*s\": {\n", (int)(dot - key), key);
        }
        append(&t, "  \"%s\": %s", dot ? dot + 1 : key, c->key[i].value);
        if (dot && strncmp(next, open, strlen(open)) != 0) {
            *open = 0;
            append(&t, "\n  }");
        }
        append(&t, "%s\n", *next ? "," : "");
    }
    append(&t, "}\n");
    ck_put(out, "config.json", t.p, t.n);
    free(t.p);
}

static void shard_name(const struct ck *c, int shard, char *name, size_t cap)
{
    if (c->n_shards)
        snprintf(name, cap, "model-%05d-of-%06d.safetensors", shard, c->n_shards);
    else
        snprintf(name, cap, "model.safetensors");
}

static void build_weights(const struct ck *c, int shard, struct ck_files *out)
{
    struct text t = {0};
    unsigned char *data = NULL;
    struct ck_file *file;
    size_t n = 0;
    char name[64];

    append(&t, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < c->n_tensors; i++) {
        const struct ck_tensor *x = &c->tensor[i];

        if (c->n_shards && x->shard != shard)
            continue;
        append(&t, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", x->name, x->dtype);
        for (int d = 0; d < x->rank; d++)
            append(&t, "%s%lld", d ? "," : "", (long long)x->shape[d]);
        append(&t, "],\"data_offsets\":[%zu,%zu]}", n, n + x->bytes);
        data = realloc(data, n + x->bytes + 1);
        memcpy(data + n, x->data, x->bytes);
        n += x->bytes;
    }
    append(&t, "}");
    while (t.n % 8 != (size_t)c->header_rest)
        append(&t, " ");
    shard_name(c, shard, name, sizeof name);
    ck_put_safetensors(out, name, t.p, -1, n);
    file = ck_file(out, name);
    if (n)
        memcpy(file->data + file->size - n, data, n);
    free(data);
    free(t.p);
}

static void build_index(const struct ck *c, struct ck_files *out)
{
    struct text t = {0};
    char name[64];

    append(&t, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {");
    for (int i = 0; i < c->n_tensors; i++) {
        shard_name(c, c->tensor[i].shard, name, sizeof name);
        append(&t, "%s\n\"%s\": \"%s\"", i ? "," : "", c->tensor[i].name, name);
    }
    append(&t, "}}\n");
    ck_put(out, "model.safetensors.index.json", t.p, t.n);
    free(t.p);
}

void ck_build(const struct ck *c, struct ck_files *out)
{
    memset(out, 0, sizeof *out);
    build_config(c, out);
    for (int s = 1; s <= (c->n_shards ? c->n_shards : 1); s++)
        build_weights(c, s, out);
    if (c->n_shards)
        build_index(c, out);
}

/* ---- Loading */

static char folder[] = "/tmp/dsv2-loading-XXXXXX";
static int have_folder;

static void empty_folder(void)
{
    DIR *d = opendir(folder);
    char path[600];

    CHECK(d);
    for (struct dirent *e; (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && unlink(path) != 0)
            CHECK(rmdir(path) == 0);
    }
    closedir(d);
}

const char *ck_folder(const struct ck_files *f)
{
    char path[600];

    if (!have_folder)
        CHECK(mkdtemp(folder));
    have_folder = 1;
    empty_folder();
    for (int i = 0; i < f->n; i++) {
        FILE *out;

        snprintf(path, sizeof path, "%s/%s", folder, f->file[i].name);
        out = fopen(path, "wb");
        CHECK(out && fwrite(f->file[i].data, 1, f->file[i].size, out) == f->file[i].size && fclose(out) == 0);
    }
    return folder;
}

void ck_forget(void)
{
    if (have_folder) {
        empty_folder();
        CHECK(rmdir(folder) == 0);
        strcpy(folder + sizeof folder - 7, "XXXXXX");
        have_folder = 0;
    }
}

int ck_held(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    DIR *d = opendir("/proc/self/fd");
    char line[1000], path[300];
    int held = 0;

    CHECK(maps && d);
    while (fgets(line, sizeof line, maps))
        held += strstr(line, folder) != NULL;
    for (struct dirent *e; (e = readdir(d));) {
        snprintf(path, sizeof path, "/proc/self/fd/%s", e->d_name);
        ssize_t n = readlink(path, line, sizeof line - 1);

        line[n > 0 ? n : 0] = 0;
        held += strstr(line, folder) != NULL;
    }
    closedir(d);
    fclose(maps);
    return held;
}

dsv2_status ck_reader_size(void *files, const char *name, uint64_t *bytes)
{
    struct ck_file *file = ck_file(files, name);

    if (!file)
        return DSV2_ERR_IO;
    *bytes = file->size;
    return DSV2_OK;
}

dsv2_status ck_reader_read(void *files, const char *name, uint64_t offset, void *buf, size_t n)
{
    struct ck_file *file = ck_file(files, name);

    CHECK(file && offset <= file->size && n <= file->size - offset);
    memcpy(buf, file->data + offset, n);
    return DSV2_OK;
}

dsv2_status ck_load(dsv2_context *ctx, struct ck_files *f, enum ck_way way, dsv2_model **out)
{
    dsv2_reader reader = {sizeof reader, ck_reader_size, ck_reader_read, f};
    dsv2_model_params params;

    dsv2_model_params_init(&params, sizeof params);
    params.load_mode = way == CK_READ ? DSV2_LOAD_READ : DSV2_LOAD_MMAP;
    if (way == CK_READER)
        params.reader = &reader;
    return dsv2_model_load(ctx, way == CK_READER ? "memory" : ck_folder(f), &params, out);
}

/* ---- Memory hooks */

void *ck_alloc(void *user, size_t size, size_t alignment)
{
    struct ck_heap *heap = user;
    void *p = NULL;

    heap->calls++;
    if (heap->fail_at && --heap->fail_at == 0)
        return NULL;
    if (posix_memalign(&p, alignment < sizeof(void *) ? sizeof(void *) : alignment, size ? size : 1) != 0)
        return NULL;
    heap->alive += (long)size;
    return p;
}

void ck_release(void *user, void *ptr, size_t size)
{
    struct ck_heap *heap = user;

    if (ptr)
        heap->alive -= (long)size;
    free(ptr);
}

dsv2_context *ck_context(struct ck_heap *heap)
{
    dsv2_context_params params;
    dsv2_context *ctx;

    dsv2_context_params_init(&params, sizeof params);
    params.n_threads = 1;
    params.alloc = ck_alloc;
    params.free = ck_release;
    params.alloc_user = heap;
    CHECK(dsv2_context_create(&params, &ctx) == DSV2_OK);
    return ctx;
}
