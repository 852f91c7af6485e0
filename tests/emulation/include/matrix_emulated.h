/* The functions of kernels/cuda/matrix.cuh on the emulated machine.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2_EMULATION_MATRIX_H
#define DSV2_EMULATION_MATRIX_H

#include <cuda_runtime.h>

namespace emu {
enum class Type { bf16, f16, tf32, e4m3, e5m2 };
void ldmatrix(uint32_t *r, unsigned tiles, bool trans, const void *row);
void mma(float *d, const uint32_t *a, Type of_a, const uint32_t *b, Type of_b);
void mma_s8(int32_t *d, const uint32_t *a, const uint32_t *b);
}

template <unsigned n> static inline void dsv2i_ldmatrix(uint32_t (&r)[n], const void *row) { emu::ldmatrix(r, n, false, row); }
template <unsigned n> static inline void dsv2i_ldmatrix_trans(uint32_t (&r)[n], const void *row) { emu::ldmatrix(r, n, true, row); }

#define EMU_MMA(name, of_a, of_b) \
    static inline void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) \
    { \
        emu::mma(d, a, emu::Type::of_a, b, emu::Type::of_b); \
    }
EMU_MMA(dsv2i_mma_bf16, bf16, bf16)
EMU_MMA(dsv2i_mma_f16, f16, f16)
EMU_MMA(dsv2i_mma_tf32, tf32, tf32)
EMU_MMA(dsv2i_mma_e4m3, e4m3, e4m3)
EMU_MMA(dsv2i_mma_e5m2, e5m2, e5m2)
EMU_MMA(dsv2i_mma_e4m3_e5m2, e4m3, e5m2)
EMU_MMA(dsv2i_mma_e5m2_e4m3, e5m2, e4m3)
#undef EMU_MMA
static inline void dsv2i_mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emu::mma_s8(d, a, b); }

#endif
