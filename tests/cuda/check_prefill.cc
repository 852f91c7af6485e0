/* Attention in the expanded form against double.
 *
 * The reference rounds to bf16 what the kernels round: the latents and keys that a record says, UK c, UV c and the queries.  What is left
 * is the rounding of the weights, at most 2^-8 of each, and that now and then fp32 and double round a number differently, which moves one
 * of many terms by 2^-7.  So an element may be off by 2^-7 of the mean of |v|, and all of them together by what weights of random
 * rounding make.
 *
 * SPDX-License-Identifier: MIT */
#include "checks.h"

#include <algorithm>

namespace {

const int rank = 512, nope = 128, rope = 64, v_dim = 128, q_dim = nope + rope, layer = 1, layers = 2;
dsv2i_backend *cpu;

double bf16(double x)
{
    float f = (float)x;
    uint32_t bits;

    if (std::isnan(f))
        return f;
    memcpy(&bits, &f, 4);
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
    memcpy(&f, &bits, 4);
    return f;
}

/* A sequence of which the last rows are asked for. */
struct Sequence {
    int pos, n, type, form; /* position of the first row */
    std::vector<double> kv; /* (positions, rank + rope) as its records say, rounded */
    std::vector<float> q;   /* (n, heads, q_dim) */
    void *const *table;

    Sequence(int pos_, int n_, int type_, int heads, int form_ = DSV2I_EXPANDED) : pos(pos_), n(n_), type(type_), form(form_)
    {
        const size_t bytes = dsv2i_kv_record(type, rank, rope).bytes;
        std::vector<void *> pages;
        kv.resize((size_t)((pos + n) * (rank + rope)));
        for (int first = 0; first < pos + n; first += DSV2I_PAGE_TOKENS) {
            std::vector<unsigned char> page(layers * DSV2I_PAGE_TOKENS * bytes, 0x7F); /* huge where nothing was written */
            for (int p = first; p < pos + n && p < first + DSV2I_PAGE_TOKENS; p++) {
                std::vector<float> x = normals((size_t)(rank + rope));
                void *record = &page[(size_t)(layer * DSV2I_PAGE_TOKENS + p - first) * bytes];
                cpu_kv_write(cpu, record, x.data(), type, rank, rope);
                ref_kv_read(&kv[(size_t)(p * (rank + rope))], record, type, rank, rope);
            }
            pages.push_back(up(page));
        }
        for (double &x : kv)
            x = bf16(x);
        q = normals((size_t)(n * heads * q_dim));
        table = up(pages);
    }
};

/* Rows of a sequence that stand together in a step. */
struct Piece {
    const Sequence *sequence;
    int from, n; /* rows */
};

struct Steps {
    dsv2i_cuda_step host{};
    dsv2i_cuda_step *device;
    std::vector<float> q;
    dsv2i_cuda_prefill prefill{};

    Steps(const std::vector<Piece> &pieces, int heads, int window)
    {
        std::vector<int32_t> pos, seq, first;
        std::vector<dsv2i_seq> seqs;
        for (const Piece &p : pieces) {
            const Sequence &s = *p.sequence;
            first.push_back((int)pos.size());
            for (int i = 0; i < p.n; i++) {
                pos.push_back(s.pos + p.from + i);
                seq.push_back((int)seqs.size());
            }
            seqs.push_back({s.table, s.form, s.type});
            q.insert(q.end(), s.q.begin() + p.from * heads * q_dim, s.q.begin() + (p.from + p.n) * heads * q_dim);
            if (s.form == DSV2I_EXPANDED && s.type != DSV2I_KV_F32) {
                prefill.seqs++;
                prefill.rows += p.n;
                prefill.context += (s.pos + p.from + p.n + 127) / 128 * 128;
            }
        }
        first.push_back((int)pos.size());
        q.resize(q.size() + (size_t)(3 * heads * q_dim), NAN);
        prefill.window = window;
        host.n_rows = (int)pos.size();
        host.n_seqs = (int)seqs.size();
        host.pos = up(pos);
        host.seq = up(seq);
        host.first = up(first);
        host.seqs = up(seqs);
        device = up(std::vector<dsv2i_cuda_step>{host});
    }
};

struct Model {
    int heads;
    Weight kv_b;
    dsv2i_weight on_device;
    dsv2i_shape shape = {};

    explicit Model(int heads_) : heads(heads_), kv_b(DSV2I_BF16, heads_ * (nope + v_dim), rank, 0.05f), on_device(kv_b.host)
    {
        on_device.data = kv_b.device;
        shape.num_attention_heads = heads;
        shape.kv_lora_rank = rank;
        shape.qk_nope_head_dim = nope;
        shape.qk_rope_head_dim = rope;
        shape.v_head_dim = v_dim;
        shape.softmax_scale = 0.0722f * 1.3f;
    }
};

/* o of all rows and three more, which must be unset; what is rounded must be the same. */
std::vector<float> attend(const Model &m, const Steps &steps, int sm)
{
    const size_t rows = (size_t)steps.host.n_rows + 3, size = rows * (size_t)(m.heads * v_dim);
    dsv2i_cuda_launch to = launch_for((int)rows);
    float *o = unset<float>(size);
    uint16_t *half = unset<uint16_t>(size);
    size_t bytes = dsv2i_cuda_mla_prefill_scratch((int)rows, m.heads, steps.prefill.window);

    to.sm = sm;
    expect(dsv2i_cuda_mla_prefill(&to, steps.device, o, half, up(steps.q), &m.on_device, layer, &m.shape, &steps.prefill,
                                  unset<unsigned char>(bytes)) == cudaSuccess, "launch");
    std::vector<float> got = down(o, size);
    std::vector<uint16_t> rounded = down(half, size);
    for (size_t i = 0; i < size; i++)
        expect(is_unset(got[i]) ? is_unset(rounded[i]) : std::isnan(got[i]) || ref_bf16(rounded[i]) == bf16((double)got[i]),
               "rounded otherwise at %zu", i);
    return got;
}

/* Of a sequence: o (n, heads, v), and what it may be off by. */
struct Reference {
    std::vector<double> o, most;
    double square = 0; /* expected of all errors */

    Reference(const Model &m, const Sequence &s)
    {
        const int context = s.pos + s.n;
        std::vector<double> w, kv((size_t)(context * (nope + v_dim))), score((size_t)context), x((size_t)q_dim);

        for (int h = 0; h < m.heads; h++) {
            w.clear();
            for (int i = 0; i < (nope + v_dim) * rank; i++)
                w.push_back(ref_value(&m.kv_b.host, (size_t)(h * (nope + v_dim) * rank + i)));
            for (int p = 0; p < context; p++)
                for (int j = 0; j < nope + v_dim; j++) {
                    double sum = 0;
                    for (int k = 0; k < rank; k++)
                        sum += s.kv[(size_t)(p * (rank + rope) + k)] * w[(size_t)(j * rank + k)];
                    kv[(size_t)(p * (nope + v_dim) + j)] = bf16(sum);
                }
            for (int r = 0; r < s.n; r++) {
                double all = 0, max = -INFINITY, mean[v_dim] = {}, abs[v_dim] = {}, squares[v_dim] = {};
                for (int j = 0; j < q_dim; j++)
                    x[(size_t)j] = bf16((double)s.q[(size_t)((r * m.heads + h) * q_dim + j)]);
                for (int p = 0; p <= s.pos + r; p++) {
                    double dot = 0;
                    for (int j = 0; j < nope; j++)
                        dot += x[(size_t)j] * kv[(size_t)(p * (nope + v_dim) + j)];
                    for (int j = 0; j < rope; j++)
                        dot += x[(size_t)(nope + j)] * s.kv[(size_t)(p * (rank + rope) + rank + j)];
                    score[(size_t)p] = dot * (double)m.shape.softmax_scale;
                    max = fmax(max, score[(size_t)p]);
                }
                for (int p = 0; p <= s.pos + r; p++) {
                    const double weight = exp(score[(size_t)p] - max);
                    all += weight;
                    for (int j = 0; j < v_dim; j++) {
                        const double v = weight * kv[(size_t)(p * (nope + v_dim) + nope + j)];
                        mean[j] += v;
                        abs[j] += fabs(v);
                        squares[j] += v * v;
                    }
                }
                for (int j = 0; j < v_dim; j++) {
                    o.push_back(mean[j] / all);
                    most.push_back(0x1p-7 * abs[j] / all + 1e-6);
                    square += squares[j] / all / all * 0x1p-16 / 3;
                }
            }
        }
        std::vector<double> by_row[2] = {std::vector<double>(o.size()), std::vector<double>(o.size())}; /* (heads, n) until here */
        for (int h = 0; h < m.heads; h++)
            for (int r = 0; r < s.n; r++)
                for (int j = 0; j < v_dim; j++) {
                    by_row[0][(size_t)((r * m.heads + h) * v_dim + j)] = o[(size_t)((h * s.n + r) * v_dim + j)];
                    by_row[1][(size_t)((r * m.heads + h) * v_dim + j)] = most[(size_t)((h * s.n + r) * v_dim + j)];
                }
        o = by_row[0];
        most = by_row[1];
    }

    void check(const float *got) const
    {
        double all = 0;
        for (size_t i = 0; i < o.size(); i++) {
            const double error = (double)got[i] - o[i];
            expect(fabs(error) <= most[i], "%.6g for %.6g at %zu, off by more than %.3g", (double)got[i], o[i], i, most[i]);
            all += error * error;
        }
        expect(all <= square, "errors of %.3g altogether, for %.3g", sqrt(all), sqrt(square));
    }
};

bool same(const float *a, const float *b, size_t n) { return !memcmp(a, b, n * sizeof *a); }

/* One sequence by itself. */
void check_one(int heads, int pos, int n, int type, int window, int sm)
{
    const Model m(heads);
    const Sequence s(pos, n, type, heads);
    const size_t size = (size_t)(n * heads * v_dim);
    const std::vector<float> got = attend(m, Steps({{&s, 0, n}}, heads, window), sm);

    Reference(m, s).check(got.data());
    for (size_t i = size; i < got.size(); i++)
        expect(is_unset(got[i]), "wrote past the last row");
}

/* Every type beside sequences that are not to be touched; then cut, and in other company and windows: the same bits. */
void check_mixed(int heads, int sm)
{
    const Model m(heads);
    std::vector<Sequence> s;
    std::vector<Piece> all;
    std::vector<size_t> at; /* of each in o */
    size_t row = 0;

    s.reserve(40);
    for (int i = 0; i < 33; i++) /* so that more than a warp's worth stand in front */
        s.emplace_back(i % 5, 1, DSV2I_KV_BF16, heads, i == 7 ? DSV2I_EXPANDED : DSV2I_ABSORBED);
    s.emplace_back(90, 140, DSV2I_KV_6BIT, heads);
    s.emplace_back(0, 3, DSV2I_KV_F32, heads);
    s.emplace_back(0, 33, DSV2I_KV_F8_E4M3, heads);
    s.emplace_back(127, 1, DSV2I_KV_F8_E5M2, heads);
    s.emplace_back(126, 3, DSV2I_KV_INT8, heads);
    for (const Sequence &one : s) {
        all.push_back({&one, 0, one.n});
        at.push_back(row * (size_t)(heads * v_dim));
        row += (size_t)one.n;
    }
    const std::vector<float> got = attend(m, Steps(all, heads, 1024), sm), narrow = attend(m, Steps(all, heads, 128), sm);
    for (size_t i = 0; i < s.size(); i++) {
        const size_t size = (size_t)(s[i].n * heads * v_dim);
        if (s[i].form != DSV2I_EXPANDED || s[i].type == DSV2I_KV_F32) {
            for (size_t k = at[i]; k < at[i] + size; k++)
                expect(is_unset(got[k]), "wrote a row of sequence %zu", i);
            continue;
        }
        Reference(m, s[i]).check(&got[at[i]]);
    }
    for (size_t i = row * (size_t)(heads * v_dim); i < got.size(); i++)
        expect(is_unset(got[i]), "wrote past the last row");
    expect(same(got.data(), narrow.data(), got.size()), "other bits in other windows");
    const Sequence &longest = s[33];
    for (int cut : {1, 37, 38, 128})
        for (int part = 0; part < 2; part++) {
            const int from = part ? cut : 0, n = part ? longest.n - cut : cut;
            const std::vector<float> alone = attend(m, Steps({{&longest, from, n}}, heads, 256), sm);
            expect(same(alone.data(), &got[at[33] + (size_t)(from * heads * v_dim)], (size_t)(n * heads * v_dim)),
                   "other bits for rows from %d, %d of them", from, n);
        }
}

/* A position that is not finite spoils the rows that see it, and no others. */
void check_nan(int sm)
{
    const int heads = 1, bad = 5, n = 40;
    const Model m(heads);
    Sequence s(0, n, DSV2I_KV_BF16, heads);

    for (int where : {3, rank + 3}) {
        void *page;
        const size_t bytes = dsv2i_kv_record(s.type, rank, rope).bytes;
        const uint16_t nan = 0x7FC0, two = 0x4000;
        page = down((void *const *)s.table, 1)[0];
        uint16_t *at = (uint16_t *)((char *)page + (size_t)(layer * DSV2I_PAGE_TOKENS + bad) * bytes) + where;
        const std::vector<float> before = attend(m, Steps({{&s, 0, n}}, heads, 128), sm);
        cudaMemcpyAsync(at, &nan, 2, cudaMemcpyHostToDevice, stream);
        const std::vector<float> got = attend(m, Steps({{&s, 0, n}}, heads, 128), sm);
        cudaMemcpyAsync(at, &two, 2, cudaMemcpyHostToDevice, stream);
        expect(same(before.data(), got.data(), (size_t)(bad * v_dim)), "rows before %d changed", bad);
        for (int i = bad * v_dim; i < n * v_dim; i++)
            expect(std::isnan(got[(size_t)i]), "not NaN at %d", i);
    }
}

void *heap_alloc(void *, size_t size, size_t alignment) { return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment); }
void heap_free(void *, void *ptr, size_t) { free(ptr); }

}

int main()
{
    const dsv2i_hooks hooks = {heap_alloc, heap_free, nullptr};

    if (dsv2i_cpu_open(&hooks, 0, 1, &cpu))
        return 1;
    for (int sm : {90, 80}) {
        const std::string on = "mla_prefill, sm_" + std::to_string(sm) + ", ";

        run(on + "one row", 3, [=] { check_one(3, 0, 1, DSV2I_KV_BF16, 128, sm); });
        run(on + "a prompt", 1, [=] { check_one(1, 0, 200, DSV2I_KV_BF16, 512, sm); });
        run(on + "16 heads", 1, [=] { check_one(16, 30, 5, DSV2I_KV_BF16, 128, sm); });
        if (sm == 80) /* they number their blocks alike */
            run(on + "33 heads", 1, [=] { check_one(33, 0, 3, DSV2I_KV_F8_E4M3, 128, sm); });
        run(on + "a prefix in windows", 1, [=] { check_one(1, 400, 130, DSV2I_KV_6BIT, 256, sm); });
        run(on + "many steps in a window", 1, [=] { check_one(1, 500, 70, DSV2I_KV_BF16, 640, sm); });
        run(on + "mixed", 1, [=] { check_mixed(1, sm); });
        run(on + "not finite", 2, [=] { check_nan(sm); });
    }
#ifndef DSV2I_EMULATED /* where it costs nothing: sizes at which all of a card is used */
    const int sm = launch_for(1).sm;

    run("mla_prefill, 16 heads, a prompt of 500", 1, [=] { check_one(16, 0, 500, DSV2I_KV_BF16, 2048, sm); });
    run("mla_prefill, 16 heads, windows", 1, [=] { check_one(16, 2100, 100, DSV2I_KV_F8_E4M3, 2048, sm); });
    run("mla_prefill, 128 heads", 1, [=] { check_one(128, 150, 40, DSV2I_KV_BF16, 2048, sm); });
    run("mla_prefill, mixed", 1, [=] { check_mixed(16, sm); });
#endif
    cpu->op->close(cpu);
    return finish();
}
