// Bounds of |filter score - canonical score|. A row that they rule out needs no canonical score.
//
// The filter sums `dim` products in any order and rounding; the canonical score sums the same products in 32 lanes.
// Both differ from the exact <q, b> by at most
//
//   gamma_n |q| |b|,   gamma_n = n u / (1 - n u)          (Cauchy-Schwarz on sum |q_d b_d|)
//
// with n = dim + 1 for the filter, n = dim / 32 + 6 for the canonical score, and the unit roundoff u. Products may also
// lose (dim + 64) smallest normal numbers to underflow. For l2 the filter scores
//
//   <q, b> - |b|^2 / 2 = (|q|^2 - |q - b|^2) / 2
//
// Bias, differences, square root and the comparison of rounded roots add terms of the same kind, all below
// 2 gamma_n (|q|^2 + |b|^2). The constant 16 and the factor 1.01 cover the roundings in the bound itself.
//
// With every |filter - canonical| <= eps, take a row whose filter score is below (k-th largest filter score) - 2 eps.
// Then k rows have a strictly larger canonical score, so the row is not a neighbour.
#pragma once
#include <cmath>
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

// eps, from upper bounds of |q| and of every |b|. The norms are multiplied first, because gamma |b| alone could
// underflow.
template <typename T>
T filter_bound(bool l2, T gamma, T underflow, T query_norm, T bank_norm) {
  if (l2) return 2 * gamma * (query_norm * query_norm + bank_norm * bank_norm) + underflow;
  return gamma * (query_norm * bank_norm) + underflow;
}

// The bound of a filter on tensor cores. Both sides are centred at a float row mu and rounded to float16:
//
//   <q, b>         = <q, mu>     + <mu, r>       + <p, r>        with   p = q - mu,  r = b - mu
//   -|q - b|^2 / 2 = -|p|^2 / 2  - |r|^2 / 2     + <p, r>        (l2)
//
// The first term is the same for all rows of a query, so the filter omits it. The second is the row's bias, in float.
// The third comes from float16 copies p^, r^. A power of two scales each of them before it is rounded, and the sum
// afterwards. Both are exact.
//
// Rounding of elements. float16 has 11 bits, and denormal numbers are multiples of 2^-24. So with the scale 2^e
//
//   |p_d - p^_d| <= 2^-11 |p_d| + 2^-25 2^-e
//   |p - p^|     <= 2^-11 |p| + sqrt(dim) 2^-25 2^-e
//
// half_exponent() chooses e so that 2^14 <= 2^e L < 2^15 for the upper bound L of the lengths. No element overflows,
// and the last term is at most sqrt(dim) 2^-39 L: below 2^-29 L, because dim <= kMostBoundedColumns. Then
//
//   |<p, r> - <p^, r^>| <= |p - p^| |r| + |p^| |r - r^| <= 1.001 2^-10 |p| |r|
//
// The bound's 1.02 also covers the roundings of the lengths. For the bank, L = |r| + 2^-20 |b|, because the filter
// multiplies by 1 / |b| where the canonical score divides, and the difference may be larger than r. `lane` covers the
// part of the last term that this adds. Before they are subtracted, b and mu are scaled, too: both stay below 2^36.
//
// A scale must be a float, so e <= 126. Where this lowers e, the last term is at most sqrt(dim) 2^-25 2^-126 |r|. If
// 2^-(e_p + e_r) is too small for a float, |p| |r| < 2^-120. The smallest normal numbers at the end of the bound cover
// both.
//
// Rounding of sums. The products are accumulated in float, in an unknown order and rounding. The bound allows 2^-21 per
// sum, because tensor cores may truncate bits below those of the largest term.
//
// `lane` bounds everything that 32 lanes sum in float: the bias, the canonical score, the centring, and a bank row
// scaled to unit length by a multiplication instead of a division. All lengths are upper bounds. The result is not
// finite if a row is not.
struct CentredLengths {
  float query, bank, mean;              // |q|, |b|, |mu|
  float query_residual, bank_residual;  // |p|, |r|
};

constexpr int kMostHalfExponent = 126;

// The exponent of the scale for rows that are no longer than `length`.
DGCL_HOST_DEVICE inline int half_exponent(float length) {
  if (!(length <= std::numeric_limits<float>::max())) return 0;  // such a row has no bound
  if (length < 0x1p-111f) return kMostHalfExponent;
  return 14 - std::ilogb(length);
}

DGCL_HOST_DEVICE inline int bank_half_exponent(float bank, float bank_residual) {
  return half_exponent(bank_residual + 0x1p-20f * bank);
}

DGCL_HOST_DEVICE inline float half_filter_bound(bool l2, int64_t dim, const CentredLengths& n) {
  const float d = static_cast<float>(dim);
  const float products = 1.02f * 0x1p-10f + (d + 32) * 0x1p-21f;
  const float lane = (d / 32 + 16) * 0x1p-23f;
  const float p = n.query_residual, r = n.bank_residual;
  float bound = products * (p * r) + lane * (n.query * n.bank + (p + n.mean) * (n.bank + r) + (n.query + n.mean) * r);
  if (l2) bound += lane * (r * (n.bank + r) + 2 * (p * p + r * r));
  return bound + (d + 64) * std::numeric_limits<float>::min() * (1 + p + r);
}

// The bound of a filter in integers: p^ = scale * integers. |p - p^| and |r - r^| are measured during quantization. The
// integers' products and sums are exact. The later roundings (to float, two scales, the bias) are a few units in the
// last place of terms that `lane` bounds, so `lane` is doubled.
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
