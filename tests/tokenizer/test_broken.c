/* Broken tokenizers: each case is refused with its status, and the message names file, field and value.
 * SPDX-License-Identifier: MIT
 *
 * A case is a whole file, made from a small good one by putting one value in place of a part. */
#include "util.h"

static const char good[] =
    "{\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"special\":true}],\"normalizer\":null,"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[0-9]\"},\"behavior\":\"Isolated\",\"invert\":false},"
    "{\"type\":\"Digits\",\"individual_digits\":true},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},"
    "\"post_processor\":{\"type\":\"ByteLevel\"},\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":false,"
    "\"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}}";

#define F DSV2_ERR_FORMAT
#define U DSV2_ERR_UNSUPPORTED
#define L DSV2_ERR_LIMIT
#define TWICE "{\"id\":5,\"content\":\"日\"},{\"id\":5,\"content\":\"日\"},{\"id\":5,\"content\":\"日\"}," /* not in the byte alphabet */
#define RE(pattern) "\"[0-9]\"", "\"" pattern "\""
#define DEEP "(((((((((((((((((((((((((((((((((((((((((((((((((("
#define CLOSE "))))))))))))))))))))))))))))))))))))))))))))))))))"

static const struct {
    const char *from, *to;
    dsv2_status status;
    const char *words[2]; /* of the message, besides the file's name */
} cases[] = {
    /* JSON */
    {"\"merges\":[\"a b\"]}}", "\"merges\":[\"a b\"]}", F, {"tokenizer.json"}},
    {"\"a\":0", "\"a\":0,\"a\":3", F, {"\"a\""}},
    {"\"a\":0", "\"\\u0000\":0", F, {"tokenizer.json"}},
    {"\"a\":0", "\"\xFF\":0", F, {"tokenizer.json"}},
    {"\"a\":0", "\"a\":1e400", F, {"tokenizer.json"}},
    /* model */
    {"\"model\":", "\"modell\":", F, {"model", "an object is needed"}},
    {"\"type\":\"BPE\"", "\"type\":\"Unigram\"", U, {"model.type", "Unigram"}},
    {"\"type\":\"BPE\"", "\"type\":\"WordPiece\"", U, {"model.type", "WordPiece"}},
    {"\"type\":\"BPE\",", "", F, {"model.type"}},
    {"\"type\":\"BPE\"", "\"type\":3", F, {"model.type", "3"}},
    {"\"dropout\":null", "\"dropout\":0.1", U, {"model.dropout", "0.1"}},
    {"\"dropout\":null", "\"dropout\":\"x\"", U, {"model.dropout", "x"}},
    {"\"unk_token\":null", "\"unk_token\":\"<unk>\"", U, {"model.unk_token", "<unk>"}},
    {"\"unk_token\":null", "\"unk_token\":\"\"", U, {"model.unk_token"}},
    {"\"continuing_subword_prefix\":null", "\"continuing_subword_prefix\":\"##\"", U, {"model.continuing_subword_prefix", "##"}},
    {"\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"</w>\"", U, {"model.end_of_word_suffix", "</w>"}},
    {"\"byte_fallback\":false", "\"byte_fallback\":true", U, {"model.byte_fallback", "true"}},
    {"\"byte_fallback\":false", "\"byte_fallback\":1", F, {"byte_fallback", "1"}},
    {"\"fuse_unk\":false", "\"fuse_unk\":\"no\"", F, {"fuse_unk", "no"}},
    {"\"ignore_merges\":false", "\"ignore_merges\":null", F, {"ignore_merges", "null"}},
    {"\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}", "\"vocab\":[]", F, {"model.vocab"}},
    {"\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}", "\"vocab\":{}", F, {"model.vocab"}},
    {"\"vocab\":", "\"vocabulary\":", F, {"model.vocab"}},
    {"\"a\":0", "\"a\":-1", F, {"model.vocab[\"a\"]", "-1"}},
    {"\"a\":0", "\"a\":8", F, {"model.vocab[\"a\"]", "8"}},
    {"\"a\":0", "\"a\":2147483648", F, {"model.vocab[\"a\"]", "2147483648"}},
    {"\"a\":0", "\"a\":0.5", F, {"model.vocab[\"a\"]", "0.5"}},
    {"\"a\":0", "\"a\":\"0\"", F, {"model.vocab[\"a\"]", "\"0\""}},
    {"\"a\":0", "\"a\":null", F, {"model.vocab[\"a\"]", "null"}},
    {"\"a\":0", "\"a\":1", F, {"model.vocab[\"b\"]", "another token"}},
    {"\"a\":0", "\"\":0", F, {"model.vocab[\"\"]", "empty"}},
    {"\"merges\":[\"a b\"]", "\"merges\":{}", F, {"model.merges"}},
    {"\"merges\":[\"a b\"]", "\"merge\":[]", F, {"model.merges"}},
    {"[\"a b\"]", "[\"ab\"]", F, {"model.merges[0]", "one space"}},
    {"[\"a b\"]", "[\"a b c\"]", F, {"model.merges[0]", "a b c"}},
    {"[\"a b\"]", "[\"a  b\"]", F, {"model.merges[0]"}},
    {"[\"a b\"]", "[\"\"]", F, {"model.merges[0]"}},
    {"[\"a b\"]", "[\"a \"]", F, {"model.merges[0]", "\"\" is not"}},
    {"[\"a b\"]", "[\" b\"]", F, {"model.merges[0]", "\"\" is not"}},
    {"[\"a b\"]", "[\"a x\"]", F, {"model.merges[0]", "\"x\" is not in model.vocab"}},
    {"[\"a b\"]", "[\"xyzzy b\"]", F, {"model.merges[0]", "\"xyzzy\" is not in model.vocab"}},
    {"[\"a b\"]", "[\"b a\"]", F, {"model.merges[0]", "together"}},
    {"[\"a b\"]", "[\"a b\",\"a b\"]", F, {"model.merges[1]", "earlier"}},
    {"[\"a b\"]", "[[\"a\"]]", F, {"model.merges[0]"}},
    {"[\"a b\"]", "[[\"a\",\"b\",\"c\"]]", F, {"model.merges[0]"}},
    {"[\"a b\"]", "[[\"a\",3]]", F, {"model.merges[0]"}},
    {"[\"a b\"]", "[[]]", F, {"model.merges[0]"}},
    {"[\"a b\"]", "[7]", F, {"model.merges[0]", "7"}},
    {"[\"a b\"]", "[null]", F, {"model.merges[0]", "null"}},
    /* added tokens */
    {"\"added_tokens\":[", "\"added_tokens\":3,\"other\":[", F, {"added_tokens", "3"}},
    {"[{\"id\":4", "[5,{\"id\":4", F, {"added_tokens[0]", "5"}},
    {"\"id\":4", "\"id\":8", F, {"added_tokens[0].id", "8"}},
    {"\"id\":4", "\"id\":-4", F, {"added_tokens[0].id", "-4"}},
    {"\"id\":4", "\"id\":\"4\"", F, {"added_tokens[0].id", "4"}},
    {"\"id\":4,", "", F, {"added_tokens[0].id"}},
    {"\"id\":4", "\"id\":1", F, {"added_tokens[0].id", "another token"}},
    {"\"content\":\"<s>\"", "\"content\":\"\"", F, {"added_tokens[0].content"}},
    {"\"content\":\"<s>\"", "\"content\":7", F, {"added_tokens[0].content", "7"}},
    {"\"content\":\"<s>\",", "", F, {"added_tokens[0].content"}},
    {"\"content\":\"<s>\"", "\"content\":\"ab\"", F, {"added_tokens[0].content", "another id"}},
    {"\"special\":true", "\"special\":1", F, {"special", "1"}},
    {"\"special\":true", "\"lstrip\":\"yes\"", F, {"lstrip", "yes"}},
    {"\"special\":true", "\"normalized\":null", F, {"normalized", "null"}},
    {"[{\"id\":4", "[{\"id\":5,\"content\":\"<s>\",\"special\":true},{\"id\":4", F, {"added_tokens", "twice"}},
    {"[{\"id\":4", "[" TWICE TWICE TWICE TWICE TWICE TWICE "{\"id\":4", F, {"added_tokens[1].content", "twice"}},
    {"[{\"id\":4", "[{\"id\":4,\"content\":\"<t>\"},{\"id\":4", F, {"added_tokens[1].id", "another token"}},
    /* normalizer, decoder, post-processor */
    {"\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}", U, {"normalizer.type", "NFC"}},
    {"\"normalizer\":null", "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Lowercase\"}]}", U, {"normalizer.type", "Lowercase"}},
    {"\"normalizer\":null", "\"normalizer\":\"NFC\"", F, {"normalizer", "NFC"}},
    {"\"normalizer\":null", "\"normalizer\":{\"type\":\"Sequence\"}", F, {"normalizer.normalizers"}},
    {"\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":{\"type\":\"Metaspace\"}", U, {"decoder.type", "Metaspace"}},
    {"\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":null", F, {"decoder", "null"}},
    {"\"decoder\":{\"type\":\"ByteLevel\"}", "\"decoder\":{}", F, {"decoder.type"}},
    {"\"post_processor\":{\"type\":\"ByteLevel\"}", "\"post_processor\":{\"type\":\"BertProcessing\"}", U, {"post_processor.type", "BertProcessing"}},
    {"\"post_processor\":{\"type\":\"ByteLevel\"}", "\"post_processor\":[]", F, {"post_processor"}},
    {"\"post_processor\":{\"type\":\"ByteLevel\"}", "\"post_processor\":{\"type\":\"TemplateProcessing\"}", F, {"post_processor.single"}},
    {"\"post_processor\":{\"type\":\"ByteLevel\"}", "\"post_processor\":{\"type\":\"Sequence\",\"processors\":[4]}", F, {"post_processor", "4"}},
    /* pre-tokenizer */
    {"\"pre_tokenizer\":", "\"other\":", U, {"pre_tokenizer", "ByteLevel"}},
    {"\"pretokenizers\":", "\"pre\":", F, {"pre_tokenizer.pretokenizers"}},
    {"{\"type\":\"Digits\",\"individual_digits\":true}", "{\"type\":\"Whitespace\"}", U, {"pre_tokenizer[1].type", "Whitespace"}},
    {"{\"type\":\"Digits\",\"individual_digits\":true}", "{\"type\":\"Metaspace\"}", U, {"pre_tokenizer[1].type", "Metaspace"}},
    {"{\"type\":\"Digits\",\"individual_digits\":true}", "{}", F, {"pre_tokenizer[1].type"}},
    {"{\"type\":\"Digits\",\"individual_digits\":true}", "9", F, {"pre_tokenizer[1]"}},
    {"{\"type\":\"Digits\",\"individual_digits\":true}", "{\"type\":\"ByteLevel\"}", U, {"pre_tokenizer[2]", "after ByteLevel"}},
    {"\"individual_digits\":true", "\"individual_digits\":3", F, {"individual_digits", "3"}},
    {"\"use_regex\":false", "\"use_regex\":\"x\"", F, {"use_regex", "x"}},
    {",{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}", "", U, {"pre_tokenizer", "ByteLevel"}},
    {"\"behavior\":\"Isolated\"", "\"behavior\":\"Sideways\"", U, {"pre_tokenizer[0].behavior", "Sideways"}},
    {"\"behavior\":\"Isolated\",", "", F, {"pre_tokenizer[0].behavior"}},
    {"\"invert\":false", "\"invert\":0", F, {"invert", "0"}},
    {"{\"Regex\":\"[0-9]\"}", "\"[0-9]\"", F, {"pre_tokenizer[0].pattern"}},
    {"{\"Regex\":\"[0-9]\"}", "{\"Glob\":\"x\"}", F, {"pre_tokenizer[0].pattern", "Regex"}},
    {"{\"Regex\":\"[0-9]\"}", "{\"Regex\":\"x\",\"String\":\"x\"}", F, {"pre_tokenizer[0].pattern"}},
    {RE(""), U, {"pre_tokenizer[0].pattern", "empty"}},
    {RE("("), F, {"pre_tokenizer[0].pattern", "regular expression"}},
    {RE("a)"), F, {"pre_tokenizer[0].pattern"}},
    {RE("*a"), F, {"pre_tokenizer[0].pattern"}},
    {RE("[z-a]"), F, {"pre_tokenizer[0].pattern"}},
    {RE("[a"), U, {"pre_tokenizer[0].pattern", "no end"}},
    {RE("[]a]"), U, {"pre_tokenizer[0].pattern", "empty class"}},
    {RE("[a[b]]"), U, {"pre_tokenizer[0].pattern", "class inside a class"}},
    {RE("[[:alpha:]]"), U, {"pre_tokenizer[0].pattern", "class inside a class"}},
    {RE("[a&&b]"), U, {"pre_tokenizer[0].pattern", "intersection"}},
    {RE("a{2}+"), U, {"pre_tokenizer[0].pattern", "{2}+"}},
    {RE("a{2}?"), U, {"pre_tokenizer[0].pattern", "{2}?"}},
    {RE("(?x:a)"), U, {"pre_tokenizer[0].pattern", "kind of group"}},
    {RE("(?i)a"), U, {"pre_tokenizer[0].pattern", "options"}},
    {RE("(?<n>a)"), U, {"pre_tokenizer[0].pattern", "kind of group"}},
    {RE("(*COMMIT)a"), U, {"pre_tokenizer[0].pattern", "verb"}},
    {RE("(a)\\\\1"), U, {"pre_tokenizer[0].pattern", "escape"}},
    {RE("\\\\Ga"), U, {"pre_tokenizer[0].pattern", "escape"}},
    {RE("ab\\\\Ka"), U, {"pre_tokenizer[0].pattern", "at byte 2"}},
    {RE("\\\\X"), U, {"pre_tokenizer[0].pattern", "escape"}},
    {RE("a\\\\"), U, {"pre_tokenizer[0].pattern", "nothing follows"}},
    {RE("\\\\pL"), U, {"pre_tokenizer[0].pattern", "property"}},
    {RE("\\\\p{Klingon}"), F, {"pre_tokenizer[0].pattern", "property"}},
    {RE("[\\\\W]"), U, {"pre_tokenizer[0].pattern", "in a class"}},
    {RE("\\\\x41"), U, {"pre_tokenizer[0].pattern", "braces"}},
    {RE("\\\\x{}"), U, {"pre_tokenizer[0].pattern", "braces"}},
    {RE("\\\\x{4g}"), U, {"pre_tokenizer[0].pattern", "braces"}},
    {RE("\\\\u12}x"), U, {"pre_tokenizer[0].pattern", "four hexadecimal digits"}},
    {RE("(?i:\xC3\x9F)"), U, {"pre_tokenizer[0].pattern", "plain ASCII"}},
    {RE("(?i:mass)"), U, {"pre_tokenizer[0].pattern", "ligature"}},
    {RE("\\\\x{110000}"), F, {"pre_tokenizer[0].pattern"}},
    {RE("((a{1000}){1000}){1000}"), F, {"pre_tokenizer[0].pattern", "regular expression"}},
    {RE(DEEP DEEP DEEP DEEP DEEP DEEP "a" CLOSE CLOSE CLOSE CLOSE CLOSE CLOSE), F, {"pre_tokenizer[0].pattern", "parentheses"}},
};

static dsv2_status parse(const char *json, const char *config, struct dsv2i_tokenizer **t)
{
    return dsv2i_tokenizer_parse(&dsv2i_heap, "dir/tokenizer.json", json, strlen(json), "dir/tokenizer_config.json", config,
                                 config ? strlen(config) : 0, 8, -1, t);
}

static void test_good(void **state)
{
    struct dsv2i_tokenizer *t;

    if (parse(good, NULL, &t) != DSV2_OK)
        fail_msg("%s", dsv2_last_error());
    assert_true(dsv2i_tokenizer_memory(t) > 100);
    dsv2i_tokenizer_free(t);
}

static void test_cases(void **state)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *at = strstr(good, cases[i].from);
        char json[4096];
        struct dsv2i_tokenizer *t;
        dsv2_status status;

        assert_non_null(at);
        snprintf(json, sizeof json, "%.*s%s%s", (int)(at - good), good, cases[i].to, at + strlen(cases[i].from));
        status = parse(json, NULL, &t);
        if (status != cases[i].status || t)
            fail_msg("case %zu, %s: %s, %s", i, cases[i].to, dsv2_status_name(status), dsv2_last_error());
        if (!strstr(dsv2_last_error(), "dir/tokenizer.json"))
            fail_msg("case %zu, %s: no file in: %s", i, cases[i].to, dsv2_last_error());
        for (int k = 0; k < 2; k++)
            if (cases[i].words[k] && !strstr(dsv2_last_error(), cases[i].words[k]))
                fail_msg("case %zu, %s: no '%s' in: %s", i, cases[i].to, cases[i].words[k], dsv2_last_error());
    }
}

static void test_enormous(void **state)
{
    struct dsv2i_tokenizer *t;
    size_t n = 0, room = 1 << 20;
    char *json = malloc(room), *pattern = malloc(1 << 17);
    const char *at = strstr(good, "[0-9]");

    if (!json || !pattern) /* also tells gcc's sanitizers that they are not NULL */
        abort();
    memset(pattern, 'a', (1 << 17) - 1);
    pattern[(1 << 17) - 1] = 0;
    snprintf(json, room, "%.*s%s%s", (int)(at - good), good, pattern, at + 5);
    assert_int_equal(parse(json, NULL, &t), DSV2_ERR_LIMIT);
    assert_non_null(strstr(dsv2_last_error(), "pre_tokenizer[0].pattern"));
    at = strstr(good, "<s>");
    snprintf(json, room, "%.*s%.513s%s", (int)(at - good), good, pattern, at + 3);
    assert_int_equal(parse(json, NULL, &t), DSV2_ERR_LIMIT);
    assert_non_null(strstr(dsv2_last_error(), "added_tokens[0].content"));
    at = strstr(good, "{\"type\":\"Digits\"");
    n = (size_t)(at - good);
    memcpy(json, good, n);
    for (int i = 0; i < 65; i++)
        n += (size_t)sprintf(json + n, "{\"type\":\"Digits\"},");
    strcpy(json + n, at);
    assert_int_equal(parse(json, NULL, &t), DSV2_ERR_LIMIT);
    assert_non_null(strstr(dsv2_last_error(), "steps"));
    free(json);
    free(pattern);
}

static void test_config(void **state)
{
    static const struct {
        const char *config, *word;
    } bad[] = {{"{\"add_bos_token\":1}", "add_bos_token"}, {"{\"add_bos_token\":\"true\"}", "add_bos_token"}, {"{\"tokenizer_class\":3}", "tokenizer_class"},
               {"[]", "top level"}, {"{", "tokenizer_config.json"}, {"", "tokenizer_config.json"}};
    struct dsv2i_tokenizer *t;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(parse(good, bad[i].config, &t), DSV2_ERR_FORMAT);
        assert_null(t);
        assert_non_null(strstr(dsv2_last_error(), "dir/tokenizer_config.json"));
        assert_non_null(strstr(dsv2_last_error(), bad[i].word));
    }
}

/* Every prefix of the file, and every byte made another: an error or a tokenizer, never harm. */
static void test_mutations(void **state)
{
    struct dsv2i_tokenizer *t;
    char json[sizeof good];

    for (size_t n = 0; n < sizeof good - 1; n++) {
        memcpy(json, good, n);
        json[n] = 0;
        assert_int_not_equal(parse(json, NULL, &t), DSV2_OK);
    }
    for (size_t i = 0; i < sizeof good - 1; i++)
        for (const char *c = "\"{}[],:0a\\"; *c; c++) {
            memcpy(json, good, sizeof good);
            json[i] = *c;
            if (parse(json, NULL, &t) == DSV2_OK)
                dsv2i_tokenizer_free(t);
        }
}

/* The n-th allocation fails, for every n. */
static size_t allowed;

static void *limited_alloc(void *user, size_t size, size_t alignment)
{
    return allowed-- == 0 ? (allowed = 0, NULL) : dsv2i_heap.alloc(dsv2i_heap.user, size, alignment);
}

static void limited_free(void *user, void *ptr, size_t size)
{
    dsv2i_heap.free(dsv2i_heap.user, ptr, size);
}

static void test_no_memory(void **state)
{
    const struct dsv2i_hooks hooks = {limited_alloc, limited_free, NULL};
    const char *at = strstr(good, "[0-9]");
    struct dsv2i_tokenizer *t;
    dsv2_status status = DSV2_ERR_NOMEM;
    char json[4096], text[200];
    int32_t ids[200];
    size_t n, k;

    snprintf(json, sizeof json, "%.*s(?:[0-9]|x)%s", (int)(at - good), good, at + 5); /* not linear: through PCRE2 */
    for (k = 0; status == DSV2_ERR_NOMEM; k++) {
        allowed = k;
        status = dsv2i_tokenizer_parse(&hooks, "tokenizer.json", json, strlen(json), "", NULL, 0, 8, -1, &t);
    }
    assert_int_equal(status, DSV2_OK);
    assert_true(k > 10);
    memset(text, 'a', sizeof text);
    memcpy(text, "ab1ab", 5);
    status = DSV2_ERR_NOMEM;
    for (k = 0; status == DSV2_ERR_NOMEM; k++) {
        allowed = k;
        status = dsv2i_tokenizer_encode(t, text, sizeof text, 0, ids, 200, &n);
    }
    assert_int_equal(status, DSV2_OK);
    assert_true(k > 4);
    dsv2i_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good), cmocka_unit_test(test_cases), cmocka_unit_test(test_enormous), cmocka_unit_test(test_config),
        cmocka_unit_test(test_mutations), cmocka_unit_test(test_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
