/* What the checks of operations share: variants (instruction set x threads), random data, comparisons.
 * SPDX-License-Identifier: MIT */
#ifndef HARNESS_H
#define HARNESS_H

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"
#include "reference64.h"

#define MAX_VARIANTS 12

/* Variants of one level follow each other; the first of them sets the bits that the others must reproduce. */
struct variant {
    struct dsv2i_backend *be;
    int32_t level, threads, first;
};

extern struct variant variants[MAX_VARIANTS];
extern int n_variants;

/* One case of check_rows: an operation on independent rows. */
struct rows_case {
    const char *name;
    const struct dsv2i_shape *shape;
    int n, dim;              /* rows, results in each */
    const double *want;      /* (n, dim) */
    double tolerance;        /* relative to the value or to the root mean square of all */
    const float *start;      /* (n, dim) what y holds before; NULL: NaN */
    const int32_t *token;    /* (n) or NULL */
    void (*run)(struct dsv2i_backend *be, const void *arg, float *y, int row, int n);
    const void *arg;
};

/* Run it in every variant, all rows in one call and cut into several, with poisoned scratch. */
void check_rows(const struct rows_case *c);

void open_variants(void);
void close_variants(void);
const char *variant_name(const struct variant *v);
/* Fill the scratch with NaN. */
void poison(struct dsv2i_backend *be);

float uniform(float from, float to);
float normal(void);
int below(int n);
float *normals(size_t n, float scale);
double *doubles(const float *x, size_t n);
/* A dtype, or F8_E4M3 with another layout of scales than one for all. */
enum format { F8_ROWS = DSV2I_DTYPES, F8_BLOCKS /* 128 x 128 */, F8_SMALL_BLOCKS /* 3 x 96 */, FORMATS };
extern const char *const format_name[FORMATS];
struct dsv2i_weight make_weight(int format, int rows, int cols, float scale);
void free_weight(const struct dsv2i_weight *w);
/* Allocate or end the test. */
void *need(size_t n, size_t size);

/* Count a check; print and count a failure. */
void expect(int ok, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
void close_to(const char *name, const float *got, const double *want, size_t n, double tolerance);
void same_bits(const char *name, const float *got, const float *want, size_t n);

void check_attention(void);
void check_kv(void);
void check_routing(void);
void bench(void);

extern int n_checks, n_failed;

#endif
