/* y = x / sqrt(mean(x^2) + eps) * w, a task per row.
 * SPDX-License-Identifier: MIT */
#include "cpu.h"

struct norm {
    float *y;
    const float *x, *w;
    size_t ldy, ldx;
    int32_t dim;
    float eps;
};

static void norm_row(struct dsv2i_cpu *be, const void *arg, int32_t row, int32_t thread)
{
    const struct norm *a = arg;

    be->inner.rms_norm(a->y + (size_t)row * a->ldy, a->x + (size_t)row * a->ldx, a->w, a->dim, a->eps);
}

void dsv2i_op_rms_norm(struct dsv2i_backend *base, float *y, int32_t ldy, const float *x, int32_t ldx, const float *w,
                       int32_t n, int32_t dim, float eps)
{
    struct norm a = { y, x, w, (size_t)ldy, (size_t)ldx, dim, eps };

    dsv2i_pool_run(dsv2i_cpu_of(base), norm_row, &a, n, 2.0 * n * dim);
}
