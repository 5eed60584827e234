// Device functions of one thread. fma, sqrt, exp and their like are those of <math.h>, for float and double.
#pragma once
#include <math.h>

#include <bit>
#include <cstdint>
#include <type_traits>

// The C library has functions of these names; on a GPU they are the fast and inexact ones.
#define __expf CUDA_EMULATOR_HAS_NO_FAST_MATH
#define __logf CUDA_EMULATOR_HAS_NO_FAST_MATH
#define __powf CUDA_EMULATOR_HAS_NO_FAST_MATH
#define __sinf CUDA_EMULATOR_HAS_NO_FAST_MATH
#define __cosf CUDA_EMULATOR_HAS_NO_FAST_MATH

template <typename T>
T __ldg(const T* address) {
  return *address;
}

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}

// Rounded to nearest and never fused; -ffp-contract=off makes the operators so.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return ::fma(a, b, c); }

// Of one type only: CUDA's mixed overloads convert in ways that differ from C++'s. Of a number and a NaN, the number.
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
