#pragma once
#include <cstdint>

#include "../math/pixel_layout.h"

namespace dgcl {

struct GatherRowsArguments {
  const void* maps;    // channel d of a pixel is d * channel_stride after the pixel's place
  int element_bytes;   // 2, 4 or 8
  PixelLayout layout;  // of map_pixels
  int64_t map_pixels, dim;
  int64_t channel_stride;  // in elements
  const int64_t* pixels;   // [num_pixels]
  int64_t num_pixels;
  void* rows;  // [num_pixels, dim]
};

int launch_gather_rows(const GatherRowsArguments& arguments, void* stream);

}  // namespace dgcl
