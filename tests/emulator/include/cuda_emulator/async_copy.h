// cp.async. Hardware may land a copy at once or only when it is waited for: the schedule decides, so that a kernel that
// waits too late, or overwrites too early, shows.
#pragma once
#include <cstddef>
#include <cstdint>

#include "scheduler.h"
#include "shared_memory.h"

namespace cuda_emulator {

// Here and not in the runtime, which is compiled without sanitizers: they are to see these accesses.
inline void land(const PendingCopy& copy) {
  const volatile unsigned char* from = static_cast<const unsigned char*>(copy.from);
  volatile unsigned char* to = static_cast<unsigned char*>(copy.to);
  for (unsigned i = 0; i < copy.bytes; ++i) to[i] = i < copy.bytes - copy.zeros ? from[i] : 0;
}

inline bool lands_at_once() {
  switch (options().schedule) {
    case Schedule::sequential:
      return false;
    case Schedule::reverse:
      return true;
    default:
      return random_number() & 1;
  }
}

}  // namespace cuda_emulator

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0) {
  using namespace cuda_emulator;
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async: size must be 4, 8 or 16, got %zu", bytes);
  if (zeros > bytes) fail("cp.async: %zu bytes of zeros in a copy of %zu", zeros, bytes);
  if (reinterpret_cast<uintptr_t>(to) % bytes) fail("cp.async: misaligned destination for %zu bytes", bytes);
  if (reinterpret_cast<uintptr_t>(from) % bytes) fail("cp.async: misaligned source for %zu bytes", bytes);
  if (!is_shared(to, bytes)) fail("cp.async: the destination is not in shared memory");
  if (is_shared(from, 1)) fail("cp.async: the source is in shared memory");
  Thread* thread = current_thread;
  if (thread->num_copies == kMostCopies) fail("cp.async: more than %u copies on their way", kMostCopies);
  PendingCopy copy{to, from, static_cast<unsigned>(bytes), static_cast<unsigned>(zeros), thread->open_group};
  if (lands_at_once()) {
    land(copy);
    copy.bytes = copy.zeros = 0;  // but it has still to be waited for
  }
  thread->copies[thread->num_copies++] = copy;
}

inline void __pipeline_commit() { ++::cuda_emulator::current_thread->open_group; }

// Lands all but the last `prior` committed groups; what was never committed stays on its way.
inline void __pipeline_wait_prior(size_t prior) {
  ::cuda_emulator::Thread* thread = ::cuda_emulator::current_thread;
  unsigned kept = 0;
  for (unsigned i = 0; i < thread->num_copies; ++i) {
    if (thread->copies[i].group + prior < thread->open_group)
      ::cuda_emulator::land(thread->copies[i]);
    else
      thread->copies[kept++] = thread->copies[i];
  }
  thread->num_copies = kept;
}
