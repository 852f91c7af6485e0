/* Attention over pages by the matrix units of sm_90a, for models of 64 heads and more; the plan, and what a piece is, are mla_decode.cu's.
 *
 * Bound: the matrix units, 2,176 cycles for a tile of 64 queries and 64 keys; of shared memory 128 bytes a cycle, which the scores need all
 * of (A and B of 64 x 64 x 16 are 4 KB in 32 cycles), the values half of.
 *
 * Three warpgroups.  One makes scores and their softmax and has columns 0 to 255 of the values, one has columns 256 to 511, one brings
 * records as bf16, each page in two halves, so that a half is loaded anew as soon as the warpgroup that has its columns is done with it:
 *     left     latent 0 .. 255
 *     right    latent 256 .. 511, key
 *
 *     load     L2 wait for left       R2 wait for right      L3
 *     first    scores 1 | values 0    softmax 1, P 1         scores 2 | values 1
 *     second   values 0               wait for P 1           values 1
 *
 * Everything in shared memory is panels (copy.cuh) of 64 rows, 8 KB each:
 *     queries    9 panels     keys    2 times 9     P    1
 * Scales, if the records have any, meet the scores and P, so keys are codes: exact (6BIT: levels rounded to bf16).
 *
 * A score that is NaN is a NaN in its query's result.  In BF16 pages a NaN or infinity of a later row of the same tile is, too.
 *
 * SPDX-License-Identifier: MIT */
#include <math.h>

#include "mla_decode.cuh"
#include "wgmma.cuh"

static const int rank = DSV2I_MLA_RANK, rope = DSV2I_MLA_ROPE, width = DSV2I_MLA_WIDTH;
static const int M = 64, tokens = DSV2I_PAGE_TOKENS, group = 128, threads = 3 * group;
static const int panel_bytes = 64 * 128, half_panels = rank / 128, key_bytes = width / 64 * panel_bytes;
static const int keys_at = key_bytes, weights_at = 3 * key_bytes, pairs_at = weights_at + panel_bytes;
static const int scales_at = pairs_at + 1024, factors_at = scales_at + 2 * tokens * 8, barriers_at = factors_at + 2 * M * 4;
static const size_t shared_bytes = barriers_at + 10 * sizeof(uint64_t);

/* Barriers between all threads that multiply. */
enum { QUERIES_HERE = 1, SUMS_HERE };

struct memory {
    unsigned char *queries, *keys, *weights; /* weights: P */
    uint32_t *pairs;
    float2 *scales;                          /* (2, tokens): of the latent, of the key */
    float *factors, *sums;                   /* (M) each */
    uint64_t *full, *empty;                  /* (2, 2): of a half of a tile of keys */
    uint64_t *weights_full, *weights_empty;
};

static __device__ __forceinline__ memory memory_of(unsigned char *shared)
{
    memory m;

    m.queries = shared;
    m.keys = shared + keys_at;
    m.weights = shared + weights_at;
    m.pairs = (uint32_t *)(shared + pairs_at);
    m.scales = (float2 *)(shared + scales_at);
    m.factors = (float *)(shared + factors_at);
    m.sums = m.factors + M;
    m.full = (uint64_t *)(shared + barriers_at);
    m.empty = m.full + 4;
    m.weights_full = m.full + 8;
    m.weights_empty = m.full + 9;
    return m;
}

/* Unit u (16 bytes) of row r of a panel. */
static __device__ __forceinline__ unsigned char *unit(unsigned char *panel, int r, int u)
{
    return panel + 2 * dsv2i_panel_unit(r, u);
}

/* ---- the warpgroup that loads -------------------------------------------------------------------------------------------------------- */

/* Half `half` of the tiles, of which this is the n-th: wait until it is free. */
static __device__ __forceinline__ void wait_empty(const memory &m, int n, int half)
{
    if (n >= 2)
        dsv2i_mbarrier_wait(&m.empty[n % 2 * 2 + half], (n / 2 - 1) % 2);
}

/* What this thread has written can be read by the matrix units. */
static __device__ __forceinline__ void say_full(uint64_t *full)
{
    dsv2i_fence_async();
    dsv2i_mbarrier_arrive(full);
}

/* The first record of tile i. */
static __device__ __forceinline__ const unsigned char *records_of(const dsv2i_mla_piece &c, int i, int bytes)
{
    return (const unsigned char *)c.page[i] + (size_t)(c.layer * DSV2I_PAGE_TOKENS) * (size_t)bytes;
}

/* A piece of BF16 pages; its first tile is the block's n-th. */
static __device__ __forceinline__ void load_bf16(const memory &m, const dsv2i_mla_piece &c, int n, int thread)
{
    uint64_t *under_way = nullptr; /* of the half whose copies may not have landed yet */

    for (int i = c.begin; i < c.end; i++, n++) {
        const int valid = c.last - i * tokens;
        const unsigned char *from = records_of(c, i, 2 * width);

#pragma unroll
        for (int half = 0; half < 2; half++) {
            unsigned char *to = m.keys + n % 2 * key_bytes + half * half_panels * panel_bytes;

            wait_empty(m, n, half);
#pragma unroll 1
            for (int p = 0; p < half_panels + half; p++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int r = thread / 8 + 16 * j, u = thread % 8;

                    dsv2i_copy<16>(unit(to + p * panel_bytes, r, u), from + r * 2 * width + ((half * half_panels + p) * 8 + u) * 16,
                                   r < valid ? 16 : 0);
                }
            dsv2i_copy_commit();
            if (under_way) {
                dsv2i_copy_wait<1>();
                say_full(under_way);
            }
            under_way = &m.full[n % 2 * 2 + half];
        }
    }
    dsv2i_copy_wait<0>();
    if (under_way)
        say_full(under_way);
}

/* A thread's part of half a tile of records with codes and scales: of latents, units of 16 bytes, 32 elements of 6BIT or 16; of the left
 * half the scales, of the right the key. */
template <bool six, int half> struct half_tile {
    static const int some = six ? 4 : 8, in_row = 2 * some;
    uint4 latent[some], key[2];
    uint32_t sign[six ? some : 1];
    float2 scales;

    __device__ __forceinline__ void load(const dsv2i_mla_piece &c, int i, int thread)
    {
        const int bytes = (int)dsv2i_kv_record(six ? DSV2I_KV_6BIT : DSV2I_KV_INT8, rank, rope).bytes;
        thread = dsv2i_anew(thread) & (group - 1); /* addresses, too: registers are scarce */
        const int sign_at = rank / 2, key_at = six ? rank / 2 + rank / 8 : rank, valid = c.last - i * tokens;
        const unsigned char *from = records_of(c, i, bytes);

#pragma unroll
        for (int j = 0; j < some; j++) {
            const int r = thread / in_row + group / in_row * j, u = thread % in_row + half * in_row;

            latent[j] = r < valid ? dsv2i_load_once(from + r * bytes + 16 * u) : make_uint4(0, 0, 0, 0);
            if constexpr (six)
                sign[j] = r < valid ? dsv2i_load_once_4(from + r * bytes + sign_at + 4 * u) : 0;
        }
        if constexpr (half) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int r = thread / 4 + 32 * j;
                key[j] = r < valid ? dsv2i_load_once(from + r * bytes + key_at + thread % 4 * 16) : make_uint4(0, 0, 0, 0);
            }
        } else if (thread < tokens) { /* they begin the last 16 bytes */
            const uint2 x = thread < valid ? dsv2i_load_once_8(from + thread * bytes + bytes - 16) : make_uint2(0, 0);
            scales = make_float2(__uint_as_float(x.x), __uint_as_float(x.y));
        }
    }

    /* To the block's n-th tile, as bf16. */
    __device__ __forceinline__ void store(const memory &m, int kv_type, int n, int thread) const
    {
        thread = dsv2i_anew(thread) & (group - 1);
        unsigned char *to = m.keys + n % 2 * key_bytes;

        wait_empty(m, n, half);
#pragma unroll
        for (int j = 0; j < some; j++) {
            const int r = thread / in_row + group / in_row * j, u = thread % in_row + half * in_row;
            unsigned char *panel = to + u / (six ? 2 : 4) * panel_bytes;

            if constexpr (six) {
#pragma unroll
                for (int e = 0; e < 4; e++)
                    *(uint4 *)unit(panel, r, u % 2 * 4 + e) = dsv2i_mla_eight_levels(latent[j], sign[j], e, m.pairs);
            } else {
                dsv2i_mla_codes(unit(panel, r, u % 4 * 2), unit(panel, r, u % 4 * 2 + 1), latent[j], kv_type);
            }
        }
        if constexpr (half) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int r = thread / 4 + 32 * j, u = thread % 4 * 2;
                unsigned char *panel = to + rank / 64 * panel_bytes;
                dsv2i_mla_codes(unit(panel, r, u), unit(panel, r, u + 1), key[j], six ? DSV2I_KV_INT8 : kv_type);
            }
        } else if (thread < tokens) {
            m.scales[n % 2 * tokens + thread] = scales;
        }
        say_full(&m.full[n % 2 * 2 + half]);
    }
};

/* A piece of these.  A half is under way to registers while its place is still taken. */
template <bool six> static __device__ __forceinline__ void load_codes(const memory &m, const dsv2i_mla_piece &c, int n, int thread)
{
    for (int i = c.begin; i < c.end; i++, n++) {
        half_tile<six, 0> left;
        half_tile<six, 1> right;

        left.load(c, i, thread);
        left.store(m, c.kv_type, n, thread);
        right.load(c, i, thread);
        right.store(m, c.kv_type, n, thread);
    }
}

/* ---- the warpgroups that multiply ------------------------------------------------------------------------------------------------------ */

/* The n queries of a piece, the others 0.  For 6BIT they are rotated. */
static __device__ __forceinline__ void load_queries(unsigned char *to, const uint16_t *q, const dsv2i_mla_piece &c, int thread)
{
    q += (size_t)c.first * width;
    if (c.kv_type == DSV2I_KV_6BIT)
        for (int r = thread / 32; r < M; r += 2 * group / 32) {
            const int lane = thread % 32;
            float x[rank / 32];

#pragma unroll
            for (int j = 0; j < rank / 32; j++)
                x[j] = r < c.n ? dsv2i_f32_from_bf16(q[(size_t)(r * width + 32 * j + lane)]) : 0.0f;
            dsv2i_rotate(x, rank);
#pragma unroll
            for (int j = 0; j < rank / 32; j++)
                ((uint16_t *)unit(to + j / 2 * panel_bytes, r, j % 2 * 4 + lane / 8))[lane % 8] = dsv2i_bf16(x[j]);
        }
    for (int p = c.kv_type == DSV2I_KV_6BIT ? rank / 64 : 0; p < width / 64; p++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int r = thread / 8 + 32 * j, u = thread % 8;
            dsv2i_copy<16>(unit(to + p * panel_bytes, r, u), r < c.n ? q + r * width + p * 64 + 8 * u : q, r < c.n ? 16 : 0);
        }
    dsv2i_copy_commit();
    dsv2i_copy_wait<0>();
    dsv2i_fence_async();
}

/* Columns 256 half .. of the result, (64, 256) of a warpgroup as wgmma has them. */
static __device__ __forceinline__ void write_values(const float (&d)[128], const memory &m, const dsv2i_mla_piece &c, float *o,
                                                    float *partial, int half, int thread)
{
    const int warp = thread / 32 % 4, lane = thread % 32, g = lane / 4, t = lane % 4;

    o = c.slot < 0 ? o + (size_t)c.first * rank : partial + (size_t)c.slot * (M * (rank + 2));
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int row = 16 * warp + g + 8 * h;
        const float by = c.slot < 0 ? 1 / m.sums[row] : 1.0f;

        if (row < c.n)
#pragma unroll
            for (int j = 0; j < 32; j++)
                *(float2 *)(o + row * rank + half * (rank / 2) + 8 * j + 2 * t)
                    = make_float2(d[4 * j + 2 * h] * by, d[4 * j + 2 * h + 1] * by);
    }
}

static __device__ __forceinline__ void rescale(float (&d)[128], float of_row, float of_row_8)
{
#pragma unroll
    for (int j = 0; j < 128; j++)
        d[j] *= j / 2 % 2 ? of_row_8 : of_row;
}

/* The first of them.  coded: records have scales. */
template <bool coded>
static __device__ __forceinline__ void score_piece(const memory &m, const dsv2i_mla_piece &c, float *o, float *partial, int heads, int n)
{
    const int thread = (int)threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const uint64_t q_at = dsv2i_wgmma_matrix(m.queries, 0, 1024, 128), k_at = dsv2i_wgmma_matrix(m.keys, 0, 1024, 128);
    const uint64_t v_at = dsv2i_wgmma_matrix(m.keys, panel_bytes, 1024, 128);
    float d[128] = {}, s[32], of_key[coded ? 32 : 1], max[2], sum[2] = {}, factor[2];
    uint32_t p[tokens / 16][4];
    int visible[2];

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int row = 16 * warp + g + 8 * h;

        max[h] = -INFINITY;
        visible[h] = row < c.n ? c.pos + (c.at + row) / heads + 1 : 0;
    }
    for (int i = c.begin; i < c.end; i++, n++) {
        const uint64_t keys = k_at + (uint64_t)(n % 2 * (key_bytes / 16));
        auto scores = [&](int k) { /* k: of 16 columns; addresses are in units of 16 bytes */
            const uint64_t to = (uint64_t)((k / 4 * panel_bytes + k % 4 * 32) / 16);
            dsv2i_wgmma_bf16<false>(s, q_at + to, keys + to, k > 0);
        };

        dsv2i_mbarrier_wait(&m.full[n % 2 * 2], n / 2 % 2);
        dsv2i_wgmma_fence();
#pragma unroll
        for (int k = 0; k < rank / 32; k++)
            scores(k);
        dsv2i_wgmma_commit();
        dsv2i_wgmma_wait<0>(d, s); /* not <1>(d): ptxas (nvcc 13) loses track, and would wait for each product */
        if (i > c.begin)
            dsv2i_mbarrier_arrive_warp(&m.empty[(n - 1) % 2 * 2]); /* its values are done with */
        dsv2i_mbarrier_wait(&m.full[n % 2 * 2 + 1], n / 2 % 2);
        dsv2i_wgmma_fence();
#pragma unroll
        for (int k = rank / 32; k < (coded ? rank : width) / 16; k++)
            scores(k);
        if constexpr (coded) {
#pragma unroll
            for (int k = 0; k < rope / 16; k++) {
                const uint64_t to = (uint64_t)((rank / 64 * panel_bytes + k * 32) / 16);
                dsv2i_wgmma_bf16<false>(of_key, q_at + to, keys + to, k > 0);
            }
        }
        dsv2i_wgmma_commit();
        dsv2i_wgmma_wait<0>(s, of_key);

        const float2 *scales = m.scales + n % 2 * tokens + 2 * t;
        if constexpr (coded) { /* nvcc 13.0 skips more than a statement that begins with a pragma, if it is not in braces */
#pragma unroll
            for (int u = 0; u < tokens / 8; u++) { /* columns 8 u + 2 t and the next */
                const float4 scale = *(const float4 *)(scales + 8 * u);

#pragma unroll
                for (int j = 4 * u; j < 4 * u + 4; j++)
                    s[j] = fmaf(of_key[j], j % 2 ? scale.w : scale.y, s[j] * (j % 2 ? scale.z : scale.x));
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int seen = visible[h] - i * tokens - 2 * t; /* of columns 8 j + 0 and 1 */
            float most = max[h];

#pragma unroll
            for (int j = 0; j < 32; j++)
                if (j / 2 % 2 == h) {
                    if (j / 4 * 8 + j % 2 >= seen)
                        s[j] = -INFINITY;
                    most = fmaxf(most, s[j]);
                }
            most = fmaxf(most, __shfl_xor_sync(DSV2I_ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(DSV2I_ALL_LANES, most, 2));
            const float base = most == -INFINITY ? 0.0f : most; /* nothing to see yet */
            factor[h] = dsv2i_exp2(max[h] - base);
            max[h] = most;
            sum[h] *= factor[h];
#pragma unroll
            for (int j = 0; j < 32; j++)
                if (j / 2 % 2 == h) {
                    s[j] = dsv2i_exp2(s[j] - base);
                    sum[h] += s[j];
                }
        }
#pragma unroll
        for (int u = 0; u < tokens / 8; u++) {
            const float4 scale = *(const float4 *)(scales + 8 * u);

#pragma unroll
            for (int h = 0; h < 2; h++) {
                float x = s[4 * u + 2 * h], y = s[4 * u + 2 * h + 1];

                if constexpr (coded) { /* a scale that is not seen may be NaN */
                    x = x == 0 ? 0.0f : x * scale.x;
                    y = y == 0 ? 0.0f : y * scale.z;
                }
                p[u / 2][u % 2 * 2 + h] = dsv2i_bf16x2(x, y);
            }
        }

        if (n > 0)
            dsv2i_mbarrier_wait(m.weights_empty, (n - 1) % 2);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = 16 * warp + g + 8 * h;

#pragma unroll
            for (int u = 0; u < 8; u++)
                *(uint32_t *)(unit(m.weights, row, u) + 4 * t) = p[u / 2][u % 2 * 2 + h];
            if (t == 0)
                m.factors[row] = factor[h];
        }
        say_full(m.weights_full);
        rescale(d, factor[0], factor[1]);
        dsv2i_wgmma_fence();
#pragma unroll
        for (int k = 0; k < tokens / 16; k++)
            dsv2i_wgmma_bf16<true>(d, p[k], v_at + (uint64_t)((n % 2 * key_bytes + k * 16 * 128) / 16), true);
        dsv2i_wgmma_commit();
    }
    dsv2i_wgmma_wait<0>(d);
    dsv2i_mbarrier_arrive_warp(&m.empty[(n - 1) % 2 * 2]);

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int row = 16 * warp + g + 8 * h;

        sum[h] += __shfl_xor_sync(DSV2I_ALL_LANES, sum[h], 1);
        sum[h] += __shfl_xor_sync(DSV2I_ALL_LANES, sum[h], 2);
        if (t == 0) {
            m.sums[row] = sum[h];
            if (c.slot >= 0)
                *(float2 *)(partial + (size_t)c.slot * (M * (rank + 2)) + M * rank + 2 * row) = make_float2(max[h], sum[h]);
        }
    }
    dsv2i_named_barrier(SUMS_HERE, 2 * group);
    write_values(d, m, c, o, partial, 0, thread);
}

/* The second. */
static __device__ __forceinline__ void value_piece(const memory &m, const dsv2i_mla_piece &c, float *o, float *partial, int n)
{
    const int thread = (int)threadIdx.x, lane = thread % 32, row = thread / 32 % 4 * 16 + lane / 4;
    const uint64_t p_at = dsv2i_wgmma_matrix(m.weights, 0, 1024, 128);
    const uint64_t v_at = dsv2i_wgmma_matrix(m.keys + half_panels * panel_bytes, panel_bytes, 1024, 128);
    float d[128] = {};

    for (int i = c.begin; i < c.end; i++, n++) {
        dsv2i_mbarrier_wait(m.weights_full, n % 2);
        rescale(d, m.factors[row], m.factors[row + 8]);
        dsv2i_mbarrier_wait(&m.full[n % 2 * 2 + 1], n / 2 % 2); /* long ago: for what it lets this thread see */
        dsv2i_wgmma_fence();
#pragma unroll
        for (int k = 0; k < tokens / 16; k++)
            dsv2i_wgmma_bf16<true>(d, p_at + (uint64_t)(2 * k), v_at + (uint64_t)((n % 2 * key_bytes + k * 16 * 128) / 16), true);
        dsv2i_wgmma_commit();
        dsv2i_wgmma_wait<0>(d);
        dsv2i_mbarrier_arrive_warp(m.weights_empty);
        dsv2i_mbarrier_arrive_warp(&m.empty[n % 2 * 2 + 1]);
    }
    dsv2i_named_barrier(SUMS_HERE, 2 * group);
    write_values(d, m, c, o, partial, 1, thread);
}

/* The pieces whose records have scales, or the others.  Both in one kernel would not fit the registers. */
template <bool coded>
static __global__ void __launch_bounds__(threads, 1)
mla_decode_sm90_kernel(const dsv2i_cuda_step *step, float *o, const uint16_t *q, dsv2i_mla_work work, int layer, int heads)
{
    const memory m = memory_of((unsigned char *)dsv2i_shared());
    const int b = (int)blockIdx.x, thread = (int)threadIdx.x % group, role = (int)threadIdx.x / group;
    int n = 0; /* tiles of keys so far */

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (threadIdx.x == 0) {
        for (int i = 0; i < 4; i++) {
            dsv2i_mbarrier_init(&m.full[i], group);
            dsv2i_mbarrier_init(&m.empty[i], 4); /* warps */
        }
        dsv2i_mbarrier_init(m.weights_full, group);
        dsv2i_mbarrier_init(m.weights_empty, 4);
        dsv2i_fence_async();
    }
    if (threadIdx.x < 256)
        dsv2i_mla_make_levels(m.pairs, (int)threadIdx.x);
    __syncthreads();

    /* Every warpgroup goes through the block's pieces by itself. */
    auto each = [&](auto &&does) {
        for (int i = work.first[b]; i < work.plan->n_tiles && work.tiles[i].start < (b + 1) * work.plan->part; i++) {
            const dsv2i_mla_piece c = dsv2i_mla_piece_of(step, work.plan, work.tiles[i], b, layer, heads, true);

            if (c.begin >= c.end || (c.kv_type != DSV2I_KV_BF16) != coded)
                continue;
            does(c);
            n += c.end - c.begin;
        }
    };
    auto queries = [&](const dsv2i_mla_piece &c) {
        load_queries(m.queries, q, c, (int)threadIdx.x); /* SUMS_HERE was behind the last product with those before */
        dsv2i_named_barrier(QUERIES_HERE, 2 * group);    /* and what is in sums is read */
    };

    if (role == 2) {
        dsv2i_fewer_registers<96>();
        each([&](const dsv2i_mla_piece &c) {
            if constexpr (!coded) {
                load_bf16(m, c, n, thread);
            } else {
                if (c.kv_type == DSV2I_KV_6BIT)
                    load_codes<true>(m, c, n, thread);
                else
                    load_codes<false>(m, c, n, thread);
            }
        });
    } else if (role == 0) {
        dsv2i_more_registers<232>();
        each([&](const dsv2i_mla_piece &c) {
            queries(c);
            score_piece<coded>(m, c, o, work.partial, heads, n);
        });
    } else {
        dsv2i_more_registers<176>();
        each([&](const dsv2i_mla_piece &c) {
            queries(c);
            value_piece(m, c, o, work.partial, n);
        });
    }
}

cudaError_t dsv2i_mla_decode_sm90(const dsv2i_cuda_launch *to, const dsv2i_cuda_step *step, float *o, const uint16_t *q,
                                  const dsv2i_mla_work &work, int blocks, int layer, int heads)
{
    cudaError_t e = cudaSuccess;

    if (to->pages & DSV2I_PAGES_BF16)
        e = dsv2i_launch(to, mla_decode_sm90_kernel<false>, (unsigned)blocks, threads, shared_bytes, step, o, q, work, layer, heads);
    if (!e && to->pages & DSV2I_PAGES_CODED)
        e = dsv2i_launch(to, mla_decode_sm90_kernel<true>, (unsigned)blocks, threads, shared_bytes, step, o, q, work, layer, heads);
    return e;
}
