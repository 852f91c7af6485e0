/* The one way in which kernels are launched.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_LAUNCH_CUH
#define DSV2I_CUDA_LAUNCH_CUH

#include "device.cuh"
#include "kernels.h"

#define DSV2I_SHARED_FREELY (48 << 10) /* bytes of shared memory that a block may have without being asked for */

template <class... P, class... A>
static cudaError_t dsv2i_launch(const dsv2i_cuda_launch *to, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... args)
{
    cudaLaunchAttribute early = {};
    cudaLaunchConfig_t config = {};

    if (shared > DSV2I_SHARED_FREELY) {
        cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
        if (e)
            return e;
    }
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = to->stream;
    config.attrs = &early;
    config.numAttrs = to->early ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

#endif
