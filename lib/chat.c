/* Chat templates of the family, recognised in tokenizer_config.json or chat_template.jinja and rendered in C.
 * SPDX-License-Identifier: MIT
 *
 * A checkpoint's template is a Jinja program.  None is run here: it is compared with the programs that are known, and those have a C
 * function each.  The comparison is exact but for what cannot change the output: a template is brought to a canonical form, in which
 * white space and comments between tokens are gone, string literals are written in one way, and Jinja's own rules for white space around tags have
 * been applied as Transformers sets them (trim_blocks and lstrip_blocks).  Anything else in a template makes it unknown. */
#include "chat.h"

#include <stdio.h>
#include <string.h>

#include "encode.h"
#include "utf8.h"

struct dsv2i_chat {
    const struct dsv2i_hooks *mem;
    const char *config, *file; /* names: where the special tokens stand, where the template does */
    int32_t kind;
    const char *indentation; /* what a system message puts in front of BOS */
    char *bos, *eos;
};

/* ---- The templates that are known ---- */

/* V2-Chat, V2-Lite-Chat, Coder-V2(-Lite)-Instruct. */
static const char v2_template[] =
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";

#define EOS "<｜end▁of▁sentence｜>"
#define CALL_BEGIN "<｜tool▁call▁begin｜>"
#define CALL_SEP "<｜tool▁sep｜>"
#define CALL_END "<｜tool▁call▁end｜>"
#define CALL_TAIL \
    " + tool['type'] + '" CALL_SEP "' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments']" \
    " + '\\n' + '```' + '" CALL_END "'"

/* V2.5, and the first form of V3.  Published copies of V2.5's are indented in one line: Jinja takes all of that off but these blanks, which
 * each system message puts in front of BOS. */
#define INDENTATION "        "
#define V25_TEMPLATE(indentation) \
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}" \
    "{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}" \
    "{%- for message in messages %}{%- if message['role'] == 'system' %}" indentation "{% set ns.system_prompt = message['content'] %}" \
    "{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}" V25_MESSAGES
#define V25_MESSAGES \
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}" \
    "{{'<｜User｜>' + message['content']}}{%- endif %}" \
    "{%- if message['role'] == 'assistant' and message['content'] is none %}{%- set ns.is_tool = false -%}" \
    "{%- for tool in message['tool_calls']%}{%- if not ns.is_first %}" \
    "{{'<｜Assistant｜><｜tool▁calls▁begin｜>" CALL_BEGIN "'" CALL_TAIL "}}{%- set ns.is_first = true -%}{%- else %}" \
    "{{'\\n' + '" CALL_BEGIN "'" CALL_TAIL "}}{{'<｜tool▁calls▁end｜><｜end▁of▁sentence｜>'}}" \
    "{%- endif %}{%- endfor %}{%- endif %}" \
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}{%- if ns.is_tool %}" \
    "{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}" \
    "{{'<｜Assistant｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}" \
    "{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}" \
    "{{'<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}" \
    "{%- set ns.is_output_first = false %}{%- else %}" \
    "{{'\\n<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- endif %}{%- endif %}{%- endfor -%}" \
    "{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}" \
    "{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}{% endif %}"

/* ---- Canonical form ---- */

static int is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n';
}

static int is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || (unsigned char)c >= 0x80;
}

/* What lies between two tags, with the white space taken off that the tags on either side take.  at_start: a line begins at p. */
static size_t put_text(const char *p, const char *end, int strip_left, int trim, int strip_right, int lstrip, int at_start, char *out)
{
    const char *from = p, *line = end;

    if (strip_left)
        while (p < end && is_blank(*p))
            p++;
    else if (trim && p < end && *p == '\n')
        p++;
    if (p > from)
        at_start = p[-1] == '\n';
    if (strip_right) {
        while (end > p && is_blank(end[-1]))
            end--;
    } else if (lstrip) { /* blanks from the beginning of the line to a block */
        while (line > p && (line[-1] == ' ' || line[-1] == '\t'))
            line--;
        if (line > p ? line[-1] == '\n' : at_start)
            end = line;
    }
    memcpy(out, p, (size_t)(end - p));
    return (size_t)(end - p);
}

/* A string literal at *p, its quotes made single and its line feeds escaped.  0: one that this does not read. */
static size_t put_literal(const char **p, const char *end, char *out)
{
    const char *s = *p;
    char quote = *s++;
    size_t n = 0;

    out[n++] = '\'';
    for (; s < end && *s != quote; s++) {
        char c = *s;

        if (c == '\\') {
            if (++s == end || !strchr("nrt\\'\"", *s))
                return 0;
            c = *s == 'n' ? '\n' : *s == 'r' ? '\r' : *s == 't' ? '\t' : *s;
        }
        if (c == '\n' || c == '\'' || c == '\\') {
            out[n++] = '\\';
            c = c == '\n' ? 'n' : c;
        }
        out[n++] = c;
    }
    if (s == end)
        return 0;
    out[n++] = '\'';
    *p = s + 1;
    return n;
}

/* A template with its lines ended by "\n", as Jinja reads it; 0: it has a byte that the canonical form keeps for itself. */
static size_t put_lines(const char *text, size_t n, char *out)
{
    size_t used = 0;

    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)text[i] <= 3)
            return 0;
        if (text[i] != '\n' || !i || text[i - 1] != '\r')
            out[used++] = text[i] == '\r' ? '\n' : text[i];
    }
    return used;
}

/* The canonical form of a template in out, which has room for 3 * n + 8 bytes; 0: it is not well-formed for this reader. */
static size_t canonical(const char *text, size_t n, char *out)
{
    const char *p = text, *end = text + n;
    size_t used = 0;
    int strip_left = 0, trim = 0, at_start = 1;

    if (n && end[-1] == '\n') /* Jinja drops one line feed at the end */
        end--;
    for (;;) {
        const char *open = p, *inside;
        char kind = 0, last = 0;

        while (open < end && !(open[0] == '{' && open + 1 < end && strchr("{%#", open[1])))
            open++;
        if (open < end)
            kind = open[1];
        inside = open < end ? open + 2 : end;
        /* the signs - and + behind the opening: take white space off, or keep it from being taken off */
        used += put_text(p, open, strip_left, trim, kind && inside < end && *inside == '-',
                         kind && kind != '{' && !(inside < end && *inside == '+'), at_start, out + used);
        if (!kind)
            return used;
        at_start = strip_left = trim = 0;
        if (inside < end && (*inside == '-' || *inside == '+'))
            inside++;
        if (kind == '#') {
            const char *close = memmem(inside, (size_t)(end - inside), "#}", 2);

            if (!close)
                return 0;
            strip_left = close > inside && close[-1] == '-';
            trim = !(close > inside && close[-1] == '+');
            p = close + 2;
            continue;
        }
        out[used++] = kind == '{' ? 1 : 2; /* bytes that put_lines lets through in no template */
        for (p = inside;;) {
            char close = kind == '{' ? '}' : '%';

            while (p < end && is_blank(*p))
                p++;
            if (end - p >= 2 && p[0] == close && p[1] == '}') {
                p += 2;
                trim = kind == '%';
                break;
            }
            if (end - p >= 3 && (p[0] == '-' || p[0] == '+') && p[1] == close && p[2] == '}') {
                strip_left = *p == '-';
                p += 3;
                break;
            }
            if (p >= end)
                return 0;
            if (*p == '\'' || *p == '"') {
                size_t literal = put_literal(&p, end, out + used);

                if (!literal)
                    return 0;
                used += literal;
                last = 0;
                continue;
            }
            if (is_name(*p) && is_name(last) && is_blank(p[-1]))
                out[used++] = ' ';
            last = *p;
            out[used++] = *p++;
        }
        out[used++] = 3;
    }
}

static dsv2_status recognise(struct dsv2i_chat *c, const char *file, const char *text, size_t n)
{
    static const struct {
        const char *text;
        int32_t kind;
        const char *indentation;
    } known[] = {
        {v2_template, DSV2_CHAT_V2, ""},
        {V25_TEMPLATE(""), DSV2_CHAT_V25, ""},
        {V25_TEMPLATE(INDENTATION), DSV2_CHAT_V25, INDENTATION},
    };
    size_t used, longest = sizeof V25_TEMPLATE(INDENTATION);
    char *given = n < SIZE_MAX / 8 ? dsv2i_alloc(c->mem, 4 * n + 8, 1) : NULL, *form = dsv2i_alloc(c->mem, 3 * longest + 8, 1);

    c->file = file;
    c->kind = DSV2_CHAT_UNKNOWN;
    if (given && form) {
        char *lines = given + 3 * n + 8;

        used = canonical(lines, put_lines(text, n, lines), given);
        for (size_t i = 0; i < sizeof known / sizeof *known && used; i++)
            if (canonical(known[i].text, strlen(known[i].text), form) == used && !memcmp(form, given, used)) {
                c->kind = known[i].kind;
                c->indentation = known[i].indentation;
            }
    }
    dsv2i_free(c->mem, given);
    dsv2i_free(c->mem, form);
    return given && form ? DSV2_OK : dsv2i_fail(DSV2_ERR_NOMEM, "%s: chat_template: no memory", file);
}

/* ---- tokenizer_config.json ---- */

/* A special token: a string, or an object with "content"; null or absent: none. */
static dsv2_status read_special(const struct dsv2i_chat *c, const char *file, const cJSON *root, const char *key, char **out)
{
    const cJSON *node = dsv2i_json_get(root, key);
    char show[96];

    if (!node || cJSON_IsNull(node))
        return DSV2_OK;
    if (cJSON_IsObject(node))
        node = dsv2i_json_get(node, "content");
    if (!cJSON_IsString(node))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: %s: a string or an object with \"content\" is needed", file, key,
                          dsv2i_json_show(show, sizeof show, dsv2i_json_get(root, key)));
    *out = dsv2i_strndup(c->mem, node->valuestring, strlen(node->valuestring));
    return *out ? DSV2_OK : dsv2i_fail(DSV2_ERR_NOMEM, "%s: %s: no memory", file, key);
}

/* The template: a string, or a list of named ones of which "default" is the one that HF takes. */
static dsv2_status read_template(struct dsv2i_chat *c, const char *file, const cJSON *node)
{
    const cJSON *item, *name, *text, *chosen = NULL;
    char show[96];

    if (!node || cJSON_IsNull(node))
        return DSV2_OK;
    if (cJSON_IsString(node))
        return recognise(c, file, node->valuestring, strlen(node->valuestring));
    if (!cJSON_IsArray(node))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: chat_template: %s: a string or a list is needed", file,
                          dsv2i_json_show(show, sizeof show, node));
    cJSON_ArrayForEach(item, node) {
        name = dsv2i_json_get(item, "name");
        text = dsv2i_json_get(item, "template");
        if (!cJSON_IsString(name) || !cJSON_IsString(text))
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: chat_template: %s: an object with \"name\" and \"template\" is needed", file,
                              dsv2i_json_show(show, sizeof show, item));
        if (!strcmp(name->valuestring, "default"))
            chosen = text;
    }
    c->kind = DSV2_CHAT_UNKNOWN;
    return chosen ? recognise(c, file, chosen->valuestring, strlen(chosen->valuestring)) : DSV2_OK;
}

static dsv2_status check_special(const struct dsv2i_chat *c)
{
    int known = c->kind == DSV2_CHAT_V2 || c->kind == DSV2_CHAT_V25;

    if (known && (!c->bos || (c->kind == DSV2_CHAT_V2 && !c->eos)))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: is missing, and the chat template needs it", c->config,
                          c->bos ? "eos_token" : "bos_token");
    return DSV2_OK;
}

static dsv2_status read_config(struct dsv2i_chat *c, const char *file, const cJSON *root)
{
    if (!cJSON_IsObject(root))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: the top level is not an object", file);
    DSV2I_TRY(read_special(c, file, root, "bos_token", &c->bos));
    DSV2I_TRY(read_special(c, file, root, "eos_token", &c->eos));
    DSV2I_TRY(read_template(c, file, dsv2i_json_get(root, "chat_template")));
    return check_special(c);
}

dsv2_status dsv2i_chat_parse(const struct dsv2i_hooks *mem, const char *file, const char *text, size_t n,
                             struct dsv2i_chat **out)
{
    struct dsv2i_chat *c = dsv2i_calloc(mem, 1, sizeof *c);
    dsv2_status status = DSV2_OK;
    cJSON *root = NULL;

    *out = NULL;
    if (!c)
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s: no memory", file);
    c->mem = mem;
    c->config = c->file = file;
    c->kind = DSV2_CHAT_NONE;
    if (text) {
        status = dsv2i_json_parse(file, text, n, &root);
        if (status == DSV2_OK)
            status = read_config(c, file, root);
        cJSON_Delete(root);
    }
    if (status != DSV2_OK)
        dsv2i_chat_free(c);
    else
        *out = c;
    return status;
}

dsv2_status dsv2i_chat_override(struct dsv2i_chat *c, const char *file, const char *text, size_t n)
{
    size_t valid = dsv2i_utf8_valid(text, n);

    if (valid < n)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: byte %zu: invalid UTF-8, byte 0x%02X", file, valid, (unsigned char)text[valid]);
    DSV2I_TRY(recognise(c, file, text, n));
    return check_special(c);
}

void dsv2i_chat_free(struct dsv2i_chat *c)
{
    if (!c)
        return;
    dsv2i_free(c->mem, c->bos);
    dsv2i_free(c->mem, c->eos);
    dsv2i_free(c->mem, c);
}

int32_t dsv2i_chat_kind(const struct dsv2i_chat *c)
{
    return c->kind;
}

/* ---- Rendering ---- */

/* Where the text goes: counted always, written if it fits, contents noted as ranges if wanted. */
struct output {
    char *text;
    size_t n, capacity;
    struct dsv2i_range_of_text *ranges;
    size_t n_ranges;
};

struct conversation {
    const struct dsv2i_chat *chat;
    const dsv2_chat_message *messages;
    size_t message_size, n;
    uint32_t flags;
};

dsv2_chat_message dsv2i_chat_message_at(const dsv2_chat_message *messages, size_t message_size, size_t i)
{
    dsv2_chat_message m = {.role = NULL};

    memcpy(&m, (const char *)messages + i * message_size, message_size < sizeof m ? message_size : sizeof m);
    return m;
}

const dsv2_tool_call *dsv2i_chat_call_at(const dsv2_chat_message *m, size_t i)
{
    return (const void *)((const char *)m->tool_calls + i * m->tool_call_size);
}

static dsv2_chat_message message_at(const struct conversation *v, size_t i)
{
    return dsv2i_chat_message_at(v->messages, v->message_size, i);
}

static int is_role(const dsv2_chat_message *m, const char *role)
{
    return !strcmp(m->role, role);
}

static void put(struct output *o, const char *text, size_t n)
{
    if (o->text && o->n <= o->capacity && n <= o->capacity - o->n && n)
        memcpy(o->text + o->n, text, n);
    o->n += n;
}

static void put_string(struct output *o, const char *text)
{
    put(o, text, strlen(text));
}

/* What is not the template's own. */
static void put_given(struct output *o, const char *text, size_t n)
{
    if (o->ranges && n)
        o->ranges[o->n_ranges] = (struct dsv2i_range_of_text){o->n, o->n + n};
    o->n_ranges += n > 0;
    put(o, text, n);
}

static void put_content(struct output *o, const dsv2_chat_message *m)
{
    put_given(o, m->content, m->n_content);
}

static void put_call(struct output *o, const dsv2_tool_call *call)
{
    put_string(o, CALL_BEGIN);
    put_given(o, call->type, strlen(call->type));
    put_string(o, CALL_SEP);
    put_given(o, call->name, strlen(call->name));
    put_string(o, "\n```json\n");
    put_given(o, call->arguments, strlen(call->arguments));
    put_string(o, "\n```" CALL_END);
}

static void render_v2(const struct conversation *v, struct output *o)
{
    put_string(o, v->chat->bos);
    for (size_t i = 0; i < v->n; i++) {
        dsv2_chat_message m = message_at(v, i);

        if (is_role(&m, "user")) {
            put_string(o, "User: ");
            put_content(o, &m);
            put_string(o, "\n\n");
        } else if (is_role(&m, "assistant")) {
            put_string(o, "Assistant: ");
            put_content(o, &m);
            put_string(o, v->chat->eos);
        } else if (is_role(&m, "system")) {
            put_content(o, &m);
            put_string(o, "\n\n");
        }
    }
    if (v->flags & DSV2_CHAT_GENERATE)
        put_string(o, "Assistant:");
}

/* The system message is hoisted, the last one wins.  "First call" and "first output" are remembered for the whole conversation, and only
 * calls behind the first are closed, all as in the template; so is EOS, which is written out there, whatever eos_token is. */
static void render_v25(const struct conversation *v, struct output *o)
{
    dsv2_chat_message system = {.role = NULL};
    int is_first_call = 1, is_first_output = 1, is_tool = 0;

    for (size_t i = 0; i < v->n; i++) {
        dsv2_chat_message m = message_at(v, i);

        if (is_role(&m, "system")) {
            system = m;
            put_string(o, v->chat->indentation);
        }
    }
    put_string(o, v->chat->bos);
    put_content(o, &system);
    for (size_t i = 0; i < v->n; i++) {
        dsv2_chat_message m = message_at(v, i);

        if (is_role(&m, "user")) {
            is_tool = 0;
            put_string(o, "<｜User｜>");
            put_content(o, &m);
        } else if (is_role(&m, "assistant") && !m.content) {
            is_tool = 0;
            for (size_t j = 0; j < m.n_tool_calls; j++) {
                put_string(o, is_first_call ? "<｜Assistant｜><｜tool▁calls▁begin｜>" : "\n");
                put_call(o, dsv2i_chat_call_at(&m, j));
                if (!is_first_call)
                    put_string(o, "<｜tool▁calls▁end｜>" EOS);
                is_first_call = 0;
            }
        } else if (is_role(&m, "assistant")) {
            put_string(o, is_tool ? "<｜tool▁outputs▁end｜>" : "<｜Assistant｜>");
            is_tool = 0;
            put_content(o, &m);
            put_string(o, EOS);
        } else if (is_role(&m, "tool")) {
            is_tool = 1;
            put_string(o, is_first_output ? "<｜tool▁outputs▁begin｜>" : "\n");
            is_first_output = 0;
            put_string(o, "<｜tool▁output▁begin｜>");
            put_content(o, &m);
            put_string(o, "<｜tool▁output▁end｜>");
        }
    }
    if (is_tool)
        put_string(o, "<｜tool▁outputs▁end｜>");
    else if (v->flags & DSV2_CHAT_GENERATE)
        put_string(o, "<｜Assistant｜>");
}

static void render(const struct conversation *v, struct output *o)
{
    if (v->chat->kind == DSV2_CHAT_V2)
        render_v2(v, o);
    else
        render_v25(v, o);
}

/* A text of a message; its bytes are added to total. */
static dsv2_status check_text(const char *text, size_t n, const char *field, size_t *total)
{
    size_t valid;

    if (n > SIZE_MAX / 4 - *total)
        return dsv2i_fail(DSV2_ERR_LIMIT, "%s: %zu bytes: the conversation is too long", field, n);
    *total += n;
    valid = dsv2i_utf8_valid(text, n);
    return valid == n ? DSV2_OK : dsv2i_fail(DSV2_ERR_UTF8, "%s: is not UTF-8 at byte %zu (0x%02X)", field, valid, (unsigned char)text[valid]);
}

static dsv2_status check_calls(const dsv2_chat_message *m, size_t of, size_t *total)
{
    for (size_t i = 0; i < m->n_tool_calls; i++) {
        const dsv2_tool_call *call = dsv2i_chat_call_at(m, i);
        const char *const texts[] = {call->type, call->name, call->arguments}, *const names[] = {"type", "name", "arguments"};

        for (int j = 0; j < 3; j++) {
            char field[96];

            snprintf(field, sizeof field, "messages[%zu].tool_calls[%zu].%s", of, i, names[j]);
            DSV2I_TRY(check_text(texts[j], strlen(texts[j]), field, total));
        }
    }
    return DSV2_OK;
}

static dsv2_status check(const struct conversation *v)
{
    size_t total = 0;

    if (v->chat->kind == DSV2_CHAT_NONE)
        return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "%s: chat_template: the checkpoint has none", v->chat->file);
    if (v->chat->kind == DSV2_CHAT_UNKNOWN)
        return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "%s: chat_template: it is none of those that this library knows; "
                                                "render it yourself and tokenize the text", v->chat->file);
    for (size_t i = 0; i < v->n; i++) {
        dsv2_chat_message m = message_at(v, i);
        int has_content = m.content || !is_role(&m, "assistant");
        char field[64];

        if (v->chat->kind == DSV2_CHAT_V2 && !has_content && m.n_tool_calls)
            return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "messages[%zu].tool_calls: the checkpoint's template has no place for them", i);
        if (v->chat->kind == DSV2_CHAT_V25 && !has_content && !m.n_tool_calls)
            return dsv2i_fail(DSV2_ERR_INVALID, "messages[%zu].content: is NULL, and there are no tool_calls", i);
        snprintf(field, sizeof field, "messages[%zu].content", i);
        DSV2I_TRY(check_text(m.content, m.n_content, field, &total));
        DSV2I_TRY(check_calls(&m, i, &total));
    }
    return DSV2_OK;
}

dsv2_status dsv2i_chat_apply(const struct dsv2i_chat *c, const dsv2_chat_message *messages, size_t message_size,
                             size_t n_messages, uint32_t flags, char *text, size_t capacity, size_t *n)
{
    struct conversation v = {c, messages, message_size, n_messages, flags};
    struct output count = {.text = NULL}, write = {.text = text, .capacity = capacity};

    DSV2I_TRY(check(&v));
    render(&v, &count);
    *n = count.n;
    if (count.n > capacity)
        return dsv2i_fail(DSV2_ERR_BUFFER, "%zu bytes of text do not fit the room for %zu", count.n, capacity);
    render(&v, &write);
    return DSV2_OK;
}

dsv2_status dsv2i_chat_tokenize(const struct dsv2i_chat *c, const struct dsv2i_tokenizer *t,
                                const dsv2_chat_message *messages, size_t message_size, size_t n_messages, uint32_t flags,
                                int32_t *ids, size_t capacity, size_t *n)
{
    struct conversation v = {c, messages, message_size, n_messages, flags};
    struct output count = {.text = NULL}, o;
    struct dsv2i_guard guard;
    dsv2_status status;

    DSV2I_TRY(check(&v));
    render(&v, &count);
    o = (struct output){.capacity = count.n};
    o.text = dsv2i_alloc(c->mem, count.n, 1);
    o.ranges = dsv2i_alloc(c->mem, count.n_ranges, sizeof *o.ranges);
    if (o.text && o.ranges) {
        render(&v, &o);
        guard = (struct dsv2i_guard){o.ranges, flags & DSV2_CHAT_NO_MARKERS ? o.n_ranges : 0};
        status = dsv2i_encode_guarded(t, o.text, o.n, &guard, ids, capacity, n);
    } else {
        status = dsv2i_fail(DSV2_ERR_NOMEM, "no memory for a conversation of %zu bytes", o.capacity);
    }
    dsv2i_free(c->mem, o.text);
    dsv2i_free(c->mem, o.ranges);
    return status;
}
