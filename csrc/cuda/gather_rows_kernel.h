#pragma once
#include <cstdint>

namespace dgcl {

struct GatherRowsArguments {
  const void* maps;   // element (b, d, p) at b * image_stride + d * channel_stride + p * pixel_stride
  int element_bytes;  // 2, 4 or 8
  int64_t num_images, dim, area;
  int64_t image_stride, channel_stride, pixel_stride;  // in elements
  const int64_t* pixels;                               // [num_pixels]
  int64_t num_pixels;
  void* rows;  // [num_pixels, dim]
};

int launch_gather_rows(const GatherRowsArguments& arguments, void* stream);

}  // namespace dgcl
