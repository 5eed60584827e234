#pragma once
#include "rows.h"

namespace dgcl {

struct SilhouetteSumsArguments {
  RowView rows, features;  // [M, D], [N, D]
  int64_t num_rows, num_features, dim, num_classes;
  const int64_t* offsets;  // [C + 1]
  double* sums;            // [M, C]
};

int launch_silhouette_sums(const SilhouetteSumsArguments& arguments, void* stream);

}  // namespace dgcl
