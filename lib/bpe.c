/* Byte-pair merging by rank.
 * SPDX-License-Identifier: MIT
 *
 * A piece begins as one symbol per byte; the adjacent pair of lowest rank is merged, the leftmost one of equals, until no pair has a rank.
 * Nearly all pieces are a word long: for them two small arrays and a linear search for the lowest rank beat everything else.  A long piece
 * (a megabyte of one letter is one piece) takes a list of symbols and a heap of pairs, O(n log n). */
#include "bpe.h"

#include <string.h>

#include "hash.h"

enum { SHORT = 64 };
#define NO_RANK UINT32_MAX
#define NONE UINT32_MAX

struct dsv2i_symbol {
    int32_t id;
    uint32_t previous, next;    /* NONE at the ends */
    uint32_t rank;              /* of the pair with next; NO_RANK: there is none */
    int32_t result;
};

dsv2_status dsv2i_ids_put(struct dsv2i_ids *ids, int32_t id)
{
    if (ids->n == ids->capacity) {
        size_t capacity = ids->capacity ? ids->capacity * 2 : 64;
        int32_t *grown = dsv2i_realloc(ids->mem, ids->at, capacity, sizeof *grown);

        if (!grown)
            return dsv2i_fail(DSV2_ERR_NOMEM, "no memory for %zu token ids", capacity);
        ids->at = grown;
        ids->capacity = capacity;
    }
    ids->at[ids->n++] = id;
    return DSV2_OK;
}

dsv2_status dsv2i_bpe_init(struct dsv2i_bpe *bpe, const struct dsv2i_hooks *mem, size_t n_merges)
{
    int bits = 4;

    while (bits < 40 && ((size_t)1 << bits) / 2 < n_merges)
        bits++;
    memset(bpe, 0, sizeof *bpe);
    bpe->mem = mem;
    bpe->mask = ((size_t)1 << bits) - 1;
    bpe->shift = 64 - bits;
    memset(bpe->byte_id, 0xFF, sizeof bpe->byte_id);
    bpe->table = dsv2i_alloc(mem, bpe->mask + 1, sizeof *bpe->table);
    if (!bpe->table)
        return dsv2i_fail(DSV2_ERR_NOMEM, "no memory for %zu merges", n_merges);
    bpe->multiplier = dsv2i_hash_seed(bpe->table) | 1;
    memset(bpe->table, 0xFF, (bpe->mask + 1) * sizeof *bpe->table);
    return DSV2_OK;
}

void dsv2i_bpe_free(struct dsv2i_bpe *bpe)
{
    dsv2i_free(bpe->mem, bpe->table);
    bpe->table = NULL;
}

size_t dsv2i_bpe_memory(const struct dsv2i_bpe *bpe)
{
    return (bpe->mask + 1) * sizeof *bpe->table;
}

static inline uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

/* The slot that holds a pair, or the empty one where it would go. */
static inline struct dsv2i_merge *slot_of(const struct dsv2i_bpe *bpe, uint64_t pair)
{
    size_t i = (size_t)((pair ^ pair >> 29) * bpe->multiplier >> bpe->shift);

    while (bpe->table[i].pair != pair && bpe->table[i].pair != UINT64_MAX)
        i = (i + 1) & bpe->mask;
    return &bpe->table[i];
}

int dsv2i_bpe_add(struct dsv2i_bpe *bpe, int32_t left, int32_t right, uint32_t rank, int32_t result)
{
    struct dsv2i_merge *slot = slot_of(bpe, pair_of(left, right));

    if (slot->pair != UINT64_MAX)
        return 0;
    *slot = (struct dsv2i_merge){pair_of(left, right), rank, result};
    return 1;
}

/* An empty slot has rank NO_RANK, as it is all ones. */
static inline const struct dsv2i_merge *merge_of(const struct dsv2i_bpe *bpe, int32_t left, int32_t right)
{
    return slot_of(bpe, pair_of(left, right));
}

static dsv2_status encode_short(const struct dsv2i_bpe *bpe, const char *piece, size_t length, struct dsv2i_ids *out)
{
    int32_t ids[SHORT], results[SHORT];
    uint32_t ranks[SHORT]; /* ranks[i] is for ids[i], ids[i + 1] */
    size_t n = 0;

    for (size_t i = 0; i < length; i++) {
        ids[n] = bpe->byte_id[(unsigned char)piece[i]];
        n += ids[n] >= 0;
    }
    for (size_t i = 0; i + 1 < n; i++) {
        const struct dsv2i_merge *merge = merge_of(bpe, ids[i], ids[i + 1]);

        ranks[i] = merge->rank;
        results[i] = merge->result;
    }
    if (n) { /* the last symbol has no pair, but moves with the others */
        ranks[n - 1] = NO_RANK;
        results[n - 1] = -1;
    }
    while (n > 1) {
        size_t best = 0;

        for (size_t i = 1; i + 1 < n; i++)
            best = ranks[i] < ranks[best] ? i : best;
        if (ranks[best] == NO_RANK)
            break;
        ids[best] = results[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            ranks[i] = ranks[i + 1];
            results[i] = results[i + 1];
        }
        for (size_t i = best ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const struct dsv2i_merge *merge = merge_of(bpe, ids[i], ids[i + 1]);

            ranks[i] = merge->rank;
            results[i] = merge->result;
        }
    }
    for (size_t i = 0; i < n; i++)
        DSV2I_TRY(dsv2i_ids_put(out, ids[i]));
    return DSV2_OK;
}

/* Binary min-heap of rank << 32 | position. */
static void sift_down(uint64_t *heap, size_t n, size_t i)
{
    uint64_t value = heap[i];

    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        child += child + 1 < n && heap[child + 1] < heap[child];
        if (heap[child] >= value)
            break;
        heap[i] = heap[child];
    }
    heap[i] = value;
}

static void sift_up(uint64_t *heap, size_t i)
{
    uint64_t value = heap[i];

    for (; i && heap[(i - 1) / 2] > value; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = value;
}

static void rate(const struct dsv2i_bpe *bpe, struct dsv2i_symbol *symbols, uint32_t i)
{
    uint32_t next = symbols[i].next;

    symbols[i].rank = NO_RANK;
    if (next != NONE) {
        const struct dsv2i_merge *merge = merge_of(bpe, symbols[i].id, symbols[next].id);

        symbols[i].rank = merge->rank;
        symbols[i].result = merge->result;
    }
}

static dsv2_status encode_long(const struct dsv2i_bpe *bpe, struct dsv2i_bpe_work *work, const char *piece, size_t length,
                               struct dsv2i_ids *out)
{
    struct dsv2i_symbol *s;
    uint64_t *heap;
    size_t n = 0, n_heap = 0;

    if (length >= INT32_MAX)
        return dsv2i_fail(DSV2_ERR_LIMIT, "a piece of %zu bytes without a border is over the limit of %d", length, INT32_MAX);
    if (work->capacity < length) {
        work->mem = bpe->mem;
        dsv2i_bpe_work_free(work);
        /* a merge takes one entry out and puts at most two in, and there are fewer merges than symbols */
        work->symbols = dsv2i_alloc(bpe->mem, length, sizeof *s);
        work->heap = dsv2i_alloc(bpe->mem, length, 2 * sizeof *heap);
        if (!work->symbols || !work->heap)
            return dsv2i_fail(DSV2_ERR_NOMEM, "no memory to encode a piece of %zu bytes", length);
        work->capacity = length;
    }
    s = work->symbols;
    heap = work->heap;
    for (size_t i = 0; i < length; i++) {
        int32_t id = bpe->byte_id[(unsigned char)piece[i]];

        if (id >= 0) {
            s[n] = (struct dsv2i_symbol){id, n ? (uint32_t)n - 1 : NONE, (uint32_t)n + 1, NO_RANK, -1};
            n++;
        }
    }
    if (!n)
        return DSV2_OK;
    s[n - 1].next = NONE;
    for (uint32_t i = 0; i < n; i++) {
        rate(bpe, s, i);
        if (s[i].rank != NO_RANK)
            heap[n_heap++] = (uint64_t)s[i].rank << 32 | i;
    }
    for (size_t i = n_heap / 2; i-- > 0;)
        sift_down(heap, n_heap, i);
    while (n_heap) {
        uint32_t rank = (uint32_t)(heap[0] >> 32), i = (uint32_t)heap[0], right;

        heap[0] = heap[--n_heap];
        if (n_heap)
            sift_down(heap, n_heap, 0);
        if (s[i].rank != rank) /* the pair has changed since */
            continue;
        right = s[i].next;
        s[i].id = s[i].result;
        s[i].next = s[right].next;
        s[right].rank = NO_RANK;
        if (s[i].next != NONE)
            s[s[i].next].previous = i;
        for (uint32_t k = s[i].previous != NONE ? s[i].previous : i;; k = i) {
            rate(bpe, s, k);
            if (s[k].rank != NO_RANK) {
                heap[n_heap] = (uint64_t)s[k].rank << 32 | k;
                sift_up(heap, n_heap++);
            }
            if (k == i)
                break;
        }
    }
    for (uint32_t i = 0; i != NONE; i = s[i].next)
        DSV2I_TRY(dsv2i_ids_put(out, s[i].id));
    return DSV2_OK;
}

dsv2_status dsv2i_bpe_encode(const struct dsv2i_bpe *bpe, struct dsv2i_bpe_work *work, const char *piece, size_t n,
                             struct dsv2i_ids *out)
{
    return n <= SHORT ? encode_short(bpe, piece, n, out) : encode_long(bpe, work, piece, n, out);
}

void dsv2i_bpe_work_free(struct dsv2i_bpe_work *work)
{
    dsv2i_free(work->mem, work->symbols);
    dsv2i_free(work->mem, work->heap);
    *work = (struct dsv2i_bpe_work){.mem = work->mem};
}
