/* Attention in the expanded form by the matrix units of sm_90a; what mla_prefill.cu does, and scratch as mla_prefill.cuh says.
 *
 * Bound: the matrix units.  A block has 128 rows of a head: two warpgroups of 64 rows multiply, a thread of a third brings keys and
 * values, 128 positions at a time and two of them ahead, each panel by one bulk copy, as it lies in scratch.
 *     q  3 panels of 128 rows           48 KB
 *     k  2 times 3 panels of 128 rows   96 KB
 *     v  2 times 2 panels of 128 rows   64 KB
 * While a warpgroup works on the softmax of one step, its product of the step before with the values is under way, and so are the products
 * of the other warpgroup:
 *     scores i | values i - 1     issued together
 *     wait for the scores, softmax i
 *     wait for the values, rescale o, round the weights
 * The third warpgroup leaves its registers to the others: 64 for o, 64 for scores, 32 for weights.
 *
 * SPDX-License-Identifier: MIT */
#include "convert.cuh"
#include "mla_prefill.cuh"
#include "wgmma.cuh"

static const int v_dim = DSV2I_PREFILL_V, q_dim = DSV2I_PREFILL_NOPE + DSV2I_PREFILL_ROPE;
static const int rows = DSV2I_PREFILL_BLOCK, keys = DSV2I_PREFILL_BLOCK, group_rows = 64, stages = 2;
static const int multiply_threads = 256, threads = multiply_threads + 128;
static const int panel_bytes = keys * DSV2I_PANEL * 2; /* of a step, and of q */
static const int k_bytes = 3 * panel_bytes, v_bytes = 2 * panel_bytes;
static const int barriers_at = 3 * panel_bytes + stages * (k_bytes + v_bytes);
static const size_t shared_bytes = barriers_at + 4 * stages * sizeof(uint64_t);

static __global__ void __launch_bounds__(threads, 1)
attend_sm90_kernel(const dsv2i_cuda_step *step, float *o, uint16_t *o_bf16, const float *q, dsv2i_prefill_scratch scratch, int heads,
                   int first, float scale)
{
    unsigned char *q_tile = (unsigned char *)dsv2i_shared(), *k_tile = q_tile + 3 * panel_bytes, *v_tile = k_tile + stages * k_bytes;
    uint64_t *k_full = (uint64_t *)(q_tile + barriers_at), *v_full = k_full + stages, *k_empty = v_full + stages;
    uint64_t *v_empty = k_empty + stages;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, g = lane / 4, t = lane % 4;
    dsv2i_prefill_work work;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (!dsv2i_prefill_work_of(step, (int)blockIdx.x, (int)gridDim.x, heads, scratch.window, first, &work))
        return;
    const bool both = work.n > group_rows; /* warpgroups have rows */

    if (warp >= multiply_threads / 32) { /* the warpgroup that copies; one thread of it */
        const bool copies = (int)threadIdx.x == multiply_threads;
        const size_t panel = (size_t)scratch.window * DSV2I_PANEL;
        const uint16_t *kv = scratch.kv + (size_t)(DSV2I_HEAD_PANELS * work.head) * panel;
        const int n = (work.to - work.from + keys - 1) / keys, from = work.from - work.start; /* in the window */
        auto copy = [&](int i, unsigned char *to, const uint16_t *source, uint64_t *full) {
            dsv2i_copy_bulk(to, source + (size_t)(from + i * keys) * DSV2I_PANEL, panel_bytes, full);
        };
        auto copy_k = [&](int i) {
            unsigned char *to = k_tile + i % stages * k_bytes;

            if (i >= stages)
                dsv2i_mbarrier_wait(&k_empty[i % stages], (i / stages - 1) % 2);
            dsv2i_mbarrier_arrive_expect(&k_full[i % stages], k_bytes);
            copy(i, to, kv, &k_full[i % stages]);
            copy(i, to + panel_bytes, kv + panel, &k_full[i % stages]);
            copy(i, to + 2 * panel_bytes, scratch.rope, &k_full[i % stages]);
        };
        auto copy_v = [&](int i) {
            unsigned char *to = v_tile + i % stages * v_bytes;

            if (i >= stages)
                dsv2i_mbarrier_wait(&v_empty[i % stages], (i / stages - 1) % 2);
            dsv2i_mbarrier_arrive_expect(&v_full[i % stages], v_bytes);
            copy(i, to, kv + 2 * panel, &v_full[i % stages]);
            copy(i, to + panel_bytes, kv + 3 * panel, &v_full[i % stages]);
        };

        dsv2i_fewer_registers<24>();
        if (copies) {
            for (int i = 0; i < stages; i++) {
                dsv2i_mbarrier_init(&k_full[i], 1);
                dsv2i_mbarrier_init(&v_full[i], 1);
                dsv2i_mbarrier_init(&k_empty[i], both ? 8 : 4); /* warps */
                dsv2i_mbarrier_init(&v_empty[i], both ? 8 : 4);
            }
            dsv2i_fence_async();
            copy_k(0);
        }
        __syncthreads();
        if (copies)
            for (int i = 1; i <= n; i++) { /* keys are wanted before the values of the step before */
                if (i < n)
                    copy_k(i);
                copy_v(i - 1);
            }
        return;
    }

    dsv2i_more_registers<240>();
    q += ((size_t)work.row * (size_t)heads + (size_t)work.head) * q_dim;
#pragma unroll 4
    for (int i = (int)threadIdx.x; i < rows * (q_dim / 8); i += multiply_threads) {
        const int r = i / (q_dim / 8), u = i % (q_dim / 8);
        uint4 x = make_uint4(0, 0, 0, 0);

        if (r < work.n) {
            const float4 *from = (const float4 *)(q + (size_t)r * (size_t)(heads * q_dim) + 8 * u), a = from[0], b = from[1];
            x = make_uint4(dsv2i_bf16x2(a.x, a.y), dsv2i_bf16x2(a.z, a.w), dsv2i_bf16x2(b.x, b.y), dsv2i_bf16x2(b.z, b.w));
        }
        *(uint4 *)(q_tile + u / 8 * panel_bytes + 2 * dsv2i_panel_unit(r, u % 8)) = x;
    }
    dsv2i_fence_async();
    __syncthreads();

    const int group = warp / 4 * group_rows, row = warp * 16 + g; /* of the tile; and row + 8 */
    if (group >= work.n)
        return;
    const int pos = work.pos + group, end = work.n - group < group_rows ? work.pos + work.n : pos + group_rows;
    const int n = end < work.to ? (end - work.from + keys - 1) / keys : (work.to - work.from + keys - 1) / keys; /* steps, if any */
    const size_t at = (size_t)(work.row + row) * (size_t)heads + (size_t)work.head;
    float d[64] = {}, max[2], sum[2] = {}; /* d[4 j + 2 half + i]: column 8 j + 2 t + i of row + 8 half */
#pragma unroll
    for (int half = 0; half < 2; half++) {
        max[half] = __uint_as_float(0xFF800000u);
        if (!work.first && row + 8 * half < work.n) {
            const size_t here = at + (size_t)(8 * half) * (size_t)heads;
            const float2 state = scratch.state[here * 4 + (size_t)t];

            max[half] = state.x;
            sum[half] = state.y;
#pragma unroll
            for (int j = 0; j < v_dim / 8; j++) {
                const float2 two = *(const float2 *)(o + here * v_dim + 8 * j + 2 * t);
                d[4 * j + 2 * half] = two.x;
                d[4 * j + 2 * half + 1] = two.y;
            }
        }
    }

    float s[64], factor[2];
    uint32_t p[keys / 16][4];
    const uint64_t q_at = dsv2i_wgmma_matrix(q_tile + group * DSV2I_PANEL * 2, 0, 1024, 128);
    const uint64_t k_at = dsv2i_wgmma_matrix(k_tile, 0, 1024, 128), v_at = dsv2i_wgmma_matrix(v_tile, panel_bytes, 1024, 128);
    auto scores = [&](int i) {
        dsv2i_mbarrier_wait(&k_full[i % stages], i / stages % 2);
        dsv2i_wgmma_fence();
#pragma unroll
        for (int k = 0; k < q_dim / 16; k++) { /* addresses are in units of 16 bytes */
            const int to = (k / 4 * panel_bytes + k % 4 * 32) / 16;
            dsv2i_wgmma_bf16<false>(s, q_at + (uint64_t)to, k_at + (uint64_t)(i % stages * k_bytes / 16 + to), k > 0);
        }
        dsv2i_wgmma_commit();
    };
    auto values = [&](int i) {
        dsv2i_mbarrier_wait(&v_full[i % stages], i / stages % 2);
        dsv2i_wgmma_fence();
#pragma unroll
        for (int k = 0; k < keys / 16; k++)
            dsv2i_wgmma_bf16<true>(d, p[k], v_at + (uint64_t)((i % stages * v_bytes + k * 16 * DSV2I_PANEL * 2) / 16), true);
        dsv2i_wgmma_commit();
    };
    auto softmax = [&](int i) {
        const int key = work.from + i * keys;

        if (key + keys - 1 > pos)
#pragma unroll
            for (int j = 0; j < 64; j++)
                if (key + j / 4 * 8 + 2 * t + j % 2 > work.pos + row + j / 2 % 2 * 8)
                    s[j] = __uint_as_float(0xFF800000u);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = max[half];

#pragma unroll
            for (int j = 0; j < 64; j++)
                if (j / 2 % 2 == half)
                    most = fmaxf(most, s[j]);
            most = fmaxf(most, __shfl_xor_sync(DSV2I_ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(DSV2I_ALL_LANES, most, 2));
            factor[half] = dsv2i_exp2((max[half] - most) * scale);
            max[half] = most;
            sum[half] *= factor[half];
#pragma unroll
            for (int j = 0; j < 64; j++)
                if (j / 2 % 2 == half) {
                    s[j] = dsv2i_exp2(fmaf(s[j], scale, -most * scale));
                    sum[half] += s[j];
                }
        }
    };
    auto round_weights = [&] {
#pragma unroll
        for (int k = 0; k < keys / 16; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                p[k][i] = dsv2i_bf16x2(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
    };
    auto rescale = [&] {
#pragma unroll
        for (int j = 0; j < 64; j++)
            d[j] *= factor[j / 2 % 2];
    };

    if (n > 0) {
        scores(0);
        dsv2i_wgmma_wait<0>(s);
        dsv2i_mbarrier_arrive_warp(&k_empty[0]);
        softmax(0);
        rescale();
        round_weights();
        for (int i = 1; i < n; i++) {
            scores(i);
            values(i - 1);
            dsv2i_wgmma_wait<1>(s);
            dsv2i_mbarrier_arrive_warp(&k_empty[i % stages]);
            softmax(i);
            dsv2i_wgmma_wait<0>(d);
            dsv2i_mbarrier_arrive_warp(&v_empty[(i - 1) % stages]);
            rescale();
            round_weights();
        }
        values(n - 1);
        dsv2i_wgmma_wait<0>(d);
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        const size_t here = at + (size_t)(8 * half) * (size_t)heads;
        float all = sum[half];

        all += __shfl_xor_sync(DSV2I_ALL_LANES, all, 1);
        all += __shfl_xor_sync(DSV2I_ALL_LANES, all, 2);
        if (row + 8 * half >= work.n)
            continue;
        if (!work.last)
            scratch.state[here * 4 + (size_t)t] = make_float2(max[half], sum[half]);
        const float by = work.last ? 1 / all : 1.0f;
#pragma unroll
        for (int j = 0; j < v_dim / 8; j++) {
            const float x = d[4 * j + 2 * half] * by, y = d[4 * j + 2 * half + 1] * by;
            const size_t to = here * v_dim + (size_t)(8 * j + 2 * t);

            *(float2 *)(o + to) = make_float2(x, y);
            if (work.last && o_bf16)
                *(uint32_t *)(o_bf16 + to) = dsv2i_bf16x2(x, y);
        }
    }
}

cudaError_t dsv2i_prefill_attend_sm90(const dsv2i_cuda_launch *to, const dsv2i_prefill_args *args, int first)
{
    return dsv2i_launch(to, attend_sm90_kernel, dim3((unsigned)(args->tiles * args->heads)), threads, shared_bytes, args->step, args->o,
                        args->o_bf16, args->q, args->scratch, args->heads, first, args->scale);
}
