/* The launchers of the CUDA backend's kernels, a file each.  They take device pointers, put the launch on the stream, and return what CUDA
 * says of that; nothing waits.  Shapes as in ops.h.
 *
 * What changes from step to step (how many rows, which positions, which pages) is read from struct dsv2i_cuda_step in device memory, so
 * that a recorded graph serves every step of at most its rows: grids are made for max_rows, and blocks past n_rows end at once.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_KERNELS_H
#define DSV2I_CUDA_KERNELS_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "../kv_page.h"

/* A step on the device; its arrays are device memory, too. */
struct dsv2i_cuda_step {
    int32_t n_rows, n_seqs;           /* n_seqs at most n_rows */
    const int32_t *token, *pos, *seq; /* (n_rows) */
    const int32_t *first;             /* (n_seqs + 1) first row of each sequence; then n_rows */
    const struct dsv2i_seq *seqs;     /* page: a device array of device pointers */
    const double *inv_freq;           /* (qk_rope_head_dim / 2) */
    float *rope;                      /* (n_rows, qk_rope_head_dim): cos, sin of each pair's angle, times rope_multiplier */
};

/* An expert's weights, or those of a dense layer: device memory, (inter, hidden) twice and (hidden, inter), aligned to 16 bytes; and their
 * scales, NULL unless the type is F8_E4M3. */
struct dsv2i_cuda_expert {
    const void *gate, *up, *down;
    const float *gate_scale, *up_scale, *down_scale;
};

/* Elements of a column, and of a row, that share a scale (scale_rows, scale_cols of struct dsv2i_weight); not used by other types. */
struct dsv2i_cuda_scales {
    int32_t rows, cols;
};

/* Where a launch goes. */
struct dsv2i_cuda_launch {
    cudaStream_t stream;
    int32_t max_rows; /* n_rows is at most this */
    int32_t early;    /* it may begin before the launch in front of it has ended (sm_90) */
    int32_t sm;       /* the card's capability, 10 * major + minor, as 90; and its multiprocessors */
    int32_t n_sms;
    int32_t invariant; /* a row's bits must not depend on what stands beside it, nor on max_rows */
    int32_t pages;    /* that sequences in the absorbed form have or may have: of DSV2I_PAGES_* */
    int32_t several;  /* one of them has, or may have, more than one row */
};

enum { DSV2I_PAGES_BF16 = 1, DSV2I_PAGES_CODED = 2, DSV2I_PAGES_ALL = 3 };

/* step->rope, from step->pos and step->inv_freq. */
cudaError_t dsv2i_cuda_rope(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, int32_t rope, double multiplier);

/* Have kernels been built for the current device?  cudaErrorNoKernelImageForDevice if not. */
cudaError_t dsv2i_cuda_has_code(void);

/* x (n_rows, hidden) = rows token[i] of the table (vocab, hidden) of dtype. */
cudaError_t dsv2i_cuda_embed(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *x, const void *table,
                             int32_t dtype, int32_t hidden);

/* y[i] = x[i] / sqrt(mean(x[i]^2) + eps) * w, ldx and ldy elements apart.  y_bf16 (n_rows, dim), if not NULL: the same, rounded, for
 * the matrix units.  y or y_bf16 may be NULL; y may be x. */
cudaError_t dsv2i_cuda_rms_norm(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *y, int32_t ldy,
                                uint16_t *y_bf16, const float *x, int32_t ldx, const float *w, int32_t dim, float eps);

/* y (n_rows, w.rows) = x (n_rows, w.cols) W^T, or += with accumulate; w.data and w.scale are device memory.  For few rows: the weight is
 * read once for every 8.  x and w.data are aligned to 16 bytes.  No launch may write w. */
cudaError_t dsv2i_cuda_linear_few(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *y, const float *x,
                                  const struct dsv2i_weight *w, int32_t accumulate);

/* Rotate q (n_rows, heads, nope + rope) in place; normalize and rotate kva (n_rows, rank + rope) and write it to the rows' pages. */
cudaError_t dsv2i_cuda_mla_prepare(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *q, const float *kva,
                                   const float *kv_a_norm, int32_t layer, int32_t heads, int32_t nope, int32_t rank, int32_t rope);

/* y (n_rows, hidden) += sum over slots j, in slot order, of weight[j] * expert_idx[j](x), for few rows: every slot reads its expert.
 * experts: a device array; idx, weight (n_rows, top_k), or NULL for expert 0 with weight 1.  h (n_rows, top_k, inter) is scratch, aligned
 * like x to 16 bytes.  gate_up, down: of the experts' scales.  No launch may write the experts or their table. */
cudaError_t dsv2i_cuda_experts_few(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *y, const float *x,
                                   float *h, const struct dsv2i_cuda_expert *experts, const int32_t *idx, const float *weight,
                                   int32_t top_k, int32_t dtype, int32_t hidden, int32_t inter, struct dsv2i_cuda_scales gate_up,
                                   struct dsv2i_cuda_scales down);

/* From logits (n_rows, n_experts): idx, weight (n_rows, top_k). */
cudaError_t dsv2i_cuda_moe_route(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, int32_t *idx, float *weight,
                                 const float *logits, int32_t n_experts, const struct dsv2i_route *route);

/* ---- activations for the matrix units (blas.h) ---- */

/* What shares a scale: all elements, those of a row, or 128 of a row. */
enum dsv2i_cuda_scaling { DSV2I_CUDA_SCALE_ALL = 1, DSV2I_CUDA_SCALE_ROWS = 2, DSV2I_CUDA_SCALE_BLOCKS = 3 };

/* y (n_rows, dim) = codes of e4m3, and scale: 1, (n_rows) or (ceil(dim / 128), max_rows), whose products are x (n_rows, dim).  dim is a
 * multiple of 16; x and y are aligned to 16 bytes.  scratch, dsv2i_cuda_quantize_scratch() bytes, is for SCALE_ALL only. */
size_t dsv2i_cuda_quantize_scratch(void);
cudaError_t dsv2i_cuda_quantize(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, uint8_t *y, float *scale,
                                const float *x, int32_t dim, int32_t scaling, void *scratch);

/* y (n_rows, dim) = x, rounded to BF16 or F16; both aligned to 16 bytes. */
cudaError_t dsv2i_cuda_narrow(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, uint16_t *y, const float *x,
                              int32_t dtype, int32_t dim);

/* y (n_rows, dim) = part 0, 1 or 2 of x, each BF16, whose sum is x: what a product of bf16 needs to be one of fp32. */
cudaError_t dsv2i_cuda_narrow_part(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, uint16_t *y, const float *x,
                                   int32_t part, int32_t dim);

/* ---- attention in the absorbed form ---- */

/* o (n_rows, heads, v) = causal attention of prepared q (n_rows, heads, nope + rope) over the rows' pages, for any shape and page;
 * kv_b.cols is the rank.  The form is not looked at.  only_f32: only rows of sequences with F32 pages; the others' o is left as it is. */
cudaError_t dsv2i_cuda_mla_attend_any(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *o, const float *q,
                                      const struct dsv2i_weight *kv_b, int32_t layer, int32_t heads, int32_t nope, int32_t v, int32_t rope,
                                      float scale, int32_t only_f32);

/* The same in four launches for the releases' heads, nope and v 128, rank 512 and rope 64: of rows whose sequence is in the absorbed form
 * and has no F32 pages.  The others' o is left as it is.
 *
 * absorb: q_latent (n_rows, heads, 512 + 64), bf16, = (UK^T q_nope, q_rope) * scale * log2(e).
 * decode: o_latent (n_rows, heads, 512) = attention of q_latent over the latents; of 6BIT, rotated.  scratch: dsv2i_cuda_mla_scratch bytes,
 *         aligned to 256, in which plan has written, once a step, for the same to and heads.
 * value:  o (n_rows, heads, 128) = UV o_latent.
 * Arrays are aligned to 16 bytes. */
size_t dsv2i_cuda_mla_scratch(const struct dsv2i_cuda_launch *to, int32_t heads);
cudaError_t dsv2i_cuda_mla_plan(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, void *scratch, int32_t heads);
cudaError_t dsv2i_cuda_mla_absorb(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, uint16_t *q_latent,
                                  const float *q, const struct dsv2i_weight *kv_b, int32_t heads, float scale);
cudaError_t dsv2i_cuda_mla_decode(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *o_latent,
                                  const uint16_t *q_latent, int32_t layer, int32_t heads, void *scratch);
cudaError_t dsv2i_cuda_mla_value(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *o, const float *o_latent,
                                 const struct dsv2i_weight *kv_b, int32_t heads);

/* to_bf16 (w.rows, w.cols) = w as bf16: each element, for F8_E4M3 code * scale, rounded to 8 bits.  For weights whose kernel takes bf16
 * only (kv_b_proj), once when they are uploaded.  Takes no step; to->max_rows is not used. */
cudaError_t dsv2i_cuda_widen(const struct dsv2i_cuda_launch *to, uint16_t *to_bf16, const struct dsv2i_weight *w);

/* ---- products of many rows: x is bf16, weights are BF16 or F8_E4M3 (bf16 of code * scale is what is multiplied), sums fp32 -------------
 *
 * From sm_80 on.  x and weights are aligned to 16 bytes; rows of weights should be multiples of 16 bytes: others are served by a slow
 * path.  No launch may write weights or scales. */

/* y (n_rows, w.rows) of y_dtype, F32 or BF16, = x (n_rows, w.cols) W^T, or (F32) += with accumulate.  w.data and w.scale are device
 * memory; y is aligned to 8 bytes. */
cudaError_t dsv2i_cuda_linear_many(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, void *y, int32_t y_dtype,
                                   const uint16_t *x, const struct dsv2i_weight *w, int32_t accumulate);

/* Entries row * top_k + slot of a step, in the order of their experts and then their own; and tiles of at most tile_rows of them: entry
 * first to first + count - 1, which have the same expert. */
struct dsv2i_cuda_tile {
    int32_t expert, first, count;
};
struct dsv2i_cuda_permutation {
    int32_t *entry;               /* (max_rows * top_k) */
    struct dsv2i_cuda_tile *tile; /* (max_rows * top_k / tile_rows + the lesser of n_experts and max_rows * top_k) */
    int32_t *n_tiles;             /* (3): how many; then two numbers of what products have taken, 0 */
};

/* The arrays of p, from idx (n_rows, top_k); n_experts at most 512. */
cudaError_t dsv2i_cuda_moe_permute(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step,
                                   const struct dsv2i_cuda_permutation *p, const int32_t *idx, int32_t top_k, int32_t n_experts,
                                   int32_t tile_rows);

/* The experts of a layer, all of one shape and type. */
struct dsv2i_cuda_experts {
    const struct dsv2i_cuda_expert *expert; /* (n), or one of a dense layer; device memory */
    int32_t n, dtype, hidden, inter;
    struct dsv2i_cuda_scales gate_up, down;
};

/* Bytes of scratch, aligned to 256. */
size_t dsv2i_cuda_experts_many_scratch(int32_t max_rows, int32_t top_k, const struct dsv2i_cuda_experts *experts);

/* y (n_rows, hidden) += sum over slots j, in slot order, of weight[j] * expert_idx[j](x), x (n_rows, hidden), for many rows.  h and each
 * expert's result are rounded to bf16.  idx, weight (n_rows, top_k), or NULL, with top_k 1, for expert 0 with weight 1, whose result is
 * not rounded.  y is aligned to 16 bytes. */
cudaError_t dsv2i_cuda_experts_many(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *y, const uint16_t *x,
                                    const struct dsv2i_cuda_experts *experts, const int32_t *idx, const float *weight, int32_t top_k,
                                    void *scratch);

/* ---- From logits to tokens.  n_rows points at the number of rows in device memory, at most to->max_rows. */

/* token, logprob (n_rows) = what dsv2i_sample_choose chooses from logits (n_rows, vocab) by how (n_rows), all in device memory, also the
 * lists: the same token, and its log_softmax of the raw logits.  Token -1 (logprob NaN) where it fails: a NaN or +infinity, or no token
 * left.  Rows of logits are ld elements apart, a multiple of 4, and aligned to 16 bytes; vocab is at most 2^24.  is_token: bit i % 32 of
 * word i / 32 says whether id i is a token; NULL: all are.  scratch: zeroed before its first use, for as many rows as it was made for. */
size_t dsv2i_cuda_sample_scratch(int32_t max_rows, int32_t vocab);
cudaError_t dsv2i_cuda_sample(const struct dsv2i_cuda_launch *to, const int32_t *n_rows, int32_t *token, float *logprob,
                              const float *logits, int32_t ld, int32_t vocab, const struct dsv2i_sampling *how,
                              const uint32_t *is_token, void *scratch);

/* The same where all rows are greedy; others get no token. */
cudaError_t dsv2i_cuda_argmax(const struct dsv2i_cuda_launch *to, const int32_t *n_rows, int32_t *token, float *logprob,
                              const float *logits, int32_t ld, int32_t vocab, const struct dsv2i_sampling *how,
                              const uint32_t *is_token, void *scratch);

/* One part of the op score: logits (n_rows, end - begin) of the tokens from begin on, rows ld elements apart.  Parts come in ascending
 * order from 0 to vocab; the first begins stand (n_rows), the last writes out (n_rows).  of_target: the logit of target[i], at
 * of_target[i * ld_target], with the bits that the product for the tile gives, else ties may be missed; read by the first only. */
struct dsv2i_cuda_stand {
    double sum;                       /* of exp(logit - max) */
    float target, max;
    int32_t above, top_token;         /* logits greater than the target's; the first of the greatest */
};
cudaError_t dsv2i_cuda_score(const struct dsv2i_cuda_launch *to, const int32_t *n_rows, struct dsv2i_score *out,
                             struct dsv2i_cuda_stand *stand, const float *logits, int32_t ld, int32_t begin, int32_t end, int32_t vocab,
                             const int32_t *target, const float *of_target, int32_t ld_target);

/* rows (n_rows, w.cols) of w's type = rows target[i] of w (w.data is device memory): their product with the rows of x has of_target on its
 * diagonal. */
cudaError_t dsv2i_cuda_gather_rows(const struct dsv2i_cuda_launch *to, const int32_t *n_rows, void *rows, const struct dsv2i_weight *w,
                                   const int32_t *target);

/* What the host knows of the expanded sequences of a step, F32 caches left out; it may say more than there is. */
struct dsv2i_cuda_prefill {
    int32_t seqs, rows; /* how many */
    int32_t context;    /* sum of their greatest position + 1, each rounded up to a multiple of 128 */
    int32_t window;     /* positions whose keys and values are there at a time, a multiple of 128; 4,096 are good */
};

/* Bytes of scratch: window * (1,152 + 512 heads) + 32 max_rows heads; 290 MB for V2 with a window of 4,096 and 4,096 rows. */
size_t dsv2i_cuda_mla_prefill_scratch(int32_t max_rows, int32_t heads, int32_t window);

/* o (n_rows, heads, 128) of the rows of sequences of the form DSV2I_EXPANDED, but in F32: causal attention of prepared q (n_rows, heads,
 * 192) over positions 0 .. pos, and the same rounded in o_bf16, if not NULL.  Other rows are not touched.  For latents of 512, rotated
 * keys of 64, up to 128 heads of 128 + 64 and 128, kv_b in bf16: else cudaErrorInvalidValue.  kv_b->data is device memory; it, o and q
 * are aligned to 16 bytes.  A launch or more for every window of the context, so not for graphs of steps to come. */
cudaError_t dsv2i_cuda_mla_prefill(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *o, uint16_t *o_bf16,
                                   const float *q, const struct dsv2i_weight *kv_b, int32_t layer, const struct dsv2i_shape *shape,
                                   const struct dsv2i_cuda_prefill *prefill, void *scratch);

#ifdef __cplusplus
}
#endif

#endif
