/* A CUDA module of another build of the library.
 * SPDX-License-Identifier: MIT */
#include "cuda/module.h"

const char *dsv2i_cuda_build(void)
{
    return "0.0.0-other";
}

int dsv2i_cuda_open(const struct dsv2i_hooks *hooks, const struct dsv2i_cuda_options *options, struct dsv2i_backend **out,
                    const char **why)
{
    (void)hooks;
    (void)options;
    (void)out;
    *why = "opened although it is of another build";
    return -1;
}

int dsv2i_cuda_devices(const char **why)
{
    *why = "asked although it is of another build";
    return 0;
}
