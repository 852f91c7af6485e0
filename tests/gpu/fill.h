/* Memory of a card with something in it that is like the real thing: zeros make some cards faster.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2_GPU_FILL_H
#define DSV2_GPU_FILL_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* n elements of dtype, uniform in -scale..scale; of F8_E4M3 codes of any finite value, whatever scale is. */
cudaError_t gpu_fill(cudaStream_t stream, void *at, int32_t dtype, size_t n, float scale, uint32_t seed);
/* n elements of fp32, all the same. */
cudaError_t gpu_fill_same(cudaStream_t stream, float *at, size_t n, float value);
/* n records of bytes each, a multiple of 16: codes, and two fp32 scales at offset scale. */
cudaError_t gpu_fill_records(cudaStream_t stream, void *at, size_t n, size_t bytes, size_t scale, uint32_t seed);

#ifdef __cplusplus
}
#endif

#endif
