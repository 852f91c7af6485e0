/* The inner loops over records of KV pages that look the same on every instruction set.  Each inner_*.c includes this, defines
 * read_bytes and read_levels, and so has kv_read and hadamard compiled for its set.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_KV_INNER_H
#define DSV2I_KV_INNER_H

#include "cpu.h"
#include "kv_page.h"

/* dst (n) = scale times the numbers that the codes stand for; 6BIT's key is INT8. */
static void read_bytes(float *dst, const uint8_t *code, float scale, int32_t kv_type, int32_t n);
/* dst (n) = scale times the levels, with their signs. */
static void read_levels(float *dst, const uint8_t *level, const uint8_t *sign, float scale, int32_t n);

static void kv_read(float *dst, const void *records, int32_t kv_type, int32_t rank, int32_t rope, int32_t n)
{
    struct dsv2i_kv_record r = dsv2i_kv_record(kv_type, rank, rope);
    const uint8_t *from = records;

    for (int32_t i = 0; i < n; i++, from += r.bytes, dst += rank + rope) {
        float scale[2];

        memcpy(scale, from + r.scale, sizeof scale);
        if (kv_type == DSV2I_KV_6BIT)
            read_levels(dst, from, from + r.sign, scale[0], rank);
        else
            read_bytes(dst, from, scale[0], kv_type, rank);
        read_bytes(dst + rank, from + r.key, scale[1], kv_type, rope);
    }
}

/* Sums and differences at distance 1, 2, 4, ...: in this order whatever a compiler makes of it. */
static void hadamard(float *x, int32_t rank)
{
    const int32_t n = dsv2i_kv_rotation(rank);

    for (int32_t d = 1; d < n; d *= 2)
        for (int32_t i = 0; i < rank; i += 2 * d)
            for (int32_t j = i; j < i + d; j++) {
                float a = x[j], b = x[j + d];

                x[j] = a + b;
                x[j + d] = a - b;
            }
}

#endif
