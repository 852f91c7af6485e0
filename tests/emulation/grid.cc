/* Grids: blocks of threads, their barriers and warps.
 *
 * A thread runs until it must wait for another; then the next is drawn from those that can run, of all blocks that are resident.  Of
 * every other block some warps, or groups of four, are slow: they run when no other thread can, so that others come as far ahead of them
 * as barriers let them.  So whatever order barriers do not force comes about for some seed.  When no thread can run and some have not
 * ended, the launch fails and says who waits for what.
 *
 * SPDX-License-Identifier: MIT */
#include "machine.h"

#include <device_emulated.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emu {

struct Block;

struct Warp;

/* What the lanes of a meeting give, for each of them to see until its next.  Not set, as that would take longer than the rest. */
struct Gift {
    unsigned users = 0;
    unsigned char bytes[32 * 64];
};

struct Thread {
    dim3 place; /* threadIdx */
    unsigned lane = 0;
    Block *block = nullptr;
    Warp *warp = nullptr;
    Fiber fiber;
    const char *waits_for = nullptr;
    bool ended = false, slow = false;
    Copies copies;
    Products products;
    Gift *seen = nullptr; /* at this one's last meeting */
};

/* Lanes that wait for each other, found by the lowest of them. */
struct Meeting {
    unsigned mask = 0, came = 0;
    size_t size = 0;
    Gift *given = nullptr;
};

struct Warp {
    Thread *lanes[32] = {};
    std::unique_ptr<Meeting> meetings[32]; /* made when lanes first meet */
};

struct Barrier {
    unsigned expected = 0, arrived = 0; /* expected 0: all threads of the block that have not ended; arrived: and do not wait */
    std::vector<Thread *> came;
};

struct Block {
    Grid *grid = nullptr;
    dim3 place; /* blockIdx */
    std::vector<Thread> threads; /* as many as there will be: they do not move */
    std::vector<Warp> warps;
    Barrier barriers[16];
    Transactions transactions;
    unsigned live = 0;
    void *shared = nullptr;
    ~Block()
    {
        for (Thread &t : threads)
            fiber_release(&t.fiber);
        free(shared);
    }
};

struct Grid {
    std::shared_ptr<const Launch> launch;
    std::vector<unsigned> order;     /* of blocks */
    size_t next = 0;                 /* in order */
    std::vector<std::unique_ptr<Block>> resident;
    std::vector<Thread *> ready, ready_slow, at_grid_barrier, at_dependency;
    size_t live_threads = 0;         /* of resident blocks */
    bool dependency_met = false;
};

static void make_ready(Thread *t)
{
    Grid *g = t->block->grid;

    (t->slow ? g->ready_slow : g->ready).push_back(t);
}

static Thread *current;

unsigned lane() { return current->lane; }

void *shared_memory()
{
    if (!current->block->shared)
        fail("shared memory used, but the launch gave none");
    return current->block->shared;
}

bool in_shared(const void *at, size_t size)
{
    const char *begin = static_cast<const char *>(current->block->shared);
    size_t bytes = current->block->grid->launch->shared;

    return begin && at >= begin && size <= bytes && static_cast<const char *>(at) <= begin + bytes - size;
}

Copies *thread_copies() { return &current->copies; }
Products *thread_products() { return &current->products; }
Transactions *block_transactions() { return &current->block->transactions; }
Thread *this_thread() { return current; }

void fail(const char *format, ...)
{
    char text[512], all[700];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(all, sizeof all, "block (%u, %u, %u) thread (%u, %u, %u): %s", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
             threadIdx.y, threadIdx.z, text);
    record(all);
    fiber_leave(&current->fiber, true); /* never entered again */
    __builtin_unreachable();
}

static void wait(const char *what)
{
    Thread *self = current;

    self->waits_for = what;
    fiber_leave(&self->fiber, false);
}

static void release(std::vector<Thread *> &threads)
{
    for (Thread *t : threads) {
        t->waits_for = nullptr;
        make_ready(t);
    }
    threads.clear();
}

void wait_in(Waiters *waiters, const char *what)
{
    waiters->push_back(current);
    wait(what);
}

void wake(Waiters *waiters) { release(*waiters); }

void take_turn()
{
    make_ready(current);
    wait("its turn");
}

/* ---- barriers ----------------------------------------------------------------------------------------------------------------- */

static void open_if_full(Block *block, Barrier *b)
{
    size_t came = b->came.size() + b->arrived;

    if (came && came == (b->expected ? b->expected : block->live)) {
        b->arrived = 0;
        release(b->came);
    }
}

static Barrier *come_to(unsigned barrier, unsigned threads)
{
    if (barrier > 15)
        fail("barrier %u: there are 16", barrier);
    if (threads % 32)
        fail("barrier %u: %u threads are no whole warps", barrier, threads);
    Barrier *b = &current->block->barriers[barrier];
    if (b->came.size() + b->arrived && b->expected != threads)
        fail("barrier %u: expects %u threads here and %u elsewhere", barrier, threads, b->expected);
    b->expected = threads;
    return b;
}

void sync_threads(unsigned barrier, unsigned threads)
{
    Barrier *b = come_to(barrier, threads);

    b->came.push_back(current);
    open_if_full(current->block, b);
    wait("a barrier"); /* or, when it has opened, for its turn */
}

void arrive(unsigned barrier, unsigned threads)
{
    if (!threads)
        fail("barrier %u: an arrival says how many threads there are", barrier);
    Barrier *b = come_to(barrier, threads);
    b->arrived++;
    open_if_full(current->block, b);
    take_turn(); /* whom that lets go on may be faster */
}

void sync_grid()
{
    Grid *g = current->block->grid;

    if (!g->launch->cooperative)
        fail("grid barrier in a launch that is not cooperative");
    g->at_grid_barrier.push_back(current);
    if (g->at_grid_barrier.size() == g->live_threads)
        release(g->at_grid_barrier);
    wait("the grid barrier");
}

void wait_dependency()
{
    Grid *g = current->block->grid;

    if (g->dependency_met)
        return;
    g->at_dependency.push_back(current);
    wait("the launch before");
}

static std::vector<std::unique_ptr<Gift>> gifts; /* all there are */
static std::vector<Gift *> spare_gifts;

static Gift *take_gift()
{
    if (spare_gifts.empty()) {
        gifts.emplace_back(new Gift);
        return gifts.back().get();
    }
    Gift *g = spare_gifts.back();
    spare_gifts.pop_back();
    return g;
}

static void forget_seen(Thread *t)
{
    if (t->seen && !--t->seen->users)
        spare_gifts.push_back(t->seen);
    t->seen = nullptr;
}

const unsigned char *meet(unsigned mask, const void *given, size_t size, const char *what)
{
    Thread *self = current;
    Warp *warp = self->warp;

    if (!(mask >> self->lane & 1))
        fail("%s: lane %u is not in its own mask %08x", what, self->lane, mask);
    auto &m = warp->meetings[__builtin_ctz(mask)];
    if (!m)
        m.reset(new Meeting);
    forget_seen(self);
    if (!m->came) {
        m->mask = mask;
        m->size = size;
        m->given = take_gift();
    } else if (m->mask != mask || m->size != size) {
        fail("%s: %zu bytes with mask %08x, but other lanes wait with %zu and %08x", what, size, mask, m->size, m->mask);
    }
    if (size)
        std::memcpy(m->given->bytes + size * self->lane, given, size);
    m->came |= 1u << self->lane;
    if (m->came != mask) {
        wait(what);
        return self->seen->bytes;
    }
    m->came = 0;
    m->given->users = (unsigned)__builtin_popcount(mask);
    for (unsigned l = 0; l < 32; l++) {
        if (!(mask >> l & 1))
            continue;
        Thread *t = warp->lanes[l];
        t->seen = m->given;
        if (t != self) {
            t->waits_for = nullptr;
            make_ready(t);
        }
    }
    make_ready(self); /* so that the last to come is not always the first to go on */
    wait("its turn");
    return self->seen->bytes;
}

/* ---- running ------------------------------------------------------------------------------------------------------------------- */

static void thread_entry()
{
    Thread *self = current;
    Block *block = self->block;

    block->grid->launch->body();
    finish_copies(&self->copies);
    if (!self->products.pending.empty())
        fail("the thread ends while a product (wgmma) is under way"); /* where its registers were is gone */
    if (block->live == 1 && !block->transactions.pending.empty())
        fail("the block ends while a bulk copy to %p is under way", block->transactions.pending[0].to);
    forget_seen(self);
    self->ended = true;
    block->live--;
    block->grid->live_threads--;
    for (Barrier &b : block->barriers)
        open_if_full(block, &b); /* a barrier of all waits for those only that are left */
    fiber_leave(&self->fiber, true);
}

static void load_block(Grid *g)
{
    const Launch &l = *g->launch;
    unsigned index = g->order[g->next++], n = l.block.x * l.block.y * l.block.z;
    auto block = std::make_unique<Block>();

    block->grid = g;
    block->place = dim3(index % l.grid.x, index / l.grid.x % l.grid.y, index / l.grid.x / l.grid.y);
    block->live = n;
    block->warps.resize((n + 31) / 32);
    if (l.shared) { /* exactly as large as asked for, so that a sanitizer sees a step past its end */
        if (posix_memalign(&block->shared, 1024, l.shared))
            throw std::bad_alloc();
        std::memset(block->shared, 0xFF, l.shared);
        block->transactions.shared = static_cast<char *>(block->shared);
        block->transactions.bytes = l.shared;
    }
    const uint64_t together = n <= 128 || draw(2) ? 32 : 128, slow = draw(2) ? draw(256) : 0; /* bits: of every eight groups of so many threads */
    block->threads = std::vector<Thread>(n);
    for (unsigned i = 0; i < n; i++) {
        Thread *t = &block->threads[i];
        t->place = dim3(i % l.block.x, i / l.block.x % l.block.y, i / l.block.x / l.block.y);
        t->lane = i % 32;
        t->block = block.get();
        t->warp = &block->warps[i / 32];
        t->warp->lanes[i % 32] = t;
        t->slow = slow >> i / together % 8 & 1;
        fiber_create(&t->fiber, thread_entry);
        make_ready(t);
    }
    g->live_threads += n;
    g->resident.push_back(std::move(block));
}

std::shared_ptr<Grid> grid_create(std::shared_ptr<const Launch> launch)
{
    auto g = std::make_shared<Grid>();

    g->order.resize((size_t)launch->grid.x * launch->grid.y * launch->grid.z);
    for (size_t i = 0; i < g->order.size(); i++) {
        size_t j = draw(i + 1);
        g->order[i] = g->order[j];
        g->order[j] = (unsigned)i;
    }
    g->launch = std::move(launch);
    return g;
}

static bool land_some_bulk(Grid *g, bool late_too)
{
    size_t n = g->resident.size(), first = n ? draw(n) : 0;

    for (size_t i = 0; i < n; i++)
        if (land_bulk(&g->resident[(first + i) % n]->transactions, late_too))
            return true;
    return false;
}

/* Run until no thread can, with at most beside blocks resident at a time and end of them begun in all. */
static void run(Grid *g, size_t beside, size_t end)
{
    while (!lost()) {
        while (g->resident.size() < beside && g->next < end)
            load_block(g);
        if (!draw(8))
            land_some_bulk(g, false);
        std::vector<Thread *> &ready = g->ready.empty() ? g->ready_slow : g->ready;
        if (ready.empty()) {
            if (!land_some_bulk(g, true))
                return;
            continue;
        }
        size_t i = draw(ready.size());
        Thread *t = ready[i];
        ready[i] = ready.back();
        ready.pop_back();
        current = t;
        threadIdx = t->place;
        blockIdx = t->block->place;
        blockDim = g->launch->block;
        gridDim = g->launch->grid;
        fiber_enter(&t->fiber);
        current = nullptr;
        if (t->ended) {
            fiber_release(&t->fiber);
            for (size_t b = 0; !t->block->live && b < g->resident.size(); b++)
                if (g->resident[b].get() == t->block) {
                    g->resident.erase(g->resident.begin() + (long)b);
                    break;
                }
            if (!g->at_grid_barrier.empty() && g->at_grid_barrier.size() == g->live_threads)
                release(g->at_grid_barrier);
        }
    }
}

void grid_start(Grid *g, unsigned blocks)
{
    size_t end = g->launch->cooperative ? g->order.size() : g->next + blocks;

    run(g, g->resident.size() + (end - g->next), end < g->order.size() ? end : g->order.size());
}

void grid_finish(Grid *g)
{
    g->dependency_met = true;
    release(g->at_dependency);
    run(g, g->launch->cooperative ? g->order.size() : 1 + draw(3) + g->resident.size(), g->order.size());
    if (lost() || g->resident.empty())
        return;
    for (auto &block : g->resident)
        for (const Thread &t : block->threads)
            if (!t.ended) {
                char text[256];
                snprintf(text, sizeof text, "deadlock: block (%u, %u, %u) thread (%u, %u, %u) waits for %s; %u of its block's threads have not ended",
                         block->place.x, block->place.y, block->place.z, t.place.x, t.place.y, t.place.z,
                         t.waits_for ? t.waits_for : "nothing", block->live);
                record(text);
                return;
            }
}

}

unsigned __ballot_sync(unsigned mask, int predicate)
{
    int given = predicate != 0;
    const unsigned char *all = emu::meet(mask, &given, sizeof given, "__ballot_sync");
    unsigned result = 0;

    for (unsigned l = 0; l < 32; l++)
        if (mask >> l & 1)
            result |= (unsigned)(all[sizeof given * l] != 0) << l;
    return result;
}

unsigned __match_any_sync(unsigned mask, unsigned value)
{
    const unsigned char *all = emu::meet(mask, &value, sizeof value, "__match_any_sync");
    unsigned result = 0;

    for (unsigned l = 0; l < 32; l++)
        if ((mask >> l & 1) && !std::memcmp(all + sizeof value * l, &value, sizeof value))
            result |= 1u << l;
    return result;
}

template <class F> static unsigned reduce(unsigned mask, unsigned value, const char *what, F f)
{
    const unsigned char *all = emu::meet(mask, &value, sizeof value, what);
    unsigned result = 0;

    for (unsigned l = 0; l < 32; l++) {
        unsigned given;
        std::memcpy(&given, all + sizeof given * l, sizeof given);
        if (mask >> l & 1)
            result = f(result, given);
    }
    return result;
}

unsigned __reduce_add_sync(unsigned mask, unsigned value)
{
    return reduce(mask, value, "__reduce_add_sync", [](unsigned a, unsigned b) { return a + b; });
}

unsigned __reduce_max_sync(unsigned mask, unsigned value)
{
    return reduce(mask, value, "__reduce_max_sync", [](unsigned a, unsigned b) { return a > b ? a : b; });
}
