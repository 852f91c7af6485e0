/* Decoding ids to text: all at once, and streaming with stop strings.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_TEXT_H
#define DSV2I_TEXT_H

#include "model.h"

dsv2_status dsv2i_detokenize(const dsv2_model *m, const int32_t *ids, size_t n_ids, uint32_t flags, char *text,
                             size_t capacity, size_t *n);
dsv2_status dsv2i_text_create(dsv2_model *m, const dsv2_text_params *params, dsv2_text **out);
dsv2_status dsv2i_text_push(dsv2_text *t, int32_t token, const char **piece, size_t *n, int32_t *stopped);
dsv2_status dsv2i_text_finish(dsv2_text *t, const char **piece, size_t *n);
void dsv2i_text_free(dsv2_text *t);

#endif
