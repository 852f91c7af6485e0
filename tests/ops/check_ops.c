/* Every operation of the CPU backend, at every instruction set of this machine and with 1, 2, 3 threads, on shapes of
 * the real models, against the same in double; and its promise of equal bits for any threads, any cut of the rows,
 * any company.
 * --bench prints times instead.
 *
 * SPDX-License-Identifier: MIT */
#include <errno.h>
#include <math.h>
#include <time.h>

#include "harness.h"

static char name[160];

static const double zero_freq[1];
static const struct dsv2i_shape plain = {
    .hidden_size = 1, .vocab_size = 1, .num_hidden_layers = 1, .num_attention_heads = 1, .kv_lora_rank = 1,
    .qk_nope_head_dim = 1, .qk_rope_head_dim = 2, .v_head_dim = 1, .intermediate_size = 1, .inv_freq = zero_freq,
};

struct linear_arg {
    const float *x;
    const struct dsv2i_weight *w;
    int accumulate;
};

static void run_linear(struct dsv2i_backend *be, const void *arg, float *y, int row, int n)
{
    const struct linear_arg *a = arg;

    be->op->linear(be, y, a->x + (size_t)row * (size_t)a->w->cols, a->w, n, a->accumulate);
}

static void check_linear(int dtype, int n, int rows, int cols, int accumulate)
{
    struct dsv2i_weight w = make_weight(dtype, rows, cols, 1);
    float *x = normals((size_t)n * (size_t)cols, 1), *start = normals((size_t)n * (size_t)rows, 1);
    double *xd = doubles(x, (size_t)n * (size_t)cols), *want = need((size_t)n * (size_t)rows, sizeof *want);
    struct linear_arg arg = { x, &w, accumulate };
    struct dsv2i_shape shape = plain;
    struct rows_case c = { name, &shape, n, rows, want, 5e-6, accumulate ? start : NULL, NULL, run_linear, &arg };

    shape.hidden_size = cols;
    for (int i = 0; i < n; i++)
        ref_linear(want + (size_t)i * (size_t)rows, xd + (size_t)i * (size_t)cols, &w);
    for (int i = 0; accumulate && i < n * rows; i++)
        want[i] += (double)start[i];
    snprintf(name, sizeof name, "linear %s %d x (%d, %d)%s", format_name[dtype], n, rows, cols, accumulate ? " +=" : "");
    check_rows(&c);
    free_weight(&w);
    free(x);
    free(start);
    free(xd);
    free(want);
}

static void run_embed(struct dsv2i_backend *be, const void *arg, float *y, int row, int n)
{
    be->op->embed(be, y, arg);
}

static void check_embed(int dtype)
{
    enum { N = 9, VOCAB = 300, DIM = 2051 };
    struct dsv2i_weight w = make_weight(dtype, VOCAB, DIM, 1);
    static int32_t token[N];
    static double want[N * DIM];
    struct rows_case c = { name, &plain, N, DIM, want, 0, NULL, token, run_embed, &w };

    for (int i = 0; i < N; i++) {
        token[i] = i == 0 ? 0 : i == 1 ? VOCAB - 1 : below(VOCAB);
        for (int k = 0; k < DIM; k++)
            want[i * DIM + k] = ref_value(&w, (size_t)(token[i] * DIM + k));
    }
    snprintf(name, sizeof name, "embed %s", format_name[dtype]);
    check_rows(&c);
    free_weight(&w);
}

struct norm_arg {
    const float *x, *w;
    int dim, ldx;
};

static void run_norm(struct dsv2i_backend *be, const void *arg, float *y, int row, int n)
{
    const struct norm_arg *a = arg;

    be->op->rms_norm(be, y, a->dim, a->x + (size_t)row * (size_t)a->ldx, a->ldx, a->w, n, a->dim, 1e-6f);
}

static void check_norm(int n, int dim, int extra, float scale)
{
    int ldx = dim + extra;
    float *x = normals((size_t)n * (size_t)ldx, scale), *w = normals((size_t)dim, 1);
    double *xd = doubles(x, (size_t)n * (size_t)ldx), *wd = doubles(w, (size_t)dim);
    double *want = need((size_t)n * (size_t)dim, sizeof *want);
    struct norm_arg arg = { x, w, dim, ldx };
    struct rows_case c = { name, &plain, n, dim, want, 1e-6, NULL, NULL, run_norm, &arg };

    for (int i = 0; i < n; i++)
        ref_rms_norm(want + (size_t)i * (size_t)dim, xd + (size_t)i * (size_t)ldx, wd, dim, 1e-6);
    snprintf(name, sizeof name, "rms_norm %d x %d, scale %g", n, dim, (double)scale);
    check_rows(&c);
    free(x);
    free(w);
    free(xd);
    free(wd);
    free(want);
}

struct ffn_arg {
    const float *x;
    const struct dsv2i_ffn *w;
    const int32_t *idx;
    const float *weight;
    int top_k;
};

static struct dsv2i_ffn make_ffn(int dtype, int hidden, int inter)
{
    float scale = 2 / sqrtf((float)hidden);

    return (struct dsv2i_ffn){ .gate = make_weight(dtype, inter, hidden, scale), .up = make_weight(dtype, inter, hidden, scale),
                               .down = make_weight(dtype, hidden, inter, scale) };
}

static void free_ffn(struct dsv2i_ffn *w)
{
    free_weight(&w->gate);
    free_weight(&w->up);
    free_weight(&w->down);
}

static void run_ffn(struct dsv2i_backend *be, const void *arg, float *y, int row, int n)
{
    const struct ffn_arg *a = arg;

    be->op->ffn(be, y, a->x + (size_t)row * (size_t)a->w->gate.cols, a->w, n);
}

static void check_ffn(int dtype, int n, int hidden, int inter)
{
    struct dsv2i_shape shape = plain;
    struct dsv2i_ffn w = make_ffn(dtype, hidden, inter);
    size_t total = (size_t)n * (size_t)hidden;
    float *x = normals(total, 3), *start = normals(total, 1);
    double *xd = doubles(x, total), *want = need(total, sizeof *want);
    struct ffn_arg arg = { x, &w, NULL, NULL, 0 };
    struct rows_case c = { name, &shape, n, hidden, want, 1e-5, start, NULL, run_ffn, &arg };

    shape.hidden_size = hidden;
    shape.intermediate_size = inter;
    for (int i = 0; i < n; i++)
        ref_ffn(want + (size_t)i * (size_t)hidden, xd + (size_t)i * (size_t)hidden, &w);
    for (size_t i = 0; i < total; i++)
        want[i] += (double)start[i];
    snprintf(name, sizeof name, "ffn %s %d x %d, %d wide", format_name[dtype], n, hidden, inter);
    check_rows(&c);
    free_ffn(&w);
    free(x);
    free(start);
    free(xd);
    free(want);
}

static void run_experts(struct dsv2i_backend *be, const void *arg, float *y, int row, int n)
{
    const struct ffn_arg *a = arg;

    be->op->moe_experts(be, y, a->x + (size_t)row * (size_t)a->w->gate.cols, a->w, a->idx + row * a->top_k,
                        a->weight + row * a->top_k, n, a->top_k);
}

static void check_experts(int dtype, int n, int hidden, int inter, int n_experts, int top_k)
{
    struct dsv2i_shape shape = plain;
    struct dsv2i_ffn *experts = need((size_t)n_experts, sizeof *experts);
    size_t total = (size_t)n * (size_t)hidden;
    float *x = normals(total, 3), *start = normals(total, 1), *weight = normals((size_t)(n * top_k), 1);
    double *xd = doubles(x, total), *want = doubles(start, total), *out = need((size_t)hidden, sizeof *out);
    int32_t *idx = need((size_t)(n * top_k), sizeof *idx);
    struct ffn_arg arg = { x, experts, idx, weight, top_k };
    struct rows_case c = { name, &shape, n, hidden, want, 1e-5, start, NULL, run_experts, &arg };

    shape.hidden_size = hidden;
    shape.moe_intermediate_size = inter;
    shape.n_routed_experts = n_experts;
    shape.num_experts_per_tok = top_k;
    for (int e = 0; e < n_experts; e++)
        experts[e] = make_ffn(dtype, hidden, inter);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < top_k; j++) {
            int e = (i % 3 ? below(n_experts) : 0) + j; /* many rows share experts 0.. */

            idx[i * top_k + j] = e % n_experts;
            ref_ffn(out, xd + (size_t)i * (size_t)hidden, &experts[e % n_experts]);
            for (int k = 0; k < hidden; k++)
                want[(size_t)i * (size_t)hidden + (size_t)k] += (double)weight[i * top_k + j] * out[k];
        }
    snprintf(name, sizeof name, "moe_experts %s %d x %d, %d wide, %d of %d", format_name[dtype], n, hidden, inter, top_k,
             n_experts);
    check_rows(&c);
    for (int e = 0; e < n_experts; e++)
        free_ffn(&experts[e]);
    free(experts);
    free(x);
    free(start);
    free(weight);
    free(xd);
    free(want);
    free(out);
    free(idx);
}

struct score_arg {
    const float *x;
    const struct dsv2i_weight *head;
    const int32_t *target;
    int ranks; /* which half of the result: they differ too much in size for one tolerance */
};

static void run_score(struct dsv2i_backend *be, const void *arg, float *y, int row, int n)
{
    const struct score_arg *a = arg;
    struct dsv2i_score *out = need((size_t)n, sizeof *out);

    be->op->score(be, out, a->x + (size_t)row * (size_t)a->head->cols, a->head, a->target + row, n);
    for (int i = 0; i < n; i++, y += 2) {
        y[0] = a->ranks ? (float)out[i].rank : out[i].logprob;
        y[1] = a->ranks ? (float)out[i].top_token : out[i].top_logprob;
    }
    free(out);
}

/* tie: a row of the head stands twice, so that its logits are equal. */
static void check_score(int dtype, int n, int vocab, int hidden, int tie)
{
    struct dsv2i_shape shape = plain;
    struct dsv2i_weight head = make_weight(dtype, vocab, hidden, 1);
    float *x = normals((size_t)n * (size_t)hidden, 1);
    double *xd = doubles(x, (size_t)n * (size_t)hidden), *want = need((size_t)n * 4, sizeof *want);
    double *ranks = want + 2 * n, *logits = need((size_t)vocab, sizeof *logits), *p = need((size_t)vocab, sizeof *p);
    int32_t *target = need((size_t)n, sizeof *target);
    struct score_arg arg = { x, &head, target, 0 };
    struct rows_case c = { name, &shape, n, 2, want, 1e-5, NULL, NULL, run_score, &arg };

    shape.vocab_size = vocab;
    shape.hidden_size = hidden;
    if (tie)
        memcpy((char *)(uintptr_t)head.data + dsv2i_dtype_size(head.dtype) * (size_t)(vocab - 2) * (size_t)hidden,
               head.data, dsv2i_dtype_size(head.dtype) * (size_t)hidden);
    for (int i = 0; i < n; i++) {
        int top = 0, rank = 1;

        if (tie) /* along the doubled row: it has the greatest logit */
            for (int k = 0; k < hidden; k++)
                xd[i * hidden + k] = (double)(x[i * hidden + k] = (float)ref_value(&head, (size_t)k));
        ref_linear(logits, xd + (size_t)i * (size_t)hidden, &head);
        target[i] = tie ? vocab - 2 : i % 5 == 0 ? vocab - 1 : below(vocab);
        ref_softmax(p, logits, vocab);
        for (int j = 0; j < vocab; j++) {
            top = logits[j] > logits[top] ? j : top;
            rank += logits[j] > logits[target[i]];
        }
        want[i * 2] = log(p[target[i]]);
        want[i * 2 + 1] = log(p[top]);
        ranks[i * 2] = rank;
        ranks[i * 2 + 1] = top;
        if (tie)
            expect(top == 0 && rank == 1, "score", "the made tie is none");
    }
    snprintf(name, sizeof name, "score %s %d x %d, vocabulary %d%s", format_name[dtype], n, hidden, vocab, tie ? ", tie" : "");
    check_rows(&c);
    arg.ranks = 1;
    c.want = ranks;
    c.tolerance = 0;
    strcat(name, ", ranks");
    check_rows(&c);
    free_weight(&head);
    free(x);
    free(xd);
    free(want);
    free(logits);
    free(p);
    free(target);
}

/* A NaN among the logits: logprob NaN, the rest in range. */
static void check_score_nan(void)
{
    struct dsv2i_shape shape = plain;
    float head_data[3 * 2] = { 1, 0, NAN, 0, 2, 0 }, x[2] = { 1, 1 };
    struct dsv2i_weight head = { .dtype = DSV2I_F32, .rows = 3, .cols = 2, .data = head_data };
    int32_t zero = 0, target = 0;
    const struct dsv2i_seq seq = { .page = NULL };
    const struct dsv2i_batch batch = { .n_rows = 1, .n_seqs = 1, .token = &zero, .pos = &zero, .seq = &zero, .seqs = &seq };

    shape.vocab_size = 3;
    shape.hidden_size = 2;
    for (int i = 0; i < n_variants; i++) {
        struct dsv2i_backend *be = variants[i].be;
        struct dsv2i_score out;

        be->op->reserve(be, &shape, 1);
        be->op->begin(be, &shape, &batch);
        be->op->score(be, &out, x, &head, &target, 1);
        be->op->finish(be);
        expect(isnan(out.logprob) && out.rank == 2 && out.top_token == 2, "score NaN", "%g %d %d", (double)out.logprob, out.rank,
               out.top_token);
    }
}

/* Hooks that fail the n-th request. */
static int requests_left, live;

static void *failing_alloc(void *user, size_t size, size_t alignment)
{
    if (requests_left-- <= 0)
        return NULL;
    live++;
    return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

static void counting_free(void *user, void *ptr, size_t size)
{
    live--;
    free(ptr);
}

static void check_memory(void)
{
    const struct dsv2i_hooks hooks = { failing_alloc, counting_free, NULL };
    struct dsv2i_backend *be;
    struct dsv2i_shape huge = plain;
    int n = 0;

    for (;; n++) {
        requests_left = n;
        if (dsv2i_cpu_open(&hooks, 0, 2, &be) == 0)
            break;
        expect(be == NULL && live == 0, "memory", "open failing at request %d: %d blocks left", n, live);
    }
    expect(n >= 1, "memory", "open takes no memory");
    requests_left = 0;
    expect(be->op->reserve(be, &plain, 1) == -1, "memory", "reserve without memory");
    expect(be->op->mem_alloc(be, 100) == NULL, "memory", "mem_alloc without memory");
    requests_left = 1;
    expect(be->op->reserve(be, &plain, 4) == 0, "memory", "reserve");
    expect(be->op->reserve(be, &plain, 2) == 0, "memory", "reserve of less took memory");
    huge.num_experts_per_tok = huge.n_routed_experts = huge.moe_intermediate_size = huge.hidden_size = INT32_MAX;
    huge.intermediate_size = huge.kv_lora_rank = huge.v_head_dim = INT32_MAX;
    requests_left = 1;
    expect(be->op->scratch_bytes(be, &huge, INT32_MAX) > SIZE_MAX / 4096, "memory", "huge sizes do not saturate");
    be->op->close(be);
    expect(live == 0, "memory", "%d blocks left", live);
    expect(dsv2i_cpu_open(&hooks, 3, 1, &be) == -2 && be == NULL, "open", "level 3 exists");
}

int main(int argc, char **argv)
{
    clock_t begin = clock();

    open_variants();
    if (argc > 1 && !strcmp(argv[1], "--bench")) {
        bench();
        close_variants();
        return 0;
    }
    check_memory();
    for (int dtype = DSV2I_F32; dtype < FORMATS; dtype++) {
        static const int shape[][3] = { { 1, 576, 2048 }, { 4, 160, 5120 }, { 5, 33, 1536 }, { 70, 49, 1408 }, { 131, 19, 1031 },
                                        { 3, 17, 5 },     { 9, 5, 17 },     { 1, 1, 1 },     { 6, 2, 513 } };

        for (size_t i = 0; i < sizeof shape / sizeof *shape; i++)
            check_linear(dtype, shape[i][0], shape[i][1], shape[i][2], (int)i % 2);
        check_embed(dtype);
        check_ffn(dtype, 6, 2048, 351);
        check_ffn(dtype, 67, 255, 130);
        check_experts(dtype, 1, 512, 176, 64, 6);
        check_experts(dtype, 50, 130, 70, 160, 6);
        check_score(dtype, 11, 9001, 136, 0);
        if (dtype <= DSV2I_F8_E4M3) /* equal codes in other rows may have other scales */
            check_score(dtype, 2, 4099, 64, 1);
    }
    for (int format = F8_ROWS; format < FORMATS; format++) { /* edges of blocks */
        check_linear(format, 5, 257, 576, 0);
        check_linear(format, 2, 128, 128, 0);
        check_linear(format, 3, 129, 127, 1);
    }
    check_experts(DSV2I_BF16, 1400, 19, 9, 16, 6);
    check_experts(DSV2I_BF16, 3, 24, 16, 4, 4);
    check_score(DSV2I_BF16, 300, 130, 24, 0);
    check_score_nan();
    check_norm(3, 5120, 0, 1);
    check_norm(70, 512, 64, 1);
    check_norm(2, 5119, 1, 30);
    check_norm(4, 1536, 0, 1e-3f);
    check_norm(2, 7, 3, 1);
    check_norm(1, 1, 0, 1);
    check_routing();
    check_kv();
    check_attention();
    close_variants();
    printf("%d checks, %d failed, %.1f s of processor time\n", n_checks, n_failed,
           (double)(clock() - begin) / CLOCKS_PER_SEC);
    return n_failed != 0;
}
