// knn_density: multi-scale mean similarity to the nearest bank rows. See dgcl_ops/ops/knn_density.py for the contract.
#pragma once
#include <vector>

#include "knn_arguments.h"

namespace dgcl {

void check_knn_density(const Tensor& queries, const Tensor& bank, const std::vector<int64_t>& scales,
                       const std::string& metric, const std::optional<Tensor>& query_offsets,
                       const std::optional<Tensor>& bank_counts);

}  // namespace dgcl
