/* The context: memory hooks, log, and the backend, which steps use in turn.
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
    struct {                        /* one step at a time uses backend and activations, in the order in which they came */
        pthread_mutex_t lock;
        pthread_cond_t moved;
        uint64_t taken, now;        /* tickets */
    } turn;
    void *activations;              /* shared by all models and sessions: see forward.h; used in a turn */
    size_t activations_bytes;
};

dsv2_status dsv2i_context_create(const dsv2_context_params *params, dsv2_context **out);
void dsv2i_context_retain(dsv2_context *ctx);
void dsv2i_context_release(dsv2_context *ctx);
/* Wait for a turn with the backend, and end it.  Threads get theirs in the order of their calls: none starves. */
void dsv2i_context_begin_turn(dsv2_context *ctx);
void dsv2i_context_end_turn(dsv2_context *ctx);
/* FORKED in a child process. */
dsv2_status dsv2i_context_check(const dsv2_context *ctx);
__attribute__((format(printf, 3, 4))) void dsv2i_log(const dsv2_context *ctx, int32_t level, const char *format, ...);

#endif
