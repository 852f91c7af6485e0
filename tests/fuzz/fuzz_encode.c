/* Any text through the bundled model's tokenizer: encode, decode, and the round trip.
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "tokenizer.h"

static struct dsv2i_tokenizer *load(void)
{
    struct dsv2i_tokenizer *t = NULL;
    FILE *f = fopen(TEST_MODEL "/tokenizer.json", "rb");
    char *text = malloc(1 << 24);
    size_t n;

    MUST(f && text);
    n = fread(text, 1, 1 << 24, f);
    fclose(f);
    MUST(dsv2i_tokenizer_parse(&dsv2i_heap, "tokenizer.json", text, n, "", NULL, 0, 1 << 20, -1, &t) == DSV2_OK);
    free(text);
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct dsv2i_tokenizer *t;
    size_t n, need;
    int32_t *ids;
    char *text = malloc(size + 1);
    size_t used = 0;

    if (!t)
        t = load();
    for (uint32_t flags = 0; flags < 8; flags += 2) {
        dsv2_status status = dsv2i_tokenizer_encode(t, (const char *)data, size, flags, NULL, 0, &need);

        if (status == DSV2_ERR_UTF8) {
            MUST(!(flags & DSV2_TOKENIZE_REPLACE));
            continue;
        }
        MUST(status == DSV2_ERR_BUFFER || (status == DSV2_OK && need == 0));
        ids = malloc((need + 1) * sizeof *ids);
        MUST(dsv2i_tokenizer_encode(t, (const char *)data, size, flags, ids, need, &n) == DSV2_OK && n == need);
        if (flags == 0) { /* valid UTF-8: the bytes come back */
            for (size_t i = 0; i < n; i++) {
                int special;
                size_t bytes;
                const char *piece = dsv2i_tokenizer_bytes(t, ids[i], &bytes, &special);

                MUST(bytes <= size - used);
                memcpy(text + used, piece, bytes);
                used += bytes;
            }
            MUST(used == size && (size == 0 || !memcmp(text, data, size)));
        }
        free(ids);
    }
    free(text);
    return 0;
}
