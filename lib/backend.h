/* Which backend, and where it comes from.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_BACKEND_H
#define DSV2I_BACKEND_H

#include "mem.h"
#include "status.h"

/* Open what the (checked) parameters ask for.  Errors: NOMEM, UNSUPPORTED. */
dsv2_status dsv2i_backend_open(const struct dsv2i_hooks *mem, const dsv2_context_params *params, struct dsv2i_backend **out);

/* Number of backends, and what was found of number i. */
#define DSV2I_BACKENDS 2
dsv2_backend_info dsv2i_backend_describe(const char *cuda_module, int32_t i);

#endif
