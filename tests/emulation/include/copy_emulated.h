/* The functions of kernels/cuda/copy.cuh on the emulated machine.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2_EMULATION_COPY_H
#define DSV2_EMULATION_COPY_H

#include <cuda_runtime.h>

namespace emu {
void copy(void *to, const void *from, unsigned size, unsigned from_size);
void copy_commit();
void copy_wait(unsigned but_for); /* groups */
void copy_wait_all();
}

template <int size> static inline void dsv2i_copy(void *to, const void *from, int from_size = size)
{
    static_assert(size == 4 || size == 8 || size == 16, "what cp.async can");
    emu::copy(to, from, size, (unsigned)from_size);
}
static inline void dsv2i_copy_commit() { emu::copy_commit(); }
template <int but_for> static inline void dsv2i_copy_wait() { emu::copy_wait(but_for); }
static inline void dsv2i_copy_wait_all() { emu::copy_wait_all(); }

#endif
