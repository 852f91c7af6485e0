/* Status names and the text of the last failure on each thread.
 * SPDX-License-Identifier: MIT */
#include "status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <utf8proc.h>

/* The library's only mutable variable; per thread, so that no lock and no handle is needed to read it. */
static _Thread_local char last_error[1024];

dsv2_status dsv2i_fail(dsv2_status status, const char *format, ...)
{
    char text[sizeof last_error]; /* an argument may be the last error itself */
    va_list args;

    va_start(args, format);
    if (vsnprintf(text, sizeof text, format, args) < 0)
        strcpy(text, "error text could not be formatted");
    va_end(args);
    memcpy(last_error, text, sizeof text);
    return status;
}

const char *dsv2_last_error(void)
{
    return last_error;
}

const char *dsv2_status_name(dsv2_status status)
{
    switch (status) {
#define NAME(s) case s: return #s
    NAME(DSV2_OK);
    NAME(DSV2_ERR_INVALID);
    NAME(DSV2_ERR_BUFFER);
    NAME(DSV2_ERR_STATE);
    NAME(DSV2_ERR_NOMEM);
    NAME(DSV2_ERR_IO);
    NAME(DSV2_ERR_FORMAT);
    NAME(DSV2_ERR_UNSUPPORTED);
    NAME(DSV2_ERR_UTF8);
    NAME(DSV2_ERR_LIMIT);
    NAME(DSV2_ERR_CONTEXT_FULL);
    NAME(DSV2_ERR_NO_PAGES);
    NAME(DSV2_ERR_CANCELLED);
    NAME(DSV2_ERR_NUMERIC);
    NAME(DSV2_ERR_FORKED);
    NAME(DSV2_ERR_DEVICE);
    NAME(DSV2_ERR_INTERNAL);
#undef NAME
    }
    return "unknown status";
}

const char *dsv2i_quote(char *buf, size_t cap, const char *text, size_t n)
{
    const size_t longest = 4; /* of one escaped or copied character: \xHH, or 4 bytes of UTF-8 */
    size_t used = 0, i = 0;

    if (cap == 0)
        return "";
    while (i < n) {
        utf8proc_int32_t c;
        utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)text + i, n - i < 4 ? (utf8proc_ssize_t)(n - i) : 4, &c);

        if (used + longest + sizeof "..." > cap) {
            size_t dots = cap - 1 - used < 3 ? cap - 1 - used : 3;

            memcpy(buf + used, "...", dots);
            used += dots;
            break;
        }
        if (k > 0 && c >= 0x20 && c != 0x7F && !(c >= 0x80 && c < 0xA0) && c != '"' && c != '\\') {
            memcpy(buf + used, text + i, (size_t)k);
            used += (size_t)k;
            i += (size_t)k;
        } else {
            used += (size_t)snprintf(buf + used, cap - used, "\\x%02X", (unsigned char)text[i]);
            i++;
        }
    }
    buf[used] = 0;
    return buf;
}
