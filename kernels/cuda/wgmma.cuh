/* Matrix products of a warpgroup (sm_90a): 128 threads, warps 4 i to 4 i + 3, multiply (64, 16) by (16, n) bf16 in shared memory beside
 * what they do next.  All of them call together.
 *
 * Thread with warp w of the group, g = lane / 4 and t = lane % 4: d[i] is of row 16 w + g + 8 (i / 2 % 2), column 8 (i / 4) + 2 t + i % 2;
 * A in registers as in matrix.cuh, rows from 16 w on.
 *
 * Before the first product, and after d or A's registers were touched, a fence; after stores to A or B, dsv2i_fence_async and then a
 * barrier.  From the product until the wait, d, A and B are not to be touched.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_WGMMA_CUH
#define DSV2I_CUDA_WGMMA_CUH

#include "copy.cuh"

/* Where a matrix lies.  In units of 16 bytes, 8 elements, of which rows of swizzle bytes (0, 32, 64, 128) are made, 8 rows a tile; unit u
 * of row r of a tile lies at r * swizzle + 16 (u ^ r * swizzle / 128), tiles aligned to their size; without swizzle a row is one unit.
 *   Rows along k: tiles are stride apart along m or n, units along k follow each other, or are leading apart without swizzle.
 *   Rows along n: tiles are stride apart along k and leading along n; without swizzle the other way round. */
__device__ __forceinline__ uint64_t dsv2i_wgmma_matrix(const void *at, int leading, int stride, int swizzle)
{
    uint64_t mode = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;

    return (uint64_t)(dsv2i_shared_address(at) >> 4 & 0x3FFF) | (uint64_t)(leading >> 4 & 0x3FFF) << 16
           | (uint64_t)(stride >> 4 & 0x3FFF) << 32 | mode << 62;
}

#ifdef __CUDACC__

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define DSV2I_SM90A(...) asm volatile(__VA_ARGS__)
#else
#define DSV2I_SM90A(...) __trap()
#endif

/* All four warps of a warpgroup: go on with so many registers a thread, a multiple of 8 from 24 to 240, fewer or more than before.  More
 * are there when others of the block have given them up. */
template <int registers> __device__ __forceinline__ void dsv2i_fewer_registers()
{
    DSV2I_SM90A("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers> __device__ __forceinline__ void dsv2i_more_registers()
{
    DSV2I_SM90A("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

__device__ __forceinline__ void dsv2i_wgmma_fence() { DSV2I_SM90A("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void dsv2i_wgmma_commit() { DSV2I_SM90A("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int n> __device__ __forceinline__ void dsv2i_wgmma_done(float (&d)[n])
{
#pragma unroll
    for (int i = 0; i < n; i++)
        asm volatile("" : "+f"(d[i]));
}

/* Until at most the newest but_for groups are under way.  done: every d that may be read now.  The compiler does not know by itself that it
 * must not read them before. */
template <int but_for, int... n> __device__ __forceinline__ void dsv2i_wgmma_wait(float (&...done)[n])
{
    DSV2I_SM90A("wgmma.wait_group.sync.aligned %0;" ::"n"(but_for) : "memory");
    (dsv2i_wgmma_done(done), ...);
}

/* D = A B, or with accumulate += A B; A's rows are along k, B's along n or k.  n is twice d's length. */
#define DSV2I_D8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define DSV2I_D32(i) DSV2I_D8(i), DSV2I_D8(i + 8), DSV2I_D8(i + 16), DSV2I_D8(i + 24)
#define DSV2I_NAMES32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DSV2I_NAMES64 \
    DSV2I_NAMES32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define DSV2I_NAMES128 \
    DSV2I_NAMES64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define DSV2I_WGMMA(count, n, names, outputs, a, b, accumulate_, b_along_n_, from, b_from, accumulate_from, b_along_n_from) \
    template <bool b_along_n> \
    __device__ __forceinline__ void dsv2i_wgmma_bf16(float (&d)[count], uint64_t a_at, uint64_t b_at, bool accumulate) \
    { \
        DSV2I_SM90A("{ .reg .pred p; setp.ne.b32 p, " accumulate_ ", 0; wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" \
                    names "}, " a ", " b ", p, 1, 1, 0, " b_along_n_ "; }" \
                    : outputs : "l"(a_at), "l"(b_at), "r"((int)accumulate), "n"((int)b_along_n) : "memory"); \
    } \
    template <bool b_along_n> \
    __device__ __forceinline__ void dsv2i_wgmma_bf16(float (&d)[count], const uint32_t (&ra)[4], uint64_t b_at, bool accumulate) \
    { \
        DSV2I_SM90A("{ .reg .pred p; setp.ne.b32 p, " accumulate_from ", 0; wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" \
                    names "}, {" from "}, " b_from ", p, 1, 1, " b_along_n_from "; }" \
                    : outputs : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "l"(b_at), "r"((int)accumulate), "n"((int)b_along_n) \
                    : "memory"); \
    }
#define DSV2I_COMMA ,
DSV2I_WGMMA(32, "64", DSV2I_NAMES32, DSV2I_D32(0), "%32", "%33", "%34", "%35", "%32, %33, %34, %35", "%36", "%37", "%38")
DSV2I_WGMMA(64, "128", DSV2I_NAMES64, DSV2I_D32(0) DSV2I_COMMA DSV2I_D32(32), "%64", "%65", "%66", "%67", "%64, %65, %66, %67", "%68",
            "%69", "%70")
DSV2I_WGMMA(128, "256", DSV2I_NAMES128, DSV2I_D32(0) DSV2I_COMMA DSV2I_D32(32) DSV2I_COMMA DSV2I_D32(64) DSV2I_COMMA DSV2I_D32(96),
            "%128", "%129", "%130", "%131", "%128, %129, %130, %131", "%132", "%133", "%134")
#undef DSV2I_WGMMA
#undef DSV2I_COMMA
#undef DSV2I_NAMES128
#undef DSV2I_NAMES64
#undef DSV2I_NAMES32
#undef DSV2I_D32
#undef DSV2I_D8

#else
#include "wgmma_emulated.h"
#endif

#endif
