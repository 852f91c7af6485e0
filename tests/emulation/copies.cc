/* Copies from global to shared memory that run beside the thread that issues them (kernels/cuda/copy.cuh).
 *
 * When one is read, and when it lands, is drawn: each as it is issued, or not before the wait that asks for it.  A bulk copy lands between
 * two turns of threads, or when no thread can go on.
 *
 * SPDX-License-Identifier: MIT */
#include "machine.h"

#include <copy_emulated.h>
#include <device_emulated.h>

namespace emu {

static void read(Copy *c)
{
    if (!c->was_read)
        std::memcpy(c->bytes, c->from, c->from_size);
    c->was_read = true;
}

static void land(Copy *c)
{
    read(c);
    std::memcpy(c->to, c->bytes, c->size);
}

/* Land those of groups before end, in any order. */
static void finish(Copies *copies, unsigned end)
{
    std::vector<Copy> rest, now;

    for (const Copy &c : copies->pending)
        (c.group < end ? now : rest).push_back(c);
    for (size_t left = now.size(); left; left--) {
        size_t i = draw(left);
        land(&now[i]);
        now[i] = now[left - 1];
    }
    copies->pending.swap(rest);
}

void finish_copies(Copies *copies) { finish(copies, copies->group + 1); }

void global_read(const void *at, unsigned size)
{
    if (reinterpret_cast<uintptr_t>(at) % size || (!is_device(at) && !is_pinned(at, size)))
        fail("load of %u bytes: %p is not aligned, or no global memory", size, at);
}

void copy(void *to, const void *from, unsigned size, unsigned from_size)
{
    Copies *copies = thread_copies();
    Copy c = {};

    if (reinterpret_cast<uintptr_t>(to) % size || reinterpret_cast<uintptr_t>(from) % size)
        fail("cp.async: %p from %p: not aligned to %u bytes", to, from, size);
    if (from_size > size)
        fail("cp.async: %u bytes read for %u", from_size, size);
    if (!in_shared(to, size))
        fail("cp.async: the target %p is not in the block's shared memory", to);
    if (from_size && !is_device(from) && !is_pinned(from, from_size))
        fail("cp.async: the source %p is no global memory", from);
    c.to = static_cast<char *>(to);
    c.from = static_cast<const char *>(from);
    c.size = size;
    c.from_size = from_size;
    c.group = copies->group;
    switch (draw(3)) {
    case 0: land(&c); return;
    case 1: read(&c); break;
    case 2: break;
    }
    copies->pending.push_back(c);
}

void copy_commit() { thread_copies()->group++; }

void copy_wait(unsigned but_for)
{
    Copies *copies = thread_copies();

    if (copies->group > but_for)
        finish(copies, copies->group - but_for);
}

void copy_wait_all() { finish_copies(thread_copies()); }

/* ---- mbarriers and bulk copies ------------------------------------------------------------------------------------------------------ */

static const unsigned most = (1u << 20) - 1; /* of arrivals, and of bytes */

/* What its memory holds while it lives. */
static uint64_t mark(const uint64_t *barrier) { return 0x6D62617272696572u ^ reinterpret_cast<uintptr_t>(barrier) << 20; }

static Mbarrier *find(uint64_t *barrier)
{
    auto &all = block_transactions()->barriers;
    auto found = all.find(barrier);

    if (found == all.end())
        fail("mbarrier at %p: none was made there", static_cast<void *>(barrier));
    if (*barrier != mark(barrier))
        fail("mbarrier at %p: its memory was written", static_cast<void *>(barrier));
    return &found->second;
}

static void end_phase_if_complete(Mbarrier *m)
{
    if (m->pending || m->bytes)
        return;
    m->phase++;
    m->pending = m->count;
    wake(&m->waiters);
}

void mbarrier_init(uint64_t *barrier, unsigned count)
{
    auto &all = block_transactions()->barriers;

    if (machine.major < 9)
        fail("mbarrier: the card is sm_%d%d", machine.major, machine.minor);
    if (reinterpret_cast<uintptr_t>(barrier) % 8 || !in_shared(barrier, 8))
        fail("mbarrier at %p: not aligned, or not in the block's shared memory", static_cast<void *>(barrier));
    if (!count || count > most)
        fail("mbarrier: count %u", count);
    if (all.count(barrier))
        fail("mbarrier at %p: there is one", static_cast<void *>(barrier));
    Mbarrier m = {};
    m.count = m.pending = count;
    m.unfenced = this_thread();
    all[barrier] = m;
    *barrier = mark(barrier);
}

void mbarrier_arrive(uint64_t *barrier, unsigned bytes)
{
    Mbarrier *m = find(barrier);

    m->bytes += bytes;
    if (m->bytes > (long)most)
        fail("mbarrier at %p: %ld bytes announced", static_cast<void *>(barrier), m->bytes);
    if (!m->pending)
        fail("mbarrier at %p: more than %u arrivals in a phase", static_cast<void *>(barrier), m->count);
    m->pending--;
    end_phase_if_complete(m);
    take_turn(); /* whom that lets go on may be faster */
}

void mbarrier_wait(uint64_t *barrier, unsigned parity)
{
    if (parity > 1)
        fail("mbarrier: parity %u", parity);
    for (Mbarrier *m = find(barrier); m->phase % 2 == parity; m = find(barrier))
        wait_in(&m->waiters, "an mbarrier");
}

char *seen_at(Transactions *in, const void *at)
{
    if (in->seen.empty())
        in->seen.assign(in->bytes, (char)0xFF);
    return in->seen.data() + (static_cast<const char *>(at) - in->shared);
}

/* Also shows what other threads have stored and not fenced, if they have by now. */
void fence_async()
{
    Transactions *in = block_transactions();

    for (auto &b : in->barriers)
        if (b.second.unfenced == this_thread())
            b.second.unfenced = nullptr;
    std::memcpy(seen_at(in, shared_memory()), shared_memory(), in->bytes);
}

static void read(BulkCopy *c)
{
    if (!c->was_read)
        std::memcpy(c->bytes.data(), c->from, c->bytes.size());
    c->was_read = true;
}

bool land_bulk(Transactions *in, bool late_too)
{
    size_t n = in->pending.size(), first = n ? draw(n) : 0;

    for (size_t i = 0; i < n; i++) {
        auto at = in->pending.begin() + (long)((first + i) % n);
        if (at->late && !late_too)
            continue;
        BulkCopy c = std::move(*at);
        in->pending.erase(at);
        read(&c);
        std::memcpy(c.to, c.bytes.data(), c.bytes.size());
        std::memcpy(seen_at(in, c.to), c.bytes.data(), c.bytes.size());
        Mbarrier *m = &in->barriers.at(c.barrier);
        m->bytes -= (long)c.bytes.size();
        end_phase_if_complete(m);
        return true;
    }
    return false;
}

void copy_bulk(void *to, const void *from, unsigned bytes, uint64_t *barrier)
{
    BulkCopy c = {};

    if (find(barrier)->unfenced)
        fail("bulk copy: no fence since the mbarrier at %p was made", static_cast<void *>(barrier));
    if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16)
        fail("bulk copy: %p from %p, %u bytes: not aligned to 16", to, from, bytes);
    if (!in_shared(to, bytes))
        fail("bulk copy: the target %p is not in the block's shared memory", to);
    if (!is_device(from) && !is_pinned(from, bytes))
        fail("bulk copy: the source %p is no global memory", from);
    c.to = static_cast<char *>(to);
    c.from = static_cast<const char *>(from);
    c.bytes.resize(bytes);
    c.barrier = barrier;
    c.late = draw(2);
    if (draw(2))
        read(&c);
    block_transactions()->pending.push_back(std::move(c));
}

}
