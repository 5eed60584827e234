// Exact k nearest neighbours of every query, class by class, without a similarity matrix.
//
// Work item: up to kBlockQueries queries of one class. The class's bank goes by in packed panels; a tile product scores
// them (the filter), scores at or above the query's threshold are kept in a small buffer per query, and whenever that
// fills the threshold rises. At the end the survivors get the canonical score and are sorted.
// Memory: a few MB per thread at the usual k and dim, whatever the numbers of queries and bank rows, and a copy of a
// small bank that needs widening or normalising.
#pragma once
#include <functional>
#include <vector>

#include "../common/metric.h"
#include "rows.h"

namespace dgcl {

template <typename T>
struct Neighbour {
  T score;
  int32_t index;  // row of the class's bank
};

struct KnnProblem {
  RowSource queries, bank;
  int64_t dim = 0;
  int64_t bank_rows = 0;         // rows allocated per class
  std::vector<int64_t> offsets;  // [classes + 1], queries of class c are [offsets[c], offsets[c + 1])
  std::vector<int64_t> counts;   // [classes], rows of the bank in use
  int64_t k = 1;
  Metric metric = Metric::cosine;
  bool exclude_self = false;
  bool unit_bank = false;  // cosine: the bank's rows have length 1 already
};

// Receives each query once, from any thread: neighbours [found] sorted by (score downward, index upward), found <= k.
// A query with a NaN gets found = -1. Queries outside all classes, and queries of a class without rows, get no call.
template <typename T>
using KnnEmit = std::function<void(int64_t query, const Neighbour<T>* neighbours, int64_t found)>;

template <typename T>
void knn_search(const KnnProblem& problem, const KnnEmit<T>& emit);

}  // namespace dgcl
