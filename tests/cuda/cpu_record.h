/* SPDX-License-Identifier: MIT */
#ifndef CPU_RECORD_H
#define CPU_RECORD_H

#include "ops.h"

/* The record that a CPU backend writes for kv (rank + rope), which is spoilt. */
void cpu_kv_write(struct dsv2i_backend *cpu, void *record, float *kv, int32_t kv_type, int32_t rank, int32_t rope);

#endif
