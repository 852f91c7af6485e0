/* Keys and values of a window of the context, from the latents in the pages, for attention in the expanded form (mla_prefill.cuh).
 *
 * Bound: the matrix units.  A position and head take 2 * 512 * 256 FLOPs, and 512 bytes are written: 512 FLOPs a byte.
 *
 * gather reads the records, whatever their type, and writes latents and rotated keys as bf16: a warp has a position, a lane of it
 * elements 8 lane .. 8 lane + 7 and as many 256 further on, so that the rotation of 6BIT is undone in registers and by shuffles.
 * Positions past the sequence's last become 0, whatever the page holds.
 *
 * expand is a product (positions, 512) (512, 256 heads): a block makes 128 positions by one head's keys or values, in steps of 64 of the
 * rank, the next step's copies under way.  8 warps of 32 x 64 each.
 *     A  128 rows of a panel of latents    16 KB, as they lie
 *     B  128 rows of kv_b, 128 bytes each  16 KB, swizzled on the way
 * The result is laid out in shared memory as its panels are and written from there.
 *
 * A value that is NaN is written as 0: its key is NaN, too, as both come of the same latent, and says so to every row that sees it; rows
 * before it, with weight 0 for it, stay what they are.
 *
 * SPDX-License-Identifier: MIT */
#include "convert.cuh"
#include "matrix.cuh"
#include "mla_prefill.cuh"

static const int gather_warps = 8;
static const int rank = DSV2I_PREFILL_RANK, rope = DSV2I_PREFILL_ROPE, block = DSV2I_PREFILL_BLOCK;

static __device__ const float levels[16] = DSV2I_KV_LEVELS;

/* Elements from codes of a byte. */
static __device__ __forceinline__ void widen(float (&x)[8], uint2 codes, float scale, int kv_type)
{
    const unsigned word[2] = {codes.x, codes.y};

#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (kv_type == DSV2I_KV_F8_E4M3 || kv_type == DSV2I_KV_F8_E5M2) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                uint16_t pair = (uint16_t)(word[i] >> 16 * j);
                float2 two = kv_type == DSV2I_KV_F8_E4M3 ? dsv2i_f32x2_from_e4m3x2(pair) : dsv2i_f32x2_from_e5m2x2(pair);
                x[4 * i + 2 * j] = two.x * scale, x[4 * i + 2 * j + 1] = two.y * scale;
            }
        } else {
            float4 four = dsv2i_f32x4_from_s8x4(word[i]);
            x[4 * i] = four.x * scale, x[4 * i + 1] = four.y * scale, x[4 * i + 2] = four.z * scale, x[4 * i + 3] = four.w * scale;
        }
    }
}

static __device__ __forceinline__ uint4 narrow(const float (&x)[8])
{
    return make_uint4(dsv2i_bf16x2(x[0], x[1]), dsv2i_bf16x2(x[2], x[3]), dsv2i_bf16x2(x[4], x[5]), dsv2i_bf16x2(x[6], x[7]));
}

/* c = D H y over 512 elements, two units a lane. */
static __device__ __forceinline__ void rotate_back(float (&y)[2][8])
{
    const int lane = (int)threadIdx.x % 32;

#pragma unroll
    for (int j = 0; j < 8; j++) {
        float a = y[0][j], b = y[1][j];
        y[0][j] = a + b, y[1][j] = a - b;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int d = 4; d > 0; d /= 2)
#pragma unroll
            for (int j = 0; j < 8; j++)
                if (!(j & d)) {
                    float a = y[i][j], b = y[i][j + d];
                    y[i][j] = a + b, y[i][j + d] = a - b;
                }
#pragma unroll
        for (int d = 16; d > 0; d /= 2)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float other = __shfl_xor_sync(DSV2I_ALL_LANES, y[i][j], d);
                y[i][j] = lane & d ? other - y[i][j] : y[i][j] + other;
            }
#pragma unroll
        for (int j = 0; j < 8; j++)
            y[i][j] = __uint_as_float(__float_as_uint(y[i][j]) ^ dsv2i_kv_negative((unsigned)(256 * i + 8 * lane + j)) << 31);
    }
}

/* The units lane and 32 + lane of a record's latent and, for lanes below 8, unit lane of its key. */
static __device__ __forceinline__ void read_record(uint4 (&latent)[2], uint4 &key, const unsigned char *record, int kv_type)
{
    const struct dsv2i_kv_record r = dsv2i_kv_record(kv_type, rank, rope);
    const int lane = (int)threadIdx.x % 32;

    if (kv_type == DSV2I_KV_BF16) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            latent[i] = *(const uint4 *)(record + 16 * (32 * i + lane));
        if (lane < 8)
            key = *(const uint4 *)(record + r.key + 16 * lane);
        return;
    }
    const float2 scale = *(const float2 *)(record + r.scale);
    float x[2][8];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int u = 32 * i + lane;

        if (kv_type == DSV2I_KV_6BIT) { /* 16 bytes of levels hold four units: two in low nibbles, two in high ones */
            const uint2 level = *(const uint2 *)(record + 16 * (u / 4) + 8 * (u % 2));
            const unsigned signs = record[r.sign + (size_t)u];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                unsigned l = (j < 4 ? level.x : level.y) >> (8 * (j % 4) + 4 * (u / 2 % 2)) & 15;
                x[i][j] = __uint_as_float(__float_as_uint(levels[l] * scale.x) ^ (signs >> j & 1) << 31);
            }
        } else {
            widen(x[i], *(const uint2 *)(record + 8 * u), scale.x, kv_type);
        }
    }
    if (kv_type == DSV2I_KV_6BIT)
        rotate_back(x);
    latent[0] = narrow(x[0]);
    latent[1] = narrow(x[1]);
    if (lane < 8) {
        widen(x[0], *(const uint2 *)(record + r.key + 8 * (size_t)lane), scale.y, kv_type);
        key = narrow(x[0]);
    }
}

static __global__ void gather_kernel(const dsv2i_cuda_step *step, dsv2i_prefill_scratch scratch, int layer, int first)
{
    const int at = (int)blockIdx.x * gather_warps + (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32; /* in the window */
    dsv2i_prefill_part part;
    uint4 latent[2] = {}, key = {};

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (!dsv2i_prefill_find<false>(step, (first + at) / block, &part))
        return;
    const int pos = first + at - part.begin;
    if (pos < part.pos + part.n) {
        const size_t bytes = dsv2i_kv_record(part.seq->kv_type, rank, rope).bytes;
        const unsigned char *page = (const unsigned char *)part.seq->page[pos / DSV2I_PAGE_TOKENS];

        page += ((size_t)layer * DSV2I_PAGE_TOKENS + (size_t)(pos % DSV2I_PAGE_TOKENS)) * bytes;
        read_record(latent, key, page, part.seq->kv_type);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int u = 32 * i + lane;
        *(uint4 *)(scratch.latent + (size_t)(u / 8) * (size_t)scratch.window * DSV2I_PANEL + dsv2i_panel_unit(at, u % 8)) = latent[i];
    }
    if (lane < 8)
        *(uint4 *)(scratch.rope + dsv2i_panel_unit(at, lane)) = key;
}

static const int tile_bytes = DSV2I_PANEL_TILE; /* of A and of B */
static const int expand_threads = 256, expand_shared = 2 * 2 * tile_bytes;

static __global__ void __launch_bounds__(expand_threads, 2)
expand_kernel(const dsv2i_cuda_step *step, dsv2i_prefill_scratch scratch, const uint16_t *kv_b, int first)
{
    unsigned char *shared = (unsigned char *)dsv2i_shared(); /* two steps, each A and B */
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int column = (int)blockIdx.x * 128, row = (int)blockIdx.y * block; /* columns of kv_b's product; rows of the window */
    const size_t panel = (size_t)scratch.window * DSV2I_PANEL;
    const uint16_t *latent = scratch.latent + (size_t)row * DSV2I_PANEL;
    const int a_at = dsv2i_panel_unit(warp / 2 * 32 + lane % 16, lane / 16);
    const int b_at = dsv2i_panel_unit(warp % 2 * 64 + lane % 8 + lane / 16 * 8, lane / 8 % 2);
    dsv2i_prefill_part part;
    float d[2][8][4] = {};

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (!dsv2i_prefill_find<false>(step, (first + row) / block, &part))
        return;
    kv_b += (size_t)column * rank;
    dsv2i_prefill_copy_step<expand_threads>(shared, latent, kv_b, panel, 0);
    for (int k = 0; k < DSV2I_LATENT_PANELS; k++) {
        const uint16_t *a_tile = (const uint16_t *)(shared + k % 2 * 2 * tile_bytes), *b_tile = a_tile + tile_bytes / 2;

        dsv2i_copy_wait_all();
        __syncthreads(); /* the step is here, and the one before is done with */
        if (k + 1 < DSV2I_LATENT_PANELS)
            dsv2i_prefill_copy_step<expand_threads>(shared + (k + 1) % 2 * 2 * tile_bytes, latent, kv_b, panel, k + 1);
#pragma unroll
        for (int kk = 0; kk < DSV2I_PANEL / 16; kk++) {
            uint32_t a[2][4];

#pragma unroll
            for (int i = 0; i < 2; i++)
                dsv2i_ldmatrix(a[i], a_tile + i * 16 * DSV2I_PANEL + (a_at ^ kk * 16));
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint32_t b[4];

                dsv2i_ldmatrix(b, b_tile + j * 16 * DSV2I_PANEL + (b_at ^ kk * 16));
                const uint32_t even[2] = {b[0], b[1]}, odd[2] = {b[2], b[3]};
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    dsv2i_mma_bf16(d[i][2 * j], a[i], even);
                    dsv2i_mma_bf16(d[i][2 * j + 1], a[i], odd);
                }
            }
        }
    }
    const bool values = blockIdx.x % 2;
    uint16_t *out = (uint16_t *)(shared + warp % 2 * tile_bytes); /* in the first step's place, which nobody reads any more */
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int r = warp / 2 * 32 + 16 * i + 8 * half + lane / 4;
                float x = d[i][j][2 * half], y = d[i][j][2 * half + 1];

                if (values)
                    x = x == x ? x : 0.0f, y = y == y ? y : 0.0f;
                *(uint32_t *)(out + dsv2i_panel_unit(r, j) + 2 * (lane % 4)) = dsv2i_bf16x2(x, y);
            }
    __syncthreads();
    dsv2i_prefill_write_panels<expand_threads>(scratch.kv + (size_t)(column / DSV2I_PANEL) * panel + (size_t)row * DSV2I_PANEL, panel,
                                               shared);
}

cudaError_t dsv2i_prefill_gather(const dsv2i_cuda_launch *to, const dsv2i_prefill_args *args, int first, int positions)
{
    return dsv2i_launch(to, gather_kernel, dim3((unsigned)(positions / gather_warps)), 32 * gather_warps, 0, args->step, args->scratch,
                        args->layer, first);
}

cudaError_t dsv2i_prefill_expand(const dsv2i_cuda_launch *to, const dsv2i_prefill_args *args, int first, int positions)
{
    return dsv2i_launch(to, expand_kernel, dim3((unsigned)(2 * args->heads), (unsigned)(positions / block)), expand_threads, expand_shared,
                        args->step, args->scratch, args->kv_b, first);
}
