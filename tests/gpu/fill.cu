/* Memory of a card with something in it (fill.h).
 *
 * SPDX-License-Identifier: MIT */
#include "fill.h"

#include <convert.cuh>
#include <launch.cuh>

static const int threads = 256;

static __device__ uint32_t mixed(uint32_t i, uint32_t seed)
{
    uint32_t z = i * 0x9E3779B9u + seed * 0x85EBCA6Bu;

    z = (z ^ z >> 16) * 0x7FEB352Du;
    z = (z ^ z >> 15) * 0x846CA68Bu;
    return z ^ z >> 16;
}

static __device__ size_t first() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }
static __device__ size_t stride() { return (size_t)gridDim.x * blockDim.x; }

static __global__ void fill_kernel(void *at, int dtype, size_t n, float scale, uint32_t seed)
{
    for (size_t i = first(); i < n; i += stride()) {
        uint32_t bits = mixed((uint32_t)i, seed ^ (uint32_t)(i >> 32));
        float x = ((float)(bits >> 8) * 0x1p-23f - 1.0f) * scale;

        if (dtype == DSV2I_F32)
            ((float *)at)[i] = x;
        else if (dtype == DSV2I_BF16)
            ((uint16_t *)at)[i] = dsv2i_bf16(x);
        else
            ((uint8_t *)at)[i] = (uint8_t)((bits & 0x7Fu) == 0x7Fu ? 0 : bits);
    }
}

static __global__ void same_kernel(float *at, size_t n, float value)
{
    for (size_t i = first(); i < n; i += stride())
        at[i] = value;
}

static __global__ void records_kernel(unsigned char *at, size_t n, size_t bytes, size_t scale, uint32_t seed)
{
    for (size_t i = first(); i < n; i += stride()) {
        unsigned char *record = at + i * bytes;

        for (size_t j = 0; j < scale; j += 4)
            *(uint32_t *)(record + j) = mixed((uint32_t)(i * bytes + j), seed) & 0x7E7E7E7Eu; /* no NaN in any type */
        ((float *)(record + scale))[0] = ((float *)(record + scale))[1] = 0.01f;
    }
}

static dsv2i_cuda_launch to(cudaStream_t stream)
{
    dsv2i_cuda_launch launch = {};

    launch.stream = stream;
    return launch;
}

static unsigned blocks(size_t n)
{
    const size_t most = 2048, want = (n + threads - 1) / threads;

    return (unsigned)(want < most ? (want ? want : 1) : most);
}

cudaError_t gpu_fill(cudaStream_t stream, void *at, int32_t dtype, size_t n, float scale, uint32_t seed)
{
    const dsv2i_cuda_launch launch = to(stream);

    return dsv2i_launch(&launch, fill_kernel, blocks(n), threads, 0, at, dtype, n, scale, seed);
}

cudaError_t gpu_fill_same(cudaStream_t stream, float *at, size_t n, float value)
{
    const dsv2i_cuda_launch launch = to(stream);

    return dsv2i_launch(&launch, same_kernel, blocks(n), threads, 0, at, n, value);
}

cudaError_t gpu_fill_records(cudaStream_t stream, void *at, size_t n, size_t bytes, size_t scale, uint32_t seed)
{
    const dsv2i_cuda_launch launch = to(stream);

    return dsv2i_launch(&launch, records_kernel, blocks(n), threads, 0, (unsigned char *)at, n, bytes, scale, seed);
}
