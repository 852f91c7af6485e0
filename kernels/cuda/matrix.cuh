/* Matrix products of a warp: ldmatrix brings 8 by 8 tiles of shared memory into the registers of 32 lanes, mma multiplies what lies so.
 * All lanes of the warp call together.
 *
 * With g = lane / 4 and t = lane % 4, and a register's elements in order from its low bits:
 *   A, 16 rows:      register i has row g + 8 (i % 2), bytes 4 t + 16 (i / 2) and the three after, of a row of 32 bytes;
 *   B, 8 columns:    register i has column g, bytes 4 t + 16 i and the three after, of a column of 32 bytes;
 *   C and D, 16 by 8: element i has row g + 8 (i / 2), column 2 t + i % 2.
 * So k is 16 for two bytes an element, 32 for one, 8 for tf32.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_MATRIX_CUH
#define DSV2I_CUDA_MATRIX_CUH

#include "copy.cuh"

#ifdef __CUDACC__

/* Tiles of 8 rows of 16 bytes.  Lane i gives the address of row i % 8 of tile i / 8, a multiple of 16; of fewer than four tiles, lanes
 * from 8 * tiles on give anything valid.  Register i gets, 16 bits each, elements 2 t and 2 t + 1 of row g of tile i, or (trans) of its
 * column g. */
__device__ __forceinline__ void dsv2i_ldmatrix(uint32_t (&r)[1], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(dsv2i_shared_address(row)) : "memory");
}
__device__ __forceinline__ void dsv2i_ldmatrix(uint32_t (&r)[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(dsv2i_shared_address(row)) : "memory");
}
__device__ __forceinline__ void dsv2i_ldmatrix(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(dsv2i_shared_address(row)) : "memory");
}
__device__ __forceinline__ void dsv2i_ldmatrix_trans(uint32_t (&r)[1], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(dsv2i_shared_address(row)) : "memory");
}
__device__ __forceinline__ void dsv2i_ldmatrix_trans(uint32_t (&r)[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(dsv2i_shared_address(row)) : "memory");
}
__device__ __forceinline__ void dsv2i_ldmatrix_trans(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(dsv2i_shared_address(row)) : "memory");
}

/* D += A B.  What the card lacks traps. */
#define DSV2I_MMA(name, shape_and_types, number, constraint) \
    __device__ __forceinline__ void name(number (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) \
    { \
        asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                     : "+" constraint(d[0]), "+" constraint(d[1]), "+" constraint(d[2]), "+" constraint(d[3]) \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
    }
DSV2I_MMA(dsv2i_mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", float, "f")
DSV2I_MMA(dsv2i_mma_f16, "m16n8k16.row.col.f32.f16.f16.f32", float, "f")
DSV2I_MMA(dsv2i_mma_s8, "m16n8k32.row.col.s32.s8.s8.s32", int32_t, "r")
#if __CUDA_ARCH__ >= 890
#define DSV2I_MMA_FP8 DSV2I_MMA
#else
#define DSV2I_MMA_FP8(name, shape_and_types, number, constraint) \
    __device__ __forceinline__ void name(number (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]) { __trap(); }
#endif
DSV2I_MMA_FP8(dsv2i_mma_e4m3, "m16n8k32.row.col.f32.e4m3.e4m3.f32", float, "f")
DSV2I_MMA_FP8(dsv2i_mma_e5m2, "m16n8k32.row.col.f32.e5m2.e5m2.f32", float, "f")
DSV2I_MMA_FP8(dsv2i_mma_e4m3_e5m2, "m16n8k32.row.col.f32.e4m3.e5m2.f32", float, "f")
DSV2I_MMA_FP8(dsv2i_mma_e5m2_e4m3, "m16n8k32.row.col.f32.e5m2.e4m3.f32", float, "f")
#undef DSV2I_MMA_FP8
DSV2I_MMA(dsv2i_mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32", float, "f")
#undef DSV2I_MMA

#else
#include "matrix_emulated.h"
#endif

#endif
