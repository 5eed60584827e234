#pragma once
#include <cstdint>

#include "../math/pixel_layout.h"

namespace dgcl {

// Channel d of a pixel is d * channel_stride after the pixel's place, in elements.
struct FiniteMaps {
  const void* data = nullptr;
  int element_bytes = 4;  // 2, 4 or 8
  uint64_t exponent = 0;  // the bits of the exponent
  int64_t dim = 0;
  int64_t channel_stride = 0;
  PixelLayout layout;
  bool vectors = false;  // the channels of each pixel are whole, aligned vectors of 16 bytes
};

struct FiniteRowsArguments {
  FiniteMaps maps, other_maps, confidence;  // unused ones have no channels
  int64_t num_pixels;
  bool* finite;  // [num_pixels]
};

int launch_finite_rows(const FiniteRowsArguments& arguments, void* stream);

}  // namespace dgcl
