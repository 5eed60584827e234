// Atomics on shared and global memory. They are relaxed, as on the GPU, and order nothing. Only the types that CUDA has.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace cuda_emulator {

template <typename T, typename... Types>
constexpr bool is_one_of = (std::is_same_v<T, Types> || ...);

template <typename T, typename Change>
T read_modify_write(T* address, Change change) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  static_assert(sizeof(T) == sizeof(Bits));
  Bits* bits = reinterpret_cast<Bits*>(address);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED), next;
  T value;
  do {
    std::memcpy(&value, &old, sizeof value);
    const T changed = change(value);
    std::memcpy(&next, &changed, sizeof next);
  } while (!__atomic_compare_exchange_n(bits, &old, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return value;
}

using Unsigned64 = unsigned long long;

}  // namespace cuda_emulator

template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> operand) {
  static_assert(::cuda_emulator::is_one_of<T, int, unsigned, ::cuda_emulator::Unsigned64, float, double>,
                "atomicAdd: CUDA has no such type");
  return ::cuda_emulator::read_modify_write(address, [operand](T old) -> T { return old + operand; });
}

template <typename T>
T atomicMax(T* address, std::type_identity_t<T> operand) {
  static_assert(::cuda_emulator::is_one_of<T, int, unsigned, ::cuda_emulator::Unsigned64, long long>,
                "atomicMax: CUDA has no such type");
  return ::cuda_emulator::read_modify_write(address, [operand](T old) -> T { return old > operand ? old : operand; });
}

template <typename T>
T atomicMin(T* address, std::type_identity_t<T> operand) {
  static_assert(::cuda_emulator::is_one_of<T, int, unsigned, ::cuda_emulator::Unsigned64, long long>,
                "atomicMin: CUDA has no such type");
  return ::cuda_emulator::read_modify_write(address, [operand](T old) -> T { return old < operand ? old : operand; });
}
