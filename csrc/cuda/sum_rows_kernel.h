#pragma once
#include "rows.h"

namespace dgcl {

struct SumRowsArguments {
  RowView rows;               // [num_rows, dim], or as many for each class
  const int64_t* indices;     // [num_classes, width], or nullptr for row j at place j
  const int64_t* row_counts;  // [num_classes]
  int64_t num_classes, num_rows, width, dim;
  bool in_float64;
  void* sums;  // [num_classes, dim], float64 or float32
};

int launch_sum_rows(const SumRowsArguments& arguments, void* stream);

}  // namespace dgcl
