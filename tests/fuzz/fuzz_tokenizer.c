/* tokenizer.json, tokenizer_config.json (empty: there is none) and a text, parted by 0xFF: whatever tokenizer comes out must encode
 * without harm, and know its own tokens.
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "tokenizer.h"

enum { VOCAB = 4096, CAPACITY = 4096 };

static void check_tokens(const struct dsv2i_tokenizer *t)
{
    int special;
    size_t bytes, again;

    MUST(dsv2i_tokenizer_count(t) <= VOCAB);
    for (int32_t id = 0; id < VOCAB; id++) {
        const char *text = dsv2i_tokenizer_bytes(t, id, &bytes, &special), *found;

        MUST(dsv2i_tokenizer_has(t, id) == (bytes > 0));
        if (bytes) {
            found = dsv2i_tokenizer_bytes(t, dsv2i_tokenizer_find(t, text, bytes), &again, &special);
            MUST(again == bytes && !memcmp(found, text, bytes));
        }
    }
    MUST(!dsv2i_tokenizer_has(t, -1) && !dsv2i_tokenizer_has(t, VOCAB));
    MUST(dsv2i_tokenizer_memory(t) > 0);
}

static void check_encode(const struct dsv2i_tokenizer *t, const char *text, size_t size)
{
    static int32_t ids[CAPACITY];
    size_t n = 0, bytes;
    int special;

    for (uint32_t flags = 0; flags < 8; flags++) {
        dsv2_status status;

        do
            status = dsv2i_tokenizer_encode(t, text, size, flags, ids, CAPACITY, &n);
        while (fuzz_check_regex(status) == DSV2_ERR_NOMEM);
        for (size_t i = 0; i < n && status == DSV2_OK; i++) {
            MUST(ids[i] >= 0 && ids[i] < VOCAB);
            dsv2i_tokenizer_bytes(t, ids[i], &bytes, &special);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dsv2i_tokenizer *t;
    const char *json, *config;
    size_t n_json, n_config;
    dsv2_status status;

    fuzz_begin(data, &size);
    json = fuzz_piece(&data, &size, &n_json);
    config = fuzz_piece(&data, &size, &n_config);
    do
        status = dsv2i_tokenizer_parse(&fuzz_mem, "tokenizer.json", json, n_json, "tokenizer_config.json",
                                       n_config ? config : NULL, n_config, VOCAB, 0, &t);
    while (fuzz_check_regex(status) == DSV2_ERR_NOMEM);
    MUST((status == DSV2_OK) == (t != NULL));
    if (t) {
        check_tokens(t);
        check_encode(t, (const char *)data, size);
    } else {
        MUST(strstr(dsv2_last_error(), "tokenizer"));
    }
    dsv2i_tokenizer_free(t);
    fuzz_end();
    return 0;
}
