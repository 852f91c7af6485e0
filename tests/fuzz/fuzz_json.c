/* The strict JSON layer: what it accepts, it and cJSON must read alike; then the typed members of every object.
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"

#include <math.h>

static void read_members(const cJSON *object)
{
    int left = 64; /* getting each member takes quadratic time */

    for (const cJSON *v = object->child; v && left--; v = v->next) {
        const char *path = v->next ? "" : "path", *key = v->string, *text = NULL;
        int64_t integer = 7;
        double number = 0.5;
        int flag = 7;
        char shown[24];

        MUST(dsv2i_json_show(shown, sizeof shown, v) == shown && strlen(shown) < sizeof shown);
        if (v->child)
            read_members(v);
        if (!cJSON_IsObject(object))
            continue;
        MUST(dsv2i_json_get(object, key) == v);
        MUST((dsv2i_json_int_or("f", path, object, key, -5, 1000, 7, &integer) == DSV2_OK) == (integer >= -5 && integer <= 1000
             && cJSON_IsNumber(v) && v->valuedouble == (double)integer));
        MUST((dsv2i_json_double_or("f", path, object, key, 0.5, &number) == DSV2_OK) == (cJSON_IsNumber(v) && isfinite(number)));
        MUST((dsv2i_json_bool_or("f", path, object, key, 7, &flag) == DSV2_OK) == (cJSON_IsBool(v) && flag == cJSON_IsTrue(v)));
        MUST((dsv2i_json_string_or("f", path, object, key, NULL, &text) == DSV2_OK) == (cJSON_IsString(v) && text));
    }
}

static void read_absent(const cJSON *v)
{
    const char *text = NULL;
    int64_t integer;
    double number;
    char shown[24];
    int flag;

    if (dsv2i_json_get(v, "absent"))
        return;
    MUST(dsv2i_json_int_or("f", "", v, "absent", -5, 1000, 7, &integer) == DSV2_OK && integer == 7);
    MUST(dsv2i_json_double_or("f", "", v, "absent", 0.5, &number) == DSV2_OK && number == 0.5);
    MUST(dsv2i_json_bool_or("f", "", v, "absent", 7, &flag) == DSV2_OK && flag == 7);
    MUST(dsv2i_json_string_or("f", "", v, "absent", shown, &text) == DSV2_OK && text == shown);
    MUST(!strcmp(dsv2i_json_show(shown, sizeof shown, NULL), "absent"));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cJSON *tree = NULL;
    dsv2_status status;

    fuzz_begin(data, &size);
    do
        status = dsv2i_json_parse("fuzz.json", (const char *)data, size, &tree);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    if (status == DSV2_OK) {
        char *printed;
        char shown[64];
        cJSON *again = NULL;

        fuzz_state.countdown = 0;
        printed = cJSON_PrintUnformatted(tree);
        MUST(printed);
        /* cJSON prints 15 digits, which can round the largest doubles up to what no double holds */
        if (dsv2i_json_parse("again.json", printed, strlen(printed), &again) == DSV2_OK)
            MUST(cJSON_Compare(tree, again, 1));
        else
            MUST(strstr(printed, "e+308"));
        MUST(dsv2i_json_show(shown, sizeof shown, tree) == shown);
        read_members(tree);
        read_absent(tree);
        cJSON_Delete(again);
        cJSON_free(printed);
        cJSON_Delete(tree);
    } else {
        MUST(!tree);
        MUST(strstr(dsv2_last_error(), "fuzz.json"));
    }
    fuzz_end();
    return 0;
}
