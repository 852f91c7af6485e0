/* Where a target token stands in log_softmax of a row of logits that comes in parts: log-probability, rank, and the greatest logit.
 *
 * Bound: bandwidth of the L2 cache, where the product before has left the part: a block for a row reads its columns once for the maximum
 * and the rank, and again, mostly from its first-level cache, for the sum.
 *
 * The order of the sum depends on the parts alone, so a row's bits do not depend on its company.
 *
 * SPDX-License-Identifier: MIT */
#include "launch.cuh"
#include "warp.cuh"

typedef unsigned long long u64;

static const int threads = 256, warps = threads / 32;
static const float infinity = __builtin_inff();

/* Greater for a greater logit, or an equal one in a lower column; 0 for NaN. */
static __device__ __forceinline__ u64 order(float logit, int column)
{
    unsigned u = __float_as_uint(logit + 0.0f); /* -0 is 0 */

    return logit == logit ? (u64)(u >> 31 ? ~u : u | 1u << 31) << 32 | ~(unsigned)column : 0;
}

struct score_shared {
    u64 best[warps];
    double sum[warps];
    int above[warps];
};

static __global__ void __launch_bounds__(threads) score_kernel(const int32_t *n_rows, dsv2i_score *out, dsv2i_cuda_stand *stand,
                                                               const float *logits, int ld, int begin, int end, int vocab,
                                                               const int32_t *target, const float *of_target, int ld_target)
{
    const int row = (int)blockIdx.x, lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, n = end - begin;
    score_shared *sh = (score_shared *)dsv2i_shared();

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= *n_rows)
        return;
    dsv2i_cuda_stand s = {0, 0, -infinity, 0, 0};
    int mine = target[row] - begin, above = 0; /* mine: the target's column, which is not above itself */
    u64 best = 0;
    double sum = 0;

    if (begin)
        s = stand[row];
    else
        s.target = of_target[(size_t)row * (size_t)ld_target];
    logits += (size_t)row * (size_t)ld;
#pragma unroll 8
    for (int j = (int)threadIdx.x; j < n; j += threads) {
        u64 o = order(logits[j], j);

        best = o > best ? o : best;
        above += logits[j] > s.target && j != mine;
    }
    best = dsv2i_warp_max(best);
    above = dsv2i_warp_sum(above);
    if (lane == 0) {
        sh->best[warp] = best;
        sh->above[warp] = above;
    }
    __syncthreads();
    best = dsv2i_warp_max(lane < warps ? sh->best[lane] : 0);
    int top = (int)~(unsigned)best;
    float old = s.max;
    if (best && logits[top] > s.max) {
        s.max = logits[top];
        s.top_token = begin + top;
    }
#pragma unroll 8
    for (int j = (int)threadIdx.x; j < n; j += threads)
        sum += (double)expf(logits[j] - s.max);
    sum = dsv2i_warp_sum(sum);
    if (lane == 0)
        sh->sum[warp] = sum;
    __syncthreads();
    if (threadIdx.x)
        return;
    s.sum = begin ? s.sum * exp((double)old - (double)s.max) : 0;
    for (int w = 0; w < warps; w++) {
        s.sum += sh->sum[w];
        s.above += sh->above[w];
    }
    stand[row] = s;
    if (end == vocab) {
        float log_sum = logf((float)s.sum);

        out[row] = {(s.target - s.max) - log_sum, s.above + 1, s.top_token, 0.0f - log_sum};
    }
}

cudaError_t dsv2i_cuda_score(const struct dsv2i_cuda_launch *to, const int32_t *n_rows, struct dsv2i_score *out,
                             struct dsv2i_cuda_stand *stand, const float *logits, int32_t ld, int32_t begin, int32_t end, int32_t vocab,
                             const int32_t *target, const float *of_target, int32_t ld_target)
{
    return dsv2i_launch(to, score_kernel, dim3((unsigned)to->max_rows), threads, sizeof(score_shared), n_rows, out, stand, logits, ld,
                        begin, end, vocab, target, of_target, ld_target);
}

/* units: of 16 bytes, or of 2 where rows do not end on such. */
template <class T>
static __global__ void gather_rows_kernel(const int32_t *n_rows, T *to, const T *from, int units, const int32_t *target)
{
    const int row = (int)blockIdx.x;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= *n_rows)
        return;
    to += (size_t)row * (size_t)units;
    from += (size_t)target[row] * (size_t)units;
    for (int i = (int)threadIdx.x; i < units; i += (int)blockDim.x)
        to[i] = from[i];
}

cudaError_t dsv2i_cuda_gather_rows(const struct dsv2i_cuda_launch *to, const int32_t *n_rows, void *rows, const struct dsv2i_weight *w,
                                   const int32_t *target)
{
    const int bytes = w->cols * (w->dtype == DSV2I_F32 ? 4 : 2);
    const dim3 grid((unsigned)to->max_rows);

    if (w->dtype != DSV2I_F32 && w->dtype != DSV2I_BF16 && w->dtype != DSV2I_F16)
        return cudaErrorInvalidValue;
    if (bytes % 16 == 0)
        return dsv2i_launch(to, gather_rows_kernel<uint4>, grid, threads, 0, n_rows, (uint4 *)rows, (const uint4 *)w->data, bytes / 16,
                            target);
    return dsv2i_launch(to, gather_rows_kernel<uint16_t>, grid, threads, 0, n_rows, (uint16_t *)rows, (const uint16_t *)w->data, bytes / 2,
                        target);
}
