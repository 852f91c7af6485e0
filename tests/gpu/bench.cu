/* Times of single kernels on a card.  Cases come from standard input, a line each: a kernel and its shape, as "rms_norm n=1 dim=2048";
 * for each a line of JSON goes to standard output.  roofline.py has the cases, and says what the times mean.
 *
 * A case's launches are recorded in a graph, as those of a step are, so that what is timed is the card and not the host; they take turns
 * with buffers that do not fit into the cache together.  The time is that of a replay, by events, divided by the launches: the median of
 * several.
 *
 * SPDX-License-Identifier: MIT */
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <blas.h>
#include <launch.cuh>
#include <sampling.h>

#include "fill.h"

#ifdef DSV2I_EMULATED
static const int repeats = 1, most_launches = 2;
static const double replay_ms = 0; /* an emulated card's times say nothing */
#else
static const int repeats = 7, most_launches = 512;
static const double replay_ms = 2; /* of a replay, at least */
#endif

namespace {

cudaStream_t stream;
int sm, n_sms;
size_t cache_bytes;

void check(cudaError_t e, const char *what)
{
    if (e)
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(e));
}
#define TRY(call) check(call, #call)

/* ---- A case ------------------------------------------------------------------------------------------------------------------- */

struct Case {
    std::string kernel;
    std::map<std::string, std::string> shape;
    explicit Case(const std::string &line)
    {
        std::istringstream words(line);
        std::string word;
        words >> kernel;
        while (words >> word) {
            size_t at = word.find('=');
            if (at != std::string::npos)
                shape[word.substr(0, at)] = word.substr(at + 1);
        }
    }
    const std::string &text(const char *key) const
    {
        auto found = shape.find(key);
        if (found == shape.end())
            throw std::runtime_error(std::string("the case has no ") + key);
        return found->second;
    }
    int operator[](const char *key) const { return atoi(text(key).c_str()); }
    int dtype() const
    {
        const std::string &name = text("dtype");
        return name == "f8" ? DSV2I_F8_E4M3 : name == "f32" ? DSV2I_F32 : DSV2I_BF16;
    }
    int kv() const
    {
        const std::string &name = text("kv");
        return name == "e4m3" ? DSV2I_KV_F8_E4M3 : name == "6bit" ? DSV2I_KV_6BIT : DSV2I_KV_BF16;
    }
};

/* Memory that goes with a case. */
struct Memory {
    std::vector<void *> owned;
    uint32_t seed = 1;
    Memory() = default;
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    ~Memory()
    {
        for (void *at : owned)
            cudaFree(at);
    }
    template <class T = char> T *take(size_t n)
    {
        void *at;
        TRY(cudaMalloc(&at, n * sizeof(T) + 256));
        owned.push_back(at);
        return (T *)at;
    }
    void *filled(int dtype, size_t n, float scale = 1)
    {
        void *at = take(n * dsv2i_dtype_size(dtype));
        TRY(gpu_fill(stream, at, dtype, n, scale, seed++));
        return at;
    }
    float *floats(size_t n, float scale = 1) { return (float *)filled(DSV2I_F32, n, scale); }
    uint16_t *halves(size_t n, float scale = 1) { return (uint16_t *)filled(DSV2I_BF16, n, scale); }
    template <class T> T *up(const std::vector<T> &from)
    {
        T *at = take<T>(from.size());
        TRY(cudaMemcpyAsync(at, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice, stream));
        TRY(cudaStreamSynchronize(stream));
        return at;
    }
};

/* Buffers of so many bytes that cannot be in the cache together. */
size_t turns(size_t bytes)
{
    size_t n = 4 * cache_bytes / (bytes + 1) + 1;
    return std::min(n, (size_t)(most_launches < 256 ? most_launches : 256));
}

dsv2i_weight weight(Memory &m, int dtype, int rows, int cols)
{
    dsv2i_weight w = {};
    w.dtype = dtype;
    w.rows = rows;
    w.cols = cols;
    w.data = m.filled(dtype, (size_t)rows * (size_t)cols, 0.02f);
    w.scale_rows = w.scale_cols = 128;
    if (dtype == DSV2I_F8_E4M3) {
        size_t blocks = (size_t)((rows + 127) / 128) * (size_t)((cols + 127) / 128);
        float *scale = m.take<float>(blocks);
        TRY(gpu_fill_same(stream, scale, blocks, 1e-4f));
        w.scale = scale;
    }
    return w;
}

std::vector<dsv2i_weight> weights(Memory &m, int dtype, int rows, int cols)
{
    std::vector<dsv2i_weight> all;
    for (size_t n = turns((size_t)rows * (size_t)cols * dsv2i_dtype_size(dtype)); all.size() < n;)
        all.push_back(weight(m, dtype, rows, cols));
    return all;
}

/* seqs sequences that hold context positions, of which the last rows are in the step. */
struct Step {
    dsv2i_cuda_step *device;
    int layers = 1; /* in the pages */
    Step(Memory &m, int seqs, int rows, int context = 1, int kv_type = -1, int form = DSV2I_ABSORBED, int vocab = 1)
    {
        const size_t n = (size_t)(seqs * rows);
        std::vector<int32_t> token(n), pos(n), seq(n), first;
        std::vector<dsv2i_seq> list;
        std::vector<double> frequency;
        for (size_t i = 0; i < n; i++) {
            token[i] = (int32_t)(i * 7919 % (size_t)vocab);
            pos[i] = context - rows + (int32_t)i % rows;
            seq[i] = (int32_t)i / rows;
        }
        for (int q = 0; q <= seqs; q++)
            first.push_back(q * rows);
        if (kv_type >= 0) {
            const struct dsv2i_kv_record record = dsv2i_kv_record(kv_type, 512, 64);
            const size_t pages = (size_t)(context + DSV2I_PAGE_TOKENS - 1) / DSV2I_PAGE_TOKENS, all = pages * (size_t)seqs;
            const size_t page = DSV2I_PAGE_TOKENS * record.bytes;
            layers = (int)turns(page * all);
            const size_t records = all * (size_t)layers * DSV2I_PAGE_TOKENS;
            char *block = m.take(records * record.bytes);
            if (kv_type == DSV2I_KV_BF16)
                TRY(gpu_fill(stream, block, DSV2I_BF16, records * 576, 1, m.seed++));
            else
                TRY(gpu_fill_records(stream, block, records, record.bytes, record.scale, m.seed++));
            std::vector<void *> table;
            for (size_t i = 0; i < all; i++) /* not in the order of their addresses */
                table.push_back(block + i * 7919 % all * page * (size_t)layers);
            void **on_device = m.up(table);
            for (int q = 0; q < seqs; q++)
                list.push_back({on_device + (size_t)q * pages, form, kv_type});
        } else {
            list.resize((size_t)seqs);
        }
        for (int i = 0; i < 32; i++)
            frequency.push_back(1.0 / (1 + i));
        dsv2i_cuda_step host = {};
        host.n_rows = (int32_t)n;
        host.n_seqs = seqs;
        host.token = m.up(token);
        host.pos = m.up(pos);
        host.seq = m.up(seq);
        host.first = m.up(first);
        host.seqs = m.up(list);
        host.inv_freq = m.up(frequency);
        host.rope = m.floats(n * 64);
        device = m.up(std::vector<dsv2i_cuda_step>{host});
    }
};

/* ---- Timing --------------------------------------------------------------------------------------------------------------------- */

struct Times {
    double median, least, most; /* ms of a launch */
    int launches;
};

struct Event {
    cudaEvent_t event;
    Event() { TRY(cudaEventCreateWithFlags(&event, cudaEventDefault)); }
    Event(const Event &) = delete;
    Event &operator=(const Event &) = delete;
    ~Event() { cudaEventDestroy(event); }
};

typedef std::function<cudaError_t(size_t turn)> Launch;

double elapsed(const std::function<void()> &work)
{
    Event begin, end;
    float ms;
    TRY(cudaEventRecord(begin.event, stream));
    work();
    TRY(cudaEventRecord(end.event, stream));
    TRY(cudaEventSynchronize(end.event));
    TRY(cudaEventElapsedTime(&ms, begin.event, end.event));
    return ms;
}

Times measure(const Launch &launch, bool recorded = true)
{
    std::vector<double> times;
    cudaGraphExec_t exec = nullptr;
    cudaGraph_t graph = nullptr;
    TRY(launch(0));
    TRY(cudaStreamSynchronize(stream));
    const double one = elapsed([&] { TRY(launch(1)); });
    const int n = std::max(2, std::min(most_launches, (int)(replay_ms / std::max(one, 1e-3)) + 1));
    const auto all = [&] {
        for (int i = 0; i < n; i++)
            TRY(launch((size_t)i));
    };
    if (recorded) {
        TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        all();
        TRY(cudaStreamEndCapture(stream, &graph));
        TRY(cudaGraphInstantiate(&exec, graph, 0));
        TRY(cudaGraphDestroy(graph));
    }
    for (int i = 0; i <= repeats; i++) {
        double ms = elapsed([&] {
            if (recorded)
                TRY(cudaGraphLaunch(exec, stream));
            else
                all();
        });
        if (i) /* the first is for warming up */
            times.push_back(ms / n);
    }
    if (exec)
        TRY(cudaGraphExecDestroy(exec));
    std::sort(times.begin(), times.end());
    return {times[times.size() / 2], times.front(), times.back(), n};
}

/* ---- Kernels of this file: what a card can do ------------------------------------------------------------------------------------- */

__global__ void empty_kernel()
{
    dsv2i_wait_dependency();
    dsv2i_launch_dependents();
}

/* Reads n, a multiple of 4 * threads of the grid; copies them, or writes so seldom that it is reading, which the compiler cannot know. */
template <bool copy> __global__ void stream_kernel(uint4 *to, const uint4 *from, size_t n)
{
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    uint32_t sum = 0;

    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += 4 * stride) {
        uint4 v[4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            v[k] = dsv2i_load_once(from + i + (size_t)k * stride);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (copy)
                to[i + (size_t)k * stride] = v[k];
            else
                sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
        }
    }
    if (!copy && sum == 0x12345678u)
        to->x = sum;
}

/* ---- Cases ---------------------------------------------------------------------------------------------------------------------- */

dsv2i_cuda_launch launch_for(int rows)
{
    dsv2i_cuda_launch to = {};
    to.stream = stream;
    to.max_rows = rows;
    to.early = sm >= 90;
    to.sm = sm;
    to.n_sms = n_sms;
    return to;
}

template <class T> const T &turn_of(const std::vector<T> &all, size_t turn) { return all[turn % all.size()]; }

/* By the runtime or by a kernel, whichever is faster on this card. */
Times time_copy(const Case &c, Memory &m)
{
    const size_t bytes = (size_t)c["mib"] << 20;
    char *from = (char *)m.filled(DSV2I_F32, bytes / 4), *to = m.take(bytes);
    const unsigned blocks = bytes >= (64u << 20) ? 2048 : 1;
    const Times by_runtime = measure([=](size_t) { return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream); }, false);
    const Times by_kernel = measure([=](size_t) {
        const dsv2i_cuda_launch how = launch_for(1);
        return dsv2i_launch(&how, stream_kernel<true>, blocks, 512, 0, (uint4 *)to, (const uint4 *)from, bytes / 16);
    });
    return by_runtime.median < by_kernel.median ? by_runtime : by_kernel;
}

Times time_read(const Case &c, Memory &m)
{
    const size_t bytes = (size_t)c["mib"] << 20;
    const uint4 *from = (const uint4 *)m.filled(DSV2I_F32, bytes / 4);
    uint4 *out = m.take<uint4>(1);
    const unsigned blocks = bytes >= (64u << 20) ? 2048 : 1;
    return measure([=](size_t) {
        const dsv2i_cuda_launch to = launch_for(1);
        return dsv2i_launch(&to, stream_kernel<false>, blocks, 512, 0, out, from, bytes / 16);
    });
}

Times time_launch(const Case &c, Memory &)
{
    dsv2i_cuda_launch to = launch_for(1);
    to.early = to.early && c["early"];
    return measure([=](size_t) { return dsv2i_launch(&to, empty_kernel, (unsigned)n_sms, 128, 0); }, c["graph"]);
}

void *heap_alloc(void *, size_t bytes, size_t) { return malloc(bytes); }
void heap_free(void *, void *at, size_t) { free(at); }

Times time_gemm(const Case &c, Memory &m)
{
    const dsv2i_hooks hooks = {heap_alloc, heap_free, nullptr};
    const auto w = weights(m, DSV2I_BF16, c["n"], c["k"]);
    const uint16_t *x = m.halves((size_t)c["m"] * (size_t)c["k"]);
    float *y = m.take<float>((size_t)c["m"] * (size_t)c["n"]);
    dsv2i_cuda_blas *blas = nullptr;
    dsv2i_cuda_product product = {};
    product.dtype = DSV2I_BF16;
    product.y_dtype = DSV2I_F32;
    product.m = c["m"];
    product.n = c["n"];
    product.k = c["k"];
    const auto done = [](const dsv2i_cuda_result &r) { return r.call ? cudaErrorLaunchFailure : cudaSuccess; };
    TRY(done(dsv2i_cuda_blas_open(&hooks, sm, &blas)));
    TRY(done(dsv2i_cuda_blas_prepare(blas, &product)));
    const Times t = measure(
        [&](size_t turn) { return done(dsv2i_cuda_blas_run(blas, &product, stream, y, x, turn_of(w, turn).data, nullptr, nullptr, 0)); });
    dsv2i_cuda_blas_close(blas);
    return t;
}

Times time_linear(const Case &c, Memory &m)
{
    const int n = c["n"], rows = c["rows"], cols = c["cols"];
    const bool few = c.kernel == "linear_few";
    const auto w = weights(m, c.dtype(), rows, cols);
    const void *x = m.filled(few ? DSV2I_F32 : DSV2I_BF16, (size_t)n * (size_t)cols);
    float *y = m.take<float>((size_t)n * (size_t)rows);
    const Step step(m, n, 1);
    const dsv2i_cuda_launch to = launch_for(n);
    return measure([=](size_t turn) {
        return few ? dsv2i_cuda_linear_few(&to, step.device, y, (const float *)x, &turn_of(w, turn), 0)
                   : dsv2i_cuda_linear_many(&to, step.device, y, DSV2I_F32, (const uint16_t *)x, &turn_of(w, turn), 0);
    });
}

/* Experts of one layer, of which each turn chooses others; of one expert alone several copies. */
Times time_experts(const Case &c, Memory &m)
{
    const int n = c["n"], hidden = c["hidden"], inter = c["inter"], top_k = c["top_k"], dtype = c.dtype();
    const bool few = c.kernel == "experts_few", one = c["experts"] == 1;
    const size_t size = (size_t)hidden * (size_t)inter * dsv2i_dtype_size(dtype), copies = one ? turns(3 * size) : 1;
    const int n_experts = one ? (int)copies : c["experts"];
    std::vector<dsv2i_cuda_expert> table;
    for (int e = 0; e < n_experts; e++) {
        const dsv2i_weight gate = weight(m, dtype, inter, hidden), up = weight(m, dtype, inter, hidden);
        const dsv2i_weight down = weight(m, dtype, hidden, inter);
        table.push_back({gate.data, up.data, down.data, gate.scale, up.scale, down.scale});
    }
    const dsv2i_cuda_expert *expert = m.up(table);
    std::vector<const int32_t *> idx;
    uint64_t state = 1;
    for (size_t t = 0; t < (one ? 1 : turns((size_t)top_k * 3 * size)); t++) {
        std::vector<int32_t> chosen;
        for (int i = 0; i < n; i++)
            for (int k = 0; k < top_k; k++) {
                int32_t e;
                do {
                    state = state * 6364136223846793005u + 1442695040888963407u;
                    e = (int32_t)(state >> 33) % n_experts;
                } while (std::find(chosen.end() - k, chosen.end(), e) != chosen.end());
                chosen.push_back(e);
            }
        idx.push_back(m.up(chosen));
    }
    const size_t slots = (size_t)n * (size_t)top_k;
    const float *weight_of = one ? nullptr : m.floats(slots);
    const void *x = m.filled(few ? DSV2I_F32 : DSV2I_BF16, (size_t)n * (size_t)hidden);
    float *y = m.floats((size_t)n * (size_t)hidden), *h = m.take<float>(slots * (size_t)inter);
    const dsv2i_cuda_scales scales = {128, 128};
    dsv2i_cuda_experts all = {expert, one ? 1 : n_experts, dtype, hidden, inter, scales, scales};
    void *scratch = few ? nullptr : m.take(dsv2i_cuda_experts_many_scratch(n, top_k, &all));
    const Step step(m, n, 1);
    const dsv2i_cuda_launch to = launch_for(n);
    return measure([=](size_t turn) {
        const dsv2i_cuda_expert *of_turn = one ? expert + turn % copies : expert;
        const int32_t *index = one ? nullptr : turn_of(idx, turn);
        dsv2i_cuda_experts them = all;
        them.expert = of_turn;
        return few ? dsv2i_cuda_experts_few(&to, step.device, y, (const float *)x, h, of_turn, index, weight_of, top_k, dtype,
                                            hidden, inter, scales, scales)
                   : dsv2i_cuda_experts_many(&to, step.device, y, (const uint16_t *)x, &them, index, weight_of, top_k, scratch);
    });
}

Times time_norm(const Case &c, Memory &m)
{
    const int n = c["n"], dim = c["dim"];
    const size_t size = (size_t)n * (size_t)dim, copies = turns(10 * size);
    std::vector<float *> x, y;
    std::vector<uint16_t *> half;
    for (size_t i = 0; i < copies; i++) {
        x.push_back(m.floats(size));
        y.push_back(m.take<float>(size));
        half.push_back(m.take<uint16_t>(size));
    }
    const float *w = m.floats((size_t)dim);
    const Step step(m, n, 1);
    const dsv2i_cuda_launch to = launch_for(n);
    return measure([=](size_t t) {
        if (c.kernel == "narrow")
            return dsv2i_cuda_narrow(&to, step.device, turn_of(half, t), turn_of(x, t), DSV2I_BF16, dim);
        return dsv2i_cuda_rms_norm(&to, step.device, turn_of(y, t), dim, turn_of(half, t), turn_of(x, t), dim, w, dim, 1e-6f);
    });
}

Times time_quantize(const Case &c, Memory &m)
{
    const int n = c["n"], dim = c["dim"], scaling = c["scaling"];
    const size_t size = (size_t)n * (size_t)dim;
    std::vector<float *> x;
    for (size_t i = turns(5 * size); i > 0; i--)
        x.push_back(m.floats(size));
    uint8_t *y = m.take<uint8_t>(size);
    float *scale = m.take<float>((size_t)n * (size_t)(dim / 128 + 1));
    void *scratch = m.take(dsv2i_cuda_quantize_scratch());
    const Step step(m, n, 1);
    const dsv2i_cuda_launch to = launch_for(n);
    return measure([=](size_t t) { return dsv2i_cuda_quantize(&to, step.device, y, scale, turn_of(x, t), dim, scaling, scratch); });
}

Times time_embed(const Case &c, Memory &m)
{
    const dsv2i_weight w = weight(m, c.dtype(), c["vocab"], c["hidden"]);
    float *x = m.take<float>((size_t)c["n"] * (size_t)w.cols);
    const Step step(m, c["n"], 1, 1, -1, 0, w.rows);
    const dsv2i_cuda_launch to = launch_for(c["n"]);
    return measure([=](size_t) { return dsv2i_cuda_embed(&to, step.device, x, w.data, w.dtype, w.cols); });
}

Times time_rope(const Case &c, Memory &m)
{
    const Step step(m, 1, c["n"], c["n"]);
    const dsv2i_cuda_launch to = launch_for(c["n"]);
    return measure([=](size_t) { return dsv2i_cuda_rope(&to, step.device, 64, 1); });
}

Times time_route(const Case &c, Memory &m)
{
    const int n = c["n"], groups = c["groups"];
    const size_t slots = (size_t)n * 6;
    const dsv2i_route route = {groups, groups > 1 ? 3 : 1, 6, 0, 1};
    const float *logits = m.floats((size_t)n * (size_t)c["experts"]);
    int32_t *idx = m.take<int32_t>(slots);
    float *weight_of = m.take<float>(slots);
    const Step step(m, n, 1);
    const dsv2i_cuda_launch to = launch_for(n);
    return measure([=](size_t) { return dsv2i_cuda_moe_route(&to, step.device, idx, weight_of, logits, c["experts"], &route); });
}

Times time_permute(const Case &c, Memory &m)
{
    const int n = c["n"], n_experts = c["experts"], tile = c["tile"];
    std::vector<int32_t> idx;
    for (int i = 0; i < 6 * n; i++)
        idx.push_back((int32_t)((i / 6 * 37 + i % 6) % n_experts));
    const int32_t *chosen = m.up(idx);
    const dsv2i_cuda_permutation p = {m.take<int32_t>(idx.size()),
                                      m.take<dsv2i_cuda_tile>(idx.size() / (size_t)tile + (size_t)n_experts + 1), m.take<int32_t>(3)};
    const Step step(m, n, 1);
    const dsv2i_cuda_launch to = launch_for(n);
    return measure([=](size_t) { return dsv2i_cuda_moe_permute(&to, step.device, &p, chosen, 6, n_experts, tile); });
}

Times time_widen(const Case &c, Memory &m)
{
    const auto w = weights(m, DSV2I_F8_E4M3, c["rows"], c["cols"]);
    uint16_t *y = m.take<uint16_t>((size_t)c["rows"] * (size_t)c["cols"]);
    const dsv2i_cuda_launch to = launch_for(1);
    return measure([=](size_t t) { return dsv2i_cuda_widen(&to, y, &turn_of(w, t)); });
}

Times time_prepare(const Case &c, Memory &m)
{
    const int n = c["n"], heads = c["heads"];
    float *q = m.floats((size_t)n * (size_t)heads * 192);
    const float *kva = m.floats((size_t)n * 576), *norm = m.floats(512);
    const Step step(m, n, 1, 1, c.kv());
    const dsv2i_cuda_launch to = launch_for(n);
    return measure([=](size_t t) {
        return dsv2i_cuda_mla_prepare(&to, step.device, q, kva, norm, (int32_t)(t % (size_t)step.layers), heads, 128, 512, 64);
    });
}

Times time_decode(const Case &c, Memory &m)
{
    const int n = c["batch"], heads = c["heads"];
    const bool plan = c.kernel == "mla_plan";
    const int kv = plan ? DSV2I_KV_6BIT : c.kv(); // a plan is for pages of any kind
    const Step step(m, n, 1, c["context"], kv);
    dsv2i_cuda_launch to = launch_for(n);
    to.pages = kv == DSV2I_KV_BF16 ? DSV2I_PAGES_BF16 : DSV2I_PAGES_CODED;
    const uint16_t *q = m.halves((size_t)n * (size_t)heads * 576, 0.1f);
    float *o = m.take<float>((size_t)n * (size_t)heads * 512);
    void *scratch = m.take(dsv2i_cuda_mla_scratch(&to, heads));
    TRY(dsv2i_cuda_mla_plan(&to, step.device, scratch, heads));
    return measure([=](size_t t) {
        if (plan)
            return dsv2i_cuda_mla_plan(&to, step.device, scratch, heads);
        return dsv2i_cuda_mla_decode(&to, step.device, o, q, (int32_t)(t % (size_t)step.layers), heads, scratch);
    });
}

/* To the latent space and back. */
Times time_latent(const Case &c, Memory &m)
{
    const int n = c["n"], heads = c["heads"];
    const auto kv_b = weights(m, DSV2I_BF16, heads * 256, 512);
    const float *q = m.floats((size_t)n * (size_t)heads * 192), *o_latent = m.floats((size_t)n * (size_t)heads * 512);
    uint16_t *q_latent = m.take<uint16_t>((size_t)n * (size_t)heads * 576);
    float *o = m.take<float>((size_t)n * (size_t)heads * 128);
    const Step step(m, n, 1, 1, DSV2I_KV_BF16);
    const dsv2i_cuda_launch to = launch_for(n);
    return measure([=](size_t t) {
        return c.kernel == "mla_absorb" ? dsv2i_cuda_mla_absorb(&to, step.device, q_latent, q, &turn_of(kv_b, t), heads, 0.1f)
                                        : dsv2i_cuda_mla_value(&to, step.device, o, o_latent, &turn_of(kv_b, t), heads);
    });
}

Times time_prefill(const Case &c, Memory &m)
{
    const int n = c["n"], heads = c["heads"], context = c["context"];
    const Step step(m, 1, n, context, c.kv(), DSV2I_EXPANDED);
    const dsv2i_cuda_launch to = launch_for(n);
    const dsv2i_cuda_prefill prefill = {1, n, (context + 127) / 128 * 128, 2048};
    const dsv2i_weight kv_b = weight(m, DSV2I_BF16, heads * 256, 512);
    const float *q = m.floats((size_t)n * (size_t)heads * 192, 0.1f);
    float *o = m.take<float>((size_t)n * (size_t)heads * 128);
    void *scratch = m.take(dsv2i_cuda_mla_prefill_scratch(n, heads, prefill.window));
    dsv2i_shape shape = {};
    shape.num_attention_heads = heads;
    shape.kv_lora_rank = 512;
    shape.qk_nope_head_dim = shape.v_head_dim = 128;
    shape.qk_rope_head_dim = 64;
    shape.softmax_scale = 0.1f;
    return measure([=](size_t t) {
        const int32_t layer = (int32_t)(t % (size_t)step.layers);
        return dsv2i_cuda_mla_prefill(&to, step.device, o, nullptr, q, &kv_b, layer, &shape, &prefill, scratch);
    });
}

Times time_sample(const Case &c, Memory &m)
{
    const int n = c["n"], vocab = c["vocab"], ld = (vocab + 3) / 4 * 4;
    const bool greedy = c.text("how") == "greedy";
    std::vector<float *> logits;
    for (size_t i = turns((size_t)n * (size_t)ld * 4); i > 0; i--)
        logits.push_back(m.floats((size_t)n * (size_t)ld, 10));
    dsv2i_sampling how = {};
    how.per_temperature = dsv2i_per_temperature(1);
    how.lowest = dsv2i_lowest(0);
    how.greedy = greedy;
    how.top_p = 0.95f;
    how.repetition_penalty = 1;
    const dsv2i_sampling *hows = m.up(std::vector<dsv2i_sampling>((size_t)n, how));
    const int32_t *rows = m.up(std::vector<int32_t>{n});
    int32_t *token = m.take<int32_t>((size_t)n);
    float *logprob = m.take<float>((size_t)n);
    const size_t bytes = dsv2i_cuda_sample_scratch(n, vocab);
    void *scratch = m.take(bytes);
    TRY(cudaMemsetAsync(scratch, 0, bytes, stream));
    const dsv2i_cuda_launch to = launch_for(n);
    return measure([=](size_t t) {
        const float *x = turn_of(logits, t);
        return (greedy ? dsv2i_cuda_argmax : dsv2i_cuda_sample)(&to, rows, token, logprob, x, ld, vocab, hows, nullptr, scratch);
    });
}

Times time_score(const Case &c, Memory &m)
{
    const int n = c["n"], vocab = c["vocab"];
    std::vector<float *> logits;
    for (size_t i = turns((size_t)n * (size_t)vocab * 4); i > 0; i--)
        logits.push_back(m.floats((size_t)n * (size_t)vocab, 10));
    const int32_t *rows = m.up(std::vector<int32_t>{n}), *target = m.up(std::vector<int32_t>((size_t)n, 5));
    const float *of_target = m.floats((size_t)n);
    dsv2i_score *out = m.take<dsv2i_score>((size_t)n);
    dsv2i_cuda_stand *stand = m.take<dsv2i_cuda_stand>((size_t)n);
    const dsv2i_cuda_launch to = launch_for(n);
    return measure([=](size_t t) {
        return dsv2i_cuda_score(&to, rows, out, stand, turn_of(logits, t), vocab, 0, vocab, vocab, target, of_target, 1);
    });
}

Times time_case(const Case &c)
{
    static const std::map<std::string, Times (*)(const Case &, Memory &)> kernels = {
        {"copy", time_copy},          {"read", time_read},           {"launch", time_launch},        {"gemm", time_gemm},
        {"linear_few", time_linear},  {"linear_many", time_linear},  {"experts_few", time_experts},  {"experts_many", time_experts},
        {"rms_norm", time_norm},      {"narrow", time_norm},         {"quantize", time_quantize},    {"embed", time_embed},
        {"rope", time_rope},          {"moe_route", time_route},     {"moe_permute", time_permute},  {"widen", time_widen},
        {"mla_prepare", time_prepare}, {"mla_decode", time_decode},  {"mla_plan", time_decode},      {"mla_absorb", time_latent},
        {"mla_value", time_latent},   {"mla_prefill", time_prefill}, {"sample", time_sample},        {"score", time_score},
    };
    auto found = kernels.find(c.kernel);
    Memory m;
    if (found == kernels.end())
        throw std::runtime_error("no such kernel");
    const Times t = found->second(c, m);
    TRY(cudaStreamSynchronize(stream));
    return t;
}

}

int main()
{
    char line[512];
    cudaDeviceProp card;
    int n = 0;

    if (cudaGetDeviceCount(&n) || !n) {
        printf("no CUDA device\n");
        return 77;
    }
    if (cudaGetDeviceProperties(&card, 0) || cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking))
        return 1;
    sm = 10 * card.major + card.minor;
    n_sms = card.multiProcessorCount;
    cache_bytes = (size_t)card.l2CacheSize;
    printf("{\"card\": \"%s\", \"sm\": %d, \"sms\": %d, \"l2\": %zu, \"memory\": %zu}\n", card.name, sm, n_sms, cache_bytes,
           card.totalGlobalMem);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        try {
            const Times t = time_case(Case(line));
            printf("{\"case\": \"%s\", \"ms\": %.6g, \"least\": %.6g, \"most\": %.6g, \"launches\": %d}\n", line, t.median, t.least, t.most,
                   t.launches);
        } catch (const std::exception &e) {
            printf("{\"case\": \"%s\", \"error\": \"%s\"}\n", line, e.what());
            if (cudaDeviceSynchronize()) { /* nothing more will go well */
                fflush(stdout);
                return 1;
            }
            cudaGetLastError();
        }
        fflush(stdout);
    }
    return 0;
}
