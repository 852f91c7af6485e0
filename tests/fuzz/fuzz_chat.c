/* tokenizer_config.json (empty: there is none); behind a 0x01, chat_template.jinja if there is one; then messages: role and content in
 * turn; all parted by 0xFF.  A content that begins with 0x02 is none, but tool calls: type, name and arguments in turn, a 0x02 in front of each.
 * SPDX-License-Identifier: MIT */
#define FUZZ_WITH_TOKENIZER
#include "chat.h"
#include "fuzz.h"

enum { MOST = 8 };

struct conversation {
    dsv2_chat_message messages[MOST];
    dsv2_tool_call calls[MOST][MOST];
    char *strings[2 * MOST]; /* roles and the text of calls, with a NUL behind each */
    size_t n, n_strings;
};

static char *take_string(struct conversation *v, const char *text, size_t n)
{
    return v->strings[v->n_strings++] = strndup(text, n);
}

static void take_calls(struct conversation *v, dsv2_chat_message *m)
{
    dsv2_tool_call *calls = v->calls[m - v->messages];
    char *text = take_string(v, m->content, m->n_content), *save = NULL;

    m->content = NULL;
    m->n_content = 0;
    m->tool_calls = calls;
    m->tool_call_size = sizeof *calls;
    while (m->n_tool_calls < MOST) {
        dsv2_tool_call call = {.type = strtok_r(m->n_tool_calls ? NULL : text, "\2", &save)};

        call.name = call.type ? strtok_r(NULL, "\2", &save) : NULL;
        call.arguments = call.name ? strtok_r(NULL, "\2", &save) : NULL;
        if (!call.arguments)
            break;
        calls[m->n_tool_calls++] = call;
    }
}

static void take_messages(struct conversation *v, const uint8_t *data, size_t size)
{
    for (size_t n; size && v->n < MOST; v->n++) {
        dsv2_chat_message *m = &v->messages[v->n];

        const char *role = fuzz_piece(&data, &size, &n);

        m->role = take_string(v, role, n);
        m->content = fuzz_piece(&data, &size, &m->n_content);
        if (m->n_content && *m->content == 2)
            take_calls(v, m);
    }
}

/* The rendered text, or NULL where it cannot be. */
static char *apply(const struct dsv2i_chat *chat, const struct conversation *v, uint32_t flags, size_t *n)
{
    size_t need = 0;
    dsv2_status status = dsv2i_chat_apply(chat, v->messages, sizeof *v->messages, v->n, flags, NULL, 0, &need);
    char *text;

    if (status != DSV2_ERR_BUFFER && status != DSV2_OK)
        return NULL;
    MUST(status == DSV2_ERR_BUFFER || need == 0);
    text = malloc(need + 1);
    MUST(dsv2i_chat_apply(chat, v->messages, sizeof *v->messages, v->n, flags, text, need, n) == DSV2_OK && *n == need);
    return text;
}

/* Straight to ids: the ids of the text, or with NO_MARKERS at least its bytes. */
static void check_ids(const struct dsv2i_chat *chat, const struct conversation *v, uint32_t flags, const char *text, size_t n)
{
    const struct dsv2i_tokenizer *t = fuzz_tokenizer();
    int32_t *ids = malloc((n + 1) * sizeof *ids), *plain = malloc((n + 1) * sizeof *ids);
    size_t count, n_plain, used = 0, bytes;
    dsv2_status status;
    int special;

    do
        status = dsv2i_chat_tokenize(chat, t, v->messages, sizeof *v->messages, v->n, flags, ids, n, &count);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    MUST(status == DSV2_OK);
    for (size_t i = 0; i < count; i++) {
        const char *piece = dsv2i_tokenizer_bytes(t, ids[i], &bytes, &special);

        MUST(bytes <= n - used && !memcmp(text + used, piece, bytes));
        used += bytes;
    }
    MUST(used == n);
    if (!(flags & DSV2_CHAT_NO_MARKERS)) {
        fuzz_state.countdown = 0;
        MUST(dsv2i_tokenizer_encode(t, text, n, 0, plain, n, &n_plain) == DSV2_OK);
        MUST(n_plain == count && (!count || !memcmp(ids, plain, count * sizeof *ids)));
    }
    free(plain);
    free(ids);
}

/* NULL: refused. */
static struct dsv2i_chat *load(const uint8_t **data, size_t *size)
{
    struct dsv2i_chat *chat;
    dsv2_status status;
    size_t n;
    const char *config = fuzz_piece(data, size, &n), *template;

    do
        status = dsv2i_chat_parse(&fuzz_mem, "tokenizer_config.json", n ? config : NULL, n, &chat);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    MUST((status == DSV2_OK) == (chat != NULL));
    MUST(chat || strstr(dsv2_last_error(), "tokenizer_config.json"));
    if (!chat || !*size || **data != 1)
        return chat;
    template = fuzz_piece(data, size, &n);
    do
        status = dsv2i_chat_override(chat, "chat_template.jinja", template + 1, n - 1);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    if (status == DSV2_OK)
        return chat;
    MUST(strstr(dsv2_last_error(), "chat_template.jinja: ") || strstr(dsv2_last_error(), "tokenizer_config.json: "));
    dsv2i_chat_free(chat);
    return NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct conversation v = {.n = 0};
    struct dsv2i_chat *chat;
    size_t n;

    fuzz_tokenizer();
    fuzz_begin(data, &size);
    chat = load(&data, &size);
    if (chat)
        take_messages(&v, data, size);
    for (uint32_t flags = 0; flags < 4 && chat; flags++) {
        char *text = apply(chat, &v, flags, &n);
        int known = dsv2i_chat_kind(chat) == DSV2_CHAT_V2 || dsv2i_chat_kind(chat) == DSV2_CHAT_V25;

        MUST(!text || known);
        if (text)
            check_ids(chat, &v, flags, text, n);
        free(text);
    }
    dsv2i_chat_free(chat);
    while (v.n_strings)
        free(v.strings[--v.n_strings]);
    fuzz_end();
    return 0;
}
