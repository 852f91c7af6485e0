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

#else
#include "device_emulated.h"
#endif

#endif
