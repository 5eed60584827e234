// Where a pixel belongs when pixels are sorted by (class, random number): the segment of its class, or one of three kinds
// of skipped pixels, which share the last segment.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace dgcl {

// Slots num_classes and up: ignored; labelled but not usable; usable with a label that is no class.
constexpr int64_t kSkippedSlots = 3;

// In [0, num_classes + kSkippedSlots). A class is its own slot.
DGCL_HOST_DEVICE inline int64_t pixel_slot(int64_t label, bool usable, int64_t num_classes, int64_t ignore_index) {
  if (label == ignore_index) return num_classes;
  if (!usable) return num_classes + 1;
  return label < 0 || label >= num_classes ? num_classes + 2 : label;
}

// min(slot, num_classes) * 2^32 + the low 32 bits of `bits`, for num_classes < 2^31.
DGCL_HOST_DEVICE inline int64_t partition_key(int64_t slot, int64_t num_classes, int64_t bits) {
  const int64_t segment = slot < num_classes ? slot : num_classes;
  return (segment << 32) | (bits & 0xffffffff);
}

}  // namespace dgcl
