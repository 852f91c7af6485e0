/* A model of any size with random weights, made on the card: there is no checkpoint of tens of gigabytes to load.  It is run through
 * the library's sessions, as any other.
 *
 *     gpu_model CONFIG.json DTYPE KV_TYPE CONTEXT PROMPT BATCH..
 *
 * DTYPE: bf16, or f8 (the layers' matrices in blocks of 128 x 128); KV_TYPE: a number of DSV2_KV_*.  Times decode steps of BATCH sequences
 * that hold CONTEXT tokens, the next one chosen on the card, and a prompt of PROMPT tokens; a line of JSON for each goes to standard output.
 *
 * SPDX-License-Identifier: MIT */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cuda_runtime_api.h>

#include "context.h"
#include "fill.h"
#include "session.h"

#define MOST 256      /* sequences */
#define REPEATS 7     /* of a measurement, after two to warm up: the second of a kind is recorded */
#define STEPS 8       /* of a measurement */

static void must(dsv2_status status, const char *what)
{
    if (status == DSV2_OK)
        return;
    printf("{\"error\": \"%s: %s\"}\n", what, dsv2_last_error());
    exit(1);
}

static void ok(int failed, const char *what)
{
    if (!failed)
        return;
    printf("{\"error\": \"%s\"}\n", what);
    exit(1);
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- Weights: counted first, then made in one block --------------------------------------------------------------------------- */

static cudaStream_t stream;
static char *block;
static size_t used;
static uint32_t seed;

static void *place(size_t bytes)
{
    void *at = block ? block + used : NULL;

    used += (bytes + 255) & ~(size_t)255;
    return at;
}

/* Of a size at which the norm of what it gives is that of what it gets.  All scales are the same, so it does not matter how the backend
 * arranges them. */
static struct dsv2i_weight matrix(struct dsv2i_backend *be, int32_t dtype, int32_t rows, int32_t cols)
{
    struct dsv2i_weight w = {.dtype = dtype, .rows = rows, .cols = cols, .scale_rows = 128, .scale_cols = 128};
    size_t n = (size_t)rows * (size_t)cols, data = (n * dsv2i_dtype_size(dtype) + 15) & ~(size_t)15, all = be->op->weight_bytes(be, &w, 0);
    float norm = 1.0f / sqrtf((float)cols);
    char *at = place(all);

    w.data = at;
    if (dtype == DSV2I_F8_E4M3)
        w.scale = (const float *)(const void *)(at + data);
    if (!block)
        return w;
    ok(gpu_fill(stream, at, dtype, n, 1.7f * norm, ++seed), "no weights");
    if (all > data) /* by the root mean square of the codes */
        ok(gpu_fill_same(stream, (float *)(void *)(at + data), (all - data) / sizeof(float), norm / 107), "no scales");
    return w;
}

static const float *vector(int32_t n)
{
    float *v = place((size_t)n * sizeof *v);

    if (block)
        ok(gpu_fill_same(stream, v, (size_t)n, 1), "no weights");
    return v;
}

static void layers(struct dsv2i_backend *be, struct dsv2i_ffn *f, int32_t n, int32_t dtype, int32_t hidden, int32_t inter)
{
    void *table;

    for (int32_t i = 0; i < n; i++)
        f[i] = (struct dsv2i_ffn){
            .gate = matrix(be, dtype, inter, hidden), .up = matrix(be, dtype, inter, hidden), .down = matrix(be, dtype, hidden, inter)};
    table = place(be->op->table_bytes(be, n));
    if (block)
        ok(be->op->table_put(be, table, f, n), "no table of experts");
}

static void make(dsv2_model *m, int32_t dtype)
{
    struct dsv2i_backend *be = m->ctx->backend;
    const struct dsv2i_shape *s = &m->config.shape;
    int32_t hidden = s->hidden_size, heads = s->num_attention_heads, q = heads * (s->qk_nope_head_dim + s->qk_rope_head_dim);

    used = 0;
    m->embed_tokens = matrix(be, DSV2I_BF16, s->vocab_size, hidden);
    m->lm_head = matrix(be, DSV2I_BF16, s->vocab_size, hidden);
    m->norm = vector(hidden);
    for (int32_t l = 0; l < s->num_hidden_layers; l++) {
        struct dsv2i_layer *y = &m->layers[l];

        y->input_layernorm = vector(hidden);
        y->post_attention_layernorm = vector(hidden);
        if (s->q_lora_rank) {
            y->q_a_proj = matrix(be, dtype, s->q_lora_rank, hidden);
            y->q_a_layernorm = vector(s->q_lora_rank);
            y->q_b_proj = matrix(be, dtype, q, s->q_lora_rank);
        } else {
            y->q_proj = matrix(be, dtype, q, hidden);
        }
        y->kv_a_proj_with_mqa = matrix(be, dtype, s->kv_lora_rank + s->qk_rope_head_dim, hidden);
        y->mla.kv_a_norm = vector(s->kv_lora_rank);
        y->mla.kv_b = matrix(be, DSV2I_BF16, heads * (s->qk_nope_head_dim + s->v_head_dim), s->kv_lora_rank);
        y->o_proj = matrix(be, dtype, hidden, heads * s->v_head_dim);
        if (!dsv2i_config_is_moe(&m->config, l)) {
            layers(be, &y->mlp, 1, dtype, hidden, s->intermediate_size);
            continue;
        }
        y->router = matrix(be, DSV2I_BF16, s->n_routed_experts, hidden);
        layers(be, &y->mlp, 1, dtype, hidden, s->n_shared_experts * s->moe_intermediate_size);
        layers(be, y->experts, s->n_routed_experts, dtype, hidden, s->moe_intermediate_size);
    }
}

static dsv2_model *random_model(dsv2_context *ctx, const char *config, int32_t dtype)
{
    struct dsv2i_backend *be = ctx->backend;
    dsv2_model *m = dsv2i_calloc(&ctx->mem, 1, sizeof *m);
    static char text[1 << 16];
    FILE *f = fopen(config, "r");
    size_t n = f ? fread(text, 1, sizeof text, f) : 0;

    ok(!m || !n, "no memory or no config.json");
    fclose(f);
    must(dsv2i_config_parse(config, text, n, &m->config), "config.json");
    m->config.shape.inv_freq = m->config.inv_freq;
    atomic_init(&m->refs, 1);
    atomic_init(&m->weights_hash, 0);
    m->ctx = ctx;
    dsv2i_context_retain(ctx);
    m->layers = dsv2i_calloc(&ctx->mem, (size_t)m->config.shape.num_hidden_layers, sizeof *m->layers);
    ok(!m->layers, "no memory");
    for (int32_t l = 0; l < m->config.shape.num_hidden_layers; l++)
        if (dsv2i_config_is_moe(&m->config, l)) {
            m->layers[l].experts = dsv2i_calloc(&ctx->mem, (size_t)m->config.shape.n_routed_experts, sizeof(struct dsv2i_ffn));
            ok(!m->layers[l].experts, "no memory");
        }
    make(m, dtype);
    m->block_bytes = used;
    m->block = block = be->op->mem_alloc(be, used);
    ok(!block, "no memory on the card for the weights");
    make(m, dtype);
    ok(cudaDeviceSynchronize(), "weights");
    m->info.weight_bytes = used;
    return m;
}

/* ---- Times ------------------------------------------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void report(const char *what, int n, int context, double *seconds, int count)
{
    qsort(seconds, (size_t)count, sizeof *seconds, compare);
    printf("{\"model\": \"%s\", \"n\": %d, \"context\": %d, \"ms\": %.6g, \"least\": %.6g, \"most\": %.6g}\n", what, n, context,
           seconds[count / 2] * 1e3, seconds[0] * 1e3, seconds[count - 1] * 1e3);
    fflush(stdout);
}

static int32_t token(const dsv2_model *m, int i)
{
    return (int32_t)((i * 7919L + 13) % m->config.shape.vocab_size);
}

static dsv2_session *open_session(dsv2_model *m, int32_t n_ctx, int32_t kv_type)
{
    dsv2_session_params p;
    dsv2_session *s;

    dsv2_session_params_init(&p, sizeof p);
    p.n_ctx = n_ctx;
    p.kv_type = kv_type;
    p.n_batch = n_ctx < 2048 ? n_ctx : 2048;
    p.attention = DSV2_ATTENTION_AUTO;
    must(dsv2_session_create(m, &p, &s), "session");
    return s;
}

static void fill(dsv2_session *s, int n)
{
    const dsv2_model *m = s->model;
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);

    ok(!tokens, "no memory");
    for (int i = 0; i < n; i++)
        tokens[i] = token(m, i);
    must(dsv2_session_prefill(s, tokens, (size_t)n), "prefill");
    free(tokens);
}

static void check_finite(const dsv2_session *s)
{
    const float *logits;
    size_t n;

    must(dsv2_session_logits(s, &logits, &n), "logits");
    for (size_t i = 0; i < n; i++)
        ok(!isfinite(logits[i]), "a logit is not finite");
}

static void time_prompt(dsv2_model *m, int n, int32_t kv_type, int repeats)
{
    dsv2_session *s = open_session(m, n, kv_type);
    double seconds[REPEATS];

    for (int i = -1; i < repeats; i++) {
        double begin;

        must(dsv2_session_truncate(s, 0), "truncate");
        begin = now();
        fill(s, n);
        if (i >= 0)
            seconds[i] = now() - begin;
    }
    check_finite(s);
    dsv2_session_free(s);
    report("prompt", n, 0, seconds, repeats);
}

/* Each sequence is a prompt of its own: forks would share its pages, and the cache of the card. */
static void step(dsv2_session **s, int batch, int first, const dsv2_sample_params *how, uint32_t flags)
{
    static dsv2_step_member members[MOST];
    int32_t tokens[MOST];

    memset(members, 0, (size_t)batch * sizeof *members);
    for (int i = 0; i < batch; i++) {
        tokens[i] = token(s[i]->model, first + i * 37);
        members[i].session = s[i];
        members[i].tokens = &tokens[i];
        members[i].n_tokens = 1;
        members[i].sample = how;
        members[i].flags = flags;
    }
    must(dsv2_step(members, sizeof *members, (size_t)batch), "step");
}

static void time_decode(dsv2_model *m, int batch, int context, int32_t kv_type, int repeats, int steps)
{
    static dsv2_session *s[MOST];
    double seconds[REPEATS];
    dsv2_sample_params greedy;

    dsv2_sample_params_init(&greedy, sizeof greedy, m);
    greedy.temperature = 0;
    greedy.top_p = greedy.repetition_penalty = 1; /* the model has no generation_config.json */
    for (int i = 0; i < batch; i++) {
        s[i] = open_session(m, context + (REPEATS + 2) * STEPS + 1, kv_type);
        fill(s[i], context);
    }
    for (int r = -2; r < repeats; r++) {
        double begin = now();

        for (int k = 0; k < steps; k++)
            step(s, batch, (r + 3) * 1000 + k * 331, &greedy, DSV2_STEP_NO_LOGITS);
        if (r >= 0)
            seconds[r] = (now() - begin) / steps;
    }
    step(s, batch, 0, NULL, 0);
    check_finite(s[batch - 1]);
    for (int i = 0; i < batch; i++)
        dsv2_session_free(s[i]);
    report("decode", batch, context, seconds, repeats);
}

int main(int argc, char **argv)
{
    dsv2_context_params p;
    dsv2_context *ctx;
    dsv2_model *m;
    int32_t dtype, kv_type;
    int cards = 0, small;
    double begin = now();

    if (cudaGetDeviceCount(&cards) || !cards) {
        printf("no CUDA device\n");
        return 77;
    }
    ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "no stream");
    ok(argc < 6, "usage: gpu_model CONFIG.json DTYPE KV_TYPE CONTEXT PROMPT BATCH..");
    dtype = strcmp(argv[2], "f8") ? DSV2I_BF16 : DSV2I_F8_E4M3;
    kv_type = atoi(argv[3]);
    dsv2_context_params_init(&p, sizeof p);
    p.backend = DSV2_BACKEND_CUDA;
    must(dsv2_context_create(&p, &ctx), "context");
    m = random_model(ctx, argv[1], dtype);
    small = m->config.shape.hidden_size < 256; /* of the emulated card, where it only has to work */
    printf("{\"weights\": %zu, \"seconds\": %.3g}\n", m->block_bytes, now() - begin);
    for (int i = 6; i < argc; i++)
        if (atoi(argv[i]) > 0 && atoi(argv[i]) <= MOST)
            time_decode(m, atoi(argv[i]), atoi(argv[4]), kv_type, small ? 1 : REPEATS, small ? 1 : STEPS);
    time_prompt(m, atoi(argv[5]), kv_type, small ? 1 : REPEATS);
    dsv2_model_free(m);
    dsv2_context_free(ctx);
    cudaStreamDestroy(stream);
    return 0;
}
