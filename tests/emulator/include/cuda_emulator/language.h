// Keywords and built-in types of CUDA C++.
#pragma once
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)  // not checked: a function cannot carry the number

// clang-format off
#define CUDA_EMULATOR_VECTORS(type, name)                                                                \
  struct name##1 { type x; };                                                                            \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                               \
  struct name##3 { type x, y, z; };                                                                      \
  struct alignas(4 * sizeof(type) < 16 ? 4 * sizeof(type) : 16) name##4 { type x, y, z, w; };            \
  constexpr name##1 make_##name##1(type x) { return {x}; }                                               \
  constexpr name##2 make_##name##2(type x, type y) { return {x, y}; }                                    \
  constexpr name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                         \
  constexpr name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
CUDA_EMULATOR_VECTORS(signed char, char)
CUDA_EMULATOR_VECTORS(unsigned char, uchar)
CUDA_EMULATOR_VECTORS(short, short)
CUDA_EMULATOR_VECTORS(unsigned short, ushort)
CUDA_EMULATOR_VECTORS(int, int)
CUDA_EMULATOR_VECTORS(unsigned, uint)
CUDA_EMULATOR_VECTORS(long long, longlong)
CUDA_EMULATOR_VECTORS(unsigned long long, ulonglong)
CUDA_EMULATOR_VECTORS(float, float)
CUDA_EMULATOR_VECTORS(double, double)
#undef CUDA_EMULATOR_VECTORS
// clang-format on

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

constexpr int warpSize = 32;
