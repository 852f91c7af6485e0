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
void mbarrier_init(uint64_t *barrier, unsigned count);
void mbarrier_arrive(uint64_t *barrier, unsigned bytes);
void mbarrier_wait(uint64_t *barrier, unsigned parity);
void fence_async();
void copy_bulk(void *to, const void *from, unsigned bytes, uint64_t *barrier);
}

template <int size> static inline void dsv2i_copy(void *to, const void *from, int from_size = size)
{
    static_assert(size == 4 || size == 8 || size == 16, "what cp.async can");
    emu::copy(to, from, size, (unsigned)from_size);
}
static inline void dsv2i_copy_commit() { emu::copy_commit(); }
template <int but_for> static inline void dsv2i_copy_wait() { emu::copy_wait(but_for); }
static inline void dsv2i_copy_wait_all() { emu::copy_wait_all(); }

static inline uint32_t dsv2i_shared_address(const void *at)
{
    return (uint32_t)(static_cast<const char *>(at) - static_cast<const char *>(emu::shared_memory()));
}

static inline void dsv2i_mbarrier_init(uint64_t *barrier, int count) { emu::mbarrier_init(barrier, (unsigned)count); }
static inline void dsv2i_fence_async() { emu::fence_async(); }
static inline void dsv2i_mbarrier_arrive(uint64_t *barrier) { emu::mbarrier_arrive(barrier, 0); }
static inline void dsv2i_mbarrier_arrive_expect(uint64_t *barrier, int bytes) { emu::mbarrier_arrive(barrier, (unsigned)bytes); }
static inline void dsv2i_mbarrier_wait(uint64_t *barrier, int parity) { emu::mbarrier_wait(barrier, (unsigned)parity); }
static inline void dsv2i_copy_bulk(void *to, const void *from, int bytes, uint64_t *barrier)
{
    emu::copy_bulk(to, from, (unsigned)bytes, barrier);
}

#endif
