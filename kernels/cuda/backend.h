/* The CUDA backend's host side: its state, and what its files share.
 *
 *   backend.c   opening a card, memory, copies, the table of operations
 *   weights.c   weights into device memory
 *   step.c      a step: what changes goes to the device, operations are recorded as a graph or launched one by one, results come back
 *   ops.c       each operation: which kernels
 *   choose.c    tokens from logits, on the device
 *   blas.c      products by cuBLASLt
 *
 * Everything goes to one stream, in the order of the calls; the host waits once, in finish.  Other threads may meanwhile copy and
 * allocate, which uses a stream of its own.  The device that the calling thread had set is set again before a call returns, and
 * nothing that is done meanwhile spoils a capture of the host's.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CUDA_BACKEND_H
#define DSV2I_CUDA_BACKEND_H

#include <pthread.h>
#include <stdatomic.h>

#include "blas.h"

/* Memory of one kind that only grows. */
struct dsv2i_cuda_block {
    char *at;
    size_t bytes;
};

/* Where things lie in the scratch block, in bytes from its beginning. */
struct dsv2i_cuda_plan {
    size_t rope;    /* (rows, qk_rope_head_dim) cos and sin */
    size_t narrow;  /* (rows, widest) activations in bf16 or e4m3, */
    size_t scales;  /* whose scales are here, */
    size_t greatest; /* found by means of this */
    size_t mla;     /* how the step's contexts are split; of the releases' heads only */
    size_t shared;  /* of one operation at a time */
    size_t total;
};

/* What sequences a step has: in the absorbed form (DSV2I_PAGES_* of these, and whether one has several rows), expanded, and of either form
 * with pages of F32. */
#define DSV2I_CUDA_WINDOW 2048 /* positions whose keys and values are there at a time for expanded sequences */
enum { DSV2I_CUDA_LATENT = DSV2I_PAGES_ALL, DSV2I_CUDA_EXPANDED = 4, DSV2I_CUDA_F32_PAGES = 8, DSV2I_CUDA_SEVERAL = 16 };

/* A plain step of a model, recorded. */
struct dsv2i_cuda_graph {
    const void *model; /* NULL: none */
    int32_t rows;      /* at most so many */
    int32_t kinds;     /* of sequences, DSV2I_CUDA_* */
    cudaGraphExec_t exec; /* NULL: the next such step is to be recorded, unless */
    int32_t refused;   /* that has failed: then they are launched one by one */
};

/* What CUDA keeps for a thread. */
struct dsv2i_cuda_thread {
    int device; /* -1: the one that is */
    enum cudaStreamCaptureMode mode;
};

/* Of the host's memory that results go to first: from there to where they are wanted, in finish. */
struct dsv2i_cuda_fetch {
    void *to;
    const char *from;
    size_t bytes;
};

enum { DSV2I_CUDA_GRAPHS = 64, DSV2I_CUDA_FETCHES = 2 * DSV2I_MOST_ROWS };

struct dsv2i_cuda {
    struct dsv2i_backend base;
    struct dsv2i_hooks hooks;
    int device, sm, n_sms, invariant;
    cudaStream_t stream, copies; /* of steps; of everything else */
    int own_stream;
    pthread_mutex_t copying;     /* guards copies and staging */
    struct dsv2i_cuda_blas *blas;
    char *staging;               /* pinned, two halves of DSV2I_CUDA_STAGING bytes */
    cudaEvent_t staged[2];       /* what was copied from a half has left it */
    int half;                    /* the next to be used */
    atomic_int uploaded;         /* something ever was */
    _Atomic(const char *) failure;

    struct dsv2i_cuda_step *step;   /* on the device: the step's, then, to be used for n rows whatever they are, one with n_rows = n for
                                       each n of 0..DSV2I_MOST_ROWS */
    struct dsv2i_cuda_block scratch, lists, pinned_lists, fetched; /* lists: what step points to */
    struct dsv2i_cuda_block choices, pinned_choices, choice_scratch; /* of choose.c; the scratch is for so many rows and tokens: */
    int32_t chosen_rows, chosen_vocab;
    struct dsv2i_cuda_graph graphs[DSV2I_CUDA_GRAPHS];
    int32_t next_graph;          /* the one to give up for the next */

    /* the step that is under way */
    cudaError_t error;
    char text[160];              /* of the error */
    struct dsv2i_cuda_thread previous;
    const struct dsv2i_shape *shape;
    const struct dsv2i_batch *batch;
    struct dsv2i_cuda_plan plan;
    int32_t max_rows, recording;
    int32_t first_of_kind;       /* no such step is known; the next one will be recorded if this one goes well */
    int32_t kinds;
    struct dsv2i_cuda_prefill prefill; /* of the expanded sequences */
    const float *narrowed;       /* what is in scratch in bf16, or */
    int32_t narrowed_as;         /* in e4m3 with such scales, if not 0 */
    struct dsv2i_cuda_graph *replay; /* what submit launches, or NULL */
    struct dsv2i_cuda_fetch *fetches; /* (DSV2I_CUDA_FETCHES) */
    int32_t n_fetches, choosing; /* choosing: choices are in use */
    size_t fetched_bytes;
};

#define DSV2I_CUDA_STAGING ((size_t)8 << 20)

static inline struct dsv2i_cuda *dsv2i_cuda_of(struct dsv2i_backend *be)
{
    return (struct dsv2i_cuda *)be;
}

/* Note the first error of the step; nonzero when there has been one.  check_call: of another library, if call is not NULL. */
int dsv2i_cuda_check(struct dsv2i_cuda *be, cudaError_t error);
int dsv2i_cuda_check_call(struct dsv2i_cuda *be, const char *call, int code);
/* Rows that a plain step of n_rows is launched for, so that few graphs serve all. */
int32_t dsv2i_cuda_bucket(int32_t n_rows);
/* Rows of memory that n rows of activations need. */
int32_t dsv2i_cuda_memory_rows(struct dsv2i_backend *be, int32_t n);
/* Make the card the calling thread's, free to allocate and to wait while the host captures; returns what was, for leave. */
struct dsv2i_cuda_thread dsv2i_cuda_enter(struct dsv2i_cuda *be);
void dsv2i_cuda_leave(struct dsv2i_cuda_thread previous);
/* 0, or -1 with the text of the error as the backend's failure. */
int dsv2i_cuda_result(struct dsv2i_cuda *be, cudaError_t error);

/* Device memory (pinned: of the host) of so many bytes, if there is less; what was there is lost.  0, or -1 and all is as before. */
int dsv2i_cuda_grow(struct dsv2i_cuda *be, struct dsv2i_cuda_block *block, size_t bytes, int pinned);
void dsv2i_cuda_drop(struct dsv2i_cuda_block *block, int pinned);

/* Host memory to device memory through the staging halves; returns when from may change, not when it has arrived. */
cudaError_t dsv2i_cuda_upload(struct dsv2i_cuda *be, void *to, const void *from, size_t bytes);

/* How cuBLASLt can take a weight's scales (enum dsv2i_cuda_scaling; 0: not), and where it finds them. */
int32_t dsv2i_cuda_scaling_of(const struct dsv2i_weight *w);
const float *dsv2i_cuda_blas_scales(const struct dsv2i_weight *w);

size_t dsv2i_cuda_weight_bytes(struct dsv2i_backend *be, const struct dsv2i_weight *w, int attention);
int dsv2i_cuda_weight_put(struct dsv2i_backend *be, void *to, struct dsv2i_weight *w, int attention);
size_t dsv2i_cuda_table_bytes(struct dsv2i_backend *be, int32_t n);
int dsv2i_cuda_table_put(struct dsv2i_backend *be, void *to, struct dsv2i_ffn *ffn, int32_t n);

/* The scratch of launches for up to max_rows rows. */
struct dsv2i_cuda_plan dsv2i_cuda_make_plan(const struct dsv2i_cuda *be, const struct dsv2i_shape *shape, int32_t max_rows);
int dsv2i_cuda_begin(struct dsv2i_backend *be, const struct dsv2i_shape *shape, const struct dsv2i_batch *batch);
int dsv2i_cuda_submit(struct dsv2i_backend *be);
void dsv2i_cuda_fetch(struct dsv2i_backend *be, void *to, const void *from, size_t bytes);
int dsv2i_cuda_finish(struct dsv2i_backend *be);
void dsv2i_cuda_forget(struct dsv2i_backend *be, const void *model);

/* Wait, and hand out what has been fetched. */
void dsv2i_cuda_deliver(struct dsv2i_cuda *be);
struct dsv2i_cuda_launch dsv2i_cuda_make_launch(const struct dsv2i_cuda *be, int32_t max_rows);

/* Before the first operation: the rows' angles. */
void dsv2i_cuda_start(struct dsv2i_cuda *be);

void dsv2i_cuda_op_embed(struct dsv2i_backend *be, float *x, const struct dsv2i_weight *table);
void dsv2i_cuda_op_rms_norm(struct dsv2i_backend *be, float *y, int32_t ldy, const float *x, int32_t ldx, const float *w, int32_t n,
                            int32_t dim, float eps);
void dsv2i_cuda_op_linear(struct dsv2i_backend *be, float *y, const float *x, const struct dsv2i_weight *w, int32_t n, int accumulate);
void dsv2i_cuda_op_mla_prepare(struct dsv2i_backend *be, float *q, const float *kva, const struct dsv2i_mla *mla, int32_t layer);
void dsv2i_cuda_op_mla_attend(struct dsv2i_backend *be, float *o, const float *q, const struct dsv2i_mla *mla, int32_t layer);
void dsv2i_cuda_op_ffn(struct dsv2i_backend *be, float *y, const float *x, const struct dsv2i_ffn *w, int32_t n);
void dsv2i_cuda_op_moe_route(struct dsv2i_backend *be, int32_t *idx, float *weight, const float *x, const struct dsv2i_weight *gate,
                             const struct dsv2i_route *route, int32_t n);
void dsv2i_cuda_op_moe_experts(struct dsv2i_backend *be, float *y, const float *x, const struct dsv2i_ffn *experts, const int32_t *idx,
                               const float *weight, int32_t n, int32_t top_k);
void dsv2i_cuda_op_score(struct dsv2i_backend *be, struct dsv2i_score *out, const float *x, const struct dsv2i_weight *head,
                         const int32_t *target, int32_t n);
void dsv2i_cuda_op_sample(struct dsv2i_backend *be, int32_t *token, float *logprob, const float *logits, int32_t vocab,
                          const uint32_t *is_token, const struct dsv2i_sampling *const *how, int32_t n);

#endif
