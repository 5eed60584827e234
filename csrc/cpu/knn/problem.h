// What a search is given and what it returns. Makes a KnnProblem from checked tensors, and checks the values of offsets
// and counts.
#pragma once
#include <functional>
#include <optional>
#include <vector>

#include "../../common/metric.h"
#include "../rows.h"

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
  std::vector<int64_t> offsets;  // [classes + 1]: class c has queries [offsets[c], offsets[c + 1])
  std::vector<int64_t> counts;   // [classes]: bank rows in use
  int64_t k = 1;
  Metric metric = Metric::cosine;
  bool exclude_self = false;
  bool unit_bank = false;  // for cosine: the bank rows have length 1
};

// Called once per query, from any thread, with at most k neighbours in descending order of score; ties go to the lower
// index. count is -1 for a query with a NaN. Not called for queries without a class, in a class without rows, or, with
// exclude_self, past the bank's rows.
template <typename T>
using KnnEmit = std::function<void(int64_t query, const Neighbour<T>* neighbours, int64_t count)>;

struct KnnTensors {
  KnnProblem problem;
  Tensor queries, bank;  // own the memory of the problem's rows
};

KnnTensors make_knn_problem(const char* op, const Tensor& queries, const Tensor& bank, int64_t k,
                            const std::string& metric, const std::optional<Tensor>& query_offsets,
                            const std::optional<Tensor>& bank_counts, bool exclude_self, bool unit_bank);

}  // namespace dgcl
