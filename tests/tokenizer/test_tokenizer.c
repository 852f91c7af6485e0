/* Encoding and decoding: the bundled tokenizer against HF tokenizers, and hand-made cases of each rule.
 * SPDX-License-Identifier: MIT */
#include "util.h"

static struct dsv2i_tokenizer *bundled;
static uint64_t bundled_hash = 0xCBF29CE484222325u;

static int load_bundled(void **state)
{
    size_t n, n_config;
    char *json = load("examples/model/tokenizer.json", &n), *config = load("examples/model/tokenizer_config.json", &n_config);

    if (dsv2i_tokenizer_parse(&dsv2i_heap, "tokenizer.json", json, n, "tokenizer_config.json", config, n_config, 2048, 2000, &bundled))
        fail_msg("%s", dsv2_last_error());
    for (size_t i = 0; i < n; i++)
        bundled_hash = (bundled_hash ^ (unsigned char)json[i]) * 0x100000001B3u;
    free(json);
    free(config);
    return 0;
}

static int free_bundled(void **state)
{
    dsv2i_tokenizer_free(bundled);
    return 0;
}

static uint64_t number(const unsigned char **p, int bytes)
{
    uint64_t value = 0;

    for (int i = 0; i < bytes; i++)
        value |= (uint64_t) * (*p)++ << 8 * i;
    return value;
}

static void expect(const struct dsv2i_tokenizer *t, uint32_t flags, const char *text, size_t n_text, const int32_t *want, size_t n)
{
    int32_t ids[64];
    size_t got;

    if (dsv2i_tokenizer_encode(t, text, n_text, flags, ids, 64, &got) != DSV2_OK)
        fail_msg("%s", dsv2_last_error());
    assert_int_equal(got, n);
    if (n)
        assert_memory_equal(ids, want, n * sizeof *ids);
}

#define EXPECT(t, flags, text, ...) \
    do { \
        int32_t want_[] = {__VA_ARGS__}; \
        expect(t, flags, text, sizeof text - 1, want_, sizeof want_ / sizeof *want_); \
    } while (0)

static void test_bundled_against_oracle(void **state)
{
    static int32_t ids[65536];
    static char back[1 << 18];
    dsv2_model model = {.tokenizer = bundled, .config.shape.vocab_size = 2048};
    size_t size, differ = 0;
    char *file = load("tests/tokenizer/encodings.bin", &size);
    const unsigned char *p = (unsigned char *)file;
    uint32_t count;

    if (number(&p, 8) != bundled_hash)
        fail_msg("encodings.bin was made from another examples/model/tokenizer.json: run tests/tokenizer/make_fixture.py");
    count = (uint32_t)number(&p, 4);
    assert_true(count >= 10000);
    for (uint32_t i = 0; i < count; i++) {
        size_t n_text = number(&p, 2), n_want = number(&p, 2), n, n_back;
        const char *text = (const char *)p;
        int same;

        p += n_text;
        assert_int_equal(dsv2i_tokenizer_encode(bundled, text, n_text, 0, ids, 65536, &n), DSV2_OK);
        same = n == n_want;
        for (size_t k = 0; k < n_want; k++) {
            int32_t id = *p++;

            if (id >= 240)
                id = (id - 240) * 256 + *p++;
            same = same && ids[k] == id;
        }
        if (!same && differ++ < 5)
            print_error("string %u differs: %.*s\n", (unsigned)i, (int)n_text, text);
        assert_int_equal(dsv2i_detokenize(&model, ids, n, 0, back, sizeof back, &n_back), DSV2_OK);
        assert_int_equal(n_back, n_text);
        assert_memory_equal(back, text, n_text);
    }
    assert_int_equal(differ, 0);
    assert_ptr_equal(p, file + size);
    free(file);
}

static void test_bos(void **state)
{
    int32_t ids[8], bos = 2000;
    size_t n;

    expect(bundled, DSV2_TOKENIZE_BOS, "", 0, &bos, 1);
    assert_int_equal(dsv2i_tokenizer_encode(bundled, "a", 1, DSV2_TOKENIZE_BOS, ids, 8, &n), DSV2_OK);
    assert_int_equal(n, 2);
    assert_int_equal(ids[0], 2000);
    assert_int_equal(dsv2i_tokenizer_encode(bundled, "a", 1, 0, ids, 8, &n), DSV2_OK);
    assert_int_equal(n, 1);
}

/* tokenizer_config.json decides about BOS; where it is silent, the class does. */
static void test_add_bos_token(void **state)
{
    static const struct {
        const char *config;
        int bos;
    } cases[] = {{"{\"add_bos_token\":true}", 1},
                 {"{\"add_bos_token\":false,\"tokenizer_class\":\"LlamaTokenizerFast\"}", 0},
                 {"{\"tokenizer_class\":\"LlamaTokenizerFast\"}", 1},
                 {"{\"tokenizer_class\":\"PreTrainedTokenizerFast\"}", 0},
                 {"{}", 0}};
    char *json = small_tokenizer("", "");

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct dsv2i_tokenizer *t;
        int32_t ids[4];
        size_t n;

        assert_int_equal(dsv2i_tokenizer_parse(&dsv2i_heap, "tokenizer.json", json, strlen(json), "tokenizer_config.json",
                                               cases[i].config, strlen(cases[i].config), 1000, 7, &t), DSV2_OK);
        assert_int_equal(dsv2i_tokenizer_encode(t, "x", 1, DSV2_TOKENIZE_BOS, ids, 4, &n), DSV2_OK);
        assert_int_equal(n, 1 + cases[i].bos);
        dsv2i_tokenizer_free(t);
    }
    free(json);
}

static void test_merge_order(void **state)
{
    struct dsv2i_tokenizer *t = parse_small("", "");

    EXPECT(t, 0, "abc", 257);             /* b c first, then a bc; a b would be first from the left */
    EXPECT(t, 0, "abab", 256, 256);
    EXPECT(t, 0, "aaa", 260, 'a');        /* of equal ranks the leftmost */
    EXPECT(t, 0, "aaaaaaaa", 261, 261);
    EXPECT(t, 0, "  x", 259, 'x');
    dsv2i_tokenizer_free(t);
}

/* The array method and the heap method meet at 64 bytes: the same ids by cutting where no merge can reach. */
static void test_long_pieces_equal_short_ones(void **state)
{
    struct dsv2i_tokenizer *t = parse_small("", "");
    static const char letters[] = "aabbccab c";
    uint32_t seed = 5;

    for (int round = 0; round < 300; round++) {
        char text[1200];
        int32_t whole[1200], parts[1200];
        size_t n = 0, n_whole, n_parts = 0, got;

        while (n < 600) { /* words shorter than 64, parted by a byte that nothing merges with */
            size_t word = 1 + next_random(&seed) % 60, begin = n;

            for (size_t i = 0; i < word; i++)
                text[n++] = letters[next_random(&seed) % 10];
            text[n++] = '|';
            assert_int_equal(dsv2i_tokenizer_encode(t, text + begin, n - begin, 0, parts + n_parts, 1200 - n_parts, &got), DSV2_OK);
            n_parts += got;
        }
        assert_int_equal(dsv2i_tokenizer_encode(t, text, n, 0, whole, 1200, &n_whole), DSV2_OK);
        assert_int_equal(n_whole, n_parts);
        assert_memory_equal(whole, parts, n_parts * sizeof *whole);
    }
    dsv2i_tokenizer_free(t);
}

static void test_invalid_utf8(void **state)
{
    struct dsv2i_tokenizer *t = parse_small("", "");
    static const struct {
        const char *text;
        size_t n, at;
    } bad[] = {{"ab\x80", 3, 2}, {"\xC0\xAF", 2, 0}, {"a\xED\xA0\x80", 4, 1}, {"\xF4\x90\x80\x80", 4, 0}, {"xyz\xE4\xBD", 5, 3}, {"\xFF", 1, 0}};
    int32_t ids[8];
    size_t n;
    char where[32];

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(dsv2i_tokenizer_encode(t, bad[i].text, bad[i].n, 0, ids, 8, &n), DSV2_ERR_UTF8);
        snprintf(where, sizeof where, "at byte %zu ", bad[i].at);
        assert_non_null(strstr(dsv2_last_error(), where));
    }
    /* one U+FFFD per maximal subpart, as Python and browsers do */
    EXPECT(t, DSV2_TOKENIZE_REPLACE, "a\xE4\xBDz", 'a', 0xEF, 0xBF, 0xBD, 'z');
    EXPECT(t, DSV2_TOKENIZE_REPLACE, "\xC0\xAF", 0xEF, 0xBF, 0xBD, 0xEF, 0xBF, 0xBD);
    EXPECT(t, DSV2_TOKENIZE_REPLACE, "\xF0\x9F\x98", 0xEF, 0xBF, 0xBD);
    EXPECT(t, 0, "a\0b", 'a', 0, 'b');
    dsv2i_tokenizer_free(t);
}

#define ADDED(id, text, flags) "{\"id\":" #id ",\"content\":\"" text "\"" flags "}"

static void test_added_tokens(void **state)
{
    struct dsv2i_tokenizer *t = parse_small("", ADDED(300, "<s>", ",\"special\":true") "," ADDED(301, "<s>x", "") "," ADDED(
        302, "<l>", ",\"lstrip\":true") "," ADDED(303, "<r>", ",\"rstrip\":true") "," ADDED(304, "cat", ",\"single_word\":true"));

    EXPECT(t, 0, "a<s>b", 'a', 300, 'b');
    EXPECT(t, 0, "<s><s>", 300, 300);
    EXPECT(t, 0, "<s>y<s", 300, 'y', '<', 's');
    EXPECT(t, 0, "a \xE3\x80\x80<l> b", 'a', 302, ' ', 'b');
    EXPECT(t, 0, "a <r> \n b", 'a', ' ', 303, 'b');
    EXPECT(t, 0, "cat", 304);
    EXPECT(t, 0, "-cat!", '-', 304, '!');
    EXPECT(t, 0, "cats", 'c', 'a', 't', 's');
    EXPECT(t, 0, "\xC3\xA9" "cat", 0xC3, 0xA9, 'c', 'a', 't');
    EXPECT(t, DSV2_TOKENIZE_NO_MARKERS, "<s>", '<', 's', '>');
    assert_int_equal(dsv2i_tokenizer_find(t, "<s>x", 4), 301);
    assert_int_equal(dsv2i_tokenizer_find(t, "abc", 3), 257);
    assert_int_equal(dsv2i_tokenizer_find(t, "nothing", 7), -1);
    assert_int_equal(dsv2i_tokenizer_count(t), 305);
    assert_true(dsv2i_tokenizer_has(t, 300) && !dsv2i_tokenizer_has(t, 299) && !dsv2i_tokenizer_has(t, 305));
    dsv2i_tokenizer_free(t);
}

/* What a token's rstrip takes from another token.  Expected: tokenizers 0.23. */
static void test_added_overlap(void **state)
{
    struct dsv2i_tokenizer *t = parse_small("", ADDED(300, "\\n", ",\"lstrip\":true,\"rstrip\":true") "," ADDED(301, "<r>", ",\"rstrip\":true") "," ADDED(
        302, "\\t", ""));

    EXPECT(t, 0, "\n\n\na", 300, 'a');
    EXPECT(t, 0, "<r>\n\na", 301, 'a');
    EXPECT(t, 0, "<r>\t\ta", 301, 302, 302, 'a');
    dsv2i_tokenizer_free(t);
}

/* Special tokens are searched in raw text before those flagged normalized; within one kind the longest wins. */
static void test_added_longest(void **state)
{
    struct dsv2i_tokenizer *t = parse_small("", ADDED(300, "<a", "") "," ADDED(301, "<a>", "") "," ADDED(302, "<a>>!", ""));

    EXPECT(t, 0, "<a>>", 301, '>');
    EXPECT(t, 0, "<a>>!", 302);
    EXPECT(t, 0, "<a<a>", 300, 301);
    dsv2i_tokenizer_free(t);
}

static void test_buffer(void **state)
{
    struct dsv2i_tokenizer *t = parse_small("", "");
    int32_t ids[2] = {-7, -7};
    size_t n;

    assert_int_equal(dsv2i_tokenizer_encode(t, "xyz", 3, 0, ids, 2, &n), DSV2_ERR_BUFFER);
    assert_int_equal(n, 3);
    assert_int_equal(ids[0], -7);
    assert_int_equal(dsv2i_tokenizer_encode(t, "xyz", 3, 0, NULL, 0, &n), DSV2_ERR_BUFFER);
    dsv2i_tokenizer_free(t);
}

static void test_megabyte(void **state)
{
    static const char *const units[] = {" ", "a", "\n", "x ", "\xE4\xB8\xAD", "\xF0\x9F\x98\x80", "=", "\xC2\xA0"};

    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        size_t unit = strlen(units[i]), n = (1 << 20) / unit * unit, got;
        char *text = malloc(n + 1);
        int32_t *ids = malloc((n + 1) * sizeof *ids);

        for (size_t k = 0; k < n; k++)
            text[k] = units[i][k % unit];
        text[n] = 'x';
        assert_int_equal(dsv2i_tokenizer_encode(bundled, text, n + 1, 0, ids, n + 1, &got), DSV2_OK);
        assert_true(got > 0 && got <= n + 1);
        free(text);
        free(ids);
    }
}

/* Expressions that explode, in one attempt or over many, end in an error. */
static void test_catastrophic_regex(void **state)
{
    static const char *const patterns[] = {"(a+)+$", "(?:a|a)*[bx]", "a*a*a*[bx]", "(?:ac?)+[bx]"};
    size_t n = 1 << 18, got;
    char *text = malloc(n), extra[128];
    int32_t ids[4];

    memset(text, 'a', n);
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        struct dsv2i_tokenizer *t;

        snprintf(extra, sizeof extra, "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"Isolated\"},", patterns[i]);
        t = parse_small(extra, "");
        text[n - 1] = 'c';
        assert_int_equal(dsv2i_tokenizer_encode(t, text, n, 0, ids, 4, &got), DSV2_ERR_LIMIT);
        assert_non_null(strstr(dsv2_last_error(), "regular expression"));
        dsv2i_tokenizer_free(t);
    }
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bundled_against_oracle), cmocka_unit_test(test_bos), cmocka_unit_test(test_add_bos_token),
        cmocka_unit_test(test_merge_order), cmocka_unit_test(test_long_pieces_equal_short_ones),
        cmocka_unit_test(test_invalid_utf8), cmocka_unit_test(test_added_tokens), cmocka_unit_test(test_added_overlap), cmocka_unit_test(test_added_longest),
        cmocka_unit_test(test_buffer), cmocka_unit_test(test_megabyte), cmocka_unit_test(test_catastrophic_regex),
    };

    return cmocka_run_group_tests(tests, load_bundled, free_bundled);
}
