/* The tokens of a tokenizer: bytes by id, id by bytes.
 * SPDX-License-Identifier: MIT */
#include "vocab.h"

#include <string.h>

#include "hash.h"
#include "utf8.h"

dsv2_status dsv2i_vocab_init(struct dsv2i_vocab *v, const struct dsv2i_hooks *mem, int32_t n, size_t text_bytes)
{
    size_t slots = 16;

    while (slots < 2 * (size_t)n)
        slots *= 2;
    *v = (struct dsv2i_vocab){.mem = mem, .n = n, .capacity = text_bytes, .mask = slots - 1};
    v->tokens = dsv2i_calloc(mem, (size_t)n, sizeof *v->tokens);
    v->text = dsv2i_alloc(mem, text_bytes, 1);
    v->table = dsv2i_calloc(mem, slots, sizeof *v->table);
    if (!v->tokens || !v->text || !v->table)
        return dsv2i_fail(DSV2_ERR_NOMEM, "no memory for a vocabulary of %d tokens", n);
    v->seed = dsv2i_hash_seed(v->table);
    return DSV2_OK;
}

void dsv2i_vocab_free(struct dsv2i_vocab *v)
{
    dsv2i_free(v->mem, v->tokens);
    dsv2i_free(v->mem, v->text);
    dsv2i_free(v->mem, v->table);
}

size_t dsv2i_vocab_memory(const struct dsv2i_vocab *v)
{
    return (size_t)v->n * sizeof *v->tokens + v->capacity + (v->mask + 1) * sizeof *v->table;
}

/* Printable characters of Latin-1 stand for their own byte; the other 68 bytes, in order, are U+0100, U+0101, ... */
static int byte_of(uint32_t cp)
{
    if ((cp >= 0x21 && cp <= 0x7E) || (cp >= 0xA1 && cp <= 0xAC) || (cp >= 0xAE && cp <= 0xFF))
        return (int)cp;
    if (cp < 0x100 || cp > 0x143)
        return -1;
    cp -= 0x100;
    return (int)(cp <= 0x20 ? cp : cp <= 0x42 ? cp - 0x21 + 0x7F : 0xAD);
}

size_t dsv2i_vocab_decode(const char *string, size_t n, char *out, int *raw)
{
    size_t bytes = 0;
    uint32_t cp;

    *raw = 0;
    for (size_t i = 0; i < n; i += dsv2i_utf8_get(string + i, &cp)) {
        int byte;

        dsv2i_utf8_get(string + i, &cp);
        byte = byte_of(cp);
        if (byte < 0) {
            memcpy(out, string, n);
            *raw = 1;
            return n;
        }
        out[bytes++] = (char)byte;
    }
    return bytes;
}

static size_t first_slot(const struct dsv2i_vocab *v, const char *bytes, size_t n, int raw)
{
    return (size_t)dsv2i_hash(v->seed + (uint64_t)raw, bytes, n) & v->mask;
}

void dsv2i_vocab_put(struct dsv2i_vocab *v, int32_t id, const char *bytes, size_t n, uint32_t flags)
{
    size_t i = first_slot(v, bytes, n, (flags & DSV2I_TOKEN_RAW) != 0);

    while (v->table[i])
        i = (i + 1) & v->mask;
    v->table[i] = (uint32_t)id + 1;
    v->tokens[id] = (struct dsv2i_token){(uint32_t)v->n_text, (uint32_t)n, flags | DSV2I_TOKEN_HERE};
    memcpy(v->text + v->n_text, bytes, n);
    v->n_text += n;
}

int32_t dsv2i_vocab_find(const struct dsv2i_vocab *v, const char *bytes, size_t n, int raw)
{
    for (size_t i = first_slot(v, bytes, n, raw); v->table[i]; i = (i + 1) & v->mask) {
        const struct dsv2i_token *t = &v->tokens[v->table[i] - 1];

        if (t->n == n && ((t->flags & DSV2I_TOKEN_RAW) != 0) == raw && !memcmp(v->text + t->offset, bytes, n))
            return (int32_t)(v->table[i] - 1);
    }
    return -1;
}
