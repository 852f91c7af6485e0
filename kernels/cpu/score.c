/* Where a target token stands in log_softmax(head x), for many rows: a few thousand columns of logits at a time, an
 * online softmax over them, a count of the greater ones and the running maximum.
 *
 * SPDX-License-Identifier: MIT */
#include <math.h>

#include "cpu.h"

struct stand {
    float target, max, sum, top; /* logit of the target; online softmax; greatest logit */
    int32_t above, top_token;    /* logits greater than the target's */
};

size_t dsv2i_score_floats(const struct dsv2i_shape *shape, int32_t n_rows)
{
    size_t rows = (size_t)dsv2i_min(n_rows, SCORE_ROWS), columns = (size_t)dsv2i_min(shape->vocab_size, SCORE_COLUMNS);

    return dsv2i_size_mul(rows, columns + sizeof(struct stand) / sizeof(float));
}

struct score {
    struct stand *stand;
    float *logits;       /* (rows, columns) */
    const float *x;
    const struct dsv2i_weight *head;
    const int32_t *target;
    int32_t begin, columns;
};

static void start_row(struct dsv2i_cpu *be, const void *arg, int32_t row, int32_t thread)
{
    const struct score *a = arg;
    const struct dsv2i_weight *w = a->head;
    const float *x = a->x + (size_t)row * (size_t)w->cols;
    struct stand *s = &a->stand[row];

    *s = (struct stand){ .max = -INFINITY, .top = -INFINITY };
    be->inner.dot(&s->target, 1, &x, 1, w, a->target[row], 1);
}

static void add_columns(struct dsv2i_cpu *be, const void *arg, int32_t row, int32_t thread)
{
    const struct score *a = arg;
    float *logits = a->logits + (size_t)row * (size_t)a->columns, max = -INFINITY, corr;
    struct stand *s = &a->stand[row];
    int32_t above = 0;

    for (int32_t j = 0; j < a->columns; j++) {
        above += logits[j] > s->target;
        max = logits[j] > max ? logits[j] : max;
    }
    s->above += above;
    if (max > s->top) {
        int32_t j = 0;

        while (logits[j] != max)
            j++;
        s->top = max;
        s->top_token = a->begin + j;
    }
    be->inner.softmax(logits, a->columns, 1.0f, &s->max, &s->sum, &corr);
}

void dsv2i_op_score(struct dsv2i_backend *base, struct dsv2i_score *out, const float *x, const struct dsv2i_weight *head,
                    const int32_t *target, int32_t n)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);

    for (int32_t i0 = 0; i0 < n; i0 += SCORE_ROWS) {
        int32_t m = dsv2i_min(SCORE_ROWS, n - i0);
        struct score a = { .x = x + (size_t)i0 * (size_t)head->cols, .head = head, .target = target + i0 };

        a.stand = (struct stand *)(be->scratch + be->plan.shared);
        a.logits = (float *)(a.stand + m);
        dsv2i_pool_run(be, start_row, &a, m, (double)m * head->cols);
        for (a.begin = 0; a.begin < head->rows; a.begin += SCORE_COLUMNS) {
            a.columns = dsv2i_min(SCORE_COLUMNS, head->rows - a.begin);
            dsv2i_linear_part(be, a.logits, a.x, head, a.begin, a.columns, m, 0);
            dsv2i_pool_run(be, add_columns, &a, m, 10.0 * m * a.columns);
        }
        for (int32_t i = 0; i < m; i++) {
            const struct stand *s = &a.stand[i];
            float log_sum = logf(s->sum);

            out[i0 + i] = (struct dsv2i_score){ (s->target - s->max) - log_sum, s->above + 1, s->top_token,
                                                (s->top - s->max) - log_sum };
        }
    }
}
