#pragma once
#include <cstdint>

namespace dgcl {

struct DrawNegativesArguments {
  const int64_t *pixels, *counts, *bits;   // [num_pixels], [num_classes], [num_classes, limit]
  int64_t num_pixels, num_classes, limit;  // num_pixels in [1, 2^31)
  int64_t *negatives, *negative_counts;    // [num_classes, limit], [num_classes]
};

int launch_draw_negatives(const DrawNegativesArguments& arguments, void* stream);

}  // namespace dgcl
