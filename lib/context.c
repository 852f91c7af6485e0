/* The context: memory hooks, log, backend.
 * SPDX-License-Identifier: MIT */
#include "context.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backend.h"
#include "params.h"

/* Physical memory in bytes; 0 if the system does not say. */
static uint64_t physical_memory(void)
{
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);

    return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
}

dsv2_status dsv2i_context_create(const dsv2_context_params *params, dsv2_context **out)
{
    dsv2_context_params p;
    struct dsv2i_hooks mem = dsv2i_heap;
    dsv2_context *ctx;
    dsv2_status status;

    dsv2_context_params_init(&p, sizeof p);
    DSV2I_TRY(dsv2i_params_take(&p, sizeof p, params, "dsv2_context_params"));
    if (p.n_threads < 0 || p.n_threads > 1024)
        return dsv2i_fail(DSV2_ERR_INVALID, "dsv2_context_params: n_threads: %d is not in 0..1024", p.n_threads);
    if (p.cpu_level < DSV2_CPU_BEST || p.cpu_level > DSV2_CPU_AVX512)
        return dsv2i_fail(DSV2_ERR_INVALID, "dsv2_context_params: cpu_level: %d is none of DSV2_CPU_*", p.cpu_level);
    if (p.backend != DSV2_BACKEND_CPU && p.backend != DSV2_BACKEND_CUDA)
        return dsv2i_fail(DSV2_ERR_INVALID, "dsv2_context_params: backend: %d is none of DSV2_BACKEND_*", p.backend);
    if (p.device < 0)
        return dsv2i_fail(DSV2_ERR_INVALID, "dsv2_context_params: device: %d is less than 0", p.device);
    if (p.invariant != 0 && p.invariant != 1)
        return dsv2i_fail(DSV2_ERR_INVALID, "dsv2_context_params: invariant: %d is neither 0 nor 1", p.invariant);
    if (p.reserved != 0)
        return dsv2i_fail(DSV2_ERR_INVALID, "dsv2_context_params: reserved: %d is not 0", p.reserved);
    if (!p.alloc != !p.free)
        return dsv2i_fail(DSV2_ERR_INVALID, "dsv2_context_params: alloc and free: give both or neither");
    if (p.alloc)
        mem = (struct dsv2i_hooks){p.alloc, p.free, p.alloc_user};

    ctx = dsv2i_calloc(&mem, 1, sizeof *ctx);
    if (!ctx)
        return dsv2i_fail(DSV2_ERR_NOMEM, "context: no memory");
    atomic_init(&ctx->refs, 1);
    ctx->pid = getpid();
    ctx->mem = mem;
    ctx->log = p.log;
    ctx->log_user = p.log_user;
    pthread_mutex_init(&ctx->turn.lock, NULL); /* neither can fail on Linux */
    pthread_cond_init(&ctx->turn.moved, NULL);
    status = dsv2i_backend_open(&ctx->mem, &p, &ctx->backend);
    if (status != DSV2_OK) {
        pthread_cond_destroy(&ctx->turn.moved);
        pthread_mutex_destroy(&ctx->turn.lock);
        dsv2i_free(&mem, ctx);
        return status;
    }
    ctx->memory_bytes = p.memory_bytes ? p.memory_bytes : (ctx->backend->memory ? ctx->backend->memory : physical_memory()) / 4 * 3;
    *out = ctx;
    return DSV2_OK;
}

void dsv2i_context_retain(dsv2_context *ctx)
{
    atomic_fetch_add_explicit(&ctx->refs, 1, memory_order_relaxed);
}

void dsv2i_context_release(dsv2_context *ctx)
{
    struct dsv2i_hooks mem;

    if (!ctx || atomic_fetch_sub_explicit(&ctx->refs, 1, memory_order_acq_rel) != 1)
        return;
    /* In a forked child the worker threads do not exist and cannot be joined: the backend's memory is left to the child's end. */
    if (ctx->pid == getpid()) {
        if (ctx->activations)
            ctx->backend->op->mem_free(ctx->backend, ctx->activations, ctx->activations_bytes);
        ctx->backend->op->close(ctx->backend);
        pthread_cond_destroy(&ctx->turn.moved);
        pthread_mutex_destroy(&ctx->turn.lock);
    }
    mem = ctx->mem;
    dsv2i_free(&mem, ctx);
}

void dsv2i_context_begin_turn(dsv2_context *ctx)
{
    uint64_t ticket;

    pthread_mutex_lock(&ctx->turn.lock);
    ticket = ctx->turn.taken++;
    while (ctx->turn.now != ticket)
        pthread_cond_wait(&ctx->turn.moved, &ctx->turn.lock);
    pthread_mutex_unlock(&ctx->turn.lock);
}

void dsv2i_context_end_turn(dsv2_context *ctx)
{
    pthread_mutex_lock(&ctx->turn.lock);
    ctx->turn.now++;
    pthread_cond_broadcast(&ctx->turn.moved);
    pthread_mutex_unlock(&ctx->turn.lock);
}

dsv2_status dsv2i_context_check(const dsv2_context *ctx)
{
    if (ctx->pid != getpid())
        return dsv2i_fail(DSV2_ERR_FORKED, "context: made by process %ld, used in its child %ld", (long)ctx->pid, (long)getpid());
    return DSV2_OK;
}

void dsv2i_log(const dsv2_context *ctx, int32_t level, const char *format, ...)
{
    char text[1024];
    va_list args;

    if (!ctx->log)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    ctx->log(ctx->log_user, level, text);
}
