/* Memory through the context's hooks.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_MEM_H
#define DSV2I_MEM_H

#include "ops.h"

/* Blocks remember their size, so that callers need not.  All are aligned to 16 bytes; NULL when there is no memory or n * size overflows;
 * a size of 0 gives a valid block.  calloc zeroes. */
void *dsv2i_alloc(const struct dsv2i_hooks *mem, size_t n, size_t size);
void *dsv2i_calloc(const struct dsv2i_hooks *mem, size_t n, size_t size);
/* Like realloc: NULL leaves the old block alone. */
void *dsv2i_realloc(const struct dsv2i_hooks *mem, void *ptr, size_t n, size_t size);
void dsv2i_free(const struct dsv2i_hooks *mem, void *ptr);
/* A NUL-terminated copy of n bytes. */
char *dsv2i_strndup(const struct dsv2i_hooks *mem, const char *text, size_t n);

/* The C library's heap. */
extern const struct dsv2i_hooks dsv2i_heap;

#endif
