/* y = x W^T for many rows of x (bf16), W bf16 or e4m3 with scales: prompts, and decode steps of many sequences.
 *
 * Bound: at 4,096 rows the matrix units, 2 rows cols n_rows FLOPs; up to a few hundred rows bandwidth, the weight once.  So tiles are as
 * large as the step fills the card with: 128 x 128 has a byte of shared memory read for 32 FLOPs; with few rows the weight's rows are
 * spread over many small blocks, each with its own copies under way.
 *
 * Blocks of one column of tiles are neighbours: they share the weight's rows in the L2 cache.  Bits do not depend on the tile (gemm.cuh),
 * so neither on max_rows.
 *
 * SPDX-License-Identifier: MIT */
#include "gemm_sm90.cuh"
#include "launch.cuh"

/* Where and how y goes. */
struct target {
    void *y;
    int bf16, accumulate;
};

static __device__ __forceinline__ void store(const target &to, size_t at, float v)
{
    if (to.bf16)
        ((uint16_t *)to.y)[at] = dsv2i_bf16(v);
    else
        ((float *)to.y)[at] = to.accumulate ? ((float *)to.y)[at] + v : v;
}

/* Two neighbours, aligned. */
static __device__ __forceinline__ void store(const target &to, size_t at, float v, float next)
{
    if (to.bf16) {
        *(uint32_t *)((uint16_t *)to.y + at) = dsv2i_bf16x2(v, next);
    } else {
        float2 *y = (float2 *)((float *)to.y + at);
        const float2 old = to.accumulate ? *y : make_float2(0, 0);
        *y = make_float2(old.x + v, old.y + next);
    }
}

template <class T>
static __global__ void __launch_bounds__(T::threads)
    linear_many_kernel(const dsv2i_cuda_step *step, target to, const uint16_t *x, dsv2i_weight w)
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int row = (int)blockIdx.x * T::m, col = (int)blockIdx.y * T::n;
    const int across = T::fp8 ? (w.cols + w.scale_cols - 1) / w.scale_cols : 0;
    char *const shared = (char *)dsv2i_shared();
    dsv2i_tile_source<T> from;
    T tile;

    from.a = x;
    from.b = w.data;
    from.scale = w.scale;
    from.cols = w.cols;
    from.scale_cols = w.scale_cols;
#pragma unroll
    for (int i = 0; i < T::b_parts; i++)
        dsv2i_tile_set_b(from, i, col + dsv2i_tile_b_row<T>(i), w.rows, w.scale_rows, across);
    dsv2i_tile_begin_b(from, shared); /* no launch writes weights */
    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    const int n_rows = step->n_rows;
    if (row >= n_rows) {
        dsv2i_copy_wait_all();
        return;
    }
#pragma unroll
    for (int i = 0; i < T::a_parts; i++)
        from.a_row[i] = (uint32_t)min(row + dsv2i_tile_a_row<T>(i), n_rows - 1) * (uint32_t)w.cols;
    dsv2i_tile_begin_a(from, shared);
    dsv2i_tile_multiply(tile, from, shared, n_rows - row);

#pragma unroll
    for (int i = 0; i < T::m16; i++)
#pragma unroll
        for (int j = 0; j < T::n8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int r = row + (warp / T::warps_n * T::m16 + i) * 16 + lane / 4 + 8 * half;
                const int c = col + (warp % T::warps_n * T::n8 + j) * 8 + lane % 4 * 2;
                const float v = tile.sum[i][j][2 * half], next = tile.sum[i][j][2 * half + 1];
                const size_t at = (size_t)r * (size_t)w.rows + (size_t)c;

                if (r >= n_rows || c >= w.rows)
                    continue;
                if (w.rows % 2 == 0) {
                    store(to, at, v, next);
                } else {
                    store(to, at, v);
                    if (c + 1 < w.rows)
                        store(to, at + 1, next);
                }
            }
}

template <class T>
static cudaError_t launch(const dsv2i_cuda_launch *to, const dsv2i_cuda_step *step, const target &y, const uint16_t *x, const dsv2i_weight *w)
{
    const dim3 grid((unsigned)(to->max_rows + T::m - 1) / T::m, (unsigned)(w->rows + T::n - 1) / T::n);

    return dsv2i_launch(to, linear_many_kernel<T>, grid, T::threads, T::shared, step, y, x, *w);
}

static int blocks(const dsv2i_cuda_launch *to, const dsv2i_weight *w, int m, int n)
{
    return (to->max_rows + m - 1) / m * ((w->rows + n - 1) / n);
}

template <bool fp8>
static cudaError_t choose(const dsv2i_cuda_launch *to, const dsv2i_cuda_step *step, const target &y, const uint16_t *x, const dsv2i_weight *w)
{
    typedef dsv2i_tile<128, 128, 2, 2, 3, fp8> largest;

    if (w->cols % (fp8 ? 16 : 8)) /* no model that is real */
        return launch<dsv2i_tile<16, 64, 1, 4, 3, fp8, false>>(to, step, y, x, w);
    if (to->max_rows <= 16)
        return blocks(to, w, 16, 64) < 2 * to->n_sms ? launch<dsv2i_tile<16, 32, 1, 2, 8, fp8>>(to, step, y, x, w)
                                                     : launch<dsv2i_tile<16, 64, 1, 4, 5, fp8>>(to, step, y, x, w);
    if (to->max_rows <= 32)
        return launch<dsv2i_tile<32, 64, 1, 4, 5, fp8>>(to, step, y, x, w);
    if (to->max_rows <= 64 || blocks(to, w, 64, 128) < to->n_sms)
        return launch<dsv2i_tile<64, 64, 2, 2, 4, fp8>>(to, step, y, x, w);
    if (blocks(to, w, 128, 128) < to->n_sms || largest::shared > dsv2i_most_shared(to->sm))
        return launch<dsv2i_tile<64, 128, 2, 2, 3, fp8>>(to, step, y, x, w);
    if (to->sm == 90 && !to->invariant)
        return blocks(to, w, 128, 256) < to->n_sms || fp8 ? launch<dsv2i_warpgroup_tile<128, 128, fp8 ? 5 : 6, fp8>>(to, step, y, x, w)
                                                          : launch<dsv2i_warpgroup_tile<128, 256, 4, false>>(to, step, y, x, w);
    return launch<largest>(to, step, y, x, w);
}

cudaError_t dsv2i_cuda_linear_many(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, void *y, int32_t y_dtype,
                                   const uint16_t *x, const struct dsv2i_weight *w, int32_t accumulate)
{
    const target at = {y, y_dtype == DSV2I_BF16, accumulate};

    if ((y_dtype != DSV2I_F32 && (y_dtype != DSV2I_BF16 || accumulate)) || to->sm < 80)
        return cudaErrorInvalidValue;
    switch (w->dtype) {
    case DSV2I_BF16: return choose<false>(to, step, at, x, w);
    case DSV2I_F8_E4M3: return choose<true>(to, step, at, x, w);
    default: return cudaErrorInvalidValue;
    }
}
