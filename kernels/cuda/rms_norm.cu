/* RMSNorm of a row, as fp32 and rounded to bf16 for the matrix units.
 *
 * Bound: bandwidth, dim floats read and dim floats or halves written; at one row, latency: so a row has many threads, its
 * weight is asked for before the launch in front has ended, and it is read once and kept in registers.
 *
 * SPDX-License-Identifier: MIT */
#include "launch.cuh"
#include "load.cuh"
#include "warp.cuh"

static const int most_threads = 512;

/* width: elements of a thread at a time, 4 where all is aligned to that, else 1. */
template <int width> struct elements {
    float v[width];
    __device__ __forceinline__ void load(const float *from)
    {
        if constexpr (width == 4) {
            const float4 f = *(const float4 *)from;
            v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
        } else {
            v[0] = *from;
        }
    }
    __device__ __forceinline__ void store(float *to, uint16_t *to_bf16) const
    {
        if constexpr (width == 4) {
            if (to)
                *(float4 *)to = make_float4(v[0], v[1], v[2], v[3]);
            if (to_bf16)
                *(uint2 *)to_bf16 = make_uint2(dsv2i_bf16x2(v[0], v[1]), dsv2i_bf16x2(v[2], v[3]));
        } else {
            if (to)
                *to = v[0];
            if (to_bf16)
                *to_bf16 = dsv2i_bf16(v[0]);
        }
    }
};

/* kept: elements that a thread keeps; the rest of a longer row is read twice. */
template <int width, int kept>
static __global__ void __launch_bounds__(most_threads)
    rms_norm_kernel(const dsv2i_cuda_step *step, float *y, int ldy, uint16_t *y_bf16, const float *x, int ldx, const float *w, int dim, float eps)
{
    const int some = kept / width, stride = (int)blockDim.x * width, first = (int)threadIdx.x * width, row = (int)blockIdx.x;
    float sum = 0;
    elements<width> of_x[some], of_w[some];

#pragma unroll
    for (int j = 0; j < some; j++)
        if (first + j * stride < dim)
            of_w[j].load(w + first + j * stride);
    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows)
        return;
    x += (size_t)row * (size_t)ldx;
    y = y ? y + (size_t)row * (size_t)ldy : nullptr;
    y_bf16 = y_bf16 ? y_bf16 + (size_t)row * (size_t)dim : nullptr;
#pragma unroll
    for (int j = 0; j < some; j++)
        if (first + j * stride < dim)
            of_x[j].load(x + first + j * stride);
#pragma unroll
    for (int j = 0; j < some; j++)
        if (first + j * stride < dim)
#pragma unroll
            for (int k = 0; k < width; k++)
                sum += of_x[j].v[k] * of_x[j].v[k];
#pragma unroll 1
    for (int i = first + some * stride; i < dim; i += stride) {
        elements<width> more;

        more.load(x + i);
#pragma unroll
        for (int k = 0; k < width; k++)
            sum += more.v[k] * more.v[k];
    }
    const float factor = 1.0f / sqrtf(dsv2i_block_sum(sum, (float *)dsv2i_shared()) / (float)dim + eps);
    const auto put = [=](elements<width> a, const elements<width> &by, int i) {
#pragma unroll
        for (int k = 0; k < width; k++)
            a.v[k] = a.v[k] * factor * by.v[k];
        a.store(y ? y + i : nullptr, y_bf16 ? y_bf16 + i : nullptr);
    };

#pragma unroll
    for (int j = 0; j < some; j++)
        if (first + j * stride < dim)
            put(of_x[j], of_w[j], first + j * stride);
#pragma unroll 1
    for (int i = first + some * stride; i < dim; i += stride) {
        elements<width> a, by;

        a.load(x + i);
        by.load(w + i);
        put(a, by, i);
    }
}

cudaError_t dsv2i_cuda_rms_norm(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *y, int32_t ldy,
                                uint16_t *y_bf16, const float *x, int32_t ldx, const float *w, int32_t dim, float eps)
{
    const bool wide = (dim | ldx | ldy) % 4 == 0 && ((uintptr_t)x | (uintptr_t)y | (uintptr_t)w | (uintptr_t)y_bf16) % 16 == 0;
    const int want = (dim / (wide ? 4 : 1) + 31) / 32 * 32, threads = want > most_threads ? most_threads : want < 32 ? 32 : want;
    const bool one = wide && dim <= 4 * most_threads;

    return dsv2i_launch(to, one ? rms_norm_kernel<4, 4> : wide ? rms_norm_kernel<4, 16> : rms_norm_kernel<1, 8>, dim3((unsigned)to->max_rows),
                        threads, 32 * sizeof(float), step, y, ldy, y_bf16, x, ldx, w, dim, eps);
}
