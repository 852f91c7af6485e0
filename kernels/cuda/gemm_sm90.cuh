/* The tile of gemm.cuh with the products of warpgroups (sm_90a): each has 64 rows of x against all n rows of W, which the tensor cores read
 * from shared memory themselves.  Rows of 128 bytes whose units are exchanged as gemm.cuh has them are what wgmma calls a swizzle of 128
 * bytes, so copies, widening and what is done with the sums are the same.
 *
 * A step's products begin before those of the step before have ended; once these have, in both warpgroups, their stage is free:
 *
 *     step s      copies landed | barrier | begin products s | wait for products s - 1 | copy step s + stages - 2 over step s - 2
 *
 * The order in which a k of 16 is added up is the hardware's, and may be another than mma's: not for launches that are to be invariant.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_GEMM_SM90_CUH
#define DSV2I_CUDA_GEMM_SM90_CUH

#include "gemm.cuh"
#include "wgmma.cuh"

/* Warps are one below another, and hold their sums as mma has them.  A third buffer of widened W: one group may be two steps behind. */
template <int m, int n, int stages, bool fp8>
struct dsv2i_warpgroup_tile : dsv2i_tile<m, n, m / 16, 1, stages, fp8, true, stages - 2, 3> {
    static_assert((dsv2i_warpgroup_tile::stage_bytes | dsv2i_warpgroup_tile::wide_bytes) % 1024 == 0, "what the swizzle goes by");
};

template <int m, int n, int stages, bool fp8>
__device__ __forceinline__ void dsv2i_tile_multiply(dsv2i_warpgroup_tile<m, n, stages, fp8> &tile,
                                                    const dsv2i_tile_source<dsv2i_warpgroup_tile<m, n, stages, fp8>> &from, char *shared,
                                                    int rows)
{
    typedef dsv2i_warpgroup_tile<m, n, stages, fp8> T;
    const int group = (int)threadIdx.x / 128;
    float(&sum)[n / 2] = reinterpret_cast<float(&)[n / 2]>(tile.sum);

    for (int s = 0; s * T::k < from.cols; s++) {
        char *const stage = shared + s % T::stages * T::stage_bytes;
        char *const wide = shared + T::stages * T::stage_bytes + s % T::widened * T::wide_bytes;
        const char *const a = stage + group * 64 * 128, *const b = fp8 ? wide : stage + T::a_bytes;

        dsv2i_copy_wait<T::ahead - 1>();
        if (fp8)
            dsv2i_tile_widen<T>(wide, stage);
        dsv2i_fence_async();
        __syncthreads();
        if (group * 64 < rows) {
            dsv2i_wgmma_fence();
#pragma unroll
            for (int k = 0; k < T::k / 16; k++)
                dsv2i_wgmma_bf16<false>(sum, dsv2i_wgmma_matrix(a + 32 * k, 16, 1024, 128), dsv2i_wgmma_matrix(b + 32 * k, 16, 1024, 128),
                                        s > 0 || k > 0);
            dsv2i_wgmma_commit();
        }
        dsv2i_wgmma_wait<1>();
        dsv2i_tile_go_on(from, shared, s + T::ahead);
    }
    dsv2i_wgmma_wait<0>(sum);
}

#endif
