// Unit rows: u = x / |x|, with |x| = sqrt(canonical dot of x with itself), IEEE square root and division.
//
// A zero row stays zero. A row with a NaN or an infinity becomes all NaN. If the sum of squares leaves the safe range,
// the row is first scaled by a power of two, which is exact. So rows of 1e-30 or 1e30 have a direction like any other.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "host_device.h"

namespace dgcl {

// In this range, the part of the sum that underflow loses is below the rounding error.
template <typename T>
DGCL_HOST_DEVICE bool is_safe_square(T square) {
  return square >= (sizeof(T) == sizeof(float) ? T(0x1p-90) : T(0x1p-900)) && square <= std::numeric_limits<T>::max();
}

// |x| = value * 2^exponent. A zero row has value 0. For a row with a NaN or an infinity the value is 0 on the CPU,
// where unit_row writes the NaNs, and NaN on CUDA, where the division makes them.
template <typename T>
struct RowNorm {
  T value = 0;
  int exponent = 0;
};

// Ops has dot(a, b, dim) and divide(x, divisor, dim, out). `out` may be `x`.
template <typename T, typename Ops>
RowNorm<T> unit_row(const Ops& ops, const T* x, int64_t dim, T* out) {
  T square = ops.dot(x, x, dim);
  if (is_safe_square(square)) {
    const T norm = std::sqrt(square);
    ops.divide(x, norm, dim, out);
    return {norm, 0};
  }
  T largest = 0;
  bool finite = true;
  for (int64_t d = 0; d < dim; ++d) {
    const T magnitude = std::fabs(x[d]);
    finite = finite && magnitude <= std::numeric_limits<T>::max();
    largest = magnitude > largest ? magnitude : largest;
  }
  if (!finite || largest == 0) {
    for (int64_t d = 0; d < dim; ++d) out[d] = finite ? T(0) : std::numeric_limits<T>::quiet_NaN();
    return {};
  }
  const int exponent = std::ilogb(largest);
  for (int64_t d = 0; d < dim; ++d) out[d] = std::scalbn(x[d], -exponent);
  square = ops.dot(out, out, dim);
  const T norm = std::sqrt(square);
  ops.divide(out, norm, dim, out);
  return {norm, exponent};
}

// One element of the unit row, given the row's norm.
template <typename T>
DGCL_HOST_DEVICE T unit_element(T x, const RowNorm<T>& norm) {
  if (norm.value == 0) return 0;
  return (norm.exponent ? std::scalbn(x, -norm.exponent) : x) / norm.value;
}

// One element of dL_dx = (g - <g, u> u) / |x|, where g is the gradient of the unit row u. `along` is <g, u>. 0 if x has
// no direction.
template <typename T>
DGCL_HOST_DEVICE T unit_row_gradient(T g, T along, T u, const RowNorm<T>& norm) {
  if (!(norm.value > 0)) return 0;
  const T gradient = (g - along * u) / norm.value;
  return norm.exponent ? std::scalbn(gradient, -norm.exponent) : gradient;
}

// Turns g [dim], the gradient of the unit row u = x / |x|, into the gradient of x.
template <typename T, typename Ops>
void unit_row_backward(const Ops& ops, const T* u, RowNorm<T> norm, int64_t dim, T* g) {
  const T along = ops.dot(g, u, dim);
  for (int64_t d = 0; d < dim; ++d) g[d] = unit_row_gradient(g[d], along, u[d], norm);
}

}  // namespace dgcl
