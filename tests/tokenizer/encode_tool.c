/* A tokenizer on standard input and output, for the oracles.
 * SPDX-License-Identifier: MIT
 *
 *     encode_tool TOKENIZER_JSON FLAGS          frames of text in, frames of ids out
 *     encode_tool TOKENIZER_JSON FLAGS time N   the same text from standard input N times: processor seconds of the best run
 *
 * A frame is a length (u32, little endian, the machine's own) and that many bytes or ids; a failure is the length UINT32_MAX. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tokenizer.h"

static char *slurp(FILE *f, size_t *n)
{
    size_t capacity = 1 << 20;
    char *text = malloc(capacity);

    for (*n = 0;; capacity *= 2, text = realloc(text, capacity)) {
        *n += fread(text + *n, 1, capacity - *n, f);
        if (*n < capacity)
            return text;
    }
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int serve(const struct dsv2i_tokenizer *t, uint32_t flags)
{
    size_t capacity = 1 << 16, n;
    int32_t *ids = malloc(capacity * sizeof *ids);
    uint32_t length;

    while (fread(&length, sizeof length, 1, stdin) == 1) {
        char *text = malloc(length + 1u);
        dsv2_status status;

        if (!text || fread(text, 1, length, stdin) != length)
            return 1;
        status = dsv2i_tokenizer_encode(t, text, length, flags, ids, capacity, &n);
        if (status == DSV2_ERR_BUFFER) {
            capacity = n;
            ids = realloc(ids, capacity * sizeof *ids);
            status = dsv2i_tokenizer_encode(t, text, length, flags, ids, capacity, &n);
        }
        if (status != DSV2_OK) {
            fprintf(stderr, "%s: %s\n", dsv2_status_name(status), dsv2_last_error());
            n = 0;
        }
        length = status == DSV2_OK ? (uint32_t)n : UINT32_MAX;
        fwrite(&length, sizeof length, 1, stdout);
        fwrite(ids, sizeof *ids, n, stdout);
        fflush(stdout);
        free(text);
    }
    free(ids);
    return 0;
}

static int measure(const struct dsv2i_tokenizer *t, uint32_t flags, int runs)
{
    size_t n_text, n;
    char *text = slurp(stdin, &n_text);
    int32_t *ids = malloc((n_text + 1) * sizeof *ids);
    double best = 1e9;

    for (int i = 0; i < runs; i++) {
        double start = now();

        if (dsv2i_tokenizer_encode(t, text, n_text, flags, ids, n_text + 1, &n) != DSV2_OK) {
            fprintf(stderr, "%s\n", dsv2_last_error());
            return 1;
        }
        best = now() - start < best ? now() - start : best;
    }
    printf("%.6f %zu\n", best, n);
    free(ids);
    free(text);
    return 0;
}

int main(int argc, char **argv)
{
    struct dsv2i_tokenizer *t;
    FILE *f = argc >= 3 ? fopen(argv[1], "rb") : NULL;
    size_t n;
    char *json;
    int rc;

    if (!f) {
        fprintf(stderr, "usage: encode_tool TOKENIZER_JSON FLAGS [time N]\n");
        return 2;
    }
    json = slurp(f, &n);
    fclose(f);
    if (dsv2i_tokenizer_parse(&dsv2i_heap, argv[1], json, n, "", NULL, 0, 1 << 24, -1, &t) != DSV2_OK) {
        fprintf(stderr, "%s\n", dsv2_last_error());
        return 1;
    }
    free(json);
    rc = argc > 4 ? measure(t, (uint32_t)atoi(argv[2]), atoi(argv[4])) : serve(t, (uint32_t)atoi(argv[2]));
    dsv2i_tokenizer_free(t);
    return rc;
}
