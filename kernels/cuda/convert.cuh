/* Between f32 and the narrow types: bf16, f16, fp8 (e4m3, e5m2), s8, tf32.  They are kept as plain integers; a pair has its first
 * element in the low half.
 *
 * Narrowing rounds to nearest, ties to even.  Of infinite and too large values bf16 and f16 make infinity, fp8 its largest finite value;
 * any NaN becomes the canonical one.  The arithmetic in bits below is what runs where the hardware has no instruction: fp8 before
 * sm_89, and all of it on a host.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_CONVERT_CUH
#define DSV2I_CUDA_CONVERT_CUH

#include <cuda_runtime.h>

#include <stdint.h>

/* ---- in bits ------------------------------------------------------------------------------------------------------------------ */

__device__ __forceinline__ uint32_t dsv2i_round_shift(uint32_t x, int by)
{
    return (x + (1u << (by - 1)) - 1 + (x >> by & 1)) >> by;
}

/* The code of |f|, not NaN, in a type of m mantissa bits; past the type's largest where f is. */
__device__ __forceinline__ uint32_t dsv2i_narrow(uint32_t f, int bias, int m)
{
    uint32_t abs = f & 0x7FFFFFFF;
    int exponent = (int)(abs >> 23) - 127 + bias, by = 23 - m;

    if (exponent > 0)
        return dsv2i_round_shift(abs - ((uint32_t)(127 - bias) << 23), by);
    by += 1 - exponent; /* subnormal there: the leading bit is stored */
    return by > 24 ? 0 : dsv2i_round_shift((abs & 0x7FFFFF) | 0x800000, by);
}

/* The value of a code without sign that is finite. */
__device__ __forceinline__ float dsv2i_widen(uint32_t abs, int bias, int m)
{
    uint32_t rest = abs << (23 - m);

    if (abs >> m)
        return __uint_as_float(rest + ((uint32_t)(127 - bias) << 23));
    uint32_t one = (uint32_t)(128 - bias) << 23; /* subnormal: a mantissa without its leading bit */
    return __uint_as_float(one | rest) - __uint_as_float(one);
}

__device__ __forceinline__ float dsv2i_with_sign(float abs, uint32_t negative)
{
    return __uint_as_float(__float_as_uint(abs) | negative << 31);
}

__device__ __forceinline__ bool dsv2i_is_nan(uint32_t f) { return (f & 0x7FFFFFFF) > 0x7F800000; }

__device__ __forceinline__ float dsv2i_soft_f32_from_e4m3(uint32_t x)
{
    return (x & 0x7F) == 0x7F ? __uint_as_float(0x7FFFFFFF) : dsv2i_with_sign(dsv2i_widen(x & 0x7F, 7, 3), x >> 7 & 1);
}

__device__ __forceinline__ float dsv2i_soft_f32_from_e5m2(uint32_t x)
{
    uint32_t abs = x & 0x7F;

    if (abs > 0x7C)
        return __uint_as_float(0x7FFFFFFF);
    return dsv2i_with_sign(abs == 0x7C ? __uint_as_float(0x7F800000) : dsv2i_widen(abs, 15, 2), x >> 7 & 1);
}

__device__ __forceinline__ uint32_t dsv2i_soft_e4m3(float x)
{
    uint32_t f = __float_as_uint(x);
    return dsv2i_is_nan(f) ? 0x7Fu : min(dsv2i_narrow(f, 7, 3), 0x7Eu) | (f >> 31) << 7;
}

__device__ __forceinline__ uint32_t dsv2i_soft_e5m2(float x)
{
    uint32_t f = __float_as_uint(x);
    return dsv2i_is_nan(f) ? 0x7Fu : min(dsv2i_narrow(f, 15, 2), 0x7Bu) | (f >> 31) << 7;
}

#ifndef __CUDACC__

static inline uint32_t dsv2i_soft_bf16(float x)
{
    uint32_t f = __float_as_uint(x);
    return dsv2i_is_nan(f) ? 0x7FFF : dsv2i_round_shift(f, 16);
}

static inline uint32_t dsv2i_soft_f16(float x)
{
    uint32_t f = __float_as_uint(x);
    return dsv2i_is_nan(f) ? 0x7FFF : min(dsv2i_narrow(f, 15, 10), 0x7C00u) | (f >> 31) << 15;
}

static inline float dsv2i_soft_f32_from_f16(uint32_t x)
{
    uint32_t abs = x & 0x7FFF;

    if (abs > 0x7C00)
        return __uint_as_float(0x7FFFFFFF);
    return dsv2i_with_sign(abs == 0x7C00 ? __uint_as_float(0x7F800000) : dsv2i_widen(abs, 15, 10), x >> 15);
}

#endif

/* ---- bf16, f16, tf32, s8 ------------------------------------------------------------------------------------------------------- */

__device__ __forceinline__ float dsv2i_f32_from_bf16(uint16_t x) { return __uint_as_float((uint32_t)x << 16); }

__device__ __forceinline__ float2 dsv2i_f32x2_from_bf16x2(uint32_t x)
{
    return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xFFFF0000));
}

__device__ __forceinline__ uint32_t dsv2i_bf16x2(float low, float high)
{
#ifdef __CUDACC__
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
#else
    return dsv2i_soft_bf16(low) | dsv2i_soft_bf16(high) << 16;
#endif
}

__device__ __forceinline__ uint16_t dsv2i_bf16(float x)
{
#ifdef __CUDACC__
    uint16_t d;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(d) : "f"(x));
    return d;
#else
    return (uint16_t)dsv2i_soft_bf16(x);
#endif
}

__device__ __forceinline__ float dsv2i_f32_from_f16(uint16_t x)
{
#ifdef __CUDACC__
    float d;
    asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(x));
    return d;
#else
    return dsv2i_soft_f32_from_f16(x);
#endif
}

__device__ __forceinline__ float2 dsv2i_f32x2_from_f16x2(uint32_t x)
{
    return make_float2(dsv2i_f32_from_f16((uint16_t)x), dsv2i_f32_from_f16((uint16_t)(x >> 16)));
}

__device__ __forceinline__ uint32_t dsv2i_f16x2(float low, float high)
{
#ifdef __CUDACC__
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
#else
    return dsv2i_soft_f16(low) | dsv2i_soft_f16(high) << 16;
#endif
}

__device__ __forceinline__ uint16_t dsv2i_f16(float x)
{
#ifdef __CUDACC__
    uint16_t d;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(x));
    return d;
#else
    return (uint16_t)dsv2i_soft_f16(x);
#endif
}

__device__ __forceinline__ uint32_t dsv2i_bf16x2_from_f16x2(uint32_t x)
{
    float2 f = dsv2i_f32x2_from_f16x2(x);
    return dsv2i_bf16x2(f.x, f.y);
}

/* To the 10 mantissa bits that a tf32 mma reads; ties away from zero. */
__device__ __forceinline__ uint32_t dsv2i_tf32(float x)
{
#ifdef __CUDACC__
    uint32_t d;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(d) : "f"(x));
    return d;
#else
    uint32_t f = __float_as_uint(x);
    return dsv2i_is_nan(f) ? 0x7FFFFFFF : (f & 0x7F800000) == 0x7F800000 ? f : (f + 0x1000) & ~0x1FFFu;
#endif
}

__device__ __forceinline__ float4 dsv2i_f32x4_from_s8x4(uint32_t x)
{
    return make_float4((float)(int8_t)x, (float)(int8_t)(x >> 8), (float)(int8_t)(x >> 16), (float)(int8_t)(x >> 24));
}

/* ---- fp8 ------------------------------------------------------------------------------------------------------------------------- */

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define DSV2I_FP8_CONVERSIONS(type) \
    __device__ __forceinline__ uint32_t dsv2i_f16x2_from_##type##x2(uint16_t x) \
    { \
        uint32_t d; \
        asm("cvt.rn.f16x2." #type "x2 %0, %1;" : "=r"(d) : "h"(x)); \
        return d; \
    } \
    __device__ __forceinline__ float2 dsv2i_f32x2_from_##type##x2(uint16_t x) \
    { \
        return dsv2i_f32x2_from_f16x2(dsv2i_f16x2_from_##type##x2(x)); \
    } \
    __device__ __forceinline__ uint16_t dsv2i_##type##x2(float low, float high) \
    { \
        uint16_t d; \
        asm("cvt.rn.satfinite." #type "x2.f32 %0, %1, %2;" : "=h"(d) : "f"(high), "f"(low)); \
        return d; \
    }
#else
#define DSV2I_FP8_CONVERSIONS(type) \
    __device__ __forceinline__ float2 dsv2i_f32x2_from_##type##x2(uint16_t x) \
    { \
        return make_float2(dsv2i_soft_f32_from_##type(x & 0xFFu), dsv2i_soft_f32_from_##type((uint32_t)x >> 8)); \
    } \
    __device__ __forceinline__ uint32_t dsv2i_f16x2_from_##type##x2(uint16_t x) \
    { \
        float2 f = dsv2i_f32x2_from_##type##x2(x); \
        return dsv2i_f16x2(f.x, f.y); \
    } \
    __device__ __forceinline__ uint16_t dsv2i_##type##x2(float low, float high) \
    { \
        return (uint16_t)(dsv2i_soft_##type(low) | dsv2i_soft_##type(high) << 8); \
    }
#endif
DSV2I_FP8_CONVERSIONS(e4m3)
DSV2I_FP8_CONVERSIONS(e5m2)
#undef DSV2I_FP8_CONVERSIONS

__device__ __forceinline__ float dsv2i_f32_from_e4m3(uint8_t x) { return dsv2i_f32x2_from_e4m3x2(x).x; }
__device__ __forceinline__ float dsv2i_f32_from_e5m2(uint8_t x) { return dsv2i_f32x2_from_e5m2x2(x).x; }
__device__ __forceinline__ uint8_t dsv2i_e4m3(float x) { return (uint8_t)dsv2i_e4m3x2(x, 0); }
__device__ __forceinline__ uint8_t dsv2i_e5m2(float x) { return (uint8_t)dsv2i_e5m2x2(x, 0); }

/* Every e4m3 value is a bf16 value. */
__device__ __forceinline__ uint32_t dsv2i_bf16x2_from_e4m3x2(uint16_t x)
{
    float2 f = dsv2i_f32x2_from_e4m3x2(x);
    return dsv2i_bf16x2(f.x, f.y);
}

#endif
