/* Streaming text: against Python's rule for invalid UTF-8, and against a search of the whole text for stop strings.
 * SPDX-License-Identifier: MIT */
#include "util.h"

static dsv2_model *model;

static int make_model(void **state)
{
    model = calloc(1, sizeof *model);
    model->ctx = calloc(1, sizeof *model->ctx);
    model->ctx->mem = dsv2i_heap;
    atomic_init(&model->ctx->refs, 2);
    atomic_init(&model->refs, 2);
    model->config.shape.vocab_size = 400;
    model->tokenizer = parse_small("", "{\"id\":300,\"content\":\"<s>\",\"special\":true},{\"id\":301,\"content\":\"\xE4\xB8\xAD\"}");
    return 0;
}

static int free_model(void **state)
{
    dsv2i_tokenizer_free(model->tokenizer);
    free(model->ctx);
    free(model);
    return 0;
}

struct result {
    char text[512];
    size_t n, n_before_finish;
    int stopped;
};

static dsv2_text *create(const char *const *stop, size_t n_stop, int include)
{
    dsv2_text_params params;
    dsv2_text *text;

    dsv2_text_params_init(&params, sizeof params);
    params.stop = stop;
    params.n_stop = n_stop;
    params.include_stop = include;
    if (dsv2i_text_create(model, &params, &text) != DSV2_OK)
        fail_msg("%s", dsv2_last_error());
    return text;
}

static struct result stream(dsv2_text *text, const int32_t *ids, size_t n_ids)
{
    struct result r = {.n = 0};
    const char *piece;
    int32_t stopped = 0;
    size_t n;

    for (size_t i = 0; i < n_ids; i++) {
        assert_int_equal(dsv2i_text_push(text, ids[i], &piece, &n, &stopped), DSV2_OK);
        memcpy(r.text + r.n, piece, n);
        r.n += n;
    }
    r.stopped = stopped;
    r.n_before_finish = r.n;
    assert_int_equal(dsv2i_text_finish(text, &piece, &n), DSV2_OK);
    memcpy(r.text + r.n, piece, n);
    r.n += n;
    r.text[r.n] = 0;
    return r;
}

static struct result stream_bytes(const char *const *stop, size_t n_stop, int include, const char *bytes, size_t n)
{
    dsv2_text *text = create(stop, n_stop, include);
    int32_t ids[256];
    struct result r;

    for (size_t i = 0; i < n; i++)
        ids[i] = (unsigned char)bytes[i];
    r = stream(text, ids, n);
    dsv2i_text_free(text);
    return r;
}

/* Expected texts: bytes.decode("utf-8", "replace") of Python 3. */
static void test_replacement(void **state)
{
#define R "\xEF\xBF\xBD"
    static const struct {
        const char *bytes, *want;
    } cases[] = {
        {"abc", "abc"}, {"\xC3\xA9", "\xC3\xA9"}, {"\xC3", R}, {"\xC3(", R "("}, {"\xE2\x82", R}, {"\xE2\x82z", R "z"},
        {"\xE2\x82\xC3\xA9", R "\xC3\xA9"}, {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80"}, {"\xF0\x9F\x98", R}, {"\xF0\x9F\x98\xF0\x9F\x98\x80", R "\xF0\x9F\x98\x80"},
        {"\xED\xA0\x80", R R R}, {"\xC0\xAF", R R}, {"\xF5\x80", R R}, {"\xE0\x80\x80", R R R}, {"\xF4\x90\x80\x80", R R R R}, {"\x80\x80z", R R "z"},
        {"\xE2\xE2\xE2\x82\xAC", R R "\xE2\x82\xAC"},
    };
    dsv2_text *text = create(NULL, 0, 0);

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t ids[16];
        size_t n = strlen(cases[i].bytes), n_whole;
        char whole[64];
        struct result r;

        for (size_t k = 0; k < n; k++)
            ids[k] = (unsigned char)cases[i].bytes[k];
        r = stream(text, ids, n);
        assert_string_equal(r.text, cases[i].want);
        assert_int_equal(dsv2i_detokenize(model, ids, n, 0, whole, sizeof whole, &n_whole), DSV2_OK);
        assert_int_equal(n_whole, r.n);
        assert_memory_equal(whole, r.text, r.n);
    }
    dsv2i_text_free(text);
}

static void test_hold_back(void **state)
{
    dsv2_text *text = create(NULL, 0, 0);
    static const int32_t ids[] = {0xF0, 0x9F, 0x98, 0x80};
    const char *piece;
    size_t n;

    for (int i = 0; i < 4; i++) {
        assert_int_equal(dsv2i_text_push(text, ids[i], &piece, &n, NULL), DSV2_OK);
        assert_int_equal(n, i == 3 ? 4 : 0);
    }
    assert_memory_equal(piece, "\xF0\x9F\x98\x80", 4);
    assert_int_equal(dsv2i_text_push(text, 400, &piece, &n, NULL), DSV2_ERR_INVALID);
    assert_int_equal(dsv2i_text_push(text, -1, &piece, &n, NULL), DSV2_ERR_INVALID);
    dsv2i_text_free(text);
}

static void test_special(void **state)
{
    int32_t ids[] = {'a', 300, 301, 350, 'b'};
    char out[32];
    size_t n;
    dsv2_text *text = create(NULL, 0, 0);

    assert_string_equal(stream(text, ids, 5).text, "a\xE4\xB8\xAD" "b"); /* 350 is padding */
    dsv2i_text_free(text);
    assert_int_equal(dsv2i_detokenize(model, ids, 5, 0, out, sizeof out, &n), DSV2_OK);
    assert_int_equal(n, 8);
    assert_memory_equal(out, "a<s>\xE4\xB8\xAD" "b", 8);
    assert_int_equal(dsv2i_detokenize(model, ids, 5, DSV2_DETOKENIZE_SKIP_SPECIAL, out, 4, &n), DSV2_ERR_BUFFER);
    assert_int_equal(n, 5);
}

static void test_stop(void **state)
{
    static const char *const one[] = {"STOP"};
    static const char *const nested[] = {"bc", "abcX"};
    static const char *const prefixes[] = {"abc", "ab"};
    struct result r = stream_bytes(one, 1, 0, "go on STOP more", 15);

    assert_string_equal(r.text, "go on ");
    assert_true(r.stopped);
    assert_string_equal(stream_bytes(one, 1, 1, "go on STOP more", 15).text, "go on STOP");
    r = stream_bytes(one, 1, 0, "STSTO", 5); /* no tail is lost, none comes early */
    assert_string_equal(r.text, "STSTO");
    assert_int_equal(r.n_before_finish, 2);
    assert_false(r.stopped);
    /* the one that begins first wins, wherever tokens end; undecided at the end, the complete one does */
    assert_string_equal(stream_bytes(nested, 2, 0, "_abcX", 5).text, "_");
    assert_string_equal(stream_bytes(nested, 2, 0, "_abcY", 5).text, "_a");
    assert_string_equal(stream_bytes(nested, 2, 0, "_abc", 4).text, "_a");
    /* of two that begin at one place, the first in the list */
    assert_string_equal(stream_bytes(prefixes, 2, 1, "_abc", 4).text, "_abc");
    assert_string_equal(stream_bytes(prefixes, 2, 1, "_abd", 4).text, "_ab");
    assert_string_equal(stream_bytes(prefixes, 2, 0, "_ab", 3).text, "_");
}

static void test_after_stop(void **state)
{
    static const char *const one[] = {"."};
    dsv2_text *text = create(one, 1, 0);
    int32_t ids[] = {'a', '.', 'b'}, stopped;
    const char *piece;
    size_t n;

    for (int i = 0; i < 3; i++)
        assert_int_equal(dsv2i_text_push(text, ids[i], &piece, &n, &stopped), DSV2_OK);
    assert_int_equal(n, 0);
    assert_true(stopped);
    assert_int_equal(dsv2i_text_finish(text, &piece, &n), DSV2_OK);
    assert_int_equal(n, 0);
    assert_string_equal(stream(text, ids, 1).text, "a"); /* a new stream */
    dsv2i_text_free(text);
}

/* What begins a stop string at the end of one stream does not go on in the next. */
static void test_streams_are_apart(void **state)
{
    static const char *const one[] = {"ab"};
    dsv2_text *text = create(one, 1, 0);
    int32_t a = 'a', b = 'b';

    assert_string_equal(stream(text, &a, 1).text, "a");
    assert_string_equal(stream(text, &b, 1).text, "b");
    dsv2i_text_free(text);
}

/* A longer stop string of the same beginning is waited for only where it would change the text. */
static void test_stopped_at_once(void **state)
{
    static const char *const prefixes[] = {"abc", "ab"};

    for (int include = 0; include < 2; include++) {
        dsv2_text *text = create(prefixes, 2, include);
        const char *piece;
        int32_t stopped;
        size_t n;

        for (const char *c = "ab"; *c; c++)
            assert_int_equal(dsv2i_text_push(text, *c, &piece, &n, &stopped), DSV2_OK);
        assert_int_equal(stopped, !include);
        dsv2i_text_free(text);
    }
}

/* Random texts of few letters and random stop strings, against a plain search. */
static void test_random(void **state)
{
    uint32_t seed = 11;

    for (int round = 0; round < 20000; round++) {
        char stops[3][6], bytes[24], want[64];
        const char *stop[3] = {stops[0], stops[1], stops[2]};
        size_t n_stop = next_random(&seed) % 4, n = next_random(&seed) % 24, first = n, which = 0;
        int include = (int)(next_random(&seed) & 1);
        struct result r;

        for (size_t i = 0; i < n_stop; i++) {
            size_t length = 1 + next_random(&seed) % 5;

            for (size_t k = 0; k < length; k++)
                stops[i][k] = "abc"[next_random(&seed) % 3];
            stops[i][length] = 0;
        }
        for (size_t k = 0; k < n; k++)
            bytes[k] = "abcd"[next_random(&seed) % 4];
        for (size_t i = 0; i < n_stop; i++) {
            const char *at = memmem(bytes, n, stop[i], strlen(stop[i]));

            if (at && (size_t)(at - bytes) < first) {
                first = (size_t)(at - bytes);
                which = i;
            }
        }
        memcpy(want, bytes, n);
        want[include && first < n ? first + strlen(stop[which]) : first] = 0;
        r = stream_bytes(stop, n_stop, include, bytes, n);
        assert_string_equal(r.text, want);
        if (r.stopped)
            assert_true(first < n);
    }
}

static void test_bad_stops(void **state)
{
    static const char *const empty[] = {"a", ""};
    static const char *const null[] = {NULL};
    static const char *const invalid[] = {"\xC3"};
    dsv2_text_params params;
    dsv2_text *text;

    dsv2_text_params_init(&params, sizeof params);
    params.stop = empty;
    params.n_stop = 2;
    assert_int_equal(dsv2i_text_create(model, &params, &text), DSV2_ERR_INVALID);
    assert_non_null(strstr(dsv2_last_error(), "stop[1]"));
    assert_null(text);
    params.stop = null;
    params.n_stop = 1;
    assert_int_equal(dsv2i_text_create(model, &params, &text), DSV2_ERR_INVALID);
    params.stop = invalid;
    assert_int_equal(dsv2i_text_create(model, &params, &text), DSV2_ERR_UTF8);
    params.stop = NULL;
    assert_int_equal(dsv2i_text_create(model, &params, &text), DSV2_ERR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replacement), cmocka_unit_test(test_hold_back), cmocka_unit_test(test_special), cmocka_unit_test(test_stop),
        cmocka_unit_test(test_after_stop), cmocka_unit_test(test_streams_are_apart), cmocka_unit_test(test_stopped_at_once), cmocka_unit_test(test_random), cmocka_unit_test(test_bad_stops),
    };

    return cmocka_run_group_tests(tests, make_model, free_model);
}
