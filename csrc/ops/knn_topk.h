// knn_topk: the k most similar bank rows of every query. See dgcl_ops/ops/knn_topk.py for the contract.
#pragma once
#include "knn_arguments.h"

namespace dgcl {

void check_knn_topk(const Tensor& queries, const Tensor& bank, int64_t k, const std::string& metric,
                    const std::optional<Tensor>& query_offsets, const std::optional<Tensor>& bank_counts);

void check_knn_topk_backward(const Tensor& grad_values, const Tensor& queries, const Tensor& bank, const Tensor& values,
                             const Tensor& indices, const std::string& metric,
                             const std::optional<Tensor>& query_offsets);

}  // namespace dgcl
