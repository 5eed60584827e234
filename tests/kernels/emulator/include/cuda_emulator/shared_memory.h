// Shared memory. It is filled with NaN patterns before every block. Every array has red zones around it, and exactly the
// declared alignment.
#pragma once
#include <cstddef>

#include "scheduler.h"

namespace cuda_emulator {

// The smallest limits of sm_80, sm_86, sm_89 and sm_90, in bytes per block.
constexpr size_t kSharedByDefault = 48 * 1024;
constexpr size_t kMostShared = 227 * 1024;  // of a block, on any device

// The array that belongs to `tag`, the same for all threads of the block.
void* shared_array(const void* tag, const char* name, size_t bytes, size_t alignment);
void* dynamic_shared_memory();
bool is_shared(const void* begin, size_t bytes);

template <typename T, size_t alignment>
T& shared_variable(const void* tag, const char* name) {
  return *static_cast<T*>(shared_array(tag, name, sizeof(T), alignment > alignof(T) ? alignment : alignof(T)));
}

}  // namespace cuda_emulator

#define DGCL_SHARED_ALIGNED(align, type, name, dims) \
  static char name##_tag;                            \
  auto& name = ::cuda_emulator::shared_variable<type dims, align>(&name##_tag, #name)
#define DGCL_SHARED(type, name, dims) DGCL_SHARED_ALIGNED(1, type, name, dims)
#define DGCL_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::cuda_emulator::dynamic_shared_memory())
