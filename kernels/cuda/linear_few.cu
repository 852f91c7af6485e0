/* y = x W^T for few rows of x: a decode step's dense products.
 *
 * Bound: bandwidth, the weight once for every 8 rows of x.  A warp holds 4 rows of the weight against up to 8 of x.  What else a
 * multiprocessor of an H100 does in the 140 clocks in which 2 KB of weight come to it (3.35 TB/s, 132 of them), of 560 instructions:
 *   bf16:  32 conversions and 32 n FMAs for n rows of x, some 100 for the rest: 390 at 8 rows;
 *   e4m3: 160 conversions and products with scales, 64 n FMAs, some 150 for the rest: 570 at 4 rows; at 8 arithmetic bounds, at
 *         two thirds of the bandwidth, which still is faster than bf16.
 * The first-level cache gives x, 512 bytes in 4 clocks, as often as needed: at 8 rows in 64 (bf16) or 128 clocks (e4m3).
 *
 * Where the weight has few rows, the warps of a block share the columns and add up at the end, so that enough loads are under way: at one
 * row V2-Lite's q_proj are 384 blocks, o_proj 256, kv_a_proj 144, of the 528 that run at a time.  A warp's first piece of the weight, of
 * two where it has a quarter of 2,048 columns, is asked for before the launch in front has ended.
 *
 * The order of a sum depends on the weight's shape alone: the same bits for a row of x in any company.
 *
 * SPDX-License-Identifier: MIT */
#include "dots.cuh"
#include "launch.cuh"

static const int warps = 8, held = 4, most_rows = 8; /* of a block; weight rows of a warp; rows of x */

/* 2^split warps share the columns of the same weight rows; rows: of x, at most; width: as of dsv2i_rows. */
template <int dtype, int rows, int width>
static __global__ void __launch_bounds__(32 * warps, rows > 1 ? 2 : 4)
linear_few_kernel(const dsv2i_cuda_step *step, float *y, const float *x, const void *data, const float *scale, dsv2i_cuda_scales scales,
                  int w_rows, int cols, int split, int accumulate)
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, share = 1 << split, groups = warps >> split;
    const int first = (int)blockIdx.x * groups * held, row = (int)blockIdx.y * most_rows, part = warp & (share - 1);
    float *parts = (float *)dsv2i_shared(); /* (warps, held, rows) */
    dsv2i_rows<dtype, width, held> w;
    int n;

    w.cols = cols;
#pragma unroll
    for (int r = 0; r < held; r++)
        dsv2i_set_row(w, r, data, scale, scales, first + (warp >> split) * held + r, w_rows);
    const auto piece = dsv2i_fetch(w, part * w.piece_cols);
    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    n = step->n_rows - row;
    if (n <= 0)
        return;
    const float sum = dsv2i_dots<rows>(w, piece, x + (size_t)row * (size_t)cols, cols, n, part, share);
    const int each = 32 / (held * rows); /* lanes that have the same */
    if (lane % each == 0)
        parts[warp * held * rows + lane / each] = sum;
    __syncthreads();
    static_assert(held * rows <= 32, "a thread adds up an element of y");
    const int g = (int)threadIdx.x / (held * rows), r = (int)threadIdx.x / rows % held, at = (int)threadIdx.x % rows;
    const int out = first + g * held + r;
    if (g >= groups || out >= w_rows || at >= n)
        return;
    float s = 0, *to = y + (size_t)(row + at) * (size_t)w_rows + out;
    for (int p = 0; p < share; p++)
        s += parts[((g * share + p) * held + r) * rows + at];
    *to = accumulate ? *to + s : s;
}

template <int dtype, int rows, int width>
static cudaError_t launch(const dsv2i_cuda_launch *to, const dsv2i_cuda_step *step, float *y, const float *x, const dsv2i_weight *w,
                          int accumulate)
{
    const int groups = (w->rows + held - 1) / held;
    const dsv2i_cuda_scales scales = {w->scale_rows, w->scale_cols};
    int split = 0;

    while (1 << split < warps && groups << split < 2048 && dsv2i_rows<dtype, width, held>::piece_cols << split < w->cols)
        split++;
    dim3 grid((unsigned)(groups + (warps >> split) - 1) / (unsigned)(warps >> split), (unsigned)(to->max_rows + most_rows - 1) / most_rows);
    return dsv2i_launch(to, linear_few_kernel<dtype, rows, width>, grid, 32 * warps, sizeof(float) * warps * held * rows, step, y, x,
                        w->data, w->scale, scales, w->rows, w->cols, split, accumulate);
}

template <int dtype, int width>
static cudaError_t for_rows(const dsv2i_cuda_launch *to, const dsv2i_cuda_step *step, float *y, const float *x, const dsv2i_weight *w,
                            int accumulate)
{
    return to->max_rows == 1 ? launch<dtype, 1, width>(to, step, y, x, w, accumulate)
         : to->max_rows <= 4 ? launch<dtype, 4, width>(to, step, y, x, w, accumulate)
                             : launch<dtype, most_rows, width>(to, step, y, x, w, accumulate);
}

template <int dtype>
static cudaError_t choose(const dsv2i_cuda_launch *to, const dsv2i_cuda_step *step, float *y, const float *x, const dsv2i_weight *w,
                          int accumulate)
{
    return w->cols % 4 ? for_rows<dtype, 1>(to, step, y, x, w, accumulate) : for_rows<dtype, 4>(to, step, y, x, w, accumulate);
}

cudaError_t dsv2i_cuda_linear_few(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *y, const float *x,
                                  const struct dsv2i_weight *w, int32_t accumulate)
{
    switch (w->dtype) {
    case DSV2I_F32: return choose<DSV2I_F32>(to, step, y, x, w, accumulate);
    case DSV2I_BF16: return choose<DSV2I_BF16>(to, step, y, x, w, accumulate);
    case DSV2I_F16: return choose<DSV2I_F16>(to, step, y, x, w, accumulate);
    case DSV2I_F8_E4M3: return choose<DSV2I_F8_E4M3>(to, step, y, x, w, accumulate);
    default: return cudaErrorInvalidValue;
    }
}
