/* A saved session of a tiny model: a byte of flags, a byte that picks one that was really saved, how many bytes longer or shorter it becomes
 * (two bytes, big-endian), then three bytes for each change: a place and a value.  Or (RAW) the file as it stands.  What is refused must
 * leave the session as it is; what is accepted must come out again as it went in, and go on.
 * SPDX-License-Identifier: MIT */
#include <unistd.h>

#include "fuzz.h"
#include "hash.h"

enum {
    FILES = 1,              /* through files */
    UNSEALED = 2,           /* checksums (RAW: and the fingerprint) stay as they are */
    SMALL = 4,              /* into a session of 16 tokens */
    RAW = 8,
    HEADER = 84, BYTES_AT = 12, MODEL_AT = 20, N_MODEL = 24, VOCAB_AT = 44, LAYERS_AT = 48, TOKEN_BYTES_AT = 60, ATTENTION_AT = 68, N_TOKENS_AT = 72, N_PROMPT_AT = 76, N_LOGITS_AT = 80,
    N_TYPES = DSV2_KV_6BIT + 1, N_BASES = 6, MOST = 1 << 16, CHECKSUM = 8, FORMS = 8
};

/* How long each is, and how long it was before it was cut, which takes the logits away. */
static const struct {
    int n, before;
} lengths[N_BASES] = {{0, 0}, {3, 3}, {64, 64}, {70, 70}, {3, 4}, {64, 65}};

struct image {
    unsigned char data[MOST];
    size_t n;
};

static dsv2_model *model;
static struct image bases[N_TYPES][N_BASES];
static char folder[] = "/tmp/fuzz-save-XXXXXX", path[64];

static dsv2_session *open_session(int32_t kv_type, int32_t n_ctx, int n)
{
    static const int32_t ids[70] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    dsv2_session_params params;
    dsv2_session *s;
    dsv2_status status;

    dsv2_session_params_init(&params, sizeof params);
    params.n_ctx = n_ctx;
    params.kv_type = kv_type;
    do
        status = dsv2_session_create(model, &params, &s);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    MUST(status == DSV2_OK);
    do
        status = n ? dsv2_session_prefill(s, ids, (size_t)n) : DSV2_OK;
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    MUST(status == DSV2_OK);
    return s;
}

static void export(const dsv2_session *s, struct image *out)
{
    dsv2_status status;

    do
        status = dsv2_session_export(s, out->data, MOST, &out->n);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    MUST(status == DSV2_OK);
}

static void clean_up(void)
{
    unlink(path);
    rmdir(folder);
}

/* The model, what is saved of it, and everything that the context keeps once it has been used. */
static void set_up(void)
{
    dsv2_context_params params;
    dsv2_context *ctx;

    dsv2_context_params_init(&params, sizeof params);
    params.n_threads = 1;
    params.alloc = fuzz_mem.alloc;
    params.free = fuzz_mem.free;
    MUST(dsv2_context_create(&params, &ctx) == DSV2_OK);
    MUST(dsv2_model_load(ctx, TEST_GOLDEN "/spec-a", NULL, &model) == DSV2_OK);
    dsv2_context_free(ctx);
    for (int32_t type = 0; type < N_TYPES; type++)
        for (int i = 0; i < N_BASES; i++) {
            dsv2_session *s = open_session(type, 128, lengths[i].before);

            MUST(dsv2_session_truncate(s, (size_t)lengths[i].n) == DSV2_OK);
            export(s, &bases[type][i]);
            dsv2_session_free(s);
        }
    MUST(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/session", folder);
    atexit(clean_up);
}

static uint64_t get(const unsigned char *p, int bytes)
{
    uint64_t v = 0;

    while (bytes--)
        v = v << 8 | p[bytes];
    return v;
}

static void put(unsigned char *p, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        p[i] = (unsigned char)(v >> 8 * i);
}

/* The checksum of the section of n bytes at *at; 0: it is not all there. */
static int seal_section(struct image *b, size_t *at, uint64_t n, uint64_t *checksum)
{
    if (b->n - *at < CHECKSUM || n > b->n - *at - CHECKSUM)
        return 0;
    *checksum = dsv2i_hash(*checksum, b->data + *at, (size_t)n);
    put(b->data + *at + n, *checksum, CHECKSUM);
    *at += (size_t)n + CHECKSUM;
    return 1;
}

static void seal(struct image *b)
{
    uint64_t checksum = 0, tokens, logits, of_token;
    size_t at = 0;
    int whole = seal_section(b, &at, HEADER, &checksum);

    if (!whole)
        return;
    tokens = get(b->data + N_TOKENS_AT, 4);
    logits = get(b->data + N_LOGITS_AT, 4);
    of_token = get(b->data + LAYERS_AT, 4) * get(b->data + TOKEN_BYTES_AT, 4) % MOST;
    whole = seal_section(b, &at, 4 * tokens, &checksum) && (!logits || seal_section(b, &at, 4 * logits, &checksum));
    for (; whole && tokens; tokens -= tokens < 64 ? tokens : 64)
        whole = seal_section(b, &at, of_token * (tokens < 64 ? tokens : 64) + FORMS, &checksum);
}

static void change(struct image *b, const uint8_t *data, size_t size)
{
    int more = size >= 2 ? (int16_t)(data[0] << 8 | data[1]) : 0;

    if (more < 0)
        b->n -= (size_t)-more < b->n ? (size_t)-more : b->n;
    for (; more > 0 && b->n < MOST; more--)
        b->data[b->n++] = 0;
    if (b->n >= HEADER)
        put(b->data + BYTES_AT, b->n, 8); /* which a change may change */
    for (size_t i = 2; i + 3 <= size; i += 3) {
        size_t at = (size_t)(data[i] << 8 | data[i + 1]);

        if (at < b->n)
            b->data[at] = data[i + 2];
    }
}

/* The file that the input stands for; returns its KV type. */
static int32_t make(struct image *b, const uint8_t *data, size_t size)
{
    uint8_t flags = data[0], which = size > 1 ? data[1] : 0;
    int32_t type = which % N_TYPES;
    const struct image *base = &bases[type][which / N_TYPES % N_BASES];

    data += size > 1 ? 2 : 1;
    size -= size > 1 ? 2 : 1;
    if (flags & RAW) {
        memcpy(b->data, data, b->n = size < MOST ? size : MOST);
        if (!(flags & UNSEALED) && b->n >= HEADER)
            memcpy(b->data + MODEL_AT, base->data + MODEL_AT, N_MODEL);
    } else {
        *b = *base;
        change(b, data, size);
    }
    if (!(flags & UNSEALED))
        seal(b);
    return type;
}

static dsv2_status import(dsv2_session *s, const struct image *b, int files)
{
    unsigned char *exact;
    dsv2_status status;

    if (files) {
        FILE *f = fopen(path, "wb");

        MUST(f && fwrite(b->data, 1, b->n, f) == b->n && fclose(f) == 0);
        return dsv2_session_restore(s, path);
    }
    exact = malloc(b->n ? b->n : 1); /* so that a read past the end is seen */
    memcpy(exact, b->data, b->n);
    status = dsv2_session_import(s, exact, b->n);
    free(exact);
    return status;
}

/* The same in a file. */
static void check_save(const dsv2_session *s, const struct image *exported)
{
    static unsigned char saved[MOST];
    dsv2_status status;
    FILE *f;

    do
        status = dsv2_session_save(s, path);
    while (fuzz_check(status) == DSV2_ERR_NOMEM);
    MUST(status == DSV2_OK);
    f = fopen(path, "rb");
    MUST(f && fread(saved, 1, MOST, f) == exported->n && !memcmp(saved, exported->data, exported->n));
    fclose(f);
}

/* What was accepted came out as it went in, and holds together. */
static void check_accepted(struct image *in, const struct image *out, int32_t n_ctx)
{
    static struct image sealed;
    uint64_t n = get(out->data + N_TOKENS_AT, 4);

    sealed = *in;
    seal(&sealed);
    MUST(!memcmp(sealed.data, in->data, in->n));
    memcpy(in->data + ATTENTION_AT, out->data + ATTENTION_AT, 4); /* a note about the session that was saved */
    seal(in);
    MUST(out->n == in->n && !memcmp(out->data, in->data, in->n));
    MUST(n <= (uint64_t)n_ctx && get(out->data + N_PROMPT_AT, 4) <= n);
    for (uint64_t i = 0; i < n; i++)
        MUST(get(out->data + HEADER + CHECKSUM + 4 * i, 4) < get(out->data + VOCAB_AT, 4));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct image image, before, after;
    dsv2_session *s;
    dsv2_status status;
    int32_t type, n_ctx;
    int files;

    if (!model)
        set_up();
    fuzz_begin(data, &size);
    if (!size)
        return 0;
    files = data[0] & FILES;
    n_ctx = data[0] & SMALL ? 16 : 128;
    type = make(&image, data, size);
    s = open_session(type, n_ctx, 2);
    export(s, &before);
    do {
        status = fuzz_check(import(s, &image, files));
        export(s, &after);
        if (status != DSV2_OK)
            MUST(after.n == before.n && !memcmp(after.data, before.data, after.n));
    } while (status == DSV2_ERR_NOMEM);
    if (status == DSV2_OK) {
        check_accepted(&image, &after, n_ctx);
        if (files)
            check_save(s, &after);
        do
            status = dsv2_session_decode(s, 1);
        while (fuzz_check(status) == DSV2_ERR_NOMEM);
    }
    dsv2_session_free(s);
    fuzz_end();
    return 0;
}
