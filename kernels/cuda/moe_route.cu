/* Which experts a row goes to, from the router's logits: softmax over all experts, the best groups by their best expert, the best
 * experts inside (paper 2.2.2).
 *
 * Bound: latency.  A warp serves a row and holds its probabilities in registers, expert 32 j + lane in register j of a lane; each of the
 * top_k choices is a maximum over the warp, the lowest index first among equals.  Excluded experts are passed over, not given 0: a kept
 * expert may have a probability of 0.
 *
 * SPDX-License-Identifier: MIT */
#include "launch.cuh"
#include "warp.cuh"

static const int most = 16; /* registers of a lane: 512 experts */

/* A value and an index as one number that orders as they do: greater values first, then lower indices; 0 is below all.  NaN as -inf, so
 * that with NaNs, too, an index is one in range. */
static __device__ __forceinline__ unsigned long long order(float value, int index)
{
    unsigned u = __float_as_uint(value == value ? value : __uint_as_float(0xFF800000u));

    u = u & 0x80000000u ? ~u : u | 0x80000000u;
    return (unsigned long long)u << 32 | (unsigned)(0x7FFFFFFF - index);
}

static __device__ __forceinline__ int index_of(unsigned long long ordered)
{
    return 0x7FFFFFFF - (int)(unsigned)ordered;
}

static __global__ void moe_route_kernel(const dsv2i_cuda_step *step, int *idx, float *weight, const float *logits, int n, dsv2i_route route)
{
    int row = (int)(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32), lane = (int)threadIdx.x % 32, size = n / route.n_group;
    float p[most], max = __uint_as_float(0xFF800000u), sum = 0, total = 0, factor = route.routed_scaling_factor;
    bool open[most];

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows)
        return;
    logits += (size_t)row * (size_t)n;
    idx += (size_t)row * (size_t)route.top_k;
    weight += (size_t)row * (size_t)route.top_k;
#pragma unroll
    for (int j = 0; j < most; j++) {
        p[j] = 32 * j + lane < n ? logits[32 * j + lane] : __uint_as_float(0xFF800000u);
        max = p[j] > max ? p[j] : max;
    }
    max = dsv2i_warp_max(max);
#pragma unroll
    for (int j = 0; j < most; j++) {
        p[j] = 32 * j + lane < n ? expf(p[j] - max) : 0.0f;
        sum += p[j];
        open[j] = 32 * j + lane < n && route.topk_group == route.n_group;
    }
    sum = dsv2i_warp_sum(sum);

    if (route.topk_group < route.n_group) {
        unsigned long long mine = 0; /* of group lane: its best expert's probability; then the groups in order */

        for (int g = 0; g < route.n_group; g++) {
            unsigned long long best = 0;

#pragma unroll
            for (int j = 0; j < most; j++) {
                int e = 32 * j + lane;
                unsigned long long o = e < n && e / size == g ? order(p[j], g) : 0;
                best = o > best ? o : best;
            }
            best = dsv2i_warp_max(best);
            mine = g == lane ? best : mine;
        }
        for (int k = 0; k < route.topk_group; k++) {
            unsigned long long best = dsv2i_warp_max(mine);

            mine = best == mine ? 0 : mine;
#pragma unroll
            for (int j = 0; j < most; j++)
                open[j] |= 32 * j + lane < n && (32 * j + lane) / size == index_of(best);
        }
    }
    for (int k = 0; k < route.top_k; k++) {
        unsigned long long best = 0;

#pragma unroll
        for (int j = 0; j < most; j++) {
            unsigned long long o = open[j] ? order(p[j], 32 * j + lane) : 0;
            best = o > best ? o : best;
        }
        best = dsv2i_warp_max(best);
#pragma unroll
        for (int j = 0; j < most; j++)
            if (32 * j + lane == index_of(best)) {
                open[j] = false;
                idx[k] = index_of(best);
                weight[k] = p[j] / sum;
                total += p[j] / sum; /* in the lanes that chose; the sum over lanes is that of all */
            }
    }
    if (route.norm_topk_prob && route.top_k > 1)
        factor = 1.0f / (dsv2i_warp_sum(total) + 1e-20f);
    __syncwarp();
    for (int k = lane; k < route.top_k; k += 32)
        weight[k] *= factor;
}

cudaError_t dsv2i_cuda_moe_route(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, int32_t *idx, float *weight,
                                 const float *logits, int32_t n_experts, const struct dsv2i_route *route)
{
    const int rows = 4; /* of a block */

    if (n_experts > 32 * most || route->n_group > 32)
        return cudaErrorInvalidValue;
    return dsv2i_launch(to, moe_route_kernel, dim3((unsigned)(to->max_rows + rows - 1) / rows), 32 * rows, 0, step, idx, weight, logits,
                        n_experts, *route);
}
