/* Attention over latents: what its kernels share, the plan of the work and how records become bf16.  docs/kernels/mla-decode.md.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_MLA_DECODE_CUH
#define DSV2I_CUDA_MLA_DECODE_CUH

#include "copy.cuh"
#include "kv_read.cuh"
#include "launch.cuh"

/* The sizes of every release. */
enum { DSV2I_MLA_RANK = 512, DSV2I_MLA_ROPE = 64, DSV2I_MLA_WIDTH = DSV2I_MLA_RANK + DSV2I_MLA_ROPE };

/* A tile of queries: from query `at` of sequence seq on; keys tiles of keys at `start` of the line.  One that is cut has its parts' results
 * in slots of partial, from `slot` on. */
struct dsv2i_mla_tile {
    int seq, at, start, keys, slot;
};

/* What plan writes; first (blocks), cut (blocks) and tiles follow, then partial results. */
struct dsv2i_mla_plan {
    int part, n_tiles, n_cut;
    int unit; /* invariant: tiles of keys that one block makes a node of the tree of, else 0 */
};

/* The plan in scratch, and the slots behind it: a partial result is (M, 512), then max and sum of each query. */
struct dsv2i_mla_work {
    const dsv2i_mla_plan *plan;
    const int *first; /* tile of each block */
    const dsv2i_mla_tile *tiles;
    float *partial;
};

/* A block's work: n queries of a sequence, from `at` on, over tiles begin to end - 1 of keys.  first: the same query among all. */
struct dsv2i_mla_piece {
    void *const *page;
    int kv_type, layer;
    int pos, last; /* position of the sequence's first row here; tokens that the last query sees */
    int first, at, n, begin, end;
    int slot;      /* of partial, or -1: the piece is all */
};

/* Queries of a tile of a sequence that has so many. */
__device__ __forceinline__ int dsv2i_mla_tile_queries(int queries, bool big) { return big && queries > 16 ? 64 : 16; }

/* Block b's part of a tile, which begins before the part ends. */
__device__ __forceinline__ dsv2i_mla_piece dsv2i_mla_piece_of(const dsv2i_cuda_step *step, const dsv2i_mla_plan *plan,
                                                              const dsv2i_mla_tile &tile, int b, int layer, int heads, bool big)
{
    const int lo = b * plan->part, hi = lo + plan->part;
    const dsv2i_seq seq = step->seqs[tile.seq];
    const int row = step->first[tile.seq], queries = (step->first[tile.seq + 1] - row) * heads;
    dsv2i_mla_piece c;

    c.page = seq.page;
    c.kv_type = seq.kv_type;
    c.layer = layer;
    c.pos = step->pos[row];
    c.first = row * heads + tile.at;
    c.at = tile.at;
    c.n = min(dsv2i_mla_tile_queries(queries, big), queries - tile.at);
    c.last = c.pos + (c.at + c.n - 1) / heads + 1;
    c.begin = max(lo - tile.start, 0);
    c.end = min(hi - tile.start, tile.keys);
    c.slot = c.begin == 0 && c.end == tile.keys ? -1 : tile.slot + b - tile.start / plan->part;
    return c;
}

/* ---- records --------------------------------------------------------------------------------------------------------------------------- */

/* Bytes of a record: chosen anew each time, as registers are scarce. */
__device__ __forceinline__ int dsv2i_mla_record_bytes(int kv_type)
{
    return (int)(kv_type == DSV2I_KV_BF16 ? dsv2i_kv_record(DSV2I_KV_BF16, DSV2I_MLA_RANK, DSV2I_MLA_ROPE).bytes
               : kv_type == DSV2I_KV_6BIT ? dsv2i_kv_record(DSV2I_KV_6BIT, DSV2I_MLA_RANK, DSV2I_MLA_ROPE).bytes
                                          : dsv2i_kv_record(DSV2I_KV_INT8, DSV2I_MLA_RANK, DSV2I_MLA_ROPE).bytes);
}

/* bf16 of 4 codes of a byte: exact. */
__device__ __forceinline__ uint2 dsv2i_mla_four_codes(uint32_t x, int kv_type)
{
    if (kv_type == DSV2I_KV_F8_E4M3)
        return make_uint2(dsv2i_bf16x2_from_e4m3x2((uint16_t)x), dsv2i_bf16x2_from_e4m3x2((uint16_t)(x >> 16)));
    if (kv_type == DSV2I_KV_F8_E5M2) {
        float2 a = dsv2i_f32x2_from_e5m2x2((uint16_t)x), b = dsv2i_f32x2_from_e5m2x2((uint16_t)(x >> 16));
        return make_uint2(dsv2i_bf16x2(a.x, a.y), dsv2i_bf16x2(b.x, b.y));
    }
    float4 f;
    x ^= 0x80808080; /* now 128 more, without sign, in the mantissa of 2^23 */
    f.x = __uint_as_float(0x4B000000 | (x & 0xFF)) - 8388736.0f;
    f.y = __uint_as_float(0x4B000000 | (x >> 8 & 0xFF)) - 8388736.0f;
    f.z = __uint_as_float(0x4B000000 | (x >> 16 & 0xFF)) - 8388736.0f;
    f.w = __uint_as_float(0x4B000000 | x >> 24) - 8388736.0f;
    return make_uint2(dsv2i_bf16x2(f.x, f.y), dsv2i_bf16x2(f.z, f.w));
}

/* bf16 of 16 codes to two units of 16 bytes. */
__device__ __forceinline__ void dsv2i_mla_codes(void *to, void *to_next, const uint4 &x, int kv_type)
{
    const uint2 a = dsv2i_mla_four_codes(x.x, kv_type), b = dsv2i_mla_four_codes(x.y, kv_type);
    const uint2 c = dsv2i_mla_four_codes(x.z, kv_type), d = dsv2i_mla_four_codes(x.w, kv_type);

    *(uint4 *)to = make_uint4(a.x, a.y, b.x, b.y);
    *(uint4 *)to_next = make_uint4(c.x, c.y, d.x, d.y);
}

/* Pairs of 6BIT's levels as bf16, by two codes in a byte: (256), by as many threads. */
__device__ __forceinline__ void dsv2i_mla_make_levels(uint32_t *pairs, int thread)
{
    pairs[thread] = dsv2i_bf16x2(dsv2i_levels[thread % 16], dsv2i_levels[thread / 16]);
}

/* Elements 8 u to 8 u + 7 of a block of 32 of 6BIT: the low or high nibbles of two words of its codes, and their signs. */
__device__ __forceinline__ uint4 dsv2i_mla_eight_levels(const uint4 &codes, uint32_t negative, int u, const uint32_t *pairs)
{
    const uint32_t low = u % 2 ? codes.z : codes.x, high = u % 2 ? codes.w : codes.y;
    uint32_t out[4];

#pragma unroll
    for (int j = 0; j < 4; j++) { /* elements 8 u + 2 j and the next */
        const uint32_t two = (j < 2 ? low : high) >> (j % 2 * 16 + u / 2 * 4), s = negative >> (8 * u + 2 * j);

        out[j] = pairs[(two & 15) | (two >> 4 & 0xF0)] ^ ((s & 1) << 15 | (s & 2) << 30);
    }
    return make_uint4(out[0], out[1], out[2], out[3]);
}

/* mla_decode_sm90.cu: for tiles of 64 queries and 64 keys. */
cudaError_t dsv2i_mla_decode_sm90(const dsv2i_cuda_launch *to, const dsv2i_cuda_step *step, float *o, const uint16_t *q,
                                  const dsv2i_mla_work &work, int blocks, int layer, int heads);

#endif
