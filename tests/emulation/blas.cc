/* cuBLASLt: products of column-major matrices, by its manual (cuBLAS 13, 3.1.4 and cublasLtMatmul).
 *
 * What the library refuses has the status that it would have; what it would leave to chance (memory that is not there, an object that was
 * destroyed) is an error of the machine.  A product is two pieces of work on its stream, where the workspace allows: sums of parts of the
 * inner dimension, which go to the workspace, and their sum.  So a workspace that two streams share shows.  How many parts, and in which
 * order a part is summed, depends on the number of columns, as with the real one: no two shapes give a column the same bits.
 *
 * SPDX-License-Identifier: MIT */
#include "machine.h"

#include <convert.cuh>
#include <cublasLt.h>

#include <algorithm>
#include <initializer_list>

/* What the opaque names stand for. */
struct cublasLtContext {};
struct cublasLtMatmulDescOpaque {
    int32_t compute, scale_type, transa = CUBLAS_OP_N, transb = CUBLAS_OP_N, a_mode = 0, b_mode = 0;
    const void *a_scale = nullptr, *b_scale = nullptr;
    int8_t fast = 0;
};
struct cublasLtMatrixLayoutOpaque {
    int32_t type;
    uint64_t rows, cols;
    int64_t ld;
    int32_t batch = 1;
    int64_t stride = 0;
};
struct cublasLtMatmulPreferenceOpaque {
    uint64_t workspace = 0;
    uint32_t alignment[4] = {256, 256, 256, 256};
};

namespace emu {

typedef std::lock_guard<std::recursive_mutex> Hold;

static std::map<const void *, const char *> objects; /* that live, and what they are */
static long queries;
static bool refuses;

long blas_objects() { return (long)objects.size(); }
long blas_queries() { return queries; }

void forget_blas()
{
    objects.clear();
    queries = 0;
    refuses = false;
}

void refuse_products() { refuses = true; }

/* ---- objects ------------------------------------------------------------------------------------------------------------------- */

template <class T> static cublasStatus_t create(T **to, const char *kind, const T &value)
{
    Hold hold(lock);

    if (!to)
        return CUBLAS_STATUS_INVALID_VALUE;
    *to = nullptr;
    if (lost() || !pass_allocation())
        return CUBLAS_STATUS_ALLOC_FAILED;
    *to = new T(value);
    objects[*to] = kind;
    return CUBLAS_STATUS_SUCCESS;
}

static bool alive(const void *object, const char *kind)
{
    auto found = objects.find(object);

    if (found != objects.end() && found->second == kind)
        return true;
    record(std::string("cuBLASLt: no such ") + kind);
    return false;
}

template <class T> static cublasStatus_t destroy(T *object, const char *kind)
{
    Hold hold(lock);

    if (!alive(object, kind))
        return CUBLAS_STATUS_INVALID_VALUE;
    objects.erase(object);
    delete object;
    return CUBLAS_STATUS_SUCCESS;
}

static const char *const context = "handle", *const operation = "matmul descriptor", *const matrix = "matrix layout",
                         *const preference = "preference";

struct Attribute {
    int id;
    void *at;
    size_t size;
};

static cublasStatus_t set(std::initializer_list<Attribute> known, int id, const void *from, size_t size)
{
    for (const Attribute &a : known)
        if (a.id == id && from && size == a.size) {
            std::memcpy(a.at, from, size);
            return CUBLAS_STATUS_SUCCESS;
        }
    return CUBLAS_STATUS_INVALID_VALUE;
}

/* ---- what is asked ------------------------------------------------------------------------------------------------------------- */

/* Plain numbers only: it is compared byte by byte. */
struct Problem {
    uint64_t m, n, k, batch, transa, transb, compute;
    uint64_t ab, cd, a_mode, b_mode;
    int64_t lda, ldb, ldc, ldd, stride_a, stride_b, stride_c, stride_d;
};

static uint64_t size_of(uint64_t type) { return type == CUDA_R_32F ? 4 : type == CUDA_R_8F_E4M3 ? 1 : 2; }

static const uint64_t scalar = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F, outer = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F,
                      vec128 = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F, blk128 = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;

static cublasStatus_t check_fp8(const Problem &p)
{
    const int sm = machine.major * 10 + machine.minor;
    const bool blocks = p.a_mode == vec128 || p.a_mode == blk128;

    if (sm < 89 || p.compute != CUBLAS_COMPUTE_32F)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (sm != 100 && (!p.transa || p.transb))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (p.k % 16 || p.lda % 16 || p.ldb % 16 || p.m * size_of(p.cd) % 16 || (uint64_t)p.ldc * size_of(p.cd) % 16
        || (uint64_t)p.ldd * size_of(p.cd) % 16)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (p.a_mode == scalar && p.b_mode == scalar)
        return CUBLAS_STATUS_SUCCESS;
    if (sm != 90)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (p.a_mode == outer && p.b_mode == outer)
        return CUBLAS_STATUS_SUCCESS;
    if (!blocks || (p.b_mode != vec128 && p.b_mode != blk128) || (p.a_mode == blk128 && p.b_mode == blk128) || p.m % 4 || p.n % 4)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t understand(Problem *p, cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                 cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d)
{
    if (!alive(handle, context))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    if (!alive(desc, operation) || !alive(a, matrix) || !alive(b, matrix) || !alive(c, matrix) || !alive(d, matrix))
        return CUBLAS_STATUS_INVALID_VALUE;
    *p = Problem{};
    p->transa = desc->transa != CUBLAS_OP_N;
    p->transb = desc->transb != CUBLAS_OP_N;
    p->m = d->rows;
    p->n = d->cols;
    p->k = p->transa ? a->rows : a->cols;
    p->batch = (uint64_t)d->batch;
    p->compute = (uint64_t)desc->compute;
    p->ab = (uint64_t)a->type;
    p->cd = (uint64_t)d->type;
    p->a_mode = (uint64_t)desc->a_mode;
    p->b_mode = (uint64_t)desc->b_mode;
    p->lda = a->ld, p->ldb = b->ld, p->ldc = c->ld, p->ldd = d->ld;
    p->stride_a = a->stride, p->stride_b = b->stride, p->stride_c = c->stride, p->stride_d = d->stride;
    if ((p->transa ? a->cols : a->rows) != p->m || (p->transb ? b->rows : b->cols) != p->n || (p->transb ? b->cols : b->rows) != p->k
        || c->rows != p->m || c->cols != p->n || c->type != d->type)
        return CUBLAS_STATUS_INVALID_VALUE;
    for (cublasLtMatrixLayout_t l : {a, b, c, d})
        if (l->ld < (int64_t)l->rows || l->batch != d->batch || l->batch < 1)
            return CUBLAS_STATUS_INVALID_VALUE;
    if (d->batch > 1 && !d->stride)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (desc->scale_type != CUDA_R_32F || a->type != b->type || (d->type != CUDA_R_32F && d->type != a->type && a->type != CUDA_R_8F_E4M3)
        || (a->type == CUDA_R_8F_E4M3 && d->type != CUDA_R_32F && d->type != CUDA_R_16BF)
        || (desc->compute == CUBLAS_COMPUTE_32F_FAST_TF32 && a->type != CUDA_R_32F))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (a->type == CUDA_R_8F_E4M3)
        return check_fp8(*p);
    if (desc->a_scale || desc->b_scale || desc->a_mode || desc->b_mode) /* scales are for narrow types only */
        return CUBLAS_STATUS_INVALID_VALUE;
    return a->type == CUDA_R_16BF && machine.major < 8 ? CUBLAS_STATUS_ARCH_MISMATCH : CUBLAS_STATUS_SUCCESS;
}

/* In a cublasLtMatmulAlgo_t. */
struct Algo {
    uint64_t problem, parts, workspace;
    uint32_t alignment[4];
};
static_assert(sizeof(Algo) <= sizeof(cublasLtMatmulAlgo_t), "it must fit");

static uint64_t fingerprint(const Problem &p)
{
    uint64_t h = 1469598103934665603u; /* FNV-1a */
    const unsigned char *at = reinterpret_cast<const unsigned char *>(&p);

    for (size_t i = 0; i < sizeof p; i++)
        h = (h ^ at[i]) * 1099511628211u;
    return h;
}

static Algo choose(const Problem &p, uint64_t workspace, const uint32_t *alignment)
{
    Algo algo = {fingerprint(p), 2 + p.n % 3, 0, {}};

    algo.workspace = algo.parts * p.m * p.n * p.batch * 4;
    if (algo.workspace > workspace)
        algo.parts = 1, algo.workspace = 0;
    for (int i = 0; i < 4; i++)
        algo.alignment[i] = alignment[i]; /* it may rely on all that was promised */
    return algo;
}

/* ---- what is done -------------------------------------------------------------------------------------------------------------- */

struct Operands {
    const void *a, *b, *c;
    void *d;
    const float *a_scale, *b_scale;
    float alpha, beta, *workspace;
};

static float element(const void *from, uint64_t type, uint64_t compute, size_t i)
{
    switch (type) {
    case CUDA_R_16BF: return dsv2i_f32_from_bf16(static_cast<const uint16_t *>(from)[i]);
    case CUDA_R_16F: return dsv2i_f32_from_f16(static_cast<const uint16_t *>(from)[i]);
    case CUDA_R_8F_E4M3: return dsv2i_f32_from_e4m3(static_cast<const uint8_t *>(from)[i]);
    default:
        float f = static_cast<const float *>(from)[i];
        return compute == CUBLAS_COMPUTE_32F_FAST_TF32 ? __uint_as_float(dsv2i_tf32(f)) : f;
    }
}

/* The scale of 128 elements, block kb of the inner dimension; 1 where scales are not by blocks. */
static float block_scale(const float *scale, uint64_t mode, size_t outside, size_t length, size_t kb, size_t k)
{
    size_t blocks = (k + 127) / 128;

    return mode == vec128 ? scale[kb * length + outside] : mode == blk128 ? scale[outside / 128 * ((blocks + 3) & ~(size_t)3) + kb] : 1.0f;
}

static float outer_scale(const float *scale, uint64_t mode, size_t outside)
{
    return !scale || mode == vec128 || mode == blk128 ? 1.0f : mode == outer ? scale[outside] : *scale;
}

/* sums (parts, batch, n, m): part i has blocks i, i + parts ... of 128. */
static void sum_parts(const Problem &p, const Operands &o, uint64_t parts, float *sums)
{
    const size_t width = (size_t)8 << p.n % 4, group = 16;
    std::vector<float> a(p.k * group), b(p.k);

    for (size_t batch = 0; batch < p.batch; batch++)
        for (size_t i0 = 0; i0 < p.m; i0 += group) {
            const size_t rows = std::min<size_t>(group, p.m - i0);
            for (size_t i = 0; i < rows; i++)
                for (size_t l = 0; l < p.k; l++)
                    a[l * group + i] = element(o.a, p.ab, p.compute, batch * (size_t)p.stride_a
                                               + (p.transa ? (i0 + i) * (size_t)p.lda + l : l * (size_t)p.lda + i0 + i));
            for (size_t j = 0; j < p.n; j++) {
                for (size_t l = 0; l < p.k; l++)
                    b[l] = element(o.b, p.ab, p.compute, batch * (size_t)p.stride_b
                                   + (p.transb ? l * (size_t)p.ldb + j : j * (size_t)p.ldb + l));
                for (size_t part = 0; part < parts; part++) {
                    float sum[16] = {}, scale[16];
                    for (size_t kb = part; kb * 128 < p.k; kb += parts) {
                        for (size_t i = 0; i < rows; i++)
                            scale[i] = block_scale(o.a_scale, p.a_mode, i0 + i, p.m, kb, p.k)
                                       * block_scale(o.b_scale, p.b_mode, j, p.n, kb, p.k);
                        for (size_t l0 = kb * 128; l0 < std::min<size_t>(kb * 128 + 128, p.k); l0 += width) {
                            float s[16] = {};
                            for (size_t l = l0; l < std::min<size_t>(l0 + width, p.k); l++)
                                for (size_t i = 0; i < group; i++)
                                    s[i] += a[l * group + i] * b[l];
                            for (size_t i = 0; i < rows; i++)
                                sum[i] += s[i] * scale[i];
                        }
                    }
                    for (size_t i = 0; i < rows; i++)
                        sums[((part * p.batch + batch) * p.n + j) * p.m + i0 + i] = sum[i];
                }
            }
        }
}

static void finish(const Problem &p, const Operands &o, uint64_t parts, const float *sums)
{
    for (size_t batch = 0; batch < p.batch; batch++)
        for (size_t j = 0; j < p.n; j++)
            for (size_t i = 0; i < p.m; i++) {
                const size_t to = batch * (size_t)p.stride_d + j * (size_t)p.ldd + i;
                float sum = 0;
                for (size_t part = 0; part < parts; part++)
                    sum += sums[((part * p.batch + batch) * p.n + j) * p.m + i];
                sum *= o.alpha * outer_scale(o.a_scale, p.a_mode, i) * outer_scale(o.b_scale, p.b_mode, j);
                if (o.beta != 0) /* else it is not even read */
                    sum += o.beta * element(o.c, p.cd, CUBLAS_COMPUTE_32F, batch * (size_t)p.stride_c + j * (size_t)p.ldc + i);
                if (p.cd == CUDA_R_32F)
                    static_cast<float *>(o.d)[to] = sum;
                else
                    static_cast<uint16_t *>(o.d)[to] = p.cd == CUDA_R_16BF ? dsv2i_bf16(sum) : dsv2i_f16(sum);
            }
}

/* ---- memory --------------------------------------------------------------------------------------------------------------------- */

struct Range {
    const char *at;
    size_t size;
    bool meets(const Range &r) const { return size && r.size && at < r.at + r.size && r.at < at + size; }
};

static Range range(const void *at, uint64_t type, uint64_t rows, uint64_t cols, int64_t ld, uint64_t batch, int64_t stride)
{
    size_t last = (batch - 1) * (size_t)stride + (cols - 1) * (size_t)ld + rows;
    return {static_cast<const char *>(at), last * size_of(type)};
}

static size_t scales(uint64_t mode, uint64_t length, uint64_t k)
{
    size_t blocks = (k + 127) / 128;

    if (mode == scalar || mode == outer)
        return mode == scalar ? 4 : 4 * length;
    return 4 * (mode == vec128 ? length * blocks : (blocks + 3) / 4 * 4 * ((length + 127) / 128));
}

static bool aligned(const void *at, size_t to) { return reinterpret_cast<uintptr_t>(at) % to == 0; }

static bool on_device(const Range &r, const char *what)
{
    if (is_device(r.at, r.size))
        return true;
    record(std::string("cuBLASLt: ") + what + " is not in device memory, or not all of it");
    return false;
}

static cublasStatus_t check_memory(const Problem &p, const Operands &o, const Algo &algo)
{
    const Range a = range(o.a, p.ab, p.transa ? p.k : p.m, p.transa ? p.m : p.k, p.lda, p.batch, p.stride_a);
    const Range b = range(o.b, p.ab, p.transb ? p.n : p.k, p.transb ? p.k : p.n, p.ldb, p.batch, p.stride_b);
    const Range d = range(o.d, p.cd, p.m, p.n, p.ldd, p.batch, p.stride_d);
    const Range c = range(o.c, p.cd, p.m, p.n, p.ldc, p.batch, p.stride_c);
    const Range w = {reinterpret_cast<const char *>(o.workspace), algo.workspace};
    const bool fp8 = p.ab == CUDA_R_8F_E4M3;

    if (!o.a || !o.b || !o.d || (o.beta != 0 && !o.c))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!aligned(o.a, std::max<size_t>(algo.alignment[0], fp8 ? 16 : size_of(p.ab)))
        || !aligned(o.b, std::max<size_t>(algo.alignment[1], fp8 ? 16 : size_of(p.ab)))
        || !aligned(o.c, std::max<size_t>(algo.alignment[2], fp8 ? 16 : size_of(p.cd)))
        || !aligned(o.d, std::max<size_t>(algo.alignment[3], fp8 ? 16 : size_of(p.cd))))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (p.a_mode != scalar && (!o.a_scale || !o.b_scale))
        return CUBLAS_STATUS_INVALID_VALUE;
    if ((p.a_mode == vec128 || p.a_mode == blk128) && (!aligned(o.a_scale, 16) || !aligned(o.b_scale, 16)))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!on_device(a, "A") || !on_device(b, "B") || !on_device(d, "D") || (o.beta != 0 && !on_device(c, "C"))
        || (w.size && !on_device(w, "the workspace"))
        || (o.a_scale && !on_device({reinterpret_cast<const char *>(o.a_scale), scales(p.a_mode, p.m, p.k)}, "A's scale"))
        || (o.b_scale && !on_device({reinterpret_cast<const char *>(o.b_scale), scales(p.b_mode, p.n, p.k)}, "B's scale")))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    if (d.meets(a) || d.meets(b) || w.meets(a) || w.meets(b) || w.meets(d) || (o.beta != 0 && w.meets(c))) {
        record("cuBLASLt: what is written overlaps what is read");
        return CUBLAS_STATUS_EXECUTION_FAILED;
    }
    return CUBLAS_STATUS_SUCCESS;
}

}

using namespace emu;

size_t cublasLtGetVersion() { return 130000; }

const char *cublasLtGetStatusName(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH: return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR: return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "unknown";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    Hold hold(lock);

    if (unsafe()) /* it allocates device memory */
        return CUBLAS_STATUS_NOT_INITIALIZED;
    return create(handle, context, cublasLtContext{});
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    Hold hold(lock);

    cudaDeviceSynchronize(); /* as the real one */
    return destroy(handle, context);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType_t scale)
{
    cublasLtMatmulDescOpaque value{};

    value.compute = compute;
    value.scale_type = scale;
    return create(desc, operation, value);
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) { return destroy(desc, operation); }

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attr, const void *from, size_t size)
{
    Hold hold(lock);

    if (!alive(desc, operation))
        return CUBLAS_STATUS_INVALID_VALUE;
    return set({{CUBLASLT_MATMUL_DESC_TRANSA, &desc->transa, 4}, {CUBLASLT_MATMUL_DESC_TRANSB, &desc->transb, 4},
                {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &desc->a_scale, sizeof(void *)},
                {CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &desc->b_scale, sizeof(void *)}, {CUBLASLT_MATMUL_DESC_FAST_ACCUM, &desc->fast, 1},
                {CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &desc->a_mode, 4}, {CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &desc->b_mode, 4}},
               attr, from, size);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows, uint64_t cols, int64_t ld)
{
    cublasLtMatrixLayoutOpaque value{};

    if (!rows || !cols || rows > INT32_MAX || cols > INT32_MAX)
        return CUBLAS_STATUS_INVALID_VALUE;
    value.type = type;
    value.rows = rows;
    value.cols = cols;
    value.ld = ld;
    return create(layout, matrix, value);
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return destroy(layout, matrix); }

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attr, const void *from,
                                                size_t size)
{
    Hold hold(lock);

    if (!alive(layout, matrix))
        return CUBLAS_STATUS_INVALID_VALUE;
    return set({{CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &layout->batch, 4}, {CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &layout->stride, 8}},
               attr, from, size);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *pref)
{
    return create(pref, preference, cublasLtMatmulPreferenceOpaque{});
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t pref) { return destroy(pref, preference); }

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t pref, cublasLtMatmulPreferenceAttributes_t attr,
                                                    const void *from, size_t size)
{
    Hold hold(lock);

    if (!alive(pref, preference))
        return CUBLAS_STATUS_INVALID_VALUE;
    return set({{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &pref->workspace, 8},
                {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &pref->alignment[0], 4},
                {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &pref->alignment[1], 4},
                {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &pref->alignment[2], 4},
                {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &pref->alignment[3], 4}},
               attr, from, size);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t pref, int requested, cublasLtMatmulHeuristicResult_t results[],
                                              int *returned)
{
    Hold hold(lock);
    Problem p;

    queries++;
    *returned = 0;
    if (requested < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    cublasStatus_t status = understand(&p, handle, desc, a, b, c, d);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    if (!alive(pref, preference))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (refuses)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    const Algo algo = choose(p, pref->workspace, pref->alignment);
    results[0] = cublasLtMatmulHeuristicResult_t{};
    std::memcpy(&results[0].algo, &algo, sizeof algo);
    results[0].workspaceSize = algo.workspace;
    results[0].wavesCount = 1;
    *returned = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout, const void *beta,
                              const void *c, cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t *how, void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    Hold hold(lock);
    Problem p;
    Algo algo;

    if (lost())
        return CUBLAS_STATUS_EXECUTION_FAILED;
    cublasStatus_t status = understand(&p, handle, desc, a_layout, b_layout, c_layout, d_layout);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    if (how) {
        std::memcpy(&algo, how, sizeof algo);
    } else {
        const uint32_t alignment[4] = {256, 256, 256, 256};
        queries++;
        algo = choose(p, workspace_bytes, alignment);
    }
    if (!alpha || !beta || algo.problem != fingerprint(p) || algo.workspace > workspace_bytes || !aligned(workspace, 256))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (is_device(alpha) || is_device(beta)) {
        record("cuBLASLt: alpha and beta are in the host's memory");
        return CUBLAS_STATUS_EXECUTION_FAILED;
    }
    const Operands o = {a, b, c, d, static_cast<const float *>(desc->a_scale), static_cast<const float *>(desc->b_scale),
                        *static_cast<const float *>(alpha), *static_cast<const float *>(beta), static_cast<float *>(workspace)};
    status = check_memory(p, o, algo);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    if (!pass_launch())
        record("the device was lost, as the test asked");
    const uint64_t parts = algo.parts;
    cudaError_t e;
    if (algo.workspace) {
        e = enqueue(stream, [=] { sum_parts(p, o, parts, o.workspace); });
        if (e == cudaSuccess)
            e = enqueue(stream, [=] { finish(p, o, parts, o.workspace); });
    } else {
        e = enqueue(stream, [=] {
            std::vector<float> sums(p.batch * p.m * p.n);
            sum_parts(p, o, 1, sums.data());
            finish(p, o, 1, sums.data());
        });
    }
    return e == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
