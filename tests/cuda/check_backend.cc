/* The library on the emulated card, through its public API: against float64, against the CPU backend, and when the card fails.  Built
 * against the toolkit it runs on a card, which then is not asked to fail.
 *
 * SPDX-License-Identifier: MIT */
#include <cuda_runtime_api.h>

#ifdef DSV2I_EMULATED
#include <machine.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

extern "C" {
#include "api_test.h"
#include "cuda/module.h"
}

namespace {

typedef std::vector<float> Logits;

/* A new emulated machine; a card stays. */
void new_card([[maybe_unused]] uint64_t seed = 0)
{
#ifdef DSV2I_EMULATED
    emu::reset(seed);
#endif
}

/* Is it of this capability?  An emulated one becomes so. */
bool have_card(int major, int minor)
{
#ifdef DSV2I_EMULATED
    emu::Machine machine;
    machine.major = major;
    machine.minor = minor;
    emu::reset(1, machine);
    return true;
#else
    int card_major = 0, card_minor = 0;
    cudaDeviceGetAttribute(&card_major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaDeviceGetAttribute(&card_minor, cudaDevAttrComputeCapabilityMinor, 0);
    return card_major == major && card_minor == minor;
#endif
}

/* Nothing has gone wrong on it; cleared: nor is anything left. */
void check_card([[maybe_unused]] bool cleared = false)
{
#ifdef DSV2I_EMULATED
    assert_string_equal(emu::error().c_str(), "");
    if (cleared)
        assert_int_equal(emu::bytes_in_use(), 0);
#endif
}

/* How often the host has waited for it; of a card nobody knows. */
long host_waits()
{
#ifdef DSV2I_EMULATED
    return emu::host_waits();
#else
    static long n;
    return n++;
#endif
}

dsv2_context_params params(int32_t backend, int32_t invariant = 0)
{
    dsv2_context_params p = context_params(2);
    p.backend = backend;
    p.invariant = invariant;
    return p;
}

/* A context with a model and a session; a card is a new machine. */
struct World {
    dsv2_context *ctx = nullptr;
    dsv2_model *model = nullptr;
    dsv2_session *s = nullptr;
    World(int32_t backend, const char *folder, int32_t kv_type, int32_t attention, int32_t invariant = 0, uint64_t seed = 0)
    {
        dsv2_context_params p = params(backend, invariant);
        if (backend == DSV2_BACKEND_CUDA)
            new_card(seed);
        must(dsv2_context_create(&p, &ctx));
        must(dsv2_model_load(ctx, folder, nullptr, &model));
        s = open_session(model, 0, kv_type, attention, 64);
    }
    ~World()
    {
        dsv2_session_free(s);
        dsv2_model_free(model);
        dsv2_context_free(ctx);
        check_card();
    }
    Logits logits(const dsv2_session *of = nullptr) const
    {
        dsv2_model_info info;
        info.struct_size = sizeof info;
        must(dsv2_model_get_info(model, &info));
        const float *l = logits_of(of ? of : s);
        return Logits(l, l + info.vocab_size);
    }
};

/* KL(want || got) of one position. */
double divergence(const Logits &got, const double *want)
{
    double top_got = got[0], top_want = want[0], sum_got = 0, sum_want = 0, kl = 0;
    for (size_t i = 0; i < got.size(); i++) {
        top_got = fmax(top_got, (double)got[i]);
        top_want = fmax(top_want, want[i]);
    }
    for (size_t i = 0; i < got.size(); i++) {
        sum_got += exp((double)got[i] - top_got);
        sum_want += exp(want[i] - top_want);
    }
    for (size_t i = 0; i < got.size(); i++) {
        double lp = want[i] - top_want - log(sum_want);
        kl += exp(lp) * (lp - ((double)got[i] - top_got - log(sum_got)));
    }
    return kl;
}

double distance(const Logits &got, const double *want)
{
    double most = 0, top = 0;
    for (size_t i = 0; i < got.size(); i++) {
        double d = fabs((double)got[i] - want[i]);
        most = d <= most ? most : d; /* NaN too */
        top = fmax(top, fabs(want[i]));
    }
    return most / top;
}

struct Error {
    double worst, mean_kl;
};

/* The fixture's positions, each after a prefill of what is new. */
Error error_of(const char *name, int32_t kv_type, int32_t attention, int32_t invariant = 0)
{
    World w(DSV2_BACKEND_CUDA, golden(name), kv_type, attention, invariant);
    struct fixture f;
    Error e = {0, 0};
    int32_t at = 0;

    fixture_open(&f, name);
    for (size_t i = 0; i < f.n_positions; i++) {
        int32_t end = f.positions[i] + 1;
        must(dsv2_session_prefill(w.s, f.ids + at, (size_t)(end - at)));
        at = end;
        double d = distance(w.logits(), f.logits + i * f.n_vocab);
        e.worst = d <= e.worst ? e.worst : d;
        e.mean_kl += divergence(w.logits(), f.logits + i * f.n_vocab) / (double)f.n_positions;
    }
    fixture_close(&f);
    return e;
}

void test_golden_f32(void **)
{
    for (const char *name : {"v2", "v25", "lite", "null-rope", "ties", "rare", "v5", "spec-b"})
        for (int32_t form : {DSV2_ATTENTION_ABSORBED, DSV2_ATTENTION_EXPANDED}) {
            if (form == DSV2_ATTENTION_EXPANDED && strcmp(name, "lite"))
                continue; /* the same kernels as for the other form */
            double d = error_of(name, DSV2_KV_F32, form).worst;
            print_message("%-10s attention %d: relative error %.1e\n", name, form, d);
            if (!(d < 1e-4))
                fail_msg("%s, attention %d: relative error %g", name, form, d);
        }
}

double hf_number(const char *name, const char *key)
{
    struct fixture f;
    fixture_open(&f, name);
    double number = fixture_number(&f, key);
    fixture_close(&f);
    return number;
}

/* Products round both operands to bf16, as Transformers does: so the error is about that which the fixture has for Transformers in bf16.
 * Its mean KL is the bar; the worst of all logits is a matter of luck between two such roundings, and may be half more. */
void expect_bf16(const char *name, const char *peer, int32_t kv_type, int32_t invariant = 0, double coarser = 1)
{
    double worst = coarser * hf_number(peer, "hf_bf16_max_relative_error"), kl = coarser * coarser * hf_number(peer, "hf_bf16_mean_kl");
    Error e = error_of(name, kv_type, DSV2_ATTENTION_ABSORBED, invariant);
    print_message("%-16s error %.1e, mean KL %.1e; Transformers %.1e, %.1e\n", name, e.worst, e.mean_kl, worst, kl);
    if (!(e.worst <= 1.5 * worst && e.mean_kl <= kl))
        fail_msg("%s: error %g, mean KL %g; Transformers' bf16 has %g, %g", name, e.worst, e.mean_kl, worst, kl);
}

void test_golden_bf16(void **)
{
    for (const char *name : {"v2-bf16", "lite-bf16", "production-heads", "v5-fused-bf16"})
        expect_bf16(name, name, DSV2_KV_BF16);
}

/* What Transformers in bf16 does to v2-bf16 stands in for a peer.  Codes times scales are rounded to bf16 on the card; but where cuBLASLt
 * multiplies them, activations are rounded to e4m3, which is 16 times as coarse: check_fp8 looks at those products one by one. */
void test_golden_fp8(void **)
{
    for (const char *name : {"fp8-block", "fp8-channel", "fp8-tensor"}) {
        expect_bf16(name, "v2-bf16", DSV2_KV_F32, 1);
        expect_bf16(name, "v2-bf16", DSV2_KV_F32, 0, 16);
    }
}

void *host_alloc(void *, size_t size, size_t alignment) { return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment); }
void host_free(void *, void *ptr, size_t) { free(ptr); }

double e4m3(unsigned code)
{
    int e = code >> 3 & 15, m = code & 7;
    double v = e ? ldexp(8 + m, e - 10) : ldexp(m, -9);
    return code & 0x80 ? -v : v;
}

/* A backend that stands in the middle of a step of n rows, for one of its operations. */
struct Operation {
    dsv2i_hooks hooks = {host_alloc, host_free, nullptr};
    dsv2i_backend *be = nullptr;
    int n;
    dsv2i_shape shape = {};
    std::vector<double> inv_freq{1};
    std::vector<std::pair<void *, size_t>> taken;

    explicit Operation(int rows, int hidden, int vocab, int experts = 0) : n(rows)
    {
        const dsv2i_cuda_options options = {0, 0, nullptr};
        const char *why = "";

        if (dsv2i_cuda_open(&hooks, &options, &be, &why))
            fail_msg("%s", why);
        shape.hidden_size = hidden;
        shape.vocab_size = vocab;
        shape.n_routed_experts = experts;
        shape.num_attention_heads = shape.qk_nope_head_dim = shape.v_head_dim = shape.kv_lora_rank = shape.num_experts_per_tok = 1;
        shape.moe_intermediate_size = experts ? 16 : 0;
        shape.qk_rope_head_dim = 2;
        shape.inv_freq = inv_freq.data();
    }
    Operation(const Operation &) = delete;
    Operation &operator=(const Operation &) = delete;
    ~Operation()
    {
        for (const auto &t : taken)
            be->op->mem_free(be, t.first, t.second);
        be->op->close(be);
    }
    template <class T> T *take(size_t count)
    {
        taken.emplace_back(be->op->mem_alloc(be, count * sizeof(T)), count * sizeof(T));
        return (T *)taken.back().first;
    }
    template <class T> T *up(const std::vector<T> &from, size_t count)
    {
        T *to = take<T>(count);
        assert_int_equal(be->op->mem_copy(be, to, from.data(), from.size() * sizeof(T)), 0);
        return to;
    }
    /* w with its data on the device. */
    dsv2i_weight put(dsv2i_weight w)
    {
        void *block = take<char>(be->op->weight_bytes(be, &w, 0));
        assert_int_equal(be->op->reserve(be, &shape, n), 0);
        assert_int_equal(be->op->weight_put(be, block, &w, 0), 0);
        return w;
    }
    template <class F> void step(F does)
    {
        std::vector<int32_t> zeros((size_t)n), pos((size_t)n);
        std::vector<void *> table;
        dsv2i_seq seq = {};
        dsv2i_batch batch = {};

        for (int i = 0; i < n; i++)
            pos[(size_t)i] = i;
        for (int i = 0; i < n; i += DSV2I_PAGE_TOKENS)
            table.push_back(take<char>(4096));
        seq.page = table.data();
        batch.n_rows = n;
        batch.n_seqs = 1;
        batch.token = batch.seq = zeros.data();
        batch.pos = pos.data();
        batch.seqs = &seq;
        be->op->begin(be, &shape, &batch);
        does();
        if (be->op->finish(be))
            fail_msg("%s", be->op->failure(be));
    }
};

/* A product of fp8 by its operation, for the cards' ways to compute it: with activations of e4m3, which are off by 2^-4 at most, or of bf16,
 * with code times scale in bf16, which are off by 2^-9 each. */
void check_fp8(int major, int minor, int scale_rows, int scale_cols, int n, bool quantized)
{
    const int rows = 160, cols = 384, row_blocks = (rows - 1) / scale_rows + 1, col_blocks = (cols - 1) / scale_cols + 1;
    std::vector<uint8_t> codes(rows * cols);
    std::vector<float> scales((size_t)(row_blocks * col_blocks)), x((size_t)(n * cols)), got((size_t)(n * rows));
    uint64_t state = 7;

    if (!have_card(major, minor))
        return;
    for (uint8_t &c : codes) /* nothing is negative, so that a wrong scale does not cancel out */
        c = (uint8_t)(random_u32(&state) % 112);
    for (float &v : scales)
        v = (float)(0.5 + random_unit(&state));
    for (float &v : x)
        v = (float)random_unit(&state);
    dsv2i_weight w = {};
    w.dtype = DSV2I_F8_E4M3;
    w.rows = rows;
    w.cols = cols;
    w.data = codes.data();
    w.scale = scales.data();
    w.scale_rows = scale_rows;
    w.scale_cols = scale_cols;
    {
        Operation o(n, cols, rows); /* results are as large as logits */
        const size_t memory = (size_t)o.be->op->memory_rows(o.be, n);
        float *x_card = o.up(x, memory * cols), *y_card = o.take<float>(memory * rows);
        const dsv2i_weight on_card = o.put(w);
        o.step([&] {
            o.be->op->linear(o.be, y_card, x_card, &on_card, n, 0);
            o.be->op->submit(o.be);
            o.be->op->fetch(o.be, got.data(), y_card, got.size() * sizeof(float));
        });
    }
    double most = 0;
    for (int i = 0; i < n; i++)
        for (int r = 0; r < rows; r++) {
            double want = 0, size = 0;
            for (int c = 0; c < cols; c++) {
                double v = e4m3(codes[(size_t)(r * cols + c)]) * (double)scales[(size_t)(r / scale_rows * col_blocks + c / scale_cols)];
                want += v * (double)x[(size_t)(i * cols + c)];
                size += fabs(v * (double)x[(size_t)(i * cols + c)]);
            }
            double error = fabs((double)got[(size_t)(i * rows + r)] - want) / size;
            most = error <= most ? most : error; /* NaN too */
        }
    if (!(most <= (quantized ? 0x1p-4 : 0x1p-8)) || (quantized && most < 0x1p-12)) /* less: they were not quantized at all */
        fail_msg("sm_%d%d, scales %d x %d, %d rows: error %g of the terms' sizes", major, minor, scale_rows, scale_cols, n, most);
    check_card(true);
}

/* The router works from fp32 for any number of rows: its probabilities are off by what fp32 rounds, not by 2^-9 of the logits' terms. */
void test_route(void **)
{
    const int experts = 24, cols = 128;
    for (int n : {2, 40, 300}) {
        std::vector<uint16_t> half((size_t)(experts * cols));
        std::vector<float> x((size_t)(n * cols)), weight((size_t)n), got((size_t)n);
        std::vector<int32_t> idx((size_t)n);
        uint64_t state = 11;

        new_card();
        for (uint16_t &h : half)
            h = (uint16_t)(0x3E00 + random_u32(&state) % 0x180 + (random_u32(&state) % 2 << 15)); /* 1/8 to 1, and their negatives */
        for (float &v : x)
            v = (float)(2 * random_unit(&state) - 1);
        dsv2i_weight w = {};
        w.dtype = DSV2I_BF16;
        w.rows = experts;
        w.cols = cols;
        w.data = half.data();
        const dsv2i_route route = {1, 1, 1, 0, 1};
        {
            Operation o(n, cols, 64, experts);
            const size_t memory = (size_t)o.be->op->memory_rows(o.be, n);
            float *x_card = o.up(x, memory * cols), *weight_card = o.take<float>(memory);
            int32_t *idx_card = o.take<int32_t>(memory);
            const dsv2i_weight on_card = o.put(w);
            o.step([&] {
                o.be->op->moe_route(o.be, idx_card, weight_card, x_card, &on_card, &route, n);
                o.be->op->submit(o.be);
                o.be->op->fetch(o.be, idx.data(), idx_card, idx.size() * sizeof(int32_t));
                o.be->op->fetch(o.be, got.data(), weight_card, got.size() * sizeof(float));
            });
        }
        for (int i = 0; i < n; i++) {
            std::vector<double> logit;
            double sum = 0;
            for (int e = 0; e < experts; e++) {
                double l = 0;
                for (int c = 0; c < cols; c++) {
                    uint32_t bits = (uint32_t)half[(size_t)(e * cols + c)] << 16;
                    float f;
                    memcpy(&f, &bits, 4);
                    l += (double)f * (double)x[(size_t)(i * cols + c)];
                }
                logit.push_back(l);
            }
            for (double l : logit)
                sum += exp(l);
            const double want = idx[(size_t)i] >= 0 && idx[(size_t)i] < experts ? exp(logit[(size_t)idx[(size_t)i]]) / sum : NAN;
            const double most = *std::max_element(logit.begin(), logit.end());
            if (!(fabs((double)got[(size_t)i] - want) <= 2e-5 * want) || exp(most) / sum > want * 1.00002)
                fail_msg("%d rows, row %d: expert %d with %.9g for %.9g", n, i, idx[(size_t)i], (double)got[(size_t)i], want);
        }
        check_card(true);
    }
}

void test_fp8_products(void **)
{
    const int all = 160, whole = 384; /* rows and columns */
    for (int n : {2, 3, 33}) {
        bool many = n > 2;
        check_fp8(9, 0, all, whole, n, many);
        check_fp8(9, 0, 1, whole, n, many);
        check_fp8(9, 0, 128, 128, n, many);
        check_fp8(8, 9, all, whole, n, many);
        check_fp8(8, 9, 128, 128, n, false); /* cuBLASLt takes blocks on sm_90 only */
        check_fp8(8, 0, all, whole, n, false);
    }
}

/* Is only what is different worth its time?  Sanitizers set this, as for other checks of kernels. */
bool in_brief() { return getenv("DSV2_TEST_SEEDS") != nullptr; }

int32_t best(const Logits &l)
{
    int32_t top = 0;
    for (size_t i = 1; i < l.size(); i++)
        if (l[i] > l[(size_t)top])
            top = (int32_t)i;
    return top;
}

/* Greedy text after a prompt. */
std::vector<int32_t> write(const World &w, const std::vector<int32_t> &prompt, int n)
{
    std::vector<int32_t> out;
    must(dsv2_session_prefill(w.s, prompt.data(), prompt.size()));
    for (int i = 0; i < n; i++) {
        out.push_back(best(w.logits()));
        must(dsv2_session_decode(w.s, out.back()));
    }
    return out;
}

void test_bundled_text(void **)
{
    const char text[] = "Once upon a time";
    for (int32_t kv_type : {DSV2_KV_BF16, DSV2_KV_6BIT}) {
        World cpu(DSV2_BACKEND_CPU, MODEL, kv_type, DSV2_ATTENTION_ABSORBED);
        World card(DSV2_BACKEND_CUDA, MODEL, kv_type, DSV2_ATTENTION_ABSORBED);
        std::vector<int32_t> prompt(64);
        size_t n = 0;
        must(dsv2_tokenize(cpu.model, text, strlen(text), DSV2_TOKENIZE_BOS, prompt.data(), prompt.size(), &n));
        prompt.resize(n);
        const int n_tokens = in_brief() ? 2 : kv_type == DSV2_KV_BF16 ? 12 : 6;
        std::vector<int32_t> want = write(cpu, prompt, n_tokens), got = write(card, prompt, n_tokens);
        for (size_t i = 0; i < want.size(); i++)
            if (got[i] != want[i])
                fail_msg("KV type %d: token %zu is %d, on the CPU %d", kv_type, i, got[i], want[i]);
    }
}

/* A token is decoded by launches the first time, recorded the second, replayed later: the same bits, and one wait each. */
void test_recorded(void **)
{
    const int32_t ids[] = {3, 1, 4, 1, 5, 9, 2, 6};
    std::vector<Logits> want;
    for (int32_t id : ids) {
        World once(DSV2_BACKEND_CUDA, golden("v2"), DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED);
        must(dsv2_session_prefill(once.s, ids, 5));
        must(dsv2_session_decode(once.s, id));
        want.push_back(once.logits());
    }
    for (uint64_t seed = 0; seed < (in_brief() ? 1 : 4); seed++) {
        World w(DSV2_BACKEND_CUDA, golden("v2"), DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 0, seed);
        must(dsv2_session_prefill(w.s, ids, 5));
        for (size_t i = 0; i < 8; i++) {
            must(dsv2_session_truncate(w.s, 5));
            long before = host_waits();
            must(dsv2_session_decode(w.s, ids[i]));
            assert_int_equal(host_waits() - before, 1);
            Logits got = w.logits();
            if (memcmp(got.data(), want[i].data(), got.size() * sizeof(float)))
                fail_msg("seed %d, token %zu: other bits", (int)seed, i);
        }
    }
}

/* What is recorded belongs to a model, and to memory that is still there: two models in one context, and a session that needs more. */
void test_recorded_for(void **)
{
    const int32_t ids[] = {3, 1, 4, 1, 5, 9, 2, 6};
    const char *const names[] = {"v2", "lite"};
    std::vector<Logits> want[2];
    for (int m = 0; m < 2; m++) {
        World once(DSV2_BACKEND_CUDA, golden(names[m]), DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED);
        for (int32_t id : ids) {
            must(dsv2_session_decode(once.s, id));
            want[m].push_back(once.logits());
        }
    }
    World w(DSV2_BACKEND_CUDA, golden("v2"), DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED);
    dsv2_model *lite = open_model(w.ctx, "lite");
    dsv2_session *s[] = {w.s, open_session(lite, 0, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 64)}, *more = nullptr;
    for (size_t i = 0; i < 8; i++) {
        for (int m = 0; m < 2; m++) {
            must(dsv2_session_decode(s[m], ids[i]));
            const float *got = logits_of(s[m]);
            if (memcmp(got, want[m][i].data(), want[m][i].size() * sizeof(float)))
                fail_msg("%s, token %zu: other bits", names[m], i);
        }
        if (i == 4)
            more = open_session(w.model, 0, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 1024);
        if (i == 6) { /* and one that goes, whose place another takes */
            dsv2_session_free(s[1]);
            dsv2_model_free(lite);
            lite = open_model(w.ctx, "lite");
            s[1] = open_session(lite, 0, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 64);
            for (int k = 0; k < 7; k++)
                must(dsv2_session_decode(s[1], ids[k]));
            for (int k = 0; k < 3; k++) {
                must(dsv2_session_truncate(s[1], 6));
                must(dsv2_session_decode(s[1], ids[6]));
            }
        }
    }
    dsv2_session_free(more);
    dsv2_session_free(s[1]);
    dsv2_model_free(lite);
}

/* Many sessions in steps beside the same alone; groups of several sizes, so that graphs serve fewer rows than they were made for. */
void test_step(void **)
{
    enum { N = 5 };
    World w(DSV2_BACKEND_CUDA, golden("v2"), DSV2_KV_F32, DSV2_ATTENTION_ABSORBED);
    World cpu(DSV2_BACKEND_CPU, golden("v2"), DSV2_KV_F32, DSV2_ATTENTION_ABSORBED);
    dsv2_session *s[N], *c[N];
    for (int i = 0; i < N; i++) {
        s[i] = open_session(w.model, 0, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 64);
        c[i] = open_session(cpu.model, 0, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 64);
    }
    for (int round = 0; round < 9; round++) {
        dsv2_step_member members[N] = {}, of_cpu[N] = {};
        int32_t tokens[N][3];
        int n = round < 2 ? N : 1 + round % N;
        for (int i = 0; i < n; i++) {
            for (int k = 0; k < 3; k++)
                tokens[i][k] = (round * 31 + i * 7 + k) % 150;
            members[i].session = s[i];
            members[i].tokens = tokens[i];
            members[i].n_tokens = round == 0 ? 3 : 1;
            of_cpu[i] = members[i];
            of_cpu[i].session = c[i];
        }
        must(dsv2_step(members, sizeof *members, (size_t)n));
        must(dsv2_step(of_cpu, sizeof *of_cpu, (size_t)n));
        for (int i = 0; i < n; i++) {
            Logits got = w.logits(s[i]), want = cpu.logits(c[i]);
            std::vector<double> wide(want.begin(), want.end());
            if (!(distance(got, wide.data()) < 2e-5))
                fail_msg("round %d, session %d: %g from the CPU", round, i, distance(got, wide.data()));
        }
    }
    for (int i = 0; i < N; i++) {
        dsv2_session_free(s[i]);
        dsv2_session_free(c[i]);
    }
}

/* With `invariant`: a session alone, its prompt in pieces, and beside ten others: the same bits. */
void test_invariant(void **)
{
    enum { OTHERS = 10 };
    const int32_t ids[] = {3, 1, 4, 1, 5, 9, 2, 6}, next[] = {7, 8};
    for (const char *name : {"v2-bf16", "production-heads"})
        for (int32_t kv_type : {DSV2_KV_BF16, DSV2_KV_6BIT}) {
            if (in_brief() && kv_type != DSV2_KV_6BIT)
                continue;
            World w(DSV2_BACKEND_CUDA, golden(name), kv_type, DSV2_ATTENTION_ABSORBED, 1);
            dsv2_session *pieces = open_session(w.model, 0, kv_type, DSV2_ATTENTION_ABSORBED, 64), *s[OTHERS + 1];
            dsv2_step_member members[OTHERS + 1] = {};

            must(dsv2_session_prefill(w.s, ids, 8));
            must(dsv2_session_prefill(pieces, ids, 3));
            must(dsv2_session_prefill(pieces, ids + 3, 5));
            for (int i = 0; i <= OTHERS; i++) {
                s[i] = open_session(w.model, 0, kv_type, DSV2_ATTENTION_ABSORBED, 64);
                members[i].session = s[i];
                members[i].tokens = i == OTHERS / 2 ? ids : ids + i % 4;
                members[i].n_tokens = i == OTHERS / 2 ? 8 : 1 + i % 4;
            }
            must(dsv2_step(members, sizeof *members, OTHERS + 1));
            for (int32_t token : next) {
                Logits alone = w.logits(), cut = w.logits(pieces), beside = w.logits(s[OTHERS / 2]);
                if (memcmp(alone.data(), cut.data(), alone.size() * sizeof(float)))
                    fail_msg("%s, KV type %d: other bits when the prompt is cut", name, kv_type);
                if (memcmp(alone.data(), beside.data(), alone.size() * sizeof(float)))
                    fail_msg("%s, KV type %d: other bits beside others", name, kv_type);
                must(dsv2_session_decode(w.s, token));
                must(dsv2_session_decode(pieces, token));
                for (int i = 0; i <= OTHERS; i++) {
                    members[i].tokens = &token;
                    members[i].n_tokens = 1;
                }
                must(dsv2_step(members, sizeof *members, OTHERS + 1));
            }
            for (dsv2_session *one : s)
                dsv2_session_free(one);
            dsv2_session_free(pieces);
        }
}

/* Prompt scores: as on the CPU, whatever a card does by chance. */
void check_scores(uint64_t seed)
{
    const int32_t ids[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5};
    World card(DSV2_BACKEND_CUDA, golden("v2"), DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 0, seed);
    World cpu(DSV2_BACKEND_CPU, golden("v2"), DSV2_KV_F32, DSV2_ATTENTION_ABSORBED);
    dsv2_token_score got[11], want[11];

    must(dsv2_session_score(card.s, ids, 11, got, sizeof *got));
    must(dsv2_session_score(cpu.s, ids, 11, want, sizeof *want));
    for (int i = 1; i < 11; i++)
        if (fabsf(got[i].logprob - want[i].logprob) > 1e-4f || got[i].rank != want[i].rank || got[i].top_token != want[i].top_token
            || fabsf(got[i].top_logprob - want[i].top_logprob) > 1e-4f)
            fail_msg("token %d: %g rank %d, on the CPU %g rank %d", i, (double)got[i].logprob, got[i].rank, (double)want[i].logprob, want[i].rank);
}

void test_scores(void **)
{
    for (uint64_t seed = 0; seed < 8; seed++)
        check_scores(seed);
}

/* Tokens chosen on the card, from logits that do not leave it: what the host chooses from the same logits. */
void test_sampling(void **)
{
    enum { N = 3 };
    World w(DSV2_BACKEND_CUDA, golden("v2"), DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED);
    dsv2_session *by_card[N], *by_host[N];
    dsv2_sample_params params[N];
    const dsv2_logit_bias bias[] = {{7, 12}, {1, 30}, {7, 12}, {3, 23}}; /* in this order 7 is as likely as 3, and 1, the EOS, sure */
    int differ_from_greedy = 0;

    for (int i = 0; i < N; i++) {
        by_card[i] = open_session(w.model, 0, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 64);
        by_host[i] = open_session(w.model, 0, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 64);
        dsv2_sample_params_init(&params[i], sizeof params[i], w.model);
        params[i].temperature = i == 1 ? 0.0f : 1.3f;
        params[i].seed = 11 + (uint64_t)i;
    }
    params[0].top_k = 40;
    params[0].top_p = 0.9f;
    params[0].repetition_penalty = 1.2f;
    params[0].frequency_penalty = 1.5f;
    params[0].presence_penalty = 0.5f;
    params[2].logit_bias = bias;
    params[2].n_logit_bias = 4;
    params[2].min_tokens = 4;
    params[2].min_p = 0.02f;
    std::vector<std::vector<int32_t>> next(N);
    for (int i = 0; i < N; i++)
        next[(size_t)i] = {3 + i, 1, 4};
    for (int round = 0; round < 7; round++) {
        dsv2_step_member card[N] = {}, host[N] = {};
        for (int i = 0; i < N; i++) {
            card[i].session = by_card[i];
            card[i].tokens = next[(size_t)i].data();
            card[i].n_tokens = next[(size_t)i].size();
            card[i].flags = round ? DSV2_STEP_DECODED : 0;
            host[i] = card[i];
            host[i].session = by_host[i];
            card[i].sample = &params[i];
            card[i].flags |= DSV2_STEP_NO_LOGITS;
        }
        must(dsv2_step(card, sizeof *card, N));
        must(dsv2_step(host, sizeof *host, N));
        for (int i = 0; i < N; i++) {
            const float *none;
            size_t n;
            int32_t token;
            float logprob;
            must(dsv2_sample(by_host[i], &params[i], &token, &logprob));
            if (card[i].token != token || fabsf(card[i].logprob - logprob) > 1e-5f)
                fail_msg("round %d, session %d: token %d (%g), by the host %d (%g)", round, i, card[i].token, (double)card[i].logprob, token,
                         (double)logprob);
            expect(dsv2_session_logits(by_card[i], &none, &n), DSV2_ERR_STATE, "");
            differ_from_greedy += token != best(w.logits(by_host[i]));
            next[(size_t)i] = {token};
        }
    }
    assert_true(differ_from_greedy > 4);
    for (int i = 0; i < N; i++) {
        dsv2_session_free(by_card[i]);
        dsv2_session_free(by_host[i]);
    }
}

/* Saved on the card, restored on the CPU, and the other way round. */
void test_exchange(void **)
{
    const int32_t ids[] = {3, 1, 4, 1, 5, 9, 2, 6};
    World card(DSV2_BACKEND_CUDA, golden("v2"), DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED);
    World cpu(DSV2_BACKEND_CPU, golden("v2"), DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED);
    std::vector<char> saved(1 << 20);
    size_t n = 0;

    must(dsv2_session_prefill(card.s, ids, 8));
    must(dsv2_session_export(card.s, saved.data(), saved.size(), &n));
    must(dsv2_session_import(cpu.s, saved.data(), n));
    must(dsv2_session_decode(card.s, 7));
    must(dsv2_session_decode(cpu.s, 7));
    Logits got = card.logits(), want = cpu.logits();
    std::vector<double> wide(want.begin(), want.end());
    assert_true(distance(got, wide.data()) < 2e-5);
    must(dsv2_session_export(cpu.s, saved.data(), saved.size(), &n));
    must(dsv2_session_import(card.s, saved.data(), n));
    must(dsv2_session_decode(card.s, 9));
    must(dsv2_session_decode(cpu.s, 9));
    got = card.logits(), want = cpu.logits();
    wide.assign(want.begin(), want.end());
    assert_true(distance(got, wide.data()) < 2e-5);
}

#ifdef DSV2I_EMULATED
/* A step whose recording another thread spoils, at its beginning or its end, is made without one, and so are all like it. */
void test_spoiled_capture(void **)
{
    World cpu(DSV2_BACKEND_CPU, golden("v2"), DSV2_KV_F32, DSV2_ATTENTION_ABSORBED);
    for (long nth = 1; nth <= 2; nth++) {
        World w(DSV2_BACKEND_CUDA, golden("v2"), DSV2_KV_F32, DSV2_ATTENTION_ABSORBED);
        dsv2_session *s = open_session(w.model, 0, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 64);
        dsv2_session *c = open_session(cpu.model, 0, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 64);
        for (int32_t token = 1; token <= 5; token++) {
            if (token == 2) /* the first is not recorded */
                emu::fail_capture(nth);
            must(dsv2_session_decode(s, token));
            must(dsv2_session_decode(c, token));
            Logits got = w.logits(s), want = cpu.logits(c);
            std::vector<double> wide(want.begin(), want.end());
            if (!(distance(got, wide.data()) < 2e-5))
                fail_msg("%ld, token %d: %g from the CPU", nth, token, distance(got, wide.data()));
        }
        emu::fail_capture(0);
        dsv2_session_free(s);
        dsv2_session_free(c);
    }
}

/* The host captures, in a mode that forbids others to allocate: its capture goes well, and so does all that the library does meanwhile. */
void test_beside_capture(void **)
{
    World cpu(DSV2_BACKEND_CPU, golden("v2"), DSV2_KV_F32, DSV2_ATTENTION_ABSORBED);
    new_card();
    cudaStream_t stream;
    cudaGraph_t graph;
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    dsv2_context_params p = params(DSV2_BACKEND_CUDA);
    dsv2_context *ctx;
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    must(dsv2_context_create(&p, &ctx));
    dsv2_model *model = open_model(ctx, "v2");
    dsv2_session *s = open_session(model, 0, DSV2_KV_F32, DSV2_ATTENTION_ABSORBED, 64);
    for (int32_t token = 1; token <= 4; token++) {
        must(dsv2_session_decode(s, token));
        must(dsv2_session_decode(cpu.s, token));
    }
    const float *got = logits_of(s);
    std::vector<double> want(150);
    const Logits of_cpu = cpu.logits();
    want.assign(of_cpu.begin(), of_cpu.end());
    assert_true(distance(Logits(got, got + want.size()), want.data()) < 2e-5);
    dsv2_session_free(s);
    dsv2_model_free(model);
    dsv2_context_free(ctx);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    check_card(true);
}

/* A cuBLASLt that has nothing for our products: then kernels of our own compute them, and it is not asked again. */
void test_without_blas(void **)
{
    const int32_t ids[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8};
    for (const char *name : {"v2", "fp8-block"}) {
        World cpu(DSV2_BACKEND_CPU, golden(name), DSV2_KV_F32, DSV2_ATTENTION_ABSORBED);
        World w(DSV2_BACKEND_CUDA, golden(name), DSV2_KV_F32, DSV2_ATTENTION_ABSORBED);
        emu::refuse_products();
        must(dsv2_session_prefill(cpu.s, ids, 12));
        must(dsv2_session_prefill(w.s, ids, 12));
        const Logits of_cpu = cpu.logits();
        const std::vector<double> want(of_cpu.begin(), of_cpu.end());
        const double bar = strcmp(name, "v2") ? 1.5 * hf_number("v2-bf16", "hf_bf16_max_relative_error") : 2e-5;
        const double is = distance(w.logits(), want.data());
        if (!(is < bar))
            fail_msg("%s: %g from the CPU", name, is);
        const long asked = emu::blas_queries();
        assert_true(asked > 0);
        must(dsv2_session_truncate(w.s, 0));
        must(dsv2_session_prefill(w.s, ids, 12));
        assert_int_equal(emu::blas_queries(), asked);
    }
}

/* A library that was built for other cards says so when it is opened. */
void test_other_card(void **)
{
    emu::Machine machine;
    machine.has_code = false;
    emu::reset(0, machine);
    dsv2_context_params p = params(DSV2_BACKEND_CUDA);
    dsv2_context *ctx;
    expect(dsv2_context_create(&p, &ctx), DSV2_ERR_UNSUPPORTED, "built for other devices");
    check_card(true);
}

/* What inspect foretells is what the card gives, but for 5%. */
void test_memory(void **)
{
    World w(DSV2_BACKEND_CUDA, MODEL, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED);
    dsv2_session_params p;
    dsv2_memory foretold, said;

    foretold.struct_size = said.struct_size = sizeof said;
    dsv2_session_params_init(&p, sizeof p);
    p.n_ctx = p.n_batch = 64;
    p.kv_type = DSV2_KV_BF16;
    must(dsv2_model_inspect(w.ctx, MODEL, nullptr, &p, nullptr, &foretold));
    dsv2_session_free(w.s);
    must(dsv2_session_create(w.model, &p, &w.s));
    must(dsv2_session_memory(w.s, &said));
    for (int32_t id = 5; id < 8; id++)
        must(dsv2_session_decode(w.s, id));
    for (const dsv2_memory &m : {foretold, said}) {
        const double want = (double)(m.total - m.other), is = (double)emu::bytes_in_use();
        if (fabs(is / want - 1) > 0.05)
            fail_msg("%.0f bytes for %.0f", is, want);
    }
}

/* Each allocation of the card's or pinned memory fails once: an error says so, all is given back, and the next attempt goes well. */
void test_no_memory(void **)
{
    const int32_t ids[] = {3, 1, 4, 1, 5};
    dsv2_context_params p = params(DSV2_BACKEND_CUDA);
    bool done = false;

    for (long nth = 1; !done; nth++) {
        dsv2_context *ctx = nullptr;
        dsv2_model *model = nullptr;
        dsv2_session *s = nullptr;
        dsv2_session_params sp;
        new_card();
        emu::fail_allocation(nth);
        dsv2_session_params_init(&sp, sizeof sp);
        dsv2_status status = dsv2_context_create(&p, &ctx);
        assert_true(status == DSV2_OK || status == DSV2_ERR_UNSUPPORTED);
        if (status == DSV2_OK)
            status = dsv2_model_load(ctx, golden("v2"), nullptr, &model);
        if (status == DSV2_OK)
            status = dsv2_session_create(model, &sp, &s);
        if (status == DSV2_OK)
            status = dsv2_session_prefill(s, ids, 5);
        if (status == DSV2_OK)
            status = dsv2_session_decode(s, 7);
        done = status == DSV2_OK;
        if (!done && status != DSV2_ERR_UNSUPPORTED && status != DSV2_ERR_NOMEM && status != DSV2_ERR_DEVICE)
            fail_msg("allocation %ld: status %d: %s", nth, status, dsv2_last_error());
        if (s && !done) { /* again, now that there is memory */
            must(dsv2_session_truncate(s, 0));
            must(dsv2_session_prefill(s, ids, 5));
            must(dsv2_session_decode(s, 7));
        }
        dsv2_session_free(s);
        dsv2_model_free(model);
        dsv2_context_free(ctx);
        check_card(true);
        assert_true(nth < 200);
    }
}

/* The card is lost at each launch of a decode step: a status, and the session is as it was. */
void test_lost(void **)
{
    const int32_t ids[] = {3, 1, 4, 1, 5};
    for (long nth : {1L, 2L, 9L, 30L}) {
        dsv2_context_params p = params(DSV2_BACKEND_CUDA);
        dsv2_context *ctx;
        dsv2_model *model;
        new_card();
        must(dsv2_context_create(&p, &ctx));
        must(dsv2_model_load(ctx, golden("v2"), nullptr, &model));
        dsv2_session *s = open_session(model, 0, DSV2_KV_BF16, DSV2_ATTENTION_ABSORBED, 64);
        must(dsv2_session_prefill(s, ids, 5));
        emu::fail_launch(nth);
        expect(dsv2_session_decode(s, 7), DSV2_ERR_DEVICE, "session: ");
        assert_int_equal((int)dsv2_session_position(s), 5);
        expect(dsv2_session_decode(s, 7), DSV2_ERR_DEVICE, "session: ");
        dsv2_session_free(s);
        dsv2_model_free(model);
        dsv2_context_free(ctx);
    }
}

#endif

int32_t cancel_at(void *left, uint64_t, uint64_t) { return --*(int *)left <= 0; }

void test_cancelled_load(void **)
{
    dsv2_context_params p = params(DSV2_BACKEND_CUDA);
    for (int at = 1; at < 60; at += 7) {
        dsv2_model_params mp;
        dsv2_context *ctx;
        dsv2_model *model;
        int left = at;
        new_card();
        must(dsv2_context_create(&p, &ctx));
        dsv2_model_params_init(&mp, sizeof mp);
        mp.progress = cancel_at;
        mp.progress_user = &left;
        expect(dsv2_model_load(ctx, golden("v2"), &mp, &model), DSV2_ERR_CANCELLED, "cancelled");
        dsv2_context_free(ctx);
        check_card(true);
    }
}

void test_list(void **)
{
    dsv2_backend_info info[3];
    size_t n = 0;
    must(dsv2_backend_list(nullptr, info, sizeof *info, 3, &n));
    assert_int_equal(n, 2);
    assert_string_equal(info[1].name, "cuda");
    assert_true(info[1].available && info[1].n_devices >= 1);
    dsv2_context_params p = params(DSV2_BACKEND_CUDA);
    dsv2_context *ctx;
    p.device = info[1].n_devices;
    expect(dsv2_context_create(&p, &ctx), DSV2_ERR_UNSUPPORTED, "there is no such device");
}

}

/* check_backend [PATTERN]: the tests whose names match; -PATTERN: the others. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_list),         cmocka_unit_test(test_golden_f32), cmocka_unit_test(test_golden_bf16),
        cmocka_unit_test(test_golden_fp8),   cmocka_unit_test(test_invariant),  cmocka_unit_test(test_scores),
        cmocka_unit_test(test_fp8_products), cmocka_unit_test(test_route),      cmocka_unit_test(test_recorded),   cmocka_unit_test(test_recorded_for),
        cmocka_unit_test(test_sampling),     cmocka_unit_test(test_step),
        cmocka_unit_test(test_exchange),     cmocka_unit_test(test_bundled_text),
        cmocka_unit_test(test_cancelled_load),
#ifdef DSV2I_EMULATED
        cmocka_unit_test(test_memory),       cmocka_unit_test(test_no_memory),  cmocka_unit_test(test_lost),
        cmocka_unit_test(test_spoiled_capture), cmocka_unit_test(test_beside_capture),
        cmocka_unit_test(test_without_blas), cmocka_unit_test(test_other_card),
#endif
    };
    if (argc > 1 && !strcmp(argv[1], "--list")) {
        for (const CMUnitTest &test : tests)
            printf("%s\n", test.name);
        return 0;
    }
    if (argc > 1 && argv[1][0] == '-')
        cmocka_set_skip_filter(argv[1] + 1);
    else if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
