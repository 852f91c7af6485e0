/* JSON, strictly: the one layer over cJSON.
 * SPDX-License-Identifier: MIT
 *
 * Refused, with file and byte offset: invalid UTF-8, NUL, text after the value, duplicate keys, numbers that JSON does not allow (01, +1, .5, NaN) or that
 * a double cannot hold (1e400), integers that a double would round (beyond 2^53), nesting over 64, control characters in strings, lone
 * surrogates; more than 4 million values (DSV2_ERR_LIMIT).
 * cJSON's process-wide hooks are never touched, so its nodes come from malloc. */
#ifndef DSV2I_JSON_H
#define DSV2I_JSON_H

#include <cjson/cJSON.h>

#include "mem.h"
#include "status.h"

/* Parse n bytes; file is used in messages only.  The tree is released with cJSON_Delete. */
dsv2_status dsv2i_json_parse(const char *file, const char *text, size_t n, cJSON **out);

/* Typed members of an object, each error naming file, path and value.  path is the object's own place for messages: "" at the top, else
 * e.g. "rope_scaling".  The _or forms give fallback for an absent key; null counts as a wrong type unless said otherwise.
 * int: an integral number in lo..hi. */
const cJSON *dsv2i_json_get(const cJSON *object, const char *key); /* case-sensitive; NULL: absent */
dsv2_status dsv2i_json_int_or(const char *file, const char *path, const cJSON *object, const char *key, int64_t lo,
                              int64_t hi, int64_t fallback, int64_t *out);
dsv2_status dsv2i_json_double_or(const char *file, const char *path, const cJSON *object, const char *key, double fallback,
                                 double *out);
dsv2_status dsv2i_json_bool_or(const char *file, const char *path, const cJSON *object, const char *key, int fallback,
                               int *out);
/* *out stays owned by the tree; NULL fallback allowed */
dsv2_status dsv2i_json_string_or(const char *file, const char *path, const cJSON *object, const char *key,
                                 const char *fallback, const char **out);

/* A member's value as short text for messages: 3, "abc", true, null, [...], {...}. */
const char *dsv2i_json_show(char *buf, size_t cap, const cJSON *value);

#endif
