#pragma once
#include <cstdint>

namespace dgcl {

// Element (b, d, y, x) is at b * image_stride + d * channel_stride + y * row_stride + x * pixel_stride, in elements.
struct FiniteMaps {
  const void* data = nullptr;
  int element_bytes = 4;  // 2, 4 or 8
  uint64_t exponent = 0;  // the bits of the exponent
  int64_t dim = 0;
  int64_t image_stride = 0, channel_stride = 0, row_stride = 0, pixel_stride = 0;
  bool vectors = false;  // the channels of each pixel are whole, aligned vectors of 16 bytes
};

struct FiniteRowsArguments {
  FiniteMaps maps, other_maps, confidence;  // unused ones have no channels
  int64_t num_images, height, width;
  bool* finite;  // [num_images, height, width]
};

int launch_finite_rows(const FiniteRowsArguments& arguments, void* stream);

}  // namespace dgcl
