#include <algorithm>
#include <cstdint>

#include "../common/maps.h"
#include "checks.h"

namespace dgcl {

void check_gather_rows(const Tensor& maps, const Tensor& pixels) {
  const char* op = "gather_rows";
  check_float(op, "maps", maps);
  if (maps.dim() < 3 || maps.dim() > 2 + kMostSpatial)
    fail(op, "maps must have shape [B, D, *S] with 1 to 6 spatial dimensions, got ", shape_of(maps));
  count_pixels(op, "maps", maps.sizes(), 1);  // maps without channels take no memory, so any number is possible
  check_int64(op, "indices", pixels);
  check_same_device(op, "indices", pixels, "maps", maps);
}

void check_gather_rows_backward(const Tensor& dL_drows, const Tensor& pixels, const std::vector<int64_t>& shape) {
  const char* op = "gather_rows_backward";
  check_float(op, "dL_drows", dL_drows);
  check_int64(op, "indices", pixels);
  check_same_device(op, "indices", pixels, "dL_drows", dL_drows);
  if (shape.size() < 3 || shape.size() > 2 + kMostSpatial)
    fail(op, "shape must be [B, D, *S] with 1 to 6 spatial dimensions, got ", list_of(shape));
  for (int64_t size : shape)
    if (size < 0) fail(op, "shape must not have negative sizes, got ", list_of(shape));
  count_pixels(op, "shape", shape, 1);
  // The CUDA kernels keep row numbers in 32 bits.
  if (pixels.numel() > INT32_MAX) fail(op, "indices must have fewer than 2^31 entries, got ", shape_of(pixels));
  std::vector<int64_t> rows(pixels.sizes().begin(), pixels.sizes().end());
  rows.push_back(shape[1]);
  if (!std::equal(rows.begin(), rows.end(), dL_drows.sizes().begin(), dL_drows.sizes().end()))
    fail(op, "dL_drows must have the shape of indices and D columns, ", list_of(rows), ", got ", shape_of(dL_drows));
}

}  // namespace dgcl
