/* Products by cuBLASLt and the types of their operands, against the same in double; plans, graphs, failures.
 *
 * SPDX-License-Identifier: MIT */
#include "checks.h"

#include <blas.h>

#include <cfloat>
#include <map>
#include <set>

namespace {

/* ---- what products are made of ------------------------------------------------------------------------------------------------- */

std::map<void *, size_t> heap;
long heap_fails; /* the N-th allocation from now; 0: none */

void *heap_alloc(void *, size_t size, size_t alignment)
{
    if (heap_fails && !--heap_fails)
        return nullptr;
    void *got = aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    memset(got, 0xFF, size);
    heap[got] = size;
    return got;
}
void heap_free(void *, void *ptr, size_t size)
{
    expect(heap.count(ptr) && heap[ptr] == size, "freed what was not allocated so");
    heap.erase(ptr);
    free(ptr);
}
const dsv2i_hooks hooks = {heap_alloc, heap_free, nullptr};

int card()
{
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    return major * 10 + minor;
}

struct Blas {
    dsv2i_cuda_blas *to = nullptr;
    Blas() { ok(dsv2i_cuda_blas_open(&hooks, card(), &to)); }
    ~Blas() { dsv2i_cuda_blas_close(to); }
    static bool ok(dsv2i_cuda_result r)
    {
        expect(!r.call, "%s: %d", r.call ? r.call : "", r.code);
        return !r.call;
    }
};

dsv2i_cuda_product product(int dtype, int m, int n, int k, int y_dtype = DSV2I_F32, int scaling = 0)
{
    dsv2i_cuda_product p = {};
    p.dtype = dtype;
    p.y_dtype = y_dtype;
    p.scaling = scaling;
    p.m = m;
    p.n = n;
    p.k = k;
    return p;
}

/* The values of e4m3's codes without sign, and the code nearest to x, of two the even one. */
double e4m3_value(unsigned code)
{
    return (code & 0x7F) == 0x7F ? NAN : (code & 0x80 ? -1 : 1) * ((code & 0x7F) < 8 ? ldexp(code & 7, -9)
                                                                                  : ldexp(8 + (code & 7), (int)(code >> 3 & 15) - 10));
}
unsigned e4m3_nearest(double x)
{
    unsigned best = 0;
    if (!std::isfinite(x))
        return 0x7F;
    for (unsigned code = 1; code < 0x7F; code++) {
        double was = fabs(e4m3_value(best) - fabs(x)), is = fabs(e4m3_value(code) - fabs(x));
        if (is < was || (is == was && code % 2 == 0))
            best = code;
    }
    return best | (std::signbit(x) ? 0x80 : 0);
}

uint16_t bf16(float x)
{
    uint32_t f;
    memcpy(&f, &x, 4);
    return (uint16_t)((f + 0x7FFF + (f >> 16 & 1)) >> 16);
}

/* Numbers as they are in memory, and in double. */
struct Numbers {
    std::vector<double> value;
    void *device = nullptr;
    Numbers(int dtype, size_t n, float scale = 1)
    {
        std::vector<float> x = normals(n, scale);
        std::vector<uint16_t> half(n);
        std::vector<uint8_t> code(n);
        for (size_t i = 0; i < n; i++) {
            _Float16 f16 = (_Float16)x[i];
            switch (dtype) {
            case DSV2I_F32: value.push_back((double)x[i]); break;
            case DSV2I_BF16: value.push_back(ref_bf16(half[i] = bf16(x[i]))); break;
            case DSV2I_F16: memcpy(&half[i], &f16, 2); value.push_back((double)f16); break;
            default: code[i] = (uint8_t)e4m3_nearest((double)x[i]); value.push_back(e4m3_value(code[i]));
            }
        }
        device = dtype == DSV2I_F32 ? (void *)up(x) : dtype == DSV2I_F8_E4M3 ? (void *)up(code) : (void *)up(half);
    }
};

/* A sum of k terms makes some k / 8 roundings, of which each is at most 2^-24 of what is summed so far: a walk.  Six deviations. */
double tolerance(int k, int y_dtype) { return 6 * 0x1p-24 * sqrt(k / 8.0 + 64) + (y_dtype == DSV2I_BF16 ? 0x1p-8 : 0); }

/* Of fp8 a card's matrix units keep some 14 bits of what they add up (DeepSeek-V3's report, 3.5.2). */
double tolerance_fp8(int k, int y_dtype)
{
#ifdef DSV2I_EMULATED
    return tolerance(k, y_dtype);
#else
    return tolerance(k, y_dtype) + 0x1p-10;
#endif
}

std::vector<float> down_as(const void *y, int y_dtype, size_t n)
{
    if (y_dtype == DSV2I_F32)
        return down((const float *)y, n);
    std::vector<float> to;
    for (uint16_t h : down((const uint16_t *)y, n))
        to.push_back((float)ref_bf16(h));
    return to;
}

/* ---- products ------------------------------------------------------------------------------------------------------------------- */

void check_product(Blas &blas, int dtype, int m, int n, int k, int y_dtype, bool accumulate)
{
    const Numbers x(dtype, (size_t)(m * k)), w(dtype, (size_t)(n * k)), start(y_dtype, (size_t)(m * n), 3);
    std::vector<double> want((size_t)(m * n));
    const dsv2i_cuda_product p = product(dtype, m, n, k, y_dtype);
    void *y = accumulate ? start.device : unset<float>((size_t)(m * n));

    Blas::ok(dsv2i_cuda_blas_run(blas.to, &p, stream, y, x.device, w.device, nullptr, nullptr, accumulate));
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            double sum = accumulate ? start.value[(size_t)(i * n + j)] : 0;
            for (int l = 0; l < k; l++)
                sum += x.value[(size_t)(i * k + l)] * w.value[(size_t)(j * k + l)];
            want[(size_t)(i * n + j)] = sum;
        }
    close_to(down_as(y, y_dtype, want.size()), want, tolerance(k, y_dtype));
}

/* As MLA has them: of q (m, heads, nope + rope), the part without positions times W_UK (nope, rank), by columns; and what attention gives,
 * (m, heads, rank), times W_UV (v, rank).  Both are of kv_b (heads, nope + v, rank). */
void check_heads(int m, int heads, int nope, int rope, int rank, int v)
{
    Blas blas;
    const Numbers q(DSV2I_BF16, (size_t)(m * heads * (nope + rope))), kv_b(DSV2I_BF16, (size_t)(heads * (nope + v) * rank)),
        c(DSV2I_BF16, (size_t)(m * heads * rank));
    std::vector<double> want;
    dsv2i_cuda_product p = product(DSV2I_BF16, m, rank, nope);
    float *y = unset<float>((size_t)(m * heads * rank)), *o = unset<float>((size_t)(m * heads * v));

    p.batch = heads;
    p.columns = 1;
    p.ldx = heads * (nope + rope);
    p.ldy = heads * rank;
    p.x_stride = nope + rope;
    p.w_stride = (nope + v) * rank;
    p.y_stride = rank;
    Blas::ok(dsv2i_cuda_blas_run(blas.to, &p, stream, y, q.device, kv_b.device, nullptr, nullptr, 0));
    for (int i = 0; i < m; i++)
        for (int h = 0; h < heads; h++)
            for (int r = 0; r < rank; r++) {
                double sum = 0;
                for (int l = 0; l < nope; l++)
                    sum += q.value[(size_t)((i * heads + h) * (nope + rope) + l)] * kv_b.value[(size_t)((h * (nope + v) + l) * rank + r)];
                want.push_back(sum);
            }
    close_to(down(y, want.size()), want, tolerance(nope, DSV2I_F32));

    p = product(DSV2I_BF16, m, v, rank);
    p.batch = heads;
    p.ldx = heads * rank;
    p.ldy = heads * v;
    p.x_stride = rank;
    p.w_stride = (nope + v) * rank;
    p.y_stride = v;
    Blas::ok(dsv2i_cuda_blas_run(blas.to, &p, stream, o, c.device, (const uint16_t *)kv_b.device + nope * rank, nullptr, nullptr, 0));
    want.clear();
    for (int i = 0; i < m; i++)
        for (int h = 0; h < heads; h++)
            for (int j = 0; j < v; j++) {
                double sum = 0;
                for (int l = 0; l < rank; l++)
                    sum += c.value[(size_t)((i * heads + h) * rank + l)] * kv_b.value[(size_t)((h * (nope + v) + nope + j) * rank + l)];
                want.push_back(sum);
            }
    close_to(down(o, want.size()), want, tolerance(rank, DSV2I_F32));
}

/* ---- the types of operands ----------------------------------------------------------------------------------------------------- */

size_t scales_of(int scaling, int max_rows, int dim)
{
    return (size_t)(scaling == DSV2I_CUDA_SCALE_ALL ? 1 : scaling == DSV2I_CUDA_SCALE_ROWS ? max_rows : (dim + 127) / 128 * max_rows);
}
size_t scale_at(int scaling, int max_rows, int row, int col)
{
    return (size_t)(scaling == DSV2I_CUDA_SCALE_ALL ? 0 : scaling == DSV2I_CUDA_SCALE_ROWS ? row : col / 128 * max_rows + row);
}

void check_quantize(int scaling, int rows, int dim)
{
    Step step(zeros(rows), {}, {}, 1, 2);
    dsv2i_cuda_launch to = step.launch();
    std::vector<float> x = normals((size_t)(to.max_rows * dim));
    for (int i = 0; i < rows; i++)
        for (int c = 0; c < dim; c++) {
            float &v = x[(size_t)(i * dim + c)];
            switch (i) {
            case 1: v = c == dim - 1 ? NAN : v; break;
            case 2: v = c == dim / 2 ? -INFINITY : c == 0 ? INFINITY : v * 100; break;
            case 3: v = 0; break;
            case 4: v *= 1e-40f; break;
            case 5: v = c == dim - 3 ? -FLT_MAX : v; break;
            case 6: v = 61 * (c % 16 == 5 ? 448.0f : (float)(c / 4 % 128)); break; /* halves between codes, which 1 / scale would miss */
            }
        }
    uint8_t *y = unset<uint8_t>(x.size());
    float *scale = unset<float>(scales_of(scaling, to.max_rows, dim)), *x_device = up(x);
    void *scratch = unset<char>(dsv2i_cuda_quantize_scratch());
    expect(dsv2i_cuda_quantize(&to, step.device, y, scale, x_device, dim, scaling, scratch) == cudaSuccess, "launch");
    std::vector<uint8_t> got = down(y, x.size());
    std::vector<float> scales = down(scale, scales_of(scaling, to.max_rows, dim)), most(scales.size());
    std::vector<bool> used(scales.size());

    for (int i = 0; i < rows; i++)
        for (int c = 0; c < dim; c++) {
            size_t at = scale_at(scaling, to.max_rows, i, c);
            float v = fabsf(x[(size_t)(i * dim + c)]);
            used[at] = true;
            if (v <= FLT_MAX && v > most[at])
                most[at] = v;
        }
    for (size_t i = 0; i < scales.size(); i++) {
        float want = fmaxf(most[i] / 448, FLT_MIN);
        expect(used[i] ? scales[i] == want : is_unset(scales[i]), "scale %zu: %g for %g", i, (double)scales[i], (double)want);
    }
    for (int i = 0; i < to.max_rows; i++)
        for (int c = 0; c < dim; c++) {
            size_t at = (size_t)(i * dim + c);
            unsigned want = i < rows ? e4m3_nearest((double)(x[at] / scales[scale_at(scaling, to.max_rows, i, c)])) : 0xFF;
            expect(got[at] == want, "row %d, column %d: %02x for %02x (%g)", i, c, got[at], want, (double)x[at]);
        }
}

/* The three parts of x are of bf16, each of what the one before has lost, and there is no fourth. */
void check_parts(int rows, int dim)
{
    Step step(zeros(rows), {}, {}, 1, 2);
    dsv2i_cuda_launch to = step.launch();
    const std::vector<float> x = normals((size_t)(to.max_rows * dim), 100);
    std::vector<double> rest(x.begin(), x.begin() + rows * dim);
    float *x_device = up(x);

    for (int part = 0; part < 3; part++) {
        uint16_t *y = unset<uint16_t>(x.size());
        expect(dsv2i_cuda_narrow_part(&to, step.device, y, x_device, part, dim) == cudaSuccess, "launch");
        std::vector<uint16_t> got = down(y, x.size());
        for (size_t i = 0; i < got.size(); i++) {
            expect(i < rest.size() ? got[i] == bf16((float)rest[i]) : is_unset(got[i]), "part %d, element %zu: %04x", part, i, got[i]);
            if (i < rest.size())
                rest[i] -= ref_bf16(got[i]);
        }
    }
    for (double r : rest)
        expect(r == 0, "%g is lost", r);
}

void check_narrow(int dtype, int rows, int dim)
{
    Step step(zeros(rows), {}, {}, 1, 2);
    dsv2i_cuda_launch to = step.launch();
    std::vector<float> x = normals((size_t)(to.max_rows * dim), 100);
    uint16_t *y = unset<uint16_t>(x.size());

    x[0] = INFINITY;
    x[1] = NAN;
    x[2] = 1e-6f;
    expect(dsv2i_cuda_narrow(&to, step.device, y, up(x), dtype, dim) == cudaSuccess, "launch");
    std::vector<uint16_t> got = down(y, x.size());
    for (size_t i = 0; i < got.size(); i++) {
        _Float16 half = (_Float16)x[i];
        uint16_t want;
        memcpy(&want, &half, 2);
        if (dtype == DSV2I_BF16)
            want = bf16(x[i]);
        if (i == 1)
            expect((got[i] & 0x7FFF) > (dtype == DSV2I_BF16 ? 0x7F80 : 0x7C00), "NaN became %04x", got[i]);
        else
            expect(i < (size_t)(rows * dim) ? got[i] == want : is_unset(got[i]), "element %zu: %04x for %04x", i, got[i], want);
    }
}

/* x quantized on the device, in a step of rows rows of m; w scaled as checkpoints do. */
void check_fp8(Blas &blas, int scaling, int m, int rows, int n, int k, int y_dtype, bool accumulate)
{
    Step step(zeros(rows), {}, {}, 1, 2);
    dsv2i_cuda_launch to = launch_for(m);
    const std::vector<float> x = normals((size_t)(m * k));
    const Numbers w(DSV2I_F8_E4M3, (size_t)(n * k)), start(y_dtype, (size_t)(m * n), 3);
    const int stride = dsv2i_cuda_scale_stride(k);
    const dsv2i_cuda_product p = product(DSV2I_F8_E4M3, m, n, k, y_dtype, scaling);
    std::vector<float> w_scale((size_t)(scaling == DSV2I_CUDA_SCALE_BLOCKS ? (n + 127) / 128 * stride : n));
    std::vector<double> want;
    uint8_t *codes = unset<uint8_t>(x.size());
    float *x_scale = unset<float>(scales_of(scaling, m, k));
    void *y = accumulate ? start.device : unset<float>((size_t)(m * n));

    for (float &s : w_scale)
        s = uniform(0.5f, 2);
    expect(dsv2i_cuda_quantize(&to, step.device, codes, x_scale, up(x), k, scaling, unset<char>(dsv2i_cuda_quantize_scratch()))
               == cudaSuccess, "launch");
    Blas::ok(dsv2i_cuda_blas_run(blas.to, &p, stream, y, codes, w.device, x_scale, up(w_scale), accumulate));
    std::vector<uint8_t> read = down(codes, x.size());
    std::vector<float> scales = down(x_scale, scales_of(scaling, m, k));
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < n; j++) {
            double sum = accumulate ? start.value[(size_t)(i * n + j)] : 0;
            for (int l = 0; l < k; l++) {
                int at = scaling == DSV2I_CUDA_SCALE_ALL ? 0 : scaling == DSV2I_CUDA_SCALE_ROWS ? j : j / 128 * stride + l / 128;
                sum += e4m3_value(read[(size_t)(i * k + l)]) * (double)scales[scale_at(scaling, m, i, l)] * w.value[(size_t)(j * k + l)]
                       * (double)w_scale[(size_t)at];
            }
            want.push_back(sum);
        }
    close_to(down_as(y, y_dtype, want.size()), want, tolerance_fp8(k, y_dtype));
}

/* ---- plans ---------------------------------------------------------------------------------------------------------------------- */

void check_rows()
{
    std::set<int32_t> numbers;
    int32_t before = 0;

    for (int32_t rows = 1; rows <= 16384; rows++) {
        int32_t r = dsv2i_cuda_blas_rows(rows);
        expect(r >= rows && r - rows <= (rows / 8 > 3 ? rows / 8 : 3) && r % 4 == 0 && r >= before && dsv2i_cuda_blas_rows(r) == r,
               "%d rows for %d", r, rows);
        numbers.insert(before = r);
    }
    expect(numbers.size() <= 100, "%zu numbers of rows", numbers.size());
}

/* Planned before, captured, and launched for several steps: each with its own x and number of rows. */
void check_graph(int scaling)
{
    const int m = 8, n = 48, k = 272;
    Blas blas;
    Step step(zeros(m), {}, {}, 1, 2);
    dsv2i_cuda_launch to = launch_for(m);
    const int dtype = scaling ? DSV2I_F8_E4M3 : DSV2I_BF16;
    const Numbers w(dtype, (size_t)(n * k));
    const dsv2i_cuda_product p = product(dtype, m, n, k, DSV2I_F32, scaling);
    float *x = unset<float>((size_t)(m * k)), *y = unset<float>((size_t)(m * n)), *ones = up(std::vector<float>(1000, 1));
    float *scale = unset<float>(scales_of(scaling ? scaling : DSV2I_CUDA_SCALE_ALL, m, k));
    uint16_t *narrow = unset<uint16_t>((size_t)(m * k));
    void *scratch = unset<char>(dsv2i_cuda_quantize_scratch());
    cudaGraph_t graph;
    cudaGraphExec_t exec;

    Blas::ok(dsv2i_cuda_blas_prepare(blas.to, &p));
    heap_fails = 1;
#ifdef DSV2I_EMULATED
    long queries = emu::blas_queries(), waits = emu::host_waits();
    emu::fail_allocation(1);
#endif
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    if (scaling)
        dsv2i_cuda_quantize(&to, step.device, (uint8_t *)narrow, scale, x, k, scaling, scratch);
    else
        dsv2i_cuda_narrow(&to, step.device, narrow, x, DSV2I_BF16, k);
    Blas::ok(dsv2i_cuda_blas_run(blas.to, &p, stream, y, narrow, w.device, scale, ones, 0));
    Blas::ok(dsv2i_cuda_blas_run(blas.to, &p, stream, y, narrow, w.device, scale, ones, 1));
    expect(cudaStreamEndCapture(stream, &graph) == cudaSuccess, "capture");
#ifdef DSV2I_EMULATED
    expect(emu::blas_queries() == queries && emu::host_waits() == waits, "a planned product asked or waited");
    emu::fail_allocation(0);
#endif
    heap_fails = 0;
    expect(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess, "graph");
    for (int rows : {3, 8, 1}) {
        std::vector<float> from = normals((size_t)(rows * k));
        std::vector<double> want((size_t)(rows * n));
        dsv2i_cuda_step host = step.host;
        host.n_rows = rows;
        cudaMemcpyAsync(step.device, &host, sizeof host, cudaMemcpyHostToDevice, stream);
        cudaMemcpyAsync(x, from.data(), from.size() * 4, cudaMemcpyHostToDevice, stream);
        expect(cudaGraphLaunch(exec, stream) == cudaSuccess, "launch");
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < n; j++)
                for (int l = 0; l < k; l++)
                    want[(size_t)(i * n + j)] += 2 * (double)from[(size_t)(i * k + l)] * w.value[(size_t)(j * k + l)];
        /* bf16 rounds x by 2^-9, e4m3 by 2^-4 at most, here each by its own */
        close_to(down(y, want.size()), want, scaling ? 0.25 : 0.02);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
}

#ifdef DSV2I_EMULATED

void check_plans()
{
    Blas blas;
    const long before = emu::blas_queries();
    dsv2i_cuda_product p = product(DSV2I_BF16, 4, 16, 32), same = p, two = p, apart;
    same.batch = 1;
    same.ldx = same.ldw = 32;
    same.ldy = 16;
    two.batch = 2;
    two.y_stride = 2000;
    apart = two;
    apart.y_stride = 3000;

    for (int round = 0; round < 3; round++)
        for (int m = 1; m <= 90; m++) /* more than there are buckets */
            for (const dsv2i_cuda_product &q : {p, same, two, apart}) {
                dsv2i_cuda_product r = q;
                r.m = m;
                Blas::ok(dsv2i_cuda_blas_prepare(blas.to, &r));
            }
    expect(emu::blas_queries() - before == 3 * 90, "%ld questions for 270 products", emu::blas_queries() - before);
    expect(heap.size() == 271, "%zu allocations", heap.size());
}

/* What the card is said to take, the library takes; what it is said not to take is refused without a plan. */
void check_takes(int major, int minor)
{
    emu::machine.major = major;
    emu::machine.minor = minor;
    Blas blas;
    int taken = 0;

    for (int i = 0; i < 8000; i++) {
        auto draw = [](int from, int to) { return (int)uniform((float)from, (float)to + 0.999f); };
        dsv2i_cuda_product p = product(draw(0, 5), draw(0, 5) * draw(1, 4), draw(0, 5) * draw(1, 4), draw(0, 2) * draw(1, 16) * draw(1, 4),
                                       draw(1, 3), draw(0, 3));
        for (int64_t *ld : {&p.ldx, &p.ldw, &p.ldy})
            if (!draw(0, 3))
                *ld = (ld == &p.ldy ? p.n : p.k) + draw(-1, 16);
        if (!draw(0, 3))
            p.batch = draw(-1, 3), p.columns = draw(0, 1), p.y_stride = draw(0, 3) * p.n;
        size_t plans = heap.size();
        dsv2i_cuda_result r = dsv2i_cuda_blas_prepare(blas.to, &p);
        if (dsv2i_cuda_blas_takes(card(), &p)) {
            taken++;
            Blas::ok(r);
        } else {
            expect(r.call && !strcmp(r.call, "dsv2i_cuda_blas_takes") && heap.size() == plans, "not refused");
        }
    }
    expect(taken > 100, "only %d products", taken);
    for (int scaling : {DSV2I_CUDA_SCALE_ALL, DSV2I_CUDA_SCALE_ROWS, DSV2I_CUDA_SCALE_BLOCKS}) {
        dsv2i_cuda_product p = product(DSV2I_F8_E4M3, 4, 1536, 5120, DSV2I_F32, scaling);
        bool want = card() >= 89 && (scaling == DSV2I_CUDA_SCALE_ALL || card() == 90);
        expect(dsv2i_cuda_blas_takes(card(), &p) == want, "scaling %d is %staken", scaling, want ? "not " : "");
    }
}

/* Every allocation fails once: nothing stays, and what was there before goes on. */
void check_failures()
{
    const dsv2i_cuda_product plans[] = {product(DSV2I_BF16, 4, 16, 32),
                                        product(DSV2I_F8_E4M3, 4, 16, 32, DSV2I_F32, DSV2I_CUDA_SCALE_ROWS)};
    const size_t bytes = emu::bytes_in_use();

    for (int of_host = 0; of_host < 2; of_host++)
        for (long fails = 1, failed_ones = 1; failed_ones; fails++) {
            dsv2i_cuda_blas *blas;
            std::vector<dsv2i_cuda_result> all;
            failed_ones = 0;
            if (of_host)
                heap_fails = fails;
            else
                emu::fail_allocation(fails);
            all.push_back(dsv2i_cuda_blas_open(&hooks, card(), &blas));
            if (all[0].call) {
                expect(!blas && emu::blas_objects() == 0 && heap.empty(), "left something behind");
                failed_ones++;
                continue;
            }
            for (const dsv2i_cuda_product &p : plans) {
                long objects = emu::blas_objects();
                size_t allocations = heap.size();
                all.push_back(dsv2i_cuda_blas_prepare(blas, &p));
                if (all.back().call) {
                    expect(all.back().code, "%s failed with nothing", all.back().call);
                    expect(emu::blas_objects() == objects && heap.size() == allocations, "a plan left something behind");
                    Blas::ok(dsv2i_cuda_blas_prepare(blas, &p));
                    failed_ones++;
                }
            }
            dsv2i_cuda_blas_close(blas);
            expect(emu::blas_objects() == 0 && heap.empty() && emu::bytes_in_use() == bytes, "left something behind");
            expect(fails < 40, "fails for ever");
        }
    heap_fails = 0;
    emu::fail_allocation(0);
    dsv2i_cuda_blas_close(nullptr);
}

void check_lost()
{
    const dsv2i_cuda_product p = product(DSV2I_BF16, 4, 16, 32);
    void *memory = up(std::vector<float>(1000));
    dsv2i_cuda_blas *blas;

    Blas::ok(dsv2i_cuda_blas_open(&hooks, card(), &blas));
    Blas::ok(dsv2i_cuda_blas_prepare(blas, &p));
    Blas::ok(dsv2i_cuda_blas_run(blas, &p, stream, (char *)memory + 16, (char *)memory + 1040, (char *)memory + 2064, nullptr, nullptr, 0));
    dsv2i_cuda_result r = dsv2i_cuda_blas_run(blas, &p, stream, (char *)memory + 2, (char *)memory + 1024, (char *)memory + 2048, nullptr,
                                              nullptr, 0);
    expect(r.call && !strcmp(r.call, "cublasLtMatmul") && r.code, "not aligned, and not refused");
    emu::fail_launch(1);
    dsv2i_cuda_blas_run(blas, &p, stream, memory, (char *)memory + 1024, (char *)memory + 2048, nullptr, nullptr, 0);
    r = dsv2i_cuda_blas_run(blas, &p, stream, memory, (char *)memory + 1024, (char *)memory + 2048, nullptr, nullptr, 0);
    expect(r.call && !strcmp(r.call, "cublasLtMatmul") && r.code, "the device is lost, and nobody says so");
    dsv2i_cuda_blas_close(blas);
    expect(emu::blas_objects() == 0 && heap.empty(), "left something behind");
    emu::reset(0);
}

#endif

/* Two contexts, each on its stream, at once. */
void check_streams()
{
    const int m = 12, n = 24, k = 512;
    Blas one, two;
    cudaStream_t streams[2] = {stream, nullptr};
    const dsv2i_cuda_product p = product(DSV2I_BF16, m, n, k);
    const Numbers x(DSV2I_BF16, (size_t)(2 * m * k)), w(DSV2I_BF16, (size_t)(n * k));
    float *y[2] = {unset<float>((size_t)(m * n)), unset<float>((size_t)(m * n))};

    cudaStreamSynchronize(stream);
    expect(cudaStreamCreateWithFlags(&streams[1], cudaStreamNonBlocking) == cudaSuccess, "no stream");
    for (int round = 0; round < 3; round++)
        for (int s = 0; s < 2; s++)
            Blas::ok(dsv2i_cuda_blas_run(s ? two.to : one.to, &p, streams[s], y[s], (const uint16_t *)x.device + s * m * k, w.device,
                                         nullptr, nullptr, round > 0));
    cudaDeviceSynchronize();
    for (int s = 0; s < 2; s++) {
        std::vector<double> want;
        for (int i = s * m; i < s * m + m; i++)
            for (int j = 0; j < n; j++) {
                double sum = 0;
                for (int l = 0; l < k; l++)
                    sum += 3 * x.value[(size_t)(i * k + l)] * w.value[(size_t)(j * k + l)];
                want.push_back(sum);
            }
        close_to(down(y[s], want.size()), want, tolerance(k, DSV2I_F32));
    }
    cudaStreamDestroy(streams[1]);
}

}

int main()
{
    const char *const type[] = {"", "f32", "bf16", "f16"};

    for (int dtype : {DSV2I_F32, DSV2I_BF16, DSV2I_F16})
        run(std::string("products of ") + type[dtype], 2, [=] {
            Blas blas;
            for (int m : {1, 2, 3, 5, 64})
                check_product(blas, dtype, m, 37, 96, DSV2I_F32, m == 2);
            check_product(blas, dtype, 7, 5, 77, DSV2I_F32, false); /* no row of w begins at 16 bytes */
            check_product(blas, dtype, 4, 24, 1536, DSV2I_F32, true);
        });
    run("products of bf16, as bf16", 2, [] {
        Blas blas;
        check_product(blas, DSV2I_BF16, 5, 40, 512, DSV2I_BF16, false);
        check_product(blas, DSV2I_BF16, 33, 9, 64, DSV2I_BF16, true);
    });
    run("a product 576 x 5120", 1, [] {
        Blas blas;
        check_product(blas, DSV2I_BF16, 3, 576, 5120, DSV2I_F32, false);
    });
    run("heads", 2, [] {
        check_heads(5, 3, 128, 64, 512, 128);
        check_heads(2, 16, 16, 8, 24, 16);
    });
    for (int dtype : {DSV2I_BF16, DSV2I_F16})
        run(std::string("narrow to ") + type[dtype], 2, [=] {
            check_narrow(dtype, 3, 1536);
            check_narrow(dtype, 5, 37);
        });
    run("narrow to three parts", 2, [] {
        check_parts(3, 1536);
        check_parts(5, 37);
    });
    for (int scaling : {DSV2I_CUDA_SCALE_ALL, DSV2I_CUDA_SCALE_ROWS, DSV2I_CUDA_SCALE_BLOCKS}) {
        const std::string how = scaling == DSV2I_CUDA_SCALE_ALL ? "for all" : scaling == DSV2I_CUDA_SCALE_ROWS ? "by rows" : "by blocks";
        run("quantize, scales " + how, 3, [=] {
            check_quantize(scaling, 1, 16);
            check_quantize(scaling, 7, 144);
            check_quantize(scaling, 2, 1408);
            check_quantize(scaling, 1, 5120);
            if (scaling == DSV2I_CUDA_SCALE_ALL)
                check_quantize(scaling, 300, 16); /* more rows than parts */
        });
        if (card() < 89 || (card() != 90 && scaling != DSV2I_CUDA_SCALE_ALL))
            continue;
        run("products of fp8, scales " + how, 2, [=] {
            Blas blas;
            check_fp8(blas, scaling, 8, 5, 144, 400, DSV2I_F32, false); /* 4 blocks, the last of 16 */
            check_fp8(blas, scaling, 4, 4, 16, 1408, DSV2I_F32, true);  /* 11 blocks in rows of 12 */
            check_fp8(blas, scaling, 12, 9, 264, 144, DSV2I_BF16, false);
            check_fp8(blas, scaling, 4, 1, 24, 5120, DSV2I_F32, false);
        });
        run("a graph of fp8, scales " + how, 3, [=] { check_graph(scaling); });
    }
    run("a graph of bf16", 4, [] { check_graph(0); });
    run("two contexts on two streams", 8, check_streams);
    run("rows to plan for", 1, check_rows);
#ifdef DSV2I_EMULATED
    run("plans are made once", 1, check_plans);
    for (int sm : {80, 89, 90, 100, 120})
        run("what sm_" + std::to_string(sm) + " takes", 1, [=] { check_takes(sm / 10, sm % 10); });
    run("no memory", 1, check_failures);
    run("refused, and lost", 1, check_lost);
#endif
    return finish();
}
