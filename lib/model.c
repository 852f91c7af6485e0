/* Loading a checkpoint: its small files, then every tensor by name, shape and type.
 *
 * SPDX-License-Identifier: MIT
 *
 * Tensors are bound twice by the same code.  The first pass sees headers only and finds everything that is missing, misshapen or
 * unknown before a byte of weights is read; inspect stops there.  The second has the files mapped or read and fills in pointers.
 * Matrices stay as the checkpoint has them and are never copied, unless a file holds one at an address that does not suit its
 * type.  Norm vectors become fp32. */
#include "model.h"

#include <float.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "files.h"
#include "fingerprint.h"
#include "hash.h"
#include "params.h"
#include "safetensors.h"
#include "session.h"
#include "upload.h"

#define MAX_CONFIG (1 << 20)
#define MAX_TOKENIZER_CONFIG (16 << 20)
#define MAX_CHAT_TEMPLATE (1 << 20)
#define MAX_TOKENIZER (64 << 20)
#define QUANTIZATION "quantization_config of config.json"
#define GREATEST_CODE 448 /* of F8_E4M3 */
#define READ_PIECE (8 << 20) /* bytes between two calls of the progress callback */

/* A piece of memory that goes with the model. */
struct block {
    struct block *next;
    uint64_t padding; /* so that data is aligned to 16 like the block itself */
    unsigned char data[];
};

struct weight_file {
    const unsigned char *data; /* its data section */
    const void *map;           /* NULL: data is in a block */
    uint64_t map_bytes;
};

struct dsv2i_blobs {
    struct block *blocks;
    struct weight_file *file;
    int32_t n_files;
};

struct loader {
    dsv2_model *m;
    const struct dsv2i_hooks *mem;
    dsv2_model_params params;
    dsv2_reader reader;
    struct dsv2i_files files;
    struct dsv2i_tensor_set *set;
    struct dsv2i_quantization quantization;
    int placing;                /* the second pass */
    uint64_t done, total;       /* bytes, for progress: of tensors, and */
    uint64_t to_upload;         /* of the backend's memory */
    uint64_t copied;            /* bytes of matrices that had to be moved */
    uint64_t bytes_of[DSV2I_DTYPES]; /* by dtype */
    uint64_t widened;           /* elements of scales that become fp32 */
};

/* ---- Blocks and progress --------------------------------------------------------------------------------------------- */

static void *new_block(struct loader *l, uint64_t bytes)
{
    struct block *b = bytes < SIZE_MAX - sizeof *b ? dsv2i_alloc(l->mem, sizeof *b + (size_t)bytes, 1) : NULL;

    if (!b)
        return NULL;
    b->next = l->m->blobs->blocks;
    l->m->blobs->blocks = b;
    return b->data;
}

static dsv2_status no_memory(const struct loader *l, const char *what, uint64_t bytes)
{
    return dsv2i_fail(DSV2_ERR_NOMEM, "%s: no memory for %s: %llu bytes", l->files.folder, what, (unsigned long long)bytes);
}

static dsv2_status report(struct loader *l, uint64_t more)
{
    l->done += more;
    if (l->params.progress && l->params.progress(l->params.progress_user, l->done, l->total))
        return dsv2i_fail(DSV2_ERR_CANCELLED, "%s: loading was cancelled by the progress callback at %llu of %llu bytes",
                          l->files.folder, (unsigned long long)l->done, (unsigned long long)l->total);
    return DSV2_OK;
}

/* ---- Tensors --------------------------------------------------------------------------------------------------------- */

static int32_t dtype_of(const struct dsv2i_tensor *t)
{
    return strcmp(t->dtype, "BF16") == 0 ? DSV2I_BF16 : strcmp(t->dtype, "F16") == 0 ? DSV2I_F16
         : strcmp(t->dtype, "F32") == 0 ? DSV2I_F32 : strcmp(t->dtype, "F8_E4M3") == 0 ? DSV2I_F8_E4M3 : 0;
}

static const char *show_shape(char *buf, size_t cap, const int64_t *shape, int32_t rank)
{
    size_t n = 0;

    buf[0] = 0;
    for (int32_t i = 0; i < rank && n < cap; i++)
        n += (size_t)snprintf(buf + n, cap - n, "%s%lld", i ? ", " : "", (long long)shape[i]);
    return buf;
}

static dsv2_status bad_shape(const struct loader *l, const struct dsv2i_tensor *t, const char *by, int32_t rank, const int64_t *shape)
{
    char is[200], wanted[80];

    return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: shape: must be [%s] by %s, is [%s]", dsv2i_tensors_file(l->set, t->file), t->name,
                      show_shape(wanted, sizeof wanted, shape, rank), by, show_shape(is, sizeof is, t->shape, t->rank));
}

static dsv2_status bad_dtype(const struct loader *l, const struct dsv2i_tensor *t, const char *wanted)
{
    return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "%s: %s: dtype: %s is not supported; %s", dsv2i_tensors_file(l->set, t->file), t->name,
                      t->dtype, wanted);
}

/* Count a tensor as known: its bytes by type, or as loaded. */
static dsv2_status take_tensor(struct loader *l, struct dsv2i_tensor *t)
{
    t->used = 1;
    if (!l->placing) {
        l->bytes_of[dtype_of(t)] += t->bytes;
        return DSV2_OK;
    }
    /* Bytes that were read have been reported already. */
    return l->m->blobs->file[t->file].map ? report(l, t->bytes) : DSV2_OK;
}

/* The tensor of this name and shape, with a type that we can use; scaled: also with one that goes with scales. */
static dsv2_status find_tensor(struct loader *l, const char *name, int32_t rank, const int64_t *shape, int scaled,
                               struct dsv2i_tensor **out)
{
    struct dsv2i_tensor *t = dsv2i_tensors_find(l->set, name);
    int32_t dtype;

    *out = t;
    if (!t)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: is missing", dsv2i_tensors_source(l->set), name);
    if (t->rank != rank || memcmp(t->shape, shape, (size_t)rank * sizeof *shape) != 0)
        return bad_shape(l, t, "config.json", rank, shape);
    dtype = dtype_of(t);
    if (!dtype || (dtype == DSV2I_F8_E4M3 && !scaled))
        return bad_dtype(l, t, "BF16, F16 and F32 are");
    if (dtype == DSV2I_F8_E4M3 && !l->quantization.scales)
        return bad_dtype(l, t, "it is where config.json has a quantization_config");
    return take_tensor(l, t);
}

static const unsigned char *tensor_data(const struct loader *l, const struct dsv2i_tensor *t)
{
    uint64_t begin, end;

    dsv2i_tensors_extent(l->set, t->file, &begin, &end);
    return l->m->blobs->file[t->file].data + (t->offset - begin);
}

/* Pointer to a tensor's elements, aligned for its type. */
static dsv2_status aligned_data(struct loader *l, const struct dsv2i_tensor *t, const void **out)
{
    const unsigned char *p = tensor_data(l, t);
    void *copy;

    *out = p;
    if ((uintptr_t)p % dsv2i_dtype_size(dtype_of(t)) == 0)
        return DSV2_OK;
    copy = new_block(l, t->bytes);
    if (!copy)
        return no_memory(l, t->name, t->bytes);
    memcpy(copy, p, (size_t)t->bytes);
    l->copied += t->bytes;
    *out = copy;
    return DSV2_OK;
}

static float float_from_bits(uint32_t bits)
{
    float f;

    memcpy(&f, &bits, sizeof f);
    return f;
}

static float element(const unsigned char *p, int32_t dtype, int32_t i)
{
    uint16_t half;
    float f;

    if (dtype == DSV2I_F32) {
        memcpy(&f, p + (size_t)i * sizeof f, sizeof f);
        return f;
    }
    memcpy(&half, p + (size_t)i * sizeof half, sizeof half);
    if (dtype == DSV2I_BF16)
        return float_from_bits((uint32_t)half << 16);
    if ((half & 0x7C00) == 0)
        f = (float)(half & 0x3FF) * 0x1p-24f; /* subnormal in fp16, not in fp32 */
    else if ((half & 0x7C00) == 0x7C00)
        f = float_from_bits(0x7F800000u | (uint32_t)(half & 0x3FF) << 13);
    else
        f = float_from_bits(((uint32_t)(half & 0x7FFF) << 13) + ((127u - 15u) << 23));
    return half & 0x8000 ? -f : f;
}

#define NAME_FORMAT(at) __attribute__((format(printf, at, (at) + 1)))

struct name {
    char text[160];
};

/* ---- Scales of fp8 weights (spec 6) ---------------------------------------------------------------------------------- */

static dsv2_status check_scale(const struct loader *l, const struct dsv2i_tensor *t, int one)
{
    if (dtype_of(t) != DSV2I_F32 && dtype_of(t) != DSV2I_BF16)
        return bad_dtype(l, t, "F32 and BF16 are for scales");
    if (one && !(t->rank == 0 || (t->rank == 1 && t->shape[0] == 1)))
        return bad_shape(l, t, QUANTIZATION, 1, (int64_t[]){1});
    return DSV2_OK;
}

/* Scales of activations and of a KV cache: activations stay fp32 here, and a cache has scales per token. */
static dsv2_status pass_over(struct loader *l, const char *module, const char *what)
{
    struct dsv2i_tensor *t;
    struct name name;

    snprintf(name.text, sizeof name.text, "%s.%s", module, what);
    t = dsv2i_tensors_find(l->set, name.text);
    if (!t)
        return DSV2_OK;
    DSV2I_TRY(check_scale(l, t, 1));
    return take_tensor(l, t);
}

/* Scales as fp32, where they lie if they are. */
static dsv2_status place_scales(struct loader *l, const struct dsv2i_tensor *t, int32_t n, struct dsv2i_weight *w)
{
    const void *data;
    float *copy;

    if (dtype_of(t) == DSV2I_F32) {
        DSV2I_TRY(aligned_data(l, t, &data));
        w->scale = data;
    } else {
        w->scale = copy = new_block(l, (uint64_t)n * sizeof *copy);
        if (!copy)
            return no_memory(l, t->name, (uint64_t)n * sizeof *copy);
        for (int32_t i = 0; i < n; i++)
            copy[i] = element(tensor_data(l, t), dtype_of(t), i);
    }
    for (int32_t i = 0; i < n; i++) {
        if (!(w->scale[i] > 0 && w->scale[i] * GREATEST_CODE <= FLT_MAX))
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: element %d: must be positive, and finite times %d, is %g",
                              dsv2i_tensors_file(l->set, t->file), t->name, i, GREATEST_CODE, (double)w->scale[i]);
    }
    return DSV2_OK;
}

static dsv2_status bind_scales(struct loader *l, const char *module, struct dsv2i_weight *w)
{
    struct dsv2i_quantization *q = &l->quantization;
    static const char *const others[] = {"input_scale", "k_scale", "v_scale"};
    int64_t shape[2];
    struct dsv2i_tensor *t;
    struct name name;

    w->scale_rows = q->scales == DSV2I_SCALES_TENSOR ? w->rows : q->scales == DSV2I_SCALES_ROW ? 1 : DSV2I_SCALE_BLOCK;
    w->scale_cols = q->scales == DSV2I_SCALES_BLOCK ? DSV2I_SCALE_BLOCK : w->cols;
    shape[0] = (w->rows - 1) / w->scale_rows + 1;
    shape[1] = (w->cols - 1) / w->scale_cols + 1;
    snprintf(name.text, sizeof name.text, "%s.%s", module, q->scale_name);
    t = dsv2i_tensors_find(l->set, name.text);
    if (!t)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: is missing, but %s.weight is F8_E4M3", dsv2i_tensors_source(l->set), name.text, module);
    DSV2I_TRY(check_scale(l, t, q->scales == DSV2I_SCALES_TENSOR));
    if (q->scales != DSV2I_SCALES_TENSOR && (t->rank != 2 || memcmp(t->shape, shape, sizeof shape) != 0))
        return bad_shape(l, t, QUANTIZATION, 2, shape);
    DSV2I_TRY(take_tensor(l, t));
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        DSV2I_TRY(pass_over(l, module, others[i]));
    if (l->placing)
        return place_scales(l, t, (int32_t)(shape[0] * shape[1]), w);
    if (dtype_of(t) != DSV2I_F32)
        l->widened += (uint64_t)(shape[0] * shape[1]);
    return dsv2i_quantization_check(q, "config.json", module);
}

/* The scales of a weight that has none, or not of its type, would be ignored. */
static dsv2_status want_no_scales(const struct loader *l, const char *module, const struct dsv2i_tensor *weight)
{
    static const char *const scales[] = {"weight_scale", "weight_scale_inv"};

    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
        const struct dsv2i_tensor *t;
        struct name name;

        snprintf(name.text, sizeof name.text, "%s.%s", module, scales[i]);
        t = dsv2i_tensors_find(l->set, name.text);
        if (t)
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: dtype %s: stored although the dtype of %s is %s", dsv2i_tensors_file(l->set, t->file),
                              t->name, t->dtype, weight->name, weight->dtype);
    }
    return DSV2_OK;
}

/* X.weight, and of an fp8 weight what goes with it. */
NAME_FORMAT(5) static dsv2_status matrix(struct loader *l, struct dsv2i_weight *w, int32_t rows, int32_t cols,
                                         const char *format, ...)
{
    int64_t shape[2] = {rows, cols};
    struct dsv2i_tensor *t;
    struct name name;
    va_list args;

    va_start(args, format);
    vsnprintf(name.text, sizeof name.text, format, args);
    va_end(args);
    DSV2I_TRY(find_tensor(l, name.text, 2, shape, 1, &t));
    w->dtype = dtype_of(t);
    w->rows = rows;
    w->cols = cols;
    name.text[strlen(name.text) - strlen(".weight")] = 0; /* the module */
    if (w->dtype == DSV2I_F8_E4M3)
        DSV2I_TRY(bind_scales(l, name.text, w));
    else
        DSV2I_TRY(want_no_scales(l, name.text, t));
    return l->placing ? aligned_data(l, t, &w->data) : DSV2_OK;
}

NAME_FORMAT(4) static dsv2_status vector(struct loader *l, const float **out, int32_t n, const char *format, ...)
{
    int64_t shape[1] = {n};
    struct dsv2i_tensor *t;
    struct name name;
    va_list args;
    float *v;

    va_start(args, format);
    vsnprintf(name.text, sizeof name.text, format, args);
    va_end(args);
    DSV2I_TRY(find_tensor(l, name.text, 1, shape, 0, &t));
    if (!l->placing)
        return DSV2_OK;
    v = new_block(l, (uint64_t)n * sizeof *v);
    if (!v)
        return no_memory(l, name.text, (uint64_t)n * sizeof *v);
    for (int32_t i = 0; i < n; i++)
        v[i] = element(tensor_data(l, t), dtype_of(t), i);
    *out = v;
    return DSV2_OK;
}

/* ---- The model's tensors (spec 2) ------------------------------------------------------------------------------------ */

static dsv2_status bind_attention(struct loader *l, int32_t i, struct dsv2i_layer *y)
{
    const struct dsv2i_shape *p = &l->m->config.shape;
    int32_t heads = p->num_attention_heads, q_rows = heads * (p->qk_nope_head_dim + p->qk_rope_head_dim);
    struct name module;

    DSV2I_TRY(vector(l, &y->input_layernorm, p->hidden_size, "model.layers.%d.input_layernorm.weight", i));
    if (p->q_lora_rank) {
        DSV2I_TRY(matrix(l, &y->q_a_proj, p->q_lora_rank, p->hidden_size, "model.layers.%d.self_attn.q_a_proj.weight", i));
        DSV2I_TRY(vector(l, &y->q_a_layernorm, p->q_lora_rank, "model.layers.%d.self_attn.q_a_layernorm.weight", i));
        DSV2I_TRY(matrix(l, &y->q_b_proj, q_rows, p->q_lora_rank, "model.layers.%d.self_attn.q_b_proj.weight", i));
    } else {
        DSV2I_TRY(matrix(l, &y->q_proj, q_rows, p->hidden_size, "model.layers.%d.self_attn.q_proj.weight", i));
    }
    DSV2I_TRY(matrix(l, &y->kv_a_proj_with_mqa, p->kv_lora_rank + p->qk_rope_head_dim, p->hidden_size,
                     "model.layers.%d.self_attn.kv_a_proj_with_mqa.weight", i));
    DSV2I_TRY(vector(l, &y->mla.kv_a_norm, p->kv_lora_rank, "model.layers.%d.self_attn.kv_a_layernorm.weight", i));
    DSV2I_TRY(matrix(l, &y->mla.kv_b, heads * (p->qk_nope_head_dim + p->v_head_dim), p->kv_lora_rank,
                     "model.layers.%d.self_attn.kv_b_proj.weight", i));
    DSV2I_TRY(matrix(l, &y->o_proj, p->hidden_size, heads * p->v_head_dim, "model.layers.%d.self_attn.o_proj.weight", i));
    if (l->quantization.scales) {
        snprintf(module.text, sizeof module.text, "model.layers.%d.self_attn", i);
        DSV2I_TRY(pass_over(l, module.text, "k_scale"));
        DSV2I_TRY(pass_over(l, module.text, "v_scale"));
    }
    return vector(l, &y->post_attention_layernorm, p->hidden_size, "model.layers.%d.post_attention_layernorm.weight", i);
}

NAME_FORMAT(4) static dsv2_status bind_ffn(struct loader *l, struct dsv2i_ffn *f, int32_t inter, const char *format, ...)
{
    int32_t hidden = l->m->config.shape.hidden_size;
    char prefix[100];
    va_list args;

    va_start(args, format);
    vsnprintf(prefix, sizeof prefix, format, args);
    va_end(args);
    DSV2I_TRY(matrix(l, &f->gate, inter, hidden, "%s.gate_proj.weight", prefix));
    DSV2I_TRY(matrix(l, &f->up, inter, hidden, "%s.up_proj.weight", prefix));
    return matrix(l, &f->down, hidden, inter, "%s.down_proj.weight", prefix);
}

/* All experts of a layer in two tensors: (experts, 2 * inter, hidden) with gate's rows first, and (experts, hidden, inter). */
static dsv2_status bind_fused_experts(struct loader *l, struct dsv2i_ffn *experts, const char *gate_up_name, const char *down_name)
{
    const struct dsv2i_shape *p = &l->m->config.shape;
    int32_t inter = p->moe_intermediate_size, hidden = p->hidden_size;
    int64_t gate_up_shape[3] = {p->n_routed_experts, 2 * (int64_t)inter, hidden};
    int64_t down_shape[3] = {p->n_routed_experts, hidden, inter};
    struct dsv2i_tensor *gate_up, *down;
    const void *gu = NULL, *d = NULL;

    DSV2I_TRY(find_tensor(l, gate_up_name, 3, gate_up_shape, 0, &gate_up));
    DSV2I_TRY(find_tensor(l, down_name, 3, down_shape, 0, &down));
    if (l->placing) {
        DSV2I_TRY(aligned_data(l, gate_up, &gu));
        DSV2I_TRY(aligned_data(l, down, &d));
    }
    for (int32_t e = 0; e < p->n_routed_experts; e++) {
        size_t in_step = (size_t)inter * (size_t)hidden * dsv2i_dtype_size(dtype_of(gate_up));
        size_t out_step = (size_t)inter * (size_t)hidden * dsv2i_dtype_size(dtype_of(down));

        experts[e].gate = experts[e].up = (struct dsv2i_weight){.dtype = dtype_of(gate_up), .rows = inter, .cols = hidden};
        experts[e].down = (struct dsv2i_weight){.dtype = dtype_of(down), .rows = hidden, .cols = inter};
        if (!l->placing)
            continue;
        experts[e].gate.data = (const char *)gu + 2 * (size_t)e * in_step;
        experts[e].up.data = (const char *)experts[e].gate.data + in_step;
        experts[e].down.data = (const char *)d + (size_t)e * out_step;
    }
    return DSV2_OK;
}

static dsv2_status bind_experts(struct loader *l, int32_t i, struct dsv2i_layer *y)
{
    const struct dsv2i_shape *p = &l->m->config.shape;
    struct name gate_up, down;

    DSV2I_TRY(matrix(l, &y->router, p->n_routed_experts, p->hidden_size, "model.layers.%d.mlp.gate.weight", i));
    /* The table comes after a first tensor, so that a few lines of config.json cannot claim gigabytes for it. */
    if (!y->experts)
        y->experts = dsv2i_calloc(l->mem, (size_t)p->n_routed_experts, sizeof *y->experts);
    if (!y->experts)
        return no_memory(l, "experts", (uint64_t)p->n_routed_experts * sizeof *y->experts);
    snprintf(gate_up.text, sizeof gate_up.text, "model.layers.%d.mlp.experts.gate_up_proj", i);
    snprintf(down.text, sizeof down.text, "model.layers.%d.mlp.experts.down_proj", i);
    if (dsv2i_tensors_find(l->set, gate_up.text)) {
        DSV2I_TRY(bind_fused_experts(l, y->experts, gate_up.text, down.text));
    } else {
        for (int32_t e = 0; e < p->n_routed_experts; e++)
            DSV2I_TRY(bind_ffn(l, &y->experts[e], p->moe_intermediate_size, "model.layers.%d.mlp.experts.%d", i, e));
    }
    /* The shared experts are one MLP of n times the width. */
    return p->n_shared_experts ? bind_ffn(l, &y->mlp, p->n_shared_experts * p->moe_intermediate_size,
                                          "model.layers.%d.mlp.shared_experts", i)
                               : DSV2_OK;
}

static dsv2_status bind_all(struct loader *l)
{
    dsv2_model *m = l->m;
    const struct dsv2i_shape *p = &m->config.shape;

    DSV2I_TRY(matrix(l, &m->embed_tokens, p->vocab_size, p->hidden_size, "model.embed_tokens.weight"));
    for (int32_t i = 0; i < p->num_hidden_layers; i++) {
        DSV2I_TRY(bind_attention(l, i, &m->layers[i]));
        if (dsv2i_config_is_moe(&m->config, i))
            DSV2I_TRY(bind_experts(l, i, &m->layers[i]));
        else
            DSV2I_TRY(bind_ffn(l, &m->layers[i].mlp, p->intermediate_size, "model.layers.%d.mlp", i));
    }
    DSV2I_TRY(vector(l, &m->norm, p->hidden_size, "model.norm.weight"));
    if (!m->config.tie_word_embeddings)
        return matrix(l, &m->lm_head, p->vocab_size, p->hidden_size, "lm_head.weight");
    m->lm_head = m->embed_tokens;
    return DSV2_OK;
}

/* Everything in the files has to be something that was asked for: a tensor that is ignored is a model that is not run as trained. */
static dsv2_status check_unknown(struct loader *l)
{
    static const char derived[] = ".rotary_emb.inv_freq"; /* a buffer that old versions of HF saved; computed here */
    const size_t n_derived = sizeof derived - 1;
    char shown[160];

    for (size_t i = 0; i < dsv2i_tensors_count(l->set); i++) {
        const struct dsv2i_tensor *t = dsv2i_tensors_at(l->set, i);
        size_t n = strlen(t->name);

        if (t->used || (n >= n_derived && strcmp(t->name + n - n_derived, derived) == 0))
            continue;
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: dtype %s: %s", dsv2i_tensors_file(l->set, t->file),
                          dsv2i_quote(shown, sizeof shown, t->name, n), t->dtype,
                          strcmp(t->name, "lm_head.weight") == 0 ? "stored although tie_word_embeddings is true in config.json"
                                                                 : "the model of config.json has no tensor of this name");
    }
    return DSV2_OK;
}

/* ---- Weight files ---------------------------------------------------------------------------------------------------- */

static dsv2_status read_data(struct loader *l, int32_t f, uint64_t begin, uint64_t end)
{
    const char *name = dsv2i_tensors_file(l->set, f);
    unsigned char *data = new_block(l, end - begin);

    if (!data)
        return no_memory(l, name, end - begin);
    l->m->blobs->file[f].data = data;
    for (uint64_t at = begin; at < end;) {
        size_t n = end - at < READ_PIECE ? (size_t)(end - at) : READ_PIECE;

        DSV2I_TRY(dsv2i_files_read(&l->files, name, at, data + (at - begin), n));
        DSV2I_TRY(report(l, n));
        at += n;
    }
    l->m->weight_memory += end - begin;
    return DSV2_OK;
}

static dsv2_status map_data(struct loader *l, int32_t f, uint64_t begin, uint64_t end)
{
    struct weight_file *w = &l->m->blobs->file[f];
    const void *map;
    uint64_t bytes;

    DSV2I_TRY(dsv2i_files_map(&l->files, dsv2i_tensors_file(l->set, f), &map, &bytes));
    w->map = map;
    w->map_bytes = bytes;
    w->data = (const unsigned char *)map + begin;
    if (bytes != end)
        return dsv2i_fail(DSV2_ERR_IO, "%s/%s: its size changed from %llu to %llu bytes during loading", l->files.folder,
                          dsv2i_tensors_file(l->set, f), (unsigned long long)end, (unsigned long long)bytes);
    l->m->weight_memory += end - begin;
    return DSV2_OK;
}

static uint64_t data_bytes(const struct dsv2i_tensor_set *set)
{
    uint64_t sum = 0, begin, end;

    for (int32_t f = 0; f < dsv2i_tensors_files(set); f++) {
        dsv2i_tensors_extent(set, f, &begin, &end);
        sum += end - begin;
    }
    return sum;
}

static dsv2_status place_weights(struct loader *l)
{
    struct dsv2i_blobs *blobs = l->m->blobs;
    int32_t n = dsv2i_tensors_files(l->set);
    uint64_t begin, end, left;

    l->total = data_bytes(l->set) + l->to_upload;
    DSV2I_TRY(report(l, 0));
    blobs->file = dsv2i_calloc(l->mem, (size_t)n, sizeof *blobs->file);
    if (!blobs->file)
        return no_memory(l, "weight files", (uint64_t)n * sizeof *blobs->file);
    blobs->n_files = n;
    for (int32_t f = 0; f < n; f++) {
        dsv2i_tensors_extent(l->set, f, &begin, &end);
        if (l->params.load_mode == DSV2_LOAD_READ)
            DSV2I_TRY(read_data(l, f, begin, end));
        else
            DSV2I_TRY(map_data(l, f, begin, end));
    }
    l->placing = 1;
    DSV2I_TRY(bind_all(l));
    l->m->weight_memory += l->copied;
    left = data_bytes(l->set) - l->done;
    return left ? report(l, left) : DSV2_OK; /* mapped tensors that nobody asked for */
}

static void free_blobs(const struct dsv2i_hooks *mem, struct dsv2i_blobs *blobs)
{
    if (!blobs)
        return;
    for (int32_t f = 0; f < blobs->n_files; f++) {
        if (blobs->file[f].map)
            dsv2i_files_unmap(blobs->file[f].map, blobs->file[f].map_bytes);
    }
    while (blobs->blocks) {
        struct block *next = blobs->blocks->next;

        dsv2i_free(mem, blobs->blocks);
        blobs->blocks = next;
    }
    dsv2i_free(mem, blobs->file);
    dsv2i_free(mem, blobs);
}

static dsv2_status report_upload(void *user, uint64_t bytes)
{
    return report(user, bytes);
}

/* To a backend with memory of its own; the host's copies go. */
static dsv2_status upload_weights(struct loader *l)
{
    dsv2_model *m = l->m;

    dsv2i_fingerprint(m); /* while they can be read */
    DSV2I_TRY(dsv2i_upload(m, report_upload, l));
    free_blobs(l->mem, m->blobs);
    m->blobs = NULL;
    m->weight_memory = m->block_bytes;
    return l->done < l->total ? report(l, l->total - l->done) : DSV2_OK;
}

/* ---- Small files and facts ------------------------------------------------------------------------------------------- */

/* *text NULL: there is no such file. */
static dsv2_status load_optional(struct loader *l, const char *name, size_t max, char **text, size_t *n)
{
    int exists;

    *text = NULL;
    *n = 0;
    DSV2I_TRY(dsv2i_files_exists(&l->files, name, &exists));
    return exists ? dsv2i_files_load(&l->files, name, max, text, n) : DSV2_OK;
}

static dsv2_status load_config(struct loader *l)
{
    static const char name[] = "generation_config.json";
    dsv2_model *m = l->m;
    dsv2_status status;
    char *text;
    size_t n;

    DSV2I_TRY(dsv2i_files_load(&l->files, "config.json", MAX_CONFIG, &text, &n));
    status = dsv2i_config_parse("config.json", text, n, &m->config);
    if (status == DSV2_OK)
        status = dsv2i_quantization_parse(l->mem, "config.json", text, n, &l->quantization);
    dsv2i_free(l->mem, text);
    DSV2I_TRY(status);
    dsv2i_generation_default(&m->config, &m->generation);
    DSV2I_TRY(load_optional(l, name, MAX_CONFIG, &text, &n));
    status = text ? dsv2i_generation_parse(name, text, n, &m->config, &m->generation) : DSV2_OK;
    dsv2i_free(l->mem, text);
    return status;
}

/* config is the text of tokenizer_config.json, or NULL. */
static dsv2_status load_chat(struct loader *l, const char *config, size_t n_config)
{
    static const char name[] = "chat_template.jinja";
    dsv2_status status;
    char *text;
    size_t n;

    DSV2I_TRY(dsv2i_chat_parse(l->mem, "tokenizer_config.json", config, n_config, &l->m->chat));
    DSV2I_TRY(load_optional(l, name, MAX_CHAT_TEMPLATE, &text, &n));
    status = text ? dsv2i_chat_override(l->m->chat, name, text, n) : DSV2_OK;
    dsv2i_free(l->mem, text);
    return status;
}

static dsv2_status load_tokenizer(struct loader *l, const char *config, size_t n_config)
{
    static const char name[] = "tokenizer.json";
    dsv2_model *m = l->m;
    dsv2_status status;
    char *text;
    size_t n;

    DSV2I_TRY(load_optional(l, name, MAX_TOKENIZER, &text, &n));
    m->tokenizer_hash = text ? dsv2i_hash(0, text, n) : 0;
    status = text ? dsv2i_tokenizer_parse(l->mem, name, text, n, "tokenizer_config.json", config, n_config,
                                          m->config.shape.vocab_size, m->config.bos_token_id, &m->tokenizer)
                  : DSV2_OK;
    dsv2i_free(l->mem, text);
    return status;
}

static dsv2_status load_text_files(struct loader *l)
{
    dsv2_status status;
    char *config;
    size_t n;

    DSV2I_TRY(load_optional(l, "tokenizer_config.json", MAX_TOKENIZER_CONFIG, &config, &n));
    status = load_chat(l, config, n);
    if (status == DSV2_OK)
        status = load_tokenizer(l, config, n);
    dsv2i_free(l->mem, config);
    return status;
}

/* Tokenizer, tables, norms and scales that became fp32: what the model holds besides the weights. */
static uint64_t other_bytes(const struct loader *l)
{
    const dsv2_model *m = l->m;
    const struct dsv2i_shape *p = &m->config.shape;
    uint64_t floats = (uint64_t)p->hidden_size + l->widened, tables = sizeof *m;

    for (int32_t i = 0; i < p->num_hidden_layers; i++) {
        floats += 2 * (uint64_t)p->hidden_size + (uint64_t)p->kv_lora_rank + (uint64_t)p->q_lora_rank;
        tables += sizeof(struct dsv2i_layer);
        if (dsv2i_config_is_moe(&m->config, i))
            tables += (uint64_t)p->n_routed_experts * sizeof(struct dsv2i_ffn);
    }
    return floats * sizeof(float) + tables + (m->tokenizer ? dsv2i_tokenizer_memory(m->tokenizer) : 0);
}

static void fill_info(struct loader *l)
{
    static const char *const names[DSV2I_DTYPES] = {"", "F32", "BF16", "F16", "F8_E4M3"};
    dsv2_model *m = l->m;
    const struct dsv2i_config *c = &m->config;
    const struct dsv2i_shape *p = &c->shape;
    int32_t dtype = c->dtype ? c->dtype : DSV2I_BF16;

    m->info = (dsv2_model_info){
        .struct_size = sizeof m->info,
        .vocab_size = p->vocab_size, .hidden_size = p->hidden_size, .num_hidden_layers = p->num_hidden_layers,
        .num_attention_heads = p->num_attention_heads, .q_lora_rank = p->q_lora_rank, .kv_lora_rank = p->kv_lora_rank,
        .qk_nope_head_dim = p->qk_nope_head_dim, .qk_rope_head_dim = p->qk_rope_head_dim, .v_head_dim = p->v_head_dim,
        .intermediate_size = p->intermediate_size, .moe_intermediate_size = p->moe_intermediate_size,
        .n_routed_experts = p->n_routed_experts, .n_shared_experts = p->n_shared_experts,
        .num_experts_per_tok = p->num_experts_per_tok, .n_group = c->n_group, .topk_group = c->topk_group,
        .first_k_dense_replace = c->first_k_dense_replace, .moe_layer_freq = c->moe_layer_freq,
        .max_position_embeddings = c->max_position_embeddings, .bos_token_id = c->bos_token_id,
        .eos_token_id = c->n_eos ? c->eos_token_id[0] : -1,
        .n_tokens = m->tokenizer ? dsv2i_tokenizer_count(m->tokenizer) : 0, .has_tokenizer = m->tokenizer != NULL,
        .chat_template = dsv2i_chat_kind(m->chat), .routed_scaling_factor = c->route.routed_scaling_factor,
        .rope_theta = c->rope_theta, .softmax_scale = c->softmax_scale,
        .kv_elements_per_token = (uint64_t)(p->kv_lora_rank + p->qk_rope_head_dim) * (uint64_t)p->num_hidden_layers,
    };
    dsv2i_config_parameters(c, &m->info.parameters, &m->info.active_parameters);
    m->info.weight_bytes = m->info.parameters * dsv2i_dtype_size(dtype);
    if (l->quantization.scales) { /* scales come to less than a thousandth */
        m->info.weight_bytes -= dsv2i_config_quantizable(c) * (dsv2i_dtype_size(dtype) - dsv2i_dtype_size(DSV2I_F8_E4M3));
        dtype = DSV2I_F8_E4M3;
    }
    if (l->set) {
        m->info.weight_bytes = data_bytes(l->set);
        dtype = DSV2I_F32;
        for (int32_t d = DSV2I_BF16; d < DSV2I_DTYPES; d++) {
            if (l->bytes_of[d] > l->bytes_of[dtype])
                dtype = d;
        }
    }
    strcpy(m->info.weight_dtype, names[dtype]);
    m->other_memory = other_bytes(l);
}

/* ---- Model ----------------------------------------------------------------------------------------------------------- */

static dsv2_status take_params(struct loader *l, const dsv2_model_params *params)
{
    static const char name[] = "dsv2_model_params";

    dsv2_model_params_init(&l->params, sizeof l->params);
    DSV2I_TRY(dsv2i_params_take(&l->params, sizeof l->params, params, name));
    if (l->params.load_mode != DSV2_LOAD_MMAP && l->params.load_mode != DSV2_LOAD_READ)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: load_mode: %d is none of DSV2_LOAD_*", name, l->params.load_mode);
    if (l->params.reserved != 0)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: reserved: %d is not 0", name, l->params.reserved);
    if (!l->params.reader)
        return DSV2_OK;
    DSV2I_TRY(dsv2i_params_take(&l->reader, sizeof l->reader, l->params.reader, "dsv2_reader"));
    if (!l->reader.size || !l->reader.read)
        return dsv2i_fail(DSV2_ERR_INVALID, "dsv2_reader: %s: is NULL", l->reader.size ? "read" : "size");
    l->files.reader = &l->reader;
    l->params.load_mode = DSV2_LOAD_READ;
    return DSV2_OK;
}

static dsv2_status new_model(struct loader *l, dsv2_context *ctx, const char *folder)
{
    dsv2_model *m = dsv2i_calloc(l->mem, 1, sizeof *m);

    if (!m)
        return no_memory(l, "the model", sizeof *m);
    atomic_init(&m->refs, 1);
    atomic_init(&m->weights_hash, 0);
    m->ctx = ctx;
    dsv2i_context_retain(ctx);
    l->m = m;
    m->folder = dsv2i_strndup(l->mem, folder, strlen(folder));
    m->blobs = dsv2i_calloc(l->mem, 1, sizeof *m->blobs);
    if (!m->folder || !m->blobs)
        return no_memory(l, "the model", sizeof *m->blobs + strlen(folder));
    return DSV2_OK;
}

/* All that can be known without reading weights: the first pass. */
static dsv2_status examine(struct loader *l)
{
    dsv2_model *m = l->m;
    int32_t n = 0;

    DSV2I_TRY(load_config(l));
    DSV2I_TRY(dsv2i_tensors_open(&l->files, l->mem, &l->set));
    n = m->config.shape.num_hidden_layers;
    m->layers = dsv2i_calloc(l->mem, (size_t)n, sizeof *m->layers);
    if (!m->layers)
        return no_memory(l, "layers", (uint64_t)n * sizeof *m->layers);
    DSV2I_TRY(bind_all(l));
    DSV2I_TRY(check_unknown(l));
    DSV2I_TRY(load_text_files(l));
    fill_info(l);
    return DSV2_OK;
}

static dsv2_status load(struct loader *l, dsv2_context *ctx, const char *folder, const dsv2_model_params *params)
{
    DSV2I_TRY(take_params(l, params));
    DSV2I_TRY(new_model(l, ctx, folder));
    DSV2I_TRY(examine(l));
    l->to_upload = dsv2i_upload_bytes(l->m);
    DSV2I_TRY(place_weights(l));
    return l->to_upload ? upload_weights(l) : DSV2_OK;
}

dsv2_status dsv2i_model_load(dsv2_context *ctx, const char *folder, const dsv2_model_params *params, dsv2_model **out)
{
    struct loader l = {.mem = &ctx->mem, .files = {&ctx->mem, folder, NULL}};
    dsv2_status status = load(&l, ctx, folder, params);

    dsv2i_tensors_close(l.set);
    dsv2i_quantization_free(&l.quantization);
    if (status != DSV2_OK)
        dsv2i_model_release(l.m);
    *out = status == DSV2_OK ? l.m : NULL;
    return status;
}

static dsv2_status inspect(struct loader *l, dsv2_context *ctx, const char *folder, const dsv2_model_params *params)
{
    int weights;

    DSV2I_TRY(take_params(l, params));
    DSV2I_TRY(new_model(l, ctx, folder));
    DSV2I_TRY(dsv2i_tensors_exist(&l->files, &weights));
    if (weights)
        return examine(l);
    DSV2I_TRY(load_config(l));
    DSV2I_TRY(load_text_files(l));
    fill_info(l);
    return DSV2_OK;
}

dsv2_status dsv2i_model_inspect(dsv2_context *ctx, const char *folder, const dsv2_model_params *params,
                                const dsv2_session_params *session, dsv2_model_info *info, dsv2_memory *memory)
{
    struct loader l = {.mem = &ctx->mem, .files = {&ctx->mem, folder, NULL}};
    dsv2_status status = inspect(&l, ctx, folder, params);

    if (status == DSV2_OK) {
        *info = l.m->info;
        status = dsv2i_session_estimate(ctx, &l.m->config, session, l.m->info.weight_bytes, l.m->other_memory, memory);
    }
    dsv2i_tensors_close(l.set);
    dsv2i_quantization_free(&l.quantization);
    dsv2i_model_release(l.m);
    return status;
}

void dsv2i_model_retain(dsv2_model *m)
{
    atomic_fetch_add(&m->refs, 1);
}

void dsv2i_model_release(dsv2_model *m)
{
    dsv2_context *ctx;

    if (!m || atomic_fetch_sub(&m->refs, 1) != 1)
        return;
    ctx = m->ctx;
    if (ctx->pid == getpid()) { /* a child of fork has no device */
        dsv2i_context_begin_turn(ctx); /* a step of another model may be at work on what is kept for each */
        ctx->backend->op->forget(ctx->backend, m);
        dsv2i_context_end_turn(ctx);
        if (m->block)
            ctx->backend->op->mem_free(ctx->backend, m->block, m->block_bytes);
    }
    free_blobs(&ctx->mem, m->blobs);
    for (int32_t i = 0; m->layers && i < m->config.shape.num_hidden_layers; i++)
        dsv2i_free(&ctx->mem, m->layers[i].experts);
    dsv2i_free(&ctx->mem, m->layers);
    if (m->tokenizer)
        dsv2i_tokenizer_free(m->tokenizer);
    if (m->chat)
        dsv2i_chat_free(m->chat);
    dsv2i_free(&ctx->mem, m->folder);
    dsv2i_free(&ctx->mem, m);
    dsv2i_context_release(ctx); /* last: its hooks freed the rest */
}
