/* What attention needs of the records of a KV page (kv_page.h): their elements, and the rotation of 6BIT.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_KV_READ_CUH
#define DSV2I_CUDA_KV_READ_CUH

#include "convert.cuh"
#include "kernels.h"
#include "warp.cuh"

static __constant__ float dsv2i_levels[16] = DSV2I_KV_LEVELS;

/* H x, and D x, in each of the blocks of m elements that a warp holds, element 32 j + lane in register j. */
template <int n> __device__ __forceinline__ void dsv2i_hadamard(float (&x)[n], int m)
{
    int lane = (int)threadIdx.x % 32;

#pragma unroll
    for (int d = n / 2; d > 0; d /= 2) /* registers apart */
        if (32 * d < m)
#pragma unroll
            for (int j = 0; j < n; j++)
                if (!(j & d) && j + d < n) {
                    float a = x[j], b = x[j + d];

                    x[j] = a + b;
                    x[j + d] = a - b;
                }
#pragma unroll
    for (int d = 16; d > 0; d /= 2) /* lanes apart */
        if (d < m)
#pragma unroll
            for (int j = 0; j < n; j++) {
                float other = __shfl_xor_sync(DSV2I_ALL_LANES, x[j], d);

                x[j] = lane & d ? other - x[j] : x[j] + other;
            }
}

template <int n> __device__ __forceinline__ void dsv2i_negate(float (&x)[n], int m)
{
    int lane = (int)threadIdx.x % 32;

#pragma unroll
    for (int j = 0; j < n; j++)
        x[j] = __uint_as_float(__float_as_uint(x[j]) ^ dsv2i_kv_negative((unsigned)((32 * j + lane) & (m - 1))) << 31);
}

/* y = H D x, and x = D H y, so held. */
template <int n> __device__ __forceinline__ void dsv2i_rotate(float (&x)[n], int m)
{
    dsv2i_negate(x, m);
    dsv2i_hadamard(x, m);
}
template <int n> __device__ __forceinline__ void dsv2i_rotate_back(float (&x)[n], int m)
{
    dsv2i_hadamard(x, m);
    dsv2i_negate(x, m);
}

/* mla_decode serves the sequence. */
__device__ __forceinline__ bool dsv2i_decoded(const dsv2i_seq &seq)
{
    return seq.form == DSV2I_ABSORBED && seq.kv_type != DSV2I_KV_F32;
}

/* Element i of a record: of c, or of y for 6BIT; from rank on of k. */
__device__ __forceinline__ float dsv2i_kv_element(const unsigned char *record, const struct dsv2i_kv_record &r, int kv_type, int rank,
                                                  int i)
{
    if (kv_type == DSV2I_KV_F32)
        return ((const float *)record)[i];
    if (kv_type == DSV2I_KV_BF16)
        return dsv2i_f32_from_bf16(((const uint16_t *)record)[i]);
    const float *scale = (const float *)(record + r.scale);
    if (kv_type == DSV2I_KV_6BIT && i < rank) {
        int block = i / DSV2I_KV_BLOCK, in = i % DSV2I_KV_BLOCK;
        float y = dsv2i_levels[record[16 * block + in % 16] >> (in < 16 ? 0 : 4) & 15] * scale[0];

        return record[r.sign + (size_t)(4 * block + in / 8)] >> in % 8 & 1 ? -y : y;
    }
    unsigned char code = i < rank ? record[i] : record[r.key + (size_t)(i - rank)];
    float x = kv_type == DSV2I_KV_F8_E4M3 ? dsv2i_f32_from_e4m3(code)
            : kv_type == DSV2I_KV_F8_E5M2 ? dsv2i_f32_from_e5m2(code)
                                          : (float)(int8_t)code;
    return x * scale[i < rank ? 0 : 1];
}

#endif
