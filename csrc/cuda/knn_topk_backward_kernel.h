#pragma once
#include <cstdint>

#include "rows.h"

namespace dgcl {

// At most this many warps work on the rows, each with a scratch row for its sum.
constexpr int64_t kMostGradientWarps = 8192;

struct KnnTopkBackwardArguments {
  RowView queries;         // [M, D]
  RowView bank;            // [C, N, D]
  const void* dL_dvalues;  // [M, k], float or double
  const void* values;      // [M, k], the same type
  const int64_t* indices;  // [M, k]; an index outside [0, N) is not a neighbour
  const int64_t* offsets;  // [C + 1]; nullptr: all queries are of class 0
  int64_t num_queries, num_classes, bank_rows, dim, k;
  bool l2, normalize_queries, normalize_bank;
  bool is_double;              // compute in double, else in float
  void* query_norms;           // scratch [M], a RowNorm each; unused without normalize_queries
  void* bank_norms;            // scratch [C, N], a RowNorm each; unused without normalize_bank
  int64_t* keys;               // scratch [M, k] for launch_knn_pair_keys: the bank row in [0, C N), or C N for no pair
  const int64_t* sorted_keys;  // [M k], the keys in ascending order
  const int64_t* pairs;        // [M k], the pair of each sorted key; equal keys keep their order
  void* sums;                  // scratch [min(kMostGradientWarps, max(M, C N)), D], float or double
  void* dL_dqueries;           // [M, D], contiguous, dtype of queries
  void* dL_dbank;              // [C, N, D], contiguous, dtype of bank
};

int launch_knn_pair_keys(const KnnTopkBackwardArguments& arguments, void* stream);
int launch_knn_topk_backward(const KnnTopkBackwardArguments& arguments, void* stream);

}  // namespace dgcl
