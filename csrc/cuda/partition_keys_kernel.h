#pragma once
#include <cstdint>

namespace dgcl {

struct PartitionKeysArguments {
  const void* labels;  // [num_pixels]
  int label_bytes;     // 1, 2, 4 or 8
  bool is_unsigned;
  const uint8_t* usable;  // [num_pixels], 0 or 1
  const int64_t* bits;    // [num_pixels]
  int64_t num_pixels, num_classes, ignore_index;
  int64_t* keys;    // [num_pixels]
  int64_t* counts;  // [num_classes + kSkippedSlots], zeros
};

int launch_partition_keys(const PartitionKeysArguments& arguments, void* stream);

}  // namespace dgcl
