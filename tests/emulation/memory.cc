/* The machine's state, and its memory.
 *
 * Device memory is one range that only the device can touch: after its work the pages are closed, for some seeds, so that a host that uses a
 * device pointer stops there.  Addresses are not used again before the next reset.  Around each allocation the sanitizer is told to allow
 * nothing.
 *
 * SPDX-License-Identifier: MIT */
#include "machine.h"

#include <sys/mman.h>

#include <cstdlib>
#include <map>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size) (void)0
#define ASAN_UNPOISON_MEMORY_REGION(at, size) (void)0
#endif

namespace emu {

std::recursive_mutex lock;
Machine machine;

static uint64_t random_state;
static std::string first_error;
static cudaError_t last_error;
static long waits, allocations_left, launches_left;

static const size_t range_bytes = (size_t)256 << 30, page = 4096;
static char *range, *range_end; /* of what was given out */
static int users;
static bool opened;
static std::map<char *, size_t> device_blocks, pinned_blocks;
static size_t in_use;

uint64_t draw(uint64_t below)
{
    random_state ^= random_state << 13; /* xorshift64 */
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (random_state >> 11) % below;
}

const std::string &error() { return first_error; }
bool lost() { return !first_error.empty(); }
long host_waits() { return waits; }
void count_wait() { waits++; }
size_t bytes_in_use() { return in_use; }
void fail_allocation(long n) { allocations_left = n; }
void fail_launch(long n) { launches_left = n; }
bool pass_allocation() { return allocations_left == 0 || --allocations_left > 0; }
bool pass_launch() { return launches_left == 0 || --launches_left > 0; }

void record(const std::string &what)
{
    if (first_error.empty())
        first_error = what;
}

cudaError_t returned(cudaError_t e)
{
    if (lost())
        e = cudaErrorLaunchFailure;
    if (e != cudaSuccess && e != cudaErrorNotReady)
        last_error = e;
    return e;
}

void reset(uint64_t seed, const Machine &m)
{
    std::lock_guard<std::recursive_mutex> hold(lock);

    forget_streams();
    forget_blas();
    if (range_end > range) { /* what was left allocated goes, too */
        ASAN_UNPOISON_MEMORY_REGION(range, range_end - range);
        munmap(range, range_bytes);
        range = range_end = nullptr;
    }
    opened = false;
    device_blocks.clear();
    in_use = 0;
    machine = m;
    random_state = (seed + 1) * 0x9E3779B97F4A7C15u;
    first_error.clear();
    last_error = cudaSuccess;
    waits = allocations_left = launches_left = 0;
}

DeviceAccess::DeviceAccess()
{
    if (!users++ && !opened)
        mprotect(range, (size_t)(range_end - range), PROT_READ | PROT_WRITE);
    opened = true;
}

DeviceAccess::~DeviceAccess()
{
    if (!--users && !draw(2)) { /* not always: it takes its time */
        mprotect(range, (size_t)(range_end - range), PROT_NONE);
        opened = false;
    }
}

bool is_device(const void *ptr) { return range && ptr >= range && ptr < range + range_bytes; }

static bool within(const std::map<char *, size_t> &blocks, const void *ptr, size_t size)
{
    char *at = static_cast<char *>(const_cast<void *>(ptr));
    auto after = blocks.upper_bound(at);

    if (after == blocks.begin())
        return false;
    --after;
    return at + size <= after->first + after->second;
}

bool is_device(const void *ptr, size_t size) { return within(device_blocks, ptr, size); }
bool is_pinned(const void *ptr, size_t size) { return within(pinned_blocks, ptr, size); }

}

using namespace emu;

cudaError_t cudaGetLastError()
{
    cudaError_t e = returned(cudaSuccess);

    if (e == cudaSuccess)
        e = last_error;
    last_error = cudaSuccess;
    return e;
}

cudaError_t cudaPeekAtLastError() { return lost() ? cudaErrorLaunchFailure : last_error; }

const char *cudaGetErrorName(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    default: return "cudaError (emulated)";
    }
}

const char *cudaGetErrorString(cudaError_t e) { return lost() ? first_error.c_str() : cudaGetErrorName(e); }

cudaError_t cudaMalloc(void **ptr, size_t size)
{
    std::lock_guard<std::recursive_mutex> hold(lock);

    *ptr = nullptr;
    if (lost())
        return returned(cudaSuccess);
    if (unsafe())
        return returned(cudaErrorStreamCaptureUnsupported);
    if (!pass_allocation() || size > machine.memory - in_use)
        return returned(cudaErrorMemoryAllocation);
    if (!range) {
        void *got = mmap(nullptr, range_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (got == MAP_FAILED)
            return returned(cudaErrorMemoryAllocation);
        range = range_end = static_cast<char *>(got);
    }
    size_t whole = (size + 2 * page - 1) / page * page; /* a page between two at least */
    if (range_end + whole > range + range_bytes)
        return returned(cudaErrorMemoryAllocation);
    char *at = range_end;
    range_end += whole;
    if (opened)
        mprotect(at, whole, PROT_READ | PROT_WRITE);
    {
        DeviceAccess open;
        std::memset(at, 0xFF, size);
    }
    ASAN_POISON_MEMORY_REGION(at + size, whole - size);
    device_blocks[at] = size;
    in_use += size;
    *ptr = at;
    return cudaSuccess;
}

cudaError_t cudaFree(void *ptr)
{
    std::lock_guard<std::recursive_mutex> hold(lock);

    if (!ptr)
        return returned(cudaSuccess);
    if (unsafe())
        return returned(cudaErrorStreamCaptureUnsupported);
    finish_all(); /* as the real one */
    auto found = device_blocks.find(static_cast<char *>(ptr));
    if (found == device_blocks.end())
        return returned(cudaErrorInvalidValue);
    madvise(found->first, found->second, MADV_DONTNEED);
    ASAN_POISON_MEMORY_REGION(found->first, found->second);
    in_use -= found->second;
    device_blocks.erase(found);
    return returned(cudaSuccess);
}

cudaError_t cudaMallocHost(void **ptr, size_t size)
{
    std::lock_guard<std::recursive_mutex> hold(lock);

    *ptr = nullptr;
    if (lost())
        return returned(cudaSuccess);
    if (unsafe())
        return returned(cudaErrorStreamCaptureUnsupported);
    if (!pass_allocation() || posix_memalign(ptr, 4096, size ? size : 1))
        return returned(cudaErrorMemoryAllocation);
    std::memset(*ptr, 0xFF, size);
    pinned_blocks[static_cast<char *>(*ptr)] = size;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *ptr)
{
    std::lock_guard<std::recursive_mutex> hold(lock);

    if (!ptr)
        return returned(cudaSuccess);
    if (unsafe())
        return returned(cudaErrorStreamCaptureUnsupported);
    finish_all();
    if (!pinned_blocks.erase(static_cast<char *>(ptr)))
        return returned(cudaErrorInvalidValue);
    free(ptr);
    return returned(cudaSuccess);
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    std::lock_guard<std::recursive_mutex> hold(lock);

    *total = machine.memory;
    *free = machine.memory - in_use;
    return returned(cudaSuccess);
}
