/* Before attention: rotate the rope part of each head's query in place; normalize the latent, rotate the shared key, and write both to
 * the row's page as its type says (kv_page.h): the same bytes as the CPU backend writes for the same normalized latent.
 *
 * Bound: latency at few rows; else bandwidth, heads * rope floats read and written and one record written for each row: for V2 64 KB.
 * A block serves a row.  Its first warp holds the latent in registers, element 32 j + lane in register j of a lane, so that the norm, the
 * rotation of 6BIT and the scales need neither shared memory nor barriers; the others rotate the queries meanwhile.
 *
 * SPDX-License-Identifier: MIT */
#include "kv_read.cuh"
#include "launch.cuh"
#include "load.cuh"
#include "warp.cuh"

static const float latent_eps = 1e-6f; /* the published code's constructor default, whatever the config says */

static __device__ __forceinline__ float level(int i)
{
    const float of[16] = DSV2I_KV_LEVELS;
    return of[i];
}

static __device__ __forceinline__ unsigned greatest(unsigned a, unsigned b)
{
    return a > b ? a : b;
}

/* Greatest magnitude of a lane's elements, then of the warp's; NaN if one is not finite. */
template <int n> static __device__ float max_abs(const float (&x)[n])
{
    unsigned max = 0;

#pragma unroll
    for (int j = 0; j < n; j++)
        max = greatest(max, __float_as_uint(x[j]) & 0x7FFFFFFFu);
    max = dsv2i_warp_max(max);
    return max < 0x7F800000u ? __uint_as_float(max) : __uint_as_float(0x7FC00000u);
}

/* Codes of a byte of the count elements that the warp holds; returns the scale. */
template <int n> static __device__ float write_bytes(unsigned char *code, const float (&x)[n], int count, int kv_type)
{
    const float top = kv_type == DSV2I_KV_F8_E4M3 ? 448.0f : kv_type == DSV2I_KV_F8_E5M2 ? 57344.0f : 127.0f;
    const bool f8 = kv_type == DSV2I_KV_F8_E4M3 || kv_type == DSV2I_KV_F8_E5M2;
    float scale = max_abs(x) / top;
    int lane = (int)threadIdx.x % 32;

#pragma unroll
    for (int j = 0; j < n; j++) {
        int i = 32 * j + lane;
        unsigned char c = 0;

        if (scale > 0) { /* else 0 or NaN */
            float v = x[j] / scale;

            if (f8) {
                c = kv_type == DSV2I_KV_F8_E4M3 ? dsv2i_e4m3(v) : dsv2i_e5m2(v);
            } else {
                v = v > top ? top : v < -top ? -top : v; /* a denormal scale may be that coarse */
                c = (unsigned char)__float_as_uint(__fadd_rn(v, 0x1.8p23f));
            }
        }
        if (i < count)
            code[i] = c;
    }
    return scale;
}

/* The planes of levels and signs of y; returns the scale. */
template <int n> static __device__ float write_levels(unsigned char *levels, unsigned char *signs, const float (&y)[n], int count)
{
    double square = 0, fit = 0, of_levels = 0;
    float rms, scale;
    int lane = (int)threadIdx.x % 32;

#pragma unroll
    for (int j = 0; j < n; j++)
        square += (double)y[j] * (double)y[j]; /* 0 past the end */
    rms = (float)sqrt(dsv2i_warp_sum(square) / count);
#pragma unroll
    for (int j = 0; j < n; j++) {
        int i = 32 * j + lane, l = 0;
        float a = fabsf(y[j]), nearest = level(0);
        unsigned negative, high;

        if (32 * j >= count)
            break;
        if (i < count && rms > 0 && rms < 0x1.fffffep127f) {
#pragma unroll
            for (int k = 0; k < 15; k++) {
                bool above = a > 0.5f * (level(k) + level(k + 1)) * rms;

                l += above;
                nearest = above ? level(k + 1) : nearest;
            }
            fit += (double)a * (double)nearest;
            of_levels += (double)nearest * (double)nearest;
        }
        negative = __ballot_sync(DSV2I_ALL_LANES, i < count && rms > 0 && rms < 0x1.fffffep127f && __float_as_uint(y[j]) >> 31);
        high = __shfl_down_sync(DSV2I_ALL_LANES, (unsigned)l, 16);
        if (lane < 16)
            levels[16 * j + lane] = (unsigned char)((unsigned)l | high << 4);
        if (lane < 4)
            signs[4 * j + lane] = (unsigned char)(negative >> 8 * lane);
    }
    if (!(rms < __uint_as_float(0x7F800000u)))
        return __uint_as_float(0x7FC00000u);
    if (rms == 0)
        return 0;
    scale = (float)(dsv2i_warp_sum(fit) / dsv2i_warp_sum(of_levels));
    return scale < __uint_as_float(0x7F800000u) ? scale : __uint_as_float(0x7FC00000u);
}

/* A warp writes the record of c (rank) and k (rope). */
template <int n, int m>
static __device__ void write_record(unsigned char *to, float (&c)[n], const float (&k)[m], int kv_type, int rank, int rope)
{
    const struct dsv2i_kv_record r = dsv2i_kv_record(kv_type, rank, rope);
    int lane = (int)threadIdx.x % 32;
    float of_c, of_k;

    if (kv_type == DSV2I_KV_F32 || kv_type == DSV2I_KV_BF16) {
        const bool f32 = kv_type == DSV2I_KV_F32;
#pragma unroll
        for (int j = 0; j < n; j++)
            if (32 * j + lane < rank) {
                if (f32)
                    ((float *)to)[32 * j + lane] = c[j];
                else
                    ((uint16_t *)to)[32 * j + lane] = dsv2i_bf16(c[j]);
            }
#pragma unroll
        for (int j = 0; j < m; j++)
            if (32 * j + lane < rope) {
                if (f32)
                    ((float *)to)[rank + 32 * j + lane] = k[j];
                else
                    ((uint16_t *)to)[rank + 32 * j + lane] = dsv2i_bf16(k[j]);
            }
        return;
    }
    if (kv_type == DSV2I_KV_6BIT) {
        int block = dsv2i_kv_rotation(rank);

        dsv2i_rotate(c, block);
        of_c = write_levels(to, to + r.sign, c, rank) / (float)block;
        of_k = write_bytes(to + r.key, k, rope, DSV2I_KV_INT8);
    } else {
        of_c = write_bytes(to, c, rank, kv_type);
        of_k = write_bytes(to + r.key, k, rope, kv_type);
    }
    for (int i = (int)r.key + rope + lane; i < (int)r.bytes; i += 32) /* the padding, and what lies between */
        if (i < (int)r.scale || i >= (int)r.scale + 8)
            to[i] = 0;
    if (lane < 2) { /* the hardware's NaNs have other bits */
        const float scale = lane ? of_k : of_c;
        ((uint32_t *)(to + r.scale))[lane] = scale == scale ? __float_as_uint(scale) : 0x7FC00000u;
    }
}

/* n and m registers of a lane hold latent and key. */
template <int n, int m>
static __global__ void mla_prepare_kernel(const dsv2i_cuda_step *step, float *q, const float *kva, const float *kv_a_norm, int layer,
                                          int heads, int nope, int rank, int rope)
{
    int row = (int)blockIdx.x, lane = (int)threadIdx.x % 32, pos;
    const float *cs;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows)
        return;
    cs = step->rope + (size_t)row * (size_t)rope;
    if (threadIdx.x >= 32) {
        int pairs = rope / 2;

        q += (size_t)row * (size_t)heads * (size_t)(nope + rope);
        for (int i = (int)threadIdx.x - 32; i < heads * pairs; i += (int)blockDim.x - 32) {
            float *x = q + (i / pairs) * (nope + rope) + nope + i % pairs * 2, c = cs[i % pairs * 2], s = cs[i % pairs * 2 + 1];
            float a = x[0], b = x[1];

            x[0] = a * c - b * s;
            x[1] = b * c + a * s;
        }
        return;
    }
    float latent[n], key[m], sum = 0, factor;
    const dsv2i_seq *seq = &step->seqs[step->seq[row]];
    size_t bytes = dsv2i_kv_record(seq->kv_type, rank, rope).bytes, slot;

    pos = step->pos[row];
    kva += (size_t)row * (size_t)(rank + rope);
    slot = (size_t)layer * DSV2I_PAGE_TOKENS + (size_t)(pos % DSV2I_PAGE_TOKENS);
#pragma unroll
    for (int j = 0; j < n; j++) {
        latent[j] = 32 * j + lane < rank ? kva[32 * j + lane] : 0.0f;
        sum += latent[j] * latent[j];
    }
    factor = 1.0f / sqrtf(dsv2i_warp_sum(sum) / (float)rank + latent_eps);
#pragma unroll
    for (int j = 0; j < n; j++)
        if (32 * j + lane < rank)
            latent[j] = latent[j] * factor * kv_a_norm[32 * j + lane];
#pragma unroll
    for (int j = 0; j < m; j++) { /* the other of a pair is in the next lane */
        int i = 32 * j + lane;
        float x = i < rope ? kva[rank + i] : 0.0f, other = __shfl_xor_sync(DSV2I_ALL_LANES, x, 1);

        key[j] = i >= rope ? 0.0f : i % 2 ? x * cs[i - 1] + other * cs[i] : x * cs[i] - other * cs[i + 1];
    }
    write_record((unsigned char *)seq->page[pos / DSV2I_PAGE_TOKENS] + slot * bytes, latent, key, seq->kv_type, rank, rope);
}

cudaError_t dsv2i_cuda_mla_prepare(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *q, const float *kva,
                                   const float *kv_a_norm, int32_t layer, int32_t heads, int32_t nope, int32_t rank, int32_t rope)
{
    const dim3 grid((unsigned)to->max_rows);

    if (rank <= 512 && rope <= 64) /* every release */
        return dsv2i_launch(to, mla_prepare_kernel<16, 2>, grid, 256, 0, step, q, kva, kv_a_norm, layer, heads, nope, rank, rope);
    if (rank <= 1024 && rope <= 256)
        return dsv2i_launch(to, mla_prepare_kernel<32, 8>, grid, 256, 0, step, q, kva, kv_a_norm, layer, heads, nope, rank, rope);
    return cudaErrorInvalidValue;
}
