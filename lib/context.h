/* The context: memory hooks, log, and the backend with its step lock.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CONTEXT_H
#define DSV2I_CONTEXT_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "mem.h"
#include "status.h"

struct dsv2_context {
    atomic_int refs;
    pid_t pid;                      /* the process that made it; see dsv2i_context_check */
    struct dsv2i_hooks mem;
    dsv2_log_fn log;
    void *log_user;
    uint64_t memory_bytes;
    struct dsv2i_backend *backend;
    pthread_mutex_t step;           /* held from begin to finish: one step at a time uses backend and activations */
    void *activations;              /* shared by all models and sessions: see forward.h; guarded by step */
    size_t activations_bytes;
};

dsv2_status dsv2i_context_create(const dsv2_context_params *params, dsv2_context **out);
void dsv2i_context_retain(dsv2_context *ctx);
void dsv2i_context_release(dsv2_context *ctx);
/* FORKED in a child process. */
dsv2_status dsv2i_context_check(const dsv2_context *ctx);
__attribute__((format(printf, 3, 4))) void dsv2i_log(const dsv2_context *ctx, int32_t level, const char *format, ...);

#endif
