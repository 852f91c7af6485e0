/* Every kernel of the CUDA backend by itself, on shapes that are real wherever it tiles or branches, against the same in double.
 *
 * SPDX-License-Identifier: MIT */
#include "checks.h"

namespace {

void check_rope(int rope)
{
    Step step({0, 1, 4095, 163839}, {}, {}, 1, rope);
    std::vector<double> f = frequencies(rope), want;
    dsv2i_cuda_launch to = step.launch();

    expect(dsv2i_cuda_rope(&to, step.device, rope, 1.25) == cudaSuccess, "launch");
    for (int p : step.pos)
        for (double w : f) {
            want.push_back(cos(p * w) * 1.25);
            want.push_back(sin(p * w) * 1.25);
        }
    close_to(down(step.host.rope, (size_t)((step.rows + 3) * rope)), want, 1e-7);
}

void check_embed(int dtype, int hidden)
{
    const int vocab = 300;
    Step step(zeros(3), {0, 299, 17}, {}, 1, 2);
    std::vector<float> table = normals((size_t)(vocab * hidden));
    std::vector<uint16_t> half(table.size());
    std::vector<double> want;
    dsv2i_cuda_launch to = step.launch();
    float *x = unset<float>((size_t)((step.rows + 3) * hidden));
    dsv2i_weight w = {};

    for (size_t i = 0; i < table.size(); i++) {
        uint32_t bits;
        memcpy(&bits, &table[i], 4);
        half[i] = dtype == DSV2I_BF16 ? (uint16_t)(bits >> 16) : (uint16_t)(i * 7919); /* f16: every pattern, of which NaN are left out */
        if (dtype == DSV2I_F16 && (half[i] & 0x7C00) == 0x7C00)
            half[i] ^= 0x4000;
    }
    w.dtype = dtype;
    w.rows = vocab;
    w.cols = hidden;
    w.data = dtype == DSV2I_F32 ? (void *)table.data() : (void *)half.data();
    const void *on_device = dtype == DSV2I_F32 ? (void *)up(table) : (void *)up(half);
    expect(dsv2i_cuda_embed(&to, step.device, x, on_device, dtype, hidden) == cudaSuccess, "launch");
    for (int t : {0, 299, 17})
        for (int i = 0; i < hidden; i++)
            want.push_back(ref_value(&w, (size_t)(t * hidden + i)));
    close_to(down(x, (size_t)((step.rows + 3) * hidden)), want, 0);
}

void check_norm(int rows, int dim, int extra, float scale)
{
    Step step(zeros(rows), {}, {}, 1, 2);
    int ld = dim + extra;
    std::vector<float> x = normals((size_t)((rows + 3) * ld), scale), w = normals((size_t)dim);
    std::vector<double> xd(x.begin(), x.end()), wd(w.begin(), w.end()), want((size_t)(rows * dim));
    dsv2i_cuda_launch to = step.launch();
    float *y = unset<float>((size_t)((rows + 3) * dim));
    uint16_t *half = unset<uint16_t>((size_t)((rows + 3) * dim));

    expect(dsv2i_cuda_rms_norm(&to, step.device, y, dim, half, up(x), ld, up(w), dim, 1e-6f) == cudaSuccess, "launch");
    for (int i = 0; i < rows; i++)
        ref_rms_norm(&want[(size_t)(i * dim)], &xd[(size_t)(i * ld)], wd.data(), dim, 1e-6);
    std::vector<float> got = down(y, (size_t)((rows + 3) * dim));
    std::vector<uint16_t> rounded = down(half, got.size());
    close_to(got, want, 1e-6);
    for (size_t i = 0; i < want.size(); i++)
        expect(fabs(ref_bf16(rounded[i]) - (double)got[i]) <= fabs((double)got[i]) * 0x1p-8, "bf16 %zu: %g for %g", i, ref_bf16(rounded[i]),
               (double)got[i]);
    for (size_t i = want.size(); i < rounded.size(); i++)
        expect(is_unset(rounded[i]), "wrote past the last row");
}

void check_linear(int dtype, int n, int rows, int cols, int accumulate, bool exact = false)
{
    const Weight w(dtype, rows, cols, 1);
    dsv2i_weight on_device = w.host;

    on_device.data = w.device;
    check_linear_few(w.host, on_device, n, accumulate, exact);
}

/* routed: rows choose among five experts, some twice the same; else one dense layer. */
void check_experts(int dtype, int n, int top_k, int hidden, int inter, bool routed)
{
    const int n_experts = routed ? 5 : 1;
    Step step(zeros(n), {}, {}, 1, 2), alone(zeros(1), {}, {}, 1, 2);
    std::vector<float> x = normals((size_t)((n + 3) * hidden)), start = normals((size_t)((n + 3) * hidden));
    std::vector<float> weight = normals((size_t)((n + 3) * top_k));
    std::vector<std::vector<Weight>> experts;
    std::vector<dsv2i_cuda_expert> table;
    std::vector<int32_t> idx;
    std::vector<double> xd(x.begin(), x.end()), want(start.begin(), start.begin() + n * hidden), part((size_t)hidden);
    dsv2i_cuda_launch to = step.launch(), one = launch_for(1);

    for (int e = 0; e < n_experts; e++) {
        std::vector<Weight> w;
        w.reserve(3);
        w.emplace_back(dtype, inter, hidden, 1 / sqrtf((float)hidden));
        w.emplace_back(dtype, inter, hidden, 1 / sqrtf((float)hidden));
        w.emplace_back(dtype, hidden, inter, 1 / sqrtf((float)inter));
        table.push_back({w[0].device, w[1].device, w[2].device, nullptr, nullptr, nullptr});
        experts.push_back(std::move(w));
    }
    for (int i = 0; i < (n + 3) * top_k; i++)
        idx.push_back(i < n * top_k ? (i * 3 + i / top_k) % n_experts : 1 << 30); /* past the last row: what nobody may use */
    float *x_device = up(x), *y = up(start), *y_alone = up(start), *h = unset<float>((size_t)((n + 3) * top_k * inter));
    int32_t *idx_device = routed ? up(idx) : nullptr;
    float *weight_device = routed ? up(weight) : nullptr;
    dsv2i_cuda_expert *table_device = up(table);
    auto run = [&](const dsv2i_cuda_launch *on, const dsv2i_cuda_step *rows, float *out) {
        expect(dsv2i_cuda_experts_few(on, rows, out, x_device, h, table_device, idx_device, weight_device, top_k, dtype, hidden, inter,
                                      {}, {}) == cudaSuccess, "launch");
    };
    run(&to, step.device, y);
    run(&one, alone.device, y_alone);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < top_k; j++) {
            const std::vector<Weight> &w = experts[(size_t)(routed ? idx[(size_t)(i * top_k + j)] : 0)];
            const dsv2i_ffn ffn = {w[0].host, w[1].host, w[2].host, nullptr};
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

void check_prepare(int heads, int nope, int rank, int rope, dsv2i_backend *cpu)
{
    const std::vector<int32_t> pos = {0, 63, 64, 1000, 5, 6, 7, 8, 9}, types = {0, 1, 2, 3, 4, 5, 5, 4, 2};
    const int rows = (int)pos.size(), layer = 1, width = rank + rope, head = nope + rope;
    const size_t page_bytes = 2 * DSV2I_PAGE_TOKENS * (size_t)(4 * width + 64);
    Step step(pos, {}, types, page_bytes, rope);
    std::vector<float> q = normals((size_t)((rows + 3) * heads * head)), kva = normals((size_t)((rows + 3) * width)), w = normals((size_t)rank);
    std::vector<double> f = frequencies(rope), qd(q.begin(), q.end()), wd(w.begin(), w.end());
    dsv2i_cuda_launch to = step.launch();
    float *q_device = up(q);

    for (int i = 0; i < width; i++) /* a row of nothing */
        kva[(size_t)(6 * width + i)] = 0;
    kva[(size_t)(7 * width + rank / 2)] = NAN;
    kva[(size_t)(8 * width + rank)] = INFINITY; /* in the key, whose scale says so */
    std::vector<double> kd(kva.begin(), kva.end());
    float *kva_device = up(kva), *w_device = up(w);
    dsv2i_cuda_rope(&to, step.device, rope, 1); /* right before, so that the next may begin too early */
    expect(dsv2i_cuda_mla_prepare(&to, step.device, q_device, kva_device, w_device, layer, heads, nope, rank, rope) == cudaSuccess, "launch");

    for (int i = 0; i < rows; i++)
        for (int h = 0; h < heads; h++)
            ref_rope(&qd[(size_t)((i * heads + h) * head + nope)], rope, pos[(size_t)i], f.data(), 1);
    std::vector<float> got = down(q_device, q.size());
    for (size_t i = (size_t)(rows * heads * head); i < got.size(); i++)
        expect(got[i] == q[i], "changed a query past the last row");
    got.resize((size_t)(rows * heads * head));
    qd.resize(got.size());
    close_to(got, qd, 3e-7);

    for (int i = 0; i < rows; i++) {
        int type = types[(size_t)i];
        struct dsv2i_kv_record r = dsv2i_kv_record(type, rank, rope);
        std::vector<unsigned char> page = down((unsigned char *)step.pages[(size_t)i], page_bytes);
        size_t at = (size_t)(layer * DSV2I_PAGE_TOKENS + pos[(size_t)i] % DSV2I_PAGE_TOKENS) * r.bytes;
        std::vector<double> want((size_t)width), read((size_t)width);

        for (size_t b = 0; b < page.size(); b++)
            expect((b >= at && b < at + r.bytes) || page[b] == 0xFF, "row %d: wrote outside of its record", i);
        std::vector<unsigned char> record(page.begin() + (long)at, page.begin() + (long)(at + r.bytes));
        ref_rms_norm(want.data(), &kd[(size_t)(i * width)], wd.data(), rank, 1e-6);
        for (int k = 0; k < rope; k++)
            want[(size_t)(rank + k)] = kd[(size_t)(i * width + rank + k)];
        ref_rope(&want[(size_t)rank], rope, pos[(size_t)i], f.data(), 1);
        ref_kv_read(read.data(), record.data(), type, rank, rope);
        float scale[2] = {1, 1};
        if (type != DSV2I_KV_F32 && type != DSV2I_KV_BF16)
            memcpy(scale, &record[r.scale], sizeof scale);
        double lost = 0, square = 0;
        for (int k = 0; k < width; k++) {
            bool key = k >= rank;
            double w = want[(size_t)k], error = fabs(read[(size_t)k] - w), s = (double)scale[key], half_step = 0;

            if (i >= 7) {
                expect(std::isnan(read[(size_t)k]) == (key == (i == 8)), "row %d: NaN wrong at %d", i, k);
                if (key == (i == 8))
                    continue;
            }
            if (type == DSV2I_KV_6BIT && !key) {
                lost += error * error;
                square += w * w;
                continue;
            }
            switch (type) {
            case DSV2I_KV_F32: break;
            case DSV2I_KV_BF16: half_step = fabs(w) * 0x1p-8; break;
            case DSV2I_KV_F8_E4M3: half_step = fabs(w) * 0x1p-4 + s * 0x1p-10; break;
            case DSV2I_KV_F8_E5M2: half_step = fabs(w) * 0x1p-3 + s * 0x1p-17; break;
            default: half_step = s / 2;
            }
            expect(error <= half_step + 1e-6 * (fabs(w) + 1), "row %d, type %d: %g for %g at %d", i, type, read[(size_t)k], w, k);
        }
        /* The quantizer leaves 2.5e-3 of a normal distribution's square, which a rotation of few elements does not make. */
        if (dsv2i_kv_rotation(rank) >= 32)
            expect(lost <= square * 3.5e-3, "row %d: 6BIT lost %g of the square", i, lost / square);
    }

    /* The codes are those that the CPU backend writes for the same numbers, which a page of F32 shows. */
    for (int i = 0; i < 4 * 5; i++) {
        const int type = (const int[]){DSV2I_KV_BF16, DSV2I_KV_F8_E4M3, DSV2I_KV_F8_E5M2, DSV2I_KV_INT8, DSV2I_KV_6BIT}[i % 5];
        const int row = (const int[]){0, 6, 7, 8}[i / 5];
        Step both({3, 3}, {}, {DSV2I_KV_F32, type}, page_bytes, rope);
        std::vector<float> two(kva.begin() + row * width, kva.begin() + (row + 1) * width), two_q((size_t)(5 * heads * head));
        dsv2i_cuda_launch on = both.launch();
        size_t plain = dsv2i_kv_record(DSV2I_KV_F32, rank, rope).bytes, bytes = dsv2i_kv_record(type, rank, rope).bytes;

        two.insert(two.end(), kva.begin() + row * width, kva.begin() + (row + 1) * width);
        dsv2i_cuda_rope(&on, both.device, rope, 1);
        dsv2i_cuda_mla_prepare(&on, both.device, up(two_q), up(two), up(w), 0, heads, nope, rank, rope);
        std::vector<unsigned char> a = down((unsigned char *)both.pages[0], page_bytes), b = down((unsigned char *)both.pages[1], page_bytes);
        std::vector<float> kv((size_t)width);
        std::vector<unsigned char> want(bytes);
        memcpy(kv.data(), &a[3 * plain], plain);
        std::vector<float> spoilt = kv;
        cpu_kv_write(cpu, want.data(), spoilt.data(), type, rank, rope);
        for (size_t k = 0; k < bytes; k++)
            expect(b[3 * bytes + k] == want[k] || (type == DSV2I_KV_BF16 && std::isnan(kv[k / 2])),
                   "row %d, type %d, byte %zu: %02x for %02x", row, type, k, b[3 * bytes + k], want[k]);
    }
}

void check_route(int n, dsv2i_route route, const char *what)
{
    const int rows = 9;
    Step step(zeros(rows), {}, {}, 1, 2);
    std::vector<float> logits = normals((size_t)((rows + 3) * n), 2);
    dsv2i_cuda_launch to = step.launch();
    int32_t *idx = unset<int32_t>((size_t)((rows + 3) * route.top_k));
    float *weight = unset<float>((size_t)((rows + 3) * route.top_k));

    for (int e = 0; e < n; e++) {
        logits[(size_t)e] = 1;                                  /* all equal */
        logits[(size_t)(n + e)] = (float)(e % 3);               /* many equal */
        logits[(size_t)(2 * n + e)] = e == n - 1 ? 200.0f : -200.0f; /* probabilities of 0 */
    }
    expect(dsv2i_cuda_moe_route(&to, step.device, idx, weight, up(logits), n, &route) == cudaSuccess, "launch");
    std::vector<int32_t> got = down(idx, (size_t)((rows + 3) * route.top_k));
    std::vector<float> weights = down(weight, got.size());
    std::vector<double> want;
    for (int i = 0; i < rows; i++) {
        std::vector<double> x(logits.begin() + i * n, logits.begin() + (i + 1) * n), p((size_t)n), w((size_t)route.top_k);
        std::vector<int> chosen((size_t)route.top_k);

        ref_softmax(p.data(), x.data(), n);
        for (double &v : p)
            v = (double)(float)v; /* ties and zeros of fp32 */
        ref_route(chosen.data(), w.data(), p.data(), n, &route);
        for (int k = 0; k < route.top_k; k++)
            expect(got[(size_t)(i * route.top_k + k)] == chosen[(size_t)k], "%s, row %d: expert %d for %d", what, i,
                   got[(size_t)(i * route.top_k + k)], chosen[(size_t)k]);
        want.insert(want.end(), w.begin(), w.end());
    }
    close_to(weights, want, 2e-6);
    for (size_t i = want.size(); i < got.size(); i++)
        expect(is_unset(got[i]), "wrote past the last row");
}

void *heap_alloc(void *, size_t size, size_t alignment) { return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment); }
void heap_free(void *, void *ptr, size_t) { free(ptr); }

}

int main()
{
    const dsv2i_hooks hooks = {heap_alloc, heap_free, nullptr};
    dsv2i_backend *cpu;

    if (dsv2i_cpu_open(&hooks, 0, 1, &cpu))
        return 1;
    run("rope 64", 3, [] { check_rope(64); });
    run("rope 6", 3, [] { check_rope(6); });
    for (int dtype : {DSV2I_F32, DSV2I_BF16, DSV2I_F16})
        run("embed, dtype " + std::to_string(dtype), 2, [=] { check_embed(dtype, 515); });
    for (int dim : {512, 1536, 2048, 5120, 37, 8200})
        run("rms_norm " + std::to_string(dim), 3, [=] { check_norm(2, dim, dim == 512 ? 64 : 0, dim == 37 ? 1e-4f : 1.0f); });
    for (int dtype : {DSV2I_F32, DSV2I_BF16, DSV2I_F16})
        for (int n : {1, 3, 9})
            run("linear_few, dtype " + std::to_string(dtype) + ", rows " + std::to_string(n), 2, [=] {
                check_linear(dtype, n, 37, 1536, n == 3);
                check_linear(dtype, n, 5, 77, n == 1);
            });
    run("linear_few, launched for no more rows than there are", 1, [] {
        for (int n : {1, 4, 5, 8, 9})
            check_linear(DSV2I_BF16, n, 9, 64, 0, true);
    });
    run("linear_few, one warp for a row", 2, [] { check_linear(DSV2I_BF16, 1, 8203, 40, 0); });
    run("linear_few, 576 x 5120", 1, [] { check_linear(DSV2I_BF16, 2, 576, 5120, 0); });
    for (int dtype : {DSV2I_F32, DSV2I_BF16, DSV2I_F16})
        run("experts_few, dtype " + std::to_string(dtype), 2, [=] {
            check_experts(dtype, 2, 6, 72, 1408, true);
            check_experts(dtype, 2, 2, 21, 40, true);
            check_experts(dtype, 1, 2, 24, 35, true);
            check_experts(dtype, 3, 1, 50, 36, false);
        });
    run("experts_few, widths of V2-Lite, one row", 1, [] { check_experts(DSV2I_BF16, 1, 1, 2048, 40, true); });
    run("experts_few, ten slots", 2, [] { check_experts(DSV2I_BF16, 1, 10, 16, 24, true); });
    run("mla_prepare, 128 heads", 3, [=] { check_prepare(128, 128, 512, 64, cpu); });
    run("mla_prepare, 16 heads", 8, [=] { check_prepare(16, 128, 512, 64, cpu); });
    run("mla_prepare, rank 96", 2, [=] { check_prepare(3, 8, 96, 6, cpu); });
    run("mla_prepare, rank 37", 2, [=] { check_prepare(1, 1, 37, 2, cpu); });
    run("mla_prepare, rank 1024", 2, [=] { check_prepare(2, 16, 1024, 128, cpu); });
    run("moe_route V2", 3, [] { check_route(160, {8, 3, 6, 0, 16}, "V2"); });
    run("moe_route V2-Lite", 3, [] { check_route(64, {1, 1, 6, 0, 1}, "V2-Lite"); });
    run("moe_route normalized", 2, [] { check_route(160, {8, 3, 6, 1, 16}, "normalized"); });
    run("moe_route 512", 2, [] { check_route(512, {32, 5, 40, 0, 2.5f}, "512"); });
    run("moe_route 3 of 5", 2, [] { check_route(5, {1, 1, 3, 1, 1}, "5"); });
#ifndef DSV2I_EMULATED /* where it costs nothing: shapes of the releases */
    run("linear_few, shapes of V2-Lite and V2", 1, [] {
        check_linear(DSV2I_BF16, 1, 102400, 2048, 0);
        check_linear(DSV2I_BF16, 8, 3072, 2048, 0);
        check_linear(DSV2I_BF16, 3, 24576, 1536, 0);
        check_linear(DSV2I_F32, 5, 160, 5120, 0);
        check_linear(DSV2I_BF16, 4, 1536, 5120, 1);
    });
    run("experts_few, shapes of V2-Lite and V2", 1, [] {
        check_experts(DSV2I_BF16, 2, 6, 2048, 1408, true);
        check_experts(DSV2I_BF16, 1, 6, 5120, 1536, true);
        check_experts(DSV2I_BF16, 1, 1, 2048, 10944, false);
    });
    run("rms_norm, 4,096 rows", 1, [] { check_norm(4096, 2048, 0, 1); });
#endif
    cpu->op->close(cpu);
    return finish();
}
