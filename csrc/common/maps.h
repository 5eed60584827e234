// Maps [B, D, *S] with 1 to 6 spatial dimensions, and rows [M, D]: their pixels and where these lie.
#pragma once
#include <cstdint>

#include "../math/pixel_layout.h"
#include "check.h"

namespace dgcl {

// The number of pixels of a shape. `channel` is the dimension of the channels, or -1 for a shape without them.
template <typename Shape>
int64_t count_pixels(const char* op, const char* name, const Shape& shape, int64_t channel) {
  int64_t count = 1, dim = 0;
  for (int64_t size : shape) {
    if (dim++ == channel) continue;
    if (size != 0 && count > INT64_MAX / size)
      fail(op, name, " must have fewer than 2^63 pixels, got ", list_of(shape));
    count *= size;
  }
  return count;
}

// `channel` as in `count_pixels`. The stride of a dimension of size 1 is arbitrary, so it makes no side.
inline PixelLayout pixel_layout(const Tensor& t, int64_t channel) {
  PixelLayout layout;
  for (int64_t dim = t.dim() - 1; dim >= 0; --dim) {
    if (dim == channel || t.size(dim) == 1) continue;
    const int last = layout.sides - 1;
    if (last >= 0 && t.stride(dim) == layout.sizes[last] * layout.strides[last]) {
      layout.sizes[last] *= t.size(dim);
      continue;
    }
    layout.sizes[layout.sides] = t.size(dim);
    layout.strides[layout.sides++] = t.stride(dim);
  }
  if (layout.sides == 0) layout.sides = layout.sizes[0] = 1;
  return layout;
}

}  // namespace dgcl
