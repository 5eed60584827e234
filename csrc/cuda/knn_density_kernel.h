#pragma once
#include "knn/search.h"

namespace dgcl {

constexpr int kMostScales = 64;  // they are part of a kernel argument

struct KnnDensityArguments {
  KnnSearchArguments search;
  int64_t scales[kMostScales];
  int32_t num_scales;
  bool per_scale;
  void* density;  // [M] T; [num_scales][M] if per_scale
};

int launch_knn_density(const KnnDensityArguments& arguments, void* stream);

}  // namespace dgcl
