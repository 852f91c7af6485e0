/* A step.  What changes from one to the next is copied to the device first; then come the operations, each a launch or a few.  The second
 * plain step of a model and size is recorded while they are called, and from then on replayed by one launch: kernels read rows, positions
 * and pages from the copied lists.  The first is not: what is done once (loading kernels, planning products) does not go with recording.
 *
 * SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>

#include "backend.h"

int dsv2i_cuda_check(struct dsv2i_cuda *be, cudaError_t error)
{
    return dsv2i_cuda_check_call(be, error ? cudaGetErrorString(error) : NULL, error);
}

int dsv2i_cuda_check_call(struct dsv2i_cuda *be, const char *call, int code)
{
    if (call && !be->error) {
        be->error = cudaErrorLaunchFailure;
        snprintf(be->text, sizeof be->text, "CUDA: %s (%d)", call, code);
    }
    return be->error != cudaSuccess;
}

int32_t dsv2i_cuda_bucket(int32_t n_rows)
{
    int32_t rows = 1;

    while (rows < n_rows)
        rows *= 2;
    return rows;
}

/* ---- The lists of a step ---------------------------------------------------------------------------------------------- */

static int32_t pages_of(int32_t positions)
{
    return (positions + DSV2I_PAGE_TOKENS - 1) / DSV2I_PAGE_TOKENS;
}

/* Take count elements of a size, a power of two, from *used on; returns their offset. */
static size_t take(size_t *used, size_t count, size_t size)
{
    size_t at = (*used + size - 1) & ~(size - 1);

    *used = at + count * size;
    return at;
}

/* A sequence with so many rows, the last at position end - 1. */
static void note_kind(struct dsv2i_cuda *be, const struct dsv2i_seq *seq, int32_t rows, int32_t end)
{
    if (seq->kv_type == DSV2I_KV_F32) {
        be->kinds |= DSV2I_CUDA_F32_PAGES;
    } else if (seq->form == DSV2I_ABSORBED) {
        be->kinds |= seq->kv_type == DSV2I_KV_BF16 ? DSV2I_PAGES_BF16 : DSV2I_PAGES_CODED;
        be->kinds |= rows > 1 ? DSV2I_CUDA_SEVERAL : 0;
    } else {
        be->kinds |= DSV2I_CUDA_EXPANDED;
        be->prefill.seqs++;
        be->prefill.rows += rows;
        be->prefill.context += (end + 127) / 128 * 128;
    }
}

/* Fill the pinned lists and copy them. */
static cudaError_t send_lists(struct dsv2i_cuda *be)
{
    const struct dsv2i_batch *b = be->batch;
    struct dsv2i_cuda_step *s;
    size_t rows = (size_t)b->n_rows, seqs = (size_t)b->n_seqs, pages = 0, pairs = (size_t)be->shape->qk_rope_head_dim / 2;
    size_t used = sizeof *s, inv_freq, tables, seq_list, token, pos, seq, first; /* s itself goes to a place that does not move */
    struct dsv2i_seq *to_seqs;
    void **to_table;
    int32_t *to_first;
    cudaError_t e;

    for (int32_t i = 0; i < b->n_rows; i++)
        if (i + 1 == b->n_rows || b->seq[i + 1] != b->seq[i])
            pages += (size_t)pages_of(b->pos[i] + 1);
    inv_freq = take(&used, pairs, sizeof(double));
    tables = take(&used, pages, sizeof(void *));
    seq_list = take(&used, seqs * (sizeof *to_seqs / sizeof(void *)), sizeof(void *));
    token = take(&used, rows, sizeof(int32_t));
    pos = take(&used, rows, sizeof(int32_t));
    seq = take(&used, rows, sizeof(int32_t));
    first = take(&used, seqs + 1, sizeof(int32_t));
    if (used > be->lists.bytes && (dsv2i_cuda_grow(be, &be->pinned_lists, 2 * used, 1) || dsv2i_cuda_grow(be, &be->lists, 2 * used, 0)))
        return cudaErrorMemoryAllocation;

    char *from = be->pinned_lists.at, *on_device = be->lists.at;
    s = (struct dsv2i_cuda_step *)(void *)from;
    to_seqs = (struct dsv2i_seq *)(void *)(from + seq_list);
    to_table = (void **)(void *)(from + tables);
    to_first = (int32_t *)(void *)(from + first);
    *s = (struct dsv2i_cuda_step){
        .n_rows = b->n_rows,
        .n_seqs = b->n_seqs,
        .token = (const int32_t *)(void *)(on_device + token),
        .pos = (const int32_t *)(void *)(on_device + pos),
        .seq = (const int32_t *)(void *)(on_device + seq),
        .first = (const int32_t *)(void *)(on_device + first),
        .seqs = (const struct dsv2i_seq *)(void *)(on_device + seq_list),
        .rope = (float *)(void *)(be->scratch.at + be->plan.rope),
        .inv_freq = (const double *)(void *)(on_device + inv_freq),
    };
    memcpy(from + inv_freq, be->shape->inv_freq, pairs * sizeof(double));
    memcpy(from + token, b->token, rows * sizeof(int32_t));
    memcpy(from + pos, b->pos, rows * sizeof(int32_t));
    memcpy(from + seq, b->seq, rows * sizeof(int32_t));
    be->kinds = 0;
    be->prefill = (struct dsv2i_cuda_prefill){.window = DSV2I_CUDA_WINDOW};
    for (int32_t i = 0, n = 0; i < b->n_rows; i++) {
        int32_t q = b->seq[i], count = pages_of(b->pos[i] + 1);

        if (i == 0 || b->seq[i - 1] != q)
            to_first[q] = i;
        if (i + 1 < b->n_rows && b->seq[i + 1] == q)
            continue;
        to_seqs[q] = b->seqs[q];
        to_seqs[q].page = (void *const *)(void *)(on_device + tables) + n;
        memcpy(to_table + n, b->seqs[q].page, (size_t)count * sizeof *to_table);
        n += count;
        note_kind(be, &b->seqs[q], i + 1 - to_first[q], b->pos[i] + 1);
    }
    to_first[b->n_seqs] = b->n_rows;
    e = cudaMemcpyAsync(on_device, from, used, cudaMemcpyHostToDevice, be->stream);
    return e ? e : cudaMemcpyAsync(be->step, s, sizeof *s, cudaMemcpyHostToDevice, be->stream);
}

/* ---- Graphs ------------------------------------------------------------------------------------------------------------ */

static void drop_graph(struct dsv2i_cuda_graph *g)
{
    if (g->exec)
        cudaGraphExecDestroy(g->exec);
    *g = (struct dsv2i_cuda_graph){0};
}

static struct dsv2i_cuda_graph *find_graph(struct dsv2i_cuda *be)
{
    for (int32_t i = 0; i < DSV2I_CUDA_GRAPHS; i++)
        if (be->graphs[i].model == be->batch->model && be->graphs[i].rows == be->max_rows && be->graphs[i].kinds == be->kinds)
            return &be->graphs[i];
    return NULL;
}

/* Note that such a step has been seen: the next is recorded. */
static void expect_another(struct dsv2i_cuda *be)
{
    struct dsv2i_cuda_graph *g = &be->graphs[be->next_graph];

    be->next_graph = (be->next_graph + 1) % DSV2I_CUDA_GRAPHS;
    drop_graph(g);
    *g = (struct dsv2i_cuda_graph){.model = be->batch->model, .rows = be->max_rows, .kinds = be->kinds};
}

void dsv2i_cuda_forget(struct dsv2i_backend *base, const void *model)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    struct dsv2i_cuda_thread previous = dsv2i_cuda_enter(be);

    for (int32_t i = 0; i < DSV2I_CUDA_GRAPHS; i++)
        if (!model || be->graphs[i].model == model)
            drop_graph(&be->graphs[i]);
    dsv2i_cuda_leave(previous);
}

/* What was captured since begin, as a graph, or NULL; the stream is an ordinary one again. */
static cudaGraph_t end_capture(struct dsv2i_cuda *be)
{
    cudaGraph_t graph = NULL;

    be->recording = 0;
    if (cudaStreamEndCapture(be->stream, &graph))
        cudaGetLastError();
    return graph;
}

/* ---- The step ------------------------------------------------------------------------------------------------------------ */

int dsv2i_cuda_begin(struct dsv2i_backend *base, const struct dsv2i_shape *shape, const struct dsv2i_batch *batch)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    struct dsv2i_cuda_graph *g = NULL;

    be->previous = dsv2i_cuda_enter(be);
    be->error = cudaSuccess;
    be->shape = shape;
    be->batch = batch;
    be->max_rows = batch->plain ? dsv2i_cuda_bucket(batch->n_rows) : batch->n_rows;
    be->plan = dsv2i_cuda_make_plan(be, shape, be->max_rows);
    be->replay = NULL;
    be->first_of_kind = 0;
    be->n_fetches = 0;
    be->fetched_bytes = 0;
    be->choosing = 0;
    for (int i = 0; i < 2 && atomic_load(&be->uploaded); i++) /* weights may still be on their way */
        dsv2i_cuda_check(be, cudaStreamWaitEvent(be->stream, be->staged[i], 0));
    if (be->error || dsv2i_cuda_check(be, send_lists(be)))
        return 0;
    if (batch->plain && !(be->kinds & DSV2I_CUDA_EXPANDED)) { /* what expanded sequences launch depends on their length */
        g = find_graph(be);
        if (g && g->exec) {
            be->replay = g;
            return 1;
        }
        be->first_of_kind = !g;
        be->recording = g && !g->refused && !cudaStreamBeginCapture(be->stream, cudaStreamCaptureModeThreadLocal);
        if (g && !be->recording) { /* the host's stream may be one that cannot be captured */
            cudaGetLastError();
            g->refused = 1;
        }
    }
    dsv2i_cuda_start(be);
    return 0;
}

/* A capture fails for reasons that are not the step's: the host synchronizes the device in another thread, or there is no memory for the
 * graph.  Nothing has been done then. */
int dsv2i_cuda_submit(struct dsv2i_backend *base)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);

    if (be->recording) {
        struct dsv2i_cuda_graph *g = find_graph(be);
        cudaGraph_t graph = end_capture(be);

        if (graph && !be->error && !cudaGraphInstantiate(&g->exec, graph, 0))
            be->replay = g;
        if (graph)
            cudaGraphDestroy(graph);
        if (!be->replay) {
            cudaGetLastError();
            g->exec = NULL;
            g->refused = 1;
            be->error = cudaSuccess; /* of operations that were not done */
            return 1;
        }
    }
    if (be->replay && !be->error)
        dsv2i_cuda_check(be, cudaGraphLaunch(be->replay->exec, be->stream));
    if (be->first_of_kind && !be->error)
        expect_another(be);
    return 0;
}

void dsv2i_cuda_deliver(struct dsv2i_cuda *be)
{
    if (!dsv2i_cuda_check(be, cudaStreamSynchronize(be->stream)))
        for (int32_t i = 0; i < be->n_fetches; i++)
            memcpy(be->fetches[i].to, be->fetches[i].from, be->fetches[i].bytes);
    be->n_fetches = 0;
    be->fetched_bytes = 0;
}

void dsv2i_cuda_fetch(struct dsv2i_backend *base, void *to, const void *from, size_t bytes)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    char *at;

    if (be->error)
        return;
    if (be->n_fetches == DSV2I_CUDA_FETCHES || be->fetched_bytes + bytes > be->fetched.bytes) /* only where many scores are wanted */
        dsv2i_cuda_deliver(be);
    if (be->error || (bytes > be->fetched.bytes && dsv2i_cuda_check(be, cudaErrorInvalidValue)))
        return;
    at = be->fetched.at + be->fetched_bytes;
    if (dsv2i_cuda_check(be, cudaMemcpyAsync(at, from, bytes, cudaMemcpyDeviceToHost, be->stream)))
        return;
    be->fetches[be->n_fetches++] = (struct dsv2i_cuda_fetch){to, at, bytes};
    be->fetched_bytes += (bytes + 63) & ~(size_t)63;
}

int dsv2i_cuda_finish(struct dsv2i_backend *base)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    int result;

    if (be->recording) { /* cancelled, or failed, before submit */
        cudaGraph_t graph = end_capture(be);

        if (graph)
            cudaGraphDestroy(graph);
    }
    dsv2i_cuda_deliver(be);
    be->shape = NULL;
    be->batch = NULL;
    result = be->error ? -1 : 0;
    if (result) {
        cudaGetLastError(); /* not for the host program to find */
        atomic_store(&be->failure, be->text);
    }
    dsv2i_cuda_leave(be->previous);
    return result;
}
