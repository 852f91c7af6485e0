/* Records of KV pages on the CPU.  SPDX-License-Identifier: MIT */
#ifndef DSV2I_KV_CODEC_H
#define DSV2I_KV_CODEC_H

#include "cpu.h"
#include "kv_page.h"

/* Write kv (rank + rope) as a token's record; kv is used up. */
void dsv2i_kv_write(const struct dsv2i_inner *inner, void *record, float *kv, int32_t kv_type, int32_t rank, int32_t rope);
/* The fp8 code of a number: nearest, ties to even; too great ones, infinity too, become the greatest; 0x7F for a NaN. */
uint8_t dsv2i_kv_f8(float f, int32_t kv_type);

#endif
