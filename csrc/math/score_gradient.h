// The gradient of a score s(x, y), with the neighbours held fixed. For an incoming gradient g, row x of a pair receives
//
//   dot: g y        cosine: g y^ for the unit row x^; unit_row_gradient (unit_row.h) takes it back to x
//   l2 (s = -|x - y|): (g / s) (x - y)
//
// Row x is the query or the bank row. An element is pair_factor * score_direction, added with one rounding where the
// processor has fused multiply-add.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace dgcl {

// False if a pair adds nothing: no neighbour, no gradient, or an l2 distance of 0, which has no direction.
template <typename T>
DGCL_HOST_DEVICE bool pair_has_gradient(bool l2, int64_t index, T gradient, T score) {
  return index >= 0 && gradient != 0 && !(l2 && score == 0);
}

template <typename T>
DGCL_HOST_DEVICE T pair_factor(bool l2, T gradient, T score) {
  return l2 ? gradient / score : gradient;
}

// One element. For cosine, rows are unit rows.
template <typename T>
DGCL_HOST_DEVICE T score_direction(bool l2, T own, T other) {
  return l2 ? own - other : other;
}

}  // namespace dgcl
