/* Into the latent space and back (paper 2.1.2): q_latent = (UK^T q_nope, q_rope) of each head before attention over latents, and
 * o = UV o_latent after it.  UK and UV are the first and last 128 rows of a head's 256 in kv_b, 512 columns.
 *
 * Bound: few rows: bandwidth, 128 KB of bf16 weight a head in each launch (V2-Lite 2 MB, V2 16.8 MB), read once for every 64 rows.  Many
 * rows: the queries and results, 2 KB of fp32 or bf16 a row and head (V2: 150 and 270 MB for 1,024 rows) against 131 kFLOP, so tensor cores
 * have time to spare.  Weights are asked for before the launch in front has ended.
 *
 *   absorb: a block takes 64 columns of UK for up to 64 rows; a warp 16 of them, in registers, over all 128 of K.
 *   value:  a block takes 16 (few rows) or 64 rows of UV for up to 64 rows of o_latent, 16 at a time.  K = 512 is cut in four parts, which
 *           are added up pairwise: the same order for both cuts.
 * Activations are rounded to bf16 for this.  Where the weight is not bf16 it is all done in fp32, simply, for 8 rows at a time.
 * The order of a sum depends on none of this: the same bits for a row in any company.
 *
 * SPDX-License-Identifier: MIT */
#include "dots.cuh"
#include "kv_read.cuh"
#include "launch.cuh"
#include "matrix.cuh"

static const int rank = 512, rope = 64, nope = 128, v = 128;
static const int group = 64; /* rows of a block */
static const int columns = 64;        /* of UK for a block of absorb */
static const float log2e = 1.44269504f;

/* Unit u (16 bytes) of row r, rows of `bytes`, a multiple of 128: 8 rows of the same unit lie in different banks. */
template <int bytes> static __device__ __forceinline__ unsigned char *unit(unsigned char *rows, int r, int u)
{
    return rows + r * bytes + ((u ^ (r & 7)) * 16);
}

/* ---- absorb -------------------------------------------------------------------------------------------------------------------------- */

static __device__ __forceinline__ void load_uk(unsigned char *to, const uint16_t *w, int head, int first)
{
    w += (size_t)head * (nope + v) * rank + first;
    for (int i = (int)threadIdx.x; i < nope * (columns / 8); i += (int)blockDim.x)
        dsv2i_copy<16>(unit<2 * columns>(to, i / (columns / 8), i % (columns / 8)), w + i / (columns / 8) * rank + i % (columns / 8) * 8);
    dsv2i_copy_commit();
}

/* The rotated part goes as it is. */
static __device__ __forceinline__ void copy_rope(uint16_t *to, const float *q, int head, int heads, int row, int n, float scale)
{
    for (int i = (int)threadIdx.x; i < n * rope; i += (int)blockDim.x) {
        size_t at = (size_t)(row + i / rope) * (size_t)heads + (size_t)head;

        to[at * (rank + rope) + (size_t)(rank + i % rope)] = dsv2i_bf16(q[at * (nope + rope) + (size_t)(nope + i % rope)] * scale);
    }
}

static __global__ void __launch_bounds__(128)
    mla_absorb_kernel(const dsv2i_cuda_step *step, uint16_t *to, const float *q, const uint16_t *w, int heads, float scale)
{
    const int head = (int)blockIdx.x, first = (int)blockIdx.y * columns, row = (int)blockIdx.z * group;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    unsigned char *uk = (unsigned char *)dsv2i_shared(), *queries = uk + nope * columns * 2; /* (nope, columns), (group, nope) */
    uint32_t b[nope / 16][4];

    if (row == 0)
        load_uk(uk, w, head, first);
    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    const int n = min(step->n_rows - row, group);
    if (n <= 0)
        return;
    if (row > 0)
        load_uk(uk, w, head, first);
    for (int r = warp; r < n; r += 4) {
        float4 x = ((const float4 *)(q + ((size_t)(row + r) * (size_t)heads + (size_t)head) * (nope + rope)))[lane];

        *(uint2 *)(unit<2 * nope>(queries, r, lane / 2) + lane % 2 * 8) = make_uint2(dsv2i_bf16x2(x.x, x.y), dsv2i_bf16x2(x.z, x.w));
    }
    if (first == 0)
        copy_rope(to, q, head, heads, row, n, scale);
    dsv2i_copy_wait_all();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < nope / 16; k++)
        dsv2i_ldmatrix_trans(b[k], unit<2 * columns>(uk, 16 * k + lane % 16, 2 * warp + lane / 16));
    for (int m = 0; m < n; m += 16) {
        float d[2][4] = {};

#pragma unroll
        for (int k = 0; k < nope / 16; k++) {
            uint32_t a[4];

            dsv2i_ldmatrix(a, unit<2 * nope>(queries, m + lane % 16, 2 * k + lane / 16));
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const uint32_t two[2] = {b[k][2 * j], b[k][2 * j + 1]};
                dsv2i_mma_bf16(d[j], a, two);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int of = m + lane / 4 + 8 * r;
            uint16_t *at = to + ((size_t)(row + of) * (size_t)heads + (size_t)head) * (rank + rope) + first + 16 * warp + lane % 4 * 2;

            if (of < n)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    *(uint32_t *)(at + 8 * j) = dsv2i_bf16x2(d[j][2 * r] * scale, d[j][2 * r + 1] * scale);
        }
    }
}

cudaError_t dsv2i_cuda_mla_absorb(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, uint16_t *q_latent,
                                  const float *q, const struct dsv2i_weight *kv_b, int32_t heads, float scale)
{
    const dim3 grid((unsigned)heads, rank / columns, (unsigned)(to->max_rows + group - 1) / group);

    scale *= log2e;
    if (kv_b->dtype != DSV2I_BF16 || kv_b->cols != rank || kv_b->rows != heads * (nope + v))
        return cudaErrorInvalidValue;
    return dsv2i_launch(to, mla_absorb_kernel, grid, 128, 2 * nope * (columns + group), step, q_latent, q, (const uint16_t *)kv_b->data,
                        heads, scale);
}

/* ---- value --------------------------------------------------------------------------------------------------------------------------- */

/* A warp reads a row's latent result, element 32 j + lane in register j, as what it was before 6BIT rotated it. */
static __device__ __forceinline__ void load_result(float (&x)[rank / 32], const dsv2i_cuda_step *step, const float *o_latent, int row,
                                                   int head, int heads)
{
    o_latent += ((size_t)row * (size_t)heads + (size_t)head) * rank + threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < rank / 32; j++)
        x[j] = o_latent[32 * j];
    if (step->seqs[step->seq[row]].kv_type == DSV2I_KV_6BIT)
        dsv2i_rotate_back(x, rank);
}

static __device__ __forceinline__ bool served(const dsv2i_cuda_step *step, int row)
{
    return dsv2i_decoded(step->seqs[step->seq[row]]);
}

template <int outs>
static __device__ __forceinline__ void load_uv(unsigned char *to, const uint16_t *w, int head, int first)
{
    w += ((size_t)head * (nope + v) + (size_t)(nope + first)) * rank;
    for (int i = (int)threadIdx.x; i < outs * (rank / 8); i += (int)blockDim.x)
        dsv2i_copy<16>(unit<2 * rank>(to, i / (rank / 8), i % (rank / 8)), w + 8 * i);
    dsv2i_copy_commit();
}

/* outs: rows of UV; warps: at most outs / 4. */
template <int outs, int warps>
static __global__ void __launch_bounds__(32 * warps)
    mla_value_kernel(const dsv2i_cuda_step *step, float *o, const float *o_latent, const uint16_t *w, int heads)
{
    const int head = (int)blockIdx.x, first = (int)blockIdx.y * outs, row = (int)blockIdx.z * group, sum_row = outs + 8;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    unsigned char *uv = (unsigned char *)dsv2i_shared(), *results = uv + outs * rank * 2; /* (outs, rank), (16, rank) */
    float *sums = (float *)(results + 16 * rank * 2);                                      /* (4, 16, outs) */

    if (row == 0)
        load_uv<outs>(uv, w, head, first);
    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    const int n = min(step->n_rows - row, group);
    if (n <= 0)
        return;
    if (row > 0)
        load_uv<outs>(uv, w, head, first);
    for (int m = 0; m < n; m += 16) {
        for (int r = warp; r < 16 && m + r < n; r += warps) {
            float x[rank / 32];

            if (!served(step, row + m + r)) /* whatever is there */
                continue;
            load_result(x, step, o_latent, row + m + r, head, heads);
#pragma unroll
            for (int j = 0; j < rank / 32; j++)
                ((uint16_t *)unit<2 * rank>(results, r, 4 * j + lane / 8))[lane % 8] = dsv2i_bf16(x[j]);
        }
        dsv2i_copy_wait_all();
        __syncthreads();
        for (int i = warp; i < outs / 4; i += warps) {
            const int part = i % 4, out = i / 4 * 16;
            float d[2][4] = {};

#pragma unroll
            for (int k = 0; k < rank / 64; k++) {
                const int u = part * (rank / 32) + 2 * k;
                uint32_t a[4], b[4];

                dsv2i_ldmatrix(a, unit<2 * rank>(results, lane % 16, u + lane / 16));
                dsv2i_ldmatrix(b, unit<2 * rank>(uv, out + lane / 16 * 8 + lane % 8, u + lane / 8 % 2));
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    const uint32_t two[2] = {b[2 * j], b[2 * j + 1]};
                    dsv2i_mma_bf16(d[j], a, two);
                }
            }
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int r = 0; r < 2; r++)
                    *(float2 *)(sums + (part * 16 + lane / 4 + 8 * r) * sum_row + out + 8 * j + lane % 4 * 2)
                        = make_float2(d[j][2 * r], d[j][2 * r + 1]);
        }
        __syncthreads();
        for (int i = (int)threadIdx.x; i < 16 * outs; i += 32 * warps) {
            const int r = m + i / outs, out = i % outs;
            const float *s = sums + i / outs * sum_row + out;

            if (r < n && served(step, row + r))
                o[((size_t)(row + r) * (size_t)heads + (size_t)head) * v + (size_t)(first + out)]
                    = (s[0] + s[16 * sum_row]) + (s[32 * sum_row] + s[48 * sum_row]);
        }
    }
}

template <int outs, int warps>
static cudaError_t launch_value(const dsv2i_cuda_launch *to, const dsv2i_cuda_step *step, float *o, const float *o_latent,
                                const dsv2i_weight *kv_b, int heads)
{
    const dim3 grid((unsigned)heads, v / outs, (unsigned)(to->max_rows + group - 1) / group);
    const size_t shared = 2 * rank * (outs + 16) + sizeof(float) * 4 * 16 * (outs + 8);

    return dsv2i_launch(to, mla_value_kernel<outs, warps>, grid, 32 * warps, shared, step, o, o_latent, (const uint16_t *)kv_b->data,
                        heads);
}

cudaError_t dsv2i_cuda_mla_value(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *o, const float *o_latent,
                                 const struct dsv2i_weight *kv_b, int32_t heads)
{
    if (kv_b->dtype != DSV2I_BF16 || kv_b->cols != rank || kv_b->rows != heads * (nope + v))
        return cudaErrorInvalidValue;
    return to->max_rows <= 16 ? launch_value<16, 4>(to, step, o, o_latent, kv_b, heads)
                              : launch_value<64, 8>(to, step, o, o_latent, kv_b, heads);
}
