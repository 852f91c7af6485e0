/* Proof of the emulator: the programming model, the runtime's streams and graphs.
 * SPDX-License-Identifier: MIT */
#include "programs.h"

#include <copy.cuh>

namespace {

float as_float(size_t i) { return (float)i; }
float twice(size_t i) { return 2 * (float)i; }

__global__ void fill(float *to, int n)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        to[i] = (float)i;
}

/* ---- programs: each returns whether its results are right ------------------------------------------------------------------------ */

template <bool wrong> __global__ void reverse_kernel(float *to)
{
    float *tile = (float *)dsv2i_shared();
    tile[threadIdx.x] = (float)(blockDim.x - 1 - threadIdx.x);
    if (!wrong)
        __syncthreads();
    to[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
template <bool wrong> bool missing_barrier()
{
    float *to = device<float>(128);
    start(reverse_kernel<wrong>, 1, 128, {128 * 4}, to);
    return all_are(to, 128, as_float);
}

/* The barrier at the loop's end is missing: a fast thread writes the next round's value where a slow one still reads. */
template <bool wrong> __global__ void rounds_kernel(float *to)
{
    float *tile = (float *)dsv2i_shared(), sum = 0;
    for (int round = 0; round < 4; round++) {
        tile[threadIdx.x] = (float)(round * 64 + (int)threadIdx.x);
        __syncthreads();
        sum += tile[63 - threadIdx.x];
        if (!wrong)
            __syncthreads();
    }
    to[threadIdx.x] = sum;
}
template <bool wrong> bool missing_second_barrier()
{
    float *to = device<float>(64);
    start(rounds_kernel<wrong>, 1, 64, {64 * 4}, to);
    return all_are<float>(to, 64, [](size_t i) { return 384.0f + 4 * (float)(63 - i); });
}

/* One warp hands numbers to another through one place, with much to do in between: only a warp that is very slow finds the next there. */
template <bool wrong> __global__ void hand_over_kernel(float *to)
{
    float *place = (float *)dsv2i_shared();
    uint64_t *full = (uint64_t *)(place + 32), *empty = full + 1;
    const unsigned lane = threadIdx.x % 32;

    if (threadIdx.x == 0) {
        dsv2i_mbarrier_init(full, 32);
        dsv2i_mbarrier_init(empty, 32);
    }
    __syncthreads();
    for (int i = 0; i < 2; i++)
        if (threadIdx.x < 32) {
            for (int busy = 0; busy < 200; busy++)
                __syncwarp();
            if (!wrong && i)
                dsv2i_mbarrier_wait(empty, 0);
            place[lane] = (float)(32 * i + (int)lane);
            dsv2i_mbarrier_arrive(full);
        } else {
            dsv2i_mbarrier_wait(full, i);
            to[32 * i + (int)lane] = place[lane];
            dsv2i_mbarrier_arrive(empty);
        }
}
template <bool wrong> bool overtaken_by_far()
{
    float *to = device<float>(64);
    start(hand_over_kernel<wrong>, 1, 64, {256}, to);
    return all_are(to, 64, as_float);
}

template <bool wrong> __global__ void warp_kernel(float *to)
{
    float *tile = (float *)dsv2i_shared();
    tile[threadIdx.x] = (float)threadIdx.x;
    if (!wrong)
        __syncwarp();
    to[threadIdx.x ^ 1] = tile[threadIdx.x ^ 1];
}
template <bool wrong> bool missing_syncwarp()
{
    float *to = device<float>(32);
    start(warp_kernel<wrong>, 1, 32, {32 * 4}, to);
    return all_are(to, 32, as_float);
}

template <bool wrong> __global__ void past_shared_kernel(float *to)
{
    float *tile = (float *)dsv2i_shared();
    tile[threadIdx.x] = (float)threadIdx.x;
    __syncthreads();
    to[threadIdx.x] = tile[threadIdx.x + (wrong && threadIdx.x == 63)] + (wrong && threadIdx.x == 63 ? -1.0f : 0.0f);
}
template <bool wrong> bool shared_out_of_bounds()
{
    float *to = device<float>(64);
    start(past_shared_kernel<wrong>, 1, 64, {64 * 4}, to);
    return all_are(to, 64, as_float);
}

template <bool wrong> __global__ void past_global_kernel(const float *from, float *to, int n)
{
    int i = (int)threadIdx.x;
    float sum = i < n + wrong ? from[i] : 0;
    if (i < n)
        to[i] = sum;
}
template <bool wrong> bool global_out_of_bounds()
{
    float *from = device<float>(50), *to = device<float>(50);
    start(fill, 1, 64, {}, from, 50);
    start(past_global_kernel<wrong>, 1, 64, {}, (const float *)from, to, 50);
    return all_are(to, 50, as_float);
}

template <bool wrong> bool use_after_free()
{
    float *from = device<float>(64), *to = device<float>(64);
    start(fill, 1, 64, {}, from, 64);
    if (wrong)
        cudaFree(from);
    start(past_global_kernel<false>, 1, 64, {}, (const float *)from, to, 64);
    return all_are(to, 64, as_float);
}

template <bool wrong> __global__ void uninitialised_kernel(float *to)
{
    float *sums = (float *)dsv2i_shared();
    if (!wrong && threadIdx.x < 32)
        sums[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&sums[threadIdx.x % 32], (float)(threadIdx.x % 32));
    __syncthreads();
    if (threadIdx.x < 32)
        to[threadIdx.x] = sums[threadIdx.x];
}
template <bool wrong> bool uninitialised_shared()
{
    float *to = device<float>(32);
    start(uninitialised_kernel<wrong>, 1, 64, {32 * 4}, to);
    return all_are(to, 32, twice);
}

template <bool wrong> bool uninitialised_global()
{
    float *to = device<float>(64);
    start(fill, 1, 64, {}, to, wrong ? 63 : 64);
    return all_are(to, 64, as_float);
}

template <bool wrong> __global__ void width_kernel(float *to)
{
    float sum = (float)threadIdx.x;
    for (int by = 8; by; by /= 2)
        sum += __shfl_down_sync(0xFFFFFFFFu, sum, (unsigned)by, wrong ? 32 : 16);
    if (threadIdx.x % 16 == 0)
        to[threadIdx.x / 16] = sum;
    sum = __shfl_sync(0xFFFFFFFFu, sum, 0, wrong ? 32 : 16);
    to[2 + threadIdx.x] = sum;
}
template <bool wrong> bool shuffle_width()
{
    float *to = device<float>(34);
    start(width_kernel<wrong>, 1, 32, {}, to);
    return all_are<float>(to, 34, [](size_t i) { return (i < 2 ? i : (i - 2) / 16) ? 376.0f : 120.0f; });
}

template <bool wrong> __global__ void mask_kernel(float *to)
{
    float value = (float)threadIdx.x;
    if (threadIdx.x < 16)
        value += __shfl_xor_sync(wrong ? 0xFFFFFFFFu : 0xFFFFu, value, 1);
    to[threadIdx.x] = value;
}
template <bool wrong> bool shuffle_mask()
{
    float *to = device<float>(32);
    start(mask_kernel<wrong>, 1, 32, {}, to);
    return all_are<float>(to, 32, [](size_t i) { return (float)(i < 16 ? i + (i ^ 1) : i); });
}

template <bool wrong> __global__ void outside_kernel(float *to)
{
    float value = (float)threadIdx.x;
    if (threadIdx.x < 16)
        value = __shfl_sync(0xFFFFu, value, wrong ? 20 : 7);
    to[threadIdx.x] = value;
}
template <bool wrong> bool shuffle_from_outside()
{
    float *to = device<float>(32);
    start(outside_kernel<wrong>, 1, 32, {}, to);
    return all_are<float>(to, 32, [](size_t i) { return i < 16 ? (wrong ? 20.0f : 7.0f) : (float)i; });
}

template <bool wrong> __global__ void divergent_kernel(float *to)
{
    if (threadIdx.x < 32 || !wrong)
        dsv2i_named_barrier(1, 64);
    to[threadIdx.x] = (float)threadIdx.x;
}
template <bool wrong> bool barrier_not_reached()
{
    float *to = device<float>(64);
    start(divergent_kernel<wrong>, 1, 64, {}, to);
    return all_are(to, 64, as_float);
}

template <bool wrong> __global__ void race_kernel(float *sum)
{
    if (wrong) {
        float old = *sum;
        __syncthreads();
        *sum = old + 1;
    } else {
        atomicAdd(sum, 1.0f);
    }
}
template <bool wrong> bool missing_atomic()
{
    float *sum = device<float>(1);
    cudaMemsetAsync(sum, 0, 4, stream);
    start(race_kernel<wrong>, 4, 32, {}, sum);
    return all_are<float>(sum, 1, [](size_t) { return 128.0f; });
}

/* The last block to finish sums what all wrote; whoever believes that to be the block of the highest index is wrong. */
template <bool wrong> __global__ void last_block_kernel(float *parts, int *count, float *sum)
{
    int *last = (int *)dsv2i_shared();
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = (float)(blockIdx.x + 1);
        __threadfence();
        *last = wrong ? blockIdx.x == gridDim.x - 1 : atomicAdd(count, 1) == (int)gridDim.x - 1;
        if (*last) {
            float all = 0;
            for (unsigned i = 0; i < gridDim.x; i++)
                all += parts[i];
            *sum = all;
        }
    }
}
template <bool wrong> bool block_order()
{
    float *parts = device<float>(8), *sum = device<float>(1);
    int *count = device<int>(1);
    cudaMemsetAsync(count, 0, 4, stream);
    start(last_block_kernel<wrong>, 8, 32, {4}, parts, count, sum);
    return all_are<float>(sum, 1, [](size_t) { return 36.0f; });
}

template <bool wrong> __global__ void grid_kernel(float *parts, float *to)
{
    parts[blockIdx.x] = (float)blockIdx.x;
    if (!wrong)
        emu::sync_grid();
    to[blockIdx.x] = parts[gridDim.x - 1 - blockIdx.x];
}
template <bool wrong> bool missing_grid_barrier()
{
    float *parts = device<float>(8), *to = device<float>(8);
    start(grid_kernel<wrong>, 8, 1, {0, true}, parts, to);
    return all_are<float>(to, 8, [](size_t i) { return 7 - (float)i; });
}
template <bool wrong> bool grid_barrier_without_cooperation()
{
    float *parts = device<float>(8), *to = device<float>(8);
    start(grid_kernel<false>, 8, 1, {0, !wrong}, parts, to);
    return all_are<float>(to, 8, [](size_t i) { return 7 - (float)i; });
}
template <bool wrong> bool cooperative_too_large()
{
    float *parts = device<float>(1024), *to = device<float>(1024);
    int blocks = wrong ? 129 : 128; /* 4 multiprocessors, 32 blocks each */
    return start(grid_kernel<false>, dim3((unsigned)blocks), 32, {0, true}, parts, to) == cudaSuccess;
}

__global__ void copy_kernel(const float *from, float *to, int n)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        to[i] = from[i];
}
template <bool wrong> __global__ void dependent_kernel(const float *from, float *to, int n)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (!wrong)
        dsv2i_wait_dependency();
    if (i < n)
        to[i] = from[i];
}
template <bool wrong> bool missing_dependency_wait()
{
    float *from = device<float>(256), *to = device<float>(256);
    start(fill, 8, 32, {}, from, 256);
    start(dependent_kernel<wrong>, 8, 32, {0, false, true}, (const float *)from, to, 256);
    return all_are(to, 256, as_float);
}
/* It waits, but only after it has written where the launch before still reads. */
template <bool wrong> __global__ void overwrite_kernel(float *to, int n)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (!wrong)
        dsv2i_wait_dependency();
    if (i < n)
        to[i] = -1;
    dsv2i_wait_dependency();
}
template <bool wrong> bool write_before_dependency_wait()
{
    float *from = device<float>(256), *to = device<float>(256);
    start(fill, 8, 32, {}, from, 256);
    cudaStreamSynchronize(stream);
    start(copy_kernel, 8, 32, {}, (const float *)from, to, 256);
    start(overwrite_kernel<wrong>, 8, 32, {0, false, true}, from, 256);
    return all_are(to, 256, as_float);
}

template <bool wrong> bool missing_event_wait()
{
    float *from = device<float>(64), *to = device<float>(64);
    cudaEvent_t event;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    start(fill, 2, 32, {0, false, false, other}, from, 64);
    cudaEventRecord(event, other);
    if (!wrong)
        cudaStreamWaitEvent(stream, event);
    start(copy_kernel, 2, 32, {}, (const float *)from, to, 64);
    return all_are(to, 64, as_float);
}
/* The event is recorded before the work that it should stand for. */
template <bool wrong> bool event_too_early()
{
    float *from = device<float>(64), *to = device<float>(64);
    cudaEvent_t event;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    if (wrong)
        cudaEventRecord(event, other);
    start(fill, 2, 32, {0, false, false, other}, from, 64);
    if (!wrong)
        cudaEventRecord(event, other);
    cudaStreamWaitEvent(stream, event);
    start(copy_kernel, 2, 32, {}, (const float *)from, to, 64);
    return all_are(to, 64, as_float);
}

template <bool wrong> bool staging_reused()
{
    float *staging = pinned<float>(64), *to = device<float>(128);
    for (int half = 0; half < 2; half++) {
        if (half && !wrong)
            cudaStreamSynchronize(stream);
        for (int i = 0; i < 64; i++)
            staging[i] = (float)(64 * half + i);
        cudaMemcpyAsync(to + 64 * half, staging, 64 * 4, cudaMemcpyHostToDevice, stream);
    }
    return all_are(to, 128, as_float);
}
template <bool wrong> bool result_read_too_early()
{
    float *from = device<float>(64), *host = pinned<float>(64);
    start(fill, 2, 32, {}, from, 64);
    cudaMemcpyAsync(host, from, 64 * 4, cudaMemcpyDeviceToHost, stream);
    if (!wrong)
        cudaStreamSynchronize(stream);
    for (int i = 0; i < 64; i++)
        if (host[i] != (float)i)
            return false;
    return true;
}
template <bool wrong> bool host_touches_device()
{
    float *from = device<float>(64);
    start(fill, 2, 32, {}, from, 64);
    cudaStreamSynchronize(stream);
    if (wrong)
        return from[5] == 5;
    return all_are(from, 64, as_float);
}
template <bool wrong> bool copy_of_the_wrong_kind()
{
    float *from = device<float>(64), *to = device<float>(64);
    start(fill, 2, 32, {}, from, 64);
    return cudaMemcpyAsync(to, from, 64 * 4, wrong ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToDevice, stream) == cudaSuccess
           && all_are(to, 64, as_float);
}

/* A graph keeps the pointers it was captured with. */
template <bool wrong> bool stale_pointer_in_graph()
{
    float *from = device<float>(64), *to = device<float>(64), *later = device<float>(64);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    start(fill, 2, 32, {}, from, 64);
    start(fill, 2, 32, {}, later, 64);
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    start(copy_kernel, 2, 32, {}, (const float *)(wrong ? from : later), to, 64);
    cudaStreamEndCapture(stream, &graph);
    cudaGraphInstantiate(&exec, graph);
    cudaFree(from);
    cudaGraphLaunch(exec, stream);
    return all_are(to, 64, as_float);
}
/* Two branches of a graph that touch the same memory. */
template <bool wrong> bool missing_edge_in_graph()
{
    float *from = device<float>(64), *to = device<float>(64);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t fork, filled, join;
    for (cudaEvent_t *e : {&fork, &filled, &join})
        cudaEventCreateWithFlags(e, cudaEventDisableTiming);
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    cudaEventRecord(fork, stream);
    cudaStreamWaitEvent(other, fork);
    start(fill, 2, 32, {0, false, false, other}, from, 64);
    cudaEventRecord(filled, other);
    if (!wrong)
        cudaStreamWaitEvent(stream, filled);
    start(copy_kernel, 2, 32, {}, (const float *)from, to, 64);
    cudaEventRecord(join, other);
    cudaStreamWaitEvent(stream, join);
    if (cudaStreamEndCapture(stream, &graph) != cudaSuccess || cudaGraphInstantiate(&exec, graph) != cudaSuccess)
        return false;
    cudaGraphLaunch(exec, stream);
    return all_are(to, 64, as_float);
}
template <bool wrong> bool unjoined_capture()
{
    float *from = device<float>(64);
    cudaGraph_t graph;
    cudaEvent_t fork, join;
    cudaEventCreateWithFlags(&fork, cudaEventDisableTiming);
    cudaEventCreateWithFlags(&join, cudaEventDisableTiming);
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    cudaEventRecord(fork, stream);
    cudaStreamWaitEvent(other, fork);
    start(fill, 2, 32, {0, false, false, other}, from, 64);
    cudaEventRecord(join, other);
    if (!wrong)
        cudaStreamWaitEvent(stream, join);
    return cudaStreamEndCapture(stream, &graph) == cudaSuccess;
}
template <bool wrong> bool wait_in_capture()
{
    cudaGraph_t graph;
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    bool right = !wrong || cudaStreamSynchronize(stream) == cudaSuccess;
    return cudaStreamEndCapture(stream, &graph) == cudaSuccess && right;
}
/* The host captures; whoever allocates says first that no capture of its own depends on that. */
template <bool wrong> bool allocation_beside_capture()
{
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaGraph_t graph;
    void *at;
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    if (!wrong)
        cudaThreadExchangeStreamCaptureMode(&mode);
    bool right = cudaMalloc(&at, 64) == cudaSuccess && cudaFree(at) == cudaSuccess;
    if (!wrong)
        cudaThreadExchangeStreamCaptureMode(&mode);
    return cudaStreamEndCapture(stream, &graph) == cudaSuccess && right;
}

template <bool wrong> bool too_much_shared_memory()
{
    float *to = device<float>(64);
    if (!wrong)
        cudaFuncSetAttribute(past_shared_kernel<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10);
    return start(past_shared_kernel<false>, 1, 64, {64 << 10}, to) == cudaSuccess && all_are(to, 64, as_float);
}
template <bool wrong> bool block_too_large()
{
    float *to = device<float>(2048);
    return start(fill, 1, wrong ? 1025 : 1024, {}, to, 1024) == cudaSuccess;
}
template <bool wrong> bool default_stream()
{
    float *to = device<float>(64);
    return cudaMemsetAsync(to, 0, 64 * 4, wrong ? nullptr : stream) == cudaSuccess && all_are<float>(to, 64, [](size_t) { return 0.0f; });
}

const Program programs[] = {
    PROGRAM(missing_barrier), PROGRAM(missing_second_barrier), PROGRAM(overtaken_by_far), PROGRAM(missing_syncwarp),
    PROGRAM_FOR_ASAN(shared_out_of_bounds),    PROGRAM_FOR_ASAN(global_out_of_bounds), PROGRAM(use_after_free), PROGRAM(uninitialised_shared), PROGRAM(uninitialised_global),
    PROGRAM(shuffle_width), PROGRAM(shuffle_mask), PROGRAM(shuffle_from_outside), PROGRAM(barrier_not_reached), PROGRAM(missing_atomic),
    PROGRAM(block_order), PROGRAM(missing_grid_barrier), PROGRAM(grid_barrier_without_cooperation), PROGRAM(cooperative_too_large),
    PROGRAM(missing_dependency_wait), PROGRAM(write_before_dependency_wait), PROGRAM(missing_event_wait), PROGRAM(event_too_early),
    PROGRAM(staging_reused), PROGRAM(result_read_too_early), PROGRAM(host_touches_device), PROGRAM(copy_of_the_wrong_kind),
    PROGRAM(stale_pointer_in_graph), PROGRAM(missing_edge_in_graph), PROGRAM(unjoined_capture), PROGRAM(wait_in_capture),
    PROGRAM(allocation_beside_capture),
    PROGRAM(too_much_shared_memory), PROGRAM(block_too_large), PROGRAM(default_stream),
};

}

int main() { return run_all(programs); }
