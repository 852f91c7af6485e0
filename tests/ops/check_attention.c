/* mla_prepare and mla_attend over pages: several sequences, both forms, every page format, the same tokens cut into
 * steps in several ways.  Rows and keys that do not exist hold NaN.
 *
 * SPDX-License-Identifier: MIT */
#include <math.h>

#include "harness.h"

enum { MAX_SEQS = 3, LAYERS = 2, LAYER = 1, PAGES = 4 };

/* One set of sequences and weights. */
struct world {
    struct dsv2i_shape s;
    struct dsv2i_mla mla;
    int n_seqs, length[MAX_SEQS], base[MAX_SEQS]; /* base: tokens are numbered through all sequences */
    int form, kv_type;                            /* sequence i has form (form + i) % 2 */
    int n, width, q_dim, o_dim;
    float *q, *kva;    /* (n, ...) before mla_prepare */
    void *page[MAX_SEQS][PAGES];
    double *want_q, *want_key;
    double inv_freq[64];
};

static char name[200];

static const char *const kv_name[] = { "bf16", "f32", "e4m3", "e5m2", "int8", "6bit" };

static size_t record_bytes(const struct world *w)
{
    return variants[0].be->op->kv_token_bytes(variants[0].be, &w->s, w->kv_type);
}

static size_t page_bytes(const struct world *w)
{
    return (size_t)LAYERS * DSV2I_PAGE_TOKENS * record_bytes(w);
}

static void clear_pages(struct world *w)
{
    for (int i = 0; i < w->n_seqs; i++)
        for (int p = 0; p < PAGES; p++)
            memset(w->page[i][p], 0xFF, page_bytes(w));
}

static const uint8_t *record(const struct world *w, int seq, int pos, int layer)
{
    return (const uint8_t *)w->page[seq][pos / DSV2I_PAGE_TOKENS]
           + (size_t)(layer * DSV2I_PAGE_TOKENS + pos % DSV2I_PAGE_TOKENS) * record_bytes(w);
}

/* One step: of each sequence the tokens from..to-1.  q goes in raw and comes out rotated. */
static void step(struct world *w, struct dsv2i_backend *be, const int *from, const int *to, float *q, float *o)
{
    int32_t token[512] = { 0 }, pos[512], seq[512];
    struct dsv2i_seq seqs[MAX_SEQS];
    struct dsv2i_batch batch = { .n_rows = 0, .n_seqs = 0, .token = token, .pos = pos, .seq = seq, .seqs = seqs };
    float *step_q = need((size_t)(w->n * w->q_dim), sizeof *q), *step_kva = need((size_t)(w->n * w->width), sizeof *q);
    float *step_o = need((size_t)(w->n * w->o_dim), sizeof *q);
    int32_t origin[512];

    for (int i = 0; i < w->n_seqs; i++) {
        if (from[i] == to[i])
            continue;
        seqs[batch.n_seqs] = (struct dsv2i_seq){ w->page[i], (w->form + i) % 2, w->kv_type };
        for (int t = from[i]; t < to[i]; t++) {
            int row = batch.n_rows++;

            origin[row] = w->base[i] + t;
            pos[row] = t;
            seq[row] = batch.n_seqs;
            memcpy(step_q + (size_t)row * (size_t)w->q_dim, w->q + (size_t)origin[row] * (size_t)w->q_dim,
                   (size_t)w->q_dim * sizeof *q);
            memcpy(step_kva + (size_t)row * (size_t)w->width, w->kva + (size_t)origin[row] * (size_t)w->width,
                   (size_t)w->width * sizeof *q);
        }
        batch.n_seqs++;
    }
    memset(step_o, 0xFF, (size_t)(w->n * w->o_dim) * sizeof *q);
    expect(be->op->reserve(be, &w->s, batch.n_rows) == 0, name, "no scratch");
    poison(be);
    be->op->begin(be, &w->s, &batch);
    be->op->mla_prepare(be, step_q, step_kva, &w->mla, LAYER);
    be->op->mla_attend(be, step_o, step_q, &w->mla, LAYER);
    be->op->finish(be);
    for (int row = 0; row < batch.n_rows; row++) {
        memcpy(q + (size_t)origin[row] * (size_t)w->q_dim, step_q + (size_t)row * (size_t)w->q_dim, (size_t)w->q_dim * sizeof *q);
        memcpy(o + (size_t)origin[row] * (size_t)w->o_dim, step_o + (size_t)row * (size_t)w->o_dim, (size_t)w->o_dim * sizeof *q);
    }
    free(step_q);
    free(step_kva);
    free(step_o);
}

/* Take all tokens through: 0 everything in one step; 1 a sequence after the other; 2 uneven pieces of all; 3 the last
 * five tokens of each one by one. */
static void run_cut(struct world *w, struct dsv2i_backend *be, int cut, float *q, float *o)
{
    int from[MAX_SEQS] = { 0 }, to[MAX_SEQS] = { 0 }, left = 1;

    clear_pages(w);
    for (int round = 0; left; round++) {
        left = 0;
        for (int i = 0; i < w->n_seqs; i++) {
            int rest = w->length[i] - from[i];

            to[i] = w->length[i];
            if (cut == 1 && i != round)
                to[i] = from[i];
            if (cut == 2 && rest > 17 + 20 * i)
                to[i] = from[i] + 17 + 20 * i;
            if (cut == 3 && rest > 1)
                to[i] = rest > 5 ? w->length[i] - 5 : from[i] + 1;
            left |= to[i] < w->length[i];
        }
        step(w, be, from, to, q, o);
        memcpy(from, to, sizeof from);
    }
}

/* Whether x (n) may be what a page keeps of want: by element for numbers with a fixed number of digits, by the error of all for
 * Lloyd-Max levels.  Exact checks of the codes are check_kv's. */
static int kept(const double *x, const double *want, int n, int kv_type, int latent)
{
    /* half a unit in the last place relative to the element, and relative to the greatest */
    static const double relative[] = { 0x1.01p-8, 2e-6, 0x1.01p-4, 0x1.01p-3, 1e-5, 1e-5 };
    static const double of_greatest[] = { 0, 0, 0x1p-10 / 448, 0x1p-17 / 57344, 0.501 / 127, 0.501 / 127 };
    double greatest = 0, square = 0, error = 0;
    int good = 1;

    for (int i = 0; i < n; i++) {
        greatest = fmax(greatest, fabs(want[i]));
        square += want[i] * want[i];
        error += (x[i] - want[i]) * (x[i] - want[i]);
    }
    if (kv_type == DSV2I_KV_6BIT && latent)
        return error <= (n >= 512 ? 0.01 : 0.1) * square;
    for (int i = 0; i < n; i++)
        good &= fabs(x[i] - want[i]) <= relative[kv_type] * fabs(want[i]) + of_greatest[kv_type] * greatest + 2e-6;
    return good;
}

/* Written records say what they should, all other bytes are still 0xFF. */
static void check_pages(struct world *w)
{
    double *key = need((size_t)w->width, sizeof *key);
    int rank = w->s.kv_lora_rank;

    for (int i = 0; i < w->n_seqs; i++) {
        int wrong = 0, beyond = 0;

        for (int t = 0; t < PAGES * DSV2I_PAGE_TOKENS; t++) {
            const double *want = w->want_key + (size_t)(w->base[i] + t) * (size_t)w->width;

            for (int layer = 0; layer < LAYERS; layer++)
                for (size_t k = 0; layer != LAYER || t >= w->length[i] ? k < record_bytes(w) : 0; k++)
                    beyond += record(w, i, t, layer)[k] != 0xFF;
            if (t >= w->length[i])
                continue;
            ref_kv_read(key, record(w, i, t, LAYER), w->kv_type, rank, w->width - rank);
            wrong += !kept(key, want, rank, w->kv_type, 1) + !kept(key + rank, want + rank, w->width - rank, w->kv_type, 0);
        }
        expect(wrong == 0 && beyond == 0, name, "page: %d parts wrong, %d bytes written beyond", wrong, beyond);
    }
    free(key);
}

static void check_against_reference(struct world *w, const float *q, const float *o, double tolerance)
{
    double *key = need((size_t)(PAGES * DSV2I_PAGE_TOKENS) * (size_t)w->width, sizeof *key);
    double *want = need((size_t)w->o_dim, sizeof *want), *qd;

    close_to(name, q, w->want_q, (size_t)(w->n * w->q_dim), 2e-6);
    for (int i = 0; i < w->n_seqs; i++) {
        int rows[4] = { 0, w->length[i] / 3, 64, w->length[i] - 1 };

        for (int t = 0; t < w->length[i]; t++)
            ref_kv_read(key + t * w->width, record(w, i, t, LAYER), w->kv_type, w->s.kv_lora_rank, w->s.qk_rope_head_dim);
        for (int r = i > 0 && w->o_dim > 4096 ? 3 : 0; r < 4; r++) { /* in double the wide ones take long */
            int row = w->base[i] + rows[r];

            if (rows[r] >= w->length[i])
                continue;
            qd = doubles(q + (size_t)row * (size_t)w->q_dim, (size_t)w->q_dim);
            ref_attend(want, qd, key, rows[r] + 1, &w->mla.kv_b, &w->s);
            close_to(name, o + (size_t)row * (size_t)w->o_dim, want, (size_t)w->o_dim, tolerance);
            free(qd);
        }
    }
    free(key);
    free(want);
}

static void check_world(const struct dsv2i_shape *s, int n_seqs, const int *length, int form, int kv_type, int format, int n_cuts)
{
    struct world w = { .s = *s, .n_seqs = n_seqs, .form = form, .kv_type = kv_type };
    int heads = s->num_attention_heads, head = s->qk_nope_head_dim + s->qk_rope_head_dim, rank = s->kv_lora_rank;
    float *q, *o, *first_o = NULL, *norm = normals((size_t)rank, 1);
    double *norm_d = doubles(norm, (size_t)rank), *kva_d;
    int before = n_failed;

    w.width = rank + s->qk_rope_head_dim;
    w.q_dim = heads * head;
    w.o_dim = heads * s->v_head_dim;
    for (int i = 0; i < n_seqs; i++) {
        w.length[i] = length[i];
        w.base[i] = w.n;
        w.n += length[i];
    }
    for (int i = 0; i < s->qk_rope_head_dim / 2; i++)
        w.inv_freq[i] = pow(10000, -2.0 * i / s->qk_rope_head_dim);
    w.s.inv_freq = w.inv_freq;
    w.s.num_hidden_layers = LAYERS;
    w.mla.kv_a_norm = norm;
    w.mla.kv_b = make_weight(format, heads * (s->qk_nope_head_dim + s->v_head_dim), rank, 1.7f / sqrtf((float)rank));
    w.q = normals((size_t)(w.n * w.q_dim), 2);
    w.kva = normals((size_t)(w.n * w.width), 2);
    for (int i = 0; i < n_seqs; i++)
        for (int p = 0; p < PAGES; p++)
            w.page[i][p] = need(page_bytes(&w), 1);

    w.want_q = doubles(w.q, (size_t)(w.n * w.q_dim));
    w.want_key = need((size_t)(w.n * w.width), sizeof *w.want_key);
    kva_d = doubles(w.kva, (size_t)(w.n * w.width));
    for (int i = 0; i < n_seqs; i++)
        for (int t = 0; t < length[i]; t++) {
            double *key = w.want_key + (w.base[i] + t) * w.width;

            for (int h = 0; h < heads; h++)
                ref_rope(w.want_q + (w.base[i] + t) * w.q_dim + h * head + s->qk_nope_head_dim, s->qk_rope_head_dim, t, w.inv_freq,
                         (double)s->rope_multiplier);
            memcpy(key, kva_d + (w.base[i] + t) * w.width, (size_t)w.width * sizeof *key);
            ref_rms_norm(key, key, norm_d, rank, 1e-6);
            ref_rope(key + rank, s->qk_rope_head_dim, t, w.inv_freq, (double)s->rope_multiplier);
        }

    q = need((size_t)(w.n * w.q_dim), sizeof *q);
    o = need((size_t)(w.n * w.o_dim), sizeof *o);
    first_o = need((size_t)(w.n * w.o_dim), sizeof *o);
    for (int i = 0; i < n_variants; i++)
        for (int cut = 0; cut < n_cuts; cut++) {
            snprintf(name, sizeof name, "attention, %d heads, rank %d, %s, KV %s, %s first, %s, cut %d", heads, rank,
                     format_name[format], kv_name[kv_type], form == DSV2I_ABSORBED ? "absorbed" : "expanded",
                     variant_name(&variants[i]), cut);
            run_cut(&w, variants[i].be, cut, q, o);
            if (variants[i].first && cut == 0) {
                check_pages(&w);
                check_against_reference(&w, q, o, 1e-5);
                memcpy(first_o, o, (size_t)(w.n * w.o_dim) * sizeof *o);
            }
            same_bits(name, o, first_o, (size_t)(w.n * w.o_dim));
        }
    printf("%d heads, rank %d, %s weights, %s pages, %s first: %s\n", heads, rank, format_name[format], kv_name[kv_type],
           form == DSV2I_ABSORBED ? "absorbed" : "expanded", n_failed == before ? "ok" : "FAILED");
    for (int i = 0; i < n_seqs; i++)
        for (int p = 0; p < PAGES; p++)
            free(w.page[i][p]);
    free_weight(&w.mla.kv_b);
    free(w.q);
    free(w.kva);
    free(w.want_q);
    free(w.want_key);
    free(kva_d);
    free(norm);
    free(norm_d);
    free(q);
    free(o);
    free(first_o);
}

/* Rotation at far positions, against double. */
static void check_far_positions(void)
{
    static double freq[32];
    struct dsv2i_shape s = { 1, 1, 1, 1, 0, 3, 0, 64, 1, 1, 0, 0, 0, 0, 0.1f, 1.25f, freq };
    float norm[3] = { 1, 1, 1 }, *kva = normals(67, 1), *q = normals(64, 1);
    struct dsv2i_mla mla = { norm, { 0 } };
    void *pages[163840 / DSV2I_PAGE_TOKENS];
    int32_t zero = 0, pos;
    const struct dsv2i_seq seq = { pages, DSV2I_ABSORBED, DSV2I_KV_F32 };
    const struct dsv2i_batch batch = { .n_rows = 1, .n_seqs = 1, .token = &zero, .pos = &pos, .seq = &zero, .seqs = &seq };

    for (int i = 0; i < 32; i++)
        freq[i] = pow(10000, -i / 32.0);
    for (int i = 0; i < n_variants; i++)
        for (pos = 1; pos < 163840; pos += 54613) {
            float *page = need((size_t)DSV2I_PAGE_TOKENS * 67, sizeof *page), *rotated = normals(64, 0);
            double *want = doubles(q, 64), *want_key = doubles(kva + 3, 64);

            pages[pos / DSV2I_PAGE_TOKENS] = page;
            memcpy(rotated, q, 64 * sizeof *q);
            ref_rope(want, 64, pos, freq, 1.25);
            ref_rope(want_key, 64, pos, freq, 1.25);
            variants[i].be->op->reserve(variants[i].be, &s, 1);
            variants[i].be->op->begin(variants[i].be, &s, &batch);
            variants[i].be->op->mla_prepare(variants[i].be, rotated, kva, &mla, 0);
            variants[i].be->op->finish(variants[i].be);
            close_to("far positions", rotated, want, 64, 1e-6);
            close_to("far positions, key", page + (pos % DSV2I_PAGE_TOKENS) * 67 + 3, want_key, 64, 1e-6);
            free(page);
            free(rotated);
            free(want);
            free(want_key);
        }
    free(kva);
    free(q);
}

/* A NaN of any payload is one in every page, too (in bf16 rounding must not carry it over to -0), and reaches the result. */
static void check_nan_key(void)
{
    static const double freq[1];
    const struct dsv2i_shape s = { 1, 1, 1, 1, 0, 2, 1, 2, 1, 1, 0, 0, 0, 0, 1, 1, freq };
    const uint32_t payload = 0x7FFFFFFF;
    float norm[2] = { 1, 1 }, kva[4] = { 1, 2, 3, 4 }, up[4] = { 1, 1, 1, 1 };
    const struct dsv2i_mla mla = { norm, { .dtype = DSV2I_F32, .rows = 2, .cols = 2, .data = up } };
    uint8_t page[DSV2I_PAGE_TOKENS * 32];
    void *pages[1] = { page };
    int32_t zero = 0;

    memcpy(&kva[2], &payload, sizeof payload);
    for (int kv_type = 0; kv_type < DSV2I_KV_TYPES; kv_type++)
        for (int i = 0; i < n_variants; i++) {
            struct dsv2i_backend *be = variants[i].be;
            const struct dsv2i_seq seq = { pages, DSV2I_ABSORBED, kv_type };
            const struct dsv2i_batch batch = { .n_rows = 1, .n_seqs = 1, .token = &zero, .pos = &zero, .seq = &zero, .seqs = &seq };
            float q[3] = { 1, 1, 1 }, o[1] = { 0 };
            double kv[4];

            memset(page, 0, sizeof page);
            snprintf(name, sizeof name, "NaN key, %s pages, %s", kv_name[kv_type], variant_name(&variants[i]));
            expect(be->op->reserve(be, &s, 1) == 0, name, "no scratch");
            be->op->begin(be, &s, &batch);
            be->op->mla_prepare(be, q, kva, &mla, 0);
            be->op->mla_attend(be, o, q, &mla, 0);
            be->op->finish(be);
            ref_kv_read(kv, page, kv_type, 2, 2);
            expect(isnan(kv[2]) && isnan(kv[3]) && !isnan(kv[0]) && !isnan(kv[1]), name, "page has %g %g %g %g", kv[0], kv[1], kv[2], kv[3]);
            expect(isnan(o[0]), name, "result %g", (double)o[0]);
        }
}

void check_attention(void)
{
    /* hidden, vocabulary, layers, heads, q_lora, rank, nope, rope, v, FFN widths, experts, scale, multiplier */
    static const struct dsv2i_shape tiny = { 1, 1, 1, 2, 0, 5, 6, 4, 3, 1, 0, 0, 0, 0, 0.5f, 1.1f, NULL };
    static const struct dsv2i_shape odd = { 1, 1, 1, 11, 0, 37, 20, 6, 19, 1, 0, 0, 0, 0, 0.2f, 1, NULL };
    static const struct dsv2i_shape even = { 1, 1, 1, 5, 0, 96, 16, 8, 24, 1, 0, 0, 0, 0, 0.2f, 1, NULL };
    static const struct dsv2i_shape lite = { 1, 1, 1, 16, 0, 512, 128, 64, 128, 1, 0, 0, 0, 0, 0.1147213868f, 1, NULL };
    static const struct dsv2i_shape v2 = { 1, 1, 1, 128, 0, 512, 128, 64, 128, 1, 0, 0, 0, 0, 0.1147213868f, 1, NULL };

    for (int form = 0; form < 2; form++)
        for (int kv = 0; kv < DSV2I_KV_TYPES; kv++) {
            check_world(&tiny, 3, (const int[]){ 200, 3, 65 }, form, kv, DSV2I_F32, 4);
            check_world(&odd, 3, (const int[]){ 5, 130, 64 }, form, kv, DSV2I_F16, 4);
            /* Types of a byte differ in kv_read only; under a sanitizer wide worlds take too long to try all. */
            if (SANITIZED ? kv == DSV2I_KV_6BIT : kv < DSV2I_KV_F8_E4M3 || kv == DSV2I_KV_6BIT || kv % 2 == form)
                check_world(&lite, 3, (const int[]){ 70, 1, 40 }, form, kv, DSV2I_BF16, 4);
        }
    for (int kv = 0; kv < DSV2I_KV_TYPES; kv++)
        check_world(&even, 3, (const int[]){ 64, 129, 2 }, kv % 2, kv, DSV2I_F32, 4);
    for (int form = 0; form < 2; form++)
        for (int format = DSV2I_F8_E4M3; format < FORMATS; format++) {
            check_world(&odd, 3, (const int[]){ 5, 70, 64 }, form, DSV2I_KV_BF16, format, 4);
            check_world(&even, 3, (const int[]){ 3, 66, 2 }, form, DSV2I_KV_F32, format, 4);
            if (!SANITIZED)
                check_world(&lite, 2, (const int[]){ 20, 66 }, form, DSV2I_KV_F32, format, 2);
        }
    check_world(&v2, 2, (const int[]){ 9, 6 }, DSV2I_ABSORBED, DSV2I_KV_BF16, DSV2I_BF16, 3);
    check_far_positions();
    check_nan_key();
}
