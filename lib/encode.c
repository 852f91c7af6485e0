/* Encoding: added tokens, pieces, merges.
 * SPDX-License-Identifier: MIT
 *
 * text -> added tokens of the raw text -> between them, those of the normalized text (which is the same text, as no normalizer is
 * supported) -> between them, the pre-tokenizer's pieces -> byte-pair merging -> ids. */
#include "encode.h"

#include <string.h>

#include "regex.h"
#include "unicode.h"
#include "utf8.h"

struct encoder {
    const struct dsv2i_tokenizer *t;
    const struct dsv2i_guard *guard;
    const char *text;
    struct dsv2i_pieces pieces;
    struct dsv2i_bpe_work work;
    struct dsv2i_ids ids;
};

static dsv2_status encode_plain(struct encoder *e, size_t begin, size_t end)
{
    const struct dsv2i_tokenizer *t = e->t;

    DSV2I_TRY(dsv2i_pretokenizer_run(t->pretokenizer, e->text + begin, end - begin, &e->pieces));
    for (size_t i = 0; i < e->pieces.n; i++) {
        const char *piece = e->pieces.text + e->pieces.at[i].begin;
        size_t n = e->pieces.at[i].end - e->pieces.at[i].begin;
        int32_t id = t->ignore_merges ? dsv2i_vocab_find(&t->vocab, piece, n, 0) : -1;

        DSV2I_TRY(id >= 0 ? dsv2i_ids_put(&e->ids, id) : dsv2i_bpe_encode(&t->bpe, &e->work, piece, n, &e->ids));
    }
    return DSV2_OK;
}

/* The code point in front of place i, which is above begin. */
static uint32_t before(const char *text, size_t i)
{
    uint32_t cp;

    while (((unsigned char)text[--i] & 0xC0) == 0x80)
        ;
    dsv2i_utf8_get(text + i, &cp);
    return cp;
}

static int is_single_word(const char *text, size_t begin, size_t end, size_t at, size_t stop)
{
    uint32_t cp;

    if (at > begin && dsv2i_is_word(before(text, at)))
        return 0;
    if (stop == end)
        return 1;
    dsv2i_utf8_get(text + stop, &cp);
    return !dsv2i_is_word(cp);
}

static size_t strip_left(const char *text, size_t floor, size_t at)
{
    while (at > floor && dsv2i_is_space(before(text, at)))
        do
            at--;
        while (((unsigned char)text[at] & 0xC0) == 0x80);
    return at;
}

static size_t strip_right(const char *text, size_t at, size_t end)
{
    uint32_t cp;

    while (at < end) {
        size_t length = dsv2i_utf8_get(text + at, &cp);

        if (!dsv2i_is_space(cp))
            break;
        at += length;
    }
    return at;
}

/* Encode text[begin..end) with the added tokens of sets[level..].  A token's rstrip may reach into the next match, whose id comes
 * out all the same, unless its lstrip leaves nothing of it: that is how HF tokenizers does it. */
static dsv2_status encode_span(struct encoder *e, int level, size_t begin, size_t end)
{
    const struct dsv2i_added_token *token;
    size_t from = begin, done = begin, at;

    if (level == 2)
        return encode_plain(e, begin, end);
    while ((token = dsv2i_added_find(&e->t->added[level], e->guard, e->text, from, end, &at))) {
        size_t stop = from = at + token->n;

        if (token->single_word && !is_single_word(e->text, begin, end, at, stop))
            continue;
        if (token->lstrip) /* what lies before done is taken: looking there would be quadratic */
            at = at > done ? strip_left(e->text, done, at) : done;
        if (token->rstrip)
            stop = strip_right(e->text, stop > done ? stop : done, end);
        if (at >= stop)
            continue;
        if (done < at)
            DSV2I_TRY(encode_span(e, level + 1, done, at));
        DSV2I_TRY(dsv2i_ids_put(&e->ids, token->id));
        done = stop;
    }
    return done < end ? encode_span(e, level + 1, done, end) : DSV2_OK;
}

static dsv2_status run(struct encoder *e, size_t n_text, int bos, int32_t *ids, size_t capacity, size_t *n)
{
    if (bos && e->t->bos >= 0)
        DSV2I_TRY(dsv2i_ids_put(&e->ids, e->t->bos));
    if (n_text)
        DSV2I_TRY(encode_span(e, 0, 0, n_text));
    *n = e->ids.n;
    if (e->ids.n > capacity)
        return dsv2i_fail(DSV2_ERR_BUFFER, "%zu token ids do not fit the room for %zu", e->ids.n, capacity);
    if (e->ids.n)
        memcpy(ids, e->ids.at, e->ids.n * sizeof *ids);
    return DSV2_OK;
}

static dsv2_status encode_valid(const struct dsv2i_tokenizer *t, const char *text, size_t n_text, const struct dsv2i_guard *guard,
                                int bos, int32_t *ids, size_t capacity, size_t *n)
{
    struct encoder e = {
        .t = t,
        .guard = guard,
        .text = text,
        .pieces = {.mem = t->mem, .deadline = dsv2i_regex_deadline(n_text)},
        .work.mem = t->mem,
        .ids.mem = t->mem,
    };
    dsv2_status status = run(&e, n_text, bos, ids, capacity, n);

    dsv2i_pieces_free(&e.pieces);
    dsv2i_bpe_work_free(&e.work);
    dsv2i_free(t->mem, e.ids.at);
    return status;
}

dsv2_status dsv2i_encode_guarded(const struct dsv2i_tokenizer *t, const char *text, size_t n_text, const struct dsv2i_guard *guard,
                                 int32_t *ids, size_t capacity, size_t *n)
{
    return encode_valid(t, text, n_text, guard, 0, ids, capacity, n);
}

/* Copy text with U+FFFD for every maximal subpart of what is not UTF-8; out NULL: only count. */
static size_t replace_invalid(const char *text, size_t n, char *out)
{
    size_t length, bytes = 0;
    uint32_t cp;

    for (size_t i = 0; i < n; i += length) {
        int bad;

        length = dsv2i_utf8_next(text + i, n - i, &cp);
        bad = cp >= DSV2I_UTF8_BAD;
        if (out)
            memcpy(out + bytes, bad ? DSV2I_REPLACEMENT : text + i, bad ? 3 : length);
        bytes += bad ? 3 : length;
    }
    return bytes;
}

dsv2_status dsv2i_tokenizer_encode(const struct dsv2i_tokenizer *t, const char *text, size_t n_text, uint32_t flags,
                                   int32_t *ids, size_t capacity, size_t *n)
{
    struct dsv2i_range_of_text all = {0, n_text};
    struct dsv2i_guard guard = {&all, flags & DSV2_TOKENIZE_NO_MARKERS ? 1 : 0};
    size_t valid = dsv2i_utf8_valid(text, n_text);
    char *replaced = NULL;
    dsv2_status status;

    if (valid < n_text) {
        if (!(flags & DSV2_TOKENIZE_REPLACE))
            return dsv2i_fail(DSV2_ERR_UTF8, "the text is not UTF-8 at byte %zu (0x%02X)", valid, (unsigned char)text[valid]);
        all.end = replace_invalid(text, n_text, NULL);
        replaced = dsv2i_alloc(t->mem, all.end, 1);
        if (!replaced)
            return dsv2i_fail(DSV2_ERR_NOMEM, "no memory for a text of %zu bytes", all.end);
        replace_invalid(text, n_text, replaced);
        text = replaced;
    }
    status = encode_valid(t, text, all.end, &guard, (flags & DSV2_TOKENIZE_BOS) != 0, ids, capacity, n);
    dsv2i_free(t->mem, replaced);
    return status;
}
