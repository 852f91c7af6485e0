/* A pattern and a text behind a 0xFF: a pattern that has linear code finds with it what PCRE2 finds.  A pattern that begins with 0x01 is
 * a literal.
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "regex.h"
#include "utf8.h"

enum { MOST_MATCHES = 256 };

struct match {
    size_t begin, end;
};

/* NULL: refused. */
static struct dsv2i_regex *compile(const char *pattern, size_t n, uint32_t flags)
{
    struct dsv2i_regex *re;
    dsv2_status status;

    do
        status = dsv2i_regex_compile(&fuzz_mem, "file", "path", pattern, n, flags, &re);
    while (fuzz_check_regex(status) == DSV2_ERR_NOMEM);
    MUST((status == DSV2_OK) == (re != NULL));
    if (re)
        MUST(dsv2i_regex_memory(re) > 0);
    else
        MUST(strstr(dsv2_last_error(), "file: path: "));
    return re;
}

static int at_border(const char *text, size_t n, size_t i)
{
    return i == n || (i < n && ((unsigned char)text[i] & 0xC0) != 0x80);
}

/* The matches as a pre-tokenizer walks them; fewer than 0: too many steps. */
static int find_all(const struct dsv2i_regex *re, const char *text, size_t n, struct match *out)
{
    struct dsv2i_matcher m;
    dsv2_status status;
    size_t from = 0;
    int found = 0;

    do
        status = dsv2i_matcher_begin(&m, re, dsv2i_regex_deadline(n));
    while (fuzz_check_regex(status) == DSV2_ERR_NOMEM);
    MUST(status == DSV2_OK);
    while (from <= n && found < MOST_MATCHES) {
        struct match *k = &out[found];
        uint32_t cp;

        do
            status = dsv2i_matcher_next(&m, text, n, from, &k->begin, &k->end);
        while (fuzz_check_regex(status) == DSV2_ERR_NOMEM);
        MUST(status == DSV2_OK || status == DSV2_ERR_LIMIT);
        if (status != DSV2_OK)
            found = -1;
        if (status != DSV2_OK || k->begin > n)
            break;
        MUST(from <= k->begin && k->begin <= k->end && k->end <= n);
        MUST(at_border(text, n, k->begin) && at_border(text, n, k->end));
        from = k->end;
        if (k->begin == k->end)
            from += from < n ? dsv2i_utf8_get(text + from, &cp) : 1;
        found++;
    }
    dsv2i_matcher_end(&m);
    return found;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct match one[MOST_MATCHES], other[MOST_MATCHES];
    struct dsv2i_regex *re, *general = NULL;
    const char *pattern, *text;
    size_t n, n_text;
    int literal, found, again;

    fuzz_begin(data, &size);
    pattern = fuzz_piece(&data, &size, &n);
    literal = n && *pattern == 1;
    pattern += literal;
    n = dsv2i_utf8_valid(pattern, strnlen(pattern, n - (size_t)literal));
    text = (const char *)data;
    n_text = dsv2i_utf8_valid(text, size);
    re = compile(pattern, n, literal ? DSV2I_REGEX_LITERAL : 0);
    if (!literal)
        general = compile(pattern, n, DSV2I_REGEX_GENERAL);
    MUST(re || !general);
    found = re ? find_all(re, text, n_text, one) : -1;
    again = general ? find_all(general, text, n_text, other) : -1;
    if (found >= 0 && again >= 0) {
        MUST(found == again);
        MUST(!found || !memcmp(one, other, (size_t)found * sizeof *one));
    }
    dsv2i_regex_free(re);
    dsv2i_regex_free(general);
    fuzz_end();
    return 0;
}
