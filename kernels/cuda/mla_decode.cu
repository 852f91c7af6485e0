/* Attention over pages in the absorbed form: every query (512 + 64) meets every latent and key of its row's context, and the latents are
 * also the values; o = softmax(q . (c, k)) c.  docs/kernels/mla-decode.md has the schedule and what it is bound by.
 *
 * Bound: with 16 heads bandwidth, each record once (BF16: 1,152 bytes a token and layer for 34.8 kFLOP); with 128 heads (278 kFLOP) the
 * tensor cores, or rather shared memory, which brings them their operands: 2,800 cycles for a tile of 64 queries and 32 keys.  On sm_90a
 * mla_decode_sm90.cu serves models of 64 heads and more, by the same plan.
 *
 * Queries of a sequence lie one behind another, row by row and head by head, so a tile is any M of them: 16, or 64 where the sequence has
 * more.  The causal mask is each query's own.  A block of 8 warps serves a tile over a piece of its context, 32 keys at a time:
 *   scores  (M, 32) = Q K^T; warps share rows, keys, and the 576 columns in four parts, each 128 of the latent and 16 of the key;
 *   softmax online, in shared memory, where the parts are added up;
 *   values  (M, 512) += P V; a warp has 64 columns of V, which is the same tile as K.
 * Records come by cp.async, a few tiles ahead.  BF16 ones are that tile; others are first made into bf16 codes, exactly (6BIT: its levels
 * rounded to bf16), and their scales meet the scores and P.
 *
 * Work is spread by a plan that the device makes once a step for all layers: tiles lie on a line, each as long as its keys and some more
 * for what a tile costs anyway, and each block takes an equal part of the line.  A second launch puts together tiles that are cut.
 *
 * Invariant: a tile's context is a tree, whatever its length: leaves of 512 tokens from position 0 on, four children to a node.  A block
 * makes whole nodes, those that begin in its part.  The order of every sum in a leaf is the same for both M.
 *
 * A score that is NaN is a NaN in its query's result.  In BF16 pages a NaN or infinity of a later row of the same tile is, too.
 *
 * SPDX-License-Identifier: MIT */
#include <math.h>

#include "matrix.cuh"
#include "mla_decode.cuh"
#include "warp.cuh"

static const int rank = DSV2I_MLA_RANK, rope = DSV2I_MLA_ROPE, width = DSV2I_MLA_WIDTH;
static const int threads = 256, warps = 8;
static const int tokens = 32;                    /* of a tile of keys */
static const int row_bytes = 2 * width;          /* of Q and K in shared memory: 72 units of 16 bytes, swizzled */
static const int key_bytes = tokens * row_bytes; /* of a bf16 tile of keys */
static const int raw_bytes = tokens * 592;       /* of a tile of records, at most */
static const int score_row = tokens + 4;         /* floats: 16 bytes more, so that rows begin in different banks */
static const int tile_cost = 2, least_part = 2;  /* in tiles of keys */
static const int leaf = 16, fold = 4;            /* invariant: tiles of keys of a leaf of the tree; children of a node */
static const int levels = 5;                     /* 16 * 4^5 tiles: 524,288 tokens */
static const int combine_threads = 512;
static const int few_parts = 8;                  /* that a warp puts together */

/* Tiles of 64 queries need 163 KB of shared memory; where they cannot run they are not built. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800 && __CUDA_ARCH__ != 900 && __CUDA_ARCH__ != 1000
#define TILES_OF_64 false
#else
#define TILES_OF_64 true
#endif

/* Where things are in scratch, and how the kernel is built for a card and a model. */
struct layout {
    bool big;       /* there are tiles of 64 queries */
    bool sm90;      /* and no others: for mla_decode_sm90.cu */
    int tokens;     /* of a tile of keys */
    int blocks;     /* of the decode kernel */
    int slots;      /* for the parts of tiles that are cut, two for a block; invariant: then levels + 1 for each block's own use */
    int max_tiles;
    size_t tiles, partial, slot, bytes; /* offsets; bytes of a partial result: (M, 512), then max and sum of each query */
};

static layout layout_of(const dsv2i_cuda_launch *to, int heads)
{
    const bool wide = to->sm == 80 || to->sm == 90 || to->sm == 100; /* cards with 164 KB or more of shared memory */
    layout l;

    l.big = wide && (to->several ? (long)to->max_rows * heads : heads) > 16;
    l.sm90 = to->sm == 90 && heads >= 64 && !to->invariant; /* whose sums are in another order */
    l.tokens = l.sm90 ? DSV2I_PAGE_TOKENS : tokens;
    l.blocks = to->n_sms * (!l.big && !to->invariant && wide && to->sm >= 90 ? 2 : 1);
    l.slots = 2 * l.blocks;
    l.max_tiles = to->max_rows * (l.big ? (heads + 63) / 64 : (heads + 15) / 16);
    l.tiles = sizeof(dsv2i_mla_plan) + sizeof(int) * 2 * (size_t)l.blocks;
    l.partial = (l.tiles + sizeof(dsv2i_mla_tile) * (size_t)l.max_tiles + 255) / 256 * 256;
    l.slot = sizeof(float) * (size_t)((l.big ? 64 : 16) * (rank + 2));
    l.bytes = l.partial + (size_t)(l.slots + (to->invariant ? l.blocks * (levels + 1) : 0)) * l.slot;
    return l;
}

size_t dsv2i_cuda_mla_scratch(const struct dsv2i_cuda_launch *to, int32_t heads)
{
    return layout_of(to, heads).bytes;
}

/* ---- the plan ------------------------------------------------------------------------------------------------------------------------ */

/* Sum of x over this thread and those before it; total of all.  parts: a block_scan of its own. */
static __device__ int block_scan(int x, int *total, int *parts)
{
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, before = 0;

#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        int other = __shfl_up_sync(DSV2I_ALL_LANES, x, (unsigned)d);
        x += lane >= d ? other : 0;
    }
    if (lane == 31)
        parts[warp] = x;
    __syncthreads();
    *total = 0;
    for (int w = 0; w < threads / 32; w++) {
        before += w < warp ? parts[w] : 0;
        *total += parts[w];
    }
    __syncthreads();
    return x + before;
}

/* In how many parts a tile is. */
static __device__ __forceinline__ int parts_of(const dsv2i_mla_tile &tile, int part, int unit)
{
    return unit ? (tile.keys + unit - 1) / unit : (tile.start + tile.keys - 1) / part - tile.start / part + 1;
}

static __global__ void mla_plan_kernel(const dsv2i_cuda_step *step, dsv2i_mla_plan *to, int *first, dsv2i_mla_tile *tiles, int heads,
                                       int big, int tile_tokens, int blocks, int invariant)
{
    int *parts = (int *)dsv2i_shared(), *first_tile = parts + warps + 1; /* (warps), where the second half begins, (n_seqs + 1) */
    int *cut = first + blocks;
    int n_tiles = 0, line = 0, total;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    const int n_seqs = step->n_seqs;
    for (int from = 0; from < n_seqs; from += threads) {
        int s = from + (int)threadIdx.x, n = 0;

        if (s < n_seqs && dsv2i_decoded(step->seqs[s])) {
            int queries = (step->first[s + 1] - step->first[s]) * heads, M = dsv2i_mla_tile_queries(queries, big);
            n = (queries + M - 1) / M;
        }
        int end = n_tiles + block_scan(n, &total, parts);
        if (s < n_seqs)
            first_tile[s] = end - n;
        n_tiles += total;
    }
    if (threadIdx.x == 0)
        first_tile[n_seqs] = n_tiles;
    __syncthreads();
    /* Two tiles of the same keys: the second ones make the second half of the line, and of the blocks, so that what both read comes from
     * memory once. */
    const int paired = big && heads % 128 == 0 && blocks > 1 ? n_tiles / 2 : 0;
    for (int from = 0; from < n_tiles; from += threads) {
        int t = from + (int)threadIdx.x, low = 0, high = n_seqs, keys = 0;
        dsv2i_mla_tile tile = {};

        if (t < n_tiles) {
            const int of_all = t < paired ? 2 * t : t < 2 * paired ? 2 * (t - paired) + 1 : t;
            while (high - low > 1) { /* the last sequence that begins there or before, so not an empty one */
                int mid = low + (high - low) / 2;

                if (first_tile[mid] <= of_all)
                    low = mid;
                else
                    high = mid;
            }
            int row = step->first[low], queries = (step->first[low + 1] - row) * heads, M = dsv2i_mla_tile_queries(queries, big);
            int last = min((of_all - first_tile[low] + 1) * M, queries) - 1;

            tile.seq = low;
            tile.at = (of_all - first_tile[low]) * M;
            keys = (step->pos[row] + last / heads) / tile_tokens + 1;
        }
        int end = line + block_scan(t < n_tiles ? keys + tile_cost : 0, &total, parts);
        if (t < n_tiles) {
            tile.start = end - keys;
            tile.keys = keys;
            tiles[t] = tile;
            if (t == paired - 1)
                parts[warps] = end;
        }
        line += total;
    }
    __syncthreads();
    const int halves = paired ? 2 : 1, half_line = paired ? max(parts[warps], line - parts[warps]) : line;
    const int part = max((half_line + blocks / halves - 1) / (blocks / halves), least_part);
    if (paired) {
        const int gap = blocks / 2 * part - parts[warps];

        for (int t = paired + (int)threadIdx.x; t < n_tiles; t += threads)
            tiles[t].start += gap;
        __syncthreads();
    }
    for (int b = (int)threadIdx.x; b < blocks; b += threads) { /* the first tile that ends in or behind the block's part */
        int low = -1, high = n_tiles;

        while (high - low > 1) {
            int mid = low + (high - low) / 2;

            if (tiles[mid].start + tiles[mid].keys > b * part)
                high = mid;
            else
                low = mid;
        }
        first[b] = high;
    }
    int unit = 0, n_slots = 0, n_cut = 0;
    if (invariant) /* the smallest nodes for which there are slots */
        for (unit = leaf;; unit *= fold) {
            int n = 0;

            for (int t = (int)threadIdx.x; t < n_tiles; t += threads)
                n += parts_of(tiles[t], part, unit) > 1 ? parts_of(tiles[t], part, unit) : 0;
            block_scan(n, &total, parts);
            if (total <= 2 * blocks)
                break;
        }
    for (int from = 0; from < n_tiles; from += threads) {
        int t = from + (int)threadIdx.x, n = t < n_tiles ? parts_of(tiles[t], part, unit) : 0, is_cut = n > 1;
        int slot = n_slots + block_scan(is_cut ? n : 0, &total, parts) - n;

        n_slots += total;
        int at = n_cut + block_scan(is_cut, &total, parts) - 1;
        n_cut += total;
        if (is_cut) {
            tiles[t].slot = slot;
            cut[at] = t;
        }
    }
    if (threadIdx.x == 0) {
        to->part = part;
        to->n_tiles = n_tiles;
        to->n_cut = n_cut;
        to->unit = unit;
    }
}

cudaError_t dsv2i_cuda_mla_plan(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, void *scratch, int32_t heads)
{
    const layout l = layout_of(to, heads);
    char *at = (char *)scratch;

    return dsv2i_launch(to, mla_plan_kernel, 1, threads, sizeof(int) * (size_t)(warps + to->max_rows + 2), step,
                        (dsv2i_mla_plan *)at, (int *)(at + sizeof(dsv2i_mla_plan)), (dsv2i_mla_tile *)(at + l.tiles), heads, l.big,
                        l.tokens, l.blocks, to->invariant);
}

/* ---- attention ----------------------------------------------------------------------------------------------------------------------- */

/* Unit 8 line + u (16 bytes), u < 8, of row r of Q or a tile of keys: 8 rows of the same unit lie in different banks. */
static __device__ __forceinline__ unsigned char *unit(unsigned char *rows, int r, int line, int u)
{
    return rows + (r * row_bytes + (u ^ (r & 7)) * 16) + line * 128;
}

/* Where the scales of a token's latent and key are, of the tile at hand: behind a row of scores. */
static __device__ __forceinline__ float2 *scales_of(float *score, int token)
{
    return (float2 *)(score + token * score_row + tokens + 2);
}

/* Begin to load tile i of the keys: as bf16 rows, or records as they are.  Tokens from end on are 0. */
static __device__ __forceinline__ void load_keys(unsigned char *to, const dsv2i_mla_piece &c, int i, int thread)
{
    const int token = i * tokens, valid = c.last - token;
    const unsigned char *from = (const unsigned char *)c.page[token / DSV2I_PAGE_TOKENS]
                                + (size_t)(c.layer * DSV2I_PAGE_TOKENS + token % DSV2I_PAGE_TOKENS) * (size_t)dsv2i_mla_record_bytes(c.kv_type);

    if (c.kv_type == DSV2I_KV_BF16) {
        const int r = thread / 8, u = thread % 8;

        to = unit(to, r, 0, u);
        from += r * row_bytes + 16 * u;
#pragma unroll
        for (int j = 0; j < row_bytes / 128; j++)
            dsv2i_copy<16>(to + 128 * j, from + 128 * j, r < valid ? 16 : 0);
    } else {
        for (int u = thread; u < tokens / 16 * dsv2i_mla_record_bytes(c.kv_type); u += threads)
            dsv2i_copy<16>(to + 16 * u, from + 16 * u, 16 * u < valid * dsv2i_mla_record_bytes(c.kv_type) ? 16 : 0);
    }
}

/* 16 codes to units 2 i and 2 i + 1 of row r. */
static __device__ __forceinline__ void write_codes(unsigned char *keys, int r, int i, const unsigned char *code, int kv_type)
{
    dsv2i_mla_codes(unit(keys, r, i / 4, i % 4 * 2), unit(keys, r, i / 4, i % 4 * 2 + 1), *(const uint4 *)code, kv_type);
}

/* Records to bf16 rows of codes, and their scales; 8 threads a record. */
static __device__ __forceinline__ void read_records(unsigned char *keys, float *score, const unsigned char *raw, const uint32_t *pairs,
                                                    const dsv2i_mla_piece &c, int thread)
{
    const int r = thread / 8, first = thread % 8;

    raw += r * dsv2i_mla_record_bytes(c.kv_type);
    if (first == 0)
        *scales_of(score, r) = *(const float2 *)(raw + dsv2i_mla_record_bytes(c.kv_type) - 16); /* they begin the last 16 bytes */
    if (c.kv_type != DSV2I_KV_6BIT) {
#pragma unroll 1
        for (int i = first; i < width / 16; i += 8)
            write_codes(keys, r, i, raw + 16 * i, c.kv_type);
        return;
    }
    const int blocks = rank / DSV2I_KV_BLOCK, sign = 16 * blocks, key = 20 * blocks;
#pragma unroll 1
    for (int block = first; block < blocks; block += 8) {
        const uint4 codes = *(const uint4 *)(raw + 16 * block);
        const uint32_t negative = *(const uint32_t *)(raw + sign + 4 * block);

#pragma unroll
        for (int u = 0; u < 4; u++)
            *(uint4 *)unit(keys, r, block / 2, block % 2 * 4 + u) = dsv2i_mla_eight_levels(codes, negative, u, pairs);
    }
    if (first < rope / 16)
        write_codes(keys, r, rank / 16 + first, raw + key + 16 * first, DSV2I_KV_INT8);
}

/* Begin to load the n queries of a tile of M as bf16 rows, the others 0.  For 6BIT they are rotated. */
static __device__ __forceinline__ void load_queries(unsigned char *to, const uint16_t *q, int n, int M, int kv_type, int thread)
{
    const int lane = thread % 32;
    const bool rotated = kv_type == DSV2I_KV_6BIT;

    for (int r = thread / 8; r < M; r += threads / 8) {
        unsigned char *row = unit(to, r, 0, thread % 8);

        for (int u = thread % 8; u < row_bytes / 16; u += 8, row += 128)
            if (!rotated || u >= rank / 8 || r >= n)
                dsv2i_copy<16>(row, r < n ? q + r * width + 8 * u : q, r < n ? 16 : 0);
    }
    for (int r = thread / 32; rotated && r < n; r += warps) {
        float x[rank / 32];

#pragma unroll
        for (int j = 0; j < rank / 32; j++)
            x[j] = dsv2i_f32_from_bf16(q[(size_t)(r * width + 32 * j + lane)]);
        dsv2i_rotate(x, rank);
#pragma unroll
        for (int j = 0; j < rank / 32; j++)
            ((uint16_t *)unit(to, r, j / 2, j % 2 * 4 + lane / 8))[lane % 8] = dsv2i_bf16(x[j]);
    }
}

/* Step k of 9 of a part takes 16 columns: two units, this one's (half 0) and the next (1).  The last are of the key. */
static __device__ __forceinline__ unsigned char *unit_of(unsigned char *rows, int r, int part, int k, int half)
{
    return k < 8 ? unit(rows, r, 2 * part + k / 4, k % 4 * 2 + half) : unit(rows, r, rank / 64, 2 * part + half);
}

/* Registers of A for 16 queries. */
static __device__ __forceinline__ void load_a(uint32_t (&a)[4], unsigned char *queries, int row, int lane, int part, int k)
{
    dsv2i_ldmatrix(a, unit_of(queries, row + lane % 16, part, k, lane / 16));
}

/* sum_j p[j] for n a power of two, by halves: as lanes that hold fewer add theirs up. */
template <int n> static __device__ __forceinline__ float pair_sum(const float (&p)[n])
{
    float s[n];

#pragma unroll
    for (int j = 0; j < n; j++)
        s[j] = p[j];
#pragma unroll
    for (int d = 1; d < n; d *= 2)
#pragma unroll
        for (int j = 0; j + d < n; j += 2 * d)
            s[j] += s[j + d];
    return s[0];
}

/* o (queries, 512) of a piece with a tile of M, or, if it has a slot, there unfinished (M, 512), then max and sum of each query.
 *
 * Shared memory: scores (parts, M, score_row) | queries | loads and keys; with M = 16 the queries go to registers, and scores take their
 * place.  A row of the scores' first part holds first 32 scores, then P in bf16; behind them, the query's correction and its sum.  Its
 * maximum is behind its row of the second part.  Behind those, row r has the scales of token r. */
template <int M, int stages, int slot_rows>
static __device__ __forceinline__ void attend(unsigned char *shared, const dsv2i_mla_piece &c, float *o, float *partial, const uint16_t *q, int heads)
{
    const int thread = dsv2i_anew((int)threadIdx.x) & (threads - 1), warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const int parts = M == 16 ? 4 : 2, m_tiles = M == 16 ? 1 : 2; /* sums in shared memory; tiles of 16 queries of a warp's scores */
    const int part = M == 16 ? warp % 4 : warp / 4 * 2, key = (M == 16 ? warp / 4 : warp / 2 % 2) * 16, query = M == 16 ? 0 : warp % 2 * 32;
    float *score = (float *)shared;
    unsigned char *queries = M == 16 ? shared : shared + sizeof(float) * parts * M * score_row;
    unsigned char *loads = queries + M * row_bytes, *keys = loads;
    const bool coded = c.kv_type != DSV2I_KV_BF16;
    const int load_bytes = tokens * dsv2i_mla_record_bytes(c.kv_type);
    uint32_t *pairs;

    if (coded)
        loads += key_bytes;
    pairs = (uint32_t *)(loads + stages * load_bytes);
    if (c.kv_type == DSV2I_KV_6BIT)
        dsv2i_mla_make_levels(pairs, thread);

    load_queries(queries, q + (size_t)c.first * width, c.n, M, c.kv_type, thread);
    dsv2i_copy_commit();
#pragma unroll
    for (int i = 0; i < stages - 1; i++) {
        if (c.begin + i < c.end)
            load_keys(loads + (c.begin + i) % stages * load_bytes, c, c.begin + i, thread);
        dsv2i_copy_commit();
    }
    uint32_t held[M == 16 ? 9 : 1][4]; /* M = 16: this warp's part of the queries */
    if (M == 16) {
        dsv2i_copy_wait<stages - 1>();
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 9; k++)
            load_a(held[k % (M == 16 ? 9 : 1)], queries, 0, lane, part, k);
        __syncthreads(); /* now scores may be there */
    }
    if (!coded && thread < tokens)
        *scales_of(score, thread) = make_float2(1, 1);

    /* Of the softmax a thread has `some` scores of a row, `from` on. */
    const int lanes = threads / M, some = tokens / lanes, row = thread / lanes;
    const int visible = row < c.n ? c.pos + (c.at + row) / heads + 1 : 0;
    const int of_max = M * score_row + tokens, of_sum = tokens + 1; /* behind a row */
    float acc[M / 16][8][4];

#pragma unroll
    for (int m = 0; m < M / 16; m++)
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[m][j][i] = 0;

    for (int i = c.begin; i < c.end; i++) {
        unsigned char *raw = loads + i % stages * load_bytes;

        dsv2i_copy_wait<stages - 2>();
        __syncthreads(); /* tile i is there, and the one before is done with */
        if (i + stages - 1 < c.end)
            load_keys(loads + (i + stages - 1) % stages * load_bytes, c, i + stages - 1, thread);
        dsv2i_copy_commit();
        if (coded) {
            read_records(keys, score, raw, pairs, c, thread);
            __syncthreads();
        } else {
            keys = raw;
        }

        float s[m_tiles][2][4];
#pragma unroll 1
        for (int p = 0; p < 4 / parts; p++) {
            float of_c[m_tiles][2][4] = {}, of_k[m_tiles][2][4] = {};

#pragma unroll
            for (int k = 0; k < 9; k++) {
                uint32_t b[4];

                dsv2i_ldmatrix(b, unit_of(keys, key + lane / 16 * 8 + lane % 8, part + p, k, lane / 8 % 2));
#pragma unroll
                for (int m = 0; m < m_tiles; m++) {
                    uint32_t a[4];

                    if (M == 16)
#pragma unroll
                        for (int r = 0; r < 4; r++)
                            a[r] = held[k % (M == 16 ? 9 : 1)][r];
                    else
                        load_a(a, queries, query + 16 * m, lane, part + p, k);
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        const uint32_t two[2] = {b[2 * j], b[2 * j + 1]};

                        if (k < 8)
                            dsv2i_mma_bf16(of_c[m][j], a, two);
                        else
                            dsv2i_mma_bf16(of_k[m][j], a, two);
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const float2 scale[2] = {*scales_of(score, key + 8 * j + 2 * t), *scales_of(score, key + 8 * j + 2 * t + 1)};

#pragma unroll
                for (int m = 0; m < m_tiles; m++)
#pragma unroll
                    for (int r = 0; r < 4; r++) {
                        float x = __fmaf_rn(of_k[m][j][r], scale[r % 2].y, __fmul_rn(of_c[m][j][r], scale[r % 2].x));
                        s[m][j][r] = p == 0 ? x : __fadd_rn(s[m][j][r], x);
                    }
            }
        }
#pragma unroll
        for (int m = 0; m < m_tiles; m++)
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int r = 0; r < 2; r++)
                    *(float2 *)(score + ((M == 16 ? part : part / 2) * M + query + 16 * m + g + 8 * r) * score_row + key + 8 * j + 2 * t)
                        = make_float2(s[m][j][2 * r], s[m][j][2 * r + 1]);
        __syncthreads();

        const int again = dsv2i_anew(thread), from = again % lanes * some, seen = visible - i * tokens - from;
        float *row_score = score + again / lanes * score_row; /* not kept from before the loop: registers are scarce */
        const float max = i == c.begin ? -INFINITY : row_score[of_max];
        float p[some], new_max = max, base, corr;
#pragma unroll
        for (int j = 0; j < some; j++) {
            const float *x = row_score + from + j;

            p[j] = M == 16 ? __fadd_rn(__fadd_rn(x[0], x[M * score_row]),
                                       __fadd_rn(x[2 % parts * M * score_row], x[3 % parts * M * score_row]))
                           : __fadd_rn(x[0], x[M * score_row]);
            if (j < seen)
                new_max = fmaxf(new_max, p[j]);
        }
#pragma unroll
        for (int d = 1; d < lanes; d *= 2)
            new_max = fmaxf(new_max, __shfl_xor_sync(DSV2I_ALL_LANES, new_max, d));
        base = new_max == -INFINITY ? 0 : new_max; /* nothing to see yet */
        corr = dsv2i_exp2(max - base);
#pragma unroll
        for (int j = 0; j < some; j++)
            p[j] = j < seen ? dsv2i_exp2(p[j] - base) : 0.0f;
        float tile_sum = pair_sum(p);
#pragma unroll
        for (int d = 1; d < lanes; d *= 2)
            tile_sum += __shfl_xor_sync(DSV2I_ALL_LANES, tile_sum, d);
#pragma unroll
        for (int j = 0; j < some; j++)
            if (j < seen)
                p[j] *= scales_of(score, from + j)->x;
        __syncwarp(); /* the row's scores are read */
#pragma unroll
        for (int j = 0; j < some; j += 2)
            ((uint32_t *)row_score)[(from + j) / 2] = dsv2i_bf16x2(p[j], p[j + 1]);
        if (from == 0) {
            row_score[tokens] = corr;
            row_score[of_max] = new_max;
            row_score[of_sum] = i == c.begin ? tile_sum : __fmaf_rn(row_score[of_sum], corr, tile_sum);
        }
        __syncthreads();

#pragma unroll
        for (int m = 0; m < M / 16; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float factor = score[(16 * m + g + 8 * r) * score_row + tokens];
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    acc[m][j][2 * r] *= factor;
                    acc[m][j][2 * r + 1] *= factor;
                }
            }
#pragma unroll
        for (int k = 0; k < tokens / 16; k++) {
            uint32_t a[M / 16][4];

#pragma unroll
            for (int m = 0; m < M / 16; m++)
                dsv2i_ldmatrix(a[m], (unsigned char *)(score + (16 * m + lane % 16) * score_row) + 32 * k + lane / 16 * 16);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                uint32_t b[4];

                dsv2i_ldmatrix_trans(b, unit(keys, 16 * k + lane % 16, warp, 2 * j + lane / 16));
#pragma unroll
                for (int m = 0; m < M / 16; m++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        const uint32_t two[2] = {b[2 * h], b[2 * h + 1]};
                        dsv2i_mma_bf16(acc[m][2 * j + h], a[m], two);
                    }
            }
        }
    }

    if (c.slot >= 0)
        o = partial + (size_t)c.slot * (slot_rows * (rank + 2));
    else
        o += (size_t)c.first * rank;
    if (thread % lanes == 0 && c.slot >= 0)
        *(float2 *)(o + slot_rows * rank + 2 * row) = make_float2(score[row * score_row + of_max], score[row * score_row + of_sum]);
#pragma unroll
    for (int m = 0; m < M / 16; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int of = 16 * m + g + 8 * r;
            const float divisor = score[of * score_row + tokens + 1];

            if (of < c.n)
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    float2 x = make_float2(acc[m][j][2 * r], acc[m][j][2 * r + 1]);

                    if (c.slot < 0)
                        x.x /= divisor, x.y /= divisor;
                    *(float2 *)(o + (size_t)of * rank + 64 * warp + 8 * j + 2 * t) = x;
                }
        }
    __syncthreads(); /* before shared memory serves another tile */
}

/* One warp: slot `to` becomes what both slots are together, of query m: `from` behind `to`; or a copy of it. */
static __device__ __forceinline__ void fold_query(float *to, const float *from, int m, int slot_rows, bool copy, int lane)
{
    const float2 a = *(const float2 *)(to + slot_rows * rank + 2 * m), b = *(const float2 *)(from + slot_rows * rank + 2 * m);
    const float max = fmaxf(a.x, b.x), of_a = dsv2i_exp2(a.x - max), of_b = dsv2i_exp2(b.x - max);

    if (!copy && b.x == -INFINITY) /* the query sees nothing there: not a bit may change */
        return;
    __syncwarp();
    if (lane == 0)
        *(float2 *)(to + slot_rows * rank + 2 * m) = copy ? b : make_float2(max, __fmaf_rn(of_b, b.y, __fmul_rn(of_a, a.y)));
    to += m * rank + 4 * lane;
    from += m * rank + 4 * lane;
#pragma unroll
    for (int j = 0; j < rank; j += 128) {
        float4 x = *(const float4 *)(to + j);
        const float4 y = *(const float4 *)(from + j);

        x.x = __fmaf_rn(of_b, y.x, __fmul_rn(of_a, x.x));
        x.y = __fmaf_rn(of_b, y.y, __fmul_rn(of_a, x.y));
        x.z = __fmaf_rn(of_b, y.z, __fmul_rn(of_a, x.z));
        x.w = __fmaf_rn(of_b, y.w, __fmul_rn(of_a, x.w));
        *(float4 *)(to + j) = copy ? y : x;
    }
    __syncwarp(); /* the maximum and sum are there */
}

/* One warp: the result of a query. */
static __device__ __forceinline__ void finish_query(float *o, const float *slot, int m, int slot_rows, int lane)
{
    const float sum = slot[slot_rows * rank + 2 * m + 1];

    for (int j = 4 * lane; j < rank; j += 128) {
        const float4 x = *(const float4 *)(slot + m * rank + j);

        *(float4 *)(o + j) = make_float4(x.x / sum, x.y / sum, x.z / sum, x.w / sum);
    }
}

/* invariant: nodes of `unit` tiles of keys are made leaf by leaf, with a slot for every level below. */
template <bool big, int stages, bool invariant>
static __global__ void __launch_bounds__(threads, big || invariant ? 1 : 2)
    mla_decode_kernel(const dsv2i_cuda_step *step, float *o, const uint16_t *q, dsv2i_mla_work work, int layer, int heads)
{
    unsigned char *shared = (unsigned char *)dsv2i_shared();
    const int b = (int)blockIdx.x, slot_rows = big ? 64 : 16;
    const size_t slot = (size_t)(slot_rows * (rank + 2));
    const dsv2i_mla_plan *plan = work.plan;
    float *partial = work.partial;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    for (int i = work.first[b]; i < plan->n_tiles; i++) {
        const dsv2i_mla_tile &tile = work.tiles[i]; /* read anew where it is needed: registers are scarce */

        if (tile.start >= (b + 1) * plan->part)
            break;
        dsv2i_mla_piece c = dsv2i_mla_piece_of(step, plan, tile, b, layer, heads, big);
        const int M = dsv2i_mla_tile_queries((step->first[tile.seq + 1] - step->first[tile.seq]) * heads, big);
        if (invariant)
            c.begin = (c.begin + plan->unit - 1) / plan->unit * plan->unit; /* nodes that begin in the block's part */
        while (c.begin < min((b + 1) * plan->part - tile.start, tile.keys) || (invariant && c.begin % plan->unit)) {
            if (invariant) {
                c.end = min(c.begin + leaf, tile.keys);
                c.slot = tile.keys <= leaf    ? -1
                       : plan->unit == leaf ? tile.slot + c.begin / leaf
                                            : 2 * (int)gridDim.x + b * (levels + 1) + levels; /* the last of the block's own */
            }
            if (big && TILES_OF_64 && M == 64)
                attend<big && TILES_OF_64 ? 64 : 16, 2, slot_rows>(shared, c, o, partial, q, heads);
            else
                attend<16, stages, slot_rows>(shared, c, o, partial, q, heads);
            if (!invariant)
                break;
            const int begin = (c.end - 1) / leaf * leaf, unit = plan->unit;
            const bool one = tile.keys <= unit; /* the tile is not cut */

            if (tile.keys > leaf && unit > leaf) {
                const int own = 2 * (int)gridDim.x + b * (levels + 1);
                const int thread = dsv2i_anew((int)threadIdx.x), warp = thread / 32, lane = thread % 32;
                const float *from = partial + (size_t)c.slot * slot;
                const bool last = c.end == tile.keys || c.end % unit == 0; /* of the node */
                bool whole = true;                                         /* `from` is a node's result */

                for (int level = 0, size = leaf; whole && size < unit; level++, size *= fold) {
                    const int child = begin / size % fold;
                    float *to = partial + (size_t)(size * fold == unit && !one ? tile.slot + begin / unit : own + level) * slot;

                    for (int m = warp; m < c.n; m += warps)
                        fold_query(to, from, m, slot_rows, child == 0, lane);
                    from = to;
                    whole = last || child == fold - 1;
                }
                if (last && one)
                    for (int m = warp; m < c.n; m += warps)
                        finish_query(o + (size_t)(c.first + m) * rank, from, m, slot_rows, lane);
                __syncthreads(); /* before the next leaf is written */
            }
            c.begin = c.end;
            if (c.end == tile.keys)
                break;
        }
    }
}

/* What part k of a query is worth in the whole, once the greatest score of all is known. */
static __device__ __forceinline__ float worth(float max_of_part, float max) { return max == -INFINITY ? 1.0f : dsv2i_exp2(max_of_part - max); }

static __device__ __forceinline__ void add_part(float (&acc)[4], float factor, const float *from)
{
    const float4 x = *(const float4 *)from;

    acc[0] = fmaf(factor, x.x, acc[0]);
    acc[1] = fmaf(factor, x.y, acc[1]);
    acc[2] = fmaf(factor, x.z, acc[2]);
    acc[3] = fmaf(factor, x.w, acc[3]);
}

/* The n parts of query m by a warp: where they are few. */
static __device__ __forceinline__ void combine_few(float *o, const float *partial, size_t slot, int slot_rows, int m, int n, int lane)
{
    float max = -INFINITY, sum = 0, acc[rank / 128][4] = {};

#pragma unroll 4
    for (int k = 0; k < n; k++)
        max = fmaxf(max, partial[(size_t)k * slot + (size_t)(slot_rows * rank + 2 * m)]);
#pragma unroll 2
    for (int k = 0; k < n; k++) {
        const float *of = partial + (size_t)k * slot, *max_sum = of + slot_rows * rank + 2 * m;
        const float factor = worth(max_sum[0], max);

        sum = fmaf(factor, max_sum[1], sum);
#pragma unroll
        for (int j = 0; j < rank / 128; j++)
            add_part(acc[j], factor, of + m * rank + 128 * j + 4 * lane);
    }
#pragma unroll
    for (int j = 0; j < rank / 128; j++)
        *(float4 *)(o + 128 * j + 4 * lane) = make_float4(acc[j][0] / sum, acc[j][1] / sum, acc[j][2] / sum, acc[j][3] / sum);
}

/* By a block, so that many parts are under way at a time: a sequence that has the card for itself is cut into one for each block.  Warps of a
 * quarter have the columns between them, quarters take turns with the parts. */
static __device__ __forceinline__ void combine_many(float *o, const float *partial, size_t slot, int slot_rows, int m, int n)
{
    const int thread = (int)threadIdx.x, warp = thread / 32, quarter = thread / 128, column = thread % 128 * 4;
    float *sums = (float *)dsv2i_shared(), *of_warps = sums + 4 * rank, *factor = of_warps + 2 * combine_threads / 32;
    const float *of_part = partial + slot_rows * rank + 2 * m;
    float max = -INFINITY, sum = 0, acc[4] = {};

    for (int k = thread; k < n; k += combine_threads)
        max = fmaxf(max, of_part[(size_t)k * slot]);
    max = dsv2i_warp_max(max);
    if (thread % 32 == 0)
        of_warps[warp] = max;
    __syncthreads();
    for (int w = 0; w < combine_threads / 32; w++)
        max = fmaxf(max, of_warps[w]);
    for (int k = thread; k < n; k += combine_threads) {
        const float2 max_sum = *(const float2 *)(of_part + (size_t)k * slot);

        factor[k] = worth(max_sum.x, max);
        sum = fmaf(factor[k], max_sum.y, sum);
    }
    sum = dsv2i_warp_sum(sum);
    if (thread % 32 == 0)
        of_warps[combine_threads / 32 + warp] = sum;
    __syncthreads();
#pragma unroll 8
    for (int k = quarter; k < n; k += 4)
        add_part(acc, factor[k], partial + (size_t)k * slot + (size_t)(m * rank + column));
    *(float4 *)(sums + quarter * rank + column) = make_float4(acc[0], acc[1], acc[2], acc[3]);
    __syncthreads();
    sum = 0;
    for (int w = 0; w < combine_threads / 32; w++)
        sum += of_warps[combine_threads / 32 + w];
    o[thread] = (sums[thread] + sums[rank + thread] + sums[2 * rank + thread] + sums[3 * rank + thread]) / sum;
}

/* Of each tile that is cut the queries' parts become one.  by_block: a block for each query, not a warp. */
static __global__ void __launch_bounds__(combine_threads)
    mla_combine_kernel(const dsv2i_cuda_step *step, float *o, dsv2i_mla_work work, const int *cut, int heads, int big, bool by_block)
{
    const int i = (int)blockIdx.x, lane = (int)threadIdx.x % 32, slot_rows = big ? 64 : 16;
    const size_t slot = (size_t)(slot_rows * (rank + 2));
    const dsv2i_mla_plan *plan = work.plan;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (i >= plan->n_cut)
        return;
    const dsv2i_mla_tile tile = work.tiles[cut[i]];
    const int n = parts_of(tile, plan->part, plan->unit);
    const int row = step->first[tile.seq], queries = (step->first[tile.seq + 1] - row) * heads;
    const int m = by_block ? (int)blockIdx.y : (int)blockIdx.y * (combine_threads / 32) + (int)threadIdx.x / 32;
    if (m >= min(dsv2i_mla_tile_queries(queries, big), queries - tile.at))
        return;
    float *partial = work.partial + (size_t)tile.slot * slot;
    o += ((size_t)row * (size_t)heads + (size_t)(tile.at + m)) * rank;
    if (by_block) {
        combine_many(o, partial, slot, slot_rows, m, n);
    } else if (plan->unit) { /* the upper levels of the tree */
        for (int size = 1; size < n; size *= fold)
            for (int to = 0; to < n; to += fold * size)
                for (int from = to + size; from < min(to + fold * size, n); from += size)
                    fold_query(partial + (size_t)to * slot, partial + (size_t)from * slot, m, slot_rows, false, lane);
        finish_query(o, partial, m, slot_rows, lane);
    } else {
        combine_few(o, partial, slot, slot_rows, m, n, lane);
    }
}

/* Bytes of shared memory for tiles of M. */
static size_t shared_bytes(int M, int stages)
{
    const size_t scores = M == 16 ? 0 : sizeof(float) * 2 * (size_t)(M * score_row), bf16 = (size_t)(stages * key_bytes);
    const size_t coded = (size_t)(key_bytes + stages * raw_bytes);

    return scores + (size_t)(M * row_bytes) + (bf16 > coded ? bf16 : coded);
}

cudaError_t dsv2i_cuda_mla_decode(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step, float *o_latent,
                                  const uint16_t *q_latent, int32_t layer, int32_t heads, void *scratch)
{
    const layout l = layout_of(to, heads);
    char *at = (char *)scratch;
    const int *first = (const int *)(at + sizeof(dsv2i_mla_plan));
    const dsv2i_mla_work work = {(const dsv2i_mla_plan *)at, first, (const dsv2i_mla_tile *)(at + l.tiles), (float *)(at + l.partial)};
    /* A tile that is cut ends in another block than it begins in.  Where tiles are few, parts of each are many. */
    const int cut = l.blocks < l.max_tiles ? l.blocks : l.max_tiles, M = l.big ? 64 : 16;
    const bool by_block = !to->invariant && l.blocks > few_parts * l.max_tiles;
    const dim3 combine((unsigned)cut, (unsigned)(by_block ? M : M / (combine_threads / 32)));
    const size_t of_combine = sizeof(float) * (size_t)(4 * rank + 2 * combine_threads / 32 + l.blocks);
    const size_t shared = l.big ? shared_bytes(64, 2) : shared_bytes(16, 2);
    cudaError_t e;

    if (l.sm90)
        e = dsv2i_mla_decode_sm90(to, step, o_latent, q_latent, work, l.blocks, layer, heads);
    else
        e = dsv2i_launch(to, l.big ? to->invariant ? mla_decode_kernel<true, 3, true> : mla_decode_kernel<true, 3, false>
                                   : to->invariant ? mla_decode_kernel<false, 2, true> : mla_decode_kernel<false, 2, false>,
                         (unsigned)l.blocks, threads, shared, step, o_latent, q_latent, work, layer, heads);
    return e ? e : dsv2i_launch(to, mla_combine_kernel, combine, combine_threads, of_combine, step, o_latent, work, first + l.blocks, heads,
                                l.big, by_block);
}
