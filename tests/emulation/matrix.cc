/* Matrix products of a warp: the lanes exchange what they hold, and each works out its own part.
 *
 * SPDX-License-Identifier: MIT */
#include "machine.h"

#include <matrix_emulated.h>

#include <convert.cuh>

namespace emu {

void ldmatrix(uint32_t *r, unsigned tiles, bool trans, const void *row)
{
    unsigned char given[16] = {}, rows[32][16];
    unsigned g = lane() / 4, t = lane() % 4;

    /* Each lane reads its row as it comes: what another has not written by then, nothing orders before it. */
    if (lane() < 8 * tiles) {
        if (reinterpret_cast<uintptr_t>(row) % 16)
            fail("ldmatrix: row at %p is not aligned to 16 bytes", row);
        if (!in_shared(row, 16))
            fail("ldmatrix: row at %p is not in the block's shared memory", row);
        std::memcpy(given, row, 16);
    }
    static const char *const names[2][5] = {{"", "ldmatrix.x1", "ldmatrix.x2", "", "ldmatrix.x4"},
                                            {"", "ldmatrix.x1.trans", "ldmatrix.x2.trans", "", "ldmatrix.x4.trans"}};
    std::memcpy(rows, meet(0xFFFFFFFF, given, 16, names[trans][tiles]), sizeof rows);
    for (unsigned i = 0; i < tiles; i++) {
        uint16_t pair[2];
        for (unsigned j = 0; j < 2; j++)
            std::memcpy(&pair[j], trans ? rows[8 * i + 2 * t + j] + 2 * g : rows[8 * i + g] + 2 * (2 * t + j), 2);
        r[i] = pair[0] | (uint32_t)pair[1] << 16;
    }
}

/* What the warp holds: A's 16 rows and B's 8 columns, 32 bytes each (kernels/cuda/matrix.cuh). */
struct Operands {
    unsigned char a[16][32], b[8][32];
};

static Operands exchange(const uint32_t *a, const uint32_t *b, const char *what)
{
    uint32_t given[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const unsigned char *all = meet(0xFFFFFFFF, given, sizeof given, what);
    Operands o;

    for (unsigned l = 0; l < 32; l++, all += sizeof given) {
        unsigned g = l / 4, t = l % 4;
        for (unsigned i = 0; i < 4; i++)
            std::memcpy(o.a[g + 8 * (i % 2)] + 4 * t + 16 * (i / 2), all + 4 * i, 4);
        for (unsigned i = 0; i < 2; i++)
            std::memcpy(o.b[g] + 4 * t + 16 * i, all + 16 + 4 * i, 4);
    }
    return o;
}

static unsigned size_of(Type type) { return type == Type::tf32 ? 4 : type == Type::bf16 || type == Type::f16 ? 2 : 1; }

static double element(const unsigned char *row, unsigned i, Type type)
{
    uint32_t x = 0;

    std::memcpy(&x, row + size_of(type) * i, size_of(type)); /* the first bytes are the low ones */
    switch (type) {
    case Type::bf16: return dsv2i_f32_from_bf16((uint16_t)x);
    case Type::f16: return dsv2i_f32_from_f16((uint16_t)x);
    case Type::tf32: return __uint_as_float(x & ~0x1FFFu); /* the others are not read */
    case Type::e4m3: return dsv2i_f32_from_e4m3((uint8_t)x);
    case Type::e5m2: return dsv2i_f32_from_e5m2((uint8_t)x);
    }
    return 0;
}

/* The sum is rounded once: hardware, which keeps fewer bits of it, is less exact than this in a way that it does not say. */
void mma(float *d, const uint32_t *a, Type of_a, const uint32_t *b, Type of_b)
{
    static const char *const names[] = {"mma bf16", "mma f16", "mma tf32", "mma e4m3", "mma e5m2"};
    bool fp8 = size_of(of_a) == 1;

    if (machine.major * 10 + machine.minor < (fp8 ? 89 : 80))
        fail("%s: the card is sm_%d%d", names[(int)of_a], machine.major, machine.minor);
    Operands o = exchange(a, b, names[(int)of_a]);
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = lane() / 4 + 8 * (i / 2), column = 2 * (lane() % 4) + i % 2;
        double sum = d[i];
        for (unsigned k = 0; k < 32 / size_of(of_a); k++)
            sum += element(o.a[row], k, of_a) * element(o.b[column], k, of_b);
        d[i] = (float)sum;
    }
}

void mma_s8(int32_t *d, const uint32_t *a, const uint32_t *b)
{
    Operands o = exchange(a, b, "mma s8");

    for (unsigned i = 0; i < 4; i++) {
        unsigned row = lane() / 4 + 8 * (i / 2), column = 2 * (lane() % 4) + i % 2;
        uint32_t sum = (uint32_t)d[i]; /* wraps */
        for (unsigned k = 0; k < 32; k++)
            sum += (uint32_t)((int8_t)o.a[row][k] * (int8_t)o.b[column][k]);
        d[i] = (int32_t)sum;
    }
}

}
