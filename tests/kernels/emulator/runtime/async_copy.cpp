#include "state.h"

namespace cuda_emulator {
namespace {

bool lands_at_once() {
  switch (options().schedule) {
    case Schedule::sequential:
      return false;
    case Schedule::reverse:
      return true;
    default:
      return random_number() & 1;
  }
}

}  // namespace

bool start_copy(void* to, const void* from, size_t bytes, size_t zeros) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async: size must be 4, 8 or 16, got %zu", bytes);
  if (zeros > bytes) fail("cp.async: %zu bytes of zeros in a copy of %zu", zeros, bytes);
  if (reinterpret_cast<uintptr_t>(to) % bytes) fail("cp.async: misaligned destination for %zu bytes", bytes);
  if (reinterpret_cast<uintptr_t>(from) % bytes) fail("cp.async: misaligned source for %zu bytes", bytes);
  if (!is_shared(to, bytes)) fail("cp.async: the destination is not in shared memory");
  if (is_shared(from, 1)) fail("cp.async: the source is in shared memory");
  Thread& thread = *current_thread;
  if (thread.num_copies == kMostCopies) fail("cp.async: more than %u copies on their way", kMostCopies);
  PendingCopy copy{to, from, static_cast<unsigned>(bytes), static_cast<unsigned>(zeros), thread.open_group};
  const bool now = lands_at_once();
  if (now) copy.bytes = copy.zeros = 0;
  running->copies[thread.number][(thread.first_copy + thread.num_copies++) % kMostCopies] = copy;
  return now;
}

void commit_copies() { ++current_thread->open_group; }

bool next_due(size_t prior, PendingCopy* copy) {
  Thread& thread = *current_thread;
  const PendingCopy& oldest = running->copies[thread.number][thread.first_copy];
  if (thread.num_copies == 0 || oldest.group + prior >= thread.open_group) return false;
  *copy = oldest;
  thread.first_copy = (thread.first_copy + 1) % kMostCopies;
  --thread.num_copies;
  return true;
}

}  // namespace cuda_emulator
