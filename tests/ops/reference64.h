/* The operations in double, straight from the specification, for comparison.
 * SPDX-License-Identifier: MIT */
#ifndef REFERENCE64_H
#define REFERENCE64_H

#include "ops.h"

/* Element i of a weight. */
double ref_value(const struct dsv2i_weight *w, size_t i);
double ref_bf16(uint16_t h);

/* The number of a code, of a weight or of KV page type F8_E4M3, F8_E5M2 or INT8. */
double ref_kv_code(uint8_t code, int kv_type);
/* Level i of 16 of a 32-level Lloyd-Max quantizer of the normal distribution. */
double ref_kv_level(int i);
/* y (n) = H x, Sylvester's Hadamard matrix, n a power of two; and the same with Rudin-Shapiro signs on the columns (D) or rows. */
void ref_hadamard(double *y, const double *x, int n, int signed_columns, int signed_rows);
/* What a record of a KV page says: kv (rank + rope). */
void ref_kv_read(double *kv, const void *record, int kv_type, int rank, int rope);

void ref_rms_norm(double *y, const double *x, const double *w, int n, double eps);
/* y (rows of w) = w x */
void ref_linear(double *y, const double *x, const struct dsv2i_weight *w);
/* In place; x (n), interleaved pairs. */
void ref_rope(double *x, int n, int pos, const double *inv_freq, double multiplier);
/* o (heads, v) of one row: q (heads, nope + rope) is rotated, key (n_keys, rank + rope) are normalized latents and
 * rotated keys. */
void ref_attend(double *o, const double *q, const double *key, int n_keys, const struct dsv2i_weight *kv_b,
                const struct dsv2i_shape *s);
/* y (hidden) = down(silu(gate x) * up x) */
void ref_ffn(double *y, const double *x, const struct dsv2i_ffn *w);
/* p (n) = softmax(logits) */
void ref_softmax(double *p, const double *logits, int n);
void ref_route(int *idx, double *weight, const double *p, int n_experts, const struct dsv2i_route *r);

#endif
