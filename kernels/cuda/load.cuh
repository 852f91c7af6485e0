/* Reading an element of a weight.
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
    return dsv2i_f32_from_f16(((const uint16_t *)data)[i]);
}

#endif
