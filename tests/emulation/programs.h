/* Programs that prove the emulator, and what they are made of.  A program with a mistake stands beside its correct twin.  A mistake is
 * caught when, for one of the seeds, the machine says so, the results differ, or a sanitizer stops the process; the twin must pass for
 * all of them.  Each runs in a process of its own.
 *
 * SPDX-License-Identifier: MIT */
#ifndef DSV2_EMULATION_PROGRAMS_H
#define DSV2_EMULATION_PROGRAMS_H

#include "machine.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
static const bool have_asan = true;
#else
static const bool have_asan = false;
#endif

namespace {

const int seeds = 20;
cudaStream_t stream, other;

/* ---- what programs are made of -------------------------------------------------------------------------------------------------- */

struct Options {
    size_t shared = 0;
    bool cooperative = false, early = false;
    cudaStream_t on = nullptr;
};

template <class... P, class... A>
cudaError_t start(void (*kernel)(P...), dim3 grid, dim3 block, const Options &o, A... args)
{
    cudaLaunchAttribute attrs[2] = {};
    cudaLaunchConfig_t config = {grid, block, o.shared, o.on ? o.on : stream, attrs, 0};

    if (o.cooperative) {
        attrs[config.numAttrs].id = cudaLaunchAttributeCooperative;
        attrs[config.numAttrs++].val.cooperative = 1;
    }
    if (o.early) {
        attrs[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attrs[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    return cudaLaunchKernelEx(&config, kernel, args...);
}

template <class T> T *device(size_t n)
{
    T *ptr;
    if (cudaMalloc(&ptr, n * sizeof(T)) != cudaSuccess)
        abort();
    return ptr;
}

template <class T> T *pinned(size_t n)
{
    T *ptr;
    if (cudaMallocHost(&ptr, n * sizeof(T)) != cudaSuccess)
        abort();
    return ptr;
}

template <class T> std::vector<T> read(const T *from, size_t n)
{
    std::vector<T> host(n);
    cudaMemcpyAsync(host.data(), from, n * sizeof(T), cudaMemcpyDeviceToHost, stream);
    cudaStreamSynchronize(stream);
    return host;
}

template <class T> bool all_are(const T *from, size_t n, T (*want)(size_t))
{
    std::vector<T> host = read(from, n);
    for (size_t i = 0; i < n; i++)
        if (host[i] != want(i))
            return false;
    return true;
}

/* ---- running them ------------------------------------------------------------------------------------------------- */

struct Program {
    const char *name;
    bool (*right)(), (*wrong)(); /* wrong: null where chance plays no part */
    bool needs_asan;
};

#define PROGRAM(name) {#name, name<false>, name<true>, false}
#define PROGRAM_FOR_ASAN(name) {#name, name<false>, name<true>, true}
#define CHECK(name) {#name, name, nullptr, false}

/* For one seed: 1 right, 0 wrong. */
int run(bool (*program)(), int seed)
{
    fflush(stdout);
    pid_t child = fork();

    if (!child) {
        if (!getenv("DSV2_EMULATION_LOUD"))
            if (!freopen("/dev/null", "w", stderr))
                _exit(3);
        emu::reset((uint64_t)seed);
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
        cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
        bool right = program() && cudaDeviceSynchronize() == cudaSuccess && emu::error().empty();
        if (!emu::error().empty())
            fprintf(stderr, "%s\n", emu::error().c_str());
        _exit(right ? 42 : 1);
    }
    int status;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 42;
}

/* All of them, as TAP.  The result is the program's. */
template <size_t n> int run_all(const Program (&programs)[n])
{
    int failed = 0, count = 0;

    for (const Program &p : programs) {
        bool ok;
        if (p.wrong) {
            int twin = 0, caught = 0;
            for (int seed = 0; seed < seeds; seed++)
                twin += run(p.right, seed);
            for (int seed = 0; seed < seeds; seed++)
                caught += !run(p.wrong, seed);
            bool skip = p.needs_asan && !have_asan;
            ok = twin == seeds && (caught || skip);
            printf("%s %d - %s: caught with %d of %d seeds, its twin passes with %d%s\n", ok ? "ok" : "not ok", ++count, p.name, caught,
                   seeds, twin, skip ? " # SKIP needs AddressSanitizer" : "");
        } else {
            ok = run(p.right, 0);
            printf("%s %d - %s\n", ok ? "ok" : "not ok", ++count, p.name);
        }
        failed += !ok;
    }
    printf("1..%d\n", count);
    return failed != 0;
}

}

#endif
