/* Threads of a block as fibers on one core.
 * SPDX-License-Identifier: MIT */
#include "machine.h"

#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ASAN(call) call
#else
#define ASAN(call) (void)0
#endif

namespace emu {

static const size_t stack_bytes = 256 << 10; /* virtual; what a thread does not touch costs nothing */
static std::vector<void *> spare_stacks;
static void *scheduler_at;
[[maybe_unused]] static void *scheduler_fake;
[[maybe_unused]] static const void *scheduler_stack;
[[maybe_unused]] static size_t scheduler_bytes;
static void (*first_entry)();

#if defined(__x86_64__)
/* Keep what the ABI says a call keeps, change stacks. */
extern "C" void emu_switch(void **from, void *to);
asm(R"(
.text
.globl emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, .-emu_switch
)");

static void begin()
{
    ASAN(__sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_bytes));
    first_entry();
    __builtin_trap(); /* entry leaves for good */
}

static void *prepare(void *stack)
{
    void **top = reinterpret_cast<void **>(static_cast<char *>(stack) + stack_bytes);

    *--top = nullptr; /* begin is entered as by a call: 8 bytes off a multiple of 16 */
    *--top = reinterpret_cast<void *>(&begin);
    for (int i = 0; i < 6; i++)
        *--top = nullptr;
    return top;
}
#else
#include <ucontext.h>
static void emu_switch(void **from, void *to)
{
    ucontext_t here;
    *from = &here;
    swapcontext(&here, static_cast<ucontext_t *>(to));
}
static void begin()
{
    ASAN(__sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_bytes));
    first_entry();
    __builtin_trap();
}
static void *prepare(void *stack)
{
    ucontext_t *context = static_cast<ucontext_t *>(stack); /* at the far end of the stack */
    getcontext(context);
    context->uc_stack.ss_sp = context + 1;
    context->uc_stack.ss_size = stack_bytes - sizeof *context;
    context->uc_link = nullptr;
    makecontext(context, begin, 0);
    return context;
}
#endif

void fiber_create(Fiber *fiber, void (*entry)())
{
    first_entry = entry; /* the same for all */
    if (!spare_stacks.empty()) {
        fiber->stack = spare_stacks.back();
        spare_stacks.pop_back();
    } else {
        fiber->stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (fiber->stack == MAP_FAILED)
            throw std::bad_alloc();
    }
    fiber->at = prepare(fiber->stack);
    fiber->fake = nullptr;
}

void fiber_enter(Fiber *fiber)
{
    ASAN(__sanitizer_start_switch_fiber(&scheduler_fake, fiber->stack, stack_bytes));
    emu_switch(&scheduler_at, fiber->at);
    ASAN(__sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr));
}

void fiber_leave(Fiber *fiber, [[maybe_unused]] bool last)
{
    ASAN(__sanitizer_start_switch_fiber(last ? nullptr : &fiber->fake, scheduler_stack, scheduler_bytes));
    emu_switch(&fiber->at, scheduler_at);
    ASAN(__sanitizer_finish_switch_fiber(fiber->fake, &scheduler_stack, &scheduler_bytes));
}

void fiber_release(Fiber *fiber)
{
    if (!fiber->stack)
        return;
    /* The frames in which it left for good. */
    ASAN(__asan_unpoison_memory_region(fiber->at, (size_t)(static_cast<char *>(fiber->stack) + stack_bytes - static_cast<char *>(fiber->at))));
    spare_stacks.push_back(fiber->stack);
    fiber->stack = nullptr;
}

}
