/* The pre-tokenizer: linear code against PCRE2, behaviours of Split, translation of regular expressions.
 * SPDX-License-Identifier: MIT */
#include "util.h"

#include "pretokenizer.h"
#include "regex.h"
#include "unicode.h"
#include "utf8.h"

/* Text of characters from all over, with many of those that classes and white space disagree about. */
static size_t random_text(uint32_t *seed, char *out, int characters)
{
    static const uint32_t notable[] = {' ', ' ', '\n', '\r', '\t', 0x85, 0xA0, 0x1680, 0x180E, 0x2000, 0x200B, 0x2028, 0x202F, 0x205F, 0x3000, 0x3001, 'a', 'Z',
                                       '!', '~', 0xDF, 0xE9, 0x1BB, 0x2019, 0x4E00, 0x9FA5, 0x9FA6, 0x7FF, 0x800, 0xAC00, 0xD7FF, 0xE000, 0xFF01, 0xFF21,
                                       0xFFFF, 0x10000, 0x10400, 0x1044F, 0x10450, 0x1E943, 0x1E944, 0x10FFFF, 0, '1', 0xBD, 0x660};
    size_t n = 0;

    for (int i = 0; i < characters; i++) {
        uint32_t cp = next_random(seed) % 4 ? notable[next_random(seed) % (sizeof notable / sizeof *notable)] : next_random(seed) % 0x110000;

        n += dsv2i_utf8_put(out + n, cp >= 0xD800 && cp < 0xE000 ? 'x' : cp);
    }
    return n;
}

static void compare_engines(const char *pattern, uint32_t seed, int rounds)
{
    struct dsv2i_regex *linear, *general;
    struct dsv2i_matcher a, b;
    size_t n_pattern = strlen(pattern);

    assert_int_equal(dsv2i_regex_compile(&dsv2i_heap, "f", "p", pattern, n_pattern, 0, &linear), DSV2_OK);
    if (dsv2i_regex_compile(&dsv2i_heap, "f", "p", pattern, n_pattern, DSV2I_REGEX_GENERAL, &general) != DSV2_OK)
        fail_msg("%s", dsv2_last_error());
    assert_int_equal(dsv2i_matcher_begin(&a, linear, dsv2i_regex_deadline(1 << 20)), DSV2_OK);
    assert_int_equal(dsv2i_matcher_begin(&b, general, dsv2i_regex_deadline(1 << 20)), DSV2_OK);
    assert_null(a.match_data);
    assert_non_null(b.match_data);
    for (int round = 0; round < rounds; round++) {
        char text[256];
        size_t n = random_text(&seed, text, (int)(next_random(&seed) % 60)), from = 0, begin[2], end[2];

        while (from <= n) {
            assert_int_equal(dsv2i_matcher_next(&a, text, n, from, &begin[0], &end[0]), DSV2_OK);
            assert_int_equal(dsv2i_matcher_next(&b, text, n, from, &begin[1], &end[1]), DSV2_OK);
            if (begin[0] != begin[1] || (begin[0] <= n && end[0] != end[1]))
                fail_msg("%.30s: %zu..%zu, PCRE2 %zu..%zu in %.*s", pattern, begin[0], end[0], begin[1], end[1], (int)n, text);
            if (begin[0] > n)
                break;
            from = end[0];
        }
    }
    dsv2i_matcher_end(&a);
    dsv2i_matcher_end(&b);
    dsv2i_regex_free(linear);
    dsv2i_regex_free(general);
}

/* Every Split of the bundled tokenizer, which are the family's, is linear, and finds what PCRE2 finds. */
static void test_linear_equals_pcre2(void **state)
{
    static const char *const more[] = {"a", "[a-z]", " ?[a-z!]+", "\\s+", "\\s?\\s+", "[\\s!]+$", "a+$", "[\\u4e00-\\u9fa5\\x{800}-\\x{1044F}]+", "\\s?[\\s]+",
                                       "[\\]\\[\\\\\\-^]+", "[a&!]+", "[\\n ]+$",
                                       /* above U+FFFF: not in order, some meet, some lie within others */
                                       "[\\x{60000}-\\x{80000}\\x{F0000}a\\x{20000}-\\x{40000}\\x{30000}\\x{3F000}-\\x{50000}\\x{90000}-\\x{A0000}\\x{10000}]+"};
    size_t n;
    char *json = load("examples/model/tokenizer.json", &n);
    cJSON *root = cJSON_Parse(json), *step;
    int splits = 0;

    cJSON_ArrayForEach(step, cJSON_GetObjectItem(cJSON_GetObjectItem(root, "pre_tokenizer"), "pretokenizers")) {
        cJSON *pattern = cJSON_GetObjectItem(step, "pattern");

        if (pattern) {
            compare_engines(cJSON_GetObjectItem(pattern, "Regex")->valuestring, 100 + (uint32_t)splits, 4000);
            splits++;
        }
    }
    assert_int_equal(splits, 5);
    for (size_t i = 0; i < sizeof more / sizeof *more; i++)
        compare_engines(more[i], 200 + (uint32_t)i, 1000);
    cJSON_Delete(root);
    free(json);
}

static char *cut(const char *steps, const char *text)
{
    static char out[512];
    char json[1024], *p = out;
    struct dsv2i_pretokenizer *pt;
    struct dsv2i_pieces pieces = {.mem = &dsv2i_heap, .deadline = dsv2i_regex_deadline(strlen(text))};
    cJSON *node;

    snprintf(json, sizeof json, "{\"type\":\"Sequence\",\"pretokenizers\":[%s]}", steps);
    node = cJSON_Parse(json);
    assert_non_null(node);
    if (dsv2i_pretokenizer_parse(&dsv2i_heap, "f", node, &pt) != DSV2_OK || dsv2i_pretokenizer_run(pt, text, strlen(text), &pieces) != DSV2_OK)
        fail_msg("%s", dsv2_last_error());
    *p = 0;
    for (size_t i = 0; i < pieces.n; i++)
        p += sprintf(p, "%s%.*s", i ? "|" : "", (int)(pieces.at[i].end - pieces.at[i].begin), pieces.text + pieces.at[i].begin);
    dsv2i_pieces_free(&pieces);
    dsv2i_pretokenizer_free(pt);
    cJSON_Delete(node);
    return out;
}

#define BYTES "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}"
#define SPLIT(kind, pattern, behavior, invert) \
    "{\"type\":\"Split\",\"pattern\":{\"" kind "\":\"" pattern "\"},\"behavior\":\"" behavior "\",\"invert\":" invert "}," BYTES

/* Expected: tokenizers 0.23, Split(...).pre_tokenize_str. */
static void test_behaviors(void **state)
{
    assert_string_equal(cut(SPLIT("String", "-", "Isolated", "false"), "a--b-"), "a|-|-|b|-");
    assert_string_equal(cut(SPLIT("String", "-", "Removed", "false"), "-a--b-"), "a|b");
    assert_string_equal(cut(SPLIT("String", "-", "MergedWithPrevious", "false"), "-a--b-"), "-|a-|-|b-");
    assert_string_equal(cut(SPLIT("String", "-", "MergedWithNext", "false"), "-a--b-"), "-a|-|-b|-");
    assert_string_equal(cut(SPLIT("String", "-", "Contiguous", "false"), "-a--b-"), "-|a|--|b|-");
    assert_string_equal(cut(SPLIT("Regex", "[a-z]", "Removed", "true"), "ab1c2"), "a|b|c");
    assert_string_equal(cut(SPLIT("Regex", "[a-z]+", "MergedWithPrevious", "true"), "1ab2cd3"), "1|ab2|cd3");
    assert_string_equal(cut(SPLIT("Regex", "x*", "Isolated", "false"), "axxb"), "a|xx|b");
    assert_string_equal(cut(SPLIT("Regex", "(?=b)", "Isolated", "false"), "abab"), "a|ba|b");
    assert_string_equal(cut("{\"type\":\"Digits\",\"individual_digits\":true}," BYTES, "a12\xC2\xBD" "b"), "a|1|2|\xC2\xBD|b");
    assert_string_equal(cut("{\"type\":\"Digits\",\"individual_digits\":false}," BYTES, "a12\xC2\xBD" "b"), "a|12\xC2\xBD|b");
    assert_string_equal(cut("{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":true}", "Hello, it's  me 12"), " Hello|,| it|'s| | me| 12");
    assert_string_equal(cut("{\"type\":\"Sequence\",\"pretokenizers\":[" BYTES "]}", "a b"), "a b");
}

/* What differs between the two regex dialects.  Expected: tokenizers 0.23. */
static void test_dialect(void **state)
{
#define ISOLATED(pattern) SPLIT("Regex", pattern, "Isolated", "false")
    assert_string_equal(cut(ISOLATED("\\\\s|z"), "a\xE1\xA0\x8E" "b c"), "a\xE1\xA0\x8E" "b| |c"); /* U+180E is no white space */
    assert_string_equal(cut(ISOLATED("[^\\\\s]b|z"), "\xE1\xA0\x8E" "b b"), "\xE1\xA0\x8E" "b| b");
    assert_string_equal(cut(ISOLATED("(?:a$|z)"), "a\r\na\n"), "a\r\n|a|\n");
    assert_string_equal(cut(ISOLATED("(?:^a|z)"), "a\nab\na"), "a|\n|a|b\n|a");
    assert_string_equal(cut(ISOLATED(".+"), "a\r\nb"), "a\r|\n|b");
    assert_string_equal(cut(ISOLATED("(?m:.+)"), "a\nb"), "a\nb");
    assert_string_equal(cut(ISOLATED("(?i:ab)"), "xABy"), "x|AB|y");
    assert_string_equal(cut(ISOLATED("a{,2}b"), "aaab"), "a|aab");
    assert_string_equal(cut(ISOLATED("a{x"), "ba{xb"), "b|a{x|b");
    assert_string_equal(cut(ISOLATED("\\\\p{Han}+"), "a\xE4\xB8\xAD\xE3\x80\x81" "b"), "a|\xE4\xB8\xAD|\xE3\x80\x81" "b");
    assert_string_equal(cut(ISOLATED("\\\\p{^L}+"), "a12b"), "a|12|b");
    assert_string_equal(cut(ISOLATED("\\\\h+"), "xafg"), "x|af|g");
    assert_string_equal(cut(ISOLATED("\\\\w+"), "a_\xC3\xA9-b"), "a_\xC3\xA9|-|b");
    assert_string_equal(cut(ISOLATED("\\\\w+"), "\xC2\xBD-\xE2\x85\xA3\xE2\x92\xB6-\xE2\x81\xB4"), "\xC2\xBD|-|\xE2\x85\xA3\xE2\x92\xB6|-\xE2\x81\xB4"); /* U+BD 2163 24B6 2074 */
    assert_string_equal(cut(ISOLATED("[\\\\w]b|z"), "\xC2\xBD" "b\xE2\x85\xA3" "b"), "\xC2\xBD" "b|\xE2\x85\xA3" "b");
    assert_string_equal(cut(ISOLATED("\\\\x{e9}b|z"), "a\xC3\xA9" "b"), "a|\xC3\xA9" "b");
    assert_string_equal(cut(ISOLATED("'(?i:[sdmt]|ll|ve|re)"), "it'Sx'LL"), "it|'S|x|'LL");
    assert_string_equal(cut(ISOLATED("\\\\bb"), "abb b"), "abb |b");
    assert_string_equal(cut(ISOLATED("\\\\p{N}{1,3}"), "12345"), "123|45");
}

static void test_numeric(void **state)
{
    /* counted in tokenizers 0.23: Digits cuts at these many code points */
    unsigned numeric = 0, space = 0;

    for (uint32_t cp = 0; cp < 0x110000; cp++) {
        numeric += (unsigned)dsv2i_is_numeric(cp);
        space += (unsigned)dsv2i_is_space(cp);
    }
    assert_int_equal(numeric, 1924);
    assert_int_equal(space, 25);
    assert_true(dsv2i_is_numeric(0xBD) && dsv2i_is_numeric(0x2167) && dsv2i_is_numeric(0x10D40) && !dsv2i_is_numeric('a'));
    assert_true(dsv2i_is_word(0xE9) && dsv2i_is_word('_') && dsv2i_is_word(0x24B6) && !dsv2i_is_word(0xBD) && !dsv2i_is_word('-'));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear_equals_pcre2), cmocka_unit_test(test_behaviors), cmocka_unit_test(test_dialect), cmocka_unit_test(test_numeric),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
