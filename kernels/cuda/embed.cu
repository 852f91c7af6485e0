/* Rows of the embedding table, as fp32.
 *
 * Bound: bandwidth, hidden elements read and hidden floats written for each row: 31 KB for V2, nothing beside a layer's weights.
 *
 * SPDX-License-Identifier: MIT */
#include "launch.cuh"
#include "load.cuh"

template <int dtype> static __global__ void embed_kernel(const dsv2i_cuda_step *step, float *x, const void *table, int hidden)
{
    int row = (int)blockIdx.y, i = (int)(blockIdx.x * blockDim.x + threadIdx.x);

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows || i >= hidden)
        return;
    x[(size_t)row * (size_t)hidden + (size_t)i] = dsv2i_load<dtype>(table, (size_t)step->token[row] * (size_t)hidden + (size_t)i);
}

cudaError_t dsv2i_cuda_has_code(void)
{
    cudaFuncAttributes attributes;

    return cudaFuncGetAttributes(&attributes, embed_kernel<DSV2I_BF16>);
}

cudaError_t dsv2i_cuda_embed(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *x, const void *table,
                             int32_t dtype, int32_t hidden)
{
    dim3 grid((unsigned)(hidden + 255) / 256, (unsigned)to->max_rows);

    switch (dtype) {
    case DSV2I_F32: return dsv2i_launch(to, embed_kernel<DSV2I_F32>, grid, 256, 0, step, x, table, hidden);
    case DSV2I_BF16: return dsv2i_launch(to, embed_kernel<DSV2I_BF16>, grid, 256, 0, step, x, table, hidden);
    case DSV2I_F16: return dsv2i_launch(to, embed_kernel<DSV2I_F16>, grid, 256, 0, step, x, table, hidden);
    default: return cudaErrorInvalidValue;
    }
}
