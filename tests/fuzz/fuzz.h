/* What every fuzz target needs: the bundled tokenizer's files, and a reader over a few named buffers.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2_FUZZ_H
#define DSV2_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A property that must hold for any input; unlike assert it is never compiled out. */
#define MUST(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: must hold: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

/* Take the next piece of the input: everything up to a 0xFF byte (which no valid UTF-8 has) or the end. */
static inline const char *fuzz_piece(const uint8_t **data, size_t *size, size_t *n)
{
    const uint8_t *start = *data, *end = *size ? memchr(start, 0xFF, *size) : NULL;

    *n = end ? (size_t)(end - start) : *size;
    *data += *n + (end != NULL);
    *size -= *n + (end != NULL);
    return (const char *)start;
}

#endif
