/* Proof of the emulator: cuBLASLt.
 * SPDX-License-Identifier: MIT */
#include "programs.h"

#include <convert.cuh>
#include <cublasLt.h>

namespace {

/* D (m, n) of f32 = A^T B, column-major, A (k, m), B (k, n); programs change what they are about. */
struct Product {
    uint64_t m = 32, n = 5, k = 384;
    cudaDataType type = CUDA_R_16BF;
    cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
    int32_t transa = CUBLAS_OP_T, a_mode = 0, b_mode = 0;
    const void *a_scale = nullptr, *b_scale = nullptr;
    int64_t lda = 0; /* 0: k */
    size_t allowed = 1 << 20, given = 1 << 20; /* bytes of workspace */
    uint32_t alignment = 16;
    float alpha = 1, beta = 0;

    cublasLtHandle_t handle = nullptr;
    cublasLtMatmulDesc_t desc = nullptr;
    cublasLtMatrixLayout_t la = nullptr, lb = nullptr, ld = nullptr;
    cublasLtMatmulHeuristicResult_t found{};
    std::vector<float> host_a, host_b;
    char *a = nullptr, *b = nullptr, *workspace = nullptr;
    float *d = nullptr;

    /* Operands in memory, with margin bytes behind each. */
    void fill(size_t margin = 64)
    {
        auto make = [&](std::vector<float> *host, size_t count, int step) {
            std::vector<unsigned char> bytes(count * 4);
            for (size_t i = 0; i < count; i++) {
                float v = (float)((int)(i * (size_t)step % 257) - 128) / 64; /* 8 bits */
                if (type == CUDA_R_8F_E4M3)
                    v = dsv2i_f32_from_e4m3(bytes[i] = dsv2i_e4m3(v));
                if (type == CUDA_R_16BF)
                    reinterpret_cast<uint16_t *>(bytes.data())[i] = dsv2i_bf16(v);
                if (type == CUDA_R_32F)
                    reinterpret_cast<float *>(bytes.data())[i] = v += (float)i * 1e-6f;
                host->push_back(v);
            }
            bytes.resize(count * (type == CUDA_R_32F ? 4 : type == CUDA_R_16BF ? 2 : 1));
            char *to = device<char>(bytes.size() + margin);
            cudaMemcpyAsync(to, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, stream);
            return to;
        };
        a = make(&host_a, m * k, 37);
        b = make(&host_b, n * k, 91);
        d = device<float>(m * n);
        workspace = device<char>(1 << 20);
        cudaStreamSynchronize(stream);
    }

    cublasStatus_t plan()
    {
        cublasLtMatmulPreference_t pref;
        int count = 0;

        if (!handle)
            cublasLtCreate(&handle);
        cublasLtMatmulDescCreate(&desc, compute, CUDA_R_32F);
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transa, 4);
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &a_mode, 4);
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &b_mode, 4);
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &a_scale, sizeof a_scale);
        cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &b_scale, sizeof b_scale);
        cublasLtMatrixLayoutCreate(&la, type, transa == CUBLAS_OP_T ? k : m, transa == CUBLAS_OP_T ? m : k, lda ? lda : (int64_t)k);
        cublasLtMatrixLayoutCreate(&lb, type, k, n, (int64_t)k);
        cublasLtMatrixLayoutCreate(&ld, CUDA_R_32F, m, n, (int64_t)m);
        cublasLtMatmulPreferenceCreate(&pref);
        cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &allowed, 8);
        for (int i = CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES; i <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES; i++)
            cublasLtMatmulPreferenceSetAttribute(pref, (cublasLtMatmulPreferenceAttributes_t)i, &alignment, 4);
        cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, desc, la, lb, ld, ld, pref, 1, &found, &count);
        cublasLtMatmulPreferenceDestroy(pref);
        return status;
    }

    cublasStatus_t start(cudaStream_t on)
    {
        return cublasLtMatmul(handle, desc, &alpha, a, la, b, lb, &beta, d, ld, d, ld, &found.algo, workspace, given, on);
    }

    bool go() { return plan() == CUBLAS_STATUS_SUCCESS && start(stream) == CUBLAS_STATUS_SUCCESS; }

    /* scale(i, j, l): of the product of elements l. */
    template <class F> bool right(F scale, double plus = 0)
    {
        std::vector<float> got = read(d, m * n);
        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < m; i++) {
                double want = plus, magnitude = 1;
                for (size_t l = 0; l < k; l++) {
                    double term = (double)host_a[i * k + l] * (double)host_b[j * k + l] * scale(i, j, l);
                    want += term;
                    magnitude += fabs(term);
                }
                if (!(fabs((double)got[j * m + i] - want) <= magnitude * 1e-5)) /* 80 roundings, say */
                    return false;
            }
        return true;
    }
    bool right() { return right([](size_t, size_t, size_t) { return 1.0; }); }
};

float *floats(size_t n, float step)
{
    std::vector<float> host(n);
    for (size_t i = 0; i < n; i++)
        host[i] = 1 + step * (float)i;
    float *to = device<float>(n);
    cudaMemcpyAsync(to, host.data(), n * 4, cudaMemcpyHostToDevice, stream);
    cudaStreamSynchronize(stream);
    return to;
}

/* ---- shapes, types, memory ----------------------------------------------------------------------------------------------------- */

template <bool wrong> bool leading_dimension()
{
    Product p;
    p.fill();
    p.lda = wrong ? 376 : 384;
    return p.go() && p.right();
}

template <bool wrong> bool tf32_for_fp32()
{
    Product p;
    p.type = CUDA_R_32F;
    p.compute = wrong ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    p.fill();
    return p.go() && p.right();
}

template <bool wrong> bool less_aligned_than_promised()
{
    Product p;
    p.fill();
    p.alignment = wrong ? 256 : 2;
    p.a += 2;
    p.host_a.erase(p.host_a.begin());
    p.m--;
    p.host_a.resize(p.m * p.k);
    return p.go() && p.right();
}

template <bool wrong> bool beta_reads_what_nobody_wrote()
{
    Product p;
    p.fill();
    p.beta = wrong ? 1 : 0;
    return p.go() && p.right();
}
template <bool wrong> bool accumulate_twice()
{
    Product p;
    p.fill();
    if (!p.go())
        return false;
    p.beta = 1;
    for (int i = 0; i < 1 + wrong; i++)
        if (p.start(stream) != CUBLAS_STATUS_SUCCESS)
            return false;
    return p.right([](size_t, size_t, size_t) { return 2.0; });
}

template <bool wrong> bool output_too_short()
{
    Product p;
    p.fill();
    p.d = device<float>(p.m * p.n - wrong);
    return p.go() && p.right();
}
template <bool wrong> bool operand_of_the_host()
{
    Product p;
    p.fill();
    std::vector<char> host(p.k * p.n * 2);
    if (wrong)
        p.b = host.data();
    return p.go() && p.right();
}
template <bool wrong> bool output_over_input()
{
    Product p;
    p.fill();
    if (wrong)
        p.d = reinterpret_cast<float *>(p.a);
    return p.go() && p.right();
}
template <bool wrong> bool alpha_of_the_device()
{
    Product p;
    p.fill();
    const float *one = floats(1, 0);
    if (p.plan() != CUBLAS_STATUS_SUCCESS)
        return false;
    return cublasLtMatmul(p.handle, p.desc, wrong ? one : &p.alpha, p.a, p.la, p.b, p.lb, &p.beta, p.d, p.ld, p.d, p.ld, &p.found.algo,
                          p.workspace, p.given, stream) == CUBLAS_STATUS_SUCCESS && p.right();
}

/* ---- algorithms, workspaces, objects ------------------------------------------------------------------------------------------- */

template <bool wrong> bool workspace_too_small()
{
    Product p;
    p.fill();
    p.given = 0;
    p.allowed = wrong ? 1 << 20 : 0;
    return p.go() && p.right();
}
template <bool wrong> bool workspace_not_aligned()
{
    Product p;
    p.fill();
    p.workspace += wrong ? 16 : 256;
    p.given -= 256;
    return p.go() && p.right();
}
template <bool wrong> bool workspace_of_two_streams()
{
    Product p, q;
    p.fill();
    q.n = 6;
    q.fill();
    if (wrong)
        q.workspace = p.workspace;
    return p.plan() == CUBLAS_STATUS_SUCCESS && q.plan() == CUBLAS_STATUS_SUCCESS && p.start(stream) == CUBLAS_STATUS_SUCCESS
           && q.start(other) == CUBLAS_STATUS_SUCCESS && cudaDeviceSynchronize() == cudaSuccess && p.right() && q.right();
}

template <bool wrong> bool algorithm_of_another_shape()
{
    Product p, q;
    p.fill();
    q.n = 6;
    q.fill();
    if (p.plan() != CUBLAS_STATUS_SUCCESS || q.plan() != CUBLAS_STATUS_SUCCESS)
        return false;
    if (wrong)
        p.found = q.found;
    return p.start(stream) == CUBLAS_STATUS_SUCCESS && p.right();
}

template <bool wrong> bool destroyed_too_early()
{
    Product p;
    p.fill();
    if (p.plan() != CUBLAS_STATUS_SUCCESS)
        return false;
    if (wrong)
        cublasLtMatmulDescDestroy(p.desc);
    bool started = p.start(stream) == CUBLAS_STATUS_SUCCESS;
    if (!wrong)
        cublasLtMatmulDescDestroy(p.desc); /* what was started has what it needs */
    return started && p.right();
}

/* The same column in matrices of other widths. */
template <bool wrong> bool bits_in_other_company()
{
    Product p, q;
    p.type = q.type = CUDA_R_32F;
    p.fill();
    q.n = 6;
    q.fill();
    if (!p.go() || !q.go() || !p.right() || !q.right())
        return false;
    std::vector<float> one = read(p.d, p.m), two = read(q.d, q.m);
    return !wrong || !memcmp(one.data(), two.data(), p.m * 4);
}

/* ---- streams -------------------------------------------------------------------------------------------------------------------- */

template <bool wrong> bool read_on_another_stream()
{
    Product p;
    cudaEvent_t done;
    p.fill();
    cudaEventCreateWithFlags(&done, cudaEventDisableTiming);
    if (p.plan() != CUBLAS_STATUS_SUCCESS || p.start(other) != CUBLAS_STATUS_SUCCESS)
        return false;
    cudaEventRecord(done, other);
    if (!wrong)
        cudaStreamWaitEvent(stream, done);
    return p.right();
}

/* A graph's product reads its operands when it is launched. */
template <bool wrong> bool created_in_capture()
{
    Product p;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    p.fill();
    if (!wrong)
        cublasLtCreate(&p.handle);
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    bool ok = p.go();
    if (cudaStreamEndCapture(stream, &graph) != cudaSuccess || !ok || cudaGraphInstantiate(&exec, graph) != cudaSuccess)
        return false;
    for (int i = 0; i < 2; i++) {
        cudaMemsetAsync(p.d, 0xFF, p.m * p.n * 4, stream);
        cudaGraphLaunch(exec, stream);
        if (!p.right())
            return false;
    }
    return true;
}

/* ---- fp8 ------------------------------------------------------------------------------------------------------------------------ */

bool fp8(Product *p, int major, int minor, int a_mode, int b_mode, const float *a_scale, const float *b_scale)
{
    p->type = CUDA_R_8F_E4M3;
    p->n = 8;
    p->a_mode = a_mode;
    p->b_mode = b_mode;
    p->a_scale = a_scale;
    p->b_scale = b_scale;
    emu::machine.major = major;
    emu::machine.minor = minor;
    p->fill();
    return p->go();
}

const int scalar = CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F, outer = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F,
          vec128 = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F, blk128 = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;

template <bool wrong> bool fp8_before_sm_89()
{
    Product p;
    return fp8(&p, 8, wrong ? 0 : 9, scalar, scalar, floats(1, 0), nullptr) && p.right();
}
template <bool wrong> bool fp8_not_transposed()
{
    Product p;
    p.transa = wrong ? CUBLAS_OP_N : CUBLAS_OP_T;
    return fp8(&p, 9, 0, scalar, scalar, nullptr, nullptr) && p.right();
}
template <bool wrong> bool fp8_inner_dimension_of_8()
{
    Product p;
    p.k = wrong ? 392 : 400;
    return fp8(&p, 9, 0, scalar, scalar, nullptr, nullptr) && p.right();
}
template <bool wrong> bool vectors_after_sm_90()
{
    Product p;
    return fp8(&p, wrong ? 10 : 9, 0, outer, outer, floats(32, 0.25f), floats(8, 0.5f))
           && p.right([](size_t i, size_t j, size_t) { return (1 + 0.25 * (double)i) * (1 + 0.5 * (double)j); });
}
template <bool wrong> bool vector_too_short()
{
    Product p;
    return fp8(&p, 9, 0, outer, outer, floats(32 - wrong, 0.25f), floats(8, 0.5f))
           && p.right([](size_t i, size_t j, size_t) { return (1 + 0.25 * (double)i) * (1 + 0.5 * (double)j); });
}
/* Three blocks of 128 in a row: four floats apart. */
template <bool wrong> bool rows_of_block_scales()
{
    const double stride = wrong ? 3 : 4;
    Product p;
    p.m = 144;
    return fp8(&p, 9, 0, blk128, vec128, floats(8, 0.25f), floats(24, 0.5f)) && p.right([=](size_t i, size_t j, size_t l) {
        return (1 + 0.25 * ((double)(i / 128) * stride + (double)(l / 128))) * (1 + 0.5 * (double)(l / 128 * 8 + j));
    });
}
template <bool wrong> bool squares_on_both_sides()
{
    Product p;
    return fp8(&p, 9, 0, blk128, wrong ? blk128 : vec128, floats(8, 0), floats(24, 0)) && p.right();
}
template <bool wrong> bool scales_not_given()
{
    Product p;
    return fp8(&p, 9, 0, outer, outer, floats(32, 0), wrong ? nullptr : floats(8, 0)) && p.right();
}
template <bool wrong> bool scales_of_the_host()
{
    static const float one = 1;
    Product p;
    return fp8(&p, 9, 0, scalar, scalar, wrong ? &one : floats(1, 0), nullptr) && p.right();
}
template <bool wrong> bool scales_for_bf16()
{
    Product p;
    p.a_scale = wrong ? floats(1, 0) : nullptr;
    p.fill();
    return p.go() && p.right();
}

const Program programs[] = {
    PROGRAM(leading_dimension), PROGRAM(tf32_for_fp32), PROGRAM(less_aligned_than_promised), PROGRAM(beta_reads_what_nobody_wrote),
    PROGRAM(accumulate_twice), PROGRAM(output_too_short), PROGRAM(operand_of_the_host), PROGRAM(output_over_input),
    PROGRAM(alpha_of_the_device), PROGRAM(workspace_too_small), PROGRAM(workspace_not_aligned), PROGRAM(workspace_of_two_streams),
    PROGRAM(algorithm_of_another_shape), PROGRAM(destroyed_too_early), PROGRAM(bits_in_other_company), PROGRAM(read_on_another_stream),
    PROGRAM(created_in_capture), PROGRAM(fp8_before_sm_89), PROGRAM(fp8_not_transposed), PROGRAM(fp8_inner_dimension_of_8),
    PROGRAM(vectors_after_sm_90), PROGRAM(vector_too_short), PROGRAM(rows_of_block_scales), PROGRAM(squares_on_both_sides),
    PROGRAM(scales_not_given), PROGRAM(scales_of_the_host), PROGRAM(scales_for_bf16),
};

}

int main() { return run_all(programs); }
