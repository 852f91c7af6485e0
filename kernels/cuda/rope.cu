/* The angles of a step's rows, once for all layers.
 *
 * Bound: latency.  Angles in double, as a position of 163,839 in fp32 would leave an error of 0.01 radian; that is rope / 2 sines
 * for each row of a step, on any card some microseconds.
 *
 * SPDX-License-Identifier: MIT */
#include "launch.cuh"

static __global__ void rope_kernel(const dsv2i_cuda_step *step, int pairs, double multiplier)
{
    int i = (int)threadIdx.x, row = (int)blockIdx.x;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows)
        return;
    for (; i < pairs; i += (int)blockDim.x) {
        double angle = step->pos[row] * step->inv_freq[i];
        float *to = step->rope + ((size_t)row * (size_t)pairs + (size_t)i) * 2;

        to[0] = (float)(cos(angle) * multiplier);
        to[1] = (float)(sin(angle) * multiplier);
    }
}

cudaError_t dsv2i_cuda_rope(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, int32_t rope, double multiplier)
{
    return dsv2i_launch(to, rope_kernel, dim3((unsigned)to->max_rows), 32, 0, step, rope / 2, multiplier);
}
