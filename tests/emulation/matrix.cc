/* Matrix products of a warp: the lanes exchange what they hold, and each works out its own part.
 *
 * SPDX-License-Identifier: MIT */
#include "machine.h"

#include <matrix_emulated.h>

#include <convert.cuh>

namespace emu {

void ldmatrix(uint32_t *r, unsigned tiles, bool trans, const void *row)
{
    unsigned char given[16] = {};
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
    const unsigned char *rows = meet(0xFFFFFFFF, given, 16, names[trans][tiles]);
    for (unsigned i = 0; i < tiles; i++) {
        uint16_t pair[2];
        for (unsigned j = 0; j < 2; j++)
            std::memcpy(&pair[j], rows + (trans ? 16 * (8 * i + 2 * t + j) + 2 * g : 16 * (8 * i + g) + 2 * (2 * t + j)), 2);
        r[i] = pair[0] | (uint32_t)pair[1] << 16;
    }
}

/* What a lane's part of D is made of: two of A's 16 rows, g and g + 8, and two of B's 8 columns, 2 t and 2 t + 1, 32 bytes each
 * (kernels/cuda/matrix.cuh). */
struct Operands {
    unsigned char a[2][32], b[2][32];
};

static Operands exchange(const uint32_t *a, const uint32_t *b, const char *what)
{
    const uint32_t given[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const unsigned char *all = meet(0xFFFFFFFF, given, sizeof given, what);
    const unsigned row = lane() / 4, column = 2 * (lane() % 4);
    Operands o;

    for (unsigned t = 0; t < 4; t++) {
        const unsigned char *of_row = all + sizeof given * (4 * row + t);
        for (unsigned i = 0; i < 4; i++)
            std::memcpy(o.a[i % 2] + 4 * t + 16 * (i / 2), of_row + 4 * i, 4);
        for (unsigned i = 0; i < 4; i++)
            std::memcpy(o.b[i % 2] + 4 * t + 16 * (i / 2), all + sizeof given * (4 * (column + i % 2) + t) + 16 + 4 * (i / 2), 4);
    }
    return o;
}

static unsigned size_of(Type type) { return type == Type::tf32 ? 4 : type == Type::bf16 || type == Type::f16 ? 2 : 1; }

template <class T> static T load(const unsigned char *from, unsigned i)
{
    T x;

    std::memcpy(&x, from + sizeof x * i, sizeof x);
    return x;
}

/* The numbers of 32 bytes. */
static void widen(double (&to)[32], const unsigned char *from, Type type)
{
    for (unsigned i = 0; i < 32 / size_of(type); i++)
        switch (type) {
        case Type::bf16: to[i] = dsv2i_f32_from_bf16(load<uint16_t>(from, i)); break;
        case Type::f16: to[i] = dsv2i_f32_from_f16(load<uint16_t>(from, i)); break;
        case Type::tf32: to[i] = __uint_as_float(load<uint32_t>(from, i) & ~0x1FFFu); break; /* the others are not read */
        case Type::e4m3: to[i] = dsv2i_f32_from_e4m3(from[i]); break;
        case Type::e5m2: to[i] = dsv2i_f32_from_e5m2(from[i]); break;
        }
}

/* The sum is rounded once: hardware, which keeps fewer bits of it, is less exact than this in a way that it does not say. */
void mma(float *d, const uint32_t *a, Type of_a, const uint32_t *b, Type of_b)
{
    static const char *const names[] = {"mma bf16", "mma f16", "mma tf32", "mma e4m3", "mma e5m2"};
    bool fp8 = size_of(of_a) == 1;

    if (machine.major * 10 + machine.minor < (fp8 ? 89 : 80))
        fail("%s: the card is sm_%d%d", names[(int)of_a], machine.major, machine.minor);
    const Operands o = exchange(a, b, names[(int)of_a]);
    double rows[2][32], columns[2][32];
    for (unsigned i = 0; i < 2; i++) {
        widen(rows[i], o.a[i], of_a);
        widen(columns[i], o.b[i], of_b);
    }
    for (unsigned i = 0; i < 4; i++) {
        double sum = d[i];
        for (unsigned k = 0; k < 32 / size_of(of_a); k++)
            sum += rows[i / 2][k] * columns[i % 2][k];
        d[i] = (float)sum;
    }
}

void mma_s8(int32_t *d, const uint32_t *a, const uint32_t *b)
{
    Operands o = exchange(a, b, "mma s8");

    for (unsigned i = 0; i < 4; i++) {
        uint32_t sum = (uint32_t)d[i]; /* wraps */
        for (unsigned k = 0; k < 32; k++)
            sum += (uint32_t)((int8_t)o.a[i / 2][k] * (int8_t)o.b[i % 2][k]);
        d[i] = (int32_t)sum;
    }
}

}
