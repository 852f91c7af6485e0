/* Products of a few rows of a weight with a few of activations, by one warp: what decode kernels are made of.
 *
 * A lane takes 4 adjacent columns at a time, a warp 128: of each row of x 16 bytes of a lane, which the first-level cache gives at its
 * full speed, and of the weight 16, 8 or 4.  (16 bytes of a narrow type against 8 or 16 floats of x would take those in strides, at a
 * half or a quarter of that speed, and x would bound the kernel before the weight does.)
 *
 * A piece is 16 bytes of a lane of each row (F8_E4M3: 8, as decoding takes registers); the next is under way while one is multiplied: 2 to
 * 4 KB (F8_E4M3: 1 to 2) of a warp that holds 4 rows, where some 15 KB of a multiprocessor, which runs 24 to 32 of them at one row, are
 * enough for 3.35 TB/s at 600 ns.  The first may be asked for before the launch waits for those in front of it, as nobody writes weights.
 *
 * F8_E4M3: each element becomes code * scale, rounded, before it meets x, so that a sum has the terms that it has on the CPU.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_DOTS_CUH
#define DSV2I_CUDA_DOTS_CUH

#include "load.cuh"
#include "warp.cuh"

/* held rows of a weight.  width: columns of a lane at a time, 4 (rows are aligned to that many elements) or 1. */
template <int dtype_, int width_, int held_> struct dsv2i_rows {
    static constexpr int dtype = dtype_, width = width_, held = held_;
    static constexpr int size = dtype == DSV2I_F32 ? 4 : dtype == DSV2I_F8_E4M3 ? 1 : 2; /* of an element */
    static constexpr int words = width == 1 ? 1 : size, units = width == 1 || size == 4 ? 1 : 2; /* of a unit: width elements; of a piece */
    static constexpr int unit_cols = 32 * width, piece_cols = units * unit_cols; /* of a warp */
    struct piece {
        uint32_t unit[held][units][words];
    };
    const char *row[held];    /* from the lane's first column on */
    const float *scale[held]; /* of the row; F8_E4M3 only */
    uint32_t per_scale;       /* for dsv2i_scale_of */
    int cols;
};

/* Row at of a weight (rows, w.cols), or past the last row that one, becomes row r of w. */
template <class R>
__device__ __forceinline__ void dsv2i_set_row(R &w, int r, const void *data, const float *scale, dsv2i_cuda_scales scales, int at, int rows)
{
    at = at < rows ? at : rows - 1;
    w.row[r] = (const char *)data + ((size_t)at * (size_t)w.cols + threadIdx.x % 32 * R::width) * R::size;
    if constexpr (R::dtype == DSV2I_F8_E4M3) {
        w.scale[r] = scale + (size_t)(at / scales.rows) * (size_t)((w.cols - 1) / scales.cols + 1);
        w.per_scale = dsv2i_per_scale(scales.cols, w.cols);
    }
}

/* The lane's part of the piece whose first column is col; what lies past the last column is not set. */
template <class R> __device__ __forceinline__ typename R::piece dsv2i_fetch(const R &w, int col)
{
    typename R::piece to;

#pragma unroll
    for (int r = 0; r < R::held; r++) {
        const char *from = w.row[r] + (size_t)col * R::size;

#pragma unroll
        for (int u = 0; u < R::units; u++, from += R::unit_cols * R::size) {
            uint32_t(&unit)[R::words] = to.unit[r][u];

            if (col + u * R::unit_cols + (int)threadIdx.x % 32 * R::width >= w.cols)
                continue;
            if constexpr (R::width == 1) {
                unit[0] = R::size == 4 ? *(const uint32_t *)from : R::size == 2 ? *(const uint16_t *)from : *(const uint8_t *)from;
            } else if constexpr (R::size == 4) {
                uint4 v = dsv2i_load_once(from);
                unit[0] = v.x, unit[1] = v.y, unit[2] = v.z, unit[3] = v.w;
            } else if constexpr (R::size == 2) {
                uint2 v = dsv2i_load_once_8(from);
                unit[0] = v.x, unit[1] = v.y;
            } else {
                unit[0] = dsv2i_load_once_4(from);
            }
        }
    }
    return to;
}

/* Element i of a unit. */
template <int dtype> __device__ __forceinline__ float dsv2i_element(const uint32_t *words, int i)
{
    if (dtype == DSV2I_F32)
        return __uint_as_float(words[i]);
    const float2 two = dtype == DSV2I_BF16 ? dsv2i_f32x2_from_bf16x2(words[i / 2])
                     : dtype == DSV2I_F16  ? dsv2i_f32x2_from_f16x2(words[i / 2])
                                           : dsv2i_f32x2_from_e4m3x2((uint16_t)(words[0] >> 8 * (i & ~1)));
    return i % 2 ? two.y : two.x;
}

/* The sums over the warp of n numbers (a power of two) of each lane, of which a lane gets that of v[lane / (32 / n)]: by halves, the bits of
 * dsv2i_warp_sum, but with 31 exchanges for 32 numbers and not 160, as lanes that need not know a number do not add it up. */
template <int n, int apart> __device__ __forceinline__ float dsv2i_warp_sums(float (&v)[n])
{
    if constexpr (apart == 0) {
        return v[0];
    } else if constexpr (n == 1) {
        v[0] += __shfl_xor_sync(DSV2I_ALL_LANES, v[0], apart);
        return dsv2i_warp_sums<1, apart / 2>(v);
    } else {
        const bool upper = threadIdx.x & apart;
        float half[n / 2];

#pragma unroll
        for (int j = 0; j < n / 2; j++) {
            const float mine = upper ? v[j + n / 2] : v[j], other = upper ? v[j] : v[j + n / 2];
            half[j] = mine + __shfl_xor_sync(DSV2I_ALL_LANES, other, apart);
        }
        return dsv2i_warp_sums<n / 2, apart / 2>(half);
    }
}

/* Row r of w . x[i], to each lane that of r rows + i = lane / (32 / (held rows)), for the n <= rows rows of x, ldx apart.  The warp takes
 * every parts-th piece, from part on, which is now. */
template <int rows, class R>
__device__ __forceinline__ float dsv2i_dots(const R &w, typename R::piece now, const float *x, int ldx, int n, int part, int parts)
{
    float sum[R::held][rows];

#pragma unroll
    for (int r = 0; r < R::held; r++)
#pragma unroll
        for (int i = 0; i < rows; i++)
            sum[r][i] = 0;
    for (int col = part * R::piece_cols; col < w.cols; col += parts * R::piece_cols) {
        const typename R::piece next = dsv2i_fetch(w, col + parts * R::piece_cols);

#pragma unroll
        for (int u = 0; u < R::units; u++) {
            const int c = col + u * R::unit_cols + (int)threadIdx.x % 32 * R::width;
            float a[R::held][R::width];

            if (c >= w.cols)
                continue;
#pragma unroll
            for (int r = 0; r < R::held; r++)
#pragma unroll
                for (int k = 0; k < R::width; k++) {
                    a[r][k] = dsv2i_element<R::dtype>(now.unit[r][u], k);
                    if constexpr (R::dtype == DSV2I_F8_E4M3)
                        a[r][k] = __fmul_rn(a[r][k], w.scale[r][dsv2i_scale_of(c, w.per_scale)]);
                }
#pragma unroll
            for (int i = 0; i < rows; i++)
                if (i < n) {
                    const float *from = x + (size_t)i * (size_t)ldx + c;
                    float b[R::width];

                    if constexpr (R::width == 1) {
                        b[0] = *from;
                    } else {
                        float4 v = *(const float4 *)from;
                        b[0] = v.x, b[1] = v.y, b[2] = v.z, b[3] = v.w;
                    }
#pragma unroll
                    for (int r = 0; r < R::held; r++)
#pragma unroll
                        for (int k = 0; k < R::width; k++)
                            sum[r][i] = fmaf(a[r][k], b[k], sum[r][i]);
                }
        }
        now = next;
    }
    return dsv2i_warp_sums<R::held * rows, 16>(reinterpret_cast<float(&)[R::held * rows]>(sum));
}

#endif
