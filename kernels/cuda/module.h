/* What the library sees of the CUDA backend: three functions, in libdsv2-cuda.so or linked in.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_MODULE_H
#define DSV2I_CUDA_MODULE_H

#include "../ops.h"

struct dsv2i_cuda_options {
    int32_t device;
    int32_t invariant;  /* dsv2_context_params */
    void *stream;       /* a cudaStream_t, or NULL for one of its own */
};

#define DSV2I_CUDA_API __attribute__((visibility("default")))

/* What library and module must agree on to the letter: there is no promise of an ABI between them. */
DSV2I_CUDA_API const char *dsv2i_cuda_build(void);

/* 0, or -1 with a reason, which stays. */
DSV2I_CUDA_API int dsv2i_cuda_open(const struct dsv2i_hooks *hooks, const struct dsv2i_cuda_options *options, struct dsv2i_backend **out,
                                   const char **why);

/* How many devices there are; if 0, perhaps why. */
DSV2I_CUDA_API int dsv2i_cuda_devices(const char **why);

#endif
