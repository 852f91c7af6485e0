/* What every fuzz target needs: pieces of the input, properties that must hold, and things that fail where the input says.
 * SPDX-License-Identifier: MIT
 *
 * An input may end in one of the bytes below, which no UTF-8 has, and a number N: then the N-th allocation of that kind, or
 * the N-th call of the target's reader, fails once. */
#ifndef DSV2_FUZZ_H
#define DSV2_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Unlike assert it is never compiled out. */
#define MUST(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: must hold: %s (last error: %s)\n", __FILE__, __LINE__, #condition, dsv2_last_error()); \
            abort(); \
        } \
    } while (0)

/* Take the next piece of the input: everything up to a 0xFF byte or the end. */
static inline const char *fuzz_piece(const uint8_t **data, size_t *size, size_t *n)
{
    const uint8_t *start = *data, *end = *size ? memchr(start, 0xFF, *size) : NULL;

    *n = end ? (size_t)(end - start) : *size;
    *data += *n + (end != NULL);
    *size -= *n + (end != NULL);
    return (const char *)start;
}

/* ---- Failures -------------------------------------------------------------------------------------------------------- */

enum fuzz_kind { FUZZ_HOOKS = 0xFE, FUZZ_CJSON = 0xFD, FUZZ_READER = 0xFC };

static struct {
    enum fuzz_kind kind;
    unsigned countdown;         /* 1: the next one fails; 0: none */
    int odd;                    /* is N? */
    int failed;
    size_t blocks, at_start;    /* living, from the hooks and for cJSON */
} fuzz_state;

static inline int fuzz_fails(enum fuzz_kind kind)
{
    if (kind != fuzz_state.kind || !fuzz_state.countdown || --fuzz_state.countdown)
        return 0;
    fuzz_state.failed = 1;
    return 1;
}

static inline void *fuzz_take(enum fuzz_kind kind, size_t size, size_t alignment)
{
    void *p = NULL;

    if (!fuzz_fails(kind) && posix_memalign(&p, alignment, size) == 0)
        memset(p, 0xCD, size < 4096 ? size : 4096); /* nobody may count on zeros */
    fuzz_state.blocks += p != NULL;
    return p;
}

static inline void fuzz_give(void *p)
{
    fuzz_state.blocks -= p != NULL;
    free(p);
}

static inline void *fuzz_hook_alloc(void *user, size_t size, size_t alignment)
{
    (void)user;
    return fuzz_take(FUZZ_HOOKS, size, alignment);
}

static inline void fuzz_hook_free(void *user, void *p, size_t size)
{
    (void)user;
    MUST(p);
    *(volatile char *)((char *)p + size - 1) = 0; /* a size that is too large shows under a sanitizer */
    fuzz_give(p);
}

static inline void *fuzz_cjson_alloc(size_t size)
{
    return fuzz_take(FUZZ_CJSON, size, 16);
}

/* The memory that targets give to the library. */
static const struct dsv2i_hooks fuzz_mem = {fuzz_hook_alloc, fuzz_hook_free, NULL};

/* At the beginning of an input, and when all that it made has been freed. */
static inline void fuzz_begin(const uint8_t *data, size_t *size)
{
    cJSON_Hooks hooks = {fuzz_cjson_alloc, fuzz_give};

    cJSON_InitHooks(&hooks);
    fuzz_state.countdown = 0;
    fuzz_state.failed = 0;
    fuzz_state.at_start = fuzz_state.blocks;
    if (*size >= 2 && data[*size - 2] >= FUZZ_READER && data[*size - 2] <= FUZZ_HOOKS) {
        fuzz_state.kind = data[*size - 2];
        fuzz_state.countdown = data[*size - 1];
        fuzz_state.odd = data[*size - 1] & 1;
        *size -= 2;
    }
}

static inline void fuzz_end(void)
{
    MUST(fuzz_state.blocks == fuzz_state.at_start);
}

/* After a call that may have met the failure: NOMEM if, and only if, an allocation failed.  Such a call has changed nothing, so a
 * target makes it again:
 *     do
 *         status = ...;
 *     while (fuzz_check(status) == DSV2_ERR_NOMEM); */
static inline dsv2_status fuzz_check(dsv2_status status)
{
    int failed = fuzz_state.failed;

    fuzz_state.failed = 0;
    MUST((status == DSV2_ERR_NOMEM) == (failed && fuzz_state.kind != FUZZ_READER));
    MUST(!failed || fuzz_state.kind != FUZZ_READER || status == (fuzz_state.odd ? DSV2_ERR_IO : DSV2_ERR_CANCELLED));
    MUST(status == DSV2_OK || dsv2_last_error()[0]);
    return status;
}

/* The same where PCRE2 may be at work, which goes on without its JIT when there is no memory for that. */
static inline dsv2_status fuzz_check_regex(dsv2_status status)
{
    fuzz_state.failed &= status == DSV2_ERR_NOMEM;
    return fuzz_check(status);
}

/* ---- The bundled model's tokenizer ----------------------------------------------------------------------------------- */

#ifdef FUZZ_WITH_TOKENIZER
#include "tokenizer.h"

static inline struct dsv2i_tokenizer *fuzz_tokenizer(void)
{
    static struct dsv2i_tokenizer *t;

    if (!t) {
        FILE *f = fopen(TEST_MODEL "/tokenizer.json", "rb");
        char *text = malloc(1 << 24);
        size_t n;

        MUST(f && text);
        n = fread(text, 1, 1 << 24, f);
        fclose(f);
        MUST(dsv2i_tokenizer_parse(&fuzz_mem, "tokenizer.json", text, n, "", NULL, 0, 4096, -1, &t) == DSV2_OK);
        free(text);
    }
    return t;
}
#endif

#endif
