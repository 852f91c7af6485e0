/* Attention in the absorbed form against double: each launch by itself, with the inputs that it has, and all together.
 *
 * SPDX-License-Identifier: MIT */
#pragma GCC diagnostic ignored "-Wunused-function" /* not every check needs all that checks are made of */
#include "checks.h"

#include <algorithm>

namespace {

void *heap_alloc(void *, size_t size, size_t alignment) { return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment); }
void heap_free(void *, void *ptr, size_t) { free(ptr); }

const int rank = 512, rope = 64, width = rank + rope, nope = 128, v = 128;
dsv2i_backend *cpu;
int nan_token = -1; /* whose latent has a NaN */

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
            level = ref_bf16(bf16_of((float)level));
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
                if (t == nan_token)
                    kv[3] = NAN;
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
#ifdef DSV2I_EMULATED /* which is any card */
    to.sm = card.sm;
#endif
    to.n_sms = card.n_sms;
    to.invariant = card.invariant;
    return to;
}

std::vector<float> decode(const Batch &b, const Card &card, const std::vector<uint16_t> &q, int heads, int spare = 3)
{
    dsv2i_cuda_launch to = launch_on(card, b.rows + spare);
    to.several = b.rows > b.host.n_seqs; /* or one may have */
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
        q.push_back(bf16_of(f));
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
                    x[(size_t)i] = ref_bf16(bf16_of((float)rotated[(size_t)i]));
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
                expect(fabs((double)o[i] - want[(size_t)i]) <= size[(size_t)i] * (0x1p-8 + 0x1p-14 + off),
                       "row %d, head %d, %d: %g for %g, of %g", row, h, i, (double)o[i], want[(size_t)i], size[(size_t)i]);
        }
    }
}

/* A NaN reaches the rows that see it, all of their result; others of the same tile only from BF16 pages. */
void check_nan(int type, int heads)
{
    nan_token = 41;
    Batch b({{40, 3, type, DSV2I_ABSORBED}, {7, 1, type, DSV2I_ABSORBED}});
    nan_token = -1;
    std::vector<float> got = decode(b, {90, 4, 0}, queries((b.rows + 3) * heads, 0.08f), heads);

    for (int row = 0; row < b.rows; row++)
        for (int i = 0; i < heads * rank; i++) {
            float o = got[(size_t)(row * heads * rank + i)];

            if (row == 1 || row == 2) /* 41 and 42: their sums of P are NaN */
                expect(std::isnan(o), "row %d, %d: %g", row, i, (double)o);
            else if (row == 3 || type != DSV2I_KV_BF16)
                expect(std::isfinite(o), "row %d, %d: %g", row, i, (double)o);
        }
}

/* The step of one of b's rows alone. */
dsv2i_cuda_step *alone(const Batch &b, int row)
{
    dsv2i_cuda_step s = b.host;

    s.n_rows = s.n_seqs = 1;
    s.pos += row;
    s.seq = up(zeros(1));
    s.first = up(std::vector<int>{0, 1});
    s.seqs += b.seq[(size_t)row];
    return up(std::vector<dsv2i_cuda_step>{s});
}

/* Bits: twice the same; invariant, the same alone and in company. */
void check_same(int heads, const std::vector<Sequence> &sequences, const Card &card)
{
    Batch b(sequences);
    std::vector<uint16_t> q = queries((b.rows + 3) * heads, 0.08f);
    std::vector<float> first = decode(b, card, q, heads);
    const size_t n = (size_t)(heads * rank);

    if (!card.invariant) {
        expect(!memcmp(first.data(), decode(b, card, q, heads).data(), first.size() * 4), "other bits the second time");
        return;
    }
    for (int row = 0; row < b.rows; row++) {
        dsv2i_cuda_launch to = launch_on(card, 1);
        char *scratch = unset<char>(dsv2i_cuda_mla_scratch(&to, heads));
        float *o = unset<float>(n);
        dsv2i_cuda_step *step = alone(b, row);
        const uint16_t *of_row = q.data() + (size_t)(row * heads) * width;

        expect(dsv2i_cuda_mla_plan(&to, step, scratch, heads) == cudaSuccess
                   && dsv2i_cuda_mla_decode(&to, step, o, up(std::vector<uint16_t>(of_row, of_row + heads * width)), b.layer, heads, scratch)
                          == cudaSuccess,
               "launch");
        expect(!memcmp(down(o, n).data(), &first[(size_t)row * n], n * 4), "row %d has other bits alone", row);
    }
}

/* Contexts of any length, of four pages that repeat: the last row's result from each page's keys as often as they are there.  Invariant, on
 * cards of different sizes, which so cut it in different places: bits. */
void check_long(int heads, int type, int pos, const std::vector<Card> &cards)
{
    Batch b({{255, 1, type, DSV2I_ABSORBED}});
    std::vector<uint16_t> q = queries(heads, 0.05f);
    std::vector<float> first;
    const size_t bytes = ::dsv2i_kv_record(type, rank, rope).bytes;
    const dsv2i_seq short_one = down(b.host.seqs, 1)[0];
    std::vector<void *> pages = down(short_one.page, 4), table;
    dsv2i_cuda_step s = b.host;

    for (int p = 0; p * 64 <= pos; p++)
        table.push_back(pages[(size_t)(p % 4)]);
    s.pos = up(std::vector<int>{pos});
    s.seqs = up(std::vector<dsv2i_seq>{{up(table), short_one.form, short_one.kv_type}});
    dsv2i_cuda_step *step = up(std::vector<dsv2i_cuda_step>{s});
    for (const Card &card : cards) {
        dsv2i_cuda_launch to = launch_on(card, 1);
        char *scratch = unset<char>(dsv2i_cuda_mla_scratch(&to, heads));
        float *o = unset<float>((size_t)(heads * rank));

        expect(dsv2i_cuda_mla_plan(&to, step, scratch, heads) == cudaSuccess
                   && dsv2i_cuda_mla_decode(&to, step, o, up(q), b.layer, heads, scratch) == cudaSuccess, "launch");
        std::vector<float> got = down(o, (size_t)(heads * rank));
        if (first.empty())
            first = got;
        expect(!card.invariant || !memcmp(first.data(), got.data(), got.size() * 4), "other bits on %d multiprocessors", card.n_sms);
        for (int h = 0; h < heads; h += 3) {
            std::vector<double> want(rank), size(rank);
            double all = 0;
            for (int t = 0; t < 256 && t <= pos; t++) {
                std::vector<double> k = stored(&b.records[0][(size_t)t * bytes], type, rank, rope, true);
                double score = 0, p;
                for (int i = 0; i < width; i++)
                    score += ref_bf16(q[(size_t)(h * width + i)]) * k[(size_t)i];
                all += p = exp2(score) * ((pos - t) / 256 + 1);
                for (int i = 0; i < rank; i++) {
                    want[(size_t)i] += p * k[(size_t)i];
                    size[(size_t)i] += p * fabs(k[(size_t)i]);
                }
            }
            for (int i = 0; i < rank; i++)
                expect(fabs((double)got[(size_t)(h * rank + i)] - want[(size_t)i] / all) <= size[(size_t)i] / all * (0x1p-8 + 0x1p-12),
                       "head %d, %d: %g for %g", h, i, (double)got[(size_t)(h * rank + i)], want[(size_t)i] / all);
        }
    }
}

double dot(const double *a, const double *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* q_latent of q: it is rounded at the end, and q before; sums in fp32 add less than 2^-16 of their terms. */
void check_absorb(int heads, int rows)
{
    Batch b({{0, rows, DSV2I_KV_BF16, DSV2I_ABSORBED}});
    Weight w(DSV2I_BF16, heads * (nope + v), rank, 0.05f);
    std::vector<float> q = normals((size_t)(rows + 3) * (size_t)(heads * (nope + rope)), 2);
    dsv2i_weight of = w.host;
    dsv2i_cuda_launch to = launch_for(rows + 3);
    uint16_t *out = unset<uint16_t>((size_t)((rows + 3) * heads * width));
    const double scale = 0.1147 / log(2);

    of.data = w.device;
    expect(dsv2i_cuda_mla_absorb(&to, b.device, out, up(q), &of, heads, 0.1147f) == cudaSuccess, "launch");
    std::vector<uint16_t> got = down(out, (size_t)((rows + 3) * heads * width));
    std::vector<double> uk((size_t)(nope * rank));
    for (int h = 0; h < heads; h += heads > 4 ? 5 : 1) {
        for (int k = 0; k < nope; k++)
            for (int i = 0; i < rank; i++) /* transposed */
                uk[(size_t)(i * nope + k)] = ref_value(&w.host, (size_t)((h * (nope + v) + k) * rank + i));
        for (int row = 0; row < rows; row++) {
            const size_t at = (size_t)(row * heads + h);
            std::vector<double> x(nope), ax(nope), aw(nope);
            for (int k = 0; k < nope; k++) {
                float f = q[at * (nope + rope) + (size_t)k];
                x[(size_t)k] = ref_bf16(bf16_of(f));
                ax[(size_t)k] = fabs(x[(size_t)k]);
            }
            for (int i = 0; i < width; i++) {
                double want, size = 0, is = ref_bf16(got[at * width + (size_t)i]);
                if (i < rank) {
                    for (int k = 0; k < nope; k++)
                        aw[(size_t)k] = fabs(uk[(size_t)(i * nope + k)]);
                    want = dot(x.data(), &uk[(size_t)(i * nope)], nope) * scale;
                    size = dot(ax.data(), aw.data(), nope) * scale;
                } else {
                    want = (double)q[at * (nope + rope) + (size_t)(nope + i - rank)] * scale;
                }
                expect(fabs(is - want) <= fabs(want) * (0x1p-8 + 0x1p-20) + size * 0x1p-16,
                       "row %d, head %d, %d: %g for %g", row, h, i, is, want);
            }
        }
    }
    for (size_t i = (size_t)(rows * heads * width); i < got.size(); i++)
        expect(is_unset(got[i]), "wrote past the last row");
}

/* o of o_latent, which is rounded to bf16 where the weight is; of 6BIT, after the rotation, and so perhaps otherwise than here. */
void check_value(int heads, const std::vector<Sequence> &sequences)
{
    Batch b(sequences);
    Weight w(DSV2I_BF16, heads * (nope + v), rank, 0.05f);
    std::vector<float> c = normals((size_t)(b.rows * heads * rank));
    dsv2i_weight of = w.host;
    dsv2i_cuda_launch to = launch_for(b.rows + 3);
    float *out = unset<float>((size_t)((b.rows + 3) * heads * v));

    of.data = w.device;
    expect(dsv2i_cuda_mla_value(&to, b.device, out, up(c), &of, heads) == cudaSuccess, "launch");
    std::vector<float> got = down(out, (size_t)((b.rows + 3) * heads * v));
    std::vector<double> uv((size_t)(v * rank));
    for (int h = 0; h < heads; h += heads > 4 ? 5 : 1) {
        for (size_t i = 0; i < uv.size(); i++)
            uv[i] = ref_value(&w.host, (size_t)(h * (nope + v) + nope) * rank + i);
        for (int row = 0; row < b.rows + 3; row++) {
            const size_t at = (size_t)(row * heads + h);
            if (row >= b.rows || !b.decoded(row)) {
                for (int j = 0; j < v; j++)
                    expect(is_unset(got[at * v + (size_t)j]), "wrote to row %d, which is not its own", row);
                continue;
            }
            std::vector<double> x(&c[at * rank], &c[at * rank] + rank), y = x;
            const bool rotated = b.of(row).kv_type == DSV2I_KV_6BIT;
            if (rotated)
                ref_hadamard(x.data(), y.data(), rank, 0, 1);
            for (double &d : x)
                d = ref_bf16(bf16_of((float)d));
            for (int j = 0; j < v; j++) {
                double size = 0, want = dot(x.data(), &uv[(size_t)(j * rank)], rank), is = (double)got[at * v + (size_t)j];
                for (int k = 0; k < rank; k++)
                    size += fabs(x[(size_t)k] * uv[(size_t)(j * rank + k)]);
                expect(fabs(is - want) <= size * (rotated ? 0x1p-12 : 0x1p-16), "row %d, head %d, %d: %g for %g", row, h, j, is, want);
            }
        }
    }
}

/* Everything, from prepared q to o, by the fast launches or the simple one. */
void check_all(int heads, const std::vector<Sequence> &sequences, bool fast, int dtype, int of_nope = nope, int of_v = v,
               int of_rank = rank, int of_rope = rope)
{
    Batch b(sequences, of_rank, of_rope);
    const int head = of_nope + of_rope, wide = of_rank + of_rope;
    Weight w(dtype, heads * (of_nope + of_v), of_rank, 1 / sqrtf((float)of_rank));
    std::vector<float> q = normals((size_t)((b.rows + 3) * heads * head), 1.5f);
    std::vector<double> want;
    dsv2i_weight of = w.host;
    dsv2i_cuda_launch to = launch_for(b.rows + 3);
    float *out = unset<float>((size_t)((b.rows + 3) * heads * of_v)), *on_device = up(q);
    dsv2i_shape shape = {};

    shape.num_attention_heads = heads;
    shape.kv_lora_rank = of_rank;
    shape.qk_nope_head_dim = of_nope;
    shape.qk_rope_head_dim = of_rope;
    shape.v_head_dim = of_v;
    shape.softmax_scale = 1 / sqrtf((float)head);
    of.data = w.device;
    if (fast) {
        uint16_t *q_latent = unset<uint16_t>((size_t)((b.rows + 3) * heads * width));
        float *o_latent = unset<float>((size_t)((b.rows + 3) * heads * rank));
        char *scratch = unset<char>(dsv2i_cuda_mla_scratch(&to, heads));

        expect(dsv2i_cuda_mla_plan(&to, b.device, scratch, heads) == cudaSuccess, "plan");
        expect(dsv2i_cuda_mla_absorb(&to, b.device, q_latent, on_device, &of, heads, shape.softmax_scale) == cudaSuccess, "absorb");
        expect(dsv2i_cuda_mla_decode(&to, b.device, o_latent, q_latent, b.layer, heads, scratch) == cudaSuccess, "decode");
        expect(dsv2i_cuda_mla_value(&to, b.device, out, o_latent, &of, heads) == cudaSuccess, "value");
    }
    expect(dsv2i_cuda_mla_attend_any(&to, b.device, out, on_device, &of, b.layer, heads, of_nope, of_v, of_rope, shape.softmax_scale, fast)
               == cudaSuccess, "attend_any");
    std::vector<float> got = down(out, (size_t)((b.rows + 3) * heads * of_v));
    for (int row = 0; row < b.rows; row++) {
        const int type = b.of(row).kv_type, n_keys = b.pos[(size_t)row] + 1;
        const float *of_row = &q[(size_t)(row * heads * head)];
        std::vector<double> x(of_row, of_row + heads * head), keys((size_t)(n_keys * wide)), o((size_t)(heads * of_v));

        const size_t bytes = ::dsv2i_kv_record(type, of_rank, of_rope).bytes;
        for (int t = 0; t < n_keys; t++)
            ref_kv_read(&keys[(size_t)(t * wide)], &b.records[(size_t)b.seq[(size_t)row]][(size_t)t * bytes], type, of_rank, of_rope);
        ref_attend(o.data(), x.data(), keys.data(), n_keys, &w.host, &shape);
        want.insert(want.end(), o.begin(), o.end());
    }
    close_to(got, want, fast ? 3e-2 : 2e-5);
}

}

int main()
{
    const int A = DSV2I_ABSORBED, E = DSV2I_EXPANDED, BF16 = DSV2I_KV_BF16, F32 = DSV2I_KV_F32, E4M3 = DSV2I_KV_F8_E4M3,
              E5M2 = DSV2I_KV_F8_E5M2, INT8 = DSV2I_KV_INT8, BIT6 = DSV2I_KV_6BIT;
    const Card h100 = {90, 4, 0}, a100 = {80, 4, 0};

    const dsv2i_hooks hooks = {heap_alloc, heap_free, nullptr};
    if (dsv2i_cpu_open(&hooks, 0, 1, &cpu)) {
        printf("Bail out! no CPU backend\n");
        return 1;
    }
    run("16 heads, one row", 6, [=] { check_decode(16, {{299, 1, BF16, A}}, h100); });
    run("16 heads, a context of one token", 4, [=] { check_decode(16, {{0, 1, BF16, A}}, h100); });
    for (int type : {E4M3, E5M2, INT8, BIT6})
        run("16 heads, records of type " + std::to_string(type), 2, [=] { check_decode(16, {{199, 1, type, A}}, h100); });
    run("4 heads, rows of several sequences", 2, [=] {
        check_decode(4, {{70, 4, BF16, A}, {5, 2, F32, A}, {130, 1, INT8, A}, {3, 2, BF16, E}, {0, 3, BIT6, A}, {63, 1, E4M3, A}}, h100);
    });
    run("16 heads, rows of several sequences", 2, [=] {
        check_decode(16, {{70, 5, BF16, A}, {5, 2, F32, A}, {130, 2, INT8, A}, {3, 2, BF16, E}, {0, 3, BIT6, A}, {63, 1, E4M3, A}}, h100);
    });
    run("128 heads, one row", 2, [=] { check_decode(128, {{150, 1, BF16, A}}, a100); });
    run("128 heads, two rows of 6BIT", 1, [=] { check_decode(128, {{63, 2, BIT6, A}}, a100); });
    run("128 heads, two rows of E5M2 and one", 1, [=] { check_decode(128, {{95, 2, E5M2, A}, {3, 1, BF16, A}}, a100); });
    run("128 heads, wgmma", 2, [=] { check_decode(128, {{330, 1, BF16, A}}, h100); });
    for (int type : {E4M3, E5M2, INT8, BIT6})
        run("64 heads, wgmma, records of type " + std::to_string(type), 1, [=] { check_decode(64, {{150, 1, type, A}}, {90, 2, 0}); });
    run("72 heads, wgmma, sequences of all types", 2, [=] {
        check_decode(72, {{70, 2, BF16, A}, {5, 1, F32, A}, {190, 1, INT8, A}, {3, 1, BF16, E}, {0, 2, BIT6, A}, {63, 1, E4M3, A}, {1, 1, BF16, A}},
                     {90, 3, 0});
    });
    run("64 heads, wgmma, a long context", 1, [=] { check_long(64, BF16, 1500, {{90, 1, 0}, {90, 5, 0}, {90, 12, 0}}); });
    run("128 heads, a small card", 1, [=] { check_decode(128, {{95, 1, INT8, A}}, {89, 8, 0}); });
    run("a long context, cut where it comes", 1, [=] { check_long(4, BF16, 3000, {{90, 2, 0}, {80, 7, 0}, {90, 24, 0}}); });
    run("a long context, one tree", 1, [=] { check_long(1, INT8, 5000, {{90, 1, 1}, {90, 3, 1}, {90, 8, 1}}); });
    run("a NaN, BF16", 1, [=] { check_nan(BF16, 4); });
    run("a NaN, INT8", 1, [=] { check_nan(INT8, 4); });
    run("a NaN, BF16, wgmma", 1, [=] { check_nan(BF16, 72); });
    run("a NaN, 6BIT, wgmma", 1, [=] { check_nan(BIT6, 72); });
    run("a tree of five leaves, each by itself", 1, [=] { check_decode(4, {{2070, 1, INT8, A}}, {90, 3, 1}, 0.15f); });
    run("a tree of five leaves, in two nodes", 1, [=] { check_decode(4, {{2070, 1, INT8, A}, {1, 1, BF16, A}}, {90, 1, 1}, 0.15f); });
    run("the same twice, wgmma", 1, [=] { check_same(64, {{250, 1, BF16, A}, {40, 2, E4M3, A}}, h100); });
    run("the same twice", 1, [=] { check_same(16, {{250, 1, BF16, A}, {40, 3, E4M3, A}}, h100); });
    run("the same in any company", 1, [=] {
        check_same(16, {{250, 1, BF16, A}, {509, 6, INT8, A}, {33, 2, BIT6, A}, {9, 1, F32, A}}, {90, 3, 1});
    });
    run("absorb", 2, [] { check_absorb(4, 19); });
    run("absorb, two blocks of rows", 1, [] { check_absorb(1, 67); });
    run("value", 2, [=] { check_value(4, {{0, 2, BF16, A}, {0, 1, E4M3, E}, {0, 3, BIT6, A}, {0, 1, F32, A}, {0, 1, INT8, A}}); });
    run("value, two blocks of rows", 1, [=] { check_value(1, {{0, 65, BF16, A}, {1, 1, BIT6, E}, {1, 1, BIT6, A}}); });
    run("16 heads, all of it", 2, [=] {
        check_all(16, {{30, 2, BF16, A}, {60, 1, BIT6, A}, {12, 2, F32, A}, {70, 1, INT8, A}}, true, DSV2I_BF16);
    });
    run("any shape: 3 heads", 2, [=] {
        check_all(3, {{30, 2, BF16, A}, {60, 1, BIT6, E}, {120, 2, F32, A}, {70, 1, INT8, A}, {0, 2, E5M2, E}, {2, 1, E4M3, A}}, false,
                  DSV2I_F32, 24, 20, 96, 6);
    });
    run("any shape: rank 37", 2, [=] { check_all(1, {{30, 2, BF16, A}, {66, 1, BIT6, E}}, false, DSV2I_F16, 1, 3, 37, 2); });
#ifndef DSV2I_EMULATED /* where it costs nothing: sizes at which all of a card is used */
    int n_sms = 132;
    cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, 0);
    const Card card = {launch_for(1).sm, n_sms, 0};
    run("16 heads, long contexts", 1, [=] {
        check_decode(16, {{8190, 2, BF16, A}, {4095, 1, BF16, A}, {3000, 1, E4M3, A}, {777, 3, BIT6, A}, {5, 1, F32, A}, {2000, 1, INT8, A}}, card);
    });
    run("128 heads, long contexts", 1, [=] { check_decode(128, {{4095, 1, BF16, A}, {1023, 2, E4M3, A}, {500, 1, BIT6, A}}, card); });
    run("16 heads, 64 sequences", 1, [=] {
        std::vector<Sequence> all;
        for (int i = 0; i < 64; i++)
            all.push_back({i * 37 % 700, 1, i % 5 ? BF16 : BIT6, A});
        check_decode(16, all, card);
        check_same(16, all, card);
    });
    run("absorb, 128 heads", 1, [] { check_absorb(128, 37); });
    run("value, 128 heads", 1, [=] { check_value(128, {{0, 30, BF16, A}, {0, 5, BIT6, A}}); });
#endif
    return finish();
}
