/* Products of many rows, the permutation of a mixture's rows and its experts, against the same in double.
 *
 * Tolerances.  Products of two bf16 numbers are exact in fp32; a sum of c columns is rounded once for every 16, each time by at most 2^-24
 * of a partial sum, for which a few times the final sums' size stands: sums() below.  The weights of the reference are those that the
 * kernels define, bf16(code * scale).  Where a kernel rounds a sum to bf16 on the way, so does the reference; now and then the two round to
 * different neighbours, at most 2^-7 of it apart, which may be seen in few elements only.
 *
 * SPDX-License-Identifier: MIT */
#include "checks.h"

#include <algorithm>

namespace {

double sums(int cols) { return (cols / 16 + 4) * 4 * 0x1p-24; }

uint16_t to_bf16(double x)
{
    float f = (float)x;
    uint32_t bits;

    memcpy(&bits, &f, 4);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

double rounded(double x) { return ref_bf16(to_bf16(x)); }

/* Elements of a row and a column that share a scale: a kind each checkpoint may have. */
struct Kind {
    const char *name;
    int32_t dtype, rows, cols; /* 0: all */
};
const Kind bf16 = {"bf16", DSV2I_BF16, 0, 0}, tensor = {"e4m3 by tensor", DSV2I_F8_E4M3, 0, 0}, row = {"e4m3 by row", DSV2I_F8_E4M3, 1, 0},
           block = {"e4m3 by block", DSV2I_F8_E4M3, 128, 128}, small = {"e4m3 by block of 3 x 32", DSV2I_F8_E4M3, 3, 32};

/* A weight in device memory, and its elements as the kernels multiply them. */
struct Matrix {
    std::vector<double> value;
    dsv2i_weight device = {};

    Matrix(const Kind &kind, int rows, int cols)
    {
        const float size = 1 / sqrtf((float)cols);
        const int scale_rows = kind.rows ? kind.rows : rows, scale_cols = kind.cols ? kind.cols : cols;
        const int across = (cols - 1) / scale_cols + 1, down = (rows - 1) / scale_rows + 1;
        std::vector<float> scale;
        std::vector<uint16_t> half;
        std::vector<uint8_t> code;

        for (int i = 0; i < across * down; i++)
            scale.push_back(uniform(0.5f, 2) * size);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < cols; c++)
                if (kind.dtype == DSV2I_BF16) {
                    half.push_back(to_bf16((double)uniform(-2, 2) * (double)size));
                    value.push_back(ref_bf16(half.back()));
                } else { /* every fourth row is of subnormal codes */
                    code.push_back((uint8_t)((int)uniform(0, r % 4 == 1 ? 8 : 0x44) | (uniform(-1, 1) < 0 ? 0x80 : 0)));
                    float f = (float)(ref_kv_code(code.back(), DSV2I_KV_F8_E4M3)
                                      * (double)scale[(size_t)(r / scale_rows * across + c / scale_cols)]);
                    value.push_back(rounded((double)f));
                }
        device.dtype = kind.dtype;
        device.rows = rows;
        device.cols = cols;
        device.scale_rows = scale_rows;
        device.scale_cols = scale_cols;
        device.scale = up(scale);
        device.data = kind.dtype == DSV2I_BF16 ? (void *)up(half) : (void *)up(code);
    }

    /* (rows) = this x */
    std::vector<double> times(const double *x) const
    {
        std::vector<double> y;
        for (int r = 0; r < device.rows; r++) {
            double sum = 0;
            for (int c = 0; c < device.cols; c++)
                sum += value[(size_t)(r * device.cols + c)] * x[c];
            y.push_back(sum);
        }
        return y;
    }
};

/* Rows of activations: fp32, those past the first n NaN; and rounded as narrow shall round them. */
struct Rows {
    std::vector<float> full;
    std::vector<double> value;
    Rows(int n, int more, int width) : full(normals((size_t)(n * width)))
    {
        for (float f : full)
            value.push_back(rounded((double)f));
        full.resize((size_t)((n + more) * width), NAN);
    }
};

/* A row's bits are compared for launches of all of max_rows, each of which may choose another tile. */
void check_linear(const Kind &kind, int n, int rows, int cols, std::vector<int> max_rows, int n_sms = 4, int invariant = 1)
{
    const int greatest = *std::max_element(max_rows.begin(), max_rows.end()), more = std::max(3, greatest - n);
    Step step(zeros(n), {}, {}, 1, 2);
    Rows x(n, more, cols);
    const Matrix w(kind, rows, cols);
    std::vector<float> start = normals((size_t)((n + more) * rows)), first;
    std::vector<double> want;
    const float *x_device = up(x.full);

    for (int i = 0; i < n; i++) {
        std::vector<double> y = w.times(&x.value[(size_t)(i * cols)]);
        want.insert(want.end(), y.begin(), y.end());
    }
    for (int most : max_rows) {
        Step now(zeros(std::min(n, most)), {}, {}, 1, 2);
        const size_t size = (size_t)(now.rows * rows);
        const bool all = first.empty();
        dsv2i_cuda_launch to = launch_for(most);
        to.n_sms = n_sms;
        to.invariant = invariant;
        uint16_t *x_half = unset<uint16_t>(x.full.size()), *y_half = unset<uint16_t>(start.size());
        float *y = unset<float>(start.size()), *y_more = up(start);

        dsv2i_cuda_narrow(&to, now.device, x_half, x_device, DSV2I_BF16, cols);
        expect(dsv2i_cuda_linear_many(&to, now.device, y, DSV2I_F32, x_half, &w.device, 0) == cudaSuccess, "launch");
        if (all)
            expect(dsv2i_cuda_linear_many(&to, now.device, y_half, DSV2I_BF16, x_half, &w.device, 0) == cudaSuccess, "launch");
        if (all)
            expect(dsv2i_cuda_linear_many(&to, now.device, y_more, DSV2I_F32, x_half, &w.device, 1) == cudaSuccess, "launch");
        std::vector<float> got = down(y, start.size()), more_of_it = down(y_more, start.size());
        std::vector<uint16_t> half = down(y_half, start.size());
        for (size_t i = 0; all && i < start.size(); i++) {
            expect(i < size ? half[i] == to_bf16((double)got[i]) : is_unset(half[i]), "max_rows %d: bf16 %04x at %zu", most, half[i], i);
            expect(more_of_it[i] == (i < size ? start[i] + got[i] : start[i]), "max_rows %d: accumulated %g at %zu", most,
                   (double)more_of_it[i], i);
        }
        if (first.empty())
            first = got;
        for (size_t i = 0; i < std::min(size, first.size()); i++)
            expect(is_unset(first[i]) || !memcmp(&first[i], &got[i], 4), "max_rows %d: other bits at %zu", most, i);
        close_to(got, std::vector<double>(want.begin(), want.begin() + (long)size), sums(cols));
    }
}

/* What is not a number stays in its row or column. */
void check_nan(const Kind &kind)
{
    const int n = 20, rows = 70, cols = 96;
    Step step(zeros(n), {}, {}, 1, 2);
    Rows x(n, 3, cols);
    const Matrix w(kind, rows, cols);
    dsv2i_cuda_launch to = launch_for(n + 3);
    std::vector<unsigned char> bytes = down((const unsigned char *)w.device.data, (size_t)(rows * cols) * dsv2i_dtype_size(kind.dtype));
    uint16_t *x_half = unset<uint16_t>(x.full.size());
    float *y = unset<float>((size_t)((n + 3) * rows));
    dsv2i_weight spoilt = w.device;

    x.full[5 * cols + 3] = NAN;
    x.full[6 * cols + 40] = INFINITY;
    if (kind.dtype == DSV2I_BF16) {
        bytes[2 * (33 * cols + 8)] = 0xC0;
        bytes[2 * (33 * cols + 8) + 1] = 0x7F;
    } else {
        bytes[33 * cols + 8] = 0xFF;
    }
    spoilt.data = up(bytes);
    dsv2i_cuda_narrow(&to, step.device, x_half, up(x.full), DSV2I_BF16, cols);
    expect(dsv2i_cuda_linear_many(&to, step.device, y, DSV2I_F32, x_half, &spoilt, 0) == cudaSuccess, "launch");
    std::vector<float> got = down(y, (size_t)(n * rows));
    for (int i = 0; i < n; i++)
        for (int r = 0; r < rows; r++) {
            float v = got[(size_t)(i * rows + r)];
            bool zero = w.value[(size_t)(r * cols + 40)] == 0;

            expect(std::isnan(v) == (i == 5 || r == 33 || (i == 6 && zero)), "row %d, column %d: %g", i, r, (double)v);
            if (i == 6 && r != 33 && !zero)
                expect(std::isinf(v), "row %d, column %d: %g", i, r, (double)v);
        }
}

/* Experts of n rows: even, or most rows to few. */
std::vector<int32_t> choose(int n, int top_k, int n_experts, bool even)
{
    std::vector<int32_t> idx;
    for (int i = 0; i < n; i++) {
        std::vector<int32_t> mine;
        while ((int)mine.size() < top_k) {
            float u = uniform(0, 1);
            int32_t e = (int32_t)((even ? u : u * u * u * u) * (float)n_experts);
            if (std::find(mine.begin(), mine.end(), e) == mine.end())
                mine.push_back(e);
        }
        idx.insert(idx.end(), mine.begin(), mine.end());
    }
    return idx;
}

void check_permute(int n, int top_k, int n_experts, int tile_rows, bool even, int more = 3)
{
    Step step(zeros(n), {}, {}, 1, 2);
    std::vector<int32_t> idx = choose(n, top_k, n_experts, even), order;
    dsv2i_cuda_launch to = launch_for(n + more);
    const size_t entries = (size_t)((n + more) * top_k), tiles = entries / (size_t)tile_rows + std::min((size_t)n_experts, entries);
    dsv2i_cuda_permutation p = {unset<int32_t>(entries), unset<dsv2i_cuda_tile>(tiles), unset<int32_t>(3)};

    for (int32_t i = 0; i < n * top_k; i++)
        order.push_back(i);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return idx[(size_t)a] < idx[(size_t)b]; });
    std::vector<int32_t> given = idx;
    given.resize(entries, 1 << 30);
    expect(dsv2i_cuda_moe_permute(&to, step.device, &p, up(given), top_k, n_experts, tile_rows) == cudaSuccess, "launch");
    std::vector<int32_t> got = down(p.entry, entries);
    std::vector<dsv2i_cuda_tile> tile = down(p.tile, tiles);
    size_t used = (size_t)down(p.n_tiles, 1)[0], at = 0;
    for (size_t i = 0; i < entries; i++)
        expect(i < order.size() ? got[i] == order[i] : is_unset(got[i]), "entry %zu: %d", i, got[i]);
    expect(used <= tiles, "%zu tiles", used);
    for (size_t t = 0; t < used && !case_failed; t++) {
        size_t end = at + (size_t)tile[t].count;
        expect(tile[t].first == (int32_t)at && tile[t].count > 0 && tile[t].count <= tile_rows && end <= order.size(), "tile %zu", t);
        for (size_t i = at; i < end && !case_failed; i++)
            expect(idx[(size_t)order[i]] == tile[t].expert, "tile %zu: of another expert", t);
        bool last = end == order.size() || idx[(size_t)order[end]] != tile[t].expert;
        expect(tile[t].count == tile_rows || last, "tile %zu ends early", t);
        at = end;
    }
    expect(at == order.size(), "tiles of %zu entries", at);
    for (size_t t = used; t < tiles; t++)
        expect(is_unset(tile[t]), "wrote past the last tile");
}

/* n_experts of 0: a dense layer. */
void check_experts(const Kind &kind, int n, int top_k, int n_experts, int hidden, int inter, std::vector<int> max_rows, bool even = true,
                   int invariant = 1)
{
    const int greatest = *std::max_element(max_rows.begin(), max_rows.end()), more = std::max(3, greatest - n), held = std::max(n_experts, 1);
    Rows x(n, more, hidden);
    std::vector<float> start = normals((size_t)((n + more) * hidden)), weight = normals((size_t)((n + more) * top_k)), first;
    std::vector<int32_t> idx = choose(n, top_k, held, even);
    std::vector<std::vector<Matrix>> experts;
    std::vector<dsv2i_cuda_expert> table;
    std::vector<double> want, size_of; /* and the sum of the slots' magnitudes */
    const float *x_device = up(x.full);

    idx.resize((size_t)((n + more) * top_k), 1 << 30);
    for (int e = 0; e < held; e++) {
        experts.push_back({Matrix(kind, inter, hidden), Matrix(kind, inter, hidden), Matrix(kind, hidden, inter)});
        const std::vector<Matrix> &m = experts.back();
        table.push_back({m[0].device.data, m[1].device.data, m[2].device.data, m[0].device.scale, m[1].device.scale, m[2].device.scale});
    }
    const dsv2i_cuda_experts of = {up(table), n_experts, kind.dtype, hidden, inter,
                                   {experts[0][0].device.scale_rows, experts[0][0].device.scale_cols},
                                   {experts[0][2].device.scale_rows, experts[0][2].device.scale_cols}};
    for (int i = 0; i < n; i++) {
        std::vector<double> y((size_t)hidden), all((size_t)hidden);
        for (int j = 0; j < top_k; j++) {
            const std::vector<Matrix> &m = experts[n_experts ? (size_t)idx[(size_t)(i * top_k + j)] : 0];
            std::vector<double> gate = m[0].times(&x.value[(size_t)(i * hidden)]), h = m[1].times(&x.value[(size_t)(i * hidden)]);
            for (size_t k = 0; k < h.size(); k++)
                h[k] = rounded(gate[k] / (1 + exp(-gate[k])) * h[k]);
            std::vector<double> out = m[2].times(h.data());
            for (size_t k = 0; k < y.size(); k++) {
                double slot = n_experts ? (double)weight[(size_t)(i * top_k + j)] * rounded(out[k]) : out[k];
                y[k] += slot;
                all[k] += fabs(slot);
            }
        }
        size_of.insert(size_of.end(), all.begin(), all.end());
        for (size_t k = 0; k < y.size(); k++)
            want.push_back(y[k] + (double)start[(size_t)(i * hidden) + k]);
    }
    for (int most : max_rows) {
        Step now(zeros(std::min(n, most)), {}, {}, 1, 2);
        const size_t size = (size_t)(now.rows * hidden);
        dsv2i_cuda_launch to = launch_for(most);
        to.invariant = invariant;
        uint16_t *x_half = unset<uint16_t>(x.full.size());
        float *y = up(start), *weight_device = n_experts ? up(weight) : nullptr;
        int32_t *idx_device = n_experts ? up(idx) : nullptr;
        unsigned char *scratch = unset<unsigned char>(dsv2i_cuda_experts_many_scratch(most, top_k, &of));

        dsv2i_cuda_narrow(&to, now.device, x_half, x_device, DSV2I_BF16, hidden);
        expect(dsv2i_cuda_experts_many(&to, now.device, y, x_half, &of, idx_device, weight_device, top_k, scratch) == cudaSuccess, "launch");
        std::vector<float> got = down(y, start.size());
        for (size_t i = size; i < got.size(); i++)
            expect(got[i] == start[i], "max_rows %d: wrote past the last row", most);
        if (first.empty())
            first.assign(got.begin(), got.begin() + (long)size);
        for (size_t i = 0; i < std::min(size, first.size()); i++)
            expect(!memcmp(&first[i], &got[i], 4), "max_rows %d: other bits at %zu", most, i);
        double square = 0;
        size_t apart = 0;
        for (size_t i = 0; i < size; i++)
            square += want[i] * want[i] / (double)size;
        /* Where a row has many h, of most rows one is the other neighbour, 2^-8 of it apart, and the greatest of them are some 16 times as
         * large as most: that is seen in all that it is multiplied with. */
        const double flips = (double)hidden * inter >= 1 << 20 ? 0x1p-4 / sqrt(inter) : 0;
        for (size_t i = 0; i < size; i++) {
            double error = fabs((double)got[i] - want[i]);
            apart += error > (sums(hidden) + sums(inter) + flips) * fmax(fabs(want[i]), sqrt(square));
            expect(error <= 0x1p-7 * (size_of[i] + sqrt(square)), "max_rows %d: error %.3g at %zu: %.9g for %.9g", most, error, i, (double)got[i],
                   want[i]);
        }
        expect(apart <= 2 + size / 20, "max_rows %d: %zu of %zu elements are off", most, apart, size);
    }
}

}

int main()
{
    for (const Kind &kind : {bf16, tensor, row, block, small}) {
        const std::string of = std::string(", ") + kind.name;
        const bool all = kind.dtype == DSV2I_BF16 || kind.rows == 3;

        run("linear_many, a few rows" + of, all ? 2 : 1, [=] {
            check_linear(kind, 5, 40, 512, {5, 30});                         /* 16 x 32, 32 x 64 */
            check_linear(kind, 16, 530, 80, all ? std::vector<int>{16, 60} : std::vector<int>{16}); /* 16 x 64, 64 x 64; tails of both */
        });
        run("linear_many, 200 rows" + of, 1, [=] {
            check_linear(kind, 200, 200, 176, all ? std::vector<int>{200, 1, 40} : std::vector<int>{200}); /* 128 x 128 */
            if (all)
                check_linear(kind, 140, 200, 176, {140, 300}, 6); /* 64 x 128 */
        });
        if (all) {
            run("linear_many, warpgroups" + of, 2, [=] { /* so many steps that stages are used again */
                check_linear(kind, 70, 200, 400, {130}, 1, 0);     /* 128 x 128 of e4m3, 128 x 256 of bf16 */
                if (kind.dtype == DSV2I_BF16)
                    check_linear(kind, 60, 200, 464, {130}, 4, 0); /* 128 x 128 */
            });
        }
        run("linear_many, rows that are not aligned" + of, 1, [=] {
            check_linear(kind, 18, 67, 77, {18, 1});
            check_linear(kind, 3, 3, kind.dtype == DSV2I_BF16 ? 6 : 40, {3});
        });
        run("NaN" + of, 1, [=] { check_nan(kind); });
    }
    run("linear_many, 96 x 2048", 1, [] { check_linear(bf16, 1, 96, 2048, {1}); });
    run("linear_many, 48 x 10944", 1, [] { check_linear(bf16, 1, 48, 10944, {1}); });

    run("moe_permute", 2, [] {
        for (int tile_rows : {16, 128})
            for (bool even : {true, false}) {
                check_permute(1, 6, 64, tile_rows, even);
                check_permute(37, 6, 160, tile_rows, even);
                check_permute(300, 6, 64, tile_rows, even, 0);
                check_permute(5, 3, 5, tile_rows, even);
            }
        check_permute(1, 1, 1, 64, true);
        check_permute(600, 1, 1, 64, true);
    });
    run("moe_permute, 4096 rows, 512 experts", 1, [] { check_permute(4096, 8, 512, 16, false); });

    for (const Kind &kind : {bf16, tensor, row, block}) {
        const std::string of = std::string(", ") + kind.name;

        const bool all = kind.dtype == DSV2I_BF16 || kind.rows == 128;

        if (all)
            run("experts_many, 64 experts" + of, 1, [=] { check_experts(kind, 40, 6, 64, 80, 48, {40, 1, 200}); });
        run("experts_many, 160 experts" + of, 1, [=] { check_experts(kind, 30, 6, 160, 48, 32, {30}, false); });
        if (all)
            run("experts_many, two get most rows" + of, 1, [=] { check_experts(kind, 150, 2, 6, 144, 96, {150, 450, 40}, false); });
        if (all)
            run("experts_many, warpgroups" + of, 1, [=] {
                check_experts(kind, 20, 2, 6, 336, 72, {300}, true, 0);
                check_experts(kind, 130, 1, 0, 80, 336, {130}, true, 0);
            });
        run("experts_many, odd widths" + of, 1, [=] { check_experts(kind, 20, 3, 8, 77, 45, {20, 1}); });
        run("a dense layer" + of, 1, [=] { check_experts(kind, 135, 1, 0, 80, 208, {135, 10, 33, 70}); });
    }
    run("experts_many, widths of V2-Lite", 1, [] {
        check_experts(bf16, 3, 2, 3, 2048, 48, {3});
        check_experts(bf16, 3, 2, 3, 64, 1408, {3});
    });
    run("a dense layer, odd widths", 1, [] { check_experts(bf16, 18, 1, 0, 21, 35, {18, 1}); });
#ifndef DSV2I_EMULATED /* where it costs nothing: sizes at which all of a card is used */
    for (const Kind &kind : {bf16, block}) {
        const std::string of = std::string(", ") + kind.name;

        run("linear_many, all of a card" + of, 1, [=] {
            check_linear(kind, 700, 1056, 2048, {700, 703, 4096}, 132);
            check_linear(kind, 33, 24576, 512, {33, 64}, 132);
        });
        run("experts_many, all of a card" + of, 1, [=] { check_experts(kind, 300, 6, 64, 512, 352, {300, 303, 4096}, false); });
        run("experts_many, widths of V2" + of, 1, [=] { check_experts(kind, 24, 6, 8, 5120, 1536, {24}, false); });
    }
#endif
    return finish();
}
