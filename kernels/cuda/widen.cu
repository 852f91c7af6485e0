/* A whole weight as bf16 in device memory, for kernels that take nothing else: kv_b_proj, when it is uploaded.
 *
 * bf16 holds an element rounded to 8 bits.  Of a code of F8_E4M3 (4 bits) times a scale (24 bits) that loses up to 2^-8, which the CPU
 * backend keeps, unless the scale is a power of two; the code's own rounding lost up to 2^-4.
 *
 * Bound: bandwidth, the weight and 2 bytes of each element, once: 50 MB a layer of V2.  A thread takes an element, as nobody waits for it.
 *
 * SPDX-License-Identifier: MIT */
#include "launch.cuh"
#include "load.cuh"

static const int threads = 256;

template <int dtype>
static __global__ void widen_kernel(uint16_t *to, const void *from, const float *scale, int cols, dsv2i_cuda_scales scales)
{
    const int col = (int)(blockIdx.y * threads + threadIdx.x);
    const size_t row = blockIdx.x, i = row * (size_t)cols + (size_t)col;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (col >= cols)
        return;
    float v = dsv2i_load<dtype>(from, i);
    if (dtype == DSV2I_F8_E4M3) {
        const int across = (cols - 1) / scales.cols + 1;
        v = __fmul_rn(v, scale[row / (unsigned)scales.rows * (unsigned)across + (unsigned)(col / scales.cols)]);
    }
    to[i] = dsv2i_bf16(v);
}

cudaError_t dsv2i_cuda_widen(const struct dsv2i_cuda_launch *to, uint16_t *to_bf16, const struct dsv2i_weight *w)
{
    const dim3 grid((unsigned)w->rows, (unsigned)(w->cols + threads - 1) / threads);
    const dsv2i_cuda_scales scales = {w->scale_rows, w->scale_cols};

    switch (w->dtype) {
    case DSV2I_F32: return dsv2i_launch(to, widen_kernel<DSV2I_F32>, grid, threads, 0, to_bf16, w->data, w->scale, w->cols, scales);
    case DSV2I_F16: return dsv2i_launch(to, widen_kernel<DSV2I_F16>, grid, threads, 0, to_bf16, w->data, w->scale, w->cols, scales);
    case DSV2I_F8_E4M3: return dsv2i_launch(to, widen_kernel<DSV2I_F8_E4M3>, grid, threads, 0, to_bf16, w->data, w->scale, w->cols, scales);
    default: return cudaErrorInvalidValue;
    }
}
