/* Decoding ids to text: all at once, and streaming with stop strings.
 * SPDX-License-Identifier: MIT
 *
 * The stream.  Bytes of tokens become characters as soon as they are whole; an incomplete one waits in cut[].  Each stop string is searched
 * by its own Knuth-Morris-Pratt automaton, whose state is the length of the longest end of the text so far that may still become
 * it.  So the longest state is exactly what must be held back, and a byte costs a constant number of steps per stop string.
 * Which stop string wins does not depend on how the text was cut into tokens: the one that begins first in the text.  When one
 * is complete while another that began earlier may still become complete, the decision waits for more text or the end. */
#include "text.h"

#include <string.h>

#include "params.h"
#include "utf8.h"

static dsv2_status check_id(const dsv2_model *m, int32_t id)
{
    if (id < 0 || id >= m->config.shape.vocab_size)
        return dsv2i_fail(DSV2_ERR_INVALID, "token id %d is outside of 0..%d", id, m->config.shape.vocab_size - 1);
    return DSV2_OK;
}

/* Characters are made of bytes that come in portions: cut[] is what the last portion ended in the middle of. */
struct joiner {
    char cut[4];
    size_t n_cut;
};

/* Append the characters of n more bytes to out (NULL: only count), which takes at most 3 * (n + 3) bytes; returns how many it took. */
static size_t join(struct joiner *j, const char *bytes, size_t n, char *out)
{
    size_t written = 0, i = 0, length;
    uint32_t cp;

    while (i < n) {
        const char *from = bytes + i;
        size_t at_hand = n - i;

        if (j->n_cut) { /* complete it byte by byte */
            j->cut[j->n_cut] = bytes[i];
            from = j->cut;
            at_hand = j->n_cut + 1;
        }
        length = dsv2i_utf8_next(from, at_hand, &cp);
        if (cp == DSV2I_UTF8_CUT) {
            if (!j->n_cut)
                memcpy(j->cut, from, length);
            i += length - j->n_cut;
            j->n_cut = length;
            continue;
        }
        if (out)
            memcpy(out + written, cp == DSV2I_UTF8_BAD ? DSV2I_REPLACEMENT : from, cp == DSV2I_UTF8_BAD ? 3 : length);
        written += cp == DSV2I_UTF8_BAD ? 3 : length;
        i += length - j->n_cut; /* 0 when this byte does not go on with the cut one: it is looked at again by itself */
        j->n_cut = 0;
    }
    return written;
}

static size_t join_end(struct joiner *j, char *out)
{
    size_t n = j->n_cut ? 3 : 0;

    if (out && n)
        memcpy(out, DSV2I_REPLACEMENT, n);
    j->n_cut = 0;
    return n;
}

static size_t decode(const dsv2_model *m, const int32_t *ids, size_t n_ids, uint32_t flags, char *text)
{
    struct joiner j = {.n_cut = 0};
    size_t n = 0;

    for (size_t i = 0; i < n_ids; i++) {
        int special;
        size_t length;
        const char *bytes = dsv2i_tokenizer_bytes(m->tokenizer, ids[i], &length, &special);

        if (!special || !(flags & DSV2_DETOKENIZE_SKIP_SPECIAL))
            n += join(&j, bytes, length, text ? text + n : NULL);
    }
    return n + join_end(&j, text ? text + n : NULL);
}

dsv2_status dsv2i_detokenize(const dsv2_model *m, const int32_t *ids, size_t n_ids, uint32_t flags, char *text,
                             size_t capacity, size_t *n)
{
    for (size_t i = 0; i < n_ids; i++)
        DSV2I_TRY(check_id(m, ids[i]));
    *n = decode(m, ids, n_ids, flags, NULL);
    if (*n > capacity)
        return dsv2i_fail(DSV2_ERR_BUFFER, "%zu bytes of text do not fit the room for %zu", *n, capacity);
    decode(m, ids, n_ids, flags, text);
    return DSV2_OK;
}

/* ---- Streaming ---- */

struct stop {
    char *text;
    size_t n;
    size_t *fail;   /* (n + 1) fail[k]: the longest proper end of the first k bytes that is a beginning, too */
    size_t state;   /* how many bytes are matched at the end of the text so far */
};

struct dsv2_text {
    dsv2_model *model;
    const struct dsv2i_hooks *mem;
    struct stop *stops;
    size_t n_stops;
    int skip_special, include_stop;
    struct joiner joiner;
    char *buffer;       /* text from begin to end has not been handed out, but for the last piece */
    size_t begin, end, capacity;
    size_t piece;       /* bytes of the last piece, at begin */
    size_t found, found_at, found_begin; /* the best complete stop string so far: 1, its index, where it begins in buffer */
    int stopped;
};

static void restart(dsv2_text *t)
{
    for (size_t i = 0; i < t->n_stops; i++)
        t->stops[i].state = 0;
    t->joiner.n_cut = t->found = 0;
    t->stopped = 0;
}

void dsv2i_text_free(dsv2_text *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n_stops; i++) {
        dsv2i_free(t->mem, t->stops[i].text);
        dsv2i_free(t->mem, t->stops[i].fail);
    }
    dsv2i_free(t->mem, t->stops);
    dsv2i_free(t->mem, t->buffer);
    dsv2_model *model = t->model;
    dsv2i_free(t->mem, t);
    dsv2i_model_release(model); /* last: the hooks may go with it */
}

static dsv2_status take_stop(dsv2_text *t, const char *text, size_t i)
{
    struct stop *s = &t->stops[i];
    size_t valid;

    if (!text || !*text)
        return dsv2i_fail(DSV2_ERR_INVALID, "stop[%zu]: %s", i, text ? "the stop string is empty" : "is NULL");
    s->n = strlen(text);
    valid = dsv2i_utf8_valid(text, s->n);
    if (valid < s->n)
        return dsv2i_fail(DSV2_ERR_UTF8, "stop[%zu]: is not UTF-8 at byte %zu (0x%02X)", i, valid, (unsigned char)text[valid]);
    s->text = dsv2i_strndup(t->mem, text, s->n);
    s->fail = s->n < SIZE_MAX ? dsv2i_calloc(t->mem, s->n + 1, sizeof *s->fail) : NULL;
    if (!s->text || !s->fail)
        return dsv2i_fail(DSV2_ERR_NOMEM, "stop[%zu]: no memory for %zu bytes", i, s->n);
    for (size_t k = 1, f = 0; k < s->n; k++) {
        while (f && s->text[k] != s->text[f])
            f = s->fail[f];
        f += s->text[k] == s->text[f];
        s->fail[k + 1] = f;
    }
    return DSV2_OK;
}

dsv2_status dsv2i_text_create(dsv2_model *m, const dsv2_text_params *given, dsv2_text **out)
{
    dsv2_text_params params;
    dsv2_status status = DSV2_OK;
    dsv2_text *t;

    *out = NULL;
    dsv2_text_params_init(&params, sizeof params);
    DSV2I_TRY(dsv2i_params_take(&params, sizeof params, given, "dsv2_text_params"));
    t = dsv2i_calloc(&m->ctx->mem, 1, sizeof *t);
    if (!t)
        return dsv2i_fail(DSV2_ERR_NOMEM, "no memory for a text stream");
    t->model = m;
    t->mem = &m->ctx->mem;
    t->skip_special = params.skip_special;
    t->include_stop = params.include_stop;
    dsv2i_model_retain(m);
    if (params.n_stop && !params.stop)
        status = dsv2i_fail(DSV2_ERR_INVALID, "stop: is NULL, though n_stop is %zu", params.n_stop);
    if (status == DSV2_OK && params.n_stop) {
        t->stops = dsv2i_calloc(t->mem, params.n_stop, sizeof *t->stops);
        if (!t->stops)
            status = dsv2i_fail(DSV2_ERR_NOMEM, "no memory for %zu stop strings", params.n_stop);
    }
    while (status == DSV2_OK && t->n_stops < params.n_stop) {
        t->n_stops++;
        status = take_stop(t, params.stop[t->n_stops - 1], t->n_stops - 1);
    }
    if (status != DSV2_OK)
        dsv2i_text_free(t);
    else
        *out = t;
    return status;
}

/* Room for n more bytes, after giving up the last piece.  What is left moves to the front only when it is the smaller part, so that each
 * byte moves a constant number of times on average. */
static dsv2_status make_room(dsv2_text *t, size_t n)
{
    size_t begin = t->begin + t->piece, held = t->end - begin;

    if (n > SIZE_MAX / 4 || t->end > SIZE_MAX / 4)
        return dsv2i_fail(DSV2_ERR_LIMIT, "a token of %zu bytes is too long", n);
    if (t->end + n > t->capacity) {
        size_t capacity = 2 * (t->end + n) + 64;
        char *grown = dsv2i_realloc(t->mem, t->buffer, capacity, 1);

        if (!grown)
            return dsv2i_fail(DSV2_ERR_NOMEM, "no memory for %zu bytes of text", capacity);
        t->buffer = grown;
        t->capacity = capacity;
    }
    t->begin = begin;
    t->piece = 0;
    if (held <= begin) {
        memcpy(t->buffer, t->buffer + begin, held);
        t->begin = 0;
        t->end = held;
        t->found_begin -= t->found ? begin : 0;
    }
    return DSV2_OK;
}

/* May some stop string become complete that would win over the one found? */
static int undecided(const dsv2_text *t, size_t at)
{
    for (size_t i = 0; i < t->n_stops; i++) {
        size_t begin = at - t->stops[i].state;

        if (t->stops[i].state && (begin < t->found_begin || (begin == t->found_begin && t->include_stop && i < t->found_at)))
            return 1;
    }
    return 0;
}

/* Take one byte at buffer[at - 1] into the automata. */
static void advance(dsv2_text *t, size_t at)
{
    for (size_t i = 0; i < t->n_stops; i++) {
        struct stop *s = &t->stops[i];
        char c = t->buffer[at - 1];

        while (s->state && s->text[s->state] != c)
            s->state = s->fail[s->state];
        s->state += s->text[s->state] == c;
        if (s->state == s->n) {
            size_t begin = at - s->n;

            if (!t->found || begin < t->found_begin || (begin == t->found_begin && i < t->found_at)) {
                t->found = 1;
                t->found_at = i;
                t->found_begin = begin;
            }
            s->state = s->fail[s->n];
        }
    }
}

/* The text ends where the found stop string says. */
static void cut(dsv2_text *t)
{
    t->end = t->found_begin + (t->include_stop ? t->stops[t->found_at].n : 0);
    t->stopped = 1;
}

/* Look at n new bytes behind end; the piece becomes all that cannot be part of a stop string any more. */
static void take(dsv2_text *t, size_t n)
{
    size_t held = 0;

    for (size_t i = 0; i < n && t->n_stops; i++) {
        advance(t, ++t->end);
        if (t->found && !undecided(t, t->end)) {
            cut(t);
            t->piece = t->end - t->begin;
            return;
        }
    }
    if (!t->n_stops)
        t->end += n;
    for (size_t i = 0; i < t->n_stops; i++)
        held = t->stops[i].state > held ? t->stops[i].state : held;
    t->piece = t->end - held - t->begin;
    if (t->found && t->found_begin < t->begin + t->piece)
        t->piece = t->found_begin - t->begin;
}

static void hand_out(const dsv2_text *t, const char **piece, size_t *n)
{
    *piece = t->piece ? t->buffer + t->begin : "";
    *n = t->piece;
}

dsv2_status dsv2i_text_push(dsv2_text *t, int32_t token, const char **piece, size_t *n, int32_t *stopped)
{
    DSV2I_TRY(check_id(t->model, token));
    if (!t->stopped) {
        int special;
        size_t length;
        const char *bytes = dsv2i_tokenizer_bytes(t->model->tokenizer, token, &length, &special);

        if (special && t->skip_special)
            length = 0;
        if (length > SIZE_MAX / 16)
            return dsv2i_fail(DSV2_ERR_LIMIT, "token %d: %zu bytes are too many", token, length);
        DSV2I_TRY(make_room(t, 3 * (length + 3)));
        take(t, join(&t->joiner, bytes, length, t->buffer + t->end));
    } else {
        t->begin += t->piece;
        t->piece = 0;
    }
    hand_out(t, piece, n);
    if (stopped)
        *stopped = t->stopped;
    return DSV2_OK;
}

dsv2_status dsv2i_text_finish(dsv2_text *t, const char **piece, size_t *n)
{
    if (!t->stopped) {
        DSV2I_TRY(make_room(t, 3));
        take(t, join_end(&t->joiner, t->buffer + t->end));
        if (t->found && !t->stopped)
            cut(t);
        t->piece = t->end - t->begin;
    } else {
        t->begin += t->piece;
        t->piece = 0;
    }
    hand_out(t, piece, n);
    restart(t);
    t->end = t->begin + t->piece;
    return DSV2_OK;
}
