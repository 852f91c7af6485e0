/* Patterns made of character classes, matched in linear time without a regex engine.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_CLASS_PATTERN_H
#define DSV2I_CLASS_PATTERN_H

#include "mem.h"
#include "status.h"

struct dsv2i_class_pattern;

/* *out NULL when the pattern is not of the forms that class_pattern.c lists.  Errors: NOMEM. */
dsv2_status dsv2i_class_pattern_compile(const struct dsv2i_hooks *mem, const char *pattern, size_t n, struct dsv2i_class_pattern **out);
void dsv2i_class_pattern_free(struct dsv2i_class_pattern *l);
size_t dsv2i_class_pattern_memory(const struct dsv2i_class_pattern *l);
/* As dsv2i_matcher_next; matches are never empty. */
void dsv2i_class_pattern_next(const struct dsv2i_class_pattern *l, const char *text, size_t n, size_t from, size_t *begin, size_t *end);

#endif
