/* Any text through the bundled model's tokenizer: encode, decode, and the round trip.
 * SPDX-License-Identifier: MIT */
#define FUZZ_WITH_TOKENIZER
#include "fuzz.h"

/* Valid UTF-8: the bytes come back. */
static void check_bytes(const struct dsv2i_tokenizer *t, const char *text, size_t size, const int32_t *ids, size_t n)
{
    size_t used = 0, bytes;
    int special;

    for (size_t i = 0; i < n; i++) {
        const char *piece = dsv2i_tokenizer_bytes(t, ids[i], &bytes, &special);

        MUST(bytes <= size - used && !memcmp(text + used, piece, bytes));
        used += bytes;
    }
    MUST(used == size);
}

static void check_encode(const struct dsv2i_tokenizer *t, const char *text, size_t size, uint32_t flags)
{
    size_t n, need;
    int32_t *ids;
    dsv2_status status;

    do
        status = dsv2i_tokenizer_encode(t, text, size, flags, NULL, 0, &need);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    if (status == DSV2_ERR_UTF8) {
        MUST(!(flags & DSV2_TOKENIZE_REPLACE));
        return;
    }
    MUST(status == DSV2_ERR_BUFFER || (status == DSV2_OK && need == 0));
    ids = malloc((need + 1) * sizeof *ids);
    do
        status = dsv2i_tokenizer_encode(t, text, size, flags, ids, need, &n);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    MUST(status == DSV2_OK && n == need);
    if (!(flags & DSV2_TOKENIZE_REPLACE))
        check_bytes(t, text, size, ids, n);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct dsv2i_tokenizer *t = fuzz_tokenizer();

    fuzz_begin(data, &size);
    for (uint32_t flags = 0; flags < 8; flags++)
        check_encode(t, (const char *)data, size, flags);
    fuzz_end();
    return 0;
}
