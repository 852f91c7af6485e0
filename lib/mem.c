/* Memory through hooks that take sizes on free: a header in front of each block remembers it.
 * SPDX-License-Identifier: MIT */
#include "mem.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 16 /* also the size of the header, so that payloads stay aligned */

static void *heap_alloc(void *user, size_t size, size_t alignment)
{
    void *p = NULL;

    (void)user;
    if (alignment <= ALIGNMENT)
        return malloc(size);
    return posix_memalign(&p, alignment, size) ? NULL : p;
}

static void heap_free(void *user, void *ptr, size_t size)
{
    (void)user;
    (void)size;
    free(ptr);
}

const struct dsv2i_hooks dsv2i_heap = {heap_alloc, heap_free, NULL};

static size_t *header(void *ptr)
{
    return (size_t *)(void *)((char *)ptr - ALIGNMENT);
}

void *dsv2i_alloc(const struct dsv2i_hooks *mem, size_t n, size_t size)
{
    size_t bytes;
    char *block;

    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX / 2 - ALIGNMENT)
        return NULL;
    block = mem->alloc(mem->user, bytes + ALIGNMENT, ALIGNMENT);
    if (!block)
        return NULL;
    *(size_t *)(void *)block = bytes;
    return block + ALIGNMENT;
}

void *dsv2i_calloc(const struct dsv2i_hooks *mem, size_t n, size_t size)
{
    void *p = dsv2i_alloc(mem, n, size);

    if (p)
        memset(p, 0, *header(p));
    return p;
}

void *dsv2i_realloc(const struct dsv2i_hooks *mem, void *ptr, size_t n, size_t size)
{
    void *p = dsv2i_alloc(mem, n, size);

    if (p && ptr) {
        size_t old = *header(ptr), now = *header(p);

        memcpy(p, ptr, old < now ? old : now);
        dsv2i_free(mem, ptr);
    }
    return p;
}

void dsv2i_free(const struct dsv2i_hooks *mem, void *ptr)
{
    if (ptr)
        mem->free(mem->user, header(ptr), *header(ptr) + ALIGNMENT);
}

char *dsv2i_strndup(const struct dsv2i_hooks *mem, const char *text, size_t n)
{
    char *p = n == SIZE_MAX ? NULL : dsv2i_alloc(mem, n + 1, 1);

    if (p) {
        memcpy(p, text, n);
        p[n] = 0;
    }
    return p;
}
