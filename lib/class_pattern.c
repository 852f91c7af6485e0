/* Patterns made of character classes, matched in linear time without a regex engine.
 * SPDX-License-Identifier: MIT
 *
 * The family's pre-tokenizer has five patterns of these forms, where C is a class in brackets, \s, or one character:
 *     C        one of its characters
 *     C+       a run of them
 *     C?C+     a run, with one character of the first class in front if there is one
 *     C+$      a run that reaches the end of a line
 * A backtracking engine takes quadratic time for the last one: on a long run of spaces that does not end the line, it tries from every
 * space anew.  Everything else about a pattern is read as Oniguruma does; what is not of these forms is left to regex.c. */
#include "class_pattern.h"

#include <stdlib.h>
#include <string.h>

#include "unicode.h"
#include "utf8.h"

struct class {
    uint32_t bmp[0x10000 / 32];     /* one bit for each code point below 10000 */
    struct dsv2i_range *high;       /* those above; when the pattern is read, ascending and apart */
    size_t n_high, capacity;
};

enum form { ONE, RUN, LEAD_RUN, RUN_TO_END };

struct dsv2i_class_pattern {
    const struct dsv2i_hooks *mem;
    enum form form;
    struct class lead, body;
};

static inline int has(const struct class *c, uint32_t cp)
{
    if (cp < 0x10000)
        return c->bmp[cp >> 5] >> (cp & 31) & 1;
    for (size_t lo = 0, hi = c->n_high; lo < hi;) {
        size_t i = lo + (hi - lo) / 2;

        if (cp > c->high[i].last)
            lo = i + 1;
        else if (cp < c->high[i].first)
            hi = i;
        else
            return 1;
    }
    return 0;
}

static int by_first(const void *a, const void *b)
{
    const struct dsv2i_range *x = a, *y = b;

    return (x->first > y->first) - (x->first < y->first);
}

/* Bring the ranges in order, those that meet made one. */
static void settle(struct class *c)
{
    size_t n = 0;

    if (c->n_high)
        qsort(c->high, c->n_high, sizeof *c->high, by_first);
    for (size_t i = 0; i < c->n_high; i++)
        if (n && c->high[i].first <= c->high[n - 1].last + 1)
            c->high[n - 1].last = c->high[i].last > c->high[n - 1].last ? c->high[i].last : c->high[n - 1].last;
        else
            c->high[n++] = c->high[i];
    c->n_high = n;
}

static dsv2_status add(const struct dsv2i_hooks *mem, struct class *c, uint32_t first, uint32_t last)
{
    for (uint32_t cp = first, next; cp <= last && cp < 0x10000; cp = next) { /* a word of bits at a time */
        uint32_t end = last < (cp | 31) ? last : cp | 31;

        next = end + 1;
        c->bmp[cp >> 5] |= (UINT32_MAX << (cp & 31)) & (UINT32_MAX >> (31 - (end & 31)));
    }
    if (last < 0x10000)
        return DSV2_OK;
    if (c->n_high == c->capacity) {
        size_t capacity = c->capacity ? c->capacity * 2 : 8;
        struct dsv2i_range *grown = dsv2i_realloc(mem, c->high, capacity, sizeof *grown);

        if (!grown)
            return dsv2i_fail(DSV2_ERR_NOMEM, "no memory for a character class");
        c->high = grown;
        c->capacity = capacity;
    }
    c->high[c->n_high++] = (struct dsv2i_range){first < 0x10000 ? 0x10000 : first, last};
    return DSV2_OK;
}

/* A cursor over a pattern, which is valid UTF-8; failed means "not of our forms". */
struct scan {
    const char *p, *end;
    int failed;
};

static uint32_t hex(struct scan *s, int least, int most)
{
    uint32_t value = 0;
    int digits = 0;

    for (; digits < most && s->p < s->end; digits++, s->p++) {
        const char *at = strchr("0123456789abcdef", *s->p | 0x20);

        if (!*s->p || !at)
            break;
        value = value << 4 | (uint32_t)(at - "0123456789abcdef");
    }
    s->failed |= digits < least || value > 0x10FFFF;
    return value;
}

/* One character, perhaps escaped.  *space is set for \s instead. */
static uint32_t character(struct scan *s, int *space)
{
    uint32_t cp;
    char c;

    *space = 0;
    if (s->p == s->end) {
        s->failed = 1;
        return 0;
    }
    if (*s->p != '\\') {
        s->p += dsv2i_utf8_get(s->p, &cp);
        return cp;
    }
    if (++s->p == s->end) {
        s->failed = 1;
        return 0;
    }
    switch (c = *s->p++) {
    case 's':
        *space = 1;
        return 0;
    case 'r':
        return '\r';
    case 'n':
        return '\n';
    case 't':
        return '\t';
    case 'u':
        return hex(s, 4, 4);
    case 'x':
        if (s->p < s->end && *s->p == '{') {
            s->p++;
            cp = hex(s, 1, 6);
            s->failed |= s->p == s->end || *s->p++ != '}';
            return cp;
        }
        s->failed = 1; /* \xHH is a byte to Oniguruma */
        return 0;
    default: /* punctuation stands for itself; letters and digits mean things that are not for here */
        s->failed |= (unsigned char)c >= 0x80 || (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
        return (unsigned char)c;
    }
}

static dsv2_status add_spaces(const struct dsv2i_hooks *mem, struct class *c)
{
    for (size_t i = 0; i < dsv2i_n_white_space; i++)
        DSV2I_TRY(add(mem, c, dsv2i_white_space[i].first, dsv2i_white_space[i].last));
    return DSV2_OK;
}

static dsv2_status parse_class(const struct dsv2i_hooks *mem, struct scan *s, struct class *c)
{
    int space, empty = 1;
    uint32_t first, last;

    if (s->p < s->end && *s->p == '^')
        s->failed = 1;
    while (!s->failed && s->p < s->end && *s->p != ']') {
        /* a class inside a class, an intersection, and a hyphen that makes no range are left alone */
        if (*s->p == '[' || *s->p == '-' || (*s->p == '&' && s->p + 1 < s->end && s->p[1] == '&')) {
            s->failed = 1;
            break;
        }
        first = last = character(s, &space);
        empty = 0;
        if (space) {
            DSV2I_TRY(add_spaces(mem, c));
            s->failed |= s->p < s->end && *s->p == '-';
            continue;
        }
        if (s->p < s->end && *s->p == '-') {
            s->p++;
            s->failed |= s->p == s->end || *s->p == ']' || *s->p == '[';
            if (!s->failed)
                last = character(s, &space);
            s->failed |= space || last < first;
        }
        if (!s->failed)
            DSV2I_TRY(add(mem, c, first, last));
    }
    s->failed |= empty || s->p == s->end;
    s->p++;
    return DSV2_OK;
}

static dsv2_status parse_atom(const struct dsv2i_hooks *mem, struct scan *s, struct class *c)
{
    int space;
    uint32_t cp;

    if (s->p == s->end || strchr("^$.|?*+(){}]", *s->p)) {
        s->failed = 1;
        return DSV2_OK;
    }
    if (*s->p == '[') {
        s->p++;
        return parse_class(mem, s, c);
    }
    cp = character(s, &space);
    if (space)
        return add_spaces(mem, c);
    return s->failed ? DSV2_OK : add(mem, c, cp, cp);
}

static dsv2_status parse(struct dsv2i_class_pattern *l, struct scan *s)
{
    DSV2I_TRY(parse_atom(l->mem, s, &l->body));
    if (s->failed)
        return DSV2_OK;
    if (s->p == s->end) {
        l->form = ONE;
        return DSV2_OK;
    }
    if (*s->p == '?') {
        l->lead = l->body;
        memset(&l->body, 0, sizeof l->body);
        s->p++;
        DSV2I_TRY(parse_atom(l->mem, s, &l->body));
        l->form = LEAD_RUN;
    } else {
        l->form = RUN;
    }
    s->failed |= s->p >= s->end || *s->p++ != '+';
    if (!s->failed && s->p < s->end && *s->p == '$' && l->form == RUN) {
        l->form = RUN_TO_END;
        s->p++;
    }
    s->failed |= s->p < s->end;
    return DSV2_OK;
}

dsv2_status dsv2i_class_pattern_compile(const struct dsv2i_hooks *mem, const char *pattern, size_t n, struct dsv2i_class_pattern **out)
{
    struct dsv2i_class_pattern *l = dsv2i_calloc(mem, 1, sizeof *l);
    struct scan s = {pattern, pattern + n, 0};
    dsv2_status status;

    *out = NULL;
    if (!l)
        return dsv2i_fail(DSV2_ERR_NOMEM, "no memory for a pattern");
    l->mem = mem;
    status = parse(l, &s);
    if (status != DSV2_OK || s.failed) {
        dsv2i_class_pattern_free(l);
        return status;
    }
    settle(&l->lead);
    settle(&l->body);
    *out = l;
    return DSV2_OK;
}

void dsv2i_class_pattern_free(struct dsv2i_class_pattern *l)
{
    if (!l)
        return;
    dsv2i_free(l->mem, l->lead.high);
    dsv2i_free(l->mem, l->body.high);
    dsv2i_free(l->mem, l);
}

size_t dsv2i_class_pattern_memory(const struct dsv2i_class_pattern *l)
{
    return sizeof *l + (l->lead.capacity + l->body.capacity) * sizeof(struct dsv2i_range);
}

/* The end of the run of c's characters that begins at i. */
static size_t run_end(const struct class *c, const char *text, size_t n, size_t i)
{
    while (i < n) {
        uint32_t cp;
        size_t length = dsv2i_utf8_get(text + i, &cp);

        if (!has(c, cp))
            break;
        i += length;
    }
    return i;
}

/* How far a run from i to j may go so that a line ends behind it; i: nowhere. */
static size_t line_end(const char *text, size_t n, size_t i, size_t j)
{
    if (j == n)
        return j;
    while (j > i && text[j] != '\n')
        j--;
    return j;
}

void dsv2i_class_pattern_next(const struct dsv2i_class_pattern *l, const char *text, size_t n, size_t from, size_t *begin, size_t *end)
{
    size_t i = from;

    while (i < n) {
        uint32_t cp, next;
        size_t length = dsv2i_utf8_get(text + i, &cp), stop = i;

        if (l->form == LEAD_RUN && has(&l->lead, cp) && i + length < n) {
            size_t more = dsv2i_utf8_get(text + i + length, &next);

            if (has(&l->body, next))
                stop = run_end(&l->body, text, n, i + length + more);
        }
        if (stop == i && has(&l->body, cp)) {
            stop = l->form == ONE ? i + length : run_end(&l->body, text, n, i + length);
            if (l->form == RUN_TO_END) {
                size_t run = stop;

                stop = line_end(text, n, i, run);
                if (stop == i) {
                    i = run;
                    continue;
                }
            }
        }
        if (stop > i) {
            *begin = i;
            *end = stop;
            return;
        }
        i += length;
    }
    *begin = *end = n + 1;
}
