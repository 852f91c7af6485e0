/* The strict JSON layer: what it accepts, it and cJSON must read alike.
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cJSON *tree = NULL;

    if (dsv2i_json_parse("fuzz.json", (const char *)data, size, &tree) == DSV2_OK) {
        char *printed = cJSON_PrintUnformatted(tree);
        char shown[64];
        cJSON *again = NULL;

        MUST(printed);
        /* cJSON prints 15 digits, which can round the largest doubles up to what no double holds */
        if (dsv2i_json_parse("again.json", printed, strlen(printed), &again) == DSV2_OK)
            MUST(cJSON_Compare(tree, again, 1));
        else
            MUST(strstr(printed, "e+308"));
        MUST(dsv2i_json_show(shown, sizeof shown, tree) == shown);
        cJSON_Delete(again);
        cJSON_free(printed);
        cJSON_Delete(tree);
    } else {
        MUST(!tree);
        MUST(strstr(dsv2_last_error(), "fuzz.json"));
    }
    return 0;
}
