/* Attention in the expanded form, for prompts: o = softmax(q [UK c, k]^T) UV c, causal, over a cached prefix or none.
 *
 * Bound: the matrix units.  A row, head and key cost 2 * (192 + 128) FLOPs, where the absorbed form takes 2 * (576 + 512); the keys and
 * values of a position and head once 2 * 512 * 256 (mla_expand.cu), 410 rows' worth.  A tile of 128 rows reads 512 bytes for a key and
 * 82 KFLOPs, from the L2 cache.
 *
 * A block of four warps has 128 rows of a head, a warp 32 of them, so that what it reads of keys and values serves two products.  Keys
 * are taken 32 at a time, and only one copy is under way: of the values while scores are made, of the next keys during softmax and the
 * product with the values.  Two blocks share a multiprocessor.
 *     q  3 panels of 128 rows  48 KB
 *     k  3 panels of 32 rows   12 KB    [UK c, k]
 *     v  2 panels of 32 rows    8 KB
 * A lane keeps its part of a row's sum to the end, and o is only multiplied when a greatest score grew.
 *
 * SPDX-License-Identifier: MIT */
#include "convert.cuh"
#include "matrix.cuh"
#include "mla_prefill.cuh"

static const int head_panels = DSV2I_HEAD_PANELS, v_dim = DSV2I_PREFILL_V, q_dim = DSV2I_PREFILL_NOPE + DSV2I_PREFILL_ROPE;
static const int threads = 128, rows = DSV2I_PREFILL_BLOCK, keys = 32;
static const int q_panel = rows * DSV2I_PANEL, kv_panel = keys * DSV2I_PANEL; /* elements */
static const size_t shared_bytes = 2 * (3 * q_panel + (3 + 2) * kv_panel);

/* keys rows of count panels that lie stride apart. */
static __device__ __forceinline__ void copy_panels(uint16_t *to, const uint16_t *from, size_t stride, int count)
{
#pragma unroll
    for (int p = 0; p < count; p++)
#pragma unroll
        for (int i = 0; i < kv_panel / 8 / threads; i++) {
            const int u = (i * threads + (int)threadIdx.x) * 8;
            dsv2i_copy<16>(to + p * kv_panel + u, from + (size_t)p * stride + u);
        }
}

/* n rows of q as bf16 panels, and rows of 0. */
static __device__ __forceinline__ void load_q(uint16_t *to, const float *q, size_t ldq, int n)
{
    for (int i = (int)threadIdx.x; i < rows * (q_dim / 8); i += threads) {
        const int r = i / (q_dim / 8), u = i % (q_dim / 8);
        uint4 x = make_uint4(0, 0, 0, 0);

        if (r < n) {
            const float4 *from = (const float4 *)(q + (size_t)r * ldq + 8 * u), a = from[0], b = from[1];
            x = make_uint4(dsv2i_bf16x2(a.x, a.y), dsv2i_bf16x2(a.z, a.w), dsv2i_bf16x2(b.x, b.y), dsv2i_bf16x2(b.z, b.w));
        }
        *(uint4 *)(to + u / 8 * q_panel + dsv2i_panel_unit(r, u % 8)) = x;
    }
}

static __global__ void __launch_bounds__(threads, 2)
attend_kernel(const dsv2i_cuda_step *step, float *o, uint16_t *o_bf16, const float *q, dsv2i_prefill_scratch scratch, int heads, int first,
              float scale)
{
    uint16_t *q_tile = (uint16_t *)dsv2i_shared(), *k_tile = q_tile + 3 * q_panel, *v_tile = k_tile + 3 * kv_panel;
    const int lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4, warp_row = (int)threadIdx.x / 32 * 32;
    const size_t panel = (size_t)scratch.window * DSV2I_PANEL;
    dsv2i_prefill_work work;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (!dsv2i_prefill_work_of(step, (int)blockIdx.x, (int)gridDim.x, heads, scratch.window, first, &work))
        return;
    const uint16_t *kv = scratch.kv + (size_t)(head_panels * work.head) * panel;
    auto copy_keys = [&](int row) { /* of the window */
        copy_panels(k_tile, kv + row * DSV2I_PANEL, panel, 2);
        copy_panels(k_tile + 2 * kv_panel, scratch.rope + row * DSV2I_PANEL, 0, 1);
        dsv2i_copy_commit();
    };

    copy_keys(work.from - work.start);
    load_q(q_tile, q + ((size_t)work.row * (size_t)heads + (size_t)work.head) * q_dim, (size_t)heads * q_dim, work.n);

    /* Index 2 i + half: row 16 i + 8 half + g of the warp. */
    float d[2][v_dim / 8][4] = {}, max[4], sum[4] = {};
    const size_t at = (size_t)(work.row + warp_row + g) * (size_t)heads + (size_t)work.head; /* (row, head) */
#pragma unroll
    for (int r = 0; r < 4; r++)
        max[r] = __uint_as_float(0xFF800000u);
    if (!work.first)
#pragma unroll
        for (int r = 0; r < 4; r++)
            if (warp_row + 8 * r + g < work.n) {
                const size_t here = at + (size_t)(8 * r) * (size_t)heads;
                const float2 state = scratch.state[here * 4 + (size_t)t];

                max[r] = state.x;
                sum[r] = state.y;
#pragma unroll
                for (int j = 0; j < v_dim / 8; j++) {
                    const float2 two = *(const float2 *)(o + here * v_dim + 8 * j + 2 * t);
                    d[r / 2][j][r % 2 * 2] = two.x;
                    d[r / 2][j][r % 2 * 2 + 1] = two.y;
                }
            }

    const int a_at = dsv2i_panel_unit(lane % 16, lane / 16), k_at = dsv2i_panel_unit(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    const int warp_pos = work.pos + warp_row; /* of the warp's first row */
    const int warp_end = warp_row < work.n ? work.pos + (work.n < warp_row + 32 ? work.n : warp_row + 32) : 0;
    for (int key = work.from; key < work.to; key += keys) {
        float s[2][keys / 8][4] = {};

        dsv2i_copy_wait_all();
        __syncthreads(); /* the keys are here (and q), and the values before are done with */
        copy_panels(v_tile, kv + 2 * panel + (key - work.start) * DSV2I_PANEL, panel, 2);
        dsv2i_copy_commit();
        if (key < warp_end)
#pragma unroll 2
            for (int k = 0; k < q_dim / 16; k++) {
                uint32_t a[2][4];

#pragma unroll
                for (int i = 0; i < 2; i++)
                    dsv2i_ldmatrix(a[i], q_tile + k / 4 * q_panel + (warp_row + i * 16) * DSV2I_PANEL + (a_at ^ k % 4 * 16));
#pragma unroll
                for (int j = 0; j < keys / 16; j++) {
                    uint32_t b[4];

                    dsv2i_ldmatrix(b, k_tile + k / 4 * kv_panel + j * 16 * DSV2I_PANEL + (k_at ^ k % 4 * 16));
                    const uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        dsv2i_mma_bf16(s[i][2 * j], a[i], even);
                        dsv2i_mma_bf16(s[i][2 * j + 1], a[i], odd);
                    }
                }
            }
        dsv2i_copy_wait_all();
        __syncthreads(); /* the values are here, and the keys are done with */
        if (key + keys < work.to)
            copy_keys(key + keys - work.start);
        if (key >= warp_end)
            continue;

        if (key + keys - 1 > warp_pos)
#pragma unroll
            for (int r = 0; r < 4; r++)
#pragma unroll
                for (int j = 0; j < keys / 8; j++)
#pragma unroll
                    for (int c = 0; c < 2; c++)
                        if (key + 8 * j + 2 * t + c > warp_pos + 8 * r + g)
                            s[r / 2][j][r % 2 * 2 + c] = __uint_as_float(0xFF800000u);
        bool grew = false;
        float factor[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            float most = max[r];

#pragma unroll
            for (int j = 0; j < keys / 8; j++)
                most = fmaxf(most, fmaxf(s[r / 2][j][r % 2 * 2], s[r / 2][j][r % 2 * 2 + 1]));
            most = fmaxf(most, __shfl_xor_sync(DSV2I_ALL_LANES, most, 1));
            most = fmaxf(most, __shfl_xor_sync(DSV2I_ALL_LANES, most, 2));
            grew |= most > max[r];
            factor[r] = dsv2i_exp2((max[r] - most) * scale);
            max[r] = most;
        }
        if (__any_sync(DSV2I_ALL_LANES, grew))
#pragma unroll
            for (int r = 0; r < 4; r++) {
                sum[r] *= factor[r];
#pragma unroll
                for (int j = 0; j < v_dim / 8; j++) {
                    d[r / 2][j][r % 2 * 2] *= factor[r];
                    d[r / 2][j][r % 2 * 2 + 1] *= factor[r];
                }
            }
        uint32_t p[2][keys / 16][4]; /* the weights, as A */
#pragma unroll
        for (int r = 0; r < 4; r++)
#pragma unroll
            for (int j = 0; j < keys / 8; j++) {
                const float a = dsv2i_exp2(fmaf(s[r / 2][j][r % 2 * 2], scale, -max[r] * scale));
                const float b = dsv2i_exp2(fmaf(s[r / 2][j][r % 2 * 2 + 1], scale, -max[r] * scale));

                sum[r] += a + b;
                p[r / 2][j / 2][r % 2 + j % 2 * 2] = dsv2i_bf16x2(a, b);
            }
#pragma unroll
        for (int k = 0; k < keys / 16; k++)
#pragma unroll
            for (int j = 0; j < v_dim / 16; j++) {
                uint32_t b[4];

                dsv2i_ldmatrix_trans(b, v_tile + j / 4 * kv_panel + k * 16 * DSV2I_PANEL + (a_at ^ j % 4 * 16));
                const uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    dsv2i_mma_bf16(d[i][2 * j], p[i][k], even);
                    dsv2i_mma_bf16(d[i][2 * j + 1], p[i][k], odd);
                }
            }
    }

#pragma unroll
    for (int r = 0; r < 4; r++) {
        const size_t here = at + (size_t)(8 * r) * (size_t)heads;
        float all = sum[r];

        all += __shfl_xor_sync(DSV2I_ALL_LANES, all, 1);
        all += __shfl_xor_sync(DSV2I_ALL_LANES, all, 2);
        if (warp_row + 8 * r + g >= work.n)
            continue;
        if (!work.last)
            scratch.state[here * 4 + (size_t)t] = make_float2(max[r], sum[r]);
        const float by = work.last ? 1 / all : 1.0f;
#pragma unroll
        for (int j = 0; j < v_dim / 8; j++) {
            const float x = d[r / 2][j][r % 2 * 2] * by, y = d[r / 2][j][r % 2 * 2 + 1] * by;
            const size_t to = here * v_dim + (size_t)(8 * j + 2 * t);

            *(float2 *)(o + to) = make_float2(x, y);
            if (work.last && o_bf16)
                *(uint32_t *)(o_bf16 + to) = dsv2i_bf16x2(x, y);
        }
    }
}

cudaError_t dsv2i_prefill_attend(const dsv2i_cuda_launch *to, const dsv2i_prefill_args *args, int first)
{
    return dsv2i_launch(to, attend_kernel, dim3((unsigned)(args->tiles * args->heads)), threads, shared_bytes, args->step, args->o,
                        args->o_bf16, args->q, args->scratch, args->heads, first, args->scale);
}

static size_t panel_bytes(int32_t window, size_t panels) { return panels * (size_t)window * DSV2I_PANEL * 2; }

size_t dsv2i_cuda_mla_prefill_scratch(int32_t max_rows, int32_t heads, int32_t window)
{
    return panel_bytes(window, DSV2I_LATENT_PANELS + 1 + DSV2I_HEAD_PANELS * (size_t)heads)
           + sizeof(float2) * 4 * (size_t)max_rows * (size_t)heads;
}

cudaError_t dsv2i_cuda_mla_prefill(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *o, uint16_t *o_bf16,
                                   const float *q, const struct dsv2i_weight *kv_b, int32_t layer, const struct dsv2i_shape *shape,
                                   const struct dsv2i_cuda_prefill *prefill, void *scratch)
{
    const int heads = shape->num_attention_heads, window = prefill->window;
    unsigned char *at = (unsigned char *)scratch;
    dsv2i_prefill_args args = {step, o, o_bf16, q, (const uint16_t *)kv_b->data, layer, heads, 0, 0, {}};

    if (shape->kv_lora_rank != DSV2I_PREFILL_RANK || shape->qk_nope_head_dim != DSV2I_PREFILL_NOPE
        || shape->qk_rope_head_dim != DSV2I_PREFILL_ROPE || shape->v_head_dim != DSV2I_PREFILL_V || heads > 128
        || kv_b->dtype != DSV2I_BF16 || window <= 0 || window % DSV2I_PREFILL_BLOCK)
        return cudaErrorInvalidValue;
    args.tiles = prefill->rows / DSV2I_PREFILL_BLOCK + prefill->seqs; /* or fewer */
    args.scale = (float)(shape->softmax_scale * 1.4426950408889634);
    args.scratch.latent = (uint16_t *)at;
    args.scratch.rope = (uint16_t *)(at += panel_bytes(window, DSV2I_LATENT_PANELS));
    args.scratch.kv = (uint16_t *)(at += panel_bytes(window, 1));
    args.scratch.state = (float2 *)(at + panel_bytes(window, DSV2I_HEAD_PANELS * (size_t)heads));
    args.scratch.window = window;
    for (int first = 0; first < prefill->context; first += window) {
        const int positions = prefill->context - first < window ? prefill->context - first : window;
        cudaError_t e = dsv2i_prefill_gather(to, &args, first, positions);

        if (!e)
            e = to->sm == 90 ? dsv2i_prefill_expand_sm90(to, &args, first, positions)
                             : dsv2i_prefill_expand(to, &args, first, positions);
        if (!e)
            e = to->sm == 90 ? dsv2i_prefill_attend_sm90(to, &args, first) : dsv2i_prefill_attend(to, &args, first);
        if (e)
            return e;
    }
    return cudaSuccess;
}
