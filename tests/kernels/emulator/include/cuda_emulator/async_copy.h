// cp.async. A copy may land immediately or only at the wait. The schedule decides, to expose kernels that wait too late
// or overwrite too early.
#pragma once
#include <cstddef>

#include "scheduler.h"

namespace cuda_emulator {

// Whether the copy lands now. The kernel must wait for it in any case.
bool start_copy(void* to, const void* from, size_t bytes, size_t zeros);
void commit_copies();
// Takes a pending copy of any committed group except for the last `prior` ones, if there is one. Copies that were never
// committed stay.
bool next_due(size_t prior, PendingCopy* copy);

// Not in the runtime, which is compiled without sanitizers, because they must see these accesses.
inline void land(const PendingCopy& copy) {
  const volatile unsigned char* from = static_cast<const unsigned char*>(copy.from);
  volatile unsigned char* to = static_cast<unsigned char*>(copy.to);
  for (unsigned i = 0; i < copy.bytes; ++i) to[i] = i < copy.bytes - copy.zeros ? from[i] : 0;
}

}  // namespace cuda_emulator

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0) {
  if (::cuda_emulator::start_copy(to, from, bytes, zeros))
    ::cuda_emulator::land({to, from, static_cast<unsigned>(bytes), static_cast<unsigned>(zeros), 0});
}

inline void __pipeline_commit() { ::cuda_emulator::commit_copies(); }

inline void __pipeline_wait_prior(size_t prior) {
  ::cuda_emulator::PendingCopy copy;
  while (::cuda_emulator::next_due(prior, &copy)) ::cuda_emulator::land(copy);
}
