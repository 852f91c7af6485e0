/* Opening a card, its memory, and the table of operations.
 *
 * SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>

#include "backend.h"
#include "module.h"

enum { STEPS = DSV2I_MOST_ROWS + 2 }; /* on the card: the one at hand, and those that say no more than how many rows there are */

int dsv2i_cuda_result(struct dsv2i_cuda *be, cudaError_t error)
{
    if (!error)
        return 0;
    cudaGetLastError(); /* not for the host program to find */
    atomic_store(&be->failure, cudaGetErrorString(error));
    return -1;
}

struct dsv2i_cuda_thread dsv2i_cuda_enter(struct dsv2i_cuda *be)
{
    struct dsv2i_cuda_thread previous = {be->device, cudaStreamCaptureModeRelaxed};

    cudaThreadExchangeStreamCaptureMode(&previous.mode);
    cudaGetDevice(&previous.device);
    if (previous.device == be->device)
        previous.device = -1;
    else
        cudaSetDevice(be->device);
    return previous;
}

void dsv2i_cuda_leave(struct dsv2i_cuda_thread previous)
{
    cudaThreadExchangeStreamCaptureMode(&previous.mode);
    if (previous.device >= 0)
        cudaSetDevice(previous.device);
}

/* ---- Memory ------------------------------------------------------------------------------------------------------------ */

void dsv2i_cuda_drop(struct dsv2i_cuda_block *block, int pinned)
{
    if (block->at && pinned)
        cudaFreeHost(block->at);
    else if (block->at)
        cudaFree(block->at);
    *block = (struct dsv2i_cuda_block){0};
}

int dsv2i_cuda_grow(struct dsv2i_cuda *be, struct dsv2i_cuda_block *block, size_t bytes, int pinned)
{
    struct dsv2i_cuda_block more = {.bytes = bytes};
    void *at = NULL;

    if (bytes <= block->bytes)
        return 0;
    if (dsv2i_cuda_result(be, pinned ? cudaMallocHost(&at, more.bytes) : cudaMalloc(&at, more.bytes)))
        return -1;
    more.at = at;
    dsv2i_cuda_drop(block, pinned);
    *block = more;
    return 0;
}

static void *op_mem_alloc(struct dsv2i_backend *base, size_t bytes)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    struct dsv2i_cuda_thread previous = dsv2i_cuda_enter(be);
    void *at = NULL;

    if (dsv2i_cuda_result(be, cudaMalloc(&at, bytes ? bytes : 1)))
        at = NULL;
    dsv2i_cuda_leave(previous);
    return at;
}

static void op_mem_free(struct dsv2i_backend *base, void *ptr, size_t bytes)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    struct dsv2i_cuda_thread previous = dsv2i_cuda_enter(be);

    (void)bytes;
    dsv2i_cuda_result(be, cudaFree(ptr));
    dsv2i_cuda_leave(previous);
}

static int op_mem_copy(struct dsv2i_backend *base, void *to, const void *from, size_t bytes)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    struct dsv2i_cuda_thread previous = dsv2i_cuda_enter(be);
    cudaError_t e;

    pthread_mutex_lock(&be->copying);
    e = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, be->copies);
    if (!e)
        e = cudaStreamSynchronize(be->copies);
    pthread_mutex_unlock(&be->copying);
    dsv2i_cuda_leave(previous);
    return dsv2i_cuda_result(be, e);
}

static size_t op_kv_token_bytes(struct dsv2i_backend *base, const struct dsv2i_shape *shape, int32_t kv_type)
{
    (void)base;
    return dsv2i_kv_record(kv_type, shape->kv_lora_rank, shape->qk_rope_head_dim).bytes;
}

/* Results of a step, in the host's pinned memory. */
static size_t fetched_bytes(const struct dsv2i_cuda *be, const struct dsv2i_shape *shape, int32_t n_rows)
{
    size_t logit_rows = (size_t)(n_rows < be->base.logit_rows ? n_rows : be->base.logit_rows);

    return logit_rows * (((size_t)shape->vocab_size * sizeof(float) + 63) & ~(size_t)63)
           + (size_t)n_rows * (sizeof(struct dsv2i_score) + sizeof(int32_t) + sizeof(float)) + 128;
}

/* Enough for any step: plain ones are launched for more rows than they have. */
static size_t scratch_bytes(const struct dsv2i_cuda *be, const struct dsv2i_shape *shape, int32_t n_rows)
{
    int32_t plain = dsv2i_cuda_bucket(n_rows < be->base.logit_rows ? n_rows : be->base.logit_rows);

    return dsv2i_cuda_make_plan(be, shape, n_rows > plain ? n_rows : plain).total;
}

/* With what the context has from the beginning. */
static size_t op_scratch_bytes(struct dsv2i_backend *base, const struct dsv2i_shape *shape, int32_t n_rows)
{
    const struct dsv2i_cuda *be = dsv2i_cuda_of(base);

    return scratch_bytes(be, shape, n_rows) + fetched_bytes(be, shape, n_rows) + dsv2i_cuda_blas_workspace(be->sm)
           + STEPS * sizeof *be->step;
}

static int op_reserve(struct dsv2i_backend *base, const struct dsv2i_shape *shape, int32_t n_rows)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    struct dsv2i_cuda_thread previous = dsv2i_cuda_enter(be);
    int failed;
    const char *scratch = be->scratch.at;

    failed = dsv2i_cuda_grow(be, &be->fetched, fetched_bytes(be, shape, n_rows), 1)
             || dsv2i_cuda_grow(be, &be->scratch, scratch_bytes(be, shape, n_rows), 0);
    if (be->scratch.at != scratch)
        dsv2i_cuda_forget(base, NULL); /* graphs use the old block */
    dsv2i_cuda_leave(previous);
    return failed ? -1 : 0;
}

static const char *op_failure(struct dsv2i_backend *base)
{
    return atomic_load(&dsv2i_cuda_of(base)->failure);
}

/* ---- Opening ------------------------------------------------------------------------------------------------------------ */

static void op_close(struct dsv2i_backend *base)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    struct dsv2i_hooks hooks = be->hooks;
    struct dsv2i_cuda_thread previous = dsv2i_cuda_enter(be);

    if (be->stream)
        cudaStreamSynchronize(be->stream);
    dsv2i_cuda_forget(base, NULL); /* graphs go before what they use */
    dsv2i_cuda_blas_close(be->blas);
    for (int i = 0; i < 2; i++)
        if (be->staged[i])
            cudaEventDestroy(be->staged[i]);
    if (be->stream && be->own_stream)
        cudaStreamDestroy(be->stream);
    if (be->copies)
        cudaStreamDestroy(be->copies);
    if (be->staging)
        cudaFreeHost(be->staging);
    if (be->step)
        cudaFree(be->step);
    dsv2i_cuda_drop(&be->scratch, 0);
    dsv2i_cuda_drop(&be->lists, 0);
    dsv2i_cuda_drop(&be->pinned_lists, 1);
    dsv2i_cuda_drop(&be->fetched, 1);
    dsv2i_cuda_drop(&be->choices, 0);
    dsv2i_cuda_drop(&be->pinned_choices, 1);
    dsv2i_cuda_drop(&be->choice_scratch, 0);
    cudaGetLastError();
    dsv2i_cuda_leave(previous);
    pthread_mutex_destroy(&be->copying);
    if (be->fetches)
        hooks.free(hooks.user, be->fetches, DSV2I_CUDA_FETCHES * sizeof *be->fetches);
    hooks.free(hooks.user, be, sizeof *be);
}

static const struct dsv2i_ops ops = {
    .close = op_close,
    .mem_alloc = op_mem_alloc,
    .mem_free = op_mem_free,
    .mem_copy = op_mem_copy,
    .weight_bytes = dsv2i_cuda_weight_bytes,
    .weight_put = dsv2i_cuda_weight_put,
    .table_bytes = dsv2i_cuda_table_bytes,
    .table_put = dsv2i_cuda_table_put,
    .memory_rows = dsv2i_cuda_memory_rows,
    .kv_token_bytes = op_kv_token_bytes,
    .scratch_bytes = op_scratch_bytes,
    .reserve = op_reserve,
    .begin = dsv2i_cuda_begin,
    .submit = dsv2i_cuda_submit,
    .fetch = dsv2i_cuda_fetch,
    .finish = dsv2i_cuda_finish,
    .failure = op_failure,
    .forget = dsv2i_cuda_forget,
    .embed = dsv2i_cuda_op_embed,
    .rms_norm = dsv2i_cuda_op_rms_norm,
    .linear = dsv2i_cuda_op_linear,
    .mla_prepare = dsv2i_cuda_op_mla_prepare,
    .mla_attend = dsv2i_cuda_op_mla_attend,
    .ffn = dsv2i_cuda_op_ffn,
    .moe_route = dsv2i_cuda_op_moe_route,
    .moe_experts = dsv2i_cuda_op_moe_experts,
    .score = dsv2i_cuda_op_score,
    .sample = dsv2i_cuda_op_sample,
};

static cudaError_t make_steps(struct dsv2i_cuda *be)
{
    const size_t n = STEPS;
    struct dsv2i_cuda_step *steps = be->hooks.alloc(be->hooks.user, n * sizeof *steps, 64);
    cudaError_t e;
    void *at = NULL;

    if (!steps)
        return cudaErrorMemoryAllocation;
    memset(steps, 0, n * sizeof *steps);
    for (size_t i = 1; i < n; i++)
        steps[i].n_rows = (int32_t)i - 1;
    e = cudaMalloc(&at, n * sizeof *steps);
    be->step = at;
    if (!e)
        e = dsv2i_cuda_upload(be, be->step, steps, n * sizeof *steps);
    be->hooks.free(be->hooks.user, steps, n * sizeof *steps);
    return e;
}

static cudaError_t open_card(struct dsv2i_cuda *be)
{
    struct dsv2i_cuda_result r;
    int major = 0, minor = 0;
    void *staging = NULL;
    size_t left = 0, memory = 0;
    cudaError_t e;

    if ((e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, be->device)) ||
        (e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, be->device)) ||
        (e = cudaDeviceGetAttribute(&be->n_sms, cudaDevAttrMultiProcessorCount, be->device)))
        return e;
    be->sm = 10 * major + minor;
    if (be->sm < 80)
        return cudaErrorInvalidDevice;
    if ((e = dsv2i_cuda_has_code()))
        return e;
    if (!be->stream) {
        if ((e = cudaStreamCreateWithFlags(&be->stream, cudaStreamNonBlocking)))
            return e;
        be->own_stream = 1;
    }
    if ((e = cudaStreamCreateWithFlags(&be->copies, cudaStreamNonBlocking)) ||
        (e = cudaEventCreateWithFlags(&be->staged[0], cudaEventDisableTiming)) ||
        (e = cudaEventCreateWithFlags(&be->staged[1], cudaEventDisableTiming)) ||
        (e = cudaMallocHost(&staging, 2 * DSV2I_CUDA_STAGING)))
        return e;
    be->staging = staging;
    if ((e = cudaMemGetInfo(&left, &memory)))
        return e;
    be->base.memory = memory;
    r = dsv2i_cuda_blas_open(&be->hooks, be->sm, &be->blas);
    if (r.call)
        return cudaErrorMemoryAllocation; /* its handle and workspace are what it needs */
    return make_steps(be);
}

const char *dsv2i_cuda_build(void)
{
    return DSV2I_BUILD;
}

int dsv2i_cuda_open(const struct dsv2i_hooks *hooks, const struct dsv2i_cuda_options *options, struct dsv2i_backend **out,
                    const char **why)
{
    struct dsv2i_cuda_thread previous;
    struct dsv2i_cuda *be;
    cudaError_t e;
    int n = 0;

    *out = NULL;
    if ((e = cudaGetDeviceCount(&n)) || options->device >= n) {
        cudaGetLastError();
        *why = e ? cudaGetErrorString(e) : "there is no such device";
        return -1;
    }
    be = hooks->alloc(hooks->user, sizeof *be, 64);
    if (!be) {
        *why = "no memory";
        return -1;
    }
    memset(be, 0, sizeof *be);
    be->base.op = &ops;
    be->base.logit_rows = 256;
    be->hooks = *hooks;
    be->device = options->device;
    be->stream = options->stream;
    be->invariant = options->invariant;
    pthread_mutex_init(&be->copying, NULL);
    atomic_init(&be->failure, "");
    previous = dsv2i_cuda_enter(be);
    be->fetches = hooks->alloc(hooks->user, DSV2I_CUDA_FETCHES * sizeof *be->fetches, 64);
    e = be->fetches ? open_card(be) : cudaErrorMemoryAllocation;
    dsv2i_cuda_leave(previous);
    if (e) {
        cudaGetLastError();
        *why = e == cudaErrorInvalidDevice           ? "the device is older than compute capability 8.0"
             : e == cudaErrorNoKernelImageForDevice ? "libdsv2 was built for other devices (-Dwith_cuda_archs)"
                                                    : cudaGetErrorString(e);
        op_close(&be->base);
        return -1;
    }
    *out = &be->base;
    return 0;
}

int dsv2i_cuda_devices(const char **why)
{
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);

    if (!e)
        return n;
    cudaGetLastError();
    *why = cudaGetErrorString(e);
    return 0;
}
