/* Writing a token's record of a KV page (kv_page.h says what is in it).  The same bits on every instruction set: nothing here
 * is compiled for more than the baseline, and sums have a fixed order.  Reading is an inner loop (kv_read).
 *
 * SPDX-License-Identifier: MIT */
#include "kv_codec.h"

#include <math.h>

#define SUM_LANES 32
/* Added to a small number it leaves the nearest integer, ties to even, in the lowest bits. */
#define ROUND 0x1.8p23f

/* Round to nearest even; a NaN stays one. */
static uint16_t bf16(float f)
{
    uint32_t u = dsv2i_f32_bits(f);

    if ((u & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

uint8_t dsv2i_kv_f8(float f, int32_t kv_type)
{
    const int e4m3 = kv_type == DSV2I_KV_F8_E4M3;
    const int mantissa = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15, cut = 23 - mantissa;
    const uint32_t top = e4m3 ? 0x7E : 0x7B;
    uint32_t u = dsv2i_f32_bits(f), sign = u >> 24 & 0x80, code;

    u &= 0x7FFFFFFF;
    if (u > 0x7F800000)
        return (uint8_t)(sign | 0x7F);
    if (u < (uint32_t)(128 - bias) << 23) /* subnormal: a count of the least ones */
        code = dsv2i_f32_bits(dsv2i_bits_f32(u) * (e4m3 ? 0x1p9f : 0x1p16f) + ROUND) & 0xFF;
    else
        code = (u + (1u << (cut - 1)) - 1 + (u >> cut & 1)) / (1u << cut) - ((uint32_t)(127 - bias) << mantissa);
    return (uint8_t)(sign | (code < top ? code : top));
}

/* Greatest magnitude; NaN if one is not finite. */
static float max_abs(const float *x, int32_t n)
{
    uint32_t max = 0;

    for (int32_t i = 0; i < n; i++) {
        uint32_t u = dsv2i_f32_bits(x[i]) & 0x7FFFFFFF;

        max = u > max ? u : max;
    }
    return max < 0x7F800000 ? dsv2i_bits_f32(max) : NAN;
}

/* One code of a byte, 0 so far, for each element; returns the scale. */
static float write_bytes(uint8_t *code, const float *x, int32_t n, int32_t kv_type)
{
    const float top = kv_type == DSV2I_KV_F8_E4M3 ? 448 : kv_type == DSV2I_KV_F8_E5M2 ? 57344 : 127;
    float scale = max_abs(x, n) / top;

    if (!(scale > 0)) /* 0 or NaN */
        return scale;
    if (kv_type == DSV2I_KV_F8_E4M3 || kv_type == DSV2I_KV_F8_E5M2)
        for (int32_t i = 0; i < n; i++)
            code[i] = dsv2i_kv_f8(x[i] / scale, kv_type);
    else
        for (int32_t i = 0; i < n; i++) {
            float c = x[i] / scale;

            c = c > top ? top : c < -top ? -top : c; /* a denormal scale may be that coarse */
            code[i] = (uint8_t)dsv2i_f32_bits(c + ROUND);
        }
    return scale;
}

/* a[0] + ... by halves. */
static double sum_lanes(double *a)
{
    for (int32_t n = SUM_LANES / 2; n > 0; n /= 2)
        for (int32_t l = 0; l < n; l++)
            a[l] += a[l + n];
    return a[0];
}

/* The planes of levels and signs of y, 0 so far; returns the scale. */
static float write_levels(uint8_t *level, uint8_t *sign, const float *y, int32_t n)
{
    double square[SUM_LANES] = { 0 }, fit[SUM_LANES] = { 0 }, levels[SUM_LANES] = { 0 };
    float edge[15], rms, scale;

    for (int32_t i = 0; i < n; i++)
        square[i % SUM_LANES] += (double)y[i] * (double)y[i];
    rms = (float)sqrt(sum_lanes(square) / n);
    if (!isfinite(rms))
        return NAN;
    if (rms == 0)
        return 0;
    for (int32_t j = 0; j < 15; j++)
        edge[j] = 0.5f * (dsv2i_kv_level[j] + dsv2i_kv_level[j + 1]) * rms;
    for (int32_t i = 0; i < n; i++) {
        float a = fabsf(y[i]);
        int32_t l = 0, in = i % DSV2I_KV_BLOCK;

        for (int32_t j = 0; j < 15; j++)
            l += a > edge[j];
        level[i / DSV2I_KV_BLOCK * 16 + in % 16] |= (uint8_t)(in < 16 ? l : l << 4);
        sign[i / 8] |= (uint8_t)((dsv2i_f32_bits(y[i]) >> 31) << i % 8);
        fit[i % SUM_LANES] += (double)a * (double)dsv2i_kv_level[l];
        levels[i % SUM_LANES] += (double)dsv2i_kv_level[l] * (double)dsv2i_kv_level[l];
    }
    scale = (float)(sum_lanes(fit) / sum_lanes(levels));
    return isfinite(scale) ? scale : NAN;
}

void dsv2i_kv_write(const struct dsv2i_inner *inner, void *record, float *kv, int32_t kv_type, int32_t rank, int32_t rope)
{
    struct dsv2i_kv_record r = dsv2i_kv_record(kv_type, rank, rope);
    uint8_t *to = record;
    float scale[2];

    if (kv_type == DSV2I_KV_F32) {
        memcpy(record, kv, r.bytes);
        return;
    }
    if (kv_type == DSV2I_KV_BF16) {
        for (int32_t i = 0; i < rank + rope; i++)
            ((uint16_t *)record)[i] = bf16(kv[i]);
        return;
    }
    memset(to, 0, r.bytes);
    if (kv_type == DSV2I_KV_6BIT) {
        inner->rotate(kv, rank);
        scale[0] = write_levels(to, to + r.sign, kv, rank) / (float)dsv2i_kv_rotation(rank);
        scale[1] = write_bytes(to + r.key, kv + rank, rope, DSV2I_KV_INT8);
    } else {
        scale[0] = write_bytes(to, kv, rank, kv_type);
        scale[1] = write_bytes(to + r.key, kv + rank, rope, kv_type);
    }
    memcpy(to + r.scale, scale, sizeof scale);
}
