/* RMSNorm of a row, as fp32 and rounded to bf16 for the matrix units.
 *
 * Bound: bandwidth, dim floats read and dim floats or halves written; at one row, latency.  A row is read once and kept in registers.
 *
 * SPDX-License-Identifier: MIT */
#include "launch.cuh"
#include "load.cuh"
#include "warp.cuh"

static const int threads = 256, most = 32; /* elements of a thread: rows of up to 8,192 are kept, the rest of a longer one read twice */

static __global__ void rms_norm_kernel(const dsv2i_cuda_step *step, float *y, int ldy, uint16_t *y_bf16, const float *x, int ldx,
                                       const float *w, int dim, float eps)
{
    float *parts = (float *)dsv2i_shared(), kept[most], sum = 0, factor;
    int row = (int)blockIdx.x;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows)
        return;
    x += (size_t)row * (size_t)ldx;
#pragma unroll
    for (int j = 0; j < most; j++) {
        int i = (int)threadIdx.x + j * threads;

        kept[j] = i < dim ? x[i] : 0.0f;
        sum += kept[j] * kept[j];
    }
    for (int i = (int)threadIdx.x + most * threads; i < dim; i += threads)
        sum += x[i] * x[i];
    factor = 1.0f / sqrtf(dsv2i_block_sum(sum, parts) / (float)dim + eps);
#pragma unroll
    for (int j = 0; j < most; j++) {
        int i = (int)threadIdx.x + j * threads;

        if (i < dim) {
            float v = kept[j] * factor * w[i];

            if (y)
                y[(size_t)row * (size_t)ldy + (size_t)i] = v;
            if (y_bf16)
                y_bf16[(size_t)row * (size_t)dim + (size_t)i] = dsv2i_bf16(v);
        }
    }
    for (int i = (int)threadIdx.x + most * threads; i < dim; i += threads) {
        float v = x[i] * factor * w[i];

        if (y)
            y[(size_t)row * (size_t)ldy + (size_t)i] = v;
        if (y_bf16)
            y_bf16[(size_t)row * (size_t)dim + (size_t)i] = dsv2i_bf16(v);
    }
}

cudaError_t dsv2i_cuda_rms_norm(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *y, int32_t ldy,
                                uint16_t *y_bf16, const float *x, int32_t ldx, const float *w, int32_t dim, float eps)
{
    return dsv2i_launch(to, rms_norm_kernel, dim3((unsigned)to->max_rows), threads, 32 * sizeof(float), step, y, ldy, y_bf16, x, ldx, w,
                        dim, eps);
}
