/* Attention for any shape and every type of page, in fp32 and without a thought for speed: for the tiny models of tests, and F32 pages.
 *
 * Bound: latency.  A block serves a head of a row: it takes the query to the latent space, qa = UK^T q (absorbed form; what the expanded
 * form computes is the same in exact arithmetic), walks over the row's keys in blocks of a page with an online softmax, and brings the sum
 * of latents back, o = UV c.  Every block reads the whole context and its head of kv_b again.
 *
 * A row's bits depend on its sequence alone.
 *
 * SPDX-License-Identifier: MIT */
#include <math.h>

#include "kv_read.cuh"
#include "launch.cuh"
#include "load.cuh"

static const int threads = 256, block = DSV2I_PAGE_TOKENS;

/* H x in each of the blocks of m elements of x (n) in shared memory, by the thread block. */
static __device__ void hadamard(float *x, int n, int m)
{
    for (int d = 1; d < m; d *= 2) {
        for (int i = (int)threadIdx.x; i < n; i += threads)
            if (!(i & d)) {
                float a = x[i], b = x[i + d];

                x[i] = a + b;
                x[i + d] = a - b;
            }
        __syncthreads();
    }
}

static __device__ void negate(float *x, int n, int m)
{
    for (int i = (int)threadIdx.x; i < n; i += threads)
        if (dsv2i_kv_negative((unsigned)(i & (m - 1))))
            x[i] = -x[i];
    __syncthreads();
}

template <int dtype>
static __global__ void mla_attend_any_kernel(const dsv2i_cuda_step *step, float *o, const float *q, const void *kv_b, int layer, int heads,
                                             int nope, int v, int rank, int rope, float scale, int only_f32)
{
    const int head = (int)blockIdx.x, row = (int)blockIdx.y, width = rank + rope;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    float *qa = (float *)dsv2i_shared(), *sum_c = qa + width, *p = sum_c + rank; /* (width), (rank), (64) */
    float max = -INFINITY, sum = 0;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (row >= step->n_rows)
        return;
    const dsv2i_seq seq = step->seqs[step->seq[row]];
    if (only_f32 && seq.kv_type != DSV2I_KV_F32)
        return;
    const struct dsv2i_kv_record record = dsv2i_kv_record(seq.kv_type, rank, rope);
    const int n_keys = step->pos[row] + 1, rotated = seq.kv_type == DSV2I_KV_6BIT ? dsv2i_kv_rotation(rank) : 0;
    const size_t uk = (size_t)head * (size_t)(nope + v) * (size_t)rank, uv = uk + (size_t)nope * (size_t)rank;

    q += ((size_t)row * (size_t)heads + (size_t)head) * (size_t)(nope + rope);
    o += ((size_t)row * (size_t)heads + (size_t)head) * (size_t)v;
    for (int k = (int)threadIdx.x; k < rank; k += threads) {
        float s = 0;

        for (int i = 0; i < nope; i++)
            s = fmaf(q[i], dsv2i_load<dtype>(kv_b, uk + (size_t)i * (size_t)rank + (size_t)k), s);
        qa[k] = s;
        sum_c[k] = 0;
    }
    for (int i = (int)threadIdx.x; i < rope; i += threads)
        qa[rank + i] = q[nope + i];
    __syncthreads();
    if (rotated) {
        negate(qa, rank, rotated);
        hadamard(qa, rank, rotated);
    }
    for (int from = 0; from < n_keys; from += block) {
        const int n = n_keys - from < block ? n_keys - from : block;
        const unsigned char *keys = (const unsigned char *)seq.page[from / block] + (size_t)layer * block * record.bytes;
        float new_max = max, base, corr;

        for (int t = warp; t < n; t += threads / 32) {
            float s = 0;

            for (int i = lane; i < width; i += 32)
                s = fmaf(qa[i], dsv2i_kv_element(keys + (size_t)t * record.bytes, record, seq.kv_type, rank, i), s);
            s = dsv2i_warp_sum(s);
            if (lane == 0)
                p[t] = s * scale;
        }
        __syncthreads();
        for (int t = 0; t < n; t++)
            new_max = fmaxf(new_max, p[t]);
        base = new_max == -INFINITY ? 0 : new_max; /* every score so far was -inf */
        corr = expf(max - base);
        max = new_max;
        __syncthreads();
        if ((int)threadIdx.x < n)
            p[threadIdx.x] = expf(p[threadIdx.x] - base);
        __syncthreads();
        sum *= corr;
        for (int t = 0; t < n; t++)
            sum += p[t];
        for (int k = (int)threadIdx.x; k < rank; k += threads) {
            float s = sum_c[k] * corr;

            for (int t = 0; t < n; t++)
                s = fmaf(p[t], dsv2i_kv_element(keys + (size_t)t * record.bytes, record, seq.kv_type, rank, k), s);
            sum_c[k] = s;
        }
        __syncthreads();
    }
    for (int k = (int)threadIdx.x; k < rank; k += threads)
        sum_c[k] /= sum;
    __syncthreads();
    if (rotated) {
        hadamard(sum_c, rank, rotated);
        negate(sum_c, rank, rotated);
    }
    for (int j = warp; j < v; j += threads / 32) {
        float s = 0;

        for (int k = lane; k < rank; k += 32)
            s = fmaf(dsv2i_load<dtype>(kv_b, uv + (size_t)j * (size_t)rank + (size_t)k), sum_c[k], s);
        s = dsv2i_warp_sum(s);
        if (lane == 0)
            o[j] = s;
    }
}

cudaError_t dsv2i_cuda_mla_attend_any(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *o, const float *q,
                                      const struct dsv2i_weight *kv_b, int32_t layer, int32_t heads, int32_t nope, int32_t v, int32_t rope,
                                      float scale, int32_t only_f32)
{
    const dim3 grid((unsigned)heads, (unsigned)to->max_rows);
    const int rank = kv_b->cols;
    const size_t shared = sizeof(float) * (size_t)(2 * rank + rope + block);

    switch (kv_b->dtype) {
#define CASE(type) \
    case type: \
        return dsv2i_launch(to, mla_attend_any_kernel<type>, grid, threads, shared, step, o, q, kv_b->data, layer, heads, nope, v, rank, \
                            rope, scale, only_f32);
    CASE(DSV2I_F32)
    CASE(DSV2I_BF16)
    CASE(DSV2I_F16)
#undef CASE
    default: return cudaErrorInvalidValue;
    }
}
