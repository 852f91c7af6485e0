/* What the checks of kernels are made of: device memory, steps, weights, and the loop over seeds.  A check program's main calls run() for
 * each case and returns finish().  On the emulated machine a check runs with several seeds; built against the toolkit (tests/gpu) the same
 * file runs on a card.  The environment's DSV2_TEST_ONLY: only cases whose name contains it.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2_CUDA_CHECKS_H
#define DSV2_CUDA_CHECKS_H

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <unistd.h>

#include <kernels.h>

#ifdef DSV2I_EMULATED
#include <machine.h>
#endif

extern "C" {
#include "cpu_record.h"
#include "reference64.h"
}

namespace {

int failed, count;
bool case_failed;
std::string case_name;
cudaStream_t stream;
uint64_t state;

void expect(bool ok, const char *format, ...) __attribute__((format(printf, 2, 3)));
void expect(bool ok, const char *format, ...)
{
    va_list args;

    if (ok || case_failed)
        return;
    case_failed = true;
    printf("# %s: ", case_name.c_str());
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
}

float uniform(float from, float to)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return from + (to - from) * (float)(state >> 40) * 0x1p-24f;
}

std::vector<float> normals(size_t n, float scale = 1)
{
    std::vector<float> x(n);
    for (float &v : x) {
        v = 0;
        for (int i = 0; i < 6; i++)
            v += uniform(-1, 1);
        v *= 0.7071f * scale;
    }
    return x;
}

template <class T> T *up(const std::vector<T> &from)
{
    T *to;
    expect(cudaMalloc((void **)&to, from.size() * sizeof(T) + 1) == cudaSuccess, "no device memory");
    cudaMemcpyAsync(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice, stream);
    return to;
}

template <class T> std::vector<T> down(const T *from, size_t n)
{
    std::vector<T> to(n);
    cudaMemcpyAsync(to.data(), from, n * sizeof(T), cudaMemcpyDeviceToHost, stream);
    cudaError_t e = cudaStreamSynchronize(stream);
    expect(e == cudaSuccess, "%s", cudaGetErrorString(e));
    return to;
}

/* Memory for n elements, all bits set, so that what no kernel wrote can be told. */
template <class T> T *unset(size_t n)
{
    std::vector<T> ones(n);
    memset(ones.data(), 0xFF, n * sizeof(T));
    return up(ones);
}

template <class T> bool is_unset(const T &x)
{
    T ones;
    memset(&ones, 0xFF, sizeof ones);
    return !memcmp(&x, &ones, sizeof x);
}

[[maybe_unused]] void close_to(const std::vector<float> &got, const std::vector<double> &want, double tolerance)
{
    double square = 0;

    for (double w : want)
        square += w * w;
    for (size_t i = 0; i < want.size() && !case_failed; i++) {
        double error = fabs((double)got[i] - want[i]) / (fmax(fabs(want[i]), sqrt(square / (double)want.size())) + 1e-30);
        expect(error <= tolerance, "error %.3g at %zu: %.9g for %.9g", error, i, (double)got[i], want[i]);
    }
    for (size_t i = want.size(); i < got.size(); i++)
        expect(is_unset(got[i]), "wrote at %zu, past the last row", i);
}

[[maybe_unused]] std::vector<double> frequencies(int rope)
{
    std::vector<double> f;
    for (int i = 0; i < rope / 2; i++)
        f.push_back(pow(10000, -2.0 * i / rope));
    return f;
}

/* For the card that there is; the emulated one has 4 multiprocessors. */
[[maybe_unused]] dsv2i_cuda_launch launch_for(int max_rows, int early = 1)
{
    int major = 9, minor = 0, n_sms = 4;
#ifndef DSV2I_EMULATED
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, 0);
#endif
    return {stream, max_rows, early && major >= 9, 10 * major + minor, n_sms, 0, DSV2I_PAGES_ALL, 1};
}

[[maybe_unused]] uint16_t bf16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(x != x ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/* A step of rows: each a sequence of its own with pages in device memory. */
struct Step {
    dsv2i_cuda_step host{};
    dsv2i_cuda_step *device;
    int rows;
    std::vector<int32_t> pos;
    std::vector<void *> pages; /* the page of each row's position */
    Step(const std::vector<int32_t> &positions, const std::vector<int32_t> &tokens, const std::vector<int32_t> &types, size_t page_bytes,
         int rope)
        : rows((int)positions.size()), pos(positions)
    {
        std::vector<int32_t> seq, first;
        std::vector<dsv2i_seq> seqs;
        for (int i = 0; i < rows; i++) {
            std::vector<void *> table((size_t)pos[(size_t)i] / DSV2I_PAGE_TOKENS + 1, nullptr);
            table.back() = unset<char>(page_bytes);
            pages.push_back(table.back());
            seqs.push_back({up(table), DSV2I_ABSORBED, types.empty() ? 0 : types[(size_t)i]});
            seq.push_back(i);
            first.push_back(i);
        }
        first.push_back(rows);
        host.n_rows = host.n_seqs = rows;
        host.token = up(tokens.empty() ? std::vector<int32_t>((size_t)rows) : tokens);
        host.pos = up(pos);
        host.seq = up(seq);
        host.first = up(first);
        host.seqs = up(seqs);
        host.inv_freq = up(frequencies(rope));
        host.rope = unset<float>((size_t)((rows + 3) * rope));
        device = up(std::vector<dsv2i_cuda_step>{host});
    }
    dsv2i_cuda_launch launch() const { return launch_for(rows + 3); } /* as a graph for more rows */
};

[[maybe_unused]] std::vector<int32_t> zeros(int n) { return std::vector<int32_t>((size_t)n); }

/* A weight of the host with its copy in device memory. */
struct Weight {
    std::vector<float> full;
    std::vector<uint16_t> half;
    dsv2i_weight host = {};
    const void *device;
    Weight(int dtype, int rows, int cols, float scale) : full(normals((size_t)(rows * cols), scale)), half(full.size())
    {
        for (size_t i = 0; i < full.size(); i++) {
            _Float16 f16 = (_Float16)full[i];
            uint32_t bits;
            memcpy(&bits, &full[i], 4);
            half[i] = (uint16_t)(bits >> 16);
            if (dtype == DSV2I_F16)
                memcpy(&half[i], &f16, 2);
        }
        host.dtype = dtype;
        host.rows = rows;
        host.cols = cols;
        host.data = dtype == DSV2I_F32 ? (void *)full.data() : (void *)half.data();
        device = dtype == DSV2I_F32 ? (void *)up(full) : (void *)up(half);
    }
};

/* linear_few for n rows, in a launch for more unless exact; and the first alone: the same bits.  Sums are of up to 160 terms in a lane. */
[[maybe_unused]] void check_linear_few(const dsv2i_weight &host, const dsv2i_weight &device, int n, int accumulate, bool exact)
{
    const int rows = host.rows, cols = host.cols;
    Step step(zeros(n), {}, {}, 1, 2), alone(zeros(1), {}, {}, 1, 2);
    std::vector<float> x = normals((size_t)((n + 3) * cols)), start = normals((size_t)((n + 3) * rows));
    std::vector<double> xd(x.begin(), x.end()), want((size_t)(n * rows));
    dsv2i_cuda_launch to = exact ? launch_for(n) : step.launch(), one = launch_for(1, 0);
    float *x_device = up(x), *y = accumulate ? up(start) : unset<float>(start.size());
    float *y_alone = accumulate ? up(start) : unset<float>(start.size());

    expect(dsv2i_cuda_linear_few(&to, step.device, y, x_device, &device, accumulate) == cudaSuccess, "launch");
    expect(dsv2i_cuda_linear_few(&one, alone.device, y_alone, x_device, &device, accumulate) == cudaSuccess, "launch");
    for (int i = 0; i < n; i++) {
        ref_linear(&want[(size_t)(i * rows)], &xd[(size_t)(i * cols)], &host);
        for (int r = 0; accumulate && r < rows; r++)
            want[(size_t)(i * rows + r)] += (double)start[(size_t)(i * rows + r)];
    }
    std::vector<float> got = down(y, start.size()), single = down(y_alone, start.size());
    for (size_t i = want.size(); i < got.size(); i++)
        expect(accumulate ? got[i] == start[i] : is_unset(got[i]), "wrote past the last row");
    for (int i = 0; i < rows; i++)
        expect(!memcmp(&got[(size_t)i], &single[(size_t)i], 4), "other bits alone at %d", i);
    got.resize(want.size());
    close_to(got, want, 2e-6);
}

/* Environment: DSV2_TEST_ONLY, a part of a case's name; DSV2_TEST_SKIP, how many cases not to run; DSV2_TEST_SEEDS, how many seeds at most.
 * On a card a case that breaks the process's context, or does not end, ends the program: what followed would say nothing. */
template <class F> void run(const std::string &name, [[maybe_unused]] int seeds, F check)
{
    const char *only = getenv("DSV2_TEST_ONLY"), *skip = getenv("DSV2_TEST_SKIP"), *most = getenv("DSV2_TEST_SEEDS");
    if (only && name.find(only) == std::string::npos)
        return;
    if (skip && count < atoi(skip)) {
        count++;
        return;
    }
    if (most && atoi(most) < seeds)
        seeds = atoi(most);
    case_name = name;
    case_failed = false;
#ifndef DSV2I_EMULATED
    printf("# case %d: %s\n", count + 1, name.c_str());
    fflush(stdout);
    alarm(30);
#endif
#ifdef DSV2I_EMULATED
    for (int seed = 0; seed < seeds && !case_failed; seed++) {
        emu::reset((uint64_t)seed);
#else
    {
#endif
        state = 1;
        expect(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess, "no stream");
        check();
        cudaError_t e = cudaDeviceSynchronize();
        expect(e == cudaSuccess, "%s", cudaGetErrorString(e));
        cudaStreamDestroy(stream);
    }
    failed += case_failed;
    printf("%s %d - %s\n", case_failed ? "not ok" : "ok", ++count, name.c_str());
    fflush(stdout);
#ifndef DSV2I_EMULATED
    if (cudaDeviceSynchronize() != cudaSuccess) /* as it will be from now on */
        exit(1);
#endif
}

/* The end of a program: the plan, and its status. */
int finish()
{
    printf("1..%d\n", count);
    return failed != 0;
}

}

#endif
