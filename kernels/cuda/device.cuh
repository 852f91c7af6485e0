/* What kernels may use beyond CUDA C++: the hardware's own instructions, each in one place.  Built by nvcc they are PTX; built by a
 * host compiler against tests/emulation they are its functions of the same names (device_emulated.h), by the PTX manual.
 *
 * Shared memory is dynamic only: one block of bytes whose size the launch gives, so that its bounds can be watched.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_DEVICE_CUH
#define DSV2I_CUDA_DEVICE_CUH

#include <cuda_runtime.h>

#include <stdint.h>

#ifdef __CUDACC__

/* The block's shared memory, aligned to 1,024 bytes. */
__device__ __forceinline__ void *dsv2i_shared()
{
    extern __shared__ __align__(1024) unsigned char dsv2i_shared_bytes[];
    return dsv2i_shared_bytes;
}

/* Programmatic dependent launch (PTX griddepcontrol, sm_90): wait until the launch before has ended and its writes can be seen; say that
 * the launch after may begin. */
__device__ __forceinline__ void dsv2i_wait_dependency()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void dsv2i_launch_dependents()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* Barrier of threads threads, whole warps, of the block; barriers 1 to 15 are free. */
__device__ __forceinline__ void dsv2i_named_barrier(int barrier, int threads)
{
    asm volatile("barrier.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/* Be one of those threads, and do not wait for the others. */
__device__ __forceinline__ void dsv2i_named_arrive(int barrier, int threads)
{
    asm volatile("barrier.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/* x, but the compiler does not know: what is made of it is made anew, not kept in registers from before a loop. */
__device__ __forceinline__ int dsv2i_anew(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}

__device__ __forceinline__ unsigned dsv2i_lane()
{
    unsigned lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

/* 2^x and 1 / x to about 22 bits; subnormals are 0. */
__device__ __forceinline__ float dsv2i_exp2(float x)
{
    float d;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}
__device__ __forceinline__ float dsv2i_reciprocal(float x)
{
    float d;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}

/* 16, 8 or 4 bytes of global memory, aligned, that no one writes during the launch and this one does not read again.  Not ld.global.nc:
 * ptxas moves that behind a griddepcontrol.wait that follows. */
__device__ __forceinline__ uint4 dsv2i_load_once(const void *from)
{
    uint4 d;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(d.x), "=r"(d.y), "=r"(d.z), "=r"(d.w) : "l"(from));
    return d;
}
__device__ __forceinline__ uint2 dsv2i_load_once_8(const void *from)
{
    uint2 d;
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(d.x), "=r"(d.y) : "l"(from));
    return d;
}
__device__ __forceinline__ uint32_t dsv2i_load_once_4(const void *from)
{
    uint32_t d;
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(d) : "l"(from));
    return d;
}

/* Bring the line into the L2 cache. */
__device__ __forceinline__ void dsv2i_prefetch(const void *from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

#else
#include "device_emulated.h"
#endif

#endif
