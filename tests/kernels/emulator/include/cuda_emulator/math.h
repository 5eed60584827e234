// Device functions of one thread. fma, sqrt, exp and the like come from <math.h>, for float and double.
#pragma once
#include <math.h>

#include <bit>
#include <type_traits>

// The C library has functions of these names. On a GPU they are fast and inexact.
#define __expf CUDA_EMULATOR_HAS_NO_FAST_MATH
#define __logf CUDA_EMULATOR_HAS_NO_FAST_MATH
#define __powf CUDA_EMULATOR_HAS_NO_FAST_MATH
#define __sinf CUDA_EMULATOR_HAS_NO_FAST_MATH
#define __cosf CUDA_EMULATOR_HAS_NO_FAST_MATH

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// Both arguments have one type, because CUDA's mixed overloads convert differently from C++'s. If one is NaN, the other
// is returned.
template <typename T>
  requires std::is_arithmetic_v<T>
constexpr T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return a != a || b < a ? b : a;
  return b < a ? b : a;
}
template <typename T>
  requires std::is_arithmetic_v<T>
constexpr T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return a != a || b > a ? b : a;
  return b > a ? b : a;
}
