/* Matrix products of a warpgroup (kernels/cuda/wgmma.cuh).
 *
 * Each thread works out its own part, from shared memory as it is when the product is issued, or not before the wait that asks for it:
 * that is drawn.  Until then d is NaN.  It does not see what was stored to shared memory since the last dsv2i_fence_async.
 *
 * SPDX-License-Identifier: MIT */
#include "machine.h"

#include <copy_emulated.h>
#include <wgmma_emulated.h>

#include <convert.cuh>

#include <algorithm>

namespace emu {

static double element(const char *shared, uint32_t at)
{
    uint16_t x;

    if (!in_shared(shared + at, 2))
        fail("wgmma: the matrix goes past the block's shared memory");
    std::memcpy(&x, seen_at(block_transactions(), shared + at), 2);
    return dsv2i_f32_from_bf16(x);
}

/* Of element k of row (A) or column (B) i, by the manual's canonical layouts. */
static uint32_t address(uint64_t matrix, unsigned i, unsigned k, bool along_n)
{
    static const unsigned units_of[4] = {1, 8, 4, 2}; /* of 16 bytes, in a row of a tile */
    uint32_t start = (uint32_t)(matrix & 0x3FFF) << 4, leading = (uint32_t)(matrix >> 16 & 0x3FFF) << 4;
    uint32_t stride = (uint32_t)(matrix >> 32 & 0x3FFF) << 4, units = units_of[matrix >> 62], at;

    if (!along_n)
        at = start + i % 8 * 16 * units + i / 8 * stride + k / 8 * (units == 1 ? leading : 16) + k % 8 * 2;
    else if (units == 1)
        at = start + i / 8 * stride + k % 8 * 16 + k / 8 * leading + i % 8 * 2;
    else
        at = start + i / 8 % units * 16 + i / 8 / units * leading + k % 8 * 16 * units + k / 8 * stride + i % 8 * 2;
    return at ^ ((at >> 7 & (units - 1)) << 4);
}

static void multiply(Product *p)
{
    const char *shared = static_cast<const char *>(shared_memory());
    unsigned warp = threadIdx.x / 32 % 4, g = lane() / 4, t = lane() % 4;

    double a[2][16], b[16]; /* of rows g and g + 8; of a column, two of each eight */

    for (unsigned r = 0; r < 2; r++)
        for (unsigned k = 0; k < 16; k++)
            a[r][k] = p->a_in_registers ? dsv2i_f32_from_bf16(p->a[g + 8 * r][k])
                                        : element(shared, address(p->a_at, 16 * warp + g + 8 * r, k, false));
    for (unsigned c = 0; c < p->n / 4; c++) {
        for (unsigned k = 0; k < 16; k++)
            b[k] = element(shared, address(p->b_at, 8 * (c / 2) + 2 * t + c % 2, k, p->b_along_n));
        for (unsigned r = 0; r < 2; r++) {
            float *d = p->d + 4 * (c / 2) + 2 * r + c % 2;
            double sum = p->accumulate ? *d : 0;
            for (unsigned k = 0; k < 16; k++)
                sum += a[r][k] * b[k];
            *d = (float)sum;
        }
    }
}

/* What late products will read and write is NaN until then. */
static void hide(Products *products)
{
    for (Product &p : products->pending)
        if (!products->hidden.count(p.d)) {
            products->hidden[p.d].assign(p.d, p.d + p.n / 2);
            std::fill(p.d, p.d + p.n / 2, NAN);
        }
}

/* Those of groups before end, in order. */
static void finish(Products *products, unsigned end)
{
    size_t n = 0;

    for (auto &h : products->hidden)
        std::copy(h.second.begin(), h.second.end(), h.first);
    products->hidden.clear();
    while (n < products->pending.size() && products->pending[n].group < end)
        multiply(&products->pending[n++]);
    products->pending.erase(products->pending.begin(), products->pending.begin() + (long)n);
    hide(products);
}

void meet_warp(const char *what) { meet(0xFFFFFFFF, nullptr, 0, what); }

void wgmma_fence()
{
    meet_warp("wgmma.fence");
    thread_products()->fenced = true;
}

void wgmma_commit()
{
    meet_warp("wgmma.commit_group");
    thread_products()->group++;
}

void wgmma_wait(unsigned but_for)
{
    Products *products = thread_products();

    meet_warp("wgmma.wait_group");
    products->fenced = false;
    if (products->group > but_for)
        finish(products, products->group - but_for);
}

void wgmma(float *d, unsigned n, const uint32_t *registers, uint64_t a_at, uint64_t b_at, bool b_along_n, bool accumulate)
{
    Products *products = thread_products();
    Product p = {};

    if (machine.major != 9)
        fail("wgmma: the card is sm_%d%d", machine.major, machine.minor);
    if (!products->fenced)
        fail("wgmma: no fence since the last wait");
    uint32_t given[4] = {};
    if (registers)
        std::memcpy(given, registers, sizeof given);
    const unsigned char *all = meet(0xFFFFFFFF, given, sizeof given, "wgmma");
    for (unsigned l = 0; l < 32; l++)
        for (unsigned i = 0; i < 4; i++)
            std::memcpy(&p.a[l / 4 + 8 * (i % 2)][2 * (l % 4) + 8 * (i / 2)], all + 16 * l + 4 * i, 4);
    p.d = d;
    p.n = n;
    p.a_in_registers = registers;
    p.a_at = a_at;
    p.b_at = b_at;
    p.b_along_n = b_along_n;
    p.accumulate = accumulate;
    p.group = products->group;
    if (products->pending.empty() && draw(2)) { /* else behind those that are late */
        multiply(&p);
        return;
    }
    products->pending.push_back(p);
    hide(products);
}

}
