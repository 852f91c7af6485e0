/* The few properties of characters that tokenizers look at.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_UNICODE_H
#define DSV2I_UNICODE_H

#include <stddef.h>
#include <stdint.h>

struct dsv2i_range {
    uint32_t first, last;
};

/* The property White_Space, in order. */
extern const struct dsv2i_range dsv2i_white_space[];
extern const size_t dsv2i_n_white_space;

int dsv2i_is_space(uint32_t cp);
int dsv2i_is_numeric(uint32_t cp); /* general category Nd, Nl or No */
int dsv2i_is_word(uint32_t cp);    /* \w: letters, marks, decimal digits, connectors, joiners */

#endif
