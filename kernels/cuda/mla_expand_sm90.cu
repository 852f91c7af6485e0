/* The product of mla_expand.cu by the matrix units of sm_90a: the same blocks of 128 positions by one head's keys or values, the same
 * panels.
 *
 * Bound: the matrix units.  Two warpgroups of 64 positions; three steps of 64 of the rank, 32 KB each, so that a step's copies are under
 * way while the step before is multiplied and the one before that ends.  Two blocks share a multiprocessor: one writes its result while
 * the other multiplies.
 *
 * SPDX-License-Identifier: MIT */
#include "convert.cuh"
#include "mla_prefill.cuh"
#include "wgmma.cuh"

static const int block = DSV2I_PREFILL_BLOCK, threads = 256, steps = DSV2I_LATENT_PANELS, stages = 3;
static const int tile_bytes = DSV2I_PANEL_TILE, stage_bytes = 2 * tile_bytes; /* A and B */

static __global__ void __launch_bounds__(threads, 2)
expand_sm90_kernel(const dsv2i_cuda_step *step, dsv2i_prefill_scratch scratch, const uint16_t *kv_b, int first)
{
    unsigned char *shared = (unsigned char *)dsv2i_shared();
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int column = (int)blockIdx.x * 128, row = (int)blockIdx.y * block; /* columns of kv_b's product; rows of the window */
    const size_t panel = (size_t)scratch.window * DSV2I_PANEL;
    const uint16_t *latent = scratch.latent + (size_t)row * DSV2I_PANEL;
    dsv2i_prefill_part part;
    float d[64];

    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
    if (!dsv2i_prefill_find<false>(step, (first + row) / block, &part))
        return;
    kv_b += (size_t)column * DSV2I_PREFILL_RANK;
    dsv2i_prefill_copy_step<threads>(shared, latent, kv_b, panel, 0);
#pragma unroll
    for (int k = 0; k < steps; k++) {
        const unsigned char *a = shared + k % stages * stage_bytes;
        const uint64_t a_at = dsv2i_wgmma_matrix(a + warp / 4 * (tile_bytes / 2), 0, 1024, 128);
        const uint64_t b_at = dsv2i_wgmma_matrix(a + tile_bytes, 0, 1024, 128);

        dsv2i_copy_wait_all();
        dsv2i_fence_async();
        __syncthreads(); /* the step is here, and the one two before is done with */
        if (k + 1 < steps)
            dsv2i_prefill_copy_step<threads>(shared + (k + 1) % stages * stage_bytes, latent, kv_b, panel, k + 1);
        dsv2i_wgmma_fence();
#pragma unroll
        for (int kk = 0; kk < DSV2I_PANEL / 16; kk++) /* addresses are in units of 16 bytes */
            dsv2i_wgmma_bf16<false>(d, a_at + (uint64_t)(2 * kk), b_at + (uint64_t)(2 * kk), k + kk > 0);
        dsv2i_wgmma_commit();
        dsv2i_wgmma_wait<1>();
    }
    dsv2i_wgmma_wait<0>(d);
    __syncthreads(); /* all are done with what the result takes the place of */
#pragma unroll
    for (int i = 0; i < 32; i++) {
        const int r = warp * 16 + i % 2 * 8 + lane / 4, unit = i / 2; /* of 16 in a row of both panels */
        float x = d[2 * i], y = d[2 * i + 1];

        if (blockIdx.x % 2) /* values: as in mla_expand.cu */
            x = x == x ? x : 0.0f, y = y == y ? y : 0.0f;
        *(uint32_t *)(shared + unit / 8 * tile_bytes + 2 * (dsv2i_panel_unit(r, unit % 8) + 2 * (lane % 4))) = dsv2i_bf16x2(x, y);
    }
    __syncthreads();
    dsv2i_prefill_write_panels<threads>(scratch.kv + (size_t)(column / DSV2I_PANEL) * panel + (size_t)row * DSV2I_PANEL, panel, shared);
}

cudaError_t dsv2i_prefill_expand_sm90(const dsv2i_cuda_launch *to, const dsv2i_prefill_args *args, int first, int positions)
{
    return dsv2i_launch(to, expand_sm90_kernel, dim3((unsigned)(2 * args->heads), (unsigned)(positions / block)), threads,
                        stages * stage_bytes, args->step, args->scratch, args->kv_b, first);
}
