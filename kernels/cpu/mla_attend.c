/* Multi-head latent attention over the pages of each sequence, in blocks of 64 keys from position 0 with an online
 * softmax.
 *
 * Absorbed (paper 2.1.2): a query of head i is taken to the latent space, qa = UK_i^T qn, and meets the cached rows
 * as they are: all heads share one 576-wide key whose first 512 elements are also the value.  A task is a few rows of
 * one sequence x a few heads: each block of keys is converted once for all of them.
 *
 * Expanded: per head, keys and values of a block are made from the latents, once for all rows of the sequence.
 * Cheaper per row and key (320 multiply-adds for 1,088), dearer per key (131,072): for long prompts.  A task is a
 * head of a sequence.
 *
 * SPDX-License-Identifier: MIT */
#include <math.h>

#include "kv_codec.h"

#define BLOCK DSV2I_PAGE_TOKENS
#define MAX_HEADS 8 /* per absorbed task; twice as many of a few rows of records */

struct attend {
    float *o;
    const float *q;
    const struct dsv2i_mla *mla;
    int32_t layer;
    int32_t heads;             /* of an absorbed task, at most, but see tile_heads */
    const int32_t *first_task; /* (n_seqs + 1) */
};

/* A sequence's rows in this step. */
struct span {
    const struct dsv2i_seq *seq;
    int32_t row, n, pos; /* first row, rows, position of the first */
};

static size_t width_of(const struct dsv2i_shape *s)
{
    return (size_t)s->kv_lora_rank + (size_t)s->qk_rope_head_dim;
}

/* Thread scratch, in floats.  Absorbed: queries, sums and scores of the tile, a block of keys.  Expanded: scores, a
 * block of latents, keys and values, and the softmax state of all rows. */
size_t dsv2i_attend_thread_floats(const struct dsv2i_shape *s, int32_t n_rows)
{
    size_t width = width_of(s), key = (size_t)s->qk_nope_head_dim + (size_t)s->qk_rope_head_dim;
    size_t absorbed = dsv2i_size_mul(ATTEND_TILE, width + (size_t)s->kv_lora_rank + 3 + BLOCK);
    size_t expanded = dsv2i_size_add(dsv2i_size_mul(BLOCK, key + (size_t)s->v_head_dim + TILE_ROWS),
                                     dsv2i_size_mul(2, (size_t)n_rows));

    return dsv2i_size_add(absorbed > expanded ? absorbed : expanded, dsv2i_size_mul(BLOCK, width));
}

/* n keys of a block, rows of width elements: the page itself, or what its records say in buf.  bf16 elements that few will read
 * convert faster on their way.  Latents of 6BIT are rotated, as `rotated` says. */
static struct dsv2i_weight load_keys(const struct dsv2i_cpu *be, const struct span *span, int32_t layer, int32_t block,
                                     int32_t n, int many, float *buf)
{
    int32_t kv_type = span->seq->kv_type, rank = be->shape->kv_lora_rank, rope = be->shape->qk_rope_head_dim;
    size_t bytes = dsv2i_kv_record(kv_type, rank, rope).bytes;
    const char *page = (const char *)span->seq->page[block] + (size_t)layer * BLOCK * bytes;
    struct dsv2i_weight keys = { .dtype = kv_type == DSV2I_KV_BF16 ? DSV2I_BF16 : DSV2I_F32, .rows = n, .cols = rank + rope, .data = page };

    if (kv_type == DSV2I_KV_F32 || (kv_type == DSV2I_KV_BF16 && !many))
        return keys;
    if (kv_type == DSV2I_KV_BF16)
        be->inner.widen(buf, &keys, 0, n);
    else
        be->inner.kv_read(buf, page, kv_type, rank, rope, n);
    return dsv2i_floats(buf, n, rank + rope);
}

static int rotated(const struct span *span)
{
    return span->seq->kv_type == DSV2I_KV_6BIT;
}

/* Softmax state of a row and head. */
static void start_state(float *max, float *sum, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        max[i] = -INFINITY;
        sum[i] = 0;
    }
}

/* Heads that share a task of a sequence, and their rows.  Records are read once for each task: for few rows that counts, and fewer
 * tasks win over a tile of queries that stays in the first-level cache. */
static int32_t tile_heads(const struct attend *a, const struct span *span)
{
    int records = span->seq->kv_type != DSV2I_KV_BF16 && span->seq->kv_type != DSV2I_KV_F32;

    return records && span->n < TILE_ROWS ? 2 * a->heads : a->heads;
}

static int32_t tile_rows(const struct attend *a, const struct span *span)
{
    return ATTEND_TILE / tile_heads(a, span);
}

static void absorbed_task(struct dsv2i_cpu *be, const struct attend *a, int32_t thread, const struct span *span,
                          int32_t r0, int32_t h0)
{
    const struct dsv2i_inner *in = &be->inner;
    const struct dsv2i_shape *s = be->shape;
    const struct dsv2i_weight *kv_b = &a->mla->kv_b;
    int32_t n_rows = dsv2i_min(tile_rows(a, span), span->n - r0);
    int32_t n_heads = dsv2i_min(tile_heads(a, span), s->num_attention_heads - h0);
    int32_t nope = s->qk_nope_head_dim, rope = s->qk_rope_head_dim, v = s->v_head_dim, rank = s->kv_lora_rank;
    int32_t width = rank + rope, last = span->pos + r0 + n_rows - 1;
    size_t w = (size_t)width, ldq = (size_t)s->num_attention_heads * (size_t)(nope + rope);
    size_t ldo = (size_t)s->num_attention_heads * (size_t)v, tile = (size_t)n_heads;
    float *qa = dsv2i_thread_free(be, thread);     /* (rows, heads, width) */
    float *sum_c = qa + ATTEND_TILE * w;           /* (rows, heads, rank): sum of p c */
    float *score = sum_c + ATTEND_TILE * rank;     /* (heads, 64) */
    float *max = score + ATTEND_TILE * BLOCK, *sum = max + ATTEND_TILE, *corr = sum + ATTEND_TILE;
    float *keys = corr + ATTEND_TILE;              /* (64, width) */
    const float *q = a->q + (size_t)(span->row + r0) * ldq + h0 * (nope + rope), *x[TILE_ROWS];
    float *o = a->o + (size_t)(span->row + r0) * ldo + h0 * v;

    for (int32_t h = 0; h < n_heads; h++) {
        in->axpy(qa + h * width, tile * w, NULL, q + h * (nope + rope), ldq, kv_b, (h0 + h) * (nope + v), n_rows, nope, rank);
        for (int32_t r = 0; r < n_rows; r++)
            memcpy(qa + ((size_t)r * tile + (size_t)h) * w + rank, q + (size_t)r * ldq + h * (nope + rope) + nope,
                   (size_t)rope * sizeof *q);
    }
    for (int32_t i = 0; rotated(span) && i < n_rows * n_heads; i++)
        in->rotate(qa + (size_t)i * w, rank);
    start_state(max, sum, n_rows * n_heads);
    memset(sum_c, 0, (size_t)(n_rows * n_heads) * (size_t)rank * sizeof *sum_c);
    for (int32_t block = 0; block * BLOCK <= last; block++) {
        int32_t n_keys = dsv2i_min(BLOCK, last + 1 - block * BLOCK);
        struct dsv2i_weight c = load_keys(be, span, a->layer, block, n_keys, n_rows * n_heads > 2 * TILE_ROWS, keys);

        for (int32_t r = 0; r < n_rows; r++) {
            int32_t n = dsv2i_min(BLOCK, span->pos + r0 + r + 1 - block * BLOCK); /* keys that the row may see */

            if (n <= 0)
                continue;
            for (int32_t h = 0; h < n_heads; h += TILE_ROWS) {
                int32_t m = dsv2i_min(TILE_ROWS, n_heads - h);

                for (int32_t i = 0; i < m; i++)
                    x[i] = qa + (size_t)(r * n_heads + h + i) * w;
                in->dot(score + h * BLOCK, BLOCK, x, m, &c, 0, n);
            }
            for (int32_t h = 0; h < n_heads; h++)
                in->softmax(score + h * BLOCK, n, s->softmax_scale, &max[r * n_heads + h], &sum[r * n_heads + h],
                            &corr[h]);
            in->axpy(sum_c + (size_t)(r * n_heads) * (size_t)rank, (size_t)rank, corr, score, BLOCK, &c, 0, n_heads, n, rank);
        }
    }
    for (int32_t i = 0; i < n_rows * n_heads; i++)
        for (int32_t k = 0; k < rank; k++)
            sum_c[(size_t)i * (size_t)rank + (size_t)k] /= sum[i];
    for (int32_t i = 0; rotated(span) && i < n_rows * n_heads; i++)
        in->rotate_back(sum_c + (size_t)i * (size_t)rank, rank);
    for (int32_t h = 0; h < n_heads; h++)
        for (int32_t r = 0; r < n_rows; r += TILE_ROWS) {
            int32_t m = dsv2i_min(TILE_ROWS, n_rows - r);

            for (int32_t i = 0; i < m; i++)
                x[i] = sum_c + (size_t)((r + i) * n_heads + h) * (size_t)rank;
            in->dot(o + (size_t)r * ldo + h * v, ldo, x, m, kv_b, (h0 + h) * (nope + v) + nope, v);
        }
}

/* to (n, ldt) = n latents times weight rows j0 .. j0+columns-1. */
static void expand(const struct dsv2i_cpu *be, int32_t thread, float *to, size_t ldt, const float *c, int32_t n,
                   const struct dsv2i_weight *w, int32_t j0, int32_t columns)
{
    struct dsv2i_rows rows = { c, width_of(be->shape), NULL };
    float *out = dsv2i_thread_out(be, thread, 0);

    for (int32_t j = 0; j < columns; j += BLOCK_COLS) {
        int32_t nj = dsv2i_min(BLOCK_COLS, columns - j);

        dsv2i_block(be, thread, out, &rows, 0, n, w, j0 + j, nj);
        for (int32_t i = 0; i < n; i++)
            memcpy(to + (size_t)i * ldt + j, out + i * BLOCK_COLS, (size_t)nj * sizeof *out);
    }
}

static void expanded_task(struct dsv2i_cpu *be, const struct attend *a, int32_t thread, const struct span *span,
                          int32_t h)
{
    const struct dsv2i_inner *in = &be->inner;
    const struct dsv2i_shape *s = be->shape;
    const struct dsv2i_weight *kv_b = &a->mla->kv_b;
    int32_t nope = s->qk_nope_head_dim, rope = s->qk_rope_head_dim, v = s->v_head_dim, head = nope + rope;
    int32_t last = span->pos + span->n - 1;
    size_t w = width_of(s), ldq = (size_t)s->num_attention_heads * (size_t)head;
    size_t ldo = (size_t)s->num_attention_heads * (size_t)v;
    float *score = dsv2i_thread_free(be, thread);  /* (4 rows, 64) */
    float *key = score + TILE_ROWS * BLOCK;        /* (64, nope + rope) */
    float *value = key + BLOCK * head;             /* (64, v) */
    float *latent = value + BLOCK * v;             /* (64, width) */
    float *max = latent + BLOCK * w, *sum = max + span->n, corr[TILE_ROWS];
    const float *q = a->q + (size_t)span->row * ldq + h * head, *x[TILE_ROWS];
    float *o = a->o + (size_t)span->row * ldo + h * v;
    struct dsv2i_weight keys = dsv2i_floats(key, BLOCK, head), values = dsv2i_floats(value, BLOCK, v);

    start_state(max, sum, span->n);
    for (int32_t r = 0; r < span->n; r++)
        memset(o + (size_t)r * ldo, 0, (size_t)v * sizeof *o);
    for (int32_t block = 0; block * BLOCK <= last; block++) {
        int32_t n_keys = dsv2i_min(BLOCK, last + 1 - block * BLOCK), m;
        const float *c = load_keys(be, span, a->layer, block, n_keys, 1, latent).data;

        for (int32_t i = 0; rotated(span) && i < n_keys; i++)
            in->rotate_back(latent + (size_t)i * w, s->kv_lora_rank);
        expand(be, thread, key, (size_t)head, c, n_keys, kv_b, h * (nope + v), nope);
        expand(be, thread, value, (size_t)v, c, n_keys, kv_b, h * (nope + v) + nope, v);
        for (int32_t i = 0; i < n_keys; i++)
            memcpy(key + i * head + nope, c + (size_t)i * w + s->kv_lora_rank, (size_t)rope * sizeof *key);
        for (int32_t r = dsv2i_max(0, block * BLOCK - span->pos); r < span->n; r += m) {
            int32_t n = dsv2i_min(BLOCK, span->pos + r + 1 - block * BLOCK);

            /* Rows that see the same keys go together: those past the block. */
            m = n == BLOCK ? dsv2i_min(TILE_ROWS, span->n - r) : 1;
            for (int32_t i = 0; i < m; i++)
                x[i] = q + (size_t)(r + i) * ldq;
            in->dot(score, BLOCK, x, m, &keys, 0, n);
            for (int32_t i = 0; i < m; i++)
                in->softmax(score + i * BLOCK, n, s->softmax_scale, &max[r + i], &sum[r + i], &corr[i]);
            in->axpy(o + (size_t)r * ldo, ldo, corr, score, BLOCK, &values, 0, m, n, v);
        }
    }
    for (int32_t r = 0; r < span->n; r++)
        for (int32_t k = 0; k < v; k++)
            o[(size_t)r * ldo + (size_t)k] /= sum[r];
}

static struct span span_of(const struct dsv2i_cpu *be, int32_t seq)
{
    const int32_t *first = (const int32_t *)(be->scratch + be->plan.seqs);
    struct span span = { &be->batch->seqs[seq], first[seq], first[seq + 1] - first[seq], 0 };

    if (span.n > 0)
        span.pos = be->batch->pos[span.row];
    return span;
}

static void attend_task(struct dsv2i_cpu *be, const void *arg, int32_t task, int32_t thread)
{
    const struct attend *a = arg;
    int32_t low = 0, high = be->batch->n_seqs, heads, groups;
    struct span span;

    while (high - low > 1) { /* the sequence whose task it is */
        int32_t mid = low + (high - low) / 2;

        *(a->first_task[mid] <= task ? &low : &high) = mid;
    }
    span = span_of(be, low);
    task -= a->first_task[low];
    if (span.seq->form == DSV2I_EXPANDED) {
        expanded_task(be, a, thread, &span, task);
        return;
    }
    heads = tile_heads(a, &span);
    groups = dsv2i_ceil_div(be->shape->num_attention_heads, heads);
    absorbed_task(be, a, thread, &span, task / groups * tile_rows(a, &span), task % groups * heads);
}

/* Number the tasks for absorbed tiles of that many heads; returns how many there are. */
static int32_t number_tasks(const struct dsv2i_cpu *be, struct attend *a, int32_t *first_task, int32_t heads)
{
    int32_t n = 0, n_heads = be->shape->num_attention_heads;

    a->heads = heads;
    for (int32_t i = 0; i < be->batch->n_seqs; i++) {
        struct span span = span_of(be, i);

        first_task[i] = n;
        if (span.n > 0)
            n += span.seq->form == DSV2I_EXPANDED
                     ? n_heads
                     : dsv2i_ceil_div(span.n, tile_rows(a, &span)) * dsv2i_ceil_div(n_heads, tile_heads(a, &span));
    }
    first_task[be->batch->n_seqs] = n;
    return n;
}

void dsv2i_op_mla_attend(struct dsv2i_backend *base, float *o, const float *q, const struct dsv2i_mla *mla,
                         int32_t layer)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);
    const struct dsv2i_shape *s = be->shape;
    const struct dsv2i_batch *b = be->batch;
    int32_t *first_task = (int32_t *)(be->scratch + be->plan.seqs) + b->n_seqs + 1;
    int32_t heads = dsv2i_min(MAX_HEADS, s->num_attention_heads), n_tasks;
    struct attend a = { .o = o, .q = q, .mla = mla, .layer = layer, .first_task = first_task };
    double work = 0;

    for (int32_t i = 0; i < b->n_rows; i++)
        work += (double)(b->pos[i] + 1) * (2.0 * s->kv_lora_rank + s->qk_rope_head_dim);
    work += (double)b->n_rows * s->kv_lora_rank * (s->qk_nope_head_dim + s->v_head_dim);
    n_tasks = number_tasks(be, &a, first_task, heads);
    while (n_tasks < be->pool.n_threads && heads > 1)
        n_tasks = number_tasks(be, &a, first_task, heads = (heads + 1) / 2);
    dsv2i_pool_run(be, attend_task, &a, n_tasks, work * s->num_attention_heads);
}
