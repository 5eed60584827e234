#pragma once
#include "rows.h"

namespace dgcl {

// One kind of rows and its ring: `rows` [C, P, dim], `ring` [C, capacity, dim] contiguous.
struct RingPush {
  RowView rows;
  void* ring;
  Dtype ring_dtype;
  int64_t dim;
  bool normalize;
};

struct MemoryPushArguments {
  RingPush pushes[3];                       // features, projections, density (rows of one element)
  int64_t num_classes, capacity, num_rows;  // C, capacity, P
  const int64_t* row_counts;                // [C]
  int64_t *counts, *heads;                  // [C]
};

int launch_memory_push(const MemoryPushArguments& arguments, void* stream);

}  // namespace dgcl
