/* Products with many rows: the tile of y = x W^T that a block works out with mma, and how it gets what it multiplies.
 *
 * A block has m rows of x (bf16) against n rows of W (bf16, or e4m3 codes with scales).  Both are brought by cp.async in steps of 64
 * columns, some stages ahead, into rows of 128 bytes of shared memory; unit u of 16 bytes of row r lies at u ^ r % 8, so that what
 * ldmatrix reads at once, and what a warp writes at once, is in different banks.
 *
 *     step       k          k + 1      ...  k + stages - 1
 *     stage  [ x | W ]  [ x | W ]  ...  [ x | W ]             one barrier a step: it says that step k has landed, and that all
 *               |                            ^                have read the stage that the newest copies go to
 *          ldmatrix, mma                  cp.async
 *
 * Of e4m3 weights the codes are copied, with a scale for every 16; the thread that copied them makes bf16 of them (code * scale, rounded
 * to fp32, then to bf16), in one of two more buffers, before that same barrier.
 *
 * Every element of y is one accumulator, to which columns are added in ascending steps of 16: the same bits in a tile of any size, in any
 * row or column of it, beside any others.
 *
 * Rows past the end are the last row again, and not stored.  Columns past the end are zeros.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_GEMM_CUH
#define DSV2I_CUDA_GEMM_CUH

#include "convert.cuh"
#include "matrix.cuh"

/* wide: rows begin at multiples of 16 bytes; else elements come one by one.  ahead: steps that are under way at most; widened: buffers
 * for what was e4m3. */
template <int m_, int n_, int warps_m_, int warps_n_, int stages_, bool fp8_, bool wide_ = true, int ahead_ = stages_ - 1, int widened_ = 2>
struct dsv2i_tile {
    static const int m = m_, n = n_, warps_m = warps_m_, warps_n = warps_n_, stages = stages_, ahead = ahead_, widened = widened_;
    static const bool fp8 = fp8_, wide = wide_;
    static const int k = 64, threads = 32 * warps_m * warps_n;
    static const int m16 = m / warps_m / 16, n8 = n / warps_n / 8;       /* of a warp */
    static const int a_rows = threads / 8, b_rows = threads / (fp8 ? 4 : 8); /* copied at once: a thread copies 16 bytes */
    static const int a_parts = m / a_rows, b_parts = n / b_rows;
    static const int a_bytes = 2 * k * m, b_bytes = (fp8 ? k : 2 * k) * n, scale_bytes = fp8 ? k / 16 * 4 * n : 0;
    static const int stage_bytes = a_bytes + b_bytes + scale_bytes, wide_bytes = fp8 ? 2 * k * n : 0;
    static const int shared = stages * stage_bytes + widened * wide_bytes;
    static_assert(a_parts * a_rows == m && b_parts * b_rows == n && n8 % 2 == 0 && m16 > 0, "threads share the tile evenly");

    float sum[m16][n8][4];
};

/* What a thread copies: of part i, row a_row[i] elements from a on; the same for b and, of b's scales, scale. */
template <class T> struct dsv2i_tile_source {
    const uint16_t *a;
    const void *b;
    const float *scale;
    uint32_t a_row[T::a_parts], b_row[T::b_parts], scale_row[T::fp8 ? T::b_parts : 1];
    int cols, scale_cols;
};

/* The tile's row of a thread's part i. */
template <class T> __device__ __forceinline__ int dsv2i_tile_a_row(int i) { return (int)threadIdx.x / 8 + i * T::a_rows; }
template <class T> __device__ __forceinline__ int dsv2i_tile_b_row(int i)
{
    return (int)threadIdx.x / (T::threads / T::b_rows) + i * T::b_rows;
}

/* Part i of b is row row of a weight (rows, cols). */
template <class T>
__device__ __forceinline__ void dsv2i_tile_set_b(dsv2i_tile_source<T> &from, int i, int row, int rows, int scale_rows, int scales_across)
{
    row = row < rows ? row : rows - 1;
    from.b_row[i] = (uint32_t)row * (uint32_t)from.cols;
    if (T::fp8)
        from.scale_row[i] = (uint32_t)(row / scale_rows * scales_across);
}

/* elements (at most 16 bytes) to a unit, the others 0. */
template <bool wide, class E> __device__ __forceinline__ void dsv2i_tile_copy(void *to, const E *from, int elements)
{
    const int most = 16 / (int)sizeof(E);

    if (wide) {
        dsv2i_copy<16>(to, from, elements * (int)sizeof(E));
    } else {
#pragma unroll 1
        for (int i = 0; i < most; i++)
            ((E *)to)[i] = i < elements ? from[i] : (E)0;
    }
}

template <class T> __device__ __forceinline__ void dsv2i_tile_fetch_a(const dsv2i_tile_source<T> &from, char *stage, int step)
{
    const int unit = (int)threadIdx.x % 8;
    int col = step * T::k + unit * 8, some = min(max(from.cols - col, 0), 8);

    col = some ? col : 0;
#pragma unroll
    for (int i = 0; i < T::a_parts; i++) {
        const int r = dsv2i_tile_a_row<T>(i);
        dsv2i_tile_copy<T::wide>(stage + r * 128 + 16 * (unit ^ r % 8), from.a + from.a_row[i] + col, some);
    }
}

template <class T> __device__ __forceinline__ void dsv2i_tile_fetch_b(const dsv2i_tile_source<T> &from, char *stage, int step)
{
    const int units = T::fp8 ? 4 : 8, unit = (int)threadIdx.x % units, each = T::fp8 ? 16 : 8;
    int col = step * T::k + unit * each, some = min(max(from.cols - col, 0), each);

    stage += T::a_bytes;
    col = some ? col : 0;
    const int scale_col = T::fp8 ? col / from.scale_cols : 0;
#pragma unroll
    for (int i = 0; i < T::b_parts; i++) {
        const int r = dsv2i_tile_b_row<T>(i);

        if (T::fp8) {
            dsv2i_tile_copy<T::wide>(stage + r * 64 + 16 * unit, (const uint8_t *)from.b + from.b_row[i] + col, some);
            dsv2i_copy<4>(stage + T::b_bytes + (r * 4 + unit) * 4, from.scale + from.scale_row[i] + scale_col);
        } else {
            dsv2i_tile_copy<T::wide>(stage + r * 128 + 16 * (unit ^ r % 8), (const uint16_t *)from.b + from.b_row[i] + col, some);
        }
    }
}

/* The first steps.  W before x, of which it may be known later.  Before it a barrier, if the block had another tile. */
template <class T> __device__ __forceinline__ void dsv2i_tile_begin_b(const dsv2i_tile_source<T> &from, char *shared)
{
#pragma unroll
    for (int s = 0; s < T::ahead; s++)
        if (s * T::k < from.cols)
            dsv2i_tile_fetch_b(from, shared + s * T::stage_bytes, s);
}
template <class T> __device__ __forceinline__ void dsv2i_tile_begin_a(const dsv2i_tile_source<T> &from, char *shared)
{
#pragma unroll
    for (int s = 0; s < T::ahead; s++) {
        if (s * T::k < from.cols)
            dsv2i_tile_fetch_a(from, shared + s * T::stage_bytes, s);
        dsv2i_copy_commit();
    }
}

/* A later step. */
template <class T> __device__ __forceinline__ void dsv2i_tile_go_on(const dsv2i_tile_source<T> &from, char *shared, int step)
{
    char *const stage = shared + step % T::stages * T::stage_bytes;

    if (step * T::k < from.cols) {
        dsv2i_tile_fetch_a(from, stage, step);
        dsv2i_tile_fetch_b(from, stage, step);
    }
    dsv2i_copy_commit();
}

/* A thread's own codes of a stage to bf16. */
template <class T> __device__ __forceinline__ void dsv2i_tile_widen(char *to, const char *stage)
{
    const int quarter = (int)threadIdx.x % 4;

#pragma unroll
    for (int i = 0; i < T::b_parts; i++) {
        const int r = dsv2i_tile_b_row<T>(i);
        const uint4 codes = *(const uint4 *)(stage + T::a_bytes + r * 64 + 16 * quarter);
        const float scale = *(const float *)(stage + T::a_bytes + T::b_bytes + (r * 4 + quarter) * 4);
        const uint32_t four[4] = {codes.x, codes.y, codes.z, codes.w};
        uint32_t two[8];

#pragma unroll
        for (int j = 0; j < 8; j++) {
            float2 f = dsv2i_f32x2_from_e4m3x2((uint16_t)(four[j / 2] >> j % 2 * 16));
            two[j] = dsv2i_bf16x2(f.x * scale, f.y * scale);
        }
        *(uint4 *)(to + r * 128 + 16 * (2 * quarter ^ r % 8)) = make_uint4(two[0], two[1], two[2], two[3]);
        *(uint4 *)(to + r * 128 + 16 * ((2 * quarter + 1) ^ r % 8)) = make_uint4(two[4], two[5], two[6], two[7]);
    }
}

/* A step of 64 columns. */
template <class T> __device__ __forceinline__ void dsv2i_tile_step(T &tile, const char *a, const char *b)
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;

    a += (warp / T::warps_n * T::m16 * 16 + lane % 16) * 128;
    b += (warp % T::warps_n * T::n8 * 8 + lane / 16 * 8 + lane % 8) * 128;
#pragma unroll
    for (int k = 0; k < T::k / 16; k++) {
        uint32_t x[T::m16][4], w[T::n8][2];

#pragma unroll
        for (int i = 0; i < T::m16; i++)
            dsv2i_ldmatrix(x[i], a + i * 16 * 128 + 16 * ((2 * k + lane / 16) ^ lane % 8));
#pragma unroll
        for (int j = 0; j < T::n8; j += 2) {
            uint32_t four[4];

            dsv2i_ldmatrix(four, b + j * 8 * 128 + 16 * ((2 * k + lane / 8 % 2) ^ lane % 8));
            w[j][0] = four[0], w[j][1] = four[1], w[j + 1][0] = four[2], w[j + 1][1] = four[3];
        }
#pragma unroll
        for (int i = 0; i < T::m16; i++)
#pragma unroll
            for (int j = 0; j < T::n8; j++)
                dsv2i_mma_bf16(tile.sum[i][j], x[i], w[j]);
    }
}

/* All of the tile, once it has begun, of which rows are wanted: warps that have others do not multiply.  All threads of the block call it. */
template <class T> __device__ __forceinline__ void dsv2i_tile_multiply(T &tile, const dsv2i_tile_source<T> &from, char *shared, int rows)
{
    const bool wanted = (int)threadIdx.x / 32 / T::warps_n * T::m16 * 16 < rows;

#pragma unroll
    for (int i = 0; i < T::m16; i++)
#pragma unroll
        for (int j = 0; j < T::n8; j++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                tile.sum[i][j][c] = 0;
    for (int s = 0; s * T::k < from.cols; s++) {
        char *const stage = shared + s % T::stages * T::stage_bytes;
        char *const wide = shared + T::stages * T::stage_bytes + s % T::widened * T::wide_bytes;

        dsv2i_copy_wait<T::ahead - 1>();
        if (T::fp8)
            dsv2i_tile_widen<T>(wide, stage);
        __syncthreads();
        dsv2i_tile_go_on(from, shared, s + T::ahead);
        if (wanted)
            dsv2i_tile_step(tile, stage, T::fp8 ? wide : stage + T::a_bytes);
    }
}

/* Shared memory that a block may have. */
static inline int dsv2i_most_shared(int sm) { return (sm == 80 || sm == 87 ? 163 : sm == 90 || sm / 10 == 10 ? 227 : 99) << 10; }

#endif
