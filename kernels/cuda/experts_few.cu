/* Experts of few rows, y += sum_j weight_j down_j(silu(gate_j x) * up_j x): a decode step's mixture, and its dense layers.
 *
 * Bound: bandwidth, top_k experts for each row (V2-Lite: 104 MB; V2: 283 MB).  Rows that choose the same expert read it twice; with more
 * than a few rows grouping them pays instead.  Two launches, with so many warps that enough loads are under way:
 *   up:   a warp takes two elements of h, which are two rows of gate and two of up;
 *   down: a block takes four elements of y, a warp of it one slot after another; the slots are added up in their order.
 *
 * The order of a sum depends on the shape alone: the same bits for a row in any company.
 *
 * SPDX-License-Identifier: MIT */
#include "dots.cuh"
#include "launch.cuh"

static const int warps = 8, held = 4; /* of a block; weight rows of a warp */

template <int dtype, int width>
static __global__ void up_kernel(const dsv2i_cuda_step *step, float *h, const float *x, const dsv2i_cuda_expert *experts, const int *idx,
                                 int top_k, int hidden, int inter)
{
    const int slot = (int)blockIdx.y, row = slot / top_k, lane = (int)threadIdx.x % 32;
    const int first = ((int)blockIdx.x * warps + (int)threadIdx.x / 32) * 2, second = first + 1 < inter ? first + 1 : first;
    float sum[held][1];

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows || first >= inter)
        return;
    const dsv2i_cuda_expert e = experts[idx ? idx[slot] : 0];
    const void *const w[held] = {dsv2i_row<dtype>(e.gate, first, hidden), dsv2i_row<dtype>(e.gate, second, hidden),
                                 dsv2i_row<dtype>(e.up, first, hidden), dsv2i_row<dtype>(e.up, second, hidden)};
    dsv2i_dots<dtype, width>(sum, w, x + (size_t)row * (size_t)hidden, hidden, 1, hidden, 0, 1);
    if (lane < 2 && first + lane < inter) {
        float gate = lane ? sum[1][0] : sum[0][0], up = lane ? sum[3][0] : sum[2][0];

        h[(size_t)slot * (size_t)inter + (size_t)(first + lane)] = gate / (1.0f + expf(-gate)) * up;
    }
}

template <int dtype, int width>
static __global__ void down_kernel(const dsv2i_cuda_step *step, float *y, const float *h, const dsv2i_cuda_expert *experts, const int *idx,
                                   const float *weight, int top_k, int hidden, int inter)
{
    const int row = (int)blockIdx.y, first = (int)blockIdx.x * held, lane = (int)threadIdx.x % 32;
    float *parts = (float *)dsv2i_shared(); /* (top_k, held) */

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows)
        return;
    for (int j = (int)threadIdx.x / 32; j < top_k; j += warps) {
        const int slot = row * top_k + j;
        const void *down = experts[idx ? idx[slot] : 0].down, *w[held];
        float sum[held][1];

#pragma unroll
        for (int r = 0; r < held; r++) /* past the last row: the last again */
            w[r] = dsv2i_row<dtype>(down, first + r < hidden ? first + r : hidden - 1, inter);
        dsv2i_dots<dtype, width>(sum, w, h + (size_t)slot * (size_t)inter, inter, 1, inter, 0, 1);
        if (lane == 0)
#pragma unroll
            for (int r = 0; r < held; r++)
                parts[j * held + r] = idx ? weight[slot] * sum[r][0] : sum[r][0];
    }
    __syncthreads();
    if ((int)threadIdx.x < held && first + (int)threadIdx.x < hidden) {
        float all = 0;

        for (int j = 0; j < top_k; j++)
            all += parts[j * held + (int)threadIdx.x];
        y[(size_t)row * (size_t)hidden + (size_t)(first + (int)threadIdx.x)] += all;
    }
}

template <int dtype, int width>
static cudaError_t launch(const dsv2i_cuda_launch *to, const dsv2i_cuda_step *step, float *y, const float *x, float *h,
                          const dsv2i_cuda_expert *experts, const int32_t *idx, const float *weight, int top_k, int hidden, int inter)
{
    const dim3 up((unsigned)(inter + 2 * warps - 1) / (2 * warps), (unsigned)(to->max_rows * top_k));
    const dim3 down((unsigned)(hidden + held - 1) / held, (unsigned)to->max_rows);
    cudaError_t e = dsv2i_launch(to, up_kernel<dtype, width>, up, 32 * warps, 0, step, h, x, experts, idx, top_k, hidden, inter);

    return e ? e
             : dsv2i_launch(to, down_kernel<dtype, width>, down, 32 * warps, sizeof(float) * held * (size_t)top_k, step, y, h, experts, idx,
                            weight, top_k, hidden, inter);
}

cudaError_t dsv2i_cuda_experts_few(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *y, const float *x,
                                   float *h, const struct dsv2i_cuda_expert *experts, const int32_t *idx, const float *weight,
                                   int32_t top_k, int32_t dtype, int32_t hidden, int32_t inter)
{
    const bool wide = hidden % 8 == 0 && inter % 8 == 0;

    switch (dtype) {
#define CASE(type) \
    case type: \
        return wide ? launch<type, 8>(to, step, y, x, h, experts, idx, weight, top_k, hidden, inter) \
                    : launch<type, 1>(to, step, y, x, h, experts, idx, weight, top_k, hidden, inter);
    CASE(DSV2I_F32)
    CASE(DSV2I_BF16)
    CASE(DSV2I_F16)
#undef CASE
    default: return cudaErrorInvalidValue;
    }
}
