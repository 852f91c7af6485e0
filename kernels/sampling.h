/* What decides which token is drawn, computed with the same bits everywhere: by the C library's sampler and by the CUDA backend's.
 *
 * Each function is additions, multiplications and divisions of IEEE doubles in a fixed order, none fused, and integers; none asks the C
 * library, whose exp and log differ from one to the next in their last bits.  (Sources that include this are compiled with
 * -ffp-contract=off, or by nvcc, which never fuses what dsv2i_times, dsv2i_plus and dsv2i_times_f32 give.)  Where masses are summed they
 * are integers, so that a sum depends on no order and may be taken by any number of threads.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_SAMPLING_H
#define DSV2I_SAMPLING_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define DSV2I_ANYWHERE __host__ __device__
#else
#define DSV2I_ANYWHERE
#endif

#define DSV2I_GREEDY_BELOW 1e-5f /* of temperature */

DSV2I_ANYWHERE static inline double dsv2i_times(double a, double b)
{
#ifdef __CUDA_ARCH__
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}

DSV2I_ANYWHERE static inline double dsv2i_plus(double a, double b)
{
#ifdef __CUDA_ARCH__
    return __dadd_rn(a, b);
#else
    return a + b;
#endif
}

DSV2I_ANYWHERE static inline float dsv2i_times_f32(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

DSV2I_ANYWHERE static inline double dsv2i_double(uint64_t bits)
{
    double x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

/* ln x of a normal x > 0, to about 2^-51 of it: x = 2^e m, and ln m = 2 artanh((m - 1) / (m + 1)) by its series, whose argument is at
 * most 0.1716 and whose next term would be 2^-60. */
DSV2I_ANYWHERE static inline double dsv2i_ln(double x)
{
    const uint64_t fraction = ((uint64_t)1 << 52) - 1;
    uint64_t bits;
    int32_t e;
    double m, s, z, series = 1.0 / 21;

    memcpy(&bits, &x, sizeof bits);
    e = (int32_t)(bits >> 52) - 1023;
    m = dsv2i_double((bits & fraction) | (uint64_t)1023 << 52);
    if (m > 0x1.6a09e667f3bcdp+0) { /* sqrt(2) */
        m = dsv2i_times(m, 0.5);
        e++;
    }
    s = (m - 1) / (m + 1);
    z = dsv2i_times(s, s);
    for (int32_t k = 19; k > 0; k -= 2)
        series = dsv2i_plus(dsv2i_times(series, z), 1.0 / k);
    return dsv2i_plus(dsv2i_times(e, 0x1.62e42fefa39efp-1), dsv2i_times(2 * s, series)); /* ln 2 */
}

/* A logit as an unsigned number of the same order; -0 and 0 are the same. */
DSV2I_ANYWHERE static inline uint32_t dsv2i_order(float logit)
{
    uint32_t bits;

    logit += 0.0f;
    memcpy(&bits, &logit, sizeof bits);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}

/* ---- Bias and penalties */

DSV2I_ANYWHERE static inline float dsv2i_biased(float logit, float bias)
{
    return logit + (bias < -100 ? -100 : bias > 100 ? 100 : bias);
}

/* Of a token in prompt or output, count times in the output. */
DSV2I_ANYWHERE static inline float dsv2i_penalized(float logit, uint32_t count, float repetition, float presence, float frequency)
{
    logit = logit > 0 ? logit / repetition : dsv2i_times_f32(logit, repetition);
    logit -= dsv2i_times_f32(frequency, (float)count);
    return count ? logit - presence : logit;
}

/* ---- Temperature and min_p */

DSV2I_ANYWHERE static inline double dsv2i_per_temperature(float temperature)
{
    return 1 / (double)(temperature > 0.01f ? temperature : 0.01f);
}

/* x of a logit: ln of its probability over the greatest one's. */
DSV2I_ANYWHERE static inline double dsv2i_x(float logit, float max, double per_temperature)
{
    return dsv2i_times((double)logit - (double)max, per_temperature);
}

/* The least x that min_p leaves. */
DSV2I_ANYWHERE static inline double dsv2i_lowest(float min_p)
{
    return min_p > 0 ? dsv2i_ln((double)min_p) : -0x1p1023;
}

/* ---- top_p */

#define DSV2I_MASS_BITS 40 /* 2^24 tokens of the greatest mass make a sum of 64 bits */

/* exp(x) for x <= 0 in units of 2^-40, rounded: x = (n ln 2 + r) / 16 for an integer n, and exp(r / 16) by its series, which ends within
 * 2^-42 of it. */
DSV2I_ANYWHERE static inline uint64_t dsv2i_mass(double x, const double *root /* (16) DSV2I_ROOTS */)
{
    double y, r, p = 1.0 / 120;
    int32_t n;

    if (!(x > -28.5)) /* less than half a unit */
        return 0;
    y = dsv2i_times(x, 0x1.71547652b82fep+4); /* 16 / ln 2 */
    n = (int32_t)(y - 0.5);
    r = dsv2i_times(y - n, 0x1.62e42fefa39efp-5);
    p = dsv2i_plus(dsv2i_times(p, r), 1.0 / 24);
    p = dsv2i_plus(dsv2i_times(p, r), 1.0 / 6);
    p = dsv2i_plus(dsv2i_times(p, r), 0.5);
    p = dsv2i_plus(dsv2i_times(p, r), 1);
    p = dsv2i_plus(dsv2i_times(p, r), 1);
    p = dsv2i_times(p, root[n & 15]);
    p = dsv2i_times(p, dsv2i_double((uint64_t)(1023 + DSV2I_MASS_BITS + (n >> 4)) << 52));
    return (uint64_t)(p + 0.5);
}

/* 2^(i / 16) */
#define DSV2I_ROOTS { \
    1.0,                  0x1.0b5586cf9890fp+0, 0x1.172b83c7d517bp+0, 0x1.2387a6e756238p+0, \
    0x1.306fe0a31b715p+0, 0x1.3dea64c123422p+0, 0x1.4bfdad5362a27p+0, 0x1.5ab07dd485429p+0, \
    0x1.6a09e667f3bcdp+0, 0x1.7a11473eb0187p+0, 0x1.8ace5422aa0dbp+0, 0x1.9c49182a3f090p+0, \
    0x1.ae89f995ad3adp+0, 0x1.c199bdd85529cp+0, 0x1.d5818dcfba487p+0, 0x1.ea4afa2a490dap+0, \
}

/* The least mass that is the share p, below 1, of a sum; at least 1. */
DSV2I_ANYWHERE static inline uint64_t dsv2i_mass_share(float p, uint64_t sum)
{
    double share = dsv2i_times((double)p, (double)sum);
    uint64_t whole = (uint64_t)share;

    return whole + ((double)whole < share);
}

/* ---- Draw */

/* Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): out = block counter of stream key. */
DSV2I_ANYWHERE static inline void dsv2i_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t a = counter[0], b = counter[1], c = counter[2], d = counter[3], k0 = key[0], k1 = key[1];

    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53 * a, p1 = (uint64_t)0xCD9E8D57 * c;

        a = (uint32_t)(p1 >> 32) ^ b ^ k0;
        b = (uint32_t)p1;
        c = (uint32_t)(p0 >> 32) ^ d ^ k1;
        d = (uint32_t)p0;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    out[0] = a;
    out[1] = b;
    out[2] = c;
    out[3] = d;
}

/* The four words for tokens 4 block to 4 block + 3 at a position. */
DSV2I_ANYWHERE static inline void dsv2i_random(uint64_t seed, uint64_t pos, int32_t block, uint32_t r[4])
{
    const uint32_t counter[4] = {(uint32_t)pos, (uint32_t)(pos >> 32), (uint32_t)block, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};

    dsv2i_philox(counter, key, r);
}

/* ln(p / E), up to a constant, of a token with random word r: E = -ln u, u = (r + 0.5) / 2^32. */
DSV2I_ANYWHERE static inline double dsv2i_race(double x, uint32_t r)
{
    double u = dsv2i_times((double)r + 0.5, 0x1p-32);

    return x - dsv2i_ln(-dsv2i_ln(u));
}

/* No race with word r adds more to x than this: E > 1 - u >= 2^-(z + 1) for the z leading ones of r; with room for rounding. */
#define DSV2I_LUCK(leading_ones) ((1 + (leading_ones)) * 0.6932f)
#define DSV2I_LUCKIEST 22.9f
/* And no winner has less than the greatest logit's token in its worst luck. */
#define DSV2I_LEAST_WINNER -3.2f

#endif
