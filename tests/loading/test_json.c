/* The strict layer over cJSON: what is legal stays legal, typed members, large objects.  More of what is refused: test_broken.c.
 * SPDX-License-Identifier: MIT */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "json.h"

/* Parses a copy of exactly n bytes, so that a sanitizer sees any step beyond it. */
static dsv2_status parse(const char *text, size_t n, cJSON **out)
{
    char *copy = malloc(n ? n : 1);
    dsv2_status status;

    memcpy(copy, text, n);
    status = dsv2i_json_parse("t.json", copy, n, out);
    free(copy);
    return status;
}

static void test_legal(void **state)
{
    static const char *const legal[] = {
        "0", "-0", "-1", "12", "0.5", "-0.0", "1e5", "1E+5", "1.25e-300", "1e308", "1.7976931348623157e308", "1e-400", "0e999999",
        "0.0000e99999999999", "9007199254740992", "-9007199254740992", "9007199254740994", "123456789012345", "true", "false",
        "null", "\"\"", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\\u0001\\u00e9\\uD83D\\uDE00\"", "\"\x7F\"", "\"\xC2\x80\"",
        "\"\xEF\xBF\xBF\"", "\"\xF4\x8F\xBF\xBF\"", "[]", "[ ]", "{}", "{ }", "[1,2]", "[[],{}]", "{\"\":0}",
        "{\"a\":1,\"A\":2,\"\\u00e9\":3,\"e\":4}", " \t\r\n1 \t\r\n", "{\"a\":{\"a\":{\"a\":1}},\"b\":{\"a\":1}}",
        "[{\"a\":1},{\"a\":1}]", "{\"a\\\"\":1,\"a\":2}", "{\"a\\\\\":1,\"b\":2}",
        /* HF writes int(1e30) for "no limit": a double holds it exactly */
        "{\"model_max_length\": 1000000000000000019884624838656}",
    };

    (void)state;
    for (size_t i = 0; i < sizeof legal / sizeof *legal; i++) {
        cJSON *tree;

        if (parse(legal[i], strlen(legal[i]), &tree) != DSV2_OK)
            fail_msg("%s: %s", legal[i], dsv2_last_error());
        assert_non_null(tree);
        cJSON_Delete(tree);
    }
}

/* Every beginning of a text is incomplete, and read no further than it goes. */
static void test_prefixes(void **state)
{
    static const char whole[] = "{\"k\\u00e9\\ud83d\\ude00\": [1.5e+10, -0.25, true, false, null, \"\xF0\x9F\x98\x80\\n\"], \"z\": {\"y\": []}}";
    cJSON *tree;

    (void)state;
    for (size_t n = 0; n < sizeof whole - 1; n++) {
        assert_int_equal(parse(whole, n, &tree), DSV2_ERR_FORMAT);
        assert_null(tree);
    }
    assert_int_equal(parse(whole, sizeof whole - 1, &tree), DSV2_OK);
    cJSON_Delete(tree);
    assert_int_equal(parse(whole, sizeof whole, &tree), DSV2_ERR_FORMAT); /* the NUL counts as text behind the value */
}

static void test_places(void **state)
{
    static const struct {
        const char *text, *place;
    } cases[] = {
        {"{\"a\": 01}", "t.json: byte 6 (line 1, column 7)"}, {"[1,\n 2,\n x]", "t.json: byte 9 (line 3, column 2)"},
        {"{\"a\":1,\n\"b\":2,\n\"a\":3}", "t.json: byte 15 (line 3, column 1)"}, {"", "t.json: byte 0"},
        {"[\"ab\xFF\"]", "t.json: byte 4"}, {"[\"ab", "the text ends inside a string"},
        {"[1e" "0000000000000000000000000000000000000000000000000000000000000000000""]", "byte 1 (line 1, column 2): a number of more than 62 characters"}, {"{\"a\":1, \"b\":2, \"a\":3, \"a\":4}", "byte 15"},
    };
    cJSON *tree;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(parse(cases[i].text, strlen(cases[i].text), &tree), DSV2_ERR_FORMAT);
        if (!strstr(dsv2_last_error(), cases[i].place))
            fail_msg("%s: %s", cases[i].text, dsv2_last_error());
    }
}

static void test_depth(void **state)
{
    char text[200];
    cJSON *tree;

    (void)state;
    for (int depth = 63; depth <= 66; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        assert_int_equal(parse(text, 2 * (size_t)depth, &tree), depth <= 64 ? DSV2_OK : DSV2_ERR_FORMAT);
        cJSON_Delete(tree);
    }
}

/* A vocabulary's size, with one key twice in the end: found, and in no time worth noticing. */
static void test_large_object(void **state)
{
    size_t n = 0, cap = 300000 * 24;
    char *text = malloc(cap);
    cJSON *tree;

    (void)state;
    text[n++] = '{';
    for (int i = 0; i < 300000; i++)
        n += (size_t)snprintf(text + n, cap - n, "%s\"token%d\":%d", i ? "," : "", i, i);
    text[n++] = '}';
    assert_int_equal(parse(text, n, &tree), DSV2_OK);
    assert_int_equal(cJSON_GetArraySize(tree), 300000);
    cJSON_Delete(tree);
    n += (size_t)snprintf(text + n - 1, cap - n, ",\"token777\":1}") - 1;
    assert_int_equal(parse(text, n, &tree), DSV2_ERR_FORMAT);
    assert_non_null(strstr(dsv2_last_error(), "key \"token777\" appears twice"));
    free(text);
}

static void test_too_many_values(void **state)
{
    size_t n = 2 * ((1 << 22) + 1);
    char *text = malloc(n);
    cJSON *tree;

    (void)state;
    for (size_t i = 0; i < n; i += 2)
        memcpy(text + i, "0,", 2);
    text[0] = '[';
    text[1] = '0';
    for (size_t i = 2; i < n; i += 2)
        memcpy(text + i, ",0", 2);
    assert_int_equal(dsv2i_json_parse("t.json", text, n, &tree), DSV2_ERR_LIMIT);
    assert_null(tree);
    free(text);
}

static void test_members(void **state)
{
    static const char text[] = "{\"i\": 7, \"f\": 1.5, \"t\": true, \"s\": \"x\\ty\", \"n\": null, \"o\": {\"k\": -3}, \"a\": [1], \"big\": 1e30, \"2^63\": 9223372036854775808}";
    cJSON *tree;
    const cJSON *o;
    const char *s;
    int64_t i;
    double d;
    int b;
    char shown[80];

    (void)state;
    assert_int_equal(parse(text, sizeof text - 1, &tree), DSV2_OK);
    o = dsv2i_json_get(tree, "o");
    assert_null(dsv2i_json_get(tree, "O"));
    assert_null(dsv2i_json_get(NULL, "x"));
    assert_null(dsv2i_json_get(dsv2i_json_get(tree, "a"), "x"));

    assert_int_equal(dsv2i_json_int_or("f", "", tree, "i", 0, 7, 1, &i), DSV2_OK);
    assert_int_equal(i, 7);
    assert_int_equal(dsv2i_json_int_or("f", "", tree, "absent", 0, 7, -9, &i), DSV2_OK);
    assert_int_equal(i, -9);
    assert_int_equal(dsv2i_json_int_or("f", "", tree, "i", 8, 9, 1, &i), DSV2_ERR_FORMAT);
    assert_string_equal(dsv2_last_error(), "f: i: must be an integer from 8 to 9, is 7");
    assert_int_equal(dsv2i_json_int_or("f", "o", o, "k", 0, 9, 1, &i), DSV2_ERR_FORMAT);
    assert_string_equal(dsv2_last_error(), "f: o.k: must be an integer from 0 to 9, is -3");
    assert_int_equal(dsv2i_json_int_or("f", "", tree, "f", 0, 9, 1, &i), DSV2_ERR_FORMAT);
    assert_int_equal(dsv2i_json_int_or("f", "", tree, "big", 0, INT64_MAX, 1, &i), DSV2_ERR_FORMAT);
    assert_int_equal(dsv2i_json_int_or("f", "", tree, "n", 0, 9, 1, &i), DSV2_ERR_FORMAT);
    assert_int_equal(dsv2i_json_int_or("f", "", tree, "2^63", INT64_MIN, INT64_MAX, 1, &i), DSV2_ERR_FORMAT);

    assert_int_equal(dsv2i_json_double_or("f", "", tree, "f", 0, &d), DSV2_OK);
    assert_true(d == 1.5);
    assert_int_equal(dsv2i_json_double_or("f", "", tree, "absent", 2.5, &d), DSV2_OK);
    assert_true(d == 2.5);
    assert_int_equal(dsv2i_json_double_or("f", "", tree, "s", 0, &d), DSV2_ERR_FORMAT);
    assert_string_equal(dsv2_last_error(), "f: s: must be a number, is \"x\\x09y\"");

    assert_int_equal(dsv2i_json_bool_or("f", "", tree, "t", 0, &b), DSV2_OK);
    assert_int_equal(b, 1);
    assert_int_equal(dsv2i_json_bool_or("f", "", tree, "i", 0, &b), DSV2_ERR_FORMAT);
    assert_int_equal(dsv2i_json_string_or("f", "", tree, "s", NULL, &s), DSV2_OK);
    assert_string_equal(s, "x\ty");
    assert_int_equal(dsv2i_json_string_or("f", "", tree, "absent", NULL, &s), DSV2_OK);
    assert_null(s);
    assert_int_equal(dsv2i_json_string_or("f", "", tree, "a", NULL, &s), DSV2_ERR_FORMAT);
    assert_string_equal(dsv2_last_error(), "f: a: must be a string, is [...]");

    assert_string_equal(dsv2i_json_show(shown, sizeof shown, o), "{...}");
    assert_string_equal(dsv2i_json_show(shown, sizeof shown, dsv2i_json_get(tree, "n")), "null");
    assert_string_equal(dsv2i_json_show(shown, sizeof shown, NULL), "absent");
    assert_string_equal(dsv2i_json_show(shown, sizeof shown, dsv2i_json_get(tree, "big")), "1e+30");
    cJSON_Delete(tree);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_legal), cmocka_unit_test(test_prefixes), cmocka_unit_test(test_places), cmocka_unit_test(test_depth),
        cmocka_unit_test(test_large_object), cmocka_unit_test(test_too_many_values), cmocka_unit_test(test_members),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
