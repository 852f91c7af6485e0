/* From each row's experts the rows of each expert: entries row * top_k + slot, sorted by expert and then as they come, and the tiles of
 * at most tile_rows of them, of one expert each, that a grouped product works through.  Integers only; always the same order.
 *
 * Bound: latency, of one block: it reads 4 bytes an entry twice, from the caches, and writes 4.  A counting sort: warp w has the w-th of 32
 * even pieces of the entries and counts each expert's in it; the counts' sum over experts and the pieces before is where an entry goes.
 *
 *     idx      row 0: 5 2   row 1: 2 9   row 2: 5 2        (top_k 2)
 *     entry    expert 2: 1 2 5   expert 5: 0 4   expert 9: 3
 *     tile     of 2 rows: (2, 0, 2) (2, 2, 1) (5, 3, 2) (9, 5, 1)        expert, first, count
 *
 * SPDX-License-Identifier: MIT */
#include "launch.cuh"
#include "warp.cuh"

static const int warps = 32, most = 512; /* experts */

/* Sum of x over the lanes before. */
static __device__ __forceinline__ int sum_before(int x)
{
    const int lane = (int)threadIdx.x % 32;
    int sum = x;

#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        int before = __shfl_up_sync(DSV2I_ALL_LANES, sum, (unsigned)d);
        sum += lane >= d ? before : 0;
    }
    return sum - x;
}

/* Lanes that have the same expert, of those that have any (e is not -1). */
static __device__ __forceinline__ unsigned same_lanes(int e)
{
    unsigned same = __ballot_sync(DSV2I_ALL_LANES, e >= 0);

#pragma unroll
    for (int bit = 1; bit < most; bit *= 2) { /* __match_any_sync takes a turn for each that differs */
        const unsigned has = __ballot_sync(DSV2I_ALL_LANES, e & bit);
        same &= e & bit ? has : ~has;
    }
    return same;
}

/* For each 32 entries of a warp's piece does(entry, or past the end; its expert, or -1), `ahead` of which are under way. */
template <class F> static __device__ __forceinline__ void each_32(const int *idx, int begin, int end, F does)
{
    const int lane = (int)threadIdx.x % 32, ahead = 8;

    for (int from = begin; from < end; from += 32 * ahead) {
        int e[ahead];

#pragma unroll
        for (int j = 0; j < ahead; j++)
            e[j] = from + 32 * j + lane < end ? idx[from + 32 * j + lane] : -1;
#pragma unroll
        for (int j = 0; j < ahead; j++)
            if (from + 32 * j < end)
                does(from + 32 * j + lane, e[j]);
    }
}

static __global__ void __launch_bounds__(32 * warps)
    moe_permute_kernel(const dsv2i_cuda_step *step, dsv2i_cuda_permutation to, const int *idx, int top_k, int n_experts, int tile_rows)
{
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    int *first = (int *)dsv2i_shared(), *first_tile = first + n_experts + 1; /* of each expert, and the end */
    int *counts = first_tile + n_experts + 1, *mine = counts + warp * n_experts;

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    const int n = step->n_rows * top_k, piece = (n + 32 * warps - 1) / (32 * warps) * 32, begin = warp * piece;
    const int end = min(begin + piece, n);

    for (int e = lane; e < n_experts; e += 32)
        mine[e] = 0;
    __syncwarp();
    each_32(idx, begin, end, [=](int, int e) {
        if (e >= 0)
            atomicAdd(&mine[e], 1);
    });
    __syncthreads();

    for (int e = (int)threadIdx.x; e < n_experts; e += (int)blockDim.x) {
        int sum = 0;

        for (int w = 0; w < warps; w++) { /* counts become those of the pieces before */
            const int c = counts[w * n_experts + e];

            counts[w * n_experts + e] = sum;
            sum += c;
        }
        first[e] = sum;
    }
    __syncthreads();
    if (warp == 0) {
        const int each = (n_experts + 31) / 32, from = lane * each, past = min(from + each, n_experts);
        int sum = 0, tiles = 0;

        for (int e = from; e < past; e++) {
            sum += first[e];
            tiles += (first[e] + tile_rows - 1) / tile_rows;
        }
        sum = sum_before(sum);
        tiles = sum_before(tiles);
        for (int e = from; e < past; e++) {
            const int c = first[e];

            first[e] = sum;
            first_tile[e] = tiles;
            sum += c;
            tiles += (c + tile_rows - 1) / tile_rows;
        }
        if (past == n_experts && from < past) {
            first[n_experts] = sum;
            first_tile[n_experts] = tiles;
            to.n_tiles[0] = tiles;
            to.n_tiles[1] = to.n_tiles[2] = 0;
        }
    }
    __syncthreads();

    each_32(idx, begin, end, [=](int i, int e) {
        const unsigned same = same_lanes(e);

        if (e >= 0)
            to.entry[first[e] + mine[e] + __popc(same & ((1u << lane) - 1))] = i;
        __syncwarp();
        if (e >= 0 && lane == __ffs((int)same) - 1)
            mine[e] += __popc(same);
        __syncwarp();
    });
    for (int e = warp; e < n_experts; e += warps)
        for (int t = first_tile[e] + lane; t < first_tile[e + 1]; t += 32) {
            const int at = first[e] + (t - first_tile[e]) * tile_rows;

            to.tile[t] = {e, at, min(tile_rows, first[e + 1] - at)};
        }
}

cudaError_t dsv2i_cuda_moe_permute(const struct dsv2i_cuda_launch *to, const struct dsv2i_cuda_step *step,
                                   const struct dsv2i_cuda_permutation *p, const int32_t *idx, int32_t top_k, int32_t n_experts,
                                   int32_t tile_rows)
{
    const size_t shared = sizeof(int) * (size_t)(2 * (n_experts + 1) + warps * n_experts);

    if (n_experts > most)
        return cudaErrorInvalidValue;
    return dsv2i_launch(to, moe_permute_kernel, dim3(1), 32 * warps, shared, step, *p, idx, top_k, n_experts, tile_rows);
}
