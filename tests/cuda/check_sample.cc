/* Sampling on the device draws the token that the C library draws from the same logits: rows of all kinds beside each other, with all kinds
 * of parameters, compared token for token; and the score of a target in parts.
 *
 * SPDX-License-Identifier: MIT */
#include "checks.h"

#include <algorithm>

extern "C" {
#include "cpu_sampler.h"
#include "sampling.h"
}

namespace {

const float infinity = INFINITY;

int below(int n) { return (int)(uniform(0, 1) * (float)n); }
bool once_in(int n) { return below(n) == 0; }

/* ---- rows ----------------------------------------------------------------------------------------------------------------------- */

enum Kind { NORMAL, COARSE, EQUAL, FLAT, PEAKED, HUGE_RANGE, MASKED, ZEROS, TWO, NONE, BAD, KINDS };

std::vector<float> logits_of(int kind, int n)
{
    std::vector<float> l = normals((size_t)n, kind == FLAT ? 0.001f : kind == PEAKED ? 30.0f : 3.0f);

    for (int i = 0; i < n; i++) {
        float &x = l[(size_t)i];
        switch (kind) {
        case COARSE: x = rintf(x / 2) * 2; break;
        case EQUAL: x = 7.25f; break;
        case HUGE_RANGE: x = (i % 3 == 0 ? 1e38f : i % 3 == 1 ? 1e-40f : 1) * x; break;
        case MASKED: x = i % 5 ? x : -infinity; break;
        case ZEROS: x = i % 2 ? 0.0f : -0.0f; break;
        case TWO: x = i == n / 3 || i == n / 2 ? 4 : -4; break;
        case NONE: x = -infinity; break;
        default: break;
        }
    }
    if (kind == BAD)
        l[(size_t)below(n)] = once_in(2) ? NAN : infinity;
    return l;
}

/* Everything that a row's choice depends on. */
struct Row {
    std::vector<float> logits;
    dsv2_sample_params params = {};
    std::vector<dsv2_logit_bias> bias;
    std::vector<int32_t> tokens, eos, stop;
    int n_prompt = 0;
};

dsv2_sample_params defaults()
{
    dsv2_sample_params p = {};
    p.struct_size = sizeof p;
    p.temperature = p.top_p = p.repetition_penalty = 1;
    p.logit_bias_size = sizeof(dsv2_logit_bias);
    return p;
}

template <size_t n> float one_of(const float (&values)[n]) { return values[below(n)]; }

Row random_row(int n, int kind)
{
    Row r;
    dsv2_sample_params &p = r.params = defaults();

    r.logits = logits_of(kind, n);
    p.seed = (uint64_t)below(1 << 24) << below(40);
    r.tokens.resize((size_t)below(3 * 32));
    for (int32_t &t : r.tokens)
        t = below(once_in(2) ? n : std::min(n, 20));
    r.n_prompt = below((int)r.tokens.size() + 1);
    if (!once_in(3))
        p.temperature = one_of({0, 9e-6f, 1e-5f, 0.005f, 0.1f, 0.5f, 0.8f, 1.3f, 2, 50, 1e30f, 3e38f});
    if (once_in(2))
        p.top_k = (int32_t)one_of({-1, 1, 1, 2, 5, 40, 50, (float)n - 1, (float)n, (float)n + 1, 2e9f, (float)(1 + below(n))});
    if (once_in(2))
        p.top_p = once_in(3) ? one_of({1e-38f, 1e-9f, 0.5f, 0.99999f, 0.99999994f, 1}) : uniform(0.01f, 0.999f);
    if (once_in(3))
        p.min_p = once_in(2) ? one_of({1e-40f, 1e-6f, 0.05f, 0.5f, 0.999f, 1}) : uniform(0, 0.3f);
    if (once_in(4))
        p.repetition_penalty = one_of({0.5f, 0.9f, 1.1f, 1.3f, 1e-39f});
    if (once_in(4))
        p.presence_penalty = uniform(-2, 2);
    if (once_in(4))
        p.frequency_penalty = uniform(-2, 2);
    if (once_in(5))
        for (int i = below(9); i > 0; i--)
            r.bias.push_back({below(std::min(n, 12)), one_of({-infinity, -300, -100, -1.5f, 0.1f, 1e-8f, 3, 7.7f, 100, infinity})});
    if (once_in(5)) {
        p.min_tokens = below(40);
        for (int i = below(4); i > 0; i--)
            r.eos.push_back(below(n));
        for (int i = below(4); i > 0; i--)
            r.stop.push_back(below(n));
    }
    return r;
}

/* The token before which this row stands is its position. */
int position(const Row &r) { return (int)r.tokens.size(); }

void point_at_lists(Row &r)
{
    r.params.logit_bias = r.bias.data();
    r.params.n_logit_bias = r.bias.size();
    r.params.stop_tokens = r.stop.data();
    r.params.n_stop_tokens = r.stop.size();
}

/* As a backend makes it of the parameters. */
dsv2i_sampling on_device(const Row &r)
{
    const dsv2_sample_params &p = r.params;
    std::vector<dsv2i_bias> bias;
    std::vector<dsv2i_seen> seen;
    std::vector<int32_t> banned;
    dsv2i_sampling s = {};

    for (const dsv2_logit_bias &b : r.bias)
        bias.push_back({b.token, b.bias});
    std::stable_sort(bias.begin(), bias.end(), [](const dsv2i_bias &a, const dsv2i_bias &b) { return a.token < b.token; });
    if (position(r) - r.n_prompt < p.min_tokens) {
        banned = r.eos;
        banned.insert(banned.end(), r.stop.begin(), r.stop.end());
    }
    if (p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0)
        for (int i = 0; i < position(r); i++) {
            size_t at = 0;
            while (at < seen.size() && seen[at].token != r.tokens[(size_t)i])
                at++;
            if (at == seen.size())
                seen.push_back({r.tokens[(size_t)i], 0});
            seen[at].count += i >= r.n_prompt;
        }
    s.seed = p.seed;
    s.pos = (uint64_t)position(r);
    s.per_temperature = dsv2i_per_temperature(p.temperature);
    s.lowest = dsv2i_lowest(p.min_p);
    s.greedy = p.temperature < DSV2I_GREEDY_BELOW;
    s.top_k = p.top_k;
    s.top_p = p.top_p;
    s.repetition_penalty = p.repetition_penalty;
    s.presence_penalty = p.presence_penalty;
    s.frequency_penalty = p.frequency_penalty;
    s.n_banned = (int32_t)banned.size();
    s.n_bias = (int32_t)bias.size();
    s.n_seen = (int32_t)seen.size();
    s.banned = up(banned);
    s.bias = up(bias);
    s.seen = up(seen);
    return s;
}

/* ---- sample --------------------------------------------------------------------------------------------------------------------- */

int drawn, other_than_best; /* over all checks */

/* All rows at once, and again in the scratch they left. */
void check_rows(std::vector<Row> &rows, int n, const std::vector<uint32_t> &is_token, int multiprocessors, bool greedy = false)
{
    const int count = (int)rows.size(), ld = (n + 3) / 4 * 4 + (n % 8 ? 4 : 0);
    std::vector<float> logits((size_t)((count + 1) * ld), NAN);
    std::vector<dsv2i_sampling> how;
    dsv2i_cuda_launch to = launch_for(count + 1);
    size_t bytes = dsv2i_cuda_sample_scratch(count + 1, n);
    std::vector<char> cpu_memory(cpu_scratch(n)), zeroed(bytes);

    to.n_sms = multiprocessors;
    for (int i = 0; i < count; i++) {
        point_at_lists(rows[(size_t)i]);
        std::copy(rows[(size_t)i].logits.begin(), rows[(size_t)i].logits.end(), logits.begin() + i * ld);
        how.push_back(on_device(rows[(size_t)i]));
    }
    how.push_back({});
    const float *logits_device = up(logits);
    const dsv2i_sampling *how_device = up(how);
    const uint32_t *tokens_device = is_token.empty() ? nullptr : up(is_token);
    const int32_t *n_rows = up(std::vector<int32_t>{count});
    char *scratch = up(zeroed);
    for (int time = 0; time < 2; time++) {
        int32_t *token = unset<int32_t>((size_t)(count + 1));
        float *logprob = unset<float>((size_t)(count + 1));

        auto launcher = greedy ? dsv2i_cuda_argmax : dsv2i_cuda_sample;
        expect(launcher(&to, n_rows, token, logprob, logits_device, ld, n, how_device, tokens_device, scratch) == cudaSuccess, "launch");
        std::vector<int32_t> got = down(token, (size_t)(count + 1));
        std::vector<float> got_logprob = down(logprob, (size_t)(count + 1));
        for (int i = 0; i < count; i++) {
            const Row &r = rows[(size_t)i];
            const cpu_row row = {r.logits.data(), n, r.tokens.data(), r.n_prompt, position(r), r.eos.data(), (int32_t)r.eos.size(),
                                 is_token.empty() ? nullptr : is_token.data()};
            const dsv2_sample_params &p = r.params;
            int32_t want = cpu_choose(&row, &p, cpu_memory.data());
            float of_it = got_logprob[(size_t)i];

            expect(want > -2, "parameters out of range");
            expect(got[(size_t)i] == want, "row %d of %d, vocab %d: token %d for %d; temperature %g, top_k %d, top_p %.9g, min_p %g", i, count,
                   n, got[(size_t)i], want, (double)p.temperature, p.top_k, (double)p.top_p, (double)p.min_p);
            if (want >= 0) {
                double right = r.logits[(size_t)want] - cpu_log_sum_exp(r.logits.data(), n);
                /* expf is off by at most 2^-21 of each term; then one rounding to fp32. */
                expect(fabs((double)of_it - right) <= 0x1p-21 + fabs(right) * 0x1p-23, "row %d: logprob %.9g for %.9g", i, (double)of_it, right);
            } else {
                expect(std::isnan(of_it), "row %d: logprob %g where there is no token", i, (double)of_it);
            }
            drawn += want >= 0;
            other_than_best += want >= 0 && r.logits[(size_t)want] < *std::max_element(r.logits.begin(), r.logits.end());
        }
        expect(is_unset(got[(size_t)count]) && is_unset(got_logprob[(size_t)count]), "wrote past the last row");
    }
}

void check_random(int rows, int n, int multiprocessors, bool padding)
{
    std::vector<Row> r;
    std::vector<uint32_t> is_token;

    for (int i = 0; i < rows; i++)
        r.push_back(random_row(n, once_in(2) ? NORMAL : below(KINDS)));
    if (padding) {
        is_token.resize((size_t)(n + 31) / 32);
        for (int i = 0; i < n; i++)
            is_token[(size_t)i / 32] |= (unsigned)(i < n - n / 10 && i % 9 != 4) << i % 32;
    }
    check_rows(r, n, is_token, multiprocessors);
}

void check_greedy(int rows, int n)
{
    std::vector<Row> r;

    for (int i = 0; i < rows; i++) {
        r.push_back(random_row(n, i % KINDS));
        r.back().params.temperature = once_in(2) ? 0 : 9e-6f;
    }
    check_rows(r, n, {}, 4, true);
}

/* More logits in the bin of a border than limit lists: it has to look at the row itself. */
void check_crowded(int n)
{
    std::vector<Row> r;
    std::vector<uint32_t> is_token((size_t)(n + 31) / 32, 0x96A5F0C3); /* half of them */

    for (int i = 0; i < 12; i++) {
        r.push_back(random_row(n, (const int[]){FLAT, EQUAL, ZEROS}[i % 3]));
        dsv2_sample_params &p = r.back().params;
        p.temperature = i % 3 ? 1 : 0.1f;
        p.top_k = i < 8 ? n / 2 + i : 0;
        p.top_p = i < 4 ? 1 : 0.3f;
        p.min_p = i % 2 ? 0.985f : 0;
    }
    check_rows(r, n, is_token, 4);
}

/* A vocabulary of V2, with what serving asks for, and what the lists cannot hold. */
void check_large(int n, int multiprocessors)
{
    std::vector<Row> r;

    for (int i = 0; i < 6; i++) {
        Row row;
        row.params = defaults();
        row.logits = i == 4 ? std::vector<float>((size_t)n, 0.5f) : normals((size_t)n, 3);
        row.tokens.resize((size_t)(100 + i));
        row.params.seed = 5;
        row.params.temperature = i == 3 ? 10.0f : 0.8f;
        row.params.top_p = i == 0 ? 0.95f : i == 2 ? 0.9f : i == 3 ? 0.97f : i == 4 ? 0.7f : 1.0f;
        row.params.top_k = i == 1 ? 50 : i == 2 ? 5000 : 0;
        row.params.repetition_penalty = i == 2 ? 1.1f : 1;
        r.push_back(row);
    }
    check_rows(r, n, {}, multiprocessors);
}

/* ---- score ---------------------------------------------------------------------------------------------------------------------- */

void check_score(int rows, int vocab, int part)
{
    std::vector<std::vector<float>> logits;
    std::vector<int32_t> target;
    std::vector<float> of_target((size_t)(3 * rows + 9));
    dsv2i_cuda_launch to = launch_for(rows + 3);
    dsv2i_score *out = unset<dsv2i_score>((size_t)(rows + 3));
    dsv2i_cuda_stand *stand = unset<dsv2i_cuda_stand>((size_t)(rows + 3));
    const int kinds[] = {NORMAL, COARSE, EQUAL, PEAKED, MASKED, ZEROS, TWO, BAD, NONE};

    for (int i = 0; i < rows; i++) {
        logits.push_back(logits_of(kinds[i % 9], vocab));
        if (kinds[i % 9] == MASKED)
            logits.back()[1] = -40; /* so that the first part has a number */
        target.push_back(i == 0 ? 0 : i == 1 ? vocab - 1 : below(vocab));
        of_target[(size_t)(3 * i)] = logits.back()[(size_t)target.back()];
    }
    target.resize((size_t)(rows + 3));
    const int32_t *n_rows = up(std::vector<int32_t>{rows}), *target_device = up(target);
    const float *of_target_device = up(of_target);
    for (int begin = 0; begin < vocab; begin += part) {
        const int end = std::min(vocab, begin + part), ld = part + 1;
        std::vector<float> tile((size_t)((rows + 3) * ld), NAN);

        for (int i = 0; i < rows; i++)
            std::copy(logits[(size_t)i].begin() + begin, logits[(size_t)i].begin() + end, tile.begin() + i * ld);
        expect(dsv2i_cuda_score(&to, n_rows, out, stand, up(tile), ld, begin, end, vocab, target_device, of_target_device, 3) == cudaSuccess,
               "launch");
    }
    std::vector<dsv2i_score> got = down(out, (size_t)(rows + 3));
    for (int i = 0; i < rows; i++) {
        const std::vector<float> &l = logits[(size_t)i];
        const dsv2i_score &g = got[(size_t)i];
        double sum = cpu_log_sum_exp(l.data(), vocab);
        int top = 0;

        for (int t = 0; t < vocab; t++)
            top = l[(size_t)t] > l[(size_t)top] || (std::isnan(l[(size_t)top]) && l[(size_t)t] > -infinity) ? t : top;
        if (std::isnan(sum) || std::isinf(sum)) {
            expect(std::isnan(g.logprob) && std::isnan(g.top_logprob), "row %d: logprob %g, %g of no number", i, (double)g.logprob,
                   (double)g.top_logprob);
            continue;
        }
        double right = l[(size_t)target[(size_t)i]] - sum, right_top = l[(size_t)top] - sum;
        /* expf: 2^-21 of each term; fp32: differences of the size of the result, their sum, and ln */
        expect(fabs((double)g.logprob - right) <= 0x1p-20 + fabs(right) * 0x1p-22, "row %d: logprob %.9g for %.9g", i, (double)g.logprob, right);
        expect(fabs((double)g.top_logprob - right_top) <= 0x1p-20 + fabs(right_top) * 0x1p-22, "row %d: top %.9g for %.9g", i,
               (double)g.top_logprob, right_top);
        expect(g.rank == cpu_rank(l.data(), vocab, target[(size_t)i]), "row %d: rank %d for %d", i, g.rank,
               cpu_rank(l.data(), vocab, target[(size_t)i]));
        expect(g.top_token == top, "row %d: token %d for %d", i, g.top_token, top);
    }
    for (int i = rows; i < rows + 3; i++)
        expect(is_unset(got[(size_t)i].rank), "wrote past the last row");
}

void check_gather(int dtype, int cols)
{
    const int rows = 5, vocab = 40;
    const Weight w(dtype, vocab, cols, 1);
    dsv2i_weight on = w.host;
    std::vector<int32_t> target = {39, 0, 7, 7, 20, 1 << 30};
    dsv2i_cuda_launch to = launch_for(rows + 1);
    const size_t bytes = (size_t)cols * (dtype == DSV2I_F32 ? 4 : 2);
    unsigned char *out = unset<unsigned char>((rows + 1) * bytes);

    on.data = w.device;
    expect(dsv2i_cuda_gather_rows(&to, up(std::vector<int32_t>{rows}), out, &on, up(target)) == cudaSuccess, "launch");
    std::vector<unsigned char> got = down(out, (rows + 1) * bytes);
    for (size_t i = 0; i < rows; i++)
        expect(!memcmp(&got[i * bytes], (const char *)w.host.data + (size_t)target[i] * bytes, bytes), "row %zu", i);
    expect(is_unset(got[rows * bytes]), "wrote past the last row");
}

}

int main()
{
    for (int n : {1, 3, 37, 64, 700, 4096, 4099})
        run("sample, vocabulary of " + std::to_string(n), 2, [=] {
            for (int i = 0; i < (n < 30 ? 1 : n > 1000 ? 2 : 4); i++)
                check_random(n > 1000 ? 20 : 40, n, i % 2 ? 4 : 400, i % 3 == 2);
        });
    run("sample, vocabulary of 9000 with padding", 2, [] { check_random(24, 9000, 400, true); });
    run("sample, many logits in a bin", 2, [] { check_crowded(8003); });
    run("sample, vocabulary of 102400", 1, [] { check_large(102400, 132); });
    expect(other_than_best * 4 > drawn, "only %d of %d tokens were not the greatest", other_than_best, drawn);
    printf("# %d tokens, of which %d not the greatest\n", drawn, other_than_best);
    for (int n : {5, 700, 8200})
        run("argmax, vocabulary of " + std::to_string(n), 3, [=] { check_greedy(n > 1000 ? 12 : 60, n); });
    run("score", 3, [] {
        check_score(18, 1000, 1000);
        check_score(18, 1003, 256);
        check_score(9, 37, 5);
    });
    run("gather_rows", 2, [] {
        for (int dtype : {DSV2I_F32, DSV2I_BF16, DSV2I_F16})
            for (int cols : {2048, 37})
                check_gather(dtype, cols);
    });
    return finish();
}
