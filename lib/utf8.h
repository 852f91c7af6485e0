/* UTF-8, decoded one character at a time.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2I_UTF8_H
#define DSV2I_UTF8_H

#include <stddef.h>
#include <stdint.h>

#define DSV2I_UTF8_CUT UINT32_MAX       /* valid so far, but the bytes end inside the character */
#define DSV2I_UTF8_BAD (UINT32_MAX - 1) /* a maximal subpart of a character, or a byte that begins none */
#define DSV2I_REPLACEMENT "\xEF\xBF\xBD"

/* The character at p, n >= 1 bytes: its length, and *cp its code point or one of the two above with the length of what stands for it. */
static inline size_t dsv2i_utf8_next(const char *p, size_t n, uint32_t *cp)
{
    const unsigned char *s = (const unsigned char *)p;
    unsigned lead = s[0], low = 0x80, high = 0xBF; /* bounds of the second byte: no overlong forms, surrogates, or beyond 10FFFF */
    size_t more;
    uint32_t c;

    if (lead < 0x80) {
        *cp = lead;
        return 1;
    }
    if (lead >= 0xC2 && lead <= 0xDF) {
        more = 1;
        c = lead & 0x1F;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
        more = 2;
        c = lead & 0x0F;
        low = lead == 0xE0 ? 0xA0 : low;
        high = lead == 0xED ? 0x9F : high;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        more = 3;
        c = lead & 0x07;
        low = lead == 0xF0 ? 0x90 : low;
        high = lead == 0xF4 ? 0x8F : high;
    } else {
        *cp = DSV2I_UTF8_BAD;
        return 1;
    }
    for (size_t i = 1; i <= more; i++, low = 0x80, high = 0xBF) {
        if (i == n || s[i] < low || s[i] > high) {
            *cp = i == n ? DSV2I_UTF8_CUT : DSV2I_UTF8_BAD;
            return i;
        }
        c = c << 6 | (s[i] & 0x3F);
    }
    *cp = c;
    return more + 1;
}

/* The same for text that is known to be valid. */
static inline size_t dsv2i_utf8_get(const char *p, uint32_t *cp)
{
    const unsigned char *s = (const unsigned char *)p;

    if (s[0] < 0x80) {
        *cp = s[0];
        return 1;
    }
    if (s[0] < 0xE0) {
        *cp = (uint32_t)(s[0] & 0x1F) << 6 | (s[1] & 0x3F);
        return 2;
    }
    if (s[0] < 0xF0) {
        *cp = (uint32_t)(s[0] & 0x0F) << 12 | (uint32_t)(s[1] & 0x3F) << 6 | (s[2] & 0x3F);
        return 3;
    }
    *cp = (uint32_t)(s[0] & 0x07) << 18 | (uint32_t)(s[1] & 0x3F) << 12 | (uint32_t)(s[2] & 0x3F) << 6 | (s[3] & 0x3F);
    return 4;
}

/* The length of the valid text at the front of n bytes: n when all of it is. */
static inline size_t dsv2i_utf8_valid(const char *text, size_t n)
{
    size_t i = 0;

    while (i < n) {
        uint32_t cp;
        size_t length;

        while (i < n && (unsigned char)text[i] < 0x80)
            i++;
        if (i == n)
            break;
        length = dsv2i_utf8_next(text + i, n - i, &cp);
        if (cp >= DSV2I_UTF8_BAD)
            break;
        i += length;
    }
    return i;
}

/* Write a code point (a scalar value) and return its length, at most 4. */
static inline size_t dsv2i_utf8_put(char *p, uint32_t cp)
{
    if (cp < 0x80) {
        p[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        p[0] = (char)(0xC0 | cp >> 6);
        p[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        p[0] = (char)(0xE0 | cp >> 12);
        p[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        p[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    p[0] = (char)(0xF0 | cp >> 18);
    p[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    p[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    p[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

#endif
