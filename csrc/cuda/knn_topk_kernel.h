#pragma once
#include "knn/search.h"

namespace dgcl {

struct KnnTopkArguments {
  KnnSearchArguments search;
  int64_t k;     // columns of the output, at least search.k
  void* values;  // [M][k] T
  int64_t* indices;
};

int launch_knn_topk(const KnnTopkArguments& arguments, void* stream);

}  // namespace dgcl
