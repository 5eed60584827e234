#pragma once
#include <cstdint>

namespace dgcl {

struct ClassTableArguments {
  const int64_t *pixels, *offsets, *order;  // [num_pixels], [num_classes + 1], [num_pixels] or nullptr
  int64_t num_pixels, num_classes, width;   // width <= num_pixels
  bool last;                                // from the end of each class backwards
  int64_t *entries, *entry_pixels;          // [num_classes, width]
};

int launch_class_table(const ClassTableArguments& arguments, void* stream);

}  // namespace dgcl
