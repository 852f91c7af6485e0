/* The one way to advance sessions.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_STEP_H
#define DSV2I_STEP_H

#include "session.h"

/* A session and the tokens to append to it. */
struct dsv2i_member {
    dsv2_session *s;
    const int32_t *tokens;
    size_t n;
    int32_t decoded;            /* they are output, not prompt */
    int32_t no_logits;
    dsv2_token_score *scores;   /* (n), score_size bytes apart; NULL: not wanted */
    size_t score_size;
    int32_t sampled;            /* choose a token after the last one, by */
    dsv2_sample_params sample;
    int32_t token;              /* set by the step, too: the choice, and */
    float logprob;
    dsv2_status status;         /* set by the step */
    /* While the step runs: */
    int32_t from, at, end;      /* positions to be computed, and those of them that still are */
    int32_t form;               /* enum dsv2i_attention */
    int32_t on_backend;         /* it is the backend that chooses, by */
    struct dsv2i_sampling sampling;
    void *lists;                /* of sampling */
    struct dsv2i_page *kept;    /* NULL, or that of the last token, which is computed again */
    int32_t *outgrown;          /* the session's history before it grew; tokens may lie in it */
};

/* Advance n different sessions of one model.  OK if all went well, else the status of the member that failed last, of which
 * dsv2_last_error() tells, too.  A member that failed is as before. */
dsv2_status dsv2i_step(dsv2_model *m, struct dsv2i_member *members, size_t n);

#endif
