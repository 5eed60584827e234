// From tensors that passed their checks to a KnnProblem; reads and checks the values of offsets and counts.
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
  std::vector<int64_t> offsets;  // [classes + 1], queries of class c are [offsets[c], offsets[c + 1])
  std::vector<int64_t> counts;   // [classes], rows of the bank in use
  int64_t k = 1;
  Metric metric = Metric::cosine;
  bool exclude_self = false;
  bool unit_bank = false;  // cosine: the bank's rows have length 1 already
};

// Receives each query once, from any thread: neighbours [found] sorted by (score downward, index upward), found <= k.
// A query with a NaN gets found = -1. Queries outside all classes, of a class without rows, or, with exclude_self, beyond the bank's
// rows get no call.
template <typename T>
using KnnEmit = std::function<void(int64_t query, const Neighbour<T>* neighbours, int64_t found)>;

struct KnnTensors {
  KnnProblem problem;
  Tensor queries, bank;  // what the problem's row sources point into
};

KnnTensors make_knn_problem(const char* op, const Tensor& queries, const Tensor& bank, int64_t k,
                            const std::string& metric, const std::optional<Tensor>& query_offsets,
                            const std::optional<Tensor>& bank_counts, bool exclude_self, bool unit_bank);

}  // namespace dgcl
