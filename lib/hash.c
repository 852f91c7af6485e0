/* XXH64: stripes of 32 bytes through four lanes, then what is left, then the avalanche.
 * SPDX-License-Identifier: MIT */
#include "hash.h"

#include <string.h>
#include <time.h>

#define P1 0x9E3779B185EBCA87u
#define P2 0xC2B2AE3D27D4EB4Fu
#define P3 0x165667B19E3779F9u
#define P4 0x85EBCA77C2B2AE63u
#define P5 0x27D4EB2F165667C5u

static uint64_t rotate(uint64_t x, int n)
{
    return x << n | x >> (64 - n);
}

/* Little-endian whatever the machine. */
static uint64_t read(const unsigned char *p, int n)
{
    uint64_t x = 0;

    for (int i = 0; i < n; i++)
        x |= (uint64_t)p[i] << 8 * i;
    return x;
}

static uint64_t round_of(uint64_t lane, uint64_t input)
{
    return rotate(lane + input * P2, 31) * P1;
}

static void stripe(uint64_t lane[4], const unsigned char *p)
{
    for (int i = 0; i < 4; i++)
        lane[i] = round_of(lane[i], read(p + 8 * i, 8));
}

void dsv2i_hash_begin(struct dsv2i_hasher *h, uint64_t seed)
{
    *h = (struct dsv2i_hasher){.lane = {seed + P1 + P2, seed + P2, seed, seed - P1}, .seed = seed};
}

void dsv2i_hash_add(struct dsv2i_hasher *h, const void *data, size_t n)
{
    const unsigned char *p = data;
    size_t held = h->total % 32, fill = 32 - held < n ? 32 - held : n;

    if (!n)
        return;
    h->total += n;
    if (held) {
        memcpy(h->held + held, p, fill);
        p += fill;
        n -= fill;
        if (held + fill < 32)
            return;
        stripe(h->lane, h->held);
    }
    for (; n >= 32; n -= 32, p += 32)
        stripe(h->lane, p);
    if (n)
        memcpy(h->held, p, n);
}

uint64_t dsv2i_hash_end(const struct dsv2i_hasher *h)
{
    const unsigned char *p = h->held;
    size_t n = h->total % 32;
    uint64_t x = h->seed + P5;

    if (h->total >= 32) {
        x = rotate(h->lane[0], 1) + rotate(h->lane[1], 7) + rotate(h->lane[2], 12) + rotate(h->lane[3], 18);
        for (int i = 0; i < 4; i++)
            x = (x ^ round_of(0, h->lane[i])) * P1 + P4;
    }
    x += h->total;
    for (; n >= 8; n -= 8, p += 8)
        x = rotate(x ^ round_of(0, read(p, 8)), 27) * P1 + P4;
    if (n >= 4) {
        x = rotate(x ^ read(p, 4) * P1, 23) * P2 + P3;
        p += 4;
        n -= 4;
    }
    for (; n; n--, p++)
        x = rotate(x ^ *p * P5, 11) * P1;
    x = (x ^ x >> 33) * P2;
    x = (x ^ x >> 29) * P3;
    return x ^ x >> 32;
}

uint64_t dsv2i_hash(uint64_t seed, const void *data, size_t n)
{
    struct dsv2i_hasher h;

    dsv2i_hash_begin(&h, seed);
    dsv2i_hash_add(&h, data, n);
    return dsv2i_hash_end(&h);
}

uint64_t dsv2i_hash_seed(const void *place)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return dsv2i_hash((uint64_t)now.tv_nsec ^ (uint64_t)now.tv_sec << 30, &place, sizeof place);
}
