/* The streaming accumulator: two bytes pick token ids, stop strings stand in front, parted by 0xFF.  What comes out in pieces is the
 * decoded text up to the first stop string, valid UTF-8 and cut nowhere.
 * SPDX-License-Identifier: MIT */
#include <utf8proc.h>

#include "fuzz.h"
#include "text.h"

static dsv2_model *model;

static void load(void)
{
    FILE *f = fopen(TEST_MODEL "/tokenizer.json", "rb");
    char *text = malloc(1 << 24);
    size_t n;

    MUST(f && text);
    n = fread(text, 1, 1 << 24, f);
    fclose(f);
    model = calloc(1, sizeof *model);
    model->ctx = calloc(1, sizeof *model->ctx);
    model->ctx->mem = dsv2i_heap;
    atomic_init(&model->ctx->refs, 1);
    atomic_init(&model->refs, 1);
    model->config.shape.vocab_size = 4096;
    MUST(dsv2i_tokenizer_parse(&dsv2i_heap, "tokenizer.json", text, n, "", NULL, 0, 4096, -1, &model->tokenizer) == DSV2_OK);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { MOST = 4, TEXT = 1 << 20 };
    static char streamed[TEXT], whole[TEXT];
    static int32_t ids[TEXT / 256];
    dsv2_text_params params;
    const char *stop[MOST], *piece;
    char *copies[MOST];
    size_t n_stop = 0, n, n_ids = 0, used = 0, n_whole, first;
    int32_t stopped = 0;
    dsv2_text *text;

    if (!model)
        load();
    n_stop = size ? data[0] % (MOST + 1) : 0;
    data += size != 0;
    size -= size != 0;
    for (size_t i = 0; i < n_stop; i++) {
        piece = fuzz_piece(&data, &size, &n);
        copies[i] = strndup(piece, n);
        stop[i] = copies[i];
    }
    for (; size >= 2 && n_ids < sizeof ids / sizeof *ids; data += 2, size -= 2)
        ids[n_ids++] = (data[0] << 8 | data[1]) % 4096;
    dsv2_text_params_init(&params, sizeof params);
    params.stop = stop;
    params.n_stop = n_stop;
    if (dsv2i_text_create(model, &params, &text) == DSV2_OK) {
        for (size_t i = 0; i < n_ids && !stopped; i++) {
            MUST(dsv2i_text_push(text, ids[i], &piece, &n, &stopped) == DSV2_OK);
            memcpy(streamed + used, piece, n);
            used += n;
        }
        MUST(dsv2i_text_finish(text, &piece, &n) == DSV2_OK);
        memcpy(streamed + used, piece, n);
        used += n;
        MUST(dsv2i_detokenize(model, ids, n_ids, DSV2_DETOKENIZE_SKIP_SPECIAL, whole, TEXT, &n_whole) == DSV2_OK);
        first = n_whole;
        for (size_t i = 0; i < n_stop; i++) {
            const char *at = memmem(whole, n_whole, stop[i], strlen(stop[i]));

            if (at && (size_t)(at - whole) < first)
                first = (size_t)(at - whole);
        }
        MUST(used == first && !memcmp(streamed, whole, used));
        MUST(!stopped || first < n_whole); /* a stop string may be settled only at the end */
        for (size_t i = 0; i < used;) {
            utf8proc_int32_t c;
            utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)streamed + i, (utf8proc_ssize_t)(used - i), &c);

            MUST(k > 0);
            i += (size_t)k;
        }
        dsv2i_text_free(text);
    }
    for (size_t i = 0; i < n_stop; i++)
        free(copies[i]);
    return 0;
}
