/* Structs that cross the boundary and may be older or newer than the library.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_PARAMS_H
#define DSV2I_PARAMS_H

#include "status.h"

/* For _init functions: write the first size bytes of dst from defaults (known bytes), zeros beyond, and its struct_size = size. */
void dsv2i_params_init(void *dst, size_t size, const void *defaults, size_t known);

/* Take in a caller's struct: dst (known bytes) holds defaults; src's bytes overwrite as many as it has.  src NULL: defaults stay.
 * A src longer than known must be zero beyond, else UNSUPPORTED; shorter than struct_size itself: INVALID.  name is for messages. */
dsv2_status dsv2i_params_take(void *dst, size_t known, const void *src, const char *name);

/* Is dst, NULL or a caller's output struct, one that output_fill could fill? */
dsv2_status dsv2i_output_check(const void *dst, const char *name);
/* Fill a caller's output struct up to the size that it set; its struct_size is kept. */
dsv2_status dsv2i_output_fill(void *dst, const void *src, size_t known, const char *name);

#endif
