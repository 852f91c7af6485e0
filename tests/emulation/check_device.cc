/* Proof of the device functions (kernels/cuda/) as emulated: conversions against arithmetic in double, matrix instructions against the
 * figures of the PTX manual, written down here once more, and programs that misuse them.
 *
 * SPDX-License-Identifier: MIT */
#include "programs.h"

#include <convert.cuh>
#include <matrix.cuh>
#include <wgmma.cuh>

#include <cmath>

namespace {

uint32_t random_state = 1;
uint32_t next_random()
{
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

template <class T> T *device_copy(const std::vector<T> &host)
{
    T *ptr = device<T>(host.size());
    cudaMemcpyAsync(ptr, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice, stream);
    cudaStreamSynchronize(stream);
    return ptr;
}

/* ---- number formats ---------------------------------------------------------------------------------------------------------------- */

struct Format {
    int exponent_bits, mantissa_bits;
    bool has_infinity; /* else the largest exponent has values, and one NaN (e4m3) */
    bool saturates;
};
const Format bf16 = {8, 7, true, false}, f16 = {5, 10, true, false}, e5m2 = {5, 2, true, true}, e4m3 = {4, 3, false, true},
             tf32 = {8, 10, true, false};

int bias(const Format &f) { return (1 << (f.exponent_bits - 1)) - 1; }
uint32_t sign_bit(const Format &f) { return 1u << (f.exponent_bits + f.mantissa_bits); }

double value_of(uint32_t code, const Format &f)
{
    int exponent = (int)(code >> f.mantissa_bits) & ((1 << f.exponent_bits) - 1), largest = (1 << f.exponent_bits) - 1;
    uint32_t mantissa = code & ((1u << f.mantissa_bits) - 1);
    double v;

    if (exponent == largest && f.has_infinity)
        v = mantissa ? NAN : INFINITY;
    else if (exponent == largest && mantissa == (1u << f.mantissa_bits) - 1)
        v = NAN;
    else
        v = ldexp(mantissa + (exponent ? ldexp(1, f.mantissa_bits) : 0), (exponent ? exponent : 1) - bias(f) - f.mantissa_bits);
    return code & sign_bit(f) ? -v : v;
}

double largest(const Format &f)
{
    double v = 0;
    for (uint32_t c = 0; c < sign_bit(f); c++)
        if (std::isfinite(value_of(c, f)))
            v = value_of(c, f);
    return v;
}

double nearest(double x, const Format &f, double max)
{
    int exponent;

    if (x == 0 || !std::isfinite(x))
        return f.saturates && std::isinf(x) ? copysign(max, x) : x;
    frexp(x, &exponent);
    if (exponent - 1 < 1 - bias(f))
        exponent = 2 - bias(f);
    double unit = ldexp(1, exponent - 1 - f.mantissa_bits), v = nearbyint(x / unit) * unit; /* to even */
    if (fabs(v) > max)
        v = copysign(f.saturates ? max : INFINITY, x);
    return v;
}

bool same(double a, double b) { return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b); }

/* All values, halfway cases, their neighbours, both signs; then f32 values all over its range. */
template <class F> bool every_f32(const Format &f, F right)
{
    std::vector<uint32_t> bits = {0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x7F7FFFFF, 1, 0x007FFFFF, 0x00800000};

    for (uint32_t c = 0; std::isfinite(value_of(c, f)) && c < sign_bit(f); c++) {
        double v = value_of(c, f), next = value_of(c + 1, f), step = std::isfinite(next) ? next - v : v - value_of(c - 1, f);
        for (double x : {v, v + step / 2, v + step / 4, v + step})
            for (uint32_t off : {(uint32_t)-1, 0u, 1u})
                bits.push_back(__float_as_uint((float)x) + off);
    }
    for (uint32_t b = 0; b < 0x80000000u - 12347; b += 12347)
        bits.push_back(b);
    for (uint32_t b : bits)
        for (uint32_t sign : {0u, 0x80000000u})
            if (!right(__uint_as_float(b ^ sign)))
                return false;
    return true;
}

template <class One, class Pair> bool narrows(const Format &f, unsigned width, One one, Pair pair)
{
    double max = largest(f);
    float before = 1;

    return every_f32(f, [&](float x) {
        uint32_t code = one(x), low = pair(x, before), high = pair(before, x), canonical = sign_bit(f) - 1;
        bool right = same(value_of(code, f), nearest(x, f, max)) && low == (code | one(before) << width)
                     && high == (one(before) | code << width);
        before = x;
        return right && (!std::isnan(x) || code == canonical);
    });
}

bool bf16_from_f32()
{
    return narrows(bf16, 16, [](float x) { return (uint32_t)dsv2i_bf16(x); }, [](float a, float b) { return dsv2i_bf16x2(a, b); });
}
bool f16_from_f32()
{
    return narrows(f16, 16, [](float x) { return (uint32_t)dsv2i_f16(x); }, [](float a, float b) { return dsv2i_f16x2(a, b); });
}
bool e4m3_from_f32()
{
    return narrows(e4m3, 8, [](float x) { return (uint32_t)dsv2i_e4m3(x); }, [](float a, float b) { return (uint32_t)dsv2i_e4m3x2(a, b); });
}
bool e5m2_from_f32()
{
    return narrows(e5m2, 8, [](float x) { return (uint32_t)dsv2i_e5m2(x); }, [](float a, float b) { return (uint32_t)dsv2i_e5m2x2(a, b); });
}
bool tf32_from_f32()
{
    return every_f32(tf32, [](float x) {
        uint32_t code = dsv2i_tf32(x);
        if (std::isnan(x))
            return std::isnan(__uint_as_float(code));
        int exponent;
        frexp(x, &exponent);
        double unit = ldexp(1, std::max(exponent - 1, -126) - 10), v = copysign(floor(fabs((double)x) / unit + 0.5) * unit, x);
        return same(__uint_as_float(code), std::isinf(x) ? x : (double)(float)v) && !(code & 0x1FFF);
    });
}

/* Every code, alone and in either half of a pair. */
bool widened()
{
    for (uint32_t c = 0; c < 0x10000; c++) {
        uint32_t d = (c * 40503 + 1) & 0xFFFF;
        float2 b = dsv2i_f32x2_from_bf16x2(c | d << 16), h = dsv2i_f32x2_from_f16x2(c | d << 16);
        if (!same(dsv2i_f32_from_bf16((uint16_t)c), value_of(c, bf16)) || !same(b.x, value_of(c, bf16)) || !same(b.y, value_of(d, bf16))
            || !same(dsv2i_f32_from_f16((uint16_t)c), value_of(c, f16)) || !same(h.x, value_of(c, f16)) || !same(h.y, value_of(d, f16)))
            return false;
        uint32_t converted = dsv2i_bf16x2_from_f16x2(c | d << 16);
        if (!same(value_of(converted & 0xFFFF, bf16), nearest(value_of(c, f16), bf16, 3.4e38))
            || !same(value_of(converted >> 16, bf16), nearest(value_of(d, f16), bf16, 3.4e38)))
            return false;
        uint32_t low = c & 0xFF, high = c >> 8; /* all pairs of fp8 */
        float2 f = dsv2i_f32x2_from_e4m3x2((uint16_t)c), g = dsv2i_f32x2_from_e5m2x2((uint16_t)c);
        uint32_t fh = dsv2i_f16x2_from_e4m3x2((uint16_t)c), gh = dsv2i_f16x2_from_e5m2x2((uint16_t)c);
        uint32_t fb = dsv2i_bf16x2_from_e4m3x2((uint16_t)c);
        if (!same(f.x, value_of(low, e4m3)) || !same(f.y, value_of(high, e4m3))
            || !same(g.x, value_of(low, e5m2)) || !same(g.y, value_of(high, e5m2))
            || !same(value_of(fh & 0xFFFF, f16), value_of(low, e4m3)) || !same(value_of(fh >> 16, f16), value_of(high, e4m3))
            || !same(value_of(gh & 0xFFFF, f16), value_of(low, e5m2)) || !same(value_of(gh >> 16, f16), value_of(high, e5m2))
            || !same(value_of(fb & 0xFFFF, bf16), value_of(low, e4m3)) || !same(value_of(fb >> 16, bf16), value_of(high, e4m3))
            || !same(dsv2i_f32_from_e4m3((uint8_t)low), value_of(low, e4m3)) || !same(dsv2i_f32_from_e5m2((uint8_t)low), value_of(low, e5m2)))
            return false;
        float4 s = dsv2i_f32x4_from_s8x4(c | d << 16);
        int want[4] = {(int)low, (int)high, (int)(d & 0xFF), (int)(d >> 8)};
        float got[4] = {s.x, s.y, s.z, s.w};
        for (int i = 0; i < 4; i++)
            if (got[i] != (float)(want[i] > 127 ? want[i] - 256 : want[i]))
                return false;
    }
    return true;
}

/* ---- mma --------------------------------------------------------------------------------------------------------------------------- */

enum Kind { kind_bf16, kind_f16, kind_tf32, kind_s8, kind_e4m3, kind_e5m2, kind_e4m3_e5m2, kind_e5m2_e4m3 };

template <Kind kind> constexpr int k_of() { return kind == kind_tf32 ? 8 : kind == kind_bf16 || kind == kind_f16 ? 16 : 32; }

/* Place of a lane's element i, as in the manual's section on the matrix fragments of each shape. */
template <int k> __device__ int row_of_a(int i, int group)
{
    if (k == 8)
        return i == 0 || i == 2 ? group : group + 8;
    if (k == 16)
        return (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
    return (0 <= i && i < 4) || (8 <= i && i < 12) ? group : group + 8;
}
template <int k> __device__ int column_of_a(int i, int in_group)
{
    if (k == 8)
        return i == 0 || i == 1 ? in_group : in_group + 4;
    if (k == 16)
        return i < 4 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
    return i < 8 ? in_group * 4 + (i & 3) : in_group * 4 + (i & 3) + 16;
}
template <int k> __device__ int row_of_b(int i, int in_group)
{
    if (k == 8)
        return i == 0 ? in_group : in_group + 4;
    if (k == 16)
        return i < 2 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8;
    return i < 4 ? in_group * 4 + (i & 3) : in_group * 4 + (i & 3) + 16;
}

template <Kind kind, class D> __device__ void multiply(D (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    if constexpr (kind == kind_bf16) dsv2i_mma_bf16(d, a, b);
    if constexpr (kind == kind_f16) dsv2i_mma_f16(d, a, b);
    if constexpr (kind == kind_tf32) dsv2i_mma_tf32(d, a, b);
    if constexpr (kind == kind_s8) dsv2i_mma_s8(d, a, b);
    if constexpr (kind == kind_e4m3) dsv2i_mma_e4m3(d, a, b);
    if constexpr (kind == kind_e5m2) dsv2i_mma_e5m2(d, a, b);
    if constexpr (kind == kind_e4m3_e5m2) dsv2i_mma_e4m3_e5m2(d, a, b);
    if constexpr (kind == kind_e5m2_e4m3) dsv2i_mma_e5m2_e4m3(d, a, b);
}

/* a (16, k), b (k, 8), d (16, 8) in and out.  The wrong one has the second and third register of A the other way round. */
template <Kind kind, class D, bool wrong> __global__ void mma_kernel(const uint32_t *a, const uint32_t *b, D *d)
{
    constexpr int k = k_of<kind>(), in_register = k / 8, width = 32 / in_register;
    int group = (int)threadIdx.x >> 2, in_group = (int)threadIdx.x % 4;
    uint32_t ra[4] = {}, rb[2] = {};
    D rd[4];

    for (int i = 0; i < 4 * in_register; i++)
        ra[i / in_register] |= a[row_of_a<k>(i, group) * k + column_of_a<k>(i, in_group)] << width % 32 * (i % in_register);
    for (int i = 0; i < 2 * in_register; i++)
        rb[i / in_register] |= b[row_of_b<k>(i, in_group) * 8 + group] << width % 32 * (i % in_register);
    if (wrong) {
        uint32_t second = ra[1];
        ra[1] = ra[2];
        ra[2] = second;
    }
    for (int i = 0; i < 4; i++)
        rd[i] = d[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)];
    multiply<kind>(rd, ra, rb);
    for (int i = 0; i < 4; i++)
        d[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = rd[i];
}

/* An exact value with the format's code of it: whole numbers up to 7, in tf32 with garbage where nothing should be read. */
uint32_t some_code(Kind kind, bool of_a, double *value)
{
    int v = (int)(next_random() % 15) - 7;

    *value = v;
    if (kind == kind_s8) {
        *value = v = (int)(next_random() % 256) - 128;
        return (uint32_t)v & 0xFF;
    }
    if (kind == kind_tf32)
        return __float_as_uint((float)v) | (next_random() & 0x1FFF);
    const Format &f = kind == kind_bf16 ? bf16 : kind == kind_f16 ? f16
                      : kind == kind_e4m3 || (kind == kind_e4m3_e5m2 && of_a) || (kind == kind_e5m2_e4m3 && !of_a) ? e4m3 : e5m2;
    uint32_t code = 0;
    while (value_of(code, f) != v)
        code++;
    return code;
}

template <Kind kind, class D, bool wrong> bool mma_right()
{
    constexpr int k = k_of<kind>();
    std::vector<uint32_t> a(16 * k), b(k * 8);
    std::vector<double> va(16 * k), vb(k * 8);
    std::vector<D> c(16 * 8);

    for (int i = 0; i < 16 * k; i++)
        a[i] = some_code(kind, true, &va[i]);
    for (int i = 0; i < 8 * k; i++)
        b[i] = some_code(kind, false, &vb[i]);
    for (D &x : c)
        x = (D)(next_random() % 1000);
    D *d = device_copy(c);
    start(mma_kernel<kind, D, wrong>, 1, 32, {}, (const uint32_t *)device_copy(a), (const uint32_t *)device_copy(b), d);
    std::vector<D> got = read(d, 16 * 8);
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 8; column++) {
            double sum = c[row * 8 + column];
            for (int i = 0; i < k; i++)
                sum += va[row * k + i] * vb[i * 8 + column];
            if (got[row * 8 + column] != (D)sum)
                return false;
        }
    return true;
}
template <bool wrong> bool mma_bf16() { return mma_right<kind_bf16, float, wrong>(); }
template <bool wrong> bool mma_f16() { return mma_right<kind_f16, float, wrong>(); }
template <bool wrong> bool mma_tf32() { return mma_right<kind_tf32, float, wrong>(); }
template <bool wrong> bool mma_s8() { return mma_right<kind_s8, int32_t, wrong>(); }
template <bool wrong> bool mma_e4m3() { return mma_right<kind_e4m3, float, wrong>(); }
template <bool wrong> bool mma_e5m2() { return mma_right<kind_e5m2, float, wrong>(); }
template <bool wrong> bool mma_e4m3_e5m2() { return mma_right<kind_e4m3_e5m2, float, wrong>(); }
template <bool wrong> bool mma_e5m2_e4m3() { return mma_right<kind_e5m2_e4m3, float, wrong>(); }

template <bool wrong> bool mma_that_the_card_lacks()
{
    emu::machine.major = 8;
    emu::machine.minor = wrong ? 6 : 9;
    return mma_right<kind_e4m3, float, false>();
}

template <bool wrong> __global__ void part_of_warp_kernel(float *to)
{
    float d[4] = {};
    uint32_t a[4] = {}, b[2] = {};
    if (!wrong || threadIdx.x != 5)
        dsv2i_mma_bf16(d, a, b);
    to[threadIdx.x] = d[0] + (float)threadIdx.x;
}
template <bool wrong> bool mma_of_part_of_a_warp()
{
    float *to = device<float>(32);
    start(part_of_warp_kernel<wrong>, 1, 32, {}, to);
    return all_are<float>(to, 32, [](size_t i) { return (float)i; });
}

/* ---- ldmatrix ----------------------------------------------------------------------------------------------------------------------- */

const int row_bytes = 48; /* of a tile's row in shared memory: 16 and a gap */

template <unsigned tiles, bool trans, int stride> __global__ void ldmatrix_kernel(const uint16_t *from, uint32_t *to)
{
    unsigned char *shared = (unsigned char *)dsv2i_shared();
    uint32_t r[tiles];

    for (unsigned i = threadIdx.x; i < tiles * 8 * row_bytes / 2; i += 32)
        ((uint16_t *)shared)[i] = from[i];
    __syncwarp();
    const unsigned char *row = shared + threadIdx.x % (8 * tiles) * stride;
    if (trans)
        dsv2i_ldmatrix_trans(r, row);
    else
        dsv2i_ldmatrix(r, row);
    for (unsigned i = 0; i < tiles; i++)
        to[i * 32 + threadIdx.x] = r[i];
}

/* Element (row, column) of a tile lies in the register of lane 4 row + column / 2, its half column % 2; transposed, with the two
 * exchanged. */
template <unsigned tiles, bool trans, int stride> bool ldmatrix_right()
{
    std::vector<uint16_t> from(tiles * 8 * row_bytes / 2);
    for (uint16_t &x : from)
        x = (uint16_t)next_random();
    uint32_t *to = device<uint32_t>(32 * tiles);
    start(ldmatrix_kernel<tiles, trans, stride>, 1, 32, {from.size() * 2}, (const uint16_t *)device_copy(from), to);
    std::vector<uint32_t> got = read(to, 32 * tiles);
    for (unsigned tile = 0; tile < tiles; tile++)
        for (unsigned row = 0; row < 8; row++)
            for (unsigned column = 0; column < 8; column++) {
                unsigned lane = trans ? 4 * column + row / 2 : 4 * row + column / 2, half = trans ? row % 2 : column % 2;
                if ((got[tile * 32 + lane] >> 16 * half & 0xFFFF) != from[(tile * 8 + row) * row_bytes / 2 + column])
                    return false;
            }
    return true;
}
template <bool wrong> bool ldmatrix_x1() { return ldmatrix_right<1, false, wrong ? 32 : row_bytes>(); }
template <bool wrong> bool ldmatrix_x2() { return ldmatrix_right<2, false, wrong ? 32 : row_bytes>(); }
template <bool wrong> bool ldmatrix_x4() { return ldmatrix_right<4, false, wrong ? 32 : row_bytes>(); }
template <bool wrong> bool ldmatrix_x1_trans() { return ldmatrix_right<1, true, wrong ? 32 : row_bytes>(); }
template <bool wrong> bool ldmatrix_x2_trans() { return ldmatrix_right<2, true, wrong ? 32 : row_bytes>(); }
template <bool wrong> bool ldmatrix_x4_trans() { return ldmatrix_right<4, true, wrong ? 32 : row_bytes>(); }
template <bool wrong> bool ldmatrix_misaligned() { return ldmatrix_right<4, false, wrong ? 40 : row_bytes>(); }
template <bool wrong> bool ldmatrix_outside_shared() { return ldmatrix_right<4, false, wrong ? 64 : row_bytes>(); }

template <bool wrong> __global__ void unsynced_kernel(uint32_t *to)
{
    uint32_t *tile = (uint32_t *)dsv2i_shared(), r[1];
    tile[threadIdx.x] = threadIdx.x;
    if (!wrong)
        __syncwarp();
    dsv2i_ldmatrix(r, tile + threadIdx.x % 8 * 4);
    to[threadIdx.x] = r[0];
}
template <bool wrong> bool ldmatrix_before_syncwarp()
{
    uint32_t *to = device<uint32_t>(32);
    start(unsynced_kernel<wrong>, 1, 32, {128}, to);
    return all_are<uint32_t>(to, 32, [](size_t i) { return (uint32_t)i; });
}

/* A product of row-major bf16 matrices, (16, 16) and (16, 8), as kernels do it.  B's rows are along n, so it is transposed as it is
 * loaded. */
template <bool wrong> __global__ void product_kernel(const uint16_t *a, const uint16_t *b, float *d)
{
    uint16_t *tile_a = (uint16_t *)dsv2i_shared(), *tile_b = tile_a + 16 * 16;
    unsigned lane = dsv2i_lane();
    uint32_t ra[4], rb[2];
    float rd[4] = {};

    dsv2i_copy<16>(tile_a + lane * 8, a + lane * 8);
    if (lane < 16)
        dsv2i_copy<16>(tile_b + lane * 8, b + lane * 8);
    dsv2i_copy_commit();
    dsv2i_copy_wait<0>();
    __syncwarp();
    dsv2i_ldmatrix(ra, tile_a + lane % 16 * 16 + lane / 16 * 8);
    if (wrong)
        dsv2i_ldmatrix(rb, tile_b + lane % 16 * 8);
    else
        dsv2i_ldmatrix_trans(rb, tile_b + lane % 16 * 8);
    dsv2i_mma_bf16(rd, ra, rb);
    for (unsigned i = 0; i < 4; i++)
        d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = rd[i];
}
template <bool wrong> bool product_with_trans_forgotten()
{
    std::vector<uint16_t> a(256), b(128);
    for (uint16_t &x : a)
        x = dsv2i_bf16((float)(next_random() % 16));
    for (uint16_t &x : b)
        x = dsv2i_bf16((float)(next_random() % 16));
    float *d = device<float>(128);
    start(product_kernel<wrong>, 1, 32, {768}, (const uint16_t *)device_copy(a), (const uint16_t *)device_copy(b), d);
    std::vector<float> got = read(d, 128);
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 8; column++) {
            double sum = 0;
            for (int k = 0; k < 16; k++)
                sum += value_of(a[row * 16 + k], bf16) * value_of(b[k * 8 + column], bf16);
            if (got[row * 8 + column] != sum)
                return false;
        }
    return true;
}

/* ---- cp.async ----------------------------------------------------------------------------------------------------------------------- */

float *counted(int n)
{
    std::vector<float> host((size_t)n);
    for (int i = 0; i < n; i++)
        host[(size_t)i] = (float)i;
    return device_copy(host);
}
float reversed_64(size_t i) { return 63 - (float)i; }

enum Mistake { none, no_wait, no_commit, no_barrier };
template <Mistake mistake> __global__ void copy_kernel(const float *from, float *to)
{
    float *tile = (float *)dsv2i_shared();
    dsv2i_copy<4>(tile + threadIdx.x, from + threadIdx.x);
    if (mistake != no_commit)
        dsv2i_copy_commit();
    if (mistake != no_wait)
        dsv2i_copy_wait<0>();
    if (mistake != no_barrier)
        __syncthreads();
    to[threadIdx.x] = tile[63 - threadIdx.x];
}
template <Mistake mistake> bool copied()
{
    float *to = device<float>(64);
    start(copy_kernel<mistake>, 1, 64, {256}, (const float *)counted(64), to);
    return all_are(to, 64, reversed_64);
}
template <bool wrong> bool copy_without_wait() { return copied<wrong ? no_wait : none>(); }
template <bool wrong> bool copy_without_commit() { return copied<wrong ? no_commit : none>(); }
template <bool wrong> bool copy_without_barrier() { return copied<wrong ? no_barrier : none>(); }

/* Four tiles through three places.  Two groups may be under way as a tile is used; the wrong ones allow three, or refill the place that
 * slow threads still read. */
template <int but_for, bool barrier> __global__ void pipeline_kernel(const float *from, float *to)
{
    float *places = (float *)dsv2i_shared();
    unsigned i = threadIdx.x;

    for (unsigned tile = 0; tile < 2; tile++) {
        dsv2i_copy<8>(places + tile * 64 + 2 * i, from + tile * 64 + 2 * i);
        dsv2i_copy_commit();
    }
    for (unsigned tile = 0; tile < 8; tile++) {
        if (barrier)
            __syncthreads();
        if (tile + 2 < 8)
            dsv2i_copy<8>(places + (tile + 2) % 3 * 64 + 2 * i, from + (tile + 2) * 64 + 2 * i);
        dsv2i_copy_commit(); /* empty at the end, so that the count goes on */
        dsv2i_copy_wait<but_for>();
        __syncthreads();
        for (unsigned j = 0; j < 2; j++)
            to[tile * 64 + 2 * i + j] = places[tile % 3 * 64 + 63 - 2 * i - j];
    }
    dsv2i_copy_wait_all();
}
template <int but_for, bool barrier> bool pipeline_right()
{
    float *to = device<float>(512);
    start(pipeline_kernel<but_for, barrier>, 1, 32, {3 * 256}, (const float *)counted(512), to);
    return all_are<float>(to, 512, [](size_t i) { return (float)(i / 64 * 64 + 63 - i % 64); });
}
template <bool wrong> bool copy_wait_off_by_one() { return pipeline_right<wrong ? 3 : 2, true>(); }
template <bool wrong> bool copy_into_a_place_in_use() { return pipeline_right<2, !wrong>(); }

template <bool wrong> __global__ void changed_source_kernel(float *from, float *to)
{
    float *tile = (float *)dsv2i_shared();
    dsv2i_copy<16>(tile + 4 * threadIdx.x, from + 4 * threadIdx.x);
    if (!wrong)
        dsv2i_copy_wait_all();
    for (int i = 0; i < 4; i++)
        from[4 * threadIdx.x + i] = -1;
    dsv2i_copy_wait_all();
    for (int i = 0; i < 4; i++)
        to[4 * threadIdx.x + i] = tile[4 * threadIdx.x + i];
}
template <bool wrong> bool source_changed_under_copy()
{
    float *to = device<float>(128);
    start(changed_source_kernel<wrong>, 1, 32, {512}, counted(128), to);
    return all_are<float>(to, 128, [](size_t i) { return (float)i; });
}

template <bool wrong> __global__ void changed_target_kernel(const float *from, float *to)
{
    float *tile = (float *)dsv2i_shared();
    dsv2i_copy<4>(tile + threadIdx.x, from + threadIdx.x);
    if (!wrong)
        dsv2i_copy_wait_all();
    if (threadIdx.x >= 20)
        tile[threadIdx.x] = 0;
    dsv2i_copy_wait_all();
    to[threadIdx.x] = tile[threadIdx.x];
}
template <bool wrong> bool target_written_under_copy()
{
    float *to = device<float>(32);
    start(changed_target_kernel<wrong>, 1, 32, {128}, (const float *)counted(32), to);
    return all_are<float>(to, 32, [](size_t i) { return i < 20 ? (float)i : 0; });
}

/* The last 16 bytes are only in part there; what is not becomes 0. */
template <bool wrong> __global__ void tail_kernel(const float *from, float *to, int n)
{
    float *tile = (float *)dsv2i_shared();
    int i = 4 * (int)threadIdx.x, left = n - i < 0 ? 0 : n - i > 4 ? 4 : n - i;
    dsv2i_copy<16>(tile + i, left ? from + i : from, wrong ? 16 : 4 * left);
    dsv2i_copy_wait_all();
    for (int j = 0; j < 4; j++)
        to[i + j] = tile[i + j];
}
template <bool wrong> bool copy_without_zero_fill()
{
    float *to = device<float>(128);
    start(tail_kernel<wrong>, 1, 32, {512}, (const float *)counted(128), to, 101);
    return all_are<float>(to, 128, [](size_t i) { return i < 101 ? (float)i : 0; });
}

__global__ void offset_kernel(const float *from, float *to, int off_from, int off_to)
{
    float *tile = (float *)dsv2i_shared();
    dsv2i_copy<16>(tile + off_to, from + off_from);
    dsv2i_copy_wait_all();
    *to = tile[off_to];
}
bool offsets_right(int off_from, int off_to)
{
    float *to = device<float>(1);
    start(offset_kernel, 1, 1, {64}, (const float *)counted(16), to, off_from, off_to);
    return read(to, 1)[0] == (float)off_from;
}
template <bool wrong> bool copy_from_misaligned() { return offsets_right(wrong ? 2 : 4, 4); }
template <bool wrong> bool copy_to_misaligned() { return offsets_right(4, wrong ? 2 : 4); }
template <bool wrong> bool copy_past_shared() { return offsets_right(4, wrong ? 16 : 12); }

/* ---- mbarriers and bulk copies ------------------------------------------------------------------------------------------------------- */

enum Slip { right, same_parity, no_expect, wrong_expect, no_empty_wait, no_full_wait, no_fence, odd_size, on_a_barrier, no_end_wait };

/* A thread brings tiles into two places, a warp uses them. */
template <Slip slip> __global__ void bulk_kernel(const float *from, float *to)
{
    float *places = (float *)dsv2i_shared();
    uint64_t *full = (uint64_t *)(places + 128), *empty = full + 2;
    unsigned lane = threadIdx.x % 32;

    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            dsv2i_mbarrier_init(full + i, 1);
            dsv2i_mbarrier_init(empty + i, 32);
        }
        if (slip != no_fence)
            dsv2i_fence_async();
    }
    __syncthreads();
    for (unsigned tile = 0; tile < 8; tile++) {
        unsigned place = tile % 2;
        int parity = slip == same_parity ? 0 : (int)(tile / 2 % 2);
        if (threadIdx.x == 0) {
            if (slip != no_empty_wait)
                dsv2i_mbarrier_wait(empty + place, parity ^ 1);
            if (slip == no_expect)
                dsv2i_mbarrier_arrive(full + place);
            else
                dsv2i_mbarrier_arrive_expect(full + place, slip == wrong_expect ? 128 : 256);
            float *target = places + 64 * (slip == on_a_barrier ? 1 + place : place);
            dsv2i_copy_bulk(target, from + tile * 64, slip == odd_size ? 252 : 256, full + place);
        } else if (threadIdx.x >= 32) {
            if (slip != no_full_wait)
                dsv2i_mbarrier_wait(full + place, parity);
            for (unsigned i = 0; i < 2; i++)
                to[tile * 64 + 2 * lane + i] = places[64 * place + 63 - 2 * lane - i];
            dsv2i_mbarrier_arrive(empty + place);
        }
    }
}
template <Slip slip> bool bulk_copied()
{
    float *to = device<float>(512);
    start(bulk_kernel<slip>, 1, 64, {1024}, (const float *)counted(512), to);
    return all_are<float>(to, 512, [](size_t i) { return (float)(i / 64 * 64 + 63 - i % 64); });
}
template <bool wrong> bool mbarrier_parity() { return bulk_copied<wrong ? same_parity : right>(); }
template <bool wrong> bool mbarrier_without_expect() { return bulk_copied<wrong ? no_expect : right>(); }
template <bool wrong> bool mbarrier_expects_too_little() { return bulk_copied<wrong ? wrong_expect : right>(); }
template <bool wrong> bool bulk_into_a_place_in_use() { return bulk_copied<wrong ? no_empty_wait : right>(); }
template <bool wrong> bool bulk_without_wait() { return bulk_copied<wrong ? no_full_wait : right>(); }
template <bool wrong> bool mbarrier_without_fence() { return bulk_copied<wrong ? no_fence : right>(); }
template <bool wrong> bool bulk_of_odd_size() { return bulk_copied<wrong ? odd_size : right>(); }
template <bool wrong> bool bulk_over_an_mbarrier() { return bulk_copied<wrong ? on_a_barrier : right>(); }

/* The source changes before the copy has landed, or the block ends. */
template <Slip slip> __global__ void bulk_end_kernel(float *from, float *to)
{
    float *tile = (float *)dsv2i_shared();
    uint64_t *barrier = (uint64_t *)(tile + 64);

    dsv2i_mbarrier_init(barrier, 1);
    dsv2i_fence_async();
    dsv2i_mbarrier_arrive_expect(barrier, 256);
    dsv2i_copy_bulk(tile, from, 256, barrier);
    if (slip == right)
        dsv2i_mbarrier_wait(barrier, 0);
    from[63] = -1;
    if (slip != no_end_wait)
        dsv2i_mbarrier_wait(barrier, 0);
    *to = slip == no_end_wait ? 63 : tile[63];
}
template <Slip slip> bool bulk_ended()
{
    float *to = device<float>(1);
    start(bulk_end_kernel<slip>, 1, 1, {512}, counted(64), to);
    return read(to, 1)[0] == 63;
}
template <bool wrong> bool source_changed_under_bulk() { return bulk_ended<wrong ? no_full_wait : right>(); }
template <bool wrong> bool block_ends_under_bulk() { return bulk_ended<wrong ? no_end_wait : right>(); }
template <bool wrong> bool mbarrier_that_the_card_lacks()
{
    emu::machine.major = wrong ? 8 : 12;
    return bulk_copied<right>();
}

/* ---- wgmma --------------------------------------------------------------------------------------------------------------------------- */

enum Misuse { as_meant, other_swizzle, other_stride, without_fence, without_async_fence, without_wait, late_wait, changed_b };

/* Bytes from the matrix's begin to element (i, k), i along m or n.  Tiles of 8 rows, of swizzle bytes, in which a row's 16 byte units
 * are exchanged; (i, k) tiles in the order of a loop over i outside, k inside. */
size_t place_of(int i, int k, bool along_n, int swizzle, int size_i, int size_k)
{
    int row = along_n ? k : i, in_row = along_n ? i : k, per_row = swizzle ? swizzle / 2 : 8;
    int tile_row = row / 8, tile_in_row = in_row / per_row, tiles_in_row = along_n ? size_i / per_row : size_k / per_row;
    int tile = along_n ? tile_in_row * (size_k / 8) + tile_row : tile_row * tiles_in_row + tile_in_row;
    int unit = in_row % per_row / 8, r = row % 8;

    switch (swizzle) {
    case 128: unit ^= r; break;
    case 64: unit ^= r / 2; break;
    case 32: unit ^= r / 4; break;
    }
    return (size_t)(tile * 8 * per_row * 2 + r * per_row * 2 + unit * 16 + in_row % 8 * 2);
}

/* (64, k) by (k, n), k what a row of swizzle bytes holds, 16 at a time. */
template <int swizzle, bool along_n, bool a_in_registers, int n, Misuse misuse>
__global__ void wgmma_kernel(const uint16_t *a, const uint16_t *b, const uint16_t *a_rows, float *to)
{
    constexpr int k = swizzle ? swizzle / 2 : 16, tile = swizzle ? 8 * swizzle : 128;
    uint16_t *at_a = (uint16_t *)dsv2i_shared(), *at_b = at_a + 64 * k;
    unsigned warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    int named = misuse == other_swizzle ? (swizzle == 128 ? 64 : 128) : swizzle, wrong_by = misuse == other_stride ? 128 : 0;
    float d[n / 2];

    for (int i = (int)threadIdx.x; i < 64 * k; i += 128)
        at_a[i] = a[i];
    for (int i = (int)threadIdx.x; i < n * k; i += 128)
        at_b[i] = b[i];
    for (float &x : d)
        x = 1000;
    if (misuse != without_async_fence)
        dsv2i_fence_async();
    __syncthreads();
    if (misuse != without_fence)
        dsv2i_wgmma_fence();
    for (int step = 0; step < k / 16; step++) {
        /* 16 along k are two tiles without swizzle, 32 bytes of a tile's rows with it */
        uint64_t a_at = dsv2i_wgmma_matrix(at_a + 16 * step, tile, (swizzle ? 1 : 2) * tile, swizzle);
        uint64_t b_at = along_n ? swizzle ? dsv2i_wgmma_matrix(at_b + step * tile, k / 8 * tile, tile + wrong_by, named)
                                          : dsv2i_wgmma_matrix(at_b, tile + wrong_by, 2 * tile, named)
                                : dsv2i_wgmma_matrix(at_b + 16 * step, tile, (swizzle ? 1 : 2) * tile + wrong_by, named);
        if (a_in_registers) {
            uint32_t ra[4];
            for (unsigned i = 0; i < 4; i++)
                memcpy(&ra[i], a_rows + (16 * warp + g + (i == 1 || i == 3 ? 8 : 0)) * k + (unsigned)step * 16 + 2 * t + (i < 2 ? 0 : 8), 4);
            dsv2i_wgmma_bf16<along_n>(d, ra, b_at, step > 0);
        } else {
            dsv2i_wgmma_bf16<along_n>(d, a_at, b_at, step > 0);
        }
    }
    dsv2i_wgmma_commit();
    if (misuse == late_wait)
        dsv2i_wgmma_wait<1>();
    else if (misuse != without_wait && misuse != changed_b)
        dsv2i_wgmma_wait<0>();
    if (misuse == changed_b) {
        at_b[threadIdx.x] = 0;
        dsv2i_fence_async();
        dsv2i_wgmma_wait<0>();
    }
    for (unsigned i = 0; i < n / 2; i++)
        to[(16 * warp + g + (i % 4 < 2 ? 0 : 8)) * n + i / 4 * 8 + 2 * t + (i & 1)] = d[i];
    dsv2i_wgmma_wait<0>();
}

template <int swizzle, bool along_n, bool a_in_registers, int n, Misuse misuse> bool wgmma_right()
{
    constexpr int k = swizzle ? swizzle / 2 : 16;
    std::vector<uint16_t> a(64 * k), b(n * k), a_rows(64 * k);
    std::vector<float> va(64 * k), vb(n * k);

    for (int i = 0; i < 64 * k; i++) {
        va[i] = (float)(next_random() % 15) - 7;
        a_rows[i] = dsv2i_bf16(va[i]);
        a[place_of(i / k, i % k, false, swizzle, 64, k) / 2] = a_rows[i];
    }
    for (int i = 0; i < n * k; i++) {
        vb[i] = (float)(next_random() % 15) - 7;
        b[place_of(i / k, i % k, along_n, swizzle, n, k) / 2] = dsv2i_bf16(vb[i]);
    }
    float *to = device<float>(64 * n);
    cudaFuncSetAttribute(wgmma_kernel<swizzle, along_n, a_in_registers, n, misuse>, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10);
    start(wgmma_kernel<swizzle, along_n, a_in_registers, n, misuse>, 1, 128, {(size_t)(64 + n) * k * 2},
          (const uint16_t *)device_copy(a), (const uint16_t *)device_copy(b), (const uint16_t *)device_copy(a_rows), to);
    std::vector<float> got = read(to, 64 * n);
    for (int row = 0; row < 64; row++)
        for (int column = 0; column < n; column++) {
            double sum = 0;
            for (int i = 0; i < k; i++)
                sum += va[row * k + i] * vb[column * k + i];
            if (got[row * n + column] != sum)
                return false;
        }
    return true;
}
template <int n, bool a_in_registers> bool wgmma_all()
{
    return wgmma_right<0, false, a_in_registers, n, as_meant>() && wgmma_right<32, false, a_in_registers, n, as_meant>()
           && wgmma_right<64, false, a_in_registers, n, as_meant>() && wgmma_right<128, false, a_in_registers, n, as_meant>()
           && wgmma_right<0, true, a_in_registers, n, as_meant>() && wgmma_right<32, true, a_in_registers, n, as_meant>()
           && wgmma_right<64, true, a_in_registers, n, as_meant>() && wgmma_right<128, true, a_in_registers, n, as_meant>();
}
bool wgmma_64() { return wgmma_all<64, false>() && wgmma_all<64, true>(); }
bool wgmma_128() { return wgmma_all<128, false>(); }
bool wgmma_256() { return wgmma_right<128, true, true, 256, as_meant>() && wgmma_right<128, false, false, 256, as_meant>(); }
template <bool wrong> bool wgmma_swizzle() { return wgmma_right<128, false, false, 64, wrong ? other_swizzle : as_meant>(); }
template <bool wrong> bool wgmma_stride() { return wgmma_right<0, false, false, 64, wrong ? other_stride : as_meant>(); }
template <bool wrong> bool wgmma_along_n() { return wgmma_right<0, true, false, 64, wrong ? other_stride : as_meant>(); }
template <bool wrong> bool wgmma_without_fence() { return wgmma_right<32, true, true, 64, wrong ? without_fence : as_meant>(); }
template <bool wrong> bool wgmma_without_async_fence() { return wgmma_right<32, true, true, 64, wrong ? without_async_fence : as_meant>(); }
template <bool wrong> bool wgmma_without_wait() { return wgmma_right<32, true, true, 64, wrong ? without_wait : as_meant>(); }
template <bool wrong> bool wgmma_wait_off_by_one() { return wgmma_right<32, true, true, 64, wrong ? late_wait : as_meant>(); }
template <bool wrong> bool wgmma_source_changed() { return wgmma_right<32, true, true, 64, wrong ? changed_b : as_meant>(); }

/* ---- the others ----------------------------------------------------------------------------------------------------------------------- */

/* One warp makes what another uses, and does not wait for it. */
template <int mistake> __global__ void handed_over_kernel(float *to)
{
    float *tile = (float *)dsv2i_shared();
    unsigned lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        if (mistake == 1)
            dsv2i_named_arrive(3, 64);
        tile[lane] = (float)lane;
        if (mistake != 1)
            dsv2i_named_arrive(3, mistake == 2 ? 96 : 64);
    } else {
        dsv2i_named_barrier(3, 64);
        to[31 - lane] = tile[31 - lane];
    }
}
template <int mistake> bool handed_over()
{
    float *to = device<float>(32);
    start(handed_over_kernel<mistake>, 1, 64, {128}, to);
    return all_are<float>(to, 32, [](size_t i) { return (float)i; });
}
template <bool wrong> bool arrival_too_early() { return handed_over<wrong ? 1 : 0>(); }
template <bool wrong> bool arrival_of_another_count() { return handed_over<wrong ? 2 : 0>(); }

template <int size> __global__ void load_kernel(const char *from, float *to)
{
    dsv2i_prefetch(from);
    *to = __uint_as_float(size == 16 ? dsv2i_load_once(from).y : size == 8 ? dsv2i_load_once_8(from).y : dsv2i_load_once_4(from));
}
template <int size, bool wrong> bool loaded()
{
    float *to = device<float>(1);
    start(load_kernel<size>, 1, 1, {}, (const char *)counted(16) + (wrong ? size / 2 : 16), to);
    return read(to, 1)[0] == (size == 4 ? 4 : 5);
}
template <bool wrong> bool load_misaligned() { return loaded<16, wrong>(); }
template <bool wrong> bool load_8_misaligned() { return loaded<8, wrong>(); }
template <bool wrong> bool load_4_misaligned() { return loaded<4, wrong>(); }

__global__ void arithmetic_kernel(float *to)
{
    float x = (float)dsv2i_lane() / 4 - 3;
    to[3 * dsv2i_lane()] = dsv2i_exp2(x);
    to[3 * dsv2i_lane() + 1] = dsv2i_reciprocal(x);
    to[3 * dsv2i_lane() + 2] = (float)(__reduce_add_sync(0xFFFFFFFF, threadIdx.x) + __reduce_max_sync(0xFFFFFFFF, threadIdx.x));
}
bool arithmetic()
{
    float *to = device<float>(96);
    start(arithmetic_kernel, 1, 32, {}, to);
    std::vector<float> got = read(to, 96);
    for (int i = 0; i < 32; i++) {
        double x = i / 4.0 - 3, e = exp2(x), r = 1 / x;
        if (fabs(got[3 * i] - e) > e * 0x1p-22 || (x == 0 ? !std::isinf(got[3 * i + 1]) : fabs(got[3 * i + 1] - r) > fabs(r) * 0x1p-22)
            || got[3 * i + 2] != 496 + 31)
            return false;
    }
    return true;
}

const Program programs[] = {
    CHECK(bf16_from_f32), CHECK(f16_from_f32), CHECK(e4m3_from_f32), CHECK(e5m2_from_f32), CHECK(tf32_from_f32), CHECK(widened),
    PROGRAM(mma_bf16), PROGRAM(mma_f16), PROGRAM(mma_tf32), PROGRAM(mma_s8), PROGRAM(mma_e4m3), PROGRAM(mma_e5m2), PROGRAM(mma_e4m3_e5m2),
    PROGRAM(mma_e5m2_e4m3), PROGRAM(mma_that_the_card_lacks), PROGRAM(mma_of_part_of_a_warp),
    PROGRAM(ldmatrix_x1), PROGRAM(ldmatrix_x2), PROGRAM(ldmatrix_x4), PROGRAM(ldmatrix_x1_trans), PROGRAM(ldmatrix_x2_trans),
    PROGRAM(ldmatrix_x4_trans), PROGRAM(ldmatrix_misaligned), PROGRAM(ldmatrix_outside_shared), PROGRAM(ldmatrix_before_syncwarp),
    PROGRAM(product_with_trans_forgotten),
    PROGRAM(copy_without_wait), PROGRAM(copy_without_commit), PROGRAM(copy_without_barrier), PROGRAM(copy_wait_off_by_one),
    PROGRAM(copy_into_a_place_in_use), PROGRAM(source_changed_under_copy), PROGRAM(target_written_under_copy),
    PROGRAM(copy_without_zero_fill), PROGRAM(copy_from_misaligned), PROGRAM(copy_to_misaligned), PROGRAM(copy_past_shared),
    PROGRAM(mbarrier_parity), PROGRAM(mbarrier_without_expect), PROGRAM(mbarrier_expects_too_little), PROGRAM(bulk_into_a_place_in_use),
    PROGRAM(bulk_without_wait), PROGRAM(mbarrier_without_fence), PROGRAM(bulk_of_odd_size), PROGRAM(bulk_over_an_mbarrier),
    PROGRAM(source_changed_under_bulk), PROGRAM(block_ends_under_bulk), PROGRAM(mbarrier_that_the_card_lacks),
    CHECK(wgmma_64), CHECK(wgmma_128), CHECK(wgmma_256), PROGRAM(wgmma_swizzle), PROGRAM(wgmma_stride), PROGRAM(wgmma_along_n),
    PROGRAM(wgmma_without_fence), PROGRAM(wgmma_without_async_fence), PROGRAM(wgmma_without_wait), PROGRAM(wgmma_wait_off_by_one),
    PROGRAM(wgmma_source_changed),
    PROGRAM(arrival_too_early), PROGRAM(arrival_of_another_count), PROGRAM(load_misaligned),
    PROGRAM(load_8_misaligned), PROGRAM(load_4_misaligned), CHECK(arithmetic),
};

}

int main() { return run_all(programs); }
