// Access to several elements at once. An address that is not a multiple of the vector's size is an error.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "scheduler.h"

namespace cuda_emulator {

template <typename Vector>
void check_vector(const void* address, const char* what) {
  static_assert(std::is_trivially_copyable_v<Vector>);
  static_assert(sizeof(Vector) <= 16 && (sizeof(Vector) & (sizeof(Vector) - 1)) == 0, "no such access on a GPU");
  const size_t beyond = reinterpret_cast<uintptr_t>(address) % sizeof(Vector);
  if (beyond) fail("%s: misaligned address, %zu bytes beyond a multiple of %zu", what, beyond, sizeof(Vector));
}

}  // namespace cuda_emulator

namespace dgcl {

template <typename Vector>
Vector load_vector(const void* p) {
  ::cuda_emulator::check_vector<Vector>(p, "load_vector");
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename Vector>
void store_vector(void* p, Vector v) {
  ::cuda_emulator::check_vector<Vector>(p, "store_vector");
  std::memcpy(p, &v, sizeof v);
}

}  // namespace dgcl
