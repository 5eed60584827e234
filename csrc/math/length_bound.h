// Upper bounds of |x|, for the error bounds of filter_bound.h.
//
// The canonical <x, x> of D columns has relative error at most (D / 32 + 6) u, its square root half of that. In float
// (u = 2^-24) up to kMostBoundedColumns columns this is below 0.0005. A margin of 1.001 covers it, and the roundings of
// the bound itself.
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace dgcl {

constexpr int64_t kMostBoundedColumns = 1 << 19;

template <typename T>
constexpr T kLengthMargin = T(1.001);

// From <x, x>, where it is a safe square (unit_row.h). NaN stays NaN.
template <typename T>
DGCL_HOST_DEVICE T length_bound(T square) {
  return std::sqrt(square) * kLengthMargin<T>;
}

// From the largest |x_d|, for all other rows.
template <typename T>
DGCL_HOST_DEVICE T length_bound_of_largest(T largest, int64_t dim) {
  return largest * std::sqrt(static_cast<T>(dim)) * kLengthMargin<T>;
}

}  // namespace dgcl
