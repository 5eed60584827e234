// How far a filter score can be from the score that decides, so that a row may be dropped without being looked at
// twice.
//
// The filter sums `dim` products in any order and rounding; the canonical score sums the same products in 32 lanes.
// Both differ from the exact <q, b> by at most
//
//   gamma_n |q| |b|,   gamma_n = n u / (1 - n u)          (Cauchy-Schwarz on sum |q_d b_d|)
//
// with n = dim + 1 and n = dim / 32 + 6, u the unit roundoff; products may also lose (dim + 64) smallest normal numbers
// to underflow. For l2 the filter scores <q, b> - |b|^2 / 2 = (|q|^2 - |q - b|^2) / 2; bias, differences, square root and
// the comparison of rounded roots add terms of the same kind, all below 2 gamma_n (|q|^2 + |b|^2). The constant 16 and
// the factor 1.01 cover the roundings made while the bound itself is evaluated.
//
// With every |filter - canonical| <= eps, a row whose filter score is below (k-th largest filter score seen) - 2 eps
// has k rows with a strictly larger canonical score: it is not a neighbour.
#pragma once
#include <cstdint>
#include <limits>

#include "host_device.h"

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

// The same for a filter on tensor cores, with both sides centred at any float row mu and rounded to bfloat16:
//
//   <q, b>         = <q, mu>     + <mu, r>       + <p, r>        with   p = q - mu,  r = b - mu
//   -|q - b|^2 / 2 = -|p|^2 / 2  - |r|^2 / 2     + <p, r>        (l2)
//
// The first term is the same for all rows of a query: the filter leaves it out. It computes the second in float (its
// bias) and the third from bfloat16 copies p^, r^ (8 bits, u = 2^-8 each) with float accumulation in an unknown order
// and rounding, for which 2^-21 a sum is allowed: tensor cores may cut off bits below the largest term's. So
//
//   |<p, r> - <p^, r^>| <= |p - p^| |r| + |p^| |r - r^| <= 1.02 2^-7 |p| |r|
//
// `lane` bounds everything that is summed in float by 32 lanes: the bias, the canonical score, the centring, and a bank
// row that is made unit length by one multiplication instead of a division. All lengths are upper bounds; the result
// is not finite where a row is not.
struct CentredLengths {
  float query, bank, mean;              // |q|, |b|, |mu|
  float query_residual, bank_residual;  // |p|, |r|
};

DGCL_HOST_DEVICE inline float bfloat16_filter_bound(bool l2, int64_t dim, const CentredLengths& n) {
  const float d = static_cast<float>(dim);
  const float products = 1.02f * 0x1p-7f + (d + 32) * 0x1p-21f;
  const float lane = (d / 32 + 16) * 0x1p-23f;
  const float p = n.query_residual, r = n.bank_residual;
  float bound = products * (p * r) + lane * (n.query * n.bank + (p + n.mean) * (n.bank + r) + (n.query + n.mean) * r);
  if (l2) bound += lane * (r * (n.bank + r) + 2 * (p * p + r * r));
  return bound + (d + 64) * std::numeric_limits<float>::min() * (1 + p + r);
}

// The same for a filter in integers: p^ = scale * integers, with |p - p^| and |r - r^| measured when they are made. The
// integers' products and sums are exact; what is rounded afterwards (to float, two scales, the bias) is a few units in
// the last place of terms that are bounded above already: their bound is taken twice.
inline float int8_filter_bound(bool l2, int64_t dim, const CentredLengths& n, float query_error, float bank_error) {
  const float d = static_cast<float>(dim);
  const float lane = 2 * (d / 32 + 16) * 0x1p-23f;
  const float p = n.query_residual, r = n.bank_residual;
  float bound = 1.001f * (query_error * r + (p + query_error) * bank_error) +
                lane * (n.query * n.bank + (p + n.mean) * (n.bank + r) + (n.query + n.mean) * r);
  if (l2) bound += lane * (r * (n.bank + r) + 2 * (p * p + r * r));
  return bound + (d + 64) * std::numeric_limits<float>::min() * (1 + p + r);
}

}  // namespace dgcl
