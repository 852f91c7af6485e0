/* tokenizer.json as it is: reading it, and the tables that decoding needs.
 * SPDX-License-Identifier: MIT
 *
 * Every part of the file is interpreted or refused by name; nothing about a family of models is assumed.  truncation and padding
 * are left aside: they belong to batches, and Transformers sets them anew for every call. */
#include "tokenizer.h"

#include <stdio.h>
#include <string.h>

#include "encode.h"
#include "utf8.h"

enum {
    MAX_ID = 1 << 24,           /* ids at or above are refused: the tables go by id */
    MAX_ADDED_BYTES = 512       /* of one added token: its search walks that far at each place of a text */
};

/* What is at hand while parsing. */
struct parse {
    struct dsv2i_tokenizer *t;
    const char *file;
    const cJSON *root, *model, *vocab, *merges, *added;
    int32_t vocab_size;
    size_t longest;             /* string of the vocabulary */
    char *scratch;              /* room for two such strings decoded */
};

static dsv2_status wrong(dsv2_status status, const struct parse *p, const char *field, const cJSON *value, const char *what)
{
    char show[96];

    return dsv2i_fail(status, "%s: %s: %s%s%s", p->file, field, value ? dsv2i_json_show(show, sizeof show, value) : "",
                      value ? ": " : "", what);
}

static dsv2_status no_memory(const struct parse *p, const char *field)
{
    return dsv2i_fail(DSV2_ERR_NOMEM, "%s: %s: no memory", p->file, field);
}

/* ---- The parts that are only checked ---- */

static dsv2_status check_normalizer(const struct parse *p, const cJSON *node)
{
    const cJSON *type, *list, *item;

    if (!node || cJSON_IsNull(node))
        return DSV2_OK;
    if (!cJSON_IsObject(node))
        return wrong(DSV2_ERR_FORMAT, p, "normalizer", node, "is not an object");
    type = dsv2i_json_get(node, "type");
    if (!cJSON_IsString(type))
        return wrong(DSV2_ERR_FORMAT, p, "normalizer.type", type, "a string is needed");
    if (strcmp(type->valuestring, "Sequence"))
        return wrong(DSV2_ERR_UNSUPPORTED, p, "normalizer.type", type, "normalizers are not supported");
    list = dsv2i_json_get(node, "normalizers");
    if (!cJSON_IsArray(list))
        return wrong(DSV2_ERR_FORMAT, p, "normalizer.normalizers", list, "a list is needed");
    cJSON_ArrayForEach(item, list)
        DSV2I_TRY(check_normalizer(p, item));
    return DSV2_OK;
}

static dsv2_status check_decoder(const struct parse *p)
{
    const cJSON *node = dsv2i_json_get(p->root, "decoder"), *type;

    if (!cJSON_IsObject(node))
        return wrong(DSV2_ERR_FORMAT, p, "decoder", node, "an object is needed");
    type = dsv2i_json_get(node, "type");
    if (!cJSON_IsString(type))
        return wrong(DSV2_ERR_FORMAT, p, "decoder.type", type, "a string is needed");
    if (strcmp(type->valuestring, "ByteLevel"))
        return wrong(DSV2_ERR_UNSUPPORTED, p, "decoder.type", type, "only ByteLevel is supported");
    return DSV2_OK;
}

/* Special tokens are the caller's business (DSV2_TOKENIZE_BOS); *first is set when a template puts one in front of the text. */
static dsv2_status check_post_processor(const struct parse *p, const cJSON *node, int *first)
{
    const cJSON *type, *list, *item;

    if (!node || cJSON_IsNull(node))
        return DSV2_OK;
    if (!cJSON_IsObject(node))
        return wrong(DSV2_ERR_FORMAT, p, "post_processor", node, "is not an object");
    type = dsv2i_json_get(node, "type");
    if (!cJSON_IsString(type))
        return wrong(DSV2_ERR_FORMAT, p, "post_processor.type", type, "a string is needed");
    if (!strcmp(type->valuestring, "ByteLevel"))
        return DSV2_OK;
    if (!strcmp(type->valuestring, "TemplateProcessing")) {
        list = dsv2i_json_get(node, "single");
        if (!cJSON_IsArray(list))
            return wrong(DSV2_ERR_FORMAT, p, "post_processor.single", list, "a list is needed");
        *first |= dsv2i_json_get(list->child, "SpecialToken") != NULL;
        return DSV2_OK;
    }
    if (strcmp(type->valuestring, "Sequence"))
        return wrong(DSV2_ERR_UNSUPPORTED, p, "post_processor.type", type, "is not supported");
    list = dsv2i_json_get(node, "processors");
    if (!cJSON_IsArray(list))
        return wrong(DSV2_ERR_FORMAT, p, "post_processor.processors", list, "a list is needed");
    cJSON_ArrayForEach(item, list)
        DSV2I_TRY(check_post_processor(p, item, first));
    return DSV2_OK;
}

static dsv2_status check_model(struct parse *p)
{
    static const char *const empty[] = {"unk_token", "continuing_subword_prefix", "end_of_word_suffix"};
    const cJSON *value;
    int flag;

    p->model = dsv2i_json_get(p->root, "model");
    if (!cJSON_IsObject(p->model))
        return wrong(DSV2_ERR_FORMAT, p, "model", p->model, "an object is needed");
    value = dsv2i_json_get(p->model, "type");
    if (!cJSON_IsString(value))
        return wrong(DSV2_ERR_FORMAT, p, "model.type", value, "a string is needed");
    if (strcmp(value->valuestring, "BPE"))
        return wrong(DSV2_ERR_UNSUPPORTED, p, "model.type", value, "only BPE is supported");
    value = dsv2i_json_get(p->model, "dropout");
    if (value && !cJSON_IsNull(value) && !(cJSON_IsNumber(value) && value->valuedouble == 0))
        return wrong(DSV2_ERR_UNSUPPORTED, p, "model.dropout", value, "only null is supported");
    for (size_t i = 0; i < sizeof empty / sizeof *empty; i++) {
        char field[64];

        value = dsv2i_json_get(p->model, empty[i]);
        snprintf(field, sizeof field, "model.%s", empty[i]);
        if (value && !cJSON_IsNull(value) && !(i && cJSON_IsString(value) && !*value->valuestring))
            return wrong(DSV2_ERR_UNSUPPORTED, p, field, value, "only null is supported");
    }
    DSV2I_TRY(dsv2i_json_bool_or(p->file, "model", p->model, "byte_fallback", 0, &flag));
    if (flag)
        return wrong(DSV2_ERR_UNSUPPORTED, p, "model.byte_fallback", NULL, "true: only false is supported");
    DSV2I_TRY(dsv2i_json_bool_or(p->file, "model", p->model, "fuse_unk", 0, &flag)); /* without an unk_token it does nothing */
    DSV2I_TRY(dsv2i_json_bool_or(p->file, "model", p->model, "ignore_merges", 0, &p->t->ignore_merges));
    p->vocab = dsv2i_json_get(p->model, "vocab");
    if (!cJSON_IsObject(p->vocab) || !p->vocab->child)
        return wrong(DSV2_ERR_FORMAT, p, "model.vocab", p->vocab, "an object with tokens is needed");
    p->merges = dsv2i_json_get(p->model, "merges");
    if (!cJSON_IsArray(p->merges))
        return wrong(DSV2_ERR_FORMAT, p, "model.merges", p->merges, "a list is needed");
    return DSV2_OK;
}

/* ---- Vocabulary and merges ---- */

static dsv2_status read_id(const struct parse *p, const char *field, const cJSON *value, int32_t *id)
{
    char what[96];

    if (!cJSON_IsNumber(value) || value->valuedouble != (double)(int64_t)value->valuedouble)
        return wrong(DSV2_ERR_FORMAT, p, field, value, "an id is needed");
    if (value->valuedouble < 0 || value->valuedouble >= p->vocab_size) {
        snprintf(what, sizeof what, "the id is outside of the model's vocab_size, %d", p->vocab_size);
        return wrong(DSV2_ERR_FORMAT, p, field, value, what);
    }
    if (value->valuedouble >= MAX_ID)
        return wrong(DSV2_ERR_LIMIT, p, field, value, "ids of 16777216 and above are not supported");
    *id = (int32_t)value->valuedouble;
    return DSV2_OK;
}

static const char *token_field(char *buf, size_t cap, const char *token)
{
    char show[64];

    snprintf(buf, cap, "model.vocab[\"%s\"]", dsv2i_quote(show, sizeof show, token, strlen(token)));
    return buf;
}

/* Find the highest id and how many bytes all tokens take, check each entry, and make room. */
static dsv2_status measure(struct parse *p)
{
    int32_t highest = -1, id;
    size_t bytes = 0, i = 0, n;
    const cJSON *item;
    char field[128];

    cJSON_ArrayForEach(item, p->vocab) {
        token_field(field, sizeof field, item->string);
        DSV2I_TRY(read_id(p, field, item, &id));
        n = strlen(item->string);
        if (!n)
            return wrong(DSV2_ERR_FORMAT, p, field, NULL, "the token is empty");
        highest = id > highest ? id : highest;
        p->longest = n > p->longest ? n : p->longest;
        bytes += n;
    }
    p->added = dsv2i_json_get(p->root, "added_tokens");
    if (p->added && !cJSON_IsNull(p->added) && !cJSON_IsArray(p->added))
        return wrong(DSV2_ERR_FORMAT, p, "added_tokens", p->added, "a list is needed");
    cJSON_ArrayForEach(item, p->added) {
        const cJSON *content = dsv2i_json_get(item, "content");

        snprintf(field, sizeof field, "added_tokens[%zu]", i++);
        if (!cJSON_IsObject(item))
            return wrong(DSV2_ERR_FORMAT, p, field, item, "an object is needed");
        snprintf(field, sizeof field, "added_tokens[%zu].id", i - 1);
        DSV2I_TRY(read_id(p, field, dsv2i_json_get(item, "id"), &id));
        snprintf(field, sizeof field, "added_tokens[%zu].content", i - 1);
        if (!cJSON_IsString(content) || !*content->valuestring)
            return wrong(DSV2_ERR_FORMAT, p, field, content, "a text is needed");
        n = strlen(content->valuestring);
        if (n > MAX_ADDED_BYTES)
            return wrong(DSV2_ERR_LIMIT, p, field, content, "an added token may have 512 bytes");
        highest = id > highest ? id : highest;
        p->longest = n > p->longest ? n : p->longest;
        bytes += n;
        p->t->n_added++;
    }
    DSV2I_TRY(dsv2i_vocab_init(&p->t->vocab, p->t->mem, highest + 1, bytes));
    p->scratch = dsv2i_alloc(p->t->mem, p->longest, 2);
    return p->scratch ? DSV2_OK : no_memory(p, "model.vocab");
}

static dsv2_status read_vocab(struct parse *p)
{
    struct dsv2i_vocab *v = &p->t->vocab;
    const cJSON *item;
    char field[128];

    cJSON_ArrayForEach(item, p->vocab) {
        int32_t id = (int32_t)item->valuedouble;
        int raw;
        size_t n = dsv2i_vocab_decode(item->string, strlen(item->string), p->scratch, &raw);

        if (v->tokens[id].flags)
            return wrong(DSV2_ERR_FORMAT, p, token_field(field, sizeof field, item->string), item, "another token has this id");
        dsv2i_vocab_put(v, id, p->scratch, n, raw ? DSV2I_TOKEN_RAW : 0);
        if (n == 1 && !raw)
            p->t->bpe.byte_id[(unsigned char)*p->scratch] = id;
    }
    return DSV2_OK;
}

/* One merge: "a b", or ["a", "b"] in files that were saved again. */
static dsv2_status read_merge(struct parse *p, const cJSON *item, size_t rank)
{
    const char *part[2];
    size_t length[2], n[2] = {0, 0};
    int32_t id[2], result;
    int raw[2] = {0, 0};
    char field[64], what[256], show[80];

    snprintf(field, sizeof field, "model.merges[%zu]", rank);
    if (cJSON_IsString(item)) {
        const char *space = strchr(item->valuestring, ' ');

        if (!space || strchr(space + 1, ' '))
            return wrong(DSV2_ERR_FORMAT, p, field, item, "two tokens with one space between them are needed");
        part[0] = item->valuestring;
        length[0] = (size_t)(space - item->valuestring);
        part[1] = space + 1;
        length[1] = strlen(space + 1);
    } else if (cJSON_IsArray(item) && cJSON_IsString(item->child) && cJSON_IsString(item->child->next) && !item->child->next->next) {
        part[0] = item->child->valuestring;
        part[1] = item->child->next->valuestring;
        length[0] = strlen(part[0]);
        length[1] = strlen(part[1]);
    } else {
        return wrong(DSV2_ERR_FORMAT, p, field, item, "a string or a list of two strings is needed");
    }
    for (int k = 0; k < 2; k++) {
        char *to = p->scratch + (k ? n[0] : 0);

        id[k] = -1;
        if (length[k] && length[k] <= p->longest) {
            n[k] = dsv2i_vocab_decode(part[k], length[k], to, &raw[k]);
            id[k] = dsv2i_vocab_find(&p->t->vocab, to, n[k], raw[k]);
        }
        if (id[k] < 0) {
            snprintf(what, sizeof what, "\"%s\" is not in model.vocab", dsv2i_quote(show, sizeof show, part[k], length[k]));
            return wrong(DSV2_ERR_FORMAT, p, field, item, what);
        }
    }
    if (raw[0] || raw[1]) /* no text of bytes leads there */
        return DSV2_OK;
    result = dsv2i_vocab_find(&p->t->vocab, p->scratch, n[0] + n[1], 0);
    if (result < 0)
        return wrong(DSV2_ERR_FORMAT, p, field, item, "what they give together is not in model.vocab");
    if (!dsv2i_bpe_add(&p->t->bpe, id[0], id[1], (uint32_t)rank, result))
        return wrong(DSV2_ERR_FORMAT, p, field, item, "these two have an earlier merge");
    return DSV2_OK;
}

static dsv2_status read_merges(struct parse *p)
{
    const cJSON *item;
    size_t rank = 0;

    cJSON_ArrayForEach(item, p->merges)
        DSV2I_TRY(read_merge(p, item, rank++));
    return DSV2_OK;
}

/* ---- Added tokens ---- */

static dsv2_status read_added_token(struct parse *p, const cJSON *item, size_t i)
{
    struct dsv2i_vocab *v = &p->t->vocab;
    const cJSON *content = dsv2i_json_get(item, "content");
    int32_t id = (int32_t)dsv2i_json_get(item, "id")->valuedouble, same;
    struct dsv2i_added_token token = {.n = (uint32_t)strlen(content->valuestring), .id = id};
    struct dsv2i_added *set;
    int special, raw;
    size_t n;
    char field[64];

    snprintf(field, sizeof field, "added_tokens[%zu]", i);
    DSV2I_TRY(dsv2i_json_bool_or(p->file, field, item, "special", 0, &special));
    DSV2I_TRY(dsv2i_json_bool_or(p->file, field, item, "single_word", 0, &token.single_word));
    DSV2I_TRY(dsv2i_json_bool_or(p->file, field, item, "lstrip", 0, &token.lstrip));
    DSV2I_TRY(dsv2i_json_bool_or(p->file, field, item, "rstrip", 0, &token.rstrip));
    DSV2I_TRY(dsv2i_json_bool_or(p->file, field, item, "normalized", !special, &token.normalized));
    snprintf(field, sizeof field, "added_tokens[%zu].content", i);
    n = dsv2i_vocab_decode(content->valuestring, token.n, p->scratch, &raw);
    same = dsv2i_vocab_find(v, p->scratch, n, raw);
    if (same >= 0 && same != id && !(v->tokens[same].flags & DSV2I_TOKEN_ADDED))
        return wrong(DSV2_ERR_FORMAT, p, field, content, "model.vocab has this token under another id");
    if (v->tokens[id].flags && same != id) {
        snprintf(field, sizeof field, "added_tokens[%zu].id", i);
        return wrong(DSV2_ERR_FORMAT, p, field, dsv2i_json_get(item, "id"), "another token has this id");
    }
    if (v->tokens[id].flags & DSV2I_TOKEN_ADDED)
        return wrong(DSV2_ERR_FORMAT, p, field, content, "is there twice");
    token.content = v->text + v->n_text;
    dsv2i_vocab_put(v, id, content->valuestring, token.n,
                    DSV2I_TOKEN_RAW | DSV2I_TOKEN_ADDED | (special ? DSV2I_TOKEN_SPECIAL : 0));
    set = &p->t->added[token.normalized];
    set->tokens[set->n++] = token;
    return DSV2_OK;
}

/* Tokens of two kinds: those found in the raw text, and those looked for between them in the normalized text. */
static dsv2_status read_added(struct parse *p)
{
    struct dsv2i_tokenizer *t = p->t;
    const struct dsv2i_added_token *twice;
    const cJSON *item;
    size_t i = 0;
    char show[96];

    for (int k = 0; k < 2; k++) {
        t->added[k].tokens = dsv2i_alloc(t->mem, t->n_added, sizeof *t->added[k].tokens);
        if (!t->added[k].tokens)
            return no_memory(p, "added_tokens");
    }
    cJSON_ArrayForEach(item, p->added)
        DSV2I_TRY(read_added_token(p, item, i++));
    for (int k = 0; k < 2; k++) {
        twice = dsv2i_added_sort(&t->added[k]);
        if (twice)
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: added_tokens: \"%s\" is there twice", p->file,
                              dsv2i_quote(show, sizeof show, twice->content, twice->n));
    }
    return DSV2_OK;
}

/* ---- All of it ---- */

static dsv2_status parse_tokenizer(struct parse *p, int *template_bos)
{
    if (!cJSON_IsObject(p->root))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: the top level is not an object", p->file);
    DSV2I_TRY(check_normalizer(p, dsv2i_json_get(p->root, "normalizer")));
    DSV2I_TRY(dsv2i_pretokenizer_parse(p->t->mem, p->file, dsv2i_json_get(p->root, "pre_tokenizer"), &p->t->pretokenizer));
    DSV2I_TRY(check_post_processor(p, dsv2i_json_get(p->root, "post_processor"), template_bos));
    DSV2I_TRY(check_decoder(p));
    DSV2I_TRY(check_model(p));
    DSV2I_TRY(dsv2i_bpe_init(&p->t->bpe, p->t->mem, (size_t)cJSON_GetArraySize(p->merges)));
    DSV2I_TRY(measure(p));
    DSV2I_TRY(read_vocab(p));
    DSV2I_TRY(read_merges(p));
    return read_added(p);
}

/* add_bos_token of tokenizer_config.json; where it is silent, what Transformers does: the Llama classes add it, others follow the
 * template in tokenizer.json. */
static dsv2_status parse_config(const struct dsv2i_tokenizer *t, const char *file, const char *text, size_t n, int template_bos,
                                int *add_bos)
{
    const char *class = NULL;
    dsv2_status status;
    cJSON *root;

    *add_bos = template_bos;
    if (!text)
        return DSV2_OK;
    DSV2I_TRY(dsv2i_json_parse(file, text, n, &root));
    if (!cJSON_IsObject(root)) {
        cJSON_Delete(root);
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: the top level is not an object", file);
    }
    status = cJSON_IsNull(dsv2i_json_get(root, "tokenizer_class"))
                 ? DSV2_OK
                 : dsv2i_json_string_or(file, "", root, "tokenizer_class", NULL, &class);
    if (status == DSV2_OK && !cJSON_IsNull(dsv2i_json_get(root, "add_bos_token")))
        status = dsv2i_json_bool_or(file, "", root, "add_bos_token", template_bos || (class && !strncmp(class, "Llama", 5)),
                                    add_bos);
    cJSON_Delete(root);
    return status;
}

dsv2_status dsv2i_tokenizer_parse(const struct dsv2i_hooks *mem, const char *file, const char *text, size_t n,
                                  const char *config_file, const char *config_text, size_t n_config, int32_t vocab_size,
                                  int32_t bos, struct dsv2i_tokenizer **out)
{
    struct parse p = {.file = file, .vocab_size = vocab_size};
    int template_bos = 0, add_bos;
    dsv2_status status;
    cJSON *root = NULL;

    *out = NULL;
    if (n >= UINT32_MAX)
        return dsv2i_fail(DSV2_ERR_LIMIT, "%s: %zu bytes are over the limit of 4 GiB", file, n);
    p.t = dsv2i_calloc(mem, 1, sizeof *p.t);
    if (!p.t)
        return no_memory(&p, "model");
    p.t->mem = p.t->vocab.mem = p.t->bpe.mem = mem;
    p.t->vocab_size = vocab_size;
    status = dsv2i_json_parse(file, text, n, &root);
    p.root = root;
    if (status == DSV2_OK)
        status = parse_tokenizer(&p, &template_bos);
    if (status == DSV2_OK)
        status = parse_config(p.t, config_file, config_text, n_config, template_bos, &add_bos);
    if (status == DSV2_OK)
        p.t->bos = add_bos ? bos : -1;
    cJSON_Delete(root);
    dsv2i_free(mem, p.scratch);
    if (status != DSV2_OK)
        dsv2i_tokenizer_free(p.t);
    else
        *out = p.t;
    return status;
}

void dsv2i_tokenizer_free(struct dsv2i_tokenizer *t)
{
    if (!t)
        return;
    dsv2i_pretokenizer_free(t->pretokenizer);
    dsv2i_bpe_free(&t->bpe);
    dsv2i_vocab_free(&t->vocab);
    dsv2i_free(t->mem, t->added[0].tokens);
    dsv2i_free(t->mem, t->added[1].tokens);
    dsv2i_free(t->mem, t);
}

/* ---- Questions ---- */

const char *dsv2i_tokenizer_bytes(const struct dsv2i_tokenizer *t, int32_t id, size_t *n, int *special)
{
    const struct dsv2i_token *token;

    *n = 0;
    *special = 0;
    if (!dsv2i_tokenizer_has(t, id))
        return "";
    token = &t->vocab.tokens[id];
    *n = token->n;
    *special = (token->flags & DSV2I_TOKEN_SPECIAL) != 0;
    return t->vocab.text + token->offset;
}

int32_t dsv2i_tokenizer_find(const struct dsv2i_tokenizer *t, const char *text, size_t n)
{
    int32_t id = dsv2i_vocab_find(&t->vocab, text, n, 1);

    return id >= 0 ? id : dsv2i_vocab_find(&t->vocab, text, n, 0);
}

int32_t dsv2i_tokenizer_count(const struct dsv2i_tokenizer *t)
{
    return t->vocab.n;
}

int dsv2i_tokenizer_has(const struct dsv2i_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->vocab.n && t->vocab.tokens[id].flags;
}

size_t dsv2i_tokenizer_memory(const struct dsv2i_tokenizer *t)
{
    return sizeof *t + dsv2i_vocab_memory(&t->vocab) + dsv2i_bpe_memory(&t->bpe) + dsv2i_pretokenizer_memory(t->pretokenizer) +
           2 * t->n_added * sizeof *t->added[0].tokens;
}
