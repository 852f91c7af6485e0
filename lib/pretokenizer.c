/* The pre_tokenizer of tokenizer.json: cuts text into the pieces that BPE works on.
 * SPDX-License-Identifier: MIT
 *
 * It is a sequence of steps, each applied to every piece that the one before it left; no step looks across the border of a piece.  That is
 * not the same as one alternation of all patterns: "naïve" is one run of letters to the second step of the family's files, and the
 * third cuts its ASCII letters off again.  The last step is always ByteLevel, which means that BPE sees bytes. */
#include "pretokenizer.h"

#include <stdio.h>
#include <string.h>

#include "regex.h"
#include "unicode.h"
#include "utf8.h"

/* What ByteLevel splits by with use_regex. */
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

enum { MAX_STEPS = 64 };

enum kind { SPLIT, DIGITS, PREFIX_SPACE };
enum behavior { ISOLATED, REMOVED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS };

struct step {
    enum kind kind;
    enum behavior behavior;
    int invert;
    struct dsv2i_regex *regex;  /* of SPLIT */
};

struct dsv2i_pretokenizer {
    const struct dsv2i_hooks *mem;
    struct step steps[MAX_STEPS];
    size_t n_steps;
    int byte_level; /* seen: nothing may follow */
};

/* ---- Parsing ---- */

static dsv2_status unsupported(const char *file, const char *path, const cJSON *value)
{
    char show[96];

    return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "%s: %s: %s is not supported", file, path, dsv2i_json_show(show, sizeof show, value));
}

static dsv2_status add_step(struct dsv2i_pretokenizer *p, const char *file, const char *path, const struct step *step)
{
    if (p->n_steps == MAX_STEPS)
        return dsv2i_fail(DSV2_ERR_LIMIT, "%s: %s: more than %d steps", file, path, MAX_STEPS);
    p->steps[p->n_steps++] = *step;
    return DSV2_OK;
}

static dsv2_status parse_behavior(const char *file, const char *path, const cJSON *node, enum behavior *out)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *name;
    char where[128];

    DSV2I_TRY(dsv2i_json_string_or(file, path, node, "behavior", NULL, &name));
    if (!name)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s.behavior: is missing", file, path);
    for (int i = 0; i < 5; i++)
        if (!strcmp(name, names[i])) {
            *out = (enum behavior)i;
            return DSV2_OK;
        }
    snprintf(where, sizeof where, "%s.behavior", path);
    return unsupported(file, where, dsv2i_json_get(node, "behavior"));
}

static dsv2_status parse_split(struct dsv2i_pretokenizer *p, const char *file, const char *path, const cJSON *node)
{
    const cJSON *pattern = dsv2i_json_get(node, "pattern");
    const char *regex, *literal;
    char where[128];
    struct step step = {.kind = SPLIT};

    snprintf(where, sizeof where, "%s.pattern", path);
    if (!cJSON_IsObject(pattern))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: is not an object with \"Regex\" or \"String\"", file, where);
    DSV2I_TRY(dsv2i_json_string_or(file, where, pattern, "Regex", NULL, &regex));
    DSV2I_TRY(dsv2i_json_string_or(file, where, pattern, "String", NULL, &literal));
    if (!regex == !literal)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: one of \"Regex\" and \"String\" is needed", file, where);
    DSV2I_TRY(parse_behavior(file, path, node, &step.behavior));
    DSV2I_TRY(dsv2i_json_bool_or(file, path, node, "invert", 0, &step.invert));
    DSV2I_TRY(dsv2i_regex_compile(p->mem, file, where, regex ? regex : literal, strlen(regex ? regex : literal),
                                  regex ? 0 : DSV2I_REGEX_LITERAL, &step.regex));
    dsv2_status status = add_step(p, file, path, &step);
    if (status != DSV2_OK)
        dsv2i_regex_free(step.regex);
    return status;
}

static dsv2_status parse_byte_level(struct dsv2i_pretokenizer *p, const char *file, const char *path, const cJSON *node)
{
    int prefix, regex;
    struct step step = {.kind = PREFIX_SPACE};

    DSV2I_TRY(dsv2i_json_bool_or(file, path, node, "add_prefix_space", 1, &prefix));
    DSV2I_TRY(dsv2i_json_bool_or(file, path, node, "use_regex", 1, &regex));
    p->byte_level = 1;
    if (prefix)
        DSV2I_TRY(add_step(p, file, path, &step));
    if (!regex)
        return DSV2_OK;
    step = (struct step){.kind = SPLIT, .behavior = ISOLATED};
    DSV2I_TRY(dsv2i_regex_compile(p->mem, file, path, GPT2, strlen(GPT2), 0, &step.regex));
    dsv2_status status = add_step(p, file, path, &step);
    if (status != DSV2_OK)
        dsv2i_regex_free(step.regex);
    return status;
}

static dsv2_status parse_step(struct dsv2i_pretokenizer *p, const char *file, const char *path, const cJSON *node)
{
    const char *type;
    char where[96];

    if (!cJSON_IsObject(node))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: is not an object", file, path);
    DSV2I_TRY(dsv2i_json_string_or(file, path, node, "type", NULL, &type));
    if (!type)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s.type: is missing", file, path);
    if (p->byte_level)
        return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "%s: %s: a step after ByteLevel is not supported", file, path);
    if (!strcmp(type, "Sequence")) {
        const cJSON *list = dsv2i_json_get(node, "pretokenizers"), *item;
        size_t i = 0;

        if (!cJSON_IsArray(list))
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s.pretokenizers: is not a list", file, path);
        if (strlen(path) > 40)
            return dsv2i_fail(DSV2_ERR_LIMIT, "%s: %s: sequences are nested too deep", file, path);
        cJSON_ArrayForEach(item, list) {
            snprintf(where, sizeof where, "%s[%zu]", path, i++);
            DSV2I_TRY(parse_step(p, file, where, item));
        }
        return DSV2_OK;
    }
    if (!strcmp(type, "Split"))
        return parse_split(p, file, path, node);
    if (!strcmp(type, "Digits")) {
        struct step step = {.kind = DIGITS};
        int individual;

        DSV2I_TRY(dsv2i_json_bool_or(file, path, node, "individual_digits", 0, &individual));
        step.behavior = individual ? ISOLATED : CONTIGUOUS;
        return add_step(p, file, path, &step);
    }
    if (!strcmp(type, "ByteLevel"))
        return parse_byte_level(p, file, path, node);
    snprintf(where, sizeof where, "%s.type", path);
    return unsupported(file, where, dsv2i_json_get(node, "type"));
}

dsv2_status dsv2i_pretokenizer_parse(const struct dsv2i_hooks *mem, const char *file, const cJSON *node,
                                     struct dsv2i_pretokenizer **out)
{
    struct dsv2i_pretokenizer *p = dsv2i_calloc(mem, 1, sizeof *p);
    dsv2_status status;

    *out = NULL;
    if (!p)
        return dsv2i_fail(DSV2_ERR_NOMEM, "%s: pre_tokenizer: no memory", file);
    p->mem = mem;
    status = node ? parse_step(p, file, "pre_tokenizer", node) : DSV2_OK;
    if (status == DSV2_OK && !p->byte_level)
        status = dsv2i_fail(DSV2_ERR_UNSUPPORTED, "%s: pre_tokenizer: no ByteLevel step: only byte-level tokenizers are supported",
                            file);
    if (status != DSV2_OK)
        dsv2i_pretokenizer_free(p);
    else
        *out = p;
    return status;
}

void dsv2i_pretokenizer_free(struct dsv2i_pretokenizer *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n_steps; i++)
        dsv2i_regex_free(p->steps[i].regex);
    dsv2i_free(p->mem, p);
}

size_t dsv2i_pretokenizer_memory(const struct dsv2i_pretokenizer *p)
{
    size_t bytes = sizeof *p;

    for (size_t i = 0; i < p->n_steps; i++)
        bytes += p->steps[i].regex ? dsv2i_regex_memory(p->steps[i].regex) : 0;
    return bytes;
}

/* ---- Running ---- */

static dsv2_status put(struct dsv2i_pieces *s, size_t begin, size_t end)
{
    if (s->n_next == s->next_capacity) {
        size_t capacity = s->next_capacity ? s->next_capacity * 2 : 64;
        struct dsv2i_piece *grown = dsv2i_realloc(s->mem, s->next, capacity, sizeof *grown);

        if (!grown)
            return dsv2i_fail(DSV2_ERR_NOMEM, "no memory for the pieces of a text");
        s->next = grown;
        s->next_capacity = capacity;
    }
    s->next[s->n_next++] = (struct dsv2i_piece){begin, end};
    return DSV2_OK;
}

/* Where the parts of one piece go: matches and gaps in order, joined or dropped as the behaviour says. */
struct sink {
    struct dsv2i_pieces *s;
    enum behavior behavior;
    size_t first;   /* next[first..] belongs to this piece */
    int previous;   /* was the part before this one a match? */
};

static dsv2_status part(struct sink *k, size_t begin, size_t end, int is_match)
{
    struct dsv2i_pieces *s = k->s;
    int previous = k->previous, join = 0;

    k->previous = is_match;
    switch (k->behavior) {
    case REMOVED:
        if (is_match)
            return DSV2_OK;
        break;
    case MERGED_WITH_PREVIOUS:
        join = is_match && !previous;
        break;
    case MERGED_WITH_NEXT: /* the next part is the one that looks back */
        join = previous && !is_match;
        break;
    case CONTIGUOUS:
        join = is_match == previous;
        break;
    case ISOLATED:
        break;
    }
    if (join && s->n_next > k->first) {
        s->next[s->n_next - 1].end = end;
        return DSV2_OK;
    }
    return put(s, begin, end);
}

static dsv2_status split_piece(struct dsv2i_matcher *m, const struct step *step, struct sink *k, struct dsv2i_piece piece)
{
    const char *text = k->s->text + piece.begin;
    size_t n = piece.end - piece.begin, from = 0, done = 0, begin, end, last = SIZE_MAX;

    while (from <= n) {
        DSV2I_TRY(dsv2i_matcher_next(m, text, n, from, &begin, &end));
        if (begin > n)
            break;
        if (begin == end && end == last) { /* no empty match right behind a match: move on by one character */
            uint32_t cp;

            from += from < n ? dsv2i_utf8_get(text + from, &cp) : 1;
            continue;
        }
        from = last = end;
        if (begin > done)
            DSV2I_TRY(part(k, piece.begin + done, piece.begin + begin, step->invert));
        DSV2I_TRY(part(k, piece.begin + begin, piece.begin + end, !step->invert));
        done = end;
    }
    if (done < n)
        DSV2I_TRY(part(k, piece.begin + done, piece.end, step->invert));
    return DSV2_OK;
}

static dsv2_status split_digits(struct sink *k, struct dsv2i_piece piece)
{
    const char *text = k->s->text;
    size_t done = piece.begin, i = piece.begin, length;

    for (; i < piece.end; i += length) {
        uint32_t cp;

        length = dsv2i_utf8_get(text + i, &cp);
        if (!dsv2i_is_numeric(cp))
            continue;
        if (i > done)
            DSV2I_TRY(part(k, done, i, 0));
        DSV2I_TRY(part(k, i, i + length, 1));
        done = i + length;
    }
    return done < i ? part(k, done, i, 0) : DSV2_OK;
}

/* Put a space in front of every piece that does not begin with one: the text is written anew. */
static dsv2_status add_prefix_spaces(struct dsv2i_pieces *s)
{
    size_t bytes = 0, to = 0;
    char *text;

    for (size_t i = 0; i < s->n; i++)
        bytes += s->at[i].end - s->at[i].begin + 1;
    text = dsv2i_alloc(s->mem, bytes, 1);
    if (!text)
        return dsv2i_fail(DSV2_ERR_NOMEM, "no memory for a text with prefix spaces");
    for (size_t i = 0; i < s->n; i++) {
        size_t begin = to, n = s->at[i].end - s->at[i].begin;

        if (s->text[s->at[i].begin] != ' ')
            text[to++] = ' ';
        memcpy(text + to, s->text + s->at[i].begin, n);
        to += n;
        s->at[i] = (struct dsv2i_piece){begin, to};
    }
    dsv2i_free(s->mem, s->own);
    s->own = text;
    s->text = text;
    return DSV2_OK;
}

static dsv2_status run_step(const struct step *step, struct dsv2i_pieces *s)
{
    struct dsv2i_matcher matcher;
    struct dsv2i_piece *swap = s->at;
    size_t swap_capacity = s->capacity, kept = 0;
    dsv2_status status = DSV2_OK;

    if (step->kind == PREFIX_SPACE)
        return add_prefix_spaces(s);
    if (step->kind == SPLIT) {
        DSV2I_TRY(dsv2i_matcher_begin(&matcher, step->regex, s->deadline));
    }
    s->n_next = 0;
    for (size_t i = 0; i < s->n && status == DSV2_OK; i++) {
        struct sink sink = {s, step->behavior, s->n_next, 0};

        status = step->kind == SPLIT ? split_piece(&matcher, step, &sink, s->at[i]) : split_digits(&sink, s->at[i]);
    }
    if (step->kind == SPLIT)
        dsv2i_matcher_end(&matcher);
    DSV2I_TRY(status);
    for (size_t i = 0; i < s->n_next; i++) /* an empty match is a border, and no piece */
        if (s->next[i].begin < s->next[i].end)
            s->next[kept++] = s->next[i];
    s->at = s->next;
    s->capacity = s->next_capacity;
    s->n = kept;
    s->next = swap;
    s->next_capacity = swap_capacity;
    return DSV2_OK;
}

dsv2_status dsv2i_pretokenizer_run(const struct dsv2i_pretokenizer *p, const char *text, size_t n, struct dsv2i_pieces *s)
{
    struct dsv2i_piece *swap = s->at;
    size_t swap_capacity = s->capacity;

    s->mem = p->mem;
    s->text = text;
    s->n = s->n_next = 0;
    if (!n)
        return DSV2_OK;
    DSV2I_TRY(put(s, 0, n));
    s->at = s->next;
    s->capacity = s->next_capacity;
    s->n = 1;
    s->next = swap;
    s->next_capacity = swap_capacity;
    for (size_t i = 0; i < p->n_steps; i++)
        DSV2I_TRY(run_step(&p->steps[i], s));
    return DSV2_OK;
}

void dsv2i_pieces_free(struct dsv2i_pieces *s)
{
    dsv2i_free(s->mem, s->at);
    dsv2i_free(s->mem, s->next);
    dsv2i_free(s->mem, s->own);
}
