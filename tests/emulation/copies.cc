/* Copies from global to shared memory that run beside the thread that issues them (kernels/cuda/copy.cuh).
 *
 * When one is read, and when it lands, is drawn: each as it is issued, or not before the wait that asks for it.
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

void global_16(const void *at)
{
    if (reinterpret_cast<uintptr_t>(at) % 16 || (!is_device(at) && !is_pinned(at, 16)))
        fail("load of 16 bytes: %p is not aligned, or no global memory", at);
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

}
