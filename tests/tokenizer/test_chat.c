/* Chat templates: recognised or not, and rendered as jinja2 does (tests/golden/template, made through Transformers).
 * SPDX-License-Identifier: MIT */
#include "util.h"

#include "chat.h"

enum { MOST = 64 };

static struct dsv2i_chat *parse(const char *config)
{
    struct dsv2i_chat *chat;

    if (dsv2i_chat_parse(&dsv2i_heap, "tokenizer_config.json", config, strlen(config), &chat) != DSV2_OK)
        fail_msg("%s", dsv2_last_error());
    return chat;
}

static cJSON *templates;

static int load_templates(void **state)
{
    size_t n;
    char *text = load("tests/golden/template/templates.json", &n);

    templates = cJSON_Parse(text);
    free(text);
    return templates ? 0 : -1;
}

static int free_templates(void **state)
{
    cJSON_Delete(templates);
    return 0;
}

static struct dsv2i_chat *parse_named(const char *name)
{
    char *config = cJSON_PrintUnformatted(cJSON_GetObjectItemCaseSensitive(templates, name));
    struct dsv2i_chat *chat = parse(config);

    free(config);
    return chat;
}

static int32_t kind_of(const char *template)
{
    cJSON *config = cJSON_CreateObject();
    struct dsv2i_chat *chat;
    int32_t kind;
    char *text;

    cJSON_AddStringToObject(config, "bos_token", "<b>");
    cJSON_AddStringToObject(config, "eos_token", "<e>");
    cJSON_AddStringToObject(config, "chat_template", template);
    text = cJSON_PrintUnformatted(config);
    chat = parse(text);
    kind = dsv2i_chat_kind(chat);
    dsv2i_chat_free(chat);
    free(text);
    cJSON_Delete(config);
    return kind;
}

static const char *template_of(const char *name)
{
    return cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(templates, name), "chat_template")->valuestring;
}

static dsv2_chat_message say(const char *role, const char *content)
{
    return (dsv2_chat_message){.role = role, .content = content, .n_content = content ? strlen(content) : 0};
}

static const char *text_of(const cJSON *node, const char *key)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(node, key));
}

/* A message of the form that Transformers takes; calls: room for its tool calls. */
static dsv2_chat_message read_message(const cJSON *from, dsv2_tool_call *calls)
{
    dsv2_chat_message m = say(text_of(from, "role"), text_of(from, "content"));
    const cJSON *call;

    m.tool_calls = calls;
    m.tool_call_size = sizeof *calls;
    cJSON_ArrayForEach(call, cJSON_GetObjectItemCaseSensitive(from, "tool_calls")) {
        const cJSON *function = cJSON_GetObjectItemCaseSensitive(call, "function");

        assert_true(m.n_tool_calls < MOST);
        calls[m.n_tool_calls++] = (dsv2_tool_call){text_of(call, "type"), text_of(function, "name"), text_of(function, "arguments")};
    }
    return m;
}

static void test_renderings(void **state)
{
    size_t size, cases = 0, with_calls = 0, refused = 0;
    char *file = load("tests/golden/template/renderings.jsonl", &size), *save = NULL;

    for (char *line = strtok_r(file, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        cJSON *c = cJSON_Parse(line), *list = cJSON_GetObjectItem(c, "messages"), *item;
        struct dsv2i_chat *chat = parse_named(cJSON_GetObjectItem(c, "template")->valuestring);
        const cJSON *expected = cJSON_GetObjectItem(c, "expected");
        uint32_t flags = cJSON_IsTrue(cJSON_GetObjectItem(c, "add_generation_prompt")) ? DSV2_CHAT_GENERATE : 0;
        dsv2_chat_message messages[MOST];
        static dsv2_tool_call calls[MOST][MOST];
        size_t n = 0, n_text, n_calls = 0;
        static char text[1 << 16];

        cJSON_ArrayForEach(item, list) {
            assert_true(n < MOST);
            messages[n] = read_message(item, calls[n]);
            n_calls += messages[n++].n_tool_calls;
        }
        if (cJSON_IsNull(expected)) { /* V2's template fails on None */
            assert_int_equal(dsv2i_chat_apply(chat, messages, sizeof *messages, n, flags, text, sizeof text, &n_text), DSV2_ERR_UNSUPPORTED);
            assert_non_null(strstr(dsv2_last_error(), "tool_calls: the checkpoint's template has no place for them"));
            refused++;
        } else {
            if (dsv2i_chat_apply(chat, messages, sizeof *messages, n, flags, text, sizeof text, &n_text) != DSV2_OK)
                fail_msg("%s", dsv2_last_error());
            text[n_text] = 0;
            assert_string_equal(text, expected->valuestring);
            cases++;
            with_calls += n_calls > 0;
        }
        dsv2i_chat_free(chat);
        cJSON_Delete(c);
    }
    assert_true(cases >= 200 && with_calls >= 8 && refused >= 16);
    free(file);
}

static void test_recognised(void **state)
{
    static const char *const v2[] = {"v2-chat", "v2-chat-line-feeds", "coder-v2"}, *const v25[] = {"v2.5", "v2.5-line-feeds", "v2.5-indented"};

    for (int i = 0; i < 3; i++)
        assert_int_equal(kind_of(template_of(v2[i])), DSV2_CHAT_V2);
    for (int i = 0; i < 3; i++)
        assert_int_equal(kind_of(template_of(v25[i])), DSV2_CHAT_V25);
}

/* template with every one of its parts "from" made "to" */
static char *replaced(const char *template, const char *from, const char *to)
{
    char *out = malloc(strlen(template) * 8 + 16), *p = out;

    for (const char *at; (at = strstr(template, from)); template = at + strlen(from)) {
        memcpy(p, template, (size_t)(at - template));
        p += at - template;
        p = stpcpy(p, to);
    }
    strcpy(p, template);
    return out;
}

static void test_variants(void **state)
{
    static const struct {
        const char *from, *to;
        int32_t kind;
    } cases[] = {
        {"{{ ", "{{", DSV2_CHAT_V2}, {" }}", "}}", DSV2_CHAT_V2}, {"{{ ", "{{-  ", DSV2_CHAT_V2}, {" + ", "+", DSV2_CHAT_V2},
        {"%}{%", "%}\n{%", DSV2_CHAT_V2},        /* trim_blocks takes the line feed off */
        {"%}{%", "%}\n    {%", DSV2_CHAT_V2},    /* and lstrip_blocks the blanks */
        {"%}{%", "%}\n\n{%", DSV2_CHAT_UNKNOWN}, /* but this puts a line feed into the text */
        {"%}{%", "%} {%", DSV2_CHAT_UNKNOWN},
        {"%}{%", "%} {%-", DSV2_CHAT_V2}, {"%}{%", "%}{# a note #}{%", DSV2_CHAT_V2}, {"%}{%", "%}\n{%+", DSV2_CHAT_V2},
        {"%}{{", "%}\n{{", DSV2_CHAT_V2}, {"}}{%", "}}\n{%", DSV2_CHAT_UNKNOWN}, {"}}{%", "}} {%", DSV2_CHAT_UNKNOWN},
        {"'user'", "\"user\"", DSV2_CHAT_V2}, {"'user'", "'users'", DSV2_CHAT_UNKNOWN}, {"'Assistant:'", "'Assistant: '", DSV2_CHAT_UNKNOWN},
        {"'User: '", "'User:  '", DSV2_CHAT_UNKNOWN}, {" + eos_token", "", DSV2_CHAT_UNKNOWN}, {"{% endfor %}", "{% endfor %}x", DSV2_CHAT_UNKNOWN},
        {"'\\n\\n'", "'\\n'", DSV2_CHAT_UNKNOWN}, {"{% endif %}{% endfor %}", "{% endif %}", DSV2_CHAT_UNKNOWN}, {"%}", "%", DSV2_CHAT_UNKNOWN},
        {"not add", "notadd", DSV2_CHAT_UNKNOWN}, {"in messages", "in  messages", DSV2_CHAT_V2}, {"'system'", "'sys' 'tem'", DSV2_CHAT_UNKNOWN},
        {"message['content']", "message['content'] | trim", DSV2_CHAT_UNKNOWN}, {"message['content']", "message['con\\tent']", DSV2_CHAT_UNKNOWN},
        {"%}{%", "%}\r\n{%", DSV2_CHAT_V2}, {"%}{%", "%}\r{%", DSV2_CHAT_V2}, {"%}{%", "%}\n\r{%", DSV2_CHAT_UNKNOWN},
        {"'\\n\\n'", "'\r\n\r\n'", DSV2_CHAT_V2}, {"'\\n\\n'", "'\\r\\n\\r\\n'", DSV2_CHAT_UNKNOWN},
        /* bytes that the canonical form keeps for itself */
        {"{{ bos_token }}", "\1bos_token\3", DSV2_CHAT_UNKNOWN}, {"{% endfor %}", "\2endfor\3", DSV2_CHAT_UNKNOWN},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *variant = replaced(template_of("v2-chat"), cases[i].from, cases[i].to);

        if (kind_of(variant) != cases[i].kind)
            fail_msg("case %zu (%s -> %s) is %d, not %d: %s", i, cases[i].from, cases[i].to, kind_of(variant), cases[i].kind, variant);
        free(variant);
    }
    assert_int_equal(kind_of(""), DSV2_CHAT_UNKNOWN);
    assert_int_equal(kind_of("{{"), DSV2_CHAT_UNKNOWN);
    assert_int_equal(kind_of("{# open"), DSV2_CHAT_UNKNOWN);
    assert_int_equal(kind_of("{{ 'open"), DSV2_CHAT_UNKNOWN);
}

static void test_config_forms(void **state)
{
    static const struct {
        const char *config, *word; /* word: of the error; NULL: no error */
        int32_t kind;
    } cases[] = {
        {"{}", NULL, DSV2_CHAT_NONE},
        {"{\"chat_template\":null,\"bos_token\":null}", NULL, DSV2_CHAT_NONE},
        {"{\"chat_template\":\"{{ messages }}\"}", NULL, DSV2_CHAT_UNKNOWN},
        {"{\"chat_template\":[{\"name\":\"rag\",\"template\":\"x\"}]}", NULL, DSV2_CHAT_UNKNOWN},
        {"[]", "top level", 0},
        {"{\"chat_template\":3}", "chat_template: 3", 0},
        {"{\"chat_template\":[3]}", "chat_template: 3", 0},
        {"{\"bos_token\":3}", "bos_token: 3", 0},
        {"{\"eos_token\":{\"id\":3}}", "eos_token", 0},
        {"{\"bos_token\":\"a\",}", "tokenizer_config.json", 0},
    };
    struct dsv2i_chat *chat;
    dsv2_status status;
    char *text;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        status = dsv2i_chat_parse(&dsv2i_heap, "tokenizer_config.json", cases[i].config, strlen(cases[i].config), &chat);
        assert_int_equal(status, cases[i].word ? DSV2_ERR_FORMAT : DSV2_OK);
        if (cases[i].word) {
            assert_non_null(strstr(dsv2_last_error(), cases[i].word));
            assert_null(chat);
        } else {
            assert_int_equal(dsv2i_chat_kind(chat), cases[i].kind);
            dsv2i_chat_free(chat);
        }
    }
    /* "default" out of a list, special tokens as objects; then one that is missing though needed */
    cJSON *config = cJSON_Parse("{\"bos_token\":{\"content\":\"<b>\"},\"eos_token\":\"<e>\",\"chat_template\":[{\"name\":\"default\"}]}");
    cJSON_AddStringToObject(cJSON_GetObjectItem(config, "chat_template")->child, "template", template_of("v2-chat"));
    text = cJSON_PrintUnformatted(config);
    chat = parse(text);
    assert_int_equal(dsv2i_chat_kind(chat), DSV2_CHAT_V2);
    dsv2i_chat_free(chat);
    free(text);
    cJSON_DeleteItemFromObject(config, "eos_token");
    text = cJSON_PrintUnformatted(config);
    assert_int_equal(dsv2i_chat_parse(&dsv2i_heap, "tokenizer_config.json", text, strlen(text), &chat), DSV2_ERR_FORMAT);
    assert_non_null(strstr(dsv2_last_error(), "eos_token"));
    free(text);
    cJSON_ReplaceItemInObject(config, "chat_template", cJSON_CreateString(template_of("v2.5"))); /* which does not use it */
    text = cJSON_PrintUnformatted(config);
    chat = parse(text);
    assert_int_equal(dsv2i_chat_kind(chat), DSV2_CHAT_V25);
    dsv2i_chat_free(chat);
    free(text);
    cJSON_Delete(config);
    assert_int_equal(dsv2i_chat_parse(&dsv2i_heap, "tokenizer_config.json", NULL, 0, &chat), DSV2_OK);
    assert_int_equal(dsv2i_chat_kind(chat), DSV2_CHAT_NONE);
    dsv2i_chat_free(chat);
}

/* A template in a file of its own: it counts instead of the one in tokenizer_config.json, whose special tokens it needs. */
static void test_override(void **state)
{
    static const struct {
        const char *config, *template, *word;
        size_t n; /* 0: all of it */
        int32_t kind;
    } cases[] = {
        {"{\"bos_token\":\"<b>\",\"eos_token\":\"<e>\"}", "v2-chat", NULL, 0, DSV2_CHAT_V2},
        {"{\"bos_token\":\"<b>\",\"eos_token\":\"<e>\",\"chat_template\":\"x\"}", "v2.5", NULL, 0, DSV2_CHAT_V25},
        {"{\"bos_token\":\"<b>\",\"eos_token\":\"<e>\"}", "v2-chat", NULL, 40, DSV2_CHAT_UNKNOWN},
        {"{\"bos_token\":\"<b>\"}", "v2-chat", "tokenizer_config.json: eos_token: is missing", 0, 0},
        {NULL, "v2.5", "tokenizer_config.json: bos_token: is missing", 0, 0},
    };
    struct dsv2i_chat *chat;
    dsv2_status status;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *config = cases[i].config, *template = template_of(cases[i].template);

        assert_int_equal(dsv2i_chat_parse(&dsv2i_heap, "tokenizer_config.json", config, config ? strlen(config) : 0, &chat), DSV2_OK);
        status = dsv2i_chat_override(chat, "chat_template.jinja", template, cases[i].n ? cases[i].n : strlen(template));
        assert_int_equal(status, cases[i].word ? DSV2_ERR_FORMAT : DSV2_OK);
        if (cases[i].word)
            assert_non_null(strstr(dsv2_last_error(), cases[i].word));
        else
            assert_int_equal(dsv2i_chat_kind(chat), cases[i].kind);
        dsv2i_chat_free(chat);
    }
    /* a file may hold NUL, which Jinja renders like any other character */
    chat = parse(cases[0].config);
    char *text = replaced(template_of("v2-chat"), "{% endfor %}", "{% endfor %}@@");
    char *at = strstr(text, "@@");

    memcpy(at, "{", 2); /* that must not end the template */
    assert_int_equal(dsv2i_chat_override(chat, "chat_template.jinja", text, strlen(template_of("v2-chat")) + 2), DSV2_OK);
    assert_int_equal(dsv2i_chat_kind(chat), DSV2_CHAT_UNKNOWN);
    free(text);
    /* nor does what stands in the file make the configuration's template count */
    assert_int_equal(dsv2i_chat_override(chat, "chat_template.jinja", "", 0), DSV2_OK);
    assert_int_equal(dsv2i_chat_kind(chat), DSV2_CHAT_UNKNOWN);
    assert_int_equal(dsv2i_chat_override(chat, "chat_template.jinja", "ab\xE4\xBD", 4), DSV2_ERR_FORMAT);
    assert_non_null(strstr(dsv2_last_error(), "chat_template.jinja: byte 2: invalid UTF-8, byte 0xE4"));
    dsv2i_chat_free(chat);
}

static void test_errors(void **state)
{
    dsv2_chat_message m = say("user", "hi\xFF");
    struct dsv2i_chat *none = parse("{}"), *unknown = parse("{\"chat_template\":\"{{ messages }}\"}"), *v2 = parse_named("v2-chat");
    char text[4] = "...";
    size_t n;

    assert_int_equal(dsv2i_chat_apply(none, &m, sizeof m, 1, 0, text, 4, &n), DSV2_ERR_UNSUPPORTED);
    assert_int_equal(dsv2i_chat_apply(unknown, &m, sizeof m, 1, 0, text, 4, &n), DSV2_ERR_UNSUPPORTED);
    assert_non_null(strstr(dsv2_last_error(), "none of those that this library knows"));
    assert_int_equal(dsv2i_chat_apply(v2, &m, sizeof m, 1, 0, text, 4, &n), DSV2_ERR_UTF8);
    assert_non_null(strstr(dsv2_last_error(), "messages[0].content"));
    m.n_content = 2;
    assert_int_equal(dsv2i_chat_apply(v2, &m, sizeof m, 1, 0, text, 4, &n), DSV2_ERR_BUFFER);
    assert_int_equal(n, 29 + 6 + 2 + 2);
    assert_string_equal(text, "...");
    dsv2i_chat_free(none);
    dsv2i_chat_free(unknown);
    dsv2i_chat_free(v2);
}

/* What is an error in a message with tool calls or without content; messages as they were before tool calls. */
static void test_tool_calls(void **state)
{
    enum { OLD = DSV2I_CHAT_MESSAGE_AT_LEAST };
    dsv2_tool_call calls[] = {{"function", "f", "{}"}, {"function", "g", "{}"}};
    dsv2_chat_message m[] = {say("user", "w?"), say("assistant", NULL), say("tool", "1")}, empty = say("user", NULL);
    struct dsv2i_chat *v2 = parse_named("v2-chat"), *v25 = parse_named("v2.5");
    char text[512], again[512], old[3 * OLD];
    size_t n, n_again;

    assert_int_equal(dsv2i_chat_apply(v25, m, sizeof *m, 3, 0, text, sizeof text, &n), DSV2_ERR_INVALID);
    assert_non_null(strstr(dsv2_last_error(), "messages[1].content: is NULL, and there are no tool_calls"));
    m[1].tool_calls = calls;
    m[1].tool_call_size = sizeof *calls;
    m[1].n_tool_calls = 2;
    assert_int_equal(dsv2i_chat_apply(v25, m, sizeof *m, 3, 0, text, sizeof text, &n), DSV2_OK);
    calls[1].arguments = "{\"a\": \"\xC0\"}";
    assert_int_equal(dsv2i_chat_apply(v25, m, sizeof *m, 3, 0, text, sizeof text, &n), DSV2_ERR_UTF8);
    assert_non_null(strstr(dsv2_last_error(), "messages[1].tool_calls[1].arguments: is not UTF-8 at byte 7 (0xC0)"));
    calls[1].arguments = "{}";
    m[1].content = ""; /* not None: an empty answer, and then the template does not look at the calls */
    assert_int_equal(dsv2i_chat_apply(v25, m, sizeof *m, 3, 0, text, sizeof text, &n), DSV2_OK);
    m[1].n_tool_calls = 0;
    assert_int_equal(dsv2i_chat_apply(v25, m, sizeof *m, 3, 0, again, sizeof again, &n_again), DSV2_OK);
    assert_int_equal(n, n_again);
    assert_memory_equal(text, again, n);
    assert_int_equal(dsv2i_chat_apply(v25, &empty, sizeof empty, 1, 0, text, sizeof text, &n), DSV2_OK);
    for (int i = 0; i < 3; i++)
        memcpy(old + i * OLD, &m[i], OLD);
    assert_int_equal(dsv2i_chat_apply(v25, (const void *)old, OLD, 3, 0, text, sizeof text, &n), DSV2_OK);
    assert_int_equal(n, n_again);
    assert_memory_equal(text, again, n);
    m[1].content = NULL;
    assert_int_equal(dsv2i_chat_apply(v2, m, sizeof *m, 3, 0, text, sizeof text, &n), DSV2_OK);
    dsv2i_chat_free(v2);
    dsv2i_chat_free(v25);
}

static size_t count_of(const int32_t *ids, size_t n, int32_t id)
{
    size_t count = 0;

    for (size_t i = 0; i < n; i++)
        count += ids[i] == id;
    return count;
}

/* What a user types stays text, and the rest is cut as if it were all one text. */
static void test_no_markers(void **state)
{
    static const char bos[] = "<｜begin▁of▁sentence｜>", eos[] = "<｜end▁of▁sentence｜>";
    size_t n, n_config, n_all, n_safe, markers = 0;
    char *json = load("examples/model/tokenizer.json", &n), *config = load("examples/model/tokenizer_config.json", &n_config), content[128];
    dsv2_chat_message plain = say("user", "Hello  there"), typed = {.role = "user", .content = content};
    struct dsv2i_tokenizer *t;
    struct dsv2i_chat *chat = parse(config);
    int32_t all[512], safe[512], text_ids[256];

    assert_int_equal(dsv2i_tokenizer_parse(&dsv2i_heap, "tokenizer.json", json, n, "c", config, n_config, 2048, 2000, &t), DSV2_OK);
    /* without markers in the contents the switch changes nothing */
    assert_int_equal(dsv2i_chat_tokenize(chat, t, &plain, sizeof plain, 1, DSV2_CHAT_GENERATE, all, 256, &n_all), DSV2_OK);
    assert_int_equal(dsv2i_chat_tokenize(chat, t, &plain, sizeof plain, 1, DSV2_CHAT_GENERATE | DSV2_CHAT_NO_MARKERS, safe, 256, &n_safe),
                     DSV2_OK);
    assert_int_equal(n_all, n_safe);
    assert_memory_equal(all, safe, n_all * sizeof *all);
    assert_int_equal(all[0], 2000);
    assert_int_not_equal(all[1], 2000);

    typed.n_content = (size_t)snprintf(content, sizeof content, "a%sb%s", eos, bos);
    assert_int_equal(dsv2i_chat_tokenize(chat, t, &typed, sizeof typed, 1, 0, all, 256, &n_all), DSV2_OK);
    for (size_t i = 0; i < n_all; i++)
        markers += all[i] >= 2000;
    assert_int_equal(markers, 3);
    assert_int_equal(dsv2i_chat_tokenize(chat, t, &typed, sizeof typed, 1, DSV2_CHAT_NO_MARKERS, safe, 256, &n_safe), DSV2_OK);
    assert_int_equal(safe[0], 2000);
    for (size_t i = 1; i < n_safe; i++)
        assert_true(safe[i] < 2000);
    /* the rest equals the text behind BOS with no marker recognised */
    char rest[256];
    snprintf(rest, sizeof rest, "User: %s\n\n", content);
    assert_int_equal(dsv2i_tokenizer_encode(t, rest, strlen(rest), DSV2_TOKENIZE_NO_MARKERS, text_ids, 256, &n), DSV2_OK);
    assert_int_equal(n_safe, n + 1);
    assert_memory_equal(safe + 1, text_ids, n * sizeof *safe);
    /* nor in the parts of a tool call; EOS is the template's own only behind the second */
    dsv2_tool_call calls[] = {{eos, eos, eos}, {"function", "g", eos}};
    dsv2_chat_message called = {.role = "assistant", .tool_calls = calls, .n_tool_calls = 2, .tool_call_size = sizeof *calls};
    struct dsv2i_chat *v25 = parse_named("v2.5");

    assert_int_equal(dsv2i_chat_tokenize(v25, t, &called, sizeof called, 1, 0, all, 512, &n_all), DSV2_OK);
    assert_int_equal(dsv2i_chat_tokenize(v25, t, &called, sizeof called, 1, DSV2_CHAT_NO_MARKERS, safe, 512, &n_safe), DSV2_OK);
    assert_int_equal(count_of(all, n_all, 2001), 5);
    assert_int_equal(count_of(safe, n_safe, 2001), 1);
    assert_int_equal(safe[n_safe - 1], 2001);
    dsv2i_chat_free(v25);
    dsv2i_tokenizer_free(t);
    dsv2i_chat_free(chat);
    free(json);
    free(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_renderings), cmocka_unit_test(test_recognised), cmocka_unit_test(test_variants),
        cmocka_unit_test(test_config_forms), cmocka_unit_test(test_override), cmocka_unit_test(test_errors),
        cmocka_unit_test(test_tool_calls), cmocka_unit_test(test_no_markers),
    };

    return cmocka_run_group_tests(tests, load_templates, free_templates);
}
