#pragma once
#include <cstdint>

#include "rows.h"

namespace dgcl {

// Rows are worked on by at most this many warps, each with a scratch row of its own for the sum.
constexpr int64_t kMostGradientWarps = 8192;

struct KnnTopkBackwardArguments {
  Rows queries;             // [M, D]
  Rows bank;                // [C, N, D]
  const void* grad_values;  // [M, k], float or double
  const void* values;       // [M, k], the same
  const int64_t* indices;   // [M, k]; those outside [0, N) are no neighbours
  const int64_t* offsets;   // [C + 1] or nullptr: all queries are of class 0
  int64_t num_queries, num_classes, bank_rows, dim, k;
  bool l2, normalize_queries, normalize_bank;
  bool is_double;     // compute in double, not in float
  void* query_norms;  // scratch [M]: RowNorm each; unused without normalize_queries
  void* bank_norms;   // scratch [C, N], likewise
  int64_t* keys;      // scratch [M, k], written by launch_knn_pair_keys: row of the bank [C N] or, for no pair, C N
  const int64_t* sorted_keys;  // [M k], the keys sorted upward
  const int64_t* pairs;        // [M k], where each was; equal keys in their old order
  void* sums;                  // scratch [min(kMostGradientWarps, max(M, C N)), D], float or double
  void* grad_queries;          // [M, D], contiguous, dtype of queries
  void* grad_bank;             // [C, N, D], contiguous, dtype of bank
};

int launch_knn_pair_keys(const KnnTopkBackwardArguments& arguments, void* stream);
int launch_knn_topk_backward(const KnnTopkBackwardArguments& arguments, void* stream);

}  // namespace dgcl
