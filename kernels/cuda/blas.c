/* Products by cuBLASLt.  Its matrices are column-major: there w^T is (n, k), x^T (k, m) and y^T = w x^T (n, m), so w is its A, transposed,
 * and x its B.
 *
 * SPDX-License-Identifier: MIT */
#include "blas.h"

#include <cublasLt.h>

#include <string.h>

#define BUCKETS 64
#define ALIGNMENT 16 /* bytes, of every operand */

struct plan {
    struct dsv2i_cuda_product product;
    struct plan *next;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algo;
    int32_t refused; /* the library has nothing for it */
};

struct dsv2i_cuda_blas {
    struct dsv2i_hooks hooks;
    int32_t sm;
    cublasLtHandle_t handle;
    cublasLtMatmulPreference_t preference;
    void *workspace;
    uint64_t workspace_bytes;
    struct plan *plans[BUCKETS];
};

static const struct dsv2i_cuda_result fine = {NULL, 0}, refusal = {"cublasLtMatmulAlgoGetHeuristic", CUBLAS_STATUS_NOT_SUPPORTED};

#define TRY(call, ...) \
    do { \
        int code_ = (int)call(__VA_ARGS__); \
        if (code_) \
            return (struct dsv2i_cuda_result){#call, code_}; \
    } while (0)

/* ---- products ------------------------------------------------------------------------------------------------------------------ */

/* The same, with what 0 stands for. */
static struct dsv2i_cuda_product complete(const struct dsv2i_cuda_product *given)
{
    struct dsv2i_cuda_product p = *given;

    p.batch = p.batch ? p.batch : 1;
    p.columns = p.columns != 0;
    p.ldx = p.ldx ? p.ldx : p.k;
    p.ldw = p.ldw ? p.ldw : p.columns ? p.n : p.k;
    p.ldy = p.ldy ? p.ldy : p.n;
    return p;
}

static int takes_fp8(int32_t sm, const struct dsv2i_cuda_product *p)
{
    const int64_t y_size = (int64_t)dsv2i_dtype_size(p->y_dtype);

    if (sm < 89 || p->columns || p->batch != 1 || p->k % 16 || p->ldx % 16 || p->ldw % 16 || p->n * y_size % 16 || p->ldy * y_size % 16)
        return 0;
    switch (p->scaling) {
    case DSV2I_CUDA_SCALE_ALL: return 1;
    case DSV2I_CUDA_SCALE_ROWS: return sm == 90;
    case DSV2I_CUDA_SCALE_BLOCKS: return sm == 90 && p->m % 4 == 0 && p->n % 4 == 0;
    default: return 0;
    }
}

int dsv2i_cuda_blas_takes(int32_t sm, const struct dsv2i_cuda_product *product)
{
    const struct dsv2i_cuda_product p = complete(product);

    if (p.m < 1 || p.n < 1 || p.k < 1 || p.batch < 1 || p.ldx < p.k || p.ldw < (p.columns ? p.n : p.k) || p.ldy < p.n || sm < 80)
        return 0;
    if (p.y_dtype != DSV2I_F32 && (p.y_dtype != DSV2I_BF16 || (p.dtype != DSV2I_BF16 && p.dtype != DSV2I_F8_E4M3)))
        return 0;
    switch (p.dtype) {
    case DSV2I_F32:
    case DSV2I_BF16:
    case DSV2I_F16: return !p.scaling && (p.batch == 1 || p.y_stride);
    case DSV2I_F8_E4M3: return takes_fp8(sm, &p);
    default: return 0;
    }
}

int32_t dsv2i_cuda_blas_rows(int32_t rows)
{
    int32_t step = 4;

    while (step * 16 < rows) /* eighths of a power of two */
        step *= 2;
    return (rows + step - 1) / step * step;
}

/* ---- plans --------------------------------------------------------------------------------------------------------------------- */

static cudaDataType type_of(int32_t dtype)
{
    return dtype == DSV2I_F32 ? CUDA_R_32F : dtype == DSV2I_BF16 ? CUDA_R_16BF : dtype == DSV2I_F16 ? CUDA_R_16F : CUDA_R_8F_E4M3;
}

static struct dsv2i_cuda_result set_scales(cublasLtMatmulDesc_t operation, const void *w_scale, const void *x_scale)
{
    TRY(cublasLtMatmulDescSetAttribute, operation, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &w_scale, sizeof w_scale);
    TRY(cublasLtMatmulDescSetAttribute, operation, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x_scale, sizeof x_scale);
    return fine;
}

static struct dsv2i_cuda_result make_operation(struct plan *plan, void *any)
{
    static const int32_t w_modes[] = {0, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F,
                                      CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F};
    static const int32_t x_modes[] = {0, CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F,
                                      CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F};
    const int32_t scaling = plan->product.scaling, transposed = plan->product.columns ? CUBLAS_OP_N : CUBLAS_OP_T;

    TRY(cublasLtMatmulDescCreate, &plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    TRY(cublasLtMatmulDescSetAttribute, plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    if (!scaling)
        return fine;
    TRY(cublasLtMatmulDescSetAttribute, plan->operation, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &w_modes[scaling], sizeof w_modes[scaling]);
    TRY(cublasLtMatmulDescSetAttribute, plan->operation, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &x_modes[scaling], sizeof x_modes[scaling]);
    return set_scales(plan->operation, any, any); /* the heuristics want to see some */
}

static struct dsv2i_cuda_result make_layout(cublasLtMatrixLayout_t *layout, int32_t dtype, int32_t rows, int32_t cols, int64_t ld,
                                            int32_t batch, int64_t stride)
{
    TRY(cublasLtMatrixLayoutCreate, layout, type_of(dtype), (uint64_t)rows, (uint64_t)cols, ld);
    if (batch > 1) {
        TRY(cublasLtMatrixLayoutSetAttribute, *layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch);
        TRY(cublasLtMatrixLayoutSetAttribute, *layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride);
    }
    return fine;
}

static struct dsv2i_cuda_result make_plan(struct dsv2i_cuda_blas *blas, struct plan *plan)
{
    const struct dsv2i_cuda_product *p = &plan->product;
    cublasLtMatmulHeuristicResult_t best;
    struct dsv2i_cuda_result r;
    int found = 0;

    r = make_operation(plan, blas->workspace);
    if (!r.call)
        r = make_layout(&plan->w, p->dtype, p->columns ? p->n : p->k, p->columns ? p->k : p->n, p->ldw, p->batch, p->w_stride);
    if (!r.call)
        r = make_layout(&plan->x, p->dtype, p->k, p->m, p->ldx, p->batch, p->x_stride);
    if (!r.call)
        r = make_layout(&plan->y, p->y_dtype, p->n, p->m, p->ldy, p->batch, p->y_stride);
    if (r.call)
        return r;
    TRY(cublasLtMatmulAlgoGetHeuristic, blas->handle, plan->operation, plan->w, plan->x, plan->y, plan->y, blas->preference, 1, &best,
        &found);
    if (!found || best.state)
        return found ? (struct dsv2i_cuda_result){refusal.call, (int)best.state} : refusal;
    plan->algo = best.algo;
    return fine;
}

static void release_plan(struct dsv2i_cuda_blas *blas, struct plan *plan)
{
    if (plan->operation)
        cublasLtMatmulDescDestroy(plan->operation);
    if (plan->w)
        cublasLtMatrixLayoutDestroy(plan->w);
    if (plan->x)
        cublasLtMatrixLayoutDestroy(plan->x);
    if (plan->y)
        cublasLtMatrixLayoutDestroy(plan->y);
    blas->hooks.free(blas->hooks.user, plan, sizeof *plan);
}

static struct plan **bucket_of(struct dsv2i_cuda_blas *blas, const struct dsv2i_cuda_product *p)
{
    const unsigned char *at = (const unsigned char *)p;
    uint32_t hash = 2166136261u; /* FNV-1a */

    for (size_t i = 0; i < sizeof *p; i++)
        hash = (hash ^ at[i]) * 16777619u;
    return &blas->plans[(hash ^ hash >> 16) % BUCKETS];
}

_Static_assert(sizeof(struct dsv2i_cuda_product) == 8 * sizeof(int32_t) + 6 * sizeof(int64_t), "compared byte by byte: no padding");

static struct dsv2i_cuda_result find_plan(struct dsv2i_cuda_blas *blas, const struct dsv2i_cuda_product *given, struct plan **out)
{
    const struct dsv2i_cuda_product p = complete(given);
    struct plan **bucket = bucket_of(blas, &p), *plan;
    struct dsv2i_cuda_result r;

    for (plan = *bucket; plan; plan = plan->next)
        if (!memcmp(&plan->product, &p, sizeof p)) {
            *out = plan;
            return plan->refused ? refusal : fine;
        }
    if (!dsv2i_cuda_blas_takes(blas->sm, &p))
        return (struct dsv2i_cuda_result){"dsv2i_cuda_blas_takes", CUBLAS_STATUS_NOT_SUPPORTED};
    plan = blas->hooks.alloc(blas->hooks.user, sizeof *plan, _Alignof(struct plan));
    if (!plan)
        return (struct dsv2i_cuda_result){"dsv2i_cuda_blas_prepare", CUBLAS_STATUS_ALLOC_FAILED};
    memset(plan, 0, sizeof *plan);
    plan->product = p;
    r = make_plan(blas, plan);
    if (r.call && r.code != CUBLAS_STATUS_NOT_SUPPORTED) {
        release_plan(blas, plan);
        return r;
    }
    plan->refused = r.call != NULL;
    plan->next = *bucket;
    *out = *bucket = plan;
    return r;
}

int dsv2i_cuda_blas_has(struct dsv2i_cuda_blas *blas, const struct dsv2i_cuda_product *product)
{
    struct plan *plan;

    return find_plan(blas, product, &plan).code != CUBLAS_STATUS_NOT_SUPPORTED;
}

struct dsv2i_cuda_result dsv2i_cuda_blas_prepare(struct dsv2i_cuda_blas *blas, const struct dsv2i_cuda_product *product)
{
    struct plan *plan;

    return find_plan(blas, product, &plan);
}

struct dsv2i_cuda_result dsv2i_cuda_blas_run(struct dsv2i_cuda_blas *blas, const struct dsv2i_cuda_product *product, cudaStream_t stream,
                                             void *y, const void *x, const void *w, const float *x_scale, const float *w_scale,
                                             int32_t accumulate)
{
    const float one = 1, beta = accumulate ? 1 : 0;
    struct plan *plan;
    struct dsv2i_cuda_result r = find_plan(blas, product, &plan);

    if (!r.call && plan->product.scaling)
        r = set_scales(plan->operation, w_scale, x_scale);
    if (r.call)
        return r;
    TRY(cublasLtMatmul, blas->handle, plan->operation, &one, w, plan->w, x, plan->x, &beta, y, plan->y, y, plan->y, &plan->algo,
        blas->workspace, (size_t)blas->workspace_bytes, stream);
    return fine;
}

/* ---- contexts ------------------------------------------------------------------------------------------------------------------ */

static struct dsv2i_cuda_result fill(struct dsv2i_cuda_blas *blas)
{
    const uint32_t alignment = ALIGNMENT;

    TRY(cudaMalloc, &blas->workspace, (size_t)blas->workspace_bytes);
    TRY(cublasLtCreate, &blas->handle);
    TRY(cublasLtMatmulPreferenceCreate, &blas->preference);
    TRY(cublasLtMatmulPreferenceSetAttribute, blas->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &blas->workspace_bytes,
        sizeof blas->workspace_bytes);
    TRY(cublasLtMatmulPreferenceSetAttribute, blas->preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &alignment, sizeof alignment);
    TRY(cublasLtMatmulPreferenceSetAttribute, blas->preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &alignment, sizeof alignment);
    TRY(cublasLtMatmulPreferenceSetAttribute, blas->preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &alignment, sizeof alignment);
    TRY(cublasLtMatmulPreferenceSetAttribute, blas->preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &alignment, sizeof alignment);
    return fine;
}

size_t dsv2i_cuda_blas_workspace(int32_t sm)
{
    return (size_t)(sm >= 120 ? 12 : sm >= 90 ? 32 : 4) << 20; /* as the library's manual has it */
}

struct dsv2i_cuda_result dsv2i_cuda_blas_open(const struct dsv2i_hooks *hooks, int32_t sm, struct dsv2i_cuda_blas **out)
{
    struct dsv2i_cuda_blas *blas = hooks->alloc(hooks->user, sizeof *blas, _Alignof(struct dsv2i_cuda_blas));
    struct dsv2i_cuda_result r;

    *out = NULL;
    if (!blas)
        return (struct dsv2i_cuda_result){"dsv2i_cuda_blas_open", CUBLAS_STATUS_ALLOC_FAILED};
    memset(blas, 0, sizeof *blas);
    blas->hooks = *hooks;
    blas->sm = sm;
    blas->workspace_bytes = dsv2i_cuda_blas_workspace(sm);
    r = fill(blas);
    if (r.call) {
        dsv2i_cuda_blas_close(blas);
        return r;
    }
    *out = blas;
    return fine;
}

void dsv2i_cuda_blas_close(struct dsv2i_cuda_blas *blas)
{
    if (!blas)
        return;
    for (int i = 0; i < BUCKETS; i++)
        while (blas->plans[i]) {
            struct plan *plan = blas->plans[i];

            blas->plans[i] = plan->next;
            release_plan(blas, plan);
        }
    if (blas->preference)
        cublasLtMatmulPreferenceDestroy(blas->preference);
    if (blas->handle)
        cublasLtDestroy(blas->handle);
    cudaFree(blas->workspace);
    blas->hooks.free(blas->hooks.user, blas, sizeof *blas);
}
