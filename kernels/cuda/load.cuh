/* Reading elements of a weight, and rounding to bf16.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_LOAD_CUH
#define DSV2I_CUDA_LOAD_CUH

#include "device.cuh"
#include "kernels.h"

__device__ __forceinline__ float dsv2i_f32_of_bf16(uint16_t h)
{
    return __uint_as_float((unsigned)h << 16);
}

/* The exponent's place is right after the shift, its bias 112 too small; denormals become ordinary by the way. */
__device__ __forceinline__ float dsv2i_f32_of_f16(uint16_t h)
{
    unsigned magnitude = h & 0x7FFFu;

    if (magnitude >= 0x7C00u)
        return __uint_as_float((unsigned)(h & 0x8000u) << 16 | 0x7F800000u | (magnitude & 0x3FFu) << 13);
    return __uint_as_float(__float_as_uint(__uint_as_float(magnitude << 13) * 0x1p112f) | (unsigned)(h & 0x8000u) << 16);
}

/* Round to nearest even; a NaN stays one. */
__device__ __forceinline__ uint16_t dsv2i_bf16_of_f32(float f)
{
    unsigned u = __float_as_uint(f);

    if ((u & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
}

template <int dtype> __device__ __forceinline__ float dsv2i_load(const void *data, size_t i)
{
    if (dtype == DSV2I_F32)
        return ((const float *)data)[i];
    if (dtype == DSV2I_BF16)
        return dsv2i_f32_of_bf16(((const uint16_t *)data)[i]);
    return dsv2i_f32_of_f16(((const uint16_t *)data)[i]);
}

#endif
