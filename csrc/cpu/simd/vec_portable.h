// Registers in plain C++, for any processor. The compiler turns the loops into the vectors of the baseline.
#pragma once
#include <cstdint>

namespace dgcl::portable {

inline float root(float a) { return __builtin_sqrtf(a); }
inline double root(double a) { return __builtin_sqrt(a); }
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }

// IEEE binary16 -> binary32, exact.
inline float half_to_float(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 1023u;
  uint32_t bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | (fraction << 13);
  } else if (exponent) {
    bits = sign | ((exponent + 112) << 23) | (fraction << 13);
  } else {
    const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
    __builtin_memcpy(&bits, &magnitude, 4);
    bits |= sign;
  }
  float out;
  __builtin_memcpy(&out, &bits, 4);
  return out;
}

template <typename S, int Width>
struct Vec {
  using Scalar = S;
  static constexpr int width = Width;
  static constexpr int tile_rows = 4, tile_registers = 2, sums = 8;
  static constexpr bool filter_pays = true;
  S v[Width];

  template <typename F>
  static Vec make(F f) {
    Vec out;
    for (int i = 0; i < Width; ++i) out.v[i] = f(i);
    return out;
  }
  static Vec zero() {
    return make([](int) { return S(0); });
  }
  static Vec broadcast(S x) {
    return make([&](int) { return x; });
  }
  static Vec load(const S* p) {
    return make([&](int i) { return p[i]; });
  }
  static Vec load_partial(const S* p, int64_t n) {
    return make([&](int i) { return i < n ? p[i] : S(0); });
  }
  static void store(S* p, Vec x) {
    for (int i = 0; i < Width; ++i) p[i] = x.v[i];
  }
  static Vec add(Vec a, Vec b) {
    return make([&](int i) { return a.v[i] + b.v[i]; });
  }
  static Vec sub(Vec a, Vec b) {
    return make([&](int i) { return a.v[i] - b.v[i]; });
  }
  static Vec div(Vec a, Vec b) {
    return make([&](int i) { return a.v[i] / b.v[i]; });
  }
  static Vec sqrt(Vec a) {
    return make([&](int i) { return root(a.v[i]); });
  }
  // One rounding, as the canonical sums need. It is a library call if the processor has no such instruction.
  static Vec fma(Vec a, Vec b, Vec c) {
    return make([&](int i) { return fused(a.v[i], b.v[i], c.v[i]); });
  }
  // Any rounding, for sums with a bounded error.
  static Vec multiply_add(Vec a, Vec b, Vec c) {
    return make([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static uint32_t at_least(Vec a, Vec b) {
    uint32_t bits = 0;
    for (int i = 0; i < Width; ++i) bits |= static_cast<uint32_t>(a.v[i] >= b.v[i]) << i;
    return bits;
  }
  static Vec min(Vec a, Vec b) {
    return make([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Vec max(Vec a, Vec b) {
    return make([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static void sum_lanes4(const Vec* x, S* out) {
    for (int n = 0; n < 4; ++n) {
      Vec y = x[n];
      for (int half = Width / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) y.v[i] = y.v[i] + y.v[i + half];
      out[n] = y.v[0];
    }
  }
  static Vec load_half(const uint16_t* p) {
    return make([&](int i) { return S(half_to_float(p[i])); });
  }
};

}  // namespace dgcl::portable
