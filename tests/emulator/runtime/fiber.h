// A fiber: a stack of its own and the switch to and from the scheduler that started it.
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
  // The next switch_to() calls `entry` on a stack whose old contents do not matter. `entry` must not return.
  // `number` spreads the stacks over the cache's sets.
  void prepare(void (*entry)(), unsigned number);
  // From the scheduler: runs until the fiber calls switch_back(), which also ends it if `finished`.
  void switch_to();
  void switch_back(bool finished);
  // First thing in `entry`.
  static void begin();
  // ThreadSanitizer tells threads apart by number and recycles numbers: a race between blocks is seen only while both
  // numbers live. Drops all numbers unless there is room for `more`; between blocks only.
  static void make_room(size_t more);

 private:
  char* stack_ = nullptr;
#if defined(__x86_64__)
  void* pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  void* identity_ = nullptr;  // ThreadSanitizer's name of it
};

// What ThreadSanitizer is told of order in time: all before release(token) happens before what follows acquire(token).
void release(const void* token);
void acquire(const void* token);

// AddressSanitizer's marks.
void poison(const void* begin, size_t bytes);
void unpoison(const void* begin, size_t bytes);

#if defined(CUDA_EMULATOR_THREAD)
constexpr bool kFreshMemory = true;  // per block, or its blocks would seem to share what they only reuse
#else
constexpr bool kFreshMemory = false;
#endif

}  // namespace cuda_emulator
