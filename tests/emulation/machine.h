/* The emulated machine, as tests drive it.  All of it is one process-wide state behind one lock: a device is one, too.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2_EMULATION_MACHINE_H
#define DSV2_EMULATION_MACHINE_H

#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace emu {

/* What card it is.  reset() puts these in place. */
struct Machine {
    int major = 9, minor = 0, sms = 4;
    size_t memory = (size_t)8 << 30; /* bytes that cudaMalloc gives in all */
    bool has_code = true;            /* the program has kernels for it */
};

/* Begin anew: forget the error, the pending work and the counts; what runs by chance is drawn from seed. */
void reset(uint64_t seed, const Machine &machine = Machine());

/* The first thing that went wrong since reset, or "". */
const std::string &error();

/* Fault injection: the N-th allocation of device or pinned memory from now fails (1 the next one); the N-th launch loses the device.
 * 0: never. */
void fail_allocation(long n);
void fail_launch(long n);
/* The N-th beginning or end of a capture from now fails, as when another thread spoils it. */
void fail_capture(long n);
/* From now to the next reset cuBLASLt's heuristics find nothing for any product. */
void refuse_products();

/* Calls since reset in which the host waited for the device, and device bytes in use. */
long host_waits();
size_t bytes_in_use();

/* Objects of cuBLASLt that live, and questions to its heuristics since reset. */
long blas_objects();
long blas_queries();

/* ---- between the emulator's files --------------------------------------------------------------------------------------------- */

extern std::recursive_mutex lock;
extern Machine machine;

uint64_t draw(uint64_t below); /* 0 <= result < below */
void record(const std::string &what); /* the device is lost; keep the first text */
bool lost();
cudaError_t returned(cudaError_t error); /* what cudaGetLastError will say */
void count_wait();
bool pass_allocation();
bool pass_launch();

/* Device memory is open while one of these lives; afterwards, for some seeds, the host cannot touch it. */
struct DeviceAccess {
    DeviceAccess();
    ~DeviceAccess();
};
bool is_device(const void *ptr);
bool is_device(const void *ptr, size_t size); /* all of it, in one allocation */
bool is_pinned(const void *ptr, size_t size);

/* Work of a library's own on a stream.  forget_*: at reset. */
cudaError_t enqueue(cudaStream_t stream, std::function<void()> action);
bool unsafe(); /* of the calling thread, to allocate or wait, as a capture goes on: it is spoiled */
void finish_all(); /* what has been given to the device, to its end */
void forget_streams();
void forget_blas();

/* A thread's own stack. */
struct Fiber {
    void *stack = nullptr, *at = nullptr, *fake = nullptr;
};
void fiber_create(Fiber *fiber, void (*entry)());
void fiber_enter(Fiber *fiber); /* from the scheduler; returns at its next leave */
void fiber_leave(Fiber *fiber, bool last);
void fiber_release(Fiber *fiber);

/* A copy under way (cp.async), and those of a thread. */
struct Copy {
    char *to;
    const char *from;
    unsigned size, from_size; /* the others become 0 */
    unsigned group;
    bool was_read;
    unsigned char bytes[16];
};
struct Copies {
    std::vector<Copy> pending;
    unsigned group = 0; /* which the next commit closes */
};
Copies *thread_copies(); /* of the thread that runs */
void finish_copies(Copies *copies);
bool in_shared(const void *at, size_t size);

/* A product of a warpgroup under way (wgmma), and those of a thread. */
struct Product {
    float *d;
    unsigned n, group;
    bool a_in_registers, b_along_n, accumulate;
    uint16_t a[16][16]; /* the warp's rows */
    uint64_t a_at, b_at;
};
struct Products {
    std::vector<Product> pending;
    std::map<float *, std::vector<float>> hidden;
    unsigned group = 0; /* which the next commit closes */
    bool fenced = false;
};
Products *thread_products();

/* Threads that wait for something: wait_in is for the one that runs, take_turn lets others go first. */
struct Thread;
typedef std::vector<Thread *> Waiters;
Thread *this_thread();
void wait_in(Waiters *waiters, const char *what);
void wake(Waiters *waiters);
void take_turn();

/* A block's mbarriers, and the bulk copies that count for them. */
struct Mbarrier {
    unsigned count, pending, phase = 0;
    long bytes = 0;         /* announced and not landed, or less than 0 */
    Thread *unfenced;       /* who made it, until a fence */
    Waiters waiters;
};
struct BulkCopy {
    char *to;
    const char *from;
    std::vector<char> bytes;
    uint64_t *barrier;
    bool was_read, late; /* late: lands when nothing else can go on */
};
struct Transactions {
    std::map<uint64_t *, Mbarrier> barriers;
    std::vector<BulkCopy> pending;
    char *shared = nullptr; /* the block's, and how much */
    size_t bytes = 0;
    std::vector<char> seen; /* of it by the asynchronous units: what bulk copies brought, and what was there at the last fence */
};
Transactions *block_transactions(); /* of the thread that runs */
char *seen_at(Transactions *in, const void *at);
bool land_bulk(Transactions *in, bool late_too); /* one, if there is one */

/* A launch.  start makes up to blocks blocks run until they wait for the launch before; finish ends all. */
struct Launch {
    dim3 grid, block;
    size_t shared = 0;
    bool cooperative = false, early = false;
    std::function<void()> body;
};
struct Grid;
std::shared_ptr<Grid> grid_create(std::shared_ptr<const Launch> launch);
void grid_start(Grid *grid, unsigned blocks);
void grid_finish(Grid *grid);

}

#endif
