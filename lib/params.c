/* Structs that cross the boundary: older and newer callers.
 * SPDX-License-Identifier: MIT */
#include "params.h"

#include <string.h>

#define SMALLEST sizeof(size_t) /* struct_size itself */

void dsv2i_params_init(void *dst, size_t size, const void *defaults, size_t known)
{
    if (!dst || size < SMALLEST)
        return;
    memset(dst, 0, size);
    memcpy(dst, defaults, size < known ? size : known);
    memcpy(dst, &size, sizeof size);
}

static dsv2_status read_size(const void *src, const char *name, size_t *size)
{
    memcpy(size, src, sizeof *size);
    if (*size < SMALLEST || *size > 65536)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: struct_size: is %zu, but must be sizeof(%s)", name, *size, name);
    return DSV2_OK;
}

dsv2_status dsv2i_params_take(void *dst, size_t known, const void *src, const char *name)
{
    size_t size;

    if (!src)
        return DSV2_OK;
    DSV2I_TRY(read_size(src, name, &size));
    for (size_t i = known; i < size; i++)
        if (((const unsigned char *)src)[i])
            return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "%s: byte %zu is set, but this version of the library knows %zu bytes only",
                              name, i, known);
    memcpy((char *)dst + SMALLEST, (const char *)src + SMALLEST, (size < known ? size : known) - SMALLEST);
    return DSV2_OK;
}

dsv2_status dsv2i_output_check(const void *dst, const char *name)
{
    size_t size;

    return dst ? read_size(dst, name, &size) : DSV2_OK;
}

dsv2_status dsv2i_output_fill(void *dst, const void *src, size_t known, const char *name)
{
    size_t size;

    DSV2I_TRY(read_size(dst, name, &size));
    memcpy((char *)dst + SMALLEST, (const char *)src + SMALLEST, (size < known ? size : known) - SMALLEST);
    if (size > known)
        memset((char *)dst + known, 0, size - known);
    return DSV2_OK;
}
