/* x = the tokens' rows of the embedding table.
 * SPDX-License-Identifier: MIT */
#include "cpu.h"

void dsv2i_op_embed(struct dsv2i_backend *base, float *x, const struct dsv2i_weight *table)
{
    struct dsv2i_cpu *be = dsv2i_cpu_of(base);

    for (int32_t i = 0; i < be->batch->n_rows; i++)
        be->inner.widen(x + (size_t)i * (size_t)table->cols, table, be->batch->token[i], 1);
}
