/* The functions of kernels/cuda/wgmma.cuh on the emulated machine.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2_EMULATION_WGMMA_H
#define DSV2_EMULATION_WGMMA_H

#include <cuda_runtime.h>

namespace emu {
void meet_warp(const char *what);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(unsigned but_for); /* groups */
/* registers: of A, or null for one that lies at a_at. */
void wgmma(float *d, unsigned n, const uint32_t *registers, uint64_t a_at, uint64_t b_at, bool b_along_n, bool accumulate);
}

template <int registers> static inline void dsv2i_fewer_registers()
{
    static_assert(registers % 8 == 0 && registers >= 24 && registers <= 240, "what setmaxnreg can");
    emu::meet_warp("setmaxnreg");
}
template <int registers> static inline void dsv2i_more_registers() { dsv2i_fewer_registers<registers>(); }
static inline void dsv2i_wgmma_fence() { emu::wgmma_fence(); }
static inline void dsv2i_wgmma_commit() { emu::wgmma_commit(); }
template <int but_for, class... D> static inline void dsv2i_wgmma_wait(D &...) { emu::wgmma_wait(but_for); }
template <bool b_along_n, unsigned count>
static inline void dsv2i_wgmma_bf16(float (&d)[count], uint64_t a_at, uint64_t b_at, bool accumulate)
{
    emu::wgmma(d, 2 * count, nullptr, a_at, b_at, b_along_n, accumulate);
}
template <bool b_along_n, unsigned count>
static inline void dsv2i_wgmma_bf16(float (&d)[count], const uint32_t (&a)[4], uint64_t b_at, bool accumulate)
{
    emu::wgmma(d, 2 * count, a, 0, b_at, b_along_n, accumulate);
}

#endif
