/* A saved session: a byte of flags, then the file itself, or (PATCH) a byte that picks a good one and changes to it: two bytes of offset from
 * its beginning or end, one of what to xor there.  Whatever is accepted is a state that goes on; whatever is refused changed nothing.
 * SPDX-License-Identifier: MIT */
#include <unistd.h>

#include "fuzz.h"
#include "hash.h"
#include "save.h"
#include "step.h"

#define GOLDEN TEST_MODEL "/../../tests/golden/v2"
#define N_CTX 200

enum { PATCH = 1, SEAL = 2, OWN = 4, THROUGH_A_FILE = 8, CUT = 16 }; /* SEAL: right checksums; OWN: this model's fingerprint */
enum { VERSION_AT = 8, MODEL_AT = 20, LAYERS_AT = 48, TOKEN_BYTES_AT = 60, N_TOKENS_AT = 72, N_LOGITS_AT = 80, HEADER = 84 };

struct bytes {
    uint8_t *data;
    size_t n;
};

static dsv2_model *model;
static dsv2_session *session; /* takes what is offered */
static struct bytes before;   /* it, at first */
static char path[] = "/tmp/fuzz-save-XXXXXX";

static dsv2_session *new_session(int32_t kv_type, size_t n)
{
    dsv2_session_params p;
    dsv2_session *s;
    int32_t ids[N_CTX];

    dsv2_session_params_init(&p, sizeof p);
    p.n_ctx = N_CTX;
    p.kv_type = kv_type;
    MUST(dsv2_session_create(model, &p, &s) == DSV2_OK);
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)(i * 7 % 90);
    MUST(!n || dsv2_session_prefill(s, ids, n) == DSV2_OK);
    return s;
}

static struct bytes export(const dsv2_session *s)
{
    struct bytes b = {NULL, 0};

    MUST(dsv2_session_export(s, NULL, 0, &b.n) == DSV2_ERR_BUFFER);
    b.data = malloc(b.n);
    MUST(b.data && dsv2_session_export(s, b.data, b.n, &b.n) == DSV2_OK);
    return b;
}

static void remove_file(void)
{
    unlink(path);
}

static void set_up(void)
{
    dsv2_context_params p;
    dsv2_context *ctx;
    int fd;

    dsv2_context_params_init(&p, sizeof p);
    p.n_threads = 1;
    MUST(dsv2_context_create(&p, &ctx) == DSV2_OK && dsv2_model_load(ctx, GOLDEN, NULL, &model) == DSV2_OK);
    session = new_session(DSV2_KV_BF16, 3);
    before = export(session);
    fd = mkstemp(path);
    MUST(fd >= 0);
    close(fd);
    atexit(remove_file);
}

/* A good file: of some kv type and length, with logits or without. */
static const struct bytes *good(uint8_t which)
{
    static const size_t lengths[] = {0, 1, 5, 64, 65, 130};
    static struct bytes made[2][DSV2_KV_6BIT + 1][6];
    size_t kv_type = which / 12 % (DSV2_KV_6BIT + 1), length = which / 2 % 6;
    struct bytes *b = &made[which % 2][kv_type][length];

    if (!b->data) {
        dsv2_session *s = new_session((int32_t)kv_type, lengths[length] + which % 2);

        MUST(dsv2_session_truncate(s, lengths[length]) == DSV2_OK);
        *b = export(s);
        dsv2_session_free(s);
    }
    return b;
}

static uint64_t get(const uint8_t *p, int n)
{
    uint64_t v = 0;

    while (n--)
        v = v << 8 | p[n];
    return v;
}

/* Right checksums for as many sections as there are bytes. */
static void seal(struct bytes b)
{
    uint64_t tokens, hash = 0, at = 0, length = HEADER;

    if (b.n < HEADER)
        return;
    tokens = get(b.data + N_TOKENS_AT, 4);
    for (uint64_t section = 0, left = tokens; at + length + 8 <= b.n; section++) {
        hash = dsv2i_hash(hash, b.data + at, length);
        for (int i = 0; i < 8; i++)
            b.data[at + length + (size_t)i] = (uint8_t)(hash >> 8 * i);
        at += length + 8;
        if (section == 0) {
            length = 4 * tokens;
        } else if (section == 1 && get(b.data + N_LOGITS_AT, 4)) {
            length = 4 * get(b.data + N_LOGITS_AT, 4);
        } else {
            uint64_t n = left < 64 ? left : 64;

            if (!n)
                return;
            left -= n;
            length = n * (get(b.data + LAYERS_AT, 4) & 0xFFFF) * get(b.data + TOKEN_BYTES_AT, 4);
        }
    }
}

/* The input as a file (malloc). */
static struct bytes input(const uint8_t *data, size_t size)
{
    uint8_t flags = *data++;
    struct bytes b = {malloc(size), size - 1};

    MUST(b.data);
    size--;
    memcpy(b.data, data, size);
    if (flags & PATCH && size) {
        const struct bytes *from = good(*data++);

        b.data = realloc(b.data, from->n);
        MUST(b.data);
        memcpy(b.data, from->data, b.n = from->n);
        for (size--; size >= 3; data += 3, size -= 3) {
            size_t at = (size_t)data[0] | (size_t)(data[1] & 0x7F) << 8;

            if (at < b.n)
                b.data[data[1] & 0x80 ? b.n - 1 - at : at] ^= data[2];
        }
        if (flags & CUT && size) /* to a length that the last byte says */
            b.n -= data[0] < b.n ? data[0] : b.n;
    }
    if (flags & OWN && b.n >= HEADER)
        memcpy(b.data + MODEL_AT, before.data + MODEL_AT, 24);
    if (flags & SEAL)
        seal(b);
    return b;
}

static dsv2_status take(dsv2_session *s, struct bytes b, int through_a_file)
{
    FILE *f;

    if (!through_a_file)
        return dsv2_session_import(s, b.data, b.n);
    f = fopen(path, "wb");
    MUST(f && fwrite(b.data, 1, b.n, f) == b.n && fclose(f) == 0);
    return dsv2_session_restore(s, path);
}

static void goes_on(dsv2_session *s, int through_a_file)
{
    struct bytes own = export(s), again;
    size_t n = dsv2_session_position(s);

    MUST(n <= N_CTX);
    for (size_t i = 0; i < n; i++)
        MUST(dsv2_session_tokens(s)[i] >= 0 && dsv2_session_tokens(s)[i] < model->config.shape.vocab_size);
    MUST(take(s, own, 0) == DSV2_OK);
    again = export(s);
    MUST(again.n == own.n && !memcmp(again.data, own.data, own.n));
    if (through_a_file)
        MUST(dsv2_session_save(s, path) == DSV2_OK && dsv2_session_restore(s, path) == DSV2_OK);
    if (n < N_CTX)
        MUST(dsv2_session_decode(s, 1) == DSV2_OK && dsv2_session_position(s) == n + 1);
    free(own.data);
    free(again.data);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bytes offered, now;
    dsv2_session *s;
    int32_t kv_type;
    int through_a_file;

    if (!model)
        set_up();
    if (!size)
        return 0;
    offered = input(data, size);
    through_a_file = *data & THROUGH_A_FILE;
    if (take(session, offered, through_a_file) == DSV2_OK) {
        goes_on(session, through_a_file);
        MUST(take(session, before, 0) == DSV2_OK);
    } else {
        MUST(dsv2_last_error()[0]);
        now = export(session);
        MUST(now.n == before.n && !memcmp(now.data, before.data, now.n));
        free(now.data);
    }
    kv_type = offered.n >= HEADER ? (int32_t)get(offered.data + 52, 4) : 0;
    if (kv_type > 0 && kv_type <= DSV2_KV_6BIT) { /* a session that can take it */
        s = new_session(kv_type, 0);
        if (take(s, offered, 0) == DSV2_OK)
            goes_on(s, through_a_file);
        dsv2_session_free(s);
    }
    free(offered.data);
    return 0;
}
