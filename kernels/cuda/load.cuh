/* Reading a weight: an element, and where its scale is.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_LOAD_CUH
#define DSV2I_CUDA_LOAD_CUH

#include "convert.cuh"
#include "kernels.h"

template <int dtype> __device__ __forceinline__ float dsv2i_load(const void *data, size_t i)
{
    if (dtype == DSV2I_F32)
        return ((const float *)data)[i];
    if (dtype == DSV2I_BF16)
        return dsv2i_f32_from_bf16(((const uint16_t *)data)[i]);
    if (dtype == DSV2I_F16)
        return dsv2i_f32_from_f16(((const uint16_t *)data)[i]);
    return dsv2i_f32_from_e4m3(((const uint8_t *)data)[i]); /* yet without its scale */
}

/* Column col's scale is dsv2i_scale_of(col, dsv2i_per_scale(scale_cols, cols)) of its row's: col / scale_cols without a division.  As
 * scale_cols is 32 n (or cols), that is floor(col / 32 / n); with ceil(2^31 / n) for 2^31 / n the error is below col / 32 / 2^31, too
 * little to reach the next number while cols is below 2^20. */
__device__ __forceinline__ uint32_t dsv2i_per_scale(int scale_cols, int cols)
{
    uint32_t n = (uint32_t)scale_cols / DSV2I_SCALE_COLS;

    return scale_cols >= cols ? 0 : (0x80000000u + n - 1) / n;
}

__device__ __forceinline__ uint32_t dsv2i_scale_of(int col, uint32_t per_scale)
{
    return __umulhi((uint32_t)col / DSV2I_SCALE_COLS * 2, per_scale);
}

#endif
