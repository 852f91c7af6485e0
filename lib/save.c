/* Sessions to files and back.
 *
 * SPDX-License-Identifier: MIT
 *
 * A saved session is a row of sections, each followed by its checksum (8 bytes).  All numbers are little-endian.
 *
 *   header   "DSV2SESS", then the fields of the table below without gaps
 *   tokens   n_tokens ids of 4 bytes
 *   logits   n_logits floats of 4 bytes; no such section if n_logits is 0
 *   page     for every 64 tokens and for the rest: the token records (kernels/kv_page.h) of the first layer, of the second, ...
 *            (num_hidden_layers * tokens * token_bytes), then 8 bytes: bit i is 1 if token i was computed in the expanded form of
 *            attention, on which its bits depend
 *
 * A checksum is the XXH64 of its section, with the checksum before it as seed (the header's: 0), so sections cannot change places
 * or come from another file.  Checksums find damage; they do not keep anyone from writing a file of his own: what is
 * read is checked like any input, and can give wrong answers at worst.
 *
 * Sampling is a function of seed, position, tokens, n_prompt and logits: this is all the state that there is. */
#include "save.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fingerprint.h"
#include "hash.h"

#define VERSION 2
#define CHECKSUM 8 /* bytes */
#define FORMS 8

#define MAGIC "DSV2SESS"
#define N_MAGIC 8

struct header {
    uint64_t version, bytes; /* bytes: of everything */
    struct dsv2i_fingerprint model;
    uint64_t vocab_size, num_hidden_layers;
    uint64_t kv_type, kv_format, token_bytes, page_tokens; /* token_bytes: of a token in a layer */
    uint64_t attention; /* of the session that was saved; a note only */
    uint64_t n_tokens, n_prompt, n_logits;
};

static const struct {
    int32_t bytes; /* in the file */
    size_t at;     /* a uint64_t of struct header */
} fields[] = {
#define FIELD(bytes, name) {bytes, offsetof(struct header, name)}
    FIELD(4, version), FIELD(8, bytes), FIELD(8, model.config), FIELD(8, model.tokenizer), FIELD(8, model.weights),
    FIELD(4, vocab_size), FIELD(4, num_hidden_layers), FIELD(4, kv_type), FIELD(4, kv_format), FIELD(4, token_bytes),
    FIELD(4, page_tokens), FIELD(4, attention), FIELD(4, n_tokens), FIELD(4, n_prompt), FIELD(4, n_logits),
#undef FIELD
};
#define N_FIELDS (sizeof fields / sizeof *fields)
#define HEADER (N_MAGIC + 11 * 4 + 4 * 8)

static void put(unsigned char *to, uint64_t v, int32_t bytes)
{
    for (int32_t i = 0; i < bytes; i++)
        to[i] = (unsigned char)(v >> 8 * i);
}

static uint64_t get(const unsigned char *from, int32_t bytes)
{
    uint64_t v = 0;

    for (int32_t i = 0; i < bytes; i++)
        v |= (uint64_t)from[i] << 8 * i;
    return v;
}

static void put_words(unsigned char *to, const void *from, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t word;

        memcpy(&word, (const char *)from + 4 * i, 4);
        put(to + 4 * i, word, 4);
    }
}

static void get_words(void *to, const unsigned char *from, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t word = (uint32_t)get(from + 4 * i, 4);

        memcpy((char *)to + 4 * i, &word, 4);
    }
}

/* What a session would be saved with, but for the fingerprint. */
static struct header describe(const dsv2_session *s)
{
    const struct dsv2i_shape *shape = &s->model->config.shape;
    struct dsv2i_backend *be = s->model->ctx->backend;

    return (struct header){
        .version = VERSION,
        .vocab_size = (uint64_t)shape->vocab_size,
        .num_hidden_layers = (uint64_t)shape->num_hidden_layers,
        .kv_type = (uint64_t)s->kv.pool->kv_type,
        .kv_format = DSV2I_KV_FORMAT,
        .token_bytes = be->op->kv_token_bytes(be, shape, s->kv.pool->kv_type),
        .page_tokens = DSV2I_PAGE_TOKENS,
        .attention = (uint64_t)s->attention,
        .n_tokens = (uint64_t)s->pos,
        .n_prompt = (uint64_t)s->n_prompt,
        .n_logits = s->has_logits ? (uint64_t)shape->vocab_size : 0,
    };
}

static uint64_t record_bytes(const struct header *h, uint64_t tokens)
{
    return h->num_hidden_layers * h->token_bytes * tokens;
}

static uint64_t bits(uint64_t tokens)
{
    return tokens < 64 ? ((uint64_t)1 << tokens) - 1 : UINT64_MAX;
}

static uint64_t total_bytes(const struct header *h)
{
    uint64_t pages = (h->n_tokens + h->page_tokens - 1) / h->page_tokens;

    return HEADER + CHECKSUM + 4 * h->n_tokens + CHECKSUM + (h->n_logits ? 4 * h->n_logits + CHECKSUM : 0) +
           record_bytes(h, h->n_tokens) + pages * (FORMS + CHECKSUM);
}

/* Room for any section of it and its checksum. */
static unsigned char *new_section(const dsv2_session *s, const struct header *h)
{
    uint64_t most = record_bytes(h, h->n_tokens < h->page_tokens ? h->n_tokens : h->page_tokens) + FORMS;

    if (most < 4 * h->n_tokens)
        most = 4 * h->n_tokens;
    if (most < 4 * h->n_logits)
        most = 4 * h->n_logits;
    if (most < HEADER)
        most = HEADER;
    return dsv2i_alloc(&s->model->ctx->mem, (size_t)most + CHECKSUM, 1);
}

static dsv2_status no_memory(const char *name, const struct header *h)
{
    return dsv2i_fail(DSV2_ERR_NOMEM, "%s: no memory for a session of %llu tokens", name, (unsigned long long)h->n_tokens);
}

/* Token records of a page, all layers: between the page and a section, where they stand without gaps. */
static dsv2_status copy_page(struct dsv2i_backend *be, const struct header *h, void *page, unsigned char *section, uint64_t tokens,
                             int to_page)
{
    size_t bytes = (size_t)(h->token_bytes * tokens), stride = (size_t)(h->token_bytes * h->page_tokens);

    for (uint64_t layer = 0; layer < h->num_hidden_layers; layer++) {
        char *in_page = (char *)page + layer * stride;
        unsigned char *packed = section + layer * bytes;

        if (to_page ? be->op->mem_copy(be, in_page, packed, bytes) : be->op->mem_copy(be, packed, in_page, bytes))
            return dsv2i_fail(DSV2_ERR_DEVICE, "session: KV pages: %s", be->op->failure(be));
    }
    return DSV2_OK;
}

static dsv2_status os_error(const char *name, const char *what, int error)
{
    char text[128];

    return dsv2i_fail(error == ENOMEM ? DSV2_ERR_NOMEM : DSV2_ERR_IO, "%s: %s: %s", name, what, strerror_r(error, text, sizeof text));
}

/* ---- Writing --------------------------------------------------------------------------------------------------------- */

struct out {
    const char *name;
    int fd;                 /* -1: to buf */
    unsigned char *buf;
    unsigned char *section; /* the next section is put together here */
    uint64_t checksum;      /* of the last one */
};

/* Write the section of n bytes with its checksum. */
static dsv2_status emit(struct out *o, size_t n)
{
    o->checksum = dsv2i_hash(o->checksum, o->section, n);
    put(o->section + n, o->checksum, CHECKSUM);
    n += CHECKSUM;
    if (o->fd < 0) {
        memcpy(o->buf, o->section, n);
        o->buf += n;
        return DSV2_OK;
    }
    for (size_t done = 0; done < n;) {
        ssize_t k = write(o->fd, o->section + done, n - done);

        if (k < 0 && errno != EINTR)
            return os_error(o->name, "cannot be written", errno);
        if (k > 0)
            done += (size_t)k;
    }
    return DSV2_OK;
}

static dsv2_status write_sections(struct out *o, const dsv2_session *s, const struct header *h)
{
    unsigned char *p = o->section + N_MAGIC;

    memcpy(o->section, MAGIC, N_MAGIC);
    for (size_t i = 0; i < N_FIELDS; p += fields[i++].bytes) {
        uint64_t v;

        memcpy(&v, (const char *)h + fields[i].at, sizeof v);
        put(p, v, fields[i].bytes);
    }
    DSV2I_TRY(emit(o, HEADER));
    put_words(o->section, s->tokens, (size_t)h->n_tokens);
    DSV2I_TRY(emit(o, (size_t)(4 * h->n_tokens)));
    if (h->n_logits) {
        put_words(o->section, s->logits, (size_t)h->n_logits);
        DSV2I_TRY(emit(o, (size_t)(4 * h->n_logits)));
    }
    for (uint64_t at = 0; at < h->n_tokens; at += h->page_tokens) {
        uint64_t n = h->n_tokens - at < h->page_tokens ? h->n_tokens - at : h->page_tokens;

        DSV2I_TRY(copy_page(s->model->ctx->backend, h, s->kv.data[at / h->page_tokens], o->section, n, 0));
        put(o->section + record_bytes(h, n), dsv2i_kv_forms(&s->kv, (int32_t)(at / h->page_tokens)) & bits(n), FORMS);
        DSV2I_TRY(emit(o, (size_t)record_bytes(h, n) + FORMS));
    }
    return DSV2_OK;
}

static dsv2_status write_session(struct out *o, const dsv2_session *s)
{
    struct header h = describe(s);
    dsv2_status status;

    h.bytes = total_bytes(&h);
    h.model = dsv2i_fingerprint(s->model);
    o->section = new_section(s, &h);
    if (!o->section)
        return no_memory(o->name, &h);
    status = write_sections(o, s, &h);
    dsv2i_free(&s->model->ctx->mem, o->section);
    return status;
}

dsv2_status dsv2i_session_export(const dsv2_session *s, void *buf, size_t capacity, size_t *n)
{
    struct header h = describe(s);
    struct out o = {.name = "session", .fd = -1, .buf = buf};

    *n = (size_t)total_bytes(&h);
    if (capacity < *n)
        return dsv2i_fail(DSV2_ERR_BUFFER, "session: capacity: %zu bytes; %zu are needed", capacity, *n);
    return write_session(&o, s);
}

static int sync_file(int fd)
{
    int rc;

    do
        rc = fsync(fd);
    while (rc && errno == EINTR);
    return rc;
}

/* The open file fd, called temporary, gets the session and the name path. */
static dsv2_status write_and_rename(const dsv2_session *s, const char *path, int fd, const char *temporary)
{
    struct out o = {.name = path, .fd = fd};
    dsv2_status status = write_session(&o, s);

    if (status == DSV2_OK && sync_file(fd))
        status = os_error(path, "cannot be written", errno);
    if (close(fd) && errno != EINTR && status == DSV2_OK)
        status = os_error(path, "cannot be written", errno);
    if (status == DSV2_OK && rename(temporary, path))
        status = os_error(path, "cannot be replaced", errno);
    if (status != DSV2_OK)
        unlink(temporary);
    return status;
}

dsv2_status dsv2i_session_save(const dsv2_session *s, const char *path)
{
    char temporary[PATH_MAX], folder[PATH_MAX];
    const char *slash;
    struct stat st;
    dsv2_status status;
    int dir, fd;

    if (snprintf(temporary, sizeof temporary, "%s.XXXXXX", path) >= (int)sizeof temporary)
        return os_error(path, "cannot be written", ENAMETOOLONG);
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return dsv2i_fail(DSV2_ERR_IO, "%s: not a regular file", path);
    slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return os_error(path, "its folder cannot be opened", errno);
    fd = mkostemp(temporary, O_CLOEXEC);
    status = fd < 0 ? os_error(path, "cannot be written", errno) : write_and_rename(s, path, fd, temporary);
    if (status == DSV2_OK && sync_file(dir) && errno != EINVAL) /* EINVAL: this file system has no such thing */
        status = os_error(path, "written, but its folder cannot be synced", errno);
    close(dir);
    return status;
}

/* ---- Reading --------------------------------------------------------------------------------------------------------- */

struct in {
    const char *name;
    int fd;                 /* -1: from buf */
    const unsigned char *buf;
    uint64_t bytes, at;     /* bytes there are, and read so far */
    uint64_t checksum;      /* of the last section */
};

static dsv2_status read_bytes(struct in *in, unsigned char *to, size_t n)
{
    size_t done = 0;

    if (in->fd < 0) {
        memcpy(to, in->buf + in->at, n);
        done = n;
    }
    while (done < n) {
        ssize_t k = pread(in->fd, to + done, n - done, (off_t)(in->at + done));

        if (k < 0 && errno != EINTR)
            return os_error(in->name, "cannot be read", errno);
        if (k == 0)
            return dsv2i_fail(DSV2_ERR_IO, "%s: ends at byte %llu, where %zu more were expected", in->name,
                              (unsigned long long)(in->at + done), n - done);
        if (k > 0)
            done += (size_t)k;
    }
    in->at += n;
    return DSV2_OK;
}

/* The next section, of n bytes, which are there. */
static dsv2_status take(struct in *in, const char *what, unsigned char *section, size_t n)
{
    uint64_t begin = in->at, stored;

    DSV2I_TRY(read_bytes(in, section, n + CHECKSUM));
    stored = get(section + n, CHECKSUM);
    in->checksum = dsv2i_hash(in->checksum, section, n);
    if (stored != in->checksum)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: checksum of the %zu bytes from %llu: is %016llx, stored is %016llx", in->name, what, n,
                          (unsigned long long)begin, (unsigned long long)in->checksum, (unsigned long long)stored);
    return DSV2_OK;
}

static dsv2_status read_header(struct in *in, struct header *h)
{
    unsigned char section[HEADER + CHECKSUM];
    const unsigned char *p = section + N_MAGIC;
    char quoted[40];

    if (in->bytes < sizeof section)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: size: %llu bytes; a header has %zu", in->name, (unsigned long long)in->bytes,
                          sizeof section);
    DSV2I_TRY(read_bytes(in, section, N_MAGIC + 4));
    if (memcmp(section, MAGIC, N_MAGIC) != 0)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: begins with \"%s\": not a saved session", in->name,
                          dsv2i_quote(quoted, sizeof quoted, (const char *)section, N_MAGIC));
    if (get(p, 4) != VERSION)
        return dsv2i_fail(DSV2_ERR_UNSUPPORTED, "%s: version: %llu; this library reads %d", in->name, (unsigned long long)get(p, 4),
                          VERSION);
    in->at = 0;
    DSV2I_TRY(take(in, "header", section, HEADER));
    for (size_t i = 0; i < N_FIELDS; p += fields[i++].bytes) {
        uint64_t v = get(p, fields[i].bytes);

        memcpy((char *)h + fields[i].at, &v, sizeof v);
    }
    if (h->bytes != in->bytes)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: size: %llu bytes; %llu were written", in->name, (unsigned long long)in->bytes,
                          (unsigned long long)h->bytes);
    return DSV2_OK;
}

struct equal {
    const char *field;
    uint64_t is, wanted;
};

/* Is it a session of this model? */
static dsv2_status check_model(const char *name, const struct header *h, const dsv2_session *s)
{
    struct header own = describe(s);
    struct dsv2i_fingerprint model = dsv2i_fingerprint(s->model);
    const struct equal equal[] = {
        {"num_hidden_layers", h->num_hidden_layers, own.num_hidden_layers},
        {"vocab_size", h->vocab_size, own.vocab_size},
        {"fingerprint of config.json", h->model.config, model.config},
        {"fingerprint of tokenizer.json", h->model.tokenizer, model.tokenizer},
        {"fingerprint of the weights", h->model.weights, model.weights},
    };

    for (size_t i = 0; i < sizeof equal / sizeof *equal; i++)
        if (equal[i].is != equal[i].wanted)
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: is %llu, but that of %s is %llu: saved with another model", name, equal[i].field,
                              (unsigned long long)equal[i].is, s->model->folder, (unsigned long long)equal[i].wanted);
    return DSV2_OK;
}

/* Can this session become it? */
static dsv2_status check_layout(const char *name, const struct header *h, const dsv2_session *s)
{
    struct header own = describe(s);
    const struct equal equal[] = {
        {"kv_format", h->kv_format, own.kv_format},
        {"page_tokens", h->page_tokens, own.page_tokens},
        {"token_bytes", h->token_bytes, own.token_bytes},
    };

    if (h->kv_type != own.kv_type)
        return dsv2i_fail(DSV2_ERR_INVALID, "%s: kv_type: is %llu, but the session's is %llu", name, (unsigned long long)h->kv_type,
                          (unsigned long long)own.kv_type);
    for (size_t i = 0; i < sizeof equal / sizeof *equal; i++)
        if (equal[i].is != equal[i].wanted)
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: %s: is %llu, but must be %llu", name, equal[i].field,
                              (unsigned long long)equal[i].is, (unsigned long long)equal[i].wanted);
    if (h->n_prompt > h->n_tokens)
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: n_prompt: %llu of %llu tokens", name, (unsigned long long)h->n_prompt,
                          (unsigned long long)h->n_tokens);
    if (h->n_logits && (h->n_logits != h->vocab_size || !h->n_tokens))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: n_logits: %llu after %llu tokens; vocab_size is %llu", name,
                          (unsigned long long)h->n_logits, (unsigned long long)h->n_tokens, (unsigned long long)h->vocab_size);
    if (h->n_tokens > (uint64_t)s->n_ctx)
        return dsv2i_fail(DSV2_ERR_CONTEXT_FULL, "%s: n_tokens: %llu do not fit the session's n_ctx %d", name,
                          (unsigned long long)h->n_tokens, s->n_ctx);
    if (h->bytes != total_bytes(h))
        return dsv2i_fail(DSV2_ERR_FORMAT, "%s: size: %llu bytes, but its sections take %llu", name, (unsigned long long)h->bytes,
                          (unsigned long long)total_bytes(h));
    return DSV2_OK;
}

/* The state to come, built beside the one that there is. */
struct state {
    struct dsv2i_kv kv;
    unsigned char *section;
    int32_t *tokens;
    float *logits;
};

static dsv2_status read_sections(struct in *in, const struct header *h, const dsv2_session *s, struct state *to)
{
    DSV2I_TRY(take(in, "tokens", to->section, (size_t)(4 * h->n_tokens)));
    get_words(to->tokens, to->section, (size_t)h->n_tokens);
    for (uint64_t i = 0; i < h->n_tokens; i++)
        if (to->tokens[i] < 0 || to->tokens[i] >= (int64_t)h->vocab_size)
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: tokens[%llu]: %d is not in 0..%llu (vocab_size - 1)", in->name,
                              (unsigned long long)i, to->tokens[i], (unsigned long long)h->vocab_size - 1);
    if (h->n_logits) {
        DSV2I_TRY(take(in, "logits", to->section, (size_t)(4 * h->n_logits)));
        get_words(to->logits, to->section, (size_t)h->n_logits);
    }
    DSV2I_TRY(dsv2i_kv_reserve(&to->kv, 0, (int32_t)h->n_tokens));
    for (uint64_t at = 0; at < h->n_tokens; at += h->page_tokens) {
        uint64_t n = h->n_tokens - at < h->page_tokens ? h->n_tokens - at : h->page_tokens, forms;

        DSV2I_TRY(take(in, "page", to->section, (size_t)record_bytes(h, n) + FORMS));
        forms = get(to->section + record_bytes(h, n), FORMS);
        if (forms & ~bits(n))
            return dsv2i_fail(DSV2_ERR_FORMAT, "%s: page of token %llu: forms of attention: 0x%llx, but it has %llu tokens", in->name,
                              (unsigned long long)at, (unsigned long long)forms, (unsigned long long)n);
        DSV2I_TRY(copy_page(s->model->ctx->backend, h, to->kv.data[at / h->page_tokens], to->section, n, 1));
        dsv2i_kv_set_forms(&to->kv, (int32_t)(at / h->page_tokens), forms);
    }
    return DSV2_OK;
}

static void become(dsv2_session *s, const struct header *h, struct state *from)
{
    struct state old = {.kv = s->kv, .tokens = s->tokens};

    s->kv = from->kv;
    s->kv.foreign = s->kv.n_pages > 0;
    s->tokens = from->tokens;
    s->tokens_capacity = (size_t)h->n_tokens;
    s->pos = (int32_t)h->n_tokens;
    s->n_prompt = (int32_t)h->n_prompt;
    s->has_logits = h->n_logits > 0;
    memcpy(s->logits, from->logits, (size_t)h->n_logits * sizeof *s->logits); /* they keep their address */
    from->kv = old.kv;
    from->tokens = old.tokens;
}

static dsv2_status read_session(struct in *in, dsv2_session *s)
{
    const struct dsv2i_hooks *mem = &s->model->ctx->mem;
    struct header h;
    struct state to = {.section = NULL};
    dsv2_status status;

    DSV2I_TRY(read_header(in, &h));
    DSV2I_TRY(check_model(in->name, &h, s));
    DSV2I_TRY(check_layout(in->name, &h, s));
    dsv2i_kv_init(&to.kv, s->kv.pool);
    to.section = new_section(s, &h);
    to.tokens = dsv2i_alloc(mem, (size_t)h.n_tokens, sizeof *to.tokens);
    to.logits = dsv2i_alloc(mem, (size_t)h.n_logits, sizeof *to.logits);
    status = to.section && to.tokens && to.logits ? read_sections(in, &h, s, &to) : no_memory(in->name, &h);
    if (status == DSV2_OK)
        become(s, &h, &to);
    dsv2i_kv_free(&to.kv);
    dsv2i_free(mem, to.section);
    dsv2i_free(mem, to.tokens);
    dsv2i_free(mem, to.logits);
    return status;
}

dsv2_status dsv2i_session_import(dsv2_session *s, const void *buf, size_t n)
{
    struct in in = {.name = "saved session", .fd = -1, .buf = buf, .bytes = n};

    return read_session(&in, s);
}

dsv2_status dsv2i_session_restore(dsv2_session *s, const char *path)
{
    struct in in = {.name = path};
    struct stat st;
    dsv2_status status;

    do /* O_NONBLOCK: opening a FIFO must not wait for a writer; it means nothing for regular files. */
        in.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    while (in.fd < 0 && errno == EINTR);
    if (in.fd < 0)
        return os_error(path, "cannot be opened", errno);
    if (fstat(in.fd, &st)) {
        status = os_error(path, "cannot be read", errno);
    } else if (!S_ISREG(st.st_mode)) {
        status = dsv2i_fail(DSV2_ERR_IO, "%s: not a regular file", path);
    } else {
        in.bytes = (uint64_t)st.st_size;
        status = read_session(&in, s);
    }
    close(in.fd);
    return status;
}
