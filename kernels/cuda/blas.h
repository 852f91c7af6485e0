/* Dense products of many rows, by cuBLASLt: what reads a product's operands once and fills the matrix units.
 *
 * A product is described once, planned once (the library's heuristics take tens of microseconds, and memory) and then run any number of
 * times, also while a stream is captured: a run of a planned product only launches.  A plan holds m, the number of rows, which a captured
 * launch keeps: it computes all m rows, whatever step->n_rows says.  So x and y have m rows of memory; rows past n_rows are not a step's,
 * and what they hold reaches no other row.
 *
 * Sums are in another order for another m: not for steps that are to be invariant.  For the same m they are the same in every run.
 *
 * One context serves one stream at a time, because products share its workspace.  Graphs that were captured with it use that, too: they
 * go first.  Nothing here is for two threads at once.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_BLAS_H
#define DSV2I_CUDA_BLAS_H

#include "kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What became of it: call is NULL if all went well; else the name of what failed, and code what that returned, a cudaError_t or a
 * cublasStatus_t.  Of what the library would refuse, and of a lack of host memory, call is a name of this file. */
struct dsv2i_cuda_result {
    const char *call;
    int32_t code;
};

/* y (m, n) = x (m, k) w^T, w (n, k) as in checkpoints: all row-major.
 *
 * x and w are of dtype; y is F32, or BF16 where they are BF16 or F8_E4M3.  F32 is computed as such (no tf32).
 *
 * F8_E4M3 has scaling: both operands are scaled for all (sm_89 on), by rows (sm_90), or x by 128 elements of a row and w by squares of
 * 128 x 128 (sm_90).  Then k is a multiple of 16, n of 16 bytes of y, and m of 4 for blocks.  Scales are where dsv2i_cuda_quantize puts
 * those of x, with m = max_rows; w's are 1, (n), or (ceil(n / 128), dsv2i_cuda_scale_stride(k)).
 *
 * A batch is products that lie at equal distances, as those of heads; with columns w is (k, n).  Neither goes with F8_E4M3.  What is 0
 * from batch on means one product, without gaps. */
struct dsv2i_cuda_product {
    int32_t dtype, y_dtype, scaling; /* enum dsv2i_dtype; enum dsv2i_cuda_scaling or 0 */
    int32_t m, n, k;
    int32_t batch, columns;
    int64_t ldx, ldw, ldy;                /* elements from row to row */
    int64_t x_stride, w_stride, y_stride; /* elements from one product of the batch to the next */
};

/* Floats from one row of the scales of w's squares to the next: at least k / 128, and a multiple of 4. */
static inline int32_t dsv2i_cuda_scale_stride(int32_t k) { return (k + 511) / 512 * 4; }

/* Rows to plan for when there are at most rows, so that few numbers occur: at most an eighth more, or 3. */
int32_t dsv2i_cuda_blas_rows(int32_t rows);

/* Can a card of this capability (as 90) compute it?  1 or 0. */
int dsv2i_cuda_blas_takes(int32_t sm, const struct dsv2i_cuda_product *product);

struct dsv2i_cuda_blas;

/* Bytes on the card that one takes. */
size_t dsv2i_cuda_blas_workspace(int32_t sm);

/* On the current device, of capability sm.  Host memory is from hooks; cuBLASLt takes its own. */
struct dsv2i_cuda_result dsv2i_cuda_blas_open(const struct dsv2i_hooks *hooks, int32_t sm, struct dsv2i_cuda_blas **out);

/* Waits for the device.  NULL is none. */
void dsv2i_cuda_blas_close(struct dsv2i_cuda_blas *blas);

/* Does the library compute it?  It may refuse what takes says yes to: versions differ in that.  Plans it, unless it is; an answer is
 * remembered.  1 also where planning fails for another reason, which a run then tells. */
int dsv2i_cuda_blas_has(struct dsv2i_cuda_blas *blas, const struct dsv2i_cuda_product *product);

/* Plan it, unless it is. */
struct dsv2i_cuda_result dsv2i_cuda_blas_prepare(struct dsv2i_cuda_blas *blas, const struct dsv2i_cuda_product *product);

/* Launch it on the stream; += with accumulate.  Plans it first if need be, which nobody wants while a stream is captured; nor a product's
 * first run, which may load the library's kernel.  All pointers are device memory, aligned to 16 bytes; the scales are NULL but for
 * F8_E4M3. */
struct dsv2i_cuda_result dsv2i_cuda_blas_run(struct dsv2i_cuda_blas *blas, const struct dsv2i_cuda_product *product, cudaStream_t stream,
                                             void *y, const void *x, const void *w, const float *x_scale, const float *w_scale,
                                             int32_t accumulate);

#ifdef __cplusplus
}
#endif

#endif
