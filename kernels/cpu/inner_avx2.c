/* Inner loops for AVX2 with FMA and F16C.  SPDX-License-Identifier: MIT */
#include <immintrin.h>
#include <math.h>

#include "kv_inner.h"

#define LANES 8
#define DOT_ROWS 2 /* 8 sums: there are 16 registers */
#define AXPY_VECS(m) ((m) <= 2 ? 4 : 2)

typedef __m256 vec;

#define v_zero() _mm256_setzero_ps()
#define v_set1(f) _mm256_set1_ps(f)
#define v_load(p) _mm256_loadu_ps(p)
#define v_store(p, v) _mm256_storeu_ps(p, v)
#define v_add(a, b) _mm256_add_ps(a, b)
#define v_sub(a, b) _mm256_sub_ps(a, b)
#define v_mul(a, b) _mm256_mul_ps(a, b)
#define v_div(a, b) _mm256_div_ps(a, b)
#define v_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define v_min(a, b) _mm256_min_ps(a, b)
#define v_max(a, b) _mm256_max_ps(a, b)
#define v_round(a) _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)

/* a 2^n in two steps, so that results may be denormal or infinite */
static inline vec v_times_2n(vec a, vec n)
{
    __m256i all = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(all, 1), bias = _mm256_set1_epi32(127);
    __m256i rest = _mm256_sub_epi32(all, half);

    a = v_mul(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return v_mul(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}

static inline __m256i first(int32_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vec v_load_n(const float *p, int32_t n)
{
    return n >= LANES ? v_load(p) : _mm256_maskload_ps(p, first(n));
}

static inline void v_store_n(float *p, vec v, int32_t n)
{
    if (n >= LANES)
        v_store(p, v);
    else
        _mm256_maskstore_ps(p, first(n), v);
}

static inline vec v_first_n(vec v, int32_t n, vec rest)
{
    return _mm256_blendv_ps(rest, v, _mm256_castsi256_ps(first(n)));
}

/* A 256th of what E4M3 codes stand for: as f16 the exponent's place is right, its bias 8 too small.  One more than 0x7F carries into
 * the exponent's highest bit, which no number has: so NaN is told, and made one. */
static inline __m256i e4m3_f16(__m128i code)
{
    __m256i h = _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(code), 7), _mm256_set1_epi16((short)0xBF80));
    __m256i carry = _mm256_add_epi16(h, _mm256_set1_epi16(0x80));

    return _mm256_or_si256(h, _mm256_and_si256(carry, _mm256_set1_epi16(0x4000)));
}

static inline vec widen_e4m3(const void *code)
{
    return _mm256_cvtph_ps(_mm256_castsi256_si128(e4m3_f16(_mm_loadl_epi64(code))));
}

/* Two vectors at once, which costs less. */
static inline void v_widen_pair(vec v[2], const void *code)
{
    __m256i h = e4m3_f16(_mm_loadu_si128(code));

    v[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(h));
    v[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1));
}

/* LANES elements; of F8_E4M3 a 256th of them. */
static inline vec v_widen(const void *p, int32_t dtype)
{
    switch (dtype) {
    case DSV2I_F32:
        return v_load(p);
    case DSV2I_BF16:
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
    case DSV2I_F16:
        return _mm256_cvtph_ps(_mm_loadu_si128(p));
    default:
        return widen_e4m3(p);
    }
}

static inline vec v_widen_n(const void *p, int32_t dtype, int32_t n)
{
    uint16_t part[LANES] = { 0 };

    if (n >= LANES)
        return v_widen(p, dtype);
    if (dtype == DSV2I_F32)
        return v_load_n(p, n);
    memcpy(part, p, (size_t)n * (dtype == DSV2I_F8_E4M3 ? 1 : 2));
    return v_widen(part, dtype);
}

/* LANES codes of a byte: what they stand for. */
static inline vec v_codes(const uint8_t *code, int32_t kv_type)
{
    __m128i b = _mm_loadl_epi64((const void *)code);

    if (kv_type == DSV2I_KV_F8_E5M2)
        return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(b), 8));
    if (kv_type == DSV2I_KV_F8_E4M3)
        return v_mul(widen_e4m3(code), v_set1(256));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b));
}

/* Elements 8 j .. 8 j + 7 of a block of levels and signs; table is scaled. */
static inline vec v_levels(__m128i nibbles, uint32_t sign, vec table0, vec table1, int32_t j)
{
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m128i half = j % 2 ? _mm_srli_si128(nibbles, 8) : nibbles;
    __m256i l = _mm256_cvtepu8_epi32(half), negative;
    vec v;

    l = j < 2 ? l : _mm256_srli_epi32(l, 4);
    v = _mm256_blendv_ps(_mm256_permutevar8x32_ps(table0, l), _mm256_permutevar8x32_ps(table1, l),
                         _mm256_castsi256_ps(_mm256_slli_epi32(l, 28)));
    negative = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)(sign >> 8 * j)), bit), bit);
    return _mm256_xor_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(negative, 31)));
}

/* dst (32) = a block */
static inline void read_block(float *dst, const uint8_t *level, uint32_t sign, float scale)
{
    __m128i nibbles = _mm_loadu_si128((const void *)level);
    vec table0 = v_mul(v_set1(scale), v_load(dsv2i_kv_level)), table1 = v_mul(v_set1(scale), v_load(dsv2i_kv_level + 8));

    for (int32_t j = 0; j < 4; j++)
        v_store(dst + 8 * j, v_levels(nibbles, sign, table0, table1, j));
}

/* Sums of the lanes of four vectors. */
static inline __m128 v_sum4(vec a, vec b, vec c, vec d)
{
    __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));

    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

#include "inner_vector.h"

const struct dsv2i_inner dsv2i_inner_avx2 = INNER_TABLE;
