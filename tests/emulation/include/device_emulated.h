/* The functions of kernels/cuda/device.cuh on the emulated machine.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2_EMULATION_DEVICE_H
#define DSV2_EMULATION_DEVICE_H

#include <cuda_runtime.h>

namespace emu {
void arrive(unsigned barrier, unsigned threads);
void global_read(const void *at, unsigned size); /* fails if that are not size aligned bytes of global memory */
}

static inline void *dsv2i_shared() { return emu::shared_memory(); }
static inline void dsv2i_wait_dependency() { emu::wait_dependency(); }
static inline void dsv2i_launch_dependents() {} /* followers begin when the machine likes */
static inline void dsv2i_named_barrier(int barrier, int threads) { emu::sync_threads((unsigned)barrier, (unsigned)threads); }
static inline void dsv2i_named_arrive(int barrier, int threads) { emu::arrive((unsigned)barrier, (unsigned)threads); }
static inline int dsv2i_anew(int x) { return x; }
static inline unsigned dsv2i_lane() { return emu::lane(); }
static inline float dsv2i_exp2(float x) { return exp2f(x); }
static inline float dsv2i_reciprocal(float x) { return 1 / x; }
namespace emu {
template <class T> T load_once(const void *from)
{
    global_read(from, sizeof(T));
    return *static_cast<const T *>(from);
}
}
static inline uint4 dsv2i_load_once(const void *from) { return emu::load_once<uint4>(from); }
static inline uint2 dsv2i_load_once_8(const void *from) { return emu::load_once<uint2>(from); }
static inline uint32_t dsv2i_load_once_4(const void *from) { return emu::load_once<uint32_t>(from); }
static inline void dsv2i_prefetch(const void *) {}

#endif
