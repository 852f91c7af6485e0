/* Inner loops for AVX-512 (F, BW, VL, DQ).  SPDX-License-Identifier: MIT */
#include <immintrin.h>
#include <math.h>

#include "kv_inner.h"

#define LANES 16
#define DOT_ROWS 4
#define AXPY_VECS(m) 4

typedef __m512 vec;

#define v_zero() _mm512_setzero_ps()
#define v_set1(f) _mm512_set1_ps(f)
#define v_load(p) _mm512_loadu_ps(p)
#define v_store(p, v) _mm512_storeu_ps(p, v)
#define v_add(a, b) _mm512_add_ps(a, b)
#define v_sub(a, b) _mm512_sub_ps(a, b)
#define v_mul(a, b) _mm512_mul_ps(a, b)
#define v_div(a, b) _mm512_div_ps(a, b)
#define v_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define v_min(a, b) _mm512_min_ps(a, b)
#define v_max(a, b) _mm512_max_ps(a, b)
#define v_round(a) _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define v_times_2n(a, n) _mm512_scalef_ps(a, n)

/* The first n lanes; n may be greater than there are. */
static inline __mmask16 first(int32_t n)
{
    return n >= LANES ? 0xFFFF : (__mmask16)((1u << n) - 1);
}

static inline vec v_load_n(const float *p, int32_t n)
{
    return n >= LANES ? v_load(p) : _mm512_maskz_loadu_ps(first(n), p);
}

static inline void v_store_n(float *p, vec v, int32_t n)
{
    if (n >= LANES)
        v_store(p, v);
    else
        _mm512_mask_storeu_ps(p, first(n), v);
}

static inline vec v_first_n(vec v, int32_t n, vec rest)
{
    return _mm512_mask_mov_ps(rest, first(n), v);
}

static inline vec widen_half(__m256i h, int32_t dtype)
{
    if (dtype == DSV2I_BF16)
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
    return _mm512_cvtph_ps(h);
}

/* A 256th of what E4M3 codes stand for: as f16 the exponent's place is right, its bias 8 too small.  One more than 0x7F carries into
 * the exponent's highest bit, which no number has: so NaN is told, and made one. */
static inline __m512i e4m3_f16(__m256i code)
{
    __m512i h = _mm512_and_si512(_mm512_slli_epi16(_mm512_cvtepi8_epi16(code), 7), _mm512_set1_epi16((short)0xBF80));
    __m512i carry = _mm512_add_epi16(h, _mm512_set1_epi16(0x80));

    return _mm512_or_si512(h, _mm512_and_si512(carry, _mm512_set1_epi16(0x4000)));
}

static inline vec widen_e4m3(__m128i code)
{
    return _mm512_cvtph_ps(_mm512_castsi512_si256(e4m3_f16(_mm256_castsi128_si256(code))));
}

/* Two vectors at once, which costs less. */
static inline void v_widen_pair(vec v[2], const void *code)
{
    __m512i h = e4m3_f16(_mm256_loadu_si256(code));

    v[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(h));
    v[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1));
}

/* LANES elements; of F8_E4M3 a 256th of them. */
static inline vec v_widen(const void *p, int32_t dtype)
{
    return dtype == DSV2I_F32       ? v_load(p)
           : dtype == DSV2I_F8_E4M3 ? widen_e4m3(_mm_loadu_si128(p))
                                    : widen_half(_mm256_loadu_si256(p), dtype);
}

static inline vec v_widen_n(const void *p, int32_t dtype, int32_t n)
{
    if (n >= LANES)
        return v_widen(p, dtype);
    return dtype == DSV2I_F32       ? v_load_n(p, n)
           : dtype == DSV2I_F8_E4M3 ? widen_e4m3(_mm_maskz_loadu_epi8(first(n), p))
                                    : widen_half(_mm256_maskz_loadu_epi16(first(n), p), dtype);
}

/* LANES codes of a byte: what they stand for. */
static inline vec v_codes(const uint8_t *code, int32_t kv_type)
{
    __m128i b = _mm_loadu_si128((const void *)code);

    if (kv_type == DSV2I_KV_F8_E5M2)
        return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(b), 8));
    if (kv_type == DSV2I_KV_F8_E4M3)
        return v_mul(widen_e4m3(b), v_set1(256));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b));
}

/* dst (32) = a block of levels and signs */
static inline void read_block(float *dst, const uint8_t *level, uint32_t sign, float scale)
{
    const vec table = v_mul(v_set1(scale), v_load(dsv2i_kv_level)), minus = v_set1(-0.0f);
    __m512i l = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)level)); /* permutexvar takes the low 4 bits */
    vec low = _mm512_permutexvar_ps(l, table), high = _mm512_permutexvar_ps(_mm512_srli_epi32(l, 4), table);

    v_store(dst, _mm512_mask_xor_ps(low, (__mmask16)sign, low, minus));
    v_store(dst + LANES, _mm512_mask_xor_ps(high, (__mmask16)(sign >> LANES), high, minus));
}

/* Sums of the lanes of four vectors. */
static inline __m128 v_sum4(vec a, vec b, vec c, vec d)
{
    __m256 a8 = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m256 b8 = _mm256_add_ps(_mm512_castps512_ps256(b), _mm512_extractf32x8_ps(b, 1));
    __m256 c8 = _mm256_add_ps(_mm512_castps512_ps256(c), _mm512_extractf32x8_ps(c, 1));
    __m256 d8 = _mm256_add_ps(_mm512_castps512_ps256(d), _mm512_extractf32x8_ps(d, 1));
    __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a8, b8), _mm256_hadd_ps(c8, d8));

    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

#include "inner_vector.h"

const struct dsv2i_inner dsv2i_inner_avx512 = INNER_TABLE;
