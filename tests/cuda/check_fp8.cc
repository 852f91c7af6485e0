/* Weights of F8_E4M3 in the kernels for few rows, and their widening, against the same in double: every code, every shape of scale block.
 *
 * SPDX-License-Identifier: MIT */
#include "checks.h"

namespace {

struct Shape {
    int rows, cols; /* elements that share a scale; 0: all of them */
};
const Shape whole = {0, 0}, rowwise = {1, 0}, blocks = {128, 128}, small_blocks = {3, 96}, least = {5, 32};

/* A weight of every finite code, with scales so that elements are about as great as those of Weight; each block's scale is another. */
struct Fp8 {
    std::vector<uint8_t> code;
    std::vector<float> scale;
    dsv2i_weight host = {}, device;
    Fp8(Shape shape, int rows, int cols, float size) : code((size_t)(rows * cols))
    {
        host.dtype = DSV2I_F8_E4M3;
        host.rows = rows;
        host.cols = cols;
        host.scale_rows = shape.rows ? shape.rows : rows;
        host.scale_cols = shape.cols ? shape.cols : cols;
        scale.resize((size_t)(((rows - 1) / host.scale_rows + 1) * ((cols - 1) / host.scale_cols + 1)));
        for (float &s : scale)
            s = size * uniform(0.25f, 1.75f) / 188;
        for (uint8_t &c : code) {
            const int i = (int)uniform(0, 254);
            c = (uint8_t)(i < 127 ? i : i + 1); /* without 0x7F and 0xFF */
        }
        update();
    }
    Fp8(Fp8 &&) = default; /* host's pointers are those of the vectors, which move */
    void update()
    {
        device = host;
        host.data = code.data();
        host.scale = scale.data();
        device.data = up(code);
        device.scale = up(scale);
    }
};

dsv2i_cuda_scales scales_of(const Fp8 &w) { return {w.host.scale_rows, w.host.scale_cols}; }

void check_linear(Shape shape, int n, int rows, int cols, int accumulate)
{
    const Fp8 w(shape, rows, cols, 1);

    check_linear_few(w.host, w.device, n, accumulate, false);
}

/* Rows of x with one number each: the products with one element, to the last bit, which shows where the scale's product is rounded. */
void check_exact(Shape shape, int cols)
{
    const int n = 5, rows = 260;
    Step step(zeros(n), {}, {}, 1, 2);
    Fp8 w(shape, rows, cols, 1);
    std::vector<float> x((size_t)(n * cols)), some = normals((size_t)n);
    dsv2i_cuda_launch to = step.launch();
    float *y = unset<float>((size_t)(n * rows));
    auto hot = [&](int i) { return (i * 31 + 94) % cols; };

    for (size_t i = 0; i < w.code.size(); i++)
        w.code[i] = (uint8_t)(i % (size_t)cols + i / (size_t)cols); /* every code in a column of 256 */
    for (uint8_t &c : w.code)
        c = (c & 0x7F) == 0x7F ? 0x80 : c;
    w.update();
    for (int i = 0; i < n; i++)
        x[(size_t)(i * cols + hot(i))] = some[(size_t)i];
    expect(dsv2i_cuda_linear_few(&to, step.device, y, up(x), &w.device, 0) == cudaSuccess, "launch");
    std::vector<float> got = down(y, (size_t)(n * rows));
    for (int i = 0; i < n; i++)
        for (int r = 0; r < rows; r++) {
            float want = (float)((double)some[(size_t)i] * ref_value(&w.host, (size_t)(r * cols + hot(i))));
            expect(got[(size_t)(i * rows + r)] == want, "row %d, element %d: %.9g for %.9g", i, r, (double)got[(size_t)(i * rows + r)],
                   (double)want);
        }
}

/* A NaN code makes its row NaN, an infinite x makes what it meets infinite, and nothing else. */
void check_not_numbers(int cols)
{
    const int n = 2, rows = 13;
    Step step(zeros(n), {}, {}, 1, 2);
    Fp8 w(least, rows, cols, 1);
    std::vector<float> x = normals((size_t)(n * cols));
    dsv2i_cuda_launch to = step.launch();
    float *y = unset<float>((size_t)(n * rows));

    for (int r = 0; r < rows; r++)
        w.code[(size_t)(r * cols + cols - 1)] = (uint8_t)(r % 2 ? 0xC0 : 0x01);
    w.code[(size_t)(3 * cols + cols - 3)] = 0x7F;
    w.code[(size_t)(6 * cols)] = 0xFF;
    w.update();
    x[(size_t)(cols + cols - 1)] = INFINITY;
    expect(dsv2i_cuda_linear_few(&to, step.device, y, up(x), &w.device, 0) == cudaSuccess, "launch");
    std::vector<float> got = down(y, (size_t)(n * rows));
    for (int i = 0; i < n; i++)
        for (int r = 0; r < rows; r++) {
            float v = got[(size_t)(i * rows + r)];
            expect(std::isnan(v) == (r == 3 || r == 6), "row %d, element %d: %g", i, r, (double)v);
            expect(std::isnan(v) || (i ? v == (r % 2 ? -INFINITY : INFINITY) : std::isfinite(v)), "row %d, element %d: %g", i, r,
                   (double)v);
        }
}

/* routed: rows choose among three experts, some twice the same; else one dense layer. */
void check_experts(Shape shape, int n, int top_k, int hidden, int inter, bool routed)
{
    const int n_experts = routed ? 3 : 1;
    Step step(zeros(n), {}, {}, 1, 2), alone(zeros(1), {}, {}, 1, 2);
    std::vector<float> x = normals((size_t)((n + 3) * hidden)), start = normals((size_t)((n + 3) * hidden));
    std::vector<float> weight = normals((size_t)((n + 3) * top_k));
    std::vector<Fp8> w;
    std::vector<dsv2i_cuda_expert> table;
    std::vector<int32_t> idx;
    std::vector<double> xd(x.begin(), x.end()), want(start.begin(), start.begin() + n * hidden), part((size_t)hidden);
    dsv2i_cuda_launch to = step.launch(), one = launch_for(1);

    for (int e = 0; e < n_experts; e++) {
        w.emplace_back(shape, inter, hidden, 1 / sqrtf((float)hidden));
        w.emplace_back(shape, inter, hidden, 1 / sqrtf((float)hidden));
        w.emplace_back(shape, hidden, inter, 1 / sqrtf((float)inter));
        const dsv2i_weight &gate = w[(size_t)(3 * e)].device, &up = w[(size_t)(3 * e + 1)].device, &down = w[(size_t)(3 * e + 2)].device;
        table.push_back({gate.data, up.data, down.data, gate.scale, up.scale, down.scale});
    }
    for (int i = 0; i < (n + 3) * top_k; i++)
        idx.push_back(i < n * top_k ? (i * 2 + i / top_k) % n_experts : 1 << 30); /* past the last row: what nobody may use */
    float *x_device = up(x), *y = up(start), *y_alone = up(start), *h = unset<float>((size_t)((n + 3) * top_k * inter));
    int32_t *idx_device = routed ? up(idx) : nullptr;
    float *weight_device = routed ? up(weight) : nullptr;
    dsv2i_cuda_expert *table_device = up(table);
    auto run = [&](const dsv2i_cuda_launch *on, const dsv2i_cuda_step *rows, float *out) {
        expect(dsv2i_cuda_experts_few(on, rows, out, x_device, h, table_device, idx_device, weight_device, top_k, DSV2I_F8_E4M3, hidden,
                                      inter, scales_of(w[0]), scales_of(w[2])) == cudaSuccess, "launch");
    };
    run(&to, step.device, y);
    run(&one, alone.device, y_alone);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < top_k; j++) {
            const size_t e = 3 * (size_t)(routed ? idx[(size_t)(i * top_k + j)] : 0);
            const dsv2i_ffn ffn = {w[e].host, w[e + 1].host, w[e + 2].host, nullptr};
            ref_ffn(part.data(), &xd[(size_t)(i * hidden)], &ffn);
            for (int k = 0; k < hidden; k++)
                want[(size_t)(i * hidden + k)] += part[(size_t)k] * (routed ? (double)weight[(size_t)(i * top_k + j)] : 1.0);
        }
    std::vector<float> got = down(y, start.size()), single = down(y_alone, start.size());
    for (size_t i = want.size(); i < got.size(); i++)
        expect(got[i] == start[i], "wrote past the last row");
    for (int i = 0; i < hidden; i++)
        expect(!memcmp(&got[(size_t)i], &single[(size_t)i], 4), "other bits alone at %d", i);
    got.resize(want.size());
    close_to(got, want, 2e-6);
}

/* Elements as bf16: the nearest, and of two the even one. */
void check_widened(const dsv2i_weight &host, const dsv2i_weight &device)
{
    const size_t n = (size_t)host.rows * (size_t)host.cols;
    dsv2i_cuda_launch to = launch_for(1);
    uint16_t *wide = unset<uint16_t>(n + 8);

    expect(dsv2i_cuda_widen(&to, wide, &device) == cudaSuccess, "launch");
    std::vector<uint16_t> got = down(wide, n + 8);
    for (size_t i = 0; i < n; i++) {
        double want = ref_value(&host, i), at = ref_bf16(got[i]);
        double below = ref_bf16((uint16_t)(got[i] - 1)), above = ref_bf16((uint16_t)(got[i] + 1));
        double error = fabs(at - want), best = fmin(fabs(below - want), fabs(above - want));

        if (std::isnan(want))
            expect(std::isnan(at), "%g for NaN at %zu", at, i);
        else /* zero has no neighbours that way; a tie is even */
            expect(want == 0 ? got[i] % 0x8000 == 0 : error < best || (!(error > best) && got[i] % 2 == 0), "%g for %g at %zu", at, want,
                   i);
    }
    for (size_t i = n; i < got.size(); i++)
        expect(is_unset(got[i]), "wrote past the end");
}

void check_widen(Shape shape, int rows, int cols)
{
    Fp8 w(shape, rows, cols, 1);

    for (size_t i = 0; i < 256; i++)
        w.code[i * 3 % w.code.size()] = (uint8_t)i;
    w.update();
    check_widened(w.host, w.device);
}

void check_widen_plain(int dtype)
{
    const Weight w(dtype, 21, 300, 1);
    dsv2i_weight device = w.host;

    device.data = w.device;
    check_widened(w.host, device);
}

}

int main()
{
    const struct {
        const char *name;
        Shape shape;
    } shapes[] = {{"one scale", whole}, {"a scale a row", rowwise}, {"128 x 128", blocks}, {"3 x 96", small_blocks}, {"5 x 32", least}};

    for (const auto &s : shapes) {
        run("linear_few, " + std::string(s.name), 2, [&] {
            check_linear(s.shape, 1, 37, 1536, 0);
            check_linear(s.shape, 3, 150, 1004, 1); /* tails of a piece and of a block */
            check_linear(s.shape, 9, 9, 1408, 0);
            check_linear(s.shape, 2, 11, 99, 0); /* by single elements */
        });
        run("linear_few to the bit, " + std::string(s.name), 1, [&] {
            check_exact(s.shape, 516);
            check_exact(s.shape, 333);
        });
        run("experts_few, " + std::string(s.name), 1, [&] {
            check_experts(s.shape, 2, 6, 72, 1408, true);
            check_experts(s.shape, 1, 2, 140, 99, true);
            check_experts(s.shape, 3, 1, 50, 700, false);
        });
        run("widen, " + std::string(s.name), 2, [&] { check_widen(s.shape, 131, 512); });
    }
    for (int cols : {512, 100, 35})
        run("linear_few, NaN and infinity, " + std::to_string(cols), 2, [=] { check_not_numbers(cols); });
    run("linear_few, widths of V2-Lite and V2", 1, [] {
        for (int cols : {1408, 1536, 2048, 5120})
            check_linear(blocks, 2, 130, cols, 0);
    });
    run("linear_few, one warp for a row", 1, [] { check_linear(blocks, 1, 8203, 40, 0); });
    run("experts_few, widths of V2-Lite", 1, [] {
        check_experts(blocks, 1, 1, 2048, 40, true);
        check_experts(blocks, 1, 1, 40, 2816, false);
    });
    run("experts_few, widths of V2", 1, [] {
        check_experts(blocks, 1, 2, 5120, 24, true);
        check_experts(blocks, 1, 10, 16, 1536, true);
    });
    for (int dtype : {DSV2I_F32, DSV2I_F16})
        run("widen, dtype " + std::to_string(dtype), 2, [=] { check_widen_plain(dtype); });
    return finish();
}
