/* Sessions to files and back: the same bits go on, damage is refused, nothing is lost whatever happens to the writer.
 *
 * This program stands in front of the calls that write, so that each of them can fail, stop half-way or be the process's last.
 * SPDX-License-Identifier: MIT */
#include "api_test.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hash.h"

#define VOCAB 160
#define LAYERS 3

static dsv2_context *ctx;
static dsv2_model *model;
static char folder[64]; /* for files; made and removed by set_up and tear_down */

/* ---- Calls that write */

static struct {
    int watching;
    long calls, fail_at, die_at;
    size_t piece;          /* a write takes no more bytes at a time; 0: all */
    int interrupt;         /* every other call: EINTR */
    char trace[16];        /* first letters of the calls, repeated ones once */
    char failed[16];       /* the trace up to the call that failed */
} io;

/* 0: go on; else the call is to fail with errno. */
static int disturbed(char letter, int error)
{
    size_t n = strlen(io.trace);

    if (!io.watching)
        return 0;
    io.calls++;
    if (io.calls == io.die_at)
        kill(getpid(), SIGKILL);
    if ((!n || io.trace[n - 1] != letter) && n + 1 < sizeof io.trace)
        io.trace[n] = letter;
    if (io.calls == io.fail_at)
        strcpy(io.failed, io.trace);
    errno = io.interrupt && io.calls % 2 && letter != 'r' ? EINTR : io.calls == io.fail_at ? error : 0;
    return errno != 0;
}

ssize_t write(int fd, const void *data, size_t n)
{
    if (disturbed('w', ENOSPC))
        return -1;
    return syscall(SYS_write, fd, data, io.watching && io.piece && io.piece < n ? io.piece : n);
}

int fsync(int fd)
{
    return disturbed('f', EIO) ? -1 : (int)syscall(SYS_fsync, fd);
}

int close(int fd)
{
    int error = disturbed('c', EIO) ? errno : 0, rc = (int)syscall(SYS_close, fd);

    errno = error ? error : errno;
    return error ? -1 : rc;
}

int rename(const char *from, const char *to)
{
    return disturbed('r', EACCES) ? -1 : (int)syscall(SYS_rename, from, to);
}

static void watch(void)
{
    memset(&io, 0, sizeof io);
    io.watching = 1;
}

/* ---- Memory */

static struct {
    long countdown, live;
} mem;

static void *hook_alloc(void *user, size_t size, size_t alignment)
{
    void *p = NULL;

    if ((mem.countdown > 0 && --mem.countdown == 0) || posix_memalign(&p, alignment < 16 ? 16 : alignment, size))
        return NULL;
    mem.live++;
    return p;
}

static void hook_free(void *user, void *p, size_t size)
{
    mem.live--;
    free(p);
}

/* ---- Sessions and what is saved of them */

struct bytes {
    unsigned char *data;
    size_t n;
};

static struct bytes export(const dsv2_session *s)
{
    struct bytes b = {0};

    expect(dsv2_session_export(s, NULL, 0, &b.n), DSV2_ERR_BUFFER, NULL);
    b.data = malloc(b.n);
    assert_non_null(b.data);
    must(dsv2_session_export(s, b.data, b.n, &b.n));
    return b;
}

static void is_as(const dsv2_session *s, struct bytes wanted)
{
    struct bytes b = export(s);

    assert_int_equal(b.n, wanted.n);
    assert_memory_equal(b.data, wanted.data, b.n);
    free(b.data);
}

static struct bytes read_bytes(const char *path)
{
    struct bytes b;

    b.data = (unsigned char *)read_file(path, &b.n);
    return b;
}

static void file_is(const char *path, struct bytes wanted)
{
    struct bytes b = read_bytes(path);

    assert_int_equal(b.n, wanted.n);
    assert_memory_equal(b.data, wanted.data, b.n);
    free(b.data);
}

static const char *in_folder(const char *name)
{
    static char path[2][512];
    static int turn;

    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

/* Names in the folder; remove: all but keep go. */
static int n_files(const char *keep, int remove_others)
{
    DIR *d = opendir(folder);
    struct dirent *e;
    int n = 0;

    while ((e = readdir(d)))
        if (e->d_name[0] != '.') {
            n++;
            if (remove_others && strcmp(e->d_name, keep))
                unlink(in_folder(e->d_name));
        }
    closedir(d);
    return n;
}

static uint64_t get(const unsigned char *p, int n)
{
    uint64_t v = 0;

    while (n--)
        v = v << 8 | p[n];
    return v;
}

static void put(unsigned char *p, uint64_t v, int n)
{
    for (int i = 0; i < n; i++, v >>= 8)
        p[i] = v & 0xFF;
}

static int32_t id_at(size_t i)
{
    uint64_t state = i * 7919 + 5;

    return (int32_t)(random_u32(&state) % 95);
}

static void advance(dsv2_session *s, size_t n_prefill, size_t n_decode)
{
    int32_t ids[400];
    size_t at = dsv2_session_position(s);

    for (size_t i = 0; i < n_prefill; i++)
        ids[i] = id_at(at + i);
    if (n_prefill)
        must(dsv2_session_prefill(s, ids, n_prefill));
    for (size_t i = 0; i < n_decode; i++)
        must(dsv2_session_decode(s, id_at(at + n_prefill + i)));
}

static dsv2_session *session_of(dsv2_model *m, int32_t kv_type, size_t n_prefill, size_t n_decode)
{
    dsv2_session *s = open_session(m, 400, kv_type, DSV2_ATTENTION_ABSORBED, 16);

    advance(s, n_prefill, n_decode);
    return s;
}

static dsv2_session *session_in(dsv2_pool *pool, int32_t n_ctx)
{
    dsv2_session_params p;
    dsv2_session *s;

    dsv2_session_params_init(&p, sizeof p);
    p.n_ctx = n_ctx;
    p.pool = pool;
    must(dsv2_session_create(model, &p, &s));
    return s;
}

static dsv2_pool *open_pool(dsv2_model *m, int32_t kv_type, uint64_t tokens, uint64_t cache)
{
    dsv2_pool_params p;
    dsv2_pool *pool;

    dsv2_pool_params_init(&p, sizeof p);
    p.kv_type = kv_type;
    p.tokens = tokens;
    p.prefix_cache_bytes = cache;
    must(dsv2_pool_create(m, &p, &pool));
    return pool;
}

static dsv2_pool_info info_of(dsv2_pool *pool)
{
    dsv2_pool_info info = {.struct_size = sizeof info};

    must(dsv2_pool_get_info(pool, &info));
    return info;
}

/* Does the library have it?  Types are numbered from 0. */
static int has_kv_type(int32_t kv_type)
{
    dsv2_session_params p;
    dsv2_session *s;
    dsv2_status status;

    dsv2_session_params_init(&p, sizeof p);
    p.kv_type = kv_type;
    status = dsv2_session_create(model, &p, &s);
    if (status == DSV2_OK)
        dsv2_session_free(s);
    return status == DSV2_OK;
}

static int has_logits(const dsv2_session *s)
{
    const float *logits;
    size_t n;

    return dsv2_session_logits(s, &logits, &n) == DSV2_OK;
}

/* Both draw and decode the same, with penalties on what was output. */
static void go_on_alike(dsv2_session *a, dsv2_session *b)
{
    dsv2_sample_params p;
    int32_t of_a, of_b;

    dsv2_sample_params_init(&p, sizeof p, NULL);
    p.seed = 77;
    p.frequency_penalty = 1.5f;
    p.presence_penalty = 0.5f;
    p.repetition_penalty = 1.3f;
    p.min_tokens = 6;
    for (int i = 0; i < 12; i++) {
        if (has_logits(a)) {
            must(dsv2_sample(a, &p, &of_a, NULL));
            must(dsv2_sample(b, &p, &of_b, NULL));
            assert_int_equal(of_a, of_b);
        } else {
            of_a = of_b = 50;
        }
        must(dsv2_session_decode(a, of_a));
        must(dsv2_session_decode(b, of_b));
        assert_memory_equal(logits_of(a), logits_of(b), VOCAB * sizeof(float));
    }
}

/* ---- Round trips */

static void round_trip(dsv2_session *a, dsv2_session *b)
{
    struct bytes saved = export(a);
    const float *address = has_logits(b) ? logits_of(b) : NULL;

    must(dsv2_session_import(b, saved.data, saved.n));
    assert_int_equal(dsv2_session_position(b), dsv2_session_position(a));
    assert_int_equal(has_logits(b), has_logits(a));
    if (has_logits(b)) {
        assert_memory_equal(logits_of(b), logits_of(a), VOCAB * sizeof(float));
        assert_true(!address || address == logits_of(b));
    }
    if (dsv2_session_position(a))
        assert_memory_equal(dsv2_session_tokens(b), dsv2_session_tokens(a), dsv2_session_position(a) * sizeof(int32_t));
    is_as(b, saved);
    is_as(a, saved);
    free(saved.data);
    go_on_alike(a, b);
    dsv2_session_free(a);
    dsv2_session_free(b);
}

static void every_length(void **state)
{
    static const size_t lengths[] = {0, 1, 2, 63, 64, 65, 127, 128, 200};
    dsv2_context *other_ctx = open_context(1);
    dsv2_model *other;
    int32_t types = 0;

    must(load_tiny(other_ctx, &other));
    for (int32_t t = 0; has_kv_type(t); t++, types++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            for (int variant = 0; variant < 4; variant++) {
                size_t n = lengths[i], decoded = n / 3;
                dsv2_session *a = session_of(model, t, n - decoded, decoded), *b, *c;
                dsv2_pool *pool = NULL;

                if (variant == 0) { /* to a session that is empty */
                    b = open_session(model, 250, t, DSV2_ATTENTION_ABSORBED, 3);
                } else if (variant == 1) { /* without logits, to another context with other threads, over another past */
                    advance(a, 0, 1);
                    must(dsv2_session_truncate(a, n));
                    b = open_session(other, 400, t, DSV2_ATTENTION_ABSORBED, 64);
                    advance(b, 150, 3);
                } else if (variant == 2) { /* a fork, whose pages are shared, to a bounded pool */
                    must(dsv2_session_fork(a, &c));
                    advance(a, 0, 2);
                    dsv2_session_free(a);
                    a = c;
                    pool = open_pool(model, t, 512, 0);
                    b = session_in(pool, 300);
                } else { /* onto itself's fork */
                    must(dsv2_session_fork(a, &b));
                    advance(b, 5, 0);
                }
                round_trip(a, b);
                if (pool)
                    assert_int_equal(info_of(pool).pages_used, 0);
                dsv2_pool_free(pool);
            }
    assert_true(types > DSV2_KV_6BIT);
    dsv2_model_free(other);
    dsv2_context_free(other_ctx);
}

static void other_attention(void **state)
{
    for (int32_t form = DSV2_ATTENTION_EXPANDED; form <= DSV2_ATTENTION_AUTO; form++) {
        dsv2_session *a = open_session(model, 400, DSV2_KV_BF16, form, 16), *b = open_session(model, 400, DSV2_KV_BF16, form, 16);

        advance(a, 100, 7);
        round_trip(a, b);
    }
}

/* A restored session can be all that others can. */
static void restored_life(void **state)
{
    dsv2_session *a = session_of(model, DSV2_KV_BF16, 130, 10), *b = session_of(model, DSV2_KV_BF16, 3, 0), *c;
    struct bytes saved = export(a);

    must(dsv2_session_import(b, saved.data, saved.n));
    must(dsv2_session_fork(b, &c));
    must(dsv2_session_import(b, saved.data, saved.n)); /* again, over itself */
    go_on_alike(b, c);
    must(dsv2_session_truncate(b, 100));
    must(dsv2_session_truncate(a, 100));
    go_on_alike(a, b);
    must(dsv2_session_truncate(b, 0));
    must(dsv2_session_truncate(c, 0));
    advance(b, 70, 0);
    advance(c, 70, 0);
    go_on_alike(b, c);
    dsv2_session_free(a);
    dsv2_session_free(b);
    dsv2_session_free(c);
    free(saved.data);
}

static int32_t stop_at_once(void *user, uint64_t done, uint64_t total)
{
    return 1;
}

static dsv2_session *with_attention(int32_t attention, int stopped)
{
    dsv2_session_params p;
    dsv2_session *s;

    dsv2_session_params_init(&p, sizeof p);
    p.kv_type = DSV2_KV_F32;
    p.attention = attention;
    p.n_batch = stopped ? 8 : 256;
    p.progress = stopped ? stop_at_once : NULL;
    must(dsv2_session_create(model, &p, &s));
    return s;
}

/* What scoring computes again behind a truncate, it computes in the form of attention of the past, which is saved, too. */
static void forms_of_attention(void **state)
{
    dsv2_session *a = with_attention(DSV2_ATTENTION_AUTO, 0), *b = with_attention(DSV2_ATTENTION_AUTO, 0);
    dsv2_token_score by_a[20], by_b[20];
    struct bytes saved, other;
    int32_t ids[20];

    for (size_t i = 0; i < 20; i++)
        ids[i] = id_at(50 + i);
    advance(a, 100, 0);
    must(dsv2_session_truncate(a, 50));
    saved = export(a);
    assert_true(get(saved.data + saved.n - 16, 8) == ((uint64_t)1 << 50) - 1); /* all expanded */
    must(dsv2_session_import(b, saved.data, saved.n));
    must(dsv2_session_score(a, ids, 20, by_a, sizeof *by_a));
    must(dsv2_session_score(b, ids, 20, by_b, sizeof *by_b));
    assert_memory_equal(by_a, by_b, sizeof by_a);
    other = export(a);
    is_as(b, other);
    dsv2_session_free(a);
    dsv2_session_free(b);

    /* a session that has another form computes it again in its own, and does not change if it is stopped, alone or with a fork */
    for (int forked = 0; forked < 2; forked++) {
        dsv2_session *stopped = with_attention(DSV2_ATTENTION_ABSORBED, 1), *fork = NULL;
        struct bytes before;

        must(dsv2_session_import(stopped, saved.data, saved.n));
        before = export(stopped);
        if (forked)
            must(dsv2_session_fork(stopped, &fork));
        expect(dsv2_session_score(stopped, ids, 20, by_a, sizeof *by_a), DSV2_ERR_CANCELLED, NULL);
        is_as(stopped, before);
        if (forked)
            is_as(fork, before);
        must(dsv2_session_score(stopped, ids, 1, by_a, sizeof *by_a)); /* no piece after which to stop */
        if (forked)
            is_as(fork, before);
        free(before.data);
        dsv2_session_free(stopped);
        dsv2_session_free(fork);
    }
    free(saved.data);
    free(other.data);
}

/* ---- The format: a second reading of what lib/save.c says, on XXH64 with known answers */

enum { VERSION_AT = 8, BYTES_AT = 12, CONFIG_AT = 20, TOKENIZER_AT = 28, WEIGHTS_AT = 36, VOCAB_AT = 44, LAYERS_AT = 48, KV_TYPE_AT = 52,
       KV_FORMAT_AT = 56, TOKEN_BYTES_AT = 60, PAGE_TOKENS_AT = 64, ATTENTION_AT = 68, N_TOKENS_AT = 72, N_PROMPT_AT = 76, N_LOGITS_AT = 80,
       HEADER = 84 };

/* Lengths of the sections; returns how many. */
static int sections(const unsigned char *b, size_t length[20])
{
    size_t tokens = get(b + N_TOKENS_AT, 4), logits = get(b + N_LOGITS_AT, 4);
    int n = 0;

    length[n++] = HEADER;
    length[n++] = 4 * tokens;
    if (logits)
        length[n++] = 4 * logits;
    for (size_t at = 0; at < tokens; at += 64)
        length[n++] = (tokens - at < 64 ? tokens - at : 64) * LAYERS * get(b + TOKEN_BYTES_AT, 4) + 8;
    return n;
}

/* Make all checksums right, as long as there are bytes. */
static void seal(struct bytes b)
{
    size_t length[20], at = 0;
    int n = sections(b.data, length);
    uint64_t hash = 0;

    for (int i = 0; i < n && at + length[i] + 8 <= b.n; i++) {
        hash = dsv2i_hash(hash, b.data + at, length[i]);
        put(b.data + at + length[i], hash, 8);
        at += length[i] + 8;
    }
}

static void format(void **state)
{
    dsv2_session *s = session_of(model, DSV2_KV_F32, 60, 10);
    struct bytes saved = export(s), sealed = {malloc(saved.n), saved.n};
    size_t length[20], sum = 0;
    int n = sections(saved.data, length);

    assert_true(dsv2i_hash(0, "", 0) == 0xEF46DB3751D8E999u);
    assert_true(dsv2i_hash(0, "abc", 3) == 0x44BC2CF5AD770999u);
    assert_true(dsv2i_hash(0, "Nobody inspects the spammish repetition", 39) == 0xFBCEA83C8A378BF1u);
    assert_int_equal(n, 5);
    for (int i = 0; i < n; i++)
        sum += length[i] + 8;
    assert_int_equal(sum, saved.n);
    assert_memory_equal(saved.data, "DSV2SESS", 8);
    assert_int_equal(get(saved.data + VERSION_AT, 4), 2);
    assert_int_equal(get(saved.data + BYTES_AT, 8), saved.n);
    assert_int_equal(get(saved.data + VOCAB_AT, 4), VOCAB);
    assert_int_equal(get(saved.data + LAYERS_AT, 4), LAYERS);
    assert_int_equal(get(saved.data + KV_TYPE_AT, 4), DSV2_KV_F32);
    assert_int_equal(get(saved.data + TOKEN_BYTES_AT, 4), (64 + 16) * 4);
    assert_int_equal(get(saved.data + PAGE_TOKENS_AT, 4), 64);
    assert_int_equal(get(saved.data + N_TOKENS_AT, 4), 70);
    assert_int_equal(get(saved.data + N_PROMPT_AT, 4), 60);
    assert_int_equal(get(saved.data + N_LOGITS_AT, 4), VOCAB);
    for (int i = 0; i < 70; i++)
        assert_int_equal(get(saved.data + HEADER + 8 + 4 * i, 4), id_at((size_t)i));
    memcpy(sealed.data, saved.data, saved.n);
    seal(sealed);
    assert_memory_equal(sealed.data, saved.data, saved.n);
    free(sealed.data);
    free(saved.data);
    dsv2_session_free(s);
}

/* ---- Damage: a session of 5 tokens is offered broken files */

struct victim {
    dsv2_session *s;
    struct bytes before, good; /* good: 2 tokens */
};

static void victim_open(struct victim *v)
{
    dsv2_session *small = session_of(model, DSV2_KV_BF16, 1, 1);

    v->s = session_of(model, DSV2_KV_BF16, 5, 0);
    v->before = export(v->s);
    v->good = export(small);
    dsv2_session_free(small);
}

static void victim_close(struct victim *v)
{
    dsv2_session *twin = session_of(model, DSV2_KV_BF16, 5, 0);

    go_on_alike(v->s, twin);
    must(dsv2_session_import(v->s, v->good.data, v->good.n));
    dsv2_session_free(twin);
    dsv2_session_free(v->s);
    free(v->before.data);
    free(v->good.data);
}

/* The first n bytes of data, in a block of just that size. */
static void offer(struct victim *v, const unsigned char *data, size_t n, dsv2_status status, const char *text)
{
    unsigned char *exact = malloc(n ? n : 1);

    memcpy(exact, data, n);
    expect(dsv2_session_import(v->s, exact, n), status, text);
    free(exact);
    is_as(v->s, v->before);
}

static void every_length_cut(void **state)
{
    struct victim v;
    unsigned char *longer;

    victim_open(&v);
    for (size_t n = 0; n < v.good.n; n++)
        offer(&v, v.good.data, n, DSV2_ERR_FORMAT, "size");
    longer = calloc(1, v.good.n + 9);
    memcpy(longer, v.good.data, v.good.n);
    for (size_t n = 1; n < 10; n++)
        offer(&v, longer, v.good.n + n, DSV2_ERR_FORMAT, "size");
    free(longer);
    victim_close(&v);
}

static void every_bit_flipped(void **state)
{
    struct victim v;

    victim_open(&v);
    for (size_t i = 0; i < v.good.n * 8; i++) {
        int in_version = i / 8 >= VERSION_AT && i / 8 < VERSION_AT + 4;

        v.good.data[i / 8] ^= (unsigned char)(1 << i % 8);
        offer(&v, v.good.data, v.good.n, in_version ? DSV2_ERR_UNSUPPORTED : DSV2_ERR_FORMAT, NULL);
        v.good.data[i / 8] ^= (unsigned char)(1 << i % 8);
    }
    victim_close(&v);
}

/* The same through a file. */
static void damaged_file(void **state)
{
    const char *path = in_folder("damaged");
    struct victim v;

    victim_open(&v);
    for (size_t n = 0; n < v.good.n; n += 37) {
        FILE *f = fopen(path, "wb");

        fwrite(v.good.data, 1, n, f);
        fclose(f);
        expect(dsv2_session_restore(v.s, path), DSV2_ERR_FORMAT, path);
        f = fopen(path, "wb");
        v.good.data[n] ^= 0x20;
        fwrite(v.good.data, 1, v.good.n, f);
        v.good.data[n] ^= 0x20;
        fclose(f);
        assert_int_not_equal(dsv2_session_restore(v.s, path), DSV2_OK);
        assert_non_null(strstr(dsv2_last_error(), path));
        is_as(v.s, v.before);
    }
    unlink(path);
    victim_close(&v);
}

/* Wrong values under right checksums. */
static void forged(void **state)
{
    static const struct {
        int at, bytes;
        uint64_t value;
        dsv2_status status;
        const char *text;
    } cases[] = {
        {VERSION_AT, 4, 1, DSV2_ERR_UNSUPPORTED, "version: 1"},
        {VERSION_AT, 4, 3, DSV2_ERR_UNSUPPORTED, "version: 3"},
        {BYTES_AT, 8, 7, DSV2_ERR_FORMAT, "size"},
        {BYTES_AT, 8, UINT64_MAX, DSV2_ERR_FORMAT, "18446744073709551615"},
        {CONFIG_AT, 8, 1, DSV2_ERR_FORMAT, "config.json: is 1"},
        {TOKENIZER_AT, 8, 0, DSV2_ERR_FORMAT, "tokenizer.json: is 0"},
        {WEIGHTS_AT, 8, 0, DSV2_ERR_FORMAT, "weights: is 0"},
        {VOCAB_AT, 4, VOCAB + 1, DSV2_ERR_FORMAT, "vocab_size: is 161"},
        {LAYERS_AT, 4, 2, DSV2_ERR_FORMAT, "num_hidden_layers: is 2"},
        {KV_TYPE_AT, 4, DSV2_KV_F32, DSV2_ERR_INVALID, "kv_type: is 1, but the session's is 0"},
        {KV_FORMAT_AT, 4, 99, DSV2_ERR_FORMAT, "kv_format: is 99"},
        {TOKEN_BYTES_AT, 4, 0, DSV2_ERR_FORMAT, "token_bytes: is 0"},
        {TOKEN_BYTES_AT, 4, UINT32_MAX, DSV2_ERR_FORMAT, "token_bytes: is 4294967295"},
        {PAGE_TOKENS_AT, 4, 0, DSV2_ERR_FORMAT, "page_tokens: is 0"},
        {N_PROMPT_AT, 4, 3, DSV2_ERR_FORMAT, "n_prompt: 3 of 2"},
        {N_LOGITS_AT, 4, VOCAB - 1, DSV2_ERR_FORMAT, "n_logits: 159"},
        {N_LOGITS_AT, 4, 0, DSV2_ERR_FORMAT, "size"},
        {N_TOKENS_AT, 4, 1, DSV2_ERR_FORMAT, "size"},
        {N_TOKENS_AT, 4, 400, DSV2_ERR_FORMAT, "size"},
        {N_TOKENS_AT, 4, 401, DSV2_ERR_CONTEXT_FULL, "n_tokens: 401"},
        {N_TOKENS_AT, 4, UINT32_MAX, DSV2_ERR_CONTEXT_FULL, "n_tokens: 4294967295"},
        {HEADER + 8, 4, VOCAB, DSV2_ERR_FORMAT, "tokens[0]: 160"},
        {HEADER + 12, 4, UINT32_MAX, DSV2_ERR_FORMAT, "tokens[1]: -1"},
        {0, 1, 'X', DSV2_ERR_FORMAT, "XSV2SESS"},
    };
    struct victim v;
    struct bytes b;

    victim_open(&v);
    b = (struct bytes){malloc(v.good.n), v.good.n};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        memcpy(b.data, v.good.data, b.n);
        put(b.data + cases[i].at, cases[i].value, cases[i].bytes);
        if (cases[i].at == N_PROMPT_AT || cases[i].at >= HEADER || cases[i].bytes == 8 || cases[i].value == 1)
            seal(b);
        else /* the lengths are not what they were: the header only */
            put(b.data + HEADER, dsv2i_hash(0, b.data, HEADER), 8);
        offer(&v, b.data, b.n, cases[i].status, cases[i].text);
    }
    memcpy(b.data, v.good.data, b.n);
    b.data[b.n - 16] = 4;
    seal(b);
    offer(&v, b.data, b.n, DSV2_ERR_FORMAT, "page of token 0: forms of attention: 0x4, but it has 2 tokens");
    memset(b.data, 0, b.n); /* no tokens, but logits */
    memcpy(b.data, v.good.data, HEADER);
    put(b.data + N_TOKENS_AT, 0, 4);
    put(b.data + N_PROMPT_AT, 0, 4);
    b.n = HEADER + 8 + 8 + VOCAB * 4 + 8;
    put(b.data + BYTES_AT, b.n, 8);
    seal(b);
    offer(&v, b.data, b.n, DSV2_ERR_FORMAT, "n_logits: 160 after 0 tokens");
    free(b.data);
    victim_close(&v);
}

/* Any bytes in pages and logits are a state: wrong answers, but nothing worse. */
static void garbage_under_checksums(void **state)
{
    static const unsigned char fill[] = {0x00, 0xFF, 0x7F, 0x80, 0x7C};
    dsv2_sample_params p;

    dsv2_sample_params_init(&p, sizeof p, NULL);
    for (int32_t t = 0; has_kv_type(t); t++) {
        dsv2_session *s = session_of(model, t, 70, 0);
        struct bytes b = export(s);
        uint64_t rng = 3;
        int32_t token;

        for (size_t k = 0; k <= sizeof fill; k++) {
            for (size_t i = HEADER + 8 + 70 * 4 + 8; i < b.n; i++)
                b.data[i] = k < sizeof fill ? fill[k] : (unsigned char)random_u32(&rng);
            put(b.data + b.n - 16, get(b.data + b.n - 16, 8) & 0x3F, 8); /* of 6 tokens */
            seal(b);
            must(dsv2_session_import(s, b.data, b.n));
            is_as(s, b);
            if (dsv2_sample(s, &p, &token, NULL) != DSV2_OK)
                token = 1;
            assert_true(token >= 0 && token < VOCAB);
            must(dsv2_session_decode(s, token));
            advance(s, 70, 0);
        }
        free(b.data);
        dsv2_session_free(s);
    }
}

/* Whole sections, checksums and all, in another place or from another file. */
static void moved_sections(void **state)
{
    dsv2_session *s = session_of(model, DSV2_KV_BF16, 192, 0), *other = session_of(model, DSV2_KV_BF16, 10, 0);
    struct bytes a = export(s), b, before;
    size_t length[20], at = 0;
    int n = sections(a.data, length);

    must(dsv2_session_truncate(other, 0)); /* other tokens, then the last of s's tokens: equal lengths everywhere */
    must(dsv2_session_prefill(other, (int32_t[]){1, 2, 3}, 3));
    advance(other, 189, 0);
    b = export(other);
    before = export(other);
    assert_int_equal(a.n, b.n);
    for (int i = 0; i < n; i++) {
        struct bytes mixed = {malloc(a.n), a.n};

        memcpy(mixed.data, a.data, a.n);
        memcpy(mixed.data + at, b.data + at, length[i] + 8);
        if (i)
            expect(dsv2_session_import(other, mixed.data, mixed.n), DSV2_ERR_FORMAT, "checksum");
        if (i >= 3 && i + 1 < n) {
            memcpy(mixed.data, a.data, a.n);
            memcpy(mixed.data + at, a.data + at + length[i] + 8, length[i] + 8);
            memcpy(mixed.data + at + length[i] + 8, a.data + at, length[i] + 8);
            expect(dsv2_session_import(other, mixed.data, mixed.n), DSV2_ERR_FORMAT, "checksum");
        }
        is_as(other, before);
        free(mixed.data);
        at += length[i] + 8;
    }
    free(a.data);
    free(b.data);
    free(before.data);
    dsv2_session_free(s);
    dsv2_session_free(other);
}

/* ---- Other models */

static char *replaced(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    char *out = malloc(strlen(text) + strlen(to) + 1);

    assert_non_null(at);
    sprintf(out, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    return out;
}

static void swap_data(struct files *f, int i, char *data)
{
    free(f->file[i].data);
    f->file[i].data = data;
    f->file[i].size = strlen(data);
}

static void offer_to(dsv2_model *m, struct bytes saved, dsv2_status status, const char *text)
{
    dsv2_session *s = session_of(m, DSV2_KV_BF16, 3, 0);
    struct bytes before = export(s);

    expect(dsv2_session_import(s, saved.data, saved.n), status, text);
    if (status != DSV2_OK)
        is_as(s, before);
    free(before.data);
    dsv2_session_free(s);
    dsv2_model_free(m);
}

static void other_models(void **state)
{
    dsv2_session *s = session_of(model, DSV2_KV_BF16, 70, 2);
    struct bytes saved = export(s);
    struct files f;
    dsv2_model *m;

    offer_to(open_model(ctx, "v2"), saved, DSV2_ERR_FORMAT, "fingerprint of tokenizer.json");
    offer_to(open_model(ctx, "lite"), saved, DSV2_ERR_FORMAT, "vocab_size");
    for (int k = 0; k < 6; k++) {
        const struct {
            const char *text;
            dsv2_status status;
        } wanted[] = {{NULL, DSV2_OK}, {NULL, DSV2_OK}, {"fingerprint of config.json", DSV2_ERR_FORMAT},
                      {"fingerprint of tokenizer.json", DSV2_ERR_FORMAT}, {"fingerprint of the weights", DSV2_ERR_FORMAT},
                      {"fingerprint of the weights", DSV2_ERR_FORMAT}};
        char *header;

        tiny_files(&f);
        if (k == 1) /* says nothing about what is computed */
            swap_data(&f, 0, replaced(f.file[0].data, "{", "{\"use_cache\": false, \"transformers_version\": \"9\","));
        if (k == 2)
            swap_data(&f, 0, replaced(f.file[0].data, "\"rope_theta\": 10000", "\"rope_theta\": 20000"));
        if (k == 3)
            swap_data(&f, 2, replaced(f.file[2].data, "\"1.0\"", "\"1.0\" "));
        header = f.file[1].data;
        if (k >= 4) /* the first byte of the first tensor, the last byte of the last one, which is small */
            f.file[1].data[k == 4 ? 8 + get((unsigned char *)header, 8) : f.file[1].size - 1] ^= 1;
        must(load_files(ctx, &f, &m));
        offer_to(m, saved, wanted[k].status, wanted[k].text);
        files_free(&f);
    }
    free(saved.data);
    dsv2_session_free(s);
}

/* ---- What the session must have */

static void does_not_fit(void **state)
{
    dsv2_session *a = session_of(model, DSV2_KV_BF16, 130, 0), *s;
    struct bytes saved = export(a), before;
    dsv2_pool *pool = open_pool(model, DSV2_KV_BF16, 64 * 4, 0);

    s = open_session(model, 400, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 16);
    advance(s, 9, 0);
    before = export(s);
    expect(dsv2_session_import(s, saved.data, saved.n), DSV2_ERR_INVALID, "kv_type");
    is_as(s, before);
    free(before.data);
    dsv2_session_free(s);

    s = open_session(model, 129, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 16);
    expect(dsv2_session_import(s, saved.data, saved.n), DSV2_ERR_CONTEXT_FULL, "n_ctx 129");
    assert_int_equal(dsv2_session_position(s), 0);
    dsv2_session_free(s);

    s = open_session(model, 130, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 16);
    must(dsv2_session_import(s, saved.data, saved.n));
    expect(dsv2_session_decode(s, 1), DSV2_ERR_CONTEXT_FULL, NULL);
    is_as(s, saved);
    dsv2_session_free(s);

    s = session_in(pool, 250); /* 2 of 4 pages are its own: 3 are not left */
    advance(s, 66, 0);
    before = export(s);
    expect(dsv2_session_import(s, saved.data, saved.n), DSV2_ERR_NO_PAGES, NULL);
    is_as(s, before);
    assert_int_equal(info_of(pool).pages_used, 2);
    must(dsv2_session_truncate(s, 0));
    must(dsv2_session_import(s, saved.data, saved.n));
    assert_int_equal(info_of(pool).pages_used, 3);
    saved.data[saved.n - 1] ^= 1; /* what fails in its last page gives all pages back */
    must(dsv2_session_truncate(s, 10));
    expect(dsv2_session_import(s, saved.data, saved.n), DSV2_ERR_FORMAT, "page");
    assert_int_equal(info_of(pool).pages_used, 1);
    dsv2_session_free(s);
    assert_int_equal(info_of(pool).pages_used, 0);
    dsv2_pool_free(pool);
    free(before.data);
    free(saved.data);
    dsv2_session_free(a);
}

/* Nobody else gets pages that came from a file. */
static void prefix_cache(void **state)
{
    dsv2_pool *pool = open_pool(model, DSV2_KV_BF16, 1024, 1 << 20);
    dsv2_session *a = session_of(model, DSV2_KV_BF16, 130, 0), *s = session_in(pool, 400), *f;
    struct bytes saved = export(a);

    must(dsv2_session_import(s, saved.data, saved.n));
    must(dsv2_session_fork(s, &f));
    advance(s, 100, 70);
    must(dsv2_session_truncate(f, 70));
    advance(f, 70, 70);
    assert_int_equal(info_of(pool).pages_cached, 0);
    dsv2_session_free(f);
    must(dsv2_session_truncate(s, 0)); /* the file's pages are gone */
    advance(s, 130, 0);
    assert_int_equal(info_of(pool).pages_cached, 2);
    must(dsv2_session_import(s, saved.data, saved.n)); /* the cache keeps its own */
    assert_int_equal(info_of(pool).pages_cached, 2);
    assert_int_equal(info_of(pool).pages_idle, 2);
    dsv2_session_free(s);
    dsv2_session_free(a);
    dsv2_pool_free(pool);
    free(saved.data);
}

static void no_memory(void **state)
{
    dsv2_context_params cp = context_params(1);
    dsv2_session *s, *big;
    struct bytes before, saved;
    dsv2_context *c;
    dsv2_model *m;
    int failed[4] = {0};

    cp.alloc = hook_alloc;
    cp.free = hook_free;
    must(dsv2_context_create(&cp, &c));
    must(load_tiny(c, &m));
    big = session_of(m, DSV2_KV_BF16, 600 - 400, 3);
    s = session_of(m, DSV2_KV_BF16, 80, 3);
    saved = export(big);
    before = export(s);
    must(dsv2_session_save(big, in_folder("big")));
    for (int call = 0; call < 4; call++)
        for (long n = 1;; n++) {
            long live = mem.live;
            size_t size = before.n;
            dsv2_status status;

            mem.countdown = n;
            status = call == 0   ? dsv2_session_import(s, saved.data, saved.n)
                     : call == 1 ? dsv2_session_restore(s, in_folder("big"))
                     : call == 2 ? dsv2_session_export(s, before.data, before.n, &size)
                                 : dsv2_session_save(s, in_folder("small"));
            if (mem.countdown > 0) {
                mem.countdown = 0;
                must(status);
                must(dsv2_session_import(s, before.data, before.n));
                break;
            }
            expect(status, DSV2_ERR_NOMEM, NULL);
            failed[call]++;
            assert_int_equal(mem.live, live);
            is_as(s, before);
            assert_int_equal(n_files("big", 0), 1);
        }
    assert_true(failed[0] >= 3 + 4 && failed[1] == failed[0]);
    assert_true(failed[2] >= 1 && failed[3] == failed[2]);
    file_is(in_folder("small"), before);
    n_files("", 1);
    dsv2_session_free(s);
    dsv2_session_free(big);
    dsv2_model_free(m);
    dsv2_context_free(c);
    assert_int_equal(mem.live, 0);
    free(saved.data);
    free(before.data);
}

/* ---- Files */

static void files(void **state)
{
    dsv2_session *a = session_of(model, DSV2_KV_BF16, 100, 3), *b = session_of(model, DSV2_KV_BF16, 1, 0);
    struct bytes saved = export(a), small = export(b);
    char path[128], longest[400], here[1024];
    struct stat st;

    strcpy(path, in_folder("a"));
    must(dsv2_session_save(b, path));
    file_is(path, small);
    must(dsv2_session_save(a, path)); /* in place of it */
    file_is(path, saved);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(n_files("a", 0), 1);
    must(dsv2_session_restore(b, path));
    is_as(b, saved);

    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(chdir(folder), 0);
    must(dsv2_session_save(a, "b"));
    must(dsv2_session_restore(b, "b"));
    assert_int_equal(chdir(here), 0);
    assert_int_equal(n_files("a", 1), 2);

    expect(dsv2_session_restore(b, in_folder("none")), DSV2_ERR_IO, "/none");
    expect(dsv2_session_restore(b, folder), DSV2_ERR_IO, "regular");
    expect(dsv2_session_restore(b, "/dev/null"), DSV2_ERR_IO, "regular");
    assert_int_equal(mkfifo(in_folder("fifo"), 0600), 0);
    expect(dsv2_session_restore(b, in_folder("fifo")), DSV2_ERR_IO, "regular");
    expect(dsv2_session_save(b, in_folder("fifo")), DSV2_ERR_IO, "regular");
    expect(dsv2_session_save(b, folder), DSV2_ERR_IO, "regular");
    expect(dsv2_session_save(b, in_folder("none/x")), DSV2_ERR_IO, "/none/x");
    expect(dsv2_session_save(b, ""), DSV2_ERR_IO, NULL);
    memset(longest, 'x', sizeof longest);
    longest[300] = 0;
    expect(dsv2_session_save(b, in_folder(longest)), DSV2_ERR_IO, NULL);
    assert_int_equal(n_files("a", 1), 2);
    file_is(path, saved);
    is_as(b, saved);
    unlink(path);
    free(saved.data);
    free(small.data);
    dsv2_session_free(a);
    dsv2_session_free(b);
}

/* Each call that writes fails once. */
static void write_errors(void **state)
{
    dsv2_session *a = session_of(model, DSV2_KV_BF16, 100, 3), *b = session_of(model, DSV2_KV_BF16, 10, 0);
    struct bytes saved = export(a), old = export(b);
    char path[128];
    long n;

    strcpy(path, in_folder("a"));
    must(dsv2_session_save(b, path));
    for (n = 1;; n++) {
        dsv2_status status;

        watch();
        io.fail_at = n;
        status = dsv2_session_save(a, path);
        io.watching = 0;
        assert_int_equal(n_files("a", 0), 1);
        if (io.calls < n) {
            must(status);
            break;
        }
        if (!strcmp(io.failed, "wfcrfc")) /* nothing depends on the folder's handle any more */
            must(status);
        else
            expect(status, DSV2_ERR_IO, path);
        if (strlen(io.failed) > strlen("wfcr")) { /* after the renaming */
            file_is(path, saved);
            must(dsv2_session_save(b, path));
        } else {
            file_is(path, old);
        }
    }
    assert_true(n >= 10);
    assert_string_equal(io.trace, "wfcrfc"); /* on the disk before it has the name, and the name before the call returns */

    watch(); /* in pieces of 7 bytes, and interrupted */
    io.piece = 7;
    io.interrupt = 1;
    must(dsv2_session_save(a, path));
    io.watching = 0;
    assert_true(io.calls > (long)saved.n / 7);
    file_is(path, saved);
    unlink(path);
    free(saved.data);
    free(old.data);
    dsv2_session_free(a);
    dsv2_session_free(b);
}

/* A limit of the system's own. */
static void no_room(void **state)
{
    dsv2_session *a = session_of(model, DSV2_KV_BF16, 100, 3), *b = session_of(model, DSV2_KV_BF16, 1, 0);
    struct bytes old = export(b);
    struct rlimit before, little;
    char path[128];
    dsv2_status status;

    strcpy(path, in_folder("a"));
    must(dsv2_session_save(b, path));
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    little = before;
    little.rlim_cur = 4096;
    setrlimit(RLIMIT_FSIZE, &little);
    status = dsv2_session_save(a, path);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_DFL);
    expect(status, DSV2_ERR_IO, "too large");
    file_is(path, old);
    assert_int_equal(n_files("a", 1), 1);
    unlink(path);
    free(old.data);
    dsv2_session_free(a);
    dsv2_session_free(b);
}

/* In a child process: save new over path and die at the n-th call; returns if there are not so many. */
static void save_and_die(struct bytes new, const char *path, long n)
{
    dsv2_session_params p;
    dsv2_context *c;
    dsv2_model *m;
    dsv2_session *s;

    dsv2_session_params_init(&p, sizeof p);
    if (dsv2_context_create(&(dsv2_context_params){.struct_size = sizeof(dsv2_context_params), .n_threads = 1}, &c) != DSV2_OK ||
        load_tiny(c, &m) != DSV2_OK || dsv2_session_create(m, &p, &s) != DSV2_OK || dsv2_session_import(s, new.data, new.n) != DSV2_OK)
        _exit(2);
    watch();
    io.piece = new.n / 205;
    io.die_at = n;
    _exit(dsv2_session_save(s, path) == DSV2_OK ? 0 : 3);
}

static void killed_writer(void **state)
{
    dsv2_session *a = session_of(model, DSV2_KV_BF16, 130, 3), *b = session_of(model, DSV2_KV_BF16, 70, 0);
    struct bytes new = export(a), old = export(b);
    int old_whole = 0, new_whole = 0;
    char path[128];

    strcpy(path, in_folder("a"));
    must(dsv2_session_save(b, path));
    for (long n = 1;; n++) {
        pid_t pid = fork();
        struct bytes now;
        int status;

        assert_true(pid >= 0);
        if (pid == 0)
            save_and_die(new, path, n);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        now = read_bytes(path);
        assert_true(now.n == old.n || now.n == new.n);
        assert_memory_equal(now.data, now.n == old.n ? old.data : new.data, now.n);
        if (now.n == old.n)
            old_whole++;
        else
            new_whole++;
        free(now.data);
        n_files("a", 1);
        if (WIFEXITED(status)) {
            assert_int_equal(WEXITSTATUS(status), 0);
            break;
        }
        assert_int_equal(WTERMSIG(status), SIGKILL);
        must(dsv2_session_restore(b, path));
        must(dsv2_session_import(b, old.data, old.n));
        must(dsv2_session_save(b, path));
    }
    print_message("killed at %d points: the old file was whole at %d, the new one at %d\n", old_whole + new_whole - 1, old_whole,
                  new_whole - 1);
    assert_true(old_whole >= 200);
    unlink(path);
    free(new.data);
    free(old.data);
    dsv2_session_free(a);
    dsv2_session_free(b);
}

/* ---- Threads and processes */

struct saver {
    dsv2_session *s;
    const char *path;
    int failed;
};

static void *save_often(void *user)
{
    struct saver *w = user;

    for (int i = 0; i < 20; i++) {
        w->failed |= dsv2_session_save(w->s, w->path) != DSV2_OK;
        if (i % 4 == 3)
            w->failed |= dsv2_session_restore(w->s, w->path) != DSV2_OK;
    }
    return NULL;
}

/* Savers of one path: the file is one of theirs, whole.  All ask for the model's fingerprint first. */
static void threads(void **state)
{
    enum { N = 3 };
    struct saver w[N];
    pthread_t t[N];
    dsv2_model *fresh;
    dsv2_session *s;

    must(load_tiny(ctx, &fresh));
    s = session_of(fresh, DSV2_KV_BF16, 1, 0);
    for (int i = 0; i < N; i++) {
        w[i] = (struct saver){session_of(fresh, DSV2_KV_BF16, 10 + 40 * (size_t)i, 1), "", 0};
        w[i].path = in_folder("shared");
    }
    for (int i = 0; i < N; i++)
        assert_int_equal(pthread_create(&t[i], NULL, save_often, &w[i]), 0);
    for (int i = 0; i < N; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(w[i].failed, 0);
        dsv2_session_free(w[i].s);
    }
    must(dsv2_session_restore(s, in_folder("shared")));
    assert_int_equal((dsv2_session_position(s) - 11) % 40, 0);
    assert_int_equal(n_files("", 1), 1);
    dsv2_session_free(s);
    dsv2_model_free(fresh);
}

static void wrong_uses(void **state)
{
    dsv2_session *s = session_of(model, DSV2_KV_BF16, 3, 0);
    struct bytes saved = export(s);
    unsigned char *small = malloc(saved.n - 1);
    size_t n = 0;
    int status;
    pid_t pid;

    expect(dsv2_session_save(NULL, "x"), DSV2_ERR_INVALID, "s is NULL");
    expect(dsv2_session_save(s, NULL), DSV2_ERR_INVALID, "path is NULL");
    expect(dsv2_session_restore(NULL, "x"), DSV2_ERR_INVALID, "s is NULL");
    expect(dsv2_session_restore(s, NULL), DSV2_ERR_INVALID, "path is NULL");
    expect(dsv2_session_export(NULL, NULL, 0, &n), DSV2_ERR_INVALID, "s is NULL");
    expect(dsv2_session_export(s, NULL, 9, &n), DSV2_ERR_INVALID, "buf is NULL");
    expect(dsv2_session_export(s, small, 9, NULL), DSV2_ERR_INVALID, "n is NULL");
    expect(dsv2_session_import(NULL, saved.data, saved.n), DSV2_ERR_INVALID, "s is NULL");
    expect(dsv2_session_import(s, NULL, 9), DSV2_ERR_INVALID, "buf is NULL");
    expect(dsv2_session_import(s, NULL, 0), DSV2_ERR_FORMAT, "size: 0");
    memset(small, 0x3C, saved.n - 1);
    expect(dsv2_session_export(s, small, saved.n - 1, &n), DSV2_ERR_BUFFER, "capacity");
    assert_int_equal(n, saved.n);
    for (size_t i = 0; i < saved.n - 1; i++)
        assert_int_equal(small[i], 0x3C);
    is_as(s, saved);

    pid = fork();
    if (pid == 0)
        _exit(dsv2_session_save(s, in_folder("x")) != DSV2_ERR_FORKED || dsv2_session_restore(s, in_folder("x")) != DSV2_ERR_FORKED ||
              dsv2_session_export(s, saved.data, saved.n, &n) != DSV2_ERR_FORKED ||
              dsv2_session_import(s, saved.data, saved.n) != DSV2_ERR_FORKED);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(n_files("", 0), 0);
    free(small);
    free(saved.data);
    dsv2_session_free(s);
}

static int set_up(void **state)
{
    ctx = open_context(2);
    must(load_tiny(ctx, &model));
    snprintf(folder, sizeof folder, "/tmp/dsv2-save-XXXXXX");
    return mkdtemp(folder) == NULL;
}

static int tear_down(void **state)
{
    n_files("", 1);
    rmdir(folder);
    dsv2_model_free(model);
    dsv2_context_free(ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_length), cmocka_unit_test(other_attention), cmocka_unit_test(restored_life),
        cmocka_unit_test(forms_of_attention), cmocka_unit_test(format),
        cmocka_unit_test(every_length_cut), cmocka_unit_test(every_bit_flipped), cmocka_unit_test(damaged_file),
        cmocka_unit_test(forged), cmocka_unit_test(garbage_under_checksums), cmocka_unit_test(moved_sections),
        cmocka_unit_test(other_models), cmocka_unit_test(does_not_fit), cmocka_unit_test(prefix_cache), cmocka_unit_test(no_memory),
        cmocka_unit_test(files), cmocka_unit_test(write_errors), cmocka_unit_test(no_room), cmocka_unit_test(killed_writer),
        cmocka_unit_test(threads), cmocka_unit_test(wrong_uses),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
