/* Long sequences on one layer of the real shapes, over made-up weights.
 *
 *   long_context            V2's layer: a cache of 131,072 tokens filled directly; the last 512 computed, decode at growing lengths
 *   long_context prefill    V2-Lite's layer: all 131,072 tokens computed (some ten minutes)
 *
 * Checks memory, and that the last logits are the same bits in one step and token by token, and agree between the two forms of attention.
 * Times are printed, not checked.
 * SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "session.h"

#define LENGTH 131072
#define VOCAB 512

static int checks, failed;

static void check(int ok, const char *what)
{
    printf("%s %d - %s\n", ok ? "ok" : "not ok", ++checks, what);
    fflush(stdout);
    failed |= !ok;
}

static void must(dsv2_status status)
{
    if (status == DSV2_OK)
        return;
    printf("not ok - %s: %s\n", dsv2_status_name(status), dsv2_last_error());
    exit(1);
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- Memory through hooks */

static struct { size_t now, peak; } hooks;

static void *take(void *user, size_t size, size_t alignment)
{
    void *p;

    if (posix_memalign(&p, alignment < sizeof p ? sizeof p : alignment, size))
        return NULL;
    hooks.now += size;
    if (hooks.now > hooks.peak)
        hooks.peak = hooks.now;
    return p;
}

static void give(void *user, void *ptr, size_t size)
{
    hooks.now -= size;
    free(ptr);
}

/* ---- A checkpoint of one dense layer, made up as it is read */

static struct {
    struct { int cols, vector; uint64_t end; } tensor[16];
    int n;
    char config[1024], header[4096];
    uint64_t header_bytes, bytes; /* of the file's beginning, and of the tensors */
} file;

/* rows 0: a vector of ones. */
static void add(const char *name, int rows, int cols)
{
    size_t used = strlen(file.header), room = sizeof file.header - used;
    uint64_t begin = file.bytes;
    char shape[32];

    file.bytes += 2 * (uint64_t)(rows ? rows : 1) * (uint64_t)cols;
    file.tensor[file.n].cols = cols;
    file.tensor[file.n].vector = !rows;
    file.tensor[file.n].end = file.bytes;
    snprintf(shape, sizeof shape, rows ? "%d,%d" : "%.0d%d", rows, cols);
    snprintf(file.header + used, room, "%c\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}", file.n ? ',' : '{', name,
             shape, (unsigned long long)begin, (unsigned long long)file.bytes);
    file.n++;
}

static void make(int hidden, int heads, int q_lora)
{
    char q[16];

    snprintf(q, sizeof q, "%d", q_lora);
    snprintf(file.config, sizeof file.config,
             "{\"model_type\":\"deepseek_v2\",\"vocab_size\":%d,\"hidden_size\":%d,\"intermediate_size\":256,\"num_hidden_layers\":1,"
             "\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"q_lora_rank\":%s,\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,"
             "\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"n_routed_experts\":null,\"hidden_act\":\"silu\",\"rms_norm_eps\":1e-6,"
             "\"max_position_embeddings\":163840,\"rope_theta\":10000,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,"
             "\"original_max_position_embeddings\":4096,\"beta_fast\":32,\"beta_slow\":1,\"mscale\":0.707,\"mscale_all_dim\":0.707},"
             "\"tie_word_embeddings\":false,\"bos_token_id\":0,\"eos_token_id\":1,\"torch_dtype\":\"bfloat16\"}",
             VOCAB, hidden, heads, heads, q_lora ? q : "null");
    add("model.embed_tokens.weight", VOCAB, hidden);
    add("model.layers.0.input_layernorm.weight", 0, hidden);
    if (q_lora) {
        add("model.layers.0.self_attn.q_a_proj.weight", q_lora, hidden);
        add("model.layers.0.self_attn.q_a_layernorm.weight", 0, q_lora);
        add("model.layers.0.self_attn.q_b_proj.weight", heads * 192, q_lora);
    } else {
        add("model.layers.0.self_attn.q_proj.weight", heads * 192, hidden);
    }
    add("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", 576, hidden);
    add("model.layers.0.self_attn.kv_a_layernorm.weight", 0, 512);
    add("model.layers.0.self_attn.kv_b_proj.weight", heads * 256, 512);
    add("model.layers.0.self_attn.o_proj.weight", hidden, heads * 128);
    add("model.layers.0.post_attention_layernorm.weight", 0, hidden);
    add("model.layers.0.mlp.gate_proj.weight", 256, hidden);
    add("model.layers.0.mlp.up_proj.weight", 256, hidden);
    add("model.layers.0.mlp.down_proj.weight", hidden, 256);
    add("model.norm.weight", 0, hidden);
    add("lm_head.weight", VOCAB, hidden);
    strcat(file.header, "}");
    while (strlen(file.header) % 8)
        strcat(file.header, " ");
    file.header_bytes = 8 + strlen(file.header);
}

/* Uniform in -1..1, from its place. */
static float noise(uint64_t i)
{
    i = (i + 1) * 0x9E3779B97F4A7C15u;
    i = (i ^ i >> 30) * 0xBF58476D1CE4E5B9u;
    i = (i ^ i >> 27) * 0x94D049BB133111EBu;
    return (float)(int32_t)(uint32_t)(i >> 32) * 0x1p-31f;
}

static uint16_t bf16(float f)
{
    uint32_t u;

    memcpy(&u, &f, sizeof u);
    return (uint16_t)(u >> 16);
}

static dsv2_status file_size(void *user, const char *name, uint64_t *bytes)
{
    int weights = !strcmp(name, "model.safetensors");

    if (!weights && strcmp(name, "config.json") != 0)
        return DSV2_ERR_IO;
    *bytes = weights ? file.header_bytes + file.bytes : strlen(file.config);
    return DSV2_OK;
}

static dsv2_status file_read(void *user, const char *name, uint64_t offset, void *buf, size_t n)
{
    uint64_t length = file.header_bytes - 8, element;
    int t = 0;

    if (!strcmp(name, "config.json")) {
        memcpy(buf, file.config + offset, n);
        return DSV2_OK;
    }
    for (; n && offset < file.header_bytes; n--, offset++)
        *(char *)buf = offset < 8 ? (char)(length >> 8 * offset) : file.header[offset - 8], buf = (char *)buf + 1;
    offset -= file.header_bytes;
    if (offset % 2 || n % 2)
        return DSV2_ERR_IO;
    for (uint16_t *to = buf; n; n -= 2, offset += 2, to++) {
        while (offset >= file.tensor[t].end)
            t++;
        element = offset / 2;
        *to = bf16(file.tensor[t].vector ? 1 : noise(element) * sqrtf(3.0f / (float)file.tensor[t].cols));
    }
    return DSV2_OK;
}

/* ---- The measurements */

static dsv2_session *open_session(dsv2_model *model, int32_t attention, dsv2_pool *pool)
{
    dsv2_session_params p;
    dsv2_session *s;

    dsv2_session_params_init(&p, sizeof p);
    p.n_ctx = LENGTH + 1;
    p.attention = attention;
    p.pool = pool;
    must(dsv2_session_create(model, &p, &s));
    return s;
}

/* n tokens of latents with a mean square of 1, and keys like them, as if they had been computed. */
static void fill(dsv2_session *s, int32_t n)
{
    int32_t width = 576;

    must(dsv2i_kv_reserve(&s->kv, 0, n));
    for (int32_t i = 0; i < s->kv.n_pages; i++)
        for (int32_t k = 0; k < DSV2I_PAGE_TOKENS * width; k++)
            ((uint16_t *)s->kv.data[i])[k] = bf16(1.7320508f * noise((uint64_t)(i * DSV2I_PAGE_TOKENS) * (uint64_t)width + (uint64_t)k));
    s->tokens = dsv2i_calloc(&s->model->ctx->mem, LENGTH + 1, sizeof *s->tokens);
    if (!s->tokens)
        exit(1);
    s->tokens_capacity = LENGTH + 1;
    s->pos = s->n_prompt = n;
}

static const float *logits_of(const dsv2_session *s)
{
    const float *logits;
    size_t n;

    must(dsv2_session_logits(s, &logits, &n));
    return logits;
}

static void decode_times(dsv2_session *s)
{
    for (size_t n = LENGTH; n >= 4096; n /= 2) {
        double best = INFINITY;

        must(dsv2_session_truncate(s, n - 1));
        for (int i = 0; i < 5; i++) {
            double begin = now();

            must(dsv2_session_decode(s, 7));
            best = fmin(best, now() - begin);
            must(dsv2_session_truncate(s, n - 1));
        }
        printf("# decode at %zu: %.1f ms, %.1f us per page\n", n, best * 1e3, best * 1e6 / ((double)n / 64));
    }
}

static void v2_layer(dsv2_model *model)
{
    enum { LAST = 512, SINGLE = 4 };
    dsv2_pool_params pp;
    dsv2_pool *pool;
    dsv2_session *s, *expanded;
    dsv2_memory memory = {.struct_size = sizeof memory};
    int32_t ids[LAST];
    float one[VOCAB], worst = 0, largest = 0;
    double begin;
    size_t before;

    dsv2_pool_params_init(&pp, sizeof pp);
    must(dsv2_pool_create(model, &pp, &pool));
    s = open_session(model, DSV2_ATTENTION_ABSORBED, pool);
    must(dsv2_session_memory(s, &memory));
    fill(s, LENGTH - LAST);
    for (int i = 0; i < LAST; i++)
        ids[i] = i * 37 % VOCAB;
    before = hooks.now;
    begin = now();
    must(dsv2_session_prefill(s, ids, LAST));
    printf("# %d tokens at %d: %.1f s\n", LAST, LENGTH - LAST, now() - begin);
    check(hooks.now - before < 9 * pool->page_bytes, "a step takes its pages and nothing that grows with the length");
    printf("# memory: foretold %.1f MB, peak %.1f MB\n", (double)memory.total / 1e6, (double)hooks.peak / 1e6);
    check(fabs((double)hooks.peak / (double)memory.total - 1) < 0.05, "memory as foretold, within 5%");

    memcpy(one, logits_of(s), sizeof one);
    must(dsv2_session_truncate(s, LENGTH - SINGLE));
    for (int i = LAST - SINGLE; i < LAST; i++)
        must(dsv2_session_decode(s, ids[i]));
    check(!memcmp(one, logits_of(s), sizeof one), "the last tokens one by one: the same bits");

    expanded = open_session(model, DSV2_ATTENTION_EXPANDED, pool);
    fill(expanded, 0);
    must(dsv2i_kv_share(&expanded->kv, &s->kv));
    expanded->pos = LENGTH - 1;
    must(dsv2_session_decode(expanded, ids[LAST - 1]));
    for (int i = 0; i < VOCAB; i++) {
        worst = fmaxf(worst, fabsf(logits_of(expanded)[i] - one[i]));
        largest = fmaxf(largest, fabsf(one[i]));
    }
    printf("# absorbed and expanded differ by %.1e of %.1f\n", (double)worst, (double)largest);
    check(worst < 1e-4f * largest, "the expanded form agrees");
    dsv2_session_free(expanded);

    decode_times(s);
    dsv2_session_free(s);
    dsv2_pool_free(pool);
}

static int32_t tell(void *user, uint64_t done, uint64_t total)
{
    if (done % 16384 == 0)
        printf("# %llu tokens after %.0f s\n", (unsigned long long)done, now() - *(double *)user), fflush(stdout);
    return 0;
}

static void lite_prefill(dsv2_model *model)
{
    static int32_t ids[LENGTH];
    double begin = now();
    dsv2_session_params p;
    dsv2_session *s;

    for (int i = 0; i < LENGTH; i++)
        ids[i] = (int32_t)((noise((uint64_t)i) + 1) / 2 * (VOCAB - 1));
    dsv2_session_params_init(&p, sizeof p);
    p.n_ctx = LENGTH + 1;
    p.attention = DSV2_ATTENTION_AUTO;
    p.n_batch = 2048;
    p.progress = tell;
    p.progress_user = &begin;
    must(dsv2_session_create(model, &p, &s));
    must(dsv2_session_prefill(s, ids, LENGTH));
    printf("# %d tokens in %.0f s, %.0f tokens/s\n", LENGTH, now() - begin, LENGTH / (now() - begin));
    check(isfinite(logits_of(s)[0]), "the prompt is read");
    dsv2_session_free(s);
}

int main(int argc, char **argv)
{
    int lite = argc > 1 && !strcmp(argv[1], "prefill");
    dsv2_reader reader = {sizeof reader, file_size, file_read, NULL};
    dsv2_context_params cp;
    dsv2_model_params mp;
    dsv2_context *ctx;
    dsv2_model *model;

    make(lite ? 2048 : 5120, lite ? 16 : 128, lite ? 0 : 1536);
    dsv2_context_params_init(&cp, sizeof cp);
    cp.alloc = take;
    cp.free = give;
    must(dsv2_context_create(&cp, &ctx));
    dsv2_model_params_init(&mp, sizeof mp);
    mp.reader = &reader;
    must(dsv2_model_load(ctx, "made up", &mp, &model));
    (lite ? lite_prefill : v2_layer)(model);
    dsv2_model_free(model);
    dsv2_context_free(ctx);
    check(hooks.now == 0, "all memory is given back");
    return failed;
}
