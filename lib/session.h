/* One sequence: its pages, tokens, logits.  step.h advances it.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_SESSION_H
#define DSV2I_SESSION_H

#include "kv.h"

struct dsv2_session {
    dsv2_model *model;
    int32_t n_ctx, attention, n_batch;
    uint64_t cache_namespace;
    dsv2_progress_fn progress;
    void *progress_user;
    struct dsv2i_kv kv;         /* page table; a shared or own pool */
    int32_t *tokens;            /* (pos), grows; a step writes beyond pos */
    size_t tokens_capacity;
    int32_t pos, n_prompt;      /* tokens evaluated; the first n_prompt of them are prompt */
    float *logits;              /* (vocab) after token pos - 1 */
    int has_logits;
    atomic_int cancelled;
    int stepping;               /* it is in a step: not to be touched by a callback */
};

dsv2_status dsv2i_session_create(dsv2_model *m, const dsv2_session_params *params, dsv2_session **out);
void dsv2i_session_free(dsv2_session *s);
dsv2_status dsv2i_session_memory(const dsv2_session *s, dsv2_memory *out);
dsv2_status dsv2i_session_truncate(dsv2_session *s, size_t n);
dsv2_status dsv2i_session_fork(const dsv2_session *s, dsv2_session **out);

/* Fill memory for a model of this config with a session of these (validated) parameters; weights and other are the caller's.
 * Also chooses n_ctx when params->n_ctx is 0. */
dsv2_status dsv2i_session_estimate(const dsv2_context *ctx, const struct dsv2i_config *c, const dsv2_session_params *params,
                                   uint64_t weights, uint64_t other, dsv2_memory *out);

#endif
