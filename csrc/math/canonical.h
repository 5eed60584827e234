// The canonical dot product. It decides every selection, with the same bits on every backend.
//
// There are 32 partial sums. Lane l takes elements l, l + 32, l + 64, ... in increasing order, with fused multiply-add.
// A fixed tree then adds the lanes: lane l plus lane l xor 16, 8, 4, 2, 1. On CUDA the lanes of a warp hold the sums.
// Here V is a register of V::width lanes, and 2 x 16, 4 x 8 or 8 x 4 lanes hold the sums. Missing elements of the last
// step count as zero.
//
// Nothing else in the build may fuse or reorder (-ffp-contract=off, no fast-math).
#pragma once
#include <cstdint>

namespace dgcl {

constexpr int kLanes = 32;

template <typename V>
struct CanonicalSum {
  using T = typename V::Scalar;
  static constexpr int kRegisters = kLanes / V::width;
  V sum[kRegisters];

  CanonicalSum() {
    for (int i = 0; i < kRegisters; ++i) sum[i] = V::zero();
  }

  // Lanes xor 16, 8, 4, 2, 1: whole registers first, then lanes within one.
  T reduce() {
    for (int half = kRegisters / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) sum[i] = V::add(sum[i], sum[i + half]);
    alignas(64) T lane[V::width];
    V::store(lane, sum[0]);
    for (int half = V::width / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) lane[i] = lane[i] + lane[i + half];
    return lane[0];
  }
};

// combine(sum, a, b) -> new sum, per register.
template <typename V, typename Combine>
typename V::Scalar canonical_sum(const typename V::Scalar* a, const typename V::Scalar* b, int64_t dim,
                                 Combine combine) {
  CanonicalSum<V> total;
  constexpr int registers = CanonicalSum<V>::kRegisters;
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes)
    for (int i = 0; i < registers; ++i)
      total.sum[i] = combine(total.sum[i], V::load(a + d + i * V::width), V::load(b + d + i * V::width));
  for (int i = 0; i < registers && d < dim; ++i, d += V::width) {
    const int64_t left = dim - d;
    if (left >= V::width) {
      total.sum[i] = combine(total.sum[i], V::load(a + d), V::load(b + d));
    } else {
      total.sum[i] = combine(total.sum[i], V::load_partial(a + d, left), V::load_partial(b + d, left));
    }
  }
  return total.reduce();
}

// <a, b>
template <typename V>
typename V::Scalar canonical_dot(const typename V::Scalar* a, const typename V::Scalar* b, int64_t dim) {
  return canonical_sum<V>(a, b, dim, [](V sum, V x, V y) { return V::fma(x, y, sum); });
}

}  // namespace dgcl
