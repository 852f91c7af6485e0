/* Attention in the expanded form: what its kernels share, the order of the work and the scratch.
 *
 * The positions of all expanded sequences, each filled up to whole blocks of 128, stand one after the other: the context.  It is worked
 * through in windows: a window's latents are read from the pages, keys and values are made of them, and every tile of 128 rows of a
 * sequence meets those that it may see.  What a row has gathered is kept between windows bit by bit, and keys are taken 32 or 128 at a
 * time from position 0, so no row can tell where the windows end.
 *
 * Scratch is made of panels, (window, 64) bf16, a row's eight units of 16 bytes swizzled: unit u of row r lies at u ^ r % 8.  So a piece
 * of a panel is, copied as it is, what ldmatrix reads without conflicts, and what wgmma takes.
 *     8 panels   latents
 *     1 panel    rotated keys, which all heads share
 *     4 panels   of each head: UK c, 128 elements, and UV c, 128 elements
 *     state      (n_rows, heads, 4 lanes): greatest score, and the lane's part of the sum
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_MLA_PREFILL_CUH
#define DSV2I_CUDA_MLA_PREFILL_CUH

#include "copy.cuh"
#include "launch.cuh"
#include "warp.cuh"

/* The sizes of every release. */
enum { DSV2I_PREFILL_NOPE = 128, DSV2I_PREFILL_ROPE = 64, DSV2I_PREFILL_V = 128, DSV2I_PREFILL_RANK = 512 };

enum {
    DSV2I_PREFILL_BLOCK = 128,                                               /* positions; rows of a tile */
    DSV2I_LATENT_PANELS = DSV2I_PREFILL_RANK / DSV2I_PANEL,
    DSV2I_HEAD_PANELS = (DSV2I_PREFILL_NOPE + DSV2I_PREFILL_V) / DSV2I_PANEL,
    DSV2I_PANEL_TILE = DSV2I_PREFILL_BLOCK * DSV2I_PANEL * 2,                /* bytes of its 128 rows */
    DSV2I_HEADS_TOGETHER = 16                                                /* whose keys and values stay in the L2 cache */
};

struct dsv2i_prefill_scratch {
    uint16_t *latent, *rope, *kv;
    float2 *state;
    int window; /* positions, whole blocks */
};

/* Part of a sequence: its block or tile at. */
struct dsv2i_prefill_part {
    const dsv2i_seq *seq;
    int row, n, pos; /* the sequence's first row, rows, and the position of the first */
    int begin;       /* where it begins in the context */
    int at;
};

/* Step k of the product that expands, by a block: 128 rows of panel k of latents and, behind them, of columns 64 k .. of kv_b. */
template <int threads>
__device__ __forceinline__ void dsv2i_prefill_copy_step(unsigned char *to, const uint16_t *latent, const uint16_t *kv_b, size_t panel,
                                                        int k)
{
    const unsigned char *a = (const unsigned char *)(latent + (size_t)k * panel);

#pragma unroll
    for (int i = 0; i < DSV2I_PANEL_TILE / 16 / threads; i++) {
        const int u = i * threads + (int)threadIdx.x, row = u / 8;
        const uint16_t *b = kv_b + (size_t)row * DSV2I_PREFILL_RANK + k * DSV2I_PANEL + u % 8 * 8;

        dsv2i_copy<16>(to + 16 * u, a + 16 * u);
        dsv2i_copy<16>(to + DSV2I_PANEL_TILE + 2 * dsv2i_panel_unit(row, u % 8), b);
    }
    dsv2i_copy_commit();
}

/* And its result, 128 rows of two panels. */
template <int threads> __device__ __forceinline__ void dsv2i_prefill_write_panels(uint16_t *to, size_t panel, const unsigned char *from)
{
#pragma unroll
    for (int p = 0; p < 2; p++)
#pragma unroll
        for (int i = 0; i < DSV2I_PANEL_TILE / 16 / threads; i++) {
            const int u = i * threads + (int)threadIdx.x;
            ((uint4 *)(to + (size_t)p * panel))[u] = ((const uint4 *)(from + p * DSV2I_PANEL_TILE))[u];
        }
}

/* What the whole warp asks for: block index of the context or, with tiles, tile index of all rows.  False if there are fewer.  Sequences
 * in F32 are not for these kernels. */
template <bool tiles> __device__ __forceinline__ bool dsv2i_prefill_find(const dsv2i_cuda_step *step, int index, dsv2i_prefill_part *part)
{
    const int n_seqs = step->n_seqs, lane = (int)threadIdx.x % 32;
    int blocks_before = 0, tiles_before = 0;

    for (int from = 0; from < n_seqs; from += 32) {
        const int s = from + lane;
        int row = 0, n = 0, pos = 0;

        if (s < n_seqs && step->seqs[s].form == DSV2I_EXPANDED && step->seqs[s].kv_type != DSV2I_KV_F32) {
            row = step->first[s];
            n = step->first[s + 1] - row;
            if (n > 0)
                pos = step->pos[row];
        }
        int blocks = n > 0 ? (pos + n + DSV2I_PREFILL_BLOCK - 1) / DSV2I_PREFILL_BLOCK : 0;
        int its_tiles = (n + DSV2I_PREFILL_BLOCK - 1) / DSV2I_PREFILL_BLOCK;
        int blocks_end = blocks, tiles_end = its_tiles; /* sums up to this lane */

#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            int b = __shfl_up_sync(DSV2I_ALL_LANES, blocks_end, d), t = __shfl_up_sync(DSV2I_ALL_LANES, tiles_end, d);

            blocks_end += lane >= d ? b : 0;
            tiles_end += lane >= d ? t : 0;
        }
        unsigned behind = __ballot_sync(DSV2I_ALL_LANES, (tiles ? tiles_before + tiles_end : blocks_before + blocks_end) > index);

        if (behind) {
            const int owner = __ffs((int)behind) - 1;

            part->seq = &step->seqs[from + owner];
            part->row = __shfl_sync(DSV2I_ALL_LANES, row, owner);
            part->n = __shfl_sync(DSV2I_ALL_LANES, n, owner);
            part->pos = __shfl_sync(DSV2I_ALL_LANES, pos, owner);
            part->begin = DSV2I_PREFILL_BLOCK * (blocks_before + __shfl_sync(DSV2I_ALL_LANES, blocks_end - blocks, owner));
            part->at = index - (tiles ? tiles_before : blocks_before)
                       - __shfl_sync(DSV2I_ALL_LANES, tiles ? tiles_end - its_tiles : blocks_end - blocks, owner);
            return true;
        }
        blocks_before += __shfl_sync(DSV2I_ALL_LANES, blocks_end, 31);
        tiles_before += __shfl_sync(DSV2I_ALL_LANES, tiles_end, 31);
    }
    return false;
}

/* What a block of attention does in a window: rows of one head against keys from .. to of their sequence. */
struct dsv2i_prefill_work {
    int head, row, n, pos; /* the tile's first row, rows, position of the first */
    int start;             /* the position that the window's first row would have in this sequence */
    int from, to;          /* positions; to is past the last that any row of the tile sees in this window */
    bool first, last;      /* windows of this tile */
};

/* Block index of count.  16 heads at a time, whose keys and values fit the L2 cache; of them the last tiles first, which see the most. */
__device__ __forceinline__ bool dsv2i_prefill_work_of(const dsv2i_cuda_step *step, int index, int count, int heads, int window, int first,
                                                      dsv2i_prefill_work *work)
{
    const int tiles = count / heads, group = index / (DSV2I_HEADS_TOGETHER * tiles) * DSV2I_HEADS_TOGETHER, in = index - group * tiles;
    const int together = heads - group < DSV2I_HEADS_TOGETHER ? heads - group : DSV2I_HEADS_TOGETHER;
    dsv2i_prefill_part part;

    work->head = group + in % together;
    if (!dsv2i_prefill_find<true>(step, tiles - 1 - in / together, &part))
        return false;
    const int row = part.at * DSV2I_PREFILL_BLOCK;
    work->row = part.row + row;
    work->n = part.n - row < DSV2I_PREFILL_BLOCK ? part.n - row : DSV2I_PREFILL_BLOCK;
    work->pos = part.pos + row;
    work->start = first - part.begin;
    const int end = work->pos + work->n;
    work->from = work->start > 0 ? work->start : 0;
    work->to = work->start + window < end ? work->start + window : end;
    work->first = work->start <= 0;
    work->last = work->start + window >= end;
    return work->from < work->to;
}

/* One window's launches; first is where it begins in the context, context where that ends.  mla_expand.cu, mla_prefill.cu and, for sm_90a,
 * mla_expand_sm90.cu, mla_prefill_sm90.cu. */
struct dsv2i_prefill_args {
    const dsv2i_cuda_step *step;
    float *o;
    uint16_t *o_bf16;
    const float *q;
    const uint16_t *kv_b;
    int layer, heads, tiles;
    float scale; /* softmax_scale / ln 2 */
    dsv2i_prefill_scratch scratch;
};
cudaError_t dsv2i_prefill_gather(const dsv2i_cuda_launch *to, const dsv2i_prefill_args *args, int first, int positions);
cudaError_t dsv2i_prefill_expand(const dsv2i_cuda_launch *to, const dsv2i_prefill_args *args, int first, int positions);
cudaError_t dsv2i_prefill_attend(const dsv2i_cuda_launch *to, const dsv2i_prefill_args *args, int first);
cudaError_t dsv2i_prefill_expand_sm90(const dsv2i_cuda_launch *to, const dsv2i_prefill_args *args, int first, int positions);
cudaError_t dsv2i_prefill_attend_sm90(const dsv2i_cuda_launch *to, const dsv2i_prefill_args *args, int first);

#endif
