/* Activations in the types that the matrix units take: bf16 or f16, and fp8 with scales.
 *
 * Bound: bandwidth, 4 bytes read and 1 or 2 written for an element; a row's maximum is found in a first reading, whose second one finds it
 * in the caches.  A scale for all takes two launches, of which both read x from memory when it does not stay in the cache.
 *
 * scale = max |x| / 448, the greatest e4m3 value, and at least the least normal float; code = x / scale, rounded to nearest even.  The
 * maximum is that of the finite elements: others get the code of NaN, and spoil no row but their own.
 *
 * SPDX-License-Identifier: MIT */
#include "convert.cuh"
#include "launch.cuh"
#include "warp.cuh"

#include <float.h>

static const int threads = 256, most_parts = threads, warps = threads / 32;

__device__ __forceinline__ float finite_or_nan(float x) { return fabsf(x) <= FLT_MAX ? x : __uint_as_float(0x7FFFFFFF); }

__device__ __forceinline__ float magnitude(float x) { return fabsf(x) <= FLT_MAX ? fabsf(x) : 0.0f; }

__device__ __forceinline__ float magnitude(float4 v)
{
    return fmaxf(fmaxf(magnitude(v.x), magnitude(v.y)), fmaxf(magnitude(v.z), magnitude(v.w)));
}

__device__ __forceinline__ float scale_for(float most) { return fmaxf(most / 448.0f, FLT_MIN); }

__device__ __forceinline__ uint32_t codes(float4 v, float scale)
{
    return dsv2i_e4m3x2(finite_or_nan(v.x / scale), finite_or_nan(v.y / scale))
           | (uint32_t)dsv2i_e4m3x2(finite_or_nan(v.z / scale), finite_or_nan(v.w / scale)) << 16;
}

/* The maximum over the block, in all threads.  parts: a float for each warp. */
__device__ __forceinline__ float block_max(float x, float *parts)
{
    const int lane = (int)threadIdx.x % 32;

    x = dsv2i_warp_max(x);
    if (lane == 0)
        parts[threadIdx.x / 32] = x;
    __syncthreads();
    return dsv2i_warp_max(lane < warps ? parts[lane] : 0.0f);
}

/* parts[block] = the largest magnitude of what the block takes; all blocks write. */
static __global__ void max_kernel(const dsv2i_cuda_step *step, float *parts, const float *x, int dim)
{
    float most = 0;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    const size_t n = (size_t)step->n_rows * (size_t)dim / 4;
    for (size_t i = (size_t)blockIdx.x * threads + threadIdx.x; i < n; i += (size_t)gridDim.x * threads)
        most = fmaxf(most, magnitude(((const float4 *)x)[i]));
    most = block_max(most, (float *)dsv2i_shared());
    if (threadIdx.x == 0)
        parts[blockIdx.x] = most;
}

/* A row.  Its maximum is that of n_parts parts, or without any its own. */
static __global__ void quantize_kernel(const dsv2i_cuda_step *step, uint8_t *y, float *scale, const float *x, int dim, const float *parts,
                                       int n_parts)
{
    const int row = (int)blockIdx.x;
    const float4 *from = (const float4 *)(x + (size_t)row * (size_t)dim);
    uint32_t *to = (uint32_t *)(y + (size_t)row * (size_t)dim);
    float most = 0;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows)
        return;
    if (parts)
        most = (int)threadIdx.x < n_parts ? parts[threadIdx.x] : 0.0f;
    else
        for (int i = (int)threadIdx.x; i < dim / 4; i += threads)
            most = fmaxf(most, magnitude(from[i]));
    const float s = scale_for(block_max(most, (float *)dsv2i_shared()));
    if (threadIdx.x == 0 && (!parts || row == 0))
        scale[row] = s;
    for (int i = (int)threadIdx.x; i < dim / 4; i += threads)
        to[i] = codes(from[i], s);
}

/* A warp takes 128 elements of a row; their scale is in column row of a matrix of max_rows columns. */
static __global__ void quantize_blocks_kernel(const dsv2i_cuda_step *step, uint8_t *y, float *scale, const float *x, int dim, int max_rows)
{
    const int row = (int)blockIdx.x, lane = (int)threadIdx.x % 32, part = (int)blockIdx.y * warps + (int)threadIdx.x / 32;
    const int col = part * 128 + lane * 4;
    const size_t at = (size_t)row * (size_t)dim + (size_t)col;
    float4 v = make_float4(0, 0, 0, 0);

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows || part * 128 >= dim)
        return;
    if (col < dim)
        v = *(const float4 *)(x + at);
    const float s = scale_for(dsv2i_warp_max(magnitude(v)));
    if (lane == 0)
        scale[(size_t)part * (size_t)max_rows + (size_t)row] = s;
    if (col < dim)
        *(uint32_t *)(y + at) = codes(v, s);
}

size_t dsv2i_cuda_quantize_scratch(void) { return most_parts * sizeof(float); }

cudaError_t dsv2i_cuda_quantize(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, uint8_t *y, float *scale,
                                const float *x, int32_t dim, int32_t scaling, void *scratch)
{
    const dim3 rows((unsigned)to->max_rows);
    const size_t shared = warps * sizeof(float);
    float *parts = nullptr;
    int n_parts = 0;

    if (dim % 16)
        return cudaErrorInvalidValue;
    if (scaling == DSV2I_CUDA_SCALE_BLOCKS)
        return dsv2i_launch(to, quantize_blocks_kernel, dim3(rows.x, (unsigned)((dim + 128 * warps - 1) / (128 * warps))), dim3(threads), 0,
                            step, y, scale, x, dim, to->max_rows);
    if (scaling == DSV2I_CUDA_SCALE_ALL) {
        parts = (float *)scratch;
        n_parts = to->max_rows < most_parts ? to->max_rows : most_parts;
        cudaError_t e = dsv2i_launch(to, max_kernel, dim3((unsigned)n_parts), dim3(threads), shared, step, parts, x, dim);
        if (e)
            return e;
    }
    return dsv2i_launch(to, quantize_kernel, rows, dim3(threads), shared, step, y, scale, x, dim, parts, n_parts);
}

template <int dtype> __device__ __forceinline__ uint32_t narrow_pair(float low, float high)
{
    return dtype == DSV2I_BF16 ? dsv2i_bf16x2(low, high) : dsv2i_f16x2(low, high);
}

/* Part of x that is to be rounded: all, or what rounding to bf16 once or twice has lost; exact. */
template <int part> __device__ __forceinline__ float part_of(float x)
{
#pragma unroll
    for (int i = 0; i < part; i++)
        x -= dsv2i_f32_from_bf16(dsv2i_bf16(x));
    return x;
}

template <int dtype, int part>
static __global__ void narrow_kernel(const dsv2i_cuda_step *step, uint16_t *y, const float *x, int dim)
{
    const int row = (int)blockIdx.x;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows)
        return;
    x += (size_t)row * (size_t)dim;
    y += (size_t)row * (size_t)dim;
    if (dim % 4 == 0)
        for (int i = (int)threadIdx.x; i < dim / 4; i += threads) {
            float4 v = ((const float4 *)x)[i];
            ((uint2 *)y)[i] = make_uint2(narrow_pair<dtype>(part_of<part>(v.x), part_of<part>(v.y)),
                                         narrow_pair<dtype>(part_of<part>(v.z), part_of<part>(v.w)));
        }
    else
        for (int i = (int)threadIdx.x; i < dim; i += threads)
            y[i] = (uint16_t)narrow_pair<dtype>(part_of<part>(x[i]), 0);
}

cudaError_t dsv2i_cuda_narrow(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, uint16_t *y, const float *x,
                              int32_t dtype, int32_t dim)
{
    return dsv2i_launch(to, dtype == DSV2I_BF16 ? narrow_kernel<DSV2I_BF16, 0> : narrow_kernel<DSV2I_F16, 0>, dim3((unsigned)to->max_rows),
                        dim3(threads), 0, step, y, x, dim);
}

cudaError_t dsv2i_cuda_narrow_part(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, uint16_t *y, const float *x,
                                   int32_t part, int32_t dim)
{
    return dsv2i_launch(to, part == 0 ? narrow_kernel<DSV2I_BF16, 0> : part == 1 ? narrow_kernel<DSV2I_BF16, 1> : narrow_kernel<DSV2I_BF16, 2>,
                        dim3((unsigned)to->max_rows), dim3(threads), 0, step, y, x, dim);
}
