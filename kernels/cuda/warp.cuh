/* Sums and maxima over a warp and a block, in an order that does not change: the same bits in every run.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_WARP_CUH
#define DSV2I_CUDA_WARP_CUH

#include "device.cuh"

#define DSV2I_ALL_LANES 0xFFFFFFFFu

/* By halves; all lanes get the same bits, as addition commutes. */
template <class T> __device__ __forceinline__ T dsv2i_warp_sum(T x)
{
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
        x += __shfl_xor_sync(DSV2I_ALL_LANES, x, d);
    return x;
}

template <class T> __device__ __forceinline__ T dsv2i_warp_max(T x)
{
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        T other = __shfl_xor_sync(DSV2I_ALL_LANES, x, d);
        x = other > x ? other : x;
    }
    return x;
}

/* For all threads of a block of whole warps.  parts: 32 floats of shared memory that nobody else uses; may be called again at once
 * only with other parts. */
__device__ __forceinline__ float dsv2i_block_sum(float x, float *parts)
{
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;

    x = dsv2i_warp_sum(x);
    if (lane == 0)
        parts[warp] = x;
    __syncthreads();
    return dsv2i_warp_sum(lane < warps ? parts[lane] : 0.0f);
}

#endif
