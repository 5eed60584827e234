#pragma once
#include <cstdint>

namespace dgcl {

struct ClassCountsArguments {
  const void* labels;
  int label_bytes;  // 1, 2, 4 or 8
  bool is_unsigned;
  int64_t num_labels, num_classes, ignore_index;
  int64_t* counts;  // [num_classes], zeros
};

int launch_class_counts(const ClassCountsArguments& arguments, void* stream);

}  // namespace dgcl
