/* tokenizer.json, tokenizer_config.json and a text, parted by 0xFF: whatever tokenizer comes out must encode without harm.
 * SPDX-License-Identifier: MIT */
#include "fuzz.h"
#include "tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { VOCAB = 4096, CAPACITY = 4096 };
    static int32_t ids[CAPACITY];
    struct dsv2i_tokenizer *t = NULL;
    size_t n_json, n_config, n = 0;
    const char *json = fuzz_piece(&data, &size, &n_json), *config = fuzz_piece(&data, &size, &n_config);

    if (dsv2i_tokenizer_parse(&dsv2i_heap, "tokenizer.json", json, n_json, "tokenizer_config.json", n_config ? config : NULL,
                              n_config, VOCAB, 0, &t) != DSV2_OK) {
        MUST(!t);
        MUST(strstr(dsv2_last_error(), "tokenizer"));
        return 0;
    }
    MUST(dsv2i_tokenizer_count(t) <= VOCAB);
    for (uint32_t flags = 0; flags < 8; flags++)
        if (dsv2i_tokenizer_encode(t, (const char *)data, size, flags, ids, CAPACITY, &n) == DSV2_OK)
            for (size_t i = 0; i < n; i++)
                MUST(ids[i] >= 0 && ids[i] < VOCAB);
    for (int32_t id = 0; id < dsv2i_tokenizer_count(t); id++) {
        int special;
        size_t bytes;

        dsv2i_tokenizer_bytes(t, id, &bytes, &special);
    }
    dsv2i_tokenizer_free(t);
    return 0;
}
