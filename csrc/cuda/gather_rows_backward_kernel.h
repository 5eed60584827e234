#pragma once
#include <cstdint>

#include "rows.h"

namespace dgcl {

struct GatherRowsBackwardArguments {
  const void* dL_drows;  // [num_rows, dim], contiguous
  Dtype dtype;
  const int64_t* pixels;  // [num_rows]
  int64_t num_rows;       // fewer than 2^31
  int64_t num_images, dim, area;
  uint32_t* lowest;  // [num_images, area], filled with 2^32 - 1: the lowest row of each pixel
  int32_t* highest;  // [num_images, area], filled with -1: the highest row of each pixel
  void* dL_dmaps;    // [num_images, dim, area], contiguous, filled with 0
};

int launch_gather_rows_backward(const GatherRowsBackwardArguments& arguments, void* stream);

}  // namespace dgcl
