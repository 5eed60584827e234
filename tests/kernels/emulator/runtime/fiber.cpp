// Like the rest of the runtime, this is compiled without sanitizers in every mode, because they must not see its internal
// state. The mode's macro says which sanitizer must be notified of switches.
#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <utility>

#if defined(CUDA_EMULATOR_ADDRESS)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(CUDA_EMULATOR_THREAD)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(const void*);
void __tsan_release(const void*);
}
#endif

namespace cuda_emulator {
namespace {

#if defined(CUDA_EMULATOR_ADDRESS)
constexpr size_t kStack = 256 * 1024;  // red zones around every variable
#else
constexpr size_t kStack = 64 * 1024;
#endif
constexpr size_t kGuard = 4096;

#if defined(__x86_64__)
void* scheduler_pointer = nullptr;

__attribute__((naked, noinline)) void swap_stacks(void** /* save */, void* /* load */) {
  __asm__ volatile(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi); movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
#else
ucontext_t scheduler_context;
#endif

#if defined(CUDA_EMULATOR_ADDRESS)
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
bool scheduler_stack_is_known = false;

// The first fiber that runs after the scheduler learns the scheduler's stack.
void finish_switch(void* fake_stack) {
  const bool learn = !std::exchange(scheduler_stack_is_known, true);
  __sanitizer_finish_switch_fiber(fake_stack, learn ? &scheduler_stack : nullptr,
                                  learn ? &scheduler_stack_bytes : nullptr);
}
#elif defined(CUDA_EMULATOR_THREAD)
void* scheduler_identity = nullptr;
#endif

}  // namespace

Fiber::~Fiber() {
  if (stack_) munmap(stack_ - kGuard, kStack + kGuard);
}

void Fiber::prepare(void (*entry)(), [[maybe_unused]] unsigned number) {
  if (!stack_) {
    void* map =
        mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) std::abort();
    mprotect(map, kGuard, PROT_NONE);
    stack_ = static_cast<char*>(map) + kGuard;
  }
  if (std::exchange(abandoned_, true)) unpoison(stack_, kStack);
#if defined(CUDA_EMULATOR_THREAD)
  if (!identity_) identity_ = __tsan_create_fiber(0);
#endif
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(stack_ + kStack - number * 7 % 64 * 64);
  *--top = nullptr;  // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers that swap_stacks pops
  pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStack;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Fiber::switch_to() {
#if defined(CUDA_EMULATOR_ADDRESS)
  void* fake_stack = nullptr;
  scheduler_stack_is_known = false;
  __sanitizer_start_switch_fiber(&fake_stack, stack_, kStack);
#elif defined(CUDA_EMULATOR_THREAD)
  scheduler_identity = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(identity_, 1);  // 1: a switch orders nothing, only barriers do
#endif
#if defined(__x86_64__)
  swap_stacks(&scheduler_pointer, pointer_);
#else
  swapcontext(&scheduler_context, &context_);
#endif
#if defined(CUDA_EMULATOR_ADDRESS)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::switch_to(Fiber& next, bool finished) {
  abandoned_ = !finished;
#if defined(CUDA_EMULATOR_ADDRESS)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(finished ? nullptr : &fake_stack, next.stack_, kStack);
#elif defined(CUDA_EMULATOR_THREAD)
  __tsan_switch_to_fiber(next.identity_, 1);
#endif
#if defined(__x86_64__)
  swap_stacks(&pointer_, next.pointer_);
#else
  swapcontext(&context_, &next.context_);
#endif
#if defined(CUDA_EMULATOR_ADDRESS)
  finish_switch(fake_stack);
#endif
}

void Fiber::switch_back(bool finished) {
  abandoned_ = !finished;
#if defined(CUDA_EMULATOR_ADDRESS)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(finished ? nullptr : &fake_stack, scheduler_stack, scheduler_stack_bytes);
#elif defined(CUDA_EMULATOR_THREAD)
  __tsan_switch_to_fiber(scheduler_identity, 1);
#endif
#if defined(__x86_64__)
  swap_stacks(&pointer_, scheduler_pointer);
#else
  swapcontext(&context_, &scheduler_context);
#endif
#if defined(CUDA_EMULATOR_ADDRESS)
  finish_switch(fake_stack);
#endif
}

void Fiber::begin() {
#if defined(CUDA_EMULATOR_ADDRESS)
  finish_switch(nullptr);
#endif
}

#if defined(CUDA_EMULATOR_THREAD)
void release(const void* token) { __tsan_release(token); }
void acquire(const void* token) { __tsan_acquire(token); }
#else
void release(const void*) {}
void acquire(const void*) {}
#endif

#if defined(CUDA_EMULATOR_ADDRESS)
void poison(const void* begin, size_t bytes) { __asan_poison_memory_region(begin, bytes); }
void unpoison(const void* begin, size_t bytes) { __asan_unpoison_memory_region(begin, bytes); }
#else
void poison(const void*, size_t) {}
void unpoison(const void*, size_t) {}
#endif

}  // namespace cuda_emulator
