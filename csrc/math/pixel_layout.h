// Where the pixels of a map lie. A map may have any strides: contiguous, channels last, or a crop along any dimension.
//
// Pixels are numbered over the images and all spatial dimensions, the last dimension fastest. Neighbouring dimensions
// that one stride covers form one side of the layout. The pixels of a contiguous map have two sides, area and images. A
// crop of a volume along every axis has four.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace dgcl {

constexpr int kMostSpatial = 6;  // spatial dimensions of a map
constexpr int kMostSides = 1 + kMostSpatial;

struct PixelLayout {
  int sides = 0;
  int64_t sizes[kMostSides] = {};    // the innermost side first
  int64_t strides[kMostSides] = {};  // in elements
};

// The place of the first channel of pixel p, in elements.
DGCL_HOST_DEVICE inline int64_t pixel_place(const PixelLayout& layout, int64_t p) {
  int64_t place = 0;
  int i = 0;
  for (; i + 1 < layout.sides; ++i) {
    const int64_t outer = p / layout.sizes[i];
    place += (p - outer * layout.sizes[i]) * layout.strides[i];
    p = outer;
  }
  return place + p * layout.strides[i];
}

}  // namespace dgcl
