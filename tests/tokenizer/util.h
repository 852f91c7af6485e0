/* What the tokenizer tests share: files, and a model that has nothing but a tokenizer.
 * SPDX-License-Identifier: MIT */
#ifndef TOKENIZER_TEST_UTIL_H
#define TOKENIZER_TEST_UTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text.h"

/* A file below TEST_ROOT, with a NUL behind it. */
static inline char *load(const char *name, size_t *n)
{
    char path[1024], *text;
    FILE *f;
    long size;

    snprintf(path, sizeof path, "%s/%s", TEST_ROOT, name);
    f = fopen(path, "rb");
    if (!f)
        fail_msg("%s cannot be opened", path);
    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);
    text = malloc((size_t)size + 1);
    *n = fread(text, 1, (size_t)size, f);
    text[*n] = 0;
    fclose(f);
    return text;
}

static inline uint32_t next_random(uint32_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* A tokenizer of the 256 bytes and a few merges; extra goes into the pre_tokenizer's list in front of ByteLevel, added into added_tokens. */
static inline char *small_tokenizer(const char *extra, const char *added)
{
    static const char *const more[] = {"ab", "abc", "bc", "\xC4\xA0\xC4\xA0", "aa", "aaaa", NULL};
    char *text = malloc(32768), *p = text;
    int id = 0, comma = 0;

    p += sprintf(p, "{\"version\":\"1.0\",\"added_tokens\":[%s],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[%s"
                    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},\"post_processor\":null,"
                    "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{",
                 added, extra);
    for (int byte = 0, other = 0; byte < 256; byte++) { /* ids are the bytes */
        int printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
        unsigned cp = printable ? (unsigned)byte : 0x100u + (unsigned)other++;

        p += sprintf(p, "%s\"\\u%04x\":%d", comma++ ? "," : "", cp, byte);
    }
    id = 256;
    for (int i = 0; more[i]; i++)
        p += sprintf(p, ",\"%s\":%d", more[i], id++);
    sprintf(p, "},\"merges\":[\"b c\",\"a b\",\"a bc\",\"\xC4\xA0 \xC4\xA0\",\"a a\",\"aa aa\"]}}");
    return text;
}

static inline struct dsv2i_tokenizer *parse_small(const char *extra, const char *added)
{
    char *json = small_tokenizer(extra, added);
    struct dsv2i_tokenizer *t;

    if (dsv2i_tokenizer_parse(&dsv2i_heap, "tokenizer.json", json, strlen(json), "", NULL, 0, 1000, -1, &t) != DSV2_OK)
        fail_msg("%s", dsv2_last_error());
    free(json);
    return t;
}

#endif
