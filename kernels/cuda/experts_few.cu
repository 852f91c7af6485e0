/* Experts of few rows, y += sum_j weight_j down_j(silu(gate_j x) * up_j x): a decode step's mixture, and its dense layers.
 *
 * Bound: bandwidth, top_k experts for each row (bf16: V2-Lite 104 MB, V2 283 MB; e4m3 half).  Rows that choose the same expert read it
 * twice; with more than a few rows grouping them pays instead.  Two launches, with so many warps that enough loads are under way:
 *   up:   a warp takes two elements of h, which are two rows of gate and two of up (V2-Lite, one row: 1,056 blocks of 4 warps, of which
 *         924 run at a time on an H100);
 *   down: a block takes four elements of y, each slot by a warp of it, or some where slots are few (512 blocks); the slots are added
 *         up in their order.
 * Down asks for its first weights before up has ended, and up, unless it must know the chosen experts, before the launch in front has.
 *
 * The order of a sum depends on the shape alone: the same bits for a row in any company.
 *
 * SPDX-License-Identifier: MIT */
#include "dots.cuh"
#include "launch.cuh"

static const int up_warps = 4, down_warps = 8, held = 4; /* of a block, at most; weight rows of a warp */

template <int dtype, int width>
static __global__ void __launch_bounds__(32 * up_warps, 7)
up_kernel(const dsv2i_cuda_step *step, float *h, const float *x, const dsv2i_cuda_expert *experts, const int *idx, int top_k, int hidden,
          int inter, dsv2i_cuda_scales scales)
{
    const int slot = (int)blockIdx.y, row = slot / top_k, lane = (int)threadIdx.x % 32;
    const int first = ((int)blockIdx.x * up_warps + (int)threadIdx.x / 32) * 2;
    dsv2i_rows<dtype, width, held> w;

    if (idx) { /* else the weights are known before the launch in front has ended */
        dsv2i_wait_dependency();
        if (row >= step->n_rows)
            return;
        experts += idx[slot];
    }
    w.cols = hidden;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        dsv2i_set_row(w, r, experts->gate, experts->gate_scale, scales, first + r, inter);
        dsv2i_set_row(w, 2 + r, experts->up, experts->up_scale, scales, first + r, inter);
    }
    const auto piece = dsv2i_fetch(w, 0);
    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows || first >= inter)
        return;
    const float sum = dsv2i_dots<1>(w, piece, x + (size_t)row * (size_t)hidden, hidden, 1, 0, 1);
    const float gate = __shfl_sync(DSV2I_ALL_LANES, sum, lane % 2 * 8), up = __shfl_sync(DSV2I_ALL_LANES, sum, 16 + lane % 2 * 8);
    if (lane < 2 && first + lane < inter)
        h[(size_t)slot * (size_t)inter + (size_t)(first + lane)] = gate / (1.0f + expf(-gate)) * up;
}

/* As the first-level cache may not have it yet. */
static __device__ __forceinline__ int newest(const int32_t *at) { return *(const volatile int32_t *)at; }

/* share: warps that share the columns of a slot.
 *
 * All blocks of up_kernel have waited for what was in front of it before this begins, so that n_rows and idx can be read at once, and the
 * first weights be asked for; only h and y are waited for. */
template <int dtype, int width>
static __global__ void __launch_bounds__(32 * down_warps)
down_kernel(const dsv2i_cuda_step *step, float *y, const float *h, const dsv2i_cuda_expert *experts, const int *idx, const float *weight,
            int top_k, int share, int hidden, int inter, dsv2i_cuda_scales scales)
{
    const int row = (int)blockIdx.y, first = (int)blockIdx.x * held, lane = (int)threadIdx.x % 32;
    float *parts = (float *)dsv2i_shared(); /* (top_k, share, held) */

    if (row >= newest(&step->n_rows)) {
        dsv2i_wait_dependency();
        return;
    }
    for (int u = (int)threadIdx.x / 32; u < top_k * share; u += (int)blockDim.x / 32) {
        const int slot = row * top_k + u / share;
        const dsv2i_cuda_expert e = experts[idx ? newest(&idx[slot]) : 0];
        dsv2i_rows<dtype, width, held> w;
        w.cols = inter;
#pragma unroll
        for (int r = 0; r < held; r++)
            dsv2i_set_row(w, r, e.down, e.down_scale, scales, first + r, hidden);
        const auto piece = dsv2i_fetch(w, u % share * w.piece_cols);
        dsv2i_wait_dependency();
        dsv2i_launch_dependents();
        const float sum = dsv2i_dots<1>(w, piece, h + (size_t)slot * (size_t)inter, inter, 1, u % share, share);
        if (lane % 8 == 0)
            parts[u * held + lane / 8] = sum;
    }
    __syncthreads();
    if ((int)threadIdx.x < held && first + (int)threadIdx.x < hidden) {
        float all = 0;

        for (int j = 0; j < top_k; j++) {
            float s = 0;

            for (int p = 0; p < share; p++)
                s += parts[(j * share + p) * held + (int)threadIdx.x];
            all += idx ? weight[row * top_k + j] * s : s;
        }
        y[(size_t)row * (size_t)hidden + (size_t)(first + (int)threadIdx.x)] += all;
    }
}

template <int dtype, int width>
static cudaError_t launch(const dsv2i_cuda_launch *to, const dsv2i_cuda_step *step, float *y, const float *x, float *h,
                          const dsv2i_cuda_expert *experts, const int32_t *idx, const float *weight, int top_k, int hidden, int inter,
                          dsv2i_cuda_scales gate_up, dsv2i_cuda_scales down)
{
    const int pieces = (inter - 1) / dsv2i_rows<dtype, width, held>::piece_cols + 1, room = top_k < down_warps ? down_warps / top_k : 1;
    const int share = pieces < room ? pieces : room, units = top_k * share;
    const dim3 up_grid((unsigned)(inter + 2 * up_warps - 1) / (2 * up_warps), (unsigned)(to->max_rows * top_k));
    const dim3 down_grid((unsigned)(hidden + held - 1) / held, (unsigned)to->max_rows);
    cudaError_t e = dsv2i_launch(to, up_kernel<dtype, width>, up_grid, 32 * up_warps, 0, step, h, x, experts, idx, top_k, hidden, inter,
                                 gate_up);

    return e ? e
             : dsv2i_launch(to, down_kernel<dtype, width>, down_grid, 32 * (units < down_warps ? units : down_warps),
                            sizeof(float) * held * (size_t)units, step, y, h, experts, idx, weight, top_k, share, hidden, inter, down);
}

cudaError_t dsv2i_cuda_experts_few(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *y, const float *x,
                                   float *h, const struct dsv2i_cuda_expert *experts, const int32_t *idx, const float *weight,
                                   int32_t top_k, int32_t dtype, int32_t hidden, int32_t inter, struct dsv2i_cuda_scales gate_up,
                                   struct dsv2i_cuda_scales down)
{
    const bool wide = hidden % 4 == 0 && inter % 4 == 0;

    switch (dtype) {
#define CASE(type) \
    case type: \
        return wide ? launch<type, 4>(to, step, y, x, h, experts, idx, weight, top_k, hidden, inter, gate_up, down) \
                    : launch<type, 1>(to, step, y, x, h, experts, idx, weight, top_k, hidden, inter, gate_up, down);
    CASE(DSV2I_F32)
    CASE(DSV2I_BF16)
    CASE(DSV2I_F16)
    CASE(DSV2I_F8_E4M3)
#undef CASE
    default: return cudaErrorInvalidValue;
    }
}
