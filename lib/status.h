/* Making errors: a status and, per thread, its text.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_STATUS_H
#define DSV2I_STATUS_H

#include "dsv2.h"

/* Store the text of a failure (cut at about 1,000 bytes) and return status: return dsv2i_fail(DSV2_ERR_FORMAT, "%s: ...", file).
 * Texts read "FILE: FIELD: what is wrong, with the value". */
__attribute__((format(printf, 2, 3))) dsv2_status dsv2i_fail(dsv2_status status, const char *format, ...);

/* Write up to cap - 1 bytes of text (n bytes, any bytes) to buf so that it can stand in a message: control characters, quotes and invalid
 * UTF-8 escaped, a long value cut with "...".  Returns buf. */
const char *dsv2i_quote(char *buf, size_t cap, const char *text, size_t n);

#define DSV2I_TRY(expr) \
    do { \
        dsv2_status try_status_ = (expr); \
        if (try_status_ != DSV2_OK) \
            return try_status_; \
    } while (0)

#endif
