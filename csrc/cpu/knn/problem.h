// From tensors that passed their checks to a KnnProblem; reads and checks the values of offsets and counts.
#pragma once
#include <optional>

#include "knn_search.h"

namespace dgcl {

struct KnnTensors {
  KnnProblem problem;
  Tensor queries, bank;  // what the problem's row sources point into
};

KnnTensors make_knn_problem(const char* op, const Tensor& queries, const Tensor& bank, int64_t k,
                            const std::string& metric, const std::optional<Tensor>& query_offsets,
                            const std::optional<Tensor>& bank_counts, bool exclude_self, bool unit_bank);

// The values of an int64 vector, each of which must lie in [0, largest].
std::vector<int64_t> read_counts(const char* op, const char* name, const Tensor& t, int64_t largest);

}  // namespace dgcl
