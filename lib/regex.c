/* Regular expressions of a pre-tokenizer, as HF tokenizers (Oniguruma, Ruby syntax) understands them.
 * SPDX-License-Identifier: MIT
 *
 * What class_pattern.c knows runs there; the rest is translated to PCRE2.  The two engines read most patterns alike.  Where they do not, the
 * pattern is rewritten, or refused with the name of the construct:
 *     \s \S            White_Space; PCRE2's \s has U+180E too
 *     \d               \p{Nd} either way
 *     \w \W \b \B      Oniguruma's word characters are alphabetic ones, marks, decimal digits and connectors; outside of a class also
 *                      the numbers of Latin-1 (superscripts, fractions)
 *     \h \H            hexadecimal digits; horizontal space in PCRE2
 *     ^ $              beginning and end of any line
 *     \p{Han}          the script; PCRE2 would take script extensions
 *     (?m)             what PCRE2 calls (?s)
 *     (?i:...)         plain ASCII: elsewhere Oniguruma equates characters with several, such as "ß" with "ss"
 *     {,n}             at most n
 * Characters that are newer than PCRE2's Unicode (14 in 10.42) are unassigned here.
 * Time is bounded: PCRE2's match limit stops what explodes inside one attempt, and since attempts may begin at every character, a limit of
 * processor time stops what is merely quadratic. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "regex.h"

#include <limits.h>
#include <pcre2.h>
#include <string.h>
#include <time.h>

#include "class_pattern.h"
#include "utf8.h"

enum {
    MAX_PATTERN = 1 << 16,
    MATCH_LIMIT = 10 * 1000 * 1000, /* steps in one attempt */
    HEAP_LIMIT = 256 * 1024,        /* KiB of backtracking */
    FIRST_WINDOW = 16,              /* places of attempt between two looks at the clock: so many, then more up to */
    WINDOW = 1024,
    LOOK = 10 * 1000 * 1000         /* ns between two looks at this thread's own clock, which takes long to read */
};
#define TIME_BASE 2000000000ull /* ns */
#define TIME_PER_BYTE 2000ull

struct dsv2i_regex {
    const struct dsv2i_hooks *mem;
    char *literal;
    size_t n_literal;
    struct dsv2i_class_pattern *linear;
    pcre2_general_context *general;
    pcre2_match_context *match;
    pcre2_code *code;
};

/* ---- Translation ---- */

struct translation {
    const char *file, *path, *pattern, *p, *end;
    char *out;
    size_t n, capacity;
};

static void emit(struct translation *t, const char *text, size_t n)
{
    /* dsv2i_regex_compile makes room for the longest replacement of each byte */
    memcpy(t->out + t->n, text, n);
    t->n += n;
}

static void emits(struct translation *t, const char *text)
{
    emit(t, text, strlen(text));
}

static dsv2_status refuse(const struct translation *t, const char *at, size_t n, const char *why)
{
    char what[64];

    return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "%s: %s: \"%s\" at byte %zu of the regular expression is not supported: %s", t->file,
                      t->path, dsv2i_quote(what, sizeof what, at, n), (size_t)(at - t->pattern), why);
}

#define WORD_IN_CLASS "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define WORD WORD_IN_CLASS "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"

static int all_hex(const char *p, const char *end)
{
    while (p < end && ((*p >= '0' && *p <= '9') || ((*p | 0x20) >= 'a' && (*p | 0x20) <= 'f')))
        p++;
    return p == end;
}

/* \p{...} or \P{...}: general categories are the same in both engines, longer names are taken for scripts. */
static dsv2_status translate_property(struct translation *t, const char *at)
{
    const char *close, *name;
    int negated = at[1] == 'P';
    size_t n;

    if (t->p == t->end || *t->p != '{' || !(close = memchr(t->p, '}', (size_t)(t->end - t->p))))
        return refuse(t, at, 2, "a property in braces is expected");
    name = t->p + 1;
    if (name < close && *name == '^') {
        negated = !negated;
        name++;
    }
    n = (size_t)(close - name);
    if (!n)
        return refuse(t, at, (size_t)(close + 1 - at), "an empty property");
    for (size_t i = 0; i < n; i++)
        if (!((name[i] | 0x20) >= 'a' && (name[i] | 0x20) <= 'z') && name[i] != '_')
            return refuse(t, at, (size_t)(close + 1 - at), "only names of categories and scripts are known");
    emits(t, negated ? "\\P{" : "\\p{");
    emits(t, n <= 2 ? "" : "sc:");
    emit(t, name, n);
    emits(t, "}");
    t->p = close + 1;
    return DSV2_OK;
}

static dsv2_status translate_escape(struct translation *t, int in_class)
{
    const char *at = t->p++, *close;
    char c;

    if (t->p == t->end)
        return refuse(t, at, 1, "nothing follows");
    c = *t->p++;
    switch (c) {
    case 's':
        emits(t, "\\p{White_Space}");
        return DSV2_OK;
    case 'S':
        emits(t, "\\P{White_Space}");
        return DSV2_OK;
    case 'w':
        emits(t, in_class ? WORD_IN_CLASS : "[" WORD "]");
        return DSV2_OK;
    case 'W':
        if (in_class)
            return refuse(t, at, 2, "it stands in a class");
        emits(t, "[^" WORD "]");
        return DSV2_OK;
    case 'b':
    case 'B':
        if (in_class)
            return refuse(t, at, 2, "it stands in a class");
        emits(t, c == 'b' ? "(?:(?<=[" WORD "])(?![" WORD "])|(?<![" WORD "])(?=[" WORD "]))"
                          : "(?:(?<=[" WORD "])(?=[" WORD "])|(?<![" WORD "])(?![" WORD "]))");
        return DSV2_OK;
    case 'd':
        emits(t, "\\p{Nd}");
        return DSV2_OK;
    case 'D':
        emits(t, "\\P{Nd}");
        return DSV2_OK;
    case 'h':
        emits(t, in_class ? "0-9a-fA-F" : "[0-9a-fA-F]");
        return DSV2_OK;
    case 'H':
        if (in_class)
            return refuse(t, at, 2, "it stands in a class");
        emits(t, "[^0-9a-fA-F]");
        return DSV2_OK;
    case 'p':
    case 'P':
        return translate_property(t, at);
    case 'r':
    case 'n':
    case 't':
    case 'f':
    case 'a':
    case 'e':
        emit(t, at, 2);
        return DSV2_OK;
    case 'v':
        emits(t, "\\x0B");
        return DSV2_OK;
    case 'A':
    case 'z':
    case 'Z':
        if (in_class)
            return refuse(t, at, 2, "it stands in a class");
        emit(t, at, 2);
        return DSV2_OK;
    case 'u':
        if (t->end - t->p < 4 || !all_hex(t->p, t->p + 4))
            return refuse(t, at, 2, "four hexadecimal digits are expected");
        emits(t, "\\x{");
        emit(t, t->p, 4);
        emits(t, "}");
        t->p += 4;
        return DSV2_OK;
    case 'x':
        close = t->p < t->end && *t->p == '{' ? memchr(t->p, '}', (size_t)(t->end - t->p)) : NULL;
        if (!close || close == t->p + 1 || !all_hex(t->p + 1, close))
            return refuse(t, at, 2, "a code point in braces is expected");
        t->p = close + 1;
        emit(t, at, (size_t)(t->p - at));
        return DSV2_OK;
    default:
        if ((unsigned char)c >= 0x80 || (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z'))
            return refuse(t, at, 2, "this escape is not known");
        emit(t, at, 2);
        return DSV2_OK;
    }
}

static dsv2_status translate_class(struct translation *t)
{
    const char *open = t->p;

    emit(t, t->p++, 1);
    if (t->p < t->end && *t->p == '^')
        emit(t, t->p++, 1);
    if (t->p < t->end && *t->p == ']')
        return refuse(t, open, (size_t)(t->p + 1 - open), "an empty class");
    while (t->p < t->end && *t->p != ']') {
        if (*t->p == '\\') {
            DSV2I_TRY(translate_escape(t, 1));
        } else if (*t->p == '[') {
            return refuse(t, t->p, 1, "a class inside a class");
        } else if (*t->p == '&' && t->p + 1 < t->end && t->p[1] == '&') {
            return refuse(t, t->p, 2, "an intersection of classes");
        } else {
            emit(t, t->p++, 1);
        }
    }
    if (t->p == t->end)
        return refuse(t, open, 1, "the class has no end");
    emit(t, t->p++, 1);
    return DSV2_OK;
}

/* At the content of a group without case, which began at at: is it ASCII that means the same to both engines? */
static dsv2_status check_caseless(const struct translation *t, const char *at)
{
    static const char *const folds[] = {"ff", "fi", "fl", "ss", "st"}; /* each also one character */
    int in_class = 0;

    for (const char *p = t->p; p < t->end && (*p != ')' || in_class); p++) {
        size_t n = (size_t)(p + 1 - at);

        in_class = *p == '[' || (in_class && *p != ']');
        if ((unsigned char)*p >= 0x80 || strchr("\\({", *p))
            return refuse(t, at, n, "in a group without case only plain ASCII is known");
        for (size_t i = 0; i < sizeof folds / sizeof *folds && !in_class && p + 1 < t->end; i++)
            if ((p[0] | 0x20) == folds[i][0] && (p[1] | 0x20) == folds[i][1])
                return refuse(t, at, n + 1, "without case these letters are also a ligature");
    }
    return DSV2_OK;
}

/* What follows "(": a plain or special group.  Options are i and m, the rest of the group being copied like anything else. */
static dsv2_status translate_group(struct translation *t)
{
    static const char *const same[] = {"?:", "?=", "?!", "?>", "?<=", "?<!"};
    const char *at = t->p;
    int caseless = 0, off = 0;

    emit(t, t->p++, 1);
    if (t->p == t->end || *t->p != '?') {
        if (t->p < t->end && *t->p == '*')
            return refuse(t, at, 2, "a verb");
        return DSV2_OK;
    }
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        size_t n = strlen(same[i]);

        if ((size_t)(t->end - t->p) >= n && !memcmp(t->p, same[i], n)) {
            emit(t, t->p, n);
            t->p += n;
            return DSV2_OK;
        }
    }
    emit(t, t->p++, 1);
    for (; t->p < t->end && *t->p != ':' && *t->p != ')'; t->p++) {
        off |= *t->p == '-';
        caseless |= *t->p == 'i' && !off;
        if (*t->p != 'i' && *t->p != 'm' && *t->p != '-')
            return refuse(t, at, (size_t)(t->p + 1 - at), "this kind of group is not known");
        emits(t, *t->p == 'm' ? "s" : *t->p == 'i' ? "i" : "-");
    }
    if (t->p == t->end || *t->p == ')')
        return refuse(t, at, (size_t)(t->p - at), "options are for a group with a colon only");
    emit(t, t->p++, 1);
    return caseless ? check_caseless(t, at) : DSV2_OK;
}

/* {n}, {n,}, {n,m} and {,m}; anything else in braces is text for both engines. */
static dsv2_status translate_braces(struct translation *t)
{
    const char *at = t->p, *q = at + 1;
    int digits = 0, comma = 0, after = 0;

    for (; q < t->end && *q >= '0' && *q <= '9'; q++)
        digits++;
    if (q < t->end && *q == ',') {
        comma = 1;
        for (q++; q < t->end && *q >= '0' && *q <= '9'; q++)
            after++;
    }
    if (q == t->end || *q != '}' || (!digits && !after)) {
        emits(t, "\\{");
        t->p++;
        return DSV2_OK;
    }
    emits(t, digits ? "{" : "{0");
    emit(t, at + 1, (size_t)(q - at));
    t->p = q + 1;
    if (t->p < t->end && (*t->p == '+' || (*t->p == '?' && !comma)))
        return refuse(t, at, (size_t)(t->p + 1 - at), "a repeat with such a suffix means another thing to PCRE2");
    return DSV2_OK;
}

static dsv2_status translate(struct translation *t)
{
    while (t->p < t->end) {
        switch (*t->p) {
        case '\\':
            DSV2I_TRY(translate_escape(t, 0));
            break;
        case '[':
            DSV2I_TRY(translate_class(t));
            break;
        case '(':
            DSV2I_TRY(translate_group(t));
            break;
        case '{':
            DSV2I_TRY(translate_braces(t));
            break;
        case '^':
            emits(t, "(?:\\A|(?<=\\n)(?!\\z))");
            t->p++;
            break;
        case '$':
            emits(t, "(?=\\n|\\z)");
            t->p++;
            break;
        default:
            emit(t, t->p++, 1);
        }
    }
    return DSV2_OK;
}

/* ---- Compilation ---- */

static void *pcre2_take(size_t size, void *mem)
{
    return dsv2i_alloc(mem, size, 1);
}

static void pcre2_give(void *ptr, void *mem)
{
    dsv2i_free(mem, ptr);
}

static dsv2_status compile(struct dsv2i_regex *re, const struct translation *t, uint32_t anchored)
{
    uint32_t options = anchored | PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK | PCRE2_USE_OFFSET_LIMIT | PCRE2_NEVER_BACKSLASH_C;
    pcre2_compile_context *context;
    PCRE2_SIZE where;
    PCRE2_UCHAR text[128];
    int code = 0;

    re->general = pcre2_general_context_create(pcre2_take, pcre2_give, (void *)re->mem);
    context = pcre2_compile_context_create(re->general);
    if (re->general && context) {
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        re->code = pcre2_compile((PCRE2_SPTR)t->out, t->n, options, &code, &where, context);
        re->match = pcre2_match_context_create(re->general);
    }
    pcre2_compile_context_free(context);
    if (!re->code && code && code != PCRE2_ERROR_NOMEMORY && code != 121) { /* 121: no memory while compiling */
        pcre2_get_error_message(code, text, sizeof text);
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: the regular expression is not one: %s", t->file, t->path, (char *)text);
    }
    if (!re->code || !re->match)
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s: %s: no memory for the regular expression", t->file, t->path);
    pcre2_set_match_limit(re->match, MATCH_LIMIT);
    pcre2_set_heap_limit(re->match, HEAP_LIMIT);
    return DSV2_OK;
}

static dsv2_status build(struct dsv2i_regex *re, struct translation *t, uint32_t flags)
{
    size_t n = (size_t)(t->end - t->p), longest = strlen("(?:(?<=[" WORD "])(?![" WORD "])|(?<![" WORD "])(?=[" WORD "]))");

    if (n > MAX_PATTERN)
        return dsv2i_fail(DSV2_ERR_LIMIT, "%s: %s: a pattern of %zu bytes is over the limit of %d", t->file, t->path, n, MAX_PATTERN);
    if (!n)
        return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "%s: %s: the pattern is empty", t->file, t->path);
    if (flags & DSV2I_REGEX_LITERAL) {
        re->literal = dsv2i_strndup(re->mem, t->p, n);
        re->n_literal = n;
        return re->literal ? DSV2_OK : dsv2i_fail(DSV2_ERR_NOMEM, "%s: %s: no memory for a pattern", t->file, t->path);
    }
    if (!(flags & (DSV2I_REGEX_GENERAL | DSV2I_REGEX_BEGIN))) {
        DSV2I_TRY(dsv2i_class_pattern_compile(re->mem, t->p, n, &re->linear));
        if (re->linear)
            return DSV2_OK;
    }
    t->out = dsv2i_alloc(re->mem, n, longest);
    if (!t->out)
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s: %s: no memory for a pattern", t->file, t->path);
    DSV2I_TRY(translate(t));
    DSV2I_TRY(compile(re, t, flags & DSV2I_REGEX_BEGIN ? PCRE2_ANCHORED : 0));
    /* Where there is no JIT (an architecture, a system that forbids writable code) the interpreter does the same, slower. */
    if (!(flags & DSV2I_REGEX_BEGIN))
        pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE);
    return DSV2_OK;
}

dsv2_status dsv2i_regex_compile(const struct dsv2i_hooks *mem, const char *file, const char *path, const char *pattern,
                                size_t n, uint32_t flags, struct dsv2i_regex **out)
{
    struct translation t = {.file = file, .path = path, .pattern = pattern, .p = pattern, .end = pattern + n};
    struct dsv2i_regex *re = dsv2i_calloc(mem, 1, sizeof *re);
    dsv2_status status;

    *out = NULL;
    if (!re)
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s: %s: no memory for a pattern", file, path);
    re->mem = mem;
    status = build(re, &t, flags);
    dsv2i_free(mem, t.out);
    if (status != DSV2_OK)
        dsv2i_regex_free(re);
    else
        *out = re;
    return status;
}

void dsv2i_regex_free(struct dsv2i_regex *re)
{
    if (!re)
        return;
    dsv2i_free(re->mem, re->literal);
    dsv2i_class_pattern_free(re->linear);
    pcre2_code_free(re->code);
    pcre2_match_context_free(re->match);
    pcre2_general_context_free(re->general);
    dsv2i_free(re->mem, re);
}

size_t dsv2i_regex_memory(const struct dsv2i_regex *re)
{
    size_t code = 0, jit = 0;

    if (re->code) {
        pcre2_pattern_info(re->code, PCRE2_INFO_SIZE, &code);
        pcre2_pattern_info(re->code, PCRE2_INFO_JITSIZE, &jit);
    }
    return sizeof *re + re->n_literal + (re->linear ? dsv2i_class_pattern_memory(re->linear) : 0) + code + jit;
}

/* ---- Matching ---- */

static uint64_t read_clock(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t dsv2i_regex_now(void)
{
    return read_clock(CLOCK_THREAD_CPUTIME_ID);
}

uint64_t dsv2i_regex_deadline(size_t bytes)
{
    return dsv2i_regex_now() + TIME_BASE + TIME_PER_BYTE * bytes;
}

/* The coarse clock costs next to nothing. */
static int is_late(struct dsv2i_matcher *m)
{
    uint64_t now = read_clock(CLOCK_MONOTONIC_COARSE);

    if (now - m->looked < LOOK)
        return 0;
    m->looked = now;
    return dsv2i_regex_now() > m->deadline;
}

dsv2_status dsv2i_matcher_begin(struct dsv2i_matcher *m, const struct dsv2i_regex *re, uint64_t deadline)
{
    *m = (struct dsv2i_matcher){.re = re, .deadline = deadline};
    if (!re->code)
        return DSV2_OK;
    m->match_data = pcre2_match_data_create(1, re->general);
    m->context = pcre2_match_context_copy(re->match); /* the offset limit in it is this walk's own */
    if (!m->match_data || !m->context) {
        dsv2i_matcher_end(m);
        return dsv2i_fail(DSV2_ERR_NOMEM, "no memory for matching a regular expression");
    }
    return DSV2_OK;
}

void dsv2i_matcher_end(struct dsv2i_matcher *m)
{
    pcre2_match_data_free(m->match_data);
    pcre2_match_context_free(m->context);
}

static dsv2_status find_general(struct dsv2i_matcher *m, const char *text, size_t n, size_t from, size_t *begin, size_t *end)
{
    const pcre2_code *code = m->re->code;
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    size_t width = FIRST_WINDOW;

    *begin = *end = n + 1;
    for (;;) {
        size_t last = n - from > width ? from + width : n;
        int rc;

        if (is_late(m))
            return dsv2i_fail(DSV2_ERR_LIMIT, "a regular expression of the tokenizer takes too long on this text");
        while (last < n && ((unsigned char)text[last] & 0xC0) == 0x80)
            last++;
        pcre2_set_offset_limit(m->context, last);
        rc = pcre2_match(code, subject, n, from, PCRE2_NO_UTF_CHECK, m->match_data, m->context);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter's stack is the heap, within the limit set */
            rc = pcre2_match(code, subject, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m->match_data, m->context);
        if (rc >= 0) {
            const PCRE2_SIZE *found = pcre2_get_ovector_pointer(m->match_data);

            *begin = found[0];
            *end = found[1];
            return DSV2_OK;
        }
        if (rc == PCRE2_ERROR_NOMEMORY)
            return dsv2i_fail(DSV2_ERR_NOMEM, "no memory for matching a regular expression");
        if (rc != PCRE2_ERROR_NOMATCH)
            return dsv2i_fail(DSV2_ERR_LIMIT, "a regular expression of the tokenizer takes too many steps on this text");
        if (last == n)
            return DSV2_OK;
        from = last;
        width = width < WINDOW ? 4 * width : WINDOW;
    }
}

dsv2_status dsv2i_matcher_next(struct dsv2i_matcher *m, const char *text, size_t n, size_t from, size_t *begin, size_t *end)
{
    const struct dsv2i_regex *re = m->re;

    if (re->linear) {
        dsv2i_class_pattern_next(re->linear, text, n, from, begin, end);
        return DSV2_OK;
    }
    if (re->literal) {
        const char *at = from < n ? memmem(text + from, n - from, re->literal, re->n_literal) : NULL;

        *begin = at ? (size_t)(at - text) : n + 1;
        *end = *begin + re->n_literal;
        return DSV2_OK;
    }
    return find_general(m, text, n, from, begin, end);
}
