// Unit rows: u = x / |x|, with |x| = sqrt(canonical dot of x with itself), IEEE square root and division.
//
// Zero row -> zero row. A row with a NaN or an infinity -> all NaN. Where the sum of squares leaves the safe range the
// row is first scaled by a power of two (exact), so that 1e-30 and 1e30 rows have a direction like any other.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

namespace dgcl {

// Sums of squares inside [smallest_safe, largest float] have lost nothing to underflow that a rounding would not hide.
template <typename T>
constexpr T smallest_safe_square();
template <>
constexpr float smallest_safe_square<float>() {
  return 0x1p-90f;
}
template <>
constexpr double smallest_safe_square<double>() {
  return 0x1p-900;
}

// Ops offers dot(a, b, dim) and divide(x, divisor, dim, out). `out` may be `x`. Returns false for a row with NaN or
// infinity.
template <typename T, typename Ops>
bool unit_row(const Ops& ops, const T* x, int64_t dim, T* out) {
  T square = ops.dot(x, x, dim);
  if (square >= smallest_safe_square<T>() && square <= std::numeric_limits<T>::max()) {
    ops.divide(x, std::sqrt(square), dim, out);
    return true;
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
    return finite;
  }
  const int exponent = std::ilogb(largest);
  for (int64_t d = 0; d < dim; ++d) out[d] = std::scalbn(x[d], -exponent);
  square = ops.dot(out, out, dim);
  ops.divide(out, std::sqrt(square), dim, out);
  return true;
}

}  // namespace dgcl
