/* Which experts a row goes to, from the router's logits: softmax over all experts, the best groups by their best expert, the best
 * experts inside (paper 2.2.2).
 *
 * Bound: latency.  A warp serves a row and holds its probabilities in registers, expert 32 j + lane in register j of a lane.  Each choice
 * is two reductions by the hardware: the greatest value, then the lowest index that has it.  Excluded experts are passed over, not given
 * 0: a kept expert may have a probability of 0.
 *
 * SPDX-License-Identifier: MIT */
#include "launch.cuh"
#include "warp.cuh"

/* A number that orders as values do; 0 is below all.  NaN as -inf, so that with NaNs, too, there is always a greatest. */
static __device__ __forceinline__ unsigned order(float value)
{
    const unsigned u = __float_as_uint(value == value ? value : __uint_as_float(0xFF800000u));

    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static __device__ __forceinline__ float value_of(unsigned order)
{
    return __uint_as_float(order & 0x80000000u ? order ^ 0x80000000u : ~order);
}

/* most: registers of a lane, for 32 most experts. */
template <int most>
static __global__ void moe_route_kernel(const dsv2i_cuda_step *step, int *idx, float *weight, const float *logits, int n, dsv2i_route route)
{
    const int row = (int)(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32), lane = (int)threadIdx.x % 32, size = n / route.n_group;
    float p[most], sum = 0, total = 0;
    unsigned greatest = 0, value[most]; /* value: the order of p, or 0 for what may not be chosen */

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows)
        return;
    logits += (size_t)row * (size_t)n;
    idx += (size_t)row * (size_t)route.top_k;
    weight += (size_t)row * (size_t)route.top_k;
#pragma unroll
    for (int j = 0; j < most; j++)
        p[j] = 32 * j + lane < n ? logits[32 * j + lane] : __uint_as_float(0xFF800000u);
#pragma unroll
    for (int j = 0; j < most; j++)
        greatest = max(greatest, order(p[j]));
    const float top = value_of(__reduce_max_sync(DSV2I_ALL_LANES, greatest));
#pragma unroll
    for (int j = 0; j < most; j++) {
        p[j] = 32 * j + lane < n ? expf(p[j] - top) : 0.0f;
        sum += p[j];
        value[j] = 32 * j + lane < n ? order(p[j]) : 0;
    }
    sum = dsv2i_warp_sum(sum);

    if (route.topk_group < route.n_group) {
        int group[most];
        unsigned mine = 0, kept = 0; /* of group lane: its best expert's value; a bit for each kept group */

#pragma unroll
        for (int j = 0; j < most; j++)
            group[j] = (32 * j + lane) / size;
#pragma unroll 4
        for (int g = 0; g < route.n_group; g++) {
            unsigned best = 0;

#pragma unroll
            for (int j = 0; j < most; j++)
                best = group[j] == g ? max(best, value[j]) : best;
            best = __reduce_max_sync(DSV2I_ALL_LANES, best);
            mine = g == lane ? best : mine;
        }
        for (int k = 0; k < route.topk_group; k++) {
            const unsigned best = __reduce_max_sync(DSV2I_ALL_LANES, mine);
            const int g = __ffs((int)__ballot_sync(DSV2I_ALL_LANES, mine == best)) - 1;

            kept |= 1u << g;
            mine = g == lane ? 0 : mine;
        }
#pragma unroll
        for (int j = 0; j < most; j++)
            value[j] = 32 * j + lane < n && kept >> group[j] & 1 ? value[j] : 0;
    }
    const bool norm = route.norm_topk_prob && route.top_k > 1;
    for (int k = 0; k < route.top_k; k++) {
        unsigned best = 0;
        int at = 0;

#pragma unroll
        for (int j = 0; j < most; j++) {
            at = value[j] > best ? 32 * j + lane : at;
            best = max(best, value[j]);
        }
        const unsigned chosen = __reduce_max_sync(DSV2I_ALL_LANES, best);
        const int e = (int)(0xFFFFu - __reduce_max_sync(DSV2I_ALL_LANES, best == chosen ? 0xFFFFu - (unsigned)at : 0u));
        const float w = value_of(chosen) / sum;

#pragma unroll
        for (int j = 0; j < most; j++)
            value[j] = 32 * j + lane == e ? 0 : value[j];
        total += w;
        if (k % 32 == lane) {
            idx[k] = e;
            weight[k] = norm ? w : w * route.routed_scaling_factor;
        }
    }
    for (int k = lane; norm && k < route.top_k; k += 32) /* what this lane has written */
        weight[k] *= 1.0f / (total + 1e-20f);
}

cudaError_t dsv2i_cuda_moe_route(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, int32_t *idx, float *weight,
                                 const float *logits, int32_t n_experts, const struct dsv2i_route *route)
{
    const int rows = 4; /* of a block */
    const dim3 grid((unsigned)(to->max_rows + rows - 1) / rows);

    if (n_experts > 512 || route->n_group > 32)
        return cudaErrorInvalidValue;
    return dsv2i_launch(to, n_experts <= 64 ? moe_route_kernel<2> : n_experts <= 160 ? moe_route_kernel<5> : moe_route_kernel<16>, grid,
                        32 * rows, 0, step, idx, weight, logits, n_experts, *route);
}
