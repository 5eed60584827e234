#include <algorithm>
#include <cstdint>

#include "checks.h"

namespace dgcl {
namespace {

// Whether the product of two sizes is 2^63 or more.
bool overflows(int64_t a, int64_t b) { return b != 0 && a > INT64_MAX / b; }

}  // namespace

void check_gather_rows(const Tensor& maps, const Tensor& pixels) {
  const char* op = "gather_rows";
  check_float(op, "maps", maps);
  check_shape(op, "maps", maps, {-1, -1, -1, -1}, "[B, D, H, W]");
  // Maps without channels take no memory, so any number of pixels is possible.
  if (overflows(maps.size(2), maps.size(3)) || overflows(maps.size(2) * maps.size(3), maps.size(0)))
    fail(op, "maps must have fewer than 2^63 pixels, got ", shape_of(maps));
  check_int64(op, "indices", pixels);
  check_same_device(op, "indices", pixels, "maps", maps);
}

void check_gather_rows_backward(const Tensor& dL_drows, const Tensor& pixels, const std::vector<int64_t>& shape) {
  const char* op = "gather_rows_backward";
  check_float(op, "dL_drows", dL_drows);
  check_int64(op, "indices", pixels);
  check_same_device(op, "indices", pixels, "dL_drows", dL_drows);
  if (shape.size() != 4) fail(op, "shape must be [B, D, H, W], got ", list_of(shape));
  for (int64_t size : shape)
    if (size < 0) fail(op, "shape must not have negative sizes, got ", list_of(shape));
  if (overflows(shape[2], shape[3]) || overflows(shape[2] * shape[3], shape[0]))
    fail(op, "shape must have fewer than 2^63 pixels, got ", list_of(shape));
  // The CUDA kernels keep row numbers in 32 bits.
  if (pixels.numel() > INT32_MAX) fail(op, "indices must have fewer than 2^31 entries, got ", shape_of(pixels));
  std::vector<int64_t> rows(pixels.sizes().begin(), pixels.sizes().end());
  rows.push_back(shape[1]);
  if (!std::equal(rows.begin(), rows.end(), dL_drows.sizes().begin(), dL_drows.sizes().end()))
    fail(op, "dL_drows must have the shape of indices and D columns, ", list_of(rows), ", got ", shape_of(dL_drows));
}

}  // namespace dgcl
