/* Inner loops in plain C: the reference, and the version for machines without AVX2.
 * SPDX-License-Identifier: MIT */
#include <math.h>

#include "kv_inner.h"

#define LANES 8
#define CHUNK 512 /* elements of a weight row converted at a time */

static float f16_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 0x1F, m = h & 0x3FF;

    if (e == 0x1F)
        return dsv2i_bits_f32(sign | 0x7F800000 | m << 13 | (m ? 0x400000 : 0)); /* a NaN becomes quiet, as in hardware */
    if (e == 0) {
        float f = (float)m * 0x1p-24f; /* subnormal, exact */

        return sign ? -f : f;
    }
    return dsv2i_bits_f32(sign | (e + 112) << 23 | m << 13);
}

static float e4m3_f32(uint8_t b)
{
    uint32_t sign = (uint32_t)(b & 0x80) << 24, u = b & 0x7F;

    /* the exponent's place is right, its bias 120 too small; denormals become ordinary by the way */
    return dsv2i_bits_f32(sign | (u == 0x7F ? 0x7FF00000 : dsv2i_f32_bits(dsv2i_bits_f32(u << 20) * 0x1p120f)));
}

/* dst (n) = elements k0 .. k0+n-1 of a row */
static void widen_part(float *dst, const struct dsv2i_weight *w, int32_t row, int32_t k0, int32_t n)
{
    const char *src = (const char *)dsv2i_weight_row(w, row) + (size_t)k0 * dsv2i_dtype_size(w->dtype);
    const uint16_t *h = (const void *)src;
    const uint8_t *code = (const void *)src;

    switch (w->dtype) {
    case DSV2I_F32:
        memcpy(dst, src, (size_t)n * sizeof *dst);
        break;
    case DSV2I_BF16:
        for (int32_t i = 0; i < n; i++)
            dst[i] = dsv2i_bits_f32((uint32_t)h[i] << 16);
        break;
    case DSV2I_F16:
        for (int32_t i = 0; i < n; i++)
            dst[i] = f16_f32(h[i]);
        break;
    default:
        for (int32_t i = 0; i < n;) {
            int32_t end = dsv2i_min(n, i + w->scale_cols - (k0 + i) % w->scale_cols);
            float scale = dsv2i_weight_scales(w, row)[(k0 + i) / w->scale_cols];

            for (; i < end; i++)
                dst[i] = scale * e4m3_f32(code[i]);
        }
    }
}

static void widen(float *dst, const struct dsv2i_weight *w, int32_t j0, int32_t n)
{
    for (int32_t j = 0; j < n; j++, dst += w->cols)
        widen_part(dst, w, j0 + j, 0, w->cols);
}

static void add_products(float *acc, const float *x, const float *w, int32_t k)
{
    float lane[LANES];
    int32_t i = 0;

    memcpy(lane, acc, sizeof lane);
    for (; i + LANES <= k; i += LANES)
        for (int32_t l = 0; l < LANES; l++)
            lane[l] += x[i + l] * w[i + l];
    for (int32_t l = 0; i + l < k; l++)
        lane[l] += x[i + l] * w[i + l];
    memcpy(acc, lane, sizeof lane);
}

static float sum_lanes(const float *a)
{
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

static void dot(float *y, size_t ldy, const float *const *x, int32_t m, const struct dsv2i_weight *w, int32_t j0, int32_t n)
{
    for (int32_t j = 0; j < n; j++) {
        float acc[TILE_ROWS][LANES] = { { 0 } }, buf[CHUNK];

        for (int32_t k0 = 0; k0 < w->cols; k0 += CHUNK) {
            int32_t nk = dsv2i_min(CHUNK, w->cols - k0);

            widen_part(buf, w, j0 + j, k0, nk);
            for (int32_t i = 0; i < m; i++)
                add_products(acc[i], x[i] + k0, buf, nk);
        }
        for (int32_t i = 0; i < m; i++)
            y[(size_t)i * ldy + (size_t)j] = sum_lanes(acc[i]);
    }
}

static void axpy(float *y, size_t ldy, const float *scale, const float *p, size_t ldp, const struct dsv2i_weight *c, int32_t s0,
                 int32_t m, int32_t n, int32_t cols)
{
    for (int32_t c0 = 0; c0 < cols; c0 += CHUNK) {
        int32_t nc = dsv2i_min(CHUNK, cols - c0);
        float buf[CHUNK];

        for (int32_t i = 0; i < m; i++)
            for (int32_t k = 0; k < nc; k++)
                y[(size_t)i * ldy + (size_t)(c0 + k)] = scale ? scale[i] * y[(size_t)i * ldy + (size_t)(c0 + k)] : 0.0f;
        for (int32_t s = 0; s < n; s++) {
            widen_part(buf, c, s0 + s, c0, nc);
            for (int32_t i = 0; i < m; i++) {
                float *to = y + (size_t)i * ldy + c0, by = p[(size_t)i * ldp + (size_t)s];

                for (int32_t k = 0; k < nc; k++)
                    to[k] += by * buf[k];
            }
        }
    }
}

static void softmax(float *s, int32_t n, float scale, float *max, float *sum, float *corr)
{
    float top = *max;
    double total = 0;

    for (int32_t i = 0; i < n; i++) {
        s[i] *= scale;
        if (s[i] > top)
            top = s[i];
    }
    for (int32_t i = 0; i < n; i++) {
        s[i] = expf(s[i] - top);
        total += (double)s[i];
    }
    *corr = expf(*max - top);
    *sum = *sum * *corr + (float)total;
    *max = top;
}

static void silu_mul(float *h, const float *g, const float *u, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        h[i] = g[i] / (1.0f + expf(-g[i])) * u[i];
}

static void rms_norm(float *y, const float *x, const float *w, int32_t n, float eps)
{
    double sum = 0;
    float r;

    for (int32_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    r = (float)(1.0 / sqrt(sum / n + (double)eps));
    for (int32_t i = 0; i < n; i++)
        y[i] = x[i] * r * w[i];
}

static void read_bytes(float *dst, const uint8_t *code, float scale, int32_t kv_type, int32_t n)
{
    if (kv_type == DSV2I_KV_F8_E4M3)
        for (int32_t i = 0; i < n; i++)
            dst[i] = scale * e4m3_f32(code[i]);
    else if (kv_type == DSV2I_KV_F8_E5M2)
        for (int32_t i = 0; i < n; i++)
            dst[i] = scale * f16_f32((uint16_t)(code[i] << 8));
    else
        for (int32_t i = 0; i < n; i++)
            dst[i] = scale * (float)(int8_t)code[i];
}

static void read_levels(float *dst, const uint8_t *level, const uint8_t *sign, float scale, int32_t n)
{
    float table[16];

    for (int32_t l = 0; l < 16; l++)
        table[l] = scale * dsv2i_kv_level[l];
    for (; n > 0; n -= DSV2I_KV_BLOCK, dst += DSV2I_KV_BLOCK, level += DSV2I_KV_BLOCK / 2, sign += DSV2I_KV_BLOCK / 8)
        for (int32_t i = 0; i < dsv2i_min(n, DSV2I_KV_BLOCK); i++) {
            float y = table[i < 16 ? level[i] & 15 : level[i - 16] >> 4];

            dst[i] = dsv2i_bits_f32(dsv2i_f32_bits(y) ^ (uint32_t)(sign[i / 8] >> i % 8 & 1) << 31);
        }
}

const struct dsv2i_inner dsv2i_inner_ref = {
    .widen = widen,
    .dot = dot,
    .axpy = axpy,
    .softmax = softmax,
    .silu_mul = silu_mul,
    .rms_norm = rms_norm,
    .kv_read = kv_read,
    .rotate = rotate,
    .rotate_back = rotate_back,
};
