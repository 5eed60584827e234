// Multi-scale density as one weighted sum over one sorted selection.
//
//   rho_k(q) = (1/k) sum_{r <= k} s_(r)         rho(q) = (1/|K|) sum_{k in K} rho_k(q)
//   =>  rho(q) = sum_r w_r s_(r)    with    w_r = (1/|K|) sum_{k in K, k >= r} 1/k
//
// A k above the number of neighbours, `count`, is clamped to `count`. Weights are computed in double and rounded once
// to T. The sum runs in increasing r with fused multiply-add in T, the same on every backend. A weight of 0 is skipped,
// because its score may be infinite. Without neighbours the density is 0.
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace dgcl {

// w_r for rank r = 1, 2, ..., count
template <typename T>
DGCL_HOST_DEVICE T scale_weight(const int64_t* scales, int64_t num_scales, int64_t count, int64_t r) {
  double weight = 0;
  for (int64_t i = 0; i < num_scales; ++i) {
    const int64_t k = scales[i] < count ? scales[i] : count;
    if (k >= r) weight += 1.0 / static_cast<double>(k);
  }
  return static_cast<T>(weight / static_cast<double>(num_scales));
}

// Writes weights [count].
template <typename T>
void scale_weights(const int64_t* scales, int64_t num_scales, int64_t count, T* weights) {
  for (int64_t r = 1; r <= count; ++r) weights[r - 1] = scale_weight<T>(scales, num_scales, count, r);
}

// The density of scores [count], in descending order.
template <typename T>
T weighted_sum(const T* weights, const T* scores, int64_t count) {
  T sum = 0;
  for (int64_t r = 0; r < count; ++r)
    if (weights[r] != 0) sum = std::fma(weights[r], scores[r], sum);
  return sum;
}

}  // namespace dgcl
