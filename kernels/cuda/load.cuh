/* Reading elements of a weight and of activations.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_LOAD_CUH
#define DSV2I_CUDA_LOAD_CUH

#include "convert.cuh"
#include "device.cuh"
#include "kernels.h"

template <int dtype> __device__ __forceinline__ float dsv2i_load(const void *data, size_t i)
{
    if (dtype == DSV2I_F32)
        return ((const float *)data)[i];
    if (dtype == DSV2I_BF16)
        return dsv2i_f32_from_bf16(((const uint16_t *)data)[i]);
    return dsv2i_f32_from_f16(((const uint16_t *)data)[i]);
}

/* width (8 or 1) elements of a weight's row from column col on; 8 of them are aligned and read past the first-level cache. */
template <int dtype, int width> __device__ __forceinline__ void dsv2i_load_weight(float (&to)[width], const void *row, int col)
{
    if (width == 1) {
        to[0] = dsv2i_load<dtype>(row, (size_t)col);
    } else if (dtype == DSV2I_F32) {
        const float4 *from = (const float4 *)((const float *)row + col);
#pragma unroll
        for (int i = 0; i < width / 4; i++) {
            float4 v = __ldg(from + i);
            to[4 * i] = v.x, to[4 * i + 1] = v.y, to[4 * i + 2] = v.z, to[4 * i + 3] = v.w;
        }
    } else {
        uint4 v = dsv2i_load_once((const uint16_t *)row + col);
        const unsigned pair[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < width / 2; i++) {
            float2 two = dtype == DSV2I_BF16 ? dsv2i_f32x2_from_bf16x2(pair[i]) : dsv2i_f32x2_from_f16x2(pair[i]);
            to[2 * i] = two.x, to[2 * i + 1] = two.y;
        }
    }
}

/* The same many of x. */
template <int width> __device__ __forceinline__ void dsv2i_load_x(float (&to)[width], const float *from)
{
    if (width == 1) {
        to[0] = *from;
    } else {
#pragma unroll
        for (int i = 0; i < width / 4; i++) {
            float4 v = ((const float4 *)from)[i];
            to[4 * i] = v.x, to[4 * i + 1] = v.y, to[4 * i + 2] = v.z, to[4 * i + 3] = v.w;
        }
    }
}

#endif
