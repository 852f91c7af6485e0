/* fp32 rows to bf16, for the matrix units, where no norm before them has done it.
 *
 * Bound: bandwidth, 6 bytes an element.
 *
 * SPDX-License-Identifier: MIT */
#include "convert.cuh"
#include "launch.cuh"

static const int threads = 256, each = 8; /* elements of a thread */

static __global__ void to_bf16_kernel(const dsv2i_cuda_step *step, uint16_t *y, const float *x, int dim)
{
    const size_t at = ((size_t)blockIdx.x * threads + threadIdx.x) * each;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    const size_t end = (size_t)step->n_rows * (size_t)dim;
    if (at + each <= end) {
        const float4 a = *(const float4 *)(x + at), b = *(const float4 *)(x + at + 4);

        *(uint4 *)(y + at) = make_uint4(dsv2i_bf16x2(a.x, a.y), dsv2i_bf16x2(a.z, a.w), dsv2i_bf16x2(b.x, b.y), dsv2i_bf16x2(b.z, b.w));
    } else {
        for (size_t i = at; i < end; i++)
            y[i] = dsv2i_bf16(x[i]);
    }
}

cudaError_t dsv2i_cuda_to_bf16(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, uint16_t *y, const float *x,
                               int32_t dim)
{
    const size_t most = (size_t)to->max_rows * (size_t)dim, of_block = threads * each;

    return dsv2i_launch(to, to_bf16_kernel, dim3((unsigned)((most + of_block - 1) / of_block)), threads, 0, step, y, x, dim);
}
