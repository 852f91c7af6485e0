/* The operations in double; the spec's sections are named.  Nothing here is shared with the library but the types.
 * SPDX-License-Identifier: MIT */
#include "reference64.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

double ref_bf16(uint16_t h) /* 6.4 */
{
    int e = h >> 7 & 0xFF, m = h & 0x7F;
    double v = e == 0xFF ? (m ? NAN : INFINITY) : e ? ldexp(128 + m, e - 134) : ldexp(m, -133);

    return h & 0x8000 ? -v : v;
}

static double f16(uint16_t h)
{
    int e = h >> 10 & 0x1F, m = h & 0x3FF;
    double v = e == 0x1F ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);

    return h & 0x8000 ? -v : v;
}

double ref_kv_code(uint8_t code, int kv_type)
{
    int e4m3 = kv_type == DSV2I_KV_F8_E4M3, digits = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15;
    int e = (code & 0x7F) >> digits, m = code & ((1 << digits) - 1);
    double v = e ? ldexp((1 << digits) + m, e - bias - digits) : ldexp(m, 1 - bias - digits);

    if (kv_type == DSV2I_KV_INT8)
        return code < 128 ? code : code - 256;
    if (e4m3 ? (code & 0x7F) == 0x7F : e == 31)
        v = !e4m3 && m == 0 ? INFINITY : NAN;
    return code & 0x80 ? -v : v;
}

/* Lloyd's iteration: levels in the middle of their intervals' mass, borders in the middle between levels. */
double ref_kv_level(int i)
{
    static double level[16], last[16];

    if (level[0] == 0) {
        for (int k = 0; k < 16; k++)
            level[k] = 0.2 * (k + 0.5);
        while (memcmp(level, last, sizeof level) != 0) {
            double low = 0;

            memcpy(last, level, sizeof last);
            for (int k = 0; k < 16; k++) {
                double high = k < 15 ? (last[k] + last[k + 1]) / 2 : 40;

                level[k] = sqrt(2 / acos(-1)) * (exp(-low * low / 2) - exp(-high * high / 2));
                level[k] /= erfc(low / sqrt(2)) - erfc(high / sqrt(2));
                if (fabs(level[k] - last[k]) < 1e-14)
                    level[k] = last[k];
                low = high;
            }
        }
    }
    return level[i];
}

static int parity(int i)
{
    int n = 0;

    for (; i; i /= 2)
        n ^= i & 1;
    return n;
}

void ref_hadamard(double *y, const double *x, int n, int signed_columns, int signed_rows)
{
    for (int i = 0; i < n; i++) {
        double sum = 0;

        for (int j = 0; j < n; j++)
            sum += (parity(i & j) ^ (signed_columns && parity(j & j / 2)) ? -1 : 1) * x[j];
        y[i] = signed_rows && parity(i & i / 2) ? -sum : sum;
    }
}

/* From kv_page.h's text. */
void ref_kv_read(double *kv, const void *record, int kv_type, int rank, int rope)
{
    const uint8_t *byte = record;
    int n_codes = rank, key = rank, blocks = (rank + 31) / 32, n = 1;
    double *y;
    float scale[2];

    if (kv_type == DSV2I_KV_BF16 || kv_type == DSV2I_KV_F32) {
        for (int i = 0; i < rank + rope; i++)
            kv[i] = kv_type == DSV2I_KV_F32 ? (double)((const float *)record)[i] : ref_bf16(((const uint16_t *)record)[i]);
        return;
    }
    if (kv_type == DSV2I_KV_6BIT) {
        n_codes = 0;
        key = 20 * blocks;
    }
    memcpy(scale, byte + (key + rope + 3) / 4 * 4, sizeof scale);
    for (int i = 0; i < n_codes; i++)
        kv[i] = ref_kv_code(byte[i], kv_type) * (double)scale[0];
    for (int i = 0; i < rope; i++)
        kv[rank + i] = ref_kv_code(byte[key + i], kv_type == DSV2I_KV_6BIT ? DSV2I_KV_INT8 : kv_type) * (double)scale[1];
    if (n_codes)
        return;
    y = calloc((size_t)rank, sizeof *y);
    for (int i = 0; i < rank; i++) {
        int block = i / 32, in = i % 32, level = byte[16 * block + in % 16] / (in < 16 ? 1 : 16) % 16;

        y[i] = (double)scale[0] * (byte[16 * blocks + 4 * block + in / 8] >> in % 8 & 1 ? -1 : 1) * ref_kv_level(level);
    }
    while (rank % (2 * n) == 0)
        n *= 2;
    for (int i = 0; i < rank; i += n)
        ref_hadamard(kv + i, y + i, n, 0, 1);
    free(y);
}

double ref_value(const struct dsv2i_weight *w, size_t i)
{
    switch (w->dtype) {
    case DSV2I_F32:
        return ((const float *)w->data)[i];
    case DSV2I_BF16:
        return ref_bf16(((const uint16_t *)w->data)[i]);
    case DSV2I_F16:
        return f16(((const uint16_t *)w->data)[i]);
    default: { /* 6.1 to 6.3 */
        size_t row = i / (size_t)w->cols, col = i % (size_t)w->cols, across = ((size_t)w->cols - 1) / (size_t)w->scale_cols + 1;
        float scale = w->scale[row / (size_t)w->scale_rows * across + col / (size_t)w->scale_cols];

        return (float)(ref_kv_code(((const uint8_t *)w->data)[i], DSV2I_KV_F8_E4M3) * (double)scale);
    }
    }
}

void ref_rms_norm(double *y, const double *x, const double *w, int n, double eps) /* 3.2 */
{
    double mean = 0;

    for (int i = 0; i < n; i++)
        mean += x[i] * x[i] / n;
    for (int i = 0; i < n; i++)
        y[i] = x[i] / sqrt(mean + eps) * w[i];
}

void ref_linear(double *y, const double *x, const struct dsv2i_weight *w) /* 2 */
{
    for (int j = 0; j < w->rows; j++) {
        y[j] = 0;
        for (int k = 0; k < w->cols; k++)
            y[j] += ref_value(w, (size_t)j * (size_t)w->cols + (size_t)k) * x[k];
    }
}

void ref_rope(double *x, int n, int pos, const double *inv_freq, double multiplier) /* 3.4 */
{
    for (int i = 0; i < n / 2; i++) {
        double c = cos(pos * inv_freq[i]) * multiplier, s = sin(pos * inv_freq[i]) * multiplier;
        double a = x[2 * i], b = x[2 * i + 1];

        x[2 * i] = a * c - b * s;
        x[2 * i + 1] = b * c + a * s;
    }
}

void ref_softmax(double *p, const double *logits, int n)
{
    double max = -INFINITY, sum = 0;

    for (int i = 0; i < n; i++)
        max = fmax(max, logits[i]);
    for (int i = 0; i < n; i++)
        sum += p[i] = exp(logits[i] - max);
    for (int i = 0; i < n; i++)
        p[i] /= sum;
}

void ref_attend(double *o, const double *q, const double *key, int n_keys, const struct dsv2i_weight *kv_b,
                const struct dsv2i_shape *s) /* 3.3, naive form */
{
    int nope = s->qk_nope_head_dim, rope = s->qk_rope_head_dim, v = s->v_head_dim, rank = s->kv_lora_rank;
    int out = nope + v, width = rank + rope;
    double *score = calloc((size_t)n_keys, sizeof *score), *p = calloc((size_t)n_keys, sizeof *p);
    double *kv = calloc((size_t)n_keys * (size_t)out, sizeof *kv); /* k (nope) and v of a head, per key */
    double *w = calloc((size_t)out * (size_t)rank, sizeof *w);

    for (int h = 0; h < s->num_attention_heads; h++, q += nope + rope, o += v) {
        for (int i = 0; i < out * rank; i++)
            w[i] = ref_value(kv_b, (size_t)h * (size_t)(out * rank) + (size_t)i);
        memset(kv, 0, (size_t)n_keys * (size_t)out * sizeof *kv);
        for (int t = 0; t < n_keys; t++) {
            const double *c = key + (size_t)t * (size_t)width;

            for (int j = 0; j < out; j++)
                for (int k = 0; k < rank; k++)
                    kv[t * out + j] += w[j * rank + k] * c[k];
            score[t] = 0;
            for (int j = 0; j < nope; j++)
                score[t] += q[j] * kv[t * out + j];
            for (int j = 0; j < rope; j++)
                score[t] += q[nope + j] * c[rank + j];
            score[t] *= (double)s->softmax_scale;
        }
        ref_softmax(p, score, n_keys);
        for (int j = 0; j < v; j++) {
            o[j] = 0;
            for (int t = 0; t < n_keys; t++)
                o[j] += p[t] * kv[t * out + nope + j];
        }
    }
    free(score);
    free(p);
    free(kv);
    free(w);
}

void ref_ffn(double *y, const double *x, const struct dsv2i_ffn *w) /* 3.7 */
{
    double *g = calloc((size_t)w->gate.rows, sizeof *g), *u = calloc((size_t)w->gate.rows, sizeof *u);

    ref_linear(g, x, &w->gate);
    ref_linear(u, x, &w->up);
    for (int i = 0; i < w->gate.rows; i++)
        g[i] = g[i] / (1 + exp(-g[i])) * u[i];
    ref_linear(y, g, &w->down);
    free(g);
    free(u);
}

void ref_route(int *idx, double *weight, const double *p, int n_experts, const struct dsv2i_route *r) /* 3.6 */
{
    int size = n_experts / r->n_group, *open = calloc((size_t)n_experts, sizeof *open);
    double total = 0, *group = calloc((size_t)r->n_group, sizeof *group);

    for (int e = 0; e < n_experts; e++)
        group[e / size] = fmax(group[e / size], p[e]);
    for (int i = 0; i < r->topk_group; i++) {
        int best = 0;

        for (int g = 1; g < r->n_group; g++)
            if (group[g] > group[best])
                best = g;
        group[best] = -1;
        for (int e = 0; e < size; e++)
            open[best * size + e] = 1;
    }
    for (int j = 0; j < r->top_k; j++) {
        int best = -1;

        for (int e = 0; e < n_experts; e++)
            if (open[e] && (best < 0 || p[e] > p[best]))
                best = e;
        open[best] = 0;
        idx[j] = best;
        weight[j] = p[best];
        total += p[best];
    }
    for (int j = 0; j < r->top_k; j++)
        weight[j] = r->norm_topk_prob && r->top_k > 1 ? weight[j] / (total + 1e-20)
                                                       : weight[j] * (double)r->routed_scaling_factor;
    free(open);
    free(group);
}
