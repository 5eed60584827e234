// Scores of pairs, and the order of neighbours.
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace dgcl {

// From the canonical sum of a pair (canonical.h): <x, y> for dot and cosine, |x - y|^2 for l2.
template <typename T>
DGCL_HOST_DEVICE T score_of_sum(bool l2, T sum) {
  return l2 ? -std::sqrt(sum) : sum;
}

// Higher scores come first. Ties go to the lower index.
template <typename T>
DGCL_HOST_DEVICE bool comes_before(T score, int32_t index, T other_score, int32_t other_index) {
  return score > other_score || (score == other_score && index < other_index);
}

}  // namespace dgcl
