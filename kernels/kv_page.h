/* The records of a KV page, byte by byte: the same in every backend, and in saved sessions.  What changes here changes DSV2I_KV_FORMAT.
 *
 * A page is (layers, 64 tokens, record).  The record of a token in a layer holds c, the normalized latent of R = kv_lora_rank
 * elements, and k, the rotated key of P = qk_rope_head_dim elements (pairs interleaved), and nothing that depends on other tokens.
 * Numbers are little-endian.  Padding is 0.
 *
 *     BF16, F32   c, k as such elements.
 *
 *     F8_E4M3, F8_E5M2, INT8
 *         0              c: R codes of a byte, then k: P codes
 *         up to 4        fp32 scale of c, fp32 scale of k
 *         up to 16       end
 *       An element is code times scale; scale = max |x| / top, code = x / scale rounded to nearest even, at most top.  top is the
 *       type's greatest finite value: 448 (E4M3, without infinities), 57344 (E5M2), 127 (INT8, two's complement).
 *
 *     6BIT        5 bits for an element of c, 8 for one of k.  B = blocks of 32 elements in R, the last one filled up with 0.
 *         0              B times 16 bytes: low nibble of byte i: level of element i of the block, high nibble: of element 16 + i
 *         16 B           B times 32 bits: bit i is set if element i of the block is negative
 *         20 B           k: P codes, as INT8
 *         up to 4        fp32 scale of c, fp32 scale of k
 *         up to 16       end
 *       These are not elements of c but of y = H D c / n, in each of the R / n blocks of n elements, n the largest power of two
 *       that divides R.  H is Sylvester's Hadamard matrix, H[i][j] = (-1)^(bits set in i & j), D the diagonal of the Rudin-Shapiro
 *       signs, (-1)^(bits set in i & (i >> 1)).  So c = D H y, and q . c = (H D q) . y.  The rotation spreads what single elements
 *       hold over all, which then look normally distributed; D does the same for vectors along a row of H, as a constant one.
 *       |y| = scale * dsv2i_kv_level[level]: the Lloyd-Max quantizer of the normal distribution, 32 levels, 2.5e-3 of the square.
 *       Levels are nearest to |y| / rms(y); then scale = sum(|y| level) / sum(level^2), which makes the error least.
 *
 * A part (c or k) with an element that is not finite has a NaN as its scale and codes 0: it reads as NaN.  One whose scale would be
 * less than the least denormal has scale 0: it reads as 0.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_KV_PAGE_H
#define DSV2I_KV_PAGE_H

#include "ops.h"

#define DSV2I_KV_BLOCK 32 /* elements of c in a block of 6BIT */

/* Offsets in a record. */
struct dsv2i_kv_record {
    size_t sign, key, scale; /* sign: 6BIT */
    size_t bytes;
};

#ifdef __CUDACC__
#define DSV2I_ANYWHERE __host__ __device__
#else
#define DSV2I_ANYWHERE
#endif

#define DSV2I_KV_LEVELS { \
    0.0658896565f, 0.198051825f, 0.331378311f, 0.466699511f, 0.604933619f, 0.747135699f, 0.894565105f, 1.0487833f, \
    1.21180439f,   1.38634038f,  1.57622802f,  1.78723323f,  2.02872849f,  2.31773949f,  2.69111967f,  3.26073241f, \
}
static const float dsv2i_kv_level[16] = DSV2I_KV_LEVELS;

DSV2I_ANYWHERE static inline struct dsv2i_kv_record dsv2i_kv_record(int32_t kv_type, int32_t kv_lora_rank, int32_t qk_rope_head_dim)
{
    size_t c = (size_t)kv_lora_rank, k = (size_t)qk_rope_head_dim, blocks = (c + DSV2I_KV_BLOCK - 1) / DSV2I_KV_BLOCK;
    struct dsv2i_kv_record r = { 0, 0, 0, 0 };

    if (kv_type == DSV2I_KV_BF16 || kv_type == DSV2I_KV_F32) {
        size_t element = kv_type == DSV2I_KV_F32 ? 4 : 2;

        r.key = c * element;
        r.scale = r.bytes = (c + k) * element;
        return r;
    }
    r.key = kv_type == DSV2I_KV_6BIT ? blocks * (DSV2I_KV_BLOCK * 5 / 8) : c;
    r.sign = blocks * (DSV2I_KV_BLOCK / 2);
    r.scale = (r.key + k + 3) & ~(size_t)3;
    r.bytes = (r.scale + 8 + 15) & ~(size_t)15;
    return r;
}

/* Elements in a block of the rotation. */
DSV2I_ANYWHERE static inline int32_t dsv2i_kv_rotation(int32_t kv_lora_rank)
{
    return kv_lora_rank & -kv_lora_rank;
}

/* 1 if D negates element i of a block, else 0. */
DSV2I_ANYWHERE static inline uint32_t dsv2i_kv_negative(uint32_t i)
{
    i &= i >> 1;
    i ^= i >> 16;
    i ^= i >> 8;
    i ^= i >> 4;
    i ^= i >> 2;
    return (i ^ i >> 1) & 1;
}

#endif
