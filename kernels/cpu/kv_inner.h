/* The inner loops over records of KV pages that look the same on every instruction set.  Each inner_*.c includes this, defines
 * read_bytes and read_levels, and so has kv_read, rotate and rotate_back compiled for its set.
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

/* x (rank) = D x */
static void negate(float *x, int32_t rank)
{
    const int32_t n = dsv2i_kv_rotation(rank);

    for (int32_t i = 0; i < rank; i++) /* n is a power of two */
        x[i] = dsv2i_bits_f32(dsv2i_f32_bits(x[i]) ^ dsv2i_kv_negative((uint32_t)(i & (n - 1))) << 31);
}

/* One step of a Hadamard matrix of m rows, which leaves the results where the next step, the same, finds its pairs: compilers make
 * vectors of that. */
static inline void pairs(float *restrict to, const float *restrict x, int32_t m)
{
    for (int32_t j = 0; j < m / 2; j++) {
        to[2 * j] = x[j] + x[j + m / 2];
        to[2 * j + 1] = x[j] - x[j + m / 2];
    }
}

/* x (rank) = H x, in blocks; only sums and differences, in an order that is fixed. */
static void hadamard(float *x, int32_t rank)
{
    enum { CHUNK_ROWS = 512 };
    const int32_t n = dsv2i_kv_rotation(rank), m = dsv2i_min(n, CHUNK_ROWS);
    float other[CHUNK_ROWS];

    for (int32_t i = 0; i < rank; i += m) {
        int32_t left = m;

        for (; left >= 4; left /= 4) {
            pairs(other, x + i, m);
            pairs(x + i, other, m);
        }
        if (left == 2) {
            pairs(other, x + i, m);
            memcpy(x + i, other, (size_t)m * sizeof *x);
        }
    }
    for (int32_t d = m; d < n; d *= 2)
        for (int32_t i = 0; i < rank; i += 2 * d)
            for (int32_t j = i; j < i + d; j++) {
                float a = x[j], b = x[j + d];

                x[j] = a + b;
                x[j + d] = a - b;
            }
}

static void rotate(float *x, int32_t rank)
{
    negate(x, rank);
    hadamard(x, rank);
}

static void rotate_back(float *y, int32_t rank)
{
    hadamard(y, rank);
    negate(y, rank);
}

#endif
