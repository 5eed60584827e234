// How far a filter score can be from the score that decides, so that a row may be dropped without being looked at
// twice.
//
// The filter sums `dim` products in any order and rounding; the canonical score sums the same products in 32 lanes.
// Both differ from the exact <q, b> by at most gamma_n |q| |b| (Cauchy-Schwarz on sum |q_d b_d|), gamma_n = n u / (1 -
// n u) with n = dim + 1 and n = dim / 32 + 6, u the unit roundoff; products may also lose (dim + 64) smallest normal
// numbers to underflow. For l2 the filter scores <q, b> - |b|^2 / 2 = (|q|^2 - |q - b|^2) / 2; bias, differences,
// square root and the comparison of rounded roots add terms of the same kind, all below 2 gamma_n (|q|^2 + |b|^2). The
// constant 16 and the factor 1.01 cover the roundings made while the bound itself is evaluated.
//
// With every |filter - canonical| <= eps, a row whose filter score is below (k-th largest filter score seen) - 2 eps
// has k rows with a strictly larger canonical score: it is not a neighbour.
#pragma once
#include <cstdint>
#include <limits>

namespace dgcl {

template <typename T>
T filter_gamma(int64_t dim) {
  const double n =
      static_cast<double>(dim + dim / 32 + 16) * static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;
  return n < 0.5 ? static_cast<T>(1.01 * n / (1 - n)) : std::numeric_limits<T>::infinity();
}

template <typename T>
T filter_underflow(int64_t dim) {
  return static_cast<T>(dim + 64) * std::numeric_limits<T>::min();
}

// eps, from upper bounds of |q| and of every |b| looked at. The norms are multiplied with each other first: gamma |b|
// alone could underflow.
template <typename T>
T filter_bound(bool l2, T gamma, T underflow, T query_norm, T bank_norm) {
  if (l2) return 2 * gamma * (query_norm * query_norm + bank_norm * bank_norm) + underflow;
  return gamma * (query_norm * bank_norm) + underflow;
}

}  // namespace dgcl
