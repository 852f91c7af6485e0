/* Attention in the absorbed form against double: each launch by itself, with the inputs that it has, and all together.
 *
 * SPDX-License-Identifier: MIT */
#pragma GCC diagnostic ignored "-Wunused-function" /* not every check needs all that checks are made of */
#include "checks.h"

#include <algorithm>
#include <convert.cuh>

namespace {

void *heap_alloc(void *, size_t size, size_t alignment) { return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment); }
void heap_free(void *, void *ptr, size_t) { free(ptr); }

const int rank = 512, rope = 64, width = rank + rope, nope = 128, v = 128;
dsv2i_backend *cpu;

/* ref_kv_read by a table, for records of 512 + 64; 6BIT as it is stored (y), exact or with levels as bf16. */
std::vector<double> stored(const unsigned char *record, int type, int of_rank, int of_rope, bool bf16_levels)
{
    std::vector<double> kv((size_t)(of_rank + of_rope));
    const struct dsv2i_kv_record r = ::dsv2i_kv_record(type, of_rank, of_rope);

    ref_kv_read(kv.data(), record, type, of_rank, of_rope);
    if (type != DSV2I_KV_6BIT)
        return kv;
    float scale;
    memcpy(&scale, record + r.scale, 4);
    for (int i = 0; i < of_rank; i++) {
        int block = i / 32, in = i % 32;
        double level = ref_kv_level(record[16 * block + in % 16] >> (in < 16 ? 0 : 4) & 15);
        if (bf16_levels)
            level = ref_bf16(dsv2i_bf16((float)level));
        kv[(size_t)i] = (record[r.sign + (size_t)(4 * block + in / 8)] >> in % 8 & 1 ? -level : level) * (double)scale;
    }
    return kv;
}

/* What a sequence of a step is. */
struct Sequence {
    int pos, rows; /* position of the first row */
    int kv_type, form;
};

/* Sequences with pages of records that a CPU backend has written: tokens up to the last row's; what is behind them is NaN. */
struct Batch {
    const int layers = 2, layer = 1;
    int rows = 0, seqs, c_rank, c_rope;
    std::vector<Sequence> is;
    std::vector<int> first, pos, seq;
    std::vector<std::vector<unsigned char>> records; /* of each sequence, this layer's, in order */
    dsv2i_cuda_step *device;
    dsv2i_cuda_step host{};
    Batch(const std::vector<Sequence> &sequences, int of_rank = rank, int of_rope = rope)
        : seqs((int)sequences.size()), c_rank(of_rank), c_rope(of_rope), is(sequences)
    {
        std::vector<dsv2i_seq> s;
        for (int i = 0; i < seqs; i++) {
            const Sequence &q = is[(size_t)i];
            const int n = q.pos + q.rows;
            const size_t bytes = ::dsv2i_kv_record(q.kv_type, c_rank, c_rope).bytes;
            std::vector<void *> table;
            first.push_back(rows);
            records.emplace_back(bytes * (size_t)n);
            for (int t = 0; t < n; t++) {
                std::vector<float> kv = normals((size_t)(c_rank + c_rope), uniform(0.2f, 2));
                cpu_kv_write(cpu, &records.back()[bytes * (size_t)t], kv.data(), q.kv_type, c_rank, c_rope);
            }
            for (int p = 0; p * 64 < n; p++) {
                std::vector<unsigned char> page((size_t)(layers * 64) * bytes, 0xFF);
                const size_t count = (size_t)std::min(64, n - p * 64) * bytes;
                std::copy_n(&records.back()[(size_t)(p * 64) * bytes], count, page.begin() + (ptrdiff_t)((size_t)(layer * 64) * bytes));
                table.push_back(up(page));
            }
            s.push_back({up(table), q.form, q.kv_type});
            for (int r = 0; r < q.rows; r++, rows++) {
                pos.push_back(q.pos + r);
                seq.push_back(i);
            }
        }
        first.push_back(rows);
        host.n_rows = rows;
        host.n_seqs = seqs;
        host.pos = up(pos);
        host.seq = up(seq);
        host.first = up(first);
        host.seqs = up(s);
        device = up(std::vector<dsv2i_cuda_step>{host});
    }
    const Sequence &of(int row) const { return is[(size_t)seq[(size_t)row]]; }
    bool decoded(int row) const { return of(row).form == DSV2I_ABSORBED && of(row).kv_type != DSV2I_KV_F32; }
};

struct Card {
    int sm, n_sms, invariant;
};

dsv2i_cuda_launch launch_on(const Card &card, int rows)
{
    dsv2i_cuda_launch to = launch_for(rows);
    to.sm = card.sm;
    to.n_sms = card.n_sms;
    to.invariant = card.invariant;
    return to;
}

std::vector<float> decode(const Batch &b, const Card &card, const std::vector<uint16_t> &q, int heads, int spare = 3)
{
    dsv2i_cuda_launch to = launch_on(card, b.rows + spare);
    char *scratch = unset<char>(dsv2i_cuda_mla_scratch(&to, heads));
    size_t n = (size_t)(b.rows + 3) * (size_t)(heads * rank);
    float *o = unset<float>(n);

    expect(dsv2i_cuda_mla_plan(&to, b.device, scratch, heads) == cudaSuccess, "launch of plan");
    expect(dsv2i_cuda_mla_decode(&to, b.device, o, up(q), b.layer, heads, scratch) == cudaSuccess, "launch of decode");
    return down(o, n);
}

std::vector<uint16_t> queries(int n, float scale)
{
    std::vector<float> x = normals((size_t)n * width, scale);
    std::vector<uint16_t> q;
    for (float f : x)
        q.push_back(dsv2i_bf16(f));
    return q;
}

/* o_latent of q_latent.  P is rounded to bf16, so that an output is wrong by at most 2^-8 sum p |c|; sums in fp32 and exp2 add less than
 * 2^-14 of that.  For 6BIT the levels are those that the kernel has, in bf16, and so is the rotated query, of which elements close to the
 * middle of two may be rounded otherwise here: a few of them by 2^-8 of an element. */
void check_decode(int heads, const std::vector<Sequence> &sequences, const Card &card, float sharp = 0.08f)
{
    Batch b(sequences);
    std::vector<uint16_t> q = queries((b.rows + 3) * heads, sharp);
    std::vector<float> got = decode(b, card, q, heads);
    std::vector<double> rotated(rank);

    for (int row = 0; row < b.rows + 3 && !case_failed; row++) {
        const float *o = &got[(size_t)(row * heads * rank)];
        if (row >= b.rows || !b.decoded(row)) {
            for (int i = 0; i < heads * rank; i++)
                expect(is_unset(o[i]), "wrote to row %d, which is not its own", row);
            continue;
        }
        const int type = b.of(row).kv_type, n_keys = b.pos[(size_t)row] + 1;
        const size_t bytes = ::dsv2i_kv_record(type, rank, rope).bytes;
        std::vector<std::vector<double>> keys;
        for (int t = 0; t < n_keys; t++)
            keys.push_back(stored(&b.records[(size_t)b.seq[(size_t)row]][(size_t)t * bytes], type, rank, rope, true));
        for (int h = 0; h < heads && !case_failed; h += heads > 16 ? 1 + row % 3 : 1, o = &got[(size_t)((row * heads + h) * rank)]) {
            std::vector<double> x, score, p((size_t)n_keys), want(rank), size(rank);
            for (int i = 0; i < width; i++)
                x.push_back(ref_bf16(q[(size_t)((row * heads + h) * width + i)]));
            double off = 0;
            if (type == DSV2I_KV_6BIT) {
                ref_hadamard(rotated.data(), x.data(), rank, 1, 0);
                double greatest = 0;
                for (int i = 0; i < rank; i++) {
                    x[(size_t)i] = ref_bf16(dsv2i_bf16((float)rotated[(size_t)i]));
                    greatest = fmax(greatest, fabs(x[(size_t)i]));
                }
                off = 4 * 0x1p-8 * greatest * 8;
            }
            for (int t = 0; t < n_keys; t++) {
                score.push_back(0);
                for (int i = 0; i < width; i++)
                    score.back() += x[(size_t)i] * keys[(size_t)t][(size_t)i] * log(2);
            }
            ref_softmax(p.data(), score.data(), n_keys);
            for (int t = 0; t < n_keys; t++)
                for (int i = 0; i < rank; i++) {
                    want[(size_t)i] += p[(size_t)t] * keys[(size_t)t][(size_t)i];
                    size[(size_t)i] += p[(size_t)t] * fabs(keys[(size_t)t][(size_t)i]);
                }
            for (int i = 0; i < rank; i++)
                expect(fabs((double)o[i] - want[(size_t)i]) <= size[(size_t)i] * (0x1p-8 + 0x1p-14 + off), "row %d, head %d, %d: %g for %g, of %g",
                       row, h, i, (double)o[i], want[(size_t)i], size[(size_t)i]);
        }
    }
}

}

int main()
{
    const int A = DSV2I_ABSORBED, E = DSV2I_EXPANDED, BF16 = DSV2I_KV_BF16, F32 = DSV2I_KV_F32, E4M3 = DSV2I_KV_F8_E4M3,
              E5M2 = DSV2I_KV_F8_E5M2, INT8 = DSV2I_KV_INT8, BIT6 = DSV2I_KV_6BIT;
    const Card h100 = {90, 4, 0};

    const dsv2i_hooks hooks = {heap_alloc, heap_free, nullptr};
    if (dsv2i_cpu_open(&hooks, 0, 1, &cpu)) {
        printf("Bail out! no CPU backend\n");
        return 1;
    }
    run("16 heads, one row", 8, [=] { check_decode(16, {{299, 1, BF16, A}}, h100); });
    run("16 heads, a context of one token", 4, [=] { check_decode(16, {{0, 1, BF16, A}}, h100); });
    for (int type : {E4M3, E5M2, INT8, BIT6})
        run("16 heads, records of type " + std::to_string(type), 3, [=] { check_decode(16, {{199, 1, type, A}}, h100); });
    run("4 heads, rows of several sequences", 3, [=] {
        check_decode(4, {{70, 4, BF16, A}, {5, 2, F32, A}, {130, 1, INT8, A}, {3, 2, BF16, E}, {0, 3, BIT6, A}, {63, 1, E4M3, A}}, h100);
    });
    run("16 heads, rows of several sequences", 2, [=] {
        check_decode(16, {{70, 5, BF16, A}, {5, 2, F32, A}, {130, 2, INT8, A}, {3, 2, BF16, E}, {0, 3, BIT6, A}, {63, 1, E4M3, A}}, h100);
    });
    run("128 heads, one row", 3, [=] { check_decode(128, {{150, 1, BF16, A}}, h100); });
    run("128 heads, two rows of 6BIT", 2, [=] { check_decode(128, {{63, 2, BIT6, A}}, h100); });
    run("128 heads, two rows of E5M2 and one", 2, [=] { check_decode(128, {{95, 2, E5M2, A}, {3, 1, BF16, A}}, h100); });
    run("128 heads, a small card", 2, [=] { check_decode(128, {{95, 1, INT8, A}}, {89, 8, 0}); });
    return finish();
}
