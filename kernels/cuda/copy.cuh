/* Copies from global to shared memory that run beside the thread that issues them.
 *
 * cp.async: a thread's copies belong to the group that its next commit closes; a wait is for this thread's own copies, so others need a
 * barrier after it.  Until the wait the source must not change, and the target is neither old nor new.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_COPY_CUH
#define DSV2I_CUDA_COPY_CUH

#include "device.cuh"

#ifdef __CUDACC__

/* An address in shared memory as PTX has it. */
__device__ __forceinline__ uint32_t dsv2i_shared_address(const void *at) { return (uint32_t)__cvta_generic_to_shared(at); }

/* size bytes (4, 8 or 16, to which both addresses are aligned), of which from_size are read and the others become 0.  16 bytes go
 * through the L2 cache only. */
template <int size> __device__ __forceinline__ void dsv2i_copy(void *to, const void *from, int from_size = size)
{
    static_assert(size == 4 || size == 8 || size == 16, "what cp.async can");
    if (size == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     ::"r"(dsv2i_shared_address(to)), "l"(from), "r"(from_size) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                     ::"r"(dsv2i_shared_address(to)), "l"(from), "n"(size), "r"(from_size) : "memory");
}

__device__ __forceinline__ void dsv2i_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/* Until at most the newest but_for groups are under way. */
template <int but_for> __device__ __forceinline__ void dsv2i_copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(but_for) : "memory"); }

/* Until no copy is under way, committed or not. */
__device__ __forceinline__ void dsv2i_copy_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#else
#include "copy_emulated.h"
#endif

#endif
