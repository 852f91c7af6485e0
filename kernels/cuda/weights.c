/* Weights to the card: through two halves of pinned memory, one being filled while the other is copied.
 *
 * SPDX-License-Identifier: MIT */
#include <string.h>

#include "backend.h"

cudaError_t dsv2i_cuda_upload(struct dsv2i_cuda *be, void *to, const void *from, size_t bytes)
{
    cudaError_t e = cudaSuccess;

    for (size_t at = 0, n; at < bytes && !e; at += n) {
        const int half = be->half;
        char *stage = be->staging + (half ? DSV2I_CUDA_STAGING : 0);

        be->half = !half; /* also for the next weight: small ones overlap, too */
        n = bytes - at < DSV2I_CUDA_STAGING ? bytes - at : DSV2I_CUDA_STAGING;
        e = cudaEventSynchronize(be->staged[half]); /* what it held before has left it */
        if (e)
            break;
        memcpy(stage, (const char *)from + at, n);
        e = cudaMemcpyAsync((char *)to + at, stage, n, cudaMemcpyHostToDevice, be->copies);
        if (!e)
            e = cudaEventRecord(be->staged[half], be->copies);
    }
    atomic_store(&be->uploaded, 1);
    return e;
}

static size_t align_16(size_t bytes)
{
    return (bytes + 15) & ~(size_t)15;
}

static size_t data_bytes(const struct dsv2i_weight *w)
{
    return (size_t)w->rows * (size_t)w->cols * dsv2i_dtype_size(w->dtype);
}

static size_t scale_bytes(const struct dsv2i_weight *w)
{
    if (w->dtype != DSV2I_F8_E4M3)
        return 0;
    return (size_t)((w->rows - 1) / w->scale_rows + 1) * (size_t)((w->cols - 1) / w->scale_cols + 1) * sizeof *w->scale;
}

/* Scales of squares stand there a second time, as cuBLASLt wants them. */
static size_t padded_bytes(const struct dsv2i_weight *w)
{
    return dsv2i_cuda_scaling_of(w) == DSV2I_CUDA_SCALE_BLOCKS
               ? (size_t)((w->rows - 1) / 128 + 1) * (size_t)dsv2i_cuda_scale_stride(w->cols) * sizeof *w->scale : 0;
}

int32_t dsv2i_cuda_scaling_of(const struct dsv2i_weight *w)
{
    if (w->dtype != DSV2I_F8_E4M3)
        return 0;
    if (w->scale_cols == w->cols && w->scale_rows == w->rows)
        return DSV2I_CUDA_SCALE_ALL;
    if (w->scale_cols == w->cols && w->scale_rows == 1)
        return DSV2I_CUDA_SCALE_ROWS;
    return w->scale_rows == 128 && w->scale_cols == 128 ? DSV2I_CUDA_SCALE_BLOCKS : 0;
}

const float *dsv2i_cuda_blas_scales(const struct dsv2i_weight *w)
{
    return (const float *)(const void *)((const char *)w->scale + (padded_bytes(w) ? align_16(scale_bytes(w)) : 0));
}

/* kv_b of F8_E4M3 becomes bf16: attention multiplies nothing else. */
static int widens(const struct dsv2i_weight *w, int attention)
{
    return attention && w->dtype == DSV2I_F8_E4M3;
}

size_t dsv2i_cuda_weight_bytes(struct dsv2i_backend *base, const struct dsv2i_weight *w, int attention)
{
    (void)base;
    if (widens(w, attention))
        return (size_t)w->rows * (size_t)w->cols * sizeof(uint16_t);
    return align_16(data_bytes(w)) + align_16(scale_bytes(w)) + padded_bytes(w);
}

/* Data, and scales behind it, at to; w is there then. */
static cudaError_t upload_weight(struct dsv2i_cuda *be, void *to, struct dsv2i_weight *w)
{
    char *scales = (char *)to + align_16(data_bytes(w));
    cudaError_t e = dsv2i_cuda_upload(be, to, w->data, data_bytes(w));

    if (!e && scale_bytes(w))
        e = dsv2i_cuda_upload(be, scales, w->scale, scale_bytes(w));
    if (padded_bytes(w)) {
        size_t row = (size_t)((w->cols - 1) / 128 + 1), stride = (size_t)dsv2i_cuda_scale_stride(w->cols) * sizeof *w->scale;
        char *at = scales + align_16(scale_bytes(w));

        for (const float *from = w->scale; !e && at < scales + align_16(scale_bytes(w)) + padded_bytes(w); at += stride, from += row)
            e = dsv2i_cuda_upload(be, at, from, row * sizeof *from);
    }
    w->data = to;
    w->scale = scale_bytes(w) ? (const float *)(const void *)scales : NULL;
    return e;
}

static cudaError_t upload_widened(struct dsv2i_cuda *be, void *to, struct dsv2i_weight *w)
{
    const struct dsv2i_cuda_launch launch = {.stream = be->copies, .max_rows = 1, .sm = be->sm, .n_sms = be->n_sms};
    void *narrow = NULL;
    cudaError_t e = cudaMalloc(&narrow, dsv2i_cuda_weight_bytes(&be->base, w, 0));

    if (e)
        return e;
    e = upload_weight(be, narrow, w);
    if (!e)
        e = dsv2i_cuda_widen(&launch, to, w);
    if (!e)
        e = cudaStreamSynchronize(be->copies);
    cudaFree(narrow);
    w->dtype = DSV2I_BF16;
    w->data = to;
    w->scale = NULL;
    return e;
}

int dsv2i_cuda_weight_put(struct dsv2i_backend *base, void *to, struct dsv2i_weight *w, int attention)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    struct dsv2i_cuda_thread previous = dsv2i_cuda_enter(be);
    cudaError_t e;

    pthread_mutex_lock(&be->copying);
    e = widens(w, attention) ? upload_widened(be, to, w) : upload_weight(be, to, w);
    pthread_mutex_unlock(&be->copying);
    dsv2i_cuda_leave(previous);
    return dsv2i_cuda_result(be, e);
}

size_t dsv2i_cuda_table_bytes(struct dsv2i_backend *base, int32_t n)
{
    (void)base;
    return (size_t)n * sizeof(struct dsv2i_cuda_expert);
}

static int alike(const struct dsv2i_weight *a, const struct dsv2i_weight *b)
{
    return a->dtype == b->dtype && a->scale_rows == b->scale_rows && a->scale_cols == b->scale_cols;
}

int dsv2i_cuda_table_put(struct dsv2i_backend *base, void *to, struct dsv2i_ffn *ffn, int32_t n)
{
    struct dsv2i_cuda *be = dsv2i_cuda_of(base);
    struct dsv2i_cuda_thread previous = dsv2i_cuda_enter(be);
    cudaError_t e = cudaSuccess;

    pthread_mutex_lock(&be->copying);
    for (int32_t i = 0; i < n && !e; i++) {
        const struct dsv2i_ffn *f = &ffn[i];
        const struct dsv2i_cuda_expert expert = {f->gate.data, f->up.data, f->down.data, f->gate.scale, f->up.scale, f->down.scale};

        if (!alike(&f->gate, &ffn->gate) || !alike(&f->up, &ffn->gate) || f->down.dtype != ffn->gate.dtype || !alike(&f->down, &ffn->down)) {
            atomic_store(&be->failure, "CUDA runs no layer whose gate, up and down weights differ in type or scales");
            e = cudaErrorInvalidValue;
            break;
        }
        e = dsv2i_cuda_upload(be, (char *)to + (size_t)i * sizeof expert, &expert, sizeof expert);
    }
    pthread_mutex_unlock(&be->copying);
    dsv2i_cuda_leave(previous);
    if (e == cudaErrorInvalidValue)
        return -1;
    ffn->table = to;
    return dsv2i_cuda_result(be, e);
}
