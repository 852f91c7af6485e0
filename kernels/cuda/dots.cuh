/* Products of a few rows of a weight with a few of activations, by one warp: what decode kernels are made of.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_DOTS_CUH
#define DSV2I_CUDA_DOTS_CUH

#include "load.cuh"
#include "warp.cuh"

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

/* Row row of a weight (rows, cols). */
template <int dtype> __device__ __forceinline__ const void *dsv2i_row(const void *w, int row, int cols)
{
    return (const char *)w + (size_t)row * (size_t)cols * (dtype == DSV2I_F32 ? 4 : 2);
}

/* sum[r][i] = w[r] . x[i], in all lanes, for the n <= rows rows of x, ldx apart; the warp takes every parts-th piece of 32 * width columns,
 * from part on. */
template <int dtype, int width, int held, int rows>
__device__ __forceinline__ void dsv2i_dots(float (&sum)[held][rows], const void *const (&w)[held], const float *x, int ldx, int n, int cols,
                                           int part, int parts)
{
#pragma unroll
    for (int r = 0; r < held; r++)
#pragma unroll
        for (int i = 0; i < rows; i++)
            sum[r][i] = 0;
    for (int col = (part * 32 + (int)threadIdx.x % 32) * width; col < cols; col += parts * 32 * width) {
        float a[held][width];

#pragma unroll
        for (int r = 0; r < held; r++)
            dsv2i_load_weight<dtype, width>(a[r], w[r], col);
#pragma unroll
        for (int i = 0; i < rows; i++)
            if (i < n) {
                float b[width];

                dsv2i_load_x(b, x + (size_t)i * (size_t)ldx + col);
#pragma unroll
                for (int r = 0; r < held; r++)
#pragma unroll
                    for (int k = 0; k < width; k++)
                        sum[r][i] = fmaf(a[r][k], b[k], sum[r][i]);
            }
    }
#pragma unroll
    for (int r = 0; r < held; r++)
#pragma unroll
        for (int i = 0; i < rows; i++)
            sum[r][i] = dsv2i_warp_sum(sum[r][i]);
}

#endif
