// A fiber: its own stack, and the switch to and from the scheduler that started it.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_emulator {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber();
  // The next switch_to() calls `entry`; the old contents of the stack do not matter. `entry` must not return.
  // `number` spreads the stacks over the cache's sets.
  void prepare(void (*entry)(), unsigned number);
  // Called by the scheduler. Returns when a fiber calls switch_back().
  void switch_to();
  // Called by this fiber, to run another one or the scheduler. `finished` ends this fiber.
  void switch_to(Fiber& next, bool finished);
  void switch_back(bool finished);
  // First thing in `entry`.
  static void begin();

 private:
  char* stack_ = nullptr;
  bool abandoned_ = false;  // its kernel failed, and may have left its stack poisoned
#if defined(__x86_64__)
  void* pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  void* identity_ = nullptr;  // ThreadSanitizer's handle
};

// Declares an order to ThreadSanitizer: everything before release(token) happens before what follows acquire(token).
void release(const void* token);
void acquire(const void* token);

// AddressSanitizer's marks.
void poison(const void* begin, size_t bytes);
void unpoison(const void* begin, size_t bytes);

// ThreadSanitizer treats a reused fiber as ordered across blocks. To expose races between blocks, blocks use different
// fibers: as many sets of them as ThreadSanitizer can hold.
#if defined(CUDA_EMULATOR_THREAD)
constexpr unsigned kMostFibers = 2048;
#else
constexpr unsigned kMostFibers = 1024;
#endif
constexpr unsigned kMostSets = 32;

}  // namespace cuda_emulator
