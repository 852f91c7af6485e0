/* Copies from global to shared memory that run beside the thread that issues them.
 *
 * cp.async: a thread's copies belong to the group that its next commit closes; a wait is for this thread's own copies, so others need a
 * barrier after it.  Until the wait the source must not change, and the target is neither old nor new.
 *
 * mbarrier and bulk copies (sm_90): an mbarrier is 8 bytes of shared memory, aligned to 8.  Its phase ends when count threads have
 * arrived and all bytes that were announced have landed; the next begins at once.  Phases count from 0, and a wait is for the end of the
 * last phase of that parity: wait(0) for the first phase, wait(1) returns at once until then.  One thread inits it and fences, then comes
 * a barrier of the block.  Its memory serves nothing else in that launch.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_COPY_CUH
#define DSV2I_CUDA_COPY_CUH

#include "device.cuh"

/* A panel in shared memory: rows of 64 elements of 2 bytes, which ldmatrix reads without conflicts, and wgmma as swizzled by 128 bytes. */
enum { DSV2I_PANEL = 64 };

/* Where unit u (16 bytes) of row r lies in it, in elements.  Unit u + 2 i of the row, u at most 1, lies at that ^ 16 i. */
__device__ __forceinline__ int dsv2i_panel_unit(int r, int u) { return r * DSV2I_PANEL + (u ^ (r & 7)) * 8; }

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
template <int but_for> __device__ __forceinline__ void dsv2i_copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(but_for) : "memory");
}

/* Until no copy is under way, committed or not. */
__device__ __forceinline__ void dsv2i_copy_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#if __CUDA_ARCH__ >= 900
#define DSV2I_SM90(...) asm volatile(__VA_ARGS__)
#else
#define DSV2I_SM90(...) __trap()
#endif

__device__ __forceinline__ void dsv2i_mbarrier_init(uint64_t *barrier, int count)
{
    DSV2I_SM90("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(dsv2i_shared_address(barrier)), "r"(count) : "memory");
}

/* What this thread has done to shared memory by loads and stores comes before what bulk copies do to it later. */
__device__ __forceinline__ void dsv2i_fence_async() { DSV2I_SM90("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void dsv2i_mbarrier_arrive(uint64_t *barrier)
{
    DSV2I_SM90("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(dsv2i_shared_address(barrier)) : "memory");
}

/* And this phase has bytes more to wait for. */
__device__ __forceinline__ void dsv2i_mbarrier_arrive_expect(uint64_t *barrier, int bytes)
{
    DSV2I_SM90("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }"
               ::"r"(dsv2i_shared_address(barrier)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void dsv2i_mbarrier_wait(uint64_t *barrier, int parity)
{
    uint32_t done = 1;

    do
        DSV2I_SM90("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                   : "=r"(done) : "r"(dsv2i_shared_address(barrier)), "r"(parity) : "memory");
    while (!done);
}

/* bytes and both addresses are multiples of 16.  One thread issues it; what lands counts for the barrier's phase. */
__device__ __forceinline__ void dsv2i_copy_bulk(void *to, const void *from, int bytes, uint64_t *barrier)
{
    DSV2I_SM90("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(dsv2i_shared_address(to)), "l"(from), "r"(bytes), "r"(dsv2i_shared_address(barrier)) : "memory");
}

#else
#include "copy_emulated.h"
#endif

/* For the warp, when all its lanes are done. */
__device__ __forceinline__ void dsv2i_mbarrier_arrive_warp(uint64_t *barrier)
{
    __syncwarp();
    if (dsv2i_lane() == 0)
        dsv2i_mbarrier_arrive(barrier);
}

#endif
