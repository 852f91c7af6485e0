/* What the CPU backend writes; its header is C only.
 * SPDX-License-Identifier: MIT */
#include "cpu_record.h"

#include "cpu/kv_codec.h"

void cpu_kv_write(struct dsv2i_backend *cpu, void *record, float *kv, int32_t kv_type, int32_t rank, int32_t rope)
{
    dsv2i_kv_write(&((struct dsv2i_cpu *)cpu)->inner, record, kv, kv_type, rank, rope);
}
