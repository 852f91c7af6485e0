/* tokenizer_config.json, then messages: role and content in turn, all parted by 0xFF.
 * SPDX-License-Identifier: MIT */
#include "chat.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { MOST = 8 };
    dsv2_chat_message messages[MOST];
    char *roles[MOST];
    struct dsv2i_chat *chat = NULL;
    size_t n, count = 0, need = 0, got;
    const char *config = fuzz_piece(&data, &size, &n);

    if (dsv2i_chat_parse(&dsv2i_heap, "tokenizer_config.json", config, n, &chat) != DSV2_OK) {
        MUST(!chat);
        MUST(strstr(dsv2_last_error(), "tokenizer_config.json"));
        return 0;
    }
    while (size && count < MOST) {
        const char *role = fuzz_piece(&data, &size, &n);

        roles[count] = strndup(role, n);
        messages[count].role = roles[count];
        messages[count].content = fuzz_piece(&data, &size, &n);
        messages[count].n_content = n;
        count++;
    }
    for (uint32_t flags = 0; flags < 2; flags++) {
        dsv2_status status = dsv2i_chat_apply(chat, messages, sizeof *messages, count, flags, NULL, 0, &need);

        if (status == DSV2_ERR_BUFFER) {
            char *text = malloc(need);

            MUST(dsv2i_chat_apply(chat, messages, sizeof *messages, count, flags, text, need, &got) == DSV2_OK && got == need);
            free(text);
        } else {
            MUST(status != DSV2_OK || need == 0);
        }
    }
    while (count)
        free(roles[--count]);
    dsv2i_chat_free(chat);
    return 0;
}
