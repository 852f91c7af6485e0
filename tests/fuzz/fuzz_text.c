/* The streaming accumulator: a byte of options, the stop strings, each up to a 0xFF, then two bytes for each token id.  What comes out in
 * pieces is the decoded text up to the first stop string, valid UTF-8 and cut nowhere.
 * SPDX-License-Identifier: MIT */
#define FUZZ_WITH_TOKENIZER
#include <utf8proc.h>

#include "fuzz.h"
#include "text.h"

enum {
    N_STOP = 7,             /* up to 5; see below for the other two */
    NULL_STOP = 6,          /* one stop string, which is NULL */
    NULL_STOPS = 7,         /* no list of them, though there is a number */
    INCLUDE_STOP = 0x20, KEEP_SPECIAL = 0x40,
    WILD_IDS = 0x80,        /* ids as they are, which may be outside of the vocabulary */
    VOCAB = 4096, MOST = 5, TEXT = 1 << 20, MOST_IDS = TEXT / 256
};

struct input {
    const char *stop[MOST];
    char *copies[MOST];
    dsv2_text_params params;
    int32_t ids[MOST_IDS];
    size_t n_ids;
};

static dsv2_model *model(void)
{
    static dsv2_context ctx;
    static dsv2_model m;

    if (!m.ctx) {
        ctx.mem = fuzz_mem;
        atomic_init(&ctx.refs, 1);
        atomic_init(&m.refs, 1);
        m.ctx = &ctx;
        m.config.shape.vocab_size = VOCAB;
        m.tokenizer = fuzz_tokenizer();
    }
    return &m;
}

static void take_input(struct input *in, const uint8_t *data, size_t size)
{
    uint8_t options = size ? data[0] : 0;
    size_t n;

    memset(in, 0, sizeof *in);
    data += size != 0;
    size -= size != 0;
    dsv2_text_params_init(&in->params, sizeof in->params);
    in->params.n_stop = (options & N_STOP) <= MOST ? options & N_STOP : 1;
    in->params.stop = (options & N_STOP) == NULL_STOPS ? NULL : in->stop;
    in->params.include_stop = (options & INCLUDE_STOP) != 0;
    in->params.skip_special = !(options & KEEP_SPECIAL);
    for (size_t i = 0; i < in->params.n_stop && (options & N_STOP) <= MOST; i++) {
        const char *piece = fuzz_piece(&data, &size, &n);

        in->stop[i] = in->copies[i] = strndup(piece, n);
    }
    for (; size >= 2 && in->n_ids < MOST_IDS; data += 2, size -= 2) {
        int id = data[0] << 8 | data[1];

        in->ids[in->n_ids++] = options & WILD_IDS ? (int16_t)id : id % VOCAB;
    }
}

/* What has to come out: the text of all ids, cut at the stop string that begins first; of several that begin there, the first in the list. */
static size_t expect(struct input *in, char *whole, int *stopped)
{
    size_t n_whole, first, end, valid = 0, short_of;
    uint32_t flags = in->params.skip_special ? DSV2_DETOKENIZE_SKIP_SPECIAL : 0;

    for (size_t i = 0; i < in->n_ids; i++)
        valid += in->ids[i] >= 0 && in->ids[i] < VOCAB;
    if (valid < in->n_ids)
        MUST(dsv2i_detokenize(model(), in->ids, in->n_ids, flags, whole, TEXT, &n_whole) == DSV2_ERR_INVALID);
    valid = 0;
    for (size_t i = 0; i < in->n_ids; i++)
        if (in->ids[i] >= 0 && in->ids[i] < VOCAB)
            in->ids[valid++] = in->ids[i];
    MUST(dsv2i_detokenize(model(), in->ids, valid, flags, whole, TEXT, &n_whole) == DSV2_OK);
    if (n_whole)
        MUST(dsv2i_detokenize(model(), in->ids, valid, flags, whole, n_whole - 1, &short_of) == DSV2_ERR_BUFFER && short_of == n_whole);
    first = end = n_whole;
    for (size_t i = 0; i < in->params.n_stop; i++) {
        const char *at = memmem(whole, n_whole, in->stop[i], strlen(in->stop[i]));

        if (at && (size_t)(at - whole) < first) {
            first = (size_t)(at - whole);
            end = first + (in->params.include_stop ? strlen(in->stop[i]) : 0);
        }
    }
    *stopped = first < n_whole;
    return end;
}

/* One stream, into out; returns its length. */
static size_t stream(dsv2_text *text, const struct input *in, char *out, int *stopped)
{
    const char *piece;
    size_t used = 0, n;
    int32_t now = 0;
    dsv2_status status;

    for (size_t i = 0; i < in->n_ids; i++) {
        int before = now;

        do
            status = dsv2i_text_push(text, in->ids[i], &piece, &n, &now);
        while (fuzz_check(status) == DSV2_ERR_NOMEM);
        if (in->ids[i] < 0 || in->ids[i] >= VOCAB) {
            MUST(status == DSV2_ERR_INVALID);
            continue;
        }
        MUST(status == DSV2_OK && (!before || (now && n == 0)));
        memcpy(out + used, piece, n);
        used += n;
    }
    *stopped = now;
    do
        status = dsv2i_text_finish(text, &piece, &n);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    MUST(status == DSV2_OK && (!now || n == 0));
    memcpy(out + used, piece, n);
    return used + n;
}

static void check_streams(dsv2_text *text, struct input *in)
{
    static char streamed[2][TEXT], whole[TEXT];
    size_t n[2], end;
    int stopped[2], stops;

    for (int i = 0; i < 2; i++) /* the object is as new after each */
        n[i] = stream(text, in, streamed[i], &stopped[i]);
    end = expect(in, whole, &stops);
    for (int i = 0; i < 2; i++) {
        MUST(n[i] == end && !memcmp(streamed[i], whole, end));
        MUST(!stopped[i] || stops); /* a stop string may be settled only at the end */
    }
    for (size_t i = 0; i < end;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)whole + i, (utf8proc_ssize_t)(end - i), &c);

        MUST(k > 0);
        i += (size_t)k;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct input in;
    dsv2_text *text;
    dsv2_status status;

    model();
    fuzz_begin(data, &size);
    take_input(&in, data, size);
    do
        status = dsv2i_text_create(model(), &in.params, &text);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    MUST((status == DSV2_OK) == (text != NULL));
    if (text)
        check_streams(text, &in);
    dsv2i_text_free(text);
    for (size_t i = 0; i < MOST; i++)
        free(in.copies[i]);
    fuzz_end();
    return 0;
}
