/* JSON, strictly: every byte is checked here before cJSON sees it, because cJSON forgives too much.
 *
 * SPDX-License-Identifier: MIT
 *
 * The scan is one loop with a stack of open brackets, no recursion.  Keys of open objects lie on a second stack; when an object closes,
 * its keys are sorted by hash and text, so that a duplicate shows in O(n log n) however hostile the keys are.  Keys are compared as code
 * points: "a" and "\u0061" are the same key. */
#include "json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 64
#define MAX_INTEGER 9007199254740992.0 /* 2^53: every integer up to it is a double */
#define MAX_NUMBER 62           /* cJSON looks at 63 characters of a number */
#define MAX_VALUES (1 << 22)    /* each costs cJSON some 80 bytes: keeps "[0,0,0,..." from taking gigabytes */

struct key {
    uint64_t hash;
    const char *text;           /* behind the opening quote; validated up to the closing one */
};

struct scan {
    const char *file, *text;
    size_t n, pos;
    int depth;
    size_t n_values;
    char open[MAX_DEPTH];       /* '{' or '[' */
    size_t first_key[MAX_DEPTH];
    struct key *keys;
    size_t n_keys, cap_keys;
};

__attribute__((format(printf, 3, 4))) static dsv2_status fail_at(const struct scan *s, size_t at, const char *format, ...)
{
    char what[512];
    size_t line = 1, column = 1;
    va_list args;

    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    for (size_t i = 0; i < at && i < s->n; i++) {
        column = s->text[i] == '\n' ? 1 : column + 1;
        line += s->text[i] == '\n';
    }
    return dsv2i_fail(DSV2_ERR_FORMAT, "%s: byte %zu (line %zu, column %zu): %s", s->file, at, line, column, what);
}

static int peek(const struct scan *s)
{
    return s->pos < s->n ? (unsigned char)s->text[s->pos] : -1;
}

static dsv2_status unexpected(const struct scan *s, const char *wanted)
{
    char shown[32];

    if (s->pos >= s->n)
        return fail_at(s, s->pos, "the text ends where %s is expected", wanted);
    return fail_at(s, s->pos, "'%s' where %s is expected", dsv2i_quote(shown, sizeof shown, s->text + s->pos, 1), wanted);
}

static void skip_space(struct scan *s)
{
    while (s->pos < s->n && memchr(" \t\n\r", s->text[s->pos], 4))
        s->pos++;
}

static int is_digit(int c)
{
    return c >= '0' && c <= '9';
}

static int hex_digit(int c)
{
    if (is_digit(c))
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Bytes of the valid UTF-8 sequence at p, with end at most n bytes away; 0: invalid (also overlong, surrogate, beyond U+10FFFF). */
static size_t utf8_length(const char *p, size_t n, uint32_t *code)
{
    unsigned char c = (unsigned char)p[0];
    size_t len = c < 0x80 ? 1 : c < 0xC2 ? 0 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : c < 0xF5 ? 4 : 0;
    uint32_t v = len == 1 ? c : len == 2 ? c & 0x1Fu : len == 3 ? c & 0x0Fu : c & 0x07u;

    if (len == 0 || len > n)
        return 0;
    for (size_t i = 1; i < len; i++) {
        if (((unsigned char)p[i] & 0xC0) != 0x80)
            return 0;
        v = v << 6 | ((unsigned char)p[i] & 0x3Fu);
    }
    if ((len == 3 && (v < 0x800 || (v >= 0xD800 && v < 0xE000))) || (len == 4 && (v < 0x10000 || v > 0x10FFFF)))
        return 0;
    *code = v;
    return len;
}

static int hex4(const char *p, size_t n, uint32_t *out)
{
    uint32_t v = 0;

    if (n < 4)
        return 0;
    for (int i = 0; i < 4; i++) {
        int d = hex_digit((unsigned char)p[i]);

        if (d < 0)
            return 0;
        v = v << 4 | (uint32_t)d;
    }
    *out = v;
    return 1;
}

/* At the backslash; *code is what the escape stands for. */
static dsv2_status scan_escape(struct scan *s, uint32_t *code)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    size_t at = s->pos;
    uint32_t low;

    s->pos++;
    if (peek(s) != 'u') {
        const char *p = peek(s) > 0 ? strchr(from, peek(s)) : NULL;

        if (!p)
            return fail_at(s, at, "unknown escape in a string");
        *code = (unsigned char)to[p - from];
        s->pos++;
        return DSV2_OK;
    }
    s->pos++;
    if (!hex4(s->text + s->pos, s->n - s->pos, code))
        return fail_at(s, at, "\\u without four hexadecimal digits");
    s->pos += 4;
    if (*code == 0)
        return fail_at(s, at, "\\u0000 in a string");
    if (*code < 0xD800 || *code > 0xDFFF)
        return DSV2_OK;
    if (*code > 0xDBFF || s->n - s->pos < 6 || memcmp(s->text + s->pos, "\\u", 2) != 0
        || !hex4(s->text + s->pos + 2, s->n - s->pos - 2, &low) || low < 0xDC00 || low > 0xDFFF)
        return fail_at(s, at, "surrogate \\u%04X without its other half", (unsigned)*code);
    s->pos += 6;
    *code = 0x10000 + ((*code - 0xD800) << 10) + (low - 0xDC00);
    return DSV2_OK;
}

/* One character of a string, escape or not; not for the closing quote. */
static dsv2_status scan_char(struct scan *s, uint32_t *code)
{
    int c = peek(s);
    size_t len;

    if (c < 0)
        return fail_at(s, s->pos, "the text ends inside a string");
    if (c < 0x20)
        return fail_at(s, s->pos, "control character 0x%02X in a string", (unsigned)c);
    if (c == '\\')
        return scan_escape(s, code);
    len = utf8_length(s->text + s->pos, s->n - s->pos, code);
    if (len == 0)
        return fail_at(s, s->pos, "invalid UTF-8, byte 0x%02X", (unsigned)c);
    s->pos += len;
    return DSV2_OK;
}

static dsv2_status scan_string(struct scan *s, uint64_t *hash)
{
    uint32_t code;

    *hash = 14695981039346656037u;
    s->pos++;
    while (peek(s) != '"') {
        DSV2I_TRY(scan_char(s, &code));
        *hash = (*hash ^ code) * 1099511628211u;
    }
    s->pos++;
    return DSV2_OK;
}

static dsv2_status scan_key(struct scan *s)
{
    struct key *k;

    skip_space(s);
    if (peek(s) != '"')
        return unexpected(s, "a key in quotes");
    if (s->n_keys == s->cap_keys) {
        size_t cap = s->cap_keys ? 2 * s->cap_keys : 64;
        struct key *grown = dsv2i_realloc(&dsv2i_heap, s->keys, cap, sizeof *grown);

        if (!grown)
            return dsv2i_fail(DSV2_ERR_NOMEM, "%s: no memory for %zu keys", s->file, cap);
        s->keys = grown;
        s->cap_keys = cap;
    }
    k = &s->keys[s->n_keys++];
    k->text = s->text + s->pos + 1;
    DSV2I_TRY(scan_string(s, &k->hash));
    skip_space(s);
    if (peek(s) != ':')
        return unexpected(s, "':'");
    s->pos++;
    return DSV2_OK;
}

/* Next code point of a validated key; 0 at its end (a key holds no NUL). */
static uint32_t next_code(struct scan *s)
{
    uint32_t code = 0;

    if (peek(s) == '"')
        return 0;
    return scan_char(s, &code) == DSV2_OK ? code : 0;
}

static int compare_text(const char *a, const char *b)
{
    struct scan sa = {.text = a, .n = SIZE_MAX / 2}, sb = {.text = b, .n = SIZE_MAX / 2};
    uint32_t ca, cb;

    do {
        ca = next_code(&sa);
        cb = next_code(&sb);
    } while (ca && ca == cb);
    return ca < cb ? -1 : ca > cb;
}

static int compare_keys(const void *pa, const void *pb)
{
    const struct key *a = pa, *b = pb;

    if (a->hash != b->hash)
        return a->hash < b->hash ? -1 : 1;
    return compare_text(a->text, b->text);
}

static dsv2_status push(struct scan *s)
{
    if (s->depth == MAX_DEPTH)
        return fail_at(s, s->pos, "nested deeper than %d", MAX_DEPTH);
    s->open[s->depth] = s->text[s->pos++];
    s->first_key[s->depth++] = s->n_keys;
    return DSV2_OK;
}

/* Sorts the keys of an object to find two that are the same. */
static dsv2_status check_keys(const struct scan *s, struct key *keys, size_t n)
{
    qsort(keys, n, sizeof *keys, compare_keys);
    for (size_t i = 1; i < n; i++) {
        const char *later = keys[i].text > keys[i - 1].text ? keys[i].text : keys[i - 1].text;
        const char *end = later;
        char shown[80];

        if (compare_keys(&keys[i - 1], &keys[i]) != 0)
            continue;
        while (*end != '"')
            end += *end == '\\' ? 2 : 1;
        return fail_at(s, (size_t)(later - s->text) - 1, "key \"%s\" appears twice",
                       dsv2i_quote(shown, sizeof shown, later, (size_t)(end - later)));
    }
    return DSV2_OK;
}

static dsv2_status pop(struct scan *s)
{
    size_t first;

    s->pos++;
    if (s->open[--s->depth] == '[')
        return DSV2_OK;
    first = s->first_key[s->depth];
    if (s->n_keys - first > 1)
        DSV2I_TRY(check_keys(s, s->keys + first, s->n_keys - first));
    s->n_keys = first;
    return DSV2_OK;
}

/* Would the decimal digits, the first of them nonzero and worth 10^exponent, overflow a double?  (limit: DBL_MAX and half a unit) */
static int overflows(const char *digits, size_t n, long exponent)
{
    static const char limit[] = "17976931348623158079";

    if (exponent != 308)
        return exponent > 308;
    for (size_t i = 0; i < sizeof limit - 1; i++) {
        char d = i < n ? digits[i] : '0';

        if (d != limit[i])
            return d > limit[i];
    }
    return 1;
}

static dsv2_status scan_number(struct scan *s)
{
    size_t at = s->pos, n_digits = 0;
    char digits[MAX_NUMBER + 1], exact[400];
    const char *literal = s->text + at;
    long point = 0, exponent = 0; /* point: power of ten of the first significant digit, plus 1 */
    int integral = 1, negative = 0, seen_point = 0;

    if (peek(s) == '-')
        s->pos++;
    if (!is_digit(peek(s)))
        return unexpected(s, s->pos > at ? "a digit" : "a value");
    if (peek(s) == '0' && s->pos + 1 < s->n && is_digit(s->text[s->pos + 1]))
        return fail_at(s, at, "a number with a leading zero");
    for (; is_digit(peek(s)) || (peek(s) == '.' && !seen_point); s->pos++) {
        if (s->pos - at >= MAX_NUMBER)
            return fail_at(s, at, "a number of more than %d characters", MAX_NUMBER);
        if (peek(s) == '.') {
            seen_point = 1;
            integral = 0;
            if (s->pos + 1 >= s->n || !is_digit(s->text[s->pos + 1]))
                return fail_at(s, at, "a number without digits behind its point");
            continue;
        }
        if (n_digits || peek(s) != '0') {
            digits[n_digits++] = (char)peek(s);
            point += !seen_point;
        } else {
            point -= seen_point;
        }
    }
    if (peek(s) == 'e' || peek(s) == 'E') {
        integral = 0;
        s->pos++;
        negative = peek(s) == '-';
        if (peek(s) == '-' || peek(s) == '+')
            s->pos++;
        if (!is_digit(peek(s)))
            return unexpected(s, "a digit of the exponent");
        for (; is_digit(peek(s)); s->pos++) {
            if (exponent < 100000)
                exponent = 10 * exponent + (peek(s) - '0');
        }
    }
    if (s->pos - at > MAX_NUMBER)
        return fail_at(s, at, "a number of more than %d characters", MAX_NUMBER);
    if (n_digits && overflows(digits, n_digits, point - 1 + (negative ? -exponent : exponent)))
        return fail_at(s, at, "%.*s is too large for a number", (int)(s->pos - at), literal);
    /* What matters is that nothing gets rounded: HF's customary model_max_length of int(1e30) is a double, 2^53 + 1 is not. */
    digits[n_digits] = 0;
    if (integral && n_digits > 15) {
        snprintf(exact, sizeof exact, "%.0f", strtod(digits, NULL));
        if (strcmp(exact, digits) != 0)
            return fail_at(s, at, "integer %.*s cannot be held exactly (beyond 2^53)", (int)(s->pos - at), literal);
    }
    return DSV2_OK;
}

static dsv2_status scan_scalar(struct scan *s)
{
    static const char *const words[] = {"true", "false", "null"};
    uint64_t hash;

    if (peek(s) == '"')
        return scan_string(s, &hash);
    for (int i = 0; i < 3; i++) {
        size_t len = strlen(words[i]);

        if (s->n - s->pos >= len && memcmp(s->text + s->pos, words[i], len) == 0) {
            s->pos += len;
            return DSV2_OK;
        }
    }
    return scan_number(s);
}

static dsv2_status scan_text(struct scan *s)
{
    int want_value = 1;

    while (want_value || s->depth) {
        skip_space(s);
        if (want_value) {
            if (++s->n_values > MAX_VALUES)
                return dsv2i_fail(DSV2_ERR_LIMIT, "%s: byte %zu: more than %d values", s->file, s->pos, MAX_VALUES);
            if (peek(s) != '{' && peek(s) != '[') {
                DSV2I_TRY(scan_scalar(s));
                want_value = 0;
                continue;
            }
            DSV2I_TRY(push(s));
            skip_space(s);
            if (peek(s) == (s->open[s->depth - 1] == '{' ? '}' : ']')) {
                DSV2I_TRY(pop(s));
                want_value = 0;
            } else if (s->open[s->depth - 1] == '{') {
                DSV2I_TRY(scan_key(s));
            }
        } else {
            int object = s->open[s->depth - 1] == '{';

            if (peek(s) == (object ? '}' : ']')) {
                DSV2I_TRY(pop(s));
            } else if (peek(s) == ',') {
                s->pos++;
                if (object)
                    DSV2I_TRY(scan_key(s));
                want_value = 1;
            } else {
                return unexpected(s, object ? "',' or '}'" : "',' or ']'");
            }
        }
    }
    skip_space(s);
    if (s->pos < s->n)
        return unexpected(s, "the end of the text");
    return DSV2_OK;
}

dsv2_status dsv2i_json_parse(const char *file, const char *text, size_t n, cJSON **out)
{
    struct scan s = {.file = file, .text = text, .n = n};
    dsv2_status status = scan_text(&s);

    *out = NULL;
    dsv2i_free(&dsv2i_heap, s.keys);
    if (status != DSV2_OK)
        return status;
    /* What passed the scan parses, so the only reason left is memory. */
    *out = cJSON_ParseWithLengthOpts(text, n, NULL, 0);
    if (!*out)
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s: no memory to parse %zu bytes of JSON", file, n);
    return DSV2_OK;
}

/* ---- Typed members --------------------------------------------------------------------------------------------------- */

const cJSON *dsv2i_json_get(const cJSON *object, const char *key)
{
    if (!cJSON_IsObject(object))
        return NULL;
    for (const cJSON *c = object->child; c; c = c->next) {
        if (strcmp(c->string, key) == 0)
            return c;
    }
    return NULL;
}

const char *dsv2i_json_show(char *buf, size_t cap, const cJSON *value)
{
    char text[64];

    if (!value)
        snprintf(buf, cap, "absent");
    else if (cJSON_IsString(value))
        snprintf(buf, cap, "\"%s\"", dsv2i_quote(text, sizeof text, value->valuestring, strlen(value->valuestring)));
    else if (cJSON_IsNumber(value) && value->valuedouble == floor(value->valuedouble) && fabs(value->valuedouble) < 1e18)
        snprintf(buf, cap, "%.0f", value->valuedouble);
    else if (cJSON_IsNumber(value))
        snprintf(buf, cap, "%.15g", value->valuedouble);
    else
        snprintf(buf, cap, "%s", cJSON_IsArray(value) ? "[...]" : cJSON_IsObject(value) ? "{...}" : cJSON_IsTrue(value) ? "true"
                               : cJSON_IsFalse(value) ? "false" : "null");
    return buf;
}

static dsv2_status wrong(const char *file, const char *path, const char *key, const char *wanted, const cJSON *value)
{
    char shown[80];

    return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s%s%s: must be %s, is %s", file, path, *path ? "." : "", key, wanted,
                      dsv2i_json_show(shown, sizeof shown, value));
}

dsv2_status dsv2i_json_int_or(const char *file, const char *path, const cJSON *object, const char *key, int64_t lo,
                              int64_t hi, int64_t fallback, int64_t *out)
{
    const cJSON *v = dsv2i_json_get(object, key);
    char wanted[80];

    *out = fallback;
    if (!v)
        return DSV2_OK;
    if (!cJSON_IsNumber(v) || v->valuedouble != floor(v->valuedouble) || fabs(v->valuedouble) > MAX_INTEGER
        || v->valuedouble < (double)lo || v->valuedouble > (double)hi) {
        snprintf(wanted, sizeof wanted, "an integer from %lld to %lld", (long long)lo, (long long)hi);
        return wrong(file, path, key, wanted, v);
    }
    *out = (int64_t)v->valuedouble;
    return DSV2_OK;
}

dsv2_status dsv2i_json_double_or(const char *file, const char *path, const cJSON *object, const char *key, double fallback,
                                 double *out)
{
    const cJSON *v = dsv2i_json_get(object, key);

    *out = fallback;
    if (!v)
        return DSV2_OK;
    if (!cJSON_IsNumber(v))
        return wrong(file, path, key, "a number", v);
    *out = v->valuedouble;
    return DSV2_OK;
}

dsv2_status dsv2i_json_bool_or(const char *file, const char *path, const cJSON *object, const char *key, int fallback,
                               int *out)
{
    const cJSON *v = dsv2i_json_get(object, key);

    *out = fallback;
    if (!v)
        return DSV2_OK;
    if (!cJSON_IsBool(v))
        return wrong(file, path, key, "true or false", v);
    *out = cJSON_IsTrue(v) ? 1 : 0;
    return DSV2_OK;
}

dsv2_status dsv2i_json_string_or(const char *file, const char *path, const cJSON *object, const char *key,
                                 const char *fallback, const char **out)
{
    const cJSON *v = dsv2i_json_get(object, key);

    *out = fallback;
    if (!v)
        return DSV2_OK;
    if (!cJSON_IsString(v))
        return wrong(file, path, key, "a string", v);
    *out = v->valuestring;
    return DSV2_OK;
}
