/* The CUDA programming model on a CPU: the part of cuda_runtime.h that the CUDA backend uses, for a host C++ compiler.
 *
 * Found instead of the toolkit's header, so the backend's own sources build unchanged.  What a device would do by chance (which thread
 * runs first, how late a stream works, which block meets which) is drawn from a seed; what a device would forgive is an error.  Static
 * __shared__ variables do not exist: kernels take dynamic shared memory (kernels/cuda/device.cuh), whose bounds can be watched.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2_EMULATION_CUDA_RUNTIME_H
#define DSV2_EMULATION_CUDA_RUNTIME_H

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

/* ---- vectors ------------------------------------------------------------------------------------------------------------- */

#define EMU_VECTOR2(name, type, align) \
    struct alignas(align) name { type x, y; }; \
    static inline name make_##name(type x, type y) { return name{x, y}; }
#define EMU_VECTOR4(name, type, align) \
    struct alignas(align) name { type x, y, z, w; }; \
    static inline name make_##name(type x, type y, type z, type w) { return name{x, y, z, w}; }
EMU_VECTOR2(float2, float, 8)
EMU_VECTOR4(float4, float, 16)
EMU_VECTOR2(int2, int, 8)
EMU_VECTOR4(int4, int, 16)
EMU_VECTOR2(uint2, unsigned, 8)
EMU_VECTOR4(uint4, unsigned, 16)
EMU_VECTOR2(short2, short, 4)
EMU_VECTOR2(ushort2, unsigned short, 4)
EMU_VECTOR4(ushort4, unsigned short, 8)
EMU_VECTOR4(uchar4, unsigned char, 4)
#undef EMU_VECTOR2
#undef EMU_VECTOR4

template <class T> cudaError_t cudaMalloc(T **ptr, size_t size) { return cudaMalloc(reinterpret_cast<void **>(ptr), size); }
template <class T> cudaError_t cudaMallocHost(T **ptr, size_t size) { return cudaMallocHost(reinterpret_cast<void **>(ptr), size); }

/* ---- host: launches ---------------------------------------------------------------------------------------------------------- */

namespace emu {
cudaError_t launch(const cudaLaunchConfig_t *config, const void *kernel, std::function<void()> body);
cudaError_t set_attribute(const void *kernel, cudaFuncAttribute attr, int value);
cudaError_t occupancy(int *blocks, int threads, size_t shared);
cudaError_t func_attributes(cudaFuncAttributes *attr, const void *kernel);
}

template <class... P, class... A> cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P...), A &&...args)
{
    std::tuple<std::remove_const_t<P>...> values(std::forward<A>(args)...); /* by value, now, as a launch does */
    return emu::launch(config, reinterpret_cast<const void *>(kernel), [kernel, values] { std::apply(kernel, values); });
}
template <class... P> cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attr, int value)
{
    return emu::set_attribute(reinterpret_cast<const void *>(kernel), attr, value);
}
template <class... P> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attr, void (*kernel)(P...))
{
    return emu::func_attributes(attr, reinterpret_cast<const void *>(kernel));
}
template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void (*)(P...), int threads, size_t shared)
{
    return emu::occupancy(blocks, threads, shared);
}

/* ---- device ------------------------------------------------------------------------------------------------------------------- */

namespace emu {
void *shared_memory();
void sync_threads(unsigned barrier, unsigned threads);  /* threads 0: all of the block */
void sync_grid();
void wait_dependency();                                 /* griddepcontrol.wait */
/* All lanes of mask meet: each gives size (at most 64) bytes, and sees what every lane gave, (32, size), until its next meeting. */
const unsigned char *meet(unsigned mask, const void *given, size_t size, const char *what);
unsigned lane();
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

template <class T> T exchange(unsigned mask, T value, unsigned source, const char *what)
{
    static_assert(sizeof(T) <= 64, "too large for an exchange");
    const unsigned char *all = meet(mask, &value, sizeof value, what);
    T result;
    if (mask >> source & 1)
        std::memcpy(&result, all + sizeof value * source, sizeof result);
    else
        std::memset(&result, 0xFF, sizeof result); /* undefined on a device */
    return result;
}
}

/* Those of the thread that runs. */
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
#define warpSize 32

static inline void __syncthreads() { emu::sync_threads(0, 0); }
static inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { emu::meet(mask, nullptr, 0, "__syncwarp"); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

/* Shuffles by the PTX manual (shfl.sync): a segment of width lanes; outside of it a lane gets its own value. */
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32)
{
    unsigned self = emu::lane(), base = self & ~(unsigned)(width - 1);
    return emu::exchange(mask, value, base | ((unsigned)source & (unsigned)(width - 1)), "__shfl_sync");
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32)
{
    unsigned self = emu::lane(), other = self ^ (unsigned)with, end = self | (unsigned)(width - 1);
    return emu::exchange(mask, value, other <= end ? other : self, "__shfl_xor_sync");
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32)
{
    unsigned self = emu::lane(), other = self + by, end = self | (unsigned)(width - 1);
    return emu::exchange(mask, value, other <= end ? other : self, "__shfl_down_sync");
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32)
{
    unsigned self = emu::lane(), begin = self & ~(unsigned)(width - 1);
    return emu::exchange(mask, value, self >= begin + by ? self - by : self, "__shfl_up_sync");
}

unsigned __ballot_sync(unsigned mask, int predicate);
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
unsigned __match_any_sync(unsigned mask, unsigned value);
unsigned __reduce_add_sync(unsigned mask, unsigned value);
unsigned __reduce_max_sync(unsigned mask, unsigned value);

/* One thread runs at a time, so these are atomic. */
template <class T> T atomicAdd(T *at, T value) { T old = *at; *at = (T)(old + value); return old; }
template <class T> T atomicMax(T *at, T value) { T old = *at; if (value > old) *at = value; return old; }
template <class T> T atomicMin(T *at, T value) { T old = *at; if (value < old) *at = value; return old; }
template <class T> T atomicExch(T *at, T value) { T old = *at; *at = value; return old; }
template <class T> T atomicCAS(T *at, T compare, T value) { T old = *at; if (old == compare) *at = value; return old; }
template <class T> T atomicOr(T *at, T value) { T old = *at; *at = old | value; return old; }

template <class T> T __ldg(const T *at) { return *at; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __brev(unsigned x)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i++)
        r |= (x >> i & 1) << (31 - i);
    return r;
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline float __int_as_float(int x) { float f; std::memcpy(&f, &x, 4); return f; }
static inline float __uint_as_float(unsigned x) { float f; std::memcpy(&f, &x, 4); return f; }
static inline int __float_as_int(float f) { int x; std::memcpy(&x, &f, 4); return x; }
static inline unsigned __float_as_uint(float f) { unsigned x; std::memcpy(&x, &f, 4); return x; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __frcp_rn(float x) { return 1 / x; }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf(x) expf(x) /* the C library has functions of these names */
#define __logf(x) logf(x)
static inline float rsqrtf(float x) { return (float)(1 / sqrt((double)x)); }
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }

#endif
